"""What a reproduction takes on this machine: patches, time, disk, memory."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.log import log
from bach.core.text import duration
from bach.data import find_data, list_images
from bach.demo import ROOT
from bach.heatmap import heatmap_patches
from bach.honest.splits import join_folds, read_folds, take
from bach.mining import HARDEST, MIN_TISSUE_HARD, mining_patches
from bach.paper import PAPER_EPOCHS, PAPER_MACHINE, PAPER_MINUTES, markdown
from bach.patches import NETWORK_SIZE, PATCH_SIZE, PATCH_STRIDE, grid
from bach.scores import joint_counts, score_from_counts
from bach.slides import Slide
from bach.tissue import slide_maps

_MEASURE_S = 3.0


def epochs(args: argparse.Namespace, run: str) -> int:
    """Epochs of a training run: its own option, else that of both, else the paper's."""
    name = "final" if "final" in run else run
    own = getattr(args, f"epochs_{name}")
    return next(value for value in (own, args.epochs, PAPER_EPOCHS[name]) if value is not None)


def survey(args: argparse.Namespace) -> pd.DataFrame:
    """Look at every slide without a network.

    Returns:
        Table of `image_id`, `annotated`, `mined` and `cells` (patches that mining and
        the heatmap predict), `pixels` of its maps, and, where there is an annotation,
        `benign` and `benign_tissue`: the score of always predicting Benign, on all
        pixels and on tissue only (nan where undefined).

    Raises:
        InputError: If a slide or an annotation cannot be read.
    """
    table = find_data(args.data_dir)
    table = table[table["part"].isin(["B", "B-test"])].head(args.limit or len(table))
    rows = []
    for slide_row in tqdm(table.itertuples(), total=len(table), desc="slides", disable=None):
        with Slide(slide_row.path, mpp=args.mpp) as slide:
            maps = slide_maps(slide)
            tissue, truth = maps.tissue, maps.labels
            cells = heatmap_patches(maps, args.step_um)
            row = {"image_id": slide_row.image_id, "annotated": truth is not None, "mined": 0}
            row |= {"cells": len(cells), "pixels": tissue.size}
            if truth is not None:
                mined = mining_patches(maps, args.stride_um)
                row["mined"] = int((mined["tissue"] >= MIN_TISSUE_HARD).sum())
                row |= benign_scores(truth, tissue)
        rows.append(row)
    columns = ["image_id", "annotated", "mined", "cells", "pixels", "benign", "benign_tissue"]
    return pd.DataFrame(rows, columns=columns)


def benign_scores(truth: np.ndarray, tissue: np.ndarray) -> dict[str, float]:
    """Score of always predicting Benign, from the annotation alone.

    Args:
        truth: Label map, uint8 0..3, `(height, width)`.
        tissue: Tissue mask of the same shape.
    """
    benign = np.full_like(truth, CLASSES.index("Benign"))
    return {
        "benign": score_from_counts(joint_counts(benign, truth)),
        "benign_tissue": score_from_counts(joint_counts(benign, truth, tissue)),
    }


def workload(
    args: argparse.Namespace, photos: pd.DataFrame, slides: pd.DataFrame, folds_b: int
) -> dict[str, tuple[float, float]]:
    """Count the patches that every script trains on and predicts.

    Args:
        args: The arguments.
        photos: Table of `fold` and `patches`, a row a photo.
        slides: See `survey`.
        folds_b: Number of folds of slides.

    Returns:
        {run: (patches trained on, patches predicted)}, each counted as often as it is
        seen.
    """
    patches = photos["patches"].sum()
    hard = min(args.hard_examples, HARDEST * slides["mined"].sum())
    held_a = photos[photos["fold"] >= 0].groupby("fold")["patches"].sum()

    def training(run: str, pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
        many = epochs(args, run)
        refresh = sum(min(args.bn_patches, trained) for trained, _ in pairs)
        held = sum(held for _, held in pairs)
        return many * sum(trained for trained, _ in pairs), many * (held + refresh) + held

    seen = slides["annotated"].to_numpy()
    cells = slides["cells"].to_numpy()
    work = {
        "part_a": training("part_a", [(patches - held, held) for held in held_a]),
        "hard_examples": (0, slides["mined"].sum() * len(held_a)),
        "final": training(
            "final", [(patches + hard - hard / folds_b, hard / folds_b)] * folds_b
        ),
        # An annotated slide is for the model of its fold, any other for all of them.
        "heatmaps": (0, cells[seen].sum() + folds_b * cells[~seen].sum()),
    }  # fmt: skip
    if args.in_sample:
        work["final_all"] = training("final", [(patches + hard, 0)])
        work["heatmaps_in_sample"] = (0, cells[seen].sum())
    return {run: (float(trained), float(predicted)) for run, (trained, predicted) in work.items()}


def disk_bytes(
    args: argparse.Namespace, patches: int, slides: pd.DataFrame, models: int, parameters: int
) -> int:
    """Estimate what the run folders will hold: patches, models and pictures."""
    hard = min(args.hard_examples, HARDEST * slides["mined"].sum())
    # Three files of float32 weights a model, and while it trains its momenta as well.
    weights = models * 3 * 4 * parameters + 8 * parameters
    # Overlays of three pictures at about a byte a pixel and channel after PNG.
    pictures = 6 * int(slides["pixels"].sum())
    return int((patches + hard) * NETWORK_SIZE**2 * 3 + weights + pictures)


def measured(args: argparse.Namespace, out: Path, pass_fds: tuple[int, ...] = ()) -> dict:
    """Speed of the chosen network on this machine; measured once and remembered.

    In a process of its own, since a framework does not give GPU memory back.

    Returns:
        See `measure`.

    Raises:
        InputError: If the network cannot be trained here at all.
    """
    names = ("backbone", "weights", "head", "batch_size", "devices", "precision", "seed")
    key = {name: getattr(args, name) for name in names} | {"machine": platform.node()}
    file = out / "rates.json"
    if file.exists():
        with contextlib.suppress(ValueError):
            found = json.loads(file.read_text())
            if found.pop("key", None) == key:
                return found
    # The process below runs in another folder.
    weights = os.path.abspath(args.weights) if os.path.isfile(args.weights) else args.weights
    code = (
        "import sys; from bach import effort, runs; "
        "runs.exit_with(lambda: effort.print_measure(sys.argv[1]))"
    )
    log.info("measuring the speed of %s", args.backbone)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps({**key, "weights": weights})],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        pass_fds=pass_fds,
    )  # fmt: skip
    if done.returncode:
        raise InputError(
            "The network must take one training step here before anything is started.\n"
            f"Received: exit code {done.returncode} with --backbone={args.backbone} "
            f"--batch-size={args.batch_size}; the lines above say why.\n"
            "Out of memory: use a smaller --batch-size."
        )
    rates = json.loads(done.stdout.splitlines()[-1])
    write_json(file, {"key": key, **rates})
    return rates


def print_measure(options: str) -> None:
    """Measure in this process and print the result as JSON; see `measured`."""
    print(json.dumps(measure(argparse.Namespace(**json.loads(options)))))


def measure(args: argparse.Namespace) -> dict:
    """Time training steps and predictions on random patches, augmentation included.

    Args:
        args: Network and device options of the training scripts.

    Returns:
        `train` and `predict` (patches/s), `parameters`, `devices`, and `memory` (bytes,
        largest use of main memory so far; None where the system does not say).
    """
    import keras

    from bach.network import backend
    from bach.network.augment import Augmentation, with_augmentation
    from bach.network.batches import Batches
    from bach.network.patch_network import build_model
    from bach.network.training import MOMENTUM

    count = backend.start(args.devices, args.seed, args.precision)["devices"]
    with backend.scope():
        model = build_model(args.backbone, args.weights, args.head)
        model.compile(jit_compile=backend.jit())
        learner = with_augmentation(model)
        learner.compile(
            keras.optimizers.SGD(0.001, momentum=MOMENTUM, nesterov=True),
            loss="categorical_crossentropy",
            jit_compile=backend.jit(),
        )
    rng = np.random.default_rng(args.seed)
    shape = (args.batch_size, NETWORK_SIZE, NETWORK_SIZE, 3)
    patches = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, len(CLASSES), args.batch_size)

    def seconds(training: bool, number: int) -> float:
        rows = np.arange(number * args.batch_size) % args.batch_size
        augmentation = Augmentation() if training else None
        data = backend.feed(
            Batches([patches], [labels], [rows], args.batch_size, args.seed, augmentation)
        )
        start = time.monotonic()
        if training:
            learner.fit(data, verbose=0, shuffle=False)
        else:
            model.predict(data, verbose=0)
        return time.monotonic() - start

    def rate(training: bool) -> float:
        seconds(training, 1)  # compiles
        one = seconds(training, 1)
        number = int(np.clip(_MEASURE_S / one, 1, 40))
        return number * args.batch_size / (seconds(training, number) if number > 1 else one)

    rates = {"train": rate(True), "predict": rate(False)}
    return {
        **rates,
        "parameters": int(model.count_params()),
        "devices": count,
        "memory": _peak_memory(),
    }


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory() -> int | None:
    """Bytes of main memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def estimate_text(
    work: dict[str, tuple[float, float]],
    rates: dict,
    finished: Sequence[str],
    disk: int,
    free: int,
    trainings: dict[str, int],
) -> str:
    """What is still to be done and how long it will take, as a table and two lines.

    Args:
        work: See `workload`.
        rates: See `measure`.
        finished: Runs that are finished.
        disk: Bytes that all runs take.
        free: Bytes that are free.
        trainings: Number of trainings of each training run.
    """
    rows, total = [], 0.0
    for run, (trained, predicted) in work.items():
        seconds = trained / rates["train"] + predicted / rates["predict"]
        paper = PAPER_MINUTES.get("final" if "final" in run else run)
        paper = f"{trainings[run]} x {paper} min at most" if run in trainings else "-"
        if run in finished:
            rows.append([run, "-", "-", "finished", paper])
            continue
        total += seconds
        rows.append([run, f"{trained:,.0f}", f"{predicted:,.0f}", duration(seconds), paper])
    header = ["run", "patches trained on", "patches predicted", "time here", "time in the paper"]
    memory, whole = rates["memory"], _memory()
    lines = [
        markdown(header, rows),
        "",
        f"Time: about {duration(total)} for the network, at {rates['train']:.1f} patches/s trained "
        f"and {rates['predict']:.1f} predicted (measured here just now or before, "
        f"{rates['devices']} device{'s' * (rates['devices'] != 1)}; the paper: {PAPER_MACHINE}). "
        "Starting, cutting patches, reading slides and pictures come on top.",
        f"Disk: about {disk / 1e9:.1f} GB in all, {free / 1e9:.1f} GB free.",
        f"Memory: {'not measured' if memory is None else f'{memory / 1e9:.1f} GB while training'}"
        + (f" (measured), the machine has {whole / 1e9:.1f} GB." if whole and memory else ".")
        + " Memory of GPUs is not measured: the paper's batch of 64 went on two of 11 GB.",
    ]
    return "\n".join(lines)


def estimate(
    args: argparse.Namespace,
    out: Path,
    folds_a: Path,
    folds_b: Path,
    slides: pd.DataFrame,
    rates: dict,
    finished: Sequence[str],
) -> None:
    """Print what the run will take; refuse it if the disk is too small."""
    photos = join_folds(list_images(args.data_dir, "A"), read_folds(folds_a), folds_a)
    photos = take(photos, args.limit)
    sides = photos[["width", "height"]].to_numpy()
    photos["patches"] = [len(grid(*side, PATCH_SIZE, PATCH_STRIDE)) for side in sides]
    many_a, many_b = (
        int(read_folds(file).query("fold >= 0")["fold"].nunique()) for file in (folds_a, folds_b)
    )
    work = workload(args, photos, slides, many_b)
    trainings = {"part_a": many_a, "final": many_b, "final_all": 1}
    models = many_a + many_b + args.in_sample
    disk = disk_bytes(args, photos["patches"].sum(), slides, models, rates["parameters"])
    free = shutil.disk_usage(out).free
    used = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    text = estimate_text(work, rates, finished, disk, free, trainings)
    print(f"\n# What it takes\n\n{text}", flush=True)
    if disk - used > free:
        raise InputError(
            f"The disk of {out} must have room for {(disk - used) / 1e9:.1f} GB.\n"
            f"Received: {free / 1e9:.1f} GB free.\nMake room, or name a --run-dir on another disk."
        )
