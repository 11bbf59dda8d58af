"""The network: what goes in, what comes out, and that its files open anywhere."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import build_model, load_model, view_of
from bach.patches import View


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return build_model("small", "none")


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(0, 256, (6, 299, 299, 3)).astype(np.float32)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_probabilities_sum_to_1(patches, head):
    probs = build_model("small", "none", head).predict_on_batch(patches)
    assert probs.shape == (6, 4)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert (probs >= 0).all()


def test_the_sigmoid_head_is_four_sigmoids_divided_by_their_sum(small, patches):
    logarithms = keras.Model(small.inputs, small.get_layer("classes").output)
    raw = np.exp(logarithms.predict_on_batch(patches))
    inner = keras.Model(small.inputs, small.get_layer("dropout").output).predict_on_batch(patches)
    kernel, bias = small.get_layer("classes").get_weights()
    assert np.allclose(raw, 1 / (1 + np.exp(-inner @ kernel - bias)), atol=1e-6)
    assert np.allclose(
        small.predict_on_batch(patches), raw / raw.sum(axis=1, keepdims=True), atol=1e-6
    )
    assert small.get_layer("dense").units == 2048
    assert small.get_layer("dropout").rate == 0.5


def test_an_untrained_network_has_a_loss_of_about_ln_4(small, patches):
    probs = small.predict_on_batch(patches)
    losses = [-np.log(probs[:, label]).mean() for label in range(4)]
    assert np.mean(losses) == pytest.approx(np.log(4), abs=0.15)


@pytest.mark.slow
def test_the_small_backbone_has_the_geometry_of_inception_resnet_v2():
    keras.backend.clear_session()
    pools = []
    for backbone in ("small", "InceptionResNetV2"):
        model = build_model(backbone, "none")
        pools.append(model.get_layer("pool").input.shape[1:3])
    assert pools[0] == pools[1] == (8, 8)


def test_a_margin_is_seen_but_not_pooled(patches):
    keras.utils.set_random_seed(0)
    model = build_model("small", "none", view=View(64))
    assert view_of(model) == View(64)
    assert model.input_shape[1] == 427
    assert model.get_layer("pool").input.shape[1:3] == (8, 8)
    around = np.full((6, 427, 427, 3), 255, np.float32)
    around[:, 64:-64, 64:-64] = patches
    # The small backbone looks 22 px around; what lies beyond has no effect.
    other = np.zeros_like(around)
    other[:, 32:-32, 32:-32] = around[:, 32:-32, 32:-32]
    one, two = model.predict_on_batch(around), model.predict_on_batch(other)
    assert np.allclose(one, two, atol=1e-6)
    other[:, 62:-62, 62:-62] = 0
    other[:, 64:-64, 64:-64] = patches
    assert np.abs(model.predict_on_batch(other) - one).max() > 1e-5


def test_a_margin_that_is_no_multiple_of_the_stride_is_refused():
    for margin in (20, 16, -32):
        with pytest.raises(InputError, match="multiple of the network's stride"):
            build_model("small", "none", view=View(margin))


def _foreign(side):
    inputs = keras.Input((side, side, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x), name="foreign")


def test_a_model_states_its_view_by_its_layers_and_not_by_its_size():
    for side in (224, 363, 598):
        with pytest.raises(InputError, match=f"foreign, which takes {side}x{side} px"):
            view_of(_foreign(side))
    assert view_of(_foreign(299)) == View()


def test_a_saved_model_opens_without_this_package(small, patches, tmp_path):
    small.save(tmp_path / "model.keras")
    np.save(tmp_path / "patches.npy", patches)
    code = (
        "import keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('probs.npy', model.predict_on_batch(np.load('patches.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.allclose(np.load(tmp_path / "probs.npy"), small.predict_on_batch(patches), atol=1e-6)


@pytest.mark.parametrize(
    "backbone", ["MobileNetV3Small", pytest.param("NASNetMobile", marks=pytest.mark.slow)]
)
def test_any_network_of_keras_applications_is_a_backbone(backbone, patches):
    keras.backend.clear_session()
    probs = build_model(backbone, "none").predict_on_batch(patches)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-4)


def test_preprocessing_is_that_of_the_application():
    model = build_model("VGG16", "none")
    gray = np.full((1, 299, 299, 3), 200, np.float32)
    scaled = keras.applications.vgg16.preprocess_input(gray.copy())
    expected = model.get_layer("vgg16").predict_on_batch(scaled)
    features = keras.Model(model.inputs, model.get_layer("pool").input)
    assert np.allclose(features.predict_on_batch(gray), expected, atol=1e-4)


def test_weights_of_a_saved_model_are_where_training_starts(small, patches, tmp_path):
    small.save(tmp_path / "model.keras")
    again = build_model("small", str(tmp_path / "model.keras"))
    assert np.allclose(again.predict_on_batch(patches), small.predict_on_batch(patches), atol=1e-6)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="Unknown backbone"):
        build_model("Inception9", "none")
    with pytest.raises(InputError, match="no ImageNet weights"):
        build_model("small", "imagenet")
    with pytest.raises(InputError, match="sigmoid or softmax"):
        build_model("small", "none", "relu")
    with pytest.raises(InputError, match="neither"):
        build_model("small", "absent.keras")
    with pytest.raises(InputError, match="No model at"):
        load_model(tmp_path / "absent.keras")
    (tmp_path / "bad.keras").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path / "bad.keras")


def test_two_magnifications_see_the_whole_patch_and_its_middle_enlarged(patches):
    keras.utils.set_random_seed(0)
    model = build_model("small", "none", view=View(zoom=2))
    assert model.input_shape == (None, 598, 598, 3)
    assert view_of(model) == View(zoom=2)
    large = patches.repeat(2, axis=1).repeat(2, axis=2)
    far = keras.Model(model.input, model.get_layer("far").output)
    assert np.allclose(far.predict_on_batch(large), patches, atol=1e-3)
    both = keras.Model(model.input, model.get_layer("both").output)
    whole = both.predict_on_batch(large)
    edge = large.copy()
    edge[:, :100] = 0  # beyond the middle
    edge = both.predict_on_batch(edge)
    channels = whole.shape[1] // 2
    assert np.abs(whole[:, :channels] - edge[:, :channels]).max() > 1e-3
    assert np.allclose(whole[:, channels:], edge[:, channels:], atol=1e-6)
    assert np.allclose(
        fast_clone(model).predict_on_batch(large), model.predict_on_batch(large), atol=1e-5
    )
    with pytest.raises(InputError, match="has no margin"):
        build_model("small", "none", view=View(32, 2))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = build_model("small", "none")
    kernel, bias = model.get_layer("classes").get_weights()
    model.get_layer("classes").set_weights([kernel, np.where([0, 1, 0, 0], value, bias)])
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    for use in (load_model, lambda file: build_model("small", str(file))):
        for file in ("m.keras", "m.weights.h5")[: 1 if use is load_model else 2]:
            with pytest.raises(InputError, match=r"finite weights[\s\S]*classes/bias"):
                use(tmp_path / file)


def test_layers_whose_names_cannot_be_used_are_refused(tmp_path):
    file = tmp_path / "m.keras"
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(4, name="a\nb")(x)).save(file)
    with pytest.raises(InputError, match=r"names cannot be used: 'a\\nb'"):
        load_model(file)
