"""Random changes of training patches: exact orientations and HSV shifts.

The parameters are drawn on the host from a seed, and the random stream needs no state:
it is the same on any backend, on any number of devices, and after a resume. The changes
are made on the device, as the first layer of what is trained; until then patches are
uint8, and the host does no more than copy them from the disk.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from bach.network import backend

PARAMETERS = 6  # of a patch, see `Augmentation.draw`; one more with contrast
ORIENTATIONS = 8  # of a square


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes made to training patches.

    All eight orientations of the square are exact and equally likely.

    Attributes:
        hue: Largest shift of the hue, in turns of the colour circle.
        saturation: Largest relative change of the saturation.
        value: Largest relative change of the value (brightness).
        contrast: Largest relative change of the distance from the mean of the patch.
    """

    # Differs from Kwok 2018: the paper says "random HSV shifts" without numbers. The defaults
    # are those of Liu et al. 2017: hue 0.04, saturation 0.25, brightness 64/255.
    hue: float = 0.04
    saturation: float = 0.25
    value: float = 0.25
    contrast: float = 0.0

    @property
    def parameters(self) -> int:
        """Numbers that are drawn for a patch."""
        return PARAMETERS + (self.contrast > 0)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw parameters for `count` patches.

        Returns:
            float32 array `(count, 6)`: transpose, flip left-right, flip up-down
            (0 or 1), hue shift (turns), saturation factor, value factor; and with contrast
            its factor.
        """
        flips = rng.integers(0, 2, (count, 3))
        ranges = np.array([self.hue, self.saturation, self.value])
        shifts = rng.uniform(-1, 1, (count, 3)) * ranges + [0, 1, 1]
        columns = [flips, shifts]
        if self.contrast > 0:  # drawn last, so that without it all is as it was
            columns.append(rng.uniform(1 - self.contrast, 1 + self.contrast, (count, 1)))
        return np.concatenate(columns, axis=1).astype(np.float32)


class Augment(keras.layers.Layer):
    """Recolours and turns a batch: `(patches, parameters)` to float32 patches, 0..255.

    Compiled by XLA wherever it runs: on a CPU, TensorFlow's separate operations take
    longer than a training step of the small backbone.
    """

    def __init__(self):
        # Of full precision whatever the policy; the network casts.
        super().__init__(name="augment", dtype="float32")
        self._change = backend.fuse(change)

    def compute_output_shape(self, patches_shape, parameters_shape):
        return patches_shape

    def call(self, patches, parameters):
        return self._change(patches, parameters)


def with_augmentation(network: keras.Model, count: int = PARAMETERS) -> keras.Model:
    """The network as it is trained, with `Augment` before it; the weights are the same.

    Args:
        network: Model of float patches in 0..255.
        count: Numbers in a row of `Augmentation.draw`.

    Returns:
        Model from (uint8 patches, rows of `Augmentation.draw`) to the network's output.
    """
    patches = keras.Input(network.input_shape[1:], dtype="uint8", name="patches")
    parameters = keras.Input((count,), name="parameters")
    outputs = network(Augment()(patches, parameters))
    return keras.Model((patches, parameters), outputs, name=f"augmented_{network.name}")


def change(patches, parameters):
    """Recolour and turn a batch of patches.

    Saturation and value are scaled, not shifted: a shift would paint glass, whose
    hue is noise, in colour.

    Args:
        patches: uint8 tensor `(n, rows, cols, 3)`, RGB. Photos that are not square are
            not transposed.
        parameters: float32 tensor `(n, 6)` or `(n, 7)`, see `Augmentation.draw`.

    Returns:
        float32 tensor `(n, rows, cols, 3)`, 0..255.
    """
    hsv = ops.image.rgb_to_hsv(ops.cast(patches, "float32") / 255)
    shifts = ops.reshape(parameters[:, 3:PARAMETERS], (-1, 3, 1, 1))
    hue = hsv[..., 0] + shifts[:, 0]
    saturation = ops.clip(hsv[..., 1] * shifts[:, 1], 0, 1)
    value = ops.clip(hsv[..., 2] * shifts[:, 2], 0, 1)
    hsv = ops.stack([hue - ops.floor(hue), saturation, value], axis=-1)
    patches = 255 * ops.image.hsv_to_rgb(hsv)
    if parameters.shape[-1] > PARAMETERS:
        mean = ops.mean(patches, axis=(1, 2), keepdims=True)  # of each channel
        factor = ops.reshape(parameters[:, PARAMETERS], (-1, 1, 1, 1))
        patches = ops.clip(mean + factor * (patches - mean), 0, 255)
    # Turned after that: XLA on a CPU would recolour a pixel once for every place that it
    # might come from.
    flips = ops.reshape(parameters[:, :3], (-1, 3, 1, 1, 1)) > 0
    if patches.shape[1] == patches.shape[2]:
        patches = ops.where(flips[:, 0], ops.transpose(patches, (0, 2, 1, 3)), patches)
    patches = ops.where(flips[:, 1], ops.flip(patches, axis=2), patches)
    return ops.where(flips[:, 2], ops.flip(patches, axis=1), patches)


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
