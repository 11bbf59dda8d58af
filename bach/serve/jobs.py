"""Slide jobs in an SQLite file: what was accepted is kept, whatever happens to the service."""

import contextlib
import datetime
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bach.core.errors import InputError
from bach.core.inputs import understood

QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = (
    "queued",
    "running",
    "finished",
    "failed",
    "cancelled",
)
STATES = (QUEUED, RUNNING, FINISHED, FAILED, CANCELLED)
ENDED = (FINISHED, FAILED, CANCELLED)

# A slide that ends the service each time (no memory) must not do so for ever.
MOST_STARTS = 5

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    slide TEXT NOT NULL,
    path TEXT NOT NULL,
    mpp REAL,
    state TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    starts INTEGER NOT NULL DEFAULT 0,
    created TEXT NOT NULL,
    begun TEXT,
    ended TEXT
)
"""
_COLUMNS = "id, slide, path, mpp, state, message, starts, created, begun, ended"


class Job(NamedTuple):
    """A slide that is to be predicted, or was.

    Attributes:
        id: 32 hexadecimal digits, which also name its folder.
        slide: The slide as it was named, for people.
        path: Where it lies.
        mpp: um per level-0 px that was stated with it, or None.
        state: One of `STATES`.
        message: Why it failed.
        starts: How often work on it was begun and not given back.
        created, begun, ended: Times, ISO 8601 in UTC; the last two may be None.
    """

    id: str
    slide: str
    path: str
    mpp: float | None
    state: str
    message: str
    starts: int
    created: str
    begun: str | None
    ended: str | None


class Jobs:
    """The jobs of a service. Safe to use from several threads.

    Every change is on the disk when its method returns.

    Args:
        file: The SQLite file, made if it is not there. One process uses it at a time.

    Raises:
        InputError: If it is damaged, none of ours, or of a later version.
    """

    def __init__(self, file: Path):
        self._lock = threading.Lock()
        remedy = "Move it away to begin without jobs; the folders of finished ones stay."
        with understood(file, "hold the jobs of a service", remedy):
            self._db = sqlite3.connect(file, check_same_thread=False)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise InputError(
                    f"{file} must be of this version of the service.\n"
                    f"Received: version {version}, at most {_VERSION} is known.\n"
                    "Name another --jobs-dir, or use the newer version."
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self._db:
                self._db.execute(_TABLE)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
                self._db.execute(f"SELECT {_COLUMNS} FROM jobs LIMIT 1")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, slide: str, path: Path, mpp: float | None, id: str | None = None) -> Job:
        """Accept a slide; it waits behind those that came before."""
        values = (id or new_id(), slide, str(path), mpp, QUEUED, _now())
        with self._writing() as db:
            db.execute(
                "INSERT INTO jobs (id, slide, path, mpp, state, created) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        found = self.get(values[0])
        assert found is not None
        return found

    def get(self, id: str) -> Job | None:
        """A job, or None where there is none."""
        found = self._select("WHERE id = ?", id)
        return found[0] if found else None

    def newest(self, most: int) -> list[Job]:
        """The newest jobs, the last first."""
        return self._select("ORDER BY number DESC LIMIT ?", most)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            found = self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        return dict.fromkeys(STATES, 0) | dict(found)

    def claim(self) -> Job | None:
        """Begin the job that has waited longest; None where none waits.

        One that has ended the service so often already is failed instead.
        """
        while waiting := self._select("WHERE state = ? ORDER BY number LIMIT 1", QUEUED):
            job = waiting[0]
            if job.starts < MOST_STARTS:
                begun = "state = ?, begun = ?, starts = starts + 1"
                self._update(job.id, QUEUED, begun, RUNNING, _now())
                found = self.get(job.id)
                if found is not None and found.state == RUNNING:
                    return found
            else:
                self.end(
                    job.id,
                    FAILED,
                    f"A slide must leave the service alive.\nReceived: {job.starts} starts, and "
                    "the service ended in each.\nSee its log; perhaps memory is short.",
                )
        return None

    def end(self, id: str, state: str, message: str = "") -> bool:
        """Say how a job has ended, unless it has ended before."""
        for before in (RUNNING, QUEUED):
            values = "state = ?, message = ?, ended = ?"
            if self._update(id, before, values, state, message, _now()):
                return True
        return False

    def give_back(self, id: str) -> None:
        """Let a job that was begun wait again, as the first: the service stops."""
        self._update(id, RUNNING, "state = ?, begun = NULL, starts = starts - 1", QUEUED)

    def recover(self) -> int:
        """Let jobs wait again that were running when the service was killed: how many."""
        with self._writing() as db:
            return db.execute(
                "UPDATE jobs SET state = ?, begun = NULL WHERE state = ?", (QUEUED, RUNNING)
            ).rowcount

    def forget(self, id: str) -> None:
        """Remove a job that has ended."""
        with self._writing() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def _update(self, id: str, before: str, change: str, *values: object) -> bool:
        """Change a job that is still in a state: whether it was."""
        with self._writing() as db:
            statement = f"UPDATE jobs SET {change} WHERE id = ? AND state = ?"
            return db.execute(statement, (*values, id, before)).rowcount > 0

    def _select(self, condition: str, *values: object) -> list[Job]:
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs {condition}", values).fetchall()
        return [Job(*row) for row in rows]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db


def new_id() -> str:
    """An id that nobody can guess."""
    return uuid.uuid4().hex


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
