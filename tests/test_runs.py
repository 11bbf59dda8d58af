"""Run folders: whole files, no silent overwriting, honest resumption."""

import argparse
import json

import pytest

from bach import runs


def _args(path, resume=False, **more):
    return argparse.Namespace(run_dir=str(path), resume=resume, data_dir="d", seed=0, **more)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def fail_halfway():
        with runs.atomic_path(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_tells_its_story_and_ends_with_its_metrics(tmp_path):
    run = runs.Run(_args(tmp_path / "run"))
    with run.watch():
        assert json.loads((run.path / "run.json").read_text())["status"] == "running"
        run.finish({"accuracy": 1.0})
    story = json.loads((run.path / "run.json").read_text())
    assert story["status"] == "finished"
    assert story["arguments"]["seed"] == 0
    assert story["versions"]["numpy"]
    assert json.loads((run.path / "metrics.json").read_text()) == {"accuracy": 1.0}
    assert "finished" in (run.path / "log.txt").read_text()


def test_a_run_is_never_silently_overwritten(tmp_path):
    runs.Run(_args(tmp_path))
    with pytest.raises(runs.InputError, match=r"an unfinished run[\s\S]*--resume"):
        runs.Run(_args(tmp_path))


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(runs.InputError, match="not empty"):
        runs.Run(_args(tmp_path))


def test_a_run_killed_at_its_very_start_can_be_started_again(tmp_path):
    (tmp_path / "log.txt").touch()
    (tmp_path / ".run.abc.json").touch()
    assert not runs.Run(_args(tmp_path)).finished


def test_resuming_with_other_arguments_is_refused_and_names_them(tmp_path):
    runs.Run(_args(tmp_path, epochs=25))
    with pytest.raises(runs.InputError, match="--epochs: 25 then, 30 now"):
        runs.Run(_args(tmp_path, resume=True, epochs=30))
    assert not runs.Run(_args(tmp_path, resume=True, epochs=25)).finished


@pytest.mark.parametrize(("then", "now"), [({"ordinal": 0.0}, {}), ({}, {"ordinal": 0.0})])
def test_an_option_that_came_or_went_between_changes_nothing_if_it_is_off(then, now, tmp_path):
    runs.Run(_args(tmp_path, **then))
    assert not runs.Run(_args(tmp_path, resume=True, **now)).finished


@pytest.mark.parametrize(("then", "now"), [({"ordinal": 0.5}, {}), ({}, {"ordinal": 0.5})])
def test_an_option_that_came_or_went_between_is_named_if_it_is_on(then, now, tmp_path):
    runs.Run(_args(tmp_path, **then))
    with pytest.raises(runs.InputError, match="--ordinal: "):
        runs.Run(_args(tmp_path, resume=True, **now))


def test_a_finished_run_is_told_apart(tmp_path):
    runs.Run(_args(tmp_path)).finish({})
    with pytest.raises(runs.InputError, match="a finished run"):
        runs.Run(_args(tmp_path))
    assert runs.Run(_args(tmp_path, resume=True)).finished


def test_how_a_run_ended_is_recorded(tmp_path):
    run = runs.Run(_args(tmp_path))
    with pytest.raises(KeyboardInterrupt), run.watch():
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(OSError, match="disk full"), run.watch():
        raise OSError("disk full")
    assert "failed: OSError" in json.loads((tmp_path / "run.json").read_text())["status"]


def test_an_input_error_becomes_its_message_and_exit_code_2(capsys):
    def main():
        raise runs.InputError("Unpack the archive first.")

    with pytest.raises(SystemExit) as end:
        runs.exit_with(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "InputError: Unpack the archive first.\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (245, "4 min 5 s"), (7380, "2 h 3 min")]
)
def test_durations_read_well(seconds, text):
    assert runs.duration(seconds) == text
