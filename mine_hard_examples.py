"""Step 2: find the patches of Part B slides that the Part A models get most wrong.

Reads    --data-dir (annotated slides), --model-dir (run of train_part_a.py), --folds
Writes   runs/hard_examples/slides/NAME.csv     every patch with at least 5% tissue
         runs/hard_examples/slides/NAME.png     tissue mask and grid
         runs/hard_examples/candidates.csv      the hardest 40%
         runs/hard_examples/hard_examples.csv   drawn evenly over the classes: over all slides
                                                (draw_all), and for every fold without those it
                                                holds out (draw_0 ...)
         runs/hard_examples/draws.json          the slides that each draw leaves out
         runs/hard_examples/patches/            their pixels, for train_final.py
         runs/hard_examples/hardest.png, metrics.json, run.json, log.txt

    python mine_hard_examples.py --data-dir data/BACH --model-dir runs/part_a

Paper (Kwok 2018): 28,000 / 4,500 / 1,500 / 19,700 candidates, 5,900 hard examples.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bach import engine, tasks
from bach.core import options
from bach.core.drawings import contact_sheet
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import again, option
from bach.core.pictures import write_png
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.data import list_images, slide_names
from bach.honest.splits import check_belongs, join_folds, read_folds
from bach.mining import (
    ALL,
    HARD_EXAMPLES,
    HARDEST,
    MIN_TISSUE_HARD,
    Mined,
    add_difficulty,
    draw_hard_examples,
    hardest,
    mine_slide,
    one_per_place,
    write_draws,
)
from bach.slide_by_slide import over_slides
from bach.tasks import task
from bach.tissue import check_masks


@dataclasses.dataclass(frozen=True)
class Options(options.SlideScript):
    """Options of mine_hard_examples.py."""

    run_dir: str = again(options.Shared, "run_dir", "runs/hard_examples")
    model_dir: str = again(options.SlideScript, "model_dir", "runs/part_a")
    stride_um: float | None = option(
        None,
        "step between patches in um (default: 125.58; dense: 134.4, or multiples of 67.2)",
        above=0,
    )
    hardest: float = option(HARDEST, "share of the patches that are candidates", above=0, most=1)
    hard_examples: int = option(HARD_EXAMPLES, "patches to draw for a training", at_least=1)
    folds: str = option(
        "folds/part_b.csv",
        "table of folds of slides: hard examples are drawn anew for every fold, without the "
        "slides that it holds out",
        path=True,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    args = tasks.parse(Options, argv, __doc__)
    return dataclasses.replace(args, stride_um=stride_um(args))


def stride_um(args: Options) -> float:
    """Step between patches in um."""
    return args.stride_um or (2 * task().dense_step_um if args.mode == "dense" else task().step_um)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    slides, folds = list_images(args.data_dir, "B"), read_folds(args.folds)
    check_belongs(slides, folds, args.folds)
    slides = join_folds(slides, folds, args.folds).head(args.limit or len(slides))
    if args.masks is not None:
        check_masks(args.masks, slides["image_id"], slide_names(args.data_dir))
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0
    if engine.spreads(args):
        return engine.spread(slides, args, main)
    from bach.network import backend  # loads the framework, which --help must not
    from bach.network.predictor import Predictor
    from bach.network.stores import cut_slides

    # 1. The Part A models; their mean is what is mined with.
    device = backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, stride_um(args))
    predictor.refuse_seen(slides["image_id"])
    with run.start(**device, **task().record):
        # 2. Slide by slide: tissue, patches, labels, predictions.
        table, warnings, failures = mine_slides(slides, predictor, args, run)
        if run.shard is not None:
            run.finish({"patches": len(table), "failed": sorted(failures)})
            print(run.path)
            return 1 if failures else 0

        # 3. Difficulty, the hardest, an even draw: over all slides, and without each fold's.
        table = add_difficulty(table[table["tissue"] >= MIN_TISSUE_HARD].reset_index(drop=True))
        fold_of = slides.set_index("image_id")["fold"]
        drawn = draw_hard_examples(table, fold_of, args.hardest, args.hard_examples, args.seed)
        if drawn.empty:
            raise InputError(
                f"No patch of {len(slides)} slides has {MIN_TISSUE_HARD:.0%} tissue.\n"
                f"Look at the masks in {run.path / 'slides'}."
            )
        candidates = hardest(table, args.hardest, args.seed)
        write_csv(candidates, run.path / "candidates.csv")
        write_csv(drawn, run.path / "hard_examples.csv")
        write_draws(run.path, fold_of)
        paper = drawn[drawn[ALL] == 1]
        counts = {"candidates": class_counts(candidates), "hard_examples": class_counts(paper)}
        log.info("candidates: %s of %s patches", listed(counts["candidates"]), f"{len(table):,}")
        log.info("hard examples: %s", listed(counts["hard_examples"]))

        # 4. Their pixels, and a look at the worst.
        paths = dict(zip(slides["image_id"], slides["path"], strict=True))
        patches = run.path / "patches"
        store = cut_slides(drawn, paths, patches, args.mpp, predictor.view, replace=True)
        draw_hardest(store, run)
        right = float((table["predicted"] == table["label"]).mean())
        names = [name for name in slides["image_id"] if name not in failures]
        metrics = {"patches": len(table), "patch_accuracy": right, **counts, "slides": names}
        metrics |= {"failed": sorted(failures), "warnings": warnings}
        run.finish(metrics | ({"model_warnings": predictor.warnings} if predictor.warnings else {}))
    print(run.path)
    return 1 if failures else 0


def mine_slides(
    slides: pd.DataFrame, predictor, args: Options, run: Run
) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, str]]:
    """The patches of all slides, what is odd about a slide, and why one failed.

    Raises:
        InputError: If no slide could be used.
    """
    folder = run.path / "slides"
    mined, failures = over_slides(
        slides, args, run, lambda row: mine_slide(row.path, predictor, args, folder)
    )
    tables = [slide.table for slide in mined.values()]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return (
        table,
        {k: list(slide.warnings) for k, slide in mined.items() if slide.warnings},
        failures,
    )


def worker(args: Options) -> Callable[[Any], Mined]:
    """Load the models; what is returned mines the slide of a row."""
    from bach.network import backend
    from bach.network.predictor import Predictor

    backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, stride_um(args))

    def work(row: Any) -> Mined:
        predictor.refuse_seen([row.image_id])
        return mine_slide(row.path, predictor, args, Path(args.run_dir) / "slides")

    return work


def draw_hardest(store, run: Run, count: int = 48) -> None:
    """Write a sheet of the hardest patches, one per place, with true and predicted class."""
    worst = one_per_place(store.table.sort_values("difficulty", ascending=False), count)
    texts = [
        f"{row.image_id} at {row.x:.0f}, {row.y:.0f}\ntrue: {task().classes[row.label]}\n"
        f"predicted: {task().classes[row.predicted]}\ndifficulty {row.difficulty:.2f}"
        for row in worst.itertuples()
    ]
    write_png(run.path / "hardest.png", contact_sheet(store.patches[worst.index], texts))


def class_counts(table: pd.DataFrame) -> dict[str, int]:
    return {name: int((table["label"] == label).sum()) for label, name in enumerate(task().classes)}


def listed(counts: dict[str, int]) -> str:
    return " / ".join(f"{count:,} {name}" for name, count in counts.items())


if __name__ == "__main__":
    exit_with(main)
