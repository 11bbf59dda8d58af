"""Random changes of training patches, drawn on the host, made on the device.

The host draws a few numbers a patch from a seed, so that the random stream needs no
state: it is the same on any backend, on any number of devices, and after a resume.
"""

import dataclasses

import keras
import numpy as np
from keras import ops


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes made to training patches.

    Flips and quarter turns are always exact and all eight orientations equally
    likely. Kwok 2018 says "random HSV shifts" without numbers; the defaults are
    those of Liu et al. 2017 (hue 0.04, saturation 0.25, brightness 64/255).

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


class Augment(keras.layers.Layer):
    """Applies drawn parameters to a batch of square patches.

    Takes `[patches, parameters]`: uint8 or float `(batch, side, side, 3)` in 0..255
    and the result of `Augmentation.draw`; returns float32 patches in 0..255.
    Belongs to the training step only and is never part of a saved model.
    """

    def call(self, inputs):
        patches, parameters = inputs
        # Turned while still uint8: a quarter of the memory traffic of float32.
        for axis, turned in enumerate(
            (
                lambda x: ops.transpose(x, (0, 2, 1, 3)),
                lambda x: ops.flip(x, axis=2),
                lambda x: ops.flip(x, axis=1),
            )
        ):
            choose = ops.reshape(parameters[:, axis] > 0.5, (-1, 1, 1, 1))
            patches = ops.where(choose, turned(patches), patches)
        hue, saturation, value = (
            ops.reshape(parameters[:, axis], (-1, 1, 1)) for axis in (3, 4, 5)
        )
        return shift_hsv(ops.cast(patches, "float32"), hue, saturation, value)


def shift_hsv(rgb, hue, saturation, value):
    """Shift hue, scale saturation and value.

    Factors, not offsets, for saturation: an offset would paint glass, whose hue is
    noise, in colour.

    Args:
        rgb: float tensor `(batch, height, width, 3)` in 0..255.
        hue: Shift in turns of the colour circle, `(batch, 1, 1)`.
        saturation, value: Factors, `(batch, 1, 1)`; results are clipped to 0..1.

    Returns:
        Tensor like `rgb`.
    """
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    top = ops.maximum(ops.maximum(red, green), blue)
    chroma = top - ops.minimum(ops.minimum(red, green), blue)
    divisor = ops.maximum(chroma, 1e-6)
    sector = ops.where(
        top == red,
        (green - blue) / divisor,
        ops.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sector = sector + 6 * hue
    new_top = ops.clip(top * value, 0, 255)
    new_chroma = new_top * ops.clip(chroma / ops.maximum(top, 1e-6) * saturation, 0, 1)
    channels = []
    for offset in (5, 3, 1):
        k = ops.mod(sector + offset, 6)
        channels.append(new_top - new_chroma * ops.clip(ops.minimum(k, 4 - k), 0, 1))
    return ops.stack(channels, axis=-1)
