"""What watches a training changes nothing, loses nothing, and says whose fault it is."""

import contextlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from commands import ROOT
from tiny_training import SIDE, tiny_model

from bach.core.errors import InputError
from bach.core.options import Training
from bach.core.pictures import read_rgb
from bach.network import training, watch
from bach.network.augment import Augmentation
from bach.network.batches import Batches, Selection

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None
    or importlib.util.find_spec("tensorflow") is None,
    reason="tensorboard is not installed",
)

# In the place of MLflow: what it is told goes into files of the current directory.
MLFLOW = """
import pathlib

def end_run(): pass

def start_run(run_name):
    global name
    name = run_name

def log_params(params):
    pathlib.Path(f"{name}.params").write_text(str(params))

def log_metrics(metrics, step):
    with pathlib.Path(f"{name}.csv").open("a") as stream:
        print(step, *map(float, metrics.values()), sep=",", file=stream)
"""

# What a person writes who has a tracker of their own: a line per epoch, in a file.
TRACKER = """
import keras

class Tracker(keras.callbacks.Callback):
    def __init__(self, file):
        super().__init__()
        self.file = file

    def on_epoch_end(self, epoch, logs=None):
        with self.file.open("a", encoding="utf-8") as stream:
            print(epoch + 1, logs["loss"], logs["heldout_loss"], sep=",", file=stream)
        logs.clear()

def track(folder, fold, options):
    return Tracker(folder / f"{options['backbone']} {fold}.csv")

def several(folder, fold, options):
    return [Tracker(folder / "one.csv"), Tracker(folder / "two.csv")]

class Fails(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise ZeroDivisionError("in the tracker")

class Stops(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True

class Changes(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.5

def fails(folder, fold, options): return Fails()
def stops(folder, fold, options): return Stops()
def changes(folder, fold, options): return Changes()
def number(folder, fold, options): return 3
def nothing(folder, fold, options): pass
def raises(folder, fold, options): raise KeyError("nö")
def leaves(folder, fold, options): raise SystemExit(0)
def other(folder): pass
no_function = 1
"""


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """A module of a tracker in the current directory, whose name no other test has used."""
    folder = tmp_path / "einé module"
    folder.mkdir()
    name = f"tracker_{abs(hash(str(tmp_path)))}"
    (folder / f"{name}.py").write_text(TRACKER, encoding="utf-8")
    (folder / f"{name}_needs.py").write_text("import there_is_no_such_package\n")
    (folder / f"{name}_breaks.py").write_text("def track(:\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    importlib.invalidate_caches()
    return name


def train(folder, epochs=3, hooks=(), **options):
    """Train the tiny model on noise, or go on with it; the history."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    patches = rng.integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    images = np.array([f"image {row % 8}" for row in range(40)])
    settings = Training(epochs=epochs, learning_rate=0.1, bn_patches=16, **options)

    def batches(rows, augmentation=None):
        return Batches([Selection(patches, labels, images, rows)], 8, 1, augmentation)

    model = tiny_model()
    seen, held = batches(np.arange(32), Augmentation()), batches(np.arange(32, 40))
    return training.train(model, seen, held, settings, folder, hooks)


def named(name, folder):
    """What the function of that name returns for a fold."""
    hooks = watch.Hooks(Training(callback=(name,)))
    hooks.begin({0: folder})
    return hooks.of(0, folder)


def written(folder):
    """Name, step and value of all scalars, and name and step of all pictures, sorted."""
    import tensorflow as tf

    scalars, pictures = [], []
    for file in sorted(folder.glob("tensorboard/*/events*")):
        with contextlib.suppress(tf.errors.DataLossError):  # the end is torn
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                for value in event.summary.value:
                    name = f"{file.parent.name} {value.tag}"
                    if value.metadata.plugin_data.plugin_name == "images":
                        pictures.append((name, event.step))
                    else:
                        scalars.append((name, event.step, float(tf.make_ndarray(value.tensor))))
    return sorted(scalars), sorted(pictures)


# history.png


def test_the_history_is_drawn_after_every_epoch_and_when_a_training_goes_on(tmp_path):
    train(tmp_path, epochs=1)
    picture = tmp_path / "history.png"
    first = read_rgb(picture, "Train again.")
    train(tmp_path, epochs=2)
    second = read_rgb(picture, "Train again.")
    assert (first != second).any()
    picture.unlink()
    train(tmp_path, epochs=2)  # nothing is left to train
    assert (read_rgb(picture, "Train again.") == second).all()


def test_a_chart_that_cannot_be_drawn_does_not_end_the_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(watch.log, "propagate", True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    history = train(tmp_path, epochs=2)
    assert len(history) == 2
    assert not (tmp_path / "history.png").exists()
    assert "the training goes on" in caplog.text


# TensorBoard


@needs_tensorboard
def test_tensorboard_is_given_the_history_the_first_batch_and_reliability(tmp_path):
    history = train(tmp_path, tensorboard=True)
    scalars, pictures = written(tmp_path)
    values = {(name, step): value for name, step, value in scalars}
    assert len(values) == len(scalars) == 3 * (len(history.columns) - 1)
    for row in history.itertuples():
        assert values["train epoch_loss", row.epoch] == pytest.approx(row.loss)
        assert values["validation epoch_loss", row.epoch] == pytest.approx(row.heldout_loss)
        assert values["train epoch_learning_rate", row.epoch] == pytest.approx(0.1)
    reliability = [("validation reliability", epoch) for epoch in (1, 2, 3)]
    assert pictures == [("train first_batch", 0), *reliability]


@needs_tensorboard
def test_curves_go_on_without_a_double_or_a_gap_whatever_a_kill_left(tmp_path):
    train(tmp_path, epochs=2, tensorboard=True)
    # The kill came while the end was written: the last record is torn.
    for file in tmp_path.glob("tensorboard/*/events*"):
        file.write_bytes(file.read_bytes()[:-20])
    train(tmp_path, epochs=3)  # for once without
    history = train(tmp_path, epochs=4, tensorboard=True)
    scalars, pictures = written(tmp_path)
    found = [(name, step) for name, step, _ in scalars]
    names = [
        f"validation epoch_{name.removeprefix('heldout_')}"
        if name.startswith("heldout_")
        else f"train epoch_{name}"
        for name in history.columns[1:]
    ]
    assert found == sorted((name, epoch) for name in names for epoch in (1, 2, 3, 4))
    # Reliability of an epoch that nobody watched is not known any more.
    assert pictures[0] == ("train first_batch", 0)
    assert pictures[-1] == ("validation reliability", 4)
    assert len(set(pictures)) == len(pictures)


@needs_tensorboard
def test_curves_of_a_training_that_was_begun_anew_replace_those_of_before(tmp_path):
    train(tmp_path, epochs=3, tensorboard=True)
    (tmp_path / "state.npz").unlink()
    train(tmp_path, epochs=1, tensorboard=True)
    scalars, _ = written(tmp_path)
    assert {step for _, step, _ in scalars} == {1}


def test_without_tensorflow_tensorboard_is_refused_before_the_slow_work():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from bach.core.options import Training\n"
        "from bach.network import training\n"
        "settings = Training(tensorboard=True, backbone='small', weights='none')\n"
        "training.check_settings(settings)\n"
    )
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"KERAS_BACKEND": "jax", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "InputError: --tensorboard needs TensorFlow" in done.stderr
    assert "pip install tensorflow tensorboard" in done.stderr


# Anyone's tracker


def test_a_tracker_is_told_of_every_epoch_and_cannot_touch_the_logs(tmp_path, tracker):
    folder = tmp_path / "fold_0"
    history = train(folder, hooks=named(f"{tracker}:track", folder))
    table = pd.read_csv(folder / "InceptionResNetV2 0.csv", header=None)
    assert table[0].tolist() == [1, 2, 3]
    assert table[1].to_numpy() == pytest.approx(history["loss"].to_numpy())
    assert table[2].to_numpy() == pytest.approx(history["heldout_loss"].to_numpy())


def test_the_tracker_of_the_documentation_works(tmp_path, tracker):
    if importlib.util.find_spec("mlflow") is not None:
        pytest.skip("MLflow itself is installed")
    text = (ROOT / "docs" / "steps.md").read_text(encoding="utf-8")
    example = next(
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "track" in code
    )
    assert len([line for line in example.splitlines() if line]) <= 10
    Path("mlflow.py").write_text(MLFLOW)
    Path(f"{tracker}_documented.py").write_text(example)
    folder = tmp_path / "run" / "fold_0"
    history = train(folder, hooks=named(f"{tracker}_documented:track", folder))
    table = pd.read_csv("run fold_0.csv", header=None)
    assert table.to_numpy() == pytest.approx(history.to_numpy(float))
    assert "'epochs': 25" in Path("run fold_0.params").read_text()


def test_a_top_that_is_fitted_counts_as_one_epoch(tmp_path, tracker):
    folder, model = tmp_path / "fold_0", tiny_model()  # not compiled, as a top is fitted
    row = {"epoch": 1, "loss": 0.5, "accuracy": 0.75, "strength": 1.0}
    told = [*watch.watchers(folder, [row], Training(), None), *named(f"{tracker}:track", folder)]
    told = keras.callbacks.CallbackList(told, model=model, epochs=1)
    told.on_train_begin()
    told.on_epoch_begin(0)
    told.on_epoch_end(0, {"loss": 0.5, "heldout_loss": 1.0})
    told.on_train_end()
    assert (folder / "history.png").exists()
    assert (folder / "InceptionResNetV2 0.csv").read_text() == "1,0.5,1.0\n"


def test_a_watched_training_is_the_same_training(tmp_path, tracker):
    plain = train(tmp_path / "plain")
    hooks = named(f"{tracker}:several", tmp_path / "watched")
    options = {"tensorboard": importlib.util.find_spec("tensorboard") is not None}
    watched = train(tmp_path / "watched", hooks=hooks, **options)
    columns = plain.columns.drop("patches_per_s")
    assert watched[columns].to_numpy() == pytest.approx(plain[columns].to_numpy(), abs=1e-6)
    assert (tmp_path / "watched" / "two.csv").exists()


def test_a_tracker_that_fails_is_named_with_its_traceback_and_the_run_goes_on_after_it(
    tmp_path, tracker, caplog, monkeypatch
):
    monkeypatch.setattr(watch.log, "propagate", True)
    folder = tmp_path / "fold_0"
    with pytest.raises(InputError, match=rf"{tracker}:fails(?s:.)*in the tracker.*on_epoch_end"):
        train(folder, hooks=named(f"{tracker}:fails", folder))
    assert "raise ZeroDivisionError" in caplog.text
    assert "watch.py" not in "".join(caplog.messages)
    gone_on = train(folder)
    whole = train(tmp_path / "whole")
    columns = whole.columns.drop("patches_per_s")
    assert gone_on[columns].to_numpy() == pytest.approx(whole[columns].to_numpy(), abs=1e-6)


@pytest.mark.parametrize(("name", "fault"), [("stops", "stopped"), ("changes", "optimizer")])
def test_a_tracker_that_changes_the_training_is_refused_with_the_epochs_kept(
    tmp_path, tracker, name, fault
):
    folder = tmp_path / "fold_0"
    with pytest.raises(InputError, match=rf"{tracker}:{name}, which has (?s:.)*{fault}"):
        train(folder, hooks=named(f"{tracker}:{name}", folder))
    history = train(folder)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["learning_rate"].to_numpy() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("{}", "no colon"),
        ("{}:", "one is empty"),
        (":track", "one is empty"),
        ("there_is_no_{}:track", "No module named"),
        ("{}.py:track", r"without \.py"),
        ("{}:track_", "has no function track_"),
        ("{}:no_function", "has no function no_function"),
        ("{}_needs:track", "there_is_no_such_package"),
        ("{}_breaks:track", "SyntaxError"),
        ("..{}:track", "importing it raises|No module"),
    ],
)
def test_what_is_no_function_is_refused_before_it_is_called(tracker, function, fault):
    name = function.format(tracker)
    with pytest.raises(InputError, match=rf"Received: --callback={name}(?s:.)*({fault})"):
        watch.Hooks(Training(callback=(name,)))


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("number", "returned int"),
        ("nothing", "returned NoneType"),
        ("raises", "KeyError: 'nö'"),
        ("leaves", "SystemExit"),
        ("other", "TypeError"),
    ],
)
def test_what_a_function_returns_is_looked_at_before_the_slow_work(
    tmp_path, tracker, function, fault
):
    hooks = watch.Hooks(Training(callback=(f"{tracker}:{function}",)))
    with pytest.raises(InputError, match=rf"{tracker}:{function}(?s:.)*{fault}"):
        hooks.begin({0: tmp_path / "fold_0", 1: tmp_path / "fold_1"})


def test_functions_are_called_once_per_fold_when_its_turn_comes(tmp_path, tracker):
    """And not for a fold that is finished."""
    settings = Training(callback=(f"{tracker}:track",))
    hooks = watch.Hooks(settings)
    folders = {fold: tmp_path / f"fold_{fold}" for fold in (0, 1, 2)}
    folders[0].mkdir()
    (folders[0] / "heldout.npy").touch()
    hooks.begin(folders)
    assert folders[1].is_dir()
    assert not folders[2].exists()
    assert len(hooks.of(1, folders[1])) == 1
    assert watch.Hooks(Training()).of(0, folders[0]) == []
