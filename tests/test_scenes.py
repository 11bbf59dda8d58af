"""Whole photos and slides of painted tissue."""

import numpy as np
import pytest

from bach.annotations import label_mask
from bach.toy.painter import make_look
from bach.toy.scenes import paint_photo, paint_slide

PLAIN = make_look(np.random.default_rng(0), 0.0)
SIZE = (1024, 768)


@pytest.fixture(scope="module")
def slide():
    return paint_slide(np.random.default_rng(1), PLAIN, SIZE, hole=True)


def test_a_photo_has_the_size_of_the_challenge():
    rgb = paint_photo(np.random.default_rng(0), 2, PLAIN)
    assert rgb.shape == (1536, 2048, 3)
    assert rgb.dtype == np.uint8


def test_glass_is_near_white_and_tissue_is_not(slide):
    rgb, _ = slide
    assert rgb.shape == (SIZE[1], SIZE[0], 3)
    assert rgb[:48, :48].min() > 200
    assert rgb[320:448, 448:576, 1].mean() < 200


def test_regions_of_all_classes_lie_in_the_slide_and_apart(slide):
    regions = slide[1]
    assert {region.label for region in regions} == {1, 2, 3}
    points = np.concatenate([region.points for region in regions])
    assert points.min() >= 0
    assert (points.max(axis=0) < SIZE).all()
    outlines = [region for region in regions if not region.is_hole]
    areas = [(label_mask([region], *SIZE, 1) > 0).sum() for region in outlines]
    assert sum(areas) == (label_mask(outlines, *SIZE, 1) > 0).sum()


def test_a_hole_is_cut_into_the_largest_region(slide):
    *outlines, hole = slide[1]
    assert hole.is_hole
    masks = [label_mask([region], *SIZE, 1) > 0 for region in outlines]
    largest = max(masks, key=np.sum)
    inside = label_mask([hole._replace(is_hole=False)], *SIZE, 1) > 0
    assert (largest & inside).sum() == inside.sum()
    whole, cut = (label_mask(some, *SIZE, 1) > 0 for some in (outlines, slide[1]))
    assert whole.sum() - cut.sum() == inside.sum()


def test_a_pen_mark_has_the_colour_asked_for():
    clean, marked = (
        paint_slide(np.random.default_rng(0), PLAIN, SIZE, pen=pen)[0].astype(int)
        for pen in (None, (30, 140, 90))
    )
    ink = np.abs(clean - marked).max(axis=2) > 60
    assert ink.any()
    red, green, blue = marked[ink].mean(axis=0)
    assert red < blue < green
