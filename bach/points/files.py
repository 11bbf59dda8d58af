"""Points in files: CSV, the platform's "Multiple points", annotations of QuPath."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bach.core.files import atomic_path, write_json
from bach.core.tables import as_numbers, read_table, require_columns, write_csv
from bach.points.maps import COLUMNS


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
