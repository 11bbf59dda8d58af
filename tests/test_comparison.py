import numpy as np
import pandas as pd
import pytest
from made_up import heatmap_run, training_run, two_runs

from bach.core.errors import InputError
from bach.honest import comparison, records
from bach.honest.intervals import accuracy_interval
from bach.honest.records import read_images


@pytest.fixture
def pair(tmp_path):
    return two_runs(tmp_path)


# Two runs


def test_a_run_that_is_right_more_often_is_better_and_the_other_way_round_worse(pair):
    result = comparison.compare(*pair)
    assert result["verdict"] == "better"
    assert (result["part"], result["metric"], result["common"]) == ("A", "accuracy", 120)
    assert result["difference"]["units"] == 30
    assert result["difference"]["unit"] == "patients"
    assert result["difference"]["value"] == pytest.approx(result["a"] - result["b"])
    assert comparison.compare(*reversed(pair))["verdict"] == "worse"
    assert set(result["guides"]) == {"balanced_accuracy", "binary_accuracy"}


def test_a_run_is_not_distinguishable_from_itself(pair):
    result = comparison.compare(pair[0], pair[0])
    assert result["verdict"] == "not distinguishable"
    assert result["difference"]["value"] == 0
    assert result["difference"]["low"] == -result["difference"]["high"] < -0.05


def test_pairing_sees_a_difference_that_two_intervals_apart_would_hide(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 300)
    hard = rng.random(300) < 0.5
    old = np.where(hard, (label + 1) % 4, label)
    new = old.copy()
    mended = np.flatnonzero(hard)[:15]
    new[mended] = label[mended]
    runs_ = [training_run(tmp_path / n, p, label) for n, p in (("new", new), ("old", old))]
    intervals = [accuracy_interval(read_images(run)) for run in runs_]
    assert intervals[0]["low"] < intervals[1]["high"]  # they overlap
    assert comparison.compare(*runs_)["verdict"] == "better"


def test_only_images_that_both_predicted_count_whatever_their_order(tmp_path):
    label = np.arange(40) % 4
    a = training_run(tmp_path / "a", label, label)
    b = training_run(tmp_path / "b", label, label)
    table = pd.read_csv(b / "predictions.csv").iloc[::-1].head(30)
    table["image_id"] += ".TIF"
    table.to_csv(b / "predictions.csv", index=False)
    result = comparison.compare(a, b)
    assert (result["common"], result["only_a"], result["only_b"]) == (30, 10, 0)
    assert (result["a"], result["b"]) == (1, 1)


def test_few_patients_never_decide(tmp_path):
    label = np.arange(40) % 4
    patient = [f"P{n % 4}" for n in range(40)]
    a = training_run(tmp_path / "a", label, label, patient)
    b = training_run(tmp_path / "b", (label + 1) % 4, label, patient)
    result = comparison.compare(a, b)
    assert result["difference"]["value"] == 1
    assert result["verdict"] == "not distinguishable"
    assert "only 4 patients" in result["difference"]["warning"]


def test_a_patient_table_takes_the_place_of_the_column(pair, tmp_path):
    table = pd.DataFrame({"image_id": [f"I{n:03}.tif" for n in range(60)], "patient": "P1"})
    table.to_csv(tmp_path / "patients.csv", index=False)
    result = comparison.compare(*pair, patients=tmp_path / "patients.csv")
    assert result["difference"]["unit"] == "1 patients + 60 images"
    assert result["difference"]["units"] == 61


def test_the_patients_of_either_run_are_those_of_both(pair, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(records.log, "propagate", True)
    label = pd.read_csv(pair[0] / "predictions.csv")["label"].to_numpy()
    silent = training_run(tmp_path / "silent", label, label)
    for one, other in ((pair[0], silent), (silent, pair[0])):
        difference = comparison.compare(one, other)["difference"]
        assert (difference["units"], difference["unit"]) == (30, "patients")
    assert "no patient is known" not in caplog.text
    comparison.compare(silent, silent)
    assert "no patient is known" in caplog.text


def test_a_patient_with_most_of_the_images_decides_nothing(tmp_path):
    label = np.arange(100) % 4
    patient = ["P0"] * 60 + [f"P{1 + n % 9}" for n in range(40)]
    a = training_run(tmp_path / "a", label, label, patient)
    b = training_run(tmp_path / "b", np.where(label == 0, 1, label), label, patient)
    result = comparison.compare(a, b)
    assert result["difference"]["units"] == 10
    assert result["difference"]["worth"] < 5
    assert result["verdict"] == "not distinguishable"
    assert "only 10 patients, worth 2.6" in result["difference"]["warning"]


def test_runs_that_disagree_about_the_truth_are_refused(tmp_path):
    label = np.arange(8) % 4
    a = training_run(tmp_path / "a", label, label)
    b = training_run(tmp_path / "b", label, (label + 1) % 4)
    with pytest.raises(InputError, match="same true labels"):
        comparison.compare(a, b)


def test_runs_without_a_common_image_or_part_are_refused(tmp_path, pair):
    label = np.arange(8) % 4
    other = training_run(tmp_path / "other", label, label)
    table = pd.read_csv(other / "predictions.csv")
    table["image_id"] = "x" + table["image_id"]
    table.to_csv(other / "predictions.csv", index=False)
    with pytest.raises(InputError, match="in common"):
        comparison.compare(pair[0], other)
    with pytest.raises(InputError, match="same part"):
        comparison.compare(pair[0], heatmap_run(tmp_path / "maps", {"A01": 0.5}))


def test_hard_examples_are_no_images_to_compare(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "predictions.csv").write_text(
        "image_id,x,y,label,predicted\nA01,0,0,1,1\n"
    )
    with pytest.raises(InputError, match="no estimate"):
        comparison.compare(tmp_path / "final", tmp_path / "final")
    with pytest.raises(InputError, match="no such folder"):
        comparison.parts_of(tmp_path / "nothing")


def test_slides_are_compared_by_the_mean_of_their_scores(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"A{n:02}": float(score) for n, score in enumerate(rng.uniform(0.3, 0.8, 10), 1)}
    better = {slide: score + 0.02 + 0.01 * (n % 2) for n, (slide, score) in enumerate(base.items())}
    a, b = heatmap_run(tmp_path / "a", better), heatmap_run(tmp_path / "b", base | {"A11": 0.1})
    result = comparison.compare(a, b)
    assert (result["part"], result["metric"]) == ("B", "score")
    assert result["verdict"] == "better"
    assert (result["common"], result["only_a"], result["only_b"]) == (10, 0, 1)
    assert result["difference"]["value"] == pytest.approx(0.025, abs=2e-3)
    assert result["guides"].keys() == {"score_pooled"}


def test_slides_that_a_model_was_trained_on_are_left_out(tmp_path):
    scores = {f"A{n:02}": 0.5 for n in range(1, 8)}
    a = heatmap_run(tmp_path / "a", scores | {"A01": 1.0}, in_sample={"A01"})
    b = heatmap_run(tmp_path / "b", scores)
    result = comparison.compare(a, b)
    assert (result["common"], result["a"]) == (6, 0.5)
    everything = heatmap_run(tmp_path / "c", scores, in_sample=set(scores))
    with pytest.raises(InputError, match="no model was trained on"):
        comparison.compare(everything, b)


@pytest.mark.parametrize(
    ("low", "high", "worth", "answer"),
    [
        (0.01, 0.2, 10, "better"),
        (-0.2, -0.01, 10, "worse"),
        (-0.01, 0.2, 10, "not distinguishable"),
        (0.0, 0.2, 10, "not distinguishable"),
        (0.01, 0.2, 4, "not distinguishable"),
        (0.01, 0.2, 4.9, "not distinguishable"),
        (None, None, 1, "not distinguishable"),
    ],
)
def test_the_interval_of_the_difference_decides(low, high, worth, answer):
    assert comparison.verdict({"low": low, "high": high, "units": 29, "worth": worth}) == answer


def test_the_published_numbers_are_those_of_the_papers():
    figures = {(e["name"], e["measured_on"].split(",")[0]): e for e in comparison.PUBLISHED}
    winner = "winner, Inception-ResNet-v2"
    assert figures[winner, "hidden test"]["accuracy"] == 0.87
    assert figures[winner, "3-fold cross-validation"]["binary_accuracy"] == 0.91
    assert figures["winner", "hidden test"]["score"] == 0.6929
    assert "in sample" in next(
        e["measured_on"] for e in comparison.PUBLISHED if e.get("score") == 0.75
    )
    # The per-slide baselines and their published mean agree.
    assert np.mean(list(comparison.ALWAYS_BENIGN.values())) == pytest.approx(0.60, abs=0.005)
    assert figures["always Benign", "A01-A10"]["score"] == 0.60
    assert all(entry["source"] for entry in comparison.PUBLISHED)


def test_predictions_that_are_no_text_are_named(pair):
    (pair[0] / "predictions.csv").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InputError, match=r"predictions\.csv must be a readable"):
        comparison.compare(*pair)
