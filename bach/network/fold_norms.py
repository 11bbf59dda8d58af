"""The forward pass as fast as it goes, the function left as it is.

A trained network carries batch normalisation, which at inference is one factor and one
offset per channel: both go into the convolution before it, which saves a pass over every
feature map. The factor of Inception-ResNet's residual branches goes there too. And the
backbone can run in half precision.
"""

from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from bach.network.foundation import copied, is_transformer

# Layers that a factor per channel can go into, and the name of the weights it goes to.
_KERNELS = {
    layers.Conv2D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv2D: "pointwise_kernel",
    layers.Dense: "kernel",
}


def fast_clone(
    model: keras.Model, any_size: bool = False, precision: str = "float32"
) -> keras.Model:
    """Copy a model for inference: normalisation folded in, in the precision asked for.

    Args:
        model: A model of `bach.network.patch_network.build_model`; left as it is.
        any_size: Take input of any size, as far as the layers allow.
        precision: "float32", "mixed_bfloat16" or "mixed_float16", whatever it was trained
            in. Mixed runs the backbone in half precision and what follows it in float32.

    Returns:
        A model of the same layer names, to be used for inference only.
    """
    size = None if any_size else model.input_shape[1:3]
    # Pure half precision: there is nothing to train, so weights in float32 are of no use.
    return _clone(model, size, precision.removeprefix("mixed_"), _top_layers(model))


def resized_clone(model: keras.Model, height: int, width: int) -> keras.Model:
    """Copy a patch classifier for input of another size, to be trained or not.

    Nothing is folded. The copy computes in the precision that is set (Keras's dtype
    policy), whatever the model was trained in; its last layers stay in float32.
    """
    policy = keras.config.dtype_policy().name
    last = frozenset({"classes", "probabilities"})
    return _clone(model, (height, width), policy, last, fold=False)


def _clone(
    model: keras.Model,
    size: tuple | None,
    dtype: str,
    float32: frozenset[str] = frozenset(),
    fold: bool = True,
) -> keras.Model:
    """Copy a model with all its layers in `dtype`, but those named in `float32`."""
    folded = _foldable(model) if fold else {}
    readers = set(folded.values())

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if is_transformer(layer):
            return copied(layer, dtype)
        if isinstance(layer, keras.Sequential):
            # A few layers of ConvNeXt in a row; nothing in them is folded.
            return keras.Sequential([copy(inner) for inner in layer.layers], name=layer.name)
        if isinstance(layer, keras.Model):
            # One that sees only a part of the input, or it shrunk, keeps its size.
            same = layer.input_shape == model.input_shape
            return _clone(layer, size if same else layer.input_shape[1:3], dtype, fold=fold)
        if layer.name in readers:
            kind = layers.Identity if type(layer) is layers.BatchNormalization else layers.Add
            return kind(name=layer.name, dtype=dtype)
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # and not a bare operation
            config["dtype"] = "float32" if layer.name in float32 else dtype
        if layer.name in folded:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    clone = keras.models.clone_model(
        model,
        input_tensors=keras.Input((*(size or (None, None)), 3)),
        clone_function=copy,
        # What stands for a normalisation does not know its arguments (mask).
        call_function=lambda layer, *args, **kwargs: (
            layer(*args) if isinstance(layer, layers.Identity) else layer(*args, **kwargs)
        ),
    )
    _copy_weights(model, clone, folded)
    return clone


def _top_layers(model: keras.Model) -> frozenset[str]:
    """Names of the layers from the pooling on: the top, kept in float32."""
    names = [layer.name for layer in model.layers]
    return frozenset(names[names.index("pool") :]) if "pool" in names else frozenset()


def _copy_weights(model: keras.Model, clone: keras.Model, folded: dict[str, str]) -> None:
    readers = set(folded.values())
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer) or layer.name in readers:
            continue
        if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential):
            continue  # it was given its weights when it was cloned
        target = clone.get_layer(layer.name)
        if layer.name not in folded:
            target.set_weights(layer.get_weights())
            continue
        factor, offset = _factor_and_offset(model.get_layer(folded[layer.name]))
        kernel = next(name for kind, name in _KERNELS.items() if type(layer) is kind)
        values = dict(_named_weights(layer))
        # The channels a depthwise kernel puts out lie along its last two axes.
        shape = (-1,)
        if type(layer) is layers.DepthwiseConv2D and len(factor) > 1:
            shape = values[kernel].shape[-2:]
        values[kernel] = values[kernel] * factor.reshape(shape)
        values["bias"] = np.broadcast_to(values.get("bias", 0) * factor + offset, target.bias.shape)
        for name, _ in _named_weights(target):
            getattr(target, name).assign(values[name])


def _named_weights(layer: keras.layers.Layer) -> Iterator[tuple[str, np.ndarray]]:
    for name in ("kernel", "depthwise_kernel", "pointwise_kernel", "bias"):
        value = getattr(layer, name, None)
        if value is not None:
            yield name, keras.ops.convert_to_numpy(value)


def _factor_and_offset(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """What a foldable layer does to its input, `factor * x + offset`: float32 `(channels,)`."""
    if type(layer) is not layers.BatchNormalization:
        return np.array([layer.scale], np.float32), np.zeros(1, np.float32)
    mean = keras.ops.convert_to_numpy(layer.moving_mean).astype(np.float64)
    factor = 1 / np.sqrt(keras.ops.convert_to_numpy(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        factor = factor * keras.ops.convert_to_numpy(layer.gamma)
    offset = -mean * factor
    if layer.center:
        offset = offset + keras.ops.convert_to_numpy(layer.beta)
    return factor.astype(np.float32), offset.astype(np.float32)


def _foldable(model: keras.Model) -> dict[str, str]:
    """Layers that a factor can go into, with the name of the layer it comes from.

    That layer must be the only one to read them: a batch normalisation, or the sum of
    Inception-ResNet-v2 that scales the second of its inputs.
    """
    readers: dict[str, list[str]] = {}
    inputs: dict[str, list[list[str]]] = {}
    for config in model.get_config()["layers"]:
        for call in config["inbound_nodes"]:
            sources = list(_sources(call))
            inputs.setdefault(config["name"], []).append(sources)
            for source in sources:
                readers.setdefault(source, []).append(config["name"])
    outputs = {tensor._keras_history.operation.name for tensor in model.outputs}
    by_name = {layer.name: layer for layer in model.layers}
    found = {}
    for layer in model.layers:
        following = readers.get(layer.name, [])
        if (
            type(layer) not in _KERNELS
            or layer.activation is not keras.activations.linear
            or layer.name in outputs
            or len(following) != 1
            or len(inputs[following[0]]) != 1
            or following[0] not in by_name  # a bare operation
        ):
            continue
        reader = by_name[following[0]]
        if type(reader) is layers.BatchNormalization:
            fits = reader.axis in (-1, 3)
        else:  # by name, for Keras does not export it
            fits = type(reader).__name__ == "CustomScaleLayer"
            fits = fits and inputs[reader.name][0].index(layer.name) == 1
        if fits:
            found[layer.name] = reader.name
    return found


def _sources(part: object) -> Iterator[str]:
    """Names of the layers that a call in a model's config takes tensors from."""
    if isinstance(part, dict):
        history = part.get("config", {}) if part.get("class_name") == "__keras_tensor__" else {}
        if "keras_history" in history:
            yield history["keras_history"][0]
        else:
            for value in part.values():
                yield from _sources(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _sources(value)
