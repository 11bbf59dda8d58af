"""Small random checkpoints in the format of Hugging Face, the same from a seed everywhere."""

import json
from pathlib import Path

import numpy as np

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
WIDTH, LAYERS, REGISTERS = 32, 2, 4

# Geometry of checkpoints that exist: DINOv2 (518 px, patches of 14), the same with registers,
# Midnight (224 px, SwiGLU), Phikon-v2 (224 px, patches of 16) and Phikon (ViT).
KINDS = {
    "dinov2": {"model_type": "dinov2", "image_size": 518, "patch_size": 14},
    "registers": {
        "model_type": "dinov2_with_registers",
        "image_size": 518,
        "patch_size": 14,
        "num_register_tokens": REGISTERS,
    },
    "swiglu": {"model_type": "dinov2", "image_size": 224, "patch_size": 14, "use_swiglu_ffn": True},
    "dinov2_16": {"model_type": "dinov2", "image_size": 224, "patch_size": 16},
    "vit": {"model_type": "vit", "image_size": 224, "patch_size": 16},
}
CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
}
SCALING = {
    "swiglu": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "dinov2_16": {**IMAGENET, "rescale_factor": 0.00392156862745098},
}


def config_of(kind: str) -> dict:
    """Content of config.json of a kind."""
    config = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "num_channels": 3,
        **KINDS[kind],
    }
    config["architectures"] = [CLASSES[config["model_type"]]]
    if config["model_type"] == "vit":
        return {**config, "intermediate_size": 2 * WIDTH, "layer_norm_eps": 1e-12}
    dino = {"mlp_ratio": 4, "layerscale_value": 1.0, "drop_path_rate": 0.0, "layer_norm_eps": 1e-6}
    return {"use_swiglu_ffn": False, **config, **dino}


def shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of such a network."""
    width, patch = config["hidden_size"], config["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, (config["image_size"] // patch) ** 2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    vit = config["model_type"] == "vit"
    if not vit:
        shapes["embeddings.mask_token"] = (1, width)
    if "num_register_tokens" in config:
        shapes["embeddings.register_tokens"] = (1, config["num_register_tokens"], width)
    norms = ("layernorm_before", "layernorm_after") if vit else ("norm1", "norm2")
    hidden = config["intermediate_size"] if vit else width * config["mlp_ratio"]
    dense = {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    if vit:
        dense = {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
    elif config["use_swiglu_ffn"]:
        inner = (int(hidden * 2 / 3) + 7) // 8 * 8
        dense = {"mlp.weights_in": (2 * inner, width), "mlp.weights_out": (width, inner)}
    for part in ("query", "key", "value"):
        dense[f"attention.attention.{part}"] = (width, width)
    dense["attention.output.dense"] = (width, width)
    for layer in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{layer}"
        for name, shape in dense.items():
            shapes[f"{base}.{name}.weight"], shapes[f"{base}.{name}.bias"] = shape, shape[:1]
        for name in norms:
            shapes[f"{base}.{name}.weight"] = shapes[f"{base}.{name}.bias"] = (width,)
        if not vit:
            for scale in ("layer_scale1", "layer_scale2"):
                shapes[f"{base}.{scale}.lambda1"] = (width,)
    shapes["layernorm.weight"] = shapes["layernorm.bias"] = (width,)
    if vit:
        shapes["pooler.dense.weight"], shapes["pooler.dense.bias"] = (width, width), (width,)
    return shapes


def weights_of(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, of a size that lets every part of the network show in its output."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes_of(config).items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            around_1 = name.endswith(("norm1.weight", "norm2.weight", "lambda1")) or (
                "layernorm" in name and name.endswith("weight")
            )
            weights[name] = np.float32(0.2) * values + np.float32(around_1)
        elif len(shape) == 4:
            weights[name] = values * np.float32(0.05)
        elif name.startswith("embeddings"):
            weights[name] = values * np.float32(0.5)
        else:
            weights[name] = values * np.float32(1.5 / np.sqrt(shape[-1]))
    return weights


def safetensors(weights: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
    """Weights as a file: length of the header, the header, the numbers."""
    header, blocks, place = {}, [], 0
    for name, values in weights.items():
        block = values.astype("<f4").tobytes()
        if dtype == "BF16":  # cut off, not rounded
            block = (np.frombuffer(block, "<u4") >> 16).astype("<u2").tobytes()
        elif dtype == "F16":
            block = values.astype("<f2").tobytes()
        entry = {"dtype": dtype, "shape": list(values.shape)}
        header[name] = {**entry, "data_offsets": [place, place + len(block)]}
        blocks.append(block)
        place += len(block)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(blocks)


def write_checkpoint(folder: Path, kind: str, prefix: str = "", dtype: str = "F32") -> Path:
    """Write a checkpoint of a kind; the names of its tensors begin with `prefix`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(kind)
    (folder / "config.json").write_text(json.dumps(config))
    scaling = {"do_rescale": True, "do_normalize": True, **SCALING.get(kind, IMAGENET)}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    weights = {prefix + name: values for name, values in weights_of(config).items()}
    (folder / "model.safetensors").write_bytes(safetensors(weights, dtype))
    return folder


def patches(count: int = 2) -> np.ndarray:
    """Random patches as the toolkit's networks take them: float32 `(count, 299, 299, 3)`."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 13, 13, 3), dtype=np.int64).repeat(23, 1).repeat(23, 2)
    fine = rng.integers(-40, 41, (count, 299, 299, 3), dtype=np.int64)
    return np.clip(coarse + fine, 0, 255).astype(np.float32)
