"""Is this run better than that one? And what has been published.

One target figure decides: the accuracy of Part A, or the score of Part B (mean over
slides). The others guide. `compare` asks the same images of both runs, so that what
is hard for both does not blur the difference. Command: `bach.runs`.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from bach.core.errors import InputError
from bach.core.log import log
from bach.core.tables import image_key, read_table
from bach.core.text import listed
from bach.honest.intervals import (
    FEW_UNITS,
    Statistic,
    accuracy_from_sums,
    accuracy_sums,
    accuracy_worth,
    jackknife,
    patient_units,
    score_from_sums,
    score_worth,
    slide_sums,
    unit_sums,
    worth_of,
)
from bach.honest.records import counts_of, read_images, read_slides, with_known_patients
from bach.scores import ACCURACIES, accuracy_names

_KWOK = "Kwok 2018, ICIAR, LNCS 10882, pp. 931-940"
_BACH = "Aresta et al. 2019, arXiv:1808.04277"
_EVA = "eva leaderboard (kaiko-ai/eva), frozen features"
_CROSS = "3-fold cross-validation"
_SPLIT = "single 75/25 split, patches"
_HIDDEN_A = "hidden test, 100 images"
_HIDDEN_B = "hidden test, 10 slides"
_EVA_SPLIT = "patient-aware split of Part A"


def _published(part: str, name: str, measured_on: str, source: str, **figures: float) -> dict:
    return {"part": part, "name": name, "measured_on": measured_on, "source": source, **figures}


# Every published number that the leaderboard shows, with where it is from. The keys
# of the figures are those of `ACCURACIES`, and `score` for Part B (mean over slides
# as far as is known).
PUBLISHED = (
    _published("A", "winner, Inception-ResNet-v2", _HIDDEN_A, _BACH, accuracy=0.87),
    _published(
        "A", "winner, Inception-ResNet-v2", _CROSS, _KWOK, accuracy=0.79, binary_accuracy=0.91
    ),
    _published("A", "winner, Inception-v3", _SPLIT, _KWOK, accuracy=0.74, binary_accuracy=0.85),
    _published("A", "winner, Inception-v4", _SPLIT, _KWOK, accuracy=0.71, binary_accuracy=0.82),
    _published("A", "winner, VGG19", _SPLIT, _KWOK, accuracy=0.70, binary_accuracy=0.81),
    _published("A", "UNI2-h", _EVA_SPLIT, _EVA, balanced_accuracy=0.915),
    _published("A", "Midnight-12k", _EVA_SPLIT, _EVA, balanced_accuracy=0.904),
    _published("A", "Virchow2", _EVA_SPLIT, _EVA, balanced_accuracy=0.883),
    _published("A", "UNI", _EVA_SPLIT, _EVA, balanced_accuracy=0.785),
    _published("A", "Prov-GigaPath", _EVA_SPLIT, _EVA, balanced_accuracy=0.759),
    _published("A", "Phikon-v2", _EVA_SPLIT, _EVA, balanced_accuracy=0.732),
    _published("B", "winner", _HIDDEN_B, _BACH, score=0.6929),
    _published("B", "second place", _HIDDEN_B, _BACH, score=0.5527),
    _published("B", "third place", _HIDDEN_B, _BACH, score=0.5230),
    _published("B", "winner", "A01-A10, in sample (trained on them)", _KWOK, score=0.75),
    _published("B", "always Benign", "A01-A10", _KWOK, score=0.60),
)

# Score of always predicting Benign on each labelled slide, all pixels, original XML
# (Kwok 2018, paper and talk at PyCon HK): what a run must beat slide by slide.
_BENIGN_SCORES = (0.65, 0.60, 0.66, 0.44, 0.61, 0.61, 0.54, 0.66, 0.62, 0.62)
ALWAYS_BENIGN = {f"A{number:02}": score for number, score in enumerate(_BENIGN_SCORES, 1)}

# Of each part: the figure that decides, and those that guide.
FIGURES = {"A": ACCURACIES, "B": ("score", "score_pooled")}


def titles() -> dict[str, str]:
    """How the figures are called in tables."""
    return accuracy_names() | {
        "score": "score (mean over slides)",
        "score_pooled": "score (pooled)",
    }


def parts_of(run: str | os.PathLike) -> list[str]:
    """The parts, "A" and "B", that a run has predictions of.

    Raises:
        InputError: If it has none.
    """
    run = Path(run)
    parts = ["A"] if _holds_images(run / "predictions.csv") else []
    if any((run / "slides").glob("*.json")):
        parts.append("B")
    if not parts:
        inside = sorted(path.name for path in run.iterdir()) if run.is_dir() else None
        contains = "no such folder" if inside is None else f"contains: {listed(inside) or '-'}"
        raise InputError(
            f"{run} must be a run with predictions.csv of images (Part A) or slides/*.json "
            "(Part B).\n"
            f"Received: {run} ({contains}).\n"
            "Name a run folder of train_part_a.py or make_heatmap.py; the hard examples that "
            "train_final.py holds out are no estimate of anything."
        )
    return parts


def _holds_images(path: Path) -> bool:
    """Whether there are predictions, of images and not of patches."""
    if not path.is_file():
        return False
    return not {"x", "y"} <= set(read_table(path))


# Comparing two


@dataclasses.dataclass(frozen=True)
class _Pair:
    """What two runs predicted of the same images or slides.

    Attributes:
        sums_a, sums_b: Sums of every unit, `(units, sums)`, see `jackknife`.
        unit: What a unit is, in the plural.
        common, only_a, only_b: Numbers of images or slides.
    """

    sums_a: np.ndarray
    sums_b: np.ndarray
    unit: str
    common: int
    only_a: int
    only_b: int


def compare(
    run_a: str | os.PathLike,
    run_b: str | os.PathLike,
    patients: str | os.PathLike | None = None,
) -> dict:
    """Compare two runs on the images, or slides, that both predicted.

    Patients (slides for Part B) are left out in turn, of both runs at once: a paired
    jackknife. Slides that a model was trained on are left out for good. Run A is
    "better" than run B if the interval of the difference lies above 0, "worse" if below,
    and else the two are "not distinguishable", which is no proof that they are equal.
    With units that are worth fewer than five even ones they always are.

    Of two runs that are equally good, A is called better in 2.5% of simulated cases and
    worse in as many, and in fewer where they mostly agree (benchmarks/coverage.py). The
    exception are slides whose differences have one long tail, which five to twenty numbers
    cannot show: then one of the two comes in 8 to 12%.

    Args:
        run_a: Run folder, the one that the answer is about.
        run_b: Run folder to compare it with.
        patients: See `bach.honest.records.read_images`.

    Returns:
        `part` ("A" or "B"; B if both runs have both); `run_a`, `run_b`; `metric`,
        the target; `verdict`; `a`, `b` (the figure of each on the common images);
        `difference` (A minus B, an interval as of `jackknife`); `guides` ({figure:
        {"a", "b", "difference"}}); `common`, `only_a`, `only_b` (numbers of images
        or slides).

    Raises:
        InputError: If a run cannot be read, the two have no image in common, or
            disagree about its true label.
    """
    parts_a, parts_b = parts_of(run_a), parts_of(run_b)
    common = [part for part in ("B", "A") if part in parts_a and part in parts_b]
    if not common:
        raise InputError(
            "The two runs must have predictions of the same part.\n"
            f"Received: {run_a} of Part {parts_a[0]}, {run_b} of Part {parts_b[0]}.\n"
            "Compare two training runs, or two heatmap runs."
        )
    part = common[0]
    pair = _pair_images(run_a, run_b, patients) if part == "A" else _pair_slides(run_a, run_b)
    target, *guides = FIGURES[part]
    figures = {metric: _difference(pair, metric) for metric in FIGURES[part]}
    return {
        "part": part,
        "run_a": str(run_a),
        "run_b": str(run_b),
        "metric": target,
        "verdict": verdict(figures[target]["difference"]),
        **figures[target],
        "guides": {metric: figures[metric] for metric in guides},
        "common": pair.common,
        "only_a": pair.only_a,
        "only_b": pair.only_b,
    }


def _difference(pair: _Pair, metric: str) -> dict:
    """A figure of both runs, and the interval of its difference."""
    both = np.hstack([pair.sums_a, pair.sums_b])
    worth = paired_worth(pair.sums_a, pair.sums_b, metric)
    return {
        "a": float(figure_of(metric)(pair.sums_a.sum(axis=0))),
        "b": float(figure_of(metric)(pair.sums_b.sum(axis=0))),
        "difference": jackknife(both, minus(metric), worth, lowest=-1.0, unit=pair.unit),
    }


def figure_of(metric: str) -> Statistic:
    """The figure of sums of `accuracy_sums` or `slide_sums`."""
    if metric in ACCURACIES:
        return lambda sums: accuracy_from_sums(sums, metric)
    return lambda sums: score_from_sums(sums, pooled=metric == "score_pooled")


def minus(metric: str) -> Statistic:
    """The figure of the first half of the sums minus that of the second half."""
    of = figure_of(metric)

    def difference(sums: np.ndarray) -> np.ndarray:
        first, second = np.split(sums, 2, axis=-1)
        return of(first) - of(second)

    return difference


def paired_worth(sums_a: np.ndarray, sums_b: np.ndarray, metric: str) -> float:
    """The number of even units that units `(units, sums)` are worth in a difference."""
    if metric in ACCURACIES:
        return accuracy_worth(sums_a, metric)  # the images of both are the same
    return score_worth(sums_a + sums_b, pooled=metric == "score_pooled")


def verdict(difference: dict) -> str:
    """Say better, worse or not distinguishable, from the interval of a difference."""
    low, high = difference["low"], difference["high"]
    if low is None or worth_of(difference) < FEW_UNITS or low <= 0 <= high:
        return "not distinguishable"
    return "better" if low > 0 else "worse"


def _pair_images(
    run_a: str | os.PathLike, run_b: str | os.PathLike, patients: str | os.PathLike | None
) -> _Pair:
    a, b = (read_images(run, patients, alone=False) for run in (run_a, run_b))
    table = a.merge(b.drop(columns="patient"), on="image_id", suffixes=("_a", "_b"))
    _require_common(len(table), "image", run_a, run_b)
    differ = table.loc[table["label_a"] != table["label_b"], "image_id"]
    if len(differ):
        raise InputError(
            "The two runs must have the same true labels.\n"
            f"Received: {run_a} and {run_b}, which differ on {len(differ)} of {len(table)} images: "
            f"{listed(differ)}.\n"
            "One of them was trained on other labels; compare runs of the same truth."
        )
    table = with_known_patients(table, {str(run_a): a, str(run_b): b})
    numbers, unit = patient_units(table)
    sums_a, sums_b = (
        unit_sums(accuracy_sums(table["label_a"], table[f"predicted_{side}"]), numbers)
        for side in "ab"
    )
    common = len(table)
    return _Pair(sums_a, sums_b, unit, common, len(a) - common, len(b) - common)


def _pair_slides(run_a: str | os.PathLike, run_b: str | os.PathLike) -> _Pair:
    runs = [
        {image_key(name): slide for name, slide in read_slides(run).items()}
        for run in (run_a, run_b)
    ]
    a, b = (counts_of(slides) for slides in runs)
    both = sorted(a.keys() & b.keys())
    _require_common(len(both), "slide", run_a, run_b)
    seen = [name for name in both if any(slides[name].in_sample for slides in runs)]
    if seen:
        log.warning("left out, a model was trained on them: %s", ", ".join(seen))
        both = [name for name in both if name not in seen]
        _require_common(len(both), "slide that no model was trained on", run_a, run_b)
    for name in both:
        shares = [counts[name].sum(axis=1) / max(counts[name].sum(), 1) for counts in (a, b)]
        if np.abs(shares[0] - shares[1]).max() > 0.01:
            log.warning("%s: the true classes of the two runs differ by over 1%%", name)
    sums_a, sums_b = (slide_sums([counts[name] for name in both]) for counts in (a, b))
    defined = (sums_a[:, 1] > 0) & (sums_b[:, 1] > 0)
    common = int(defined.sum())
    if common < len(both):
        left_out = [name for name, there in zip(both, defined, strict=True) if not there]
        log.warning("left out, no score in one of the runs: %s", ", ".join(left_out))
        _require_common(common, "slide with a score", run_a, run_b)
    only_a, only_b = len(a.keys() - b.keys()), len(b.keys() - a.keys())
    return _Pair(sums_a[defined], sums_b[defined], "slides", common, only_a, only_b)


def _require_common(count: int, what: str, run_a: object, run_b: object) -> None:
    if not count:
        raise InputError(
            f"The two runs must have a {what} in common.\n"
            f"Received: none in {run_a} and {run_b}.\n"
            "Compare runs on the same folds; the join is by image id."
        )
