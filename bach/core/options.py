"""Options of commands, each defined once.

A group of options is a frozen dataclass whose fields are made by `option`; a script's
options are one that inherits the groups it takes. From this one definition come the
parser and its help (`parse`), what may differ when a run is resumed (`changed`), what
is passed on to another script (`words`), and the table in the documentation (`table`).

    @dataclasses.dataclass(frozen=True)
    class Options(Shared, Devices):
        step_um: float = option(67.2, "side of a cell in um", above=0)
"""

import argparse
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Whole numbers beyond this are a slip of the keyboard, and more than libraries take.
_MOST = 2**31 - 1
MOST_SEED = 2**32 - 1  # what NumPy and the frameworks take


def option(
    default: T,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    metavar: str | tuple[str, ...] | None = None,
    bare: object = None,
    path: bool = False,
    where: bool = False,
    later: bool = False,
    name: str | None = None,
) -> T:
    """Define an option; its type is that of the dataclass field, and so is its name, usually.

    Args:
        default: Its value where nothing is said. A `bool` field is a flag; a tuple
            takes as many values as the default has, or any number where that is empty.
        help: What it does; the default is appended.
        choices: The words that are accepted.
        at_least, above, below, most: Bounds of a number, the middle two exclusive.
        metavar: What stands for the value in the help.
        bare: The value where the option is named without one.
        path: It names a file or folder: the same one by another path is no change.
        where: It says where or whether, not what: it may differ when a run is resumed.
        later: It came after results had been stored: at its default it is no part of their
            fingerprints, which stay those of before.
        name: How it is called on the command line, where that is not the field's name:
            "--out", or "RUN" for a word without an option. It must then be given.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "bounds": {"at least": at_least, "more than": above, "less than": below, "at most": most},
        "metavar": metavar,
        "bare": bare,
        "path": path,
        "where": where,
        "later": later,
        "name": name,
    }
    return dataclasses.field(default=default, metadata=metadata)


def again(group: type, name: str, default: T) -> T:
    """An option of a group with another default, for a script that inherits the group."""
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)


TASK_HELP = (
    "what is asked of the tissue: bach, camelyon16, mitosis, a data set that docs/tasks.md names, "
    "or a file of your own, NAME.toml (default: that of the run or model that is built on, or bach)"
)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Options of every script."""

    task: str | None = option(None, TASK_HELP, path=True)
    data_dir: str = option("data/BACH", "folder of the challenge data", path=True, where=True)
    run_dir: str = option("runs/run", "folder to write the run to", path=True, where=True)
    seed: int = option(0, "seed of every random choice", at_least=0, most=MOST_SEED)
    limit: int | None = option(
        None, "use only so many images per class, or slides (for a quick trial)", at_least=1
    )
    resume: bool = option(False, "go on with an interrupted run", where=True)
    shard: str | None = option(
        None,
        "do part I of N of the slides or folds, for example 2/8: each part in a process of its "
        "own, on any machine, with the same --run-dir",
        where=True,
        metavar="I/N",
    )
    collect: bool = option(
        False,
        "bring the parts of --shard together; computes none of them and names what is missing",
        where=True,
    )


@dataclasses.dataclass(frozen=True)
class Devices:
    """Options of scripts that run a network."""

    batch_size: int = option(64, "patches per batch, all devices together", at_least=1)
    devices: int = option(
        0,
        "devices to use; 0: all GPUs, or one CPU (more make logical CPU devices)",
        at_least=0,
        most=1024,
    )
    precision: str = option(
        "float32",
        "number format of the network's inner layers",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )


@dataclasses.dataclass(frozen=True)
class Slides:
    """Options of scripts that read slides."""

    mode: str = option(
        "patches",
        "predict patch by patch, or run the network once over large regions",
        choices=("patches", "dense"),
    )
    mpp: float | None = option(None, "um per pixel of the slides, if they do not say", above=0)
    masks: str | None = option(
        None,
        "folder of tissue masks NAME.png or NAME.tif to use instead (0, black or transparent is "
        "glass; any size of the slide's proportions)",
        path=True,
    )
    exclude_pen: bool = option(False, "do not take pen marks for tissue")
    class_map: str | None = option(
        None,
        "CSV of names of classes in the annotations and what they mean: rows theirs,ours, where "
        "ours is a class or ignore",
        path=True,
    )
    tissue: str = option(
        "paper",
        "how tissue is found: pinker than the mean of the slide; or than its glass, which also "
        "works with little tissue and on glass with a tinge; or darker than gray 0.8 (Liu et al. "
        "2017)",
        choices=("paper", "robust", "gray"),
    )
    not_brightfield: bool = option(
        False,
        "go on with slides that cannot be H&E in bright field (dark, inverted, without colour)",
    )


@dataclasses.dataclass(frozen=True)
class Photos:
    """Options of scripts that read photos."""

    images: str | None = option(
        None,
        "table of the photos instead of folders of them: path (from where the table lies), label, "
        "and perhaps image_id, patient and mpp",
        path=True,
    )
    mpp: float | None = option(
        None,
        "um per pixel of the photos, all of them; needed where they are not 2048x1536 px at "
        "0.42, to which they are scaled",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Options of the two training scripts; defaults are those of Kwok 2018, section 4.2."""

    backbone: str = option(
        "InceptionResNetV2",
        "a network of keras.applications, EfficientNetLite0 (pretrained without a download), "
        "small (trains on a CPU), or a foundation model: hf://OWNER/NAME, or a folder with a slash "
        "in its path (./NAME)",
    )
    weights: str = option(
        "imagenet",
        "imagenet, none, or a file to start from; for train_part_a.py also a run of its own on "
        "the same folds",
        path=True,
    )
    tokens: str = option(
        "both",
        "what is used of a foundation model: class token, mean of the patch tokens, or both",
        choices=("class", "mean", "both"),
    )
    train: str | None = option(
        None,
        "all: every layer, by gradient descent; top: a linear top on frozen features, fitted in "
        "seconds, for which the options of the descent and --head do not count; lora: small "
        "additions to a foundation model's attention, and its top (default: all, but top for a "
        "foundation model)",
        choices=("all", "top", "lora"),
    )
    orientations: bool = option(
        False,
        "fit the top to all eight orientations of every patch or photo, at eight times the cost "
        "(--train top; training by descent draws one for every step)",
    )
    head: str = option("sigmoid", "kind of the last layer", choices=("sigmoid", "softmax"))
    epochs: int = option(25, "passes over the patches", at_least=1)
    optimizer: str = option(
        "sgd",
        "sgd: with Nesterov momentum 0.9; adamw: with weight decay 0.004",
        choices=("sgd", "adamw"),
    )
    learning_rate: float = option(0.001, "of the optimizer", above=0)
    scale_learning_rate: int = option(
        0,
        "multiply the learning rate by batch size / BATCH, the batch that it belongs to (64 if "
        "not said); 0: do not",
        at_least=0,
        metavar="BATCH",
        bare=64,
    )
    warmup_epochs: int = option(
        0, "epochs over which the learning rate rises to its full value", at_least=0
    )
    schedule: str = option(
        "constant",
        "learning rate after the warm-up; cosine: falls to 0 over the rest",
        choices=("constant", "cosine"),
    )
    label_smoothing: float = option(
        0.0,
        "share of every training label that is spread over all classes",
        at_least=0,
        below=1,
    )
    ema: float = option(
        0.0,
        "share of a moving average of the weights that each step keeps; the average is then what "
        "is scored and saved; 0: use the weights as they are",
        at_least=0,
        below=1,
    )
    hue: float = option(
        0.04,
        "largest hue shift, in turns (the paper gives none: Liu et al. 2017)",
        at_least=0,
        most=0.5,
    )
    saturation: float = option(
        0.25,
        "largest relative saturation change (Liu et al. 2017)",
        at_least=0,
        most=1,
    )
    value: float = option(
        0.25, "largest relative brightness change (Liu et al. 2017)", at_least=0, most=1
    )
    contrast: float = option(
        0.0,
        "largest relative contrast change; Liu et al. 2017 take 0.75",
        at_least=0,
        below=1,
        later=True,
    )
    # Differs from Kwok 2018: the statistics of batch normalisation are estimated anew after every
    # epoch, since moving averages lag behind weights that still change. The paper says nothing
    # about them; 0 keeps the moving averages.
    bn_patches: int = option(
        1024,
        "patches to estimate batch-normalisation statistics from after an epoch; 0: keep the "
        "moving averages",
        at_least=0,
    )
    frozen_bn: bool = option(
        False,
        "keep the batch normalisation of a pretrained network as it is, statistics, scales and "
        "shifts: for the small batches and few images of fine-tuning; half the time on a CPU",
    )
    patches_per_photo: int = option(
        0,
        "patches of a photo to train on in an epoch, drawn anew for each: the 14 are near-copies; "
        "0: all",
        at_least=0,
    )
    monitor: str = option("heldout_loss", "column of history.csv that decides best.keras")
    monitor_mode: str = option(
        "auto",
        "whether less or more of --monitor is better; auto: told by its name",
        choices=("auto", "min", "max"),
    )
    keep_every: int = option(0, "also save the model every so many epochs; 0: do not", at_least=0)
    keep: str = option(
        "last",
        "epoch whose model is used; best is chosen on the held-out images, which makes their "
        "score too good",
        choices=("last", "best"),
    )
    tensorboard: bool = option(
        False,
        "write scalars, the first batch and reliability for TensorBoard to fold_K/tensorboard",
        where=True,
    )
    callback: tuple[str, ...] = option(
        (),
        "functions (folder, fold, options) that return Keras callbacks, which are told of every "
        "epoch once it is saved: for any tracker; see docs/steps.md",
        metavar="MODULE:FUNCTION",
        where=True,
    )


@dataclasses.dataclass(frozen=True)
class TrainingScript(Shared, Training, Devices):
    """Options of the two training scripts."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Options of who does the slides."""

    engine: str = option(
        "plain",
        "plain: this process, or --workers on this machine; ray: the actors of a Ray cluster",
        choices=("plain", "ray"),
        where=True,
    )
    workers: int | None = option(
        None,
        "how many share the slides, each with the models in its memory; 0: one per GPU, or per CPU "
        "core where there is none (default: 1; with ray 0)",
        at_least=0,
        most=10_000,
        where=True,
    )
    address: str | None = option(
        None,
        "a running Ray cluster, HOST:PORT or auto (default: one on this machine, for as long as "
        "the command runs)",
        where=True,
    )


@dataclasses.dataclass(frozen=True)
class SlideScript(Workers, Shared, Devices, Slides):
    """Options of the two scripts that predict slides."""

    model_dir: str = option("runs/final", "run folder of the models, or a .keras file", path=True)


def parse(
    kind: type[T], argv: Sequence[str] | None, description: str | None, prog: str | None = None
) -> T:
    """Parse a command line into the options of a command.

    Args:
        kind: A dataclass of options.
        argv: Words of the command line; None for those of the process.
        description: Text of the help, usually the docstring of the module.
        prog: Name of the command in the help.

    Returns:
        An instance of `kind`. Wrong words end the process with exit code 2, as argparse
        does it.
    """
    return kind(**read(kind, argv, description, prog))


def read(
    kind: type, argv: Sequence[str] | None, description: str | None, prog: str | None = None
) -> dict[str, Any]:
    """The values that a command line gives the options, by name; see `parse`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add(parser, kind)
    return vars(parser.parse_args(argv))


def add(parser: argparse.ArgumentParser, kind: type) -> None:
    """Add the options of a dataclass to a parser, one titled group per class."""
    hints = typing.get_type_hints(kind)
    done: set[str] = set()
    for group in reversed(kind.__mro__):
        fields = [field for field in _fields(kind) if field.name in _own(group)]
        fields = [field for field in fields if field.name not in done]
        if fields:
            section = parser.add_argument_group(_title(group))
            for field in fields:
                _add_one(section, field, hints[field.name])
                done.add(field.name)


def words(settings: object, *groups: type, **values: object) -> list[str]:
    """The command line that gives options their values, as far as they are not the default.

    Args:
        settings: Options, or any object with attributes of their names.
        groups: Which to write; all of `settings` by default.
        values: Values to write instead of those of `settings`.

    Example:
        >>> words(Devices(batch_size=16))
        ['--batch-size', '16']
    """
    result: list[str] = []
    for group in groups or (type(settings),):
        usual = group()  # which may make more of a default
        for field in _fields(group):
            value = values.get(field.name, getattr(settings, field.name))
            if value == getattr(usual, field.name):
                continue
            if flag(field).startswith("-"):
                result.append(flag(field))
            if isinstance(value, list | tuple):
                result += map(str, value)
            elif value is not True:
                result.append(str(value))
    return result


def changed(old: Mapping[str, Any], new: object, old_folder: str | None = None) -> list[str]:
    """What differs between the options of an earlier start and of this one.

    Args:
        old: Options of the earlier start by name, as they lie in `run.json`.
        new: Options of this start.
        old_folder: Folder that the earlier start was made in, for its relative paths.

    Returns:
        A line for each option that differs and may not. An option that one of the two
        versions does not have, and that is off in the other, changes nothing.
    """
    fields = {field.name: field for field in _fields(type(new))}
    now = {name: getattr(new, name) for name in fields}
    lines = []
    for name in sorted(old.keys() | now.keys()):
        field = fields.get(name)
        then, this = old.get(name), now.get(name)
        then, this = (list(x) if isinstance(x, tuple) else x for x in (then, this))
        if then == this or (field is not None and field.metadata["where"]):
            continue
        if (name not in old or name not in now) and not (then or this):
            continue
        if field is not None and field.metadata["path"] and then is not None and this is not None:
            folder = os.getcwd()
            if _real(then, old_folder or folder) == _real(this, folder):
                continue
        called = _flag(name) if field is None else flag(field)
        lines.append(f"  {called}: {then} then, {this} now")
    return lines


def decisive(settings: object) -> dict[str, object]:
    """The options that decide a result by their value, for its fingerprint.

    Left out are those that say where, and paths, whose content counts.
    """
    return {
        field.name: getattr(settings, field.name)
        for field in _fields(type(settings))
        if not field.metadata["where"] and not field.metadata["path"]
        if not (field.metadata["later"] and getattr(settings, field.name) == field.default)
    }


def table(*kinds: type) -> list[list[str]]:
    """Rows of option, default and meaning, for the documentation.

    Args:
        kinds: Dataclasses of options; an option that several have is listed once.
    """
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        for field in _fields(kind):
            called = f"`{flag(field)}`"
            if field.metadata["choices"]:
                called += " " + ", ".join(field.metadata["choices"])
            rows.setdefault(field.name, [called, _shown(field.default), field.metadata["help"]])
    return list(rows.values())


def _fields(kind: type) -> list[dataclasses.Field]:
    """The fields of a class that are options."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def _own(group: type) -> Mapping[str, object]:
    return inspect.get_annotations(group)


def _title(group: type) -> str:
    return (inspect.getdoc(group) or group.__name__).split("\n")[0].rstrip(".").lower()


def flag(field: dataclasses.Field) -> str:
    """How an option is called on the command line."""
    return field.metadata["name"] or _flag(field.name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _real(paths: str | Sequence[str], folder: str) -> list[str]:
    """Where paths lead that are relative to a folder."""
    paths = [paths] if isinstance(paths, str) else paths
    return [os.path.realpath(Path(folder, path)) for path in paths]


def _add_one(parser: argparse._ArgumentGroup, field: dataclasses.Field, hint: Any) -> None:
    metadata, default = field.metadata, field.default
    text = metadata["help"].replace("%", "%%")
    if hint is bool:
        parser.add_argument(flag(field), action="store_true", default=default, help=text)
        return
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    kind: Any = kinds[0] if kinds else hint
    more: dict[str, Any] = {}
    if isinstance(default, tuple):
        more["nargs"] = len(default) or "*"
        more["action"] = _Tuple
    elif metadata["bare"] is not None:
        more |= {"nargs": "?", "const": metadata["bare"]}
    if metadata["metavar"] is not None:
        more["metavar"] = metadata["metavar"]
    words = [flag(field)]
    if metadata["name"] is None:
        if default is not None and default != ():
            text += f" (default: {_shown(default)})"
    elif flag(field).startswith("-"):
        more |= {"dest": field.name, "required": True}
    else:
        words, more["metavar"] = [field.name], flag(field)
    parser.add_argument(
        *words,
        type=_checked(kind, metadata["bounds"]),
        choices=metadata["choices"],
        default=default,
        help=text,
        **more,
    )


class _Tuple(argparse.Action):
    """Stores several values as a tuple, as the dataclass has them.

    Any number of them may be given at once, or one by one.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest) if self.nargs == "*" else ()
        setattr(namespace, self.dest, (*before, *values))


def whole(at_least: int, most: int = _MOST) -> Callable[[str], int]:
    """What reads a whole number in bounds, as `type` of an argument that is no field."""
    return _checked(int, {"at least": at_least, "at most": most})


def _checked(kind: type, bounds: Mapping[str, float | None]) -> Callable[[str], Any]:
    """What reads a word as a value of a kind, and refuses one out of bounds."""

    def read(text: str):
        value = kind(text)
        fits = {
            "at least": lambda bound: value >= bound,
            "more than": lambda bound: value > bound,
            "less than": lambda bound: value < bound,
            "at most": lambda bound: value <= bound,
        }
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        # Written so that nan, which no comparison holds for, is refused as well.
        if not all(fits[name](bound) for name, bound in given.items()):
            said = " and ".join(f"{name} {_bound(bound)}" for name, bound in given.items())
            raise argparse.ArgumentTypeError(f"must be {said}, not {text}")
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
        if kind is int and not given.keys() & {"at most", "less than"} and value > _MOST:
            raise argparse.ArgumentTypeError(f"must be at most {_MOST}, not {text:.40}")
        return value

    read.__name__ = kind.__name__  # argparse names it where a word cannot be read
    return read


def _bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
