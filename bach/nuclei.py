"""Where nuclei may be: the cheap first stage of a detector of two stages.

A network that looks at every nucleus alone has little to do if it is told where nuclei are. What
is missed here is lost, so that a first stage is judged by its recall: the share of the true
points that have a proposal within the radius of a hit.
"""

import itertools
import math

import cv2
import numpy as np
import pandas as pd

from bach import points
from bach.core.log import step
from bach.slides import Slide

# Nuclei are looked for at this scale: one of 5 um is 10 px wide.
MPP = 0.5

# Standard deviations of the Gaussians whose differences are taken, um. A disc answers most to the
# difference around its radius / sqrt(2): from small dense figures to large pale nuclei.
SIGMAS_UM = (1.8, 2.7, 4.05)

# Optical density of hematoxylin by which a blob stands out from what is around it.
CONTRAST = 0.1

# Nuclei are at least so far apart; of two proposals nearer than that the better one is kept.
APART_UM = 4.0

_TILE_PX = 1024
# What a blob is compared with, and its neighbours: 4 standard deviations, as `_blur` cuts it.
_HALO_PX = math.ceil(4 * SIGMAS_UM[-1] / MPP) + 2


def hematoxylin(rgb: np.ndarray) -> np.ndarray:
    """How much hematoxylin there is, by colour deconvolution.

    Args:
        rgb: uint8 `(height, width, 3)`.

    Returns:
        float32 `(height, width)`, 0 or more, in units of optical density (natural logarithm).

    Source: Ruifrok and Johnston 2001, with the matrix of scikit-image, whose `rgb2hed` it is but
    for the unit.
    """
    from skimage.color import hed_from_rgb  # not at the top, which takes its time

    density = -np.log(np.maximum(np.arange(256) / 255, 1e-6))
    table = (density[:, None] * hed_from_rgb[:, 0]).astype(np.float32)
    return np.maximum(sum(table[:, c][rgb[..., c]] for c in range(3)), 0)


def blobs(rgb: np.ndarray, contrast: float = CONTRAST) -> pd.DataFrame:
    """Blobs of hematoxylin in a picture.

    Args:
        rgb: uint8 `(height, width, 3)` at `MPP` um/px.
        contrast: Least optical density by which one stands out.

    Returns:
        Table of `row`, `col` (int64) and `score`, that density: cells that are as high as all
        eight neighbours, row by row.

    Source: differences of Gaussians as in Lowe 2004, the maximum over scales.
    """
    smooth = [_blur(hematoxylin(rgb), sigma / MPP) for sigma in SIGMAS_UM]
    response = np.maximum.reduce([a - b for a, b in itertools.pairwise(smooth)])
    highest = cv2.dilate(response, np.ones((3, 3), np.uint8))
    rows, cols = np.nonzero((response >= highest) & (response >= contrast))
    score = response[rows, cols].astype(np.float64)
    return pd.DataFrame({"row": rows, "col": cols, "score": score})


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    side = 2 * math.ceil(4 * sigma) + 1
    return cv2.GaussianBlur(values, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)


def propose(slide: Slide, contrast: float = CONTRAST, apart_um: float = APART_UM) -> pd.DataFrame:
    """Propose the nuclei of a slide, tile by tile: memory does not grow with the slide.

    Args:
        slide: The open slide.
        contrast: See `blobs`.
        apart_um: Of proposals nearer than that the one of the highest contrast is kept.

    Returns:
        Table of points as of `bach.points`; the score is the contrast, highest first. It does
        not depend on the tiles.

    Raises:
        InputError: If the slide turns out to be damaged.
    """
    scale = MPP / slide.mpp  # level-0 px per px
    rows, cols = (max(1, math.ceil(x / scale / _TILE_PX)) for x in (slide.height, slide.width))
    found = []
    with step("nuclei") as notes:
        for row, col in itertools.product(range(rows), range(cols)):
            top, left = (n * _TILE_PX - _HALO_PX for n in (row, col))
            side = _TILE_PX + 2 * _HALO_PX
            tile = blobs(slide.read(left * scale, top * scale, side, side, MPP), contrast)
            inside = ((tile[["row", "col"]] - _HALO_PX) // _TILE_PX == 0).all(axis=1)
            found.append(tile[inside] + (top, left, 0))
        cells = pd.concat(found, ignore_index=True)
        table = points.of_cells(cells, slide.name, scale, slide.mpp)
        # The middle of a px at the edge may lie beyond the slide.
        table = table[(table["x"] < slide.width) & (table["y"] < slide.height)]
        table = points.apart(table.reset_index(drop=True), apart_um)
        notes.append(f"{slide.name}: {len(table):,} proposals in {rows * cols} tiles")
    return table


def recall(proposals: pd.DataFrame, truth: pd.DataFrame, radius_um: float) -> tuple[int, int]:
    """How many of the true points of a slide have a proposal within the radius.

    One proposal may stand for two true points: what is asked is whether the second stage gets to
    see them.

    Args:
        proposals, truth: Points of one slide, `x_um` and `y_um`.
        radius_um: Largest distance, um.

    Returns:
        The number of true points that have one, and that of all.
    """
    from scipy import spatial

    if proposals.empty or truth.empty:
        return 0, len(truth)
    there = spatial.cKDTree(proposals[["x_um", "y_um"]].to_numpy(np.float64))
    away, _ = there.query(truth[["x_um", "y_um"]].to_numpy(np.float64))
    return int((away <= radius_um).sum()), len(truth)
