"""Two stages, from trial slides with figures to points; and the steps before."""

import json

import numpy as np
import pandas as pd
import pytest

import mine_hard_examples
import train_part_a
from bach import folds, two_stages
from bach.core.errors import InputError
from bach.points import read_points
from bach.toy.figures import Figures, make_figures

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    recipe = Figures(
        patients=2, slides=2, test_slides=1, figures=6, imposters=4, slide_size=(768, 768)
    )
    return make_figures(tmp_path_factory.mktemp("mitosis ü") / "data", recipe)


@pytest.fixture(scope="module")
def part_a(data):
    make = ["make", "--task", "mitosis", "--folds", "2", "--part"]
    folds.main([*make, "a", "--images", f"{data}/images.csv", "--out", f"{data}/a.csv"])
    folds.main([*make, "b", "--data-dir", str(data), "--out", f"{data}/b.csv"])
    words = ["--task", "mitosis", "--images", f"{data}/images.csv", "--folds", f"{data}/a.csv"]
    words += ["--backbone", "small", "--weights", "none", "--epochs", "4", "--batch-size", "8"]
    words += ["--learning-rate", "0.01", "--bn-patches", "32", "--run-dir", f"{data}/part_a"]
    train_part_a.main(words)
    return data / "part_a"


def test_a_photo_is_one_patch(data, part_a):
    photos = pd.read_csv(data / "images.csv")
    patches = pd.read_csv(part_a / "patch_predictions.csv")
    assert len(patches) == len(photos)
    assert set(patches["label"]) == {0, 1}


def test_hard_examples_are_what_is_marked_and_false_positives(data, part_a):
    words = ["--data-dir", str(data), "--folds", f"{data}/b.csv", "--model-dir", str(part_a)]
    words += ["--hardest", "1", "--hard-examples", "40", "--run-dir", f"{data}/hard"]
    mine_hard_examples.main(words)
    hard = pd.read_csv(data / "hard" / "hard_examples.csv")
    truth = read_points(data / "truth" / "points.csv")
    truth = truth[truth["name"] == "Mitotic figure"]
    assert set(hard["label"]) == {0, 1}
    for row in hard.itertuples():
        own = truth[truth["image_id"] == row.image_id]
        away = np.hypot(own["x"] - row.x - 32, own["y"] - row.y - 32).min() * 0.25
        assert away <= 4 if row.label else away > 8


def test_proposals_are_judged_and_findings_are_apart_and_scored(data, part_a, capsys):
    words = ["--model-dir", str(part_a), "--slides", f"{data}/test_slides"]
    words += ["--truth", f"{data}/truth/points.csv", "--search", "--out", f"{data}/found"]
    assert two_stages.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{data}/found"
    proposals = read_points(data / "found" / "proposals.csv")
    found = read_points(data / "found" / "points.csv")
    assert len(proposals) > len(found) > 0
    assert proposals["score"].between(0, 1).all()
    places = found[["x_um", "y_um"]].to_numpy()
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert (apart[apart > 0] > 8).all()
    scores = json.loads((data / "found" / "scores.json").read_text())
    assert sum(case["tp"] + case["fn"] for case in scores["cases"]) == 6
    assert scores["in_sample"] is False


def test_two_stages_need_slides(part_a):
    with pytest.raises(InputError, match="--slides"):
        two_stages.main(["--model-dir", str(part_a)])
