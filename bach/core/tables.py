"""Tables in CSV files: the one reader, the one writer, and the keys that join them."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import atomic_path
from bach.core.text import listed

# Endings that file names carry in published tables; anything else after a dot
# may be part of the name.
_PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy")
_SLIDES = (".xml", ".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif")
_ENDINGS = frozenset((*_PICTURES, *_SLIDES))


# What tables write where a patient is not known, letters, digits and question marks of it.
_MISSING = frozenset(
    ("", "na", "nan", "none", "null", "unknown", "unk", "missing", "notavailable", "nopatient")
) | frozenset("?" * count for count in range(1, 4))


# Keys


def image_key(text: object) -> str:
    """Reduce the id of an image or slide to what tables of different origin have in common.

    Wherever two names are compared, it is by this key: without folder, ending and case, and
    with accents composed, as macOS does not write them in file names.

    Example:
        >>> image_key("Photos/Test0.TIF")
        'test0'
    """
    name = unicodedata.normalize("NFC", str(text)).strip()
    name = re.split(r"[/\\]", name)[-1].casefold()
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot + ending in _ENDINGS else name


def patient_key(text: object) -> str:
    """Reduce the name of a patient to its key; empty where the patient is unknown.

    Wherever two patients are compared, it is by this key. Case, blanks, leading zeros and the
    ".0" that a table gets where a number is missing do not make another patient: to take two
    people for one costs a few images, to take one for two is a leak.

    Example:
        >>> patient_key(" p07 "), patient_key("P 7"), patient_key("12.0"), patient_key("n/a")
        ('p7', 'p7', '12', '')
    """
    if text is None or text != text:
        return ""
    key = unicodedata.normalize("NFKC", str(text)).casefold()
    if re.sub(r"[^\w?]", "", key) in _MISSING:
        return ""
    key = re.sub(r"^(\d+)\.0+$", r"\1", key.strip())
    # Digits that only a sign keeps apart stay apart: 14-25197 is not 1425-197.
    key = re.sub(r"[\s_\-]+(?=\D|$)|(?<=\D)[\s_\-]+", "", key)
    return re.sub(r"(?<!\d)0+(?=\d)", "", key)


def patient_name(text: object) -> str:
    """The name of a patient as it is written; empty where the patient is unknown."""
    return str(text).strip() if patient_key(text) else ""


# Files


def read_table(
    path: str | os.PathLike,
    needed: Collection[str] = (),
    key: str | None = None,
    header: bool = True,
    errors: str = "strict",
) -> pd.DataFrame:
    """Read a CSV file, ours or of anyone else, as text.

    Comma, semicolon or tab; cells are stripped; empty lines are left out.

    Args:
        path: CSV file.
        needed: Columns that must be there.
        key: Column of images, each of which may stand in the table once (by `image_key`).
        header: Whether the first line names the columns; else they are numbered from 0.
        errors: What becomes of bytes that are not UTF-8, see `bytes.decode`.

    Returns:
        Table of str, in the order of the file; an empty cell is the empty string.

    Raises:
        InputError: If the file is missing or ragged, or a column is missing, or an image
            comes twice; all offending rows are named.
    """
    lines = [line for line in _read_text(path, errors).splitlines() if line.strip()]
    separator = max(",;\t", key=lines[0].count) if lines else ","
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise InputError(
            f"{path} must be a readable CSV file.\nReceived: {error}.\nWrite it again."
        ) from error
    width = len(rows[0]) if rows else 0
    ragged = [number for number, row in enumerate(rows, 1) if len(row) != width]
    if ragged:
        raise InputError(
            f"{path} must have as many cells in every row.\n"
            f"Received: {width} in the first row, another number in rows {listed(ragged)}.\n"
            "Mend these rows; a cell that holds the separator must be quoted."
        )
    names: Sequence = rows.pop(0) if header and rows else range(width)
    table = pd.DataFrame(rows, columns=list(names), dtype=str)
    require_columns(table, needed, path)
    if key is not None:
        require_once(table[key], path)
    return table


def require_columns(table: pd.DataFrame, needed: Collection[str], path: object) -> None:
    """Refuse a table without the columns that are needed.

    Raises:
        InputError: If one is missing.
    """
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise InputError(
            f"{path} must have the columns {', '.join(needed)}.\n"
            f"Received: {', '.join(map(str, table.columns)) or 'an empty file'}.\n"
            f"Add a header line with {', '.join(missing)}, or name another table."
        )


def require_once(ids: pd.Series, path: object) -> None:
    """Refuse a table that names an image twice.

    Raises:
        InputError: If it does; the images are named.
    """
    keys = ids.map(image_key)
    if keys.duplicated().any():
        raise InputError(
            f"Every image must stand in {path} once (file endings and case do not matter).\n"
            f"Received more than once: {listed(keys[keys.duplicated()].unique())}.\n"
            "Keep one row per image."
        )


def as_numbers(table: pd.DataFrame, names: Sequence[str], path: object) -> pd.DataFrame:
    """The columns `names` of a table of text as float64.

    Raises:
        InputError: If a cell is no finite number; the rows are named.
    """
    numbers = table[list(names)].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise InputError(
            f"The columns {', '.join(names)} of {path} must be numbers.\n"
            f"Received something else in table rows {listed(bad + 1)}.\nCorrect these rows."
        )
    return numbers


def write_csv(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a pandas table without its index, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_text(path: str | os.PathLike, errors: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} must be a readable CSV file.\nReceived: {error}.\nCheck the path."
        ) from error
