"""Scores of predictions in files, made here or elsewhere.

    python -m bach.metrics part-a --predictions predictions.csv --truth truth.csv
    python -m bach.metrics part-b --predicted runs/heatmap/class_maps --truth truth_maps

It prints a table; the last line on stdout is the result as JSON.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bach.classes import CLASSES
from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.tables import image_key
from bach.core.text import listed
from bach.honest.intervals import accuracy_interval, format_interval, score_interval
from bach.honest.splits import read_patients, with_patients
from bach.labels import read_class_map, read_labels, same_proportions
from bach.scores import part_a_metrics, part_b_score, score_part_b

__all__ = ["part_a_metrics", "part_b_score", "score_part_b", "score_part_b_folders"]


def _match(
    predicted: Sequence[str], truth: Sequence[str], what: str, allow_extra: bool
) -> list[str]:
    """Keys of the truth, after checking that both sides hold the same images."""
    missing = sorted(set(truth) - set(predicted))
    extra = sorted(set(predicted) - set(truth))
    if missing or (extra and not allow_extra):
        lines = [f"Predictions and truth must hold the same {what}."]
        if missing:
            lines.append(f"Received no prediction for {len(missing)}: {listed(missing)}.")
        if extra:
            lines.append(f"Received no truth for {len(extra)}: {listed(extra)}.")
        if missing:
            lines.append("Predict the missing ones, or take them out of the truth.")
        else:
            lines.append("Add --allow-extra to leave the others out.")
        raise InputError("\n".join(lines))
    if extra:
        log.warning("left out, no truth for %d %s: %s", len(extra), what, listed(extra))
    return list(truth)


def pair_part_a_files(
    predictions: str | os.PathLike, truth: str | os.PathLike, allow_extra: bool = False
) -> pd.DataFrame:
    """Bring a table of Part A predictions and a table of true classes together.

    Args:
        predictions: CSV file, see `read_labels`.
        truth: CSV file, see `read_labels`.
        allow_extra: Leave predictions without truth out (logged) instead of
            refusing them.

    Returns:
        Table of `image_id` (see `image_key`), `label` and `predicted` (0..3), in the
        order of the truth.

    Raises:
        InputError: If a table cannot be read or the two do not hold the same
            images.
    """
    true_labels = read_labels(truth, "truth").set_index("key")["label"]
    labels = read_labels(predictions, "predictions").set_index("key")["label"]
    keys = _match(labels.index, true_labels.index, "images", allow_extra)
    return pd.DataFrame(
        {
            "image_id": keys,
            "label": true_labels[keys].to_numpy(),
            "predicted": labels[keys].to_numpy(),
        }
    )


def score_part_a_files(
    predictions: str | os.PathLike, truth: str | os.PathLike, allow_extra: bool = False
) -> dict:
    """Score a table of Part A predictions against a table of true classes.

    Args, errors: As `pair_part_a_files`.

    Returns:
        As `part_a_metrics`.
    """
    table = pair_part_a_files(predictions, truth, allow_extra)
    return part_a_metrics(table["label"].to_numpy(), table["predicted"].to_numpy())


def score_part_b_folders(
    predicted: str | os.PathLike, truth: str | os.PathLike, allow_extra: bool = False
) -> dict:
    """Score a folder of class maps against a folder of true ones.

    A predicted map of another size is scaled to the size of the true one by
    nearest neighbour (logged) if both show the same area.

    Args:
        predicted: Folder of `<slide>.png`, see `read_class_map`.
        truth: Folder of `<slide>.png`.
        allow_extra: Leave slides without truth out (logged) instead of refusing
            them.

    Returns:
        As `score_part_b`.

    Raises:
        InputError: If a map cannot be read, the folders do not hold the same
            slides, or two maps of a slide differ in shape.
    """
    predicted_files = _find_maps(Path(predicted), "--predicted")
    truth_files = _find_maps(Path(truth), "--truth")
    keys = _match(list(predicted_files), list(truth_files), "slides", allow_extra)

    def pairs():
        for key in keys:
            true_map = read_class_map(truth_files[key])
            class_map = read_class_map(predicted_files[key])
            class_map = _resize_to(class_map, true_map.shape, truth_files[key].stem)
            yield truth_files[key].stem, class_map, true_map

    return score_part_b(pairs())


def _find_maps(folder: Path, option: str) -> dict[str, Path]:
    files = sorted(folder.glob("*.[pP][nN][gG]"))
    if not files:
        inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        contains = "no such folder" if inside is None else f"contains: {listed(inside) or '-'}"
        raise InputError(
            f"{option} must be a folder of class maps <slide>.png.\n"
            f"Received: {option}={folder} ({contains}).\n"
            "Name the folder that holds the PNG files themselves."
        )
    found: dict[str, Path] = {}
    for file in files:
        key = image_key(file.name)
        if key in found:
            raise InputError(
                f"{folder} must hold every slide once.\n"
                f"Received: {found[key].name} and {file.name}.\nTake one of them away."
            )
        found[key] = file
    return found


def _resize_to(class_map: np.ndarray, shape: tuple[int, int], slide: str) -> np.ndarray:
    if class_map.shape == shape:
        return class_map
    rows, columns = (want / have for want, have in zip(shape, class_map.shape, strict=True))
    # Both maps were rounded when they were made.
    alike = same_proportions(class_map.shape, shape, slack=1) or abs(rows / columns - 1) <= 0.01
    if not alike:
        raise InputError(
            f"The two maps of slide {slide} must show the same area.\n"
            f"Received (height x width): predicted {_size(class_map.shape)}, "
            f"truth {_size(shape)}; their proportions differ.\n"
            "Check that both cover the whole slide and none is turned."
        )
    log.info(
        "%s: predicted map scaled from %s to %s pixels (nearest neighbour)",
        slide, _size(class_map.shape), _size(shape),
    )  # fmt: skip
    # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST shifts the map.
    return cv2.resize(class_map, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)


def format_part_a(result: dict) -> str:
    """Lay the figures of `part_a_metrics` out as a table to read."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    width = max(map(len, CLASSES))
    lines = [
        f"images             {result['images']}",
        f"accuracy           {number(result['accuracy'])}",
        f"balanced accuracy  {number(result['balanced_accuracy'])}",
        f"carcinoma or not   {number(result['binary_accuracy'])}",
        "",
        f"{'true class':<{width + 2}} sensitivity specificity   predicted as "
        + " ".join(f"{name:>{width}}" for name in CLASSES),
    ]
    for name, row in zip(CLASSES, result["confusion"], strict=True):
        lines.append(
            f"{name:<{width + 2}} {number(result['sensitivity'][name]):>11} "
            f"{number(result['specificity'][name]):>11}                "
            + " ".join(f"{count:>{width}}" for count in row)
        )
    return "\n".join(lines)


def format_part_b(result: dict) -> str:
    """Lay the figures of `score_part_b` out as a table to read."""

    def line(name: str, score: float, baseline: float) -> str:
        cells = ("-" if np.isnan(value) else f"{value:.4f}" for value in (score, baseline))
        return f"{name:<{width}}  {next(cells):>7}  {next(cells):>13}"

    base = result["baseline"]
    width = max([len("all pixels pooled"), *map(len, result["per_slide"])])
    lines = [f"{'slide':<{width}}  {'score':>7}  {'always benign':>13}"]
    lines += [
        line(slide, score, base["per_slide"][slide]) for slide, score in result["per_slide"].items()
    ]
    lines.append(line("mean over slides", result["score"], base["score"]))
    lines.append(line("all pixels pooled", result["score_pooled"], base["score_pooled"]))
    if result["undefined"]:
        lines.append(
            f"{len(result['undefined'])} slide(s) without a score are left out of the mean: "
            "Normal everywhere, predicted and true (0/0)"
        )
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.metrics", description="Score predictions, ours or not."
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part_a = parts.add_parser("part-a", help="accuracy of image predictions")
    part_a.add_argument("--predictions", required=True, help="CSV, a row an image")
    part_a.add_argument("--truth", required=True, help="CSV of the true classes")
    part_a.add_argument(
        "--patients", help="CSV of image_id, patient: the interval is then over patients"
    )
    part_b = parts.add_parser("part-b", help="challenge score of class maps")
    part_b.add_argument("--predicted", required=True, help="folder of class maps <slide>.png")
    part_b.add_argument("--truth", required=True, help="folder of the true maps <slide>.png")
    for part in (part_a, part_b):
        part.add_argument(
            "--allow-extra", action="store_true", help="leave predictions without truth out"
        )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.part == "part-a":
        table = pair_part_a_files(args.predictions, args.truth, args.allow_extra)
        if args.patients is not None:
            table = with_patients(table, read_patients(args.patients))
        result = part_a_metrics(table["label"].to_numpy(), table["predicted"].to_numpy())
        result["accuracy_interval"] = interval = accuracy_interval(table)
        print(format_part_a(result))
    else:
        result = score_part_b_folders(args.predicted, args.truth, args.allow_extra)
        counts = [np.array(count) for count in result["counts"].values()]
        result["score_interval"] = interval = score_interval(counts)
        print(format_part_b(result))
    print(f"{args.part} {format_interval(interval, 3)}")
    print(to_json(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
