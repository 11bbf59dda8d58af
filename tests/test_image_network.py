"""The image network: what it starts from, what it sees, and what it must not be used for."""

import keras
import numpy as np
import pandas as pd
import pytest

import train_part_a
from bach import submission
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.network.augment import orientations
from bach.network.image_network import GAIN, build_image_network, is_image_network, photo_input
from bach.network.patch_network import build_model, load_model
from bach.patches import View

OPTIONS = ["--backbone", "small", "--weights", "none", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def patch_network():
    keras.utils.set_random_seed(0)
    return build_model("small", "none")


@pytest.fixture(scope="module")
def network(patch_network):
    return build_image_network(patch_network, 2048, 1536)


@pytest.fixture(scope="module")
def photos():
    coarse = np.random.default_rng(0).integers(0, 256, (2, 42, 54, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :331, :427].astype(np.float32)


def test_it_takes_a_whole_photo_and_starts_from_the_patch_network(patch_network, network, photos):
    assert network.input_shape == (None, 331, 427, 3)
    assert is_image_network(network)
    assert not is_image_network(patch_network)
    # A cell of the heatmap whose window lies within the photo is the prediction of a patch:
    # the window of 8 features that begins at (1, 3) is the patch at 32 and 96 px.
    heat = keras.Model(network.input, network.get_layer("strongest").input)
    cells = heat.predict_on_batch(photos)
    assert cells.shape == (2, 9, 12, 4)
    inner = keras.Model(patch_network.input, patch_network.get_layer("pool").input)
    whole = keras.Model(network.input, network.get_layer("pool").input).predict_on_batch(photos)
    patch = inner.predict_on_batch(photos[:, 32:331, 96:395])
    # But for the zeros that one residual layer pads a patch with.
    assert np.abs(patch[:, 1:-1, 1:-1] - whole[:, 2:8, 4:10]).max() < 1e-4
    top = keras.Model(network.get_layer("pool").output, heat.output)
    mean = whole[:, 1:9, 3:11].mean(axis=(1, 2))
    expected = top.predict_on_batch(np.tile(mean[:, None, None], (1, 9, 12, 1)))[:, 0, 0]
    # Padding of 7: three before, four after.
    assert np.allclose(cells[:, 1 + 3, 3 + 3], expected, atol=1e-5)


def test_its_first_answer_is_the_mean_of_the_strongest_cells(network, photos):
    probs = network.predict_on_batch(photos)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    strongest = keras.Model(network.input, network.get_layer("strongest").output)
    means = strongest.predict_on_batch(photos).mean(axis=(1, 2))
    logits = GAIN * means
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(probs, expected, atol=1e-5)


def test_a_margin_is_seen_but_not_judged():
    keras.utils.set_random_seed(0)
    network = build_image_network(build_model("small", "none", view=View(32)), 2048, 1536)
    assert network.input_shape[1:3] == (331 + 64, 427 + 64)
    assert network.get_layer("pool").output.shape[1:3] == (9, 12)


def test_a_photo_is_shrunk_exactly_and_mirrored_beyond_its_edges():
    photo = np.random.default_rng(0).integers(0, 256, (1536, 2048, 3), np.uint8)
    seen = photo_input(photo, (331, 427))
    assert seen.shape == (331, 427, 3)
    # 119 px are missing in height and 87 in width; half of them lie before the photo.
    block = photo[5 * 20 - 59 :, 5 * 30 - 43 :][:5, :5].reshape(-1, 3).mean(axis=0)
    assert np.abs(seen[20, 30] - block).max() <= 0.5
    # 59 px above the photo's first row is its 59th.
    mirrored = photo[55:60, 5 * 30 - 43 :][:, :5].reshape(-1, 3).mean(axis=0)
    assert np.abs(seen[0, 30] - mirrored).max() <= 0.5
    with pytest.raises(InputError, match="no photos larger"):
        photo_input(photo, (299, 427))


def test_photos_that_are_not_square_have_four_orientations(photos):
    assert orientations(photos, True) == [0, 2, 4, 6]
    assert orientations(photos[:, :331, :331], True) == list(range(8))
    assert orientations(photos, False) == [0]


@pytest.mark.slow
def test_the_script_trains_it_from_the_patch_models_and_submits(toy, tmp_path):
    words = ["--data-dir", str(toy), "--folds", f"{toy}/part_a.csv", "--limit", "3", *OPTIONS]
    words += ["--fold", "0"]
    train_part_a.main([*words, "--run-dir", f"{tmp_path}/patch"])
    # Mixed precision, though the patch network is in float32.
    more = ["--image-network", f"{tmp_path}/patch", "--precision", "mixed_bfloat16"]
    train_part_a.main([*words, *more, "--run-dir", f"{tmp_path}/image"])
    one, other = (pd.read_csv(tmp_path / f"{x}/predictions.csv") for x in ("patch", "image"))
    columns = ["image_id", "label", "patient", "fold"]
    assert one[columns].equals(other[columns])
    assert np.abs(one[list(PROB_COLUMNS)] - other[list(PROB_COLUMNS)]).to_numpy().max() > 1e-3
    history = pd.read_csv(tmp_path / "image/fold_0/history.csv")
    assert {"loss", "heldout_image_accuracy"} <= set(history.columns)
    assert np.isfinite(history["loss"]).all()
    trained = load_model(tmp_path / "image/fold_0/model.keras")
    assert trained.get_layer("down3").compute_dtype == "bfloat16"
    assert (tmp_path / "image/fold_0/batch.png").stat().st_size > 1000

    words_a = ["part-a", "--data-dir", str(toy), "--model-dir", f"{tmp_path}/image", "--out"]
    for name, tta in (("plain", []), ("tta", ["--tta"])):
        submission.main([*words_a, f"{tmp_path}/{name}.csv", *tta])
    plain, tta = (
        pd.read_csv(tmp_path / f"{x}_predictions.csv")[list(PROB_COLUMNS)].to_numpy()
        for x in ("plain", "tta")
    )
    assert 1e-6 < np.abs(plain - tta).max() < 0.5

    # Another split: its held-out photos were seen by the patch models.
    folds = pd.read_csv(toy / "part_a.csv")
    folds["fold"] = (folds["fold"] + 1) % 3
    folds.to_csv(tmp_path / "other.csv", index=False)
    words[3] = f"{tmp_path}/other.csv"
    with pytest.raises(InputError, match="must not have seen"):
        train_part_a.main([*words, *more, "--run-dir", f"{tmp_path}/leak"])
    assert not (tmp_path / "leak").exists()
