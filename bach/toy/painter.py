"""Painted H&E: breast tissue of the four classes, at any scale.

No medical image is copied: stroma, fat, ducts and nuclei are drawn at random
from a few measures in um, so that trial data can be shipped, tested and painted
at any size. What tells the classes apart is what a pathologist would look at:

    Normal    few small ducts, lobules of acini, fat; sparse even nuclei
    Benign    more and larger ducts, whole outline, open lumen, two cell layers
    InSitu    ducts filled with crowded large nuclei behind a whole outline
    Invasive  crowded irregular nuclei in nests and cords, no outline

The classes overlap on purpose: number, size and crowding vary from image to
image, benign ducts stand among in situ ones, and lymphocytes are anywhere.

Lengths are um, origin at the left top of the picture; only `_Canvas` and the
noise fields know pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from bach.classes import BENIGN, CLASSES, INSITU, INVASIVE, NORMAL

# Optical density of the stains in red, green, blue. Source: Ruifrok & Johnston
# 2001 for hematoxylin; eosin is theirs with more blue absorbed, which is the
# salmon pink of most scanners instead of magenta.
_HEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.09, 0.92, 0.38)

_SHIFT = 4  # cv2 draws polygons on a grid of 1/16 px
_COARSE_UM = 4.0  # px of fields that only choose where things stand
_GLASS = len(CLASSES)  # labels from here on are no tissue


class Look(NamedTuple):
    """What slide preparation and scanner do to a patient's tissue.

    Attributes:
        hematoxylin: Unit vector of optical density in red, green, blue.
        eosin: Likewise.
        h_strength: Factor of the hematoxylin density, around 1.
        e_strength: Factor of the eosin density, around 1.
        glass: Red, green, blue of empty glass, 0..255.
        blur_um: Standard deviation of the focus blur in um.
        noise: Standard deviation of the camera noise in grey levels.
        nucleus: Factor of the nuclear size, around 1.
    """

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    h_strength: float
    e_strength: float
    glass: tuple[float, float, float]
    blur_um: float
    noise: float
    nucleus: float


def make_look(rng: Generator, strength: float = 1.0) -> Look:
    """Draw the look of a patient.

    Args:
        rng: Source of chance.
        strength: How far patients differ; 0 gives everyone the same look.

    Returns:
        The look: stain colours and strengths, light, focus, nuclear size.

    Raises:
        ValueError: If `strength` is negative.
    """
    if not strength >= 0:
        raise ValueError(f"strength must not be negative. Received: strength={strength}")
    spread = rng.normal(size=12) * strength
    # Past 2 standard deviations purple turns green, which no stain is.
    spread = np.clip(spread, -2.2, 2.2)
    uniform = rng.uniform(-1, 1, size=2) * min(strength, 2.0)
    return Look(
        hematoxylin=_unit(np.asarray(_HEMATOXYLIN) + 0.055 * spread[0:3]),
        eosin=_unit(np.asarray(_EOSIN) + (0.04, 0.05, 0.10) * spread[3:6]),
        h_strength=float(np.exp(0.20 * spread[6])),
        e_strength=float(np.exp(0.20 * spread[7])),
        glass=tuple(np.clip((242, 240, 243) + 3.0 * spread[8:11] + 4.0 * uniform[0], 215, 252)),
        blur_um=float(1.0 * np.exp(0.9 * uniform[1])),
        noise=1.6,
        nucleus=float(np.exp(0.08 * spread[11])),
    )


def paint_tissue(
    rng: Generator,
    label: int | np.ndarray,
    width: int,
    height: int,
    mpp: float,
    look: Look,
    tissue: np.ndarray | None = None,
) -> np.ndarray:
    """Paint tissue of one class, or of several by a label map.

    What is drawn has its size in um, so the same call at another `mpp` gives
    the same kind of picture at another scale (not the same picture). Time goes
    with the area in px: about 0.4 s and 60 MB per million px on one core.

    Args:
        rng: Source of chance; the same state gives the same picture.
        label: Class 0..3, or a uint8 label map of shape (height, width).
        width: Width in px.
        height: Height in px.
        mpp: Scale in um per px.
        look: The patient's look, see `make_look`.
        tissue: Share of tissue, float 0..1, shape (height, width); where it is 0
            there is glass. None means tissue everywhere.

    Returns:
        uint8 RGB array of shape (height, width, 3).

    Raises:
        ValueError: If a label, the scale or a shape does not fit.
    """
    labels = _label_map(label, width, height)
    if not mpp > 0:
        raise ValueError(f"mpp must be above 0. Received: mpp={mpp}")
    if tissue is not None and tissue.shape != (height, width):
        raise ValueError(
            f"tissue must have the shape of the picture, {(height, width)}. "
            f"Received: tissue.shape={tissue.shape}"
        )
    canvas = _Canvas(rng, labels, mpp, tissue)
    _draw_fat(rng, canvas)
    nuclei = [_draw_nests(rng, canvas)]
    nuclei += _draw_ducts(rng, canvas)
    # Stroma is what is left free, so it comes last.
    nuclei += [_stromal_nuclei(rng, canvas), _lymphocytes(rng, canvas)]
    canvas.draw_nuclei(rng, np.concatenate(nuclei), look.nucleus)
    return canvas.stain(rng, look)


def paint_node(
    rng: Generator, tumour: np.ndarray, mpp: float, look: Look, tissue: np.ndarray
) -> np.ndarray:
    """Paint a lymph node: capsule, follicles, sinuses, and carcinoma where it is said.

    Lymphocytes are small, round, dark and dense; carcinoma has large pale nuclei in pink
    cytoplasm. Time and memory go with the area in mm2: about 1 s per mm2.

    Args:
        rng: Source of chance; the same state gives the same picture.
        tumour: bool `(height, width)`, true where there is carcinoma.
        mpp: Scale in um per px.
        look: The patient's look, see `make_look`.
        tissue: Share of tissue, float 0..1, `(height, width)`; where it is 0 there is glass.

    Returns:
        uint8 RGB array `(height, width, 3)`.

    Raises:
        ValueError: If the shapes differ or the scale is not above 0.
    """
    if tumour.shape != tissue.shape or tumour.ndim != 2 or not mpp > 0:
        raise ValueError(
            "tumour and tissue must be (height, width) alike, mpp above 0. "
            f"Received: {tumour.shape}, {tissue.shape}, mpp={mpp}."
        )
    labels = np.where(tumour, INVASIVE, NORMAL).astype(np.uint8)
    canvas = _Canvas(rng, labels, mpp, tissue)
    nuclei = [_draw_lymphoid(rng, canvas), _draw_metastasis(rng, canvas)]
    nuclei.append(_stromal_nuclei(rng, canvas))
    canvas.draw_nuclei(rng, np.concatenate(nuclei), look.nucleus)
    return canvas.stain(rng, look)


def blob(rng: Generator, radius: float, wobble: float, points: int = 96) -> np.ndarray:
    """Draw a closed, smooth, irregular outline around (0, 0).

    Args:
        rng: Source of chance.
        radius: Mean radius, in any unit.
        wobble: Irregularity; 0 is a circle, 0.3 a potato.
        points: Number of vertices.

    Returns:
        float array (points, 2) of x, y in the unit of `radius`.
    """
    angle = np.arange(points) * (2 * np.pi / points)
    reach = radius * _radii(rng, angle, wobble)
    return np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)


def smooth_noise(
    rng: Generator, width: int, height: int, cell_x: float, cell_y: float
) -> np.ndarray:
    """Draw a random field that varies over a given length.

    Args:
        rng: Source of chance.
        width: Width in px.
        height: Height in px.
        cell_x: Length in px over which the field changes along x.
        cell_y: Likewise along y.

    Returns:
        float32 array (height, width), mean about 0, standard deviation about 1.
    """
    cell_x, cell_y = max(cell_x, 1.0), max(cell_y, 1.0)
    cols, rows = int(np.ceil(width / cell_x)) + 1, int(np.ceil(height / cell_y)) + 1
    grid = rng.standard_normal((rows, cols), dtype=np.float32)
    # resize, since warpAffine knows places to 1/32 of a cell only: visible stairs.
    # The factor makes up for the variance that cubic interpolation takes away.
    size = (max(round(cols * cell_x), width), max(round(rows * cell_y), height))
    return 1.35 * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[:height, :width]


def _unit(vector: np.ndarray) -> tuple[float, float, float]:
    vector = np.clip(vector, 0.01, None)
    return tuple((vector / np.linalg.norm(vector)).tolist())


def _label_map(label: int | np.ndarray, width: int, height: int) -> np.ndarray:
    if width < 1 or height < 1:
        raise ValueError(f"The picture needs a size. Received: width={width}, height={height}")
    labels = np.asarray(label)
    if labels.ndim == 0:
        labels = np.full((height, width), labels)
    if labels.shape != (height, width):
        raise ValueError(
            f"label must be a class or a map of shape {(height, width)}. "
            f"Received: label.shape={labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(
            f"Labels must lie in 0..{len(CLASSES) - 1}. Received: {np.unique(labels)[:10]}."
        )
    return labels.astype(np.uint8)


def _radii(rng: Generator, angle: np.ndarray, wobble: float) -> np.ndarray:
    """Radius by angle of an irregular outline, mean 1: a short Fourier series."""
    radii = np.ones_like(angle)
    for k in range(2, 7):
        radii += wobble / k * rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    return np.clip(radii, 0.4, 1.8)


def _hex_points(
    rng: Generator, width: float, height: float, spacing: float, jitter: float
) -> np.ndarray:
    """Points in rows about `spacing` apart, each moved by `jitter` of it: (n, 2)."""
    rows = np.arange(-spacing, height + spacing, spacing * 0.87)
    cols = np.arange(-spacing, width + spacing, spacing)
    x, y = np.meshgrid(cols, rows)
    x[1::2] += spacing / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return points + rng.uniform(-1, 1, points.shape) * (jitter * spacing)


def _nuclei(
    rng: Generator,
    points: np.ndarray,
    size: float,
    *,
    spread: float = 0.1,
    ratio: float = 1.2,
    angle: np.ndarray | None = None,
    dark: float = 0.8,
    irregular: float = 0.04,
    vesicular: float = 0.0,
) -> np.ndarray:
    """Rows of a nucleus table: x, y, long, short, angle, dark, irregular, vesicular.

    Args:
        rng: Source of chance.
        points: (n, 2) centres in um.
        size: Mean radius in um.
        spread: Variation of the radius (standard deviation of its logarithm).
        ratio: Mean of length by width.
        angle: (n,) direction of the long axis in radians; None is at random.
        dark: Mean hematoxylin, 0..1.
        irregular: Unevenness of the outline.
        vesicular: How pale the inside is against the rim, 0..1.
    """
    n = len(points)
    radius = size * np.exp(spread * rng.standard_normal(n))
    stretch = np.sqrt(np.clip(ratio * np.exp(0.12 * rng.standard_normal(n)), 1, None))
    if angle is None:
        angle = rng.uniform(0, np.pi, n)
    direction = angle + 0.15 * rng.standard_normal(n)
    depth = np.clip(dark + 0.09 * rng.standard_normal(n), 0.3, 1)
    same = np.full((n, 2), (irregular, vesicular))
    return np.column_stack([points, radius * stretch, radius / stretch, direction, depth, same])


class _Canvas:
    """A picture in the making: maps of what lies where, not yet stained.

    Attributes:
        width, height: Size in um.
        cell: uint8, cytoplasm of epithelium.
        rim: uint8, basement membranes and cell walls.
        open: uint8, no tissue: lumens, fat, clefts.
        pink: uint8, what eosin stains deeply: secretion, necrosis, red cells.
        nucleus: uint8, hematoxylin of nuclei.
    """

    def __init__(self, rng: Generator, labels: np.ndarray, mpp: float, tissue: np.ndarray | None):
        self.rows, self.cols = labels.shape
        self.mpp = mpp
        self.width, self.height = self.cols * mpp, self.rows * mpp
        self.labels, self.tissue = labels, tissue
        self.cell, self.rim, self.open, self.pink, self.nucleus = (
            np.zeros(labels.shape, np.uint8) for _ in range(5)
        )
        self._make_fibre_course(rng)
        # Per class and picture, 0..1: how far it goes towards the next class.
        self.grade = rng.uniform(0, 1, len(CLASSES))

    def _make_fibre_course(self, rng: Generator) -> None:
        """Coordinates along and across the fibres, on a coarse grid, in um."""
        self.coarse = max(_COARSE_UM, self.mpp)
        h, w = int(self.height / self.coarse) + 2, int(self.width / self.coarse) + 2
        self.coarse_shape = (h, w)
        theta = rng.uniform(0, np.pi)
        bend = rng.uniform(10, 38) * self.noise(rng, 210)
        bend += 5 * self.noise(rng, 60)
        y, x = (np.mgrid[0:h, 0:w].astype(np.float32) + 0.5) * self.coarse
        self.along = (x * np.cos(theta) + y * np.sin(theta)).astype(np.float32)
        self.across = (y * np.cos(theta) - x * np.sin(theta) + bend).astype(np.float32)
        d_y, d_x = np.gradient(self.across, self.coarse)
        self.direction = np.arctan2(-d_x, d_y)

    def streaks(
        self, rng: Generator, along: float, across: float, coarse: bool = False
    ) -> np.ndarray:
        """Noise drawn out along the fibres, in um; (rows, cols) or the coarse grid."""
        side = 512
        step = min(along, across) / 3.0
        noise = smooth_noise(rng, side, side, along / step, across / step)
        shape = self.coarse_shape if coarse else (self.rows, self.cols)
        offset = rng.uniform(0, side, 2)
        u, v = (
            (self.to_full(field) if not coarse else field) / step + at
            for field, at in zip((self.along, self.across), offset.tolist(), strict=True)
        )
        # Reflection, not wrapping: the noise has no seam to be seen that way.
        period = 2 * side - 2
        u, v = (np.abs(c - period * np.rint(c / period)) for c in (u, v))
        return cv2.remap(noise, u, v, cv2.INTER_CUBIC).reshape(shape)

    def to_full(self, field: np.ndarray) -> np.ndarray:
        """A field on the coarse grid, interpolated to the picture's px."""
        ratio = self.coarse / self.mpp
        h, w = field.shape
        size = (max(round(w * ratio), self.cols), max(round(h * ratio), self.rows))
        full = cv2.resize(field.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        return full[: self.rows, : self.cols]

    def noise(self, rng: Generator, cell: float) -> np.ndarray:
        """Smooth noise over `cell` um, on the coarse grid."""
        h, w = self.coarse_shape
        return smooth_noise(rng, w, h, cell / self.coarse, cell / self.coarse)

    def near(self, label: int, distance: float) -> np.ndarray:
        """Share of a class within about `distance` um, on the coarse grid."""
        h, w = self.coarse_shape
        mask = cv2.resize((self.labels == label).astype(np.float32), (w, h))
        return cv2.GaussianBlur(mask, (0, 0), distance / self.coarse)

    def at(self, field: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Values of a full or coarse field at (n, 2) points in um."""
        scale = self.mpp if field.shape == (self.rows, self.cols) else self.coarse
        col, row = (points / scale).astype(int).T
        h, w = field.shape
        return field[np.clip(row, 0, h - 1), np.clip(col, 0, w - 1)]

    def label_at(self, points: np.ndarray) -> np.ndarray:
        """Labels at (n, 2) points in um; 255 where there is no tissue."""
        labels = self.at(self.labels, points)
        if self.tissue is not None:
            labels = np.where(self.at(self.tissue, points) > 0.5, labels, 255)
        return labels

    def fill(self, layer: np.ndarray, polygon: np.ndarray, value: int) -> None:
        """Fill an (n, 2) polygon in um on one of the maps."""
        cv2.fillPoly(layer, [self._px(polygon)], value, cv2.LINE_AA, _SHIFT)

    def line(self, layer: np.ndarray, polygon: np.ndarray, thickness: float, value: int) -> None:
        """Draw the closed outline of an (n, 2) polygon on one of the maps, `thickness` in um."""
        px = max(1, round(thickness / self.mpp))
        cv2.polylines(layer, [self._px(polygon)], True, value, px, cv2.LINE_AA, _SHIFT)

    def _px(self, polygon: np.ndarray) -> np.ndarray:
        return np.round((polygon / self.mpp - 0.5) * (1 << _SHIFT)).astype(np.int32)

    def draw_nuclei(self, rng: Generator, table: np.ndarray, scale: float) -> None:
        """Draw all nuclei of a table made of `_nuclei` rows."""
        n = len(table)
        place = table[:, None, 0:2]
        long, short, angle, dark, irregular, vesicular = table.T[2:, :, None]
        turn = np.arange(12) * (np.pi / 6)
        reach = 1 + irregular * rng.standard_normal((n, 12)) * 1.5
        x = reach * np.cos(turn) * long * scale
        y = reach * np.sin(turn) * short * scale
        cos, sin = np.cos(angle), np.sin(angle)
        shape = np.stack([x * cos - y * sin, x * sin + y * cos], axis=2)
        outer = self._px(shape + place)
        inner = self._px(0.68 * shape + place)
        drift = 0.35 * rng.uniform(-1, 1, (n, 1, 2)) * short[:, None]
        nucleolus = self._px(0.22 * shape + place + drift)
        value = np.round(255 * dark[:, 0]).astype(int)
        pale = np.round(255 * dark[:, 0] * (1 - 0.4 * vesicular[:, 0])).astype(int)
        hollow = vesicular[:, 0] > 0.15
        image = self.nucleus
        for i in range(n):
            cv2.fillPoly(image, [outer[i]], int(value[i]), cv2.LINE_AA, _SHIFT)
            if hollow[i]:
                cv2.fillPoly(image, [inner[i]], int(pale[i]), cv2.LINE_AA, _SHIFT)
                cv2.fillPoly(image, [nucleolus[i]], int(value[i]), cv2.LINE_AA, _SHIFT)

    def stain(self, rng: Generator, look: Look) -> np.ndarray:
        """Turn the maps into uint8 RGB by way of optical density."""
        fine = max(1.2 / self.mpp, 1.0)
        grain = smooth_noise(rng, self.cols, self.rows, fine, fine)
        fibre = 0.65 * self.streaks(rng, 45, 3.5) + 0.5 * self.streaks(rng, 120, 11)
        fibre += 0.3 * grain
        loose = self.to_full(self.noise(rng, 130))
        depth = self.to_full(1 + 0.07 * self.noise(rng, 260))
        cell, rim, gap, pink, nucleus = (
            layer.astype(np.float32) / 255
            for layer in (self.cell, self.rim, self.open, self.pink, self.nucleus)
        )
        # Tumour calls up dense stroma; around normal ducts it is loose.
        dense = self.to_full(self.near(INVASIVE, 30))
        stroma = np.clip(0.50 + 0.05 * dense + 0.11 * fibre + 0.07 * loose, 0.03, 1.15)
        cleft = np.clip((-fibre - 1.45 - 0.6 * loose) * 1.3, 0, 0.85)
        stroma *= 1 - cleft
        eosin = stroma * (1 - cell) + cell * (0.40 + 0.05 * grain)
        blue = 0.045 + 0.02 * fibre * (1 - cell) + cell * (0.17 + 0.04 * grain) + 0.08 * rim
        # Membranes and secretion stand also where there is no other tissue.
        eosin = eosin * (1 - gap) + 0.38 * rim + 0.75 * pink * (1 + 0.15 * grain)
        eosin *= 1 - 0.55 * nucleus
        blue = blue * (1 - gap) + nucleus * (1.1 + 0.2 * grain)
        if self.tissue is not None:
            depth *= self.tissue
        eosin = np.clip(eosin, 0, None) * depth * (1.05 * look.e_strength)
        blue = np.clip(blue, 0, None) * depth * (1.25 * look.h_strength)
        rgb: np.ndarray = np.empty((self.rows, self.cols, 3), np.float32)
        for channel in range(3):
            density = blue * look.hematoxylin[channel] + eosin * look.eosin[channel]
            rgb[..., channel] = look.glass[channel] * np.exp(-density)
        sigma = look.blur_um / self.mpp
        if sigma > 0.2:
            rgb = cv2.GaussianBlur(rgb, (0, 0), sigma)
        noise = rng.standard_normal((self.rows, self.cols), dtype=np.float32)
        rgb += (look.noise * noise)[..., None]
        return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _draw_fat(rng: Generator, canvas: _Canvas) -> None:
    """Fat: near-white vacuoles of 40-90 um, thin walls; most of it in normal tissue."""
    share = np.array([rng.choice([0.0, 0.25, 0.5], p=[0.35, 0.4, 0.25]), 0.06, 0.05, 0.05])
    share[1:] *= rng.uniform(0, 2, 3)
    field = canvas.noise(rng, 220)
    points = _hex_points(rng, canvas.width, canvas.height, 62, 0.12)
    labels = canvas.label_at(points)
    limit = np.quantile(field, 1 - np.append(share, 0))[np.minimum(labels, _GLASS)]
    for point in points[(canvas.at(field, points) > limit) & (labels < _GLASS)]:
        polygon = point + blob(rng, rng.uniform(25, 34), 0.1, 40)
        canvas.fill(canvas.open, polygon, 255)
        canvas.fill(canvas.rim, polygon, 0)
        canvas.line(canvas.rim, polygon, 1.5, 190)


def _draw_nests(rng: Generator, canvas: _Canvas) -> np.ndarray:
    """Invasive carcinoma: nests and cords without an outline. Returns the nuclei."""
    if not (canvas.labels == INVASIVE).any():
        return np.empty((0, 8))
    grade = canvas.grade[INVASIVE]
    across = rng.uniform(22, 55)
    field = canvas.streaks(rng, across * rng.uniform(1.2, 4), across, coarse=True)
    field += 0.5 * canvas.noise(rng, 170)
    near = canvas.near(INVASIVE, 12)
    # Of the region, not of the picture: it may lie where the field is low.
    limit = np.quantile(field[near > 0.5 * near.max()], 1 - (0.08 + 0.47 * rng.random() ** 1.4))
    soft = canvas.to_full(np.clip((field - limit) * 3 + 0.5, 0, 1) * near)
    canvas.cell = (215 * soft).astype(np.uint8)
    canvas.open[(canvas.cell > 110)] = 0
    points = _hex_points(rng, canvas.width, canvas.height, rng.uniform(9.5, 13.5), 0.42)
    at = canvas.at(field, points)
    # Single cells stray from the nests; some of the grid stays empty.
    chosen = np.where(at > limit, rng.random(len(points)) < 0.9, rng.random(len(points)) < 0.035)
    chosen &= canvas.label_at(points + rng.normal(0, 14, points.shape)) == INVASIVE
    chosen &= canvas.at(canvas.open, points) < 70
    return _nuclei(
        rng,
        points[chosen],
        3.0 + 1.1 * grade,
        spread=0.2,
        ratio=1.35,
        dark=0.78,
        irregular=0.06 + 0.05 * grade,
        vesicular=rng.uniform(0, 0.8),
    )


def _draw_lymphoid(rng: Generator, canvas: _Canvas) -> np.ndarray:
    """What a lymph node is of, inside its capsule. Returns the nuclei."""
    h, w = canvas.coarse_shape
    tissue: np.ndarray = np.ones((h, w), np.float32)
    if canvas.tissue is not None:
        tissue = cv2.resize(canvas.tissue, (w, h), interpolation=cv2.INTER_AREA)
    inner = cv2.GaussianBlur(tissue, (0, 0), 22 / canvas.coarse)
    inner = np.clip((inner - 0.82) * 12, 0, 1) * tissue  # the capsule is 20-40 um thick
    sinus = np.exp(-((canvas.noise(rng, 160) / 0.16) ** 2)) * (canvas.noise(rng, 420) > -0.2)
    field = canvas.noise(rng, 260)
    follicle = np.clip((field - np.quantile(field, 0.86)) * 5, 0, 1)
    keep = inner * (1 - 0.75 * sinus)
    canvas.cell = (200 * canvas.to_full(keep)).astype(np.uint8)
    canvas.open = (90 * canvas.to_full(inner * sinus)).astype(np.uint8)
    points = _hex_points(rng, canvas.width, canvas.height, 6.9, 0.38)
    points = points[canvas.label_at(points) == NORMAL]
    # Germinal centres have fewer and larger cells than what is around them.
    pale = canvas.at(follicle, points)
    chosen = rng.random(len(points)) < canvas.at(keep, points) * (0.93 - 0.5 * pale)
    points, pale = points[chosen], pale[chosen] > 0.5
    small = _nuclei(rng, points[~pale], 2.6, spread=0.07, ratio=1.05, dark=0.92)
    large = _nuclei(rng, points[pale], 3.2, spread=0.12, ratio=1.15, dark=0.66, vesicular=0.3)
    return np.concatenate([small, large])


def _draw_metastasis(rng: Generator, canvas: _Canvas) -> np.ndarray:
    """Carcinoma in sheets and nests, in place of lymphocytes. Returns the nuclei."""
    near = canvas.near(INVASIVE, 3)
    if not near.any():
        return np.empty((0, 8))
    soft = np.clip((canvas.to_full(near) - 0.5) * 3 + 0.5, 0, 1)
    field = canvas.noise(rng, rng.uniform(45, 90))
    gaps = np.clip((field - np.quantile(field, rng.uniform(0.8, 0.95))) * 4, 0, 1)  # stroma
    sheet = soft * (1 - canvas.to_full(gaps))
    canvas.cell = np.maximum(canvas.cell * (1 - soft), 225 * sheet).astype(np.uint8)
    canvas.open = (canvas.open * (1 - soft)).astype(np.uint8)
    points = _hex_points(rng, canvas.width, canvas.height, rng.uniform(10.5, 12.5), 0.36)
    chosen = (canvas.label_at(points) == INVASIVE) & (canvas.at(gaps, points) < 0.4)
    points = points[chosen & (rng.random(len(points)) < 0.95)]
    size = rng.uniform(3.9, 4.9)
    return _nuclei(rng, points, size, spread=0.2, dark=0.66, irregular=0.07, vesicular=0.6)


class _Duct(NamedTuple):
    """A duct's place and outline: angles are even, `reach` is um by angle."""

    x: float
    y: float
    reach: np.ndarray
    stretch: float
    turn: float

    def outline(self, depth: float = 0.0, share: float = 1.0) -> np.ndarray:
        """Polygon at `depth` um inside the outline, or at a share of its radius."""
        angle = np.arange(len(self.reach)) * (2 * np.pi / len(self.reach))
        reach = np.maximum(self.reach * share - depth, 1.0)
        local = np.stack([reach * np.cos(angle) * self.stretch, reach * np.sin(angle)], axis=1)
        # Depth is the same all around, also where the duct is drawn out.
        local[:, 0] -= np.sign(local[:, 0]) * depth * (self.stretch - 1) * np.cos(angle) ** 2
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return local @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)

    def size(self) -> float:
        return float(self.reach.max() * self.stretch)

    def depth_share(self, points: np.ndarray) -> np.ndarray:
        """Radius of (n, 2) points as a share of the outline's: 1 is on it."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        local = (points - (self.x, self.y)) @ np.array([[cos, -sin], [sin, cos]])
        local[:, 0] /= self.stretch
        angle = np.arctan2(local[:, 1], local[:, 0]) % (2 * np.pi)
        index = (angle / (2 * np.pi) * len(self.reach)).astype(int) % len(self.reach)
        return np.hypot(local[:, 0], local[:, 1]) / self.reach[index]


def _make_duct(
    rng: Generator, x: float, y: float, radius: float, wobble: float, stretch: float
) -> _Duct:
    angle = np.arange(96) * (2 * np.pi / 96)
    reach = radius * _radii(rng, angle, wobble)
    return _Duct(x, y, reach, stretch, rng.uniform(0, np.pi))


def _draw_ducts(rng: Generator, canvas: _Canvas) -> list[np.ndarray]:
    """Place and draw the ducts of all classes. Returns tables of nuclei."""
    ducts: list[tuple[str, _Duct]] = []
    area = canvas.width * canvas.height / 1e6  # mm2
    grade = canvas.grade
    # Kind, class, number a mm2, radius from, to (um).
    plan = [
        ("lobule", NORMAL, 1.0 + 5.0 * grade[NORMAL], 60, 115),
        ("open", NORMAL, 1.0 + 8.0 * grade[NORMAL] ** 2, 25, 60),
        ("thick", NORMAL, 2.0 * grade[NORMAL] ** 3, 40, 70),
        ("open", BENIGN, rng.uniform(5, 22), 32, rng.uniform(60, 110)),
        ("thick", BENIGN, 13 * grade[BENIGN] ** 2, 42, 95),
        ("lobule", BENIGN, 5.0 * rng.random() ** 2, 60, 115),
        ("filled", INSITU, rng.uniform(3.5, 13), 40, rng.uniform(80, 140)),
        ("open", INSITU, 10 * rng.random() ** 2, 30, 90),
        ("thick", INSITU, 8 * (1 - grade[INSITU]) ** 2, 42, 95),
        ("filled", INVASIVE, 5 * (1 - grade[INVASIVE]) ** 2, 40, 80),
        ("open", INVASIVE, 5 * rng.random() ** 2, 28, 80),
        ("thick", INVASIVE, 3 * rng.random() ** 2, 40, 80),
    ]
    plan += [("vessel", label, 3.0, 10, 24) for label in range(len(CLASSES))]
    spots = np.empty((0, 3))
    points = rng.uniform(0, 1, (int(900 * area) + 400, 2)) * (canvas.width, canvas.height)
    labels = canvas.label_at(points)
    for kind, label, density, low, high in plan:
        mine = points[labels == label]
        covered = area * len(mine) / len(points)
        wanted = rng.poisson(density * covered)
        if (kind, label) in (("open", BENIGN), ("filled", INSITU)) and covered > 0:
            # Without a single one of these it would not be that class at all.
            wanted = max(wanted, 1 + round(4 * covered))
        for x, y in mine[rng.permutation(len(mine))[: 12 * wanted]]:
            if wanted == 0:
                break
            radius = np.exp(rng.uniform(np.log(low), np.log(high)))
            stretch = 1.0 if kind == "lobule" else rng.uniform(1.0, 1.9)
            duct = _make_duct(rng, x, y, radius / np.sqrt(stretch), 0.16, stretch)
            gap = np.hypot(spots[:, 0] - x, spots[:, 1] - y) - spots[:, 2]
            # Ovals may come a little into each other's circle.
            if (gap < 0.88 * duct.size() + 6).any():
                continue
            spots = np.vstack([spots, (x, y, duct.size())])
            ducts.append((kind, duct))
            wanted -= 1
    tables = []
    for kind, duct in ducts:
        tables += _DRAW[kind](rng, canvas, duct)
    return tables or [np.empty((0, 8))]


def _ring_nuclei(rng: Generator, duct: _Duct, depth: float, spacing: float, **kind) -> np.ndarray:
    """Nuclei in a row along the outline, `depth` um inside it.

    With `upright=True` they stand across the row, as columnar cells do.
    """
    upright = kind.pop("upright", False)
    line = duct.outline(depth)
    line = np.vstack([line, line[:1]])
    step = np.diff(line, axis=0)
    length = np.concatenate([[0], np.cumsum(np.hypot(step[:, 0], step[:, 1]))])
    n = max(int(length[-1] / spacing), 3)
    where = (np.arange(n) + rng.uniform(-0.25, 0.25, n)) * (length[-1] / n)
    points = np.stack([np.interp(where, length, line[:, i]) for i in range(2)], axis=1)
    index = np.clip(np.searchsorted(length, where) - 1, 0, len(step) - 1)
    angle = np.arctan2(step[index, 1], step[index, 0]) + (np.pi / 2 if upright else 0)
    return _nuclei(rng, points + rng.normal(0, 0.5, points.shape), angle=angle, **kind)


def _draw_wall(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """A whole outline: basement membrane, cells within, flat myoepithelium."""
    canvas.fill(canvas.open, duct.outline(-3), 0)
    canvas.fill(canvas.pink, duct.outline(-3), 0)
    canvas.line(canvas.rim, duct.outline(-1.5), 4.0, 200)
    canvas.fill(canvas.rim, duct.outline(), 0)
    canvas.fill(canvas.cell, duct.outline(), 205)
    return [_ring_nuclei(rng, duct, 2.2, 15, size=2.2, ratio=2.4, dark=0.9)]


def _draw_lumen(rng: Generator, canvas: _Canvas, polygon: np.ndarray) -> None:
    canvas.fill(canvas.open, polygon, 245)
    if rng.random() < 0.25:
        canvas.fill(canvas.pink, 0.8 * (polygon - polygon.mean(0)) + polygon.mean(0), 90)


def _draw_open(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """An open duct: two tidy layers around a lumen."""
    tables = _draw_wall(rng, canvas, duct)
    _draw_lumen(rng, canvas, duct.outline(rng.uniform(14, 18)))
    tables.append(_ring_nuclei(rng, duct, 8.5, 7.2, size=2.9, ratio=1.5, dark=0.8, upright=True))
    return tables


def _draw_thick(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """Hyperplasia: a few uneven layers, the lumen narrowed to a slit."""
    tables = _draw_wall(rng, canvas, duct)
    radius = float(duct.reach.mean())
    thickness = min(rng.uniform(24, 40), 0.8 * radius)
    points, share = _points_within(rng, duct, rng.uniform(8.6, 10.5))
    _draw_lumen(rng, canvas, duct.outline(share=1 - thickness / radius))
    inside = (share < 1 - 6 / radius) & (share > 1 - (thickness - 4) / radius)
    return [*tables, _nuclei(rng, points[inside], 3.0, ratio=1.4, dark=0.8)]


def _points_within(rng: Generator, duct: _Duct, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Crowded points about a duct, and their share of its radius."""
    side = 2 * duct.size() + 20
    points = _hex_points(rng, side, side, spacing, 0.33)
    points += (duct.x - side / 2, duct.y - side / 2)
    return points, duct.depth_share(points)


def _draw_filled(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """Carcinoma in situ: the duct filled, solid, cribriform or with necrosis."""
    tables = _draw_wall(rng, canvas, duct)
    grade = canvas.grade[INSITU]
    points, share = _points_within(rng, duct, rng.uniform(9, 11.5))
    inside = share < 1 - 5.5 / float(duct.reach.mean())
    pattern = rng.choice(["solid", "cribriform", "necrosis"], p=[0.45, 0.3, 0.25])
    if pattern == "necrosis" and duct.reach.mean() > 45:
        core = rng.uniform(0.3, 0.5)
        canvas.fill(canvas.open, duct.outline(share=core + 0.06), 130)
        canvas.fill(canvas.pink, duct.outline(share=core), 150)
        inside &= share > core
        debris = points[(share < core) & (rng.random(len(points)) < 0.3)]
        tables.append(_nuclei(rng, debris, 1.3, spread=0.4, dark=0.9))
    elif pattern == "cribriform":
        holes, depth = _points_within(rng, duct, rng.uniform(36, 50))
        for hole in holes[depth < 0.68]:
            radius = rng.uniform(6, 13)
            canvas.fill(canvas.open, hole + blob(rng, radius, 0.12, 32), 245)
            inside &= np.hypot(*(points - hole).T) > radius + 3
    tables.append(
        _nuclei(
            rng,
            points[inside],
            3.2 + 1.0 * grade,
            spread=0.13,
            ratio=1.15,
            dark=0.8,
            irregular=0.05,
            vesicular=0.6 * grade,
        )
    )
    return tables


def _draw_lobule(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """A lobule: acini of 15-25 um radius close together, lumens small or none."""
    tables = []
    points, share = _points_within(rng, duct, rng.uniform(46, 58))
    for x, y in points[share < 0.85]:
        acinus = _make_duct(rng, x, y, rng.uniform(15, 21), 0.14, rng.uniform(1, 1.3))
        tables += _draw_wall(rng, canvas, acinus)
        if rng.random() < 0.7:
            canvas.fill(canvas.open, acinus.outline(rng.uniform(11.5, 14)), 235)
        tables.append(_ring_nuclei(rng, acinus, 7.5, 7.6, size=2.8, ratio=1.2, dark=0.8))
    return tables


def _draw_vessel(rng: Generator, canvas: _Canvas, duct: _Duct) -> list[np.ndarray]:
    """A small vessel: thick pink wall, flat endothelium, some red cells."""
    canvas.fill(canvas.open, duct.outline(-2), 0)
    canvas.fill(canvas.cell, duct.outline(-4), 0)
    canvas.line(canvas.rim, duct.outline(1), 4, 230)
    canvas.fill(canvas.open, duct.outline(3), 245)
    if rng.random() < 0.6:
        canvas.fill(canvas.pink, duct.outline(4.5), 245)
    return [_ring_nuclei(rng, duct, 1.5, 13, size=2.2, ratio=3.0, dark=0.85)]


_DRAW = {
    "open": _draw_open,
    "thick": _draw_thick,
    "filled": _draw_filled,
    "lobule": _draw_lobule,
    "vessel": _draw_vessel,
}


def _free(canvas: _Canvas, points: np.ndarray) -> np.ndarray:
    """Which of (n, 2) points lie in stroma."""
    taken = (canvas.at(canvas.cell, points) > 70) | (canvas.at(canvas.open, points) > 70)
    return ~taken & (canvas.label_at(points) < _GLASS)


def _stromal_nuclei(rng: Generator, canvas: _Canvas) -> np.ndarray:
    """Fibroblasts: spindles along the fibres, even and sparse."""
    points = _hex_points(rng, canvas.width, canvas.height, rng.uniform(22, 38), 0.45)
    points = points[_free(canvas, points)]
    angle = canvas.at(canvas.direction, points)
    return _nuclei(rng, points, 2.1, spread=0.2, ratio=3.2, angle=angle, dark=0.72)


def _lymphocytes(rng: Generator, canvas: _Canvas) -> np.ndarray:
    """Small round dark nuclei in clusters: in every class, so they prove nothing."""
    field = canvas.noise(rng, 90)
    share = np.append(rng.uniform(0, 1, 4) ** 2 * (0.10, 0.15, 0.17, 0.15), 0)
    points = _hex_points(rng, canvas.width, canvas.height, 8.5, 0.4)
    limit = np.quantile(field, 1 - share)[np.minimum(canvas.label_at(points), _GLASS)]
    chosen = (canvas.at(field, points) > limit) & (rng.random(len(points)) < 0.7)
    points = points[chosen]
    return _nuclei(rng, points[_free(canvas, points)], 2.5, spread=0.08, ratio=1.05, dark=0.95)
