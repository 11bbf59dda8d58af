"""Files that are whole or not there, JSON, and the one fingerprint of what a result rests on."""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bach.core.errors import InputError
from bach.core.inputs import Limit, read_input, understood


def first_process() -> bool:
    """Whether this process writes files: of several that train one model, the first."""
    return os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0") == "0"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success.

    A crash, a full disk or a kill leaves the old file as it was. The temporary
    name keeps the suffix, since many writers choose the format by it. In a process
    that writes no files (`first_process`) what was written is thrown away.

    Raises:
        InputError: If there is no room for it.

    Example:
        >>> with atomic_path("table.csv") as temporary:  # doctest: +SKIP
        ...     frame.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    temporary = None
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=suffix, dir=path.parent if first_process() else None
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if first_process():
            os.chmod(temporary, 0o644)  # mkstemp makes files only their owner can read
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"There must be room for {path}.\nReceived: {error.strerror}.\n"
            "Files written before are whole. Make room and run the same command again; a script "
            "goes on where it was with --resume."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path`, which must be new, on success."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        inside = Path(beside) / path.name
        inside.mkdir()
        yield inside
        os.replace(inside, path)  # over an empty folder, too


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all; nan becomes null."""
    with atomic_path(path) as temporary:
        temporary.write_text(_dump(value, indent=2) + "\n", encoding="utf-8")


def to_json(value: object) -> str:
    """One line of JSON, with null for a number that is undefined (nan)."""
    return _dump(value)


def read_json(path: str | os.PathLike, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, a sentence.

    Raises:
        InputError: If the file is missing or damaged.
    """
    content = read_input(path, "hold JSON", remedy, Limit.JSON)
    with understood(path, "hold JSON", remedy):
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as `.npy`, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def fingerprint(
    files: Mapping[str, str | os.PathLike | None], settings: Mapping[str, object] | None = None
) -> dict[str, str]:
    """What a stored result depends on, by content: not by path, and not by time.

    A result is stored with the fingerprint of its inputs, and taken as it is only if they
    are the same when it is looked at again.

    Args:
        files: A file by its part in the result ("slide", "annotation"); None where there
            is none, which differs from any file.
        settings: What else decides the result: the options.

    Returns:
        {part: digest}, to be stored as JSON; `settings` have one digest together.

    Raises:
        InputError: If a file cannot be read.
    """
    workers = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        found = dict(zip(files, pool.map(_digest, files.values()), strict=True))
    if settings is not None:
        found["settings"] = hashlib.sha256(_dump(settings, sort=True).encode()).hexdigest()
    return found


def _digest(path: str | os.PathLike | None) -> str:
    if path is None:
        return "none"
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"No such file: {path}.\nReceived: {error.strerror}.\nCheck the name."
        ) from error


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word}, which is no number")


def _dump(value: object, indent: int | None = None, sort: bool = False) -> str:
    def plain(item: object) -> object:
        # NumPy's numbers are no JSON, but they are numbers.
        if isinstance(item, np.generic | np.ndarray):
            item = item.tolist()
        if isinstance(item, Mapping):
            return {str(key): plain(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [plain(part) for part in item]
        if isinstance(item, float) and math.isnan(item):
            return None
        return item if isinstance(item, str | int | float | None) else str(item)

    return json.dumps(plain(value), indent=indent, sort_keys=sort, allow_nan=False)
