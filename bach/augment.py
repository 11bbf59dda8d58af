"""Random changes of training patches: exact orientations and HSV shifts.

The parameters are drawn from a seed, and the random stream needs no state: it is
the same on any backend, on any number of devices, and after a resume.

Made on the host, in the threads that read patches ahead: on a CPU, the same
arithmetic in a TensorFlow graph took longer than a training step of the small backbone.
"""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes made to training patches.

    All eight orientations of the square are exact and equally likely. Kwok 2018
    says "random HSV shifts" without numbers; the defaults are those of Liu et al.
    2017 (hue 0.04, saturation 0.25, brightness 64/255).

    Attributes:
        hue: Largest shift of the hue, in turns of the colour circle.
        saturation: Largest relative change of the saturation.
        value: Largest relative change of the value (brightness).
    """

    hue: float = 0.04
    saturation: float = 0.25
    value: float = 0.25

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw parameters for `count` patches.

        Returns:
            float32 array `(count, 6)`: transpose, flip left-right, flip up-down
            (0 or 1), hue shift (turns), saturation factor, value factor.
        """
        flips = rng.integers(0, 2, (count, 3))
        ranges = np.array([self.hue, self.saturation, self.value])
        shifts = rng.uniform(-1, 1, (count, 3)) * ranges + [0, 1, 1]
        return np.concatenate([flips, shifts], axis=1).astype(np.float32)


def change(patch: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Turn and recolour a patch.

    Saturation and value are scaled, not shifted: a shift would paint glass, whose
    hue is noise, in colour.

    Args:
        patch: uint8 `(side, side, 3)`, RGB.
        parameters: One row of `Augmentation.draw`.

    Returns:
        uint8 `(side, side, 3)`.
    """
    if parameters[0]:
        patch = cv2.transpose(patch)
    if parameters[1]:
        patch = cv2.flip(patch, 1)
    if parameters[2]:
        patch = cv2.flip(patch, 0)
    hue, saturation, value = (float(x) for x in parameters[3:])
    if (hue, saturation, value) == (0, 1, 1):
        return np.ascontiguousarray(patch)
    levels = np.arange(256)
    # One table per channel; hue goes round in 256 steps (the _FULL conversions).
    table = np.stack(
        [
            (levels + round(hue * 256)) % 256,
            np.clip(np.rint(levels * saturation), 0, 255),
            np.clip(np.rint(levels * value), 0, 255),
        ],
        axis=-1,
    ).astype(np.uint8)[None]
    hsv = cv2.LUT(cv2.cvtColor(np.ascontiguousarray(patch), cv2.COLOR_RGB2HSV_FULL), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


ORIENTATIONS = 8


def orientations(images: np.ndarray, all_of_them: bool) -> list[int]:
    """The orientations to average over: one, or all that keep the shape of the images.

    Args:
        images: Array `(n, rows, cols, channels)`.
        all_of_them: Eight for squares, four for what is wider than high.
    """
    if not all_of_them:
        return [0]
    square = images.shape[1] == images.shape[2]
    return [index for index in range(ORIENTATIONS) if square or not index & 1]


def orient(images: np.ndarray, index: int) -> np.ndarray:
    """One of the eight orientations of the square.

    Args:
        images: Array `(n, rows, cols, channels)`.
        index: 0..7; 0 leaves the images as they are, odd ones exchange rows and columns.

    Returns:
        A view.
    """
    if index & 1:
        images = images.swapaxes(1, 2)
    if index & 2:
        images = images[:, :, ::-1]
    return images[:, ::-1] if index & 4 else images


def orient_back(maps: np.ndarray, index: int) -> np.ndarray:
    """Undo `orient`, also on maps `(n, rows, cols, channels)` of other size.

    Example:
        >>> image = np.arange(8).reshape(1, 2, 2, 2)
        >>> all((orient_back(orient(image, i), i) == image).all() for i in range(8))
        True
    """
    if index & 4:
        maps = maps[:, ::-1]
    if index & 2:
        maps = maps[:, :, ::-1]
    return maps.swapaxes(1, 2) if index & 1 else maps
