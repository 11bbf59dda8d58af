"""Reproduce Kwok 2018 on the challenge data, and lay the paper's figures beside ours.

    make reproduce DATA=data/BACH
    python -m bach.reproduce --data-dir data/BACH

Checks the data, says what the run will take, runs the four scripts with the paper's
settings, and prints the comparison. Killed at any point, the same command goes on where
it stopped. Options of the scripts are passed on; a quick trial on two cores:

    make reproduce DATA=data/toy ARGS="--backbone small --weights none --epochs 1"

Reads    --data-dir, --folds-a, --folds-b (for data that are not the challenge's, folds are
         made, with the patients.csv of the data folder)
Writes   runs/reproduce/part_a, hard_examples, final, heatmaps   run folders of the scripts
         runs/reproduce/slides.csv           every slide: patches, always-Benign scores
         runs/reproduce/rates.json           measured patches/s and memory
         runs/reproduce/reproduction.md      the paper's figures beside ours

Time: 3 + 5 trainings and the slides; the paper's took 35 to 40 min each on two GTX 1080
Ti. The last line on stdout is the path of the table.
"""

import argparse
import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from bach import folds as fold_tables
from bach.classes import CLASSES
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path
from bach.core.log import log
from bach.core.options import add_device_options, add_training_options
from bach.core.run import git_state
from bach.core.tables import image_key, write_csv
from bach.data import check_data, find_data, list_images
from bach.demo import ROOT, call
from bach.effort import epochs, estimate, measured, survey
from bach.heatmap import STEP_UM
from bach.honest.splits import read_folds
from bach.mining import HARD_EXAMPLES
from bach.paper import (
    PAPER_EPOCHS,
    agreement,
    candidates_table,
    part_a_table,
    part_b_table,
    slides_table,
)
from bach.patches import SLIDE_STRIDE_UM

SCRIPTS = {
    "part_a": "train_part_a.py",
    "hard_examples": "mine_hard_examples.py",
    "final": "train_final.py",
    "heatmaps": "make_heatmap.py",
}
IN_SAMPLE = {"final_all": "train_final.py", "heatmaps_in_sample": "make_heatmap.py"}

_FOLDS_A, _FOLDS_B = 3, 5


# What to run


def passed_on(args: argparse.Namespace, run: str) -> list[str]:
    """The options of a script that differ from its defaults, as words."""
    script = SCRIPTS.get(run) or IN_SAMPLE[run]
    parser = argparse.ArgumentParser()
    if script.startswith("train"):
        add_training_options(parser, epochs=PAPER_EPOCHS["final" if "final" in run else run])
    else:
        add_device_options(parser)
        parser.add_argument("--mpp", default=None)
    if run == "hard_examples":
        parser.add_argument("--hard-examples", default=HARD_EXAMPLES)
        parser.add_argument("--stride-um", default=SLIDE_STRIDE_UM)
    if script == "make_heatmap.py":
        parser.add_argument("--step-um", default=STEP_UM)
    parser.add_argument("--seed", default=0)
    parser.add_argument("--limit", default=None)
    words = []
    for name, default in vars(parser.parse_args([])).items():
        value = epochs(args, run) if name == "epochs" else getattr(args, name)
        if value != default:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def commands(args: argparse.Namespace, folds_a: Path, folds_b: Path) -> dict[str, list[str]]:
    """The command of every script, as words after `python`, by the name of its run."""
    out = Path(args.run_dir)
    trained = ["--part-a-dir", out / "part_a", "--hard-examples-dir", out / "hard_examples"]
    special = {
        "part_a": ["--folds", folds_a],
        "hard_examples": ["--model-dir", out / "part_a"],
        "final": [*trained, "--folds", folds_b],
        "heatmaps": ["--model-dir", out / "final"],
        "final_all": [*trained, "--folds", folds_b, "--fold", "none"],
        "heatmaps_in_sample": ["--model-dir", out / "final_all", "--part", "B"],
    }
    runs = SCRIPTS | (IN_SAMPLE if args.in_sample else {})
    result = {}
    for run, script in runs.items():
        words = [script, "--data-dir", args.data_dir, "--run-dir", out / run, *special[run]]
        result[run] = [*map(str, words), *passed_on(args, run)]
    return result


def choose_folds(args: argparse.Namespace, out: Path) -> tuple[Path, Path, bool]:
    """The fold tables to use, made first if the data are not the challenge's.

    The committed tables are only for the challenge's own images: other data can have
    the same file names, and then patients would be taken for others.

    Returns:
        Fold table of Part A and of Part B, and whether the data are the challenge's.
    """
    photos, slides = list_images(args.data_dir, "A"), list_images(args.data_dir, "B")
    committed = [ROOT / "folds/part_a.csv", ROOT / "folds/part_b.csv"]
    known = {
        (image_key(i), name)
        for i, name in read_folds(committed[0])[["image_id", "label"]].to_numpy()
    }
    here = {(image_key(i), CLASSES[label]) for i, label in photos[["image_id", "label"]].to_numpy()}
    known_slides = set(read_folds(committed[1])["image_id"].map(image_key))
    here_slides = set(slides["image_id"].map(image_key))
    own = Path(args.data_dir) / "patients.csv"
    patients = args.patients or (own if own.exists() else None)
    is_bach = not own.exists() and here <= known and here_slides <= known_slides
    data = ["--data-dir", str(args.data_dir)]
    folds_a, folds_b = args.folds_a, args.folds_b
    if folds_a is None and is_bach and not patients:
        folds_a = _short(committed[0])
    elif folds_a is None:
        folds_a = out / "folds_a.csv"
        who = ["--patients", str(patients)] if patients else ["--unknown", "own"]
        if not patients:
            log.warning("no patients.csv: every photo counts as a patient, folds may leak")
        made = ["make", *data, "--part", "a", "--folds", str(_FOLDS_A), *who]
        fold_tables.main([*made, "--out", str(folds_a)])
    if folds_b is None and is_bach and here_slides == known_slides:
        folds_b = _short(committed[1])
    elif folds_b is None:
        folds_b = out / "folds_b.csv"
        many = min(_FOLDS_B, len(slides))
        made = ["make", *data, "--part", "b", "--folds", str(many), "--out", str(folds_b)]
        fold_tables.main(made)
    return Path(folds_a), Path(folds_b), is_bach


def _short(path: Path) -> Path:
    """A path from the current folder, if it lies below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


# What came out


def report(args: argparse.Namespace, is_bach: bool, slides: pd.DataFrame, problems: int) -> str:
    """The whole comparison as Markdown, from finished run folders."""
    out = Path(args.run_dir)
    patches = len(pd.read_csv(out / "part_a/patches/patches.csv", usecols=["image_id"]))
    runs = {run: _slide_records(out / run) for run in ("heatmaps", "heatmaps_in_sample")
            if (out / run).exists()}  # fmt: skip
    state = git_state()
    commit = (state["commit"] or "unknown")[:7] + (" with changes" if state["dirty"] else "")
    settings = changed(args)
    said = f"Not the paper's settings: {', '.join(settings)}." if settings else "Its settings."
    lines = ["# Kwok 2018, reproduced", ""]
    lines.append(f"Data: {args.data_dir}, {problems} problems. Commit: {commit}. {said}")
    if not is_bach:
        lines += ["", "**These are not the challenge's data.** The paper's figures stand here to "
                  "show the form; they are not to be compared."]  # fmt: skip
    lines += [
        "", "## Part A", "", part_a_table(out / "part_a", patches), "",
        "The paper gives no intervals and no folds. With ours, photos of unknown patients are "
        "trained on in every fold and never held out; where no patient at all is known, every "
        "photo counts as one, and the accuracy may be too good.",
        "", "## Hard examples", "", candidates_table(out / "hard_examples"), "",
        "Counts, so without interval; which patches are hard depends on the model.",
        "", "## Part B, slide by slide", "", slides_table(slides, runs["heatmaps"]), "",
        "One slide alone has no interval; those of the means are in the next table.", "",
    ]  # fmt: skip
    if is_bach:
        lines += [f"Always Benign needs no model: it checks annotations and scorer. "
                  f"{agreement(slides)}", ""]  # fmt: skip
    lines += [
        "## Part B", "", part_b_table(slides, runs), "",
        "IN SAMPLE: the paper scored A01-A10 with the model that was trained on them. Such "
        "figures say nothing about new slides. Ours are by models that did not see the slide"
        + ("" if args.in_sample else " (`--in-sample` adds the paper's way)") + ".",
        "",
        f"To submit to the hidden tests: `python -m bach.submission part-a --model-dir "
        f"{out / 'part_a'}` and `part-b --run-dir {out / 'heatmaps'}`. To learn from the "
        f"mistakes: `python -m bach.report mistakes {out / 'part_a'} --data-dir "
        f"{args.data_dir}`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def changed(args: argparse.Namespace) -> list[str]:
    """The options that are not the paper's, as they are typed."""
    where = (
        "data_dir",
        "run_dir",
        "folds_a",
        "folds_b",
        "patients",
        "ignore_problems",
        "in_sample",
    )
    return [
        f"`--{name.replace('_', '-')} {getattr(args, name)}`"
        for name, default in vars(parse_args([])).items()
        if name not in where and getattr(args, name) != default
    ]


def _slide_records(run: Path) -> dict[str, dict]:
    """Records of the scored slides of a heatmap run, by name."""
    records = {path.stem: json.loads(path.read_text()) for path in run.glob("slides/*.json")}
    return {name: records[name] for name in sorted(records) if "counts" in records[name]}


# The tool


@contextlib.contextmanager
def alone(out: Path) -> Iterator[tuple[int, ...]]:
    """Wait until no other process works in a folder, then keep others out.

    A script can outlive a `kill -9` of the process that started it; two at once would
    spoil each other's files.

    Yields:
        File descriptors to hand to the processes that are started, which hold the
        lock until they end; empty where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield ()
        return
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is at work in %s (of a killed run?): waiting for it", out)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # file systems without locks
            log.warning("%s cannot be locked (%s): start one run at a time", out, error)
        yield (file.fileno(),)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a plain `kill` end the running script too, as Ctrl-C does."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bach.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", default="data/BACH", help="folder of the challenge data")
    parser.add_argument("--run-dir", default="runs/reproduce", help="folder to write to")
    parser.add_argument("--ignore-problems", action="store_true", help="go on with faulty data")
    parser.add_argument(
        "--in-sample", action="store_true",
        help="also train the paper's single model on all slides and score it on them",
    )  # fmt: skip
    parser.add_argument("--folds-a", default=None, help="table of folds of photos")
    parser.add_argument("--folds-b", default=None, help="table of folds of slides")
    parser.add_argument(
        "--patients", default=None,
        help="CSV of image_id and patient to make folds of photos by "
        "(default: patients.csv of the data folder, if it is not the challenge's)",
    )  # fmt: skip
    passed = parser.add_argument_group(
        "options of the scripts", "the paper's values by default; see their --help"
    )
    add_training_options(passed, epochs=None)
    passed.add_argument("--epochs-part-a", type=int, default=None, help="of train_part_a.py alone")
    passed.add_argument("--epochs-final", type=int, default=None, help="of train_final.py alone")
    passed.add_argument(
        "--hard-examples", type=int, default=HARD_EXAMPLES, help="hard examples to draw"
    )
    passed.add_argument(
        "--stride-um", type=float, default=SLIDE_STRIDE_UM, help="step between patches to mine"
    )
    passed.add_argument("--step-um", type=float, default=STEP_UM, help="side of a heatmap cell")
    passed.add_argument("--mpp", type=float, default=None, help="um per px of slides without scale")
    passed.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    passed.add_argument("--limit", type=int, default=None, help="so many images a class, or slides")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    find_data(args.data_dir)  # a wrong folder is said before another one is made
    out = Path(args.run_dir)
    out.mkdir(parents=True, exist_ok=True)
    with interruptible(), alone(out) as pass_fds:
        # 1. Folds; a split that leaks is refused by the first script.
        folds_a, folds_b, is_bach = choose_folds(args, out)
        steps = commands(args, folds_a, folds_b)
        finished = [run for run in steps if (out / run / "metrics.json").exists()]
        if len(finished) < len(steps):
            rates = measured(args, out, pass_fds)

        # 2. The data.
        print(f"# Data: {args.data_dir}", flush=True)
        problems = check(args)

        # 3. Slides without a network: annotations, scorer, amount of work.
        slides = survey(args)
        write_csv(slides, out / "slides.csv")
        print(f"\n# Always Benign, no model needed\n\n{slides_table(slides)}", flush=True)
        if is_bach:
            print(f"\n{agreement(slides)}", flush=True)

        # 4. What it takes.
        if len(finished) < len(steps):
            estimate(args, out, folds_a, folds_b, slides, rates, finished)

        # 5. The four scripts.
        for run, words in steps.items():
            words += ["--resume"] if (out / run).exists() else []
            here = [str(ROOT / words[0]), *words[1:]]
            call(here, shown=words, again="the same command", pass_fds=pass_fds)

        # 6. The paper's figures beside ours.
        text = report(args, is_bach, slides, problems)
        with atomic_path(out / "reproduction.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out / 'reproduction.md'}")


def check(args: argparse.Namespace) -> int:
    """Check the data; problems stop the run unless they are to be ignored."""
    table, problems = check_data(args.data_dir)
    counts = table.groupby("part").size()
    print(", ".join(f"{count} of part {name}" for name, count in counts.items()))
    for problem in problems:
        print(f"problem: {problem}")
    if problems and not args.ignore_problems:
        raise InputError(
            f"The data must be without problems.\nReceived: {len(problems)}, listed above.\n"
            "Mend them, or go on regardless with --ignore-problems."
        )
    return len(problems)


if __name__ == "__main__":
    exit_with(main)
