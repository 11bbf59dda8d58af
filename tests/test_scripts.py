"""The four scripts as a user runs them, on the trial data."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
from commands import NETWORK, ROOT, kill_when, part_a_words, start
from PIL import Image

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach import calibration, submission
from bach import heatmap as bach_heatmap
from bach import metrics as bach_metrics
from bach.annotations import Region
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.pictures import write_gray
from bach.core.tables import read_table
from bach.honest.records import read_slides
from bach.honest.seen import read_seen
from bach.labels import read_class_map
from bach.mining import add_difficulty, draw_hard_examples
from bach.network.patch_network import load_model
from bach.scores import part_b_score
from bach.slides import Slide
from bach.toy.aperio import write_annotation_xml, write_slide


def mine_words(toy, models, run, *more):
    words = f"--data-dir {toy} --model-dir {models} --run-dir {run} --folds {toy}/part_b.csv"
    return [*f"{words} --hard-examples 40 --stride-um 300".split(), *more]


def final_words(toy, runs, run, *more):
    words = f"--data-dir {toy} --part-a-dir {runs}/part_a --hard-examples-dir {runs}/hard"
    words += f" --run-dir {run} --folds {toy}/part_b.csv --epochs 1 --batch-size 16"
    return [*words.split(), *NETWORK, *more]


def files(run):
    """What a run made, by name: without its record, times, and what it was made from."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.name in ("run.json", "log.txt", ".lock"):
            continue
        if name.startswith("shards/"):
            continue
        found[name] = path.read_bytes()
        if path.parent.name == "slides" and path.suffix == ".json":
            record = json.loads(path.read_text())
            record = {k: v for k, v in record.items() if k not in ("seconds", "key")}
            found[name] = json.dumps(record).encode()
    return found


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory):
    """All four scripts, run once in order."""
    path = tmp_path_factory.mktemp("runs")
    train_part_a.main(part_a_words(toy, path / "part_a", "--limit", "3"))
    mine_hard_examples.main(mine_words(toy, path / "part_a", path / "hard"))
    train_final.main(final_words(toy, path, path / "final"))
    words = f"--data-dir {toy} --run-dir {path}/heatmaps --model-dir {path}/final --step-um 300"
    make_heatmap.main(words.split())
    return path


def test_part_a_predicts_every_image_once_by_the_model_that_did_not_see_it(toy, runs):
    table = pd.read_csv(runs / "part_a/predictions.csv")
    assert len(table) == 12
    assert not table["image_id"].duplicated().any()
    folds = pd.read_csv(toy / "part_a.csv").set_index("image_id")["fold"]
    assert (table["fold"] == folds[table["image_id"]].to_numpy()).all()
    assert np.allclose(table[list(PROB_COLUMNS)].sum(axis=1), 1, atol=1e-4)
    patches = pd.read_csv(runs / "part_a/patch_predictions.csv")
    assert len(patches) == 12 * 14
    means = patches.groupby("image_id")[list(PROB_COLUMNS)].mean()
    seen = table.set_index("image_id")[list(PROB_COLUMNS)]
    assert np.allclose(means.loc[seen.index], seen, atol=1e-5)


def test_every_run_folder_tells_its_story(toy, runs):
    for name in ("part_a", "hard", "final", "heatmaps"):
        story = json.loads((runs / name / "run.json").read_text())
        assert story["status"] == "finished"
        assert f"--data-dir {toy}" in story["command"]
        assert story["backend"] == "tensorflow"
        assert (runs / name / "log.txt").stat().st_size > 0
        assert (runs / name / "metrics.json").exists()
    for file in ("model.keras", "best.keras", "last.keras", "history.csv", "batch.png"):
        assert (runs / "part_a/fold_0" / file).exists()
    assert not (runs / "part_a/fold_0/state.npz").exists()


def test_mining_stores_candidates_hard_examples_and_their_pixels(runs):
    hard = runs / "hard"
    candidates = pd.read_csv(hard / "candidates.csv")
    chosen = pd.read_csv(hard / "hard_examples.csv")
    metrics = json.loads((hard / "metrics.json").read_text())
    assert len(candidates) == round(0.4 * metrics["patches"])
    assert candidates["difficulty"].is_monotonic_decreasing
    assert (candidates["tissue"] >= 0.7).all()
    assert len(np.load(hard / "patches/patches.npy", mmap_mode="r")) == len(chosen) > 0
    every = pd.concat(pd.read_csv(file) for file in sorted((hard / "slides").glob("*.csv")))
    assert every["tissue"].min() >= 0.05
    keys = ["image_id", "x", "y"]
    assert len(chosen.merge(every, on=keys)) == len(chosen)
    for file in ("hardest.png", "slides/A01.png", "slides/A02.png"):
        assert (hard / file).stat().st_size > 1000


def test_class_maps_made_anew_are_those_that_the_script_makes_with_these_options(
    toy, runs, tmp_path
):
    words = f"--data-dir {toy} --model-dir {runs}/final --step-um 300 --run-dir {tmp_path}/script"
    rule = "--thresholds 0.3 0.45 0.6 --clip-to-tissue"
    make_heatmap.main(f"{words} {rule}".split())
    bach_heatmap.main(f"{runs}/heatmaps {rule} --out {tmp_path}/anew".split())

    script, anew = files(tmp_path / "script"), files(tmp_path / "anew")
    assert len(script) == 3 + 3 * 6 + 2  # metrics, failures, table; per slide; two truths
    assert script.keys() == anew.keys()
    assert [name for name in script if script[name] != anew[name]] == []
    first = (runs / "heatmaps/class_maps/A01.png").read_bytes()
    assert first != anew["class_maps/A01.png"]  # the rule made a difference


def test_a_model_file_says_what_the_model_has_seen(toy, runs):
    folds = pd.read_csv(toy / "part_b.csv").set_index("image_id")["fold"]
    photos = pd.read_csv(runs / "part_a/predictions.csv").set_index("image_id")["fold"]
    for fold in (0, 1):
        held = {name.lower() for name in photos.index[photos == fold]}
        seen = read_seen(runs / f"part_a/fold_{fold}/model.keras")
        assert seen.photos == {name.lower() for name in photos.index} - held
        assert not seen.slides
        seen = read_seen(runs / f"final/fold_{fold}/model.keras")
        assert seen.photos == {name.lower() for name in photos.index}
        assert seen.slides == {name.lower() for name in folds.index[folds == 1 - fold]}
        for kept in ("best", "last"):
            assert read_seen(runs / f"final/fold_{fold}/{kept}.keras") == seen


def test_labels_of_a_held_out_slide_do_not_decide_over_its_training(toy, runs, tmp_path):
    mined = pd.concat(pd.read_csv(file) for file in sorted((runs / "hard/slides").glob("*.csv")))
    table = add_difficulty(mined[mined["tissue"] >= 0.7].reset_index(drop=True))
    folds = pd.read_csv(toy / "part_b.csv").set_index("image_id")["fold"]
    drawn = {}
    for name in ("true", "shuffled"):
        drawn[name] = draw_hard_examples(table, folds, 0.4, 40, 0)
        held = table["image_id"].map(folds) == 0
        rng = np.random.default_rng(1)
        table.loc[held, "label"] = rng.permutation(table.loc[held, "label"].to_numpy())
        table = add_difficulty(table.drop(columns=["predicted", "difficulty"]))
    keys = ["image_id", "x", "y", "label", "difficulty"]
    one, other = (t[t["draw_0"] == 1][keys].reset_index(drop=True) for t in drawn.values())
    pd.testing.assert_frame_equal(one, other)
    assert set(one["image_id"].map(folds)) == {1}
    everything = [t[t["draw_all"] == 1][keys].to_csv() for t in drawn.values()]
    assert everything[0] != everything[1]


def test_slides_are_not_mined_by_models_that_have_seen_them(toy, runs, tmp_path):
    with pytest.raises(InputError, match=r"must be mined by models that have not seen them"):
        mine_hard_examples.main(mine_words(toy, runs / "final", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_hard_examples_of_other_folds_are_refused(toy, runs, tmp_path):
    folds = pd.read_csv(toy / "part_b.csv")
    folds["fold"] = [0, 0]
    folds.to_csv(tmp_path / "folds.csv", index=False)
    words = final_words(toy, runs, tmp_path / "run", "--folds", f"{tmp_path}/folds.csv")
    with pytest.raises(InputError, match="drawn for other folds"):
        train_final.main(words)
    assert not (tmp_path / "run").exists()


def test_a_start_that_has_seen_a_held_out_slide_is_refused_by_step_3(toy, runs, tmp_path):
    words = final_words(toy, runs, tmp_path / "run")
    shutil.copy(runs / "final/fold_1/model.keras", tmp_path / "renamed.keras")
    for file in ("model.keras", "last.keras", tmp_path / "renamed.keras"):
        with pytest.raises(InputError, match=r"trained on 1 of the slides that fold 0 holds out"):
            train_final.main([*words, "--weights", str(runs / "final/fold_1" / file)])
    assert not (tmp_path / "run").exists()


def test_what_a_start_has_seen_is_seen_by_what_starts_from_it(toy, runs, tmp_path):
    first = runs / "final/fold_1/model.keras"
    more = ("--fold", "1", "--weights", str(first))
    train_final.main(final_words(toy, runs, tmp_path / "run", *more))
    second = tmp_path / "run/fold_1/last.keras"
    assert read_seen(second) == read_seen(first)
    words = part_a_words(toy, tmp_path / "a", "--limit", "3", "--weights", str(second))
    with pytest.raises(InputError, match="of the photos that fold 0 holds out"):
        train_part_a.main(words)


def test_folds_of_other_images_of_the_same_names_are_refused(toy, tmp_path):
    words = part_a_words(toy, tmp_path / "run", "--folds", str(ROOT / "folds/part_a.csv"))
    with pytest.raises(InputError, match="must be of the images that it divides"):
        train_part_a.main(words)
    words = mine_words(toy, tmp_path, tmp_path / "run", "--folds", str(ROOT / "folds/part_b.csv"))
    with pytest.raises(InputError, match="must be of the images that it divides"):
        mine_hard_examples.main(words)


def test_folds_trained_apart_are_brought_together(toy, runs, tmp_path):
    for fold in "012":
        run = tmp_path / f"machine_{fold}"
        train_part_a.main(part_a_words(toy, run, "--limit", "3", "--fold", fold))
    together = tmp_path / "machine_0"
    for fold in "12":
        shutil.copytree(tmp_path / f"machine_{fold}/fold_{fold}", together / f"fold_{fold}")
    train_part_a.main(part_a_words(toy, together, "--limit", "3", "--collect"))
    one, other = (pd.read_csv(run / "predictions.csv") for run in (together, runs / "part_a"))
    pd.testing.assert_frame_equal(one, other, atol=1e-6)
    assert len(json.loads((together / "metrics.json").read_text())["per_fold"]) == 3


def in_parts(script, words, run, of=2):
    """Run a script in parts, and bring them together; what each part and the whole returned."""
    codes = [script.main([*words, "--shard", f"{k}/{of}"]) for k in range(1, of + 1)]
    assert not (run / "metrics.json").exists()
    return [*codes, script.main([*words, "--collect"])]


def test_parts_of_all_four_scripts_brought_together_are_the_whole_run(toy, runs, tmp_path):
    # Two processes at a time, as on two machines; they cut the patches once.
    words = part_a_words(toy, tmp_path / "part_a", "--limit", "3")
    parts = [start(["train_part_a.py", *words, "--shard", f"{k}/2"]) for k in (1, 2)]
    for process in parts:
        said = process.communicate()[0]
        assert process.returncode == 0, said
    assert not (tmp_path / "part_a/predictions.csv").exists()
    train_part_a.main([*words, "--collect"])
    for name in ("predictions.csv", "patch_predictions.csv", "metrics.json"):
        one, other = ((run / "part_a" / name).read_bytes() for run in (tmp_path, runs))
        assert one == other, name

    in_parts(
        mine_hard_examples, mine_words(toy, runs / "part_a", tmp_path / "hard"), tmp_path / "hard"
    )
    assert files(tmp_path / "hard") == files(runs / "hard")

    in_parts(train_final, final_words(toy, runs, tmp_path / "final"), tmp_path / "final")
    one, other = (
        pd.read_csv(run / "predictions.csv") for run in (tmp_path / "final", runs / "final")
    )
    pd.testing.assert_frame_equal(one, other)

    run = tmp_path / "heatmaps"
    words = f"--data-dir {toy} --run-dir {run} --model-dir {runs}/final --step-um 300".split()
    assert in_parts(make_heatmap, words, run, of=3) == [0, 0, 0, 0]
    assert files(run) == files(runs / "heatmaps")
    record = json.loads((run / "shards/2_of_3/run.json").read_text())
    assert record["status"] == "finished"
    assert " --shard 2/3 " in record["command"]


def test_what_is_missing_is_named_and_parts_of_other_arguments_are_refused(toy, runs, tmp_path):
    run = tmp_path / "heatmaps"
    words = f"--data-dir {toy} --run-dir {run} --model-dir {runs}/final --step-um 300".split()
    make_heatmap.main([*words, "--shard", "1/3"])
    with pytest.raises(InputError, match="already holds parts of a run"):
        make_heatmap.main(words)
    with pytest.raises(InputError, match=r"2 missing: .*parts: 2/3 never begun, 3/3 never begun"):
        make_heatmap.main([*words, "--collect"])
    assert not (run / "metrics.json").exists()
    with pytest.raises(InputError, match="started with other arguments"):
        make_heatmap.main([*words, "--shard", "2/3", "--tta"])
    with pytest.raises(InputError, match="Leave out --shard"):
        make_heatmap.main([*words, "--collect", "--shard", "1/3"])
    make_heatmap.main([*words, "--resume"])  # whole runs go on with what parts have done
    assert files(run) == files(runs / "heatmaps")
    with pytest.raises(InputError, match="as many parts at most"):
        train_part_a.main(part_a_words(toy, tmp_path / "new", "--shard", "1/4"))
    with pytest.raises(InputError, match="3 missing: 0, 1, 2"):
        train_part_a.main(part_a_words(toy, tmp_path / "new", "--limit", "3", "--collect"))


def test_slides_are_named_by_folder_or_table_and_more_are_added(runs, toy, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    folder = toy / "ICIAR2018_BACH_Challenge/WSI"
    for name, new in (("A01", "one"), ("A02", "two")):
        shutil.copy(folder / f"{name}.svs", slides / f"{new}.svs")
    words = f"--run-dir {tmp_path}/run --model-dir {runs}/final --step-um 300".split()
    make_heatmap.main([*words, "--slides", str(slides)])
    first = (tmp_path / "run/probs/one.npy").stat().st_mtime_ns
    table = tmp_path / "more.csv"
    table.write_text("path,image_id,mpp\nslides/one.svs,three,0.9\nslides/two.svs,,\n")
    make_heatmap.main([*words, "--slides", str(table), "--resume"])
    records = read_slides(tmp_path / "run")
    assert sorted(records) == ["one", "three", "two"]
    assert records["three"].mpp == 0.9
    assert records["three"].mpp_source == "given"
    assert records["one"].mpp != 0.9
    assert (tmp_path / "run/probs/one.npy").stat().st_mtime_ns == first  # stayed as it was
    assert len(pd.read_csv(tmp_path / "run/slides.csv")) == 3
    # A mask goes by the slide's name, and counts when it changes.
    masks = tmp_path / "masks"
    masks.mkdir()
    table.write_text("path,image_id\nslides/one.svs,four\n")
    masked = f"--run-dir {tmp_path}/masked --model-dir {runs}/final --step-um 300 --masks {masks}"
    shares = []
    for height in (20, 10):
        mask = np.zeros((20, 30), np.uint8)
        mask[:height] = 255
        write_gray(masks / "four.png", mask)
        make_heatmap.main([*masked.split(), "--slides", str(table), "--resume"])
        tissue = np.asarray(Image.open(tmp_path / "masked/tissue/four.png"))
        shares.append((tissue > 0).mean())
        (tmp_path / "masked/metrics.json").unlink()
    assert shares == [1, pytest.approx(0.5, abs=0.01)]
    # Another name does not make a slide unseen.
    table.write_text(f"path,image_id\n{folder}/A01.svs,new\n")
    make_heatmap.main([*words, "--slides", str(table), "--resume"])
    known = read_slides(runs / "heatmaps")["A01"]
    assert read_slides(tmp_path / "run")["new"].models == known.models


def test_a_fold_that_was_trained_otherwise_is_not_taken_for_this_one(toy, runs, tmp_path):
    words = part_a_words(toy, tmp_path / "run", "--limit", "3", "--learning-rate", "0.1")
    train_part_a.main([*words, "--fold", "0"])
    shutil.copytree(runs / "part_a/fold_1", tmp_path / "run/fold_1")
    with pytest.raises(InputError, match="must be gone on with as it was begun"):
        train_part_a.main([*words, "--resume"])


def test_heatmaps_hold_everything_and_agree_with_the_scorer(toy, runs):
    heat = runs / "heatmaps"
    folds = pd.read_csv(toy / "part_b.csv").set_index("image_id")["fold"]
    scores = json.loads((heat / "metrics.json").read_text())
    for name in ("A01", "A02"):
        story = json.loads((heat / f"slides/{name}.json").read_text())
        assert story["models"] == [str(folds[name])]
        assert not story["in_sample"]
        values = np.load(heat / f"heatmaps/{name}.npy")
        assert values.dtype == np.float32
        assert 0 <= values.min() <= values.max() <= 1
        predicted = read_class_map(heat / f"class_maps/{name}.png")
        truth = read_class_map(heat / f"truth/{name}.png")
        assert predicted.shape == truth.shape == (200, 300)
        assert scores["per_slide"][name] == pytest.approx(part_b_score(predicted, truth))
    test_slide = next((heat / "slides").glob("test*.json"))
    assert json.loads(test_slide.read_text())["models"] == ["0", "1"]
    assert "score" not in json.loads(test_slide.read_text())


def test_a_submission_is_calibrated_and_averaged_if_asked_for(toy, runs, tmp_path):
    words = ["part-a", "--data-dir", str(toy), "--model-dir", f"{runs}/part_a", "--out"]
    with pytest.raises(InputError, match=r"bach\.calibration"):
        submission.main([*words, f"{tmp_path}/a.csv", "--calibrated"])
    calibration.main([f"{runs}/part_a"])
    submission.main([*words, f"{tmp_path}/plain.csv"])
    submission.main([*words, f"{tmp_path}/calibrated.csv", "--calibrated"])
    submission.main([*words, f"{tmp_path}/tta.csv", "--tta"])
    plain, calibrated, tta = (
        pd.read_csv(submission.predictions_path(tmp_path / f"{name}.csv"))
        for name in ("plain", "calibrated", "tta")
    )
    columns = list(PROB_COLUMNS)
    assert np.allclose(calibrated[columns].sum(axis=1), 1, atol=1e-5)
    temperature = calibration.stored_temperature(runs / "part_a")
    expected = calibration.apply_temperature(plain[columns].to_numpy(), temperature)
    assert np.allclose(calibrated[columns], expected, atol=1e-4)
    assert 1e-5 < np.abs(tta[columns] - plain[columns]).to_numpy().max() < 0.5


def test_each_fold_of_a_run_starts_from_that_fold_of_another(toy, runs, tmp_path):
    words = part_a_words(toy, tmp_path / "more", "--limit", "3", "--fold", "0")
    train_part_a.main([*words, "--weights", f"{runs}/part_a", "--learning-rate", "1e-12"])
    before, after = (
        load_model(x / "fold_0/model.keras") for x in (runs / "part_a", tmp_path / "more")
    )
    pairs = zip(before.trainable_variables, after.trainable_variables, strict=True)
    assert all(np.allclose(one, other, atol=1e-9) for one, other in pairs)


def test_weights_that_have_seen_what_is_held_out_are_refused(toy, runs, tmp_path):
    words = part_a_words(toy, tmp_path / "leak", "--limit", "3")
    model = runs / "part_a/fold_0/model.keras"
    with pytest.raises(InputError, match=r"trained on 4 of the photos that fold 1 holds out"):
        train_part_a.main([*words, "--weights", str(model)])
    folds = pd.read_csv(toy / "part_a.csv")
    folds["fold"] = (folds["fold"] + 1) % 3
    folds.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(InputError, match=r"of the photos that fold 0 holds out"):
        train_part_a.main(
            [*words, "--folds", f"{tmp_path}/other.csv", "--weights", f"{runs}/part_a"]
        )
    with pytest.raises(InputError, match="of the photos that fold 0 holds out"):
        train_part_a.main([*words, "--weights", f"{runs}/final/fold_0/model.keras"])
    with pytest.raises(InputError, match="must have a model of every fold"):
        train_part_a.main([*words, "--weights", f"{runs}/hard"])
    assert not (tmp_path / "leak").exists()


def test_running_again_is_refused_and_resuming_a_finished_run_does_nothing(toy, runs, capsys):
    with pytest.raises(InputError, match="finished run"):
        train_part_a.main(part_a_words(toy, runs / "part_a", "--limit", "3"))
    before = (runs / "part_a/predictions.csv").stat().st_mtime_ns
    train_part_a.main(part_a_words(toy, runs / "part_a", "--limit", "3", "--resume"))
    assert (runs / "part_a/predictions.csv").stat().st_mtime_ns == before
    assert capsys.readouterr().out.strip().endswith("part_a")


def test_a_split_that_leaks_is_refused_before_anything_is_written(toy, tmp_path):
    folds = pd.read_csv(toy / "part_a.csv")
    folds["fold"] = np.arange(len(folds)) % 3
    folds.to_csv(tmp_path / "leaky.csv", index=False)
    with pytest.raises(InputError, match="patient"):
        train_part_a.main(
            part_a_words(toy, tmp_path / "run", "--folds", str(tmp_path / "leaky.csv"))
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_images_of_unknown_patients_are_trained_on_unless_left_out(toy, tmp_path):
    folds = pd.read_csv(f"{toy}/part_a.csv")
    unknown = folds["patient"] == folds["patient"].iloc[0]
    folds.loc[unknown, ["patient", "fold"]] = ["", -1]
    folds.to_csv(tmp_path / "folds.csv", index=False)
    fold = "0"
    seen = {}
    for name, more in (("all", []), ("known", ["--known-patients"])):
        train_part_a.main(
            part_a_words(
                toy,
                tmp_path / name,
                "--folds",
                f"{tmp_path}/folds.csv",
                "--fold",
                fold,
                "--limit",
                "4",
                *more,
            )
        )
        patches = pd.read_csv(tmp_path / name / "patches/patches.csv", dtype={"image_id": str})
        seen[name] = set(patches["image_id"])
    of_unknown = set(folds["image_id"][unknown])
    assert seen["all"] & of_unknown
    assert not seen["known"] & of_unknown


@pytest.mark.slow
def test_a_single_model_on_all_slides_scores_them_as_in_sample_only(toy, runs, tmp_path):
    train_final.main(
        [
            "--data-dir",
            str(toy),
            "--run-dir",
            f"{tmp_path}/final",
            "--limit",
            "1",
            "--part-a-dir",
            f"{runs}/part_a",
            "--hard-examples-dir",
            f"{runs}/hard",
            "--folds",
            f"{toy}/part_b.csv",
            *NETWORK,
            "--epochs",
            "1",
            "--fold",
            "none",
        ]
    )
    make_heatmap.main(
        [
            "--data-dir",
            str(toy),
            "--run-dir",
            f"{tmp_path}/heat",
            "--part",
            "B",
            "--limit",
            "1",
            "--model-dir",
            f"{tmp_path}/final",
            "--step-um",
            "400",
        ]
    )
    metrics = json.loads((tmp_path / "heat/metrics.json").read_text())
    assert "score" not in metrics
    assert list(metrics["in_sample"]) == ["A01"]


@pytest.fixture(scope="module")
def red_model(tmp_path_factory):
    """A convolutional model that calls a patch Invasive if its middle is red, else Normal."""
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Conv2D(1, 43, strides=32, use_bias=False, name="green")(inputs)
    x = keras.layers.Conv2D(1, 9, use_bias=False, name="middle")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(1, use_bias=False, name="dense")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(x))
    green, middle = np.zeros((43, 43, 3, 1)), np.zeros((9, 9, 1, 1))
    green[16:27, 16:27, 1] = 1 / 121
    middle[4, 4] = 1  # of 9 squares of 11 px that one around pixel 149, the patch's centre
    model.get_layer("green").set_weights([green])
    model.get_layer("middle").set_weights([middle])
    model.get_layer("dense").set_weights([np.ones((1, 1))])
    # Logit of Invasive: green below 100 (the tissue has 180, the square 20).
    kernel = np.array([[0, 0, 0, -1]], np.float32)
    model.get_layer("classes").set_weights([kernel, np.array([0, -99, -99, 100], np.float32)])
    path = tmp_path_factory.mktemp("red") / "red.keras"
    model.save(path)
    return path


@pytest.mark.parametrize("mode", ["patches", "dense"])
def test_an_invasive_square_in_the_far_corner_stays_in_place(red_model, tmp_path, mode):
    width, height, side = 4811, 3617, 1000  # sizes that divide by nothing
    pixels = np.full((height, width, 3), (235, 180, 215), np.uint8)
    pixels[:, : width // 3] = 245  # glass
    pixels[-side:, -side:] = (200, 20, 60)
    write_slide(tmp_path / "corner.svs", pixels)
    square = [
        (width - side, height - side),
        (width, height - side),
        (width, height),
        (width - side, height),
    ]
    write_annotation_xml(
        tmp_path / "corner.xml",
        [Region(3, np.array(square, float))],
        0.467,
        "text",
    )
    make_heatmap.main(
        [
            "--slides",
            str(tmp_path / "corner.svs"),
            "--model-dir",
            str(red_model),
            "--run-dir",
            str(tmp_path / "run"),
            "--step-um",
            "67.2",
            "--mode",
            mode,
        ]
    )
    class_map = read_class_map(tmp_path / "run/class_maps/corner.png")
    truth = read_class_map(tmp_path / "run/truth/corner.png")
    assert set(np.unique(class_map)) == {0, 3}
    rows, cols = np.nonzero(class_map == 3)
    step = 67.2 / 0.467 / 16  # in map px
    assert abs(rows.min() - (height - side) / 16) <= step
    assert abs(cols.min() - (width - side) / 16) <= step
    # A cell whose middle lies beyond the edge is predicted from white glass.
    assert class_map.shape[0] - 1 - rows.max() <= step
    assert class_map.shape[1] - 1 - cols.max() <= step
    assert len(rows) == (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)
    assert part_b_score(class_map, truth) > 0.8


def test_a_slide_that_fails_leaves_the_others_done(red_model, tmp_path, capsys):
    pixels = np.full((1600, 1600, 3), (235, 180, 215), np.uint8)
    pixels[:, :400] = 245
    write_slide(tmp_path / "noscale.svs", pixels, mpp=None)
    (tmp_path / "broken.svs").write_bytes(b"no TIFF")
    write_slide(tmp_path / "good.svs", pixels)
    write_slide(tmp_path / "white.svs", np.full((1600, 1600, 3), 255, np.uint8))
    names = [str(tmp_path / f"{n}.svs") for n in ("noscale", "broken", "good", "white")]
    command = ["--slides", *names, "--model-dir", str(red_model), "--run-dir"]
    assert make_heatmap.main([*command, str(tmp_path / "run")]) == 1
    assert "complete but for 2 of 4 slides: noscale, broken" in capsys.readouterr().out
    failures = json.loads((tmp_path / "run/failures.json").read_text())
    assert "--mpp" in failures["noscale"]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["slides"], metrics["failed"]) == (2, ["broken", "noscale"])
    story = json.loads((tmp_path / "run/run.json").read_text())
    assert story["status"] == "complete but for broken, noscale"
    assert (tmp_path / "run/class_maps/good.png").exists()
    assert not read_class_map(tmp_path / "run/class_maps/white.png").any()
    # With the remedy, and the broken one replaced, the same run goes on to its end.
    write_slide(tmp_path / "noscale.svs", pixels, mpp=0.5)
    write_slide(tmp_path / "broken.svs", pixels)
    done = (tmp_path / "run/slides/good.json").stat().st_mtime_ns
    assert make_heatmap.main([*command, str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run/slides/good.json").stat().st_mtime_ns == done
    assert json.loads((tmp_path / "run/metrics.json").read_text())["slides"] == 4


def test_a_model_that_does_not_say_what_it_has_seen_and_masks_of_no_slide_are_said(
    red_model, tmp_path
):
    pixels = np.full((1600, 1600, 3), (235, 180, 215), np.uint8)
    pixels[:, :400] = 245
    write_slide(tmp_path / "one.svs", pixels)
    (tmp_path / "masks").mkdir()
    write_gray(tmp_path / "masks/other.png", np.full((40, 40), 255, np.uint8))
    command = f"--slides {tmp_path}/one.svs --model-dir {red_model} --run-dir {tmp_path}/run"
    command += f" --step-um 600 --masks {tmp_path}/masks"
    with pytest.raises(InputError, match=r"must belong to a slide(.|\n)*Received: other.png"):
        make_heatmap.main(command.split())
    write_gray(tmp_path / "masks/ONE.png", np.tri(40, dtype=np.uint8))
    assert make_heatmap.main(command.split()) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "does not say what it has seen" in metrics["model_warnings"][0]
    assert not metrics["warnings"]


def test_what_is_odd_about_a_slide_stands_in_the_figures_of_its_mining(runs, toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy, data)
    slide = next(data.glob("*/WSI/A01.svs"))
    with Slide(slide) as whole:
        pixels = whole.read(0, 0, whole.width, whole.height)
    write_slide(slide, 255 - (255 - pixels)[..., [1, 0, 2]])  # pink becomes green
    words = mine_words(data, runs / "part_a", tmp_path / "run", "--tissue", "robust")
    (tmp_path / "masks").mkdir()
    write_gray(tmp_path / "masks/A01.png", np.full((200, 300), 255, np.uint8))
    words += ["--masks", f"{tmp_path}/masks"]
    mine_hard_examples.main(words)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "green rather than pink" in metrics["warnings"]["A01"][0]
    assert "no mask in" in metrics["warnings"]["A02"][0]
    assert "model_warnings" not in metrics
    (tmp_path / "run/metrics.json").unlink()  # as if it had been killed at its end
    mine_hard_examples.main([*words, "--resume"])
    assert "A01: finished before" in (tmp_path / "run/log.txt").read_text()
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    before = pd.read_csv(tmp_path / "run/slides/A02.csv")["label"]
    square = np.array([(0, 0), (4800, 0), (4800, 3200), (0, 3200)], float)
    write_annotation_xml(slide.with_name("A02.xml"), [Region(3, square)], 0.467, "text")
    (tmp_path / "run/metrics.json").unlink()
    mine_hard_examples.main([*words, "--resume"])
    assert (
        "A02: the slide or what its patches depend on has changed"
        in (tmp_path / "run/log.txt").read_text()
    )
    after = pd.read_csv(tmp_path / "run/slides/A02.csv")["label"]
    assert set(after) == {3} != set(before)


def test_slides_are_called_what_they_are_called_from_the_first_step_to_the_last(
    runs, toy, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(toy, data)
    # A number, one that a spreadsheet would write otherwise, and no number.
    for old, new in (("A01", "00123"), ("A02", "1e5"), ("test_slide_1", "NA")):
        for file in data.glob(f"*/WSI/{old}.*"):
            file.rename(file.with_name(new + file.suffix))
    (data / "part_b.csv").write_text("image_id,label,patient,fold\n00123,,,0\n1e5,,,1\n")
    mined = mine_words(data, runs / "part_a", tmp_path / "hard")
    mine_hard_examples.main(mined)
    (tmp_path / "hard/metrics.json").unlink()
    mine_hard_examples.main([*mined, "--resume"])
    (tmp_path / "part_a").symlink_to(runs / "part_a")
    train_final.main(final_words(data, tmp_path, tmp_path / "final"))
    heat = f"--data-dir {data} --run-dir {tmp_path}/heat --model-dir {tmp_path}/final"
    make_heatmap.main([*heat.split(), "--step-um", "300"])
    metrics = json.loads((tmp_path / "heat/metrics.json").read_text())
    assert set(metrics["per_slide"]) == {"00123", "1e5"}
    records = read_slides(tmp_path / "heat").values()
    assert [(r.image_id, r.fold, r.in_sample) for r in records] == [
        ("00123", 0, False),
        ("1e5", 1, False),
        ("NA", None, False),
    ]
    for name, fold in (("hard/hard_examples.csv", None), ("final/predictions.csv", "fold")):
        table = read_table(tmp_path / name)
        assert set(table["image_id"]) <= {"00123", "1e5"}
        if fold:
            assert set(table.loc[table["image_id"] == "00123", fold]) <= {"0"}
    metrics_main = ["part-b", "--predicted", f"{tmp_path}/heat/class_maps"]
    assert bach_metrics.main([*metrics_main, "--truth", f"{tmp_path}/heat/truth"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("script", ["make_heatmap.py", "mine_hard_examples.py"])
def test_of_two_that_are_started_side_by_side_the_second_is_refused(runs, toy, tmp_path, script):
    run = tmp_path / "run"
    words = mine_words(toy, runs / "part_a", run)
    if script == "make_heatmap.py":
        words = f"--data-dir {toy} --run-dir {run} --model-dir {runs}/final --step-um 300".split()
    first = start([script, *words])
    try:
        end = time.monotonic() + 600
        while not (run / "run.json").exists():
            assert first.poll() is None, first.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it stays at work for as long as it takes
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        refused = {}
        for more in ([], ["--resume"]):
            out, _ = (second := start([script, *words, *more])).communicate(timeout=600)
            refused[second.returncode, *more] = out
        assert {path: path.stat().st_mtime_ns for path in before} == before
    finally:
        first.send_signal(signal.SIGCONT)
    assert "already holds an unfinished run" in refused[2,]
    assert f"Another process is at work in {run}" in refused[2, "--resume"]
    out, _ = first.communicate(timeout=600)
    assert first.returncode == 0, out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_an_annotation_that_is_mended_is_scored_anew_and_a_faulty_one_fails_its_slide(
    red_model, tmp_path
):
    pixels = np.full((1600, 1600, 3), (235, 180, 215), np.uint8)
    pixels[:, :400] = 245
    pixels[800:, 800:] = (200, 20, 60)
    names = ("mended", "beyond", "mapped")
    for name in names:
        write_slide(tmp_path / f"{name}.svs", pixels)

    def annotate(name, x, y, word="Invasive"):
        square = np.array([(x, y), (x + 800, y), (x + 800, y + 800), (x, y + 800)], float)
        write_annotation_xml(tmp_path / f"{name}.xml", [Region(3, square)], 0.467, "text")
        text = (tmp_path / f"{name}.xml").read_text()
        (tmp_path / f"{name}.xml").write_text(text.replace('Text="', f'Text="{word}" was="'))

    annotate("mended", 0, 0)
    annotate("beyond", 40_000, 40_000)
    annotate("mapped", 800, 800, "Tumor")
    classes = tmp_path / "classes.csv"
    classes.write_text("tumor,Invasive\n")
    command = ["--slides", *(str(tmp_path / f"{name}.svs") for name in names)]
    command += ["--model-dir", str(red_model), "--step-um", "67.2", "--class-map", str(classes)]
    command += ["--run-dir", str(tmp_path / "run")]
    (tmp_path / "other.xml").touch()
    assert make_heatmap.main(command) == 1
    first = json.loads((tmp_path / "run/slides/mended.json").read_text())
    mapped = json.loads((tmp_path / "run/slides/mapped.json").read_text())
    assert mapped["annotation"]["mm2"]["Invasive"] == pytest.approx((0.8 * 0.467) ** 2)
    annotate("mended", 800, 800)
    annotate("beyond", 800, 800)
    assert make_heatmap.main([*command, "--resume"]) == 0
    second = json.loads((tmp_path / "run/slides/mended.json").read_text())
    assert second["score"] > first["score"]
    assert second["score"] == json.loads((tmp_path / "run/slides/beyond.json").read_text())["score"]
    assert read_class_map(tmp_path / "run/truth/mended.png")[-1, -1] == 3
    log = (tmp_path / "run/log.txt").read_text()
    assert "mapped: annotation mapped.xml: 1 regions, 1 painted; 0.140 mm2 Invasive" in log
    assert "beyond.xml a region must be left, or its slide counts as" in log
    assert "other.xml: belongs to no slide" in log


@pytest.mark.parametrize("mode", ["patches", "dense"])
def test_slides_of_no_tissue_of_one_patch_and_of_less_are_done(red_model, tmp_path, mode):
    red = (200, 20, 60)
    write_slide(tmp_path / "empty.svs", np.full((3000, 2000, 3), 255, np.uint8))
    one = np.full((1345, 1345, 3), 245, np.uint8)
    one[200:-200, 200:-200] = red
    write_slide(tmp_path / "one.svs", one)
    small = np.full((400, 300, 3), 245, np.uint8)
    small[50:, 50:] = red
    write_slide(tmp_path / "small.svs", small)
    names = ("empty", "one", "small")
    make_heatmap.main(
        [
            "--slides",
            *(str(tmp_path / f"{name}.svs") for name in names),
            "--model-dir",
            str(red_model),
            "--run-dir",
            str(tmp_path / "run"),
            "--step-um",
            "67.2",
            "--mode",
            mode,
        ]
    )
    maps = {name: read_class_map(tmp_path / f"run/class_maps/{name}.png") for name in names}
    assert maps["empty"].shape == (188, 125)
    assert not maps["empty"].any()
    step = 67.2 / 0.467 / 16
    rows, cols = np.nonzero(maps["one"] == 3)
    for edges in (rows, cols):
        assert abs(edges.min() - 200 / 16) <= step
        assert abs(edges.max() + 1 - 1145 / 16) <= step
    assert maps["small"].shape == (25, 19)
    # Too little tissue in the field around any of its cells.
    assert not maps["small"].any()


@pytest.mark.slow
def test_a_model_trained_on_two_devices_opens_as_a_plain_model(toy, tmp_path):
    process = start(
        [
            "train_part_a.py",
            *part_a_words(toy, tmp_path / "run", "--limit", "3", "--fold", "0", "--devices", "2"),
        ]
    )
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "devices: 2 CPU" in out
    model = keras.models.load_model(tmp_path / "run/fold_0/model.keras")
    table = pd.read_csv(tmp_path / "run/patch_predictions.csv")
    store = np.load(tmp_path / "run/patches/patches.npy", mmap_mode="r")
    rows = pd.read_csv(tmp_path / "run/patches/patches.csv")
    held = rows["image_id"].isin(table["image_id"]).to_numpy()
    probs = model.predict_on_batch(store[held].astype(np.float32))
    assert np.allclose(probs, table[list(PROB_COLUMNS)], atol=1e-4)


def test_runs_on_the_same_photos_can_share_their_patches(toy, runs, tmp_path):
    shared = ["--patches-dir", str(runs / "part_a/patches"), "--fold", "0"]
    train_part_a.main(part_a_words(toy, tmp_path / "run", "--limit", "3", *shared))
    assert not (tmp_path / "run/patches").exists()
    assert len(pd.read_csv(tmp_path / "run/predictions.csv")) > 0
    with pytest.raises(InputError, match="patches"):
        train_part_a.main(part_a_words(toy, tmp_path / "other", "--limit", "2", *shared))


@pytest.mark.slow
def test_all_four_scripts_run_on_jax_without_tensorflow(toy, runs, tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    words = f"--data-dir {toy} --run-dir {tmp_path}/heatmaps --model-dir {runs}/final --step-um 300"
    final = final_words(toy, runs, tmp_path / "final", "--fold", "none", "--limit", "1")
    stages = {
        "train_part_a": part_a_words(toy, tmp_path / "part_a", "--limit", "3", "--fold", "0"),
        "mine_hard_examples": mine_words(toy, runs / "part_a", tmp_path / "hard"),
        "train_final": final,
        "make_heatmap": words.split(),
    }
    # As if TensorFlow were not installed; Keras asks whether it is in sys.modules, so None
    # there will not do.
    code = [
        "import importlib, sys",
        "class Without:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name.split('.')[0] == 'tensorflow':",
        "            raise ModuleNotFoundError(name)",
        "sys.meta_path.insert(0, Without())",
    ]
    for stage, words in stages.items():
        code.append(f"importlib.import_module({stage!r}).main({words!r})")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(jax, float32)") == 4
    assert (tmp_path / "part_a/predictions.csv").exists()
    assert (tmp_path / "final/fold_none/model.keras").exists()
    # The same models give the same predictions as on TensorFlow.
    for name in ("A01", "A02"):
        one, other = (pd.read_csv(p / f"hard/slides/{name}.csv") for p in (tmp_path, runs))
        pd.testing.assert_frame_equal(one, other, atol=1e-4)
        heat = [np.load(p / f"heatmaps/heatmaps/{name}.npy") for p in (tmp_path, runs)]
        assert np.allclose(*heat, atol=1e-4, equal_nan=True)


@pytest.mark.slow
def test_a_margin_goes_through_all_four_scripts_in_both_modes(toy, tmp_path):
    more = ["--limit", "2", "--fold", "0", "--margin", "32", "--bn-patches", "32"]
    train_part_a.main(part_a_words(toy, tmp_path / "part_a", *more))
    mined = mine_words(toy, tmp_path / "part_a", tmp_path / "hard", "--mode", "dense")
    mine_hard_examples.main([*mined, "--stride-um", "134.4", "--limit", "1"])
    assert np.load(tmp_path / "hard/patches/patches.npy", mmap_mode="r").shape[1:3] == (363, 363)
    train_final.main(final_words(toy, tmp_path, tmp_path / "final", "--fold", "none"))
    heatmaps = []
    for mode in ("patches", "dense"):
        run = tmp_path / mode
        words = f"--data-dir {toy} --run-dir {run} --part B --limit 1 --model-dir {tmp_path}/final"
        make_heatmap.main([*words.split(), "--step-um", "134.4", "--mode", mode])
        heatmaps.append(np.load(run / "heatmaps/A01.npy"))
    # The same function, but for where pixels begin and are rounded.
    assert np.corrcoef(heatmaps[0].ravel(), heatmaps[1].ravel())[0, 1] > 0.999
    assert np.abs(heatmaps[0] - heatmaps[1]).max() < 0.03


@pytest.mark.slow
def test_the_other_three_scripts_go_on_after_a_kill(toy, runs, tmp_path):
    heat = f"--data-dir {toy} --model-dir {runs}/final --step-um 300".split()
    cases = {
        "mine_hard_examples.py": (
            mine_words(toy, runs / "part_a", tmp_path),
            "slides/A01.csv",
            "hard_examples.csv",
            runs / "hard",
        ),
        "train_final.py": (
            final_words(toy, runs, tmp_path),
            "fold_0/state.npz",
            "predictions.csv",
            runs / "final",
        ),
        "make_heatmap.py": (heat, "slides/A01.json", "slides.csv", runs / "heatmaps"),
    }
    for script, (words, sign, result, reference) in cases.items():
        run = tmp_path / script
        kill_when([script, *words, "--run-dir", run], (run / sign).exists)
        assert not (run / "metrics.json").exists()
        process = start([script, *words, "--run-dir", run, "--resume"])
        out, _ = process.communicate()
        assert process.returncode == 0, out
        one, other = pd.read_csv(run / result), pd.read_csv(reference / result)
        pd.testing.assert_frame_equal(one, other, atol=1e-3)
        shutil.rmtree(run)
