"""Annotation files as people bring them, read as regions of a class."""

import json
import logging
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bach.annotations import annotation_mpp, label_mask, read_regions, regions
from bach.annotations.regions import read_annotation, read_class_map_file
from bach.classes import BENIGN, INSITU, INVASIVE, NORMAL
from bach.core.errors import InputError

SQUARE = [(160, 480), (320, 480), (320, 640), (160, 640)]

# Hypothesis runs many examples in one folder; each writes its file anew.
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(regions.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def box(x, y, side):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def region(text="", value=None, points=SQUARE, number=1, hole=0, kind="0"):
    attribute = "" if value is None else f'<Attribute Id="1" Name="" Value="{value}"/>'
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="{number}" Type="{kind}" Text="{text}" NegativeROA="{hole}">'
        f"<Attributes>{attribute}</Attributes><Vertices>{vertices}</Vertices></Region>"
    )


def layer(*members, number=1, name=""):
    return (
        f'<Annotation Id="{number}" Name="{name}"><Regions><RegionAttributeHeaders/>'
        f"{''.join(members)}</Regions><Plots/></Annotation>"
    )


def write(tmp_path, *layers, head=' MicronsPerPixel="0.467000"'):
    path = tmp_path / "slide.xml"
    path.write_text(f'<?xml version="1.0"?>\n<Annotations{head}>{"".join(layers)}</Annotations>')
    return path


def labels(path, class_map=None):
    return [one.label for one in read_regions(path, class_map)]


def geojson(tmp_path, *features, name="slide.geojson"):
    path = tmp_path / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def feature(rings, label="Benign", kind="Polygon", **more):
    properties = {"objectType": "annotation"}
    if label is not None:
        properties["classification"] = {"name": label, "color": [1, 2, 3]}
    geometry = {"type": kind, "coordinates": rings, **more}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def classified(classification, **properties):
    one = feature([SQUARE])
    one["properties"] = {"classification": classification, **properties}
    return one


def asap(*annotations):
    return (
        f"<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations>"
        "<AnnotationGroups/></ASAP_Annotations>"
    )


def in_group(group, points, kind="Polygon"):
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}"/>' for order, (x, y) in points
    )
    return (
        f'<Annotation Name="Annotation 0" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{coordinates}</Coordinates></Annotation>"
    )


def class_map(tmp_path, *rows):
    path = tmp_path / "classes.csv"
    path.write_text("\n".join(rows))
    return path


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


def test_the_number_of_a_layer_with_another_name_counts_and_the_log_says_so(tmp_path, messages):
    assert labels(write(tmp_path, layer(region(), number=1, name="Tumor"))) == [1]
    assert "counts as Benign by the number of its layer" in messages.text
    mapped = class_map(tmp_path, "tumor,Invasive")
    assert labels(write(tmp_path, layer(region(), number=1, name="Tumor")), mapped) == [3]


def test_every_layer_is_read_and_a_layer_may_be_empty(tmp_path):
    path = write(
        tmp_path,
        layer(number=1),
        layer(region("benign"), region(), number=2),
        layer(number=3),
        layer(region("invasive"), number=4),
    )
    assert labels(path) == [1, 2, 3]


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
        (layer(region(points=[(1, 2), ("1e300", 3), (4, 5)])), "must be finite, and pixels"),
        (layer(region(points=[(1, 2), ("1,2,3", 3), (4, 5)])), "'1,2,3' is no number"),
        (layer(region(kind="9")), "must be a kind of shape .*\n.*Type='9'"),
        (layer(region(hole="perhaps")), "NegativeROA of region 1"),
    ],
)
def test_a_region_that_cannot_be_read_is_named(tmp_path, layers, message):
    with pytest.raises(InputError, match=message):
        read_regions(write(tmp_path, layers))


def test_contradicting_classes_are_logged_and_the_attribute_wins(tmp_path, messages):
    assert labels(write(tmp_path, layer(region("invasive", "benign")))) == [1]
    assert "several classes (benign, invasive); taken: benign" in messages.text


def test_regions_and_holes_come_in_the_order_of_the_file_and_a_hole_needs_no_class(tmp_path):
    path = write(
        tmp_path,
        layer(
            region("benign", number=2),
            region("??", hole=1),
            region("invasive", points=box(200, 500, 20)),
            number=9,
        ),
        layer(region("invasive"), number=3),
    )
    found = read_regions(path)
    assert [(one.label, one.is_hole, one.layer) for one in found] == [
        (1, False, 0),
        (0, True, 0),
        (3, False, 0),
        (3, False, 1),
    ]
    # The island of the first layer, as drawn after the hole, and the region of the second.
    assert (label_mask(found[:3], 400, 700, 10)[50:52, 20:22] == 3).all()


def test_kinds_of_shapes_are_told_apart(tmp_path):
    corners = [(200, 200), (1800, 2600)]
    four = [(200, 200), (1800, 200), (1800, 2600), (200, 2600)]
    whole = 1600 * 2400
    for kind, points, area in (
        ("1", corners, whole),
        ("Rectangle", corners, whole),
        ("1", four, whole),
        ("1", [four[0], four[1], four[3], four[2]], whole),
        ("2", corners, np.pi / 4 * whole),
        ("2", corners[::-1], np.pi / 4 * whole),
        ("2", four, np.pi / 4 * whole),
        ("2", [*four, four[0]], np.pi / 4 * whole),
        ("Ellipse", four, np.pi / 4 * whole),
        ("0", four, whole),
        ("", four, whole),
        ("Polygon", four, whole),
    ):
        path = write(tmp_path, layer(region("invasive", points=points, kind=kind)))
        mask = label_mask(read_regions(path), 2000, 3000, 10)
        assert (mask == 3).sum() * 100 == pytest.approx(area, rel=2e-3), (kind, points)


def test_an_ellipse_that_was_drawn_out_is_painted_as_it_was_drawn(tmp_path):
    turns = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    tilted = np.column_stack([np.cos(turns) * 900, np.sin(turns) * 300]) @ [[0.8, 0.6], [-0.6, 0.8]]
    (one,) = read_regions(write(tmp_path, layer(region("benign", points=tilted + 1000, kind="2"))))
    assert one.points == pytest.approx(tilted + 1000, abs=1e-6)


@pytest.mark.parametrize(("kind", "word"), [("3", "arrow"), ("4", "ruler"), ("5", "polyline")])
def test_what_is_no_area_is_left_out_and_counted(tmp_path, messages, kind, word):
    other = region("103.2um", kind=kind, number=8)
    assert labels(write(tmp_path, layer(region("invasive"), other, other))) == [3]
    assert f"left out: 2 ({word})" in messages.text
    with pytest.raises(InputError, match=rf"must hold a region .*\n.*1 \({word}\)"):
        read_regions(write(tmp_path, layer(region("invasive", kind=kind))))


@pytest.mark.parametrize("points", [[], [(20, 20)], [(0, 0), (900, 900)]])
def test_an_outline_of_fewer_than_3_vertices_is_left_out_and_counted(tmp_path, messages, points):
    path = write(tmp_path, layer(region("benign", points=points), region("invasive")))
    assert labels(path) == [3]
    assert "left out: 1 (outline of fewer than 3 vertices)" in messages.text


def test_halo_annotations_are_read_as_layers_named_by_a_class(tmp_path):
    path = tmp_path / "slide.annotations"
    vertices = "".join(f'<V X="{x}" Y="{y}"/>' for x, y in SQUARE)
    path.write_text(
        '<Annotations><Annotation LineColor="65280" Name="Invasive" Visible="True"><Regions>'
        '<Region Type="Polygon" HasEndcaps="0" NegativeROA="0">'
        f"<Vertices>{vertices}</Vertices><Comments/></Region></Regions></Annotation></Annotations>"
    )
    (one,) = read_regions(path)
    assert one.label == 3
    assert one.points.tolist() == [list(map(float, point)) for point in SQUARE]


@pytest.mark.parametrize(
    ("head", "mpp"),
    [
        (' MicronsPerPixel="0.467000"', 0.467),
        (' MicronsPerPixel="0,4670"', 0.467),
        ("", None),
        (' MicronsPerPixel=""', None),
        (' MicronsPerPixel="0"', None),
    ],
)
def test_the_scale_is_read_where_there_is_one(tmp_path, head, mpp):
    assert annotation_mpp(write(tmp_path, head=head)) == mpp


def test_a_scale_that_is_no_number_is_refused_and_geojson_has_none(tmp_path):
    for text in ("fine", "-1", "nan", "1_0"):
        with pytest.raises(InputError, match=f"Received: '{text}'"):
            annotation_mpp(write(tmp_path, head=f' MicronsPerPixel="{text}"'))
    assert annotation_mpp(geojson(tmp_path)) is None


def test_50000_vertices_are_read_and_painted(tmp_path):
    t = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    points = np.column_stack([np.cos(t), np.sin(t)]) * 20_000 + 21_000
    found = read_regions(write(tmp_path, layer(region(points=points))))
    mask = label_mask(found, 42_000, 62_000, 16)
    assert mask.sum() * 16**2 == pytest.approx(np.pi * 20_000**2, rel=1e-3)


# ASAP


def test_asap_annotations_are_read_in_the_order_of_their_vertices(tmp_path):
    path = tmp_path / "slide.xml"
    path.write_text(asap(in_group("In Situ", [(10, (9, 9)), (0, (1, 2)), (2, (5.5, 6))])))
    (one,) = read_regions(path)
    assert one.label == 2
    assert one.points.tolist() == [[1, 2], [5.5, 6], [9, 9]]
    path.write_text(asap(in_group("None", enumerate(SQUARE))))
    with pytest.raises(InputError, match="PartOfGroup='None'"):
        read_regions(path)
    assert labels(path, class_map(tmp_path, "None,Invasive")) == [3]


def test_asap_points_and_measurements_have_no_area_and_splines_do(tmp_path, messages):
    path = tmp_path / "slide.xml"
    kinds = ("PointSet", "Dot", "Measurement", "Spline", "Rectangle")
    path.write_text(asap(*(in_group("Invasive", enumerate(SQUARE), kind) for kind in kinds)))
    assert labels(path) == [3, 3]
    assert "left out: 1 (points), 1 (point), 1 (ruler)" in messages.text


# QuPath


def test_geojson_is_read_whatever_the_file_is_called(tmp_path):
    path = geojson(tmp_path, feature([SQUARE], "Invasive carcinoma"), name="slide.xml")
    (one,) = read_regions(path)
    assert (one.label, one.is_hole) == (3, False)
    assert one.points.tolist() == [list(map(float, point)) for point in SQUARE]
    path.write_text("\ufeff [" + json.dumps(feature([SQUARE])) + "]")
    assert labels(path) == [1]
    path.write_text(json.dumps(feature([SQUARE])))
    assert labels(path) == [1]


@pytest.mark.parametrize("turn", [1, -1])
def test_inner_rings_are_holes_whatever_their_turn_and_islands_in_them_stay(tmp_path, turn):
    rings = [[box(0, 0, 60), box(10, 10, 40)[::turn]], [box(20, 20, 20)]]
    for polygons in (rings, rings[::-1]):
        found = read_regions(geojson(tmp_path, feature(polygons, kind="MultiPolygon")))
        assert sum(one.is_hole for one in found) == 1
        mask = label_mask(found, 60, 60, 10)
        assert mask[[0, 1, 2, 3, 4, 5], 2].tolist() == [1, 0, 1, 1, 0, 1]


def test_points_and_lines_are_left_out_and_logged(tmp_path, messages):
    shapes = [
        feature([1, 2], None, "Point"),
        feature([SQUARE]),
        feature([[1, 2]], None, "LineString"),
        feature([], kind="MultiPolygon"),
    ]
    assert labels(geojson(tmp_path, *shapes)) == [1]
    assert "left out: 1 (point), 1 (line), 1 (empty polygon)" in messages.text


def test_collections_are_taken_apart(tmp_path):
    parts = [feature([SQUARE])["geometry"], {"type": "Point", "coordinates": [1, 2]}]
    one = feature([SQUARE])
    one["geometry"] = {"type": "GeometryCollection", "geometries": parts}
    annotation = read_annotation(geojson(tmp_path, one))
    assert len(annotation.regions) == 1
    assert annotation.skipped == {"point": 1}


def test_an_ellipse_of_qupath_by_its_corners_is_an_ellipse(tmp_path):
    for flag in (True, "true"):
        path = geojson(tmp_path, feature([[*SQUARE, SQUARE[0]]], isEllipse=flag))
        mask = label_mask(read_regions(path), 400, 700, 2)
        assert (mask == 1).sum() * 4 == pytest.approx(np.pi / 4 * 160**2, rel=0.01)


@pytest.mark.parametrize(
    ("classification", "label"),
    [
        ("Invasive", 3),
        ({"name": "Invasive: Positive"}, 3),
        ({"names": ["Invasive", "Positive"]}, 3),
        ({"names": ["Positive", "in situ"], "color": [1, 2, 3]}, 2),
        (["Benign"], 1),
    ],
)
def test_a_derived_class_is_the_first_of_its_parts_that_is_a_class(tmp_path, classification, label):
    assert labels(geojson(tmp_path, classified(classification))) == [label]


def test_objects_without_class_and_classes_with_a_star_are_left_out_and_counted(tmp_path, messages):
    others = [feature([SQUARE], None), classified(None), classified({}), classified({"names": []})]
    path = geojson(tmp_path, *others, feature([SQUARE], "Ignore*"), feature([SQUARE], "Invasive"))
    assert labels(path) == [3]
    assert "left out: 4 (without class), 1 (class with a star" in messages.text
    with pytest.raises(InputError, match=r"must hold a region of a class.*\n.*4 \(without class"):
        read_regions(geojson(tmp_path, *others))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature([SQUARE]), feature([SQUARE], "Tumor")], "feature 1 .*\n.*'Tumor'"),
        ([{"type": "Feature", "geometry": None}], "geometry of feature 0"),
        ([feature([1, 2])], "must be numbers x, y"),
        ([feature([1], kind="MultiPolygon")], "geometry of feature 0"),
        ([feature([[["a", 1], [2, 3], [4, 5]]])], "must be numbers x, y"),
        ([feature([["12", "34", "56"]])], "must be numbers x, y.\nReceived: '12'"),
        ([feature([[["1", "2"], [3, 4], [5, 6]]])], "must be numbers x, y"),
        ([feature([[[True, 2], [3, 4], [5, 6]]])], "must be numbers x, y"),
        ([feature([[[10**400, 2], [3, 4], [5, 6]]])], "must be numbers x, y"),
        ([{**feature([SQUARE]), "properties": [1]}], "properties of feature 0 .* an object"),
        ([classified(7)], "classification of feature 0"),
        ([classified({"name": 7})], "classification of feature 0"),
    ],
)
def test_a_feature_that_cannot_be_read_is_named(tmp_path, features, message):
    with pytest.raises(InputError, match=message):
        read_regions(geojson(tmp_path, *features))


# Classes of one's own


def test_all_unknown_classes_are_named_at_once_with_the_option_that_maps_them(tmp_path):
    names = ("Tumor", "Stroma", "Tumor", "Benign")
    path = geojson(tmp_path, *(feature([SQUARE], name) for name in names))
    with pytest.raises(InputError) as error:
        read_regions(path)
    assert "feature 0" in str(error.value)
    assert "Received: 'Tumor' (2 times); 'Stroma'." in str(error.value)
    assert "--class-map FILE" in str(error.value)
    mapped = class_map(tmp_path, "theirs,ours", "TUMOR,Invasive", "stroma ,ignore")
    annotation = read_annotation(path, mapped)
    assert [one.label for one in annotation.regions] == [3, 3, 1]
    assert annotation.skipped == {"ignored by the class map": 1}


def test_a_class_map_comes_before_our_own_spellings_and_qupaths_star(tmp_path):
    path = geojson(tmp_path, feature([SQUARE], "Benign"), feature([SQUARE], "Region*"))
    assert labels(path, class_map(tmp_path, "Benign;2", "Region*;Invasive")) == [2, 3]


def test_the_name_of_an_object_counts_only_where_it_is_mapped(tmp_path):
    path = geojson(tmp_path, classified(None, name="Core 7"), feature([SQUARE]))
    assert labels(path) == [1]
    assert labels(path, class_map(tmp_path, "Core 7,Invasive")) == [3, 1]


def test_an_object_without_class_that_is_named_like_one_is_not_left_out_unseen(tmp_path):
    path = geojson(tmp_path, classified(None, name="Invasive"), feature([SQUARE]))
    with pytest.raises(InputError, match=r"no classification, but the name 'Invasive'"):
        labels(path)
    assert labels(path, class_map(tmp_path, "Invasive,Invasive")) == [3, 1]
    assert labels(path, class_map(tmp_path, "Invasive,ignore")) == [1]


def test_letter_case_of_tags_and_attributes_does_not_matter(tmp_path):
    plain = write(tmp_path, layer(region("Invasive"), region(hole=1, points=box(30, 30, 20))))
    text = plain.read_text().split("\n", 1)[1]  # the declaration is lower case in all XML
    expected = [(one.label, one.is_hole, one.points.tolist()) for one in read_regions(plain)]
    assert [hole for _, hole, _ in expected] == [False, True]
    for change in (str.lower, str.upper):
        plain.write_text(change(text))
        regions = read_regions(plain)
        assert [(one.label, one.is_hole, one.points.tolist()) for one in regions] == expected
        assert annotation_mpp(plain) == 0.467


def test_commas_that_may_part_thousands_are_refused(tmp_path):
    points = [("1,200", "2,400"), ("9,100", "2,400"), ("9,100", "800")]
    with pytest.raises(InputError, match=r"'1,200', whose comma may be .* or part thousands"):
        labels(write(tmp_path, layer(region("Benign", points=points))))
    points = [("1200,500", "2400,125"), ("9100,5", "2400,25"), ("910,125", "800")]
    first = read_regions(write(tmp_path, layer(region("Benign", points=points))))[0]
    assert first.points[0].tolist() == [1200.5, 2400.125]


def test_a_class_map_is_read_with_and_without_header(tmp_path):
    expected = {"tumor": INVASIVE, "dcis, high grade": INSITU, "stroma": -1, "gland": NORMAL}
    rows = ["Tumor,Invasive", '"DCIS,  high grade",in situ', "Stroma,Ignore", "gland,0"]
    assert read_class_map_file(class_map(tmp_path, *rows)) == expected
    assert read_class_map_file(class_map(tmp_path, "Theirs,Ours", *rows)) == expected
    assert read_class_map_file(class_map(tmp_path, "a,benign")) == {"a": BENIGN}


@pytest.mark.parametrize(
    ("rows", "received"),
    [
        ([""], "no row"),
        (["theirs,ours"], "no row"),
        (["Tumor,Cancer", "x,Benign"], "'Tumor,Cancer'"),
        (["Tumor,Benign", "tumor,Invasive"], "'tumor,Invasive'"),
        (["Tumor"], "'Tumor'"),
        (["a,Benign,c"], "'a,Benign,c'"),
    ],
)
def test_a_class_map_that_cannot_be_read_names_its_rows(tmp_path, rows, received):
    with pytest.raises(InputError, match=r"name and what it means[\s\S]*Received: " + received):
        read_class_map_file(class_map(tmp_path, *rows))


# Text


def test_a_decimal_comma_in_a_lone_number_is_read(tmp_path):
    points = [("200,5", "200,25"), ("1800,5", "1e2"), ("-3,", "2600,25")]
    (one,) = read_regions(write(tmp_path, layer(region("benign", points=points))))
    assert one.points.tolist() == [[200.5, 200.25], [1800.5, 100], [-3, 2600.25]]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ("", "utf-16-le"),
        ("", "utf-16-be"),
        ("", "utf-32"),
        ("utf-8", "utf-16"),
        ("utf-8", "utf-16-le"),
        ("utf-16", "utf-8"),
        ("UTF-16", "utf-8-sig"),
        ("UCS-2", "utf-8"),
        ("iso-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
        ("shift_jis", "shift_jis"),
    ],
)
def test_xml_is_read_in_any_encoding_and_under_wrong_declarations(tmp_path, declared, encoding):
    text = layer(region("Invasive"), name="é" if declared[:2] in ("is", "wi") else "layer")
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    path = tmp_path / "slide.xml"
    path.write_bytes(f"{head}<Annotations>{text}</Annotations>".encode(encoding))
    assert labels(path) == [3]


def test_a_blank_line_before_the_xml_is_no_fault(tmp_path):
    path = write(tmp_path, layer(region("invasive")))
    path.write_text("\n \n" + path.read_text())
    assert labels(path) == [3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_geojson_is_read_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "slide.json"
    path.write_bytes(json.dumps([feature([SQUARE])]).encode(encoding))
    assert labels(path) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\0" * 900, "900 bytes of nothing but zeros"),
        (b"<Annotations><Annotation>", "XML that is cut short"),
        (b'<Annotations><Annotation Id="1', "XML that is cut short"),
        (b"<Annotations></Annotation></Annotations>", r"XML that is broken .* line 1"),
        (b"<Annotations>\n&amp; &nbsp;</Annotations>", r"XML that is broken .* line 2"),
        (b'{"type": "FeatureCollection", "feat', "JSON that is cut short"),
        (b'{"type": "FeatureCollection", "features": [', "JSON that is cut short"),
        (b'{"type": FeatureCollection}', "JSON that is broken .* line 1 column 10"),
        (b"[" * 100_000, "JSON that is broken"),
        (b"[1" + b"0" * 5000 + b"]", "JSON that is broken"),
        (b'{"type": "FeatureCollection"}', "without a list of features"),
        (b"[1, 2]", "without a list of features"),
        (b'{"positive": [{"name": "a", "vertices": [[1, 2]]}]}', "without a list of features"),
        (b"<svg/>", "XML of another kind"),
        (b"x,y\n1,2\n", "neither XML nor JSON; it begins with 'x,y"),
        (b"PK\x03\x04\x14\0\0\0\x08\0", "neither XML nor JSON"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "bytes that are no UTF-8"),
        (b'<?xml version="1.0" encoding="bogus-8"?><a/>', "encoding='bogus-8'"),
        (b'<?xml version="1.0" encoding="punycode"?><a/>', "encoding='punycode'"),
        (b'<?xml version="1.0" encoding="rot13"?><a/>', "encoding='rot13'"),
        (
            "<Annotations Text='\u00fc'/>".encode("latin-1"),
            "no UTF-8 .*byte 0xfc",
        ),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><Annotations/>', r"document type \(DTD\)"),
        (b"<!DOCTYPE html><html/>", r"document type \(DTD\)"),
        (b"<Annotations/>", "a file without regions"),
        (b'{"type": "FeatureCollection", "features": []}', "a file without regions"),
        (b"<ASAP_Annotations/>", "a file without regions"),
    ],
)
def test_other_files_are_refused_with_what_is_wrong_with_them(tmp_path, content, message):
    path = tmp_path / "slide.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_regions(path)


def test_a_file_without_regions_says_that_it_would_make_the_slide_normal(tmp_path):
    with pytest.raises(InputError, match=r"counts as Normal[\s\S]*Delete the file"):
        read_regions(write(tmp_path))
    only_a_hole = write(tmp_path, layer(region(hole=1)))
    with pytest.raises(InputError, match="Received: 1 holes"):
        read_regions(only_a_hole)


# Anything at all


@FUZZ
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-16")))
def test_any_bytes_are_refused_as_input(tmp_path, content):
    path = tmp_path / "slide.xml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_regions(path)


NUMBERS = st.integers() | st.floats() | st.just(10**400)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "features", "geometry", "geometries", "coordinates"),
                    *("properties", "classification", "name", "names", "isEllipse"),
                ]
            ),
            inner | st.sampled_from(["Feature", "Polygon", "MultiPolygon", "Invasive", "Point"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)
RINGS = st.lists(st.lists(st.lists(NUMBERS, max_size=3), max_size=5) | ANY_JSON, max_size=3)


def read_and_paint(path):
    """Read and paint a file; an InputError is what may happen to any."""
    try:
        found = read_regions(path)
    except InputError:
        return
    assert any(not one.is_hole for one in found)
    label_mask(found, 400, 300, 16)


@FUZZ
@given(ANY_JSON, RINGS, ANY_JSON)
def test_any_json_is_read_or_refused(tmp_path, anything, rings, properties):
    path = tmp_path / "slide.json"
    whole = {**feature(rings, "Invasive")}
    odd = {**feature([SQUARE]), "properties": properties}
    geometry = {"type": "Feature", "geometry": anything, "properties": None}
    for content in (anything, [anything], {"features": anything}, [whole], [odd], [geometry]):
        path.write_text(json.dumps(content))
        read_and_paint(path)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 900), st.binary(max_size=6), st.integers(0, 9)), max_size=6)
)
def test_xml_with_any_bytes_changed_is_read_or_refused(tmp_path, changes):
    path = write(
        tmp_path,
        layer(region("invasive"), region(hole=1), region("benign", "x", kind="2"), number=1),
        layer(region(points=[("1,5", "2"), (3, 4), (5, 9)]), number=3),
    )
    content = bytearray(path.read_bytes())
    for place, new, gone in changes:
        content[place : place + gone] = new
    path.write_bytes(content)
    read_and_paint(path)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(["X", "Y", "Order", "Type"]), st.text(max_size=8))))
def test_xml_with_any_attributes_is_read_or_refused(tmp_path, values):
    path = tmp_path / "slide.xml"
    extra = dict(values)
    given_kind = quoteattr(extra.pop("Type", "0"))
    vertex = " ".join(f"{name}={quoteattr(text)}" for name, text in extra.items())
    vertices = "".join(f'<Coordinate Order="{n}" X="{n}" Y="{n * n}"/>' for n in range(4))
    path.write_text(
        f'<ASAP_Annotations><Annotation PartOfGroup="Benign" Type={given_kind}><Coordinates>'
        f"{vertices}<Coordinate {vertex}/></Coordinates></Annotation></ASAP_Annotations>",
        encoding="utf-8",
        errors="surrogatepass",
    )
    read_and_paint(path)
