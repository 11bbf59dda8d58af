"""Zip archives, looked at before anything in them is unpacked."""

import zipfile
from collections.abc import Collection
from typing import IO

from bach.core.inputs import MB

# What an archive may unpack to: numbers can hardly be compressed, so ten times its own size,
# and room for texts, which can.
_EXPANSION = 10
_TEXTS = 16 * MB


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
