"""What is asked of tissue: the classes, what a network sees of a patch, what its answer is for.

    python train_part_a.py --task my_task.toml

A task is a TOML file. Those of this folder go by their names: `bach`, the default of every
command, `camelyon16`, `mitosis`, and data sets of breast tissue; docs/tasks.md says what a file
may hold. A process works on one task, `task()`, which `use` sets; a run folder and a model file
state theirs.
"""

import argparse
import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bach.core import options
from bach.core.errors import InputError
from bach.core.inputs import Limit, open_input
from bach.core.run import read_record
from bach.tasks.definition import BACH, BACKGROUND, Task, make_task, read_task

__all__ = ["BACH", "BACKGROUND", "Task", "read_task", "task", "use"]

T = TypeVar("T")

# Options that name the run or the model that a command builds on.
_BUILT_ON = ("model_dir", "part_a_dir", "hard_examples_dir", "source")

_ENTRY = "task.json"  # in model files
_TRAIN = "Train the model again."

_current = BACH


def task() -> Task:
    """The task that this process works on."""
    return _current


def use(wanted: "str | Task | None" = None, *built_on: str | os.PathLike | None) -> Task:
    """Set the task of this process.

    Args:
        wanted: Its name or file, or the task; None for that of what is built on.
        built_on: Runs and models: they must be of one task, which is the default.

    Raises:
        InputError: If there is no such task, or it is not that of a run or model.
    """
    global _current
    stated = {str(place): one for place in built_on if place and (one := stated_task(place))}
    chosen = _named(wanted) if isinstance(wanted, str) else wanted
    chosen = chosen or next(iter(stated.values()), BACH)
    for place, one in stated.items():
        if one.essence != chosen.essence:
            raise InputError(
                "All that a command builds on must be of its task.\n"
                f"Received: {place} of the task {one.name}, and {chosen.name}.\n"
                "Leave --task out, or name runs and models of one task."
            )
    _current = chosen
    return chosen


def _named(wanted: str) -> Task:
    return BACH if wanted == BACH.name else read_task(wanted)


@contextlib.contextmanager
def working_on(wanted: Task) -> Iterator[None]:
    """A task for as long as the body lasts."""
    before = task()
    use(wanted)
    try:
        yield
    finally:
        use(before)


def parse(
    kind: type[T], argv: Sequence[str] | None, description: str | None, prog: str | None = None
) -> T:
    """As `bach.core.options.parse`, and set the task that the options state.

    It is that of --task, else that of the run or model that the options name.
    """
    values = options.read(kind, argv, description, prog)
    use(values.get("task"), *(values.get(name) for name in _BUILT_ON))
    return kind(**values)


def decisive(settings: object) -> dict[str, object]:
    """What decides a result, for its fingerprint: options, see `options.decisive`, and task."""
    return options.decisive(settings) | task().record


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --task to the parser of a command that is no dataclass of options."""
    parser.add_argument("--task", metavar="TASK", help=options.TASK_HELP)


def stated_task(place: str | os.PathLike) -> Task | None:
    """The task that a run folder or a model file states; None where nothing is there.

    Raises:
        InputError: If it states what is none.
    """
    path = Path(place)
    if path.is_dir() and not (path / "run.json").exists():  # models that were copied elsewhere
        path = next(iter(sorted(path.glob("fold_*/model.keras"))), path)
    if path.is_dir():
        record = read_record(path)
        stated = None if record is None else record.get("task", {})
    elif path.suffix == ".keras" and path.is_file():
        with (
            open_input(path, "be a model", _TRAIN, Limit.MODEL) as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            there = _ENTRY in archive.namelist()
            if there and archive.getinfo(_ENTRY).file_size > Limit.TABLE:
                raise ValueError("a task that large")
            stated = json.loads(archive.read(_ENTRY)) if there else {}
    else:
        return None
    if stated is None or stated == {}:
        return None if stated is None else BACH
    if not isinstance(stated, dict) or not isinstance(stated.get("spec"), dict):
        raise InputError(
            f"{path} must state a task that is one.\nReceived: {str(stated)[:100]!r}.\n{_TRAIN}"
        )
    one = make_task(str(stated.get("name")), stated["spec"], f"The task of {path}")
    return BACH if (one.name, one.essence) == (BACH.name, BACH.essence) else one


def require_task(model: str | os.PathLike) -> None:
    """Refuse a model file of another task than that of this process.

    Raises:
        InputError: If it is of another one.
    """
    stated = stated_task(model) or BACH
    if stated.essence != task().essence:
        raise InputError(
            f"A model must be of the task {task().name}.\n"
            f"Received: {model}, of {stated.name}: {', '.join(stated.classes)}.\n"
            "Name the model's task with --task."
        )


def state_task(model: str | os.PathLike) -> None:
    """Add the task to a `.keras` file: its name, classes in order, and what it sees."""
    one = task()
    said = {"name": one.name, "classes": one.classes, "um_per_px": one.mpp, "spec": one.spec}
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr(_ENTRY, json.dumps(said))
