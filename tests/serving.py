"""A service for tests: a process of its own, asked by HTTP."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from commands import ROOT
from made_runs import slide_pixels

from bach.toy import aperio

SECONDS = 120


class Served:
    """A running service: `url`, `process`, and a client."""

    def __init__(self, process: subprocess.Popen, url: str, token: str | None):
        self.process, self.url = process, url
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=url, timeout=SECONDS, headers=headers, trust_env=False)

    def get(self, path: str, **more) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, **more) -> httpx.Response:
        return self.client.post(path, **more)

    def photo(self, path: Path, **fields: str) -> httpx.Response:
        with path.open("rb") as stream:
            return self.post("/model/predict", files={"image": (path.name, stream)}, data=fields)

    def wait(self, id: str, *states: str) -> dict:
        """The job, once it is in one of the states."""
        end = time.monotonic() + SECONDS
        while (job := self.get(f"/jobs/{id}").json())["state"] not in states:
            assert time.monotonic() < end, job
            time.sleep(0.05)
        return job

    def working(self, id: str) -> None:
        """Wait until the network has looked at a batch of the job."""
        end = time.monotonic() + SECONDS
        while not self.get(f"/jobs/{id}").json()["batches"]:
            assert time.monotonic() < end
            time.sleep(0.02)

    def held_place(self) -> socket.socket:
        """A photo that never comes whole, and holds its place until the socket is closed."""
        port = int(re.search(r":(\d+)/", self.url)[1])
        held = socket.create_connection(("127.0.0.1", port))
        held.sendall(
            b"POST /model/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        end = time.monotonic() + SECONDS
        while "bach_photos_waiting 1" not in self.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.05)
        return held


@contextlib.contextmanager
def serving(folder: Path, *words: str, token: str | None = None) -> Iterator[Served]:
    """A service with the model `folder/run` and the slides of `folder/slides`."""
    command = [sys.executable, "-m", "bach.serve", "--port", "0"]
    command += ["--model-dir", str(folder / "run"), "--jobs-dir", str(folder / "jobs")]
    command += ["--slides-root", str(folder / "slides"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    with (folder / "stderr.txt").open("a+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            url = process.stdout.readline().strip()
            assert url, (folder / "stderr.txt").read_text()
            yield Served(process, url, token)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def make_model(folder: Path) -> Path:
    """A run with one small model of random weights, whose answers differ from patch to patch."""
    import keras

    from bach.honest.seen import Seen
    from bach.network.callbacks import save_model
    from bach.network.patch_network import build_model

    keras.utils.set_random_seed(0)
    model = build_model("small", "none")
    model.get_layer("classes").kernel.assign(model.get_layer("classes").kernel * 30)
    save_model(model, folder / "run" / "fold_0" / "model.keras", Seen.of(photos=["n001"]))
    return folder / "run"


def make_slides(folder: Path, *names: str) -> None:
    (folder / "slides").mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        aperio.write_slide(folder / "slides" / name, slide_pixels(3001, 2203, seed), 0.5)


def photo(path: Path, size: tuple[int, int] = (2048, 1536)) -> Path:
    from bach.core.pictures import write_png

    write_png(path, slide_pixels(*size))
    return path
