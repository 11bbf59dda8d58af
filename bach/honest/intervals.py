"""How sure a figure is: intervals over patients, images or slides.

Images of a patient and pixels of a slide are alike, so they are no independent
evidence. What is left out in turn is the patient (an image of unknown patient stands
for itself) or the slide, never the pixel; the number of these units is always said,
and what they are worth where one of them weighs much more than another.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from bach.core.tables import image_key, patient_key
from bach.scores import accuracy_from_counts, finite, part_b_terms, ratio, score_from_terms
from bach.tasks import task

LEVEL = 0.95
# With fewer units nothing is decided: whether their differences are as even as the
# interval takes them to be cannot be seen from so few.
FEW_UNITS = 5
# Units of uneven weight are worth fewer even ones; below this share both are said.
_UNEVEN = 0.8
_TINY = 1e-12

Statistic = Callable[[np.ndarray], np.ndarray]


def kish(weights: np.ndarray | Sequence[float]) -> float:
    """The number of even units that units of these weights are worth.

    Example:
        >>> kish([5, 5, 5, 5]), kish([17, 1, 1, 1])
        (4.0, 1.369863)

    Source: Kish, Survey Sampling (1965): the square of the sum of the weights over the
    sum of their squares.
    """
    weights = np.asarray(weights, np.float64)
    return round(float(ratio(weights.sum() ** 2, (weights**2).sum())), 6)


def jackknife(
    units: np.ndarray,
    statistic: Statistic,
    worth: float | None = None,
    lowest: float = 0.0,
    level: float = LEVEL,
    unit: str = "units",
) -> dict:
    """Interval of a figure that follows from sums over units; see `limits` for the method.

    Every unit (patient, slide) is reduced to a few sums beforehand, such as the
    number of right answers and of images.

    Args:
        units: Sums of every unit, `(units, sums)`.
        statistic: Maps sums `(..., sums)` to values `(...)`, nan where undefined.
        worth: The number of even units that these are worth, see `kish`; by default
            their number.
        lowest: The lowest possible value, 0 or for a difference -1; the highest is 1.
        level: Coverage wanted, between 0 and 1.
        unit: What a unit is, in the plural.

    Returns:
        `value`; `low` and `high` (None with fewer than two units, or where the value
        is undefined without one of them); `level`; `units`, their number; `worth`;
        `unit`; and `warning`, None or a sentence that must be read with the interval.

    Raises:
        ValueError: If an argument, or the value, is out of range.
    """
    units = np.asarray(units, np.float64)
    if units.ndim != 2:
        raise ValueError(f"units must be (units, sums). Received: shape {units.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1. Received: level={level}.")
    count = len(units)
    if worth is None or not count:
        worth = float(count)
    if count and not 1 <= worth <= count:
        raise ValueError(f"worth must be from 1 to {count}, the units. Received: worth={worth}.")
    value = finite(statistic(units.sum(axis=0)))
    result = {
        "value": value,
        "low": None,
        "high": None,
        "level": level,
        "units": count,
        "worth": worth,
        "unit": unit,
        "warning": None,
    }
    if count < 2 or value is None:
        result["warning"] = f"no interval: {_counted(result)}" if count < 2 else "undefined"
        return result
    if not lowest - 1e-9 <= value <= 1 + 1e-9:
        raise ValueError(f"The value must be from {lowest} to 1. Received: {value}.")
    low, high = map(float, limits(units, statistic, worth, lowest, level))
    if np.isnan(low):
        result["warning"] = f"no interval: undefined without one of the {unit}"
        return result
    result["low"], result["high"] = low, high
    if worth < FEW_UNITS:
        result["warning"] = f"only {_counted(result)}: the interval is a rough guess"
    elif _agree(_without(units, statistic)):
        result["warning"] = (
            f"all {unit} agree: the interval says what {worth:.0f} of them cannot rule out"
        )
    return result


def limits(
    units: np.ndarray, statistic: Statistic, worth: float, lowest: float = 0.0, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of a figure, of one set of units or of many at once.

    A jackknife: each unit is left out in turn, and the spread of the values gives the
    standard error. The interval is Student's t on the logit of the value, so that it
    stays within bounds and grows on the far side of a value near 0 or 1; a difference
    is brought from -1..1 to 0..1 first, which changes little near 0. The degrees of
    freedom are what the units are worth, less one: 29 patients of whom one has a
    quarter of the images say no more about their spread than ten even ones.

    Where all units agree the jackknife would take that for certainty. Then the ends are
    those that so many units cannot rule out: a share q of others is missed by n units
    with probability (1 - q)^n, which is (1 - level) / 2 at the end, as in Clopper and
    Pearson's interval.

    Simulated coverage of 95% intervals (benchmarks/coverage.py) of accuracies of 0.5, 0.7
    and 0.9 with a correlation of 0.1, 0.3 and 0.5 within patients, percentiles of a
    bootstrap moved outwards by Student's t, which was used before / this: the 29 real
    patients .85 to .94 / .94 to .96, 29 even ones .91 to .96 / .94 to .96, ten of fifteen
    images .82 to .96 / .91 to .97; scores of 4 to 20 slides .94 to .95. Where it misses, the
    truth lies mostly below it: with the real patients in up to .05 (before: .15), with ten
    in up to .08 (.18), at an accuracy of 0.9 whose few errors are those of two or three
    patients.

    Args:
        units: Sums of every unit, `(..., units, sums)`, of two units or more.
        statistic, worth, lowest, level: See `jackknife`.

    Returns:
        Lower and upper ends `(...)`; nan where the figure is undefined without one of
        the units.

    Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), chapter
    3; Kish, Survey Sampling (1965). The logit scale and an effective number as for
    proportions in surveys of clusters: Franco, Little, Louis and Slud, Journal of Survey
    Statistics and Methodology 7 (2019). Clopper and Pearson, Biometrika 26 (1934).
    """
    from scipy.special import expit, logit, stdtrit  # not at the top, which takes its time

    tail, count, scale = (1 - level) / 2, units.shape[-2], 1 - lowest
    value = np.clip((statistic(units.sum(axis=-2)) - lowest) / scale, 0, 1)
    without = _without(units, statistic)
    error = without.std(axis=-1) * np.sqrt(count - 1) / scale
    # A t of hardly any degrees of freedom has no finite quantile to speak of.
    t = -stdtrit(worth - 1, tail) if worth > 1.05 else np.inf
    agree = _agree(without) | (value <= 0) | (value >= 1)
    inside = np.where(agree, 0.5, value)
    margin = t * np.where(agree, 1.0, error / (inside * (1 - inside)))
    unseen = 1 - tail ** (1 / worth)
    low = np.where(agree, value * (1 - unseen), expit(logit(inside) - margin))
    high = np.where(agree, value + (1 - value) * unseen, expit(logit(inside) + margin))
    return lowest + scale * low, lowest + scale * high


def _without(units: np.ndarray, statistic: Statistic) -> np.ndarray:
    """The figure without each of the units `(..., units, sums)` in turn, `(..., units)`."""
    return statistic(units.sum(axis=-2, keepdims=True) - units)


def _agree(without: np.ndarray) -> np.ndarray:
    return np.ptp(without, axis=-1) <= _TINY


# Part A


def predicted_labels(table: pd.DataFrame) -> np.ndarray:
    """The predicted class of every row: the largest `prob_` column, else `predicted`.

    Raises:
        ValueError: If the table has neither.
    """
    if set(task().columns) <= set(table.columns):
        return table[list(task().columns)].to_numpy(np.float64).argmax(axis=1)
    if "predicted" not in table.columns:
        raise ValueError(
            f"The table must have the columns {', '.join(task().columns)}, or predicted. "
            f"Received: {', '.join(map(str, table.columns))}."
        )
    return table["predicted"].to_numpy(int)


def patient_units(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """The unit that every row belongs to: its patient, or its image if unknown.

    Args:
        table: Table with `image_id` and perhaps `patient` (empty or missing where
            unknown).

    Returns:
        Number of the unit of every row, `(rows,)`, and what the units are, as `jackknife`
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
        label: True classes, integers 0..n-1, `(rows,)`.
        predicted: Predicted classes, integers 0..n-1, `(rows,)`.

    Returns:
        float64 `(rows, classes x classes)`: 1 at the pair of true and predicted class, else 0.

    Raises:
        ValueError: If a class is not 0..n-1.
    """
    label, predicted = np.asarray(label, int), np.asarray(predicted, int)
    for name, values in (("label", label), ("predicted", predicted)):
        if values.size and (values.min() < 0 or values.max() >= task().count):
            raise ValueError(
                f"Classes must be {task().numbers}. Received: {name} with {np.unique(values)}."
            )
    return np.eye(task().count ** 2)[label * task().count + predicted]


def accuracy_from_sums(sums: np.ndarray, metric: str = "accuracy") -> np.ndarray:
    """An accuracy from sums `(..., classes x classes)` of the rows of `accuracy_sums`.

    Metric and values `(...)` are those of `bach.scores.accuracy_from_counts`.
    """
    counts = sums.reshape(*sums.shape[:-1], task().count, task().count)
    return accuracy_from_counts(counts, metric)


def unit_sums(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Add the rows `(rows, sums)` of each unit up: `(units, sums)`."""
    count = int(numbers.max()) + 1 if len(numbers) else 0
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def accuracy_worth(sums: np.ndarray, metric: str = "accuracy") -> float:
    """The number of even units that units of joint counts `(units, classes x classes)` are worth.

    By their images. An image of a rare class weighs more in the balanced accuracy, which
    makes units uneven that hold as many images: then the smaller of the two numbers.

    Metric: See `bach.scores.accuracy_from_counts`.
    """
    images = sums.reshape(len(sums), task().count, task().count).sum(axis=2)
    worth = kish(images.sum(axis=1))
    if metric == "balanced_accuracy":
        # What independent images would add to its variance, up to a factor.
        shares = images / np.maximum(images.sum(axis=0), 1) ** 2
        worth = min(worth, kish(shares.sum(axis=1)))
    return worth


def accuracy_interval(table: pd.DataFrame, metric: str = "accuracy", level: float = LEVEL) -> dict:
    """Interval of a Part A accuracy, with patients as units.

    Args:
        table: One row per image: `image_id`, `label` (0..n-1), the `prob_` columns
            or `predicted` (0..n-1), and perhaps `patient`. An image whose patient is
            unknown is a unit of its own, which makes the interval narrower than it
            should be if some of these images do share a patient.
        metric: See `bach.scores.accuracy_from_counts`.
        level: See `jackknife`.

    Returns:
        As `jackknife`.

    Raises:
        ValueError: If a column is missing or a class is not 0..n-1.
    """
    numbers, unit = patient_units(table)
    rows = accuracy_sums(table["label"].to_numpy(int), predicted_labels(table))
    sums = unit_sums(rows, numbers)

    def figure(sums: np.ndarray) -> np.ndarray:
        return accuracy_from_sums(sums, metric)

    return jackknife(sums, figure, accuracy_worth(sums, metric), level=level, unit=unit)


# Part B


def slide_sums(per_slide_counts: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
    """What the Part B scores are made of, for every slide.

    Args:
        per_slide_counts: Joint counts (classes, classes) of every slide, rows the true class,
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


def score_worth(sums: np.ndarray, pooled: bool = False) -> float:
    """The number of even slides that slides of these `slide_sums` are worth.

    In the mean all weigh alike; pooled, each weighs as its worst possible error.
    """
    return kish(sums[:, 3]) if pooled else float(len(sums))


def score_interval(
    per_slide_counts: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    pooled: bool = False,
    level: float = LEVEL,
) -> dict:
    """Interval of the Part B score, with slides as units.

    Args:
        per_slide_counts: See `slide_sums`. A slide without a score (Normal
            everywhere in both maps) is left out.
        pooled: All pixels together instead of the mean over slides, which is the
            headline.
        level: See `jackknife`.

    Returns:
        As `jackknife`.
    """
    sums = slide_sums(per_slide_counts)
    sums = sums[sums[:, 1] > 0]

    def figure(sums: np.ndarray) -> np.ndarray:
        return score_from_sums(sums, pooled)

    return jackknife(sums, figure, score_worth(sums, pooled), level=level, unit="slides")


# Words


def format_interval(interval: dict, digits: int = 2) -> str:
    """An interval as it is to be printed, never without its number of units.

    Example:
        >>> interval = {"value": 0.79, "low": 0.72, "high": 0.85, "unit": "patients"}
        >>> format_interval(interval | {"units": 29, "worth": 27.4})
        '0.79 [0.72, 0.85] (29 patients)'
        >>> format_interval(interval | {"units": 29, "worth": 9.6})
        '0.79 [0.72, 0.85] (29 patients, worth 10)'
    """
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return f"undefined ({_counted(interval)})"
    ends = "no interval" if low is None else f"{low:.{digits}f}, {high:.{digits}f}"
    few = ", too few" if low is not None and worth_of(interval) < FEW_UNITS else ""
    return f"{value:.{digits}f} [{ends}] ({_counted(interval)}{few})"


def worth_of(interval: dict) -> float:
    """The number of even units of an interval; those of earlier versions do not say."""
    return interval.get("worth", interval["units"])


def _counted(interval: dict) -> str:
    """The units in words: "1 slide", "29 patients, worth 10"."""
    units, worth, unit = interval["units"], worth_of(interval), interval["unit"]
    if "+" not in unit:  # a mixture names its numbers
        unit = f"{units} {unit.removesuffix('s') if units == 1 else unit}"
    if worth >= _UNEVEN * units:
        return unit
    return f"{unit}, worth {worth:.{1 if worth < FEW_UNITS else 0}f}"
