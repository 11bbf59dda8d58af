"""Slides of a heatmap run as objects of QuPath: a tile per cell, an annotation per region.

One `.geojson.gz` per slide, as QuPath 0.5 to 0.7 takes it by drag and drop. The rules are
those of its source (github.com/qupath/qupath, e7662d8, `QuPathTypeAdapters`, `GsonTools`,
`ROITypeAdapters`): `objectType` stands inside `properties`; `id` is a UUID; a classification
is `{"name", "color": [r, g, b]}`, and without its colour the whole file is refused; nan is
the text "NaN"; coordinates have two decimals, which is what QuPath rounds to.
"""

import gzip
import io
import json
import math
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from bach.core.files import atomic_path
from bach.export.outlines import outlines
from bach.export.results import Result
from bach.tasks import task

ENDING = ".geojson.gz"
# Beside the features, where QuPath does not look: what was taken off level-0 px.
OFFSET = "bach_offset"

_DECIMALS = 2


def write_qupath(path: Path, result: Result, offset: tuple[int, int] = (0, 0)) -> None:
    """Write the objects of a slide, one by one: memory does not grow with their number.

    Tiles are locked and carry the four probabilities and the heatmap's value. Regions are the
    class map's, exactly: `bach.annotations` paints the same map from the file. The same
    result gives the same bytes.

    Args:
        path: File to write, ending in `.geojson.gz`.
        result: The slide's maps.
        offset: x, y in level-0 px of the pixel that QuPath calls 0, 0; see
            `bach.honest.records.bounds_offset`.

    Raises:
        InputError: If the place cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        # No name and no time in the header: the same bytes each time.
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
    ):
        _write(stream, result, offset)


def _write(stream: TextIO, result: Result, offset: tuple[int, int]) -> None:
    said = f'"{OFFSET}":{json.dumps(offset)},' if any(offset) else ""
    stream.write('{"type":"FeatureCollection",' + said + '"features":[')
    between = "\n"
    for features in (_tiles(result, offset), _regions(result, offset)):
        for feature in features:
            stream.write(between + feature)
            between = ",\n"
    stream.write("\n]}\n")


def _tiles(result: Result, offset: tuple[int, int]) -> Iterator[str]:
    """A locked tile per cell that was predicted, row by row."""
    record = result.record
    rows, columns = result.heatmap.shape
    xs = _lines(columns, record.step, record.width, offset[0])
    ys = _lines(rows, record.step, record.height, offset[1])
    cells = result.uuid("cells")
    names = [json.dumps(name) for name in (*task().columns, "heatmap")]
    for row in range(rows):
        # Copied: a row at a time comes from the disk.
        probs, heatmap = np.array(result.probs[row]), np.array(result.heatmap[row])
        for column in np.flatnonzero(~np.isnan(probs).all(axis=1)).tolist():
            values = (*probs[column], heatmap[column])
            measured = ",".join(f"{n}:{_number(v)}" for n, v in zip(names, values, strict=True))
            left, right, top, bottom = xs[column], xs[column + 1], ys[row], ys[row + 1]
            corners = ((left, top), (right, top), (right, bottom), (left, bottom))
            properties = f'"objectType":"tile","isLocked":true,"measurements":{{{measured}}}'
            yield _feature(uuid.uuid5(cells, f"{row} {column}"), [_ring(corners)], properties)


def _regions(result: Result, offset: tuple[int, int]) -> Iterator[str]:
    """An annotation per region of the class map, its holes inside."""
    record = result.record
    rows, columns = result.class_map.shape
    xs = _lines(columns, record.downsample, record.width, offset[0], centres=True)
    ys = _lines(rows, record.downsample, record.height, offset[1], centres=True)
    regions = result.uuid("regions")
    for number, (label, rings) in enumerate(outlines(result.class_map)):
        classification = {"name": task().classes[label], "color": task().colors[label]}
        properties = f'"objectType":"annotation","classification":{json.dumps(classification)}'
        texts = [_ring((xs[x], ys[y]) for x, y in ring.tolist()) for ring in rings]
        yield _feature(uuid.uuid5(regions, str(number)), texts, properties)


def _feature(identity: uuid.UUID, rings: list[str], properties: str) -> str:
    return (
        f'{{"type":"Feature","id":"{identity}","geometry":{{"type":"Polygon","coordinates":'
        f'[{",".join(rings)}]}},"properties":{{{properties}}}}}'
    )


def _ring(corners: Iterable[tuple[str, str]]) -> str:
    """A ring as JSON, closed, from the texts of its corners."""
    points = [f"[{x},{y}]" for x, y in corners]
    return f"[{','.join(points)},{points[0]}]"


def _number(value: np.floating) -> str:
    """A measurement: the shortest text that reads back to the same float32."""
    return str(value) if np.isfinite(value) else '"NaN"'


def _lines(count: int, step: float, side: int, offset: int, centres: bool = False) -> list[str]:
    """Where the lines between cells lie in QuPath, as texts; the last at the slide's edge.

    Args:
        count: Cells along the side.
        step: Side of a cell in level-0 px.
        side: Length of the slide in level-0 px.
        offset: What is taken off.
        centres: Keep the centre of the last cell inside where it lies beyond the slide, up to
            half a cell: by its centre a px of a class map is painted.
    """
    lines = np.round(np.arange(count + 1) * step, _DECIMALS)
    unit = 10**_DECIMALS
    last = float(side)
    if centres:  # the next hundredth behind it
        last = max(last, (math.floor((count - 0.5) * step * unit) + 1) / unit)
    # A cell of less than a hundredth px is still one.
    lines[-1] = max(min(lines[-1], last), lines[-2] + 1 / unit)
    return [f"{line:.{_DECIMALS}f}".rstrip("0").rstrip(".") for line in lines - offset]
