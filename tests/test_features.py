"""Colour and texture features, and how they are kept."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import color

from bach.core.errors import InputError
from bach.honest.features import image_features, read_features


def test_a_plain_photo_has_the_colour_of_its_pixels():
    rgb = np.full((96, 128, 3), (200, 120, 180), np.uint8)
    found = image_features(rgb)
    lab = color.rgb2lab(rgb)[0, 0]
    assert found["colour_lightness_mean"] == pytest.approx(lab[0], abs=0.01)
    assert found["colour_green_red_50"] == pytest.approx(lab[1], abs=0.01)
    assert found["colour_blue_yellow_95"] == pytest.approx(lab[2], abs=0.01)
    assert found["colour_lightness_spread"] == pytest.approx(0, abs=0.01)
    assert all(np.isfinite(value) for value in found.values())


def test_features_do_not_tell_a_photo_from_its_mirror_image():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 96, 3), np.uint8)
    rgb = np.asarray(Image.fromarray(rgb).resize((384, 256)))
    there, back = (list(image_features(a).values()) for a in (rgb, rgb[:, ::-1]))
    assert np.allclose(there, back, rtol=0.02, atol=0.02)


def test_features_tell_fine_from_coarse_texture():
    rng = np.random.default_rng(0)
    fine = np.asarray(
        Image.fromarray(rng.integers(80, 200, (64, 64, 3), np.uint8)).resize((512, 512))
    )
    coarse = np.asarray(
        Image.fromarray(rng.integers(80, 200, (8, 8, 3), np.uint8)).resize((512, 512))
    )
    a, b = image_features(fine), image_features(coarse)
    assert a["texture_octave0_spread"] > 2 * b["texture_octave0_spread"]
    assert a["texture_correlation_1"] < b["texture_correlation_1"]


def test_features_are_kept_and_a_changed_photo_is_described_anew(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        rows.append({"image_id": name, "path": str(path)})
    images = pd.DataFrame(rows)
    first = read_features(images, tmp_path / "run")
    file = tmp_path / "run" / "features.csv"
    kept = pd.read_csv(file)
    kept["colour_eosin_mean"] = 12345.0  # to be told from what would be computed
    kept.to_csv(file, index=False)
    assert (read_features(images, tmp_path / "run")["colour_eosin_mean"] == 12345).all()
    Image.fromarray(rng.integers(0, 256, (80, 64, 3), np.uint8)).save(rows[1]["path"])
    again = read_features(images[::-1], tmp_path / "run")
    assert list(again.index) == ["b", "a"]
    assert again.loc["a", "colour_eosin_mean"] == 12345
    assert again.loc["b", "colour_eosin_mean"] != 12345
    assert list(again.columns) == list(first.columns)


def test_kept_features_are_exactly_those_computed(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    images = pd.DataFrame({"image_id": ["a"], "path": [str(tmp_path / "a.png")]})
    first = read_features(images, tmp_path / "run")
    pd.testing.assert_frame_equal(first, read_features(images, tmp_path / "run"), check_exact=True)


def test_kept_features_that_name_a_photo_twice_are_refused(tmp_path):
    Image.new("RGB", (64, 48), (200, 120, 180)).save(tmp_path / "a.tif")
    images = pd.DataFrame({"image_id": ["a"], "path": [tmp_path / "a.tif"]})
    read_features(images, tmp_path)
    file = tmp_path / "features.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(InputError, match=r"features\.csv once"):
        read_features(images, tmp_path)
