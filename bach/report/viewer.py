"""The page of a slide: its tiles, layers over them, and places to look at.

Everything is a file beside the page, so that it opens from a USB stick: a browser lets a
page from `file://` show pictures and run scripts that lie beside it, and fetch nothing.

    NAME/index.html      the page
    NAME/slide.js        geometry, layers, probabilities and places, as `window.slide`
    NAME/tiles/L/C_R.jpg the slide at about 2 um/px; level 0 is a single tile
    NAME/LAYER/L/C_R.png heatmap, classes, truth, tissue: transparent where they say nothing
    NAME/places/N.jpg    the places to look at in full resolution
    NAME/page.json       what the page depends on, so that it need not be made again
"""

import base64
import concurrent.futures
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from bach.core.drawings import heat_colors
from bach.core.errors import InputError
from bach.core.files import fingerprint, read_array
from bach.core.pictures import jpeg, read_mask
from bach.core.text import number
from bach.heatmap import cells_to_map, to_heatmap
from bach.honest.records import SlideRecord
from bach.labels import read_class_map
from bach.mining import MIN_TISSUE_HARD, add_difficulty, one_per_place
from bach.patches import box_means
from bach.slides import Slide
from bach.tasks import BACKGROUND, task

VIEW_MPP = 2.0  # um per px of the slide in the viewer
WORST = 12  # places per slide

_TILE = 1024  # few files, which a USB stick copies faster than many small ones
_MOST_PIXELS = 200_000_000  # of the slide as it is shown: 600 MB in memory
_LAYER_SIDE = 4096  # px; phones show no larger picture
_QUALITY = 75  # of JPEG
_PLACE_QUALITY = 85
_TRUTH_OPACITY = 0.35  # of the areas of the truth, whose outlines are solid
_AGAIN = "Make the heatmap of this slide again, then the report."

Encode = Callable[[np.ndarray], bytes]


class Found(NamedTuple):
    """What there is to show of a slide.

    Attributes:
        name: Name of the slide.
        file: The slide, or None where it is not at hand.
        mpp: um per level-0 px that the runs were told to use; None: what the file says.
        run: Run folder of its heatmap, or None.
        record: What that run says about the slide, or None.
        examples: Its hard examples, patch table with `predicted` and `difficulty`; may be
            empty.
    """

    name: str
    file: Path | None
    mpp: float | None
    run: Path | None
    record: SlideRecord | None
    examples: pd.DataFrame

    def key(self, slide_mb: float) -> dict[str, str]:
        """Fingerprint of what the page depends on."""
        files: dict[str, Path | None] = {"slide": self.file}
        if self.run is not None:
            files |= {
                kind: _stored(self, kind) for kind in ("probs", "class_maps", "tissue", "truth")
            }
        settings = {
            "mpp": self.mpp,
            "mb": slide_mb,
            "examples": self.examples.to_csv(index=False),
            "colors": task().colors,
            "version": 1,
        }
        return fingerprint(files, settings)


class Layer(NamedTuple):
    """A picture that lies over the slide.

    Attributes:
        key: Name of its folder.
        title: What it is called.
        rgba: uint8 `(rows, cols, 4)`.
        scale: Level-0 px per px.
        opacity: How it is shown at first, 0..1.
    """

    key: str
    title: str
    rgba: np.ndarray
    scale: float
    opacity: float


def write_slide(folder: Path, found: Found, most_bytes: int) -> dict[str, Any]:
    """Write the pictures of a slide, and return what its page says of them.

    Args:
        folder: A new folder.
        found: The slide, of which the file or the heatmap must be at hand.
        most_bytes: Most bytes for all pictures, about; a slide that needs more is shown
            smaller.

    Returns:
        The value of `window.slide`, see `assets/viewer.js`.

    Raises:
        InputError: If the slide or a file of the run cannot be read.
    """
    cells = None if found.run is None else read_array(_require(found, "probs"), _AGAIN, 3)
    layers = [] if cells is None else _layers(found, cells)
    places = _places(found, cells)
    value: dict[str, Any] = {"name": found.name, "layers": [], "note": ""}
    for layer in layers:
        picture, scale = _thinned(layer.rgba, layer.scale)
        about = write_tiles(folder / layer.key, picture, "png", _png, cv2.INTER_NEAREST)
        told = {"key": layer.key, "title": layer.title, "opacity": layer.opacity}
        value["layers"].append({**told, **about, "scale": scale})
    if found.file is not None:
        with Slide(found.file, mpp=found.mpp) as slide:
            _check_same(slide, found.record)
            value |= {"width": slide.width, "height": slide.height, "mpp": slide.mpp}
            _write_places(folder, slide, places)
            left = most_bytes - sum(file.stat().st_size for file in folder.rglob("*.*"))
            value["image"] = _write_image(folder, slide, max(left, most_bytes // 4))
    elif found.record is not None:
        value |= {"width": found.record.width, "height": found.record.height}
        value |= {"mpp": found.record.mpp, "image": None}
        value["note"] = "The slide itself was not at hand when this page was made."
    value["cells"] = None if cells is None else _cells(cells, found.record)
    value["places"] = places
    return value


# Tiles


def write_tiles(
    folder: Path, picture: np.ndarray, suffix: str, encode: Encode, interpolation: int
) -> dict[str, Any]:
    """Write a picture as a pyramid of square tiles.

    Not by `openslide.deepzoom`, which reads a slide without a pyramid whole for every small
    level; here each level is half of the one before.

    Args:
        folder: Gets `LEVEL/COL_ROW.SUFFIX`; the one tile of level 0 holds all.
        picture: uint8 `(height, width, channels)`.
        suffix: Ending of the files.
        encode: Makes a file of a tile.
        interpolation: How OpenCV halves it.

    Returns:
        `width`, `height`, `levels`, `tile` (side in px) and `suffix`.
    """
    levels = [picture]
    while max(levels[-1].shape[:2]) > _TILE:
        size = tuple(-(-side // 2) for side in levels[-1].shape[1::-1])
        levels.append(cv2.resize(levels[-1], size, interpolation=interpolation))

    def write(job: tuple[int, int, int]) -> None:
        level, row, col = job
        left, top = col * _TILE, row * _TILE
        tile = levels[-1 - level][top : top + _TILE, left : left + _TILE]
        place = folder / str(level) / f"{col}_{row}.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode(np.ascontiguousarray(tile)))

    jobs = [
        (level, row, col)
        for level, image in enumerate(reversed(levels))
        for row, col in itertools.product(*(range(-(-n // _TILE)) for n in image.shape[:2]))
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, jobs))
    height, width = picture.shape[:2]
    about = {"width": width, "height": height, "levels": len(levels)}
    return {**about, "tile": _TILE, "suffix": suffix}


def _jpeg(rgb: np.ndarray) -> bytes:
    return jpeg(rgb, _QUALITY)


def _png(rgba: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1].tobytes()


def _write_image(folder: Path, slide: Slide, most_bytes: int) -> dict[str, Any]:
    """Write the slide itself, as large as its bytes allow."""
    # A power of two of its own scale, next to what is asked for, is quick to read.
    scale = 2.0 ** max(0, round(math.log2(VIEW_MPP / slide.mpp)))
    while slide.width * slide.height / scale**2 > _MOST_PIXELS:
        scale *= 2
    picture = slide.thumbnail(slide.mpp * scale)
    needed = _bytes(picture)
    if needed > most_bytes:
        factor = math.sqrt(needed / most_bytes)
        size = tuple(max(1, round(side / factor)) for side in picture.shape[1::-1])
        picture, scale = cv2.resize(picture, size, interpolation=cv2.INTER_AREA), scale * factor
    about = write_tiles(folder / "tiles", picture, "jpg", _jpeg, cv2.INTER_AREA)
    return {**about, "scale": scale}


def _bytes(picture: np.ndarray) -> float:
    """About what a picture needs as tiles, by a sample of them."""
    rows, cols = (-(-side // 256) for side in picture.shape[:2])
    chosen = np.random.default_rng(0).permutation(rows * cols)[:256]
    corners = [(256 * (place // cols), 256 * (place % cols)) for place in chosen.tolist()]
    found = sum(len(_jpeg(picture[top : top + 256, left : left + 256])) for top, left in corners)
    return found / len(chosen) * rows * cols * 4 / 3  # all levels


def _thinned(rgba: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """Every k-th px of a layer that is too large."""
    step = -(-max(rgba.shape[:2]) // _LAYER_SIDE)
    return np.ascontiguousarray(rgba[step // 2 :: step, step // 2 :: step]), scale * step


# Layers


def _stored(found: Found, kind: str) -> Path | None:
    """A file of the slide's run, or None where it has none."""
    suffix = ".npy" if kind in ("probs", "heatmaps") else ".png"
    path = Path(found.run or "") / kind / f"{found.name}{suffix}"
    return path if path.exists() else None


def _require(found: Found, kind: str) -> Path:
    path = _stored(found, kind)
    if path is None:
        raise InputError(
            f"The run {found.run} must hold the {kind} of the slide {found.name}.\n"
            f"Received: no such file in {Path(found.run or '') / kind}.\n{_AGAIN}"
        )
    return path


def _layers(found: Found, cells: np.ndarray) -> list[Layer]:
    """Heatmap, class map, truth and tissue; what a run lacks is left out."""
    record = found.record
    if record is None:
        return []
    scale = record.downsample
    class_map = read_class_map(_require(found, "class_maps"))
    tissue_file, truth_file = _stored(found, "tissue"), _stored(found, "truth")
    tissue = np.ones(class_map.shape, bool)
    if tissue_file is not None:
        tissue = _same_size(read_mask(tissue_file, _AGAIN), class_map, tissue_file)
    predicted = ~np.isnan(cells).any(axis=-1)
    heat = np.dstack([heat_colors(to_heatmap(cells)), predicted.astype(np.uint8) * 255])
    heat = cells_to_map(heat, record.step, scale, class_map.shape)
    heat[~tissue, 3] = 0
    found_layers = [
        Layer("heatmap", "Heatmap", heat, scale, 0.5),
        Layer("classes", "Class map", _class_layer(class_map, tissue), scale, 0.0),
    ]
    if truth_file is not None:
        truth = _same_size(read_class_map(truth_file), class_map, truth_file)
        found_layers.append(Layer("truth", "Annotation", _truth_layer(truth), scale, 0.0))
    if tissue_file is not None:
        glass = np.zeros((*tissue.shape, 4), np.uint8)
        glass[~tissue] = (90, 90, 90, 255)
        found_layers.append(Layer("tissue", "Glass", glass, scale, 0.0))
    return found_layers


def _same_size(values: np.ndarray, class_map: np.ndarray, path: Path) -> np.ndarray:
    if values.shape != class_map.shape:
        raise InputError(
            f"{path} must be as large as the class map.\n"
            f"Received: {values.shape[1]}x{values.shape[0]} px instead of "
            f"{class_map.shape[1]}x{class_map.shape[0]}.\n{_AGAIN}"
        )
    return values


def _class_layer(class_map: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Colours of the classes; Normal and glass stay clear."""
    table = np.array(
        [(*color, 255 * (k != BACKGROUND)) for k, color in enumerate(task().colors)], np.uint8
    )
    layer = table[class_map]
    layer[~tissue, 3] = 0
    return layer


def _truth_layer(truth: np.ndarray) -> np.ndarray:
    """Outlines of what is annotated, lightly filled, so that what lies below can be seen."""
    layer = _class_layer(truth, np.ones(truth.shape, bool))
    layer[..., 3] = np.rint(layer[..., 3] * _TRUTH_OPACITY)
    width = max(1, round(max(truth.shape) / 600))
    for label, color in enumerate(task().colors):
        if label != BACKGROUND:
            outlines, _ = cv2.findContours(
                (truth == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE
            )
            cv2.drawContours(layer, outlines, -1, (*color, 255), width)
    return layer


def _cells(cells: np.ndarray, record: SlideRecord | None) -> dict[str, Any]:
    """Probabilities in steps of 1/254, for what the page says of the place under the pointer."""
    steps = np.where(np.isnan(cells), 255, np.rint(np.nan_to_num(cells) * 254)).astype(np.uint8)
    text = base64.b64encode(steps.tobytes()).decode()
    rows, cols = cells.shape[:2]
    step = 1.0 if record is None else record.step
    return {"rows": rows, "cols": cols, "step": step, "probs": text}


# Places


def _places(found: Found, cells: np.ndarray | None) -> list[dict[str, Any]]:
    """The hard examples, and the cells that are most wrong or, without truth, most severe."""
    places = []
    if cells is not None and found.record is not None:
        table = _cell_table(found, cells)
        table = table.sort_values("difficulty", ascending=False, kind="stable")
        places = [_place(row, "cell") for row in one_per_place(table, WORST).itertuples()]
    examples = found.examples.sort_values("difficulty", ascending=False, kind="stable")
    return places + [_place(row, "example") for row in examples.itertuples()]


def _cell_table(found: Found, cells: np.ndarray) -> pd.DataFrame:
    """The predicted cells as patches: those that can be wrong, or all with their heat."""
    record = found.record
    tissue_file, truth_file = _stored(found, "tissue"), _stored(found, "truth")
    if record is None:
        return pd.DataFrame()
    row, col = np.nonzero(~np.isnan(cells).any(axis=-1))
    size, down = task().patch_um / record.mpp, record.downsample
    inside = (record.width / down, record.height / down)
    table = pd.DataFrame({"x": (col + 0.5) * record.step, "y": (row + 0.5) * record.step})
    table = (table - size / 2).assign(image_id=found.name, size=size, label=-1)
    table[list(task().columns)] = cells[row, col]

    def means(values: np.ndarray) -> np.ndarray:
        return box_means(values, table["x"] / down, table["y"] / down, size / down, inside)

    # As for hard examples: enough tissue, and the mean of the annotation rounded half up.
    table["tissue"] = 1.0 if tissue_file is None else means(read_mask(tissue_file, _AGAIN))
    if truth_file is None:
        predicted = cells[row, col].argmax(axis=1) if len(table) else 0
        table = table.assign(predicted=predicted, difficulty=to_heatmap(cells)[row, col])
    else:
        labels = np.floor(means(read_class_map(truth_file)) + 0.5).astype(int)
        table = add_difficulty(table.assign(label=labels))
    return table[(table["tissue"] >= MIN_TISSUE_HARD) & (table["difficulty"] > 0)]


def _place(row: Any, kind: str) -> dict[str, Any]:
    probs = {
        name: getattr(row, column)
        for name, column in zip(task().classes, task().columns, strict=True)
    }
    called = task().classes[int(row.predicted)]
    if row.label >= 0:
        title = f"{task().classes[int(row.label)]} taken for {called}"
        title += f", difficulty {number(row.difficulty, 2)}"
    else:
        title = f"{called}, heatmap {number(row.difficulty, 2)}"
    text = ", ".join(f"{name} {number(float(prob), 2)}" for name, prob in probs.items())
    place = {"kind": kind, "title": title, "text": text}
    return {**place, "x": float(row.x), "y": float(row.y), "size": float(row.size), "picture": None}


def _write_places(folder: Path, slide: Slide, places: Sequence[dict[str, Any]]) -> None:
    """Write the worst places in full resolution."""
    (folder / "places").mkdir(parents=True)
    for index, place in enumerate(place for place in places if place["kind"] == "cell"):
        left, top = (max(0, round(place[name])) for name in ("x", "y"))
        across, down = (
            max(1, min(round(place[name] + place["size"]), side) - start)
            for name, start, side in (("x", left, slide.width), ("y", top, slide.height))
        )
        content = jpeg(slide.read(left, top, across, down), _PLACE_QUALITY)
        (folder / "places" / f"{index}.jpg").write_bytes(content)
        place |= {"picture": f"places/{index}.jpg", "left": left, "top": top}
        place |= {"across": across, "down": down}


def _check_same(slide: Slide, record: SlideRecord | None) -> None:
    """Refuse another slide of the same name."""
    if record is not None and (slide.width, slide.height) != (record.width, record.height):
        raise InputError(
            f"{slide.path} must be the slide that was predicted.\n"
            f"Received: {slide.width}x{slide.height} px instead of "
            f"{record.width}x{record.height}.\nName the folder of the slides with --slides-dir."
        )
