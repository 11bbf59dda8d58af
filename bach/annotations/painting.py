"""Regions painted into a map: which pixels they cover, in what order, what holes take away."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bach.core.log import log
from bach.core.text import listed
from bach.tasks import BACKGROUND, task

# Crossings of edges and rows that are looked at together, which bounds the memory: an outline
# of 200,000 vertices that runs up and down crosses every row 200,000 times.
_BLOCK = 1 << 20

# Cells along a side on which the share of a region beyond the slide is measured.
_COARSE = 256

# Of a region's area: more beyond the slide is a fault, more that differs by the rule of filling
# is worth a word. Hand-drawn outlines stray a little over the edge and over themselves.
_OUTSIDE, _CROSSED = 0.05, 0.01

_NOT_PAINTED = 255

# Why a region has no pixel, or a hole no effect.
BEYOND, NO_PIXEL, ERASED = "beyond the slide", "encloses no pixel of the map", "erased by holes"
HOLLOW, IDLE = "outline that encloses nothing", "hole that cuts nothing"

# An outline of more pixels than that, in width and height, was meant to enclose something.
_HOLLOW_PX = 3


class Region(NamedTuple):
    """One outline.

    Attributes:
        label: Class 0..n-1; 0 (Normal) for a hole.
        points: Vertices x, y in level-0 px, float64 (n, 2). The outline closes
            itself. With fewer than 3 it encloses nothing and paints nothing.
        is_hole: Whether it takes its area away from the regions of its layer.
        layer: What a hole belongs to: layer of an XML, polygon of a GeoJSON.
        name: What it is called in messages.
    """

    label: int
    points: np.ndarray
    is_hole: bool = False
    layer: int = 0
    name: str = "a region"


class Fate(NamedTuple):
    """What became of a region when it was painted.

    Attributes:
        area: Area that its outline encloses, level-0 px2, on the slide and beyond.
        outside: Share of it that lies beyond the slide, 0..1; 0 for a hole.
        painted: Pixels of the map whose centres it has, without what holes take away; 0 for
            a hole.
        crossed: Share of its pixels that its outline winds around an even number of times.
        lost: Why it has no pixel, or "".
        below: Name of a later region that it lies inside and was kept on top of, or "".
        twin: Name of a later region of another class with the same pixels, which hides it,
            or "".
    """

    area: float
    outside: float
    painted: int
    crossed: float
    lost: str = ""
    below: str = ""
    twin: str = ""


class Painting(NamedTuple):
    """A painted map.

    Attributes:
        labels: uint8 0..n-1 (height, width); what no region covers is 0 (Normal).
        counts: Pixels per class that regions cover, int64 (classes,).
        fates: What became of each region, in their order.
    """

    labels: np.ndarray
    counts: np.ndarray
    fates: list[Fate]


def label_mask(regions: Sequence[Region], width: int, height: int, downsample: float) -> np.ndarray:
    """Paint regions into a mask, at the size of the mask.

    A mask pixel takes the label of the region that its centre lies in, so areas
    are right to within half a mask pixel at the outline and regions that touch
    neither overlap nor leave a gap. A region between pixel centres paints nothing.
    An outline that crosses itself encloses what it winds around (non-zero winding):
    one that is drawn twice, or whose end overlaps its start, loses nothing.

    Later regions paint over earlier ones. A hole takes away what the regions
    before it in its layer painted, and shows what other layers have there, or
    Normal; a region after it shows. A region wholly inside a later one of another
    class stays on top, since files of some tools have no order. The log names
    regions that lie beyond the slide, that cross themselves, or that holes erase.

    Args:
        regions: Regions, in the order of the file.
        width: Width of the slide, level-0 px.
        height: Height of the slide, level-0 px.
        downsample: Level-0 px per mask pixel, above 0; may be fractional.

    Returns:
        uint8 0..n-1, (ceil(height / downsample), ceil(width / downsample)); what no
        region covers is 0 (Normal).

    Raises:
        ValueError: If a side or the downsample is not above 0.

    Example:
        >>> square = Region(3, np.array([[16, 16], [48, 16], [48, 32], [16, 32]], float))
        >>> label_mask([square], 64, 48, 16)
        array([[0, 0, 0, 0],
               [0, 3, 3, 0],
               [0, 0, 0, 0]], dtype=uint8)
    """
    painting = paint(regions, width, height, downsample)
    for line in (*faults(regions, painting.fates), *remarks(regions, painting.fates)):
        log.warning("%s", line)
    return painting.labels


def paint(regions: Sequence[Region], width: int, height: int, downsample: float) -> Painting:
    """Paint regions, and say what became of each; see `label_mask`."""
    if not (width > 0 and height > 0 and downsample > 0):
        raise ValueError(
            "Width, height and downsample must be above 0. "
            f"Received: width={width}, height={height}, downsample={downsample}."
        )
    # A quotient like 3000 / (3000 / 7) is a whole number but for rounding.
    rows, columns = (max(1, int(np.ceil(n / downsample - 1e-6))) for n in (height, width))
    # Differs from Kwok 2018: the paper does not say how annotations are painted. Later regions
    # paint over earlier ones, but not over what lies wholly inside them; a hole cuts the regions
    # before it in its layer; a pixel belongs to the region that its centre lies in.
    found = [_runs(region.points / downsample, (rows, columns)) for region in regions]
    drawn = [runs for runs, _ in found]
    left, idle = _cut(regions, drawn, rows * columns)
    inside = _inside_later(regions, drawn)
    mask = np.full(rows * columns, _NOT_PAINTED, np.uint8)
    for number in _order(len(regions), inside):
        _fill(mask, left[number], regions[number].label)
    counts = np.array([np.count_nonzero(mask == label) for label in range(task().count)])
    np.putmask(mask, mask == _NOT_PAINTED, BACKGROUND)
    fates: list[Fate] = []
    twins = _twins(regions, drawn)
    for number, region in enumerate(regions):
        runs, even = found[number]
        area, outside = _area(region.points, runs.size * downsample**2, width, height)
        if region.is_hole:
            outside, lost = 0.0, IDLE if number in idle else ""
        elif runs.size:
            lost = "" if left[number].size else ERASED
        else:
            lost = _why_empty(region.points / downsample, outside)
        over = [j for j in inside.get(number, ()) if _meet(left[number], left[j])]
        below = regions[over[0]].name if over else ""
        crossed = even / max(runs.size, 1)
        twin = regions[twins[number]].name if number in twins else ""
        fates.append(Fate(area, outside, left[number].size, crossed, lost, below, twin))
    return Painting(mask.reshape(rows, columns), counts, fates)


def _why_empty(points: np.ndarray, outside: float) -> str:
    """Why an outline has no pixel; its vertices in mask pixels."""
    if outside > 0.5:
        return BEYOND
    large = len(points) > 0 and np.ptp(points, axis=0).min() > _HOLLOW_PX
    return HOLLOW if large and not outside else NO_PIXEL


def faults(regions: Sequence[Region], fates: Sequence[Fate]) -> list[str]:
    """A line for each way in which an annotation was lost that nobody can have meant."""
    both = list(zip(regions, fates, strict=True))
    outside = [f"{r.name} ({f.outside:.0%})" for r, f in both if f.outside > _OUTSIDE]
    erased = [r.name for r, f in both if f.lost == ERASED]
    hollow = [r.name for r, f in both if f.lost == HOLLOW]
    idle = [r.name for r, f in both if f.lost == IDLE]
    lines = []
    if outside:
        lines.append(f"beyond the slide: {listed(outside)}; is it the annotation of another slide?")
    if erased:
        lines.append(f"erased by holes that come later in the file: {listed(erased)}")
    if hollow:
        lines.append(f"outlines go there and back, and enclose nothing: {listed(hollow)}")
    if idle:
        lines.append(f"holes with no region before them in their layer cut nothing: {listed(idle)}")
    return lines


def remarks(
    regions: Sequence[Region], fates: Sequence[Fate], px_mm2: float | None = None
) -> list[str]:
    """A line for each way in which a file was read as it may not have been meant.

    Args:
        regions: The regions.
        fates: What became of them.
        px_mm2: Area of a level-0 px in mm2, for the areas that are named.
    """
    both = list(zip(regions, fates, strict=True))

    def size(fate: Fate) -> str:
        area = fate.area * fate.crossed
        return f"{area:,.0f} px" if px_mm2 is None else f"{area * px_mm2:.3f} mm2"

    crossed = [f"{r.name} ({size(f)})" for r, f in both if f.crossed > _CROSSED]
    below = [f"{r.name} in {f.below}" for r, f in both if f.below]
    twins = [f"{r.name} and {f.twin}" for r, f in both if f.twin]
    empty = [r.name for r, f in both if f.lost == NO_PIXEL]
    lines = []
    if crossed:
        lines.append(
            "outlines cross themselves, and what they wind around twice counts as inside: "
            f"{listed(crossed)}"
        )
    if below:
        lines.append(f"kept on top of later regions that they lie inside: {listed(below)}")
    if twins:
        lines.append(f"drawn twice with different classes, the later one counts: {listed(twins)}")
    if empty:
        lines.append(f"enclose no pixel of the map: {listed(empty)}")
    return lines


class _Runs(NamedTuple):
    """Pixels of a map as runs along its rows, flat from `start` up to `stop`, in order.

    No two of them touch within a row, so that pixels lie inside others if each of their
    runs lies in one of the others'. `box` is first and last row, first and last column.
    """

    start: np.ndarray
    stop: np.ndarray
    size: int
    box: tuple[int, int, int, int]


def _as_runs(start: np.ndarray, stop: np.ndarray, width: int) -> _Runs:
    """Runs in order, those that touch in a row joined."""
    if not len(start):
        return _Runs(start, stop, 0, (0, -1, 0, -1))
    apart = (start[1:] != stop[:-1]) | (start[1:] % width == 0)
    start, stop = start[np.append(True, apart)], stop[np.append(apart, True)]
    box = (start[0] // width, start[-1] // width, (start % width).min(), ((stop - 1) % width).max())
    top, bottom, left, right = map(int, box)
    return _Runs(start, stop, int((stop - start).sum()), (top, bottom, left, right))


def _runs(points: np.ndarray, shape: tuple[int, int]) -> tuple[_Runs, int]:
    """Pixels whose centres a polygon winds around, by scanline.

    Along the centre line of a row, every edge that crosses it changes the winding
    number by one, up or down by the edge's direction. A run of pixels between two
    crossings is inside where that number is not 0.

    Not cv2.fillPoly: it paints the outline too, and grows a region by half a pixel
    all round (a square of 10x10 mask pixels comes out 11x11).

    Args:
        points: Vertices x, y in mask pixels, float64 (n, 2); pixel centres are at
            i + 0.5.
        shape: (height, width) of the mask.

    Returns:
        The pixels, and the number of those with an even winding number, which the
        even-odd rule would leave out.
    """
    height, width = shape
    nothing = np.zeros(0, np.int64)
    if len(points) < 3:
        return _as_runs(nothing, nothing, width), 0
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    # Rows whose centre line an edge crosses, half-open: a vertex on a centre line
    # counts for one of its two edges, so that every row ends with winding number 0.
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    dx, dy = x1 - x0, y1 - y0
    down = np.where(dy > 0, 1, -1)
    starts, stops, even = [nothing], [nothing], 0
    for top, bottom in _row_blocks(first, last, height):
        used = np.flatnonzero((first < bottom) & (last > top))
        begin, end = np.maximum(first[used], top), np.minimum(last[used], bottom)
        count = end - begin
        row = np.arange(count.sum()) + np.repeat(begin - np.cumsum(count) + count, count)
        edges = np.repeat(np.stack([x0, y0, dx, dy, down])[:, used], count, axis=1)
        along = (row + 0.5 - edges[1]) / edges[3]
        x = edges[0] + along * edges[2]
        column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
        # Flat, a crossing right of a row is one left of the next: the former row's numbers
        # add up to 0 in any order.
        place, turn = row * width + column, edges[4]
        if len(place) > (bottom - top) * width:  # more crossings than pixels
            change = np.bincount(place - top * width, turn)
            place = np.flatnonzero(change)
            turn = change[place]
            place += top * width
        else:
            order = np.argsort(place, kind="stable")
            place, turn = place[order], turn[order]
        winding = np.cumsum(turn)[:-1].astype(np.int64)
        start, stop = place[:-1], place[1:]
        some = (winding != 0) & (start < stop)
        starts.append(start[some])
        stops.append(stop[some])
        even += int((stop - start)[some & (winding % 2 == 0)].sum())
    return _as_runs(np.concatenate(starts), np.concatenate(stops), width), even


def _row_blocks(first: np.ndarray, last: np.ndarray, height: int) -> list[tuple[int, int]]:
    """Blocks of rows with about `_BLOCK` crossings each, or one row; of rows with some."""
    if (last - first).sum() <= _BLOCK:
        some = last > first
        return [(int(first[some].min()), int(last[some].max()))] if some.any() else []
    begun = np.bincount(first, minlength=height + 1) - np.bincount(last, minlength=height + 1)
    crossings = np.cumsum(begun)[:height]
    block = np.cumsum(crossings) // _BLOCK
    top = np.flatnonzero(np.diff(block, prepend=-1))
    bottom = np.append(top[1:], height)
    blocks = zip(top.tolist(), bottom.tolist(), strict=True)
    return [(a, b) for a, b in blocks if crossings[a:b].any()]


def _fill(flat: np.ndarray, runs: _Runs, value: int | bool) -> None:
    for start, stop in zip(runs.start.tolist(), runs.stop.tolist(), strict=True):
        flat[start:stop] = value


def _cut(
    regions: Sequence[Region], drawn: Sequence[_Runs], pixels: int
) -> tuple[list[_Runs], set[int]]:
    """What the holes after them in their layer leave of regions, and the holes that cut nothing.

    Holes themselves are left with nothing. One map of the slide's size serves all layers; only
    what was drawn on it is cleared.
    """
    layers: dict[int, list[int]] = {}
    for number, region in enumerate(regions):
        layers.setdefault(region.layer, []).append(number)
    left, idle = list(drawn), set()
    layers = {k: v for k, v in layers.items() if any(regions[number].is_hole for number in v)}
    marked = np.zeros(pixels if layers else 0, bool)
    for members in layers.values():
        # Forward, marked is what a hole may cut.
        for number in members:
            hole, runs = regions[number].is_hole, drawn[number]
            if hole and runs.size and not _some(marked, runs).any():
                idle.add(number)
            _fill(marked, runs, not hole)
        for number in members:
            _fill(marked, drawn[number], False)
        # Backward, marked is what the later holes take away.
        for number in reversed(members):
            if regions[number].is_hole:
                _fill(marked, drawn[number], True)
                left[number] = drawn[number]._replace(
                    start=drawn[number].start[:0], stop=drawn[number].stop[:0], size=0
                )
            else:
                left[number] = _without(drawn[number], marked)
        for number in members:
            _fill(marked, drawn[number], False)
    return left, idle


def _some(flat: np.ndarray, runs: _Runs) -> np.ndarray:
    """Whether each run has a pixel that is set."""
    pairs = zip(runs.start.tolist(), runs.stop.tolist(), strict=True)
    return np.array([flat[start:stop].any() for start, stop in pairs], bool)


def _without(runs: _Runs, marked: np.ndarray) -> _Runs:
    """Runs without the pixels that are marked."""
    hit = _some(marked, runs)
    if not hit.any():
        return runs
    edges: list[int] = []
    for start, stop in zip(runs.start[hit].tolist(), runs.stop[hit].tolist(), strict=True):
        part = marked[start:stop]
        turns = np.flatnonzero(part[1:] != part[:-1]) + (start + 1)
        edges += [start] * (not part[0])
        edges += turns.tolist()
        edges += [stop] * (not part[-1])
    kept = np.array(edges, np.int64).reshape(-1, 2)
    start = np.sort(np.append(runs.start[~hit], kept[:, 0]))
    stop = np.sort(np.append(runs.stop[~hit], kept[:, 1]))
    return runs._replace(start=start, stop=stop, size=int((stop - start).sum()))


def _inside_later(regions: Sequence[Region], drawn: Sequence[_Runs]) -> dict[int, list[int]]:
    """For regions that lie wholly inside later ones of another class: those.

    By the outlines, whatever holes take away. Of two with the same pixels neither lies inside.
    """
    some = [n for n, region in enumerate(regions) if drawn[n].size and not region.is_hole]
    if len({regions[number].label for number in some}) < 2:
        return {}
    some = sorted(some, key=lambda number: drawn[number].box[2])
    numbers = np.array(some)
    top, bottom, left, right = np.array([drawn[number].box for number in some]).T
    sizes = np.array([drawn[number].size for number in some])
    held: dict[int, set[int]] = {}  # all that a region holds, of any class
    result: dict[int, list[int]] = {}
    for place in np.argsort(numbers).tolist():
        outer = some[place]
        part = slice(
            np.searchsorted(left, left[place]), np.searchsorted(left, right[place], "right")
        )
        fits = (
            (numbers[part] < outer) & (sizes[part] < sizes[place]) & (right[part] <= right[place])
        )
        fits &= (top[part] >= top[place]) & (bottom[part] <= bottom[place])
        inner = numbers[part][fits]
        holds: set[int] = set()
        # The largest first: what it holds need not be looked at.
        for number in inner[np.argsort(-sizes[part][fits], kind="stable")].tolist():
            if number not in holds and _lies_in(drawn[number], drawn[outer]):
                holds |= {number} | held.get(number, set())
        if holds:
            held[outer] = holds
        for number in holds:
            if regions[number].label != regions[outer].label:
                result.setdefault(number, []).append(outer)
    return result


def _twins(regions: Sequence[Region], drawn: Sequence[_Runs]) -> dict[int, int]:
    """For regions with the pixels of a later one of another class: that one."""
    last: dict[tuple[bytes, bytes], int] = {}
    result = {}
    for number in reversed(range(len(regions))):
        runs = drawn[number]
        if runs.size and not regions[number].is_hole:
            other = last.setdefault((runs.start.tobytes(), runs.stop.tobytes()), number)
            if regions[other].label != regions[number].label:
                result[number] = other
    return result


def _lies_in(inner: _Runs, outer: _Runs) -> bool:
    place = np.searchsorted(outer.start, inner.start, "right") - 1
    return bool(place[0] >= 0 and (inner.stop <= outer.stop[place]).all())


def _meet(one: _Runs, other: _Runs) -> bool:
    """Whether two regions have a pixel in common."""
    if not one.size or not other.size:
        return False
    place = np.searchsorted(other.stop, one.start, "right")
    known = place < len(other.start)
    return bool((other.start[place[known]] < one.stop[known]).any())


def _order(count: int, inside: dict[int, list[int]]) -> list[int]:
    """Numbers 0, 1, ... in their order, but each after all those that it lies inside."""
    waits = [len(inside.get(number, ())) for number in range(count)]
    holds: dict[int, list[int]] = {}
    for number, outers in inside.items():
        for outer in outers:
            holds.setdefault(outer, []).append(number)
    ready = [number for number in range(count) if not waits[number]]
    result = []
    while ready:
        number = heapq.heappop(ready)
        result.append(number)
        for inner in holds.get(number, ()):
            waits[inner] -= 1
            if not waits[inner]:
                heapq.heappush(ready, inner)
    return result


def _area(points: np.ndarray, drawn: float, width: float, height: float) -> tuple[float, float]:
    """Area of an outline in level-0 px2, and the share of it beyond the slide.

    That of an outline on the slide is what was drawn. Of another it is measured on a grid of
    cells over its own box, wherever that lies.
    """
    if len(points) < 3:
        return 0.0, 0.0
    low, high = points.min(axis=0), points.max(axis=0)
    sides = np.array([width, height], float)
    if (low >= 0).all() and (high <= sides).all():
        return drawn, 0.0
    cell = np.maximum(high - low, 1e-9) / _COARSE
    runs, _ = _runs((points - low) / cell, (_COARSE, _COARSE))
    covered = np.zeros(_COARSE**2, bool)
    _fill(covered, runs, True)
    centre = low + (np.arange(_COARSE)[:, None] + 0.5) * cell
    beyond = ((centre < 0) | (centre > sides)).T
    beyond = beyond[1][:, None] | beyond[0][None, :]  # rows, columns
    out = covered.reshape(beyond.shape)[beyond].sum()
    all_out = (high <= 0).any() or (low >= sides).any()
    return float(runs.size * np.prod(cell)), 1.0 if all_out else float(out / max(runs.size, 1))
