"""Options of the service."""

import dataclasses
import os
from pathlib import Path

from bach.core.errors import InputError
from bach.core.inputs import KB, read_input
from bach.core.options import Devices, Slides, option
from bach.heatmap import MapRule, cell_um

TOKEN = "BACH_SERVE_TOKEN"  # of the environment
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_LEAST_TOKEN = 16
_TOKEN_REMEDY = (
    'Make one: python -c "import secrets; print(secrets.token_urlsafe(32))" > FILE, and name it '
    f"with --token-file; or set {TOKEN}."
)


@dataclasses.dataclass(frozen=True)
class Service:
    """Options of a service."""

    model_dir: str = option("runs/final", "run folder of the models, or a .keras file", path=True)
    host: str = option("127.0.0.1", "address to listen at; any but this machine's needs a token")
    port: int = option(8000, "port to listen at; 0: any that is free", at_least=0, most=65_535)
    token_file: str | None = option(
        None,
        f"file of the token that whoever asks must send; it may stand in {TOKEN} of the "
        "environment instead",
        path=True,
    )
    name: str = option("bach", "what the model is called in /model/metadata and /v2/models")
    jobs_dir: str = option(
        "runs/jobs", "folder of slide jobs, their results and uploads", path=True
    )
    slides_root: str | None = option(
        None,
        "folder of slides that may be predicted where they lie; none: uploads alone",
        path=True,
    )
    queue: int = option(64, "photos that may wait at a time; more are answered 429", at_least=1)
    slide_queue: int = option(
        100, "slide jobs that may wait at a time; more are answered 429", at_least=1
    )
    photo_mb: float = option(64.0, "largest photo, or tensor as JSON, that is taken", above=0)
    slide_gb: float = option(8.0, "largest slide that is uploaded", above=0)
    photo_mpp: float | None = option(
        None,
        "um per pixel of photos that are sent without mpp; needed where they are not 2048x1536 px "
        "at 0.42",
        above=0,
    )
    time_limit_s: float = option(
        120.0,
        "seconds that a photo may take, waiting included; where longer is foreseen, 429",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class Options(Service, MapRule, Devices, Slides):
    """Options of python -m bach.serve."""

    tta: bool = option(False, "mean over the eight orientations, at eight times the cost")
    step_um: float | None = option(
        None,
        "side of a heatmap's cell in um (default: 125.58; dense: 67.2, or multiples)",
        above=0,
    )

    @property
    def loopback(self) -> bool:
        """Whether the service listens to this machine alone."""
        return self.host in LOOPBACK

    @property
    def cell_um(self) -> float:
        """Side of a heatmap's cell in um, as in make_heatmap.py."""
        return cell_um(self.step_um, self.mode)


def read_token(options: Options) -> str | None:
    """The token that is asked for, or None where none is needed.

    Raises:
        InputError: If one is needed and there is none, or it is too short to be one.
    """
    token = os.environ.get(TOKEN, "").strip()
    if options.token_file is not None:
        must = "hold a token in its first line"
        text = read_input(options.token_file, must, _TOKEN_REMEDY, KB)
        token = (text.decode("utf-8", "replace").splitlines() or [""])[0].strip()
    if not token and options.token_file is None:
        if options.loopback:
            return None
        raise InputError(
            "A service that others reach must ask for a token.\n"
            f"Received: --host={options.host}, and no token.\n{_TOKEN_REMEDY}"
        )
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise InputError(
            f"A token must have at least {_LEAST_TOKEN} plain letters.\n"
            f"Received: one of {len(token)}.\n{_TOKEN_REMEDY}"
        )
    return token


def find_root(options: Options) -> Path | None:
    """The folder of slides, without links in its path; None where there is none.

    Raises:
        InputError: If it is no folder.
    """
    if options.slides_root is None:
        return None
    root = Path(os.path.realpath(options.slides_root))
    if not root.is_dir():
        raise InputError(
            "The folder of slides must be there.\n"
            f"Received: --slides-root={options.slides_root}.\nCheck the name."
        )
    return root
