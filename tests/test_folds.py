"""The command `python -m bach.folds`."""

import json
from pathlib import Path

import pytest
from made_up import images, many_images

from bach import folds
from bach.core.errors import InputError
from bach.honest.splits import read_folds

COMMITTED = Path(__file__).parent.parent / "folds"


def check(capsys, *argv):
    code = folds.main(["check", *map(str, argv)])
    lines = capsys.readouterr().out.splitlines()
    return code, json.loads(lines[-1]), "\n".join(lines[:-1])


def test_the_check_prints_what_leaks_and_exits_with_1(tmp_path, capsys):
    path, patients = tmp_path / "folds.csv", tmp_path / "patients.csv"
    table = images("aabb  ").assign(fold=[0, 1, 1, 1, 0, -1])
    table[["image_id", "fold"]].to_csv(path, index=False)
    images("aabbc").to_csv(patients, index=False)
    code, result, text = check(capsys, path, "--patients", patients)
    assert code == 1
    assert result == {"images": 6, "known": 5, "patients": 3, "leaking": 2, "warnings": []}
    assert "patient a stands on both sides; fold 0: i0; fold 1: i1" in text
    # without the table, no patient is known
    code, result, _ = check(capsys, path)
    assert (code, result["known"], result["leaking"]) == (0, 0, 0)
    assert result["warnings"] == ["no patient is known: nothing was checked"]


@pytest.mark.parametrize("word", ["NA", "nan", "unknown", "-", "?", "None", "not known"])
def test_a_word_for_unknown_gives_the_folds_of_an_empty_cell(tmp_path, word):
    made = []
    for name in (word, ""):
        table = many_images(size=60, patients=12)
        table.loc[::2, "patient"] = name
        table.to_csv(tmp_path / "images.csv", index=False)
        out = tmp_path / f"folds_{len(made)}.csv"
        words = ["--images", str(tmp_path / "images.csv"), "--part", "a", "--out", str(out)]
        folds.main(["make", *words])
        made.append(out.read_text())
    assert made[0] == made[1]
    assert (read_folds(out)["fold"] == -1).sum() == 30


def test_one_patient_of_two_spellings_is_one_and_is_named_by_both(tmp_path, capsys):
    table = images(["12", "12.0", "P07", "p 7"]).assign(fold=[0, 1, 0, 1])
    table.to_csv(tmp_path / "folds.csv", index=False)
    code, result, text = check(capsys, tmp_path / "folds.csv")
    assert (code, result["patients"], result["leaking"]) == (1, 2, 4)
    assert "patient 12, 12.0 stands on both sides; fold 0: i0; fold 1: i1" in text
    assert "patient P07, p 7 stands on both sides; fold 0: i2; fold 1: i3" in text


def test_a_class_that_a_fold_lacks_is_said_in_the_log_and_in_the_json(tmp_path, capsys, caplog):
    patients = [f"p{number}" for number in range(8)]
    table = images(patients, ["Normal", "Benign"] * 3 + ["InSitu", "Invasive"])
    table.to_csv(tmp_path / "images.csv", index=False)
    out = tmp_path / "folds.csv"
    words = ["make", "--images", tmp_path / "images.csv", "--part", "a", "--folds", "2"]
    folds.main([*map(str, words), "--out", str(out)])
    capsys.readouterr()
    _, result, text = check(capsys, out)
    fold = read_folds(out).set_index("label")["fold"]
    for name in ("InSitu", "Invasive"):
        lines = [
            f"{name}: no images to hold out in fold {1 - fold[name]}",
            f"{name}: no images to train on in fold {fold[name]}",
        ]
        for line in lines:
            assert line in result["warnings"]
            assert f"warning: {line}" in text
            assert line in caplog.text


def test_a_word_for_unknown_that_nobody_knows_is_noticed_by_its_many_images(tmp_path, capsys):
    patients = ["fehlt"] * 20 + [f"p{number}" for number in range(20)]
    images(patients).assign(fold=[-1] * 20 + [0, 1] * 10).to_csv(tmp_path / "f.csv", index=False)
    _, result, _ = check(capsys, tmp_path / "f.csv")
    assert any("patient fehlt has 20 of 40 images" in line for line in result["warnings"])


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
    made = read_folds(out)
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


def test_assume_says_where_it_went():
    with pytest.raises(InputError, match=r"benchmarks/assume_patients\.py"):
        folds.main(["assume", "--data-dir", "x"])


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
    assert read_folds(out)["fold"].value_counts().tolist() == [2] * 5


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    table, damaged = tmp_path / "images.csv", tmp_path / "damaged.csv"
    many_images().to_csv(table, index=False)
    damaged.write_bytes(b"\xff\xfe")
    argv = ["make", "--images", str(table), "--part", "a", "--out"]
    for out, said in (
        (tmp_path, "but is there"),
        (damaged, "other folds"),
        (table / "x", "folder"),
    ):
        with pytest.raises(InputError, match=said):
            folds.main([*argv, str(out)])
    assert damaged.read_bytes() == b"\xff\xfe"
