"""Data that several test files share."""

import logging
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the scripts and the package are not installed


@pytest.fixture(autouse=True)
def _log_of_its_own():
    """What a test sets up to log with is taken down, or later tests hear every line twice."""
    yield
    log = logging.getLogger("bach")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _task_of_the_challenge():
    """A command sets the task of its process, which here is that of all tests."""
    from bach import tasks

    yield
    tasks.use()


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small trial data set with folds: 24 photos of 6 patients, 2 + 1 slides."""
    from bach import folds
    from bach.toy.dataset import Recipe, make_data_set

    path = tmp_path_factory.mktemp("toy") / "data"
    recipe = Recipe(patients=6, images=6, test_images=2, slides=2, slide_size=(4800, 3200))
    make_data_set(path, recipe, workers=2)
    make = ["make", "--data-dir", str(path), "--folds"]
    patients = ["--patients", f"{path}/patients.csv"]
    folds.main([*make, "3", "--part", "a", *patients, "--out", f"{path}/part_a.csv"])
    folds.main([*make, "2", "--part", "b", "--out", f"{path}/part_b.csv"])
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """32 tiny photos of 8 patients, two of them unknown, and 8 test photos."""
    import pandas as pd

    from bach.toy.dataset import Recipe, make_data_set

    path = tmp_path_factory.mktemp("photos") / "data"
    recipe = Recipe(
        patients=8, images=8, test_images=2, slides=0, test_slides=0, photo_size=(160, 120)
    )
    make_data_set(path, recipe)
    patients = pd.read_csv(path / "patients.csv")
    patients.loc[patients["patient"].isin(["T01", "T06"]), "patient"] = ""
    patients.to_csv(path / "patients.csv", index=False)
    return path
