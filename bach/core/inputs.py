"""Files that others made: looked at before they are opened, and named when they are damaged.

Every reader goes through this door, so that no kind of file can hang a command (a pipe in its
place), eat the memory (a file of terabytes) or end it with a traceback (whatever a library
raises about bytes it did not expect).

    content = read_input(path, "hold JSON", remedy, Limit.JSON)
    with understood(path, "hold JSON", remedy):
        value = json.loads(content)
"""

import contextlib
import enum
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bach.core.errors import InputError

KB, MB, GB = 2**10, 2**20, 2**30


class Limit(enum.IntEnum):
    """The largest file of each kind that is read, in bytes: far above any that is meant."""

    JSON = 100 * MB
    TABLE = 100 * MB
    ANNOTATION = 500 * MB
    PICTURE = 2 * GB
    ARRAY = 64 * GB
    MODEL = 16 * GB
    TORCH = GB
    ARCHIVE = 4 * GB


# Windows knows no waiting pipes among its files, but another kind of newlines.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# The longest reason of a library that is repeated to the user.
_REASON = 300


def require_file(path: str | os.PathLike, must: str, remedy: str, limit: int | None = None) -> Path:
    """Look at a file before a library opens it: it must be one, and of a size to be read.

    Args:
        path: What the user named.
        must: What holds for a good file, after "must": "be a readable picture".
        remedy: What to do if it is none, a sentence.
        limit: Largest size in bytes, see `Limit`; none if not given.

    Returns:
        The path.

    Raises:
        InputError: If it is not there, cannot be read, is a folder, pipe or device, or is
            too large.
    """
    with _open(path, must, remedy, limit):
        return Path(path)


def read_input(path: str | os.PathLike, must: str, remedy: str, limit: int) -> bytes:
    """All bytes of a file, which is looked at first: see `require_file`."""
    with _open(path, must, remedy, limit) as stream, understood(path, must, remedy):
        return stream.read(limit)


@contextlib.contextmanager
def open_input(
    path: str | os.PathLike, must: str, remedy: str, limit: int | None = None
) -> Iterator[io.BufferedReader]:
    """A file open for reading, looked at first; what the body raises becomes an InputError.

    For libraries that read from a stream; see `require_file` and `understood`.
    """
    with _open(path, must, remedy, limit) as stream, understood(path, must, remedy):
        yield stream


@contextlib.contextmanager
def understood(path: str | os.PathLike, must: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises about the bytes of a file into an InputError that names it.

    Libraries raise anything about bytes they did not expect: OSError, ValueError, KeyError,
    struct.error, zlib.error, BadZipFile, RecursionError, MemoryError, TypeError, errors of
    their own. So only the call of the library belongs into the body, no code of ours.

    Args:
        path: The file that is read.
        must: What holds for a good file, after "must": "hold JSON".
        remedy: What to do, a sentence.

    Raises:
        InputError: If the body raises anything but an InputError.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(_said(path, must, reason(error), remedy)) from error


@contextlib.contextmanager
def _open(
    path: str | os.PathLike, must: str, remedy: str, limit: int | None
) -> Iterator[io.BufferedReader]:
    try:
        # Without waiting: to open a pipe waits for somebody who writes to it.
        handle = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(_said(path, must, reason(error), remedy)) from error
    found = os.fstat(handle)
    received = None
    if not stat.S_ISREG(found.st_mode):
        folder = stat.S_ISDIR(found.st_mode)
        received = "a folder" if folder else "a pipe or device, no file"
    elif limit is not None and found.st_size > limit:
        received = f"a file of {_size(found.st_size)}; at most {_size(limit)} are read"
    if received is not None:
        os.close(handle)
        raise InputError(_said(path, must, received, remedy))
    with open(handle, "rb") as stream:
        yield stream


def _said(path: str | os.PathLike, must: str, received: str, remedy: str) -> str:
    return f"{os.fspath(path)} must {must}.\nReceived: {received}.\n{remedy}"


def reason(error: BaseException) -> str:
    """What an error says, in a line of bearable length."""
    if isinstance(error, MemoryError):
        return "more than the memory holds"
    if isinstance(error, RecursionError):
        return "parts within parts without end"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = " ".join(text.split()).rstrip(".")
    return line[:_REASON] or type(error).__name__


def _size(count: int) -> str:
    unit, name = next(((u, n) for u, n in ((GB, "GB"), (MB, "MB")) if count >= u), (KB, "kB"))
    return f"{count / unit:.1f} {name}"
