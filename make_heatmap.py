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
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.files import write_json
from bach.core.log import log
from bach.core.options import again, option
from bach.core.run import Run
from bach.core.tables import image_key, require_names
from bach.core.text import listed
from bach.data import find_data, list_images, slide_names
from bach.heatmap import STEP_UM, HeatmapMaker, MapScript, summarise
from bach.mining import check_slides
from bach.patches import DENSE_STEP_UM, PATCH_UM
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
    slides: tuple[str, ...] = option((), "slides to use instead of those of --data-dir", path=True)
    tta: bool = option(False, "mean over the eight orientations, at eight times the cost")
    step_um: float | None = option(
        None,
        "side of a cell in um (default: 125.58; dense: 67.2, or multiples); at most that of a "
        "patch, or parts of the slide would be seen by none",
        above=0,
        most=PATCH_UM,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    args = options.parse(Options, argv, __doc__)
    return dataclasses.replace(args, step_um=step_um(args))


def step_um(args: Options) -> float:
    """Side of a cell in um."""
    return args.step_um or (DENSE_STEP_UM if args.mode == "dense" else STEP_UM)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    slides = list_slides(args)
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0
    from bach.network import backend  # loads the framework, which --help must not
    from bach.network.predictor import Predictor

    # 1. The models; each slide is predicted by those that have not seen it.
    device = backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, step_um(args), args.tta)
    with run.start(**device):
        # 2. Slide by slide; one that fails does not stop the others.
        maker = HeatmapMaker(run.path, predictor, args)
        failures = check_slides(slides, args)
        records = []
        usable = slides[~slides["image_id"].isin(failures)]
        for row in tqdm(usable.itertuples(), "slides", len(usable), disable=None):
            try:
                records.append(maker.make(row.path, row.part))
            except InputError as error:
                log.error("%s failed: %s", row.image_id, error)
                failures[row.image_id] = str(error)
        write_json(run.path / "failures.json", failures)
        if not records:
            raise InputError("No slide could be used:\n" + "\n".join(failures.values()))

        # 3. Scores over slides.
        unsure = {"model_warnings": predictor.warnings} if predictor.warnings else {}
        run.finish(summarise(records, failures, run.path) | unsure)
    if failures:
        print(f"complete but for {len(failures)} of {len(slides)} slides: {listed(failures)}")
        print("mend them and use --resume, or run them alone with what they need (--mpp)")
    print(run.path)
    return 1 if failures else 0


def list_slides(args: Options) -> pd.DataFrame:
    """The slides to work on: image table with `image_id`, `path` and `part`."""
    if args.slides:
        table = pd.DataFrame({"path": args.slides, "part": ""})
        table.insert(0, "image_id", [Path(path).stem for path in args.slides])
    elif args.part != "all":
        table = list_images(args.data_dir, args.part)
    else:
        table = find_data(args.data_dir)
        table = table[table["part"].isin(["B", "B-test"])]
        if table.empty:
            raise InputError(f"There must be slides.\nReceived: --data-dir={args.data_dir}.")
    require_names(table["image_id"])
    keys = table["image_id"].map(image_key)
    if keys.duplicated().any():
        raise InputError(
            "Slides must have different names, since the results are named after them.\n"
            f"Received twice: {listed(table.loc[keys.duplicated(), 'image_id'])}. Rename one, or "
            "use two runs."
        )
    table = table.head(args.limit or len(table)).reset_index(drop=True)
    if args.masks is not None:
        others = None if args.slides else slide_names(args.data_dir)
        check_masks(args.masks, table["image_id"], others)
    return table


if __name__ == "__main__":
    exit_with(main)
