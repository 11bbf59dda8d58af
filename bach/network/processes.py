"""Several processes that train one model on JAX, on one machine or on many that share a disk.

Each runs the same command with Keras's own variables set:

    KERAS_BACKEND=jax KERAS_DISTRIBUTION_JOB_ADDRESSES=host0:1234 \\
    KERAS_DISTRIBUTION_NUM_PROCESSES=2 KERAS_DISTRIBUTION_PROCESS_ID=0 \\
        python train_part_a.py ...

Each gives its share of every global batch to its devices; only process 0 writes files
(see `bach.core.files.first_process`).
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from tqdm import tqdm

from bach.core.files import first_process


def count() -> int:
    """How many processes train the model together."""
    return int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))


def share(size: int) -> slice:
    """The part of a global batch of `size` that this process gives to its devices."""
    if count() == 1:
        return slice(0, size)
    index = int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"])
    return slice(index * size // count(), (index + 1) * size // count())


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Context that the other processes enter when process 0 has left it.

    Args:
        name: Anything; the same in all processes.
    """
    if count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    if not first_process():
        multihost_utils.sync_global_devices(name)
    yield
    if first_process():
        multihost_utils.sync_global_devices(name)


def predict(
    model: keras.Model, batches: keras.utils.PyDataset | Sequence[tuple[np.ndarray]]
) -> np.ndarray:
    """What `model.predict` returns, in every one of several processes.

    Keras's own asks for the whole result where only a share of it is.

    Args:
        model: A compiled model.
        batches: Batches `(patches,)`, all of one size, of this process's share each.
    """
    import jax
    from jax.experimental import multihost_utils

    forward = jax.jit(lambda t, n, x: model.stateless_call(t, n, x, training=False)[0])
    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    found = []
    for index in tqdm(range(len(batches)), "held out", unit="batch", leave=False, disable=None):
        patches = batches[index][0].astype(np.float32)
        layout = keras.distribution.distribution().get_data_layout(patches.shape)
        patches = jax.make_array_from_process_local_data(layout.backend_layout, patches)
        probs = forward(trainable, state, patches)
        found.append(np.asarray(multihost_utils.process_allgather(probs, tiled=True)))
    return np.concatenate(found)
