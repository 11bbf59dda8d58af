"""Fold tables: made so that patients stay whole, read, checked, joined.

A fold table has the columns `image_id, label, patient, fold`. Fold k holds out
its own images and trains on all others; fold -1 is always trained on and never
held out, since nobody knows whose images these are.
"""

import numbers
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.log import log
from bach.core.tables import (
    image_key,
    name_patients,
    patient_key,
    patient_name,
    read_table,
    require_columns,
    require_once,
)
from bach.core.text import columns, listed
from bach.tasks import task

COLUMNS = ("image_id", "label", "patient", "fold")

ALWAYS_TRAIN = -1

_RESTARTS = 50
_MOST_FOLD = 1_000_000

# One of several patients with so large a part of the images is doubted. In the challenge's data
# the largest has a quarter.
_LARGE_SHARE, _FEW_IMAGES, _FEW_PATIENTS = 1 / 3, 20, 5


# Reading and using


def read_folds(path: str | os.PathLike) -> pd.DataFrame:
    """Read a fold table.

    Args:
        path: CSV file with `image_id` and `fold`; `label` and `patient` may be
            missing or empty.

    Returns:
        Table of `image_id`, `label`, `patient` (str, empty if unknown) and `fold`
        (int, -1 for always in training).

    Raises:
        InputError: If the file cannot be read, a column is missing, a fold is no
            integer from -1 up, or an image comes twice.
    """
    table = name_patients(read_table(path, ("image_id", "fold"), key="image_id"), path)
    if "patient" not in table.columns:
        log.warning(
            "%s has no column patient (but %s): nothing keeps a patient from standing on both "
            "sides; name the column patient, or check with --patients",
            path,
            listed(table.columns),
        )
    table = _with_columns(table)
    fold = pd.to_numeric(table["fold"], errors="coerce")
    if table.empty:
        raise InputError(
            f"{path} must hold a row per image.\nReceived: a header alone.\n"
            "Make folds with `python -m bach.folds make`."
        )
    wrong = fold.isna() | (fold % 1 != 0) | (fold < ALWAYS_TRAIN) | (fold > _MOST_FOLD)
    bad = table["image_id"][wrong]
    if len(bad):
        raise InputError(
            f"Every fold in {path} must be 0, 1, 2 ... or -1 (always in training).\n"
            f"Received something else for {len(bad)} images: {listed(bad)}.\n"
            "Mend these rows."
        )
    table["fold"] = fold.astype(int)
    return table[list(COLUMNS)]


def read_image_table(
    path: str | os.PathLike, needed: Collection[str] = ("image_id",)
) -> pd.DataFrame:
    """Read a table of images as text, with empty `label` and `patient` where it has none.

    Raises:
        InputError: If the file cannot be read, lacks a column or names an image twice.
    """
    table = read_table(path)
    if "image_id" not in table and "path" in table:  # of photos, see `bach.data.list_photos`
        table = table.assign(image_id=[Path(file).stem for file in table["path"]])
        require_once(table["image_id"], path)
    else:
        table = read_table(path, needed, key="image_id")
    return _with_columns(name_patients(table, path))


def _with_columns(table: pd.DataFrame) -> pd.DataFrame:
    for name in ("label", "patient"):
        if name not in table.columns:
            table[name] = ""
    return table


def read_patients(path: str | os.PathLike) -> pd.DataFrame:
    """Read a patient table.

    Args:
        path: CSV file with the columns `image_id` and `patient`, which is empty where
            the patient is unknown; other columns are kept.

    Returns:
        The table as stripped text.

    Raises:
        InputError: If the file cannot be read, lacks a column or names an image twice.
    """
    table = name_patients(read_table(path, ("image_id",), key="image_id"), path)
    require_columns(table, ("image_id", "patient"), path)
    return table


def with_patients(table: pd.DataFrame, patients: pd.DataFrame | None) -> pd.DataFrame:
    """Give a table the patients of another one.

    Args:
        table: Any table with `image_id`.
        patients: Table of `image_id` and `patient`, or None to leave the first
            table's own. Ids match without folder, file ending and case.

    Returns:
        A copy of the table whose `patient` is that of `patients`; empty where
        the image does not stand there.
    """
    if patients is None:
        return table.copy()
    names = patients["patient"].map(patient_name)
    known = dict(zip(patients["image_id"].map(image_key), names, strict=True))
    return table.assign(patient=[known.get(image_key(name), "") for name in table["image_id"]])


def join_folds(images: pd.DataFrame, folds: pd.DataFrame, name: object) -> pd.DataFrame:
    """Give every image of an image table its fold and patient.

    Args:
        images: Image table; where the fold table knows no patient, its own are kept.
        folds: Fold table, see `read_folds`.
        name: Name of the fold file, for the error.

    Raises:
        InputError: If an image is in no fold.
    """
    keys = images["image_id"].map(image_key)
    rows = folds.assign(key=folds["image_id"].map(image_key)).set_index("key")
    missing = images["image_id"][~keys.isin(rows.index)]
    if len(missing):
        raise InputError(
            f"Every image must be in the fold table.\n"
            f"Received: {name} without {len(missing)} images: {listed(missing)}.\n"
            "Make folds for this data set with `python -m bach.folds make`."
        )
    rows = rows.loc[keys]
    own = images["patient"].to_numpy() if "patient" in images else ""
    patient = np.where(known_patients(rows), rows["patient"], own)
    return images.assign(patient=patient, fold=rows["fold"].to_numpy())


def check_belongs(images: pd.DataFrame, folds: pd.DataFrame, name: object) -> None:
    """Refuse a fold table of another data set, whose images happen to have the same names.

    Args:
        images: All images of the data set, with `image_id` and `label` (-1 where none).
        folds: Fold table, see `read_folds`.
        name: Name of the fold file, for the error.

    Raises:
        InputError: If images of the table are not there, or have another label.
    """
    labels = dict(zip(images["image_id"].map(image_key), images["label"], strict=True))
    rows = zip(folds["image_id"], folds["label"].map(task().parse_label), strict=True)
    absent, other = [], []
    for image, label in rows:
        here = labels.get(image_key(image))
        if here is None:
            absent.append(image)
        elif label is not None and here >= 0 and here != label:
            other.append(image)
    if absent or other:
        received = [f"{len(absent)} images that are not there: {listed(absent)}"] if absent else []
        received += [f"another label of {len(other)}: {listed(other)}"] if other else []
        raise InputError(
            "A fold table must be of the images that it divides: in another data set the same "
            "name is another patient.\n"
            f"Received: {name} with {' and '.join(received)}.\n"
            "Make folds for this data set with `python -m bach.folds make`; if images were taken "
            "away on purpose, take their rows out of a copy of the table."
        )


def take(images: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """Keep at most `limit` images per class, in turn from every fold (a quick trial)."""
    if limit is None:
        return images
    turn = images.groupby(["label", "fold"]).cumcount()
    first = images.assign(turn=turn).sort_values(["turn", "fold"], kind="stable")
    kept = first.groupby("label").head(limit).index
    return images.loc[sorted(kept)].reset_index(drop=True)


def leaking_images(folds: pd.DataFrame, patients: pd.DataFrame | None = None) -> pd.DataFrame:
    """Find held-out images whose patient is also in their training part.

    Args:
        folds: Fold table, see `read_folds`.
        patients: Table of `image_id` and `patient` to go by instead of the fold
            table's own column; see `with_patients`.

    Returns:
        The rows of the fold table that leak, with the patient gone by. Images of
        unknown patients are never among them: nothing is known about them.
    """
    folds = with_patients(folds, patients)
    known = folds[known_patients(folds)]
    # A patient within one fold is on one side whichever fold is held out; fold -1
    # is one more place to stand.
    places = known.groupby(known["patient"].map(patient_key))["fold"].transform("nunique")
    return known[(places > 1) & (known["fold"] != ALWAYS_TRAIN)]


def known_patients(table: pd.DataFrame) -> pd.Series:
    """Whether the patient of each image is known: bool, a row per image."""
    return table["patient"].map(patient_key) != ""


def suspects(table: pd.DataFrame) -> list[str]:
    """Patients who have so many of the images that they may be a word for unknown.

    Args:
        table: Table with `image_id` and `patient`.

    Returns:
        A line for each.
    """
    names = table["patient"][known_patients(table)]
    of = [group for _, group in names.groupby(names.map(patient_key))]
    if len(names) < _FEW_IMAGES or len(of) < _FEW_PATIENTS:
        return []
    return [
        f"patient {group.iloc[0]} has {len(group)} of {len(names)} images; if that is a word for "
        "unknown, leave its cells empty"
        for group in of
        if len(group) > _LARGE_SHARE * len(names)
    ]


def absent_classes(folds: pd.DataFrame) -> list[str]:
    """Classes without an image to hold out in a fold, or with none to train on: a line for each.

    Args:
        folds: Table with `fold` and `label`, by name or number. Images without a label do not
            count, and where there is no label at all nothing is said.
    """
    labels = folds["label"].map(
        lambda text: text if isinstance(text, numbers.Integral) else task().parse_label(text)
    )
    if labels.isna().all():
        return []
    lines = []
    every = sorted(set(folds["fold"]) - {ALWAYS_TRAIN})
    for label, name in enumerate(task().classes):
        there = folds["fold"][labels == label]
        empty = [str(fold) for fold in every if not (there == fold).any()]
        alone = [str(fold) for fold in every if len(there) and (there == fold).all()]
        if len(there) == 0:
            lines.append(f"{name}: no images at all")
        elif empty:
            lines.append(f"{name}: no images to hold out in fold {listed(empty)}")
        if alone:
            lines.append(f"{name}: no images to train on in fold {listed(alone)}")
    return lines


def check_classes(images: pd.DataFrame, folds: Collection[int]) -> None:
    """Refuse folds whose model would not learn a class; one that holds none out is logged.

    Args:
        images: Images with `label` (0..n-1) and `fold`, at least one of every class.
        folds: The folds that are to be trained.

    Raises:
        InputError: If all images of a class are held out in a fold.
    """
    for fold in folds:
        trained = set(images["label"][images["fold"] != fold])
        without = [name for label, name in enumerate(task().classes) if label not in trained]
        if without:
            raise InputError(
                "Every class must be trained on in every fold.\n"
                f"Received: fold {fold} holds out all images of {listed(without)}.\n"
                "Make folds in which every class has several patients, or train the other folds "
                "alone with --fold."
            )
    for line in absent_classes(images):
        log.warning("%s; its scores say nothing of that class", line)


def check_folds(folds: pd.DataFrame, patients: pd.DataFrame | None = None) -> None:
    """Refuse a split that leaks.

    Args:
        folds: Fold table, see `read_folds`.
        patients: See `leaking_images`.

    Raises:
        InputError: If a known patient stands on both sides; the patients are
            named.
    """
    leaking = leaking_images(folds, patients)
    if len(leaking):
        names = sorted(leaking["patient"].unique())
        raise InputError(
            "No patient may have images in the training and in the held-out part.\n"
            f"Received: {len(leaking)} held-out images of {len(names)} patients who are also "
            f"trained on: {listed(names)}.\n"
            "Use the committed folds, or make new ones with `python -m bach.folds make`."
        )


def check_unshared(patients: Iterable[str], slides: pd.DataFrame) -> None:
    """Refuse to hold out a slide of a patient whose photos are trained on in every fold.

    Args:
        patients: Those of the photos, empty where unknown.
        slides: The rows of a fold table that are to be held out.

    Raises:
        InputError: If so; the patients are named.
    """
    trained = set(map(patient_key, patients))
    both = slides[known_patients(slides) & slides["patient"].map(patient_key).isin(trained)]
    if len(both):
        raise InputError(
            "No patient may have photos that are trained on, and slides that are held out.\n"
            f"Received: slides {listed(both['image_id'])} of the patients "
            f"{listed(sorted(set(both['patient'])))}.\n"
            "Put these slides into fold -1, or train step 1 without these photos; if others are "
            "meant, give them other names in the table of folds."
        )


# Making


def make_folds(table: pd.DataFrame, k: int, seed: int, unknown: str = "train") -> pd.DataFrame:
    """Draw folds that keep patients whole and balance classes as far as they allow.

    Patients are dealt out largest first, each to the fold that keeps classes and
    sizes most even, and then moved or swapped while that helps; the best of 50
    shuffled starts is taken. The result depends on the images and the seed, not on
    the order of the rows.

    Args:
        table: Images with `image_id`, `label` and `patient`. Labels may be empty
            (slides): then only sizes are balanced.
        k: Number of folds, 2 or more.
        seed: Seed of the shuffles.
        unknown: What to do with images without a patient: "train" puts them into
            fold -1 (always trained on, never held out), "own" treats each as a
            patient of its own, which may leak.

    Returns:
        Fold table in the order of `table`.

    Raises:
        ValueError: If k is below 2 or `unknown` is neither of the two.
        InputError: If there are fewer patients than folds, or an image comes
            twice.
    """
    if k < 2:
        raise ValueError(f"There must be 2 folds or more. Received: k={k}.")
    if unknown not in ("train", "own"):
        raise ValueError(f"unknown must be 'train' or 'own'. Received: unknown={unknown!r}.")
    require_once(table["image_id"], "the image table")
    # Differs from Kwok 2018: patients stay whole. The paper says nothing about patients.
    patients = table["patient"].map(patient_key)
    known = patients != ""
    # Named, and dealt in the order of, the first of a patient's spellings.
    patients = table["patient"].map(patient_name).groupby(patients).transform("min")
    # The first word keeps a patient who is called like an image apart from it.
    group = np.where(known, "patient " + patients, "image " + table["image_id"].map(image_key))
    dealt = known if unknown == "train" else pd.Series(True, index=table.index)
    groups = sorted(set(group[dealt]))
    if len(groups) < k:
        raise InputError(
            f"There must be at least as many patients as folds.\n"
            f"Received: {len(groups)} patients, --folds={k}; "
            f"{int((~known).sum())} images without a patient (--unknown={unknown}).\n"
            "Ask for fewer folds; --unknown own treats every image without a patient as one."
        )
    row = {name: number for number, name in enumerate(groups)}
    labels = table["label"].fillna("").astype(str)
    classes = {label: number for number, label in enumerate(sorted(set(labels[dealt])))}
    counts = np.zeros((len(groups), len(classes)))
    for name, label in zip(group[dealt], labels[dealt], strict=True):
        counts[row[name], classes[label]] += 1
    chosen = _deal(counts, k, np.random.default_rng(seed))
    fold = [chosen[row[name]] if name in row else ALWAYS_TRAIN for name in group]
    return pd.DataFrame(
        {
            "image_id": table["image_id"].astype(str),
            "label": labels,
            "patient": table["patient"].map(patient_name),
            "fold": np.array(fold, int),
        }
    )


def _deal(counts: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each group, so that the folds' class shares are as even as possible.

    Every class, and the number of images, weighs the same: the cost is the sum of
    the squared shares of all folds, which is least when all are 1/k.
    """
    shares = np.column_stack([counts, counts.sum(axis=1)])
    shares /= shares.sum(axis=0)
    best, least = np.zeros(len(counts), int), np.inf
    for _ in range(_RESTARTS):
        fold = _improve(shares, _deal_greedily(shares, k, rng), k)
        sums = np.array([shares[fold == number].sum(axis=0) for number in range(k)])
        cost = (sums**2).sum()
        if cost < least - 1e-12:
            best, least = fold, cost
    return best


def _deal_greedily(shares: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    # Sizes are jittered so that the starts differ by more than the order of equals.
    size = shares.sum(axis=1) * rng.uniform(0.5, 1.5, len(shares))
    fold = np.zeros(len(shares), int)
    sums = np.zeros((k, shares.shape[1]))
    for group in np.argsort(-size, kind="stable"):
        # Growth of the cost, up to a constant; an empty fold adds nothing.
        fold[group] = np.argmin(sums @ shares[group])
        sums[fold[group]] += shares[group]
    return fold


def _improve(shares: np.ndarray, fold: np.ndarray, k: int) -> np.ndarray:
    """Apply the best move or swap of groups until none lowers the cost."""
    fold = fold.copy()
    while True:
        sums = np.array([shares[fold == number].sum(axis=0) for number in range(k)])
        # Groups of the same content in the same fold are interchangeable; an empty
        # group in every fold makes a move a swap like any other.
        _, members = np.unique(np.column_stack([fold, shares]), axis=0, return_index=True)
        where = np.concatenate([fold[members], np.arange(k)])
        content = np.concatenate([shares[members], np.zeros((k, shares.shape[1]))])
        # Swapping i and j changes the sums of their folds by -d and +d, d = c_i - c_j.
        product = content @ sums[where].T
        own = np.einsum("ij,ij->i", content, sums[where])
        gap = product - own[:, None] + product.T - own[None, :]
        square = (content**2).sum(axis=1)
        distance = square[:, None] + square[None, :] - 2 * content @ content.T
        change = 2 * gap + 2 * distance
        change[where[:, None] == where[None, :]] = 0
        i, j = np.unravel_index(np.argmin(change), change.shape)
        if change[i, j] > -1e-9:
            return fold
        for one, other in ((i, j), (j, i)):
            if one < len(members):
                fold[members[one]] = where[other]


def class_counts(folds: pd.DataFrame) -> pd.DataFrame:
    """Count images of each class and known patients, a row per fold."""
    names = [name for name in task().classes if (folds["label"] == name).any()]
    names += sorted(set(folds["label"]) - set(task().classes) - {""})
    rows = {}
    for fold, part in folds.groupby("fold"):
        rows[fold] = {name: int((part["label"] == name).sum()) for name in names}
        rows[fold]["images"] = len(part)
        rows[fold]["patients"] = part["patient"][known_patients(part)].map(patient_key).nunique()
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "fold"
    return table


def format_counts(folds: pd.DataFrame) -> str:
    """The figures of `class_counts` as a table to read."""
    counts = class_counts(folds)
    return columns(["fold", *counts], [row for row in counts.itertuples()])
