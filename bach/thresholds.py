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
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bach.calibration import apply_temperature, fit_temperature
from bach.core.errors import InputError, exit_with
from bach.core.files import read_array, to_json, write_json
from bach.core.log import log, step
from bach.core.tables import image_key
from bach.core.text import columns
from bach.heatmap import cells_to_map, to_classes
from bach.honest.intervals import format_interval, jackknife, score_interval, slide_sums
from bach.honest.records import SlideRecord, read_slides
from bach.honest.splits import ALWAYS_TRAIN, read_folds
from bach.labels import read_class_map
from bach.scores import always, dinkelbach, ratio, score_from_counts
from bach.tasks import BACKGROUND, task, use

# Thresholds are multiples of 1/10,000: fine enough that no heatmap made of millions
# of pixels can tell, and every threshold of two to four decimals is one of them.
SCALE = 10_000

_CHUNK = 1 << 20  # pixels in memory at once
_COLUMNS = 128  # first thresholds tried at once


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
        Integers of the same shape, 0..scale.

    Raises:
        ValueError: If a value is outside 0..1.
    """
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"Heatmap values must be 0..1. Received: {values.min()} to {values.max()}."
        )
    return np.searchsorted(_edges(scale), values, side="right") - 1


def _edges(scale: int) -> np.ndarray:
    return (np.arange(scale + 1) / scale).astype(np.float32)


def cell_histogram(cells: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Count pixels by heatmap value and true class: all that thresholds depend on.

    Args:
        cells: Heatmap values of cells, `(rows, cols)`, nan where nothing was predicted.
        counts: True classes of the pixels in each cell, see `count_truth`.

    Returns:
        int64 `(SCALE + 1, classes)`; rows are the steps reached, columns the true class.
        Counts of several slides add up.
    """
    result = np.zeros((SCALE + 1, task().count), np.int64)
    np.add.at(result, quantise(cells).reshape(-1), counts.reshape(-1, task().count))
    return result


def count_truth(
    truth: np.ndarray, shape: tuple[int, int], step: float, downsample: float
) -> np.ndarray:
    """Count the pixels of each true class in every cell of a heatmap.

    Args:
        truth: Class map, uint8 0..n-1, `(height, width)`.
        shape: Rows and columns of cells.
        step: Side of a cell in level-0 px.
        downsample: Level-0 px per px of `truth`.

    Returns:
        int64 `(rows, cols, classes)`. A pixel belongs to the cell that its centre lies in,
        as in `bach.heatmap.cells_to_map`.
    """
    rows, cols = shape
    height, width = truth.shape
    # The lookup is that of cells_to_map, along one side at a time: no map is made.
    row = cells_to_map(np.arange(rows)[:, None], step, downsample, (height, 1))[:, 0]
    col = cells_to_map(np.arange(cols)[None, :], step, downsample, (1, width))[0]
    counts = np.zeros(rows * cols * task().count, np.int64)
    high = max(1, _CHUNK // max(width, 1))
    for top in range(0, height, high):
        part = slice(top, top + high)
        pair = (row[part, None] * cols + col[None, :]) * task().count + truth[part]
        counts += np.bincount(pair.reshape(-1), minlength=len(counts))
    return counts.reshape(rows, cols, task().count)


def counts_of_thresholds(hist: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Joint counts of true and predicted class under thresholds.

    Args:
        hist: See `cell_histogram`.
        thresholds: Ascending multiples of 1 / scale; others act as the next
            multiple above.

    Returns:
        int64 (classes, classes), rows the true class, as `bach.scores.joint_counts`.
    """
    return _joint(hist, to_classes(_edges(len(hist) - 1), tuple(thresholds)))


def _joint(counts: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Joint counts where pixels by true class `(..., classes)` are predicted as one class."""
    by_label = [counts[predicted == label].sum(axis=0) for label in range(task().count)]
    return np.stack(by_label, axis=1)


# The search


def fit_thresholds(
    hists: Iterable[np.ndarray], pooled: bool = False
) -> tuple[tuple[float, ...], float]:
    """Find the thresholds of the best Part B score: exactly, over all of the scale.

    With the first threshold given, the denominator of every slide is fixed, since it
    depends on p > 0 only. The mean of the slides' ratios is then a weighted sum of
    error sums, and these separate into a term of each threshold: the best of the others
    are found with running minima. All 0 < t1 <= t2 <= t3 are covered at a cost that grows
    with the square of the scale, not its cube.

    A threshold of 0 is not tried: it would call glass, where a heatmap is 0, a
    lesion. Thresholds that no pixel lies between score alike; the middle is taken.
    A class that never pays begins above 1.

    Args:
        hists: A histogram of each slide, see `cell_histogram`, all of one scale.
        pooled: Maximise the score of all pixels together instead of the mean over
            the slides that have a score.

    Returns:
        The thresholds, and their score on these slides (in sample). If none give any slide a
        score: those of the task, and nan.

    Raises:
        ValueError: If there is no slide.
    """
    # Differs from Kwok 2018: an exact search instead of trial and error, and no slide is scored
    # with thresholds that saw it (the paper's three are the default of make_heatmap.py).
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
    error = (base @ task().error[BACKGROUND]).astype(np.float64)  # all Normal
    lesions = base[:, BACKGROUND + 1 :] @ task().worst[BACKGROUND + 1 :]
    worst = lesions[:, None] + task().worst[BACKGROUND] * _tail_sums(counts[..., BACKGROUND])
    # What the error |p - g| changes by when p goes from j - 1 to j: (steps, truths).
    changes = np.diff(task().error, axis=0)
    first, *others = (_tail_sums(counts @ change) for change in changes)
    defined = worst > 0
    number = defined.sum(axis=0)
    weight = np.divide(1.0, worst * number, out=np.zeros_like(worst), where=defined)
    loss = np.full(len(used) + 1, np.inf)
    for start in range(0, len(used) + 1, _COLUMNS):
        stop = min(start + _COLUMNS, len(used) + 1)
        chosen = weight[:, start:stop]
        total = (chosen * (error[:, None] + first[:, start:stop])).sum(axis=0)
        if others:
            rest = _best_rest([sums[:, start:] for sums in others], chosen)
            ahead = np.tri(stop - start, k=-1, dtype=bool).T  # t2 below t1
            rest[: stop - start][ahead] = np.inf
            total += rest.min(axis=0)
        loss[start:stop] = np.where(number[start:stop] > 0, total, np.inf)
    one = int(loss.argmin())
    if not np.isfinite(loss[one]):
        return task().thresholds, float("nan")
    chosen = weight[:, one : one + 1]
    places = [one]
    for done in range(len(others)):
        later = [sums[:, places[-1] :] for sums in others[done:]]
        places.append(places[-1] + int(_best_rest(later, chosen)[:, 0].argmin()))
    below = np.concatenate([[0], used])[:-1]
    middle = np.append((below + used + 2) // 2, scale + 1)
    thresholds = tuple(float(middle[c] / scale) for c in places)
    return thresholds, _mean_score(counts_of_thresholds(hist, thresholds) for hist in stack)


def _tail_sums(values: np.ndarray) -> np.ndarray:
    """Sums from each step on, `(slides, steps + 1)`: what calling these changes."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    sums[:, :-1] = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return sums


def _best_rest(sums: Sequence[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Loss of every place of a threshold with the best ones after it: `(steps, columns)`."""
    *before, last = sums
    later = last.T @ weight
    for own in reversed(before):
        np.minimum.accumulate(later[::-1], axis=0, out=later[::-1])
        later += own.T @ weight
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
        `thresholds` ({fold: those that its slides were scored with}) and
        `counts` ({slide: joint counts (classes, classes)}).

    Raises:
        ValueError: If nothing is left to fit on for some fold.
    """
    thresholds, counts = {}, {}
    every = sorted({folds[slide] for slide in hists} - {ALWAYS_TRAIN})
    for fold in tqdm(every, desc="thresholds", unit="fold", disable=None):
        others = [hist for slide, hist in hists.items() if folds[slide] != fold]
        if not others:
            raise ValueError(f"There must be slides of other folds. Received: fold {fold} only.")
        thresholds[fold], _ = fit_thresholds(others, pooled)
        for slide, hist in hists.items():
            if folds[slide] == fold:
                counts[slide] = counts_of_thresholds(hist, thresholds[fold])
    in_order = {slide: counts[slide] for slide in hists if slide in counts}
    return {"thresholds": thresholds, "counts": in_order}


# The tool


@dataclasses.dataclass(frozen=True)
class Cells:
    """What a run knows about the cells of an annotated slide.

    Attributes:
        values: Heatmap, float32 `(rows, cols)`.
        probs: Probabilities, float32 `(rows, cols, classes)`, nan off tissue.
        counts: True classes of the pixels, int64 `(rows, cols, classes)`, see `count_truth`.
        fold: Thresholds fitted on other folds never saw the slide.
    """

    values: np.ndarray
    probs: np.ndarray
    counts: np.ndarray
    fold: int


def read_cells(run: str | os.PathLike, folds: str | os.PathLike | None = None) -> dict[str, Cells]:
    """Read what a `make_heatmap.py` run knows about its annotated slides.

    Args:
        run: Run folder.
        folds: Fold table of slides; None for the folds the run states. If one slide
            has none, each slide is a fold of its own.

    Returns:
        {slide: cells}. Slides that the model was trained on are left out (logged):
        thresholds for what it knows by heart are none for new slides.

    Raises:
        InputError: If a file is missing or does not fit, or no slide is left.
    """
    run = Path(run)
    annotated = {name: one for name, one in read_slides(run).items() if one.counts is not None}
    in_sample = [name for name, record in annotated.items() if record.in_sample]
    if in_sample:
        log.warning("left out, the model was trained on them: %s", ", ".join(in_sample))
    records = {name: one for name, one in annotated.items() if not one.in_sample}
    if not records:
        raise InputError(
            "There must be annotated slides that the model was not trained on.\n"
            f"Received: {run} with {len(in_sample)} slides that it was trained on, no others.\n"
            "Name a run of make_heatmap.py whose models were trained in folds."
        )
    fold_of = _folds_of(records, folds)
    names = tqdm(records, desc="slides", unit="slide", disable=None)
    return {name: _read_cells(run, name, records[name], fold_of[name]) for name in names}


def _read_cells(run: Path, slide: str, record: SlideRecord, fold: int) -> Cells:
    try:
        values = read_array(run / "heatmaps" / f"{slide}.npy", "Make the heatmaps again.", 2)
        probs = read_array(run / "probs" / f"{slide}.npy", "Make the heatmaps again.", 3)
        truth = read_class_map(run / "truth" / f"{slide}.png")
        expected = record.height / record.downsample, record.width / record.downsample
        # A map's size is rounded one way or another, so it is known to a pixel.
        if any(abs(want - have) >= 2 for want, have in zip(expected, truth.shape, strict=True)):
            raise ValueError(f"truth of shape {truth.shape} where {expected} pixels are expected")
        if probs.shape != (*values.shape, task().count):
            raise ValueError(f"probs of shape {probs.shape} and a heatmap of shape {values.shape}")
        least = min(np.nanmin(one, initial=0) for one in (values, probs))
        most = max(np.nanmax(one, initial=0) for one in (values, probs))
        if least < -1e-3 or most > 1 + 1e-3:
            raise ValueError("probabilities or heat that are not in 0..1")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run} must hold heatmaps, probs, truth and slides of {slide} that fit.\n"
            f"Received: {type(error).__name__}: {error}.\nMake the heatmaps again."
        ) from error
    counts = count_truth(truth, values.shape, record.step, record.downsample)
    return Cells(values, probs, counts, fold)


def _folds_of(slides: Mapping[str, SlideRecord], folds: str | os.PathLike | None) -> dict[str, int]:
    if folds is not None:
        table = read_folds(folds)
        known = dict(zip(table["image_id"].map(image_key), table["fold"], strict=True))
        missing = [slide for slide in slides if image_key(slide) not in known]
        if missing:
            raise InputError(
                f"Every slide must stand in the fold table.\n"
                f"Received: --folds={folds} without {', '.join(missing)}.\nAdd them."
            )
        return {slide: int(known[image_key(slide)]) for slide in slides}
    stated = {name: record.fold for name, record in slides.items() if record.fold is not None}
    if len(stated) == len(slides):
        return stated
    log.info("slides without a fold: each slide is left out by itself")
    return {slide: number for number, slide in enumerate(slides)}


def apply_rules(slides: Mapping[str, Cells]) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """Score every rule on the slides, the fitted ones leave-slides-out.

    Args:
        slides: See `read_cells`.

    Returns:
        {rule: {slide: joint counts}}, and what was fitted: `thresholds` (on all
        slides, for new ones), `thresholds_of_fold`, `temperature` and
        `temperature_of_fold`.
    """
    with step("histograms") as notes:
        names = tqdm(slides, desc="histograms", unit="slide", disable=None)
        hists = {name: cell_histogram(slides[name].values, slides[name].counts) for name in names}
        notes.append(f"{len(hists)} slides")
    folds = {name: one.fold for name, one in slides.items()}
    scored = {name: one for name, one in slides.items() if one.fold != ALWAYS_TRAIN}

    def by(thresholds: Sequence[float]) -> dict[str, np.ndarray]:
        return {name: counts_of_thresholds(hists[name], thresholds) for name in scored}

    even = [label / task().count for label in range(1, task().count)]
    name = "quarters" if task().count == 4 else "even"
    rules = {
        f"{task().source}: {_said(task().thresholds)}": by(task().thresholds),
        f"{name}: {_said(even)}": by(even),
    }
    with step("thresholds") as notes:
        thresholds, _ = fit_thresholds(hists.values())
        notes.append(_said(thresholds))
    fitted: dict = {"thresholds": list(thresholds)}
    enough = all(set(folds.values()) - {one.fold} for one in scored.values())
    if enough:
        with step("leave slides out") as notes:
            left_out = leave_slides_out(hists, folds)
            notes.append(f"{len(left_out['thresholds'])} folds")
        rules["fitted on other folds"] = left_out["counts"]
        fitted["thresholds_of_fold"] = {str(k): list(v) for k, v in left_out["thresholds"].items()}
    with step("least expected cost"):
        rules["least expected cost"] = {name: _decide(one) for name, one in scored.items()}
        fitted["temperature"] = _temperature(slides.values())
        if enough:
            used = {
                fold: _temperature(one for one in slides.values() if one.fold != fold)
                for fold in sorted({one.fold for one in scored.values()})
            }
            rules["least expected cost, temperature of other folds"] = {
                name: _decide(one, used[one.fold]) for name, one in scored.items()
            }
            fitted["temperature_of_fold"] = {str(fold): value for fold, value in used.items()}
    rules[task().always] = {name: always(counts) for name, counts in by(even).items()}
    rules[f"IN SAMPLE, fitted on all: {_said(thresholds)}"] = by(thresholds)
    return rules, fitted


def _said(thresholds: Sequence[float]) -> str:
    digits = [2 if round(t, 2) == t else 4 for t in thresholds]
    pairs = zip(thresholds, digits, strict=True)
    return " / ".join("never" if t > 1 else f"{t:.{digit}f}" for t, digit in pairs)


def _decide(cells: Cells, temperature: float = 1.0) -> np.ndarray:
    """Joint counts of a slide under the rule of least expected cost."""
    probs = apply_temperature(cells.probs, temperature)
    classes, _ = dinkelbach(probs, cells.counts.sum(axis=-1))
    return _joint(cells.counts, classes)


def _temperature(slides: Iterable[Cells]) -> float:
    """Fit a temperature on the predicted cells of slides."""
    probs, counts = [], []
    for one in slides:
        there = np.isfinite(one.probs).all(axis=-1)
        probs.append(one.probs[there])
        counts.append(one.counts[there])
    return fit_temperature(np.concatenate(probs), np.concatenate(counts))


def compare_rules(rules: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict]:
    """Intervals of the score of every rule, and of its difference from the first."""
    reference = slide_sums(next(iter(rules.values())))
    result = {}
    for rule, counts in rules.items():
        sums = slide_sums(counts)
        there = (sums[:, 1] > 0) & (reference[:, 1] > 0)
        result[rule] = {
            "score": score_interval(counts),
            "pooled": score_interval(counts, pooled=True),
            "difference": jackknife(
                np.column_stack([sums[:, 0] - reference[:, 0], there])[there],
                lambda sums: ratio(sums[..., 0], sums[..., 1]),
                lowest=-1.0,
                unit="slides",
            ),
        }
    return result


def format_rules(result: Mapping[str, dict]) -> str:
    """Lay the scores of the rules out to be read."""
    rows = []
    for rule, row in result.items():
        mean, *others = (format_interval(row[key], 4) for key in ("score", "pooled", "difference"))
        rows.append([rule, mean, *(text.rsplit(" (", 1)[0] for text in others)])
    rows[0][-1] = ""  # itself
    table = columns(["rule", "score, mean over slides", "pooled", "minus the first"], rows)
    warning = next(iter(result.values()))["score"]["warning"]
    return f"{table}\nnote: {warning}" if warning else table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.thresholds", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", help="run folder of make_heatmap.py")
    parser.add_argument(
        "--folds",
        help="fold table of slides (default: the folds of the models; else slide by slide)",
    )
    args = parser.parse_args(argv)
    use(None, args.run_dir)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if not task().ordered:
        raise InputError(
            "Thresholds and the score that they are made for are of classes on one scale.\n"
            f"Received: {args.run_dir}, of the task {task().name}, whose classes are not ordered.\n"
            "Class maps are by the largest probability; there is nothing to choose."
        )

    # 1. Cells: their values, probabilities and true pixels.
    slides = read_cells(args.run_dir, args.folds)

    # 2. Every rule on every slide, never with thresholds that saw it.
    rules, fitted = apply_rules(slides)
    result = compare_rules(rules)
    print(format_rules(result))

    # 3. What is kept for new slides.
    stored = {**fitted, "fitted_on": list(slides), "scale": SCALE, "scores": result}
    write_json(Path(args.run_dir) / "thresholds.json", stored)
    print(to_json({**fitted, "scores": result}))
    return 0


if __name__ == "__main__":
    exit_with(main)
