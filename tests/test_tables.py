"""The one reader of tables, the one writer, and the keys."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bach.core.errors import InputError
from bach.core.tables import as_numbers, image_key, patient_key, read_table, write_csv


def test_a_table_that_was_written_is_read_as_it_was(tmp_path):
    table = pd.DataFrame(
        {"image_id": ["a", "b"], "text": ["x, y", 'said "no"'], "empty": ["", "z"]}
    )
    write_csv(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), table.astype(str))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_is_read(tmp_path, separator, end, encoding):
    lines = [separator.join(cells) for cells in (["image_id", "fold"], [" a ", "0"], ["b", "1"])]
    (tmp_path / "t.csv").write_bytes((end.join(lines) + 2 * end).encode(encoding))
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
        (b'image_id,fold\n"a,0\n', r"unexpected end of data \(after line 1\)"),
        (b"image_id,fold\na,0\0\n", r"no text \(NUL\)"),
        (b"image_id,fold\ncaf\xe9,0\n", "Save it as UTF-8"),
        ("image_id,fold\na,0\n".encode("utf-16-le"), r"no text \(NUL\)"),
        (b"image_id,fold,fold\na,0,1\n", "more than once: fold"),
        (b"image_id,fold\na," + b"0" * 200_000, "field larger than field limit"),
        (b"image_id,fold" + b"," * 10_000, "more than 10,000 columns"),
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


def test_a_table_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "t.csv").open("wb") as stream:
        stream.truncate(2**40)  # takes no room
    with pytest.raises(InputError, match="at most 100"):
        read_table(tmp_path / "t.csv")


def test_of_columns_without_a_name_one_is_kept(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,,\na,,\n")
    assert list(read_table(tmp_path / "t.csv")) == ["image_id", ""]


def test_separators_in_quotes_do_not_make_columns(tmp_path):
    (tmp_path / "t.csv").write_text('"a;b;c",d\n"1;2;3","two\nlines"\n')
    assert read_table(tmp_path / "t.csv").to_dict("list") == {
        "a;b;c": ["1;2;3"],
        "d": ["two\nlines"],
    }


def test_a_name_that_is_no_text_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="Rename the files"):
        write_csv(pd.DataFrame({"image_id": ["fa\udcffl"]}), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


# What a table of ours can hold: text without control characters, NUL among them, since readers of
# tables end lines at some of them.
_CELLS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_table_of_text_comes_back_as_it_was_written(tmp_path_factory, data):
    width = data.draw(st.integers(1, 4))
    # Of a header that holds other separators the right one could not be told.
    name = _CELLS.filter(lambda text: text and ";" not in text)
    names = data.draw(st.lists(name, min_size=width, max_size=width, unique=True))
    row = st.lists(_CELLS | st.just('a,"b";\nc\t'.strip()), min_size=width, max_size=width)
    table = pd.DataFrame(data.draw(st.lists(row, max_size=4)), columns=names, dtype=str)
    file = tmp_path_factory.mktemp("any") / "t.csv"
    write_csv(table, file)
    pd.testing.assert_frame_equal(read_table(file), table)


_TOKENS = st.sampled_from(
    [b"image_id", b"fold", b",", b";", b"\t", b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf"]
)


@settings(max_examples=120, deadline=None)
@given(st.lists(_TOKENS | st.binary(max_size=4), max_size=30).map(b"".join), st.booleans())
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content, header):
    file = tmp_path_factory.mktemp("any") / "t.csv"
    file.write_bytes(content)
    try:
        table = read_table(file, header=header)
        assert all(isinstance(cell, str) for row in table.to_numpy() for cell in row)
        as_numbers(table, list(table), file)
    except InputError:
        pass


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
        ("\ufeffA01 .svs", "a01"),
        ("A01.ome.tif", "a01"),
        ("A01.svs.tif", "a01"),
        ("A01.DCM", "a01"),
    ],
)
def test_an_image_has_one_key_however_it_is_written(text, key):
    assert image_key(text) == key


def test_an_unknown_patient_has_the_empty_key():
    assert [patient_key(x) for x in (" P11 ", " ", None, float("nan"))] == ["p11", "", "", ""]


@given(st.text(max_size=20))
def test_the_key_of_a_key_is_itself(text):
    assert image_key(image_key(text)) == image_key(text)
    assert patient_key(patient_key(text)) == patient_key(text)


@pytest.mark.parametrize(
    "spellings",
    [
        [
            "12",
            "12.0",
            "012",
            " 12\u00a0",
            "12,0",
            "12.",
            "'12",
            "\uff11\uff12",
            "1.2e1",
            "12\u200b",
        ],
        ["P07", "p7", "P 7", "P-7", "P_07", "P.7", "P/7", "P#7", "\ufeffP07", "P07\r"],
        ["14-25197", "14_25197", "14 25197", "14/25197", "14.25197"],
        ["TCGA-A1-A0SB", "TCGA.A1.A0SB", "tcga_a1_a0sb"],
        ["M\u00fcller", "MU\u0308LLER"],
        ["100000", "1E+05", "1e5"],
    ],
)
def test_a_patient_has_one_key_however_the_name_is_written(spellings):
    assert len(set(map(patient_key, spellings))) == 1


def test_different_patients_have_different_keys():
    names = ["12", "P12", "P12a", "1-2", "14-25197", "1425-197", "1425197", "P1", "P10", "Q1"]
    assert len(set(map(patient_key, names))) == len(names)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "NA",
            "n/a",
            "n.a.",
            "#N/A",
            "<NA>",
            "NaN",
            "-nan",
            "-",
            "\u2014",
            "..",
            "?",
            "?????",
            "*",
        ),
        *("none", "NULL", "(null)", "unknown", "Not known", "not applicable", "unspecified"),
        *("unbekannt", "inconnu", "#VALUE!", "#REF!", "1.#QNAN", "-1", "\u200b", "\u00a0"),
    ],
)
def test_a_word_for_unknown_is_nobody(word):
    assert patient_key(word) == ""


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
