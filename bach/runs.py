"""Compare finished runs, or lay them out beside published figures.

    python -m bach.runs compare runs/new runs/old
    python -m bach.runs table runs/part_a runs/heatmap > leaderboard.md

See `bach.honest.comparison` for what is computed.
"""

import argparse
from collections.abc import Sequence

from bach.core.errors import InputError, exit_with
from bach.core.files import to_json
from bach.honest.comparison import compare, format_comparison, table
from bach.honest.intervals import SAMPLES

# The tools, called by bach.runs


def _parser(tool: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m bach.runs {tool}", description=description)
    parser.add_argument(
        "--patients", default=None,
        help="CSV of image_id and patient (default: the column patient of predictions.csv)",
    )  # fmt: skip
    return parser


def main_compare(argv: Sequence[str] | None = None) -> int:
    parser = _parser("compare", "Say whether run A is better than run B.")
    parser.add_argument("run_a", help="run folder that the answer is about")
    parser.add_argument("run_b", help="run folder to compare it with")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    args = parser.parse_args(argv)
    if args.samples < 1:
        raise InputError(f"There must be resamples.\nReceived: --samples={args.samples}.")
    result = compare(args.run_a, args.run_b, args.patients, args.samples, args.seed)
    print(format_comparison(result))
    print(to_json(result))
    return 0


def main_table(argv: Sequence[str] | None = None) -> int:
    parser = _parser("table", "Print a leaderboard of runs beside published figures (Markdown).")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders")
    args = parser.parse_args(argv)
    print(table(args.runs, args.patients))
    return 0


def main(argv: list[str] | None = None) -> int:
    tools = {"compare": main_compare, "table": main_table}
    parser = argparse.ArgumentParser(
        prog="python -m bach.runs", description="Compare finished runs. Each tool has its --help."
    )
    parser.add_argument("tool", choices=tools, help="compare two runs, or a table of any number")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="run folders and options")
    args = parser.parse_args(argv)
    return tools[args.tool](args.arguments)


if __name__ == "__main__":
    exit_with(main)
