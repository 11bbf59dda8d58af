"""Step 1: fine-tune a network on patches of Part A photos, one model per fold.

Reads    --data-dir (photos), --folds
Writes   runs/part_a/patches/              all patches, cut once (1.5 GB)
         runs/part_a/fold_K/               model.keras, best.keras, last.keras, history.csv,
                                           history.png, batch.png (the first batch)
         runs/part_a/predictions.csv       out-of-fold, one row per image
         runs/part_a/patch_predictions.csv out-of-fold, one row per patch
         runs/part_a/errors.png            the worst mistakes
         runs/part_a/metrics.json, run.json, log.txt

    python train_part_a.py --data-dir data/BACH
    python train_part_a.py --data-dir data/toy --folds data/toy/part_a_folds.csv \\
        --backbone small --weights none --epochs 8 --learning-rate 0.02
    python train_part_a.py --data-dir data/BACH --run-dir runs/image --image-network runs/part_a

Paper (Kwok 2018, 3 folds, ImageNet weights): 0.79 four-class and 0.91 carcinoma /
non-carcinoma accuracy; 25 epochs in 35 min on two GTX 1080 Ti.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bach import tasks
from bach.core import options
from bach.core.drawings import contact_sheet
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import again, option
from bach.core.pictures import write_png
from bach.core.run import Run
from bach.core.shards import require_all, share_of_folds
from bach.core.tables import write_csv
from bach.data import list_photos, photo_sizes
from bach.honest.intervals import accuracy_interval, format_interval
from bach.honest.seen import NOTHING, Seen, check_unseen, start_file
from bach.honest.splits import (
    ALWAYS_TRAIN,
    absent_classes,
    check_belongs,
    check_classes,
    check_folds,
    join_folds,
    known_patients,
    read_folds,
    take,
)
from bach.mining import add_difficulty
from bach.patches import View
from bach.scores import part_a_metrics
from bach.tasks import task


@dataclasses.dataclass(frozen=True)
class Options(options.TrainingScript, options.Photos):
    """Options of train_part_a.py."""

    run_dir: str = again(options.Shared, "run_dir", "runs/part_a")
    folds: str = option("folds/part_a.csv", "table of folds", path=True)
    fold: int | None = option(
        None, "train only this fold; the others can be trained later, or elsewhere", where=True
    )
    known_patients: bool = option(
        False,
        "leave out the images that are in no fold (-1), whose patients nobody knows: for a score "
        "that no patient of theirs can have a part in",
    )
    margin: int = option(
        0,
        "surroundings of a patch that the network sees, in network px (2.1 um): patches and dense "
        "heatmaps are then the same function; the later scripts follow",
        at_least=0,
    )
    magnifications: int = option(
        1,
        "2: a second network beside sees the middle of the patch at twice the magnification "
        "(twice the time, four times the disk, no dense heatmaps)",
        at_least=1,
        most=2,
    )
    fields: bool = option(
        False,
        "train on whole photos instead of patches: a photo goes through the network once, and all "
        "that it sees is pooled; slides are predicted as ever",
    )
    image_network: str | None = option(
        None,
        "train on whole photos instead of patches, from the models of that run of this script "
        "(same folds; backbone, head and margin are theirs)",
        metavar="RUN",
        path=True,
    )
    patches_dir: str | None = option(
        None,
        "folder of the patches, which several runs on the same photos can share; they are cut if "
        "it is empty (default: patches in the run folder)",
        path=True,
    )


def parse_args(argv: list[str] | None = None) -> Options:
    return tasks.parse(Options, argv, __doc__)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. Images and folds; a split that leaks is refused before anything is done.
    images, folds = choose_images(args)
    run = Run(args, lambda metrics: set(map(str, folds)) <= set(metrics.get("per_fold") or ()))
    if run.finished:
        print(run.path)
        return
    check_whole_photos(args)
    photo_sizes(images, 0 if whole_photos(args) else task().patch_px)
    from bach.network import backend, training, watch  # load the framework, which --help must not
    from bach.network.processes import first_process_first

    jobs = {fold: started(args, fold) for fold in folds}
    device = backend.start(args.devices, args.seed, args.precision, processes=True)
    training.check_settings(args, view_of(args))
    hooks = watch.Hooks(args)
    with run.start(**device, **task().record):
        hooks.begin({fold: run.path / f"fold_{fold}" for fold in jobs})

        # 2. Patches, once for all folds.
        with first_process_first("patches"):
            start = jobs[folds[0]][0]
            store = cut(args, images, args.patches_dir or run.path / "patches", start)

        # 3. A model per fold, and its predictions of what it did not see.
        patients = dict(zip(images["image_id"], images["patient"], strict=True))
        tables = []
        for fold, (start, seen) in jobs.items():
            heldout = images.loc[images["fold"] == fold, "image_id"]
            held = store.table["image_id"].isin(heldout).to_numpy()
            count = store.table.loc[~held, "image_id"].nunique()
            log.info("fold %d: %d training images, %d held out", fold, count, len(heldout))
            job = training.Fold(
                fold,
                run.path / f"fold_{fold}",
                [(store, np.flatnonzero(~held))],
                (store, np.flatnonzero(held)),
                builder(args, start, images),
                start,
                seen | Seen.of(photos=store.table.loc[~held, "image_id"]),
                patients,
            )
            probs = training.train_fold(args, job, hooks)
            if probs is not None:
                table = store.table.loc[held].reset_index(drop=True).assign(fold=fold)
                tables.append(table.assign(**dict(zip(task().columns, probs.T, strict=True))))

        # 4. Scores: each image by the model that did not see it; of a part, none.
        if run.shard is not None:
            run.finish({"per_fold": {fold: {} for fold in folds}})
            print(run.path)
            return
        patches = pd.concat(tables, ignore_index=True)
        metrics, table = score(patches, images, run)
        metrics |= training.stopped_learning(run.path)
        metrics |= {"warnings": lines} if (lines := absent_classes(images)) else {}
        draw_errors(store, patches, table, run)
        run.finish(metrics)
    print(run.path)


def view_of(args: Options) -> View:
    return View(args.margin, args.magnifications)


def cut(args: Options, images: pd.DataFrame, folder: str | Path, start: Path | None):
    """The store of what the networks are trained on: patches, or whole photos."""
    from bach.network.image_network import field_shape
    from bach.network.stores import cut_photos, store_photos

    view = view_of(args)
    if args.fields:
        width, height = photo_sizes(images).max(axis=0).tolist()
        return store_photos(images, folder, field_shape(width, height, view), view.zoom)
    if args.image_network is None:
        return cut_photos(images, folder, view)
    return store_photos(images, folder, builder(args, start, images)().input_shape[1:3])


def choose_images(args: Options) -> tuple[pd.DataFrame, list[int]]:
    """The image table with folds and patients, and the folds to train.

    With --fold also those that are finished in the run folder, wherever they were trained.

    Raises:
        InputError: If the split leaks or is that of other images, or a fold does not exist
            or holds nothing out.
    """
    folds = read_folds(args.folds)
    check_folds(folds)
    images = list_photos(args.data_dir, args.images, args.mpp)
    if known_patients(images).any():  # a table of photos, or their names, tell them
        check_folds(folds, images)
    check_belongs(images, folds, args.folds)
    images = join_folds(images, folds, args.folds)
    if args.known_patients:
        images = images[images["fold"] != ALWAYS_TRAIN]
    images = take(images, args.limit)
    every = sorted(set(folds["fold"]) - {ALWAYS_TRAIN})
    own = share_of_folds(args, every)
    chosen = own if args.fold is None else [args.fold]
    if not set(chosen) <= set(every):
        raise InputError(
            f"--fold must be one of {', '.join(map(str, every))}.\nReceived: --fold={args.fold}."
        )
    for fold in chosen:
        if not (images["fold"] == fold).any():
            raise InputError(
                f"Fold {fold} has no image to hold out.\n"
                f"Received: --folds={args.folds}, --limit={args.limit}. Use a larger --limit."
            )
    check_classes(images, chosen)
    done = [fold for fold in every if (Path(args.run_dir) / f"fold_{fold}/heldout.npy").exists()]
    if args.collect:
        require_all(Path(args.run_dir), sorted(set(chosen) - set(done)), "fold")
    more = args.resume and args.shard is None
    return images, sorted({*chosen, *done}) if more else chosen


def whole_photos(args: Options) -> bool:
    return args.fields or args.image_network is not None


def check_whole_photos(args: Options) -> None:
    """Refuse what whole photos are not made for.

    Raises:
        InputError: If an image network is to be one of fields, or its top alone to be trained; or
            patches are to be drawn of whole photos.
    """
    if args.image_network is not None and (args.fields or args.train not in (None, "all")):
        raise InputError(
            "An image network is trained whole, on photos of its own.\n"
            f"Received: --image-network={args.image_network} with --fields or --train top.\n"
            "Leave out one of them."
        )
    if args.patches_per_photo and whole_photos(args):
        raise InputError(
            "Whole photos have no patches to draw.\n"
            f"Received: --patches-per-photo={args.patches_per_photo} with --fields or "
            "--image-network. Leave out one of them."
        )


def started(args: Options, fold: int) -> tuple[Path | None, Seen]:
    """The model that a fold starts from, and what it has seen.

    Raises:
        InputError: If it has seen an image that the fold holds out.
    """
    option = "weights" if args.image_network is None else "image-network"
    file = start_file(args.image_network or args.weights, fold)
    if file is None:
        return None, NOTHING
    # Those that --limit leaves out, too: they are of the same patients.
    folds = read_folds(args.folds)
    heldout = folds.loc[folds["fold"] == fold, "image_id"]
    return file, check_unseen(option, file, heldout, "photos", fold)


def builder(args: Options, start: Path | None, images: pd.DataFrame) -> Callable:
    """What builds the model of a fold, from the model that it starts from."""
    from bach.network.image_network import build_image_network
    from bach.network.patch_network import build_model, load_model
    from bach.network.training import what_to_train

    view = view_of(args)  # that of whole photos is not in their store

    def build(_view: View = view, _whole_photos: bool = False):
        if args.image_network is None or start is None:
            weights, kind = str(start or args.weights), (args.head, view, args.tokens)
            linear = what_to_train(args) == "top"
            return build_model(args.backbone, weights, *kind, linear=linear, fields=args.fields)
        patch_network = load_model(start)
        return build_image_network(patch_network, *photo_sizes(images).max(axis=0).tolist())

    return build


def score(patches: pd.DataFrame, images: pd.DataFrame, run: Run) -> tuple[dict, pd.DataFrame]:
    """Write out-of-fold predictions; print accuracy per fold, mean and spread."""
    from bach.network.predict import image_means

    write_csv(patches, run.path / "patch_predictions.csv")
    table = image_means(patches).merge(images[["image_id", "patient", "fold"]], on="image_id")
    write_csv(table, run.path / "predictions.csv")
    rows = {}
    for fold, group in table.groupby("fold"):
        rows[int(fold)] = part_a_metrics(group["label"], group["predicted"])
        print(
            f"fold {fold}: {task().in_words}-class {rows[fold]['accuracy']:.3f}, "
            f"binary {rows[fold]['binary_accuracy']:.3f} ({len(group)} images)"
        )
    metrics = part_a_metrics(table["label"], table["predicted"])
    for metric, name in (("accuracy", f"{task().in_words}-class"), ("binary_accuracy", "binary")):
        values = [row[metric] for row in rows.values()]
        metrics[f"mean_{metric}"], metrics[f"sd_{metric}"] = np.mean(values), np.std(values)
        metrics[f"{metric}_interval"] = interval = accuracy_interval(table, metric)
        print(
            f"{name}: mean over folds {np.mean(values):.3f} (sd {np.std(values):.3f}), "
            f"all images {format_interval(interval, 3)}"
        )
    predicted = patches[list(task().columns)].to_numpy().argmax(axis=1)
    metrics["patch_accuracy"] = (predicted == patches["label"]).mean()
    metrics["per_fold"] = rows
    return metrics, table


def draw_errors(
    store, patches: pd.DataFrame, table: pd.DataFrame, run: Run, count: int = 48
) -> None:
    """Write a sheet of the worst mistaken images, each by the patch that erred most."""
    wrong = table.loc[table["predicted"] != table["label"], "image_id"]
    worst = add_difficulty(patches[patches["image_id"].isin(wrong)])
    worst = worst.sort_values("difficulty", ascending=False).drop_duplicates("image_id").head(count)
    keys = ["image_id", "x", "y"]
    rows = worst[keys].merge(store.table[keys].reset_index(), on=keys)["index"]
    texts = [
        f"{row.image_id} at {row.x}, {row.y}\ntrue: {task().classes[row.label]}\n"
        f"predicted: {task().classes[row.predicted]}\ndifficulty {row.difficulty:.2f}"
        for row in worst.itertuples()
    ]
    write_png(Path(run.path) / "errors.png", contact_sheet([store.patches[i] for i in rows], texts))


if __name__ == "__main__":
    exit_with(main)
