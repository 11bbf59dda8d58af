import json
import logging

import cv2
import numpy as np
import pytest
from skimage.draw import polygon

from bach import annotations
from bach.annotations import Region, annotation_mpp, label_mask, read_regions
from bach.core.errors import InputError

SQUARE = [(160, 480), (320, 480), (320, 640), (160, 640)]


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(annotations.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def box(x, y, side):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def region(text="", value=None, points=SQUARE, number=1, hole=0):
    attribute = "" if value is None else f'<Attribute Id="1" Name="" Value="{value}"/>'
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="{number}" Type="0" Text="{text}" NegativeROA="{hole}">'
        f"<Attributes>{attribute}</Attributes><Vertices>{vertices}</Vertices></Region>"
    )


def layer(*regions, number=1, name=""):
    return (
        f'<Annotation Id="{number}" Name="{name}"><Regions><RegionAttributeHeaders/>'
        f"{''.join(regions)}</Regions><Plots/></Annotation>"
    )


def write(tmp_path, *layers, head=' MicronsPerPixel="0.467000"'):
    path = tmp_path / "slide.xml"
    path.write_text(f'<?xml version="1.0"?>\n<Annotations{head}>{"".join(layers)}</Annotations>')
    return path


def labels(path):
    return [one.label for one in read_regions(path)]


def geojson(tmp_path, *features, name="slide.geojson"):
    path = tmp_path / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def feature(rings, label="Benign", kind="Polygon"):
    properties = {"objectType": "annotation"}
    if label is not None:
        properties["classification"] = {"name": label, "color": [1, 2, 3]}
    geometry = {"type": kind, "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


# Aperio ImageScope


@pytest.mark.parametrize(
    ("text", "value", "number", "label"),
    [
        ("", "Benign", 3, 1),
        ("", "Carcinoma in situ", 1, 2),
        ("In situ carcinoma", None, 1, 2),
        ("Invasive carcinoma", "", 1, 3),
        ("benign", None, 3, 1),
        ("normal", None, 3, 0),
        ("", None, 1, 1),
        ("", "", 2, 2),
        ("", None, 3, 3),
        ("invasive", "?", 1, 3),
    ],
)
def test_the_class_is_read_from_each_of_its_three_places(tmp_path, text, value, number, label):
    assert labels(write(tmp_path, layer(region(text, value), number=number))) == [label]


def test_a_layer_named_by_a_class_is_believed_before_its_number(tmp_path):
    assert labels(write(tmp_path, layer(region(), number=1, name="Invasive"))) == [3]


def test_every_layer_is_read_and_a_layer_may_be_empty(tmp_path):
    path = write(
        tmp_path,
        layer(number=1),
        layer(region("benign"), region(), number=2),
        layer(number=3),
        layer(region("invasive"), number=4),
    )
    assert labels(path) == [1, 2, 3]
    assert labels(write(tmp_path)) == []


def test_vertices_are_floats_in_level_0_pixels(tmp_path):
    path = write(tmp_path, layer(region(points=[(1.25, -2), (3, 4.5), (1e4, 7)])))
    (one,) = read_regions(path)
    assert one.points.dtype == np.float64
    assert one.points.tolist() == [[1.25, -2], [3, 4.5], [10000, 7]]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (layer(region("tumour?", number=7)), r"region 7 of layer 1 in .*slide\.xml .*\n.*tumour"),
        (layer(region("", "x", number=2), number=2), "region 2 of layer 2"),
        (layer(region(number=5), number=4), "region 5 of layer 4 .*\n.*no text.*Id='4'"),
        (layer(region(points=[(1, 2), ("", 3), (4, 5)])), "must be numbers"),
        (layer(region(points=[(1, 2), ("nan", 3), (4, 5)])), "must be finite"),
    ],
)
def test_a_region_that_cannot_be_read_is_named(tmp_path, layers, message):
    with pytest.raises(InputError, match=message):
        read_regions(write(tmp_path, layers))


def test_contradicting_classes_are_logged_and_the_attribute_wins(tmp_path, messages):
    assert labels(write(tmp_path, layer(region("invasive", "benign")))) == [1]
    assert "several classes (benign, invasive); taken: Benign" in messages.text


def test_a_hole_needs_no_class_and_comes_after_the_regions_of_its_layer(tmp_path):
    path = write(
        tmp_path,
        layer(region("??", hole=1), region("benign", number=2), number=9),
        layer(region("invasive"), number=3),
    )
    assert [(one.label, one.is_hole, one.layer) for one in read_regions(path)] == [
        (1, False, 0),
        (0, True, 0),
        (3, False, 1),
    ]


def test_a_region_with_fewer_than_3_vertices_is_kept_logged_and_paints_nothing(tmp_path, messages):
    for points in ([], [(20, 20)], [(0, 0), (900, 900)]):
        regions = read_regions(write(tmp_path, layer(region(points=points))))
        assert regions[0].points.shape == (len(points), 2)
        assert not label_mask(regions, 1000, 1000, 16).any()
    assert "1 of 1 regions have fewer than 3 vertices" in messages.text


@pytest.mark.parametrize(
    ("head", "mpp"),
    [
        (' MicronsPerPixel="0.467000"', 0.467),
        ("", None),
        (' MicronsPerPixel=""', None),
        (' MicronsPerPixel="0"', None),
    ],
)
def test_the_scale_is_read_where_there_is_one(tmp_path, head, mpp):
    assert annotation_mpp(write(tmp_path, head=head)) == mpp


def test_a_scale_that_is_no_number_is_refused_and_geojson_has_none(tmp_path):
    for text in ("fine", "-1", "nan"):
        with pytest.raises(InputError, match=f"Received: '{text}'"):
            annotation_mpp(write(tmp_path, head=f' MicronsPerPixel="{text}"'))
    assert annotation_mpp(geojson(tmp_path)) is None


def test_50000_vertices_are_read_and_painted(tmp_path):
    t = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    points = np.column_stack([np.cos(t), np.sin(t)]) * 20_000 + 21_000
    regions = read_regions(write(tmp_path, layer(region(points=points))))
    mask = label_mask(regions, 42_000, 62_000, 16)
    assert mask.sum() * 16**2 == pytest.approx(np.pi * 20_000**2, rel=1e-3)


# ASAP and QuPath


def asap(group, points):
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in points
    )
    return (
        "<ASAP_Annotations><Annotations>"
        f'<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation></Annotations>"
        "<AnnotationGroups/></ASAP_Annotations>"
    )


def test_asap_annotations_are_read_in_the_order_of_their_vertices(tmp_path):
    path = tmp_path / "slide.xml"
    path.write_text(asap("In Situ", [(10, (9, 9)), (0, (1, 2)), (2, (5.5, 6))]))
    (one,) = read_regions(path)
    assert one.label == 2
    assert one.points.tolist() == [[1, 2], [5.5, 6], [9, 9]]
    path.write_text(asap("None", [(0, (1, 2))]))
    with pytest.raises(InputError, match="PartOfGroup='None'"):
        read_regions(path)


def test_geojson_is_read_whatever_the_file_is_called(tmp_path):
    path = geojson(tmp_path, feature([SQUARE], "Invasive carcinoma"), name="slide.xml")
    (one,) = read_regions(path)
    assert (one.label, one.is_hole) == (3, False)
    assert one.points.tolist() == [list(map(float, point)) for point in SQUARE]
    path.write_text("\ufeff [" + json.dumps(feature([SQUARE])) + "]")
    assert labels(path) == [1]
    path.write_text(json.dumps(feature([SQUARE])))
    assert labels(path) == [1]


def test_inner_rings_are_holes_and_islands_in_them_stay(tmp_path):
    rings = [[box(0, 0, 60), box(10, 10, 40)], [box(20, 20, 20)]]
    for polygons in (rings, rings[::-1]):
        regions = read_regions(geojson(tmp_path, feature(polygons, kind="MultiPolygon")))
        assert sum(one.is_hole for one in regions) == 1
        mask = label_mask(regions, 60, 60, 10)
        assert mask[[0, 1, 2, 3, 4, 5], 2].tolist() == [1, 0, 1, 1, 0, 1]


def test_points_and_lines_are_left_out_and_logged(tmp_path, messages):
    shapes = [
        feature([1, 2], None, "Point"),
        feature([SQUARE]),
        feature([[1, 2]], None, "LineString"),
    ]
    assert labels(geojson(tmp_path, *shapes)) == [1]
    assert "2 points or lines" in messages.text


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature([SQUARE]), feature([SQUARE], None)], "feature 1 .*\n.*no classification"),
        ([feature([SQUARE], "Tumor")], "feature 0 .*\n.*'Tumor'"),
        ([{"type": "Feature", "geometry": None}], "geometry of feature 0"),
        ([feature([1, 2])], "must be numbers x, y"),
        ([feature([1], kind="MultiPolygon")], "geometry of feature 0"),
        ([feature([[["a", 1], [2, 3], [4, 5]]])], "must be numbers x, y"),
    ],
)
def test_a_feature_that_cannot_be_read_is_named(tmp_path, features, message):
    with pytest.raises(InputError, match=message):
        read_regions(geojson(tmp_path, *features))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "XML that is broken"),
        ("<Annotations><Annotation>", "XML that is broken"),
        ('{"type": "FeatureCollection", "feat', "JSON that is broken"),
        ('{"type": "FeatureCollection"}', "without a list of features"),
        ("[1, 2]", "without a list of features"),
        ("<svg/>", "XML of another kind"),
    ],
)
def test_other_files_are_refused_with_a_remedy(tmp_path, text, message):
    path = tmp_path / "slide.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_regions(path)
    with pytest.raises(InputError, match="readable annotation file"):
        read_regions(tmp_path / "none.xml")


# Painting


def shape(points, label=1, **more):
    return Region(label, np.array(points, float).reshape(-1, 2), **more)


def test_a_rectangle_paints_exactly_its_pixels():
    mask = label_mask([shape(SQUARE, 3)], 1000, 1000, 16)
    expected = np.zeros((63, 63), np.uint8)
    expected[30:40, 10:20] = 3
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


def test_a_pixel_belongs_to_the_region_its_centre_lies_in():
    # from 0.4 to 2.6 mask pixels: the centres 0.5, 1.5 and 2.5 lie in it
    assert label_mask([shape(box(4, 4, 22))], 40, 40, 10).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    # from 0.6 to 2.4: only 1.5
    assert np.argwhere(label_mask([shape(box(6, 6, 18))], 40, 40, 10)).tolist() == [[1, 1]]


@pytest.mark.parametrize("downsample", [1, 7.3, 16])
def test_the_area_of_a_circle_is_right_to_one_percent(downsample):
    t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.column_stack([np.cos(t), np.sin(t)]) * 900 + (1000.3, 1200.8)
    mask = label_mask([shape(circle)], 2100, 2300, downsample)
    assert mask.sum() * downsample**2 == pytest.approx(np.pi * 900**2, rel=0.01)
    rows, columns = np.nonzero(mask)
    centre = (columns.mean() + 0.5) * downsample, (rows.mean() + 0.5) * downsample
    assert centre == pytest.approx((1000.3, 1200.8), abs=0.1 * downsample)


def test_any_outline_agrees_with_testing_every_pixel_centre():
    rng = np.random.default_rng(0)
    for _ in range(20):  # crossing itself, and beyond the slide
        points = rng.uniform(-20, 80, (rng.integers(3, 12), 2))
        expected = np.zeros((60, 50), np.uint8)
        rows, columns = polygon(points[:, 1] - 0.5, points[:, 0] - 0.5, expected.shape)
        expected[rows, columns] = 1
        assert np.array_equal(label_mask([shape(points)], 50, 60, 1), expected)


def test_regions_that_touch_neither_overlap_nor_leave_a_gap():
    rng = np.random.default_rng(0)
    middle = np.column_stack([rng.uniform(20, 40, 9), np.linspace(0, 60, 9)])
    left = [*middle, (0, 60), (0, 0)]
    right = [*middle, (60, 60), (60, 0)]
    a, b = (label_mask([shape(points)], 60, 60, 1) for points in (left, right))
    assert (a + b == 1).all()


def test_opencv_grows_a_region_by_its_outline_and_we_do_not():
    points = np.round((np.array(SQUARE) / 16 - 0.5) * 256).astype(int)
    mask = np.zeros((63, 63), np.uint8)
    cv2.fillPoly(mask, [points], 1, shift=8)
    assert mask.sum() == 121
    assert label_mask([shape(SQUARE)], 1000, 1000, 16).sum() == 100


def test_the_mask_is_rounded_up_and_a_region_may_end_at_its_far_corner():
    mask = label_mask([shape(box(0, 0, 5000))], 1001, 500, 16)
    assert mask.shape == (32, 63)
    assert (mask == 1).all()
    assert label_mask([], 2048, 3000, 3000 / 7).shape == (7, 5)
    assert label_mask([], 3, 2, 16).shape == (1, 1)


def test_flipping_a_slide_flips_its_mask():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 320, (8, 2))
    mask = label_mask([shape(points)], 320, 480, 16)
    flipped = label_mask([shape(points * (-1, 1) + (320, 0))], 320, 480, 16)
    assert np.array_equal(flipped, mask[:, ::-1])


def test_later_regions_paint_over_earlier_ones():
    regions = [shape(box(0, 0, 40), 3), shape(box(10, 10, 20), 1), shape(box(20, 20, 30), 2)]
    assert np.diagonal(label_mask(regions, 60, 60, 10)).tolist() == [3, 1, 2, 2, 2, 0]


def test_a_hole_sets_its_area_back_to_normal(tmp_path):
    path = write(
        tmp_path,
        layer(region(points=box(10, 10, 20), hole=1), region("benign", points=box(0, 0, 40))),
    )
    mask = label_mask(read_regions(path), 50, 50, 10)
    assert np.diagonal(mask).tolist() == [1, 0, 0, 1, 0]


def test_a_hole_cuts_its_own_layer_and_shows_what_lies_below():
    regions = [
        shape(box(0, 0, 50), 1, layer=0),
        shape(box(10, 10, 30), 3, layer=1),
        shape(box(20, 20, 10), 0, is_hole=True, layer=1),
    ]
    assert np.diagonal(label_mask(regions, 60, 60, 10)).tolist() == [1, 3, 1, 3, 1, 0]


def test_a_region_outside_the_slide_or_between_centres_paints_nothing():
    for points in (box(-500, 0, 100), box(2000, 2000, 10), box(1, 1, 3)):
        assert not label_mask([shape(points)], 100, 100, 10).any()


@pytest.mark.parametrize("sides", [(0, 10, 1), (10, -1, 1), (10, 10, 0)])
def test_a_mask_without_size_is_refused(sides):
    with pytest.raises(ValueError, match="above 0"):
        label_mask([], *sides)
