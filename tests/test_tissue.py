import numpy as np
import pytest
from skimage.color import rgb2lab
from skimage.draw import line

from bach.patches import box_means
from bach.tissue import pen_mask, tissue_mask

GLASS = (242, 242, 242)
# Stain and ink as they look on scanned slides.
EOSIN, HAEMATOXYLIN, PALE = (220, 130, 175), (95, 60, 130), (236, 205, 224)
RED_INK, GREEN_INK, BLUE_INK = (215, 15, 25), (40, 165, 140), (93, 144, 213)


def picture(color=GLASS, height=40, width=60):
    return np.full((height, width, 3), color, np.uint8)


def noisy(rgb, sigma=2, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, rgb.shape)
    return (rgb + noise).clip(0, 255).astype(np.uint8)


def stained():
    rgb = picture()
    rgb[5:35, 10:40] = EOSIN
    rgb[10:20, 15:25] = HAEMATOXYLIN
    return rgb


# Tissue


def test_the_mask_agrees_with_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    rgb[:, :150] = noisy(picture(EOSIN, 200, 150), 20)
    a = rgb2lab(rgb)[..., 1]
    limit = 1.1 * a.mean()
    sure = np.abs(a - limit) > 0.01  # its white point is rounded otherwise
    assert sure.mean() > 0.99
    assert np.array_equal(tissue_mask(rgb)[sure], (a > limit)[sure])


def test_stained_tissue_on_glass_is_found_exactly():
    expected = np.zeros((40, 60), bool)
    expected[5:35, 10:40] = True
    assert np.array_equal(tissue_mask(stained()), expected)
    assert np.array_equal(tissue_mask(noisy(stained())), expected)


def test_a_picture_larger_than_a_strip_is_treated_as_one():
    rgb = np.tile(stained(), (40, 30, 1))
    assert rgb.shape[0] * rgb.shape[1] > 1 << 20
    assert np.array_equal(tissue_mask(rgb), np.tile(tissue_mask(stained()), (40, 30)))


def test_the_threshold_is_a_multiple_of_the_mean():
    rgb = picture(PALE)
    rgb[:, ::2] = EOSIN
    a = rgb2lab(rgb)[..., 1]
    ratio = a.max() / a.mean()
    assert tissue_mask(rgb, ratio - 0.01).any()
    assert not tissue_mask(rgb, ratio + 0.01).any()


@pytest.mark.parametrize("color", [(255, 255, 255), GLASS, (128, 128, 128), (0, 0, 0)])
def test_gray_of_any_shade_has_no_tissue(color):
    assert not tissue_mask(picture(color)).any()


def test_a_greenish_picture_has_no_tissue_for_want_of_pink():
    rgb = picture(GREEN_INK)
    rgb[:5, :5] = EOSIN
    assert not tissue_mask(rgb).any()


def test_a_picture_of_one_pink_has_no_tissue_since_nothing_exceeds_the_mean():
    assert not tissue_mask(picture(EOSIN)).any()


def test_noise_on_bare_glass_passes_the_papers_rule_but_not_a_floor():
    rgb = noisy(picture((244, 242, 243), 200, 200))
    assert 0.2 < tissue_mask(rgb).mean() < 0.6
    assert tissue_mask(rgb, floor=8).mean() < 0.01
    assert np.array_equal(tissue_mask(stained(), floor=8), tissue_mask(stained()))


@pytest.mark.parametrize("shape", [(1, 1, 3), (0, 5, 3), (5, 0, 3)])
def test_tiny_and_empty_pictures_give_empty_masks(shape):
    mask = tissue_mask(np.full(shape, 200, np.uint8), exclude_pen=True)
    assert mask.shape == shape[:2]
    assert not mask.any()


@pytest.mark.parametrize(
    "rgb", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_anything_but_an_rgb_picture_is_refused(rgb):
    with pytest.raises(ValueError, match="must be uint8"):
        tissue_mask(rgb)


# Pen


def stroke(rgb, color, start, end):
    rows, columns = line(*start, *end)
    where = np.zeros(rgb.shape[:2], bool)
    for shift in range(-2, 3):
        where[rows, (columns + shift).clip(0, rgb.shape[1] - 1)] = True
    rgb[where] = color
    return where


@pytest.mark.parametrize("ink", [RED_INK, GREEN_INK, BLUE_INK])
def test_ink_is_found_and_stains_are_not(ink):
    rgb = stained()
    where = stroke(rgb, ink, (2, 5), (37, 50))
    assert np.array_equal(pen_mask(rgb), where)


@pytest.mark.parametrize("color", [EOSIN, HAEMATOXYLIN, PALE, GLASS, (60, 30, 90), (200, 90, 120)])
def test_no_stain_passes_for_ink(color):
    assert not pen_mask(noisy(picture(color))).any()


def test_red_ink_is_tissue_unless_it_is_left_out():
    rgb = stained()
    where = stroke(rgb, RED_INK, (2, 45), (37, 55))
    assert tissue_mask(rgb)[where].all()
    without = tissue_mask(rgb, exclude_pen=True)
    assert np.array_equal(without, tissue_mask(stained()))


def test_ink_left_out_does_not_hide_pale_tissue_by_raising_the_mean():
    rgb = picture()
    rgb[:, :20] = PALE
    rgb[:, 40:] = RED_INK
    assert not tissue_mask(rgb)[:, :20].any()
    assert tissue_mask(rgb, exclude_pen=True)[:, :20].all()


def test_green_ink_left_out_does_not_hide_tissue_by_lowering_the_mean():
    rgb = picture()
    rgb[:, :20] = PALE
    rgb[:, 30:] = GREEN_INK
    assert not tissue_mask(rgb).any()
    assert tissue_mask(rgb, exclude_pen=True)[:, :20].all()


def test_a_picture_full_of_ink_has_no_tissue():
    assert not tissue_mask(picture(RED_INK), exclude_pen=True).any()


# Means in boxes


def brute_force(values, x, y, size, fine=20):
    """Mean over a box whose edges are multiples of 1/fine, by enlarging the map."""
    height, width = values.shape
    pad = 50
    large = np.zeros(((height + 2 * pad) * fine, (width + 2 * pad) * fine))
    large[pad * fine : -pad * fine, pad * fine : -pad * fine] = np.kron(
        values, np.ones((fine, fine))
    )
    left, top, side = (round(part * fine) for part in (x + pad, y + pad, size))
    return large[top : top + side, left : left + side].mean()


def test_means_in_boxes_agree_with_brute_force():
    rng = np.random.default_rng(0)
    values = rng.random((9, 13))
    x, y = rng.integers(-100, 300, (2, 60)) / 20
    size = rng.integers(1, 400, 60) / 20
    expected = [brute_force(values, *box) for box in zip(x, y, size, strict=True)]
    assert box_means(values, x, y, size) == pytest.approx(expected, abs=1e-12)


def test_boxes_worked_out_by_hand():
    values = np.array([[1, 2], [3, 6]])
    x, y = [0, 0, 1, 0.5, -1, 1.5, 5], [0, 0, 1, 0.5, -1, 1.5, 5]
    size = [2, 1, 1, 1, 2, 1, 1]
    expected = [3, 1, 6, 3, 1 / 4, 6 / 4, 0]
    assert box_means(values, x, y, size) == pytest.approx(expected, abs=1e-15)


def test_a_bool_mask_gives_shares_between_0_and_1():
    mask = np.random.default_rng(0).random((30, 40)) < 0.5
    rng = np.random.default_rng(1)
    shares = box_means(mask, rng.uniform(-5, 40, 500), rng.uniform(-5, 30, 500), 7.3)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert box_means(mask, 0, 0, 30)[()] == pytest.approx(mask[:, :30].mean())


def test_uint8_labels_do_not_overflow():
    assert box_means(np.full((100, 100), 3, np.uint8), 0, 0, 100) == 3


def test_boxes_that_tile_a_map_have_its_mean():
    values = np.random.default_rng(0).random((12, 12))
    edges = np.arange(5) * 2.4
    x, y = np.meshgrid(edges, edges)
    means = box_means(values, x, y, 2.4)
    assert means.shape == (5, 5)
    assert means.mean() == pytest.approx(values.mean())


def test_no_boxes_and_an_empty_map_give_no_and_zero_means():
    assert box_means(np.ones((3, 3)), np.array([]), np.array([]), 2).shape == (0,)
    assert box_means(np.ones((0, 3)), [0, 1], [0, 1], 2).tolist() == [0, 0]


def test_boxes_without_area_and_maps_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="above 0 px"):
        box_means(np.ones((3, 3)), 0, 0, [1, 0])
    with pytest.raises(ValueError, match="height, width"):
        box_means(np.ones((3, 3, 3)), 0, 0, 1)
