"""What was found against what is there: pairs, counts, F1 with its interval, thresholds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bach.core.tables import image_key
from bach.honest.intervals import jackknife, kish, unit_sums
from bach.points.maps import SLACK
from bach.scores import ratio


def match(found: pd.DataFrame, truth: pd.DataFrame, radius_um: float) -> np.ndarray:
    """Pair what was found on a slide with what is there, one to one.

    The point with the highest score takes the nearest true one that is within the radius and
    still free, then the next. So a higher threshold takes points away and changes no other pair.

    Args:
        found: Points with `x_um`, `y_um` and `score`.
        truth: Points with `x_um` and `y_um`.
        radius_um: Largest distance of a pair, um; 7.5 in TUPAC16.

    Returns:
        For every found point the row of its true one, or -1; int64 `(len(found),)`.

    Source: Veta et al. 2019, Predicting breast tumor proliferation from whole-slide images: the
    TUPAC16 challenge, section 2. Differs from it: there a second point within the radius of the
    same figure counts for nothing; here it is false, as in the MIDOG challenges.
    """
    pairs = np.full(len(found), -1, np.int64)
    if found.empty or truth.empty:
        return pairs
    from scipy import spatial

    there = spatial.cKDTree(truth[["x_um", "y_um"]].to_numpy(np.float64))
    here = found[["x_um", "y_um"]].to_numpy(np.float64)
    near = there.query_ball_point(here, radius_um * SLACK, return_sorted=True)
    free = np.ones(len(truth), bool)
    for row in np.argsort(-found["score"].to_numpy(np.float64), kind="stable"):
        candidates = [place for place in near[row] if free[place]]
        if candidates:
            away = ((there.data[candidates] - here[row]) ** 2).sum(axis=1)
            pairs[row] = candidates[int(away.argmin())]
            free[pairs[row]] = False
    return pairs


def mark_hits(found: pd.DataFrame, truth: pd.DataFrame, radius_um: float) -> pd.DataFrame:
    """Say of found points of many slides whether they are true.

    Args:
        found: Points with `image_id`, `x_um`, `y_um` and `score`.
        truth: Points with `image_id`, `x_um` and `y_um`; slides are the same by `image_key`.
        radius_um: See `match`.

    Returns:
        A copy of `found` with the column `hit`, bool.
    """
    hit = np.zeros(len(found), bool)
    stated = truth["image_id"].map(image_key)
    keys = found["image_id"].map(image_key)
    for key in keys.unique():
        rows = np.flatnonzero(keys == key)
        hit[rows] = match(found.iloc[rows], truth[stated == key], radius_um) >= 0
    return found.assign(hit=hit)


def count(
    marked: pd.DataFrame, truth: pd.DataFrame, cases: Mapping[str, str], threshold: float = -np.inf
) -> pd.DataFrame:
    """Count what was found, per case.

    Args:
        marked: Of `mark_hits`; found by any threshold up to this one.
        truth: The true points, with `image_id`.
        cases: Case (patient) of every slide that was looked at, with and without points, by
            `image_id`.
        threshold: Lowest score of a point that counts.

    Returns:
        Table of `tp`, `fp` and `fn` (int64), a row per case in the order of their first slides,
        indexed by `case`.

    Raises:
        ValueError: If a point lies on a slide without a case.
    """
    of_key = {image_key(name): case for name, case in cases.items()}
    kept = marked[marked["score"] >= threshold]
    names = [table["image_id"].map(image_key) for table in (kept, truth)]
    missing = sorted(set(names[0]).union(names[1]) - set(of_key))
    if missing:
        raise ValueError(f"Every slide must have a case. Received points on {missing[:5]}.")
    order = pd.Index(dict.fromkeys(of_key.values()), name="case")
    case, true_case = (name.map(of_key) for name in names)
    hit = kept["hit"].to_numpy(bool)

    def per_case(rows: pd.Series) -> pd.Series:
        return rows.value_counts().reindex(order, fill_value=0).astype(np.int64)

    tp = per_case(case[hit])
    return pd.DataFrame({"tp": tp, "fp": per_case(case[~hit]), "fn": per_case(true_case) - tp})


FIGURES = ("precision", "recall", "f1")


def figure(sums: np.ndarray, name: str) -> np.ndarray:
    """Precision, recall or F1 of counts.

    Args:
        sums: `(..., 3)`: true positives, false positives, false negatives.
        name: One of `FIGURES`.

    Returns:
        Values `(...)`, nan where there is nothing to divide by.

    Example:
        >>> figure(np.array([6, 2, 4]), "f1").round(4)
        np.float64(0.6667)
    """
    tp, fp, fn = np.moveaxis(np.asarray(sums), -1, 0)
    return ratio(*_parts(tp, fp, fn, name))


def _parts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, name: str) -> tuple:
    """What a figure divides, and by what."""
    if name == "f1":
        return 2 * tp, 2 * tp + fp + fn
    return tp, tp + (fp if name == "precision" else fn)


def interval(counts: pd.DataFrame, name: str = "f1", unit: str = "patients") -> dict:
    """A figure over cases, with its interval.

    Args:
        counts: Of `count`, a row per case; several rows of one index are one case.
        name: One of `FIGURES`.
        unit: What a case is, in the plural.

    Returns:
        As `bach.honest.intervals.jackknife`.
    """
    numbers = pd.factorize(counts.index)[0]
    sums = unit_sums(counts[["tp", "fp", "fn"]].to_numpy(np.float64), numbers)
    tp, fp, fn = sums.T
    weights = _parts(tp, fp, fn, name)[1]
    # A case without a figure, found or true, says nothing of F1.
    sums, weights = sums[weights > 0], weights[weights > 0]
    worth = kish(weights) if len(weights) else None
    return jackknife(sums, lambda sums: figure(sums, name), worth, unit=unit)


def best_threshold(marked: pd.DataFrame, truths: int) -> tuple[float, float]:
    """The threshold of the highest F1 of all points together.

    To be searched on cases that nothing is then scored on.

    Args:
        marked: Of `mark_hits`, found by a threshold as low as is of interest.
        truths: Number of true points on the slides that were looked at.

    Returns:
        The threshold, a score that occurs (of equal F1 the highest), and that F1.

    Raises:
        ValueError: If no point is true: then no threshold is better than another.
    """
    marked = marked.sort_values("score", ascending=False, kind="stable")
    hit, score = marked["hit"].to_numpy(bool), marked["score"].to_numpy(np.float64)
    if not hit.any() or truths < hit.sum():
        raise ValueError(
            "There must be found points that are true, and no more of these than true ones. "
            f"Received: {hit.sum()} of {len(hit)} points, {truths} true ones."
        )
    tp = np.cumsum(hit)
    fp = np.arange(1, len(hit) + 1) - tp
    f1 = figure(np.stack([tp, fp, truths - tp], axis=-1), "f1")
    # All points of one score come and go together.
    last = np.append(score[1:] != score[:-1], True)
    best = int(np.argmax(np.where(last, f1, -1)))
    return float(score[best]), float(f1[best])
