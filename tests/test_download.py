"""Downloads from a server of our own that breaks off, lies and cannot go on."""

import hashlib
import http.server
import io
import json
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bach import data, download
from bach.classes import CLASSES, PREFIXES
from bach.core.archives import unpack
from bach.core.errors import InputError

TRAIN, TEST = download.ARCHIVES


def zipped(entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def picture(seed):
    """A photo of the challenge's size, which a PNG holds in some MB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (192, 256, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((2048, 1536), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def archives():
    """The two archives in small: a photo per class and one of the test set."""
    train, lines = {}, []
    for seed, (name, prefix) in enumerate(zip(CLASSES, PREFIXES, strict=True)):
        train[f"{data.TRAIN_FOLDER}/Photos/{name}/{prefix}001.png"] = picture(seed)
        lines.append(f"{prefix}001.png,{name}\n")
    train[f"{data.TRAIN_FOLDER}/Photos/{data.GROUND_TRUTH}"] = "".join(lines)
    train["__MACOSX/._Photos"] = "of no use"
    return {TRAIN: zipped(train), TEST: zipped({f"{data.TEST_FOLDER}/Photos/t0.png": picture(9)})}


class Server:
    """Zenodo in small.

    Attributes:
        files: Content by name.
        record: What it says of them.
        ranges: Whether it can go on.
        breaks: After so many bytes of an answer with a file it hangs up; one number per answer.
        asked: First byte of every answer with a file, by name.
        then: Called after it has broken off.
    """

    def __init__(self, files):
        self.files, self.ranges, self.breaks, self.asked = dict(files), True, [], []
        self.status, self.then = 200, lambda: None
        self.record = {
            "files": [
                {
                    "key": name,
                    "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                }
                for name, content in files.items()
            ]
        }

    def answer(self, handler):
        name = handler.path.removesuffix("/content").rpartition("/")[2]
        if self.status != 200:
            handler.send_error(self.status)
        elif name == "3632035":
            self.send(handler, json.dumps(self.record).encode())
        elif handler.path != f"/api/records/3632035/files/{name}/content":
            handler.send_error(404)
        else:
            content, asked = self.files[name], handler.headers.get("Range")
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
            self.asked.append((name, first))
            self.send(handler, content, first)

    def send(self, handler, content, first=0):
        handler.send_response(206 if first else 200)
        if first:
            whole = f"bytes {first}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", whole)
        handler.send_header("Content-Length", len(content) - first)
        handler.end_headers()
        end = first + self.breaks.pop(0) if self.breaks and handler.path.endswith("t") else None
        handler.wfile.write(content[first:end])
        if end is not None:
            handler.wfile.flush()
            self.then()


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setattr("bach.core.download._LONGEST_WAIT", 0)
    monkeypatch.setattr("bach.core.download._CHUNK", 10_000)
    monkeypatch.setitem(download.ARCHIVES, TRAIN, None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(archives)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{listening.server_port}/api/records/3632035"
        yield server
        listening.shutdown()


def command(server, folder):
    return data.main(["download", str(folder), "--accept-licence", "--record", server.url])


def part(folder, name=TRAIN):
    return folder / "download.unfinished" / f"{name}.part"


def test_the_archives_are_downloaded_unpacked_and_checked(server, tmp_path, capsys):
    assert command(server, tmp_path / "BACH") == 0
    out = capsys.readouterr().out
    assert "CC BY-NC-ND 4.0" in out
    assert "5 files, 0 problems" in out
    assert sorted(path.name for path in (tmp_path / "BACH").iterdir()) == [
        data.TRAIN_FOLDER,
        data.TEST_FOLDER,
    ]
    assert server.asked == [(TRAIN, 0), (TEST, 0)]
    assert command(server, tmp_path / "BACH") == 0  # there already
    assert len(server.asked) == 2


def test_nothing_is_asked_for_before_the_licence_is_accepted(server, tmp_path, capsys):
    with pytest.raises(InputError, match="--accept-licence"):
        data.main(["download", str(tmp_path), "--record", server.url])
    assert "CC BY-NC-ND 4.0" in capsys.readouterr().out
    assert not server.asked
    assert not list(tmp_path.iterdir())


def test_a_folder_named_download_can_still_be_checked(tmp_path, monkeypatch):
    (tmp_path / "download").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="No challenge images in download"):
        data.main(["./download"])


def test_what_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.breaks = [50_000, 0, 70_000, 10_000]
    assert command(server, tmp_path) == 0
    assert server.asked == [
        (TRAIN, 0),
        (TRAIN, 50_000),
        (TRAIN, 50_000),
        (TRAIN, 120_000),
        (TRAIN, 130_000),
        (TEST, 0),
    ]


def test_a_server_that_cannot_go_on_is_asked_for_all_again(server, tmp_path):
    server.breaks, server.ranges = [50_000, 60_000], False
    assert command(server, tmp_path) == 0
    assert server.asked == [(TRAIN, 0)] * 3 + [(TEST, 0)]


def test_a_server_that_only_breaks_off_ends_it_and_what_came_is_kept(server, tmp_path):
    server.breaks = [50_000] + [0] * 20
    with pytest.raises(InputError, match=r"connection ended after 50,000 [\s\S]* goes on where"):
        command(server, tmp_path)
    assert part(tmp_path).stat().st_size == 50_000
    server.breaks = []
    assert command(server, tmp_path) == 0
    assert server.asked[-2:] == [(TRAIN, 50_000), (TEST, 0)]


def test_an_interrupted_download_goes_on_with_the_same_command(server, tmp_path):
    def interrupt():
        end = time.monotonic() + 60
        while not (part(tmp_path).exists() and part(tmp_path).stat().st_size >= 30_000):
            assert time.monotonic() < end
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(1)  # the connection stays open meanwhile

    server.breaks, server.then = [50_000], interrupt
    with pytest.raises(KeyboardInterrupt):
        command(server, tmp_path)
    kept = part(tmp_path).stat().st_size
    assert 30_000 <= kept <= 50_000
    assert not (tmp_path / data.TRAIN_FOLDER).exists()
    server.breaks = []
    assert command(server, tmp_path) == 0
    assert server.asked == [(TRAIN, 0), (TRAIN, kept), (TEST, 0)]


def test_a_wrong_checksum_is_refused_and_the_file_removed(server, tmp_path):
    server.files[TRAIN] = bytes(len(server.files[TRAIN]))
    with pytest.raises(InputError, match=r"must have the checksum that is published"):
        command(server, tmp_path)
    assert not (tmp_path / data.TRAIN_FOLDER).exists()
    assert not part(tmp_path).exists()
    server.files[TRAIN] = b"PK" + server.files[TRAIN]
    with pytest.raises(InputError, match="more than its"):
        command(server, tmp_path)


def test_what_is_left_of_another_file_does_not_spoil_a_download(server, tmp_path):
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="checksum"):
        command(server, tmp_path)
    part(tmp_path).write_bytes(bytes(len(server.files[TRAIN]) + 1))
    assert command(server, tmp_path) == 0


@pytest.mark.parametrize("checksum", [None, "", "md5:", "sha1:abc", "md5:xyz"])
def test_without_a_checksum_nothing_is_downloaded(server, tmp_path, checksum):
    server.record["files"][1]["checksum"] = checksum
    with pytest.raises(InputError, match=rf"no {TEST} with an md5"):
        command(server, tmp_path)
    assert not server.asked


def test_a_record_with_another_checksum_than_is_known_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setitem(download.ARCHIVES, TRAIN, "0" * 32)
    with pytest.raises(InputError, match="instead of 00000"):
        command(server, tmp_path)
    assert not server.asked


@pytest.mark.parametrize("record", [[], {"files": 3}, {}, {"files": [{"key": "a"}]}])
def test_what_is_no_record_is_refused(server, tmp_path, record):
    server.record = record
    with pytest.raises(InputError, match="must be a record of Zenodo"):
        command(server, tmp_path)


@pytest.mark.parametrize(("status", "shown"), [(404, "404 Not Found"), (503, "503 Service")])
def test_a_server_that_refuses_is_named_with_its_reason(server, tmp_path, status, shown):
    server.status = status
    with pytest.raises(InputError, match=shown):
        command(server, tmp_path)


def test_without_a_server_the_error_says_so(tmp_path, server):
    server.url = "http://127.0.0.1:9/api/records/3632035"
    with pytest.raises(InputError, match=r"must be there to be downloaded[\s\S]*same command"):
        command(server, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_reported(server, tmp_path):
    part(tmp_path).parent.mkdir()
    part(tmp_path).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"must be room for .*\.part"):
        command(server, tmp_path)


def test_too_little_room_is_said_before_anything_is_downloaded(server, tmp_path):
    server.record["files"][0]["size"] = 10**18
    with pytest.raises(InputError, match="GB of room"):
        command(server, tmp_path)
    assert not server.asked


def test_without_pooch_the_error_says_how_to_get_it(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"bach-histology\[download\]"):
        command(server, tmp_path)


# Unpacking


def hostile(name, content="", mode=0o100644):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("placeholder" if name is None else name)
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (hostile("../outside.txt"), "would lie elsewhere"),
        (hostile("a/../../outside.txt"), "would lie elsewhere"),
        (hostile("/outside.txt"), "would lie elsewhere"),
        (hostile("C:/outside.txt"), "would lie elsewhere"),
        (hostile("..\\outside.txt"), "would lie elsewhere"),
        (hostile("link", "/etc", 0o120777), "no plain file"),
        (hostile("pipe", "", 0o010644), "no plain file"),
        (hostile("bomb", bytes(40_000_000)), "unpacks to 40,000,000"),
        (b"no archive", "must be a zip archive"),
    ],
)
def test_hostile_and_damaged_archives_are_refused_and_nothing_lies_outside(
    tmp_path, content, message
):
    (tmp_path / "a.zip").write_bytes(content)
    (tmp_path / "in" / "to").mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        unpack(tmp_path / "a.zip", tmp_path / "in" / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["to"]


def test_a_damaged_file_in_an_archive_is_found_by_its_checksum(tmp_path):
    whole = bytearray(zipped({"a/b.txt": b"0123456789" * 100}))
    whole[100] ^= 1
    (tmp_path / "a.zip").write_bytes(whole)
    (tmp_path / "to").mkdir()
    with pytest.raises(InputError, match="Bad CRC"):
        unpack(tmp_path / "a.zip", tmp_path / "to")
