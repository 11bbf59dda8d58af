"""Slides and photos: one way to open them, one way to read a region at any scale.

Everything is addressed in level-0 pixels and um per pixel; pyramid levels do not
leave this module. `l0_` marks level-0 pixels, `l_` pixels of one pyramid level.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import openslide

from bach.core.errors import InputError
from bach.core.pictures import over_white, read_rgb
from bach.core.resample import enlarge, shrink

# Microscope scales lie far inside this range; what lies outside is a unit error
# (72 dpi of an exported picture, mm for um) and would silently scale everything.
MPP_RANGE = (0.05, 5.0)

SLIDE_SUFFIXES: tuple[str, ...] = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn")
SLIDE_SUFFIXES += (".vms", ".vmu", ".bif", ".svslide", ".dcm")
PHOTO_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")

# um in a unit of TIFF's resolution.
_UNITS = {"centimeter": 1e4, "inch": 2.54e4}

# Reading shrinks piece by piece, so that a slide without a pyramid needs no more memory than one
# with it. So many px of the level are ten times as many bytes while they shrink, which stay in
# the processor's cache; a patch at the usual scale is one piece.
_PIECE_PIXELS = 130_000
_ENLARGED_PIXELS = 1_000_000  # OpenCV's places are exact to 1/32 px, in each piece anew

# Pieces of a large region are read side by side: whoever waits for one slide's first region, or
# its thumbnail, waits half as long.
_THREADS, _FEW_PIECES = 2, 8

# Levels are read in blocks, which are tiles where these are no larger than this, and what was
# read lately is kept: OpenSlide takes 14 ns to paint a pixel, also of a tile that it decoded
# before, and patches a fifth apart show every pixel 25 times. Of a block that nobody has asked
# for before only the part that is wanted is read, unless that is half of it.
_BLOCK_PX, _LARGEST_BLOCK_PX = 256, 1024
_ASKED = 1 << 14  # so many blocks are known to have been asked for
# What a band of regions across most slides looks at, of which the next band sees a fifth again;
# a row of patches looks at a third of it.
_KEPT_BYTES = 160 * 2**20
_CACHE_BYTES, _LARGE_CACHE_BYTES = 32 * 2**20, 64 * 2**20  # OpenSlide's own; for larger tiles

# What a file may claim of itself. OpenSlide ends the process where it finds no memory for a
# tile (16,384 px squared are 1 GB), and thumbnails would find none beyond 100 Gpx; the largest
# slides have 60.
_TILE_PIXELS = 1 << 28
_SLIDE_PIXELS = 100e9

# Formats of single TIFF pages, where a tile without data was lost: others leave out tiles
# where nothing was scanned.
_PLAIN_VENDORS = ("aperio", "generic-tiff", "trestle")

# A first look at a slide without a small level: so many samples of so many px along each side.
_GLANCE, _GLANCE_PX = 16, 64

# What was scanned, where a format says it.
_BOUNDS = tuple(f"openslide.bounds-{side}" for side in ("x", "y", "width", "height"))

_Future = concurrent.futures.Future[np.ndarray]


class Slide:
    """An open slide or photo. Safe to read from several threads.

    Args:
        path: Any slide OpenSlide reads, or a TIFF, PNG or JPEG image.
        mpp: um per level-0 pixel; overrides what the file says. Needed only where
            the file says nothing.
        name: What it is called; None for the name of the file without its ending.

    Attributes:
        path: Path of the file.
        name: What it is called.
        width, height: Size in level-0 pixels.
        mpp: um per level-0 pixel.
        mpp_source: Where `mpp` was found.
        stated_mpp: What the file says it is, or None; the same unless another is given.

    Raises:
        InputError: If the file is missing, unreadable or truncated, or has no
            plausible scale.

    Example:
        >>> with Slide("A01.svs") as slide:  # doctest: +SKIP
        ...     thumbnail = slide.thumbnail(mpp=8.0)
        ...     patch = slide.read(1344.5, 0, 299, 299, mpp=2.1)
    """

    width: int
    height: int
    mpp: float
    mpp_source: str
    stated_mpp: float | None

    def __init__(self, path: str | os.PathLike, mpp: float | None = None, name: str | None = None):
        self.path = Path(path)
        self.name = name or self.path.stem
        if not os.path.isfile(self.path):  # no error, whatever is wrong with the path
            raise InputError(
                f"No such slide: {self.path}.\nReceived: path={self.path}.\nCheck the name."
            )
        self._openslide: openslide.OpenSlide | None = None
        self._image: np.ndarray | None = None
        self._blocks = _Blocks(self._read_file)
        try:
            self._openslide = slide = openslide.OpenSlide(self.path)
            self.width, self.height = slide.dimensions
            self._l_sizes: Sequence[tuple[int, int]] = slide.level_dimensions
            # Asked for here: where one thread has met damage, the slide answers no other.
            self._location_factors: Sequence[float] = slide.level_downsamples
            self.properties = _properties(slide)
            self._tiles = [_tile(self.properties, level) for level in range(len(self._l_sizes))]
            large = max(map(max, self._tiles)) > _LARGEST_BLOCK_PX
            slide.set_cache(openslide.OpenSlideCache(_LARGE_CACHE_BYTES if large else _CACHE_BYTES))
        except openslide.OpenSlideError as error:
            self.close()
            if openslide.OpenSlide.detect_format(self.path) is not None:
                raise InputError(
                    f"The slide {self.path} is damaged or truncated.\n"
                    f"Received: {self._bytes()}; {error}.\n"
                    "Copy or download it again and compare the size."
                ) from error
            self._image = image = read_rgb(
                self.path,
                f"OpenSlide does not read it either ({self._bytes()}). Copy or download it again; "
                "a picture that is too large must be converted to a tiled pyramidal TIFF.",
            )
            self.height, self.width = image.shape[:2]
            self._l_sizes = [(self.width, self.height)]
            self._location_factors = [1.0]
            self.properties = _tiff_properties(self.path)
        try:
            self._check_claims()
            whole = (self.width, self.height)
            self._downsamples = [_downsample(whole, l_size) for l_size in self._l_sizes]
            self.mpp, self.mpp_source = _find_mpp(self.path, self.properties, mpp)
            self.stated_mpp = _stated_mpp(self.path, self.properties)
        except InputError:
            self.close()
            raise

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Reading afterwards is an error."""
        if self._openslide is not None:
            self._openslide.close()
        self._openslide = None
        self._image = None
        self._blocks.clear()

    def read(
        self, x: float, y: float, width: int, height: int, mpp: float | None = None
    ) -> np.ndarray:
        """Read a region at any scale; beyond the edge the slide is white.

        The region is taken from the coarsest pyramid level that is still at least
        as fine as asked for, and shrunk by exact area averaging: fractional
        coordinates are honoured, not rounded.

        Args:
            x, y: Left and top edge in level-0 px; fractions and negatives are fine.
            width, height: Size of the result in px.
            mpp: um per px of the result. Default: that of level 0.

        Returns:
            uint8 array `(height, width, 3)`, RGB.

        Raises:
            InputError: If the file turns out to be damaged here.

        Example:
            >>> with Slide("A01.svs") as slide:  # doctest: +SKIP
            ...     patch = slide.read(21052.5, 300, 299, 299, mpp=2.1)
            >>> patch.shape, patch.dtype  # doctest: +SKIP
            ((299, 299, 3), dtype('uint8'))
        """
        scale = 1.0 if mpp is None else mpp / self.mpp  # level-0 px per result px
        level = 0
        for index, downsample in enumerate(self._downsamples):
            if max(downsample) <= scale * 1.001 and max(downsample) > max(self._downsamples[level]):
                level = index
        x_downsample, y_downsample = self._downsamples[level]
        factors = scale / x_downsample, scale / y_downsample  # level px per result px
        result = np.empty((height, width, 3), np.uint8)
        enlarged = min(factors) < 1 - 1e-9
        side = math.sqrt(_ENLARGED_PIXELS if enlarged else _PIECE_PIXELS) / max(*factors, 1.0)

        pieces = list(itertools.product(_parts(height, side), _parts(width, side)))

        def fill(top_bottom: tuple[int, int], left_right: tuple[int, int]) -> None:
            (top, bottom), (left, right) = top_bottom, left_right
            result[top:bottom, left:right] = self._read_piece(
                level,
                x / x_downsample + left * factors[0],
                y / y_downsample + top * factors[1],
                right - left,
                bottom - top,
                factors,
                whole_blocks=len(pieces) > 1,  # their neighbours want the rest
            )

        if len(pieces) <= _FEW_PIECES:
            for piece in pieces:
                fill(*piece)
        else:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                # list(): raises here what a thread raised.
                list(pool.map(lambda piece: fill(*piece), pieces))
        return result

    def thumbnail(self, mpp: float) -> np.ndarray:
        """Read the whole slide at `mpp` um/px: uint8 `(height, width, 3)`.

        The size is rounded up, so the last row and column may show some white.
        """
        scale = mpp / self.mpp
        return self.read(
            0, 0, math.ceil(self.width / scale), math.ceil(self.height / scale), mpp=mpp
        )

    def check(self) -> None:
        """Read the corners of every level, to find damage that opening does not.

        Raises:
            InputError: If a part of the file cannot be read.
        """
        for level, (l_width, l_height) in enumerate(self._l_sizes):
            for l_x in (0, max(0, l_width - 256)):
                for l_y in (0, max(0, l_height - 256)):
                    self._read_level(level, l_x, l_y, min(256, l_width), min(256, l_height))

    def glance(self) -> np.ndarray:
        """A small picture that shows what kind of slide this is, quick to read.

        Returns:
            uint8 `(height, width, 3)`: the smallest level, or samples of it side by side,
            spread over the slide, where that is still large.

        Raises:
            InputError: If a part of the file cannot be read.
        """
        level = len(self._l_sizes) - 1
        l_width, l_height = self._l_sizes[level]
        if l_width * l_height <= (4 * _GLANCE * _GLANCE_PX) ** 2:
            return self._read_level(level, 0, 0, l_width, l_height)
        side = (min(_GLANCE_PX, l_width), min(_GLANCE_PX, l_height))
        lefts, tops = (
            np.linspace(0, length - part, _GLANCE).astype(int).tolist()
            for length, part in zip((l_width, l_height), side, strict=True)
        )
        rows = [
            np.concatenate([self._read_level(level, left, top, *side) for left in lefts], axis=1)
            for top in tops
        ]
        return np.concatenate(rows)

    def missing_tiles(self) -> float:
        """Share of the tiles without data, of the level that lacks most: glass where it is read.

        Known for TIFFs of one picture per level; 0 for other formats, most of which leave out
        what was not scanned.
        """
        if self.properties.get(openslide.PROPERTY_NAME_VENDOR) not in _PLAIN_VENDORS:
            return 0.0
        return _missing_tiles(self.path, set(self._l_sizes))

    def _bytes(self) -> str:
        return f"{self.path.stat().st_size:,} bytes"

    def _check_claims(self) -> None:
        """Refuse a file that claims what nobody has, or more than 8 bits per channel."""
        faults = []
        for level, (l_width, l_height) in enumerate(self._l_sizes):
            tile = _tile(self.properties, level)
            if tile[0] * tile[1] > _TILE_PIXELS:
                faults.append(f"tiles of {tile[0]:,.0f}x{tile[1]:,.0f} px on level {level}")
            if min(l_width, l_height) < 1 or l_width * l_height > _SLIDE_PIXELS:
                faults.append(f"{l_width:,}x{l_height:,} px on level {level}")
        if self.properties.get(openslide.PROPERTY_NAME_VENDOR) in _PLAIN_VENDORS and not faults:
            bits, channels = _channels(self.path)
            if bits > 8:
                faults.append(f"{bits} bits per channel, of which only the upper 8 would be read")
            if channels > 4:
                faults.append(f"{channels} channels")
        if faults:
            raise InputError(
                f"The slide {self.path} must be in RGB of 8 bits, of a size that can be true.\n"
                f"Received: {'; '.join(faults)}.\n"
                "The file is damaged, or must be exported again as 8-bit RGB."
            )

    def _read_piece(
        self,
        level: int,
        l_x: float,
        l_y: float,
        width: int,
        height: int,
        factors: tuple[float, float],
        whole_blocks: bool,
    ) -> np.ndarray:
        l_right, l_bottom = l_x + width * factors[0], l_y + height * factors[1]
        # A pixel of room on each side lets bilinear enlarging see its neighbours.
        room = 1 if min(factors) < 1 else 0
        left, top = math.floor(l_x + 1e-6) - room, math.floor(l_y + 1e-6) - room
        right, bottom = math.ceil(l_right - 1e-6) + room, math.ceil(l_bottom - 1e-6) + room
        pixels = self._read_level(
            level, left, top, right - left, bottom - top, whole_blocks=whole_blocks
        )
        offset_x, offset_y = l_x - left, l_y - top
        if min(factors) < 1 - 1e-9:
            return enlarge(pixels, (offset_x, offset_y), (width, height), factors)
        whole = abs(offset_x) < 1e-6 and abs(offset_y) < 1e-6
        whole = whole and abs(l_right - right) < 1e-6 and abs(l_bottom - bottom) < 1e-6
        if whole and pixels.shape[:2] == (height, width):
            return pixels
        if whole:
            return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return shrink(pixels, (offset_x, offset_y), (width, height), factors)

    def _read_level(
        self,
        level: int,
        left: int,
        top: int,
        width: int,
        height: int,
        whole_blocks: bool = False,
    ) -> np.ndarray:
        """Read whole pixels of one level, white beyond its edge."""
        l_width, l_height = self._l_sizes[level]
        result = np.full((height, width, 3), 255, np.uint8)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, l_width), min(top + height, l_height)
        if x1 <= x0 or y1 <= y0:
            return result
        target = result[y0 - top : y1 - top, x0 - left : x1 - left]
        if self._image is not None:
            target[:] = self._image[y0:y1, x0:x1]
            return result
        if self._openslide is None:
            raise ValueError(f"The slide {self.path} is closed.")
        across, down = map(_block_side, self._tiles[level])
        for row, col in itertools.product(
            range(y0 // down, (y1 - 1) // down + 1), range(x0 // across, (x1 - 1) // across + 1)
        ):
            block = _Box(
                level, *_cut(col * across, across, l_width), *_cut(row * down, down, l_height)
            )
            part = _Box(
                level,
                *_between(x0, x1, block.left, block.width),
                *_between(y0, y1, block.top, block.height),
            )
            pixels = self._blocks.get(block, whole_blocks or 2 * part.pixels >= block.pixels)
            if pixels is None:
                pixels = self._read_file(part)
            else:
                pixels = pixels[part.top - block.top :, part.left - block.left :]
            target[part.top - y0 :, part.left - x0 :][: part.height, : part.width] = pixels[
                : part.height, : part.width
            ]
        return result

    def _read_file(self, box: "_Box") -> np.ndarray:
        """Have OpenSlide read a box that lies on its level: uint8 `(height, width, 3)`."""
        slide = self._openslide
        if slide is None:
            raise ValueError(f"The slide {self.path} is closed.")
        # OpenSlide divides the location by its own downsample, which for sizes that
        # do not divide evenly is not quite the integer it should be.
        factor = self._location_factors[box.level]
        location = (round(box.left * factor), round(box.top * factor))
        try:
            region = slide.read_region(location, box.level, (box.width, box.height))
        except openslide.OpenSlideError as error:
            raise InputError(
                f"The slide {self.path} cannot be read everywhere.\n"
                f"Received: at x={location[0]}, y={location[1]} (level-0 px), pyramid level "
                f"{box.level}: {error}.\n"
                "The file is damaged or truncated: copy or download it again."
            ) from error
        return over_white(np.asarray(region))  # what was never scanned is shown as glass


class _Box(NamedTuple):
    """Whole pixels of a level."""

    level: int
    left: int
    width: int
    top: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


class _Blocks:
    """Blocks of a slide that were read lately; one that several threads want is read once.

    Args:
        read: Reads a block, uint8 `(height, width, 3)`.
    """

    def __init__(self, read: Callable[[_Box], np.ndarray]):
        self._read = read
        self._lock = threading.Lock()
        # What was used last comes last.
        self._kept: collections.OrderedDict[_Box, _Future] = collections.OrderedDict()
        self._asked: collections.OrderedDict[_Box, None] = collections.OrderedDict()
        self._bytes = 0

    def get(self, block: _Box, worthwhile: bool) -> np.ndarray | None:
        """A block, not to be written to.

        Args:
            block: What is wanted.
            worthwhile: Read it also if it is asked for the first time.

        Returns:
            uint8 `(height, width, 3)`; None of a block that is not there, if it is not
            worthwhile to read all of it.
        """
        with self._lock:
            there = self._kept.get(block)
            if there is not None:
                self._kept.move_to_end(block)
            elif not worthwhile and block not in self._asked:
                self._asked[block] = None
                if len(self._asked) > _ASKED:
                    self._asked.popitem(last=False)
                return None
            else:
                self._asked.pop(block, None)
                mine = self._kept[block] = _Future()
                self._bytes += 3 * block.pixels
                while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                    self._bytes -= 3 * self._kept.popitem(last=False)[0].pixels
        if there is not None:
            return there.result()
        try:
            mine.set_result(self._read(block))
        except BaseException as error:  # who waits for it must not wait for ever
            with self._lock:
                if self._kept.pop(block, None) is not None:
                    self._bytes -= 3 * block.pixels
            mine.set_exception(error)
            raise
        return mine.result()

    def clear(self) -> None:
        """Forget all blocks."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _parts(length: int, side: float) -> list[tuple[int, int]]:
    """Starts and ends of the parts of a length, as even as can be, about `side` long at most."""
    count = math.ceil(length / max(side, 1))
    edges = [length * part // count for part in range(count + 1)] if count else []
    return list(itertools.pairwise(edges))


def _cut(start: int, side: int, length: int) -> tuple[int, int]:
    """Start and length of a block's side on a level of this length."""
    return start, min(side, length - start)


def _between(low: int, high: int, start: int, length: int) -> tuple[int, int]:
    """Start and length of what two stretches have in common."""
    first = max(low, start)
    return first, min(high, start + length) - first


def _tile(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    """Width and height of the tiles of a level in px, 0 where the file does not say."""
    width, height = (
        _number(properties.get(f"openslide.level[{level}].tile-{side}", 0)) or 0
        for side in ("width", "height")
    )
    return int(width), int(height)


def _block_side(tile: int) -> int:
    """Side of the blocks that a level is read in, for tiles of one side in px."""
    if not 0 < tile <= _LARGEST_BLOCK_PX:
        return _LARGEST_BLOCK_PX if tile else _BLOCK_PX
    return tile * max(1, _BLOCK_PX // tile)  # of smaller tiles several, which makes fewer calls


def _downsample(l0_size: tuple[int, int], l_size: tuple[int, int]) -> tuple[float, float]:
    """Level-0 px per px of a level, across and down: one number where the sizes allow it.

    Scanners cut the remainder off, so 42,113 / 10,528 is 4.00009 while the level
    was made by a factor of 4; the difference is a drift of one pixel at the far
    corner. Where no one factor explains both sides, each has its own: their mean would
    drift by tens of pixels.
    """

    def fits(factor: float, side: int) -> bool:
        return abs(l0_size[side] / factor - l_size[side]) < 1

    ratios = l0_size[0] / l_size[0], l0_size[1] / l_size[1]
    mean = sum(ratios) / 2
    longer = ratios[0] if l_size[0] >= l_size[1] else ratios[1]  # the better known
    for factor in (round(mean), round(longer), longer):
        if factor >= 1 and fits(factor, 0) and fits(factor, 1):
            return float(factor), float(factor)
    x, y = (
        float(round(ratio)) if round(ratio) >= 1 and fits(round(ratio), side) else ratio
        for side, ratio in enumerate(ratios)
    )
    return x, y


def check_mpp(mpp: float) -> float:
    """A scale that a user states, in um per px.

    Raises:
        InputError: If no microscope has it.
    """
    low, high = MPP_RANGE
    if not low <= mpp <= high:
        raise InputError(
            f"--mpp must lie between {low} and {high} um per pixel.\n"
            f"Received: --mpp={mpp}.\n"
            "20x is about 0.5, 40x about 0.25."
        )
    return float(mpp)


def _find_mpp(path: Path, properties: dict[str, str], given: float | None) -> tuple[float, str]:
    """Find um per level-0 px: given, OpenSlide's, the Aperio header's, TIFF tags'."""
    low, high = MPP_RANGE
    rejected = []

    def plausible(text: object, source: str) -> float | None:
        mpp = _number(text)
        if mpp is None or low <= mpp <= high:
            return mpp
        rejected.append(f"{source} says {mpp:g} um/px")
        return None

    if given is not None:
        return check_mpp(given), "given"
    x = plausible(properties.get(openslide.PROPERTY_NAME_MPP_X), "OpenSlide")
    y = plausible(properties.get(openslide.PROPERTY_NAME_MPP_Y), "OpenSlide")
    if x is not None:
        if y is not None and abs(x - y) > 0.02 * x:
            raise InputError(
                f"The pixels of {path} must be square.\n"
                f"Received: {x} x {y} um.\n"
                "Convert the slide, or state one scale with --mpp."
            )
        return x if y is None else (x + y) / 2, "openslide"
    aperio = plausible(properties.get("aperio.MPP"), "the Aperio header")
    if aperio is not None:
        return aperio, "aperio"
    unit = _UNITS.get(properties.get("tiff.ResolutionUnit", "").lower())
    resolution = _number(properties.get("tiff.XResolution"))
    if unit and resolution:
        tagged = plausible(unit / resolution, "the TIFF resolution tag")
        if tagged is not None:
            return tagged, "tiff"
    because = f" ({'; '.join(rejected)}, which is no microscope's)" if rejected else ""
    raise InputError(
        f"The slide {path} is readable but must also state its scale.\n"
        f"Received: no usable scale{because}.\n"
        "State it with --mpp in um per pixel (20x is about 0.5, 40x about 0.25)."
    )


def _stated_mpp(path: Path, properties: dict[str, str]) -> float | None:
    try:
        return _find_mpp(path, properties, None)[0]
    except InputError:  # nothing of use; that is no error where a scale is given
        return None


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _properties(slide: openslide.OpenSlide) -> dict[str, str]:
    """What the file says of itself; names that are no UTF-8 are listed, but cannot be asked for."""
    found = {}
    for name in slide.properties:
        with contextlib.suppress(KeyError):
            found[name] = slide.properties[name]
    return found


def _tiff_properties(path: Path) -> dict[str, str]:
    """The resolution tags of a TIFF that OpenSlide does not read."""
    import tifffile  # slow, and rarely needed

    try:
        with tifffile.TiffFile(path) as tiff:
            tags = tiff.pages.first.tags
            resolution, unit = tags.get("XResolution"), tags.get("ResolutionUnit")
            if resolution is None or unit is None or not resolution.value[1]:
                return {}
            return {
                "tiff.XResolution": str(resolution.value[0] / resolution.value[1]),
                "tiff.ResolutionUnit": {2: "inch", 3: "centimeter"}.get(int(unit.value), ""),
            }
    except Exception:  # it is no TIFF, or its tags say nothing
        return {}


def _missing_tiles(path: Path, sizes: Collection[tuple[int, int]]) -> float:
    """Share of empty tiles in the page that lacks most, among those of these sizes."""
    import tifffile  # slow

    shares = [0.0]
    try:
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                assert isinstance(page, tifffile.TiffPage)
                if (page.imagewidth, page.imagelength) in sizes:
                    counts = np.asarray(page.databytecounts)
                    shares.append(float(np.mean(counts == 0)) if counts.size else 1.0)
    except Exception:  # damaged so that OpenSlide alone reads it
        return max(shares)
    return max(shares)


def _channels(path: Path) -> tuple[int, int]:
    """Bits per channel, and channels, of the first page of a TIFF."""
    import tifffile  # slow

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return int(np.max(page.bitspersample)), int(page.samplesperpixel)
    except Exception:  # see _missing_tiles
        return 8, 3


def first_shown(properties: Mapping[str, str]) -> tuple[int, int]:
    """The first px of a slide that QuPath shows, x and y, by OpenSlide's properties.

    QuPath shows what OpenSlide says was scanned, if it says all four bounds as whole numbers
    (`OpenslideImageServer`, e7662d8); MIRAX and Leica slides have them.

    Example:
        >>> names = ("x", "y", "width", "height")
        >>> first_shown({f"openslide.bounds-{n}": "7" for n in names}), first_shown({})
        ((7, 7), (0, 0))
    """
    try:
        x, y, *_ = (int(properties[name]) for name in _BOUNDS)
    except (KeyError, ValueError):
        return 0, 0
    return x, y
