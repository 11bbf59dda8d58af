"""Find the challenge data on disk and check it.

    python -m bach.data data/BACH
    python -m bach.data --task my_task.toml --images photos.csv
    python -m bach.data download data/BACH

The second one checks the photos of a table; the last one downloads and unpacks the challenge data
first. All print counts per class, the sum of every annotation and every problem found, and exit
with 1 if there is any problem.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from bach import download
from bach.annotations.checks import AnnotationSummary, slide_labels
from bach.annotations.files import ENDINGS, Folder, folders_of
from bach.annotations.regions import read_annotation, read_class_map_file, reasons
from bach.brightfield import judge, one_color
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.pictures import read_header, read_rgb, remarks
from bach.core.tables import (
    as_numbers,
    image_key,
    name_fault,
    name_patients,
    patient_name,
    read_table,
    require_names,
)
from bach.core.text import columns, listed, number
from bach.labels import read_class
from bach.slides import PHOTO_SUFFIXES, SLIDE_SUFFIXES, Slide, check_mpp
from bach.tasks import BACH, task, use
from bach.tissue import map_downsample

TRAIN_FOLDER = "ICIAR2018_BACH_Challenge"
TEST_FOLDER = "ICIAR2018_BACH_Challenge_TestDataset"
GROUND_TRUTH = "microscopy_ground_truth.csv"

COLUMNS = ["image_id", "path", "part", "label", "patient", "width", "height", "mpp"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of bach.data."""

    task: str | None = options.again(options.Shared, "task", None)
    images: str | None = options.again(options.Photos, "images", None)
    class_map: str | None = options.again(options.Slides, "class_map", None)


# No camera of a microscope has more, and four photos are decoded at a time.
_PHOTO_PIXELS = 100_000_000

# Files beside photos that nobody takes for photos.
_BESIDE = (".csv", ".txt", ".md", ".pdf", ".db", ".ini", ".json", ".xlsx")

# Of files that are not, or not yet, what stands before.
_UNFINISHED = (".part", ".crdownload", ".download", ".filepart", ".tmp", ".aria2", ".gz", ".zip")

_OF_TABLE = ("path", "label", "image_id", "patient")

_REMEDY = "Copy or unpack it again; photos are 8-bit RGB."

# Two photos whose brightness patterns on a 32x24 raster correlate more than this
# are taken for the same field. Different fields of one slide stay below 0.9.
_NEAR_DUPLICATE = 0.98


def find_data(data_dir: str | os.PathLike, mpp: float | None = None) -> pd.DataFrame:
    """List the challenge data under a folder.

    Args:
        data_dir: The folder that holds `ICIAR2018_BACH_Challenge` (and perhaps the
            test set beside it), or that folder itself.
        mpp: um per px of all photos, if they are not those of the challenge.

    Returns:
        Table of images with the columns `image_id, path, part, label, patient,
        width, height, mpp`. `part` is "A", "B", "A-test" or "B-test"; `label` is
        0..n-1, or -1 where it is unknown or, for slides, varies; sizes are those of
        the file's header, 0 where it cannot be read (`check_data` says why); `mpp`
        is that of photos, not a number where nobody states it: for photos of another
        size than the challenge's.

    Raises:
        InputError: If there is no challenge data in the folder.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(
            f"There is no folder {data_dir}.\nReceived: --data-dir={data_dir}.\n"
            "Unpack the challenge archive there, or run `python -m bach.toy data/toy` for a "
            "trial data set."
        )
    train, test = _roots(data_dir)
    rows: list[tuple[Path, str, int]] = []
    if train is not None:
        for label in range(task().count):
            for folder in _class_folders(train / "Photos", label)[:1]:
                rows += [(path, "A", label) for path in _files(folder, PHOTO_SUFFIXES)]
        rows += [(path, "B", -1) for path in _files(train / "WSI", SLIDE_SUFFIXES)]
    if test is not None:
        rows += [(path, "A-test", -1) for path in _files(test / "Photos", PHOTO_SUFFIXES)]
        rows += [(path, "B-test", -1) for path in _files(test / "WSI", SLIDE_SUFFIXES)]
    if not rows:
        content = ", ".join(sorted(repr(p.name) for p in data_dir.iterdir())[:8]) or "nothing"
        raise InputError(
            f"No challenge images in {data_dir}.\n"
            f"Received: --data-dir={data_dir} (contains: {content}).\n"
            "Unpack the archive first, or run `python -m bach.toy data/toy` for a trial data set."
        )
    table = []
    for path, part, label in rows:
        photo = part.startswith("A")
        width, height = _photo_size(path) if photo else (0, 0)
        scale = _photo_mpp(width, height, mpp) if photo else np.nan
        patient = task().patient_of(path.stem) if photo else ""
        table.append((path.stem, str(path), part, label, patient, width, height, scale))
    return pd.DataFrame(table, columns=COLUMNS)


def list_images(
    data_dir: str | os.PathLike,
    name: str,
    limit: int | None = None,
    mpp: float | None = None,
    all_classes: bool = True,
) -> pd.DataFrame:
    """List the images of one part, sorted as people count.

    Args:
        data_dir: As in `find_data`.
        name: "A", "B", "A-test" or "B-test". "B" lists annotated slides only.
        limit: How many images per class to keep, or slides: the first ones.
        mpp: As in `find_data`.
        all_classes: Part A must have one folder of photos for every class; else what is
            missing and what is not read are warnings in the log.

    Returns:
        Table of images, as `find_data` has it.

    Raises:
        InputError: If the part is missing, a class of Part A has no photo or two folders,
            or an image id occurs twice.
    """
    table = find_data(data_dir, mpp)
    table = table[table["part"] == name]
    if name == "B":
        table = table[annotated(table["path"])]
    if table.empty:
        what = {"A": "Part A photos", "B": "annotated Part B slides"}.get(name, f"{name} images")
        raise InputError(
            f"No {what} in {data_dir}.\nReceived: --data-dir={data_dir}.\n"
            f"`python -m bach.data {data_dir}` lists what is there."
        )
    if name == "A":
        _check_classes(data_dir, table, all_classes)
    elif name.startswith("B"):
        for line in _unread_slides(Path(data_dir)):
            log.warning("%s", line)
    _check_names(table, data_dir)
    if limit is not None:
        table = table.groupby("label", sort=True).head(limit)
    return table.reset_index(drop=True)


def _check_names(table: pd.DataFrame, place: str | os.PathLike) -> None:
    require_names(table["image_id"])
    keys = table["image_id"].map(image_key)
    doubled = sorted(table.loc[keys.duplicated(keep=False), "image_id"])
    if doubled:
        raise InputError(
            f"The names of images in {place} must be unique.\n"
            f"Received twice, but for letter case and the like: {listed(doubled)}.\n"
            "Remove or rename the copies."
        )


def list_photos(
    data_dir: str | os.PathLike,
    images: str | os.PathLike | None = None,
    mpp: float | None = None,
    all_classes: bool = True,
) -> pd.DataFrame:
    """The photos to train on: those of a table, or Part A of the challenge data.

    Args:
        data_dir: As in `find_data`.
        images: CSV with the columns `path` (relative ones from where the table lies) and
            `label` (a class or its number), and if wanted `image_id` (else the name of the
            file), `patient`, and `mpp`, um per px where it is not that of the task; or None.
        mpp: As in `find_data`; goes before the table's.
        all_classes: There must be photos of every class.

    Returns:
        Table of images, as `find_data` has it.

    Raises:
        InputError: If there is no photo of a class, a label is none, a file is not there, or an
            image id occurs twice.
    """
    if images is None:
        return list_images(data_dir, "A", mpp=mpp, all_classes=all_classes)
    given = name_patients(read_table(images, ["path", "label"]), images)
    _name_unread(given, [*_OF_TABLE, "mpp"], images)
    rows = [given[name] if name in given else [""] * len(given) for name in _OF_TABLE]
    faults, table = [], []
    scales = _stated_scales(given, Path(images))
    for path, label, name, patient, scale in zip(*rows, scales, strict=True):
        file = Path(images).parent / path
        known, size = read_class(label), (0, 0)
        if known is None:
            faults.append(f"{path}: {label!r} is no class")
        elif not file.is_file():
            faults.append(f"{path}: not there")
        else:
            size = _photo_size(file)
        stated = mpp or (None if np.isnan(scale) else scale)
        name = name.strip() or file.stem
        patient = patient_name(patient) or task().patient_of(name)
        row = (name, str(file), "A", known, patient, *size)
        table.append((*row, _photo_mpp(*size, stated)))
    result = pd.DataFrame(table, columns=COLUMNS)
    faults += [
        f"no photo of {name}"
        for label, name in enumerate(task().classes)
        if all_classes and not (result["label"] == label).any()
    ]
    if faults:
        raise InputError(
            f"Every row of {images} must name a photo and its class; every class must have one.\n"
            f"Received: {listed(faults)}.\n"
            f"The classes are {', '.join(task().classes)}; other ones make another --task."
        )
    _check_names(result, images)
    return result


def photos_of(
    record: Mapping[str, Any], data_dir: str | os.PathLike | None
) -> dict[str, tuple[str, float]]:
    """Path and um per px of the photos that a run of step 1 was trained on, by their ids.

    Args:
        record: What its `run.json` says.
        data_dir: Where the challenge data lie now.

    Raises:
        InputError: If they are not there any more.
    """
    arguments = record.get("arguments", {})
    images = arguments.get("images")
    place = None if images is None else Path(record.get("folder", "."), images)
    table = list_photos(data_dir or "", place, arguments.get("mpp"), all_classes=False)
    pairs = zip(table["path"], photo_scales(table), strict=True)
    return dict(zip(table["image_id"], pairs, strict=True))


def list_slides(places: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """The slides that are named one by one, by their folder, or in a table.

    Args:
        places: Slides; folders, whose slides are taken (not those of folders in them); and
            tables, `.csv`, with the column `path` (relative ones from where the table lies)
            and, if wanted, `image_id`, what the results are called, and `mpp`, the slide's um
            per level-0 px.

    Returns:
        Table of `image_id`, `path`, `part` (empty) and `mpp` (nan where not said).

    Raises:
        InputError: If a folder has no slide, or a table cannot be read.
    """
    rows: list[tuple[str, str, float]] = []
    for place in map(Path, places):
        if place.suffix.lower() == ".csv":
            rows += _slide_table(place)
            continue
        files = _files(place, SLIDE_SUFFIXES) if place.is_dir() else [place]
        if not files:
            raise InputError(
                f"A folder of slides must hold slides ({', '.join(SLIDE_SUFFIXES)}).\n"
                f"Received: {place}, which holds none.\nName the slides, or their folder."
            )
        rows += [(path.stem, str(path), math.nan) for path in files]
    table = pd.DataFrame(rows, columns=["image_id", "path", "mpp"])
    return table.assign(part="", mpp=table["mpp"].astype(float))


def require_apart(table: pd.DataFrame) -> pd.DataFrame:
    """A table of slides, if results can be named after them.

    Raises:
        InputError: If a name cannot stand in tables, or two slides have the same.
    """
    require_names(table["image_id"])
    keys = table["image_id"].map(image_key)
    if keys.duplicated().any():
        raise InputError(
            "Slides must have different names, since the results are named after them.\n"
            f"Received twice: {listed(table.loc[keys.duplicated(), 'image_id'])}. Rename one, or "
            "use two runs."
        )
    return table


def _slide_table(path: Path) -> list[tuple[str, str, float]]:
    table = read_table(path, ["path"])
    if table.empty:
        raise InputError(
            f"A table of slides must name slides.\nReceived: {path}, which has no row.\n"
            "Name one slide in every row, in the column path."
        )
    _name_unread(table, ["path", "image_id", "mpp"], path)
    files = [str(path.parent / name) for name in table["path"]]
    given = table["image_id"] if "image_id" in table else pd.Series("", table.index)
    names = [own.strip() or Path(file).stem for own, file in zip(given, files, strict=True)]
    return list(zip(names, files, _stated_scales(table, path), strict=True))


def _name_unread(table: pd.DataFrame, read: Collection[str], path: object) -> None:
    """Name the columns of a table that nothing reads: one may be a scale or a patient."""
    others = [name for name in table.columns if name not in read]
    if others:
        log.warning("%s: columns that nothing reads: %s", path, listed(others))


def _stated_scales(table: pd.DataFrame, path: Path) -> list[float]:
    """The column mpp of a table of text, nan where it says nothing."""
    stated = table["mpp"].str.strip() if "mpp" in table else pd.Series("", table.index)
    numbers = as_numbers(table.assign(mpp=stated)[stated != ""], ["mpp"], path)["mpp"]
    return numbers.map(check_mpp).reindex(table.index).astype(float).to_list()


def annotated(slides: Iterable[str | os.PathLike]) -> list[bool]:
    """Which slides have an annotation file beside them, whatever is in it."""
    paths = list(map(Path, slides))
    folders = folders_of(paths)
    return [bool(folders[path.parent].files(path)) for path in paths]


def check_annotation_files(
    slides: Sequence[str | os.PathLike], class_map: str | os.PathLike | None = None
) -> None:
    """Look at the annotation files of slides before the slow work starts.

    A file that belongs to no slide is a warning in the log.

    Args:
        slides: The slides.
        class_map: As in `bach.annotations.read_regions`.

    Raises:
        InputError: If the class map cannot be read.
    """
    if class_map is not None:
        read_class_map_file(class_map)
    for folder in folders_of(slides).values():
        for line in folder.strays():
            log.warning("%s", line)


def slide_names(data_dir: str | os.PathLike) -> list[str]:
    """Names of all slides of the challenge data, annotated or not."""
    table = find_data(data_dir)
    return table.loc[table["part"].isin(["B", "B-test"]), "image_id"].tolist()


def read_photo(path: str | os.PathLike, mpp: float | None = None) -> np.ndarray:
    """Decode a photo at the task's scale, BACH's 0.42 um/px: uint8 `(height, width, 3)`, RGB.

    Args:
        path: The photo.
        mpp: um per px of the file, None for that of the task; at another one it is shrunk by
            area averaging or enlarged, the same in both directions.

    Raises:
        InputError: If it is damaged or is not 8-bit colour. A large part of one colour is
            a warning in the log.
    """
    photo = read_rgb(path, _REMEDY, modes=("RGB", "RGBA", "P"), most=_PHOTO_PIXELS)
    lost = one_color(photo)
    if lost:
        log.warning("%s: %s", path, lost)
    return scaled(photo, mpp)


def scaled(photo: np.ndarray, mpp: float | None) -> np.ndarray:
    """A photo at the scale of the task, by `mpp`, um per px of it; see `read_photo`."""
    if mpp is None or mpp == task().photo_mpp:
        return photo
    size = _scaled(photo.shape[1], photo.shape[0], mpp)
    how = cv2.INTER_AREA if mpp < task().photo_mpp else cv2.INTER_LINEAR
    return cv2.resize(photo, size, interpolation=how)


def photo_sizes(images: pd.DataFrame, least: int = 0) -> np.ndarray:
    """Width and height of photos at 0.42 um/px, int `(n, 2)`.

    Args:
        images: Table with `path, width, height`, and `mpp` as `find_data` has it; without
            that column, all are at 0.42 um/px.
        least: Width and height that they must have.

    Raises:
        InputError: If nobody states the scale of a photo, or one is too small or too large.
            One that cannot be read is refused for that.
    """
    sizes = []
    scales = images["mpp"] if "mpp" in images else pd.Series(task().photo_mpp, images.index)
    columns = images["path"], images["width"], images["height"], scales
    for path, width, height, scale in zip(*columns, strict=True):
        if not width:
            read_header(path, _REMEDY)
        # Too small is said first, for that is wrong at the challenge's scale.
        size = _scaled(width, height, task().photo_mpp if np.isnan(scale) else scale)
        if min(size) < least:
            raise InputError(
                f"Photos must be at least {least} px wide and high at {task().photo_mpp} um/px.\n"
                f"Received: {path}, {width}x{height} px"
                + (".\n" if np.isnan(scale) else f" at {scale:g} um/px.\n")
                + "State their scale with --mpp if it is another one; `python -m bach.data` lists "
                "all photos of another size."
            )
        if np.isnan(scale):
            raise InputError(
                f"Photos that are not {photo_size()} px must have a stated scale.\n"
                f"Received: {path}, {width}x{height} px.\n"
                f"State it with --mpp in um per px, {task().photo_mpp} if they were not resized; "
                "`python -m bach.data` lists all such photos."
            )
        if size[0] * size[1] > _PHOTO_PIXELS:
            raise InputError(
                f"Photos must have at most {_PHOTO_PIXELS / 1e6:.0f} million px at "
                f"{task().photo_mpp} um/px.\n"
                f"Received: {path}, {width}x{height} px at {scale:g} um/px.\n"
                "Use make_heatmap.py for slides; or correct --mpp."
            )
        sizes.append(size)
    return np.array(sizes, int).reshape(-1, 2)


def photo_scales(images: pd.DataFrame) -> list[float]:
    """um per px of every photo: given, or that of the task."""
    given = images["mpp"] if "mpp" in images else pd.Series(np.nan, images.index)
    return given.fillna(task().photo_mpp).astype(float).to_list()


def _photo_mpp(width: int, height: int, given: float | None = None) -> float:
    """um per px of a photo: given, or the challenge's where the size is; else nan."""
    if given is not None:
        return check_mpp(given)
    return task().photo_mpp if knows_scale(width, height) or not width else np.nan


def knows_scale(width: int, height: int) -> bool:
    """Whether a photo of this size, in px, lying or standing, is at the task's scale unsaid."""
    size = task().photo_size_px
    return size is None or (width, height) in (size, size[::-1])


def photo_size() -> str:
    """The size of photos whose scale nobody need state, for messages."""
    return "x".join(map(str, task().photo_size_px or ()))


def _scaled(width: int, height: int, mpp: float) -> tuple[int, int]:
    """Size of a photo in px of 0.42 um."""
    factor = mpp / task().photo_mpp
    return max(1, round(width * factor)), max(1, round(height * factor))


def check_data(
    data_dir: str | os.PathLike,
    class_map: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Open and check every file of the challenge data, or every photo of a table.

    Args:
        data_dir: As in `find_data`.
        class_map: What names of classes in annotations mean, as in
            `bach.annotations.read_regions`.
        images: As in `list_photos`; in place of the folder.

    Returns:
        The table of `find_data`, and one line for each problem: unreadable or
        truncated files, unexpected sizes and modes, labels that disagree between
        folder, file name and ground-truth CSV, exact and near duplicates, slides
        without scale, annotations that cannot be read or do not lie on their slide,
        and files that look like annotations and are read for no slide.

    Raises:
        InputError: If there is no challenge data in the folder, or the class map
            cannot be read; as `list_photos`.
    """
    checked = _check(data_dir, class_map, images)
    return checked.table, checked.problems


class _Checked(NamedTuple):
    """What a look at all data gives; `sums` are the annotations' by the name of the slide.

    `notes` say what is odd about slides that are used all the same.
    """

    table: pd.DataFrame
    problems: list[str]
    sums: dict[str, AnnotationSummary]
    notes: list[str]


def _check(
    data_dir: str | os.PathLike,
    class_map: str | os.PathLike | None,
    images: str | os.PathLike | None = None,
) -> _Checked:
    if class_map is not None:
        read_class_map_file(class_map)
    table = find_data(data_dir) if images is None else list_photos(data_dir, images)
    some = table[table["part"].isin(["A", "A-test"])]
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        checked = pool.map(_check_photo, some["path"], some["mpp"])
        photos = list(tqdm(checked, total=len(some), desc="photos", disable=None))
    problems = [problem for photo in photos for problem in photo.problems]
    problems += _name_problems(table[table["part"] == "A"])
    if images is not None:
        return _Checked(table, problems + _duplicates(photos), {}, [])
    problems += _ground_truth_problems(Path(data_dir), table[table["part"] == "A"])
    problems += _duplicates(photos)
    problems += _unread(Path(data_dir), table[table["part"] == "A"])
    slides = table.loc[table["part"].isin(["B", "B-test"]), "path"]
    folders, sums, notes = folders_of(slides), {}, []
    alike: dict[str, list[str]] = {}
    for root in filter(None, _roots(Path(data_dir))):
        folders.setdefault(root / "WSI", Folder(root / "WSI"))  # without a slide
    for path in tqdm(slides, desc="slides", disable=None):
        looked = _check_slide(path, folders[Path(path).parent], class_map)
        notes += looked.notes
        problems += looked.problems
        if looked.digest:
            alike.setdefault(looked.digest, []).append(path)
        if looked.summary is not None:
            sums[Path(path).stem] = looked.summary
    notes += [
        f"slides that look exactly alike: {' and '.join(copies)}; copies must be in one fold"
        for copies in alike.values()
        if len(copies) > 1
    ]
    problems += [line for folder in folders.values() for line in folder.strays()]
    problems += _misplaced(Path(data_dir), slides.tolist())
    problems += _unread_slides(Path(data_dir))
    for name, path in zip(table["image_id"], table["path"], strict=True):
        if name_fault(name):
            problems.append(f"{path!r}: its name has {name_fault(name)}; rename it")
    keys = table["image_id"].map(image_key)
    for image_id, copies in table[keys.duplicated(keep=False)].groupby(keys)["path"]:
        problems.append(f"image id {image_id} stands for several files: {', '.join(copies)}")
    return _Checked(table, problems, sums, notes)


def _roots(data_dir: Path) -> tuple[Path | None, Path | None]:
    """The folders of the training and the test set, each None if absent."""
    if data_dir.name == TEST_FOLDER:
        return None, data_dir  # asked for the test set alone

    def inside(name: str) -> Path | None:
        # An archive that is unpacked into a folder of its name makes two.
        return next((p for p in (data_dir / name / name, data_dir / name) if p.is_dir()), None)

    train, test = inside(TRAIN_FOLDER), inside(TEST_FOLDER)
    own = data_dir.name == TRAIN_FOLDER
    own = own or any(
        (data_dir / child).is_dir() for child in (f"Photos/{task().classes[0]}", "WSI")
    )
    if train is None and own:
        train = data_dir  # perhaps under another name; then the test set lies beside
        beside = data_dir.parent / TEST_FOLDER
        test = test or (beside if beside.is_dir() else None)
    return train, test


def _class_folders(photos: Path, label: int) -> list[Path]:
    """The folders of a class, whatever the case and spelling of their names; one is right."""
    folders = sorted(photos.iterdir()) if photos.is_dir() else []
    return [path for path in folders if path.is_dir() and task().parse_label(path.name) == label]


def _check_classes(data_dir: str | os.PathLike, photos: pd.DataFrame, needed: bool) -> None:
    """Say what is wrong with the classes of Part A, and what nothing reads.

    Raises:
        InputError: If all classes are needed and one has no photos, or two folders.
    """
    lines = _unread(Path(data_dir), photos)
    absent = [
        name for label, name in enumerate(task().classes) if not (photos["label"] == label).any()
    ]
    train, _ = _roots(Path(data_dir))
    folders = [
        _class_folders(train / "Photos", label) if train else [] for label in range(task().count)
    ]
    if needed and (absent or any(len(named) > 1 for named in folders)):
        raise InputError(
            f"Part A in {data_dir} must have one folder of photos for every class.\n"
            f"Received: {'; '.join(lines)}.\n"
            f"Name the folders {', '.join(task().classes)}, with the photos right in them."
        )
    for line in lines:
        log.warning("%s", line)


def _unread(data_dir: Path, photos: pd.DataFrame) -> list[str]:
    """Classes without photos, and folders and files of Part A that nothing reads."""
    train, test = _roots(data_dir)
    lines = []
    root = train / "Photos" if train is not None else None
    if root is not None and root.is_dir():
        counts = [int((photos["label"] == label).sum()) for label in range(task().count)]
        lines += [
            f"{root}: no photos of {name}"
            for name, count in zip(task().classes, counts, strict=True)
            if not count
        ]
        read = []
        for folders in filter(None, (_class_folders(root, label) for label in range(task().count))):
            first, *more = folders
            read.append(first)
            lines += _strays(first)
            lines += [f"{path}: read by nothing; {first} is of the same class" for path in more]
        others = [path for path in sorted(root.iterdir()) if path.is_dir() and path not in read]
        lines += [
            f"{path}: read by nothing; its name is no class"
            for path in others
            if task().parse_label(path.name) is None and not path.name.startswith(".")
        ]
        loose = _files(root, PHOTO_SUFFIXES)
        if loose:
            lines.append(
                f"{root}: {len(loose)} photos lie beside the class folders, read by nothing"
            )
    if test is not None and (test / "Photos").is_dir():
        lines += _strays(test / "Photos")
    return lines


def _unread_slides(data_dir: Path) -> list[str]:
    """What looks like a slide and is read by nothing."""
    lines = []
    for root in filter(None, _roots(data_dir)):
        folder = root / "WSI"
        names = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in names:
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in SLIDE_SUFFIXES and not path.is_file():
                lines.append(f"{path}: read by nothing; it is no file")
            elif path.suffix.lower() in _UNFINISHED and path.is_file():
                lines.append(f"{path}: read by nothing; its download or unpacking is not finished")
            elif path.is_dir() and not path.with_suffix(".mrxs").is_file():
                inside = _files(path, SLIDE_SUFFIXES)
                if inside:
                    lines.append(
                        f"{path}: {len(inside)} slides are read by nothing; they must lie right in "
                        f"{folder}"
                    )
    return lines


def _strays(folder: Path) -> list[str]:
    """Folders in a folder of photos, and files that are none."""
    lines, others = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")) or path.suffix.lower() in _BESIDE:
            continue
        if path.is_dir():
            lines.append(f"{path}: read by nothing; photos must lie right in {folder}")
        elif path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
            others.append(path.name)
    if others:
        lines.append(f"{folder}: read by nothing: {listed(others)}")
    return lines


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    return sorted(found, key=natural_key)


def natural_key(path: str | os.PathLike) -> list:
    """Sort key under which test2 comes before test10."""
    parts = re.split(r"(\d+)", Path(path).name.lower())
    return [int(part) if part.isdecimal() else part for part in parts]


def _photo_size(path: Path) -> tuple[int, int]:
    try:
        header = read_header(path, _REMEDY)
    except InputError:
        return 0, 0
    return header.width, header.height


class _Photo(NamedTuple):
    """What a look at a photo gives: a hash of its pixels and a 32x24 brightness raster.

    The raster has mean 0 and norm 1; None where the photo cannot be read.
    """

    path: str
    problems: list[str]
    digest: str = ""
    raster: np.ndarray | None = None


def _check_photo(path: str, mpp: float) -> _Photo:
    try:
        pixels = read_photo(path)
        problems = [f"{path}: {remark}" for remark in remarks(path, _REMEDY)]
    except InputError as error:
        return _Photo(path, [_in_a_line(error)])
    height, width = pixels.shape[:2]
    if np.isnan(mpp):
        problems.append(
            f"{path}: {width}x{height} px instead of {photo_size()}; its scale is not known to be "
            f"{task().photo_mpp} um/px: state it with --mpp, or in the mpp of a table"
        )
    gray = Image.fromarray(pixels).convert("L").resize((32, 24), Image.Resampling.BOX)
    raster = np.asarray(gray, np.float32)
    raster = raster - raster.mean()
    if raster.std() < 1:
        problems.append(f"{path}: the image is blank")
    elif one_color(pixels):
        problems.append(f"{path}: {one_color(pixels)}")
    raster /= np.linalg.norm(raster) + 1e-6
    return _Photo(path, problems, hashlib.sha256(pixels.tobytes()).hexdigest(), raster.ravel())


def _name_problems(photos: pd.DataFrame) -> list[str]:
    """Where the name of a photo begins as another class's."""
    problems = []
    for row in photos.itertuples():
        prefix = re.split("[^a-z]", row.image_id.lower())[0]
        if prefix and prefix in task().prefixes and task().prefixes.index(prefix) != row.label:
            named = task().classes[task().prefixes.index(prefix)]
            problems.append(
                f"{row.path}: the name says {named}, the folder {task().classes[row.label]}"
            )
    return problems


def _ground_truth_problems(data_dir: Path, photos: pd.DataFrame) -> list[str]:
    """Where folder and ground truth disagree about the class of a photo."""
    train, _ = _roots(data_dir)
    if train is None or photos.empty:
        return []
    file = train / "Photos" / GROUND_TRUTH
    if not file.exists():  # the challenge BACH has one
        return [f"{file}: missing; labels are those of the folders"] if task() is BACH else []
    try:
        stated, problems = _read_ground_truth(file)
    except InputError as error:
        return [_in_a_line(error)]
    ids = photos["image_id"].map(image_key)
    for key, path, label in zip(ids, photos["path"], photos["label"], strict=True):
        if key not in stated:
            problems.append(f"{path}: not in {GROUND_TRUTH}")
        elif stated[key] != label:
            said = task().classes[stated[key]]
            problems.append(
                f"{path}: {GROUND_TRUTH} says {said}, the folder {task().classes[label]}"
            )
    absent = sorted(stated.keys() - set(ids))
    return problems + [f"{GROUND_TRUTH} lists {key}, which is not on disk" for key in absent]


def _read_ground_truth(file: Path) -> tuple[dict[str, int], list[str]]:
    """Labels by `image_key`, and the rows that name no class."""
    stated, problems = {}, []
    for row, cells in enumerate(read_table(file, header=False).to_numpy().tolist(), start=1):
        label = task().parse_label(cells[1]) if len(cells) > 1 else None
        if label is not None:
            stated[image_key(cells[0])] = label
        elif row > 1 or len(cells) < 2:  # the first row may be a header
            problems.append(f"{file}, row {row}: no class in {','.join(cells)!r}")
    return stated, problems


def _duplicates(photos: list[_Photo]) -> list[str]:
    known = [(photo, photo.raster) for photo in photos if photo.raster is not None]
    if len(known) < 2:
        return []
    rasters = np.stack([raster for _, raster in known])
    alike = np.triu(rasters @ rasters.T, k=1)
    problems = []
    for i, j in np.argwhere(alike > _NEAR_DUPLICATE):
        one, other = known[i][0], known[j][0]
        same = one.digest == other.digest
        kind = "exact duplicates" if same else f"near duplicates (correlation {alike[i, j]:.3f})"
        problems.append(f"{kind}: {one.path} and {other.path}")
    return problems


class _SlideLook(NamedTuple):
    """What a look at a slide gives: problems, the annotation's sum, what is odd, and a hash of
    a first look at its pixels, "" where they cannot be read."""

    problems: list[str]
    summary: AnnotationSummary | None
    notes: list[str]
    digest: str


def _check_slide(path: str, folder: Folder, class_map: str | os.PathLike | None) -> _SlideLook:
    problems: list[str] = []
    notes: list[str] = []
    annotation, summary, digest = None, None, ""
    try:
        annotation = folder.only(path)
    except InputError as error:
        problems.append(_in_a_line(error))
    try:
        with Slide(path) as slide:
            # Whatever is wrong with the pixels, the annotation is looked at.
            try:
                slide.check()
                glance = slide.glance()
                digest = hashlib.sha256(glance.tobytes()).hexdigest() if np.ptp(glance) else ""
                verdict = judge(glance)
                problems += [f"{path}: {reason}" for reason in verdict.impossible]
                notes = [f"{path}: {reason}" for reason in verdict.doubtful]
                missing = slide.missing_tiles()
                if missing:
                    problems.append(f"{path}: {missing:.1%} of its tiles hold no data")
            except InputError as error:
                problems.append(_in_a_line(error))
            if annotation is not None:
                downsample = map_downsample(slide.mpp)
                _, summary = slide_labels(annotation, slide, downsample, class_map)
    except InputError as error:
        problems.append(_in_a_line(error))
        if annotation is not None and str(annotation) not in str(error):  # the slide's own fault
            try:
                read_annotation(annotation, class_map)
            except InputError as other:
                problems.append(_in_a_line(other))
    if summary is not None:
        problems += [f"{annotation}: {line}" for line in summary.problems]
    return _SlideLook(problems, summary, notes, digest)


def _misplaced(data_dir: Path, slides: list[str]) -> list[str]:
    """Annotations in other folders than their slides, where nothing looks for them."""
    with_none = {
        image_key(slide) for slide, has in zip(slides, annotated(slides), strict=True) if not has
    }
    lines = []
    for root in filter(None, _roots(data_dir)):
        beside = {Path(slide).parent for slide in slides}
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() not in ENDINGS or path.parent in beside:
                continue
            if image_key(path.stem) in with_none or beside & set(path.parents):
                lines.append(f"{path}: is not read; an annotation must lie beside its slide")
    return lines


def _in_a_line(error: InputError) -> str:
    return str(error).replace("\n", " ")


def _sums_table(sums: dict[str, AnnotationSummary]) -> str:
    """The sums of annotations, a row per slide."""
    header = ["slide", "annotation", "regions", "painted", "holes"]
    header += [f"{name} mm2" for name in task().classes] + ["beyond the slide"]
    rows = [
        [name, sum_.file, sum_.regions, sum_.painted, sum_.holes]
        + [number(sum_.mm2[label]) for label in task().classes]
        + [f"{sum_.outside:.1%}"]
        for name, sum_ in sums.items()
    ]
    lines = [columns(header, rows)]
    for name, sum_ in sums.items():
        if sum_.skipped:
            lines.append(f"{name}: left out: {reasons(sum_.skipped)}")
        lines += [f"{name}: {note}" for note in sum_.notes]
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["download"]:
        return download.parse_args(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bach.data",
        description="Find the challenge data on disk and check it.",
        epilog="To download it first: python -m bach.data download DIR (see its --help).",
    )
    parser.add_argument("data_dir", nargs="?", help="folder of the challenge data")
    options.add(parser, Options)
    args = parser.parse_args(words)
    if (args.data_dir is None) == (args.images is None):
        parser.error("name the folder of the data, or the table of photos with --images")
    use(args.task)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if hasattr(args, "accept_licence"):
        download.run(args)
    table, problems, sums, notes = _check(args.data_dir or "", args.class_map, args.images)
    rows = []
    for part, images in table.groupby("part"):
        if part == "A":
            counts = [int((images["label"] == label).sum()) for label in range(task().count)]
            rows += [
                (part, name, count) for name, count in zip(task().classes, counts, strict=True)
            ]
        else:
            count = sum(annotated(images["path"]))
            rows.append((part, f"{count} annotated" if part == "B" else "-", len(images)))
    print(columns(("part", "class", "images"), rows))
    if sums:
        print(f"\n{_sums_table(sums)}\n")
    for note in notes:
        print(f"note: {note}")
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(table)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    exit_with(main)
