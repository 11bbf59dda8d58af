"""Write trial lymph nodes: painted slides with metastases, filed as CAMELYON16 has them.

A slide holds one node. Metastases have the diameters that are asked for, and the slide is as large
as its node must be. Every slide has stains, light and focus of its own.

Reads:   nothing.
Writes:  DIR/slides/tumor_001.svs, tumor_001.xml (ASAP), normal_001.svs
         DIR/test_slides/test_001.svs
         DIR/truth/annotations/test_001.xml, DIR/truth/masks/test_001.png of those with tumour
         DIR/truth/slides.csv     image_id, label, metastases, largest_mm of all slides
Command: python -m bach.toy nodes data/nodes
Time:    1 min on one core, 0.5 GB, 0.7 GB of memory; a slide of 5 mm takes as long, and 2.7 GB.

Tumour is of the group Tumor, _0 or _1; islands of the node inside it are of _2 or Exclusion: all of
these occur in the challenges' files. Normal slides have no annotation. The truth of the test slides
lies outside their folder.
"""

import dataclasses
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.random import Generator
from tqdm import tqdm

from bach.annotations import Region
from bach.annotations.painting import paint
from bach.core.files import atomic_path
from bach.core.log import step
from bach.core.options import MOST_SEED, option
from bach.core.pictures import write_gray
from bach.core.tables import write_csv
from bach.toy import painter
from bach.toy.aperio import FACTORS, TILE, write_bands
from bach.toy.folder import new_folder

# Twice the um per px that the challenge's evaluation takes for its slides; a sixteenth of this is
# the scale that lesions are compared at.
MPP = 0.486
MASK_UM = 7.776

# Painted at this scale or coarser and enlarged, as the other trial slides; no larger than this.
_PAINT_UM = 0.972
_PAINT_PIXELS = 24e6
_DIAMETERS_MM = (0.3, 0.6, 1.2)
_LEAST_MM = 1.0  # half of the smallest node's length
_TUMOUR, _ISLAND = 1, 0
_GROUPS = {_TUMOUR: ("Tumor", "_0", "_1"), _ISLAND: ("_2", "Exclusion")}


@dataclasses.dataclass(frozen=True)
class Nodes:
    """What the trial lymph nodes hold."""

    seed: int = option(0, "seed of every random choice", at_least=0, most=MOST_SEED)
    slides: int = option(6, "annotated slides with metastases", at_least=0, most=999)
    normal_slides: int = option(6, "slides without", at_least=0, most=999)
    test_slides: int = option(
        6, "slides of the test set, every other one with metastases", at_least=0, most=999
    )
    diameters_mm: tuple[float, ...] = option(
        (),
        "diameters of the largest metastases, in turn, 0.2 to 5 in patients (default: 0.3 0.6 1.2)",
        above=0,
        most=10,
        metavar="MM",
    )
    mpp: float = option(MPP, "um per px of the slides", at_least=0.2, most=4)
    stain_shift: float = option(
        1.0,
        "how far the slides' stains, light and focus differ; 0: not at all",
        at_least=0,
        most=10,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A painted lymph node.

    Attributes:
        rgb: uint8 `(rows, cols, 3)`, painted at a coarser scale than that of the slide.
        factor: Level-0 px per px of it.
        regions: Tumour, label 1, and then islands of the node in it, label 0, in level-0 px.
    """

    rgb: np.ndarray
    factor: int
    regions: list[Region]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the slide in level-0 px."""
        rows, cols = self.rgb.shape[:2]
        return cols * self.factor, rows * self.factor


def make_nodes(directory: str | os.PathLike, recipe: Nodes | None = None) -> Path:
    """Write the trial lymph nodes.

    Args:
        directory: Folder to write to; must be empty or not there yet.
        recipe: What they hold. The same recipe gives the same bytes.

    Returns:
        The folder.

    Raises:
        InputError: If the folder is not empty.
    """
    recipe = recipe or Nodes()
    directory = new_folder(directory, "The trial lymph nodes need")
    folders = [directory / name for name in ("slides", "test_slides", "truth")]
    for folder in (*folders, folders[2] / "annotations", folders[2] / "masks"):
        folder.mkdir(parents=True, exist_ok=True)
    plan = [
        *((f"tumor_{n + 1:03d}", n, True) for n in range(recipe.slides)),
        *((f"normal_{n + 1:03d}", 1000 + n, False) for n in range(recipe.normal_slides)),
        *((f"test_{n + 1:03d}", 2000 + n, n % 2 == 0) for n in range(recipe.test_slides)),
    ]
    rows = []
    with step("toy") as notes:
        for name, number, tumour in tqdm(plan, desc="toy", unit="slide", disable=None):
            rows.append(_write(directory, recipe, name, number, tumour))
        notes.append(f"{len(plan)} slides, {sum(row[1] == 'Tumor' for row in rows)} with tumour")
    names = ["image_id", "label", "metastases", "largest_mm"]
    write_csv(pd.DataFrame(rows, columns=names), directory / "truth" / "slides.csv")
    return directory


def _write(
    directory: Path, recipe: Nodes, name: str, number: int, tumour: bool
) -> tuple[str, str, int, float]:
    """Write a slide and what is true of it; its row of the table."""
    test = number >= 2000
    rng = np.random.default_rng([recipe.seed, number])
    look = painter.make_look(rng, recipe.stain_shift)
    turn = (number % 1000) // (2 if test else 1)
    sizes = recipe.diameters_mm or _DIAMETERS_MM
    diameter = sizes[turn % len(sizes)]
    diameters = [diameter, *(diameter * rng.uniform(0.2, 0.5, rng.integers(3)))] if tumour else []
    node = paint_node(rng, look, diameters, recipe.mpp)
    folder = directory / ("test_slides" if test else "slides")
    write_bands(folder / f"{name}.svs", _bands(node), node.size, recipe.mpp)
    found = [region for region in node.regions if region.label == _TUMOUR]
    if found:
        truth = directory / "truth"
        file = (truth / "annotations" if test else folder) / f"{name}.xml"
        write_asap_xml(file, node.regions, first=number)
    if found and test:
        mask = paint(node.regions, *node.size, MASK_UM / recipe.mpp).labels == _TUMOUR
        write_gray(truth / "masks" / f"{name}.png", mask.astype(np.uint8) * 255)
    largest = round(float(max(diameters, default=0)), 3)
    return name, "Tumor" if found else "Normal", len(found), largest


def paint_node(
    rng: Generator, look: painter.Look, diameters_mm: Sequence[float], mpp: float = MPP
) -> Node:
    """Paint a lymph node on glass, with metastases.

    Args:
        rng: Source of chance; the same state gives the same node.
        look: The patient's look, see `bach.toy.painter.make_look`.
        diameters_mm: Mean diameters of the metastases, the largest first; one that finds no
            room apart from the others is left out.
        mpp: um per level-0 px.

    Returns:
        The node; its slide is as large as the first metastasis asks for.
    """
    half = max(_LEAST_MM, 0.85 * max(diameters_mm, default=0)) * 1000  # um
    width, height = 2.3 * half, 1.9 * half
    factor = max(
        1, round(_PAINT_UM / mpp), int(np.ceil(np.sqrt(width * height / _PAINT_PIXELS) / mpp))
    )
    scale = mpp * factor
    # Of 16 level-0 px, so that the smallest level has all of it.
    cols, rows = (round(side / (scale * FACTORS[-1])) * FACTORS[-1] for side in (width, height))
    outline = painter.blob(rng, 1.0, 0.10, 240) * (half, 0.78 * half) + (width / 2, height / 2)
    soft: np.ndarray = np.zeros((rows, cols), np.float32)
    cv2.fillPoly(soft, [np.round(outline / scale).astype(np.int32)], 1)
    soft = cv2.GaussianBlur(soft, (0, 0), 10 / scale)
    ragged = painter.smooth_noise(rng, cols, rows, 30 / scale, 30 / scale)
    tissue = np.clip((soft - 0.5 + 0.08 * ragged) * 6 + 0.5, 0, 1)
    regions = [
        region._replace(points=np.round(region.points / mpp, 2))
        for region in _place(rng, outline, diameters_mm)
    ]
    labels = paint(regions, cols * factor, rows * factor, factor).labels
    return Node(painter.paint_node(rng, labels == _TUMOUR, scale, look, tissue), factor, regions)


def _place(rng: Generator, outline: np.ndarray, diameters_mm: Sequence[float]) -> list[Region]:
    """Metastases inside an outline, apart from each other, in um; the islands come last."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    spots: list[tuple[float, float, float]] = []
    for diameter in diameters_mm:
        radius = 500 * diameter
        for _ in range(400):
            x, y = rng.uniform(low, high)
            inside = cv2.pointPolygonTest(outline.astype(np.float32), (float(x), float(y)), True)
            # Beyond what makes one lesion of two, and the outlines' own unevenness.
            free = all(np.hypot(x - a, y - b) > 1.35 * (radius + r) + 150 for a, b, r in spots)
            if inside > 1.1 * radius and free:
                spots.append((float(x), float(y), radius))
                break
    regions, islands = [], []
    for x, y, radius in spots:
        centre = np.array([x, y])
        regions.append(Region(_TUMOUR, centre + painter.blob(rng, radius, 0.14, 120)))
        if radius > 400:
            centre += rng.uniform(-0.3, 0.3, 2) * radius
            islands.append(Region(_ISLAND, centre + painter.blob(rng, 0.25 * radius, 0.1, 60)))
    return regions + islands


def _bands(node: Node) -> Iterator[np.ndarray]:
    """The level-0 picture in bands, each enlarged with its neighbourhood: no seam."""
    width, height = node.size
    factor, margin = node.factor, 4
    for top in range(0, height, TILE):
        bottom = min(top + TILE, height)
        first, last = (
            max(top // factor - margin, 0),
            min(-(-bottom // factor) + margin, len(node.rgb)),
        )
        size = (width, (last - first) * factor)
        part = cv2.resize(node.rgb[first:last], size, interpolation=cv2.INTER_CUBIC)
        yield part[top - first * factor : bottom - first * factor]


def write_asap_xml(path: str | os.PathLike, regions: Sequence[Region], first: int = 0) -> None:
    """Write regions in the form of ASAP, in groups of CAMELYON's names.

    Args:
        path: File to write.
        regions: Tumour, label 1, and what is none, label 0, in level-0 px.
        first: Which of the names of a kind comes first.
    """
    root = ET.Element("ASAP_Annotations")
    box = ET.SubElement(root, "Annotations")
    for number, region in enumerate(regions):
        groups = _GROUPS[region.label]
        group = groups[(first + number) % len(groups)]
        about = {"Name": f"Annotation {number}", "Type": "Polygon", "PartOfGroup": group}
        element = ET.SubElement(box, "Annotation", {**about, "Color": "#F4FA58"})
        vertices = ET.SubElement(element, "Coordinates")
        for order, (x, y) in enumerate(region.points.tolist()):
            at = {"Order": str(order), "X": str(x), "Y": str(y)}
            ET.SubElement(vertices, "Coordinate", at)
    names = ET.SubElement(root, "AnnotationGroups")
    for group in dict.fromkeys(one for groups in _GROUPS.values() for one in groups):
        about = {"Name": group, "PartOfGroup": "None", "Color": "#00ff00"}
        ET.SubElement(ET.SubElement(names, "Group", about), "Attributes")
    ET.indent(root, " ")
    with atomic_path(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
