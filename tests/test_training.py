"""Training: what it learns, what it saves, and that it goes on without a trace."""

import keras
import numpy as np
import pandas as pd
import pytest

from bach import training
from bach.augment import Augmentation
from bach.batches import Batches
from bach.dense import DenseModel
from bach.model import build_model, load_model
from bach.predict import predict_batches
from bach.runs import InputError


@pytest.fixture(scope="module")
def patches():
    """16 patches of noise on four grounds that flips and small shifts do not confuse."""
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 4
    ground = np.array([[220, 120, 170], [120, 220, 170], [170, 120, 220], [220, 220, 100]])
    noise = rng.integers(-30, 30, (16, 299, 299, 3))
    return np.clip(ground[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def _batches(patches, augmentation=None, seed=0):
    store, labels = patches
    return Batches([store], [labels], [np.arange(len(labels))], 8, seed, augmentation)


def _train(patches, folder, epochs, **settings):
    keras.utils.set_random_seed(1)
    model = build_model("small", "none")
    settings = training.Settings(
        epochs=epochs, learning_rate=0.01, bn_patches=16,
        augmentation=Augmentation(0.02, 0.1, 0.1), **settings,
    )  # fmt: skip
    images = np.array([f"i{index // 2}" for index in range(16)])
    history = training.train(
        model, _batches(patches, settings.augmentation), _batches(patches), images, settings, folder
    )
    return model, history


def test_patches_learned_by_heart_are_also_predicted_right(patches, tmp_path):
    model, history = _train(patches, tmp_path, epochs=12)
    assert history["accuracy"].iloc[-1] == 1
    probs = predict_batches(model, _batches(patches), 16)
    assert (probs.argmax(axis=1) == patches[1]).all()
    assert history["heldout_accuracy"].iloc[-1] == 1


def test_a_resumed_training_ends_like_one_that_was_not_interrupted(patches, tmp_path):
    whole, history = _train(patches, tmp_path / "whole", epochs=4)
    _train(patches, tmp_path / "parts", epochs=2)
    parts, resumed = _train(patches, tmp_path / "parts", epochs=4)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    numbers = [c for c in history if c != "patches_per_s"]
    pd.testing.assert_frame_equal(history[numbers], resumed[numbers], rtol=1e-4)
    one, other = (
        load_model(tmp_path / name / "best.keras").get_weights() for name in ("whole", "parts")
    )
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_a_finished_training_is_not_trained_again(patches, tmp_path):
    model, history = _train(patches, tmp_path, epochs=1)
    again, same = _train(patches, tmp_path, epochs=1)
    assert all(
        np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights(), strict=True)
    )
    pd.testing.assert_frame_equal(history, same)


def test_a_damaged_state_is_an_error_that_says_what_to_do(patches, tmp_path):
    (tmp_path / "state.npz").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"damaged[\s\S]*Delete"):
        _train(patches, tmp_path, epochs=1)


def test_a_diverging_training_stops_and_keeps_the_last_good_checkpoint(patches, tmp_path):
    model = build_model("small", "none")
    training._compile(model, training.Settings())
    checkpoint = training.Checkpoint(tmp_path, "heldout_loss")
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0, {"loss": 1.0, "heldout_loss": 1.0})
    before = (tmp_path / "last.keras").read_bytes()
    with pytest.raises(InputError, match="diverged"):
        checkpoint.on_epoch_end(1, {"loss": float("nan"), "heldout_loss": 1.0})
    assert (tmp_path / "last.keras").read_bytes() == before


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [("heldout_loss", [3, 1, 2], 1), ("heldout_image_accuracy", [0.1, 0.5, 0.5], 1)],
)
def test_best_is_the_first_epoch_with_the_best_value(monitor, values, best, tmp_path):
    model = build_model("small", "none")
    training._compile(model, training.Settings())
    checkpoint = training.Checkpoint(tmp_path, monitor)
    checkpoint.set_model(model)
    bias = model.get_layer("classes").weights[1]
    for epoch, value in enumerate(values):
        bias.assign(np.full(4, epoch, np.float32))
        checkpoint.on_epoch_end(epoch, {"loss": 1.0, monitor: value})
    saved = load_model(tmp_path / "best.keras").get_layer("classes").weights[1]
    assert keras.ops.convert_to_numpy(saved)[0] == best
    saved = load_model(tmp_path / "last.keras").get_layer("classes").weights[1]
    assert keras.ops.convert_to_numpy(saved)[0] == len(values) - 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"), ("heldout_loss", "min"), ("accuracy", "max"), ("val_auc", "max"),
        ("heldout_image_accuracy", "max"), ("part_b_score", "max"), ("calibration_error", "min"),
    ],
)  # fmt: skip
def test_better_is_told_by_the_name_of_the_metric(name, mode):
    assert training.best_mode(name) == mode
    assert training.best_mode(name, "min") == "min"


def test_a_name_that_tells_nothing_is_refused():
    with pytest.raises(InputError, match="Say min or max"):
        training.best_mode("quality")


def test_images_are_scored_by_the_mean_of_their_patches():
    labels = np.array([0, 0, 0, 3, 3, 3])
    probs = np.eye(4)[[0, 0, 2, 1, 1, 3]] * 0.9 + 0.025
    result = training.scores(labels, probs, np.array(list("aaabbb")))
    assert result["heldout_accuracy"] == pytest.approx(3 / 6)
    assert result["heldout_image_accuracy"] == pytest.approx(1 / 2)
    expected = -(3 * np.log(0.925) + 3 * np.log(0.025)) / 6
    assert result["heldout_loss"] == pytest.approx(expected)
    # A slide has patches of several classes, and no class of its own.
    assert "heldout_image_accuracy" not in training.scores(labels, probs, np.array(["A01"] * 6))


def test_a_saved_model_can_be_run_over_whole_regions(tmp_path):
    training.save_model(build_model("small", "none"), tmp_path / "model.keras")
    assert DenseModel(load_model(tmp_path / "model.keras")).stride == 32
