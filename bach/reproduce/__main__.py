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
         runs/reproduce/reproduction.md      the paper's figures beside ours

Time: 3 + 5 trainings and the slides; the paper's took 35 to 40 min each on two GTX 1080
Ti. The last line on stdout is the path of the table.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bach.core import options
from bach.core.commands import require_checkout, run_command
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path
from bach.core.run import git_state, locked
from bach.core.tables import write_csv
from bach.data import check_data, find_data
from bach.honest.records import read_slides
from bach.honest.splits import ALWAYS_TRAIN, read_folds
from bach.reproduce import estimate, kwok2018
from bach.reproduce.plan import Options, PassedOn, choose_folds, commands

_REPORT = """\
# Kwok 2018, reproduced

{head}

## Part A

{part_a}

The paper gives no intervals and no folds. With ours, photos of unknown patients are trained on
in every fold and never held out; where no patient at all is known, every photo counts as one,
and the accuracy may be too good.

## Hard examples

{candidates}

Counts, so without interval; which patches are hard depends on the model.

## Part B, slide by slide

{slides}

One slide alone has no interval; those of the means are in the next table.
{agreement}
## Part B

{part_b}

IN SAMPLE: the paper scored A01-A10 with the model that was trained on them. Such figures say
nothing about new slides. Ours are by models that did not see the slide{in_sample}.

To submit to the hidden tests, to learn from the mistakes, and to look at all of it in a browser:

    python -m bach.submission part-a --model-dir {out}/part_a
    python -m bach.submission part-b --run-dir {out}/heatmaps
    python -m bach.report mistakes {out}/part_a --data-dir {data}
    python -m bach.report html {out} --out {out}/report
"""


def report(args: Options, is_bach: bool, slides: pd.DataFrame, problems: int) -> str:
    """The whole comparison as Markdown, from finished run folders."""
    out = Path(args.run_dir)
    state = git_state()
    commit = (state["commit"] or "unknown")[:7] + (" with changes" if state["dirty"] else "")
    changed = " ".join(options.words(args, PassedOn))
    said = f"Not the paper's settings: `{changed}`." if changed else "Its settings."
    head = f"Data: {args.data_dir}, {problems} problems. Commit: {commit}. {said}"
    agreement = "\nAlways Benign needs no model: it checks annotations and scorer. "
    agreement += f"{kwok2018.agreement(slides)}\n"
    if not is_bach:
        agreement = ""
        head += (
            "\n\n**These are not the challenge's data.** The paper's figures stand here to show "
            "the form; they are not to be compared."
        )
    records = read_slides(out / "heatmaps")
    seen = out / "heatmaps_in_sample"
    in_sample = read_slides(seen) if seen.exists() else None
    return _REPORT.format(
        head=head,
        part_a=kwok2018.part_a_table(out / "part_a"),
        candidates=kwok2018.candidates_table(out / "hard_examples"),
        slides=kwok2018.slides_table(slides, records),
        agreement=agreement,
        part_b=kwok2018.part_b_table(slides, records, in_sample),
        in_sample="" if args.in_sample else " (`--in-sample` adds the paper's way)",
        out=out,
        data=args.data_dir,
    )


def check(args: Options) -> int:
    """Check the data; problems stop the run unless they are to be ignored."""
    table, problems = check_data(args.data_dir, args.class_map)
    counts = table.groupby("part").size()
    print(", ".join(f"{count} of part {name}" for name, count in counts.items()))
    for problem in problems:
        print(f"problem: {problem}")
    if problems and not args.ignore_problems:
        raise InputError(
            f"The data must be without problems.\nReceived: {len(problems)}, listed above.\n"
            "Fix them, or go on regardless with --ignore-problems."
        )
    return len(problems)


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return options.parse(Options, argv, __doc__, prog="python -m bach.reproduce")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    require_checkout()
    find_data(args.data_dir)  # a wrong folder is reported before another one is made
    out = Path(args.run_dir)
    with locked(out, "the same command again"):
        # 1. Folds; a split that leaks is refused by the first script.
        folds_a, folds_b, is_bach = choose_folds(args, out)
        steps = commands(args, folds_a, folds_b)
        finished = [run for run in steps if (out / run / "metrics.json").exists()]

        # 2. The data.
        print(f"# Data: {args.data_dir}", flush=True)
        problems = check(args)

        # 3. Slides without a network: annotations, scorer, amount of work.
        slides = estimate.survey(args)
        write_csv(slides, out / "slides.csv")
        print(f"\n# Always Benign, no model needed\n\n{kwok2018.slides_table(slides)}")
        if is_bach:
            print(f"\n{kwok2018.agreement(slides)}")

        # 4. What it takes.
        photos = estimate.patches_of_photos(args, folds_a)
        many_a, many_b = (
            len(set(read_folds(table)["fold"]) - {ALWAYS_TRAIN}) for table in (folds_a, folds_b)
        )
        work = estimate.workload(args, photos, slides, many_b)
        models = many_a + many_b + args.in_sample
        needed = estimate.disk_bytes(args, photos["patches"].sum(), slides, models)
        if len(finished) < len(steps):
            room = estimate.check_room(out, needed)
            text = estimate.estimate(work, finished, estimate.measured_speed(out / "part_a"))
            print(f"\n# What it takes\n\n{text}\n{room}", flush=True)

        # 5. The four scripts; the first one measures how fast a network trains here.
        for run, words in steps.items():
            resume = ["--resume"] if (out / run).exists() else []
            run_command([*words, *resume], "the same command")
            if run == "part_a" and run not in finished:
                speed = estimate.measured_speed(out / run)
                text = estimate.estimate(work, [*finished, run], speed)
                print(f"\n# What is left\n\n{text}", flush=True)

        # 6. The paper's figures beside ours.
        text = report(args, is_bach, slides, problems)
        with atomic_path(out / "reproduction.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out / 'reproduction.md'}")


if __name__ == "__main__":
    exit_with(main)
