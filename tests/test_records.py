import json

import numpy as np
import pandas as pd
import pytest
from made_up import slide_record

from bach.core.errors import InputError
from bach.honest.records import (
    counts_of,
    read_images,
    read_slide,
    read_slides,
    slide_file,
    write_slide,
)

COUNTS = np.arange(16).reshape(4, 4)


def test_a_record_that_was_written_is_read_back(tmp_path):
    record = slide_record("A01", counts=COUNTS, score=0.6, score_tissue=None, fold=None)
    write_slide(tmp_path / "A01.json", record)
    found = read_slide(tmp_path / "A01.json")
    assert found.counts.tolist() == COUNTS.tolist()
    assert (found.score, found.score_tissue, found.fold) == (0.6, None, None)
    assert (found.models, found.width, found.mpp_source) == (("0",), 1600, "file")


def test_a_slide_without_annotation_has_no_scores_in_its_file(tmp_path):
    write_slide(tmp_path / "T01.json", slide_record("T01"))
    assert not {"score", "counts"} & set(json.loads((tmp_path / "T01.json").read_text()))
    assert read_slide(tmp_path / "T01.json").counts is None


def test_a_file_as_the_first_version_wrote_it_can_be_read(tmp_path):
    values = {
        "image_id": "A01",
        "path": "data/A01.svs",
        "part": "B",
        "width": 4800,
        "height": 3200,
        "mpp": 0.467,
        "mpp_source": "file",
        "step": 268.9,
        "downsample": 16.0,
        "patches": 120,
        "models": ["0"],
        "fold": 0,
        "in_sample": False,
        "areas_mm2": {"Normal": 1.0, "Benign": 0.5, "InSitu": 0.0, "Invasive": 0.0},
        "score": 0.7,
        "score_tissue": 0.7,
        "baseline": 0.6,
        "baseline_tissue": 0.6,
        "counts": COUNTS.tolist(),
        "key": {"file": {"bytes": 3, "changed": 4}, "models": {}},
    }
    (tmp_path / "A01.json").write_text(json.dumps(values))
    found = read_slide(tmp_path / "A01.json")
    assert found.seconds is None
    assert found.areas_mm2["Benign"] == 0.5
    assert found.key["file"] == {"bytes": 3, "changed": 4}


def test_the_slides_of_a_run_are_sorted_and_hidden_files_are_none_of_them(tmp_path):
    for name in ("B02", "A10", "A01"):
        write_slide(tmp_path / "slides" / f"{name}.json", slide_record(name))
    (tmp_path / "slides" / ".A01.half.json").write_text("{")
    assert list(read_slides(tmp_path)) == ["A01", "A10", "B02"]
    assert read_slides(tmp_path / "nowhere") == {}


def test_only_annotated_slides_have_counts():
    slides = {"A01": slide_record("A01", counts=COUNTS), "T01": slide_record("T01")}
    assert list(counts_of(slides)) == ["A01"]


def test_all_damaged_records_are_named(tmp_path):
    write_slide(tmp_path / "slides" / "A01.json", slide_record("A01"))
    whole = json.loads((tmp_path / "slides" / "A01.json").read_text())
    for name, values in {
        "B1": {"width": 3},
        "B2": whole | {"counts": [1, 2]},
        "B3": whole | {"height": "tall"},
        "B6": whole | {"counts": [[-1] * 4] * 4},
        "B7": whole | {"counts": [[0.5] * 4] * 4},
        "B8": whole | {"width": 10**400},
    }.items():
        (tmp_path / "slides" / f"{name}.json").write_text(json.dumps(values))
    (tmp_path / "slides" / "B4.json").write_text("[1]")
    (tmp_path / "slides" / "B5.json").write_text('{"width": ')
    (tmp_path / "slides" / "B9.json").mkdir()
    with pytest.raises(InputError) as caught:
        read_slides(tmp_path)
    said = str(caught.value)
    assert all(f"B{number}.json: " in said for number in range(1, 10))
    assert "A01" not in said
    with pytest.raises(InputError, match="tall"):
        read_slide(tmp_path / "slides" / "B3.json")
    with pytest.raises(InputError, match=r"no\.json"):
        read_slide(tmp_path / "no.json")


def test_images_have_the_patients_of_their_run_or_of_a_table(tmp_path):
    table = pd.DataFrame({"image_id": ["B002.tif", "n001"], "label": [1, 0], "predicted": [1, 3]})
    table.to_csv(tmp_path / "predictions.csv", index=False)
    assert read_images(tmp_path)["patient"].tolist() == ["", ""]
    table.assign(patient=["P1", ""]).to_csv(tmp_path / "predictions.csv", index=False)
    found = read_images(tmp_path)
    assert found.to_dict("list") == {
        "image_id": ["b002", "n001"],
        "label": [1, 0],
        "predicted": [1, 3],
        "patient": ["P1", ""],
    }
    (tmp_path / "patients.csv").write_text("image_id,patient\nN001.TIF,P7\n")
    assert read_images(tmp_path, tmp_path / "patients.csv")["patient"].tolist() == ["", "P7"]


def test_a_slide_is_found_where_its_run_was_started_or_the_run_before_or_where_it_is_now(tmp_path):
    record = slide_record("A01", path="slides/A01.svs")
    run = tmp_path / "run"
    run.mkdir()
    assert slide_file(run, record) is None
    (tmp_path / "old/slides").mkdir(parents=True)
    (tmp_path / "old/slides/A01.svs").touch()
    told = {"folder": str(tmp_path / "new"), "made_from": {"folder": str(tmp_path / "old")}}
    (run / "run.json").write_text(json.dumps(told))
    assert slide_file(run, record) == tmp_path / "old/slides/A01.svs"
    (tmp_path / "new/slides").mkdir(parents=True)
    (tmp_path / "new/slides/A01.svs").touch()
    assert slide_file(run, record) == tmp_path / "new/slides/A01.svs"
    (tmp_path / "A01.svs").touch()
    assert slide_file(run, record, tmp_path) == tmp_path / "A01.svs"
