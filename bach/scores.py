"""Scores of arrays: the Part B score, what is best under it, Part A accuracy, reliability."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from bach.core.log import log
from bach.tasks import BACKGROUND, task

_TINY = 1e-12

# The accuracies of Part A.
ACCURACIES = ("accuracy", "balanced_accuracy", "binary_accuracy")

# Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), section 5.
BINS = 15


def accuracy_names() -> dict[str, str]:
    """How the accuracies are called in tables."""
    return dict(zip(ACCURACIES, ("accuracy", "balanced accuracy", task().split_name), strict=True))


def ratio(part: np.ndarray | int, whole: np.ndarray | int) -> np.ndarray:
    """Divide elementwise; nan where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.divide(part, whole, out=out, where=whole != 0)


def finite(value: np.ndarray | float) -> float | None:
    """A figure as it goes into JSON: None where it is undefined."""
    return float(value) if np.isfinite(value) else None


# Part B


def joint_counts(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels of every pair of true and predicted class.

    All Part B figures follow from these 16 numbers, and counts of several slides
    add up.

    Args:
        predicted: Class map, integer 0..n-1, (height, width).
        truth: Class map, integer 0..n-1, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only"). By default all count.

    Returns:
        int64 (classes, classes), rows are the true and columns the predicted class.

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..n-1, or the mask
            is not bool.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(
            "The two class maps must have the same shape. "
            f"Received: predicted.shape={predicted.shape}, truth.shape={truth.shape}. "
            "Resize one of them by nearest neighbour first."
        )
    predicted = as_labels(predicted, "predicted")
    truth = as_labels(truth, "truth")
    joint = truth * np.uint8(task().count) + predicted
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != joint.shape:
            raise ValueError(
                "The mask must be bool and of the shape of the maps. "
                f"Received: mask.dtype={mask.dtype}, mask.shape={mask.shape}, "
                f"maps of shape {joint.shape}. Compare it with 0 or resize it first."
            )
        joint = joint[mask]
    # np.bincount would widen every pixel to 8 bytes; maps can hold 10^8 pixels.
    counts = [np.count_nonzero(joint == pair) for pair in range(task().count ** 2)]
    return np.array(counts, dtype=np.int64).reshape(task().count, task().count)


def always(counts: np.ndarray, label: int | None = None) -> np.ndarray:
    """Joint counts of the same pixels or images if one class is always predicted.

    Args:
        counts: int (4, 4) from `joint_counts`, rows the true class.
        label: The class, 0..n-1; by default that of the task: Benign is the best single answer
            on the challenge's slides.
    """
    result = np.zeros_like(counts)
    result[:, task().usual if label is None else label] = counts.sum(axis=1)
    return result


def as_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Check that all values are classes 0..n-1: uint8, of the same shape.

    Raises:
        ValueError: If they are not; `name` says which.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Labels must be integers {task().numbers}. Received: {name}.dtype={values.dtype}. "
            "Give the class map (uint8), not the heatmap."
        )
    if values.size and (values.min() < 0 or values.max() >= task().count):
        found = np.unique(values)
        shown = ", ".join(str(value) for value in found[:10])
        raise ValueError(
            f"Labels must be {task().numbers}. Received: {name} with the values {shown}. "
            f"Map them to {task().numbered} first."
        )
    return values.astype(np.uint8, copy=False)


def part_b_terms(counts: np.ndarray) -> tuple[int, int]:
    """Split the Part B score into its two sums.

    Args:
        counts: int (4, 4) from `joint_counts`, or a sum of several.

    Returns:
        The error sum |p - g| and the worst possible error
        sum max(g, 3 - g) * [p > 0 or g > 0].
    """
    there = np.ones(counts.shape, bool)
    there[BACKGROUND, BACKGROUND] = False
    worst = np.where(there, task().worst[:, None], 0)
    return int((counts * task().error).sum()), int((counts * worst).sum())


def score_from_terms(error: np.ndarray | int, worst: np.ndarray | int) -> np.ndarray:
    """The Part B score from its two sums, elementwise; nan where the worst is 0."""
    return 1.0 - ratio(error, worst)


def score_from_counts(counts: np.ndarray) -> float:
    """Score joint counts; see `part_b_score`.

    Args:
        counts: int (4, 4) from `joint_counts`; the sum over slides gives the
            pooled score.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere.
    """
    return float(score_from_terms(*part_b_terms(counts)))


def part_b_score(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Score a class map as the challenge does.

    s = 1 - sum |p - g| / sum max(g, 3 - g) * [p > 0 or g > 0]

    (Where the classes of a task are not ordered, every error is 1.)

    Wrong by more classes costs more; pixels that are Normal in both maps do not
    count, so that large empty areas earn nothing.

    Args:
        predicted: Class map p, integer 0..n-1, (height, width).
        truth: Class map g, integer 0..n-1, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only", an extra and never the headline). By default all count.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere (0/0).

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..n-1, or the mask
            is not bool.

    Example:
        >>> part_b_score(np.array([[1, 1, 1, 1]]), np.array([[0, 1, 2, 3]]))
        0.6

    Source: Aresta et al. 2019 (arXiv:1808.04277), evaluation of Part B.
    """
    return score_from_counts(joint_counts(predicted, truth, mask))


def score_part_b(pairs: Iterable[tuple]) -> dict:
    """Score the class maps of several slides.

    Whether the challenge server averages slides or pools pixels is not known:
    both are computed; the mean over slides is the headline.

    Args:
        pairs: `(slide, predicted, truth)` or `(slide, predicted, truth, mask)`
            each, with arrays as in `part_b_score`. May be a generator, so that
            one slide at a time is in memory.

    Returns:
        `score` (mean over the slides that have one), `score_pooled` (all pixels
        together), `per_slide` ({slide: score}), `undefined` (slides that are
        Normal everywhere in both maps and are left out of the mean), and
        `baseline` with the same first three keys for always predicting Benign
        (defined on every slide with pixels), and `counts` ({slide: joint counts as
        lists}). A mean of no slides is nan.

    Raises:
        ValueError: As `part_b_score`, or if a slide comes twice.
    """
    counts: dict[str, np.ndarray] = {}
    for slide, *maps in pairs:
        if slide in counts:
            raise ValueError(
                f"Every slide must come once. Received: {slide!r} twice. Leave one out."
            )
        counts[slide] = joint_counts(*maps)
    result = _scores(counts)
    undefined = [slide for slide, score in result["per_slide"].items() if np.isnan(score)]
    if undefined:
        log.warning(
            "score undefined and left out of the mean: %s (%s everywhere, predicted and true)",
            ", ".join(undefined),
            task().classes[0],
        )
    result["undefined"] = undefined
    result["baseline"] = _scores({slide: always(count) for slide, count in counts.items()})
    result["counts"] = {slide: count.tolist() for slide, count in counts.items()}
    return result


def _scores(counts: dict[str, np.ndarray]) -> dict:
    per_slide = {slide: score_from_counts(count) for slide, count in counts.items()}
    defined = [score for score in per_slide.values() if not np.isnan(score)]
    return {
        "score": float(np.mean(defined)) if defined else float("nan"),
        "score_pooled": score_from_counts(sum(counts.values(), np.zeros_like(task().error))),
        "per_slide": per_slide,
    }


# The decision rule on probabilities


def dinkelbach(probs: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Choose the classes of least expected cost under the Part B score.

    The score is 1 - N / D with N = sum |p - g| and D = sum max(g, 3 - g) [p > 0 or
    g > 0]. Under the probabilities both have expected values, sums over pixels. The
    least ratio E[N] / E[D] is r where min over p of E[N] - r E[D] is 0 (Dinkelbach),
    and given r every pixel decides for itself. Let n(p) be the expected error of
    class p, and P0 the probability of Normal. The three classes above Normal share
    the denominator, so the best of them, q, has the least n. Calling the pixel Normal
    takes 3 P0 out of the denominator and pays only if n(0) + 3 r P0 < n(q). r starts
    at the ratio of calling nothing Normal, and falls until it stays.

    The consequence is that of the score, not of a mistake: while the score is under
    2/3 (r > 1/3), even what is surely Normal is better called Benign. Pixels without
    a prediction (nan: no tissue) are Normal and take no part.

    The ratio is one number for all pixels given. The headline is the mean over
    slides of their own ratios, so call it slide by slide; for the pooled score call
    it once for all. The ratio of expected values stands for the expected ratio,
    which is the same in the limit of many pixels.

    Args:
        probs: Probabilities, `(..., classes)`, nan where not predicted.
        weights: Number of pixels that each stands for, `(...)`; 1 by default.

    Returns:
        Classes, uint8 `(...)`, 0..n-1; and the expected ratio E[N] / E[D], so that 1
        minus it is the expected score (nan without pixels).

    Raises:
        ValueError: If shapes do not fit or a weight is negative.

    Source: Dinkelbach, "On Nonlinear Fractional Programming", Management Science 13
    (1967).
    """
    # Differs from Kwok 2018: the probabilities themselves decide, not thresholds on the expected
    # class; only with --rule least-cost.
    probs = np.asarray(probs)
    if probs.ndim < 1 or probs.shape[-1] != task().count:
        raise ValueError(f"probs must be (..., {task().count}). Received: shape {probs.shape}.")
    shape, kind = probs.shape[:-1], np.float32 if probs.dtype == np.float32 else np.float64
    weights = np.ones(shape) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != shape or (weights < 0).any():
        raise ValueError(
            "weights must be of the shape of the pixels and not negative. Received: "
            f"weights.shape={weights.shape}, probs.shape={probs.shape}."
        )
    weights, probs = weights.reshape(-1), probs.reshape(-1, task().count).astype(kind)
    there = np.isfinite(probs).all(axis=1)
    probs = np.where(there[:, None], probs, 0)
    costs = probs @ task().error.astype(kind)  # n(p), the error is symmetric: (pixels, predicted)
    least = costs[:, 1:].min(axis=1)
    best = np.where(there, costs[:, 1:].argmin(axis=1) + 1, BACKGROUND).astype(np.uint8)
    gain = costs[:, BACKGROUND] - least
    normal = probs[:, BACKGROUND] * kind(task().worst[BACKGROUND])  # 3 P0, out of the denominator
    error, worst = float(weights @ least), float(weights @ (probs @ task().worst.astype(kind)))
    if not worst > 0:
        return np.zeros(shape, np.uint8), float("nan")
    least_ratio, to_normal = error / worst, np.zeros(len(probs), bool)
    while True:
        trial = gain + kind(least_ratio) * normal < 0
        below = worst - float(weights @ np.where(trial, normal, 0))
        above = error + float(weights @ np.where(trial, gain, 0))
        # Each round takes a lower ratio or is the last.
        if not below > _TINY * worst or above / below >= least_ratio - _TINY:
            break
        least_ratio, to_normal = above / below, trial
    best[to_normal] = BACKGROUND
    return best.reshape(shape), least_ratio


# Part A


def accuracy_from_counts(counts: np.ndarray, metric: str = "accuracy") -> np.ndarray:
    """An accuracy of joint counts, of one table or of many at once.

    Args:
        counts: `(..., classes, classes)`, rows the true and columns the predicted class.
        metric: "accuracy", "balanced_accuracy" (mean sensitivity over the classes that
            occur) or "binary_accuracy" (carcinoma, that is InSitu or Invasive, or not).

    Returns:
        Values `(...)`, 0..1, nan where no image counts.

    Raises:
        ValueError: If the metric is none of these.
    """
    hits, truth = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1)
    if metric == "accuracy":
        return ratio(hits.sum(axis=-1), truth.sum(axis=-1))
    if metric == "binary_accuracy":
        beyond = np.arange(task().count) >= task().split
        agree = beyond[:, None] == beyond[None, :]
        return ratio(counts[..., agree].sum(axis=-1), truth.sum(axis=-1))
    if metric == "balanced_accuracy":
        there = truth > 0
        sensitivity = np.where(there, ratio(hits, truth), 0.0)
        return ratio(sensitivity.sum(axis=-1), there.sum(axis=-1))
    raise ValueError(f"metric must be one of {', '.join(ACCURACIES)}. Received: {metric!r}.")


def part_a_metrics(truth: Sequence[int], predicted: Sequence[int]) -> dict:
    """Compute all Part A figures.

    Args:
        truth: True classes, integers 0..n-1, (images,).
        predicted: Predicted classes, integers 0..n-1, (images,).

    Returns:
        `accuracy`, `balanced_accuracy` and `binary_accuracy`, see
        `accuracy_from_counts`; `sensitivity` and `specificity` ({class name: value});
        `confusion` (4x4 list, rows are the true classes); `images`. A value that is
        undefined, since no image counts in it, is None.

    Raises:
        ValueError: If the two differ in length or are not integers 0..n-1.
    """
    counts = joint_counts(_flat(predicted), _flat(truth))
    total, positives, called = counts.sum(), counts.sum(axis=1), counts.sum(axis=0)
    hits = np.diagonal(counts)
    sensitivity = ratio(hits, positives)
    # What is neither true nor called, of what is not true.
    specificity = ratio(total - positives - called + hits, total - positives)
    return {
        **{metric: finite(accuracy_from_counts(counts, metric)) for metric in ACCURACIES},
        "sensitivity": dict(zip(task().classes, map(finite, sensitivity), strict=True)),
        "specificity": dict(zip(task().classes, map(finite, specificity), strict=True)),
        "confusion": counts.tolist(),
        "images": int(total),
    }


def _flat(labels: Sequence[int]) -> np.ndarray:
    flat = np.asarray(labels).reshape(-1)
    return flat if flat.size else flat.astype(np.uint8)  # NumPy takes [] for floats


# Reliability


def reliability(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Compare how sure the answers are with how often they are right.

    Args:
        probs: Probabilities, `(images, classes)`.
        labels: True classes, 0..n-1, `(images,)`.
        bins: Number of bins of equal width; a bin holds the images whose largest
            probability is above `low` and up to `high`.

    Returns:
        Table of `low, high, count, confidence, accuracy`, one row per bin; the last
        two are nan in an empty bin.

    Raises:
        ValueError: If shapes do not fit, or a value is not finite.

    Source: Guo et al. 2017, section 2.
    """
    probs, labels = checked_probs(probs, labels)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more. Received: bins={bins}.")
    confidence = probs.max(axis=1, initial=0.0)
    right = probs.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, values, minlength=bins) for values in (confidence, right))
    confidence, accuracy = (ratio(values, count) for values in sums)
    table = {"low": edges[:-1], "high": edges[1:], "count": count}
    return pd.DataFrame({**table, "confidence": confidence, "accuracy": accuracy})


def expected_calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by count.

    It is biased upwards where images are few: bins then stray by chance.

    Args:
        probs, labels, bins: See `reliability`.

    Returns:
        The error, 0..1; nan without images.

    Source: Guo et al. 2017, equation 3.
    """
    table = reliability(probs, labels, bins)
    total = table["count"].sum()
    if not total:
        return float("nan")
    gaps = (table["accuracy"] - table["confidence"]).abs().fillna(0.0)
    return float((gaps * table["count"]).sum() / total)


def checked_probs(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 `(images, classes)` and labels as integers `(images,)`.

    Raises:
        ValueError: If shapes do not fit, or a value is not finite or negative.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.ndim != 2 or probs.shape[1] != task().count or labels.shape != (len(probs),):
        raise ValueError(
            "probs must be (images, 4) and labels (images,). "
            f"Received: probs.shape={probs.shape}, labels.shape={labels.shape}."
        )
    if not np.isfinite(probs).all() or (probs < 0).any():
        raise ValueError("Probabilities must be finite and not negative. Received others.")
    return probs, as_labels(labels, "labels")
