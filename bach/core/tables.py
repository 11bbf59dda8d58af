"""Tables in CSV files: the one reader, the one writer, and the keys that join them."""

import codecs
import collections
import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import atomic_path
from bach.core.inputs import Limit, read_input, understood
from bach.core.log import log
from bach.core.text import listed

# Endings that file names carry in published tables; anything else after a dot
# may be part of the name.
_PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy")
_SLIDES = (".xml", ".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm")
_ENDINGS = frozenset((*_PICTURES, *_SLIDES, ".ome"))


# Wider than the rounding of four numbers to three decimals, 4 x 0.0005.
SUM_TOLERANCE = 0.0025

_MUST = "be a readable CSV file"
# Where a small file of separators would fill the memory.
_MOST_CELLS = 20_000_000
_MOST_COLUMNS = 10_000

# How a column of patients may be called, letters and digits of it.
_PATIENT = ("patient", "patients", "patientid", "patientname", "patientnumber", "patientno")

# What tables write where a patient is not known, letters and digits of it: words, and what
# spreadsheets and statistics make of a missing number.
_MISSING = frozenset(
    ("", "na", "nan", "none", "null", "unknown", "unk", "missing", "notavailable", "nopatient")
) | frozenset(
    (
        *("notknown", "notapplicable", "noid", "unspecified", "undefined", "anonymous", "tbd"),
        *("unbekannt", "inconnu", "desconocido", "sconosciuto", "onbekend"),
        *("value", "ref", "1qnan", "1ind"),
    )
)


# Keys


def image_key(text: object) -> str:
    """Reduce the id of an image or slide to what tables of different origin have in common.

    Wherever two names are compared, it is by this key: without folder, ending and case, and
    with accents composed, as macOS does not write them in file names.

    Example:
        >>> image_key("Photos/Test0.TIF")
        'test0'
    """
    name = _visible(unicodedata.normalize("NFC", str(text))).strip()
    name = re.split(r"[/\\]", name)[-1].strip().casefold()
    while True:  # slide.ome.tif is slide.tif to whoever takes its ending away
        stem, dot, ending = name.rpartition(".")
        if not stem or dot + ending not in _ENDINGS:
            return name
        name = stem.rstrip()


def patient_key(text: object) -> str:
    """Reduce the name of a patient to its key; empty where the patient is unknown.

    Wherever two patients are compared, it is by this key. Case, blanks, signs, leading zeros
    and the ".0" that a table gets where a number is missing do not make another patient: to
    take two people for one costs a few images, to take one for two is a leak.

    Example:
        >>> patient_key(" p07 "), patient_key("P 7"), patient_key("12.0"), patient_key("n/a")
        ('p7', 'p7', '12', '')
    """
    if text is None or text != text:
        return ""
    key = _visible(unicodedata.normalize("NFKC", str(text))).casefold().strip()
    if re.sub(r"[\W_]", "", key) in _MISSING or key == "-1":
        return ""
    number = re.fullmatch(r"[+']?(\d+)[.,]?0*|(\d+(?:\.\d+)?e\+?\d\d?)", key)
    if number is not None:  # as text, as a number, and as a spreadsheet shows a large one
        return str(int(number[1]) if number[1] else round(float(number[2])))
    # Digits that only a sign keeps apart stay apart, whatever the sign: 14-25197 is not 1425197.
    parts = re.findall(r"\d+|[^\W\d_]+", key)
    joined = "".join(
        ("-" if place and part[0].isdigit() and parts[place - 1][0].isdigit() else "")
        + (part.lstrip("0") or "0")
        for place, part in enumerate(parts)
    )
    return joined or key


def _visible(text: str) -> str:
    """Text without characters that nobody sees: marks of byte order, of width, of direction."""
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


def patient_name(text: object) -> str:
    """The name of a patient as it is written; empty where the patient is unknown."""
    return str(text).strip() if patient_key(text) else ""


def name_fault(name: str) -> str:
    """What keeps a name of a file from standing in tables: a phrase, or "" if nothing does."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "bytes that are no UTF-8"
    if name != name.strip():
        return "a blank at its begin or end, which tables lose"
    if any(unicodedata.category(sign) == "Cc" for sign in name):
        return "a line break or another control character"
    return "a backslash, which in tables parts folders" if "\\" in name else ""


def require_names(names: Iterable[str]) -> None:
    """Refuse, before slow work, names of images that could not be read back from a table.

    Raises:
        InputError: If there are such; they are named.
    """
    faults = {name: name_fault(name) for name in names}
    bad = [f"{name!r} ({fault})" for name, fault in faults.items() if fault]
    if bad:
        raise InputError(
            "Names of photos and slides must be text that tables can hold.\n"
            f"Received: {listed(bad)}.\nRename the files, and their annotations."
        )


# Files


def read_table(
    path: str | os.PathLike,
    needed: Collection[str] = (),
    key: str | None = None,
    header: bool = True,
    errors: str = "strict",
) -> pd.DataFrame:
    """Read a CSV file, ours or of anyone else, as text.

    Comma, semicolon or tab; cells are stripped; empty lines are left out. UTF-8, or UTF-16
    with the mark that spreadsheets begin it with.

    Args:
        path: CSV file.
        needed: Columns that must be there.
        key: Column of images, each of which may stand in the table once (by `image_key`).
        header: Whether the first line names the columns; else they are numbered from 0.
        errors: What becomes of bytes that are not UTF-8, see `bytes.decode`.

    Returns:
        Table of str, in the order of the file; an empty cell is the empty string.

    Raises:
        InputError: If the file is missing, no text, too large or ragged, or a column is
            missing or comes twice, or an image comes twice; all offending rows are named.
    """
    rows = _parse(path, _read_text(path, errors))
    width = len(rows[0]) if rows else 0
    ragged = [number for number, row in enumerate(rows, 1) if len(row) != width]
    if ragged:
        raise InputError(
            f"{path} must have as many cells in every row.\n"
            f"Received: {width} in the first row, another number in rows {listed(ragged)}.\n"
            "Mend these rows; a cell that holds the separator must be quoted."
        )
    names: Sequence = rows.pop(0) if header and rows else range(width)
    table = with_header(pd.DataFrame(rows, columns=range(width), dtype=str), names, path)
    require_columns(table, needed, path)
    if key is not None:
        require_once(table[key], path)
    return table


def with_header(table: pd.DataFrame, names: Sequence, path: object) -> pd.DataFrame:
    """Name the columns of a table; of those without a name, as spreadsheets write, one is kept.

    Raises:
        InputError: If a name comes twice.
    """
    counts = collections.Counter(names)
    double = sorted(name for name, count in counts.items() if name != "" and count > 1)
    if double:
        raise InputError(
            f"Every column of {path} must have a name of its own.\n"
            f"Received more than once: {listed(double)}.\nRename or remove one of them."
        )
    table = table.set_axis(list(names), axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def name_patients(table: pd.DataFrame, path: object) -> pd.DataFrame:
    """A table whose column of patients is called `patient`, however its header writes that."""
    if "patient" in table.columns:
        return table
    letters = {
        name: "".join(sign for sign in str(name).casefold() if sign.isalnum())
        for name in table.columns
    }
    alike = [name for name, plain in letters.items() if plain in _PATIENT]
    if len(alike) != 1:
        return table
    log.warning("%s: its column %r is taken for that of patients", path, alike[0])
    return table.rename(columns={alike[0]: "patient"})


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
    """Refuse a table that names an image twice, or not at all.

    Raises:
        InputError: If it does; the images are named.
    """
    keys = ids.map(image_key)
    if (keys == "").any():
        rows = np.flatnonzero(keys == "") + 1
        raise InputError(
            f"Every row of {path} must name its image.\n"
            f"Received: no name in table rows {listed(rows)}.\nMend these rows."
        )
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
            f"The columns {', '.join(map(str, names))} of {path} must be numbers.\n"
            f"Received something else in table rows {listed(bad + 1)}.\nCorrect these rows."
        )
    return numbers


def as_whole(
    table: pd.DataFrame, names: Sequence[str], path: object, at_least: int = -(2**53)
) -> pd.DataFrame:
    """The columns `names` of a table of text as int64; "3.0" is 3.

    Raises:
        InputError: If a cell is no whole number, or less than `at_least`; the rows are named.
    """
    numbers = as_numbers(table, names, path)
    bad = ((numbers % 1 != 0) | (numbers < at_least) | (numbers > 2**53)).any(axis=1)
    if bad.any():
        least = f", {at_least} or more" if at_least > -(2**53) else ""
        raise InputError(
            f"The columns {', '.join(names)} of {path} must be whole numbers{least}.\n"
            f"Received something else in table rows {listed(np.flatnonzero(bad) + 1)}.\n"
            "Correct these rows."
        )
    return numbers.astype(np.int64)


def as_probs(table: pd.DataFrame, names: Sequence[str], path: object) -> pd.DataFrame:
    """The columns `names` of a table of text as probabilities of classes, float64.

    Raises:
        InputError: If one is not in 0..1, or a row does not sum to 1 as closely as rounding
            allows; the rows are named.
    """
    numbers = as_numbers(table, names, path)
    bad = ((numbers < 0) | (numbers > 1)).any(axis=1)
    bad |= (numbers.sum(axis=1) - 1).abs() > SUM_TOLERANCE
    if bad.any():
        raise InputError(
            f"The columns {', '.join(names)} of {path} must be probabilities, which sum to 1.\n"
            f"Received something else in table rows {listed(np.flatnonzero(bad) + 1)}.\n"
            "Correct these rows, or write the table again."
        )
    return numbers


def write_csv(table: pd.DataFrame, path: str | os.PathLike, header: bool = True) -> None:
    """Write a pandas table without its index, whole or not at all.

    Args:
        table: The table.
        path: File to write.
        header: Whether the first line names the columns.

    Raises:
        InputError: If it cannot be written, or holds a file name that is no text.
    """
    try:
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False, header=header)
    except UnicodeEncodeError as error:
        raise InputError(
            f"Names must be text that UTF-8 can write, for {path}.\nReceived: {error}.\n"
            "Rename the files whose names hold other bytes."
        ) from error


def _read_text(path: str | os.PathLike, errors: str) -> str:
    content = read_input(path, _MUST, "Check the path.", Limit.TABLE)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, remedy = "utf-16", "Save it as CSV UTF-8."
    else:
        encoding, remedy = "utf-8-sig", 'Save it as UTF-8 ("CSV UTF-8" in a spreadsheet program).'
    with understood(path, _MUST, remedy):
        text = content.decode(encoding, errors)
        if "\0" in text:
            raise ValueError("bytes that are no text (NUL)")
        return text


def _parse(path: str | os.PathLike, text: str) -> list[list[str]]:
    """The cells of every line that is not empty."""
    rows: list[list[str]] = []
    cells = line = 0
    try:
        first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
        separator = max(",;\t", key=lambda sign: len(next(csv.reader([first], delimiter=sign))))
        # Strict: a quote that is never closed would swallow the rows that follow.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            line = reader.line_num
            stripped = [cell.strip() for cell in row]
            # A table of one column may have an empty cell, which is written as "".
            cell_of_one = row == [""] and len(rows) > 0 and len(rows[0]) == 1
            if len(row) > 1 or any(stripped) or cell_of_one:
                rows.append(stripped)
                cells += len(row)
            if cells > _MOST_CELLS or len(row) > _MOST_COLUMNS:
                raise ValueError(f"more than {_MOST_COLUMNS:,} columns or {_MOST_CELLS:,} cells")
    except (csv.Error, ValueError, StopIteration) as error:
        raise InputError(
            f"{path} must {_MUST}.\nReceived: {error} (after line {line}).\n"
            "Mend the line; a cell that holds a quote must be quoted, and its quotes doubled."
        ) from error
    return rows
