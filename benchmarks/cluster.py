"""What do more workers bring, here with two, and on paper with 64?

Two tables. Measured, all in one run, in turns:

    one process of two threads, two processes of one thread (--workers 2), two actors of Ray
    slides_per_h    of slides of one size, start-up and bringing together included
    steady          the same without both: from when every worker has done its first slide
    ratio           of steady to that of one process, median over turns

On paper, 1,000 slides: seconds of a slide are `fixed + per_mm2 * tissue`, fitted to slides of four
sizes that one worker of one thread does here; bytes per mm2, seconds of a worker's start and MB/s
of a checksum are measured too. Tissue is log-normal, median 150 mm2, factor e^0.6; a slide takes
e^0.15 more or less than the fit says; one worker in eight has half the speed. A disk gives all
readers together --disk-mb-s: each slide is read twice (checksum, pixels), and once more when parts
are brought together, by one process. Where the readers want more, all of them slow down alike.

    hours           from start to end, and of these `collect` to bring together
    efficiency      hours of one worker / (hours * what the speeds of the workers add up to)
    disk            most that was read at a time, share of what the disk gives

Reads:   docs/slides (its tissue).
Writes:  --dir: slides (1.1 GB, made once), a model, runs, costs.json (what the paper rests on).
Command: python benchmarks/cluster.py
         python benchmarks/cluster.py --measure       the first table, and costs anew
Time:    10 minutes on two cores; on paper alone, where costs are there, a minute.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import real_blocks
from slides import make_slide

from bach.core.errors import exit_with
from bach.core.files import checksum, read_object, write_json
from bach.core.shards import Shard
from bach.core.text import markdown
from bach.honest.records import read_slides

ROOT = Path(__file__).resolve().parent.parent
SIZES = (3000, 5000, 7000, 9000)  # px, sides of the slides that costs are fitted to
SIDE, COUNT = 9000, 8  # of the slides that workers share
HOW = {
    "one process, two threads": (2, []),
    "two processes, one thread each": (1, ["--workers", "2"]),
    "Ray, two actors, one thread each": (1, ["--engine", "ray", "--workers", "2"]),
}
WORKERS = (1, 8, 64)
POLICIES = ("static by size", "dynamic, largest first")


def slide(folder: Path, name: str, side: int) -> Path:
    """A square slide of real tissue."""
    path = folder / f"{name}.svs"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_slide(path, side, side, real_blocks)
    return path


def model(args: argparse.Namespace) -> Path:
    """A network of random weights: time does not depend on them."""
    path = args.dir / "model.keras"
    if not path.exists():
        code = "import sys; from bach.network.patch_network import build_model; "
        code += f"build_model('{args.backbone}', weights='none').save(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True)
    return path


def run(args: argparse.Namespace, slides: Path, threads: int, more: list[str]) -> dict[str, float]:
    """Seconds of make_heatmap.py on a folder of slides, and slides per second in its middle."""
    out = args.dir / "run"
    shutil.rmtree(out, ignore_errors=True)
    count = str(threads)
    own = {"OMP_NUM_THREADS": count, "TF_NUM_INTRAOP_THREADS": count}
    words = ["--slides", slides, "--model-dir", model(args), "--run-dir", out, "--mode", "dense"]
    began = time.time()
    subprocess.run(
        [sys.executable, ROOT / "make_heatmap.py", *map(str, words), *more],
        env=os.environ | own | {"TF_NUM_INTEROP_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.time() - began
    ends = sorted(file.stat().st_mtime for file in (out / "slides").glob("*.json"))
    first = 2 if more else 1
    steady = (len(ends) - first) / max(ends[-1] - ends[first - 1], 1e-3)
    return {"seconds": seconds, "steady": steady, "first": ends[0] - began}


def measure(args: argparse.Namespace) -> list[dict]:
    """The first table."""
    for k in range(COUNT):
        slide(args.dir / "alike", f"large {k}", SIDE)
    found: dict[str, list[dict]] = {how: [] for how in HOW}
    for _ in range(args.turns):
        for how, (threads, more) in HOW.items():
            found[how].append(run(args, args.dir / "alike", threads, more))
            print(how, found[how][-1], flush=True)
    one = [turn["steady"] for turn in found[next(iter(HOW))]]
    rows = []
    for how, turns in found.items():
        ratios = [turn["steady"] / base for turn, base in zip(turns, one, strict=True)]
        seconds = statistics.median(turn["seconds"] for turn in turns)
        rows.append(
            {
                "workers": how,
                "slides_per_h": f"{3600 * COUNT / seconds:.0f}",
                "steady": f"{3600 * statistics.median(t['steady'] for t in turns):.0f}",
                "ratio": f"{statistics.median(ratios):.2f}",
                "lowest": f"{min(ratios):.2f}",
                "highest": f"{max(ratios):.2f}",
            }
        )
    return rows


def costs(args: argparse.Namespace) -> dict[str, float]:
    """What a slide and a worker cost here, one worker of one thread."""
    files = [slide(args.dir / "sizes", f"size {side}", side) for side in SIZES]
    slide(args.dir / "sizes", "a first one, which pays for compilation", SIZES[0])
    began = run(args, args.dir / "sizes", 1, [])
    records = read_slides(args.dir / "run")
    mm2 = np.array([sum(records[file.stem].areas_mm2.values()) for file in files])
    seconds = np.array([records[file.stem].seconds for file in files], float)
    size = sum(file.stat().st_size for file in files) / 1e6
    per_mm2, fixed = np.polyfit(mm2, seconds, 1)
    start = time.monotonic()
    for file in files:
        checksum(file, "sha256")
    return {
        "fixed": max(float(fixed), 0.0),
        "per_mm2": float(per_mm2),
        "mb_per_mm2": size / float(mm2.sum()),
        "start": began["first"],
        "checksum_mb_s": size / (time.monotonic() - start),
    }


def simulate(
    seconds: np.ndarray, mb: np.ndarray, speed: np.ndarray, policy: str, start: float, disk: float
) -> tuple[float, float]:
    """When all slides are done, and the most that is read at a time.

    Args:
        seconds: Time of each slide by a worker of speed 1 that needs not wait for the disk.
        mb: What is read for it.
        speed: Of each worker.
        policy: One of `POLICIES`.
        start: Seconds until a worker takes its first slide.
        disk: MB/s of all readers together.
    """
    workers = len(speed)
    if policy == POLICIES[0]:
        shares = [Shard(k + 1, workers).share(range(len(mb)), mb) for k in range(workers)]
    else:
        shares = [list(map(int, np.argsort(-seconds)))] * workers  # one list for all
    queues = [iter(share) for share in shares]
    if policy != POLICIES[0]:
        queues = [queues[0]] * workers
    now, most = start, 0.0
    left, want = np.zeros(workers), np.zeros(workers)  # seconds of work, MB/s
    at_work = np.zeros(workers, bool)
    while True:
        for k in np.flatnonzero(~at_work):
            job = next(queues[k], None)
            if job is not None:
                at_work[k], left[k] = True, seconds[job] / speed[k]
                want[k] = mb[job] / left[k]
        if not at_work.any():
            return now, most
        wanted = want[at_work].sum()
        most, pace = max(most, wanted), min(1.0, disk / wanted)
        step = left[at_work].min()
        left[at_work] -= step
        now += step / pace
        at_work &= left > 1e-9


def on_paper(cost: dict[str, float], args: argparse.Namespace) -> list[dict]:
    """The second table."""
    rng = np.random.default_rng(0)
    tissue = 150 * np.exp(0.6 * rng.standard_normal(args.slides))
    seconds = (cost["fixed"] + cost["per_mm2"] * tissue) / args.faster
    seconds *= np.exp(0.15 * rng.standard_normal(args.slides))
    mb = cost["mb_per_mm2"] * tissue
    collect = mb.sum() / min(cost["checksum_mb_s"], args.disk_mb_s)
    rows, alone = [], 0.0
    for workers, policy in itertools.product(WORKERS, POLICIES):
        speed = np.where(np.arange(workers) % 8 == 7, 0.5, 1.0)
        done, most = simulate(seconds, 2 * mb, speed, policy, cost["start"], args.disk_mb_s)
        total = done + collect
        alone = alone or total
        rows.append(
            {
                "workers": workers,
                "slides are given out": policy,
                "hours": f"{total / 3600:.1f}",
                "of these to collect": f"{collect / 3600:.1f}",
                "slides_per_h": f"{3600 * args.slides / total:,.0f}",
                "efficiency": f"{alone / total / speed.sum():.2f}",
                "disk": f"{min(most / args.disk_mb_s, 1):.0%}",
            }
        )
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/bench_cluster"))
    parser.add_argument("--measure", action="store_true", help="the first table, and costs anew")
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--disk-mb-s", type=float, default=1000.0)
    parser.add_argument(
        "--faster", type=float, default=1.0, help="workers that are so many times as fast as here"
    )
    parser.add_argument("--quick", action="store_true", help="a small network, one turn")
    args = parser.parse_args(argv)
    if args.quick:
        args.backbone, args.turns = "small", 1
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.dir.mkdir(parents=True, exist_ok=True)
    file = args.dir / "costs.json"
    if args.measure or not file.exists():
        write_json(file, costs(args))
    if args.measure:
        show(measure(args))
    cost = read_object(file, "Delete it.")
    print(json.dumps({name: round(value, 3) for name, value in cost.items()}), "\n")
    show(on_paper(cost, args))


def show(rows: list[dict]) -> None:
    print(markdown(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]), "\n")


if __name__ == "__main__":
    exit_with(main)
