"""Files of models and weights, looked at before Keras reads them.

Whoever has made a file decides what it claims: how much it unpacks to, which code it asks
for. Keras has limits of its own, of gigabytes.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator
from typing import IO

import h5py

from bach.core.archives import check_archive, check_content
from bach.core.inputs import Limit, open_input
from bach.network import foundation

MUST = "be a model that can be loaded"
REMEDY = (
    "A model that cannot be loaded is damaged, or was written by another version of Keras or "
    "other scripts; train it again."
)

_WEIGHTS = "model.weights.h5"

# What Keras writes, for models without vocabularies and the like, and what ours have seen.
_ENTRIES = ("metadata.json", "config.json", _WEIGHTS, "seen.json", "task.json")

# Where a model's config says what package a class is of, and what Keras imports for it.
_PLACES = {"module": ".", "registered_name": ">"}
_HUBS = ("keras_hub", "keras_nlp", "keras_cv")


def check_model(path: str | os.PathLike) -> None:
    """Refuse a `.keras` file that is damaged or unpacks to more than a model can need.

    One on a foundation model has layers of KerasHub, which is loaded for it.

    Raises:
        InputError: If so, or if it needs KerasHub and that is not installed.
    """
    with open_input(path, MUST, REMEDY, Limit.MODEL) as stream:
        check_archive(stream, _ENTRIES)
        with zipfile.ZipFile(stream) as archive:
            _check_classes(json.loads(archive.read("config.json")), path)
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


def _check_classes(config: object, path: str | os.PathLike) -> None:
    """Load KerasHub for a model that has layers of it, if they are such as ours have.

    Keras would make of a file whatever KerasHub has: tokenizers that read files, for one.

    Raises:
        InputError: If KerasHub is not installed.
        ValueError: If the model has other layers of it.
    """
    found = set(_classes_of_hub(config))
    if others := sorted(found - set(foundation.CLASSES)):
        raise ValueError(f"a model with {others[0]!r:.80} of KerasHub")
    if found:
        foundation.require_hub(f"{os.fspath(path)}, a model on a foundation model")


def _classes_of_hub(part: object) -> Iterator[str]:
    """Names of all classes of KerasHub that a model's config asks for."""
    if isinstance(part, dict):
        places = (str(part.get(key, "")).split(mark)[0] for key, mark in _PLACES.items())
        if any(place in _HUBS for place in places):
            yield str(part.get("class_name"))
    if isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _classes_of_hub(value)


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
