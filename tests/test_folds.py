import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bach import folds
from bach.classes import CLASSES
from bach.core.errors import InputError

COMMITTED = Path(__file__).parent.parent / "folds"


def images(patients, labels=None):
    """A table of images 0, 1, ...; a space is an unknown patient."""
    return pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(len(patients))],
            "label": labels or ["Benign"] * len(patients),
            "patient": ["" if patient == " " else patient for patient in patients],
        }
    )


def fold_table(patients, fold):
    return images(patients).assign(fold=list(fold))


def many_images(seed=0, size=300, patients=60):
    rng = np.random.default_rng(seed)
    return images(
        [f"p{number}" for number in rng.integers(0, patients, size)],
        [CLASSES[label] for label in rng.integers(0, 4, size)],
    )


def check(capsys, *argv):
    code = folds.main(["check", *map(str, argv)])
    lines = capsys.readouterr().out.splitlines()
    return code, json.loads(lines[-1]), "\n".join(lines[:-1])


# Making


def test_no_patient_is_in_two_folds():
    made = folds.make_folds(many_images(), 5, seed=0)
    assert made.groupby("patient")["fold"].nunique().max() == 1
    assert sorted(made["fold"].unique()) == [0, 1, 2, 3, 4]
    assert len(folds.leaking_images(made)) == 0


def test_the_same_seed_gives_the_same_folds_in_any_row_order():
    table = many_images()
    first = folds.make_folds(table, 3, seed=1)
    again = folds.make_folds(table.sample(frac=1, random_state=0), 3, seed=1).sort_index()
    pd.testing.assert_frame_equal(first, again)


def test_seeds_draw_different_folds():
    table = images([f"p{number}" for number in range(10)])
    drawn = {tuple(folds.make_folds(table, 5, seed)["fold"]) for seed in range(5)}
    assert len(drawn) == 5


def test_an_easy_case_is_balanced_exactly():
    # 12 patients of one image a class, and 12 of two images of one class
    patients = [f"a{n}" for n in range(12) for _ in range(4)]
    labels = list(CLASSES) * 12
    patients += [f"b{n}" for n in range(12) for _ in range(2)]
    labels += [CLASSES[n % 4] for n in range(12) for _ in range(2)]
    made = folds.make_folds(images(patients, labels), 3, seed=0)
    counts = folds.class_counts(made)
    assert (counts[list(CLASSES)] == 6).all().all()
    assert (counts["patients"] == 8).all()


def test_folds_are_even_where_dealing_largest_first_gets_it_wrong():
    # 3+3 against 2+2+2: the greedy 3+2+2 against 3+2 is 7:5
    made = folds.make_folds(images(list("aaabbbccddee")), 2, seed=0)
    assert made["fold"].value_counts().tolist() == [6, 6]


def test_realistic_patients_are_nearly_balanced():
    counts = folds.class_counts(folds.make_folds(many_images(), 3, seed=0))[list(CLASSES)]
    assert (counts.max() - counts.min() <= 2).all()


def test_images_without_a_patient_are_always_trained_on_or_stand_alone():
    table = images("aab  c")
    made = folds.make_folds(table, 3, seed=0)
    assert made["fold"][[3, 4]].tolist() == [-1, -1]
    made = folds.make_folds(table, 5, seed=0, unknown="own")
    assert made["fold"][0] == made["fold"][1]
    assert made["fold"].nunique() == 5
    assert made["patient"].tolist() == ["a", "a", "b", "", "", "c"]


def test_a_patient_called_like_an_image_is_not_mixed_up_with_it():
    table = images(["i1", " ", "i1", "x"])
    made = folds.make_folds(table, 3, seed=0, unknown="own")
    assert made["fold"][0] == made["fold"][2] != made["fold"][1]


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(InputError, match="2 patients, --folds=3; 1 images without"):
        folds.make_folds(images("aab "), 3, seed=0)
    with pytest.raises(InputError, match="0 patients"):
        folds.make_folds(images("  "), 2, seed=0)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="k=1"):
        folds.make_folds(images("ab"), 1, seed=0)
    with pytest.raises(ValueError, match="unknown='drop'"):
        folds.make_folds(images("ab"), 2, seed=0, unknown="drop")


def test_an_image_that_comes_twice_is_refused():
    table = images("ab")
    table["image_id"] = ["N1.tif", "n1"]
    with pytest.raises(InputError, match="more than once: n1"):
        folds.make_folds(table, 2, seed=0)


# Using and auditing


def test_a_split_holds_out_one_fold_and_trains_on_the_rest():
    table = fold_table("abc ", [0, 1, 2, -1])
    assert folds.split(table, 1) == (["i0", "i2", "i3"], ["i1"])
    for k in (3, -1):
        with pytest.raises(InputError, match=f"fold {k}; the table has 0, 1, 2"):
            folds.split(table, k)


def test_the_images_that_leak_are_those_counted_by_hand():
    # a: folds 0 and 1 -> all three; b: fold 2 and always trained on -> the one held
    # out; c: whole; unknown ones are never counted
    table = fold_table("aaabbcc   ", [0, 0, 1, 2, -1, 1, 1, 0, 1, -1])
    assert folds.leaking_images(table)["image_id"].tolist() == ["i0", "i1", "i2", "i3"]
    with pytest.raises(InputError, match=r"4 held-out images of 2 patients .*: a, b"):
        folds.check_folds(table)


def test_the_audit_agrees_with_going_through_all_rounds():
    rng = np.random.default_rng(0)
    table = fold_table(list(rng.choice(list("abcdefgh "), 40)), rng.integers(-1, 3, 40))
    by_hand = set()
    patient = dict(zip(table["image_id"], table["patient"], strict=True))
    for k in range(3):
        train, held_out = folds.split(table, k)
        trained = {patient[image] for image in train}
        by_hand |= {image for image in held_out if patient[image] and patient[image] in trained}
    assert set(folds.leaking_images(table)["image_id"]) == by_hand


def test_a_split_that_keeps_patients_whole_passes():
    folds.check_folds(fold_table("aabb  ", [0, 0, 1, 1, 0, -1]))


def test_another_patient_table_is_gone_by_and_ids_match_loosely():
    table = fold_table("aa  ", [0, 1, 0, 1])
    patients = pd.DataFrame({"image_id": ["x/I2.TIF", "I3"], "patient": ["q", "q"]})
    assert folds.leaking_images(table, patients)["image_id"].tolist() == ["i2", "i3"]


def test_the_check_prints_what_leaks_and_exits_with_1(tmp_path, capsys):
    path, patients = tmp_path / "folds.csv", tmp_path / "patients.csv"
    fold_table("aabb  ", [0, 1, 1, 1, 0, -1])[["image_id", "fold"]].to_csv(path, index=False)
    images("aabbc").to_csv(patients, index=False)
    code, result, text = check(capsys, path, "--patients", patients)
    assert code == 1
    assert result == {"images": 6, "known": 5, "patients": 3, "leaking": 2}
    assert "patient a stands on both sides; fold 0: i0; fold 1: i1" in text
    # without the table, no patient is known
    assert check(capsys, path)[:2] == (0, {"images": 6, "known": 0, "patients": 0, "leaking": 0})


# Files


def test_a_table_is_read_as_it_was_written(tmp_path):
    made = folds.make_folds(many_images(), 3, seed=0)
    made.to_csv(tmp_path / "folds.csv", index=False)
    pd.testing.assert_frame_equal(folds.read_folds(tmp_path / "folds.csv"), made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,label\na,Benign\n", "Add a header line with fold"),
        ("image_id,fold\na,0\nb,x\nc,1.5\nd,-2\n", "3 images: b, c, d"),
        ("image_id,fold\na.tif,0\nA,1\n", "more than once: a"),
        ("", "readable CSV"),
    ],
)
def test_tables_that_are_no_folds_are_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        folds.read_folds(tmp_path / "folds.csv")


def photos(folder):
    for label, name in (("Normal", "n002.tif"), ("Normal", "n010.TIF"), ("Benign", "b001.png")):
        (folder / "Photos" / label).mkdir(parents=True, exist_ok=True)
        (folder / "Photos" / label / name).touch()
    (folder / "Photos" / "Normal" / "Thumbs.db").touch()
    (folder / "Photos" / "test0.tif").touch()


def slides(folder):
    (folder / "WSI").mkdir()
    for number in range(1, 11):
        (folder / "WSI" / f"A{number:02d}.svs").touch()
        (folder / "WSI" / f"A{number:02d}.xml").touch()
    (folder / "WSI" / "unlabelled.svs").touch()
    (folder / "WSI" / "A01.png").touch()


def test_folds_are_made_from_a_data_folder_and_a_patient_table(tmp_path, capsys):
    photos(tmp_path)
    patients = tmp_path / "patients.csv"
    patients.write_text("image_id,patient\nN002.tif,p1\nb001,p2\n")
    out = tmp_path / "out" / "folds.csv"
    argv = ["make", "--data-dir", tmp_path, "--part", "a", "--patients", patients]
    assert folds.main([*map(str, argv), "--folds", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    made = folds.read_folds(out)
    assert made["patient"].tolist() == ["p1", "", "p2"]
    assert sorted(made["fold"]) == [-1, 0, 1]
    assert made["fold"][1] == -1


def test_other_folds_are_never_overwritten(tmp_path):
    table, out = tmp_path / "images.csv", tmp_path / "folds.csv"
    many_images().to_csv(table, index=False)
    argv = ["make", "--images", str(table), "--part", "a", "--out", str(out)]
    assert folds.main(argv) == 0
    before = out.read_text()
    assert folds.main(argv) == 0
    with pytest.raises(InputError, match="holds other folds"):
        folds.main([*argv, "--seed", "1"])
    assert out.read_text() == before


def test_one_fold_is_refused(tmp_path):
    with pytest.raises(InputError, match="--folds=1"):
        folds.main(["make", "--images", "x", "--part", "a", "--folds", "1", "--out", "y"])


# The committed files


@pytest.mark.parametrize(("name", "known", "patients"), [("a", 145, 29), ("b", 0, 0)])
def test_the_committed_folds_pass_the_check(name, known, patients, capsys):
    path = COMMITTED / f"part_{name}.csv"
    code, result, _ = check(capsys, path, "--patients", COMMITTED / "patients.csv")
    assert code == 0
    assert result["leaking"] == 0
    assert (result["known"], result["patients"]) == (known, patients)


def test_the_committed_part_a_folds_are_made_by_the_command_in_their_readme(tmp_path):
    out = tmp_path / "part_a.csv"
    argv = ["make", "--images", str(COMMITTED / "patients.csv"), "--part", "a"]
    folds.main([*argv, "--folds", "3", "--seed", "0", "--out", str(out)])
    assert out.read_text() == (COMMITTED / "part_a.csv").read_text()


def test_the_committed_part_b_folds_are_made_by_the_command_in_their_readme(tmp_path):
    slides(tmp_path)
    out = tmp_path / "part_b.csv"
    argv = ["make", "--data-dir", str(tmp_path), "--part", "b"]
    folds.main([*argv, "--folds", "5", "--seed", "0", "--out", str(out)])
    assert out.read_text() == (COMMITTED / "part_b.csv").read_text()
    assert folds.read_folds(out)["fold"].value_counts().tolist() == [2] * 5


def test_the_committed_part_a_folds_are_the_images_of_the_patient_table():
    table = folds.read_folds(COMMITTED / "part_a.csv")
    patients = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(table[["image_id", "label", "patient"]], patients)
    assert (table["fold"] == -1).equals(table["patient"] == "")
