"""Predictions: which models, of what, and reading ahead of them."""

import itertools
import json
import threading

import commands
import keras
import numpy as np
import pandas as pd
import pytest
from predict_all import predict_all

from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.pictures import write_png
from bach.network.batches import Batches, Selection
from bach.network.image_network import build_image_network
from bach.network.patch_network import build_model
from bach.network.predict import (
    ReadAhead,
    check_probabilities,
    common_view,
    image_means,
    load_models,
    model_files,
    predict_batches,
    predict_patches,
    predict_photos,
    prepare,
)
from bach.network.stores import photo_to_patches
from bach.patches import View, photo_patches
from bach.toy.aperio import write_slide


def _model(seed=0, **more):
    keras.utils.set_random_seed(seed)
    model = build_model("small", "none", **more)
    # Weights of some size, so that predictions differ from patch to patch.
    model.get_layer("classes").kernel.assign(model.get_layer("classes").kernel * 30)
    return model


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run with the models of folds 0 and 2 and of all slides, and what lies beside them."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("fold_2", "fold_0", "fold_none", "fold_0.bak"):
        (folder / name).mkdir()
        model.save(folder / name / "model.keras")
    (folder / "fold_1").mkdir()  # not finished
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image table of two photos: 14 patches and one."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for name, width, height in (("n001", 2048, 1536), ("b001", 1495, 1495)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        write_png(folder / f"{name}.png", pixels)
        rows.append((name, str(folder / f"{name}.png"), width, height, pixels))
    return pd.DataFrame(rows, columns=["image_id", "path", "width", "height", "pixels"])


def test_the_models_of_a_run_are_named_by_their_fold(run):
    assert list(model_files(run)) == [-1, 0, 2]
    assert list(load_models(run, ready=lambda model: model.name)) == [-1, 0, 2]
    assert load_models(run, [2], ready=lambda model: model.name) == {2: "small"}
    file = run / "fold_2" / "model.keras"
    assert load_models(file, ready=lambda model: model.name) == {-1: "small"}


def test_a_fold_that_is_not_finished_is_an_error(run, tmp_path):
    with pytest.raises(InputError, match=r"finished models of fold 1, 3\.\nReceived: 3 finished"):
        load_models(run, [0, 1, 3])
    with pytest.raises(InputError, match=r"must hold finished models\.\nReceived: 0 finished"):
        load_models(tmp_path)


def test_what_is_no_patch_classifier_is_refused_before_anything_is_read(model, tmp_path):
    inputs = keras.Input((224, 224, 3))
    x = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, x).save(tmp_path / "foreign.keras")
    with pytest.raises(InputError, match="takes 224x224 px"):
        load_models(tmp_path / "foreign.keras")
    build_image_network(model, 2048, 1536).save(tmp_path / "image.keras")
    with pytest.raises(InputError, match="judges whole photos"):
        load_models(tmp_path / "image.keras")
    assert len(load_models(tmp_path / "image.keras", whole_photos=True)) == 1


def test_models_that_see_something_else_are_not_averaged(model):
    assert common_view([model, model]) == View()
    with pytest.raises(InputError, match="see the same of a patch"):
        common_view([model, _model(view=View(32))])


def test_a_photo_has_the_mean_over_its_patches_and_the_models(model, images):
    models = [prepare(model), prepare(_model(seed=1))]
    table = predict_photos(models, images.drop(columns="pixels"))
    assert table["image_id"].tolist() == ["n001", "b001"]
    for row in images.itertuples():
        places = photo_patches(row.image_id, row.width, row.height, None)
        patches = photo_to_patches(row.pixels, places)
        expected = np.mean([x.predict_on_batch(patches) for x in models], axis=(0, 1))
        probs = table.loc[table["image_id"] == row.image_id, list(PROB_COLUMNS)].to_numpy()
        assert np.allclose(probs, expected, atol=1e-5)


def test_what_fills_up_the_last_batch_is_not_predicted(model):
    patches = np.random.default_rng(0).integers(0, 256, (5, 299, 299, 3), np.uint8)
    selection = Selection(patches, np.zeros(5, int), np.zeros(5), np.array([4, 0, 1, 2, 3]))
    batches = Batches([selection], 4)
    ready = prepare(model)
    probs = predict_batches(ready, batches, len(batches.labels))
    assert np.allclose(probs, ready.predict_on_batch(patches[selection.rows]), atol=1e-5)


def test_an_image_is_what_its_patches_are_in_the_mean():
    probs = np.array([[0.6, 0.4, 0, 0], [0.1, 0.9, 0, 0], [0, 0, 0.2, 0.8]])
    patches = pd.DataFrame(probs, columns=list(PROB_COLUMNS)).assign(
        image_id=["b", "b", "a"], label=[0, 0, 3]
    )
    table = image_means(patches)
    assert table["image_id"].tolist() == ["b", "a"]
    assert table["predicted"].tolist() == [1, 3]
    assert np.allclose(table[list(PROB_COLUMNS)], [[0.35, 0.65, 0, 0], [0, 0, 0.2, 0.8]])


def test_several_devices_predict_what_one_does(model, images, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (25, 30, 3), np.uint8)
    write_slide(tmp_path / "A01.svs", pixels.repeat(64, axis=0).repeat(64, axis=1), mpp=0.42)
    model.save(tmp_path / "model.keras")
    images.drop(columns="pixels").to_csv(tmp_path / "images.csv", index=False)
    files = [tmp_path / name for name in ("A01.svs", "model.keras", "images.csv")]
    process = commands.start(["tests/predict_all.py", 2, *files, tmp_path / "two.npz"])
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    device = json.loads(printed.splitlines()[-1])
    assert device["devices"] == 2
    assert "--batch-size=7. Use a multiple of 2" in device["refused"]
    with np.load(tmp_path / "two.npz") as two:
        for name, one in zip(two.files, predict_all(*files), strict=True):
            assert np.isfinite(one).all()
            assert np.allclose(one, two[name], atol=1e-5)


def test_what_is_read_ahead_comes_in_order_and_is_never_much():
    started = []

    def read(item):
        started.append(item)
        return item * 2

    ahead = ReadAhead(read, iter(range(20)), workers=3, ahead=4)
    for count, value in enumerate(ahead):
        assert value == 2 * count
        assert len(started) <= count + 1 + 4
    assert sorted(started) == list(range(20))


def test_a_reader_that_fails_in_the_middle_ends_the_reading_with_its_error():
    threads = threading.active_count()

    def read(item):
        if item == 3:
            raise OSError("the disk has gone")
        return item

    seen = iter(ReadAhead(read, itertools.count(), workers=2, ahead=4))
    assert list(itertools.islice(seen, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="the disk has gone"):
        next(seen)
    assert threading.active_count() == threads


def test_who_leaves_early_leaves_no_thread_behind():
    threads = threading.active_count()
    for value in ReadAhead(lambda item: item, itertools.count(), workers=2, ahead=4):
        if value == 5:
            break
    assert threading.active_count() == threads


def test_a_network_that_overflows_is_named_and_its_nan_is_not_taken_for_normal():
    layers = keras.layers
    inputs = keras.Input((299, 299, 3))
    values = layers.Dense(4, kernel_initializer=keras.initializers.Constant(3e38))(
        layers.GlobalAveragePooling2D()(inputs)
    )
    model = prepare(keras.Model(inputs, layers.Softmax()(values)))
    patches = np.full((3, 299, 299, 3), 200, np.uint8)
    with pytest.raises(InputError, match=r"return probabilities[\s\S]*3 of 3 patches of A01"):
        predict_patches(model, patches, name="A01")
    probs = np.full((3, 4), 0.25)
    probs[1] = (np.nan, 0, 0, 1)
    with pytest.raises(InputError, match=r"1 of 3 patches of b"):
        check_probabilities(probs, model, ["a", "b", "c"])
    check_probabilities(probs[::2], model, ["a", "c"])
