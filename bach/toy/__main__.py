"""python -m bach.toy DIR: write a trial data set."""

import argparse
import os

from bach.core.errors import exit_with
from bach.toy import dataset


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.toy", description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    parser.add_argument("--patients", type=int, default=12, help="patients of the training photos")
    parser.add_argument("--images", type=int, default=12, help="training photos a class")
    parser.add_argument("--test-images", type=int, default=5, help="test photos a class")
    parser.add_argument("--slides", type=int, default=4, help="annotated slides")
    parser.add_argument("--test-slides", type=int, default=1, help="slides of the test set")
    parser.add_argument(
        "--stain-shift", type=float, default=1.0,
        help="how far the patients' stains, light and focus differ; 0: not at all",
    )  # fmt: skip
    parser.add_argument(
        "--label-noise", type=float, default=0.0,
        help="share of training photos filed under a wrong class",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=min(2, os.cpu_count() or 1),
        help="processes; the data do not depend on it",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = {key: value for key, value in vars(args).items() if key != "dir"}
    print(dataset.make_data_set(args.dir, **options))


if __name__ == "__main__":
    exit_with(main)
