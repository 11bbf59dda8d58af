"""What a reproduction is said to take."""

import shutil

import numpy as np
import pandas as pd
import pytest
from made_up import slides_of_the_paper

from bach.annotations import Region
from bach.classes import BENIGN
from bach.core.commands import ROOT
from bach.core.errors import InputError
from bach.honest.splits import read_folds
from bach.reproduce import estimate
from bach.reproduce.plan import Options
from bach.tasks import BACH
from bach.toy.aperio import write_annotation_xml, write_slide


def test_the_work_is_that_of_the_papers_epochs_on_the_committed_folds():
    photos = read_folds(ROOT / "folds/part_a.csv").assign(patches=14)
    seen = slides_of_the_paper()
    slides = pd.concat([seen, seen.assign(annotated=False, mined=0)])
    work = estimate.workload(Options(bn_patches=0), photos, slides, 5)
    # 145 photos are held out once each: 3 x 5,600 - 14 x 145 patches per epoch.
    assert work["part_a"] == (25 * 14_770, 26 * 14 * 145)
    assert work["hard_examples"] == (0, 3 * 100_000)
    # Each of five models trains on four fifths of 5,900 hard examples.
    assert work["final"] == (15 * (5 * 5600 + 4 * 5900), 16 * 5900)
    assert work["heatmaps"] == (0, 200_000 + 5 * 200_000)
    assert "final_all" not in work
    more = estimate.workload(Options(bn_patches=100, in_sample=True), photos, slides, 5)
    # Batch normalisation is estimated anew after each epoch.
    assert more["part_a"] == (work["part_a"][0], work["part_a"][1] + 25 * 3 * 100)
    assert more["final_all"] == (15 * (5600 + 5900), 15 * 100)
    assert more["heatmaps_in_sample"] == (0, 200_000)
    few = estimate.workload(Options(patches_per_photo=2, frozen_bn=True), photos, slides, 5)
    assert few["part_a"] == (25 * 2 * (3 * 400 - 145), 26 * 14 * 145)
    assert few["final"][0] == 15 * (5 * 2 * 400 + 4 * 5900)


def test_a_prediction_takes_a_third_of_a_training_step():
    text = estimate.estimate({"part_a": (600.0, 1800.0)}, [], speed=10.0)
    assert "about 2 min 0 s" in text
    assert "at the speed of part_a here" in text


def test_before_anything_is_trained_the_papers_speed_stands_in():
    work = {"part_a": (67.0 * 3600, 0.0), "final": (67.0 * 60, 0.0)}
    text = estimate.estimate(work, [], speed=None)
    assert "time at 67 patches/s" in text
    assert "about 1 h 1 min" in text
    assert "first epoch" in text
    assert "35 to 40 min per training" in text


def test_what_is_finished_takes_no_more_time():
    work = {"part_a": (36_000.0, 0.0), "final": (600.0, 0.0)}
    text = estimate.estimate(work, ["part_a"], speed=10.0)
    assert "about 1 min 0 s" in text
    assert "finished" in text


def test_the_speed_is_that_of_the_median_epoch_of_step_1(tmp_path):
    assert estimate.measured_speed(tmp_path) is None
    # The first epoch of a fold compiles.
    for fold, rates in enumerate(([2.0, 10.0, 11.0], [3.0, 12.0])):
        folder = tmp_path / f"fold_{fold}"
        folder.mkdir()
        table = pd.DataFrame({"epoch": range(1, len(rates) + 1), "patches_per_s": rates})
        table.to_csv(folder / "history.csv", index=False)
    assert estimate.measured_speed(tmp_path) == 10.0


def test_the_disk_estimate_counts_patches_and_models():
    slides = slides_of_the_paper().assign(pixels=0)
    size = estimate.disk_bytes(Options(), 5600, slides, models=8)
    patches = (5600 + 5900) * BACH.side_px**2 * 3
    assert size == patches + 8 * 3 * 4 * 57_500_000 + 8 * 57_500_000
    assert estimate.disk_bytes(Options(backbone="small"), 5600, slides, models=8) < size


def test_a_disk_that_is_too_small_is_refused_but_for_what_lies_there_already(tmp_path):
    assert "0.5 GB in all" in estimate.check_room(tmp_path, 5 * 10**8)
    needed = shutil.disk_usage(tmp_path).free + 5 * 10**9
    with pytest.raises(InputError, match="must have room for"):
        estimate.check_room(tmp_path, needed)
    (tmp_path / "part_a").mkdir()
    with (tmp_path / "part_a/patches.npy").open("wb") as file:
        file.truncate(10**10)  # a hole, which takes no room itself
    estimate.check_room(tmp_path, needed)


def test_always_benign_needs_the_annotation_alone():
    truth = np.repeat(np.arange(4, dtype=np.uint8), 100).reshape(20, 20)
    tissue = truth == BENIGN
    scores = estimate.benign_scores(truth, tissue)
    assert scores["benign"] == pytest.approx(0.6)  # classes equally likely
    assert scores["benign_tissue"] == 1
    assert np.isnan(estimate.benign_scores(truth, np.zeros_like(tissue))["benign_tissue"])


def test_the_survey_counts_what_mining_and_heatmaps_predict(tmp_path):
    folder = tmp_path / "ICIAR2018_BACH_Challenge/WSI"
    folder.mkdir(parents=True)
    pixels = np.full((3200, 3200, 3), 245, np.uint8)
    pixels[:, :1600] = (190, 90, 160)  # stained
    for name in ("A01", "A02"):
        write_slide(folder / f"{name}.svs", pixels)
    corners = np.array([(0, 0), (1600, 0), (1600, 3200), (0, 3200)], float)
    write_annotation_xml(folder / "A01.xml", [Region(BENIGN, corners)])
    args = Options(data_dir=str(tmp_path), stride_um=320 * 0.467, step_um=800 * 0.467)
    table = estimate.survey(args).set_index("image_id")
    # Patches of 1,345 px: their left edges at 0, 320 and 640 px have 70% tissue.
    assert table["annotated"].tolist() == [True, False]
    assert table["mined"].tolist() == [3 * 7, 0]
    # Of 4 x 4 cells, the last column looks at bare glass.
    assert table["cells"].tolist() == [12, 12]
    assert table["pixels"].tolist() == [200 * 200] * 2
    # On bare glass Benign is wrong by one class of at most three.
    assert table.loc["A01", "benign"] == pytest.approx(1 - 1 / (2 + 3))
    assert table.loc["A01", "benign_tissue"] == 1
    assert np.isnan(table.loc["A02", "benign"])
