"""Points as an answer: their threshold, their files, and how many of them are true."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from bach.annotations.files import Folder
from bach.annotations.regions import read_annotation, reasons
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.log import log
from bach.core.options import option
from bach.core.tables import image_key, patient_key
from bach.core.text import columns, listed
from bach.honest.intervals import format_interval
from bach.honest.splits import read_patients
from bach.labels import read_class
from bach.points.files import read_points, write_multiple_points, write_points, write_qupath
from bach.points.pairs import FIGURES, best_threshold, count, interval, mark_hits
from bach.slides import Slide, first_shown
from bach.tasks import task

HIT_UM = 7.5  # TUPAC16, MIDOG


class Looked(Protocol):
    """What must be known of a slide that was looked at; `SlideRecord` is one."""

    @property
    def path(self) -> str:
        """The slide as it was given."""

    @property
    def mpp(self) -> float:
        """um per level-0 px."""

    @property
    def in_sample(self) -> bool:
        """Whether all models were trained on it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Options of what answers with points."""

    threshold: float | None = option(
        None, "lowest score of a point (default: that of the task)", at_least=0, most=1
    )
    radius_um: float | None = option(
        None,
        "distance within which the highest value alone counts (default: that of the task)",
        at_least=0,
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
    offset: tuple[int, ...] = option(
        (),
        "level-0 px where QuPath begins to count, 0 0 if it shows slides whole (default: what the "
        "slide files say)",
        metavar=("X", "Y"),
    )

    @property
    def lowest(self) -> float:
        """From where on points are of interest."""
        return 0.0 if self.search else self.threshold or 0.0


def completed(args):
    """Answer options with what the task says.

    Raises:
        InputError: If neither says what a point is, or options do not fit.
    """
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


def give(
    found: pd.DataFrame,
    truth: pd.DataFrame | None,
    slides: Mapping[str, Looked],
    offsets: Mapping[str, Sequence[int]],
    out: Path,
    args: Answer,
) -> None:
    """Write points of slides in all formats, and their score if the truth is known.

    Args:
        found: Points from `args.lowest` on.
        truth: Of `read_truth`.
        slides: The slides that were looked at.
        offsets: x, y in level-0 px that QuPath calls 0, 0, of each.
        out: Folder.
        args: Options.
    """
    threshold = args.lowest
    if truth is not None:
        threshold, scores = score(found, truth, slides, args)
        write_json(out / "scores.json", scores | {"arguments": dataclasses.asdict(args)})
        found = found[found["score"] >= threshold].reset_index(drop=True)
    write_points(found, out / "points.csv")
    name, color = task().classes[-1], task().colors[-1]
    for image_id in slides:
        own = found[found["image_id"] == image_id]
        write_multiple_points(own, out / "platform" / f"{image_id}.json", name)
        left, top = offsets[image_id]
        write_qupath(own, out / "qupath" / f"{image_id}.geojson", {name: color}, (left, top))
    log.info("%d x %s from %g on", len(found), name, threshold)


# The truth


def read_truth(place: str, slides: Mapping[str, Looked]) -> pd.DataFrame:
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
        table = read_points(place)
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
    others = sorted(set(table["image_id"][own.isna()]))
    if others:
        log.warning("left out, true points on %d other slides: %s", len(others), listed(others))
    table = table.assign(image_id=own)[own.notna() & (table["label"] == last)]
    if not {"x_um", "y_um"} <= set(table.columns):
        mpp = table["image_id"].map({name: slide.mpp for name, slide in slides.items()})
        mpp = mpp.astype(float)
        table = table.assign(x_um=table["x"] * mpp, y_um=table["y"] * mpp)
    without = [name for name in slides if name not in set(table["image_id"])]
    if without:
        log.warning("no true point on %d slides: %s", len(without), listed(without))
    return table[["image_id", "x_um", "y_um"]].reset_index(drop=True)


def _of_folder(place: Path, slides: Mapping[str, Looked]) -> pd.DataFrame:
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
        annotation = (
            None if file is None else read_annotation(file, None, _shown_from(slides[name]))
        )
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


def _shown_from(slide: Looked) -> tuple[int, int]:
    """See `bach.slides.first_shown`; of a slide that is not there any more nothing is known."""
    if not Path(slide.path).is_file():
        return 0, 0
    with Slide(slide.path, mpp=slide.mpp) as opened:
        return first_shown(opened.properties)


# Scores


def score(
    found: pd.DataFrame, truth: pd.DataFrame, slides: Mapping[str, Looked], args: Answer
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
    marked = mark_hits(found, truth, args.hit_um)
    threshold = args.threshold or 0.0
    if args.search:
        threshold = _search(marked, len(truth))
    counts = count(marked, truth, cases, threshold)
    parts = [bool(patient_key(one)) for one in stated.values()]
    unit = "patients" if all(parts) else "patients and slides" if any(parts) else "slides"
    figures = {name: interval(counts, name, unit) for name in FIGURES}
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
    threshold, f1 = best_threshold(marked, truths)
    log.warning(
        "threshold %.6g has the highest F1 here, %.3f: use it on other slides, on these it is too "
        "good",
        threshold,
        f1,
    )
    return threshold
