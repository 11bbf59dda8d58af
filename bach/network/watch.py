"""What watches a training: `history.png`, TensorBoard, anyone's tracker.

All of it comes after an epoch is saved and changes nothing: a training that is watched, or
watched otherwise once it is resumed, is the same training.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from bach.charts import history_figure, kept_epoch, pixels, reliability_figure
from bach.core.errors import InputError
from bach.core.files import first_process, writing
from bach.core.inputs import reason
from bach.core.log import log
from bach.core.options import Training
from bach.core.pictures import read_rgb, write_png
from bach.network.callbacks import EvaluateHeldOut, state_variables
from bach.scores import expected_calibration_error, reliability

_FUNCTION = "MODULE:FUNCTION, a function(folder, fold, options) that returns Keras callbacks"


@contextlib.contextmanager
def harmless(what: str) -> Iterator[None]:
    """Let a body fail with a line of log, but for want of room, as everywhere."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        log.warning("%s: not written, %s; the training goes on", what, reason(error))


def watchers(
    folder: Path, history: list[dict], settings: Training, evaluate: EvaluateHeldOut | None
) -> list[keras.callbacks.Callback]:
    """What watches a fold's training, but for the trackers of others.

    Args:
        folder: The fold's folder.
        history: The rows of its history so far, to which every epoch adds its own before it
            ends.
        settings: Options of the training.
        evaluate: Knows the probabilities of what is held out, or None.
    """
    if not first_process():
        return []
    found: list[keras.callbacks.Callback] = [DrawHistory(folder, history, settings)]
    if settings.tensorboard:
        found.append(TensorBoard(folder, history, evaluate))
    return found


# history.png


def draw_history(folder: Path, history: pd.DataFrame, settings: Training) -> None:
    """Draw a fold's `history.png`, with the epoch that would be kept if it ended here."""
    file = folder / "history.png"
    with harmless(str(file)):
        kept = kept_epoch(history, settings.keep, settings.monitor, settings.monitor_mode)
        write_png(file, pixels(history_figure(history, kept, folder.name.replace("_", " "))))


class DrawHistory(keras.callbacks.Callback):
    """Draws `history.png` after every epoch, and what a kill kept from being drawn.

    Args:
        folder: The fold's folder.
        history: The rows of its history, as they become more.
        settings: Say which epoch is kept.
    """

    def __init__(self, folder: Path, history: Sequence[dict], settings: Training):
        super().__init__()
        self._folder, self._history, self._settings = folder, history, settings

    def on_train_begin(self, logs=None):
        if self._history and not (self._folder / "history.png").exists():
            self._draw()

    def on_epoch_end(self, epoch, logs=None):
        self._draw()

    def on_train_end(self, logs=None):
        self._draw()

    def _draw(self) -> None:
        draw_history(self._folder, pd.DataFrame(self._history), self._settings)


# TensorBoard


def check_tensorboard() -> None:
    """Refuse `--tensorboard` before the slow work where it cannot be written.

    Raises:
        InputError: If TensorFlow, which writes its files on either backend, or the package
            tensorboard is not installed.
    """
    try:
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            with contextlib.suppress(RuntimeError):  # it is in use already
                tf.config.set_visible_devices([], "GPU")  # their memory is the backend's
        tf.summary.scalar("a try", 0.0, step=0)  # goes nowhere
    except Exception as error:
        raise InputError(
            "--tensorboard needs TensorFlow, on either backend, and the package tensorboard.\n"
            f"Received: an environment without ({reason(error)}).\n"
            "Run `pip install tensorflow tensorboard`, or leave out --tensorboard: history.csv and "
            "history.png are written all the same."
        ) from error


class TensorBoard(keras.callbacks.Callback):
    """Writes scalars, the first batch and reliability for TensorBoard.

    The names are those of Keras's own callback (`train` and `validation`, `epoch_loss`). That one
    appends to what is there: after a kill an epoch would be missing, or come twice. This one
    reads what is there, and adds what is not.

    Args:
        folder: The fold's folder; what is written lies in `tensorboard` there.
        history: The rows of `history.csv`, as they become more.
        evaluate: Knows the probabilities of what is held out, or None.
    """

    def __init__(self, folder: Path, history: Sequence[dict], evaluate: EvaluateHeldOut | None):
        super().__init__()
        self._batch, self._folder = folder / "batch.png", folder / "tensorboard"
        self._history, self._evaluate = history, evaluate
        self._written: set[tuple[str, str, int]] = set()
        self._writers: dict[str, Any] = {}

    def on_train_begin(self, logs=None):
        with harmless(str(self._folder)):
            self._written = _read_written(self._folder)
            last = max((step for *_, step in self._written), default=0)
            if last > len(self._history):  # of a training that was begun anew
                shutil.rmtree(self._folder)
                self._written = set()
            if self._batch.exists():
                with contextlib.suppress(InputError):  # damaged: a picture less
                    self._image("train", "first_batch", read_rgb(self._batch, "Delete it."), 0)
            for row in self._history:
                self._scalars(row)
            self._flush()

    def on_epoch_end(self, epoch, logs=None):
        with harmless(str(self._folder)):
            self._scalars({"epoch": epoch + 1, **logs})
            if self._evaluate is not None and self._evaluate.probs is not None:
                labels, probs = self._evaluate.labels, self._evaluate.probs
                error = expected_calibration_error(probs, labels)
                title = f"held out, epoch {epoch + 1}: ECE {error:.3f}"
                figure = reliability_figure({title: reliability(probs, labels)}, of="patch")
                self._image("validation", "reliability", pixels(figure), epoch + 1)
            self._flush()

    def on_train_end(self, logs=None):
        with harmless(str(self._folder)):
            for writer in self._writers.values():
                writer.close()

    def _scalars(self, row: Mapping[str, float]) -> None:
        import tensorflow as tf

        for name, value in row.items():
            if name != "epoch":
                run = "validation" if name.startswith("heldout_") else "train"
                tag = f"epoch_{name.removeprefix('heldout_')}"
                if self._is_new(run, tag, int(row["epoch"])):
                    with self._writer(run).as_default(int(row["epoch"])):
                        tf.summary.scalar(tag, float(value))

    def _image(self, run: str, tag: str, picture: np.ndarray, step: int) -> None:
        import tensorflow as tf

        if self._is_new(run, tag, step):
            with self._writer(run).as_default(step):
                tf.summary.image(tag, picture[None])

    def _is_new(self, run: str, tag: str, step: int) -> bool:
        new = (run, tag, step) not in self._written
        self._written.add((run, tag, step))
        return new

    def _writer(self, run: str):
        import tensorflow as tf

        if run not in self._writers:
            self._writers[run] = tf.summary.create_file_writer(str(self._folder / run))
        return self._writers[run]

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _read_written(folder: Path) -> set[tuple[str, str, int]]:
    """Run, name and step of all that files of TensorBoard hold."""
    import tensorflow as tf

    found = set()
    for file in sorted(folder.glob("*/events.out.tfevents.*")):
        with contextlib.suppress(tf.errors.DataLossError):  # the end of what a kill left
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                found |= {
                    (file.parent.name, value.tag, event.step) for value in event.summary.value
                }
    return found


# Anyone's tracker


class Hooks:
    """The functions that `--callback` names, and what they return for each fold.

    Args:
        settings: Options of a training script; the functions are given all of them as a dict.

    Raises:
        InputError: If a function is not there.
    """

    def __init__(self, settings: Training):
        self._options = settings
        self._functions = {name: _find(name) for name in settings.callback}
        self._ready: dict[Path, Trackers] = {}

    def begin(self, folders: Mapping[int | None, Path]) -> None:
        """Call the functions for the first fold that is to be trained, before the slow work.

        Those of the other folds are called when their turn comes, for many a tracker has one
        run open at a time.

        Args:
            folders: The folder of every fold, in the order of training.

        Raises:
            InputError: If a function fails or returns something else.
        """
        for fold, folder in folders.items():
            if not (folder / "heldout.npy").exists():
                self._ready[folder] = Trackers(self._call(fold, folder))
                return

    def of(self, fold: int | None, folder: Path) -> list[keras.callbacks.Callback]:
        """The callbacks of a fold; none where no function is named.

        Args:
            fold: Its number; None for a model that nothing is held out from.
            folder: Its folder, which is made.
        """
        if not self._functions or not first_process():
            return []
        ready = self._ready.pop(folder, None)
        return [ready or Trackers(self._call(fold, folder))]

    def _call(self, fold: int | None, folder: Path) -> list[tuple[str, keras.callbacks.Callback]]:
        found: list[tuple[str, keras.callbacks.Callback]] = []
        if not self._functions or not first_process():
            return found
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, function in self._functions.items():
            with _named(name, f"calling it for {folder.name}"):
                made = function(folder, fold, dataclasses.asdict(self._options))
            several = list(made) if isinstance(made, list | tuple) else [made]
            for one in several:
                if not isinstance(one, keras.callbacks.Callback):
                    raise InputError(
                        f"--callback must name {_FUNCTION}.\n"
                        f"Received: --callback={name}, which returned {type(one).__name__}.\n"
                        "Return one keras.callbacks.Callback, or a list of them."
                    )
                found.append((name, one))
        return found


class Trackers(keras.callbacks.Callback):
    """Passes on to callbacks of others what happens, and sees that they only watch.

    Each is given copies of the logs. What one raises ends the training with its name; so does
    one that stops the training, or changes what is trained between two epochs: the state is
    saved by then, and a training that is resumed would not know of it.

    Args:
        named: Callbacks, each with the name of the function that made it.
    """

    def __init__(self, named: Sequence[tuple[str, keras.callbacks.Callback]]):
        super().__init__()
        self._named = named
        self._state = b""

    def set_params(self, params):
        super().set_params(params)
        self._tell("set_params", params)

    def set_model(self, model):
        super().set_model(model)
        self._tell("set_model", model)

    def on_train_begin(self, logs=None):
        self._state = _digest(self.model)
        self._tell("on_train_begin", dict(logs or {}))

    def on_epoch_begin(self, epoch, logs=None):
        self._tell("on_epoch_begin", epoch, dict(logs or {}))
        if self._state != _digest(self.model):
            raise _only_watch(
                self._named,
                f"has changed weights, optimizer or random state before epoch {epoch + 1}",
            )

    def on_train_batch_begin(self, batch, logs=None):
        self._tell("on_train_batch_begin", batch, dict(logs or {}))

    def on_train_batch_end(self, batch, logs=None):
        self._tell("on_train_batch_end", batch, dict(logs or {}))

    def on_epoch_end(self, epoch, logs=None):
        self._state = _digest(self.model)
        self._tell("on_epoch_end", epoch, dict(logs or {}))

    def on_train_end(self, logs=None):
        self._tell("on_train_end", dict(logs or {}))

    def _tell(self, hook: str, *values: object) -> None:
        for name, callback in self._named:
            given = [dict(value) if isinstance(value, dict) else value for value in values]
            with _named(name, hook):
                getattr(callback, hook)(*given)
            if hook.startswith("on_") and getattr(self.model, "stop_training", False):
                raise _only_watch([(name, callback)], "has stopped the training")


def _digest(model: keras.Model) -> bytes:
    """Of all that training changes."""
    digest = hashlib.blake2b()
    if getattr(model, "optimizer", None) is not None:  # none where a top is fitted
        for variable in state_variables(model):
            digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.digest()


def _only_watch(named: Sequence[tuple[str, object]], fault: str) -> InputError:
    names = ", ".join(dict.fromkeys(name for name, _ in named))
    return InputError(
        "What --callback names may watch a training, not change it: it could not be resumed.\n"
        f"Received: --callback={names}, which {fault}.\n"
        "Leave that out and run the same command with --resume; every epoch before is kept."
    )


def _find(name: str) -> Callable:
    """The function that a word of `--callback` names."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise _no_function(name, "it has no colon between the two" if not colon else "one is empty")
    # The current directory last: what is installed is not to be hidden by a file there.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            _log_theirs(error)
        hint = " (without .py)" if module.endswith(".py") else ""
        raise _no_function(name, f"{error}{hint}") from error
    except (Exception, SystemExit) as error:
        _log_theirs(error)
        raise _no_function(name, f"importing it raises {_said(error)}") from error
    function = getattr(found, attribute, None)
    if not callable(function):
        where = getattr(found, "__file__", None) or module
        raise _no_function(name, f"{where} has no function {attribute}")
    return function


def _no_function(name: str, fault: str) -> InputError:
    return InputError(
        f"--callback must name {_FUNCTION}.\nReceived: --callback={name}; {fault}.\n"
        "A module is found where Python finds it, and in the current directory."
    )


@contextlib.contextmanager
def _named(name: str, doing: str) -> Iterator[None]:
    """Say whose fault it is where code of others fails, with its traceback in the log."""
    try:
        yield
    except (Exception, SystemExit) as error:
        _log_theirs(error)
        raise InputError(
            f"What --callback names must not fail.\n"
            f"Received: --callback={name}, which raised {_said(error)} ({doing}).\n"
            "Its traceback is above. Mend it, or leave it out, and run the same command with "
            "--resume: no finished epoch is lost."
        ) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _log_theirs(error: BaseException) -> None:
    """Log a traceback from the first frame that is not of this module on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    log.error("%s", "".join(traceback.format_exception(type(error), error, trace)).rstrip())
