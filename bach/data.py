"""Find the challenge data on disk and check it.

    python -m bach.data data/BACH

prints counts a class and every problem found, and exits with 1 if there is any.
"""

import argparse
import concurrent.futures
import csv
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from bach.annotations import annotation_mpp, annotation_path, read_regions
from bach.classes import CLASSES, PREFIXES, parse_label
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.pictures import read_header, read_rgb
from bach.slides import PART_A_MPP, PHOTO_SUFFIXES, SLIDE_SUFFIXES, Slide

TRAIN_FOLDER = "ICIAR2018_BACH_Challenge"
TEST_FOLDER = "ICIAR2018_BACH_Challenge_TestDataset"
GROUND_TRUTH = "microscopy_ground_truth.csv"

PHOTO_WIDTH, PHOTO_HEIGHT = 2048, 1536

COLUMNS = ["image_id", "path", "part", "label", "patient", "width", "height", "mpp"]

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
    rows = []
    if train is not None:
        for label, name in enumerate(CLASSES):
            for path in _files(_child(train / "Photos", name), PHOTO_SUFFIXES):
                rows.append((path, "A", label))
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
    """The images of one part, naturally sorted; the first `limit` a class, if given.

    Args:
        data_dir: As in `find_data`.
        name: "A", "B", "A-test" or "B-test". "B" lists annotated slides only.
        limit: Images a class to keep, or slides.

    Raises:
        InputError: If the part is missing, or an image id occurs twice.
    """
    table = find_data(data_dir)
    table = table[table["part"] == name]
    if name == "B":
        table = table[[annotation_path(path) is not None for path in table["path"]]]
    if table.empty:
        what = {"A": "Part A photos", "B": "annotated Part B slides"}.get(name, f"{name} images")
        raise InputError(
            f"No {what} in {data_dir}.\nReceived: --data-dir={data_dir}.\n"
            f"`python -m bach.data {data_dir}` lists what is there."
        )
    doubled = sorted(table.loc[table["image_id"].duplicated(), "image_id"])
    if doubled:
        raise InputError(
            f"Image ids must be unique. Received twice: {', '.join(doubled[:10])}.\n"
            "Remove or rename the copies."
        )
    if limit is not None:
        table = table.groupby("label", sort=True).head(limit)
    return table.reset_index(drop=True)


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Decode a photo: uint8 `(height, width, 3)`, RGB.

    Raises:
        InputError: If it is damaged or is not 8-bit colour.
    """
    return read_rgb(path, _REMEDY, modes=("RGB", "RGBA", "P"))


def check_data(data_dir: str | os.PathLike) -> tuple[pd.DataFrame, list[str]]:
    """Open and check every file of the challenge data.

    Returns:
        The table of `find_data`, and one line for each problem: unreadable or
        truncated files, unexpected sizes and modes, labels that disagree between
        folder, file name and ground-truth CSV, exact and near duplicates, slides
        without scale, and annotations that cannot be read.

    Raises:
        InputError: If there is no challenge data in the folder.
    """
    table = find_data(data_dir)
    problems = []
    photos = table[table["part"].isin(["A", "A-test"])]
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        results = list(
            tqdm(
                pool.map(_check_photo, photos["path"]),
                total=len(photos), desc="photos", disable=None,
            )
        )  # fmt: skip
    for _, _, problem in results:
        problems += problem
    problems += _label_problems(data_dir, table)
    problems += _duplicates(photos["path"].tolist(), results)
    slides = table[table["part"].isin(["B", "B-test"])]
    for row in tqdm(slides.itertuples(), total=len(slides), desc="slides", disable=None):
        problems += _check_slide(row.path)
    doubled = table[table["image_id"].duplicated(keep=False)].groupby("image_id")["path"]
    for image_id, paths in doubled:
        problems.append(f"image id {image_id} stands for several files: {', '.join(paths)}")
    return table, problems


def _roots(data_dir: Path) -> tuple[Path | None, Path | None]:
    """The folders of the training and the test set, each None if absent."""

    def find(name: str, inside: tuple[str, ...]) -> Path | None:
        candidates = [data_dir] if data_dir.name == name else []
        candidates += [data_dir / name, data_dir / name / name, data_dir.parent / name]
        # data_dir may be the challenge folder under another name.
        if any((data_dir / child).is_dir() for child in inside):
            candidates.append(data_dir)
        return next((path for path in candidates if path.is_dir()), None)

    train = find(TRAIN_FOLDER, (f"Photos/{CLASSES[0]}", "WSI"))
    beside = train is not None and train == data_dir
    test = find(TEST_FOLDER, ()) if beside or data_dir.name == TEST_FOLDER else None
    test = test or next(
        (p for p in (data_dir / TEST_FOLDER, data_dir / TEST_FOLDER / TEST_FOLDER) if p.is_dir()),
        None,
    )
    if train is not None and data_dir.name == TEST_FOLDER and train != data_dir:
        train = None  # asked for the test set alone
    return train, test


def _child(folder: Path, name: str) -> Path:
    """A class folder, whatever the case and spelling of its name."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and parse_label(path.name) == CLASSES.index(name):
                return path
    return folder / name


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


def _check_photo(path: str) -> tuple[str | None, np.ndarray | None, list[str]]:
    """A hash of the pixels, a 32x24 brightness raster, and the problems of a photo."""
    try:
        pixels = read_photo(path)
    except InputError as error:
        return None, None, [str(error).replace("\n", " ")]
    problems = []
    height, width = pixels.shape[:2]
    if (width, height) != (PHOTO_WIDTH, PHOTO_HEIGHT):
        problems.append(
            f"{path}: {width}x{height} px instead of {PHOTO_WIDTH}x{PHOTO_HEIGHT}; "
            "if it was resized, its scale is no longer 0.42 um/px"
        )
    mode = read_header(path, _REMEDY).mode
    if mode != "RGB":
        problems.append(f"{path}: mode {mode} instead of 8-bit RGB")
    gray = Image.fromarray(pixels).convert("L")
    raster = np.asarray(gray.resize((32, 24), Image.Resampling.BOX), np.float32)
    raster = raster - raster.mean()
    if raster.std() < 1:
        problems.append(f"{path}: the image is blank")
    raster /= np.linalg.norm(raster) + 1e-6
    return hashlib.sha256(pixels.tobytes()).hexdigest(), raster.ravel(), problems


def _label_problems(data_dir, table: pd.DataFrame) -> list[str]:
    photos = table[table["part"] == "A"]
    problems = []
    for row in photos.itertuples():
        prefix = re.match(r"[a-z]*", row.image_id.lower()).group()
        if prefix in PREFIXES and PREFIXES.index(prefix) != row.label:
            problems.append(
                f"{row.path}: the name says {CLASSES[PREFIXES.index(prefix)]}, "
                f"the folder {CLASSES[row.label]}"
            )
    train, _ = _roots(Path(data_dir))
    if train is None or photos.empty:
        return problems
    file = train / "Photos" / GROUND_TRUTH
    if not file.exists():
        return [*problems, f"{file}: missing; labels are those of the folders"]
    stated = {}
    with file.open(newline="") as lines:
        for number, line in enumerate(csv.reader(lines), start=1):
            if not line or (number == 1 and len(line) > 1 and parse_label(line[1]) is None):
                continue  # an empty line, or a header
            label = parse_label(line[1]) if len(line) > 1 else None
            if label is None:
                problems.append(f"{file}, line {number}: no class in {','.join(line)!r}")
            else:
                stated[Path(line[0]).stem] = label
    for row in photos.itertuples():
        if row.image_id not in stated:
            problems.append(f"{row.path}: not in {GROUND_TRUTH}")
        elif stated[row.image_id] != row.label:
            problems.append(
                f"{row.path}: {GROUND_TRUTH} says {CLASSES[stated[row.image_id]]}, "
                f"the folder {CLASSES[row.label]}"
            )
    for image_id in sorted(stated.keys() - set(photos["image_id"])):
        problems.append(f"{GROUND_TRUTH} lists {image_id}, which is not on disk")
    return problems


def _duplicates(paths: list[str], results: list) -> list[str]:
    known = [(path, *result[:2]) for path, result in zip(paths, results, strict=True) if result[0]]
    if len(known) < 2:
        return []
    rasters = np.stack([raster for _, _, raster in known])
    alike = np.triu(rasters @ rasters.T, k=1)
    problems = []
    for i, j in np.argwhere(alike > _NEAR_DUPLICATE):
        same = known[i][1] == known[j][1]
        kind = "exact duplicates" if same else f"near duplicates (correlation {alike[i, j]:.3f})"
        problems.append(f"{kind}: {known[i][0]} and {known[j][0]}")
    return problems


def _check_slide(path: str) -> list[str]:
    problems = []
    mpp = None
    try:
        with Slide(path) as slide:
            slide.check()
            mpp = slide.mpp
    except InputError as error:
        problems.append(str(error).replace("\n", " "))
    annotation = annotation_path(path)
    if annotation is not None:
        try:
            regions = read_regions(annotation)
            if not regions:
                problems.append(f"{annotation}: holds no region; all of the slide counts as Normal")
            stated = annotation_mpp(annotation)
            if stated and mpp and abs(stated - mpp) > 0.02 * mpp:
                problems.append(f"{annotation}: made at {stated} um/px, the slide has {mpp}")
        except InputError as error:
            problems.append(str(error).replace("\n", " "))
    return problems


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.data", description=__doc__.splitlines()[0]
    )
    parser.add_argument("data_dir", help="folder of the challenge data")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    table, problems = check_data(args.data_dir)
    print(f"{'part':8}{'class':10}{'images':>7}")
    for name, group in table.groupby("part"):
        if name == "A":
            for label, images in group.groupby("label"):
                print(f"{name:8}{CLASSES[label]:10}{len(images):7}")
        else:
            annotated = sum(annotation_path(path) is not None for path in group["path"])
            note = f"{annotated} annotated" if name == "B" else ""
            print(f"{name:8}{note or '-':10}{len(group):7}")
    for problem in problems:
        print(f"problem: {problem}")
    log.info("%d files, %d problems", len(table), len(problems))
    print(f"{len(table)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    exit_with(main)
