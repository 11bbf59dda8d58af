"""From slides to heatmaps, class maps, areas and scores.

    python -m bach.heatmap runs/heatmaps --rule least-cost --out runs/heatmaps_least_cost

makes class maps, scores and pictures anew from the probabilities of a finished run of
make_heatmap.py, into a new run folder: without network, in seconds, and the same files as
that script would write with these options.

Reads    RUN/probs/*.npy, RUN/tissue/*.png, RUN/truth/*.png, RUN/slides/*.json, RUN/slides.csv;
         the slides, for the background of pictures, where they are still there
Writes   a run folder with the files of make_heatmap.py

The slide is divided into square cells of one step. A cell's value is the
prediction of the patch that is centred on it, so positions cannot drift: cell
(row, col) stands for the level-0 square whose left edge is `col * step`.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bach import tasks
from bach.core import options
from bach.core.drawings import (
    NO_HEAT,
    Panel,
    Words,
    color_bar,
    color_classes,
    color_heat,
    plate,
    resized,
    swatch,
)
from bach.core.errors import InputError, exit_with
from bach.core.files import fingerprint, read_array, read_object, write_array, write_json
from bach.core.log import log, step
from bach.core.options import again, option
from bach.core.pictures import read_mask, write_gray, write_png
from bach.core.run import Run, read_metrics, read_record
from bach.core.tables import read_table, write_csv
from bach.core.text import listed, number
from bach.honest.intervals import format_interval, score_interval
from bach.honest.records import SlideRecord, read_slide, read_slides, slide_file, write_slide
from bach.labels import read_class_map, write_class_map
from bach.mining import MIN_TISSUE
from bach.patches import SlideMaps, cell_patches, grid_shape
from bach.scores import always, dinkelbach, joint_counts, score_from_counts
from bach.slide_by_slide import NotDone
from bach.slides import Slide
from bach.tasks import BACKGROUND, task
from bach.tissue import map_files, slide_maps

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor

SCORES = ("score", "score_tissue", "baseline", "baseline_tissue")


@dataclasses.dataclass(frozen=True)
class MapRule:
    """How probabilities become class maps."""

    thresholds: tuple[float, ...] = option(
        (),
        "heatmap values where the classes above the first begin (default: those of the task; "
        "of bach 0.35 0.70 0.75)",
        at_least=0,
        most=1,
        metavar="VALUE",
    )
    rule: str = option(
        "thresholds",
        "class map by thresholds on the heatmap, by least expected cost under the score, or by "
        "the largest probability (always, where the classes of the task are not ordered)",
        choices=("thresholds", "least-cost", "largest"),
    )
    clip_to_tissue: bool = option(
        False, "class maps are of the first class (Normal in BACH) where there is no tissue"
    )

    def __post_init__(self) -> None:
        given, wanted = self.thresholds, task().thresholds
        if given and (len(given) != len(wanted) or list(given) != sorted(given)):
            begin = listed(task().classes[1:]) if wanted else "no class"
            raise InputError(
                f"The thresholds must ascend, and say where {begin} begin.\n"
                f"Received: --thresholds {' '.join(map(str, given))}.\n"
                "Name one for each, in this order; or leave the option out."
            )
        object.__setattr__(self, "thresholds", given or wanted)
        if self.rule == "thresholds" and not task().ordered:
            object.__setattr__(self, "rule", "largest")

    def decide(self, probs: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
        """The class of every cell, uint8 `(rows, cols)`; Normal without a prediction.

        Args:
            probs: Probabilities `(rows, cols, classes)`.
            heatmap: Heatmap `(rows, cols)` of them.
        """
        if self.rule == "least-cost":
            return dinkelbach(probs)[0]
        if self.rule == "largest":
            return np.nan_to_num(probs).argmax(axis=-1).astype(np.uint8)
        return to_classes(heatmap, self.thresholds)


@dataclasses.dataclass(frozen=True)
class MapScript(MapRule, options.SlideScript):
    """Options of a script that makes heatmaps of slides."""


def cell_um(step_um: float | None, mode: str) -> float:
    """Side of a cell in um: as it is asked for, or that of the task and mode.

    Raises:
        InputError: If it is larger than a patch: parts of the slide would be seen by none.
    """
    if step_um is not None and step_um > task().patch_um:
        raise InputError(
            f"A cell must be no larger than a patch, {task().patch_um:g} um.\n"
            f"Received: --step-um={step_um:g}.\nName a smaller one, or leave the option out."
        )
    return step_um or (task().dense_step_um if mode == "dense" else task().step_um)


def heatmap_patches(maps: SlideMaps, step_um: float | None = None) -> pd.DataFrame:
    """Patches centred on the cells of a slide, where there is tissue.

    Args:
        maps: The slide's maps.
        step_um: Side of a cell in um; that of the task by default.

    Returns:
        Patch table with the additional columns `row, col` of the cell, only of
        patches with at least 5% tissue. It may be empty.
    """
    table = cell_patches(maps, step_um or task().step_um)
    return table[table["tissue"] >= MIN_TISSUE].reset_index(drop=True)


def stitch(table: pd.DataFrame, probs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Lay patch predictions out as a map.

    Args:
        table: Patch table with `row, col`.
        probs: Probabilities `(len(table), classes)`.
        shape: Rows and columns of cells.

    Returns:
        float32 array `(rows, cols, classes)`, not a number where nothing was predicted.
    """
    result = np.full((*shape, task().count), np.nan, np.float32)
    result[table["row"], table["col"]] = probs
    return result


def to_heatmap(probs: np.ndarray) -> np.ndarray:
    """Expected class / 3 of a map of probabilities; 0 where nothing was predicted.

    Where the classes of a task are not ordered: what is not of the first class.

    Args:
        probs: float array `(rows, cols, classes)`.

    Returns:
        float32 array `(rows, cols)` in 0..1.

    Example:
        >>> float(to_heatmap(np.array([[[0, 0, 0.5, 0.5]]]))[0, 0])
        0.8333333134651184
    """
    scale = np.arange(task().count) if task().ordered else np.arange(task().count) > 0
    expected = (np.nan_to_num(probs) * scale).sum(axis=-1)
    return np.clip(expected / scale[-1], 0, 1).astype(np.float32)


def to_classes(heatmap: np.ndarray, thresholds: tuple[float, ...] | None = None) -> np.ndarray:
    """Class map by thresholds: class k from the k-th threshold on.

    Args:
        heatmap: float array, 0..1.
        thresholds: Where the classes above the first begin, ascending; those of the task by
            default.

    Returns:
        uint8 array of the same shape, 0..n-1.

    Raises:
        ValueError: If the thresholds do not ascend or are not as many.

    Source: Kwok 2018, section 4.6.
    """
    thresholds = task().thresholds if thresholds is None else thresholds
    if len(thresholds) != task().count - 1 or sorted(thresholds) != list(thresholds):
        raise ValueError(
            f"There must be {task().count - 1} ascending thresholds. Received: {thresholds}."
        )
    # Compared as float32, like the heatmap: 0.35 is then exactly a threshold.
    return np.searchsorted(
        np.asarray(thresholds, np.float32), heatmap.astype(np.float32), side="right"
    ).astype(np.uint8)


def cells_to_map(
    values: np.ndarray, step: float, downsample: float, shape: tuple[int, int]
) -> np.ndarray:
    """Spread values of cells over the pixels of a map of the slide.

    Args:
        values: Array `(rows, cols, ...)`, one value a cell.
        step: Side of a cell in level-0 px.
        downsample: Level-0 px per px of the map.
        shape: Height and width of the map.

    Returns:
        Array `(height, width, ...)`: the value of the cell that a pixel's centre
        lies in.
    """
    row, col = (
        np.minimum(((np.arange(n) + 0.5) * downsample / step).astype(int), values.shape[axis] - 1)
        for axis, n in enumerate(shape)
    )
    return values[row[:, None], col[None, :]]


def areas_mm2(class_map: np.ndarray, maps: SlideMaps) -> dict[str, float]:
    """Area of each class in mm2; Normal counts only where there is tissue.

    Args:
        class_map: uint8 `(rows, cols)`, 0..n-1.
        maps: The slide's maps, of the same size.
    """
    pixel = (maps.downsample * maps.mpp / 1000) ** 2
    areas = {name: float((class_map == i).sum() * pixel) for i, name in enumerate(task().classes)}
    areas[task().classes[BACKGROUND]] = float(
        ((class_map == BACKGROUND) & maps.tissue).sum() * pixel
    )
    return areas


class HeatmapMaker:
    """Makes the heatmaps of slides, each by the models that were not trained on it.

    Args:
        folder: Run folder to write to.
        predictor: The models; their step is the side of a cell.
        args: Options of the script.
    """

    def __init__(self, folder: Path, predictor: "Predictor", args: MapScript):
        self._folder, self._predictor, self._args = folder, predictor, args

    def make(
        self, path: str, part: str, name: str | None = None, mpp: float | None = None
    ) -> SlideRecord:
        """Make and write everything of one slide, or read it if nothing has changed since.

        Args:
            path: The slide.
            part: Part of the challenge data that it belongs to, or "".
            name: What its results are called; None for the name of the file.
            mpp: um per level-0 px; None for `--mpp`, or what the file says.

        Raises:
            InputError: If slide, annotation or mask cannot be read.
            NotDone: If it is to be read, with `--collect`, and is not there.
        """
        name, mpp = name or Path(path).stem, mpp or self._args.mpp
        # By its file too: another name does not make a slide unseen.
        heard = [self._predictor.unseen_by(known) for known in {name, Path(path).stem}]
        unseen = [fold for fold in heard[0] if all(fold in folds for folds in heard)]
        folds = unseen or self._predictor.folds
        models = {str(fold): self._predictor.digests[str(fold)] for fold in folds}
        settings = {**tasks.decisive(self._args), "mpp": mpp, "models": models}
        args = self._args
        key = fingerprint(map_files(path, args.masks, args.class_map, name), settings)
        file = record_file(self._folder, name)
        before = finished_before(file, key)
        if before is not None:
            return before
        if args.collect:
            raise NotDone(name)
        start = time.monotonic()
        with step(name) as notes, Slide(path, mpp=mpp, name=name) as slide:
            maps = slide_maps(
                slide,
                args.masks,
                args.exclude_pen,
                args.class_map,
                rule=args.tissue,
                not_brightfield=args.not_brightfield,
            )
            table = heatmap_patches(maps, self._predictor.step_um)
            cell = self._predictor.step_um / slide.mpp
            probs = stitch(
                table,
                self._predictor.predict(slide, table, folds),
                grid_shape(slide.width, slide.height, cell),
            )
            record = SlideRecord(
                image_id=name,
                path=str(path),
                part=part,
                width=maps.width,
                height=maps.height,
                mpp=maps.mpp,
                mpp_source=slide.mpp_source,
                step=cell,
                downsample=maps.downsample,
                patches=len(table),
                models=tuple(map(str, folds)),
                fold=folds[0] if len(folds) == 1 and len(self._predictor.folds) > 1 else None,
                in_sample=not unseen,
                areas_mm2={},
                annotation=maps.annotation,
                warnings=maps.warnings,
                key=key,
            )
            record = write_maps(self._folder, maps, probs, record, args)
            notes.append(
                f"{slide.width}x{slide.height} px at {slide.mpp:.3f} um ({slide.mpp_source})"
            )
            notes.append(f"{maps.tissue.mean():.0%} tissue, {len(table):,} patches")
        record = dataclasses.replace(record, seconds=time.monotonic() - start)
        write_slide(file, record)
        return record


def record_file(folder: Path, name: str) -> Path:
    """Where a run keeps the record of a slide."""
    return folder / "slides" / f"{name}.json"


def finished_before(file: Path, key: Mapping[str, str]) -> SlideRecord | None:
    """The record of a slide if it was made of just the same, None if it is to be made.

    Raises:
        InputError: If the record is damaged.
    """
    if not file.exists():
        return None
    record = read_slide(file)
    if record.key == key:
        log.info("%s: finished before", file.stem)
        return record
    log.info("%s: the slide or what its heatmap depends on has changed; done again", file.stem)
    return None


def write_maps(
    folder: Path, maps: SlideMaps, probs: np.ndarray, record: SlideRecord, rule: MapRule
) -> SlideRecord:
    """Write arrays, maps and the picture of a slide, all but its record.

    Args:
        folder: Run folder to write to.
        maps: The slide's maps.
        probs: Probabilities of its cells, float32 `(rows, cols, classes)`, nan where not predicted.
        record: What is known about the slide before classes are decided.
        rule: How they are.

    Returns:
        The record with areas and scores.
    """

    def path(kind: str, suffix: str) -> Path:
        return folder / kind / (maps.name + suffix)

    heatmap = to_heatmap(probs)
    class_map = cells_to_map(
        rule.decide(probs, heatmap), record.step, maps.downsample, maps.tissue.shape
    )
    if rule.clip_to_tissue:
        class_map = clip_to_tissue(class_map, maps)
    write_array(path("heatmaps", ".npy"), heatmap)
    write_array(path("probs", ".npy"), probs)
    write_class_map(path("class_maps", ".png"), class_map)
    if maps.labels is not None:
        write_class_map(path("truth", ".png"), maps.labels)
    write_gray(path("tissue", ".png"), maps.tissue.astype(np.uint8) * 255)
    record = dataclasses.replace(
        record, areas_mm2=areas_mm2(class_map, maps), **slide_scores(class_map, maps)
    )
    write_png(path("overlays", ".png"), draw_maps(maps, class_map, probs, record))
    return record


def clip_to_tissue(class_map: np.ndarray, maps: SlideMaps) -> np.ndarray:
    """A class map that is Normal off tissue."""
    return np.where(maps.tissue, class_map, np.uint8(BACKGROUND))


def draw_maps(
    maps: SlideMaps, class_map: np.ndarray, probs: np.ndarray, record: SlideRecord
) -> np.ndarray:
    """Class map, truth if there is one, and heatmap of a slide beside each other.

    Patches with 5% of tissue are predicted, and with them cells that are mostly glass. The
    class map has them, as in the paper, but glass is not coloured in any panel; the truth
    has its outlines there.

    Args:
        maps: The slide's maps; their warnings stand above.
        class_map: uint8 `(rows, cols)`, 0..n-1.
        probs: Probabilities of the cells.
        record: The slide's record, whose scores and areas are written on the picture.

    Returns:
        uint8 picture, 800 to 3,000 px on its long side.
    """

    def drawn(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return resized(maps.thumbnail, shape), resized(maps.tissue, shape)

    def classes(shape: tuple[int, int]) -> np.ndarray:
        thumbnail, tissue = drawn(shape)
        colored = color_classes(thumbnail, resized(class_map, shape), task().colors, where=tissue)
        return np.where(tissue[..., None], colored, thumbnail)

    def heat(shape: tuple[int, int]) -> np.ndarray:
        thumbnail, tissue = drawn(shape)
        downsample = maps.downsample * max(maps.tissue.shape) / max(shape)
        where = np.isfinite(probs).all(axis=-1)
        heatmap, there = (
            cells_to_map(values, record.step, downsample, shape)
            for values in (to_heatmap(probs), where)
        )
        return color_heat(thumbnail, heatmap, tissue & there)

    panels = [Panel("class map", classes)]
    if (labels := maps.labels) is not None:

        def truth(shape: tuple[int, int]) -> np.ndarray:
            thumbnail, tissue = drawn(shape)
            return color_classes(thumbnail, resized(labels, shape), task().colors, where=tissue)

        panels.append(Panel("truth", truth))
    panels.append(Panel("heatmap", heat))

    def keys(size: int) -> list[np.ndarray]:
        colors = [
            swatch(*pair, size) for pair in zip(task().classes[1:], task().colors[1:], strict=True)
        ]
        clear = swatch(f"{task().classes[BACKGROUND]}: clear", (255, 255, 255), size)
        gray = swatch("no tissue", NO_HEAT, size)
        return [*colors, clear, color_bar("heatmap", size), gray]

    words = Words(maps.name, _notes(record), maps.warnings, keys)
    return plate(panels, maps.tissue.shape, maps.downsample * maps.mpp, words)


def _notes(record: SlideRecord) -> list[str]:
    """What a picture says of a slide: its scores, if it is annotated, and its areas."""
    areas = ", ".join(
        f"{name} {record.areas_mm2[name]:.2f} mm\N{SUPERSCRIPT TWO}" for name in task().classes
    )
    if record.counts is None:
        return [f"not annotated; {areas}"]
    note = "; IN SAMPLE: a model was trained on it" if record.in_sample else ""
    return [_line("", vars(record)).strip() + note, areas]


def slide_scores(class_map: np.ndarray, maps: SlideMaps) -> dict[str, Any]:
    """Part B score of a slide, on tissue only too, and those of one answer alone.

    Args:
        class_map: uint8 `(rows, cols)`, 0..n-1.
        maps: The slide's maps, of the same size.

    Returns:
        The fields of `SlideRecord` for them; empty without annotation. A score that is
        undefined is None.
    """
    if maps.labels is None:
        return {}
    counts = joint_counts(class_map, maps.labels)
    on_tissue = joint_counts(class_map, maps.labels, maps.tissue)
    scores = {
        "score": score_from_counts(counts),
        "score_tissue": score_from_counts(on_tissue),
        "baseline": score_from_counts(always(counts)),
        "baseline_tissue": score_from_counts(always(on_tissue)),
    }
    return {k: None if np.isnan(v) else v for k, v in scores.items()} | {"counts": counts}


def summarise(
    records: Sequence[SlideRecord], failures: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """Write slides.csv, print the scores, and return the metrics of a run.

    Args:
        records: The slides that were made.
        failures: Why others were not, by their name.
        folder: The run folder.
    """
    columns = ("image_id", "part", "width", "height", "mpp", "patches", "fold")
    rows = [
        {name: getattr(record, name) for name in columns}
        | {"models": " ".join(record.models), "in_sample": record.in_sample}
        | {f"{name.lower()}_mm2": round(record.areas_mm2[name], 4) for name in task().classes}
        | {name: getattr(record, name) for name in SCORES}
        | {"warnings": "; ".join(record.warnings)}
        for record in records
    ]
    write_csv(pd.DataFrame(rows), folder / "slides.csv")
    metrics: dict = {"slides": len(records), "failed": sorted(failures)}
    metrics["warnings"] = {r.image_id: list(r.warnings) for r in records if r.warnings}
    scored = [record for record in records if record.counts is not None]
    honest = [record for record in scored if not record.in_sample]
    for record in scored:
        note = "  in sample: a model was trained on it" if record.in_sample else ""
        print(_line(record.image_id, vars(record)) + note)
    if honest:
        for name in SCORES:
            # None (both maps Normal everywhere): the slide says nothing and is left out.
            values = [getattr(r, name) for r in honest if getattr(r, name) is not None]
            metrics[name] = float(np.mean(values)) if values else None
        counts = [record.counts for record in honest if record.counts is not None]
        metrics["score_pooled"] = score_from_counts(np.sum(counts, axis=0))
        metrics["score_interval"] = interval = score_interval(counts)
        metrics["per_slide"] = {record.image_id: record.score for record in honest}
        pooled = number(metrics["score_pooled"], 4, "undefined")
        print(_line(f"mean of {len(honest)}", metrics) + f"; pooled {pooled}")
        print(f"score {format_interval(interval, 3)}")
    if len(honest) < len(scored):
        metrics["in_sample"] = {r.image_id: r.score for r in scored if r.in_sample}
    return metrics


def _line(name: str, scores: dict) -> str:
    score, tissue, always = (
        number(scores[key], 4, "undefined") for key in ("score", "score_tissue", "baseline")
    )
    return f"{name:20} score {score}, tissue only {tissue}, {task().always.lower()} {always}"


# The tool: class maps anew from a finished run


@dataclasses.dataclass(frozen=True)
class Options(MapRule):
    """Options of python -m bach.heatmap."""

    source: str = option("", "finished run folder of make_heatmap.py", name="RUN", path=True)
    run_dir: str = option(
        "", "new folder to write to", name="--out", path=True, where=True, metavar="NEW_RUN"
    )
    slides_dir: str | None = option(
        None,
        "folder of the slides, if they do not lie where they were any more; only the background "
        "of pictures is read from them",
        path=True,
        where=True,
    )
    resume: bool = again(options.Shared, "resume", False)


class Source(NamedTuple):
    """A finished run of make_heatmap.py, or one that was made from such a run.

    Attributes:
        run: The run folder.
        record: Its `run.json`.
        metrics: Its `metrics.json`.
        slides: The records of its slides, in the order of `slides.csv`.
        failures: Why other slides have none, by their name.
    """

    run: Path
    record: dict[str, Any]
    metrics: dict[str, Any]
    slides: dict[str, SlideRecord]
    failures: dict[str, str]

    def story(self) -> dict[str, Any]:
        """What the record of a run says that was made from this one."""
        told = ("command", "folder", "commit", "dirty", "backend", "precision", "time", "made_from")
        found = {name: self.record[name] for name in told if name in self.record}
        model_dir = self.record.get("arguments", {}).get("model_dir")
        if isinstance(model_dir, str):
            found["model_dir"] = os.path.abspath(Path(found.get("folder") or ".", model_dir))
        models = sorted({str(model) for slide in self.slides.values() for model in slide.models})
        return {"run": os.path.abspath(self.run), **found, "models": models}


_AGAIN = "Name a finished run of make_heatmap.py, or make these heatmaps again."


def read_source(run: str | os.PathLike) -> Source:
    """Read a finished run of make_heatmap.py, and see that its files fit each other.

    Raises:
        InputError: If there is none, it is not finished, or files are missing, damaged or of
            another kind; all of them are named.
    """
    run = Path(run)
    record, metrics = read_record(run), read_metrics(run)
    if record is None or metrics is None or not (run / "slides.csv").is_file():
        missing = [n for n in ("run.json", "metrics.json", "slides.csv") if not (run / n).is_file()]
        raise InputError(
            "Class maps can be made anew from a finished run of make_heatmap.py.\n"
            f"Received: {run} without {listed(missing)}.\n"
            "If the run was interrupted, finish it: the same command with --resume."
        )
    names = read_table(run / "slides.csv", ["image_id"])["image_id"].tolist()
    slides = read_slides(run)
    own = {name for name, one in slides.items() if (one.image_id, type(one.path)) == (name, str)}
    faults = [f"{name}: no record of it in {run / 'slides'}" for name in names if name not in own]
    slides = {name: slides[name] for name in names if name in own}
    for name, slide in slides.items():
        try:
            read_maps(run, slide)
        except InputError as error:
            faults.append(f"{name}: {' '.join(str(error).split())}")
    if faults or not slides:
        raise InputError(
            f"{run} must hold probabilities, tissue and truth of every slide.\nReceived:\n  "
            + "\n  ".join(faults or ["no slide"])
            + f"\n{_AGAIN}"
        )
    failed = {name: f"failed in {run}" for name in map(str, metrics.get("failed") or ())}
    file = run / "failures.json"
    told = read_object(file, _AGAIN) if file.is_file() else {}
    failures = {name: str(told.get(name, why)) for name, why in failed.items()}
    return Source(run, record, metrics, slides, failures)


def read_maps(run: Path, record: SlideRecord) -> tuple[np.ndarray, SlideMaps]:
    """The probabilities of a slide's cells and its maps, without thumbnail, from a run.

    Raises:
        InputError: If a file is missing or damaged, or does not fit the slide's record.
    """
    name = record.image_id
    probs = read_array(run / "probs" / f"{name}.npy", _AGAIN, 3)
    tissue = read_mask(run / "tissue" / f"{name}.png", _AGAIN)
    labels = None
    if record.counts is not None:
        labels = read_class_map(run / "truth" / f"{name}.png")
    try:
        cells = grid_shape(record.width, record.height, record.step)
        if probs.shape != (*cells, task().count) or probs.dtype != np.float32:
            raise ValueError(f"probs of shape {probs.shape} and type {probs.dtype}, not of {cells}")
        known = probs[np.isfinite(probs).all(axis=-1)]
        bad = np.isnan(probs).any(axis=-1).sum() + len(known) != np.prod(cells)
        if bad or (len(known) and (known.min() < -1e-3 or known.max() > 1 + 1e-3)):
            raise ValueError("probs that are not in 0..1")
        # A map's size is rounded one way or another, so it is known to a pixel.
        size = record.height / record.downsample, record.width / record.downsample
        if any(abs(want - have) >= 2 for want, have in zip(size, tissue.shape, strict=True)):
            raise ValueError(f"tissue of shape {tissue.shape} where {size} pixels are expected")
        if labels is not None and labels.shape != tissue.shape:
            raise ValueError(f"truth of shape {labels.shape} and tissue of {tissue.shape}")
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(
            f"The files of {name} must fit its record.\nReceived: {error}.\n{_AGAIN}"
        ) from error
    maps = SlideMaps(
        *(name, record.width, record.height, record.mpp, record.downsample, tissue, labels),
        annotation=record.annotation,
        warnings=record.warnings,
    )
    return probs, maps


def with_background(maps: SlideMaps, slide: Path | None) -> SlideMaps:
    """The maps of a slide with its thumbnail, or with tissue in gray and a note why.

    Args:
        maps: The slide's maps, without thumbnail.
        slide: The slide's file, if it was found.
    """
    why = "it was not found; name its folder with --slides-dir"
    if slide is not None:
        try:
            with Slide(slide, mpp=maps.mpp) as opened:
                if (opened.width, opened.height) != (maps.width, maps.height):
                    why = f"{slide} has {opened.width}x{opened.height} px and is another one"
                else:
                    thumbnail = opened.thumbnail(maps.downsample * maps.mpp)
                    if thumbnail.shape[:2] == maps.tissue.shape:
                        return maps._replace(thumbnail=thumbnail)
                    why = f"{slide} is shown at another size"
        except InputError as error:
            why = " ".join(str(error).split("\n")[:2])
    log.warning("%s: the picture is without the slide: %s", maps.name, why)
    gray = np.where(maps.tissue, np.uint8(205), np.uint8(245))
    note = f"drawn without the slide: {why}"
    return maps._replace(thumbnail=np.dstack([gray] * 3), warnings=(*maps.warnings, note))


def make_anew(source: Source, record: SlideRecord, args: Options) -> SlideRecord:
    """Make and write everything of a slide from its probabilities, or read it if it is there.

    Args:
        source: The run that has the probabilities.
        record: The slide's record there.
        args: Options of the command.
    """
    start, name, folder = time.monotonic(), record.image_id, Path(args.run_dir)
    slide = slide_file(source.run, record, args.slides_dir)
    files = {
        "record": record_file(source.run, name),
        "probs": source.run / "probs" / f"{name}.npy",
        "tissue": source.run / "tissue" / f"{name}.png",
        "truth": None if record.counts is None else source.run / "truth" / f"{name}.png",
    }
    key = fingerprint(files, {**tasks.decisive(args), "background": slide is not None})
    before = finished_before(record_file(folder, name), key)
    if before is not None:
        return before
    with step(name) as notes:
        probs, maps = read_maps(source.run, record)
        maps = with_background(maps, slide)
        made = write_maps(folder, maps, probs, dataclasses.replace(record, key=key), args)
        notes.append(f"{np.isfinite(probs).all(axis=-1).sum():,} cells")
    made = dataclasses.replace(made, seconds=time.monotonic() - start)
    write_slide(record_file(folder, name), made)
    return made


def parse_args(argv: Sequence[str] | None = None) -> Options:
    args = tasks.parse(Options, argv, __doc__, "python -m bach.heatmap")
    if os.path.realpath(args.source) == os.path.realpath(args.run_dir):
        raise InputError(
            "The new run must have a folder of its own.\n"
            f"Received: --out={args.run_dir}, the run that it is made from.\nName another folder."
        )
    if args.slides_dir is not None and not Path(args.slides_dir).is_dir():
        raise InputError(
            "There must be a folder of slides.\n"
            f"Received: --slides-dir={args.slides_dir}, which is none.\nCheck the name."
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    run = Run(args)
    if run.finished:
        print(run.path)
        return 0

    # 1. The run with the probabilities; nothing is written if a file of it does not fit.
    source = read_source(args.source)
    unsure = {key: source.metrics[key] for key in ("model_warnings",) if key in source.metrics}
    with run.start(made_from=source.story(), **task().record):
        # 2. Slide by slide.
        records = [make_anew(source, record, args) for record in source.slides.values()]
        write_json(run.path / "failures.json", source.failures)

        # 3. Scores over slides.
        run.finish(summarise(records, source.failures, run.path) | unsure)
    if source.failures:
        count = len(source.failures) + len(records)
        print(f"complete but for {len(source.failures)} of {count} slides, which failed in")
        print(
            f"{source.run}: {listed(source.failures)}; mend them there, then use --resume here too"
        )
    print(run.path)
    return 1 if source.failures else 0


if __name__ == "__main__":
    exit_with(main)
