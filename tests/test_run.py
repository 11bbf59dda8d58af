"""Run folders: nothing before the start, no overwriting, honest resumption, one at a time."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bach.core import options
from bach.core.errors import InputError
from bach.core.options import again, option
from bach.core.run import Run, locked, patch_folder, read_metrics, read_record


@dataclasses.dataclass(frozen=True)
class Options(options.Shared):
    run_dir: str = again(options.Shared, "run_dir", "runs/x")
    epochs: int = option(25, "passes")
    weights: str = option("none", "where to start", path=True)
    patches_dir: str | None = option(None, "shared patches", path=True)


DEVICE = {"backend": "jax", "devices": 2, "device": "GPU", "precision": "float32"}


def _run(path, **more):
    return Run(Options(run_dir=str(path), **more))


def _finished(path, **more):
    run = _run(path, **more)
    with run.start():
        run.finish({"accuracy": 1.0})


def test_a_run_that_is_only_looked_at_leaves_nothing(tmp_path):
    assert not _run(tmp_path / "run").finished
    assert not (tmp_path / "run").exists()


def test_a_run_tells_its_story_and_ends_with_its_metrics(tmp_path):
    run = _run(tmp_path / "run", epochs=3)
    with run.start(**DEVICE):
        assert read_record(run.path)["status"] == "running"
        assert not (run.path / "metrics.json").exists()
        run.finish({"accuracy": 1.0})
    story = read_record(run.path)
    assert story["status"] == "finished"
    assert story["arguments"]["epochs"] == 3
    assert story["command"] == f"test_run.py --run-dir {run.path} --epochs 3"
    assert (story["backend"], story["devices"]) == ("jax", 2)
    assert story["versions"]["numpy"]
    assert json.loads((run.path / "metrics.json").read_text()) == {"accuracy": 1.0}
    log = (run.path / "log.txt").read_text()
    assert "devices: 2 GPU (jax, float32)" in log
    assert "finished" in log


def test_every_start_stays_in_the_record(tmp_path):
    with pytest.raises(OSError, match="no power"), _run(tmp_path).start(**DEVICE):
        raise OSError("no power")
    with (
        pytest.raises(KeyboardInterrupt),
        _run(tmp_path, resume=True).start(**DEVICE | {"devices": 4}),
    ):
        raise KeyboardInterrupt
    starts = read_record(tmp_path)["starts"]
    assert [start["status"] for start in starts] == ["failed: OSError: no power", "interrupted"]
    assert [start["devices"] for start in starts] == [2, 4]
    assert [start["arguments"]["resume"] for start in starts] == [False, True]


def test_one_that_looked_at_the_folder_before_another_worked_there_is_refused(tmp_path):
    late = _run(tmp_path)
    first = _run(tmp_path)
    with first.start():
        first.finish({"accuracy": 1.0})
    with pytest.raises(InputError, match="in the meantime"), late.start():
        pass
    assert read_metrics(tmp_path) == {"accuracy": 1.0}
    assert len(read_record(tmp_path)["starts"]) == 1


def test_a_run_is_never_silently_overwritten(tmp_path):
    with _run(tmp_path).start():
        pass
    with pytest.raises(InputError, match=r"an unfinished run[\s\S]*--resume"):
        _run(tmp_path)
    _finished(tmp_path, resume=True)
    with pytest.raises(InputError, match="a finished run"):
        _run(tmp_path)
    assert _run(tmp_path, resume=True).finished


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        _run(tmp_path)


def test_a_run_killed_at_its_very_start_can_be_started_again(tmp_path):
    (tmp_path / "log.txt").touch()
    (tmp_path / ".run.abc.json").touch()
    _finished(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"status": ',
        b"",
        b"\xff\xfe{}",
        b"[1, 2]",
        b"null",
        b'{"arguments": [1]}',
        b'{"starts": {}}',
        b'{"starts": [3]}',
        b'{"arguments": {"epochs": NaN}}',
    ],
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        _run(tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"\x00", b"[]", b'{"failed": 3}'])
def test_damaged_metrics_are_named(tmp_path, content):
    _finished(tmp_path)
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json"):
        _run(tmp_path, resume=True)


@pytest.mark.parametrize("place", ["file", "file/run", "n" * 300, "a\0b"])
def test_a_place_where_no_folder_can_be_is_refused_before_the_start(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must be a place(?s:.)*another --run-dir"):
        _run(tmp_path / place)


@pytest.mark.parametrize("place", ["/proc/none/run", "/sys/kernel/run"])
def test_a_folder_that_cannot_be_made_is_refused_at_the_start(place):
    with pytest.raises(InputError, match=f"{place} must be a place"), _run(place).start():
        pass


def test_a_log_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(InputError, match=r"Is a directory"), _run(tmp_path).start():
        pass


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_is_recorded_as_an_interruption(tmp_path, name, code):
    body = (
        "import os, signal, sys; from test_run import _run\n"
        "from bach.core.errors import exit_with\n"
        "def main():\n"
        "    with _run(sys.argv[1]).start():\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "exit_with(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", body, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == code
    assert f"interrupted ({name}); the same command with --resume goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_record(tmp_path)["status"] == f"interrupted ({name})"


def test_a_start_removes_what_a_killed_one_left_half_written(tmp_path):
    with _run(tmp_path).start():
        (tmp_path / "fold_0").mkdir()
    left = [tmp_path / ".run.unfinished-abcdefgh.json", tmp_path / "fold_0/.a.unfinished-1.npz"]
    for file in left:
        file.touch()
    with _run(tmp_path, resume=True).start():
        assert not any(file.exists() for file in left)


def test_one_who_waits_gets_the_folder_when_it_is_free(tmp_path):
    order = []

    def second():
        with locked(tmp_path, "again", wait=True):
            order.append("second")

    with locked(tmp_path, "again"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=60)
    assert order == ["first", "second"]


def test_resuming_with_other_arguments_is_refused_and_names_them(tmp_path):
    with _run(tmp_path, epochs=25).start():
        pass
    with pytest.raises(InputError, match="--epochs: 25 then, 30 now"):
        _run(tmp_path, epochs=30, resume=True)
    assert not _run(tmp_path, epochs=25, resume=True).finished


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_same_file_by_another_path_is_the_same_argument(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model.keras").touch()
    (tmp_path / "link.keras").symlink_to(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    with _run(tmp_path / "run", weights="model.keras").start():
        pass
    monkeypatch.chdir(tmp_path / "elsewhere")
    for same in ("../model.keras", f"{tmp_path}/model.keras", "../link.keras"):
        _run(tmp_path / "run", weights=same, resume=True)
    with pytest.raises(InputError, match=r"--weights: model\.keras then, other\.keras now"):
        _run(tmp_path / "run", weights="other.keras", resume=True)


@pytest.mark.parametrize(("share", "refused"), [(0.0, False), (0.5, True)])
def test_an_option_that_has_gone_since_counts_only_if_it_was_on(tmp_path, share, refused):
    with _run(tmp_path).start():
        pass
    record = read_record(tmp_path)
    record["arguments"]["ordinal"] = share
    (tmp_path / "run.json").write_text(json.dumps(record))
    if refused:
        with pytest.raises(InputError, match=r"--ordinal: 0\.5 then, None now"):
            _run(tmp_path, resume=True)
    else:
        assert not _run(tmp_path, resume=True).finished


def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path):
    code = (
        "import sys; from test_run import _run\n"
        "with _run(sys.argv[1]).start():\n    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as first:
        assert first.stdout.readline() == "in\n"
        second = _run(tmp_path / "run", resume=True)
        with pytest.raises(InputError, match="Another process is at work"), second.start():
            pass
        first.kill()
        first.wait()
    _finished(tmp_path / "run", resume=True)


def test_shared_patches_are_found_by_the_runs_that_follow(tmp_path):
    (tmp_path / "own/patches").mkdir(parents=True)
    assert patch_folder(tmp_path / "own") == tmp_path / "own/patches"
    _finished(tmp_path / "sharing", patches_dir="common")
    assert patch_folder(tmp_path / "sharing") == Path.cwd() / "common"


def test_a_run_is_complete_but_for_what_failed_and_goes_on_with_it(tmp_path):
    run = _run(tmp_path)
    with run.start():
        run.finish({"slides": 3, "failed": ["A02"]})
    assert read_record(tmp_path)["status"] == "complete but for A02"
    again = _run(tmp_path, resume=True)
    assert not again.finished
    with again.start():
        again.finish({"slides": 4, "failed": []})
    assert _run(tmp_path, resume=True).finished


def test_a_finished_run_that_lacks_what_is_asked_for_now_goes_on(tmp_path):
    _finished(tmp_path)
    assert Run(Options(run_dir=str(tmp_path), resume=True), lambda m: "accuracy" in m).finished
    assert not Run(Options(run_dir=str(tmp_path), resume=True), lambda m: "fold 1" in m).finished
