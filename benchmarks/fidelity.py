"""Is a dense heatmap the heatmap of the patches, and what does that do to the score?

Runs make_heatmap.py on the same slides in several ways, patch by patch in float32 first,
and compares each with that: correlation of the heatmaps over tissue, largest difference,
share of tissue cells with the same class (least expected cost), and the Part B score of
slides that the models did not see. With --regions also: does a dense heatmap depend on the
size of the regions that it is computed in?

Reads:   --data-dir (slides), --model-dir (run of train_final.py, or a .keras file).
Writes:  --dir: a run folder per variant; finished ones are used as they are.
Command: make demo
         python benchmarks/fidelity.py --data-dir data/toy --model-dir runs/demo/final
         python benchmarks/fidelity.py --slides S.svs --model-dir M.keras --regions 23 55
         python benchmarks/fidelity.py --quick      one painted slide, a network of random
                                                    weights with and without a margin
Prints a Markdown table; the last line is JSON.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import make_heatmap
from bach.core.errors import exit_with
from bach.core.text import markdown, number
from bach.data import list_images
from bach.heatmap import to_heatmap
from bach.network.dense import DenseModel, dense_step_um, predict_dense
from bach.network.predict import load_models
from bach.patches import View, grid_shape
from bach.scores import dinkelbach
from bach.slides import Slide
from bach.tasks import BACH
from bach.toy import painter
from bach.toy.aperio import write_slide
from bach.toy.scenes import paint_slide

VARIANTS = {
    "patches, float32": ["--mode", "patches"],
    "dense, float32": ["--mode", "dense"],
    "patches, bfloat16": ["--mode", "patches", "--precision", "mixed_bfloat16"],
    "dense, bfloat16": ["--mode", "dense", "--precision", "mixed_bfloat16"],
}


def measure(source: list[str], model: Path, folder: Path, names: list[str]) -> list[dict]:
    """Run the variants and compare each with the first: a dict each."""
    rows = []
    first = {}
    for name in names:
        run = folder / name.replace(", ", "_")
        words = [*source, "--model-dir", str(model), "--run-dir", str(run), "--resume"]
        words += ["--step-um", str(BACH.dense_step_um), "--rule", "least-cost"]
        make_heatmap.main([*words, *VARIANTS[name]])
        metrics = json.loads((run / "metrics.json").read_text())
        row = {"model": str(model), "variant": name, "score": metrics.get("score")}
        maps = {file.stem: np.load(file) for file in sorted((run / "heatmaps").glob("*.npy"))}
        probs = {slide: np.load(run / "probs" / f"{slide}.npy") for slide in maps}
        seconds = [json.loads(f.read_text())["seconds"] for f in (run / "slides").glob("*.json")]
        row["seconds"] = round(sum(seconds), 1)
        first = first or {"maps": maps, "probs": probs}
        there = {slide: ~np.isnan(probs[slide]).any(axis=-1) for slide in maps}
        mine, other = (
            np.concatenate([source[slide][there[slide]] for slide in maps])
            for source in (maps, first["maps"])
        )
        row["correlation"] = round(float(np.corrcoef(mine, other)[0, 1]), 5)
        row["largest"] = round(float(np.abs(mine - other).max()), 4)
        same = [
            (dinkelbach(probs[s])[0] == dinkelbach(first["probs"][s])[0])[there[s]] for s in maps
        ]
        row["equal"] = round(float(np.concatenate(same).mean()), 4)
        row["cells"] = len(mine)
        rows.append(row)
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--slides", nargs="+", help="slides to use instead")
    parser.add_argument("--model-dir", type=Path, help="run of train_final.py, or a .keras file")
    parser.add_argument("--dir", type=Path, default=Path("runs/fidelity"), help="where to work")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS)[:2],
        choices=VARIANTS,
        metavar="NAME",
        help=f"of {'; '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--regions",
        nargs=2,
        type=int,
        default=None,
        metavar="FEATURES",
        help="compare regions of two sizes on the first slide; 23 and 55 features are 1,035 and "
        "2,059 px with Inception-ResNet-v2",
    )
    parser.add_argument("--quick", action="store_true", help="a painted slide, random weights")
    args = parser.parse_args(argv)
    if not args.quick and (args.model_dir is None or not (args.data_dir or args.slides)):
        parser.error("Name --model-dir and --data-dir (or --slides), or --quick.")
    return args


def compare_regions(slide: str, model: Path, sides: list[int]) -> dict:
    """Largest difference of dense heatmaps from regions of two sizes, all of a slide."""
    dense = next(iter(load_models(model, ready=DenseModel).values()))
    every = dense_step_um(dense, BACH.dense_step_um)
    with Slide(slide) as opened:
        step = BACH.dense_step_um / opened.mpp
        wanted = np.ones(grid_shape(opened.width, opened.height, step), bool)
        one, other = (
            to_heatmap(predict_dense([dense], opened, wanted, every, region=side)) for side in sides
        )
    return {
        "slide": Path(slide).name,
        "regions_px": [dense.region_px(side) for side in sides],
        "cells": int(wanted.sum()),
        "largest_difference": float(np.abs(one - other).max()),
        "heatmap_range": [float(one.min()), float(one.max())],
    }


def quick_cases(folder: Path) -> list[tuple[list[str], Path]]:
    """A painted slide and two models of the same random weights."""
    import keras

    from bach.network.patch_network import build_model

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, _ = paint_slide(rng, painter.make_look(rng), (4096, 3072))
    write_slide(folder / "quick.svs", pixels)
    cases, weights = [], None
    for margin in (0, 32):
        keras.utils.set_random_seed(0)
        model = build_model("small", "none", view=View(margin))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        # Random weights hardly tell one patch from another: make the most of it.
        model.get_layer("classes").kernel.assign(model.get_layer("classes").kernel * 30)
        model.save(folder / f"margin_{margin}.keras")
        cases.append((["--slides", str(folder / "quick.svs")], folder / f"margin_{margin}.keras"))
    return cases


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.quick:
        cases = quick_cases(args.dir / "quick")
    else:
        source = ["--slides", *args.slides] if args.slides else ["--data-dir", args.data_dir]
        cases = [(source + ([] if args.slides else ["--part", "B"]), args.model_dir)]
    rows = []
    for source, model in cases:
        rows += measure(source, model, args.dir / model.stem, args.variants)
    header = ["model", "variant", "correlation", "largest difference", "equal class"]
    cells = [
        [
            row["model"],
            row["variant"],
            number(row["correlation"], 5),
            number(row["largest"], 4),
            f"{row['equal']:.2%}",
            number(row["score"], 4),
            row["seconds"],
        ]
        for row in rows
    ]
    print(markdown([*header, "score", "seconds"], cells))
    if args.regions:
        for source, model in cases:
            slide = (
                list_images(source[1], "B")["path"][0] if source[0] == "--data-dir" else source[1]
            )
            rows.append({"model": str(model), **compare_regions(slide, model, args.regions)})
            print(f"regions: {rows[-1]}")
    print(json.dumps(rows))


if __name__ == "__main__":
    exit_with(main)
