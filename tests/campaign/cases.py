"""One damaged input at a time, in processes of their own: how each case ends.

A case is decided by the seed and its number: what kind of input, which file, what damage. It
runs in a process with a limit of memory, which is ended when it takes too long; a process
that dies is a finding and not the end of the campaign.
"""

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.log import log
from campaign import damage
from campaign.inputs import KINDS, Kind, sane

# How a case may end, and what is a finding: the first four are as they should be.
GOOD = ("same", "other", "said", "refused")
FINDINGS = ("unnamed", "traceback", "hang", "crash", "memory", "wrong", "left")
OUTCOMES = {
    "same": "the result of the sound file",
    "other": "another result, which could be that of another file",
    "said": "another result, and a warning",
    "refused": "InputError that names the file",
    "unnamed": "InputError that does not name it",
    "traceback": "any other exception",
    "hang": "no end within a minute (two with a framework)",
    "crash": "the process died",
    "memory": "more than 2 GB wanted",
    "wrong": "a result that cannot be right, without a word",
    "left": "half-written files left",
}

_MEMORY = 2 * 2**30
_TIME_LIGHT, _TIME_NETWORK, _TIME_START = 60.0, 120.0, 900.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, by its number; all else follows from the seed."""

    seed: int
    number: int

    def rng(self) -> random.Random:
        return random.Random(f"case {self.seed} {self.number}")

    def kind(self, rng: random.Random) -> Kind:
        return rng.choices(KINDS, [kind.weight for kind in KINDS])[0]


def run_all(cases: Iterable[Case], corpus: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Run cases in processes; yields how each ended, in the order in which they end."""
    waiting: dict[bool, list[Case]] = {False: [], True: []}
    for case in cases:
        waiting[case.kind(case.rng()).network].append(case)
    for network in (False, True):
        queue = list(reversed(waiting[network]))
        pool = [_Worker(corpus, network) for _ in range(min(workers, len(queue)))]
        try:
            while queue or any(worker.case for worker in pool):
                for worker in pool:
                    if worker.case is None and queue:
                        worker.give(queue.pop())
                wait([worker.connection for worker in pool if worker.case], timeout=1)
                for worker in pool:
                    done = worker.look()
                    if done is not None:
                        yield done
        finally:
            for worker in pool:
                worker.end()


class _Worker:
    """A process that runs cases, one at a time, and is started anew when it dies."""

    def __init__(self, corpus: Path, network: bool):
        self._corpus, self._network = corpus, network
        self.case: Case | None = None
        self._start()

    def _start(self) -> None:
        # Not forked: a framework does not survive that.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._corpus, self._network), daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, case: Case) -> None:
        self.case, self._since, self._starting = case, time.monotonic(), True
        self.connection.send(case)

    def look(self) -> dict[str, Any] | None:
        """How the case ended, or None while it runs."""
        if self.case is None:
            return None
        limit = _TIME_NETWORK if self._network else _TIME_LIGHT
        if self.connection.poll():
            try:
                done = self.connection.recv()
            except EOFError:
                self._process.join()
                return self._lost("crash", f"exit code {self._process.exitcode}")
            if done is not None:
                self.case = None
                return done
            self._since, self._starting = time.monotonic(), False  # what follows is the case
        elif time.monotonic() - self._since > (_TIME_START if self._starting else limit):
            return self._lost("hang", f"more than {limit:.0f} s")
        return None

    def _lost(self, outcome: str, said: str) -> dict[str, Any]:
        case, self.case = self.case, None
        self.end()
        self._start()
        assert case is not None
        # The damage is done once more, to say what it was.
        with tempfile.TemporaryDirectory() as scratch:
            folder = copied(case.kind(case.rng()), self._corpus, Path(scratch))
            done = describe(case, self._corpus, folder)
        return done | {"outcome": outcome, "said": said, "s": None}

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, corpus: Path, network: bool) -> None:
    """Run the cases that come, with what libraries print thrown away."""
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(sink, stream)
    log.propagate = False
    if network:
        from bach.network import patch_network  # noqa: F401 (loads the framework)
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(corpus, Path(scratch))
        _limit_memory()
        while True:
            case = connection.recv()
            runner.prepare(case.kind(case.rng()))
            connection.send(None)
            connection.send(runner.run(case))


def _limit_memory() -> None:
    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY, resource.RLIM_INFINITY))


class Runner:
    """Runs cases in this process.

    Args:
        corpus: Folder of sound files, see `inputs.make_all`.
        scratch: Folder to damage copies in.
    """

    def __init__(self, corpus: Path, scratch: Path):
        self._corpus, self._scratch = corpus, scratch
        self._sound: dict[str, tuple[str, object]] = {}
        self._warnings = _Warnings()
        if self._warnings not in log.handlers:
            log.addHandler(self._warnings)
            log.setLevel(logging.INFO)

    def prepare(self, kind: Kind) -> None:
        """Find out what the sound files of a kind give; once, for it may take long."""
        if kind.name not in self._sound:
            folder = copied(kind, self._corpus, self._scratch)
            result = kind.use(folder)
            self._sound[kind.name] = digest(result), result
            assert sane(result) is None, f"{kind.name} is not sane to begin with"

    def run(self, case: Case) -> dict[str, Any]:
        """How a case ends: `outcome`, one of `OUTCOMES`, and what was said."""
        kind = case.kind(case.rng())
        self.prepare(kind)
        folder = copied(kind, self._corpus, self._scratch)
        done = describe(case, self._corpus, folder)
        self._warnings.lines.clear()
        start = time.monotonic()
        outcome, said = self._use(kind, folder, done)
        if list(folder.rglob("*.unfinished-*")):
            outcome, said = "left", "temporary files"
        return done | {"outcome": outcome, "said": said, "s": round(time.monotonic() - start, 3)}

    def _use(self, kind: Kind, folder: Path, done: dict[str, Any]) -> tuple[str, str]:
        try:
            result = kind.use(folder)
        except InputError as error:
            text = " ".join(str(error).split())
            if "memory" in text or isinstance(error.__cause__, MemoryError):
                return "memory", text[:200]
            file = Path(done["file"])
            names = (file.name, file.stem, str((folder / file).parent))
            named = any(name.casefold() in text.casefold() for name in names)
            return ("refused" if named else "unnamed"), text[:200]
        except MemoryError as error:
            return "memory", f"{_place(error)}: {error}"[:200]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "traceback", f"{_place(error)}: {type(error).__name__}: {error}"[:200]
        sound, original = self._sound[kind.name]
        said = "; ".join(self._warnings.lines)[:200]
        if digest(result) == sound:
            return "same", said
        fault = sane(result)
        if fault is None and not said:
            fault = _silently_wrong(kind, done["damage"], result, original)
        if fault is not None:
            return "wrong", fault[:200]
        return ("said" if said else "other"), said


def copied(kind: Kind, corpus: Path, scratch: Path) -> Path:
    """A fresh copy of the folder of a kind."""
    folder = scratch / kind.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(corpus / kind.name, folder)
    return folder


def describe(case: Case, corpus: Path, folder: Path) -> dict[str, Any]:
    """Kind, file and damage of a case; the damage is done to the file in `folder`."""
    rng = case.rng()
    kind = case.kind(rng)
    whole = corpus / kind.name
    files = [path.relative_to(whole) for path in sorted(whole.glob(kind.files)) if path.is_file()]
    file = rng.choice(files)
    done = {"seed": case.seed, "case": case.number, "kind": kind.name, "file": str(file)}
    others = [path for path in sorted(corpus.glob("*/*")) if path.is_file()]
    others = [path for path in others if path.parent != whole and path.stat().st_size < 2**20]
    return done | {"damage": damage.damage(rng, folder / file, others)}


def _silently_wrong(kind: Kind, how: str, result: object, original: object) -> str | None:
    """What is wrong with a result that looks sane and about which nothing was said."""
    if kind.whole and how == "cut":
        return "a file that was cut short is used"
    if kind.name.startswith("annotation") and isinstance(result, tuple):
        assert isinstance(original, tuple)
        gone = result[1] is None and "missing" in how  # no annotation says nothing
        if original[2] and not result[2] and not gone:
            return "annotated tumour has become Normal"
    return None


def digest(result: object) -> str:
    """The same for the same result."""
    return hashlib.sha256("\n".join(_words(result)).encode("utf-8", "backslashreplace")).hexdigest()


def _words(result: object) -> Iterator[str]:
    if isinstance(result, dict):
        for name, value in result.items():
            yield repr(name)
            yield from _words(value)
    elif isinstance(result, list | tuple):
        yield str(len(result))
        for value in result:
            yield from _words(value)
    elif isinstance(result, np.ndarray):
        yield f"{result.dtype} {result.shape}"
        yield hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()
    elif isinstance(result, pd.DataFrame):
        yield result.to_csv()
    else:
        yield repr(result)


def _place(error: BaseException) -> str:
    """The last place of ours on the way to an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}bach{os.sep}" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


class _Warnings(logging.Handler):
    """Keeps what was warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


# A process that is started anew imports this module by name.
if str(Path(__file__).resolve().parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
