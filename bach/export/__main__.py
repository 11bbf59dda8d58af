"""Write results for other tools: objects in QuPath, pyramids for viewers of slides.

    python -m bach.export qupath runs/heatmaps
    python -m bach.export tiff runs/heatmaps A01 A02

Reads:   a run of make_heatmap.py; qupath also the headers of its slides
Writes:  RUN/qupath/NAME.geojson.gz     a locked tile per cell, an annotation per class region
         RUN/tiff/NAME.classes.tif      the class map, RGB, opened by OpenSlide
         RUN/tiff/NAME.probs.ome.tif    the probabilities of the cells, a channel per class
Time:    seconds per slide

A slide that fails does not stop the others; the exit code is then 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bach.core.errors import exit_with
from bach.core.files import require_place
from bach.export import qupath
from bach.export.results import Result, export_each, list_results


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tools = parser.add_subparsers(dest="tool", required=True)
    objects = tools.add_parser("qupath", help="objects that QuPath takes by drag and drop")
    pyramids = tools.add_parser("tiff", help="pyramids of class map and probabilities")
    for tool in (objects, pyramids):
        tool.add_argument("run", metavar="RUN", type=Path, help="run folder of make_heatmap.py")
        tool.add_argument("slides", nargs="*", metavar="SLIDE", help="names of slides; all if none")
        tool.add_argument(
            "--out", type=Path, help=f"folder to write to (default: RUN/{tool.prog.split()[-1]})"
        )
    objects.add_argument(
        "--offset",
        type=int,
        nargs=2,
        metavar=("X", "Y"),
        help="level-0 px of the slides where QuPath begins to count, 0 0 if it shows them whole "
        "(default: what the slide files say)",
    )
    args, more = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in more):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    args.slides += more  # names after an option, which argparse does not take
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    slides = list_results(args.run, args.slides)
    out = args.out or args.run / args.tool
    require_place(out, "Name another --out.", folder=True)
    write = _to_tiff if args.tool == "tiff" else _to_qupath
    return export_each(args.run, slides, out, lambda result: write(args, out, result))


def _to_qupath(args: argparse.Namespace, out: Path, result: Result) -> list[Path]:
    path = out / (result.name + qupath.ENDING)
    offset = tuple(args.offset or qupath.bounds_offset(args.run, result.record))
    qupath.write_qupath(path, result, offset)
    return [path]


def _to_tiff(args: argparse.Namespace, out: Path, result: Result) -> list[Path]:
    from bach.export import pyramids  # loads tifffile, which --help need not wait for

    classes = out / (result.name + pyramids.CLASSES_ENDING)
    probs = out / (result.name + pyramids.PROBS_ENDING)
    pyramids.write_classes(classes, result)
    pyramids.write_probs(probs, result)
    return [classes, probs]


if __name__ == "__main__":
    exit_with(main)
