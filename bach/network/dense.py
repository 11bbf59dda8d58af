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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.log import log
from bach.network import backend
from bach.network.augment import ORIENTATIONS, orient, orient_back
from bach.network.fold_norms import fast_clone
from bach.network.memory import release_memory
from bach.network.patch_network import (
    STRIDES,
    require_layers,
    source_of,
    view_of,
)
from bach.network.predict import ReadAhead, check_probabilities
from bach.slides import Slide
from bach.tasks import task

# How much probabilities may change with what should have no effect: of a network that is said
# to be the same function densely, and of one that is not quite, with a warning.
# Both also bound how much they would change if the network were less sure, see `_change`.
SAME, NEAR = 1e-3, 0.01

# How much features may change with it, as a share of how much neighbours differ: whatever is
# trained on them. Those of a network that pads by its size are off by a good part of it.
ALIGNED = 0.05

# How far from the border of a region its effect is looked for, in network px: farther if the
# first is not enough. Around the region lie so many more that are cut off.
DISTANCES = (192, 512)
BEYOND = 128

# Colours of glass, of eosin, light and dark, and of hematoxylin, in trial images.
_COLOURS = np.array([[243, 243, 243], [222, 160, 196], [200, 120, 170], [92, 64, 140]], np.float32)

# Features along a region's side. More share less surroundings but need more memory:
# Inception-ResNet-v2 takes 200 MB for a million pixels.
REGION = 66

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
        halo: Features that a region needs around those that are used, see `_measure_border`.
        view: What the model sees of a patch.
        source: The file that it was loaded from.

    Raises:
        InputError: If the network sees two magnifications; or what a region is cut from has
            an effect on features as far from its border as 512 px; or, with a margin, it is
            another function on a region than on patches.
    """

    def __init__(self, model: keras.Model, precision: str = "float32"):
        require_layers(model, ("pool",))
        self.view = view_of(model)
        pooled = keras.Model(model.input, model.get_layer("pool").input)
        self.window = pooled.compute_output_shape((1, self.view.side, self.view.side, 3))[1]
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
        self.stride, self.halo = self._check(plain)
        base = clone.get_layer(self._base).input
        features = layers.Cropping2D(self.halo, dtype="float32")(base)
        self._features = backend.compiled(keras.Model(clone.input, features), "uint8")

        top = _top_of(clone)
        pooled = keras.Input((None, None, features.shape[-1]))
        x = layers.AveragePooling2D(self.window, strides=1)(pooled)
        self._top = backend.compiled(keras.Model(pooled, _EveryPlace(top)(x)), "float32")

    @property
    def _base(self) -> str:
        """Name of the layer that takes all features of an image."""
        return "context" if self.view.margin else "pool"

    def _check(self, clone: keras.Model) -> tuple[int, int]:
        """Measure stride (network px) and halo (features); refuse what cannot be dense."""
        whole = keras.Model(clone.input, clone.get_layer(self._base).input)
        stride = _find_stride(whole, self.window, self.source)
        network = _Network(whole, _top_of(clone), self.window, stride)
        margin = self.view.margin
        check_probabilities(network.probs(margin, margin, margin), self, ["a trial image"])
        halo = max(_find_halo(network, self.source), margin // stride)
        if margin:
            _check_margin(network, margin, halo * stride, self.source)
        log.info(
            "%s: the border of a region has an effect up to %d px away, by which regions overlap",
            self.source,
            halo * stride,
        )
        return stride, halo

    def region_px(self, count: int) -> int:
        """Length of the region that gives `count` features in a row, in network px."""
        first = task().side_px - (self.window - 1) * self.stride
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

    def cut(self, region: np.ndarray, halo: int) -> np.ndarray:
        """Cut a region that was read with a larger halo down to this model's."""
        more = (halo - self.halo) * self.stride
        return region[more : len(region) - more, more : region.shape[1] - more]

    def top(self, features: np.ndarray) -> np.ndarray:
        """Predictions of the patches whose features these are.

        Args:
            features: float32 `(rows, cols, channels)`.

        Returns:
            float32 `(rows - window + 1, cols - window + 1, classes)`.
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
        float32 `(rows, cols, classes)`, not a number where nothing was wanted.

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
        return np.full((*wanted.shape, task().count), np.nan, np.float32)
    # Cells on the grid of the stride. Cell (i, j) is the mean over the window of features
    # that begins at (i, j).
    cells = np.zeros([(n - 1) * every + 1 for n in wanted.shape], bool)
    cells[::every, ::every] = wanted
    needed = needed_features(cells, models[0].window)
    gap = 2 * max(model.halo for model in models)
    regions = cover(needed, region, fixed=backend.jit() is not False, gap=gap)
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
            `(rows, cols, classes)`.
    """

    def __init__(self, models: Sequence[DenseModel], slide: Slide, cells: np.ndarray, every: int):
        self._models, self._slide, self._cells = models, slide, cells
        # For what all have in common, and the surroundings of the one that needs most.
        self._model = max(models, key=lambda model: model.halo)
        scale = task().mpp / slide.mpp  # level-0 px per network px
        stride = self._stride = self._model.stride * scale
        # The patch of the first cell is centred on that cell, whose side is every * stride.
        self._first = 0.5 * every * stride - task().side_px / 2 * scale - self._model.halo * stride
        self.total = np.zeros((*cells.shape, task().count), np.float32)

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
        with tqdm(total=len(regions), desc=name, unit="region", leave=False, disable=None) as bar:
            for region, seen in zip(regions, ahead, strict=True):
                for model, mosaic in zip(self._models, mosaics, strict=True):
                    features = model.features(model.cut(seen, self._model.halo), orientation)
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
        return self._slide.read(x, y, width, height, task().mpp)

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


def cover(needed: np.ndarray, side: int, fixed: bool = False, gap: int = 8) -> list[FeatureRegion]:
    """Regions that cover all features that are needed, each once.

    Tissue is cut into bands of rows of even height, and each band into regions of even
    width, without the rows that a region does not need; wide glass is passed over.

    Args:
        needed: bool `(rows, cols)`.
        side: Features along the longest side of a region.
        fixed: Make all regions squares of `side`, for a compiler that compiles anew for
            every size. They may then reach beyond the grid.
        gap: Features of glass in a row that are computed rather than passed over, as many as
            a new region costs in surroundings.

    Returns:
        Regions, band by band from top to bottom and each from left to right.

    Example:
        >>> cover(np.array([[False, True, True], [False, False, True]]), 2)
        [FeatureRegion(band=(0, 2), row=0, col=1, rows=2, cols=2)]
    """
    regions = []
    for band in _pieces(np.asarray(needed.any(axis=1)), side, fixed, gap):
        inside = needed[band[0] : sum(band)]
        for col, cols in _pieces(np.asarray(inside.any(axis=0)), side, fixed, gap):
            row, rows = band
            if not fixed:
                there = np.flatnonzero(inside[:, col : col + cols].any(axis=1))
                row, rows = row + int(there[0]), int(there[-1] - there[0]) + 1
            regions.append(FeatureRegion(band, row, col, rows, cols))
    return regions


def _pieces(needed: np.ndarray, side: int, fixed: bool, gap: int) -> list[tuple[int, int]]:
    """Start and length of pieces, none longer than `side`, that cover what is needed.

    Args:
        needed: bool `(n,)`.
        side, fixed, gap: As in `cover`.
    """
    found = np.flatnonzero(needed)
    if not len(found):
        return []
    gaps = np.flatnonzero(np.diff(found) > gap)
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
    stride_um = model.stride * task().mpp
    every = round(step_um / stride_um)
    if every < 1 or abs(step_um - every * stride_um) > 1e-6 * step_um:
        raise InputError(
            f"In dense mode the step must be a multiple of {stride_um:g} um.\n"
            f"Received: {step_um:g} um (--step-um, in mining --stride-um). "
            f"Use {max(every, 1) * stride_um:g}."
        )
    return every


def _find_stride(features: keras.Model, window: int, name: str) -> int:
    """Derive the stride: by how much an image must grow for one more feature."""

    def length(side: int) -> int:
        return features.compute_output_shape((1, side, side, 3))[1]

    for stride in STRIDES:
        if all(length(task().side_px + n * stride) == window + n for n in (1, 2, 5)):
            return stride
    raise InputError(
        f"The features of {name} do not lie on an even grid, so dense prediction would "
        "be out of place.\nUse --mode patches."
    )


class _Network:
    """A patch classifier in two halves, to be asked about trial images.

    Args:
        features: The network up to the features that are pooled, for input of any size.
        top: From pooled features `(n, channels)` to probabilities.
        window: Side of the mean in features.
        stride: Network px between features.
    """

    def __init__(self, features: keras.Model, top: keras.Model, window: int, stride: int):
        self._features, self._top = features, top
        self.window, self.stride = window, stride

    def probs(self, around: int, tissue: int, farthest: int) -> np.ndarray:
        """Probabilities of two patches, by how much of their surroundings is shown.

        The patches are tissue, and so are their surroundings up to some distance; beyond they
        are white, as glass is. Statistics of one tissue alone are the same everywhere.

        Args:
            around: Network px around the patch that are shown.
            tissue: How many of them are tissue.
            farthest: The most that is asked for, for the tissue to be the same.
        """
        images = []
        for blocks in ((4, 16, 64), (32,)):
            image = np.full((task().side_px + 2 * around,) * 2 + (3,), 255, np.float32)
            middle = slice(around - tissue, len(image) - around + tissue)
            pattern = _mosaic(task().side_px + 2 * farthest, *blocks)
            cut = slice(farthest - tissue, len(pattern) - farthest + tissue)
            image[middle, middle] = pattern[cut, cut]
            images.append(image)
        found = backend.call(self._features, np.stack(images))
        first = (found.shape[1] - self.window) // 2
        inner = slice(first, first + self.window)
        return self._ask(found[:, inner, inner].mean(axis=(1, 2)))

    def measure_border(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Measure how much the border of a region changes, by the distance from it.

        The same features are found twice, in a region and in a larger image that it is cut
        from. One image is tissue in glass, one is coarse in fine tissue: for the surroundings to
        have another mean.

        Args:
            count: Farthest distance, in features.

        Returns:
            Largest changes at 0 to `count` features from the border, two arrays
            `(count + 1,)`: of features, in the mean over them and as a share of how much
            neighbours differ, and of probabilities of the patches, see `_change`.
        """
        more = math.ceil(BEYOND / self.stride)
        side = task().side_px + 2 * (count + more) * self.stride
        inside = slice(more * self.stride, -more * self.stride)
        changes = []
        glass = np.full((side, side, 3), 255, np.float32)
        for tissue, around in (
            (_mosaic(side, 4, 16, 64), glass),
            (_mosaic(side, 32), _mosaic(side, 8)),
        ):
            image = around.copy()
            image[inside, inside] = tissue[inside, inside]
            whole = backend.call(self._features, image[None])[0][more:-more, more:-more]
            cut = backend.call(self._features, image[None, inside, inside])[0]
            spread = np.abs(np.diff(cut, axis=0)).mean() + np.finfo(np.float32).tiny
            features = _by_distance(np.abs(whole - cut).mean(axis=-1) / spread, np.mean)
            probs = _change(self._places(whole), self._places(cut))
            changes.append((features[: count + 1], _by_distance(probs, np.max)))
        features, probs = np.max(changes, axis=0)
        return features, probs

    def _places(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of all patches of a feature map: `(rows, cols, classes)`."""
        sums = np.pad(features, ((1, 0), (1, 0), (0, 0))).astype(np.float64).cumsum(0).cumsum(1)
        n = self.window
        means = (sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]) / n**2
        return self._ask(means.reshape(-1, means.shape[-1])).reshape(*means.shape[:2], -1)

    def _ask(self, pooled: np.ndarray) -> np.ndarray:
        return backend.call(self._top, pooled.astype(np.float32))


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How much probabilities `(..., classes)` change at most, were they not as sure of themselves.

    Of a trial image a trained network may be so sure that it takes much to change its
    probabilities; of tissue it is not. A change of log-odds by x changes probabilities by
    x / 4 at most.
    """
    logs = [np.log(np.maximum(probs, np.finfo(np.float32).tiny)) for probs in (before, after)]
    return np.ptp(logs[0] - logs[1], axis=-1) / 4


def _by_distance(values: np.ndarray, join: Callable[[np.ndarray], float]) -> np.ndarray:
    """Join the values of a square that are equally far from its border, from the border on."""
    away = np.minimum(np.arange(len(values)), np.arange(len(values))[::-1])
    distance = np.minimum(away[:, None], away)
    return np.array([join(values[distance == d]) for d in range(distance.max() + 1)])


class _EveryPlace(layers.Layer):
    """Asks a model of pooled features about every place of a map of them.

    Args:
        top: From `(n, channels)` to `(n, classes)`.
    """

    def __init__(self, top: keras.Model):
        super().__init__(dtype="float32")
        self._model = top

    def call(self, features):
        batch, rows, cols, channels = keras.ops.shape(features)
        probs = self._model(keras.ops.reshape(features, (-1, channels)))
        return keras.ops.reshape(probs, (batch, rows, cols, task().count))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], task().count)


def _top_of(model: keras.Model) -> keras.Model:
    """All of a patch classifier that follows its pooling.

    Raises:
        InputError: If what follows takes anything else as well.
    """
    try:
        return keras.Model(model.get_layer("pool").output, model.output)
    except ValueError as error:
        raise InputError(
            "In dense mode all of a network's features must go through its layer `pool`.\n"
            f"Received: {source_of(model)}, where some pass it by.\nUse --mode patches."
        ) from error


def _mosaic(side: int, *blocks: int) -> np.ndarray:
    """A trial image of squares of so many px, kinds of them laid over each other.

    In colours of tissue. In noise of all colours the border has less of an effect than on a real
    field (0.0008 in place of 0.004, five features away from it, in DenseNet121).

    Returns:
        float32 `(side, side, 3)`, 0..255.
    """
    rng = np.random.default_rng(0)
    image = np.zeros((side, side, 3), np.float32)
    for block in blocks:
        count = side // block + 1
        coarse = _COLOURS[rng.integers(0, len(_COLOURS), (count, count))]
        image += coarse.repeat(block, axis=0).repeat(block, axis=1)[:side, :side] / len(blocks)
    return image


def _check_margin(network: _Network, margin: int, halo: int, name: str) -> None:
    """Check that a network with a margin is the same function densely as patch by patch.

    Raises:
        InputError: If what lies beyond the margin has an effect.
    """
    patch = network.probs(margin, margin, halo)
    found = [network.probs(halo, tissue, halo) for tissue in (margin, halo)]
    gap = max(np.abs(patch - probs).max() for probs in found)
    unsure = max(_change(patch, probs).max() for probs in found)
    if not (gap <= SAME and unsure <= NEAR):
        raise InputError(
            "With a margin, dense prediction must be the same function as patch by patch, to "
            f"{SAME:g}.\n"
            f"Received: {name}, whose probabilities differ by {max(gap, unsure):.2g}: a margin of "
            f"{margin} px does not keep it from seeing the zeros beyond.\n"
            "Use --mode patches, or train with a larger --margin."
        )
    if unsure > SAME:
        log.warning(
            f"{name}: dense probabilities can differ by up to {unsure:.2g} from those patch by "
            f"patch, for the network sees somewhat farther than its margin of {margin} px"
        )


def _find_halo(network: _Network, name: str) -> int:
    """How many features around a region have an effect on it.

    Raises:
        InputError: If there is an effect as far as it is looked for, as in networks that pool
            over their whole input in between, or pad by its size.
    """
    for px in DISTANCES:
        count = math.ceil(px / network.stride)
        features, probs = network.measure_border(count)
        # Half, for on real fields borders had up to twice the effect (benchmarks/backbones.py).
        halo = _reach(features, probs, SAME / 2)
        if halo < count:  # at two distances in a row at least
            return halo
    halo = _reach(features, probs, NEAR)
    if halo >= count:
        raise InputError(
            "In dense prediction, what a region is cut from must have no effect on it.\n"
            f"Received: {name}. A border {px} px away changes features by {features[-1]:.2g} "
            f"of what neighbours differ by, and probabilities by {probs[-1]:.2g}: the network "
            "pools over its whole input, or pads by its size.\n"
            "Use --mode patches."
        )
    log.warning(
        f"{name}: dense probabilities change by up to {probs[halo:].max():.2g} with what lies more "
        f"than {halo * network.stride} px away, and so with the regions that a slide is cut into; "
        "--mode patches does not"
    )
    return halo


def _reach(features: np.ndarray, probs: np.ndarray, same: float) -> int:
    """The distance from which on a border changes neither features nor probabilities.

    Args:
        features, probs: Of `_Network.measure_border`.
        same: How much probabilities may change.

    Returns:
        In features; one more than was measured if it changes something as far as that.
    """
    changed = np.flatnonzero(~((features <= ALIGNED) & (probs <= same)))
    return int(changed[-1]) + 1 if len(changed) else 0
