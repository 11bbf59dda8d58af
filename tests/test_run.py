"""Run folders: nothing before the start, no overwriting, honest resumption, one at a time."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bach.core import options
from bach.core.errors import InputError
from bach.core.options import again, option
from bach.core.run import Run, patch_folder, read_record


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


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(InputError, match=r"run\.json must hold JSON"):
        _run(tmp_path, resume=True)


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
