"""Compare finished runs, or lay them out beside published figures.

    python -m bach.runs compare runs/new runs/old
    python -m bach.runs table runs/part_a runs/heatmaps > leaderboard.md

`compare` says whether the first run is better than the second, see
`bach.honest.comparison`; its last line on stdout is JSON. `table` prints Markdown.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.run import read_record
from bach.core.text import columns, markdown
from bach.honest.comparison import (
    ALWAYS_BENIGN,
    FIGURES,
    PUBLISHED,
    compare,
    parts_of,
    titles,
)
from bach.honest.intervals import accuracy_interval, format_interval, score_interval
from bach.honest.records import counts_of, read_images, read_slides
from bach.scores import always, score_from_counts
from bach.tasks import BACH, task, use


def format_comparison(result: dict) -> str:
    """Lay the result of `compare` out to be read."""
    what = "images" if result["part"] == "A" else "slides"
    figures = {f"{result['metric']} (target)": result, **result["guides"]}
    rows = [
        [name, f"{row['a']:.4f}", f"{row['b']:.4f}", format_interval(row["difference"], 4)]
        for name, row in figures.items()
    ]
    answer = result["verdict"]
    joined = "from" if answer == "not distinguishable" else "than"
    lines = [
        f"A: {result['run_a']}",
        f"B: {result['run_b']}",
        f"{result['common']} {what} in common "
        f"({result['only_a']} only in A, {result['only_b']} only in B: left out)",
        "",
        columns(["figure", "A", "B", "A - B"], rows),
        "",
        f"A is {answer} {joined} B ({result['metric']})",
    ]
    if result["difference"]["warning"]:
        lines.append(f"note: {result['difference']['warning']}")
    return "\n".join(lines)


# The leaderboard


def table(runs: Sequence[str | os.PathLike], patients: str | os.PathLike | None = None) -> str:
    """Lay own runs out beside the published figures.

    Args:
        runs: Run folders. Each has a row in the table of every part that it
            predicted.
        patients: See `bach.honest.records.read_images`.

    Returns:
        Markdown: a table for each part that occurs (both if there are no runs), own
        runs first, best first; then the published figures, marked as such. They
        were measured on other images, so they are no ranking.

    Raises:
        InputError: If a run cannot be read.
    """
    own: dict[str, list[str | os.PathLike]] = {"A": [], "B": []}
    for run in runs:
        for part in parts_of(run):
            own[part].append(run)
    texts = []
    for part in [part for part in own if own[part]] or list(own):
        if part == "A":
            texts.append(_leaderboard(part, [_row_a(run, patients) for run in own[part]]))
        else:
            texts.append(_leaderboard(part, [_row_b(run) for run in own[part]]))
            texts.append(_slide_by_slide(own[part]))
    return "\n\n".join(texts)


def _leaderboard(part: str, own: list[tuple[float | None, list[str]]]) -> str:
    """Markdown table of one part, from a sort key and a row for each run."""
    figures = FIGURES[part]
    own = sorted(own, key=lambda row: -np.inf if row[0] is None else row[0], reverse=True)
    rows = [row for _, row in own]
    for entry in PUBLISHED:
        if entry["part"] == part and task() is BACH:
            values = [_printed(entry[figure]) if figure in entry else "-" for figure in figures]
            about = [entry["measured_on"], "-", entry["source"]]
            rows.append([f"*published: {entry['name']}*", "-", "-", *values, *about])
    named = [titles()[figure] for figure in figures]
    header = ["run", "backbone", "epochs", *named, "measured on", "commit", "command or source"]
    return (
        f"Part {part}. In brackets the 95% interval and what it rests on. Published figures were "
        f"measured on other images: compare with care.\n\n{markdown(header, rows)}"
    )


def _row_a(
    run: str | os.PathLike, patients: str | os.PathLike | None
) -> tuple[float | None, list[str]]:
    images = read_images(run, patients)
    intervals = [accuracy_interval(images, metric) for metric in FIGURES["A"]]
    return intervals[0]["value"], _row(run, intervals, f"{len(images)} images")


def _row_b(run: str | os.PathLike) -> tuple[float | None, list[str]]:
    slides = read_slides(run)
    everything = counts_of(slides)
    honest = {name: count for name, count in everything.items() if not slides[name].in_sample}
    counts = honest or everything
    intervals = [score_interval(counts, pooled) for pooled in (False, True)]
    beaten = sum(
        score_from_counts(count) > score_from_counts(always(count)) for count in counts.values()
    )
    where = "" if honest or not everything else ", in sample (trained on them)"
    measured_on = f"{len(counts)} slides{where}; above {task().always} on {beaten}"
    return intervals[0]["value"], _row(run, intervals, measured_on)


def _row(run: str | os.PathLike, intervals: list[dict], measured_on: str) -> list[str]:
    run = Path(run)
    record = _read_record(run)
    command = record.get("command")
    return [
        (run.name or str(run)) + ("" if (run / "metrics.json").exists() else " (unfinished)"),
        str(_argument(run, "backbone") or "-"),
        str(_argument(run, "epochs") or "-"),
        *(format_interval(interval, 3) for interval in intervals),
        measured_on,
        (record.get("commit") or "-")[:7] + ("*" if record.get("dirty") else ""),
        f"`{command}`" if command else "-",
    ]


def _slide_by_slide(runs: Sequence[str | os.PathLike]) -> str:
    """Markdown table of the score of every slide, beside that of one answer alone."""
    tables = [(Path(run).name or str(run), read_slides(run)) for run in runs]
    known = ALWAYS_BENIGN if task() is BACH else {}
    names = sorted({*known, *(name for _, slides in tables for name in counts_of(slides))})
    rows = []
    for run, slides in tables:
        counts = counts_of(slides)
        own = {name: f"{score_from_counts(count):.3f}" for name, count in counts.items()}
        own |= {name: f"{score}*" for name, score in own.items() if slides[name].in_sample}
        benign = {name: f"{score_from_counts(always(c)):.3f}" for name, c in counts.items()}
        rows.append([run, *(own.get(name, "-") for name in names)])
        rows.append([f"{run}: {task().always}", *(benign.get(name, "-") for name in names)])
    text = "Score slide by slide (* in sample: the model was trained on it)."
    if known:
        published = [_printed(known[name]) if name in known else "-" for name in names]
        rows.append([f"*published: {task().always}*", *published])
        text += (
            f" Where a run's {task().always} is not the published one, its slides or annotations "
            "are others."
        )
    return f"{text}\n\n{markdown(['run', *names], rows)}"


def _printed(value: float) -> str:
    """A published number with the decimals it was published with, two or more."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.4g}"


def _read_record(run: Path) -> dict:
    return read_record(run) or {}  # predictions made elsewhere have no record


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


# The tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.runs", description="Compare finished runs. Each tool has its --help."
    )
    tools = parser.add_subparsers(dest="tool", required=True)
    two = tools.add_parser("compare", help="say whether run A is better than run B")
    two.add_argument("run_a", help="run folder that the answer is about")
    two.add_argument("run_b", help="run folder to compare it with")
    for name in ("--samples", "--seed"):
        two.add_argument(name, type=int, help="does nothing: the intervals draw nothing any more")
    many = tools.add_parser("table", help="leaderboard of runs beside published figures")
    many.add_argument("runs", nargs="*", metavar="RUN", help="run folders")
    for tool in (two, many):
        tool.add_argument(
            "--patients",
            help="CSV of image_id and patient (default: the column patient of predictions.csv)",
        )
    args = parser.parse_args(argv)
    use(None, *(args.runs if args.tool == "table" else (args.run_a, args.run_b)))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.tool == "table":
        print(table(args.runs, args.patients))
        return 0
    if args.samples is not None or args.seed is not None:
        log.warning("--samples and --seed do nothing: the intervals draw nothing any more")
    result = compare(args.run_a, args.run_b, args.patients)
    print(format_comparison(result))
    print(to_json(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
