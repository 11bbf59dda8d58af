"""The copy for inference computes what the model does."""

import keras
import numpy as np
import pytest

from bach.network.fold_norms import fast_clone, resized_clone
from bach.network.patch_network import build_model, load_model


def _scramble(model):
    """Give every normalisation statistics and weights as after a training."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _scramble(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.variables:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(1).integers(0, 256, (2, 299, 299, 3)).astype(np.float32)


@pytest.mark.parametrize("backbone", ["small", "MobileNet"])
def test_folding_changes_nothing_but_rounding(backbone, patches):
    model = build_model(backbone, "none")
    _scramble(model)
    # The layer before the top tells more than four probabilities.
    read = lambda m: keras.Model(m.input, m.get_layer("pool").output).predict_on_batch(patches)
    fast = fast_clone(model)
    before, after = read(model), read(fast)
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    assert before.std() > 0.01
    assert np.allclose(fast.predict_on_batch(patches), model.predict_on_batch(patches), atol=1e-5)
    left = [
        layer
        for part in (fast, *(x for x in fast.layers if isinstance(x, keras.Model)))
        for layer in part.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert not left


def test_a_normalisation_that_is_not_alone_behind_its_layer_stays():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="read_twice")(inputs)
    y = keras.layers.BatchNormalization(name="kept")(x)
    y = keras.layers.Conv2D(4, 1, activation="relu", name="bent")(keras.layers.Add()([x, y]))
    y = keras.layers.BatchNormalization(name="kept_too")(y)
    model = keras.Model(inputs, y)
    _scramble(model)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    fast = fast_clone(model)
    assert isinstance(fast.get_layer("kept"), keras.layers.BatchNormalization)
    assert isinstance(fast.get_layer("kept_too"), keras.layers.BatchNormalization)
    assert np.allclose(fast.predict_on_batch(image), model.predict_on_batch(image), atol=1e-5)


def test_the_scaled_sum_of_inception_resnet_is_folded_too():
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    inputs = keras.Input((8, 8, 3))
    wide = keras.layers.Conv2D(4, 1, activation="relu")(inputs)
    up = keras.layers.Conv2D(4, 1, bias_initializer="ones", name="up")(wide)
    x = CustomScaleLayer(0.17, name="sum")([wide, up])
    first = keras.layers.Conv2D(4, 1, name="first")(x)
    x = CustomScaleLayer(0.5, name="other")([first, x])  # the scaled one is read twice
    model = keras.Model(inputs, x)
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    fast = fast_clone(model)
    assert isinstance(fast.get_layer("sum"), keras.layers.Add)
    assert isinstance(fast.get_layer("other"), CustomScaleLayer)
    assert np.allclose(fast.predict_on_batch(image), model.predict_on_batch(image), atol=1e-5)


def test_a_model_saved_with_a_list_of_one_input_can_be_used(patches, tmp_path):
    model = build_model("small", "none")
    listed = keras.Model(model.inputs, model.outputs)
    listed.save(tmp_path / "listed.keras")
    fast = fast_clone(load_model(tmp_path / "listed.keras"))
    assert np.allclose(fast.predict_on_batch(patches), model.predict_on_batch(patches), atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_close_and_its_top_is_not_half(precision, patches):
    keras.utils.set_random_seed(0)
    model = build_model("small", "none")
    half = fast_clone(model, precision=precision)
    assert half.get_layer("down3").compute_dtype == precision.removeprefix("mixed_")
    assert half.get_layer("dense").compute_dtype == "float32"
    difference = half.predict_on_batch(patches) - model.predict_on_batch(patches)
    assert 0 < np.abs(difference).max() < 0.01


def test_the_precision_of_a_copy_is_the_one_asked_for_not_the_one_trained_in(patches):
    keras.utils.set_random_seed(0)
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        mixed = build_model("small", "none")
        resized = resized_clone(mixed, 331, 427)
    finally:
        keras.config.set_dtype_policy("float32")
    assert resized.get_layer("down3").compute_dtype == "bfloat16"
    assert resized.get_layer("down3").variable_dtype == "float32"  # it is to be trained
    assert resized.get_layer("classes").compute_dtype == "float32"
    assert resized_clone(mixed, 331, 427).get_layer("down3").compute_dtype == "float32"
    plain = build_model("small", "none")
    plain.set_weights(mixed.get_weights())
    fast = fast_clone(mixed)
    assert fast.get_layer("down3").compute_dtype == "float32"
    assert np.allclose(fast.predict_on_batch(patches), plain.predict_on_batch(patches), atol=1e-5)
