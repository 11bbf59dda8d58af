"""Maps of a heatmap run as pyramids that any viewer of slides opens.

The class map becomes an RGB TIFF like a scanner's, for OpenSlide and all that is built on it;
the probabilities become an OME-TIFF, one channel per class, for tools that measure.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from bach.core.files import atomic_path
from bach.export.results import Result
from bach.tasks import task

CLASSES_ENDING, PROBS_ENDING = ".classes.tif", ".probs.ome.tif"

_TILE = 256
_SMALLEST = 64  # no level whose longer side is shorter than half of this
_ROWS = 512  # rows that are shrunk at a time; even
_UM_PER_CM = 1e4
_BIG = 2**31  # bytes before compression from which offsets may need 64 bits


def write_classes(path: Path, result: Result) -> None:
    """Write the class map as a tiled RGB pyramid, deflated.

    Every level shows the colours of the classes and no other: a px is the most frequent class
    of the four below it, of two that are as frequent the later one, so that small carcinomas
    stay. Resolution tags say um per px, which OpenSlide reads.

    Args:
        path: File to write, ending in `.tif`.
        result: The slide's maps.

    Raises:
        InputError: If the place cannot be written.
    """
    colors = np.array(task().colors, np.uint8)
    _write_slide(
        path,
        _levels(result.class_map, _most_frequent),
        result.record.mpp * result.record.downsample,
        lambda tile: colors[tile],
        photometric="rgb",
    )


def write_values(path: Path, values: np.ndarray, mpp: float) -> None:
    """Write a map of one channel as a tiled pyramid, deflated, with the values as they are.

    For tools that read the values: classes (uint8 0..n-1; a px of a smaller level as in
    `write_classes`) with their range in the tags, which grand-challenge.org asks of a
    segmentation, or a heatmap (float32 0..1; the mean).

    Args:
        path: File to write, ending in `.tif`.
        values: Array `(rows, cols)`, uint8 or float32.
        mpp: um per px.

    Raises:
        InputError: If the place cannot be written.
    """
    classes = values.dtype == np.uint8
    levels = _levels(values, _most_frequent if classes else _mean)
    # Both pairs of tags: a smallest value of 0 in the first is taken for none there
    # (DIAGNijmegen/rse-panimg, image_builders/tiff.py).
    most = task().count - 1
    tags = [(280, "H", 1, 0, False), (281, "H", 1, most, False)]
    tags += [(340, "B", 1, 0, False), (341, "B", 1, most, False)]
    extra = {"extratags": tags} if classes else {}
    _write_slide(path, levels, mpp, lambda tile: tile, photometric="minisblack", **extra)


def _write_slide(
    path: Path,
    levels: list[np.ndarray],
    mpp: float,
    shown: Callable[[np.ndarray], np.ndarray],
    **how: Any,
) -> None:
    """Write levels as a scanner does: pages of tiles, the largest first, with their scale.

    Args:
        path: File to write.
        levels: The map and its smaller ones.
        mpp: um per px of the map.
        shown: Makes of a tile of a level what is written.
        how: More for `tifffile.TiffWriter.write`.
    """
    one = shown(levels[0][:1, :1])
    size = sum(level.size for level in levels) * one.nbytes
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=size > _BIG) as writer,
    ):
        for number, level in enumerate(levels):
            per_cm = _UM_PER_CM / (mpp * 2**number)
            writer.write(
                (shown(tile) for tile in _tiles(level)),
                shape=(*level.shape, *one.shape[2:]),
                dtype=one.dtype,
                tile=(_TILE, _TILE),
                compression="zlib",
                subfiletype=1 if number else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
                **how,
            )


def write_probs(path: Path, result: Result) -> None:
    """Write the probabilities as a tiled OME-TIFF pyramid, one channel per class, deflated.

    float32, a px per cell, nan where nothing was predicted. A px of a smaller level is the
    mean of those of the four below it that were predicted. Levels are SubIFDs.

    Args:
        path: File to write, ending in `.ome.tif`.
        result: The slide's maps.

    Raises:
        InputError: If the place cannot be written.
    """
    levels = _levels(result.probs, _mean)
    size = result.record.step * result.record.mpp
    metadata = {
        "axes": "CYX",
        "Name": result.name,
        "UUID": f"urn:uuid:{result.uuid('probs')}",  # tifffile's would name the machine
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(task().classes)},
    }
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(
            temporary, ome=True, bigtiff=sum(level.nbytes for level in levels) > _BIG
        ) as writer,
    ):
        for number, level in enumerate(levels):
            per_cm = _UM_PER_CM / (size * 2**number)
            writer.write(
                (tile for label in range(task().count) for tile in _tiles(level[..., label])),
                shape=(task().count, *level.shape[:2]),
                dtype=np.float32,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="zlib",
                subfiletype=1 if number else 0,
                subifds=0 if number else len(levels) - 1,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None if number else metadata,
            )


def _levels(whole: np.ndarray, join: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """A map and its smaller ones, each of half the sides of the one before, rounded up.

    Args:
        whole: Array `(rows, cols, ...)`; may lie on disk.
        join: Makes of `(4, rows, cols, ...)` what stands for the four.
    """
    levels = [whole]
    while max(levels[-1].shape[:2]) > _SMALLEST:
        last = levels[-1]
        parts = []
        for top in range(0, last.shape[0], _ROWS):
            part = np.asarray(last[top : top + _ROWS])
            odd = [(0, side % 2) for side in part.shape[:2]]
            part = np.pad(part, [*odd, *[(0, 0)] * (part.ndim - 2)], mode="edge")
            four = [part[row::2, column::2] for row in (0, 1) for column in (0, 1)]
            parts.append(join(np.stack(four)))
        levels.append(np.concatenate(parts))
    return levels


def _most_frequent(four: np.ndarray) -> np.ndarray:
    """The most frequent of four classes; of two that are as frequent the later one."""
    counts = np.stack([(four == label).sum(axis=0) for label in reversed(range(task().count))])
    return (task().count - 1 - counts.argmax(axis=0)).astype(np.uint8)


def _mean(four: np.ndarray) -> np.ndarray:
    """The mean of those of four that are numbers; nan where none is."""
    known = ~np.isnan(four)
    with np.errstate(invalid="ignore"):
        return (np.where(known, four, 0).sum(axis=0) / known.sum(axis=0)).astype(np.float32)


def _tiles(level: np.ndarray) -> Iterator[np.ndarray]:
    """The tiles of a map in the order of the file, all of one size: the last repeat the edge."""
    rows, columns = level.shape
    for top in range(0, rows, _TILE):
        for left in range(0, columns, _TILE):
            tile = np.asarray(level[top : top + _TILE, left : left + _TILE])
            beyond = [(0, _TILE - side) for side in tile.shape]
            yield np.ascontiguousarray(np.pad(tile, beyond, mode="edge"))
