"""What does it cost to write the objects of a slide for QuPath, and to read them back?

Makes up heatmap runs of one slide: all cells predicted, of 10 px of the class map along each
side as with the defaults, the classes in blobs. A row per number of cells:

    MB          size of the .geojson.gz, and of what it unpacks to
    write       seconds of `python -m bach.export qupath`, of CPU
    write MB    its peak resident memory
    read        seconds of `bach.annotations` for the file, painted into a map, of CPU
    read MB     peak resident memory of that
    tiff        seconds of `python -m bach.export tiff`, of CPU
    tiff MB     its peak resident memory
    equal       whether the map that was read is the one that was written

Reads:   nothing.
Writes:  --dir: the runs and what is exported.
Command: python benchmarks/export.py
Time:    a minute on one core; --quick 10 s.
Prints a Markdown table; the last line is JSON.
"""

import argparse
import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.core.errors import exit_with
from bach.core.text import markdown
from bach.heatmap import to_classes, to_heatmap
from bach.honest.records import SlideRecord, write_slide
from bach.labels import read_class_map, write_class_map

ROOT = Path(__file__).resolve().parent.parent
PX_PER_CELL, DOWNSAMPLE = 10, 16

# Runs a command and prints the peak memory in kB and the CPU time of it alone.
MEASURE = (
    "import resource, subprocess, sys\n"
    "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime)\n"
)
READ = (
    "import sys\n"
    "import numpy as np\n"
    "from bach.annotations import label_mask, read_regions\n"
    "file, width, height, downsample, out = sys.argv[1:]\n"
    "regions = read_regions(file)\n"
    "np.save(out, label_mask(regions, int(width), int(height), float(downsample)))\n"
)


def make_run(folder: Path, cells: int) -> SlideRecord:
    """A run of one slide of about so many cells, as square as may be."""
    rows = round(math.sqrt(cells))
    shape = (rows, round(cells / rows))
    rng = np.random.default_rng(0)
    logits = [cv2.GaussianBlur(rng.normal(size=shape), (0, 0), 2) for _ in range(4)]
    probs = np.exp(20 * np.stack(logits, axis=-1))
    probs = (probs / probs.sum(axis=-1, keepdims=True)).astype(np.float32)
    heatmap = to_heatmap(probs)
    class_map = np.kron(to_classes(heatmap), np.ones((PX_PER_CELL, PX_PER_CELL), np.uint8))
    for kind in ("slides", "probs", "heatmaps", "class_maps"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    np.save(folder / "probs/slide.npy", probs)
    np.save(folder / "heatmaps/slide.npy", heatmap)
    write_class_map(folder / "class_maps/slide.png", class_map)
    record = SlideRecord(
        image_id="slide",
        path="slide.svs",
        part="",
        width=class_map.shape[1] * DOWNSAMPLE,
        height=class_map.shape[0] * DOWNSAMPLE,
        mpp=0.467,
        mpp_source="made up",
        step=float(PX_PER_CELL * DOWNSAMPLE),
        downsample=float(DOWNSAMPLE),
        patches=probs[..., 0].size,
        models=("0",),
        fold=0,
        in_sample=False,
        areas_mm2={},
        key={},
    )
    write_slide(folder / "slides/slide.json", record)
    (folder / "metrics.json").write_text("{}")
    return record


def measured(*words: object) -> tuple[float, float]:
    """CPU seconds and peak MB of a command."""
    # Its own parent: nothing that this process did counts.
    command = [sys.executable, "-c", MEASURE, sys.executable, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    kilobytes, seconds = done.stdout.split()
    return round(float(seconds), 2), round(int(kilobytes) / 1024)


def measure(folder: Path, cells: int) -> dict[str, object]:
    """The row of one number of cells."""
    record = make_run(folder, cells)
    export = ("-m", "bach.export")
    write, write_mb = measured(*export, "qupath", folder, "--offset", 0, 0)
    file = folder / "qupath/slide.geojson.gz"
    size = (record.width, record.height, record.downsample)
    read, read_mb = measured("-c", READ, file, *size, folder / "read.npy")
    tiff, tiff_mb = measured(*export, "tiff", folder)
    written, again = read_class_map(folder / "class_maps/slide.png"), np.load(folder / "read.npy")
    with gzip.open(file) as stream:
        unpacked = stream.seek(0, 2)
    return {
        "cells": record.patches,
        "MB": f"{file.stat().st_size / 1e6:.1f}, {unpacked / 1e6:.1f}",
        "write": write,
        "write MB": write_mb,
        "read": read,
        "read MB": read_mb,
        "tiff": tiff,
        "tiff MB": tiff_mb,
        "equal": bool(np.array_equal(again, written)),
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("data/bench_export"), help="where to work")
    parser.add_argument("--quick", action="store_true", help="few cells")
    parser.add_argument("--cells", type=int, nargs="+", help="how many (default: 50,000 100,000)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder = args.dir.resolve()
    numbers = args.cells or ([2_500] if args.quick else [50_000, 100_000])
    rows = [measure(folder / str(cells), cells) for cells in numbers]
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    print(json.dumps(rows))


if __name__ == "__main__":
    exit_with(main)
