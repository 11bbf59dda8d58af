"""Predictions of patches and images, by one model or the mean of several."""

import collections
import concurrent.futures
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach import devices
from bach.batches import fill_up, photo_to_patches, read_patch
from bach.classes import PROB_COLUMNS
from bach.data import read_photo
from bach.model import load_model
from bach.patches import photo_patches
from bach.runs import InputError, log
from bach.slides import Slide


def load_models(run_dir: str | os.PathLike, folds: Sequence[int] | None = None) -> dict:
    """Load the models of a training run.

    Args:
        run_dir: Run folder of `train_part_a.py` or `train_final.py`, or a `.keras`
            file.
        folds: Which folds to load; all there are by default.

    Returns:
        Model by fold number; a run with `--fold none` and a single file have the
        key -1.

    Raises:
        InputError: If there is no finished model, or a fold is missing.
    """
    run_dir = Path(run_dir)
    if run_dir.suffix == ".keras":
        return {-1: prepare(load_model(run_dir))}
    found = {}
    for path in sorted(run_dir.glob("fold_*/model.keras")):
        name = path.parent.name.removeprefix("fold_")
        found[-1 if name == "none" else int(name)] = path
    wanted = sorted(found) if folds is None else list(folds)
    missing = [fold for fold in wanted if fold not in found]
    if missing or not found:
        raise InputError(
            f"{run_dir} holds no finished model"
            + (f" of fold {', '.join(map(str, missing))}" if found else "")
            + ".\nTrain it first (or finish it with --resume)."
        )
    log.info("models: %s of %s", ", ".join(f"fold {fold}" for fold in wanted), run_dir)
    return {fold: prepare(load_model(found[fold])) for fold in wanted}


def model_file(run_dir: str | os.PathLike, fold: int) -> Path:
    """File of a model of a run, by its key in `load_models`."""
    run_dir = Path(run_dir)
    if run_dir.suffix == ".keras":
        return run_dir
    return run_dir / f"fold_{'none' if fold == -1 else fold}" / "model.keras"


def trained_slides(file: Path) -> frozenset[str]:
    """Names of the slides a model was trained on; empty for models of photos alone.

    Args:
        file: The model's file; the list lies beside it.
    """
    listed = file.parent / "slides.json"
    return frozenset(json.loads(listed.read_text())["trained_on"] if listed.exists() else ())


def prepare(model: keras.Model) -> keras.Model:
    """Set how a model is compiled for prediction."""
    model.compile(jit_compile=devices.jit())
    return model


def predict_batches(model: keras.Model, batches: keras.utils.PyDataset, count: int) -> np.ndarray:
    """Probabilities of `count` patches: float32 `(count, 4)`; what fills up is dropped."""
    return devices.predict(model, batches)[:count]


def predict_slide(
    models: Sequence[keras.Model], slide: Slide, table: pd.DataFrame, batch_size: int = 64
) -> np.ndarray:
    """Mean probabilities over models of the patches of a slide.

    Args:
        models: One or more models.
        slide: The open slide.
        table: Patch table of this slide; may be empty.
        batch_size: Patches a batch.

    Returns:
        float32 array `(len(table), 4)`.
    """
    if table.empty:
        return np.zeros((0, len(PROB_COLUMNS)), np.float32)
    total = np.zeros((len(table), len(PROB_COLUMNS)), np.float64)
    with tqdm(total=len(table), desc=slide.name, unit="patch", disable=None) as bar:
        # Each patch is read once and shown to every model.
        for index, patches in enumerate(_read_ahead(slide, table, batch_size)):
            part = total[index * batch_size : (index + 1) * batch_size]
            for model in models:
                part += np.asarray(model.predict_on_batch(patches))[: len(part)]
            bar.update(len(part))
    return (total / len(models)).astype(np.float32)


def predict_photos(models: Sequence[keras.Model], images: pd.DataFrame) -> pd.DataFrame:
    """Predict whole photos by the mean over their patches and over models.

    Args:
        models: One or more models.
        images: Image table of photos.

    Returns:
        Table with `image_id` and the four `prob_` columns, one row an image.

    Source: Kwok 2018, section 4.3: no augmentation at inference.
    """
    rows = []
    for image in tqdm(images.itertuples(), total=len(images), desc="photos", disable=None):
        photo = read_photo(image.path)
        table = photo_patches(image.image_id, photo.shape[1], photo.shape[0], None)
        patches = photo_to_patches(photo, table)
        # Filled up to a multiple of 8, so that it splits over as many devices.
        filled = fill_up(patches, -(-len(patches) // 8) * 8)
        probs = np.mean(
            [np.asarray(model.predict_on_batch(filled))[: len(patches)] for model in models],
            axis=(0, 1),
        )
        rows.append((image.image_id, *probs))
    return pd.DataFrame(rows, columns=["image_id", *PROB_COLUMNS])


def image_means(patches: pd.DataFrame) -> pd.DataFrame:
    """Mean patch probabilities of every image, in order of first appearance.

    Args:
        patches: Table with `image_id`, `label` and the four `prob_` columns.

    Returns:
        Table with `image_id, label, predicted` and the `prob_` columns.
    """
    means = patches.groupby("image_id", sort=False)[["label", *PROB_COLUMNS]].mean()
    means = means.reset_index()
    means["label"] = means["label"].astype(int)
    means.insert(2, "predicted", means[list(PROB_COLUMNS)].to_numpy().argmax(axis=1))
    return means


def _read_ahead(slide: Slide, table: pd.DataFrame, batch_size: int) -> Iterator[np.ndarray]:
    """Yield batches of patches in order, read by threads ahead of the network."""
    rows = list(table[["x", "y", "size"]].itertuples(index=False))

    def read(start: int) -> np.ndarray:
        patches = [read_patch(slide, row) for row in rows[start : start + batch_size]]
        return fill_up(np.stack(patches), batch_size)

    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = collections.deque()
        for start in range(0, len(rows), batch_size):
            waiting.append(pool.submit(read, start))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
