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

import collections
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.log import log
from bach.network import backend
from bach.network.augment import ORIENTATIONS, orient, orient_back
from bach.network.fold_norms import fast_clone
from bach.network.memory import release_memory
from bach.network.patch_network import (
    STRIDES,
    probabilities,
    require_layers,
    source_of,
    view_of,
)
from bach.network.predict import ReadAhead, check_probabilities
from bach.patches import NETWORK_MPP, NETWORK_SIZE
from bach.slides import Slide

# Surroundings of a region, in network px; twice that for networks that see farther. Features
# of the interior are then those of the whole slide to 3e-4 with Inception-ResNet-v2 (with
# 256 px to 2e-6, at a third more pixels to compute).
HALO = 128

# How much probabilities may change with what should have no effect: of a network that is said
# to be the same function densely, and of one that is not quite, with a warning.
SAME, NEAR = 1e-3, 0.01

# Features along a region's side. More share less surroundings but need more memory:
# Inception-ResNet-v2 takes 200 MB for a million pixels.
REGION = 66

# Features of glass in a row that are computed rather than passed over: a new region
# costs as many in surroundings.
MAX_GAP = 8

_PATCHES = "Use --mode patches with a small --batch-size, or a device with more memory."


class FeatureRegion(NamedTuple):
    """A rectangle of features that goes through the network at once.

    Attributes:
        band: First row and number of rows of the band that it belongs to.
        row, col: Its first feature.
        rows, cols: Its size.
    """

    band: tuple[int, int]
    row: int
    col: int
    rows: int
    cols: int


class DenseModel:
    """A patch classifier made fully convolutional, in two halves.

    Args:
        model: A model of `bach.network.patch_network.build_model`; left as it is.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".

    Attributes:
        stride: Network px between neighbouring features, and predictions.
        window: Side of the sliding mean in features.
        halo: Features that a region needs around those that are used.
        view: What the model sees of a patch.
        source: The file that it was loaded from.

    Raises:
        InputError: If the network sees two magnifications; or its feature map of a
            shifted image is not the shifted feature map, so that dense prediction would
            be out of place; or, by its probabilities, it is another function on a region
            than on patches with a margin, or depends on where a region is cut.
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        require_layers(model, ("pool", "dense", "classes"))
        self.view = view_of(model)
        self.window = int(model.get_layer("pool").input.shape[1])
        if self.view.zoom > 1:
            raise InputError(
                "A network of two magnifications predicts patch by patch.\n"
                f"Received: {model.name}. Use --mode patches."
            )
        self.source = source_of(model)
        clone = plain = fast_clone(model, any_size=True)
        if precision != "float32":
            clone = fast_clone(model, any_size=True, precision=precision)
        # What is checked is the function, not the rounding of half precision.
        self.stride, halo = self._check(plain)
        self.halo = math.ceil(halo / self.stride)
        base = clone.get_layer(self._base).input
        features = layers.Cropping2D(self.halo, dtype="float32")(base)
        self._features = backend.compiled(keras.Model(clone.input, features), "uint8")

        pooled = keras.Input((None, None, features.shape[-1]))
        x = layers.AveragePooling2D(self.window, strides=1)(pooled)
        x = clone.get_layer("dense")(x)
        last = clone.get_layer("classes")
        top = keras.Model(pooled, probabilities(last(x), last))
        self._top = backend.compiled(top, "float32")

    @property
    def _base(self) -> str:
        """Name of the layer that takes all features of an image."""
        return "context" if self.view.margin else "pool"

    def _check(self, clone: keras.Model) -> tuple[int, int]:
        """Measure stride and halo, in network px, and refuse what cannot be dense."""
        whole = keras.Model(clone.input, clone.get_layer(self._base).input)
        stride = _find_stride(whole, self.window, self.source)
        top = keras.Model(clone.get_layer("pool").output, clone.output)
        margin, halo = self.view.margin, max(HALO, self.view.margin)
        cell = _Cell(whole, top, self.window, 2 * halo)
        check_probabilities(cell.probs(margin, margin), self, ["a trial image"])
        if margin:
            _check_margin(cell, margin, halo, self.source)
        else:
            halo = _find_halo(cell, self.source)
        _check_alignment(whole, self.window, stride, self.source)
        return stride, halo

    def region_px(self, count: int) -> int:
        """Length of the region that gives `count` features in a row, in network px."""
        first = NETWORK_SIZE - (self.window - 1) * self.stride
        return (count - 1 + 2 * self.halo) * self.stride + first

    def features(self, region: np.ndarray, orientation: int = 0) -> np.ndarray:
        """Features of a region.

        Args:
            region: uint8 `(height, width, 3)`, both from `region_px`.
            orientation: Turn the region before and the features back after, 0..7.

        Returns:
            float32 `(rows, cols, channels)`.
        """
        seen = np.ascontiguousarray(orient(region[None], orientation))
        return orient_back(self._features(seen), orientation)[0]

    def top(self, features: np.ndarray) -> np.ndarray:
        """Predictions of the patches whose features these are.

        Args:
            features: float32 `(rows, cols, channels)`.

        Returns:
            float32 `(rows - window + 1, cols - window + 1, 4)`.
        """
        return self._top(features[None])[0]


def predict_dense(
    models: Sequence[DenseModel],
    slide: Slide,
    wanted: np.ndarray,
    every: int = 1,
    region: int = REGION,
    tta: bool = False,
) -> np.ndarray:
    """Mean probabilities of models over a slide, a prediction every stride.

    The slide goes through the network in regions, band by band; of a band the features
    are kept until the next is there, so that windows that reach over the border of two
    regions are put together from both.

    Args:
        models: Dense models of one stride.
        slide: The open slide.
        wanted: bool `(rows, cols)`: the cells to predict, of side `stride * every`.
        every: Keep every n-th prediction; cells are then larger.
        region: Features along the longest side of a region; the result does not depend
            on it, time and memory do.
        tta: Mean over the eight orientations, at eight times the cost.

    Returns:
        float32 `(rows, cols, 4)`, not a number where nothing was wanted.

    Raises:
        InputError: If the models' strides or margins differ.
    """
    if len({(model.stride, model.window, model.view) for model in models}) != 1:
        names = [f"stride {m.stride}, margin {m.view.margin}" for m in models]
        raise InputError(
            "Models that are averaged must have the same stride and margin.\n"
            f"Received: {'; '.join(names)}.\nUse the models of one run."
        )
    if not wanted.any():
        return np.full((*wanted.shape, len(CLASSES)), np.nan, np.float32)
    # Cells on the grid of the stride. Cell (i, j) is the mean over the window of features
    # that begins at (i, j).
    cells = np.zeros([(n - 1) * every + 1 for n in wanted.shape], bool)
    cells[::every, ::every] = wanted
    needed = needed_features(cells, models[0].window)
    regions = cover(needed, region, fixed=backend.jit() is not False)
    sweep = _Sweep(models, slide, cells, every)
    orientations = range(ORIENTATIONS if tta else 1)
    with backend.enough_memory(f"regions of {models[0].region_px(region)} px", _PATCHES):
        for orientation in orientations:
            sweep.add(regions, orientation)
    probs = sweep.total[::every, ::every] / (len(models) * len(orientations))
    probs[~wanted] = np.nan
    return probs


class _Sweep:
    """Adds up what models say of a slide, pass by pass.

    Args:
        models: Dense models of one stride.
        slide: The open slide.
        cells: bool `(rows, cols)`: the cells to predict, on the grid of the stride.
        every: Strides along a cell of the heatmap.

    Attributes:
        total: Sum of the probabilities over models and passes, float32
            `(rows, cols, 4)`.
    """

    def __init__(self, models: Sequence[DenseModel], slide: Slide, cells: np.ndarray, every: int):
        self._models, self._slide, self._cells = models, slide, cells
        self._model = models[0]  # for what all have in common
        scale = NETWORK_MPP / slide.mpp  # level-0 px per network px
        stride = self._stride = self._model.stride * scale
        # The patch of the first cell is centred on that cell, whose side is every * stride.
        self._first = 0.5 * every * stride - NETWORK_SIZE / 2 * scale - self._model.halo * stride
        self.total = np.zeros((*cells.shape, len(CLASSES)), np.float32)

    def add(self, regions: Sequence[FeatureRegion], orientation: int) -> None:
        """Run all regions through all models in one orientation."""
        # A region is decoded by several threads as it is; that keeps ahead of a CPU's
        # network, also of a small one. An accelerator's takes more, and more that lies ready.
        workers = 1 if backend.jit() is False else min(8, os.cpu_count() or 1)
        ahead = ReadAhead(self._read, regions, workers, ahead=2 * workers)
        before = self._model.window - 1
        mosaics = [_Mosaic(before) for _ in self._models]
        release_memory()  # what finding tissue took
        name = self._slide.name
        with tqdm(total=len(regions), desc=name, unit="region", disable=None) as bar:
            for region, seen in zip(regions, ahead, strict=True):
                for model, mosaic in zip(self._models, mosaics, strict=True):
                    features = model.features(seen, orientation)
                    release_memory()  # before more is asked for
                    strip = mosaic.join(region, features)
                    self._add_probs(model, strip, (region.band[0] - before, region.col - before))
                    del features, strip
                bar.update()
        ahead.log_rate(name, int(self._cells.sum()), "cells")

    def _read(self, region: FeatureRegion) -> np.ndarray:
        """Pixels of a region and its surroundings, in network px."""
        x, y = (self._first + place * self._stride for place in (region.col, region.row))
        width, height = self._model.region_px(region.cols), self._model.region_px(region.rows)
        return self._slide.read(x, y, width, height, NETWORK_MPP)

    def _add_probs(self, model: DenseModel, strip: np.ndarray, first: tuple[int, int]) -> None:
        """Add the predictions of the wanted cells among those that begin in a strip."""
        inside, there = [], []
        for start, length, count in zip(first, strip.shape, self._cells.shape, strict=False):
            low, high = max(0, -start), min(length - model.window + 1, count - start)
            if high <= low:
                return  # no window is whole yet
            inside.append(slice(low, high))
            there.append(slice(start + low, start + high))
        cells = self._cells[tuple(there)]
        if cells.any():
            probs = model.top(strip)[tuple(inside)]
            check_probabilities(probs[cells], model, [self._slide.name])
            self.total[tuple(there)] += probs


class _Mosaic:
    """Gives each region the features above and to its left that its windows reach over.

    Regions come band by band, in each from left to right. Of the band above only the last
    rows are kept, as far as they are still to come, of the region to the left only the
    last columns.

    Args:
        before: How many rows and columns a window reaches back.
    """

    def __init__(self, before: int):
        self._before = before
        self._band: tuple[int, int] | None = None
        # Last rows of the regions of the band above, and of this one, with their columns.
        self._above: collections.deque[tuple[int, np.ndarray]] = collections.deque()
        self._below: collections.deque[tuple[int, np.ndarray]] = collections.deque()
        # Last columns of the region to the left, and where it ends.
        self._left: np.ndarray | None = None
        self._right: int | None = None

    def join(self, region: FeatureRegion, features: np.ndarray) -> np.ndarray:
        """Put a region's features beside what was there before.

        Args:
            region: The next region.
            features: float32 `(rows, cols, channels)`.

        Returns:
            float32 `(before + rows of the band, before + cols, channels)`, zeros where
            there is nothing.
        """
        before, (row, rows) = self._before, region.band
        if region.band != self._band:
            touches = self._band is not None and sum(self._band) == row
            self._above = self._below if touches else collections.deque()
            self._below = collections.deque()
            self._band, self._right = region.band, None
        strip = np.zeros((before + rows, before + region.cols, features.shape[-1]), np.float32)
        first = region.col - before
        while self._above and self._above[0][0] + self._above[0][1].shape[1] <= first:
            self._above.popleft()
        for col, last in self._above:
            low, high = max(col, first), min(col + last.shape[1], region.col + region.cols)
            if low < high:
                strip[:before, low - first : high - first] = last[:, low - col : high - col]
        if self._right == region.col:
            strip[before:, :before] = self._left
        top = before + region.row - row
        strip[top : top + region.rows, before:] = features
        self._below.append((region.col, strip[rows:, before:].copy()))
        self._left, self._right = strip[before:, region.cols :].copy(), region.col + region.cols
        return strip


def needed_features(cells: np.ndarray, window: int) -> np.ndarray:
    """The features that cells need: bool `(rows + window - 1, cols + window - 1)`."""
    rows, cols = cells.shape
    tall = np.zeros((rows + window - 1, cols), bool)
    for offset in range(window):
        tall[offset : offset + rows] |= cells
    needed = np.zeros((rows + window - 1, cols + window - 1), bool)
    for offset in range(window):
        needed[:, offset : offset + cols] |= tall
    return needed


def cover(needed: np.ndarray, side: int, fixed: bool = False) -> list[FeatureRegion]:
    """Regions that cover all features that are needed, each once.

    Tissue is cut into bands of rows of even height, and each band into regions of even
    width, without the rows that a region does not need; wide glass is passed over.

    Args:
        needed: bool `(rows, cols)`.
        side: Features along the longest side of a region.
        fixed: Make all regions squares of `side`, for a compiler that compiles anew for
            every size. They may then reach beyond the grid.

    Returns:
        Regions, band by band from top to bottom and each from left to right.

    Example:
        >>> cover(np.array([[False, True, True], [False, False, True]]), 2)
        [FeatureRegion(band=(0, 2), row=0, col=1, rows=2, cols=2)]
    """
    regions = []
    for band in _pieces(np.asarray(needed.any(axis=1)), side, fixed):
        inside = needed[band[0] : sum(band)]
        for col, cols in _pieces(np.asarray(inside.any(axis=0)), side, fixed):
            row, rows = band
            if not fixed:
                there = np.flatnonzero(inside[:, col : col + cols].any(axis=1))
                row, rows = row + int(there[0]), int(there[-1] - there[0]) + 1
            regions.append(FeatureRegion(band, row, col, rows, cols))
    return regions


def _pieces(needed: np.ndarray, side: int, fixed: bool = False) -> list[tuple[int, int]]:
    """Start and length of pieces, none longer than `side`, that cover what is needed.

    Args:
        needed: bool `(n,)`.
        side, fixed: As in `cover`.
    """
    found = np.flatnonzero(needed)
    if not len(found):
        return []
    # The surroundings of two pieces cost as much as some features of glass between them.
    gaps = np.flatnonzero(np.diff(found) > MAX_GAP)
    starts, ends = found[[0, *(gaps + 1)]], found[[*gaps, -1]] + 1
    pieces = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        length = side if fixed else math.ceil((end - start) / math.ceil((end - start) / side))
        pieces += [
            (first, length if fixed else min(length, end - first))
            for first in range(start, end, length)
        ]
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

    for stride in STRIDES:
        if all(length(NETWORK_SIZE + n * stride) == window + n for n in (1, 2, 5)):
            return stride
    raise InputError(
        f"The features of {name} do not lie on an even grid, so dense prediction would "
        "be out of place.\nUse --mode patches."
    )


def _check_alignment(features: keras.Model, window: int, stride: int, name: str) -> None:
    """Check that the features of a shifted image are the shifted features.

    Away from the border they must agree far better than features that are off by
    one; a network that pads differently for other sizes fails here.
    """
    # 16 features or more in a row. Those less than 4 from the border see its padding.
    side = NETWORK_SIZE + max(8, 16 - window) * stride
    image = _blocks(side, 8)[None]
    whole = backend.call(features, image)[0]
    shifted = backend.call(features, image[:, stride:, stride:])[0]
    inner = slice(4, -4)
    same = np.abs(whole[1:, 1:][inner, inner] - shifted[inner, inner]).mean()
    other = np.abs(whole[:-1, 1:][inner, inner] - shifted[inner, inner]).mean()
    if not same < 0.05 * other:
        raise InputError(
            f"The features of {name} move by another amount than the image, so dense "
            "prediction would be out of place.\nUse --mode patches."
        )


class _Cell:
    """What a network says of one cell, by how much of its surroundings it is shown.

    The patch is noise, and so are its surroundings up to some distance; beyond they are
    white, as glass beside tissue is. Statistics of noise alone are the same everywhere.

    Args:
        features: The network up to the features that are pooled, for input of any size.
        top: From pooled features `(n, channels)` to probabilities.
        window: Side of the mean in features.
        farthest: The most px of noise around a patch.
    """

    def __init__(self, features: keras.Model, top: keras.Model, window: int, farthest: int):
        self._features, self._top, self._window = features, top, window
        self._farthest = farthest

    def probs(self, around: int, noise: int) -> np.ndarray:
        """Probabilities from so many network px around the patch, so many of them noise."""
        images = []
        for block in (8, 32):
            image = np.full((NETWORK_SIZE + 2 * around,) * 2 + (3,), 255, np.float32)
            middle = slice(around - noise, len(image) - around + noise)
            # The same noise around the patch, whatever there is of it.
            pattern = _blocks(NETWORK_SIZE + 2 * self._farthest, block)
            cut = slice(self._farthest - noise, len(pattern) - self._farthest + noise)
            image[middle, middle] = pattern[cut, cut]
            images.append(image)
        found = backend.call(self._features, np.stack(images))
        first = (found.shape[1] - self._window) // 2
        inner = slice(first, first + self._window)
        return backend.call(self._top, found[:, inner, inner].mean(axis=(1, 2)))


def _blocks(side: int, block: int) -> np.ndarray:
    """Noise in squares of so many px: float32 `(side, side, 3)`, 0..255."""
    count = side // block + 1
    coarse = np.random.default_rng(0).integers(0, 256, (count, count, 3))
    image = coarse.repeat(block, axis=0).repeat(block, axis=1)
    return image[:side, :side].astype(np.float32)


def _check_margin(cell: _Cell, margin: int, halo: int, name: str) -> None:
    """Check that a network with a margin is the same function densely as patch by patch.

    Raises:
        InputError: If what lies beyond the margin has an effect.
    """
    patch = cell.probs(margin, margin)
    gap = max(np.abs(patch - cell.probs(halo, noise)).max() for noise in (margin, halo))
    if not gap <= SAME:
        raise InputError(
            "With a margin, dense prediction must be the same function as patch by patch, to "
            f"{SAME:g}.\n"
            f"Received: {name}, whose probabilities differ by {gap:.2g}: a margin of {margin} px "
            "does not keep it from seeing the zeros beyond.\n"
            "Use --mode patches, or train with a larger --margin."
        )


def _find_halo(cell: _Cell, name: str) -> int:
    """How many network px around a region have an effect on it.

    Raises:
        InputError: If what lies beyond the largest that is tried has an effect, as in
            networks that pool over their whole input in between.
    """
    for halo in (HALO, 2 * HALO):
        gap = np.abs(cell.probs(halo, halo) - cell.probs(2 * halo, halo)).max()
        if gap <= SAME:
            return halo
    if not gap <= NEAR:
        raise InputError(
            "In dense prediction, what a region is cut from must have no effect on it.\n"
            f"Received: {name}, whose probabilities change by {gap:.2g} with what lies more than "
            f"{halo} px away.\nUse --mode patches."
        )
    log.warning(
        f"{name}: dense probabilities change by up to {gap:.2g} with what lies more than {halo} "
        "px away, and so with the regions that a slide is cut into; --mode patches does not"
    )
    return halo
