"""What a slide job makes: the files of make_heatmap.py, then those for other tools and people.

JOB/              a run folder of make_heatmap.py with this one slide
JOB/qupath/       NAME.geojson.gz
JOB/tiff/         NAME.classes.tif, NAME.probs.ome.tif
JOB/report/       pages, with the viewer of the slide
"""

import dataclasses
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bach.core.errors import InputError
from bach.core.files import read_object, write_json
from bach.core.options import Shared, again, option
from bach.core.run import Run
from bach.core.tables import require_names
from bach.export import pyramids, qupath
from bach.export.results import list_results, read_result
from bach.heatmap import HeatmapMaker, MapScript, summarise
from bach.honest.records import bounds_offset
from bach.report.pages import Request, write_report
from bach.slide_by_slide import check_slides
from bach.slides import SLIDE_SUFFIXES

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor

_MOST_LISTED = 10_000


@dataclasses.dataclass(frozen=True)
class HeatmapOptions(MapScript):
    """Options of a job: those of make_heatmap.py, so that both write the same record."""

    run_dir: str = again(Shared, "run_dir", "")
    part: str = option("all", "as in make_heatmap.py")
    slides: tuple[str, ...] = option((), "the slide", path=True)
    tta: bool = option(False, "as in make_heatmap.py")
    step_um: float | None = option(None, "as in make_heatmap.py")


def make_job(
    options: HeatmapOptions,
    predictor: "Predictor",
    device: dict[str, object],
    check: Callable[[], None],
) -> None:
    """Make everything of a slide; what an interrupted start has finished is kept.

    Args:
        options: The slide, the run folder, and how.
        predictor: The models.
        device: What they compute with, for the record.
        check: Called between the parts; raises if the job is to end.

    Raises:
        InputError: If the slide cannot be read.
    """
    run = _run(options)
    path = options.slides[0]
    name = Path(path).stem
    if not run.finished:
        with run.start(**device):
            table = pd.DataFrame({"image_id": [name], "path": [path], "part": [""]})
            failures = check_slides(table, options)
            if failures:
                raise InputError(failures[name])
            check()
            record = HeatmapMaker(run.path, predictor, options).make(path, "")
            write_json(run.path / "failures.json", {})
            unsure = {"model_warnings": predictor.warnings} if predictor.warnings else {}
            run.finish(summarise([record], {}, run.path) | unsure)
    check()
    files = job_files(run.path, name)
    result = read_result(run.path, name, list_results(run.path, [name])[name])
    offset = bounds_offset(run.path, result.record)
    qupath.write_qupath(files["qupath.geojson.gz"], result, (offset[0], offset[1]))
    check()
    pyramids.write_classes(files["classes.tif"], result)
    pyramids.write_probs(files["probs.ome.tif"], result)
    check()
    write_report(Request([run.path]))


def _run(options: HeatmapOptions) -> Run:
    try:
        return Run(options)
    except InputError:
        # Begun by a service with other options, or left damaged: of no use.
        shutil.rmtree(options.run_dir)
        return Run(options)


def job_files(run: Path, name: str) -> dict[str, Path]:
    """The files of a job that can be fetched, by what they are called there."""
    return {
        "heatmap.png": run / "overlays" / f"{name}.png",
        "class_map.png": run / "class_maps" / f"{name}.png",
        "heatmap.npy": run / "heatmaps" / f"{name}.npy",
        "probs.npy": run / "probs" / f"{name}.npy",
        "slide.json": run / "slides" / f"{name}.json",
        "qupath.geojson.gz": run / "qupath" / f"{name}{qupath.ENDING}",
        "classes.tif": run / "tiff" / f"{name}{pyramids.CLASSES_ENDING}",
        "probs.ome.tif": run / "tiff" / f"{name}{pyramids.PROBS_ENDING}",
    }


def viewer_page(run: Path, name: str) -> str | None:
    """The page of the slide's viewer below `report/`, or None where there is none."""
    file = run / "report" / "report.json"
    if not file.is_file():
        return None
    folder = (read_object(file, "Delete the job.", slides=dict).get("slides") or {}).get(name)
    return None if folder is None else f"slides/{folder}/index.html"


# Slides under a root


def list_root(root: Path) -> list[str]:
    """The slides below a folder, relative to it, in order; links and hidden files are none."""
    found: list[str] = []
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            plain = not name.startswith(".") and path.suffix.lower() in SLIDE_SUFFIXES
            if plain and stat.S_ISREG(path.lstat().st_mode):
                found.append(path.relative_to(root).as_posix())
        if len(found) >= _MOST_LISTED:
            break
    return found[:_MOST_LISTED]


def find_below(root: Path, named: str) -> Path:
    """The slide that somebody names below a folder.

    Args:
        root: The folder, without links in its own path.
        named: Relative to it.

    Raises:
        InputError: If it leads out of the folder, over a link, or to no file.
    """
    remedy = "Name one of those that GET /slides lists, relative to the folder of slides."
    parts = Path(named).parts
    bad = not parts or "\0" in named or Path(named).is_absolute() or ".." in parts
    path = root
    for part in () if bad else parts:
        path = path / part
        bad = bad or os.path.islink(path)
    if bad:
        raise InputError(
            "A slide must lie in the folder of slides, and be reached without links and '..'.\n"
            f"Received: {named!r}.\n{remedy}"
        )
    if not os.path.isfile(path):
        raise InputError(f"There must be such a slide.\nReceived: {named!r}.\n{remedy}")
    require_names([path.stem])
    return path
