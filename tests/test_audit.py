"""The leak audit: splits, the gap, the tool."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import made_up

from bach import folds
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.pictures import write_png
from bach.honest import audit, splits
from bach.honest.learners import Trees

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "folds"


def run(capsys, *argv):
    code = folds.main(["audit", *map(str, argv)])
    lines = capsys.readouterr().out.splitlines()
    return code, json.loads(lines[-1]), "\n".join(lines[:-1])


# Splits


def test_a_leaky_split_has_the_sizes_of_the_safe_one_in_every_class():
    _, table = made_up()
    table.loc[::7, "patient"] = ""
    safe = splits.make_folds(table, 3, seed=0, unknown="train")
    leaky = audit.leaky_folds(safe, seed=0)
    sizes = [split.groupby(["label", "fold"]).size().to_dict() for split in (safe, leaky)]
    assert sizes[0] == sizes[1]
    always = safe["fold"] == -1
    assert always.any()
    assert (leaky["fold"][always] == -1).all()
    assert len(splits.leaking_images(safe)) == 0
    assert len(splits.leaking_images(leaky)) > 0.9 * (~always).sum()


def test_every_known_image_is_held_out_once_and_no_unknown_one_is():
    features, table = made_up(patients=9, images=4)
    table.loc[::5, "patient"] = ""
    answers = audit.score_twice(features, table, k=3, seeds=2, learner=Trees(5))
    known = sorted(table["image_id"][table["patient"] != ""])
    for _, draw in answers.groupby(["split", "seed"]):
        assert sorted(draw["image_id"]) == known
    assert np.allclose(answers[list(PROB_COLUMNS)].sum(axis=1), 1)


def test_a_model_that_knows_patients_only_is_unmasked():
    features, table = made_up(patients=16, images=8, own=1.0)
    result = audit.measure_gap(audit.score_twice(features, table, k=4, seeds=1, learner=Trees(30)))
    assert result["leaky"]["value"] > 0.95
    assert result["safe"]["value"] < 0.5
    assert result["gap"]["low"] > 0.25


def test_a_model_that_knows_classes_only_shows_no_gap():
    features, table = made_up(patients=16, images=8, true=2.0)
    result = audit.measure_gap(audit.score_twice(features, table, k=4, seeds=1, learner=Trees(30)))
    assert result["safe"]["value"] > 0.95
    assert abs(result["gap"]["value"]) < 0.03


def test_the_same_call_gives_the_same_answers():
    features, table = made_up(patients=9, images=4, own=0.3)
    first, again = (audit.score_twice(features, table, 3, 1, Trees(10)) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_a_class_that_was_not_trained_on_has_probability_zero():
    features, table = made_up(patients=8, images=2)
    split = table.assign(fold=[0 if label == "Invasive" else 1 for label in table["label"]])
    answers = audit.cross_validate(features, split, learner=Trees(5), seed=0)
    held = answers[answers["fold"] == 0]
    assert (held["label"] == 3).all()
    assert (held["prob_invasive"] == 0).all()


def test_values_dealt_anew_keep_their_numbers_within_each_class():
    groups, labels = np.repeat(np.arange(20), 5), np.tile([0, 1, 1, 2, 2], 20)
    dealt = audit.deal_within_classes(groups, labels, seed=0)
    assert (dealt != groups).any()
    for label in range(3):
        assert sorted(dealt[labels == label]) == sorted(groups[labels == label])


# Figures


def answers(split, images, patients, labels, predicted, seed=0):
    table = {"image_id": images, "patient": patients, "label": labels, "predicted": predicted}
    return pd.DataFrame(table | {"split": split, "seed": seed})


def test_gap_of_a_case_worked_out_by_hand():
    images, patients, labels = list("abcd"), ["p", "p", "q", "q"], [0, 1, 2, 3]
    table = pd.concat(
        [
            answers("safe", images, patients, labels, [0, 0, 0, 0]),  # 1 right
            answers("safe", images, patients, labels, [0, 1, 0, 3], seed=1),  # 3 right
            answers("leaky", images, patients, labels, [0, 1, 2, 3]),  # 4 right
            answers("leaky", images, patients, labels, [0, 1, 2, 0], seed=1),  # 3 right
        ]
    )
    result = audit.measure_gap(table.sample(frac=1, random_state=0))
    assert result["safe"]["value"] == pytest.approx(4 / 8)
    assert result["leaky"]["value"] == pytest.approx(7 / 8)
    assert result["gap"]["value"] == pytest.approx(3 / 8)
    assert result["images"] == 4
    assert result["gap"]["units"] == 2
    assert result["gap"]["unit"] == "patients"


def test_the_gap_is_paired_so_that_hard_patients_do_not_blur_it():
    # Each patient is all wrong or half right when safe; leaky adds one image in each.
    patients = [f"p{n}" for n in range(20) for _ in range(4)]
    images = [f"i{n}" for n in range(80)]
    hits = np.array([[0, 0, 0, 0] if n % 2 else [1, 1, 1, 0] for n in range(20)])
    more = hits.copy()
    more[:, 3] = 1
    table = pd.concat(
        [
            answers(name, images, patients, np.zeros(80, int), 1 - array.ravel())
            for name, array in (("safe", hits), ("leaky", more))
        ]
    )
    result = audit.measure_gap(table)
    # All twenty gain a quarter: what they cannot rule out are others, 17% of all patients.
    unseen = 1 - 0.025 ** (1 / 20)
    assert result["gap"]["low"] == pytest.approx(0.25 - unseen * 1.25)
    assert result["gap"]["high"] == pytest.approx(0.25 + unseen * 0.75)
    assert result["safe"]["high"] - result["safe"]["low"] > 0.2


def test_splits_of_different_images_are_no_pair():
    table = pd.concat(
        [
            answers("safe", ["a", "b"], ["p", "q"], [0, 1], [0, 1]),
            answers("leaky", ["a"], ["p"], [0], [0]),
        ]
    )
    with pytest.raises(ValueError, match="same images"):
        audit.measure_gap(table)


# The tool


def test_audit_of_a_data_set_scores_known_images_and_the_hidden_test(photos, tmp_path, capsys):
    argv = ["--data-dir", photos, "--patients", photos / "patients.csv", "--run-dir", tmp_path]
    argv += ["--seeds", 2, "--folds", 2, "--trees", 20]
    argv += ["--test-truth", photos / "truth" / "part_a.csv"]
    code, result, text = run(capsys, *argv)
    known = pd.read_csv(photos / "patients.csv").dropna()
    assert code == 0
    assert result["images"] == len(known) < 32
    assert result["patients"] == 6
    assert result["gap"]["value"] == pytest.approx(
        result["leaky"]["value"] - result["safe"]["value"]
    )
    assert result["test"]["units"] == 8
    assert 0 < result["leaking"] <= len(known)
    assert f"{100 * result['gap']['value']:+.1f} points" in text
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    assert set(predictions["image_id"]) == set(known["image_id"])
    # Repeats are cheap and equal.
    assert run(capsys, *argv)[1] == result


def test_audit_with_features_of_a_network_keeps_them_beside_the_others(photos, tmp_path, capsys):
    argv = ["--data-dir", photos, "--patients", photos / "patients.csv", "--run-dir", tmp_path]
    argv += ["--seeds", 1, "--folds", 2, "--trees", 5]
    run(capsys, *argv)
    kept = (tmp_path / "features.csv").read_bytes()
    argv += ["--features", "EfficientNetLite0", "--test-truth", photos / "truth" / "part_a.csv"]
    code, result, text = run(capsys, *argv)
    assert code == 0
    assert result["features"] == "EfficientNetLite0"
    assert "trees" not in result
    assert "features of EfficientNetLite0" in text
    assert result["test"]["units"] == 8
    assert (tmp_path / "features.csv").read_bytes() == kept
    assert len(pd.read_csv(tmp_path / "features_EfficientNetLite0.csv").columns) == 1282
    assert run(capsys, *argv)[1] == result  # from the file


def test_audit_leaves_fold_tables_for_runs_of_ones_own(photos, tmp_path, capsys):
    patients = photos / "patients.csv"
    argv = ["--data-dir", photos, "--patients", patients, "--run-dir", tmp_path]
    run(capsys, *argv, "--seeds", 1, "--folds", 2, "--trees", 5)
    safe, leaky = (splits.read_folds(tmp_path / f"folds_{name}.csv") for name in ("safe", "leaky"))
    table = pd.read_csv(patients, keep_default_na=False)
    assert len(safe) == len(leaky) == 32
    splits.check_folds(safe, table)
    splits.check_folds(leaky)  # training is not to refuse it ...
    assert len(splits.leaking_images(leaky, table)) > 0  # ... though it does leak


def test_audit_with_unknown_images_trains_on_them_but_does_not_score_them(photos, tmp_path, capsys):
    argv = ["--data-dir", photos, "--patients", photos / "patients.csv", "--run-dir", tmp_path]
    argv += ["--seeds", 1, "--folds", 2, "--trees", 20]
    without = run(capsys, *argv)[1]
    table = pd.read_csv(tmp_path / "predictions.csv")
    _, result, text = run(capsys, *argv, "--with-unknown")
    other = pd.read_csv(tmp_path / "predictions.csv")
    assert result["images"] == without["images"]
    assert "unknown patients always in training" in text
    probs = list(PROB_COLUMNS)
    assert not np.allclose(table[probs].to_numpy(), other[probs].to_numpy())


def write_run(folder, predicted, labels, patients):
    folder.mkdir()
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(len(labels))], "label": labels})
    probs = np.full((len(labels), 4), 0.1)
    probs[np.arange(len(labels)), predicted] = 0.7
    table[list(PROB_COLUMNS)] = probs
    table.assign(patient=patients).to_csv(folder / "predictions.csv", index=False)
    return folder


def test_audit_of_two_runs_takes_the_images_of_known_patients(tmp_path, capsys):
    labels = [0, 1, 2, 3] * 3
    patients = [f"p{n // 2}" for n in range(10)] + ["", ""]
    safe = write_run(tmp_path / "safe", [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 2, 3], labels, patients)
    leaky = write_run(tmp_path / "leaky", [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 0, 0], labels, [""] * 12)
    table = tmp_path / "patients.csv"
    pd.DataFrame({"image_id": [f"i{n}" for n in range(12)], "patient": patients}).to_csv(
        table, index=False
    )
    code, result, _ = run(capsys, "--runs", safe, leaky, "--patients", table)
    assert code == 0
    assert result["images"] == 10
    assert result["safe"]["value"] == pytest.approx(0.6)
    assert result["leaky"]["value"] == pytest.approx(0.9)
    assert result["gap"]["units"] == 5


def test_two_runs_without_a_known_patient_are_refused(tmp_path):
    runs = [write_run(tmp_path / name, [0, 1], [0, 1], ["", ""]) for name in ("safe", "leaky")]
    with pytest.raises(InputError, match="--patients"):
        folds.main(["audit", "--runs", *map(str, runs)])


def test_two_runs_with_other_truth_are_refused(tmp_path):
    runs = [
        write_run(tmp_path / name, [0, 1], labels, ["p", "q"])
        for name, labels in (("safe", [0, 1]), ("leaky", [1, 1]))
    ]
    with pytest.raises(InputError, match=r"same true labels.*\n.*1 of 2"):
        folds.main(["audit", "--runs", *map(str, runs)])


def test_an_audit_without_known_patients_is_refused_before_the_work(photos, tmp_path):
    table = tmp_path / "none.csv"
    table.write_text("image_id,patient\nx001,P1\n")
    argv = [
        "audit",
        "--data-dir",
        str(photos),
        "--patients",
        str(table),
        "--run-dir",
        str(tmp_path),
    ]
    with pytest.raises(InputError, match="knows none of the 32 images"):
        folds.main(argv)
    assert not (tmp_path / "features.csv").exists()


def test_a_truth_that_lacks_a_test_photo_is_refused_before_the_work(photos, tmp_path):
    table = tmp_path / "truth.csv"
    table.write_text("image_id,label\ntest0,Normal\n")
    argv = ["--data-dir", str(photos), "--patients", f"{photos}/patients.csv"]
    with pytest.raises(InputError, match="without 7 of 8"):
        folds.main(["audit", *argv, "--test-truth", str(table), "--run-dir", str(tmp_path)])
    assert not (tmp_path / "features.csv").exists()


def test_more_folds_than_patients_are_refused_before_the_work(photos, tmp_path):
    argv = ["--data-dir", str(photos), "--patients", f"{photos}/patients.csv", "--folds", "7"]
    with pytest.raises(InputError, match="6 patients, --folds=7"):
        folds.main(["audit", *argv, "--run-dir", str(tmp_path)])
    assert not (tmp_path / "features.csv").exists()


@pytest.mark.parametrize("option", [("--folds", "1"), ("--seeds", "0"), ("--trees", "0")])
def test_numbers_out_of_range_are_refused(photos, tmp_path, capsys, option):
    argv = ["--data-dir", str(photos), "--patients", f"{photos}/patients.csv"]
    with pytest.raises(SystemExit) as ended:
        folds.main(["audit", *argv, *option, "--run-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert f"argument {option[0]}: must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("--runs", "one"), ("--data-dir", "d", "--runs", "a", "b")])
def test_an_audit_is_of_a_data_set_or_of_two_runs(words):
    with pytest.raises(InputError, match="--runs with the patient-safe run first"):
        folds.main(["audit", *words])


def test_as_a_program_an_input_error_is_its_message_and_code_2(tmp_path):
    words = [sys.executable, "-m", "bach.folds", "audit", "--data-dir", str(tmp_path / "no")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("InputError: An audit needs to know the patients.")
    assert "Traceback" not in done.stderr


# Committed tables


def test_the_eva_split_is_the_published_one():
    table = splits.read_folds(COMMITTED / "eva.csv")
    assert (table["fold"] == 0).sum() == 132
    assert (table["fold"] == -1).sum() == 268
    # Its files are sorted by name within the folders Benign, InSitu, Invasive, Normal.
    order = table.sort_values(["label", "image_id"])["fold"].tolist()
    held_out = [(41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368)]
    expected = [-1] * 400
    for start, stop in held_out:
        expected[start:stop] = [0] * (stop - start)
    assert order == expected


def test_the_eva_split_leaks_no_known_patient_and_holds_out_known_ones_only():
    table = splits.read_folds(COMMITTED / "eva.csv")
    patients = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    assert len(splits.leaking_images(table, patients)) == 0
    assert (table["patient"][table["fold"] == 0] != "").all()


# Photos of a table, and classes that are far from as common


def test_audit_of_a_table_of_another_task_by_its_own_patients(tmp_path, capsys):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "two ü.toml").write_text('photo_mpp = 0.25\nside_px = 64\nclasses = ["a", "b"]\n')
    for number in range(24):
        label = int(number % 4 == 0)  # a quarter is b
        rgb = rng.integers(0, 200 + 50 * label, (64, 64, 3)).astype(np.uint8)
        write_png(tmp_path / f"{number}.png", rgb)
        rows.append(f"{number}.png,{'ab'[label]},P{number // 4}")
    (tmp_path / "t.csv").write_text("path,label,patient\n" + "\n".join(rows))
    words = ["--images", tmp_path / "t.csv", "--task", tmp_path / "two ü.toml", "--seeds", "1"]
    words += ["--trees", "20", "--run-dir", tmp_path / "run"]
    code, result, text = run(capsys, *words)
    assert code == 0
    assert (result["images"], result["patients"]) == (24, 6)
    assert "balanced accuracy" in text
    assert result["balanced"]["safe"]["value"] > 0.9
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert {"prob_a", "prob_b"} <= set(table.columns)


def test_the_balanced_gap_of_a_case_worked_out_by_hand():
    # Six of Normal, two of Benign; as common, both Benign are found by the leaky split alone.
    label = [0, 0, 0, 0, 0, 0, 1, 1]
    probs = {"safe": [0.9] * 6 + [0.9, 0.7], "leaky": [0.9] * 5 + [0.1] + [0.5, 0.6]}
    parts = []
    for split, normal in probs.items():
        part = pd.DataFrame({"image_id": [f"i{n}" for n in range(8)], "label": label})
        part["patient"] = [f"P{n % 4}" for n in range(8)]
        part[list(PROB_COLUMNS)] = 0.0
        part["prob_normal"], part["prob_benign"] = normal, 1 - np.array(normal)
        parts.append(part.assign(split=split, seed=0))
    found = audit.measure_gap(pd.concat(parts))["balanced"]
    # Divided by 3/4 and 1/4: 0.7 is 0.93 against 1.2, Benign.
    assert found["safe"]["value"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["leaky"]["value"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["gap"]["value"] == pytest.approx(11 / 12 - 3 / 4)


def test_classes_that_are_as_common_have_no_balanced_gap():
    features, table = made_up(patients=16, images=8, own=1.0)
    result = audit.measure_gap(audit.score_twice(features, table, k=4, seeds=1, learner=Trees(5)))
    assert "balanced" not in result
