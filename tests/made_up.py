"""Tables without photos or slides, for tests of what is made of them."""

import json

import numpy as np
import pandas as pd

from bach.classes import CLASSES, PROB_COLUMNS
from bach.heatmap import to_heatmap
from bach.honest.comparison import ALWAYS_BENIGN
from bach.honest.records import SlideRecord, write_slide
from bach.labels import write_class_map
from bach.patches import grid_shape
from bach.reproduce.kwok2018 import ALWAYS_BENIGN_TISSUE


def made_up(patients=20, images=8, seed=0, own=0.0, true=0.0):
    """Images with three features: noise, the patient's own mark, the class's mark."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    label = patient % 4  # to know the patient is to know the class
    marks = rng.normal(size=(patients, 6))
    values = rng.normal(size=(len(patient), 6)) * 0.2 + own * marks[patient]
    classes = rng.normal(size=(4, 6))
    values = np.hstack([values, rng.normal(size=values.shape) * 0.2 + true * classes[label]])
    ids = [f"i{number:03}" for number in range(len(patient))]
    table = pd.DataFrame(
        {
            "image_id": ids,
            "label": [CLASSES[name] for name in label],
            "patient": [f"p{name}" for name in patient],
        }
    )
    return pd.DataFrame(values, index=ids), table


def images(patients, labels=None):
    """A table of images 0, 1, ...; a space is an unknown patient."""
    return pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(len(patients))],
            "label": labels or ["Benign"] * len(patients),
            "patient": ["" if patient == " " else patient for patient in patients],
        }
    )


def many_images(seed=0, size=300, patients=60):
    rng = np.random.default_rng(seed)
    return images(
        [f"p{number}" for number in rng.integers(0, patients, size)],
        [CLASSES[label] for label in rng.integers(0, 4, size)],
    )


def slide_record(name, **changes):
    """The record of a slide as make_heatmap.py makes it, but for the changes."""
    values = {
        "image_id": name,
        "path": f"{name}.svs",
        "part": "B",
        "width": 1600,
        "height": 960,
        "mpp": 0.5,
        "mpp_source": "file",
        "step": 160.0,
        "downsample": 16.0,
        "patches": 50,
        "models": ("0",),
        "fold": 0,
        "in_sample": False,
        "areas_mm2": {},
        "seconds": 1.5,
        "key": {},
    }
    return SlideRecord(**values | changes)


def slides_of_the_paper(**changes):
    """A survey of A01..A10 that gives the paper's figures, but for the changes."""
    table = pd.DataFrame(
        {
            "image_id": list(ALWAYS_BENIGN),
            "annotated": True,
            "mined": 10_000,
            "cells": 20_000,
            "pixels": 10_000_000,
            "benign": list(ALWAYS_BENIGN.values()),
            "benign_tissue": list(ALWAYS_BENIGN_TISSUE.values()),
        }
    )
    for name, value in changes.items():
        table.loc[table["image_id"] == name, "benign"] = value
    return table


def training_run(folder, predicted, label, patient=None, **arguments):
    """A run of train_part_a.py with these answers."""
    folder.mkdir(parents=True)
    probs = np.full((len(label), 4), 0.1)
    probs[np.arange(len(label)), predicted] = 0.7
    table = pd.DataFrame({"image_id": [f"i{n:03}" for n in range(len(label))], "label": label})
    table["predicted"] = predicted
    table[list(PROB_COLUMNS)] = probs
    if patient is not None:
        table["patient"] = patient
    table.to_csv(folder / "predictions.csv", index=False)
    record = {"command": "train_part_a.py --x a|b", "arguments": arguments, "commit": "abc1234567"}
    (folder / "run.json").write_text(json.dumps(record | {"dirty": True}))
    (folder / "metrics.json").write_text("{}")
    return folder


def heatmap_run(folder, scores, in_sample=(), **arguments):
    """A run of make_heatmap.py with these scores, on slides of invasive pixels alone."""
    (folder / "slides").mkdir(parents=True)
    for slide, score in scores.items():
        right = round(1000 * score)
        counts = np.zeros((4, 4), int)
        counts[3, 3], counts[3, 0] = right, 1000 - right
        record = slide_record(slide, counts=counts, score=score, in_sample=slide in in_sample)
        write_slide(folder / "slides" / f"{slide}.json", record)
    write_slide(folder / "slides" / "unlabelled.json", slide_record("unlabelled"))
    (folder / "run.json").write_text(json.dumps({"arguments": arguments}))
    return folder


def two_runs(folder):
    """Two runs on 120 images of 30 patients; the first is right on more of them."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 120)
    patient = [f"P{n % 30}" for n in range(120)]
    wrong = (label + 1) % 4
    good = np.where(rng.random(120) < 0.9, label, wrong)
    bad = np.where(rng.random(120) < 0.6, label, wrong)
    return (
        training_run(folder / "good", good, label, patient, backbone="tiny", epochs=25),
        training_run(folder / "bad", bad, label, patient, backbone="vgg19"),
    )


def add_slide(run, name, class_map, **changes):
    """A slide of a heatmap run with this class map; cells of 10 px of it, some predicted."""
    for kind in ("slides", "probs", "heatmaps", "class_maps"):
        (run / kind).mkdir(parents=True, exist_ok=True)
    rows, columns = class_map.shape
    size = {"width": columns * 16, "height": rows * 16}
    record = slide_record(name, **size | {"key": {"slide": name}} | changes)
    rng = np.random.default_rng(0)
    shape = grid_shape(record.width, record.height, record.step)
    probs = rng.dirichlet(np.ones(4), shape).astype(np.float32)
    probs[rng.random(shape) < 0.3] = np.nan
    np.save(run / "probs" / f"{name}.npy", probs)
    np.save(run / "heatmaps" / f"{name}.npy", to_heatmap(probs))
    write_class_map(run / "class_maps" / f"{name}.png", class_map)
    write_slide(run / "slides" / f"{name}.json", record)
    (run / "metrics.json").write_text("{}")
    return record
