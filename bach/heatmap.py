"""From patch predictions to heatmaps, class maps, areas and scores of a slide.

The slide is divided into square cells of one step. A cell's value is the
prediction of the patch that is centred on it, so positions cannot drift: cell
(row, col) stands for the level-0 square whose left edge is `col * step`.
"""

import numpy as np
import pandas as pd

from bach.classes import CLASSES
from bach.mining import MIN_TISSUE
from bach.patches import PATCH_UM, SlideMaps, cell_patches

# Kwok 2018, section 4.6, found there by trial: Benign from 0.35, InSitu from 0.70,
# Invasive from 0.75 of the expected class / 3.
THRESHOLDS = (0.35, 0.70, 0.75)

# The paper does not state the step of its heatmaps; a fifth of the field, as for
# mining, is fine enough for the maps' scale and costs 25 times a single cover.
STEP_UM = PATCH_UM / 5


def heatmap_patches(maps: SlideMaps, step_um: float = STEP_UM) -> pd.DataFrame:
    """Patches centred on the cells of a slide, where there is tissue.

    Args:
        maps: The slide's maps.
        step_um: Side of a cell in um.

    Returns:
        Patch table with the additional columns `row, col` of the cell, only of
        patches with at least 5% tissue. It may be empty.
    """
    table = cell_patches(maps, step_um)
    return table[table["tissue"] >= MIN_TISSUE].reset_index(drop=True)


def stitch(table: pd.DataFrame, probs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Lay patch predictions out as a map.

    Args:
        table: Patch table with `row, col`.
        probs: Probabilities `(len(table), 4)`.
        shape: Rows and columns of cells.

    Returns:
        float32 array `(rows, cols, 4)`, not a number where nothing was predicted.
    """
    result = np.full((*shape, len(CLASSES)), np.nan, np.float32)
    result[table["row"], table["col"]] = probs
    return result


def to_heatmap(probs: np.ndarray) -> np.ndarray:
    """Expected class / 3 of a map of probabilities; 0 where nothing was predicted.

    Args:
        probs: float array `(rows, cols, 4)`.

    Returns:
        float32 array `(rows, cols)` in 0..1.

    Example:
        >>> float(to_heatmap(np.array([[[0, 0, 0.5, 0.5]]]))[0, 0])
        0.8333333134651184
    """
    expected = (np.nan_to_num(probs) * np.arange(len(CLASSES))).sum(axis=-1)
    return np.clip(expected / (len(CLASSES) - 1), 0, 1).astype(np.float32)


def to_classes(heatmap: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    """Class map by thresholds: class k from the k-th threshold on.

    Args:
        heatmap: float array, 0..1.
        thresholds: Where Benign, InSitu and Invasive begin, ascending.

    Returns:
        uint8 array of the same shape, 0..3.

    Raises:
        ValueError: If the thresholds do not ascend or are not three.

    Source: Kwok 2018, section 4.6.
    """
    if len(thresholds) != len(CLASSES) - 1 or sorted(thresholds) != list(thresholds):
        raise ValueError(f"There must be three ascending thresholds. Received: {thresholds}.")
    # Compared as float32, like the heatmap: 0.35 is then exactly a threshold.
    return np.searchsorted(
        np.asarray(thresholds, np.float32), heatmap.astype(np.float32), side="right"
    ).astype(np.uint8)


def cells_to_map(
    values: np.ndarray, step: float, downsample: float, shape: tuple[int, int]
) -> np.ndarray:
    """Spread values of cells over the pixels of a map of the slide.

    Args:
        values: Array `(rows, cols, ...)`, one value a cell.
        step: Side of a cell in level-0 px.
        downsample: Level-0 px per px of the map.
        shape: Height and width of the map.

    Returns:
        Array `(height, width, ...)`: the value of the cell that a pixel's centre
        lies in.
    """
    row, col = (
        np.minimum(((np.arange(n) + 0.5) * downsample / step).astype(int), values.shape[axis] - 1)
        for axis, n in enumerate(shape)
    )
    return values[row[:, None], col[None, :]]


def areas_mm2(
    class_map: np.ndarray, tissue: np.ndarray, downsample: float, mpp: float
) -> dict[str, float]:
    """Area of each class in mm2; Normal counts only where there is tissue.

    Args:
        class_map: uint8 `(height, width)`, 0..3.
        tissue: bool mask of the same shape.
        downsample: Level-0 px per px of both.
        mpp: um per level-0 px.
    """
    pixel = (downsample * mpp / 1000) ** 2
    areas = {name: float((class_map == i).sum() * pixel) for i, name in enumerate(CLASSES)}
    areas[CLASSES[0]] = float(((class_map == 0) & tissue).sum() * pixel)
    return areas
