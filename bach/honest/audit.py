"""What a careless split would have promised: the leak audit.

    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv
    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv \\
        --features EfficientNetLite0
    python -m bach.folds audit --task my_task.toml --images photos.csv
    python -m bach.folds audit --runs runs/safe runs/leaky --patients folds/patients.csv

Scores the same held-out images twice: with folds that keep patients whole, and with
folds of the same sizes that do not. The model is cheap (no GPU), and the gap between the
two accuracies is what knowing the patient is worth to it: colour and texture into a tree
ensemble, or with --features what a network with ImageNet weights says of the whole photo
into a logistic regression.

Reads:   photos of Part A; patient table.
Writes:  RUN_DIR/features.csv or features_NAME.csv (kept for the next call),
         predictions.csv, audit.json, and folds_safe.csv and folds_leaky.csv, the first draw,
         to train models of one's own on for --runs. A later call with other arguments
         replaces all but the features.
Time:    BACH on one core: features 4 min (once), audit 1 min.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.files import to_json, write_json
from bach.core.log import log, step
from bach.core.options import Photos, Shared, again, option
from bach.core.tables import image_key, patient_key, write_csv
from bach.core.text import listed
from bach.data import list_images, list_photos
from bach.honest.features import COLOUR_AND_TEXTURE, Describer, read_features
from bach.honest.intervals import (
    format_interval,
    jackknife,
    kish,
    patient_units,
    predicted_labels,
    unit_sums,
)
from bach.honest.learners import Learner, Logistic, Trees
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
from bach.tasks import parse, task

COLOUR = "colour"  # --features of no network
# Where the rarest class has less of what the most common has, accuracy says little about it.
_EVEN = 0.5

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
    features: pd.DataFrame, folds: pd.DataFrame, learner: Learner, seed: int
) -> pd.DataFrame:
    """Predict every held-out image by a model that did not see it.

    Args:
        features: See `bach.honest.features.read_features`; has all images of the folds.
        folds: Fold table with a label (a class name) in every row.
        learner: The kind of model.
        seed: Seed of the models.

    Returns:
        Table of `image_id, label` (0..n-1), `patient, fold` and the `prob_`
        columns; a row per held-out image, in the order of the folds.
    """
    labels = folds["label"].map(task().classes.index).to_numpy()
    fold = folds["fold"].to_numpy()
    rows = features.loc[folds["image_id"]].to_numpy()
    groups = _groups(folds["patient"])
    probs = np.zeros((len(folds), task().count))
    for k in sorted(set(fold) - {ALWAYS_TRAIN}):
        out = fold == k
        probs[out] = learner.fit_predict(rows[~out], labels[~out], groups[~out], rows[out], seed)
    answers = folds[["image_id", "patient", "fold"]].reset_index(drop=True)
    answers.insert(1, "label", labels)
    answers[list(task().columns)] = probs
    return answers[fold != ALWAYS_TRAIN].reset_index(drop=True)


def _groups(patients: pd.Series) -> np.ndarray:
    """A number for every patient, and one of its own for every image without."""
    keys = patients.map(patient_key)
    named = [key or f"image {place}" for place, key in enumerate(keys)]
    return np.unique(named, return_inverse=True)[1]


def score_twice(
    features: pd.DataFrame, table: pd.DataFrame, k: int, seeds: int, learner: Learner
) -> pd.DataFrame:
    """Cross-validate patient-safe and leaky, with several draws of both.

    Args:
        features: See `bach.honest.features.read_features`.
        table: Images with `image_id`, `label` (a class name) and `patient`; images
            without one are trained on in every round and never scored.
        k: Number of folds.
        seeds: Number of draws; each has a safe split, a leaky one of the same sizes,
            and models of its own.
        learner: The kind of model.

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
                answers = cross_validate(features, split, learner, seed)
                parts.append(answers.assign(split=name, seed=seed))
                bar.update()
    return pd.concat(parts, ignore_index=True)


def measure_gap(predictions: pd.DataFrame) -> dict:
    """Say what the leaky split promised and what the patient-safe one found.

    An image counts with the share of the draws that got it right, so that the
    intervals are about patients; the draws only make the figures steadier.

    Args:
        predictions: Table of `image_id`, `label` (0..n-1), `patient`, `split` ("safe",
            "leaky"), and the `prob_` columns or `predicted`; an image may come any
            number of times, and both splits must have the same images.

    Returns:
        `safe` and `leaky` (accuracies) and `gap` (leaky minus safe, paired), each an
        interval as of `bach.honest.intervals.jackknife` over patients; `images` and
        `patients`, their numbers; and where classes are far from as common, `balanced`: the
        same three of the balanced accuracy.

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
    # What the gap is made of, for every image: both shares, and 1.
    rows = np.column_stack([shares["safe"], shares["leaky"], np.ones(len(shares))])
    units = unit_sums(rows, numbers)

    def interval(weights: tuple[int, int]) -> dict:
        return jackknife(
            units,
            lambda sums: ratio(sums[..., :2] @ np.array(weights), sums[..., 2]),
            kish(units[:, 2]),
            lowest=min(weights),
            unit=unit,
        )

    found = {
        "safe": interval((1, 0)),
        "leaky": interval((0, 1)),
        "gap": interval((-1, 1)),
        "images": len(shares),
        "patients": about["patient"].map(patient_key).nunique(),
    }
    classes = about["label"].value_counts()
    if classes.min() < _EVEN * classes.max():
        found["balanced"] = _balanced_gap(predictions, about, numbers, unit)
    return found


def _balanced_gap(
    predictions: pd.DataFrame, about: pd.DataFrame, numbers: np.ndarray, unit: str
) -> dict:
    """As `measure_gap`, of the mean accuracy over classes, each answered as if all were as common.

    Args:
        predictions: See `measure_gap`.
        about: A row per image, indexed by `image_id`, with `label`.
        numbers, unit: Unit of each of these, see `patient_units`.
    """
    label = predictions["label"].to_numpy(int)
    share = about["label"].value_counts(normalize=True)
    columns = [name for name in task().columns if name in predictions.columns]
    if len(columns) == task().count:
        weights = np.array([share.get(n, np.inf) for n in range(task().count)])
        predicted = (predictions[columns].to_numpy(np.float64) / weights).argmax(axis=1)
    else:
        predicted = predicted_labels(predictions)
    right = predictions.assign(right=(predicted == label).astype(float))
    shares = right.pivot_table(index="image_id", columns="split", values="right", aggfunc="mean")
    shares = shares.loc[about.index]
    labels = sorted(share.index)
    own = about["label"].to_numpy(int)[:, None] == np.array(labels)
    rows = np.concatenate([own * shares[[name]].to_numpy() for name in ("safe", "leaky")], axis=1)
    units = unit_sums(np.concatenate([rows, own], axis=1), numbers)
    count = len(labels)
    # What independent images would add to its variance, up to a factor, as in `accuracy_worth`.
    worth = kish((units[:, 2 * count :] / units[:, 2 * count :].sum(axis=0) ** 2).sum(axis=1))

    def interval(weights: tuple[int, int]) -> dict:
        def figure(sums: np.ndarray) -> np.ndarray:
            parts = sums[..., :count] * weights[0] + sums[..., count : 2 * count] * weights[1]
            return ratio(parts, sums[..., 2 * count :]).mean(axis=-1)

        return jackknife(units, figure, worth, lowest=min(weights), unit=unit)

    return {"safe": interval((1, 0)), "leaky": interval((0, 1)), "gap": interval((-1, 1))}


def mark_right(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add `right`, 1.0 where the predicted class is the true one, else 0.0."""
    hit = predicted_labels(predictions) == predictions["label"].to_numpy(int)
    return predictions.assign(right=hit.astype(float))


def score_hidden(
    features: pd.DataFrame, images: pd.DataFrame, truth: pd.Series, learner: Learner, seeds: int
) -> dict:
    """Score a model trained on all labelled photos on a test set it never met.

    Args:
        features: See `bach.honest.features.read_features`; has the images of both.
        images: The photos to train on: `image_id`, `label` (0..n-1) and `patient`.
        truth: True class 0..n-1 of the test photos, indexed by `image_id`.
        learner: The kind of model.
        seeds: Number of models, averaged as draws are in `measure_gap`.

    Returns:
        Interval of the accuracy, as of `bach.honest.intervals.jackknife`, over test images.
    """
    known = features.loc[images["image_id"]].to_numpy()
    asked = features.loc[truth.index].to_numpy()
    labels, groups = images["label"].to_numpy(int), _groups(images["patient"])
    right = np.zeros(len(truth))
    for seed in range(seeds):
        probs = learner.fit_predict(known, labels, groups, asked, seed)
        right += (probs.argmax(axis=1) == truth.to_numpy()) / seeds
    units = np.column_stack([right, np.ones(len(right))])
    return jackknife(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="images")


# The tool


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the audit."""

    task: str | None = again(Shared, "task", None)
    data_dir: str | None = option(
        None, "folder of the challenge data, for the cheap model", path=True
    )
    images: str | None = again(Photos, "images", None)
    mpp: float | None = again(Photos, "mpp", None)
    features: str = option(
        COLOUR,
        "what the cheap model is told: colour (and texture; trees), or a backbone such as "
        "EfficientNetLite0 (its pooled features with ImageNet weights; logistic regression)",
    )
    runs: tuple[str, ...] = option(
        (),
        "two run folders with predictions.csv instead, one of either split",
        metavar=("SAFE", "LEAKY"),
    )
    patients: str | None = option(
        None,
        "CSV of image_id and patient; images without one are never scored (default: the column "
        "patient of --images)",
        path=True,
    )
    seeds: int = option(5, "draws of both splits", at_least=1)
    folds: int = option(3, "number of folds", at_least=2)
    trees: int = option(Trees().size, "size of the tree ensemble", at_least=1)
    with_unknown: bool = option(
        False, "train on the images of unknown patients too, in both splits"
    )
    test_truth: str | None = option(
        None, "CSV of image_id and label of the test photos, to score them too", path=True
    )
    run_dir: str = option(
        "runs/audit", "folder for the results, and for the features, kept for the next call"
    )


def main(argv: Sequence[str] | None, describer_of: Callable[[str], Describer]) -> int:
    """Run the tool.

    Args:
        argv: Arguments; None for those of the command line.
        describer_of: Makes the describer of a backbone; this room loads no framework.
    """
    args = parse(Options, argv, __doc__, prog="python -m bach.folds audit")
    data = args.images or args.data_dir
    if (data is None) == (not args.runs) or len(args.runs) not in (0, 2):
        raise InputError(
            "An audit is of a data set or of two runs.\n"
            f"Received: {f'the data {data}' if data else 'no data'}, "
            f"--runs={' '.join(args.runs) or None}.\n"
            "Give --data-dir or --images, or --runs with the patient-safe run first and the leaky "
            "one second."
        )
    if data is None:
        result = measure_gap(_read_runs(args.runs, args.patients))
        what = f"safe: {args.runs[0]}, leaky: {args.runs[1]}"
    else:
        result, what = _audit_data(args, data, describer_of)
    print(f"{result['images']} images of {result['patients']} patients; {what}")
    if "leaking" in result:
        print(
            f"leaky split: {result['leaking']:.0f} of {result['images']} held-out images have "
            "their patient in training"
        )
    for key, name in (("safe", "patient-safe"), ("leaky", "leaky"), ("test", "hidden test")):
        if key in result:
            print(f"{name:14}{format_interval(result[key], 3)}")
    print(f"{'gap':14}{in_points(result['gap'])}")
    if "balanced" in result:
        print("balanced accuracy, what is rarer counting more:")
        for key, name in (("safe", "patient-safe"), ("leaky", "leaky")):
            print(f"{name:14}{format_interval(result['balanced'][key], 3)}")
        print(f"{'gap':14}{in_points(result['balanced']['gap'])}")
    print(to_json(result))
    return 0


def in_points(gap: dict) -> str:
    """A difference of accuracies and its interval in percentage points."""
    if gap["low"] is None:
        return f"{100 * gap['value']:+.1f} points (no interval)"
    return f"{100 * gap['value']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"


def _audit_data(
    args: Options, data: str, describer_of: Callable[[str], Describer]
) -> tuple[dict, str]:
    """Audit by the cheap model: the figures, and what was done, in words."""
    if args.patients is None and args.images is None:
        raise InputError(
            "An audit needs to know the patients.\nReceived: no --patients.\n"
            "Name a CSV of image_id and patient, such as folds/patients.csv."
        )
    images = list_photos(data, args.images, args.mpp)
    if args.patients is not None:
        images = with_patients(images, read_patients(args.patients))
    table = images.assign(label=[task().classes[label] for label in images["label"]])
    known = table[table["patient"] != ""]
    if known.empty:
        raise InputError(
            f"An audit needs images whose patient is known.\n"
            f"Received: {args.patients or args.images}, which knows none of the {len(table)} "
            f"images in {data}.\nCheck that its image_id are the names of the photos."
        )
    truth = None if args.test_truth is None else _read_truth(data, args.test_truth)
    scored = table if args.with_unknown else known
    make_folds(scored, args.folds, 0, "train")  # refuses too few patients before the slow part
    wanted = scored if truth is None else pd.concat([images, truth], ignore_index=True)
    colour = args.features == COLOUR
    learner: Learner = Trees(args.trees) if colour else Logistic()
    describer = COLOUR_AND_TEXTURE if colour else describer_of(args.features)
    features = read_features(wanted, args.run_dir, describer)
    with step("splits"):
        predictions = score_twice(features, scored, args.folds, args.seeds, learner)
    result = measure_gap(predictions)
    result |= {"leaking": _leaking(predictions) / args.seeds, "spread": _spread(predictions)}
    if truth is not None:
        stated = truth.set_index("image_id")["label"]
        result["test"] = score_hidden(features, images, stated, learner, args.seeds)
    result |= {"folds": args.folds, "seeds": args.seeds, "features": args.features}
    result |= {"trees": args.trees} if colour else {}
    _write(args, predictions, table, result)
    unknown = f"the {len(table) - len(known)} images of unknown patients always in training"
    trained = unknown if args.with_unknown else "no other images in training"
    model = f"{args.trees} trees" if colour else f"features of {args.features}"
    return result, f"{args.folds} folds, {args.seeds} draws, {model}, {trained}"


def _leaking(predictions: pd.DataFrame) -> int:
    """Held-out images of all leaky draws whose patient is also in training."""
    leaky = predictions[predictions["split"] == "leaky"]
    return sum(len(leaking_images(draw)) for _, draw in leaky.groupby("seed"))


def _spread(predictions: pd.DataFrame) -> dict[str, list[float]]:
    """The accuracy of every draw, {split: accuracies}."""
    right = mark_right(predictions).groupby(["split", "seed"])["right"].mean()
    return {name: right[name].tolist() for name in ("safe", "leaky")}


def _write(args: Options, predictions: pd.DataFrame, table: pd.DataFrame, result: dict) -> None:
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
    write_json(folder / "audit.json", result | {"arguments": dataclasses.asdict(args)})
    log.info("audit: wrote predictions.csv, folds_safe.csv, folds_leaky.csv to %s", folder)


def _read_truth(data_dir: str, path: str) -> pd.DataFrame:
    """The test photos as an image table with their true labels."""
    images = list_images(data_dir, "A-test")
    stated = read_labels(path, "truth").set_index("key")["label"]
    label = images["image_id"].map(image_key).map(stated)
    missing = images["image_id"][label.isna()]
    if len(missing):
        raise InputError(
            f"The truth must name the class of every test photo.\n"
            f"Received: {path} without {len(missing)} of {len(images)}: {listed(missing)}.\n"
            "Add them, or leave --test-truth out."
        )
    return images.assign(label=label.astype(int))


def _read_runs(runs: Sequence[str], patients: str | None) -> pd.DataFrame:
    """Predictions of two runs on the images of known patients that both predicted."""
    tables = [read_images(run, patients) for run in runs]
    known = [table[table["patient"] != ""] for table in tables]
    both = set(known[0]["image_id"]) & set(known[1]["image_id"])
    if not both:
        raise InputError(
            "The two runs must have predictions of the same images, of known patients.\n"
            f"Received: {runs[0]} with {len(known[0])} images of known patients, {runs[1]} with "
            f"{len(known[1])}, none in common.\nName the patient table with --patients."
        )
    kept = []
    for run, table, split in zip(runs, tables, ("safe", "leaky"), strict=True):
        kept.append(table[table["image_id"].isin(both)].assign(split=split, seed=0))
        left_out = len(table) - len(both)
        if left_out:
            log.warning("%s: %d images left out (patient unknown, or not in both)", run, left_out)
    first, second = (table.set_index("image_id")["label"].sort_index() for table in kept)
    if not first.equals(second):
        raise InputError(
            "The two runs must have the same true labels.\n"
            f"Received others for {int((first != second).sum())} of {len(first)} images.\n"
            "Compare runs of the same truth."
        )
    return pd.concat(kept, ignore_index=True)
