"""The challenge's scores, of arrays: the Part B score of class maps, Part A accuracy."""

from collections.abc import Iterable, Sequence

import numpy as np

from bach.classes import CLASSES
from bach.core.log import log

# Labels from here on are carcinoma, the winner's two-class question.
_CARCINOMA = CLASSES.index("InSitu")
_BENIGN = CLASSES.index("Benign")


# Part B


def joint_counts(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels of every pair of true and predicted class.

    All Part B figures follow from these 16 numbers, and counts of several slides
    add up.

    Args:
        predicted: Class map, integer 0..3, (height, width).
        truth: Class map, integer 0..3, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only"). By default all count.

    Returns:
        int64 (4, 4), rows are the true and columns the predicted class.

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..3, or the mask
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
    joint = (truth << 2) | predicted
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
    counts = [np.count_nonzero(joint == pair) for pair in range(16)]
    return np.array(counts, dtype=np.int64).reshape(4, 4)


def as_labels(values: np.ndarray, name: str) -> np.ndarray:
    """Check that all values are classes 0..3: uint8, of the same shape.

    Raises:
        ValueError: If they are not; `name` says which.
    """
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Labels must be integers 0..3. Received: {name}.dtype={values.dtype}. "
            "Give the class map (uint8), not the heatmap."
        )
    if values.size and (values.min() < 0 or values.max() >= len(CLASSES)):
        found = np.unique(values)
        shown = ", ".join(str(value) for value in found[:10])
        raise ValueError(
            f"Labels must be 0..3. Received: {name} with the values {shown}. "
            "Map them to 0 Normal, 1 Benign, 2 InSitu, 3 Invasive first."
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
    truth = np.arange(4)[:, None]
    predicted = np.arange(4)[None, :]
    error = np.abs(predicted - truth)
    worst = np.maximum(truth, 3 - truth) * ((predicted > 0) | (truth > 0))
    return int((counts * error).sum()), int((counts * worst).sum())


def score_from_counts(counts: np.ndarray) -> float:
    """Score joint counts; see `part_b_score`.

    Args:
        counts: int (4, 4) from `joint_counts`; the sum over slides gives the
            pooled score.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere.
    """
    error, worst = part_b_terms(counts)
    return 1.0 - error / worst if worst else float("nan")


def part_b_score(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Score a class map as the challenge does.

    s = 1 - sum |p - g| / sum max(g, 3 - g) * [p > 0 or g > 0]

    Wrong by more classes costs more; pixels that are Normal in both maps do not
    count, so that large empty areas earn nothing.

    Args:
        predicted: Class map p, integer 0..3, (height, width).
        truth: Class map g, integer 0..3, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only", an extra and never the headline). By default all count.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere (0/0).

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..3, or the mask
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
            "score undefined and left out of the mean: %s (Normal everywhere, predicted and true)",
            ", ".join(undefined),
        )
    result["undefined"] = undefined
    result["baseline"] = _scores({slide: _always_benign(count) for slide, count in counts.items()})
    result["counts"] = {slide: count.tolist() for slide, count in counts.items()}
    return result


def _scores(counts: dict[str, np.ndarray]) -> dict:
    per_slide = {slide: score_from_counts(count) for slide, count in counts.items()}
    defined = [score for score in per_slide.values() if not np.isnan(score)]
    return {
        "score": float(np.mean(defined)) if defined else float("nan"),
        "score_pooled": score_from_counts(sum(counts.values(), np.zeros((4, 4), np.int64))),
        "per_slide": per_slide,
    }


def _always_benign(counts: np.ndarray) -> np.ndarray:
    baseline = np.zeros_like(counts)
    baseline[:, _BENIGN] = counts.sum(axis=1)
    return baseline


# Part A


def part_a_metrics(truth: Sequence[int], predicted: Sequence[int]) -> dict:
    """Compute all Part A figures.

    Args:
        truth: True classes, integers 0..3, (images,).
        predicted: Predicted classes, integers 0..3, (images,).

    Returns:
        `accuracy`; `balanced_accuracy` (mean sensitivity over the classes that
        occur in `truth`); `binary_accuracy` (carcinoma, that is InSitu or
        Invasive, against the rest); `sensitivity` and `specificity` ({class
        name: value}); `confusion` (4x4 list, rows are the true classes);
        `images`. A value that is undefined, since no image counts in it, is None.

    Raises:
        ValueError: If the two differ in length or are not integers 0..3.
    """
    truth = np.asarray(truth).reshape(-1)
    predicted = np.asarray(predicted).reshape(-1)
    if not truth.size and not predicted.size:  # np.asarray([]) is of floats
        truth = predicted = np.zeros(0, np.uint8)
    counts = joint_counts(predicted, truth)
    total = int(counts.sum())
    hits = np.diagonal(counts)
    positives = counts.sum(axis=1)
    called = counts.sum(axis=0)
    negatives = total - positives
    rejected = total - positives - called + hits  # neither true nor called
    sensitivity = {
        name: _ratio(hits[label], positives[label]) for label, name in enumerate(CLASSES)
    }
    specificity = {
        name: _ratio(rejected[label], negatives[label]) for label, name in enumerate(CLASSES)
    }
    defined = [value for value in sensitivity.values() if value is not None]
    carcinoma = np.arange(4) >= _CARCINOMA
    agree = carcinoma[:, None] == carcinoma[None, :]
    return {
        "accuracy": _ratio(hits.sum(), total),
        "balanced_accuracy": float(np.mean(defined)) if defined else None,
        "binary_accuracy": _ratio(counts[agree].sum(), total),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "confusion": counts.tolist(),
        "images": total,
    }


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None
