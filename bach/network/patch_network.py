"""The network: a backbone, the winner's top, and how saved models are loaded.

A model takes raw RGB 0..255 (batch, 299, 299, 3) and returns four probabilities
that sum to 1. It is made of Keras's own layers only, so that
`keras.models.load_model(file)` opens it anywhere, without this package. (One on a foundation
model needs KerasHub as well.)
"""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from bach.core.errors import InputError
from bach.core.inputs import understood
from bach.core.log import log
from bach.core.text import listed
from bach.network import foundation, lite0, model_file
from bach.patches import PLAIN_VIEW, View
from bach.tasks import task

# Kwok 2018, section 4.2.
DENSE_UNITS = 2048
DROPOUT = 0.5

# Network px between neighbouring features, as they occur; the first is that of most
# networks of keras.applications.
STRIDES = (32, 16, 64, 8)

_START = ("imagenet", "none")  # what a network may start from that is no file


def build_model(
    backbone: str = "InceptionResNetV2",
    weights: str = "imagenet",
    head: str = "sigmoid",
    view: View = PLAIN_VIEW,
    tokens: str = "both",
    *,
    linear: bool = False,
    fields: bool = False,
) -> keras.Model:
    """Build a patch classifier.

    Args:
        backbone: Name of any network in `keras.applications`; "EfficientNetLite0", whose
            ImageNet weights come from the package index, see `bach.network.lite0`; a
            foundation model, `hf://OWNER/NAME` or a folder with a slash in its path, see
            `bach.network.foundation`; or "small": a network with the same feature geometry
            as Inception-ResNet-v2 (8x8 at stride 32) that trains on a CPU.
        weights: "imagenet" (downloaded by Keras, but for EfficientNetLite0; of a foundation
            model, those of its checkpoint), "none", or a file: a model saved by these
            scripts, or weights of the backbone alone (`.weights.h5`).
        head: "sigmoid" (the paper's: four sigmoids rescaled to sum to 1) or
            "softmax".
        view: What the network sees. The features of a margin are cut off before
            pooling, so that those of the patch have seen tissue where they would have
            seen zeros. With a zoom a second network of the same kind sees the middle
            of the patch enlarged; what both have pooled is joined.
        tokens: What is used of a foundation model, see `foundation.features`.
        linear: Leave out the hidden layer: the last layer, a softmax, sees the pooled features.
            A model file to start from that has no hidden layer decides so itself.
        fields: Take fields of any size, of a patch or a whole photo: what is pooled is all
            there is.

    Returns:
        Model from float `(batch, side, side, 3)` in 0..255, side that of the view or any, to
        `(batch, classes)`.

    Raises:
        InputError: If the backbone is unknown, the weights cannot be had, or the
            margin is no multiple of the network's stride, or there is a zoom as well.

    Source: Kwok 2018, section 4.2.
    """
    if head not in ("sigmoid", "softmax"):
        raise InputError(f"--head must be sigmoid or softmax. Received: --head={head}.")
    check_backbone(backbone, weights)
    _check_margin(backbone, view)
    if fields and foundation.is_foundation(backbone):
        raise InputError(
            "A foundation model sees patches of one size.\n"
            f"Received: --fields, --backbone={backbone}. Leave --fields out."
        )
    start = load_model(weights) if weights.endswith(".keras") else None
    linear = linear or (start is not None and is_linear(start))
    side = None if fields else view.side
    inputs = keras.Input((side, side, 3), name="patch")
    seen = inputs
    if view.zoom > 1:
        seen = layers.AveragePooling2D(view.zoom, name="far")(inputs)
    features = _features(seen, backbone, weights, tokens)
    if view.margin:
        cut = _margin_features(backbone, view)
        features = layers.Cropping2D(cut, name="context")(features)
    x = layers.GlobalAveragePooling2D(name="pool")(features)
    if view.zoom > 1:
        x = layers.Concatenate(name="both")([x, _near_features(inputs, backbone, weights, tokens)])
    if not linear:
        x = layers.Dense(DENSE_UNITS, activation="relu", name="dense")(x)
        x = layers.Dropout(DROPOUT, name="dropout")(x)
    # float32 also under mixed precision. Sigmoids as their logarithms, which never vanish.
    activation = "log_sigmoid" if head == "sigmoid" and not linear else None
    last = layers.Dense(task().count, activation=activation, dtype="float32", name="classes")
    model = keras.Model(inputs, probabilities(last(x), last), name=_name(backbone))
    if start is not None:
        _copy_weights(start, model)
    elif weights not in _START:
        _load_weights(model, weights)
    return model


def check_backbone(backbone: str, weights: str) -> None:
    """Refuse a backbone that is unknown, or has no such weights.

    Args:
        backbone, weights: As in `build_model`; weights may also be a run folder, whose
            models each serve for their own fold.

    Raises:
        InputError: If it does not exist.
    """
    if weights not in _START and not (os.path.isfile(weights) or os.path.isdir(weights)):
        raise InputError(
            "--weights is neither imagenet nor none nor a file.\n"
            f"Received: --weights={weights}.\nCheck the name."
        )
    if weights not in _START and not os.path.isdir(weights):
        check = model_file.check_model if weights.endswith(".keras") else model_file.check_weights
        check(weights)
    if backbone == "small":
        if weights == "imagenet":
            raise InputError(
                "The small backbone has no ImageNet weights.\n"
                "Received: --backbone=small --weights=imagenet.\nAdd --weights none."
            )
    elif backbone == lite0.NAME:
        if weights == "imagenet":
            lite0.find_weights()
    elif foundation.is_foundation(backbone):
        foundation.check_foundation(backbone)
    elif not callable(getattr(keras.applications, backbone, None)):
        names = [name for name in dir(keras.applications) if name[0].isupper()]
        raise InputError(
            f"Unknown backbone.\nReceived: --backbone={backbone}.\n"
            f"Use small, {lite0.NAME}, a checkpoint (hf://OWNER/NAME, or a folder as ./NAME) or "
            f"one of {', '.join(names)}."
        )


def check_view(backbone: str, view: View) -> None:
    """Refuse a view that a network of this backbone cannot have.

    Raises:
        InputError: If the margin is no multiple of the network's stride, or there is a zoom
            as well.
    """
    _check_margin(backbone, view)
    if view.margin:
        _margin_features(backbone, view)


def _check_margin(backbone: str, view: View) -> None:
    if view.margin and foundation.is_foundation(backbone):
        raise InputError(
            "A foundation model sees the patch alone.\n"
            f"Received: --margin={view.margin}, --backbone={backbone}. Leave --margin out."
        )
    if view.zoom > 1 and view.margin:
        raise InputError(
            "A network of two magnifications has no margin.\n"
            f"Received: --magnifications={view.zoom}, --margin={view.margin}. Choose one."
        )
    if view.margin < 0:
        raise InputError(
            "The margin must be a multiple of the network's stride, and not negative.\n"
            f"Received: --margin={view.margin}. Use 0 or more."
        )


def load_model(path: str | os.PathLike) -> keras.Model:
    """Load a saved model.

    Nothing in the file is run, and no more is unpacked than a model can need.

    Returns:
        The model; its attribute `source` is the file, for messages.

    Raises:
        InputError: If the file is missing or damaged, or the model does not take
            pictures to four classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"No model at {path}.\nTrain one first, or name the run folder that holds it."
        )
    model_file.check_model(path)
    with understood(path, model_file.MUST, model_file.REMEDY):
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    shapes = _shapes(model)
    if len(shapes) != 2 or len(shapes[0]) != 4 or shapes[0][-1] != 3 or len(shapes[1]) != 2:
        raise InputError(
            "A model must take pictures of three channels and return class probabilities.\n"
            f"Received: {path} with inputs and outputs of shape {listed(shapes)}.\n"
            "Name a model that these scripts have trained."
        )
    if shapes[1][-1] != task().count:
        raise InputError(
            f"A model must return {task().count} class probabilities.\n"
            f"Received: {path} with output shape {model.output_shape}."
        )
    # One that is a sequence of layers, or was saved with a list of a single input.
    if isinstance(model, keras.Sequential) or isinstance(model.input, list):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    _check_names(model, path)
    _check_finite(model, path)
    model.source = str(path)
    return model


# What TensorFlow takes for the name of a layer.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


def _check_names(model: keras.Model, file: str | os.PathLike) -> None:
    wrong = [layer.name for layer in model._flatten_layers() if not _NAME.fullmatch(layer.name)]
    if wrong:
        raise InputError(
            f"{file} must {model_file.MUST}.\n"
            f"Received: layers whose names cannot be used: {listed(map(repr, wrong))}.\n"
            f"{model_file.REMEDY}"
        )


def _check_finite(model: keras.Model, file: str | os.PathLike) -> None:
    wrong = [x.path for x in model.weights if not np.isfinite(ops.convert_to_numpy(x)).all()]
    if wrong:
        raise InputError(
            f"{file} must hold finite weights.\n"
            f"Received: others in {listed(wrong)}.\nTrain the model again, or copy the file again."
        )


def require_layers(model: keras.Model, names: Iterable[str]) -> None:
    """Refuse a model that is not put together as those of `build_model` are.

    Raises:
        InputError: If a layer of one of the names is missing, or it is a foundation model.
    """
    foundation.refuse_regions(model, source_of(model))
    there = {layer.name for layer in model.layers}
    if missing := [name for name in names if name not in there]:
        raise InputError(
            "A network that is run over more than a patch must have the layers of ours.\n"
            f"Received: {source_of(model)} without {listed(missing)}.\n"
            "Train it with train_part_a.py, or use it patch by patch (--mode patches)."
        )


def source_of(model: object) -> str:
    """The file that a model was loaded from, for messages; else its name."""
    return str(getattr(model, "source", None) or getattr(model, "name", "the model"))


def _shapes(model: object) -> list[tuple]:
    """Shapes of all inputs and outputs of whatever a file held."""
    tensors = [*(getattr(model, "inputs", None) or []), *(getattr(model, "outputs", None) or [])]
    return [tuple(tensor.shape) for tensor in tensors]


def probabilities(outputs: keras.KerasTensor, last: layers.Dense) -> keras.KerasTensor:
    """Outputs of a classifier's last layer, `(..., classes)`, as probabilities that sum to 1.

    Four sigmoids divided by their sum are the softmax of their logarithms, which is exact
    where all sigmoids are too small for float32.

    Source for sigmoids: Kwok 2018, section 4.2.
    """
    if last.activation is keras.activations.softmax:  # not from `build_model`
        return outputs
    if last.activation is keras.activations.sigmoid:  # from one before version 1.1
        outputs = ops.log(outputs)
    return layers.Softmax(dtype="float32", name="probabilities")(outputs)


def with_logits(network: keras.Model) -> keras.Model:
    """The network without the softmax that it ends in, to be trained; the layers are the same.

    The loss of probabilities has no gradient where that of the true class is below 1e-7, and
    none that is a number where all are 0; that of logits always has.
    """
    last = network.layers[-1]
    if isinstance(last, layers.Softmax):
        return keras.Model(network.input, last.input, name=network.name)
    # Not one of ours: Keras's own loss of probabilities, clipped as it clips them.
    logits = ops.log(ops.maximum(network.output, keras.config.epsilon()))
    return keras.Model(network.input, logits, name=network.name)


def view_of(model: keras.Model) -> View:
    """What a patch classifier sees, as its layers state it.

    One that sees surroundings cuts their features off in a layer `context`, one of two
    magnifications shrinks its input in a layer `far`; all others see the patch alone. One of
    fields takes any size.

    Raises:
        InputError: If the model's input is not the one of that view.
    """
    named = {layer.name: layer for layer in model.layers}
    far, context = named.get("far"), named.get("context")
    rows, cols = model.input_shape[1:3]
    zoom = far.pool_size[0] if isinstance(far, layers.AveragePooling2D) else 1
    margin = 0
    if isinstance(context, layers.Cropping2D):
        margin = (rows - task().side_px) // 2 if rows else _cropped_px(model, context)
    view = View(margin, zoom)
    if (rows, cols) not in ((view.side, view.side), (None, None)):
        raise InputError(
            f"A patch classifier must take {task().side_px}x{task().side_px} px, or state by its "
            "layers what more it sees.\n"
            f"Received: {model.name}, which takes {cols}x{rows} px; by its layers it should be "
            f"{view.side}x{view.side}.\nTrain it with train_part_a.py."
        )
    return view


def _cropped_px(model: keras.Model, context: layers.Cropping2D) -> int:
    """How many network px a network of fields cuts off at the top."""
    features = keras.Model(model.input, context.input)
    one, more = (features.compute_output_shape((1, x, x, 3))[1] for x in (512, 1024))
    return context.cropping[0][0] * round(512 / (more - one))


def _margin_features(backbone: str, view: View) -> int:
    """How many features a margin is, on each side."""
    sides = view.side, task().side_px  # those of a patch alone tell how many there must be
    seen, window = (_features(keras.Input((x, x, 3)), backbone, "none").shape[1] for x in sides)
    crop, rest = divmod(seen - window, 2)
    stride = view.margin / crop if crop else 0
    if rest or crop < 1 or stride not in STRIDES:
        raise InputError(
            f"The margin must be a multiple of the network's stride, {STRIDES[0]} px for most.\n"
            f"Received: --margin={view.margin}, --backbone={backbone}."
        )
    return crop


def _name(backbone: str) -> str:
    """Name of a network of a backbone."""
    if foundation.is_foundation(backbone):
        return foundation.name_of(backbone)
    return backbone.lower()


def _near_features(
    inputs: keras.KerasTensor, backbone: str, weights: str, tokens: str
) -> keras.KerasTensor:
    """What a second network says of the middle of the patch, pooled."""
    near = inputs
    if inputs.shape[1] is not None:  # of a field all is seen
        missing = inputs.shape[1] - task().side_px
        around = (missing // 2, missing - missing // 2)
        near = layers.Cropping2D((around, around), name="near")(inputs)
    near = _features(near, backbone, weights, tokens, "near_")
    return layers.GlobalAveragePooling2D(name="near_pool")(near)


def _features(
    inputs: keras.KerasTensor,
    backbone: str,
    weights: str,
    tokens: str = "both",
    prefix: str = "",
) -> keras.KerasTensor:
    """Feature map `(batch, rows, cols, channels)` of a backbone, its layers named after a prefix.

    A kind of backbone is a branch here and one in `check_backbone`.
    """
    if backbone == "small":
        return _small(inputs, prefix)
    if backbone == lite0.NAME:
        network = lite0.build(tuple(inputs.shape[1:]), prefix + lite0.NAME.lower())
        if weights == "imagenet":
            lite0.load_weights(network)
        return network(inputs)
    if foundation.is_foundation(backbone):
        return foundation.features(inputs, backbone, weights, tokens, prefix)
    return _application(inputs, backbone, weights, prefix)


def _application(
    inputs: keras.KerasTensor, backbone: str, weights: str, prefix: str
) -> keras.KerasTensor:
    """A network of `keras.applications`, which is one layer of ours."""
    function = getattr(keras.applications, backbone)
    # Every application module has its own scaling of 0..255 input.
    x = sys.modules[function.__module__].preprocess_input(inputs)
    try:
        network = function(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=tuple(inputs.shape[1:]),
            **({"name": prefix + backbone.lower()} if prefix else {}),
        )
    except Exception as error:
        if weights != "imagenet":
            raise
        # Keras raises plain Exception when a download fails.
        raise InputError(
            f"The ImageNet weights of {backbone} cannot be downloaded ({error}).\n"
            "Check the network, or train from scratch with --weights none."
        ) from error
    return network(x)


def _small(inputs: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    """Four unpadded strided convolutions and a residual one.

    The strided layers are unpadded, as in Inception-ResNet-v2, so that 299 px give
    8x8 features that lie exactly at multiples of 32 px. The first cuts the patch
    into squares of 4 px (8.4 um, a nucleus): convolutions at full resolution are
    what takes the time on a CPU.
    """

    def convolution(x, width: int, size: int, strides: int, padding: str, name: str):
        name = prefix + name
        x = layers.Conv2D(
            width,
            size,
            strides=strides,
            padding=padding,
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
        )(x)
        # Keras's default momentum of 0.99 forgets the first weights only after some
        # hundred steps; small data sets do not have that many in an epoch.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = convolution(x, 32, size=4, strides=4, padding="valid", name="stem")
    x = convolution(x, 48, size=3, strides=2, padding="valid", name="down1")
    x = convolution(x, 96, size=3, strides=2, padding="valid", name="down2")
    branch = convolution(x, 96, size=3, strides=1, padding="same", name="residual")
    x = layers.Add(name=f"{prefix}add")([x, branch])
    return convolution(x, 128, size=3, strides=2, padding="valid", name="down3")


def is_linear(model: keras.Model) -> bool:
    """Whether a classifier has no hidden layer between what is pooled and its answer."""
    return all(layer.name != "dense" for layer in model.layers)


def is_field_network(model: keras.Model) -> bool:
    """Whether a classifier takes fields of any size: it judges photos whole."""
    return model.input_shape[1] is None and not isinstance(model.input, list)


def _copy_weights(start: keras.Model, model: keras.Model) -> None:
    """Start from a saved model of the same network."""
    file, must = source_of(start), f"fit the network {model.name}"
    with understood(file, must, "Use the --backbone that it was trained with."):
        model.set_weights(start.get_weights())
    log.info("weights: all of %s", file)


def _load_weights(model: keras.Model, file: str) -> None:
    """Start from weights of the backbone alone."""
    must, remedy = f"fit the network {model.name}", "Use the --backbone they were trained with."
    model_file.check_weights(file)
    for backbone in [x for x in model.layers if isinstance(x, keras.Model)] or [model]:
        with understood(file, must, remedy):
            backbone.load_weights(file)
    _check_finite(model, file)
    log.info("weights: backbone from %s", file)
