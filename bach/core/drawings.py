"""Drawings for people: text in any script, captioned sheets, plates of a slide's maps.

Text is drawn with DejaVu Sans, which matplotlib ships; OpenCV draws ASCII alone. What the
font has no letter for is written as its code point, so that two names never look alike.
Nothing is cut off: text is wrapped into lines, and makes room for itself.
"""

import functools
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]  # red, green, blue

INK: Color = (30, 30, 30)
WHITE: Color = (255, 255, 255)
_ALARM: Color = (180, 0, 0)
# Gray levels of what has no heat: from the darkest of the picture to its white.
_GRAYS = (90, 230)
NO_HEAT: Color = (224, 224, 224)  # about that of glass, for the key

# A plate's long side in px, and how many times the height of its letters that is.
LEAST_SIDE, MOST_SIDE = 800, 3000
_LETTERS = 62
_MOST_WORDS = 0.4  # share of the height; letters are smaller where there is a lot to say
_LEAST_TEXT = 13
_GAP = 8  # px of white around what is laid out

# Of a scale bar: its share of the width at most, and its lengths in um.
_BAR_SHARE = 0.3
_ROUND = (1, 2, 5)


# Text


def write(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int],
    size: int = _LEAST_TEXT,
    color: Color = INK,
    bold: bool = False,
) -> None:
    """Draw a line of text into a picture.

    Args:
        picture: uint8 `(height, width, 3)`, changed in place; what lies outside is cut off.
        text: Text in any script, without line breaks.
        place: Left and top of the line, which is `line_height(size)` high, in px.
        size: Height of the letters in px.
        color: Their colour.
        bold: Whether they are bold.
    """
    text = drawable(text)
    (left, top), high = place, line_height(size)
    image = Image.new("L", (text_width(text, size, bold) + 2, high))
    ImageDraw.Draw(image).text((0, round(size * 1.05)), text, 255, _font(size, bold), anchor="ls")
    x, y = max(left, 0), max(top, 0)
    ink = np.asarray(image, np.float32)[y - top :, x - left :, None] / 255
    part = picture[y : y + ink.shape[0], x : x + ink.shape[1]]
    ink = ink[: part.shape[0], : part.shape[1]]
    part[:] = np.rint(part * (1 - ink) + np.array(color, np.float32) * ink)


def line_height(size: int) -> int:
    """Height of a line of text in px."""
    return math.ceil(size * 1.4)


def text_width(text: str, size: int, bold: bool = False) -> int:
    """Width of a line of text in px."""
    return math.ceil(_font(size, bold).getlength(drawable(text)))


def wrap(text: str, width: int, size: int, bold: bool = False) -> list[str]:
    """Break text into lines of at most `width` px: between words, within one if need be."""
    lines = [""]
    for word in drawable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size, bold) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size, bold) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def strip(
    lines: Sequence[str],
    width: int,
    size: int,
    colors: tuple[Color, Color] = (INK, WHITE),
    bold: bool = False,
) -> np.ndarray:
    """Lines of text on a ground, wrapped to a width: uint8 `(height, width, 3)`.

    Args:
        lines: The lines; without any the strip has no height.
        width: Width in px.
        size: Height of the letters in px.
        colors: Of the letters and of the ground.
        bold: Whether they are bold.
    """
    wrapped = [part for line in lines for part in wrap(line, width - 2 * _GAP, size, bold)]
    height = len(wrapped) * line_height(size) + (_GAP if wrapped else 0)
    result = np.full((height, width, 3), colors[1], np.uint8)
    for row, text in enumerate(wrapped):
        write(result, text, (_GAP, _GAP // 2 + row * line_height(size)), size, colors[0], bold)
    return result


def drawable(text: str) -> str:
    """Text as it can be drawn: composed, on one line, letters not in the font as <U+4E2D>."""
    text = unicodedata.normalize("NFC", " ".join(str(text).split(" ")))
    if text.isascii() and text.isprintable():
        return text
    known = _letters()
    return "".join(
        letter if letter.isprintable() and ord(letter) in known else f"<U+{ord(letter):04X}>"
        for letter in text
    )


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font  # slow to import

    return frozenset(FT2Font(str(_font_file(False))).get_charmap())


@functools.cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(bold), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(bold: bool) -> Path:
    import matplotlib  # slow to import

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


# Sheets


def contact_sheet(
    images: Sequence[np.ndarray], texts: Sequence[str], columns: int = 8, side: int = 150
) -> np.ndarray:
    """Lay pictures out on a white sheet, each with a text below.

    Args:
        images: uint8 pictures `(h, w, 3)`; shown `side` px high.
        texts: A text each; its lines are wrapped to the width of a cell, and a row is as high
            as its longest text needs.
        columns: Pictures in a row.
        side: Height of a picture on the sheet in px.

    Returns:
        uint8 `(height, width, 3)`, RGB.
    """
    gap, size = _GAP, _LEAST_TEXT
    shown = [max(1, round(image.shape[1] * side / image.shape[0])) for image in images]
    width = max([*shown, side])
    columns = max(1, min(columns, len(images)))
    sheet_width = columns * (width + gap) + gap
    rows = [np.full((gap, sheet_width, 3), 255, np.uint8)]
    for first in range(0, len(images), columns):
        here = range(first, min(first + columns, len(images)))
        wrapped = [
            [part for line in texts[k].split("\n") for part in wrap(line, width, size)]
            for k in here
        ]
        height = side + max(map(len, wrapped)) * line_height(size) + gap
        row = np.full((height, sheet_width, 3), 255, np.uint8)
        for place, (k, lines) in enumerate(zip(here, wrapped, strict=True)):
            x = gap + place * (width + gap)
            row[:side, x : x + shown[k]] = cv2.resize(
                np.ascontiguousarray(images[k]), (shown[k], side), interpolation=cv2.INTER_AREA
            )
            for number, text in enumerate(lines):
                write(row, text, (x, side + 1 + number * line_height(size)), size)
        rows.append(row)
    return np.concatenate(rows)


# Keys


def legend(width: int, names: Sequence[str], colors: Sequence[Color], size: int = 15) -> np.ndarray:
    """A strip with the colours and names of classes: uint8 `(height, width, 3)`.

    Args:
        width: Width in px; there are as many rows as the names need.
        names: Names of the classes.
        colors: Their colours.
        size: Height of the letters in px.
    """
    return flow([swatch(*pair, size) for pair in zip(names, colors, strict=True)], width)


def swatch(name: str, color: Color, size: int) -> np.ndarray:
    """A square of a colour, framed so that pale ones show, and its name behind it."""
    lead = round(1.4 * size)
    result = np.full((line_height(size), lead + text_width(name, size) + 1, 3), 255, np.uint8)
    top = (len(result) - size) // 2
    result[top : top + size, :size] = INK
    result[top + 1 : top + size - 1, 1 : size - 1] = color
    write(result, name, (lead, 0), size)
    return result


def scale_bar(um_per_px: float, most: int, size: int) -> np.ndarray:
    """A bar of a round length, with the length below, on white.

    Args:
        um_per_px: Scale of the picture.
        most: Length of the bar in px at most.
        size: Height of the letters in px.
    """
    reach = max(most, 2) * um_per_px
    power = 10 ** math.floor(math.log10(reach))
    length = max(step * power for step in _ROUND if step * power <= reach)
    pixels = max(1, round(length / um_per_px))
    name = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} \N{MICRO SIGN}m"
    thick = max(2, size // 5)
    width = max(pixels, text_width(name, size) + 1)
    result = np.full((line_height(size) + 2 * thick, width, 3), 255, np.uint8)
    result[thick // 2 : thick // 2 + thick, :pixels] = INK
    write(result, name, (0, 2 * thick), size)
    return result


def color_bar(title: str, size: int) -> np.ndarray:
    """The colours of a heatmap from 0 to 1 with ticks, the title before them, on white."""
    length, lead = 9 * size, text_width(title, size) + size // 2
    ticks = ("0", "0.5", "1")
    result = np.full((2 * line_height(size), lead + length + size, 3), 255, np.uint8)
    write(result, title, (0, 0), size)
    bar = heat_colors(np.linspace(0, 1, length)[None])
    top = (line_height(size) - size) // 2
    result[top : top + size, lead : lead + length] = bar
    for place, tick in enumerate(ticks):
        x = lead + round(place / (len(ticks) - 1) * (length - 1))
        result[top + size : top + size + max(2, size // 4), x] = INK
        write(result, tick, (x - text_width(tick, size) // 2, line_height(size)), size)
    return result


def flow(keys: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Lay small pictures out on white like words of a text: uint8 `(height, width, 3)`.

    Those that are wider than the width are shrunk to it.
    """
    rows: list[list[np.ndarray]] = [[]]
    for key in keys:
        key = _fitted(key, max(1, width - 2 * _GAP))
        used = sum(other.shape[1] + 3 * _GAP for other in rows[-1])
        if rows[-1] and used + key.shape[1] + 2 * _GAP > width:
            rows.append([])
        rows[-1].append(key)
    heights = [max((len(key) for key in row), default=0) + _GAP for row in rows]
    result = np.full((_GAP + sum(heights), width, 3), 255, np.uint8)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for key in row:
            part = result[top : top + len(key), left : left + key.shape[1]]
            part[:] = key[: part.shape[0], : part.shape[1]]
            left += key.shape[1] + 3 * _GAP
        top += height
    return result


def heat_colors(heatmap: np.ndarray) -> np.ndarray:
    """A float heatmap 0..1 in colours: uint8 `(height, width, 3)`, RGB."""
    bgr = cv2.applyColorMap(
        np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_MAGMA
    )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


# Panels


def color_classes(
    picture: np.ndarray,
    class_map: np.ndarray,
    colors: Sequence[Color],
    opacity: float = 0.45,
    where: np.ndarray | None = None,
) -> np.ndarray:
    """Colour a picture by a class map of the same size; class 0 stays clear.

    Args:
        picture: uint8 `(height, width, 3)`.
        class_map: uint8 `(height, width)`, classes counted from 0.
        colors: Colours of the classes.
        opacity: Share of the class colour where the class is not 0.
        where: Mask of the same size, outside of which nothing is filled; everything if
            not given. Outlines are drawn whole.

    Returns:
        uint8 picture of the same size.
    """
    result = picture.copy()
    for label in range(1, len(colors)):
        # By table: every gray level has one colour per class.
        table = np.arange(256)[:, None] * (1 - opacity) + np.array(colors[label]) * opacity
        colored = cv2.LUT(picture, np.rint(table).astype(np.uint8)[None])
        filled = class_map == label if where is None else (class_map == label) & where
        cv2.copyTo(colored, filled.view(np.uint8), result)
    thick = max(1, max(class_map.shape) // 800)
    for label in range(1, len(colors)):
        outlines, _ = cv2.findContours(
            (class_map == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(result, outlines, -1, colors[label], thick)
    return result


def color_heat(picture: np.ndarray, heatmap: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A heatmap in colours where there is one, elsewhere the picture in pale gray.

    Args:
        picture: uint8 `(height, width, 3)`.
        heatmap: float `(height, width)`, 0..1.
        where: Mask of the same size.
    """
    low, high = _GRAYS
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    pale = np.rint(low + gray * ((high - low) / 255)).astype(np.uint8)
    return np.where(where[..., None], heat_colors(heatmap), pale[..., None])


def outline_tissue(
    picture: np.ndarray, tissue: np.ndarray, um_per_px: float, least: tuple[float, float]
) -> np.ndarray:
    """Tint the glass and outline pieces of tissue and their holes, the small ones left out.

    On real tissue every gap between cells is a hole, and their outlines hide the rest.

    Args:
        picture: uint8 `(height, width, 3)`.
        tissue: Mask of the same size.
        um_per_px: Scale of the picture.
        least: Areas in um2 from which on a piece and a hole are outlined.
    """
    result = picture.copy()
    tint = np.rint(np.arange(256)[:, None] * 0.65 + np.array([[130, 170, 205]]) * 0.35)
    cv2.copyTo(cv2.LUT(picture, tint.astype(np.uint8)[None]), (~tissue).view(np.uint8), result)
    outlines, tree = cv2.findContours(
        tissue.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    for outline, (_, _, _, parent) in zip(outlines, () if tree is None else tree[0], strict=True):
        if cv2.contourArea(outline) * um_per_px**2 >= least[int(parent >= 0)]:
            thick = max(1, max(tissue.shape) // 700)
            cv2.drawContours(result, [outline], -1, (0, 0, 0), thick)
    return result


def draw_boxes(picture: np.ndarray, boxes: np.ndarray, colors: Sequence[Color]) -> None:
    """Draw the middle of boxes into a picture: framed squares, or dots where they are small.

    Whole patches overlap so much that they hide each other: shown is their middle, as far as
    the next, and a little less.

    Args:
        picture: uint8 `(height, width, 3)`, changed in place.
        boxes: Array `(n, 3)` of x, y, size in px of the picture.
        colors: Colour of each box.
    """
    if not len(boxes):
        return
    step = min([_step(boxes[:, axis]) for axis in (0, 1)] + [boxes[0, 2]])
    side = max(2, round(0.8 * step))
    thick = -1 if side < 6 else min(max(1, side // 5), 4)
    inside = max(thick, 0) // 2  # OpenCV draws half of a line outside
    for (x, y, size), color in zip(boxes, colors, strict=True):
        left, top = (math.floor(middle + size / 2 - side / 2) for middle in (x, y))
        right, bottom = left + side - 1 - inside, top + side - 1 - inside
        cv2.rectangle(picture, (left + inside, top + inside), (right, bottom), color, thick)


def _step(places: np.ndarray) -> float:
    """How far apart the columns or rows of a grid are, most of them."""
    gaps = np.diff(np.unique(np.round(places, 3)))
    return float(np.median(gaps)) if len(gaps) else math.inf


# Plates


class Panel(NamedTuple):
    """A picture of a plate.

    Attributes:
        title: What it shows.
        draw: Draws it from height and width in px: uint8 `(height, width, 3)`.
    """

    title: str
    draw: Callable[[tuple[int, int]], np.ndarray]


class Words(NamedTuple):
    """What is written on a plate.

    Attributes:
        title: Name of the slide.
        notes: Lines below it.
        warnings: Lines on red above all.
        keys: Makes what explains the colours, from the height of letters in px.
    """

    title: str
    notes: Sequence[str]
    warnings: Sequence[str]
    keys: Callable[[int], Sequence[np.ndarray]]


def plate(
    panels: Sequence[Panel], shape: tuple[int, int], um_per_px: float, words: Words
) -> np.ndarray:
    """Panels of one slide beside or below each other, with titles, keys and a scale bar.

    The long side has 800 to 3,000 px, whatever the size of the maps; letters are in
    proportion to it. Panels are only ever drawn at their final size.

    Args:
        panels: One or more.
        shape: Height and width of the maps in px, whose proportions the panels have.
        um_per_px: Scale of the maps.
        words: What is written around them.

    Returns:
        uint8 `(height, width, 3)`, RGB.
    """
    columns = _columns(len(panels), shape)
    rows = -(-len(panels) // columns)
    natural = max(shape[0] * rows, shape[1] * columns)
    long = min(max(natural, LEAST_SIDE), MOST_SIDE)
    size = max(_LEAST_TEXT, round(long / _LETTERS))
    scale, around = long / natural, _Around(size, words, len(panels), columns)
    while size > _LEAST_TEXT and around.words_height(shape, scale, um_per_px) > _MOST_WORDS * long:
        size = max(_LEAST_TEXT, round(size * 0.85))
        around = _Around(size, words, len(panels), columns)
    for _ in range(20):
        high, wide = around.measure(shape, scale, um_per_px)
        if max(high, wide) <= long:
            break
        inside = max(shape[0] * rows * scale, shape[1] * columns * scale)
        scale *= max(0.5, (long - (max(high, wide) - inside)) / inside)
    result = around.draw(panels, shape, scale, um_per_px)
    result = _fitted(result, MOST_SIDE, MOST_SIDE)
    missing = LEAST_SIDE - max(result.shape[:2])
    pad = (0, max(0, missing)) if result.shape[1] >= result.shape[0] else (0, 0)
    down = (0, max(0, missing)) if result.shape[1] < result.shape[0] else (0, 0)
    return np.pad(result, (down, pad, (0, 0)), constant_values=255)


class _Around:
    """All of a plate but its panels, at letters of one size."""

    def __init__(self, size: int, words: Words, count: int, columns: int):
        self._size, self._words, self._columns = size, words, columns
        self._rows = -(-count // columns)

    def words_height(self, shape: tuple[int, int], scale: float, um_per_px: float) -> int:
        """Height of what stands above and below the panels."""
        head, foot, _ = self._parts(shape, scale, um_per_px)
        return len(head) + len(foot)

    def measure(self, shape: tuple[int, int], scale: float, um_per_px: float) -> tuple[int, int]:
        """Height and width of the plate with panels at a scale."""
        head, foot, (height, width) = self._parts(shape, scale, um_per_px)
        cell = height + line_height(self._size) + _GAP
        return len(head) + len(foot) + self._rows * cell, width

    def draw(
        self, panels: Sequence[Panel], shape: tuple[int, int], scale: float, um_per_px: float
    ) -> np.ndarray:
        head, foot, (height, width) = self._parts(shape, scale, um_per_px)
        size, gap, line = self._size, _GAP, line_height(self._size)
        inner = max(1, round(shape[1] * scale))
        body = np.full((self._rows * (line + height + gap), width, 3), 255, np.uint8)
        for number, panel in enumerate(panels):
            top = number // self._columns * (line + height + gap)
            left = gap + number % self._columns * (max(inner, self._cell()) + gap)
            write(body, panel.title, (left, top), size, bold=True)
            body[top + line : top + line + height, left : left + inner] = panel.draw(
                (height, inner)
            )
        return np.concatenate([head, body, foot])

    def _cell(self) -> int:
        """Least width of a panel's place: its title must not run into the next."""
        return 7 * self._size

    def _parts(
        self, shape: tuple[int, int], scale: float, um_per_px: float
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """What stands above and below, and the height of a panel and the width of all."""
        size, gap = self._size, _GAP
        height, inner = (max(1, round(side * scale)) for side in shape)
        width = self._columns * (max(inner, self._cell()) + gap) + gap
        width = max(width, 20 * size)
        words = self._words
        head = [
            strip(words.warnings, width, size, (WHITE, _ALARM)),
            strip([words.title], width, round(size * 1.25), bold=True),
            strip(words.notes, width, size),
        ]
        # The scale of what is drawn: a panel has whole pixels.
        drawn = (
            um_per_px * shape[1] / inner if shape[1] >= shape[0] else um_per_px * shape[0] / height
        )
        bar = scale_bar(drawn, round(max(inner, height / 4) * _BAR_SHARE), size)
        foot = flow([bar, *words.keys(size)], width)
        return np.concatenate(head), foot, (height, width)


def _columns(count: int, shape: tuple[int, int]) -> int:
    """Panels beside each other, unless they are much larger below each other."""
    beside = 1 / max(shape[0], count * shape[1])
    below = 1 / max(count * shape[0], shape[1])
    return 1 if below > 1.8 * beside else count


def _fitted(picture: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """A picture, shrunk if it is wider or higher."""
    scale = min(1.0, width / picture.shape[1], (height or len(picture)) / len(picture))
    if scale == 1.0:
        return picture
    size = max(1, int(picture.shape[1] * scale)), max(1, int(len(picture) * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map or picture at another size: classes by their centres, the rest as it looks.

    Args:
        values: uint8 picture `(height, width, 3)`, uint8 class map or bool mask
            `(height, width)`.
        shape: Height and width wanted.
    """
    size: Any = shape[::-1]
    if values.ndim == 3:
        smaller = shape[0] <= values.shape[0]
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(values), size, interpolation=how)
    if values.dtype == bool:
        share = cv2.resize(values.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
        return share >= 128
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)
