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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bach import points, tasks
from bach.annotations.files import Folder
from bach.annotations.regions import read_annotation, reasons
from bach.core.errors import InputError, exit_with
from bach.core.files import read_array, require_place, write_json
from bach.core.log import log, step
from bach.core.options import TASK_HELP, option
from bach.core.tables import image_key, patient_key
from bach.core.text import columns, listed
from bach.honest.intervals import format_interval
from bach.honest.records import SlideRecord, bounds_offset, read_slides
from bach.honest.splits import read_patients
from bach.labels import read_class
from bach.tasks import task

HIT_UM = 7.5  # TUPAC16, MIDOG


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of python -m bach.points."""

    source: str = option("", "run folder of make_heatmap.py", name="RUN", path=True)
    task: str | None = option(None, TASK_HELP, path=True)
    out: str | None = option(None, "folder to write to (default: RUN/points)", path=True)
    threshold: float | None = option(
        None, "lowest value of a maximum (default: that of the task)", at_least=0, most=1
    )
    radius_um: float | None = option(
        None,
        "distance within which the highest value alone counts (default: that of the task)",
        at_least=0,
    )
    smooth_um: float = option(
        0.0, "radius of the disc that values are averaged over before", at_least=0
    )
    truth: str | None = option(
        None,
        "true points: a CSV of image_id and x_um, y_um or x, y, perhaps name; or a folder of "
        "annotations that bear the slides' names",
        path=True,
    )
    hit_um: float = option(HIT_UM, "largest distance of a true point", above=0)
    patients: str | None = option(
        None, "CSV of image_id and patient: intervals are over patients, else slides", path=True
    )
    search: bool = option(False, "use the threshold of the highest F1 on these slides")
    slides_dir: str | None = option(
        None, "folder of the slides, if they do not lie where they were any more", path=True
    )
    offset: tuple[int, ...] = option(
        (),
        "level-0 px where QuPath begins to count, 0 0 if it shows slides whole (default: what the "
        "slide files say)",
        metavar=("X", "Y"),
    )


def parse_args(argv: Sequence[str] | None = None) -> Options:
    args = tasks.parse(Options, argv, __doc__, "python -m bach.points")
    if len(args.offset) not in (0, 2):
        raise InputError(
            "--offset takes two numbers.\n"
            f"Received: --offset {' '.join(map(str, args.offset))}.\nName X and Y, level-0 px."
        )
    if args.search and args.truth is None:
        raise InputError(
            "A threshold is searched against true points.\nReceived: --search without --truth.\n"
            "Name them with --truth, or the threshold with --threshold."
        )
    threshold = task().point_threshold if args.threshold is None else args.threshold
    radius_um = task().point_radius_um if args.radius_um is None else args.radius_um
    if threshold is None or radius_um is None:
        raise InputError(
            f"The task must say what a point is; {task().name} answers with areas.\n"
            f"Received: --threshold={args.threshold}, --radius-um={args.radius_um}.\n"
            "Name both, or --task mitosis."
        )
    return dataclasses.replace(args, threshold=threshold, radius_um=radius_um)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
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

    # 1. Maxima, from as low as is of interest.
    lowest = 0.0 if args.search else args.threshold or 0.0
    with step("points") as notes:
        parts = [find_points(run, name, slide, lowest, args) for name, slide in slides.items()]
        found = pd.concat(parts, ignore_index=True)
        notes.append(f"{len(slides)} slides, {len(found):,} maxima from {lowest:g} on")

    # 2. Against the truth, by a threshold of others or the best one here.
    threshold, scores = lowest, None
    if truth is not None:
        threshold, scores = score(found, truth, slides, args)
        found = found[found["score"] >= threshold].reset_index(drop=True)

    # 3. Files.
    points.write_points(found, out / "points.csv")
    for name in slides:
        own = found[found["image_id"] == name]
        write_files(own, out, name, offsets[name])
    if scores is not None:
        write_json(out / "scores.json", scores | {"arguments": dataclasses.asdict(args)})
    log.info("%d x %s from %g on", len(found), task().classes[-1], threshold)
    print(out)
    return 0


def find_points(
    run: Path, name: str, slide: SlideRecord, lowest: float, args: Options
) -> pd.DataFrame:
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
    cells = points.maxima(values, lowest, (args.radius_um or 0) / cell_um)
    if not lowest:  # of glass, where nothing is
        cells = cells[cells["score"] > 0]
    found = points.of_cells(cells, name, slide.step, slide.mpp)
    # The middle of the last cell may lie beyond the slide.
    edges = {"x": slide.width, "y": slide.height}
    for axis, edge in edges.items():
        found[axis] = found[axis].clip(upper=edge)
        found[f"{axis}_um"] = found[axis] * slide.mpp
    return found


def write_files(found: pd.DataFrame, out: Path, image_id: str, offset: Sequence[int]) -> None:
    """Write the points of a slide for the platform and for QuPath."""
    name, color = task().classes[-1], task().colors[-1]
    points.write_multiple_points(found, out / "platform" / f"{image_id}.json", name)
    left, top = offset
    file = out / "qupath" / f"{image_id}.geojson"
    points.write_qupath(found, file, {name: color}, (left, top))


# The truth


def read_truth(place: str, slides: Mapping[str, SlideRecord]) -> pd.DataFrame:
    """The true points of slides.

    Args:
        place: A CSV of points, in which slides without one have none; or a folder of annotations,
            in which every slide has a file.
        slides: The slides of the run.

    Returns:
        Table of `image_id`, `x_um` and `y_um`, of the task's last class.

    Raises:
        InputError: If it cannot be read, or names what is no class.
    """
    last = task().count - 1
    if Path(place).is_dir():
        table = _of_folder(Path(place), slides)
    else:
        table = points.read_points(place)
        table["label"] = last
        if "name" in table.columns:
            table["label"] = [read_class(name) for name in table["name"]]
            bad = sorted(set(table.loc[table["label"].isna(), "name"]))
            if bad:
                raise InputError(
                    f"The points of {place} must be of the classes {', '.join(task().classes)}.\n"
                    f"Received: {listed(map(repr, bad))}.\nRename them, or name another --task."
                )
    names = {image_key(name): name for name in slides}
    own = table["image_id"].map(image_key).map(names)
    table = table.assign(image_id=own)[own.notna() & (table["label"] == last)]
    if not {"x_um", "y_um"} <= set(table.columns):
        mpp = table["image_id"].map({name: slide.mpp for name, slide in slides.items()})
        mpp = mpp.astype(float)
        table = table.assign(x_um=table["x"] * mpp, y_um=table["y"] * mpp)
    without = [name for name in slides if name not in set(table["image_id"])]
    if without:
        log.warning("no true point on %d slides: %s", len(without), listed(without))
    return table[["image_id", "x_um", "y_um"]].reset_index(drop=True)


def _of_folder(place: Path, slides: Mapping[str, SlideRecord]) -> pd.DataFrame:
    files = Folder(place, [Path(str(slide.path)).name for slide in slides.values()])
    found = {name: files.only(Path(str(slide.path)).name) for name, slide in slides.items()}
    missing = [name for name, file in found.items() if file is None]
    if missing:
        raise InputError(
            f"Every slide of the run must have its annotation in {place}.\n"
            f"Received none of {listed(missing)}.\n"
            "Write one without points where there is none, or name a CSV of all points."
        )
    rows = []
    for name, file in found.items():
        annotation = None if file is None else read_annotation(file)
        if annotation is None or annotation.marks is None:
            raise InputError(
                f"Annotations must mark places: {file}.\n"
                f"Received: the task {task().name}, whose annotations are areas.\n"
                "Name --task mitosis, or a CSV of points."
            )
        if annotation.skipped:
            log.warning("%s: left out: %s", file, reasons(annotation.skipped))
        rows += [(name, *mark) for mark in annotation.marks.tolist()]
    return pd.DataFrame(rows, columns=["image_id", "x", "y", "label"])


# Scores


def score(
    found: pd.DataFrame, truth: pd.DataFrame, slides: Mapping[str, SlideRecord], args: Options
) -> tuple[float, dict]:
    """The threshold, and figures of the points from it on.

    Slides that a model was trained on are left out, unless there are no others.
    """
    honest = [name for name, slide in slides.items() if not slide.in_sample]
    if len(honest) < len(slides):
        seen = sorted(set(slides) - set(honest))
        said = f"not scored: {listed(seen)}" if honest else "and scored all the same: all slides"
        log.warning("trained on, %s", said)
    names = honest or list(slides)
    known: dict[str, str] = {}
    if args.patients is not None:
        table = read_patients(args.patients)
        known = dict(zip(table["image_id"].map(image_key), table["patient"], strict=True))
    stated = {name: known.get(image_key(name), "") for name in names}
    cases = {name: patient_key(one) or f"slide {name}" for name, one in stated.items()}
    found, truth = (table[table["image_id"].isin(names)] for table in (found, truth))
    marked = points.mark_hits(found, truth, args.hit_um)
    threshold = args.threshold or 0.0
    if args.search:
        threshold = _search(marked, len(truth))
    counts = points.count(marked, truth, cases, threshold)
    parts = [bool(patient_key(one)) for one in stated.values()]
    unit = "patients" if all(parts) else "patients and slides" if any(parts) else "slides"
    figures = {name: points.interval(counts, name, unit) for name in points.FIGURES}
    rows = [
        [name, *map(str, row)] for name, row in zip(counts.index, counts.to_numpy(), strict=True)
    ]
    print(columns(["case", "true", "false", "missed"], rows))
    for name, value in figures.items():
        print(f"{name:10}{format_interval(value, 3)}")
    scored = counts.reset_index().to_dict("records")
    result = {"threshold": threshold, "searched_here": args.search, "slides": names}
    return threshold, result | figures | {"cases": scored, "in_sample": not honest}


def _search(marked: pd.DataFrame, truths: int) -> float:
    if not marked["hit"].any():
        raise InputError(
            "A threshold is searched among points of which at least one is true.\n"
            f"Received: {len(marked)} maxima and {truths} true points, none within --hit-um.\n"
            "Check that --truth is of these slides, at their scale."
        )
    threshold, f1 = points.best_threshold(marked, truths)
    log.warning(
        "threshold %.6g has the highest F1 here, %.3f: use it on other slides, on these it is too "
        "good",
        threshold,
        f1,
    )
    return threshold


if __name__ == "__main__":
    exit_with(main)
