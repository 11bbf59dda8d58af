"""Tables without photos or slides, for tests of what is made of them."""

import numpy as np
import pandas as pd

from bach.classes import CLASSES
from bach.honest.comparison import ALWAYS_BENIGN
from bach.honest.records import SlideRecord
from bach.paper import PAPER_TISSUE_BENIGN


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
        {"image_id": list(ALWAYS_BENIGN), "annotated": True, "mined": 10_000, "cells": 20_000,
         "pixels": 10_000_000, "benign": list(ALWAYS_BENIGN.values()),
         "benign_tissue": list(PAPER_TISSUE_BENIGN.values())}
    )  # fmt: skip
    for name, value in changes.items():
        table.loc[table["image_id"] == name, "benign"] = value
    return table
