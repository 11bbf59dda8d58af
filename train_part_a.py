"""Step 1: fine-tune a network on patches of Part A photos, one model a fold.

Reads    --data-dir (photos), --folds
Writes   runs/part_a/patches/              all patches, cut once (1.5 GB)
         runs/part_a/fold_K/               model.keras, best.keras, last.keras, history.csv,
                                           batch.png (the first batch)
         runs/part_a/predictions.csv       out-of-fold, one row an image
         runs/part_a/patch_predictions.csv out-of-fold, one row a patch
         runs/part_a/errors.png            the worst mistakes
         runs/part_a/metrics.json, run.json, log.txt

    python train_part_a.py --data-dir data/BACH
    python train_part_a.py --data-dir data/toy --folds data/toy/part_a_folds.csv \\
        --backbone small --weights none --epochs 8 --learning-rate 0.02
    python train_part_a.py --data-dir data/BACH --run-dir runs/image --image-network runs/part_a

Paper (Kwok 2018, 3 folds, ImageNet weights): 0.79 four-class and 0.91 carcinoma /
non-carcinoma accuracy; 25 epochs in 35 min on two GTX 1080 Ti.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.options import add_shared_options, add_training_options
from bach.core.pictures import contact_sheet, write_png
from bach.core.run import Run
from bach.core.tables import write_csv
from bach.data import list_images
from bach.honest.intervals import accuracy_interval, format_interval
from bach.honest.splits import ALWAYS_TRAIN, check_folds, join_folds, read_folds, take
from bach.mining import add_difficulty
from bach.scores import part_a_metrics


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_options(parser, run_dir="runs/part_a")
    add_training_options(parser, epochs=25)
    parser.add_argument("--folds", default="folds/part_a.csv", help="table of folds")
    parser.add_argument(
        "--margin", type=int, default=0,
        help="surroundings of a patch that the network sees, in network px (2.1 um): patches and "
        "dense heatmaps are then the same function; the later scripts follow",
    )  # fmt: skip
    parser.add_argument(
        "--magnifications", type=int, default=1, choices=(1, 2),
        help="2: a second network beside sees the middle of the patch at twice the magnification "
        "(twice the time, four times the disk, no dense heatmaps)",
    )  # fmt: skip
    parser.add_argument(
        "--image-network", default=None, metavar="RUN",
        help="train on whole photos instead of patches, from the models of that run of this script "
        "(same folds; backbone, head and margin are theirs)",
    )  # fmt: skip
    parser.add_argument("--fold", type=int, default=None, help="train only this fold")
    parser.add_argument(
        "--known-patients", action="store_true",
        help="leave out the images that are in no fold (-1), whose patients nobody knows: for a "
        "score that no patient of theirs can have a part in",
    )  # fmt: skip
    parser.add_argument(
        "--patches-dir", default=None,
        help="folder of the patches, which several runs on the same photos can share; they are "
        "cut if it is empty (default: patches in the run folder)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. Images and folds; a split that leaks is refused before anything is done.
    folds = read_folds(args.folds)
    check_folds(folds)
    images = join_folds(list_images(args.data_dir, "A"), folds, args.folds)
    if args.known_patients:
        images = images[images["fold"] != ALWAYS_TRAIN]
    images = take(images, args.limit)
    every = sorted(set(folds["fold"]) - {ALWAYS_TRAIN})
    chosen = every if args.fold is None else [args.fold]
    if not set(chosen) <= set(every):
        raise InputError(
            f"--fold must be one of {', '.join(map(str, every))}.\nReceived: --fold={args.fold}."
        )
    if args.image_network is not None:
        check_unseen("image-network", args.image_network, images, chosen)
    if os.path.exists(args.weights):
        check_unseen("weights", args.weights, images, chosen)
    run = Run(args)
    if run.finished:
        print(run.path)
        return
    with run.watch():
        # 2. Patches, once for all folds.
        from bach.network import backend, training
        from bach.network.batches import cut_photos, store_photos
        from bach.patches import View

        backend.start(args.devices, args.seed, args.precision, processes=True)
        build = None
        view = View(args.margin, args.magnifications)
        shape = (view.side,) * 2
        if args.image_network is not None:
            build = {fold: image_network(args.image_network, fold, images) for fold in chosen}
            shape = build[chosen[0]]().input_shape[1:3]
        with backend.first_process_first("patches"):
            share_patches(args.patches_dir, run)
            if build is None:
                store = cut_photos(images, run.path / "patches", view)
            else:
                store = store_photos(images, run.path / "patches", shape)
        found = store.patches.shape[1:3]
        if set(store.table["image_id"]) != set(images["image_id"]) or found != shape:
            raise InputError(
                "The patches must be those of the chosen photos, and of the network's size.\n"
                f"Received: --patches-dir={args.patches_dir}, with patches of {found[1]}x{found[0]}"
                f" px of {store.table['image_id'].nunique()} photos; {len(images)} photos are "
                f"chosen, the network takes {shape[1]}x{shape[0]} px.\n"
                "Name another folder, and they are cut."
            )

        # 3. A model a fold, and its predictions of what it did not see.
        tables = []
        for fold in chosen:
            heldout = images.loc[images["fold"] == fold, "image_id"]
            held = store.table["image_id"].isin(heldout).to_numpy()
            log.info(
                "fold %d: %d training images, %d held out", fold,
                store.table.loc[~held, "image_id"].nunique(),
                store.table.loc[held, "image_id"].nunique(),
            )  # fmt: skip
            if not held.any():
                raise InputError(
                    f"Fold {fold} has no image to hold out.\n"
                    f"Received: --folds={args.folds}, --limit={args.limit}. Use a larger --limit."
                )
            probs = training.train_fold(
                started_from(args, fold),
                run.path / f"fold_{fold}",
                fold,
                [(store, np.flatnonzero(~held))],
                (store, np.flatnonzero(held)),
                build and build[fold],
            )
            table = store.table.loc[held].reset_index(drop=True).assign(fold=fold)
            tables.append(table.assign(**dict(zip(PROB_COLUMNS, probs.T, strict=True))))

        # 4. Scores: each image by the model that did not see it.
        metrics = report(pd.concat(tables, ignore_index=True), images, run)
        run.finish(metrics)
    print(run.path)


def check_unseen(option: str, start: str, images: pd.DataFrame, chosen: list[int]) -> None:
    """Refuse to start from models of this script that have seen what is to be held out.

    Args:
        option: Which option named them.
        start: Run folder, whose models each serve for their own fold, or a file; a file
            that lies in no run of this script is taken as it is.
        images: Image table with `fold`.
        chosen: Folds to be held out.

    Raises:
        InputError: If an image held out now was not held out by the model that the
            training of its fold starts from, or the run is not finished.
    """
    start = Path(start)
    run_dir, fold = start, None
    if start.is_file():
        if (start.parent / "slides.json").exists():
            raise InputError(
                "A model of train_final.py has seen all photos, those held out now as well.\n"
                f"Received: --{option}={start}. Name a run of this script on the same folds."
            )
        run_dir, (name, _, number) = start.parent.parent, start.parent.name.partition("_")
        if name != "fold" or not number.isdigit() or not (run_dir / "predictions.csv").exists():
            return
        fold = int(number)
    file = run_dir / "predictions.csv"
    if not file.exists():
        raise InputError(
            "A run to start from must be a finished one of this script.\n"
            f"Received: --{option}={start}, without {file.name}."
        )
    then = pd.read_csv(file, dtype={"image_id": str}).set_index("image_id")["fold"]
    now = images[images["fold"].isin(chosen)].set_index("image_id")["fold"]
    unseen = then.reindex(now.index) == (now if fold is None else fold)
    if not unseen.all():
        raise InputError(
            "Models to start from must not have seen what is held out now: name a run on the same "
            "folds, each of whose models then serves for its own.\n"
            f"Received: --{option}={start}; {(~unseen).sum()} images that are held out now were "
            f"not there, such as {unseen.idxmin()}.\n"
            "(If that run was on other photos of the same names, copy the model elsewhere.)"
        )


def started_from(args: argparse.Namespace, fold: int) -> argparse.Namespace:
    """The arguments for a fold: if --weights is a run, those of its model of that fold."""
    from bach.network.predict import model_file

    if not os.path.isdir(args.weights):
        return args
    weights = str(model_file(args.weights, fold))
    return argparse.Namespace(**vars(args) | {"weights": weights})


def image_network(run_dir: str, fold: int, images: pd.DataFrame) -> Callable:
    """What builds the image network of a fold."""
    from bach.network.image_network import build_image_network
    from bach.network.patch_network import load_model
    from bach.network.predict import model_file

    def build():
        patch_network = load_model(model_file(run_dir, fold))
        return build_image_network(patch_network, images["width"].max(), images["height"].max())

    return build


def share_patches(patches_dir: str | None, run: Run) -> None:
    """Make `patches` of a run a link to a folder that other runs use as well."""
    if patches_dir is None or (run.path / "patches").exists():
        return
    Path(patches_dir).mkdir(parents=True, exist_ok=True)
    (run.path / "patches").symlink_to(Path(patches_dir).resolve())


def report(patches: pd.DataFrame, images: pd.DataFrame, run: Run) -> dict:
    """Write out-of-fold predictions; print accuracy a fold, mean and spread."""
    from bach.network.predict import image_means

    write_csv(patches, run.path / "patch_predictions.csv")
    table = image_means(patches).merge(images[["image_id", "patient", "fold"]], on="image_id")
    write_csv(table, run.path / "predictions.csv")
    rows = {}
    for fold, group in table.groupby("fold"):
        rows[int(fold)] = part_a_metrics(group["label"], group["predicted"])
        print(
            f"fold {fold}: four-class {rows[fold]['accuracy']:.3f}, "
            f"binary {rows[fold]['binary_accuracy']:.3f} ({len(group)} images)"
        )
    overall = part_a_metrics(table["label"], table["predicted"])
    for metric, name in (("accuracy", "four-class"), ("binary_accuracy", "binary")):
        values = [row[metric] for row in rows.values()]
        overall[f"mean_{metric}"], overall[f"sd_{metric}"] = np.mean(values), np.std(values)
        overall[f"{metric}_interval"] = interval = accuracy_interval(table, metric)
        print(
            f"{name}: mean over folds {np.mean(values):.3f} (sd {np.std(values):.3f}), "
            f"all images {format_interval(interval, 3)}"
        )
    overall["patch_accuracy"] = (
        patches[list(PROB_COLUMNS)].to_numpy().argmax(axis=1) == patches["label"]
    ).mean()
    overall["per_fold"] = rows
    draw_errors(patches, table, run)
    return overall


def draw_errors(patches: pd.DataFrame, table: pd.DataFrame, run: Run, count: int = 48) -> None:
    """Write a sheet of the worst mistaken images, each by the patch that erred most."""
    from bach.network.batches import PatchStore

    store = PatchStore(run.path / "patches")
    wrong = table.loc[table["predicted"] != table["label"], "image_id"]
    worst = add_difficulty(patches[patches["image_id"].isin(wrong)])
    worst = worst.sort_values("difficulty", ascending=False).drop_duplicates("image_id").head(count)
    keys = ["image_id", "x", "y"]
    rows = worst[keys].merge(store.table[keys].reset_index(), on=keys)["index"]
    texts = [
        f"{row.image_id}: {CLASSES[row.label]} as {CLASSES[row.predicted]}"
        for row in worst.itertuples()
    ]
    write_png(run.path / "errors.png", contact_sheet([store.patches[i] for i in rows], texts))


if __name__ == "__main__":
    exit_with(main)
