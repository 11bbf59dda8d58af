"""Finding and checking the challenge data."""

import shutil

import numpy as np
import pytest
from PIL import Image

from bach import data
from bach.classes import CLASSES, PREFIXES
from bach.core.errors import InputError
from bach.toy.aperio import write_slide


@pytest.fixture
def photos(tmp_path):
    """A tiny true layout: two photos per class, of the true size."""
    root = tmp_path / "BACH" / data.TRAIN_FOLDER / "Photos"
    rng = np.random.default_rng(0)
    lines = []
    for name, prefix in zip(CLASSES, PREFIXES, strict=True):
        (root / name).mkdir(parents=True)
        for number in (1, 2):
            coarse = rng.integers(0, 255, (24, 32, 3), np.uint8)
            image = Image.fromarray(coarse).resize((2048, 1536), Image.Resampling.NEAREST)
            image.save(root / name / f"{prefix}{number:03d}.png")
            lines.append(f"{prefix}{number:03d}.tif,{name}")
    (root / data.GROUND_TRUTH).write_text("\n".join(lines) + "\n")
    return root


def test_the_data_set_is_found_from_the_folder_above_and_from_itself(photos):
    above, itself = photos.parent.parent, photos.parent
    for folder in (above, itself):
        table = data.find_data(folder)
        assert table["image_id"].tolist() == [f"{p}00{n}" for p in PREFIXES for n in (1, 2)]
        assert table["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert set(table["width"]) == {2048}
        assert set(table["mpp"]) == {0.42}


def test_the_data_set_is_found_under_another_name_and_in_a_folder_of_its_own_name(photos, tmp_path):
    train = photos.parent.rename(tmp_path / "mine")
    assert len(data.find_data(train)) == 8
    (train / "Photos" / "InSitu").rename(train / "Photos" / "in situ carcinoma")
    nested = tmp_path / data.TRAIN_FOLDER / data.TRAIN_FOLDER
    nested.parent.mkdir()
    train.rename(nested)
    assert data.find_data(tmp_path)["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_test_set_is_found_beside_the_training_set_and_alone(photos):
    train, test = photos.parent, photos.parent.parent / data.TEST_FOLDER
    (test / "Photos").mkdir(parents=True)
    (test / "WSI").mkdir()
    shutil.copy(photos / "Normal/n001.png", test / "Photos/test0.png")
    for folder in (train, train.parent):
        assert data.list_images(folder, "A-test")["image_id"].tolist() == ["test0"]
        assert len(data.list_images(folder, "A")) == 8
    assert data.find_data(test)["part"].tolist() == ["A-test"]
    (train.parent / "elsewhere").mkdir()
    alone = test.rename(train.parent / "elsewhere" / data.TEST_FOLDER)
    assert data.find_data(alone)["part"].tolist() == ["A-test"]


def test_a_clean_data_set_has_no_problem(photos, capsys):
    assert data.main([str(photos.parent)]) == 0
    assert "8 files, 0 problems" in capsys.readouterr().out


def test_the_trial_data_are_found_whole_and_without_problem(toy):
    table, problems = data.check_data(toy)
    assert problems == []
    assert table.groupby("part").size().to_dict() == {"A": 24, "A-test": 8, "B": 2, "B-test": 1}


def test_every_kind_of_problem_is_listed(photos, capsys):
    shutil.copy(photos / "Normal/n001.png", photos / "Benign/b009.png")
    darker = np.asarray(Image.open(photos / "InSitu/is001.png")) // 2
    Image.fromarray(darker).save(photos / "InSitu/is007.png")
    (photos / "Invasive/iv001.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(photos / "Invasive/iv005.png")
    Image.new("L", (2048, 1536), 3).save(photos / "Normal/n006.png")
    (photos / "Normal/n002.png").rename(photos / "Normal/b002b.png")
    (photos / data.GROUND_TRUTH).open("a").write("is002.tif,Invasive\nx,Cat\n")
    assert data.main([str(photos.parent)]) == 1
    out = capsys.readouterr().out
    for expected in (
        "exact duplicates",
        "near duplicates (correlation",
        "iv001.png must be a readable picture",
        "iv005.png: 12x10 px instead of 2048x1536",
        "iv005.png: the image is blank",
        "n006.png must be a picture of mode RGB, RGBA, P. Received: a picture in mode L",
        "the name says Benign, the folder Normal",
        "b009.png: not in microscopy_ground_truth.csv",
        "is002.png: microscopy_ground_truth.csv says Invasive, the folder InSitu",
        "no class in 'x,Cat'",
        "lists n002, which is not on disk",
    ):
        assert expected in out, expected


def test_slides_without_scale_and_bad_annotations_are_problems(tmp_path):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    write_slide(folder / "A01.svs", np.zeros((300, 300, 3), np.uint8), mpp=None)
    (folder / "A02.svs").write_bytes(b"nothing")
    write_slide(folder / "A03.svs", np.zeros((300, 300, 3), np.uint8))
    (folder / "A03.xml").write_text("<Annotations><Annotation></Annotations>")
    _, problems = data.check_data(tmp_path)
    assert "A01.svs is readable but must also state its scale" in problems[0]
    assert "A02.svs must be a readable picture" in problems[1]
    assert "A03.xml" in problems[2]
    assert len(problems) == 3


def test_an_empty_or_absent_folder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no folder[\s\S]*bach.toy"):
        data.find_data(tmp_path / "absent")
    (tmp_path / "archive.zip").touch()
    with pytest.raises(InputError, match=r"contains: 'archive.zip'[\s\S]*Unpack"):
        data.find_data(tmp_path)


def test_limit_keeps_so_many_images_per_class(photos):
    kept = data.list_images(photos.parent, "A", limit=1)["image_id"].tolist()
    assert kept == [f"{prefix}001" for prefix in PREFIXES]


def test_files_are_sorted_as_people_count():
    assert sorted(["test10.tif", "test2.tif"], key=data.natural_key) == ["test2.tif", "test10.tif"]
