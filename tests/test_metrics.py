import json
import logging

import numpy as np
import pandas as pd
import pytest
from made_up import training_run

from bach import labels, metrics, runs, scores
from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import to_json
from bach.honest.intervals import accuracy_interval, format_interval


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(metrics.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def write(path, text):
    path.write_text(text)
    return path


def run(capsys, *argv):
    assert metrics.main([str(word) for word in argv]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def truth_and_prediction(seed=0, size=500):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, size)
    predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, 4, size))
    return truth, predicted


def folders(tmp_path, predicted, truth):
    for name, maps in (("predicted", predicted), ("truth", truth)):
        (tmp_path / name).mkdir(exist_ok=True)
        for slide, class_map in maps.items():
            labels.write_class_map(tmp_path / name / f"{slide}.png", class_map)
    return "part-b", "--predicted", tmp_path / "predicted", "--truth", tmp_path / "truth"


def test_the_part_b_score_is_where_it_was_promised():
    assert metrics.part_b_score is scores.part_b_score
    assert "part_b_score" in metrics.__all__


def test_part_a_is_scored_from_the_command_line(tmp_path, capsys):
    truth, predicted = truth_and_prediction(size=80)
    names = [f"test{number}" for number in range(80)]
    pd.DataFrame({"i": [f"Photos/{name}.TIF" for name in names], "l": truth}).to_csv(
        tmp_path / "truth.csv", index=False, header=False
    )
    table = pd.DataFrame({"image_id": names, "predicted": [CLASSES[p] for p in predicted]})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "p.csv", index=False)
    result = run(
        capsys, "part-a", "--predictions", tmp_path / "p.csv", "--truth", tmp_path / "truth.csv"
    )
    interval = result.pop("accuracy_interval")
    assert interval["units"] == 80
    assert interval["low"] < result["accuracy"] == interval["value"] < interval["high"]
    assert result == json.loads(to_json(scores.part_a_metrics(truth, predicted)))
    figures = "accuracy balanced_accuracy binary_accuracy sensitivity specificity confusion images"
    assert list(result) == figures.split()


def test_images_of_the_truth_that_are_not_predicted_are_all_named(tmp_path):
    truth = write(tmp_path / "t.csv", "a,Normal\nb,Benign\nc,Benign\n")
    predictions = write(tmp_path / "p.csv", "a,Normal\nd,Benign\n")
    argv = ["part-a", "--predictions", str(predictions), "--truth", str(truth)]
    with pytest.raises(InputError, match=r"no prediction for 2: b, c; no truth for 1: d\."):
        metrics.main(argv)


@pytest.mark.parametrize("more", [(), ("--allow-extra",)])
def test_predictions_without_truth_are_left_out_and_named(tmp_path, capsys, messages, more):
    truth = write(tmp_path / "t.csv", "a,Normal\nb,Benign\n")
    predictions = write(tmp_path / "p.csv", "a,Normal\nb,Benign\nc,Normal\n")
    argv = ("part-a", "--predictions", predictions, "--truth", truth)
    assert run(capsys, *argv, *more)["images"] == 2
    assert "left out, no truth for 1 images: c" in messages.text


def test_the_annotated_slides_of_a_heatmap_run_are_scored(tmp_path, capsys, messages):
    # Slides without annotation have class maps, but no truth.
    one = np.ones((2, 2), np.uint8)
    argv = folders(tmp_path, {"A01": one, "test_slide_1": one}, {"A01": one})
    result = run(capsys, *argv)
    assert result["per_slide"] == {"A01": 1.0}
    assert "left out, no truth for 1 slides: test_slide_1" in messages.text


def test_the_tables_say_every_figure(tmp_path, capsys):
    result = scores.part_a_metrics([0, 0, 1, 3], [0, 1, 1, 3])
    lines = metrics.format_part_a(result).splitlines()
    assert "carcinoma or not   1.000" in lines
    assert lines[-4].split() == ["Normal", "0.500", "1.000", "1", "1", "0", "0"]
    assert lines[-2].split() == ["InSitu", "-", "1.000", "0", "0", "0", "0"]
    empty, full = np.zeros((2, 2), np.uint8), np.full((2, 2), 3, np.uint8)
    result = scores.score_part_b([("A01", full, full), ("A02", empty, empty)])
    lines = metrics.format_part_b(result).splitlines()
    assert lines[1].split() == ["A01", "1.0000", "0.3333"]
    assert lines[2].split() == ["A02", "-", "0.6667"]
    assert lines[-1].startswith("1 slide(s) without a score")


def test_part_b_is_scored_from_the_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 4, (2, 2, 20, 30), dtype=np.uint8)
    empty = np.zeros((4, 4), np.uint8)
    argv = folders(
        tmp_path,
        {"A01": maps[0, 0], "a02": maps[0, 1], "A03": empty},
        {"A01": maps[1, 0], "A02": maps[1, 1], "A03": empty},
    )
    result = run(capsys, *argv)
    expected = [scores.part_b_score(maps[0, slide], maps[1, slide]) for slide in range(2)]
    assert result["per_slide"] == {"A01": expected[0], "A02": expected[1], "A03": None}
    assert result["score"] == pytest.approx(np.mean(expected))
    assert result["baseline"]["per_slide"]["A01"] == scores.part_b_score(
        np.ones_like(maps[1, 0]), maps[1, 0]
    )
    assert np.sum(result["counts"]["A01"]) == 600
    interval = result["score_interval"]
    assert (interval["units"], interval["unit"]) == (2, "slides")  # A03 says nothing
    assert interval["value"] == pytest.approx(result["score"])
    figures = "score score_pooled per_slide undefined baseline counts score_interval"
    assert set(result) == set(figures.split())


def test_the_interval_is_over_patients_where_they_are_known(tmp_path, capsys):
    truth, predicted = truth_and_prediction(size=80)
    names = [f"test{number}" for number in range(80)]
    pd.DataFrame({"image_id": names, "label": truth}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"image_id": names, "label": predicted}).to_csv(tmp_path / "p.csv", index=False)
    patients = [f"P{number // 8}" if number < 40 else "" for number in range(80)]
    pd.DataFrame({"image_id": [f"{n}.tif" for n in names], "patient": patients}).to_csv(
        tmp_path / "patients.csv", index=False
    )
    argv = ("part-a", "--predictions", tmp_path / "p.csv", "--truth", tmp_path / "t.csv")
    result = run(capsys, *argv, "--patients", tmp_path / "patients.csv")
    assert result["accuracy_interval"]["units"] == 45
    assert result["accuracy_interval"]["unit"] == "5 patients + 40 images"


def test_training_metrics_and_table_have_one_interval_of_the_same_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    label = np.arange(80) % 4
    predicted = np.where(rng.random(80) < 0.7, label, (label + 1) % 4)
    patient = [f"P{n}" for n in rng.geometric(0.15, 80)]  # some have many images
    folder = training_run(tmp_path / "run", predicted, label, patient)
    file = folder / "predictions.csv"
    in_training = accuracy_interval(pd.read_csv(file))
    argv = ("part-a", "--predictions", file, "--truth", file)
    printed = run(capsys, *argv)["accuracy_interval"]
    assert printed == json.loads(to_json(in_training))
    assert printed["unit"] == "patients"
    assert printed["worth"] < 0.8 * printed["units"] < 30
    text = format_interval(in_training, 3)
    assert f", worth {printed['worth']:.0f})" in text
    assert text in runs.table([folder])
    metrics.main([str(word) for word in argv])
    assert f"part-a {text}" in capsys.readouterr().out.splitlines()


def test_the_truth_may_name_the_patients_and_a_table_of_patients_decides(tmp_path, capsys):
    truth = write(tmp_path / "t.csv", "image_id,label,patient\na,0,x\nb,1,x\nc,2,y\nd,3,y\n")
    plain = write(tmp_path / "p.csv", "image_id,predicted\na,0\nb,1\nc,2\nd,0\n")
    argv = ("part-a", "--predictions", plain, "--truth", truth)
    assert run(capsys, *argv)["accuracy_interval"]["units"] == 2
    table = write(tmp_path / "q.csv", "image_id,patient\nA.tif,1\nB.tif,2\nC.tif,2\nD.tif,3\n")
    assert run(capsys, *argv, "--patients", table)["accuracy_interval"]["units"] == 3


def test_tables_that_name_other_patients_are_told_apart_in_the_log(tmp_path, capsys, messages):
    truth = write(tmp_path / "t.csv", "image_id,label,patient\na,0,x\nb,1,x\nc,2,y\n")
    other = write(tmp_path / "p.csv", "image_id,predicted,patient\na,0,v\nb,1,w\nc,2,\n")
    result = run(capsys, "part-a", "--predictions", other, "--truth", truth)
    assert result["accuracy_interval"]["units"] == 3  # v, w, and y of whom the first is silent
    assert f"{truth} names other patients than {other} for 2 images (a, b)" in messages.text


def test_another_spelling_of_a_patient_is_no_other_patient(tmp_path, capsys, messages):
    truth = write(tmp_path / "t.csv", "image_id,label,patient\na,0,P07\nb,1,P8\nc,2,na\n")
    other = write(tmp_path / "p.csv", "image_id,predicted,patient\na,0,p 7\nb,1,\nc,2,?\n")
    result = run(capsys, "part-a", "--predictions", other, "--truth", truth)
    assert result["accuracy_interval"]["unit"] == "2 patients + 1 images"
    assert "other patients" not in messages.text


def test_that_no_patient_is_known_is_said(tmp_path, capsys, messages):
    truth = write(tmp_path / "t.csv", "image_id,label\na,0\nb,1\n")
    result = run(capsys, "part-a", "--predictions", truth, "--truth", truth)
    assert result["accuracy_interval"]["unit"] == "images"
    assert "no patient is known, images count as if independent" in messages.text
    assert "--patients" in messages.text


def test_a_map_of_another_size_is_scaled_without_a_shift_and_logged(tmp_path, capsys, messages):
    coarse = np.random.default_rng(0).integers(0, 4, (10, 15), dtype=np.uint8)
    argv = folders(tmp_path, {"A01": coarse}, {"A01": np.kron(coarse, np.ones((4, 4), np.uint8))})
    assert run(capsys, *argv)["score"] == 1.0
    assert "scaled from 10x15 to 40x60" in messages.text


@pytest.mark.parametrize("shape", [(15, 10), (40, 45)])
def test_maps_of_different_proportions_are_refused(tmp_path, shape):
    argv = folders(
        tmp_path, {"A01": np.ones(shape, np.uint8)}, {"A01": np.ones((400, 600), np.uint8)}
    )
    with pytest.raises(InputError, match="proportions differ"):
        metrics.main([str(word) for word in argv])


def test_sizes_that_differ_by_rounding_only_are_taken(tmp_path, capsys):
    argv = folders(
        tmp_path, {"A01": np.ones((4, 6), np.uint8)}, {"A01": np.ones((1001, 1570), np.uint8)}
    )
    assert run(capsys, *argv)["score"] == 1.0


def test_slides_and_folders_that_are_not_there_are_named(tmp_path):
    one = np.ones((2, 2), np.uint8)
    argv = [str(word) for word in folders(tmp_path, {"A01": one}, {"A01": one, "A02": one})]
    with pytest.raises(InputError, match="no prediction for 1: a02"):
        metrics.main(argv)
    with pytest.raises(InputError, match="no such folder"):
        metrics.main(["part-b", "--predicted", str(tmp_path / "none"), "--truth", argv[-1]])
