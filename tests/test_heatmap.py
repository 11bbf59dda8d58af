"""From patch predictions to maps, without a network."""

import numpy as np
import pytest

from bach.heatmap import (
    areas_mm2,
    cells_to_map,
    clip_to_tissue,
    draw_maps,
    heatmap_patches,
    stitch,
    to_classes,
    to_heatmap,
)
from bach.patches import SlideMaps, grid_shape

MPP = 0.467
STEP_UM = 125.58
STEP = STEP_UM / MPP


def test_cells_cover_the_slide_to_its_far_corner():
    width, height = 42113, 62625
    rows, cols = grid_shape(width, height, STEP)
    assert cols * STEP >= width > (cols - 1) * STEP
    assert rows * STEP >= height > (rows - 1) * STEP


def test_patches_are_centred_on_their_cells_everywhere():
    tissue = np.ones((3915, 2633), bool)
    table = heatmap_patches(SlideMaps("A01", 42113, 62625, MPP, 16, tissue), STEP_UM)
    assert len(table) == np.prod(grid_shape(42113, 62625, STEP))
    centre = table["x"] + table["size"] / 2
    assert np.abs(centre - (table["col"] + 0.5) * STEP).max() < 1e-6
    centre = table["y"] + table["size"] / 2
    assert np.abs(centre - (table["row"] + 0.5) * STEP).max() < 1e-6


def test_a_slide_without_tissue_has_no_patch_and_an_empty_map():
    table = heatmap_patches(SlideMaps("A01", 5000, 4000, MPP, 16, np.zeros((250, 313), bool)))
    assert table.empty
    probs = stitch(table, np.zeros((0, 4)), (3, 4))
    assert np.isnan(probs).all()
    assert (to_heatmap(probs) == 0).all()
    assert (to_classes(to_heatmap(probs)) == 0).all()


def test_a_slide_smaller_than_a_cell_has_one():
    table = heatmap_patches(SlideMaps("A01", 100, 90, MPP, 16, np.ones((6, 7), bool)))
    assert grid_shape(100, 90, STEP) == (1, 1)
    assert table.empty  # the patch around it holds under 5% tissue
    table = heatmap_patches(SlideMaps("A01", 600, 600, MPP, 16, np.ones((38, 38), bool)))
    assert len(table) == 9


def test_the_heatmap_is_the_expected_class_divided_by_3():
    probs = np.array([[[1, 0, 0, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]]], np.float32)
    assert to_heatmap(probs)[0].tolist() == pytest.approx([0, 1, 0.5])


def test_thresholds_belong_to_the_class_they_begin():
    values = np.array([0, 0.3499, 0.35, 0.6999, 0.70, 0.7499, 0.75, 1.0], np.float32)
    assert to_classes(values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert to_classes(values, (0.25, 0.5, 0.75)).tolist() == [0, 1, 1, 2, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="three ascending"):
        to_classes(values, (0.5, 0.4, 0.7))


def test_cells_are_spread_over_the_map_without_drift():
    rows, cols = grid_shape(42113, 62625, STEP)[::-1]
    rows, cols = grid_shape(42113, 62625, STEP)
    values = np.arange(rows * cols).reshape(rows, cols)
    spread = cells_to_map(values, STEP, 16, (3915, 2633))
    assert spread[0, 0] == 0
    assert spread[-1, -1] == values[-1, -1]
    for row, col in ((1000, 2000), (3914, 5), (7, 2632)):
        cell = values[int((row + 0.5) * 16 / STEP), int((col + 0.5) * 16 / STEP)]
        assert spread[row, col] == cell


def test_areas_are_in_mm2_and_glass_is_no_normal_tissue():
    class_map = np.zeros((100, 100), np.uint8)
    class_map[:10] = 3
    tissue = np.zeros((100, 100), bool)
    tissue[:50] = True
    maps = SlideMaps("A01", 2000, 2000, 0.5, 20, tissue)  # a pixel is 10 um
    areas = areas_mm2(class_map, maps)
    assert areas["Invasive"] == pytest.approx(0.1)
    assert areas["Normal"] == pytest.approx(0.4)
    assert areas["Benign"] == 0


def test_glass_is_not_coloured_whatever_the_network_says():
    tissue = np.zeros((60, 80), bool)
    tissue[20:40, 30:50] = True
    thumbnail = np.full((60, 80, 3), 240, np.uint8)
    everywhere = np.full((60, 80), 1, np.uint8)
    maps = SlideMaps("A01", 1280, 960, MPP, 16, tissue, thumbnail=thumbnail)
    clipped = clip_to_tissue(everywhere, maps)
    assert clipped.dtype == np.uint8
    assert np.array_equal(clipped == 1, tissue)
    picture = draw_maps(maps, everywhere, np.zeros((60, 80, 3), np.uint8))
    seen = (picture[:60, :80] == 240).all(axis=2)
    assert seen[~tissue].all()
    assert not seen[tissue].any()


def test_the_truth_is_drawn_whole_and_warnings_stand_above():
    labels = np.full((60, 80), 3, np.uint8)
    thumbnail = np.full((60, 80, 3), 240, np.uint8)
    maps = SlideMaps("A01", 1280, 960, MPP, 16, np.zeros((60, 80), bool), labels, thumbnail)
    plain = draw_maps(maps, labels, np.zeros((60, 80, 3), np.uint8))
    assert (plain[:60, :80] == 240).all()
    assert not (plain[:60, 88:168] == 240).all(axis=2).any()
    warned = draw_maps(
        maps._replace(warnings=("it is dark",)), labels, np.zeros((60, 80, 3), np.uint8)
    )
    assert np.array_equal(warned[-len(plain) :], plain)
    assert (warned[0] == (180, 0, 0)).all()
