"""From heatmap values or probabilities to classes, so that the Part B score is best.

    python -m bach.thresholds runs/heatmaps --folds folds/part_b.csv

Reads    RUN/heatmaps/*.npy, RUN/probs/*.npy, RUN/truth/*.png, RUN/slides/*.json of a
         `make_heatmap.py` run
Writes   RUN/thresholds.json

Two ways. Thresholds on the heatmap, as in Kwok 2018 but searched exactly instead of
by trial; and the class of least expected cost under the probabilities. A slide is
never scored with thresholds that saw it; what is stored for new slides is fitted on
all. The last line on stdout is the result as JSON.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bach.calibration import apply_temperature, fit_temperature
from bach.classes import CLASSES
from bach.core.errors import InputError, exit_with
from bach.core.files import to_json, write_json
from bach.core.log import log, step
from bach.core.tables import image_key
from bach.heatmap import THRESHOLDS, cells_to_map, to_classes
from bach.honest.intervals import bootstrap, format_interval, ratio, score_interval, slide_sums
from bach.honest.splits import read_folds
from bach.labels import read_class_map
from bach.scores import score_from_counts

QUARTERS = (0.25, 0.5, 0.75)

# Thresholds are multiples of 1/10,000: fine enough that no heatmap made of millions
# of pixels can tell, and every threshold of two to four decimals is one of them.
SCALE = 10_000

_WORST = np.array([3, 2, 2, 3])  # max(g, 3 - g), the largest possible error
_ERROR = np.abs(np.arange(4)[:, None] - np.arange(4)[None, :])
# What the error |p - g| changes by when p goes from j - 1 to j: (3 steps, 4 truths).
_STEPS = _ERROR[1:] - _ERROR[:-1]

_CHUNK = 1 << 20  # pixels in memory at once
_COLUMNS = 128  # first thresholds tried at once
_TINY = 1e-12


# Histograms


def quantise(values: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Number the step of the scale that a heatmap value has reached.

    Values and thresholds are compared as float32, the type of heatmaps, as
    `bach.heatmap.to_classes` does: step k is reached exactly if that function puts
    the value at or above the threshold k / scale.

    Args:
        values: Heatmap values, 0..1; nan counts as 0.
        scale: Steps from 0 to 1.

    Returns:
        int32 array of the same shape, 0..scale.

    Raises:
        ValueError: If a value is outside 0..1.
    """
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"Heatmap values must be 0..1. Received: {values.min()} to {values.max()}."
        )
    edges = _edges(scale)
    found = np.minimum((values * np.float32(scale)).astype(np.int32), scale)
    # The product is rounded: mend by one step where it fell on the wrong side.
    found += (found < scale) & (values >= edges[np.minimum(found + 1, scale)])
    found -= values < edges[found]
    return found


def _edges(scale: int) -> np.ndarray:
    return (np.arange(scale + 1) / scale).astype(np.float32)


def histogram(
    values: np.ndarray,
    truth: np.ndarray,
    weights: np.ndarray | None = None,
    scale: int = SCALE,
) -> np.ndarray:
    """Count pixels by heatmap value and true class: all that thresholds depend on.

    Args:
        values: Heatmap values, 0..1, nan where nothing was predicted, any shape.
        truth: True classes, integers 0..3, of the same shape.
        weights: Number of pixels that each value stands for, integers of the same
            shape; 1 by default.
        scale: See `quantise`.

    Returns:
        int64 `(scale + 1, 4)`; rows are the steps reached, columns the true class.
        Counts of several slides add up.

    Raises:
        ValueError: If shapes differ, or values or classes are out of range.
    """
    values, truth = np.asarray(values), np.asarray(truth)
    if values.shape != truth.shape or (weights is not None and values.shape != np.shape(weights)):
        raise ValueError(
            "values, truth and weights must have the same shape. Received: "
            f"values.shape={values.shape}, truth.shape={truth.shape}."
        )
    if truth.size and (truth.min() < 0 or truth.max() >= len(CLASSES)):
        raise ValueError(f"Classes must be 0..3. Received: {truth.min()} to {truth.max()}.")
    values, truth = values.reshape(-1), truth.reshape(-1)
    weights = None if weights is None else np.asarray(weights).reshape(-1)
    counts = np.zeros((scale + 1) * 4, np.int64)
    for start in range(0, len(values), _CHUNK):
        part = slice(start, start + _CHUNK)
        pair = quantise(values[part], scale) * 4 + truth[part].astype(np.int32)
        many = None if weights is None else weights[part]
        found = np.bincount(pair, many, minlength=len(counts))
        counts += np.rint(found).astype(np.int64) if many is not None else found
    return counts.reshape(-1, 4)


def cell_histogram(cells: np.ndarray, counts: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """As `histogram`, from cells and the true classes of the pixels in each.

    Args:
        cells: Heatmap values of cells, `(rows, cols)`.
        counts: See `count_truth`.
        scale: See `quantise`.
    """
    out = np.zeros((scale + 1, 4), np.int64)
    np.add.at(out, quantise(cells, scale).reshape(-1), counts.reshape(-1, 4))
    return out


def count_truth(
    truth: np.ndarray, shape: tuple[int, int], step: float, downsample: float
) -> np.ndarray:
    """Count the pixels of each true class in every cell of a heatmap.

    Args:
        truth: Class map, uint8 0..3, `(height, width)`.
        shape: Rows and columns of cells.
        step: Side of a cell in level-0 px.
        downsample: Level-0 px per px of `truth`.

    Returns:
        int64 `(rows, cols, 4)`. A pixel belongs to the cell that its centre lies in,
        as in `bach.heatmap.cells_to_map`.
    """
    rows, cols = shape
    height, width = truth.shape
    # The lookup is that of cells_to_map, along one side at a time: no map is made.
    row = cells_to_map(np.arange(rows)[:, None], step, downsample, (height, 1))[:, 0]
    col = cells_to_map(np.arange(cols)[None, :], step, downsample, (1, width))[0]
    counts = np.zeros(rows * cols * 4, np.int64)
    high = max(1, _CHUNK // max(width, 1))
    for top in range(0, height, high):
        part = slice(top, top + high)
        pair = (row[part, None] * cols + col[None, :]) * 4 + truth[part]
        counts += np.bincount(pair.reshape(-1), minlength=len(counts))
    return counts.reshape(rows, cols, 4)


def counts_of_thresholds(hist: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Joint counts of true and predicted class under three thresholds.

    Args:
        hist: See `histogram`.
        thresholds: Ascending multiples of 1 / scale; others act as the next
            multiple above.

    Returns:
        int64 (4, 4), rows the true class, as `bach.scores.joint_counts`.
    """
    predicted = to_classes(_edges(len(hist) - 1), tuple(thresholds))
    return np.stack([hist[predicted == label].sum(axis=0) for label in range(4)], axis=1)


# The search


def fit_thresholds(
    hists: Iterable[np.ndarray], pooled: bool = False
) -> tuple[tuple[float, float, float], float]:
    """Find the thresholds of the best Part B score: exactly, over all of the scale.

    With the first threshold given, the denominator of every slide is fixed, since it
    depends on p > 0 only. The mean of the slides' ratios is then a weighted sum of
    error sums, and these separate into a term of each threshold: the best pair of
    the others is found with a running minimum. All triples 0 < t1 <= t2 <= t3 are
    covered at a cost that grows with the square of the scale, not its cube.

    A threshold of 0 is not tried: it would call glass, where a heatmap is 0, a
    lesion. Thresholds that no pixel lies between score alike; the middle is taken.
    A class that never pays begins above 1.

    Args:
        hists: A histogram a slide, see `histogram`, all of one scale.
        pooled: Maximise the score of all pixels together instead of the mean over
            the slides that have a score.

    Returns:
        The three thresholds, and their score on these slides (in sample). If no
        thresholds give any slide a score: those of Kwok 2018, and nan.

    Raises:
        ValueError: If there is no slide.
    """
    stack = np.array(list(hists))
    if stack.ndim != 3 or not len(stack):
        raise ValueError("There must be a histogram of a slide or more. Received none.")
    if pooled:
        stack = stack.sum(axis=0, keepdims=True)
    scale = stack.shape[1] - 1
    # Only steps that occur can make a difference: class j begins with the c-th of
    # them, or never (c = len(used)).
    used = np.flatnonzero(stack[:, 1:].any(axis=(0, 2))) + 1
    counts = stack[:, used].astype(np.float64)
    base = stack.sum(axis=1)
    error = (base @ np.arange(4)).astype(np.float64)  # all Normal
    worst = (base[:, 1:] @ _WORST[1:])[:, None] + 3.0 * _tail_sums(counts[..., 0])
    first, second, third = (_tail_sums(counts @ change) for change in _STEPS)
    defined = worst > 0
    number = defined.sum(axis=0)
    weight = np.divide(1.0, worst * number, out=np.zeros_like(worst), where=defined)
    loss = np.full(len(used) + 1, np.inf)
    for start in range(0, len(used) + 1, _COLUMNS):
        stop = min(start + _COLUMNS, len(used) + 1)
        chosen = weight[:, start:stop]
        pairs = _best_pairs(second[:, start:], third[:, start:], chosen)
        ahead = np.tri(stop - start, k=-1, dtype=bool).T  # t2 below t1
        pairs[: stop - start][ahead] = np.inf
        total = (chosen * (error[:, None] + first[:, start:stop])).sum(axis=0) + pairs.min(axis=0)
        loss[start:stop] = np.where(number[start:stop] > 0, total, np.inf)
    one = int(loss.argmin())
    if not np.isfinite(loss[one]):
        return tuple(THRESHOLDS), float("nan")
    chosen = weight[:, one : one + 1]
    two = one + int(_best_pairs(second[:, one:], third[:, one:], chosen)[:, 0].argmin())
    three = two + int((third[:, two:].T @ chosen)[:, 0].argmin())
    below = np.concatenate([[0], used])[:-1]
    middle = np.append((below + used + 2) // 2, scale + 1)
    thresholds = tuple(float(middle[c] / scale) for c in (one, two, three))
    return thresholds, _mean_score(counts_of_thresholds(hist, thresholds) for hist in stack)


def _tail_sums(values: np.ndarray) -> np.ndarray:
    """Sums from each step on, `(slides, steps + 1)`: what calling these changes."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    sums[:, :-1] = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return sums


def _best_pairs(second: np.ndarray, third: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Loss of every second threshold with the best third: `(steps, first thresholds)`."""
    later = third.T @ weight
    np.minimum.accumulate(later[::-1], axis=0, out=later[::-1])
    later += second.T @ weight
    return later


def _mean_score(counts: Iterable[np.ndarray]) -> float:
    scores = np.array([score_from_counts(count) for count in counts])
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else float("nan")


def leave_slides_out(
    hists: Mapping[str, np.ndarray], folds: Mapping[str, int], pooled: bool = False
) -> dict:
    """Score every slide with thresholds fitted on the slides of the other folds.

    Args:
        hists: {slide: histogram}.
        folds: {slide: fold}; a slide of fold -1 is always fitted on, never scored.
        pooled: See `fit_thresholds`.

    Returns:
        `thresholds` ({fold: the three that its slides were scored with}) and
        `counts` ({slide: joint counts (4, 4)}).

    Raises:
        ValueError: If nothing is left to fit on for some fold.
    """
    thresholds, counts = {}, {}
    for fold in sorted({folds[slide] for slide in hists} - {-1}):
        others = [hist for slide, hist in hists.items() if folds[slide] != fold]
        if not others:
            raise ValueError(f"There must be slides of other folds. Received: fold {fold} only.")
        thresholds[fold], _ = fit_thresholds(others, pooled)
        for slide, hist in hists.items():
            if folds[slide] == fold:
                counts[slide] = counts_of_thresholds(hist, thresholds[fold])
    in_order = {slide: counts[slide] for slide in hists if slide in counts}
    return {"thresholds": thresholds, "counts": in_order}


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
        probs: Probabilities, `(..., 4)`, nan where not predicted.
        weights: Number of pixels that each stands for, `(...)`; 1 by default.

    Returns:
        Classes, uint8 `(...)`, 0..3; and the expected ratio E[N] / E[D], so that 1
        minus it is the expected score (nan without pixels).

    Raises:
        ValueError: If shapes do not fit or a weight is negative.

    Source: Dinkelbach, "On Nonlinear Fractional Programming", Management Science 13
    (1967).
    """
    probs = np.asarray(probs)
    if probs.ndim < 1 or probs.shape[-1] != len(CLASSES):
        raise ValueError(f"probs must be (..., 4). Received: shape {probs.shape}.")
    shape = probs.shape[:-1]
    flat = probs.reshape(-1, len(CLASSES))
    weights = np.ones(len(flat)) if weights is None else np.asarray(weights, np.float64)
    if weights.size != len(flat) or (weights < 0).any():
        raise ValueError(
            "weights must be of the shape of the pixels and not negative. Received: "
            f"weights.shape={weights.shape}, probs.shape={probs.shape}."
        )
    weights = weights.reshape(-1)
    kind = np.float32 if probs.dtype == np.float32 else np.float64
    best = np.zeros(len(flat), np.uint8)  # the best class above Normal
    gain = np.zeros(len(flat), kind)  # n(0) - n(q)
    normal = np.zeros(len(flat), kind)  # 3 P0, out of the denominator
    error = worst = 0.0
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        some = flat[part]
        there = np.isfinite(some).all(axis=1)
        some = np.where(there[:, None], some, 0)
        costs = some @ _ERROR.astype(kind)  # symmetric: (pixels, predicted)
        best[part] = np.where(there, costs[:, 1:].argmin(axis=1) + 1, 0)
        least = costs[:, 1:].min(axis=1)
        gain[part] = costs[:, 0] - least
        normal[part] = _WORST[0] * some[:, 0]
        error += float(weights[part] @ least)
        worst += float(weights[part] @ (some @ _WORST.astype(kind)))
    if not worst > 0:
        return np.zeros(shape, np.uint8), float("nan")
    ratio, to_normal = error / worst, np.zeros(len(flat), bool)
    while True:
        trial = gain + kind(ratio) * normal < 0
        below = worst - float(weights @ np.where(trial, normal, 0))
        above = error + float(weights @ np.where(trial, gain, 0))
        # Each round takes a lower ratio or is the last.
        if not below > _TINY * worst or above / below >= ratio - _TINY:
            break
        ratio, to_normal = above / below, trial
    best[to_normal] = 0
    return best.reshape(shape), ratio


# The tool


def read_cells(run: str | Path, folds: str | Path | None = None) -> dict[str, dict]:
    """Read what a `make_heatmap.py` run knows about its annotated slides.

    Args:
        run: Run folder.
        folds: Fold table of slides; None for the folds the run states. If one slide
            has none, each slide is a fold of its own.

    Returns:
        {slide: {"values": float32 (rows, cols); "probs": float32 (rows, cols, 4),
        nan off tissue; "counts": int64 (rows, cols, 4), see `count_truth`; "fold":
        int}}. Slides that the model was trained on are left out (logged): thresholds
        for what it knows by heart are none for new slides.

    Raises:
        InputError: If a file is missing or does not fit, or no slide is left.
    """
    run = Path(run)
    found, in_sample = {}, []
    for path in sorted((run / "slides").glob("*.json")):
        if not (run / "truth" / f"{path.stem}.png").exists():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("in_sample"):
                in_sample.append(path.stem)
                continue
            found[path.stem] = _read_slide(run, path.stem, record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{run} must hold heatmaps, probs, truth and slides of {path.stem} that fit.\n"
                f"Received: {type(error).__name__}: {error}.\nMake the heatmaps again."
            ) from error
    if in_sample:
        log.warning("left out, the model was trained on them: %s", ", ".join(in_sample))
    if not found:
        raise InputError(
            "There must be annotated slides that the model was not trained on.\n"
            f"Received: {run} with {len(in_sample)} slides that it was trained on, no others.\n"
            "Name a run of make_heatmap.py whose models were trained in folds."
        )
    _assign_folds(found, folds)
    return found


def _read_slide(run: Path, slide: str, record: dict) -> dict:
    values = np.load(run / "heatmaps" / f"{slide}.npy")
    probs = np.load(run / "probs" / f"{slide}.npy")
    truth = read_class_map(run / "truth" / f"{slide}.png")
    downsample = float(record["downsample"])
    expected = (record["height"] / downsample, record["width"] / downsample)
    # A map's size is rounded one way or another, so it is known to a pixel.
    if any(abs(want - have) >= 2 for want, have in zip(expected, truth.shape, strict=True)):
        raise ValueError(f"truth of shape {truth.shape} where {expected} pixels are expected")
    if probs.shape != (*values.shape, len(CLASSES)):
        raise ValueError(f"probs of shape {probs.shape} and a heatmap of shape {values.shape}")
    counts = count_truth(truth, values.shape, float(record["step"]), downsample)
    return {"values": values, "probs": probs, "counts": counts, "fold": record.get("fold")}


def _assign_folds(slides: dict[str, dict], folds: str | Path | None) -> None:
    if folds is not None:
        table = read_folds(folds)
        known = dict(zip(table["image_id"].map(image_key), table["fold"], strict=True))
        missing = [slide for slide in slides if image_key(slide) not in known]
        if missing:
            raise InputError(
                f"Every slide must stand in the fold table.\n"
                f"Received: --folds={folds} without {', '.join(missing)}.\nAdd them."
            )
        for slide, record in slides.items():
            record["fold"] = int(known[image_key(slide)])
    elif any(record["fold"] is None for record in slides.values()):
        log.info("slides without a fold: each slide is left out by itself")
        for number, record in enumerate(slides.values()):
            record["fold"] = number


def apply_rules(slides: Mapping[str, dict]) -> tuple[dict, dict]:
    """Score every rule on the slides, the fitted ones leave-slides-out.

    Args:
        slides: See `read_cells`.

    Returns:
        {rule: {slide: joint counts}}, and what was fitted: `thresholds` (on all
        slides, for new ones), `thresholds_of_fold`, `temperature` and
        `temperature_of_fold`.
    """
    with step("histograms") as notes:
        hists = {name: cell_histogram(s["values"], s["counts"]) for name, s in slides.items()}
        notes.append(f"{len(hists)} slides")
    folds = {name: s["fold"] for name, s in slides.items()}
    scored = [name for name in slides if folds[name] >= 0]
    rules: dict[str, dict] = {
        f"Kwok 2018: {_said(THRESHOLDS)}": _all_counts(hists, scored, THRESHOLDS),
        f"quarters: {_said(QUARTERS)}": _all_counts(hists, scored, QUARTERS),
    }
    with step("thresholds") as notes:
        thresholds, _ = fit_thresholds(hists.values())
        notes.append(_said(thresholds))
    fitted: dict = {"thresholds": list(thresholds)}
    enough = all(any(folds[other] != folds[name] for other in slides) for name in scored)
    if enough:
        with step("leave slides out") as notes:
            left_out = leave_slides_out(hists, folds)
            notes.append(f"{len(left_out['thresholds'])} folds")
        rules["fitted on other folds"] = left_out["counts"]
        fitted["thresholds_of_fold"] = {str(k): list(v) for k, v in left_out["thresholds"].items()}
    with step("least expected cost"):
        rules["least expected cost"] = {
            name: _decide(slides[name], temperature=1.0) for name in scored
        }
        fitted["temperature"] = _temperature(slides, leave=None)
        if enough:
            left_out = sorted({folds[name] for name in scored})
            used = {fold: _temperature(slides, leave=fold) for fold in left_out}
            rules["least expected cost, temperature of other folds"] = {
                name: _decide(slides[name], used[folds[name]]) for name in scored
            }
            fitted["temperature_of_fold"] = {str(k): v for k, v in used.items()}
    rules["always Benign"] = {name: _always(hists[name], 1) for name in scored}
    rules[f"IN SAMPLE, fitted on all: {_said(thresholds)}"] = _all_counts(hists, scored, thresholds)
    return rules, fitted


def _said(thresholds: Sequence[float]) -> str:
    digits = [2 if round(t, 2) == t else 4 for t in thresholds]
    pairs = zip(thresholds, digits, strict=True)
    return " / ".join("never" if t > 1 else f"{t:.{digit}f}" for t, digit in pairs)


def _all_counts(hists: Mapping, scored: Sequence[str], thresholds: Sequence[float]) -> dict:
    return {name: counts_of_thresholds(hists[name], thresholds) for name in scored}


def _always(hist: np.ndarray, label: int) -> np.ndarray:
    counts = np.zeros((4, 4), np.int64)
    counts[:, label] = hist.sum(axis=0)
    return counts


def _decide(slide: dict, temperature: float) -> np.ndarray:
    """Joint counts of a slide under the rule of least expected cost."""
    probs = apply_temperature(slide["probs"], temperature)
    classes, _ = dinkelbach(probs, slide["counts"].sum(axis=-1))
    return np.stack([slide["counts"][classes == label].sum(axis=0) for label in range(4)], axis=1)


def _temperature(slides: Mapping[str, dict], leave: int | None) -> float:
    """Fit a temperature on the predicted cells of the slides of all other folds."""
    probs, counts = [np.zeros((0, 4))], [np.zeros((0, 4), np.int64)]
    for slide in slides.values():
        if leave is None or slide["fold"] != leave:
            there = np.isfinite(slide["probs"]).all(axis=-1)
            probs.append(slide["probs"][there])
            counts.append(slide["counts"][there])
    return fit_temperature(np.concatenate(probs), np.concatenate(counts))


def compare_rules(rules: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """Intervals of the score of every rule, and of its difference from the first."""
    reference = slide_sums(next(iter(rules.values())))
    result = {}
    for rule, counts in rules.items():
        sums = slide_sums(counts)
        there = (sums[:, 1] > 0) & (reference[:, 1] > 0)
        result[rule] = {
            "score": score_interval(counts),
            "pooled": score_interval(counts, pooled=True),
            "difference": bootstrap(
                np.column_stack([sums[:, 0] - reference[:, 0], there])[there],
                lambda drawn: ratio(drawn[..., 0], drawn[..., 1]),
                unit="slides",
            ),
        }
    return result


def format_rules(result: Mapping[str, dict]) -> str:
    """Lay the scores of the rules out to be read."""
    rows = [("rule", "score, mean over slides", "pooled", "minus the first")]
    for rule, row in result.items():
        mean, pooled, apart = (
            format_interval(row[key], 4) for key in ("score", "pooled", "difference")
        )
        rows.append((rule, mean, *(text.rsplit(" (", 1)[0] for text in (pooled, apart))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    warning = next(iter(result.values()))["score"]["warning"]
    if warning:
        lines.append(f"note: {warning}")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.thresholds", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", help="run folder of make_heatmap.py")
    parser.add_argument(
        "--folds", default=None,
        help="fold table of slides (default: the folds of the models; else slide by slide)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)

    # 1. Cells: their values, probabilities and true pixels.
    slides = read_cells(args.run_dir, args.folds)

    # 2. Every rule on every slide, never with thresholds that saw it.
    rules, fitted = apply_rules(slides)
    result = compare_rules(rules)
    print(format_rules(result))

    # 3. What is kept for new slides.
    stored = {**fitted, "fitted_on": list(slides), "scale": SCALE, "scores": result}
    write_json(Path(args.run_dir) / "thresholds.json", json.loads(to_json(stored)))
    print(to_json({**fitted, "scores": result}))
    return 0


if __name__ == "__main__":
    exit_with(main)
