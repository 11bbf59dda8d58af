"""Run folders as the scripts write them (docs/formats.md), made without a network."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.files import write_array, write_json
from bach.core.pictures import write_gray, write_png
from bach.honest.records import SlideRecord, write_slide
from bach.labels import write_class_map
from bach.scores import joint_counts, score_from_counts
from bach.tasks import BACH
from bach.toy import aperio

MPP, DOWN = 0.5, 16
STEP_UM = 125.0
STEP = STEP_UM / MPP  # level-0 px


def record(run: Path, script: str, metrics: dict | None, **arguments: object) -> None:
    """Write `run.json`, and `metrics.json` of a finished run."""
    start = {
        "command": f"{script} --data-dir data",
        "arguments": {"data_dir": "data", "seed": 3, "mpp": None, **arguments},
        "folder": str(run.parent),
        "commit": "0123456789abcdef",
        "dirty": False,
        "versions": {"python": "3.11"},
        "begun": "2026-01-02T03:04:05+00:00",
        "time": "2026-01-02T03:14:05+00:00",
        "status": "finished" if metrics is not None else "interrupted",
    }
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "run.json", {**start, "starts": [start]})
    if metrics is not None:
        write_json(run / "metrics.json", metrics)


def slide_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """White with a purple disc of tissue: uint8 `(height, width, 3)`."""
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((x - width / 2) / width, (y - height / 2) / height) < 0.4
    noise = np.random.default_rng(seed).integers(-15, 16, (height, width, 3))
    return np.where(disc[..., None], np.array([150, 90, 160]) + noise, 243).astype(np.uint8)


def heatmap_run(
    run: Path, names: tuple[str, ...] = ("A01",), size: tuple[int, int] = (3000, 2200)
) -> Path:
    """A run of `make_heatmap.py` on slides that lie in `slides/` beside it, all annotated.

    The left half is annotated as Invasive and predicted as Normal, the right half is Benign
    both times.
    """
    width, height = size
    slides = run.parent / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = slides / f"{name}.svs"
        aperio.write_slide(path, slide_pixels(width, height), MPP)
        rows, cols = int(np.ceil(height / STEP)), int(np.ceil(width / STEP))
        probs = np.full((rows, cols, len(CLASSES)), np.nan, np.float32)
        half = cols // 2
        probs[1:-1, 1:half] = [0.7, 0.1, 0.1, 0.1]
        probs[1:-1, half:-1] = [0.1, 0.8, 0.05, 0.05]
        shape = (-(-height // DOWN), -(-width // DOWN))
        truth = np.ones(shape, np.uint8)
        truth[:, : shape[1] // 2] = 3
        class_map = np.zeros(shape, np.uint8)
        class_map[:, shape[1] // 2 :] = 1
        y, x = np.mgrid[: shape[0], : shape[1]]
        far = np.hypot((x - shape[1] / 2) / shape[1], (y - shape[0] / 2) / shape[0])
        tissue = far < 0.4
        write_array(run / "probs" / f"{name}.npy", probs)
        heat = (np.nan_to_num(probs) * np.arange(4)).sum(axis=-1) / 3
        write_array(run / "heatmaps" / f"{name}.npy", heat.astype(np.float32))
        write_class_map(run / "class_maps" / f"{name}.png", class_map)
        write_class_map(run / "truth" / f"{name}.png", truth)
        write_gray(run / "tissue" / f"{name}.png", tissue.astype(np.uint8) * 255)
        write_png(run / "overlays" / f"{name}.png", np.full((80, 200, 3), 200, np.uint8))
        counts = joint_counts(class_map, truth)
        about = SlideRecord(
            image_id=name,
            path=str(path),
            part="B",
            width=width,
            height=height,
            mpp=MPP,
            mpp_source="openslide",
            step=STEP,
            downsample=DOWN,
            patches=int((~np.isnan(probs[..., 0])).sum()),
            models=("0",),
            fold=0,
            in_sample=False,
            areas_mm2=dict.fromkeys(CLASSES, 0.25),
            score=score_from_counts(counts),
            score_tissue=0.5,
            baseline=0.4,
            baseline_tissue=0.4,
            counts=counts,
            annotation={},
            seconds=1.0,
            warnings=(),
            key={},
        )
        write_slide(run / "slides" / f"{name}.json", about)
    pd.DataFrame({"image_id": names, "score": 0.5}).to_csv(run / "slides.csv", index=False)
    write_json(run / "failures.json", {})
    metrics = {"slides": len(names), "failed": [], "warnings": {}, "score": 0.5}
    record(run, "make_heatmap.py", metrics)
    return run


def part_a_run(run: Path, images: int = 24, seed: int = 0) -> Path:
    """A run of `train_part_a.py` of two folds and three epochs, without photos."""
    rng = np.random.default_rng(seed)
    label = np.arange(images) % len(CLASSES)
    probs = rng.dirichlet(np.ones(len(CLASSES)), images)
    probs[np.arange(images), label] += 0.2
    probs /= probs.sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_id": [f"n{k:03d}" for k in range(images)], "label": label})
    table["patient"] = [f"P{k // 3}" for k in range(images)]
    table["fold"] = (np.arange(images) // 3) % 2
    table[list(PROB_COLUMNS)] = probs
    table["predicted"] = probs.argmax(axis=1)
    run.mkdir(parents=True)
    table.to_csv(run / "predictions.csv", index=False)
    corners = [(x, y) for x in (0, 553) for y in (0, 41)]
    patches = pd.concat([table.assign(x=x, y=y) for x, y in corners])
    patches.to_csv(run / "patch_predictions.csv", index=False)
    for fold in (0, 1):
        history = {"epoch": [1, 2, 3], "loss": [1.2, 0.9, 0.8], "accuracy": [0.4, 0.5, 0.6]}
        history |= {"heldout_loss": [1.3, 1.0, 1.1], "heldout_accuracy": [0.3, 0.5, 0.4]}
        (run / f"fold_{fold}").mkdir()
        pd.DataFrame(history).to_csv(run / f"fold_{fold}" / "history.csv", index=False)
    right = float((table["predicted"] == table["label"]).mean())
    metrics = {"accuracy": right, "images": images}
    metrics["confusion"] = joint_counts(table["predicted"].to_numpy(), label).tolist()
    record(run, "train_part_a.py", json.loads(json.dumps(metrics)))
    return run


def mined_run(run: Path, name: str = "A01", count: int = 3) -> Path:
    """A run of `mine_hard_examples.py` with hard examples of one slide."""
    size = BACH.patch_um / MPP
    rows = [
        {"image_id": name, "x": 100.5 * k, "y": 40.0, "size": size, "tissue": 0.9, "label": 3}
        | dict(zip(PROB_COLUMNS, (0.9 - k / 10, 0.1 + k / 10, 0.0, 0.0), strict=True))
        for k in range(count)
    ]
    table = pd.DataFrame(rows)
    run.mkdir(parents=True)
    table.to_csv(run / "hard_examples.csv", index=False)
    (run / "patches").mkdir()
    table.to_csv(run / "patches" / "patches.csv", index=False)
    write_array(run / "patches" / "patches.npy", np.full((count, 299, 299, 3), 150, np.uint8))
    record(run, "mine_hard_examples.py", {"patches": 40, "slides": [name]})
    return run
