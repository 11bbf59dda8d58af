"""Tensors from a file of PyTorch's old format, without PyTorch and without unpickling.

    content = read_input(path, MUST, remedy, Limit.TORCH)
    tensors = read_tensors(content, path, remedy)

Such a file (`torch.save` before version 1.6) is five pickles, which are a magic number, the
version of the format, facts of the machine, the state dict and the keys of its storages; then
the storages themselves, each its number of elements and its raw bytes.

A pickle is a program: `pickle.load` runs whatever its author wrote. So the few operations
that such a file needs are carried out here, on names that stand for things; nothing is
imported, nothing is called, and whatever else a file asks for is an error.
"""

import io
import math
import os
import pickletools
from collections.abc import Iterable, Mapping
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from bach.core.inputs import understood

MUST = "hold tensors in PyTorch's old format"

# Source: torch/serialization.py.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

# What the state dict may name: kinds of storages, and what tensors are put together with.
_STORAGES = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}
_ORDERED_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"

_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}

# More than this no network of ours has; nor has a tensor as many axes.
_MAX_OPERATIONS = 200_000
_MAX_AXES = 8


T = TypeVar("T")


class _Name(str):
    """Stands for what a pickle wants to import."""


class _Storage(NamedTuple):
    """A row of numbers in the file that tensors are cut from."""

    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    """A tensor as the state dict describes it, all in elements of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(content: bytes, path: str | os.PathLike, remedy: str) -> dict[str, np.ndarray]:
    """Read all tensors of a state dict.

    Args:
        content: The whole file.
        path: Where it was read, for messages.
        remedy: What to do if it is damaged, a sentence.

    Returns:
        Arrays by name, float32 or int64, as they lie in the file: read-only views into
        `content` with the strides that were saved. None needs memory of its own.

    Raises:
        InputError: If the file is damaged, of another kind, or asks for anything that
            tensors do not need.
    """
    with understood(path, MUST, remedy):
        return _read(content)


def _read(content: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(content)
    _require(_unpickle(stream) == _MAGIC, "another kind of file")
    _require(_unpickle(stream) == _PROTOCOL, "another version of the format")
    machine = _kind(_unpickle(stream), dict)
    _require(machine.get("little_endian") is True, "numbers of another byte order")
    state, keys = _kind(_unpickle(stream), dict), _kind(_unpickle(stream), list)
    storages: dict[str, _Storage] = {}
    for name, tensor in state.items():
        _require(type(tensor) is _Tensor, f"{name}, which is no tensor")
        storage = storages.setdefault(tensor.storage.key, tensor.storage)
        _require(storage == tensor.storage, f"storage {storage.key} described in two ways")
    there = sorted(_kind(key, str) for key in keys)
    _require(there == sorted(storages), "other storages than those of its tensors")
    numbers = _read_storages(content, stream.tell(), [storages[key] for key in keys])
    return {name: _cut(name, tensor, numbers) for name, tensor in state.items()}


def _read_storages(
    content: bytes, place: int, storages: Iterable[_Storage]
) -> dict[str, np.ndarray]:
    """The storages, by key, which fill the rest of the file in this order."""
    numbers = {}
    for key, dtype, length in storages:
        stated = int.from_bytes(content[place : place + 8], "little", signed=True)
        end = place + 8 + length * np.dtype(dtype).itemsize
        _require(end <= len(content), f"{len(content)} bytes, cut short in storage {key}")
        _require(stated == length, f"storage {key} of {stated} elements instead of {length}")
        numbers[key] = np.frombuffer(content, dtype, length, place + 8)
        place = end
    _require(place == len(content), f"{len(content) - place} bytes after the last storage")
    return numbers


def _cut(name: str, tensor: _Tensor, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """The view of its storage that a tensor is."""
    _, offset, shape, strides = tensor
    storage = numbers[tensor.storage.key]
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # As many elements as it says, too: a stride of 0 would make any number of one.
    fits = last < len(storage) and math.prod(shape) <= len(storage) - offset
    _require(fits, f"{name}, which reaches beyond its storage")
    step = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * step for stride in strides], writeable=False
    )


def _unpickle(stream: IO[bytes]) -> object:
    """Carry out the next pickle, as far as it builds what such a file holds.

    Raises:
        ValueError: If it does anything else; IndexError, KeyError and others of a damaged one.
    """
    stack: list = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any  # by operation: a number, a text or none
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        _require(count < _MAX_OPERATIONS, f"more than {_MAX_OPERATIONS} operations")
        match operation.name:
            case "PROTO":
                pass
            case "STOP":
                (value,) = stack
                return value
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" | "NONE":
                stack.append(_CONSTANTS[operation.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(_EMPTY[operation.name]())
            case "GLOBAL":
                known = argument in _STORAGES or argument in (_ORDERED_DICT, _TENSOR)
                _require(known, f"a file that asks for {argument}")
                stack.append(_Name(argument))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(stack) - int(operation.name[-1])
                _require(start >= 0, "an empty stack")
                stack[start:] = [tuple(stack[start:])]
            case "APPEND" | "APPENDS":
                items = since_mark() if operation.name == "APPENDS" else [stack.pop()]
                _kind(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), _kind(stack.pop(), str)
                _kind(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _kind(stack[-1], dict)[_kind(key, str)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, name = stack.pop(), _kind(stack.pop(), _Name)
                stack.append(_built(name, arguments))
            case "BUILD":
                stack.pop()  # attributes of the state dict: versions of layers
                _kind(stack[-1], dict)
            case other:
                raise ValueError(f"a file that asks for the operation {other}")
    raise ValueError("a pickle without end")


def _kind(value: object, kind: type[T]) -> T:
    """The value, which must be of exactly this type."""
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _storage(arguments: object) -> _Storage:
    """What a persistent id describes."""
    kind, name, key, _, count, view = _kind(arguments, tuple)
    _require(kind == "storage" and view is None, "a view of a storage")
    return _Storage(_kind(key, str), _STORAGES[_kind(name, _Name)], _whole(count))


def _built(name: _Name, arguments: object) -> object:
    """What a pickle gets where it would call something."""
    if name == _ORDERED_DICT:
        _require(arguments == (), "an OrderedDict of something")
        return {}
    _require(name == _TENSOR, f"a call of {name}")
    # The last two: whether it needs a gradient, and its hooks.
    storage, offset, shape, strides, _, _ = _kind(arguments, tuple)
    shape, strides = (tuple(map(_whole, _kind(x, tuple))) for x in (shape, strides))
    _require(len(shape) == len(strides) <= _MAX_AXES, "another number of strides than of axes")
    _require(0 not in shape, "a tensor of no elements")
    return _Tensor(_kind(storage, _Storage), _whole(offset), shape, strides)


def _whole(value: object) -> int:
    number = _kind(value, int)
    _require(0 <= number < 2**40, f"{number} elements")
    return number


def _require(holds: bool, received: str) -> None:
    if not holds:
        raise ValueError(received)
