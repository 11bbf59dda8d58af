"""An annotation file against its slide: scale, place, and the sum of what was painted."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping

import numpy as np

from bach.annotations.painting import Painting, Region, faults, paint, remarks
from bach.annotations.regions import Annotation, read_annotation, reasons
from bach.core.errors import InputError
from bach.core.log import log
from bach.slides import Slide, first_shown
from bach.tasks import task

# Of the scale: more than rounding, less than from one scanner to another.
_MPP_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class AnnotationSummary:
    """The sum of an annotation file on its slide.

    Attributes:
        file: Name of the file.
        regions: Shapes in it, without holes.
        painted: Those that have a pixel in the map.
        holes: Holes, of which inner rings of polygons are some.
        skipped: Shapes that were not painted, by reason.
        on_top: Regions that lie inside later ones of another class and stay on top.
        mm2: Area that regions of each class have in the map.
        outside: Share of all regions' area that lies beyond the slide, 0..1.
        problems: What must be looked at: annotated area was lost.
        notes: What may not be read as it was meant.
    """

    file: str
    regions: int
    painted: int
    holes: int
    skipped: Mapping[str, int]
    on_top: int
    mm2: Mapping[str, float]
    outside: float
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.regions} regions, {self.painted} painted"]
        parts += [f"{self.holes} holes"] if self.holes else []
        parts += [f"left out: {reasons(self.skipped)}"] if self.skipped else []
        parts += [", ".join(f"{area:.3f} mm2 {name}" for name, area in self.mm2.items() if area)]
        parts += [f"{self.outside:.1%} beyond the slide"] if self.outside > 0 else []
        return f"annotation {self.file}: {'; '.join(parts)}"

    def log(self, slide: str) -> None:
        """Log the sum in one line, and one for each problem and note."""
        log.info("%s: %s", slide, self)
        for line in (*self.problems, *self.notes):
            log.warning("%s: annotation %s: %s", slide, self.file, line)

    def record(self) -> dict[str, object]:
        """The sum as it is stored with a slide's results."""
        return dataclasses.asdict(self)


def slide_labels(
    path: str | os.PathLike,
    slide: Slide,
    downsample: float,
    class_map: str | os.PathLike | None = None,
) -> tuple[np.ndarray, AnnotationSummary]:
    """Label mask of a slide from its annotation file, and what there is to say about it.

    Args:
        path: The annotation file.
        slide: The open slide.
        downsample: Level-0 px per px of the mask.
        class_map: As in `read_regions`.

    Returns:
        uint8 0..n-1 as `label_mask` paints it, and the sum.

    Raises:
        InputError: If the file cannot be read, was made at another scale, or holds nothing
            that lies on the slide.
    """
    annotation = read_annotation(path, class_map, first_shown(slide.properties))
    _check_scale(annotation, slide)
    if annotation.marks is not None:
        annotation = annotation._replace(regions=_discs(annotation.marks, slide, downsample))
    painting = paint(annotation.regions, slide.width, slide.height, downsample)
    summary = _sum(annotation, painting, slide, downsample)
    nothing = annotation.marks is not None and not len(annotation.marks)
    if not summary.painted and not nothing:  # a slide without a figure is one, too
        raise InputError(
            f"Of {path} a region must be left, or its slide counts as {task().classes[0]}.\n"
            f"Received: {reasons(summary.skipped)}; {slide.path} has {slide.width}x{slide.height} "
            "px.\nExport the annotation of this slide, at its full size; or delete the file if the "
            "slide is to count as not annotated."
        )
    return painting.labels, summary


def _discs(marks: np.ndarray, slide: Slide, downsample: float) -> list[Region]:
    """Marks as small discs, a quarter of a patch wide or what gives one a pixel of the mask."""
    radius = max(task().patch_um / 4 / slide.mpp, 0.75 * downsample)
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = radius * np.column_stack([np.cos(turn), np.sin(turn)])
    return [Region(int(label), circle + np.array([x, y])) for x, y, label in marks]


def _check_scale(annotation: Annotation, slide: Slide) -> None:
    """Refuse an annotation that was made on pixels of another size."""
    stated = annotation.mpp
    scales = [slide.mpp]
    if slide.mpp_source == "given":  # the annotation may know the one that --mpp corrects
        own = (slide.properties.get(name, "") for name in ("openslide.mpp-x", "aperio.MPP"))
        scales += [float(text) for text in own if _is_number(text)]
    if stated and not any(abs(stated - mpp) <= _MPP_TOLERANCE * mpp for mpp in scales):
        raise InputError(
            f"An annotation must be made at the scale of its slide: {annotation.path}.\n"
            f"Received: {stated:g} um per px (MicronsPerPixel), and {slide.mpp:g} of the slide "
            f"({slide.mpp_source}).\n"
            "Export it from this slide at its full size. If its coordinates are right and only "
            "MicronsPerPixel is wrong, take the attribute away."
        )


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _sum(
    annotation: Annotation, painting: Painting, slide: Slide, downsample: float
) -> AnnotationSummary:
    regions, fates = annotation.regions, painting.fates
    real = [fate for region, fate in zip(regions, fates, strict=True) if not region.is_hole]
    skipped = Counter(annotation.skipped)
    skipped.update(fate.lost for fate in real if fate.lost)
    area = sum(fate.area for fate in real)
    px_mm2 = (slide.mpp / 1000) ** 2
    areas = painting.counts * downsample**2 * px_mm2
    return AnnotationSummary(
        annotation.path.name,
        len(real) + sum(annotation.skipped.values()),
        sum(fate.painted > 0 for fate in real),
        len(regions) - len(real),
        dict(skipped),
        sum(bool(fate.below) for fate in real),
        dict(zip(task().classes, map(float, areas), strict=True)),
        sum(fate.area * fate.outside for fate in real) / area if area else 0.0,
        tuple(faults(regions, fates)),
        (*annotation.remarks, *remarks(regions, fates, px_mm2)),
    )
