"""Predictions of patches and images, by one model or the mean of several."""

import collections
import concurrent.futures
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.log import log
from bach.core.text import duration, listed
from bach.data import photo_scales, photo_sizes, read_photo
from bach.network import backend, processes
from bach.network.augment import orient, orientations
from bach.network.batches import Bar, Batches, feed, fill_up
from bach.network.fold_norms import fast_clone
from bach.network.image_network import field_shape, is_image_network, photo_input
from bach.network.patch_network import is_field_network, load_model, source_of, view_of
from bach.network.stores import photo_to_patches, read_patch
from bach.patches import View, photo_patches
from bach.slides import Slide
from bach.tasks import require_task, task

_FILL = 8  # patches of a photo go through the network in multiples of so many


def load_models(
    run_dir: str | os.PathLike,
    folds: Sequence[int] | None = None,
    ready: Callable[[keras.Model], Any] | None = None,
    whole_photos: bool = False,
) -> dict[int, Any]:
    """Load the models of a training run.

    Args:
        run_dir: Run folder of `train_part_a.py` or `train_final.py`, or a `.keras`
            file.
        folds: Which folds to load; all there are by default.
        ready: What to make of each model; `prepare` by default.
        whole_photos: Take image networks too, which know nothing of patches.

    Returns:
        Model by fold number; a run with `--fold none` and a single file have the
        key -1.

    Raises:
        InputError: If there is no finished model, a fold is missing, or a model is of
            the wrong kind.
    """
    files = model_files(run_dir)
    wanted = sorted(files) if folds is None else list(folds)
    missing = [fold for fold in wanted if fold not in files]
    if missing or not files:
        raise InputError(
            f"{run_dir} must hold finished models"
            + (f" of fold {', '.join(map(str, missing))}" if files else "")
            + f".\nReceived: {len(files)} finished.\nTrain first (or finish it with --resume)."
        )
    log.info("models: %s", listed(files[fold] for fold in wanted))
    loaded = {}
    for fold in tqdm(wanted, desc="models", unit="model", leave=False, disable=None):
        require_task(files[fold])
        model = load_model(files[fold])
        if not is_image_network(model):
            view_of(model)  # refuses what is no patch classifier before anything is read
        elif not whole_photos:
            raise InputError(
                "Slides are predicted by patch networks; this one judges whole photos.\n"
                f"Received: {files[fold]}. Name the run that it was made from."
            )
        loaded[fold] = (ready or prepare)(model)
        del model
        gc.collect()  # a Keras model refers to itself: its weights would stay
    return loaded


def model_files(run_dir: str | os.PathLike) -> dict[int, Path]:
    """Files of the finished models of a run, by their key in `load_models`."""
    run_dir = Path(run_dir)
    if run_dir.suffix == ".keras":
        return {-1: run_dir}
    found = {}
    for path in run_dir.glob("fold_*/model.keras"):
        name = path.parent.name.removeprefix("fold_")
        if name == "none" or name.isdigit():
            found[-1 if name == "none" else int(name)] = path
    return dict(sorted(found.items()))


def model_file(run_dir: str | os.PathLike, fold: int) -> Path:
    """File of a model of a run, by its key in `load_models`."""
    run_dir = Path(run_dir)
    if run_dir.suffix == ".keras":
        return run_dir
    return run_dir / f"fold_{'none' if fold == -1 else fold}" / "model.keras"


def prepare(model: keras.Model, precision: str = "float32") -> keras.Model:
    """Copy a model for prediction, see `fold_norms.fast_clone`, and compile it."""
    ready = fast_clone(model, precision=precision)
    ready.source = source_of(model)
    ready.compile(jit_compile=backend.jit())
    return ready


def check_probabilities(probs: np.ndarray, model: object, names: Iterable[str]) -> None:
    """Refuse what are no probabilities: as a map they would be glass, as a class Normal.

    Args:
        probs: Array `(n, classes)`.
        model: What has returned them.
        names: Image id of each; or of all, one.

    Raises:
        InputError: If a number is not finite, or those of a patch do not sum to 1.
    """
    # So written that nan, for which no comparison holds, is found too.
    wrong = ~(np.abs(probs.sum(axis=1, dtype=np.float64) - 1) < 0.02)
    if wrong.any():
        where = list(names)
        if len(where) == len(wrong):
            where = list(dict.fromkeys(name for name, bad in zip(where, wrong, strict=True) if bad))
        raise InputError(
            "A network must return probabilities that sum to 1.\n"
            f"Received: {probs[wrong][0].tolist()} and the like for {wrong.sum():,} of "
            f"{len(wrong):,} patches of {listed(where)}, from {source_of(model)}.\n"
            "Its weights are damaged, or overflow in half precision: use --precision float32, or "
            "train it again, with a smaller --learning-rate if it was the training."
        )


def predict_patches(
    model: keras.Model, patches: np.ndarray, tta: bool = False, name: str = "a batch"
) -> np.ndarray:
    """Probabilities of a batch: float32 `(n, classes)`.

    Args:
        model: From `prepare`.
        patches: uint8 `(n, side, side, 3)`, or whole photos for an image network.
        tta: Mean over the eight orientations (four of photos), at as many times the cost.
        name: What they are of, for messages.

    Raises:
        InputError: If the network returns something else.

    Source of the eight orientations: Liu et al. 2017.
    """
    total = np.zeros((len(patches), len(task().columns)), np.float32)
    chosen = orientations(patches, tta)
    for index in chosen:
        total += np.asarray(model.predict_on_batch(np.ascontiguousarray(orient(patches, index))))
    probs = total / len(chosen)
    check_probabilities(probs, model, [name])
    return probs


def predict_batches(model: keras.Model, batches: Batches, count: int) -> np.ndarray:
    """Probabilities of `count` patches: float32 `(count, classes)`; what fills up is dropped.

    Raises:
        InputError: If the network returns something else.
    """
    if processes.count() > 1:
        probs = processes.predict(model, batches)[:count]
    else:
        bar = Bar("held out", len(batches))
        probs = np.asarray(model.predict(feed(batches), verbose=0, callbacks=[bar]))[:count]
    check_probabilities(probs, model, batches.images[:count])
    return probs


def predict_sample(model: keras.Model, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities of a few whole batches of patches, in every process."""
    if processes.count() > 1:
        return processes.predict(model, [(x[processes.share(len(x))],) for x in batches])
    return np.concatenate([np.asarray(model.predict_on_batch(x)) for x in batches])


def predict_slide(
    models: Sequence[keras.Model],
    slide: Slide,
    table: pd.DataFrame,
    batch_size: int = 64,
    tta: bool = False,
) -> np.ndarray:
    """Mean probabilities over models of the patches of a slide.

    Args:
        models: One or more models of one view.
        slide: The open slide.
        table: Patch table of this slide; may be empty.
        batch_size: Patches per batch.
        tta: Mean over the eight orientations too.

    Returns:
        float32 array `(len(table), classes)`.
    """
    if table.empty:
        return np.zeros((0, len(task().columns)), np.float32)
    view = common_view(models)
    total = np.zeros((len(table), len(task().columns)), np.float64)
    rows = list(table[["x", "y", "size"]].itertuples(index=False))

    def read(start: int) -> np.ndarray:
        patches = [read_patch(slide, row, view) for row in rows[start : start + batch_size]]
        return fill_up(np.stack(patches), batch_size)

    workers = os.cpu_count() or 1
    batches = ReadAhead(read, range(0, len(rows), batch_size), workers, workers + 1)
    bar = tqdm(total=len(table), desc=slide.name, unit="patch", leave=False, disable=None)
    with bar, backend.enough_memory(f"--batch-size={batch_size}", backend.SMALLER_BATCH):
        # Each patch is read once and shown to every model.
        for index, patches in enumerate(batches):
            part = total[index * batch_size : (index + 1) * batch_size]
            for model in models:
                part += predict_patches(model, patches, tta, slide.name)[: len(part)]
            bar.update(len(part))
    batches.log_rate(slide.name, len(table), "patches")
    return (total / len(models)).astype(np.float32)


def common_view(models: Sequence[keras.Model]) -> View:
    """What models that are averaged see.

    Raises:
        InputError: If they differ.
    """
    views = {view_of(model) for model in models}
    if len(views) != 1:
        raise InputError(
            "Models that are averaged must see the same of a patch.\n"
            f"Received: {', '.join(map(str, sorted(views)))}. Use the models of one run."
        )
    return views.pop()


def predict_photos(
    models: Sequence[keras.Model], images: pd.DataFrame, tta: bool = False
) -> pd.DataFrame:
    """Predict whole photos, by image networks or by the mean over their patches.

    Args:
        models: One or more models of one input size; the mean is over them too.
        images: Image table of photos, with their scale; see `bach.data.list_images`.
        tta: Mean over all orientations too; Kwok 2018 does without.

    Returns:
        Table with `image_id` and the `prob_` columns, one row per image.

    Raises:
        InputError: If a photo is smaller than a patch or of unknown scale.

    Source: Kwok 2018, section 4.3: no augmentation at inference.
    """
    rows = []
    photo_sizes(images, least_photo(models))  # all are looked at before the first
    images = images.assign(mpp=photo_scales(images))
    for image in tqdm(images.itertuples(), total=len(images), desc="photos", disable=None):
        patches = photo_inputs(models, read_photo(image.path, image.mpp))
        # Filled up, for photos of other sizes have other numbers of patches, and the network
        # is compiled anew for each.
        filled = fill_up(patches, math.ceil(len(patches) / _FILL) * _FILL)
        probs = np.mean(
            [predict_patches(x, filled, tta, image.image_id)[: len(patches)] for x in models],
            axis=(0, 1),
        )
        rows.append((image.image_id, *probs))
    return pd.DataFrame(rows, columns=["image_id", *task().columns])


def least_photo(models: Sequence[keras.Model]) -> int:
    """Width and height that a photo must have, in px at 0.42 um/px; 0 for one judged whole."""
    whole = is_image_network(models[0]) or is_field_network(models[0])
    return 0 if whole else task().patch_px


def photo_inputs(models: Sequence[keras.Model], photo: np.ndarray) -> np.ndarray:
    """What networks are given of a photo: its patches, or the photo whole.

    Args:
        models: One or more models of one input size.
        photo: uint8 `(height, width, 3)`, 0.42 um/px.

    Returns:
        uint8 `(n, rows, cols, 3)`; n is 1 for a photo that is judged whole.

    Raises:
        InputError: If the photo is too large for an image network.
    """
    height, width = photo.shape[:2]
    if is_image_network(models[0]):
        return photo_input(photo, models[0].input_shape[1:3])[None]
    view = common_view(models)
    if is_field_network(models[0]):
        return photo_input(photo, field_shape(width, height, view), view.zoom)[None]
    return photo_to_patches(photo, photo_patches("", width, height, None), view)


def image_means(patches: pd.DataFrame) -> pd.DataFrame:
    """Mean patch probabilities of every image, in order of first appearance.

    Args:
        patches: Table with `image_id`, `label` and the `prob_` columns.

    Returns:
        Table with `image_id, label, predicted` and the `prob_` columns.
    """
    means = patches.groupby("image_id", sort=False)[["label", *task().columns]].mean()
    means = means.reset_index()
    means["label"] = means["label"].astype(int)
    means.insert(2, "predicted", means[list(task().columns)].to_numpy().argmax(axis=1))
    return means


class ReadAhead:
    """Iterates over what is read for items, in order, by threads that read ahead.

    Args:
        read: Reads one item; called in threads.
        items: What to read.
        workers: Threads.
        ahead: How many may lie ready; this bounds the memory.

    Attributes:
        waited: Seconds that whoever iterates waited for reading.
    """

    def __init__(self, read: Callable, items: Iterable, workers: int, ahead: int):
        self._read, self._items = read, items
        self._workers, self._ahead = workers, ahead
        self.waited = 0.0

    def __iter__(self) -> Iterator:
        self._start = time.monotonic()
        items = iter(self._items)
        with concurrent.futures.ThreadPoolExecutor(max_workers=self._workers) as pool:
            waiting = collections.deque(
                pool.submit(self._read, item) for item in itertools.islice(items, self._ahead)
            )
            try:
                while waiting:
                    start = time.monotonic()
                    result = waiting.popleft().result()
                    self.waited += time.monotonic() - start
                    waiting.extend(pool.submit(self._read, x) for x in itertools.islice(items, 1))
                    yield result
            finally:
                for future in waiting:
                    future.cancel()

    def log_rate(self, name: str, count: int, unit: str) -> None:
        """Log how fast it went and who waited for whom."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate, waiting = count / seconds, self.waited / seconds
        log.info(
            f"{name}: {count:,} {unit} in {duration(seconds)} ({rate:.3g}/s), of which the "
            f"network waited {waiting:.0%} for reading"
        )
