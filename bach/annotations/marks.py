"""Annotated places: points, and areas by their middle, for tasks whose answer is a place."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from bach.annotations.formats import Content, Shape, points_of, read_shapes
from bach.core.errors import InputError
from bach.core.log import log


def read_marks(path: str | os.PathLike) -> pd.DataFrame:
    """Read the places that an annotation file marks.

    Points of QuPath (`Point`, `MultiPoint`), ASAP (`Dot`, `PointSet`) and ImageScope or HALO
    (`point`, `pin`) are taken as they are. A polygon, rectangle or ellipse marks the middle of
    its bounding box: mitotic figures are often marked by a box or a circle. Lines, rulers, arrows
    and holes mark nothing and are left out with a warning.

    Args:
        path: Annotation file; its format is told by its content.

    Returns:
        Table of `x`, `y` (level-0 px, float64) and `names`, a tuple of the names that may be
        the class, the first that is one counts; in the order of the file.

    Raises:
        InputError: If the file cannot be read, or a shape in it.
    """
    path = Path(path)
    content = read_shapes(path)
    places, names, left_out = [np.zeros((0, 2))], [], 0
    for shape in content.shapes:
        found = places_of(path, shape, content)
        places.append(found)
        names += [tuple(shape.classes)] * len(found)
        left_out += not len(found)
    if left_out:
        log.warning("%s: left out, %d shapes that mark no place", path, left_out)
    x, y = np.concatenate(places).T
    return pd.DataFrame({"x": x, "y": y, "names": pd.Series(names, dtype=object)})


def places_of(path: Path, shape: Shape, content: Content) -> np.ndarray:
    """The places that a shape marks, x, y in level-0 px, float64 (n, 2); see `read_marks`.

    Raises:
        InputError: If its points are none.
    """
    if len(shape.marks):
        where = f"{shape.name} in {path}"
        return points_of(where, _rows(path, shape.name, shape.marks)) + content.offset
    if not shape.rings or shape.is_hole:
        return np.zeros((0, 2))
    outline = shape.rings[0]
    return (outline.min(axis=0, keepdims=True) + outline.max(axis=0, keepdims=True)) / 2


def _rows(path: Path, name: str, rows: object) -> list:
    """Rows of x, y, refused where they are none."""
    if isinstance(rows, list) and all(isinstance(r, list | tuple) and len(r) >= 2 for r in rows):
        return rows
    raise InputError(
        f"The points of {name} in {path} must be numbers x, y.\n"
        f"Received: {rows!r:.60}.\nExport the file again."
    )
