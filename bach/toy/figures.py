"""Write trial slides with mitotic figures, and with what is easily taken for one.

Tissue of invasive carcinoma as `bach.toy.painter` has it, at 0.25 um/px. Into it are painted

    figures     metaphase plates, prometaphase clumps, pairs of anaphase plates: dense, without
                membrane, of uneven outline, in a cleared round cell
    imposters   pyknotic and apoptotic cells (round, smooth, shrunken, pink around), and dark nuclei

each at a place of its own, so that the truth is known by its points. Every slide has a patient of
its own; photos are of other patients.

Reads:   nothing.
Writes:  DIR/photos/NAME.png           128 px around a figure, an imposter or another nucleus
         DIR/images.csv                path, label, patient, mpp of the photos
         DIR/WSI/NAME.svs, NAME.geojson       points of two classes, as QuPath has them
         DIR/test_slides/NAME.svs
         DIR/truth/points.csv          image_id, x_um, y_um, x, y, name of all slides
Command: python -m bach.toy figures data/figures
Time:    1 min on one core.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from tqdm import tqdm

from bach.classes import INVASIVE
from bach.core.log import step
from bach.core.options import MOST_SEED, option
from bach.core.pictures import write_png
from bach.core.tables import write_csv
from bach.nuclei import blobs
from bach.points import apart, of_cells, write_qupath
from bach.toy import painter
from bach.toy.aperio import write_slide
from bach.toy.folder import new_folder

MPP = 0.25
SIZE = (2048, 1536)

FIGURE, IMPOSTER, OTHER = "Mitotic figure", "Imposter", "Other"
PHOTO = 128  # px of a photo, of which the middle 64 are looked at

# The painter's blur is that of a scanner at low power: chromosomes would be lost in it.
_BLUR_SHARE = 0.3
_APART_UM = 25.0
_SIDE = 128  # px of the piece that a figure is painted into, 32 um
_SHIFT = 4
# Colours of the classes in the annotations.
_COLORS = {FIGURE: (0, 114, 185), IMPOSTER: (240, 140, 0)}


class Painted(NamedTuple):
    """A painted slide.

    Attributes:
        rgb: uint8 `(height, width, 3)`, `MPP` um/px.
        points: Table of `x`, `y` (level-0 px, continuous) and `name`, `FIGURE` or `IMPOSTER`.
    """

    rgb: np.ndarray
    points: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the trial slides hold."""

    seed: int = option(0, "seed of every random choice", at_least=0, most=MOST_SEED)
    patients: int = option(12, "patients of the photos", at_least=0, most=999)
    slides: int = option(6, "annotated slides", at_least=0, most=999)
    test_slides: int = option(4, "slides of the test set", at_least=0, most=999)
    figures: int = option(12, "figures per slide, as far as they find room", at_least=0)
    imposters: int = option(12, "imposters per slide", at_least=0)
    stain_shift: float = option(
        1.0,
        "how far the patients' stains, light and focus differ; 0: not at all",
        at_least=0,
        most=10,
    )
    slide_size: tuple[int, int] = SIZE


def make_figures(directory: str | os.PathLike, recipe: Figures | None = None) -> Path:
    """Write the trial slides.

    Args:
        directory: Folder to write to; must be empty or not there yet.
        recipe: What they hold. The same recipe gives the same bytes.

    Returns:
        The folder.

    Raises:
        InputError: If the folder is not empty.
    """
    recipe = recipe or Figures()
    directory = new_folder(directory, "The trial slides need")
    for name in ("photos", "WSI", "test_slides", "truth"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    plan = [
        *((f"P{n + 1:02d}", n) for n in range(recipe.patients)),
        *((f"M{n + 1:02d}", 1000 + n) for n in range(recipe.slides)),
        *((f"T{n + 1:02d}", 2000 + n) for n in range(recipe.test_slides)),
    ]
    tables: list[pd.DataFrame] = []
    photos: list[tuple] = []
    with step("toy") as notes:
        for name, number in tqdm(plan, desc="toy", unit="slide", disable=None):
            look = painter.make_look(
                np.random.default_rng([recipe.seed, number, 0]), recipe.stain_shift
            )
            rng = np.random.default_rng([recipe.seed, number, 1])
            painted = paint_figures(rng, look, recipe.figures, recipe.imposters, recipe.slide_size)
            if number < 1000:
                photos += _write_photos(directory, name, painted, rng)
                continue
            folder = directory / ("WSI" if number < 2000 else "test_slides")
            write_slide(folder / f"{name}.svs", painted.rgb, MPP)
            if number < 2000:
                write_qupath(painted.points, folder / f"{name}.geojson", _COLORS)
            um = painted.points[["x", "y"]].set_axis(["x_um", "y_um"], axis=1) * MPP
            tables.append(pd.concat([painted.points, um], axis=1).assign(image_id=name))
        columns = ["image_id", "x_um", "y_um", "x", "y", "name"]
        table = pd.concat([pd.DataFrame(columns=columns), *tables], ignore_index=True)
        for name in columns[1:5]:
            table[name] = table[name].astype(float).round(3)
        write_csv(table[columns], directory / "truth" / "points.csv")
        header = ["path", "label", "patient", "mpp"]
        write_csv(pd.DataFrame(photos, columns=header), directory / "images.csv")
        notes.append(
            f"{len(photos)} photos of {recipe.patients} patients, {recipe.slides} slides, "
            f"{recipe.test_slides} test slides, {(table['name'] == FIGURE).sum()} figures on them"
        )
    return directory


def _write_photos(
    directory: Path, patient: str, painted: Painted, rng: Generator
) -> list[tuple[str, str, str, float]]:
    """Write a photo of every figure and imposter, and as many of other nuclei; their rows."""
    half = PHOTO // 2
    truth = painted.points[["x", "y"]].to_numpy()
    cells = of_cells(blobs(cv2.resize(painted.rgb, None, fx=0.5, fy=0.5)), "", 2.0, MPP)
    places = rng.permutation(apart(cells, 8.0)[["x", "y"]].to_numpy())
    away = np.hypot(*(places[:, None] - truth[None]).transpose(2, 0, 1)).min(axis=1, initial=np.inf)
    inside = ((places > half) & (places < np.array(painted.rgb.shape[1::-1]) - half)).all(axis=1)
    others = places[(away > half) & inside][: len(truth)]
    rows = []
    names = [*painted.points["name"], *(OTHER for _ in others)]
    for number, ((x, y), name) in enumerate(zip([*truth, *others], names, strict=True)):
        left, top = round(float(x)) - half, round(float(y)) - half
        path = Path("photos", f"{patient}_{number:03d}.png")
        write_png(directory / path, painted.rgb[top : top + PHOTO, left : left + PHOTO])
        rows.append((path.as_posix(), name, patient, MPP))
    return rows


def paint_figures(
    rng: Generator,
    look: painter.Look,
    figures: int = 16,
    imposters: int = 16,
    size: tuple[int, int] = SIZE,
) -> Painted:
    """Paint a slide: a piece of tissue on glass, with figures and imposters in it.

    Args:
        rng: Source of chance; the same state gives the same slide.
        look: The patient's look, see `bach.toy.painter.make_look`.
        figures, imposters: How many there are, as far as they find room.
        size: (width, height) in level-0 px, at least 512.

    Raises:
        ValueError: If the size is too small.
    """
    rgb, tissue = paint_bare(rng, look, size)
    places = find_room(rng, tissue, figures + imposters)
    names = rng.permutation([FIGURE] * figures + [IMPOSTER] * imposters)[: len(places)]
    for (x, y), name in zip(places, names, strict=True):
        left, top = (round(v) - _SIDE // 2 for v in (x, y))
        piece = rgb[top : top + _SIDE, left : left + _SIDE]
        kinds = _FIGURES if name == FIGURE else _IMPOSTERS
        piece[:] = kinds[rng.integers(len(kinds))](rng, piece, look, (x - left, y - top))
    x, y = places.T
    return Painted(rgb, pd.DataFrame({"x": x, "y": y, "name": names}))


def paint_bare(
    rng: Generator, look: painter.Look, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a slide without figures: uint8 RGB, and float 0..1 where there is tissue."""
    width, height = size
    if min(size) < 4 * _SIDE:
        raise ValueError(f"A slide must have {4 * _SIDE} px along each side. Received: {size}.")
    outline = painter.blob(rng, 1.0, 0.10, 240) * (0.46 * width, 0.46 * height)
    outline += (width / 2, height / 2)
    tissue: np.ndarray = np.zeros((height, width), np.float32)
    cv2.fillPoly(tissue, [np.round(outline).astype(np.int32)], 1)
    tissue = cv2.GaussianBlur(tissue, (0, 0), 8 / MPP / 4)
    look = look._replace(blur_um=_BLUR_SHARE * look.blur_um)
    return painter.paint_tissue(rng, INVASIVE, width, height, MPP, look, tissue), tissue


def find_room(rng: Generator, tissue: np.ndarray, count: int) -> np.ndarray:
    """Places x, y in px, float `(n, 2)`, apart from each other and from the edge of the tissue.

    There are as many as were asked for, or as many as find room.
    """
    inside = cv2.erode((tissue > 0.99).astype(np.uint8), np.ones((_SIDE, _SIDE), np.uint8))
    inside[: _SIDE // 2 + 1] = inside[-_SIDE // 2 - 1 :] = 0
    inside[:, : _SIDE // 2 + 1] = inside[:, -_SIDE // 2 - 1 :] = 0
    rows, cols = np.nonzero(inside)
    places: list[np.ndarray] = []
    for number in rng.permutation(len(rows))[: 50 * count].tolist():
        if len(places) == count:
            break
        place = np.array([cols[number], rows[number]]) + rng.random(2)
        if all(np.hypot(*(place - other)) > _APART_UM / MPP for other in places):
            places.append(place)
    return np.array(places).reshape(-1, 2)


def paste(rgb: np.ndarray, crop: np.ndarray, place: np.ndarray) -> None:
    """Put the middle of a picture to a place x, y of a slide, with a soft round edge.

    Args:
        rgb: The slide, changed where it is pasted.
        crop: uint8 `(side, side, 3)` of the same scale, side even.
        place: x, y in px, at least side / 2 away from the slide's edge.
    """
    side = len(crop)
    left, top = (round(float(v)) - side // 2 for v in place)
    piece = rgb[top : top + side, left : left + side]
    away = np.hypot(*(np.indices((side, side)) - (side - 1) / 2))
    share = np.clip((side / 2 - away) / (side / 8), 0, 1)[..., None]
    piece[:] = np.round(crop * share + piece * (1 - share))


# What is painted, as masks around the middle: um


def _bar(rng: Generator, length: float, width: float, turn: float, aside: float = 0.0):
    """A plate of chromosomes, seen from its edge."""
    outline = painter.blob(rng, 1.0, 0.22, 48) * (length / 2, width / 2)
    outline[:, 1] += aside
    cos, sin = np.cos(turn), np.sin(turn)
    return outline @ np.array([[cos, sin], [-sin, cos]])


def _metaphase(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    turn = rng.uniform(0, np.pi)
    plate = _bar(rng, rng.uniform(7.5, 11), rng.uniform(2.2, 3.2), turn)
    return _stained(rng, piece, look, at, [plate], rng.uniform(1.6, 2.3), clear=7.0)


def _prometaphase(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    parts = [painter.blob(rng, rng.uniform(2.2, 3.0), 0.4, 64)]
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(4, 8)):
        away = rng.uniform(2.2, 3.4) * np.array([np.cos(angle), np.sin(angle)])
        parts.append(away + painter.blob(rng, rng.uniform(0.7, 1.2), 0.4, 24))
    return _stained(rng, piece, look, at, parts, rng.uniform(1.5, 2.1), clear=7.0)


def _anaphase(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    turn, gap = rng.uniform(0, np.pi), rng.uniform(4.5, 7.5)
    sides = (-gap / 2, gap / 2)
    parts = [_bar(rng, rng.uniform(5.5, 8), rng.uniform(1.6, 2.4), turn, side) for side in sides]
    return _stained(rng, piece, look, at, parts, rng.uniform(1.6, 2.2), clear=8.0)


def _pyknosis(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    parts = [painter.blob(rng, rng.uniform(1.9, 3.0), 0.03, 48)]
    return _stained(rng, piece, look, at, parts, rng.uniform(1.6, 2.3), clear=4.5, pink=0.9)


def _apoptosis(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    parts = [
        rng.uniform(-3, 3, 2) + painter.blob(rng, rng.uniform(0.7, 1.6), 0.03, 32)
        for _ in range(rng.integers(2, 6))
    ]
    return _stained(rng, piece, look, at, parts, rng.uniform(1.6, 2.3), clear=5.5, pink=1.0)


def _dark(rng: Generator, piece: np.ndarray, look: painter.Look, at) -> np.ndarray:
    outline = painter.blob(rng, 1.0, 0.06, 64) * (rng.uniform(3.8, 5.5), rng.uniform(2.6, 3.6))
    turn = rng.uniform(0, np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    parts = [outline @ np.array([[cos, sin], [-sin, cos]])]
    return _stained(rng, piece, look, at, parts, rng.uniform(1.3, 1.8), clear=5.0)


_FIGURES: tuple[Callable[..., np.ndarray], ...] = (_metaphase, _prometaphase, _anaphase)
_IMPOSTERS: tuple[Callable[..., np.ndarray], ...] = (_pyknosis, _apoptosis, _dark)


def _stained(
    rng: Generator,
    piece: np.ndarray,
    look: painter.Look,
    at: tuple[float, float],
    parts: list[np.ndarray],
    depth: float,
    *,
    clear: float,
    pink: float = 0.45,
) -> np.ndarray:
    """Clear a cell and put dense chromatin into it.

    Args:
        rng: Source of chance.
        piece: uint8 `(side, side, 3)` of the slide.
        look: The patient's look.
        at: x, y in px of the middle.
        parts: Outlines in um around the middle.
        depth: Optical density of the chromatin.
        clear: Radius of the cell, um.
        pink: Eosin in the cell.
    """
    layers = []
    round_cell = painter.blob(rng, clear * rng.uniform(0.75, 1.1), 0.1, 64)
    for outlines, blur in (([round_cell], 1.0), (parts, 0.3)):
        mask: np.ndarray = np.zeros(piece.shape[:2], np.uint8)
        for outline in outlines:
            px = np.round((outline / MPP + at - 0.5) * (1 << _SHIFT)).astype(np.int32)
            cv2.fillPoly(mask, [px], 255, cv2.LINE_AA, _SHIFT)
        layers.append(cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), blur / MPP))
    cell, chromatin = (layer[..., None] for layer in layers)
    hematoxylin, eosin, glass = (np.array(v) for v in (look.hematoxylin, look.eosin, look.glass))
    cytoplasm = glass * np.exp(
        -0.15 * look.h_strength * hematoxylin - pink * look.e_strength * eosin
    )
    # The grain of the tissue below stays, half as strong.
    below = piece.astype(np.float32)
    own = cytoplasm + 0.5 * (below - cv2.GaussianBlur(below, (0, 0), 1.5))
    rgb = below * (1 - cell) + own * cell
    rgb = rgb * np.exp(-chromatin * depth * look.h_strength * hematoxylin)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)
