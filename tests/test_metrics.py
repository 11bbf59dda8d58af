import json
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as oracle

from bach import metrics
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.runs import InputError


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


# Part B


@pytest.mark.parametrize(("label", "score"), [(0, 1 / 7), (1, 0.6), (2, 0.6), (3, 0.4)])
def test_always_predicting_one_class_gives_the_published_scores(label, score):
    truth = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(10, 10)
    predicted = np.full_like(truth, label)
    assert metrics.part_b_score(predicted, truth) == pytest.approx(score, abs=1e-12)


def test_a_map_worked_out_by_hand_scores_as_on_paper():
    predicted = np.array([[0, 1, 2], [3, 0, 1]], np.uint8)
    truth = np.array([[0, 1, 0], [0, 3, 2]], np.uint8)
    # errors 0 0 2 3 3 1; worst 0 2 3 3 3 2
    assert metrics.part_b_terms(metrics.joint_counts(predicted, truth)) == (9, 13)
    assert metrics.part_b_score(predicted, truth) == pytest.approx(1 - 9 / 13)


def test_the_counts_agree_with_the_formula_written_out():
    rng = np.random.default_rng(0)
    p, g = rng.integers(0, 4, (2, 50, 70), dtype=np.uint8)
    mask = rng.random((50, 70)) < 0.5
    for keep in (np.ones_like(mask), mask):
        a, b = p[keep].astype(float), g[keep].astype(float)
        worst = np.maximum(b, 3 - b) * ((a > 0) | (b > 0))
        expected = 1 - np.abs(a - b).sum() / worst.sum()
        assert metrics.part_b_score(p, g, keep) == pytest.approx(expected)


def test_uint8_maps_do_not_wrap_around():
    predicted, truth = np.zeros((4, 4), np.uint8), np.full((4, 4), 3, np.uint8)
    assert metrics.part_b_score(predicted, truth) == 0.0
    assert metrics.part_b_score(truth, predicted) == 0.0


def test_a_perfect_map_scores_one_and_two_empty_maps_have_no_score():
    truth = np.array([[0, 1], [2, 3]], np.uint8)
    assert metrics.part_b_score(truth, truth) == 1.0
    assert np.isnan(metrics.part_b_score(np.zeros_like(truth), np.zeros_like(truth)))


def test_a_mask_without_pixels_gives_no_score():
    truth = np.ones((2, 2), np.uint8)
    assert np.isnan(metrics.part_b_score(truth, truth, np.zeros((2, 2), bool)))


@pytest.mark.parametrize(
    ("predicted", "mask", "text"),
    [
        (np.zeros((2, 3), np.uint8), None, "same shape"),
        (np.full((2, 2), 4, np.uint8), None, "values 4"),
        (np.full((2, 2), -1), None, "values -1"),
        (np.zeros((2, 2), np.float32), None, "not the heatmap"),
        (np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8), "must be bool"),
        (np.zeros((2, 2), np.uint8), np.ones((2, 3), bool), "shape of the maps"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused_with_the_reason(predicted, mask, text):
    with pytest.raises(ValueError, match=text):
        metrics.part_b_score(predicted, np.zeros((2, 2), np.uint8), mask)


def test_slides_are_averaged_and_pooled_and_undefined_ones_are_said(messages):
    empty = np.zeros((5, 5), np.uint8)
    small, large = np.full((1, 1), 3, np.uint8), np.full((3, 3), 3, np.uint8)
    result = metrics.score_part_b(
        [("a", np.zeros_like(small), small), ("b", large, large), ("c", empty, empty)]
    )
    assert result["per_slide"]["a"] == 0.0
    assert result["per_slide"]["b"] == 1.0
    assert result["score"] == 0.5
    assert result["score_pooled"] == pytest.approx(1 - 3 / 30)
    assert result["undefined"] == ["c"]
    assert "left out of the mean: c" in messages.text
    assert result["baseline"]["per_slide"] == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 2 / 3})


def test_a_slide_that_comes_twice_is_refused():
    one = np.ones((1, 1), np.uint8)
    with pytest.raises(ValueError, match="'a' twice"):
        metrics.score_part_b([("a", one, one), ("a", one, one)])


def test_no_slides_at_all_have_no_score():
    result = metrics.score_part_b([])
    assert np.isnan(result["score"])
    assert np.isnan(result["score_pooled"])


# Part A


def test_the_figures_agree_with_scikit_learn():
    truth, predicted = truth_and_prediction()
    result = metrics.part_a_metrics(truth, predicted)
    assert result["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert result["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(truth, predicted)
    )
    assert result["binary_accuracy"] == pytest.approx(
        oracle.accuracy_score(truth >= 2, predicted >= 2)
    )
    assert result["confusion"] == oracle.confusion_matrix(truth, predicted).tolist()
    for label, name in enumerate(CLASSES):
        true, called = truth == label, predicted == label
        assert result["sensitivity"][name] == pytest.approx(oracle.recall_score(true, called))
        assert result["specificity"][name] == pytest.approx(oracle.recall_score(~true, ~called))
    assert result["images"] == 500


def test_the_winners_published_sensitivities_give_accuracy_87():
    hits = (24, 18, 22, 23)  # .96 .72 .88 .92 of 25
    truth = np.repeat(np.arange(4), 25)
    predicted = truth.copy()
    for label, hit in enumerate(hits):
        rows = np.flatnonzero(truth == label)[hit:]
        predicted[rows] = (label + 1) % 4
    result = metrics.part_a_metrics(truth, predicted)
    assert list(result["sensitivity"].values()) == pytest.approx([0.96, 0.72, 0.88, 0.92])
    assert result["accuracy"] == pytest.approx(0.87)


def test_a_class_without_images_has_no_sensitivity_and_is_left_out_of_the_balance():
    result = metrics.part_a_metrics([0, 0, 1], [0, 1, 1])
    assert result["sensitivity"] == {"Normal": 0.5, "Benign": 1.0, "InSitu": None, "Invasive": None}
    assert result["balanced_accuracy"] == 0.75
    assert metrics.part_a_metrics([2, 2], [2, 1])["specificity"]["InSitu"] is None


def test_no_images_at_all_give_no_figures():
    result = metrics.part_a_metrics([], [])
    assert result["accuracy"] is None
    assert result["images"] == 0


# Tables


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("test0.tif", "test0"),
        ("folder/Test0.TIFF", "test0"),
        ("C:\\photos\\test0.tif", "test0"),
        (" test0 ", "test0"),
        ("SOB_B-14.25", "sob_b-14.25"),
        (".tif", ".tif"),
    ],
)
def test_ids_match_without_folder_ending_and_case(text, image):
    assert metrics.image_key(text) == image


PREDICTED = [0, 1, 2, 3, 3, 0]


@pytest.mark.parametrize(
    "text",
    [
        "a.tif,Normal\nb.tif,Benign\nc.tif,InSitu\nd.tif,Invasive\ne.tif,Invasive\nf.tif,Normal\n",
        "a,normal\nb,b\nc,Carcinoma in situ\nd,invasive carcinoma\ne,IV\n\nf,n\n",
        "A.TIF,0\nx/b.png,1\nc,2\nd,3.0\ne,3\nf,0\n",
        "\ufeffa;Normal\nb;Benign\nc;In situ\nd;Invasive\ne;Invasive\nf;Normal\n",
        "image_id,label\na,Normal\nb,Benign\nc,in-situ\nd,Invasive\ne,Invasive\nf,Normal\n",
        "label,image\n0,a\n1,b\n2,c\n3,d\n3,e\n0,f\n",
        "case,class,P(Normal)\na.tif,1,1\nb.tif,2,0\nc.tif,3,0\nd.tif,4,0\ne.tif,4,0\nf.tif,1,1\n",
        "picture,Prediction\na,Normal\nb,Benign\nc,InSitu\nd,Invasive\ne,Invasive\nf,Normal\n",
    ],
)
def test_every_dialect_of_a_prediction_table_is_read(tmp_path, text):
    table = metrics.read_labels(write(tmp_path / "p.csv", text), "predictions")
    assert table["key"].tolist() == list("abcdef")
    assert table["label"].tolist() == PREDICTED


def project_table():
    probs = np.full((3, 4), 0.1)
    probs[[0, 1, 2], [2, 0, 3]] = 0.7
    table = pd.DataFrame(
        {"image_id": ["is1", "b1", "iv1"], "label": ["InSitu", "Benign", "Normal"]}
    )
    table["patient"] = ""
    table["predicted"] = ["InSitu", "Normal", "Invasive"]
    table[list(PROB_COLUMNS)] = probs
    return table


def test_in_the_projects_own_table_prob_columns_answer_and_label_is_the_truth(tmp_path):
    path = tmp_path / "predictions.csv"
    project_table().to_csv(path, index=False)
    assert metrics.read_labels(path, "predictions")["label"].tolist() == [2, 0, 3]
    assert metrics.read_labels(path, "truth")["label"].tolist() == [2, 1, 0]


def test_prob_columns_may_stand_in_any_order(tmp_path):
    table = project_table()
    path = tmp_path / "predictions.csv"
    table[list(table.columns[::-1])].to_csv(path, index=False)
    found = metrics.read_labels(path, "predictions")
    assert found["image_id"].tolist() == ["is1", "b1", "iv1"]
    assert found["label"].tolist() == [2, 0, 3]


def test_a_table_that_contradicts_itself_is_logged(tmp_path, messages):
    table = project_table()
    table["predicted"] = "Benign"
    table.to_csv(tmp_path / "predictions.csv", index=False)
    metrics.read_labels(tmp_path / "predictions.csv", "predictions")
    assert "differs from column 'predicted' in 3 rows" in messages.text
    text = "case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)\na,4,.1,.6,.2,.1\n"
    found = metrics.read_labels(write(tmp_path / "p.csv", text), "predictions")
    assert found["label"].tolist() == [3]
    assert "differs from the largest P(...) in 1 rows" in messages.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("image_id,label\n", "only 'image_id,label'"),
        ("a.tif\nb.tif\n", "one column"),
        ("a,Normal\nb,Normal,x\n", "rows 2 differ"),
        ("a,Normal\nb,Bening\nc,7\n", r"\(2 rows\): b: 'Bening', c: '7'"),
        ("a,Bening\nb,Normal\n", "mend the class"),
        ("image_id,label\na,Normal\nb,\n", "b: ''"),
        ("case,class\na,0\nb,4\n", "a: '0'"),
        ("a.tif,Normal\nA,Benign\nx/a.png,Benign\n", r"\(1\): a"),
        ("image_id,fold,size\na,1,2\n", "Received the columns: image_id, fold, size"),
        (",".join(["image_id", *PROB_COLUMNS]) + "\na,1,0,0,x\n", "table rows 1"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_with_the_reason(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        metrics.read_labels(write(tmp_path / "p.csv", text), "predictions")


def test_a_table_of_predictions_is_no_truth(tmp_path):
    path = write(tmp_path / "p.csv", "image_id,predicted\na,Normal\n")
    with pytest.raises(InputError, match="column of true classes"):
        metrics.read_labels(path, "truth")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="readable CSV"):
        metrics.read_labels(tmp_path / "none.csv", "truth")


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
    assert result == json.loads(metrics.to_json(metrics.part_a_metrics(truth, predicted)))
    assert list(result) == [
        "accuracy", "balanced_accuracy", "binary_accuracy", "sensitivity", "specificity",
        "confusion", "images",
    ]  # fmt: skip


def test_missing_and_extra_images_are_all_named(tmp_path, capsys):
    truth = write(tmp_path / "t.csv", "a,Normal\nb,Benign\nc,Benign\n")
    predictions = write(tmp_path / "p.csv", "a,Normal\nd,Benign\n")
    argv = ["part-a", "--predictions", str(predictions), "--truth", str(truth)]
    with pytest.raises(InputError, match=r"no prediction for 2: b, c\.\n.*no truth for 1: d"):
        metrics.main(argv)
    predictions.write_text("a,Normal\nb,Benign\nc,Normal\nd,Benign\n")
    with pytest.raises(InputError, match="--allow-extra"):
        metrics.main(argv)
    assert run(capsys, *argv, "--allow-extra")["images"] == 3


# Maps


def test_a_class_map_is_read_back_as_written_and_carries_its_colours(tmp_path):
    class_map = np.random.default_rng(0).integers(0, 4, (13, 7), dtype=np.uint8)
    for values in (class_map, np.full((3, 5), 3, np.uint8)):
        metrics.write_class_map(tmp_path / "map.png", values)
        assert np.array_equal(metrics.read_class_map(tmp_path / "map.png"), values)
    colors = np.array(Image.open(tmp_path / "map.png").convert("RGB"))
    assert tuple(colors[0, 0]) == COLORS[3]
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_map_of_other_values_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="values 4"):
        metrics.write_class_map(tmp_path / "map.png", np.full((2, 2), 4, np.uint8))
    with pytest.raises(ValueError, match="height, width"):
        metrics.write_class_map(tmp_path / "map.png", np.zeros((2, 2, 1), np.uint8))


def test_gray_maps_are_read_and_pictures_are_refused(tmp_path):
    values = np.array([[0, 1], [2, 3]], np.uint8)
    path = tmp_path / "map.png"
    for kind in (np.uint8, np.uint16):
        Image.fromarray(values.astype(kind)).save(path)
        assert np.array_equal(metrics.read_class_map(path), values)
    Image.fromarray(values * 85).save(path)
    with pytest.raises(InputError, match="values: 0, 85, 170, 255"):
        metrics.read_class_map(path)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match="mode RGB"):
        metrics.read_class_map(path)
    path.write_text("no PNG")
    with pytest.raises(InputError, match="readable PNG"):
        metrics.read_class_map(path)


def folders(tmp_path, predicted, truth):
    for name, maps in (("predicted", predicted), ("truth", truth)):
        (tmp_path / name).mkdir(exist_ok=True)
        for slide, class_map in maps.items():
            metrics.write_class_map(tmp_path / name / f"{slide}.png", class_map)
    return "part-b", "--predicted", tmp_path / "predicted", "--truth", tmp_path / "truth"


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
    scores = [metrics.part_b_score(maps[0, slide], maps[1, slide]) for slide in range(2)]
    assert result["per_slide"] == {"A01": scores[0], "A02": scores[1], "A03": None}
    assert result["score"] == pytest.approx(np.mean(scores))
    assert result["baseline"]["per_slide"]["A01"] == metrics.part_b_score(
        np.ones_like(maps[1, 0]), maps[1, 0]
    )
    assert np.sum(result["counts"]["A01"]) == 600
    interval = result["score_interval"]
    assert (interval["units"], interval["unit"]) == (2, "slides")  # A03 says nothing
    assert interval["value"] == pytest.approx(result["score"])
    assert set(result) == {
        "score", "score_pooled", "per_slide", "undefined", "baseline", "counts", "score_interval",
    }  # fmt: skip


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
