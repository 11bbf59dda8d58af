"""What a careless split would have promised: the leak audit, and assumed groups.

    python -m bach.folds audit --data-dir data/BACH --patients folds/patients.csv
"""

import cv2
import numpy as np
from skimage import color, feature

_QUANTILES = (5, 25, 50, 75, 95)

# Features


def image_features(rgb: np.ndarray) -> dict[str, float]:
    """Describe the colour and the texture of a photo by some 150 numbers.

    Colour: mean, spread and quantiles of CIE L*a*b*, hematoxylin, eosin and
    saturation. Texture: local binary patterns of the brightness at three scales,
    co-occurrence of hematoxylin levels at three distances, and the energy of
    hematoxylin in octaves. All of it is of the whole photo, so that neither the
    place nor the direction of anything matters.

    Args:
        rgb: uint8 `(height, width, 3)`, RGB, at the scale of the photos (0.42 um/px).

    Returns:
        {name: value}; names of colour features begin with "colour", the others with
        "texture".
    """
    half = _shrink(rgb)
    quarter = _shrink(half)
    found = {}
    hed = color.rgb2hed(quarter)
    lab = color.rgb2lab(quarter)
    planes = {
        "lightness": lab[..., 0], "green_red": lab[..., 1], "blue_yellow": lab[..., 2],
        "hematoxylin": hed[..., 0] * 100, "eosin": hed[..., 1] * 100,
        "saturation": color.rgb2hsv(quarter)[..., 1] * 100,
    }  # fmt: skip
    for name, plane in planes.items():
        mean, spread = float(plane.mean()), float(plane.std())
        found[f"colour_{name}_mean"] = mean
        found[f"colour_{name}_spread"] = spread
        found[f"colour_{name}_skew"] = float(((plane - mean) ** 3).mean() / (spread**3 + 1e-9))
        for share, value in zip(_QUANTILES, np.percentile(plane, _QUANTILES), strict=True):
            found[f"colour_{name}_{share:02d}"] = float(value)
    gray = cv2.cvtColor(half, cv2.COLOR_RGB2GRAY)
    for scale in (2, 4, 8):
        patterns = feature.local_binary_pattern(gray, 8, 1, method="uniform")
        shares = np.bincount(patterns.astype(int).ravel(), minlength=10) / patterns.size
        found |= {f"texture_lbp{scale}_{i}": float(share) for i, share in enumerate(shares)}
        gray = _shrink(gray)
    # Of hematoxylin on a fixed scale: at 2.5 nearly all nuclei are at the top.
    blue = np.maximum(hed[..., 0] * 100, 0)
    levels = np.clip(blue / (np.percentile(blue, 99) + 1e-6) * 31, 0, 31).astype(np.uint8)
    pairs = feature.graycomatrix(
        levels, (1, 4, 12), (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4), 32, symmetric=True, normed=True
    )
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation"):
        values = feature.graycoprops(pairs, name).mean(axis=1)
        found |= {f"texture_{name}_{i}": float(value) for i, value in enumerate(values)}
    smooth = blue.astype(np.float32)
    for octave in range(6):
        smoother = cv2.GaussianBlur(smooth, (0, 0), 2.0**octave)
        band = smooth - smoother
        found[f"texture_octave{octave}_spread"] = float(band.std())
        found[f"texture_octave{octave}_skew"] = float(
            (band**3).mean() / (float(band.std()) ** 3 + 1e-9)
        )
        smooth = smoother
    return found


def _shrink(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
