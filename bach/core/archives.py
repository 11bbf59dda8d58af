"""Zip archives, looked at before anything in them is unpacked."""

import shutil
import stat
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.files import writing
from bach.core.inputs import MB, open_input, understood

# What an archive may unpack to: numbers can hardly be compressed, so ten times its own size,
# and room for texts, which can.
_EXPANSION = 10
_TEXTS = 16 * MB

_AGAIN = "Delete it, and download it again."


def check_archive(stream: IO[bytes], entries: Collection[str] | None = None) -> None:
    """Refuse an archive that holds what it need not, or is a bomb; only its directory is read.

    For the body of `inputs.open_input`.

    Args:
        stream: The open archive.
        entries: Names of all that it may hold; None for any.

    The stream is left at its start, for whoever reads the archive.

    Raises:
        ValueError: If so; or whatever zipfile makes of damage.
    """
    with zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
    names = [info.filename for info in infos]
    others = sorted(set(names) - set(names if entries is None else entries))
    if others:
        raise ValueError(f"an archive that also holds {others[0]!r:.80}")
    if len(names) != len(set(names)):
        raise ValueError("an archive with two entries of one name")
    check_content(sum(info.file_size for info in infos), stream.seek(0, 2))
    stream.seek(0)


def check_content(content: int, size: int) -> None:
    """Refuse `content` bytes that a file of `size` bytes is said to hold, if they are too many.

    Raises:
        ValueError: If so.
    """
    if content > _EXPANSION * size + _TEXTS:
        raise ValueError(f"a file of {size:,} bytes that unpacks to {content:,}")


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive that a user trusts no more than any other file.

    Args:
        path: A zip file.
        folder: An empty folder.

    What macOS adds to archives is left out.

    Raises:
        InputError: If the archive is damaged, a bomb, or holds something that is no plain file
            or folder or would lie elsewhere; or if it does not fit on the disk.
    """
    with open_input(path, "be a zip archive", _AGAIN) as stream:
        check_archive(stream)
        infos = zipfile.ZipFile(stream).infolist()
        wanted = [info for info in infos if not info.filename.startswith("__MACOSX/")]
        for info in wanted:
            _require_plain(info)
    content = sum(info.file_size for info in wanted)
    room = shutil.disk_usage(folder).free
    if content > room:
        raise InputError(
            f"There must be room for what {path} holds, {content / 1e9:,.1f} GB.\n"
            f"Received: {room / 1e9:,.1f} GB free.\nMake room and run the same command again."
        )
    with (
        zipfile.ZipFile(path) as archive,
        tqdm(desc=path.stem, total=content, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for info in wanted:
            target = folder.joinpath(*PurePosixPath(info.filename).parts)
            with writing(target):
                (target if info.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
            if not info.is_dir():
                _unpack_file(archive, info, target, bar)


def _unpack_file(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, bar: tqdm) -> None:
    with writing(target), target.open("xb") as to:
        for chunk in _content(archive, info):
            to.write(chunk)
            bar.update(len(chunk))


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """What is in a file of an archive, piece by piece, never more than its size."""
    must, name = "be a whole zip archive", str(archive.filename)
    with understood(name, must, _AGAIN):
        entry = archive.open(info)
    with entry:
        while True:
            with understood(name, must, _AGAIN):
                chunk = entry.read(MB)
            if not chunk:
                return
            yield chunk


def _require_plain(info: zipfile.ZipInfo) -> None:
    """Refuse what would be written elsewhere, or is a link.

    Raises:
        ValueError: If so.
    """
    name = info.orig_filename
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or set(name) & set("\\:\0"):
        raise ValueError(f"an archive with {name!r:.80}, which would lie elsewhere")
    if (info.external_attr >> 16) and not _is_plain(info.external_attr >> 16):
        raise ValueError(f"an archive with {name!r:.80}, which is no plain file")


def _is_plain(mode: int) -> bool:
    return stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
