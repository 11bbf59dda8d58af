"""Write results for other tools: objects in QuPath, pyramids for viewers, models for runtimes.

    python -m bach.export qupath runs/heatmaps
    python -m bach.export tiff runs/heatmaps A01 A02
    python -m bach.export model runs/part_a/fold_0/model.keras --format onnx
    python -m bach.export model runs/part_a --fold 0 --to hf://OWNER/NAME --out card

Reads:   a run of make_heatmap.py, qupath also the headers of its slides; or a model, and
         patches that it is checked with
Writes:  RUN/qupath/NAME.geojson.gz     a locked tile per cell, an annotation per class region
         RUN/tiff/NAME.classes.tif      the class map, RGB, opened by OpenSlide
         RUN/tiff/NAME.probs.ome.tif    the probabilities of the cells, a channel per class
         model.onnx, model_savedmodel/, model.tflite or model_openvino/ beside the model
Time:    seconds per slide; half a minute per model

A slide that fails does not stop the others; the exit code is then 1. A model is written as Keras
exports it, and kept only if it gives the same probabilities to 1e-4 on real patches.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bach.core.errors import InputError, exit_with
from bach.core.files import require_place
from bach.export import qupath
from bach.export.card import Facts, model_card
from bach.export.results import Result, export_each, list_results
from bach.honest.records import bounds_offset
from bach.honest.seen import read_seen
from bach.tasks import use

FORMATS = ("onnx", "savedmodel", "litert", "openvino")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)", re.ASCII)


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
        "--slides-dir",
        type=Path,
        help="folder of the slides, if they do not lie where they were any more; only their "
        "headers are read",
    )
    objects.add_argument(
        "--offset",
        type=int,
        nargs=2,
        metavar=("X", "Y"),
        help="level-0 px of the slides where QuPath begins to count, 0 0 if it shows them whole "
        "(default: what the slide files say)",
    )
    _add_model(tools.add_parser("model", help="a model for other runtimes, or for Hugging Face"))
    args, more = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in more) or (more and args.tool == "model"):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.slides += more  # names after an option, which argparse does not take
    use(None, args.model if args.tool == "model" else args.run)
    return args


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help=".keras file, or run folder")
    parser.add_argument("--fold", type=int, help="which model of a run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--format", choices=FORMATS, help="what to write")
    which.add_argument(
        "--to",
        metavar="hf://OWNER/NAME",
        help="upload it to Hugging Face as Keras saves it, with a model card; a new repository is "
        "private. With --out the folder is written there, and nothing is uploaded",
    )
    parser.add_argument("--out", type=Path, help="file or folder to write, new")
    parser.add_argument(
        "--patches",
        type=Path,
        help="patch store, or run folder with one, to check the export with (default: that of the "
        "model's run)",
    )
    parser.add_argument(
        "--photos", nargs="+", default=[], help="photos to cut patches from instead"
    )
    parser.add_argument("--data", help="what the model card says of the data and their licence")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.tool == "model":
        return _export_model(args)
    slides = list_results(args.run, args.slides)
    out = args.out or args.run / args.tool
    require_place(out, "Name another --out.", folder=True)
    write = _to_tiff if args.tool == "tiff" else _to_qupath
    return export_each(args.run, slides, out, lambda result: write(args, out, result))


def _to_qupath(args: argparse.Namespace, out: Path, result: Result) -> list[Path]:
    path = out / (result.name + qupath.ENDING)
    offset = tuple(args.offset or bounds_offset(args.run, result.record, args.slides_dir))
    qupath.write_qupath(path, result, offset)
    return [path]


def _to_tiff(args: argparse.Namespace, out: Path, result: Result) -> list[Path]:
    from bach.export import pyramids  # loads tifffile, which --help need not wait for

    classes = out / (result.name + pyramids.CLASSES_ENDING)
    probs = out / (result.name + pyramids.PROBS_ENDING)
    pyramids.write_classes(classes, result)
    pyramids.write_probs(probs, result)
    return [classes, probs]


def _export_model(args: argparse.Namespace) -> int:
    hub = _HUB.fullmatch(args.to) if args.to else None
    if args.to and hub is None:
        raise InputError(
            f"--to must be hf://OWNER/NAME.\nReceived: --to={args.to}.\nCorrect the name."
        )
    if args.out is not None:
        _require_new(args.out)
    from bach.network import backend, exporting  # loads the framework, which --help must not

    if hub is None:
        exporting.require_format(args.format, args.out)
    elif args.out is None:
        exporting.require_hub()
    backend.start(1)
    source = exporting.open_source(args.model, args.fold)
    patches = exporting.sample_patches(source, args.patches, args.photos)
    if hub is None:
        out = args.out or exporting.default_out(source, args.format)
        _require_new(out)
        exporting.export_model(source, args.format, out, patches)
        print(out)
        return 0
    seen = read_seen(source.file)
    shape = source.model.input_shape[1:3]
    card = model_card(
        Facts(hub[1], source.run, source.fold, seen, shape, source.um_per_px, args.data)
    )
    if args.out is not None:
        exporting.save_for_hub(source, args.out, patches, card, seen)
        print(args.out)
        return 0
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside, "model")
        exporting.save_for_hub(source, folder, patches, card, seen)
        exporting.upload(folder, hub[1])
    print(f"https://huggingface.co/{hub[1]}")
    return 0


def _require_new(out: Path) -> None:
    """Refuse to write over what is there."""
    require_place(out, "Name another --out.")
    if out.exists():
        raise InputError(
            f"What is exported must not be there yet.\nReceived: {out}, which is.\n"
            "Name another --out, or delete it."
        )


if __name__ == "__main__":
    exit_with(main)
