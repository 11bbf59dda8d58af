"""Grids and patch tables."""

import numpy as np
import pytest

from bach.patches import (
    NETWORK_MPP,
    PATCH_SIZE,
    PATCH_STRIDE,
    PATCH_UM,
    SlideMaps,
    grid,
    photo_patches,
    slide_patches,
)


def test_a_photo_has_14_patches_and_400_photos_5600():
    assert len(grid(2048, 1536, PATCH_SIZE, PATCH_STRIDE)) == 14
    assert 400 * len(photo_patches("n001", 2048, 1536, 0)) == 5600


def test_the_last_row_and_column_are_flush_with_the_edge():
    corners = grid(2048, 1536, 1495, 99)
    assert sorted(set(corners[:, 0])) == [0, 99, 198, 297, 396, 495, 553]
    assert sorted(set(corners[:, 1])) == [0, 41]
    assert corners.dtype.kind == "i"


def test_a_patch_spans_627_9_um_and_the_network_sees_2_1_um():
    assert pytest.approx(627.9) == PATCH_UM
    assert pytest.approx(2.1) == NETWORK_MPP


def test_an_image_that_fits_exactly_has_one_patch_and_a_smaller_one_too():
    assert grid(100, 100, 100, 10).tolist() == [[0, 0]]
    assert grid(60, 40, 100, 10).tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["width", "height", "size", "stride"])
def test_a_grid_needs_positive_numbers(name):
    good = {"width": 10, "height": 10, "size": 5, "stride": 2}
    with pytest.raises(ValueError, match=f"{name}=0"):
        grid(**{**good, name: 0})


def test_slide_coordinates_are_floats_that_do_not_drift():
    tissue = np.ones((1000, 1200), bool)
    table = slide_patches(SlideMaps("A01", 19200, 16000, 0.467, 16, tissue))
    size, stride = 627.9 / 0.467, 125.58 / 0.467
    assert table["size"].iloc[0] == pytest.approx(size)
    x = np.array(sorted(set(table["x"])))
    assert x[50] == pytest.approx(50 * stride)
    assert x[-1] == pytest.approx(19200 - size)


def test_tissue_and_label_of_a_slide_patch_are_means_over_its_square():
    tissue = np.zeros((100, 100), bool)
    tissue[:, :50] = True
    labels = np.zeros((100, 100), np.uint8)
    labels[:, :50] = 3
    mpp = 627.9 / 400  # a patch is 400 level-0 px, 40 px of the mask
    table = slide_patches(SlideMaps("A01", 1000, 1000, mpp, 10, tissue, labels), mpp * 100)
    top = table[table["y"] == 0]
    shares = dict(zip(top["x"], top["tissue"], strict=True))
    assert shares[0] == pytest.approx(1)
    assert shares[300] == pytest.approx(0.5)
    assert shares[600] == pytest.approx(0)
    rounded = dict(zip(top["x"], top["label"], strict=True))
    # Half of 3 is 1.5, rounded up; a quarter is 0.75.
    assert [rounded[x] for x in (0, 200, 300, 400, 500)] == [3, 2, 2, 1, 0]


def test_without_annotation_the_label_is_unknown():
    table = slide_patches(SlideMaps("A01", 1000, 1000, 1.0, 10, np.ones((100, 100), bool)))
    assert set(table["label"]) == {-1}
