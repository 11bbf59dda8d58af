"""Large files from the network: broken downloads go on where they were, all is verified."""

import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.files import checksum, writing
from bach.core.inputs import MB
from bach.core.log import log

# Attempts in a row that bring nothing new, and the longest wait before one, in seconds.
_ATTEMPTS, _LONGEST_WAIT = 5, 30.0
_TIMEOUT = (20.0, 60.0)  # seconds for a connection, and for the next bytes
_CHUNK = MB
_SMALL = 10 * MB  # the longest answer that is kept in memory
# Refusals of a server that pass: too slow, too many, trouble of its own.
_PASSING = {408, 425, 429, 500, 502, 503, 504}

_AGAIN = "See that there is a network, and run the same command again: it goes on where it was."


class _PassingError(Exception):
    """The network or the server has failed in a way that may pass."""


def require_pooch() -> Any:
    """The library that fetches and verifies files.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import pooch  # an extra, and slow
    except ImportError as error:
        raise InputError(
            "The package pooch, which downloads are made with, must be installed.\n"
            f"Received: {error}.\n"
            'Run pip install "bach-histology[download]", or pip install pooch; or download the '
            "archives by hand."
        ) from error
    return pooch


def fetch(url: str, path: Path, size: int, md5: str) -> None:
    """Download a file, unless it is there and whole.

    What has come is kept in `NAME.part` until all is there, whatever ends the command.

    Args:
        url: Where it is.
        path: Where it goes.
        size: Its size in bytes.
        md5: Its checksum, 32 hexadecimal digits.

    Raises:
        InputError: If it cannot be had, is another file than the checksum says, or cannot be
            written.
    """
    pooch = require_pooch()
    pooch.get_logger().setLevel("WARNING")  # the bar says it all
    known = f"md5:{md5}"
    if path.exists():
        log.info("%s: is there, its checksum is computed", path.name)
        if checksum(path, "md5") == md5:
            return
        log.warning("%s: another file than its checksum says; downloaded anew", path)
    part = path.with_name(f"{path.name}.part")
    try:
        with writing(path):
            pooch.retrieve(
                url, known, fname=path.name, path=path.parent, downloader=_Resuming(part, size)
            )
        part.unlink(missing_ok=True)
    except ValueError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"{path.name} must have the checksum that is published for it, md5 {md5}.\n"
            f"Received: another file from {url}; it was removed.\n"
            "Run the same command again. If that does not help, the file at the source has changed "
            "or is damaged."
        ) from error


def fetch_text(url: str) -> str:
    """A short text from the network.

    Raises:
        InputError: If it cannot be had.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _answer(url) as response:
                content = b""
                for chunk in _chunks(response):
                    content += chunk
                    if len(content) > _SMALL:
                        raise _refused(url, f"more than {_SMALL:,} bytes")
                return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _refused(url, "bytes that are no text") from error
        except _PassingError as error:
            if attempt == _ATTEMPTS:
                raise _refused(url, str(error)) from error
            _wait(attempt, error)
    raise AssertionError("unreachable")


class _Resuming:
    """Downloads a file for pooch, from where an earlier attempt ended.

    Args:
        part: File that holds what has come so far; it stays if this ends early.
        size: Size of the whole file in bytes.
    """

    def __init__(self, part: Path, size: int):
        self._part, self._size = part, size

    def __call__(self, url: str, output_file: str | os.PathLike, pooch: object = None) -> None:
        there = self._there()
        if there:
            log.info("%s: goes on after %s MB", self._part.stem, f"{there / 1e6:,.0f}")
        best, futile = there, 0
        with tqdm(
            desc=self._part.stem,
            total=self._size,
            initial=there,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar:
            while self._there() < self._size:
                try:
                    self._go_on(url, bar)
                except _PassingError as error:
                    reached = self._there()
                    futile = 0 if reached > best else futile + 1
                    best = max(best, reached)
                    if futile == _ATTEMPTS:
                        raise _refused(url, str(error)) from error
                    _wait(futile, error)
            if not self._size:
                self._part.touch()
        # As a second name: pooch removes its own if it is interrupted while it verifies.
        os.unlink(output_file)
        try:
            os.link(self._part, output_file)
        except OSError:  # not every file system has them
            os.replace(self._part, output_file)

    def _there(self) -> int:
        """Bytes that have come; none of a file that cannot be the beginning of this one."""
        try:
            length = self._part.stat().st_size
        except FileNotFoundError:
            return 0
        if length > self._size:
            self._part.unlink()
            return 0
        return length

    def _go_on(self, url: str, bar: tqdm) -> None:
        """Ask for what is missing, and write what comes.

        Raises:
            _PassingError: If that is not all.
        """
        there = self._there()
        with _answer(url, there) as response:
            if there and response.status_code != 206:
                log.warning("%s: the server cannot go on, so it begins anew", self._part.stem)
                there = 0
            elif there and not _begins_at(response.headers.get("Content-Range", ""), there):
                self._part.unlink()
                raise _PassingError("the server sent another part than was asked for")
            bar.n = there
            bar.refresh()
            with writing(self._part), self._part.open("ab" if there else "wb") as stream:
                try:
                    for chunk in _chunks(response):
                        there += len(chunk)
                        if there > self._size:
                            raise _refused(url, f"more than its {self._size:,} bytes")
                        stream.write(chunk)
                        bar.update(len(chunk))
                    said = ""
                except _PassingError as error:
                    said = f" ({error})"
        if there < self._size:
            raise _PassingError(
                f"the connection ended after {there:,} of {self._size:,} bytes{said}"
            )


def _begins_at(content_range: str, first: int) -> bool:
    return content_range.removeprefix("bytes").strip().startswith(f"{first}-")


def _answer(url: str, first: int = 0):
    """What the server answers, from a byte on; the content is still to come.

    Raises:
        _PassingError: If there is no answer, or one that may change.
        InputError: If the server refuses.
    """
    import requests  # pooch's, and slow

    # As it is: compressed on the way, a part of it could not be asked for.
    headers = {"Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    except requests.exceptions.InvalidURL as error:
        raise _refused(url, str(error)) from error
    except requests.exceptions.RequestException as error:
        raise _PassingError(_said(error)) from error
    if response.ok:
        return response
    response.close()
    reason = f"{response.status_code} {response.reason}"
    raise _PassingError(reason) if response.status_code in _PASSING else _refused(url, reason)


def _chunks(response):
    """The content of an answer, piece by piece."""
    import requests

    try:
        yield from response.iter_content(_CHUNK)
    except requests.exceptions.RequestException as error:
        raise _PassingError(_said(error)) from error


def _said(error: Exception) -> str:
    """What an error of the network says, without the layers around it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    error = getattr(error, "reason", error) or error
    return str(error.args[0] if error.args else error)[:200] or type(error).__name__


def _wait(futile: int, error: Exception) -> None:
    seconds = min(2.0**futile, _LONGEST_WAIT)
    log.warning("%s; tried again in %.0f s", error, seconds)
    time.sleep(seconds)


def _refused(url: str, received: str) -> InputError:
    return InputError(f"{url} must be there to be downloaded.\nReceived: {received}.\n{_AGAIN}")
