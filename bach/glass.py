"""Tissue by its colour relative to the glass of the same slide: the rule `robust`.

The paper's rule compares every pixel with the mean of the slide, and so depends on how much
tissue there is and on the tinge of the glass. This one looks for the glass first.
"""

from typing import NamedTuple

import cv2
import numpy as np

# CIELAB of what may be glass: bright, with little colour.
_BRIGHT, _CHROMA = 75.0, 14.0
_LEAST = 0.005  # share of the picture that must look so, or there is no glass in it
# The glass is the brightest peak in L* of at least this share of the highest one: pale tissue
# may cover more, but is never brighter.
_PEAK, _BIN, _WITHIN = 0.2, 0.5, 1.5
_WHITE = (97.0, 0.0, 0.0)  # glass where there is none to look at

# Tissue is pinker (a*) and darker (L*) than the glass by these, and by so many standard
# deviations of the glass. Chosen on painted slides of eight tinges and 0.2% to 95% tissue, see
# benchmarks/tissue.py; the tiles of real slides were looked at afterwards.
_PINKER, _DARKER = 3.0, 2.0
_PINKER_SIGMAS, _DARKER_SIGMAS = 4.0, 2.0
_BLUR = 1.0  # px: noise of single pixels is not tissue
_SPECK = 40  # px of the map, 0.002 mm2: smaller pieces and holes are left out
_PEN_RIM = 2  # px around ink that it colours


class Glass(NamedTuple):
    """Empty glass of a slide: median and standard deviation of L*, a*, b*."""

    color: np.ndarray
    noise: np.ndarray


def find_glass(lab: np.ndarray) -> Glass:
    """Find the colour of the glass.

    Args:
        lab: CIELAB, float `(height, width, 3)`.

    Returns:
        The glass; neutral white where the picture has none.
    """
    pixels = lab.reshape(-1, 3)
    candidates = pixels[(pixels[:, 0] > _BRIGHT) & (np.hypot(pixels[:, 1], pixels[:, 2]) < _CHROMA)]
    if len(candidates) < max(1, _LEAST * len(pixels)):
        return Glass(np.array(_WHITE), np.zeros(3))
    edges = np.arange(_BRIGHT, 100 + 2 * _BIN, _BIN)
    counts = np.histogram(candidates[:, 0], edges)[0].astype(float)
    counts = np.convolve(counts, [1, 2, 3, 2, 1], "same")
    around = np.pad(counts, 1)
    peaks = (counts >= around[:-2]) & (counts >= around[2:]) & (counts >= _PEAK * counts.max())
    lightness = edges[np.flatnonzero(peaks)[-1]] + _BIN / 2
    glass = candidates[np.abs(candidates[:, 0] - lightness) < _WITHIN]
    color = np.median(glass, axis=0)
    return Glass(color, 1.4826 * np.median(np.abs(glass - color), axis=0))


def stained(rgb: np.ndarray, pen: np.ndarray | None = None) -> np.ndarray:
    """Find what is pinker and darker than the glass, without specks.

    Args:
        rgb: Thumbnail of a slide, uint8 `(height, width, 3)`.
        pen: Mask of ink, which is neither glass nor tissue; see `bach.tissue.pen_mask`.

    Returns:
        bool `(height, width)`, True for tissue.
    """
    if not rgb.size:
        return np.zeros(rgb.shape[:2], bool)
    lab = _lab(rgb)
    if pen is not None:
        pen = cv2.dilate(pen.astype(np.uint8), np.ones((3, 3)), iterations=_PEN_RIM) > 0
    color, noise = find_glass(lab if pen is None else lab[~pen])
    mask = lab[..., 1] - color[1] > max(_PINKER, _PINKER_SIGMAS * noise[1])
    mask &= color[0] - lab[..., 0] > max(_DARKER, _DARKER_SIGMAS * noise[0])
    if pen is not None:
        mask &= ~pen
    mask = _without_specks(mask, 8)
    return ~_without_specks(~mask, 4) if mask.any() else mask


def _without_specks(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """A mask without its pieces of less than `_SPECK` px."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    keep = stats[:, cv2.CC_STAT_AREA] >= _SPECK
    keep[0] = False
    return keep[pieces]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of a picture that is slightly blurred, float32 `(height, width, 3)`."""
    from skimage.color import rgb2lab  # slow to import

    blurred = cv2.GaussianBlur(rgb.astype(np.float32) / 255, (0, 0), _BLUR)
    result = np.empty_like(blurred)
    rows = max(1, (1 << 20) // rgb.shape[1])  # which bounds the memory
    for top in range(0, len(rgb), rows):
        result[top : top + rows] = rgb2lab(blurred[top : top + rows])
    return result
