"""The image network: a patch network run over a whole photo, with a small top of its own.

The trained patch network is run once over the photo, its top at every feature. The
heatmap that this gives is reduced by 5x5 max pooling, so that a small focus counts, and
judged by a hidden layer with a linear shortcut beside. All of it is then trained end to
end, on whole photos instead of patches.

Source: the entry of Therapixel to the DREAM mammography challenge 2017; the challenge's
paper is Schaffter et al. 2020, doi:10.1001/jamanetworkopen.2020.0265.
"""

import math

import cv2
import keras
import numpy as np
from keras import layers

from bach.core.errors import InputError
from bach.network.fold_norms import resized_clone
from bach.network.patch_network import STRIDES, probabilities, require_layers, view_of
from bach.patches import View
from bach.tasks import task

POOL = 5  # features
HIDDEN = 16

# How sharp the first answer is: logits are GAIN times the mean of the pooled
# probabilities. A mean of 0.7 against 0.1 is then an answer of 0.9.
GAIN = 5.0

_TOP = ("dense", "dropout", "classes")  # layers of a patch network, after its pooling


def build_image_network(patch_network: keras.Model, width: int, height: int) -> keras.Model:
    """Turn a patch classifier into a network of whole photos.

    Before it is trained, its answer is what the strongest cells of the heatmap say in
    the mean: the shortcut starts as that mean, the hidden layer at nothing.

    Args:
        patch_network: A model of `bach.network.patch_network.build_model`, trained; left as it is.
        width, height: Size of the largest photo in px (0.42 um/px).

    Returns:
        Model from float `(batch, rows, cols, 3)` in 0..255, see `photo_input`, to
        `(batch, classes)`.

    Raises:
        InputError: If the patch network sees two magnifications.
    """
    require_layers(patch_network, ("pool", *_TOP))
    window = patch_network.get_layer("pool").input.shape[1]
    view = view_of(patch_network)
    if view.zoom > 1:
        raise InputError(
            "An image network is made from a patch network of one magnification.\n"
            f"Received: {patch_network.name}, with {view.zoom}."
        )

    def side(length: int) -> int:
        # A patch and whole strides more: unpadded networks would drop what is over at
        # one side.
        strides = max(0, math.ceil((length / task().shrink - task().side_px) / STRIDES[0]))
        return task().side_px + strides * STRIDES[0] + 2 * view.margin

    clone = resized_clone(patch_network, side(height), side(width))
    features = clone.get_layer("pool").input
    # The mean over a patch, but for cells at the edge over what of it is in the photo.
    x = layers.AveragePooling2D(window, strides=1, padding="same", name="pool")(features)
    for name in _TOP:
        x = clone.get_layer(name)(x)
    heatmap = probabilities(x, clone.get_layer("classes"))
    x = layers.MaxPooling2D(POOL, padding="same", name="strongest")(heatmap)
    x = layers.Flatten(name="strongest_flat")(x)
    cells = x.shape[-1] // task().count
    hidden = layers.Dense(HIDDEN, activation="relu", dtype="float32", name="hidden")(x)
    logits = layers.Add(dtype="float32", name="logits")(
        [
            layers.Dense(task().count, kernel_initializer="zeros", dtype="float32", name="judge")(
                hidden
            ),
            layers.Dense(task().count, use_bias=False, dtype="float32", name="shortcut")(x),
        ]
    )
    outputs = layers.Softmax(dtype="float32", name="photo")(logits)
    model = keras.Model(clone.input, outputs, name=f"{patch_network.name}_image")
    start = np.tile(np.eye(task().count, dtype=np.float32), (cells, 1)) * GAIN / cells
    model.get_layer("shortcut").set_weights([start])
    return model


def is_image_network(model: keras.Model) -> bool:
    """Whether a model judges whole photos."""
    return any(layer.name == "strongest" for layer in model.layers)


def field_shape(width: int, height: int, view: View) -> tuple[int, int]:
    """Rows and columns of a whole photo as a network of fields takes it, see `photo_input`."""
    rows, cols = (math.ceil(x / task().shrink) + 2 * view.margin for x in (height, width))
    return rows * view.zoom, cols * view.zoom


def photo_input(photo: np.ndarray, shape: tuple[int, int], zoom: int = 1) -> np.ndarray:
    """A whole photo as an image network, or a network of fields, takes it.

    Args:
        photo: uint8 `(height, width, 3)`, 0.42 um/px.
        shape: Rows and columns of the network's input.
        zoom: That of the view.

    Returns:
        uint8 `(*shape, 3)`, shrunk five times, or less by the zoom; each pixel is the mean of
        5x5, or of less. The photo lies in the middle, mirrored beyond its edges.

    Raises:
        InputError: If the photo is larger than the input.
    """
    room = np.array(shape) * task().shrink // zoom
    missing = room - photo.shape[:2]
    if (missing < 0).any():
        raise InputError(
            "An image network takes no photos larger than those it was trained on.\n"
            f"Received: {photo.shape[1]}x{photo.shape[0]} px, at most "
            f"{room[1]}x{room[0]}. Predict it with the patch networks."
        )
    top, left = missing // 2
    bottom, right = missing - missing // 2
    around = cv2.copyMakeBorder(
        photo, int(top), int(bottom), int(left), int(right), cv2.BORDER_REFLECT_101
    )
    return cv2.resize(around, shape[::-1], interpolation=cv2.INTER_AREA)
