"""Assumed patients: images whose patient nobody knows, grouped by number and colour.

Says first what such groups are worth where the patient is known (the figures of
folds/README.md), then writes a fold table of all images that keeps the groups whole.

Reads:   photos of Part A; patient table.
Writes:  RUN_DIR/features.csv (kept for the next call), --out.
Command: python benchmarks/assume_patients.py --data-dir data/BACH --patients folds/patients.csv \\
             --out all.csv
Time:    BACH on one core: features 4 min (once), the rest 1 min; --overlaps 5 min more.
         --quick paints 32 small photos, 10 s.
Prints Markdown tables; the last line is JSON.
"""

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.classes import CLASSES
from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.options import option, parse
from bach.core.tables import image_key, write_csv
from bach.core.text import markdown
from bach.data import list_images, read_photo
from bach.honest.audit import cross_validate, deal_within_classes, mark_right
from bach.honest.features import read_features, shrink
from bach.honest.learners import Trees
from bach.honest.splits import (
    format_counts,
    leaking_images,
    make_folds,
    read_patients,
    with_patients,
)
from bach.toy.dataset import Recipe, make_data_set

# Points that must agree. On BACH three pairs have 36 or more, all of them seen to
# overlap; of the 10,440 pairs whose patients are known none has more than 6.
_OVERLAP = 10


def likeness_distances(features: pd.DataFrame) -> np.ndarray:
    """How far the colours of every two photos are apart.

    Args:
        features: See `bach.honest.features.read_features`.

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
    described = [_points(read_photo(path)) for path in tqdm(paths, desc="points", disable=None)]
    found = np.zeros((len(described), len(described)), bool)
    for i in tqdm(range(len(described)), desc="overlaps", disable=None):
        for j in range(i):
            found[i, j] = found[j, i] = _common_points(described[i], described[j]) >= _OVERLAP
    return found


def _points(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (points, 2) in px of a quarter and unit descriptions (points, 128)."""
    gray = cv2.cvtColor(shrink(shrink(rgb)), cv2.COLOR_RGB2GRAY)
    points, described = cv2.SIFT_create(nfeatures=400).detectAndCompute(  # type: ignore[attr-defined]
        gray, None
    )
    if described is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    # Square roots compare histograms better than the raw counts (RootSIFT,
    # Arandjelovic & Zisserman 2012).
    described = np.sqrt(described / np.maximum(described.sum(axis=1, keepdims=True), 1e-6))
    return np.array([point.pt for point in points], np.float32), described


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
    matched = other[0][alike[clear].argmax(axis=1)]
    move, agree = cv2.estimateAffinePartial2D(
        one[0][clear], matched, method=cv2.RANSAC, ransacReprojThreshold=3, maxIters=500
    )
    # All photos are of one scale.
    if move is None or not 0.95 < np.hypot(move[0, 0], move[1, 0]) < 1.05:
        return 0
    return int(agree.sum())


def link_images(
    gaps: np.ndarray, distances: np.ndarray, reach: float, likeness: float
) -> np.ndarray:
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


def measure_groups(groups: ArrayLike, patients: ArrayLike) -> dict[str, int]:
    """Count what groups are worth on images whose patient is known.

    Args:
        groups: Group of every image.
        patients: True patient of every image.

    Returns:
        `same`, pairs of images of one patient, and `found`, those of them in one
        group; `different`, pairs of two patients, and `merged`, those in one group;
        `groups`, their number, and `largest`, the images of the largest.
    """
    number, patient = pd.factorize(np.asarray(groups))[0], np.asarray(patients, dtype=str)
    i, j = np.triu_indices(len(number), 1)
    same, together = patient[i] == patient[j], number[i] == number[j]
    return {
        "same": int(same.sum()),
        "found": int((same & together).sum()),
        "different": int((~same).sum()),
        "merged": int((~same & together).sum()),
        "groups": len(set(number)),
        "largest": int(np.bincount(number).max()),
    }


def accuracy_by_groups(
    features: pd.DataFrame, known: pd.DataFrame, groups: np.ndarray, k: int, seeds: int, trees: int
) -> tuple[float, float]:
    """Cross-validate known images with folds that keep groups, not patients, whole.

    Args:
        features: See `bach.honest.features.read_features`.
        known: Images with `image_id`, `label` (a class name) and their true `patient`.
        groups: Group of every image.
        k, seeds, trees: See `bach.honest.audit.score_twice`.

    Returns:
        Mean accuracy over the draws, and the mean number of held-out images whose
        true patient was also in training.
    """
    hits, leaks = [], []
    grouped = known.assign(patient=[f"g{group}" for group in groups])
    for seed in range(seeds):
        split = make_folds(grouped, k, seed, "own").assign(patient=known["patient"].to_numpy())
        leaks.append(len(leaking_images(split)))
        hits.append(mark_right(cross_validate(features, split, Trees(trees), seed))["right"].mean())
    return float(np.mean(hits)), float(np.mean(leaks))


# The measurement


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    data_dir: str = option("data/BACH", "folder of the challenge data")
    patients: str = option("folds/patients.csv", "CSV of image_id and patient")
    reach: int = option(2, "largest difference of file numbers that is linked", at_least=0)
    likeness: float = option(
        0.9, "largest difference of colours that is linked, in standard deviations", above=0
    )
    overlaps: bool = option(
        False, "also link photos that show the same tissue (about 5 minutes for 400 photos)"
    )
    folds: int = option(3, "number of folds", at_least=2)
    seed: int = option(0, "seed of the folds", at_least=0)
    seeds: int = option(5, "draws for the measurement", at_least=1)
    trees: int = option(Trees().size, "size of the tree ensemble", at_least=1)
    run_dir: str = option("runs/audit", "folder where features are kept, as for the audit")
    out: str | None = option(None, "CSV file to write: a fold table of all images")
    quick: bool = option(False, "paint a small data set and measure it")


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos, and how far they are apart.

    Attributes:
        table: Images with `image_id`, `label` (a class name), `patient` and `path`.
        features: See `bach.honest.features.read_features`.
        gaps, distances: See `number_gaps` and `likeness_distances`, in the order of the table.
    """

    table: pd.DataFrame
    features: pd.DataFrame
    gaps: np.ndarray
    distances: np.ndarray

    def only(self, rows: np.ndarray) -> "Photos":
        """The photos of some rows of the table: bool `(images,)`."""
        square = np.ix_(rows, rows)
        return Photos(self.table[rows], self.features, self.gaps[square], self.distances[square])

    def links(self, reach: float, likeness: float) -> np.ndarray:
        """See `link_images`."""
        return link_images(self.gaps, self.distances, reach, likeness)


def try_groupings(known: Photos, args: Options) -> list[dict]:
    """What groups of several kinds are worth: `measure_groups`, with `name` and `limit`."""
    tried: list[tuple[str, float, np.ndarray]] = [
        ("likeness alone", limit, group_by_likeness(known.distances, limit))
        for limit in (0.6, 0.7, 0.8, 0.9)
    ]
    tried.append(("numbers within 1", np.inf, group_by_links(known.links(1, np.inf))))
    for reach in sorted({1, 2, 3, args.reach}):
        for limit in sorted({0.8, 0.9, 1.0, args.likeness}):
            groups = group_by_links(known.links(reach, limit))
            tried.append((f"numbers within {reach} and likeness", limit, groups))
    patients = known.table["patient"].to_numpy()
    return [
        {"name": name, "limit": limit, **measure_groups(groups, patients)}
        for name, limit, groups in tried
    ]


def try_folds(known: Photos, args: Options) -> dict[str, dict[str, float]]:
    """Accuracy and leaking images of folds that keep several kinds of groups whole."""
    labels = known.table["label"].to_numpy()
    chosen = group_by_links(known.links(args.reach, args.likeness))
    kinds = {
        "patients": pd.factorize(known.table["patient"])[0],
        "assumed groups": chosen,
        "groups of the same sizes, shuffled": deal_within_classes(chosen, labels, args.seed),
        "nothing": np.arange(len(labels)),
    }
    found = {}
    for name, groups in kinds.items():
        accuracy, leaks = accuracy_by_groups(
            known.features, known.table, groups, args.folds, args.seeds, args.trees
        )
        found[name] = {"accuracy": accuracy, "leaking": leaks}
    return found


def format_groupings(rows: list[dict]) -> str:
    """Lay the result of `try_groupings` out as Markdown."""
    header = ["grouped by", "limit", "groups (largest)", "pairs of one patient found"]
    header += ["pairs of two patients merged", "pairs joined rightly"]
    cells = []
    for row in rows:
        found, joined = row["found"] / max(row["same"], 1), row["found"] + row["merged"]
        cells.append(
            [
                row["name"],
                "-" if np.isinf(row["limit"]) else f"{row['limit']:g}",
                f"{row['groups']} ({row['largest']})",
                f"{row['found']} of {row['same']} ({found:.0%})",
                f"{row['merged']} of {row['different']}",
                f"{row['found'] / max(joined, 1):.0%}",
            ]
        )
    return markdown(header, cells)


def format_folds(worth: dict[str, dict[str, float]], images: int) -> str:
    """Lay the result of `try_folds` out as Markdown."""
    rows = [
        [name, f"{row['accuracy']:.3f}", f"{row['leaking']:.0f} of {images}"]
        for name, row in worth.items()
    ]
    return markdown(["folds keep whole", "accuracy", "held-out images whose patient leaks"], rows)


def format_overlap(one: pd.Series, other: pd.Series, linked: bool) -> str:
    """A line about two photos that show the same tissue."""
    names = f"{one['image_id']} and {other['image_id']}"
    patients = ", ".join(row["patient"] or "unknown" for row in (one, other))
    joined = "linked already" if linked else "not linked by number and colour"
    return f"overlap: {names} (patients {patients}), {joined}"


# The tool


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Options, argv, __doc__)
    if not args.quick:
        return run(args)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = f"{folder}/data"
        recipe = Recipe(
            patients=8, images=8, test_images=2, slides=0, test_slides=0, photo_size=(160, 120)
        )
        make_data_set(data_dir, recipe)
        small = dataclasses.replace(args, folds=2, seeds=1, trees=20, out=None)
        patients = f"{data_dir}/patients.csv"
        return run(dataclasses.replace(small, data_dir=data_dir, patients=patients, run_dir=folder))


def run(args: Options) -> int:
    """Measure, print, and write the folds."""
    if args.out is not None and Path(args.out).exists():
        raise InputError(
            f"A fold table is never overwritten.\nReceived: --out={args.out}, which exists.\n"
            "Name another file, or delete this one first."
        )
    photos = read(args)
    table, known = photos.table, photos.only((photos.table["patient"] != "").to_numpy())
    images = len(known.table)
    result: dict[str, object] = {"known": images, "unknown": len(table) - images}
    if images > 1:
        print(format_groupings(try_groupings(known, args)), end="\n\n")
        worth = try_folds(known, args)
        print(format_folds(worth, images), end="\n\n")
        chosen = group_by_links(known.links(args.reach, args.likeness))
        pairs = measure_groups(chosen, known.table["patient"].tolist())
        result |= {"pairs": pairs, "accuracy_by": worth}
    else:
        log.warning("no patient is known: what such groups are worth cannot be said")
    links = photos.links(args.reach, args.likeness)
    if args.overlaps:
        found = find_overlaps(table["path"].tolist())
        places = np.argwhere(np.triu(found))
        for i, j in places:
            print(format_overlap(table.iloc[i], table.iloc[j], links[i, j]))
        print(f"overlaps: {len(places)}")
        result["overlaps"] = [table["image_id"].iloc[place].tolist() for place in places]
        links |= found
    assumed = assume_patients(table, links, photos.distances)
    folds = make_folds(assumed, args.folds, args.seed, "own")
    folds["assumed"] = assumed["assumed"].to_numpy()
    ours = set(assumed["patient"]) - set(table["patient"])
    result |= {"patients": assumed["patient"].nunique(), "assumed_patients": len(ours)}
    print(format_counts(folds))
    if args.out is not None:
        write_csv(folds, args.out)
        log.info("assume: wrote %d images to %s", len(folds), args.out)
    print(to_json(result))
    return 0


def read(args: Options) -> Photos:
    """Read what is to be measured."""
    images = with_patients(list_images(args.data_dir, "A"), read_patients(args.patients))
    table = images.assign(label=[CLASSES[label] for label in images["label"]])
    features = read_features(table, args.run_dir)
    return Photos(table, features, number_gaps(table), likeness_distances(features))


if __name__ == "__main__":
    exit_with(main)
