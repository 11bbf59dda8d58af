"""What happens at the end of an epoch."""

import keras
import numpy as np
import pytest
from tiny_training import tiny_model

from bach.core.errors import InputError
from bach.honest.seen import NOTHING
from bach.network import callbacks
from bach.network.dense import DenseModel
from bach.network.patch_network import build_model, load_model


def _compiled():
    model = build_model("small", "none")
    model.compile(optimizer="sgd", loss="categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_diverging_training_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    model = _compiled()
    checkpoint = callbacks.Checkpoint(model, tmp_path, "heldout_loss")
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
    model = _compiled()
    checkpoint = callbacks.Checkpoint(model, tmp_path, monitor)
    checkpoint.set_model(model)
    bias = model.get_layer("classes").weights[1]
    for epoch, value in enumerate(values):
        bias.assign(np.full(4, epoch, np.float32))
        checkpoint.on_epoch_end(epoch, {"loss": 1.0, monitor: value})
    saved = load_model(tmp_path / "best.keras").get_layer("classes").weights[1]
    assert keras.ops.convert_to_numpy(saved)[0] == best
    saved = load_model(tmp_path / "last.keras").get_layer("classes").weights[1]
    assert keras.ops.convert_to_numpy(saved)[0] == len(values) - 1


def test_images_are_scored_by_the_mean_of_their_patches():
    labels = np.array([0, 0, 0, 3, 3, 3])
    probs = np.eye(4)[[0, 0, 2, 1, 1, 3]] * 0.9 + 0.025
    result = callbacks.scores(labels, probs, np.array(list("aaabbb")))
    assert result["heldout_accuracy"] == pytest.approx(3 / 6)
    assert result["heldout_image_accuracy"] == pytest.approx(1 / 2)
    expected = -(3 * np.log(0.925) + 3 * np.log(0.025)) / 6
    assert result["heldout_loss"] == pytest.approx(expected)
    # A slide has patches of several classes, and no class of its own.
    assert "heldout_image_accuracy" not in callbacks.scores(labels, probs, np.array(["A01"] * 6))


def test_a_saved_model_can_be_run_over_whole_regions(tmp_path):
    callbacks.save_model(build_model("small", "none"), tmp_path / "model.keras", NOTHING)
    assert DenseModel(load_model(tmp_path / "model.keras")).stride == 32


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_model_is_an_error_that_says_what_to_do(share, tmp_path):
    callbacks.save_model(tiny_model(), tmp_path / "last.keras", NOTHING)
    whole = (tmp_path / "last.keras").read_bytes()
    (tmp_path / "last.keras").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="damaged"):
        load_model(tmp_path / "last.keras")
