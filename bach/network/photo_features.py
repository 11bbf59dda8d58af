"""What a network with ImageNet weights says of a photo, for the leak audit."""

import cv2
import keras
import numpy as np

from bach.honest.features import Describer
from bach.network import backend
from bach.network.fold_norms import fast_clone
from bach.network.patch_network import build_model, require_layers
from bach.patches import NETWORK_MPP
from bach.slides import PART_A_MPP


def pooled_features(backbone: str) -> Describer:
    """Describe photos by the pooled features of a network that was not trained on any.

    A photo is shrunk to the scale of the networks (2.1 um/px, 410x307 px) and run through as a
    whole.

    Args:
        backbone: See `bach.network.patch_network.build_model`.

    Raises:
        InputError: If it is unknown, its weights cannot be had, or it takes patches only.
    """
    model = build_model(backbone, "imagenet")
    require_layers(model, ("pool",))
    clone = fast_clone(model, any_size=True)
    network = backend.compiled(keras.Model(clone.input, clone.get_layer("pool").output), "uint8")

    def describe(rgb: np.ndarray) -> dict[str, float]:
        scale = PART_A_MPP / NETWORK_MPP
        size = [max(1, round(side * scale)) for side in rgb.shape[1::-1]]
        values = network(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)[None])[0]
        # As a file has them, for a later call to find the same.
        return {f"feature_{n:04}": float(str(value)) for n, value in enumerate(values)}

    return Describer(backbone, f"v1 {backbone}", describe)
