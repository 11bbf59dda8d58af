"""Write what is sent to the challenge, and check it before it is sent.

    python -m bach.submission part-a --data-dir data/BACH --model-dir runs/part_a \\
        --out submissions/part_a.csv
    python -m bach.submission part-b --run-dir runs/heatmaps --out submissions/part_b.zip
    python -m bach.submission check part-a submissions/part_a.csv
    python -m bach.submission template > template.json

Reads:   the models of a training run and the test photos, or a table of predictions;
         the class maps of a heatmap run
Writes:  the submission, for Part A also <out>_predictions.csv (image_id, predicted,
         prob_normal ...) for scoring. An --out that ends in .zip, or --zip, makes a
         flat archive.
Time:    Part A is that of 1,400 patches for each model; all else takes seconds

Part A has two dialects: "2018", rows `test0.tif,Benign` without header, and
"probabilities", rows `0,2,0.1,0.7,0.1,0.1` under the header
`case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)` with classes 1..4.

Part B follows a template, since the names, size and pixel values that the server wants
are not known. It is JSON with the keys name (with {slide}), mode (L, gray, or P,
palette), values (pixel values of the four classes), downsample (level-0 px per px of
the map, or null) and size ([width, height], or null). The default keeps the class maps
as they are: {slide}.png, 8-bit gray, values 0..3.

A submission is always checked before it is written. `check` prints one line per fault
and then their number; its exit code is 0 if there is none, 1 if there are some and 2 if
there was nothing to check.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from bach import calibration
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_folder, atomic_path, read_json, require_place
from bach.core.inputs import Limit, read_input
from bach.core.log import log, step
from bach.core.tables import (
    SUM_TOLERANCE,
    as_numbers,
    image_key,
    read_table,
    require_columns,
    require_once,
    write_csv,
)
from bach.data import list_images, natural_key, photo_sizes
from bach.honest.records import read_slides
from bach.labels import read_class_map, same_proportions
from bach.slides import Slide

# "2018" is how the organisers' own microscopy_ground_truth.csv is written.
# "probabilities" is how A-F-V/XAI-Cancer-Diagnosis (playground.py, function
# create_test_set_predictions) writes its predictions: `case` is the number in
# test<number>.tif, `class` the argmax + 1. hippopotamusinflight/
# ICIAR2018_BACH_challenge1 (3_predict_testset/pred.csv) has the same `case`, but no
# probabilities and classes 0..3: that is not one of the dialects here.
DIALECTS = ("2018", "probabilities")
# "InSitu" is written "In Situ" there.
_SPACED = [re.sub("(?<=[a-z])(?=[A-Z])", " ", name) for name in CLASSES]
HEADER = ("case", "class", *(f"P({name})" for name in _SPACED))
TEST_IDS = tuple(f"test{number}" for number in range(100))

_WIDTHS = {"2018": 2, "probabilities": len(HEADER)}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# A plain name on any system, with one {slide}.
_MAP_NAME = re.compile(r"(?!\.)[^{}/\\:*?\"<>|]*\{slide\}[^{}/\\:*?\"<>|]*\.png")
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold
# A table of 100 images has 10 kB.
_TABLE_BYTES = 10 * 2**20
_MOST_ROWS = 100_000
_MOST_FILES = 10_000
_MAX_PIXELS = 2**32  # a BACH slide has 2.6e9 at level 0; a byte per pixel

Size = tuple[int, int]  # width, height
Member = tuple[str, Callable[[], bytes]]  # a file of a submission: its name, and what reads it


# Part A: what is wrong


def part_a_name(image_id: str, dialect: str) -> str:
    """How a dialect names an image: "test7" is `test7.tif`, or `7` for probabilities.

    Ids that are not test<number> stay as they are in the dialect "probabilities".
    """
    if dialect == "2018":
        return f"{image_id}.tif"
    match = re.fullmatch(r"test(\d+)", image_id)
    return str(int(match[1])) if match else image_id


def faults_part_a(
    path: str | os.PathLike, dialect: str = "2018", ids: Iterable[str] = TEST_IDS
) -> list[str]:
    """Find every fault of a Part A submission.

    Args:
        path: The CSV file, or a zip archive or folder that holds it.
        dialect: "2018" or "probabilities", see the module.
        ids: Ids of the images that must be in it, without ending; test0 ... test99.

    Returns:
        One line per fault, in the order of the file; none if it is valid. The order
        of the rows is free, as is the kind of line ending.

    Raises:
        InputError: If there is no such file.
    """
    members, faults = _open_submission(Path(path))
    tables = [member for member in members if member[0].lower().endswith(".csv")]
    faults += [f"{one[0]}: extra file, not a CSV" for one in members if one not in tables]
    if len(tables) != 1:
        faults.append(f"submission: holds {len(tables)} CSV files, must hold 1")
    for table in tables[:1]:
        data = _content(table, faults)
        faults += [] if data is None else table_faults(data, dialect, ids)
    return faults


def table_faults(data: bytes, dialect: str, ids: Iterable[str]) -> list[str]:
    """As `faults_part_a`, of the content of a CSV file."""
    faults = []
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        faults.append(f"row {row}: not UTF-8 (byte 0x{data[error.start]:02x})")
        text = data.decode(errors="replace")
    if not text.strip():
        return [*faults, "file: empty"]
    # Cells must be exactly what is wanted, so blanks, quotes and marks need no rule.
    lines = re.split(r"\r\n|\n|\r", text)
    rows = [(number, line.split(",")) for number, line in enumerate(lines, start=1)]
    if not lines[-1]:
        rows.pop()  # what follows the last line ending
    if len(rows) > _MOST_ROWS:
        return [*faults, f"file: {len(rows):,} rows; at most {_MOST_ROWS:,} are looked at"]
    widths = Counter(len(cells) for _, cells in rows)
    for other in DIALECTS:
        if other != dialect and widths[_WIDTHS[other]] > len(rows) / 2:
            # Every other line would be a consequence of this one.
            return [*faults, f"file: is in the dialect {other}, not {dialect} (--dialect {other})"]
    if not widths[_WIDTHS[dialect]]:
        return [*faults, f"file: no row has {_WIDTHS[dialect]} cells, separated by commas"]
    names = [part_a_name(image_id, dialect) for image_id in ids]
    # A name with another ending or case is one fault, not one missing and one extra id.
    names_by_key = {image_key(name): name for name in names}
    if dialect == "probabilities":
        first = rows[0][1]
        if image_key(first[0]) not in names_by_key:
            rows = rows[1:]
        if tuple(first) != HEADER:
            faults.append(f"row 1: header is {_shown(','.join(first))}, must be {','.join(HEADER)}")
    seen: dict[str, int] = {}
    for number, cells in rows:
        name = names_by_key.get(image_key(cells[0]))
        found = _row_faults(cells, dialect, name)
        if name in seen:
            found.append(f"id {name} again, first in row {seen[name]}")
        elif name is not None:
            seen[name] = number
        faults += [f"row {number}: {text}" for text in found]
    return faults + [f"id {name}: missing" for name in names if name not in seen]


def _row_faults(cells: list[str], dialect: str, name: str | None) -> list[str]:
    """What is wrong with a row of the image `name`, None for one that is not wanted."""
    faults = []
    if name is None:
        faults.append(f"extra id {_shown(cells[0])}, no such test image")
    elif cells[0] != name:
        faults.append(f"id {_shown(cells[0])} must be written {name}")
    if len(cells) != _WIDTHS[dialect]:
        return [*faults, f"{len(cells)} cells, must be {_WIDTHS[dialect]}"]
    label, numbers = cells[1], [str(number + 1) for number in range(len(CLASSES))]
    known = list(CLASSES) if dialect == "2018" else numbers
    if label not in known:
        faults.append(f"unknown class {_shown(label)}, must be one of {', '.join(known)}")
    if dialect == "2018":
        return faults
    probs = [float(cell) if _NUMBER.fullmatch(cell) else math.nan for cell in cells[2:]]
    for column, cell, prob in zip(HEADER[2:], cells[2:], probs, strict=True):
        if not 0 <= prob <= 1 + SUM_TOLERANCE:
            faults.append(f"{column} is {_shown(cell)}, must be a number 0..1")
    total, best = sum(probs), int(np.argmax(probs))
    if abs(total - 1) > SUM_TOLERANCE:  # never where one is not a number
        faults.append(f"probabilities sum to {total:.6g}, must be 1")
    if label in known and probs[known.index(label)] < probs[best]:
        faults.append(f"class {label} is not the most probable one, {known[best]}")
    return faults


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


# Part B: what is wanted, and what is wrong


@dataclasses.dataclass(frozen=True)
class Template:
    """How the server wants class maps, which is not known: all of it can be set.

    See the module for the fields. The size of a map that is downsampled is rounded down,
    as in an Aperio pyramid.

    Raises:
        InputError: If a value cannot be used; all are named.
    """

    name: str = "{slide}.png"
    mode: str = "L"
    values: Sequence[int] = tuple(range(len(CLASSES)))
    downsample: float | None = None
    size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        def whole(values: object, count: int, low: int, high: float) -> bool:
            if not isinstance(values, list | tuple) or len(values) != count:
                return False
            return all(isinstance(value, int) and low <= value <= high for value in values)

        faults = []
        if not (isinstance(self.name, str) and _MAP_NAME.fullmatch(self.name)):
            faults.append("name must be a file name with {slide} that ends in .png")
        if self.mode not in ("L", "P"):
            faults.append("mode must be L or P")
        if not whole(self.values, len(CLASSES), 0, 255) or len(set(self.values)) < len(CLASSES):
            faults.append(f"values must be {len(CLASSES)} different whole numbers 0..255")
        down = self.downsample
        if down is not None and not (isinstance(down, int | float) and 1 <= down < math.inf):
            faults.append("downsample must be null or a number from 1")
        if self.size is not None and not whole(self.size, 2, 1, math.inf):
            faults.append("size must be null or [width, height] in px")
        if down is not None and self.size is not None:
            faults.append("downsample and size must not both be given")
        if faults:
            raise InputError(
                f"The template must say how a map is written: {'; '.join(faults)}.\n"
                f"Received: {json.dumps(dataclasses.asdict(self))}.\n"
                "`python -m bach.submission template` prints one to start from."
            )

    def file(self, slide: str) -> str:
        """Name of the file of a slide.

        Raises:
            InputError: If the slide's name holds what would lead to another folder.
        """
        if re.search(r"[/\\\0]", slide):
            raise InputError(
                f"The name of a slide must be that of a file, without folders.\n"
                f"Received: {slide!r}.\nRename it."
            )
        return self.name.replace("{slide}", slide)

    def map_size(self, class_map: Size, slide: Size | None) -> Size:
        """Size in px of the map to send, from those of the class map and of the slide.

        Raises:
            InputError: If the size of the slide is needed and is not known (None).
        """
        if self.size is not None:
            return self.size[0], self.size[1]
        if self.downsample is None:
            return class_map
        if slide is None:
            raise InputError(
                "A template with downsample needs the sizes of the slides.\nReceived none.\n"
                "Add --data-dir, or an --ids table with the columns image_id,width,height."
            )
        width, height = (max(1, int(side / self.downsample)) for side in slide)
        return width, height


def read_template(path: str | os.PathLike | None) -> Template:
    """Read a template from a JSON file, see `Template`; None is the default one.

    Raises:
        InputError: If the file cannot be read, or a key or a value is wrong.
    """
    if path is None:
        return Template()
    remedy = "`python -m bach.submission template` prints one to start from."
    values = read_json(path, remedy)
    try:
        return Template(**values)
    except TypeError as error:  # no object, or one with a key too many
        keys = ", ".join(field.name for field in dataclasses.fields(Template))
        raise InputError(
            f"{path} must be a JSON object with keys of {keys}.\nReceived: {error}.\n{remedy}"
        ) from error


def faults_part_b(
    path: str | os.PathLike,
    template: Template | None = None,
    slides: Mapping[str, Size | None] | None = None,
    allow_uniform: bool = False,
) -> list[str]:
    """Find every fault of a Part B submission.

    Args:
        path: Folder or zip archive of maps, or one map.
        template: What is wanted; the default one if None.
        slides: The slides that must be in it, and their sizes in level-0 px; None as
            a size leaves proportions unchecked. None for all of it: whatever maps
            there are are checked, by what is known without slides.
        allow_uniform: Let a map pass that is of one class everywhere.

    Returns:
        One line per fault; none if the submission is valid.

    Raises:
        InputError: If there is nothing at `path`.
    """
    members, faults = _open_submission(Path(path))
    return faults + maps_faults(members, template or Template(), slides, allow_uniform)


def maps_faults(
    members: Sequence[Member],
    template: Template,
    slides: Mapping[str, Size | None] | None,
    allow_uniform: bool = False,
) -> list[str]:
    """As `faults_part_b`, of files that are opened already."""
    faults = []
    if slides is None:
        pattern = re.escape(template.name).replace(re.escape("{slide}"), "(.+)")
        matches = (re.fullmatch(pattern, name.split("/")[-1]) for name, _ in members)
        slides = {match[1]: None for match in matches if match}
        if not members:
            faults.append("submission: holds no map")
    slides_by_key = {image_key(template.file(slide)): slide for slide in slides}
    found: dict[str, str] = {}
    in_order = sorted(members, key=lambda member: natural_key(member[0]))
    for member in tqdm(in_order, desc="checking", unit="slide", disable=None):
        name, base = member[0], member[0].split("/")[-1]
        slide = slides_by_key.get(image_key(base))
        if slide is None:
            faults.append(f"{name}: extra file, not {template.name} of a wanted slide")
            continue
        if slide in found:
            faults.append(f"{name}: slide {slide} again, first in {found[slide]}")
        found.setdefault(slide, name)
        if base != template.file(slide):
            faults.append(f"{name}: must be named {template.file(slide)}")
        data = _content(member, faults)
        if data is not None:
            texts = _map_faults(data, template, slides[slide], allow_uniform)
            faults += [f"{name}: {text}" for text in texts]
    return faults + [f"{template.file(one)}: missing" for one in slides if one not in found]


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    # Maps at level 0 are larger than what Pillow takes for an attack.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@_any_size()
def _map_faults(
    data: bytes, template: Template, l0_size: Size | None, allow_uniform: bool
) -> list[str]:
    faults: list[str] = []
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "PNG":
                return [f"is a {image.format} file, must be PNG"]
            mode, size = image.mode, image.size
            image.verify()  # checksums of all chunks; the image must be opened again
        faults += _size_faults(size, template, l0_size)
        if mode != template.mode:
            faults.append(f"mode is {mode}, must be {template.mode}")
        if mode not in ("L", "P"):
            return faults
        if size[0] * size[1] > _MAX_PIXELS:
            return [*faults, f"more than {_MAX_PIXELS:,} px"]
        with Image.open(io.BytesIO(data)) as image:
            counts = np.array(image.histogram()[:256])
    except UnidentifiedImageError:
        return ["unreadable, no image"]
    except Exception as error:  # whatever Pillow makes of the damage, it is a fault of the file
        return [*faults, f"unreadable PNG ({error})"]
    values = np.flatnonzero(counts).tolist()
    wrong = [value for value in values if value not in template.values]
    if wrong:
        shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
        wanted = ", ".join(map(str, template.values))
        faults.append(f"{counts[wrong].sum():,} px with the values {shown}, must be {wanted}")
    elif len(values) == 1 and not allow_uniform:
        name = CLASSES[template.values.index(values[0])]
        faults.append(f"is {name} everywhere (--allow-uniform lets it pass)")
    return faults


def _size_faults(size: Size, template: Template, l0_size: Size | None) -> list[str]:
    if template.downsample is None or l0_size is not None:
        wanted = template.map_size(size, l0_size)
        if size != wanted:
            return [f"size is {_sides(size)} px, must be {_sides(wanted)}"]
    if template.size is not None or l0_size is None or same_proportions(size, l0_size):
        return []
    turned = ", turned by 90 degrees?" if same_proportions(size[::-1], l0_size) else ""
    return [f"size is {_sides(size)} px, not in proportion to the slide, {_sides(l0_size)}{turned}"]


def _sides(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


# Archives and folders


def _open_submission(path: Path) -> tuple[list[Member], list[str]]:
    """The files of a submission, and the faults of their places.

    Hidden files and folders are faults and left out; files in folders are faults too,
    but are read.
    """
    members: list[Member]
    if path.is_dir():
        files = sorted(path.iterdir())
        members = [(one.name + "/" * one.is_dir(), functools.partial(_read, one)) for one in files]
    elif not path.is_file():
        raise InputError(
            f"There must be a submission to check.\nReceived: {path}, not there.\nCheck the path."
        )
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except Exception as error:  # see _content
            return [], [f"archive: cannot be read ({error})"]
        if len(infos) > _MOST_FILES:
            return [], [f"archive: {len(infos):,} files; at most {_MOST_FILES:,} are looked at"]
        members = [(one.filename, functools.partial(_read_member, path, one)) for one in infos]
    else:
        members = [(path.name, functools.partial(_read, path))]
    faults, kept = [], []
    for name, read in members:
        *folders, base = name.split("/")
        if not base:
            faults.append(f"{name}: folder, the files must lie flat")
        elif base.startswith("."):
            faults.append(f"{name}: hidden file, must not be sent")
        else:
            if folders:
                faults.append(f"{name}: nested in a folder, the files must lie flat")
            kept.append((name, read))
    return kept, faults


def _read(path: Path) -> bytes:
    return read_input(path, "be a file", "Send files alone.", _limit(path.name))


def _read_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    # What a file of an archive takes once it is unpacked may be a thousand times more.
    if info.file_size > _limit(info.filename):
        raise ValueError(f"{info.file_size:,} bytes; at most {_limit(info.filename):,} are read")
    with zipfile.ZipFile(path) as archive:
        return archive.read(info)


def _limit(name: str) -> int:
    return _TABLE_BYTES if name.lower().endswith(".csv") else Limit.PICTURE


def _content(member: Member, faults: list[str]) -> bytes | None:
    """What a file holds; None, and one fault more, if it is damaged."""
    name, read = member
    try:
        return read()
    except Exception as error:  # whatever zipfile makes of the damage, it is a fault of the file
        faults.append(f"{name}: cannot be read ({' '.join(str(error).split())})")
        return None


# Writing


def write_part_a(
    predictions: pd.DataFrame,
    path: str | os.PathLike,
    dialect: str = "2018",
    ids: Iterable[str] = TEST_IDS,
    store: bool = True,
) -> None:
    """Check a Part A submission and write it.

    Args:
        predictions: Table with `image_id` and the four `prob_` columns, in any order
            of rows; sorted naturally in the file.
        path: File to write; one that ends in `.zip` is an archive of it.
        dialect: See `faults_part_a`.
        ids: Ids of the images that must be in it.
        store: Also write `<stem>_predictions.csv` beside: `image_id, predicted`
            and the `prob_` columns.

    Raises:
        InputError: If the submission has faults, all of which are named; then
            nothing is written and what was there stays as it was.
    """
    path = Path(path)
    require_columns(predictions, ("image_id", *PROB_COLUMNS), "the predictions")
    table = predictions[list(PROB_COLUMNS)].astype(float)
    table.insert(0, "image_id", predictions["image_id"].map(_stem))
    table.insert(1, "predicted", table[list(PROB_COLUMNS)].to_numpy().argmax(axis=1))
    table = table.sort_values("image_id", key=lambda ids: ids.map(natural_key), kind="stable")
    ids = list(ids)
    texts = {one: part_a_text(table, one).encode() for one in (dialect, "probabilities")}
    # The probabilities are checked in the dialect that states them, whatever is sent.
    for one, text in texts.items():
        _refuse(table_faults(text, one, ids), path)
    if store:
        write_csv(table, predictions_path(path))
    with atomic_path(path) as temporary:
        if path.suffix == ".zip":
            _write_zip(temporary, {f"{path.stem}.csv": texts[dialect]})
        else:
            temporary.write_bytes(texts[dialect])


def predictions_path(path: str | os.PathLike) -> Path:
    """Where `write_part_a` puts the predictions of the submission at `path`."""
    return Path(path).with_name(f"{Path(path).stem}_predictions.csv")


def part_a_text(predictions: pd.DataFrame, dialect: str) -> str:
    """Lay predictions with `predicted` and probabilities out in a dialect."""
    lines = [",".join(HEADER)] if dialect == "probabilities" else []
    probs = predictions[list(PROB_COLUMNS)].to_numpy()
    labels = zip(predictions["image_id"], predictions["predicted"], probs, strict=True)
    for image_id, label, row in labels:
        name = part_a_name(image_id, dialect)
        if dialect == "2018":
            lines.append(f"{name},{CLASSES[label]}")
        else:
            lines.append(",".join([name, str(label + 1), *(f"{prob:.6f}" for prob in row)]))
    return "\n".join(lines) + "\n"


def write_part_b(
    class_maps: Mapping[str, str | os.PathLike],
    out: str | os.PathLike,
    template: Template | None = None,
    slides: Mapping[str, Size | None] | None = None,
    allow_uniform: bool = False,
) -> None:
    """Check a Part B submission and write it.

    Args:
        class_maps: PNG of the class map by name of the slide, see
            `bach.labels.read_class_map`; resized by nearest neighbour.
        out: Folder to make, or a file that ends in `.zip`.
        template: What is wanted; the default one if None.
        slides: The slides that must be in it, and their sizes in level-0 px, None
            where unknown. By default those of `class_maps`.
        allow_uniform: Let a map pass that is of one class everywhere.

    Raises:
        InputError: If the submission has faults, all of which are named, or `out`
            is a folder that is not empty; then nothing is written.
    """
    out = Path(out)
    template = template or Template()
    wanted: dict[str, Size | None] = dict(slides or dict.fromkeys(class_maps))
    zipped = out.suffix.lower() == ".zip"
    if out.exists() and not zipped and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            f"A submission folder must be new.\nReceived: --out={out}, which is there already.\n"
            "Name another one, or delete it first."
        )
    files, faults = {}, []
    for slide, path in tqdm(class_maps.items(), desc="class maps", unit="slide", disable=None):
        try:
            files[template.file(slide)] = _encoded(path, template, wanted.get(slide))
        except InputError as error:
            faults.append(f"{slide}: {' '.join(str(error).splitlines())}")
            wanted.pop(slide, None)  # not missing as well
    members = [(name, functools.partial(bytes, content)) for name, content in files.items()]
    _refuse(faults + maps_faults(members, template, wanted, allow_uniform), out)
    if zipped:
        with atomic_path(out) as temporary:
            _write_zip(temporary, files)
    else:
        with atomic_folder(out) as folder:
            for name, content in files.items():
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(content)


def _encoded(path: str | os.PathLike, template: Template, l0_size: Size | None) -> bytes:
    """The class map at `path` as a PNG that follows the template."""
    class_map = read_class_map(path)
    size = class_map.shape[1], class_map.shape[0]
    # Resizing would hide a map that does not show the whole slide.
    if l0_size is not None and not same_proportions(size, l0_size):
        raise InputError(
            f"class map of {_sides(size)} px is not in proportion to the slide, {_sides(l0_size)}"
        )
    if size != (wanted := template.map_size(size, l0_size)):
        # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST shifts the map.
        class_map = cv2.resize(class_map, wanted, interpolation=cv2.INTER_NEAREST_EXACT)
    image = Image.fromarray(np.array(template.values, np.uint8)[class_map])
    if template.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        palette[list(template.values)] = COLORS
        image.putpalette(palette.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _refuse(faults: list[str], path: Path) -> None:
    if faults:
        raise InputError(
            f"The submission must be without faults; {path} was not written.\n"
            f"Received {_number_of(faults)}:\n  " + "\n  ".join(faults)
        )


def _number_of(faults: list[str]) -> str:
    return f"{len(faults)} fault{'s' * (len(faults) != 1)}"


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """A flat archive that is the same bytes for the same files, whenever made."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files, key=natural_key):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.create_system = 3  # Unix also where it is not, for the same bytes
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])


# Reading


def read_ids(path: str | os.PathLike) -> dict[str, Size | None]:
    """Read the ids that a submission must hold.

    Args:
        path: Text file with one id per line, or a CSV table with the column `image_id`;
            with the columns `width` and `height`, also the sizes of slides in level-0
            px. Endings such as .tif are left off.

    Returns:
        Size by id, in the order of the file; None where it is not given.

    Raises:
        InputError: If the file cannot be read, is empty or names an id twice.
    """
    table = read_table(path, header=False)
    if not table.empty and "image_id" in table.loc[0].tolist():
        table = read_table(path)
    else:
        table = table.rename(columns={0: "image_id"})
    if table.empty:
        raise InputError(
            f"--ids must name every image once.\nReceived: --ids={path} with no id.\n"
            "Write one id per line, or a table with the columns image_id,width,height."
        )
    require_once(table["image_id"], path)
    ids = table["image_id"].map(_stem)
    if not {"width", "height"} <= set(table.columns):
        return dict.fromkeys(ids)
    sizes = as_numbers(table, ("width", "height"), path).astype(int)
    return dict(zip(ids, sizes.itertuples(index=False, name=None), strict=True))


def read_heatmap_run(run_dir: str | os.PathLike) -> tuple[dict[str, Path], dict[str, Size | None]]:
    """Find the class maps of a heatmap run that make up a submission.

    Args:
        run_dir: Run folder of `make_heatmap.py`.

    Returns:
        PNG by slide, and size in level-0 px by slide: those with part "B-test" if
        there are any, else all. A slide without a map is only in the second.

    Raises:
        InputError: If there is no class map, or a slide's record is missing or
            cannot be read.
    """
    run_dir = Path(run_dir)
    records = read_slides(run_dir)
    class_maps = {path.stem: path for path in (run_dir / "class_maps").glob("[!.]*.png")}
    without = sorted(class_maps.keys() - records.keys(), key=natural_key)
    if without or not class_maps:
        raise InputError(
            f"There must be class maps in {run_dir / 'class_maps'}, each with a record in slides.\n"
            f"Received: --run-dir={run_dir} without {', '.join(without) or 'class maps'}.\n"
            "Make them with `python make_heatmap.py`, or finish the run with --resume."
        )
    if not (run_dir / "metrics.json").exists():
        log.warning("the run %s is not finished", run_dir)
    test = [slide for slide, record in records.items() if record.part == "B-test"]
    chosen = sorted(test or records, key=natural_key)
    which = "test slides" if test else "no test slides: all"
    log.info("%s: %d of %d slides (%s)", run_dir, len(chosen), len(records), which)
    return (
        {slide: class_maps[slide] for slide in chosen if slide in class_maps},
        {slide: (records[slide].width, records[slide].height) for slide in chosen},
    )


def _stem(name: object) -> str:
    """An image id without folder and ending, its case as it is."""
    base = re.split(r"[/\\]", str(name).strip())[-1]
    return base[: len(image_key(base))]


# The tool


def predict_part_a(
    data_dir: str,
    model_dir: str,
    tta: bool = False,
    calibrated: bool = False,
    mpp: float | None = None,
) -> pd.DataFrame:
    """Predict the test photos with the mean of all models of a training run.

    Args:
        data_dir: Folder of the challenge data.
        model_dir: Run folder of `train_part_a.py`.
        tta: Mean over the eight orientations too.
        calibrated: Scale by the temperature that `bach.calibration` stored in the run.
        mpp: um per px of the photos, if they are not those of the challenge.
    """
    images = list_images(data_dir, "A-test", mpp=mpp)
    photo_sizes(images)  # refused before the models are loaded
    temperature = calibration.stored_temperature(model_dir) if calibrated else None
    # Here and not above: checking and --help need no framework.
    from bach.network import backend, predict

    backend.start()
    models = predict.load_models(model_dir, whole_photos=True)
    with step("predictions") as notes:
        table = predict.predict_photos(list(models.values()), images, tta)
        if temperature is not None:
            columns = list(PROB_COLUMNS)
            table[columns] = calibration.apply_temperature(table[columns].to_numpy(), temperature)
            notes.append(f"temperature {temperature:.3f}")
        notes.append(f"{len(table)} photos by {len(models)} models")
    return table


def _add_ids(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--data-dir", help=f"folder of the challenge data; expect its {what}")
    parser.add_argument("--ids", help="file of the ids to expect instead, one per line")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    part_a = commands.add_parser("part-a", help="write the answer for the test photos")
    _add_ids(part_a, "test photos (to predict: data/BACH)")
    part_a.add_argument("--model-dir", default="runs/part_a", help="run folder of the models")
    part_a.add_argument("--tta", action="store_true", help="mean over the eight orientations")
    part_a.add_argument(
        "--calibrated",
        action="store_true",
        help="scale by the temperature that python -m bach.calibration stored in --model-dir",
    )
    part_a.add_argument("--predictions", help="CSV of predictions to use instead of models")
    options.add(part_a, options.Photos)
    part_a.add_argument("--out", required=True, help=".csv or .zip file to write")
    part_b = commands.add_parser("part-b", help="write the class maps of the test slides")
    _add_ids(part_b, "test slides")
    part_b.add_argument("--run-dir", default="runs/heatmaps", help="run folder of the class maps")
    part_b.add_argument("--out", required=True, help="folder to make, or .zip file to write")
    check = commands.add_parser("check", help="name every fault of a submission")
    checks = check.add_subparsers(dest="part", required=True)
    check_a = checks.add_parser("part-a", help="check a CSV file or an archive of one")
    check_a.add_argument("file", help=".csv or .zip file")
    _add_ids(check_a, "test photos (else test0 ... test99)")
    check_b = checks.add_parser("part-b", help="check a folder or an archive of maps")
    check_b.add_argument("file", help="folder or .zip file")
    _add_ids(check_b, "test slides")
    check_b.add_argument("--run-dir", help="heatmap run whose slides to expect instead")
    for command in (part_a, check_a):
        command.add_argument(
            "--dialect",
            choices=DIALECTS,
            default=DIALECTS[0],
            help="rows `test0.tif,Benign`, or `case,class,P(Normal)...` with classes 1..4",
        )
    for command in (part_b, check_b):
        command.add_argument("--template", help="JSON file as printed by the command template")
        command.add_argument(
            "--allow-uniform", action="store_true", help="let maps of a single class pass"
        )
    for command in (part_a, part_b):
        command.add_argument("--zip", action="store_true", help="write an archive, --out as .zip")
    commands.add_parser("template", help="print the default Part B template")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "template":
        print(json.dumps(dataclasses.asdict(Template()), indent=2))
        return 0
    if args.command == "check":
        if args.part == "part-a":
            faults = faults_part_a(args.file, args.dialect, _expected_photos(args))
        else:
            faults = _check_part_b(args)
        for line in [*faults, _number_of(faults)]:
            # The name of a file can hold what no terminal shows.
            print(line.encode(errors="backslashreplace").decode())
        return 1 if faults else 0
    out = Path(args.out)
    if args.zip and out.suffix != ".zip":
        out = out.with_suffix(".zip") if out.suffix == ".csv" else Path(f"{out}.zip")
    require_place(out, "Name another --out.", folder=out.is_dir())
    if args.command == "part-a":
        _write_part_a(args, out)
    else:
        _write_part_b(args, out)
    print(out)
    return 0


def _write_part_a(args: argparse.Namespace, out: Path) -> None:
    given = args.predictions and os.path.realpath(args.predictions)
    if out.suffix not in (".csv", ".zip") or given == os.path.realpath(out):
        raise InputError(
            "A Part A submission must end in .csv or .zip, and must not replace the predictions.\n"
            f"Received: --out={args.out}.\nName another file."
        )
    if given is None:
        args.data_dir = args.data_dir or "data/BACH"
    ids = _expected_photos(args)
    if given is None:
        table = predict_part_a(args.data_dir, args.model_dir, args.tta, args.calibrated, args.mpp)
    else:
        table = read_table(args.predictions, ("image_id", *PROB_COLUMNS))
        table[list(PROB_COLUMNS)] = as_numbers(table, PROB_COLUMNS, args.predictions)
    with step(f"part a -> {out}") as notes:
        store = os.path.realpath(predictions_path(out)) != given
        write_part_a(table, out, args.dialect, ids, store=store)
        notes.append(f"{len(table)} images, dialect {args.dialect}")


def _write_part_b(args: argparse.Namespace, out: Path) -> None:
    template = read_template(args.template)
    class_maps, slides = read_heatmap_run(args.run_dir)
    expected = _expected_slides(args)
    if expected is not None:
        slides = {slide: size or slides.get(slide) for slide, size in expected.items()}
    with step(f"part b -> {out}") as notes:
        write_part_b(class_maps, out, template, slides, args.allow_uniform)
        notes.append(f"{len(class_maps)} class maps")


def _check_part_b(args: argparse.Namespace) -> list[str]:
    slides = _expected_slides(args)
    if slides is None and args.run_dir is not None:
        slides = read_heatmap_run(args.run_dir)[1]
    if slides is None:
        log.warning(
            "missing and extra maps and proportions are not checked; "
            "name --data-dir, --run-dir or --ids"
        )
    return faults_part_b(args.file, read_template(args.template), slides, args.allow_uniform)


def _expected_photos(args: argparse.Namespace) -> Sequence[str]:
    if args.ids is not None:
        return list(read_ids(args.ids))
    if args.data_dir is None:
        return TEST_IDS
    ids = list_images(args.data_dir, "A-test")["image_id"].tolist()
    if len(ids) != len(TEST_IDS):
        log.warning("%d test photos; the challenge has %d", len(ids), len(TEST_IDS))
    return ids


def _expected_slides(args: argparse.Namespace) -> Mapping[str, Size | None] | None:
    if args.ids is not None:
        return read_ids(args.ids)
    if args.data_dir is None:
        return None
    sizes = {}
    for row in list_images(args.data_dir, "B-test").itertuples():
        # Only the size is asked for, which is not to fail for want of a scale.
        with Slide(row.path, mpp=1.0) as slide:
            sizes[row.image_id] = slide.width, slide.height
    return sizes


if __name__ == "__main__":
    exit_with(main)
