"""Patch stores and batches."""

import cv2
import numpy as np
import pandas as pd
import pytest

from bach.core.errors import InputError
from bach.network.augment import Augmentation
from bach.network.batches import (
    Batches,
    PatchStore,
    cut_photos,
    cut_slides,
    photo_to_patches,
    store_exists,
    take_rows,
)
from bach.patches import View, photo_patches
from bach.toy.aperio import write_slide


@pytest.fixture(scope="module")
def photo():
    coarse = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return cv2.resize(coarse, (2048, 1536), interpolation=cv2.INTER_CUBIC)


def test_each_patch_pixel_is_the_mean_of_5x5(photo):
    table = photo_patches("n001", 2048, 1536, 0)
    patches = photo_to_patches(photo, table)
    assert patches.shape == (14, 299, 299, 3)
    x, y = table.loc[9, ["x", "y"]].astype(int)
    square = photo[y : y + 1495, x : x + 1495].reshape(299, 5, 299, 5, 3).mean(axis=(1, 3))
    assert np.abs(patches[9] - square).max() <= 0.51


def test_a_margin_shows_the_surroundings_and_mirrors_beyond_the_edge(photo):
    table = photo_patches("n001", 2048, 1536, 0)
    plain, wide = photo_to_patches(photo, table), photo_to_patches(photo, table, View(32))
    assert wide.shape == (14, 363, 363, 3)
    assert np.array_equal(wide[:, 32:-32, 32:-32], plain)
    x, y = table.loc[3, ["x", "y"]].astype(int)
    assert (x, y) == (297, 0)
    left = photo[y : y + 1495, x - 160 : x].reshape(299, 5, 32, 5, 3).mean(axis=(1, 3))
    assert np.abs(wide[3, 32:-32, :32] - left).max() <= 0.51
    above = photo[1 : 1 + 160, x : x + 1495][::-1].reshape(32, 5, 299, 5, 3).mean(axis=(1, 3))
    assert np.abs(wide[3, :32, 32:-32] - above).max() <= 0.51


def test_a_store_is_cut_once_and_mapped_from_disk(photo, tmp_path):
    cv2.imwrite(str(tmp_path / "n001.tif"), photo[..., ::-1])
    images = pd.DataFrame(
        {"image_id": ["n001"], "path": [str(tmp_path / "n001.tif")], "label": [0],
         "width": [2048], "height": [1536]}
    )  # fmt: skip
    store = cut_photos(images, tmp_path / "store")
    assert isinstance(store.patches, np.memmap)
    assert np.array_equal(store.patches, photo_to_patches(photo, store.table))
    (tmp_path / "n001.tif").unlink()  # a whole store needs the photo no more
    assert len(cut_photos(images, tmp_path / "store").table) == 14


def test_photos_smaller_than_a_patch_are_refused(tmp_path):
    images = pd.DataFrame(
        {"image_id": ["n1"], "path": ["n1.tif"], "label": [0], "width": [2048], "height": [1000]}
    )
    with pytest.raises(InputError, match=r"at least 1495[\s\S]*n1.tif, 2048x1000"):
        cut_photos(images, tmp_path / "store")
    assert not store_exists(tmp_path / "store")


def test_slide_patches_are_cut_at_their_place_and_scale(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 24, 3), np.uint8)
    pixels = cv2.resize(coarse, (1920, 1600), interpolation=cv2.INTER_CUBIC)
    write_slide(tmp_path / "A01.svs", pixels, mpp=0.42)
    table = pd.DataFrame(
        {"image_id": "A01", "x": [0.0, 425.0], "y": [5.0, 105.0], "size": 1495.0, "label": [0, 3]}
    )
    store = cut_slides(table, {"A01": str(tmp_path / "A01.svs")}, tmp_path / "store", None)
    square = pixels[105:1600, 425:1920].reshape(299, 5, 299, 5, 3).mean(axis=(1, 3))
    # Read from the level of factor 4, which is smooth here: a few gray values.
    assert np.abs(store.patches[1] - square).mean() < 2
    assert store.table["label"].tolist() == [0, 3]


def test_a_damaged_store_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no patch store"):
        PatchStore(tmp_path)
    np.save(tmp_path / "patches.npy", np.zeros((3, 2, 2, 3), np.uint8))
    pd.DataFrame({"image_id": ["a"]}).to_csv(tmp_path / "patches.csv", index=False)
    with pytest.raises(InputError, match="damaged: 1 rows, 3 patches"):
        PatchStore(tmp_path)


def _batches(batch_size=4, seed=0, augmentation=None):
    first = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3)
    second = first + 100
    labels = [np.arange(10) % 4, np.full(10, 3)]
    chosen = [np.array([0, 2, 4, 6, 8]), np.array([1, 3])]
    return Batches([first, second], labels, chosen, batch_size, seed, augmentation)


def test_prediction_batches_keep_the_order_and_fill_up_the_last():
    batches = _batches()
    seen = np.concatenate([batches[i][0][:, 0, 0, 0] for i in range(len(batches))])
    assert seen.tolist() == [0, 2, 4, 6, 8, 101, 103, 103]
    assert batches.labels.tolist() == [0, 2, 0, 2, 0, 3, 3]


def test_training_batches_hold_each_patch_at_most_once_with_its_label():
    batches = _batches(2, augmentation=Augmentation(0, 0, 0))
    seen, labels = [], []
    for index in range(len(batches)):
        (patches, _), one_hot = batches[index]
        assert patches.dtype == np.uint8
        seen += patches[:, 0, 0, 0].tolist()
        labels += one_hot.argmax(axis=1).tolist()
    assert len(seen) == len(set(seen)) == 6
    truth = {0: 0, 2: 2, 4: 0, 6: 2, 8: 0, 101: 3, 103: 3}
    assert [truth[value] for value in seen] == labels


def _same(one, other):
    """Of patches, parameters and labels of two batches, which are the same."""
    (patches, parameters), labels = one
    return [
        np.array_equal(a, b)
        for a, b in zip((patches, parameters, labels), (*other[0], other[1]), strict=True)
    ]


def test_order_and_augmentation_depend_on_seed_and_epoch_only():
    one, other = (_batches(3, augmentation=Augmentation()) for _ in range(2))
    first = one[1]
    one.on_epoch_end()  # Keras says so when it likes; only `start_epoch` counts
    assert all(_same(one[1], first))
    one.start_epoch(1)
    second = one[1]
    other.start_epoch(1)
    assert all(_same(other[1], second))
    assert _same(first, second)[:2] == [False, False]
    assert _same(_batches(3, 1, Augmentation())[1], first)[:2] == [False, False]


def test_no_patches_is_an_error():
    with pytest.raises(InputError, match="No patches"):
        Batches([np.zeros((2, 1, 1, 3), np.uint8)], [np.zeros(2)], [np.zeros(0, int)], 4)


def test_take_rows_keeps_whole_images_of_every_class():
    table = pd.DataFrame({"image_id": list("aabbccdd"), "label": [0, 0, 0, 0, 1, 1, 1, 1]})
    assert take_rows(table, 1).tolist() == [0, 1, 4, 5]
    assert len(take_rows(table, None)) == 8
