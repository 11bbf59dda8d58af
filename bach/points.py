"""Points on slides: where a map has its maxima, what belongs together, what was found.

A task whose answer is a place and not an area (a mitotic figure, a metastasis) is answered by
the maxima of a probability map. Tables of points have the columns

    image_id        the slide
    x_um, y_um      from the slide's left and top edge, um
    x, y            the same in level-0 px, continuous: pixel 0 covers 0 to 1
    score           0..1, of a point that was found

and any others beside. Points of a slide alone need no `image_id`.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from bach.core.files import atomic_path, write_json
from bach.core.tables import as_numbers, image_key, read_table, require_columns, write_csv
from bach.honest.intervals import jackknife, kish, unit_sums
from bach.scores import ratio

COLUMNS = ("image_id", "x_um", "y_um", "x", "y", "score")

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
    reach = int(radius * _SLACK)
    if reach < 1 or values.size == 0:
        return values
    away = np.arange(-reach, reach + 1)
    disc = (away[:, None] ** 2 + away**2 <= (radius * _SLACK) ** 2).astype(np.float32)
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
    pairs = tree.query_pairs(radius_um * _SLACK, output_type="ndarray")
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
    pairs = spatial.cKDTree(places).query_pairs(radius_um * _SLACK, output_type="ndarray")
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


# What was found


def match(found: pd.DataFrame, truth: pd.DataFrame, radius_um: float) -> np.ndarray:
    """Pair what was found on a slide with what is there, one to one.

    The point with the highest score takes the nearest true one that is within the radius and
    still free, then the next. So a higher threshold takes points away and changes no other pair.

    Args:
        found: Points with `x_um`, `y_um` and `score`.
        truth: Points with `x_um` and `y_um`.
        radius_um: Largest distance of a pair, um; 7.5 in TUPAC16.

    Returns:
        For every found point the row of its true one, or -1; int64 `(len(found),)`.

    Source: Veta et al. 2019, Predicting breast tumor proliferation from whole-slide images: the
    TUPAC16 challenge, section 2. Differs from it: there a second point within the radius of the
    same figure counts for nothing; here it is false, as in the MIDOG challenges.
    """
    pairs = np.full(len(found), -1, np.int64)
    if found.empty or truth.empty:
        return pairs
    from scipy import spatial

    there = spatial.cKDTree(truth[["x_um", "y_um"]].to_numpy(np.float64))
    here = found[["x_um", "y_um"]].to_numpy(np.float64)
    near = there.query_ball_point(here, radius_um * _SLACK, return_sorted=True)
    free = np.ones(len(truth), bool)
    for row in np.argsort(-found["score"].to_numpy(np.float64), kind="stable"):
        candidates = [place for place in near[row] if free[place]]
        if candidates:
            away = ((there.data[candidates] - here[row]) ** 2).sum(axis=1)
            pairs[row] = candidates[int(away.argmin())]
            free[pairs[row]] = False
    return pairs


def mark_hits(found: pd.DataFrame, truth: pd.DataFrame, radius_um: float) -> pd.DataFrame:
    """Say of found points of many slides whether they are true.

    Args:
        found: Points with `image_id`, `x_um`, `y_um` and `score`.
        truth: Points with `image_id`, `x_um` and `y_um`; slides are the same by `image_key`.
        radius_um: See `match`.

    Returns:
        A copy of `found` with the column `hit`, bool.
    """
    hit = np.zeros(len(found), bool)
    stated = truth["image_id"].map(image_key)
    keys = found["image_id"].map(image_key)
    for key in keys.unique():
        rows = np.flatnonzero(keys == key)
        hit[rows] = match(found.iloc[rows], truth[stated == key], radius_um) >= 0
    return found.assign(hit=hit)


def count(
    marked: pd.DataFrame, truth: pd.DataFrame, cases: Mapping[str, str], threshold: float = -np.inf
) -> pd.DataFrame:
    """Count what was found, per case.

    Args:
        marked: Of `mark_hits`; found by any threshold up to this one.
        truth: The true points, with `image_id`.
        cases: Case (patient) of every slide that was looked at, with and without points, by
            `image_id`.
        threshold: Lowest score of a point that counts.

    Returns:
        Table of `tp`, `fp` and `fn` (int64), a row per case in the order of their first slides,
        indexed by `case`.

    Raises:
        ValueError: If a point lies on a slide without a case.
    """
    of_key = {image_key(name): case for name, case in cases.items()}
    kept = marked[marked["score"] >= threshold]
    names = [table["image_id"].map(image_key) for table in (kept, truth)]
    missing = sorted(set(names[0]).union(names[1]) - set(of_key))
    if missing:
        raise ValueError(f"Every slide must have a case. Received points on {missing[:5]}.")
    order = pd.Index(dict.fromkeys(of_key.values()), name="case")
    case, true_case = (name.map(of_key) for name in names)
    hit = kept["hit"].to_numpy(bool)

    def per_case(rows: pd.Series) -> pd.Series:
        return rows.value_counts().reindex(order, fill_value=0).astype(np.int64)

    tp = per_case(case[hit])
    return pd.DataFrame({"tp": tp, "fp": per_case(case[~hit]), "fn": per_case(true_case) - tp})


FIGURES = ("precision", "recall", "f1")


def figure(sums: np.ndarray, name: str) -> np.ndarray:
    """Precision, recall or F1 of counts.

    Args:
        sums: `(..., 3)`: true positives, false positives, false negatives.
        name: One of `FIGURES`.

    Returns:
        Values `(...)`, nan where there is nothing to divide by.

    Example:
        >>> figure(np.array([6, 2, 4]), "f1").round(4)
        np.float64(0.6667)
    """
    tp, fp, fn = np.moveaxis(np.asarray(sums), -1, 0)
    return ratio(*_parts(tp, fp, fn, name))


def _parts(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, name: str) -> tuple:
    """What a figure divides, and by what."""
    if name == "f1":
        return 2 * tp, 2 * tp + fp + fn
    return tp, tp + (fp if name == "precision" else fn)


def interval(counts: pd.DataFrame, name: str = "f1", unit: str = "patients") -> dict:
    """A figure over cases, with its interval.

    Args:
        counts: Of `count`, a row per case; several rows of one index are one case.
        name: One of `FIGURES`.
        unit: What a case is, in the plural.

    Returns:
        As `bach.honest.intervals.jackknife`.
    """
    numbers = pd.factorize(counts.index)[0]
    sums = unit_sums(counts[["tp", "fp", "fn"]].to_numpy(np.float64), numbers)
    tp, fp, fn = sums.T
    weights = _parts(tp, fp, fn, name)[1]
    # A case without a figure, found or true, says nothing of F1.
    sums, weights = sums[weights > 0], weights[weights > 0]
    worth = kish(weights) if len(weights) else None
    return jackknife(sums, lambda sums: figure(sums, name), worth, unit=unit)


def best_threshold(marked: pd.DataFrame, truths: int) -> tuple[float, float]:
    """The threshold of the highest F1 of all points together.

    To be searched on cases that nothing is then scored on.

    Args:
        marked: Of `mark_hits`, found by a threshold as low as is of interest.
        truths: Number of true points on the slides that were looked at.

    Returns:
        The threshold, a score that occurs (of equal F1 the highest), and that F1.

    Raises:
        ValueError: If no point is true: then no threshold is better than another.
    """
    marked = marked.sort_values("score", ascending=False, kind="stable")
    hit, score = marked["hit"].to_numpy(bool), marked["score"].to_numpy(np.float64)
    if not hit.any() or truths < hit.sum():
        raise ValueError(
            "There must be found points that are true, and no more of these than true ones. "
            f"Received: {hit.sum()} of {len(hit)} points, {truths} true ones."
        )
    tp = np.cumsum(hit)
    fp = np.arange(1, len(hit) + 1) - tp
    f1 = figure(np.stack([tp, fp, truths - tp], axis=-1), "f1")
    # All points of one score come and go together.
    last = np.append(score[1:] != score[:-1], True)
    best = int(np.argmax(np.where(last, f1, -1)))
    return float(score[best]), float(f1[best])


# Files


def write_points(table: pd.DataFrame, path: str | Path) -> None:
    """Write points as CSV: `image_id, x_um, y_um, x, y, score`, then what else there is.

    Places are rounded to 0.001 um or px, scores to 0.000001: the same table gives the same bytes.
    """
    more = [name for name in table.columns if name not in COLUMNS]
    rounded = table.round({"x_um": 3, "y_um": 3, "x": 3, "y": 3, "score": 6})
    write_csv(rounded[[*(name for name in COLUMNS if name in table.columns), *more]], path)


def read_points(path: str | Path) -> pd.DataFrame:
    """Read points from CSV, ours or of anyone who has `image_id` and `x_um`, `y_um` or `x`, `y`.

    Returns:
        Table with the file's columns; those of place and score are float64, others text.

    Raises:
        InputError: If it cannot be read or lacks the columns, or a place is no number.
    """
    table = read_table(path, ("image_id",))
    pair = next((p for p in (("x_um", "y_um"), ("x", "y")) if set(p) <= set(table)), ("x", "y"))
    require_columns(table, ("image_id", *pair), path)
    numbers = [name for name in COLUMNS[1:] if name in table.columns]
    return table.assign(**as_numbers(table, numbers, path))


def write_multiple_points(table: pd.DataFrame, path: str | Path, name: str) -> None:
    """Write points of a slide as "Multiple points" of grand-challenge.org, in mm.

    Args:
        table: Points with `x_um`, `y_um` and `score`.
        path: JSON file.
        name: What the points are, "mitotic figure"; each bears it.

    Source: the platform's schema of "Multiple points" (github.com/comic/grand-challenge.org,
    app/grandchallenge/components/schemas.py).
    """
    mm = (table[["x_um", "y_um"]].to_numpy(np.float64) / 1000).round(6)
    scores = table["score"].to_numpy(np.float64).round(6)
    points = [
        {"name": name, "point": [x, y, 0.0], "probability": score}
        for (x, y), score in zip(mm.tolist(), scores.tolist(), strict=True)
    ]
    content = {"name": name, "type": "Multiple points", "points": points}
    write_json(path, content | {"version": {"major": 1, "minor": 0}})


def write_qupath(
    table: pd.DataFrame,
    path: str | Path,
    colors: Mapping[str, tuple[int, int, int]],
    offset: tuple[int, int] = (0, 0),
) -> None:
    """Write points of a slide as annotations of QuPath, with their scores as measurements.

    Args:
        table: Points with `x`, `y` (level-0 px), perhaps `score`, and perhaps `name`, the class.
        path: File to write, ending in `.geojson`.
        colors: RGB of the classes, 0..255; without `name` all points are of the first one.
        offset: x, y in level-0 px of the pixel that QuPath calls 0, 0; who reads the file here
            has it added again.
    """
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"bach points {' '.join(colors)}")
    names = table["name"] if "name" in table.columns else [next(iter(colors))] * len(table)
    scores = table["score"].round(6) if "score" in table.columns else [None] * len(table)
    places = (table[["x", "y"]].to_numpy(np.float64) - offset).round(2).tolist()
    features = []
    for number, (place, name, score) in enumerate(zip(places, names, scores, strict=True)):
        properties: dict[str, object] = {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colors[name])},
        }
        if score is not None:
            properties["measurements"] = {"score": score}
        feature: dict[str, object] = {"type": "Feature", "id": str(uuid.uuid5(space, str(number)))}
        feature |= {"geometry": {"type": "Point", "coordinates": place}}
        features.append(feature | {"properties": properties})
    content: dict[str, object] = {"type": "FeatureCollection", "features": features}
    if any(offset):
        content["bach_offset"] = list(offset)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
