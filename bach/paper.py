"""The figures of Kwok 2018, and tables that lay ours beside them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES
from bach.honest.comparison import ALWAYS_BENIGN, PUBLISHED, read_images
from bach.honest.intervals import (
    accuracy_interval,
    bootstrap,
    format_interval,
    ratio,
    score_interval,
)
from bach.mining import HARD_EXAMPLES

# Figures of Kwok 2018 (paper, and talk at PyCon HK 2018) that are no scores of a run and
# so do not stand in `bach.honest.comparison`.
PAPER_PATCHES = 5600
PAPER_CANDIDATES = dict(zip(CLASSES, (28_000, 4_500, 1_500, 19_700), strict=True))
PAPER_TISSUE_IN_SAMPLE = 0.79
PAPER_TISSUE_BENIGN = dict(
    zip(ALWAYS_BENIGN, (0.61, 0.52, 0.64, 0.37, 0.53, 0.51, 0.45, 0.65, 0.52, 0.53), strict=True)
)
PAPER_EPOCHS = {"part_a": 25, "final": 15}
PAPER_MINUTES = {"part_a": 35, "final": 40}  # a training, at most
PAPER_MACHINE = "two GTX 1080 Ti of 11 GB, 67 patches/s"

# Two published decimals, and one unit for how the maps are rounded to pixels.
_AGREES = 0.01 + 1e-9


def published(part: str, measured_on: str, figure: str, name: str = "winner") -> float:
    """A published figure, by where it was measured (first words)."""
    return next(
        entry[figure]
        for entry in PUBLISHED
        if entry["part"] == part
        and entry["name"].startswith(name)
        and entry["measured_on"].startswith(measured_on)
        and figure in entry
    )


def mean_interval(values: Sequence[float | None]) -> dict:
    """Mean over slides with its interval; slides without a value are left out."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    units = np.array([(value, 1) for value in known], np.float64).reshape(-1, 2)
    return bootstrap(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="slides")


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table, its columns aligned so that it reads well on a terminal too."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    cells.insert(1, ["-" * max(3, width) for width in widths])
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(f"| {line.rstrip()} |" for line in lines)


def part_a_table(run: Path, patches: int) -> str:
    """Part A: patches, Table 1's row and the hidden test."""
    images = read_images(run)
    metrics = json.loads((run / "metrics.json").read_text())
    per_fold = [row["accuracy"] for row in metrics["per_fold"].values()]
    whole = "patients whole" if images["patient"].any() else "patients UNKNOWN"
    where = f"{len(per_fold)}-fold cross-validation, {whole}, {len(images)} images"
    rows = [
        ["patches of the photos", f"{PAPER_PATCHES:,}", "400 photos", f"{patches:,}", "a count"]
    ]
    for title, figure in (
        ("four-class accuracy", "accuracy"),
        ("carcinoma or not, accuracy", "binary_accuracy"),
    ):
        value = format_interval(accuracy_interval(images, figure), 3)
        paper = published("A", "3-fold", figure)
        rows.append([title, f"{paper:.2f}", "3-fold cross-validation", value, where])
    each = ", ".join(f"{value:.3f}" for value in per_fold)
    mean, spread = metrics["mean_accuracy"], metrics["sd_accuracy"]
    rows.append(["four-class accuracy, mean over folds", "-", "-", f"{mean:.3f} (sd {spread:.3f})",
                 f"folds: {each}"])  # fmt: skip
    hidden = published("A", "hidden", "accuracy")
    rows.append(["four-class accuracy, hidden test", f"{hidden:.2f}", "100 images",
                 "not reproducible", "its truth is not published"])  # fmt: skip
    return markdown(["figure", "paper", "measured on", "ours [95% interval]", "measured on"], rows)


def candidates_table(run: Path) -> str:
    """Hard examples: candidates and draw, class by class."""
    metrics = json.loads((run / "metrics.json").read_text())
    ours, drawn = metrics["candidates"], metrics["hard_examples"]
    rows = [
        [name, f"{PAPER_CANDIDATES[name]:,}", f"{ours[name]:,}", "-", f"{drawn[name]:,}"]
        for name in CLASSES
    ]
    rows.append(["all", f"{sum(PAPER_CANDIDATES.values()):,}", f"{sum(ours.values()):,}",
                 f"{HARD_EXAMPLES:,}", f"{sum(drawn.values()):,}"])  # fmt: skip
    return markdown(["class", "candidates: paper", "ours", "drawn: paper", "ours"], rows)


def slides_table(slides: pd.DataFrame, scores: dict[str, dict] | None = None) -> str:
    """Table 2's ten slides: always Benign in the paper and from the annotation, and ours.

    Args:
        slides: See `survey`.
        scores: {slide: record of make_heatmap.py}, or None before there is any.
    """
    found = slides[slides["annotated"]].set_index("image_id")
    names = sorted({*ALWAYS_BENIGN, *found.index})
    header = ["slide", "always Benign: paper", "from the annotation", "tissue only: paper",
              "from the annotation"]  # fmt: skip
    if scores is not None:
        header += ["our score", "tissue only", "models saw it"]
    rows = []
    for name in names:
        row = [name]
        for column, paper in (("benign", ALWAYS_BENIGN), ("benign_tissue", PAPER_TISSUE_BENIGN)):
            row += [_number(paper.get(name), 2), _number(_at(found, name, column))]
        if scores is not None:
            record = scores.get(name, {})
            seen = {True: "yes: in sample", False: "no", None: "-"}[record.get("in_sample")]
            row += [_number(record.get("score")), _number(record.get("score_tissue")), seen]
        rows.append(row)
    return markdown(header, rows)


def _at(table: pd.DataFrame, name: str, column: str) -> float | None:
    return table.loc[name, column] if name in table.index else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def agreement(slides: pd.DataFrame) -> str:
    """Say on which slides always Benign scores as in the paper.

    All pixels check annotations and scorer; tissue only checks the tissue mask too.
    """
    found = slides[slides["annotated"]].set_index("image_id")
    parts = []
    for column, paper, what in (
        ("benign", ALWAYS_BENIGN, "all pixels"),
        ("benign_tissue", PAPER_TISSUE_BENIGN, "tissue only"),
    ):
        there = [name for name in paper if name in found.index]
        off = [name for name in there if not abs(found.loc[name, column] - paper[name]) <= _AGREES]
        text = f"{what}: {len(there) - len(off)} of {len(there)} slides as in the paper (+-0.01)"
        parts.append(text + (f", others on {', '.join(off)}" if off else ""))
    return "; ".join(parts) + "."


def part_b_table(slides: pd.DataFrame, runs: dict[str, dict[str, dict]]) -> str:
    """Part B: the scores over slides, with what each was measured on.

    Args:
        slides: See `survey`.
        runs: Records of the slides, by run ("heatmaps", perhaps
            "heatmaps_in_sample").
    """
    honest = [r for r in runs["heatmaps"].values() if not r["in_sample"]]
    in_sample = published("B", "A01-A10", "score")
    benign = published("B", "A01-A10", "score", "always Benign")
    tissue = float(np.mean(list(PAPER_TISSUE_BENIGN.values())))
    theirs, ours = "A01-A10, IN SAMPLE", "slides held out"
    found = slides[slides["annotated"]]

    def mean(records: Sequence[dict], key: str) -> str:
        return format_interval(mean_interval([record.get(key) for record in records]), 3)

    pooled = format_interval(score_interval([r["counts"] for r in honest], pooled=True), 3)
    rows = [
        ["score", f"{in_sample:.2f}", theirs, mean(honest, "score"), ours],
        ["score, tissue only", f"{PAPER_TISSUE_IN_SAMPLE:.2f}", theirs,
         mean(honest, "score_tissue"), ours],
        ["score, all pixels pooled", "-", "-", pooled, ours],
    ]  # fmt: skip
    if "heatmaps_in_sample" in runs:
        seen, where = list(runs["heatmaps_in_sample"].values()), "trained on them, IN SAMPLE"
        rows.append(["score", f"{in_sample:.2f}", theirs, mean(seen, "score"), where])
        rows.append(["score, tissue only", f"{PAPER_TISSUE_IN_SAMPLE:.2f}", theirs,
                     mean(seen, "score_tissue"), where])  # fmt: skip
    for title, value, column in (
        ("always Benign", benign, "benign"),
        ("always Benign, tissue only", tissue, "benign_tissue"),
    ):
        interval = format_interval(mean_interval(found[column].tolist()), 3)
        rows.append([title, f"{value:.2f}", "A01-A10", interval, "annotation alone, no model"])
    hidden = published("B", "hidden", "score")
    rows.append(["score, hidden test", f"{hidden:.4f}", "10 slides", "not reproducible",
                 "its truth is not published"])  # fmt: skip
    return markdown(["figure", "paper", "measured on", "ours [95% interval]", "measured on"], rows)
