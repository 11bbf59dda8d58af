"""The reproduction: what it runs, what it says, and its table."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach.classes import CLASSES, PREFIXES
from bach.core import options
from bach.core.commands import ROOT
from bach.core.errors import InputError
from bach.core.run import locked
from bach.honest.splits import read_folds
from bach.reproduce import __main__ as reproduce
from bach.reproduce.plan import Options, PassedOn, choose_folds, commands


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


def test_the_plain_command_gives_the_scripts_the_papers_settings():
    steps = commands(Options(run_dir="r"), Path("a.csv"), Path("b.csv"))
    assert list(steps) == ["part_a", "hard_examples", "final", "heatmaps"]
    where = {"--data-dir", "--run-dir", "--folds", "--model-dir", "--part-a-dir"}
    where |= {"--hard-examples-dir"}
    for words in steps.values():
        assert {word for word in words if word.startswith("--")} - {"--epochs"} <= where
    assert train_part_a.parse_args(steps["part_a"][1:]).epochs == 25
    assert train_final.parse_args(steps["final"][1:]).epochs == 15
    assert options.words(Options(run_dir="r"), PassedOn) == []


def test_options_reach_the_scripts_that_have_them_and_are_understood_there():
    args = Options(
        run_dir="r",
        backbone="small",
        weights="none",
        epochs=2,
        epochs_final=3,
        batch_size=8,
        limit=4,
        mpp=0.5,
        step_um=300.0,
        in_sample=True,
    )
    steps = commands(args, Path("a.csv"), Path("b.csv"))
    part_a = train_part_a.parse_args(steps["part_a"][1:])
    assert (part_a.backbone, part_a.epochs, part_a.limit) == ("small", 2, 4)
    assert train_final.parse_args(steps["final"][1:]).epochs == 3
    every = train_final.parse_args(steps["final_all"][1:])
    assert (every.epochs, every.fold) == (3, "none")
    mining = mine_hard_examples.parse_args(steps["hard_examples"][1:])
    assert (mining.batch_size, mining.mpp) == (8, 0.5)
    heat = make_heatmap.parse_args(steps["heatmaps_in_sample"][1:])
    assert (heat.step_um, heat.part, heat.batch_size) == (300, "B", 8)
    assert heat.model_dir == train_final.parse_args(steps["final_all"][1:]).run_dir


def test_the_challenges_data_get_the_committed_folds(tmp_path):
    args = Options(data_dir=str(_challenge(tmp_path / "data")))
    folds_a, folds_b, is_bach = choose_folds(args, tmp_path)
    assert is_bach
    assert folds_a.resolve() == ROOT / "folds/part_a.csv"
    assert folds_b.resolve() == ROOT / "folds/part_b.csv"


def test_other_data_with_the_same_names_do_not_get_the_challenges_patients(tmp_path):
    data = _challenge(tmp_path / "data", photos=6, slides=2)
    ids = [f"{prefix}{n:03}" for prefix in PREFIXES for n in range(1, 7)]
    patients = [f"Q{n % 6}" for n in range(24)]
    table = pd.DataFrame({"image_id": ids, "patient": patients})
    table.to_csv(data / "patients.csv", index=False)
    args = Options(data_dir=str(data))
    folds_a, folds_b, is_bach = choose_folds(args, tmp_path)
    assert not is_bach
    made = read_folds(folds_a)
    assert set(made["patient"]) == set(patients)
    assert sorted(set(made["fold"])) == [0, 1, 2]
    assert sorted(read_folds(folds_b)["fold"]) == [0, 1]
    # Again, as after a kill: the same tables.
    assert choose_folds(args, tmp_path)[:2] == (folds_a, folds_b)


# What is said beforehand


def test_problems_of_the_data_stop_the_run_unless_they_are_to_be_ignored(tmp_path, capsys):
    data = str(_challenge(tmp_path / "data", photos=1, slides=1))
    with pytest.raises(InputError, match="--ignore-problems"):
        reproduce.check(Options(data_dir=data))
    found = capsys.readouterr().out.count("problem: ")
    assert found >= 5  # four empty photos, one empty slide
    assert reproduce.check(Options(data_dir=data, ignore_problems=True)) == found


def test_a_second_reproduction_in_the_same_folder_is_refused(tmp_path):
    data = str(_challenge(tmp_path / "data", photos=1, slides=1))
    with (
        locked(tmp_path / "run", "it again"),
        pytest.raises(InputError, match=r"Another process is at work(.|\n)*the same command again"),
    ):
        reproduce.main(["--data-dir", data, "--run-dir", str(tmp_path / "run")])


def test_a_wrong_data_folder_leaves_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        reproduce.main(["--data-dir", str(tmp_path / "no"), "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


# The whole


@pytest.mark.slow
def test_the_table_comes_out_also_after_a_kill_in_the_middle(toy, tmp_path):
    folds = pd.read_csv(toy / "part_a.csv")
    folds["fold"] = folds["fold"].replace({2: 1})  # two rounds are enough here
    folds.to_csv(tmp_path / "folds_a.csv", index=False)
    folds = pd.DataFrame({"image_id": ["A01", "A02"], "fold": [0, -1]})  # and one of slides
    folds.to_csv(tmp_path / "folds_b.csv", index=False)
    run = tmp_path / "run"
    words = [sys.executable, "-m", "bach.reproduce", "--data-dir", str(toy), "--run-dir", str(run)]
    words += [f"--folds-{part}={tmp_path}/folds_{part}.csv" for part in "ab"]
    settings = "--limit 2 --backbone small --weights none --epochs 1 --bn-patches 16 "
    settings += "--batch-size 16 --hard-examples 20 --stride-um 300.0 --step-um 600.0"
    words += settings.split()
    first = run / "part_a/fold_0/heldout.npy"
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 900
    while not first.exists():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the script that runs as well
    process.wait()
    before = first.stat().st_mtime_ns
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert first.stat().st_mtime_ns == before
    assert done.stdout.splitlines()[-1] == str(run / "reproduction.md")
    text = (run / "reproduction.md").read_text()
    assert text in done.stdout
    assert "# What it takes" in done.stdout
    assert "at the speed of part_a here" in done.stdout
    assert "These are not the challenge's data" in text
    assert f"Not the paper's settings: `{settings}`" in text
    # The only model saw A02.
    seen = re.findall(r"^\| (A0[12]) .*\| ([^|]*?) +\|$", text, re.MULTILINE)
    assert seen == [("A01", "no"), ("A02", "yes: in sample")]
    accuracy = re.search(r"four-class accuracy +\| 0\.79 .*?\| (\S+) \[", text).group(1)
    table = pd.read_csv(run / "part_a/predictions.csv")
    assert float(accuracy) == pytest.approx((table["label"] == table["predicted"]).mean(), abs=1e-3)
    # Always Benign of the annotation alone is what the scorer of the heatmaps finds.
    survey = pd.read_csv(run / "slides.csv").set_index("image_id")["benign"].dropna()
    heat = pd.read_csv(run / "heatmaps/slides.csv").set_index("image_id")["baseline"].dropna()
    assert len(survey) == 2
    assert survey.to_dict() == pytest.approx(heat.to_dict())
