"""Write foundation.npz: what the transformers library says of the small random checkpoints.

Needs torch and transformers, which nothing else here needs; an environment of their own:

    pip install torch==2.13.0 transformers==5.24.0 pillow
    python tests/golden/foundation.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BitImageProcessorPil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tiny_checkpoints import KINDS, REGISTERS, patches, write_checkpoint  # noqa: E402

SOME = 16  # tokens of the first patch that are kept, evenly over all


def tokens_of(folder: Path, kind: str) -> np.ndarray:
    """Tokens of both patches by the transformers library: `(2, tokens, width)`."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    processor = BitImageProcessorPil.from_pretrained(
        folder, do_resize=False, do_center_crop=False, do_convert_rgb=False
    )
    rest = 299 % KINDS[kind]["patch_size"]
    first = rest // 2
    images = patches().astype(np.uint8)[:, first : first + 299 - rest, first : first + 299 - rest]
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        return model(pixels, **more).last_hidden_state.numpy()


def main() -> None:
    golden = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            tokens = tokens_of(write_checkpoint(Path(folder), kind), kind)
        first = 1 + (REGISTERS if kind == "registers" else 0)
        golden[f"{kind}_class"] = tokens[:, 0]
        golden[f"{kind}_mean"] = tokens[:, first:].mean(axis=1)
        every = np.linspace(0, tokens.shape[1] - 1, SOME).astype(int)
        golden[f"{kind}_some"] = tokens[0, every]
        print(kind, tokens.shape, f"spread {tokens.std():.3f}")
    np.savez(HERE / "foundation.npz", **golden)


if __name__ == "__main__":
    main()
