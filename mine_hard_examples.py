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

Other slides are named with --slides, and what is drawn may be any patch instead of the hardest,
without a model: class, then slide, then patch (Liu et al. 2017, docs/camelyon16.md).

    python mine_hard_examples.py --task camelyon16 --slides data/nodes/slides --folds none \
        --draw uniform --run-dir runs/drawn

Paper (Kwok 2018): 28,000 / 4,500 / 1,500 / 19,700 candidates, 5,900 hard examples.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bach import engine, tasks
from bach.core import options, text
from bach.core.drawings import contact_sheet
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import again, option
from bach.core.pictures import write_png
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.data import annotated, list_images, list_slides, require_apart, slide_names
from bach.honest.splits import ALWAYS_TRAIN, check_belongs, join_folds, read_folds
from bach.mining import (
    ALL,
    HARD_EXAMPLES,
    HARDEST,
    Mined,
    MiningScript,
    add_difficulty,
    draw_for_folds,
    draw_hard_examples,
    draw_uniformly,
    hardest,
    mine_slide,
    one_per_place,
    write_draws,
)
from bach.patches import View
from bach.slide_by_slide import mpp_of, over_slides
from bach.tasks import BACKGROUND, task
from bach.tissue import check_masks

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Options(MiningScript):
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
        "slides that it holds out; none: no slide is ever held out",
        path=True,
    )
    slides: tuple[str, ...] = option(
        (),
        "slides to use instead of those of --data-dir: files, folders, or tables (.csv) with the "
        "columns path and, if wanted, image_id and mpp; one without annotation counts as the "
        "first class throughout",
        path=True,
    )
    margin: int = option(
        0,
        "with --draw uniform: surroundings of a patch that networks are to see, as --margin of "
        "train_part_a.py",
        at_least=0,
        later=True,
    )
    magnifications: int = option(
        1,
        "with --draw uniform: 2 for two networks side by side, as --magnifications of "
        "train_part_a.py",
        at_least=1,
        most=2,
        later=True,
    )
    seen: bool = option(
        False,
        "mine slides that the models were trained on, too (Liu et al. 2017); nothing is then drawn "
        "for a fold that holds out one of these",
        later=True,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    args = options.parse(Options, argv, __doc__)
    tasks.use(args.task, args.model_dir if args.draw == "hardest" else None)
    if args.draw == "uniform" and (args.seen or args.mode == "dense"):
        raise InputError(
            "Without a model nothing has been seen, and nothing is predicted densely.\n"
            f"Received: --draw={args.draw} with {'--seen' if args.seen else '--mode dense'}.\n"
            "Leave one of them out."
        )
    if args.draw == "hardest" and (args.margin or args.magnifications > 1):
        raise InputError(
            "What is seen of the hardest patches is what their models see.\n"
            f"Received: --margin={args.margin} --magnifications={args.magnifications}.\n"
            "Leave them out, or draw with --draw uniform."
        )
    return dataclasses.replace(args, stride_um=stride_um(args))


def stride_um(args: Options) -> float:
    """Step between patches in um."""
    return args.stride_um or (2 * task().dense_step_um if args.mode == "dense" else task().step_um)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    slides = choose_slides(args)
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0
    if engine.spreads(args):
        return engine.spread(slides, args, main)
    from bach.network import backend  # loads the framework, which --help must not
    from bach.network.stores import cut_slides

    # 1. The models, if any; their mean is what is mined with.
    device = backend.start(args.devices, args.seed, args.precision)
    predictor = load(args)
    if predictor is not None and not args.seen:
        predictor.refuse_seen(slides["image_id"])
    seen = predictor.seen if predictor is not None and args.seen else frozenset()
    with run.start(**device, **task().record):
        # 2. Slide by slide: tissue, patches, labels, predictions.
        table, warnings, failures = mine_slides(slides, predictor, args, run)
        if run.shard is not None:
            run.finish({"patches": len(table), "failed": sorted(failures)})
            print(run.path)
            return 1 if failures else 0

        # 3. A draw over all slides, and one without each fold's.
        table = table[table["tissue"] >= args.least_tissue].reset_index(drop=True)
        if predictor is not None:
            table = add_difficulty(table)
        fold_of = slides.set_index("image_id")["fold"]
        drawn = draw(table, fold_of, args, seen)
        if drawn.empty:
            raise InputError(
                f"No patch of {len(slides)} slides has {args.least_tissue:.0%} tissue.\n"
                f"Look at the masks in {run.path / 'slides'}."
            )
        counts = figures(table, args, run)
        write_csv(drawn, run.path / "hard_examples.csv")
        write_draws(run.path, fold_of, seen)
        counts["hard_examples"] = class_counts(drawn[drawn[ALL] == 1])
        log.info("%s: %s", CALLED[args.draw], listed(counts["hard_examples"]))

        # 4. Their pixels, and a look at some.
        paths = dict(zip(slides["image_id"], slides["path"], strict=True))
        patches = run.path / "patches"
        view = View(args.margin, args.magnifications) if predictor is None else predictor.view
        store = cut_slides(drawn, paths, patches, scales(slides, args), view, replace=True)
        draw_some(store, run, args)
        names = [name for name in slides["image_id"] if name not in failures]
        metrics = {"patches": len(table), **counts, "slides": names}
        metrics |= {"failed": sorted(failures), "warnings": warnings}
        unsure = predictor.warnings if predictor is not None else []
        run.finish(metrics | ({"model_warnings": unsure} if unsure else {}))
    print(run.path)
    return 1 if failures else 0


CALLED = {"hardest": "hard examples", "uniform": "drawn"}


def choose_slides(args: Options) -> pd.DataFrame:
    """The slides to draw from: `image_id`, `path`, `fold`, `patient`, and `mpp` if it is said."""
    if args.slides:
        slides = require_apart(list_slides(args.slides)).assign(label=-1)
        bare = slides["image_id"][~np.array(annotated(slides["path"]), bool)]
        if len(bare):
            first = task().classes[BACKGROUND]
            log.warning(
                "without annotation, and %s throughout: %d slides (%s)",
                *(first, len(bare), text.listed(bare)),
            )
    else:
        slides = list_images(args.data_dir, "B")
    if args.folds.lower() == "none":
        slides = slides.assign(fold=ALWAYS_TRAIN, patient="")
    else:
        folds = read_folds(args.folds)
        check_belongs(slides, folds, args.folds)
        slides = join_folds(slides, folds, args.folds)
    slides = slides.head(args.limit or len(slides))
    if args.masks is not None:
        others = None if args.slides else slide_names(args.data_dir)
        check_masks(args.masks, slides["image_id"], others)
    return slides


def scales(slides: pd.DataFrame, args: Options) -> float | dict[str, float | None] | None:
    """um per px that slides are said to have: one for all, or of each where a table says so."""
    if not args.slides or slides["mpp"].isna().all():
        return args.mpp
    return {str(row.image_id): mpp_of(row, args) for row in slides.itertuples()}


def load(args: Options) -> "Predictor | None":
    """The models; None where patches are drawn without."""
    if args.draw == "uniform":
        return None
    from bach.network.predictor import Predictor

    return Predictor(args, stride_um(args))


def draw(
    table: pd.DataFrame, folds: pd.Series, args: Options, seen: frozenset[str]
) -> pd.DataFrame:
    """What is drawn of the patches of all slides, with a column per draw."""
    if args.draw == "hardest":
        how = (args.hardest, args.hard_examples, args.seed, seen)
        return draw_hard_examples(table, folds, *how)
    return draw_for_folds(
        table, folds, lambda rest: draw_uniformly(rest, args.hard_examples, args.seed)
    )


def figures(table: pd.DataFrame, args: Options, run: Run) -> dict[str, Any]:
    """What there was to draw from; writes the candidates, if there are models."""
    if args.draw == "uniform":
        return {"drawn_from": class_counts(table)}
    candidates = hardest(table, args.hardest, args.seed)
    write_csv(candidates, run.path / "candidates.csv")
    counts = class_counts(candidates)
    log.info("candidates: %s of %s patches", listed(counts), f"{len(table):,}")
    right = float((table["predicted"] == table["label"]).mean())
    return {"patch_accuracy": right, "candidates": counts}


def mine_slides(
    slides: pd.DataFrame, predictor, args: Options, run: Run
) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, str]]:
    """The patches of all slides, what is odd about a slide, and why one failed.

    Raises:
        InputError: If no slide could be used.
    """
    folder = run.path / "slides"
    step_um = stride_um(args)
    mined, failures = over_slides(
        slides, args, run, lambda row: mine_slide(row, predictor, args, folder, step_um)
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

    backend.start(args.devices, args.seed, args.precision)
    predictor = load(args)

    def work(row: Any) -> Mined:
        if predictor is not None and not args.seen:
            predictor.refuse_seen([row.image_id])
        return mine_slide(row, predictor, args, Path(args.run_dir) / "slides", stride_um(args))

    return work


def draw_some(store, run: Run, args: Options, count: int = 48) -> None:
    """Write a sheet of the hardest patches, one per place, with true and predicted class; of
    those that were drawn without a model, of any.
    """
    table = store.table
    if args.draw == "uniform":
        some = one_per_place(table.sample(frac=1, random_state=args.seed), count)
        some = some.sort_values("label", kind="stable")
    else:
        some = one_per_place(table.sort_values("difficulty", ascending=False), count)
    texts = []
    for row in some.itertuples():
        text = f"{row.image_id} at {row.x:.0f}, {row.y:.0f}\ntrue: {task().classes[row.label]}"
        if args.draw == "hardest":
            text += f"\npredicted: {task().classes[row.predicted]}"
            text += f"\ndifficulty {row.difficulty:.2f}"
        texts.append(text)
    name = "hardest.png" if args.draw == "hardest" else "drawn.png"
    write_png(run.path / name, contact_sheet(store.patches[some.index], texts))


def class_counts(table: pd.DataFrame) -> dict[str, int]:
    return {name: int((table["label"] == label).sum()) for label, name in enumerate(task().classes)}


def listed(counts: dict[str, int]) -> str:
    return " / ".join(f"{count:,} {name}" for name, count in counts.items())


if __name__ == "__main__":
    exit_with(main)
