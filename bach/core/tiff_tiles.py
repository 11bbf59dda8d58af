"""Tiles of TIFFs that are stored without loss, read at half of what OpenSlide takes.

Whatever is unusual about a file, a level or a tile is left to OpenSlide, which says what is
wrong with it: here it is no error, but nothing.
"""

import os
import threading
import zlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

# Values of TIFF's tags: no compression, deflate by either number, and differences of neighbours.
_PLAIN, _DEFLATE = 1, (8, 32946)
_NO_PREDICTOR, _DIFFERENCES = 1, 2
_RGB, _CHUNKY, _TOP_LEFT = 2, 1, 1


class _Level(NamedTuple):
    """Where the tiles of a level lie, and how they are stored."""

    side: tuple[int, int]  # width and height of a tile
    across: int
    deflate: bool
    differences: bool
    offsets: Sequence[int]
    counts: Sequence[int]


class TiffTiles:
    """Reads whole tiles of an open TIFF. Safe to use from several threads.

    Args:
        path: The file.
        sizes: Width and height of the levels.
        tiles: Width and height of their tiles.

    Attributes:
        levels: The levels that can be read here.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        sizes: Sequence[tuple[int, int]],
        tiles: Sequence[tuple[int, int]],
    ):
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None
        self._levels = _find_levels(path, sizes, tiles)
        if self._levels:
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)

    @property
    def levels(self) -> frozenset[int]:
        return frozenset(self._levels)

    def close(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.close()
            self._stream, self._levels = None, {}

    def read(self, level: int, left: int, top: int) -> np.ndarray | None:
        """The tile whose corner lies there: uint8 `(height, width, 3)`, None if unusual."""
        found = self._levels.get(level)
        if found is None or left % found.side[0] or top % found.side[1]:
            return None
        number = top // found.side[1] * found.across + left // found.side[0]
        offset, count = found.offsets[number], found.counts[number]
        size = 3 * found.side[0] * found.side[1]
        if not count or count > 2 * size:
            return None
        with self._lock:
            if self._stream is None:
                return None
            self._stream.seek(offset)
            data = self._stream.read(count)
        if found.deflate:
            inflating = zlib.decompressobj()
            try:
                data = inflating.decompress(data, size + 1)
            except zlib.error:
                return None
            if not inflating.eof:
                return None
        if len(data) != size:
            return None
        pixels = np.frombuffer(data, np.uint8).reshape(found.side[1], found.side[0], 3)
        return np.cumsum(pixels, axis=1, dtype=np.uint8) if found.differences else pixels


def _find_levels(
    path: str | os.PathLike,
    sizes: Sequence[tuple[int, int]],
    tiles: Sequence[tuple[int, int]],
) -> dict[int, _Level]:
    """The levels that one page of the file is known to be."""
    import tifffile  # slow

    found: dict[int, list[_Level | None]] = {}
    try:
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                if not isinstance(page, tifffile.TiffPage):
                    continue
                size = (page.imagewidth, page.imagelength)
                if size in sizes:
                    level = sizes.index(size)
                    found.setdefault(level, []).append(_level_of(page, tiles[level]))
    except Exception:  # damaged so that OpenSlide alone reads it
        return {}
    return {level: only[0] for level, only in found.items() if len(only) == 1 and only[0]}


def _level_of(page, side: tuple[int, int]) -> _Level | None:
    """How a page is stored, if it is in the usual way."""
    across, down = -(-page.imagewidth // side[0]), -(-page.imagelength // side[1])
    orientation = page.tags.get("Orientation")
    usual = (
        page.is_tiled
        and (page.tilewidth, page.tilelength) == side
        and page.compression in (_PLAIN, *_DEFLATE)
        and page.predictor in (_NO_PREDICTOR, _DIFFERENCES)
        and (page.photometric, page.planarconfig, page.fillorder) == (_RGB, _CHUNKY, 1)
        and (page.samplesperpixel, page.bitspersample) == (3, 8)
        and not page.extrasamples
        and (orientation is None or orientation.value == _TOP_LEFT)
        and len(page.dataoffsets) == len(page.databytecounts) == across * down
    )
    if not usual:
        return None
    deflate = page.compression in _DEFLATE
    return _Level(
        side,
        across,
        deflate,
        deflate and page.predictor == _DIFFERENCES,
        page.dataoffsets,
        page.databytecounts,
    )
