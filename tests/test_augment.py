"""Augmentation: exact orientations, HSV as libraries define it, no hidden state."""

import keras
import numpy as np
import pytest
from skimage.color import hsv2rgb, rgb2hsv

from bach.augment import Augment, Augmentation, shift_hsv

NEUTRAL = [0, 0, 0, 0, 1, 1]


@pytest.fixture
def patches():
    return np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), np.uint8)


def _apply(patches, parameters):
    result = Augment()([patches, np.asarray(parameters, np.float32)])
    return keras.ops.convert_to_numpy(result)


def test_neutral_parameters_change_nothing(patches):
    assert np.abs(_apply(patches, [NEUTRAL] * 8) - patches).max() < 1e-3


def test_the_eight_orientations_are_exact_and_all_different(patches):
    one = patches[:1].repeat(8, axis=0)
    flips = [[i & 1, i >> 1 & 1, i >> 2 & 1, 0, 1, 1] for i in range(8)]
    seen = np.rint(_apply(one, flips)).astype(np.uint8)
    expected = {
        np.rot90(turned, k).tobytes() for turned in (one[0], one[0][:, ::-1]) for k in range(4)
    }
    assert {image.tobytes() for image in seen} == expected


def test_hsv_shifts_agree_with_scikit_image(patches):
    rng = np.random.default_rng(1)
    for _ in range(5):
        hue, saturation, value = rng.uniform([-0.5, 0.5, 0.5], [0.5, 1.5, 1.5])
        hsv = rgb2hsv(patches)
        hsv[..., 0] = (hsv[..., 0] + hue) % 1
        hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
        hsv[..., 2] = np.clip(hsv[..., 2] * value, 0, 1)
        shifts = (np.full((8, 1, 1), x, np.float32) for x in (hue, saturation, value))
        seen = keras.ops.convert_to_numpy(shift_hsv(patches.astype(np.float32), *shifts))
        assert np.abs(seen - 255 * hsv2rgb(hsv)).max() < 0.01


def test_gray_stays_gray_whatever_the_shift():
    gray = np.full((1, 4, 4, 3), 240, np.uint8)
    seen = _apply(gray, [[0, 0, 0, 0.3, 1.5, 0.9]])
    assert np.abs(seen - 216).max() < 0.01


def test_drawn_parameters_lie_in_their_ranges_and_are_seeded():
    drawn = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert set(np.unique(drawn[:, :3])) == {0, 1}
    for column, (low, high) in zip(
        drawn[:, 3:].T, ((-0.1, 0.1), (0.8, 1.2), (0.7, 1.3)), strict=True
    ):
        assert low <= column.min() < low + 0.01
        assert high - 0.01 < column.max() <= high
    again = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert np.array_equal(drawn, again)
