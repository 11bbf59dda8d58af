"""How long does a public peer take for the same slide, backbone and step?

wsinfer (Kaczmarzyk et al. 2024) predicts a slide patch by patch with PyTorch. It and
make_heatmap.py, in both modes, are run as commands on one painted slide, one after the
other: Inception-ResNet-v2 with random weights, patches of 627.9 um shrunk to 299 px, one
every 67.2 um. The two find tissue each in its own way, so that speeds are compared by
prediction: predictions in the output over seconds of the whole command, start-up and
reading included.

    peer, patches, dense  predictions/s
    ratio_patches         patches over peer
    ratio_dense           dense over peer

Reads:   nothing. wsinfer 0.6.1, PyTorch and timm must be installed, best in an
         environment of their own: `pip install wsinfer timm` there.
Writes:  --dir: the slide, the model for PyTorch, outputs.
Command: python benchmarks/peer.py --python PEER/bin/python
Time:    10 to 15 min on two cores.
Prints a table; the last line is JSON.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from slides import ROOT, make_slide

from bach.classes import CLASSES
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path
from bach.core.tables import read_table
from bach.core.text import markdown
from bach.network.patch_network import build_model
from bach.tasks import BACH

# Run by the peer's Python: the same network, as wsinfer takes it.
TRACE = f"""
import sys, timm, torch
model = timm.create_model("inception_resnet_v2", num_classes={len(CLASSES)}).eval()
torch.jit.trace(model, torch.zeros(1, 3, {BACH.side_px}, {BACH.side_px})).save(sys.argv[1])
"""


def peer_config() -> dict:
    """What wsinfer needs to know of a model that is not in its collection."""
    return {
        "spec_version": "1.0",
        "architecture": "inception_resnet_v2",
        "name": "inception_resnet_v2",
        "num_classes": len(CLASSES),
        "class_names": list(CLASSES),
        "patch_size_pixels": BACH.side_px,
        "spacing_um_px": BACH.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": BACH.side_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        ],
    }


def seconds_of(words: list) -> float:
    """Seconds a command takes.

    Raises:
        InputError: If it fails.
    """
    start = time.monotonic()
    done = subprocess.run([str(word) for word in words], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise InputError(
            f"Both tools must run.\nReceived: exit code {done.returncode} of {words[:3]}.\n"
            "Mend what its last lines say."
        )
    return time.monotonic() - start


def run_peer(args: argparse.Namespace, slide: Path) -> dict:
    model, config, out = args.dir / "peer.pt", args.dir / "peer.json", args.dir / "peer"
    if not model.exists():
        seconds_of([args.python, "-c", TRACE, model])
    config.write_text(json.dumps(peer_config()))
    shutil.rmtree(out, ignore_errors=True)
    overlap = 1 - BACH.dense_step_um / (BACH.side_px * BACH.mpp)
    words = [
        *(args.python.parent / "wsinfer", "--backend", "openslide", "run"),
        *("--wsi-dir", slide.parent, "--results-dir", out),
        *("--config", config, "--model-path", model),
        *("--batch-size", args.batch_size, "--num-workers", args.workers),
        *("--patch-overlap-ratio", round(overlap, 4)),
    ]
    seconds = seconds_of(words)
    count = len(read_table(out / "model-outputs-csv" / f"{slide.stem}.csv"))
    return {"predictions": count, "seconds": round(seconds, 1)}


def run_ours(args: argparse.Namespace, slide: Path, mode: str) -> dict:
    file, run = args.dir / "ours.keras", args.dir / mode
    if not file.exists():
        with atomic_path(file) as temporary:
            build_model("InceptionResNetV2", "none").save(temporary)
    shutil.rmtree(run, ignore_errors=True)
    words = [
        *(sys.executable, "make_heatmap.py", "--slides", slide.resolve()),
        *("--model-dir", file.resolve(), "--run-dir", run.resolve()),
        *("--mode", mode, "--step-um", BACH.dense_step_um, "--batch-size", args.batch_size),
    ]
    seconds = seconds_of(words)
    done = json.loads((run / "slides" / f"{slide.stem}.json").read_text())
    return {"predictions": done["patches"], "seconds": round(seconds, 1)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", type=Path, required=True, help="Python beside the command wsinfer"
    )
    parser.add_argument("--dir", type=Path, default=Path("data/bench_peer"), help="where to work")
    parser.add_argument("--size", type=int, nargs=2, default=(5000, 5000), help="of the slide, px")
    parser.add_argument("--batch-size", type=int, default=32, help="patches per batch, of both")
    parser.add_argument("--workers", type=int, default=2, help="wsinfer's reading processes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.dir = args.dir.resolve()
    slide = args.dir / "slides" / f"peer_{args.size[0]}x{args.size[1]}.svs"
    slide.parent.mkdir(parents=True, exist_ok=True)
    make_slide(slide, *args.size)
    rows = {"dense": run_ours(args, slide, "dense"), "peer": run_peer(args, slide)}
    rows["patches"] = run_ours(args, slide, "patches")
    result: dict = {"rows": rows}
    for name, row in rows.items():
        result[name] = round(row["predictions"] / row["seconds"], 3)
    cells = [[name, *row.values(), result[name]] for name, row in rows.items()]
    print(markdown(["command", "predictions", "seconds", "predictions/s"], cells))
    for name in ("patches", "dense"):
        result[f"ratio_{name}"] = round(result[name] / result["peer"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    exit_with(main)
