"""What does a service cost beside its network, and what is lost when it is killed?

64 clients send photos of the challenge's size and kind (2048x1536 px, TIFF without compression,
and JPEG) as fast as they are answered; they, the service and its network share the cores. The
bare network predicts batches of the same size that lie in memory, in a process of its own, by
turns with the clients, since the machine may have other work. One row per kind of photo:

    photos_s      answered per second, from the first byte to the last answer; mean of rounds
    bare_s        photos per second of the bare network, mean
    ratio         of the two, median of rounds: each with what the bare network did around it
    cpu_ratio     CPU seconds per photo of the bare network over those of the service
    p50_s, p99_s  seconds from the first byte to the answer
    busy          answers 429; the client then waits as it is told
    errors        any other answer but 200, and connections that broke
    mb            resident memory of the service at the end

Then slides are queued, the service is killed at the second, started again, and every job is
waited for.

Writes:  --dir: a model of random weights, photos, slides, jobs.
Command: python benchmarks/serve.py
         python benchmarks/serve.py --quick       the small network, 8 clients, seconds
Time:    ten minutes.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.core.errors import exit_with
from bach.core.text import markdown
from bach.slides import Slide
from bach.toy import aperio

ROOT = Path(__file__).resolve().parent.parent
SIZE = (2048, 1536)
PATCHES = 14  # of a photo of this size
KINDS = {"tiff": {"format": "TIFF"}, "jpeg": {"format": "JPEG", "quality": 95}}
COLUMNS = ("photos_s", "bare_s", "ratio", "cpu_ratio", "p50_s", "p99_s", "busy", "errors", "mb")
SLIDES = 6


def make_model(folder: Path, backbone: str) -> None:
    """A model of random weights, by a process of its own."""
    code = (
        "import sys; from bach.network import backend; backend.start()\n"
        "from bach.honest.seen import NOTHING\n"
        "from bach.network.callbacks import save_model\n"
        "from bach.network.patch_network import build_model\n"
        "save_model(build_model(sys.argv[1], 'none'), sys.argv[2], NOTHING)\n"
    )
    path = folder / "run/fold_0/model.keras"
    subprocess.run([sys.executable, "-c", code, backbone, str(path)], cwd=ROOT, check=True)


def make_photos(folder: Path) -> None:
    """Real tissue, mirrored until a photo is full."""
    with Slide(ROOT / "docs/slides/cmu-1-small-region.svs") as slide:
        tissue = slide.read(0, 0, 2000, 1500)
    missing = [(0, SIZE[1] - len(tissue)), (0, SIZE[0] - tissue.shape[1]), (0, 0)]
    whole = np.pad(tissue, missing, mode="reflect")
    for kind, how in KINDS.items():
        Image.fromarray(whole).save(folder / f"photo.{kind}", **how)


class Bare:
    """The bare network, in a process that waits until it is asked."""

    def __init__(self, folder: Path, batch_size: int):
        words = [sys.executable, __file__, "--bare", "--dir", folder, "--batch-size", batch_size]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(list(map(str, words)), **pipes)

    def measure(self, seconds: float) -> tuple[float, float]:
        """Photos per second, and CPU seconds per photo."""
        print(seconds, file=self._process.stdin, flush=True)
        rate, cpu = self._process.stdout.readline().split()
        return float(rate), float(cpu)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def run_bare(folder: Path, batch_size: int) -> None:
    from bach.network import backend
    from bach.network.predict import load_models

    backend.start()
    (model,) = load_models(folder / "run").values()
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, 299, 299, 3), np.uint8)
    for _ in range(3):
        model.predict_on_batch(batch)
    for line in sys.stdin:
        start, used, photos = time.monotonic(), time.process_time(), 0.0
        while (taken := time.monotonic() - start) < float(line):
            model.predict_on_batch(batch)
            photos += batch_size / PATCHES
        print(photos / taken, (time.process_time() - used) / photos, flush=True)


@contextlib.contextmanager
def served(folder: Path, *words: object) -> Iterator[tuple[subprocess.Popen, int]]:
    """A service: its process and port."""
    command = [sys.executable, "-m", "bach.serve", "--port", "0", "--model-dir", folder / "run"]
    command += ["--jobs-dir", folder / "jobs", "--slides-root", folder / "slides", *words]
    with (folder / "serve.log").open("a") as errors:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            found = re.search(r":(\d+)/", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError((folder / "serve.log").read_text())
            yield process, int(found[1])
        finally:
            process.terminate()
            process.wait()


class Clients:
    """Clients that send the same photo again and again.

    Attributes:
        times: Moment and seconds of each answer 200.
        busy: Answers 429.
        errors: What else came.
    """

    def __init__(self, port: int, photo: Path, count: int):
        self._port, self._ends = port, threading.Event()
        head = 'Content-Disposition: form-data; name="image"; filename="photo"'
        self._body = f"--x\r\n{head}\r\n\r\n".encode() + photo.read_bytes() + b"\r\n--x--\r\n"
        self.times: list[tuple[float, float]] = []
        self.busy = 0
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        while not self._ends.is_set():
            start = time.monotonic()
            try:
                connection.request("POST", "/model/predict", self._body, kind)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                connection.close()
                continue
            now = time.monotonic()
            if answer.status == 200:
                self.times.append((now, now - start))
            elif answer.status == 429:
                self.busy += 1
                self._ends.wait(float(answer.headers["Retry-After"]))
            else:
                self.errors.append(f"{answer.status} {text[:200]!r}")


def cpu_s(process: subprocess.Popen) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(args: argparse.Namespace, kind: str) -> dict[str, object]:
    """A row of the table."""
    alone, rates, used, clients = Bare(args.dir, args.batch_size), [], [], []
    bare = [alone.measure(args.seconds / 2)]
    with served(args.dir, "--batch-size", args.batch_size) as (process, port):
        for _ in range(args.rounds):
            start, before = time.monotonic(), cpu_s(process)
            clients.append(Clients(port, args.dir / f"photo.{kind}", args.clients))
            time.sleep(args.seconds)
            clients[-1].end()
            count = len(clients[-1].times)
            rates.append(count / (time.monotonic() - start))
            used.append((cpu_s(process) - before) / count)
            bare.append(alone.measure(args.seconds / 2))
        status = Path(f"/proc/{process.pid}/status").read_text()
    alone.end()
    errors = [error for one in clients for error in one.errors]
    for error in sorted(set(errors))[:5]:
        print(error, file=sys.stderr)
    around = [(one[0] + next_[0]) / 2 for one, next_ in itertools.pairwise(bare)]
    ratios = [rate / bare_rate for rate, bare_rate in zip(rates, around, strict=True)]
    print(f"{kind}: {rates=}, {bare=}, {used=}", file=sys.stderr)
    values = (
        np.mean(rates),
        np.mean(around),
        np.median(ratios),
        np.mean([cpu for _, cpu in bare]) / np.mean(used),
        *np.percentile([seconds for one in clients for _, seconds in one.times], [50, 99]),
        sum(one.busy for one in clients),
        len(errors),
        int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024,
    )
    shown = (round(float(value), 2) for value in values)
    return {"photo": kind} | dict(zip(COLUMNS, shown, strict=True))


def ask(port: int, method: str, path: str, body: dict | None = None) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())


def kill_and_go_on(folder: Path) -> str:
    """Queue slides, kill the service at the second, and see what becomes of them."""
    jobs: list[str] = []
    with served(folder) as (process, port):
        for number in range(SLIDES):
            jobs.append(ask(port, "POST", "/slides", {"path": f"{number}.svs"})["id"])
        while ask(port, "GET", f"/jobs/{jobs[1]}")["state"] != "running":
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with served(folder) as (process, port):
        states: list[str] = []
        while not states or "queued" in states or "running" in states:
            time.sleep(0.5)
            states = [ask(port, "GET", f"/jobs/{id}")["state"] for id in jobs]
    return f"killed at slide 2 of {SLIDES}: {states.count('finished')} finished after the restart"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, a few seconds")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs/bench_serve")
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4 * PATCHES)
    parser.add_argument("--seconds", type=float, default=30, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.backbone, args.clients, args.seconds, args.rounds = "small", 8, 5, 1
    return args


def main() -> None:
    args = parse_args()
    if args.bare:
        run_bare(args.dir, args.batch_size)
        return
    shutil.rmtree(args.dir, ignore_errors=True)
    (args.dir / "slides").mkdir(parents=True)
    make_model(args.dir, args.backbone)
    make_photos(args.dir)
    with Slide(ROOT / "docs/slides/cmu-1-small-region.svs") as slide:
        tissue = slide.read(0, 0, 2000, 2000)
        for number in range(SLIDES):
            aperio.write_slide(args.dir / f"slides/{number}.svs", tissue, slide.mpp)
    rows = [measure(args, kind) for kind in args.kinds]
    print(f"{args.clients} clients, {args.backbone}, {args.batch_size} patches per batch,", end=" ")
    print(f"{len(os.sched_getaffinity(0))} cores")
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    print(kill_and_go_on(args.dir))


if __name__ == "__main__":
    exit_with(main)
