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

import concurrent.futures
import itertools
import multiprocessing
import os
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

from bach.classes import CLASSES, COLORS, PREFIXES
from bach.core.errors import InputError
from bach.core.files import atomic_path
from bach.core.log import step
from bach.toy import painter

TRAIN_DIR = "ICIAR2018_BACH_Challenge"
TEST_DIR = "ICIAR2018_BACH_Challenge_TestDataset"

# Source: Aresta et al. 2018, arXiv:1808.04277.
PHOTO_SIZE = (2048, 1536)
PHOTO_MPP = 0.42
SLIDE_MPP = 0.467
FACTORS = (1, 4, 16)

# A fifth of a real slide's width: the least that holds regions of 1 mm.
SLIDE_SIZE = (8192, 6144)
# Pictures are painted at twice the um per px and enlarged: four times as fast,
# and the network looks at 2.1 um/px.
_PAINT_FACTOR = 2

TILE = 256  # px, as in Aperio files
_SPELLINGS = ("attribute", "text", "layer")
# As people wrote them in the BACH files; `bach.classes.parse_label` knows them.
_WORDINGS = {
    1: ("benign", "Benign"),
    2: ("Carcinoma in situ", "In situ carcinoma"),
    3: ("Invasive carcinoma", "invasive carcinoma"),
}

# First words of seeds: what is drawn for one kind of thing never moves another.
_PLAN, _PATIENT, _PHOTO, _SLIDE = range(4)
# Patients of the three parts are numbered apart, so that nobody is in two.
_TEST_PATIENTS, _SLIDE_PATIENTS, _TEST_SLIDE_PATIENTS = 1000, 2000, 3000


def write_slide(
    path: str | os.PathLike,
    pixels: np.ndarray | Callable[[int, int, int, int], np.ndarray],
    mpp: float | None = SLIDE_MPP,
    *,
    size: tuple[int, int] | None = None,
    compression: str | None = "deflate",
    factors: tuple[int, ...] = FACTORS,
) -> None:
    """Write an .svs that OpenSlide opens as Aperio: tiled, with a pyramid.

    A pixel of a level is the mean of its block in the level before, so levels
    are aligned exactly. Where a factor does not divide the size, the rest at the
    right and the bottom is left out of the smaller levels, as Aperio does.

    Args:
        path: File to write.
        pixels: uint8 RGB array (height, width, 3), also a memory map; or, for
            slides larger than memory, a function (x, y, width, height) -> such
            an array, called for bands of whole width from top to bottom.
        mpp: um per level-0 px, written as `MPP`; None writes no scale.
        size: (width, height) in level-0 px; only with a function.
        compression: "deflate" (lossless), "jpeg" or None.
        factors: Downsamples of the levels, ascending multiples from 1.

    Raises:
        InputError: If "jpeg" is asked for and imagecodecs is not installed.
        ValueError: If another argument does not fit.
    """
    if not callable(pixels):
        array = pixels
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                "pixels must be uint8 of shape (height, width, 3). "
                f"Received: dtype={array.dtype}, shape={array.shape}"
            )
        size = (array.shape[1], array.shape[0])
        pixels = lambda x, y, width, height: array[y : y + height, x : x + width]
    if size is None:
        raise ValueError("A function needs the size it paints. Received: size=None")
    if factors[0] != 1 or any(
        b <= a or b % a or TILE % (b // a) for a, b in itertools.pairwise(factors)
    ):
        raise ValueError(
            f"Each factor must be a power of 2 times the one before, the first 1. "
            f"Received: factors={factors}"
        )
    if min(size) < factors[-1]:
        raise ValueError(f"No pixel is left at 1/{factors[-1]}. Received: size={size}")
    if compression not in ("deflate", "jpeg", None):
        raise ValueError(f'compression must be "deflate", "jpeg" or None. Received: {compression}')
    options = {"photometric": "rgb", "tile": (TILE, TILE), "metadata": None, "software": False}
    if compression == "jpeg":
        try:
            import imagecodecs  # noqa: F401  # optional, and only here
        except ImportError as error:
            raise InputError(
                "Slides with JPEG tiles need the package imagecodecs.\n"
                f"Received: compression={compression!r}, imagecodecs is not installed.\n"
                "Install it, or use compression='deflate'."
            ) from error
        options["compression"] = "jpeg"
    elif compression == "deflate":
        options |= {"compression": "adobe_deflate", "predictor": 2}

    width, height = size
    # Past 4 GB a plain TIFF has no room for the addresses.
    big = width * height * 3 > 3.5e9
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as writer:
        for index, factor in enumerate(factors):
            cols, rows = width // factor, height // factor
            ratio = factors[index + 1] // factor if index + 1 < len(factors) else None
            smaller = ratio and np.empty((rows // ratio, cols // ratio, 3), np.uint8)
            writer.write(
                _tiles(pixels, cols, rows, smaller, ratio, compression == "deflate"),
                shape=(rows, cols, 3),
                dtype=np.uint8,
                description=_aperio_description(width, height, cols, rows, mpp, index),
                **options,
            )
            if smaller is not None:
                pixels = lambda x, y, w, h, level=smaller: level[y : y + h, x : x + w]


def _tiles(
    pixels: Callable, cols: int, rows: int, smaller: np.ndarray | None, ratio: int | None,
    deflate: bool,
) -> Iterator[np.ndarray | bytes]:  # fmt: skip
    """Yield the tiles of a level, row by row, and fill the next level meanwhile."""
    for y in range(0, rows, TILE):
        high = min(TILE, rows - y)
        band = pixels(0, y, cols, high)
        if smaller is not None:
            part = smaller[y // ratio : (y + high) // ratio]
            whole = band[: part.shape[0] * ratio, : part.shape[1] * ratio]
            if part.size:
                part[:] = cv2.resize(
                    whole, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_AREA
                )
        for x in range(0, cols, TILE):
            tile = np.zeros((TILE, TILE, 3), np.uint8)
            tile[:high, : min(TILE, cols - x)] = band[:, x : x + TILE]
            if deflate:
                # Encoded here, since tifffile's own predictor takes twice as long.
                change = tile.copy()
                change[:, 1:] -= tile[:, :-1]
                # Differences of neighbours repeat too little to be searched for.
                encoder = zlib.compressobj(1, strategy=zlib.Z_RLE)
                yield encoder.compress(change.tobytes()) + encoder.flush()
            else:
                yield tile


def _aperio_description(
    width: int, height: int, cols: int, rows: int, mpp: float | None, level: int
) -> str:
    """The text by which Aperio files are known and their scale is read."""
    lines = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (256x256)"
    if level:
        lines += f" -> {cols}x{rows}"
    fields = ["Title = painted by bach.toy, no patient", "AppMag = 20"]
    if mpp is not None:
        fields.append(f"MPP = {mpp:g}")
    return "|".join([lines, *fields])


def write_annotation_xml(
    path: str | os.PathLike,
    regions: list[dict],
    mpp: float = SLIDE_MPP,
    spelling: str = "attribute",
    *,
    empty_layer: bool = False,
) -> None:
    """Write regions in the form of Aperio ImageScope.

    Args:
        path: File to write.
        regions: Dicts with `label` (1..3), `points` (array (n, 2) of x, y in
            level-0 px; whole numbers are written without a point) and, if it is
            a hole, `is_hole` True. Order is kept: later ones paint over.
        mpp: um per level-0 px.
        spelling: Where the class stands, as all three occur in BACH:
            "attribute" (Region/Attributes/Attribute@Value), "text" (Region@Text)
            or "layer" (both empty, Annotation@Id 1, 2, 3).
        empty_layer: Add a layer without a region.

    Raises:
        ValueError: If the spelling or a region does not fit.
    """
    if spelling not in _SPELLINGS:
        raise ValueError(f"spelling must be one of {_SPELLINGS}. Received: spelling={spelling!r}")
    for region in regions:
        if region["label"] not in _WORDINGS or np.asarray(region["points"]).shape[1:] != (2,):
            raise ValueError(
                "A region must have a label 1..3 and points of shape (n, 2). "
                f"Received: label={region['label']}, "
                f"points.shape={np.asarray(region['points']).shape}"
            )
    root = ElementTree.Element("Annotations", MicronsPerPixel=f"{mpp:g}")
    # Other than by layer all regions stand in layer 1, whatever their class: who
    # reads the layer's number before the words gets them wrong, as on real files.
    layers = {1: regions}
    if spelling == "layer":
        layers = {
            label: [region for region in regions if region["label"] == label] for label in _WORDINGS
        }
    if empty_layer:
        layers[max(layers) + 1] = []
    number = 0
    for layer, members in layers.items():
        annotation = ElementTree.SubElement(
            root, "Annotation", Id=str(layer), Name="", ReadOnly="0", Type="4",
            LineColor=str(int.from_bytes(bytes(COLORS[layer % 4]), "little")),
        )  # fmt: skip
        ElementTree.SubElement(annotation, "Attributes")
        box = ElementTree.SubElement(annotation, "Regions")
        for region in members:
            number += 1
            _add_region(box, region, number, spelling)
    ElementTree.indent(root, " ")
    with atomic_path(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _add_region(box: ElementTree.Element, region: dict, number: int, spelling: str) -> None:
    wordings = _WORDINGS[region["label"]]
    text = wordings[number % len(wordings)]
    element = ElementTree.SubElement(
        box, "Region", Id=str(number), Type="0", Text=text if spelling == "text" else "",
        NegativeROA="1" if region.get("is_hole") else "0", InputRegionId="0", Analyze="1",
    )  # fmt: skip
    attributes = ElementTree.SubElement(element, "Attributes")
    if spelling == "attribute":
        ElementTree.SubElement(attributes, "Attribute", Id="1", Name="Description", Value=text)
    vertices = ElementTree.SubElement(element, "Vertices")
    for x, y in np.asarray(region["points"], dtype=float):
        ElementTree.SubElement(vertices, "Vertex", X=_number(x), Y=_number(y), Z="0")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def write_label_map(path: str | os.PathLike, labels: np.ndarray) -> None:
    """Write a uint8 map of classes 0..3 as a PNG whose palette shows them.

    Args:
        path: File to write.
        labels: uint8 array (height, width).
    """
    image = Image.fromarray(labels).convert("P")
    image.putpalette([value for color in COLORS for value in color])
    with atomic_path(path) as temporary:
        image.save(temporary)


def paint_photo(
    rng: np.random.Generator,
    label: int,
    look: painter.Look,
    size: tuple[int, int] = PHOTO_SIZE,
    mpp: float = PHOTO_MPP,
) -> np.ndarray:
    """Paint a Part A photo.

    Args:
        rng: Source of chance.
        label: Class 0..3.
        look: The patient's look; sections of a patient differ a little from it.
        size: (width, height) in px.
        mpp: Scale in um per px.

    Returns:
        uint8 RGB array (height, width, 3).
    """
    width, height = size
    h_strength, e_strength, blur = np.exp(rng.normal(0, (0.05, 0.05, 0.1)))
    look = look._replace(
        h_strength=look.h_strength * h_strength,
        e_strength=look.e_strength * e_strength,
        blur_um=look.blur_um * blur,
    )
    cols, rows = -(-width // _PAINT_FACTOR), -(-height // _PAINT_FACTOR)
    rgb = painter.paint_tissue(rng, label, cols, rows, mpp * _PAINT_FACTOR, look)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC)


def paint_slide(
    rng: np.random.Generator,
    look: painter.Look,
    size: tuple[int, int] = SLIDE_SIZE,
    mpp: float = SLIDE_MPP,
    *,
    pen: tuple[int, int, int] | None = None,
    hole: bool = False,
) -> tuple[np.ndarray, list[dict]]:
    """Paint a slide: a piece of tissue on glass with regions of all classes.

    Args:
        rng: Source of chance.
        look: The patient's look.
        size: (width, height) in level-0 px.
        mpp: Scale in um per level-0 px.
        pen: RGB of a marker stroke over the edge of the tissue, None for none.
        hole: Cut a hole of normal tissue into the largest region.

    Returns:
        The level-0 picture, uint8 RGB (height, width, 3), and its regions, as
        `write_annotation_xml` takes them.
    """
    width, height = size
    cols, rows = -(-width // _PAINT_FACTOR), -(-height // _PAINT_FACTOR)
    scale = mpp * _PAINT_FACTOR
    outline = painter.blob(rng, 1.0, 0.16, 240) * (0.42 * width, 0.42 * height)
    outline += (width / 2, height / 2)
    regions = _place_regions(rng, outline, size, hole)
    # The edge of tissue is ragged at 30 um and soft at 5 um.
    soft = np.zeros((rows // 8, cols // 8), np.float32)
    cv2.fillPoly(soft, [np.round(outline / (8 * _PAINT_FACTOR)).astype(np.int32)], 1)
    soft = cv2.GaussianBlur(soft, (0, 0), 25 / (8 * scale))
    soft = cv2.resize(soft, (cols, rows), interpolation=cv2.INTER_LINEAR)
    ragged = painter.smooth_noise(rng, cols, rows, 30 / scale, 30 / scale)
    tissue = np.clip((soft - 0.5 + 0.12 * ragged) * 6 + 0.5, 0, 1)
    labels = rasterise(regions, (cols, rows), _PAINT_FACTOR)
    rgb = painter.paint_tissue(rng, labels, cols, rows, scale, look, tissue)
    # Light falls off towards a corner, by a few grey levels.
    ramp_y = np.linspace(0, rng.uniform(-4, 4), rows)[:, None]
    ramp_x = np.linspace(0, rng.uniform(-4, 4), cols)[None, :]
    ramp = np.round(ramp_y + ramp_x).astype(np.int16)
    rgb = np.clip(rgb + ramp[..., None], 0, 255).astype(np.uint8)
    if pen is not None:
        rgb = _draw_pen(rng, rgb, outline / _PAINT_FACTOR, pen)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), regions


def rasterise(regions: list[dict], size: tuple[int, int], factor: float) -> np.ndarray:
    """Paint regions into a label map: later over earlier, holes as Normal.

    Args:
        regions: As `write_annotation_xml` takes them.
        size: (width, height) of the map in px.
        factor: Level-0 px a px of the map.

    Returns:
        uint8 array (height, width) of labels 0..3.
    """
    labels = np.zeros((size[1], size[0]), np.uint8)
    for region in regions:
        # Pixel centres lie at half-integers in level-0 coordinates.
        points = np.round((region["points"] / factor - 0.5) * 16).astype(np.int32)
        value = 0 if region.get("is_hole") else region["label"]
        cv2.fillPoly(labels, [points], value, shift=4)
    return labels


def _place_regions(
    rng: np.random.Generator, outline: np.ndarray, size: tuple[int, int], hole: bool
) -> list[dict]:
    """Regions of the three classes inside the tissue, apart from each other."""
    # Mean radius 0.6-0.9 mm by the default size: most 628-um patches that touch a
    # region lie in it, as they do on real slides, whose regions are larger still.
    unit = min(size) / SLIDE_SIZE[1]
    low, high = 1300 * unit, 1900 * unit
    wanted = [*rng.permutation([1, 2, 3]), *rng.integers(1, 4, rng.integers(2))]
    spots: list[tuple[float, float, float, int]] = []
    for label in wanted:
        for attempt in range(300):
            # The harder room is to find, the smaller the region may be.
            radius = (low + (high - low) * rng.random()) * (1 - 0.4 * attempt / 300)
            x, y = rng.uniform(0, 1, 2) * size
            inside = cv2.pointPolygonTest(outline.astype(np.float32), (x, y), True) > 0.9 * radius
            if inside and all(np.hypot(x - a, y - b) > 1.1 * (radius + c) for a, b, c, _ in spots):
                spots.append((x, y, radius, int(label)))
                break
    regions = []
    fractional = bool(rng.integers(2))
    for x, y, radius, label in spots:
        points = painter.blob(rng, radius, 0.15, 160) + np.array([x, y])
        regions.append({"label": label, "points": points, "is_hole": False})
    if hole and spots:
        x, y, radius, label = max(spots, key=lambda spot: spot[2])
        points = painter.blob(rng, 0.32 * radius, 0.12, 80) + np.array([x, y])
        regions.append({"label": label, "points": points, "is_hole": True})
    for region in regions:
        clipped = np.clip(region["points"], 0, (size[0] - 1, size[1] - 1))
        region["points"] = np.round(clipped, 2 if fractional else 0)
    return regions


def _draw_pen(
    rng: np.random.Generator, rgb: np.ndarray, outline: np.ndarray, color: tuple[int, int, int]
) -> np.ndarray:
    """Draw along the edge of the tissue with a marker, as on real glass."""
    length = len(outline) // 5
    start = rng.integers(len(outline))
    line = np.roll(outline, -start, axis=0)[:length]
    centre = outline.mean(0)
    line = centre + (line - centre) * np.linspace(1.08, 0.9, length)[:, None]
    ink = np.zeros(rgb.shape[:2], np.uint8)
    thickness = max(2, min(rgb.shape[:2]) // 24)
    cv2.polylines(ink, [np.round(line).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
    share = cv2.GaussianBlur(ink, (0, 0), thickness / 20).astype(np.float32)[..., None] / 255
    # Ink is seen through, like a filter.
    through = rgb * (np.asarray(color, np.float32) / 255)
    return (rgb * (1 - 0.92 * share) + 0.92 * share * through).astype(np.uint8)


def allot_patients(patients: int, images: int) -> list[list[int]]:
    """Share out the images of each class among the patients.

    Three quarters of a class go to the patients whose main class it is (every
    fourth one), the rest to those whose second class it is: to know the patient
    is to know the class, mostly.

    Args:
        patients: Number of patients.
        images: Number of images a class.

    Returns:
        For each class the patients (from 0) of its images, in order.
    """
    patient = np.arange(patients)
    main = patient % 4
    second = (main + 1 + patient // 4 % 3) % 4
    allotted = []
    for label in range(4):
        weight = 6.0 * (main == label) + 2.0 * (second == label)
        if not weight.any():
            weight[:] = 1
        exact = images * weight / weight.sum()
        count = np.floor(exact).astype(int)
        rest = np.argsort(count - exact, kind="stable")[: images - count.sum()]
        count[rest] += 1
        allotted.append(np.repeat(patient, count).tolist())
    return allotted


def make_data_set(
    directory: str | os.PathLike,
    *,
    seed: int = 0,
    patients: int = 12,
    images: int = 12,
    test_images: int = 5,
    slides: int = 4,
    test_slides: int = 1,
    stain_shift: float = 1.0,
    label_noise: float = 0.0,
    workers: int = 1,
    photo_size: tuple[int, int] = PHOTO_SIZE,
    slide_size: tuple[int, int] = SLIDE_SIZE,
) -> Path:
    """Write the trial data set.

    Args:
        directory: Folder to write to; must be empty or not there yet.
        seed: Same seed, same bytes, whatever the number of workers.
        patients: Patients of the training photos; the test photos have half as
            many others, at least 4, and every slide has one of its own.
        images: Training photos a class.
        test_images: Test photos a class.
        slides: Annotated slides; from 3 on all three spellings occur.
        test_slides: Slides of the test set.
        stain_shift: How far the patients' looks differ; 0: not at all.
        label_noise: Share of training photos filed under a wrong class, 0..1.
        workers: Processes.
        photo_size: (width, height) of photos in px; smaller ones for tests.
        slide_size: Likewise of slides; multiples of 16.

    Returns:
        The folder.

    Raises:
        InputError: If the folder is not empty or a number does not fit.
    """
    if min(slide_size) < 256 or slide_size[0] % 16 or slide_size[1] % 16:
        raise ValueError(
            f"slide_size must be multiples of 16, at least 256. Received: slide_size={slide_size}"
        )
    directory = Path(directory)
    _check_numbers(patients, images, test_images, slides, test_slides, stain_shift, label_noise)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(
            "The trial data set needs a new or empty folder.\n"
            f"Received: {directory}, which is not empty.\n"
            "Name another folder, or delete this one."
        )
    train, test, truth = directory / TRAIN_DIR, directory / TEST_DIR, directory / "truth"
    rng = np.random.default_rng([seed, _PLAN])
    shared = (seed, stain_shift)
    jobs = []

    planned = [
        (label, patient)
        for label, members in enumerate(allot_patients(patients, images))
        for patient in rng.permutation(members).tolist()
    ]
    filed = _flip_labels(rng, [label for label, _ in planned], label_noise)
    number = [0] * 4
    patient_rows, truth_rows = ["image_id,label,patient"], ["image_id,label"]
    rows = []
    for index, ((label, patient), name) in enumerate(zip(planned, filed, strict=True)):
        number[name] += 1
        image_id = f"{PREFIXES[name]}{number[name]:03d}"
        path = train / "Photos" / CLASSES[name] / f"{image_id}.tif"
        jobs.append((_photo_job, path, shared, index, label, patient, photo_size))
        rows.append((name, number[name], image_id, CLASSES[label], f"T{patient + 1:02d}"))
    for name, _, image_id, painted, patient in sorted(rows):
        patient_rows.append(f"{image_id},{CLASSES[name]},{patient}")
        truth_rows.append(f"{image_id},{painted}")
    filing = [f"{row.split(',')[0]}.tif,{row.split(',')[1]}" for row in patient_rows[1:]]

    others = allot_patients(max(4, patients // 2), test_images)
    hidden = [(label, patient) for label in range(4) for patient in others[label]]
    hidden = [hidden[i] for i in rng.permutation(len(hidden))]
    answers = ["image_id,label"]
    for index, (label, patient) in enumerate(hidden):
        path = test / "Photos" / f"test{index}.tif"
        patient += _TEST_PATIENTS
        jobs.append((_photo_job, path, shared, _TEST_PATIENTS + index, label, patient, photo_size))
        answers.append(f"test{index},{CLASSES[label]}")

    # Slides first: they take longest, and a worker should not end alone on one.
    slide_jobs = [
        (_slide_job, train / "WSI" / f"A{index + 1:02d}.svs", shared, index, True, None, slide_size)
        for index in range(slides)
    ] + [
        (
            _slide_job, test / "WSI" / f"test_slide_{index + 1}.svs", shared, index, False,
            truth / "part_b" / f"test_slide_{index + 1}.png", slide_size,
        )
        for index in range(test_slides)
    ]  # fmt: skip

    for folder in (*(train / "Photos" / name for name in CLASSES), test / "Photos"):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (train / "WSI", test / "WSI", truth / "part_b"):
        folder.mkdir(parents=True, exist_ok=True)
    _write_lines(train / "Photos" / "microscopy_ground_truth.csv", filing)
    _write_lines(directory / "patients.csv", patient_rows)
    _write_lines(truth / "training.csv", truth_rows)
    _write_lines(truth / "part_a.csv", answers)
    with step("toy") as notes:
        _run_jobs(slide_jobs + jobs, workers)
        notes.append(
            f"{len(planned)} photos of {patients} patients, {len(hidden)} test photos, "
            f"{slides} slides, {test_slides} test slides"
        )
    return directory


def _check_numbers(
    patients: int, images: int, test_images: int, slides: int, test_slides: int,
    stain_shift: float, label_noise: float,
) -> None:  # fmt: skip
    for name, value, least in (
        ("patients", patients, 1),
        ("images", images, 1),
        ("test-images", test_images, 0),
        ("slides", slides, 0),
        ("test-slides", test_slides, 0),
        ("stain-shift", stain_shift, 0),
        ("label-noise", label_noise, 0),
    ):
        if not value >= least:
            raise InputError(f"--{name} must be at least {least}.\nReceived: --{name}={value}.")
    if label_noise > 1:
        raise InputError(
            f"--label-noise is a share and at most 1.\nReceived: --label-noise={label_noise}."
        )


def _flip_labels(rng: np.random.Generator, labels: list[int], share: float) -> list[int]:
    """Replace exactly `share` of the labels, rounded, by another class."""
    filed = list(labels)
    for index in rng.permutation(len(labels))[: round(share * len(labels))]:
        filed[index] = int((labels[index] + rng.integers(1, 4)) % 4)
    return filed


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


def _run_jobs(jobs: list[tuple], workers: int) -> None:
    """Run jobs, in this process or several; each has its own seed."""
    with tqdm(total=len(jobs), desc="toy", unit="file", disable=None) as bar:
        if workers <= 1:
            for function, *arguments in jobs:
                function(*arguments)
                bar.update()
            return
        # Spawned, not forked: a fork copies the locks of OpenCV's threads.
        with concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)
        ) as pool:
            waiting = [pool.submit(function, *arguments) for function, *arguments in jobs]
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                bar.update()


def _look(shared: tuple[int, float], patient: int) -> painter.Look:
    seed, stain_shift = shared
    return painter.make_look(np.random.default_rng([seed, _PATIENT, patient]), stain_shift)


def _photo_job(
    path: Path, shared: tuple, index: int, label: int, patient: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng([shared[0], _PHOTO, index])
    rgb = paint_photo(rng, label, _look(shared, patient), size)
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, rgb, photometric="rgb", metadata=None, software=False, rowsperstrip=64
        )


def _slide_job(
    path: Path, shared: tuple, index: int, annotated: bool, truth: Path | None,
    size: tuple[int, int],
) -> None:  # fmt: skip
    patient = index + (_SLIDE_PATIENTS if annotated else _TEST_SLIDE_PATIENTS)
    rng = np.random.default_rng([shared[0], _SLIDE, patient])
    # The second slide has a pen mark, the first a hole: one of each will do.
    pen = ((40, 80, 200) if index % 2 else (30, 140, 90)) if index % 3 == 1 else None
    rgb, regions = paint_slide(
        rng, _look(shared, patient), size, pen=pen if annotated else None, hole=index % 3 == 0
    )
    write_slide(path, rgb)
    small = (size[0] // 16, size[1] // 16)
    labels = rasterise(regions, small, 16)
    if truth is not None:
        write_label_map(truth, labels)
    if annotated:
        spelling = _SPELLINGS[index % 3]
        write_annotation_xml(
            path.with_suffix(".xml"), regions, spelling=spelling, empty_layer=spelling == "text"
        )
        write_label_map(path.parent / "gt_thumbnails" / f"{path.stem}.png", labels)
        with atomic_path(path.parent / "thumbnails" / f"{path.stem}_thumb.png") as temporary:
            Image.fromarray(cv2.resize(rgb, small, interpolation=cv2.INTER_AREA)).save(temporary)
