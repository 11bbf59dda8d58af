"""Outlines of the regions of a class map, along the edges of its pixels: exact, and valid.

Not cv2.findContours, which walks through pixel centres and loses half a pixel all round.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from bach.tasks import BACKGROUND, task


class Outline(NamedTuple):
    """A connected region of a class map.

    Attributes:
        label: Its class.
        rings: The outer ring, then the holes; corners x, y in px of the map, int64 (n, 2),
            each corner once. Along the outer ring the region lies to the right on the screen.
    """

    label: int
    rings: list[np.ndarray]


def outlines(class_map: np.ndarray) -> Iterator[Outline]:
    """Outlines of all regions of a class map; Normal is no region.

    Pixels belong together if they share a side. Rings never meet themselves, and each other
    in single points at most, so that the polygons are valid by the rules of the OGC, which
    the library in QuPath (JTS) goes by.

    Args:
        class_map: uint8 0..n-1, `(rows, cols)`.

    Example:
        >>> [one] = outlines(np.array([[0, 3, 3]], np.uint8))
        >>> one.label, one.rings[0].tolist()
        (3, [[1, 0], [3, 0], [3, 1], [1, 1]])
    """
    for label in range(task().count):
        if label != BACKGROUND:
            mask = np.pad(class_map == label, 1).view(np.uint8)
            for rings in _trace(mask):
                yield Outline(label, rings)


class _Edges(NamedTuple):
    """Sides between a region and what is no part of it, one px long, with a direction.

    The region lies to the right on the screen. `place` is the corner that an edge begins at,
    row * width + column; `turn` is 0 right, 1 down, 2 left, 3 up.
    """

    place: np.ndarray
    turn: np.ndarray
    region: np.ndarray


def _trace(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The rings of every region of a mask with a border of zeros, in the order of reading."""
    width = mask.shape[1] - 1  # corners in a row
    edges = _edges(mask, width)
    if not len(edges.place):
        return []
    following = _following(edges, width)
    # Only corners: where an edge goes on as the one before, there is none.
    corner = np.zeros(len(following), bool)
    corner[following[edges.turn[following] != edges.turn]] = True
    while not corner[following].all():  # jumps twice as far each time
        on = ~corner[following]
        following[on] = following[following[on]]
    number = np.cumsum(corner) - 1
    chain = number[following[corner]].tolist()
    place, region = edges.place[corner], edges.region[corner]
    corners = np.column_stack([place % width, place // width])
    found: dict[int, list[np.ndarray]] = {}
    seen = bytearray(len(chain))
    for first in range(len(chain)):
        ring = []
        while not seen[first]:
            seen[first] = 1
            ring.append(first)
            first = chain[first]
        if ring:  # the first of a region begins at its topmost corner: the outer ring
            found.setdefault(int(region[ring[0]]), []).append(corners[ring])
    return list(found.values())


def _edges(mask: np.ndarray, width: int) -> _Edges:
    """All edges, by the corner that they begin at, then by direction."""
    _, regions = cv2.connectedComponents(mask, connectivity=4)
    parts = []
    row, column = np.nonzero(mask[1:] != mask[:-1])
    below = mask[row + 1, column] > 0  # the edge is a top side, to the right; or a bottom side
    start = row * width + column - below
    parts.append((start, np.where(below, 0, 2), regions[row + below, column]))
    row, column = np.nonzero(mask[:, 1:] != mask[:, :-1])
    right = mask[row, column + 1] > 0  # a left side, upwards; or a right side
    start = (row - ~right) * width + column
    parts.append((start, np.where(right, 3, 1), regions[row, column + right]))
    place, turn, region = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(place * 4 + turn, kind="stable")
    return _Edges(place[order], turn[order], region[order])


def _following(edges: _Edges, width: int) -> np.ndarray:
    """The edge that each edge goes on as.

    Where two pixels of a region touch in a corner alone, it goes on along the other one: to
    the left. Then no ring comes back to a corner: what lies between the two pixels on either
    side of it is apart, since the region itself joins them.
    """
    key = edges.place * 4 + edges.turn
    end = edges.place + np.array([1, width, -1, -width])[edges.turn]
    following = np.full(len(key), -1)
    for by in (-1, 0, 1):  # left, straight on, right
        wanted = end * 4 + (edges.turn + by) % 4
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        fits = (key[at] == wanted) & (edges.region[at] == edges.region) & (following < 0)
        following[fits] = at[fits]
    return following
