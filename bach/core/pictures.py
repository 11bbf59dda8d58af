"""Pictures: the one reader and writer of photos, masks and class maps.

What is read is what a person sees who opens the file: palettes are colours, transparent is
white, the picture stands as EXIF says. Where that cannot be had in 8 bits, the file is
refused. Of several pictures in one file the largest is taken, and the log says so.
"""

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from bach.core.drawings import Color
from bach.core.errors import InputError
from bach.core.files import atomic_path
from bach.core.inputs import Limit, require_file, understood
from bach.core.log import log

# Larger pictures are not decoded: 500 Mpx take 3.5 GB.
MAX_PIXELS = 500_000_000

# All others are of no use here, and some run programs of their own (EPS).
_FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "GIF", "WEBP")

# Modes of Pillow: whose pixels are one number each, and which have colours that need no
# profile. CMYK is neither: what its inks look like only the printer knows.
_INDEXED = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")
_COLORED = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr")

_LOSSY = ("JPEG", "MPO", "WEBP")
_LOSSY_IN_TIFF = ("jpeg", "tiff_jpeg", "webp")

_MAX_PAGES = 1000
_STRIP_PX = 1 << 20  # pixels at a time, which bounds the memory
_TIFF_TILE = (322, 323)  # tags: width and height of a tile
_TIFF_BITS = 258
_TIFF_CHANNELS, _MOST_CHANNELS = 277, 4
# Pixels that a byte of a PNG can stand for: deflate's 1032 bytes of eight pixels of one bit.
_PNG_MOST = 1032 * 8
_PNG_BITS = 24  # where the header has the bits per channel

# EXIF: the tag, where Pillow has it, what turns a picture upright, and what swaps its sides.
_ORIENTATION = 0x0112
_EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


# Files


class Header(NamedTuple):
    """What a file says of its picture: size in px and Pillow's mode ("RGB", "L", ...)."""

    width: int
    height: int
    mode: str


def read_header(path: str | os.PathLike, remedy: str) -> Header:
    """Read the size and mode of a picture without decoding it; see `read_rgb`."""
    with _open(path, remedy) as image:
        width, height = image.size
        turned = _orientation(image) in _SIDEWAYS
        return Header(*((height, width) if turned else (width, height)), image.mode)


def remarks(path: str | os.PathLike, remedy: str) -> list[str]:
    """What is unusual about a picture that can be read, in words; usually nothing."""
    with _open(path, remedy) as image:
        found = [] if image.mode == "RGB" else [f"mode {image.mode} instead of 8-bit RGB"]
        if image.has_transparency_data:
            found.append("what is transparent is read as white")
        if _orientation(image) in _TURNS:
            found.append("turned as its EXIF orientation says")
        pages = _choose_page(image)[1]
        if pages > 1:
            found.append(f"holds {pages} pictures, of which the largest is read")
        return found


def read_rgb(
    path: str | os.PathLike,
    remedy: str,
    modes: Collection[str] = _COLORED,
    most: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode a picture: uint8 `(height, width, 3)`, RGB.

    Palettes become their colours, gray becomes three equal channels, and what is
    transparent becomes white, as on slides.

    Args:
        path: TIFF, PNG, JPEG, BMP, GIF or WebP.
        remedy: What to do if it cannot be read, a sentence.
        modes: Modes of Pillow to accept; all that have colours by default.
        most: Pixels of the largest picture that is decoded.

    Raises:
        InputError: If the file is missing, no regular file, truncated, no picture, of
            another mode, of more than 8 bits per channel, or too large.
    """
    with _open(path, remedy, modes, most) as image:
        if _bits(image, path) > 8:
            raise InputError(
                f"{path} must have 8 bits per channel.\n"
                f"Received: {_bits(image, path)} bits. Which of them are the brightness, it does "
                f"not say.\n{remedy}"
            )
        channels = getattr(image, "tag_v2", {}).get(_TIFF_CHANNELS, 1)
        if channels > _MOST_CHANNELS:
            raise InputError(
                f"{path} must have three channels, and transparency at most.\n"
                f"Received: {channels}. Which of them are red, green and blue, it does not say.\n"
                f"{remedy}"
            )
        image = _upright(image)
        if image.has_transparency_data:
            return over_white(np.asarray(image.convert("RGBA")))
        return np.asarray(image.convert("RGB"))


def read_indexed(path: str | os.PathLike, remedy: str) -> np.ndarray:
    """Decode a picture whose pixels are numbers: palette indices or gray values.

    Args:
        path: A palette or gray picture.
        remedy: What to do if it cannot be read, a sentence.

    Returns:
        `(height, width)`; uint8, or what else the file holds: bool, uint16, int32.

    Raises:
        InputError: As `read_rgb`, and if the picture is in colour.
    """
    # Pillow and not OpenCV, which turns palette indices into their colours.
    with _open(path, remedy, _INDEXED) as image:
        return np.array(_upright(image))


def read_mask(path: str | os.PathLike, remedy: str) -> np.ndarray:
    """Decode a mask of any kind: bool `(height, width)`.

    Numbers (gray of any depth, palette indices) are true unless 0, whatever the palette
    looks like; colours are true unless black. What is transparent is false; if all the rest
    is 0 or black, the rest is true.

    Args:
        path: A picture without loss.
        remedy: What to do if it cannot be read, a sentence.

    Raises:
        InputError: As `read_rgb`, and of a JPEG or WebP, which have no exact black, and of
            negative numbers.
    """
    with _open(path, remedy, tuple(dict.fromkeys(_INDEXED + _COLORED))) as image:
        deep = image.mode not in _INDEXED and _bits(image, path) > 8
        lossy = image.format in _LOSSY or image.info.get("compression") in _LOSSY_IN_TIFF
        if deep or lossy:
            received = (
                "16 bits per channel" if deep else "JPEG or WebP, whose black is not exactly 0"
            )
            raise InputError(
                f"{path} must be a mask whose pixels are exact.\nReceived: {received}.\n{remedy}"
            )
        image = _upright(image)
        if image.mode in _INDEXED:
            numbers = np.asarray(image)
            if numbers.size and numbers.min() < 0:
                raise InputError(
                    f"{path} must be a mask of numbers from 0 up.\n"
                    f"Received: {numbers.min()}; whether that is tissue, it does not say.\n{remedy}"
                )
            values = numbers != 0
        else:
            values = (np.asarray(image.convert("RGB")) != 0).any(axis=2)
        if not image.has_transparency_data:
            return values
        opaque = np.asarray(image.convert("RGBA"))[..., 3] > 0
        mask = opaque & values
        return mask if mask.any() or opaque.all() else opaque


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Lay a picture with transparency over white: uint8 `(height, width, 3)`.

    Args:
        rgba: uint8 `(height, width, 4)`, the colours not multiplied by the last channel.
    """
    if not rgba.size:
        return rgba[..., :3].copy()
    result = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)  # many times faster than a slice
    rows = max(1, _STRIP_PX // max(rgba.shape[1], 1))
    for top in range(0, len(rgba), rows):
        part = rgba[top : top + rows]
        if part[..., 3].min(initial=255) < 255:
            share = part[..., 3:].astype(np.float32) / 255
            result[top : top + rows] = np.rint(part[..., :3] * share + 255 * (1 - share))
    return result


@contextlib.contextmanager
def _open(
    path: str | os.PathLike,
    remedy: str,
    modes: Collection[str] | None = None,
    most: int = MAX_PIXELS,
) -> Iterator[Image.Image]:
    """An open picture, gone through by `understood` as far as Pillow reads it."""
    must = "be a readable picture"
    require_file(path, must, remedy, Limit.PICTURE)
    with (
        understood(path, must, remedy),
        _our_limit(),
        Image.open(path, formats=_FORMATS) as image,
    ):
        page, pages = _choose_page(image)
        if pages > 1 and modes is not None:
            log.warning(
                "%s holds %d pictures; number %d is read, %dx%d px",
                path,
                pages,
                page + 1,
                *image.size,
            )
        tags = getattr(image, "tag_v2", {})
        tile = int(tags.get(_TIFF_TILE[0], 0)) * int(tags.get(_TIFF_TILE[1], 0))
        pixels = max(image.width * image.height, tile)
        if image.format == "PNG" and pixels > _PNG_MOST * Path(path).stat().st_size:
            raise InputError(
                f"{path} must be a whole picture.\n"
                f"Received: {image.width}x{image.height} px by its header, more than a file of "
                f"this size can hold.\n{remedy}"
            )
        if pixels > most:
            raise InputError(
                f"{path} must have at most {most / 1e6:,.0f} million pixels.\n"
                f"Received: {image.width}x{image.height} px, {pixels / 1e6:,.0f} million."
                f"\n{remedy}"
            )
        if modes is not None and image.mode not in modes:
            raise InputError(
                f"{path} must be a picture of mode {', '.join(modes)}.\n"
                f"Received: a picture in mode {image.mode}.\n{remedy}"
            )
        yield image


_limit = threading.Lock()
_readers = 0
_pillows_limit: int | None = None


@contextlib.contextmanager
def _our_limit() -> Iterator[None]:
    """Lift Pillow's own limit, which is one for all threads, while one of them reads."""
    global _readers, _pillows_limit
    with _limit:
        if _readers == 0:
            _pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _readers += 1
    try:
        yield
    finally:
        with _limit:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _pillows_limit


def _choose_page(image: Image.Image) -> tuple[int, int]:
    """Go to the largest of several pictures, of equals to the first: its number, and how many."""
    try:
        pages = getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first picture is none of it
        image.seek(0)
        pages = 1
    if pages == 1:
        return 0, 1
    sizes = [image.size]
    for page in range(1, min(pages, _MAX_PAGES) if image.format in ("TIFF", "MPO") else 1):
        try:
            image.seek(page)
        except Exception:  # a page that nothing can be made of
            break
        sizes.append(image.size)
    best = int(np.argmax([width * height for width, height in sizes]))
    image.seek(best)
    return best, pages


def _bits(image: Image.Image, path: str | os.PathLike) -> int:
    """Bits per channel as the file has them: Pillow drops the lower ones and says RGB."""
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(_TIFF_BITS, (1,)))
    if image.format == "PNG":
        with Path(path).open("rb") as stream:
            return stream.read(_PNG_BITS + 1)[_PNG_BITS]
    return 8


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the picture lies; asked before it is decoded."""
    if image.format == "TIFF" or not _EXIF & image.info.keys():
        return 1  # Pillow turns a TIFF itself
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF does not make the pixels worse
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """The picture as people see it, turned as EXIF says."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Write a uint8 `(height, width, 3)` RGB picture as PNG, whole or not at all."""
    _write(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def _write(path: str | os.PathLike, values: np.ndarray) -> None:
    # OpenCV only encodes: its own writer does not say why it could not write. Both tell by
    # their answer alone that they could not.
    done, content = cv2.imencode(".png", values)
    if not done:
        raise InputError(
            f"{path} must be a picture that PNG can hold, up to 1,000,000 px on a side.\n"
            f"Received: {values.shape[1]}x{values.shape[0]} px.\n"
            "Leave out the slide that is so long, or cut it."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
    """A uint8 `(height, width, 3)` RGB picture as the content of a JPEG file."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_indexed(path: str | os.PathLike, values: np.ndarray, colors: Sequence[Color]) -> None:
    """Write a palette PNG, whole or not at all: viewers show colours, readers get numbers.

    Args:
        path: File to write, ending in `.png`.
        values: uint8 `(height, width)`, indices into the colours.
        colors: Colours of the palette.
    """
    image = Image.fromarray(np.ascontiguousarray(values))
    image.putpalette([channel for color in colors for channel in color])
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_gray(path: str | os.PathLike, values: np.ndarray) -> None:
    """Write a uint8 `(height, width)` picture in shades of gray as PNG, whole or not at all."""
    _write(path, values)
