"""Files of models and weights, looked at before Keras reads them.

Whoever has made a file decides what it claims: how much it unpacks to, which code it asks
for. Keras has limits of its own, of gigabytes.
"""

import io
import math
import os
import zipfile
from typing import IO

import h5py

from bach.core.archives import check_archive, check_content
from bach.core.inputs import Limit, open_input

MUST = "be a model that can be loaded"
REMEDY = (
    "A model that cannot be loaded is damaged, or was written by another version of Keras or "
    "other scripts; train it again."
)

_WEIGHTS = "model.weights.h5"

# What Keras writes, for models without vocabularies and the like, and what ours have seen.
_ENTRIES = ("metadata.json", "config.json", _WEIGHTS, "seen.json")


def check_model(path: str | os.PathLike) -> None:
    """Refuse a `.keras` file that is damaged or unpacks to more than a model can need.

    Raises:
        InputError: If so.
    """
    with open_input(path, MUST, REMEDY, Limit.MODEL) as stream:
        check_archive(stream, _ENTRIES)
        with zipfile.ZipFile(stream) as archive:
            content = archive.read(_WEIGHTS)  # whole, or its checksum differs
        _check_sizes(io.BytesIO(content), len(content))


def check_weights(path: str | os.PathLike) -> None:
    """Refuse a file of weights that is damaged or claims to hold more than it does.

    Raises:
        InputError: If so.
    """
    remedy = "Name a model of these scripts (.keras), or weights that Keras has saved (.h5)."
    with open_input(path, "be a file of weights", remedy, Limit.MODEL) as stream:
        if not str(path).endswith(".h5"):
            raise ValueError("another ending")
        _check_sizes(stream, os.path.getsize(path))


def _check_sizes(stream: IO[bytes], size: int) -> None:
    """Refuse an HDF5 file whose arrays are said to be larger than it can be.

    Raises:
        ValueError: If so; or whatever h5py makes of damage.
    """
    claimed = 0

    def add(_: str, item: object) -> None:
        nonlocal claimed
        if isinstance(item, h5py.Dataset):
            claimed += math.prod(item.shape or ()) * item.dtype.itemsize

    with h5py.File(stream, "r") as file:
        file.visititems(add)
    check_content(claimed, size)
