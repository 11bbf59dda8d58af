"""From patch predictions to maps, without a network."""

import numpy as np
import pytest
from made_up import slide_record

from bach.classes import COLORS
from bach.core.drawings import heat_colors
from bach.heatmap import (
    areas_mm2,
    cells_to_map,
    clip_to_tissue,
    draw_maps,
    heatmap_patches,
    slide_scores,
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


def test_a_map_that_is_clipped_is_normal_off_tissue():
    tissue = np.zeros((60, 80), bool)
    tissue[20:40, 30:50] = True
    thumbnail = np.full((60, 80, 3), 240, np.uint8)
    everywhere = np.full((60, 80), 1, np.uint8)
    maps = SlideMaps("A01", 1280, 960, MPP, 16, tissue, thumbnail=thumbnail)
    clipped = clip_to_tissue(everywhere, maps)
    assert clipped.dtype == np.uint8
    assert np.array_equal(clipped == 1, tissue)


def drawn(maps, class_map, probs=None, **changes):
    """The picture of a slide of one cell to a thumbnail px, and where its panels begin."""
    probs = np.full((*class_map.shape, 4), 0.25, np.float32) if probs is None else probs
    record = slide_record(
        maps.name,
        width=maps.width,
        height=maps.height,
        areas_mm2=areas_mm2(class_map, maps),
        **{"step": float(maps.downsample)} | slide_scores(class_map, maps) | changes,
    )
    return draw_maps(maps, class_map, probs, record)


def color_counts(picture):
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, c)): int(n) for c, n in zip(colors, counts, strict=True)}


def test_glass_is_clear_in_every_panel_and_gray_in_the_heatmap():
    tissue = np.zeros((300, 400), bool)
    tissue[100:200, 150:250] = True
    thumbnail = np.full((300, 400, 3), (240, 200, 220), np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, thumbnail=thumbnail)
    counts = color_counts(drawn(maps, np.full((300, 400), 1, np.uint8)))
    share = tissue.mean()
    # Of two panels, one shows the thumbnail off tissue; no heat off tissue is black.
    size = counts[240, 200, 220] / (1 - share)
    assert 385 * 290 < size < 400 * 300
    blended = tuple(np.rint(np.array([240, 200, 220]) * 0.55 + np.array(COLORS[1]) * 0.45))
    assert 0.9 * share * size < counts[blended] < 1.05 * share * size
    heat = tuple(map(int, heat_colors(np.full((1, 1), 0.5))[0, 0]))
    assert 0.95 * share * size < counts[heat] < 1.05 * share * size + 50
    assert counts.get((0, 0, 0), 0) < 1000  # letters


def test_what_was_not_predicted_has_no_heat():
    tissue = np.ones((300, 400), bool)
    thumbnail = np.full((300, 400, 3), 200, np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, thumbnail=thumbnail)
    probs = np.full((300, 400, 4), np.nan, np.float32)
    probs[:, :200] = (0, 0, 0, 1)
    counts = color_counts(drawn(maps, np.zeros((300, 400), np.uint8), probs))
    hot = tuple(map(int, heat_colors(np.ones((1, 1)))[0, 0]))
    cold = tuple(map(int, heat_colors(np.zeros((1, 1)))[0, 0]))
    assert 50_000 < counts[hot] < 62_000
    assert counts.get(cold, 0) < 2_000  # the end of the colour bar


def test_the_truth_is_drawn_in_a_panel_of_its_own_and_warnings_stand_above():
    labels = np.zeros((300, 400), np.uint8)
    labels[50:250, 100:300] = 3
    tissue = np.ones((300, 400), bool)
    tissue[:, :200] = False
    thumbnail = np.full((300, 400, 3), 240, np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, labels, thumbnail)
    plain = drawn(maps, np.zeros_like(labels))
    blended = tuple(np.rint(np.full(3, 240) * 0.55 + np.array(COLORS[3]) * 0.45))
    assert 17_000 < color_counts(plain)[blended] < 20_100  # half of the region is on glass
    assert color_counts(plain)[COLORS[3]] > 700  # but its outline is whole
    warned = drawn(maps._replace(warnings=("it is dark",)), np.zeros_like(labels))
    assert (warned[0] == (180, 0, 0)).all()
    assert not (plain == (180, 0, 0)).all(axis=2).any()


@pytest.mark.parametrize(
    ("width", "height"), [(7, 6), (1, 1), (3, 900), (2000, 40), (400, 300), (6000, 4000)]
)
@pytest.mark.parametrize("annotated", [True, False])
def test_a_picture_has_800_to_3000_px_whatever_the_slide(width, height, annotated):
    tissue = np.ones((height, width), bool)
    class_map = np.zeros((height, width), np.uint8)
    thumbnail = np.full((height, width, 3), 240, np.uint8)
    name = "Präparat 中 " * 12 + "x" * 200
    maps = SlideMaps(
        name,
        *(width * 16, height * 16, MPP, 16, tissue),
        class_map if annotated else None,
        thumbnail,
        warnings=("a long story " * 20,),
    )
    probs = np.full((1, 1, 4), 0.25, np.float32)
    picture = drawn(maps, class_map, probs, step=1e6)
    assert 800 <= max(picture.shape[:2]) <= 3000
    assert (picture[:, -2:] == (180, 0, 0)).all(axis=2).any()  # the banner goes all the way
