"""What a model has seen: nobody may start from it, or score with it, what it was trained on.

A `.keras` file is a zip archive; `seen.json` in it lists the photos and slides that the
model was trained on, and those of the model that its training started from, and so on
back to the first. Keras ignores the entry when it loads the model.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from bach.core.errors import InputError
from bach.core.files import read_object
from bach.core.inputs import Limit, open_input
from bach.core.log import log
from bach.core.tables import image_key
from bach.core.text import listed

_ENTRY = "seen.json"


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images that a model was trained on, by their keys.

    Attributes:
        photos: Keys of photos.
        slides: Keys of slides.
        unknown: Files that a training started from and that do not say what they have seen.
    """

    photos: frozenset[str] = frozenset()
    slides: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    @classmethod
    def of(cls, photos: Iterable[str] = (), slides: Iterable[str] = ()) -> "Seen":
        """What a training on these images shows a model."""
        return cls(frozenset(map(image_key, photos)), frozenset(map(image_key, slides)))

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(
            self.photos | other.photos, self.slides | other.slides, self.unknown | other.unknown
        )


NOTHING = Seen()


def add_seen(file: Path, seen: Seen) -> None:
    """Write into a model file, or folder, what the model has seen; it is not said there yet."""
    values = {name: sorted(keys) for name, keys in vars(seen).items()}
    if file.is_dir():
        (file / _ENTRY).write_text(json.dumps(values), encoding="utf-8")
        return
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(_ENTRY, json.dumps(values))


def read_seen(file: str | os.PathLike) -> Seen:
    """What the model in a file has seen.

    Args:
        file: A model saved by the training scripts, or any other weights.

    Returns:
        What the file says. One that says nothing counts as `unknown` itself, but for
        the slides in `slides.json` beside it, as earlier versions of the scripts wrote them.
    """
    file = Path(file)
    try:
        with open_input(file, "be a model", "") as stream, zipfile.ZipFile(stream) as archive:
            if archive.getinfo(_ENTRY).file_size > Limit.JSON:
                raise ValueError("a bomb")
            values = json.loads(archive.read(_ENTRY))
        seen_photos, seen_slides, unknown = (list(map(str, values[name])) for name in vars(NOTHING))
        return Seen.of(seen_photos, seen_slides) | Seen(unknown=frozenset(unknown))
    except Exception:  # whatever zipfile makes of the damage, nothing can be believed
        pass
    beside = file.parent / "slides.json"
    remedy = "Train the model again."
    known = read_object(beside, remedy, trained_on=list) if beside.exists() else {}
    slides = known.get("trained_on") or ()
    return Seen.of(slides=slides) | Seen(unknown=frozenset([str(file)]))


def start_file(start: str, fold: int | None) -> Path | None:
    """The file that the training of a fold starts from.

    Args:
        start: "imagenet", "none", a file, or a run folder, whose models each serve for
            their own fold.
        fold: Number of the fold; None for a model that nothing is held out from.

    Raises:
        InputError: If the run has no finished model of the fold.
    """
    path = Path(start)
    if start not in ("imagenet", "none") and not path.exists():
        raise InputError(
            "What a training starts from must be imagenet, none, a file or a run folder.\n"
            f"Received: {start}, which does not exist. Check the name."
        )
    if path.is_dir():
        path = path / f"fold_{'none' if fold is None else fold}" / "model.keras"
        if not path.exists():
            raise InputError(
                "A run to start from must have a model of every fold that is trained.\n"
                f"Received: {start} without {path.parent.name}. Finish it, or name a file."
            )
    return path if path.is_file() else None


def check_unseen(
    option: str, file: Path, heldout: Iterable[str], kind: str, fold: int | None
) -> Seen:
    """Refuse a model to start from that has seen what is to be held out.

    Args:
        option: Which option named it.
        file: The model's file.
        heldout: Ids of the images to be held out.
        kind: "photos" or "slides".
        fold: The fold that they are of.

    Returns:
        What the model has seen.

    Raises:
        InputError: If an image to be held out is among it.
    """
    seen = read_seen(file)
    there = sorted(set(map(image_key, heldout)) & getattr(seen, kind))
    if there:
        raise InputError(
            "A model to start from must not have seen what is held out now.\n"
            f"Received: --{option}={file}, which was trained on {len(there)} of the {kind} that "
            f"fold {fold} holds out: {listed(there)}.\n"
            "Name a run on the same folds, each of whose models then serves for its own fold; "
            "or start from imagenet or none."
        )
    if seen.unknown:
        log.warning(
            "--%s: %s does not say what it has seen; if images that are held out now are among "
            "it, their score is too good",
            option,
            listed(sorted(seen.unknown)),
        )
    return seen
