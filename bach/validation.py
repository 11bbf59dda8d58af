"""Find every fault of a challenge submission, all at once.

A fault is one line that names the row, id or file and says what is wrong. What
the server wants is known in part only, so that nothing here is guessed silently:
Part A has two named dialects, Part B a template that says what is expected.
"""

import contextlib
import csv
import functools
import io
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bach.classes import CLASSES, parse_label
from bach.core.errors import InputError
from bach.core.tables import image_key
from bach.data import natural_key
from bach.labels import same_proportions

# Part A. "2018" is how the organisers' own microscopy_ground_truth.csv is written.
# "probabilities" is how A-F-V/XAI-Cancer-Diagnosis (playground.py, function
# create_test_set_predictions) writes its predictions: `case` is the number in
# test<number>.tif, `class` the argmax + 1. hippopotamusinflight/
# ICIAR2018_BACH_challenge1 (3_predict_testset/pred.csv) has the same `case`, but no
# probabilities and classes 0..3: that is not one of the dialects here.
DIALECTS = ("2018", "probabilities")
HEADER = ("case", "class", "P(Normal)", "P(Benign)", "P(In Situ)", "P(Invasive)")
TEST_IDS = tuple(f"test{number}" for number in range(100))

# Wider than the rounding of four numbers to three decimals, 4 x 0.0005.
SUM_TOLERANCE = 0.0025

# Part B. What the server wants is not known; `complete_template` says what each is.
TEMPLATE = {
    "name": "{slide}.png",
    "mode": "L",
    "values": [0, 1, 2, 3],
    "downsample": None,
    "size": None,
}

Size = tuple[int, int]

_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError,
)  # fmt: skip
_MAX_PIXELS = 2**32  # a BACH slide has 2.6e9 at level 0; a byte a pixel


# Part A


def part_a_name(image_id: str, dialect: str) -> str:
    """How a dialect names an image: "test7" is `test7.tif`, or `7` for probabilities.

    Ids that are not test<number> stay as they are in the dialect "probabilities".

    Raises:
        InputError: If there is no such dialect.
    """
    _check_dialect(dialect)
    if dialect == "2018":
        return f"{image_id}.tif"
    match = re.fullmatch(r"test(\d+)", image_id)
    return str(int(match[1])) if match else image_id


def faults_part_a(
    path: str | os.PathLike, dialect: str = "2018", ids: Iterable[str] = TEST_IDS
) -> list[str]:
    """Find every fault of a Part A submission.

    Args:
        path: The CSV file, or a zip archive that holds it.
        dialect: "2018" (rows `test0.tif,Benign`, no header) or "probabilities"
            (`HEADER`, `case` the number of the photo, `class` 1..4).
        ids: Ids of the images that must be in it, without ending; test0 ... test99.

    Returns:
        One line a fault, in the order of the file; none if it is valid. The order
        of the rows is free, as is the kind of line ending.

    Raises:
        InputError: If there is no such file or dialect.
    """
    _check_dialect(dialect)
    members, faults = _open_submission(path)
    if zipfile.is_zipfile(path):
        tables = [name for name in members if name.lower().endswith(".csv")]
        extra = [name for name in members if name not in tables]
        faults += [f"{name}: extra file, the archive must hold one CSV" for name in extra]
        if len(tables) != 1:
            faults.append(f"archive: holds {len(tables)} CSV files, must hold 1")
    else:
        tables = list(members)
    if not tables:
        return faults
    try:
        data = members[tables[0]]()
    except ValueError as error:
        return [*faults, f"{tables[0]}: cannot be read ({error})"]
    rows, found = _parse_rows(data)
    faults += found
    if not rows:
        return faults
    other = DIALECTS[1 - DIALECTS.index(dialect)]
    if _looks_like(rows, other):
        # Every other line would be a consequence of this one.
        return [*faults, f"file: is in the dialect {other}, not {dialect} (--dialect {other})"]
    return faults + _table_faults(rows, dialect, ids)


def _check_dialect(dialect: str) -> None:
    if dialect not in DIALECTS:
        raise InputError(
            f"A dialect must be one of {', '.join(DIALECTS)}.\nReceived: --dialect={dialect}."
        )


def _parse_rows(data: bytes) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Rows with their line numbers, and the faults of the file as text."""
    if not data.strip():
        return [], ["file: empty"]
    faults = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        faults.append("file: encoding is UTF-16, must be UTF-8")
        text = data.decode("utf-16", errors="replace")
    else:
        if data.startswith(b"\xef\xbb\xbf"):
            faults.append("file: begins with a byte order mark, must not")
            data = data[3:]
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            row = data[: error.start].count(b"\n") + 1
            faults.append(f"row {row}: encoding is not UTF-8 (byte 0x{data[error.start]:02x})")
            text = data.decode("latin-1")
    lines = re.split(r"\r\n|\n|\r", text)
    if not lines[-1]:
        lines.pop()
    separator = max(",;\t", key=lines[0].count)
    if separator != ",":
        faults.append(f"file: columns are separated by {separator!r}, must be by ','")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            faults.append(f"row {number}: blank line")
            continue
        if "\0" in line:
            faults.append(f"row {number}: holds a NUL character")
            line = line.replace("\0", "")
        if '"' in line:
            faults.append(f"row {number}: quotation marks, must be without")
        cells = next(csv.reader([line], delimiter=separator), [""])
        stripped = [cell.strip() for cell in cells]
        if cells != stripped:
            faults.append(f"row {number}: spaces around a cell")
        rows.append((number, stripped))
    return rows, faults


def _looks_like(rows: list[tuple[int, list[str]]], dialect: str) -> bool:
    """Whether more than half of the rows can only be of this dialect."""
    if dialect == "2018":
        alike = [len(row) == 2 and parse_label(row[1]) is not None for _, row in rows]
    else:
        alike = [len(row) == 6 and None not in map(_number, row[2:]) for _, row in rows]
    return sum(alike) > len(rows) / 2


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _table_faults(rows: list[tuple[int, list[str]]], dialect: str, ids: Iterable[str]) -> list[str]:
    faults = []
    names = [part_a_name(image_id, dialect) for image_id in ids]
    # A wrongly written name is one fault, not one missing and one extra id.
    names_by_key = {_id_key(name, dialect): name for name in names}
    if dialect == "probabilities":
        if not _is_header(rows[0][1], dialect):
            faults.append(f"row 1: header missing, must be {','.join(HEADER)}")
        else:
            found = rows.pop(0)[1]
            if tuple(found) != HEADER:
                faults.append(f"row 1: header is {_shown(found)}, must be {','.join(HEADER)}")
    elif _is_header(rows[0][1], dialect):
        faults.append(f"row 1: header {_shown(rows.pop(0)[1])}, must be without")
    row_faults = _class_faults if dialect == "2018" else _probability_faults
    columns = 2 if dialect == "2018" else len(HEADER)
    seen: dict[str, int] = {}
    for number, cells in rows:
        name = names_by_key.get(_id_key(cells[0], dialect))
        if name is None:
            faults.append(f"row {number}: extra id {_shown(cells[:1])}, no such test image")
        elif name in seen:
            faults.append(f"row {number}: id {name} again, first in row {seen[name]}")
        else:
            seen[name] = number
        if name is not None and cells[0] != name:
            faults.append(f"row {number}: id {_shown(cells[:1])} must be written {name}")
        if len(cells) != columns:
            faults.append(f"row {number}: {len(cells)} columns, must be {columns}")
        else:
            faults += [f"row {number}: {text}" for text in row_faults(cells[1:])]
    faults += [f"id {name}: missing" for name in names if name not in seen]
    return faults


def _id_key(text: str, dialect: str) -> str:
    key = image_key(text)
    match = re.fullmatch(r"(?:test)?0*(\d+)(?:\.0*)?", key)
    return match[1] if match and dialect == "probabilities" else key


def _is_header(cells: list[str], dialect: str) -> bool:
    if dialect == "probabilities":
        return not any(_number(cell) is not None for cell in cells)
    return not re.search(r"\d", cells[0]) and all(parse_label(cell) is None for cell in cells[1:])


def _class_faults(cells: list[str]) -> list[str]:
    (name,) = cells
    if name in CLASSES:
        return []
    label = parse_label(name)
    if label is not None:
        return [f"class {_shown(cells)} must be written {CLASSES[label]}"]
    return [f"unknown class {_shown(cells)}, must be one of {', '.join(CLASSES)}"]


def _probability_faults(cells: list[str]) -> list[str]:
    faults = []
    label = cells[0] if cells[0] in ("1", "2", "3", "4") else None
    if label is None:
        faults.append(f"unknown class {_shown(cells[:1])}, must be 1, 2, 3 or 4")
    probs = [_number(cell) for cell in cells[1:]]
    for column, cell, prob in zip(HEADER[2:], cells[1:], probs, strict=True):
        if prob is None or not math.isfinite(prob):
            faults.append(f"{column} is {_shown([cell])}, not a number")
        elif prob < 0:
            faults.append(f"{column} is {cell}, negative")
        elif prob > 1 + SUM_TOLERANCE:
            faults.append(f"{column} is {cell}, above 1")
    if None in probs:
        return faults
    total = sum(probs)
    if not abs(total - 1) <= SUM_TOLERANCE:
        faults.append(f"probabilities sum to {total:.6g}, must be 1")
    if label is not None and probs[int(label) - 1] < max(probs):
        best = probs.index(max(probs))
        faults.append(f"class {label} is not the most probable one, {best + 1} ({CLASSES[best]})")
    return faults


def _shown(cells: list[str]) -> str:
    text = ",".join(cells)
    return ascii(text if len(text) <= 60 else text[:57] + "...")


# Part B


def complete_template(values: Mapping | None = None) -> dict:
    """Check what a template says and fill in the rest from `TEMPLATE`.

    Args:
        values: Any of these keys.
            `name`: File name of a map; `{slide}` stands for the slide's name.
            `mode`: "L", 8-bit gray, or "P", palette (the same pixels, shown in
            the colours of `bach.classes`).
            `values`: The pixel values of Normal, Benign, InSitu, Invasive.
            `downsample`: Level-0 px of the slide per px of the map; the size is
            rounded down, as in an Aperio pyramid.
            `size`: [width, height] of every map. With neither, a map keeps the
            size of the class map.

    Returns:
        A template with all keys.

    Raises:
        InputError: If a key is unknown or a value cannot be used; all are named.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise InputError(
            f"A template must be a JSON object.\nReceived: {type(values).__name__}.\n"
            "`python -m bach.submission template` prints one to start from."
        )
    template = TEMPLATE | dict(values)
    name, pixels = template["name"], template["values"]
    downsample, size = template["downsample"], template["size"]
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    faults = [f"unknown key {key!r}" for key in template.keys() - TEMPLATE.keys()]
    if (
        not isinstance(name, str)
        or name.count("{slide}") != 1
        or not name.endswith(".png")
        or re.search(r'[/\\:*?"<>|]|^\.', name)
    ):
        faults.append(f"name must be a file name with {{slide}} that ends in .png, not {name!r}")
    if template["mode"] not in ("L", "P"):
        faults.append(f"mode must be L or P, not {template['mode']!r}")
    if (
        not isinstance(pixels, list | tuple)
        or len(pixels) != len(CLASSES)
        or not all(whole(value) and 0 <= value <= 255 for value in pixels)
        or len(set(pixels)) != len(CLASSES)
    ):
        faults.append(f"values must be four different whole numbers 0..255, not {pixels!r}")
    if downsample is not None and not (
        (whole(downsample) or isinstance(downsample, float))
        and math.isfinite(downsample)
        and downsample >= 1
    ):
        faults.append(f"downsample must be null or a number from 1, not {downsample!r}")
    if size is not None and not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(whole(side) and side > 0 for side in size)
    ):
        faults.append(f"size must be null or [width, height] in px, not {size!r}")
    if downsample is not None and size is not None:
        faults.append("downsample and size must not both be given")
    if faults:
        raise InputError(
            "The template must say how a map is written.\nReceived: "
            + "; ".join(faults)
            + ".\n`python -m bach.submission template` prints one to start from."
        )
    return template


def read_template(path: str | os.PathLike | None) -> dict:
    """Read a template from a JSON file; None is the default one.

    Raises:
        InputError: If the file cannot be read, or as in `complete_template`.
    """
    if path is None:
        return complete_template()
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The template must be a JSON file.\nReceived: --template={path} ({error}).\n"
            "`python -m bach.submission template` prints one to start from."
        ) from error
    return complete_template(values)


def map_size(template: Mapping, class_map: Size, slide: Size | None) -> Size:
    """Size of the map to send, (width, height) in px.

    Args:
        template: A complete template.
        class_map: (width, height) of the class map.
        slide: (width, height) of the slide in level-0 px; None if unknown.

    Raises:
        InputError: If the template needs the size of the slide.
    """
    if template["size"] is not None:
        return tuple(template["size"])
    if template["downsample"] is None:
        return class_map
    if slide is None:
        raise InputError(
            "A template with downsample needs the sizes of the slides.\n"
            "Add --data-dir, or an --ids table with the columns image_id,width,height."
        )
    return tuple(max(1, int(side / template["downsample"])) for side in slide)


def faults_part_b(
    path: str | os.PathLike,
    template: Mapping | None = None,
    slides: Mapping[str, Size | None] | None = None,
    allow_uniform: bool = False,
) -> list[str]:
    """Find every fault of a Part B submission.

    Args:
        path: Folder or zip archive of maps, or one map.
        template: See `complete_template`.
        slides: The slides that must be in it, name to (width, height) in level-0
            px; None as a size leaves proportions unchecked. None for all of it:
            whatever maps there are are checked, by what is known without slides.
        allow_uniform: Let a map pass that is of one class everywhere.

    Returns:
        One line a fault; none if the submission is valid.

    Raises:
        InputError: If there is nothing at `path`, or the template cannot be used.
    """
    template = complete_template(template)
    members, faults = _open_submission(path)
    found: dict[str, str] = {}
    for member in sorted(members, key=natural_key):
        slide, wanted = _find_slide(member, template, slides)
        if slide is None:
            faults.append(f"{member}: extra file, {wanted}")
            continue
        if slide in found:
            faults.append(f"{member}: slide {slide} again, first in {found[slide]}")
        found.setdefault(slide, member)
        if _base(member) != wanted:
            faults.append(f"{member}: must be named {wanted}")
        try:
            data = members[member]()
        except ValueError as error:
            faults.append(f"{member}: cannot be read ({error})")
            continue
        l0_size = slides[slide] if slides is not None else None
        faults += [
            f"{member}: {text}" for text in _map_faults(data, template, l0_size, allow_uniform)
        ]
    if slides is None and not found and not faults:
        faults.append("submission: holds no map")
    for slide in slides or ():
        if slide not in found:
            faults.append(f"{template['name'].replace('{slide}', slide)}: missing")
    return faults


def _find_slide(member: str, template: Mapping, slides: Mapping | None) -> tuple[str | None, str]:
    """The slide that a file shows and how the file must be named, or None and why."""
    base = _base(member)
    if slides is None:
        pattern = re.escape(template["name"]).replace(re.escape("{slide}"), "(.+)")
        match = re.fullmatch(pattern, base)
        return (match[1], base) if match else (None, f"not named as {template['name']}")
    names = {slide: template["name"].replace("{slide}", slide) for slide in slides}
    for same in (str, image_key):
        for slide, name in names.items():
            if same(base) in (same(name), same(slide)):
                return slide, name
    return None, "no slide of that name is wanted"


def _map_faults(
    data: bytes, template: Mapping, l0_size: Size | None, allow_uniform: bool
) -> list[str]:
    faults = []
    try:
        with _any_size(), Image.open(io.BytesIO(data)) as image:
            if image.format != "PNG":
                return [f"is a {image.format} file, must be PNG"]
            mode, size = image.mode, image.size
            image.verify()  # checksums of all chunks; the image must be opened anew
        faults += _size_faults(size, template, l0_size)
        if mode != template["mode"]:
            faults.append(f"mode is {mode}, must be {template['mode']}")
        if mode not in ("L", "P"):
            return faults
        if size[0] * size[1] > _MAX_PIXELS:
            return [*faults, f"more than {_MAX_PIXELS:,} px"]
        with _any_size(), Image.open(io.BytesIO(data)) as image:
            counts = np.array(image.histogram()[:256])
    except UnidentifiedImageError:
        return ["unreadable, no image"]
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error) as error:
        return [*faults, f"unreadable PNG ({error})"]
    values = np.flatnonzero(counts)
    wrong = [value for value in values if value not in template["values"]]
    if wrong:
        shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
        faults.append(
            f"{counts[wrong].sum():,} px with the values {shown}, "
            f"must be {', '.join(map(str, template['values']))}"
        )
    elif len(values) == 1 and not allow_uniform:
        name = CLASSES[list(template["values"]).index(values[0])]
        faults.append(f"is {name} everywhere (--allow-uniform lets it pass)")
    return faults


def _size_faults(size: Size, template: Mapping, l0_size: Size | None) -> list[str]:
    text = lambda sides: f"{sides[0]}x{sides[1]}"
    if template["size"] is not None:
        wanted = tuple(template["size"])
        return [] if size == wanted else [f"size is {text(size)} px, must be {text(wanted)}"]
    if l0_size is None:
        return []
    if template["downsample"] is not None:
        wanted = map_size(template, size, l0_size)
        if all(abs(a - b) <= 1 for a, b in zip(size, wanted, strict=True)):
            return []
        return [f"size is {text(size)} px, must be {text(wanted)}"]
    if same_proportions(size, l0_size):
        return []
    swapped = ", turned by 90 degrees?" if same_proportions(size[::-1], l0_size) else ""
    return [f"size is {text(size)} px, not in proportion to the slide, {text(l0_size)}{swapped}"]


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    # Maps at level 0 are larger than what Pillow takes for an attack.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


# Archives and folders


def _open_submission(
    path: str | os.PathLike,
) -> tuple[dict[str, Callable[[], bytes]], list[str]]:
    """The files of a submission, each with its reader, and the faults of their places.

    A reader raises ValueError if its file is damaged. Hidden files and folders are
    faults and left out; files in folders are faults too, but are read.
    """
    path = Path(path)
    if path.is_dir():
        entries = {
            file.name + "/" * file.is_dir(): functools.partial(_read_file, file)
            for file in sorted(path.iterdir())
        }
        names = list(entries)
    elif zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except _ZIP_ERRORS as error:
            return {}, [f"archive: cannot be read ({error})"]
        names = [info.filename for info in infos]
        entries = {info.filename: functools.partial(_read_member, path, info) for info in infos}
    elif not path.is_file():
        raise InputError(f"There must be a submission to check.\nReceived: {path}, not there.")
    elif path.suffix.lower() == ".zip":
        return {}, ["archive: not a zip file, or cut off"]
    else:
        return {path.name: functools.partial(_read_file, path)}, []
    faults = []
    if path.is_file() and path.suffix.lower() != ".zip":
        faults.append(f"archive: is a zip file, must end in .zip, not {path.suffix or 'nothing'}")
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"{name}: twice in the archive")
    members = {}
    for name, read in entries.items():
        parts = re.split(r"[/\\]", name.rstrip("/\\"))
        if any(part.startswith(".") or part in _HIDDEN for part in parts):
            faults.append(f"{name}: hidden file, must not be sent")
        elif name.endswith(("/", "\\")):
            faults.append(f"{name}: folder, the files must lie flat")
        else:
            if len(parts) > 1:
                faults.append(f"{name}: nested in a folder, the files must lie flat")
            members[name] = read
    return members, faults


def _base(member: str) -> str:
    return re.split(r"[/\\]", member)[-1]


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror) from error


def _read_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(info)
    except _ZIP_ERRORS as error:
        raise ValueError(str(error)) from error
