"""How fast and how large is a heatmap, dense against patch by patch?

Makes its slides itself: blocks painted by `bach.toy`, laid out over 60% of the slide
behind an oval outline, 0.467 um/px, pyramid levels 1, 4 and 16. The network has random
weights: time and memory do not depend on them.

Figures of the last line:

    speedup     seconds of the winner's grid, a patch every 67.2 um, over seconds of dense
                prediction at the same step: same network, precision and slide, reading
                included in both. The dense run is stopped between regions, four times,
                and there as well as before and after it a sixth of the --sample patches of
                the grid is timed, spread over the slide: the speed of shared machines drifts.
    overhead    seconds of a whole slide by make_heatmap.py (masks, reading, network,
                writing) over seconds of the bare forward pass over the same regions,
                timed on every --every-th of them, before and after, and multiplied.
    overhead_cpu  the same in CPU seconds of one process, which other work on the machine
                disturbs less; here the slide's checksum counts as well.
    halo        share of the network's pixels that are surroundings, computed again by
                another region or not used.
    rss_mb      peak resident memory of make_heatmap.py on the large slide; rss_growth is
                that over the peak on the small one.
    linearity   seconds per mm2 at 10, 50 and 200 mm2 of tissue in pieces of 10 mm2, largest
                over smallest; medians, for the smaller ones are timed before and after the
                largest, and the smallest also in between.
    linearity_px  the network's pixels per mm2 for one square of 10, 50 and 200 mm2, largest
                over smallest: what the surroundings of a small piece cost.

Reads:   nothing.
Writes:  --dir: slides (4 GB, made once), the model, run folders.
Command: python benchmarks/slides.py
         python benchmarks/slides.py --quick            a small slide and network
Time:    about 20 min on two cores with Inception-ResNet-v2, half of it painting the slide.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import make_heatmap
from bach.core.errors import exit_with
from bach.core.files import atomic_path
from bach.core.log import log, step
from bach.core.text import markdown
from bach.heatmap import HeatmapMaker, heatmap_patches
from bach.network import backend
from bach.network.dense import (
    REGION,
    DenseModel,
    FeatureRegion,
    cover,
    dense_step_um,
    needed_features,
    predict_dense,
)
from bach.network.patch_network import build_model
from bach.network.predict import predict_slide, prepare
from bach.network.predictor import Predictor
from bach.patches import grid_shape
from bach.slides import Slide
from bach.tasks import BACH
from bach.tissue import slide_maps
from bach.toy import painter
from bach.toy.aperio import SLIDE_MPP, TILE, write_bands

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 2048  # level-0 px, painted at half of that
BLOCKS = 6
TISSUE = 0.6
PARTS = ("speed", "linearity", "memory")
CELL_MM2 = (BACH.dense_step_um / 1000) ** 2


def painted_blocks(rng: np.random.Generator) -> list[np.ndarray]:
    """Squares of painted tissue, of `BLOCK` px."""
    look = painter.make_look(rng, 0.5)
    side = BLOCK // 2
    labels = [np.full((side, side), label, np.uint8) for label in (0, 1, 2, 3, 0, 1)]
    return [
        painter.paint_tissue(rng, label, side, side, 2 * SLIDE_MPP, look).repeat(2, 0).repeat(2, 1)
        for label in labels[:BLOCKS]
    ]


def make_slide(
    path: Path,
    width: int,
    height: int,
    squares: Callable[[np.random.Generator], list[np.ndarray]] = painted_blocks,
) -> None:
    """Write a slide with an oval of tissue laid out of squares, unless it is there."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    blocks = squares(rng)
    glass = rng.normal(243, 1.5, (BLOCK, BLOCK, 3)).round().astype(np.uint8)
    shape = (-(-height // 256), -(-width // 256))
    row, col = np.indices(shape)
    # An ellipse of this size has the wanted share of the slide.
    radius = np.sqrt(TISSUE * 4 / np.pi)
    inside = ((row + 0.5) * 512 / height - 1) ** 2 + ((col + 0.5) * 512 / width - 1) ** 2
    inside = inside < radius**2
    which = rng.integers(0, len(blocks), (shape[0] // 8 + 1, shape[1] // 8 + 1))

    def paint_band(y: int) -> np.ndarray:
        """One row of tiles."""
        band = np.empty((min(TILE, height - y), width, 3), np.uint8)
        top = y % BLOCK
        for left in range(0, width, TILE):
            source = glass
            if inside[y // TILE, left // TILE]:
                source = blocks[which[y // BLOCK, left // BLOCK]]
            part = band[:, left : left + TILE]
            part[:] = source[top : top + len(band), left % BLOCK : left % BLOCK + part.shape[1]]
        return band

    with step(path.name) as notes:
        write_bands(path, map(paint_band, range(0, height, TILE)), (width, height))
        notes.append(f"{width}x{height} px, {path.stat().st_size / 1e9:.1f} GB")


def script_words(slide: Path, model: Path, args: argparse.Namespace) -> tuple[Path, list[str]]:
    """An empty run folder, and the arguments of make_heatmap.py."""
    run = args.dir / f"run_{slide.stem}"
    shutil.rmtree(run, ignore_errors=True)
    words = ["--slides", slide, "--model-dir", model, "--run-dir", run, "--mode", "dense"]
    return run, [*map(str, words), "--precision", args.precision]


def script_cpu_seconds(slide: Path, model: Path, args: argparse.Namespace) -> float:
    """CPU seconds of what make_heatmap.py does for one slide, by this process."""
    run, words = script_words(slide, model, args)
    options = make_heatmap.parse_args(words)
    predictor = Predictor(options, options.step_um)
    maker = HeatmapMaker(run, predictor, options)
    start = time.process_time()
    maker.make(str(slide), "")
    return time.process_time() - start


def run_script(slide: Path, model: Path, args: argparse.Namespace) -> dict:
    """Seconds and peak memory of make_heatmap.py on one slide."""
    run, words = script_words(slide, model, args)
    # Started by a small process: of one that this process starts, the peak would count
    # what this one holds.
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, ROOT / "make_heatmap.py", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads((run / "slides" / f"{slide.stem}.json").read_text())
    return {"seconds": result["seconds"], "rss_mb": int(done.stdout) / 1024}


class Interrupted:
    """A dense model that stops after every so many regions for something else.

    Args:
        model: A `DenseModel`.
        every: Regions.
        pause: What to do then.

    Attributes:
        paused: Seconds that this took.
    """

    def __init__(self, model: DenseModel, every: int, pause: Callable[[], object]):
        self._model = model
        self._every = every
        self._pause = pause
        self._count = 0
        self.paused = 0.0

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def features(self, region: np.ndarray, orientation: int = 0) -> np.ndarray:
        result = self._model.features(region, orientation)
        self._count += 1
        if self._count % self._every == 0:
            self.paused += seconds_of(self._pause)
        return result


def pieces(shape: tuple[int, int], mm2: float, count: int) -> np.ndarray:
    """Cells of `count` squares of so many mm2 each, evenly over a slide: bool `shape`."""
    side = round((mm2 / CELL_MM2) ** 0.5)
    across = math.ceil(count**0.5)
    down = math.ceil(count / across)
    cells = np.zeros(shape, bool)
    for index in range(count):
        top = (shape[0] * (2 * (index // across) + 1) // down - side) // 2
        left = (shape[1] * (2 * (index % across) + 1) // across - side) // 2
        cells[max(top, 0) : top + side, max(left, 0) : left + side] = True
    return cells


def seconds_of(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("data/bench_slides"), help="where to work")
    parser.add_argument("--backbone", default=None, help="default: InceptionResNetV2; quick: small")
    parser.add_argument("--precision", default="float32", help="float32, mixed_bfloat16, ...")
    parser.add_argument("--size", type=int, nargs=2, default=None, help="of the large slide, px")
    parser.add_argument("--small-size", type=int, nargs=2, default=None, help="of the small one")
    parser.add_argument("--areas", type=float, nargs="+", default=None, help="mm2, for linearity")
    parser.add_argument("--sample", type=int, default=192, help="patches of the grid to time")
    parser.add_argument("--every", type=int, default=4, help="regions of the bare pass: every n-th")
    parser.add_argument("--batch-size", type=int, default=32, help="patches per batch of the grid")
    parser.add_argument(
        "--only",
        nargs="+",
        default=PARTS,
        choices=PARTS,
        help="what to measure (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="a small slide and network")
    args = parser.parse_args(argv)
    args.backbone = args.backbone or ("small" if args.quick else "InceptionResNetV2")
    args.size = args.size or ((16000, 14000) if args.quick else (54000, 46000))
    args.small_size = args.small_size or ((8000, 7000) if args.quick else (10000, 10000))
    args.areas = args.areas or ([3, 6, 12] if args.quick else [10, 50, 200])
    return args


class Bench:
    """The large slide, what is wanted of it, and the network in both modes.

    Args:
        slide: The open slide.
        model: The network.
        args: As of `parse_args`.
    """

    def __init__(self, slide: Slide, model, args: argparse.Namespace):
        self.slide, self.args = slide, args
        self.grid = prepare(model, args.precision)
        self.dense = DenseModel(model, args.precision)
        self.every = dense_step_um(self.dense, BACH.dense_step_um)
        self.table = heatmap_patches(slide_maps(slide), BACH.dense_step_um)
        self.wanted = np.zeros(
            grid_shape(slide.width, slide.height, BACH.dense_step_um / slide.mpp), bool
        )
        self.wanted[self.table["row"], self.table["col"]] = True
        self.regions = self.cover(self.wanted)
        # All has run once before it is timed: tracing is done once per script.
        self.patch_seconds()
        middle = np.zeros(self.wanted.shape, bool)
        row, col = (length // 2 for length in middle.shape)
        middle[row, col] = middle[row + 5, col + 9] = True
        self.dense_seconds(middle)
        self.dense_seconds(np.roll(middle, 3))

    def cover(self, cells: np.ndarray) -> list[FeatureRegion]:
        return cover(needed_features(cells, self.dense.window), REGION, gap=2 * self.dense.halo)

    def pixels(self, region: FeatureRegion) -> int:
        """Network px of a region."""
        return self.dense.region_px(region.rows) * self.dense.region_px(region.cols)

    def patch_seconds(self) -> float:
        """Seconds per patch of the winner's grid, on patches spread over the slide."""
        rows = np.linspace(0, len(self.table) - 1, self.args.sample // 6).round().astype(int)
        sample = self.table.iloc[rows]
        return seconds_of(
            lambda: predict_slide([self.grid], self.slide, sample, self.args.batch_size)
        ) / len(sample)

    def dense_seconds(self, cells: np.ndarray, every: int = 1, model=None) -> float:
        """Seconds of dense prediction of the wanted cells."""
        model, every = model or self.dense, every * self.every
        return seconds_of(lambda: predict_dense([model], self.slide, cells, every))

    def bare_seconds(self) -> np.ndarray:
        """Seconds, and CPU seconds, per network pixel of the bare pass on some of the regions."""
        some = self.regions[:: self.args.every]
        blanks = [
            np.zeros((self.dense.region_px(x.rows), self.dense.region_px(x.cols), 3), np.uint8)
            for x in some
        ]
        start = time.process_time()
        seconds = seconds_of(lambda: [self.dense.features(blank) for blank in blanks])
        both = np.array([seconds, time.process_time() - start])
        return both / sum(self.pixels(region) for region in some)


def measure_speed(bench: Bench, large: Path, model: Path) -> dict:
    """Dense against the grid, and the script against the bare network."""
    bench.bare_seconds()  # the first region of each size takes longer
    patch = [bench.patch_seconds()]

    def time_patches() -> None:
        time.sleep(2)  # the regions that are read ahead are there by then
        patch.append(bench.patch_seconds())

    stopped = Interrupted(bench.dense, math.ceil(len(bench.regions) / 5), time_patches)
    whole = bench.dense_seconds(bench.wanted, model=stopped) - stopped.paused
    patch.append(bench.patch_seconds())
    per_pixel = [bench.bare_seconds()]
    script = run_script(large, model, bench.args)
    cpu_seconds = script_cpu_seconds(large, model, bench.args)
    per_pixel.append(bench.bare_seconds())

    bare, bare_cpu = np.mean(per_pixel, axis=0)
    computed = sum(bench.pixels(region) for region in bench.regions)
    return {
        "patches": len(bench.table),
        "patches_timed": len(patch) * (bench.args.sample // 6),
        "patches_per_s": round(1 / np.mean(patch), 2),
        "regions": len(bench.regions),
        "mpx_per_s": round(1e-6 / bare, 3),
        "seconds": round(script["seconds"], 1),
        "speedup": round(np.mean(patch) * len(bench.table) / whole, 2),
        "overhead": round(script["seconds"] / (bare * computed), 3),
        "cpu_seconds": round(cpu_seconds, 1),
        "overhead_cpu": round(cpu_seconds / (bare_cpu * computed), 3),
        "halo": round(1 - bench.wanted.sum() * bench.dense.stride**2 / computed, 3),
        "rss_mb": round(script["rss_mb"]),
    }


def measure_linearity(bench: Bench) -> dict:
    """Seconds per mm2 of less and of more tissue."""
    smallest, *larger = bench.args.areas
    shape = bench.wanted.shape
    times: dict[float, list[float]] = {area: [] for area in bench.args.areas}
    # The smallest between all others: it is over soonest and feels most what else the
    # machine does.
    between = [x for area in [*larger, *larger[-2::-1]] for x in (area, smallest)]
    for area in [smallest, *between]:
        some = pieces(shape, smallest, max(1, round(area / smallest)))
        times[area].append(bench.dense_seconds(some) / (some.sum() * CELL_MM2))
    medians = {area: float(np.median(seconds)) for area, seconds in times.items()}
    costs = []
    for area in bench.args.areas:
        square = pieces(shape, area, 1)
        cost = sum(bench.pixels(region) for region in bench.cover(square))
        costs.append(cost / (square.sum() * CELL_MM2))
    coarse = pieces(shape, bench.args.areas[1], 1)
    rows, cols = (np.flatnonzero(coarse.any(axis=axis))[0] % 2 for axis in (1, 0))
    coarse[rows + 1 :: 2] = coarse[:, cols + 1 :: 2] = False
    double = bench.dense_seconds(coarse[rows::2, cols::2], every=2)
    return {
        "s_per_mm2": {f"{area:g}": round(seconds, 3) for area, seconds in medians.items()},
        "s_per_mm2_step_134": round(double / (coarse.sum() * 4 * CELL_MM2), 3),
        "linearity": round(max(medians.values()) / min(medians.values()), 3),
        "linearity_px": round(max(costs) / min(costs), 3),
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.dir.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, size in (("large", args.size), ("small", args.small_size)):
        paths[name] = args.dir / f"{name}_{size[0]}x{size[1]}.svs"
        make_slide(paths[name], *size)
    backend.start(1, 0, args.precision)
    model = build_model(args.backbone, "none")
    file = args.dir / f"{args.backbone}.keras"
    with atomic_path(file) as temporary:
        model.save(temporary)
    result = {"backbone": args.backbone, "precision": args.precision, "slide": list(args.size)}
    if {"speed", "linearity"} & set(args.only):
        with Slide(paths["large"]) as slide:
            bench = Bench(slide, model, args)
            result["mm2"] = round(float(bench.wanted.sum() * CELL_MM2), 1)
            if "speed" in args.only:
                result |= measure_speed(bench, paths["large"], file)
            if "linearity" in args.only:
                result |= measure_linearity(bench)
    if "memory" in args.only:
        if "rss_mb" not in result:
            result["rss_mb"] = round(run_script(paths["large"], file, args)["rss_mb"])
        small = run_script(paths["small"], file, args)
        result["rss_growth"] = round(result["rss_mb"] / small["rss_mb"], 3)
    log.info("a patch has %d px, a step is %.1f um", BACH.side_px, BACH.dense_step_um)
    print(markdown(["figure", f"{args.backbone}, {args.precision}"], result.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    exit_with(main)
