import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import slide_record

from bach import runs
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.honest import comparison
from bach.honest.records import read_images, write_slide


def training_run(folder, predicted, label, patient=None, **arguments):
    folder.mkdir(parents=True)
    probs = np.full((len(label), 4), 0.1)
    probs[np.arange(len(label)), predicted] = 0.7
    table = pd.DataFrame({"image_id": [f"i{n:03}" for n in range(len(label))], "label": label})
    table["predicted"] = predicted
    table[list(PROB_COLUMNS)] = probs
    if patient is not None:
        table["patient"] = patient
    table.to_csv(folder / "predictions.csv", index=False)
    record = {"command": "train_part_a.py --x a|b", "arguments": arguments, "commit": "abc1234567"}
    (folder / "run.json").write_text(json.dumps(record | {"dirty": True}))
    (folder / "metrics.json").write_text("{}")
    return folder


def heatmap_run(folder, scores, in_sample=(), **arguments):
    (folder / "slides").mkdir(parents=True)
    for slide, score in scores.items():
        right = round(1000 * score)
        counts = np.zeros((4, 4), int)
        counts[3, 3], counts[3, 0] = right, 1000 - right
        record = slide_record(slide, counts=counts, score=score, in_sample=slide in in_sample)
        write_slide(folder / "slides" / f"{slide}.json", record)
    write_slide(folder / "slides" / "unlabelled.json", slide_record("unlabelled"))
    (folder / "run.json").write_text(json.dumps({"arguments": arguments}))
    return folder


@pytest.fixture
def pair(tmp_path):
    """Two runs on 120 images of 30 patients; `good` is right on more of them."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 120)
    patient = [f"P{n % 30}" for n in range(120)]
    wrong = (label + 1) % 4
    good = np.where(rng.random(120) < 0.9, label, wrong)
    bad = np.where(rng.random(120) < 0.6, label, wrong)
    return (
        training_run(tmp_path / "good", good, label, patient, backbone="tiny", epochs=25),
        training_run(tmp_path / "bad", bad, label, patient, backbone="vgg19"),
    )


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
    assert (result["difference"]["low"], result["difference"]["high"]) == (0, 0)


def test_pairing_sees_a_difference_that_two_intervals_apart_would_hide(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 300)
    hard = rng.random(300) < 0.5
    old = np.where(hard, (label + 1) % 4, label)
    new = old.copy()
    mended = np.flatnonzero(hard)[:15]
    new[mended] = label[mended]
    runs_ = [training_run(tmp_path / n, p, label) for n, p in (("new", new), ("old", old))]
    intervals = [comparison.accuracy_interval(read_images(run)) for run in runs_]
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
    assert "only 4 patients" in comparison.format_comparison(result)


def test_a_patient_table_takes_the_place_of_the_column(pair, tmp_path):
    table = pd.DataFrame({"image_id": [f"I{n:03}.tif" for n in range(60)], "patient": "P1"})
    table.to_csv(tmp_path / "patients.csv", index=False)
    result = comparison.compare(*pair, patients=tmp_path / "patients.csv")
    assert result["difference"]["unit"] == "1 patients + 60 images"
    assert result["difference"]["units"] == 61


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
        comparison.table([tmp_path / "nothing"])


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
    ("low", "high", "units", "answer"),
    [
        (0.01, 0.2, 10, "better"),
        (-0.2, -0.01, 10, "worse"),
        (-0.01, 0.2, 10, "not distinguishable"),
        (0.0, 0.2, 10, "not distinguishable"),
        (0.01, 0.2, 4, "not distinguishable"),
        (None, None, 1, "not distinguishable"),
    ],
)
def test_the_interval_of_the_difference_decides(low, high, units, answer):
    assert comparison.verdict({"low": low, "high": high, "units": units}) == answer


# The leaderboard


def test_own_runs_stand_beside_published_figures_that_say_so(pair):
    lines = comparison.table([pair[1], pair[0]]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[3:]]
    header = [cell.strip() for cell in lines[2].strip("|").split(" | ")]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows[1:3]] == ["good", "bad"]  # best first
    assert rows[1][1:3] == ["tiny", "25"]
    assert "(30 patients)" in rows[1][3]
    assert "abc1234*" in rows[1]
    assert rows[1][-1] == "`train_part_a.py --x a\\|b`"
    published = rows[3:]
    assert len(published) == sum(entry["part"] == "A" for entry in comparison.PUBLISHED)
    assert all(row[0].startswith("*published: ") and len(row[-1]) > 3 for row in published)


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


def test_a_heatmap_run_has_the_backbone_of_its_models_and_the_slides_it_beat(tmp_path):
    label = np.arange(4)
    model = training_run(tmp_path / "final", label, label, backbone="tiny", epochs=15)
    scores = {"A01": 0.7, "A02": 0.3, "A03": 0.9}
    run = heatmap_run(tmp_path / "maps", scores, in_sample={"A03"}, model_dir=str(model))
    lines = comparison.table([run]).splitlines()
    row = lines[4]
    assert row.startswith("| maps (unfinished) | tiny | 15 | 0.500 [")
    # All pixels are invasive, so that always Benign scores 1/3 here.
    assert "2 slides; above always Benign on 1" in row
    by_slide = next(line for line in lines if line.startswith("| maps |"))
    assert by_slide.startswith("| maps | 0.700 | 0.300 | 0.900* | - |")
    assert "| maps: always Benign | 0.333 | 0.333 | 0.333 |" in lines[-2]
    assert lines[-1].startswith("| *published: always Benign* | 0.65 | 0.60 | 0.66 | 0.44 |")
    seen = heatmap_run(tmp_path / "seen", scores, in_sample=set(scores))
    assert "3 slides, in sample (trained on them)" in comparison.table([seen])


def test_without_runs_both_tables_show_what_is_published():
    text = comparison.table([])
    assert "Part A." in text
    assert "0.6929" in text


# The tools


def test_compare_ends_with_one_line_of_json(pair, capsys):
    assert runs.main(["compare", str(pair[0]), str(pair[1]), "--samples", "500"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["verdict"] == "better"
    assert "A is better than B (accuracy)" in lines


def test_table_prints_markdown(pair, capsys):
    assert runs.main(["table", str(pair[0])]) == 0
    assert "| good | tiny | 25 |" in capsys.readouterr().out


def test_run_as_a_program_errors_give_exit_code_2_and_help_0(tmp_path):
    def program(*words):
        command = [sys.executable, "-m", "bach.runs", *words]
        root = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)

    wrong = program("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("InputError: ")
    assert "Traceback" not in wrong.stderr
    helped = program("compare", "--help")
    assert helped.returncode == 0
    assert "run_a" in helped.stdout
