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
import zipfile
from collections.abc import Callable, Sequence
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
from bach.runs import InputError, atomic_path, duration, first_process, log, write_csv

MOMENTUM = 0.9  # Kwok 2018, section 4.2
WEIGHT_DECAY = 0.004  # Keras's default for AdamW
BASE_BATCH = 64  # patches; what --learning-rate belongs to with --scale-learning-rate


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a training run. Defaults are those of Kwok 2018, section 4.2.

    Attributes:
        epochs: Passes over the training patches.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        learning_rate: Of the global batch, or with `scale_learning_rate` of a batch
            of 64.
        scale_learning_rate: Multiply the learning rate by global batch / 64.
        warmup_epochs: Epochs over which the learning rate rises to its full value.
        schedule: "constant", or "cosine": down to 0 at the end.
        label_smoothing: Share of a label that is spread over all classes, 0..1.
        ema: Momentum a step of a moving average of the weights, which is then what
            is scored and saved; 0 keeps none.
        bn_patches: Training patches from which batch-normalisation statistics are
            estimated anew after every epoch; 0 keeps the moving averages.
        monitor: Column of the history that decides which epoch is best.
        mode: "min", "max", or "auto" to tell by the name.
        keep_every: Save the model every so many epochs as well; 0 does not.
    """

    epochs: int = 25
    optimizer: str = "sgd"
    learning_rate: float = 0.001
    scale_learning_rate: bool = False
    warmup_epochs: int = 0
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema: float = 0.0
    bn_patches: int = 1024
    monitor: str = "heldout_loss"
    mode: str = "auto"
    keep_every: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    seed: int = 0


def train(
    model: keras.Model,
    training: Batches,
    heldout: Batches | None,
    heldout_images: np.ndarray | None,
    settings: Settings,
    folder: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> pd.DataFrame:
    """Train a model, or go on with it where `folder` holds its state.

    Args:
        model: From `build_model`, built within `devices.scope()`. Trained in place;
            with `ema` it ends with the averaged weights.
        training: Batches with augmentation.
        heldout: Batches without, or None; never trained on.
        heldout_images: Image id of every held-out patch, `(n,)`.
        settings: See `Settings`.
        folder: Where checkpoints and history are written.
        callbacks: More of Keras's callbacks; they come after an epoch is saved.

    Returns:
        The history, one row an epoch.

    Raises:
        InputError: If the settings or the state in `folder` do not fit, or the loss is
            not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _compile(model, settings, learning_rate(settings, training.batch_size, len(training)))
    checkpoint = Checkpoint(folder, settings.monitor, settings.mode, settings.keep_every)
    history = checkpoint.restore(model)
    done = len(history)
    if done:
        log.info("going on after epoch %d of %d", done, settings.epochs)
    elif devices.processes() == 1:
        _check_untrained_loss(model, training)
    training.start_epoch(done)
    _draw_batch(training, folder / "batch.png")
    ours = [_Progress(training, settings.epochs), UseAverages()]
    if settings.bn_patches:
        ours.append(RefreshBatchNorm(training, settings))
    if heldout is not None:
        ours.append(EvaluateHeldOut(heldout, heldout_images))
    ours += [checkpoint, _LogEpoch(settings.epochs)]
    if done < settings.epochs:
        model.fit(
            training,
            initial_epoch=done,
            epochs=settings.epochs,
            callbacks=[*ours, *callbacks],
            verbose=0,
            shuffle=False,  # Batches shuffles, by seed and epoch
        )
    else:
        # What `fit` does at its end: the averages, if kept, become the weights.
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return pd.DataFrame(checkpoint.history)


def train_fold(
    args: argparse.Namespace,
    folder: Path,
    fold: int,
    parts: Sequence[tuple[PatchStore, np.ndarray]],
    heldout: tuple[PatchStore, np.ndarray] | None,
    build: Callable[[], keras.Model] | None = None,
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
        build: Makes the model; a patch classifier by the arguments if not given.

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
    devices.start_model(args.seed * 1000 + fold + 1)
    views = {store.view for store, _ in parts}
    if len(views) != 1:
        raise InputError(
            "Patches that are trained on together must be of one size.\n"
            f"Received: sides of {', '.join(str(view.side) for view in sorted(views))} px.\n"
            "Mine hard examples with the models of the same run of train_part_a.py."
        )
    with devices.scope():
        if build is None:
            model = build_model(args.backbone, args.weights, args.head, views.pop())
        else:
            model = build()
    settings = Settings(
        epochs=args.epochs,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        scale_learning_rate=args.scale_learning_rate,
        warmup_epochs=args.warmup_epochs,
        schedule=args.schedule,
        label_smoothing=args.label_smoothing,
        ema=args.ema,
        bn_patches=args.bn_patches,
        monitor=args.monitor,
        mode=args.monitor_mode,
        keep_every=args.keep_every,
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
    with (
        devices.first_process_first(f"model of {folder.name}"),
        atomic_path(folder / "model.keras") as temporary,
    ):
        shutil.copyfile(kept, temporary)
    probs = np.zeros((0, len(CLASSES)), np.float32)
    if heldout is not None:
        # Through the saved file, so that what is reported is what it will do.
        probs = predict_batches(prepare(load_model(folder / "model.keras")), held, len(held.labels))
    with atomic_path(done) as temporary, temporary.open("wb") as stream:
        np.save(stream, probs)
    if first_process():
        (folder / "state.npz").unlink(missing_ok=True)  # large, and of no use any more
    return None if heldout is None else probs


def learning_rate(
    settings: Settings, batch_size: int, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, as a function of the step if it is not constant.

    With a larger batch there are fewer steps, and each may be longer: the rate is
    multiplied by the batch's size and reached gradually, from the rate of the small
    batch (from 0 where nothing is multiplied).

    Args:
        settings: See `Settings`.
        batch_size: Patches a global batch.
        steps: Batches an epoch.

    Returns:
        A number or a Keras schedule. What was done is logged, unless it is nothing.

    Raises:
        InputError: If the warm-up is not shorter than the training.

    Source: Goyal et al. 2017, arXiv:1706.02677, sections 2.1 and 2.2.
    """
    base = peak = settings.learning_rate
    if settings.scale_learning_rate:
        peak = base * batch_size / BASE_BATCH
        log.info(
            "learning rate: %g x %d / %d = %g (global batch %d)",
            base, batch_size, BASE_BATCH, peak, batch_size,
        )  # fmt: skip
    if settings.warmup_epochs and settings.warmup_epochs >= settings.epochs:
        raise InputError(
            "The warm-up must be shorter than the training.\n"
            f"Received: --warmup-epochs={settings.warmup_epochs}, --epochs={settings.epochs}."
        )
    first = base if base < peak else 0.0
    warmup = settings.warmup_epochs * steps
    if warmup:
        log.info("learning rate: from %g to %g over %d steps", first, peak, warmup)
    if settings.schedule == "cosine":
        rest = settings.epochs * steps - warmup
        log.info("learning rate: from %g to 0 over %d steps, as a cosine", peak, rest)
        if not warmup:
            return keras.optimizers.schedules.CosineDecay(peak, rest)
        return keras.optimizers.schedules.CosineDecay(
            first, rest, warmup_target=peak, warmup_steps=warmup
        )
    if warmup:
        return keras.optimizers.schedules.PolynomialDecay(first, warmup, end_learning_rate=peak)
    return peak


def swap_averages(model: keras.Model) -> None:
    """Exchange the weights and their moving averages, where averages are kept."""
    # mixed_float16 wraps the optimizer.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        return
    averages = optimizer._model_variables_moving_average  # Keras names them nowhere else
    with devices.scope():
        for weight, average in zip(model.trainable_variables, averages, strict=True):
            one, other = (keras.ops.convert_to_numpy(v).copy() for v in (weight, average))
            weight.assign(other)
            average.assign(one)


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


class UseAverages(keras.callbacks.Callback):
    """Puts the averaged weights into the model at the end of an epoch, if there are any.

    What follows refreshes, scores and saves the averages; `Checkpoint`, the last that
    needs them, puts the weights back.
    """

    def on_epoch_end(self, epoch, logs=None):
        swap_averages(self.model)


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
    models are plain Keras models whatever they were trained on. Where averages of the
    weights are kept, it finds them in the model, saves them, and puts the weights back
    before it saves the state.

    Args:
        folder: Where to save.
        monitor: Name in the epoch's logs that decides what is best.
        mode: "min", "max", or "auto".
        keep_every: Also write `epoch_NNN.keras` every so many epochs; 0 does not.

    Raises:
        InputError: If `mode` is "auto" and the name tells neither.
    """

    def __init__(self, folder: Path, monitor: str, mode: str = "auto", keep_every: int = 0):
        super().__init__()
        self._folder = Path(folder)
        self._monitor = monitor
        self._keep_every = keep_every
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
        if self._monitor not in row and any(name.startswith("heldout_") for name in row):
            raise InputError(
                f"--monitor must be a column of the history.\nReceived: --monitor="
                f"{self._monitor}. Use one of {', '.join(list(row)[1:])}."
            )
        if self._monitor in row and self._is_best(row):
            save_model(self.model, self._folder / "best.keras")
        if self._keep_every and (epoch + 1) % self._keep_every == 0:
            save_model(self.model, self._folder / f"epoch_{epoch + 1:03d}.keras")
        save_model(self.model, self._folder / "last.keras")
        write_csv(pd.DataFrame(self.history), self._folder / "history.csv")
        swap_averages(self.model)
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
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"The training state {file} is damaged or of another network ({error}).\n"
                f"Delete {self._folder} to train this fold again from the start; the models saved "
                "there are not touched by this."
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
        if not first_process():
            return
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
        self._training.start_epoch(epoch)
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
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        logs["learning_rate"] = float(rate)


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
    if not first_process():
        return
    # The same layers as a model that was never compiled; momenta would double the file.
    plain = keras.Model(model.input, model.output, name=model.name)
    with atomic_path(path) as temporary:
        plain.save(temporary)


def _compile(model: keras.Model, settings: Settings, rate) -> None:
    average = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema}
    with devices.scope():
        if settings.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, **average)
            # Scales and shifts are not what decay is to keep small.
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True, **average)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
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
