"""Write a trial data set: painted H&E in the layout of the BACH challenge.

The challenge data may not be passed on, so the demo, the tests and quick
experiments run on this: photos and slides painted by `bach.toy.painter`, filed as
the challenge files its own. Every patient has stains, light and focus of his
own and images mostly of one class, so that a split which lets a patient fall on
both sides scores too well, as it does on the real data.

Reads:   nothing.
Writes:  DIR/ICIAR2018_BACH_Challenge/{Photos,WSI}
         DIR/ICIAR2018_BACH_Challenge_TestDataset/{Photos,WSI}
         DIR/patients.csv         image_id, label, patient of the training photos
         DIR/truth/part_a.csv     image_id, label of the test photos
         DIR/truth/part_b/        label maps of the test slides, 1/16 of level 0
         DIR/truth/training.csv   image_id, label as painted: with --label-noise
                                  it differs from where the photo is filed
Command: python -m bach.toy data/toy
Time:    about 40 s on 2 cores, 0.9 GB. Score: a tree ensemble on colour and texture
         gets about 0.8 of the photos right if split at random, 0.6 by patient.

The truth of the test data lies outside both challenge folders, so that nothing
which is given them can come upon it.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import tifffile
from numpy.random import Generator
from tqdm import tqdm

from bach.annotations import label_mask
from bach.classes import CLASSES, PREFIXES
from bach.core.files import atomic_path
from bach.core.log import step
from bach.core.options import MOST_SEED, option
from bach.core.pictures import write_png
from bach.core.tables import write_csv
from bach.data import GROUND_TRUTH, TEST_FOLDER, TRAIN_FOLDER
from bach.labels import write_class_map
from bach.toy.aperio import FACTORS, SPELLINGS, write_annotation_xml, write_slide
from bach.toy.folder import new_folder
from bach.toy.painter import Look, make_look
from bach.toy.scenes import PHOTO_SIZE, SLIDE_SIZE, paint_photo, paint_slide

# Level-0 px per px of thumbnails and label maps.
_SMALL = FACTORS[-1]

# First words of seeds: what is drawn for one kind of thing never moves another.
_PLAN, _PATIENT, _PHOTO, _SLIDE = range(4)
# Patients of the three parts are numbered apart, so that nobody is in two.
_TEST_PATIENTS, _SLIDE_PATIENTS, _TEST_SLIDE_PATIENTS = 1000, 2000, 3000
_MOST = 1000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the trial data set holds.

    The test photos have half as many patients, others, and at least four; every
    slide has a patient of its own. With three slides all three spellings of the
    classes occur in their annotations.

    Attributes:
        photo_size: (width, height) of photos in px; smaller ones for tests.
        slide_size: Likewise of slides; multiples of 16, at least 256.
    """

    seed: int = option(0, "seed of every random choice", at_least=0, most=MOST_SEED)
    patients: int = option(12, "patients of the training photos", at_least=1, most=_MOST)
    images: int = option(12, "training photos per class", at_least=1)
    test_images: int = option(5, "test photos per class", at_least=0)
    slides: int = option(4, "annotated slides", at_least=0, most=_MOST)
    test_slides: int = option(1, "slides of the test set", at_least=0, most=_MOST)
    stain_shift: float = option(
        1.0,
        "how far the patients' stains, light and focus differ; 0: not at all",
        at_least=0,
        most=10,
    )
    label_noise: float = option(
        0.0, "share of training photos filed under a wrong class", at_least=0, most=1
    )
    photo_size: tuple[int, int] = PHOTO_SIZE
    slide_size: tuple[int, int] = SLIDE_SIZE


class _Photo(NamedTuple):
    """A photo to paint.

    Attributes:
        image_id: Name of the file.
        label: Class that is painted, 0..3.
        filed: Class that it is filed under; another one if the label is noise.
        patient: Number of the patient, among those of all parts.
        seed: Last word of its seed.
    """

    image_id: str
    label: int
    filed: int
    patient: int
    seed: int


def make_data_set(
    directory: str | os.PathLike, recipe: Recipe | None = None, workers: int = 1
) -> Path:
    """Write the trial data set.

    Args:
        directory: Folder to write to; must be empty or not there yet.
        recipe: What it holds. The same recipe gives the same bytes.
        workers: Processes; the data do not depend on it.

    Returns:
        The folder.

    Raises:
        InputError: If the folder is not empty.
        ValueError: If the slides' size does not fit.
    """
    recipe = recipe or Recipe()
    if min(recipe.slide_size) < 256 or any(side % _SMALL for side in recipe.slide_size):
        raise ValueError(
            f"slide_size must be multiples of {_SMALL}, at least 256. "
            f"Received: slide_size={recipe.slide_size}."
        )
    directory = new_folder(directory, "The trial data set needs")
    train, test, truth = directory / TRAIN_FOLDER, directory / TEST_FOLDER, directory / "truth"
    for folder in (
        *(train / "Photos" / name for name in CLASSES),
        test / "Photos",
        train / "WSI",
        test / "WSI",
        truth / "part_b",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([recipe.seed, _PLAN])
    photos = _plan_photos(rng, recipe)
    hidden = _plan_test_photos(rng, recipe)
    _write_tables(directory, photos, hidden)
    job = functools.partial
    jobs: list[Callable[[], None]] = [
        # Slides first: they take longest, and a worker should not end alone on one.
        *(job(_write_training_slide, train / "WSI", recipe, n) for n in range(recipe.slides)),
        *(
            job(_write_test_slide, test / "WSI", truth / "part_b", recipe, n)
            for n in range(recipe.test_slides)
        ),
        *(job(_write_photo, train / "Photos" / CLASSES[p.filed], recipe, p) for p in photos),
        *(job(_write_photo, test / "Photos", recipe, p) for p in hidden),
    ]
    with step("toy") as notes:
        _run(jobs, workers)
        notes.append(
            f"{len(photos)} photos of {recipe.patients} patients, {len(hidden)} test photos, "
            f"{recipe.slides} slides, {recipe.test_slides} test slides"
        )
    return directory


# What to paint


def allot_patients(patients: int, images: int) -> list[list[int]]:
    """Share out the images of each class among the patients.

    Three quarters of a class go to the patients whose main class it is (every
    fourth one), the rest to those whose second class it is: to know the patient
    is to know the class, mostly.

    Args:
        patients: Number of patients.
        images: Number of images per class.

    Returns:
        For each class the patients (from 0) of its images, in order.
    """
    classes = len(CLASSES)
    patient = np.arange(patients)
    main = patient % classes
    second = (main + 1 + patient // classes % (classes - 1)) % classes
    allotted = []
    for label in range(classes):
        weight = 6.0 * (main == label) + 2.0 * (second == label)
        if not weight.any():
            weight[:] = 1
        exact = images * weight / weight.sum()
        count = np.floor(exact).astype(int)
        rest = np.argsort(count - exact, kind="stable")[: images - count.sum()]
        count[rest] += 1
        allotted.append(np.repeat(patient, count).tolist())
    return allotted


def _plan_photos(rng: Generator, recipe: Recipe) -> list[_Photo]:
    planned = [
        (label, patient)
        for label, members in enumerate(allot_patients(recipe.patients, recipe.images))
        for patient in rng.permutation(members).tolist()
    ]
    filed = _flip_labels(rng, [label for label, _ in planned], recipe.label_noise)
    number: collections.Counter[int] = collections.Counter()
    photos = []
    for seed, ((label, patient), folder) in enumerate(zip(planned, filed, strict=True)):
        number[folder] += 1
        image_id = f"{PREFIXES[folder]}{number[folder]:03d}"
        photos.append(_Photo(image_id, label, folder, patient, seed))
    return photos


def _flip_labels(rng: Generator, labels: list[int], share: float) -> list[int]:
    """Replace exactly `share` of the labels, rounded, by another class."""
    filed = list(labels)
    for index in rng.permutation(len(labels))[: round(share * len(labels))]:
        filed[index] = int((labels[index] + rng.integers(1, len(CLASSES))) % len(CLASSES))
    return filed


def _plan_test_photos(rng: Generator, recipe: Recipe) -> list[_Photo]:
    allotted = allot_patients(max(len(CLASSES), recipe.patients // 2), recipe.test_images)
    hidden = [(label, patient) for label, members in enumerate(allotted) for patient in members]
    return [
        _Photo(f"test{number}", label, label, _TEST_PATIENTS + patient, _TEST_PATIENTS + number)
        for number, (label, patient) in enumerate(hidden[i] for i in rng.permutation(len(hidden)))
    ]


def _write_tables(directory: Path, photos: list[_Photo], hidden: list[_Photo]) -> None:
    # Class by class; within a class they are numbered in their order.
    photos = sorted(photos, key=lambda photo: photo.filed)
    filed = _table((photo.image_id, photo.filed) for photo in photos)
    patients = [f"T{photo.patient + 1:02d}" for photo in photos]
    write_csv(filed.assign(patient=patients), directory / "patients.csv")
    painted = _table((photo.image_id, photo.label) for photo in photos)
    write_csv(painted, directory / "truth" / "training.csv")
    answers = _table((photo.image_id, photo.label) for photo in hidden)
    write_csv(answers, directory / "truth" / "part_a.csv")
    # As in the challenge, without a header.
    lines = (filed["image_id"] + ".tif," + filed["label"] + "\n").tolist()
    with atomic_path(directory / TRAIN_FOLDER / "Photos" / GROUND_TRUTH) as temporary:
        temporary.write_text("".join(lines))


def _table(rows: Iterable[tuple[str, int]]) -> pd.DataFrame:
    named = [(image_id, CLASSES[label]) for image_id, label in rows]
    return pd.DataFrame(named, columns=["image_id", "label"], dtype=str)


# Painting and writing


def _run(jobs: list[Callable[[], None]], workers: int) -> None:
    """Run jobs, in this process or several; each has its own seed."""
    with tqdm(total=len(jobs), desc="toy", unit="file", disable=None) as bar:
        if workers <= 1:
            for job in jobs:
                job()
                bar.update()
            return
        # Spawned, not forked: a fork copies the locks of OpenCV's threads.
        with concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)
        ) as pool:
            waiting = [pool.submit(job) for job in jobs]
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                bar.update()


def _look(recipe: Recipe, patient: int) -> Look:
    rng = np.random.default_rng([recipe.seed, _PATIENT, patient])
    return make_look(rng, recipe.stain_shift)


def _write_photo(folder: Path, recipe: Recipe, photo: _Photo) -> None:
    rng = np.random.default_rng([recipe.seed, _PHOTO, photo.seed])
    rgb = paint_photo(rng, photo.label, _look(recipe, photo.patient), recipe.photo_size)
    with atomic_path(folder / f"{photo.image_id}.tif") as temporary:
        tifffile.imwrite(
            temporary, rgb, photometric="rgb", metadata=None, software=False, rowsperstrip=64
        )


def _write_training_slide(folder: Path, recipe: Recipe, number: int) -> None:
    name, patient = f"A{number + 1:02d}", _SLIDE_PATIENTS + number
    rng = np.random.default_rng([recipe.seed, _SLIDE, patient])
    # The second slide has a pen mark, the first a hole: one of each will do.
    pen = ((40, 80, 200) if number % 2 else (30, 140, 90)) if number % 3 == 1 else None
    look = _look(recipe, patient)
    rgb, regions = paint_slide(rng, look, recipe.slide_size, pen=pen, hole=number % 3 == 0)
    write_slide(folder / f"{name}.svs", rgb)
    spelling = SPELLINGS[number % len(SPELLINGS)]
    write_annotation_xml(
        folder / f"{name}.xml", regions, spelling=spelling, empty_layer=spelling == "text"
    )
    labels = label_mask(regions, *recipe.slide_size, _SMALL)
    write_class_map(folder / "gt_thumbnails" / f"{name}.png", labels)
    thumbnail = cv2.resize(rgb, labels.shape[::-1], interpolation=cv2.INTER_AREA)
    write_png(folder / "thumbnails" / f"{name}_thumb.png", thumbnail)


def _write_test_slide(folder: Path, truth: Path, recipe: Recipe, number: int) -> None:
    name, patient = f"test_slide_{number + 1}", _TEST_SLIDE_PATIENTS + number
    rng = np.random.default_rng([recipe.seed, _SLIDE, patient])
    look = _look(recipe, patient)
    rgb, regions = paint_slide(rng, look, recipe.slide_size, hole=number % 3 == 0)
    write_slide(folder / f"{name}.svs", rgb)
    write_class_map(truth / f"{name}.png", label_mask(regions, *recipe.slide_size, _SMALL))
