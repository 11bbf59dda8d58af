"""What a reproduction is said to take."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import slides_of_the_paper

from bach import effort
from bach.honest.splits import read_folds
from bach.patches import NETWORK_SIZE
from bach.reproduce import parse_args

ROOT = Path(__file__).resolve().parent.parent


def test_the_work_is_that_of_the_papers_epochs_on_the_committed_folds():
    folds = read_folds(ROOT / "folds/part_a.csv")
    photos = folds.assign(patches=14)
    seen = slides_of_the_paper()
    slides = pd.concat([seen, seen.assign(annotated=False, mined=0)])
    work = effort.workload(parse_args(["--bn-patches", "0"]), photos, slides, 5)
    # 145 photos are held out once each: 3 x 5,600 - 14 x 145 patches an epoch.
    assert work["part_a"] == (25 * 14_770, 26 * 14 * 145)
    assert work["hard_examples"] == (0, 3 * 100_000)
    # Each of five models trains on four fifths of 5,900 hard examples.
    assert work["final"] == (15 * (5 * 5600 + 4 * 5900), 16 * 5900)
    assert work["heatmaps"] == (0, 200_000 + 5 * 200_000)


def test_the_estimate_says_time_disk_and_memory_of_what_is_left():
    rates = {"train": 10.0, "predict": 100.0, "memory": 3 * 10**9, "devices": 1, "parameters": 10}
    work = {"part_a": (36_000.0, 0.0), "hard_examples": (0.0, 6000.0)}
    text = effort.estimate_text(work, rates, [], 5 * 10**9, 70 * 10**9, {"part_a": 3})
    assert "about 1 h 1 min" in text
    assert "3 x 35 min" in text
    assert "5.0 GB in all, 70.0 GB free" in text
    assert "3.0 GB while training" in text
    rest = effort.estimate_text(work, rates, ["part_a"], 0, 0, {"part_a": 3})
    assert "about 1 min 0 s" in rest
    assert "finished" in rest


def test_the_disk_estimate_counts_patches_and_models():
    slides = slides_of_the_paper().assign(pixels=0)
    size = effort.disk_bytes(parse_args([]), 5600, slides, models=8, parameters=54_000_000)
    patches = (5600 + 5900) * NETWORK_SIZE**2 * 3
    assert size == patches + 8 * 3 * 4 * 54_000_000 + 8 * 54_000_000


def test_always_benign_needs_the_annotation_alone():
    truth = np.repeat(np.arange(4, dtype=np.uint8), 100).reshape(20, 20)
    tissue = truth == 1
    scores = effort.benign_scores(truth, tissue)
    assert scores["benign"] == pytest.approx(0.6)  # classes equally likely
    assert scores["benign_tissue"] == 1
    assert np.isnan(effort.benign_scores(truth, np.zeros_like(tissue))["benign_tissue"])
