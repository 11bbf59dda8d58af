"""Seeded damage to a file: what disks, transfers, spreadsheets and strangers do to it."""

import io
import os
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

# What stands in a file where something else should: numbers at the edge, the signs that formats
# are made of, text of other encodings, paths that lead elsewhere.
_NUMBERS = (
    b"NaN",
    b"inf",
    b"-1",
    b"0",
    b"1e999",
    b"9" * 400,
    b"-0.5",
    b"3.0",
    b"1,5",
    b"0x10",
    b"",
)
_TOKENS = (
    *_NUMBERS,
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b'"',
        b"'",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe9",
    ),
    *(b"<", b">", b"<a>", b"</a>", b"&x;", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"]]>", b"<!--"),
    *(b",", b";", b"\t", b"\r", b"\n\n", b" ", b"../../x", b"/etc/passwd", b"C:\\x", b"x" * 5000),
    *(b"Normal", b"Benign", b"image_id", b"label", "٣é\u2028".encode()),
)
_ENCODINGS = ("utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp1252")


def damage(rng: random.Random, file: Path, others: Sequence[Path]) -> str:
    """Damage a file in place.

    Args:
        rng: Decides what is done, and where.
        file: The file; afterwards there may be something else in its place, or nothing.
        others: Files of other kinds, one of which may take its place.

    Returns:
        What was done: the name of the damage, first word, and particulars.
    """
    if rng.random() < 0.08:
        how = rng.choice(_INSTEAD)
        file.unlink()
        how(file)
        return how.__name__.strip("_")
    if rng.random() < 0.04:
        other = rng.choice(others)
        file.write_bytes(other.read_bytes())
        return f"swapped for {other.name}"
    content, said = file.read_bytes(), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content, done = damaged(rng, content)
        said.append(done)
    file.write_bytes(content)
    return ", ".join(said)


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The content of a damaged file, and what was done to it."""
    if content.startswith(b"PK") and rng.random() < 0.4:
        return _in_archive(rng, content)
    if content.startswith(b"\x89PNG") and rng.random() < 0.3:
        return _in_png(rng, content)
    text = b"\0" not in content[:4096]
    how = rng.choice(_ANYWHERE + (_IN_TEXT * 2 if text else _IN_BINARY))
    return how(rng, content), how.__name__.strip("_")


def _place(rng: random.Random, content: bytes) -> int:
    """Somewhere; half of the time near the beginning, where headers are."""
    return rng.randrange(max(1, min(len(content), 400) if rng.random() < 0.5 else len(content)))


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = _place(rng, content)
    return start, min(len(content), start + rng.randint(1, max(1, len(content) // 4)))


# Anywhere


def _flip(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 8) if data else 0):
        data[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _zeros(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def _noise(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + rng.randbytes(end - start) + content[end:]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start = _place(rng, content)
    return content[:start] + rng.choice(_TOKENS) + content[start:]


def _delete(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + content[end:]


def _double(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:end] + content[start:end] + content[end:]


# In text


def _number(rng: random.Random, content: bytes) -> bytes:
    return _replace(rng, content, rb"-?\d+(\.\d+)?(e[+-]?\d+)?", _NUMBERS)


def _word(rng: random.Random, content: bytes) -> bytes:
    return _replace(rng, content, rb"[A-Za-z_]+", _TOKENS)


def _value(rng: random.Random, content: bytes) -> bytes:
    """Another kind of value where a text, list or object stands in JSON, or a cell in a table."""
    return _replace(rng, content, rb'"[^"]*"|\[[^\[\]]*\]|(?<=,)[^,\n]*', _TOKENS)


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    how = rng.randrange(3)
    if not lines:
        return content
    if how == 0:
        del lines[rng.randrange(len(lines))]
    elif how == 1:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    else:
        rng.shuffle(lines)
    return b"".join(lines)


def _encode(rng: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(_ENCODINGS), "replace")


def _replace(rng: random.Random, content: bytes, pattern: bytes, values: Sequence[bytes]) -> bytes:
    found = list(re.finditer(pattern, content))
    if not found:
        return content + rng.choice(values)
    start, end = rng.choice(found).span()
    return content[:start] + rng.choice(values) + content[end:]


# In binary files


def _extreme(rng: random.Random, content: bytes) -> bytes:
    """A number of a header at the end of its range."""
    width = rng.choice((1, 2, 4, 8))
    start = _place(rng, content) // 2 * 2
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x01")) * width
    return content[:start] + value + content[start + width :]


def _in_archive(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Damage to a file of an archive whose check sums are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, zlib.error, KeyError):
        return _flip(rng, content), "flip"
    if not members:  # a directory of entries that was cut away
        return _flip(rng, content), "flip"
    name = rng.choice(sorted(members))
    if rng.random() < 0.15:
        del members[name]
        done = "left out"
    else:
        members[name], done = damaged(rng, members[name])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, part in members.items():
            archive.writestr(one, part)
    return target.getvalue(), f"{done} in {name}"


def _in_png(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Another size or mode in the header of a PNG whose check sum is right again."""
    header = bytearray(content[16:29].ljust(13, b"\0"))  # of one that was cut short, too
    place = rng.randrange(len(header))
    header[place] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 127, 255))
    checked = struct.pack(">I", zlib.crc32(b"IHDR" + bytes(header)))
    return content[:16] + bytes(header) + checked + content[33:], "png_header"


# In its place


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.mkdir()


def _circle(file: Path) -> None:
    file.symlink_to(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _huge(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**43)  # takes no room


def _empty(file: Path) -> None:
    file.touch()


def _missing(file: Path) -> None:
    pass


_INSTEAD: tuple[Callable[[Path], None], ...] = (
    *(_pipe, _folder, _circle, _device, _huge, _empty, _missing),
)
_ANYWHERE = (_flip, _flip, _zeros, _noise, _cut, _insert, _delete, _double)
_IN_TEXT = (_number, _number, _word, _value, _lines, _encode)
_IN_BINARY = (_extreme, _extreme, _flip)
