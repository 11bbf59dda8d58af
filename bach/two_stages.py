"""Detect in two stages: nuclei are proposed, and the network looks at each of them alone.

    python -m bach.two_stages --model-dir runs/final --slides data/test_slides --out runs/figures
    python -m bach.two_stages --model-dir runs/final --slides data/WSI --truth data/WSI --search \\
        --out runs/figures

Reads    --model-dir (run of train_final.py or train_part_a.py), --slides, --truth
Writes   OUT/points.csv, OUT/platform, OUT/qupath, OUT/scores.json as python -m bach.points, and
         OUT/proposals.csv      every proposal with its score
Time     a third of make_heatmap.py with a step of 8 um, or less: there are fewer nuclei than cells

Proposals are blobs of hematoxylin (`bach.nuclei`). Of two findings within --radius-um the better
one is kept. A slide is looked at by the models that were not trained on it, if there are any. The
last line on stdout is the folder.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from bach import nuclei, points, tasks
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.files import require_place
from bach.core.options import again, option
from bach.core.tables import require_names
from bach.data import list_slides
from bach.points.answer import Answer, completed, give, read_truth
from bach.slides import Slide, first_shown
from bach.tasks import task

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Options(Answer):
    """Options of python -m bach.two_stages."""

    model_dir: str = option("runs/final", "run folder of the models", path=True)
    slides: tuple[str, ...] = option((), "slides, folders of slides, or tables of them", path=True)
    out: str = option("runs/two_stages", "folder to write to", path=True)
    task: str | None = again(options.Shared, "task", None)
    contrast: float = option(
        nuclei.CONTRAST, "optical density by which a proposal stands out", at_least=0
    )
    mpp: float | None = option(None, "um per pixel of the slides, if they do not say", above=0)
    mode: str = option("patches", "patch by patch", choices=("patches",))
    tta: bool = option(False, "mean over the eight orientations, at eight times the cost")
    batch_size: int = again(options.Devices, "batch_size", 64)
    devices: int = again(options.Devices, "devices", 0)
    precision: str = again(options.Devices, "precision", "float32")
    seed: int = again(options.Shared, "seed", 0)


class Seen(NamedTuple):
    """A slide that was looked at, see `bach.points.answer.Looked`."""

    path: str
    mpp: float
    in_sample: bool


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return tasks.parse(Options, argv, __doc__, "python -m bach.two_stages")


def main(argv: Sequence[str] | None = None) -> int:
    args = completed(parse_args(argv))
    if not args.slides:
        raise InputError(
            "There must be slides to look at.\nReceived: no --slides.\n"
            "Name slides, or their folder, with --slides."
        )
    out, table = Path(args.out), list_slides(args.slides)
    require_names(table["image_id"])
    require_place(out, "Name another --out.", folder=True)
    from bach.network import backend  # loads the framework, which --help must not
    from bach.network.predictor import Predictor

    backend.start(args.devices, args.seed, args.precision)
    predictor = Predictor(args, task().step_um, args.tta)
    slides, offsets, parts = {}, {}, []
    for row in table.itertuples():
        scale = args.mpp or (None if pd.isna(row.mpp) else row.mpp)
        with Slide(row.path, mpp=scale, name=row.image_id) as slide:
            offsets[row.image_id] = args.offset or first_shown(slide.properties)
            unseen = predictor.unseen_by(row.image_id)
            slides[row.image_id] = Seen(row.path, slide.mpp, not unseen)
            parts.append(look(slide, predictor, unseen, args))
    proposals = pd.concat(parts, ignore_index=True)
    truth = None if args.truth is None else read_truth(args.truth, slides)
    points.write_points(proposals, out / "proposals.csv")
    kept = [
        points.apart(part[part["score"] >= args.lowest], args.radius_um or 0.0) for part in parts
    ]
    give(pd.concat(kept, ignore_index=True), truth, slides, offsets, out, args)
    print(out)
    return 0


def look(slide: Slide, predictor: "Predictor", folds: Sequence[int], args: Options) -> pd.DataFrame:
    """Propose nuclei of a slide and have each of them judged.

    Returns:
        Table of points; the score is the probability of the task's last class.
    """
    found = nuclei.propose(slide, args.contrast)
    size = task().patch_um / slide.mpp
    patches = pd.DataFrame(
        {"x": found["x"] - size / 2, "y": found["y"] - size / 2, "size": size}, index=found.index
    )
    probs = predictor.predict(slide, patches.assign(image_id=slide.name), folds or None)
    return found.assign(score=probs[:, -1].astype(float))


if __name__ == "__main__":
    exit_with(main)
