"""What a reproduction takes: patches, time and disk, before anything is trained."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.tables import read_table
from bach.core.text import duration, markdown
from bach.data import find_data, list_images
from bach.heatmap import heatmap_patches
from bach.honest.splits import join_folds, read_folds, take
from bach.mining import HARDEST, MIN_TISSUE_HARD, mining_patches
from bach.patches import photo_patches
from bach.reproduce import kwok2018
from bach.reproduce.plan import Options, epochs
from bach.scores import always, joint_counts, score_from_counts
from bach.slides import Slide
from bach.tasks import BACH
from bach.tissue import slide_maps

# A training step is a prediction, and about two more to go back through the network.
_PREDICTIONS_PER_STEP = 3
# Networks whose size is known; any other counts as the paper's.
_PARAMETERS = {
    "InceptionResNetV2": 57_500_000,
    "EfficientNetLite0": 6_050_000,
    "small": 520_000,
}

_SURVEY = ["image_id", "annotated", "mined", "cells", "pixels", "benign", "benign_tissue"]


def survey(args: Options) -> pd.DataFrame:
    """Look at every slide without a network.

    Returns:
        Table of `image_id`, `annotated`, `mined` and `cells` (patches that mining and
        the heatmap predict), `pixels` of its maps, and, where there is an annotation,
        `benign` and `benign_tissue`: the score of always predicting Benign, on all
        pixels and on tissue only (nan where undefined).

    Raises:
        InputError: If a slide or an annotation cannot be read.
    """
    table = find_data(args.data_dir)
    table = table[table["part"].isin(["B", "B-test"])].head(args.limit or len(table))
    rows = []
    for path in tqdm(table["path"], desc="slides", disable=None):
        with Slide(path, mpp=args.mpp) as slide:
            maps = slide_maps(slide, class_map=args.class_map)
        row = {"image_id": maps.name, "annotated": maps.labels is not None, "mined": 0}
        row |= {"cells": len(heatmap_patches(maps, args.step_um)), "pixels": maps.tissue.size}
        if maps.labels is not None:
            mined = mining_patches(maps, args.stride_um)
            row["mined"] = int((mined["tissue"] >= MIN_TISSUE_HARD).sum())
            row |= benign_scores(maps.labels, maps.tissue)
        rows.append(row)
    return pd.DataFrame(rows, columns=_SURVEY)


def benign_scores(truth: np.ndarray, tissue: np.ndarray) -> dict[str, float]:
    """Score of always predicting Benign, from the annotation alone.

    Args:
        truth: Label map, uint8 0..3, `(height, width)`.
        tissue: Tissue mask of the same shape.
    """
    masks = {"benign": None, "benign_tissue": tissue}
    return {
        name: score_from_counts(always(joint_counts(truth, truth, mask)))
        for name, mask in masks.items()
    }


def patches_of_photos(args: Options, folds: Path) -> pd.DataFrame:
    """The patches of the photos that are used: table of their number and `fold`, by photo."""
    photos = join_folds(list_images(args.data_dir, "A"), read_folds(folds), folds)
    photos = take(photos, args.limit)
    counts = [
        len(photo_patches(row.image_id, row.width, row.height, None)) for row in photos.itertuples()
    ]
    return photos[["image_id", "fold"]].assign(patches=counts)


def workload(
    args: Options, photos: pd.DataFrame, slides: pd.DataFrame, folds_b: int
) -> dict[str, tuple[float, float]]:
    """Count the patches that every script trains on and predicts.

    Args:
        args: The options.
        photos: See `patches_of_photos`.
        slides: See `survey`.
        folds_b: Number of folds of slides.

    Returns:
        {run: (patches trained on, patches predicted)}, each counted as often as it is
        seen.
    """
    # Of a photo that is trained on so many are drawn; one that is held out is predicted whole.
    photos = photos.assign(drawn=photos["patches"].clip(upper=args.patches_per_photo or np.inf))
    patches = photos["drawn"].sum()
    hard = _hard_examples(args, slides)
    held_out = photos[photos["fold"] >= 0].groupby("fold")
    held_a, not_drawn = held_out["patches"].sum(), held_out["drawn"].sum()
    many = epochs(args)

    def training(script: str, trained: list[float], held: list[float]) -> tuple[float, float]:
        each = 0 if args.frozen_bn else args.bn_patches
        refreshed = sum(min(each, count) for count in trained)
        return (
            many[script] * sum(trained),
            many[script] * (sum(held) + refreshed) + sum(held),
        )

    seen = slides["annotated"].to_numpy()
    cells = slides["cells"].to_numpy()
    share = hard / folds_b
    work = {
        "part_a": training("train_part_a.py", list(patches - not_drawn), list(held_a)),
        "hard_examples": (0, slides["mined"].sum() * len(held_a)),
        "final": training("train_final.py", [patches + hard - share] * folds_b, [share] * folds_b),
        # An annotated slide is for the model of its fold, any other for all of them.
        "heatmaps": (0, cells[seen].sum() + folds_b * cells[~seen].sum()),
    }
    if args.in_sample:
        work["final_all"] = training("train_final.py", [patches + hard], [0])
        work["heatmaps_in_sample"] = (0, cells[seen].sum())
    return {run: (float(trained), float(predicted)) for run, (trained, predicted) in work.items()}


def disk_bytes(args: Options, patches: int, slides: pd.DataFrame, models: int) -> int:
    """Estimate what the run folders will hold: patches, models and pictures."""
    stored = (patches + _hard_examples(args, slides)) * BACH.side_px**2 * 3
    # Three files of float32 weights per model, and while it trains its momenta as well.
    parameters = _PARAMETERS.get(args.backbone, _PARAMETERS["InceptionResNetV2"])
    weights = models * 3 * 4 * parameters + 8 * parameters
    # Overlays of three pictures at about a byte per pixel and channel after PNG.
    pictures = 6 * int(slides["pixels"].sum())
    return int(stored + weights + pictures)


def check_room(out: Path, needed: int) -> str:
    """Say how much of the disk the run takes.

    Args:
        out: Folder of the run; what lies there already is a part of what is needed.
        needed: See `disk_bytes`.

    Raises:
        InputError: If there is not enough room.
    """
    free = shutil.disk_usage(out).free
    left = needed - sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if left > free:
        raise InputError(
            f"The disk of {out} must have room for {left / 1e9:.1f} GB.\n"
            f"Received: {free / 1e9:.1f} GB free.\n"
            "Make room, or name a --run-dir on another disk."
        )
    return f"Disk: about {needed / 1e9:.1f} GB in all, {free / 1e9:.1f} GB free."


def measured_speed(part_a: Path) -> float | None:
    """Patches/s that step 1 trained, the median of its epochs; None before the first."""
    rates = [
        float(rate)
        for file in part_a.glob("fold_*/history.csv")
        for rate in read_table(file, ["patches_per_s"])["patches_per_s"]
    ]
    return float(np.median(rates)) if rates else None


def estimate(
    work: Mapping[str, tuple[float, float]], finished: Collection[str], speed: float | None
) -> str:
    """What is still to be done and how long it takes, as a table and a paragraph.

    Args:
        work: See `workload`.
        finished: Runs that are finished.
        speed: See `measured_speed`; where it is None, the paper's stands in.
    """
    rate = speed or kwok2018.PATCHES_PER_S
    rows, total = [], 0.0
    for run, (trained, predicted) in work.items():
        if run in finished:
            rows.append([run, "-", "-", "finished"])
            continue
        seconds = (trained + predicted / _PREDICTIONS_PER_STEP) / rate
        rows.append([run, f"{trained:,.0f}", f"{predicted:,.0f}", duration(seconds)])
        total += seconds
    header = ["run", "patches trained on", "patches predicted", f"time at {rate:.3g} patches/s"]
    paper = f"{kwok2018.PATCHES_PER_S} patches/s on {kwok2018.MACHINE}"
    if speed is None:
        whose = (
            f"if it trains as fast here as in the paper ({paper}). The speed here is known after "
            "the first epoch: the log says patches/s, and after part_a this table comes again"
        )
    else:
        whose = f"at the speed of part_a here (the paper: {paper})"
    return (
        f"{markdown(header, rows)}\n\n"
        f"Time: about {duration(total)} for the network, {whose}. A prediction counts as a third "
        "of a training step; starting, cutting patches, reading slides and pictures come on top."
    )


def _hard_examples(args: Options, slides: pd.DataFrame) -> float:
    return min(args.hard_examples, HARDEST * slides["mined"].sum())
