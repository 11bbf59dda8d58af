"""Augmentation: exact orientations, HSV as libraries define it, no hidden state."""

import numpy as np
import pytest
from skimage.color import hsv2rgb, rgb2hsv

from bach.augment import Augmentation, change, orient, orient_back


@pytest.fixture
def patch():
    return np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)


def _flips(index):
    return np.array([index & 1, index >> 1 & 1, index >> 2 & 1, 0, 1, 1], np.float32)


def test_neutral_parameters_change_nothing(patch):
    assert np.array_equal(change(patch, _flips(0)), patch)


def test_the_eight_orientations_are_exact_and_all_different(patch):
    seen = {change(patch, _flips(index)).tobytes() for index in range(8)}
    expected = {
        np.rot90(turned, k).tobytes() for turned in (patch, patch[:, ::-1]) for k in range(4)
    }
    assert seen == expected
    assert len(seen) == 8


def test_hsv_shifts_agree_with_scikit_image(patch):
    rng = np.random.default_rng(1)
    for _ in range(10):
        hue, saturation, value = rng.uniform([-0.5, 0.5, 0.5], [0.5, 1.5, 1.5])
        hsv = rgb2hsv(patch)
        hsv[..., 0] = (hsv[..., 0] + hue) % 1
        hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
        hsv[..., 2] = np.clip(hsv[..., 2] * value, 0, 1)
        seen = change(patch, np.array([0, 0, 0, hue, saturation, value]))
        # Eight bits of hue, saturation and value: a few gray values at most.
        assert np.abs(seen - 255 * hsv2rgb(hsv)).max() < 8
        assert np.abs(seen - 255 * hsv2rgb(hsv)).mean() < 1.5


def test_gray_stays_gray_whatever_the_shift():
    gray = np.full((4, 4, 3), 240, np.uint8)
    assert (change(gray, np.array([1, 0, 1, 0.3, 1.5, 0.9])) == 216).all()


def test_drawn_parameters_lie_in_their_ranges_and_are_seeded():
    drawn = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert set(np.unique(drawn[:, :3])) == {0, 1}
    ranges = ((-0.1, 0.1), (0.8, 1.2), (0.7, 1.3))
    for column, (low, high) in zip(drawn[:, 3:].T, ranges, strict=True):
        assert low <= column.min() < low + 0.01
        assert high - 0.01 < column.max() <= high
    again = Augmentation(0.1, 0.2, 0.3).draw(np.random.default_rng(0), 4000)
    assert np.array_equal(drawn, again)


def test_the_eight_orientations_differ_and_turn_back():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), np.uint8)
    turned = [orient(image, index) for index in range(8)]
    assert len({array.tobytes() for array in turned}) == 8
    assert all((orient_back(array, index) == image).all() for index, array in enumerate(turned))
