"""Pictures: the one reader of photos, masks and class maps, and drawings for people."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from bach.core.errors import InputError
from bach.core.files import atomic_path

Color = tuple[int, int, int]  # red, green, blue

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Height of a row of the legend, and the width that the longest name needs, in px.
_LEGEND_ROW = 22
_LEGEND_PLACE = 95

# Modes of Pillow whose pixels are one number each.
_INDEXED = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")


# Files


class Header(NamedTuple):
    """What a file says of its picture: size in px and Pillow's mode ("RGB", "L", ...)."""

    width: int
    height: int
    mode: str


def read_header(path: str | os.PathLike, remedy: str) -> Header:
    """Read the size and mode of a picture without decoding it; see `read_rgb`."""
    with _open(path, remedy) as image:
        return Header(image.width, image.height, image.mode)


def read_rgb(
    path: str | os.PathLike, remedy: str, modes: Collection[str] | None = None
) -> np.ndarray:
    """Decode a picture: uint8 `(height, width, 3)`, RGB.

    Palettes become their colours, gray becomes three equal channels, and transparency is
    dropped.

    Args:
        path: TIFF, PNG, JPEG or what else Pillow reads.
        remedy: What to do if it cannot be read, a sentence.
        modes: Modes of Pillow to accept; all if not given.

    Raises:
        InputError: If the file is missing, truncated, no picture, or of another mode.
    """
    with _open(path, remedy, modes) as image:
        return np.asarray(image.convert("RGB"))


def read_indexed(path: str | os.PathLike, remedy: str) -> np.ndarray:
    """Decode a picture whose pixels are numbers: palette indices or gray values.

    Args:
        path: A palette or gray picture.
        remedy: What to do if it cannot be read, a sentence.

    Returns:
        `(height, width)`; uint8, or what else the file holds: bool, uint16, int32.

    Raises:
        InputError: If the file is missing, truncated, no picture, or in colour.
    """
    # Pillow and not OpenCV, which turns palette indices into their colours.
    with _open(path, remedy, _INDEXED) as image:
        return np.array(image)


@contextlib.contextmanager
def _open(
    path: str | os.PathLike, remedy: str, modes: Collection[str] | None = None
) -> Iterator[Image.Image]:
    """An open picture; what Pillow raises, also when it decodes, becomes an InputError."""
    try:
        with Image.open(path) as image:
            if modes is not None and image.mode not in modes:
                raise InputError(
                    f"{path} must be a picture of mode {', '.join(modes)}.\n"
                    f"Received: a picture in mode {image.mode}.\n{remedy}"
                )
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} must be a readable picture.\nReceived: {error}.\n{remedy}"
        ) from error


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Write a uint8 `(height, width, 3)` RGB picture as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        # OpenCV only encodes: its own writer does not say why it could not write.
        temporary.write_bytes(
            cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
        )


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
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", values)[1].tobytes())


# Drawings


def contact_sheet(
    images: Sequence[np.ndarray], texts: Sequence[str], columns: int = 8, side: int = 150
) -> np.ndarray:
    """Lay pictures out on a white sheet, each with a text below.

    Args:
        images: uint8 pictures `(h, w, 3)`; shown `side` px high.
        texts: One short text each.
        columns: Pictures in a row.
        side: Height of a picture on the sheet in px.

    Returns:
        uint8 `(height, width, 3)`, RGB.
    """
    gap, line = 6, 16
    width = max((round(i.shape[1] * side / i.shape[0]) for i in images), default=side)
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    sheet = np.full(
        (max(rows, 1) * (side + line + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        x = gap + index % columns * (width + gap)
        y = gap + index // columns * (side + line + gap)
        shown = round(image.shape[1] * side / image.shape[0])
        sheet[y : y + side, x : x + shown] = cv2.resize(
            np.ascontiguousarray(image), (shown, side), interpolation=cv2.INTER_AREA
        )
        cv2.putText(sheet, text, (x, y + side + 12), _FONT, 0.38, (30, 30, 30), 1, cv2.LINE_AA)
    return sheet


def mask_and_grid(
    thumbnail: np.ndarray,
    tissue: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    downsample: float,
    names: Sequence[str],
    colors: Sequence[Color],
) -> np.ndarray:
    """Draw the outline of the tissue and the patches that were kept.

    Args:
        thumbnail: uint8 `(height, width, 3)`.
        tissue: Mask of the same height and width.
        boxes: Array `(n, 3)` of x, y, size in level-0 px.
        labels: Class of each box, counted from 0; decides its colour.
        downsample: Level-0 px per thumbnail px.
        names: Names of the classes.
        colors: Their colours.

    Returns:
        uint8 picture with a legend below.
    """
    picture = thumbnail.copy()
    picture[~tissue] = (picture[~tissue] * 0.75 + 255 * 0.25).astype(np.uint8)
    outlines, _ = cv2.findContours(tissue.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, outlines, -1, (0, 0, 0), 1)
    for (x, y, size), label in zip(boxes / downsample, labels, strict=True):
        # The middle fifth: whole patches overlap so much that they hide each other.
        left, top = round(x + 0.4 * size), round(y + 0.4 * size)
        right, bottom = round(x + 0.6 * size), round(y + 0.6 * size)
        cv2.rectangle(picture, (left, top), (right, bottom), colors[int(label)], 1)
    return np.concatenate([picture, legend(picture.shape[1], names, colors)])


def overlay(
    thumbnail: np.ndarray,
    class_map: np.ndarray,
    names: Sequence[str],
    colors: Sequence[Color],
    opacity: float = 0.45,
) -> np.ndarray:
    """Colour a thumbnail by a class map of the same size; class 0 stays clear.

    Args:
        thumbnail: uint8 `(height, width, 3)`.
        class_map: uint8 `(height, width)`, classes counted from 0.
        names: Names of the classes.
        colors: Their colours.
        opacity: Share of the class colour where the class is not 0.

    Returns:
        uint8 picture with a legend below.
    """
    colored = np.array(colors, np.float32)[class_map]
    share = np.where(class_map[..., None] > 0, opacity, 0.0)
    picture = np.rint(thumbnail * (1 - share) + colored * share).astype(np.uint8)
    for label in range(1, len(names)):
        outlines, _ = cv2.findContours(
            (class_map == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(picture, outlines, -1, colors[label], 1)
    return np.concatenate([picture, legend(picture.shape[1], names, colors)])


def legend(width: int, names: Sequence[str], colors: Sequence[Color]) -> np.ndarray:
    """A strip with the colours and names of classes: uint8 `(height, width, 3)`.

    Where the picture is too narrow for one row there are two, or one name per row.
    """
    in_rows = (len(names), -(-len(names) // 2))
    columns = next((n for n in in_rows if width // n >= _LEGEND_PLACE), 1)
    rows = -(-len(names) // columns)
    strip = np.full((rows * _LEGEND_ROW + 8, width, 3), 255, np.uint8)
    for place, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = place % columns * (width // columns) + 8, place // columns * _LEGEND_ROW + 8
        cv2.rectangle(strip, (x, y), (x + 14, y + 14), color, -1)
        cv2.putText(strip, name, (x + 20, y + 12), _FONT, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
    return strip


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height next to each other, a white gap between."""
    gap = np.full((pictures[0].shape[0], 8, 3), 255, np.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return np.concatenate(parts, axis=1)


def heat_colors(heatmap: np.ndarray) -> np.ndarray:
    """A float heatmap 0..1 in colours: uint8 `(height, width, 3)`, RGB."""
    bgr = cv2.applyColorMap(
        np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_MAGMA
    )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
