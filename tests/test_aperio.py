"""Slides and annotations in Aperio's form: read back by OpenSlide and by our own reader."""

import xml.etree.ElementTree as ET

import numpy as np
import openslide
import pytest

from bach.annotations import Region, annotation_mpp, read_regions
from bach.classes import parse_label
from bach.toy.aperio import SPELLINGS, TILE, write_annotation_xml, write_bands, write_slide


def level(slide, index):
    return np.asarray(slide.read_region((0, 0), index, slide.level_dimensions[index]))[..., :3]


def square(label, low=0.0, high=9.5, **more):
    points = np.array([[low, low], [high, low], [high, high], [low, high]], float)
    return Region(label, points, **more)


# Slides


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (531, 700, 3), dtype=np.uint8)


def test_a_slide_opens_as_aperio_with_its_scale_and_reads_back_as_it_was(tmp_path, pixels):
    write_slide(tmp_path / "a.svs", pixels, mpp=0.25)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert slide.properties["aperio.AppMag"] == "20"
        # What 4 does not divide is left out of the small levels.
        assert slide.level_dimensions == ((700, 531), (175, 132), (43, 33))
        np.testing.assert_array_equal(level(slide, 0), pixels)


def test_a_pixel_of_a_level_is_the_mean_of_its_block_in_the_level_before(tmp_path, pixels):
    write_slide(tmp_path / "a.svs", pixels)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        for index in (0, 1):
            fine, coarse = level(slide, index).astype(float), level(slide, index + 1)
            h, w = coarse.shape[:2]
            mean = fine[: 4 * h, : 4 * w].reshape(h, 4, w, 4, 3).mean(axis=(1, 3))
            assert np.abs(mean - coarse).max() <= 0.5


def test_a_slide_written_band_by_band_is_that_written_whole(tmp_path, pixels):
    write_slide(tmp_path / "whole.svs", pixels)
    bands = (pixels[top : top + TILE] for top in range(0, len(pixels), TILE))
    write_bands(tmp_path / "bands.svs", bands, (700, 531))
    assert (tmp_path / "bands.svs").read_bytes() == (tmp_path / "whole.svs").read_bytes()


def test_a_slide_can_be_written_without_a_scale(tmp_path, pixels):
    write_slide(tmp_path / "a.svs", pixels, mpp=None)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert "openslide.mpp-x" not in slide.properties


def test_the_smallest_slide_has_one_pixel_at_its_coarsest_level(tmp_path):
    write_slide(tmp_path / "a.svs", np.full((16, 16, 3), 90, np.uint8))
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert level(slide, 2).tolist() == [[[90, 90, 90]]]


def test_a_slide_that_cannot_be_written_is_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match="uint8 of shape"):
        write_slide(tmp_path / "a.svs", pixels.astype(float))
    with pytest.raises(ValueError, match="No pixel is left at 1/16"):
        write_slide(tmp_path / "a.svs", pixels[:15])
    assert list(tmp_path.iterdir()) == []


# Annotations


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_regions_read_back_as_they_were_written(tmp_path, spelling):
    regions = [square(3), square(1, 20, 40.25), square(1, 25, 30, is_hole=True), square(2, 50)]
    path = tmp_path / "a.xml"
    write_annotation_xml(path, regions, mpp=0.25, spelling=spelling, empty_layer=True)
    found = read_regions(path)
    assert annotation_mpp(path) == 0.25
    by_label = lambda some: sorted(some, key=lambda region: (region.label, region.points[0, 0]))
    read, written = by_label(x for x in found if not x.is_hole), by_label(regions[:2] + regions[3:])
    assert [region.label for region in read] == [1, 2, 3]
    for one, other in zip(read, written, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
    (hole,) = (region for region in found if region.is_hole)
    assert hole.points.tolist() == regions[2].points.tolist()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_class_stands_in_one_place_only(tmp_path, spelling):
    write_annotation_xml(tmp_path / "a.xml", [square(1), square(2), square(3)], spelling=spelling)
    root = ET.parse(tmp_path / "a.xml").getroot()
    values = [parse_label(one.get("Value")) for one in root.iter("Attribute")]
    texts = [parse_label(one.get("Text")) for one in root.iter("Region")]
    layers = [layer.get("Id") for layer in root.iter("Annotation")]
    assert values == ([1, 2, 3] if spelling == "attribute" else [])
    assert texts == ([1, 2, 3] if spelling == "text" else [None] * 3)
    assert layers == (["1", "2", "3"] if spelling == "layer" else ["1"])


def test_whole_numbers_are_written_without_a_point(tmp_path):
    write_annotation_xml(tmp_path / "a.xml", [square(1, 3, 9.5)])
    xs = [vertex.get("X") for vertex in ET.parse(tmp_path / "a.xml").iter("Vertex")]
    assert xs == ["3", "9.50", "9.50", "3"]


def test_annotations_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ValueError, match="spelling must be one of"):
        write_annotation_xml(tmp_path / "a.xml", [square(1)], spelling="color")
    for region in (square(0), Region(1, np.zeros((4, 3)))):
        with pytest.raises(ValueError, match=r"label 1\.\.3"):
            write_annotation_xml(tmp_path / "a.xml", [region])
    assert list(tmp_path.iterdir()) == []
