"""Lesion detection scores: FROC and slide AUC, as in the CAMELYON16 challenge.

    python -m bach.froc lesions runs/heatmaps --out runs/lesions
    python -m bach.froc score runs/lesions --annotations data/test --out runs/froc

`lesions` takes the maxima of a class's heatmap for lesions, and the highest of them for the
score of the slide. `score` compares such files, ours or of anyone else, with masks or
annotations: sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide, their mean, and the
area under the ROC curve of the slides' scores.

Reads    lesions: probs/*.npy and slides/*.json of a run of make_heatmap.py
         score: NAME.csv of each slide, rows confidence,x,y in level-0 px, and slides.csv;
         annotations or masks of the slides that hold tumour
Writes   lesions: OUT/lesions/NAME.csv and OUT/slides.csv (image,score), as the challenge has them
         score: OUT/metrics.json, OUT/froc.csv, OUT/froc.png

A slide without annotation or mask counts as one without tumour. The last line on stdout of
`score` is the result as JSON.

Source: Ehteshami Bejnordi et al., JAMA 318 (2017), and the organisers' evaluation,
github.com/computationalpathologygroup/Camelyon16; Liu et al. 2017, arXiv:1703.02442.
"""

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from bach.annotations import label_mask
from bach.annotations.files import ENDINGS, Folder
from bach.annotations.regions import read_annotation
from bach.charts import froc_figure, pixels
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.log import log, step
from bach.core.options import again, option
from bach.core.pictures import read_mask, write_png
from bach.core.run import Run, read_metrics
from bach.core.tables import as_numbers, image_key, read_table, write_csv
from bach.core.text import columns, listed, number
from bach.heatmap import read_maps, read_source
from bach.honest.intervals import format_interval, jackknife, kish, patient_units, unit_sums
from bach.honest.records import SlideRecord
from bach.honest.splits import read_patients, with_patients
from bach.labels import read_class
from bach.points import maxima
from bach.scores import finite, ratio
from bach.slides import SLIDE_SUFFIXES
from bach.tasks import task, use

# The organisers' constants. Their script takes 0.243 um per px for every slide, also for those of
# the second hospital (0.226), and compares at level 5, where a px is 2^5 of level 0.
MPP = 0.243
TRUTH_UM = MPP * 2**5
# Tumour within this distance is one lesion: a px belongs to it up to half of that away.
JOINED_UM = 75.0
# Isolated tumour cells: 200 um across at most, and 75 um that were added around them.
ISOLATED_UM = 275.0
FALSE_POSITIVES = (1 / 4, 1 / 2, 1, 2, 4, 8)

# Liu et al. 2017: maxima from 0.5 on, six px of a heatmap at level 7 apart.
THRESHOLD = 0.5
RADIUS_UM = 6 * MPP * 2**7

# From one scanner of the challenge to the other it is 7%; what differs more is another scale.
_MPP_TOLERANCE = 0.1
_MASK_SUFFIXES = (".png", ".tif", ".tiff")
_LESIONS, _SLIDES = "lesions", "slides.csv"
_COLUMNS = ["confidence", "x", "y"]


# What is true, and what was found


class Truth(NamedTuple):
    """The lesions of a slide.

    Attributes:
        lesions: int `(rows, cols)`: the number of the lesion that a px lies in, 0 outside.
        counted: bool `(lesions + 1,)`: whether the lesion of each number is to be found. Isolated
            tumour cells are not: to find them is no hit and no false positive.
    """

    lesions: np.ndarray
    counted: np.ndarray


class Hits(NamedTuple):
    """What the detections of a slide have found.

    Attributes:
        found: float64, the highest score in each lesion that is to be found; 0 if missed.
        false: float64, scores of the detections outside of all lesions.
    """

    found: np.ndarray
    false: np.ndarray


def find_lesions(mask: np.ndarray, um: float = TRUTH_UM) -> Truth:
    """The lesions in a mask of tumour.

    Tumour is widened by half of 75 um (the size of five tumour cells), its holes are filled, and
    what hangs together, also by corners, is a lesion. One whose major axis is then shorter than
    275 um are isolated tumour cells.

    Args:
        mask: bool `(rows, cols)`, true where there is tumour.
        um: Side of a px in um; the organisers' masks have 7.776.

    Raises:
        ValueError: If the mask is not two-dimensional or `um` is not above 0.

    Source: computeEvaluationMask and computeITCList of the organisers' script.
    """
    from scipy import ndimage  # these two take their time
    from skimage import measure

    mask = np.asarray(mask, bool)
    if mask.ndim != 2 or not um > 0:
        raise ValueError(f"mask must be (rows, cols), um above 0. Received: {mask.shape}, {um}.")
    if not mask.any():
        return Truth(np.zeros(mask.shape, np.int32), np.zeros(1, bool))
    near = ndimage.distance_transform_edt(~mask) < JOINED_UM / (2 * um)
    lesions = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    axes = [region.axis_major_length for region in measure.regionprops(lesions)]
    return Truth(lesions, np.array([False, *(axis >= ISOLATED_UM / um for axis in axes)]))


def match(truth: Truth, row: np.ndarray, col: np.ndarray, score: np.ndarray) -> Hits:
    """Compare detections with the lesions of a slide.

    Args:
        truth: Its lesions.
        row, col: Px of the truth that each detection lies in, integers `(n,)`. What lies
            beyond the truth lies in no lesion.
        score: Scores, 0 or more, `(n,)`.

    Several detections in a lesion are one hit, that with the highest score; none is a false
    positive.
    """
    height, width = truth.lesions.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    lesion = np.zeros(len(score), int)
    lesion[inside] = truth.lesions[row[inside], col[inside]]
    best = np.zeros(len(truth.counted))
    np.maximum.at(best, lesion, score)
    return Hits(best[truth.counted], np.asarray(score, np.float64)[lesion == 0])


# Figures


def froc_curve(slides: Sequence[Hits]) -> tuple[np.ndarray, np.ndarray]:
    """False positives per slide and share of lesions found, for every threshold.

    Args:
        slides: What was found on each slide, those without tumour too.

    Returns:
        Two float64 arrays, ascending, that begin with 0, 0: a detection counts from each of
        the scores on, the highest first. Sensitivity is nan if there is no lesion.

    The organisers' script leaves the lowest value out, which is the 0 of a lesion that was
    missed; it loses a point of the curve where none was.
    """
    return _curve(_froc_sums(slides).sum(axis=0))


def mean_sensitivity(false_positives: np.ndarray, sensitivity: np.ndarray) -> float:
    """The mean sensitivity at 1/4 to 8 false positives per slide, the challenge's score."""
    return float(np.mean(sensitivity_at(false_positives, sensitivity)))


def sensitivity_at(false_positives: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity at each of `FALSE_POSITIVES`, on straight lines between the curve's points."""
    return np.interp(FALSE_POSITIVES, false_positives, sensitivity)


def froc_interval(slides: Sequence[Hits], numbers: np.ndarray, unit: str) -> dict:
    """Interval of the mean sensitivity, as `bach.honest.intervals.jackknife`.

    Args:
        slides: What was found on each slide.
        numbers: The unit (slide or patient) that each belongs to, from 0.
        unit: What a unit is, in the plural.
    """
    sums = unit_sums(_froc_sums(slides), numbers)
    count = (sums.shape[1] - 2) // 2
    # What no curve reaches, whichever unit is left out, takes memory only.
    false = (sums[:, :count].sum(axis=0) - sums[:, :count].max(axis=0)) / len(slides)
    kept = int(np.searchsorted(false, max(FALSE_POSITIVES), "right")) + 1
    sums = np.delete(sums, [*range(kept, count), *range(count + kept, 2 * count)], axis=1)

    def figure(sums: np.ndarray) -> np.ndarray:
        rows = sums.reshape(-1, sums.shape[-1])
        return np.array([mean_sensitivity(*_curve(row)) for row in rows]).reshape(sums.shape[:-1])

    # A unit weighs as its lesions; without any, no interval is made.
    worth = max(kish(sums[:, -2]), 1.0) if sums[:, -2].any() else None
    return jackknife(sums, figure, worth, unit=unit)


def auc_interval(tumour: np.ndarray, score: np.ndarray, numbers: np.ndarray, unit: str) -> dict:
    """Area under the ROC curve of slides' scores with its interval, as `jackknife`.

    Args:
        tumour: Whether each slide holds tumour, bool `(slides,)`.
        score: Its score, `(slides,)`. Of equal scores half count.
        numbers, unit: As in `froc_interval`.
    """
    tumour, score = np.asarray(tumour, bool), np.asarray(score, np.float64)
    reached = score[:, None] >= np.unique(score)[::-1]
    count = reached.shape[1]
    kinds = np.stack([~tumour, tumour], axis=1)
    rows = np.concatenate([reached & kinds[:, :1], reached & kinds[:, 1:], kinds], axis=1)
    sums = unit_sums(rows.astype(np.float64), numbers)

    def figure(sums: np.ndarray) -> np.ndarray:
        false = ratio(sums[..., :count], sums[..., -2:-1])
        true = ratio(sums[..., count:-2], sums[..., -1:])
        begin = np.zeros_like(false[..., :1])
        return np.trapezoid(
            np.concatenate([begin, true], axis=-1), np.concatenate([begin, false], axis=-1)
        )

    total = np.maximum(sums[:, -2:].sum(axis=0), 1)
    worth = max(kish((sums[:, -2:] / total**2).sum(axis=1)), 1.0) if len(sums) else None
    return jackknife(sums, figure, worth, unit=unit)


def _froc_sums(slides: Sequence[Hits]) -> np.ndarray:
    """What the curve follows from, for each slide: `(slides, 2 thresholds + 2)`.

    Its false positives and its hits from each threshold on, highest first; its lesions; and 1.
    """
    scores = np.concatenate([np.zeros(0), *(part for slide in slides for part in slide)])
    thresholds = np.unique(scores[scores > 0])[::-1]
    rows = [
        (
            *_reached(slide.false, thresholds),
            *_reached(slide.found, thresholds),
            len(slide.found),
            1,
        )
        for slide in slides
    ]
    return np.array(rows, np.float64).reshape(len(slides), 2 * len(thresholds) + 2)


def _reached(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores reach each of the thresholds."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")


def _curve(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = (len(sums) - 2) // 2
    false, found = ratio(sums[:count], sums[-1]), ratio(sums[count:-2], sums[-2])
    begin = ratio(np.zeros(1), sums[-2])
    return np.append(0.0, false), np.append(begin, found)


# Files


@dataclasses.dataclass(frozen=True)
class Lesions:
    """Options of python -m bach.froc lesions."""

    tool: ClassVar[str] = "lesions"
    task: str | None = again(options.Shared, "task", None)
    source: str = option("", "finished run folder of make_heatmap.py", name="RUN", path=True)
    run_dir: str = option("", "new folder to write to", name="--out", path=True, where=True)
    label: str | None = option(
        None, "class that is looked for, its name or number (default: the last)"
    )
    threshold: float | None = option(
        None,
        f"lowest probability of a lesion (default: that of the task, or {THRESHOLD})",
        above=0,
        most=1,
        metavar="PROB",
    )
    radius_um: float | None = option(
        None,
        f"lesions are at least that far apart, in um (default: that of the task, or {RADIUS_UM:g})",
        at_least=0,
    )
    resume: bool = again(options.Shared, "resume", False)


@dataclasses.dataclass(frozen=True)
class Score:
    """Options of python -m bach.froc score."""

    tool: ClassVar[str] = "score"
    task: str | None = again(options.Shared, "task", None)
    source: str = option(
        "",
        "folder that `lesions` wrote, or one with NAME.csv of every slide",
        name="LESIONS",
        path=True,
    )
    run_dir: str = option("", "new folder to write to", name="--out", path=True, where=True)
    annotations: str | None = option(
        None, "folder of annotations of the slides that hold tumour", path=True
    )
    masks: str | None = option(
        None,
        "folder of masks instead, NAME.png or NAME.tif (also NAME_Mask), 0 where there is no "
        "tumour",
        path=True,
    )
    label: str | None = again(Lesions, "label", None)
    class_map: str | None = again(options.Slides, "class_map", None)
    mpp: float = option(
        MPP,
        "um per level-0 px of the slides; the organisers take the same for all",
        above=0,
    )
    mask_um: float = option(TRUTH_UM, "um per px of the masks", above=0)
    slides: str | None = option(
        None, "CSV of image, score for the AUC (default: slides.csv in the folder)", path=True
    )
    patients: str | None = option(
        None,
        "CSV of image_id, patient, over which intervals are taken (default: slides)",
        path=True,
    )
    resume: bool = again(options.Shared, "resume", False)


def slide_lesions(
    probs: np.ndarray,
    record: SlideRecord,
    threshold: float = THRESHOLD,
    radius_um: float = RADIUS_UM,
) -> pd.DataFrame:
    """The lesions of a slide by its heatmap, highest first.

    Args:
        probs: Probability of the class in each cell, `(rows, cols)`; nan where nothing was
            predicted.
        record: The slide's record.
        threshold, radius_um: See `bach.points.maxima`; the radius in um.

    Returns:
        Table of `confidence`, `x` and `y`: the centre of the cell in whole level-0 px.
    """
    found = maxima(probs, threshold, radius_um / (record.step * record.mpp))
    # The last cell of a row may have its centre beyond the slide.
    x, y = (
        np.minimum(((found[name] + 0.5) * record.step).astype(int), side - 1)
        for name, side in (("col", record.width), ("row", record.height))
    )
    return pd.DataFrame(dict(zip(_COLUMNS, (found["score"], x, y), strict=True)))


def write_lesions(args: Lesions, run: Run) -> int:
    """Write the lesions and scores of all slides of a run; the exit code."""
    source = read_source(args.source)
    label = _label(args.label)
    with run.start(made_from=source.story(), **task().record):
        folder = run.path / _LESIONS
        folder.mkdir(exist_ok=True)
        rows = []
        for name, record in source.slides.items():
            probs = read_maps(source.run, record)[0][..., label]
            found = slide_lesions(probs, record, *_rule(args))
            write_csv(found, folder / f"{name}.csv", header=False)
            known = probs[np.isfinite(probs)]
            rows.append((name, float(known.max(initial=0))))
            log.info("%s: %d lesions, score %.3f", name, len(found), rows[-1][1])
        write_csv(pd.DataFrame(rows, columns=["image", "score"]), run.path / _SLIDES)
        mpp = {name: record.mpp for name, record in source.slides.items()}
        failed = sorted(source.failures)
        run.finish({"slides": len(rows), "failed": failed, "class": label, "mpp": mpp})
    print(run.path)
    return 1 if source.failures else 0


def _rule(args: Lesions) -> tuple[float, float]:
    """Threshold and radius in um: as said, else as the task has them, else as Liu et al. 2017."""
    said = (args.threshold, task().point_threshold, THRESHOLD)
    away = (args.radius_um, task().point_radius_um, RADIUS_UM)
    threshold, radius = (
        next(float(one) for one in values if one is not None) for values in (said, away)
    )
    return threshold, radius


def read_lesions(path: str | os.PathLike) -> pd.DataFrame:
    """Read the lesions of a slide: `confidence`, `x`, `y`, with or without a header.

    Raises:
        InputError: If it is no such table.
    """
    table = read_table(path, header=False)
    if len(table) and [cell.casefold() for cell in table.iloc[0]] == _COLUMNS:
        table = table.iloc[1:].reset_index(drop=True)
    if not len(table):  # nothing was found
        return pd.DataFrame(columns=_COLUMNS, dtype=np.float64)
    if len(table.columns) != len(_COLUMNS):
        raise InputError(
            f"{path} must have a row {','.join(_COLUMNS)} for each lesion.\n"
            f"Received: {len(table.columns)} columns.\nWrite x and y in level-0 px."
        )
    table = as_numbers(table.set_axis(_COLUMNS, axis=1), _COLUMNS, path)
    if (table < 0).any(axis=None):
        raise InputError(
            f"Confidences and places in {path} must be 0 or more.\n"
            f"Received: {table.min().min():g}.\nWrite probabilities, and x and y in level-0 px."
        )
    return table


def _files_of_slides(folder: Path) -> dict[str, Path]:
    """The tables of lesions in a folder, {name of the slide: file}."""
    inside = folder / _LESIONS if (folder / _LESIONS).is_dir() else folder
    found = sorted(
        path
        for path in (inside.iterdir() if inside.is_dir() else ())
        if path.suffix.lower() == ".csv" and path.name[0] != "." and path.is_file()
    )
    if inside == folder:
        found = [path for path in found if path.name != _SLIDES]
    keys = [image_key(path.stem) for path in found]
    double = [path.name for path, key in zip(found, keys, strict=True) if keys.count(key) > 1]
    if double or not found:
        raise InputError(
            "There must be one table of lesions for every slide.\n"
            f"Received: {listed(double) or f'{inside} without NAME.csv'}.\n"
            "Name a folder that `python -m bach.froc lesions` wrote, or one of such tables."
        )
    return {path.stem: path for path in found}


def _masks_of(folder: Path, slides: Sequence[str]) -> dict[str, Path]:
    """The mask of each slide that has one."""
    by_key = {image_key(name): name for name in slides}
    found: dict[str, Path] = {}
    strange = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _MASK_SUFFIXES or path.name[0] == ".":
            continue
        key = image_key(path.name)
        name = by_key.get(key) or by_key.get(key.removesuffix("_mask"))
        if name is None or name in found:
            strange.append(path.name)
        else:
            found[name] = path
    _refuse_strange(folder, strange, "masks")
    return found


def _annotations_of(folder: Path, slides: Sequence[str]) -> dict[str, Path]:
    """The annotation of each slide that has one."""
    files = Folder(folder, slides)
    # A file may bear the name of its slide with the ending, where the slide lies beside it.
    beside = {
        image_key(path.stem): path.name
        for path in folder.iterdir()
        if path.suffix.lower() in SLIDE_SUFFIXES
    }
    found = {}
    for name in slides:
        path = files.only(name) or files.only(beside.get(image_key(name), name))
        if path is not None:
            found[name] = path
    known = {path.name for path in found.values()}
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(ENDINGS) and path.name[0] != "." and path.name not in known
    ]
    _refuse_strange(folder, others, "annotations")
    return found


def _refuse_strange(folder: Path, names: Sequence[str], what: str) -> None:
    """Refuse truth of slides that have no table: of a misspelt name the slide counts as normal."""
    if names:
        raise InputError(
            f"The {what} in {folder} must be of slides with a table of lesions, one each.\n"
            f"Received others: {listed(names)}.\n"
            "Add the tables of these slides (empty where nothing was found), mend the names, or "
            "move these files away."
        )


def read_truth(path: Path, args: Score) -> tuple[np.ndarray, float]:
    """The tumour of a slide: mask, bool `(rows, cols)`, and level-0 px per px of it.

    Raises:
        InputError: If the file cannot be read.
    """
    if args.masks is not None:
        return _read_mask(path, args.mask_um / args.mpp), args.mask_um / args.mpp
    annotation = read_annotation(path, args.class_map)
    downsample = TRUTH_UM / args.mpp
    # The slide's size does not matter beyond what an outline is widened by.
    corners = np.concatenate([region.points for region in annotation.regions])
    width, height = corners.max(axis=0).clip(1) + 2 * JOINED_UM / args.mpp
    labels = label_mask(annotation.regions, int(width), int(height), downsample)
    return labels == _label(args.label), downsample


def _read_mask(path: Path, downsample: float) -> np.ndarray:
    """A mask, of a pyramid (as the organisers' are) the level of this scale."""
    import openslide

    if path.suffix.lower() != ".png" and openslide.OpenSlide.detect_format(path):
        with openslide.OpenSlide(path) as slide:
            level = int(np.argmin(np.abs(np.log(np.divide(slide.level_downsamples, downsample)))))
            if slide.level_count > 1:
                size = slide.level_dimensions[level]
                return np.asarray(slide.read_region((0, 0), level, size))[..., 0] > 0
    return read_mask(path, "Write it as PNG, 0 where there is no tumour.")


def _label(text: str | None) -> int:
    label = task().count - 1 if text is None else read_class(text)
    if label is None:
        raise InputError(
            f"The class must be one of {task().choices}.\n"
            f"Received: --label={text}.\nCorrect the name."
        )
    return label


def _hits(name: str, file: Path, truth: Path | None, args: Score) -> tuple[Hits, bool, int]:
    """What was found on a slide; whether it holds tumour; its isolated tumour cells."""
    table = read_lesions(file)
    score = table["confidence"].to_numpy()
    if truth is None:
        return Hits(np.zeros(0), score), False, 0
    mask, downsample = read_truth(truth, args)
    # As the organisers' script: whole level-0 px, then whole px of the mask.
    place = (table[["x", "y"]].to_numpy().astype(int) / downsample).astype(int)
    col, row = place.T
    if args.masks is not None and ((row > mask.shape[0]) | (col > mask.shape[1])).any():
        raise InputError(
            f"Lesions of {name} must lie on its slide.\n"
            f"Received: up to x={table['x'].max():.0f}, y={table['y'].max():.0f}; the mask {truth} "
            f"has {mask.shape[1]}x{mask.shape[0]} px, of {downsample:g} level-0 px each.\n"
            "Correct --mpp and --mask-um, or the mask."
        )
    lesions = find_lesions(mask, downsample * args.mpp)
    hits = match(lesions, row, col, score)
    return hits, bool(mask.any()), int((~lesions.counted[1:]).sum())


def _slide_scores(args: Score, slides: Sequence[str]) -> np.ndarray | None:
    """The score of each slide, or None where there are none.

    Raises:
        InputError: If one is missing.
    """
    path = Path(args.slides or Path(args.source, _SLIDES))
    if args.slides is None and not path.exists():
        return None
    table = read_table(path, ["image", "score"], key="image")
    table.index = pd.Index(table["image"].map(image_key))
    keys = [image_key(name) for name in slides]
    missing = [name for name, key in zip(slides, keys, strict=True) if key not in table.index]
    if missing:
        raise InputError(
            f"{path} must hold the score of every slide.\n"
            f"Received none of: {listed(missing)}.\nAdd these, or take their tables away."
        )
    table = table.loc[keys].reset_index(drop=True)
    return as_numbers(table, ["score"], path)["score"].to_numpy()


def _check_scale(args: Score) -> None:
    """Refuse another scale than that of the slides, where it is known.

    Raises:
        InputError: If it is another one.
    """
    stated = (read_metrics(args.source) or {}).get("mpp")
    known = list(stated.values()) if isinstance(stated, dict) else []
    if any(abs(mpp / args.mpp - 1) > _MPP_TOLERANCE for mpp in known):
        raise InputError(
            f"--mpp must be the um per px of the slides, to {_MPP_TOLERANCE:.0%}.\n"
            f"Received: {args.mpp:g}, and slides of {min(known):g} to {max(known):g}.\n"
            "Name theirs with --mpp."
        )


def score_lesions(args: Score) -> tuple[dict, pd.DataFrame]:
    """Score tables of lesions against the truth.

    Returns:
        The figures, and the table of `false_positives` and `sensitivity` of the curve.
    """
    _check_scale(args)
    files = _files_of_slides(Path(args.source))
    folder = Path(str(args.masks or args.annotations))
    of = _masks_of if args.masks else _annotations_of
    truths: Mapping[str, Path] = of(folder, list(files))
    scores = _slide_scores(args, list(files))
    hits, tumour, isolated = [], [], 0
    with step("lesions") as notes:
        for name, file in files.items():
            found, some, cells = _hits(name, file, truths.get(name), args)
            hits.append(found)
            tumour.append(some)
            isolated += cells
        notes.append(f"{len(files)} slides, {sum(tumour)} with tumour")
    table = pd.DataFrame({"image_id": list(files)})
    table = with_patients(table, None if args.patients is None else read_patients(args.patients))
    numbers, unit = patient_units(table)
    unit = "slides" if unit == "images" else unit.replace("images", "slides")
    curve = froc_curve(hits)
    interval = froc_interval(hits, numbers, unit)
    result = {
        "slides": len(files),
        "with_tumour": sum(tumour),
        "lesions": sum(len(one.found) for one in hits),
        "isolated_tumour_cells": isolated,
        "detections": sum(len(read_lesions(file)) for file in files.values()),
        "froc": interval["value"],
        "froc_interval": interval,
    }
    at = sensitivity_at(*curve)
    result["sensitivity"] = {f"{n:g}": finite(s) for n, s in zip(FALSE_POSITIVES, at, strict=True)}
    if scores is not None:
        result["auc_interval"] = auc = auc_interval(np.array(tumour), scores, numbers, unit)
        result["auc"] = auc["value"]
    return result, pd.DataFrame(dict(zip(("false_positives", "sensitivity"), curve, strict=True)))


def write_score(args: Score, run: Run) -> int:
    """Score tables of lesions, write and print the figures; the exit code."""
    with run.start(**task().record):
        result, curve = score_lesions(args)
        write_csv(curve, run.path / "froc.csv")
        figure = froc_figure(curve, FALSE_POSITIVES)
        write_png(run.path / "froc.png", pixels(figure))
        run.finish(result)
    rows = [[per_slide, number(value)] for per_slide, value in result["sensitivity"].items()]
    print(columns(["false positives per slide", "sensitivity"], rows))
    counts = "{lesions} lesions on {with_tumour} of {slides} slides"
    print(counts.format(**result) + f", {result['isolated_tumour_cells']} isolated tumour cells")
    print(f"froc {format_interval(result['froc_interval'], 3)}")
    if "auc" in result:
        print(f"auc {format_interval(result['auc_interval'], 3)}")
    print(to_json(result))
    return 0


def parse_args(argv: Sequence[str] | None = None) -> Lesions | Score:
    parser = argparse.ArgumentParser(
        prog="python -m bach.froc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tools = parser.add_subparsers(dest="tool", required=True)
    kinds: dict[str, type[Lesions] | type[Score]] = {"lesions": Lesions, "score": Score}
    helps = {"lesions": "heatmaps to lesions", "score": "lesions against the truth"}
    for name, kind in kinds.items():
        options.add(tools.add_parser(name, help=helps[name]), kind)
    values = vars(parser.parse_args(argv))
    use(values["task"], values["source"])
    args = kinds[values.pop("tool")](**values)
    if isinstance(args, Score) and (args.annotations is None) == (args.masks is None):
        raise InputError(
            "The truth must be a folder of annotations or of masks.\n"
            f"Received: {'both' if args.masks else 'none'}.\nName --annotations or --masks."
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for path in (args.source, *(vars(args).get(name) for name in ("annotations", "masks"))):
        if path is not None and not Path(path).is_dir():
            raise InputError(
                f"There must be a folder of that name.\nReceived: {path}, which is none.\n"
                "Check the name."
            )
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0
    return write_lesions(args, run) if isinstance(args, Lesions) else write_score(args, run)


if __name__ == "__main__":
    exit_with(main)
