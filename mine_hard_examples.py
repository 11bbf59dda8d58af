"""Step 2: find the patches of Part B slides that the Part A models get most wrong.

Reads    --data-dir (annotated slides), --model-dir (run of train_part_a.py)
Writes   runs/hard_examples/slides/NAME.csv     every patch with at least 5% tissue
         runs/hard_examples/slides/NAME.png     tissue mask and grid
         runs/hard_examples/candidates.csv      the hardest 40%
         runs/hard_examples/hard_examples.csv   drawn evenly over the classes
         runs/hard_examples/patches/            their pixels, for train_final.py
         runs/hard_examples/hardest.png, metrics.json, run.json, log.txt

    python mine_hard_examples.py --data-dir data/BACH --model-dir runs/part_a

Paper (Kwok 2018): 28,000 / 4,500 / 1,500 / 19,700 candidates, 5,900 hard examples.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd

from bach.classes import CLASSES, COLORS, PROB_COLUMNS
from bach.core.errors import InputError, exit_with
from bach.core.log import log, step
from bach.core.options import add_device_options, add_shared_options, add_slide_options
from bach.core.pictures import contact_sheet, mask_and_grid, write_png
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.data import list_images
from bach.mining import (
    HARD_EXAMPLES,
    HARDEST,
    MIN_TISSUE_HARD,
    add_difficulty,
    draw_evenly,
    hardest,
    mining_patches,
)
from bach.patches import DENSE_STEP_UM, SLIDE_STRIDE_UM, View, grid_shape
from bach.slides import Slide
from bach.tissue import slide_masks


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_options(parser, run_dir="runs/hard_examples")
    add_device_options(parser)
    add_slide_options(parser)
    parser.add_argument("--model-dir", default="runs/part_a", help="run folder of the models")
    parser.add_argument(
        "--stride-um", type=float, default=None,
        help="step between patches in um (default: 125.58; dense: 134.4, or multiples of 67.2)",
    )  # fmt: skip
    parser.add_argument(
        "--hardest", type=float, default=HARDEST, help="share of the patches that are candidates"
    )
    parser.add_argument(
        "--hard-examples", type=int, default=HARD_EXAMPLES, help="patches to draw in all"
    )
    args = parser.parse_args(argv)
    if args.stride_um is None:
        args.stride_um = SLIDE_STRIDE_UM if args.mode == "patches" else 2 * DENSE_STEP_UM
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    slides = list_images(args.data_dir, "B", args.limit)
    run = Run(args)
    if run.finished:
        print(run.path)
        return
    with run.watch():
        # 1. The Part A models; their mean is what is mined with.
        from bach.network import backend
        from bach.network.batches import cut_slides

        backend.start(args.devices, args.seed, args.precision)
        view, predict = load_predictor(args)

        # 2. Slide by slide: tissue, patches, labels, predictions.
        failures = []
        for row in slides.itertuples():
            try:
                predict_one(row, predict, args, run)
            except InputError as error:
                log.error("%s failed: %s", row.image_id, error)
                failures.append(f"{row.image_id}: {error}")
        if failures:
            raise InputError(
                "\n".join(failures) + "\nThe other slides are done. Mend or remove these, then "
                "run the same command with --resume."
            )
        tables = [pd.read_csv(run.path / "slides" / f"{i}.csv") for i in slides["image_id"]]
        table = pd.concat(tables, ignore_index=True)

        # 3. Difficulty, the hardest, an even draw.
        table = add_difficulty(table[table["tissue"] >= MIN_TISSUE_HARD].reset_index(drop=True))
        candidates = hardest(table, args.hardest, args.seed)
        chosen = draw_evenly(candidates, args.hard_examples, args.seed)
        if chosen.empty:
            raise InputError(
                f"No patch of {len(slides)} slides has {MIN_TISSUE_HARD:.0%} tissue.\n"
                f"Look at the masks in {run.path / 'slides'}."
            )
        write_csv(candidates, run.path / "candidates.csv")
        write_csv(chosen, run.path / "hard_examples.csv")
        count = _class_counts(candidates)
        log.info("candidates: %s of %s patches", _listed(count), f"{len(table):,}")
        log.info("hard examples: %s", _listed(_class_counts(chosen)))

        # 4. Their pixels, and a look at the worst.
        paths = dict(zip(slides["image_id"], slides["path"], strict=True))
        store = cut_slides(chosen, paths, run.path / "patches", args.mpp, view)
        draw_hardest(store, run)
        wrong = table["predicted"] != table["label"]
        run.finish(
            {
                "patches": len(table),
                "patch_accuracy": float(1 - wrong.mean()),
                "candidates": count,
                "hard_examples": _class_counts(chosen),
                "slides": slides["image_id"].tolist(),
            }
        )
    print(run.path)


def load_predictor(args: argparse.Namespace) -> tuple[View, Callable]:
    """Load the models; return what they see, and how a table of a slide is predicted."""
    from bach.network.predict import common_view, load_models, predict_slide, prepare

    if args.mode == "patches":
        models = load_models(args.model_dir, ready=lambda model: prepare(model, args.precision))
        models = list(models.values())
        return common_view(models), lambda slide, table: predict_slide(
            models, slide, table, args.batch_size
        )
    from bach.network.dense import DenseModel, dense_step_um, predict_dense

    models = load_models(args.model_dir, ready=lambda model: DenseModel(model, args.precision))
    models = list(models.values())
    every = dense_step_um(models[0], args.stride_um)

    def dense(slide: Slide, table: pd.DataFrame) -> np.ndarray:
        wanted = np.zeros(grid_shape(slide.width, slide.height, args.stride_um / slide.mpp), bool)
        wanted[table["row"], table["col"]] = True
        return predict_dense(models, slide, wanted, every)[table["row"], table["col"]]

    return models[0].view, dense


def predict_one(row, predict: Callable, args: argparse.Namespace, run: Run) -> None:
    """Write the patch table of one slide with predictions, and its picture."""
    file = run.path / "slides" / f"{row.image_id}.csv"
    if file.exists():  # written whole, so it is finished
        return
    with step(row.image_id) as notes, Slide(row.path, mpp=args.mpp) as slide:
        thumbnail, tissue, labels, downsample = slide_masks(slide, args.masks, args.exclude_pen)
        table = mining_patches(
            slide, tissue, labels, downsample, args.stride_um, args.mode == "dense"
        )
        # Patches with less tissue cannot become hard examples: they are listed, not
        # predicted.
        used = (table["tissue"] >= MIN_TISSUE_HARD).to_numpy()
        probs = np.full((len(table), len(PROB_COLUMNS)), np.nan, np.float32)
        probs[used] = predict(slide, table[used])
        table = table.assign(**dict(zip(PROB_COLUMNS, probs.T, strict=True)))
        boxes = table.loc[used, ["x", "y", "size"]].to_numpy()
        picture = mask_and_grid(
            thumbnail, tissue, boxes, table.loc[used, "label"], downsample, CLASSES, COLORS
        )
        write_png(file.with_suffix(".png"), picture)
        write_csv(table, file)
        notes.append(f"{tissue.mean():.0%} tissue -> {len(table):,} patches")
        notes.append(f"{used.sum():,} with {MIN_TISSUE_HARD:.0%} tissue predicted")


def draw_hardest(store, run: Run, count: int = 48) -> None:
    """Write a sheet of the hardest patches, with true and predicted class."""
    worst = store.table.sort_values("difficulty", ascending=False).head(count)
    texts = [
        f"{CLASSES[row.label]} as {CLASSES[row.predicted]} {row.difficulty:.1f}"
        for row in worst.itertuples()
    ]
    write_png(run.path / "hardest.png", contact_sheet(store.patches[worst.index], texts))


def _class_counts(table: pd.DataFrame) -> dict[str, int]:
    return {name: int((table["label"] == label).sum()) for label, name in enumerate(CLASSES)}


def _listed(counts: dict[str, int]) -> str:
    return " / ".join(f"{count:,} {name}" for name, count in counts.items())


if __name__ == "__main__":
    exit_with(main)
