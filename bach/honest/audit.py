"""What a careless split would have promised: the leak audit.

    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv
    python -m bach.folds audit --runs runs/safe runs/leaky --patients folds/patients.csv

Scores the same held-out images twice: with folds that keep patients whole, and with
folds of the same sizes that do not. The model is cheap (colour and texture into a
tree ensemble, no GPU), and the gap between the two accuracies is what knowing the
patient is worth to it.

Reads:   photos of Part A; patient table.
Writes:  RUN_DIR/features.csv (kept for the next call), predictions.csv, audit.json, and
         folds_safe.csv and folds_leaky.csv, the first draw, to train models of one's own
         on for --runs. A later call with other arguments replaces all but features.csv.
Time:    BACH on one core: features 4 min (once), audit 1 min.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier
from tqdm import tqdm

from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.files import to_json, write_json
from bach.core.log import log, step
from bach.core.tables import image_key, write_csv
from bach.data import list_images
from bach.honest.features import read_features
from bach.honest.intervals import (
    SAMPLES,
    bootstrap,
    format_interval,
    patient_units,
    predicted_labels,
    unit_sums,
)
from bach.honest.records import read_images
from bach.honest.splits import (
    ALWAYS_TRAIN,
    leaking_images,
    make_folds,
    read_patients,
    with_patients,
)
from bach.labels import read_labels
from bach.scores import ratio

# The same images, asked twice


def leaky_folds(folds: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Deal the images of a split anew, whoever their patient is.

    Folds keep their size in every class, so that nothing but the patients tells the
    two splits apart. Rows of fold -1 stay where they are.

    Args:
        folds: Fold table, see `bach.folds.read_folds`.
        seed: Seed of the deal.

    Returns:
        A copy of the table with other folds.
    """
    dealt = folds["fold"].to_numpy(copy=True)
    held_out = dealt != ALWAYS_TRAIN
    labels = folds["label"].to_numpy(str)[held_out]
    dealt[held_out] = deal_within_classes(dealt[held_out], labels, seed)
    return folds.assign(fold=dealt)


def deal_within_classes(values: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Deal values anew within each class: as many of each, without the meaning."""
    rng = np.random.default_rng(seed)
    dealt = values.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        dealt[rows] = rng.permutation(dealt[rows])
    return dealt


def cross_validate(
    features: pd.DataFrame, folds: pd.DataFrame, trees: int, seed: int
) -> pd.DataFrame:
    """Predict every held-out image by a tree ensemble that did not see it.

    Args:
        features: See `features.read_features`; has all images of the folds.
        folds: Fold table with a label (a class name) in every row.
        trees: Number of trees.
        seed: Seed of the trees.

    Returns:
        Table of `image_id, label` (0..3), `patient, fold` and the four `prob_`
        columns; a row a held-out image, in the order of the folds.
    """
    parts = []
    labels = folds["label"].map(CLASSES.index).to_numpy()
    for k in sorted(set(folds["fold"]) - {ALWAYS_TRAIN}):
        out = (folds["fold"] == k).to_numpy()
        probs = _fit_predict(
            features.loc[folds["image_id"][~out]], labels[~out],
            features.loc[folds["image_id"][out]], trees, seed,
        )  # fmt: skip
        held_out = folds.loc[out, ["image_id", "patient", "fold"]].reset_index()
        held_out.insert(2, "label", labels[out])
        held_out[list(PROB_COLUMNS)] = probs
        parts.append(held_out)
    return pd.concat(parts).sort_values("index").drop(columns="index").reset_index(drop=True)


def _fit_predict(
    known: pd.DataFrame, labels: np.ndarray, asked: pd.DataFrame, trees: int, seed: int
) -> np.ndarray:
    """Probabilities (images, 4) by extremely randomised trees."""
    model = ExtraTreesClassifier(trees, random_state=seed, n_jobs=1)
    model.fit(known.to_numpy(), labels)
    probs = np.zeros((len(asked), len(CLASSES)))
    # A class of which nothing was trained on is never the answer.
    probs[:, model.classes_] = model.predict_proba(asked.to_numpy())
    return probs


def score_twice(
    features: pd.DataFrame, table: pd.DataFrame, k: int = 3, seeds: int = 5, trees: int = 600
) -> pd.DataFrame:
    """Cross-validate patient-safe and leaky, with several draws of both.

    Args:
        features: See `features.read_features`.
        table: Images with `image_id`, `label` (a class name) and `patient`; images
            without one are trained on in every round and never scored.
        k: Number of folds.
        seeds: Number of draws; each has a safe split, a leaky one of the same sizes,
            and trees of its own.
        trees: Number of trees.

    Returns:
        Predictions of all draws, as `cross_validate`, with `split` ("safe", "leaky")
        and `seed`.

    Raises:
        InputError: If there are fewer patients than folds.
    """
    parts = []
    with tqdm(total=2 * seeds, desc="splits", disable=None) as bar:
        for seed in range(seeds):
            safe = make_folds(table, k, seed, "train")
            for name, split in (("safe", safe), ("leaky", leaky_folds(safe, seed))):
                answers = cross_validate(features, split, trees, seed)
                parts.append(answers.assign(split=name, seed=seed))
                bar.update()
    return pd.concat(parts, ignore_index=True)


def measure_gap(predictions: pd.DataFrame, samples: int = SAMPLES) -> dict:
    """Say what the leaky split promised and what the patient-safe one found.

    An image counts with the share of the draws that got it right, so that the
    intervals are about patients; the draws only make the figures steadier.

    Args:
        predictions: Table of `image_id`, `label` (0..3), `patient`, `split` ("safe",
            "leaky"), and the `prob_` columns or `predicted`; an image may come any
            number of times, and both splits must have the same images.
        samples: Number of bootstrap resamples.

    Returns:
        `safe` and `leaky` (accuracies) and `gap` (leaky minus safe, paired), each an
        interval as of `bach.honest.intervals.bootstrap` over patients; `images`.

    Raises:
        ValueError: If the splits have different images.
    """
    right = mark_right(predictions)
    shares = right.pivot_table(index="image_id", columns="split", values="right", aggfunc="mean")
    if not {"safe", "leaky"} <= set(shares.columns) or shares.isna().any(axis=None):
        raise ValueError(
            "Both splits must have predictions of the same images. "
            f"Received: {shares.count().to_dict()} of {len(shares)} images."
        )
    about = right.drop_duplicates("image_id").set_index("image_id").loc[shares.index]
    numbers, unit = patient_units(about.reset_index())
    rows = np.column_stack([shares["safe"], shares["leaky"], np.ones(len(shares))])
    units = unit_sums(rows, numbers)

    def interval(figure: Callable[[np.ndarray], np.ndarray]) -> dict:
        return bootstrap(units, figure, samples, unit=unit)

    return {
        "safe": interval(lambda sums: ratio(sums[..., 0], sums[..., 2])),
        "leaky": interval(lambda sums: ratio(sums[..., 1], sums[..., 2])),
        "gap": interval(lambda sums: ratio(sums[..., 1] - sums[..., 0], sums[..., 2])),
        "images": len(shares),
    }


def mark_right(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add `right`, 1.0 where the predicted class is the true one, else 0.0."""
    hit = predicted_labels(predictions) == predictions["label"].to_numpy(int)
    return predictions.assign(right=hit.astype(float))


def score_hidden(
    features: pd.DataFrame, labels: pd.Series, truth: pd.Series, seeds: int, trees: int
) -> dict:
    """Score a model trained on all labelled photos on a test set it never met.

    Args:
        features: See `features.read_features`; has the images of `labels` and `truth`.
        labels: True class 0..3 of the photos to train on, indexed by `image_id`.
        truth: Likewise of the test photos.
        seeds: Number of ensembles, averaged as draws are in `measure_gap`.
        trees: Number of trees.

    Returns:
        Interval of the accuracy, as of `bach.honest.intervals.bootstrap`, over test images.
    """
    right = np.zeros(len(truth))
    for seed in range(seeds):
        probs = _fit_predict(
            features.loc[labels.index], labels.to_numpy(), features.loc[truth.index], trees, seed
        )
        right += (probs.argmax(axis=1) == truth.to_numpy()) / seeds
    units = np.column_stack([right, np.ones(len(right))])
    return bootstrap(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="images")


# The tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.folds audit", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data-dir", help="folder of the challenge data, for the cheap model")
    source.add_argument(
        "--runs", nargs=2, metavar=("SAFE", "LEAKY"),
        help="two run folders with predictions.csv instead, one of either split",
    )  # fmt: skip
    parser.add_argument(
        "--patients", help="CSV of image_id and patient; images without one are never scored"
    )
    parser.add_argument("--seeds", type=int, default=5, help="draws of both splits")
    parser.add_argument("--folds", type=int, default=3, help="number of folds")
    parser.add_argument("--trees", type=int, default=600, help="size of the tree ensemble")
    parser.add_argument(
        "--with-unknown", action="store_true",
        help="train on the images of unknown patients too, in both splits",
    )  # fmt: skip
    parser.add_argument(
        "--test-truth", help="CSV of image_id and label of the test photos, to score them too"
    )
    parser.add_argument(
        "--run-dir", default="runs/audit",
        help="folder for the features, which are kept for the next call, and the results",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    for name in ("seeds", "trees"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be 1 or more.\nReceived: {getattr(args, name)}.")
    if args.runs is not None:
        predictions = _read_runs(*args.runs, args.patients)
        what = f"safe: {args.runs[0]}, leaky: {args.runs[1]}"
        result = measure_gap(predictions)
    else:
        predictions, result, what = _audit_data(args)
    patients = predictions["patient"].nunique()
    print(f"{result['images']} images of {patients} patients; {what}")
    if "leaking" in result:
        print(
            f"leaky split: {result['leaking']:.0f} of {result['images']} held-out images have "
            "their patient in training"
        )
    print(f"{'patient-safe':14}{format_interval(result['safe'], 3)}")
    print(f"{'leaky':14}{format_interval(result['leaky'], 3)}")
    if "test" in result:
        print(f"{'hidden test':14}{format_interval(result['test'], 3)}")
    print(f"{'gap':14}{_in_points(result['gap'])}")
    print(to_json(result | {"patients": patients}))
    return 0


def _in_points(gap: dict) -> str:
    if gap["low"] is None:
        return f"{100 * gap['value']:+.1f} points (no interval)"
    return f"{100 * gap['value']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"


def _audit_data(args: argparse.Namespace) -> tuple[pd.DataFrame, dict, str]:
    """Predictions of the cheap model, the figures, and what was done, in words."""
    if args.patients is None:
        raise InputError(
            "An audit needs to know the patients.\nReceived: no --patients.\n"
            "Name a CSV of image_id and patient, such as folds/patients.csv."
        )
    if args.folds < 2:
        raise InputError(f"There must be 2 folds or more.\nReceived: --folds={args.folds}.")
    images = with_patients(list_images(args.data_dir, "A"), read_patients(args.patients))
    table = images.assign(label=[CLASSES[label] for label in images["label"]])
    known = table[table["patient"] != ""]
    if known.empty:
        raise InputError(
            f"An audit needs images whose patient is known.\n"
            f"Received: --patients={args.patients}, which knows none of the {len(table)} images "
            f"in {args.data_dir}.\nCheck that its image_id are the names of the photos."
        )
    truth = _read_truth(args) if args.test_truth is not None else None
    asked = images if truth is None else pd.concat([images, truth], ignore_index=True)
    scored = table if args.with_unknown else known
    wanted = asked if truth is not None else images[images["image_id"].isin(scored["image_id"])]
    make_folds(scored, args.folds, 0, "train")  # refuses too few patients before the slow part
    features = read_features(wanted, args.run_dir)
    with step("splits"):
        predictions = score_twice(features, scored, args.folds, args.seeds, args.trees)
    result = measure_gap(predictions)
    leaky = predictions[predictions["split"] == "leaky"]
    if args.with_unknown:
        trained = f"the {len(table) - len(known)} images of unknown patients always in training"
    else:
        trained = "no other images in training"
    result["leaking"] = len(_leaking(leaky)) / args.seeds
    result["spread"] = _spread(predictions)
    if truth is not None:
        labels = images.set_index("image_id")["label"]
        result["test"] = score_hidden(
            features, labels, truth.set_index("image_id")["label"], args.seeds, args.trees
        )
    result |= {"folds": args.folds, "seeds": args.seeds, "trees": args.trees}
    _write(args, predictions, table, result)
    what = f"{args.folds} folds, {args.seeds} draws, {args.trees} trees, {trained}"
    return predictions, result, what


def _leaking(leaky: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([leaking_images(draw) for _, draw in leaky.groupby("seed")])


def _spread(predictions: pd.DataFrame) -> dict[str, list[float]]:
    """The accuracy of every draw, {split: accuracies}."""
    right = mark_right(predictions)
    by_draw = right.pivot_table(index="seed", columns="split", values="right", aggfunc="mean")
    return {name: by_draw[name].tolist() for name in ("safe", "leaky")}


def _write(
    args: argparse.Namespace, predictions: pd.DataFrame, table: pd.DataFrame, result: dict
) -> None:
    """Write the predictions and, for runs of one's own, the folds of the first draw."""
    folder = Path(args.run_dir)
    write_csv(predictions, folder / "predictions.csv")
    for name in ("safe", "leaky"):
        first = predictions[(predictions["split"] == name) & (predictions["seed"] == 0)]
        fold = first.set_index("image_id")["fold"]
        folds = table[["image_id", "label"]].assign(
            # Training refuses a split that is seen to leak; this one is meant to.
            patient=table["patient"] if name == "safe" else "",
            fold=table["image_id"].map(fold).fillna(ALWAYS_TRAIN).astype(int),
        )
        write_csv(folds, folder / f"folds_{name}.csv")
    write_json(folder / "audit.json", result | {"arguments": vars(args)})
    log.info("audit: wrote predictions.csv, folds_safe.csv, folds_leaky.csv to %s", folder)


def _read_truth(args: argparse.Namespace) -> pd.DataFrame:
    """The test photos whose class the truth names, as an image table."""
    images = list_images(args.data_dir, "A-test")
    stated = read_labels(args.test_truth, "truth").set_index("key")["label"]
    label = images["image_id"].map(image_key).map(stated)
    missing = images["image_id"][label.isna()]
    if len(missing):
        raise InputError(
            f"The truth must name the class of every test photo.\n"
            f"Received: {args.test_truth} without {len(missing)} of {len(images)}: "
            f"{', '.join(missing.head(10))}.\nAdd them, or leave --test-truth out."
        )
    return images.assign(label=label.astype(int))


def _read_runs(
    safe: str | os.PathLike, leaky: str | os.PathLike, patients: str | os.PathLike | None
) -> pd.DataFrame:
    """Predictions of two runs on the images of known patients that both predicted."""
    tables = {"safe": read_images(safe, patients), "leaky": read_images(leaky, patients)}
    known = [table[table["patient"] != ""] for table in tables.values()]
    both = set(known[0]["image_id"]) & set(known[1]["image_id"])
    if not both:
        raise InputError(
            "The two runs must have predictions of the same images, of known patients.\n"
            f"Received: {safe} with {len(known[0])} images of known patients, {leaky} with "
            f"{len(known[1])}, none in common.\nName the patient table with --patients."
        )
    for name, table in zip(tables, known, strict=True):
        left_out = len(tables[name]) - len(both)
        if left_out:
            log.warning("%s: %d images left out (patient unknown, or not in both)", name, left_out)
        tables[name] = table[table["image_id"].isin(both)].assign(split=name, seed=0)
    first, second = (table.set_index("image_id")["label"].sort_index() for table in tables.values())
    if not first.equals(second):
        raise InputError(
            "The two runs must have the same true labels.\n"
            f"Received others for {int((first != second).sum())} of {len(first)} images."
        )
    return pd.concat(tables.values(), ignore_index=True)
