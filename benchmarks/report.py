"""How large is a report of 20 slides, how long does it take, and in how much memory?

The slide is as large as those of the challenge, with 60% of it the tissue of docs/slides (real
H&E: painted tissue needs less than half of the bytes), 0.499 um/px, and a heatmap with a cell
every 125.58 um. One row per slide that is shown:

    mb            of its page, all of it
    mb_20         of 20 such pages
    view_um       um per px at which the slide is shown
    seconds       to write the page, reading included
    per_read      the same over seconds of reading the slide once at that scale: the ratio
    rss_mb        peak resident memory of the process

Reads:   docs/slides.
Writes:  --dir: the slide (made once), a run, its report.
Command: python benchmarks/report.py
         python benchmarks/report.py --quick      a small slide
Time:    two minutes.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from slides import BLOCK, make_slide

from bach.classes import CLASSES
from bach.core.errors import exit_with
from bach.core.files import write_array, write_json
from bach.core.pictures import write_gray
from bach.core.text import markdown
from bach.heatmap import cells_to_map, to_classes, to_heatmap
from bach.honest.records import SlideRecord, write_slide
from bach.labels import write_class_map
from bach.patches import grid_shape
from bach.report.pages import Request, write_report
from bach.slides import Slide
from bach.tasks import BACH

ROOT = Path(__file__).resolve().parent.parent
DOWNSAMPLE = 16
COLUMNS = ("mb", "mb_20", "view_um", "seconds", "per_read", "rss_mb")


def real_blocks(rng: np.random.Generator) -> list[np.ndarray]:
    """Squares of real tissue, turned and mirrored."""
    with Slide(ROOT / "docs/slides/cmu-1-small-region.svs") as slide:
        places = [(0, 0), (slide.width - BLOCK, slide.height - BLOCK)]
        found = [slide.read(x, y, BLOCK, BLOCK) for x, y in places]
    return [np.rot90(block, turn) for block in found for turn in range(4)]


def make_run(run: Path, path: Path) -> None:
    """A run of make_heatmap.py for the slide, with probabilities of chance."""
    shutil.rmtree(run, ignore_errors=True)
    with Slide(path) as slide:
        width, height, mpp = slide.width, slide.height, slide.mpp
    step = BACH.step_um / mpp
    rows, cols = grid_shape(width, height, step)
    probs = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), (rows, cols))
    y, x = (np.mgrid[:rows, :cols] + 0.5) / np.array([rows, cols])[:, None, None] - 0.5
    inside = np.hypot(x, y) < 0.44
    probs[~inside] = np.nan
    shape = (-(-height // DOWNSAMPLE), -(-width // DOWNSAMPLE))
    heat = to_heatmap(probs)
    class_map = cells_to_map(to_classes(heat), step, DOWNSAMPLE, shape)
    tissue = cells_to_map(inside, step, DOWNSAMPLE, shape)
    name = path.stem
    write_array(run / "probs" / f"{name}.npy", probs.astype(np.float32))
    write_class_map(run / "class_maps" / f"{name}.png", class_map)
    write_class_map(run / "truth" / f"{name}.png", np.where(tissue, 3 - class_map, 0))
    write_gray(run / "tissue" / f"{name}.png", tissue.astype(np.uint8) * 255)
    record = SlideRecord(
        image_id=name,
        path=str(path),
        part="B",
        width=width,
        height=height,
        mpp=mpp,
        mpp_source="openslide",
        step=step,
        downsample=DOWNSAMPLE,
        patches=int(inside.sum()),
        models=("0",),
        fold=0,
        in_sample=False,
        areas_mm2=dict.fromkeys(CLASSES, 1.0),
        key={},
    )
    write_slide(run / "slides" / f"{name}.json", record)
    write_json(run / "run.json", {"command": "make_heatmap.py", "arguments": {}, "starts": []})
    write_json(run / "metrics.json", {"slides": 1})


def measure(path: Path, folder: Path) -> dict[str, float]:
    run, out = folder / "run", folder / "report"
    make_run(run, path)
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    write_report(Request([run], out))
    seconds = time.monotonic() - start
    page = next((out / "slides").iterdir())
    size = sum(file.stat().st_size for file in page.rglob("*") if file.is_file()) / 1e6
    image = json.loads((page / "page.json").read_text(encoding="utf-8"))["slide"]["image"]
    with Slide(path) as slide:
        view = slide.mpp * image["scale"]
        start = time.monotonic()
        slide.thumbnail(view)
        read = time.monotonic() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    values = (size, 20 * size, view, seconds, seconds / read, memory)
    return dict(zip(COLUMNS, (round(value, 2) for value in values), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small slide")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs/bench_report")
    args = parser.parse_args()
    width, height = (12_288, 8_192) if args.quick else (62_625, 42_113)
    args.dir.mkdir(parents=True, exist_ok=True)
    path = args.dir / f"real_{width}x{height}.svs"
    # In a process of its own, whose memory does not count.
    maker = multiprocessing.Process(target=make_slide, args=(path, width, height, real_blocks))
    maker.start()
    maker.join()
    row = {"slide": f"{width}x{height}", **measure(path, args.dir)}
    print(markdown(list(row), [list(row.values())]))
    print(json.dumps(row))


if __name__ == "__main__":
    exit_with(main)
