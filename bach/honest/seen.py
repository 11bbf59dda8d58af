"""What a model has seen: nobody may start from it, or score with it, what it was trained on."""

import os
from pathlib import Path

import pandas as pd

from bach.core.errors import InputError
from bach.core.files import read_json, write_json
from bach.core.tables import image_key, read_table

_SLIDES = "slides.json"


def write_trained_slides(folder: Path, slides: list[str]) -> None:
    """Write which slides the model of a fold is trained on, beside where it will lie."""
    write_json(folder / _SLIDES, {"trained_on": slides})


def trained_slides(file: Path) -> frozenset[str]:
    """Keys of the slides a model was trained on; empty for models of photos alone.

    Args:
        file: The model's file; the list lies beside it.
    """
    listed = file.parent / _SLIDES
    if not listed.exists():
        return frozenset()
    names = read_json(listed, "Train the model again.")["trained_on"]
    return frozenset(map(image_key, names))


def check_unseen(option: str, start: str | os.PathLike, heldout: pd.DataFrame) -> None:
    """Refuse to start from models of train_part_a.py that have seen what is to be held out.

    Args:
        option: Which option named them.
        start: Run folder, whose models each serve for their own fold, or a file; a file
            that lies in no run of train_part_a.py is taken as it is.
        heldout: Table of `image_id` and `fold` of the images to be held out.

    Raises:
        InputError: If an image held out now was not held out by the model that the
            training of its fold starts from, or the run is not finished.
    """
    start = Path(start)
    run, fold = start, None
    if start.is_file():
        if (start.parent / _SLIDES).exists():
            raise InputError(
                "A model of train_final.py has seen all photos, those held out now as well.\n"
                f"Received: --{option}={start}. Name a run of train_part_a.py on the same folds."
            )
        run, (name, _, number) = start.parent.parent, start.parent.name.partition("_")
        if name != "fold" or not number.isdigit() or not (run / "predictions.csv").exists():
            return
        fold = number
    file = run / "predictions.csv"
    if not file.exists():
        raise InputError(
            "A run to start from must be a finished one of train_part_a.py.\n"
            f"Received: --{option}={start}, without {file.name}."
        )
    table = read_table(file, ("image_id", "fold"), key="image_id")
    then = table["fold"].set_axis(table["image_id"].map(image_key))
    now = heldout["fold"].astype(str).set_axis(heldout["image_id"].map(image_key))
    unseen = then.reindex(now.index) == (now if fold is None else fold)
    if not unseen.all():
        raise InputError(
            "Models to start from must not have seen what is held out now: name a run on the same "
            "folds, each of whose models then serves for its own.\n"
            f"Received: --{option}={start}; {(~unseen).sum()} images that are held out now were "
            f"not there, such as {unseen.idxmin()}.\n"
            "(If that run was on other photos of the same names, copy the model elsewhere.)"
        )
