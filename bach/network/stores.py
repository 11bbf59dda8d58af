"""Patch stores: patches on disk, cut once, that networks are trained on.

A patch store is a folder with `patches.npy` (uint8 `(n, side, side, 3)`, mapped from disk
while training; the side is that of the view), `patches.csv` (the patch table, row by row)
and `store.json` (what the network sees of the patches, and a fingerprint of what they were
cut from). For an image network the patches are whole photos.
"""

import concurrent.futures
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.core.errors import InputError
from bach.core.files import atomic_path, fingerprint, read_array, read_object, write_json
from bach.core.log import log, step
from bach.core.run import locked
from bach.core.tables import write_csv
from bach.core.text import listed
from bach.data import photo_scales, photo_sizes, read_photo
from bach.network.batches import Selection
from bach.network.image_network import photo_input
from bach.patches import COLUMNS, PLAIN_VIEW, View, photo_patches, read_patches
from bach.slides import Slide
from bach.tasks import task

_AGAIN = "Delete the folder and run the script that cuts it again."


class PatchStore:
    """An open patch store.

    Args:
        folder: Folder written by `cut_photos`, `cut_slides` or `store_photos`.

    Attributes:
        folder: The folder.
        patches: uint8 array `(n, side, side, 3)`, mapped from disk; whole photos are
            `(n, rows, cols, 3)`.
        table: Patch table, one row per patch.
        view: What a network sees of these patches; None for whole photos.
        record: What `store.json` says: two stores of the same record have the same pixels.

    Raises:
        InputError: If there is no whole store in the folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = folder = Path(folder)
        if not store_exists(folder):
            raise InputError(
                f"There is no patch store in {folder}.\n"
                "Run the script that cuts it first, or name the run folder that holds it."
            )
        self.record = record = _read_record(folder)
        self.table = read_patches(folder / "patches.csv")
        self.patches = read_array(folder / "patches.npy", _AGAIN, dimensions=4, mapped=True)
        self.view = None if record["view"] is None else View(*record["view"])
        shape = (len(self.table), *record["size"], 3)
        if self.patches.shape != shape or self.patches.dtype != np.uint8:
            raise InputError(
                f"The patch store {folder} is damaged.\n"
                f"Received: patches of shape {self.patches.shape} for {shape}, "
                f"{self.patches.dtype} for uint8.\n{_AGAIN}"
            )
        others = ~self.table["label"].isin(range(task().count))
        if others.any():
            raise InputError(
                f"Patches to train on must have a label 0 to {task().count - 1}.\n"
                f"Received: {folder / 'patches.csv'} with another one for {others.sum()} of "
                f"{len(others):,}.\n{_AGAIN}"
            )

    def select(self, rows: np.ndarray) -> Selection:
        """Some of the patches, by their row numbers, to be trained on or predicted."""
        labels, images = self.table["label"].to_numpy(), self.table["image_id"].to_numpy()
        return Selection(self.patches, labels, images, rows)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a patch store is cut from, and how.

    Attributes:
        what: "photos" or "slides".
        files: Path of each by its id.
        tables: Patch table of each, in the order of the store.
        cut: Reads the patches of the n-th table, uint8 `(n, *size, 3)`; called in threads.
        view: What the network is to see; None for whole photos.
        size: Rows and columns of a patch as it is stored.
        mpp: Overrides the scale of slides if given; of photos, if it is not 0.42.
    """

    what: str
    files: Mapping[str, str]
    tables: Sequence[pd.DataFrame]
    cut: Callable[[int], np.ndarray]
    view: View | None
    size: tuple[int, int]
    mpp: float | Sequence[float | None] | None = None

    def record(self) -> dict[str, Any]:
        """What `store.json` holds: two stores of the same record have the same pixels."""
        table = pd.concat(self.tables, ignore_index=True).to_csv(index=False)
        return {
            "view": None if self.view is None else list(self.view),
            "size": list(self.size),
            "inputs": fingerprint(self.files, {"patches": table, "mpp": self.mpp} | task().record),
        }


def store_exists(folder: str | os.PathLike) -> bool:
    """Whether a whole store lies in a folder (the table is written last)."""
    return (Path(folder) / "patches.csv").exists()


def cut_photos(
    images: pd.DataFrame, folder: str | os.PathLike, view: View = PLAIN_VIEW
) -> PatchStore:
    """Cut all patches of the photos of an image table into a store.

    Args:
        images: Table with `image_id, path, label, width, height`, and `mpp` if it is not that
            of the challenge.
        folder: Where to write; a store there of the same photos is used as it is.
        view: What the network is to see.

    Raises:
        InputError: If a photo is smaller than a patch or of unknown scale, or there is a
            store of something else in the folder.
    """
    paths, scales = images["path"].tolist(), photo_scales(images)
    tables = [
        photo_patches(image_id, width, height, label)
        for image_id, label, (width, height) in zip(
            images["image_id"], images["label"], photo_sizes(images, task().patch_px), strict=True
        )
    ]

    def cut(index: int) -> np.ndarray:
        return photo_to_patches(read_photo(paths[index], scales[index]), tables[index], view)

    files = dict(zip(images["image_id"], paths, strict=True))
    size = (view.side, view.side)
    return _cut_once(folder, _Recipe("photos", files, tables, cut, view, size, _stated(scales)))


def _stated(scales: Sequence[float]) -> float | list[float] | None:
    """The scale of photos as a store's record has it: None if it is that of the task."""
    first, *others = dict.fromkeys(scales)
    if others:
        return list(scales)
    return None if first == task().photo_mpp else first


def store_photos(
    images: pd.DataFrame, folder: str | os.PathLike, shape: tuple[int, int], zoom: int = 1
) -> PatchStore:
    """Store whole photos as a network takes them that judges them whole; each is one "patch".

    Args:
        images: As for `cut_photos`.
        folder: Where to write; a store there of the same photos is used as it is.
        shape: Rows and columns of the network's input.
        zoom: That of the network's view.

    Raises:
        InputError: If a photo is larger than the input or of unknown scale, or there is a
            store of something else in the folder.
    """
    paths, scales = images["path"].tolist(), photo_scales(images)
    widths = photo_sizes(images)[:, 0]
    columns = images[["image_id", "label"]].assign(x=0, y=0, size=widths, tissue=1.0)
    tables = [columns.iloc[[index]][COLUMNS] for index in range(len(columns))]

    def cut(index: int) -> np.ndarray:
        return photo_input(read_photo(paths[index], scales[index]), shape, zoom)[None]

    files = dict(zip(images["image_id"], paths, strict=True))
    return _cut_once(folder, _Recipe("photos", files, tables, cut, None, shape, _stated(scales)))


def cut_slides(
    table: pd.DataFrame,
    slides: Mapping[str, str],
    folder: str | os.PathLike,
    mpp: float | Mapping[str, float | None] | None,
    view: View = PLAIN_VIEW,
    replace: bool = False,
) -> PatchStore:
    """Cut the patches of a table out of slides into a store.

    Args:
        table: Patch table over several slides.
        slides: Path of each slide by image id.
        folder: Where to write; a store there of the same slides and table is used as it is.
        mpp: Overrides the slides' scale if given; one for all, or of each by image id.
        view: What the network is to see.
        replace: Whether a store there of something else gives way. That of a run does, whose
            table is another one by now: a slide that had failed was mended, say.

    Raises:
        InputError: If there is a store of something else in the folder, and it stays.
    """
    groups = dict(list(table.groupby("image_id", sort=False)))
    files = {str(name): slides[str(name)] for name in groups}
    tables = list(groups.values())
    scales = [mpp.get(name) if isinstance(mpp, Mapping) else mpp for name in files]

    def cut(index: int) -> np.ndarray:
        group = tables[index]
        with Slide(files[group["image_id"].iloc[0]], mpp=scales[index]) as slide:
            return np.stack([read_patch(slide, row, view) for row in group.itertuples()])

    size = (view.side, view.side)
    stated = scales if isinstance(mpp, Mapping) else mpp
    return _cut_once(folder, _Recipe("slides", files, tables, cut, view, size, stated), replace)


def photo_to_patches(photo: np.ndarray, table: pd.DataFrame, view: View = PLAIN_VIEW) -> np.ndarray:
    """Cut patches out of a photo and shrink them five times, or less by the view's zoom.

    Args:
        photo: uint8 `(height, width, 3)`.
        table: Patch table of this photo.
        view: What the network sees. A photo has few surroundings; beyond its edge it is
            mirrored, which is tissue of the same kind, where white or zeros would tell
            the network where the edge is.

    Returns:
        uint8 array `(n, side, side, 3)`, side that of the view; each pixel is the mean
        of 5x5, or of less.
    """
    # A slice beyond the edge would be cut short, and stretched below.
    if (table[["x", "y"]].add(table["size"], axis=0).max() > photo.shape[1::-1]).any():
        raise ValueError(f"The patches must lie in the photo. Received: shape {photo.shape}.")
    side = view.side
    around = view.margin * task().shrink
    if around:
        photo = cv2.copyMakeBorder(
            photo, around, around, around, around, borderType=cv2.BORDER_REFLECT_101
        )
    result = np.empty((len(table), side, side, 3), np.uint8)
    places = table[["x", "y", "size"]].to_numpy(int)
    # Patches overlap: the mean around every px of the photo, once, has the same bytes as
    # shrinking each patch for itself, in a quarter of the time.
    whole = (places[:, 2] + 2 * around == side * task().shrink).all()
    means = cv2.boxFilter(photo, -1, (task().shrink, task().shrink)) if whole else None
    for index, (x, y, size) in enumerate(places):
        rows, cols = (slice(start, start + size + 2 * around) for start in (y, x))
        if means is None:
            patch = photo[rows, cols]
            result[index] = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA)
        else:
            middle = task().shrink // 2
            result[index] = means[rows, cols][middle :: task().shrink, middle :: task().shrink]
    return result


def read_patch(slide: Slide, row: Any, view: View = PLAIN_VIEW) -> np.ndarray:
    """Read one patch of a slide as the network takes it.

    Args:
        slide: The open slide.
        row: Anything with `x, y, size` in level-0 px (floats).
        view: What the network is to see.

    Returns:
        uint8 `(side, side, 3)`, side that of the view.
    """
    scale = row.size / task().side_px  # level-0 px per network px
    left, top = row.x - view.margin * scale, row.y - view.margin * scale
    return slide.read(left, top, view.side, view.side, mpp=scale * slide.mpp / view.zoom)


def take_rows(table: pd.DataFrame, limit: int | None) -> np.ndarray:
    """Row numbers of the patches of at most `limit` images per class (a quick trial)."""
    if limit is None:
        return np.arange(len(table))
    first = table.drop_duplicates("image_id").groupby("label")["image_id"].head(limit)
    return np.flatnonzero(table["image_id"].isin(first))


def _cut_once(folder: str | os.PathLike, recipe: _Recipe, replace: bool = False) -> PatchStore:
    """Open the store in a folder if it is that of the recipe; cut it if there is none."""
    folder = Path(folder)
    with step("patches") as notes:
        record = recipe.record()
        there = store_exists(folder)
        if there and replace and _read_record(folder) != record:
            log.info("%s: what the patches were cut from has changed; they are cut again", folder)
            (folder / "patches.csv").unlink()  # which says that the store is whole
            there = False
        if not there:
            # Runs that share the folder wait for the first, which cuts for all of them.
            with locked(folder, _AGAIN, wait=True):
                there = store_exists(folder)
                if not there:
                    _write_patches(folder, recipe)
                    write_json(folder / "store.json", record)
                    write_csv(pd.concat(recipe.tables, ignore_index=True), folder / "patches.csv")
        if there:
            _check_record(folder, _read_record(folder), record, recipe.what)
            notes.append(f"cut before from the same {recipe.what}")
        store = PatchStore(folder)
        rows, cols = recipe.size
        count = f"{len(recipe.tables)} {recipe.what} -> {len(store.table):,}"
        notes.append(f"{count} of {cols}x{rows} px, {store.patches.nbytes / 1e9:.2f} GB")
    return store


def _write_patches(folder: Path, recipe: _Recipe) -> None:
    ends = np.cumsum([0, *map(len, recipe.tables)])
    shape = (int(ends[-1]), *recipe.size, 3)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"There must be room for the patches, {needed / 1e9:.1f} GB.\n"
            f"Received: {folder}, whose disk has {free / 1e9:.1f} GB left.\n"
            "Make room, or name a --run-dir on another disk."
        )
    with atomic_path(folder / "patches.npy") as temporary:
        patches = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        _take_room(temporary)

        def store(index: int) -> None:
            patches[ends[index] : ends[index + 1]] = recipe.cut(index)

        workers = min(8, os.cpu_count() or 1)
        with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
            jobs = pool.map(store, range(len(recipe.tables)))
            for _ in tqdm(jobs, total=len(recipe.tables), desc=recipe.what, disable=None):
                pass
        patches.flush()


def _take_room(file: Path) -> None:
    """Have the disk set aside what a file is long.

    Memory that is mapped to a file with holes ends the process where the disk has no room
    any more: no error tells of it.

    Raises:
        OSError: If there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # not on Windows and macOS
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / "store.json"
    if not file.exists():
        raise InputError(
            f"A patch store must say what it was cut from.\n"
            f"Received: {folder} without {file.name}: it was cut by an earlier version.\n{_AGAIN}"
        )
    record = read_object(file, _AGAIN, view=list, size=list, inputs=dict)
    view, size = record.get("view"), record.get("size")
    numbers = [*(view or (0, 0)), *(size or ())]
    if len(numbers) != 4 or not all(type(x) is int and x >= 0 for x in numbers):
        raise InputError(
            f"{file} must be the record of a patch store.\n"
            f"Received: view {view!r:.50}, size {size!r:.50}.\n{_AGAIN}"
        )
    return {"view": view, "inputs": {}, **record}


def _check_record(folder: Path, then: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse a store that was cut from something else, or for another network.

    It is not cut again: models may have been trained on it.

    Raises:
        InputError: If so; what differs is named.
    """
    reasons = []
    if (then["view"], then["size"]) != (now["view"], now["size"]):
        reasons.append(f"{_seen(then)}, wanted are {_seen(now)}")
    old, new = then["inputs"], now["inputs"]
    other = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    names = [name for name in other if name != "settings"]
    if names:
        reasons.append(f"{what} that were added, left out or changed since: {listed(names)}")
    elif other:
        reasons.append("another patch table or scale")
    if reasons:
        raise InputError(
            f"The patches in {folder} must be those that this command would cut.\n"
            f"Received: {'; '.join(reasons)}.\n"
            "Name another folder, and they are cut there. Those here stay as they are, for models "
            "may have been trained on them."
        )


def _seen(record: dict[str, Any]) -> str:
    """What the network sees by a record, for messages."""
    if record["view"] is None:
        rows, cols = record["size"]
        return f"whole photos of {cols}x{rows} px"
    margin, zoom = record["view"]
    return f"patches for --margin={margin} --magnifications={zoom}"
