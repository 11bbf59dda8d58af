"""Find the challenge data on disk and check it.

    python -m bach.data data/BACH

prints counts per class, the sum of every annotation and every problem found, and exits with 1 if
there is any problem.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from bach.annotations.checks import AnnotationSummary, slide_labels
from bach.annotations.files import ENDINGS, Folder, folders_of
from bach.annotations.regions import read_annotation, read_class_map_file, reasons
from bach.classes import CLASSES, PREFIXES, parse_label
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.pictures import read_header, read_rgb
from bach.core.tables import image_key, read_table
from bach.core.text import columns, listed, number
from bach.slides import PART_A_MPP, PHOTO_SUFFIXES, SLIDE_SUFFIXES, Slide
from bach.tissue import map_downsample

TRAIN_FOLDER = "ICIAR2018_BACH_Challenge"
TEST_FOLDER = "ICIAR2018_BACH_Challenge_TestDataset"
GROUND_TRUTH = "microscopy_ground_truth.csv"

PHOTO_WIDTH, PHOTO_HEIGHT = 2048, 1536

COLUMNS = ["image_id", "path", "part", "label", "patient", "width", "height", "mpp"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of bach.data."""

    class_map: str | None = options.again(options.Slides, "class_map", None)


_REMEDY = "Copy or unpack it again; photos are 8-bit RGB."

# Two photos whose brightness patterns on a 32x24 raster correlate more than this
# are taken for the same field. Different fields of one slide stay below 0.9.
_NEAR_DUPLICATE = 0.98


def find_data(data_dir: str | os.PathLike) -> pd.DataFrame:
    """List the challenge data under a folder.

    Args:
        data_dir: The folder that holds `ICIAR2018_BACH_Challenge` (and perhaps the
            test set beside it), or that folder itself.

    Returns:
        Table of images with the columns `image_id, path, part, label, patient,
        width, height, mpp`. `part` is "A", "B", "A-test" or "B-test"; `label` is
        0..3, or -1 where it is unknown or, for slides, varies; sizes are those of
        the file's header, 0 where it cannot be read (`check_data` says why); `mpp`
        is filled in for photos only.

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
        for label in range(len(CLASSES)):
            folder = _class_folder(train / "Photos", label)
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
        mpp = PART_A_MPP if photo else np.nan
        table.append((path.stem, str(path), part, label, "", width, height, mpp))
    return pd.DataFrame(table, columns=COLUMNS)


def list_images(data_dir: str | os.PathLike, name: str, limit: int | None = None) -> pd.DataFrame:
    """List the images of one part, sorted as people count.

    Args:
        data_dir: As in `find_data`.
        name: "A", "B", "A-test" or "B-test". "B" lists annotated slides only.
        limit: How many images per class to keep, or slides: the first ones.

    Returns:
        Table of images, as `find_data` has it.

    Raises:
        InputError: If the part is missing, or an image id occurs twice.
    """
    table = find_data(data_dir)
    table = table[table["part"] == name]
    if name == "B":
        table = table[annotated(table["path"])]
    if table.empty:
        what = {"A": "Part A photos", "B": "annotated Part B slides"}.get(name, f"{name} images")
        raise InputError(
            f"No {what} in {data_dir}.\nReceived: --data-dir={data_dir}.\n"
            f"`python -m bach.data {data_dir}` lists what is there."
        )
    doubled = sorted(table.loc[table["image_id"].duplicated(), "image_id"])
    if doubled:
        raise InputError(
            f"The names of images in {data_dir} must be unique.\n"
            f"Received twice: {listed(doubled)}.\n"
            "Remove or rename the copies."
        )
    if limit is not None:
        table = table.groupby("label", sort=True).head(limit)
    return table.reset_index(drop=True)


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


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Decode a photo: uint8 `(height, width, 3)`, RGB.

    Raises:
        InputError: If it is damaged or is not 8-bit colour.
    """
    return read_rgb(path, _REMEDY, modes=("RGB", "RGBA", "P"))


def check_data(
    data_dir: str | os.PathLike, class_map: str | os.PathLike | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Open and check every file of the challenge data.

    Args:
        data_dir: As in `find_data`.
        class_map: What names of classes in annotations mean, as in
            `bach.annotations.read_regions`.

    Returns:
        The table of `find_data`, and one line for each problem: unreadable or
        truncated files, unexpected sizes and modes, labels that disagree between
        folder, file name and ground-truth CSV, exact and near duplicates, slides
        without scale, annotations that cannot be read or do not lie on their slide,
        and files that look like annotations and are read for no slide.

    Raises:
        InputError: If there is no challenge data in the folder, or the class map
            cannot be read.
    """
    checked = _check(data_dir, class_map)
    return checked.table, checked.problems


class _Checked(NamedTuple):
    """What a look at all data gives; `sums` are the annotations' by the name of the slide."""

    table: pd.DataFrame
    problems: list[str]
    sums: dict[str, AnnotationSummary]


def _check(data_dir: str | os.PathLike, class_map: str | os.PathLike | None) -> _Checked:
    if class_map is not None:
        read_class_map_file(class_map)
    table = find_data(data_dir)
    paths = table.loc[table["part"].isin(["A", "A-test"]), "path"].tolist()
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        checked = pool.map(_check_photo, paths)
        photos = list(tqdm(checked, total=len(paths), desc="photos", disable=None))
    problems = [problem for photo in photos for problem in photo.problems]
    problems += _label_problems(Path(data_dir), table[table["part"] == "A"])
    problems += _duplicates(photos)
    slides = table.loc[table["part"].isin(["B", "B-test"]), "path"]
    folders, sums = folders_of(slides), {}
    for root in filter(None, _roots(Path(data_dir))):
        folders.setdefault(root / "WSI", Folder(root / "WSI"))  # without a slide
    for path in tqdm(slides, desc="slides", disable=None):
        found, summary = _check_slide(path, folders[Path(path).parent], class_map)
        problems += found
        if summary is not None:
            sums[Path(path).stem] = summary
    problems += [line for folder in folders.values() for line in folder.strays()]
    problems += _misplaced(Path(data_dir), slides.tolist())
    doubled = table[table["image_id"].duplicated(keep=False)].groupby("image_id")["path"]
    for image_id, copies in doubled:
        problems.append(f"image id {image_id} stands for several files: {', '.join(copies)}")
    return _Checked(table, problems, sums)


def _roots(data_dir: Path) -> tuple[Path | None, Path | None]:
    """The folders of the training and the test set, each None if absent."""
    if data_dir.name == TEST_FOLDER:
        return None, data_dir  # asked for the test set alone

    def inside(name: str) -> Path | None:
        # An archive that is unpacked into a folder of its name makes two.
        return next((p for p in (data_dir / name / name, data_dir / name) if p.is_dir()), None)

    train, test = inside(TRAIN_FOLDER), inside(TEST_FOLDER)
    own = data_dir.name == TRAIN_FOLDER
    own = own or any((data_dir / child).is_dir() for child in (f"Photos/{CLASSES[0]}", "WSI"))
    if train is None and own:
        train = data_dir  # perhaps under another name; then the test set lies beside
        beside = data_dir.parent / TEST_FOLDER
        test = test or (beside if beside.is_dir() else None)
    return train, test


def _class_folder(photos: Path, label: int) -> Path:
    """A class folder, whatever the case and spelling of its name."""
    folders = sorted(photos.iterdir()) if photos.is_dir() else []
    named = (path for path in folders if path.is_dir() and parse_label(path.name) == label)
    return next(named, photos / CLASSES[label])


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


def _check_photo(path: str) -> _Photo:
    try:
        pixels = read_photo(path)
        mode = read_header(path, _REMEDY).mode
    except InputError as error:
        return _Photo(path, [_in_a_line(error)])
    problems = []
    height, width = pixels.shape[:2]
    if (width, height) != (PHOTO_WIDTH, PHOTO_HEIGHT):
        problems.append(
            f"{path}: {width}x{height} px instead of {PHOTO_WIDTH}x{PHOTO_HEIGHT}; "
            f"if it was resized, its scale is no longer {PART_A_MPP} um/px"
        )
    if mode != "RGB":
        problems.append(f"{path}: mode {mode} instead of 8-bit RGB")
    gray = Image.fromarray(pixels).convert("L").resize((32, 24), Image.Resampling.BOX)
    raster = np.asarray(gray, np.float32)
    raster = raster - raster.mean()
    if raster.std() < 1:
        problems.append(f"{path}: the image is blank")
    raster /= np.linalg.norm(raster) + 1e-6
    return _Photo(path, problems, hashlib.sha256(pixels.tobytes()).hexdigest(), raster.ravel())


def _label_problems(data_dir: Path, photos: pd.DataFrame) -> list[str]:
    """Where folder, file name and ground truth disagree about the class of a photo."""
    problems = []
    for row in photos.itertuples():
        prefix = re.split("[^a-z]", row.image_id.lower())[0]
        if prefix in PREFIXES and PREFIXES.index(prefix) != row.label:
            named = CLASSES[PREFIXES.index(prefix)]
            problems.append(f"{row.path}: the name says {named}, the folder {CLASSES[row.label]}")
    train, _ = _roots(data_dir)
    if train is None or photos.empty:
        return problems
    file = train / "Photos" / GROUND_TRUTH
    if not file.exists():
        return [*problems, f"{file}: missing; labels are those of the folders"]
    try:
        stated, unread = _read_ground_truth(file)
    except InputError as error:
        return [*problems, _in_a_line(error)]
    problems += unread
    ids = photos["image_id"].map(image_key)
    for key, path, label in zip(ids, photos["path"], photos["label"], strict=True):
        if key not in stated:
            problems.append(f"{path}: not in {GROUND_TRUTH}")
        elif stated[key] != label:
            said = CLASSES[stated[key]]
            problems.append(f"{path}: {GROUND_TRUTH} says {said}, the folder {CLASSES[label]}")
    absent = sorted(stated.keys() - set(ids))
    return problems + [f"{GROUND_TRUTH} lists {key}, which is not on disk" for key in absent]


def _read_ground_truth(file: Path) -> tuple[dict[str, int], list[str]]:
    """Labels by `image_key`, and the rows that name no class."""
    stated, problems = {}, []
    for row, cells in enumerate(read_table(file, header=False).to_numpy().tolist(), start=1):
        label = parse_label(cells[1]) if len(cells) > 1 else None
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


def _check_slide(
    path: str, folder: Folder, class_map: str | os.PathLike | None
) -> tuple[list[str], AnnotationSummary | None]:
    """Problems of a slide and its annotation, and the sum of that."""
    problems, annotation, summary = [], None, None
    try:
        annotation = folder.only(path)
    except InputError as error:
        problems.append(_in_a_line(error))
    try:
        with Slide(path) as slide:
            # Whatever is wrong with the pixels, the annotation is looked at.
            try:
                slide.check()
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
    return problems, summary


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
    header += [f"{name} mm2" for name in CLASSES] + ["beyond the slide"]
    rows = [
        [name, sum_.file, sum_.regions, sum_.painted, sum_.holes]
        + [number(sum_.mm2[label]) for label in CLASSES]
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
    parser = argparse.ArgumentParser(
        prog="python -m bach.data", description="Find the challenge data on disk and check it."
    )
    parser.add_argument("data_dir", help="folder of the challenge data")
    options.add(parser, Options)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    table, problems, sums = _check(args.data_dir, args.class_map)
    rows = []
    for part, images in table.groupby("part"):
        if part == "A":
            counts = images["label"].value_counts(sort=False).sort_index()
            rows += [(part, CLASSES[label], count) for label, count in counts.items()]
        else:
            count = sum(annotated(images["path"]))
            rows.append((part, f"{count} annotated" if part == "B" else "-", len(images)))
    print(columns(("part", "class", "images"), rows))
    if sums:
        print(f"\n{_sums_table(sums)}\n")
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(table)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    exit_with(main)
