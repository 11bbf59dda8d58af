"""Where trial data are written to."""

import os
from pathlib import Path

from bach.core.errors import InputError


def new_folder(directory: str | os.PathLike, needs: str) -> Path:
    """A folder that is empty or not there yet.

    Args:
        directory: The folder.
        needs: What needs it, for the message: "The trial data set needs".

    Raises:
        InputError: If it holds something.
    """
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"{needs} a new or empty folder.\nReceived: {directory}, which is not empty.\n"
            "Name another folder, or delete this one."
        )
    return path
