"""Run folders.

A run folder tells its own story: `run.json` (every start with its command, arguments,
commit, versions and devices, and how it ended), `log.txt`, and the tables and pictures
of its stage. Files are written beside and renamed, so a file that is there is whole.
`metrics.json` is written last: its presence means that the run is finished.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from bach.core import options
from bach.core.errors import InputError, meant
from bach.core.files import (
    clear_temporary,
    first_process,
    read_object,
    require_place,
    write_json,
    writing,
)
from bach.core.log import log, setup_logging
from bach.core.shards import FOLDER as SHARDS
from bach.core.shards import shard_of
from bach.core.text import duration, listed

_VERSIONED = (
    "keras",
    "tensorflow",
    "jax",
    "numpy",
    "pandas",
    "opencv-python-headless",
    "openslide-python",
    "scikit-image",
)

_LOCK = ".lock"


class Run:
    """A run folder, looked at before it is made.

    Args:
        args: The script's options: a dataclass of options, see `bach.core.options`, with
            `run_dir` and `resume`.
        done: Tells by the metrics of a run there whether it holds all that is asked for now;
            by default it does unless something failed.

    Attributes:
        path: The folder.
        shard: The part of the run that is to be done, or None for all of it.
        home: Where the record of this start lies: the folder, or that of the part in it.
        collect: Whether parts are to be brought together.
        finished: Whether the folder holds a finished run with the same arguments (only
            with `--resume`); the script then has nothing to do.

    Nothing is written before `start`, so that a command which is refused leaves nothing.

    Raises:
        InputError: If the folder holds a run and `--resume` was not given, or if
            `--resume` was given and the run there had other arguments.
    """

    def __init__(self, args: Any, done: Callable[[dict], bool] = lambda metrics: True):
        self.path = Path(args.run_dir)
        field = next(field for field in dataclasses.fields(args) if field.name == "run_dir")
        self._option = options.flag(field)
        self.shard = shard_of(args)
        self.collect = bool(getattr(args, "collect", False))
        self.home = self.path if self.shard is None else self.path / self.shard.folder
        require_place(self.home, f"Name another {self._option}.", folder=True)
        self._args = args
        self._began = time.monotonic()
        self._starts: list[dict] = []
        metrics = read_metrics(self.home)
        has_metrics = metrics is not None
        whole = metrics is not None and not metrics.get("failed") and done(metrics)
        self.finished = False
        if not first_process():
            # The first process checks and writes for all.
            self.finished = args.resume and whole
            return
        records = self._records()
        record = records.get(self.home)
        self._check_folder(records, "a finished run" if has_metrics else "an unfinished run")
        if record is None:
            return
        self._starts = record.get("starts", [])
        self.finished = whole and not self.collect
        if self.finished:
            log.info("finished already: %s (nothing to do)", self.home)
            if self._starts and str(record.get("status")).startswith("interrupted"):
                self._write_status("finished")  # the signal came when all was written

    def _records(self) -> dict[Path, dict[str, Any]]:
        """What the starts of the whole run and of its parts say, by where it lies."""
        found = sorted(self.path.glob(f"{SHARDS}/*_of_*/run.json"))
        homes = [self.path, *(file.parent for file in found)]
        records = {home: read_record(home) for home in homes}
        return {home: record for home, record in records.items() if record is not None}

    def _check_folder(self, records: Mapping[Path, dict[str, Any]], state: str) -> None:
        """Refuse a folder that holds something else, or what may not be gone on with."""
        # A run killed at its very start leaves its log, and hidden temporary files.
        others = list(self.path.iterdir()) if self.path.is_dir() else []
        others = [p for p in others if p.name not in ("log.txt", SHARDS) and p.name[0] != "."]
        if not records and others:
            raise InputError(
                f"The run folder {self.path} is not empty and holds no run.json.\n"
                f"Received: {self._option}={self.path}.\n"
                "Name a new folder, so that nothing is overwritten."
            )
        # Its own start is gone on with by --resume; parts are by whoever brings them together.
        begun = self.home in records or (self.shard is None and bool(records))
        if begun and not self._args.resume and not self.collect:
            held = state if self.home in records else "parts of a run"
            raise InputError(
                f"The run folder {self.path} already holds {held}.\n"
                f"Received: {self._option}={self.path}.\n"
                "Add --resume to go on with it, or name another folder."
            )
        for home, record in records.items():
            changes = options.changed(record.get("arguments", {}), self._args, record.get("folder"))
            if changes:
                raise InputError(
                    f"Cannot resume {home}: it was started with other arguments.\n"
                    + "\n".join(changes)
                    + f"\nUse the same arguments, or name another {self._option}."
                )

    @contextlib.contextmanager
    def start(self, **about: object) -> Iterator[None]:
        """Make the folder, keep others out of it, and record how the body ended.

        Args:
            about: What else is recorded of this start: what the run computes with, as
                `network.backend.start` returns it (`devices`, `device`, `backend`,
                `precision`), or what it was made from.

        Raises:
            InputError: If another process works in the folder.
        """
        if not first_process():
            setup_logging()
            yield
            return
        with locked(self.home, "the same command with --resume"):
            self._check_unchanged()
            with writing(self.home):
                setup_logging(self.home / "log.txt")
            if self._starts:
                if self._starts[-1].get("task") != about.get("task"):
                    raise InputError(
                        f"{self.home} must be gone on with by the task that it was begun with.\n"
                        "Received: another --task, or the file says something else now.\n"
                        f"Name that task, or another {self._option}."
                    )
                log.info("resuming %s", self.home)
            if "device" in about:
                said = "devices: {devices} {device} ({backend}, {precision})"
                log.info("%s", said.format(**about))
            self._starts = [*self._starts, self._describe(about)]
            try:
                self._write_status("running")
                yield
            except BaseException as raised:
                error = meant(raised)
                # Ctrl-C, a signal, or nobody who reads what is printed.
                interrupted = isinstance(error, KeyboardInterrupt | BrokenPipeError)
                why = f" ({error})" if str(error) not in ("", "SIGINT") else ""
                status = f"interrupted{why}"
                if not interrupted:
                    status = f"failed: {type(error).__name__}: {error}"
                with contextlib.suppress(InputError):  # no room to say so does not hide why
                    self._write_status(status)
                if interrupted:
                    log.warning("%s; the same command with --resume goes on", status)
                raise

    def _check_unchanged(self) -> None:
        """Refuse a folder that another process has worked in since this one looked at it."""
        record = read_record(self.home)
        if (record or {}).get("starts", []) != self._starts:
            raise InputError(
                f"Another process must not have worked in {self.home} in the meantime.\n"
                "Received: another start in its run.json.\n"
                "Run the same command with --resume."
            )

    def finish(self, metrics: dict) -> None:
        """Write the metrics, which marks the run as finished.

        Args:
            metrics: Any figures; `failed` lists what could not be done, if anything: the run
                can then be used as it is, and `--resume` tries these again.
        """
        failed = metrics.get("failed")
        self._write_status(f"complete but for {listed(failed)}" if failed else "finished")
        write_json(self.home / "metrics.json", metrics)
        log.info("finished in %s", duration(time.monotonic() - self._began))

    def _describe(self, about: dict) -> dict:
        """What is recorded of a start."""
        module = sys.modules[type(self._args).__module__]
        spec = getattr(module, "__spec__", None)  # none of a script that was started itself
        script = Path(getattr(module, "__file__", None) or sys.argv[0]).name
        if spec is not None and "." in spec.name:
            script = f"-m {spec.name}"
        tool = [self._args.tool] if hasattr(self._args, "tool") else []  # of a command with several
        return {
            "command": " ".join([script, *tool, *options.words(self._args)]),
            "arguments": dataclasses.asdict(self._args),
            "folder": os.getcwd(),
            **git_state(),
            **about,
            "versions": versions(),
            "begun": _now(),
        }

    def _write_status(self, status: str) -> None:
        self._starts[-1] |= {"status": status, "time": _now()}
        # The last start once more at the top, where readers of one look for it.
        write_json(self.home / "run.json", {**self._starts[-1], "starts": self._starts})


def read_record(run: str | os.PathLike) -> dict[str, Any] | None:
    """What `run.json` of a run folder says, or None where there is none.

    Raises:
        InputError: If it is damaged.
    """
    file = Path(run) / "run.json"
    if not file.exists():
        return None
    record = read_object(
        file,
        "Name another --run-dir, or delete this one.",
        arguments=dict,
        starts=list,
        folder=str,
        status=str,
        command=str,
    )
    if not all(isinstance(start, dict) for start in record.get("starts", [])):
        raise InputError(
            f"{file} must be the record of a run.\nReceived: starts that are no objects.\n"
            "Name another --run-dir, or delete this one."
        )
    return record


def read_metrics(run: str | os.PathLike) -> dict[str, Any] | None:
    """The figures of a finished run, or None where it is not finished.

    Raises:
        InputError: If they are damaged.
    """
    file = Path(run) / "metrics.json"
    if not file.exists():
        return None
    return read_object(
        file, "Delete it and run the same command with --resume.", failed=list, per_fold=dict
    )


def patch_folder(run: str | os.PathLike) -> Path:
    """Where the patches of a run lie: its own, or those it shares by `--patches-dir`."""
    own = Path(run) / "patches"
    record = read_record(run) or {}
    shared = record.get("arguments", {}).get("patches_dir")
    return own if own.exists() or shared is None else Path(record.get("folder", "."), shared)


@contextlib.contextmanager
def locked(folder: Path, again: str, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is not there.

    Args:
        folder: The folder; processes that do not ask for its lock are not kept out.
        again: What to run once the other process has ended, for the error.
        wait: Whether to wait for the other process instead.

    What killed processes left half written in the folder is removed.

    Raises:
        InputError: If another process holds the folder, or it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = _acquire(folder, again, wait)
    with held:
        clear_temporary(folder)
        yield


def _acquire(folder: Path, again: str, wait: bool) -> contextlib.AbstractContextManager:
    lock = filelock.FileLock(folder / _LOCK)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout as error:
        if not wait:
            raise InputError(
                f"Another process is at work in {folder}.\n"
                f"Received: {folder / _LOCK}, which it holds.\n"
                f"Wait until it has ended, or end it; then run {again}."
            ) from error
    except NotImplementedError:
        log.warning(
            "%s: its file system has no locks, so that two processes may work here side by side "
            "and spoil each other's files; see that there is one",
            folder,
        )
        return contextlib.nullcontext()
    log.info("waiting for another process that is at work in %s", folder)
    return lock.acquire()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_state() -> dict:
    """The commit this code was run from and whether it was changed since."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def versions() -> dict:
    """Versions of Python, the platform and the packages that can change results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
