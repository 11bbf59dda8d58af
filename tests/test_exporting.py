"""Models for other runtimes: the same probabilities, or nothing; and what a model card says."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from made_up import training_run
from PIL import Image

from bach.core.errors import InputError
from bach.export.__main__ import FORMATS, main
from bach.export.card import Facts, model_card
from bach.honest.seen import Seen, read_seen
from bach.network import exporting
from bach.network.callbacks import save_model
from bach.network.fold_norms import resized_clone
from bach.network.patch_network import build_model, load_model
from bach.tasks import BACH

ON_TENSORFLOW = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras exports it from TensorFlow"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with patches and the model of fold 1, untrained."""
    folder = training_run(
        tmp_path_factory.mktemp("runs") / "part a",
        [0, 1, 2, 3],
        [0, 1, 2, 2],
        backbone="small",
        folds="some/where/folds.csv",
        epochs=3,
    )
    keras.utils.set_random_seed(0)
    model = build_model("small", "none", "softmax")
    (folder / "fold_1").mkdir()
    save_model(model, folder / "fold_1/model.keras", Seen.of(photos=["n001", "b001"]))
    add_store(folder / "patches", np.random.default_rng(0))
    return folder


def add_store(folder, rng, side=BACH.side_px, count=20):
    folder.mkdir()
    blocks = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    patches = np.stack([np.asarray(Image.fromarray(one).resize((side, side))) for one in blocks])
    np.save(folder / "patches.npy", patches)
    table = {"image_id": "n001", "x": 0, "y": 0, "size": 1495, "tissue": 1.0, "label": 0}
    record = {"view": [0, 1], "size": [side, side], "inputs": {}}
    (folder / "store.json").write_text(json.dumps(record))
    pd.DataFrame([table] * count).to_csv(folder / "patches.csv", index=False)


def export(run, *words):
    return main(["model", str(run), *map(str, words)])


def written(run, tmp_path, name):
    """The exported model run by its own runtime on other patches than it was checked with."""
    patches = np.random.default_rng(5).integers(0, 256, (3, 299, 299, 3)).astype(np.uint8)
    want = load_model(run / "fold_1/model.keras").predict(patches.astype("float32"), verbose=0)
    out = tmp_path / f"its name{exporting.FORMATS[name].ending}"
    assert export(run, "--format", name, "--out", out) == 0
    return np.concatenate(list(exporting.FORMATS[name].run(out, patches))), want


@pytest.mark.parametrize(
    "name",
    [
        "savedmodel",
        pytest.param("onnx", marks=ON_TENSORFLOW),
        pytest.param("openvino", marks=[ON_TENSORFLOW, pytest.mark.slow]),
        pytest.param("litert", marks=[ON_TENSORFLOW, pytest.mark.slow]),
    ],
)
def test_a_model_gives_the_same_probabilities_in_its_new_format(run, tmp_path, name, capsys):
    for module in exporting.FORMATS[name].packages:
        pytest.importorskip(module)
    got, want = written(run, tmp_path, name)
    assert np.abs(got - want).max() <= 1e-4
    assert got.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert Path(capsys.readouterr().out.splitlines()[-1]).exists()


def test_the_formats_of_the_command_are_those_that_are_known():
    assert set(FORMATS) == set(exporting.FORMATS)


def test_a_model_that_answers_differently_is_not_kept(run, tmp_path):
    source = exporting.open_source(run)
    patches = exporting.sample_patches(source)
    other = keras.models.clone_model(source.model)  # other weights

    def write(place):
        keras.saving.save_model(other, place, zipped=False)

    with pytest.raises(InputError, match=r"to 0.0001.\nReceived: a difference of 0\.\d+ on 16"):
        exporting._write_checked(source, exporting._HUB, tmp_path / "out", patches, write)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_mixed_precision_is_exported_in_float32(run):
    policy = keras.config.dtype_policy()
    model = load_model(run / "fold_1/model.keras")
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        mixed = resized_clone(model, BACH.side_px, BACH.side_px)
    finally:
        keras.config.set_dtype_policy(policy)
    plain = exporting._in_float32(mixed)
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
    patches = np.zeros((1, BACH.side_px, BACH.side_px, 3), np.float32)
    assert np.allclose(plain(patches), model(patches), atol=1e-6)


# Before the slow work


def test_a_missing_package_is_one_sentence_with_the_command(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name)
    )
    with pytest.raises(InputError, match=r"no tf2onnx.\nRun: pip install tf2onnx$"):
        export(run, "--format", "onnx")


def test_what_is_there_is_not_written_over_and_endings_must_fit(run, tmp_path):
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(InputError, match="must not be there yet"):
        export(run, "--format", "onnx", "--out", tmp_path / "a.onnx")
    if keras.backend.backend() == "tensorflow":
        pytest.importorskip("tf2onnx")
        with pytest.raises(InputError, match=r"must end in .onnx"):
            export(run, "--format", "onnx", "--out", tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"hf://OWNER/NAME"):
        export(run, "--to", "hf://me", "--out", tmp_path / "card")


def test_a_run_of_several_models_needs_a_fold(run, tmp_path):
    with pytest.raises(InputError, match=r"one model to export[\s\S]*no finished model"):
        exporting.open_source(tmp_path)
    with pytest.raises(InputError, match=r"--fold 2; there: .*fold_1"):
        exporting.open_source(run, 2)
    assert exporting.open_source(run, 1).fold == 1
    assert exporting.open_source(run / "fold_1/model.keras").run == run


# Patches


def test_patches_come_from_the_run_or_a_step_before_or_what_is_named(run, tmp_path):
    source = exporting.open_source(run)
    assert exporting.sample_patches(source).shape == (16, BACH.side_px, BACH.side_px, 3)
    final = training_run(tmp_path / "final", [0], [0], part_a_dir=str(run))
    assert len(exporting.sample_patches(source._replace(run=final))) == 16
    with pytest.raises(InputError, match=r"--patches, or photos with --photos"):
        exporting.sample_patches(source._replace(run=None))
    assert len(exporting.sample_patches(source._replace(run=None), run)) == 16
    add_store(tmp_path / "others", np.random.default_rng(0), side=64)
    with pytest.raises(InputError, match=r"299x299 px.\nReceived: patches of 64x64"):
        exporting.sample_patches(source, tmp_path / "others")


def test_photos_are_cut_into_patches(run, tmp_path):
    source = exporting.open_source(run)
    photo = np.random.default_rng(0).integers(0, 256, (1536, 2048, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "ä b.png")
    Image.fromarray(photo[:500]).save(tmp_path / "small.png")
    patches = exporting.sample_patches(source, photos=[str(tmp_path / "ä b.png")])
    assert patches.shape == (14, BACH.side_px, BACH.side_px, 3)
    with pytest.raises(InputError, match=r"2048x500 px"):
        exporting.sample_patches(source, photos=[str(tmp_path / "small.png")])


# Hugging Face


def test_the_folder_for_hugging_face_loads_and_says_what_the_model_is(run, tmp_path):
    out = tmp_path / "card"
    assert export(run, "--to", "hf://me/my-model_1.0", "--out", out) == 0
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "metadata.json", "model.weights.h5", "seen.json"} <= names
    seen = json.loads((out / "seen.json").read_text())
    assert seen["photos"] == ["b001", "n001"]
    model, same = keras.saving.load_model(out), load_model(run / "fold_1/model.keras")
    patches = np.full((1, BACH.side_px, BACH.side_px, 3), 128, np.float32)
    assert np.array_equal(model(patches), same(patches))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: keras\n")
    for words in (
        'keras.saving.load_model("hf://me/my-model_1.0")',
        "must not be used for",
        "(n, 299, 299, 3)",
        "abc1234567, changed since",
        "2 photos and 0 slides",
        "| folds.csv ",
    ):
        assert words in card
    assert str(tmp_path) not in card
    assert "some/where" not in card


def facts(run, **changes):
    known = {"fold": 1, "seen": Seen.of(["n001"]), "shape": (None, None), "um_per_px": 2.1}
    return Facts("me/model", run, **known | changes)


def test_the_card_names_the_data_and_their_licence(tmp_path):
    assert "**Not known here**" in model_card(facts(None))
    data = tmp_path / "data"
    run = training_run(tmp_path / "run", [0], [0], data_dir=str(data))
    assert "**Not known here**" in model_card(facts(run))
    (data / "ICIAR2018_BACH_Challenge").mkdir(parents=True)
    assert "CC BY-NC-ND 4.0" in model_card(facts(run))
    (data / "truth").mkdir()
    (data / "truth/training.csv").touch()
    assert "**Trial data**" in model_card(facts(run))
    assert "Ours, CC BY 4.0" in model_card(facts(run, data="Ours, CC BY 4.0"))


def test_the_card_has_intervals_and_says_what_estimates_nothing(tmp_path):
    run = training_run(tmp_path / "run", [0], [0])
    assert "The run has none." in model_card(facts(run))
    interval = {"value": 0.8, "low": 0.7, "high": 0.9, "unit": "patients", "units": 30, "worth": 30}
    metrics = {"images": 99, "accuracy_interval": interval, "balanced_accuracy": 0.79}
    metrics["per_fold"] = {"1": {"images": 33, "accuracy": 0.75}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    card = model_card(facts(run))
    assert "0.80 [0.70, 0.90] (30 patients)" in card
    assert "33 images of fold 1 | 0.750" in card
    assert "nothing was held out" not in card
    assert "nothing was held out" in model_card(facts(run, fold=-1))
    hard = {"hard_examples": 5, "images": 9, "accuracy": 0.5, "per_fold": {"0": "draw_0"}}
    (run / "metrics.json").write_text(json.dumps(hard))
    assert "the figure estimates nothing" in model_card(facts(run))
    (run / "metrics.json").unlink()
    assert "not finished" in model_card(facts(run))


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("small", "no weights of others"),
        ("EfficientNetLite0", "Apache License 2.0"),
        ("InceptionResNetV2", "keras.applications"),
        ("hf://owkin/phikon-v2", "https://huggingface.co/owkin/phikon-v2"),
        ("/home/somebody/midnight", "the checkpoint midnight"),
    ],
)
def test_the_card_names_the_backbone_and_its_licence(tmp_path, backbone, words):
    card = model_card(facts(training_run(tmp_path / "run", [0], [0], backbone=backbone)))
    assert words in card
    assert "/home" not in card


def test_a_model_that_does_not_say_what_it_has_seen_is_said_so(run, tmp_path):
    seen = read_seen(tmp_path / "any.keras")
    assert "does not say what it has seen" in model_card(facts(None, seen=seen))
