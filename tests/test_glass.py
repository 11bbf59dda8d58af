"""Tissue by its colour relative to the glass."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from skimage.color import rgb2lab

from bach.glass import find_glass, stained
from bach.tissue import pen_mask, tissue_mask

PALE, EOSIN, HAEMATOXYLIN, RED_INK = (236, 205, 224), (220, 130, 175), (95, 60, 130), (215, 15, 25)
GLASSES = {
    "neutral": (243, 243, 243),
    "slightly green": (240, 243, 240),
    "green": (232, 243, 234),
    "pink": (246, 240, 243),
    "yellow": (244, 242, 230),
    "blue": (236, 241, 247),
    "dim": (205, 206, 203),
}


def slide(glass, share, color=EOSIN, seed=0):
    """Noisy glass of a colour with a square of tissue seen through it, and where that is."""
    rgb = np.full((200, 300, 3), glass, float)
    side = round((share * 60000) ** 0.5)
    where = np.zeros((200, 300), bool)
    where[20 : 20 + side, 30 : 30 + side] = True
    rgb[where] *= np.array(color) / 243
    noise = np.random.default_rng(seed).normal(0, 1.2, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8), where


def inside(mask):
    """Away from the edge, which is blurred."""
    return binary_erosion(mask, iterations=3, border_value=1)


@pytest.mark.parametrize("glass", GLASSES)
@pytest.mark.parametrize("share", [0.002, 0.02, 0.4])
@pytest.mark.parametrize("color", [PALE, EOSIN, HAEMATOXYLIN])
def test_tissue_is_found_on_glass_of_any_tinge_however_little(glass, share, color):
    rgb, where = slide(GLASSES[glass], share, color)
    mask = stained(rgb)
    assert mask[inside(where)].all()
    assert not mask[inside(~where)].any()


def test_where_the_papers_rule_fails_this_one_does_not():
    rgb, where = slide(GLASSES["slightly green"], 0.01)
    assert not tissue_mask(rgb).any()
    assert stained(rgb)[inside(where)].all()
    rgb, where = slide(GLASSES["neutral"], 0.002)
    assert tissue_mask(rgb)[~where].mean() > 0.3
    assert stained(rgb)[~where].mean() < 0.001


@pytest.mark.parametrize("glass", GLASSES)
def test_bare_glass_has_no_tissue(glass):
    rgb, _ = slide(GLASSES[glass], 0)
    assert not stained(rgb).any()


def test_the_glass_is_the_brightest_large_thing_not_the_largest():
    rgb, _ = slide(GLASSES["neutral"], 0.6, PALE)
    color = find_glass(rgb2lab(rgb)).color
    assert np.abs(color - rgb2lab(np.full((1, 1, 3), 243, np.uint8))[0, 0]).max() < 0.7


def test_a_picture_without_glass_is_compared_with_white():
    rgb = np.full((60, 60, 3), HAEMATOXYLIN, np.uint8)
    assert stained(rgb).all()
    assert find_glass(rgb2lab(rgb)).color[0] == 97


def test_specks_and_pinholes_are_left_out():
    rgb, where = slide(GLASSES["neutral"], 0.2)
    rgb[150:153, 250:253] = EOSIN
    rgb[40:43, 50:53] = GLASSES["neutral"]
    mask = stained(rgb)
    assert mask[inside(where)].all()
    assert not mask[140:, 200:].any()


def test_gray_dust_is_no_tissue():
    rgb, _ = slide(GLASSES["green"], 0)
    rgb[50:90, 50:90] = (rgb[50:90, 50:90] * 0.6).astype(np.uint8)
    assert not stained(rgb).any()


def test_ink_and_its_rim_are_left_out_if_given():
    rgb, where = slide(GLASSES["neutral"], 0.1)
    rgb[120:150, 150:290] = RED_INK
    assert stained(rgb)[125:145, 160:280].all()
    mask = stained(rgb, pen_mask(rgb))
    assert not mask[110:160, 140:].any()
    assert mask[inside(where)].all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (0, 5, 3), (5, 0, 3), (1, 400, 3)])
def test_tiny_and_empty_pictures_give_empty_masks(shape):
    mask = stained(np.full(shape, 240, np.uint8))
    assert mask.shape == shape[:2]
    assert not mask.any()
