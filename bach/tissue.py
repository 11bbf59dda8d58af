"""Where a slide has tissue; tissue and truth of a slide on one grid."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from bach.annotations.checks import slide_labels
from bach.annotations.files import annotation_path
from bach.annotations.regions import read_annotation
from bach.brightfield import judge
from bach.core.errors import InputError
from bach.core.log import log
from bach.core.pictures import read_mask
from bach.core.tables import image_key
from bach.core.text import listed
from bach.glass import stained
from bach.labels import same_proportions
from bach.patches import SlideMaps
from bach.slides import Slide, first_shown
from bach.tasks import BACKGROUND, task

# The paper's rule is doubted where so much of its tissue looks like glass, or the reverse. By
# measurement 0% to 5% and 0% to 55% where it works, above 80% where it does not.
_MUCH_GLASS, _MUCH_MISSED, _LITTLE = 0.3, 0.7, 0.002

_GRAY = 0.8

# Of an annotated area, which is drawn around tissue but has fat and gaps in it.
_ON_TISSUE = 0.1

# Of the scale, as for annotations.
_MPP_TOLERANCE = 0.02

# A share of missing tiles that is said.
_MISSING = 0.001

_STRIP_PX = 1 << 20  # pixels converted at a time, which bounds the memory

# CIELAB chroma and hue angle (degrees) of pen ink, seen on TCGA slides with red,
# green and blue marks: H&E stays between -70 (haematoxylin) and +12 (eosin).
# Red has to be told from red blood cells, which reach chroma 65 at hue 20-55.
_INKS = {"red": (50.0, 15.0, 70.0), "green": (20.0, 100.0, 230.0), "blue": (20.0, -130.0, -72.0)}


# sRGB to light, XYZ and its white, and from there to CIELAB: as in skimage.color.
_LEVELS = np.arange(256) * (1 / 255)
_LIGHT = np.where(_LEVELS > 0.04045, ((_LEVELS + 0.055) / 1.055) ** 2.4, _LEVELS / 12.92)
_XYZ = np.array(
    [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


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
    return _by_the_mean(rgb, threshold, exclude_pen, floor)[0]


def _by_the_mean(
    rgb: np.ndarray, threshold: float = 1.1, exclude_pen: bool = False, floor: float = 0.0
) -> tuple[np.ndarray, float]:
    """The mask of `tissue_mask`, and the mean a* that it rests on."""
    a = _lab(rgb, "a")
    pen = pen_mask(rgb) if exclude_pen else None
    used = a if pen is None else a[~pen]
    mean = float(used.mean(dtype=np.float64)) if used.size else 0.0
    if mean <= 0:
        return np.zeros(a.shape, bool), mean
    mask = a > max(threshold * mean, floor)
    if pen is not None:
        mask &= ~pen
    return mask, mean


def find_tissue(
    rgb: np.ndarray, rule: str = "paper", exclude_pen: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Find tissue by one of the rules, and say where the rule cannot work.

    Args:
        rgb: Thumbnail of a whole slide, uint8 `(height, width, 3)`.
        rule: "paper", see `tissue_mask`; "robust", see `bach.glass.stained`; or "gray": what is
            no brighter than 0.8, as in Liu et al. 2017.
        exclude_pen: Do not take pen marks for tissue.

    Returns:
        Mask, bool `(height, width)`, and a sentence for each reason to doubt it.
    """
    if rule == "robust":
        mask = stained(rgb, pen_mask(rgb) if exclude_pen else None)
        return mask, [] if mask.any() else ["no tissue is found"]
    if rule == "gray":
        return _darker(rgb, exclude_pen)
    mask, mean = _by_the_mean(rgb, exclude_pen=exclude_pen)
    if mean <= 0:
        reason = f"the mean a* of the slide is {mean:.2f}, not pink, and no tissue is found"
    else:
        reason = _against(mask, rgb, exclude_pen)
    if not reason:
        return mask, [] if mask.any() else ["no tissue is found"]
    return mask, [f"{reason}: the paper's rule cannot work here; see --tissue robust or --masks"]


def _darker(rgb: np.ndarray, exclude_pen: bool) -> tuple[np.ndarray, list[str]]:
    """What is no brighter than `_GRAY`, and a sentence where that cannot work.

    Source: Liu et al. 2017, section 3: patches of a gray value above 0.8 are background.
    """
    mask: np.ndarray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) <= _GRAY * 255
    if exclude_pen:
        mask &= ~pen_mask(rgb)
    reason = _against(mask, rgb, exclude_pen)
    if reason:
        return mask, [f"{reason}: gray {_GRAY} cannot tell them; see --tissue robust or --masks"]
    return mask, [] if mask.any() else ["no tissue is found"]


def _against(mask: np.ndarray, rgb: np.ndarray, exclude_pen: bool) -> str:
    """What speaks against a mask, a phrase, or "" if nothing does."""
    shrink = max(1.0, np.sqrt(mask.size / _STRIP_PX))
    if not mask.any():
        return ""
    size = [max(1, round(side / shrink)) for side in mask.shape[::-1]]
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    taken = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    colored = stained(small, pen_mask(small) if exclude_pen else None)
    glass = float((taken & ~colored).sum() / max(taken.sum(), 1))
    if glass > _MUCH_GLASS:
        return f"{glass:.0%} of what is taken for tissue has the colour of glass"
    missed = float((colored & ~taken).sum() / max(colored.sum(), 1))
    if missed > _MUCH_MISSED and colored.mean() > _LITTLE:
        return f"{missed:.0%} of what has the colour of tissue is taken for glass"
    return ""


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
    pair, scale = ([0, 1], 500.0) if channel == "a" else ([1, 2], 200.0)
    height, width = rgb.shape[:2]
    result = np.empty((height, width), np.float32)
    step = max(1, _STRIP_PX // max(width, 1))
    for top in range(0, height if width else 0, step):
        # As scikit-image has it, to the last bit, at a third of the time: by table, and without
        # the channel that is not used.
        light = cv2.LUT(np.ascontiguousarray(rgb[top : top + step]), _LIGHT[None])
        xyz = cv2.transform(light, _XYZ[pair]) / _WHITE[pair]
        dark = xyz <= 0.008856
        root = np.cbrt(xyz)
        root[dark] = 7.787 * xyz[dark] + 16 / 116
        result[top : top + step] = scale * (root[..., 0] - root[..., 1])
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
    *,
    rule: str = "paper",
    not_brightfield: bool = False,
) -> SlideMaps:
    """Thumbnail, tissue mask and label mask of a slide, all of one size.

    Args:
        slide: The open slide.
        masks: Folder of tissue masks to use instead of finding tissue, see `check_masks`; a
            slide without one there has its tissue found.
        exclude_pen: Do not take pen marks for tissue.
        class_map: What names of classes in annotations mean, as in `read_regions`.
        rule: How tissue is found, see `find_tissue`.
        not_brightfield: Go on with a slide that cannot be H&E in bright field.

    Raises:
        InputError: If slide, annotation or mask cannot be read, the annotation holds
            nothing that lies on the slide, the mask is not of the slide's shape, or the
            slide cannot be H&E in bright field.
    """
    downsample = map_downsample(slide.mpp)
    thumbnail = slide.thumbnail(downsample * slide.mpp)
    warnings = _judged(slide, thumbnail, not_brightfield)
    labels, summary, marks = None, None, None
    annotation = annotation_path(slide.path)
    if annotation is not None:
        labels, summary = slide_labels(annotation, slide, downsample, class_map)
        if task().marked:
            shown_from = first_shown(slide.properties)
            marks = read_annotation(annotation, class_map, shown_from).marks
        summary.log(slide.name)
    file = _mask_path(slide.name, masks)
    if file is None:
        tissue, doubts = find_tissue(thumbnail, rule, exclude_pen)
        if masks is not None:
            doubts.append(f"no mask in {masks} is of this slide: its tissue was found instead")
    else:
        tissue, doubts = _given_mask(file, slide, thumbnail.shape[1::-1])
        log.info("%s: tissue mask from %s", slide.name, file)
    warnings += doubts
    if labels is not None:
        warnings += _off_tissue(labels, tissue)
    for warning in warnings:
        log.warning("%s: %s", slide.name, warning)
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
        tuple(warnings),
        marks,
    )


def check_pixels(
    slide: Slide, masks: str | os.PathLike | None, not_brightfield: bool = False
) -> None:
    """Look at a slide, and at its mask if the user has one, before the slow work starts.

    Args:
        slide: The open slide.
        masks, not_brightfield: As in `slide_maps`.

    Raises:
        InputError: If `slide_maps` would refuse them.
    """
    _judged(slide, slide.glance(), not_brightfield)
    file = _mask_path(slide.name, masks)
    if file is not None:
        _given_mask(file, slide, (1, 1))


def _judged(slide: Slide, thumbnail: np.ndarray, not_brightfield: bool) -> list[str]:
    """What is odd about the pixels of a slide; refuses what cannot be H&E."""
    verdict = judge(thumbnail)
    if verdict.impossible and not not_brightfield:
        raise InputError(
            f"The slide {slide.path} must be H&E in bright field: light glass, pink and violet "
            f"tissue.\nReceived: {'; '.join(verdict.impossible)}.\n"
            "Export it in its true colours; or go on as it is with --not-brightfield."
        )
    warnings = [*verdict.impossible, *verdict.doubtful]
    stated = slide.stated_mpp
    if stated is not None and abs(stated - slide.mpp) > _MPP_TOLERANCE * stated:
        warnings.append(
            f"it is taken to have {slide.mpp:g} um/px (--mpp), but its file says {stated:.4g}"
        )
    missing = slide.missing_tiles()
    if missing > _MISSING:
        warnings.append(f"{missing:.1%} of its tiles hold no data and are read as glass")
    return warnings


def _off_tissue(labels: np.ndarray, tissue: np.ndarray) -> list[str]:
    """Whether an annotation lies where there is no tissue: a sentence, or nothing."""
    annotated = labels != BACKGROUND
    share = float(tissue[annotated].mean()) if annotated.any() else 1.0
    if share >= _ON_TISSUE or not tissue.any():
        return []
    return [
        f"only {share:.0%} of what is annotated is tissue: is it the annotation of another slide, "
        "or of another magnification?"
    ]


# Masks of the user

_MASK_SUFFIXES = (".png", ".tif", ".tiff")
_MASK_REMEDY = "Write the tissue mask again as PNG: 0, black or transparent is glass."


def check_masks(
    masks: str | os.PathLike | None, slides: Iterable[str], others: Iterable[str] | None = None
) -> None:
    """Refuse a folder of masks without effect; the log says which slides have none.

    Args:
        masks: Folder of masks `NAME.png`, `.tif` or `.tiff`, in any letter case.
        slides: Names of the slides of a run.
        others: Names of all slides there are, if that is known: a mask of none of them is
            an error then.

    Raises:
        InputError: If there is no such folder, it has no mask of these slides, or masks of no
            slide, or two of one.
    """
    if masks is None:
        return
    files = _mask_files(masks)
    keys = {image_key(name): name for name in slides}
    strays = files.keys() - keys.keys() - {image_key(name) for name in others or ()}
    names = [files[key][0].name for key in sorted(strays)]
    if not files.keys() & keys.keys() or (others is not None and strays):
        content = names or sorted(path.name for path in Path(masks).iterdir())
        raise InputError(
            f"Every tissue mask in {masks} must belong to a slide: NAME.png or NAME.tif.\n"
            f"Received: {listed(content) or 'nothing'}; the slides are {listed(keys.values())}.\n"
            "Name the masks after their slides, or take those of other slides away."
        )
    if strays:
        log.warning("masks of no slide of this run: %s", listed(names))
    without = [name for key, name in keys.items() if key not in files]
    if without:
        log.warning("no mask in %s of %s: tissue is found there", masks, listed(without))


def _mask_files(masks: str | os.PathLike) -> dict[str, list[Path]]:
    """The masks in a folder by the key of their slide."""
    try:
        paths = sorted(Path(masks).iterdir())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--masks must be a folder of tissue masks.\n"
            f"Received: --masks={masks} ({getattr(error, 'strerror', None) or error}).\n"
            "Check the name."
        ) from error
    files: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() in _MASK_SUFFIXES and not path.name.startswith("."):
            files.setdefault(image_key(path.name), []).append(path)
    return files


def _mask_path(name: str, masks: str | os.PathLike | None) -> Path | None:
    """The user's own tissue mask of a slide, or None if there is none."""
    found = [] if masks is None else _mask_files(masks).get(image_key(name), [])
    if len(found) > 1:
        raise InputError(
            f"There must be one tissue mask of {name} in {masks}.\n"
            f"Received: {listed([path.name for path in found])}.\nKeep one of them."
        )
    return found[0] if found else None


def _given_mask(file: Path, slide: Slide, size: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """A mask of the user, (width, height) px, and what is odd about it."""
    given = read_mask(file, _MASK_REMEDY)
    if not same_proportions(given.shape[::-1], (slide.width, slide.height)):
        raise InputError(
            f"The tissue mask {file} must show the whole slide, in its proportions.\n"
            f"Received: {given.shape[1]}x{given.shape[0]} px for {slide.width}x{slide.height}.\n"
            "Make it from the whole slide, not from a part or from a label on its side."
        )
    mask = cv2.resize(given.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    if mask.all() and mask.size > 1:
        return mask, [f"the tissue mask {file} takes the whole slide for tissue"]
    return mask, [] if mask.any() else [f"the tissue mask {file} is empty"]


def map_files(
    path: str | os.PathLike,
    masks: str | os.PathLike | None,
    class_map: str | os.PathLike | None = None,
    name: str | None = None,
) -> dict[str, Path | None]:
    """The files that the maps of a slide are made from, for a fingerprint.

    Args:
        path: The slide. Of one in several files (.mrxs, .vms) only the named one counts.
        masks, class_map: As in `slide_maps`.
        name: What the slide is called, as its mask is; None for the name of the file.

    Raises:
        InputError: If the slide has several annotations, or one that is no file.
    """
    path = Path(path)
    files = {
        "slide": path,
        "annotation": annotation_path(path),
        "mask": _mask_path(name or path.stem, masks),
    }
    # Without one there is no such part, so that what was made before there were any stays true.
    return files if class_map is None else {**files, "class_map": Path(class_map)}
