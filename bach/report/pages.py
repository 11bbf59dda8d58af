"""A report for a browser: one folder that opens from a USB stick, without network.

index.html       every run: how it was made, figures, curves, mistakes, slides
assets/          style, the viewer (OpenSeadragon) and its licence
pictures/        curves, charts, mistakes, hard examples
slides/N_NAME/   the page of a slide, see `bach.report.viewer`
report.json      what the report is of; written last
"""

import collections
import contextlib
import datetime
import importlib.resources
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.drawings import heat_colors
from bach.core.errors import InputError
from bach.core.files import atomic_folder, atomic_path, read_object, to_json, write_json
from bach.core.log import log, step
from bach.core.run import locked, read_record
from bach.core.tables import image_key
from bach.core.text import listed, number
from bach.data import find_data
from bach.honest.comparison import parts_of
from bach.honest.records import SlideRecord, slide_file
from bach.report.gather import Cell, Source, Table, areas_in_words, gather, hard_examples, heatmaps
from bach.report.viewer import Found, write_slide
from bach.tasks import task, use

if TYPE_CHECKING:
    import jinja2

SLIDE_MB = 28  # 20 slides stay under 600 MB

_RECORD = "report.json"
_PAGE = "page.json"
_ASSETS = ("report.css", "viewer.js", "openseadragon.min.js", "openseadragon-LICENSE.txt")
_HEAT_STOPS = 9
_KINDS = (
    (
        "cell",
        "Places to look at",
        "Where the network is most wrong, or, without annotation, where its heatmap is highest; "
        "one per neighbourhood, in full resolution.",
        "p",
    ),
    ("example", "Hard examples", "Patches that step 2 found, hardest first.", "h"),
)


class Request(NamedTuple):
    """What is asked for.

    Attributes:
        runs: Run folders, or folders of run folders.
        out: Folder of the report; None for `report` in the first of them.
        data_dir: Folder of the challenge data; None for that of each run.
        slides_dir: Folder of the slides, if they have moved since.
        previous: Run to compare with, or None.
        slide_mb: Most MB for a slide, about.
    """

    runs: Sequence[Path]
    out: Path | None = None
    data_dir: Path | None = None
    slides_dir: Path | None = None
    previous: Path | None = None
    slide_mb: float = SLIDE_MB


def write_report(request: Request) -> Path:
    """Write a report, or bring one up to date: slides that have not changed stay.

    Returns:
        Its first page.

    Raises:
        InputError: If a run cannot be read, there is none, or the folder of the report
            holds something else.
    """
    runs = find_runs(request.runs)
    use(None, *runs, request.previous)
    out = request.out or Path(request.runs[0]) / "report"
    _check_place(out)
    compared = _compared(runs, request.previous)
    found = _find_slides(runs, request)
    folders = _folders(found)
    anchors: dict[Path | None, str] = {run: f"run{i}" for i, run in enumerate(runs, start=1)}
    with locked(out, "the same command"):
        write_json(out / _RECORD, {"runs": [str(run) for run in runs], "finished": False})
        _write_assets(out)
        failures = _write_slides(out, found, folders, anchors, request.slide_mb)
        pictures = out / "pictures"
        if pictures.exists():
            shutil.rmtree(pictures)  # of an earlier state of the runs

        def page(name: str) -> str | None:
            folder = folders.get(name)
            return None if folder is None or name in failures else f"slides/{folder}/index.html"

        with step("pages") as notes:
            gathered = []
            for run in tqdm(runs, desc="pages", disable=None):
                previous = request.previous if run in compared else None
                source = Source(run, anchors[run], request.data_dir, previous, page)
                gathered.append(gather(source, out))
            _render(
                out / "index.html",
                "index.html",
                root="",
                title=f"Report of {listed([run.resolve().name for run in runs], 4)}",
                made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
                runs=gathered,
                slides=[(name, href) for name in folders if (href := page(name))],
                failures=failures,
            )
            notes.append(f"{len(runs)} runs, {len(folders) - len(failures)} slides")
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        log.info("report: %.0f MB in %s", size / 1e6, out)
        record = {"runs": [str(run) for run in runs], "finished": True, "bytes": size}
        write_json(out / _RECORD, record | {"slides": folders, "failures": failures})
    return out / "index.html"


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The run folders among some places and in them, in the order in which they were begun.

    Raises:
        InputError: If a place is no run folder and holds none.
    """
    runs: list[Path] = []
    for place in places:
        inside = sorted(path.parent for path in place.glob("*/run.json"))
        here = [place] if (place / "run.json").exists() else inside
        if not here:
            raise InputError(
                f"{place} must be a run folder, or hold run folders.\n"
                "Received: no run.json in it or one level below.\n"
                "Name what a script's --run-dir was."
            )
        runs += here
    unique = list(dict.fromkeys(run.resolve() for run in runs))
    begun = {run: str(_first_start(run)) for run in unique}
    # As they were named; two paths of one folder are one run.
    named = {run.resolve(): run for run in reversed(runs)}
    return [named[run] for run in sorted(unique, key=begun.__getitem__)]


def _first_start(run: Path) -> object:
    record = read_record(run) or {}
    starts = record.get("starts") or [record]
    return starts[0].get("begun", "")


def _check_place(out: Path) -> None:
    """Refuse to write into a folder that holds something else."""
    if out.exists() and not (out.is_dir() and ((out / _RECORD).exists() or not any(out.iterdir()))):
        raise InputError(
            f"The folder of a report must be new, or that of an earlier report.\n"
            f"Received: {out}, which holds something else.\nName another folder with --out."
        )


def _compared(runs: Sequence[Path], previous: Path | None) -> list[Path]:
    """The runs that predicted the same part as the previous one."""
    if previous is None:
        return []
    parts = set(parts_of(previous))
    found = []
    for run in runs:
        with contextlib.suppress(InputError):  # one that predicted nothing
            if parts & set(parts_of(run)):
                found.append(run)
    if not found:
        raise InputError(
            "The run to compare with must have predicted the same part as one of the others.\n"
            f"Received: --previous={previous}, of Part {listed(sorted(parts))}.\n"
            "Name an earlier run of the same script."
        )
    return found


# Slides


def _find_slides(runs: Sequence[Path], request: Request) -> dict[str, Found]:
    """Every slide that a run has a heatmap or hard examples of; the last heatmap counts."""
    predicted: dict[str, tuple[Path | None, SlideRecord | None]] = {}
    examples: dict[str, tuple[pd.DataFrame, float | None]] = {}
    for run in runs:
        predicted |= {name: (run, record) for name, record in heatmaps(run).items()}
        table = hard_examples(run)
        given = (read_record(run) or {}).get("arguments", {}).get("mpp")
        examples |= {str(name): (rows, given) for name, rows in table.groupby("image_id")}
    known = _known_slides(runs, request)
    found = {}
    for name in sorted(predicted.keys() | examples.keys()):
        where, record = predicted.get(name, (None, None))
        rows, given = examples.get(name, (pd.DataFrame({"difficulty": []}), None))
        file = known.get(image_key(name))
        if where is not None and record is not None:
            file = slide_file(where, record, request.slides_dir) or file
        mpp = record.mpp if record is not None else given
        if file is None:
            shown = "has no page" if record is None else "its page shows the maps alone"
            log.warning("%s: the slide is not at hand, %s", name, shown)
        if file is not None or record is not None:
            found[name] = Found(name, file, mpp, where, record, rows)
    return found


def _known_slides(runs: Sequence[Path], request: Request) -> dict[str, Path]:
    """Slides by their key: those of `--slides-dir`, else of the data that the runs used."""
    if request.slides_dir is not None:
        files = sorted(path for path in request.slides_dir.rglob("*") if path.is_file())
        if not files:
            raise InputError(
                "The folder of the slides must hold files.\n"
                f"Received: --slides-dir={request.slides_dir}, in which there are none.\n"
                "Check the name."
            )
        return {image_key(path.name): path for path in reversed(files)}
    found: dict[str, Path] = {}
    for run in runs:
        source = Source(run, "", request.data_dir, None, lambda name: None)
        data_dir = source.data()
        if data_dir is not None and data_dir.is_dir():
            with contextlib.suppress(InputError):  # a run of --slides names data it has not used
                table = find_data(data_dir)
                table = table[table["part"].isin(["B", "B-test"])]
                paths = zip(table["image_id"], table["path"], strict=True)
                found |= {image_key(name): Path(path) for name, path in paths}
    return found


def _folders(names: Iterable[str]) -> dict[str, str]:
    """A folder name for every slide that any file system takes, and any browser finds."""
    found = {}
    for index, name in enumerate(names, start=1):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in plain)
        found[name] = f"{index:03d}_{safe[:60]}".rstrip("_")
    return found


def _write_slides(
    out: Path,
    found: Mapping[str, Found],
    folders: Mapping[str, str],
    anchors: Mapping[Path | None, str],
    slide_mb: float,
) -> dict[str, str]:
    """Write the pages of slides; return why some have none."""
    failures: dict[str, str] = {}
    place = out / "slides"
    for old in [path for path in place.glob("*") if path.name not in folders.values()]:
        shutil.rmtree(old)
    written: dict[str, dict[str, Any]] = {}
    for name, slide in tqdm(found.items(), desc="slides", disable=None):
        try:
            written[name] = _write_slide(place / folders[name], slide, slide_mb)
        except InputError as error:
            log.error("%s has no page: %s", name, error)
            failures[name] = str(error)
            shutil.rmtree(place / folders[name], ignore_errors=True)
    # The pages last: they lead to each other.
    names = list(written)
    for index, name in enumerate(names):
        beside: dict[str, Any] = {
            key: {"name": names[other], "folder": folders[names[other]]}
            for key, other in (("before", index - 1), ("after", index + 1))
            if 0 <= other < len(names)
        }
        beside["anchor"] = anchors.get(found[name].run, "")
        _write_page(place / folders[name], found[name], written[name], beside)
    return failures


def _write_slide(folder: Path, found: Found, slide_mb: float) -> dict[str, Any]:
    """Write the pictures of a slide unless they are there; return what its page says."""
    key = found.key(slide_mb)
    if (folder / _PAGE).exists():
        then = read_object(folder / _PAGE, "Delete it.", key=dict, slide=dict)
        if then.get("key") == key and "slide" in then:
            log.info("%s: its page is there", found.name)
            return then["slide"]
        log.info("%s: what its page depends on has changed; done again", found.name)
    if folder.exists():
        shutil.rmtree(folder)
    with step(found.name) as notes, atomic_folder(folder) as temporary:
        value = write_slide(temporary, found, round(slide_mb * 1e6))
        value |= {"classes": task().classes}
        with (temporary / "slide.js").open("w", encoding="utf-8") as stream:
            stream.write(f"window.slide = {_script(value)};\n")
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        notes.append(f"{size / 1e6:.1f} MB, {len(value['places'])} places")
        if value["cells"]:
            value["cells"] = {"rows": value["cells"]["rows"]}  # the page needs no more
        write_json(temporary / _PAGE, {"key": key, "slide": value})
    return value


def _script(value: object) -> str:
    """JSON that may stand in a script: a name cannot end it."""
    return to_json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _write_page(
    folder: Path, found: Found, slide: Mapping[str, Any], beside: Mapping[str, Any]
) -> None:
    record = found.record
    notes = [slide["note"]] if slide["note"] else []
    image = slide["image"]
    summary = (
        f"Slide {found.name}, {slide['width']} by {slide['height']} px of {slide['mpp']:.3f} µm"
    )
    blocks = []
    if record is not None:
        notes += record.warnings
        summary += f". Areas: {areas_in_words(record)}."
        blocks.append(_facts(record))
        if record.counts is not None:
            blocks.append(_pixels(record))
    if image is not None:
        summary += f" Shown at {slide['mpp'] * image['scale']:.2f} µm per px."
    stops = heat_colors(np.linspace(0, 1, _HEAT_STOPS)[None])[0]
    _render(
        folder / "index.html",
        "slide.html",
        root="../../",
        slide=slide,
        notes=notes,
        summary=summary,
        blocks=blocks,
        kinds=_KINDS,
        present=collections.Counter(place["kind"] for place in slide["places"]),
        heat=[_css(color) for color in stops],
        most=task().classes[-1] if task().ordered else f"not {task().classes[0]}",
        **beside,
    )


def _facts(record: SlideRecord) -> Table:
    how = "mean of all models" if record.fold is None else f"model of fold {record.fold}"
    seen = (
        "in sample: the models were trained on it" if record.in_sample else "not seen in training"
    )
    values = {
        **{f"{name}, mm²": number(record.areas_mm2.get(name), 2) for name in task().classes},
        "score": number(record.score),
        "score on tissue": number(record.score_tissue),
        task().always: number(record.baseline),
        "predicted by": f"{how}, {seen}",
        "size": f"{record.width} x {record.height} px at {record.mpp:.3f} µm ({record.mpp_source})",
    }
    rows = [[Cell(name), Cell(value)] for name, value in values.items()]
    return Table("The slide in figures", ("", ""), rows, style="text")


def _pixels(record: SlideRecord) -> Table:
    counts = record.counts if record.counts is not None else np.zeros((0, 0))
    shares = counts / max(counts.sum(), 1)
    rows = [
        [Cell(name), *(Cell(f"{share:.1%}", shade=float(share)) for share in row)]
        for name, row in zip(task().classes, shares, strict=True)
    ]
    caption = "Share of the slide: rows the annotation, columns the class map"
    return Table(caption, ["annotated", *task().classes], rows)


# Files


def _css(color: Iterable[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _write_assets(out: Path) -> None:
    assets = importlib.resources.files("bach.report") / "assets"
    for name in _ASSETS:
        with atomic_path(out / "assets" / name) as temporary:
            temporary.write_bytes((assets / name).read_bytes())


def _environment() -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("bach.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def _render(path: Path, template: str, **values: object) -> None:
    classes = list(zip(task().classes, map(_css, task().colors), strict=True))
    defaults = {"before": None, "after": None}
    text = _environment().get_template(template).render(defaults | {"classes": classes} | values)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
