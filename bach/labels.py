"""The class of images and of pixels in files, ours or of anyone else: tables, class maps."""

import csv
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES, COLORS, parse_label
from bach.core.errors import InputError
from bach.core.log import log
from bach.core.pictures import read_indexed, write_indexed
from bach.core.tables import image_key
from bach.core.text import listed
from bach.scores import as_labels

_ID_COLUMNS = (
    "image_id", "image", "id", "case", "file", "filename", "file_name", "name", "slide",
)  # fmt: skip
_TRUTH_COLUMNS = ("label", "truth", "class")
_PREDICTED_COLUMNS = ("predicted", "prediction", "label", "class")


def read_labels(path: str | os.PathLike, kind: str) -> pd.DataFrame:
    """Read the class of every image from a table of ours or of anyone else.

    With or without a header; comma, semicolon or tab; classes as names in any
    spelling or as numbers 0..3. A header with `case` (or `P(...)` columns) and
    `class` is the dialect of the later challenge script, with classes 1..4.

    Predictions are taken from the `prob_*` columns (largest), else from
    `predicted`, `prediction`, `label`, `class` or the second of two columns; the
    truth from `label`, `truth`, `class` or the second of two. In the challenge's
    dialect `class` is the answer. The log says what was read, and warns if a
    table's probabilities and classes disagree.

    Args:
        path: CSV file, a row an image.
        kind: "predictions" or "truth".

    Returns:
        Table of `key` (see `image_key`), `image_id` (as written) and `label`
        (int 0..3), in the order of the file.

    Raises:
        InputError: If the file is missing, empty or ragged, a class cannot be
            read, or an image comes twice; all offending images are named.
    """
    path = Path(path)
    header, rows = _read_rows(path)
    names = header or [f"column {number}" for number in range(1, len(rows[0]) + 1)]
    table = pd.DataFrame(rows, columns=range(len(names)), dtype=str)
    id_column = next((names.index(name) for name in _ID_COLUMNS if name in names), 0)
    ids = table[id_column]
    column, labels = _find_labels(path, names, table, id_column, kind)
    bad = [
        f"{image}: {value!r}"
        for image, value, label in zip(ids, table[column], labels, strict=True)
        if label is None
    ]
    if bad:
        raise InputError(
            f"Every row of {path} must name a class: Normal, Benign, InSitu, Invasive or 0..3 "
            f"(1..4 under a header `case,class`).\n"
            f"Received in column '{names[column]}' ({len(bad)} rows): {listed(bad)}.\n"
            "Mend these rows; a table without header has the image first, then the class."
        )
    found = pd.DataFrame(
        {"key": [image_key(text) for text in ids], "image_id": ids, "label": labels}
    ).astype({"label": int})
    double = found.loc[found["key"].duplicated(), "key"].unique().tolist()
    if double:
        raise InputError(
            f"Every image must stand in {path} once (file endings and case do not matter).\n"
            f"Received more than once ({len(double)}): {listed(double)}.\n"
            "Keep one row an image; patch predictions must be averaged over each image first."
        )
    return found


def _read_rows(path: Path) -> tuple[list[str] | None, list[list[str]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} must be a readable CSV file.\nReceived: {error}.\nCheck the path."
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} must hold a row an image.\nReceived: an empty file.")
    separator = max(",;\t", key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    width = len(rows[0])
    ragged = [str(number) for number, row in enumerate(rows, 1) if len(row) != width]
    if width < 2 or ragged:
        where = f"rows {listed(ragged)} differ" if ragged else "one column"
        raise InputError(
            f"{path} must have an image and a class in every row, and as many cells in all.\n"
            f"Received: {width} cells in the first row, {where}.\n"
            "Write it as CSV, for example `test0.tif,Benign`."
        )
    header = None
    if rows[0][0].lower() in _ID_COLUMNS or _read_class(rows[0][1], first=0) is None:
        header = [cell.lower() for cell in rows.pop(0)]
        known = {*_ID_COLUMNS, *_TRUTH_COLUMNS, *_PREDICTED_COLUMNS}
        if not known & set(header) and _prob_columns(header) is None:
            # A first row with a misspelt class must not pass for a header.
            raise InputError(
                f"The first row of {path} must be a header or an image and its class.\n"
                f"Received: {separator.join(header)}.\n"
                "Name the columns image_id and label or predicted, or mend the class: "
                "Normal, Benign, InSitu, Invasive or 0..3."
            )
    if not rows:
        raise InputError(
            f"{path} must hold a row an image.\n"
            f"Received: only {separator.join(header or [])!r}.\n"
            "Check the file, and that its classes are Normal, Benign, InSitu, Invasive or 0..3."
        )
    return header, rows


def _find_labels(
    path: Path, names: list[str], table: pd.DataFrame, id_column: int, kind: str
) -> tuple[int, list[int | None]]:
    """The column that holds the classes and what it says, None where unreadable."""
    wanted = _TRUTH_COLUMNS if kind == "truth" else _PREDICTED_COLUMNS
    column = next((names.index(name) for name in wanted if name in names), None)
    probs = _prob_columns(names) if kind == "predictions" else None
    challenge = "class" in names and ("case" in names or any(map(_is_challenge_prob, names)))
    if probs is not None and not challenge:
        labels = _largest(path, names, table[probs])
        source, column = "the largest prob_* column", probs[0]
    else:
        if column is None:
            column = _second_column(path, names, id_column, kind)
        first = 1 if challenge and names[column] == "class" else 0
        labels = [_read_class(text, first) for text in table[column]]
        source = f"column '{names[column]}'" + (" (numbers are 1..4)" if first else "")
    log.info("%s: %d images from %s, %s", kind, len(table), path, source)
    if probs is not None:
        # Two answers in one row: one is taken, and the other is not hidden.
        if challenge:
            other, against = _largest(path, names, table[probs]), "the largest P(...)"
        elif "predicted" in names:
            cells = table[names.index("predicted")]
            other, against = [_read_class(text, first=0) for text in cells], "column 'predicted'"
        else:
            return column, labels
        differ = sum(a != b for a, b in zip(other, labels, strict=True))
        if differ:
            log.warning("%s: %s differs from %s in %d rows", path, source, against, differ)
    return column, labels


def _second_column(path: Path, names: list[str], id_column: int, kind: str) -> int:
    column = 1 if id_column == 0 else 0
    unnamed = names[0] == "column 1"
    answers = ("predicted", "prediction")
    if not unnamed and (len(names) > 2 or (kind == "truth" and names[column] in answers)):
        wanted = "label" if kind == "truth" else "predicted, prob_normal ... or label"
        raise InputError(
            f"{path} must have a column of {'true' if kind == 'truth' else 'predicted'} classes.\n"
            f"Received the columns: {listed(names)}.\nName the right one {wanted}."
        )
    return column


def _is_challenge_prob(name: str) -> bool:
    return name.startswith("p(")


def _prob_columns(names: list[str]) -> list[int] | None:
    """Columns of the four probabilities in class order: prob_normal or P(Normal) ..."""
    found = {}
    for number, name in enumerate(names):
        match = re.fullmatch(r"prob_(\w+)|p\((.+)\)", name)
        label = parse_label(match[1] or match[2]) if match else None
        if label is not None:
            found[label] = number
    return [found[label] for label in range(len(CLASSES))] if len(found) == 4 else None


def _largest(path: Path, names: list[str], cells: pd.DataFrame) -> list[int]:
    values = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(
            f"The columns {', '.join(names[column] for column in cells)} of {path} must be "
            f"numbers.\n"
            f"Received something else in table rows {listed([str(row + 1) for row in bad])}.\n"
            "Mend these rows, or take the columns out to use the column 'predicted'."
        )
    return values.argmax(axis=1).tolist()


def _read_class(text: str, first: int) -> int | None:
    """A class name, or a number counted from `first`; None if it is neither."""
    label = parse_label(text)
    if label is None and re.fullmatch(r"\d+(\.0*)?", text):
        label = int(float(text)) - first
    return label if label is not None and 0 <= label < len(CLASSES) else None


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
    """Write a class map as palette PNG: pixels are 0..3, viewers show colours.

    Args:
        path: File to write, ending in `.png`; written whole or not at all.
        class_map: uint8 0..3, (height, width).

    Raises:
        ValueError: If the map is not two-dimensional or not of integers 0..3.
    """
    class_map = as_labels(np.asarray(class_map), "class_map")
    if class_map.ndim != 2:
        raise ValueError(f"A class map must be (height, width). Received: shape {class_map.shape}.")
    write_indexed(path, class_map, COLORS)


def read_class_map(path: str | os.PathLike) -> np.ndarray:
    """Read a class map from a palette or gray PNG.

    Args:
        path: PNG whose palette indices or gray values are the classes 0..3.

    Returns:
        uint8 0..3, (height, width).

    Raises:
        InputError: If the file cannot be read, is in colour, or holds other
            values.
    """
    image = read_indexed(
        path,
        "Write a palette or gray PNG of class numbers, not colours; annotations become maps with "
        "`bach.annotations.label_mask`.",
    )
    found = np.unique(image)
    if found.size and (found[0] < 0 or found[-1] >= len(CLASSES)):
        shown = listed([str(value) for value in found])
        raise InputError(
            f"The pixels of {path} must be classes 0..3 (palette index or gray value).\n"
            f"Received the values: {shown}.\n"
            "Map them to 0 Normal, 1 Benign, 2 InSitu, 3 Invasive first."
        )
    return image.astype(np.uint8)
