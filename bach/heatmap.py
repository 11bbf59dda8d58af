"""From slides to heatmaps, class maps, areas and scores.

The slide is divided into square cells of one step. A cell's value is the
prediction of the patch that is centred on it, so positions cannot drift: cell
(row, col) stands for the level-0 square whose left edge is `col * step`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bach.classes import BENIGN, CLASSES, COLORS, NORMAL
from bach.core import options
from bach.core.files import fingerprint, write_array
from bach.core.log import log, step
from bach.core.pictures import (
    heat_colors,
    overlay,
    side_by_side,
    with_banner,
    write_gray,
    write_png,
)
from bach.honest.records import SlideRecord, read_slide, write_slide
from bach.labels import write_class_map
from bach.mining import MIN_TISSUE
from bach.patches import PATCH_UM, SlideMaps, cell_patches, grid_shape
from bach.scores import always, joint_counts, score_from_counts
from bach.slides import Slide
from bach.tissue import map_files, slide_maps

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor

# Kwok 2018, section 4.6, found there by trial: Benign from 0.35, InSitu from 0.70,
# Invasive from 0.75 of the expected class / 3.
THRESHOLDS = (0.35, 0.70, 0.75)

# The paper does not state the step of its heatmaps; a fifth of the field, as for
# mining, is fine enough for the maps' scale and costs 25 times a single cover.
STEP_UM = PATCH_UM / 5


def heatmap_patches(maps: SlideMaps, step_um: float = STEP_UM) -> pd.DataFrame:
    """Patches centred on the cells of a slide, where there is tissue.

    Args:
        maps: The slide's maps.
        step_um: Side of a cell in um.

    Returns:
        Patch table with the additional columns `row, col` of the cell, only of
        patches with at least 5% tissue. It may be empty.
    """
    table = cell_patches(maps, step_um)
    return table[table["tissue"] >= MIN_TISSUE].reset_index(drop=True)


def stitch(table: pd.DataFrame, probs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Lay patch predictions out as a map.

    Args:
        table: Patch table with `row, col`.
        probs: Probabilities `(len(table), 4)`.
        shape: Rows and columns of cells.

    Returns:
        float32 array `(rows, cols, 4)`, not a number where nothing was predicted.
    """
    result = np.full((*shape, len(CLASSES)), np.nan, np.float32)
    result[table["row"], table["col"]] = probs
    return result


def to_heatmap(probs: np.ndarray) -> np.ndarray:
    """Expected class / 3 of a map of probabilities; 0 where nothing was predicted.

    Args:
        probs: float array `(rows, cols, 4)`.

    Returns:
        float32 array `(rows, cols)` in 0..1.

    Example:
        >>> float(to_heatmap(np.array([[[0, 0, 0.5, 0.5]]]))[0, 0])
        0.8333333134651184
    """
    expected = (np.nan_to_num(probs) * np.arange(len(CLASSES))).sum(axis=-1)
    return np.clip(expected / (len(CLASSES) - 1), 0, 1).astype(np.float32)


def to_classes(heatmap: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    """Class map by thresholds: class k from the k-th threshold on.

    Args:
        heatmap: float array, 0..1.
        thresholds: Where Benign, InSitu and Invasive begin, ascending.

    Returns:
        uint8 array of the same shape, 0..3.

    Raises:
        ValueError: If the thresholds do not ascend or are not three.

    Source: Kwok 2018, section 4.6.
    """
    if len(thresholds) != len(CLASSES) - 1 or sorted(thresholds) != list(thresholds):
        raise ValueError(f"There must be three ascending thresholds. Received: {thresholds}.")
    # Compared as float32, like the heatmap: 0.35 is then exactly a threshold.
    return np.searchsorted(
        np.asarray(thresholds, np.float32), heatmap.astype(np.float32), side="right"
    ).astype(np.uint8)


def cells_to_map(
    values: np.ndarray, step: float, downsample: float, shape: tuple[int, int]
) -> np.ndarray:
    """Spread values of cells over the pixels of a map of the slide.

    Args:
        values: Array `(rows, cols, ...)`, one value a cell.
        step: Side of a cell in level-0 px.
        downsample: Level-0 px per px of the map.
        shape: Height and width of the map.

    Returns:
        Array `(height, width, ...)`: the value of the cell that a pixel's centre
        lies in.
    """
    row, col = (
        np.minimum(((np.arange(n) + 0.5) * downsample / step).astype(int), values.shape[axis] - 1)
        for axis, n in enumerate(shape)
    )
    return values[row[:, None], col[None, :]]


def areas_mm2(class_map: np.ndarray, maps: SlideMaps) -> dict[str, float]:
    """Area of each class in mm2; Normal counts only where there is tissue.

    Args:
        class_map: uint8 `(rows, cols)`, 0..3.
        maps: The slide's maps, of the same size.
    """
    pixel = (maps.downsample * maps.mpp / 1000) ** 2
    areas = {name: float((class_map == i).sum() * pixel) for i, name in enumerate(CLASSES)}
    areas[CLASSES[NORMAL]] = float(((class_map == NORMAL) & maps.tissue).sum() * pixel)
    return areas


class HeatmapMaker:
    """Makes the heatmaps of slides, each by the models that were not trained on it.

    Args:
        folder: Run folder to write to.
        predictor: The models; their step is the side of a cell.
        args: Options of the script.
        decide: Gives the class of every cell, from probabilities `(rows, cols, 4)` and the
            heatmap `(rows, cols)`.
        clip: Class maps are Normal off tissue.
    """

    def __init__(
        self,
        folder: Path,
        predictor: "Predictor",
        args: options.SlideScript,
        decide: Callable[[np.ndarray, np.ndarray], np.ndarray],
        clip: bool = False,
    ):
        self._folder, self._predictor, self._args, self._decide = folder, predictor, args, decide
        self._clip = clip

    def make(self, path: str, part: str) -> SlideRecord:
        """Make and write everything of one slide, or read it if nothing has changed since.

        Args:
            path: The slide.
            part: Part of the challenge data that it belongs to, or "".

        Raises:
            InputError: If slide, annotation or mask cannot be read.
        """
        name = Path(path).stem
        unseen = self._predictor.unseen_by(name)
        folds = unseen or self._predictor.folds
        models = {str(fold): self._predictor.digests[str(fold)] for fold in folds}
        settings = {**options.decisive(self._args), "models": models}
        args = self._args
        key = fingerprint(map_files(path, args.masks, args.class_map), settings)
        file = self._folder / "slides" / f"{name}.json"
        if file.exists():
            record = read_slide(file)
            if record.key == key:
                log.info("%s: finished before", name)
                return record
            log.info("%s: the slide or what its heatmap depends on has changed; done again", name)
        start = time.monotonic()
        with step(name) as notes, Slide(path, mpp=args.mpp) as slide:
            maps = slide_maps(
                slide,
                args.masks,
                args.exclude_pen,
                args.class_map,
                rule=args.tissue,
                not_brightfield=args.not_brightfield,
            )
            table = heatmap_patches(maps, self._predictor.step_um)
            cell = self._predictor.step_um / slide.mpp
            probs = stitch(
                table,
                self._predictor.predict(slide, table, folds),
                grid_shape(slide.width, slide.height, cell),
            )
            class_map = self._write_maps(maps, probs, cell)
            notes.append(
                f"{slide.width}x{slide.height} px at {slide.mpp:.3f} um ({slide.mpp_source})"
            )
            notes.append(f"{maps.tissue.mean():.0%} tissue, {len(table):,} patches")
        record = SlideRecord(
            image_id=name,
            path=str(path),
            part=part,
            width=maps.width,
            height=maps.height,
            mpp=maps.mpp,
            mpp_source=slide.mpp_source,
            step=cell,
            downsample=maps.downsample,
            patches=len(table),
            models=tuple(map(str, folds)),
            fold=folds[0] if len(folds) == 1 and len(self._predictor.folds) > 1 else None,
            in_sample=not unseen,
            areas_mm2=areas_mm2(class_map, maps),
            **slide_scores(class_map, maps),
            annotation=maps.annotation,
            warnings=maps.warnings,
            seconds=time.monotonic() - start,
            key=key,
        )
        write_slide(file, record)
        return record

    def _write_maps(self, maps: SlideMaps, probs: np.ndarray, cell: float) -> np.ndarray:
        """Write arrays, maps and pictures of a slide; return its class map."""
        heatmap = to_heatmap(probs)

        def spread(values: np.ndarray) -> np.ndarray:
            return cells_to_map(values, cell, maps.downsample, maps.tissue.shape)

        def path(kind: str, suffix: str) -> Path:
            return self._folder / kind / (maps.name + suffix)

        class_map = spread(self._decide(probs, heatmap))
        if self._clip:
            class_map = clip_to_tissue(class_map, maps)
        write_array(path("heatmaps", ".npy"), heatmap)
        write_array(path("probs", ".npy"), probs)
        write_class_map(path("class_maps", ".png"), class_map)
        if maps.labels is not None:
            write_class_map(path("truth", ".png"), maps.labels)
        write_gray(path("tissue", ".png"), maps.tissue.astype(np.uint8) * 255)
        write_png(
            path("overlays", ".png"), draw_maps(maps, class_map, spread(heat_colors(heatmap)))
        )
        return class_map


def clip_to_tissue(class_map: np.ndarray, maps: SlideMaps) -> np.ndarray:
    """A class map that is Normal off tissue."""
    return np.where(maps.tissue, class_map, np.uint8(NORMAL))


def draw_maps(maps: SlideMaps, class_map: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Class map, truth if there is one, and heatmap of a slide beside each other.

    Patches with 5% of tissue are predicted, and with them cells that are mostly glass. The
    class map has them, as in the paper, but glass is not coloured.

    Args:
        maps: The slide's maps; their warnings stand above.
        class_map: uint8 `(rows, cols)`, 0..3.
        heat: The heatmap in colours, uint8 `(rows, cols, 3)`.

    Returns:
        uint8 picture with legends.
    """
    pictures = [overlay(maps.thumbnail, class_map, CLASSES, COLORS, where=maps.tissue)]
    if maps.labels is not None:
        pictures.append(overlay(maps.thumbnail, maps.labels, CLASSES, COLORS))
    blank = np.full((pictures[0].shape[0] - heat.shape[0], heat.shape[1], 3), 255, np.uint8)
    pictures.append(np.concatenate([heat, blank]))
    lines = [f"{maps.name}: {warning}" for warning in maps.warnings]
    return with_banner(side_by_side(pictures), lines)


def slide_scores(class_map: np.ndarray, maps: SlideMaps) -> dict[str, Any]:
    """Part B score of a slide, on tissue only too, and those of always Benign.

    Args:
        class_map: uint8 `(rows, cols)`, 0..3.
        maps: The slide's maps, of the same size.

    Returns:
        The fields of `SlideRecord` for them; empty without annotation. A score that is
        undefined is None.
    """
    if maps.labels is None:
        return {}
    counts = joint_counts(class_map, maps.labels)
    on_tissue = joint_counts(class_map, maps.labels, maps.tissue)
    scores = {
        "score": score_from_counts(counts),
        "score_tissue": score_from_counts(on_tissue),
        "baseline": score_from_counts(always(counts, BENIGN)),
        "baseline_tissue": score_from_counts(always(on_tissue, BENIGN)),
    }
    return {k: None if np.isnan(v) else v for k, v in scores.items()} | {"counts": counts}
