"""Pictures: sizes, colours, and that nothing is cut off."""

import numpy as np
import pytest

from bach.classes import CLASSES, COLORS
from bach.core.pictures import contact_sheet, legend, mask_and_grid, overlay, write_png


@pytest.mark.parametrize("width", [700, 400, 200, 100])
def test_a_legend_shows_all_four_colours_whatever_the_width(width):
    strip = legend(width, CLASSES, COLORS)
    assert strip.shape[1] == width
    for color in COLORS:
        assert (strip == color).all(axis=2).sum() == 15 * 15
    # The right edge stays white: no name is cut off.
    assert (strip[:, -1] == 255).all()


def test_an_overlay_leaves_normal_clear_and_colours_the_rest():
    thumbnail = np.full((60, 500, 3), 200, np.uint8)
    classes = np.zeros((60, 500), np.uint8)
    classes[20:40, 100:200] = 3
    picture = overlay(thumbnail, classes, CLASSES, COLORS)
    assert (picture[5, 5] == 200).all()
    expected = 0.55 * 200 + 0.45 * np.array(COLORS[3])
    assert np.abs(picture[30, 150] - expected).max() <= 1
    assert (picture[20, 150] == COLORS[3]).all()  # its outline


def test_a_contact_sheet_has_room_for_every_picture_and_none():
    images = [np.full((299, 299, 3), 50 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, [str(i) for i in range(5)], columns=2, side=40)
    assert sheet.shape == (3 * (40 + 22) + 6, 2 * 46 + 6, 3)
    assert (sheet[6 + 20, 6 + 20] == 0).all()
    assert (sheet[2 * 62 + 26, 26] == 200).all()
    assert contact_sheet([], []).ndim == 3


def test_a_grid_is_drawn_where_the_patches_are():
    thumbnail = np.full((100, 400, 3), 250, np.uint8)
    boxes = np.array([[1000, 200, 500]])
    tissue = np.ones((100, 400), bool)
    picture = mask_and_grid(thumbnail, tissue, boxes, np.array([1]), 10, CLASSES, COLORS)
    # The middle fifth of the box: 120..130 across, 40..50 down, in thumbnail px.
    assert (picture[40, 120] == COLORS[1]).all()
    assert (picture[50, 130] == COLORS[1]).all()
    assert (picture[45, 125] == 250).all()


def test_a_picture_is_written_in_rgb(tmp_path):
    from PIL import Image

    write_png(tmp_path / "red.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert np.asarray(Image.open(tmp_path / "red.png"))[0, 0].tolist() == [255, 0, 0]
