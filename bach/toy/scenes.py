"""Whole pictures of painted tissue: photos, and slides with regions, glass and pen marks."""

import cv2
import numpy as np
from numpy.random import Generator

from bach.annotations import Region
from bach.classes import BENIGN, CLASSES, INSITU, INVASIVE, NORMAL
from bach.tasks import BACH
from bach.toy import painter
from bach.toy.aperio import SLIDE_MPP

PHOTO_SIZE = (2048, 1536)
# A fifth of a real slide's width: the least that holds regions of 1 mm.
SLIDE_SIZE = (8192, 6144)
# Pictures are painted at twice the um per px and enlarged: four times as fast,
# and the network looks at 2.1 um/px.
_PAINT_FACTOR = 2


def paint_photo(
    rng: Generator, label: int, look: painter.Look, size: tuple[int, int] = PHOTO_SIZE
) -> np.ndarray:
    """Paint a Part A photo.

    Args:
        rng: Source of chance.
        label: Class 0..3.
        look: The patient's look; sections of a patient differ a little from it.
        size: (width, height) in px.

    Returns:
        uint8 RGB array (height, width, 3).
    """
    width, height = size
    h_strength, e_strength, blur = np.exp(rng.normal(0, (0.05, 0.05, 0.1)))
    look = look._replace(
        h_strength=look.h_strength * h_strength,
        e_strength=look.e_strength * e_strength,
        blur_um=look.blur_um * blur,
    )
    cols, rows = -(-width // _PAINT_FACTOR), -(-height // _PAINT_FACTOR)
    rgb = painter.paint_tissue(rng, label, cols, rows, BACH.photo_mpp * _PAINT_FACTOR, look)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC)


def paint_slide(
    rng: Generator,
    look: painter.Look,
    size: tuple[int, int] = SLIDE_SIZE,
    *,
    pen: tuple[int, int, int] | None = None,
    hole: bool = False,
) -> tuple[np.ndarray, list[Region]]:
    """Paint a slide: a piece of tissue on glass, with regions of all classes that find room.

    Args:
        rng: Source of chance.
        look: The patient's look.
        size: (width, height) in level-0 px.
        pen: RGB of a marker stroke over the edge of the tissue, None for none.
        hole: Cut a hole of normal tissue into the largest region.

    Returns:
        The level-0 picture, uint8 RGB (height, width, 3), and its regions, which lie
        apart from each other; a hole comes last.
    """
    width, height = size
    cols, rows = -(-width // _PAINT_FACTOR), -(-height // _PAINT_FACTOR)
    scale = SLIDE_MPP * _PAINT_FACTOR
    outline = painter.blob(rng, 1.0, 0.16, 240) * (0.42 * width, 0.42 * height)
    outline += (width / 2, height / 2)
    regions = _place_regions(rng, outline, size, hole)
    # The edge of tissue is ragged at 30 um and soft at 5 um.
    soft: np.ndarray = np.zeros((rows // 8, cols // 8), np.float32)
    cv2.fillPoly(soft, [np.round(outline / (8 * _PAINT_FACTOR)).astype(np.int32)], 1)
    soft = cv2.GaussianBlur(soft, (0, 0), 25 / (8 * scale))
    soft = cv2.resize(soft, (cols, rows), interpolation=cv2.INTER_LINEAR)
    ragged = painter.smooth_noise(rng, cols, rows, 30 / scale, 30 / scale)
    tissue = np.clip((soft - 0.5 + 0.12 * ragged) * 6 + 0.5, 0, 1)
    labels = np.zeros((rows, cols), np.uint8)
    for region in regions:
        # Not label_mask: half a pixel does not matter here, and another rule would paint
        # other slides than before.
        points = np.round((region.points / _PAINT_FACTOR - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(labels, [points], NORMAL if region.is_hole else region.label, shift=4)
    rgb = painter.paint_tissue(rng, labels, cols, rows, scale, look, tissue)
    # Light falls off towards a corner, by a few grey levels.
    ramp_y = np.linspace(0, rng.uniform(-4, 4), rows)[:, None]
    ramp_x = np.linspace(0, rng.uniform(-4, 4), cols)[None, :]
    ramp = np.round(ramp_y + ramp_x).astype(np.int16)
    rgb = np.clip(rgb + ramp[..., None], 0, 255).astype(np.uint8)
    if pen is not None:
        rgb = _draw_pen(rng, rgb, outline / _PAINT_FACTOR, pen)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), regions


def _place_regions(
    rng: Generator, outline: np.ndarray, size: tuple[int, int], hole: bool
) -> list[Region]:
    """Regions of the three classes inside the tissue, apart from each other."""
    # Mean radius 0.6-0.9 mm by the default size: most 628-um patches that touch a
    # region lie in it, as they do on real slides, whose regions are larger still.
    unit = min(size) / SLIDE_SIZE[1]
    low, high = 1300 * unit, 1900 * unit
    wanted = rng.permutation([BENIGN, INSITU, INVASIVE]).tolist()
    wanted += rng.integers(BENIGN, len(CLASSES), rng.integers(2)).tolist()  # perhaps one more
    spots: list[tuple[float, float, float, int]] = []
    for label in wanted:
        for attempt in range(300):
            # The harder room is to find, the smaller the region may be.
            radius = (low + (high - low) * rng.random()) * (1 - 0.4 * attempt / 300)
            x, y = rng.uniform(0, 1, 2) * size
            inside = cv2.pointPolygonTest(outline.astype(np.float32), (x, y), True) > 0.9 * radius
            if inside and all(np.hypot(x - a, y - b) > 1.1 * (radius + c) for a, b, c, _ in spots):
                spots.append((x, y, radius, label))
                break
    digits = 2 if rng.integers(2) else 0

    def outline_at(x: float, y: float, shape: np.ndarray) -> np.ndarray:
        inside = np.clip(shape + np.array([x, y]), 0, (size[0] - 1, size[1] - 1))
        return np.round(inside, digits)

    regions = [
        Region(label, outline_at(x, y, painter.blob(rng, radius, 0.15, 160)))
        for x, y, radius, label in spots
    ]
    if hole and spots:
        x, y, radius, label = max(spots, key=lambda spot: spot[2])
        points = outline_at(x, y, painter.blob(rng, 0.32 * radius, 0.12, 80))
        regions.append(Region(label, points, is_hole=True))
    return regions


def _draw_pen(
    rng: Generator, rgb: np.ndarray, outline: np.ndarray, color: tuple[int, int, int]
) -> np.ndarray:
    """Draw along the edge of the tissue with a marker, as on real glass."""
    length = len(outline) // 5
    start = rng.integers(len(outline))
    line = np.roll(outline, -start, axis=0)[:length]
    centre = outline.mean(0)
    line = centre + (line - centre) * np.linspace(1.08, 0.9, length)[:, None]
    ink = np.zeros(rgb.shape[:2], np.uint8)
    thickness = max(2, min(rgb.shape[:2]) // 24)
    cv2.polylines(ink, [np.round(line).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
    share = cv2.GaussianBlur(ink, (0, 0), thickness / 20).astype(np.float32)[..., None] / 255
    # Ink is seen through, like a filter.
    through = rgb * (np.asarray(color, np.float32) / 255)
    return (rgb * (1 - 0.92 * share) + 0.92 * share * through).astype(np.uint8)
