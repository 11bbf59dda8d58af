"""The regions of an annotation file: shapes that have an area and a class."""

import collections
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bach.annotations.formats import Shape, read_shapes
from bach.annotations.marks import places_of
from bach.annotations.painting import Region
from bach.core.errors import InputError
from bach.core.log import log
from bach.core.tables import read_table
from bach.core.text import listed
from bach.labels import read_class
from bach.tasks import BACKGROUND, task

_IGNORE = -1
_OPTION = "--class-map FILE (rows theirs,ours; ours is one of these or ignore)"


class Annotation(NamedTuple):
    """What an annotation file says.

    Attributes:
        path: The file.
        regions: Regions in the order of the file, at least one that is no hole.
        skipped: How many shapes were left out, by reason.
        mpp: um per level-0 px that it states, or None.
        remarks: A line for each way in which it was read as it may not have been meant.
        marks: Of a task whose annotations are places, x, y (level-0 px) and label of each,
            float64 (n, 3); there are no regions then, and may be no marks.
    """

    path: Path
    regions: list[Region]
    skipped: Mapping[str, int]
    mpp: float | None
    remarks: list[str]
    marks: np.ndarray | None = None


def read_regions(
    path: str | os.PathLike, class_map: str | os.PathLike | None = None
) -> list[Region]:
    """Read the annotated regions of a slide.

    The format is told by the content of the file, not by its name. Polygons,
    rectangles and ellipses are regions; rulers, points and lines are not: they are
    left out, and the log says how many.

    Aperio ImageScope XML: all layers are read; a layer may be empty. The class of
    a region is that of `Region/Attributes/Attribute@Value`, else `Region@Text`;
    with both empty, the layer's `Annotation@Name` if that is a class, else its
    `Annotation@Id` 1, 2, 3 (Benign, InSitu, Invasive). All of these occur in the
    challenge's files but the layer's name. `NegativeROA="1"` is a hole.

    ASAP XML: the class is that of `Annotation@PartOfGroup`. A spline is the polygon
    of its vertices.

    QuPath GeoJSON: polygons and multipolygons; the class is that of
    `properties.classification`, of a derived one its first part that is a class.
    Inner rings are holes. Objects without class, and of classes with a star
    (`Ignore*`), are left out. Nothing is known of the slide here: of one with bounds, QuPath
    counts from there (`read_annotation`).

    Args:
        path: Annotation file.
        class_map: CSV file of names and what they mean: a class, or `ignore`.

    Returns:
        Regions in the order of the file, which is that to paint them; of a polygon
        the outer ring first.

    Raises:
        InputError: If the file cannot be read, or a class in it, or no region is left;
            what cannot be read is named.

    Example:
        >>> regions = read_regions("A01.xml")  # doctest: +SKIP
        >>> regions[0].label, regions[0].points.shape, regions[0].is_hole  # doctest: +SKIP
        (3, (412, 2), False)
    """
    annotation = read_annotation(path, class_map)
    for line in annotation.remarks:
        log.warning("%s: %s", path, line)
    if annotation.skipped:
        log.warning("%s: left out: %s", path, reasons(annotation.skipped))
    return annotation.regions


def annotation_mpp(path: str | os.PathLike) -> float | None:
    """Read the scale that ImageScope notes in its files, um per level-0 px; None if unknown.

    Raises:
        InputError: If the file cannot be read or the scale is no number.
    """
    return read_shapes(Path(path)).mpp


def read_annotation(
    path: str | os.PathLike,
    class_map: str | os.PathLike | None = None,
    shown_from: tuple[int, int] = (0, 0),
) -> Annotation:
    """Read an annotation file with all that is to be said about it; see `read_regions`.

    Args:
        path, class_map: As for `read_regions`.
        shown_from: `bach.slides.first_shown` of the slide. Coordinates of QuPath count from there,
            and become those of level 0; a file that says `bach_offset` needs no such help.
    """
    path = Path(path)
    meanings = {} if class_map is None else read_class_map_file(class_map)
    content = read_shapes(path)
    regions: list[Region] = []
    marks: list[np.ndarray] = []
    skipped: collections.Counter[str] = collections.Counter()
    unknown: list[Shape] = []
    remarks: list[str] = []
    if content.as_shown and any(shown_from):
        content = content.moved(shown_from)
        x, y = shown_from
        remarks.append(
            f"its coordinates count from x={x}, y={y}, where QuPath begins to show the slide"
        )
    for shape in content.shapes:
        label, reason = (BACKGROUND, "") if shape.is_hole else _read_label(shape, meanings, remarks)
        places = places_of(path, shape, content) if task().marked else None
        reason = ("" if places is not None and len(places) else shape.no_area) or reason
        if reason:
            skipped[reason] += 1
        elif label is None:
            unknown.append(shape)
        elif places is not None:
            marks.append(np.column_stack([places, np.full(len(places), label)]))
        else:
            for place, ring in enumerate(shape.rings):
                is_hole = shape.is_hole or place > 0
                name = shape.name if not place else f"hole {place} of {shape.name}"
                named = Region(BACKGROUND if is_hole else label, ring, is_hole, shape.layer, name)
                regions.append(named)
    if unknown:
        raise _no_class(path, unknown, content.remedy)
    if task().marked:
        found = np.concatenate([np.zeros((0, 3)), *marks])
        return Annotation(path, [], dict(skipped), content.mpp, remarks, found)
    if all(region.is_hole for region in regions):
        raise InputError(
            f"{path} must hold a region of a class, or its slide counts as {task().classes[0]}.\n"
            f"Received: {_left_out(skipped, len(regions))}.\n"
            f"Draw regions and name their classes, or say with {_OPTION} what their names mean. "
            "Delete the file if its slide is to count as not annotated."
        )
    return Annotation(path, regions, dict(skipped), content.mpp, remarks)


def reasons(skipped: Mapping[str, int]) -> str:
    """How many shapes were left out and why, in words."""
    return ", ".join(f"{count} ({reason})" for reason, count in skipped.items())


def read_class_map_file(path: str | os.PathLike) -> dict[str, int]:
    """Read what names of classes of one's own mean.

    Args:
        path: CSV file of two columns, with or without the header `theirs,ours`. Theirs is a
            name in the annotations, whose letter case does not matter; ours is a class, or
            `ignore`.

    Returns:
        {name: label 0..n-1, or -1 to leave such regions out}.

    Raises:
        InputError: If the file cannot be read, a class of ours in it is none, or a name of
            theirs comes twice.
    """
    rows = read_table(path, header=False).to_numpy().tolist()
    if rows and [_key(cell) for cell in rows[0][:2]] == ["theirs", "ours"]:
        rows.pop(0)
    meanings: dict[str, int] = {}
    bad = []
    for row in rows:
        ignored = len(row) == 2 and _key(row[1]) == "ignore"
        label = _IGNORE if ignored else read_class(row[1]) if len(row) == 2 else None
        if label is None or meanings.setdefault(_key(row[0]), label) != label:
            bad.append(",".join(row))
    if bad or not rows:
        raise InputError(
            f"Every row of {path} must have a name and what it means: {task().choices}, or ignore; "
            f"each name once.\nReceived: {listed(map(repr, bad)) or 'no row'}.\n"
            f"Write it as CSV, for example `Tumor,{task().classes[-1]}`."
        )
    return meanings


def _read_label(
    shape: Shape, meanings: Mapping[str, int], remarks: list[str]
) -> tuple[int | None, str]:
    """The class of a shape, None if it cannot be read; and why it is left out, or ""."""
    found = [(name, meanings.get(_key(name), task().parse_group(name))) for name in shape.classes]
    if shape.unclassed == "without class":  # its own name counts only where it is mapped
        if any(label is not None for _, label in found) and not meanings.keys() & set(
            map(_key, shape.classes)
        ):
            return None, ""
        found = [(name, meanings.get(_key(name))) for name in shape.classes]
    known = [(name, label) for name, label in found if label is not None]
    if not known and shape.by_layer is not None:
        if shape.classes:
            remarks.append(
                f"{shape.name} counts as {task().classes[shape.by_layer]} by the number of its "
                f"layer, whose name is no class: {shape.classes[0]!r}"
            )
        return shape.by_layer, ""
    if not known:
        return None, shape.unclassed
    if len({label for _, label in known}) > 1:
        remarks.append(
            f"{shape.name} names several classes ({', '.join(name for name, _ in known)}); "
            f"taken: {known[0][0]}"
        )
    label = known[0][1]
    return label, "ignored by the class map" if label == _IGNORE else ""


def _key(name: object) -> str:
    return " ".join(str(name).split()).casefold()


def _left_out(skipped: Mapping[str, int], holes: int) -> str:
    parts = [f"{holes} holes"] if holes else []
    parts += [reasons(skipped)] if skipped else []
    return "; ".join(parts) or "a file without regions"


def _no_class(path: Path, unknown: list[Shape], remedy: str) -> InputError:
    """The error that names every class that is none, with how many regions have it."""
    counts = collections.Counter(shape.received for shape in unknown)
    received = "; ".join(
        text if count == 1 else f"{text} ({count} times)" for text, count in counts.most_common(20)
    )
    more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    others = f" (and of {len(unknown) - 1:,} others)" if len(unknown) > 1 else ""
    return InputError(
        f"The class of {unknown[0].name} in {path} {others}must be one of "
        f"{', '.join(task().classes)}.\n"
        f"Received: {received}{more}.\n{remedy}; or say what it means with {_OPTION}."
    )
