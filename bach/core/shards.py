"""Parts of a run, each done by a process of its own, on any machine that sees its folder.

Every process of `--shard I/N` takes its share of the same list, so that none has to ask the
others, and keeps its record in a folder of its own in the run folder:

    shards/I_of_N/run.json, log.txt, failures.json, metrics.json

What it makes (heatmaps, tables of slides, models of folds) lies where the whole run has it.
`--collect` is the whole run, for which nothing is left to compute.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from bach.core.errors import InputError
from bach.core.files import read_object
from bach.core.text import listed

FOLDER = "shards"
_MOST = 100_000

T = TypeVar("T")


class Shard(NamedTuple):
    """Part `number` (from 1) of `of`."""

    number: int
    of: int

    @property
    def folder(self) -> str:
        """Where it keeps its record, in the run folder."""
        return f"{FOLDER}/{self.number}_of_{self.of}"

    def share(self, items: Sequence[T], sizes: Iterable[float] | None = None) -> list[T]:
        """Its share of a list, in the order of the list.

        Args:
            items: The list, the same for all parts.
            sizes: How much work each of them is, about; alike if not given. The largest are
                given out first, each to the part that has least to do.

        Example:
            >>> Shard(1, 2).share("abc"), Shard(1, 2).share("abc", [1, 9, 1])
            (['a', 'c'], ['b'])
        """
        work = [1.0] * len(items) if sizes is None else list(sizes)
        load = [0.0] * self.of
        mine = []
        for place in sorted(range(len(items)), key=lambda k: -work[k]):
            least = min(range(self.of), key=load.__getitem__)
            load[least] += work[place]
            if least == self.number - 1:
                mine.append(place)
        return [items[place] for place in sorted(mine)]


def read_shard(text: str) -> Shard:
    """A part as `--shard` names it, `I/N`.

    Raises:
        InputError: If it is none.
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text, re.ASCII)
    shard = Shard(*map(int, found.groups())) if found and len(text) < 20 else Shard(0, 0)
    if not 1 <= shard.number <= shard.of <= _MOST:
        raise InputError(
            "A part must be named by its number and how many there are, I/N, I from 1 to N.\n"
            f"Received: --shard={text}.\nName for example 1/4, and in other processes 2/4 to 4/4."
        )
    return shard


def shard_of(args: object) -> Shard | None:
    """The part that a command is to do; None for all of it.

    Raises:
        InputError: If `--shard` is none, or comes with `--collect`.
    """
    text = getattr(args, "shard", None)
    if text is None:
        return None
    if getattr(args, "collect", False):
        raise InputError(
            "Parts are brought together by a process that does none of them.\n"
            f"Received: --collect with --shard={text}.\nLeave out --shard."
        )
    return read_shard(text)


def share_of_folds(args: object, folds: Sequence[T]) -> list[T]:
    """The folds that a command is to train: all, or those of its part.

    Raises:
        InputError: If there are more parts than folds, or a fold is named besides.
    """
    shard = shard_of(args)
    if shard is None:
        return list(folds)
    if getattr(args, "fold", None) is not None or shard.of > len(folds):
        raise InputError(
            f"The {len(folds)} folds are divided into as many parts at most.\n"
            f"Received: --shard={shard.number}/{shard.of}, --fold={getattr(args, 'fold', None)}.\n"
            f"Name a part of {len(folds)}, or a fold."
        )
    return shard.share(folds)


def failures_of(run: Path) -> dict[str, str]:
    """What the parts of a run could not do, and why."""
    found: dict[str, str] = {}
    for file in sorted(run.glob(f"{FOLDER}/*_of_*/failures.json")):
        found |= {name: str(why) for name, why in read_object(file, "Delete it.").items()}
    return found


def require_all(run: Path, missing: Sequence[object], what: str) -> None:
    """Refuse to bring together what is not whole.

    Args:
        run: The run folder.
        missing: What nobody has done yet.
        what: What it is, in the singular: "slide", "fold".

    Raises:
        InputError: If something is missing; how far the parts are is told.
    """
    if not missing:
        return
    parts = {}
    for file in run.glob(f"{FOLDER}/*_of_*/run.json"):
        number, of = map(int, file.parent.name.split("_of_"))
        parts[of, number] = str(read_object(file, "Delete it.").get("status", "unknown"))
    for of in {of for of, _ in parts}:
        for number in range(1, of + 1):
            parts.setdefault((of, number), "never begun")
    said = [f"{number}/{of} {status}" for (of, number), status in sorted(parts.items())]
    undone = [text for text in said if not text.endswith(" finished")]
    raise InputError(
        f"Every {what} must be done before the parts are brought together.\n"
        f"Received: {len(missing)} missing: {listed(missing)}; "
        f"parts: {listed(undone) or 'all finished, of other arguments or files'}.\n"
        "Run the parts that are not finished, those that were begun with --resume; then the same "
        "command again."
    )
