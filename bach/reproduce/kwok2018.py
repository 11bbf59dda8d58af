"""Kwok 2018: its figures, and tables that lay ours beside them.

Source: Kwok 2018, ICIAR, LNCS 10882, pp. 931-940, and the talk at PyCon HK 2018. Published
scores of whole runs stand in `bach.honest.comparison`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES
from bach.core.files import read_object
from bach.core.inputs import understood
from bach.core.tables import read_table
from bach.core.text import markdown, number
from bach.honest.comparison import ALWAYS_BENIGN, PUBLISHED
from bach.honest.intervals import (
    accuracy_interval,
    format_interval,
    jackknife,
    ratio,
    score_interval,
)
from bach.honest.records import SlideRecord, counts_of, read_images
from bach.mining import HARD_EXAMPLES

EPOCHS_PART_A, EPOCHS_FINAL = 25, 15
PATCHES_PER_S = 67
MACHINE = "two GTX 1080 Ti of 11 GB, at most 35 to 40 min per training"

PATCHES = 5600
CANDIDATES = dict(zip(CLASSES, (28_000, 4_500, 1_500, 19_700), strict=True))
SCORE_TISSUE = 0.79  # in sample
ALWAYS_BENIGN_TISSUE = dict(
    zip(ALWAYS_BENIGN, (0.61, 0.52, 0.64, 0.37, 0.53, 0.51, 0.45, 0.65, 0.52, 0.53), strict=True)
)

# By the column of the survey that they are compared with.
_BENIGN = {"benign": ALWAYS_BENIGN, "benign_tissue": ALWAYS_BENIGN_TISSUE}

# Two published decimals, and one unit for how the maps are rounded to pixels.
_AGREES = 0.01 + 1e-9

_HEADER = ("figure", "paper", "measured on", "ours [95% interval]", "measured on")


def published(part: str, measured_on: str, figure: str, name: str = "winner") -> float:
    """A published figure, by the first words of what it was measured on."""
    return next(
        entry[figure]
        for entry in PUBLISHED
        if entry["part"] == part
        and entry["name"].startswith(name)
        and entry["measured_on"].startswith(measured_on)
        and figure in entry
    )


def part_a_table(run: Path) -> str:
    """Part A: patches, the row of the paper's Table 1, and the hidden test.

    Args:
        run: Finished run folder of train_part_a.py.
    """
    images = read_images(run)
    with _figures(run) as metrics:
        folds = [float(row["accuracy"]) for row in metrics["per_fold"].values()]
        mean, spread = float(metrics["mean_accuracy"]), float(metrics["sd_accuracy"])
    patches = len(read_table(run / "patches/patches.csv"))
    whole = "patients whole" if images["patient"].any() else "patients UNKNOWN"
    where = f"{len(folds)}-fold cross-validation, {whole}, {len(images)} images"
    rows = [["patches of the photos", f"{PATCHES:,}", "400 photos", f"{patches:,}", "a count"]]
    for title, figure in (
        ("four-class accuracy", "accuracy"),
        ("carcinoma or not, accuracy", "binary_accuracy"),
    ):
        ours = format_interval(accuracy_interval(images, figure), 3)
        paper = number(published("A", "3-fold", figure), 2)
        rows.append([title, paper, "3-fold cross-validation", ours, where])
    each = "folds: " + ", ".join(map(number, folds))
    hidden = number(published("A", "hidden", "accuracy"), 2)
    unknown = ("not reproducible", "its truth is not published")
    rows.append(
        ["four-class accuracy, mean over folds", "-", "-", f"{mean:.3f} (sd {spread:.3f})", each]
    )
    rows.append(["four-class accuracy, hidden test", hidden, "100 images", *unknown])
    return markdown(_HEADER, rows)


def candidates_table(run: Path) -> str:
    """Hard examples: candidates and draw of every class.

    Args:
        run: Finished run folder of mine_hard_examples.py.
    """
    with _figures(run) as metrics:
        ours, drawn = (
            {name: int(metrics[kind][name]) for name in CLASSES}
            for kind in ("candidates", "hard_examples")
        )
    rows = [
        [name, f"{CANDIDATES[name]:,}", f"{ours[name]:,}", "-", f"{drawn[name]:,}"]
        for name in CLASSES
    ]
    sums = [f"{sum(counts.values()):,}" for counts in (CANDIDATES, ours, drawn)]
    rows.append(["all", *sums[:2], f"{HARD_EXAMPLES:,}", sums[2]])
    return markdown(["class", "candidates: paper", "ours", "drawn: paper", "ours"], rows)


def slides_table(survey: pd.DataFrame, records: Mapping[str, SlideRecord] | None = None) -> str:
    """The ten slides of Table 2: always Benign in the paper and from the annotation, and ours.

    Args:
        survey: Table of slides, see `bach.reproduce.estimate.survey`.
        records: Slides of our heatmaps, or None before there are any.
    """
    annotated = _annotated(survey)
    header = ["slide", "always Benign: paper", "from the annotation"]
    header += ["tissue only: paper", "from the annotation"]
    if records is not None:
        header += ["our score", "tissue only", "models saw it"]
    rows = []
    for name in sorted({*ALWAYS_BENIGN, *annotated.index}):
        row = [name]
        for column, paper in _BENIGN.items():
            ours = annotated[column].get(name)
            row += [number(paper.get(name), 2), number(ours)]
        if records is not None and name in records:
            record = records[name]
            row += [number(record.score), number(record.score_tissue)]
            row.append("yes: in sample" if record.in_sample else "no")
        row += ["-"] * (len(header) - len(row))
        rows.append(row)
    return markdown(header, rows)


def agreement(survey: pd.DataFrame) -> str:
    """Say on which slides always Benign scores as in the paper.

    All pixels check annotations and scorer; tissue only checks the tissue mask too.
    """
    annotated = _annotated(survey)
    parts = []
    for (column, paper), what in zip(_BENIGN.items(), ("all pixels", "tissue only"), strict=True):
        ours = annotated[column][annotated.index.isin(list(paper))]
        agree = (ours - ours.index.map(paper)).abs() <= _AGREES
        text = f"{what}: {agree.sum()} of {len(ours)} slides as in the paper (+-0.01)"
        parts.append(text + ("" if agree.all() else f", others on {', '.join(ours.index[~agree])}"))
    return "; ".join(parts) + "."


def part_b_table(
    survey: pd.DataFrame,
    records: Mapping[str, SlideRecord],
    in_sample: Mapping[str, SlideRecord] | None = None,
) -> str:
    """Part B: the scores over slides, with what each was measured on.

    Args:
        survey: Table of slides, see `bach.reproduce.estimate.survey`.
        records: Slides of our heatmaps; those that every model saw are left out.
        in_sample: Slides of the heatmaps by the single model that was trained on all.
    """
    held_out = {
        name: record
        for name, record in records.items()
        if record.counts is not None and not record.in_sample
    }
    pooled = format_interval(score_interval(counts_of(held_out), pooled=True), 3)
    rows = [
        *_score_rows(held_out, "slides held out"),
        ["score, all pixels pooled", "-", "-", pooled, "slides held out"],
    ]
    if in_sample is not None:
        rows += _score_rows(in_sample, "trained on them, IN SAMPLE")
    annotated = _annotated(survey)
    tissue = float(np.mean(list(ALWAYS_BENIGN_TISSUE.values())))
    for title, paper, column in (
        ("always Benign", published("B", "A01-A10", "score", "always Benign"), "benign"),
        ("always Benign, tissue only", tissue, "benign_tissue"),
    ):
        ours = _mean(annotated[column].tolist())
        rows.append([title, number(paper, 2), "A01-A10", ours, "annotation alone, no model"])
    hidden = number(published("B", "hidden", "score"), 4)
    unknown = ("not reproducible", "its truth is not published")
    rows.append(["score, hidden test", hidden, "10 slides", *unknown])
    return markdown(_HEADER, rows)


def _annotated(survey: pd.DataFrame) -> pd.DataFrame:
    return survey[survey["annotated"]].set_index("image_id")


@contextlib.contextmanager
def _figures(run: Path) -> Iterator[dict]:
    """The metrics of a run, to take figures from that must be there."""
    file, remedy = run / "metrics.json", "Run the script that wrote it again."
    with understood(file, "hold the figures of a finished run", remedy):
        yield read_object(file, remedy)


def _score_rows(records: Mapping[str, SlideRecord], where: str) -> list[list[str]]:
    """The rows of the two scores that the paper gives, both in sample."""
    theirs = "A01-A10, IN SAMPLE"
    paper = number(published("B", "A01-A10", "score"), 2)
    scores = _mean([record.score for record in records.values()])
    tissue = _mean([record.score_tissue for record in records.values()])
    return [
        ["score", paper, theirs, scores, where],
        ["score, tissue only", number(SCORE_TISSUE, 2), theirs, tissue, where],
    ]


def _mean(values: Sequence[float | None]) -> str:
    """Mean over slides with its interval; slides without a value are left out."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    units = np.array([(value, 1) for value in known], np.float64).reshape(-1, 2)
    interval = jackknife(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="slides")
    return format_interval(interval, 3)
