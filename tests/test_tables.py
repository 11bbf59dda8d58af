"""The one reader of tables, the one writer, and the keys."""

import pandas as pd
import pytest

from bach.core.errors import InputError
from bach.core.tables import as_numbers, image_key, patient_key, read_table, write_csv


def test_a_table_that_was_written_is_read_as_it_was(tmp_path):
    table = pd.DataFrame(
        {"image_id": ["a", "b"], "text": ["x, y", 'said "no"'], "empty": ["", "z"]}
    )
    write_csv(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), table.astype(str))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_separators_and_byte_order_marks_of_others_are_read(tmp_path, separator, start):
    lines = [separator.join(cells) for cells in (["image_id", "fold"], [" a ", "0"], ["b", "1"])]
    (tmp_path / "t.csv").write_text(start + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    table = read_table(tmp_path / "t.csv", ("image_id", "fold"), key="image_id")
    assert table.to_dict("list") == {"image_id": ["a", "b"], "fold": ["0", "1"]}


def test_a_table_without_header_has_numbered_columns(tmp_path):
    (tmp_path / "t.csv").write_text("b001.tif,Benign\nn001.tif,Normal\n")
    assert read_table(tmp_path / "t.csv", header=False)[1].tolist() == ["Benign", "Normal"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image_id\na\n", r"must have the columns image_id, fold[\s\S]*header line with fold"),
        (b"", "an empty file"),
        (b"image_id,fold\na,0\nb\n", r"another number in rows 3"),
        (b"image_id,fold\nA.tif,0\nx/a.png,1\n", "more than once: a"),
        (b"\xff\xfe\x00", "readable CSV"),
        (b'image_id,fold\n"a,0\n', r"another number in rows 2"),
    ],
)
def test_a_faulty_table_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_table(tmp_path / "t.csv", ("image_id", "fold"), key="image_id")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(InputError, match="must be a readable CSV file"):
            read_table(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SOB_B-14.25", "sob_b-14.25"),
        ("Photos/Test0.TIF", "test0"),
        ("C:\\data\\A01.svs", "a01"),
        (" b001 ", "b001"),
        ("scan.v2", "scan.v2"),
        (".svs", ".svs"),
        ("fa\u0308lle", "f\u00e4lle"),
    ],
)
def test_an_image_has_one_key_however_it_is_written(text, key):
    assert image_key(text) == key


def test_an_unknown_patient_has_the_empty_key():
    assert [patient_key(x) for x in (" P11 ", " ", None, float("nan"))] == ["p11", "", "", ""]


def test_columns_of_text_become_numbers_or_their_rows_are_named(tmp_path):
    table = pd.DataFrame({"x": ["1", "2.5", "-3e2"], "name": ["a", "b", "c"]})
    assert as_numbers(table, ["x"], "a.csv")["x"].tolist() == [1, 2.5, -300]
    table["y"] = ["1", "", "inf"]
    with pytest.raises(InputError, match=r"(?s)x, y of a.csv must be numbers.*rows 2, 3"):
        as_numbers(table, ["x", "y"], "a.csv")


def test_bytes_that_are_not_utf_8_are_refused_unless_it_is_said_what_becomes_of_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("image_id,note\na,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError, match="readable"):
        read_table(path)
    assert read_table(path, errors="replace")["note"].tolist() == ["caf\ufffd"]
