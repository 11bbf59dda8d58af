"""Slides and photos: one way to open them, one way to read a region at any scale.

Everything is addressed in level-0 pixels and um per pixel; pyramid levels do not
leave this module. `l0_` marks level-0 pixels, `l_` pixels of one pyramid level.
"""

import concurrent.futures
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import openslide

from bach.core.errors import InputError
from bach.core.pictures import read_rgb

if TYPE_CHECKING:
    import scipy.sparse

# Part A photos carry no usable scale; the challenge states it (Aresta et al. 2018).
PART_A_MPP = 0.42

# Microscope scales lie far inside this range; what lies outside is a unit error
# (72 dpi of an exported picture, mm for um) and would silently scale everything.
MPP_RANGE = (0.05, 5.0)

SLIDE_SUFFIXES: tuple[str, ...] = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn")
SLIDE_SUFFIXES += (".vms", ".vmu", ".bif", ".svslide", ".dcm")
PHOTO_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")

# um in a unit of TIFF's resolution.
_UNITS = {"centimeter": 1e4, "inch": 2.54e4}

# Reading shrinks block by block, so that a slide without a pyramid needs no more
# memory than one with it. 1 Mpx is 4 MB of RGBA, and ten times that while it shrinks.
_BLOCK_PIXELS = 1_000_000

# Blocks of a large region are decoded side by side: whoever waits for one slide's first
# region, or its thumbnail, waits half as long.
_THREADS = 2

_CACHE_BYTES = 64 * 2**20


class Slide:
    """An open slide or photo. Safe to read from several threads.

    Args:
        path: Any slide OpenSlide reads, or a TIFF, PNG or JPEG image.
        mpp: um per level-0 pixel; overrides what the file says. Needed only where
            the file says nothing.

    Attributes:
        path: Path of the file.
        name: File name without its ending.
        width, height: Size in level-0 pixels.
        mpp: um per level-0 pixel.
        mpp_source: Where `mpp` was found.

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

    def __init__(self, path: str | os.PathLike, mpp: float | None = None):
        self.path = Path(path)
        self.name = self.path.stem
        if not self.path.is_file():
            raise InputError(
                f"No such slide: {self.path}.\nReceived: path={self.path}.\nCheck the name."
            )
        self._openslide: openslide.OpenSlide | None = None
        self._image: np.ndarray | None = None
        try:
            self._openslide = slide = openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            size = f"{self.path.stat().st_size:,} bytes"
            if openslide.OpenSlide.detect_format(self.path) is not None:
                raise InputError(
                    f"The slide {self.path} is damaged or truncated.\n"
                    f"Received: {size}; {error}.\n"
                    "Copy or download it again and compare the size."
                ) from error
            self._image = image = read_rgb(
                self.path,
                f"OpenSlide does not read it either ({size}). Copy or download it again; a picture "
                "that is too large must be converted to a tiled pyramidal TIFF.",
            )
            self.height, self.width = image.shape[:2]
            self._l_sizes: Sequence[tuple[int, int]] = [(self.width, self.height)]
            self._location_factors: Sequence[float] = [1.0]
            self.properties = _tiff_properties(self.path)
        else:
            slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            self.width, self.height = slide.dimensions
            self._l_sizes = slide.level_dimensions
            # Asked for here: where one thread has met damage, the slide answers no other.
            self._location_factors = slide.level_downsamples
            self.properties = dict(slide.properties)
        whole = (self.width, self.height)
        self._downsamples = [_downsample(whole, l_size) for l_size in self._l_sizes]
        try:
            self.mpp, self.mpp_source = _find_mpp(self.path, self.properties, mpp)
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
            if downsample <= scale * 1.001 and downsample > self._downsamples[level]:
                level = index
        downsample = self._downsamples[level]
        factor = scale / downsample  # level px per result px
        result = np.empty((height, width, 3), np.uint8)
        side = max(1, int(math.sqrt(_BLOCK_PIXELS) / max(factor, 1.0)))

        def fill(row: int, col: int) -> None:
            block = result[row : row + side, col : col + side]
            block[:] = self._read_block(
                level,
                x / downsample + col * factor,
                y / downsample + row * factor,
                block.shape[1],
                block.shape[0],
                factor,
            )

        rows, cols = range(0, height, side), range(0, width, side)
        if len(rows) * len(cols) == 1:
            fill(0, 0)
        elif rows and cols:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                # list(): raises here what a thread raised.
                list(pool.map(lambda corner: fill(*corner), itertools.product(rows, cols)))
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

    def _read_block(
        self, level: int, l_x: float, l_y: float, width: int, height: int, factor: float
    ) -> np.ndarray:
        l_right, l_bottom = l_x + width * factor, l_y + height * factor
        # A pixel of room on each side lets bilinear enlarging see its neighbours.
        room = 1 if factor < 1 else 0
        left, top = math.floor(l_x + 1e-6) - room, math.floor(l_y + 1e-6) - room
        right, bottom = math.ceil(l_right - 1e-6) + room, math.ceil(l_bottom - 1e-6) + room
        pixels = self._read_level(level, left, top, right - left, bottom - top)
        offset_x, offset_y = l_x - left, l_y - top
        if factor < 1 - 1e-9:
            return _enlarge(pixels, offset_x, offset_y, width, height, factor)
        whole = abs(offset_x) < 1e-6 and abs(offset_y) < 1e-6
        whole = whole and abs(l_right - right) < 1e-6 and abs(l_bottom - bottom) < 1e-6
        if whole and pixels.shape[:2] == (height, width):
            return pixels
        if whole:
            return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return _shrink(pixels, offset_x, offset_y, width, height, factor)

    def _read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
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
        # OpenSlide divides the location by its own downsample, which for sizes that
        # do not divide evenly is not quite the integer it should be.
        factor = self._location_factors[level]
        location = (round(x0 * factor), round(y0 * factor))
        try:
            region = self._openslide.read_region(location, level, (x1 - x0, y1 - y0))
        except openslide.OpenSlideError as error:
            raise InputError(
                f"The slide {self.path} cannot be read everywhere.\n"
                f"Received: at x={location[0]}, y={location[1]} (level-0 px), pyramid level "
                f"{level}: {error}.\n"
                "The file is damaged or truncated: copy or download it again."
            ) from error
        rgba = np.asarray(region)
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            target[:] = rgba[..., :3]
        else:  # parts that were never scanned are transparent: show them as glass
            share = alpha.astype(np.float32) / 255
            target[:] = np.rint(rgba[..., :3] * share + 255 * (1 - share))
        return result


def _downsample(l0_size: tuple[int, int], l_size: tuple[int, int]) -> float:
    """Level-0 px per px of a level, as an integer where the sizes allow one.

    Scanners cut the remainder off, so 42,113 / 10,528 is 4.00009 while the level
    was made by a factor of 4; the difference is a drift of one pixel at the far
    corner.
    """
    ratio = (l0_size[0] / l_size[0] + l0_size[1] / l_size[1]) / 2
    whole = round(ratio)
    if whole >= 1 and all(abs(l0_size[i] / whole - l_size[i]) < 1 for i in (0, 1)):
        return float(whole)
    return ratio


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
        if not low <= given <= high:
            raise InputError(
                f"--mpp must lie between {low} and {high} um per pixel.\n"
                f"Received: --mpp={given}.\n"
                "20x is about 0.5, 40x about 0.25."
            )
        return float(given), "given"
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


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


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
    except (tifffile.TiffFileError, ValueError, IndexError):
        return {}


def _weights(offset: float, count: int, factor: float, length: int) -> "scipy.sparse.csr_array":
    """Area weights `(count, length)`: pixel i is the mean over offset + factor*[i, i+1)."""
    import scipy.sparse  # slow to import

    start = offset + factor * np.arange(count)
    span = math.ceil(factor) + 1
    source = np.floor(start).astype(np.int64)[:, None] + np.arange(span)
    overlap = np.minimum(source + 1, (start + factor)[:, None]) - np.maximum(source, start[:, None])
    overlap = np.clip(overlap, 0, None) / factor
    # Rounding can leave a sliver of weight beyond the last pixel.
    overlap[(source < 0) | (source >= length)] = 0
    overlap /= overlap.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(count), span)
    matrix = scipy.sparse.coo_array(
        (overlap.ravel().astype(np.float32), (rows, np.clip(source, 0, length - 1).ravel())),
        shape=(count, length),
    )
    return matrix.tocsr()


def _shrink(
    pixels: np.ndarray, offset_x: float, offset_y: float, width: int, height: int, factor: float
) -> np.ndarray:
    """Area averaging with a fractional offset, which cv2.resize does not offer."""
    rows, cols = pixels.shape[:2]
    tall = _weights(offset_y, height, factor, rows) @ pixels.reshape(rows, -1).astype(np.float32)
    wide = tall.reshape(height, cols, 3).transpose(1, 0, 2).reshape(cols, -1)
    result = (_weights(offset_x, width, factor, cols) @ wide).reshape(width, height, 3)
    return np.rint(result.transpose(1, 0, 2)).astype(np.uint8)


def _enlarge(
    pixels: np.ndarray, offset_x: float, offset_y: float, width: int, height: int, factor: float
) -> np.ndarray:
    """Bilinear interpolation between pixel centres."""
    matrix = np.array(
        [
            [factor, 0, offset_x + factor / 2 - 0.5],
            [0, factor, offset_y + factor / 2 - 0.5],
        ]
    )
    return cv2.warpAffine(
        pixels,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
