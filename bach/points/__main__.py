"""Points from the heatmaps of a run: where they have their maxima, and how many of them are true.

    python -m bach.points runs/heatmaps
    python -m bach.points runs/heatmaps --truth data/truth/points.csv --search
    python -m bach.points runs/test --truth data/test_points.csv --threshold 0.62

Reads    RUN/heatmaps/NAME.npy, RUN/slides/NAME.json of a run of make_heatmap.py; --truth
Writes   RUN/points/points.csv      image_id, x_um, y_um, x, y, score
         RUN/points/platform/NAME.json     "Multiple points" of grand-challenge.org, in mm
         RUN/points/qupath/NAME.geojson    annotations of QuPath, read back by --truth
         RUN/points/scores.json            with --truth: precision, recall, F1, with intervals
Time     seconds per slide

A maximum is the highest value within the radius. A point is true if a true one that no better
point has taken lies within --hit-um. --search finds the threshold of the highest F1: use it on
other slides, since on these it is too good. The last line on stdout is the folder.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach import points, tasks
from bach.core.errors import InputError, exit_with
from bach.core.files import read_array, require_place
from bach.core.log import step
from bach.core.options import TASK_HELP, option
from bach.honest.records import SlideRecord, bounds_offset, read_slides
from bach.points.answer import Answer, completed, give, read_truth


@dataclasses.dataclass(frozen=True)
class Options(Answer):
    """Options of python -m bach.points."""

    source: str = option("", "run folder of make_heatmap.py", name="RUN", path=True)
    task: str | None = option(None, TASK_HELP, path=True)
    out: str | None = option(None, "folder to write to (default: RUN/points)", path=True)
    smooth_um: float = option(
        0.0, "radius of the disc that values are averaged over before", at_least=0
    )
    slides_dir: str | None = option(
        None, "folder of the slides, if they do not lie where they were any more", path=True
    )


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return tasks.parse(Options, argv, __doc__, "python -m bach.points")


def main(argv: Sequence[str] | None = None) -> int:
    args = completed(parse_args(argv))
    run, out = Path(args.source), Path(args.out or Path(args.source) / "points")
    require_place(out, "Name another --out.", folder=True)
    slides = read_slides(run)
    if not slides:
        raise InputError(
            f"{run} must be a run of make_heatmap.py with a slide that is finished.\n"
            f"Received: {'a folder without slides/*.json' if run.is_dir() else 'no folder'}.\n"
            "Name the run folder that make_heatmap.py printed."
        )
    truth = None if args.truth is None else read_truth(args.truth, slides)
    offsets = {
        name: args.offset or bounds_offset(run, slide, args.slides_dir)
        for name, slide in slides.items()
    }
    with step("points") as notes:
        parts = [find_points(run, name, slide, args) for name, slide in slides.items()]
        found = pd.concat(parts, ignore_index=True)
        notes.append(f"{len(slides)} slides, {len(found):,} maxima from {args.lowest:g} on")
    give(found, truth, slides, offsets, out, args)
    print(out)
    return 0


def find_points(run: Path, name: str, slide: SlideRecord, args: Options) -> pd.DataFrame:
    """The maxima of a slide's heatmap as points.

    Raises:
        InputError: If the heatmap is missing or damaged.
    """
    remedy = f"Delete {run / 'slides' / f'{name}.json'}, and run make_heatmap.py with --resume."
    values = read_array(run / "heatmaps" / f"{name}.npy", remedy, dimensions=2)
    cell_um = slide.step * slide.mpp
    if not (cell_um > 0 and np.isfinite(cell_um)):
        raise InputError(
            f"The step and the scale of {name} in {run} must be above 0.\n"
            f"Received: step={slide.step}, mpp={slide.mpp}.\n{remedy}"
        )
    values = points.smooth(values, args.smooth_um / cell_um)
    cells = points.maxima(values, args.lowest, (args.radius_um or 0) / cell_um)
    if not args.lowest:  # of glass, where nothing is
        cells = cells[cells["score"] > 0]
    found = points.of_cells(cells, name, slide.step, slide.mpp)
    # The middle of the last cell may lie beyond the slide.
    edges = {"x": slide.width, "y": slide.height}
    for axis, edge in edges.items():
        found[axis] = found[axis].clip(upper=edge)
        found[f"{axis}_um"] = found[axis] * slide.mpp
    return found


if __name__ == "__main__":
    exit_with(main)
