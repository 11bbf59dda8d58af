import dataclasses
import io
import json
import logging
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import slide_record
from PIL import Image

from bach import submission
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core.errors import InputError
from bach.honest.records import write_slide
from bach.labels import read_class_map, read_labels, write_class_map
from bach.submission import (
    HEADER,
    TEST_IDS,
    Template,
    faults_part_a,
    faults_part_b,
    write_part_a,
    write_part_b,
)

SLIDES = {"T01": (4810, 3205), "T2": (3200, 3200), "T10": (1600, 4000)}
IDS = ("test0", "test1", "test10")
GOOD_2018 = "test0.tif,Benign\ntest1.tif,InSitu\ntest10.tif,Normal\n"
# The dialect as it is published, letter by letter.
HEADER_LINE = "case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)"
GOOD_PROBABILITIES = (
    f"{HEADER_LINE}\n0,2,0.1,0.7,0.1,0.1\n1,3,0.2,0.2,0.5,0.1\n10,1,0.97,0.01,0.01,0.01\n"
)


def predictions(ids=TEST_IDS, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([0.5] * 4, len(ids)).astype(np.float32)
    table = pd.DataFrame(probs, columns=list(PROB_COLUMNS))
    table.insert(0, "image_id", list(ids))
    return table.sample(frac=1, random_state=seed)


def class_map(slide, seed=0):
    rng = np.random.default_rng(seed)
    width, height = (round(side / 100) for side in SLIDES[slide])
    return rng.integers(0, 4, (height, width), dtype=np.uint8)


@pytest.fixture
def heatmaps(tmp_path):
    """A heatmap run of three test slides and a training slide."""
    run_dir = tmp_path / "heatmaps"
    for slide, (width, height) in {**SLIDES, "A01": (900, 900)}.items():
        labels = class_map(slide) if slide in SLIDES else np.eye(9, dtype=np.uint8)
        write_class_map(run_dir / "class_maps" / f"{slide}.png", labels)
        part = "B-test" if slide in SLIDES else "B"
        record = slide_record(slide, width=width, height=height, part=part)
        write_slide(run_dir / "slides" / f"{slide}.json", record)
    (run_dir / "metrics.json").write_text("{}")
    return run_dir


def maps_of(run_dir):
    return {slide: run_dir / "class_maps" / f"{slide}.png" for slide in SLIDES}


def run(capsys, *argv):
    code = submission.main([str(word) for word in argv])
    return code, capsys.readouterr().out.splitlines()


def content(folder):
    """Every file under a folder, hidden ones too, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def png(pixels, mode="L"):
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 90, 90, 90, 180, 180, 180, 255, 255, 255])
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(width, height):
    return np.arange(width * height).reshape(height, width) % 4


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def archive(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files:
            target.writestr(name, content)
    return path


# Part A: what is wrong


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
        "row 1: extra id 'image', no such test image",
        "row 1: unknown class 'label', must be one of Normal, Benign, InSitu, Invasive",
        "row 2: unknown class 'Tumour', must be one of Normal, Benign, InSitu, Invasive",
        "row 3: id 'test1' must be written test1.tif",
        "row 4: extra id 'test2.tif', no such test image",
        "row 4: 3 cells, must be 2",
        "row 5: id test1.tif again, first in row 3",
        "id test10.tif: missing",
    ]


def test_a_row_of_probabilities_can_have_several_faults(tmp_path):
    text = f"{HEADER_LINE}\n0,0,-0.1,0.7,0.1,0.1\n1,1,0.2,0.2,0.5,0.1\n10,1,0.97,nan,0.01,0.01\n"
    assert faults_part_a(write(tmp_path / "a.csv", text), "probabilities", IDS) == [
        "row 2: unknown class '0', must be one of 1, 2, 3, 4",
        "row 2: P(Normal) is '-0.1', must be a number 0..1",
        "row 2: probabilities sum to 0.8, must be 1",
        "row 3: class 1 is not the most probable one, 3",
        "row 4: P(Benign) is 'nan', must be a number 0..1",
    ]


def test_either_of_two_equal_probabilities_may_be_the_class(tmp_path):
    for label in (1, 2):
        path = write(tmp_path / "a.csv", f"{HEADER_LINE}\n0,{label},0.5,0.5,0,0\n")
        assert faults_part_a(path, "probabilities", ["test0"]) == []


def test_three_decimals_are_enough_for_the_sum(tmp_path):
    path = write(tmp_path / "a.csv", f"{HEADER_LINE}\n0,1,0.998,0.001,0.001,0.001\n")
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


def test_cells_separated_by_anything_but_commas_are_one_fault(tmp_path):
    for separator in ";\t":
        path = write(tmp_path / "a.csv", GOOD_2018.replace(",", separator))
        fault = "file: no row has 2 cells, separated by commas"
        assert faults_part_a(path, "2018", IDS) == [fault]


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
        "answer/notes.txt: extra file, not a CSV",
    ]


def test_what_is_called_an_archive_must_be_one(tmp_path):
    faults = faults_part_a(write(tmp_path / "a.zip", GOOD_2018), "2018", IDS)
    assert faults[0] == "archive: cannot be read (File is not a zip file)"
    path = archive(tmp_path / "a.csv", [("a.csv", GOOD_2018)])
    assert any("not UTF-8" in fault for fault in faults_part_a(path, "2018", IDS))
    path = write(tmp_path / "a.txt", GOOD_2018)
    assert faults_part_a(path, "2018", IDS)[0] == "a.txt: extra file, not a CSV"


def test_a_damaged_member_of_an_archive_is_a_fault(tmp_path):
    path = archive(tmp_path / "a.zip", [("a.csv", GOOD_2018)])
    write(path, path.read_bytes().replace(b"test1.tif", b"test7.tif"))
    (fault,) = faults_part_a(path, "2018", IDS)
    assert fault.startswith("a.csv: cannot be read (Bad CRC-32")


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.csv", b"0" * (11 * 2**20))
    assert (tmp_path / "a.zip").stat().st_size < 20_000
    (fault,) = faults_part_a(tmp_path / "a.zip", "2018", IDS)
    assert "at most 10,485,760 are read" in fault
    many = archive(tmp_path / "b.zip", [(f"{number}.csv", "") for number in range(10_001)])
    assert faults_part_a(many, "2018", IDS)[0].startswith("archive: 10,001 files")
    (fault,) = faults_part_a(write(tmp_path / "c.csv", "x\n" * 200_000), "2018", IDS)
    assert fault.startswith("file: 200,000 rows")


def test_a_pipe_in_a_folder_is_a_fault_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    assert "a pipe or device" in faults_part_a(tmp_path, "2018", IDS)[0]


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not there"):
        faults_part_a(tmp_path / "a.csv", "2018", IDS)


def test_names_of_images_in_the_dialects():
    assert submission.part_a_name("test7", "2018") == "test7.tif"
    assert submission.part_a_name("test7", "probabilities") == "7"
    assert submission.part_a_name("b007", "probabilities") == "b007"


# Part B: what is wanted, and what is wrong


def test_the_template_that_is_printed_is_the_default_one(tmp_path, capsys):
    assert run(capsys, "template")[0] == 0
    submission.main(["template"])
    path = write(tmp_path / "template.json", capsys.readouterr().out)
    printed = submission.read_template(path)
    assert dataclasses.asdict(printed) == {**dataclasses.asdict(Template()), "values": [0, 1, 2, 3]}
    assert submission.read_template(None) == Template()


def test_all_that_is_wrong_with_a_template_is_said_at_once():
    bad = {"name": "maps/{slide}.jpg", "mode": "RGB", "values": [0, 1, 2, 2], "size": [3]}
    with pytest.raises(InputError) as error:
        Template(**bad, downsample=0.5)
    for word in (*bad, "downsample must be null", "must not both"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "name", ["map.png", "{slide}{slide}.png", ".{slide}.png", "a/{slide}.png", 5, None]
)
def test_a_template_name_must_be_a_plain_file_name_of_a_slide(name):
    with pytest.raises(InputError, match="name must be a file name"):
        Template(name=name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must hold JSON"),
        ("[1]", "must be a JSON object"),
        ('{"colour": 1}', "colour"),
        ('{"values": [0, 1, 2, 256]}', "values must be"),
        ('{"downsample": NaN}', "NaN, which is no number"),
        ('{"downsample": 1e999}', "downsample must"),
    ],
)
def test_a_template_file_that_says_something_else_is_refused(tmp_path, text, reason):
    with pytest.raises(InputError, match=reason):
        submission.read_template(write(tmp_path / "template.json", text))


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
    assert faults_part_b(path, Template(name="pred_{slide}.png")) == [
        "A.png: extra file, not pred_{slide}.png of a wanted slide"
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
        "Z.png: extra file, not {slide}.png of a wanted slide",
        "H.png: missing",
    ]


def test_a_map_of_one_class_passes_if_that_is_meant(tmp_path):
    path = write(tmp_path / "A.png", png(np.full((32, 48), 3)))
    assert faults_part_b(path) == ["A.png: is Invasive everywhere (--allow-uniform lets it pass)"]
    assert faults_part_b(path, allow_uniform=True) == []


def test_the_template_says_which_size_mode_and_values_are_right(tmp_path):
    slides = {"A": (485, 320)}
    path = write(tmp_path / "A.png", png(pixels(30, 20)))
    assert faults_part_b(path, Template(downsample=16), slides) == []
    assert faults_part_b(path, Template(size=[30, 20]), slides) == []
    assert faults_part_b(path, Template(downsample=15), slides) == [
        "A.png: size is 30x20 px, must be 32x21"
    ]
    assert faults_part_b(path, Template(size=[31, 20]), slides) == [
        "A.png: size is 30x20 px, must be 31x20"
    ]
    assert faults_part_b(path, Template(mode="P"), slides) == ["A.png: mode is L, must be P"]
    (fault,) = faults_part_b(path, Template(values=[0, 85, 170, 255]), slides)
    assert "with the values 1, 2, 3, must be 0, 85, 170, 255" in fault
    write(path, png(pixels(30, 20), "P"))
    assert faults_part_b(path, Template(mode="P"), slides) == []


def test_a_map_larger_than_what_pillow_takes_for_an_attack_can_be_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert faults_part_b(write(tmp_path / "A.png", png(pixels(48, 32)))) == []
    assert Image.MAX_IMAGE_PIXELS == 100


# Part A: writing


@pytest.mark.parametrize("dialect", ["2018", "probabilities"])
@pytest.mark.parametrize("suffix", [".csv", ".zip"])
def test_what_is_written_is_valid(tmp_path, dialect, suffix):
    path = tmp_path / f"answer{suffix}"
    write_part_a(predictions(), path, dialect)
    assert faults_part_a(path, dialect) == []


def test_the_dialect_of_2018_has_a_name_and_a_class_in_natural_order_without_header(tmp_path):
    table = pd.DataFrame(
        [["test10", 0, 0, 0, 1], ["test2", 0.1, 0.2, 0.6, 0.1]],
        columns=["image_id", *PROB_COLUMNS],
    )
    write_part_a(table, tmp_path / "a.csv", "2018", ["test2", "test10"])
    assert (tmp_path / "a.csv").read_bytes() == b"test2.tif,InSitu\ntest10.tif,Invasive\n"


def test_the_dialect_with_probabilities_counts_classes_from_one_and_numbers_cases(tmp_path):
    table = pd.DataFrame(
        [["test10", 0, 0, 0, 1], ["test2", 0.1, 0.2, 0.6, 0.1]],
        columns=["image_id", *PROB_COLUMNS],
    )
    write_part_a(table, tmp_path / "a.csv", "probabilities", ["test2", "test10"])
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)",
        "2,3,0.100000,0.200000,0.600000,0.100000",
        "10,4,0.000000,0.000000,0.000000,1.000000",
    ]


@pytest.mark.parametrize("dialect", ["2018", "probabilities"])
def test_the_scorer_reads_back_the_classes_that_were_predicted(tmp_path, dialect):
    table = predictions().set_index("image_id").loc[list(TEST_IDS)]
    write_part_a(predictions(), tmp_path / "a.csv", dialect)
    expected = table.to_numpy().argmax(axis=1).tolist()
    assert read_labels(tmp_path / "a.csv", "predictions")["label"].tolist() == expected
    beside = read_labels(tmp_path / "a_predictions.csv", "predictions")
    assert beside["key"].tolist() == list(TEST_IDS)
    assert beside["label"].tolist() == expected


def test_the_predictions_are_stored_beside_for_scoring(tmp_path):
    write_part_a(predictions(), tmp_path / "a.zip")
    stored = pd.read_csv(tmp_path / "a_predictions.csv")
    assert stored.columns.tolist() == ["image_id", "predicted", *PROB_COLUMNS]
    probs = stored[list(PROB_COLUMNS)].to_numpy()
    assert stored["predicted"].tolist() == probs.argmax(axis=1).tolist()
    given = predictions().set_index("image_id").loc[stored["image_id"]].to_numpy()
    np.testing.assert_allclose(probs, given, rtol=1e-6)


def test_an_invalid_submission_overwrites_and_leaves_nothing(tmp_path):
    for name in ("a.csv", "a_predictions.csv", "a.zip"):
        (tmp_path / name).write_text("old")
    before = content(tmp_path)
    table = predictions(ids=[*TEST_IDS[1:], "test200"])
    for suffix in (".csv", ".zip"):
        with pytest.raises(InputError) as error:
            write_part_a(table, tmp_path / f"a{suffix}")
        assert "extra id 'test200.tif'" in str(error.value)
        assert "id test0.tif: missing" in str(error.value)
        assert "Received 2 faults" in str(error.value)
        assert content(tmp_path) == before


def test_predictions_that_are_no_probabilities_are_refused_in_any_dialect(tmp_path):
    table = predictions(["test0", "test1", "test2", "test3"]).sort_values("image_id")
    table.iloc[0, 1] = np.nan
    table.iloc[1, 1:] = [-0.5, 0.5, 0.5, 0.5]
    table.iloc[2, 1:] = [0.5, 0.5, 0.5, 0.5]
    table = pd.concat([table, table.tail(1)])
    with pytest.raises(InputError) as error:
        write_part_a(table, tmp_path / "a.csv", "2018", table["image_id"])
    assert str(error.value).splitlines()[2:] == ["  row 5: id test3.tif again, first in row 4"]
    with pytest.raises(InputError) as error:
        write_part_a(table[:-1], tmp_path / "a.csv", "2018", table["image_id"][:-1])
    assert str(error.value).splitlines()[2:] == [
        *(f"  row 2: {name} is 'nan', must be a number 0..1" for name in HEADER[2:3]),
        "  row 3: P(Normal) is '-0.500000', must be a number 0..1",
        "  row 4: probabilities sum to 2, must be 1",
    ]
    with pytest.raises(InputError, match="prob_benign"):
        write_part_a(table.drop(columns="prob_benign"), tmp_path / "a.csv")
    assert content(tmp_path) == {}


def test_an_archive_is_flat_and_the_same_bytes_each_time(tmp_path):
    for name in ("one", "two"):
        write_part_a(predictions(), tmp_path / name / "answer.zip")
    first, second = ((tmp_path / name / "answer.zip").read_bytes() for name in ("one", "two"))
    assert first == second
    with zipfile.ZipFile(tmp_path / "one" / "answer.zip") as archive:
        assert archive.namelist() == ["answer.csv"]
        assert archive.read("answer.csv").startswith(b"test0.tif,")


def test_the_command_writes_from_a_table_and_names_the_file_last(tmp_path, capsys):
    predictions().to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "answer.csv"
    argv = ("part-a", "--predictions", tmp_path / "table.csv", "--out", out)
    assert run(capsys, *argv) == (0, [str(out)])
    assert run(capsys, *argv, "--zip") == (0, [str(out.with_suffix(".zip"))])
    for path in (out, out.with_suffix(".zip")):
        assert run(capsys, "check", "part-a", path) == (0, ["0 faults"])
    code, lines = run(capsys, "check", "part-a", out, "--dialect", "probabilities")
    assert code == 1
    assert lines[-1] == "1 fault"


def test_the_stored_predictions_can_be_written_in_another_dialect(tmp_path, capsys):
    write_part_a(predictions(), tmp_path / "a.csv")
    stored = (tmp_path / "a_predictions.csv").read_bytes()
    argv = ("part-a", "--predictions", tmp_path / "a_predictions.csv", "--dialect", "probabilities")
    assert run(capsys, *argv, "--out", tmp_path / "a.csv")[0] == 0
    assert faults_part_a(tmp_path / "a.csv", "probabilities") == []
    assert (tmp_path / "a_predictions.csv").read_bytes() == stored


def test_the_command_never_replaces_the_table_it_reads(tmp_path):
    path = tmp_path / "table.csv"
    predictions().to_csv(path, index=False)
    with pytest.raises(InputError, match="must not replace the predictions"):
        submission.main(["part-a", "--predictions", str(path), "--out", str(path)])
    with pytest.raises(InputError, match=r"end in .csv or .zip"):
        submission.main(["part-a", "--predictions", str(path), "--out", str(tmp_path / "a.txt")])


def test_the_ids_to_expect_come_from_the_test_photos_or_a_file(tmp_path, capsys):
    photos = tmp_path / "data" / "ICIAR2018_BACH_Challenge_TestDataset" / "Photos"
    photos.mkdir(parents=True)
    for number in (0, 1, 10):
        Image.new("RGB", (8, 6)).save(photos / f"test{number}.tif")
    ids = tmp_path / "ids.txt"
    ids.write_text("test0.tif\ntest1.tif\n\ntest10.tif\n")
    predictions(["test0", "test1", "test10"]).to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "a.csv"
    argv = ("part-a", "--predictions", tmp_path / "table.csv", "--out", out)
    for option in (("--data-dir", tmp_path / "data"), ("--ids", ids)):
        assert run(capsys, *argv, *option)[0] == 0
        assert run(capsys, "check", "part-a", out, *option)[0] == 0
    code, lines = run(capsys, "check", "part-a", out)
    assert (code, lines[-1], lines[0]) == (1, "97 faults", "id test2.tif: missing")


def test_a_file_of_ids_may_be_a_table_with_sizes(tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("image_id,width,height\nT01.svs,48,32\nT2.svs,10,20\n")
    assert submission.read_ids(path) == {"T01": (48, 32), "T2": (10, 20)}
    for text in ("T01\n", "image_id,width\nT01,48\n"):
        path.write_text(text)
        assert submission.read_ids(path) == {"T01": None}
    for text, reason in (
        ("", "no id"),
        ("T1\nT1.svs\n", "more than once: t1"),
        ("image_id,width,height\nT1", "as many cells"),
        ("image_id,width,height\nT1,48,high", "must be numbers"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            submission.read_ids(path)


# Part B: writing


def test_by_default_the_class_maps_are_sent_as_they_are_in_gray(tmp_path, heatmaps):
    write_part_b(maps_of(heatmaps), tmp_path / "out", slides=SLIDES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "T01.png",
        "T10.png",
        "T2.png",
    ]
    for slide in SLIDES:
        with Image.open(tmp_path / "out" / f"{slide}.png") as image:
            assert image.mode == "L"
        labels = read_class_map(tmp_path / "out" / f"{slide}.png")
        np.testing.assert_array_equal(labels, class_map(slide))


def test_a_template_sets_names_mode_and_values(tmp_path, heatmaps):
    template = Template(name="pred_{slide}_x.png", mode="P", values=[10, 0, 255, 3])
    write_part_b(maps_of(heatmaps), tmp_path / "out", template, SLIDES)
    assert faults_part_b(tmp_path / "out", template, SLIDES) == []
    with Image.open(tmp_path / "out" / "pred_T2_x.png") as image:
        assert image.mode == "P"
        expected = np.array([10, 0, 255, 3])[class_map("T2")]
        np.testing.assert_array_equal(np.asarray(image), expected)
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGB")), np.array(COLORS)[class_map("T2")]
        )


def test_a_template_sets_the_size_by_the_slide_or_by_number(tmp_path, heatmaps):
    for template, size in (
        (Template(downsample=16), (300, 200)),
        (Template(downsample=500.0), (9, 6)),
        (Template(size=[31, 17]), (31, 17)),
    ):
        out = tmp_path / f"out{size[0]}"
        write_part_b(maps_of(heatmaps), out, template, SLIDES)
        with Image.open(out / "T01.png") as image:
            assert image.size == size
            assert set(np.unique(np.asarray(image))) <= {0, 1, 2, 3}


def test_resizing_takes_the_nearest_pixel(tmp_path):
    labels = np.array([[0, 3], [1, 2]], np.uint8)
    write_class_map(tmp_path / "A.png", labels)
    write_part_b({"A": tmp_path / "A.png"}, tmp_path / "out", Template(size=(4, 6)))
    pixels = np.asarray(Image.open(tmp_path / "out" / "A.png"))
    np.testing.assert_array_equal(pixels, labels.repeat(3, axis=0).repeat(2, axis=1))


def test_an_archive_of_maps_is_flat_and_the_same_bytes_each_time(tmp_path, heatmaps):
    for name in ("one.zip", "two.zip"):
        write_part_b(maps_of(heatmaps), tmp_path / name, slides=SLIDES)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["T01.png", "T2.png", "T10.png"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert faults_part_b(tmp_path / "one.zip", None, SLIDES) == []


def test_faults_of_class_maps_are_all_named_and_nothing_is_left(tmp_path, heatmaps):
    write_class_map(heatmaps / "class_maps" / "T01.png", class_map("T01").T)
    (heatmaps / "class_maps" / "T2.png").write_bytes(b"no picture")
    write_class_map(heatmaps / "class_maps" / "T10.png", np.zeros((40, 16), np.uint8))
    (tmp_path / "b.zip").write_text("old")
    before = content(tmp_path)
    slides = {**SLIDES, "T11": (100, 100)}
    for out in ("folder", "b.zip"):
        with pytest.raises(InputError) as error:
            write_part_b(maps_of(heatmaps), tmp_path / out, Template(size=(10, 10)), slides)
        message = str(error.value)
        assert "Received 4 faults" in message
        assert "T01: class map of 32x48 px is not in proportion to the slide" in message
        assert "T2.png must be a readable picture" in message
        assert "T10.png: is Normal everywhere" in message
        assert "T11.png: missing" in message
        assert content(tmp_path) == before
        assert not (tmp_path / "folder").exists()


def test_the_name_of_a_slide_leads_to_no_other_folder(tmp_path, heatmaps):
    maps = maps_of(heatmaps) | {"../../evil": heatmaps / "class_maps/T2.png"}
    with pytest.raises(InputError, match=r"evil: The name of a slide must be that of a file"):
        write_part_b(maps, tmp_path / "in/out")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_folder_that_is_not_empty_is_never_replaced(tmp_path, heatmaps):
    out = tmp_path / "out"
    out.mkdir()
    write_part_b(maps_of(heatmaps), out, slides=SLIDES)
    before = content(tmp_path)
    with pytest.raises(InputError, match="must be new"):
        write_part_b(maps_of(heatmaps), out, slides=SLIDES)
    assert content(tmp_path) == before


def test_uniform_maps_are_written_only_if_that_is_meant(tmp_path, heatmaps):
    write_class_map(heatmaps / "class_maps" / "T2.png", np.zeros((32, 32), np.uint8))
    with pytest.raises(InputError, match="Normal everywhere"):
        write_part_b(maps_of(heatmaps), tmp_path / "out", slides=SLIDES)
    write_part_b(maps_of(heatmaps), tmp_path / "out", slides=SLIDES, allow_uniform=True)


def test_downsampling_needs_the_sizes_of_the_slides(tmp_path, heatmaps):
    with pytest.raises(InputError, match="needs the sizes of the slides"):
        write_part_b(maps_of(heatmaps), tmp_path / "out", Template(downsample=16))


def test_the_command_sends_the_test_slides_of_a_run(tmp_path, heatmaps, capsys):
    out = tmp_path / "b"
    assert run(capsys, "part-b", "--run-dir", heatmaps, "--out", out) == (0, [str(out)])
    assert len(list(out.iterdir())) == 3
    ids = tmp_path / "ids.txt"
    ids.write_text("T01\nT2\nT10\n")
    for option in ((), ("--run-dir", heatmaps), ("--ids", ids)):
        assert run(capsys, "check", "part-b", out, *option) == (0, ["0 faults"])
    (out / "T2.png").rename(out / "T3.png")
    code, lines = run(capsys, "check", "part-b", out, "--ids", ids)
    assert code == 1
    assert lines == [
        "T3.png: extra file, not {slide}.png of a wanted slide",
        "T2.png: missing",
        "2 faults",
    ]


def test_the_command_sends_all_slides_of_a_run_without_test_slides(tmp_path, heatmaps, capsys):
    for path in (heatmaps / "slides").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"part": None}))
    out = tmp_path / "b"
    code, lines = run(capsys, "part-b", "--run-dir", heatmaps, "--out", out, "--zip")
    assert (code, lines) == (0, [f"{out}.zip"])
    with zipfile.ZipFile(f"{out}.zip") as archive:
        assert archive.namelist() == ["A01.png", "T01.png", "T2.png", "T10.png"]


def test_the_command_follows_a_template_file(tmp_path, heatmaps, capsys):
    code, lines = run(capsys, "template")
    assert code == 0
    template = json.loads("\n".join(lines)) | {"downsample": 16, "name": "{slide}_map.png"}
    path = tmp_path / "template.json"
    path.write_text(json.dumps(template))
    options = ("--run-dir", heatmaps, "--template", path)
    assert run(capsys, "part-b", *options, "--out", tmp_path / "b.zip")[0] == 0
    assert run(capsys, "check", "part-b", tmp_path / "b.zip", *options) == (0, ["0 faults"])


def test_a_slide_of_the_run_without_map_is_missing_and_one_without_size_an_error(
    tmp_path, heatmaps
):
    argv = ["part-b", "--run-dir", str(heatmaps), "--out", str(tmp_path / "b")]
    (heatmaps / "class_maps" / "T2.png").unlink()
    with pytest.raises(InputError, match=r"T2.png: missing"):
        submission.main(argv)
    (heatmaps / "slides" / "T01.json").unlink()
    with pytest.raises(InputError, match="without T01"):
        submission.main(argv)
    with pytest.raises(InputError, match="must be class maps"):
        submission.main(["part-b", "--run-dir", str(tmp_path), "--out", str(tmp_path / "b")])


def test_the_slides_to_expect_come_from_the_challenge_data(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path / "data" / "ICIAR2018_BACH_Challenge_TestDataset" / "WSI"
    folder.mkdir(parents=True)
    # No scale in the file: only the size is asked for.
    tifffile.imwrite(folder / "T5.tif", np.zeros((96, 64, 3), np.uint8), photometric="rgb")
    path = tmp_path / "T5.png"
    path.write_bytes(png(np.eye(12, 8)))
    argv = ("check", "part-b", path, "--data-dir", tmp_path / "data")
    assert run(capsys, *argv) == (0, ["0 faults"])
    path.write_bytes(png(np.eye(12, 12)))
    assert run(capsys, *argv)[1][0].startswith("T5.png: size is 12x12 px, not in proportion")


# A hundred damaged submissions


def _lines(text, random_, change, header=0):
    """Change the cells of one random row."""
    lines = text.splitlines()
    row = random_.randrange(header, len(lines))
    cells = lines[row].split(",")
    lines[row] = change(cells, random_)
    return "\n".join(lines) + "\n", f"row {row + 1}: "


def _cell(column, value):
    def change(cells, random_):
        cells[column] = value(cells, random_) if callable(value) else value
        return ",".join(cells)

    return change


def _no_argmax(cells, _):
    probs = [float(cell) for cell in cells[2:]]
    return str(1 + probs.index(min(probs)))


# For rows of both dialects: what is done to the cells, and why it is wrong.
ROWS = {
    "extra id": (_cell(0, lambda *_: "test777.tif"), "extra id 'test777.tif'"),
    "cell too few": (lambda cells, _: ",".join(cells[:-1]), "cells, must be"),
    "cell too many": (lambda cells, _: ",".join([*cells, "1"]), "cells, must be"),
    "space": (_cell(1, lambda cells, _: f" {cells[1]}"), "unknown class"),
    "quotes": (_cell(1, lambda cells, _: f'"{cells[1]}"'), "unknown class"),
    "blank line": (lambda cells, _: "", "1 cells, must be"),
    "NUL": (_cell(1, lambda cells, _: f"{cells[1]}\0"), "unknown class"),
    "unknown class": (_cell(1, lambda _, r: r.choice(["Tumour", "", "5", "-1"])), "unknown class"),
}
ROWS_2018 = {
    **ROWS,
    "no ending": (_cell(0, lambda cells, _: cells[0][:-4]), "must be written test"),
    "upper case": (_cell(0, lambda cells, _: cells[0].upper()), "must be written test"),
    "folder": (_cell(0, lambda cells, _: f"Photos/{cells[0]}"), "must be written test"),
    "class number": (_cell(1, lambda _, r: str(r.randrange(4))), "unknown class"),
    "class spelling": (_cell(1, lambda _, r: r.choice(["in situ", "IS", "benign"])), "unknown cla"),
}
ROWS_PROBABILITIES = {
    **ROWS,
    "file name": (_cell(0, lambda cells, _: f"test{cells[0]}.tif"), "extra id"),
    "float case": (_cell(0, lambda cells, _: f"{cells[0]}.0"), "extra id"),
    "class zero": (_cell(1, "0"), "unknown class '0'"),
    "class name": (_cell(1, lambda _, r: r.choice(CLASSES)), "must be one of 1, 2, 3, 4"),
    "not the argmax": (_cell(1, _no_argmax), "is not the most probable one"),
    "sum": (_cell(3, lambda cells, _: str(0.1 + float(cells[3]))), "probabilities sum to"),
    "negative": (_cell(4, lambda _, r: f"-0.{r.randrange(1, 9)}"), "must be a number 0..1"),
    "above one": (_cell(5, lambda _, r: str(r.uniform(1.1, 99))), "must be a number 0..1"),
    "text": (
        _cell(2, lambda _, r: r.choice(["", "abc", "nan", "inf", "0x1"])),
        "must be a number 0..1",
    ),
}


def _swap(text, r, header):
    lines = text.splitlines()
    first, second = r.sample(range(header, len(lines)), 2)
    return lines, first, second


def _double(text, r, header):
    lines, first, _ = _swap(text, r, header)
    return "\n".join([*lines, lines[first]]) + "\n", f"again, first in row {first + 1}"


def _renamed(text, r, header):
    lines, first, second = _swap(text, r, header)
    lines[first] = ",".join([lines[second].split(",")[0], *lines[first].split(",")[1:]])
    return "\n".join(lines) + "\n", f"again, first in row {min(first, second) + 1}"


def _missing(text, r, header):
    lines, first, _ = _swap(text, r, header)
    gone = lines.pop(first)
    return "\n".join(lines) + "\n", f"id {gone.split(',')[0]}: missing"


def _cut(text, r, header):
    return text[: r.randrange(len(text) // 4, len(text) // 2)], ": missing"


def _latin(text, r, header):
    lines, first, _ = _swap(text, r, header)
    lines[first] += "é"
    return "\n".join(lines).encode("latin-1"), f"row {first + 1}: not UTF-8"


def _header(text, r, header):
    if header:
        return text.replace("P(In Situ)", "P(InSitu)"), "row 1: header is"
    return r.choice(["case,class", "image_id,predicted"]) + "\n" + text, "row 1: extra id"


def _no_header(text, r, header):
    if header:
        return text.split("\n", 1)[1], "row 1: header is"
    return ",".join(HEADER[:2]) + "\n" + text, "row 1: extra id 'case'"


FILES = {
    "double row": _double,
    "double id": _renamed,
    "missing row": _missing,
    "cut off": _cut,
    "Latin-1": _latin,
    "header": _header,
    "no header": _no_header,
    "empty": lambda text, *_: ("", "file: empty"),
    "mark": lambda text, *_: (text.encode("utf-8-sig"), r"\ufeff"),
    "UTF-16": lambda text, *_: (text.encode("utf-16"), "not UTF-8"),
    "semicolons": lambda text, *_: (text.replace(",", ";"), "no row has"),
    "tabs": lambda text, *_: (text.replace(",", "\t"), "no row has"),
}


ARCHIVES = {
    "nested": lambda data, name: ([(f"answer/{name}", data)], "nested in a folder"),
    "Mac": lambda data, name: ([(name, data), (f"__MACOSX/._{name}", b"")], "hidden file"),
    "Finder": lambda data, name: ([(name, data), (".DS_Store", b"")], "hidden file"),
    "extra": lambda data, name: ([(name, data), ("readme.txt", b"")], "readme.txt: extra file"),
}


@pytest.fixture(scope="module")
def damaged_part_a(tmp_path_factory):
    """Name, file, dialect and reason of every damaged Part A submission."""
    folder = tmp_path_factory.mktemp("damaged")
    r = random.Random(0)
    made = []

    def add(name, dialect, data, reason):
        path = folder / f"{len(made)}.csv"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        made.append((name, path, dialect, reason))

    for dialect, rows in (("2018", ROWS_2018), ("probabilities", ROWS_PROBABILITIES)):
        header = int(dialect == "probabilities")
        for seed in range(2):
            path = folder / "good.csv"
            write_part_a(predictions(seed=seed), path, dialect, store=False)
            text = path.read_text()
            for name, (change, reason) in rows.items():
                data, where = _lines(text, r, change, header)
                add(name, dialect, data, (where, reason))
            for name, change in FILES.items():
                data, reason = change(text, r, header)
                add(name, dialect, data, ("", reason))
        for name, change in ARCHIVES.items():
            files, reason = change(text.encode(), "good.csv")
            path = folder / f"{len(made)}.zip"
            archive(path, files)
            made.append((name, path, dialect, ("", reason)))
    return made


def _pixel(value):
    def change(pixels, r):
        pixels[r.randrange(pixels.shape[0]), r.randrange(pixels.shape[1])] = value
        return png(pixels)

    return change


def _flip_bit(pixels, r):
    data = bytearray(png(pixels))
    data[r.randrange(60, len(data) - 30)] ^= 1 << r.randrange(8)
    return bytes(data)


MAPS = {
    "value": (_pixel(4), "1 px with the values 4, must be 0, 1, 2, 3"),
    "white": (_pixel(255), "1 px with the values 255"),
    "scaled": (lambda pixels, r: png(pixels * 85), "with the values 85, 170, 255"),
    "palette": (lambda pixels, r: png(pixels, "P"), "mode is P, must be L"),
    "colour": (lambda pixels, r: png(pixels, "RGB"), "mode is RGB, must be L"),
    "alpha": (lambda pixels, r: png(pixels, "LA"), "mode is LA, must be L"),
    "1 bit": (lambda pixels, r: png(pixels > 0, "1"), "mode is 1, must be L"),
    "16 bit": (lambda pixels, r: png(pixels, "I;16"), "mode is I;16, must be L"),
    "turned": (lambda pixels, r: png(np.rot90(pixels)), "turned by 90 degrees?"),
    "cropped": (lambda pixels, r: png(pixels[:, : -r.randrange(4, 9)]), "not in proportion"),
    "padded": (lambda pixels, r: png(np.pad(pixels, ((0, 5), (0, 0)))), "not in proportion"),
    "uniform": (lambda pixels, r: png(pixels * 0 + r.randrange(4)), "everywhere"),
    "truncated": (lambda pixels, r: png(pixels)[: r.randrange(80, 200)], "unreadable PNG"),
    "bit": (_flip_bit, "unreadable PNG"),
    "empty": (lambda pixels, r: b"", "unreadable, no image"),
    "text": (lambda pixels, r: b"0,1,2,3\n", "unreadable, no image"),
}


@pytest.fixture(scope="module")
def damaged_part_b(tmp_path_factory):
    """Name, file and reason of every damaged Part B submission."""
    folder = tmp_path_factory.mktemp("damaged")
    r = random.Random(0)
    made = []

    def add(name, files, reason):
        path = folder / f"{len(made)}.zip"
        archive(path, files)
        made.append((name, path, reason))

    for seed in range(2):
        good = {f"{slide}.png": png(class_map(slide, seed)) for slide in SLIDES}
        for name, (change, reason) in MAPS.items():
            slide = r.choice(["T01", "T10"])
            data = change(class_map(slide, seed), r)
            add(name, {**good, f"{slide}.png": data}.items(), f"{slide}.png: .*{reason}")
        slide = r.choice(list(SLIDES))
        data = good.pop(f"{slide}.png")
        add("missing", good.items(), f"{slide}.png: missing")
        for wrong in (f"{slide.lower()}.png", f"{slide}.PNG", f"{slide}.tif"):
            add("name", {**good, wrong: data}.items(), f"{wrong}: must be named {slide}.png")
        good[f"{slide}.png"] = data
        add("extra", {**good, "T3.png": data}.items(), "T3.png: extra file")
        add("second", {**good, slide: data}.items(), f"slide {slide} again")
        add("nested", [(f"maps/{key}", data) for key, data in good.items()], "nested in a folder")
        add("hidden", {**good, "._T2.png": b""}.items(), "hidden file")
    return made


def test_a_hundred_damaged_submissions_are_all_caught_with_the_right_reason(
    damaged_part_a, damaged_part_b
):
    uncaught = []
    for name, path, dialect, (where, reason) in damaged_part_a:
        faults = faults_part_a(path, dialect)
        if not any(fault.startswith(where) and reason in fault for fault in faults):
            uncaught.append((dialect, name, reason, faults[:5]))
    for name, path, reason in damaged_part_b:
        faults = faults_part_b(path, None, SLIDES)
        pattern = re.sub(r"[?()]", r"\\\g<0>", reason)
        if not any(re.search(pattern, fault) for fault in faults):
            uncaught.append(("part b", name, reason, faults[:5]))
    assert uncaught == []
    assert len(damaged_part_a) >= 100
    assert len(damaged_part_b) >= 40


def test_one_damage_gives_few_faults_and_not_an_avalanche(damaged_part_a, damaged_part_b):
    wide = {"cut off", "UTF-16"}
    for name, path, dialect, _ in damaged_part_a:
        if name not in wide:
            assert len(faults_part_a(path, dialect)) <= 4, name
    for name, path, _ in damaged_part_b:
        assert len(faults_part_b(path, None, SLIDES)) <= 3, name


@pytest.mark.parametrize("ending", ["csv", "zip", "png"])
def test_whatever_the_bytes_are_a_check_ends_with_a_list_of_faults(tmp_path, ending):
    r = random.Random(0)
    good = {"csv": GOOD_2018.encode(), "png": png(class_map("T01"))}
    files = [("T01.png", good["png"]), ("a.csv", good["csv"])]
    good["zip"] = archive(tmp_path / "good.zip", files).read_bytes()
    for number in range(100):
        data = bytearray(good[ending])
        for _ in range(r.randrange(1, 8)):
            data[r.randrange(len(data))] = r.randrange(256)
        data = data[: r.randrange(len(data))] if number % 3 == 0 else data
        path = write(tmp_path / f"{number}.{ending}", bytes(data))
        assert faults_part_a(path, "2018", IDS)
        assert faults_part_b(path, slides=SLIDES)
        assert isinstance(faults_part_b(path), list)


def test_neither_help_nor_a_check_loads_a_framework(tmp_path):
    write_part_a(predictions(), tmp_path / "a.csv")
    code = (
        "import sys; from bach import submission\n"
        f"assert submission.main(['check', 'part-a', {str(tmp_path / 'a.csv')!r}]) == 0\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    here = Path(submission.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here, capture_output=True)


def test_what_cannot_be_checked_ends_with_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["submission", "check", "part-a", str(tmp_path / "no.csv")])
    monkeypatch.setattr(logging.getLogger("bach"), "handlers", [logging.NullHandler()])
    with pytest.raises(SystemExit) as stop:
        submission.exit_with(submission.main)
    assert stop.value.code == 2
    assert "InputError: There must be a submission to check." in capsys.readouterr().err


def test_a_file_behind_a_link_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / "mine.csv").symlink_to("/dev/zero")
    words = ["part-a", "--predictions", str(tmp_path / "mine.csv"), "--out"]
    with pytest.raises(InputError, match=r"mine\.csv must be a readable CSV file"):
        submission.main([*words, str(tmp_path / "out.csv")])
