import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from bach import validation
from bach.core.errors import InputError
from bach.validation import complete_template, faults_part_a, faults_part_b

IDS = ("test0", "test1", "test10")
HEADER = "case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)"
GOOD_2018 = "test0.tif,Benign\ntest1.tif,InSitu\ntest10.tif,Normal\n"
GOOD_PROBABILITIES = (
    f"{HEADER}\n0,2,0.1,0.7,0.1,0.1\n1,3,0.2,0.2,0.5,0.1\n10,1,0.97,0.01,0.01,0.01\n"
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def png(pixels, mode="L"):
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 90, 90, 90, 180, 180, 180, 255, 255, 255])
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(width, height):
    return np.arange(width * height).reshape(height, width) % 4


def archive(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files:
            target.writestr(name, content)
    return path


# Part A


def test_what_the_two_dialects_look_like_is_valid(tmp_path):
    assert faults_part_a(write(tmp_path / "a.csv", GOOD_2018), "2018", IDS) == []
    path = write(tmp_path / "b.csv", GOOD_PROBABILITIES)
    assert faults_part_a(path, "probabilities", IDS) == []


def test_order_of_rows_and_kind_of_line_ending_are_free(tmp_path):
    rows = GOOD_2018.split()[::-1]
    for ending in ("\n", "\r\n", "\r"):
        path = write(tmp_path / "a.csv", ending.join(rows))
        assert faults_part_a(path, "2018", IDS) == []


def test_all_faults_are_said_at_once_with_their_rows(tmp_path):
    text = "image,label\ntest0.tif,Tumour\ntest1,InSitu\ntest2.tif,Normal,1\ntest1.tif,Benign\n"
    assert faults_part_a(write(tmp_path / "a.csv", text), "2018", IDS) == [
        "row 1: header 'image,label', must be without",
        "row 2: unknown class 'Tumour', must be one of Normal, Benign, InSitu, Invasive",
        "row 3: id 'test1' must be written test1.tif",
        "row 4: extra id 'test2.tif', no such test image",
        "row 4: 3 columns, must be 2",
        "row 5: id test1.tif again, first in row 3",
        "id test10.tif: missing",
    ]


def test_a_row_of_probabilities_can_have_several_faults(tmp_path):
    text = f"{HEADER}\n0,0,-0.1,0.7,0.1,0.1\n1,1,0.2,0.2,0.5,0.1\n10,1,0.97,nan,0.01,0.01\n"
    assert faults_part_a(write(tmp_path / "a.csv", text), "probabilities", IDS) == [
        "row 2: unknown class '0', must be 1, 2, 3 or 4",
        "row 2: P(Normal) is -0.1, negative",
        "row 2: probabilities sum to 0.8, must be 1",
        "row 3: class 1 is not the most probable one, 3 (InSitu)",
        "row 4: P(Benign) is 'nan', not a number",
    ]


def test_either_of_two_equal_probabilities_may_be_the_class(tmp_path):
    for label in (1, 2):
        path = write(tmp_path / "a.csv", f"{HEADER}\n0,{label},0.5,0.5,0,0\n")
        assert faults_part_a(path, "probabilities", ["test0"]) == []


def test_three_decimals_are_enough_for_the_sum(tmp_path):
    path = write(tmp_path / "a.csv", f"{HEADER}\n0,1,0.998,0.001,0.001,0.001\n")
    assert faults_part_a(path, "probabilities", ["test0"]) == []


def test_a_file_in_the_other_dialect_is_one_fault(tmp_path):
    path = write(tmp_path / "a.csv", GOOD_PROBABILITIES)
    (fault,) = faults_part_a(path, "2018", IDS)
    assert "is in the dialect probabilities" in fault
    path = write(tmp_path / "a.csv", GOOD_2018)
    (fault,) = faults_part_a(path, "probabilities", IDS)
    assert "is in the dialect 2018" in fault


def test_an_empty_file_is_one_fault(tmp_path):
    for content in ("", "\n\n"):
        assert faults_part_a(write(tmp_path / "a.csv", content), "2018", IDS) == ["file: empty"]


def test_an_archive_of_the_table_is_as_good_as_the_table(tmp_path):
    path = archive(tmp_path / "a.zip", [("a.csv", GOOD_2018)])
    assert faults_part_a(path, "2018", IDS) == []


def test_an_archive_from_a_mac_is_faulted_for_its_hidden_files_and_folder(tmp_path):
    files = [
        ("answer/", ""),
        ("answer/a.csv", GOOD_2018),
        ("__MACOSX/answer/._a.csv", "x"),
        ("answer/.DS_Store", "x"),
        ("answer/notes.txt", "x"),
    ]
    assert faults_part_a(archive(tmp_path / "a.zip", files), "2018", IDS) == [
        "answer/: folder, the files must lie flat",
        "answer/a.csv: nested in a folder, the files must lie flat",
        "__MACOSX/answer/._a.csv: hidden file, must not be sent",
        "answer/.DS_Store: hidden file, must not be sent",
        "answer/notes.txt: nested in a folder, the files must lie flat",
        "answer/notes.txt: extra file, the archive must hold one CSV",
    ]


def test_what_is_called_an_archive_must_be_one(tmp_path):
    path = write(tmp_path / "a.zip", GOOD_2018)
    assert faults_part_a(path, "2018", IDS) == ["archive: not a zip file, or cut off"]
    path = archive(tmp_path / "a.csv", [("a.csv", GOOD_2018)])
    assert faults_part_a(path, "2018", IDS) == [
        "archive: is a zip file, must end in .zip, not .csv"
    ]


def test_a_damaged_member_of_an_archive_is_a_fault(tmp_path):
    path = archive(tmp_path / "a.zip", [("a.csv", GOOD_2018)])
    write(path, path.read_bytes().replace(b"test1.tif", b"test7.tif"))
    (fault,) = faults_part_a(path, "2018", IDS)
    assert fault.startswith("a.csv: cannot be read (Bad CRC-32")


def test_a_file_that_is_not_there_or_an_unknown_dialect_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not there"):
        faults_part_a(tmp_path / "a.csv", "2018", IDS)
    with pytest.raises(InputError, match="one of 2018, probabilities"):
        faults_part_a(write(tmp_path / "a.csv", GOOD_2018), "2019", IDS)


def test_names_of_images_in_the_dialects():
    assert validation.part_a_name("test7", "2018") == "test7.tif"
    assert validation.part_a_name("test7", "probabilities") == "7"
    assert validation.part_a_name("b007", "probabilities") == "b007"


# Part B


def test_the_default_template_is_complete_and_survives_json():
    assert complete_template() == validation.TEMPLATE
    assert complete_template(json.loads(json.dumps(validation.TEMPLATE))) == validation.TEMPLATE


def test_all_that_is_wrong_with_a_template_is_said_at_once():
    bad = {
        "name": "maps/{slide}.jpg",
        "mode": "RGB",
        "values": [0, 1, 2, 2],
        "downsample": 0.5,
        "size": [3],
        "colour": 1,
    }
    with pytest.raises(InputError) as error:
        complete_template(bad)
    for word in (*bad, "must not both"):
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["map.png", "{slide}{slide}.png", ".{slide}.png", "a/{slide}.png"])
def test_a_template_name_must_be_a_plain_file_name_of_a_slide(name):
    with pytest.raises(InputError, match="name must be a file name"):
        complete_template({"name": name})


def test_a_folder_and_an_archive_of_maps_are_valid(tmp_path):
    slides = {"A": (480, 320), "B": (400, 400)}
    maps = {"A.png": png(pixels(48, 32)), "B.png": png(pixels(25, 25))}
    folder = tmp_path / "maps"
    folder.mkdir()
    for name, content in maps.items():
        write(folder / name, content)
    assert faults_part_b(folder, None, slides) == []
    assert faults_part_b(archive(tmp_path / "m.zip", maps.items()), None, slides) == []


def test_a_single_map_can_be_checked_without_knowing_the_slides(tmp_path):
    path = write(tmp_path / "A.png", png(pixels(48, 32)))
    assert faults_part_b(path) == []
    assert faults_part_b(path, {"name": "pred_{slide}.png"}) == [
        "A.png: extra file, not named as pred_{slide}.png"
    ]


def test_an_empty_folder_is_a_fault_with_and_without_known_slides(tmp_path):
    assert faults_part_b(tmp_path) == ["submission: holds no map"]
    assert faults_part_b(tmp_path, None, {"A": None}) == ["A.png: missing"]


def test_all_faults_of_all_maps_are_said_at_once(tmp_path):
    slides = dict.fromkeys("ABCDEFGH", (480, 320))
    good = pixels(48, 32)
    jpeg = io.BytesIO()
    Image.fromarray(good.astype(np.uint8)).save(jpeg, format="JPEG")
    files = [
        ("A.png", png(good.T)),
        ("B.png", png(good * 85)),
        ("C.png", png(np.zeros((32, 48)))),
        ("D.png", jpeg.getvalue()),
        ("E.png", png(good)[:-30]),
        ("f.png", png(good)),
        ("sub/G.png", png(good, "RGB")),
        ("Z.png", png(good)),
    ]
    faults = faults_part_b(archive(tmp_path / "m.zip", files), None, slides)
    (unreadable,) = [fault for fault in faults if fault.startswith("E.png: unreadable PNG (")]
    assert faults == [
        "sub/G.png: nested in a folder, the files must lie flat",
        "A.png: size is 32x48 px, not in proportion to the slide, 480x320, turned by 90 degrees?",
        "B.png: 1,152 px with the values 85, 170, 255, must be 0, 1, 2, 3",
        "C.png: is Normal everywhere (--allow-uniform lets it pass)",
        "D.png: is a JPEG file, must be PNG",
        unreadable,
        "f.png: must be named F.png",
        "sub/G.png: mode is RGB, must be L",
        "Z.png: extra file, no slide of that name is wanted",
        "H.png: missing",
    ]


def test_a_map_of_one_class_passes_if_that_is_meant(tmp_path):
    path = write(tmp_path / "A.png", png(np.full((32, 48), 3)))
    assert faults_part_b(path) == ["A.png: is Invasive everywhere (--allow-uniform lets it pass)"]
    assert faults_part_b(path, allow_uniform=True) == []


def test_the_template_says_which_size_mode_and_values_are_right(tmp_path):
    slides = {"A": (485, 320)}
    path = write(tmp_path / "A.png", png(pixels(30, 20)))
    assert faults_part_b(path, {"downsample": 16}, slides) == []
    assert faults_part_b(path, {"size": [30, 20]}, slides) == []
    assert faults_part_b(path, {"downsample": 15}, slides) == [
        "A.png: size is 30x20 px, must be 32x21"
    ]
    assert faults_part_b(path, {"size": [31, 20]}, slides) == [
        "A.png: size is 30x20 px, must be 31x20"
    ]
    assert faults_part_b(path, {"mode": "P"}, slides) == ["A.png: mode is L, must be P"]
    (fault,) = faults_part_b(path, {"values": [0, 85, 170, 255]}, slides)
    assert "with the values 1, 2, 3, must be 0, 85, 170, 255" in fault
    write(path, png(pixels(30, 20), "P"))
    assert faults_part_b(path, {"mode": "P"}, slides) == []


def test_a_map_larger_than_what_pillow_takes_for_an_attack_can_be_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert faults_part_b(write(tmp_path / "A.png", png(pixels(48, 32)))) == []
    assert Image.MAX_IMAGE_PIXELS == 100
