"""Objects for QuPath: what QuPath's own code asks for, and the same class map read back."""

import gzip
import json
import math
import uuid

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up import add_slide
from shapely.geometry import Polygon

from bach import tasks
from bach.annotations import files, label_mask, read_regions
from bach.annotations.checks import slide_labels
from bach.annotations.regions import read_annotation
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core.errors import InputError
from bach.export.__main__ import main
from bach.export.outlines import outlines
from bach.slides import Slide, first_shown

# One-px regions, holes in holes, corners that touch, all four edges of the map.
NESTED = np.array(
    [
        [3, 0, 1, 1, 1, 1, 1, 0],
        [0, 3, 1, 0, 0, 2, 1, 0],
        [3, 0, 1, 0, 3, 0, 1, 0],
        [0, 0, 1, 0, 0, 0, 1, 2],
        [2, 2, 1, 1, 1, 1, 1, 2],
        [2, 0, 2, 0, 0, 2, 2, 0],
        [2, 2, 0, 3, 0, 2, 0, 2],
        [2, 0, 2, 2, 2, 2, 2, 2],
    ],
    np.uint8,
)

REAL = ROOT / "docs/slides/cmu-1-small-region.svs"


def export(run, *words):
    return main(["qupath", str(run), "--offset", "0", "0", *words])


def features(run, name):
    with gzip.open(run / "qupath" / f"{name}.geojson.gz", "rt", encoding="utf-8") as stream:
        return json.load(stream)


def read_back(run, name, record):
    regions = read_regions(run / "qupath" / f"{name}.geojson.gz")
    return label_mask(regions, record.width, record.height, record.downsample)


# What QuPath reads. The classes of github.com/qupath/qupath at e7662d89ec70be3015885ef1fd1b2ffa
# 77515613, read line by line; the same in 0.5.1, 0.6.0 and 0.7.0.


def as_qupath_reads(content):
    """The objects of a file as QuPath has them, by its own rules; what it refuses, fails."""
    # GsonTools.addPathObjects: an object is looked at if it has a "type" it knows.
    assert content["type"] == "FeatureCollection"
    return [_object(feature) for feature in content["features"]]


def _object(feature):
    assert feature["type"] == "Feature"
    # PathObjectTypeAdapter.parseObject: UUID.fromString, or a new id is made up.
    identity = str(uuid.UUID(feature["id"]))
    assert identity == feature["id"]
    properties = feature["properties"]
    # "objectType" is looked for in the properties alone; what is not known is an annotation.
    kind = properties["objectType"]
    assert kind in ("tile", "cell", "detection", "annotation")
    # obj.get("isLocked").getAsBoolean(), if it is a primitive
    locked = properties.get("isLocked", False)
    assert isinstance(locked, bool)
    return {
        "id": identity,
        "kind": kind,
        "locked": locked,
        "roi": _geometry(feature["geometry"]),
        "class": _path_class(properties.get("classification")),
        "measurements": {k: _double(v) for k, v in properties.get("measurements", {}).items()},
    }


def _path_class(value):
    # PathClassTypeAdapter.read: null, a string, or an object with ("name" or "names") and
    # "color"; anything else throws JsonParseException, and nothing of the file is imported.
    if value is None or isinstance(value, str):
        return value
    assert set(value) == {"name", "color"}
    # PathClassProxy: int[] color; arrayToRgb takes red, green, blue.
    assert len(value["color"]) == 3
    assert all(type(part) is int and 0 <= part <= 255 for part in value["color"])
    # PathClass.fromString splits at ":", and trims.
    assert ":" not in value["name"]
    assert value["name"] == value["name"].strip()
    return value["name"], tuple(value["color"])


def _double(value):
    # MeasurementListTypeAdapter.read: a Number, or the strings nan, inf, -inf.
    if isinstance(value, str):
        assert value.lower() == "nan"
        return math.nan
    assert isinstance(value, int | float)
    return float(value)


def _geometry(value):
    # ROITypeAdapters.parsePolygon: rings of coordinates, the first the shell. LinearRing refuses
    # one that is not closed. GeometryTools' PrecisionModel(-0.01) rounds to hundredths.
    assert value["type"] == "Polygon"
    assert "plane" not in value
    assert "isEllipse" not in value
    for ring in value["coordinates"]:
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        assert all(len(point) == 2 for point in ring)
        assert np.allclose(np.round(ring, 2), ring, rtol=0, atol=1e-9)
    polygon = Polygon(value["coordinates"][0], value["coordinates"][1:])
    assert polygon.is_valid  # GEOS is JTS in C++
    assert polygon.area > 0
    return polygon


def test_every_value_is_such_as_qupath_reads_it(tmp_path):
    record = add_slide(tmp_path, "A01", np.tile(NESTED, (4, 6)))
    assert export(tmp_path) == 0
    probs = np.load(tmp_path / "probs/A01.npy")
    heatmap = np.load(tmp_path / "heatmaps/A01.npy")
    objects = as_qupath_reads(features(tmp_path, "A01"))
    assert len({one["id"] for one in objects}) == len(objects)
    tiles = [one for one in objects if one["kind"] == "tile"]
    cells = np.argwhere(~np.isnan(probs[..., 0]))
    assert len(tiles) == len(cells) > 10
    for one, (row, column) in zip(tiles, cells, strict=True):
        assert one["locked"]
        assert one["class"] is None
        values = dict(zip(PROB_COLUMNS, probs[row, column], strict=True))
        assert one["measurements"] == values | {"heatmap": heatmap[row, column]}
        left, top = column * record.step, row * record.step
        right, bottom = left + record.step, top + record.step
        bounds = (left, top, min(right, record.width), min(bottom, record.height))
        assert one["roi"].bounds == bounds
    regions = [one for one in objects if one["kind"] == "annotation"]
    assert {one["class"] for one in regions} == set(zip(CLASSES[1:], COLORS[1:], strict=True))
    assert not any(one["locked"] or one["measurements"] for one in regions)
    assert any(one["roi"].interiors for one in regions)


def test_a_number_that_is_none_is_the_text_nan(tmp_path):
    add_slide(tmp_path, "A01", NESTED)
    probs = np.full((1, 1, 4), 0.25, np.float32)
    probs[0, 0, 2] = np.nan
    np.save(tmp_path / "probs/A01.npy", probs)
    export(tmp_path)
    tile = features(tmp_path, "A01")["features"][0]
    assert tile["properties"]["measurements"]["prob_insitu"] == "NaN"
    assert np.isnan(as_qupath_reads(features(tmp_path, "A01"))[0]["measurements"]["prob_insitu"])


def test_the_same_result_gives_the_same_bytes_and_another_run_other_ids(tmp_path):
    add_slide(tmp_path, "A01", NESTED)
    file = tmp_path / "qupath/A01.geojson.gz"
    export(tmp_path)
    first, ids = file.read_bytes(), {one["id"] for one in features(tmp_path, "A01")["features"]}
    export(tmp_path)
    assert file.read_bytes() == first
    add_slide(tmp_path, "A01", NESTED, key={"slide": "other"})
    export(tmp_path)
    assert not ids & {one["id"] for one in features(tmp_path, "A01")["features"]}


# Outlines


@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
    )
)
@settings(max_examples=300, deadline=None)
def test_outlines_are_valid_polygons_of_the_area_of_their_pixels(class_map):
    areas = np.zeros(4)
    for label, rings in outlines(class_map):
        polygon = Polygon(rings[0], rings[1:])
        assert polygon.is_valid
        areas[label] += polygon.area
        for ring in rings:  # corners alone, each once
            assert len(ring) == len(set(map(tuple, ring.tolist())))
            turns = np.diff(np.concatenate([ring, ring[:2]]), axis=0)
            assert ((turns == 0).sum(axis=1) == 1).all()
            assert (turns[1:] * turns[:-1] == 0).all()
    assert areas[1:].tolist() == [(class_map == label).sum() for label in (1, 2, 3)]


def test_a_region_keeps_its_holes_and_what_lies_in_them_apart():
    found = [(label, len(rings)) for label, rings in outlines(NESTED[:5, 2:7])]
    assert found == [(1, 2), (2, 1), (3, 1)]


@given(
    class_map=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 3)
    ),
    downsample=st.floats(1.2, 70),
    part=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)),
)
@settings(max_examples=150, deadline=None)
def test_a_class_map_of_any_scale_is_read_back_as_it_was(
    tmp_path_factory, class_map, downsample, part
):
    run = tmp_path_factory.mktemp("run")
    sides = [
        math.ceil((side - 1 + share) * downsample)
        for side, share in zip(class_map.shape, part, strict=True)
    ]
    if [math.ceil(side / downsample - 1e-6) for side in sides] != list(class_map.shape):
        return  # the last px would be less than a px of the slide
    size = {"height": sides[0], "width": sides[1], "downsample": downsample}
    record = add_slide(run, "x", class_map, **size)
    export(run)
    as_qupath_reads(features(run, "x"))
    if class_map.any():
        assert np.array_equal(read_back(run, "x", record), class_map)


def test_nothing_lies_more_than_half_a_pixel_of_the_map_beyond_the_slide(tmp_path):
    record = add_slide(tmp_path, "A01", NESTED, width=8 * 16 - 12, height=8 * 16 - 5)
    export(tmp_path)
    for one in as_qupath_reads(features(tmp_path, "A01")):
        _, _, right, bottom = one["roi"].bounds
        beyond = 4.01 if one["kind"] == "annotation" else 0
        assert right <= record.width + beyond
        assert bottom <= record.height
    assert np.array_equal(read_back(tmp_path, "A01", record), NESTED)


def test_the_real_slide_is_read_back_as_it_was(tmp_path):
    with Slide(REAL) as slide:
        width, height, mpp = slide.width, slide.height, slide.mpp
    class_map = np.random.default_rng(1).integers(0, 4, (math.ceil(height / 15), 148))
    class_map = class_map.astype(np.uint8)
    sizes = {"width": width, "height": height, "mpp": mpp, "step": 134.4 / mpp, "downsample": 15.0}
    record = add_slide(tmp_path, REAL.stem, class_map, path=str(REAL), **sizes)
    assert main(["qupath", str(tmp_path)]) == 0
    as_qupath_reads(features(tmp_path, REAL.stem))
    assert np.array_equal(read_back(tmp_path, REAL.stem, record), class_map)


# Tiles and packed files in annotations


def test_tiles_are_counted_and_are_no_annotation(tmp_path):
    add_slide(tmp_path, "A01", np.tile(NESTED, (4, 6)))
    export(tmp_path)
    found = [one["properties"]["objectType"] for one in features(tmp_path, "A01")["features"]]
    annotation = read_annotation(tmp_path / "qupath/A01.geojson.gz")
    assert annotation.skipped == {"tile, no annotation": found.count("tile")}
    outer = [region for region in annotation.regions if not region.is_hole]
    assert len(outer) == found.count("annotation")


def test_what_unpacks_to_too_much_is_refused_before_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 10_000_000)
    path = tmp_path / "A01.geojson.gz"
    path.write_bytes(gzip.compress(b" " * 10_000_001))
    with pytest.raises(InputError, match=r"at most 10 MB[\s\S]*bytes that unpack to more"):
        read_regions(path)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + b"xx" + b[42:]])
def test_a_packed_file_that_is_damaged_is_named(tmp_path, damage):
    add_slide(tmp_path, "A01", NESTED)
    export(tmp_path)
    path = tmp_path / "qupath/A01.geojson.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"A01.geojson.gz must be a readable[\s\S]*gzip"):
        read_regions(path)


# Where QuPath begins to count


def test_coordinates_count_from_where_qupath_shows_the_slide_and_are_read_back_from_there(
    tmp_path,
):
    record = add_slide(tmp_path, "A01", NESTED)
    export(tmp_path)
    before = as_qupath_reads(features(tmp_path, "A01"))
    assert main(["qupath", str(tmp_path), "--offset", "100", "7"]) == 0
    after = as_qupath_reads(features(tmp_path, "A01"))
    shift = np.subtract(before[-1]["roi"].bounds, after[-1]["roi"].bounds)
    assert shift.tolist() == [100, 7, 100, 7]
    assert np.array_equal(read_back(tmp_path, "A01", record), NESTED)


# The smallest that OpenSlide takes for a Leica slide, whose scanned part begins at 500, 200.
SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection name="c" sizeX="2000000" sizeY="3000000"><barcode/>
{images}</collection></scn>"""
SCN_IMAGE = """<image name="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="L" version="1"/><pixels sizeX="{width}" sizeY="{height}">
<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>
<view sizeX="{nm_x}" sizeY="{nm_y}" offsetX="{left}" offsetY="{top}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>
"""


def write_scn(path):
    sizes = {"macro": (200, 300, 0, 2000000, 3000000, 0, 0)}
    sizes["main"] = (1024, 768, 1, 512000, 384000, 250000, 100000)
    names = ("width", "height", "ifd", "nm_x", "nm_y", "left", "top")
    images = [
        SCN_IMAGE.format(name=name, **dict(zip(names, values, strict=True)))
        for name, values in sizes.items()
    ]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for (width, height, *_), mpp in zip(sizes.values(), (10, 0.5), strict=True):
            writer.write(
                np.full((height, width, 3), 200, np.uint8),
                tile=(512, 512),
                photometric="rgb",
                description=SCN.format(images="".join(images)) if mpp == 10 else None,
                metadata=None,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
            )


def test_the_file_of_a_slide_says_where_qupath_begins_to_count(tmp_path):
    write_scn(tmp_path / "Präparat.scn")
    with Slide(tmp_path / "Präparat.scn") as slide:
        assert (slide.width, slide.height, slide.mpp) == (4000, 6000, 0.5)
    class_map = np.zeros((375, 250), np.uint8)
    class_map[20:28, 40:48] = NESTED
    sizes = {"width": 4000, "height": 6000, "path": str(tmp_path / "Präparat.scn")}
    record = add_slide(tmp_path, "Präparat", class_map, **sizes)
    assert main(["qupath", str(tmp_path)]) == 0
    content = features(tmp_path, "Präparat")
    assert content["bach_offset"] == [500, 200]
    first = next(one for one in as_qupath_reads(content) if one["kind"] == "annotation")
    assert first["roi"].bounds[1] == 20 * 16 - 200
    assert np.array_equal(read_back(tmp_path, "Präparat", record), class_map)


def test_what_qupath_draws_on_such_a_slide_is_read_where_it_lies(tmp_path):
    write_scn(tmp_path / "one.scn")
    ring = [[100.0, 300.0], [1700.0, 300.0], [1700.0, 1900.0], [100.0, 1900.0], [100.0, 300.0]]
    drawn = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Invasive"}},
    }
    content = {"type": "FeatureCollection", "features": [drawn]}
    (tmp_path / "one.geojson").write_text(json.dumps(content))
    (tmp_path / "ours.geojson").write_text(json.dumps(content | {"bach_offset": [500, 200]}))
    (tmp_path / "whole.geojson").write_text(json.dumps(content | {"bach_offset": [0, 0]}))
    expected = np.zeros((60, 40), np.uint8)
    expected[5:21, 6:22] = 3
    with Slide(tmp_path / "one.scn") as slide:
        labels, summary = slide_labels(tmp_path / "one.geojson", slide, 100)
        assert np.array_equal(labels, expected)
        assert "count from x=500, y=200, where QuPath begins" in " ".join(summary.notes)
        assert np.array_equal(slide_labels(tmp_path / "ours.geojson", slide, 100)[0], expected)
        labels, summary = slide_labels(tmp_path / "whole.geojson", slide, 100)
        assert np.array_equal(labels, np.roll(expected, (-2, -5), (0, 1)))
        assert "QuPath begins" not in " ".join(summary.notes)
    drawn["geometry"] = {"type": "MultiPoint", "coordinates": [[100.0, 300.0], [7.0, 9.0]]}
    drawn["properties"] = {"classification": {"name": "Mitosis"}}
    (tmp_path / "one.geojson").write_text(json.dumps(content))
    tasks.use("mitosis")
    marks = read_annotation(tmp_path / "one.geojson", None, (500, 200)).marks
    assert marks.tolist() == [[600, 500, 1], [507, 209, 1]]


def test_qupath_crops_only_slides_with_all_four_bounds_in_whole_numbers():
    bounds = {f"openslide.bounds-{side}": "5" for side in ("x", "y", "width", "height")}
    assert first_shown(bounds | {"openslide.bounds-y": "9"}) == (5, 9)
    # OpenslideImageServer: properties.keySet().containsAll(...), Integer.parseInt
    assert first_shown({k: v for k, v in bounds.items() if "height" not in k}) == (0, 0)
    assert first_shown(bounds | {"openslide.bounds-width": "5.5"}) == (0, 0)


def test_a_slide_that_is_gone_or_another_one_is_named_with_what_to_do(tmp_path):
    add_slide(tmp_path, "A01", NESTED, path="gone.svs")
    with pytest.raises(InputError, match=r"gone.svs must be there[\s\S]*--slides-dir[\s\S]*--off"):
        main(["qupath", str(tmp_path)])
    add_slide(tmp_path, "A01", NESTED, path=str(REAL))
    with pytest.raises(InputError, match=r"2220x2967 px, not 128x128[\s\S]*--offset X Y"):
        main(["qupath", str(tmp_path)])
    assert export(tmp_path) == 0


# Runs of all kinds


def test_one_slide_that_fails_does_not_stop_the_others(tmp_path, capsys):
    for name in ("Präparat 1", "b", "c"):
        add_slide(tmp_path, name, NESTED)
    np.save(tmp_path / "probs/b.npy", np.zeros((2, 2, 4), np.float32))
    (tmp_path / "class_maps/c.png").unlink()
    assert export(tmp_path) == 1
    assert "complete but for 2 of 3 slides: b, c" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "qupath").iterdir()] == ["Präparat 1.geojson.gz"]
    with pytest.raises(InputError, match=r"probs of \(2, 2, 4\), not \(1, 1, 4\)"):
        export(tmp_path, "b")


def test_what_is_no_run_and_slides_that_are_not_in_it_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be a run of make_heatmap.py[\s\S]*no folder"):
        export(tmp_path / "none")
    with pytest.raises(InputError, match=r"a folder without slides"):
        export(tmp_path)
    add_slide(tmp_path, "A01", NESTED)
    with pytest.raises(InputError, match=r"some of .*: A01.\nReceived: A02"):
        export(tmp_path, "A02")


def test_an_unfinished_run_and_a_map_without_regions_are_exported(tmp_path):
    add_slide(tmp_path, "A01", np.zeros((1, 1), np.uint8), width=3, height=2)
    (tmp_path / "metrics.json").unlink()
    assert export(tmp_path, "--out", str(tmp_path / "out dir")) == 0
    with gzip.open(tmp_path / "out dir/A01.geojson.gz") as stream:
        objects = as_qupath_reads(json.load(stream))
    assert [one["kind"] for one in objects] == ["tile"]
    assert objects[0]["roi"].bounds == (0, 0, 3, 2)
