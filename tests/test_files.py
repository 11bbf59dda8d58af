"""Files are whole or not there; a fingerprint is of content."""

import errno
import json
import os

import numpy as np
import pytest

from bach.core.errors import InputError, exit_with
from bach.core.files import (
    atomic_folder,
    atomic_path,
    fingerprint,
    read_json,
    to_json,
    write_array,
    write_json,
)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def fail_halfway():
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def fail_halfway():
        with atomic_folder(tmp_path / "maps") as folder:
            (folder / "one.png").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert not list(tmp_path.iterdir())
    (tmp_path / "maps").mkdir()
    with atomic_folder(tmp_path / "maps") as folder:
        (folder / "one.png").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["maps", "one.png"]


def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path):
    said = r"room for .*table\.csv[\s\S]*--resume"
    with pytest.raises(InputError, match=said), atomic_path(tmp_path / "table.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_json_and_arrays_come_back_as_they_were_written(tmp_path):
    value = {"a": np.float32(0.5), "b": [np.int64(3), float("nan")], "c": np.arange(2), 4: None}
    write_json(tmp_path / "x.json", value)
    expected = {"a": 0.5, "b": [3, None], "c": [0, 1], "4": None}
    assert read_json(tmp_path / "x.json", "Mend it.") == expected
    assert json.loads(to_json(value)) == expected
    assert "\n" not in to_json(value)
    write_array(tmp_path / "x.npy", np.eye(3))
    assert (np.load(tmp_path / "x.npy") == np.eye(3)).all()


@pytest.mark.parametrize("text", ["", "{", "\x00\xff"])
def test_a_damaged_json_file_is_named_with_its_remedy(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.json must hold JSON[\s\S]*Mend it\."):
        read_json(tmp_path / "x.json", "Mend it.")


def test_a_fingerprint_is_of_content_and_settings_not_of_path_or_time(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_text("slide")
    same.write_text("slide")
    other.write_text("slidf")
    os.utime(same, (0, 0))
    first = fingerprint({"slide": one, "mask": None}, {"rule": "thresholds", "step": 67.2})
    assert first == fingerprint({"slide": same, "mask": None}, {"step": 67.2, "rule": "thresholds"})
    for files, settings in (
        ({"slide": other, "mask": None}, {"rule": "thresholds", "step": 67.2}),
        ({"slide": one, "mask": one}, {"rule": "thresholds", "step": 67.2}),
        ({"slide": one, "mask": None}, {"rule": "thresholds", "step": 67.3}),
    ):
        assert fingerprint(files, settings) != first
    assert json.loads(json.dumps(first)) == first


def test_a_file_that_is_not_there_has_no_fingerprint(tmp_path):
    with pytest.raises(InputError, match=r"No such file: .*A01\.svs"):
        fingerprint({"slide": tmp_path / "A01.svs"})


def test_an_input_error_becomes_its_message_and_exit_code_2(capsys):
    def main():
        raise InputError("Unpack the archive first.")

    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "InputError: Unpack the archive first.\n"
