import json

import numpy as np
import pytest

from bach import tasks
from bach.annotations import read_regions
from bach.annotations.checks import slide_labels
from bach.annotations.marks import read_marks
from bach.annotations.regions import read_annotation
from bach.core.errors import InputError
from bach.mining import mining_patches
from bach.patches import cell_patches
from bach.slides import Slide
from bach.tissue import slide_maps
from bach.toy.aperio import write_slide


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


# Of a task whose annotations mark places


@pytest.fixture
def mitosis():
    tasks.use("mitosis")


def test_a_task_of_places_has_marks_with_labels_and_no_regions(tmp_path, mitosis):
    point = {"type": "Point", "coordinates": [3.5, 4]}
    path = geojson(tmp_path, point, BOX, LINE)
    found = read_annotation(path)
    assert found.marks.tolist() == [[3.5, 4, 1], [5, 10, 1]]
    assert found.regions == []
    assert found.skipped == {"line": 1}
    assert read_annotation(geojson(tmp_path, point, name="Imposter")).marks.tolist() == [
        [3.5, 4, 0]
    ]


def test_a_place_of_an_unknown_class_is_an_error_or_what_the_class_map_says(tmp_path, mitosis):
    path = geojson(tmp_path, {"type": "Point", "coordinates": [3, 4]}, name="Blob?")
    with pytest.raises(InputError, match="Blob"):
        read_annotation(path)
    (tmp_path / "map.csv").write_text("Blob?,Mitosis\n")
    assert read_annotation(path, tmp_path / "map.csv").marks.tolist() == [[3, 4, 1]]


def test_a_slide_without_a_figure_is_annotated_too(tmp_path, mitosis):
    assert read_annotation(geojson(tmp_path)).marks.shape == (0, 3)


def test_every_mark_has_a_pixel_of_the_mask_and_patches_their_labels(tmp_path, mitosis):
    write_slide(tmp_path / "ä slide.svs", np.full((512, 768, 3), (200, 120, 180), np.uint8), 0.25)
    geojson(tmp_path, {"type": "MultiPoint", "coordinates": [[100, 100], [300, 301], [767, 511]]})
    with Slide(tmp_path / "ä slide.svs") as slide:
        maps = slide_maps(slide, not_brightfield=True)
    assert (maps.labels == 1).sum() >= 3
    assert maps.labels[int(301 / maps.downsample), int(300 / maps.downsample)] == 1
    table = cell_patches(maps, 4.0)
    middle = table[["x", "y"]].to_numpy() + 32
    away = np.hypot(*(middle[:, None] - maps.marks[None, :, :2]).transpose(2, 0, 1)).min(axis=1)
    assert (table["label"] == np.where(away <= 16, 1, np.where(away <= 32, -1, 0))).all()
    assert set(mining_patches(maps, 4.0, cells=True)["label"]) <= {0, 1}
    geojson(tmp_path)
    with Slide(tmp_path / "ä slide.svs") as slide:
        assert (cell_patches(slide_maps(slide, not_brightfield=True), 4.0)["label"] == 0).all()


def test_marks_beyond_the_slide_alone_are_an_error(tmp_path, mitosis):
    write_slide(tmp_path / "ä slide.svs", np.full((64, 64, 3), 200, np.uint8), 0.25)
    path = geojson(tmp_path, {"type": "Point", "coordinates": [5000, 4000]})
    with Slide(tmp_path / "ä slide.svs") as slide, pytest.raises(InputError, match="slide"):
        slide_labels(path, slide, 30)


def test_regions_of_another_task_stay_regions(tmp_path):
    found = read_annotation(geojson(tmp_path, BOX, name="Invasive"))
    assert found.marks is None
    assert len(found.regions) == 1
