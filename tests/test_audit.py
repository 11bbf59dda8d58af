import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import color

from bach import audit, folds
from bach.classes import CLASSES, PROB_COLUMNS
from bach.runs import InputError
from bach.toy import make_data_set

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "folds"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """32 tiny photos of 8 patients, two of them unknown, and 8 test photos."""
    path = tmp_path_factory.mktemp("audit") / "data"
    make_data_set(
        path, patients=8, images=8, test_images=2, slides=0, test_slides=0, photo_size=(160, 120)
    )
    patients = pd.read_csv(path / "patients.csv")
    patients.loc[patients["patient"].isin(["T01", "T06"]), "patient"] = ""
    patients.to_csv(path / "patients.csv", index=False)
    return path


def run(capsys, *argv):
    code = folds.main(["audit", *map(str, argv)])
    lines = capsys.readouterr().out.splitlines()
    return code, json.loads(lines[-1]), "\n".join(lines[:-1])


def made_up(patients=20, images=8, seed=0, own=0.0, true=0.0):
    """Images with three features: noise, the patient's own mark, the class's mark."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    label = patient % 4  # to know the patient is to know the class
    marks = rng.normal(size=(patients, 6))
    values = rng.normal(size=(len(patient), 6)) * 0.2 + own * marks[patient]
    classes = rng.normal(size=(4, 6))
    values = np.hstack([values, rng.normal(size=values.shape) * 0.2 + true * classes[label]])
    ids = [f"i{number:03}" for number in range(len(patient))]
    table = pd.DataFrame(
        {
            "image_id": ids,
            "label": [CLASSES[name] for name in label],
            "patient": [f"p{name}" for name in patient],
        }
    )
    return pd.DataFrame(values, index=ids), table


# Features


def test_a_plain_photo_has_the_colour_of_its_pixels():
    rgb = np.full((96, 128, 3), (200, 120, 180), np.uint8)
    found = audit.image_features(rgb)
    lab = color.rgb2lab(rgb)[0, 0]
    assert found["colour_lightness_mean"] == pytest.approx(lab[0], abs=0.01)
    assert found["colour_green_red_50"] == pytest.approx(lab[1], abs=0.01)
    assert found["colour_blue_yellow_95"] == pytest.approx(lab[2], abs=0.01)
    assert found["colour_lightness_spread"] == pytest.approx(0, abs=0.01)
    assert all(np.isfinite(value) for value in found.values())


def test_features_do_not_tell_a_photo_from_its_mirror_image():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 96, 3), np.uint8)
    rgb = np.asarray(Image.fromarray(rgb).resize((384, 256)))
    there, back = (list(audit.image_features(a).values()) for a in (rgb, rgb[:, ::-1]))
    assert np.allclose(there, back, rtol=0.02, atol=0.02)


def test_features_tell_fine_from_coarse_texture():
    rng = np.random.default_rng(0)
    fine = np.asarray(
        Image.fromarray(rng.integers(80, 200, (64, 64, 3), np.uint8)).resize((512, 512))
    )
    coarse = np.asarray(
        Image.fromarray(rng.integers(80, 200, (8, 8, 3), np.uint8)).resize((512, 512))
    )
    a, b = audit.image_features(fine), audit.image_features(coarse)
    assert a["texture_octave0_spread"] > 2 * b["texture_octave0_spread"]
    assert a["texture_correlation_1"] < b["texture_correlation_1"]


def test_features_are_kept_and_a_changed_photo_is_described_anew(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        rows.append({"image_id": name, "path": str(path)})
    images = pd.DataFrame(rows)
    first = audit.read_features(images, tmp_path / "run")
    file = tmp_path / "run" / "features.csv"
    kept = pd.read_csv(file)
    kept["colour_eosin_mean"] = 12345.0  # to be told from what would be computed
    kept.to_csv(file, index=False)
    assert (audit.read_features(images, tmp_path / "run")["colour_eosin_mean"] == 12345).all()
    Image.fromarray(rng.integers(0, 256, (80, 64, 3), np.uint8)).save(rows[1]["path"])
    again = audit.read_features(images[::-1], tmp_path / "run")
    assert list(again.index) == ["b", "a"]
    assert again.loc["a", "colour_eosin_mean"] == 12345
    assert again.loc["b", "colour_eosin_mean"] != 12345
    assert list(again.columns) == list(first.columns)


def test_kept_features_are_exactly_those_computed(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    images = pd.DataFrame({"image_id": ["a"], "path": [str(tmp_path / "a.png")]})
    first = audit.read_features(images, tmp_path / "run")
    pd.testing.assert_frame_equal(
        first, audit.read_features(images, tmp_path / "run"), check_exact=True
    )


# Splits


def test_a_leaky_split_has_the_sizes_of_the_safe_one_in_every_class():
    _, table = made_up()
    table.loc[::7, "patient"] = ""
    safe = folds.make_folds(table, 3, seed=0, unknown="train")
    leaky = audit.leaky_folds(safe, seed=0)
    sizes = [split.groupby(["label", "fold"]).size().to_dict() for split in (safe, leaky)]
    assert sizes[0] == sizes[1]
    always = safe["fold"] == -1
    assert always.any()
    assert (leaky["fold"][always] == -1).all()
    assert len(folds.leaking_images(safe)) == 0
    assert len(folds.leaking_images(leaky)) > 0.9 * (~always).sum()


def test_every_known_image_is_held_out_once_and_no_unknown_one_is():
    features, table = made_up(patients=9, images=4)
    table.loc[::5, "patient"] = ""
    answers = audit.score_twice(features, table, k=3, seeds=2, trees=5)
    known = sorted(table["image_id"][table["patient"] != ""])
    for _, draw in answers.groupby(["split", "seed"]):
        assert sorted(draw["image_id"]) == known
    assert np.allclose(answers[list(PROB_COLUMNS)].sum(axis=1), 1)


def test_a_model_that_knows_patients_only_is_unmasked():
    features, table = made_up(patients=16, images=8, own=1.0)
    result = audit.measure_gap(audit.score_twice(features, table, k=4, seeds=1, trees=30))
    assert result["leaky"]["value"] > 0.95
    assert result["safe"]["value"] < 0.5
    assert result["gap"]["low"] > 0.3


def test_a_model_that_knows_classes_only_shows_no_gap():
    features, table = made_up(patients=16, images=8, true=2.0)
    result = audit.measure_gap(audit.score_twice(features, table, k=4, seeds=1, trees=30))
    assert result["safe"]["value"] > 0.95
    assert abs(result["gap"]["value"]) < 0.03


def test_the_same_call_gives_the_same_answers():
    features, table = made_up(patients=9, images=4, own=0.3)
    first, again = (audit.score_twice(features, table, 3, 1, 10) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_a_class_that_was_not_trained_on_has_probability_zero():
    features, table = made_up(patients=8, images=2)
    split = table.assign(fold=[0 if label == "Invasive" else 1 for label in table["label"]])
    answers = audit.cross_validate(features, split, trees=5, seed=0)
    held = answers[answers["fold"] == 0]
    assert (held["label"] == 3).all()
    assert (held["prob_invasive"] == 0).all()


# Figures


def answers(split, images, patients, labels, predicted, seed=0):
    return pd.DataFrame(
        {
            "image_id": images, "patient": patients, "label": labels, "predicted": predicted,
            "split": split, "seed": seed,
        }
    )  # fmt: skip


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
    assert result["gap"]["low"] == pytest.approx(0.25)
    assert result["gap"]["high"] == pytest.approx(0.25)
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


def test_audit_of_a_data_set_scores_known_images_and_the_hidden_test(small, tmp_path, capsys):
    argv = [
        "--data-dir", small, "--patients", small / "patients.csv", "--run-dir", tmp_path,
        "--seeds", 2, "--folds", 2, "--trees", 20, "--test-truth", small / "truth" / "part_a.csv",
    ]  # fmt: skip
    code, result, text = run(capsys, *argv)
    known = pd.read_csv(small / "patients.csv").dropna()
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


def test_audit_leaves_fold_tables_for_runs_of_ones_own(small, tmp_path, capsys):
    patients = small / "patients.csv"
    run(
        capsys, "--data-dir", small, "--patients", patients, "--run-dir", tmp_path,
        "--seeds", 1, "--folds", 2, "--trees", 5,
    )  # fmt: skip
    safe, leaky = (folds.read_folds(tmp_path / f"folds_{name}.csv") for name in ("safe", "leaky"))
    table = pd.read_csv(patients, keep_default_na=False)
    assert len(safe) == len(leaky) == 32
    folds.check_folds(safe, table)
    folds.check_folds(leaky)  # training is not to refuse it ...
    assert len(folds.leaking_images(leaky, table)) > 0  # ... though it does leak


def test_audit_with_unknown_images_trains_on_them_but_does_not_score_them(small, tmp_path, capsys):
    argv = [
        "--data-dir", small, "--patients", small / "patients.csv", "--run-dir", tmp_path,
        "--seeds", 1, "--folds", 2, "--trees", 20,
    ]  # fmt: skip
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


def test_an_audit_without_known_patients_is_refused_before_the_work(small, tmp_path):
    table = tmp_path / "none.csv"
    table.write_text("image_id,patient\nx001,P1\n")
    argv = ["audit", "--data-dir", str(small), "--patients", str(table), "--run-dir", str(tmp_path)]
    with pytest.raises(InputError, match="knows none of the 32 images"):
        folds.main(argv)
    assert not (tmp_path / "features.csv").exists()


def test_a_truth_that_lacks_a_test_photo_is_refused_before_the_work(small, tmp_path):
    table = tmp_path / "truth.csv"
    table.write_text("image_id,label\ntest0,Normal\n")
    argv = ["--data-dir", str(small), "--patients", f"{small}/patients.csv"]
    with pytest.raises(InputError, match="without 7 of 8"):
        folds.main(["audit", *argv, "--test-truth", str(table), "--run-dir", str(tmp_path)])
    assert not (tmp_path / "features.csv").exists()


def test_more_folds_than_patients_are_refused_before_the_work(small, tmp_path):
    argv = ["--data-dir", str(small), "--patients", f"{small}/patients.csv", "--folds", "7"]
    with pytest.raises(InputError, match="6 patients, --folds=7"):
        folds.main(["audit", *argv, "--run-dir", str(tmp_path)])
    assert not (tmp_path / "features.csv").exists()


@pytest.mark.parametrize("option", [("--folds", "1"), ("--seeds", "0"), ("--trees", "0")])
def test_numbers_out_of_range_are_refused(small, tmp_path, option):
    argv = ["--data-dir", str(small), "--patients", f"{small}/patients.csv"]
    with pytest.raises(InputError, match=option[0]):
        folds.main(["audit", *argv, *option, "--run-dir", str(tmp_path)])


def test_as_a_program_an_input_error_is_its_message_and_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bach.folds", "audit", "--data-dir", str(tmp_path / "no")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("InputError: An audit needs to know the patients.")
    assert "Traceback" not in done.stderr


# Committed tables


def test_the_eva_split_is_the_published_one():
    table = folds.read_folds(COMMITTED / "eva.csv")
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
    table = folds.read_folds(COMMITTED / "eva.csv")
    patients = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    assert len(folds.leaking_images(table, patients)) == 0
    assert (table["patient"][table["fold"] == 0] != "").all()


# Assumed groups


def test_groups_are_counted_as_worked_out_by_hand():
    patients = ["p", "p", "p", "q", "q", "r"]
    groups = [1, 1, 2, 2, 3, 3]
    # one patient: 3 + 1 pairs, of which the first two images are found; p with q and
    # q with r are merged, of 11 pairs of two patients
    assert audit.measure_groups(groups, patients) == {
        "same": 4, "found": 1, "different": 11, "merged": 2, "groups": 3, "largest": 2,
    }  # fmt: skip


def test_file_numbers_are_near_only_within_a_series():
    gaps = audit.number_gaps(pd.DataFrame({"image_id": ["b009", "B010.tif", "is010", "b001", "x"]}))
    assert gaps[0, 1] == 1
    assert gaps[1, 3] == 9
    assert np.isinf(gaps[1, 2])
    assert np.isinf(gaps[:, 4]).all()
    assert np.isinf(np.diagonal(gaps)).all()


def test_distances_are_of_colours_only_and_in_standard_deviations():
    features = pd.DataFrame(
        {"colour_a": [0.0, 2.0], "colour_same": [5.0, 5.0], "texture_b": [0.0, 9.0]}
    )
    # 2 is two standard deviations of (0, 2); the other colour does not differ
    assert audit.likeness_distances(features)[0, 1] == pytest.approx(np.sqrt(4 / 2))


def test_links_need_a_near_number_and_a_like_colour():
    gaps = np.array([[np.inf, 1, 2], [1, np.inf, 1], [2, 1, np.inf]])
    distances = np.array([[0, 0.5, 0.5], [0.5, 0, 1.5], [0.5, 1.5, 0]])
    links = audit.link_images(gaps, distances, reach=1, likeness=0.9)
    assert links.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert audit.link_images(gaps, distances, 2, 0.9)[0, 2]
    assert audit.group_by_links(links).tolist() == [0, 0, 1]


def assume(patients, pairs, near=()):
    table = images_of(patients)
    links = np.zeros((len(table), len(table)), bool)
    distances = np.full(links.shape, 0.5)
    for i, j in [*pairs, *near]:
        links[i, j] = links[j, i] = True
    for i, j in near:
        distances[i, j] = distances[j, i] = 0.1
    return audit.assume_patients(table, links, distances)


def images_of(patients):
    return pd.DataFrame({"image_id": [f"i{n}" for n in range(len(patients))], "patient": patients})


def test_linked_images_of_unknown_patients_are_one_assumed_patient():
    table = assume(["", "", "", "", "P1"], [(0, 2), (2, 3)])
    assert table["patient"].tolist() == ["G001", "G002", "G001", "G001", "P1"]
    assert table["assumed"].tolist() == [1, 1, 1, 1, 0]


def test_assumed_images_go_to_the_nearest_known_patient_and_two_of_them_never_merge():
    table = assume(["P1", "", "", "P2", ""], [(0, 1), (1, 2), (0, 3)], near=[(2, 3)])
    assert table["patient"].tolist() == ["P1", "P2", "P2", "P2", "G001"]
    assert table["assumed"].tolist() == [0, 1, 1, 0, 1]


def test_shuffled_groups_keep_their_sizes_within_each_class():
    groups, labels = np.repeat(np.arange(20), 5), np.tile([0, 1, 1, 2, 2], 20)
    dealt = audit.shuffle_groups(groups, labels, seed=0)
    assert (dealt != groups).any()
    for label in range(3):
        assert sorted(dealt[labels == label]) == sorted(groups[labels == label])


def test_folds_by_true_groups_do_not_leak_and_folds_by_none_do():
    features, table = made_up(patients=12, images=6, own=1.0)
    true = pd.factorize(table["patient"])[0]
    safe = audit.accuracy_by_groups(features, table, true, k=3, seeds=1, trees=30)
    leaky = audit.accuracy_by_groups(features, table, np.arange(len(table)), 3, 1, 30)
    assert safe[1] == 0
    assert leaky[1] > 60
    assert leaky[0] > safe[0] + 0.3


def test_overlaps_are_found_turned_and_copied_and_strangers_are_not(tmp_path):
    rng = np.random.default_rng(0)
    scene = np.asarray(
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).resize((1920, 1440))
    )
    other = np.asarray(
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((1280, 960))
    )
    photos = [scene[:960, :1280], scene[300:1260, 400:1680], np.rot90(scene[:960, :1280]), other]
    paths = []
    for number, pixels in enumerate(photos):
        paths.append(tmp_path / f"{number}.tif")
        Image.fromarray(np.ascontiguousarray(pixels)).save(paths[-1])
    found = audit.find_overlaps(paths)
    assert found[0].tolist() == [False, True, True, False]
    assert (found == found.T).all()
    assert not found[3].any()


def test_a_blank_photo_overlaps_nothing(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(np.full((96, 128, 3), 240, np.uint8)).save(path)
    assert not audit.find_overlaps(paths).any()


def test_assume_writes_a_fold_table_of_all_images_and_keeps_known_patients(small, tmp_path, capsys):
    out = tmp_path / "all.csv"
    argv = [
        "assume", "--data-dir", small, "--patients", small / "patients.csv", "--run-dir", tmp_path,
        "--folds", 2, "--seeds", 1, "--trees", 5, "--out", out,
    ]  # fmt: skip
    assert folds.main(list(map(str, argv))) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    table, read = pd.read_csv(out), folds.read_folds(out)
    stated = pd.read_csv(small / "patients.csv", keep_default_na=False)
    known = stated[stated["patient"] != ""].set_index("image_id")["patient"]
    assert list(table.columns) == ["image_id", "label", "patient", "fold", "assumed"]
    assert sorted(set(read["fold"])) == [0, 1]
    folds.check_folds(read, stated)
    folds.check_folds(read)
    assert table.set_index("image_id")["patient"][known.index].equals(known)
    assert table["assumed"].sum() == result["unknown"] == 32 - len(known)
    pairs = result["pairs"]
    assert pairs["same"] + pairs["different"] == len(known) * (len(known) - 1) // 2
    assert "| likeness alone | 0.7 |" in text
    with pytest.raises(InputError, match="never overwritten"):
        folds.main(list(map(str, argv)))


def test_the_committed_assumed_folds_keep_known_patients_and_all_groups_whole():
    table = pd.read_csv(COMMITTED / "part_a_all.csv", keep_default_na=False)
    stated = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    assert list(table["image_id"]) == list(stated["image_id"])
    assert list(table["label"]) == list(stated["label"])
    known = stated["patient"] != ""
    assert ((table["assumed"] == 0) == known).all()
    assert table["patient"][known].equals(stated["patient"][known])
    read = folds.read_folds(COMMITTED / "part_a_all.csv")
    folds.check_folds(read)
    folds.check_folds(read, stated)
    counts = folds.class_counts(read)
    assert counts[list(CLASSES)].to_numpy().min() >= 30
    # These three pairs were seen to show the same tissue.
    group = table.set_index("image_id")["patient"]
    for one, other in (("is009", "is010"), ("is029", "is030"), ("is077", "is078")):
        assert group[one] == group[other]


def test_images_of_a_patient_have_consecutive_numbers_in_each_class():
    # What assumed groups rest on.
    stated = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    stated["number"] = stated["image_id"].str[-3:].astype(int)
    runs = stated[stated["patient"] != ""].groupby(["patient", "label"])["number"]
    assert len(runs) == 41
    assert (runs.max() - runs.min() + 1 == runs.count()).all()
