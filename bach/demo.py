"""The whole pipeline on trial data: every command as a user would type it.

    python -m bach.demo

Leaves its data in `data/toy` and its runs in `runs/demo`. Started again after an
interruption, it goes on where it stopped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bach.core.errors import InputError, exit_with
from bach.core.text import duration

ROOT = Path(__file__).resolve().parent.parent
DATA = Path("data/toy")
RUNS = Path("runs/demo")
REAL_SLIDE = Path("docs/slides/cmu-1-small-region.svs")

# A small network and small batches, so that a CPU gets somewhere in minutes; wider
# colour augmentation than the default, for nothing is pretrained and the stain of 32
# painted patients is quickly learned by heart.
NETWORK = [
    *("--backbone", "small", "--batch-size", "16", "--learning-rate", "0.02"),
    *("--hue", "0.08", "--saturation", "0.4", "--value", "0.3"),
]


def commands() -> list[list[str]]:
    """Every command of the demo, in order, as words after `python`."""
    folds_a, folds_b = DATA / "part_a_folds.csv", DATA / "part_b_folds.csv"
    data = ["--data-dir", DATA]

    def make_folds(part: str, folds: int, out: Path, *more) -> list:
        words = ["-m", "bach.folds", "make", *data, "--part", part, "--folds", folds, "--out", out]
        return [*words, *more]

    part_a = ["--run-dir", RUNS / "part_a"]
    steps = [
        ["-m", "bach.toy", DATA, "--patients", 32, "--images", 20],
        ["-m", "bach.data", DATA],
        make_folds("a", 3, folds_a, "--patients", DATA / "patients.csv"),
        ["-m", "bach.folds", "check", folds_a, "--patients", DATA / "patients.csv"],
        make_folds("b", 2, folds_b),
        ["train_part_a.py", *data, *part_a, "--folds", folds_a, *NETWORK,
         "--weights", "none", "--epochs", 8],
        [
            "mine_hard_examples.py", *data, "--run-dir", RUNS / "hard_examples",
            "--model-dir", RUNS / "part_a", "--hard-examples", 1200, "--mode", "dense",
            "--stride-um", 67.2,
        ],
        [
            "train_final.py", *data, "--run-dir", RUNS / "final", "--part-a-dir", RUNS / "part_a",
            "--hard-examples-dir", RUNS / "hard_examples", "--folds", folds_b, *NETWORK,
            "--weights", RUNS / "part_a/fold_0/model.keras", "--epochs", 5,
        ],
        [
            "make_heatmap.py", *data, "--run-dir", RUNS / "heatmaps",
            "--model-dir", RUNS / "final", "--mode", "dense", "--rule", "least-cost",
        ],
        ["-m", "bach.thresholds", RUNS / "heatmaps"],
        [
            "-m", "bach.submission", "part-a", *data, "--model-dir", RUNS / "part_a",
            "--out", RUNS / "submission_part_a.csv",
        ],
        ["-m", "bach.submission", "part-b", "--run-dir", RUNS / "heatmaps", "--out",
         RUNS / "submission_part_b"],
        [
            "-m", "bach.metrics", "part-a", "--predictions", RUNS / "submission_part_a.csv",
            "--truth", DATA / "truth/part_a.csv",
        ],
        [
            "-m", "bach.metrics", "part-b", "--predicted", RUNS / "submission_part_b",
            "--truth", DATA / "truth/part_b",
        ],
        [
            "make_heatmap.py", "--slides", REAL_SLIDE, "--run-dir", RUNS / "heatmaps_real",
            "--model-dir", RUNS / "final", "--mode", "dense", "--rule", "least-cost",
        ],
    ]  # fmt: skip
    return [[str(word) for word in words] for words in steps]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.demo", description="Run the whole pipeline on trial data."
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    parse_args(argv)
    start = time.monotonic()
    os.chdir(ROOT)
    outputs = {}
    for words in commands():
        name = words[1] if words[0] == "-m" else words[0]
        if name == "bach.toy":
            make_toy(words)
            continue
        if (
            words[:3] == ["-m", "bach.folds", "make"]
            and Path(words[words.index("--out") + 1]).exists()
        ):
            continue
        if name.endswith(".py"):
            words = (
                [*words, "--resume"]
                if Path(words[words.index("--run-dir") + 1]).exists()
                else words
            )
        if name == "bach.submission" and Path(words[-1]).exists():
            continue
        outputs[" ".join(words[1:3])] = call(words)
    table(outputs, time.monotonic() - start)


def make_toy(words: list[str]) -> None:
    """Write the trial data beside and rename, so that a killed demo starts over."""
    if DATA.exists():
        print(f"# {DATA} is there already", flush=True)
        return
    partial = DATA.with_name("toy.partial")
    if partial.exists():
        shutil.rmtree(partial)
    call([str(partial) if word == str(DATA) else word for word in words], shown=words)
    partial.rename(DATA)


def call(
    words: list[str],
    shown: list[str] | None = None,
    again: str = "`make demo`",
    pass_fds: tuple[int, ...] = (),
) -> str:
    """Print a command, run it, and return the last line of its output.

    Args:
        words: The command, after `python`.
        shown: What to print instead of it.
        again: What goes on from there, for the error.
        pass_fds: File descriptors that the command inherits.

    Raises:
        InputError: If it fails. If we are interrupted, it is ended too.
    """
    print(f"\n$ python {' '.join(shown or words)}", flush=True)
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE, text=True, encoding="utf-8", pass_fds=pass_fds,
    ) as process:  # fmt: skip
        last = ""
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InputError(
            f"The command above ended with exit code {process.returncode}.\n"
            f"Its last lines say why; {again} goes on from there."
        )
    return last


def table(outputs: dict[str, str], seconds: float) -> None:
    """Print what came out, beside chance and baseline."""

    def metrics(run: str) -> dict:
        return json.loads((RUNS / run / "metrics.json").read_text())

    part_a, heatmaps = metrics("part_a"), metrics("heatmaps")
    test_a = json.loads(outputs["bach.metrics part-a"])
    test_b = json.loads(outputs["bach.metrics part-b"])
    rules = json.loads(outputs["bach.thresholds runs/demo/heatmaps"])["scores"]
    paper = next(rule for name, rule in rules.items() if name.startswith("Kwok"))
    benign = f"always benign {heatmaps['baseline']:.3f}"
    rows = [
        ("Part A, out of fold, four-class accuracy", part_a["accuracy"], "chance 0.25"),
        ("Part A, out of fold, carcinoma or not", part_a["binary_accuracy"], "chance 0.50"),
        ("Part A, hidden test set, four-class accuracy", test_a["accuracy"], "chance 0.25"),
        ("Part B, slides held out, score", heatmaps["score"], benign),
        ("  the same by the paper's thresholds", paper["score"]["value"], benign),
        (
            "Part B, hidden test set, score",
            test_b["score"],
            f"always benign {test_b['baseline']['score']:.3f}",
        ),
    ]
    print(f"\n{'':47}{'result':>8}   beside")
    for name, value, beside in rows:
        print(f"{name:47}{value:8.3f}   {beside}")
    print(
        f"\nLook at {RUNS}/part_a/fold_0/batch.png, {RUNS}/hard_examples/slides/*.png,\n"
        f"{RUNS}/heatmaps/overlays/*.png and {RUNS}/heatmaps_real/overlays/*.png.\n"
        f"Demo finished in {duration(seconds)}.\n{RUNS}"
    )


if __name__ == "__main__":
    exit_with(main)
