"""Regions painted into a mask: which pixels, in what order, and what is said about it."""

import logging
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from bach.annotations import painting
from bach.annotations.painting import Region, label_mask, paint

SQUARE = [(160, 480), (320, 480), (320, 640), (160, 640)]


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(painting.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def box(x, y, side):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def shape(points, label=1, **more):
    return Region(label, np.array(points, float).reshape(-1, 2), **more)


def hole(points, **more):
    return shape(points, 0, is_hole=True, **more)


def diagonal(*regions, side=60):
    return np.diagonal(label_mask(regions, side, side, 10)).tolist()


# Which pixels


def winding(points, width, height):
    """Winding number around every pixel centre, by the sum of the angles of all edges."""
    y, x = np.mgrid[:height, :width] + 0.5
    vectors = points[:, :, None, None] - np.stack([x, y])
    angles = np.arctan2(vectors[:, 1], vectors[:, 0])
    turns = np.diff(np.concatenate([angles, angles[:1]]), axis=0)
    return np.rint(((turns + np.pi) % (2 * np.pi) - np.pi).sum(axis=0) / (2 * np.pi))


# A third between the pixel centres in y, so that no centre lies on an outline.
VERTEX = st.tuples(st.integers(-8, 28), st.integers(-8, 28)).map(
    lambda xy: (xy[0] + 0.123, xy[1] + 1 / 3)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VERTEX, min_size=3, max_size=14))
def test_any_outline_agrees_with_the_winding_number_at_every_pixel_centre(points):
    around = winding(np.array(points), 22, 18)
    one = paint([shape(points)], 22, 18, 1)
    inside = around != 0
    # On an edge the sum of angles is no number of turns: leave such pixels to the other tests.
    sure = ~on_an_edge(np.array(points), 22, 18)
    assert np.array_equal(one.labels[sure] == 1, inside[sure])
    if sure.all():
        even = (inside & (around % 2 == 0)).sum() / max(inside.sum(), 1)
        assert one.fates[0].crossed == pytest.approx(even)


def on_an_edge(points, width, height):
    y, x = np.mgrid[:height, :width] + 0.5
    result = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        length = np.hypot(x1 - x0, y1 - y0)
        if length:
            away = np.abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length
            result |= away < 1e-6
    return result


@settings(max_examples=50, deadline=None)
@given(st.lists(VERTEX, min_size=3, max_size=30), st.integers(1, 50))
def test_rows_in_blocks_paint_what_all_rows_at_once_do(points, block):
    together = paint([shape(points)], 22, 18, 1)
    before = painting._BLOCK
    try:
        painting._BLOCK = block
        apart = paint([shape(points)], 22, 18, 1)
    finally:
        painting._BLOCK = before
    assert np.array_equal(together.labels, apart.labels)
    assert together.fates == apart.fates


def after(covers, regions, number):
    """Where holes of the layer of a region are that come after it."""
    where = np.zeros((18, 22), bool)
    for other in range(number + 1, len(regions)):
        if regions[other].is_hole and regions[other].layer == regions[number].layer:
            where |= covers[other]
    return where


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.booleans(), st.integers(0, 2), st.lists(VERTEX, max_size=6)
        ),
        max_size=8,
    )
)
def test_holes_and_order_agree_with_painting_every_region_on_a_map_of_its_own(drawn):
    regions = [
        shape(points, label, is_hole=cut, layer=layer) for label, cut, layer, points in drawn
    ]
    covers = [
        paint([region._replace(label=1, is_hole=False)], 22, 18, 1).labels > 0 for region in regions
    ]
    left = [cover & ~after(covers, regions, number) for number, cover in enumerate(covers)]
    real = [i for i, region in enumerate(regions) if not region.is_hole]
    above = {  # of a region: the later ones of another class that it lies inside
        i: [
            j
            for j in real
            if j > i
            and covers[i].any()
            and regions[i].label != regions[j].label
            and (covers[i] <= covers[j]).all()
            and covers[i].sum() < covers[j].sum()
        ]
        for i in real
    }
    expected, waiting = np.zeros((18, 22), np.uint8), list(real)
    while waiting:
        number = next(i for i in waiting if not set(above[i]) & set(waiting))
        waiting.remove(number)
        expected[left[number]] = regions[number].label
    assert np.array_equal(label_mask(regions, 22, 18, 1), expected)


def test_a_rectangle_paints_exactly_its_pixels():
    mask = label_mask([shape(SQUARE, 3)], 1000, 1000, 16)
    expected = np.zeros((63, 63), np.uint8)
    expected[30:40, 10:20] = 3
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


def test_a_pixel_belongs_to_the_region_its_centre_lies_in():
    # from 0.4 to 2.6 mask pixels: the centres 0.5, 1.5 and 2.5 lie in it
    assert label_mask([shape(box(4, 4, 22))], 40, 40, 10).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    # from 0.6 to 2.4: only 1.5
    assert np.argwhere(label_mask([shape(box(6, 6, 18))], 40, 40, 10)).tolist() == [[1, 1]]


@pytest.mark.parametrize("downsample", [1, 7.3, 16])
def test_the_area_of_a_circle_is_right_to_one_percent(downsample):
    t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.column_stack([np.cos(t), np.sin(t)]) * 900 + (1000.3, 1200.8)
    mask = label_mask([shape(circle)], 2100, 2300, downsample)
    assert mask.sum() * downsample**2 == pytest.approx(np.pi * 900**2, rel=0.01)
    rows, columns = np.nonzero(mask)
    centre = (columns.mean() + 0.5) * downsample, (rows.mean() + 0.5) * downsample
    assert centre == pytest.approx((1000.3, 1200.8), abs=0.1 * downsample)


def test_an_outline_that_does_not_cross_itself_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for _ in range(20):  # stars, partly beyond the slide
        around = np.column_stack([np.cos(turns), np.sin(turns)])
        points = around * rng.uniform(5, 50, (12, 1)) + rng.uniform(0, 60, 2)
        expected = np.zeros((60, 50), np.uint8)
        rows, columns = polygon(points[:, 1] - 0.5, points[:, 0] - 0.5, expected.shape)
        expected[rows, columns] = 1
        assert np.array_equal(label_mask([shape(points)], 50, 60, 1), expected)


def test_regions_that_touch_neither_overlap_nor_leave_a_gap():
    rng = np.random.default_rng(0)
    middle = np.column_stack([rng.uniform(20, 40, 9), np.linspace(0, 60, 9)])
    left = [*middle, (0, 60), (0, 0)]
    right = [*middle, (60, 60), (60, 0)]
    a, b = (label_mask([shape(points)], 60, 60, 1) for points in (left, right))
    assert (a + b == 1).all()


def test_opencv_grows_a_region_by_its_outline_and_we_do_not():
    points = np.round((np.array(SQUARE) / 16 - 0.5) * 256).astype(int)
    mask = np.zeros((63, 63), np.uint8)
    cv2.fillPoly(mask, [points], 1, shift=8)
    assert mask.sum() == 121
    assert label_mask([shape(SQUARE)], 1000, 1000, 16).sum() == 100


def test_the_mask_is_rounded_up_and_a_region_may_end_at_its_far_corner():
    mask = label_mask([shape(box(0, 0, 5000))], 1001, 500, 16)
    assert mask.shape == (32, 63)
    assert (mask == 1).all()
    assert label_mask([], 2048, 3000, 3000 / 7).shape == (7, 5)
    assert label_mask([], 3, 2, 16).shape == (1, 1)


def test_flipping_a_slide_flips_its_mask():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 320, (8, 2))
    mask = label_mask([shape(points)], 320, 480, 16)
    flipped = label_mask([shape(points * (-1, 1) + (320, 0))], 320, 480, 16)
    assert np.array_equal(flipped, mask[:, ::-1])


@pytest.mark.parametrize("sides", [(0, 10, 1), (10, -1, 1), (10, 10, 0)])
def test_a_mask_without_size_is_refused(sides):
    with pytest.raises(ValueError, match="above 0"):
        label_mask([], *sides)


# Outlines that cross themselves


def test_an_outline_drawn_twice_is_painted_and_the_log_says_so(messages):
    mask = label_mask([shape([*SQUARE, *SQUARE], 3, name="region 7")], 1000, 1000, 16)
    assert np.array_equal(mask, label_mask([shape(SQUARE, 3)], 1000, 1000, 16))
    assert "wind around twice counts as inside: region 7 (25,600 px)" in messages.text


def test_an_outline_whose_end_overlaps_its_start_has_no_hole_there():
    # Once around, and on over the first corner.
    points = [(10, 10), (50, 10), (50, 50), (10, 50), (10, 0), (30, 0), (30, 30), (10, 30)]
    fate = paint([shape(points)], 60, 60, 1).fates[0]
    assert fate.painted == 40 * 40 + 20 * 10
    assert fate.crossed == pytest.approx(20 * 20 / fate.painted)


def test_an_eight_has_both_its_loops_and_is_not_worth_a_word(messages):
    mask = label_mask([shape([(0, 0), (60, 60), (60, 0), (0, 60)])], 60, 60, 10)
    assert mask[1:5, 0].all()
    assert mask[1:5, 5].all()
    assert not mask[[0, 5], 3].any()
    assert not messages.text


# Order


def test_later_regions_paint_over_earlier_ones():
    regions = [shape(box(0, 0, 40), 3), shape(box(10, 10, 20), 1), shape(box(20, 20, 30), 2)]
    assert diagonal(*regions) == [3, 1, 2, 2, 2, 0]


def test_a_region_inside_a_later_one_of_another_class_stays_on_top_and_the_log_says_so(messages):
    inner, outer = shape(box(20, 20, 20), 3, name="A"), shape(box(0, 0, 60), 1, name="B")
    assert diagonal(inner, outer) == diagonal(outer, inner) == [1, 1, 3, 3, 1, 1]
    assert messages.text.count("kept on top of later regions that they lie inside: A in B") == 1


def test_regions_inside_each_other_show_whatever_their_order():
    nested = [shape(box(10 * n, 10 * n, 60 - 20 * n), label) for n, label in enumerate((1, 2, 3))]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]):
        assert diagonal(*(nested[n] for n in order)) == [1, 2, 3, 3, 2, 1]


def test_what_is_drawn_after_the_outer_region_still_paints_over_the_inner_one():
    inner, outer = shape(box(20, 20, 20), 3), shape(box(0, 0, 60), 1)
    assert diagonal(inner, outer, shape(box(30, 30, 30), 2)) == [1, 1, 3, 2, 2, 2]


def test_of_two_classes_with_one_outline_the_later_counts_and_the_log_says_so(messages):
    assert diagonal(shape(box(0, 0, 20), 3, name="A"), shape(box(0, 0, 20), 1, name="B"))[:2] == [
        1,
        1,
    ]
    assert "drawn twice with different classes, the later one counts: A and B" in messages.text


# Holes


def test_a_hole_cuts_its_own_layer_and_shows_what_lies_below():
    regions = [
        shape(box(0, 0, 50), 1, layer=0),
        shape(box(10, 10, 30), 3, layer=1),
        hole(box(20, 20, 10), layer=1),
    ]
    assert diagonal(*regions) == [1, 3, 1, 3, 1, 0]


def test_an_island_drawn_after_a_hole_shows():
    regions = [shape(box(0, 0, 60), 1), hole(box(10, 10, 40)), shape(box(20, 20, 20), 3)]
    assert diagonal(*regions) == [1, 0, 3, 3, 0, 1]
    # So it does where it fills the hole, or more.
    assert diagonal(*regions[:2], shape(box(10, 10, 40), 3)) == [1, 3, 3, 3, 3, 1]


def test_a_hole_does_not_touch_later_regions_of_its_layer_nor_others():
    regions = [
        shape(box(0, 0, 30), 1),
        hole(box(10, 10, 10)),
        shape(box(10, 10, 50), 2),
        shape(box(0, 0, 20), 3, layer=1),
    ]
    assert diagonal(*regions) == [3, 3, 2, 2, 2, 2]


def test_a_hole_in_an_inner_region_stays_a_hole_of_it_where_that_stays_on_top():
    inner = [shape(box(10, 10, 40), 3), hole(box(20, 20, 20))]
    assert diagonal(*inner, shape(box(0, 0, 60), 1)) == [1, 3, 1, 1, 3, 1]


def test_a_hole_before_all_regions_cuts_nothing_and_the_log_says_so(messages):
    regions = [hole(box(10, 10, 20), name="the hole"), shape(box(0, 0, 40))]
    assert diagonal(*regions) == [1, 1, 1, 1, 0, 0]
    assert "holes with no region before them in their layer cut nothing: the hole" in messages.text


def test_a_region_that_later_holes_erase_is_named(messages):
    regions = [
        shape(box(20, 20, 20), 3, name="the island"),
        shape(box(0, 0, 60)),
        hole(box(10, 10, 40)),
    ]
    assert diagonal(*regions) == [1, 0, 0, 0, 0, 1]
    assert "erased by holes that come later in the file: the island" in messages.text


# Beyond the slide, and nothing


def test_a_region_beyond_the_slide_is_named_and_one_that_strays_over_its_edge_is_not(messages):
    label_mask([shape(box(-2, 10, 80))], 100, 100, 10)
    assert not messages.text
    label_mask([shape(box(50, 0, 100), name="A"), shape(box(300, 0, 9), name="B")], 100, 100, 10)
    assert "beyond the slide: A (50%), B (100%)" in messages.text


@settings(max_examples=50, deadline=None)
@given(st.lists(VERTEX, min_size=3, max_size=8))
def test_the_share_beyond_the_slide_is_that_of_a_map_that_holds_all(points):
    one = shape(np.array(points) * 10)
    all_of_it = paint([shape(one.points + 100)], 500, 500, 0.5).labels
    total = all_of_it.sum()
    inside = all_of_it[200 : 200 + 2 * 180, 200 : 200 + 2 * 220].sum()
    fate = paint([one], 220, 180, 1).fates[0]
    if total > 2000 and 0 < inside < total:
        assert fate.outside == pytest.approx(1 - inside / total, abs=0.03)


def test_a_region_outside_the_slide_or_between_centres_paints_nothing():
    for points in (box(-500, 0, 100), box(2000, 2000, 10), box(1, 1, 3)):
        assert not label_mask([shape(points)], 100, 100, 10).any()
    for points in ([], [(20, 20)], [(0, 0), (90, 90)]):
        assert not label_mask([shape(points)], 100, 100, 10).any()


def test_an_outline_that_encloses_nothing_is_named(messages):
    back = shape([*SQUARE, *SQUARE[::-1]], name="A")
    label_mask([back, shape(box(1, 1, 3), name="B")], 1000, 1000, 16)
    assert "outlines go there and back, and enclose nothing: A" in messages.text
    assert "enclose no pixel of the map: B" in messages.text


# Cost


def memory(work):
    """Peak of what NumPy takes during some work, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_outline_that_runs_up_and_down_takes_a_bounded_amount_of_memory():
    many = 50_000
    points = np.column_stack([np.linspace(0, 9600, many), np.arange(many) % 2 * 9600.0])
    # 30 million crossings of edges and rows, of 8 bytes and more each, were 1.5 GB.
    assert memory(lambda: paint([shape(points)], 9600, 9600, 16)) < 200e6
