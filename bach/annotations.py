"""Annotated regions of a slide, from the files that people bring, as a label mask.

Reads Aperio ImageScope XML (as in the challenge), ASAP XML and QuPath GeoJSON.
Coordinates are level-0 pixels, continuous: pixel 0 covers 0..1.
"""

import itertools
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bach.classes import BENIGN, CLASSES, NORMAL, parse_label
from bach.core.errors import InputError
from bach.core.log import log

# ImageScope layers of the challenge, where a region itself names no class.
_LAYER_LABELS = {str(label): label for label in range(BENIGN, len(CLASSES))}
_LAYERS = ", ".join(f"{layer} for {CLASSES[label]}" for layer, label in _LAYER_LABELS.items())
_FORMATS = "Aperio ImageScope XML, ASAP XML or QuPath GeoJSON"


class Region(NamedTuple):
    """One outline.

    Attributes:
        label: Class 0..3; 0 (Normal) for a hole.
        points: Vertices x, y in level-0 px, float64 (n, 2). The outline closes
            itself. With fewer than 3 it encloses nothing and paints nothing.
        is_hole: Whether it takes its area away from the regions of its layer.
        layer: What a hole belongs to: layer of an XML, polygon of a GeoJSON.
    """

    label: int
    points: np.ndarray
    is_hole: bool = False
    layer: int = 0


def annotation_path(slide: str | os.PathLike) -> Path | None:
    """The annotation beside a slide (same name, .xml or .geojson), or None."""
    for suffix in (".xml", ".XML", ".geojson"):
        path = Path(slide).with_suffix(suffix)
        if path.exists():
            return path
    return None


def read_regions(path: str | os.PathLike) -> list[Region]:
    """Read the annotated regions of a slide.

    The format is told by the content of the file, not by its name.

    Aperio ImageScope XML: all layers are read; a layer may be empty. The class of
    a region is that of `Region/Attributes/Attribute@Value`, else `Region@Text`;
    with both empty, the layer's `Annotation@Name` if that is a class, else its
    `Annotation@Id` 1, 2, 3 (Benign, InSitu, Invasive). All of these occur in the
    challenge's files but the layer's name. `NegativeROA="1"` is a hole.

    ASAP XML: the class is that of `Annotation@PartOfGroup`.

    QuPath GeoJSON: polygons and multipolygons; the class is that of
    `properties.classification.name`. Inner rings are holes.

    Args:
        path: Annotation file.

    Returns:
        Regions in the order to paint them: layer by layer in the order of the
        file, and the holes of a layer after its regions, so that a hole cuts the
        region around it also where the file lists it first.

    Raises:
        InputError: If the file cannot be read or a class in it; the region is
            named.

    Example:
        >>> regions = read_regions("A01.xml")  # doctest: +SKIP
        >>> regions[0].label, regions[0].points.shape, regions[0].is_hole  # doctest: +SKIP
        (3, (412, 2), False)
    """
    path = Path(path)
    content = _read(path)
    if isinstance(content, ET.Element):
        regions = list(_asap(path, content) if _is_asap(content) else _aperio(path, content))
    else:
        regions = list(_geojson(path, content))
    open_lines = sum(len(region.points) < 3 for region in regions)
    if open_lines:
        message = "%s: %d of %d regions have fewer than 3 vertices and enclose nothing"
        log.warning(message, path, open_lines, len(regions))
    return sorted(regions, key=lambda region: (region.layer, region.is_hole))


def annotation_mpp(path: str | os.PathLike) -> float | None:
    """Read the scale that ImageScope notes in its annotation files.

    Args:
        path: Annotation file of any format that `read_regions` takes.

    Returns:
        Root attribute `MicronsPerPixel` in um per level-0 pixel; None if it is
        absent, empty or 0 (ImageScope's word for unknown).

    Raises:
        InputError: If the file cannot be read or the scale is no number.
    """
    path = Path(path)
    content = _read(path)
    text = content.get("MicronsPerPixel", "").strip() if isinstance(content, ET.Element) else ""
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise InputError(
            f"MicronsPerPixel in {path} must be a number of um per pixel.\n"
            f"Received: {text!r}.\nCorrect it, or take the attribute away."
        )
    return value or None


def _read(path: Path) -> ET.Element | dict | list:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} must be a readable annotation file.\nReceived: {error}.\nCheck the path."
        ) from error
    is_json = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    try:
        return json.loads(data.decode("utf-8-sig")) if is_json else ET.fromstring(data)
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} must be {_FORMATS}.\n"
            f"Received: {'JSON' if is_json else 'XML'} that is broken or cut short "
            f"({len(data):,} bytes; {error}).\n"
            "Export or download it again."
        ) from error


# In what follows, `where` names a region and its file for messages.


def _is_asap(root: ET.Element) -> bool:
    return root.tag == "ASAP_Annotations" or root.find(".//Coordinates") is not None


def _aperio(path: Path, root: ET.Element) -> Iterator[Region]:
    layers = [root] if root.tag == "Annotation" else root.findall(".//Annotation")
    if not layers and root.tag != "Annotations":
        raise InputError(
            f"{path} must be {_FORMATS}.\n"
            f"Received: XML of another kind (<{root.tag}> without <Annotation>).\n"
            "Export the annotations in one of these formats."
        )
    for number, layer in enumerate(layers):
        for region in layer.iterfind("./Regions/Region"):
            where = f"region {region.get('Id', '?')} of layer {layer.get('Id', '?')} in {path}"
            vertices = region.iterfind("./Vertices/Vertex")
            points = _points(where, [(one.get("X"), one.get("Y")) for one in vertices])
            is_hole = region.get("NegativeROA", "0").strip() == "1"
            label = NORMAL if is_hole else _aperio_label(where, layer, region)
            yield Region(label, points, is_hole, number)


def _aperio_label(where: str, layer: ET.Element, region: ET.Element) -> int:
    texts = [part.get("Value", "") for part in region.iterfind("./Attributes/Attribute")]
    texts.append(region.get("Text", ""))
    texts = [text.strip() for text in texts if text.strip()]
    found = [parse_label(text) for text in texts]
    if not texts:
        by_name = parse_label(layer.get("Name", ""))
        by_number = _LAYER_LABELS.get(layer.get("Id", "").strip())
        found = [by_number if by_name is None else by_name]
    labels = [label for label in found if label is not None]
    if not labels:
        received = ", ".join(map(repr, texts)) or (
            f"no text, in a layer with Id={layer.get('Id')!r}, Name={layer.get('Name')!r}"
        )
        raise _no_class(
            f"class of {where}",
            received,
            "Name the class in the region's text in ImageScope, or put the region into the layer "
            f"of its class ({_LAYERS}).",
        )
    if len(set(labels)) > 1:
        message = "%s names several classes (%s); taken: %s"
        log.warning(message, where, ", ".join(texts), CLASSES[labels[0]])
    return labels[0]


def _asap(path: Path, root: ET.Element) -> Iterator[Region]:
    for number, item in enumerate(root.iterfind(".//Annotation")):
        where = f"annotation {number} ({item.get('Name', 'without name')}) in {path}"
        group = item.get("PartOfGroup", "").strip()
        label = parse_label(group)
        if label is None:
            remedy = "Move it in ASAP into a group of one of these names."
            raise _no_class(f"group of {where}", f"PartOfGroup={group!r}", remedy)
        vertices = item.findall("./Coordinates/Coordinate")
        try:
            vertices.sort(key=lambda vertex: float(vertex.get("Order", "0")))
        except ValueError as error:
            raise InputError(
                f"The Order of the vertices of {where} must be numbers.\n"
                f"Received: {error}.\nExport the file again."
            ) from error
        points = _points(where, [(one.get("X"), one.get("Y")) for one in vertices])
        yield Region(label, points, False, number)


def _geojson(path: Path, content: dict | list) -> Iterator[Region]:
    features: object = content
    if isinstance(content, dict):
        features = content.get("features") if content.get("type") != "Feature" else [content]
    if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
        raise InputError(
            f"{path} must be a GeoJSON FeatureCollection, as QuPath exports it.\n"
            "Received: JSON without a list of features.\n"
            "Export the annotations from QuPath with File > Export objects as GeoJSON."
        )
    skipped = 0
    # Each polygon is a layer of its own, so that a hole does not cut an island in it.
    layer = itertools.count()
    for number, feature in enumerate(features):
        where = f"feature {number} in {path}"
        polygons, others = _polygons(where, feature.get("geometry"))
        skipped += others
        if not polygons:
            continue
        label = _geojson_label(where, feature)
        for rings in polygons:
            own = next(layer)
            for ring, vertices in enumerate(rings):
                yield Region(NORMAL if ring else label, _points(where, vertices), ring > 0, own)
    if skipped:
        log.warning("%s: %d points or lines have no area and are left out", path, skipped)


def _polygons(where: str, geometry: object) -> tuple[list, int]:
    """Lists of rings, the outer one first, and the number of shapes without area."""
    shape = geometry if isinstance(geometry, dict) else {}
    kind = shape.get("type")
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return [], 1
    parts = shape.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if isinstance(parts, list):
        if kind == "Polygon":
            return [parts], 0
        if kind == "MultiPolygon" and all(isinstance(part, list) for part in parts):
            return parts, 0
        if kind == "GeometryCollection":
            found = [_polygons(where, part) for part in parts]
            return [rings for some, _ in found for rings in some], sum(count for _, count in found)
    raise InputError(
        f"The geometry of {where} must be a Polygon or MultiPolygon.\n"
        f"Received: {kind or 'none'}.\nExport the annotations from QuPath again."
    )


def _geojson_label(where: str, feature: dict) -> int:
    classification = (feature.get("properties") or {}).get("classification")
    name = classification.get("name") if isinstance(classification, dict) else classification
    label = parse_label(name) if isinstance(name, str) else None
    if label is None:
        received = "no classification" if name is None else repr(name)
        remedy = "Set the class in QuPath and export again."
        raise _no_class(f"classification of {where}", received, remedy)
    return label


def _no_class(what: str, received: str, remedy: str) -> InputError:
    names = ", ".join(CLASSES)
    return InputError(f"The {what} must be one of {names}.\nReceived: {received}.\n{remedy}")


def _points(where: str, rows: Iterable[Sequence]) -> np.ndarray:
    try:
        # QuPath may add a z; x and y come first.
        points = np.array([(float(row[0]), float(row[1])) for row in rows], float).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InputError(
            f"The vertices of {where} must be numbers x, y.\n"
            f"Received: {error}.\nExport the file again."
        ) from error
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise InputError(
            f"The vertices of {where} must be finite.\n"
            f"Received: {points[~finite][0].tolist()}.\nExport the file again."
        )
    return points


def label_mask(regions: Sequence[Region], width: int, height: int, downsample: float) -> np.ndarray:
    """Paint regions into a mask, at the size of the mask.

    A mask pixel takes the label of the region that its centre lies in, so areas
    are right to within half a mask pixel at the outline and regions that touch
    neither overlap nor leave a gap. A region between pixel centres paints nothing.
    Where an outline crosses itself, the even-odd rule holds.

    Later regions paint over earlier ones. A hole takes away what the regions
    before it in its layer painted, and shows what earlier layers had there, or
    Normal. `read_regions` returns regions in that order.

    Args:
        regions: Regions, in the order to paint them.
        width: Width of the slide, level-0 px.
        height: Height of the slide, level-0 px.
        downsample: Level-0 px per mask pixel, above 0; may be fractional.

    Returns:
        uint8 0..3, (ceil(height / downsample), ceil(width / downsample)); what no
        region covers is 0 (Normal).

    Raises:
        ValueError: If a side or the downsample is not above 0.

    Example:
        >>> square = Region(3, np.array([[16, 16], [48, 16], [48, 32], [16, 32]], float))
        >>> label_mask([square], 64, 48, 16)
        array([[0, 0, 0, 0],
               [0, 3, 3, 0],
               [0, 0, 0, 0]], dtype=uint8)
    """
    if not (width > 0 and height > 0 and downsample > 0):
        raise ValueError(
            "Width, height and downsample must be above 0. "
            f"Received: width={width}, height={height}, downsample={downsample}."
        )
    # A quotient like 3000 / (3000 / 7) is a whole number but for rounding.
    rows, columns = (int(np.ceil(side / downsample - 1e-6)) for side in (height, width))
    mask = np.zeros((max(rows, 1), max(columns, 1)), np.uint8)
    # Differs from Kwok 2018: the paper does not say how annotations are painted. Later regions
    # paint over earlier ones, a hole cuts the regions of its own layer only, and a pixel belongs
    # to the region that its centre lies in.
    for _, layer in itertools.groupby(regions, key=lambda region: region.layer):
        members = list(layer)
        below = mask.copy() if any(region.is_hole for region in members) else mask
        for region in members:
            for row, start, stop in zip(
                *_spans(region.points / downsample, mask.shape), strict=True
            ):
                mask[row, start:stop] = below[row, start:stop] if region.is_hole else region.label
    return mask


def _spans(points: np.ndarray, shape: tuple[int, int]) -> tuple[list, list, list]:
    """Runs of pixels whose centres lie in a polygon: rows, first columns, ends.

    Not cv2.fillPoly: it paints the outline too, and grows a region by half a pixel
    all round (a square of 10x10 mask pixels comes out 11x11).

    Args:
        points: Vertices x, y in mask pixels, float64 (n, 2); pixel centres are at
            i + 0.5.
        shape: (height, width) of the mask.
    """
    if len(points) < 3:
        return [], [], []
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    # Rows whose centre line an edge crosses, half-open: a vertex on a centre line
    # counts for one of its two edges, so that every row has an even number.
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, shape[0]).astype(int)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, shape[0]).astype(int)
    count = last - first
    edge = np.repeat(np.arange(len(points)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    along = (row + 0.5 - y0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + along * (x1[edge] - x0[edge])
    column = np.ceil(x - 0.5).clip(0, shape[1]).astype(int)
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    some = column[0::2] < column[1::2]
    return row[0::2][some].tolist(), column[0::2][some].tolist(), column[1::2][some].tolist()
