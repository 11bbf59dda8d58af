"""Write slides as Aperio scanners do, and annotations as ImageScope does."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
import tifffile

from bach.annotations import Region
from bach.classes import BENIGN, CLASSES, COLORS, INSITU, INVASIVE
from bach.core.files import atomic_path

# As in the challenge. Source: Aresta et al. 2018, arXiv:1808.04277.
SLIDE_MPP = 0.467
_STEP = 4  # from a level of the pyramid to the next
FACTORS = (1, _STEP, _STEP**2)

TILE = 256  # px, as in Aperio files

# Where the class of a region stands; all three occur in the challenge's files.
SPELLINGS = ("attribute", "text", "layer")
# As people wrote the classes in these files; `bach.classes.parse_label` knows them.
_WORDINGS = {
    BENIGN: (CLASSES[BENIGN].lower(), CLASSES[BENIGN]),
    INSITU: ("Carcinoma in situ", "In situ carcinoma"),
    INVASIVE: ("Invasive carcinoma", "invasive carcinoma"),
}


def write_slide(path: str | os.PathLike, pixels: np.ndarray, mpp: float | None = SLIDE_MPP) -> None:
    """Write an .svs that OpenSlide opens as Aperio: tiled, lossless, with a pyramid.

    Args:
        path: File to write.
        pixels: uint8 RGB array (height, width, 3), also a memory map.
        mpp: um per level-0 px, written as `MPP`; None writes no scale.

    Raises:
        ValueError: If the array is of another kind, or smaller than 16 px.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            "pixels must be uint8 of shape (height, width, 3). "
            f"Received: dtype={pixels.dtype}, shape={pixels.shape}."
        )
    write_bands(path, _bands(pixels), (pixels.shape[1], pixels.shape[0]), mpp)


def write_bands(
    path: str | os.PathLike,
    bands: Iterable[np.ndarray],
    size: tuple[int, int],
    mpp: float | None = SLIDE_MPP,
) -> None:
    """Write a slide that is larger than memory; see `write_slide`.

    A pixel of a level is the mean of its block in the level before, so levels
    are aligned exactly. Where a factor does not divide the size, the rest at the
    right and the bottom is left out of the smaller levels, as Aperio does.

    Args:
        path: File to write.
        bands: uint8 RGB arrays (256, width, 3) from top to bottom; the last one has
            the rows that are left.
        size: (width, height) in level-0 px.
        mpp: um per level-0 px; None writes no scale.

    Raises:
        ValueError: If a side is smaller than 16 px.
    """
    if min(size) < FACTORS[-1]:
        raise ValueError(f"No pixel is left at 1/{FACTORS[-1]}. Received: size={size}.")
    cols, rows = size
    # Past 4 GB a plain TIFF has no room for the addresses.
    big = cols * rows * 3 > 3.5e9
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as writer:
        for factor in FACTORS:
            smaller = np.empty((rows // _STEP, cols // _STEP, 3), np.uint8)
            writer.write(
                _tiles(bands, smaller),
                shape=(rows, cols, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE, TILE),
                compression="adobe_deflate",
                # Differences of neighbours repeat too little to be searched for long.
                compressionargs={"level": 1},
                predictor=True,
                description=_description(size, None if factor == 1 else (cols, rows), mpp),
                metadata=None,
                software=False,
            )
            bands, (rows, cols) = _bands(smaller), smaller.shape[:2]


def _bands(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[top : top + TILE] for top in range(0, len(pixels), TILE))


def _tiles(bands: Iterable[np.ndarray], smaller: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tiles of a level, row by row, and fill the next level meanwhile."""
    for number, band in enumerate(bands):
        top = number * TILE // _STEP
        part = smaller[top : top + len(band) // _STEP]
        if part.size:
            whole = band[: part.shape[0] * _STEP, : part.shape[1] * _STEP]
            part[:] = cv2.resize(whole, part.shape[1::-1], interpolation=cv2.INTER_AREA)
        for left in range(0, band.shape[1], TILE):
            tile = np.zeros((TILE, TILE, 3), np.uint8)
            piece = band[:, left : left + TILE]
            tile[: piece.shape[0], : piece.shape[1]] = piece
            yield tile


def _description(size: tuple[int, int], level: tuple[int, int] | None, mpp: float | None) -> str:
    """The text by which Aperio files are known and their scale is read."""
    whole = f"{size[0]}x{size[1]}"
    text = f"Aperio Image Library v11.2.1 \r\n{whole} [0,0 {whole}] (256x256)"
    if level is not None:
        text += f" -> {level[0]}x{level[1]}"
    text += "|Title = painted by bach.toy, no patient|AppMag = 20"
    return text if mpp is None else f"{text}|MPP = {mpp:g}"


def write_annotation_xml(
    path: str | os.PathLike,
    regions: Sequence[Region],
    mpp: float = SLIDE_MPP,
    spelling: str = "attribute",
    *,
    empty_layer: bool = False,
) -> None:
    """Write regions in the form of Aperio ImageScope.

    Args:
        path: File to write.
        regions: Regions of the classes 1..3, in the order to paint them; a hole names
            the class that it is cut from. Whole numbers are written without a point.
        mpp: um per level-0 px.
        spelling: Where the class stands: "attribute" (Region/Attributes/Attribute@Value),
            "text" (Region@Text) or "layer" (both empty, Annotation@Id 1, 2, 3).
        empty_layer: Add a layer without a region.

    Raises:
        ValueError: If the spelling or a region does not fit.
    """
    if spelling not in SPELLINGS:
        raise ValueError(f"spelling must be one of {SPELLINGS}. Received: spelling={spelling!r}.")
    for region in regions:
        if region.label not in _WORDINGS or region.points.shape[1:] != (2,):
            raise ValueError(
                "A region must have a label 1..3 and points of shape (n, 2). "
                f"Received: label={region.label}, points.shape={region.points.shape}."
            )
    root = ET.Element("Annotations", MicronsPerPixel=f"{mpp:g}")
    # Other than by layer all regions stand in layer 1, whatever their class: who
    # reads the layer's number before the words gets them wrong, as on real files.
    layers = {1: list(regions)}
    if spelling == "layer":
        layers = {
            label: [region for region in regions if region.label == label] for label in _WORDINGS
        }
    if empty_layer:
        layers[max(layers) + 1] = []
    number = 0
    for layer, members in layers.items():
        color = int.from_bytes(bytes(COLORS[layer % len(COLORS)]), "little")
        annotation = ET.SubElement(
            root,
            "Annotation",
            {"Id": str(layer), "Name": "", "ReadOnly": "0", "Type": "4", "LineColor": str(color)},
        )
        ET.SubElement(annotation, "Attributes")
        box = ET.SubElement(annotation, "Regions")
        for region in members:
            number += 1
            _add_region(box, region, number, spelling)
    ET.indent(root, " ")
    with atomic_path(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _add_region(box: ET.Element, region: Region, number: int, spelling: str) -> None:
    wordings = _WORDINGS[region.label]
    text = wordings[number % len(wordings)]
    element = ET.SubElement(
        box,
        "Region",
        Id=str(number),
        Type="0",
        Text=text if spelling == "text" else "",
        NegativeROA="1" if region.is_hole else "0",
        InputRegionId="0",
        Analyze="1",
    )
    attributes = ET.SubElement(element, "Attributes")
    if spelling == "attribute":
        ET.SubElement(attributes, "Attribute", Id="1", Name="Description", Value=text)
    vertices = ET.SubElement(element, "Vertices")
    for x, y in region.points.tolist():
        ET.SubElement(vertices, "Vertex", X=_written(x), Y=_written(y), Z="0")


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"
