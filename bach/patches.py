"""Where patches lie: grids on images and slides, and tables of patches.

A patch table has the columns `image_id, x, y, size, tissue, label`: left, top and
side in level-0 px (floats on slides), the share of tissue, and the label.
"""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bach.core.errors import InputError
from bach.core.tables import read_table
from bach.core.text import listed
from bach.tasks import task

# The largest slides have about a million cells of the smallest sensible step.
_MOST_PATCHES = 20_000_000

_EDGE = 1e-6  # a rounding error of coordinates in map px, and of shares

COLUMNS = ["image_id", "x", "y", "size", "tissue", "label"]


class View(NamedTuple):
    """What a network sees of a patch.

    Attributes:
        margin: Surroundings on each side, in network px.
        zoom: Pixels along a network px: 2 for a network that sees the middle of the
            patch at twice the magnification as well.
    """

    margin: int = 0
    zoom: int = 1

    @property
    def side(self) -> int:
        """Side of the network's input in px."""
        return (task().side_px + 2 * self.margin) * self.zoom


PLAIN_VIEW = View()


def read_patches(path: str | os.PathLike) -> pd.DataFrame:
    """Read a patch table of ours: `image_id` as text, all other columns as numbers.

    An empty cell is not a number: the probabilities of a patch that was not predicted.

    Raises:
        InputError: If the file is missing or damaged.
    """
    table = read_table(path, COLUMNS)
    names = [name for name in table.columns if name != "image_id"]
    try:
        table = table.assign(**table[names].apply(pd.to_numeric).replace([np.inf, -np.inf], np.nan))
        labels, probs = range(task().count), table[[n for n in task().columns if n in names]]
        good = table[[name for name in COLUMNS if name in names]].notna().all(axis=1)
        # A share and a probability may be a rounding error below 0 or above 1.
        good &= table["label"].isin(labels) & (table["size"] > 0)
        good &= table["tissue"].between(-_EDGE, 1 + _EDGE)
        good &= (probs.isna() | ((probs >= -_EDGE) & (probs <= 1 + _EDGE))).all(axis=1)
        if not good.all():
            raise ValueError(f"no patch in rows {listed(np.flatnonzero(~good) + 1)}")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} must be a patch table, with numbers in all columns but image_id.\n"
            f"Received: {error}.\nDelete it and run the script that wrote it with --resume."
        ) from error
    return table


def grid(width: float, height: float, size: float, stride: float) -> np.ndarray:
    """Left and top edges of patches that cover an image.

    Patches stand every `stride`; the last row and column are moved flush with the
    edge, so that nothing is left out. An image smaller than a patch has one patch
    at its corner, which reaches beyond it.

    Args:
        width, height: Size of the image in px.
        size: Side of a patch in px.
        stride: Step between patches in px.

    Returns:
        Array `(n, 2)` of x, y, row by row; int64 if all arguments are integers,
        else float64.

    Raises:
        ValueError: If an argument is not positive.

    Example:
        >>> len(grid(2048, 1536, 1495, 99))
        14
    """
    for name, value in (("width", width), ("height", height), ("size", size), ("stride", stride)):
        if not value > 0:
            raise ValueError(f"{name} must be positive. Received: {name}={value}.")
    _check_count(max(width - size, 0) / stride + 1, max(height - size, 0) / stride + 1, stride)

    # Differs from Kwok 2018: the step alone gives 6 patches per photo. That the last row and
    # column are flush with the edge is our reading of the 14 that the paper reports.
    def starts(length: float) -> np.ndarray:
        last = max(length - size, 0)
        steps = np.arange(0, last, stride)
        return np.append(steps, last).astype(np.result_type(steps, np.asarray(last)))

    x, y = np.meshgrid(starts(width), starts(height))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def photo_patches(image_id: str, width: int, height: int, label: int | None) -> pd.DataFrame:
    """Table of the patches of a photo, 14 for one of 2048x1536 px.

    The share of tissue of a photo is not measured: photos show tissue. Of a task whose findings
    are points there is one patch, in the middle: what the photo is of lies there.
    """
    size = task().patch_px
    corners = grid(width, height, size, task().stride_px)
    if task().marked:
        corners = np.array([[max(side - size, 0) // 2 for side in (width, height)]])
    return _table(image_id, corners, task().patch_px, 1.0, -1 if label is None else label)


class SlideMaps(NamedTuple):
    """A slide as it is before a network looks at it: maps of one size, and what places them.

    Attributes:
        name: Name of the slide.
        width, height: Size of the slide in level-0 px.
        mpp: um per level-0 px.
        downsample: Level-0 px per px of the maps.
        tissue: Tissue mask, bool `(rows, cols)`.
        labels: Annotation as uint8 0..n-1 `(rows, cols)`, or None.
        thumbnail: uint8 `(rows, cols, 3)`; empty where nothing is drawn.
        annotation: Sum of the annotation as it is stored (`AnnotationSummary`), or None.
        warnings: What is odd about pixels, mask or tissue, a sentence each.
        marks: Of an annotation of places, x, y (level-0 px) and label of each, (n, 3), or None.
    """

    name: str
    width: int
    height: int
    mpp: float
    downsample: float
    tissue: np.ndarray
    labels: np.ndarray | None = None
    thumbnail: np.ndarray = np.zeros((0, 0, 3), np.uint8)
    annotation: Mapping[str, object] | None = None
    warnings: tuple[str, ...] = ()
    marks: np.ndarray | None = None


def slide_patches(maps: SlideMaps, stride_um: float | None = None) -> pd.DataFrame:
    """Table of all patches of a slide, with their tissue share and label.

    Args:
        maps: The slide's maps.
        stride_um: Step between patches in um; that of the task by default.

    Returns:
        Patch table; coordinates are floats in level-0 px, never rounded. The label
        is the mean of the annotation over what of the patch lies on the slide, rounded
        half up, or -1 without annotation.

    Source: Kwok 2018, sections 4.3 and 4.4.
    """
    # Differs from Kwok 2018: the paper does not say how patches of slides were scaled. Here they
    # span the same um as those of photos (1344.5 level-0 px at 0.467 um per px), and their
    # coordinates are not rounded.
    size = task().patch_um / maps.mpp
    corners = grid(maps.width, maps.height, size, (stride_um or task().step_um) / maps.mpp).astype(
        np.float64
    )
    return _measured(maps, corners, size)


def cell_patches(maps: SlideMaps, step_um: float) -> pd.DataFrame:
    """Table of the patches centred on the cells of a slide.

    The slide is divided into square cells of one step. Patches at the border reach
    beyond the slide and see white there, so that every pixel of the slide lies in a
    cell, the far corner included.

    Args:
        maps: The slide's maps.
        step_um: Side of a cell in um.

    Returns:
        Patch table with the additional columns `row, col` of the cell.
    """
    size, step = task().patch_um / maps.mpp, step_um / maps.mpp
    rows, cols = grid_shape(maps.width, maps.height, step)
    row, col = np.divmod(np.arange(rows * cols), cols)
    corners = np.stack([(col + 0.5) * step - size / 2, (row + 0.5) * step - size / 2], axis=1)
    return _measured(maps, corners, size).assign(row=row, col=col)


def grid_shape(width: int, height: int, step: float) -> tuple[int, int]:
    """Rows and columns of cells that cover a slide; `step` in level-0 px.

    Raises:
        InputError: If there would be more than can be predicted.
    """
    _check_count(width / step, height / step, step)
    # The last cell is there if more than a rounding error of it is.
    return max(1, math.ceil(height / step - 1e-6)), max(1, math.ceil(width / step - 1e-6))


def _check_count(columns: float, rows: float, step: float) -> None:
    """Refuse steps so small that a slide has more patches than any computer predicts."""
    if columns * rows > _MOST_PATCHES:
        raise InputError(
            f"A slide must be divided into at most {_MOST_PATCHES:,} patches.\n"
            f"Received: {columns * rows:.3g} patches, a step of {step:.3g} level-0 px.\n"
            "Use a larger --step-um or --stride-um, or correct --mpp."
        )


def _measured(maps: SlideMaps, corners: np.ndarray, size: float) -> pd.DataFrame:
    """Patch table with the shares of tissue and the labels looked up."""
    # By the maps' scale, not by their sizes: the last row and column of a map reach beyond
    # the slide by a part of a pixel.
    x, y = (corners / maps.downsample).T
    side = size / maps.downsample
    label = np.full(len(corners), -1)
    if maps.labels is not None:
        # What lies beyond the slide has no label, and is not Normal.
        inside = maps.width / maps.downsample, maps.height / maps.downsample
        label = _labels(maps.labels, x, y, side, inside)
    if maps.marks is not None:
        label = _nearest_label(maps.marks, corners + size / 2, size)
    return _table(maps.name, corners, size, box_means(maps.tissue, x, y, side), label)


def _labels(
    annotation: np.ndarray, x: np.ndarray, y: np.ndarray, side: float, inside: tuple[float, float]
) -> np.ndarray:
    """Labels of patches by the rule of the task, from the annotation as a map.

    Args:
        annotation: uint8 `(rows, cols)`.
        x, y, side: Left, top and side of the patches, in px of the map.
        inside: Width and height of the slide in px of the map.
    """
    rule = task().label
    if rule == "mean":
        return np.floor(box_means(annotation, x, y, side, inside) + 0.5).astype(int)
    if rule == "point":
        row, col = (
            np.clip((start + side / 2).astype(int), 0, length - 1)
            for start, length in zip((y, x), annotation.shape, strict=True)
        )
        return annotation[row, col].astype(int)
    middle = side * task().centre_um / task().patch_um
    around = (side - middle) / 2
    result = np.zeros(len(x), int)
    for label in range(1, task().count):  # the highest that has a part in the square
        result[box_means(annotation == label, x + around, y + around, middle) > _EDGE] = label
    return result


def _nearest_label(marks: np.ndarray, middles: np.ndarray, size: float) -> np.ndarray:
    """Labels of patches by what is marked in their middle.

    A patch has the label of a mark that is a quarter of its side away at most, that of the
    nearest. Up to half a side away it has none, -1: a part of what is marked is seen there.
    Farther away it is of the first class.

    Args:
        marks: x, y in level-0 px, and label, `(n, 3)`.
        middles: x, y of the patches' middles, `(patches, 2)`.
        size: Side of a patch in level-0 px.
    """
    from scipy import spatial  # not at the top, which takes its time

    label = np.zeros(len(middles), int)
    if len(marks):
        away, nearest = spatial.cKDTree(marks[:, :2]).query(middles)
        own = marks[nearest, 2].astype(int)
        label = np.where(away <= size / 4, own, np.where((away <= size / 2) & (own > 0), -1, 0))
    return label


def _table(
    image_id: str,
    corners: np.ndarray,
    size: float,
    tissue: np.ndarray | float,
    label: np.ndarray | int,
) -> pd.DataFrame:
    x, y = corners.T
    columns = (image_id, x, y, size, tissue, label)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def box_means(
    values: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    size: ArrayLike,
    inside: tuple[float, float] | None = None,
) -> np.ndarray:
    """Mean of a map over many square boxes with fractional edges.

    Every pixel counts with the area of it that lies in the box, so a patch of 21.3
    mask pixels has the mean of 21.3 mask pixels. What lies outside the map counts
    as 0 and as area. Used for the share of tissue and the mean label of patches;
    the time does not depend on the size of the boxes.

    Args:
        values: Map, bool or number, (height, width).
        x: Left edges in map pixels (pixel j covers j..j+1), float, any shape.
        y: Top edges, likewise.
        size: Sides in map pixels, likewise; one number for all will do.
        inside: Width and height in map pixels: what lies outside of them is left out of
            the mean, instead of counting as 0. A box without any of it has the mean 0.

    Returns:
        float64, of the shape of x, y and size together.

    Raises:
        ValueError: If `values` is not two-dimensional or a size is not above 0.

    Example:
        >>> float(box_means(np.array([[1, 3]]), x=0.5, y=0, size=1))
        2.0
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"A map must be (height, width). Received: shape {values.shape}.")
    x, y, size = np.broadcast_arrays(*(np.asarray(part, float) for part in (x, y, size)))
    if not (size > 0).all():
        raise ValueError(f"Sizes must be above 0 px. Received: {size[~(size > 0)].flat[0]}.")
    height, width = values.shape
    if not values.size:
        return np.zeros(x.shape)
    integral = np.zeros((height + 1, width + 1))
    np.cumsum(values, axis=0, dtype=float, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    area = size**2
    if inside is not None:
        width, height = min(width, inside[0] + _EDGE), min(height, inside[1] + _EDGE)
    left, right = np.clip(x, 0, width), np.clip(x + size, 0, width)
    top, bottom = np.clip(y, 0, height), np.clip(y + size, 0, height)
    if inside is not None:
        # Not for whole boxes, whose area is better known without the clipping.
        whole = (
            (x >= 0) & (y >= 0) & (x + size <= inside[0] + _EDGE) & (y + size <= inside[1] + _EDGE)
        )
        area = np.where(whole, area, np.maximum((right - left) * (bottom - top), _EDGE))
    total = (
        _between(integral, bottom, right)
        - _between(integral, bottom, left)
        - _between(integral, top, right)
        + _between(integral, top, left)
    )
    return total / area


def _between(integral: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Integral image at fractional positions; within a pixel it is bilinear exactly."""
    i = np.minimum(row.astype(int), integral.shape[0] - 2)
    j = np.minimum(column.astype(int), integral.shape[1] - 2)
    down, along = row - i, column - j
    upper = integral[i, j] * (1 - along) + integral[i, j + 1] * along
    lower = integral[i + 1, j] * (1 - along) + integral[i + 1, j + 1] * along
    return upper * (1 - down) + lower * down
