"""Training that is killed or interrupted: nothing is lost, nothing half is left."""

import json
import signal

import keras
import pandas as pd
import pytest
from commands import kill_when, part_a_words, start


def test_ctrl_c_leaves_nothing_half_and_says_how_to_go_on(toy, tmp_path):
    run = tmp_path / "run"
    words = part_a_words(toy, run, "--limit", "3", "--fold", "0")
    words[words.index("--epochs") + 1] = "20"
    out, code = kill_when(
        ["train_part_a.py", *words], (run / "fold_0/state.npz").exists, how=signal.SIGINT
    )
    assert code == 130, out
    assert "interrupted; the same command with --resume goes on" in out
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert {path.name for path in run.rglob(".*")} == {".lock"}
    assert not (run / "metrics.json").exists()
    assert keras.models.load_model(run / "fold_0/last.keras").output_shape == (None, 4)


@pytest.mark.slow
def test_training_killed_in_its_second_fold_ends_as_if_it_had_not_been(toy, tmp_path):
    def command(name, *more):
        words = part_a_words(toy, tmp_path / name, "--limit", "3", *more)
        words[words.index("--epochs") + 1] = "2"
        return ["train_part_a.py", *words]

    state = tmp_path / "killed/fold_1/state.npz"
    kill_when(command("killed"), state.exists)
    assert not (tmp_path / "killed/metrics.json").exists()
    resumed = start(command("killed", "--resume"))
    whole = start(command("whole"))
    out, _ = resumed.communicate()
    assert resumed.returncode == 0, out
    assert "fold 0: finished before" in out
    assert "going on after epoch 1 of 2" in out
    out, _ = whole.communicate()
    assert whole.returncode == 0, out
    one, other = (pd.read_csv(tmp_path / n / "predictions.csv") for n in ("killed", "whole"))
    pd.testing.assert_frame_equal(one, other, atol=1e-4)
