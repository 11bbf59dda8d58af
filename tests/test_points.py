"""python -m bach.points: from a run of heatmaps to points, and their score."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up import slide_record

from bach import tasks
from bach.core.errors import InputError
from bach.honest.records import write_slide
from bach.points import read_points, write_qupath
from bach.points.__main__ import main

# Cells of 8 um; 100 x 60 of them.
STEP, MPP, SHAPE = 32.0, 0.25, (60, 100)


def put(run, name, *peaks, **changes):
    """A slide of a run with a heatmap of peaks row, col, height."""
    heatmap = np.zeros(SHAPE, np.float32)
    heatmap[:, 90:] = np.nan
    for row, col, height in peaks:
        heatmap[row, col] = height
    (run / "heatmaps").mkdir(parents=True, exist_ok=True)
    (run / "slides").mkdir(exist_ok=True)
    np.save(run / "heatmaps" / f"{name}.npy", heatmap)
    size = {"width": int(SHAPE[1] * STEP), "height": int(SHAPE[0] * STEP)}
    record = slide_record(name, mpp=MPP, step=STEP, **size | changes)
    write_slide(run / "slides" / f"{name}.json", record)


@pytest.fixture
def run(tmp_path):
    """Two slides; figures at (10, 10) and (20, 30) of the first, (5, 5) of the second."""
    run = tmp_path / "a run ü"
    put(run, "A 1", (10, 10, 0.9), (10, 11, 0.8), (40, 40, 0.6), (50, 50, 0.3))
    put(run, "B", (5, 5, 0.7))
    rows = [("A 1", 84, 84, "Mitotic figure"), ("A 1", 244, 164, "Mitosis")]
    rows += [("b.svs", 44, 47, "mitosis"), ("A 1", 324, 324, "Imposter"), ("C", 1, 1, "Mitosis")]
    table = pd.DataFrame(rows, columns=["image_id", "x_um", "y_um", "name"])
    table.to_csv(tmp_path / "truth.csv", index=False)
    return run


def call(run, *words):
    return main([str(run), "--task", "mitosis", "--offset", "0", "0", *map(str, words)])


def test_maxima_become_points_in_every_format(run, capsys):
    assert call(run) == 0
    out = run / "points"
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    table = read_points(out / "points.csv")
    assert table[["image_id", "x", "y"]].to_numpy().tolist() == [
        ["A 1", 336, 336],
        ["A 1", 1296, 1296],
        ["B", 176, 176],
    ]
    assert table["score"].tolist() == pytest.approx([0.9, 0.6, 0.7])
    points = json.loads((out / "platform" / "A 1.json").read_text())["points"]
    assert points[0] == {"name": "Mitosis", "point": [0.084, 0.084, 0.0], "probability": 0.9}
    feature = json.loads((out / "qupath" / "B.geojson").read_text())["features"][0]
    assert feature["properties"]["classification"]["name"] == "Mitosis"
    assert not (out / "scores.json").exists()


def test_points_are_scored_against_a_table(run, tmp_path, capsys):
    call(run, "--truth", tmp_path / "truth.csv", "--out", tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    counts = [[case[key] for key in ("tp", "fp", "fn")] for case in scores["cases"]]
    assert counts == [[1, 1, 1], [1, 0, 0]]
    assert scores["f1"]["value"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["f1"]["unit"] == "slides"
    assert "f1" in capsys.readouterr().out


def test_a_threshold_is_searched_and_said_to_be_searched(run, tmp_path):
    call(run, "--truth", tmp_path / "truth.csv", "--search")
    scores = json.loads((run / "points" / "scores.json").read_text())
    assert scores["searched_here"] is True
    assert scores["threshold"] == pytest.approx(0.7)
    assert len(read_points(run / "points" / "points.csv")) == 2


def test_intervals_are_over_patients_where_they_are_known(run, tmp_path):
    (tmp_path / "patients.csv").write_text("image_id,patient\nA 1,P1\nB.svs,P1\n")
    truth = tmp_path / "truth.csv"
    call(run, "--truth", truth, "--patients", tmp_path / "patients.csv")
    f1 = json.loads((run / "points" / "scores.json").read_text())["f1"]
    assert (f1["units"], f1["unit"], f1["low"]) == (1, "patients", None)


def test_the_truth_may_be_annotations_and_its_own_output_scores_1(run, tmp_path):
    call(run, "--out", tmp_path / "first")
    call(run, "--truth", tmp_path / "first" / "qupath")
    scores = json.loads((run / "points" / "scores.json").read_text())
    assert [scores[name]["value"] for name in ("precision", "recall", "f1")] == [1, 1, 1]
    (tmp_path / "first" / "qupath" / "B.geojson").unlink()
    with pytest.raises(InputError, match="annotation"):
        call(run, "--truth", tmp_path / "first" / "qupath")


def test_slides_that_were_trained_on_are_not_scored(run, tmp_path):
    put(run, "B", (5, 5, 0.7), in_sample=True)
    call(run, "--truth", tmp_path / "truth.csv")
    scores = json.loads((run / "points" / "scores.json").read_text())
    assert scores["slides"] == ["A 1"]
    assert len(read_points(run / "points" / "points.csv")) == 3  # but found


def test_smoothing_takes_lone_cells_away(run):
    call(run, "--smooth-um", "8", "--threshold", "0.3")
    assert len(read_points(run / "points" / "points.csv")) == 1  # two cells side by side


def test_a_slide_of_one_cell_and_one_without_a_maximum(tmp_path):
    run = tmp_path / "run"
    put(run, "none")
    put(run, "one", width=7, height=5)
    np.save(run / "heatmaps" / "one.npy", np.full((1, 1), 0.8, np.float32))
    call(run)
    table = read_points(run / "points" / "points.csv")
    assert table[["image_id", "x", "y"]].to_numpy().tolist() == [["one", 7, 5]]
    assert json.loads((run / "points" / "platform" / "none.json").read_text())["points"] == []


def test_what_cannot_be_is_refused(run, tmp_path):
    (tmp_path / "odd.csv").write_text("image_id,x,y,name\nB,1,1,Nonsense\n")
    (tmp_path / "far.csv").write_text("image_id,x,y\nB,3000,1900\n")
    (tmp_path / "empty").mkdir()
    for words, said in (
        (("--search",), "--truth"),
        (("--offset", "1"), "two numbers"),
        (("--truth", tmp_path / "odd.csv"), "Nonsense"),
        (("--truth", tmp_path / "missing.csv"), "missing.csv"),
        (("--truth", tmp_path / "far.csv", "--search"), "none within"),
    ):
        with pytest.raises(InputError, match=said):
            call(run, *words)
    with pytest.raises(InputError, match="run of make_heatmap"):
        call(tmp_path / "empty")
    with pytest.raises(InputError, match="areas"):
        main([str(run), "--offset", "0", "0"])
    (run / "heatmaps" / "B.npy").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"B\.npy"):
        call(run)


def test_annotations_of_a_task_of_areas_are_no_points(run, tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    none = pd.DataFrame({"x": [], "y": []})
    for name in ("A 1", "B"):
        write_qupath(none, folder / f"{name}.geojson", {"Mitosis": (0, 0, 0)})
    words = [str(run), "--threshold", "0.5", "--radius-um", "8", "--truth", str(folder)]
    with pytest.raises(InputError):
        main([*words, "--offset", "0", "0", "--task", "bach"])
    assert tasks.task().name == "bach"
