"""Dense prediction: the right place, whatever the regions."""

import keras
import numpy as np
import pandas as pd
import pytest

from bach.core.errors import InputError
from bach.network.dense import DenseModel, cover, dense_step_um, predict_dense
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import build_model
from bach.network.predict import predict_slide
from bach.patches import View
from bach.slides import Slide
from bach.tasks import BACH
from bach.toy.aperio import write_slide


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = build_model("small", "none")
    # Weights of some size, so that predictions differ from place to place.
    model.get_layer("classes").kernel.assign(model.get_layer("classes").kernel * 30)
    return model


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "one.svs"
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 30, 3), np.uint8)
    pixels = coarse.repeat(64, axis=0).repeat(64, axis=1)
    write_slide(path, pixels, mpp=0.525)
    with Slide(path) as slide:
        yield slide


def _shape(slide, step):
    return int(np.ceil(slide.height / step)), int(np.ceil(slide.width / step))


def test_the_small_backbone_has_stride_32_and_a_window_of_8(model):
    dense = DenseModel(model)
    assert (dense.stride, dense.window) == (32, 8)


def test_the_result_does_not_depend_on_the_size_of_the_regions(model, slide):
    dense = DenseModel(model)
    wanted = np.ones(_shape(slide, 67.2 / 0.525), bool)
    small, large = (predict_dense([dense], slide, wanted, region=n) for n in (5, 48))
    assert not np.isnan(small).any()
    assert np.abs(small - large).max() < 1e-3
    assert small.std(axis=(0, 1)).max() > 0.01  # there is something to differ in


def test_regions_of_one_size_for_a_compiler_give_the_same(model, slide, monkeypatch):
    dense = DenseModel(model)
    wanted = np.zeros(_shape(slide, 67.2 / 0.525), bool)
    wanted[2:9, 1:5] = wanted[-3:, -2:] = True
    plain = predict_dense([dense], slide, wanted)
    monkeypatch.setattr("bach.network.dense.backend.jit", lambda: "auto")
    fixed = predict_dense([dense], slide, wanted, region=9)
    assert (np.isnan(plain) == np.isnan(fixed)).all()
    assert np.nanmax(np.abs(plain - fixed)) < 1e-3


def test_dense_agrees_with_patches_where_padding_does_not_matter(slide):
    """With no padded layer, both are the same function, and so at the same place."""
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    for width in (8, 8, 8, 8, 8):
        x = keras.layers.Conv2D(width, 3, strides=2, activation="tanh")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(16, activation="relu", name="dense")(x)
    plain = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(x))
    plain.get_layer("classes").kernel.assign(plain.get_layer("classes").kernel * 30)
    step, size = 67.2 / slide.mpp, 627.9 / slide.mpp
    rows, cols = _shape(slide, step)
    row, col = np.divmod(np.arange(rows * cols), cols)
    table = pd.DataFrame(
        {"x": (col + 0.5) * step - size / 2, "y": (row + 0.5) * step - size / 2, "size": size}
    )
    patches = predict_slide([plain], slide, table).reshape(rows, cols, 4)
    dense = predict_dense([DenseModel(plain)], slide, np.ones((rows, cols), bool), region=7)
    assert np.abs(dense - patches).max() < 0.02
    assert patches.std(axis=(0, 1)).max() > 0.02
    # Off by one cell, they would differ much more.
    assert np.abs(dense[1:] - patches[:-1]).max() > 0.1


def test_only_wanted_cells_are_predicted_and_several_models_averaged(model, slide):
    dense = DenseModel(model)
    wanted = np.zeros(_shape(slide, 134.4 / 0.525), bool)
    wanted[3, 4] = wanted[-1, -1] = True
    one = predict_dense([dense, dense], slide, wanted, every=2)
    assert (~np.isnan(one).any(axis=2) == wanted).all()
    every = np.ones(_shape(slide, 134.4 / 0.525), bool)
    assert np.allclose(
        one[wanted], predict_dense([dense], slide, every, every=2)[wanted], atol=1e-3
    )


def test_nothing_wanted_is_nothing_read(model, slide):
    assert np.isnan(predict_dense([DenseModel(model)], slide, np.zeros((3, 4), bool))).all()


def test_a_step_that_is_no_multiple_of_the_stride_is_refused(model):
    dense = DenseModel(model)
    assert dense_step_um(dense, 32 * BACH.mpp) == 1
    assert dense_step_um(dense, 134.4) == 2
    with pytest.raises(InputError, match=r"multiple of 67\.2 um"):
        dense_step_um(dense, 125.58)


def _made_of(middle, top=None):
    """A network of a stem, some layers at stride 32, and a top."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Conv2D(16, 32, strides=32, padding="valid", activation="tanh")(x)
    x = middle(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(16, activation="relu", name="dense")(x) if top is None else top(x)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(x))


def _convolutions(count, size):
    convolve = keras.layers.Conv2D
    return keras.Sequential(
        [
            convolve(16, size, padding="same", activation="tanh", kernel_initializer=_far(size))
            for _ in range(count)
        ]
    )


def _far(size):
    """A kernel that takes from far away as much as from near."""
    return keras.initializers.RandomNormal(stddev=1.5 / (4 * size), seed=1)


def test_the_halo_is_as_far_as_the_border_of_a_network_reaches():
    reach = [DenseModel(_made_of(_convolutions(n, 3))).halo for n in (1, 2, 4)]
    assert reach == [1, 2, 4]
    assert DenseModel(_made_of(keras.layers.Activation("tanh"))).halo == 0


def test_the_halo_of_a_network_that_is_sure_of_itself_is_no_smaller():
    model = _made_of(_convolutions(4, 3))
    assert DenseModel(model).halo == 4
    model.get_layer("classes").bias.assign([12, 0, 0, 0])  # always the first class
    assert model.predict_on_batch(np.zeros((1, 299, 299, 3), np.float32))[0, 0] > 0.999
    assert DenseModel(model).halo == 4


def test_a_network_that_pools_over_its_whole_input_in_between_is_refused():
    def squeeze(x):
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        strong = keras.initializers.RandomNormal(stddev=30, seed=1)
        gate = keras.layers.Dense(16, "sigmoid", kernel_initializer=strong, name="gate")(gate)
        return keras.layers.Multiply()([x, gate])

    with pytest.raises(InputError, match=r"A border 512 px away changes features by 0\.\d+"):
        DenseModel(_made_of(squeeze))


def test_a_margin_that_is_too_small_is_refused():
    def wide(x):
        return keras.layers.Cropping2D(1, name="context")(_convolutions(3, 3)(x))

    keras.utils.set_random_seed(0)
    inputs = keras.Input((299 + 64, 299 + 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Conv2D(16, 32, strides=32, padding="valid", activation="tanh")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(wide(x))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(x))
    with pytest.raises(InputError, match="a margin of 32 px does not keep it"):
        DenseModel(model)


def test_a_top_of_any_layers_is_that_of_the_model(slide):
    """The probabilities of a place are those of the patch there, whatever follows the pooling."""
    shift = keras.layers.Normalization(mean=0.1, variance=4.0, name="standardised")
    linear = _made_of(keras.layers.Activation("tanh"), top=shift)
    deep = _made_of(keras.layers.Activation("tanh"))
    step, size = 67.2 / slide.mpp, 627.9 / slide.mpp
    table = pd.DataFrame(
        {"x": [4.5 * step - size / 2], "y": [5.5 * step - size / 2], "size": [size]}
    )
    wanted = np.zeros(_shape(slide, step), bool)
    wanted[5, 4] = True
    for model in (linear, deep):
        dense = predict_dense([DenseModel(model)], slide, wanted)[5, 4]
        assert np.allclose(dense, predict_slide([model], slide, table)[0], atol=0.01)


def test_a_network_whose_features_pass_by_the_pooling_is_refused():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Conv2D(4, 32, strides=32, padding="valid")(inputs)
    mean = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    both = keras.layers.Concatenate()([mean, keras.layers.GlobalMaxPooling2D()(x)])
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="classes")(both))
    with pytest.raises(InputError, match="where some pass it by"):
        DenseModel(model)


def test_models_that_need_other_surroundings_are_averaged_in_place(slide):
    models = [DenseModel(_made_of(_convolutions(n, 3))) for n in (1, 4)]
    assert [model.halo for model in models] == [1, 4]
    wanted = np.ones(_shape(slide, 67.2 / 0.525), bool)
    apart = [predict_dense([model], slide, wanted) for model in models]
    both = predict_dense(models, slide, wanted, region=9)
    assert np.abs(both - np.mean(apart, axis=0)).max() < 2e-3
    assert both.std(axis=(0, 1)).max() > 0.01


def test_lite0_is_accepted_and_its_features_move_with_the_image():
    """Its 5x5 convolutions at stride 32 carry the zeros of a border 12 features far, no farther."""
    model = build_model("EfficientNetLite0", "imagenet")
    dense = DenseModel(model)
    assert (dense.stride, dense.window) == (32, 10)
    assert 10 <= dense.halo <= 13
    features = keras.Model(model.input, model.get_layer("pool").input)
    features = fast_clone(features, any_size=True)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 152, 152, 3)).repeat(8, axis=1).repeat(8, axis=2)
    image = image[:, : 299 + 26 * 32, : 299 + 26 * 32].astype(np.float32)
    whole = features.predict_on_batch(image)[0]
    moved = features.predict_on_batch(image[:, 32:, 32:])[0]
    gap = np.abs(whole[1:, 1:] - moved)
    assert gap[13:-13, 13:-13].max() < 1e-5
    assert gap[4:-4, 4:-4].max() > 0.1


def test_a_network_whose_features_move_unevenly_is_refused():
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    x = keras.layers.Resizing(8, 8)(x)  # always 8x8, whatever the size
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(4, name="dense")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="classes")(x))
    with pytest.raises(InputError, match="out of place"):
        DenseModel(model)


@pytest.mark.parametrize("fixed", [False, True])
def test_regions_cover_what_is_wanted_once_and_pass_over_glass(fixed):
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = np.zeros((60, 80), bool)
        for row, col in rng.integers(0, (60, 80), (3, 2)):
            wanted[row : row + 9, col : col + 9] = (
                rng.random(wanted[row : row + 9, col : col + 9].shape) < 0.5
            )
        covered = np.zeros((70, 90), int)
        for _, row, col, rows, cols in cover(wanted, 7, fixed):
            assert max(rows, cols) <= 7
            assert not fixed or rows == cols == 7
            covered[row : row + rows, col : col + cols] += 1
        assert covered[:60, :80][wanted].all()
        assert covered.max() == 1
        assert covered.astype(bool).sum() < 0.5 * covered.size


def test_regions_of_one_tissue_are_even():
    regions = cover(np.ones((105, 40), bool), 64)
    assert [region[1:] for region in regions] == [(0, 0, 53, 40), (53, 0, 52, 40)]


def test_a_turned_slide_has_a_turned_heatmap_with_eight_orientations(model, tmp_path):
    """Averaged over all orientations, turning before or after is the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    pixels = pixels.repeat(64, axis=0).repeat(64, axis=1)
    dense = DenseModel(model)
    maps = {}
    for name, array in (("upright", pixels), ("turned", np.rot90(pixels))):
        write_slide(tmp_path / f"{name}.svs", np.ascontiguousarray(array), mpp=0.525)
        with Slide(tmp_path / f"{name}.svs") as slide:
            for tta in (False, True):
                maps[name, tta] = predict_dense([dense], slide, np.ones((10, 10), bool), tta=tta)
    gaps = [np.abs(np.rot90(maps["upright", t]) - maps["turned", t]).max() for t in (True, False)]
    assert gaps[0] < 2e-3
    assert gaps[1] > 5 * gaps[0]


def test_with_a_margin_dense_is_the_same_function_as_patches(slide):
    keras.utils.set_random_seed(3)
    wide = build_model("small", "none", view=View(32))
    wide.get_layer("classes").kernel.assign(wide.get_layer("classes").kernel * 30)
    plain = build_model("small", "none")
    plain.set_weights(wide.get_weights())
    step, size = 67.2 / slide.mpp, 627.9 / slide.mpp
    rows, cols = _shape(slide, step)
    row, col = np.divmod(np.arange(rows * cols), cols)
    table = pd.DataFrame(
        {"x": (col + 0.5) * step - size / 2, "y": (row + 0.5) * step - size / 2, "size": size}
    )
    everywhere = np.ones((rows, cols), bool)
    dense = predict_dense([DenseModel(wide)], slide, everywhere)
    assert np.array_equal(dense, predict_dense([DenseModel(plain)], slide, everywhere))
    gaps = {}
    for name, one in (("margin", wide), ("plain", plain)):
        patches = predict_slide([one], slide, table).reshape(rows, cols, 4)
        gaps[name] = np.abs(dense - patches).max()
    # Pixels begin elsewhere, and are rounded to 8 bits; the padding is gone.
    assert gaps["margin"] < 0.01
    assert gaps["plain"] > 3 * gaps["margin"]
