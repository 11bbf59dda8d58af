"""Step 3: train on Part A patches and hard examples, one model per fold of slides.

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

import dataclasses

import numpy as np
import pandas as pd

from bach.classes import PROB_COLUMNS
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import again, option
from bach.core.run import Run, patch_folder
from bach.core.tables import write_csv
from bach.honest.seen import write_trained_slides
from bach.honest.splits import ALWAYS_TRAIN, check_folds, join_folds, read_folds
from bach.scores import part_a_metrics


@dataclasses.dataclass(frozen=True)
class Options(options.TrainingScript):
    """Options of train_final.py."""

    run_dir: str = again(options.Shared, "run_dir", "runs/final")
    epochs: int = again(options.Training, "epochs", 15)
    part_a_dir: str = option("runs/part_a", "run of train_part_a.py", path=True)
    hard_examples_dir: str = option("runs/hard_examples", "run of mine_hard_examples.py", path=True)
    folds: str = option("folds/part_b.csv", "table of folds of slides", path=True)
    fold: str | None = option(None, "train only this fold; none: one model on all slides")


def parse_args(argv: list[str] | None = None) -> Options:
    return options.parse(Options, argv, __doc__)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folds = read_folds(args.folds)
    check_folds(folds)
    chosen = choose_folds(args, folds)
    run = Run(args)
    if run.finished:
        print(run.path)
        return
    from bach.network import backend, training  # load the framework, which --help must not
    from bach.network.patch_network import build_model
    from bach.network.stores import PatchStore, take_rows

    # 1. Both sets of patches, and the folds of slides.
    part_a = PatchStore(patch_folder(args.part_a_dir))
    photos = take_rows(part_a.table, args.limit)
    hard = PatchStore(patch_folder(args.hard_examples_dir))
    fold_of = join_folds(hard.table, folds, args.folds)["fold"].to_numpy()
    device = backend.start(args.devices, args.seed, args.precision, processes=True)
    training.check_settings(args)
    with run.start(**device):
        # 2. A model per fold.
        # Differs from Kwok 2018: one model per fold of slides, so that every slide is predicted by
        # a model that did not see it. The paper has a single model (--fold none), and its score
        # of A01-A10 is in sample.
        tables = []
        for fold in chosen:
            held = np.zeros(len(fold_of), bool) if fold is None else fold_of == fold
            rows = np.flatnonzero(~held)
            said = f"{len(photos)} Part A patches, {len(rows)} hard examples, {held.sum()} held out"
            log.info("fold %s: %s", fold, said)
            folder = run.path / f"fold_{'none' if fold is None else fold}"
            write_trained_slides(folder, sorted(hard.table["image_id"].iloc[rows].unique()))
            probs = training.train_fold(
                args,
                folder,
                ALWAYS_TRAIN if fold is None else fold,
                [(part_a, photos), (hard, rows)],
                (hard, np.flatnonzero(held)) if held.any() else None,
                lambda view: build_model(args.backbone, args.weights, args.head, view),
            )
            if probs is not None:
                table = hard.table.loc[held].drop(
                    columns=[*PROB_COLUMNS, "predicted", "difficulty"]
                )
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


def choose_folds(args: Options, folds: pd.DataFrame) -> list[int | None]:
    """The folds to train: all, one, or [None] for a single model on all slides."""
    every = sorted(set(folds["fold"]) - {ALWAYS_TRAIN})
    if args.fold is None:
        return every
    if args.fold.lower() == "none":
        return [None]
    if args.fold.isdigit() and int(args.fold) in every:
        return [int(args.fold)]
    raise InputError(
        f"--fold must be none or one of {', '.join(map(str, every))} (of {args.folds}).\n"
        f"Received: --fold={args.fold}."
    )


if __name__ == "__main__":
    exit_with(main)
