"""Step 3: train on Part A patches and hard examples, one model per fold of slides.

The held-out slides of a fold give no patch to its training, whatever mined them.
The Part A patches are in every training part.

Reads    --part-a-dir (patches of train_part_a.py), --hard-examples-dir, --folds
Writes   runs/final/fold_K/            model.keras (which says what it has seen),
                                       last.keras, best.keras, history.csv, history.png,
                                       fold.json (what it depends on)
         runs/final/predictions.csv    held-out hard examples (hard by choice: their
                                       accuracy is no estimate of anything)
         runs/final/metrics.json, run.json, log.txt

    python train_final.py
    python train_final.py --fold none       the paper's single model, on all slides
    python train_final.py --part-a-dir none --hard-examples-dir runs/drawn --folds none
                                            without photos: patches of slides alone

Paper (Kwok 2018): within 15 epochs, under 40 min on two GTX 1080 Ti.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bach import tasks
from bach.core import options
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import again, option
from bach.core.run import Run, patch_folder, read_record
from bach.core.shards import require_all, share_of_folds
from bach.core.tables import image_key, write_csv
from bach.core.text import listed
from bach.honest.seen import NOTHING, Seen, check_unseen, start_file
from bach.honest.splits import (
    ALWAYS_TRAIN,
    check_folds,
    check_unshared,
    join_folds,
    known_patients,
    read_folds,
    read_image_table,
)
from bach.mining import ALL, find_draw
from bach.patches import COLUMNS
from bach.scores import part_a_metrics
from bach.tasks import task


@dataclasses.dataclass(frozen=True)
class Options(options.TrainingScript):
    """Options of train_final.py."""

    run_dir: str = again(options.Shared, "run_dir", "runs/final")
    epochs: int = again(options.Training, "epochs", 15)
    part_a_dir: str = option(
        "runs/part_a",
        "run of train_part_a.py; none: train on patches of slides alone",
        path=True,
    )
    hard_examples_dir: str = option("runs/hard_examples", "run of mine_hard_examples.py", path=True)
    more_patches_dir: tuple[str, ...] = option(
        (),
        "further runs of mine_hard_examples.py, whose patches are trained on as well",
        path=True,
        metavar="RUN",
    )
    folds: str = option(
        "folds/part_b.csv",
        "table of folds of slides; none: nothing is held out, one model on all slides",
        path=True,
    )
    fold: str | None = option(
        None,
        "train only this fold, the others later or elsewhere; none: one model on all slides",
        where=True,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    return tasks.parse(Options, argv, __doc__)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folds = None if args.folds.lower() == "none" else read_folds(args.folds)
    if folds is not None:
        check_folds(folds)
    chosen = choose_folds(args, folds)
    run = Run(args, lambda metrics: set(map(str, chosen)) <= set(metrics.get("per_fold") or ()))
    if run.finished:
        print(run.path)
        return
    from bach.network import backend, training, watch  # load the framework, which --help must not
    from bach.network.stores import PatchStore, take_rows

    # 1. Photos' patches, if any, and those of slides; what a fold may train on was drawn without
    #    its held-out slides.
    parts, photos = [], pd.Series(dtype=str)
    if args.part_a_dir.lower() != "none":
        part_a = PatchStore(patch_folder(args.part_a_dir))
        parts = [(part_a, take_rows(part_a.table, args.limit))]
        photos = part_a.table["image_id"].iloc[parts[0][1]]
    runs = (args.hard_examples_dir, *args.more_patches_dir)
    stores = [PatchStore(patch_folder(run)) for run in runs]
    draws = {fold: [find_draw(run, folds, fold) for run in runs] for fold in chosen}
    hard = stores[0]
    fold_of = np.full(len(hard.table), ALWAYS_TRAIN)
    if folds is not None:
        fold_of = join_folds(hard.table, folds, args.folds)["fold"].to_numpy()
    starts = {fold: started(args, fold, folds) for fold in chosen}
    told = patients_of(args.part_a_dir) if parts else {}
    patients = {name: told.get(image_key(name), "") for name in set(photos)}
    if folds is not None:
        check_unshared(patients.values(), folds[folds["fold"].isin(chosen)])
    device = backend.start(args.devices, args.seed, args.precision, processes=True)
    training.check_settings(args)
    hooks = watch.Hooks(args)
    with run.start(**device, **task().record):
        hooks.begin({fold: run.path / f"fold_{name_of(fold)}" for fold in chosen})

        # 2. A model per fold.
        tables = []
        for fold, names in draws.items():
            trained = [
                (store, np.flatnonzero(store.table[draw] == 1))
                for store, draw in zip(stores, names, strict=True)
            ]
            held = np.flatnonzero((fold_of == fold) & (hard.table[ALL] == 1))
            count = sum(len(rows) for _, rows in trained)
            said = f"{len(photos):,} patches of photos, " if parts else ""
            said += f"{count:,} of slides, {len(held):,} held out"
            log.info("fold %s: %s", name_of(fold), said)
            start, seen = starts[fold]
            slides = pd.concat([store.table["image_id"].iloc[rows] for store, rows in trained])
            job = training.Fold(
                ALWAYS_TRAIN if fold is None else fold,
                run.path / f"fold_{name_of(fold)}",
                [*parts, *trained],
                (hard, held) if len(held) else None,
                builder(args, start),
                start,
                seen | Seen.of(photos=photos, slides=slides),
                patients,
            )
            probs = training.train_fold(args, job, hooks)
            if probs is not None:
                tables.append(with_probs(hard.table.iloc[held][[*COLUMNS]], fold, probs))

        # 3. How the held-out hard examples fare, once all parts are together.
        metrics: dict = {"folds": len(chosen), "hard_examples": sum(len(s.table) for s in stores)}
        metrics["per_fold"] = {name_of(fold): " ".join(names) for fold, names in draws.items()}
        metrics |= training.stopped_learning(run.path)
        if tables and run.shard is None:
            table = pd.concat(tables, ignore_index=True)
            write_csv(table, run.path / "predictions.csv")
            metrics |= part_a_metrics(table["label"], table["predicted"])
            print(f"held-out hard examples: {metrics['accuracy']:.3f} ({len(table):,} patches)")
        run.finish(metrics)
    print(run.path)


def with_probs(table: pd.DataFrame, fold: int | None, probs: np.ndarray) -> pd.DataFrame:
    """Held-out patches with what their fold's model says of them."""
    table = table.assign(fold=fold, **dict(zip(task().columns, probs.T, strict=True)))
    return table.assign(predicted=probs.argmax(axis=1))


def builder(args: Options, start: Path | None) -> Callable:
    """What builds the model of a fold, from the model that it starts from."""
    from bach.network.patch_network import build_model
    from bach.network.training import what_to_train

    weights, linear = str(start or args.weights), what_to_train(args) == "top"
    return lambda view, whole_photos: build_model(
        args.backbone, weights, args.head, view, args.tokens, linear=linear, fields=whole_photos
    )


def patients_of(part_a_dir: str) -> dict[str, str]:
    """Patients by the keys of photos, as the tables that the run of step 1 was told know them."""
    record = read_record(part_a_dir) or {}
    told = map(record.get("arguments", {}).get, ("images", "folds"))
    files = [Path(record.get("folder", "."), str(name)) for name in told if name]
    there = [file for file in files if file.is_file()]
    if there != files or not files:
        log.warning(
            "%s: its tables are not there any more (%s): nobody whom they know is kept from both "
            "sides, and of --train top the penalty may come out too weak",
            part_a_dir,
            listed(file for file in files if file not in there) or "no run.json",
        )
    patients: dict[str, str] = {}
    for table in map(read_image_table, there):
        known = table[known_patients(table)]
        patients |= dict(zip(map(image_key, known["image_id"]), known["patient"], strict=True))
    return patients


def name_of(fold: int | None) -> str:
    return "none" if fold is None else str(fold)


def started(
    args: Options, fold: int | None, folds: pd.DataFrame | None
) -> tuple[Path | None, Seen]:
    """The model that a fold starts from, and what it has seen.

    Raises:
        InputError: If it has seen a slide that the fold holds out.
    """
    file = start_file(args.weights, fold)
    if file is None:
        return None, NOTHING
    heldout = []
    if fold is not None and folds is not None:
        heldout = folds["image_id"][folds["fold"] == fold]
    return file, check_unseen("weights", file, heldout, "slides", fold)


def choose_folds(args: Options, folds: pd.DataFrame | None) -> list[int | None]:
    """The folds to train: all, one, or [None] for a single model on all slides."""
    if folds is None and (args.fold or "none").lower() == "none":
        return [None]
    if folds is None:
        raise InputError(
            f"A fold is one of a table of folds.\nReceived: --fold={args.fold} --folds=none.\n"
            "Leave --fold out, or name the table."
        )
    every = sorted(set(folds["fold"]) - {ALWAYS_TRAIN})
    own = share_of_folds(args, every)
    if args.fold is None:
        if args.collect:
            done = [(Path(args.run_dir) / f"fold_{fold}/heldout.npy").exists() for fold in own]
            missing = [fold for fold, there in zip(own, done, strict=True) if not there]
            require_all(Path(args.run_dir), missing, "fold")
        return own
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
