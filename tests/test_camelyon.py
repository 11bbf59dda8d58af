"""CAMELYON16 on painted nodes, through all steps: drawn, trained, mined, trained again, scored."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import make_heatmap
import mine_hard_examples
import train_final
from bach import froc, tasks
from bach.core.errors import InputError
from bach.honest.seen import read_seen
from bach.toy.nodes import Nodes, make_nodes

pytestmark = pytest.mark.slow

COARSE = 1.944  # um per px

# The task at an eighth of its pixels, for slides that are as coarse.
SMALLER = {"photo_mpp": "2.0", "patch_px": "96", "side_px": "96", "stride_px": "64"}


@pytest.fixture(scope="module", autouse=True)
def bach_again():
    yield
    tasks.use("bach")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lymph ü")
    recipe = Nodes(
        slides=2,
        normal_slides=2,
        test_slides=2,
        diameters_mm=(0.9,),
        mpp=COARSE,
        stain_shift=0.3,
    )
    make_nodes(folder / "nodes", recipe)
    text = (Path(tasks.__file__).parent / "camelyon16.toml").read_text()
    lines = [
        f"{name} = {SMALLER.get(name, value)}"
        if (name := line.split(" = ")[0]) in SMALLER
        else line
        for line in text.splitlines()
        for value in [line.partition(" = ")[2]]
    ]
    (folder / "small nodes.toml").write_text("\n".join(lines))
    return folder


def slides(data, kind="slides"):
    return ["--slides", str(data / "nodes" / kind), "--tissue", "gray"]


NETWORK = ["--backbone", "small", "--weights", "none", "--head", "softmax", "--epochs", "2"]


@pytest.fixture(scope="module")
def drawn(data):
    run = data / "drawn"
    words = ["--task", str(data / "small nodes.toml"), *slides(data), "--folds", "none"]
    words += ["--draw", "uniform", "--hard-examples", "160", "--run-dir", str(run)]
    assert mine_hard_examples.main(words) == 0
    return run


def test_patches_are_drawn_without_a_model(data, drawn):
    table = pd.read_csv(drawn / "hard_examples.csv")
    counts = table.groupby(["label", "image_id"]).size()
    assert counts[0].to_dict() == dict.fromkeys(
        ["normal_001", "normal_002", "tumor_001", "tumor_002"], 20
    )
    assert counts[1].to_dict() == {"tumor_001": 40, "tumor_002": 40}
    assert table["tissue"].min() < 0.7  # edges of the tissue too
    assert np.load(drawn / "patches" / "patches.npy", mmap_mode="r").shape == (160, 96, 96, 3)
    assert (drawn / "drawn.png").exists()
    assert (drawn / "slides" / "normal_001.png").exists()
    metrics = json.loads((drawn / "metrics.json").read_text())
    assert metrics["hard_examples"] == {"Normal": 80, "Tumor": 80}
    assert not (drawn / "candidates.csv").exists()


def test_the_same_seed_draws_the_same_and_a_resumed_run_has_nothing_to_do(data, drawn, capsys):
    words = ["--task", str(data / "small nodes.toml"), *slides(data), "--folds", "none"]
    words += ["--draw", "uniform", "--hard-examples", "160"]
    again = data / "drawn again"
    assert mine_hard_examples.main([*words, "--run-dir", str(again)]) == 0
    one, two = ((run / "hard_examples.csv").read_bytes() for run in (drawn, again))
    assert one == two
    capsys.readouterr()
    assert mine_hard_examples.main([*words, "--run-dir", str(again), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(again)]


def test_a_draw_needs_no_model_and_takes_no_word_of_one(data):
    with pytest.raises(InputError, match="--draw=uniform with --seen"):
        mine_hard_examples.parse_args(["--draw", "uniform", "--seen"])
    twice = ["--slides", f"{data}/nodes/slides", f"{data}/nodes/slides/tumor_001.svs"]
    words = ["--draw", "uniform", "--folds", "none", *twice, "--run-dir", f"{data}/x"]
    with pytest.raises(InputError, match="different names"):
        mine_hard_examples.main(words)
    assert not (data / "x").exists()


@pytest.fixture(scope="module")
def trained(data, drawn):
    """The first model, what it gets wrong, and the second one."""
    alone = ["--part-a-dir", "none", "--hard-examples-dir", str(drawn), "--folds", "none"]
    train_final.main([*alone, *NETWORK, "--learning-rate", "0.02", "--run-dir", f"{data}/first"])
    mine = [*slides(data), "--folds", "none", "--model-dir", f"{data}/first"]
    with pytest.raises(InputError, match="--seen"):
        mine_hard_examples.main([*mine, "--run-dir", f"{data}/hard"])
    mine += ["--seen", "--min-tissue", "0.05", "--hard-examples", "80"]
    assert mine_hard_examples.main([*mine, "--run-dir", f"{data}/hard"]) == 0
    second = [*alone, "--more-patches-dir", f"{data}/hard", *NETWORK, "--learning-rate", "0.01"]
    train_final.main([*second, "--weights", f"{data}/first", "--run-dir", f"{data}/second"])
    return data


def test_the_second_training_has_both_draws_and_says_what_it_has_seen(trained):
    first, second = (
        json.loads((trained / n / "metrics.json").read_text()) for n in ("first", "second")
    )
    hard = json.loads((trained / "hard" / "metrics.json").read_text())["hard_examples"]
    assert first["hard_examples"] == 160
    assert second["hard_examples"] == 160 + sum(hard.values())
    seen = read_seen(trained / "second" / "fold_none" / "model.keras")
    assert seen.slides == {"normal_001", "normal_002", "tumor_001", "tumor_002"}
    assert not seen.photos


def test_hidden_slides_are_predicted_and_scored(trained, capsys):
    run, nodes = trained / "heatmaps", trained / "nodes"
    words = [*slides(trained, "test_slides"), "--model-dir", f"{trained}/second"]
    assert make_heatmap.main([*words, "--run-dir", str(run)]) == 0
    assert froc.main(["lesions", str(run), "--out", str(trained / "lesions")]) == 0
    scores = pd.read_csv(trained / "lesions" / "slides.csv").set_index("image")["score"]
    assert scores.index.tolist() == ["test_001", "test_002"]
    results = {}
    for kind in ("annotations", "masks"):
        out = trained / f"froc {kind}"
        words = [f"--{kind}", str(nodes / "truth" / kind), "--mpp", str(COARSE)]
        assert froc.main(["score", str(trained / "lesions"), *words, "--out", str(out)]) == 0
        results[kind] = json.loads((out / "metrics.json").read_text())
    assert results["annotations"] == results["masks"]
    # Two epochs on a few patches: that it is better than chance is all that is asked.
    assert scores["test_001"] > scores["test_002"]
    assert results["masks"]["auc"] == 1
    assert results["masks"]["lesions"] >= 1
