"""Augmentation: exact orientations, HSV as libraries define it, no hidden state."""

import keras
import numpy as np
import pytest
from skimage.color import hsv2rgb, rgb2hsv

from bach.network.augment import (
    Augment,
    Augmentation,
    change,
    orient,
    orient_back,
    with_augmentation,
)


@pytest.fixture
def patch():
    return np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)


def _changed(patches, *parameters):
    """Patches changed by one row of parameters each; a single patch by all of them."""
    parameters = np.array(parameters, np.float32)
    patches = np.broadcast_to(patches, (len(parameters), *patches.shape[-3:]))
    return keras.ops.convert_to_numpy(
        change(*map(keras.ops.convert_to_tensor, (patches, parameters)))
    )


def _flips(index):
    return [index & 1, index >> 1 & 1, index >> 2 & 1, 0, 1, 1]


def test_neutral_parameters_change_nothing(patch):
    assert np.abs(_changed(patch, _flips(0)) - patch).max() < 1e-3


def test_the_eight_orientations_are_exact_and_all_different(patch):
    turned = np.rint(_changed(patch, *map(_flips, range(8)))).astype(np.uint8)
    seen = {array.tobytes() for array in turned}
    expected = {
        np.rot90(flipped, k).tobytes() for flipped in (patch, patch[:, ::-1]) for k in range(4)
    }
    assert seen == expected
    assert len(seen) == 8


def test_a_photo_that_is_not_square_keeps_its_shape(patch):
    photo = patch[:6]
    one, other = _changed(photo, [0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1])
    assert np.abs(one - photo[:, ::-1]).max() < 1e-3
    assert np.array_equal(one, other)


def test_hsv_shifts_agree_with_scikit_image(patch):
    rng = np.random.default_rng(1)
    shifts = rng.uniform([-0.5, 0.5, 0.5], [0.5, 1.5, 1.5], (10, 3))
    changed = _changed(patch, *np.hstack([np.zeros((10, 3)), shifts]))
    for (hue, saturation, value), seen in zip(shifts, changed, strict=True):
        hsv = rgb2hsv(patch)
        hsv[..., 0] = (hsv[..., 0] + hue) % 1
        hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
        hsv[..., 2] = np.clip(hsv[..., 2] * value, 0, 1)
        assert np.abs(seen - 255 * hsv2rgb(hsv)).max() < 0.01


def test_gray_stays_gray_whatever_the_shift():
    gray = np.full((4, 4, 3), 240, np.uint8)
    assert np.abs(_changed(gray, [1, 0, 1, 0.3, 1.5, 0.9]) - 216).max() < 1e-3


def test_what_is_trained_sees_changed_patches_and_has_the_weights_of_the_network(patch):
    inputs = keras.Input((9, 9, 3))
    mean = keras.layers.GlobalAveragePooling2D()(inputs)
    network = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(mean))
    learner = with_augmentation(network)
    parameters = np.array([[1, 0, 1, 0.1, 1.2, 0.8]], np.float32)
    assert all(a is b for a, b in zip(learner.weights, network.weights, strict=True))
    seen = learner.predict_on_batch((patch[None], parameters))
    expected = network.predict_on_batch(_changed(patch, parameters[0]))
    assert np.allclose(seen, expected, rtol=1e-5)


def test_colours_are_changed_in_full_precision_whatever_the_policy(patch):
    parameters = np.array([[1, 0, 1, 0.1, 1.2, 0.8]], np.float32)
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        seen = keras.ops.convert_to_numpy(Augment()(patch[None], parameters))
    finally:
        keras.config.set_dtype_policy("float32")
    assert seen.dtype == np.float32
    assert np.allclose(seen, _changed(patch, parameters[0]), atol=1e-3)


def test_drawn_parameters_lie_in_their_ranges_and_are_seeded():
    drawn = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert set(np.unique(drawn[:, :3])) == {0, 1}
    ranges = ((-0.1, 0.1), (0.8, 1.2), (0.7, 1.3))
    for column, (low, high) in zip(drawn[:, 3:].T, ranges, strict=True):
        assert low <= column.min() < low + 0.01
        assert high - 0.01 < column.max() <= high
    again = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert np.array_equal(drawn, again)


def test_contrast_stretches_each_channel_about_its_mean(patch):
    parameters = np.array([[0, 0, 0, 0, 1, 1, 0.5], [0, 0, 0, 0, 1, 1, 1.6]], np.float32)
    seen = keras.ops.convert_to_numpy(Augment()(np.stack([patch, patch]), parameters))
    pixels = patch.astype(float)
    mean = pixels.mean(axis=(0, 1))
    for factor, one in zip((0.5, 1.6), seen, strict=True):
        assert np.abs(one - np.clip(mean + factor * (pixels - mean), 0, 255)).max() < 0.02


def test_contrast_is_drawn_after_all_else():
    without = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    drawn = Augmentation(0.1, 0.2, 0.3, 0.75).draw(np.random.default_rng(0), 4000)
    assert np.array_equal(drawn[:, :6], without)
    assert 0.25 <= drawn[:, 6].min() < 0.27
    assert 1.73 < drawn[:, 6].max() <= 1.75


def test_the_eight_orientations_differ_and_turn_back():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), np.uint8)
    turned = [orient(image, index) for index in range(8)]
    assert len({array.tobytes() for array in turned}) == 8
    assert all((orient_back(array, index) == image).all() for index, array in enumerate(turned))
