"""Do the probabilities mean what they say? Reliability, and one temperature to correct it.

    python -m bach.calibration runs/part_a

Reads    RUN/predictions.csv (out-of-fold, with the column fold, or --folds)
Writes   RUN/calibration.json, RUN/reliability.png

A network tends to be too sure. One temperature for all probabilities corrects that
without changing any answer. What is reported is honest: the predictions of a fold
are scaled by the temperature of the other folds. What is stored, for new images, is
fitted on all. The last line on stdout is the result as JSON.
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach.charts import pixels, reliability_figure
from bach.core.errors import InputError, exit_with
from bach.core.files import read_object, to_json, write_json
from bach.core.log import log
from bach.core.options import whole
from bach.core.pictures import write_png
from bach.core.tables import as_probs, as_whole, image_key, read_table
from bach.core.text import columns, number
from bach.honest.splits import ALWAYS_TRAIN, read_folds
from bach.labels import read_labels
from bach.scores import BINS, checked_probs, expected_calibration_error, reliability
from bach.tasks import task, use

# Beyond these the fit has run away: all answers are right (the best temperature is
# 0), or they are no better than chance (it is infinite).
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

# Probabilities of exactly 0 have no logarithm. Softmax in float32 gives them.
_SMALLEST = 1e-7


# Figures


def negative_log_likelihood(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats; ln 4 = 1.386 for a network that knows nothing.

    Args:
        probs, labels: See `reliability`.
    """
    probs, labels = checked_probs(probs, labels)
    if not len(probs):
        return float("nan")
    picked = np.take_along_axis(probs, labels[:, None], axis=1)
    return float(-np.log(np.maximum(picked, _SMALLEST)).mean())


def apply_temperature(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Make probabilities less (above 1) or more (below 1) sure; answers stay.

    p^(1/T), rescaled to sum to 1: the same as dividing the logits of a softmax.

    Args:
        probs: Probabilities, `(..., classes)`; nan stays nan.
        temperature: T, above 0.

    Returns:
        Array of the same shape; float32 stays float32.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive. Received: temperature={temperature}.")
    probs = np.asarray(probs)
    if not np.issubdtype(probs.dtype, np.floating):
        probs = probs.astype(np.float64)
    # Relative to the largest, so that small temperatures cannot underflow to 0/0.
    scaled = (probs / probs.max(axis=-1, keepdims=True)) ** probs.dtype.type(1 / temperature)
    return scaled / scaled.sum(axis=-1, keepdims=True)


def stored_temperature(run: str | os.PathLike) -> float:
    """The temperature that this program stored with the models of a run.

    Raises:
        InputError: If there is none.
    """
    remedy = f"Run `python -m bach.calibration {run}` first."
    file = Path(run) / "calibration.json"
    temperature = read_object(file, remedy, temperature=float).get("temperature")
    if temperature is None or not 0 < temperature < math.inf:
        raise InputError(
            f"{file} must hold a temperature above 0.\nReceived: {temperature}.\n{remedy}"
        )
    return float(temperature)


def fit_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature under which the true classes are most likely.

    The likelihood has a single maximum in 1/T, so a scalar search finds it.

    Args:
        probs: Probabilities, `(n, classes)`, of images that the network did not train on.
        labels: True classes, 0..n-1, `(n,)`; or counts of each true class, `(n, classes)`,
            where a row stands for many pixels.

    Returns:
        The temperature, within `MIN_TEMPERATURE` and `MAX_TEMPERATURE` (a warning is
        logged if it ends there); 1 if there is nothing to fit.

    Raises:
        ValueError: If shapes do not fit, or a value is not finite.

    Source: Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar  # slow to import
    from scipy.special import logsumexp

    labels = np.asarray(labels)
    if labels.ndim == 2:
        counts = labels.astype(np.float64)
        probs, _ = checked_probs(probs, np.zeros(len(labels), int))
    else:
        probs, labels = checked_probs(probs, labels)
        counts = np.eye(task().count)[labels]
    weights = counts.sum(axis=1)
    if not weights.sum():
        return 1.0
    logits = np.log(np.maximum(probs, _SMALLEST))
    # The part of the true classes is linear in 1/T; only the norm must be computed again.
    true_part = float((counts * logits).sum())

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        norm = float(weights @ logsumexp(logits * inverse, axis=1))
        return (norm - inverse * true_part) / weights.sum()

    ends = np.log([MIN_TEMPERATURE, MAX_TEMPERATURE])
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    if min(abs(found.x - ends)) < 1e-3:
        log.warning(
            "the temperature ran to its limit %.2f: all answers are right, or none is better "
            "than chance; there is too little to fit one on",
            np.exp(found.x),
        )
    return float(np.exp(found.x))


def leave_fold_out(
    probs: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """Scale the predictions of every fold by the temperature of the other folds.

    Args:
        probs, labels: See `reliability`; out-of-fold predictions.
        folds: Fold of every image, integers, `(images,)`.

    Returns:
        Scaled probabilities `(images, classes)` and {fold: temperature used on it}.

    Raises:
        ValueError: If there are fewer than two folds.
    """
    probs, labels = checked_probs(probs, labels)
    folds = np.asarray(folds)
    names = np.unique(folds).tolist()
    if len(names) < 2:
        raise ValueError(f"There must be two folds or more. Received: {names}.")
    scaled, temperatures = np.empty_like(probs), {}
    for fold in names:
        inside = folds == fold
        temperatures[fold] = fit_temperature(probs[~inside], labels[~inside])
        scaled[inside] = apply_temperature(probs[inside], temperatures[fold])
    return scaled, temperatures


# The tool


def read_predictions(
    run: str | Path, folds: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the out-of-fold probabilities of a run.

    Args:
        run: Run folder with `predictions.csv`.
        folds: Fold table; None to use the column `fold` of the predictions. Images
            that it does not hold out (fold -1, or not listed) are left out.

    Returns:
        Probabilities `(images, classes)`, labels `(images,)` and folds `(images,)`.

    Raises:
        InputError: If the predictions cannot be read, or lack probabilities, true
            labels, or two folds.
    """
    path = Path(run) / "predictions.csv"
    labels = read_labels(path, "truth").set_index("key")["label"]
    table = read_table(path, ("image_id", *task().columns))
    keys = table["image_id"].map(image_key)
    if folds is not None:
        known = read_folds(folds)
        fold = keys.map(dict(zip(known["image_id"].map(image_key), known["fold"], strict=True)))
    elif "fold" in table.columns:
        fold = as_whole(table, ["fold"], path, at_least=ALWAYS_TRAIN)["fold"]
    else:
        raise InputError(
            f"{path} must have the column fold, to score each fold by the others.\n"
            f"Received: {', '.join(table.columns)}.\n"
            "Name the fold table with --folds, for example folds/part_a.csv."
        )
    fold_of = fold.fillna(ALWAYS_TRAIN).to_numpy(int)
    held_out = fold_of > ALWAYS_TRAIN
    names = np.unique(fold_of[held_out]).tolist()
    if len(names) < 2:
        raise InputError(
            "There must be predictions of two folds or more.\n"
            f"Received: {int(held_out.sum())} images of folds {names}.\n"
            "Train all folds, then calibrate."
        )
    if not held_out.all():
        log.warning("left out, of no fold: %d images", int((~held_out).sum()))
    probs = as_probs(table, task().columns, path)[held_out].to_numpy()
    return probs, labels[keys[held_out]].to_numpy(), fold_of[held_out]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.calibration", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run_dir", help="run folder with out-of-fold predictions.csv")
    parser.add_argument(
        "--folds", default=None, help="fold table (default: the column fold of the predictions)"
    )
    parser.add_argument(
        "--bins", type=whole(1, 1000), default=BINS, help="bins of the reliability table"
    )
    args = parser.parse_args(argv)
    use(None, args.run_dir)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    run = Path(args.run_dir)

    # 1. Out-of-fold predictions.
    probs, labels, folds = read_predictions(run, args.folds)

    # 2. Each fold by the temperature of the others; one of all for new images.
    scaled, temperatures = leave_fold_out(probs, labels, folds)
    temperature = fit_temperature(probs, labels)

    # 3. Figures.
    tables = {"before": reliability(probs, labels, args.bins)}
    tables["after"] = reliability(scaled, labels, args.bins)
    result = {"temperature": temperature, "images": len(labels), "bins": args.bins}
    for name, values in (("before", probs), ("after", scaled)):
        result[f"ece_{name}"] = expected_calibration_error(values, labels, args.bins)
        result[f"nll_{name}"] = negative_log_likelihood(values, labels)
    result["temperature_of_fold"] = {str(fold): value for fold, value in temperatures.items()}
    print(format_result(result, tables["before"], tables["after"]))

    # 4. The picture, and the file that is written last.
    figure = reliability_figure(
        {f"{name}: ECE {result[f'ece_{name}']:.3f}": table for name, table in tables.items()}
    )
    write_png(run / "reliability.png", pixels(figure))
    write_json(run / "calibration.json", result)
    print(to_json(result))
    return 0


def format_result(result: dict, before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Lay the figures out to be read."""

    def cells(row) -> list[str]:
        return [str(row.count), number(row.confidence), number(row.accuracy)]

    bins = [
        [f"{old.low:.2f} - {old.high:.2f}", *cells(old), *cells(new)]
        for old, new in zip(before.itertuples(), after.itertuples(), strict=True)
        if old.count or new.count
    ]
    figures = [
        [title, number(result[f"{key}_before"], 4), number(result[f"{key}_after"], 4)]
        for title, key in (("calibration error (ECE)", "ece"), ("mean cross-entropy, nats", "nll"))
    ]
    used = ", ".join(f"{fold}: {t:.3f}" for fold, t in result["temperature_of_fold"].items())
    lines = [
        f"{result['images']} images, each scaled by the temperature of the other folds",
        "",
        columns(["largest prob", "before", "sure", "right", "after", "sure", "right"], bins),
        "",
        columns(["", "before", "after"], figures),
        f"temperature {result['temperature']:.3f} on all folds, for new images "
        f"(on each fold that of the others: {used})",
    ]
    if result["images"] < 20 * result["bins"]:
        lines.append(
            f"note: {result['images']} images in {result['bins']} bins; the calibration error "
            "is mostly chance, read the cross-entropy"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with(main)
