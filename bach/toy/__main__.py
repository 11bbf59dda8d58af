"""Write trial data: a painted data set in the layout of the challenge.

python -m bach.toy DIR
python -m bach.toy nodes DIR      painted lymph nodes with metastases, as in CAMELYON16
"""

import argparse
import os
import sys
from collections.abc import Sequence

from bach.core import options
from bach.core.errors import exit_with
from bach.toy.dataset import Recipe, make_data_set
from bach.toy.nodes import Nodes, make_nodes

_NODES = "nodes"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    # A folder may have that name: then no other follows.
    named = words[:1] == [_NODES] and len(words) > 1
    nodes = named and (words[1] in ("-h", "--help") or not words[1].startswith("-"))
    parser = argparse.ArgumentParser(
        prog=f"python -m bach.toy {_NODES}" if nodes else "python -m bach.toy",
        description="Write painted lymph nodes with metastases." if nodes else __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(kind=Nodes if nodes else Recipe)
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    if not nodes:
        parser.add_argument(
            "--workers",
            type=options.whole(1, 1024),
            default=min(2, os.cpu_count() or 1),
            help="processes; the data do not depend on it (default: %(default)s)",
        )
    options.add(parser, Nodes if nodes else Recipe)
    return parser.parse_args(words[1:] if nodes else words)


def main(argv: Sequence[str] | None = None) -> None:
    values = vars(parse_args(argv))
    directory, kind = values.pop("dir"), values.pop("kind")
    if kind is Nodes:
        print(make_nodes(directory, Nodes(**values)))
    else:
        workers = values.pop("workers")
        print(make_data_set(directory, Recipe(**values), workers))


if __name__ == "__main__":
    exit_with(main)
