"""Step 4: turn slides into heatmaps and class maps, and score what is annotated.

Every slide is predicted by the models that were not trained on it: an annotated
slide by those of its fold, any other slide by the mean of all. If every model saw
a slide, its score is marked as in-sample and left out of the mean.

Reads    --data-dir (slides) or --slides FILE..., --model-dir (run of train_final.py)
Writes   runs/heatmaps/heatmaps/NAME.npy     float32 (rows, cols), expected class / 3
         runs/heatmaps/probs/NAME.npy        float32 (rows, cols, 4), nan off tissue
         runs/heatmaps/class_maps/NAME.png   palette PNG, 0..3, 16 level-0 px per pixel
         runs/heatmaps/overlays/NAME.png     on the thumbnail, truth beside
         runs/heatmaps/tissue/NAME.png       tissue mask of the same size
         runs/heatmaps/truth/NAME.png        annotation as class map, where there is one
         runs/heatmaps/slides/NAME.json      geometry, areas in mm2, scores
         runs/heatmaps/slides.csv, metrics.json, run.json, log.txt

    python make_heatmap.py --data-dir data/BACH --model-dir runs/final
    python make_heatmap.py --slides any.svs other.svs --model-dir runs/final --mpp 0.5

Paper (Kwok 2018): score 0.6929 on the hidden test; 0.75 on A01-A10, in sample.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bach import engine, tasks
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.options import again, option
from bach.core.run import Run
from bach.core.tables import image_key
from bach.core.text import listed
from bach.data import find_data, list_images, list_slides, require_apart, slide_names
from bach.heatmap import HeatmapMaker, MapScript, cell_um, record_file, summarise
from bach.honest.records import SlideRecord, read_slides
from bach.slide_by_slide import mpp_of, over_slides, share
from bach.tasks import task
from bach.tissue import check_masks


@dataclasses.dataclass(frozen=True)
class Options(MapScript):
    """Options of make_heatmap.py."""

    run_dir: str = again(options.Shared, "run_dir", "runs/heatmaps")
    part: str = option(
        "all",
        "which slides of --data-dir: annotated, test, or all",
        choices=("B", "B-test", "all"),
    )
    slides: tuple[str, ...] = option(
        (),
        "slides to use instead of those of --data-dir: files, folders, or tables (.csv) with the "
        "columns path and, if wanted, image_id and mpp; with --resume more can be added",
        path=True,
        where=True,
    )
    tta: bool = option(False, "mean over the eight orientations, at eight times the cost")
    step_um: float | None = option(
        None,
        "side of a cell in um (default: 125.58; dense: 67.2, or multiples); at most that of a "
        "patch, or parts of the slide would be seen by none",
        above=0,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    args = tasks.parse(Options, argv, __doc__)
    return dataclasses.replace(args, step_um=cell_um(args.step_um, args.mode))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    slides = choose_slides(args)
    run = Run(args, lambda metrics: made(slides, args))
    if run.finished:
        print(run.path)
        return 0
    if engine.spreads(args):
        return engine.spread(slides, args, main)
    from bach.network import backend  # loads the framework, which --help must not
    from bach.network.predictor import Predictor

    # 1. The models; each slide is predicted by those that have not seen it.
    device = backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, cell_um(args.step_um, args.mode), args.tta)
    with run.start(**device, **task().record):
        # 2. Slide by slide; those that the run has from an earlier start stay.
        maker = HeatmapMaker(run.path, predictor, args)
        if run.shard is None:
            slides = pd.concat([earlier(slides, run.path), slides], ignore_index=True)
        records, failures = over_slides(
            slides,
            args,
            run,
            lambda row: maker.make(row.path, row.part, row.image_id, mpp_of(row, args)),
        )

        # 3. Scores over slides.
        unsure = {"model_warnings": predictor.warnings} if predictor.warnings else {}
        if run.shard is None:
            unsure |= summarise(list(records.values()), failures, run.path)
        run.finish({"slides": len(records), "failed": sorted(failures)} | unsure)
    if failures:
        print(f"complete but for {len(failures)} of {len(slides)} slides: {listed(failures)}")
        print("mend them and use --resume, or run them alone with what they need (--mpp)")
    print(run.path)
    return 1 if failures else 0


def worker(args: Options) -> Callable[[Any], SlideRecord]:
    """Load the models; what is returned makes the heatmap of the slide of a row."""
    from bach.network import backend
    from bach.network.predictor import Predictor

    backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, cell_um(args.step_um, args.mode), args.tta)
    maker = HeatmapMaker(Path(args.run_dir), predictor, args)
    return lambda row: maker.make(row.path, row.part, row.image_id, mpp_of(row, args))


def choose_slides(args: Options) -> pd.DataFrame:
    """The slides to work on: image table with `image_id`, `path` and `part`."""
    if args.slides:
        table = list_slides(args.slides)
    elif args.part != "all":
        table = list_images(args.data_dir, args.part)
    else:
        table = find_data(args.data_dir)
        table = table[table["part"].isin(["B", "B-test"])]
        if table.empty:
            raise InputError(f"There must be slides.\nReceived: --data-dir={args.data_dir}.")
    table = require_apart(table)
    table = table.head(args.limit or len(table)).reset_index(drop=True)
    if args.masks is not None:
        others = None if args.slides else slide_names(args.data_dir)
        check_masks(args.masks, table["image_id"], others)
    return table


def made(slides: pd.DataFrame, args: Options) -> bool:
    """Whether the run folder holds the heatmaps of all slides that are to be done."""
    names = share(slides, args)["image_id"]
    return all(record_file(Path(args.run_dir), name).exists() for name in names)


def earlier(slides: pd.DataFrame, run: Path) -> pd.DataFrame:
    """The slides that a run has already and that are not named now: they stay."""
    now = set(slides["image_id"].map(image_key))
    records = [one for name, one in read_slides(run).items() if image_key(name) not in now]
    rows = [
        (one.image_id, one.path, one.part, one.mpp if one.mpp_source == "given" else np.nan)
        for one in records
    ]
    return pd.DataFrame(rows, columns=["image_id", "path", "part", "mpp"])


if __name__ == "__main__":
    exit_with(main)
