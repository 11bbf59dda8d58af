"""Whether a picture can be H&E in bright field: light glass, pink and violet tissue.

Everything in this package presumes it. A fluorescence slide, one with inverted colours or one
plane of three would be read, would have "tissue" and would get a class map: what cannot be
H&E is refused unless the user insists, what is odd is said.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SAMPLES, _FEW_SAMPLES = 1 << 19, 1 << 16  # pixels that are looked at, of a slide and of a photo

# Gray levels 0..255. Measured on 25 pictures of H&E (slides, tiles, photos; with and without
# glass): half of the pixels are lighter than 155 in their lightest channel. On a fluorescence
# slide it is 22, on inverted slides 12 and 70. In their darkest channel half of them are lighter
# than 98; of the fluorescence slide 0.
_DARK, _NO_LIGHT = 85, 30
# Gray pictures have no spread between channels; JPEG may leave 2 levels. Of bare glass, whose
# brightness hardly varies, nothing is said.
_GRAY_SPREAD, _GRAY_SHARE, _STRUCTURE = 2, 0.999, 40
# Coloured pixels: by how much green lies above or below the mean of red and blue. All of H&E
# lies below, pen marks aside.
_GLASS = 200
_COLORED, _GREENISH, _COLORED_SHARE = 6, 0.6, 0.02
_BLACK, _MUCH_BLACK = 0.05, 0.3
_ONE_COLOR = 0.2


class Verdict(NamedTuple):
    """What a picture looks like, a phrase for each thing that is wrong.

    Attributes:
        impossible: Why it cannot be H&E in bright field.
        doubtful: What is odd about it.
    """

    impossible: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


def judge(rgb: np.ndarray) -> Verdict:
    """Judge the picture of a whole slide.

    Args:
        rgb: Thumbnail, uint8 `(height, width, 3)`.
    """
    pixels = _sample(rgb)
    if not len(pixels):
        return Verdict()
    lightest = pixels.max(axis=1)
    black = float((lightest == 0).mean())
    low, high = np.percentile(pixels, (0.5, 99.5), axis=0)
    if (high - low).max() <= 2 and high.max() >= _DARK:
        color = ", ".join(f"{value:.0f}" for value in np.median(pixels, axis=0))
        return Verdict(doubtful=(f"it shows one colour everywhere ({color})",))
    lit = pixels[lightest > 0]
    # Where the background is exactly black, what is on it tells: light that comes through has
    # something of all colours.
    if (
        not len(lit)
        or np.median(lightest[lightest > 0]) < _DARK
        or (black > _MUCH_BLACK and np.median(lit.min(axis=1)) < _NO_LIGHT)
    ):
        level = float(np.median(lightest))
        reason = f"the background is dark (half of the pixels are below {level:.0f} of 255)"
        return Verdict((f"{reason}, as in fluorescence or inverted colours",))
    if (np.ptp(lit, axis=1) <= _GRAY_SPREAD).mean() >= _GRAY_SHARE:
        if np.ptp(np.percentile(lit, (1, 99))) > _STRUCTURE:
            return Verdict(("it has no colour, as one of several channels or a gray copy",))
        return Verdict(doubtful=_black(black))
    green = lit[:, 1] - (lit[:, 0] + lit[:, 2]) / 2
    darkest = lit.min(axis=1)
    glass = darkest >= max(_GLASS, np.percentile(darkest, 80))
    green -= np.median(green[glass]) if glass.any() else 0  # glass itself may have a tinge
    colored = np.abs(green) > _COLORED
    if colored.mean() > _COLORED_SHARE and (green[colored] > 0).mean() > _GREENISH:
        if black > _MUCH_BLACK:
            reason = f"the background is black ({black:.0%}) and the rest green, as when inverted"
            return Verdict((reason,))
        return Verdict(
            doubtful=("its colours are green rather than pink and violet", *_black(black))
        )
    return Verdict(doubtful=_black(black))


def _black(share: float) -> tuple[str, ...]:
    return (f"{share:.0%} of it is black: lost, or not scanned",) if share > _BLACK else ()


def one_color(rgb: np.ndarray) -> str:
    """What is lost of a photo: a phrase if a large part is exactly one colour, else "".

    White is left out, which light glass and fat saturate to.

    Args:
        rgb: uint8 `(height, width, 3)`.
    """
    pixels = _sample(rgb, _FEW_SAMPLES)
    packed = pixels @ np.array([1 << 16, 1 << 8, 1])
    colors, counts = np.unique(packed[packed < 0xF0F0F0], return_counts=True)
    if not len(colors) or counts.max() <= _ONE_COLOR * len(pixels):
        return ""
    color = int(colors[counts.argmax()])
    shown = f"({color >> 16}, {color >> 8 & 255}, {color & 255})"
    return f"{counts.max() / len(pixels):.0%} of it is exactly one colour {shown}: lost, or painted"


def _sample(rgb: np.ndarray, count: int = _SAMPLES) -> NDArray[np.int64]:
    """Pixels on a grid over the whole picture, `(n, 3)`."""
    step = max(1, int(np.sqrt(rgb.shape[0] * rgb.shape[1] / count)))
    return rgb[::step, ::step].reshape(-1, 3).astype(np.int64)
