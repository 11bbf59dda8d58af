"""Mistakes of a run: a table to tick, and sheets to look at; see `python -m bach.report`."""

import concurrent.futures
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.drawings import contact_sheet, legend, line_height, write
from bach.core.errors import InputError
from bach.core.log import log, step
from bach.core.pictures import write_png
from bach.core.run import read_record
from bach.core.tables import as_probs, as_whole, patient_key, read_table, write_csv
from bach.core.text import columns, listed
from bach.data import natural_key, photos_of, read_photo
from bach.labels import read_class
from bach.mining import add_difficulty
from bach.scores import joint_counts
from bach.tasks import task

# Columns to tick, and when. They ask for different remedies: other data, other labels,
# another field of view, or a better network.
CATEGORIES = {
    "artefact": "a fold, bubble, tear, knife mark, ink or dust covers what matters",
    "focus": "out of focus, or blurred otherwise",
    "stain": "stain or light unlike the other images: pale, dark, off-colour",
    "wrong_label": "the label looks wrong, the prediction right",
    "mixed": "the image shows several classes",
    "small_part": "what decides is a small part of the image, or cut off at its edge",
    "borderline": "experts could argue: the image lies between the two classes",
    "network": "a clear image; the network should have known",
}

NOTE = "note"

_PAIR = ("label", "predicted")

# Sizes on the sheets in px.
WIDTH, HEIGHT = 294, 220  # of a photo; the width divides by the 7 columns of patches
_BAR = 10
_CELL = 30
_LINE = line_height(11)


# Mistakes


def columns_of_mistakes() -> list[str]:
    """The columns of the table of mistakes."""
    first = ("image_id", "patient", "fold", "label", "predicted", "difficulty")
    return [*first, *task().columns, "patches", "patches_wrong"]


def read_run(run: str | os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the out-of-fold predictions of a `train_part_a.py` run.

    Args:
        run: Run folder with `predictions.csv` and `patch_predictions.csv`.

    Returns:
        Table of images, with `predicted` and `difficulty`, and table of patches;
        `label` and `predicted` are 0..n-1, `patient` is empty where unknown.

    Raises:
        InputError: If one of them is missing or has other columns.
    """
    images = _read(Path(run) / "predictions.csv", ("fold", "label"), ("image_id", "patient"))
    patches = _read(Path(run) / "patch_predictions.csv", ("x", "y", "label"), ("image_id",))
    without = sorted(set(images["image_id"]) - set(patches["image_id"]), key=natural_key)
    if without:
        raise InputError(
            "Every image of predictions.csv must have its patches in patch_predictions.csv.\n"
            f"Received: none of {listed(without)}.\nFinish the run with --resume."
        )
    return add_difficulty(images), add_difficulty(patches)


def _read(path: Path, whole: Sequence[str], text: Sequence[str]) -> pd.DataFrame:
    table = read_table(path, (*text, *whole, *task().columns))
    numbers = as_whole(table, whole, path).join(as_probs(table, task().columns, path))
    if not numbers["label"].between(0, task().count - 1).all():
        raise InputError(
            f"Every label in {path} must be a class: 0..{task().count - 1}.\n"
            f"Received: {listed(numbers['label'].unique())}.\nFinish the run with --resume."
        )
    return table[list(text)].join(numbers)


def mistakes(images: pd.DataFrame, patches: pd.DataFrame) -> pd.DataFrame:
    """List what was predicted wrongly, worst first.

    Args:
        images: See `read_run`.
        patches: See `read_run`.

    Returns:
        Table with `columns_of_mistakes()`, classes as numbers: every image whose most probable
        class is not its label, the greatest difficulty first. `patches_wrong` of its
        `patches` were themselves predicted wrongly.
    """
    wrong = images[images["predicted"] != images["label"]]
    of_image = (patches["predicted"] != patches["label"]).groupby(patches["image_id"])
    ids = wrong["image_id"]
    wrong = wrong.assign(
        patches=ids.map(of_image.size()).astype(int),
        patches_wrong=ids.map(of_image.sum()).astype(int),
    )
    wrong = wrong.sort_values("image_id", key=lambda ids: ids.map(natural_key), kind="stable")
    wrong = wrong.sort_values("difficulty", ascending=False, kind="stable")
    return wrong[columns_of_mistakes()].reset_index(drop=True)


def to_tick(wrong: pd.DataFrame) -> pd.DataFrame:
    """The table of mistakes as people read it, with empty columns to tick."""
    names = {column: [task().classes[label] for label in wrong[column]] for column in _PAIR}
    numbers = wrong[["difficulty", *task().columns]].round(4)
    empty = dict.fromkeys((*CATEGORIES, NOTE), "")
    return wrong.assign(**names, **numbers, **empty)


def format_counts(images: pd.DataFrame) -> str:
    """Counts by class pair and by patient, laid out to be read.

    Args:
        images: Table of `label`, `predicted` (0..n-1) and `patient` (empty where
            unknown), one row per image.
    """
    counts = joint_counts(images["predicted"].to_numpy(int), images["label"].to_numpy(int))
    pairs = [
        [name, *row, f"{row.sum() - row[label]} of {row.sum()}"]
        for label, (name, row) in enumerate(zip(task().classes, counts, strict=True))
    ]
    # By one name for each patient, whatever the spelling.
    names = images["patient"].groupby(images["patient"].map(patient_key)).transform("min")
    names = names.where(images["patient"].map(patient_key) != "", "")
    wrong = (images["predicted"] != images["label"]).groupby(names)
    table = pd.DataFrame({"images": wrong.size(), "wrong": wrong.sum()})
    table = table.sort_values(["wrong", "images"], ascending=[False, True], kind="stable")
    table = pd.concat([table[table.index != ""], table[table.index == ""]])
    patients = [[one.Index or "(unknown)", one.images, one.wrong] for one in table.itertuples()]
    by_pair = columns(["true, predicted", *task().classes, "wrong"], pairs)
    return f"{by_pair}\n\n{columns(['patient', 'images', 'wrong'], patients)}"


# Sheets


def card(photo: np.ndarray, patches: pd.DataFrame, text: str = "") -> np.ndarray:
    """Draw a photo with what the network says of it and of each of its patches.

    Args:
        photo: uint8 `(height, width, 3)`; scaled to fit 294 x 220 px.
        patches: The photo's patches: `x, y` and the `prob_` columns.
        text: A line below.

    Returns:
        uint8 `(height, 294, 3)`; the height depends on the number of rows of patches
        alone. From top to bottom: the photo, a bar of the mean probabilities, a cell
        for each patch in which the height of a colour is a probability, the text.
    """
    scale = min(WIDTH / photo.shape[1], HEIGHT / photo.shape[0])
    width, height = (max(1, round(side * scale)) for side in photo.shape[1::-1])
    top = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    top[:height, :width] = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)

    probs = patches[list(task().columns)].to_numpy()
    bar = np.full((_BAR + 4, WIDTH, 3), 255, np.uint8)
    bar[2:-2] = _stack(probs.mean(axis=0), WIDTH)[None, :]

    columns, rows = np.unique(patches["x"]), np.unique(patches["y"])
    cell = WIDTH // len(columns)
    cells = np.full((len(rows) * _CELL, WIDTH, 3), 255, np.uint8)
    for x, y, prob in zip(patches["x"], patches["y"], probs, strict=True):
        left, up = np.searchsorted(columns, x) * cell, np.searchsorted(rows, y) * _CELL
        inside = cells[up + 1 : up + _CELL - 1, left + 1 : left + cell - 1]
        inside[:] = _stack(prob, len(inside))[:, None]

    line = np.full((_LINE, WIDTH, 3), 255, np.uint8)
    write(line, text, (1, 0), 11)
    return np.concatenate([top, bar, cells, line])


def _stack(probs: np.ndarray, length: int) -> np.ndarray:
    """Class colours in proportion to probabilities that sum to 1: uint8 `(length, 3)`."""
    ends = np.cumsum(probs)[:-1] * length
    return np.array(task().colors, np.uint8)[np.searchsorted(ends, np.arange(length) + 0.5)]


def pair_name(label: int, predicted: int) -> str:
    return f"{task().classes[label]}_as_{task().classes[predicted]}"


def pair_sheet(cards: Sequence[np.ndarray], wrong: pd.DataFrame, columns: int = 6) -> np.ndarray:
    """Lay the cards of one pair (true, predicted) out under a title and a legend.

    Args:
        cards: Cards of the first rows of `wrong`.
        wrong: All mistakes of the pair, worst first.
        columns: Cards in a row.
    """
    row = wrong.iloc[0]
    shown = "" if len(cards) == len(wrong) else f", the worst {len(cards)} shown"
    title = f"{task().classes[row['label']]} taken for {task().classes[row['predicted']]}: "
    title += f"{len(wrong)} image{'s' * (len(wrong) != 1)}{shown}"
    texts = [
        f"{one.image_id}, {one.patient or 'patient unknown'}, fold {one.fold}, "
        f"difficulty {one.difficulty:.2f}"
        for one in wrong.head(len(cards)).itertuples()
    ]
    return _titled(contact_sheet(cards, texts, columns, side=len(cards[0])), title)


def overview(
    images: pd.DataFrame, worst: Mapping[tuple[int, ...], tuple[str, np.ndarray]]
) -> np.ndarray:
    """Lay all pairs out as a 4 x 4 table: rows the true class, columns the predicted.

    Args:
        images: See `format_counts`.
        worst: Name and card of the worst image of every pair (true, predicted) that
            occurs.
    """
    counts = joint_counts(images["predicted"].to_numpy(int), images["label"].to_numpy(int))
    height = max((len(one) for _, one in worst.values()), default=HEIGHT)
    pictures, texts = [], []
    for label, name in enumerate(task().classes):
        for predicted, called in enumerate(task().classes):
            # The right answers and pairs that do not occur stay empty.
            empty = np.full((height, WIDTH, 3), 238, np.uint8)
            image_id, picture = worst.get((label, predicted), ("none", empty))
            pictures.append(picture)
            count = counts[label, predicted]
            right = f"{name} right: {count} of {counts[label].sum()}"
            wrong = f"{name} taken for {called}: {count} ({image_id})"
            texts.append(right if label == predicted else wrong)
    missed = int(counts.sum() - np.trace(counts))
    title = f"{missed} of {counts.sum()} images wrong; the worst of each pair"
    return _titled(contact_sheet(pictures, texts, task().count, side=height), title)


def _titled(sheet: np.ndarray, title: str) -> np.ndarray:
    # One card alone is too narrow for the title and the legend.
    missing = max(0, 2 * WIDTH - sheet.shape[1])
    sheet = np.pad(sheet, ((0, 0), (0, missing), (0, 0)), constant_values=255)
    strip = np.full((30, sheet.shape[1], 3), 255, np.uint8)
    write(strip, title, (6, 4), 16)
    return np.concatenate([strip, legend(sheet.shape[1], task().classes, task().colors), sheet])


def write_mistakes(
    run: str | os.PathLike,
    data_dir: str | os.PathLike,
    out: str | os.PathLike,
    limit: int = 60,
) -> pd.DataFrame:
    """Write the table and the sheets of a run's mistakes.

    Args:
        run: See `read_run`.
        data_dir: Folder of the challenge data.
        out: Folder to write `errors.csv` and `errors/` into.
        limit: Most images on a sheet; the table has all.

    Returns:
        The table of images, see `read_run`.

    Raises:
        InputError: If the run cannot be read, a photo is missing, or `errors.csv` is
            there and holds ticks.
    """
    images, patches = read_run(run)
    out = Path(out)
    file = out / "errors.csv"
    if file.exists() and _ticks(read_ticks(file)).to_numpy().any():
        raise InputError(
            f"A table with ticks is never overwritten.\nReceived: {file}, which holds some.\n"
            "Name another folder with --out, or move the table away."
        )
    wrong = mistakes(images, patches)
    photos = _photos(wrong, read_record(run) or {}, data_dir)
    with step("mistakes") as notes:
        groups = dict(list(patches.groupby("image_id")))
        pairs = dict(list(wrong.groupby(list(_PAIR))))
        worst: dict[tuple[int, ...], tuple[str, np.ndarray]] = {}
        for pair in itertools.product(range(task().count), repeat=2):
            picture = out / "errors" / f"{pair_name(*pair)}.png"
            if pair not in pairs:
                picture.unlink(missing_ok=True)  # of an earlier state of the run
                continue
            cards = _cards(pairs[pair].head(limit), groups, photos, picture.stem)
            worst[pair] = pairs[pair]["image_id"].iloc[0], cards[0]
            write_png(picture, pair_sheet(cards, pairs[pair]))
        write_png(out / "errors/overview.png", overview(images, worst))
        write_csv(to_tick(wrong), file)
        notes.append(f"{len(wrong)} of {len(images)} images, {len(worst)} sheets")
    return images


def _photos(
    wrong: pd.DataFrame, record: Mapping[str, Any], data_dir: str | os.PathLike
) -> dict[str, tuple[str, float]]:
    """Path and scale of photos that were predicted wrongly."""
    found = photos_of(record, data_dir)
    missing = sorted(set(wrong["image_id"]) - found.keys(), key=natural_key)
    if missing:
        raise InputError(
            "Every photo that was predicted wrongly must be there to be shown.\n"
            f"Received: --data-dir={data_dir} without {listed(missing)}.\n"
            "Name the folder of the data that the run was trained on."
        )
    return found


def _cards(
    wrong: pd.DataFrame,
    groups: dict[str, pd.DataFrame],
    photos: dict[str, tuple[str, float]],
    name: str,
) -> list[np.ndarray]:
    def draw(row) -> np.ndarray:
        label, predicted = (
            f"{task().classes[k]} {getattr(row, task().columns[k]):.2f}"
            for k in (row.label, row.predicted)
        )
        text = f"{label}, {predicted}, wrong {row.patches_wrong} of {row.patches}"
        return card(read_photo(*photos[row.image_id]), groups[row.image_id], text)

    rows = list(wrong.itertuples())
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        return list(tqdm(pool.map(draw, rows), total=len(rows), desc=name, disable=None))


# Ticks


def read_ticks(path: str | os.PathLike) -> pd.DataFrame:
    """Read a filled-in `errors.csv`, as any spreadsheet saves it.

    Args:
        path: CSV with `label` and `predicted` (names or 0..n-1), and columns with ticks.

    Returns:
        The table as text, `label` and `predicted` as 0..n-1.

    Raises:
        InputError: If the file or a class in it cannot be read.
    """
    # Letters of other encodings can stand in notes only, which nobody counts.
    table = read_table(path, _PAIR, errors="replace")
    for name in _PAIR:
        labels = [read_class(text) for text in table[name]]
        bad = [repr(t) for t, label in zip(table[name], labels, strict=True) if label is None]
        if bad:
            raise InputError(
                f"Every {name} in {path} must be a class: {task().choices}.\n"
                f"Received: {listed(bad)}.\nCorrect these rows."
            )
        table[name] = np.array(labels, int)
    return table


def _ticks(table: pd.DataFrame) -> pd.DataFrame:
    """Which cells of the category columns are ticked: bool, a column per category."""
    ticked = table.drop(columns=[*columns_of_mistakes(), NOTE], errors="ignore") != ""
    unnamed = ticked.columns == ""  # they come of separators too many
    if ticked.loc[:, unnamed].to_numpy().any():
        log.warning("ticks in a column without a name are not counted")
    return ticked.loc[:, ~unnamed]


def total_ticks(table: pd.DataFrame) -> dict:
    """Total the ticks, by category and by class pair.

    Args:
        table: From `read_ticks`. Every column that `mistakes` did not write counts
            as a category too; any text in it but blanks is a tick.

    Returns:
        `mistakes` (rows), `ticked` (rows with a tick), `categories` ({name: rows
        ticked}) and `pairs` ({"Benign as Invasive": {"mistakes": rows, name: rows
        ticked, ...}}, the most frequent first).
    """
    ticked = _ticks(table)
    pairs = {}
    for (label, predicted), rows in table.groupby(list(_PAIR)).groups.items():
        pair = pair_name(label, predicted).replace("_", " ")
        pairs[pair] = {"mistakes": len(rows), **_sums(ticked.loc[rows])}
    ordered = sorted(pairs.items(), key=lambda item: -item[1]["mistakes"])
    return {
        "mistakes": len(table),
        "ticked": int(ticked.any(axis=1).sum()),
        "categories": _sums(ticked),
        "pairs": dict(ordered),
    }


def _sums(ticked: pd.DataFrame) -> dict[str, int]:
    return {name: int(count) for name, count in ticked.sum().items()}


def format_totals(result: dict) -> str:
    """Lay the result of `total_ticks` out to be read: a column per category, most first."""
    total, counts = result["mistakes"], result["categories"]
    names = sorted(counts, key=lambda name: -counts[name])
    rows = [
        ["all", total, *(counts[name] for name in names)],
        ["share of mistakes", "", *(f"{counts[n] / total:.0%}" if total else "-" for n in names)],
    ]
    for pair, cells in result["pairs"].items():
        rows.append([pair, cells["mistakes"], *(cells[name] for name in names)])
    table = columns(["", "mistakes", *names], rows)
    return f"{result['ticked']} of {total} mistakes ticked\n\n{table}"
