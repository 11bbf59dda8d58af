"""A top on frozen features: minutes on a CPU, where fine-tuning takes hours on a GPU.

What the backbone says of every patch or field is computed once and kept beside the patches.
On that a linear top is fitted, a logistic regression; it is put into the network, which is then
one like any other.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import first_process, read_array, write_array
from bach.core.log import log, step
from bach.network import backend, processes
from bach.network.batches import Batches, feed
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import is_linear
from bach.network.stores import PatchStore

# Inverse strengths of the penalty that are tried, from the strongest on.
STRENGTHS = tuple(10.0**power for power in np.arange(-6, 0.1, 0.5))
INNER_FOLDS = 4

_EPSILON = 1e-6  # spread of a feature that is always the same
# What the bias of a class that training does not know is below the others: it is never named.
_UNKNOWN = 30.0


def fit_top(
    model: keras.Model,
    parts: Sequence[tuple[PatchStore, np.ndarray, np.ndarray]],
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """Fit the last layer of a network to features that its other layers give.

    Args:
        model: A network of `build_model` without hidden layer; its last layer is changed.
        parts: Stores to train on, each with the rows to use and the group of each (patient,
            slide): how strong the penalty is, is chosen on groups left out in turn.
        batch_size: Patches per batch.
        seed: Of the choice of groups.

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
    features = np.concatenate([features_of(model, store, batch_size)[r] for store, r, _ in parts])
    labels = np.concatenate([store.table["label"].to_numpy(int)[rows] for store, rows, _ in parts])
    groups = np.concatenate([groups for _, _, groups in parts])
    with step("top") as notes:
        mean, spread = features.mean(axis=0), features.std(axis=0) + _EPSILON
        strength = choose_strength(features, labels, groups, seed)
        kernel, bias = _fit((features - mean) / spread, labels, strength)
        # The features are standardised by the layer itself.
        kernel = kernel / spread[:, None]
        bias = bias - mean @ kernel
        model.get_layer("classes").set_weights([kernel, bias])
        logits = features @ kernel + bias
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
        row = {"loss": -right.mean(), "accuracy": (logits.argmax(axis=1) == labels).mean()}
        notes.append(
            f"{len(labels):,} x {features.shape[1]:,} features of {len(set(groups.tolist()))} "
            f"groups, strength {strength:g}, training accuracy {row['accuracy']:.3f}"
        )
    return pd.DataFrame([{"epoch": 1, **row, "strength": strength}])


def features_of(model: keras.Model, store: PatchStore, batch_size: int) -> np.ndarray:
    """Pooled features of all patches of a store: float32 `(n, channels)`.

    They are kept beside the patches, in a file whose name is a fingerprint of network and
    patches.
    """
    base = keras.Model(model.input, model.get_layer("classes").input)
    file = store.folder / f"features_{_fingerprint(base, store)}.npy"
    count = len(store.table)
    if file.exists():
        found = read_array(file, "Delete it; it is computed again.", dimensions=2)
        if found.shape == (count, base.output_shape[-1]) and np.isfinite(found).all():
            log.info("features: computed before, %s", file)
            return found
    with step("features") as notes:
        network = fast_clone(base, any_size=base.input_shape[1] is None)
        network.compile(jit_compile=backend.jit())
        batches = Batches([store.select(np.arange(count))], batch_size)
        with backend.enough_memory(f"--batch-size={batches.batch_size}", backend.SMALLER_BATCH):
            found = np.asarray(network.predict(feed(batches), verbose=0))[:count]
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


def choose_strength(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> float:
    """The penalty's inverse strength that predicts groups which were left out best.

    Args:
        features: float `(n, channels)`.
        labels: int `(n,)`, 0..3.
        groups: Patient or slide of each, `(n,)`; all of one are left out together.
        seed: Of the choice of groups.

    Returns:
        One of `STRENGTHS`, by the log-loss; the middle one if there is nothing to leave out.
    """
    classes = np.unique(labels)
    count = min(INNER_FOLDS, *(len(np.unique(groups[labels == label])) for label in classes))
    if count < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    losses = np.zeros(len(STRENGTHS))
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for train, test in folds.split(features, labels, groups):
        if set(labels[test]) - set(labels[train]):
            continue  # nothing can be said of a class that is left out whole
        mean, spread = features[train].mean(axis=0), features[train].std(axis=0) + _EPSILON
        known, unknown = ((features[rows] - mean) / spread for rows in (train, test))
        for index, strength in enumerate(STRENGTHS):
            kernel, bias = _fit(known, labels[train], strength)
            logits = unknown @ kernel + bias
            logits -= logits.max(axis=1, keepdims=True)
            right = logits[np.arange(len(test)), labels[test]]
            losses[index] -= (right - np.log(np.exp(logits).sum(axis=1))).sum()
    return STRENGTHS[int(losses.argmin())]


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple:
    """Kernel `(channels, 4)` and bias `(4,)` of a logistic regression."""
    kernel = np.zeros((features.shape[1], len(CLASSES)), np.float32)
    bias = np.full(len(CLASSES), -_UNKNOWN, np.float32)
    classes = np.unique(labels)
    if len(classes) == 1:
        bias[classes] = 0
        return kernel, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a choice
        fitted = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(features, labels)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(classes) == 2:  # of which scikit-learn keeps the difference
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    kernel[:, classes], bias[classes] = coefficients.T, intercepts
    return kernel, bias


def groups_of(table: pd.DataFrame, patients: Mapping[str, str]) -> np.ndarray:
    """Whose every patch of a table is: a patient's, or of an image whose patient nobody knows."""
    return np.array([patients.get(name) or f"image {name}" for name in table["image_id"]])
