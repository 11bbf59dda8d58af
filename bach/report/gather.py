"""What a run folder has to say on a page: figures, tables and pictures.

What is shown depends on what the folder holds, not on who wrote it, so that runs that ended
half way, and those of earlier versions, have a page too.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from bach import charts
from bach.calibration import expected_calibration_error, reliability
from bach.core.errors import InputError
from bach.core.files import atomic_path, read_array, read_object
from bach.core.pictures import jpeg, read_rgb
from bach.core.run import patch_folder, read_metrics, read_record
from bach.core.tables import read_table, require_columns
from bach.core.text import duration, listed, number
from bach.data import photos_of, read_photo
from bach.honest.comparison import compare, titles
from bach.honest.intervals import format_interval
from bach.honest.records import SlideRecord, read_slides
from bach.mining import add_difficulty, one_per_place
from bach.patches import read_patches
from bach.report import mistakes
from bach.tasks import task

_STEPS = {
    "train_part_a.py": "Step 1, patch classifiers",
    "mine_hard_examples.py": "Step 2, hard examples",
    "train_final.py": "Step 3, final classifier",
    "make_heatmap.py": "Step 4, heatmaps",
    "heatmap.py": "Step 4, class maps decided anew",
}
_SHOWN = 24  # mistakes and hard examples with a picture
_WORST_PATCHES = 3  # of a mistake
_PATCH_SIDE = 149  # px of a patch on a page
_AGAIN = "Finish the run with --resume."


class Cell(NamedTuple):
    """A cell of a table: text, where it leads, and how dark it is, 0..1."""

    text: str
    href: str | None = None
    shade: float | None = None


class Table(NamedTuple):
    """A table of a page; the first cell of a row is its name."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heading: str = ""
    text: str = ""
    style: str = ""
    legend: bool = False


class Picture(NamedTuple):
    """A picture of a page: file, what it shows in words, caption, where it leads."""

    src: str
    alt: str
    text: str
    href: str | None = None


class Pictures(NamedTuple):
    """Pictures of a page, side by side."""

    pictures: Sequence[Picture]
    heading: str = ""
    text: str = ""
    style: str = ""
    legend: bool = False


class Figure(NamedTuple):
    """A figure that stands out: its name, value, and interval."""

    name: str
    value: str
    text: str


class Gathered(NamedTuple):
    """What a page says of a run; see `templates/index.html`."""

    name: str
    title: str
    anchor: str
    status: str
    finished: bool
    figures: Sequence[Figure]
    notes: Sequence[str]
    blocks: Sequence[Table | Pictures]
    card: Sequence[tuple[str, str]]


class Source(NamedTuple):
    """A run that a report is of.

    Attributes:
        run: The run folder.
        anchor: Its place on the page, and the beginning of its pictures' names.
        data_dir: Folder of the challenge data; None for that of the run.
        previous: Run to compare it with, or None.
        page: Where the page of a slide lies, None if it has none.
    """

    run: Path
    anchor: str
    data_dir: Path | None
    previous: Path | None
    page: Callable[[str], str | None]

    def argument(self, name: str) -> Any:
        record = read_record(self.run) or {}
        return (record.get("arguments") or {}).get(name)

    def place(self, name: str) -> Path | None:
        """A path among the arguments of the run, from where it was started."""
        value, record = self.argument(name), read_record(self.run) or {}
        return None if value is None else Path(record.get("folder", "."), value)

    def data(self) -> Path | None:
        return self.data_dir or self.place("data_dir")


def gather(source: Source, out: Path) -> Gathered:
    """Gather what a run says, and draw its pictures.

    Args:
        source: The run.
        out: Folder of the report; pictures go to `pictures/`.

    Raises:
        InputError: If a file of the run is damaged.
    """
    record = read_record(source.run) or {}
    stored = read_metrics(source.run)
    metrics = stored or {}
    script = str(record.get("command", "")).split(" ")[0]
    notes: list[str] = []
    if isinstance(metrics.get("hard_examples"), int):
        notes.append("Hard examples are hard by choice: how many are right estimates nothing.")
    blocks = [
        *_warnings(source.run, metrics),
        *_compared(source),
        *_slides(source, out),
        *_folds(metrics),
        *_confusion(metrics),
        *_curves(source, out),
        *_mistakes(source, out, notes),
        *_hard_examples(source, out, notes),
    ]
    return Gathered(
        name=source.run.resolve().name,
        title=_STEPS.get(script, "Run"),
        anchor=source.anchor,
        status=str(record.get("status", "no run.json")) + ("" if stored else ", without metrics"),
        finished=stored is not None and not metrics.get("failed"),
        figures=_figures(metrics),
        notes=notes,
        blocks=blocks,
        card=list(_card(source.run, record)),
    )


# The run


def _card(run: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How a run was made."""
    arguments = record.get("arguments") or {}
    changed = {True: ", with changes", None: ", unknown whether changed"}
    commit = record.get("commit")
    yield "folder", str(run)
    if "command" in record:
        yield "command", f"python {record['command']}"
    yield "commit", f"{commit}{changed.get(record.get('dirty'), '')}" if commit else "unknown"
    for name, key in (("data", "data_dir"), ("folds", "folds"), ("models", "model_dir")):
        if arguments.get(key):
            yield name, str(arguments[key])
    if "seed" in arguments:
        yield "seed", str(arguments["seed"])
    if record.get("backend"):
        yield (
            "device",
            "{devices} {device} ({backend}, {precision})".format_map(
                {key: record.get(key, "?") for key in ("devices", "device", "backend", "precision")}
            ),
        )
    yield from _times(record)
    yield "versions", ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items())


def _times(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """When a run was begun, and how long its starts took together."""
    starts = record.get("starts") or [record]
    seconds = 0.0
    for start in starts:
        try:
            begun, ended = (
                datetime.datetime.fromisoformat(start[key]) for key in ("begun", "time")
            )
        except (KeyError, TypeError, ValueError):
            continue
        seconds += (ended - begun).total_seconds()
    if starts[0].get("begun"):
        yield "begun", str(starts[0]["begun"])
    if seconds:
        times = f" in {len(starts)} starts" if len(starts) > 1 else ""
        yield "time", duration(seconds) + times


def _figures(metrics: Mapping[str, Any]) -> list[Figure]:
    figures = []
    names = (
        *(("accuracy", f"{task().in_words} classes"), ("binary_accuracy", task().split_name)),
        *(("patch_accuracy", "share of patches right"), ("score", "Part B score")),
        *(("score_tissue", "score on tissue"), ("baseline", task().always)),
        *(("patches", "patches"), ("slides", "slides")),
    )
    for key, name in names:
        value = metrics.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        interval = metrics.get(f"{key}_interval")
        text = format_interval(interval, 3) if isinstance(interval, dict) else ""
        text = text.partition(" ")[2]  # the value stands above
        shown = f"{value:,}" if isinstance(value, int) else number(value)
        figures.append(Figure(name, shown, text))
    return figures


def _warnings(run: Path, metrics: Mapping[str, Any]) -> Iterator[Table]:
    """What failed first, then what is odd."""
    file = run / "failures.json"
    failed = read_object(file, "Delete it.") if file.exists() else {}
    rows = [(name, "failed", str(text)) for name, text in failed.items()]
    warnings = metrics.get("warnings") or {}
    if isinstance(warnings, dict):
        rows += [(name, "odd", "; ".join(map(str, lines))) for name, lines in warnings.items()]
    else:
        rows += [("all", "odd", str(line)) for line in warnings]
    rows += [("models", "odd", str(line)) for line in metrics.get("model_warnings") or ()]
    if rows:
        yield Table(
            f"{len(failed)} failed, {len(rows) - len(failed)} with warnings",
            ("what", "", "why"),
            [[Cell(text) for text in row] for row in rows],
            heading="What failed, and what is odd",
            style="text",
        )


def _compared(source: Source) -> Iterator[Table]:
    """Whether the run is better than the one before."""
    if source.previous is None:
        return
    result = compare(source.run, source.previous)
    figures = {result["metric"]: result, **result["guides"]}
    rows = [
        [
            Cell(titles()[name]),
            Cell(number(row["a"])),
            Cell(number(row["b"])),
            Cell(format_interval(row["difference"], 3)),
        ]
        for name, row in figures.items()
    ]
    what = "images" if result["part"] == "A" else "slides"
    joined = "from" if result["verdict"] == "not distinguishable" else "than"
    yield Table(
        f"On {result['common']} {what} that both predicted",
        ("figure", "this run", "before", "difference"),
        rows,
        heading=f"This run is {result['verdict']} {joined} {source.previous.resolve().name}",
    )


def _folds(metrics: Mapping[str, Any]) -> Iterator[Table]:
    per_fold = metrics.get("per_fold") or {}
    rows = [
        [
            Cell(f"fold {fold}"),
            *(Cell(number(found.get(key))) for key in titles()),
            Cell(str(found.get("images", ""))),
        ]
        for fold, found in per_fold.items()
        if isinstance(found, dict)
    ]
    if rows:
        shown = [key for key in titles() if any(key in one for one in per_fold.values())]
        keep = [0, *(1 + list(titles()).index(key) for key in shown), len(rows[0]) - 1]
        header = ["fold", *(titles()[key] for key in shown), "images"]
        yield Table(
            "Every fold by the model that has not seen it",
            header,
            [[row[k] for k in keep] for row in rows],
        )


def _confusion(metrics: Mapping[str, Any]) -> Iterator[Table]:
    counts = np.array(metrics.get("confusion") or [])
    if counts.shape != (task().count, task().count):
        return
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        [
            Cell(name),
            *(
                Cell(f"{n} ({share:.0%})", shade=float(share))
                for n, share in zip(*row, strict=True)
            ),
        ]
        for name, *row in zip(task().classes, counts, shares, strict=True)
    ]
    yield Table(
        "Rows: the true class; columns: what it was taken for",
        ["true", *task().classes],
        rows,
        heading="Confusion",
    )


# Charts


def _save(figure: Any, out: Path, name: str) -> str:
    """Write a chart as SVG; where it lies from the page."""
    place = out / "pictures" / f"{name}.svg"
    with atomic_path(place) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    return f"pictures/{name}.svg"


def _curves(source: Source, out: Path) -> Iterator[Pictures]:
    """The course of every fold's training, of more than one epoch."""
    found = []
    for file in sorted(source.run.glob("fold_*/history.csv")):
        history = read_table(file, ("epoch", "loss"))
        if len(history) < 2:
            continue
        fold = file.parent.name.removeprefix("fold_")
        keep, monitor = source.argument("keep") or "last", source.argument("monitor")
        mode = source.argument("monitor_mode") or "auto"
        kept = charts.kept_epoch(history, keep, monitor or "heldout_loss", mode)
        figure = charts.history_figure(history, kept, f"fold {fold}")
        src = _save(figure, out, f"{source.anchor}_fold_{fold}")
        last = history.iloc[-1]
        told = [
            f"{n.replace('_', ' ')} {last[n]}" for n in history if n.endswith(("loss", "accuracy"))
        ]
        alt = f"Loss and accuracy of fold {fold} over {len(history)} epochs; "
        alt += f"at the last: {', '.join(told)}."
        found.append(Picture(src, alt, f"fold {fold}, {len(history)} epochs, kept: {kept}"))
    if found:
        yield Pictures(found, heading="Training", style="large")


# Mistakes


def _mistakes(source: Source, out: Path, notes: list[str]) -> Iterator[Table | Pictures]:
    """Reliability and mistakes of a run with out-of-fold predictions."""
    if not (source.run / "patch_predictions.csv").exists():
        return
    images, patches = mistakes.read_run(source.run)
    probs, labels = images[list(task().columns)].to_numpy(), images["label"].to_numpy()
    table = reliability(probs, labels)
    error = expected_calibration_error(probs, labels)
    figure = charts.reliability_figure({f"ECE {error:.3f}": table})
    src = _save(figure, out, f"{source.anchor}_reliability")
    bins = [
        f"{one.confidence:.2f} sure, {one.accuracy:.2f} right"
        for one in table.itertuples()
        if one.count
    ]
    text = f"{len(images)} images out of fold, calibration error {error:.3f}"
    yield Pictures(
        [Picture(src, f"{text}. Bins: {'; '.join(bins)}.", text)],
        heading="Reliability",
        style="large",
    )

    wrong = mistakes.mistakes(images, patches)
    shown = wrong.head(_SHOWN)
    photos = _photos(source, shown, notes)
    groups = dict(list(patches.groupby("image_id")))
    pictures = []
    for index, row in enumerate(shown.itertuples()):
        if row.image_id not in photos:
            continue
        photo = read_photo(*photos[row.image_id])
        sheet = _with_patches(photo, groups[row.image_id])
        src = f"pictures/{source.anchor}_mistake_{index}.jpg"
        _write_jpeg(out / src, sheet)
        told = (
            f"{row.image_id}: {task().classes[row.label]} taken for {task().classes[row.predicted]}"
        )
        who = f"patient {row.patient}" if row.patient else "patient unknown"
        text = f"{told}, difficulty {row.difficulty:.2f}, {who}, fold {row.fold}; "
        text += f"{row.patches_wrong} of {row.patches} patches wrong"
        pictures.append(Picture(src, f"Photo {told}, and its worst patches.", text))
    heading = f"{len(wrong)} of {len(images)} images wrong out of fold"
    if pictures:
        yield Pictures(
            pictures,
            heading=heading,
            text="Worst first. Below each photo the mean probabilities, those of each patch as the "
            f"patches lie, and its {_WORST_PATCHES} worst patches.",
            legend=True,
        )
        heading = ""
    if len(wrong):
        rows = [[Cell(str(value)) for value in row] for row in _as_text(wrong)]
        header = ("image", "patient", "fold", "true", "predicted", "difficulty", "patches wrong")
        yield Table(f"All {len(wrong)} mistakes, worst first", header, rows, heading=heading)


def _as_text(wrong: pd.DataFrame) -> Iterator[tuple]:
    for row in wrong.itertuples():
        called = task().classes[row.label], task().classes[row.predicted]
        yield (
            row.image_id,
            row.patient,
            row.fold,
            *called,
            f"{row.difficulty:.2f}",
            f"{row.patches_wrong} of {row.patches}",
        )


def _photos(source: Source, wrong: pd.DataFrame, notes: list[str]) -> dict[str, tuple]:
    """Path and scale of the photos of mistakes, as far as they are at hand."""
    try:
        found = photos_of(read_record(source.run) or {}, source.data())
    except InputError:
        found = {}
    missing = [name for name in wrong["image_id"] if name not in found]
    if missing:
        notes.append(
            f"The photos of {len(missing)} mistakes were not at hand ({listed(missing, 3)}): they "
            "are in the table only. Name the folder of the data with --data-dir."
        )
    return found


def _with_patches(photo: np.ndarray, patches: pd.DataFrame) -> np.ndarray:
    """A photo with its probabilities, and its worst patches below."""
    card = mistakes.card(photo, patches)
    if len(patches) == 1:  # the photo as a whole
        return card
    side = card.shape[1] // _WORST_PATCHES
    strip = np.full((side, card.shape[1], 3), 255, np.uint8)
    worst = patches.sort_values("difficulty", ascending=False, kind="stable").head(_WORST_PATCHES)
    for place, row in enumerate(worst.itertuples()):
        patch = photo[round(row.y) :, round(row.x) :][: task().patch_px, : task().patch_px]
        if patch.size:
            small = cv2.resize(patch, (side - 2, side - 2), interpolation=cv2.INTER_AREA)
            strip[1:-1, place * side + 1 : (place + 1) * side - 1] = small
    return np.concatenate([card, strip])


def _write_jpeg(path: Path, rgb: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(jpeg(rgb))


# Slides


def _slides(source: Source, out: Path) -> Iterator[Table | Pictures]:
    """The slides of a heatmap run, those with failures and warnings first."""
    records = heatmaps(source.run)
    if not records:
        return
    ordered = sorted(records.values(), key=lambda one: (not one.warnings, one.image_id))
    file = source.run / "failures.json"
    failed = read_object(file, "Delete it.") if file.exists() else {}
    rows = [[Cell(name), Cell("failed"), *[Cell("")] * (3 + task().count)] for name in failed]
    for one in ordered:
        state = "warning" if one.warnings else ("in sample" if one.in_sample else "")
        scores = (number(value) for value in (one.score, one.score_tissue, one.baseline))
        areas = (number(one.areas_mm2.get(name), 2) for name in task().classes)
        cells = [Cell(text) for text in (state, *scores, *areas)]
        rows.append([Cell(one.image_id, source.page(one.image_id)), *cells])
    header = [
        "slide",
        "",
        "score",
        "on tissue",
        task().always,
        *(f"{name} mm²" for name in task().classes),
    ]
    yield Table(f"{len(records)} slides, {len(failed)} failed", header, rows, heading="Slides")
    pictures: list[Picture] = []
    for one in ordered:
        overlay = source.run / "overlays" / f"{one.image_id}.png"
        if overlay.exists():
            src = f"pictures/{source.anchor}_{len(pictures)}.jpg"
            _write_jpeg(out / src, _small(overlay))
            pictures.append(
                Picture(
                    src,
                    f"Maps of {one.image_id}: {areas_in_words(one)}.",
                    one.image_id,
                    source.page(one.image_id),
                )
            )
    if pictures:
        yield Pictures(pictures)


def heatmaps(run: Path) -> dict[str, SlideRecord]:
    """The records of the slides that a run made heatmaps of; mining keeps others there."""
    return read_slides(run) if (run / "probs").is_dir() else {}


def areas_in_words(record: SlideRecord) -> str:
    """The areas of a slide in a sentence, for those who do not see its picture."""
    return ", ".join(f"{name} {number(area, 2)} mm²" for name, area in record.areas_mm2.items())


def _small(path: Path) -> np.ndarray:
    picture = read_rgb(path, _AGAIN)
    scale = min(1.0, 600 / picture.shape[1])
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


# Hard examples


def hard_examples(run: Path) -> pd.DataFrame:
    """The hard examples of a run, hardest first; empty where it has none."""
    file = run / "hard_examples.csv"
    if not file.exists():
        return pd.DataFrame(
            columns=[
                "image_id",
                "x",
                "y",
                "size",
                "label",
                "predicted",
                "difficulty",
                *task().columns,
            ]
        )
    table = read_patches(file)
    require_columns(table, task().columns, file)
    if table[list(task().columns)].isna().any(axis=None):
        raise InputError(
            f"Every hard example in {file} must have its probabilities.\n"
            f"Received: none in {listed(np.flatnonzero(table[task().columns[0]].isna()) + 1)}.\n"
            "Run mine_hard_examples.py again."
        )
    table = add_difficulty(table.drop(columns=["predicted", "difficulty"], errors="ignore"))
    return table.sort_values("difficulty", ascending=False, kind="stable")


def _hard_examples(source: Source, out: Path, notes: list[str]) -> Iterator[Table | Pictures]:
    table = hard_examples(source.run)
    if table.empty:
        return
    metrics = read_metrics(source.run) or {}
    counted = [(key.replace("_", " "), metrics.get(key)) for key in ("candidates", "hard_examples")]
    rows = [
        [Cell(name), *(Cell(f"{found.get(label, 0):,}") for label in task().classes)]
        for name, found in counted
        if isinstance(found, dict)
    ]
    if rows:
        yield Table("Patches of each class", ["", *task().classes], rows)
    worst = one_per_place(table, _SHOWN)
    pixels = _pixels(source.run, worst, notes)
    if not len(pixels):
        return
    pictures = []
    for place, row in enumerate(worst.itertuples()):
        src = f"pictures/{source.anchor}_example_{place}.jpg"
        _write_jpeg(
            out / src, cv2.resize(pixels[place], (_PATCH_SIDE,) * 2, interpolation=cv2.INTER_AREA)
        )
        told = f"{task().classes[int(row.label)]} taken for {task().classes[int(row.predicted)]}"
        page = source.page(row.image_id)
        anchor = f"{page}#x={round(row.x)},y={round(row.y)},w={round(row.size)}" if page else None
        text = f"{row.image_id} at {round(row.x)}, {round(row.y)}: {told}"
        text += f", difficulty {row.difficulty:.2f}"
        pictures.append(Picture(src, f"A patch of {row.image_id}, {told}.", text, anchor))
    yield Pictures(
        pictures,
        heading="Hard examples",
        text="The hardest, one per neighbourhood; each leads to its place on the slide.",
        style="small",
    )


def _pixels(run: Path, table: pd.DataFrame, notes: list[str]) -> np.ndarray:
    """Pixels of hard examples; none where the store of patches is not there."""
    folder = patch_folder(run)
    if not (folder / "patches.npy").exists():
        notes.append(f"The patches of {run} were not at hand: hard examples have no picture here.")
        return np.zeros((0, 0, 0, 3), np.uint8)
    stored = read_patches(folder / "patches.csv")
    keys = ["image_id", "y", "x"]
    stored = stored[keys].assign(row=range(len(stored)))
    rows = table[keys].merge(stored, on=keys, how="left")["row"]
    if rows.isna().any():
        notes.append(f"The patches of {run} are not those of its table: they are not shown.")
        return np.zeros((0, 0, 0, 3), np.uint8)
    return np.array(read_array(folder / "patches.npy", _AGAIN, 4, mapped=True)[rows.astype(int)])
