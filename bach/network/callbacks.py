"""What happens at the end of an epoch, in this order: averaged weights, statistics of
batch normalisation (see `bach.network.batch_norm`), held-out scores, checkpoints that
survive anything, a line of log.
"""

import json
import math
import os
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.charts import STOPPED, best_mode
from bach.core.archives import check_archive
from bach.core.errors import InputError
from bach.core.files import atomic_path, first_process
from bach.core.inputs import Limit, open_input
from bach.core.log import log
from bach.core.tables import write_csv
from bach.core.text import duration
from bach.honest.seen import NOTHING, Seen, add_seen
from bach.network import backend
from bach.network.batches import Batches
from bach.network.predict import predict_batches, predict_sample
from bach.tasks import state_task, task

NO_CHANGE = 0.005  # in the loss
_SAMPLE = 64  # patches


class Checkpoint(keras.callbacks.Callback):
    """Saves the best and the last model and the state of training, each whole.

    Writes after every epoch `best.keras` (if the epoch is the best so far),
    `last.keras`, `history.csv`, and last of all `state.npz`; a kill at any point
    leaves the state of an earlier epoch, from which the rest is written again. The
    models are plain Keras models whatever they were trained on. Where averages of the
    weights are kept, it finds them in the model, saves them, and puts the weights back
    before it saves the state.

    Args:
        network: What to save; the model that `fit` trains may have more layers.
        folder: Where to save.
        monitor: Name in the epoch's logs that decides what is best.
        mode: "min", "max", or "auto".
        keep_every: Also write `epoch_NNN.keras` every so many epochs; 0 does not.
        seen: What the network has seen when it is saved; stands in its file.

    Raises:
        InputError: If `mode` is "auto" and the name tells neither.
    """

    def __init__(
        self,
        network: keras.Model,
        folder: Path,
        monitor: str,
        mode: str = "auto",
        keep_every: int = 0,
        seen: Seen = NOTHING,
    ):
        super().__init__()
        self._seen = seen
        self._network = network
        self.folder = Path(folder)
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
            save_model(self._network, self.folder / "best.keras", self._seen)
        if self._keep_every and (epoch + 1) % self._keep_every == 0:
            save_model(self._network, self.folder / f"epoch_{epoch + 1:03d}.keras", self._seen)
        save_model(self._network, self.folder / "last.keras", self._seen)
        write_csv(pd.DataFrame(self.history), self.folder / "history.csv")
        swap_averages(self.model)
        self._save_state()

    def restore(self, model: keras.Model) -> list[dict]:
        """Put a saved state into a model, if there is one.

        Args:
            model: The compiled model, its optimizer built.

        Returns:
            The history so far, one dict per epoch.
        """
        file = self.folder / "state.npz"
        if not file.exists():
            return []
        variables = state_variables(model)
        with open_input(
            file,
            "be the training state of this network",
            f"Delete {self.folder} to train this fold again from the start; the models saved "
            "there are not touched by what is damaged.",
            Limit.MODEL,
        ) as stream:
            check_archive(stream)
            with np.load(stream) as state:
                history = json.loads(str(state["history"]))
                values = [state[f"v{index}"] for index in range(len(variables))]
            if any(value.dtype.kind not in "biuf" for value in values):
                raise ValueError("values that are no numbers")
            if not history or not all("loss" in row and "epoch" in row for row in history):
                raise ValueError("no history")
        for variable, value in zip(variables, values, strict=True):
            if tuple(variable.shape) != value.shape:
                raise InputError(
                    f"The training state {file} is that of another network: {variable.path} "
                    f"has shape {tuple(variable.shape)}, saved is {value.shape}.\n"
                    "Use the arguments the run was started with."
                )
        with backend.scope():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self.history = history
        return list(history)

    def best_epoch(self) -> int | None:
        """The epoch of `best.keras`; None if there is none, or it had stopped learning."""
        rows = [row for row in self.history if self._monitor in row]
        best = max(rows, key=lambda row: self._sign * row[self._monitor], default=None)
        return None if best is None or best.get(STOPPED) else int(best["epoch"])

    def _is_best(self, row: dict) -> bool:
        earlier = [self._sign * r[self._monitor] for r in self.history[:-1] if self._monitor in r]
        return not earlier or self._sign * row[self._monitor] > max(earlier)

    def _save_state(self) -> None:
        if not first_process():
            return
        values = {
            f"v{index}": keras.ops.convert_to_numpy(variable)
            for index, variable in enumerate(state_variables(self.model))
        }
        with atomic_path(self.folder / "state.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, history=json.dumps(self.history), **values)


class UseAverages(keras.callbacks.Callback):
    """Puts the averaged weights into the model at the end of an epoch, if there are any.

    What follows refreshes, scores and saves the averages; `Checkpoint`, the last that
    needs them, puts the weights back.
    """

    def on_epoch_end(self, epoch, logs=None):
        swap_averages(self.model)


class EvaluateHeldOut(keras.callbacks.Callback):
    """Adds the held-out scores of an epoch to its logs.

    A callback and not `validation_data`, since it must follow `RefreshBatchNorm`
    and score images, not only patches.

    Attributes:
        labels: True class of every patch that is held out, `(n,)`.
        probs: Their probabilities after the last epoch, `(n, classes)`; None before.
    """

    def __init__(self, network: keras.Model, heldout: Batches):
        super().__init__()
        self._network = network
        self._heldout = heldout
        self.labels = heldout.labels
        self.probs: np.ndarray | None = None

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            return  # `Checkpoint` says what to do
        self.look_at(predict_batches(self._network, self._heldout, len(self.labels)), logs)

    def look_at(self, probs: np.ndarray, logs: dict) -> None:
        """Add the scores of the held-out patches' probabilities to the logs of an epoch."""
        self.probs = probs
        logs.update(scores(self.labels, probs, self._heldout.images))


class StoppedLearning(keras.callbacks.Callback):
    """Warns of a network that has stopped learning, and marks the epoch in its logs.

    That is so where the training loss is what knowing nothing costs, and a sample of the
    training patches is all given one class; or where the loss has risen in every epoch from
    the first on. Comes before `Checkpoint`.

    Args:
        network: What is trained.
        training: What it is trained on.
        label_smoothing: Share of every label that is spread over all classes.
        checkpoint: Knows the epochs before, and the best.
    """

    def __init__(
        self,
        network: keras.Model,
        training: Batches,
        label_smoothing: float,
        checkpoint: Checkpoint,
    ):
        super().__init__()
        self._network, self._training, self._checkpoint = network, training, checkpoint
        shares = np.bincount(training.labels, minlength=task().count) / len(training.labels)
        shares = shares * (1 - label_smoothing) + label_smoothing / task().count
        shares = shares[shares > 0]
        # The loss of even probabilities, and of those that are as frequent as the classes.
        self._nothing = (math.log(task().count), float(-(shares * np.log(shares)).sum()))
        self._said = False

    def on_epoch_end(self, epoch, logs=None):
        reason = self._knows_nothing(logs["loss"], epoch) or self._rises(logs["loss"])
        if reason:
            logs[STOPPED] = 1.0
            if not self._said:
                self._warn(epoch + 1, reason, logs)
        self._said = bool(reason)

    def _knows_nothing(self, loss: float, epoch: int) -> str | None:
        level = min(self._nothing, key=lambda nothing: abs(nothing - loss))
        if not abs(level - loss) < NO_CHANGE:
            return None
        count = max(_SAMPLE, self._training.batch_size)
        sample = self._training.sample(count, self._training.seed + epoch)
        predicted = predict_sample(self._network, sample).argmax(axis=1)
        if len(set(predicted.tolist())) > 1:
            return None
        return (
            f"the training loss is {loss:.3f}, what a network has that knows nothing "
            f"({level:.3f}), and all {len(predicted)} patches of a sample are given the class "
            f"{task().classes[predicted[0]]}"
        )

    def _rises(self, loss: float) -> str | None:
        losses = [row["loss"] for row in self._checkpoint.history] + [loss]
        if len(losses) < 2 or min(np.diff(losses)) <= 0 or loss - losses[0] < NO_CHANGE:
            return None
        return (
            f"the training loss rises from the first epoch on, from {losses[0]:.3f} to {loss:.3f}"
        )

    def _warn(self, epoch: int, reason: str, logs: dict) -> None:
        best, file = self._checkpoint.best_epoch(), self._checkpoint.folder / "best.keras"
        good = (
            f"the last good state is {file}, of epoch {best}"
            if best
            else ("no epoch before is kept that was better")
        )
        log.warning(
            f"the network has stopped learning: after epoch {epoch}, at a learning rate of "
            f"{logs['learning_rate']:g}, {reason}; {good}. It will hardly recover: train it "
            "again with a smaller --learning-rate, or with --warmup-epochs"
        )


class Progress(keras.callbacks.Callback):
    """Sets the epoch of the batches, keeps time, and shows bars on a terminal.

    That of the epochs counts all that belongs to one, up to the start of the next.
    """

    def __init__(self, training: Batches, epochs: int):
        super().__init__()
        self._training = training
        self._epochs = epochs
        self._all: tqdm | None = None

    def on_epoch_begin(self, epoch, logs=None):
        self._training.start_epoch(epoch)
        self._start = time.monotonic()
        if self._all is None:
            self._all = tqdm(
                total=self._epochs, initial=epoch, desc="epochs", leave=False, disable=None
            )
        else:
            self._all.update()
        name, count = f"epoch {epoch + 1}/{self._epochs}", len(self._training)
        self._bar = tqdm(total=count, desc=name, unit="batch", leave=False, disable=None)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()
        seconds = time.monotonic() - self._start
        count = len(self._training) * self._training.batch_size
        logs["patches_per_s"] = round(count / seconds, 2)
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        logs["learning_rate"] = float(rate)

    def on_train_end(self, logs=None):
        if self._all is not None:
            self._all.close()


class LogEpoch(keras.callbacks.Callback):
    """Logs a line per epoch."""

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
            f"epoch {epoch + 1}/{self._epochs}: loss {logs['loss']:.3f}, accuracy "
            f"{logs['accuracy']:.3f}{held}; {logs['patches_per_s']:.0f} patches/s, "
            f"{duration(time.monotonic() - self._start)}"
        )


def scores(labels: np.ndarray, probs: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Loss and accuracy of patches, and accuracy of images by mean probability.

    Args:
        labels: True class of every patch, `(n,)`.
        probs: Probabilities `(n, classes)`.
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


def save_model(model: keras.Model, path: str | os.PathLike, seen: Seen) -> None:
    """Save a model as a `.keras` file, whole or not at all, without its optimizer.

    Args:
        model: The model.
        path: The file.
        seen: What the model has seen; stands in the file, see `bach.honest.seen`.
    """
    if not first_process():
        return
    # The same layers as a model that was never compiled; momenta would double the file.
    plain = keras.Model(model.input, model.output, name=model.name)
    with atomic_path(path) as temporary:
        plain.save(temporary)
        add_seen(temporary, seen)
        state_task(temporary)


def swap_averages(model: keras.Model) -> None:
    """Exchange the weights and their moving averages, where averages are kept."""
    # mixed_float16 wraps the optimizer.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        return
    averages = optimizer._model_variables_moving_average  # Keras names them nowhere else
    with backend.scope():
        for weight, average in zip(model.trainable_variables, averages, strict=True):
            one, other = (keras.ops.convert_to_numpy(v).copy() for v in (weight, average))
            weight.assign(other)
            average.assign(one)


def state_variables(model: keras.Model) -> list:
    """All variables that training changes: weights, statistics, random states, momenta."""
    return [*model.variables, *model.optimizer.variables]
