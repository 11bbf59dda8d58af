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
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from bach import folds as fold_tables
from bach.classes import CLASSES
from bach.comparison import ALWAYS_BENIGN, PUBLISHED, read_images
from bach.data import check_data, find_data, part
from bach.demo import ROOT, call
from bach.folds import join_folds, read_folds, take
from bach.heatmap import STEP_UM, heatmap_patches
from bach.intervals import accuracy_interval, bootstrap, format_interval, ratio, score_interval
from bach.labels import image_key
from bach.masks import slide_masks
from bach.mining import HARD_EXAMPLES, HARDEST, MIN_TISSUE_HARD, mining_patches
from bach.patches import NETWORK_SIZE, PATCH_SIZE, PATCH_STRIDE, SLIDE_STRIDE_UM, grid
from bach.runs import (
    InputError,
    add_device_options,
    add_training_options,
    atomic_path,
    duration,
    exit_with,
    git_state,
    log,
    write_csv,
    write_json,
)
from bach.scores import joint_counts, score_from_counts
from bach.slides import Slide

# Figures of Kwok 2018 (paper, and talk at PyCon HK 2018) that are no scores of a run and
# so do not stand in `bach.comparison`.
PAPER_PATCHES = 5600
PAPER_CANDIDATES = dict(zip(CLASSES, (28_000, 4_500, 1_500, 19_700), strict=True))
PAPER_TISSUE_IN_SAMPLE = 0.79
PAPER_TISSUE_BENIGN = dict(
    zip(ALWAYS_BENIGN, (0.61, 0.52, 0.64, 0.37, 0.53, 0.51, 0.45, 0.65, 0.52, 0.53), strict=True)
)
PAPER_EPOCHS = {"part_a": 25, "final": 15}
PAPER_MINUTES = {"part_a": 35, "final": 40}  # a training, at most
PAPER_MACHINE = "two GTX 1080 Ti of 11 GB, 67 patches/s"

SCRIPTS = {
    "part_a": "train_part_a.py",
    "hard_examples": "mine_hard_examples.py",
    "final": "train_final.py",
    "heatmaps": "make_heatmap.py",
}
IN_SAMPLE = {"final_all": "train_final.py", "heatmaps_in_sample": "make_heatmap.py"}

_FOLDS_A, _FOLDS_B = 3, 5
# Two published decimals, and one unit for how the maps are rounded to pixels.
_AGREES = 0.01 + 1e-9
_MEASURE_S = 3.0


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


def epochs(args: argparse.Namespace, run: str) -> int:
    """Epochs of a training run: its own option, else that of both, else the paper's."""
    name = "final" if "final" in run else run
    own = getattr(args, f"epochs_{name}")
    return next(value for value in (own, args.epochs, PAPER_EPOCHS[name]) if value is not None)


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
    photos, slides = part(args.data_dir, "A"), part(args.data_dir, "B")
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


# What it takes


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
            _, tissue, truth, downsample = slide_masks(slide)
            cells = heatmap_patches(
                slide.name, slide.width, slide.height, slide.mpp, tissue, downsample, args.step_um
            )
            row = {"image_id": slide_row.image_id, "annotated": truth is not None, "mined": 0}
            row |= {"cells": len(cells), "pixels": tissue.size}
            if truth is not None:
                mined = mining_patches(slide, tissue, truth, downsample, args.stride_um)
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
        "import sys; from bach import reproduce, runs; "
        "runs.exit_with(lambda: reproduce.print_measure(sys.argv[1]))"
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

    from bach import devices
    from bach.augment import Augmentation
    from bach.batches import Batches
    from bach.model import build_model
    from bach.training import MOMENTUM

    count = devices.start(args.devices, args.seed, args.precision)
    with devices.scope():
        model = build_model(args.backbone, args.weights, args.head)
        model.compile(
            keras.optimizers.SGD(0.001, momentum=MOMENTUM, nesterov=True),
            loss="categorical_crossentropy",
            jit_compile=devices.jit(),
        )
    rng = np.random.default_rng(args.seed)
    shape = (args.batch_size, NETWORK_SIZE, NETWORK_SIZE, 3)
    patches = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, len(CLASSES), args.batch_size)

    def seconds(training: bool, number: int) -> float:
        rows = np.arange(number * args.batch_size) % args.batch_size
        augmentation = Augmentation() if training else None
        data = Batches([patches], [labels], [rows], args.batch_size, args.seed, augmentation)
        start = time.monotonic()
        if training:
            model.fit(data, verbose=0, shuffle=False)
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


# What came out


def published(part: str, measured_on: str, figure: str, name: str = "winner") -> float:
    """A published figure, by where it was measured (first words)."""
    return next(
        entry[figure]
        for entry in PUBLISHED
        if entry["part"] == part
        and entry["name"].startswith(name)
        and entry["measured_on"].startswith(measured_on)
        and figure in entry
    )


def mean_interval(values: Sequence[float | None]) -> dict:
    """Mean over slides with its interval; slides without a value are left out."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    units = np.array([(value, 1) for value in known], np.float64).reshape(-1, 2)
    return bootstrap(units, lambda sums: ratio(sums[..., 0], sums[..., 1]), unit="slides")


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table, its columns aligned so that it reads well on a terminal too."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    cells.insert(1, ["-" * max(3, width) for width in widths])
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(f"| {line.rstrip()} |" for line in lines)


def part_a_table(run: Path, patches: int) -> str:
    """Part A: patches, Table 1's row and the hidden test."""
    images = read_images(run)
    metrics = json.loads((run / "metrics.json").read_text())
    per_fold = [row["accuracy"] for row in metrics["per_fold"].values()]
    whole = "patients whole" if images["patient"].any() else "patients UNKNOWN"
    where = f"{len(per_fold)}-fold cross-validation, {whole}, {len(images)} images"
    rows = [
        ["patches of the photos", f"{PAPER_PATCHES:,}", "400 photos", f"{patches:,}", "a count"]
    ]
    for title, figure in (
        ("four-class accuracy", "accuracy"),
        ("carcinoma or not, accuracy", "binary_accuracy"),
    ):
        value = format_interval(accuracy_interval(images, figure), 3)
        paper = published("A", "3-fold", figure)
        rows.append([title, f"{paper:.2f}", "3-fold cross-validation", value, where])
    each = ", ".join(f"{value:.3f}" for value in per_fold)
    mean, spread = metrics["mean_accuracy"], metrics["sd_accuracy"]
    rows.append(["four-class accuracy, mean over folds", "-", "-", f"{mean:.3f} (sd {spread:.3f})",
                 f"folds: {each}"])  # fmt: skip
    hidden = published("A", "hidden", "accuracy")
    rows.append(["four-class accuracy, hidden test", f"{hidden:.2f}", "100 images",
                 "not reproducible", "its truth is not published"])  # fmt: skip
    return markdown(["figure", "paper", "measured on", "ours [95% interval]", "measured on"], rows)


def candidates_table(run: Path) -> str:
    """Hard examples: candidates and draw, class by class."""
    metrics = json.loads((run / "metrics.json").read_text())
    ours, drawn = metrics["candidates"], metrics["hard_examples"]
    rows = [
        [name, f"{PAPER_CANDIDATES[name]:,}", f"{ours[name]:,}", "-", f"{drawn[name]:,}"]
        for name in CLASSES
    ]
    rows.append(["all", f"{sum(PAPER_CANDIDATES.values()):,}", f"{sum(ours.values()):,}",
                 f"{HARD_EXAMPLES:,}", f"{sum(drawn.values()):,}"])  # fmt: skip
    return markdown(["class", "candidates: paper", "ours", "drawn: paper", "ours"], rows)


def slides_table(slides: pd.DataFrame, scores: dict[str, dict] | None = None) -> str:
    """Table 2's ten slides: always Benign in the paper and from the annotation, and ours.

    Args:
        slides: See `survey`.
        scores: {slide: record of make_heatmap.py}, or None before there is any.
    """
    found = slides[slides["annotated"]].set_index("image_id")
    names = sorted({*ALWAYS_BENIGN, *found.index})
    header = ["slide", "always Benign: paper", "from the annotation", "tissue only: paper",
              "from the annotation"]  # fmt: skip
    if scores is not None:
        header += ["our score", "tissue only", "models saw it"]
    rows = []
    for name in names:
        row = [name]
        for column, paper in (("benign", ALWAYS_BENIGN), ("benign_tissue", PAPER_TISSUE_BENIGN)):
            row += [_number(paper.get(name), 2), _number(_at(found, name, column))]
        if scores is not None:
            record = scores.get(name, {})
            seen = {True: "yes: in sample", False: "no", None: "-"}[record.get("in_sample")]
            row += [_number(record.get("score")), _number(record.get("score_tissue")), seen]
        rows.append(row)
    return markdown(header, rows)


def _at(table: pd.DataFrame, name: str, column: str) -> float | None:
    return table.loc[name, column] if name in table.index else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def agreement(slides: pd.DataFrame) -> str:
    """Say on which slides always Benign scores as in the paper.

    All pixels check annotations and scorer; tissue only checks the tissue mask too.
    """
    found = slides[slides["annotated"]].set_index("image_id")
    parts = []
    for column, paper, what in (
        ("benign", ALWAYS_BENIGN, "all pixels"),
        ("benign_tissue", PAPER_TISSUE_BENIGN, "tissue only"),
    ):
        there = [name for name in paper if name in found.index]
        off = [name for name in there if not abs(found.loc[name, column] - paper[name]) <= _AGREES]
        text = f"{what}: {len(there) - len(off)} of {len(there)} slides as in the paper (+-0.01)"
        parts.append(text + (f", others on {', '.join(off)}" if off else ""))
    return "; ".join(parts) + "."


def part_b_table(slides: pd.DataFrame, runs: dict[str, dict[str, dict]]) -> str:
    """Part B: the scores over slides, with what each was measured on.

    Args:
        slides: See `survey`.
        runs: Records of the slides, by run ("heatmaps", perhaps
            "heatmaps_in_sample").
    """
    honest = [r for r in runs["heatmaps"].values() if not r["in_sample"]]
    in_sample = published("B", "A01-A10", "score")
    benign = published("B", "A01-A10", "score", "always Benign")
    tissue = float(np.mean(list(PAPER_TISSUE_BENIGN.values())))
    theirs, ours = "A01-A10, IN SAMPLE", "slides held out"
    found = slides[slides["annotated"]]

    def mean(records: Sequence[dict], key: str) -> str:
        return format_interval(mean_interval([record.get(key) for record in records]), 3)

    pooled = format_interval(score_interval([r["counts"] for r in honest], pooled=True), 3)
    rows = [
        ["score", f"{in_sample:.2f}", theirs, mean(honest, "score"), ours],
        ["score, tissue only", f"{PAPER_TISSUE_IN_SAMPLE:.2f}", theirs,
         mean(honest, "score_tissue"), ours],
        ["score, all pixels pooled", "-", "-", pooled, ours],
    ]  # fmt: skip
    if "heatmaps_in_sample" in runs:
        seen, where = list(runs["heatmaps_in_sample"].values()), "trained on them, IN SAMPLE"
        rows.append(["score", f"{in_sample:.2f}", theirs, mean(seen, "score"), where])
        rows.append(["score, tissue only", f"{PAPER_TISSUE_IN_SAMPLE:.2f}", theirs,
                     mean(seen, "score_tissue"), where])  # fmt: skip
    for title, value, column in (
        ("always Benign", benign, "benign"),
        ("always Benign, tissue only", tissue, "benign_tissue"),
    ):
        interval = format_interval(mean_interval(found[column].tolist()), 3)
        rows.append([title, f"{value:.2f}", "A01-A10", interval, "annotation alone, no model"])
    hidden = published("B", "hidden", "score")
    rows.append(["score, hidden test", f"{hidden:.4f}", "10 slides", "not reproducible",
                 "its truth is not published"])  # fmt: skip
    return markdown(["figure", "paper", "measured on", "ours [95% interval]", "measured on"], rows)


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
    photos = join_folds(part(args.data_dir, "A"), read_folds(folds_a), folds_a)
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


if __name__ == "__main__":
    exit_with(main)
