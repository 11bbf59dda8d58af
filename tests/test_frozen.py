"""A linear top on frozen features, on patches and on whole photos."""

import keras
import numpy as np
import pandas as pd
import pytest
from commands import part_a_words

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a
from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.errors import InputError
from bach.data import list_images
from bach.honest.learners import fit_logistic
from bach.network import frozen, predict
from bach.network.augment import orient
from bach.network.image_network import field_shape, photo_input
from bach.network.patch_network import build_model, is_field_network, load_model, view_of
from bach.network.stores import store_photos
from bach.patches import PLAIN_VIEW, View
from bach.tasks import BACH


def test_an_unknown_patient_is_nobody_else():
    table = pd.DataFrame({"image_id": ["a", "a", "b", "c", "d"]})
    groups = frozen.groups_of(table, {"a": "", "b": "p1", "c": "p1"})
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3


class _Store:
    """Plain patches of a colour per class, as a `PatchStore` has them."""

    def __init__(self, folder, labels, side=BACH.side_px):
        colours = np.array([[230, 200, 220], [200, 120, 180], [120, 80, 160], [60, 40, 120]])
        rng = np.random.default_rng(1)
        noise = rng.integers(-15, 16, (len(labels), 1, 1, 3))
        pixels = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        self.patches = np.ascontiguousarray(np.broadcast_to(pixels, (len(labels), side, side, 3)))
        names = [f"i{index}" for index in range(len(labels))]
        self.table = pd.DataFrame({"image_id": names, "label": labels})
        self.folder, self.record = folder, {"made": len(labels)}

    def select(self, rows):
        from bach.network.batches import Selection

        columns = self.table["label"].to_numpy(), self.table["image_id"].to_numpy()
        return Selection(self.patches, *columns, rows)


def _fit(store, model):
    rows = np.arange(len(store.table))
    return frozen.fit_top(model, [(store, rows, rows)], 8)


def test_a_top_is_learned_and_a_class_that_training_does_not_know_is_never_named(tmp_path):
    keras.utils.set_random_seed(0)
    store = _Store(tmp_path, np.array([0, 2, 3] * 8))
    model = build_model("small", "none", linear=True)
    before = [weight.copy() for weight in model.get_weights()[:-2]]
    history = _fit(store, model)
    probs = predict.predict_patches(predict.prepare(model), store.patches)
    assert (probs.argmax(axis=1) == store.table["label"]).all()
    assert probs[:, 1].max() < 1e-6
    loss = -np.log(probs[np.arange(24), store.table["label"]]).mean()
    assert history["loss"].item() == pytest.approx(loss, abs=1e-3)
    assert history["accuracy"].item() == 1
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=False))


def test_a_top_is_fitted_to_all_orientations(tmp_path):
    keras.utils.set_random_seed(0)
    store = _Store(tmp_path, np.array([0, 2] * 8))
    store.patches[:] = np.random.default_rng(0).integers(0, 256, store.patches.shape)
    model, turned = (build_model("small", "none", linear=True) for _ in range(2))
    turned.set_weights(model.get_weights())
    rows = np.arange(16)
    frozen.fit_top(model, [(store, rows, rows)], 8)
    frozen.fit_top(turned, [(store, rows, rows)], 8, turned=True)
    assert len(list(tmp_path.glob("features_*.npy"))) == 8
    features = [frozen.features_of(model, store, 8, n) for n in range(8)]
    fitted = fit_logistic(np.concatenate(features), np.tile([0, 2], 64), np.tile(rows, 8))
    kernel, _ = turned.get_layer("classes").get_weights()
    assert np.allclose(kernel, fitted.kernel, atol=1e-5)
    assert not np.allclose(kernel, model.get_layer("classes").get_weights()[0], atol=1e-3)
    # Those of a patch that is turned are those of the patch, turned.
    store.patches = np.ascontiguousarray(orient(store.patches, 3))
    store.record = {"made": "turned"}
    assert np.allclose(frozen.features_of(model, store, 8), features[3], atol=1e-5)


@pytest.mark.parametrize("labels", [[1, 3], [2]])
def test_two_classes_or_one_can_be_learned_too(tmp_path, labels):
    keras.utils.set_random_seed(0)
    store = _Store(tmp_path, np.array(labels * 6))
    model = build_model("small", "none", linear=True)
    _fit(store, model)
    probs = predict.predict_patches(predict.prepare(model), store.patches)
    assert (probs.argmax(axis=1) == store.table["label"]).all()


def test_features_are_kept_by_what_decides_them(tmp_path):
    keras.utils.set_random_seed(0)
    store = _Store(tmp_path, np.array([0, 1, 2, 3]))
    model = build_model("small", "none", linear=True)
    first = frozen.features_of(model, store, 4)
    (file,) = tmp_path.glob("features_*.npy")
    assert np.array_equal(np.load(file), first)
    np.save(file, first + 1)
    assert np.array_equal(frozen.features_of(model, store, 4), first + 1)  # taken from there
    model.get_layer("down3").set_weights([model.get_layer("down3").get_weights()[0] * 2])
    assert not np.allclose(frozen.features_of(model, store, 4), first + 1)
    store.record = {"made": 5}
    frozen.features_of(model, store, 4)
    assert len(list(tmp_path.glob("features_*.npy"))) == 3
    file.write_bytes(file.read_bytes()[:200])
    store.record = {"made": 4}
    doubled = model.get_layer("down3").get_weights()[0]
    model.get_layer("down3").set_weights([doubled / 2])
    with pytest.raises(InputError, match="Delete it; it is computed again"):
        frozen.features_of(model, store, 4)


def test_a_network_with_a_hidden_layer_is_refused(tmp_path):
    with pytest.raises(InputError, match="without hidden layer"):
        _fit(_Store(tmp_path, np.array([0, 1])), build_model("small", "none"))


@pytest.mark.parametrize("view", [PLAIN_VIEW, View(32), View(0, 2)])
def test_a_network_of_fields_is_that_of_patches_on_a_patch(view):
    keras.utils.set_random_seed(0)
    patches = build_model("small", "none", view=view, linear=True)
    fields = build_model("small", "none", view=view, linear=True, fields=True)
    fields.set_weights(patches.get_weights())
    assert is_field_network(fields)
    assert not is_field_network(patches)
    assert view_of(fields) == view_of(patches) == view
    if view.zoom == 1:
        image = np.random.default_rng(0).integers(0, 256, (1, view.side, view.side, 3), np.uint8)
        assert np.allclose(fields.predict(image), patches.predict(image), atol=1e-6)


def test_a_field_is_the_whole_photo_shrunk_with_mirrored_surroundings():
    photo = np.random.default_rng(0).integers(0, 256, (60, 83, 3), np.uint8)
    assert field_shape(83, 60, View(4)) == (12 + 8, 17 + 8)
    field = photo_input(photo, (20, 25))
    inner = photo_input(photo, field_shape(83, 60, PLAIN_VIEW))
    assert np.array_equal(field[4:-4, 4:-4], inner)
    assert np.array_equal(field[3, 4:-4], photo_input(photo[1:6], (1, 17))[0])
    fine = photo_input(photo, field_shape(83, 60, View(0, 2)), 2)
    assert fine.shape == (24, 34, 3)
    halves = fine[:, :].reshape(12, 2, 17, 2, 3).mean(axis=(1, 3))
    assert np.abs(halves - inner).max() <= 1


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory):
    """All four scripts with a frozen base, on whole photos and patches of slides."""
    path = tmp_path_factory.mktemp("frozen")
    words = ["--limit", "3", "--train", "top", "--fields"]
    train_part_a.main(part_a_words(toy, path / "part_a", *words))
    words = f"--data-dir {toy} --model-dir {path}/part_a --run-dir {path}/hard"
    words += f" --folds {toy}/part_b.csv --hard-examples 40 --stride-um 300"
    mine_hard_examples.main(words.split())
    words = f"--data-dir {toy} --part-a-dir {path}/part_a --hard-examples-dir {path}/hard"
    words += f" --run-dir {path}/final --folds {toy}/part_b.csv --train top --weights none"
    train_final.main([*words.split(), "--backbone", "small", "--batch-size", "16"])
    words = f"--data-dir {toy} --run-dir {path}/heatmaps --model-dir {path}/final --mode dense"
    make_heatmap.main(words.split())
    return path


def test_photos_are_predicted_whole_as_they_were_out_of_fold(toy, runs):
    images = list_images(toy, "A")
    found = pd.read_csv(runs / "part_a/predictions.csv").set_index("image_id")
    for fold, model in predict.load_models(runs / "part_a", whole_photos=True).items():
        mine = images[images["image_id"].isin(found.index[found["fold"] == fold])]
        probs = predict.predict_photos([model], mine).set_index("image_id")[list(PROB_COLUMNS)]
        assert np.allclose(probs, found.loc[probs.index, list(PROB_COLUMNS)], atol=1e-5)
    assert len(pd.read_csv(runs / "part_a/patch_predictions.csv")) == len(found)


def test_a_frozen_run_goes_through_all_four_scripts(runs):
    model = load_model(runs / "final/fold_0/model.keras")
    assert is_field_network(model)
    assert [layer.name for layer in model.layers][-3:] == ["pool", "classes", "probabilities"]
    table = pd.read_csv(runs / "heatmaps/slides.csv")
    assert table.loc[table["part"] == "B", "score"].notna().sum() == 2
    assert np.load(next((runs / "heatmaps/probs").glob("*.npy"))).shape[-1] == len(CLASSES)


def test_step_3_knows_the_patients_of_the_photos(toy, runs):
    folds = pd.read_csv(toy / "part_a.csv", dtype=str).fillna("")
    assert train_final.patients_of(runs / "part_a") == dict(
        zip(folds["image_id"], folds["patient"], strict=True)
    )
    assert len(set(folds["patient"])) > 1
    assert train_final.patients_of(runs / "none") == {}


def test_fine_tuning_goes_on_from_a_frozen_run(toy, runs, tmp_path):
    words = ["--limit", "3", "--fields", "--weights", f"{runs}/part_a", "--learning-rate", "1e-9"]
    train_part_a.main(part_a_words(toy, tmp_path / "tuned", *words, "--bn-patches", "0"))
    start = load_model(runs / "part_a/fold_0/model.keras")
    tuned = load_model(tmp_path / "tuned/fold_0/model.keras")
    assert np.allclose(start.get_weights()[-2], tuned.get_weights()[-2], atol=1e-5)


def test_frozen_batch_normalisation_stays_and_all_else_is_trained(toy, runs, tmp_path):
    words = ["--limit", "3", "--fields", "--weights", f"{runs}/part_a", "--frozen-bn", "--fold=0"]
    train_part_a.main(part_a_words(toy, tmp_path / "tuned", *words))
    files = runs / "part_a/fold_0/model.keras", tmp_path / "tuned/fold_0/model.keras"
    start, tuned = ([x for x in load_model(f)._flatten_layers() if x.weights] for f in files)
    kinds = set()
    for before, after in zip(start, tuned, strict=True):
        if isinstance(before, keras.Model):
            continue
        norm = isinstance(before, keras.layers.BatchNormalization)
        pairs = zip(before.get_weights(), after.get_weights(), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == norm, before.name
        kinds.add(norm)
    assert kinds == {True, False}


def test_whole_photos_and_patches_are_not_fine_tuned_together(toy, runs, tmp_path):
    words = f"--data-dir {toy} --part-a-dir {runs}/part_a --hard-examples-dir {runs}/hard"
    words += f" --run-dir {tmp_path}/final --folds {toy}/part_b.csv --weights none"
    with pytest.raises(InputError, match="--train top fits a top"):
        train_final.main([*words.split(), "--backbone", "small"])


def test_an_image_network_is_not_one_of_fields(toy, tmp_path):
    with pytest.raises(InputError, match="trained whole"):
        train_part_a.main(part_a_words(toy, tmp_path, "--image-network", "x", "--fields"))


def test_no_patches_are_drawn_of_whole_photos(toy, tmp_path):
    with pytest.raises(InputError, match="no patches to draw"):
        train_part_a.main(part_a_words(toy, tmp_path, "--fields", "--patches-per-photo", "2"))


def test_photos_of_other_sizes_are_stored_in_one(toy, tmp_path):
    images = list_images(toy, "A").head(1)
    store = store_photos(images, tmp_path, field_shape(2048, 1536, View(0, 2)), 2)
    assert store.patches.shape[1:] == (616, 820, 3)
