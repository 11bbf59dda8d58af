"""Files that are whole or not there, JSON, and the one fingerprint of what a result rests on."""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.inputs import Limit, open_input, read_input, understood

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# In the name of every temporary file, so that those of killed processes are known.
_MARK = ".unfinished-"

_JSON_KINDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}


def first_process() -> bool:
    """Whether this process writes files: of several that train one model, the first."""
    return os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0") == "0"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn what the system says of a file or folder that is written into an InputError.

    Args:
        path: What the user named, or what lies in it.

    Raises:
        InputError: If the body raises an OSError of the system about this place: below a
            file, read-only, no room, a name too long. Errors about other files pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not _about(error, path):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"There must be room for {path}.\nReceived: {error.strerror}.\n"
                "Files written before are whole. Make room and run the same command again; a "
                "script goes on where it was with --resume."
            ) from error
        raise InputError(
            f"{path} must be a place that can be written.\nReceived: {error.strerror}.\n"
            "Name another place, or see who may write there."
        ) from error


def require_place(path: str | os.PathLike, remedy: str, folder: bool = False) -> None:
    """Refuse early, before slow work, a file or folder that cannot be made; nothing is made.

    Args:
        path: What the user named for our output.
        remedy: What to do, a sentence.
        folder: Whether it is to be a folder.

    Raises:
        InputError: If something else has the name, or it lies below a file or where we may
            not write, or the name is too long.
    """
    path = Path(path)
    try:
        above = next(place for place in (path, *path.absolute().parents) if _exists(place))
        if above == path and not (path.is_dir() if folder else path.is_file()):
            reason = f"it is no {'folder' if folder else 'file'}, but is there"
        elif above != path and not above.is_dir():
            reason = f"{above} is no folder"
        elif not os.access(above, os.W_OK):
            reason = f"{above} may not be written"
        else:
            return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"{path} must be a place that can be written.\nReceived: {reason}.\n{remedy}")


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success.

    A crash, a full disk, a kill or a power failure leaves the old file as it was: the new
    one is on the disk before it takes the name. The temporary name keeps the suffix, since
    many writers choose the format by it. In a process that writes no files
    (`first_process`) what was written is thrown away.

    Raises:
        InputError: If the place cannot be written, or there is no room.

    Example:
        >>> with atomic_path("table.csv") as temporary:  # doctest: +SKIP
        ...     frame.to_csv(temporary)
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:])  # two for .weights.h5
    prefix, suffix = _prefix(path.stem), ending if len(ending) < 20 else path.suffix
    with writing(path), contextlib.ExitStack() as stack:
        folder = None
        if first_process():
            require_place(path, "Name another place.")
            folder = path.parent
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder, prefix)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
        stack.callback(_hold(handle))
        temporary = Path(name)
        stack.callback(temporary.unlink, missing_ok=True)
        yield temporary
        if first_process():
            with contextlib.suppress(PermissionError):  # not every file system has owners
                os.chmod(temporary, 0o644)  # mkstemp makes files only their owner can read
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path`, which must be new, on success.

    Raises:
        InputError: If the place cannot be written, or there is no room.
    """
    path = Path(path)
    prefix = _prefix(path.name)
    with writing(path), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent, prefix)
        beside = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent))
        if fcntl is not None:
            stack.callback(_hold(os.open(beside, os.O_RDONLY)))
        inside = Path(beside) / path.name
        inside.mkdir()
        yield inside
        os.replace(inside, path)  # over an empty folder, too
        _flush(path.parent)


def clear_temporary(folder: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of files they were writing, in a folder and below.

    What a live process writes stays.
    """
    for place, _, _ in os.walk(os.fspath(folder)):
        _clear(Path(place), ".")


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


def read_object(path: str | os.PathLike, remedy: str, **kinds: type) -> dict[str, Any]:
    """Read a JSON file that holds one object, as all of ours do.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, a sentence.
        kinds: Type of a field where it is there and not null; float takes whole numbers.

    Raises:
        InputError: If the file is missing or damaged, or a field is of another kind.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object.\nReceived: {value!r:.50}.\n{remedy}")
    for name, kind in kinds.items():
        field = value.get(name)
        fits = (int, float) if kind is float else kind
        if field is not None and (
            not isinstance(field, fits) or (kind is not bool and field is True)
        ):
            raise InputError(
                f"Field '{name}' of {path} must be of kind {_JSON_KINDS[kind]}.\n"
                f"Received: {field!r:.50}.\n{remedy}"
            )
    return value


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as `.npy`, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def read_array(
    path: str | os.PathLike, remedy: str, dimensions: int, mapped: bool = False
) -> np.ndarray:
    """Read an array of numbers from `.npy`.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, a sentence.
        dimensions: Number of dimensions that it must have.
        mapped: Leave it on the disk; only what is used is read.

    Raises:
        InputError: If the file is missing or damaged, or holds something else.
    """
    must = f"hold an array of {dimensions} dimensions"
    with open_input(path, must, remedy, Limit.ARRAY) as stream:
        array: np.ndarray = (
            np.lib.format.open_memmap(path, mode="r")
            if mapped
            else np.lib.format.read_array(stream, allow_pickle=False)
        )
        if array.ndim != dimensions or array.dtype.kind not in "biuf":
            raise ValueError(f"an array of shape {array.shape} and type {array.dtype}")
        return array


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
    sizes = [os.path.getsize(path) for path in files.values() if path and os.path.isfile(path)]
    with (
        _bytes_bar("checksums", sum(sizes)) as bar,
        concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        digests = pool.map(lambda path: _digest(path, bar), files.values())
        found = dict(zip(files, digests, strict=True))
    if settings is not None:
        found["settings"] = hashlib.sha256(_dump(settings, sort=True).encode()).hexdigest()
    return found


def checksum(path: str | os.PathLike, kind: str) -> str:
    """Checksum of a file, 32 hexadecimal digits for "md5".

    Raises:
        InputError: If it cannot be read.
    """
    with _bytes_bar(Path(path).name, os.path.getsize(path)) as bar:
        return _digest(path, bar, kind)


def _bytes_bar(name: str, total: int) -> tqdm:
    # Most files take no time; only what does is shown.
    return tqdm(
        desc=name, total=total, unit="B", unit_scale=True, delay=2, leave=False, disable=None
    )


def _digest(path: str | os.PathLike | None, bar: tqdm, kind: str = "sha256") -> str:
    if path is None:
        return "none"
    digest = hashlib.new(kind, usedforsecurity=False)
    with open_input(path, "be a readable file", "Check the name.") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _prefix(name: str) -> str:
    """How temporary names of a file begin; a name that just fits must not become too long."""
    return f".{os.fsencode(name)[:100].decode(errors='ignore')}{_MARK}"


def _hold(handle: int) -> Callable[[], None]:
    """Hold a lock on an open file while this process lives; returns what ends that."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        return functools.partial(os.close, handle)
    os.close(handle)  # an open file cannot be renamed on Windows
    return lambda: None


def _clear(folder: Path, prefix: str) -> None:
    """Remove temporary files that begin with a prefix and that no live process holds."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and _MARK in entry.name:
                with contextlib.suppress(OSError):
                    _remove_unheld(entry)


def _remove_unheld(entry: os.DirEntry) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    handle = os.open(entry.path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if somebody writes it
        if is_folder:
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # no disk to wait for
            raise
    finally:
        os.close(handle)


def _about(error: OSError, path: str | os.PathLike) -> bool:
    """Whether an error is about a path, what lies in it, its folders or its temporary file."""
    if not isinstance(error.filename, str | bytes):
        return True
    about, here = (Path(os.path.abspath(os.fsdecode(name))) for name in (error.filename, path))
    return about.parent == here.parent or about in here.parents or here in about.parents


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
