"""Forms with a file (multipart/form-data), written to the disk as they come, within limits."""

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from bach.core.errors import InputError
from bach.core.files import writing

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_IDLE_S = 30.0  # a client that sends nothing for so long is given up
_CHUNK = 1 << 20  # bytes that are written at a time, off the event loop
_MOST_PARTS = 16
_MOST_FIELD = 10_000
_MOST_NAME = 200  # bytes of a file name, so that results, named after it, fit too


class TooLargeError(Exception):
    """More was sent than is taken; the message says how much that is."""


class TooSlowError(Exception):
    """The client has stopped sending."""


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        TooLargeError: If it has more bytes than `most`.
        TooSlowError: If it stops coming.
    """
    parts = [part async for part in _chunks(request, most)]
    return b"".join(parts)


class Form:
    """A form with one file that is kept, while it is received.

    Args:
        wanted: Name of the field with the file.
        file: Where its content goes.

    Attributes:
        fields: Text of the other fields.
        filename: What the client calls the file, without folders; None until one has come.
    """

    def __init__(self, wanted: str, file: BinaryIO):
        self._wanted, self._file = wanted, file
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._headers: dict[str, bytes] = {}
        self._name = self._value = b""
        self._field: str | None = None
        self._text = b""
        self._whole = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def check(self) -> None:
        """Refuse a form that broke off.

        Raises:
            InputError: Then.
        """
        if not self._whole:
            raise InputError(
                "A form must be sent whole.\nReceived: one without its end.\nSend it again."
            )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise TooLargeError(f"A form may have {_MOST_PARTS} fields.")
        self._headers, self._field, self._text = {}, None, b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, about = parse_options_header(
            self._headers.get("content-disposition", b"").decode("latin-1")
        )
        field = about.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in about:
            self._field = field
        elif field == self._wanted and self.filename is None:
            self.filename = _plain(about[b"filename"].decode("utf-8", "replace"))
            self._field = self._wanted
        else:
            raise InputError(
                f"A form must have one file, in the field {self._wanted}.\n"
                f"Received: {'a second one' if field == self._wanted else f'a file in {field!r}'}."
                f"\nSend one at a time: -F {self._wanted}=@FILE."
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field == self._wanted and self.filename is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MOST_FIELD:
            raise TooLargeError(f"A field of text may have {_MOST_FIELD:,} bytes.")

    def _end(self) -> None:
        if self._field is not None and not (self._field == self._wanted and self.filename):
            self.fields[self._field] = self._text.decode("utf-8", "replace").strip()

    def _finish(self) -> None:
        self._whole = True


@contextlib.asynccontextmanager
async def received(
    request: Request, wanted: str, folder: Path, most: int
) -> AsyncIterator[tuple[Form, Path]]:
    """A form, and the file that came with it, which is removed at the end if it is still there.

    Args:
        request: With a body of the kind multipart/form-data.
        wanted: Name of the field of the file; it may be missing: see `Form.filename`.
        folder: Where the file is written.
        most: Bytes of the whole body.

    Raises:
        InputError: If the body is no form, or breaks off.
        TooLargeError, TooSlowError: As `read_body`.
    """
    kind, about = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not about.get(b"boundary"):
        raise InputError(
            "A form of the kind multipart/form-data must be sent.\n"
            f"Received: {request.headers.get('content-type', 'nothing')!r:.100}.\n"
            f"With curl: -F {wanted}=@FILE."
        )
    with writing(folder):
        handle, name = tempfile.mkstemp(prefix="incoming-", dir=folder)
    path = Path(name)
    try:
        with open(handle, "wb") as file, writing(folder):
            form = Form(wanted, file)
            parser = MultipartParser(about[b"boundary"], form.callbacks())
            async for chunk in _chunks(request, most):
                await asyncio.to_thread(_write, parser, chunk)
            form.check()
        yield form, path
    finally:
        path.unlink(missing_ok=True)


def _write(parser: MultipartParser, chunk: bytes) -> None:
    try:
        parser.write(chunk)
    except FormParserError as error:
        raise InputError(
            f"A form must be well formed.\nReceived: {error}.\nSend it with curl -F, say."
        ) from error


async def _chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body of a request in larger pieces."""
    too_large = TooLargeError(f"A request may have {most / 2**20:,.0f} MB.")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise too_large
    parts: list[bytes] = []
    total = held = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_IDLE_S):
                part = await anext(stream, None)
        except TimeoutError as error:
            raise TooSlowError(f"Nothing came for {_IDLE_S:.0f} s.") from error
        if part is None:
            break
        parts.append(part)
        total, held = total + len(part), held + len(part)
        if total > most:
            raise too_large
        if held >= _CHUNK:
            yield b"".join(parts)
            parts, held = [], 0
    if held:
        yield b"".join(parts)


def _plain(filename: str) -> str:
    """A file name without folders and without what no file system takes."""
    name = re.split(r"[/\\]", filename)[-1].strip()
    name = "".join(letter for letter in name if letter.isprintable()).lstrip(".")
    stem, suffix = os.path.splitext(name)
    if len(suffix.encode()) > 20:
        stem, suffix = name, ""
    return stem.encode()[:_MOST_NAME].decode(errors="ignore").strip() + suffix
