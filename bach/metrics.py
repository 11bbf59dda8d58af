"""Scores of predictions in files, made here or elsewhere.

    python -m bach.metrics part-a --predictions predictions.csv --truth truth.csv
    python -m bach.metrics part-b --predicted runs/heatmaps/class_maps --truth runs/heatmaps/truth

The truth decides what is scored: each of its images or slides must be predicted, and
predictions of others are left out with a warning. It prints a table; the last line on
stdout is the result as JSON.
"""

import argparse
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.tables import image_key
from bach.core.text import columns, listed, number
from bach.honest.intervals import accuracy_interval, format_interval, score_interval
from bach.honest.records import with_known_patients
from bach.labels import read_class_map, read_labels, same_proportions
from bach.scores import accuracy_names, part_a_metrics, part_b_score, score_part_b
from bach.tasks import BACKGROUND, add_option, task, use

__all__ = ["part_a_metrics", "part_b_score", "score_part_b", "score_part_b_folders"]


def _match(
    predicted: Collection[str], truth: Collection[str], what: str, where: object
) -> list[str]:
    """Keys of the truth, which decides what is scored, after checking that all are predicted."""
    missing = sorted(set(truth) - set(predicted))
    extra = sorted(set(predicted) - set(truth))
    if missing:
        also = f"; no truth for {len(extra)}: {listed(extra)}" if extra else ""
        raise InputError(
            f"All {what} of the truth must be predicted in {where}.\n"
            f"Received no prediction for {len(missing)}: {listed(missing)}{also}.\n"
            "Predict the missing ones, or take them out of the truth."
        )
    if extra:
        log.warning("left out, no truth for %d %s: %s", len(extra), what, listed(extra))
    return list(truth)


def pair_part_a_files(
    predictions: str | os.PathLike,
    truth: str | os.PathLike,
    patients: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Bring a table of Part A predictions and a table of true classes together.

    Args:
        predictions: CSV file, see `read_labels`; images without truth are left out
            (logged).
        truth: CSV file, see `read_labels`.
        patients: CSV file of `image_id` and `patient`; by default the column `patient`
            of the predictions, or else of the truth, see `with_known_patients`.

    Returns:
        Table of `image_id` (see `image_key`), `label` and `predicted` (0..n-1) and
        `patient` (empty where unknown), in the order of the truth.

    Raises:
        InputError: If a table cannot be read or an image of the truth has no
            prediction.
    """
    true_labels, labels = read_labels(truth, "truth"), read_labels(predictions, "predictions")
    keys = _match(labels["key"].tolist(), true_labels["key"].tolist(), "images", predictions)
    table = pd.DataFrame(
        {
            "image_id": keys,
            "label": true_labels["label"].to_numpy(),
            "predicted": labels.set_index("key")["label"][keys].to_numpy(),
        }
    )
    return with_known_patients(table, {str(predictions): labels, str(truth): true_labels}, patients)


def score_part_b_folders(predicted: str | os.PathLike, truth: str | os.PathLike) -> dict:
    """Score a folder of class maps against a folder of true ones.

    A predicted map of another size is scaled to the size of the true one by
    nearest neighbour (logged) if both show the same area.

    Args:
        predicted: Folder of `<slide>.png`, see `read_class_map`; slides without truth
            are left out (logged).
        truth: Folder of `<slide>.png`.

    Returns:
        As `score_part_b`.

    Raises:
        InputError: If a map cannot be read, a slide of the truth has no prediction, or
            two maps of a slide differ in shape.
    """
    predicted_files = _find_maps(Path(predicted), "--predicted")
    truth_files = _find_maps(Path(truth), "--truth")
    keys = _match(predicted_files, truth_files, "slides", predicted)

    def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for key in tqdm(keys, desc="class maps", unit="slide", disable=None):
            true_map = read_class_map(truth_files[key])
            class_map = read_class_map(predicted_files[key])
            class_map = _resize_to(class_map, true_map.shape, truth_files[key].stem)
            yield truth_files[key].stem, class_map, true_map

    return score_part_b(pairs())


def _find_maps(folder: Path, option: str) -> dict[str, Path]:
    files = sorted(p for p in folder.glob("*.[pP][nN][gG]") if not p.name.startswith("."))
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


def _resize_to(class_map: np.ndarray, shape: tuple[int, ...], slide: str) -> np.ndarray:
    if class_map.shape == shape:
        return class_map
    high, wide = (want / have for want, have in zip(shape, class_map.shape, strict=True))
    # Both maps were rounded when they were made.
    alike = same_proportions(class_map.shape, shape, slack=1) or abs(high / wide - 1) <= 0.01
    if not alike:
        raise InputError(
            f"The two maps of slide {slide} must show the same area.\n"
            f"Received (height x width): predicted {_size(class_map.shape)}, "
            f"truth {_size(shape)}; their proportions differ.\n"
            "Check that both cover the whole slide and none is turned."
        )
    sizes = f"from {_size(class_map.shape)} to {_size(shape)} pixels"
    log.info("%s: predicted map scaled %s (nearest neighbour)", slide, sizes)
    # INTER_NEAREST_EXACT samples at pixel centres; INTER_NEAREST shifts the map.
    return cv2.resize(class_map, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)


def format_part_a(result: dict) -> str:
    """Lay the figures of `part_a_metrics` out as tables to read."""
    figures = [["images", result["images"]]]
    figures += [[name, number(result[metric])] for metric, name in accuracy_names().items()]
    rows = [
        [name, number(result["sensitivity"][name]), number(result["specificity"][name]), *row]
        for name, row in zip(task().classes, result["confusion"], strict=True)
    ]
    called = [f"called {name}" for name in task().classes]
    tables = [
        columns(["figure", "value"], figures),
        columns(["true class", "sensitivity", "specificity", *called], rows),
    ]
    return "\n\n".join(tables)


def format_part_b(result: dict) -> str:
    """Lay the figures of `score_part_b` out as a table to read."""
    base = result["baseline"]
    rows = [
        [slide, score, base["per_slide"][slide]] for slide, score in result["per_slide"].items()
    ]
    rows.append(["mean over slides", result["score"], base["score"]])
    rows.append(["all pixels pooled", result["score_pooled"], base["score_pooled"]])
    cells = [[name, number(score, 4), number(always, 4)] for name, score, always in rows]
    text = columns(["slide", "score", task().always], cells)
    if result["undefined"]:
        text += (
            f"\n{len(result['undefined'])} slide(s) without a score are left out of the mean: "
            f"{task().classes[BACKGROUND]} everywhere, predicted and true (0/0)"
        )
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.metrics", description="Score predictions, ours or not."
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part_a = parts.add_parser("part-a", help="accuracy of image predictions")
    part_a.add_argument("--predictions", required=True, help="CSV, one row per image")
    part_a.add_argument("--truth", required=True, help="CSV of the true classes")
    part_a.add_argument(
        "--patients",
        help="CSV of image_id and patient, over which the interval is taken "
        "(default: the column patient of the predictions, or of the truth)",
    )
    part_b = parts.add_parser("part-b", help="challenge score of class maps")
    part_b.add_argument("--predicted", required=True, help="folder of class maps <slide>.png")
    part_b.add_argument("--truth", required=True, help="folder of the true maps <slide>.png")
    for part in (part_a, part_b):
        add_option(part)
        part.add_argument(
            "--allow-extra",
            action="store_true",
            help="does nothing: predictions without truth are left out anyway, with a warning",
        )
    args = parser.parse_args(argv)
    use(args.task)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.part == "part-a":
        table = pair_part_a_files(args.predictions, args.truth, args.patients)
        result = part_a_metrics(table["label"].to_numpy(), table["predicted"].to_numpy())
        result["accuracy_interval"] = interval = accuracy_interval(table)
        print(format_part_a(result))
    else:
        result = score_part_b_folders(args.predicted, args.truth)
        counts = [np.array(count) for count in result["counts"].values()]
        result["score_interval"] = interval = score_interval(counts)
        print(format_part_b(result))
    print(f"{args.part} {format_interval(interval, 3)}")
    print(to_json(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
