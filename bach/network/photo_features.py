"""What a network with ImageNet weights says of a photo, for the leak audit."""

import keras
import numpy as np

from bach.honest.features import Describer
from bach.network import backend
from bach.network.fold_norms import fast_clone
from bach.network.image_network import field_shape, photo_input
from bach.network.patch_network import build_model, require_layers
from bach.patches import PLAIN_VIEW
from bach.tasks import task


def pooled_features(backbone: str) -> Describer:
    """Describe photos by the pooled features of a network that was not trained on any.

    A photo is run through as a whole, as `train_part_a.py --fields` has it.

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
        height, width = rgb.shape[:2]
        field = photo_input(rgb, field_shape(width, height, PLAIN_VIEW))
        values = network(field[None])[0]
        # As a file has them, for a later call to find the same.
        return {f"feature_{n:04}": float(str(value)) for n, value in enumerate(values)}

    # BACH's is the scale that was not said before there were others.
    scale = f" {task().photo_mpp:g}/{task().shrink}" if task().record else ""
    return Describer(backbone, f"v2 {backbone}{scale}", describe)
