"""Write trial data: a painted data set in the layout of the challenge.

python -m bach.toy DIR
python -m bach.toy nodes DIR      painted lymph nodes with metastases, as in CAMELYON16
python -m bach.toy figures DIR    painted slides with mitotic figures, as in TUPAC16
"""

import argparse
import os
import sys
from collections.abc import Sequence

from bach.core import options
from bach.core.errors import exit_with
from bach.toy.dataset import Recipe, make_data_set
from bach.toy.figures import Figures, make_figures
from bach.toy.nodes import Nodes, make_nodes

# What is written by the name that may stand before the folder.
_KINDS = {
    "nodes": (Nodes, make_nodes, "Write painted lymph nodes with metastases."),
    "figures": (Figures, make_figures, "Write painted slides with mitotic figures."),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    # A folder may have such a name: then no other follows.
    follows = len(words) > 1 and (words[1] in ("-h", "--help") or not words[1].startswith("-"))
    name = words[0] if follows and words[0] in _KINDS else None
    recipe, make, about = _KINDS[name] if name else (Recipe, None, __doc__)
    parser = argparse.ArgumentParser(
        prog=f"python -m bach.toy {name}" if name else "python -m bach.toy",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(kind=recipe, make=make)
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    if not name:
        parser.add_argument(
            "--workers",
            type=options.whole(1, 1024),
            default=min(2, os.cpu_count() or 1),
            help="processes; the data do not depend on it (default: %(default)s)",
        )
    options.add(parser, recipe)
    return parser.parse_args(words[1:] if name else words)


def main(argv: Sequence[str] | None = None) -> None:
    values = vars(parse_args(argv))
    directory, recipe, make = (values.pop(name) for name in ("dir", "kind", "make"))
    if make:
        print(make(directory, recipe(**values)))
    else:
        workers = values.pop("workers")
        print(make_data_set(directory, Recipe(**values), workers))


if __name__ == "__main__":
    exit_with(main)
