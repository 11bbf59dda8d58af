"""Fetch the challenge data: the two archives of the Zenodo record, verified and unpacked.

Run as `python -m bach.data download DIR`.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from bach.core.archives import unpack
from bach.core.download import fetch, fetch_text, require_pooch
from bach.core.errors import InputError
from bach.core.files import atomic_folder, require_place
from bach.core.log import log, step
from bach.core.run import locked

RECORD = "https://zenodo.org/api/records/3632035"

# The archives, and their md5 where it is known apart from the record: that of the training set
# stands in kaiko-ai/eva, which evaluates foundation models on it.
ARCHIVES: dict[str, str | None] = {
    "ICIAR2018_BACH_Challenge.zip": "8ae1801334aa943c44627c1eef3631b2",
    "ICIAR2018_BACH_Challenge_TestDataset.zip": None,
}

LICENCE = """The challenge data are licensed under CC BY-NC-ND 4.0
(https://creativecommons.org/licenses/by-nc-nd/4.0): name the authors, no commercial use, pass on
no altered copies. Cite Aresta et al., "BACH: Grand challenge on breast cancer histology images",
Medical Image Analysis 56, 2019 (arXiv:1808.04277)."""

_WORK = "download.unfinished"
_REMEDY = "Name another place."


class Archive(NamedTuple):
    """What the record says of a file: its name, size in bytes and md5."""

    name: str
    size: int
    md5: str


def read_record(url: str) -> list[Archive]:
    """Ask for the archives and their checksums.

    Args:
        url: Address of the record, as Zenodo's interface has it.

    Raises:
        InputError: If it cannot be had, lacks an archive or its checksum, or has another
            checksum than is known.
    """
    text = fetch_text(url)
    found = {}
    try:
        for file in json.loads(text)["files"]:
            kind, _, md5 = str(file["checksum"]).lower().partition(":")
            if kind == "md5" and re.fullmatch("[0-9a-f]{32}", md5) and int(file["size"]) > 0:
                found[str(file["key"])] = Archive(str(file["key"]), int(file["size"]), md5)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{url} must be a record of Zenodo.\nReceived: {text!r:.80}.\n"
            "Open it in a browser; download and unpack the archives by hand."
        ) from error
    wrong = [f"no {name} with an md5" for name in ARCHIVES if name not in found]
    wrong += [
        f"{name} with md5 {found[name].md5} instead of {md5}"
        for name, md5 in ARCHIVES.items()
        if name in found and md5 not in (None, found[name].md5)
    ]
    if wrong:
        raise InputError(
            f"The record {url} must have the archives of the challenge, with their checksums.\n"
            f"Received: {'; '.join(wrong)}.\n"
            "What cannot be verified is not downloaded. The record may have changed: see its page."
        )
    return [found[name] for name in ARCHIVES]


def download(folder: Path, record: str = RECORD) -> None:
    """Download, verify and unpack the archives; those that are unpacked already are left.

    Args:
        folder: Where the folders of the challenge are to lie.
        record: Address of the record.

    Raises:
        InputError: If that is not possible; what has come so far is kept.
    """
    require_place(folder, _REMEDY, folder=True)
    wanted = [name for name in ARCHIVES if not _unpacked(folder, name)]
    for name in ARCHIVES.keys() - wanted:
        log.info("%s: there already; delete that folder to have it anew", _target(folder, name))
    if not wanted:
        return
    require_pooch()
    work = folder / _WORK
    with locked(work, "the same command again"):
        archives = [archive for archive in read_record(record) if archive.name in wanted]
        _require_room(work, archives)
        for archive in archives:
            path = work / archive.name
            with step(archive.name) as notes:
                url = f"{record.rstrip('/')}/files/{archive.name}/content"
                fetch(url, path, archive.size, archive.md5)
                notes.append(f"{archive.size / 1e9:,.2f} GB, as published")
            with (
                step(_target(folder, archive.name).name) as notes,
                atomic_folder(_target(folder, archive.name)) as unpacked,
            ):
                unpack(path, unpacked)
                notes.append("unpacked")
            path.unlink()
    shutil.rmtree(work, ignore_errors=True)


def _target(folder: Path, name: str) -> Path:
    return folder / Path(name).stem


def _unpacked(folder: Path, name: str) -> bool:
    target = _target(folder, name)
    return target.is_dir() and any(target.iterdir())


def _require_room(work: Path, archives: list[Archive]) -> None:
    """Refuse to begin what cannot end: the largest archive and what is in it, and the others."""
    there = sum(path.stat().st_size for path in work.iterdir() if path.is_file())
    need = sum(a.size for a in archives) + max(a.size for a in archives) - there
    room = shutil.disk_usage(work).free
    if need > room:
        raise InputError(
            f"There must be {need / 1e9:,.1f} GB of room in {work.parent}, for an archive and for "
            f"what is unpacked.\nReceived: {room / 1e9:,.1f} GB.\nMake room, or name another place."
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.data download",
        description="Download the challenge data, verify, unpack and check them. What broke off "
        "goes on where it was. (A folder of the name `download` is checked as ./download.)",
        epilog=LICENCE,
    )
    parser.add_argument("data_dir", metavar="DIR", type=Path, help="folder for the challenge data")
    parser.add_argument(
        "--accept-licence", action="store_true", help="I accept the licence of the data, see below"
    )
    parser.add_argument("--record", default=RECORD, help="address of the record, or of a mirror")
    parser.set_defaults(class_map=None, images=None)  # for the check that follows
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Download what the arguments say.

    Raises:
        InputError: If the licence is not accepted, or see `download`.
    """
    print(LICENCE, flush=True)
    if not args.accept_licence:
        raise InputError(
            "The licence of the data must be accepted before they are downloaded.\n"
            "Received: no --accept-licence.\nRead it above, and add that option if you accept it."
        )
    download(args.data_dir, args.record)
