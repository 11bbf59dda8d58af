"""Checkpoints in the format of Hugging Face: found, downloaded, checked, read.

A checkpoint is a folder with `config.json` (the architecture), `preprocessor_config.json` (how
pictures are scaled) and `model.safetensors` (the weights; of a large model in several files with
`model.safetensors.index.json`). None of them holds code, and none of it is run.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bach.core.errors import InputError
from bach.core.files import read_json
from bach.core.inputs import GB, MB, open_input, reason
from bach.core.log import log

HUB = "hf://"

# What KerasHub builds and what has been compared with the transformers library.
ARCHITECTURES = ("dinov2", "dinov2_with_registers", "vit")

POSITIONS = "embeddings.position_embeddings"

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PATTERNS = (_CONFIG, _PREPROCESSOR, _INDEX, "model*.safetensors")

_LARGEST = 64 * GB
_LONGEST_HEADER = 100 * MB  # the format's own limit
_REMEDY = "Download the checkpoint again, or name another one."

# Numbers that the networks are built from; each must be a whole number from 1 to this.
_SIZES = {
    "hidden_size": 16384,
    "num_hidden_layers": 512,
    "num_attention_heads": 512,
    "image_size": 8192,
    "patch_size": 256,
}

# Scaling of models that state it only in the text of their page: mean and standard deviation.
_CARDS = {f"{HUB}kaiko-ai/midnight": (0.5, 0.5)}

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


Triple = tuple[float, float, float]


class Tensor(NamedTuple):
    """Where the numbers of a tensor lie.

    Attributes:
        file: The file.
        dtype: Their format, a key of `_DTYPES`.
        shape: Their shape.
        start, end: First byte and the one after the last, in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can become a backbone.

    Attributes:
        folder: Where its files are.
        config: Content of its `config.json`.
        scale, offset: What makes of a channel 0..255 the network's input, `x * scale + offset`.
        tensors: Its weights by name, without the prefix that some checkpoints have.
    """

    folder: Path
    config: dict[str, Any]
    scale: Triple
    offset: Triple
    tensors: dict[str, Tensor]

    @property
    def patch_size(self) -> int:
        """Side of the squares that become tokens, in network px."""
        return int(self.config["patch_size"])

    @property
    def registers(self) -> int:
        """Tokens that stand for no place, beside the class token."""
        return int(self.config.get("num_register_tokens", 0))

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, float32.

        Raises:
            InputError: If there is none of that name.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise InputError(
                f"The checkpoint must hold {name}.\nReceived: {self.folder} without it.\n{_REMEDY}"
            )
        count = math.prod(tensor.shape)
        with open_input(tensor.file, "hold the weights of the checkpoint", _REMEDY) as stream:
            stream.seek(tensor.start)
            content = stream.read(tensor.end - tensor.start)
            numbers = np.frombuffer(content, _DTYPES[tensor.dtype], count)
        if tensor.dtype == "BF16":  # the upper half of a float32
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32, copy=False).reshape(tensor.shape)


def is_checkpoint(backbone: str) -> bool:
    """Whether a backbone is a checkpoint: `hf://OWNER/NAME`, or a path with a slash."""
    return "/" in backbone or os.sep in backbone


def open_checkpoint(backbone: str) -> Checkpoint:
    """Find a checkpoint, download what is missing of it, and check that it can be a backbone.

    Args:
        backbone: `hf://OWNER/NAME`, or the path of a folder.

    Raises:
        InputError: If it cannot be had, is none, or is of an architecture that is not known.
    """
    folder = _download(backbone) if backbone.startswith(HUB) else Path(backbone)
    if not (folder / _CONFIG).is_file():
        raise InputError(
            f"A backbone with a slash in its name must be a folder with {_CONFIG}, "
            f"{_PREPROCESSOR} and {_WEIGHTS}, or {HUB}OWNER/NAME.\n"
            f"Received: --backbone={backbone}, {_found(folder)}.\nCheck the name."
        )
    config = _read_config(folder / _CONFIG)
    scale, offset = _read_scaling(folder / _PREPROCESSOR, backbone)
    return Checkpoint(folder, config, scale, offset, _without_prefix(_tensors(folder), folder))


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return "which is no folder"
    names = sorted(os.listdir(folder))
    return f"a folder of {', '.join(names[:3])}{' ...' if names[3:] else ''}" if names else "empty"


def _download(backbone: str) -> Path:
    """The folder of a checkpoint of the Hub, downloaded unless it was before."""
    # A dependency of KerasHub; it resumes, checks, and works from its cache without network.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    name = backbone.removeprefix(HUB)
    log.info("checkpoint: %s", backbone)
    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except GatedRepoError as error:
        must, remedy = (
            "be one that you have access to: it is gated",
            (
                "Accept its terms on its page at huggingface.co, log in with `hf auth login` or "
                "set HF_TOKEN, and start again."
            ),
        )
        raise _not_had(backbone, must, error, remedy) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        must, remedy = (
            f"exist as {HUB}OWNER/NAME",
            ("Check the name; if the model is private, log in with `hf auth login`."),
        )
        raise _not_had(backbone, must, error, remedy) from error
    except LocalEntryNotFoundError as error:
        must, remedy = (
            "be downloaded once, which needs the network",
            ("Connect to it; or download the checkpoint elsewhere and name its folder."),
        )
        raise _not_had(backbone, must, error.__cause__ or error, remedy) from error
    except Exception as error:  # of its HTTP client, of its transfer, of the disk
        must, remedy = "be downloaded completely", "Start again; what is there is kept."
        raise _not_had(backbone, must, error, remedy) from error


def _not_had(backbone: str, must: str, error: BaseException, remedy: str) -> InputError:
    why = reason(error) if isinstance(error, Exception) else str(error)
    return InputError(
        f"The model must {must}.\nReceived: --backbone={backbone} ({why:.160}).\n{remedy}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, _REMEDY)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ARCHITECTURES:
        other = config.get("architecture", kind) if isinstance(config, dict) else config
        raise InputError(
            f"The checkpoint must be of a known architecture: {', '.join(ARCHITECTURES)}.\n"
            f"Received: {path} of {other!r:.80}.\n"
            "Name another model; those of timm and those with code of their own are not read."
        )
    for name, most in _SIZES.items():
        value = config.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"{path} must give {name}, a whole number from 1 to {most}.\n"
                f"Received: {value!r:.80}.\n{_REMEDY}"
            )
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu" or config["hidden_size"] % config["num_attention_heads"]:
        raise InputError(
            f"{path} must be of a network with gelu and a width that its heads divide.\n"
            f"Received: {activation!r:.40}, width {config['hidden_size']}, "
            f"{config['num_attention_heads']} heads.\nName another model."
        )
    return config


def _read_scaling(path: Path, backbone: str) -> tuple[Triple, Triple]:
    """Factor and offset of each channel, from what the checkpoint's preprocessor is told."""
    if not path.is_file() and backbone in _CARDS:
        settings: Any = dict(zip(("image_mean", "image_std"), _CARDS[backbone], strict=True))
    else:
        settings = read_json(
            path,
            "Without it nobody knows how the network's input is scaled: download it, or write "
            '{"image_mean": [...], "image_std": [...]} from the page of the model.',
        )
    try:
        rescale = float(settings.get("rescale_factor", 1 / 255))
        rescale = rescale if settings.get("do_rescale", True) else 1.0
        mean, std = np.zeros(3), np.ones(3)
        if settings.get("do_normalize", True):
            mean = np.broadcast_to(np.array(settings["image_mean"], np.float64), 3)
            std = np.broadcast_to(np.array(settings["image_std"], np.float64), 3)
        scale, offset = rescale / std, -mean / std
        if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale > 0).all()):
            raise ValueError("numbers that scale nothing")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must give image_mean and image_std, three numbers each.\n"
            f"Received: {settings!r:.120} ({type(error).__name__}).\n{_REMEDY}"
        ) from error
    return _triple(scale), _triple(offset)


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, from the directories of its files."""
    files = [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX, _REMEDY)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in names.values()
        ):
            raise InputError(
                f"{folder / _INDEX} must name the files of the weights, beside it.\n"
                f"Received: {names!r:.120}.\n{_REMEDY}"
            )
        files = [folder / name for name in sorted(set(names.values()))]
    found: dict[str, Tensor] = {}
    for file in files:
        with open_input(file, "be a safetensors file", _REMEDY, _LARGEST) as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = os.fstat(stream.fileno()).st_size
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                found[name] = _tensor(file, name, entry, 8 + length, size)
    return found


def _tensor(file: Path, name: str, entry: dict[str, Any], base: int, size: int) -> Tensor:
    """An entry of a file's directory.

    Raises:
        ValueError: If it lies outside the file or is not of the size of its shape; or whatever
            else is wrong with it.
    """
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        if entry["dtype"].startswith("F"):
            raise ValueError(f"{name} in {entry['dtype']}, which is not read")
        return Tensor(file, entry["dtype"], shape, 0, 0)  # a table of indices and the like
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name} at {entry['data_offsets']!r:.80}")
    if end - start != math.prod(shape) * np.dtype(_DTYPES[entry["dtype"]]).itemsize:
        raise ValueError(f"{name} of {end - start:,} bytes and shape {shape}")
    if base + end > size:
        raise ValueError(f"{name} beyond the end of the file, which is cut short")
    return Tensor(file, entry["dtype"], shape, base + start, base + end)


def _without_prefix(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors by the names that they have in a bare backbone."""
    last = "embeddings.cls_token"
    prefixes = {name.removesuffix(last) for name in tensors if name.endswith(last)}
    if len(prefixes) != 1:
        raise InputError(
            f"The checkpoint must hold one {last}.\n"
            f"Received: {folder} with {len(prefixes)} among {len(tensors)} tensors.\n{_REMEDY}"
        )
    prefix = prefixes.pop()
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


class Reader:
    """What KerasHub's converters ask for weights.

    Args:
        checkpoint: The checkpoint.
        grid: Tokens along the side of the network's input, which the positions are resized to.
    """

    def __init__(self, checkpoint: Checkpoint, grid: int):
        self._checkpoint, self._grid = checkpoint, grid
        self._read: set[str] = set()

    def port_weight(
        self, keras_variable: Any, hf_weight_key: str, hook_fn: Callable | None = None
    ) -> None:
        """Give a variable its numbers; the names are those of KerasHub's own reader.

        Raises:
            InputError: If the checkpoint does not hold them, or others.
        """
        # The converter of ViT asks for the names in a classifier, which `_without_prefix` cut.
        name = hf_weight_key.removeprefix("vit.")
        value = self._checkpoint.read(name)
        self._read.add(name)
        with self._fits(name, value):
            if name == POSITIONS:
                antialias = self._checkpoint.config["model_type"] == "dinov2_with_registers"
                value = resize_positions(value, self._grid, antialias)
            if hook_fn is not None:
                value = hook_fn(value, list(keras_variable.shape))
            if tuple(value.shape) != tuple(keras_variable.shape):
                raise ValueError(f"for {tuple(keras_variable.shape)}")
            if not np.isfinite(value).all():
                raise ValueError("with numbers that are not finite")
        keras_variable.assign(value)

    def check_complete(self) -> None:
        """Refuse a checkpoint of which layers were left over: its network is a larger one.

        Raises:
            InputError: If there are.
        """
        names = (name for name in self._checkpoint.tensors if name.startswith("encoder."))
        left = sorted(set(names) - self._read)
        if left:
            raise InputError(
                f"{_CONFIG} must describe the network that the weights are of.\n"
                f"Received: {self._checkpoint.folder}, of which {len(left)} tensors have no place, "
                f"{left[0]} first.\n{_REMEDY}"
            )

    @contextlib.contextmanager
    def _fits(self, name: str, value: np.ndarray) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise InputError(
                f"The weights must be those of the network that {_CONFIG} describes.\n"
                f"Received: {self._checkpoint.folder} with {name} of shape {value.shape} "
                f"({reason(error)}).\n{_REMEDY}"
            ) from error


def resize_positions(positions: np.ndarray, grid: int, antialias: bool) -> np.ndarray:
    """Position embeddings of a square grid of tokens, for a grid of another size.

    Bicubic, as torch does it and therefore the networks' own authors; Keras's backends have each
    another kernel, so that one model would be two functions.

    Args:
        positions: float32 `(1, 1 + n * n, width)`; the first belongs to the class token.
        grid: Side of the new grid.
        antialias: Take the mean over what is skipped when the grid gets smaller.

    Returns:
        float32 `(1, 1 + grid * grid, width)`.

    Raises:
        ValueError: If they are not of a square.

    Source: Keys 1981, doi:10.1109/TASSP.1981.1163711, with a = -0.75, and a = -0.5 where torch
    antialiases.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if positions.ndim != 3 or side * side != positions.shape[1] - 1:
        raise ValueError("which is no square of tokens and a class token")
    if side == grid:
        return positions
    weights = _cubic_weights(side, grid, antialias)
    tokens = positions[0, 1:].reshape(side, side, -1).astype(np.float64)
    tokens = np.einsum("ir,jc,rcd->ijd", weights, weights, tokens, optimize=True)
    tokens = tokens.reshape(grid * grid, -1).astype(np.float32)
    return np.concatenate([positions[0, :1], tokens])[None]


def _cubic_weights(source: int, target: int, antialias: bool) -> np.ndarray:
    """What each of `source` numbers in a row adds to each of `target`: `(target, source)`."""
    scale = source / target
    stretch, a = (max(scale, 1.0), -0.5) if antialias else (1.0, -0.75)
    weights = np.zeros((target, source))
    for row, centre in enumerate((np.arange(target) + 0.5) * scale - 0.5):
        reach = np.arange(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1)
        x = np.abs(reach - centre) / stretch
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        values = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        if antialias:  # beyond the border there is nothing; otherwise the border goes on
            values = np.where((reach >= 0) & (reach < source), values, 0.0)
            values /= values.sum()
        np.add.at(weights[row], np.clip(reach, 0, source - 1), values)
    return weights
