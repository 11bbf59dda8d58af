"""Files that are whole or not there, JSON, fingerprints."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bach.core.errors import InputError
from bach.core.files import (
    atomic_folder,
    atomic_path,
    clear_temporary,
    fingerprint,
    read_json,
    read_object,
    require_place,
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
    with pytest.raises(InputError, match=r"A01\.svs must be a readable file"):
        fingerprint({"slide": tmp_path / "A01.svs"})


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/x.csv", "file is no folder"),
        ("folder", "it is no file"),
        ("/dev/null", "it is no file"),
        ("n" * 300, "name too long"),
        ("/proc/none/x.csv", "No such file"),
        ("/sys/kernel/x.csv", "not permitted|Permission denied"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_and_when_it_is_written(
    tmp_path, place, said
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(
            InputError, match=rf"{place} must be a place that can be written(?s:.)*{said}"
        ),
        atomic_path(tmp_path / place) as temporary,
    ):
        temporary.write_text("new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize("place", ["file/x/y", "n" * 300, "a\0b"])
def test_a_place_that_can_never_be_made_is_refused_early(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must be a place that can be written(?s:.)*Another\."):
        require_place(tmp_path / place, "Another.")
    require_place(tmp_path / "new/folder", "Another.")
    require_place(tmp_path, "Another.", folder=True)
    require_place(tmp_path / "file", "Another.")
    for place, folder in ((tmp_path, False), (tmp_path / "file", True)):
        with pytest.raises(InputError, match="but is there"):
            require_place(place, "Another.", folder)


def test_an_error_about_another_file_is_not_taken_for_one_of_the_place(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.csv"):
        (tmp_path / "elsewhere/none").read_text()


def test_what_killed_writers_left_is_removed_and_what_a_live_one_writes_stays(tmp_path):
    code = (
        "import os, sys; from bach.core.files import atomic_path, atomic_folder\n"
        "with atomic_path(sys.argv[1] + '/a.npy') as t, atomic_folder(sys.argv[1] + '/b') as f:\n"
        "    t.write_text('half'); (f / 'c').write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "in")], check=False)
    assert len(list((tmp_path / "in").iterdir())) == 2
    (tmp_path / "in/.hidden.npy").touch()
    with atomic_path(tmp_path / "in/live.npy") as live:
        clear_temporary(tmp_path)
        assert set((tmp_path / "in").iterdir()) == {live, tmp_path / "in/.hidden.npy"}
        live.write_text("new")
    assert (tmp_path / "in/live.npy").read_text() == "new"


def test_the_next_writer_of_a_file_removes_what_the_last_one_left(tmp_path):
    left = tmp_path / ".a.unfinished-12345678.npy"
    left.touch()
    write_array(tmp_path / "b.npy", np.eye(2))
    assert left.exists()
    write_array(tmp_path / "a.npy", np.eye(2))
    assert not left.exists()


def test_a_name_that_just_fits_can_be_written(tmp_path):
    for name in ("é" * 120 + ".csv", "a." + "b" * 240 + ".csv"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"


def test_an_object_of_json_has_the_kinds_of_fields_it_should(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1, "b": None, "c": ["x"]})
    assert read_object(file, "Mend it.", a=float, b=dict, c=list, d=str)["a"] == 1
    with pytest.raises(
        InputError, match=r"Field 'c' of .*x\.json must be of kind object(?s:.)*Mend"
    ):
        read_object(file, "Mend it.", c=dict)
    for text in ("[1]", "null", "3", '"x"'):
        file.write_text(text)
        with pytest.raises(InputError, match=r"must hold a JSON object(?s:.)*Mend it"):
            read_object(file, "Mend it.")
    file.write_text('{"a": NaN}')
    with pytest.raises(InputError, match="NaN, which is no number"):
        read_json(file, "Mend it.")
