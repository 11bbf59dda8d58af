"""Grids and patch tables."""

import numpy as np
import pandas as pd
import pytest

from bach import tasks
from bach.core.errors import InputError
from bach.core.tables import write_csv
from bach.patches import (
    COLUMNS,
    SlideMaps,
    box_means,
    cell_patches,
    grid,
    photo_patches,
    read_patches,
    slide_patches,
)
from bach.tasks import BACH


def test_a_photo_has_14_patches_and_400_photos_5600():
    assert len(grid(2048, 1536, BACH.patch_px, BACH.stride_px)) == 14
    assert 400 * len(photo_patches("n001", 2048, 1536, 0)) == 5600


def test_a_photo_of_a_point_has_one_patch_in_its_middle():
    tasks.use("mitosis")
    for size, corner in (((128, 128), (32, 32)), ((64, 64), (0, 0)), ((101, 70), (18, 3))):
        table = photo_patches("crop", *size, 1)
        assert table[["x", "y", "size", "label"]].to_numpy().tolist() == [[*corner, 64, 1]]


def test_the_last_row_and_column_are_flush_with_the_edge():
    corners = grid(2048, 1536, 1495, 99)
    assert sorted(set(corners[:, 0])) == [0, 99, 198, 297, 396, 495, 553]
    assert sorted(set(corners[:, 1])) == [0, 41]
    assert corners.dtype.kind == "i"


def test_a_patch_spans_627_9_um_and_the_network_sees_2_1_um():
    assert pytest.approx(627.9) == BACH.patch_um
    assert pytest.approx(2.1) == BACH.mpp


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


def test_patches_over_the_edge_have_the_label_of_what_lies_on_the_slide():
    labels = np.full((63, 126), 3, np.uint8)  # reaches beyond the slide by 3 px of it
    maps = SlideMaps("A01", 2010, 1005, 0.5, 16, labels > 0, labels)
    table = cell_patches(maps, 67.2)
    assert ((table["x"] < 0) | (table["x"] + table["size"] > 2010)).sum() > 40
    assert (table["label"] == 3).all()
    labels[:, 63:] = 0
    table = cell_patches(maps, 67.2)
    outside = table[(table["x"] < 0) & (table["x"] + table["size"] < 1008)]
    assert len(outside)
    assert (outside["label"] == 3).all()


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


def test_what_lies_outside_can_be_left_out_of_the_mean():
    values = np.array([[1, 2], [3, 6]])
    x, y, size = [-1, 0.5, 0, 5, -9], [-1, 0, 0, 5, -9], [2, 3, 2, 1, 20]
    assert box_means(values, x, y, size, (2, 2)) == pytest.approx([1, 10 / 3, 3, 0, 3])
    assert box_means(values, 0, 0, 2, (1.5, 2)) == pytest.approx((1 + 1 + 3 + 3) / 3)


def test_boxes_that_lie_inside_have_the_same_mean_to_the_last_bit():
    values = np.random.default_rng(0).integers(0, 4, (50, 60))
    x, y = np.random.default_rng(1).uniform(0, 30, (2, 500))
    assert np.array_equal(box_means(values, x, y, 19.9), box_means(values, x, y, 19.9, (60, 50)))


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


def test_a_patch_table_keeps_its_names_and_its_numbers(tmp_path):
    rows = ["00123,1344.5,0.25,1344.5396145610277,0.7,3,", "NA,2,0.5,10,1,0,0.25"]
    (tmp_path / "t.csv").write_text("\n".join([",".join([*COLUMNS, "prob_normal"]), *rows]))
    table = read_patches(tmp_path / "t.csv")
    assert table["image_id"].tolist() == ["00123", "NA"]
    assert table["size"].iloc[0] == 1344.5396145610277
    assert table["label"].dtype == np.int64
    assert np.isnan(table["prob_normal"].iloc[0])
    (tmp_path / "t.csv").write_text(",".join(COLUMNS) + "\na,1,2,3,much,0\n")
    with pytest.raises(InputError, match=r"t\.csv must be a patch table"):
        read_patches(tmp_path / "t.csv")


@pytest.mark.parametrize("step_um", [1e-300, 1e-3])
def test_a_step_so_small_that_nobody_predicts_the_patches_is_refused(step_um):
    maps = SlideMaps("A01", 4800, 3200, 0.5, 16.0, np.ones((200, 300), bool))
    for make in (slide_patches, cell_patches):
        with pytest.raises(InputError, match="at most 20,000,000 patches"):
            make(maps, step_um)


def test_the_patches_of_a_slide_full_of_tissue_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(30):
        width, height = rng.integers(2000, 6000, 2).tolist()
        shape = (-(-height // 16), -(-width // 16))
        tissue, labels = np.ones(shape, bool), np.full(shape, 3, np.uint8)
        table = slide_patches(SlideMaps(f"{number}", width, height, 0.467, 16.0, tissue, labels))
        write_csv(table, tmp_path / "patches.csv")  # shares of 1.0000000000000002 are among them
        pd.testing.assert_frame_equal(read_patches(tmp_path / "patches.csv"), table)
