from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import images, many_images

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.log import log
from bach.honest import splits

COMMITTED = Path(__file__).parent.parent / "folds"


def fold_table(patients, fold):
    return images(patients).assign(fold=list(fold))


# Making


def test_no_patient_is_in_two_folds():
    made = splits.make_folds(many_images(), 5, seed=0)
    assert made.groupby("patient")["fold"].nunique().max() == 1
    assert sorted(made["fold"].unique()) == [0, 1, 2, 3, 4]
    assert len(splits.leaking_images(made)) == 0


def test_the_same_seed_gives_the_same_folds_in_any_row_order():
    table = many_images()
    first = splits.make_folds(table, 3, seed=1)
    again = splits.make_folds(table.sample(frac=1, random_state=0), 3, seed=1).sort_index()
    pd.testing.assert_frame_equal(first, again)


def test_seeds_draw_different_folds():
    table = images([f"p{number}" for number in range(10)])
    drawn = {tuple(splits.make_folds(table, 5, seed)["fold"]) for seed in range(5)}
    assert len(drawn) == 5


def test_an_easy_case_is_balanced_exactly():
    # 12 patients of one image a class, and 12 of two images of one class
    patients = [f"a{n}" for n in range(12) for _ in range(4)]
    labels = list(CLASSES) * 12
    patients += [f"b{n}" for n in range(12) for _ in range(2)]
    labels += [CLASSES[n % 4] for n in range(12) for _ in range(2)]
    made = splits.make_folds(images(patients, labels), 3, seed=0)
    counts = splits.class_counts(made)
    assert (counts[list(CLASSES)] == 6).all().all()
    assert (counts["patients"] == 8).all()


def test_folds_are_even_where_dealing_largest_first_gets_it_wrong():
    # 3+3 against 2+2+2: the greedy 3+2+2 against 3+2 is 7:5
    made = splits.make_folds(images(list("aaabbbccddee")), 2, seed=0)
    assert made["fold"].value_counts().tolist() == [6, 6]


def test_realistic_patients_are_nearly_balanced():
    counts = splits.class_counts(splits.make_folds(many_images(), 3, seed=0))[list(CLASSES)]
    assert (counts.max() - counts.min() <= 2).all()


def test_images_without_a_patient_are_always_trained_on_or_stand_alone():
    table = images("aab  c")
    made = splits.make_folds(table, 3, seed=0)
    assert made["fold"][[3, 4]].tolist() == [-1, -1]
    made = splits.make_folds(table, 5, seed=0, unknown="own")
    assert made["fold"][0] == made["fold"][1]
    assert made["fold"].nunique() == 5
    assert made["patient"].tolist() == ["a", "a", "b", "", "", "c"]


def test_a_patient_called_like_an_image_is_not_mixed_up_with_it():
    table = images(["i1", " ", "i1", "x"])
    made = splits.make_folds(table, 3, seed=0, unknown="own")
    assert made["fold"][0] == made["fold"][2] != made["fold"][1]


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(InputError, match="2 patients, --folds=3; 1 images without"):
        splits.make_folds(images("aab "), 3, seed=0)
    with pytest.raises(InputError, match="0 patients"):
        splits.make_folds(images("  "), 2, seed=0)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="k=1"):
        splits.make_folds(images("ab"), 1, seed=0)
    with pytest.raises(ValueError, match="unknown='drop'"):
        splits.make_folds(images("ab"), 2, seed=0, unknown="drop")


def test_an_image_that_comes_twice_is_refused():
    table = images("ab")
    table["image_id"] = ["N1.tif", "n1"]
    with pytest.raises(InputError, match="more than once: n1"):
        splits.make_folds(table, 2, seed=0)


# Using


def test_the_images_that_leak_are_those_counted_by_hand():
    # a: folds 0 and 1 -> all three; b: fold 2 and always trained on -> the one held
    # out; c: whole; unknown ones are never counted
    table = fold_table("aaabbcc   ", [0, 0, 1, 2, -1, 1, 1, 0, 1, -1])
    assert splits.leaking_images(table)["image_id"].tolist() == ["i0", "i1", "i2", "i3"]
    with pytest.raises(InputError, match=r"4 held-out images of 2 patients .*: a, b"):
        splits.check_folds(table)


def test_the_images_that_leak_are_those_found_by_going_through_all_rounds():
    rng = np.random.default_rng(0)
    table = fold_table(list(rng.choice(list("abcdefgh "), 40)), rng.integers(-1, 3, 40))
    by_hand = set()
    patient = dict(zip(table["image_id"], table["patient"], strict=True))
    for k in range(3):
        held_out = table["fold"] == k
        trained = {patient[image] for image in table["image_id"][~held_out]}
        by_hand |= {
            image
            for image in table["image_id"][held_out]
            if patient[image] and patient[image] in trained
        }
    assert set(splits.leaking_images(table)["image_id"]) == by_hand


def test_a_split_that_keeps_patients_whole_passes():
    splits.check_folds(fold_table("aabb  ", [0, 0, 1, 1, 0, -1]))


def test_another_patient_table_is_gone_by_and_ids_match_loosely():
    table = fold_table("aa  ", [0, 1, 0, 1])
    patients = pd.DataFrame({"image_id": ["x/I2.TIF", "I3"], "patient": ["q", "q"]})
    assert splits.leaking_images(table, patients)["image_id"].tolist() == ["i2", "i3"]


def test_images_get_fold_and_patient_of_a_table_by_their_loose_name():
    photos = pd.DataFrame({"image_id": ["I2.tif", "i0"]})
    found = splits.join_folds(photos, fold_table("abc", [0, 1, 2]), "folds.csv")
    assert found["patient"].tolist() == ["c", "a"]
    assert found["fold"].tolist() == [2, 0]
    with pytest.raises(InputError, match=r"folds\.csv without 1 images: i9"):
        splits.join_folds(pd.DataFrame({"image_id": ["i9"]}), fold_table("a", [0]), "folds.csv")


def test_a_limit_takes_images_of_every_class_and_in_turn_of_every_fold():
    table = images(["p"] * 8, ["Normal"] * 4 + ["Benign"] * 4).assign(fold=[0, 0, 0, 1] * 2)
    kept = splits.take(table, 2)
    assert kept["image_id"].tolist() == ["i0", "i3", "i4", "i7"]
    assert splits.take(table, None) is table


# Files


def test_a_table_is_read_as_it_was_written(tmp_path):
    made = splits.make_folds(many_images(), 3, seed=0)
    made.to_csv(tmp_path / "folds.csv", index=False)
    pd.testing.assert_frame_equal(splits.read_folds(tmp_path / "folds.csv"), made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,label\na,Benign\n", "Add a header line with fold"),
        ("image_id,fold\na,0\nb,x\nc,1.5\nd,-2\n", "3 images: b, c, d"),
        ("image_id,fold\na.tif,0\nA,1\n", "more than once: a"),
        ("", "an empty file"),
    ],
)
def test_tables_that_are_no_folds_are_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        splits.read_folds(tmp_path / "folds.csv")


def test_a_patient_table_is_read_stripped_and_keeps_its_other_columns(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("\ufeffimage_id;patient;age\nN1.tif; P1 ;50\nn2;;\n", encoding="utf-8")
    table = splits.read_patients(path)
    assert table.to_dict("list") == {
        "image_id": ["N1.tif", "n2"],
        "patient": ["P1", ""],
        "age": ["50", ""],
    }
    found = splits.with_patients(pd.DataFrame({"image_id": ["x/n1.png", "n3"]}), table)
    assert found["patient"].tolist() == ["P1", ""]
    path.write_text("image_id,patient\nn1,a\nN1.tif,b\n")
    with pytest.raises(InputError, match="more than once: n1"):
        splits.read_patients(path)


# The committed tables


def test_the_committed_part_a_folds_are_the_images_of_the_patient_table():
    table = splits.read_folds(COMMITTED / "part_a.csv")
    patients = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(table[["image_id", "label", "patient"]], patients)
    assert (table["fold"] == -1).equals(table["patient"] == "")


def test_a_fold_table_without_patients_says_that_nothing_is_guarded(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    for header in ("image_id,fold", "image_id,fold,case_number"):
        caplog.clear()
        (tmp_path / "folds.csv").write_text(header + "\na,0" + ",1" * (header.count(",") - 1))
        splits.read_folds(tmp_path / "folds.csv")
        assert "has no column patient" in caplog.text
    caplog.clear()
    (tmp_path / "folds.csv").write_text("image_id,fold,patient\na,0,P1\n")
    splits.read_folds(tmp_path / "folds.csv")
    assert not caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [("12", "12.0"), ("P07", "p07"), ("P 1", "P1"), ("P-7", "P07"), ("Ｐ１", "p1")],
)
def test_a_patient_on_both_sides_is_found_however_he_is_spelt(one, other):
    folds = pd.DataFrame(
        {"image_id": ["a", "b"], "label": "", "patient": [one, other], "fold": [0, 1]}
    )
    assert len(splits.leaking_images(folds)) == 2


@pytest.mark.parametrize(
    "word", ["", "NA", "n/a", "nan", "-", "--", "?", "unknown", "None", "#N/A", "."]
)
def test_words_for_a_missing_patient_are_no_patient(word):
    folds = pd.DataFrame(
        {"image_id": ["a", "b"], "label": "", "patient": [word, word], "fold": [0, 1]}
    )
    assert splits.leaking_images(folds).empty
    assert not splits.known_patients(folds).any()


def test_patients_that_differ_in_more_than_spelling_stay_two():
    for one, other in (("P1", "P11"), ("14-25197", "1425-197"), ("T1-2", "T12"), ("NA1", "NA2")):
        folds = pd.DataFrame(
            {"image_id": ["a", "b"], "label": "", "patient": [one, other], "fold": [0, 1]}
        )
        assert splits.leaking_images(folds).empty


def test_a_fold_table_of_other_images_of_the_same_names_is_refused():
    images = pd.DataFrame({"image_id": ["n001", "b001"], "label": [0, 1]})
    folds = pd.DataFrame(
        {"image_id": ["N001.tif", "b001"], "label": ["Normal", "Benign"], "patient": "", "fold": 0}
    )
    splits.check_belongs(images, folds, "folds.csv")
    with pytest.raises(InputError, match="another label of 1: b001"):
        splits.check_belongs(images.assign(label=[0, 2]), folds, "folds.csv")
    with pytest.raises(InputError, match=r"1 images that are not there: b001"):
        splits.check_belongs(images.iloc[:1], folds, "folds.csv")
    slides = pd.DataFrame({"image_id": ["n001", "b001"], "label": [-1, -1]})
    splits.check_belongs(slides, folds, "folds.csv")


def test_zeros_before_numbers_do_not_change_the_folds_that_are_drawn():
    names = [f"T{number:02}" for number in range(1, 13)]
    images = {"image_id": [f"i{n}" for n in range(24)], "label": ["Normal", "Benign"] * 12}
    table = pd.DataFrame(images | {"patient": np.repeat(names, 2)})
    made = splits.make_folds(table, 3, 0)
    spelt = table.assign(patient=np.ravel([[name, name.lower()] for name in names]))
    assert splits.make_folds(spelt, 3, 0)["fold"].tolist() == made["fold"].tolist()


def test_a_column_of_patients_is_known_by_its_name_however_it_is_written(tmp_path, caplog):
    path = tmp_path / "folds.csv"
    for name in ("Patient", "patient_id", "Patient ID", "PATIENT-NO"):
        path.write_text(f"image_id,fold,{name}\na,0,p1\nb,1,P01\n")
        with pytest.raises(InputError, match="No patient may have images in the training"):
            splits.check_folds(splits.read_folds(path))
        assert f"its column '{name}' is taken for that of patients" in caplog.text
        assert splits.read_patients(path)["patient"].tolist() == ["p1", "P01"]
    path.write_text("image_id,fold,patient_id,Patient\na,0,p1,p2\n")  # which of them?
    splits.read_folds(path)
    assert "has no column patient" in caplog.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "a header alone"),
        ("a,9999999999999999999999,p\n", "something else for 1 images: a"),
        (",0,p\n", "no name in table rows 1"),
        ('" .tif",0,p\n,1,p\n', "no name in table rows 2"),
    ],
)
def test_folds_of_nothing_and_beyond_all_numbers_are_refused(tmp_path, rows, said):
    (tmp_path / "folds.csv").write_text(f"image_id,fold,patient\n{rows}")
    with pytest.raises(InputError, match=said):
        splits.read_folds(tmp_path / "folds.csv")
