"""The reproduction: what it runs, what it says beforehand, and its table."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bach import reproduce
from bach.classes import CLASSES, PREFIXES
from bach.comparison import ALWAYS_BENIGN
from bach.demo import call
from bach.folds import read_folds
from bach.intervals import score_interval
from bach.patches import NETWORK_SIZE
from bach.runs import InputError
from bach.scores import score_from_counts

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


def _slides(**changes):
    """A survey of A01..A10 that gives the paper's figures, but for the changes."""
    table = pd.DataFrame(
        {"image_id": list(ALWAYS_BENIGN), "annotated": True, "mined": 10_000, "cells": 20_000,
         "pixels": 10_000_000, "benign": list(ALWAYS_BENIGN.values()),
         "benign_tissue": list(reproduce.PAPER_TISSUE_BENIGN.values())}
    )  # fmt: skip
    for name, value in changes.items():
        table.loc[table["image_id"] == name, "benign"] = value
    return table


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


def test_the_work_is_that_of_the_papers_epochs_on_the_committed_folds():
    folds = read_folds(ROOT / "folds/part_a.csv")
    photos = folds.assign(patches=14)
    slides = pd.concat([_slides(), _slides().assign(annotated=False, mined=0)])
    work = reproduce.workload(_args("--bn-patches", "0"), photos, slides, 5)
    # 145 photos are held out once each: 3 x 5,600 - 14 x 145 patches an epoch.
    assert work["part_a"] == (25 * 14_770, 26 * 14 * 145)
    assert work["hard_examples"] == (0, 3 * 100_000)
    # Each of five models trains on four fifths of 5,900 hard examples.
    assert work["final"] == (15 * (5 * 5600 + 4 * 5900), 16 * 5900)
    assert work["heatmaps"] == (0, 200_000 + 5 * 200_000)


def test_the_estimate_says_time_disk_and_memory_of_what_is_left():
    rates = {"train": 10.0, "predict": 100.0, "memory": 3 * 10**9, "devices": 1, "parameters": 10}
    work = {"part_a": (36_000.0, 0.0), "hard_examples": (0.0, 6000.0)}
    text = reproduce.estimate_text(work, rates, [], 5 * 10**9, 70 * 10**9, {"part_a": 3})
    assert "about 1 h 1 min" in text
    assert "3 x 35 min" in text
    assert "5.0 GB in all, 70.0 GB free" in text
    assert "3.0 GB while training" in text
    rest = reproduce.estimate_text(work, rates, ["part_a"], 0, 0, {"part_a": 3})
    assert "about 1 min 0 s" in rest
    assert "finished" in rest


def test_the_disk_estimate_counts_patches_and_models():
    slides = _slides().assign(pixels=0)
    size = reproduce.disk_bytes(_args(), 5600, slides, models=8, parameters=54_000_000)
    patches = (5600 + 5900) * NETWORK_SIZE**2 * 3
    assert size == patches + 8 * 3 * 4 * 54_000_000 + 8 * 54_000_000


# The paper's figures


def test_the_papers_figures_are_found_by_where_they_were_measured():
    assert reproduce.published("A", "3-fold", "accuracy") == 0.79
    assert reproduce.published("A", "3-fold", "binary_accuracy") == 0.91
    assert reproduce.published("A", "hidden", "accuracy") == 0.87
    assert reproduce.published("B", "hidden", "score") == 0.6929
    assert reproduce.published("B", "A01-A10", "score") == 0.75
    assert reproduce.published("B", "A01-A10", "score", "always Benign") == 0.60


def test_the_papers_means_follow_from_its_slides():
    assert round(np.mean(list(ALWAYS_BENIGN.values())), 2) == 0.60
    assert round(np.mean(list(reproduce.PAPER_TISSUE_BENIGN.values())), 2) == 0.53
    assert sum(reproduce.PAPER_CANDIDATES.values()) == 53_700


def test_always_benign_needs_the_annotation_alone():
    truth = np.repeat(np.arange(4, dtype=np.uint8), 100).reshape(20, 20)
    tissue = truth == 1
    scores = reproduce.benign_scores(truth, tissue)
    assert scores["benign"] == pytest.approx(0.6)  # classes equally likely
    assert scores["benign_tissue"] == 1
    assert np.isnan(reproduce.benign_scores(truth, np.zeros_like(tissue))["benign_tissue"])


def test_slides_that_score_otherwise_than_in_the_paper_are_named():
    assert "all pixels: 10 of 10" in reproduce.agreement(_slides())
    text = reproduce.agreement(_slides(A03=0.70, A07=0.545))
    assert "all pixels: 9 of 10 slides as in the paper (+-0.01), others on A03;" in text
    assert "9 of 10" in reproduce.agreement(_slides(A03=np.nan))


def test_in_sample_figures_are_marked_and_ours_have_their_interval():
    rng = np.random.default_rng(0)
    records = {}
    for name in ALWAYS_BENIGN:
        counts = rng.integers(1, 100, (4, 4))
        score = score_from_counts(counts)
        records[name] = {
            "counts": counts.tolist(), "score": score, "score_tissue": score, "in_sample": False
        }  # fmt: skip
    text = reproduce.part_b_table(_slides(), {"heatmaps": records})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    row = {line[0]: line for line in lines}
    assert row["score"][1:3] == ["0.75", "A01-A10, IN SAMPLE"]
    assert row["score, tissue only"][1:3] == ["0.79", "A01-A10, IN SAMPLE"]
    assert row["score, hidden test"][1] == "0.6929"
    assert row["score, hidden test"][3] == "not reproducible"
    assert row["always Benign"][1] == "0.60"
    expected = score_interval({name: np.array(r["counts"]) for name, r in records.items()})
    ends = f"{expected['value']:.3f} [{expected['low']:.3f}, {expected['high']:.3f}] (10 slides)"
    assert row["score"][3] == ends
    # A slide that a model saw is not in our figure.
    records["A01"]["in_sample"] = True
    assert "(9 slides)" in reproduce.part_b_table(_slides(), {"heatmaps": records})
    assert "yes: in sample" in reproduce.slides_table(_slides(), records)


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
