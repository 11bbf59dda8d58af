import io
import json
import logging
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bach import submission
from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core.errors import InputError
from bach.labels import read_class_map, read_labels, write_class_map
from bach.submission import write_part_a, write_part_b
from bach.validation import HEADER, TEST_IDS, complete_template, faults_part_a, faults_part_b

SLIDES = {"T01": (4810, 3205), "T2": (3200, 3200), "T10": (1600, 4000)}


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
    (run_dir / "slides").mkdir(parents=True)
    for slide, (width, height) in {**SLIDES, "A01": (900, 900)}.items():
        labels = class_map(slide) if slide in SLIDES else np.eye(9, dtype=np.uint8)
        write_class_map(run_dir / "class_maps" / f"{slide}.png", labels)
        part = "B-test" if slide in SLIDES else "B"
        values = {"width": width, "height": height, "mpp": 0.467, "part": part}
        (run_dir / "slides" / f"{slide}.json").write_text(json.dumps(values))
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
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


# Part A


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
    assert str(error.value).splitlines()[2:] == [
        "  test0: a probability is not a number",
        "  test1: a probability is negative",
        "  test2: probabilities sum to 2, must be 1",
        "  test3: more than one row",
    ]
    with pytest.raises(InputError, match="missing: prob_benign"):
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
    path.write_text("T01\n")
    assert submission.read_ids(path) == {"T01": None}
    for text, reason in (
        ("", "no id"),
        ("T1\nT1.svs\n", "twice: T1"),
        ("id,width,height\nT1", "whole"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            submission.read_ids(path)


# Part B


def test_by_default_the_class_maps_are_sent_as_they_are_in_gray(tmp_path, heatmaps):
    write_part_b(maps_of(heatmaps), tmp_path / "out", slides=SLIDES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "T01.png", "T10.png", "T2.png",
    ]  # fmt: skip
    for slide in SLIDES:
        with Image.open(tmp_path / "out" / f"{slide}.png") as image:
            assert image.mode == "L"
        labels = read_class_map(tmp_path / "out" / f"{slide}.png")
        np.testing.assert_array_equal(labels, class_map(slide))


def test_a_template_sets_names_mode_and_values(tmp_path, heatmaps):
    template = {"name": "pred_{slide}_x.png", "mode": "P", "values": [10, 0, 255, 3]}
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
        ({"downsample": 16}, (300, 200)),
        ({"downsample": 500.0}, (9, 6)),
        ({"size": [31, 17]}, (31, 17)),
    ):
        out = tmp_path / f"out{size[0]}"
        write_part_b(maps_of(heatmaps), out, template, SLIDES)
        with Image.open(out / "T01.png") as image:
            assert image.size == size
            assert set(np.unique(np.asarray(image))) <= {0, 1, 2, 3}


def test_resizing_takes_the_nearest_pixel():
    labels = np.array([[0, 3], [1, 2]], np.uint8)
    data = submission.encode_map(labels, complete_template(), (4, 6))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
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
            write_part_b(maps_of(heatmaps), tmp_path / out, {"size": [10, 10]}, slides)
        message = str(error.value)
        assert "Received 4 faults" in message
        assert "T01: class map of 32x48 px is not in proportion to the slide" in message
        assert "T2.png must be a readable picture" in message
        assert "T10.png: is Normal everywhere" in message
        assert "T11.png: missing" in message
        assert content(tmp_path) == before
        assert not (tmp_path / "folder").exists()


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
        write_part_b(maps_of(heatmaps), tmp_path / "out", {"downsample": 16})


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
        "T3.png: extra file, no slide of that name is wanted", "T2.png: missing", "2 faults",
    ]  # fmt: skip


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
    path.write_text("{")
    with pytest.raises(InputError, match="must be a JSON file"):
        submission.main(["check", "part-b", str(tmp_path / "b.zip"), "--template", str(path)])


def test_a_slide_of_the_run_without_map_is_missing_and_one_without_size_an_error(
    tmp_path, heatmaps
):
    argv = ["part-b", "--run-dir", str(heatmaps), "--out", str(tmp_path / "b")]
    (heatmaps / "class_maps" / "T2.png").unlink()
    with pytest.raises(InputError, match=r"T2.png: missing"):
        submission.main(argv)
    (heatmaps / "slides" / "T01.json").unlink()
    (heatmaps / "slides" / "T10.json").write_text('{"width": 3}')
    with pytest.raises(InputError, match=r"(?s)T10.json: KeyError: 'height'.*T01.json: missing"):
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
    "cell too few": (lambda cells, _: ",".join(cells[:-1]), "columns, must be"),
    "cell too many": (lambda cells, _: ",".join([*cells, "1"]), "columns, must be"),
    "space": (_cell(1, lambda cells, _: f" {cells[1]}"), "spaces around a cell"),
    "quotes": (_cell(1, lambda cells, _: f'"{cells[1]}"'), "quotation marks"),
    "blank line": (lambda cells, _: "", "blank line"),
    "NUL": (_cell(1, lambda cells, _: f"{cells[1]}\0"), "NUL character"),
    "unknown class": (_cell(1, lambda _, r: r.choice(["Tumour", "", "5", "-1"])), "unknown class"),
}
ROWS_2018 = {
    **ROWS,
    "no ending": (_cell(0, lambda cells, _: cells[0][:-4]), "must be written test"),
    "upper case": (_cell(0, lambda cells, _: cells[0].upper()), "must be written test"),
    "folder": (_cell(0, lambda cells, _: f"Photos/{cells[0]}"), "must be written test"),
    "class number": (_cell(1, lambda _, r: str(r.randrange(4))), "unknown class"),
    "class spelling": (_cell(1, lambda _, r: r.choice(["in situ", "IS", "benign"])), "must be wri"),
}
ROWS_PROBABILITIES = {
    **ROWS,
    "file name": (_cell(0, lambda cells, _: f"test{cells[0]}.tif"), "must be written"),
    "float case": (_cell(0, lambda cells, _: f"{cells[0]}.0"), "must be written"),
    "class zero": (_cell(1, "0"), "unknown class '0'"),
    "class name": (_cell(1, lambda _, r: r.choice(CLASSES)), "must be 1, 2, 3 or 4"),
    "not the argmax": (_cell(1, _no_argmax), "is not the most probable one"),
    "sum": (_cell(3, lambda cells, _: str(0.1 + float(cells[3]))), "probabilities sum to"),
    "negative": (_cell(4, lambda _, r: f"-0.{r.randrange(1, 9)}"), "negative"),
    "above one": (_cell(5, lambda _, r: str(r.uniform(1.1, 99))), "above 1"),
    "text": (_cell(2, lambda _, r: r.choice(["", "abc", "nan", "inf", "0x1"])), "not a number"),
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
    return "\n".join(lines).encode("latin-1"), f"row {first + 1}: encoding is not UTF-8"


def _header(text, r, header):
    if header:
        return text.replace("P(In Situ)", "P(InSitu)"), "row 1: header is"
    return r.choice(["case,class", "image_id,predicted"]) + "\n" + text, "row 1: header"


def _no_header(text, r, header):
    if header:
        return text.split("\n", 1)[1], "row 1: header missing"
    return ",".join(HEADER[:2]) + "\n" + text, "must be without"


FILES = {
    "double row": _double,
    "double id": _renamed,
    "missing row": _missing,
    "cut off": _cut,
    "Latin-1": _latin,
    "header": _header,
    "no header": _no_header,
    "empty": lambda text, *_: ("", "file: empty"),
    "mark": lambda text, *_: (text.encode("utf-8-sig"), "byte order mark"),
    "UTF-16": lambda text, *_: (text.encode("utf-16"), "encoding is UTF-16"),
    "semicolons": lambda text, *_: (text.replace(",", ";"), "separated by ';'"),
    "tabs": lambda text, *_: (text.replace(",", "\t"), r"separated by '\t'"),
}


def _zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(name, data)


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
            _zip(path, files)
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
        _zip(path, list(files))
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
    wide = {"cut off", "no header", "semicolons", "tabs"}
    for name, path, dialect, _ in damaged_part_a:
        if name not in wide:
            assert len(faults_part_a(path, dialect)) <= 4, name
    for name, path, _ in damaged_part_b:
        assert len(faults_part_b(path, None, SLIDES)) <= 3, name


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
