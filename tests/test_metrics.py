import json
import logging

import numpy as np
import pandas as pd
import pytest

from bach import labels, metrics, scores
from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import to_json


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
