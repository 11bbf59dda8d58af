"""Pyramids of the maps: what OpenSlide, tifffile and the OME schema make of them."""

import numpy as np
import ome_types
import openslide
import pytest
import tifffile
from made_up import add_slide

from bach.classes import CLASSES, COLORS
from bach.core.errors import InputError
from bach.export.__main__ import main
from bach.slides import Slide

RNG = np.random.default_rng(0)


def blocks(rows, columns):
    small = RNG.integers(0, 4, (rows // 9 + 1, columns // 9 + 1)).astype(np.uint8)
    return np.kron(small, np.ones((9, 9), np.uint8))[:rows, :columns]


def export(run, *words):
    assert main(["tiff", str(run), *words]) == 0


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 65), (300, 517), (1025, 70)])
def test_openslide_reads_levels_and_scale_of_the_class_pyramid(tmp_path, rows, columns):
    class_map = blocks(rows, columns)
    record = add_slide(tmp_path, "A01", class_map, mpp=0.467)
    export(tmp_path)
    with openslide.OpenSlide(tmp_path / "tiff/A01.classes.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.dimensions == (columns, rows)
        for axis in "xy":
            mpp = float(slide.properties[f"openslide.mpp-{axis}"])
            assert mpp == pytest.approx(record.mpp * record.downsample, rel=1e-6)
        longer = max(rows, columns)
        sides = [longer]
        while sides[-1] > 64:
            sides.append((sides[-1] + 1) // 2)
        assert [max(size) for size in slide.level_dimensions] == sides
        read = [
            np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
            for level, size in enumerate(slide.level_dimensions)
        ]
    assert np.array_equal(read[0], np.array(COLORS, np.uint8)[class_map])
    known = {tuple(color) for color in COLORS}
    for level in read[1:]:
        assert set(map(tuple, level.reshape(-1, 3).tolist())) <= known


def test_a_level_shows_the_most_frequent_class_and_of_two_the_later_one(tmp_path):
    four = np.array([[1, 1, 0, 0], [1, 3, 2, 2]], np.uint8)
    class_map = np.zeros((2, 66), np.uint8)
    class_map[:, :4] = four
    class_map[:, 64:] = [[3, 0], [2, 1]]
    add_slide(tmp_path, "A01", class_map)
    export(tmp_path)
    with tifffile.TiffFile(tmp_path / "tiff/A01.classes.tif") as file:
        level = file.pages[1].asarray()
    colors = np.array(COLORS, np.uint8)
    assert np.array_equal(level[0, :2], colors[[1, 2]])
    assert np.array_equal(level[0, 2:32], colors[[0] * 30])
    assert np.array_equal(level[0, 32], colors[3])


def test_our_own_reader_opens_the_class_pyramid_as_a_slide(tmp_path):
    add_slide(tmp_path, "A01", blocks(300, 200), mpp=0.25)
    export(tmp_path)
    with Slide(tmp_path / "tiff/A01.classes.tif") as slide:
        assert slide.mpp == pytest.approx(4.0)
        slide.check()
        assert slide.missing_tiles() == 0


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (700, 900), (2700, 3100)])
def test_the_probabilities_are_an_ome_tiff_of_its_schema(tmp_path, rows, columns):
    name = "Präparat <1> & 2"
    record = add_slide(tmp_path, name, blocks(rows, columns), mpp=0.467, step=143.9)
    export(tmp_path)
    probs = np.load(tmp_path / f"probs/{name}.npy")
    path = tmp_path / f"tiff/{name}.probs.ome.tif"
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        xml = file.ome_metadata
        [series] = file.series
        assert (series.axes, series.dtype) == ("CYX", np.float32)
        whole = series.asarray()
        levels = [level.asarray() for level in series.levels]
        offsets = file.pages[0].tags.get("SubIFDs")
        assert file.pages[0].is_tiled
    assert np.array_equal(whole, probs.transpose(2, 0, 1), equal_nan=True)
    assert len(levels) == 1 + (0 if offsets is None else len(offsets.value))
    assert max(levels[-1].shape[1:]) <= 64
    ome_types.validate_xml(xml)  # the schema of the OME itself, 2016-06
    [image] = ome_types.from_xml(xml).images
    pixels = image.pixels
    assert image.name == name
    assert [channel.name for channel in pixels.channels] == list(CLASSES)
    assert pixels.physical_size_x == pytest.approx(record.step * record.mpp)
    assert pixels.physical_size_y == pixels.physical_size_x
    assert pixels.physical_size_x_unit.value == "µm"
    assert (pixels.size_c, pixels.size_y, pixels.size_x) == whole.shape


def test_a_smaller_level_is_the_mean_of_what_was_predicted(tmp_path):
    add_slide(tmp_path, "A01", blocks(700, 810))
    export(tmp_path)
    with tifffile.TiffFile(tmp_path / "tiff/A01.probs.ome.tif") as file:
        large, small = (level.asarray() for level in file.series[0].levels)
    for row, column in ((0, 0), (3, 17), (small.shape[1] - 1, small.shape[2] - 1)):
        four = large[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        if np.isnan(four).all():
            assert np.isnan(small[:, row, column]).all()
        else:
            assert np.nanmean(four, axis=(1, 2)) == pytest.approx(small[:, row, column], abs=1e-6)
    assert (np.isnan(small).sum(), np.isnan(large).sum()) > (0, 0)


def test_the_same_result_gives_the_same_bytes(tmp_path):
    add_slide(tmp_path, "A01", blocks(90, 70))
    export(tmp_path, "--out", str(tmp_path / "one"), "A01")
    export(tmp_path, "A01", "--out", str(tmp_path / "two"))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["A01.classes.tif", "A01.probs.ome.tif"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_damaged_map_is_named(tmp_path):
    add_slide(tmp_path, "A01", blocks(90, 70))
    (tmp_path / "heatmaps/A01.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"A01.npy must hold an array[\s\S]*--resume"):
        main(["tiff", str(tmp_path)])
