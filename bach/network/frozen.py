"""A top on frozen features: minutes on a CPU, where fine-tuning takes hours on a GPU.

What the backbone says of every patch or field is computed once and kept beside the patches.
On that a linear top is fitted, a logistic regression; it is put into the network, which is then
one like any other.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import first_process, read_array, write_array
from bach.core.log import log, step
from bach.honest.learners import fit_logistic
from bach.network import backend, processes
from bach.network.augment import ORIENTATIONS, orient
from bach.network.batches import Bar, Batches, feed
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import is_linear
from bach.network.stores import PatchStore

# What the bias of a class that training does not know is below the others: it is never named.
_UNKNOWN = 30.0


def fit_top(
    model: keras.Model,
    parts: Sequence[tuple[PatchStore, np.ndarray, np.ndarray]],
    batch_size: int,
    turned: bool = False,
) -> pd.DataFrame:
    """Fit the last layer of a network to features that its other layers give.

    Args:
        model: A network of `build_model` without hidden layer; its last layer is changed.
        parts: Stores to train on, each with the rows to use and the group of each (patient,
            slide): how strong the penalty is, is chosen on groups left out in turn.
        batch_size: Patches per batch.
        turned: Whether to fit to all eight orientations of each, not to one.

    Returns:
        Table of a row, as a history has one for an epoch: `epoch, loss, accuracy, strength`.

    Raises:
        InputError: If the network has a hidden layer, or there are several processes.
    """
    if not is_linear(model):
        raise InputError(
            "--train top fits a network without hidden layer.\n"
            f"Received: {model.name}, which has one. Start from imagenet, or from a run of "
            "--train top."
        )
    if processes.count() > 1:
        raise InputError(
            "--train top runs in one process.\n"
            f"Received: {processes.count()} processes. Start it without the others."
        )
    turns = range(ORIENTATIONS if turned else 1)
    features = np.concatenate(
        [features_of(model, store, batch_size, n)[rows] for n in turns for store, rows, _ in parts]
    )
    labels = np.concatenate([store.table["label"].to_numpy(int)[rows] for store, rows, _ in parts])
    groups = np.concatenate([groups for _, _, groups in parts])
    labels, groups = (np.tile(x, len(turns)) for x in (labels, groups))
    with step("top") as notes:
        fitted = fit_logistic(features, labels, groups)
        known = np.isfinite(fitted.bias)
        bias = np.where(known, fitted.bias, fitted.bias[known].min() - _UNKNOWN)
        model.get_layer("classes").set_weights([fitted.kernel, bias])
        probs = fitted.probs(features)
        loss = -np.log(probs[np.arange(len(labels)), labels]).mean()
        row = {"loss": loss, "accuracy": (probs.argmax(axis=1) == labels).mean()}
        notes.append(
            f"{len(labels):,} x {features.shape[1]:,} features of {len(set(groups.tolist()))} "
            f"groups, strength {fitted.strength:g}, training accuracy {row['accuracy']:.3f}"
        )
    return pd.DataFrame([{"epoch": 1, **row, "strength": fitted.strength}])


def features_of(
    model: keras.Model, store: PatchStore, batch_size: int, orientation: int = 0
) -> np.ndarray:
    """Pooled features of all patches of a store: float32 `(n, channels)`.

    They are kept beside the patches, in a file whose name is a fingerprint of network and
    patches, and the orientation.

    Args:
        model, store, batch_size: As for `fit_top`.
        orientation: How the patches are turned, see `bach.network.augment.orient`.
    """
    base = keras.Model(model.input, model.get_layer("classes").input)
    turn = f"_{orientation}" if orientation else ""
    file = store.folder / f"features_{_fingerprint(base, store)}{turn}.npy"
    count = len(store.table)
    if file.exists():
        found = read_array(file, "Delete it; it is computed again.", dimensions=2)
        if found.shape == (count, base.output_shape[-1]) and np.isfinite(found).all():
            if not orientation:  # a line for all of them
                log.info("features: computed before, %s", file)
            return found
    with step("features") as notes:
        network = fast_clone(base, any_size=base.input_shape[1] is None)
        network.compile(jit_compile=backend.jit())
        selection = store.select(np.arange(count))
        turned = selection._replace(patches=orient(selection.patches, orientation))
        batches = Batches([turned], batch_size)
        with backend.enough_memory(f"--batch-size={batches.batch_size}", backend.SMALLER_BATCH):
            bar = Bar("features", len(batches))
            found = np.asarray(network.predict(feed(batches), verbose=0, callbacks=[bar]))[:count]
        if not np.isfinite(found).all():
            raise InputError(
                "The features of a network must be finite.\n"
                f"Received: others from {model.name}. Its weights are damaged; or use --precision "
                "float32."
            )
        if first_process():
            write_array(file, found)
        notes.append(f"{count:,} x {found.shape[1]:,} -> {file}")
    return found


def _fingerprint(base: keras.Model, store: PatchStore) -> str:
    """Of what decides the features: layers, weights, precision, patches."""
    # Without names, which Keras numbers as they come.
    said = [store.record, keras.config.dtype_policy().name]
    said += [[type(x).__name__, x.get_config() | {"name": ""}] for x in _layers(base)]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for weight in base.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def groups_of(table: pd.DataFrame, patients: Mapping[str, str]) -> np.ndarray:
    """Whose every patch of a table is: a patient's, or of an image whose patient nobody knows."""
    return np.array([patients.get(name) or f"image {name}" for name in table["image_id"]])
