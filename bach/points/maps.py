"""From a map to points: maxima, smoothing, and points that are too near each other."""

import cv2
import numpy as np
import pandas as pd

COLUMNS = ("image_id", "x_um", "y_um", "x", "y", "score")

# What a radius in um loses when it is divided by um per cell: 0.3 / 0.1 is less than 3.
SLACK = 1 + 1e-9


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
    reach = int(min(radius * SLACK, max(shape, default=0)))  # a radius may be infinite
    away = np.arange(-reach, reach + 1)
    near = away[:, None] ** 2 + away**2 <= (radius * SLACK) ** 2
    # A rim all around, so that no disc needs to be cut.
    gone = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach), bool)
    kept = []
    for number, (row, col) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True)):
        if not gone[row + reach, col + reach]:
            gone[row : row + 2 * reach + 1, col : col + 2 * reach + 1] |= near
            kept.append(number)
    return np.array(kept, np.int64)


def smooth(values: np.ndarray, radius: float) -> np.ndarray:
    """Mean of a map over a disc around each cell, so that no lone cell is a maximum.

    Args:
        values: Map, float `(rows, columns)`; nan where nothing is known, which stays so and
            counts for nothing around, as does what lies beyond the edge.
        radius: Of the disc, in cells; below 1 the map stays as it is.

    Returns:
        float32 `(rows, columns)`.

    Source: deep-histopath (c8baf8d), `detection.conv_smooth`.
    """
    values = np.asarray(values, np.float32)
    reach = int(radius * SLACK)
    if reach < 1 or values.size == 0:
        return values
    away = np.arange(-reach, reach + 1)
    disc = (away[:, None] ** 2 + away**2 <= (radius * SLACK) ** 2).astype(np.float32)
    known = ~np.isnan(values)
    total, weight = (
        cv2.filter2D(layer.astype(np.float32), -1, disc, borderType=cv2.BORDER_CONSTANT)
        for layer in (np.where(known, values, 0), known)
    )
    return np.where(known, total / np.maximum(np.round(weight), 1), np.nan).astype(np.float32)


def apart(points: pd.DataFrame, radius_um: float) -> pd.DataFrame:
    """Remove all points within a radius of a better one that is kept, as `maxima` does.

    Args:
        points: Points of one slide, with `x_um`, `y_um` and `score`.
        radius_um: Distance, um.

    Returns:
        The points that are left, highest score first; of equal ones the first of the table.
    """
    from scipy import spatial  # not at the top, which takes its time

    points = points.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    if points.empty:
        return points
    tree = spatial.cKDTree(points[["x_um", "y_um"]].to_numpy(np.float64))
    pairs = tree.query_pairs(radius_um * SLACK, output_type="ndarray")
    kept = np.ones(len(points), bool)
    # By the better one of each pair, and it comes first: whether it is kept is known by then.
    for better, worse in pairs[np.lexsort(pairs.T[::-1])].tolist():
        if kept[better]:
            kept[worse] = False
    return points[kept].reset_index(drop=True)


def of_cells(cells: pd.DataFrame, image_id: str, step: float, mpp: float) -> pd.DataFrame:
    """Points in the middle of the cells of a map.

    Args:
        cells: Table of `row`, `col` and `score`, as of `maxima`.
        image_id: The slide.
        step: Side of a cell in level-0 px.
        mpp: um per level-0 px.

    Returns:
        Table of points, in the order of the cells.
    """
    places = (cells[["col", "row"]].to_numpy(np.float64) + 0.5) * step
    return of_places(places, cells["score"].to_numpy(np.float64), image_id, mpp)


def of_places(places: np.ndarray, score: np.ndarray, image_id: str, mpp: float) -> pd.DataFrame:
    """Points at x, y in level-0 px, `(n, 2)`, with their scores `(n,)`; see `of_cells`."""
    x, y = np.asarray(places, np.float64).reshape(-1, 2).T
    values = {"image_id": image_id, "x_um": x * mpp, "y_um": y * mpp, "x": x, "y": y}
    return pd.DataFrame({**values, "score": score}, columns=list(COLUMNS))


def cluster(points: pd.DataFrame, radius_um: float) -> pd.DataFrame:
    """Make one point of all that hang together by steps of a radius at most.

    The point lies in their mean, weighted by score, and has the highest score.

    Args:
        points: Points of one slide, with `x_um`, `y_um` and `score`.
        radius_um: Longest step, um.

    Returns:
        Table of points, highest score first. Numbers of place (`x`, `y`) are means too; of other
        columns the value of the point with the highest score is kept.

    Source: DBSCAN with single points as clusters, as deep-histopath (CODAIT, Apache-2.0,
    c8baf8d) merges points within 32 px of 0.25 um.
    """
    from scipy import sparse, spatial  # not at the top, which takes its time

    # The highest of each group first, of equal ones the first of the table.
    points = points.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    if points.empty:
        return points
    places = points[["x_um", "y_um"]].to_numpy(np.float64)
    pairs = spatial.cKDTree(places).query_pairs(radius_um * SLACK, output_type="ndarray")
    graph = sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
    group = sparse.csgraph.connected_components(graph, directed=False)[1]
    # Of scores that are all 0 the plain mean.
    weight = points["score"].to_numpy(np.float64) + 1e-12
    total = np.bincount(group, weight)
    first = points.groupby(group, sort=False).head(1).index
    merged = points.loc[first].copy()
    alone = (np.bincount(group) == 1)[group[first]]  # stays where it is, to the last digit
    for name in ("x_um", "y_um", "x", "y"):
        if name in points:
            mean = np.bincount(group, weight * points[name].to_numpy(np.float64)) / total
            merged[name] = np.where(alone, merged[name], mean[group[first]])
    return merged.reset_index(drop=True)
