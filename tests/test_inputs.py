"""Files that others made: looked at before they are opened, named when they are damaged."""

import os
import struct
import zipfile
import zlib

import pytest

from bach.core.errors import InputError
from bach.core.inputs import open_input, read_input, require_file, understood


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert require_file(tmp_path / "a", "be good", "Mend it.", 5) == tmp_path / "a"
    assert read_input(tmp_path / "a", "be good", "Mend it.", 5) == b"12345"
    with open_input(tmp_path / "a", "be good", "Mend it.") as stream:
        assert stream.read() == b"12345"


def _pipe(path):
    os.mkfifo(path / "x")
    return path / "x"


def _folder(path):
    (path / "x").mkdir()
    return path / "x"


def _circle(path):
    (path / "x").symlink_to(path / "x")
    return path / "x"


def _below_a_file(path):
    (path / "x").touch()
    return path / "x/y"


def _large(path):
    with (path / "x").open("wb") as stream:
        stream.truncate(2**40)  # takes no room
    return path / "x"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_pipe, "a pipe or device, no file"),
        (_folder, "a folder"),
        (_circle, "symbolic links"),
        (_below_a_file, "Not a directory"),
        (_large, "a file of 1024.0 GB; at most 1.0 kB are read"),
        (lambda path: path / "none", "No such file"),
        (lambda path: path / ("n" * 300), "name too long"),
        (lambda path: f"{path}/a\0b", "null"),
        (lambda path: "/dev/zero", "a pipe or device, no file"),
    ],
)
def test_what_is_no_file_to_be_read_is_refused_before_it_is_opened(tmp_path, make, said):
    path = make(tmp_path)
    for look in (require_file, read_input):
        with pytest.raises(InputError, match=rf"must be good\.\nReceived: .*{said}.*\.\nMend it\."):
            look(path, "be good", "Mend it.", 1024)
    with (
        pytest.raises(InputError, match=said),
        open_input(path, "be good", "Mend it.", 1024),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad  value\nhere."), "bad value here"),
        (KeyError("size"), "'size'"),
        (struct.error("short"), "short"),
        (zlib.error("Error -3"), "Error -3"),
        (zipfile.BadZipFile("no zip"), "no zip"),
        (LookupError("unknown encoding"), "unknown encoding"),
        (MemoryError(), "more than the memory holds"),
        (RecursionError("deep"), "parts within parts without end"),
        (OverflowError("large"), "large"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_what_a_library_raises_names_the_file(error, said):
    with (
        pytest.raises(InputError, match=rf"a\.tif must be good\.\nReceived: {said}\.\nMend it\."),
        understood("a.tif", "be good", "Mend it."),
    ):
        raise error


def test_an_input_error_and_an_interruption_pass_as_they_are():
    for error in (InputError("Its own words."), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, understood("a.tif", "be good", "Mend it."):
            raise error
        assert caught.value is error
