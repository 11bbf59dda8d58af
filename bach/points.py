"""Points on slides: where a map has its maxima, what belongs together, what was found.

A task whose answer is a place and not an area (a mitotic figure, a metastasis) is answered by
the maxima of a probability map.
"""

import numpy as np
import pandas as pd

# What a radius in um loses when it is divided by um per cell: 0.3 / 0.1 is less than 3.
_SLACK = 1 + 1e-9


def maxima(values: np.ndarray, threshold: float, radius: float) -> pd.DataFrame:
    """The maxima of a map, by non-maximum suppression.

    The highest value at or above the threshold is taken, all within the radius of it are
    removed, and so on. Of equal values the first in the order of rows, then columns, is taken.

    Args:
        values: Map, numbers, `(rows, columns)`; nan where nothing is known.
        threshold: Lowest value of a maximum.
        radius: Distance between centres of cells, in cells, up to which a lower value belongs
            to a higher one; 0 keeps all.

    Returns:
        Table of `row` and `col` (int64) and `score` (float64), highest first. No two are within
        the radius of each other.

    Raises:
        ValueError: If the map is not two-dimensional, the threshold is nan, or the radius is
            negative or nan.

    Source: Liu et al. 2017 (arXiv:1703.02442), section 3.
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"values must be (rows, columns). Received: shape {values.shape}.")
    if np.isnan(threshold) or not radius >= 0:
        raise ValueError(
            "threshold must be a number and radius 0 or more. "
            f"Received: threshold={threshold}, radius={radius}."
        )
    rows, cols = np.nonzero(values >= threshold)  # false where nan
    scores = values[rows, cols].astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    rows, cols, scores = rows[order], cols[order], scores[order]
    kept = _apart(rows, cols, values.shape, radius)
    return pd.DataFrame({"row": rows[kept], "col": cols[kept], "score": scores[kept]})


def _apart(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int], radius: float) -> np.ndarray:
    """Which cells, best first, are left when each removes all within the radius of it."""
    reach = int(min(radius * _SLACK, max(shape, default=0)))  # a radius may be infinite
    away = np.arange(-reach, reach + 1)
    near = away[:, None] ** 2 + away**2 <= (radius * _SLACK) ** 2
    # A rim all around, so that no disc needs to be cut.
    gone = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach), bool)
    kept = []
    for number, (row, col) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True)):
        if not gone[row + reach, col + reach]:
            gone[row : row + 2 * reach + 1, col : col + 2 * reach + 1] |= near
            kept.append(number)
    return np.array(kept, np.int64)
