"""Predict in every way there is, as a process of its own, for tests/test_predict.py.

    python tests/predict_all.py DEVICES SLIDE MODEL IMAGES OUT.npz

How many devices there are is decided once in a process.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.core.errors import InputError
from bach.network import backend
from bach.network.dense import DenseModel, predict_dense
from bach.network.predict import load_models, predict_photos, predict_slide
from bach.slides import Slide


def predict_all(slide: Path, model: Path, images: Path) -> Iterator[np.ndarray]:
    """Probabilities by a model of patches of a slide, of its cells, and of photos."""
    prepared, dense = (list(load_models(model, ready=x).values()) for x in (None, DenseModel))
    with Slide(slide) as opened:
        table = pd.DataFrame({"x": [0.0, 90.5, 300.0], "y": [0.0, 7.25, 80.0], "size": 1495.0})
        yield predict_slide(prepared, opened, table, batch_size=5)
        yield predict_dense(dense, opened, np.ones((8, 9), bool), region=7)
    yield predict_photos(prepared, pd.read_csv(images)).iloc[:, 1:].to_numpy(np.float32)


def main() -> None:
    devices, *files, out = sys.argv[1:]
    device = backend.start(int(devices))
    try:
        backend.check_batch_size(7)
    except InputError as error:
        device["refused"] = str(error)
    np.savez(out, *predict_all(*map(Path, files)))
    print(json.dumps(device))


if __name__ == "__main__":
    main()
