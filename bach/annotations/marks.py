"""Annotated places: points, and areas by their middle, for tasks whose answer is a place."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from bach.annotations.formats import points_of, read_shapes
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
    places, names, left_out = [], [], 0
    for shape in content.shapes:
        if len(shape.marks):
            found = points_of(f"{shape.name} in {path}", _rows(path, shape.name, shape.marks))
            found = found + content.offset
        elif shape.rings and not shape.is_hole:
            outline = shape.rings[0]
            found = (outline.min(axis=0, keepdims=True) + outline.max(axis=0, keepdims=True)) / 2
        else:
            left_out += 1
            continue
        places.append(found)
        names += [tuple(shape.classes)] * len(found)
    if left_out:
        log.warning("%s: left out, %d shapes that mark no place", path, left_out)
    x, y = np.concatenate([np.zeros((0, 2)), *places]).T
    return pd.DataFrame({"x": x, "y": y, "names": pd.Series(names, dtype=object)})


def _rows(path: Path, name: str, rows: object) -> list:
    """Rows of x, y, refused where they are none."""
    if isinstance(rows, list) and all(isinstance(r, list | tuple) and len(r) >= 2 for r in rows):
        return rows
    raise InputError(
        f"The points of {name} in {path} must be numbers x, y.\n"
        f"Received: {rows!r:.60}.\nExport the file again."
    )
