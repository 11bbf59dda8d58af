"""Assumed patients: images whose patient nobody knows, grouped by number and colour.

    python -m bach.folds assume --data-dir data/BACH --patients folds/patients.csv --out all.csv

Says first what such groups are worth where the patient is known.

Reads:   photos of Part A; patient table.
Writes:  RUN_DIR/features.csv (kept for the next call), --out.
Time:    BACH on one core: features 4 min (once), the rest 1 min; --overlaps 5 min more.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from tqdm import tqdm

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import to_json
from bach.core.log import log
from bach.core.tables import image_key, write_csv
from bach.data import list_images, read_photo
from bach.honest.audit import cross_validate, deal_within_classes, mark_right
from bach.honest.features import read_features, shrink
from bach.honest.splits import (
    class_counts,
    leaking_images,
    make_folds,
    read_patients,
    with_patients,
)

# Points that must agree. On BACH three pairs have 36 or more, all of them seen to
# overlap; of the 10,440 pairs whose patients are known none has more than 6.
_OVERLAP = 10


def likeness_distances(features: pd.DataFrame) -> np.ndarray:
    """How far the colours of every two photos are apart.

    Args:
        features: See `features.read_features`.

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
    gray = cv2.cvtColor(shrink(shrink(rgb)), cv2.COLOR_RGB2GRAY)
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


def accuracy_by_groups(
    features: pd.DataFrame, known: pd.DataFrame, groups: np.ndarray, k: int, seeds: int, trees: int
) -> tuple[float, float]:
    """Cross-validate known images with folds that keep groups, not patients, whole.

    Args:
        features: See `features.read_features`.
        known: Images with `image_id`, `label` (a class name) and their true `patient`.
        groups: Group of every image.
        k, seeds, trees: See `audit.score_twice`.

    Returns:
        Mean accuracy over the draws, and the mean number of held-out images whose
        true patient was also in training.
    """
    hits, leaks = [], []
    grouped = known.assign(patient=[f"g{group}" for group in groups])
    for seed in range(seeds):
        split = make_folds(grouped, k, seed, "own").assign(patient=known["patient"].to_numpy())
        leaks.append(len(leaking_images(split)))
        hits.append(mark_right(cross_validate(features, split, trees, seed))["right"].mean())
    return float(np.mean(hits)), float(np.mean(leaks))


# The tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.folds assume", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data-dir", required=True, help="folder of the challenge data")
    parser.add_argument("--patients", required=True, help="CSV of image_id and patient")
    parser.add_argument(
        "--reach", type=int, default=2, help="largest difference of file numbers that is linked"
    )
    parser.add_argument(
        "--likeness", type=float, default=0.9,
        help="largest difference of colours that is linked, in standard deviations",
    )  # fmt: skip
    parser.add_argument(
        "--overlaps", action="store_true",
        help="also link photos that show the same tissue (about 5 minutes for 400 photos)",
    )  # fmt: skip
    parser.add_argument("--folds", type=int, default=3, help="number of folds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the folds")
    parser.add_argument("--seeds", type=int, default=5, help="draws for the measurement")
    parser.add_argument("--trees", type=int, default=600, help="size of the tree ensemble")
    parser.add_argument(
        "--run-dir", default="runs/audit", help="folder where features are kept, as for audit"
    )
    parser.add_argument("--out", help="CSV file to write: a fold table of all images")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.folds < 2:
        raise InputError(f"There must be 2 folds or more.\nReceived: --folds={args.folds}.")
    if args.out is not None and Path(args.out).exists():
        raise InputError(
            f"A fold table is never overwritten.\nReceived: --out={args.out}, which exists.\n"
            "Name another file, or delete this one first."
        )
    images = with_patients(list_images(args.data_dir, "A"), read_patients(args.patients))
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
        ("groups of the same sizes, shuffled", deal_within_classes(chosen, labels, args.seed)),
        ("nothing", own),
    ):
        accuracy, leaks = accuracy_by_groups(
            features, known, groups, args.folds, args.seeds, args.trees
        )
        print(f"| {name} | {accuracy:.3f} | {leaks:.0f} of {len(known)} |")
        worth[name] = {"accuracy": accuracy, "leaking": leaks}
    print()
    return {"pairs": measure_groups(chosen, patients), "accuracy_by": worth}
