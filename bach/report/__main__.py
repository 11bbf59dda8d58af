"""What a run found, for people: pages for a browser, a table to tick, sheets to look at.

    python -m bach.report html runs/heatmaps
    python -m bach.report html runs --out report
    python -m bach.report mistakes runs/part_a --data-dir data/BACH
    python -m bach.report errors runs/part_a/errors.csv

`html` makes one folder, by default `report` in the run folder, that any browser opens from
a disk or a USB stick, without network: how each run was made, its figures, curves and
mistakes, and for every slide a viewer with heatmap, class map, annotation and tissue.

`mistakes` reads the out-of-fold predictions of a `train_part_a.py` run and the photos,
and writes into the run folder (or `--out`):

    errors.csv                      one row per mistake, worst first, with empty columns to tick
    errors/Benign_as_Invasive.png   a sheet for each pair (true, predicted), worst first
    errors/overview.png             all pairs at once: the worst image of each, and counts

Below each photo a bar shows the mean probabilities of its patches, and a cell for every
patch its own, laid out as the patches lie on the photo; the colours are those of the
legend, Normal at the top. Worst is by difficulty (Kwok 2018, section 4.5): class distance
times the probability of the wrong class.

Fill the category columns of `errors.csv` in with any mark (several in a row if several
apply; add columns of your own; `note` is free text), then let `errors` total them. What
the categories mean is said below.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.log import setup_logging
from bach.core.options import whole
from bach.report.mistakes import (
    CATEGORIES,
    format_counts,
    format_totals,
    read_ticks,
    total_ticks,
    write_mistakes,
)
from bach.report.pages import SLIDE_MB, Request, write_report
from bach.tasks import add_option, use


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="categories:\n" + "\n".join(f"  {k:12} {v}" for k, v in CATEGORIES.items()),
    )
    tools = parser.add_subparsers(dest="tool", required=True)
    html = tools.add_parser("html", help="write pages for a browser")
    html.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run folder, or folder of run folders"
    )
    html.add_argument(
        "--out", type=Path, help="folder to write to (default: report in the first RUN)"
    )
    html.add_argument("--previous", type=Path, metavar="RUN", help="earlier run to compare with")
    html.add_argument(
        "--data-dir", type=Path, help="folder of the challenge data (default: that of each run)"
    )
    html.add_argument(
        "--slides-dir", type=Path, metavar="DIR", help="folder that the slides lie in now"
    )
    html.add_argument(
        "--slide-mb",
        type=whole(1, 100_000),
        default=SLIDE_MB,
        help="most MB for a slide; one that needs more is shown smaller (default: %(default)s)",
    )
    show = tools.add_parser("mistakes", help="write a run's mistakes as table and sheets")
    show.add_argument("run", metavar="RUN", help="run folder of train_part_a.py")
    show.add_argument("--data-dir", default="data/BACH", help="folder of the challenge data")
    show.add_argument("--out", default=None, help="folder to write to (default: the run folder)")
    show.add_argument("--limit", type=whole(1), default=60, help="most images on a sheet")
    errors = tools.add_parser("errors", help="total the ticks of a filled-in errors.csv")
    errors.add_argument("file", metavar="FILE", help="the filled-in table")
    add_option(errors)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(parse_args(argv))
    tool = args.pop("tool")
    setup_logging()
    if tool == "html":
        print(write_report(Request(**args)))
    elif tool == "mistakes":
        use(None, args["run"])
        out = Path(args["out"] or args["run"])
        images = write_mistakes(args["run"], args["data_dir"], out, args["limit"])
        print(format_counts(images))
        print(out / "errors.csv")
    else:
        use(args["task"])
        result = total_ticks(read_ticks(args["file"]))
        print(format_totals(result))
        print(to_json(result))
    return 0


if __name__ == "__main__":
    exit_with(main)
