"""Points on slides: where a map has its maxima, what belongs together, what was found.

A task whose answer is a place and not an area (a mitotic figure, a metastasis) is answered by
the maxima of a probability map. Tables of points have the columns

    image_id        the slide
    x_um, y_um      from the slide's left and top edge, um
    x, y            the same in level-0 px, continuous: pixel 0 covers 0 to 1
    score           0..1, of a point that was found

and any others beside. Points of a slide alone need no `image_id`.
"""

from bach.points.files import (
    read_points,
    write_multiple_points,
    write_points,
    write_qupath,
)
from bach.points.maps import COLUMNS, apart, cluster, maxima, of_cells, of_places, smooth
from bach.points.pairs import (
    FIGURES,
    best_threshold,
    count,
    figure,
    interval,
    mark_hits,
    match,
)

__all__ = [
    "COLUMNS",
    "FIGURES",
    "apart",
    "best_threshold",
    "cluster",
    "count",
    "figure",
    "interval",
    "mark_hits",
    "match",
    "maxima",
    "of_cells",
    "of_places",
    "read_points",
    "smooth",
    "write_multiple_points",
    "write_points",
    "write_qupath",
]
