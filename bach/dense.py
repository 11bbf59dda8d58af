"""Dense prediction: the network run once over large regions instead of patch by patch.

A patch classifier ends in a mean over its feature map (8x8 for 299 px at stride 32)
and a top. Run over a larger region, the same convolutions give a larger feature map;
an 8x8 mean that slides over it, followed by the same top, is the prediction of a
patch every 32 network px (67.2 um), and no pixel is computed more than once but for
the surroundings that regions share.

It is not quite the same function: inside a patch the network sees zeros beyond the
patch's edge where dense prediction sees what is really there.
"""

import collections
import concurrent.futures
import math
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from bach import devices
from bach.classes import CLASSES
from bach.patches import NETWORK_MPP, NETWORK_SIZE
from bach.runs import InputError
from bach.slides import Slide

# Surroundings of a region, in network px: features of the interior are then those of
# the whole slide to 2e-6 with Inception-ResNet-v2.
HALO = 256

# Cells along a region's side. More share less, but need more memory.
REGION_CELLS = 48


class DenseModel:
    """A patch classifier made fully convolutional.

    Args:
        model: A model of `bach.model.build_model`.

    Attributes:
        stride: Network px between neighbouring predictions.
        window: Side of the sliding mean in features.
        halo: Features that a region needs around those that are used.

    Raises:
        InputError: If the network's feature map of a shifted image is not the
            shifted feature map, so that dense prediction would be out of place.
    """

    def __init__(self, model: keras.Model):
        self.window = int(model.get_layer("pool").input.shape[1])
        any_size = _clone(model)
        features = keras.Model(any_size.input, any_size.get_layer("pool").input)
        self.stride = _find_stride(features, self.window, model.name)
        self.halo = math.ceil(HALO / self.stride)
        x = layers.Cropping2D(self.halo)(features.output)
        x = layers.AveragePooling2D(self.window, strides=1)(x)
        x = any_size.get_layer("dense")(x)
        last = any_size.get_layer("classes")
        x = last(x)
        if last.activation is keras.activations.sigmoid:
            x = x / keras.ops.maximum(keras.ops.sum(x, axis=-1, keepdims=True), 1e-7)
        self._model = keras.Model(any_size.input, x)
        self._model.compile(jit_compile=devices.jit())
        _check_alignment(features, self.stride, model.name)

    def region_px(self, cells: int) -> int:
        """Side of the region that gives `cells` predictions in a row, in network px."""
        return (cells - 1 + 2 * self.halo) * self.stride + NETWORK_SIZE

    def predict(self, region: np.ndarray) -> np.ndarray:
        """Predict a region.

        Args:
            region: uint8 `(side, side, 3)`, `side` from `region_px`.

        Returns:
            float32 `(cells, cells, 4)`.
        """
        return np.asarray(self._model.predict_on_batch(region[None]))[0]


def predict_dense(
    models: Sequence[DenseModel],
    slide: Slide,
    wanted: np.ndarray,
    every: int = 1,
    region_cells: int = REGION_CELLS,
) -> np.ndarray:
    """Mean probabilities of models over a slide, a prediction every stride.

    Args:
        models: Dense models of one stride.
        slide: The open slide.
        wanted: bool `(rows, cols)`: the cells to predict, of side `stride * every`.
        every: Keep every n-th prediction; cells are then larger.
        region_cells: Side of a region in predictions; the result does not depend
            on it, time and memory do.

    Returns:
        float32 `(rows, cols, 4)`, not a number where nothing was wanted.

    Raises:
        InputError: If the models' strides differ.
    """
    if len({(model.stride, model.window, model.halo) for model in models}) != 1:
        raise InputError("Models that are averaged must have the same stride.")
    model = models[0]
    result = np.full((*wanted.shape, len(CLASSES)), np.nan, np.float32)
    side = max(1, region_cells // every)  # cells of a region
    regions = [
        (row, col)
        for row in range(0, wanted.shape[0], side)
        for col in range(0, wanted.shape[1], side)
        if wanted[row : row + side, col : col + side].any()
    ]
    count = (side - 1) * every + 1
    pixels = model.region_px(count)
    scale = NETWORK_MPP / slide.mpp  # level-0 px per network px
    step = model.stride * every * scale

    def read(region: tuple[int, int]) -> np.ndarray:
        row, col = region
        # The first prediction's patch is centred on the first cell.
        first = 0.5 * step - (NETWORK_SIZE / 2 + model.halo * model.stride) * scale
        return slide.read(first + col * step, first + row * step, pixels, pixels, NETWORK_MPP)

    with tqdm(total=len(regions), desc=slide.name, unit="region", disable=None) as bar:
        for (row, col), seen in zip(regions, _ahead(read, regions), strict=True):
            probs = np.mean([one.predict(seen)[::every, ::every] for one in models], axis=0)
            part = wanted[row : row + side, col : col + side]
            target = result[row : row + side, col : col + side]
            target[part] = probs[: part.shape[0], : part.shape[1]][part]
            bar.update()
    return result


def dense_step_um(model: DenseModel, step_um: float) -> int:
    """How many strides a heatmap step is.

    Raises:
        InputError: If the step is no multiple of the stride.
    """
    stride_um = model.stride * NETWORK_MPP
    every = round(step_um / stride_um)
    if every < 1 or abs(step_um - every * stride_um) > 1e-6 * step_um:
        raise InputError(
            f"In dense mode the step must be a multiple of {stride_um:g} um.\n"
            f"Received: --step-um={step_um:g}. Use {max(every, 1) * stride_um:g}."
        )
    return every


def _ahead(read, regions: list) -> Iterator[np.ndarray]:
    """Read one region ahead of the network."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        waiting = collections.deque()
        for region in regions:
            waiting.append(pool.submit(read, region))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _clone(model: keras.Model) -> keras.Model:
    """The same network, weights included, for input of any size."""
    inputs = keras.Input((None, None, 3))
    clone = keras.models.clone_model(
        model,
        input_tensors=inputs,
        clone_function=lambda layer: (
            _clone(layer)
            if isinstance(layer, keras.Model)
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    clone.set_weights(model.get_weights())
    return clone


def _find_stride(features: keras.Model, window: int, name: str) -> int:
    """Derive the stride: by how much an image must grow for one more feature."""

    def length(side: int) -> int:
        return features.compute_output_shape((1, side, side, 3))[1]

    for stride in (32, 16, 64, 8):
        if all(length(NETWORK_SIZE + n * stride) == window + n for n in (1, 2, 5)):
            return stride
    raise InputError(
        f"The features of {name} do not lie on an even grid, so dense prediction would "
        "be out of place.\nUse --mode patches."
    )


def _check_alignment(features: keras.Model, stride: int, name: str) -> None:
    """Check that the features of a shifted image are the shifted features.

    Away from the border they must agree far better than features that are off by
    one; a network that pads differently for other sizes fails here.
    """
    rng = np.random.default_rng(0)
    side = NETWORK_SIZE + 16 * stride
    coarse = rng.integers(0, 256, (1, side // 8 + 1, side // 8 + 1, 3))
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side].astype(np.float32)
    whole = np.asarray(features.predict_on_batch(image))[0]
    shifted = np.asarray(features.predict_on_batch(image[:, stride:, stride:]))[0]
    inner = slice(8, -9)
    same = np.abs(whole[1:, 1:][inner, inner] - shifted[inner, inner]).mean()
    other = np.abs(whole[:-1, 1:][inner, inner] - shifted[inner, inner]).mean()
    if not same < 0.05 * other:
        raise InputError(
            f"The features of {name} move by another amount than the image, so dense "
            "prediction would be out of place.\nUse --mode patches."
        )
