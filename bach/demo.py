"""The whole pipeline on trial data: every command as a user would type it.

    python -m bach.demo

Leaves its data in `data/toy` and its runs in `runs/demo`. Started again after an
interruption, it goes on where it stopped.
"""

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from bach.classes import CLASSES
from bach.core.commands import ROOT, require_checkout, run_command
from bach.core.errors import exit_with
from bach.core.files import read_json
from bach.core.text import columns, duration, number

DATA = Path("data/toy")
RUNS = Path("runs/demo")
AGAIN = "`make demo`"

TOY = f"-m bach.toy {DATA} --patients 32 --images 20"

# A small network and small batches, so that a CPU gets somewhere in minutes; wider
# colour augmentation than the default, for it is not pretrained and the stain of 32
# painted patients is quickly learned by heart.
_NETWORK = (
    "--backbone small --batch-size 16 --learning-rate 0.02 --hue 0.08 --saturation 0.4 --value 0.3"
)
_DENSE = "--mode dense --rule least-cost"


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of the demo.

    Attributes:
        command: Its words after `python`.
        done: What it leaves; where that exists, the step is left out.
        resumed: Its run folder; where that exists, it gets `--resume`.
        result: Name under which the last line of its output goes into the table.
    """

    command: str
    done: Path | None = None
    resumed: Path | None = None
    result: str | None = None


STEPS = (
    Step(f"-m bach.data {DATA}"),
    Step(
        f"-m bach.folds make --data-dir {DATA} --part a --folds 3 --out {DATA}/part_a_folds.csv "
        f"--patients {DATA}/patients.csv",
        done=DATA / "part_a_folds.csv",
    ),
    Step(f"-m bach.folds check {DATA}/part_a_folds.csv --patients {DATA}/patients.csv"),
    Step(
        f"-m bach.folds make --data-dir {DATA} --part b --folds 2 --out {DATA}/part_b_folds.csv",
        done=DATA / "part_b_folds.csv",
    ),
    # For photos, a pretrained network as it is; for slides, the steps of the paper.
    Step(
        f"train_part_a.py --data-dir {DATA} --run-dir {RUNS}/frozen "
        f"--folds {DATA}/part_a_folds.csv --backbone EfficientNetLite0 --train top --fields",
        resumed=RUNS / "frozen",
    ),
    Step(
        f"train_part_a.py --data-dir {DATA} --run-dir {RUNS}/part_a "
        f"--folds {DATA}/part_a_folds.csv {_NETWORK} --weights none --epochs 8",
        resumed=RUNS / "part_a",
    ),
    Step(
        f"mine_hard_examples.py --data-dir {DATA} --run-dir {RUNS}/hard_examples "
        f"--model-dir {RUNS}/part_a --folds {DATA}/part_b_folds.csv --hard-examples 1200 "
        "--mode dense --stride-um 67.2",
        resumed=RUNS / "hard_examples",
    ),
    Step(
        f"train_final.py --data-dir {DATA} --run-dir {RUNS}/final --part-a-dir {RUNS}/part_a "
        f"--hard-examples-dir {RUNS}/hard_examples --folds {DATA}/part_b_folds.csv {_NETWORK} "
        f"--weights {RUNS}/part_a/fold_0/model.keras --epochs 5",
        resumed=RUNS / "final",
    ),
    Step(
        f"make_heatmap.py --data-dir {DATA} --run-dir {RUNS}/heatmaps --model-dir {RUNS}/final "
        f"{_DENSE}",
        resumed=RUNS / "heatmaps",
    ),
    Step(f"-m bach.thresholds {RUNS}/heatmaps", result="thresholds"),
    Step(
        f"-m bach.submission part-a --data-dir {DATA} --model-dir {RUNS}/frozen "
        f"--out {RUNS}/submission_part_a.csv",
        done=RUNS / "submission_part_a.csv",
    ),
    Step(
        f"-m bach.submission part-b --run-dir {RUNS}/heatmaps --out {RUNS}/submission_part_b",
        done=RUNS / "submission_part_b",
    ),
    Step(
        f"-m bach.metrics part-a --predictions {RUNS}/submission_part_a.csv "
        f"--truth {DATA}/truth/part_a.csv",
        result="part_a",
    ),
    Step(
        f"-m bach.metrics part-b --predicted {RUNS}/submission_part_b --truth {DATA}/truth/part_b",
        result="part_b",
    ),
    Step(
        f"make_heatmap.py --slides docs/slides/cmu-1-small-region.svs "
        f"--run-dir {RUNS}/heatmaps_real --model-dir {RUNS}/final {_DENSE}",
        resumed=RUNS / "heatmaps_real",
    ),
    Step(f"-m bach.report html {RUNS} --out {RUNS}/report"),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.demo", description="Run the whole pipeline on trial data."
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    parse_args(argv)
    require_checkout()
    start = time.monotonic()
    os.chdir(ROOT)
    make_data()
    results = run_steps(STEPS)
    print(f"\n{table(results)}")
    print(
        f"\nOpen {RUNS}/report/index.html in a browser. Look at {RUNS}/part_a/fold_0/batch.png, "
        f"\n{RUNS}/hard_examples/slides/*.png and {RUNS}/heatmaps/overlays/*.png.\n"
        f"Demo finished in {duration(time.monotonic() - start)}.\n{RUNS}"
    )


def run_steps(steps: Sequence[Step]) -> dict[str, dict]:
    """Run what is not done yet; return what the steps with a `result` printed."""
    results = {}
    for step in steps:
        if step.done is not None and step.done.exists():
            continue
        words = step.command.split()
        if step.resumed is not None and step.resumed.exists():
            words.append("--resume")
        last = run_command(words, AGAIN)
        if step.result is not None:
            results[step.result] = json.loads(last)
    return results


def make_data() -> None:
    """Write the trial data beside and rename them, so that a killed demo starts over."""
    if DATA.exists():
        print(f"# {DATA} is there already", flush=True)
        return
    partial = DATA.with_name("toy.partial")
    if partial.exists():
        shutil.rmtree(partial)
    words = TOY.split()
    beside = [str(partial) if word == str(DATA) else word for word in words]
    run_command(beside, AGAIN, shown=words)
    partial.rename(DATA)


def table(results: dict[str, dict]) -> str:
    """What came out, beside chance and baseline.

    Args:
        results: What the steps with a `result` printed.
    """
    frozen, small, heatmaps = (
        read_json(RUNS / run / "metrics.json", f"Delete {RUNS / run}, and run {AGAIN} again.")
        for run in ("frozen", "part_a", "heatmaps")
    )
    hidden_a, hidden_b = results["part_a"], results["part_b"]
    paper = next(
        rule for name, rule in results["thresholds"]["scores"].items() if name.startswith("Kwok")
    )
    chance = f"chance {1 / len(CLASSES):.2f}"
    benign = f"always benign {heatmaps['baseline']:.3f}"
    hidden_benign = f"always benign {hidden_b['baseline']['score']:.3f}"
    rows = [
        ("Part A, out of fold, four-class accuracy", frozen["accuracy"], chance),
        ("  the same, trained from random weights", small["accuracy"], chance),
        ("Part A, out of fold, carcinoma or not", frozen["binary_accuracy"], "chance 0.50"),
        ("Part A, hidden test set, four-class accuracy", hidden_a["accuracy"], chance),
        ("Part B, slides held out, score", heatmaps["score"], benign),
        ("  the same by the paper's thresholds", paper["score"]["value"], benign),
        ("Part B, hidden test set, score", hidden_b["score"], hidden_benign),
    ]
    return columns(
        ["", "result", "beside"], [(name, number(value), beside) for name, value, beside in rows]
    )


if __name__ == "__main__":
    exit_with(main)
