"""Step 3: train on Part A patches and hard examples, one model a fold of slides.

The held-out slides of a fold give no patch to its training, whatever mined them.
The Part A patches are in every training part.

Reads    --part-a-dir (patches of train_part_a.py), --hard-examples-dir, --folds
Writes   runs/final/fold_K/            model.keras, last.keras, best.keras, history.csv,
                                       slides.json (the slides it was trained on)
         runs/final/predictions.csv    held-out hard examples (hard by choice: their
                                       accuracy is no estimate of anything)
         runs/final/metrics.json, run.json, log.txt

    python train_final.py
    python train_final.py --fold none       the paper's single model, on all slides

Paper (Kwok 2018): within 15 epochs, under 40 min on two GTX 1080 Ti.
"""

import argparse

import numpy as np
import pandas as pd

from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError, exit_with
from bach.core.files import write_json
from bach.core.log import log
from bach.core.options import add_shared_options, add_training_options
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.honest.splits import check_folds, join_folds, read_folds
from bach.scores import part_a_metrics


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_options(parser, run_dir="runs/final")
    add_training_options(parser, epochs=15)
    parser.add_argument("--part-a-dir", default="runs/part_a", help="run of train_part_a.py")
    parser.add_argument(
        "--hard-examples-dir", default="runs/hard_examples", help="run of mine_hard_examples.py"
    )
    parser.add_argument("--folds", default="folds/part_b.csv", help="table of folds of slides")
    parser.add_argument(
        "--fold", default=None, help="train only this fold; none: one model on all slides"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. Both sets of patches, and the folds of slides.
    from bach.network.batches import PatchStore, take_rows

    part_a = PatchStore(f"{args.part_a_dir}/patches")
    hard = PatchStore(f"{args.hard_examples_dir}/patches")
    folds = read_folds(args.folds)
    check_folds(folds)
    slides = pd.DataFrame({"image_id": hard.table["image_id"].unique()})
    slides = join_folds(slides, folds, args.folds)
    fold_of = hard.table["image_id"].map(slides.set_index("image_id")["fold"]).to_numpy()
    chosen = choose_folds(args.fold, folds, args.folds)
    run = Run(args)
    if run.finished:
        print(run.path)
        return
    with run.watch():
        from bach.network import backend, training

        backend.start(args.devices, args.seed, args.precision, processes=True)
        photos = take_rows(part_a.table, args.limit)

        # 2. A model a fold.
        tables = []
        for fold in chosen:
            held = fold_of == fold if fold is not None else np.zeros(len(fold_of), bool)
            rows = np.flatnonzero(~held)
            log.info(
                "fold %s: %d Part A patches, %d hard examples, %d held out",
                fold, len(photos), len(rows), held.sum(),
            )  # fmt: skip
            folder = run.path / f"fold_{'none' if fold is None else fold}"
            trained_on = sorted(hard.table["image_id"].iloc[rows].unique())
            write_json(folder / "slides.json", {"trained_on": trained_on})
            probs = training.train_fold(
                args,
                folder,
                -1 if fold is None else fold,
                [(part_a, photos), (hard, rows)],
                (hard, np.flatnonzero(held)) if held.any() else None,
            )
            if probs is not None:
                table = hard.table.loc[held].drop(columns=list(PROB_COLUMNS), errors="ignore")
                table = table.drop(columns=["predicted", "difficulty"], errors="ignore")
                table = table.assign(fold=fold, **dict(zip(PROB_COLUMNS, probs.T, strict=True)))
                tables.append(table.assign(predicted=probs.argmax(axis=1)))

        # 3. How the held-out hard examples fare.
        metrics = {"folds": len(chosen), "hard_examples": len(hard.table)}
        if tables:
            table = pd.concat(tables, ignore_index=True)
            write_csv(table, run.path / "predictions.csv")
            metrics |= part_a_metrics(table["label"], table["predicted"])
            print(f"held-out hard examples: {metrics['accuracy']:.3f} ({len(table):,} patches)")
        run.finish(metrics)
    print(run.path)


def choose_folds(fold: str | None, folds: pd.DataFrame, name: str) -> list[int | None]:
    """The folds to train: all, one, or [None] for a single model on all slides."""
    every = sorted(set(folds["fold"]) - {-1})
    if fold is None:
        return every
    if fold.lower() == "none":
        return [None]
    if fold.isdigit() and int(fold) in every:
        return [int(fold)]
    raise InputError(
        f"--fold must be none or one of {', '.join(map(str, every))} (of {name}).\n"
        f"Received: --fold={fold}."
    )


if __name__ == "__main__":
    exit_with(main)
