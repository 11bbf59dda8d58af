"""Is this run better than that one? And where do our runs stand beside published ones?

    python -m bach.runs compare runs/new runs/old
    python -m bach.runs table runs/part_a runs/heatmap > leaderboard.md

One target figure decides: the accuracy of Part A, or the score of Part B (mean over
slides). The others guide. `compare` asks the same images of both runs, so that what
is hard for both does not blur the difference; its last line on stdout is JSON.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bach.core.errors import InputError
from bach.core.log import log
from bach.honest.intervals import (
    FEW_UNITS,
    SAMPLES,
    accuracy_from_sums,
    accuracy_interval,
    accuracy_sums,
    bootstrap,
    format_interval,
    patient_units,
    score_from_sums,
    score_interval,
    slide_sums,
    unit_sums,
)
from bach.honest.records import SlideRecord, read_images, read_slides
from bach.scores import ACCURACIES, always

_KWOK = "Kwok 2018, ICIAR, LNCS 10882, pp. 931-940"
_BACH = "Aresta et al. 2019, arXiv:1808.04277"
_EVA = "eva leaderboard (kaiko-ai/eva), frozen features"
_CROSS = "3-fold cross-validation"
_SPLIT = "single 75/25 split, patches"
_HIDDEN_A = "hidden test, 100 images"
_HIDDEN_B = "hidden test, 10 slides"
_EVA_SPLIT = "patient-aware split of Part A"


def _published(part: str, name: str, measured_on: str, source: str, **figures: float) -> dict:
    return {"part": part, "name": name, "measured_on": measured_on, "source": source, **figures}


# Every published number that the leaderboard shows, with where it is from. The keys
# of the figures are those of `ACCURACIES`, and `score` for Part B (mean over slides
# as far as is known).
PUBLISHED = (
    _published("A", "winner, Inception-ResNet-v2", _HIDDEN_A, _BACH, accuracy=0.87),
    _published(
        "A", "winner, Inception-ResNet-v2", _CROSS, _KWOK, accuracy=0.79, binary_accuracy=0.91
    ),
    _published("A", "winner, Inception-v3", _SPLIT, _KWOK, accuracy=0.74, binary_accuracy=0.85),
    _published("A", "winner, Inception-v4", _SPLIT, _KWOK, accuracy=0.71, binary_accuracy=0.82),
    _published("A", "winner, VGG19", _SPLIT, _KWOK, accuracy=0.70, binary_accuracy=0.81),
    _published("A", "UNI2-h", _EVA_SPLIT, _EVA, balanced_accuracy=0.915),
    _published("A", "Midnight-12k", _EVA_SPLIT, _EVA, balanced_accuracy=0.904),
    _published("A", "Virchow2", _EVA_SPLIT, _EVA, balanced_accuracy=0.883),
    _published("A", "UNI", _EVA_SPLIT, _EVA, balanced_accuracy=0.785),
    _published("A", "Prov-GigaPath", _EVA_SPLIT, _EVA, balanced_accuracy=0.759),
    _published("A", "Phikon-v2", _EVA_SPLIT, _EVA, balanced_accuracy=0.732),
    _published("B", "winner", _HIDDEN_B, _BACH, score=0.6929),
    _published("B", "second place", _HIDDEN_B, _BACH, score=0.5527),
    _published("B", "third place", _HIDDEN_B, _BACH, score=0.5230),
    _published("B", "winner", "A01-A10, in sample (trained on them)", _KWOK, score=0.75),
    _published("B", "always Benign", "A01-A10", _KWOK, score=0.60),
)

# Score of always predicting Benign on each labelled slide, all pixels, original XML
# (Kwok 2018, paper and talk at PyCon HK): what a run must beat slide by slide.
ALWAYS_BENIGN = {
    "A01": 0.65, "A02": 0.60, "A03": 0.66, "A04": 0.44, "A05": 0.61,
    "A06": 0.61, "A07": 0.54, "A08": 0.66, "A09": 0.62, "A10": 0.62,
}  # fmt: skip

_TARGETS = {"A": "accuracy", "B": "score"}
_GUIDES = {"A": ("balanced_accuracy", "binary_accuracy"), "B": ("score_pooled",)}


# Reading runs


def _scored(run: str | os.PathLike) -> dict[str, SlideRecord]:
    """The records of a run's annotated slides."""
    return {name: slide for name, slide in read_slides(run).items() if slide.counts is not None}


def _parts(run: str | os.PathLike) -> list[str]:
    """The parts that a run has predictions of."""
    run = Path(run)
    parts = []
    if _holds_images(run / "predictions.csv"):
        parts.append("A")
    if (run / "slides").is_dir() and any((run / "slides").glob("*.json")):
        parts.append("B")
    if not parts:
        inside = sorted(path.name for path in run.iterdir()) if run.is_dir() else None
        contains = "no such folder" if inside is None else f"contains: {', '.join(inside) or '-'}"
        raise InputError(
            f"{run} must be a run with predictions.csv of images (Part A) or slides/*.json "
            "(Part B).\n"
            f"Received: {run} ({contains}).\n"
            "Name a run folder of train_part_a.py or make_heatmap.py; the hard examples that "
            "train_final.py holds out are no estimate of anything."
        )
    return parts


def _holds_images(path: Path) -> bool:
    """Whether there are predictions, of images and not of patches."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig") as lines:
        return not {"x", "y"} <= set(lines.readline().strip().split(","))


# Comparing two


def compare(
    run_a: str | os.PathLike,
    run_b: str | os.PathLike,
    patients: str | os.PathLike | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Compare two runs on the images, or slides, that both predicted.

    Patients (slides for Part B) are drawn anew and both runs are scored on the same
    draw: a paired bootstrap. Slides that a model was trained on are left out. Run A
    is "better" than run B if the interval of the difference lies above 0, "worse" if
    below, and else the two are "not distinguishable", which is no proof that they
    are equal. With fewer than five units they always are.

    Args:
        run_a: Run folder, the one that the answer is about.
        run_b: Run folder to compare it with.
        patients: See `read_images`.
        samples, seed: See `bach.honest.intervals.bootstrap`.

    Returns:
        `part` ("A" or "B"; B if both runs have both); `run_a`, `run_b`; `metric`,
        the target; `verdict`; `a`, `b` (the figure of each on the common images);
        `difference` (A minus B, an interval as of `bootstrap`); `guides` ({figure:
        {"a", "b", "difference"}}); `common`, `only_a`, `only_b` (numbers of images
        or slides).

    Raises:
        InputError: If a run cannot be read, the two have no image in common, or
            disagree about its true label.
    """
    common = [part for part in ("B", "A") if part in _parts(run_a) and part in _parts(run_b)]
    if not common:
        raise InputError(
            "The two runs must have predictions of the same part.\n"
            f"Received: {run_a} of Part {_parts(run_a)[0]}, {run_b} of Part {_parts(run_b)[0]}.\n"
            "Compare two training runs, or two heatmap runs."
        )
    part = common[0]
    pair = _pair_images(run_a, run_b, patients) if part == "A" else _pair_slides(run_a, run_b)
    sums_a, sums_b, unit, counts = pair
    width = sums_a.shape[1]
    both = np.hstack([sums_a, sums_b])

    def figure(metric: str) -> dict:
        of = _figure(metric)
        difference = bootstrap(
            both, lambda sums: of(sums[..., :width]) - of(sums[..., width:]), samples, seed,
            unit=unit,
        )  # fmt: skip
        a, b = (float(of(sums.sum(axis=0))) for sums in (sums_a, sums_b))
        return {"a": a, "b": b, "difference": difference}

    target = figure(_TARGETS[part])
    return {
        "part": part,
        "run_a": str(run_a),
        "run_b": str(run_b),
        "metric": _TARGETS[part],
        "verdict": verdict(target["difference"]),
        **target,
        "guides": {metric: figure(metric) for metric in _GUIDES[part]},
        **counts,
    }


def verdict(difference: dict) -> str:
    """Say better, worse or not distinguishable, from the interval of a difference."""
    low, high = difference["low"], difference["high"]
    if low is None or difference["units"] < FEW_UNITS or low <= 0 <= high:
        return "not distinguishable"
    return "better" if low > 0 else "worse"


def _figure(metric: str) -> Callable[[np.ndarray], np.ndarray]:
    if metric in ACCURACIES:
        return lambda sums: accuracy_from_sums(sums, metric)
    return lambda sums: score_from_sums(sums, pooled=metric == "score_pooled")


def _pair_images(
    run_a: str | os.PathLike, run_b: str | os.PathLike, patients: str | os.PathLike | None
) -> tuple[np.ndarray, np.ndarray, str, dict]:
    a, b = read_images(run_a, patients), read_images(run_b, patients)
    table = a.merge(b, on="image_id", suffixes=("_a", "_b"))
    _require_common(len(table), "image", run_a, run_b)
    differ = table[table["label_a"] != table["label_b"]]
    if len(differ):
        shown = ", ".join(differ["image_id"].head(10))
        raise InputError(
            "The two runs must have the same true labels.\n"
            f"Received others for {len(differ)} of {len(table)} images: {shown}.\n"
            "One of them was trained on other labels; compare runs of the same truth."
        )
    # Whichever of the two knows the patient.
    table["patient"] = table["patient_a"].where(table["patient_a"] != "", table["patient_b"])
    numbers, unit = patient_units(table)
    sums = [
        unit_sums(accuracy_sums(table["label_a"], table[f"predicted_{side}"]), numbers)
        for side in "ab"
    ]
    counts = {"common": len(table), "only_a": len(a) - len(table), "only_b": len(b) - len(table)}
    return sums[0], sums[1], unit, counts


def _pair_slides(
    run_a: str | os.PathLike, run_b: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray, str, dict]:
    a, b = _scored(run_a), _scored(run_b)
    slides = sorted(a.keys() & b.keys())
    _require_common(len(slides), "slide", run_a, run_b)
    seen = [slide for slide in slides if a[slide].in_sample or b[slide].in_sample]
    if seen:
        log.warning("left out, a model was trained on them: %s", ", ".join(seen))
        slides = [slide for slide in slides if slide not in seen]
        _require_common(len(slides), "slide that no model was trained on", run_a, run_b)
    for slide in slides:
        shares = [side[slide].counts.sum(axis=1) for side in (a, b)]
        shares = [share / max(share.sum(), 1) for share in shares]
        if np.abs(shares[0] - shares[1]).max() > 0.01:
            log.warning("%s: the true classes of the two runs differ by over 1%%", slide)
    sums_a, sums_b = (slide_sums([side[s].counts for s in slides]) for side in (a, b))
    defined = (sums_a[:, 1] > 0) & (sums_b[:, 1] > 0)
    counts = {
        "common": int(defined.sum()), "only_a": len(a.keys() - b.keys()),
        "only_b": len(b.keys() - a.keys()),
    }  # fmt: skip
    if not defined.all():
        left_out = [slide for slide, there in zip(slides, defined, strict=True) if not there]
        log.warning("left out, no score in one of the runs: %s", ", ".join(left_out))
        _require_common(counts["common"], "slide with a score", run_a, run_b)
    return sums_a[defined], sums_b[defined], "slides", counts


def _require_common(count: int, what: str, run_a: object, run_b: object) -> None:
    if not count:
        raise InputError(
            f"The two runs must have a {what} in common.\n"
            f"Received: none in {run_a} and {run_b}.\n"
            "Compare runs on the same folds; the join is by image id."
        )


def format_comparison(result: dict) -> str:
    """Lay the result of `compare` out to be read."""
    difference = result["difference"]
    what = "images" if result["part"] == "A" else "slides"
    lines = [
        f"A: {result['run_a']}",
        f"B: {result['run_b']}",
        f"{result['common']} {what} in common "
        f"({result['only_a']} only in A, {result['only_b']} only in B: left out)",
        "",
        f"{'figure':<20}{'A':>8}{'B':>8}  A - B",
    ]
    rows = {f"{result['metric']} (target)": result, **result["guides"]}
    for name, row in rows.items():
        lines.append(
            f"{name:<20}{row['a']:>8.4f}{row['b']:>8.4f}  {format_interval(row['difference'], 4)}"
        )
    answer = result["verdict"]
    joined = " from" if answer == "not distinguishable" else " than"
    lines += ["", f"A is {answer}{joined} B ({result['metric']})"]
    if difference["warning"]:
        lines.append(f"note: {difference['warning']}")
    return "\n".join(lines)


# The leaderboard


def table(runs: Sequence[str | os.PathLike], patients: str | os.PathLike | None = None) -> str:
    """Lay own runs out beside the published figures.

    Args:
        runs: Run folders. Each has a row in the table of every part that it
            predicted.
        patients: See `read_images`.

    Returns:
        Markdown: a table for each part that occurs (both if there are no runs), own
        runs first, best first; then the published figures, marked as such. They
        were measured on other images, so they are no ranking.

    Raises:
        InputError: If a run cannot be read.
    """
    own: dict[str, list[tuple]] = {"A": [], "B": []}
    for run in runs:
        for part in _parts(run):
            row = _row_a(run, patients) if part == "A" else _row_b(run)
            own[part].append(row)
    parts = [part for part in own if own[part]] or list(own)
    texts = [_markdown(part, own[part]) for part in parts]
    if "B" in parts:
        texts.append(_slide_by_slide([run for run in runs if "B" in _parts(run)]))
    return "\n\n".join(texts)


def _row_a(run: str | os.PathLike, patients: str | os.PathLike | None) -> tuple:
    images = read_images(run, patients)
    intervals = [accuracy_interval(images, metric) for metric in ACCURACIES]
    cells = [format_interval(interval, 3) for interval in intervals]
    return intervals[0]["value"], _row(run, cells, f"{len(images)} images")


def _row_b(run: str | os.PathLike) -> tuple:
    slides = _scored(run)
    honest = {name: record for name, record in slides.items() if not record.in_sample}
    in_sample = bool(slides) and not honest
    counts = {name: record.counts for name, record in (honest or slides).items()}
    intervals = [score_interval(counts, pooled) for pooled in (False, True)]
    cells = [format_interval(interval, 3) for interval in intervals]
    named = f"{len(counts)} slides" + (", in sample (trained on them)" if in_sample else "")
    beaten = sum(_slide_score(count) > _slide_score(always(count)) for count in counts.values())
    named += f"; above always Benign on {beaten}"
    return intervals[0]["value"], _row(run, cells, named)


def _slide_score(counts: np.ndarray) -> float:
    return float(score_from_sums(slide_sums([counts])[0]))


def _slide_by_slide(runs: Sequence[str | os.PathLike]) -> str:
    """Markdown table of the score of every slide, beside that of always Benign."""
    tables = {Path(run).name or str(run): _scored(run) for run in runs}
    slides = sorted({*ALWAYS_BENIGN, *(slide for table in tables.values() for slide in table)})
    rows = []
    for name, found in tables.items():
        score, benign = [], []
        for slide in slides:
            if slide not in found:
                score.append("-")
                benign.append("-")
                continue
            counts = found[slide].counts
            mark = "*" if found[slide].in_sample else ""
            score.append(f"{_slide_score(counts):.3f}{mark}")
            benign.append(f"{_slide_score(always(counts)):.3f}")
        rows += [[name, *score], [f"{name}: always Benign", *benign]]
    published = [_printed(ALWAYS_BENIGN[s]) if s in ALWAYS_BENIGN else "-" for s in slides]
    rows.append(["*published: always Benign*", *published])
    lines = [
        "Score slide by slide (* in sample: the model was trained on it). Where a run's always "
        "Benign is not the published one, its slides or annotations are others.",
        "",
        _line(["run", *slides]),
        _line(["---"] * (len(slides) + 1)),
        *map(_line, rows),
    ]
    return "\n".join(lines)


def _row(run: str | os.PathLike, cells: list[str], measured_on: str) -> list[str]:
    run = Path(run)
    record = _read_record(run)
    commit = (record.get("commit") or "-")[:7] + ("*" if record.get("dirty") else "")
    name = run.name or str(run)
    if not (run / "metrics.json").exists():
        name += " (unfinished)"
    command = record.get("command")
    return [
        name,
        str(_argument(run, "backbone") or "-"),
        str(_argument(run, "epochs") or "-"),
        *cells,
        measured_on,
        commit,
        f"`{command}`" if command else "-",
    ]


def _read_record(run: Path) -> dict:
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # predictions made elsewhere have no record
    return record if isinstance(record, dict) else {}


def _argument(run: Path, name: str, depth: int = 3) -> object:
    """An argument of a run, or of the run whose model it used."""
    arguments = _read_record(run).get("arguments") or {}
    if arguments.get(name) is not None:
        return arguments[name]
    for value in arguments.values() if depth else ():
        if not isinstance(value, str) or Path(value) == run:
            continue
        if (Path(value) / "run.json").is_file():
            found = _argument(Path(value), name, depth - 1)
            if found is not None:
                return found
    return None


def _markdown(part: str, own: list[tuple]) -> str:
    figures = ACCURACIES if part == "A" else ("score", "score_pooled")
    titles = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "binary_accuracy": "carcinoma or not",
        "score": "score (mean over slides)",
        "score_pooled": "score (pooled)",
    }
    header = [
        "run", "backbone", "epochs", *(titles[figure] for figure in figures), "measured on",
        "commit", "command or source",
    ]  # fmt: skip
    order = sorted(own, key=lambda row: -np.inf if row[0] is None else row[0], reverse=True)
    rows = [row for _, row in order]
    for entry in PUBLISHED:
        if entry["part"] == part:
            values = [_printed(entry[f]) if f in entry else "-" for f in figures]
            rows.append(
                [f"*published: {entry['name']}*", "-", "-", *values, entry["measured_on"], "-",
                 entry["source"]]
            )  # fmt: skip
    lines = [
        f"Part {part}. In brackets the 95% interval and what it rests on. Published figures were "
        "measured on other images: compare with care.",
        "",
        _line(header),
        _line(["---"] * len(header)),
        *map(_line, rows),
    ]
    return "\n".join(lines)


def _printed(value: float) -> str:
    """A published number with the decimals it was published with, two or more."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
