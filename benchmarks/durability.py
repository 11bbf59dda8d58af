"""What does it cost that a file is on the disk before it takes its name?

`bach.core.files.atomic_path` waits (fsync) for every file that it renames and for the folder,
so that a power failure leaves the old file or the new one. Files of the sizes that runs write are
written with and without the wait, in turn.

`ratio`: time with the wait / time without. Median over rounds, lowest and highest beside. What
a round without the wait leaves to be written is waited for outside the measured time.

Reads:   nothing.
Writes:  files in --dir (the current folder: a temporary folder may lie in memory), deleted.
Command: python benchmarks/durability.py --rounds 25 --out docs/results/durability.csv
Time:    1 min on a slow disk; --quick, a few seconds.
Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.core import files
from bach.core.errors import exit_with
from bach.core.tables import write_csv
from bach.core.text import columns

# What is written, and how many bytes it has for InceptionResNetV2 and BACH.
KINDS = {
    "record (run.json, a slide's scores)": 4_000,
    "table of patches of a slide": 1_500_000,
    "heatmap": 6_000_000,
    "model": 220_000_000,
}


HEADER = ["file", "MB", "ms without", "ms with", "ratio", "ratio_low", "ratio_high"]


@contextlib.contextmanager
def without_waiting():
    flush, files._flush = files._flush, lambda path: None
    try:
        yield
    finally:
        files._flush = flush


def write(path: Path, content: memoryview) -> float:
    """Seconds that it takes to write a file."""
    start = time.perf_counter()
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return time.perf_counter() - start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", default=".", help="folder on the disk to measure")
    parser.add_argument("--out", help="CSV file to write the table to")
    parser.add_argument("--rounds", type=int, default=9, help="rounds")
    parser.add_argument("--quick", action="store_true", help="two rounds, small files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rounds = 2 if args.quick else args.rounds
    content = memoryview(
        np.random.default_rng(0).bytes(1000 if args.quick else max(KINDS.values()))
    )
    rows, result = [], {}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for kind, size in KINDS.items():
            plain, durable = [], []
            for _ in range(rounds):
                with without_waiting():
                    plain.append(write(Path(folder, "file"), content[:size]))
                os.sync()
                durable.append(write(Path(folder, "file"), content[:size]))
            ratios = np.array(durable) / np.array(plain)
            ratio, low, high = np.median(ratios), ratios.min(), ratios.max()
            result[kind] = {"s": np.median(durable), "ratio": ratio, "low": low, "high": high}
            megabytes, seconds = f"{size / 1e6:g}", (np.median(plain), np.median(durable))
            times = [f"{s * 1000:.1f}" for s in seconds]
            rows.append([kind, megabytes, *times, f"{ratio:.1f}", f"{low:.1f}", f"{high:.1f}"])
    print(columns(HEADER, rows))
    if args.out:
        write_csv(pd.DataFrame(rows, columns=HEADER), args.out)
    print(files.to_json(result))


if __name__ == "__main__":
    exit_with(main)
