"""Scores of the challenge: Part A accuracy, the Part B score, for any files.

Run as a tool it scores predictions made here or elsewhere:

    python -m bach.metrics part-a --predictions predictions.csv --truth truth.csv
    python -m bach.metrics part-b --predicted runs/heatmap/class_maps --truth truth_maps

It prints a table; the last line on stdout is the result as JSON.
"""

import argparse
import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from bach.classes import CLASSES, COLORS, parse_label
from bach.runs import InputError, atomic_path, exit_with, log

# Endings that file names carry in published tables; anything else after a dot
# may be part of the name.
_ENDINGS = frozenset((
    ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".xml", ".svs", ".ndpi", ".mrxs",
    ".scn", ".vms", ".bif",
))  # fmt: skip
_ID_COLUMNS = (
    "image_id", "image", "id", "case", "file", "filename", "file_name", "name", "slide",
)  # fmt: skip
_TRUTH_COLUMNS = ("label", "truth", "class")
_PREDICTED_COLUMNS = ("predicted", "prediction", "label", "class")
# Labels from here on are carcinoma, the winner's two-class question.
_CARCINOMA = CLASSES.index("InSitu")
_BENIGN = CLASSES.index("Benign")
_SHOWN = 20  # ids in one message
_PIXEL_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")


# Part B


def joint_counts(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels of every pair of true and predicted class.

    All Part B figures follow from these 16 numbers, and counts of several slides
    add up.

    Args:
        predicted: Class map, integer 0..3, (height, width).
        truth: Class map, integer 0..3, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only"). By default all count.

    Returns:
        int64 (4, 4), rows are the true and columns the predicted class.

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..3, or the mask
            is not bool.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(
            "The two class maps must have the same shape. "
            f"Received: predicted.shape={predicted.shape}, truth.shape={truth.shape}. "
            "Resize one of them by nearest neighbour first."
        )
    predicted = _as_labels(predicted, "predicted")
    truth = _as_labels(truth, "truth")
    joint = (truth << 2) | predicted
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != joint.shape:
            raise ValueError(
                "The mask must be bool and of the shape of the maps. "
                f"Received: mask.dtype={mask.dtype}, mask.shape={mask.shape}, "
                f"maps of shape {joint.shape}. Compare it with 0 or resize it first."
            )
        joint = joint[mask]
    # np.bincount would widen every pixel to 8 bytes; maps can hold 10^8 pixels.
    counts = [np.count_nonzero(joint == pair) for pair in range(16)]
    return np.array(counts, dtype=np.int64).reshape(4, 4)


def _as_labels(values: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Labels must be integers 0..3. Received: {name}.dtype={values.dtype}. "
            "Give the class map (uint8), not the heatmap."
        )
    if values.size and (values.min() < 0 or values.max() >= len(CLASSES)):
        found = np.unique(values)
        shown = ", ".join(str(value) for value in found[:_SHOWN])
        raise ValueError(
            f"Labels must be 0..3. Received: {name} with the values {shown}. "
            "Map them to 0 Normal, 1 Benign, 2 InSitu, 3 Invasive first."
        )
    return values.astype(np.uint8, copy=False)


def part_b_terms(counts: np.ndarray) -> tuple[int, int]:
    """Split the Part B score into its two sums.

    Args:
        counts: int (4, 4) from `joint_counts`, or a sum of several.

    Returns:
        The error sum |p - g| and the worst possible error
        sum max(g, 3 - g) * [p > 0 or g > 0].
    """
    truth = np.arange(4)[:, None]
    predicted = np.arange(4)[None, :]
    error = np.abs(predicted - truth)
    worst = np.maximum(truth, 3 - truth) * ((predicted > 0) | (truth > 0))
    return int((counts * error).sum()), int((counts * worst).sum())


def score_from_counts(counts: np.ndarray) -> float:
    """Score joint counts; see `part_b_score`.

    Args:
        counts: int (4, 4) from `joint_counts`; the sum over slides gives the
            pooled score.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere.
    """
    error, worst = part_b_terms(counts)
    return 1.0 - error / worst if worst else float("nan")


def part_b_score(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Score a class map as the challenge does.

    s = 1 - sum |p - g| / sum max(g, 3 - g) * [p > 0 or g > 0]

    Wrong by more classes costs more; pixels that are Normal in both maps do not
    count, so that large empty areas earn nothing.

    Args:
        predicted: Class map p, integer 0..3, (height, width).
        truth: Class map g, integer 0..3, of the same shape.
        mask: Bool, of the same shape; only pixels that are True count
            ("tissue only", an extra and never the headline). By default all count.

    Returns:
        The score, 0..1; nan if both maps are Normal everywhere (0/0).

    Raises:
        ValueError: If shapes differ, a map is not of integers 0..3, or the mask
            is not bool.

    Example:
        >>> part_b_score(np.array([[1, 1, 1, 1]]), np.array([[0, 1, 2, 3]]))
        0.6

    Source: Aresta et al. 2019 (arXiv:1808.04277), evaluation of Part B.
    """
    return score_from_counts(joint_counts(predicted, truth, mask))


def score_part_b(pairs: Iterable[tuple]) -> dict:
    """Score the class maps of several slides.

    Whether the challenge server averages slides or pools pixels is not known:
    both are computed; the mean over slides is the headline.

    Args:
        pairs: `(slide, predicted, truth)` or `(slide, predicted, truth, mask)`
            each, with arrays as in `part_b_score`. May be a generator, so that
            one slide at a time is in memory.

    Returns:
        `score` (mean over the slides that have one), `score_pooled` (all pixels
        together), `per_slide` ({slide: score}), `undefined` (slides that are
        Normal everywhere in both maps and are left out of the mean), and
        `baseline` with the same first three keys for always predicting Benign
        (defined on every slide with pixels), and `counts` ({slide: joint counts as
        lists}). A mean of no slides is nan.

    Raises:
        ValueError: As `part_b_score`, or if a slide comes twice.
    """
    counts: dict[str, np.ndarray] = {}
    for slide, *maps in pairs:
        if slide in counts:
            raise ValueError(
                f"Every slide must come once. Received: {slide!r} twice. Leave one out."
            )
        counts[slide] = joint_counts(*maps)
    result = _scores(counts)
    undefined = [slide for slide, score in result["per_slide"].items() if np.isnan(score)]
    if undefined:
        log.warning(
            "score undefined and left out of the mean: %s (Normal everywhere, predicted and true)",
            ", ".join(undefined),
        )
    result["undefined"] = undefined
    result["baseline"] = _scores({slide: _always_benign(count) for slide, count in counts.items()})
    result["counts"] = {slide: count.tolist() for slide, count in counts.items()}
    return result


def _scores(counts: dict[str, np.ndarray]) -> dict:
    per_slide = {slide: score_from_counts(count) for slide, count in counts.items()}
    defined = [score for score in per_slide.values() if not np.isnan(score)]
    return {
        "score": float(np.mean(defined)) if defined else float("nan"),
        "score_pooled": score_from_counts(sum(counts.values(), np.zeros((4, 4), np.int64))),
        "per_slide": per_slide,
    }


def _always_benign(counts: np.ndarray) -> np.ndarray:
    baseline = np.zeros_like(counts)
    baseline[:, _BENIGN] = counts.sum(axis=1)
    return baseline


# Part A


def part_a_metrics(truth: Sequence[int], predicted: Sequence[int]) -> dict:
    """Compute all Part A figures.

    Args:
        truth: True classes, integers 0..3, (images,).
        predicted: Predicted classes, integers 0..3, (images,).

    Returns:
        `accuracy`; `balanced_accuracy` (mean sensitivity over the classes that
        occur in `truth`); `binary_accuracy` (carcinoma, that is InSitu or
        Invasive, against the rest); `sensitivity` and `specificity` ({class
        name: value}); `confusion` (4x4 list, rows are the true classes);
        `images`. A value that is undefined, since no image counts in it, is None.

    Raises:
        ValueError: If the two differ in length or are not integers 0..3.
    """
    truth = np.asarray(truth).reshape(-1)
    predicted = np.asarray(predicted).reshape(-1)
    if not truth.size and not predicted.size:  # np.asarray([]) is of floats
        truth = predicted = np.zeros(0, np.uint8)
    counts = joint_counts(predicted, truth)
    total = int(counts.sum())
    hits = np.diagonal(counts)
    positives = counts.sum(axis=1)
    called = counts.sum(axis=0)
    negatives = total - positives
    rejected = total - positives - called + hits  # neither true nor called
    sensitivity = {
        name: _ratio(hits[label], positives[label]) for label, name in enumerate(CLASSES)
    }
    specificity = {
        name: _ratio(rejected[label], negatives[label]) for label, name in enumerate(CLASSES)
    }
    defined = [value for value in sensitivity.values() if value is not None]
    carcinoma = np.arange(4) >= _CARCINOMA
    agree = carcinoma[:, None] == carcinoma[None, :]
    return {
        "accuracy": _ratio(hits.sum(), total),
        "balanced_accuracy": float(np.mean(defined)) if defined else None,
        "binary_accuracy": _ratio(counts[agree].sum(), total),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "confusion": counts.tolist(),
        "images": total,
    }


def _ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


# Files


def image_key(text: str) -> str:
    """Reduce an image id to what tables of different origin have in common.

    Example:
        >>> image_key("Photos/Test0.TIF")
        'test0'
    """
    name = re.split(r"[/\\]", str(text).strip())[-1].lower()
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot + ending in _ENDINGS else name


def read_labels(path: str | os.PathLike, kind: str) -> pd.DataFrame:
    """Read the class of every image from a table of ours or of anyone else.

    With or without a header; comma, semicolon or tab; classes as names in any
    spelling or as numbers 0..3. A header with `case` (or `P(...)` columns) and
    `class` is the dialect of the later challenge script, with classes 1..4.

    Predictions are taken from the `prob_*` columns (largest), else from
    `predicted`, `prediction`, `label`, `class` or the second of two columns; the
    truth from `label`, `truth`, `class` or the second of two. In the challenge's
    dialect `class` is the answer. The log says what was read, and warns if a
    table's probabilities and classes disagree.

    Args:
        path: CSV file, a row an image.
        kind: "predictions" or "truth".

    Returns:
        Table of `key` (see `image_key`), `image_id` (as written) and `label`
        (int 0..3), in the order of the file.

    Raises:
        InputError: If the file is missing, empty or ragged, a class cannot be
            read, or an image comes twice; all offending images are named.
    """
    path = Path(path)
    header, rows = _read_rows(path)
    names = header or [f"column {number}" for number in range(1, len(rows[0]) + 1)]
    table = pd.DataFrame(rows, columns=range(len(names)), dtype=str)
    id_column = next((names.index(name) for name in _ID_COLUMNS if name in names), 0)
    ids = table[id_column]
    column, labels = _find_labels(path, names, table, id_column, kind)
    bad = [
        f"{image}: {value!r}"
        for image, value, label in zip(ids, table[column], labels, strict=True)
        if label is None
    ]
    if bad:
        raise InputError(
            f"Every row of {path} must name a class: Normal, Benign, InSitu, Invasive or 0..3 "
            f"(1..4 under a header `case,class`).\n"
            f"Received in column '{names[column]}' ({len(bad)} rows): {_listed(bad)}.\n"
            "Mend these rows; a table without header has the image first, then the class."
        )
    found = pd.DataFrame(
        {"key": [image_key(text) for text in ids], "image_id": ids, "label": labels}
    ).astype({"label": int})
    double = found.loc[found["key"].duplicated(), "key"].unique().tolist()
    if double:
        raise InputError(
            f"Every image must stand in {path} once (file endings and case do not matter).\n"
            f"Received more than once ({len(double)}): {_listed(double)}.\n"
            "Keep one row an image; patch predictions must be averaged over each image first."
        )
    return found


def _read_rows(path: Path) -> tuple[list[str] | None, list[list[str]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} must be a readable CSV file.\nReceived: {error}.\nCheck the path."
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path} must hold a row an image.\nReceived: an empty file.")
    separator = max(",;\t", key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    width = len(rows[0])
    ragged = [str(number) for number, row in enumerate(rows, 1) if len(row) != width]
    if width < 2 or ragged:
        where = f"rows {_listed(ragged)} differ" if ragged else "one column"
        raise InputError(
            f"{path} must have an image and a class in every row, and as many cells in all.\n"
            f"Received: {width} cells in the first row, {where}.\n"
            "Write it as CSV, for example `test0.tif,Benign`."
        )
    header = None
    if rows[0][0].lower() in _ID_COLUMNS or _read_class(rows[0][1], first=0) is None:
        header = [cell.lower() for cell in rows.pop(0)]
        known = {*_ID_COLUMNS, *_TRUTH_COLUMNS, *_PREDICTED_COLUMNS}
        if not known & set(header) and _prob_columns(header) is None:
            # A first row with a misspelt class must not pass for a header.
            raise InputError(
                f"The first row of {path} must be a header or an image and its class.\n"
                f"Received: {separator.join(header)}.\n"
                "Name the columns image_id and label or predicted, or mend the class: "
                "Normal, Benign, InSitu, Invasive or 0..3."
            )
    if not rows:
        raise InputError(
            f"{path} must hold a row an image.\n"
            f"Received: only {separator.join(header or [])!r}.\n"
            "Check the file, and that its classes are Normal, Benign, InSitu, Invasive or 0..3."
        )
    return header, rows


def _find_labels(
    path: Path, names: list[str], table: pd.DataFrame, id_column: int, kind: str
) -> tuple[int, list[int | None]]:
    """The column that holds the classes and what it says, None where unreadable."""
    wanted = _TRUTH_COLUMNS if kind == "truth" else _PREDICTED_COLUMNS
    column = next((names.index(name) for name in wanted if name in names), None)
    probs = _prob_columns(names) if kind == "predictions" else None
    challenge = "class" in names and ("case" in names or any(map(_is_challenge_prob, names)))
    if probs is not None and not challenge:
        labels = _largest(path, names, table[probs])
        source, column = "the largest prob_* column", probs[0]
    else:
        if column is None:
            column = _second_column(path, names, id_column, kind)
        first = 1 if challenge and names[column] == "class" else 0
        labels = [_read_class(text, first) for text in table[column]]
        source = f"column '{names[column]}'" + (" (numbers are 1..4)" if first else "")
    log.info("%s: %d images from %s, %s", kind, len(table), path, source)
    if probs is not None:
        # Two answers in one row: one is taken, and the other is not hidden.
        if challenge:
            other, against = _largest(path, names, table[probs]), "the largest P(...)"
        elif "predicted" in names:
            cells = table[names.index("predicted")]
            other, against = [_read_class(text, first=0) for text in cells], "column 'predicted'"
        else:
            return column, labels
        differ = sum(a != b for a, b in zip(other, labels, strict=True))
        if differ:
            log.warning("%s: %s differs from %s in %d rows", path, source, against, differ)
    return column, labels


def _second_column(path: Path, names: list[str], id_column: int, kind: str) -> int:
    column = 1 if id_column == 0 else 0
    unnamed = names[0] == "column 1"
    answers = ("predicted", "prediction")
    if not unnamed and (len(names) > 2 or (kind == "truth" and names[column] in answers)):
        wanted = "label" if kind == "truth" else "predicted, prob_normal ... or label"
        raise InputError(
            f"{path} must have a column of {'true' if kind == 'truth' else 'predicted'} classes.\n"
            f"Received the columns: {_listed(names)}.\nName the right one {wanted}."
        )
    return column


def _is_challenge_prob(name: str) -> bool:
    return name.startswith("p(")


def _prob_columns(names: list[str]) -> list[int] | None:
    """Columns of the four probabilities in class order: prob_normal or P(Normal) ..."""
    found = {}
    for number, name in enumerate(names):
        match = re.fullmatch(r"prob_(\w+)|p\((.+)\)", name)
        label = parse_label(match[1] or match[2]) if match else None
        if label is not None:
            found[label] = number
    return [found[label] for label in range(len(CLASSES))] if len(found) == 4 else None


def _largest(path: Path, names: list[str], cells: pd.DataFrame) -> list[int]:
    values = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(
            f"The columns {', '.join(names[column] for column in cells)} of {path} must be "
            f"numbers.\n"
            f"Received something else in table rows {_listed([str(row + 1) for row in bad])}.\n"
            "Mend these rows, or take the columns out to use the column 'predicted'."
        )
    return values.argmax(axis=1).tolist()


def _read_class(text: str, first: int) -> int | None:
    """A class name, or a number counted from `first`; None if it is neither."""
    label = parse_label(text)
    if label is None and re.fullmatch(r"\d+(\.0*)?", text):
        label = int(float(text)) - first
    return label if label is not None and 0 <= label < len(CLASSES) else None


def _listed(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def write_class_map(path: str | os.PathLike, class_map: np.ndarray) -> None:
    """Write a class map as palette PNG: pixels are 0..3, viewers show colours.

    Args:
        path: File to write, ending in `.png`; written whole or not at all.
        class_map: uint8 0..3, (height, width).

    Raises:
        ValueError: If the map is not two-dimensional or not of integers 0..3.
    """
    class_map = _as_labels(np.asarray(class_map), "class_map")
    if class_map.ndim != 2:
        raise ValueError(f"A class map must be (height, width). Received: shape {class_map.shape}.")
    image = Image.fromarray(np.ascontiguousarray(class_map))
    image.putpalette([channel for color in COLORS for channel in color])
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def read_class_map(path: str | os.PathLike) -> np.ndarray:
    """Read a class map from a palette or gray PNG.

    Args:
        path: PNG whose palette indices or gray values are the classes 0..3.

    Returns:
        uint8 0..3, (height, width).

    Raises:
        InputError: If the file cannot be read, is in colour, or holds other
            values.
    """
    image = _read_pixels(path)
    found = np.unique(image)
    if found.size and (found[0] < 0 or found[-1] >= len(CLASSES)):
        shown = _listed([str(value) for value in found])
        raise InputError(
            f"The pixels of {path} must be classes 0..3 (palette index or gray value).\n"
            f"Received the values: {shown}.\n"
            "Map them to 0 Normal, 1 Benign, 2 InSitu, 3 Invasive first."
        )
    return image.astype(np.uint8)


def _read_pixels(path: str | os.PathLike) -> np.ndarray:
    # Pillow and not OpenCV, which turns palette indices into their colours.
    try:
        with Image.open(path) as image:
            if image.mode not in _PIXEL_MODES:
                raise InputError(
                    f"{path} must be a palette or gray PNG whose pixels are the classes 0..3.\n"
                    f"Received: a picture in colour (mode {image.mode}).\n"
                    "Save class numbers, not colours; annotations become maps with "
                    "`bach.annotations.label_mask`."
                )
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} must be a readable PNG.\nReceived: {error}.\nWrite it again."
        ) from error


def _match(
    predicted: Sequence[str], truth: Sequence[str], what: str, allow_extra: bool
) -> list[str]:
    """Keys of the truth, after checking that both sides hold the same images."""
    missing = sorted(set(truth) - set(predicted))
    extra = sorted(set(predicted) - set(truth))
    if missing or (extra and not allow_extra):
        lines = [f"Predictions and truth must hold the same {what}."]
        if missing:
            lines.append(f"Received no prediction for {len(missing)}: {_listed(missing)}.")
        if extra:
            lines.append(f"Received no truth for {len(extra)}: {_listed(extra)}.")
        if missing:
            lines.append("Predict the missing ones, or take them out of the truth.")
        else:
            lines.append("Add --allow-extra to leave the others out.")
        raise InputError("\n".join(lines))
    if extra:
        log.warning("left out, no truth for %d %s: %s", len(extra), what, _listed(extra))
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
        contains = "no such folder" if inside is None else f"contains: {_listed(inside) or '-'}"
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
    # A side is known to within a pixel, since sizes are rounded when maps are made.
    low, high = zip(
        *(
            (max(want - 1, 0.5) / (have + 1), (want + 1) / max(have - 1, 0.5))
            for want, have in zip(shape, class_map.shape, strict=True)
        ),
        strict=True,
    )
    rows, columns = (want / have for want, have in zip(shape, class_map.shape, strict=True))
    within_pixel = max(low) <= min(high)
    if not within_pixel and abs(rows / columns - 1) > 0.01:
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


# The tool


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


def to_json(value: object) -> str:
    """One line of JSON, with null for a number that is undefined (nan)."""

    def clean(item: object) -> object:
        if isinstance(item, dict):
            return {key: clean(part) for key, part in item.items()}
        if isinstance(item, list):
            return [clean(part) for part in item]
        return None if isinstance(item, float) and np.isnan(item) else item

    return json.dumps(clean(value), allow_nan=False)


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
    from bach import intervals, patients  # not at the top: they import this module

    args = parse_args(argv)
    if args.part == "part-a":
        table = pair_part_a_files(args.predictions, args.truth, args.allow_extra)
        if args.patients is not None:
            table = patients.with_patients(table, patients.read_patients(args.patients))
        result = part_a_metrics(table["label"].to_numpy(), table["predicted"].to_numpy())
        result["accuracy_interval"] = interval = intervals.accuracy_interval(table)
        print(format_part_a(result))
    else:
        result = score_part_b_folders(args.predicted, args.truth, args.allow_extra)
        counts = [np.array(count) for count in result["counts"].values()]
        result["score_interval"] = interval = intervals.score_interval(counts)
        print(format_part_b(result))
    print(f"{args.part} {intervals.format_interval(interval, 3)}")
    print(to_json(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
