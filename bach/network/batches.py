"""Batches of patches with augmentation parameters, and how they are fed to Keras."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.network import backend, processes
from bach.network.augment import Augmentation
from bach.tasks import task

_READ_AHEAD = 8  # batches


class Selection(NamedTuple):
    """Some of the patches of a store.

    Attributes:
        patches: All patches of the store, uint8 `(n, side, side, 3)`.
        labels: Their labels 0..n-1, `(n,)`.
        images: Image id of each, `(n,)`.
        rows: Numbers of those to use, int.
        per_image: How many of an image to train on in an epoch, drawn anew for each; 0: all.
    """

    patches: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    per_image: int = 0


class Batches(keras.utils.PyDataset):
    """Batches of patches out of one or more stores.

    Order and augmentation depend only on seed, epoch and position: not on workers,
    devices or on whether the run was interrupted.

    Attributes:
        labels: Label of every patch, int64 `(n,)`, in the order of the selections.
        images: Image id of every patch, likewise.
        seed: Seed of order and augmentation.
        order: Positions in `labels` in the order of this epoch's batches.

    Args:
        selections: Patches to use, all of one side.
        batch_size: Patches per batch, over all devices together.
        seed: Seed of order and augmentation.
        augmentation: Given for training: batches are shuffled, all of the same
            size (what does not fill a batch waits for another epoch), and of the
            form ((patches, parameters), labels), for `augment.with_augmentation`. None
            for prediction: in order, patches only, the last batch filled up with copies
            of the last patch so that it splits over devices (`predict` drops them).

    Where several processes train one model, `batches[index]` is this process's share
    of the batch.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ):
        # Threads: the disk works beside the interpreter. Half the cores, for on a
        # machine without GPU the network needs the others.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=_READ_AHEAD)
        self._stores = [selection.patches for selection in selections]
        self._store = np.concatenate([np.full(len(x.rows), i) for i, x in enumerate(selections)])
        self._row = np.concatenate([x.rows for x in selections]).astype(np.int64)
        self.labels = np.concatenate([x.labels[x.rows] for x in selections]).astype(np.int64)
        self.images = np.concatenate([x.images[x.rows] for x in selections])
        if len(self._row) == 0:
            raise InputError("No patches to work on.\nCheck --limit, --fold and the folds file.")
        self._augmentation = augmentation
        self.seed = seed
        most = np.array([x.per_image or len(self._row) for x in selections])
        each_image = pd.DataFrame({"store": self._store, "image": self.images})
        self._drawn_from = each_image.groupby(["store", "image"]).ngroup().to_numpy()
        self._most = most[self._store]
        self.start_epoch(0)
        # Few patches make a smaller batch, still one that divides over the devices.
        each = min(batch_size, len(self.order)) / backend.count()
        each = max(1, math.floor(each) if augmentation is not None else math.ceil(each))
        self.batch_size = each * backend.count()

    def __len__(self) -> int:
        if self._augmentation is not None:
            return len(self.order) // self.batch_size
        return -(-len(self.order) // self.batch_size)

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides order and augmentation.

        Whoever trains calls it: Keras looks at a first batch before it trains, and says
        `on_epoch_end` after that already.
        """
        self._epoch = epoch
        self.order = np.arange(len(self._row))
        if self._augmentation is not None:
            rng = np.random.default_rng([self.seed, epoch])
            self.order = rng.permutation(len(self._row))
            drawn = pd.Series(self._drawn_from[self.order])
            self.order = self.order[drawn.groupby(drawn).cumcount() < self._most[self.order]]

    def patches(self, positions: np.ndarray) -> np.ndarray:
        """Copy patches into memory: uint8 `(len(positions), side, side, 3)`."""
        result = np.empty((len(positions), *self._stores[0].shape[1:]), np.uint8)
        for index, position in enumerate(positions):
            result[index] = self._stores[self._store[position]][self._row[position]]
        return result

    def __getitem__(self, index: int):
        start = index * self.batch_size
        positions = fill_up(self.order[start : start + self.batch_size], self.batch_size)
        share = processes.share(self.batch_size)
        patches = self.patches(positions[share])
        if self._augmentation is None:
            return (patches,)
        rng = np.random.default_rng([self.seed, self._epoch, index])
        drawn = self._augmentation.draw(rng, self.batch_size)[share]
        return (patches, drawn), one_hot(self.labels[positions[share]])

    def sample(self, count: int, seed: int) -> list[np.ndarray]:
        """A random draw of patches, unaugmented, as a list of whole batches."""
        count = min(count, len(self._row))
        order = np.random.default_rng(seed).permutation(len(self._row))[:count]
        size = self.batch_size
        return [
            self.patches(order[start : start + size])
            for start in range(0, max(count - size, 0) + 1, size)
        ]


class Bar(keras.callbacks.Callback):
    """Shows on a terminal how far a prediction is.

    Args:
        name: What is predicted.
        count: Batches.
    """

    def __init__(self, name: str, count: int):
        super().__init__()
        self._name, self._count = name, count

    def on_predict_begin(self, logs=None):
        self._bar = tqdm(
            total=self._count, desc=self._name, unit="batch", leave=False, disable=None
        )

    def on_predict_batch_end(self, batch, logs=None):
        self._bar.update()

    def on_predict_end(self, logs=None):
        self._bar.close()


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Labels 0..n-1 as float32 rows `(n, classes)`."""
    return np.eye(task().count, dtype=np.float32)[labels]


def fill_up(patches: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last patch until a batch has `size` of them."""
    missing = size - len(patches)
    return patches if missing == 0 else np.concatenate([patches, patches[-1:].repeat(missing, 0)])


def feed(batches: keras.utils.PyDataset):
    """What `fit` and `predict` must be given to see every batch once, in order, read ahead.

    Keras's own way from a `PyDataset` to TensorFlow does neither well. With one worker it
    lets tf.data tune itself, and every epoch waits for the tuning thread to wake, up to a
    minute. With several it keeps what was read ahead of an epoch that was left early, as
    it leaves one before the first on several devices, and the next epoch begins with it.

    Args:
        batches: All of one size; `batches.workers` threads read them.

    Returns:
        A `tf.data.Dataset` on TensorFlow, else the batches as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    like = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), batches[0])
    types = [x.dtype for x in tf.nest.flatten(like)]

    def read(index: tf.Tensor):
        arrays = tf.numpy_function(lambda i: tf.nest.flatten(batches[int(i)]), [index], types)
        arrays = tf.nest.pack_sequence_as(like, arrays)
        return tf.nest.map_structure(lambda a, x: tf.ensure_shape(a, x.shape), arrays, like)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = batches.workers
    dataset = tf.data.Dataset.range(len(batches))
    dataset = dataset.map(read, num_parallel_calls=batches.workers, deterministic=True)
    return dataset.prefetch(_READ_AHEAD).with_options(options)
