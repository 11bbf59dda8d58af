"""Pixels of one scale from pixels of another, at places that need not be whole."""

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import scipy.sparse


def shrink(
    pixels: np.ndarray,
    offset: tuple[float, float],
    size: tuple[int, int],
    factors: tuple[float, float],
) -> np.ndarray:
    """Area averaging with a fractional offset, which cv2.resize does not offer.

    Args:
        pixels: uint8 `(rows, cols, 3)`.
        offset: Left and top edge of the result, in px of `pixels`.
        size: Width and height of the result.
        factors: px of `pixels` per px of the result, across and down; at least 1.

    Returns:
        uint8 `(height, width, 3)`, rounded once.
    """
    (rows, cols), (width, height) = pixels.shape[:2], size
    tall = _weights(offset[1], height, factors[1], rows) @ pixels.reshape(rows, -1).astype(
        np.float32
    )
    # OpenCV transposes and rounds several times faster than NumPy.
    across = cv2.transpose(tall.reshape(height, cols, 3)).reshape(cols, -1)
    wide = _weights(offset[0], width, factors[0], cols) @ across
    return cv2.transpose(cv2.convertScaleAbs(wide.reshape(width, height, 3)))


def enlarge(
    pixels: np.ndarray,
    offset: tuple[float, float],
    size: tuple[int, int],
    factors: tuple[float, float],
) -> np.ndarray:
    """Bilinear interpolation between pixel centres; see `shrink`, with factors below 1."""
    matrix = np.array(
        [
            [factors[0], 0, offset[0] + factors[0] / 2 - 0.5],
            [0, factors[1], offset[1] + factors[1] / 2 - 0.5],
        ]
    )
    return cv2.warpAffine(
        pixels,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _weights(offset: float, count: int, factor: float, length: int) -> "scipy.sparse.csr_array":
    """Area weights `(count, length)`: pixel i is the mean over offset + factor*[i, i+1)."""
    import scipy.sparse  # slow to import

    start = offset + factor * np.arange(count)
    span = math.ceil(factor) + 1
    source = np.floor(start).astype(np.int32)[:, None] + np.arange(span, dtype=np.int32)
    overlap = np.minimum(source + 1, (start + factor)[:, None]) - np.maximum(source, start[:, None])
    overlap = np.clip(overlap, 0, None) / factor
    # Rounding can leave a sliver of weight beyond the last pixel.
    overlap[(source < 0) | (source >= length)] = 0
    overlap /= overlap.sum(axis=1, keepdims=True)
    # Every row has `span` entries, some of them 0: made as it is stored, without sorting.
    parts = (
        overlap.astype(np.float32).ravel(),
        np.clip(source, 0, length - 1).ravel(),
        np.arange(0, count * span + 1, span, dtype=np.int32),
    )
    return scipy.sparse.csr_array(parts, shape=(count, length))
