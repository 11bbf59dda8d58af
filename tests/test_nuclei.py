import cv2
import numpy as np
import pandas as pd
import pytest
from skimage.color import rgb2hed

from bach import nuclei
from bach.core.pictures import write_png
from bach.slides import Slide

# Optical densities as Ruifrok and Johnston have them, and what is seen of them.
PINK, BLUE = (233, 160, 200), (92, 64, 140)


def picture(size, places, radius=4.0, mpp=nuclei.MPP):
    """Pink tissue with round blue nuclei at x, y in um."""
    width, height = (round(side / mpp) for side in size)
    rgb = np.full((height, width, 3), PINK, np.uint8)
    for x, y in places:
        middle = tuple(round((v / mpp - 0.5) * 16) for v in (x, y))
        cv2.circle(rgb, middle, round(radius / mpp * 16), BLUE, -1, cv2.LINE_AA, 4)
    return rgb


@pytest.fixture
def slide_of(tmp_path):
    def make(rgb, mpp):
        path = tmp_path / f"sl ide ä {mpp}.png"
        write_png(path, rgb)
        return Slide(path, mpp=mpp)

    return make


def test_hematoxylin_is_that_of_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    ours = nuclei.hematoxylin(rgb) / -np.log(1e-6)
    np.testing.assert_allclose(ours, rgb2hed(rgb)[..., 0], atol=1e-5)


def test_a_blob_is_found_in_its_middle_and_even_tissue_has_none():
    found = nuclei.blobs(picture((40, 30), [(20.25, 14.25)]))
    assert found[["row", "col"]].to_numpy().tolist() == [[28, 40]]
    assert nuclei.blobs(picture((40, 30), [])).empty
    assert nuclei.blobs(np.full((20, 20, 3), 255, np.uint8)).empty
    assert nuclei.blobs(np.zeros((20, 20, 3), np.uint8)).empty


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 9)])
def test_pictures_of_any_size_are_looked_at(shape):
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = nuclei.blobs(rgb)
    assert found["row"].between(0, shape[0] - 1).all()


@pytest.mark.parametrize("mpp", [0.25, 0.243, 0.5])
def test_nuclei_of_a_slide_are_proposed_where_they_are_at_any_scale(slide_of, mpp):
    places = [(30, 30), (60, 30), (30, 61), (90.5, 75)]
    with slide_of(picture((121, 103), places, mpp=mpp), mpp) as slide:
        found = nuclei.propose(slide)
    assert set(found["image_id"]) == {slide.name}
    truth = pd.DataFrame(places, columns=["x_um", "y_um"])
    assert len(found) == 4
    assert nuclei.recall(found, truth, 0.5) == (4, 4)
    np.testing.assert_allclose(found["x"] * mpp, found["x_um"])


def test_the_proposals_do_not_depend_on_the_tiles(slide_of, monkeypatch):
    rng = np.random.default_rng(2)
    rgb = picture((150, 130), rng.uniform(0, (150, 130), (60, 2)))
    rgb = np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)
    with slide_of(rgb, nuclei.MPP) as slide:
        whole = nuclei.propose(slide)
        monkeypatch.setattr(nuclei, "_TILE_PX", 64)
        parts = nuclei.propose(slide)
    assert len(whole) > 30
    columns = ["x", "y", "score"]
    pd.testing.assert_frame_equal(
        whole.sort_values(columns)[columns].reset_index(drop=True),
        parts.sort_values(columns)[columns].reset_index(drop=True),
        atol=1e-4,
    )


def test_of_two_proposals_that_are_near_the_better_one_is_kept(slide_of):
    with slide_of(picture((60, 40), [(20, 20), (28, 20)]), nuclei.MPP) as slide:
        assert len(nuclei.propose(slide)) == 2
        assert len(nuclei.propose(slide, apart_um=10)) == 1


def test_a_slide_of_one_pixel_has_no_nuclei(slide_of):
    with slide_of(np.full((1, 1, 3), BLUE, np.uint8), 0.25) as slide:
        assert nuclei.propose(slide).empty


def test_recall_asks_for_a_proposal_near_by():
    truth = pd.DataFrame({"x_um": [0.0, 3, 100], "y_um": [0.0, 0, 0]})
    found = pd.DataFrame({"x_um": [1.0], "y_um": [0.0]})
    assert nuclei.recall(found, truth, 7.5) == (2, 3)
    assert nuclei.recall(found.iloc[:0], truth, 7.5) == (0, 3)
    assert nuclei.recall(found, truth.iloc[:0], 7.5) == (0, 0)
