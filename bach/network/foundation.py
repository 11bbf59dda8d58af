"""Foundation models as backbones: Vision Transformers that were trained on unlabelled pictures.

DINOv2, with registers and SwiGLU too, and ViT, from a checkpoint in the format of Hugging Face.
KerasHub (extra `foundation`) has the layers and knows how the weights are called. It can load
such a checkpoint by itself (`from_preset`), which is not used here for three reasons: it resizes
position embeddings with another kernel than the authors (features of the small checkpoints in the
tests are then off by up to 0.16 of their spread, 2e-6 with ours); its ViT takes one size only; and
it finds the weights of ViT in classifiers only.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from typing import Any

import keras
from keras import layers

from bach.core.errors import InputError
from bach.core.inputs import understood
from bach.core.log import log
from bach.network.checkpoints import HUB, Checkpoint, Reader, is_checkpoint, open_checkpoint
from bach.network.quiet import without_notices

# KerasHub's networks that a backbone can be; others it could build are not asked for.
CLASSES = ("DINOV2Backbone", "ViTBackbone")

LORA_RANK = 8


def is_foundation(backbone: str) -> bool:
    """Whether a backbone is a foundation model: `hf://OWNER/NAME`, or a path with a slash."""
    return is_checkpoint(backbone)


def check_foundation(backbone: str) -> None:
    """Refuse a foundation model that cannot be had, is damaged, or is of another kind.

    What is missing of one of the Hub is downloaded, so that this happens before the slow work.

    Raises:
        InputError: If so.
    """
    require_hub(f"--backbone={backbone}")
    open_checkpoint(backbone)


def require_hub(received: str) -> None:
    """Load KerasHub, or refuse to go on without it.

    Args:
        received: What needs it.

    Raises:
        InputError: If it is not installed.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise InputError(
            "Foundation models need KerasHub.\n"
            f"Received: {received}, without the package keras_hub.\n"
            'Install it: pip install "keras-hub==0.32.*"'
        )
    with without_notices():  # it loads TensorFlow, whatever the backend
        import keras_hub  # noqa: F401


def name_of(backbone: str) -> str:
    """Name of a backbone's network; Keras allows no slashes in one."""
    last = backbone.removeprefix(HUB).rstrip("/\\").replace("\\", "/").split("/")[-1]
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_") or "foundation"


def features(
    inputs: keras.KerasTensor, backbone: str, weights: str, tokens: str, prefix: str = ""
) -> keras.KerasTensor:
    """What a foundation model says of pictures, as a feature map of one cell.

    The picture is cut to a multiple of the model's patch size, evenly on all sides (299 px to 294
    or 288), rather than resized: its scale stays 2.1 um per px. The network is frozen.

    Args:
        inputs: Pictures, RGB 0..255, `(batch, side, side, 3)`.
        backbone: `hf://OWNER/NAME`, or the path of a folder.
        weights: "imagenet" for those of the checkpoint; for anything else they are random,
            to be replaced.
        tokens: "class" token, "mean" of the patch tokens, or "both" joined.
        prefix: Begins the name of the network.

    Returns:
        `(batch, 1, 1, width)`, of twice the model's width for "both".

    Raises:
        InputError: If the checkpoint cannot be had or used.
    """
    require_hub(f"--backbone={backbone}")
    checkpoint = open_checkpoint(backbone)
    patch, side = checkpoint.patch_size, inputs.shape[1]
    rest = side % patch
    if rest == side:
        raise InputError(
            "The patches of a foundation model must fit into what the network sees.\n"
            f"Received: --backbone={backbone} of patches of {patch} px, pictures of {side} px.\n"
            "Name another model."
        )
    transformer = _transformer(checkpoint, side - rest, weights == "imagenet")
    pictures = keras.Input((side, side, 3), name="pictures")
    cut = (rest // 2, rest - rest // 2)
    x = layers.Cropping2D((cut, cut), name="whole_patches")(pictures)
    scaling = {"scale": list(checkpoint.scale), "offset": list(checkpoint.offset)}
    x = layers.Rescaling(**scaling, name="scaling")(x)
    every = transformer({"images": x} if isinstance(transformer.input, dict) else x)
    network = keras.Model(
        pictures,
        _joined(every, 1 + checkpoint.registers, tokens),
        name=prefix + name_of(backbone),
    )
    network.trainable = False
    return network(inputs)


def _joined(every: keras.KerasTensor, first: int, tokens: str) -> keras.KerasTensor:
    """Class token, mean of the tokens from `first` on, or both, as `(batch, 1, 1, width)`."""
    parts = []
    if tokens in ("class", "both"):
        x = layers.Cropping1D((0, every.shape[1] - 1), name="class_token")(every)
        parts.append(layers.Flatten(name="class_features")(x))
    if tokens in ("mean", "both"):
        x = layers.Cropping1D((first, 0), name="patch_tokens")(every)
        parts.append(layers.GlobalAveragePooling1D(name="mean_features")(x))
    x = layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]
    return layers.Reshape((1, 1, x.shape[-1]), name="cell")(x)


def _transformer(checkpoint: Checkpoint, side: int, load: bool) -> Any:
    """KerasHub's network of a checkpoint, for pictures of `side` px."""
    import keras_hub

    converter = _converter(checkpoint.config["model_type"])
    path = checkpoint.folder / "config.json"
    with understood(path, "describe a network that KerasHub can build", "Name another model."):
        settings = converter.convert_backbone_config(checkpoint.config)
        settings["image_shape"] = (side, side, 3)
        if "position_embedding_shape" in settings:
            # The positions are resized when they are read. KerasHub would do it anew each time a
            # model is loaded, and forgets what was trained of them when it is saved.
            settings["position_embedding_shape"] = (side, side)
            # Where it should drop a path, KerasHub scales it by a random number.
            settings["drop_path_rate"] = 0.0
        else:
            settings["layer_norm_epsilon"] = checkpoint.config.get("layer_norm_eps", 1e-12)
        network = getattr(keras_hub.models, converter.backbone_cls.__name__)(**settings)
    if load:
        reader = Reader(checkpoint, side // checkpoint.patch_size)
        converter.convert_weights(network, reader, checkpoint.config)
        reader.check_complete()
        log.info("weights: %s of %s", f"{network.count_params():,}", checkpoint.folder)
    return network


def _converter(kind: str) -> Any:
    """KerasHub's module that knows how a kind of checkpoint calls its weights."""
    # Not among its public names: the extra is pinned to a minor version.
    from keras_hub.src.utils.transformers import convert_dinov2, convert_vit

    return convert_vit if kind == "vit" else convert_dinov2


def transformer_of(model: keras.Model) -> Any | None:
    """KerasHub's network within a model, or None where there is none."""
    return next(transformers_of(model), None)


def transformers_of(model: keras.Model) -> Iterator[Any]:
    """All of KerasHub's networks within a model: two of one of two magnifications."""
    for layer in model.layers:
        if is_transformer(layer):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from transformers_of(layer)


def is_transformer(layer: object) -> bool:
    """Whether a layer is one of KerasHub's networks."""
    kind = type(layer)
    return kind.__name__ in CLASSES and kind.__module__.split(".")[0] == "keras_hub"


def refuse_regions(model: keras.Model, source: str) -> None:
    """Refuse to run a foundation model over more than a patch.

    All its tokens see all others: those of a region are not those of its patches.

    Raises:
        InputError: If the model is one.
    """
    if transformer_of(model) is not None:
        raise InputError(
            "A foundation model judges patch by patch, for each of its tokens sees all of them.\n"
            f"Received: {source}.\nUse --mode patches, without --margin and --image-network."
        )


def frozen_by_default(backbone: str) -> bool:
    """Whether only the top of a backbone is trained unless something else is asked for."""
    return is_foundation(backbone)


def unfreeze(model: keras.Model) -> None:
    """Make the foundation models within a model trainable, but for their embeddings.

    KerasHub loses what is trained of DINOv2's position embeddings unless their sum has fallen:
    it compares sums to see whether there is something to save.
    """
    for network in _networks(model):
        network.trainable = True
        for transformer in transformers_of(network):
            for layer in transformer.layers:
                if "embedding" in layer.name:
                    layer.trainable = False


def enable_lora(model: keras.Model, rank: int = LORA_RANK) -> int:
    """Make of the transformers within a model only small additions to their attention trainable.

    Each matrix of a query or value gets the product of two thin ones beside it; a saved model
    holds their sum. The layers after the transformers stay as trainable as they are.

    Args:
        model: A model of `bach.network.patch_network.build_model`; changed in place, and to be
            compiled afterwards.
        rank: Columns of the thin matrices.

    Returns:
        How many numbers of the transformers are trained.

    Raises:
        InputError: If the model has no layers that this can be done to.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """
    found = [(network, part) for network in _networks(model) for part in transformers_of(network)]
    if not found:
        raise InputError(
            "LoRA needs a backbone with attention.\n"
            f"Received: {model.name}.\nUse --train top or all, or a foundation model."
        )
    count = 0
    for network, transformer in found:
        # First the outer one, which passes it on to all within.
        network.trainable = True
        transformer.enable_lora(rank)
        count += sum(math.prod(variable.shape) for variable in transformer.trainable_variables)
    return count


def _networks(model: keras.Model) -> Iterator[keras.Model]:
    """The nested models of a model that have a transformer in them."""
    for layer in model.layers:
        if isinstance(layer, keras.Model) and transformer_of(layer) is not None:
            yield layer


def copied(transformer: Any, dtype: str) -> Any:
    """A copy of one of KerasHub's networks that computes in another precision.

    What LoRA has added to a matrix is part of the matrix in the copy.
    """
    config = {**transformer.get_config(), "dtype": dtype}
    clone = type(transformer).from_config(config)
    # Not by `get_weights`, of which there are more where LoRA was added.
    pairs = (network._flatten_layers(include_self=False) for network in (transformer, clone))
    for source, target in zip(*pairs, strict=True):
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        target.load_own_variables(store)
    return clone
