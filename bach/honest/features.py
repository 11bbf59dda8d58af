"""Colour and texture of a photo, as numbers that a cheap model can learn from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.files import fingerprint
from bach.core.log import step
from bach.core.tables import read_table, write_csv
from bach.data import photo_scales, read_photo
from bach.tasks import task

_QUANTILES = (5, 25, 50, 75, 95)


class Describer(NamedTuple):
    """A way to describe photos.

    Attributes:
        name: Names the table that keeps the descriptions; empty for the one of ours.
        version: Kept with every description; another one makes them anew.
        describe: From a photo, uint8 `(height, width, 3)` RGB at 0.42 um/px, to
            {name of a feature: value}.
    """

    name: str
    version: str
    describe: Callable[[np.ndarray], dict[str, float]]


def image_features(rgb: np.ndarray) -> dict[str, float]:
    """Describe the colour and the texture of a photo by 95 numbers.

    Colour: mean, spread and quantiles of CIE L*a*b*, hematoxylin, eosin and
    saturation. Texture: local binary patterns of the brightness at two scales,
    co-occurrence of hematoxylin levels at three distances, and the energy of
    hematoxylin in octaves. All of it is of the whole photo, so that neither the
    place nor the direction of anything matters.

    Args:
        rgb: uint8 `(height, width, 3)`, RGB, at the scale of the photos (0.42 um/px).

    Returns:
        {name: value}; names of colour features begin with "colour", the others with
        "texture".
    """
    from skimage import color, feature  # not at the top, which takes its time

    quarter = shrink(shrink(rgb))
    found = {}
    hed = color.rgb2hed(quarter)
    lab = color.rgb2lab(quarter)
    planes = {
        "lightness": lab[..., 0],
        "green_red": lab[..., 1],
        "blue_yellow": lab[..., 2],
        "hematoxylin": hed[..., 0] * 100,
        "eosin": hed[..., 1] * 100,
        "saturation": color.rgb2hsv(quarter)[..., 1] * 100,
    }
    for name, plane in planes.items():
        mean, spread = float(plane.mean()), float(plane.std())
        found[f"colour_{name}_mean"] = mean
        found[f"colour_{name}_spread"] = spread
        found[f"colour_{name}_skew"] = _skew(plane - mean, spread)
        for share, value in zip(_QUANTILES, np.percentile(plane, _QUANTILES), strict=True):
            found[f"colour_{name}_{share:02d}"] = float(value)
    gray = cv2.cvtColor(quarter, cv2.COLOR_RGB2GRAY)
    # At half the scale they take as long as all else and add nothing (measured).
    for scale in (4, 8):
        patterns = feature.local_binary_pattern(gray, 8, 1, method="uniform")
        shares = np.bincount(patterns.astype(int).ravel(), minlength=10) / patterns.size
        found |= {f"texture_lbp{scale}_{i}": float(share) for i, share in enumerate(shares)}
        gray = shrink(gray)
    # Of hematoxylin on a fixed scale: at 2.5 nearly all nuclei are at the top.
    blue = np.maximum(hed[..., 0] * 100, 0)
    levels = np.clip(blue / (np.percentile(blue, 99) + 1e-6) * 31, 0, 31).astype(np.uint8)
    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    pairs = feature.graycomatrix(levels, (1, 4, 12), angles, 32, symmetric=True, normed=True)
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation"):
        values = feature.graycoprops(pairs, name).mean(axis=1)
        found |= {f"texture_{name}_{i}": float(value) for i, value in enumerate(values)}
    smooth = blue.astype(np.float32)
    for octave in range(6):
        smoother = cv2.GaussianBlur(smooth, (0, 0), 2.0**octave)
        band = smooth - smoother
        found[f"texture_octave{octave}_spread"] = float(band.std())
        found[f"texture_octave{octave}_skew"] = _skew(band, float(band.std()))
        smooth = smoother
    return found


def _skew(centred: np.ndarray, spread: float) -> float:
    # Products, since a power of 3 takes NumPy ten times as long.
    return float((centred * centred * centred).mean() / (spread**3 + 1e-9))


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Halve a photo: uint8 `(height // 2, width // 2, ...)`, the mean of 2x2."""
    height, width = pixels.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


COLOUR_AND_TEXTURE = Describer("", "v1", image_features)


def read_features(
    images: pd.DataFrame, run_dir: str | os.PathLike, describer: Describer = COLOUR_AND_TEXTURE
) -> pd.DataFrame:
    """Describe every photo, or take its description from an earlier call.

    `RUN_DIR/features.csv` (of another describer `features_NAME.csv`) keeps the descriptions
    with a fingerprint of each file; a photo that changed since is described anew. What was
    done is kept if the call is interrupted.

    Args:
        images: Image table with `image_id` and `path`.
        run_dir: Folder of the table.
        describer: How.

    Returns:
        float64 table, a row per image in their order, indexed by `image_id`, a column
        per feature, see `image_features`.

    Raises:
        InputError: If a photo or the table cannot be read.
    """
    file = Path(run_dir) / f"features{describer.name and '_'}{describer.name}.csv"
    rows: dict[str, dict] = {}
    if file.exists():
        kept = read_table(file, ("image_id", "state"), key="image_id")
        rows = kept.set_index("image_id").to_dict("index")
    scales = dict(zip(images["image_id"], photo_scales(images), strict=True))
    # Of another scale than that of the task, which is not said.
    said = {name: "" if mpp == task().photo_mpp else f" {mpp:g}" for name, mpp in scales.items()}
    with step("features") as notes:
        states = {
            image.image_id: f"{describer.version} {fingerprint({'photo': image.path})['photo']}"
            + said[image.image_id]
            for image in tqdm(
                images.itertuples(), "checksums", len(images), leave=False, disable=None
            )
        }
        missing = [
            image
            for image in images.itertuples()
            if rows.get(image.image_id, {}).get("state") != states[image.image_id]
        ]
        notes.append(f"{len(images)} photos, {len(images) - len(missing)} known from {file}")
        try:
            for image in tqdm(missing, desc="features", unit="photo", disable=None):
                found = describer.describe(read_photo(image.path, scales[image.image_id]))
                rows[image.image_id] = {"state": states[image.image_id], **found}
        finally:
            if missing:
                table = pd.DataFrame.from_dict(rows, orient="index")
                write_csv(table.rename_axis("image_id").reset_index(), file)
    table = pd.DataFrame([rows[name] for name in images["image_id"]], index=images["image_id"])
    try:
        return table.drop(columns="state").astype(np.float64)
    except ValueError as error:
        raise InputError(
            f"{file} must be a table of features.\nReceived: {error}.\n"
            "Delete it, or name another --run-dir."
        ) from error
