"""Pictures: what is read from every kind of file, and drawings of which nothing is cut off."""

import numpy as np
import pytest
from PIL import Image

from bach.classes import CLASSES, COLORS
from bach.core.errors import InputError
from bach.core.pictures import (
    contact_sheet,
    legend,
    mask_and_grid,
    overlay,
    read_header,
    read_indexed,
    read_rgb,
    write_indexed,
    write_png,
)

REMEDY = "Write it again."


# Files


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_picture_is_read_as_it_was_written(tmp_path, suffix):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / f"one{suffix}"
    Image.fromarray(rgb).save(path)
    assert np.array_equal(read_rgb(path, REMEDY), rgb)
    assert read_header(path, REMEDY) == (7, 5, "RGB")


def test_gray_palettes_and_transparency_become_red_green_and_blue(tmp_path):
    gray = np.array([[0, 7, 255]], np.uint8)
    for name, image in {
        "gray": Image.fromarray(gray),
        "transparent": Image.fromarray(np.dstack([gray, gray, gray, 255 - gray])),
        "deep": Image.fromarray(gray.astype(np.uint16)),
    }.items():
        image.save(tmp_path / f"{name}.png")
        assert (read_rgb(tmp_path / f"{name}.png", REMEDY) == gray[..., None]).all()
    write_indexed(tmp_path / "palette.png", np.array([[0, 1]], np.uint8), COLORS)
    assert read_rgb(tmp_path / "palette.png", REMEDY).tolist() == [[*map(list, COLORS[:2])]]


def test_what_is_written_with_a_palette_is_read_as_numbers(tmp_path):
    values = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    write_indexed(tmp_path / "map.png", values[:, ::-1], COLORS)
    assert np.array_equal(read_indexed(tmp_path / "map.png", REMEDY), values[:, ::-1])
    Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    assert np.array_equal(read_indexed(tmp_path / "deep.png", REMEDY), values * np.uint16(300))


def test_a_file_that_is_no_such_picture_is_refused_by_name_and_with_the_remedy(tmp_path):
    whole = tmp_path / "whole.png"
    write_png(whole, np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png", "absent.png"):
        for read in (read_rgb, read_indexed):
            with pytest.raises(InputError, match=rf"{name} must be[\s\S]*{REMEDY}"):
                read(tmp_path / name, REMEDY)
    with pytest.raises(InputError, match=r"mode P, L, 1[\s\S]*in mode RGB"):
        read_indexed(whole, REMEDY)
    with pytest.raises(InputError, match=r"mode L\.\nReceived: a picture in mode RGB"):
        read_rgb(whole, REMEDY, modes=("L",))


def test_a_picture_too_large_to_decode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    write_png(tmp_path / "large.png", np.zeros((7, 7, 3), np.uint8))
    with pytest.raises(InputError, match="49 pixels"):
        read_rgb(tmp_path / "large.png", REMEDY)


def test_a_picture_is_written_in_rgb(tmp_path):
    write_png(tmp_path / "red.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert np.asarray(Image.open(tmp_path / "red.png"))[0, 0].tolist() == [255, 0, 0]


# Drawings


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
