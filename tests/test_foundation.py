"""Foundation models: equal to the transformers library; frozen, saved, loaded, adapted."""

import json
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from commands import part_a_words
from tiny_checkpoints import (
    KINDS,
    WIDTH,
    config_of,
    patches,
    safetensors,
    weights_of,
    write_checkpoint,
)

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.network import foundation
from bach.network.dense import DenseModel
from bach.network.fold_norms import fast_clone
from bach.network.image_network import build_image_network
from bach.network.patch_network import build_model, check_backbone, load_model
from bach.patches import View

keras_hub = pytest.importorskip("keras_hub", reason="KerasHub (extra foundation) is not installed")

GOLDEN = np.load(Path(__file__).parent / "golden/foundation.npz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random checkpoint of each kind."""
    path = tmp_path_factory.mktemp("checkpoints")
    return {kind: str(write_checkpoint(path / kind, kind)) for kind in KINDS}


@pytest.fixture
def model(folders):
    keras.utils.set_random_seed(0)
    return build_model(folders["dinov2"], "imagenet", "softmax")


def _pooled(model):
    return keras.Model(model.inputs, model.get_layer("pool").output).predict_on_batch(patches())


def _trained(model):
    """The model after a few steps on noise, whose labels it is to learn by heart."""
    model.compile(keras.optimizers.SGD(0.05), keras.losses.CategoricalCrossentropy())
    model.fit(patches(), np.eye(4)[[0, 3]], epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_transformers_library(folders, kind):
    features = _pooled(build_model(folders[kind]))
    expected = np.concatenate([GOLDEN[f"{kind}_class"], GOLDEN[f"{kind}_mean"]], axis=1)
    assert expected.std() > 0.2
    assert np.allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_that_of_the_transformers_library(folders, kind):
    whole = build_model(folders[kind])
    transformer = foundation.transformer_of(whole)
    network = whole.get_layer(foundation.name_of(folders[kind]))
    scaled = keras.Model(network.inputs, network.get_layer("scaling").output)
    pixels = scaled.predict_on_batch(patches())
    named = isinstance(transformer.input, dict)
    tokens = transformer.predict_on_batch({"images": pixels} if named else pixels)
    some = np.linspace(0, tokens.shape[1] - 1, len(GOLDEN[f"{kind}_some"])).astype(int)
    assert np.allclose(tokens[0, some], GOLDEN[f"{kind}_some"], atol=1e-4)


@pytest.mark.parametrize("kind", ["registers", "vit"])
def test_one_kind_of_token_can_do(folders, kind):
    for tokens, name in (("class", "class"), ("mean", "mean")):
        features = _pooled(build_model(folders[kind], tokens=tokens))
        assert features.shape == (2, WIDTH)
        assert np.allclose(features, GOLDEN[f"{kind}_{name}"], atol=1e-4)


def test_vit_is_read_from_a_classifier_too(tmp_path):
    folder = write_checkpoint(tmp_path / "classifier", "vit", prefix="vit.")
    features = _pooled(build_model(str(folder), tokens="class"))
    assert np.allclose(features, GOLDEN["vit_class"], atol=1e-4)


@pytest.mark.parametrize("kind", ["registers", "swiglu", "vit"])
def test_a_saved_model_is_loaded_as_it_was(folders, kind, tmp_path):
    before = _trained(build_model(folders[kind], head="softmax"))
    before.save(tmp_path / "model.keras")
    after = load_model(tmp_path / "model.keras")
    probs = before.predict_on_batch(patches())
    assert np.allclose(after.predict_on_batch(patches()), probs, atol=1e-6)
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5)


def test_a_start_from_a_saved_model_has_all_of_its_weights(folders, model, tmp_path):
    _trained(model).save(tmp_path / "model.keras")
    again = build_model(folders["dinov2"], str(tmp_path / "model.keras"), "softmax")
    probs = model.predict_on_batch(patches())
    assert np.allclose(again.predict_on_batch(patches()), probs, atol=1e-6)


def test_without_weights_the_network_is_random(folders):
    assert np.abs(_pooled(build_model(folders["swiglu"], "none"))).max() > 0
    different = _pooled(build_model(folders["swiglu"], "none"))
    assert not np.allclose(different, _pooled(build_model(folders["swiglu"])), atol=0.1)


def test_only_the_top_is_trained(model):
    assert len(model.trainable_variables) == 4  # kernel and bias of the top's two layers
    before = _pooled(model)
    probs = model.predict_on_batch(patches())
    _trained(model)
    assert np.array_equal(_pooled(model), before)
    assert np.abs(model.predict_on_batch(patches()) - probs).max() > 0.01


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_lora_begins_as_the_same_function_and_is_saved_as_part_of_it(folders, kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = build_model(folders[kind], head="softmax")
    before = _pooled(model)
    count = foundation.enable_lora(model, rank=2)
    assert 0 < count < 0.1 * foundation.transformer_of(model).count_params()
    assert len(model.trainable_variables) > 4
    assert np.allclose(_pooled(model), before, atol=1e-6)
    _trained(model)
    after = _pooled(model)
    assert np.abs(after - before).max() > 1e-3
    model.save(tmp_path / "model.keras")
    assert np.allclose(_pooled(load_model(tmp_path / "model.keras")), after, atol=1e-5)
    assert np.allclose(_pooled(fast_clone(model)), after, atol=1e-5)


def test_lora_needs_attention():
    with pytest.raises(InputError, match="LoRA needs a backbone with attention"):
        foundation.enable_lora(build_model("small", "none"))


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_a_network_that_is_trained_as_a_whole_is_saved_as_it_is(folders, kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = build_model(folders[kind], head="softmax")
    before = _pooled(model)
    foundation.unfreeze(model)
    assert len(model.trainable_variables) > 20
    _trained(model)
    after = _pooled(model)
    assert np.abs(after - before).max() > 1e-3
    model.save(tmp_path / "model.keras")
    assert np.allclose(_pooled(load_model(tmp_path / "model.keras")), after, atol=1e-5)


@pytest.mark.parametrize("kind", ["registers", "vit"])
def test_in_half_precision_it_is_nearly_the_same(folders, kind):
    model = build_model(folders[kind], head="softmax")
    half = fast_clone(model, precision="mixed_bfloat16")
    assert foundation.transformer_of(half).compute_dtype == "bfloat16"
    assert half.get_layer("dense").compute_dtype == "float32"
    whole, rounded = _pooled(model), np.asarray(_pooled(half), np.float32)
    assert 0 < np.abs(rounded - whole).max() < 0.1
    assert np.corrcoef(rounded.ravel(), whole.ravel())[0, 1] > 0.999


def test_two_magnifications_are_two_networks(folders, tmp_path):
    model = build_model(folders["swiglu"], head="softmax", view=View(zoom=2))
    assert len(list(foundation.transformers_of(model))) == 2
    model.save(tmp_path / "model.keras")
    pictures = np.repeat(np.repeat(patches(), 2, 1), 2, 2)
    probs = model.predict_on_batch(pictures)
    loaded = load_model(tmp_path / "model.keras")
    assert np.allclose(loaded.predict_on_batch(pictures), probs, atol=1e-6)
    assert np.allclose(fast_clone(loaded).predict_on_batch(pictures), probs, atol=1e-5)


def test_it_judges_patch_by_patch(model, folders):
    for use in (DenseModel, lambda model: build_image_network(model, 2048, 1536)):
        with pytest.raises(InputError, match=r"patch by patch[\s\S]*--mode patches"):
            use(model)
    with pytest.raises(InputError, match="Leave --margin out"):
        build_model(folders["dinov2"], view=View(32))


def test_which_backbones_are_frozen_by_default():
    assert foundation.frozen_by_default("hf://kaiko-ai/midnight")
    assert foundation.frozen_by_default("./checkpoints/midnight")
    assert not foundation.frozen_by_default("InceptionResNetV2")


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("hf://owkin/phikon-v2", "phikon_v2"),
        ("./a/Midnight 12k/", "midnight_12k"),
        ("/", "foundation"),
    ],
)
def test_a_network_has_a_name_that_keras_allows(backbone, name):
    assert foundation.name_of(backbone) == name


def test_a_backbone_is_refused_before_the_slow_work(tmp_path):
    with pytest.raises(InputError, match="must be a folder with config"):
        check_backbone(str(tmp_path / "absent"), "imagenet")


def test_without_keras_hub_one_sentence_says_what_to_install(folders, model, tmp_path, monkeypatch):
    model.save(tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    said = r"Foundation models need KerasHub.*\nReceived: .*{}.*\nInstall it: pip install"
    with pytest.raises(InputError, match=said.format("--backbone=hf://kaiko-ai/midnight")):
        check_backbone("hf://kaiko-ai/midnight", "imagenet")
    with pytest.raises(InputError, match=said.format("model.keras")):
        load_model(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "found",
    [
        {"module": "keras_hub.src.models.x", "class_name": "BytePairTokenizer"},
        {"module": "keras_nlp", "class_name": "Tokenizer"},
        {"module": "", "class_name": "Tokenizer", "registered_name": "keras_hub>Tokenizer"},
    ],
)
def test_a_model_file_with_another_class_of_keras_hub_is_refused(model, tmp_path, found):
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    config["config"]["layers"].append({**found, "config": {}})
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"other.keras must be[\s\S]*Tokenizer' of KerasHub"):
        load_model(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("dinov2", {"num_hidden_layers": 1}, "tensors have no place"),
        ("dinov2", {"num_hidden_layers": 3}, "must hold encoder.layer.2"),
        ("dinov2", {"mlp_ratio": 2}, "must be those of the network"),
        ("dinov2", {"mlp_ratio": "gone"}, "that KerasHub can build"),
        ("dinov2", {"use_swiglu_ffn": True}, "must hold encoder.layer.0.mlp.weights_in"),
        ("registers", {"num_register_tokens": 5}, "must be those of the network"),
        ("vit", {"intermediate_size": 48}, "must be those of the network"),
        ("vit", {"patch_size": 8}, "must be those of the network"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, kind, changes, said):
    folder = write_checkpoint(tmp_path, kind)
    config = {**config_of(kind), **changes}
    config = {name: value for name, value in config.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        build_model(str(folder))


def test_weights_that_are_no_numbers_or_no_square_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path, "dinov2")
    weights = weights_of(config_of("dinov2"))
    name = "embeddings.position_embeddings"
    for changed in (np.full_like(weights[name], np.nan), weights[name][:, :-1]):
        (folder / "model.safetensors").write_bytes(safetensors({**weights, name: changed}))
        with pytest.raises(InputError, match=r"must be those[\s\S]*position_embeddings"):
            build_model(str(folder))


def test_patches_larger_than_the_picture_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path, "dinov2_16")
    config = {**config_of("dinov2_16"), "patch_size": 256, "image_size": 256}
    inputs = keras.Input((224, 224, 3))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="must fit into what the network sees"):
        foundation.features(inputs, str(folder), "none", "both")


@pytest.mark.slow
def test_the_four_scripts_take_a_foundation_model(toy, folders, tmp_path):
    network = ["--backbone", folders["swiglu"], "--weights", "imagenet"]
    part_a = part_a_words(toy, tmp_path / "part_a", "--limit", "3", *network)
    train_part_a.main(part_a)
    table = pd.read_csv(tmp_path / "part_a/predictions.csv")
    assert np.allclose(table[list(PROB_COLUMNS)].sum(axis=1), 1, atol=1e-4)
    before = _pooled(build_model(folders["swiglu"]))
    trained = load_model(tmp_path / "part_a/fold_0/model.keras")
    assert np.allclose(_pooled(trained), before, atol=1e-4)  # frozen all the way
    common = f"--data-dir {toy} --folds {toy}/part_b.csv"
    words = f"{common} --model-dir {tmp_path}/part_a --run-dir {tmp_path}/hard --hard-examples 40"
    mine_hard_examples.main(f"{words} --stride-um 300".split())
    words = f"{common} --part-a-dir {tmp_path}/part_a --hard-examples-dir {tmp_path}/hard"
    words += f" --run-dir {tmp_path}/final --fold none --epochs 1 --batch-size 16"
    train_final.main([*words.split(), *network])
    heatmap = ["--data-dir", str(toy), "--model-dir", f"{tmp_path}/final", "--limit", "1"]
    make_heatmap.main([*heatmap, "--run-dir", f"{tmp_path}/heatmap", "--step-um", "300"])
    assert list((tmp_path / "heatmap").rglob("*.png"))
    with pytest.raises(InputError, match=r"judges patch by patch[\s\S]*fold_none"):
        make_heatmap.main([*heatmap, "--run-dir", f"{tmp_path}/dense", "--mode", "dense"])
