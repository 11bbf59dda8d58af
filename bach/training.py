"""Training: one fit, with checkpoints that survive anything.

A fold's folder holds `last.keras`, `best.keras`, `history.csv`, and, until the fold
is finished, `state.npz`: everything that is needed to go on as if nothing had
happened.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach import devices
from bach.augment import Augmentation
from bach.batches import Batches, PatchStore
from bach.classes import CLASSES
from bach.model import build_model, load_model
from bach.pictures import contact_sheet, write_png
from bach.predict import predict_batches, prepare
from bach.runs import InputError, atomic_path, duration, log, write_csv

MOMENTUM = 0.9  # Kwok 2018, section 4.2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a training run. Defaults are those of Kwok 2018, section 4.2.

    Attributes:
        epochs: Passes over the training patches.
        learning_rate: Constant; the batch it belongs to is the global batch.
        bn_patches: Training patches from which batch-normalisation statistics are
            estimated anew after every epoch; 0 keeps the moving averages.
        monitor: Column of the history that decides which epoch is best.
        mode: "min", "max", or "auto" to tell by the name.
    """

    epochs: int = 25
    learning_rate: float = 0.001
    bn_patches: int = 1024
    monitor: str = "heldout_loss"
    mode: str = "auto"
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    seed: int = 0


def train(
    model: keras.Model,
    training: Batches,
    heldout: Batches | None,
    heldout_images: np.ndarray | None,
    settings: Settings,
    folder: str | os.PathLike,
) -> pd.DataFrame:
    """Train a model, or go on with it where `folder` holds its state.

    Args:
        model: From `build_model`, built within `devices.scope()`. Trained in place.
        training: Batches with augmentation.
        heldout: Batches without, or None; never trained on.
        heldout_images: Image id of every held-out patch, `(n,)`.
        settings: See `Settings`.
        folder: Where checkpoints and history are written.

    Returns:
        The history, one row an epoch.

    Raises:
        InputError: If the state in `folder` does not fit, or the loss is not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _compile(model, settings)
    checkpoint = Checkpoint(folder, settings.monitor, settings.mode)
    history = checkpoint.restore(model)
    done = len(history)
    if done:
        log.info("going on after epoch %d of %d", done, settings.epochs)
    else:
        _check_untrained_loss(model, training)
    training.start_epoch(done)
    _draw_batch(training, folder / "batch.png")
    callbacks = [_Progress(training, settings.epochs)]
    if settings.bn_patches:
        callbacks.append(RefreshBatchNorm(training, settings))
    if heldout is not None:
        callbacks.append(EvaluateHeldOut(heldout, heldout_images))
    callbacks += [checkpoint, _LogEpoch(settings.epochs)]
    if done < settings.epochs:
        model.fit(
            training,
            initial_epoch=done,
            epochs=settings.epochs,
            callbacks=callbacks,
            verbose=0,
            shuffle=False,  # Batches shuffles, by seed and epoch
        )
    return pd.DataFrame(checkpoint.history)


def train_fold(
    args: argparse.Namespace,
    folder: Path,
    fold: int,
    parts: Sequence[tuple[PatchStore, np.ndarray]],
    heldout: tuple[PatchStore, np.ndarray] | None,
) -> np.ndarray | None:
    """Build and train the model of one fold, or load what is there of it.

    Writes `model.keras` (the last or the best epoch, by `--keep`) and, last,
    `heldout.npy`. A finished fold is not trained again.

    Args:
        args: Arguments of a training script, see `runs.add_training_options`.
        folder: The fold's folder.
        fold: Number of the fold; seeds it.
        parts: Stores to train on, each with the rows to use.
        heldout: Store and rows held out, or None.

    Returns:
        Probabilities of the held-out patches `(n, 4)`, or None without any.
    """
    devices.check_batch_size(args.batch_size)
    done = folder / "heldout.npy"
    if done.exists():
        log.info("fold %s: finished before", folder.name.removeprefix("fold_"))
        return None if heldout is None else np.load(done)
    # Seeded by fold, so that a fold does not depend on those trained before it in
    # the same process.
    keras.backend.clear_session()
    keras.utils.set_random_seed(args.seed * 1000 + fold + 1)
    with devices.scope():
        model = build_model(args.backbone, args.weights, args.head)
    settings = Settings(
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        bn_patches=args.bn_patches,
        monitor=args.monitor,
        augmentation=Augmentation(args.hue, args.saturation, args.value),
        seed=args.seed * 1000 + fold + 1,
    )

    def batches(chosen, augmentation=None) -> Batches:
        return Batches(
            [store.patches for store, _ in chosen],
            [store.table["label"].to_numpy() for store, _ in chosen],
            [rows for _, rows in chosen],
            args.batch_size,
            settings.seed,
            augmentation,
        )

    held = None if heldout is None else batches([heldout])
    images = None if heldout is None else heldout[0].table["image_id"].to_numpy()[heldout[1]]
    train(model, batches(parts, settings.augmentation), held, images, settings, folder)
    kept = folder / f"{args.keep}.keras"
    if heldout is None:
        kept = folder / "last.keras"
    with atomic_path(folder / "model.keras") as temporary:
        shutil.copyfile(kept, temporary)
    probs = np.zeros((0, len(CLASSES)), np.float32)
    if heldout is not None:
        # Through the saved file, so that what is reported is what it will do.
        probs = predict_batches(prepare(load_model(folder / "model.keras")), held, len(held.labels))
    with atomic_path(done) as temporary, temporary.open("wb") as stream:
        np.save(stream, probs)
    (folder / "state.npz").unlink(missing_ok=True)  # large, and of no use any more
    return None if heldout is None else probs


def scores(labels: np.ndarray, probs: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Loss and accuracy of patches, and accuracy of images by mean probability.

    Args:
        labels: True class of every patch, `(n,)`.
        probs: Probabilities `(n, 4)`.
        images: Image id of every patch, `(n,)`.

    Returns:
        `heldout_loss`, `heldout_accuracy`, and `heldout_image_accuracy` where every
        image has one class; slides do not.
    """
    true = probs[np.arange(len(labels)), labels]
    result = {
        "heldout_loss": float(-np.log(np.clip(true, 1e-7, 1)).mean()),
        "heldout_accuracy": float((probs.argmax(axis=1) == labels).mean()),
    }
    grouped = pd.DataFrame(probs).assign(label=labels).groupby(images)
    if (grouped["label"].min() == grouped["label"].max()).all():
        means = grouped.mean().to_numpy()
        predicted = means[:, : probs.shape[1]].argmax(axis=1)
        result["heldout_image_accuracy"] = float((predicted == means[:, -1]).mean())
    return result


class RefreshBatchNorm(keras.callbacks.Callback):
    """Estimates batch-normalisation statistics anew at the end of every epoch."""

    def __init__(self, training: Batches, settings: Settings):
        super().__init__()
        self._training = training
        self._settings = settings

    def on_epoch_end(self, epoch, logs=None):
        sample = self._training.sample(self._settings.bn_patches, self._settings.seed + epoch)
        devices.refresh_batch_norm(self.model, sample)


class EvaluateHeldOut(keras.callbacks.Callback):
    """Adds the held-out scores of an epoch to its logs.

    A callback and not `validation_data`, since it must follow `RefreshBatchNorm`
    and score images, not only patches.
    """

    def __init__(self, heldout: Batches, images: np.ndarray):
        super().__init__()
        self._heldout = heldout
        self._images = images

    def on_epoch_end(self, epoch, logs=None):
        probs = predict_batches(self.model, self._heldout, len(self._heldout.labels))
        logs.update(scores(self._heldout.labels, probs, self._images))


class Checkpoint(keras.callbacks.Callback):
    """Saves the best and the last model and the state of training, each whole.

    Writes after every epoch `best.keras` (if the epoch is the best so far),
    `last.keras`, `history.csv`, and last of all `state.npz`; a kill at any point
    leaves the state of an earlier epoch, from which the rest is written again. The
    models are plain Keras models whatever they were trained on.

    Args:
        folder: Where to save.
        monitor: Name in the epoch's logs that decides what is best.
        mode: "min", "max", or "auto".

    Raises:
        InputError: If `mode` is "auto" and the name tells neither.
    """

    def __init__(self, folder: Path, monitor: str, mode: str = "auto"):
        super().__init__()
        self._folder = Path(folder)
        self._monitor = monitor
        self._sign = {"min": -1, "max": 1}[best_mode(monitor, mode)]
        self.history: list[dict] = []

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in logs.items()}}
        self.history.append(row)
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"The loss is {row['loss']} after epoch {epoch + 1}: training diverged.\n"
                "Use a smaller --learning-rate. The last good checkpoint is kept."
            )
        if self._monitor in row and self._is_best(row):
            save_model(self.model, self._folder / "best.keras")
        save_model(self.model, self._folder / "last.keras")
        write_csv(pd.DataFrame(self.history), self._folder / "history.csv")
        self._save_state()

    def restore(self, model: keras.Model) -> list[dict]:
        """Put a saved state into a model, if there is one.

        Args:
            model: The compiled model, its optimizer built.

        Returns:
            The history so far, one dict an epoch.
        """
        file = self._folder / "state.npz"
        if not file.exists():
            return []
        variables = _state_variables(model)
        try:
            with np.load(file) as state:
                history = json.loads(str(state["history"]))
                values = [state[f"v{index}"] for index in range(len(variables))]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"The training state {file} is damaged or of another network ({error}).\n"
                f"Delete {self._folder} to train this fold again from the start."
            ) from error
        for variable, value in zip(variables, values, strict=True):
            if tuple(variable.shape) != value.shape:
                raise InputError(
                    f"The training state {file} is that of another network: {variable.path} "
                    f"has shape {tuple(variable.shape)}, saved is {value.shape}.\n"
                    "Use the arguments the run was started with."
                )
        with devices.scope():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.history = history
        return list(history)

    def _is_best(self, row: dict) -> bool:
        earlier = [self._sign * r[self._monitor] for r in self.history[:-1] if self._monitor in r]
        return not earlier or self._sign * row[self._monitor] > max(earlier)

    def _save_state(self) -> None:
        values = {
            f"v{index}": keras.ops.convert_to_numpy(variable)
            for index, variable in enumerate(_state_variables(self.model))
        }
        with atomic_path(self._folder / "state.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, history=json.dumps(self.history), **values)


class _Progress(keras.callbacks.Callback):
    """Sets the epoch of the batches, keeps time, and shows a bar on a terminal."""

    def __init__(self, training: Batches, epochs: int):
        super().__init__()
        self._training = training
        self._epochs = epochs
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.monotonic()
        self._bar = tqdm(
            total=len(self._training), desc=f"epoch {epoch + 1}/{self._epochs}",
            unit="batch", leave=False, disable=None,
        )  # fmt: skip

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()
        seconds = time.monotonic() - self._start
        count = len(self._training) * self._training.batch_size
        logs["patches_per_s"] = round(count / seconds, 2)


class _LogEpoch(keras.callbacks.Callback):
    def __init__(self, epochs: int):
        super().__init__()
        self._epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        names = ("loss", "accuracy", "image_accuracy")
        held = ", ".join(
            f"{name.replace('_', ' ')} {logs[f'heldout_{name}']:.3f}"
            for name in names
            if f"heldout_{name}" in logs
        )
        held = f"; held out: {held}" if held else ""
        log.info(
            "epoch %d/%d: loss %.3f, accuracy %.3f%s; %.0f patches/s, %s",
            epoch + 1, self._epochs, logs["loss"], logs["accuracy"], held,
            logs["patches_per_s"], duration(time.monotonic() - self._start),
        )  # fmt: skip


def best_mode(monitor: str, mode: str = "auto") -> str:
    """Whether more or less of a metric is better, told by its name.

    Raises:
        InputError: If the name tells neither.

    Example:
        >>> best_mode("heldout_image_accuracy")
        'max'
    """
    if mode in ("min", "max"):
        return mode
    words = set(monitor.lower().split("_"))
    if words & {"loss", "error", "mae", "mse", "ece", "nll", "difficulty"}:
        return "min"
    if words & {"accuracy", "acc", "auc", "score", "f1", "sensitivity", "specificity", "recall"}:
        return "max"
    raise InputError(
        f"Whether more of {monitor!r} is better cannot be told by its name.\n"
        f"Received: monitor={monitor}, mode={mode}. Say min or max."
    )


def save_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Save a model as a `.keras` file, whole or not at all, without its optimizer."""
    # The same layers as a model that was never compiled; momenta would double the file.
    plain = keras.Model(model.input, model.output, name=model.name)
    with atomic_path(path) as temporary:
        plain.save(temporary)


def _compile(model: keras.Model, settings: Settings) -> None:
    with devices.scope():
        optimizer = keras.optimizers.SGD(settings.learning_rate, momentum=MOMENTUM, nesterov=True)
        model.compile(
            optimizer=optimizer,
            loss="categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=devices.jit(),
        )
        model.optimizer.build(model.trainable_variables)


def _state_variables(model: keras.Model) -> list:
    """All variables that training changes: weights, statistics, random states, momenta."""
    return [*model.variables, *model.optimizer.variables]


def _check_untrained_loss(model: keras.Model, training: Batches) -> None:
    """Log the loss before the first step: ln 4 unless something is wrong with it."""
    count = min(training.batch_size, 32)
    patches = training.patches(np.arange(count))
    probs = np.asarray(model.predict_on_batch(patches))
    loss = float(-np.log(np.clip(probs[np.arange(count), training.labels[:count]], 1e-7, 1)).mean())
    log.info("loss before training: %.3f (untrained four-class network: ln 4 = 1.386)", loss)


def _draw_batch(training: Batches, file: Path) -> None:
    """Draw the first batch as the network sees it, augmentation included."""
    patches, labels = training[0]
    names = [CLASSES[label] for label in labels.argmax(axis=1)]
    write_png(file, contact_sheet(patches[:32], names[:32]))
