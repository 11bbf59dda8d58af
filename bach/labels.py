"""The class of images and of pixels in files, ours or of anyone else: tables, class maps."""

import math
import os
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.log import log
from bach.core.pictures import read_indexed, write_indexed
from bach.core.tables import as_probs, image_key, read_table, require_once, with_header
from bach.core.text import listed
from bach.scores import as_labels
from bach.tasks import task

_ID_COLUMNS = ["image_id", "image", "id", "case", "file", "filename", "file_name", "name", "slide"]
_TRUTH_COLUMNS = ("label", "truth", "class")
# Of tables of ours, which may have two columns and no class in them.
_NO_CLASSES = ("fold", "patient", "part", "path", "width", "height", "mpp", "x", "y", "size")
_PREDICTED_COLUMNS = ("predicted", "prediction", "label", "class")


def read_labels(path: str | os.PathLike, kind: str) -> pd.DataFrame:
    """Read the class of every image from a table of ours or of anyone else.

    With or without a header; comma, semicolon or tab; classes as names in any
    spelling or as numbers 0..n-1. A header with `case` (or `P(...)` columns) and
    `class` is the dialect of the later challenge script, with classes 1..4.

    Predictions are taken from the `prob_*` columns (largest), else from
    `predicted`, `prediction`, `label`, `class` or the second of two columns; the
    truth from `label`, `truth`, `class` or the second of two. In the challenge's
    dialect `class` is the answer. The log says what was read, and warns if a
    table's probabilities and classes disagree.

    Args:
        path: CSV file, one row per image.
        kind: "predictions" or "truth".

    Returns:
        Table of `key` (see `image_key`), `image_id` (as written), `label` (int 0..n-1)
        and `patient` (as written; empty without such a column), in the order of the file.

    Raises:
        InputError: If the file is missing, empty or ragged, a class cannot be
            read, or an image comes twice; all offending images are named.
    """
    table = _read_named(path)
    names = list(table.columns)
    id_column = next((name for name in _ID_COLUMNS if name in names), names[0])
    ids = table[id_column]
    column, labels = _find_labels(path, table, id_column, kind)
    bad = [
        f"{image}: {value!r}"
        for image, value, label in zip(ids, table[column], labels, strict=True)
        if label is None
    ]
    if bad:
        raise InputError(
            f"Every row of {path} must name a class: {task().choices} "
            f"(1..{task().count} under a header `case,class`).\n"
            f"Received in column '{column}' ({len(bad)} rows): {listed(bad)}.\n"
            "Mend these rows; a table without header has the image first, then the class."
        )
    require_once(ids, path)
    patients = table["patient"] if "patient" in names else pd.Series("", table.index)
    return pd.DataFrame(
        {"key": ids.map(image_key), "image_id": ids, "label": labels, "patient": patients}
    ).astype({"label": int})


def _read_named(path: str | os.PathLike) -> pd.DataFrame:
    """The table with columns named as in its header, in lower case, or "column 1" ..."""
    table = read_table(path, header=False)
    if len(table.columns) < 2:
        raise InputError(
            f"{path} must have an image and a class in every row.\n"
            f"Received: {'one column' if len(table) else 'an empty file'}.\n"
            f"Write it as CSV, for example `test0.tif,{task().classes[1]}`."
        )
    first = [str(cell).lower() for cell in table.iloc[0]]
    if first[0] not in _ID_COLUMNS and read_class(first[1]) is not None:
        # A spreadsheet's trailing separators are no columns.
        table = table.loc[:, [column < 2 or (table[column] != "").any() for column in table]]
        if len(table.columns) > 2:
            raise InputError(
                f"{path} without a header must have two columns, the image and its class.\n"
                f"Received: {len(table.columns)} columns, first {','.join(first)}.\n"
                "Which of them is the class, only a header can tell: for example "
                f"image_id,label, or image_id,{','.join(task().columns)} for one number per class."
            )
        return table.set_axis([f"column {number + 1}" for number in table.columns], axis=1)
    known = {*_ID_COLUMNS, *_TRUTH_COLUMNS, *_PREDICTED_COLUMNS}
    if not known & set(first) and _prob_columns(first) is None:
        # A first row with a misspelt class must not pass for a header.
        raise InputError(
            f"The first row of {path} must be a header or an image and its class.\n"
            f"Received: {','.join(first)}.\n"
            "Name the columns image_id and label or predicted, or mend the class: "
            f"{task().choices}."
        )
    if len(table) == 1:
        raise InputError(
            f"{path} must hold a row per image.\nReceived: only '{','.join(first)}'.\n"
            f"Check the file, and that its classes are {task().choices}."
        )
    return with_header(table.iloc[1:].reset_index(drop=True), first, path)


def _find_labels(
    path: str | os.PathLike, table: pd.DataFrame, id_column: str, kind: str
) -> tuple[str, Sequence[int | None]]:
    """The column that holds the classes and what it says, None where unreadable."""
    names = list(table.columns)
    wanted = _TRUTH_COLUMNS if kind == "truth" else _PREDICTED_COLUMNS
    column = next((name for name in wanted if name in names), None)
    probs = _prob_columns(names) if kind == "predictions" else None
    challenge = "class" in names and ("case" in names or any(map(_is_challenge_prob, names)))
    labels: Sequence[int | None]
    if probs is not None and not challenge:
        labels = _largest(path, table[probs])
        source, column = "the largest prob_* column", probs[0]
    else:
        if column is None:
            column = _second_column(path, names, id_column, kind)
        first = 1 if challenge and column == "class" else 0
        labels = [read_class(text, first) for text in table[column]]
        source = f"column '{column}'" + (" (numbers are 1..4)" if first else "")
    log.info("%s: %d images from %s, %s", kind, len(table), path, source)
    if probs is not None:
        # Two answers in one row: one is taken, and the other is not hidden.
        other: Sequence[int | None]
        if challenge:
            other, against = _largest(path, table[probs]), "the largest P(...)"
        elif "predicted" in names:
            other = [read_class(text) for text in table["predicted"]]
            against = "column 'predicted'"
        else:
            return column, labels
        differ = sum(a != b for a, b in zip(other, labels, strict=True))
        if differ:
            log.warning("%s: %s differs from %s in %d rows", path, source, against, differ)
    return column, labels


def _second_column(path: str | os.PathLike, names: list[str], id_column: str, kind: str) -> str:
    column = names[1] if id_column == names[0] else names[0]
    unnamed = names[0] == "column 1"
    others = ("predicted", "prediction") if kind == "truth" else ("truth",)
    if not unnamed and (len(names) > 2 or column in (*others, *_NO_CLASSES)):
        what, wanted = (
            ("true", "label") if kind == "truth" else ("predicted", "predicted, or all prob_")
        )
        raise InputError(
            f"{path} must have a column of {what} classes.\n"
            f"Received the columns: {listed(names)}.\nName the right one {wanted}."
        )
    return column


def _is_challenge_prob(name: str) -> bool:
    return name.startswith("p(")


def _prob_columns(names: list[str]) -> list[str] | None:
    """Columns of the probabilities in class order: prob_normal or P(Normal) ..."""
    found = {}
    for name in names:
        match = re.fullmatch(r"prob_(\w+)|p\((.+)\)", name)
        label = task().parse_label(match[1] or match[2]) if match else None
        if label is not None:
            found[label] = name
    return [found[label] for label in sorted(found)] if len(found) == task().count else None


def _largest(path: str | os.PathLike, cells: pd.DataFrame) -> list[int]:
    probs = as_probs(cells, list(cells), path).to_numpy()
    tied = int(((probs == probs.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    if tied:
        log.warning(
            "%s: two probabilities are the largest in %d rows; the first is taken", path, tied
        )
    return probs.argmax(axis=1).tolist()


def read_class(text: str, first: int = 0) -> int | None:
    """A class name, or a number counted from `first`; None if it is neither."""
    label = task().parse_label(text)
    number = re.fullmatch(r"0*(\d{1,2})(\.0*)?", text) if label is None else None
    if number is not None:
        label = int(number[1]) - first
    return label if label is not None and 0 <= label < task().count else None


# Class maps


def same_proportions(size: Sequence[float], whole: Sequence[float], slack: float = 0.0) -> bool:
    """Whether a map can show the whole of a picture, its sides known to within a pixel.

    Sizes are rounded when maps are made, up or down, so proportions are never exact.

    Args:
        size: Sides of the map in px, (width, height) or (height, width).
        whole: Sides of the picture in the same order, in px of its own.
        slack: Pixels that each side of the picture itself may be off by.
    """
    low, high = 0.0, math.inf
    for side, full in zip(size, whole, strict=True):
        low = max(low, max(full - slack, 0.5) / (side + 1))
        high = min(high, (full + slack) / (side - 1) if side > 1 else math.inf)
    return low <= high


def write_class_map(path: str | os.PathLike, class_map: np.ndarray) -> None:
    """Write a class map as palette PNG: pixels are 0..n-1, viewers show colours.

    Args:
        path: File to write, ending in `.png`; written whole or not at all.
        class_map: uint8 0..n-1, (height, width).

    Raises:
        ValueError: If the map is not two-dimensional or not of integers 0..n-1.
    """
    class_map = as_labels(np.asarray(class_map), "class_map")
    if class_map.ndim != 2:
        raise ValueError(f"A class map must be (height, width). Received: shape {class_map.shape}.")
    write_indexed(path, class_map, task().colors)


def read_class_map(path: str | os.PathLike) -> np.ndarray:
    """Read a class map from a palette or gray PNG.

    Args:
        path: PNG whose palette indices or gray values are the classes 0..n-1.

    Returns:
        uint8 0..n-1, (height, width).

    Raises:
        InputError: If the file cannot be read, is in colour, or holds other
            values.
    """
    image = read_indexed(
        path,
        "Write a palette or gray PNG of class numbers, not colours; annotations become maps with "
        "`bach.annotations.label_mask`.",
    )
    if image.dtype == bool:
        raise InputError(
            f"{path} must be a map of classes {task().numbers}.\nReceived: a mask of 1 bit.\n"
            f"Write the class in its place: {task().numbered}."
        )
    found = np.unique(image)
    if found.size and (found[0] < 0 or found[-1] >= task().count):
        raise InputError(
            f"Pixels of {path} must be classes {task().numbers} (palette index or gray value).\n"
            f"Received the values: {listed(found)}.\n"
            f"Map them to {task().numbered} first."
        )
    return image.astype(np.uint8)
