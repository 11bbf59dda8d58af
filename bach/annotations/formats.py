"""The formats of annotations: Aperio ImageScope XML, ASAP XML and QuPath GeoJSON, as shapes."""

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from bach.annotations.files import read_text
from bach.core.errors import InputError
from bach.tasks import task

FORMATS = "Aperio ImageScope XML, ASAP XML or QuPath GeoJSON"

# Kinds of shapes: numbers in ImageScope, words in ASAP and HALO. No word is a polygon.
_AREAS = {"": "polygon", "0": "polygon", "1": "rectangle", "2": "ellipse"}
_AREAS |= {"polygon": "polygon", "freehand": "polygon", "spline": "polygon"}
_AREAS |= {"rectangle": "rectangle", "ellipse": "ellipse"}
_NO_AREAS = {"3": "arrow", "4": "ruler", "5": "polyline"}
_NO_AREAS |= {"measurement": "ruler", "dot": "point", "pointset": "points", "pin": "point"}
_NO_AREAS |= {word: word for word in ("arrow", "ruler", "line", "polyline", "point", "points")}

# Why shapes that are points have no area.
POINTS = ("point", "points")

_EMPTY = "empty polygon"

_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)

_THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}")

# No slide has a billion pixels along a side; what is larger is damaged.
_LARGEST = 1e9

# Corners of an ellipse: its area is right to 1 in 30,000.
_ELLIPSE = 480


class Shape(NamedTuple):
    """What somebody drew, as it stands in the file.

    Attributes:
        name: What it is called in messages.
        classes: Names that may be its class, the first that is one counts.
        received: The same for messages.
        rings: The outline, then its holes; vertices x, y in level-0 px, float64 (n, 2).
        layer: What a hole cuts belongs to the same layer.
        is_hole: Whether it is a hole itself.
        by_layer: The class that its layer stands for, for one that names none.
        no_area: Why it has no area, or "".
        marks: Of points, their x, y as they stand in the file.
        unclassed: What it is if it names no class: "" for an error, else why it is left out.
    """

    name: str
    classes: Sequence[str] = ()
    received: str = ""
    rings: Sequence[np.ndarray] = ()
    layer: int = 0
    is_hole: bool = False
    by_layer: int | None = None
    no_area: str = ""
    unclassed: str = ""
    marks: Sequence = ()


class Content(NamedTuple):
    """What an annotation file holds: its shapes, the scale that it states (um per px), how
    a class is named in its tool, for messages, what is to be added to marks (level-0 px), and
    whether its coordinates count from where QuPath shows the slide."""

    shapes: list[Shape]
    mpp: float | None
    remedy: str
    offset: np.ndarray = np.zeros((1, 2))
    as_shown: bool = False

    def moved(self, by: Sequence[int]) -> "Content":
        """The same with other coordinates."""
        shapes = [
            shape._replace(rings=[ring + by for ring in shape.rings]) for shape in self.shapes
        ]
        return self._replace(shapes=shapes, offset=self.offset + by)


def read_shapes(path: str | Path) -> Content:
    """Read an annotation file; its format is told by its content, not by its name.

    Raises:
        InputError: If it cannot be read, or a shape in it.
    """
    path = Path(path)
    text = read_text(path)
    first = text.lstrip()[:1]
    if first == "<":
        root = _parse_xml(path, text)
        mpp = _stated_mpp(path, root)
        if root.tag == "ASAP_Annotations" or root.find(".//Coordinates") is not None:
            remedy = "Move them in ASAP into groups of these names"
            return Content(list(_asap(path, root)), mpp, remedy)
        layers = (f"{label} for {name}" for label, name in enumerate(task().classes) if label)
        remedy = "Name the class in the region's text in ImageScope, or put the region into the "
        remedy += f"layer of its class ({', '.join(layers)})"
        return Content(list(_aperio(path, root)), mpp, remedy)
    if first in ("{", "["):
        content = _parse_json(path, text)
        shapes, offset = list(_geojson(path, content)), _offset(path, content)
        as_shown = not (isinstance(content, dict) and "bach_offset" in content)
        return Content(shapes, None, "Set the class in QuPath and export again", offset, as_shown)
    raise InputError(
        f"{path} must be {FORMATS}.\n"
        f"Received: neither XML nor JSON; it begins with {text.lstrip()[:20]!r}.\n"
        "Export the annotations in one of these formats."
    )


# XML


def _parse_xml(path: Path, text: str) -> ET.Element:
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        # Entities that a DTD defines can grow a few bytes to gigabytes; no tool writes one.
        raise InputError(
            f"{path} must be {FORMATS}.\n"
            "Received: XML with a document type (DTD), which annotations do not have.\n"
            "Export the annotations again, or take <!DOCTYPE ...> away."
        )

    # Prefixes of name spaces do not matter, nor does letter case: a NegativeROA that is not
    # seen makes a region of a hole.
    parser.StartElementHandler = lambda tag, attributes: builder.start(
        _name(tag), {_name(attribute): value for attribute, value in attributes.items()}
    )
    parser.EndElementHandler = lambda tag: builder.end(_name(tag))
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.lstrip(), True)  # a blank line before <?xml is no XML to it
        return builder.close()
    except (expat.ExpatError, ValueError) as error:
        cut = getattr(error, "code", 0) in _CUT_SHORT
        raise _broken(path, "XML", text, str(error), cut) from error


_NAMES = {
    name.lower(): name
    for name in (
        *("Annotations", "Annotation", "Regions", "Region", "Vertices", "Vertex", "Attributes"),
        *("Attribute", "Id", "Name", "Text", "Type", "Value", "NegativeROA", "MicronsPerPixel"),
        *("X", "Y", "ASAP_Annotations", "Coordinates", "Coordinate", "PartOfGroup", "Order"),
    )
}


def _name(text: str) -> str:
    """A tag or attribute as ImageScope and ASAP write it, without its name space."""
    plain = text.rpartition(":")[2]
    return _NAMES.get(plain.lower(), plain)


_CUT_SHORT = [
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
]


def _parse_json(path: Path, text: str) -> object:
    try:
        return json.loads(text, object_hook=_without_tiles)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        raise _broken(path, "JSON", text, str(error), cut) from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "JSON", text, str(error), False) from error


def _broken(path: Path, kind: str, text: str, why: str, cut_short: bool) -> InputError:
    how = "cut short" if cut_short else "broken"
    return InputError(
        f"{path} must be {FORMATS}.\n"
        f"Received: {kind} that is {how} ({len(text):,} characters; {why}).\n"
        "Export or download it again."
    )


def _stated_mpp(path: Path, root: ET.Element) -> float | None:
    """Root attribute `MicronsPerPixel`; absent, empty or 0 (ImageScope's unknown) is None."""
    text = root.get("MicronsPerPixel", "").strip()
    try:
        value = _number(text or "0")
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise InputError(
            f"MicronsPerPixel in {path} must be a number of um per pixel.\n"
            f"Received: {text!r}.\nCorrect it, or take the attribute away."
        )
    return value or None


def _aperio(path: Path, root: ET.Element) -> Iterator[Shape]:
    layers = [root] if root.tag == "Annotation" else root.findall(".//Annotation")
    if not layers and root.tag != "Annotations":
        raise InputError(
            f"{path} must be {FORMATS}.\n"
            f"Received: XML of another kind ({root.tag!r} without <Annotation>).\n"
            "Export the annotations in one of these formats."
        )
    for number, layer in enumerate(layers):
        of_layer = layer.get("Id", "").strip() or layer.get("Name", "").strip()
        named = layer.get("Name", "").strip()
        for place, region in enumerate(layer.iterfind("./Regions/Region"), start=1):
            name = f"region {_plain(region.get('Id') or f'at place {place}')} of layer "
            name += _plain(of_layer or f"at place {number + 1}")
            where = f"{name} in {path}"
            hole = region.get("NegativeROA", "").strip().lower()
            if hole not in ("", "0", "1", "false", "true"):
                raise InputError(
                    f"NegativeROA of {where} must be 0 or 1.\nReceived: {hole!r}.\nCorrect it."
                )
            texts = [part.get("Value", "") for part in region.iterfind("./Attributes/Attribute")]
            texts = [text.strip() for text in (*texts, region.get("Text", "")) if text.strip()]
            nothing = f"no text, in a layer with Id={layer.get('Id')!r}, Name={layer.get('Name')!r}"
            # HALO calls a vertex V.
            vertices = region.findall("./Vertices/*")
            rows = [(vertex.get("X"), vertex.get("Y")) for vertex in vertices]
            rings, no_area = _outline(where, region.get("Type", ""), rows)
            yield Shape(
                name,
                texts or ([named] if named else []),
                ", ".join(map(repr, texts)) or nothing,
                rings,
                number,
                hole in ("1", "true"),
                None if texts else _layer_label(layer.get("Id", "").strip()),
                no_area,
                marks=_marks(no_area, rows),
            )


def _layer_label(number: str) -> int | None:
    """The class of an ImageScope layer of the challenge, whose region names none itself."""
    return int(number) if number in map(str, range(1, task().count)) else None


def _asap(path: Path, root: ET.Element) -> Iterator[Shape]:
    for number, item in enumerate(root.iterfind(".//Annotation")):
        name = f"annotation {number} ({_plain(item.get('Name', 'without name'))})"
        where = f"{name} in {path}"
        group = item.get("PartOfGroup", "").strip()
        vertices = item.findall("./Coordinates/Coordinate")
        try:
            vertices.sort(key=lambda vertex: _finite(vertex.get("Order", "0")))
        except ValueError as error:
            raise InputError(
                f"The Order of the vertices of {where} must be numbers.\n"
                f"Received: {error}.\nExport the file again."
            ) from error
        rows = [(one.get("X"), one.get("Y")) for one in vertices]
        rings, no_area = _outline(where, item.get("Type", ""), rows)
        received, marks = f"PartOfGroup={group!r}", _marks(no_area, rows)
        yield Shape(name, [group], received, rings, number, no_area=no_area, marks=marks)


def _marks(no_area: str, rows: Sequence[Sequence]) -> Sequence:
    return rows if no_area in POINTS else ()


def _outline(where: str, kind: str, rows: Sequence[Sequence]) -> tuple[list[np.ndarray], str]:
    """The outline of a shape of any kind, in a list; and why it has no area, or ""."""
    word = kind.strip().lower()
    if word in _NO_AREAS:
        return [], _NO_AREAS[word]
    if word not in _AREAS:
        raise InputError(
            f"The Type of {where} must be a kind of shape that is known: 0 polygon, 1 rectangle, "
            f"2 ellipse, 3 arrow, 4 ruler, 5 polyline, or a word.\nReceived: Type={kind!r}.\n"
            'If it is a polygon, write Type="0"; if it has no area, take it away.'
        )
    points = points_of(where, rows)
    if _AREAS[word] != "polygon" and len(points) >= 2:
        points = _box_or_ellipse(points, _AREAS[word] == "ellipse")
    return [points], "" if len(points) >= 3 else "outline of fewer than 3 vertices"


def _box_or_ellipse(points: np.ndarray, ellipse: bool) -> np.ndarray:
    """The outline of a rectangle or ellipse, which tools store by two or four corners.

    ImageScope stores the two corners of the box of an ellipse, others all four; an ellipse of
    more vertices is drawn out already.
    """
    if len(points) > 2 and (points[0] == points[-1]).all():
        points = points[:-1]
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if not ellipse and len(points) > 2:  # perhaps turned; perhaps not in the order of a walk
        x, y = (points - points.mean(axis=0)).T
        return points[np.argsort(np.arctan2(y, x), kind="stable")] if len(points) == 4 else points
    if not ellipse:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if len(points) > 4:
        return points
    turn = np.linspace(0, 2 * np.pi, _ELLIPSE, endpoint=False)
    unit = np.column_stack([np.cos(turn), np.sin(turn)]) / 2 + 0.5
    return np.array([left, top]) + unit * (right - left, bottom - top)


def _plain(text: str) -> str:
    """Text of a file for a message: short, and without what would end a line or a terminal."""
    text = text if len(text) <= 40 else f"{text[:40]}..."
    return text if text.isprintable() else repr(text)


# GeoJSON

# Cells of a grid, which QuPath calls tiles, are measured and not drawn. A slide has 100,000 of
# them, so that each becomes this one as soon as it is read.
_TILE = {"type": "Feature", "properties": {"objectType": "tile"}}


def _without_tiles(part: dict) -> dict:
    properties = part.get("properties")
    if isinstance(properties, dict) and properties.get("objectType") == "tile":
        return _TILE
    return part


def _geojson(path: Path, content: object) -> Iterator[Shape]:
    features = content
    if isinstance(content, dict):
        features = [content] if content.get("type") == "Feature" else content.get("features")
    if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
        raise InputError(
            f"{path} must be a GeoJSON FeatureCollection, as QuPath exports it.\n"
            "Received: JSON without a list of features.\n"
            "Export the annotations from QuPath with File > Export objects as GeoJSON; JSON that "
            "is no annotation must not be named after a slide."
        )
    # Each polygon is a layer of its own, so that its holes cut nothing else.
    layers = itertools.count()
    tile = Shape("a tile", no_area="tile, no annotation")
    offset = _offset(path, content)
    for number, feature in enumerate(features):
        if feature is _TILE:
            yield tile
            continue
        name = f"feature {number}"
        where = f"{name} in {path}"
        classes, received, unclassed = _classification(where, feature)
        for rings, no_area, is_ellipse in _polygons(where, feature.get("geometry")):
            marks = rings if no_area in POINTS else ()  # looked at by who asks for points only
            rings = [] if no_area in POINTS else rings
            outlines = [points_of(where, _rows(where, ring)) + offset for ring in rings]
            if is_ellipse:
                outlines = [_box_or_ellipse(ring, True) for ring in outlines if len(ring) >= 2]
            if outlines and len(outlines[0]) < 3:
                no_area = "outline of fewer than 3 vertices"
            layer = next(layers)
            why = (no_area, unclassed, marks)
            yield Shape(name, classes, received, outlines, layer, False, None, *why)


def _offset(path: Path, content: object) -> np.ndarray:
    """What `bach.export` took off the coordinates, for QuPath shows slides from where they begin.

    Raises:
        InputError: If it is no pair of numbers.
    """
    said = content.get("bach_offset", [0, 0]) if isinstance(content, dict) else [0, 0]
    return points_of(f"bach_offset in {path}", _rows(f"bach_offset in {path}", [said]))


def _polygons(where: str, geometry: object) -> Iterator[tuple[list, str, bool]]:
    """The polygons of a geometry: rings, the outer one first; why it has no area; if an ellipse."""
    waiting = [geometry]
    while waiting:
        shape = waiting.pop()
        shape = shape if isinstance(shape, dict) else {}
        kind = shape.get("type")
        if kind in ("LineString", "MultiLineString"):
            yield [], "line", False
            continue
        if kind in ("Point", "MultiPoint"):
            rows = shape.get("coordinates")
            several = kind == "MultiPoint" and isinstance(rows, list)
            yield rows if several else [rows], "point", False  # type: ignore[misc]
            continue
        parts = shape.get("geometries" if kind == "GeometryCollection" else "coordinates")
        known = isinstance(parts, list) and kind in ("GeometryCollection", "Polygon")
        if known or (kind == "MultiPolygon" and _is_list_of(list, parts)):
            parts = list(parts or [])
        else:
            raise InputError(
                f"The geometry of {where} must be a Polygon or MultiPolygon.\n"
                f"Received: {'none' if kind is None else f'{kind!r:.40}'}.\n"
                "Export the annotations from QuPath again."
            )
        if kind == "GeometryCollection":
            waiting += reversed(parts)
        elif kind == "Polygon" and parts:
            yield parts, "", str(shape.get("isEllipse", "")).lower() in ("true", "1")
        elif kind == "MultiPolygon":
            yield from ((rings, "" if rings else _EMPTY, False) for rings in parts)
        if not parts:
            yield [], _EMPTY, False


def _classification(where: str, feature: dict) -> tuple[list[str], str, str]:
    """Names that may be the class of a feature, the same for messages, and why it has none.

    QuPath writes {"name": "Invasive"}, or {"names": ["Invasive", "Positive"]} of a derived class,
    which older versions call "Invasive: Positive".
    """
    properties = feature.get("properties")
    if not (properties is None or isinstance(properties, dict)):
        raise InputError(
            f"The properties of {where} must be an object, as QuPath writes it.\n"
            f"Received: {properties!r:.60}.\nExport the annotations from QuPath again."
        )
    properties = properties or {}
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or found.get("names")
    found = found or []
    names = [found] if isinstance(found, str) else found
    if not _is_list_of(str, names):
        raise InputError(
            f"The classification of {where} must be a name, as QuPath writes it.\n"
            f"Received: {found!r:.60}.\nSet the class in QuPath and export again."
        )
    names = [name.strip() for name in names if name.strip()]
    if not names:
        # The name of the object itself is its class only for whoever maps it.
        own = properties.get("name")
        own = [own] if isinstance(own, str) and own.strip() else []
        named = f", but the name {own[0]!r}" if own else ""
        return own, f"no classification{named}", "without class"
    # A star marks what QuPath leaves out of measurements: Ignore*, Region*.
    starred = "class with a star (left out in QuPath)" if names[0].endswith("*") else ""
    parts = [part.strip() for name in names for part in name.split(":")]
    return list(dict.fromkeys([*names, *parts])), ", ".join(map(repr, names)), starred


def _rows(where: str, ring: object) -> list:
    """Vertices of a ring: lists of numbers, and not text, whose first letters would do."""
    if isinstance(ring, list) and all(
        isinstance(row, list) and len(row) >= 2 and {type(row[0]), type(row[1])} <= {int, float}
        for row in ring
    ):
        return ring
    rows = ring if isinstance(ring, list) else [ring]
    bad = next((row for row in rows if not isinstance(row, list)), rows)
    raise InputError(
        f"The vertices of {where} must be numbers x, y.\n"
        f"Received: {bad!r:.60}.\nExport the file again."
    )


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


# Numbers


def points_of(where: str, rows: Iterable[Sequence]) -> np.ndarray:
    """Vertices as float64 (n, 2); QuPath may add a z after x and y."""
    rows = list(rows)
    try:
        _check_commas(rows)
        pairs = [(_number(row[0]), _number(row[1])) for row in rows]
        points = np.array(pairs, float).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"The vertices of {where} must be numbers x, y.\n"
            f"Received: {error}.\nExport the file again."
        ) from error
    # Written so that nan is refused as well.
    bad = ~(np.abs(points) <= _LARGEST).all(axis=1)
    if bad.any():
        raise InputError(
            f"The vertices of {where} must be finite, and pixels of a slide.\n"
            f"Received: {points[bad][0].tolist()}.\nExport the file again."
        )
    return points


def _check_commas(rows: Sequence[Sequence]) -> None:
    """Refuse outlines whose commas may part thousands: 12,500 is 12.5 or 12500.

    Raises:
        ValueError: If every comma stands before three last digits, after three at most.
    """
    commas = [text for row in rows for text in row[:2] if isinstance(text, str) and "," in text]
    if commas and all(_THOUSANDS.fullmatch(text.strip()) for text in commas):
        raise ValueError(f"{commas[0]!r}, whose comma may be a decimal one or part thousands")


def _number(value: object) -> float:
    """A number, or text of one, in which a lone comma is a decimal one.

    ImageScope and ASAP write the decimal comma of their computer's language.
    """
    if isinstance(value, int | float):
        return float(value)
    text = str(value or "").strip()
    plain = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text
    if _NUMBER.fullmatch(plain) is None or not text.isascii():
        raise ValueError(f"{text!r:.40} is no number")
    return float(plain)


def _finite(value: object) -> float:
    number = _number(value)
    if not np.isfinite(number):
        raise ValueError(f"{value!r:.40} is no number")
    return number
