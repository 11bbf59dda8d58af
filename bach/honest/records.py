"""What a finished run says, read back: the record of every slide, the predictions of images.

`RUN/slides/NAME.json` of `make_heatmap.py` is one JSON object per slide:

    image_id, path, part          name, file as it was given, part ("" with --slides)
    width, height                 level-0 px
    mpp, mpp_source               um per level-0 px, and who says so
    step                          side of a cell of the heatmap in level-0 px
    downsample                    level-0 px per px of class map, tissue mask and truth
    patches                       number of cells that were predicted
    models                        names of the models that were averaged, a list
    fold                          the fold whose model alone predicted it; null with several
    in_sample                     true if every model was trained on the slide
    areas_mm2                     {class: mm2}; Normal counts on tissue only
    score, score_tissue           Part B score of all pixels and of tissue alone; null if undefined
    baseline, baseline_tissue     the same of always predicting Benign
    counts                        4 x 4 pixels, rows the true and columns the predicted class
    annotation                    regions read, painted and left out (why), mm2 per class, and
                                  what there was to say about them
    warnings                      what is odd about its pixels, mask or tissue, a list
    seconds                       time it took
    key                           fingerprint of what the files depend on

`score` to `annotation` are there only if the slide is annotated.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bach.core.errors import InputError
from bach.core.files import read_object, write_json
from bach.core.log import log
from bach.core.run import read_record
from bach.core.tables import patient_key
from bach.core.text import listed
from bach.honest.splits import read_patients, with_patients
from bach.labels import read_labels
from bach.slides import Slide, first_shown
from bach.tasks import task

_SCORES = ("score", "score_tissue", "baseline", "baseline_tissue", "counts", "annotation")
_NUMBERS = ("width", "height", "mpp", "step", "downsample", "patches")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SlideRecord:
    """What is known about a slide whose heatmap was made; see the module for the fields.

    Without an annotation, `counts` is None, and so are the four scores. With one, a score
    is None where it is undefined (Normal everywhere, predicted and true).

    Raises:
        ValueError: If a number is none, or `counts` are not 4 x 4.
    """

    image_id: str
    path: str
    part: str
    width: int
    height: int
    mpp: float
    mpp_source: str
    step: float
    downsample: float
    patches: int
    models: tuple[str, ...]
    fold: int | None
    in_sample: bool
    areas_mm2: Mapping[str, float]
    score: float | None = None
    score_tissue: float | None = None
    baseline: float | None = None
    baseline_tissue: float | None = None
    counts: np.ndarray | None = None
    annotation: Mapping[str, Any] | None = None  # earlier runs lack it
    seconds: float | None = None  # the earliest runs lack it
    warnings: tuple[str, ...] = ()  # runs before 1.1 lack them
    key: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if not known or not abs(value) < 1e15:  # neither nan nor infinite
                raise ValueError(f"{name} must be a number. Received: {value!r}.")
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        if self.counts is not None:
            shape = (task().count, task().count)
            counts = np.array(self.counts)
            if counts.shape != shape or counts.dtype.kind not in "iu" or (counts < 0).any():
                raise ValueError(f"counts must be {shape} numbers. Received: {self.counts!r:.80}.")
            object.__setattr__(self, "counts", counts.astype(np.int64))


# Slides


def read_slide(path: str | os.PathLike) -> SlideRecord:
    """Read the record of a slide.

    Args:
        path: `RUN/slides/NAME.json`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        return _parse(Path(path))
    except (InputError, ValueError, TypeError) as error:
        raise _damaged(path, [f"{Path(path).name}: {' '.join(str(error).split())}"]) from error


def read_slides(run: str | os.PathLike) -> dict[str, SlideRecord]:
    """Read the records of all slides of a `make_heatmap.py` run.

    Args:
        run: Run folder with `slides/<slide>.json`.

    Returns:
        {slide: record}, sorted by name, with and without annotation; empty if there are
        none.

    Raises:
        InputError: If files are damaged; all of them are named.
    """
    found, faults = {}, []
    folder = Path(run) / "slides"
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):  # left behind by a killed process, or by macOS
            continue
        try:
            found[path.stem] = _parse(path)
        except (InputError, ValueError, TypeError) as error:
            faults.append(f"{path.name}: {' '.join(str(error).split())}")
    if faults:
        raise _damaged(folder, faults)
    return found


def slide_file(
    run: str | os.PathLike, record: SlideRecord, slides_dir: str | os.PathLike | None = None
) -> Path | None:
    """Where a slide of a run lies now, or None.

    Args:
        run: Run folder. A relative path is relative to where the run was started, or the run
            that it was made from.
        record: The slide's record there.
        slides_dir: Folder that the slides lie in now, looked into first.

    Raises:
        InputError: If the run's record is damaged.
    """
    path = Path(str(record.path))
    places = [path] if slides_dir is None else [Path(slides_dir, path.name), path]
    told = read_record(run)
    while isinstance(told, dict):
        places.append(Path(str(told.get("folder") or "."), path))
        told = told.get("made_from")
    return next((place for place in places if place.is_file()), None)


def bounds_offset(
    run: str | os.PathLike, record: SlideRecord, slides_dir: str | os.PathLike | None = None
) -> tuple[int, int]:
    """x, y of the level-0 px that QuPath calls 0, 0, see `bach.slides.first_shown`.

    Args:
        run: Run folder.
        record: The slide's record.
        slides_dir: Folder of the slides, if they do not lie where they were.

    Raises:
        InputError: If the slide is not there any more or is another one.
    """
    file = slide_file(run, record, slides_dir)
    if file is None:
        raise InputError(
            f"The slide {record.path} must be there: it says whether QuPath shows a part of it "
            "alone, from where coordinates then count.\nReceived: no such file.\n"
            "Name its folder with --slides-dir; or --offset 0 0 if QuPath shows the whole slide "
            "(SVS, TIFF, NDPI), else --offset with the openslide.bounds-x and -y that it lists."
        )
    with Slide(file, mpp=record.mpp) as slide:
        size, properties = (slide.width, slide.height), slide.properties
    if size != (record.width, record.height):
        raise InputError(
            f"{file} must be the slide that the heatmap was made of.\n"
            f"Received: {size[0]}x{size[1]} px, not {record.width}x{record.height}.\n"
            "Name the right folder with --slides-dir, or say with --offset X Y where QuPath begins "
            "to count in the slide."
        )
    x, y = first_shown(properties)
    if x or y:
        log.info("%s: QuPath shows it from x=%d, y=%d on", record.image_id, x, y)
    return x, y


def counts_of(slides: Mapping[str, SlideRecord]) -> dict[str, np.ndarray]:
    """Pixels of the annotated slides by class, {slide: int64 (classes, classes)}, rows the true."""
    return {name: slide.counts for name, slide in slides.items() if slide.counts is not None}


def write_slide(path: str | os.PathLike, record: SlideRecord) -> None:
    """Write the record of a slide, whole or not at all; without annotation no scores."""
    left_out = _SCORES if record.counts is None else ()
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    write_json(path, {name: value for name, value in values.items() if name not in left_out})


def _parse(path: Path) -> SlideRecord:
    values = read_object(path, "Delete it.")
    # Versions to come may say more.
    known = [field.name for field in dataclasses.fields(SlideRecord)]
    return SlideRecord(**{name: values[name] for name in known if name in values})


def _damaged(path: str | os.PathLike, faults: list[str]) -> InputError:
    return InputError(
        f"{path} must hold what make_heatmap.py writes about a slide.\n"
        "Received:\n  " + "\n  ".join(faults) + "\n"
        "Delete what is damaged and make these heatmaps again: the same command with --resume."
    )


# Images


def read_images(
    run: str | os.PathLike, patients: str | os.PathLike | None = None, alone: bool = True
) -> pd.DataFrame:
    """Read the image predictions of a run.

    Args:
        run: Run folder with `predictions.csv`.
        patients: CSV with `image_id` and `patient`; None to use the column
            `patient` of the predictions, see `with_known_patients`.
        alone: Whether nobody else is asked, so that it is logged if no patient is known.

    Returns:
        Table of `image_id` (reduced to its key), `label`, `predicted` (0..n-1) and
        `patient` (empty where unknown).

    Raises:
        InputError: If the predictions cannot be read or have no true label.
    """
    path = Path(run) / "predictions.csv"
    truth = read_labels(path, "truth").set_index("key")["label"]
    read = read_labels(path, "predictions")
    keys = read["key"].to_numpy()
    table = pd.DataFrame(
        {"image_id": keys, "label": truth[keys].to_numpy(), "predicted": read["label"].to_numpy()}
    )
    return with_known_patients(table, {str(path): read}, patients, alone)


def with_known_patients(
    table: pd.DataFrame,
    sources: Mapping[str, pd.DataFrame],
    patients: str | os.PathLike | None = None,
    warn: bool = True,
) -> pd.DataFrame:
    """Give images their patients, and so decide what the units of an interval are.

    Whatever scores or compares images asks here, so that the same files have the same
    interval. Where no patient is known, images count as if independent (logged).

    Args:
        table: Any table with `image_id`.
        sources: {name: table of `image_id` and `patient`}; the first one that knows the
            patient of an image decides. Others that say otherwise are named in the log.
        patients: CSV of `image_id` and `patient`, which alone decides if it is given.
        warn: Whether to log that no patient is known.

    Returns:
        A copy of the table with `patient`, empty where unknown.

    Raises:
        InputError: If the CSV file cannot be read.
    """
    if patients is not None:
        sources = {str(patients): read_patients(patients)}
    first, *others = sources
    table = with_patients(table, sources[first])
    for name in others:
        other = with_patients(table, sources[name])["patient"]
        known = table["patient"] != ""
        alike = other.map(patient_key) == table["patient"].map(patient_key)
        differ = table["image_id"][known & (other != "") & ~alike]
        if len(differ):
            message = "%s names other patients than %s for %d images (%s): the latter are taken"
            log.warning(message, name, first, len(differ), listed(differ, most=3))
        table["patient"] = table["patient"].where(known, other)
    if warn and not table["patient"].any():
        log.warning(
            "%s: no patient is known, images count as if independent and the interval is too "
            "narrow if some share a patient; name a CSV of image_id, patient for --patients",
            " and ".join(sources),
        )
    return table
