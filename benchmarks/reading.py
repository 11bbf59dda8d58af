"""What does it cost to read a patch of a slide?

Against the plain way: one region of OpenSlide per patch, laid over white and shrunk by sparse
weights, all in NumPy and SciPy. Both read the same patches of 299 px at 2.1 um, in turns, each
from its own open slide; CPU time of the process, so that what else runs does not count.

A row per slide and way of reading:

    grid        patches a fifth of their side apart, in order, as for mining and heatmaps
    drawn       one in 23 of the same patches, in order, as step 2 draws hard examples of a slide
                (of Kwok's 134,000 patches 5,900)
    scattered   patches at random places in no order; every tile is decoded anew
    ms, plain   CPU milliseconds per patch
    ratio       plain over ours
    differs     largest difference of a pixel, of 255

Reads:   --slides; without them the slide of docs/slides (JPEG, 0.499 um, no pyramid, at 0.5 um
         and at 2.1), and a painted one (deflate, 0.467 um, levels 1, 4 and 16).
Writes:  the painted slide, to --dir.
Command: python benchmarks/reading.py
Time:    a minute.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import scipy.sparse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from slides import make_slide

from bach.core.errors import exit_with
from bach.core.text import markdown
from bach.slides import Slide
from bach.tasks import BACH

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 8
DRAWN = 5900 / 134000
CACHE_BYTES = 64 * 2**20

Place = tuple[float, float]


def plain_reader(slide: Slide) -> Callable[[float, float, float], np.ndarray]:
    """Reads patches of a slide without a thought for speed."""
    source = openslide.OpenSlide(slide.path)
    source.set_cache(openslide.OpenSlideCache(CACHE_BYTES))

    def weights(start: float, factor: float, length: int) -> scipy.sparse.csr_array:
        first = start + factor * np.arange(BACH.side_px)
        pixel = np.floor(first).astype(int)[:, None] + np.arange(math.ceil(factor) + 1)
        share = np.minimum(pixel + 1, (first + factor)[:, None]) - np.maximum(pixel, first[:, None])
        share = np.where(pixel < length, np.clip(share, 0, None) / factor, 0).astype(np.float32)
        rows = np.repeat(np.arange(BACH.side_px), pixel.shape[1])
        parts = share.ravel(), (rows, np.minimum(pixel, length - 1).ravel())
        return scipy.sparse.coo_array(parts, shape=(BACH.side_px, length)).tocsr()

    def read(x: float, y: float, mpp: float) -> np.ndarray:
        scale = mpp / slide.mpp
        level = source.get_best_level_for_downsample(scale * 1.001)
        down = round(source.level_downsamples[level])
        left, top, factor = math.floor(x / down), math.floor(y / down), scale / down
        side = math.ceil(factor * BACH.side_px) + 1
        region = source.read_region((left * down, top * down), level, (side, side))
        rgba = np.asarray(region)
        alpha = rgba[..., 3:]
        rgb = rgba[..., :3].copy()
        if alpha.min() < 255:
            rgb = np.rint(rgb * (alpha / 255) + 255 - alpha.astype(np.float32)).astype(np.uint8)
        tall = weights(y / down - top, factor, side) @ rgb.reshape(side, -1).astype(np.float32)
        wide = tall.reshape(BACH.side_px, side, 3).transpose(1, 0, 2).reshape(side, -1)
        result = weights(x / down - left, factor, side) @ wide
        result = result.reshape(BACH.side_px, BACH.side_px, 3).transpose(1, 0, 2)
        return np.rint(result).astype(np.uint8)

    return read


def grid(slide: Slide, mpp: float) -> Iterator[list[Place]]:
    """Rows of patches that overlap by four fifths, from the middle of the slide."""
    size = BACH.side_px * mpp / slide.mpp
    xs = np.arange(0, max(slide.width - size, 1), size / 5)
    for row in range(ROUNDS):
        y = (0.3 * slide.height + row * size / 5) % max(slide.height - size, 1)
        yield [(x, y) for x in xs]


def drawn(slide: Slide, mpp: float) -> Iterator[list[Place]]:
    """Hard examples, of the whole slide."""
    rng = np.random.default_rng(0)
    size = BACH.side_px * mpp / slide.mpp
    xs = np.arange(0, max(slide.width - size, 1), size / 5)
    for y in np.arange(0, max(slide.height - size, 1), size / 5):
        yield [(x, y) for x in xs[rng.random(len(xs)) < DRAWN]]


def scattered(slide: Slide, mpp: float) -> Iterator[list[Place]]:
    rng = np.random.default_rng(0)
    size = BACH.side_px * mpp / slide.mpp
    room = max(slide.width - size, 1), max(slide.height - size, 1)
    for _ in range(ROUNDS):
        yield [tuple(rng.uniform(0, room).tolist()) for _ in range(12)]


def measure(path: Path, mpp: float, ways: dict[str, Callable]) -> Iterator[dict]:
    """A row of the table per way of reading."""
    for name, places in ways.items():
        with Slide(path) as slide:
            plain = plain_reader(slide)

            def ours(x: float, y: float, mpp: float, slide: Slide = slide) -> np.ndarray:
                return slide.read(x, y, BACH.side_px, BACH.side_px, mpp)

            seconds, count, differs = {plain: 0.0, ours: 0.0}, 0, 0
            for batch in places(slide, mpp):
                seen = {}
                for read in seconds:
                    start = time.process_time()
                    seen[read] = [read(x, y, mpp) for x, y in batch]
                    seconds[read] += time.process_time() - start
                pairs = zip(seen[plain], seen[ours], strict=True)
                differs = max([differs, *(int(np.abs(a.astype(int) - b).max()) for a, b in pairs)])
                count += len(batch)
            yield {
                "slide": path.name,
                "um": mpp,
                "patches": f"{count} {name}",
                "ms": round(1e3 * seconds[ours] / count, 2),
                "plain": round(1e3 * seconds[plain] / count, 2),
                "ratio": round(seconds[plain] / seconds[ours], 2),
                "differs": differs,
            }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("data/bench_slides"), help="where to work")
    parser.add_argument("--slides", type=Path, nargs="+", help="slides to read, at 2.1 um")
    parser.add_argument("--quick", action="store_true", help="without the painted slide")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    wanted = [(path, BACH.mpp) for path in args.slides or ()]
    if not wanted:
        small = ROOT / "docs/slides/cmu-1-small-region.svs"
        wanted = [(small, 0.5), (small, BACH.mpp)]
    if not args.slides and not args.quick:
        args.dir.mkdir(parents=True, exist_ok=True)
        painted = args.dir / "large_16000x14000.svs"
        make_slide(painted, 16000, 14000)
        wanted.insert(0, (painted, BACH.mpp))
    ways = {"grid": grid, "drawn": drawn, "scattered": scattered}
    rows = [row for path, mpp in wanted for row in measure(path, mpp, ways)]
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    print(json.dumps(rows))


if __name__ == "__main__":
    exit_with(main)
