"""The reproduction: what it runs, what it says beforehand, and its table."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bach import reproduce
from bach.classes import CLASSES, PREFIXES
from bach.core.errors import InputError
from bach.demo import call
from bach.honest.splits import read_folds

ROOT = Path(__file__).resolve().parent.parent


def _args(*words):
    return reproduce.parse_args(words)


def _challenge(path, photos=None, slides=10):
    """The layout of the challenge's data with empty files."""
    root = path / "ICIAR2018_BACH_Challenge"
    for prefix, name in zip(PREFIXES, CLASSES, strict=True):
        folder = root / "Photos" / name
        folder.mkdir(parents=True)
        for number in range(1, (photos or 100) + 1):
            (folder / f"{prefix}{number:03}.tif").touch()
    (root / "WSI").mkdir()
    for number in range(1, slides + 1):
        for suffix in ("svs", "xml"):
            (root / "WSI" / f"A{number:02}.{suffix}").touch()
    return path


# What is run


def test_the_plain_command_passes_no_option_to_the_scripts_but_where_things_lie():
    steps = reproduce.commands(_args("--run-dir", "r"), Path("a.csv"), Path("b.csv"))
    assert list(steps) == ["part_a", "hard_examples", "final", "heatmaps"]
    for words in steps.values():
        options = {word for word in words if word.startswith("--")}
        assert options <= {
            "--data-dir", "--run-dir", "--folds", "--model-dir", "--part-a-dir",
            "--hard-examples-dir",
        }  # fmt: skip
    assert reproduce.changed(_args()) == []


def test_options_reach_the_scripts_that_have_them_and_are_understood_there():
    import make_heatmap
    import mine_hard_examples
    import train_final
    import train_part_a

    args = _args(
        "--backbone", "small", "--weights", "none", "--epochs", "2", "--epochs-final", "3",
        "--batch-size", "8", "--limit", "4", "--step-um", "300", "--in-sample",
    )  # fmt: skip
    steps = reproduce.commands(args, Path("a.csv"), Path("b.csv"))
    part_a = train_part_a.parse_args(steps["part_a"][1:])
    assert (part_a.backbone, part_a.epochs, part_a.limit) == ("small", 2, 4)
    assert train_final.parse_args(steps["final"][1:]).epochs == 3
    every = train_final.parse_args(steps["final_all"][1:])
    assert (every.epochs, every.fold) == (3, "none")
    assert mine_hard_examples.parse_args(steps["hard_examples"][1:]).batch_size == 8
    heat = make_heatmap.parse_args(steps["heatmaps_in_sample"][1:])
    assert (heat.step_um, heat.part, heat.batch_size) == (300, "B", 8)
    assert "`--epochs-final 3`" in reproduce.changed(args)


def test_the_challenges_data_get_the_committed_folds(tmp_path):
    args = _args("--data-dir", str(_challenge(tmp_path / "data")))
    folds_a, folds_b, is_bach = reproduce.choose_folds(args, tmp_path)
    assert is_bach
    assert folds_a.resolve() == ROOT / "folds/part_a.csv"
    assert folds_b.resolve() == ROOT / "folds/part_b.csv"


def test_other_data_with_the_same_names_do_not_get_the_challenges_patients(tmp_path):
    data = _challenge(tmp_path / "data", photos=6, slides=2)
    ids = [f"{prefix}{n:03}" for prefix in PREFIXES for n in range(1, 7)]
    patients = [f"Q{n % 6}" for n in range(24)]
    table = pd.DataFrame({"image_id": ids, "patient": patients})
    table.to_csv(data / "patients.csv", index=False)
    args = _args("--data-dir", str(data))
    folds_a, folds_b, is_bach = reproduce.choose_folds(args, tmp_path)
    assert not is_bach
    made = read_folds(folds_a)
    assert set(made["patient"]) == set(patients)
    assert sorted(set(made["fold"])) == [0, 1, 2]
    assert sorted(read_folds(folds_b)["fold"]) == [0, 1]
    # Again, as after a kill: the same tables.
    assert reproduce.choose_folds(args, tmp_path)[:2] == (folds_a, folds_b)


# What is said beforehand


def test_problems_of_the_data_stop_the_run_unless_they_are_to_be_ignored(tmp_path, capsys):
    data = str(_challenge(tmp_path / "data", photos=1, slides=1))
    with pytest.raises(InputError, match="--ignore-problems"):
        reproduce.check(_args("--data-dir", data))
    found = capsys.readouterr().out.count("problem: ")
    assert found >= 5  # four empty photos, one empty slide
    assert reproduce.check(_args("--data-dir", data, "--ignore-problems")) == found


# Kills


def test_a_plain_kill_ends_the_running_script_too(tmp_path):
    code = (
        "import os, signal, sys, time; print(os.getpid(), flush=True); "
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), reproduce.interruptible():
        call(["-c", code], shown=["a script"])
    assert time.monotonic() - start < 30
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_script_that_outlived_a_kill_is_waited_for(tmp_path):
    with reproduce.alone(tmp_path) as pass_fds:
        left = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(2)"], pass_fds=pass_fds
        )
    start = time.monotonic()
    with reproduce.alone(tmp_path):
        assert time.monotonic() - start > 0.5
        assert left.wait(timeout=10) == 0


def test_the_table_comes_out_also_after_a_kill_in_the_middle(toy, tmp_path):
    folds = pd.read_csv(toy / "part_a.csv")
    folds["fold"] = folds["fold"].replace({2: 1})  # two rounds are enough here
    folds.to_csv(tmp_path / "folds_a.csv", index=False)
    folds = pd.DataFrame({"image_id": ["A01", "A02"], "fold": [0, -1]})  # and one of slides
    folds.to_csv(tmp_path / "folds_b.csv", index=False)
    run = tmp_path / "run"
    words = [
        sys.executable, "-m", "bach.reproduce", "--data-dir", str(toy), "--run-dir", str(run),
        "--folds-a", str(tmp_path / "folds_a.csv"), "--folds-b", str(tmp_path / "folds_b.csv"),
        "--backbone", "small", "--weights", "none",
        "--epochs", "1", "--batch-size", "16", "--bn-patches", "16", "--hard-examples", "20",
        "--stride-um", "300", "--step-um", "600", "--limit", "2",
    ]  # fmt: skip
    first = run / "part_a/fold_0/heldout.npy"
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = first.stat().st_mtime_ns
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert first.stat().st_mtime_ns == before
    assert done.stdout.splitlines()[-1] == str(run / "reproduction.md")
    text = (run / "reproduction.md").read_text()
    assert text in done.stdout
    assert "These are not the challenge's data" in text
    assert "`--backbone small`" in text
    # The only model saw A02.
    seen = re.findall(r"^\| (A0[12]) .*\| ([^|]*?) \|$", text, re.MULTILINE)
    assert seen == [("A01", "no"), ("A02", "yes: in sample")]
    accuracy = re.search(r"four-class accuracy +\| 0\.79 .*?\| (\S+) \[", text).group(1)
    table = pd.read_csv(run / "part_a/predictions.csv")
    assert float(accuracy) == pytest.approx((table["label"] == table["predicted"]).mean(), abs=1e-3)
    # Always Benign of the annotation alone is what the scorer of the heatmaps finds.
    survey = pd.read_csv(run / "slides.csv").set_index("image_id")["benign"].dropna()
    heat = pd.read_csv(run / "heatmaps/slides.csv").set_index("image_id")["baseline"].dropna()
    assert len(survey) == 2
    assert survey.to_dict() == pytest.approx(heat.to_dict())
