"""Assumed patients: links, groups, what they are worth, and the committed table."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import made_up
from PIL import Image

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.honest import splits
from benchmarks import assume_patients

COMMITTED = Path(__file__).parent.parent / "folds"


def test_groups_are_counted_as_worked_out_by_hand():
    patients = ["p", "p", "p", "q", "q", "r"]
    groups = [1, 1, 2, 2, 3, 3]
    # one patient: 3 + 1 pairs, of which the first two images are found; p with q and
    # q with r are merged, of 11 pairs of two patients
    found = assume_patients.measure_groups(groups, patients)
    expected = {"same": 4, "found": 1, "different": 11, "merged": 2, "groups": 3, "largest": 2}
    assert found == expected


def test_file_numbers_are_near_only_within_a_series():
    gaps = assume_patients.number_gaps(
        pd.DataFrame({"image_id": ["b009", "B010.tif", "is010", "b001", "x"]})
    )
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
    assert assume_patients.likeness_distances(features)[0, 1] == pytest.approx(np.sqrt(4 / 2))


def test_links_need_a_near_number_and_a_like_colour():
    gaps = np.array([[np.inf, 1, 2], [1, np.inf, 1], [2, 1, np.inf]])
    distances = np.array([[0, 0.5, 0.5], [0.5, 0, 1.5], [0.5, 1.5, 0]])
    links = assume_patients.link_images(gaps, distances, reach=1, likeness=0.9)
    assert links.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert assume_patients.link_images(gaps, distances, 2, 0.9)[0, 2]
    assert assume_patients.group_by_links(links).tolist() == [0, 0, 1]


def assume(patients, pairs, near=()):
    table = images_of(patients)
    links = np.zeros((len(table), len(table)), bool)
    distances = np.full(links.shape, 0.5)
    for i, j in [*pairs, *near]:
        links[i, j] = links[j, i] = True
    for i, j in near:
        distances[i, j] = distances[j, i] = 0.1
    return assume_patients.assume_patients(table, links, distances)


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


def test_folds_by_true_groups_do_not_leak_and_folds_by_none_do():
    features, table = made_up(patients=12, images=6, own=1.0)
    true = pd.factorize(table["patient"])[0]
    safe = assume_patients.accuracy_by_groups(features, table, true, k=3, seeds=1, trees=30)
    leaky = assume_patients.accuracy_by_groups(features, table, np.arange(len(table)), 3, 1, 30)
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
    found = assume_patients.find_overlaps(paths)
    assert found[0].tolist() == [False, True, True, False]
    assert (found == found.T).all()
    assert not found[3].any()


def test_a_blank_photo_overlaps_nothing(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(np.full((96, 128, 3), 240, np.uint8)).save(path)
    assert not assume_patients.find_overlaps(paths).any()


def test_a_fold_table_of_all_images_is_written_that_keeps_known_patients(photos, tmp_path, capsys):
    out = tmp_path / "all.csv"
    argv = ["--data-dir", photos, "--patients", photos / "patients.csv", "--run-dir", tmp_path]
    argv += ["--folds", 2, "--seeds", 1, "--trees", 5, "--out", out]
    assert assume_patients.main(list(map(str, argv))) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    table, read = pd.read_csv(out), splits.read_folds(out)
    stated = pd.read_csv(photos / "patients.csv", keep_default_na=False)
    known = stated[stated["patient"] != ""].set_index("image_id")["patient"]
    assert list(table.columns) == ["image_id", "label", "patient", "fold", "assumed"]
    assert sorted(set(read["fold"])) == [0, 1]
    splits.check_folds(read, stated)
    splits.check_folds(read)
    assert table.set_index("image_id")["patient"][known.index].equals(known)
    assert table["assumed"].sum() == result["unknown"] == 32 - len(known)
    pairs = result["pairs"]
    assert pairs["same"] + pairs["different"] == len(known) * (len(known) - 1) // 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["likeness alone", "0.7"] in [row[:2] for row in rows]
    assert [r[0] for r in rows if r[0] in result["accuracy_by"]][:2] == [
        "patients",
        "assumed groups",
    ]
    with pytest.raises(InputError, match="never overwritten"):
        assume_patients.main(list(map(str, argv)))


def test_it_runs_as_the_program_that_its_help_names():
    words = [sys.executable, "benchmarks/assume_patients.py", "--help"]
    done = subprocess.run(words, cwd=COMMITTED.parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert "python benchmarks/assume_patients.py" in done.stdout


def test_the_committed_assumed_folds_keep_known_patients_and_all_groups_whole():
    table = pd.read_csv(COMMITTED / "part_a_all.csv", keep_default_na=False)
    stated = pd.read_csv(COMMITTED / "patients.csv", keep_default_na=False)
    assert list(table["image_id"]) == list(stated["image_id"])
    assert list(table["label"]) == list(stated["label"])
    known = stated["patient"] != ""
    assert ((table["assumed"] == 0) == known).all()
    assert table["patient"][known].equals(stated["patient"][known])
    read = splits.read_folds(COMMITTED / "part_a_all.csv")
    splits.check_folds(read)
    splits.check_folds(read, stated)
    counts = splits.class_counts(read)
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
