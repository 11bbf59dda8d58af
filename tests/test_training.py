"""Training: what it learns, what it saves, and that it goes on without a trace."""

import contextlib

import keras
import numpy as np
import pandas as pd
import pytest
from tiny_training import SIDE, tiny_model

from bach.core.errors import InputError
from bach.core.options import Training
from bach.network import callbacks, training
from bach.network.augment import Augmentation, with_augmentation
from bach.network.batches import Batches, Selection
from bach.network.patch_network import build_model, load_model
from bach.network.predict import predict_batches


@pytest.fixture(scope="module")
def patches():
    """16 patches of noise on four grounds that flips and small shifts do not confuse."""
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 4
    ground = np.array([[220, 120, 170], [120, 220, 170], [170, 120, 220], [220, 220, 100]])
    noise = rng.integers(-30, 30, (16, 299, 299, 3))
    return np.clip(ground[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def _batches(patches, augmentation=None):
    store, labels = patches
    images = np.array([f"i{index // 2}" for index in range(16)])
    selection = Selection(store, labels, images, np.arange(len(labels)))
    return Batches([selection], 8, 0, augmentation)


def test_patches_learned_by_heart_are_also_predicted_right(patches, tmp_path):
    keras.utils.set_random_seed(1)
    model = build_model("small", "none")
    settings = Training(epochs=12, learning_rate=0.01, bn_patches=16)
    seen, held = _batches(patches, Augmentation(0.02, 0.1, 0.1)), _batches(patches)
    history = training.train(model, seen, held, settings, tmp_path)
    assert history["accuracy"].iloc[-1] > 0.9  # counted with dropout
    probs = predict_batches(model, held, 16)
    assert (probs.argmax(axis=1) == patches[1]).all()
    assert history["heldout_accuracy"].iloc[-1] == 1


def _tiny(folder, **settings):
    """Train a tiny network on 16 patches of noise, in one step an epoch."""
    keras.utils.set_random_seed(1)
    labels = np.arange(16) % 4
    patches = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), np.uint8)
    model = tiny_model()
    settings = Training(**{"epochs": 3, "learning_rate": 0.1, "bn_patches": 0, **settings})
    images = np.array([f"i{index}" for index in range(16)])
    selection = Selection(patches, labels, images, np.arange(16))
    seen, held = Batches([selection], 16, 0, Augmentation()), Batches([selection], 16)
    return model, training.train(model, seen, held, settings, folder)


def _weights(file):
    return [keras.ops.convert_to_numpy(v) for v in load_model(file).trainable_variables]


def test_a_finished_training_is_not_trained_again(tmp_path):
    model, history = _tiny(tmp_path, epochs=1)
    again, same = _tiny(tmp_path, epochs=1)
    assert all(
        np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights(), strict=True)
    )
    pd.testing.assert_frame_equal(history, same)


def test_the_saved_model_is_the_moving_average_of_the_weights(tmp_path):
    _tiny(tmp_path / "plain", keep_every=1)
    model, _ = _tiny(tmp_path / "ema", keep_every=1, ema=0.75)
    average = _weights(tmp_path / "plain/epoch_001.keras")
    for epoch in (2, 3):
        weights = _weights(tmp_path / f"plain/epoch_00{epoch}.keras")
        assert not np.allclose(weights[0], average[0], atol=1e-3)
        average = [0.75 * a + 0.25 * w for a, w in zip(average, weights, strict=True)]
        saved = _weights(tmp_path / f"ema/epoch_00{epoch}.keras")
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(average, saved, strict=True))
    for one, other in zip(model.trainable_variables, average, strict=True):
        assert np.allclose(keras.ops.convert_to_numpy(one), other, atol=1e-6)


def test_models_are_kept_every_so_many_epochs(tmp_path):
    _tiny(tmp_path, epochs=5, keep_every=2)
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == [
        "epoch_002.keras",
        "epoch_004.keras",
    ]


def _rates(steps, batch_size=64, **settings):
    rate = training.learning_rate(Training(**settings), batch_size, 10)
    return [float(rate(step)) for step in steps]


def test_the_learning_rate_is_a_plain_number_unless_asked_for_more():
    assert training.learning_rate(Training(), 256, 10) == 0.001


def test_the_learning_rate_grows_with_the_batch_and_is_warmed_up_from_that_of_a_small_one():
    settings = {"epochs": 6, "warmup_epochs": 2, "scale_learning_rate": 64}
    rates = _rates([0, 10, 20, 59], 256, **settings)
    assert rates == pytest.approx([0.001, 0.0025, 0.004, 0.004])
    assert _rates([20], 64, **settings | {"scale_learning_rate": 16}) == pytest.approx([0.004])
    # A half of a cosine over the 40 steps that are left: 1, 1/2 in the middle, 0.
    rates = _rates([0, 10, 20, 40, 60], 256, schedule="cosine", **settings)
    assert rates == pytest.approx([0.001, 0.0025, 0.004, 0.002, 0], abs=1e-8)


def test_a_rate_that_is_not_scaled_is_warmed_up_from_0():
    assert _rates([0, 5, 10], epochs=2, warmup_epochs=1) == pytest.approx([0, 0.0005, 0.001])
    rates = _rates([0, 10, 20], epochs=2, schedule="cosine")
    assert rates == pytest.approx([0.001, 0.0005, 0], abs=1e-8)


def test_a_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(InputError, match="shorter"):
        training.check_settings(Training(epochs=2, warmup_epochs=2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frozen_bn": True, "weights": "none"}, "--frozen-bn, --weights=none"),
        ({"orientations": True}, "--orientations without --train top"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        training.check_settings(Training(**settings))


def test_adamw_decays_kernels_and_nothing_else():
    model = tiny_model()
    training.compile_learner(model, Training(optimizer="adamw"), 0.5)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    for variable in model.trainable_variables:
        expected = 1 - 0.5 * training.WEIGHT_DECAY if variable.name == "kernel" else 1
        assert np.allclose(keras.ops.convert_to_numpy(variable), expected), variable.path


def test_label_smoothing_spreads_a_share_of_the_label():
    model = tiny_model()
    training.compile_learner(model, Training(label_smoothing=0.2), 0.1)
    probs = np.array([[0.7, 0.1, 0.1, 0.1]], np.float32)
    logits = np.log(probs)
    loss = float(model.loss(np.array([[1, 0, 0, 0]], np.float32), logits))
    assert loss == pytest.approx(-0.85 * np.log(0.7) - 3 * 0.05 * np.log(0.1), rel=1e-5)


def test_a_metric_that_is_not_in_the_history_cannot_be_monitored(tmp_path):
    with pytest.raises(InputError, match=r"heldout_acuracy. Use one of .*heldout_accuracy"):
        _tiny(tmp_path, monitor="heldout_acuracy", monitor_mode="max")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_state_is_an_error_and_leaves_the_models_whole(share, tmp_path):
    _tiny(tmp_path, epochs=1)
    state, last = tmp_path / "state.npz", tmp_path / "last.keras"
    whole, model = state.read_bytes(), last.read_bytes()
    state.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        InputError, match=r"must be the training state of this network[\s\S]*Delete"
    ):
        _tiny(tmp_path, epochs=2)
    assert last.read_bytes() == model
    state.write_bytes(whole)
    assert len(_tiny(tmp_path, epochs=2)[1]) == 2


@contextlib.contextmanager
def _room(size):
    """No file may grow beyond `size` bytes: what a full disk is to whoever writes."""
    resource = pytest.importorskip("resource", reason="Windows sets no limit to files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_is_an_error_and_leaves_the_last_good_checkpoint(room, tmp_path):
    model, _ = _tiny(tmp_path, epochs=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    checkpoint = callbacks.Checkpoint(model, tmp_path, "heldout_loss")
    learner = with_augmentation(model)
    training.compile_learner(learner, Training(), 0.1)
    checkpoint.restore(learner)
    checkpoint.set_model(learner)
    with _room(room), pytest.raises(InputError, match=r"room for .*last.keras[\s\S]*Make room"):
        checkpoint.on_epoch_end(1, {"loss": 1.0, "heldout_loss": 100.0})
    with _room(room), pytest.raises(InputError, match=r"room for .*best.keras[\s\S]*Make room"):
        _tiny(tmp_path, epochs=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert len(_tiny(tmp_path, epochs=2)[1]) == 2


def test_a_training_in_half_precision_is_averaged_and_resumed_like_any_other(tmp_path):
    try:
        keras.config.set_dtype_policy("mixed_float16")
        settings = {"ema": 0.75, "bn_patches": 16}
        whole, history = _tiny(tmp_path / "whole", epochs=2, **settings)
        _tiny(tmp_path / "parts", epochs=1, **settings)
        parts, _ = _tiny(tmp_path / "parts", epochs=2, **settings)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["heldout_loss"]).all()
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-5)
