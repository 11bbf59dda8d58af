import json

import pytest

from bach.annotations import read_regions
from bach.annotations.marks import read_marks
from bach.core.errors import InputError


def geojson(tmp_path, *geometries, offset=None, name="Mitotic figure"):
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for geometry in geometries
    ]
    content = {"type": "FeatureCollection", "features": features}
    path = tmp_path / "ä slide.geojson"
    path.write_text(json.dumps(content | ({"bach_offset": offset} if offset else {})))
    return path


def places(path):
    table = read_marks(path)
    return list(zip(table["x"], table["y"], table["names"], strict=True))


BOX = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 20], [0, 20], [0, 0]]]}
LINE = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}


def test_points_of_qupath_are_places_and_a_box_is_its_middle(tmp_path):
    point = {"type": "Point", "coordinates": [3.5, 4]}
    points = {"type": "MultiPoint", "coordinates": [[1, 2], [5, 6]]}
    names = ("Mitotic figure",)
    expected = [(3.5, 4, names), (1, 2, names), (5, 6, names), (5, 10, names)]
    assert places(geojson(tmp_path, point, points, LINE, BOX)) == expected


def test_what_was_taken_off_for_qupath_is_added_again(tmp_path):
    point = {"type": "Point", "coordinates": [3.5, 4]}
    path = geojson(tmp_path, point, BOX, offset=[100, 1000])
    assert [place[:2] for place in places(path)] == [(103.5, 1004), (105, 1010)]


def test_a_file_of_lines_or_of_nothing_has_no_places(tmp_path):
    assert places(geojson(tmp_path, LINE)) == places(geojson(tmp_path)) == []
    assert list(read_marks(geojson(tmp_path)).columns) == ["x", "y", "names"]


@pytest.mark.parametrize("wrong", [None, [], [1], ["a", "b"], [None, 1], 7, [1e12, 0], {"x": 1}])
@pytest.mark.parametrize("kind", ["Point", "MultiPoint"])
def test_points_that_are_none_are_refused_where_points_are_asked_for(tmp_path, wrong, kind):
    geometry = {"type": kind, "coordinates": wrong if kind == "Point" else [wrong]}
    path = geojson(tmp_path, geometry, BOX, name="Invasive")
    with pytest.raises(InputError, match="feature 0"):
        read_marks(path)
    assert len(read_regions(path)) == 1  # who asks for regions is not kept by them


def test_dots_of_asap_are_places(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="1" Type="Dot" PartOfGroup="Mitosis">'
        '<Coordinates><Coordinate Order="0" X="12,5" Y="7"/></Coordinates></Annotation>'
        '<Annotation Name="2" Type="PointSet" PartOfGroup="Other"><Coordinates>'
        '<Coordinate Order="1" X="3" Y="4"/><Coordinate Order="0" X="1" Y="2"/>'
        "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    expected = [(12.5, 7, ("Mitosis",)), (1, 2, ("Other",)), (3, 4, ("Other",))]
    assert places(path) == expected


def test_boxes_circles_and_points_of_imagescope_are_places(tmp_path):
    def region(kind, *vertices):
        inside = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
        return f'<Region Id="1" Type="{kind}" Text="mf"><Vertices>{inside}</Vertices></Region>'

    regions = region("1", (0, 0), (10, 20)) + region("2", (10, 10), (20, 20))
    regions += region("Point", (1, 2)) + region("4", (0, 0), (9, 9))
    path = tmp_path / "a.xml"
    path.write_text(
        '<Annotations><Annotation Id="1"><Regions>' + regions + "</Regions></Annotation>"
        "</Annotations>"
    )
    assert [place[:2] for place in places(path)] == [(5, 10), (15, 15), (1, 2)]
