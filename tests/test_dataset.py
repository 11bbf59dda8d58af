"""The trial data set: laid out as the challenge is, the same for the same seed."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from bach.annotations import label_mask, read_regions
from bach.classes import CLASSES, PREFIXES
from bach.core.errors import InputError
from bach.data import TEST_FOLDER, TRAIN_FOLDER, check_data
from bach.labels import read_class_map
from bach.toy import __main__ as command
from bach.toy.dataset import Recipe, allot_patients, make_data_set

SMALL = {
    "patients": 4,
    "images": 3,
    "test_images": 1,
    "slides": 4,
    "test_slides": 2,
    "photo_size": (256, 192),
    "slide_size": (1024, 768),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data_set(tmp_path_factory.mktemp("toy") / "data", Recipe(**SMALL))


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_with_one_worker_and_with_two(data, tmp_path):
    make_data_set(tmp_path, Recipe(**SMALL), workers=2)
    assert digests(tmp_path) == digests(data)


def test_another_seed_gives_other_pictures(tmp_path):
    options = SMALL | {"images": 1, "slides": 1, "test_slides": 0, "test_images": 0}
    one, two = (
        digests(make_data_set(tmp_path / str(seed), Recipe(seed=seed, **options)))
        for seed in (1, 2)
    )
    assert one.keys() == two.keys()
    pictures = [name for name in one if name.endswith((".tif", ".svs"))]
    assert len(pictures) == 5
    assert all(one[name] != two[name] for name in pictures)


def test_the_layout_is_that_of_the_challenge(data):
    train, test = data / TRAIN_FOLDER, data / TEST_FOLDER
    for name, prefix in zip(CLASSES, PREFIXES, strict=True):
        found = sorted(path.name for path in (train / "Photos" / name).iterdir())
        assert found == [f"{prefix}00{i}.tif" for i in (1, 2, 3)]
    lines = (train / "Photos" / "microscopy_ground_truth.csv").read_text().splitlines()
    assert len(lines) == 12
    assert "b001.tif,Benign" in lines
    wsi = {str(path.relative_to(train / "WSI")) for path in (train / "WSI").rglob("A*")}
    names = [f"A0{i}" for i in (1, 2, 3, 4)]
    assert wsi == {
        file
        for name in names
        for file in (
            f"{name}.svs",
            f"{name}.xml",
            f"gt_thumbnails/{name}.png",
            f"thumbnails/{name}_thumb.png",
        )
    }
    assert sorted(p.name for p in (test / "Photos").iterdir()) == [f"test{i}.tif" for i in range(4)]
    assert sorted(p.name for p in (test / "WSI").iterdir()) == [
        "test_slide_1.svs",
        "test_slide_2.svs",
    ]


def test_our_own_reader_finds_all_of_it_and_faults_only_the_small_size(data):
    table, problems = check_data(data)
    assert table.groupby("part").size().to_dict() == {"A": 12, "A-test": 4, "B": 4, "B-test": 2}
    assert len(problems) == 16
    assert all("256x192 px instead of 2048x1536" in problem for problem in problems)


def test_a_photo_carries_no_timestamp(data):
    with tifffile.TiffFile(data / TRAIN_FOLDER / "Photos/Normal/n001.tif") as file:
        assert file.pages[0].shape == (192, 256, 3)
        names = {tag.name for tag in file.pages[0].tags}
    assert not names & {"DateTime", "Software", "ImageDescription"}


def test_the_truth_of_the_test_set_lies_outside_the_challenge_folders(data):
    assert sorted(p.name for p in data.iterdir()) == [
        TRAIN_FOLDER,
        TEST_FOLDER,
        "patients.csv",
        "truth",
    ]
    assert {p.suffix for p in (data / TEST_FOLDER).rglob("*.*")} == {".tif", ".svs"}
    truth = pd.read_csv(data / "truth/part_a.csv")
    assert sorted(truth.image_id) == [f"test{i}" for i in range(4)]
    assert set(truth.label) == set(CLASSES)
    labels = read_class_map(data / "truth/part_b/test_slide_2.png")
    assert labels.shape == (768 // 16, 1024 // 16)
    assert labels.any()


def test_every_training_photo_has_a_patient_and_patients_have_a_main_class(data):
    table = pd.read_csv(data / "patients.csv")
    photos = {p.stem: p.parent.name for p in (data / TRAIN_FOLDER / "Photos").rglob("*.tif")}
    assert dict(zip(table.image_id, table.label, strict=True)) == photos
    assert table.patient.notna().all()
    # With the default numbers three of a patient's four photos are of one class.
    counts = np.array([np.bincount(patients, minlength=12) for patients in allot_patients(12, 12)])
    assert counts.sum() == 48
    assert (counts.max(axis=0) == 3).all()
    assert (counts.sum(axis=0) == 4).all()


@pytest.mark.parametrize(("patients", "images"), [(1, 5), (2, 3), (5, 1), (30, 100)])
def test_any_number_of_patients_shares_out_all_images(patients, images):
    assert [len(members) for members in allot_patients(patients, images)] == [images] * 4


def test_the_slides_label_maps_are_what_their_annotations_say(data):
    holes, fractions, seen = 0, set(), set()
    for path in sorted((data / TRAIN_FOLDER / "WSI").glob("*.xml")):
        regions = read_regions(path)
        labels = read_class_map(path.parent / "gt_thumbnails" / f"{path.stem}.png")
        assert np.array_equal(labels, label_mask(regions, 1024, 768, 16))
        seen |= set(np.unique(labels).tolist())
        holes += sum(region.is_hole for region in regions)
        fractions |= {bool((region.points % 1).any()) for region in regions}
    assert seen == {0, 1, 2, 3}
    assert holes == 2  # in the first slide and the fourth
    assert fractions == {True, False}


def test_all_three_spellings_and_an_empty_layer_occur(data):
    texts = [
        (data / TRAIN_FOLDER / f"WSI/A0{number}.xml").read_text(encoding="utf-8")
        for number in (1, 2, 3)
    ]
    assert ["<Attribute " in text for text in texts] == [True, False, False]
    assert [text.count('Text=""') == text.count("<Region ") for text in texts] == [
        True,
        False,
        True,
    ]
    assert [text.count("<Annotation ") for text in texts] == [1, 2, 3]


def test_label_noise_flips_the_asked_share(tmp_path):
    options = SMALL | {"slides": 0, "test_slides": 0, "test_images": 0, "photo_size": (64, 48)}
    make_data_set(tmp_path, Recipe(label_noise=0.25, **options))
    filed = pd.read_csv(tmp_path / "patients.csv").merge(
        pd.read_csv(tmp_path / "truth/training.csv"), on="image_id", suffixes=("", "_painted")
    )
    assert len(filed) == 12
    assert (filed.label != filed.label_painted).sum() == 3
    folders = {p.stem: p.parent.name for p in (tmp_path / TRAIN_FOLDER).rglob("*.tif")}
    assert dict(zip(filed.image_id, filed.label, strict=True)) == folders


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match="new or empty folder"):
            command.main([str(path)])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_slides_of_an_odd_size_are_refused(tmp_path):
    for size in ((1000, 768), (240, 256)):
        with pytest.raises(ValueError, match="multiples of 16"):
            make_data_set(tmp_path / "new", Recipe(slide_size=size))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--patients=0", "--label-noise=1.5", "--stain-shift=-1"])
def test_a_number_that_does_not_fit_is_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path / "new"), option])
    assert f"argument {option.split('=')[0]}: must be at" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_last_line_says_where_the_data_lie(tmp_path, capsys):
    options = ["--images=1", "--test-images=0", "--slides=0", "--test-slides=0", "--workers=1"]
    command.main([str(tmp_path / "a"), *options])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a")
    with Image.open(tmp_path / "a" / TRAIN_FOLDER / "Photos/Invasive/iv001.tif") as photo:
        assert photo.size == (2048, 1536)
