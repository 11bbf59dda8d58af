"""Tissue and truth of a slide, on the grid that class maps have too."""

import os
from pathlib import Path

import cv2
import numpy as np

from bach.annotations import label_mask, read_regions
from bach.data import annotation_path
from bach.runs import InputError, log
from bach.slides import Slide
from bach.tissue import tissue_mask

# Masks and class maps of slides have about this scale: level 2 (16 level-0 px) of
# the challenge's slides.
MAP_MPP = 16 * 0.467


def map_downsample(mpp: float) -> int:
    """Level-0 px per px of masks and class maps: 16 on the challenge's slides."""
    return max(1, round(MAP_MPP / mpp))


def slide_masks(
    slide: Slide, masks: str | os.PathLike | None = None, exclude_pen: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Thumbnail, tissue mask and label mask of a slide, all of one size.

    Args:
        slide: The open slide.
        masks: Folder of tissue masks `NAME.png` to use instead of finding tissue; a
            slide without one there has its tissue found.
        exclude_pen: Do not take pen marks for tissue.

    Returns:
        Thumbnail uint8 `(h, w, 3)`; tissue bool `(h, w)`; labels uint8 0..3
        `(h, w)`, or None without annotation; level-0 px per px of all three.

    Raises:
        InputError: If slide, annotation or mask cannot be read.
    """
    downsample = map_downsample(slide.mpp)
    thumbnail = slide.thumbnail(downsample * slide.mpp)
    labels = None
    annotation = annotation_path(slide.path)
    if annotation is not None:
        labels = label_mask(read_regions(annotation), slide.width, slide.height, downsample)
    file = None if masks is None else Path(masks) / f"{slide.name}.png"
    if file is None or not file.exists():
        return thumbnail, tissue_mask(thumbnail, exclude_pen=exclude_pen), labels, downsample
    given = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    if given is None:
        raise InputError(f"The tissue mask {file} is no readable picture.\nWrite it again.")
    given = cv2.resize(given, thumbnail.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    log.info("%s: tissue mask from %s", slide.name, file)
    return thumbnail, given > 0, labels, downsample
