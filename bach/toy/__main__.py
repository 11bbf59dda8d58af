"""python -m bach.toy DIR: write a trial data set."""

import argparse
import os

from bach.core import options
from bach.core.errors import exit_with
from bach.toy.dataset import Recipe, make_data_set


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bach.toy", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    parser.add_argument(
        "--workers",
        type=options.whole(1, 1024),
        default=min(2, os.cpu_count() or 1),
        help="processes; the data do not depend on it (default: %(default)s)",
    )
    options.add(parser, Recipe)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    values = vars(parse_args(argv))
    directory, workers = values.pop("dir"), values.pop("workers")
    print(make_data_set(directory, Recipe(**values), workers))


if __name__ == "__main__":
    exit_with(main)
