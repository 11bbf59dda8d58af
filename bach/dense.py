"""Dense prediction: the network run once over large regions instead of patch by patch.

A patch classifier ends in a mean over its feature map (8x8 for 299 px at stride 32)
and a top. Run over a larger region, the same convolutions give a larger feature map;
an 8x8 mean that slides over it, followed by the same top, is the prediction of a
patch every 32 network px (67.2 um), and no pixel is computed more than once but for
the surroundings that regions share.

For a model trained with a margin, that is the same function as patch by patch. For
others it is not quite: inside a patch they see zeros beyond the patch's edge where
dense prediction sees what is really there.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from bach import devices
from bach.augment import ORIENTATIONS, orient, orient_back
from bach.classes import CLASSES
from bach.inference import fast_clone
from bach.model import margin_of
from bach.patches import NETWORK_MPP, NETWORK_SIZE
from bach.predict import ReadAhead
from bach.runs import InputError
from bach.slides import Slide

# Surroundings of a region, in network px: features of the interior are then those of
# the whole slide to 3e-4 with Inception-ResNet-v2 (with 256 px to 2e-6, at a third
# more pixels to compute).
HALO = 128

# Cells along a region's side. More share less, but need more memory.
REGION_CELLS = 64

# Cells of glass in a row that are computed rather than passed over: a new region costs
# as many in surroundings.
MAX_GAP = 16


class DenseModel:
    """A patch classifier made fully convolutional.

    Args:
        model: A model of `bach.model.build_model`.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".

    Attributes:
        stride: Network px between neighbouring predictions.
        window: Side of the sliding mean in features.
        halo: Features that a region needs around those that are used.
        margin: Of the model, in network px.

    Raises:
        InputError: If the network's feature map of a shifted image is not the
            shifted feature map, so that dense prediction would be out of place.
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        self.window = int(model.get_layer("pool").input.shape[1])
        clone = fast_clone(model, any_size=True, precision=precision)
        self.margin = margin_of(model)
        base = clone.get_layer("context" if self.margin else "pool").input
        features = keras.Model(clone.input, base)
        self.stride = _find_stride(features, self.window, model.name)
        self.halo = math.ceil(max(HALO, self.margin) / self.stride)
        x = layers.Cropping2D(self.halo, dtype="float32")(features.output)
        x = layers.AveragePooling2D(self.window, strides=1, dtype="float32")(x)
        x = clone.get_layer("dense")(x)
        last = clone.get_layer("classes")
        x = last(x)
        if last.activation is keras.activations.sigmoid:
            x = x / keras.ops.maximum(keras.ops.sum(x, axis=-1, keepdims=True), 1e-7)
        self._model = keras.Model(clone.input, x)
        self._model.compile(jit_compile=devices.jit())
        _check_alignment(features, self.stride, model.name)

    def region_px(self, cells: int) -> int:
        """Length of the region that gives `cells` predictions in a row, in network px."""
        return (cells - 1 + 2 * self.halo) * self.stride + NETWORK_SIZE

    def predict(self, region: np.ndarray, tta: bool = False) -> np.ndarray:
        """Predict a region.

        Args:
            region: uint8 `(height, width, 3)`, both from `region_px`.
            tta: Mean over the eight orientations, at eight times the cost.

        Returns:
            float32 `(rows, cols, 4)`.
        """
        count = ORIENTATIONS if tta else 1
        total = 0.0
        for index in range(count):
            seen = np.ascontiguousarray(orient(region[None], index))
            total = total + orient_back(np.asarray(self._model.predict_on_batch(seen)), index)
        return total[0] / count


def predict_dense(
    models: Sequence[DenseModel],
    slide: Slide,
    wanted: np.ndarray,
    every: int = 1,
    region_cells: int = REGION_CELLS,
    tta: bool = False,
) -> np.ndarray:
    """Mean probabilities of models over a slide, a prediction every stride.

    Args:
        models: Dense models of one stride.
        slide: The open slide.
        wanted: bool `(rows, cols)`: the cells to predict, of side `stride * every`.
        every: Keep every n-th prediction; cells are then larger.
        region_cells: Side of a region in predictions; the result does not depend
            on it, time and memory do.
        tta: Mean over the eight orientations too.

    Returns:
        float32 `(rows, cols, 4)`, not a number where nothing was wanted.

    Raises:
        InputError: If the models' strides or margins differ.
    """
    if len({(model.stride, model.window, model.margin) for model in models}) != 1:
        raise InputError("Models that are averaged must have the same stride and margin.")
    model = models[0]
    result = np.full((*wanted.shape, len(CLASSES)), np.nan, np.float32)
    regions = cover(wanted, max(1, region_cells // every), devices.jit() is not False)
    scale = NETWORK_MPP / slide.mpp  # level-0 px per network px
    step = model.stride * every * scale

    def read(region: tuple[int, int, int, int]) -> np.ndarray:
        row, col, rows, cols = region
        # The first prediction's patch is centred on the first cell.
        first = 0.5 * step - (NETWORK_SIZE / 2 + model.halo * model.stride) * scale
        height, width = (model.region_px((n - 1) * every + 1) for n in (rows, cols))
        return slide.read(first + col * step, first + row * step, width, height, NETWORK_MPP)

    if not regions:
        return result
    # One thread: it keeps ahead of a CPU's network, and memory does not grow.
    ahead = ReadAhead(read, regions, workers=1, ahead=2)
    with tqdm(total=len(regions), desc=slide.name, unit="region", disable=None) as bar:
        for (row, col, rows, cols), seen in zip(regions, ahead, strict=True):
            probs = np.mean([one.predict(seen, tta)[::every, ::every] for one in models], axis=0)
            part = wanted[row : row + rows, col : col + cols]
            target = result[row : row + rows, col : col + cols]
            target[part] = probs[: part.shape[0], : part.shape[1]][part]
            bar.update()
    ahead.log_rate(slide.name, int(wanted.sum()), "cells")
    return result


def cover(wanted: np.ndarray, side: int, fixed: bool = False) -> list[tuple[int, int, int, int]]:
    """Regions that cover all wanted cells.

    Tissue is cut into bands of rows of even height, and each band into regions of even
    width; glass of more than a patch's width is passed over.

    Args:
        wanted: bool `(rows, cols)`.
        side: Cells along the longest side of a region.
        fixed: Make all regions squares of `side`, for a compiler that compiles anew for
            every size. They may then reach beyond the grid.

    Returns:
        Row and column of the first cell, rows and columns of each region.

    Example:
        >>> cover(np.array([[False, True, True], [False, False, True]]), 2)
        [(0, 1, 2, 2)]
    """
    regions = []
    for row, rows in _pieces(wanted.any(axis=1), side):
        for col, cols in _pieces(wanted[row : row + rows].any(axis=0), side):
            regions.append((row, col, side, side) if fixed else (row, col, rows, cols))
    return regions


def _pieces(wanted: np.ndarray, side: int) -> list[tuple[int, int]]:
    """Start and length of even pieces, none longer than `side`, that cover what is wanted."""
    found = np.flatnonzero(wanted)
    if not len(found):
        return []
    # The surroundings of two pieces cost as much as some cells of glass between them.
    gaps = np.flatnonzero(np.diff(found) > MAX_GAP)
    starts, ends = found[[0, *(gaps + 1)]], found[[*gaps, -1]] + 1
    pieces = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        length = math.ceil((end - start) / math.ceil((end - start) / side))
        pieces += [(first, min(length, end - first)) for first in range(start, end, length)]
    return pieces


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
    side = NETWORK_SIZE + 24 * stride
    coarse = rng.integers(0, 256, (1, side // 8 + 1, side // 8 + 1, 3))
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side].astype(np.float32)
    whole = devices.call(features, image)[0]
    shifted = devices.call(features, image[:, stride:, stride:])[0]
    inner = slice(8, -9)
    same = np.abs(whole[1:, 1:][inner, inner] - shifted[inner, inner]).mean()
    other = np.abs(whole[:-1, 1:][inner, inner] - shifted[inner, inner]).mean()
    if not same < 0.05 * other:
        raise InputError(
            f"The features of {name} move by another amount than the image, so dense "
            "prediction would be out of place.\nUse --mode patches."
        )
