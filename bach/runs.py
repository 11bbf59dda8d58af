"""Run folders, logging, errors and the options that all scripts share.

A run folder tells its own story: `run.json` (command, arguments, commit,
versions, status), `log.txt`, and the tables and pictures of its stage. Files are
written beside and renamed, so a file that is there is whole. `metrics.json` is
written last: its presence means that the run is finished.
"""

import argparse
import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

log = logging.getLogger("bach")

# Arguments that may differ between a run and its resumption: they say where and
# whether, not what.
_FREE_ARGUMENTS = ("resume", "run_dir", "data_dir")

_VERSIONED = (
    "keras", "tensorflow", "jax", "numpy", "pandas", "opencv-python-headless",
    "openslide-python", "scikit-image",
)  # fmt: skip


class InputError(Exception):
    """Something the user gave cannot be used; the message says what to do."""


def first_process() -> bool:
    """Whether this process writes files: of several that train one model, the first."""
    return os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0") == "0"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success.

    A crash, a full disk or a kill leaves the old file as it was. The temporary
    name keeps the suffix, since many writers choose the format by it. In a process
    that writes no files (`first_process`) what was written is thrown away.

    Raises:
        InputError: If there is no room for it.

    Example:
        >>> with atomic_path("table.csv") as temporary:  # doctest: +SKIP
        ...     frame.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    temporary = None
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=suffix, dir=path.parent if first_process() else None
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if first_process():
            os.chmod(temporary, 0o644)  # mkstemp makes files only their owner can read
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"There must be room for {path}.\nReceived: {error.strerror}.\n"
            "Files written before are whole. Make room and run the same command again; a script "
            "goes on where it was with --resume."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""

    def plain(thing: object) -> object:
        # NumPy's numbers are no JSON, but they are numbers.
        return thing.item() if hasattr(thing, "item") else str(thing)

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=plain) + "\n")


def to_json(value: object) -> str:
    """One line of JSON, with null for a number that is undefined (nan)."""

    def clean(item: object) -> object:
        if isinstance(item, dict):
            return {key: clean(part) for key, part in item.items()}
        if isinstance(item, list):
            return [clean(part) for part in item]
        return None if isinstance(item, float) and math.isnan(item) else item

    return json.dumps(clean(value), allow_nan=False)


def write_csv(frame, path: str | os.PathLike) -> None:
    """Write a pandas table without its index, whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)


def add_shared_options(parser: argparse.ArgumentParser, run_dir: str) -> None:
    """Add the options that all four scripts share.

    Args:
        parser: The script's parser.
        run_dir: Default run folder of the script.
    """
    parser.add_argument("--data-dir", default="data/BACH", help="folder of the challenge data")
    parser.add_argument("--run-dir", default=run_dir, help="folder to write the run to")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    parser.add_argument(
        "--limit", type=int, default=None,
        help="use only so many images a class, or slides (for a quick trial)",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that run a network."""
    parser.add_argument("--batch-size", type=int, default=64, help="patches a batch, all devices")
    parser.add_argument(
        "--devices", type=int, default=0,
        help="devices to use; 0: all GPUs, or one CPU (more make logical CPU devices)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "mixed_bfloat16", "mixed_float16"),
        help="number format of the network's inner layers",
    )  # fmt: skip


def add_slide_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that read slides."""
    parser.add_argument(
        "--mode", default="patches", choices=("patches", "dense"),
        help="predict patch by patch, or run the network once over large regions",
    )  # fmt: skip
    parser.add_argument(
        "--mpp", type=float, default=None, help="um per pixel of the slides, if they do not say"
    )
    parser.add_argument(
        "--masks", default=None,
        help="folder of tissue masks NAME.png (not black is tissue; any size) to use instead",
    )  # fmt: skip
    parser.add_argument(
        "--exclude-pen", action="store_true", help="do not take pen marks for tissue"
    )


def add_training_options(parser: argparse.ArgumentParser, epochs: int) -> None:
    """Add the options of the two training scripts; defaults are the paper's."""
    parser.add_argument(
        "--backbone", default="InceptionResNetV2",
        help="a network of keras.applications, or small (trains on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default="imagenet",
        help="imagenet, none, or a file to start from; for train_part_a.py also a run of its own "
        "on the same folds",
    )  # fmt: skip
    parser.add_argument(
        "--head", default="sigmoid", choices=("sigmoid", "softmax"), help="kind of the last layer"
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="passes over the patches")
    parser.add_argument(
        "--optimizer", default="sgd", choices=("sgd", "adamw"),
        help="sgd: with Nesterov momentum 0.9; adamw: with weight decay 0.004",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=0.001, help="of the optimizer")
    parser.add_argument(
        "--scale-learning-rate", type=_at_least_0, nargs="?", const=64, default=0, metavar="BATCH",
        help="multiply the learning rate by batch size / BATCH, the batch that it belongs to "
        "(64 if not said)",
    )  # fmt: skip
    parser.add_argument(
        "--warmup-epochs", type=_at_least_0, default=0,
        help="epochs over which the learning rate rises to its full value",
    )  # fmt: skip
    parser.add_argument(
        "--schedule", default="constant", choices=("constant", "cosine"),
        help="learning rate after the warm-up; cosine: falls to 0 over the rest",
    )  # fmt: skip
    parser.add_argument(
        "--label-smoothing", type=_share, default=0.0,
        help="share of every training label that is spread over all classes",
    )  # fmt: skip
    parser.add_argument(
        "--ema", type=_share, default=0.0,
        help="keep, a step, this share of a moving average of the weights, and use the average; "
        "0: use the weights as they are",
    )  # fmt: skip
    parser.add_argument("--hue", type=float, default=0.04, help="largest hue shift, in turns")
    parser.add_argument(
        "--saturation", type=float, default=0.25, help="largest relative saturation change"
    )
    parser.add_argument(
        "--value", type=float, default=0.25, help="largest relative brightness change"
    )
    parser.add_argument(
        "--bn-patches", type=int, default=1024,
        help="patches to estimate batch-normalisation statistics from after an epoch; 0: do not",
    )  # fmt: skip
    parser.add_argument(
        "--monitor", default="heldout_loss", help="column of history.csv that decides best.keras"
    )
    parser.add_argument(
        "--monitor-mode", default="auto", choices=("auto", "min", "max"),
        help="whether less or more of --monitor is better; auto: told by its name",
    )  # fmt: skip
    parser.add_argument(
        "--keep-every", type=_at_least_0, default=0,
        help="also save the model every so many epochs; 0: do not",
    )  # fmt: skip
    parser.add_argument(
        "--keep", default="last", choices=("last", "best"),
        help="epoch whose model is used; best is chosen on the held-out images, which makes "
        "their score too good",
    )  # fmt: skip
    add_device_options(parser)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, not {text}")
    return value


def _at_least_0(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value


class Run:
    """A run folder that is being written.

    Args:
        args: The script's parsed arguments; must hold `run_dir` and `resume`.

    Attributes:
        path: The folder.
        finished: True if the folder holds a finished run with the same arguments
            (only possible with `--resume`); the script then has nothing to do.

    Raises:
        InputError: If the folder holds a run and `--resume` was not given, or if
            `--resume` was given and the run there had other arguments.
    """

    def __init__(self, args: argparse.Namespace):
        self.path = Path(args.run_dir)
        self.arguments = {key: value for key, value in vars(args).items()}
        self.finished = False
        self._start = time.monotonic()
        if not first_process():
            # The first process checks and writes for all.
            self.finished = args.resume and self._has_metrics()
            setup_logging()
            return
        previous = self._read_previous()
        # A run killed at its very start leaves its log, and hidden temporary files.
        others = [] if not self.path.is_dir() else self.path.iterdir()
        others = [p for p in others if p.name != "log.txt" and not p.name.startswith(".")]
        if previous is None and others:
            raise InputError(
                f"The run folder {self.path} is not empty and holds no run.json.\n"
                f"Received: --run-dir={self.path}.\n"
                "Name a new folder, so that nothing is overwritten."
            )
        if previous is not None:
            if not args.resume:
                state = "a finished run" if self._has_metrics() else "an unfinished run"
                raise InputError(
                    f"The run folder {self.path} already holds {state}.\n"
                    f"Received: --run-dir={self.path}.\n"
                    "Add --resume to go on with it, or name another folder."
                )
            self._check_same(previous)
            self.finished = self._has_metrics()
        self.path.mkdir(parents=True, exist_ok=True)
        setup_logging(self.path / "log.txt")
        if self.finished:
            log.info("finished already: %s (nothing to do)", self.path)
        else:
            if previous is not None:
                log.info("resuming %s", self.path)
            self._write_status("running")

    def _has_metrics(self) -> bool:
        return (self.path / "metrics.json").exists()

    def _read_previous(self) -> dict | None:
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file} is not valid JSON ({error}).\nName another --run-dir, or delete this one."
            ) from error

    def _check_same(self, previous: dict) -> None:
        old = previous.get("arguments", {})
        new = json.loads(json.dumps(self.arguments, default=str))
        keys = (old.keys() | new.keys()) - set(_FREE_ARGUMENTS)
        # An option that one of the two versions does not have, and that is off in the
        # other, changes nothing.
        known = old.keys() & new.keys()
        changed = sorted(
            key
            for key in keys
            if old.get(key) != new.get(key) and (key in known or old.get(key) or new.get(key))
        )
        if changed:
            lines = [
                f"  --{key.replace('_', '-')}: {old.get(key)} then, {new.get(key)} now"
                for key in changed
            ]
            raise InputError(
                f"Cannot resume {self.path}: it was started with other arguments.\n"
                + "\n".join(lines)
                + "\nUse the same arguments, or name another --run-dir."
            )

    def _write_status(self, status: str) -> None:
        write_json(
            self.path / "run.json",
            {
                "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                "arguments": self.arguments,
                "status": status,
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **git_state(),
                "versions": versions(),
            },
        )

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record in `run.json` how the body ended: finished, interrupted, failed."""
        try:
            yield
        except KeyboardInterrupt:
            with contextlib.suppress(InputError):  # no room to say so is no reason to hide why
                self._write_status("interrupted")
            log.warning("interrupted; the same command with --resume goes on")
            raise
        except BaseException as error:
            with contextlib.suppress(InputError):
                self._write_status(f"failed: {type(error).__name__}: {error}")
            raise

    def finish(self, metrics: dict) -> None:
        """Write the metrics, which marks the run as finished, and name the folder."""
        self._write_status("finished")
        write_json(self.path / "metrics.json", metrics)
        log.info("finished in %s", duration(time.monotonic() - self._start))


def git_state() -> dict:
    """The commit this code was run from and whether it was changed since."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def versions() -> dict:
    """Versions of Python, the platform and the packages that can change results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def setup_logging(file: str | os.PathLike | None = None) -> None:
    """Send the log to stderr and, if given, append it to a file."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def listed(items: Iterable, most: int = 10) -> str:
    """The first of many, for a message.

    Example:
        >>> listed("abcd", most=2)
        'a, b and 2 more'
    """
    items = [str(item) for item in items]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 3.1 s, 4 min 5 s, 2 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


@contextlib.contextmanager
def step(text: str) -> Iterator[list[str]]:
    """Log one line for a step when it ends, with what it adds and its time.

    Example:
        >>> with step("patches") as notes:
        ...     notes.append("400 images -> 5,600 patches")
    """
    start = time.monotonic()
    notes: list[str] = []
    yield notes
    log.info("%s: %s, %s", text, ", ".join(notes) or "done", duration(time.monotonic() - start))


def exit_with(main: Callable[..., int | None]) -> None:
    """Run a script's `main`; an InputError becomes its message and exit code 2."""
    if not log.handlers:
        setup_logging()
    try:
        code = main()
    except InputError as error:
        print(f"InputError: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)


def main(argv: list[str] | None = None) -> int:
    """`python -m bach.runs compare RUN_A RUN_B` and `python -m bach.runs table RUN...`."""
    from bach import comparison  # not at the top: it imports this module

    tools = {"compare": comparison.main_compare, "table": comparison.main_table}
    parser = argparse.ArgumentParser(
        prog="python -m bach.runs", description="Compare finished runs. Each tool has its --help."
    )
    parser.add_argument("tool", choices=tools, help="compare two runs, or a table of any number")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="run folders and options")
    args = parser.parse_args(argv)
    return tools[args.tool](args.arguments)


if __name__ == "__main__":
    # As a program this file is the module `__main__`; the errors to catch are those
    # of `bach.runs`.
    from bach import runs

    runs.exit_with(runs.main)
