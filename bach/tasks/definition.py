"""What a task is, and how a file says it."""

import dataclasses
import functools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bach.core.errors import InputError
from bach.core.inputs import Limit, open_input
from bach.core.text import listed

BACKGROUND = 0  # the class of glass and of what nobody has annotated: the first of every task

_HOME = Path(__file__).parent
_MOST_CLASSES = 15  # pairs of classes are counted in bytes
_NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen"),
)
_LABELS = ("mean", "centre", "point")

# What a file may say, but for the classes, and of which kind it is.
_WORDS = ("title", "source", "split", "split_name", "usual", "label", "patient")
_FIGURES = (
    *("photo_mpp", "patch_px", "stride_px", "side_px", "step_um", "centre_um"),
    *("point_threshold", "point_radius_um"),
)
_KINDS: dict[str, Any] = {
    **dict.fromkeys(_WORDS, str),
    **dict.fromkeys(_FIGURES, int | float),
    **dict.fromkeys(("photo_size_px", "thresholds"), list),
    "ordered": bool,
}
_CLASS_KINDS = {"name": str, "color": str, "prefix": str, "spellings": list, "groups": list}

# Of classes without a colour; the first catches no eye. Next four: told apart by all kinds of
# colour blindness and from H&E, see bach.toml; then those of Okabe and Ito (2008), and others.
_COLORS = (
    *("#d2e8de", "#0072b9", "#f08c00", "#780028", "#009e73", "#cc79a7", "#56b4e9", "#f0e442"),
    *("#7f3c8d", "#5a5a5a", "#a3d65c", "#00435c", "#ff9da7", "#8c6d31", "#b3b3ff"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task; it is made by `read_task`.

    Attributes:
        name: How it is called: the name of its file.
        spec: What the file says.
        classes: Names, in order; the first is that of glass and of what is not annotated.
        colors: RGB of each.
        spellings: Which class a name means, by its letters and digits in lower case.
        groups: Which class a group of annotations means by its name, to the letter.
        prefixes: How names of photos of each class begin; "" where nothing is known.
        usual: The label that scores are compared with: always this one.
        split: Labels from here on are the other side of the two-class question.
        split_name: How that question is called.
        title: What it is, for people.
        source: Whose thresholds and settings it has.
        ordered: Whether the classes are steps of one scale, so that two may be confused by
            more than one step; else every mistake counts the same.
        photo_mpp: um per px that photos are brought to.
        photo_size_px: Width and height of photos that are at that scale, where others must
            state theirs; None if all are at it that state none.
        patch_px, stride_px: Side of a patch of a photo, and the step between two, in px.
        side_px: Side of a patch in network px.
        step_um: Step between patches of slides, where nobody says another.
        label: How a patch of a slide gets its label from the annotation: "mean" of its pixels,
            rounded; "centre": the highest in the square in the middle; "point": that of the
            middle.
        centre_um: Side of the square in the middle.
        patient: Pattern of the patient, its first group, at the start of a photo's name; None
            where names do not tell.
        thresholds: Heatmap values from which on the classes above the first are called.
        point_threshold, point_radius_um: From which heatmap value on a maximum is a finding,
            and how far two of them are apart; None where findings are no points.
    """

    name: str
    spec: Mapping[str, Any] = dataclasses.field(repr=False)
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    spellings: Mapping[str, int]
    groups: Mapping[str, int]
    prefixes: tuple[str, ...]
    usual: int
    split: int
    split_name: str
    title: str
    source: str
    ordered: bool
    thresholds: tuple[float, ...]
    label: str
    photo_mpp: float
    patch_px: int
    stride_px: int
    side_px: int
    step_um: float
    photo_size_px: tuple[int, int] | None = None
    patient: str | None = None
    centre_um: float = 0.0
    point_threshold: float | None = None
    point_radius_um: float | None = None

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_words(self) -> str:
        """The number of classes as a word: four."""
        return _NUMBERS[self.count]

    @property
    def marked(self) -> bool:
        """Whether annotations mark places, not areas: labels and findings are points."""
        return self.label == "point" and self.point_radius_um is not None

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of tables that hold the probabilities."""
        return tuple("prob_" + re.sub(r"\W+", "_", name.lower()) for name in self.classes)

    @property
    def patch_um(self) -> float:
        """Side of a patch in um: the same on photos and on slides."""
        return self.patch_px * self.photo_mpp

    @property
    def mpp(self) -> float:
        """um per network px."""
        return self.patch_um / self.side_px

    @property
    def shrink(self) -> int:
        """Photo px along a network px."""
        return self.patch_px // self.side_px

    @property
    def dense_step_um(self) -> float:
        """Step of dense prediction: a stride of 32 network px."""
        return 32 * self.mpp

    def distance(self, label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """How far classes are apart: steps of the scale, or 1 where there is no scale."""
        apart = np.abs(label - predicted)
        return apart if self.ordered else np.minimum(apart, 1)

    @functools.cached_property
    def error(self) -> np.ndarray:
        """What it costs to call a true class (row) a predicted one (column), int `(n, n)`."""
        labels = np.arange(self.count)
        return self.distance(labels[:, None], labels[None, :])

    @functools.cached_property
    def worst(self) -> np.ndarray:
        """The most that each true class can cost, int `(n,)`."""
        return self.error.max(axis=1)

    @property
    def always(self) -> str:
        """How the answers are called that scores are compared with."""
        return f"always {self.classes[self.usual]}"

    @property
    def numbers(self) -> str:
        """The labels, for messages: 0..3."""
        return f"0..{self.count - 1}"

    @property
    def choices(self) -> str:
        """How a class may be written, for messages."""
        return f"{', '.join(self.classes)} or {self.numbers}"

    @property
    def numbered(self) -> str:
        """Which label each class has, for messages."""
        return ", ".join(f"{label} {name}" for label, name in enumerate(self.classes))

    @property
    def essence(self) -> tuple:
        """What networks of a task have in common: classes, and what they see."""
        return self.classes, self.photo_mpp, self.patch_px, self.side_px

    @property
    def record(self) -> dict[str, Any]:
        """What runs state, and fingerprints; nothing for BACH, which all had before."""
        return {} if self is BACH else {"task": {"name": self.name, "spec": self.spec}}

    def patient_of(self, image_id: str) -> str:
        """The patient that the name of a photo tells, or ""."""
        match = re.match(self.patient, image_id) if self.patient else None
        return match[1] if match else ""

    def parse_group(self, text: str) -> int | None:
        """As `parse_label`, of the name of a group of annotations."""
        return self.groups.get(text.strip(), self.parse_label(text))

    def parse_label(self, text: str) -> int | None:
        """Read a class from any spelling of it; letter case, spaces and marks do not matter.

        Returns:
            The label, or None if the text is no known class name.

        Example:
            >>> read_task("bach").parse_label("Carcinoma in situ")
            2
        """
        return self.spellings.get(_key(text))


def read_task(named: str) -> Task:
    """A task by its name, or from a file that ends in .toml.

    Raises:
        InputError: If there is no such task, or the file is none.
    """
    path, names = Path(named), sorted(file.stem for file in _HOME.glob("*.toml"))
    if named.endswith(".toml") == (path.stem in names):
        raise InputError(
            f"--task must be one of {', '.join(names)}, or a file of another name that ends in "
            f".toml.\nReceived: --task={named}.\nCheck the name, or rename the file."
        )
    if path.stem in names:
        path = _HOME / f"{named}.toml"
    with open_input(path, "be a task file", "docs/tasks.md shows one.", Limit.TABLE) as stream:
        spec = tomllib.load(stream)
    return make_task(path.stem, spec, str(path))


def make_task(name: str, spec: Mapping[str, Any], place: str) -> Task:
    """A task from what its file says.

    Args:
        name: How it is called.
        spec: What the file says.
        place: Where that stands, for messages.

    Raises:
        InputError: If something is missing, unknown or does not fit.
    """
    try:
        return _made(name, spec)
    except _MisfitError as fault:
        must, received = fault.args
        raise InputError(
            f"{place} must {must}.\nReceived: {received}.\ndocs/tasks.md shows a task file."
        ) from None


class _MisfitError(Exception):
    """What must hold of a file, and what it says instead."""


def _require(holds: object, must: str, received: object) -> None:
    if not holds:
        raise _MisfitError(must, received)


def _made(name: str, spec: Mapping[str, Any]) -> Task:
    said = {key: value for key, value in spec.items() if key != "classes"}
    _check_kinds(said, _KINDS)
    rows = spec.get("classes")
    rows = rows if isinstance(rows, list) else []
    given = [{"name": one} if isinstance(one, str) else one for one in rows]
    named = all(isinstance(one, dict) and "name" in one for one in given)
    right = named and 2 <= len(given) <= _MOST_CLASSES
    _require(right, f"name 2 to {_MOST_CLASSES} classes", len(given))
    for one in given:
        _check_kinds(one, _CLASS_KINDS)
    classes = tuple(one["name"] for one in given)
    odd = [one for one in classes if not _key(one) or re.search(r"[^\w -]|^\s|\s$", one)]
    _require(not odd, "name classes by letters, digits, spaces, - and _", listed(odd))
    _require("photo_mpp" in said, "state photo_mpp, um per px that photos are brought to", "none")
    for key in ("split", "usual"):
        _require(said.get(key, classes[1]) in classes, f"name a class in {key}", said.get(key))
    count, split = len(classes), said.get("split", classes[1])
    ordered = said.get("ordered", count == 2)
    even = [label / count for label in range(1, count)] if ordered else []
    patch = said.get("patch_px", said.get("side_px", 299))
    defaults = {
        "title": f"{name}: {', '.join(classes)}",
        "source": name,
        "split_name": f"{split} or not",
        "ordered": ordered,
        "thresholds": even,
        "label": "mean" if ordered else "point",
        "patch_px": patch,
        "stride_px": max(1, round(patch / 5)) if isinstance(patch, int) else 0,
        "side_px": 299,
        # Differs from Kwok 2018: the paper does not state the step on slides. A fifth of the
        # field gives candidates of the number that it reports.
        "step_um": patch * said["photo_mpp"] / 5,
    }
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in (defaults | said).items()
    }
    values |= {"split": classes.index(split), "usual": classes.index(said.get("usual", classes[1]))}
    result = Task(
        name=name,
        spec=json.loads(json.dumps(spec)),
        classes=classes,
        colors=tuple(_color(one.get("color", _COLORS[k])) for k, one in enumerate(given)),
        spellings=_spellings(given),
        groups={text: label for label, one in enumerate(given) for text in one.get("groups", ())},
        prefixes=tuple(one.get("prefix", "").lower() for one in given),
        **values,
    )
    _check(result)
    return result


def _check(task: Task) -> None:
    sides = (task.patch_px, task.stride_px, task.side_px, *(task.photo_size_px or (1, 1)))
    _require(
        0 < task.photo_mpp < math.inf
        and 0 < task.step_um <= task.patch_um
        and all(type(side) is int and side > 0 for side in sides),
        "give photo_mpp above 0, a step_um up to the side of a patch, whole sides and steps in px",
        f"photo_mpp {task.photo_mpp}, step_um {task.step_um}, sides and steps {sides}",
    )
    _require(
        task.patch_px % task.side_px == 0 and len(sides) == 5,
        "have a patch_px that is a multiple of side_px, and two numbers in photo_size_px",
        f"patch_px {task.patch_px}, side_px {task.side_px}, photo_size_px {task.photo_size_px}",
    )
    _require(
        task.label in _LABELS
        and (task.ordered or task.label != "mean")
        and (task.label != "centre" or 0 < task.centre_um <= task.patch_um),
        f"label patches by {', '.join(_LABELS)}: mean where classes are ordered, centre with a "
        "centre_um no larger than the patch",
        f"label {task.label!r}, centre_um {task.centre_um}, ordered {task.ordered}",
    )
    steps, given = task.count - 1 if task.ordered else 0, list(task.thresholds)
    numbers = all(isinstance(one, int | float) and 0 <= one <= 1 for one in given)
    _require(
        numbers and len(given) == steps and given == sorted(given),
        f"state {steps} ascending thresholds from 0 to 1: one for every class but the first where "
        "classes are ordered, else none",
        f"thresholds {given}",
    )
    try:
        groups = re.compile(task.patient or "()").groups
    except re.error:
        groups = 0
    _require(groups, "give patient as a pattern with a group, the patient", repr(task.patient))
    points = task.point_threshold, task.point_radius_um
    _require(
        points == (None, None) or all(one is not None and one >= 0 for one in points),
        "state both point_threshold and point_radius_um, or none of them",
        points,
    )


def _check_kinds(given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    unknown = sorted(given.keys() - kinds.keys())
    _require(not unknown, f"have only the keys {', '.join(kinds)}", listed(unknown))
    for key, value in given.items():
        fits = isinstance(value, kinds[key]) and (kinds[key] is bool or not isinstance(value, bool))
        _require(fits, f"give {key} as {getattr(kinds[key], '__name__', 'a number')}", repr(value))


def _key(text: object) -> str:
    letters = "".join(ch for ch in str(text).lower() if ch.isalnum())
    return "-" + letters if re.match(r"\s*-\d", str(text)) else letters  # -1 is not 1


def _spellings(given: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for label, one in enumerate(given):
        for text in (one["name"], *one.get("spellings", ())):
            key = _key(text)
            _require(found.setdefault(key, label) == label, "let a name mean one class", text)
            # Tables may have a class's number in place of its name.
            own = not key.isdecimal() or int(key) == label
            _require(own, "let a number mean no class but that of this number, from 0 on", text)
    return found


def _color(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    _require(match, "give colours as #rrggbb", text)
    red, green, blue = (int(part, 16) for part in match.groups()) if match else (0, 0, 0)
    return red, green, blue


BACH = read_task("bach")
