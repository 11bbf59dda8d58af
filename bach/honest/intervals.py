"""How sure a figure is: bootstrap intervals over patients, images or slides.

Images of a patient and pixels of a slide are alike, so they are no independent
evidence. What is drawn anew is the patient (an image of unknown patient stands for
itself) or the slide, never the pixel, and the number of these units is always said.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.tables import image_key, patient_key
from bach.scores import accuracy_from_counts, finite, part_b_terms, ratio, score_from_terms

SAMPLES = 10_000
LEVEL = 0.95
# With fewer units the 2.5% tail cannot be told from the resamples: five values of
# the same sign happen by chance in 6% of cases already, four in 12%.
FEW_UNITS = 5

_CHUNK = 1_000_000  # draws held in memory at once


def bootstrap(
    units: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    unit: str = "units",
) -> dict:
    """Bootstrap interval of a figure that follows from sums over units.

    Every unit (patient, slide) is reduced to a few sums beforehand, such as the
    number of right answers and of images; a resample is then a weighted sum of
    rows, and all resamples are one matrix product.

    The ends are expanded percentiles: percentiles of the resamples, moved outwards
    by what Student's t and the factor n / (n - 1) ask of n units. Plain percentiles
    are too narrow where units are few, and BCa mends skew but not that. Simulated
    coverage of 95% intervals, plain / BCa / expanded: 10 slides .91 / .91 / .95,
    29 patients of unequal size .92 / .92 / .94, 5 slides .83 / .83 / .92.

    Args:
        units: Sums of every unit, `(units, sums)`.
        statistic: Maps sums `(..., sums)` to values `(...)`, nan where undefined.
        samples: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same interval.
        level: Coverage wanted, between 0 and 1.
        unit: What a unit is, in the plural.

    Returns:
        `value`; `low` and `high` (None with fewer than two units, or if too few
        resamples have a value); `level`; `units`, their number; `unit`; and
        `warning`, None or a sentence that must be read with the interval.

    Raises:
        ValueError: If an argument is out of range.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The
    American Statistician 69 (2015), on the expanded percentile interval.
    """
    units = np.asarray(units, np.float64)
    if units.ndim != 2:
        raise ValueError(f"units must be (units, sums). Received: shape {units.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1. Received: level={level}.")
    if samples < 1:
        raise ValueError(f"samples must be 1 or more. Received: samples={samples}.")
    count = len(units)
    result = {
        "value": finite(statistic(units.sum(axis=0))),
        "low": None,
        "high": None,
        "level": level,
        "units": count,
        "unit": unit,
        "warning": None,
    }
    if count < 2 or result["value"] is None:
        result["warning"] = f"no interval: {count} {unit}" if count < 2 else "undefined"
        return result
    values = _resample(units, statistic, samples, seed)
    values = values[np.isfinite(values)]
    if len(values) < samples / 2:
        result["warning"] = f"no interval: undefined in {samples - len(values)} of {samples} draws"
        return result
    low, high = result["low"], result["high"] = _expanded_percentiles(values, count, level)
    if count < FEW_UNITS:
        result["warning"] = f"only {count} {unit}: the interval is a rough guess"
    elif low == high:
        result["warning"] = f"all {unit} agree, which a bootstrap takes for certainty"
    return result


def _expanded_percentiles(values: np.ndarray, count: int, level: float) -> tuple[float, float]:
    """Ends of the interval of resampled values of `count` units; see `bootstrap`."""
    from scipy.special import ndtr, stdtrit  # not at the top, which takes its time

    tail = float(ndtr(np.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - level) / 2)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _resample(
    units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], samples: int, seed: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = len(units)
    rows = max(1, _CHUNK // count)
    parts = []
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        # How often each unit was drawn: a multinomial, faster than NumPy's own.
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        parts.append(statistic(weights.astype(np.float64) @ units))
    return np.concatenate(parts)


# Part A


def predicted_labels(table: pd.DataFrame) -> np.ndarray:
    """The predicted class of every row: the largest `prob_` column, else `predicted`.

    Raises:
        ValueError: If the table has neither.
    """
    if set(PROB_COLUMNS) <= set(table.columns):
        return table[list(PROB_COLUMNS)].to_numpy(np.float64).argmax(axis=1)
    if "predicted" not in table.columns:
        raise ValueError(
            f"The table must have the columns {', '.join(PROB_COLUMNS)}, or predicted. "
            f"Received: {', '.join(map(str, table.columns))}."
        )
    return table["predicted"].to_numpy(int)


def patient_units(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """The unit that every row belongs to: its patient, or its image if unknown.

    Args:
        table: Table with `image_id` and perhaps `patient` (empty or missing where
            unknown).

    Returns:
        Number of the unit of every row, `(rows,)`, and what the units are, as `bootstrap`
        takes it: "patients", "images", or a mixture with its numbers, for example
        "29 patients + 255 images".
    """
    images = table["image_id"].map(image_key)
    stated = table["patient"] if "patient" in table.columns else pd.Series("", table.index)
    patients = stated.map(patient_key)
    known = (patients != "").to_numpy()
    # A patient and an image of the same name stay two units.
    numbers, _ = pd.factorize(np.where(known, "patient " + patients, "image " + images))
    if known.all() or not known.any():
        return numbers.astype(int), "patients" if known.any() else "images"
    counts = [len(set(numbers[rows])) for rows in (known, ~known)]
    return numbers.astype(int), f"{counts[0]} patients + {counts[1]} images"


def accuracy_sums(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What the accuracies are made of, for every row: its joint counts.

    Args:
        label: True classes, integers 0..3, `(rows,)`.
        predicted: Predicted classes, integers 0..3, `(rows,)`.

    Returns:
        float64 `(rows, 16)`: 1 at the pair of true and predicted class, else 0.

    Raises:
        ValueError: If a class is not 0..3.
    """
    label, predicted = np.asarray(label, int), np.asarray(predicted, int)
    for name, values in (("label", label), ("predicted", predicted)):
        if values.size and (values.min() < 0 or values.max() >= len(CLASSES)):
            raise ValueError(f"Classes must be 0..3. Received: {name} with {np.unique(values)}.")
    return np.eye(len(CLASSES) ** 2)[label * len(CLASSES) + predicted]


def accuracy_from_sums(sums: np.ndarray, metric: str = "accuracy") -> np.ndarray:
    """An accuracy from sums `(..., 16)` of the rows of `accuracy_sums`.

    Metric and values `(...)` are those of `bach.scores.accuracy_from_counts`.
    """
    counts = sums.reshape(*sums.shape[:-1], len(CLASSES), len(CLASSES))
    return accuracy_from_counts(counts, metric)


def unit_sums(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Add the rows `(rows, sums)` of each unit up: `(units, sums)`."""
    count = int(numbers.max()) + 1 if len(numbers) else 0
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def accuracy_interval(
    table: pd.DataFrame,
    metric: str = "accuracy",
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict:
    """Interval of a Part A accuracy, with patients as units.

    Args:
        table: One row per image: `image_id`, `label` (0..3), the four `prob_` columns
            or `predicted` (0..3), and perhaps `patient`. An image whose patient is
            unknown is a unit of its own, which makes the interval narrower than it
            should be if some of these images do share a patient.
        metric: See `bach.scores.accuracy_from_counts`.
        samples, seed, level: See `bootstrap`.

    Returns:
        As `bootstrap`.

    Raises:
        ValueError: If a column is missing or a class is not 0..3.
    """
    numbers, unit = patient_units(table)
    rows = accuracy_sums(table["label"].to_numpy(int), predicted_labels(table))

    def figure(sums: np.ndarray) -> np.ndarray:
        return accuracy_from_sums(sums, metric)

    return bootstrap(unit_sums(rows, numbers), figure, samples, seed, level, unit)


# Part B


def slide_sums(per_slide_counts: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
    """What the Part B scores are made of, for every slide.

    Args:
        per_slide_counts: Joint counts (4, 4) of every slide, rows the true class,
            as from `bach.scores.joint_counts`; {slide: counts} or a sequence.

    Returns:
        float64 `(slides, 4)`: the slide's score (0 if undefined), 1 if it is
        defined, its error and its worst possible error.
    """
    if isinstance(per_slide_counts, Mapping):
        per_slide_counts = list(per_slide_counts.values())
    terms = [part_b_terms(np.asarray(counts)) for counts in per_slide_counts]
    error, worst = np.array(terms, np.float64).reshape(-1, 2).T
    score = score_from_terms(error, worst)
    return np.column_stack([np.nan_to_num(score), np.isfinite(score), error, worst])


def score_from_sums(sums: np.ndarray, pooled: bool = False) -> np.ndarray:
    """The Part B score from sums of the rows of `slide_sums`; nan where undefined."""
    if pooled:
        return score_from_terms(sums[..., 2], sums[..., 3])
    return ratio(sums[..., 0], sums[..., 1])


def score_interval(
    per_slide_counts: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    pooled: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict:
    """Interval of the Part B score, with slides as units.

    Args:
        per_slide_counts: See `slide_sums`. A slide without a score (Normal
            everywhere in both maps) is left out.
        pooled: All pixels together instead of the mean over slides, which is the
            headline.
        samples, seed, level: See `bootstrap`.

    Returns:
        As `bootstrap`.
    """
    sums = slide_sums(per_slide_counts)
    sums = sums[sums[:, 1] > 0]
    return bootstrap(
        sums, lambda drawn: score_from_sums(drawn, pooled), samples, seed, level, "slides"
    )


# Words


def format_interval(interval: dict, digits: int = 2) -> str:
    """An interval as it is to be printed, never without its number of units.

    Example:
        >>> format_interval(
        ...     {"value": 0.79, "low": 0.72, "high": 0.85, "units": 29, "unit": "patients"}
        ... )
        '0.79 [0.72, 0.85] (29 patients)'
    """
    value, low, high = interval["value"], interval["low"], interval["high"]
    unit = interval["unit"]
    if "+" not in unit:
        unit = f"{interval['units']} {unit.removesuffix('s') if interval['units'] == 1 else unit}"
    if value is None:
        return f"undefined ({unit})"
    ends = "no interval" if low is None else f"{low:.{digits}f}, {high:.{digits}f}"
    few = ", too few" if low is not None and interval["units"] < FEW_UNITS else ""
    return f"{value:.{digits}f} [{ends}] ({unit}{few})"
