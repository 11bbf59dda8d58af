"""Finding and checking the challenge data."""

import os
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from test_pictures import png_header

from bach import data
from bach.annotations import Region
from bach.classes import CLASSES, PREFIXES
from bach.core.errors import InputError
from bach.toy.aperio import write_annotation_xml, write_slide


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
    whole = np.asarray(Image.open(photos / "Normal/n001.png"))
    cv2.imwrite(str(photos / "Normal/n007.png"), whole.astype(np.uint16) * 16)
    half = whole[::-1].copy()
    half[:1024] = 0
    Image.fromarray(half).save(photos / "Normal/n008.png")
    Image.fromarray(whole[:, ::-1]).convert("RGBA").save(photos / "Normal/n009.png")
    (photos / "Normal/n010.png").write_bytes(png_header(100_000, 100_000))
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
        "n007.png must have 8 bits per channel. Received: 16 bits",
        "n008.png: 67% of it is exactly one colour (0, 0, 0)",
        "n009.png: mode RGBA instead of 8-bit RGB",
        "n010.png must be a whole picture",
        "the name says Benign, the folder Normal",
        "b009.png: not in microscopy_ground_truth.csv",
        "is002.png: microscopy_ground_truth.csv says Invasive, the folder InSitu",
        "no class in 'x,Cat'",
        "lists n002, which is not on disk",
    ):
        assert expected in out, expected


@pytest.mark.parametrize(
    ("encoding", "separator", "name"),
    [
        ("utf-8-sig", ",", "{}.tif"),
        ("utf-8", ";", "{}.tif"),
        ("utf-16", "\t", "{}.tif"),
        ("utf-8", ",", "Photos\\X\\{}.TIF"),
    ],
)
def test_the_ground_truth_is_read_as_spreadsheets_save_it(
    photos, capsys, encoding, separator, name
):
    rows = [row.split(".tif,") for row in (photos / data.GROUND_TRUTH).read_text().split()]
    text = "\r\n".join(name.format(image.upper()) + separator + label for image, label in rows)
    (photos / data.GROUND_TRUTH).write_bytes(text.encode(encoding))
    assert data.main([str(photos.parent)]) == 0, capsys.readouterr().out
    (photos / data.GROUND_TRUTH).write_bytes("n001,Normal\ncaf\u00e9,Benign".encode("latin-1"))
    assert data.main([str(photos.parent)]) == 1
    assert "microscopy_ground_truth.csv must be a readable CSV file" in capsys.readouterr().out


def test_slides_without_scale_and_bad_annotations_are_problems(tmp_path):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    pixels = np.full((300, 300, 3), (242, 240, 243), np.uint8)
    pixels[:200] = (220, 130, 175)
    write_slide(folder / "A01.svs", pixels, mpp=None)
    (folder / "A02.svs").write_bytes(b"nothing")
    write_slide(folder / "A03.svs", pixels)
    (folder / "A03.xml").write_text("<Annotations><Annotation></Annotations>")
    _, problems = data.check_data(tmp_path)
    assert "A01.svs is readable but must also state its scale" in problems[0]
    assert "A02.svs must be a readable picture" in problems[1]
    assert "A03.xml" in problems[2]
    assert len(problems) == 3


@pytest.fixture
def slides(tmp_path):
    """Four slides of 320x320 px, and what writes an annotation beside one."""
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    pixels = np.full((320, 320, 3), (242, 240, 243), np.uint8)
    pixels[:200] = (220, 130, 175)  # tissue on glass, or it could be no slide
    for number in (1, 2, 3, 4):
        write_slide(folder / f"A0{number}.svs", pixels, mpp=0.5)

    def annotate(file, left=0, label=3, name=None, mpp=0.5):
        square = np.array([(left, 0), (left + 160, 0), (left + 160, 160), (left, 160)], float)
        write_annotation_xml(folder / file, [Region(label, square)], mpp, "text")
        if name is not None:
            path = folder / file
            text = path.read_text()
            path.write_text(text.replace('Text="', f'Text="{name}" was="'))

    return folder, annotate


def test_the_sums_of_annotations_are_listed(slides, capsys):
    folder, annotate = slides
    annotate("A01.xml")
    annotate("a02.SVS.XML", label=1, left=80)
    assert data.main([str(folder.parent.parent)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["B", "2", "annotated", "4"]
    assert out[3].split()[:5] == ["slide", "annotation", "regions", "painted", "holes"]
    assert out[4].split()[:5] == ["A01", "A01.xml", "1", "1", "0"]
    assert out[4].split()[-2:] == ["0.007", "0.0%"]
    assert out[5].split()[:2] == ["A02", "a02.SVS.XML"]
    assert data.list_images(folder.parent.parent, "B")["image_id"].tolist() == ["A01", "A02"]


def test_annotations_that_cannot_be_those_of_their_slides_are_problems(slides, capsys):
    folder, annotate = slides
    annotate("A01.xml", left=9000)
    annotate("A02.xml", left=240)
    annotate("A03.xml", mpp=0.25)
    (folder / "A04.xml").write_text("<Annotations/>")
    assert data.main([str(folder.parent.parent)]) == 1
    out = capsys.readouterr().out
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 4
    assert "A01.xml a region must be left" in problems[0]
    assert "A02.xml: beyond the slide: region 1 of layer 1 (50%)" in problems[1]
    assert "0.25 um per px (MicronsPerPixel), and 0.5 of the slide" in problems[2]
    assert "A04.xml must hold a region of a class" in problems[3]


def test_files_that_look_like_annotations_and_are_not_read_are_problems(slides):
    folder, annotate = slides
    annotate("A01.xml")
    annotate("A01.svs.xml")
    annotate("A07.xml")
    (folder.parent / "labels").mkdir()
    (folder / "deeper").mkdir()
    annotate("../labels/A02.xml")
    annotate("../labels/B09.xml")
    annotate("deeper/A03.xml")
    os.mkfifo(folder / "A04.xml")
    _, problems = data.check_data(folder.parent.parent)
    assert [
        any(part in problem for problem in problems)
        for part in (
            "A01.svs.xml, A01.xml",
            "A04.xml must be a readable annotation file",
            "A07.xml: belongs to no slide",
            "WSI/deeper/A03.xml: is not read",
            "labels/A02.xml: is not read",
        )
    ] == [True] * 5
    assert len(problems) == 5
    for number in (1, 2, 3, 4):
        (folder / f"A0{number}.svs").unlink()
    write_slide(
        folder.parent.parent / data.TEST_FOLDER / "WSI/t.svs", np.zeros((16, 16, 3), np.uint8)
    )
    _, problems = data.check_data(folder.parent.parent)
    assert sum("belongs to no slide" in problem for problem in problems) == 4


def test_a_class_map_says_what_names_of_ones_own_mean(slides, tmp_path, capsys):
    folder, annotate = slides
    annotate("A01.xml", name="Tumor")
    where = str(folder.parent.parent)
    assert data.main([where]) == 1
    assert "'Tumor'" in capsys.readouterr().out
    (tmp_path / "classes.csv").write_text("theirs,ours\ntumor,Invasive\n")
    assert data.main([where, "--class-map", str(tmp_path / "classes.csv")]) == 0
    (tmp_path / "classes.csv").write_text("tumor,Cancer\n")
    with pytest.raises(InputError, match="'tumor,Cancer'"):
        data.main([where, "--class-map", str(tmp_path / "classes.csv")])


def test_a_look_before_the_work_warns_of_files_that_nothing_reads(
    slides, tmp_path, caplog, monkeypatch
):
    folder, annotate = slides
    monkeypatch.setattr(data.log, "propagate", True)
    annotate("A01.xml")
    annotate("A9.xml")
    data.check_annotation_files([folder / "A01.svs"])
    assert "A9.xml: belongs to no slide" in caplog.text
    (tmp_path / "classes.csv").write_text("tumor,Cancer\n")
    with pytest.raises(InputError, match="'tumor,Cancer'"):
        data.check_annotation_files([folder / "A01.svs"], tmp_path / "classes.csv")


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


# Classes and folders


def test_a_class_without_photos_is_a_problem_and_is_not_trained_on(photos, capsys):
    deeper = photos / "InSitu/InSitu"
    deeper.mkdir()
    for path in (photos / "InSitu").glob("*.png"):
        path.rename(deeper / path.name)
    assert data.main([str(photos.parent)]) == 1
    out = capsys.readouterr().out
    assert "no photos of InSitu" in out
    assert "InSitu/InSitu: read by nothing; photos must lie right in" in out
    with pytest.raises(InputError, match=r"every class[\s\S]*no photos of InSitu"):
        data.list_images(photos.parent, "A")
    assert len(data.find_data(photos.parent)) == 6


def test_two_folders_of_one_class_are_refused_and_a_folder_of_no_class_is_named(photos, caplog):
    (photos / "Photos of mine").mkdir()
    assert len(data.list_images(photos.parent, "A")) == 8
    assert "Photos of mine: read by nothing; its name is no class" in caplog.text
    (photos / "In Situ").mkdir()
    shutil.copy(photos / "InSitu/is001.png", photos / "In Situ/is003.png")
    with pytest.raises(InputError, match=r"one folder[\s\S]*is of the same class"):
        data.list_images(photos.parent, "A")


def test_photos_beside_the_class_folders_and_files_of_other_endings_are_named(photos):
    shutil.copy(photos / "InSitu/is001.png", photos / "is009.png")
    (photos / "InSitu/is008.bmp").touch()
    (photos / "InSitu/Thumbs.db").touch()
    _, problems = data.check_data(photos.parent)
    assert len(problems) == 2
    assert "1 photos lie beside the class folders" in "".join(problems)
    assert "InSitu: read by nothing: is008.bmp" in "".join(problems)


# Scale


def test_photos_of_another_size_have_no_scale_unless_it_is_stated(photos):
    with Image.open(photos / "Normal/n001.png") as image:
        image.resize((1024, 768)).save(photos / "Normal/n001.png")
        image.transpose(Image.Transpose.ROTATE_90).save(photos / "Normal/n002.png")
    table = data.list_images(photos.parent, "A")
    assert np.isnan(table["mpp"][0])
    assert (table["mpp"][1:] == 0.42).all()
    with pytest.raises(InputError, match=r"must have a stated scale[\s\S]*n001.png, 1024x768"):
        data.photo_sizes(table)
    with pytest.raises(InputError, match=r"at least 1495 px[\s\S]*n001.png, 1024x768[\s\S]*--mpp"):
        data.photo_sizes(table, 1495)
    stated = data.list_images(photos.parent, "A", mpp=0.84)
    assert data.photo_sizes(stated[:1], 1495).tolist() == [[2048, 1536]]
    assert data.photo_sizes(stated[1:2]).tolist() == [[3072, 4096]]
    with pytest.raises(InputError, match=r"at most 100 million px[\s\S]*at 5 um/px"):
        data.photo_sizes(data.list_images(photos.parent, "A", mpp=5))
    with pytest.raises(InputError, match=r"--mpp must lie between"):
        data.list_images(photos.parent, "A", mpp=420)


@pytest.mark.parametrize("mpp", [0.21, 0.3, 0.42, 0.63, 0.84])
def test_a_circle_stays_a_circle_and_has_the_size_that_it_has(tmp_path, mpp):
    rgb = np.full((600, 900, 3), 240, np.uint8)
    cv2.circle(rgb, (450, 300), 200, (90, 60, 130), -1)
    Image.fromarray(rgb).save(tmp_path / "circle.png")
    seen = data.read_photo(tmp_path / "circle.png", mpp)
    assert seen.shape[:2] == tuple(round(side * mpp / 0.42) for side in (600, 900))
    rows, cols = np.nonzero(seen[..., 1] < 150)
    for places in (rows, cols):
        assert np.ptp(places) == pytest.approx(401 * mpp / 0.42, rel=0.01)


def test_a_large_part_of_one_colour_is_a_warning(tmp_path, caplog):
    rgb = np.random.default_rng(0).integers(0, 200, (60, 90, 3), np.uint8)
    rgb[30:] = 0
    Image.fromarray(rgb).save(tmp_path / "cut.png")
    data.read_photo(tmp_path / "cut.png")
    assert "cut.png: 50% of it is exactly one colour (0, 0, 0)" in caplog.text


# Slides


def test_what_looks_like_a_slide_and_is_not_read_is_a_problem(tmp_path, capsys, caplog):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    (folder / "more").mkdir(parents=True)
    pixels = np.full((300, 300, 3), (235, 180, 215), np.uint8)
    for path in (folder / "A01.svs", folder / "more/A02.svs"):
        write_slide(path, pixels)
    square = np.array([(0, 0), (200, 0), (200, 200)], float)
    write_annotation_xml(folder / "A01.xml", [Region(3, square)], 0.467, "text")
    os.mkfifo(folder / "A03.svs")
    (folder / "A04.svs").symlink_to(folder / "gone.svs")
    (folder / "A05.svs.part").touch()
    (folder / "A01.png").touch()  # of a thumbnail nothing is said
    assert data.main([str(tmp_path)]) == 1
    assert "4 problems" in (out := capsys.readouterr().out), out
    lines = ["more: 1 slides are read", "A03.svs: read", "A04.svs: read", "A05.svs.part: read"]
    assert all(line in out for line in lines)
    data.list_images(tmp_path, "B")
    assert all(line in caplog.text for line in lines)


def test_names_that_differ_in_letter_case_alone_are_one_image(photos):
    shutil.copy(photos / "Normal/n001.png", photos / "Normal/N001.tif")
    with pytest.raises(InputError, match=r"Received twice(.|\n)*N001, n001"):
        data.list_images(photos.parent, "A")
    assert any("stands for several files" in line for line in data.check_data(photos.parent)[1])


def test_a_slide_under_two_names_is_noted(tmp_path, capsys):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    pixels = np.full((300, 300, 3), (235, 180, 215), np.uint8)
    pixels[:, :100] = 245
    for name in ("A01", "A02"):
        write_slide(folder / f"{name}.svs", pixels)
    write_slide(folder / "A03.svs", pixels[::-1, ::-1])
    data.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"note: slides that look exactly alike: {folder}/A01.svs and {folder}/A02.svs" in out


def test_names_that_tables_cannot_hold_are_problems_and_refused_before_the_work(tmp_path, capsys):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    pixels = np.full((300, 300, 3), (235, 180, 215), np.uint8)
    square = np.array([(0, 0), (200, 0), (200, 200)], float)

    def add(name):
        write_slide(folder / f"{name}.svs", pixels)
        write_annotation_xml(folder / f"{name}.xml", [Region(3, square)], 0.467, "text")

    for name in (bad := ["A01 ", "A\n02", "A\\03"]) + (good := ["A05 b", "A%06", "\u00e407"]):
        add(name)
    assert data.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("rename it") == len(bad)
    add(os.fsdecode(b"A04\xff"))
    with pytest.raises(InputError, match=r"A01 ' \(a blank(.|\n)*no UTF-8") as caught:
        data.list_images(tmp_path, "B")
    assert not any(name in str(caught.value) for name in good)


def test_slides_that_are_no_h_and_e_are_problems_and_doubtful_ones_are_noted(tmp_path, capsys):
    folder = tmp_path / data.TRAIN_FOLDER / "WSI"
    folder.mkdir(parents=True)
    write_slide(folder / "A01.svs", np.full((300, 300, 3), 9, np.uint8))
    write_slide(folder / "A02.svs", np.full((300, 300, 3), 255, np.uint8))
    assert data.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "A01.svs: the background is dark" in out.split("problem: ")[1]
    assert "note: " in out
    assert "A02.svs: it shows one colour everywhere" in out.split("note: ")[1]
    assert "2 files, 1 problems" in out
