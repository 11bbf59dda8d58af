"""Patch stores: what is cut, and that a store of something else is refused."""

import concurrent.futures
import shutil
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from bach.core.errors import InputError
from bach.network import stores
from bach.network.stores import (
    PatchStore,
    cut_photos,
    cut_slides,
    photo_to_patches,
    store_exists,
    store_photos,
    take_rows,
)
from bach.patches import COLUMNS, View, photo_patches
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


@pytest.mark.parametrize("view", [View(), View(32), View(0, 2)])
def test_patches_are_those_that_opencv_shrinks_one_by_one(view):
    """To the byte, for the means of a photo are taken once for all of its patches."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (1540, 2051, 3), np.uint8)
    # Every sum of 25 px, and with it every rounding.
    sums = np.arange(6376)
    blocks = (sums[:, None] // 25 + (np.arange(25) < sums[:, None] % 25)).astype(np.uint8)
    tiles = blocks[: 300 * 21].reshape(300, 21, 5, 5).transpose(0, 2, 1, 3).reshape(1500, 105)
    photo[:1500, :105] = tiles[..., None]
    photo[:380, 105:110] = blocks[300 * 21 :].reshape(-1, 5)[:380, :, None]
    table = photo_patches("n001", 2051, 1540, None)
    around = 5 * view.margin
    wide = cv2.copyMakeBorder(photo, *[around] * 4, borderType=cv2.BORDER_REFLECT_101)
    patches = photo_to_patches(photo, table, view)
    for patch, row in zip(patches, table.itertuples(), strict=True):
        end = row.size + 2 * around
        whole = wide[row.y : row.y + end, row.x : row.x + end]
        right = cv2.resize(whole, (view.side, view.side), interpolation=cv2.INTER_AREA)
        assert np.array_equal(patch, right)


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


@pytest.fixture
def images(photo, tmp_path):
    """A table of two photos that lie in `tmp_path`."""
    rows = []
    for label, name in enumerate(("n001", "b001")):
        path = str(tmp_path / f"{name}.tif")
        cv2.imwrite(path, np.roll(photo, label, axis=1)[..., ::-1])
        rows.append((name, path, label, 2048, 1536))
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "width", "height"])


def test_a_store_is_cut_once_and_mapped_from_disk(photo, images, tmp_path):
    store = cut_photos(images, tmp_path / "store", View(32))
    assert isinstance(store.patches, np.memmap)
    first = photo_to_patches(photo, store.table[:14], View(32))
    assert np.array_equal(store.patches[:14], first)
    written = (tmp_path / "store/patches.npy").stat().st_mtime_ns
    again = cut_photos(images, tmp_path / "store", View(32))
    assert (tmp_path / "store/patches.npy").stat().st_mtime_ns == written
    assert again.table.equals(store.table)
    assert again.table["image_id"].tolist() == ["n001"] * 14 + ["b001"] * 14
    assert again.view == PatchStore(tmp_path / "store").view == View(32)


def test_runs_that_share_a_folder_wait_for_the_one_that_cuts(images, tmp_path, monkeypatch):
    cut = []
    write = stores._write_patches
    monkeypatch.setattr(
        stores, "_write_patches", lambda *given: (cut.append(1), time.sleep(0.3), write(*given))
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cut_photos(images, tmp_path / "patches"), range(3)))
    assert len(cut) == 1
    assert all((one.patches == found[0].patches).all() for one in found)


def test_a_store_of_other_pixels_photos_labels_or_views_is_refused(images, tmp_path):
    folder = tmp_path / "store"
    cut_photos(images, folder)
    before = (folder / "patches.npy").read_bytes()
    with pytest.raises(InputError, match=r"margin=0 --magnif\w+=1, wanted are .*margin=32"):
        cut_photos(images, folder, View(32))
    with pytest.raises(InputError, match=r"patches for --margin=0 .* whole photos of 427x331 px"):
        store_photos(images, folder, (331, 427))
    with pytest.raises(InputError, match=r"photos that were added.*: b001\."):
        cut_photos(images[:1], folder)
    with pytest.raises(InputError, match="another patch table"):
        cut_photos(images.assign(label=[0, 3]), folder)
    # The same photo from elsewhere is no other photo; one with another pixel is.
    elsewhere = shutil.copy(images["path"][0], tmp_path / "copy.tif")
    moved = images.assign(path=[elsewhere, images["path"][1]])
    cut_photos(moved, folder)
    pixels = cv2.imread(images["path"][0])
    pixels[0, 0] ^= 1
    cv2.imwrite(images["path"][0], pixels)
    with pytest.raises(InputError, match=r"changed since: n001\.\nName another folder"):
        cut_photos(images, folder)
    assert (folder / "patches.npy").read_bytes() == before


def test_a_store_that_does_not_say_what_it_was_cut_from_is_refused(images, tmp_path):
    cut_photos(images, tmp_path / "store")
    (tmp_path / "store/store.json").unlink()
    for use in (PatchStore, lambda folder: cut_photos(images, folder)):
        with pytest.raises(InputError, match=r"earlier version\.\nDelete the folder"):
            use(tmp_path / "store")


def test_whole_photos_are_stored_as_the_network_takes_them(images, tmp_path):
    store = store_photos(images, tmp_path / "store", (331, 427))
    assert store.patches.shape == (2, 331, 427, 3)
    assert store.view is None
    assert store.table["label"].tolist() == [0, 1]
    assert len(store_photos(images, tmp_path / "store", (331, 427)).table) == 2
    with pytest.raises(InputError, match=r"photos of 427x331 px, wanted are .* of 459x331 px"):
        store_photos(images, tmp_path / "store", (331, 459))


def test_photos_smaller_than_a_patch_are_refused(tmp_path):
    images = pd.DataFrame(
        {"image_id": ["n1"], "path": ["n1.tif"], "label": [0], "width": [2048], "height": [1000]}
    )
    with pytest.raises(InputError, match=r"at least 1495[\s\S]*n1.tif, 2048x1000"):
        cut_photos(images, tmp_path / "store")
    assert not store_exists(tmp_path / "store")


def test_photos_of_another_scale_are_cut_at_true_scale(images, tmp_path):
    half = images.assign(width=1024, height=768, mpp=0.84)
    for path in images["path"]:
        cv2.imwrite(path, cv2.resize(cv2.imread(path), (1024, 768), interpolation=cv2.INTER_AREA))
    unknown = half.assign(mpp=np.nan)
    with pytest.raises(InputError, match=r"at least 1495 px[\s\S]*1024x768 px\.\nState"):
        cut_photos(unknown, tmp_path / "store")
    with pytest.raises(InputError, match="must have a stated scale"):
        store_photos(unknown, tmp_path / "store", (331, 427))
    assert not store_exists(tmp_path / "store")
    store = cut_photos(half, tmp_path / "store")
    assert store.patches.shape == (28, 299, 299, 3)
    assert set(store.table["size"]) == {1495}
    # The first patch is the first 747.5 px of the file.
    pixels = cv2.imread(images["path"][0])[..., ::-1]
    whole = cv2.resize(pixels, (2048, 1536), interpolation=cv2.INTER_LINEAR)[:1495, :1495]
    expected = whole.reshape(299, 5, 299, 5, 3).mean(axis=(1, 3))
    assert np.abs(store.patches[0] - expected).max() <= 0.51
    with pytest.raises(InputError, match="another patch table or scale"):
        cut_photos(half.assign(mpp=0.83), tmp_path / "store")
    assert store_photos(half, tmp_path / "whole", (331, 427)).patches.shape == (2, 331, 427, 3)


def test_a_patch_that_does_not_lie_in_its_photo_is_never_stretched(photo):
    with pytest.raises(ValueError, match="must lie in the photo"):
        photo_to_patches(photo[:1000], photo_patches("n001", 2048, 1536, 0))


def test_slide_patches_are_cut_at_their_place_and_scale(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 24, 3), np.uint8)
    pixels = cv2.resize(coarse, (1920, 1600), interpolation=cv2.INTER_CUBIC)
    write_slide(tmp_path / "A01.svs", pixels, mpp=0.42)
    table = pd.DataFrame(
        [["A01", 0.0, 5.0, 1495.0, 1.0, 0], ["A01", 425.0, 105.0, 1495.0, 1.0, 3]], columns=COLUMNS
    )
    store = cut_slides(table, {"A01": str(tmp_path / "A01.svs")}, tmp_path / "store", None)
    square = pixels[105:1600, 425:1920].reshape(299, 5, 299, 5, 3).mean(axis=(1, 3))
    # Read from the level of factor 4, which is smooth here: a few gray values.
    assert np.abs(store.patches[1] - square).mean() < 2
    assert store.table["label"].tolist() == [0, 3]
    with pytest.raises(InputError, match="another patch table or scale"):
        cut_slides(table, {"A01": str(tmp_path / "A01.svs")}, tmp_path / "store", 0.5)
    write_slide(tmp_path / "A01.svs", pixels[::-1], mpp=0.42)
    with pytest.raises(InputError, match=r"slides that were .*changed since: A01\."):
        cut_slides(table, {"A01": str(tmp_path / "A01.svs")}, tmp_path / "store", None)


def test_a_damaged_store_is_an_error(images, tmp_path):
    with pytest.raises(InputError, match="no patch store"):
        PatchStore(tmp_path)
    cut_photos(images, tmp_path / "store")
    np.save(tmp_path / "store/patches.npy", np.zeros((3, 299, 299, 3), np.uint8))
    with pytest.raises(InputError, match=r"damaged[\s\S]*\(3, 299, 299, 3\) for \(28, 299"):
        PatchStore(tmp_path / "store")


def test_take_rows_keeps_whole_images_of_every_class():
    table = pd.DataFrame({"image_id": list("aabbccdd"), "label": [0, 0, 0, 0, 1, 1, 1, 1]})
    assert take_rows(table, 1).tolist() == [0, 1, 4, 5]
    assert len(take_rows(table, None)) == 8
