"""Tissue masks of a slide: found, given, without pen marks."""

import cv2
import numpy as np
import pytest

from bach.core.errors import InputError
from bach.slides import Slide
from bach.tissue import map_downsample, slide_maps
from bach.toy.aperio import write_slide


def test_maps_have_16_level_0_pixels_a_pixel_on_the_challenges_slides():
    assert map_downsample(0.467) == 16
    assert map_downsample(0.25) == 30
    assert map_downsample(10.0) == 1


def test_a_mask_of_the_user_takes_the_place_of_the_found_one(tmp_path):
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    write_slide(tmp_path / "one.svs", pixels)
    (tmp_path / "masks").mkdir()
    with Slide(tmp_path / "one.svs") as slide:
        maps = slide_maps(slide, tmp_path / "masks")
        found, downsample = maps.tissue, maps.downsample
        assert downsample == 16
        assert found[:, 80:].all()
        assert not found[:, :70].any()
        mask = np.zeros((40, 60), np.uint8)
        mask[:20] = 255
        cv2.imwrite(str(tmp_path / "masks/one.png"), mask)
        given = slide_maps(slide, tmp_path / "masks").tissue
        assert given.shape == (100, 150)
        assert given[:50].all()
        assert not given[50:].any()
        (tmp_path / "masks/one.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match="tissue mask"):
            slide_maps(slide, tmp_path / "masks")


def test_a_pen_mark_is_no_tissue_if_asked_for(tmp_path):
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    pixels[:400, :400] = (200, 20, 40)  # red ink
    write_slide(tmp_path / "pen.svs", pixels)
    with Slide(tmp_path / "pen.svs") as slide:
        with_pen = slide_maps(slide).tissue
        without = slide_maps(slide, exclude_pen=True).tissue
    assert with_pen[:20, :20].all()
    assert not without[:20, :20].any()
    assert without[:, 80:].all()
