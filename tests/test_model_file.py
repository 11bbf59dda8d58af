"""Files of models: whatever is in them, they load or are refused by name."""

import contextlib
import io
import os
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
from tiny_training import SIDE, tiny_model

from bach.core.errors import InputError
from bach.honest.seen import Seen
from bach.network.callbacks import save_model
from bach.network.patch_network import build_model, load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model file of ours, as bytes."""
    file = tmp_path_factory.mktemp("saved") / "model.keras"
    save_model(tiny_model(), file, Seen.of(photos=["n001"]))
    return file.read_bytes()


def _archive(entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def _entries(saved):
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _changed(content, rng):
    """The content with one kind of damage at a random place."""
    content = bytearray(content)
    place, kind = int(rng.integers(len(content))), rng.integers(4)
    if kind == 0:
        content[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == 2:
        del content[place:]
    else:
        del content[place : place + int(rng.integers(1, 100))]
    return bytes(content)


def _refusal(file):
    """What is said of a file that is refused; None of one that loads."""
    try:
        load_model(file)
    except InputError as error:
        return str(error)
    return None


def test_a_file_of_ours_is_loaded_and_knows_where_it_is_from(saved, tmp_path):
    file = tmp_path / "model.keras"
    file.write_bytes(saved)
    assert load_model(file).source == str(file)


def test_damaged_models_are_refused_by_name(saved, tmp_path):
    rng = np.random.default_rng(0)
    file, said = tmp_path / "model.keras", []
    for _ in range(25):
        file.write_bytes(_changed(saved, rng))
        said.append(_refusal(file))
    refused = [text for text in said if text is not None]
    assert len(refused) > 15
    assert all("model.keras must be" in text and "damaged" in text for text in refused)


@pytest.mark.parametrize("entry", ["config.json", "model.weights.h5"])
def test_damage_that_no_checksum_tells_of_is_refused_by_name(saved, tmp_path, entry):
    rng = np.random.default_rng(1)
    file = tmp_path / "model.keras"
    for _ in range(10):
        entries = _entries(saved)
        entries[entry] = _changed(entries[entry], rng)
        file.write_bytes(_archive(entries.items()))
        assert "model.keras must" in (_refusal(file) or "model.keras must")


@pytest.mark.parametrize("entry", ["config.json", "model.weights.h5", "seen.json"])
def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(saved, tmp_path, entry):
    entries = {**_entries(saved), entry: bytes(60_000_000)}
    file = tmp_path / "bomb.keras"
    file.write_bytes(_archive(entries.items(), zipfile.ZIP_DEFLATED))
    assert file.stat().st_size < 200_000
    with pytest.raises(InputError, match=r"bomb.keras must be .*\nReceived: .* unpacks to 60,"):
        load_model(file)


def test_weights_that_are_said_to_be_larger_than_their_file_are_not_read(saved, tmp_path):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("layers/dense/vars/0", (100_000, 10_000), np.float32)
    assert len(stream.getvalue()) < 10_000
    (tmp_path / "small.weights.h5").write_bytes(stream.getvalue())
    entries = {**_entries(saved), "model.weights.h5": stream.getvalue()}
    (tmp_path / "small.keras").write_bytes(_archive(entries.items()))
    for name in ("small.weights.h5", "small.keras"):
        with pytest.raises(InputError, match=rf"{name} must[\s\S]* unpacks to 4,000,000,000"):
            build_model("small", str(tmp_path / name))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["../evil.txt", "assets/vocabulary.txt", "config.json"])
def test_what_a_model_needs_not_is_refused(saved, tmp_path, name):
    content = _archive([*_entries(saved).items(), (name, b"{}")])
    (tmp_path / "more.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"Received: an archive (that also holds|with two)"):
        load_model(tmp_path / "more.keras")
    assert os.listdir(tmp_path) == ["more.keras"]


def test_code_in_a_model_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    x = keras.layers.Lambda(lambda y: (os.mkdir("ran"), y)[1], output_shape=(3,))(x)
    keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x)).save("lambda.keras")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir("ran")
    with pytest.raises(InputError, match=r"lambda.keras must be[\s\S]*Lambda"):
        load_model("lambda.keras")
    assert os.listdir() == ["lambda.keras"]


def test_a_pipe_or_folder_in_the_place_of_a_model_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.keras")
    (tmp_path / "folder.keras").mkdir()
    start = time.monotonic()
    for name in ("pipe.keras", "folder.keras"):
        with pytest.raises(InputError, match=f"No model at .*{name}"):
            load_model(tmp_path / name)
        with pytest.raises(InputError):
            build_model("small", str(tmp_path / name))
    assert time.monotonic() - start < 60


def _dense(*inputs):
    x = keras.layers.Concatenate()([keras.layers.Flatten()(x) for x in (*inputs, *inputs)])
    return keras.Model(list(inputs), keras.layers.Dense(4, activation="softmax")(x))


@pytest.mark.parametrize("shapes", [[(10,)], [(8, 8, 1)], [(8, 8, 3), (8, 8, 3)], [(2, 8, 8, 3)]])
def test_a_model_of_other_inputs_is_refused(tmp_path, shapes):
    _dense(*map(keras.Input, shapes)).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="pictures of three channels"):
        load_model(tmp_path / "other.keras")


def test_a_model_of_other_outputs_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    for outputs in (keras.layers.Conv2D(4, 3)(inputs), keras.layers.Flatten()(inputs)):
        keras.Model(inputs, outputs).save(tmp_path / "other.keras")
        with pytest.raises(InputError, match="class probabilities"):
            load_model(tmp_path / "other.keras")


def test_a_model_that_is_a_sequence_of_layers_is_one_like_any_other(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((299, 299, 3)),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    model.save(tmp_path / "sequence.keras")
    patches = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3)).astype(np.float32)
    loaded = load_model(tmp_path / "sequence.keras")
    assert not isinstance(loaded, keras.Sequential)
    assert np.allclose(loaded.predict_on_batch(patches), model.predict_on_batch(patches))


def test_weights_of_something_else_are_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("0.5 0.5")
    (tmp_path / "bad.weights.h5").write_bytes(b"nothing")
    for name in ("notes.txt", "bad.weights.h5"):
        with pytest.raises(InputError, match=f"{name} must be a file of weights"):
            build_model("small", str(tmp_path / name))
    with pytest.raises(InputError, match="must be a file of weights"):
        build_model("small", str(tmp_path))  # a folder, not silently random weights
    tiny_model().save(tmp_path / "tiny.keras")
    with pytest.raises(InputError, match=r"tiny.keras must fit the network small"):
        build_model("small", str(tmp_path / "tiny.keras"))
    tiny_model().save_weights(tmp_path / "tiny.weights.h5")
    with pytest.raises(InputError, match=r"tiny.weights.h5 must fit the network small"):
        build_model("small", str(tmp_path / "tiny.weights.h5"))
