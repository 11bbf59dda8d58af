import json

import numpy as np
import pandas as pd
import pytest

from bach import points
from bach.annotations.marks import read_marks
from bach.core.errors import InputError


def of_slide():
    return points.of_places(np.array([[96.0, 32.5], [1000.123456, 7]]), [0.9, 0.25], "Ä 1", 0.25)


def test_points_are_read_back_from_csv(tmp_path):
    path = tmp_path / "points.csv"
    points.write_points(of_slide(), path)
    assert path.read_text().splitlines()[0] == "image_id,x_um,y_um,x,y,score"
    back = points.read_points(path)
    pd.testing.assert_frame_equal(back, of_slide(), atol=1e-3, check_dtype=False)


def test_a_table_of_px_alone_is_one_of_points_and_one_without_places_is_none(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("image_id;x;y;name\nA;3;4,5;mf\n".replace("4,5", "4.5"))
    assert points.read_points(path)["y"].tolist() == [4.5]
    for text in ("image_id,x\nA,3\n", "image_id,x,y\nA,3,q\n", "x,y\n1,2\n"):
        path.write_text(text)
        with pytest.raises(InputError):
            points.read_points(path)


def test_the_platform_gets_points_in_mm(tmp_path):
    path = tmp_path / "points.json"
    points.write_multiple_points(of_slide(), path, "mitotic figure")
    assert json.loads(path.read_text()) == {
        "name": "mitotic figure",
        "type": "Multiple points",
        "points": [
            {"name": "mitotic figure", "point": [0.024, 0.008125, 0.0], "probability": 0.9},
            {"name": "mitotic figure", "point": [0.250031, 0.00175, 0.0], "probability": 0.25},
        ],
        "version": {"major": 1, "minor": 0},
    }


@pytest.mark.parametrize("offset", [(0, 0), (100, 7)])
def test_qupath_gets_annotations_that_are_read_back(tmp_path, offset):
    path = tmp_path / "p.geojson"
    points.write_qupath(of_slide(), path, {"mitotic figure": (255, 0, 0)}, offset)
    feature = json.loads(path.read_text())["features"][0]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["geometry"] == {
        "type": "Point",
        "coordinates": [96 - offset[0], 32.5 - offset[1]],
    }
    back = read_marks(path)
    np.testing.assert_allclose(back[["x", "y"]], of_slide()[["x", "y"]], atol=0.005)
    assert back["names"].tolist() == [("mitotic figure",)] * 2


def test_files_of_no_points_are_whole(tmp_path):
    none = of_slide().iloc[:0]
    points.write_qupath(none, tmp_path / "p.geojson", {"mf": (255, 0, 0)})
    points.write_multiple_points(none, tmp_path / "p.json", "mf")
    points.write_points(none, tmp_path / "p.csv")
    assert (
        len(read_marks(tmp_path / "p.geojson")) == len(points.read_points(tmp_path / "p.csv")) == 0
    )
    assert json.loads((tmp_path / "p.json").read_text())["points"] == []
