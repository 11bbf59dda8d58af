"""What can be H&E in bright field, and what cannot."""

import numpy as np
import pytest

from bach.brightfield import judge, one_color
from bach.toy import painter


@pytest.fixture(scope="module")
def slide():
    """A thumbnail of painted tissue on glass."""
    rng = np.random.default_rng(0)
    tissue = np.zeros((300, 400), np.float32)
    tissue[50:250, 100:300] = 1
    return painter.paint_tissue(rng, 3, 400, 300, 4.0, painter.make_look(rng, 0.5), tissue)


def fluorescence(slide):
    """Blue nuclei and little else on black."""
    light = 255 - slide[..., :1].astype(int)
    return np.clip(np.concatenate([light * 0, light // 8, light], 2) - 20, 0, 255).astype(np.uint8)


def test_painted_and_tinged_slides_pass(slide):
    assert judge(slide) == ((), ())
    for tinge in ((1, 0.96, 1), (0.96, 1, 0.97), (0.93, 0.97, 1), (0.8, 0.8, 0.79)):
        assert judge((slide * tinge).astype(np.uint8)) == ((), ())
    assert judge(slide[50:250, 100:300]) == ((), ())  # nothing but tissue
    assert judge(slide[:40]) == ((), ())  # nothing but glass


def test_what_is_dark_cannot_be_bright_field(slide):
    spots = np.zeros_like(slide)
    spots[100:120, 100:120] = (20, 40, 220)
    for dark in (fluorescence(slide), 255 - slide, slide // 16, spots, spots * 0):
        assert "dark" in judge(dark).impossible[0]


def test_inverted_colours_of_white_glass_are_known_by_the_green_tissue(slide):
    saturated = np.where(slide.min(axis=2, keepdims=True) > 215, 255, slide).astype(np.uint8)
    assert judge(saturated) == ((), ())
    (reason,) = judge(255 - saturated).impossible
    assert "inverted" in reason


@pytest.mark.parametrize("channel", range(3))
def test_one_channel_of_three_cannot_be_h_and_e(slide, channel):
    plane = np.repeat(slide[..., channel : channel + 1], 3, axis=2)
    assert "no colour" in judge(plane).impossible[0]


def test_green_tissue_black_parts_and_one_colour_are_doubtful(slide):
    swapped = slide[..., [1, 0, 2]]
    assert judge(swapped).doubtful == ("its colours are green rather than pink and violet",)
    half = slide.copy()
    half[:, 200:] = 0
    assert judge(half) == ((), ("50% of it is black: lost, or not scanned",))
    for level in (255, 240):
        white = np.full((50, 60, 3), level, np.uint8)
        verdict = judge(white)
        assert not verdict.impossible
        assert f"one colour everywhere ({level}, {level}, {level})" in verdict.doubtful[0]


def test_pictures_of_any_size_have_a_verdict():
    for shape in ((0, 5, 3), (1, 1, 3), (3, 2000, 3)):
        judge(np.full(shape, 200, np.uint8))
        one_color(np.full(shape, 200, np.uint8))


def test_a_photo_half_of_one_colour_is_noticed_but_white_is_not(slide):
    assert one_color(slide) == ""
    for color in ((0, 0, 0), (128, 128, 128)):
        lost = slide.copy()
        lost[100:] = color
        assert "67% of it is exactly one colour" in one_color(lost)
    fat = slide.copy()
    fat[100:] = 255
    assert one_color(fat) == ""
