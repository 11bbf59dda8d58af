"""Annotation files: which belongs to which slide, and what they hold as text."""

import codecs
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path

from bach.core.errors import InputError
from bach.core.tables import image_key
from bach.core.text import listed
from bach.slides import SLIDE_SUFFIXES

ENDINGS = (".xml", ".json", ".geojson", ".annotations", ".json.gz", ".geojson.gz")

# Read whole; the challenge's files have 3 MB at most. Of a packed file, what it unpacks to.
MOST_BYTES = 500 * 2**20
_PACKED = b"\x1f\x8b"  # gzip
_CHUNK = 2**20

# What holds annotations by its name: NAME.xml.txt, NAME.xml.gz, and formats not read here.
_LOOKS_LIKE_ONE = re.compile(r"\.(xml|json|geojson|annotations|ndpa|qpdata)\b", re.IGNORECASE)
# QuPath's scripts write NAME_annotations.json.
_TAIL = re.compile(r"[ ._-]?annotations?$", re.IGNORECASE)

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([^"']*)["']""")
_WIDE = ("utf16", "utf32", "ucs2", "ucs4", "iso10646ucs2", "iso10646ucs4")
# Codecs of Python that are no encodings of files; some are slow on long input.
_NO_ENCODINGS = ("punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined")


class Folder:
    """The annotation files of a folder, by the slides that they belong to.

    A file belongs to the slide whose name it bears, in any letter case, with or without the
    slide's ending: `A01.xml`, `A01.svs.xml`, `a01.GEOJSON`, `A01_annotations.json`.

    Args:
        path: The folder; one that is not there is empty.
        slides: Slides in it that are known, whatever their ending.
    """

    def __init__(self, path: str | os.PathLike, slides: Iterable[str | os.PathLike] = ()):
        self.path = Path(path)
        try:
            names = os.listdir(path) if self.path.is_dir() else []
        except OSError as error:
            raise InputError(
                f"The folder of a slide must be readable: {path}.\nReceived: {error.strerror}.\n"
                "Allow it to be read, or copy the slides elsewhere."
            ) from error
        names = sorted(name for name in names if not name.startswith("."))
        slide_names = {name for name in names if Path(name).suffix.lower() in SLIDE_SUFFIXES}
        by_name: dict[str, set[str]] = {}
        for slide in slide_names | {Path(slide).name for slide in slides}:
            for key in (slide.casefold(), *_keys_of_slide(slide)):
                by_name.setdefault(key, set()).add(slide)
        self._of: dict[str, list[Path]] = {}
        self._unread: list[str] = []
        self._strays: list[Path] = []
        for name in names:
            stem = _without_ending(name)
            if stem is None:
                self._unread += [name] if _LOOKS_LIKE_ONE.search(name) else []
                continue
            owners = _owners(stem, by_name)
            for slide in owners:
                self._of.setdefault(slide, []).append(self.path / name)
            if not owners & slide_names:
                self._strays.append(self.path / name)
        unread = {name: _owners(_LOOKS_LIKE_ONE.split(name)[0], by_name) for name in self._unread}
        # A backup beside an annotation that is read is no fault.
        self._unread = [
            name
            for name, owners in unread.items()
            if not any(slide in self._of for slide in owners)
        ]

    def files(self, slide: str | os.PathLike) -> list[Path]:
        """The annotation files of a slide, of which there should be one at most."""
        return self._of.get(Path(slide).name, [])

    def only(self, slide: str | os.PathLike) -> Path | None:
        """The annotation file of a slide, or None.

        Raises:
            InputError: If there are several, or it is no file.
        """
        files = self.files(slide)
        if len(files) > 1:
            raise InputError(
                f"A slide must have one annotation file: {slide}.\n"
                f"Received: {listed(file.name for file in files)}.\n"
                "Keep the one that counts beside the slide, and move the others away."
            )
        for file in files:
            require_regular(file)
        return files[0] if files else None

    def strays(self) -> list[str]:
        """A line for each file that looks like an annotation and is read for no slide."""
        lines = [
            f"{_shown(path)}: belongs to no slide of its folder, and nothing reads it; name it "
            "like its slide, or move it away"
            for path in self._strays
        ]
        return lines + [
            f"{_shown(self.path / name)}: looks like an annotation, but nothing reads it under "
            f"this name; annotations end in {', '.join(ENDINGS)}"
            for name in self._unread
        ]


def annotation_path(slide: str | os.PathLike) -> Path | None:
    """The annotation beside a slide, or None; see `Folder`.

    Raises:
        InputError: If there are several, or it is no file.
    """
    return Folder(Path(slide).parent, [slide]).only(slide)


def folders_of(slides: Iterable[str | os.PathLike]) -> dict[Path, Folder]:
    """The folders that slides lie in, each looked at once."""
    inside: dict[Path, list[str | os.PathLike]] = {}
    for slide in slides:
        inside.setdefault(Path(slide).parent, []).append(slide)
    return {path: Folder(path, some) for path, some in inside.items()}


def require_regular(path: Path) -> None:
    """Refuse what is no file, without opening it: a pipe would be waited for forever.

    Raises:
        InputError: If it is something else, or not there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
        raise InputError(
            f"{path} must be a readable annotation file.\n"
            f"Received: {kinds.get(stat.S_IFMT(mode), 'a device')}.\n"
            "Move it away, or write the annotation there."
        )


def read_text(path: str | os.PathLike) -> str:
    """Read an annotation file as text, in whatever encoding it is.

    A mark at its beginning (BOM) decides, or zeros between the letters as UTF-16 has them, or
    what the XML declares. UTF-16 that is declared for text of single bytes is taken for
    UTF-8: some writers declare what they had in memory.

    One that is packed with gzip, as QuPath writes it under `.geojson.gz`, is unpacked.

    Raises:
        InputError: If it is no readable file, too large, empty, or no text.
    """
    path = Path(path)
    require_regular(path)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_BYTES else b""
    except (OSError, MemoryError) as error:
        raise _unreadable(path, str(error)) from error
    if size > MOST_BYTES:
        raise _too_large(path, f"{size / 2**20:,.0f} MB")
    if data.startswith(_PACKED):
        data = _unpacked(path)
    if not data.strip(b"\0\t\r\n "):
        content = f"{size:,} bytes of nothing but zeros and spaces" if data else "an empty file"
        raise InputError(
            f"{path} must be a readable annotation file.\nReceived: {content}.\n"
            "Export or download it again."
        )
    encoding = _encoding(path, data)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise InputError(
            f"{path} must be text in UTF-8, UTF-16 or the encoding that it declares.\n"
            f"Received: bytes that are no {encoding.upper()} ({error}).\n"
            "Open it in a text editor and save it as UTF-8, or export it again."
        ) from error


def _unpacked(path: Path) -> bytes:
    """What a gzip file holds, which is counted before any of it is kept.

    Raises:
        InputError: If it is damaged, or more than is read.
    """
    try:
        with gzip.open(path) as stream:
            size = 0
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if size > MOST_BYTES:
                    raise _too_large(path, f"{path.stat().st_size:,} bytes that unpack to more")
            stream.seek(0)
            return stream.read()
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise _unreadable(path, f"gzip that is damaged ({error})") from error


def _too_large(path: Path, received: str) -> InputError:
    return InputError(
        f"An annotation file must have at most {MOST_BYTES / 2**20:.0f} MB: {path}.\n"
        f"Received: {received}.\n"
        "Export the outlines of regions alone, without cells and measurements."
    )


def _shown(path: Path) -> str:
    """A path for a message, also one that is no text."""
    return os.fsencode(path).decode("utf-8", "replace")


def _without_ending(name: str) -> str | None:
    """The name of an annotation file without its ending; None if it has none of these."""
    ending = next((one for one in reversed(ENDINGS) if name.lower().endswith(one)), None)
    return name[: -len(ending)] if ending and len(name) > len(ending) else None


def _keys_of_slide(name: str) -> set[str]:
    """The keys under which a file is known as that of a slide."""
    stem = name
    if Path(name).suffix.lower() in SLIDE_SUFFIXES or image_key(name) != name.lower():
        stem = Path(name).stem
    keys = {image_key(stem)}
    if stem.lower().endswith(".ome"):  # NAME.ome.tif is called NAME in QuPath
        keys.add(image_key(stem[:-4]))
    return keys


def _owners(stem: str, by_name: dict[str, set[str]]) -> set[str]:
    """The slides that an annotation without its ending names: by file, else by key."""
    for text in (stem, _TAIL.sub("", stem)):
        if text.casefold() in by_name:
            return by_name[text.casefold()]
        for key in _keys_of_slide(text):
            if key in by_name:
                return by_name[key]
    return set()


def _encoding(path: Path, data: bytes) -> str:
    for mark, name in _BOMS.items():
        if data.startswith(mark):
            return name
    begin = data[:200]
    # The zeros of ASCII in UTF-16 stand at every other place.
    even, odd = begin[0::2].count(0), begin[1::2].count(0)
    if bool(even) != bool(odd):
        return "utf-16-le" if odd else "utf-16-be"
    declared = _DECLARED.match(begin)
    if declared is None:
        return "utf-8"
    name = declared[1].decode("latin-1")
    plain = re.sub("[^a-z0-9]", "", name.lower())
    if plain.startswith(_WIDE):
        return "utf-8"
    try:
        found = codecs.lookup(name).name.replace("-", "_")
        b"<".decode(name)  # refuses codecs that are not of text
    except (LookupError, ValueError):
        found = ""
    if not found or found in _NO_ENCODINGS:
        raise InputError(
            f"{path} must declare an encoding that is known.\nReceived: encoding={name!r}.\n"
            "Open it in a text editor, save it as UTF-8 and take the declaration away."
        )
    return found


def _unreadable(path: Path, received: str) -> InputError:
    return InputError(
        f"{path} must be a readable annotation file.\nReceived: {received}.\nCheck the path."
    )
