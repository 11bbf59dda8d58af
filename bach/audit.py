"""What a careless split would have promised: the leak audit, and assumed patients.

    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv
    python -m bach.folds audit --runs runs/safe runs/leaky --patients folds/patients.csv
    python -m bach.folds assume --data-dir data/BACH --patients folds/patients.csv --out all.csv

`audit` scores the same held-out images twice: with folds that keep patients whole, and
with folds of the same sizes that do not. The model is cheap (colour and texture into a
tree ensemble, no GPU), and the gap between the two accuracies is what knowing the
patient is worth to it. `assume` groups images whose patient nobody knows, and says
first what such groups are worth where the patient is known.

Reads:   photos of Part A; patient table.
Writes:  RUN_DIR/features.csv (kept for the next call), predictions.csv, audit.json, and
         folds_safe.csv and folds_leaky.csv, the first draw, to train models of one's own
         on for --runs. A later call with other arguments replaces all but features.csv.
Time:    BACH on one core: features 4 min (once), audit 1 min, assume 1 min.
"""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from skimage import color, feature
from sklearn.ensemble import ExtraTreesClassifier
from tqdm import tqdm

from bach.classes import CLASSES, PROB_COLUMNS
from bach.comparison import read_images
from bach.data import part, read_photo
from bach.folds import ALWAYS_TRAIN, class_counts, leaking_images, make_folds
from bach.intervals import (
    SAMPLES,
    bootstrap,
    format_interval,
    patient_units,
    predicted_labels,
    ratio,
    unit_sums,
)
from bach.labels import image_key, read_labels
from bach.patients import read_patients, with_patients
from bach.runs import InputError, log, step, to_json, write_csv, write_json

_FEATURES_VERSION = 1
_QUANTILES = (5, 25, 50, 75, 95)
# Points that must agree. On BACH three pairs have 36 or more, all of them seen to
# overlap; of the 10,440 pairs whose patients are known none has more than 6.
_OVERLAP = 10

# Features


def image_features(rgb: np.ndarray) -> dict[str, float]:
    """Describe the colour and the texture of a photo by 95 numbers.

    Colour: mean, spread and quantiles of CIE L*a*b*, hematoxylin, eosin and
    saturation. Texture: local binary patterns of the brightness at two scales,
    co-occurrence of hematoxylin levels at three distances, and the energy of
    hematoxylin in octaves. All of it is of the whole photo, so that neither the
    place nor the direction of anything matters.

    Args:
        rgb: uint8 `(height, width, 3)`, RGB, at the scale of the photos (0.42 um/px).

    Returns:
        {name: value}; names of colour features begin with "colour", the others with
        "texture".
    """
    quarter = _shrink(_shrink(rgb))
    found = {}
    hed = color.rgb2hed(quarter)
    lab = color.rgb2lab(quarter)
    planes = {
        "lightness": lab[..., 0], "green_red": lab[..., 1], "blue_yellow": lab[..., 2],
        "hematoxylin": hed[..., 0] * 100, "eosin": hed[..., 1] * 100,
        "saturation": color.rgb2hsv(quarter)[..., 1] * 100,
    }  # fmt: skip
    for name, plane in planes.items():
        mean, spread = float(plane.mean()), float(plane.std())
        found[f"colour_{name}_mean"] = mean
        found[f"colour_{name}_spread"] = spread
        found[f"colour_{name}_skew"] = _skew(plane - mean, spread)
        for share, value in zip(_QUANTILES, np.percentile(plane, _QUANTILES), strict=True):
            found[f"colour_{name}_{share:02d}"] = float(value)
    gray = cv2.cvtColor(quarter, cv2.COLOR_RGB2GRAY)
    # At half the scale they take as long as all else and add nothing (measured).
    for scale in (4, 8):
        patterns = feature.local_binary_pattern(gray, 8, 1, method="uniform")
        shares = np.bincount(patterns.astype(int).ravel(), minlength=10) / patterns.size
        found |= {f"texture_lbp{scale}_{i}": float(share) for i, share in enumerate(shares)}
        gray = _shrink(gray)
    # Of hematoxylin on a fixed scale: at 2.5 nearly all nuclei are at the top.
    blue = np.maximum(hed[..., 0] * 100, 0)
    levels = np.clip(blue / (np.percentile(blue, 99) + 1e-6) * 31, 0, 31).astype(np.uint8)
    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    pairs = feature.graycomatrix(levels, (1, 4, 12), angles, 32, symmetric=True, normed=True)
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation"):
        values = feature.graycoprops(pairs, name).mean(axis=1)
        found |= {f"texture_{name}_{i}": float(value) for i, value in enumerate(values)}
    smooth = blue.astype(np.float32)
    for octave in range(6):
        smoother = cv2.GaussianBlur(smooth, (0, 0), 2.0**octave)
        band = smooth - smoother
        found[f"texture_octave{octave}_spread"] = float(band.std())
        found[f"texture_octave{octave}_skew"] = _skew(band, float(band.std()))
        smooth = smoother
    return found


def _skew(centred: np.ndarray, spread: float) -> float:
    # Products, since a power of 3 takes NumPy ten times as long.
    return float((centred * centred * centred).mean() / (spread**3 + 1e-9))


def _shrink(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def read_features(images: pd.DataFrame, run_dir: str | os.PathLike) -> pd.DataFrame:
    """Describe every photo, or take its description from an earlier call.

    `RUN_DIR/features.csv` keeps the descriptions with size and time of each file;
    a photo that changed since is described anew. What was done is kept if the call
    is interrupted.

    Args:
        images: Image table with `image_id` and `path`.
        run_dir: Folder of `features.csv`.

    Returns:
        float64 table, a row an image in their order, indexed by `image_id`, a column
        a feature, see `image_features`.

    Raises:
        InputError: If a photo cannot be read.
    """
    file = Path(run_dir) / "features.csv"
    rows = _cached(file)
    missing = []
    for image in images.itertuples():
        if rows.get(image.image_id, {}).get("state") != _state(image.path):
            missing.append(image)
    with step("features") as notes:
        notes.append(f"{len(images)} photos, {len(images) - len(missing)} known from {file}")
        try:
            for image in tqdm(missing, desc="features", unit="photo", disable=None):
                described = image_features(read_photo(image.path))
                rows[image.image_id] = {"state": _state(image.path), **described}
        finally:
            if missing:
                table = pd.DataFrame.from_dict(rows, orient="index")
                write_csv(table.rename_axis("image_id").reset_index(), file)
    table = pd.DataFrame([rows[name] for name in images["image_id"]], index=images["image_id"])
    return table.drop(columns="state").astype(np.float64)


def _state(path: str | os.PathLike) -> str:
    about = os.stat(path)
    return f"v{_FEATURES_VERSION} {about.st_size} {about.st_mtime_ns}"


def _cached(file: Path) -> dict[str, dict]:
    if not file.exists():
        return {}
    try:
        table = pd.read_csv(file, dtype={"image_id": str, "state": str}).set_index("image_id")
        return {str(name): row for name, row in table.to_dict("index").items()}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} must be a table of features.\nReceived: {error}.\n"
            "Delete it, or name another --run-dir."
        ) from error


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
    rng = np.random.default_rng(seed)
    dealt = folds["fold"].to_numpy(copy=True)
    for label in sorted(set(folds["label"])):
        rows = np.flatnonzero((folds["label"] == label) & (folds["fold"] != ALWAYS_TRAIN))
        dealt[rows] = rng.permutation(dealt[rows])
    return folds.assign(fold=dealt)


def cross_validate(
    features: pd.DataFrame, folds: pd.DataFrame, trees: int, seed: int
) -> pd.DataFrame:
    """Predict every held-out image by a tree ensemble that did not see it.

    Args:
        features: See `read_features`; has all images of the folds.
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
        features: See `read_features`.
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
        interval as of `bach.intervals.bootstrap` over patients; `images`.

    Raises:
        ValueError: If the splits have different images.
    """
    right = _mark_right(predictions)
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


def _mark_right(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add `right`, 1.0 where the predicted class is the true one, else 0.0."""
    hit = predicted_labels(predictions) == predictions["label"].to_numpy(int)
    return predictions.assign(right=hit.astype(float))


def score_hidden(
    features: pd.DataFrame, labels: pd.Series, truth: pd.Series, seeds: int, trees: int
) -> dict:
    """Score a model trained on all labelled photos on a test set it never met.

    Args:
        features: See `read_features`; has the images of `labels` and `truth`.
        labels: True class 0..3 of the photos to train on, indexed by `image_id`.
        truth: Likewise of the test photos.
        seeds: Number of ensembles, averaged as draws are in `measure_gap`.
        trees: Number of trees.

    Returns:
        Interval of the accuracy, as of `bach.intervals.bootstrap`, over test images.
    """
    right = np.zeros(len(truth))
    for seed in range(seeds):
        probs = _fit_predict(
            features.loc[labels.index], labels.to_numpy(), features.loc[truth.index], trees, seed
        )
        right += (probs.argmax(axis=1) == truth.to_numpy()) / seeds
    units = np.column_stack([right, np.ones(len(right))])
    return bootstrap(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="images")


# Assumed groups of images whose patient is unknown


def likeness_distances(features: pd.DataFrame) -> np.ndarray:
    """How far the colours of every two photos are apart.

    Args:
        features: See `read_features`.

    Returns:
        float64 (images, images): root mean square difference of the colour features,
        each in standard deviations over these images; 1.4 is usual for two photos
        that have nothing in common.
    """
    colours = features[[name for name in features if name.startswith("colour")]].to_numpy()
    spread = colours.std(axis=0)
    scaled = (colours - colours.mean(axis=0)) / np.where(spread > 0, spread, 1)
    # A single outlier, as of a photo that is mostly glass, is not to decide alone.
    scaled = np.clip(scaled, -4, 4)
    square = ((scaled[:, None] - scaled[None]) ** 2).mean(axis=2)
    return np.sqrt(square)


def number_gaps(images: pd.DataFrame) -> np.ndarray:
    """How far the file numbers of every two photos of a series are apart.

    Args:
        images: Table with `image_id`, such as b041.

    Returns:
        float64 (images, images), infinite where the names differ before the number,
        or have none, and between an image and itself.
    """
    found = [re.fullmatch(r"(.*?)(\d+)", image_key(name)) for name in images["image_id"]]
    series = np.array([match.group(1) if match else f"?{i}" for i, match in enumerate(found)])
    number = np.array([float(match.group(2)) if match else 0.0 for match in found])
    gaps = np.abs(number[:, None] - number[None])
    gaps[series[:, None] != series[None]] = np.inf
    np.fill_diagonal(gaps, np.inf)
    return gaps


def find_overlaps(paths: Sequence[str | os.PathLike]) -> np.ndarray:
    """Find photos that show some of the same tissue, copies included.

    Points of every two photos are matched (SIFT), and the matches must agree on one
    shift and turn at the same scale.

    Args:
        paths: Files of the photos.

    Returns:
        bool (images, images), symmetric, False on the diagonal.

    Raises:
        InputError: If a photo cannot be read.
    """
    described = [
        _points(read_photo(path)) for path in tqdm(paths, desc="points", disable=None)
    ]  # fmt: skip
    found = np.zeros((len(described), len(described)), bool)
    for i in tqdm(range(len(described)), desc="overlaps", disable=None):
        for j in range(i):
            found[i, j] = found[j, i] = _common_points(described[i], described[j]) >= _OVERLAP
    return found


def _points(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (points, 2) in px of a quarter and unit descriptions (points, 128)."""
    gray = cv2.cvtColor(_shrink(_shrink(rgb)), cv2.COLOR_RGB2GRAY)
    points, described = cv2.SIFT_create(nfeatures=400).detectAndCompute(gray, None)
    if described is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    # Square roots compare histograms better than the raw counts (RootSIFT,
    # Arandjelovic & Zisserman 2012).
    described = np.sqrt(described / np.maximum(described.sum(axis=1, keepdims=True), 1e-6))
    return np.float32([point.pt for point in points]), described


def _common_points(one: tuple, other: tuple) -> int:
    """Matched points that agree on how one photo lies on the other."""
    if min(len(one[0]), len(other[0])) < 2:
        return 0
    alike = one[1] @ other[1].T
    second, first = np.partition(alike, -2, axis=1)[:, -2:].T
    # A match must be much nearer than the next best (ratio test, Lowe 2004).
    clear = np.flatnonzero(np.sqrt(np.maximum(2 - 2 * first, 0)) < 0.8 * np.sqrt(2 - 2 * second))
    if len(clear) < _OVERLAP:
        return 0
    move, agree = cv2.estimateAffinePartial2D(
        one[0][clear], other[0][alike[clear].argmax(axis=1)], method=cv2.RANSAC,
        ransacReprojThreshold=3, maxIters=500,
    )  # fmt: skip
    # All photos are of one scale.
    if move is None or not 0.95 < np.hypot(move[0, 0], move[1, 0]) < 1.05:
        return 0
    return int(agree.sum())


def link_images(gaps: np.ndarray, distances: np.ndarray, reach: int, likeness: float) -> np.ndarray:
    """Link photos with near numbers and like colours: bool (images, images)."""
    return (gaps <= reach) & (distances < likeness)


def group_by_links(links: np.ndarray) -> np.ndarray:
    """Number the groups of images that are linked, directly or through others."""
    return connected_components(links, directed=False)[1]


def group_by_likeness(distances: np.ndarray, likeness: float) -> np.ndarray:
    """Number the clusters of average linkage, by colours alone."""
    if len(distances) < 2:
        return np.zeros(len(distances), int)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, likeness, "distance")


def assume_patients(table: pd.DataFrame, links: np.ndarray, distances: np.ndarray) -> pd.DataFrame:
    """Give images of unknown patients an assumed one.

    Linked images of unknown patients are one assumed patient: G001, G002 ..., or the
    known patient whom one of them is linked to, the nearest if there are several. Two
    known patients are never made one.

    Args:
        table: Images with `image_id` and `patient`, empty where unknown.
        links, distances: See `link_images` and `likeness_distances`, in the order of
            the table.

    Returns:
        A copy of the table in which every image has a `patient`, and `assumed` is 1
        where it was unknown, else 0.
    """
    unknown = (table["patient"] == "").to_numpy()
    groups = group_by_links(links & unknown[:, None] & unknown[None])
    patients = table["patient"].to_numpy(copy=True)
    named = 0
    for group in dict.fromkeys(groups[unknown]):  # in the order of the table
        members = (groups == group) & unknown
        reachable = np.where(links & members[:, None] & ~unknown[None], distances, np.inf)
        nearest = np.unravel_index(np.argmin(reachable), reachable.shape)
        if np.isfinite(reachable[nearest]):
            patients[members] = table["patient"].iloc[nearest[1]]
        else:
            named += 1
            patients[members] = f"G{named:03d}"
    return table.assign(patient=patients, assumed=unknown.astype(int))


def measure_groups(groups: Sequence, patients: Sequence[str]) -> dict[str, int]:
    """Count what groups are worth on images whose patient is known.

    Args:
        groups: Group of every image.
        patients: True patient of every image.

    Returns:
        `same`, pairs of images of one patient, and `found`, those of them in one
        group; `different`, pairs of two patients, and `merged`, those in one group;
        `groups`, their number, and `largest`, the images of the largest.
    """
    groups, patients = pd.factorize(np.asarray(groups))[0], np.asarray(patients, dtype=str)
    i, j = np.triu_indices(len(groups), 1)
    same, together = patients[i] == patients[j], groups[i] == groups[j]
    return {
        "same": int(same.sum()),
        "found": int((same & together).sum()),
        "different": int((~same).sum()),
        "merged": int((~same & together).sum()),
        "groups": len(set(groups)),
        "largest": int(np.bincount(groups).max()),
    }


def shuffle_groups(groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Deal the groups anew within each class: the same sizes, without the meaning."""
    rng = np.random.default_rng(seed)
    dealt = groups.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        dealt[rows] = rng.permutation(dealt[rows])
    return dealt


def accuracy_by_groups(
    features: pd.DataFrame, known: pd.DataFrame, groups: np.ndarray, k: int, seeds: int, trees: int
) -> tuple[float, float]:
    """Cross-validate known images with folds that keep groups, not patients, whole.

    Args:
        features: See `read_features`.
        known: Images with `image_id`, `label` (a class name) and their true `patient`.
        groups: Group of every image.
        k, seeds, trees: See `score_twice`.

    Returns:
        Mean accuracy over the draws, and the mean number of held-out images whose
        true patient was also in training.
    """
    hits, leaks = [], []
    grouped = known.assign(patient=[f"g{group}" for group in groups])
    for seed in range(seeds):
        split = make_folds(grouped, k, seed, "own").assign(patient=known["patient"].to_numpy())
        leaks.append(len(leaking_images(split)))
        hits.append(_mark_right(cross_validate(features, split, trees, seed))["right"].mean())
    return float(np.mean(hits)), float(np.mean(leaks))


# The tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.folds", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    audit = commands.add_parser(
        "audit", help="what a leaky split promises beside what a patient-safe one finds",
        description="Score the same held-out images twice, patient-safe and leaky.",
    )  # fmt: skip
    source = audit.add_mutually_exclusive_group(required=True)
    source.add_argument("--data-dir", help="folder of the challenge data, for the cheap model")
    source.add_argument(
        "--runs", nargs=2, metavar=("SAFE", "LEAKY"),
        help="two run folders with predictions.csv instead, one of either split",
    )  # fmt: skip
    audit.add_argument(
        "--patients", help="CSV of image_id and patient; images without one are never scored"
    )
    audit.add_argument("--seeds", type=int, default=5, help="draws of both splits")
    audit.add_argument("--folds", type=int, default=3, help="number of folds")
    audit.add_argument("--trees", type=int, default=600, help="size of the tree ensemble")
    audit.add_argument(
        "--with-unknown", action="store_true",
        help="train on the images of unknown patients too, in both splits",
    )  # fmt: skip
    audit.add_argument(
        "--test-truth", help="CSV of image_id and label of the test photos, to score them too"
    )
    audit.add_argument(
        "--run-dir", default="runs/audit",
        help="folder for the features, which are kept for the next call, and the results",
    )  # fmt: skip
    assume = commands.add_parser(
        "assume", help="assumed patients for images whose patient is unknown, and their worth",
        description="Group images of unknown patients by file number and colour; say first what "
        "such groups are worth where the patient is known.",
    )  # fmt: skip
    assume.add_argument("--data-dir", required=True, help="folder of the challenge data")
    assume.add_argument("--patients", required=True, help="CSV of image_id and patient")
    assume.add_argument(
        "--reach", type=int, default=2, help="largest difference of file numbers that is linked"
    )
    assume.add_argument(
        "--likeness", type=float, default=0.9,
        help="largest difference of colours that is linked, in standard deviations",
    )  # fmt: skip
    assume.add_argument(
        "--overlaps", action="store_true",
        help="also link photos that show the same tissue (about 5 minutes for 400 photos)",
    )  # fmt: skip
    assume.add_argument("--folds", type=int, default=3, help="number of folds")
    assume.add_argument("--seed", type=int, default=0, help="seed of the folds")
    assume.add_argument("--seeds", type=int, default=5, help="draws for the measurement")
    assume.add_argument("--trees", type=int, default=600, help="size of the tree ensemble")
    assume.add_argument(
        "--run-dir", default="runs/audit", help="folder where features are kept, as for audit"
    )
    assume.add_argument("--out", help="CSV file to write: a fold table of all images")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return _audit(args) if args.command == "audit" else _assume(args)


def _audit(args: argparse.Namespace) -> int:
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
    images = with_patients(part(args.data_dir, "A"), read_patients(args.patients))
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


def _assume(args: argparse.Namespace) -> int:
    if args.folds < 2:
        raise InputError(f"There must be 2 folds or more.\nReceived: --folds={args.folds}.")
    if args.out is not None and Path(args.out).exists():
        raise InputError(
            f"A fold table is never overwritten.\nReceived: --out={args.out}, which exists.\n"
            "Name another file, or delete this one first."
        )
    images = with_patients(part(args.data_dir, "A"), read_patients(args.patients))
    table = images.assign(label=[CLASSES[label] for label in images["label"]])
    features = read_features(table, args.run_dir)
    gaps, distances = number_gaps(table), likeness_distances(features)
    known = (table["patient"] != "").to_numpy()
    result = {"known": int(known.sum()), "unknown": int((~known).sum())}
    if known.sum() > 1:
        result |= _worth(args, features, table[known], gaps[known][:, known],
                         distances[known][:, known])  # fmt: skip
    else:
        log.warning("no patient is known: what such groups are worth cannot be said")
    links = link_images(gaps, distances, args.reach, args.likeness)
    if args.overlaps:
        result["overlaps"], new = _overlaps(table, links)
        links |= new
    assumed = assume_patients(table, links, distances)
    folds = make_folds(assumed, args.folds, args.seed, "own").assign(
        assumed=assumed["assumed"].to_numpy()
    )
    ours = set(assumed["patient"]) - set(table["patient"])
    result |= {"patients": assumed["patient"].nunique(), "assumed_patients": len(ours)}
    print(class_counts(folds).to_string())
    if args.out is not None:
        write_csv(folds, args.out)
        log.info("assume: wrote %d images to %s", len(folds), args.out)
    print(to_json(result))
    return 0


def _overlaps(table: pd.DataFrame, links: np.ndarray) -> tuple[list[list[str]], np.ndarray]:
    """Pairs of photos that overlap, which are printed, and their links."""
    found = find_overlaps(table["path"].tolist())
    pairs = []
    for i, j in np.argwhere(np.triu(found)):
        one, other = table.iloc[i], table.iloc[j]
        pairs.append([one["image_id"], other["image_id"]])
        known = [row["patient"] or "unknown" for row in (one, other)]
        joined = "linked already" if links[i, j] else "not linked by number and colour"
        print(f"overlap: {' and '.join(pairs[-1])} (patients {', '.join(known)}), {joined}")
    if not pairs:
        print("overlaps: none")
    return pairs, found


def _worth(
    args: argparse.Namespace, features: pd.DataFrame, known: pd.DataFrame, gaps: np.ndarray,
    distances: np.ndarray,
) -> dict:  # fmt: skip
    """Print and return what groups are worth on the images of known patients."""
    patients, labels = known["patient"].to_numpy(), known["label"].to_numpy()
    tried = [("likeness alone", None, limit) for limit in (0.6, 0.7, 0.8, 0.9)]
    tried.append(("numbers within 1", 1, np.inf))
    tried += [
        (f"numbers within {reach} and likeness", reach, limit)
        for reach in sorted({1, 2, 3, args.reach})
        for limit in sorted({0.8, 0.9, 1.0, args.likeness})
    ]
    print(
        "| grouped by | limit | groups (largest) | pairs of one patient found "
        "| pairs of two patients merged | pairs joined rightly |\n|---|---|---|---|---|---|"
    )
    for name, reach, limit in tried:
        if reach is None:
            groups = group_by_likeness(distances, limit)
        else:
            groups = group_by_links(link_images(gaps, distances, reach, limit))
        count = measure_groups(groups, patients)
        joined = count["found"] + count["merged"]
        print(
            f"| {name} | {'-' if np.isinf(limit) else f'{limit:g}'} "
            f"| {count['groups']} ({count['largest']}) "
            f"| {count['found']} of {count['same']} ({count['found'] / max(count['same'], 1):.0%}) "
            f"| {count['merged']} of {count['different']} | {count['found'] / max(joined, 1):.0%} |"
        )
    chosen = group_by_links(link_images(gaps, distances, args.reach, args.likeness))
    own = np.arange(len(known))
    print("\n| folds keep whole | accuracy | held-out images whose patient leaks |\n|---|---|---|")
    worth = {}
    for name, groups in (
        ("patients", pd.factorize(patients)[0]),
        ("assumed groups", chosen),
        ("groups of the same sizes, shuffled", shuffle_groups(chosen, labels, args.seed)),
        ("nothing", own),
    ):
        accuracy, leaks = accuracy_by_groups(
            features, known, groups, args.folds, args.seeds, args.trees
        )
        print(f"| {name} | {accuracy:.3f} | {leaks:.0f} of {len(known)} |")
        worth[name] = {"accuracy": accuracy, "leaking": leaks}
    print()
    return {"pairs": measure_groups(chosen, patients), "accuracy_by": worth}


def _leaking(leaky: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([leaking_images(draw) for _, draw in leaky.groupby("seed")])


def _spread(predictions: pd.DataFrame) -> dict[str, list[float]]:
    """The accuracy of every draw, {split: accuracies}."""
    right = _mark_right(predictions)
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
    images = part(args.data_dir, "A-test")
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
