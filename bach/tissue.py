"""Where a slide has tissue; tissue and truth of a slide on one grid."""

import os
from pathlib import Path

import cv2
import numpy as np

from bach.annotations.checks import slide_labels
from bach.annotations.files import annotation_path
from bach.core.log import log
from bach.core.pictures import read_rgb
from bach.patches import SlideMaps
from bach.slides import Slide

_STRIP_PX = 1 << 20  # pixels converted at a time, which bounds the memory

# CIELAB chroma and hue angle (degrees) of pen ink, seen on TCGA slides with red,
# green and blue marks: H&E stays between -70 (haematoxylin) and +12 (eosin).
# Red has to be told from red blood cells, which reach chroma 65 at hue 20-55.
_INKS = {"red": (50.0, 15.0, 70.0), "green": (20.0, 100.0, 230.0), "blue": (20.0, -130.0, -72.0)}


def tissue_mask(
    rgb: np.ndarray, threshold: float = 1.1, exclude_pen: bool = False, floor: float = 0.0
) -> np.ndarray:
    """Find tissue as what is pinker than the mean of the picture.

    A pixel is tissue if its a* (green to magenta, CIELAB) exceeds `threshold` times
    the mean a* of the picture. With a mean of 0 or less there is no pink to go by,
    and nothing is tissue.

    The rule is relative. It presumes that glass and tissue are both in the picture,
    as in the thumbnail of a whole slide: on bare glass, about 4 in 10 pixels lie
    above the mean of the noise and are taken; see `floor`. Red pen counts as
    tissue, and any pen shifts the mean; see `exclude_pen`.

    Args:
        rgb: Thumbnail, uint8 (height, width, 3).
        threshold: Multiple of the mean a* that tissue must exceed; 1.1 is "10%
            above the mean".
        exclude_pen: Leave the pixels of `pen_mask` out of the mean and out of the
            tissue. Off by default: clusters of red blood cells are lost with it.
        floor: a* that tissue must exceed in any case. Off (0) by default, as in
            the paper. Measured: 3 empties two tiles of bare glass (41% and 42% of
            their pixels taken without it, under 0.2% with it) and takes nothing
            from four tiles of tissue.

    Returns:
        bool (height, width), True for tissue.

    Raises:
        ValueError: If `rgb` is not uint8 (height, width, 3).

    Example:
        >>> glass, tissue = (245, 245, 245), (200, 120, 180)
        >>> tissue_mask(np.array([[glass, glass, tissue]], np.uint8))
        array([[False, False,  True]])

    Source: Kwok 2018, section 4: a* more than 10% above its mean.
    """
    # Differs from Kwok 2018: the paper names no scale of a*. Here it is CIELAB in floats with its
    # sign (8-bit a* of OpenCV is offset by 128, and 110% of its mean is another rule), and a
    # picture whose mean is not pink has no tissue.
    a = _lab(rgb, "a")
    pen = pen_mask(rgb) if exclude_pen else None
    used = a if pen is None else a[~pen]
    mean = used.mean(dtype=np.float64) if used.size else 0.0
    if mean <= 0:
        return np.zeros(a.shape, bool)
    mask = a > max(threshold * mean, floor)
    if pen is not None:
        mask &= ~pen
    return mask


def pen_mask(rgb: np.ndarray) -> np.ndarray:
    """Find red, green and blue ink of marks drawn on the glass.

    By hue and chroma of single pixels, so the faint rim of a stroke is not found,
    nor are black and violet ink, whose colours are those of nuclei. Clusters of red
    blood cells are taken for red ink.

    Args:
        rgb: Thumbnail, uint8 (height, width, 3).

    Returns:
        bool (height, width), True for ink.

    Raises:
        ValueError: If `rgb` is not uint8 (height, width, 3).
    """
    a, b = _lab(rgb, "a"), _lab(rgb, "b")
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a))
    mask = np.zeros(a.shape, bool)
    for least, low, high in _INKS.values():
        mask |= (chroma > least) & ((hue - low) % 360 < high - low)
    return mask


def _lab(rgb: np.ndarray, channel: str) -> np.ndarray:
    """CIELAB a* or b*, float32 (height, width), of an sRGB picture.

    OpenCV's conversions will not do: 8-bit a* is rounded and offset by 128, so that
    a multiple of its mean is another rule, and float a* is interpolated from a
    table, off by up to 0.4.
    """
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(
            "A thumbnail must be uint8 (height, width, 3). "
            f"Received: rgb.dtype={rgb.dtype}, rgb.shape={rgb.shape}. Convert it to RGB first."
        )
    from skimage.color import rgb2lab  # slow to import

    height, width = rgb.shape[:2]
    result = np.empty((height, width), np.float32)
    step = max(1, _STRIP_PX // max(width, 1))
    for top in range(0, height, step):
        lab = rgb2lab(rgb[top : top + step])
        result[top : top + step] = lab[..., 1 if channel == "a" else 2]
    # The rounded white point of the conversion leaves 0.003 on grays, which must not
    # pass for a tinge of pink.
    result[np.abs(result) < 0.01] = 0
    return result


# Masks and class maps of slides have about this scale: level 2 (16 level-0 px) of
# the challenge's slides.
MAP_MPP = 16 * 0.467


def map_downsample(mpp: float) -> int:
    """Level-0 px per px of masks and class maps: 16 on the challenge's slides."""
    return max(1, round(MAP_MPP / mpp))


def slide_maps(
    slide: Slide,
    masks: str | os.PathLike | None = None,
    exclude_pen: bool = False,
    class_map: str | os.PathLike | None = None,
) -> SlideMaps:
    """Thumbnail, tissue mask and label mask of a slide, all of one size.

    Args:
        slide: The open slide.
        masks: Folder of tissue masks `NAME.png` to use instead of finding tissue; a
            slide without one there has its tissue found.
        exclude_pen: Do not take pen marks for tissue.
        class_map: What names of classes in annotations mean, as in `read_regions`.

    Raises:
        InputError: If slide, annotation or mask cannot be read, or the annotation holds
            nothing that lies on the slide.
    """
    downsample = map_downsample(slide.mpp)
    thumbnail = slide.thumbnail(downsample * slide.mpp)
    labels, summary = None, None
    annotation = annotation_path(slide.path)
    if annotation is not None:
        labels, summary = slide_labels(annotation, slide, downsample, class_map)
        summary.log(slide.name)
    file = _mask_path(slide.name, masks)
    if file is None:
        tissue = tissue_mask(thumbnail, exclude_pen=exclude_pen)
    else:
        given = read_rgb(file, "Write the tissue mask again.").max(axis=2)
        size = thumbnail.shape[1::-1]
        tissue = cv2.resize(given, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
        log.info("%s: tissue mask from %s", slide.name, file)
    return SlideMaps(
        slide.name,
        slide.width,
        slide.height,
        slide.mpp,
        downsample,
        tissue,
        labels,
        thumbnail,
        None if summary is None else summary.record(),
    )


def _mask_path(name: str, masks: str | os.PathLike | None) -> Path | None:
    """The user's own tissue mask of a slide, or None if there is none."""
    file = None if masks is None else Path(masks) / f"{name}.png"
    return file if file is not None and file.exists() else None


def map_files(
    path: str | os.PathLike,
    masks: str | os.PathLike | None,
    class_map: str | os.PathLike | None = None,
) -> dict[str, Path | None]:
    """The files that the maps of a slide are made from, for a fingerprint.

    Args:
        path: The slide. Of one in several files (.mrxs, .vms) only the named one counts.
        masks, class_map: As in `slide_maps`.

    Raises:
        InputError: If the slide has several annotations, or one that is no file.
    """
    path = Path(path)
    files = {
        "slide": path,
        "annotation": annotation_path(path),
        "mask": _mask_path(path.stem, masks),
    }
    # Without one there is no such part, so that what was made before there were any stays true.
    return files if class_map is None else {**files, "class_map": Path(class_map)}
