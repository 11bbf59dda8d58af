"""PyTorch's old format: read as it lies in the file, and nothing of it is run."""

import os
import pickle
import struct

import numpy as np
import pytest

from bach.core.errors import InputError
from bach.network.torch_file import read_tensors

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def several(*parts):
    return b"(" + b"".join(parts) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name("collections", "OrderedDict") + b")R"


def storage(key="0", count=6, kind="FloatStorage"):
    return (
        several(text("storage"), name("torch", kind), text(key), text("cpu"), number(count), b"N")
        + b"Q"
    )


def tensor(place, shape=(2, 3), strides=(3, 1), offset=0, call=("torch._utils", None)):
    arguments = (
        place,
        number(offset),
        several(*map(number, shape)),
        several(*map(number, strides)),
        b"\x89",
        ORDERED_DICT,
    )
    return name(call[0], call[1] or "_rebuild_tensor_v2") + several(*arguments) + b"R"


def pickled(program):
    return b"\x80\x02" + program + b"."


def file(state, storages=None, machine=MACHINE, magic=MAGIC):
    """A file of tensors {name: program}, or of any program, and of storages {key: array}."""
    if isinstance(state, dict):
        items = b"".join(text(key) + program for key, program in state.items())
        state = ORDERED_DICT + b"(" + items + b"u"
    storages = {"0": np.arange(6, dtype="<f4")} if storages is None else storages
    heads = [pickle.dumps(value, 2) for value in (magic, PROTOCOL, machine)]
    tails = [struct.pack("<q", len(x)) + x.tobytes() for x in storages.values()]
    return b"".join([*heads, pickled(state), pickle.dumps(list(storages), 2), *tails])


def read(content):
    return read_tensors(content, "weights.pth", "Install it anew.")


def test_tensors_come_with_the_strides_they_were_saved_with():
    found = read(
        file(
            {
                "rows": tensor(storage()),
                "columns": tensor(storage(), (3, 2), (1, 3)),
                "late": tensor(storage(), (2,), (2,), offset=1),
                "steps": tensor(storage("1", 1, "LongStorage"), (), ()),
            },
            {"0": np.arange(6, dtype="<f4"), "1": np.array([7], "<i8")},
        )
    )
    assert found["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["columns"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["late"].tolist() == [1, 3]
    assert found["steps"] == 7
    assert {key: x.dtype for key, x in found.items()} == {
        "rows": "f4",
        "columns": "f4",
        "late": "f4",
        "steps": "i8",
    }
    assert not found["rows"].flags.writeable


def test_attributes_of_the_state_dict_are_passed_over():
    state = ORDERED_DICT + text("a") + tensor(storage()) + b"s" + b"}" + text("x") + b"Nsb"
    assert list(read(file(state))) == ["a"]


HOSTILE = {
    "runs a command": name("os", "system") + several(text("touch ran")) + b"R",
    "runs a command of posix": name("posix", "system") + several(text("touch ran")) + b"R",
    "evaluates": name("builtins", "eval") + several(text("open('ran', 'w')")) + b"R",
    "is of the instance kind": b"(" + text("touch ran") + b"ios\nsystem\n",
    "builds an object": several(name("os", "system"), text("touch ran")) + b"o",
    "takes a global from the stack": text("os") + text("system") + b"\x93",
    "is of another kind of storage": tensor(storage(kind="UntypedStorage")),
    "takes the constructor apart": name("torch._utils", "_rebuild_tensor_v3"),
    "fills a dictionary by its hash": ORDERED_DICT + b")Ns",
    "calls a storage": name("torch", "FloatStorage") + b")R",
    "calls a number": number(3) + b")R",
    "takes from an empty stack": b"\x87",
    "appends to a dictionary": ORDERED_DICT + b"(" + text("a") + b"e",
    "remembers what is not there": b"h\x09",
    "leaves two things": ORDERED_DICT + ORDERED_DICT,
    "claims a long text": b"X\xff\xff\xff\x7fabc",
    "claims a number of a gigabyte": b"\x8b\xff\xff\xff\x3f",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_a_state_dict_that_does_anything_but_hold_tensors_is_refused(
    program, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"weights\.pth must hold tensors"):
        read(file(program, {}))
    assert not os.listdir(tmp_path)


def test_what_a_file_asks_for_is_named():
    with pytest.raises(InputError, match="a file that asks for os system"):
        read(file(HOSTILE["runs a command"], {}))


def test_a_head_that_runs_something_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="asks for os system"):
        read(pickled(HOSTILE["runs a command"]))
    assert not os.listdir(tmp_path)


WRONG = {
    "reaches beyond its storage": {"shape": (2, 4), "strides": (4, 1)},
    "begins beyond its storage": {"offset": 7, "shape": (1,), "strides": (1,)},
    "has strides beyond its storage": {"strides": (4, 1)},
    "repeats one number": {"shape": (2**30,), "strides": (0,)},
    "repeats one number often": {"shape": (2**16, 2**16, 2**16), "strides": (0, 0, 0)},
    "has overlapping rows": {"shape": (3, 3), "strides": (1, 1)},
    "has a negative side": {"shape": (-2, 3)},
    "has a negative stride": {"strides": (-3, 1)},
    "has a negative offset": {"offset": -1},
    "has no elements": {"shape": (0, 3)},
    "has too few strides": {"strides": (1,)},
    "has too many axes": {"shape": (1,) * 40, "strides": (1,) * 40},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(changed):
    with pytest.raises(InputError, match=r"weights\.pth must hold tensors"):
        read(file({"a": tensor(storage(), **changed)}))


NUMBERS = np.arange(6, dtype="<f4")
STORAGES = {
    "another number of elements than it says": ({"a": tensor(storage(count=5), (5,), (1,))}, None),
    "more elements than the file has": ({"a": tensor(storage(count=2**31 - 1))}, None),
    "a negative number of elements": ({"a": tensor(storage(count=-6))}, None),
    "a storage that is not there": ({"a": tensor(storage("1"))}, None),
    "a storage of no tensor": ({"a": tensor(storage())}, {"0": NUMBERS, "1": NUMBERS}),
    "no storage": ({"a": tensor(storage())}, {}),
    "a storage of two kinds": (
        {"a": tensor(storage()), "b": tensor(storage(kind="LongStorage"))},
        None,
    ),
}


@pytest.mark.parametrize(("state", "storages"), STORAGES.values(), ids=STORAGES)
def test_storages_that_are_not_those_of_the_tensors_are_refused(state, storages):
    with pytest.raises(InputError, match=r"weights\.pth must hold tensors"):
        read(file(state, storages))


def test_a_value_that_is_no_tensor_is_refused():
    with pytest.raises(InputError, match="a, which is no tensor"):
        read(file({"a": number(3)}, {}))


def test_other_kinds_of_files_are_refused():
    good = {"a": tensor(storage())}
    with pytest.raises(InputError, match="another kind of file"):
        read(file(good, magic=3))
    with pytest.raises(InputError, match="byte order"):
        read(file(good, machine={"little_endian": False}))
    with pytest.raises(InputError, match="after the last storage"):
        read(file(good) + b"\0")
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY", b"\0" * 100):
        with pytest.raises(InputError, match=r"weights\.pth must hold tensors"):
            read(content)


def test_nested_parts_without_end_are_refused_in_no_time():
    """Each part holds the one before twice: its hash would take for ever."""
    doubled = b")" + b"q\x00h\x00\x86" * 200
    with pytest.raises(InputError, match=r"weights\.pth must hold tensors"):
        read(file(ORDERED_DICT + doubled + b"Ns", {}))
    with pytest.raises(InputError, match="operations"):
        read(file(b")" * 300_000, {}))


def test_every_cut_and_every_changed_byte_gives_tensors_or_an_error_that_names_the_file():
    content = file({"a": tensor(storage()), "b": tensor(storage(), (3, 2), (1, 3))})
    for end in range(len(content)):
        with pytest.raises(InputError, match=r"weights\.pth"):
            read(content[:end])
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            found = read(bytes(damaged))
            assert all(x.size <= 6 for x in found.values())
            assert all(np.isfinite(x.sum()) or x.dtype == "f4" for x in found.values())
        except InputError as error:
            refused += "weights.pth" in str(error)
    assert refused > 1000
