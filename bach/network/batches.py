"""Patches on disk, and batches of them with augmentation parameters.

A patch store is a folder with `patches.npy` (uint8 `(n, side, side, 3)`, mapped from
disk while training; side is 299 px, or more with a margin) and `patches.csv` (the
patch table, row by row). For an image network the patches are whole photos.
"""

import concurrent.futures
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from bach.classes import CLASSES
from bach.core.errors import InputError
from bach.core.files import atomic_path
from bach.core.log import step
from bach.core.tables import write_csv
from bach.data import read_photo
from bach.network import backend
from bach.network.augment import Augmentation
from bach.network.image_network import photo_input
from bach.patches import COLUMNS, NETWORK_SIZE, PATCH_SIZE, PLAIN_VIEW, View, photo_patches
from bach.slides import Slide


class PatchStore:
    """An open patch store.

    Args:
        folder: Folder written by `cut_photos` or `cut_slides`.

    Attributes:
        patches: uint8 array `(n, side, side, 3)`, mapped from disk; whole photos are
            `(n, rows, cols, 3)`.
        table: Patch table, one row a patch.
        view: What a network sees of these patches.

    Raises:
        InputError: If there is no whole store in the folder.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = Path(folder)
        if not store_exists(folder):
            raise InputError(
                f"There is no patch store in {folder}.\n"
                "Run the script that cuts it first, or name the run folder that holds it."
            )
        self.table = pd.read_csv(folder / "patches.csv", dtype={"image_id": str})
        self.patches = np.load(folder / "patches.npy", mmap_mode="r")
        self.view = View.of_side(self.patches.shape[1])
        if len(self.table) != len(self.patches):
            raise InputError(
                f"The patch store {folder} is damaged: {len(self.table)} rows, "
                f"{len(self.patches)} patches.\nDelete the folder and run the script again."
            )


def store_exists(folder: str | os.PathLike) -> bool:
    """Whether a whole store lies in a folder (the table is written last)."""
    return (Path(folder) / "patches.csv").exists()


def cut_photos(
    images: pd.DataFrame, folder: str | os.PathLike, view: View = PLAIN_VIEW
) -> PatchStore:
    """Cut all patches of the photos of an image table into a store.

    Args:
        images: Table with `image_id, path, label, width, height`.
        folder: Where to write; a whole store there is used as it is.
        view: What the network is to see.
    """
    if not store_exists(folder):
        sizes = images[["width", "height"]].to_numpy()
        if (sizes < PATCH_SIZE).any():
            small = images.loc[(sizes < PATCH_SIZE).any(axis=1)].iloc[0]
            raise InputError(
                f"Photos must be at least {PATCH_SIZE} px wide and high (0.42 um/px).\n"
                f"Received: {small['path']}, {small['width']}x{small['height']} px.\n"
                f"`python -m bach.data` lists all such files."
            )
        tables = [
            photo_patches(row.image_id, row.width, row.height, row.label)
            for row in images.itertuples()
        ]
        paths = images["path"].tolist()

        def cut(index: int) -> np.ndarray:
            return photo_to_patches(read_photo(paths[index]), tables[index], view)

        _write_store(folder, tables, cut, "photos", [view.side] * 2)
    return PatchStore(folder)


def store_photos(
    images: pd.DataFrame, folder: str | os.PathLike, shape: tuple[int, int]
) -> PatchStore:
    """Store whole photos as an image network takes them; each is one "patch".

    Args:
        images: Table with `image_id, path, label, width, height`.
        folder: Where to write; a whole store there is used as it is.
        shape: Rows and columns of the network's input.
    """
    if not store_exists(folder):
        columns = images[["image_id", "label"]].assign(x=0, y=0, size=images["width"], tissue=1.0)
        tables = [columns.iloc[[index]][COLUMNS] for index in range(len(columns))]
        paths = images["path"].tolist()

        def cut(index: int) -> np.ndarray:
            return photo_input(read_photo(paths[index]), shape)[None]

        _write_store(folder, tables, cut, "photos", shape)
    return PatchStore(folder)


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
    side = view.side
    around = view.margin * PATCH_SIZE // NETWORK_SIZE
    if around:
        photo = cv2.copyMakeBorder(photo, *[around] * 4, cv2.BORDER_REFLECT_101)
    result = np.empty((len(table), side, side, 3), np.uint8)
    for index, (x, y, size) in enumerate(table[["x", "y", "size"]].to_numpy(int)):
        patch = photo[y : y + size + 2 * around, x : x + size + 2 * around]
        result[index] = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA)
    return result


def cut_slides(
    table: pd.DataFrame,
    slides: dict[str, str],
    folder: str | os.PathLike,
    mpp: float | None,
    view: View = PLAIN_VIEW,
) -> PatchStore:
    """Cut the patches of a table out of slides into a store.

    Args:
        table: Patch table over several slides.
        slides: Path of each slide by image id.
        folder: Where to write; a whole store there is used as it is.
        mpp: Overrides the slides' scale if given.
        view: What the network is to see.
    """
    if not store_exists(folder):
        groups = [group for _, group in table.groupby("image_id", sort=False)]

        def cut(index: int) -> np.ndarray:
            group = groups[index]
            with Slide(slides[group["image_id"].iloc[0]], mpp=mpp) as slide:
                return np.stack([read_patch(slide, row, view) for row in group.itertuples()])

        _write_store(folder, groups, cut, "slides", [view.side] * 2)
    return PatchStore(folder)


def read_patch(slide: Slide, row, view: View = PLAIN_VIEW) -> np.ndarray:
    """Read one patch of a slide as the network takes it.

    Args:
        slide: The open slide.
        row: Anything with `x, y, size` in level-0 px (floats).
        view: What the network is to see.

    Returns:
        uint8 `(side, side, 3)`, side that of the view.
    """
    scale = row.size / NETWORK_SIZE  # level-0 px per network px
    left, top = row.x - view.margin * scale, row.y - view.margin * scale
    return slide.read(left, top, view.side, view.side, mpp=scale * slide.mpp / view.zoom)


def _write_store(
    folder: str | os.PathLike,
    tables: Sequence[pd.DataFrame],
    cut: Callable[[int], np.ndarray],
    what: str,
    size: Sequence[int],
) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat(tables, ignore_index=True)
    shape = (len(table), *size, 3)
    needed = int(np.prod(shape))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The patches need {needed / 1e9:.1f} GB and the disk of {folder} has "
            f"{free / 1e9:.1f} GB left.\nMake room, or name a --run-dir on another disk."
        )
    starts = np.concatenate([[0], np.cumsum([len(t) for t in tables])])
    with step("patches") as notes, atomic_path(folder / "patches.npy") as temporary:
        patches = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

        def store(index: int) -> None:
            patches[starts[index] : starts[index + 1]] = cut(index)

        with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count())) as pool:
            jobs = pool.map(store, range(len(tables)))
            for _ in tqdm(jobs, total=len(tables), desc=what, disable=None):
                pass
        patches.flush()
        notes.append(f"{len(tables)} {what} -> {len(table):,} of {size[1]}x{size[0]} px")
        notes.append(f"{needed / 1e9:.2f} GB")
    write_csv(table, folder / "patches.csv")


class Batches(keras.utils.PyDataset):
    """Batches of patches out of one or more stores.

    Order and augmentation depend only on seed, epoch and position: not on workers,
    devices or on whether the run was interrupted.

    Attributes:
        labels: Label of every patch, int64 `(n,)`, in the order of the stores.
        seed: Seed of order and augmentation.
        order: Positions in `labels` in the order of this epoch's batches.

    Args:
        stores: uint8 arrays `(n, side, side, 3)`, all of one side.
        labels: One int array a store, 0..3.
        chosen: One array of row numbers a store: the patches to use.
        batch_size: Patches a batch, over all devices together.
        seed: Seed of order and augmentation.
        augmentation: Given for training: batches are shuffled, all of the same
            size (what does not fill a batch waits for another epoch), and of the
            form ((patches, parameters), labels), for `augment.with_augmentation`. None
            for prediction: in order, patches only, the last batch filled up with copies
            of the last patch so that it splits over devices (`predict` drops them).

    Where several processes train one model, `batches[index]` is this process's share
    of the batch.
    """

    def __init__(
        self,
        stores: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        chosen: Sequence[np.ndarray],
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ):
        # Threads: the disk works beside the interpreter. Half the cores, for on a
        # machine without GPU the network needs the others.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
        super().__init__(
            workers=workers, use_multiprocessing=False, max_queue_size=backend.READ_AHEAD
        )
        self._stores = stores
        self._store = np.concatenate([np.full(len(c), i) for i, c in enumerate(chosen)])
        self._row = np.concatenate(list(chosen)).astype(np.int64)
        self.labels = np.concatenate(
            [np.asarray(y)[c] for y, c in zip(labels, chosen, strict=True)]
        ).astype(np.int64)
        if len(self._row) == 0:
            raise InputError("No patches to work on.\nCheck --limit, --fold and the folds file.")
        self._augmentation = augmentation
        self.seed = seed
        # Few patches make a smaller batch, still one that divides over the devices.
        each = min(batch_size, len(self._row)) / backend.count()
        each = max(1, math.floor(each) if augmentation is not None else math.ceil(each))
        self.batch_size = each * backend.count()
        self.start_epoch(0)

    def __len__(self) -> int:
        if self._augmentation is not None:
            return len(self._row) // self.batch_size
        return -(-len(self._row) // self.batch_size)

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides order and augmentation.

        Whoever trains calls it: Keras looks at a first batch before it trains, and says
        `on_epoch_end` after that already.
        """
        self._epoch = epoch
        self.order = np.arange(len(self._row))
        if self._augmentation is not None:
            rng = np.random.default_rng([self.seed, epoch])
            self.order = rng.permutation(len(self._row))

    def patches(self, positions: np.ndarray) -> np.ndarray:
        """Copy patches into memory: uint8 `(len(positions), side, side, 3)`."""
        result = np.empty((len(positions), *self._stores[0].shape[1:]), np.uint8)
        for index, position in enumerate(positions):
            result[index] = self._stores[self._store[position]][self._row[position]]
        return result

    def __getitem__(self, index: int):
        start = index * self.batch_size
        positions = fill_up(self.order[start : start + self.batch_size], self.batch_size)
        share = backend.share(self.batch_size)
        patches = self.patches(positions[share])
        if self._augmentation is None:
            return (patches,)
        rng = np.random.default_rng([self.seed, self._epoch, index])
        drawn = self._augmentation.draw(rng, self.batch_size)[share]
        return (patches, drawn), one_hot(self.labels[positions[share]])

    def sample(self, count: int, seed: int) -> list[np.ndarray]:
        """A random draw of patches, unaugmented, as a list of whole batches."""
        count = min(count, len(self._row))
        order = np.random.default_rng(seed).permutation(len(self._row))[:count]
        size = self.batch_size
        return [
            self.patches(order[start : start + size])
            for start in range(0, max(count - size, 0) + 1, size)
        ]


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Labels 0..3 as float32 rows `(n, 4)`."""
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


def fill_up(patches: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last patch until a batch has `size` of them."""
    missing = size - len(patches)
    return patches if missing == 0 else np.concatenate([patches, patches[-1:].repeat(missing, 0)])


def take_rows(table: pd.DataFrame, limit: int | None) -> np.ndarray:
    """Row numbers of the patches of at most `limit` images a class (a quick trial)."""
    if limit is None:
        return np.arange(len(table))
    first = table.drop_duplicates("image_id").groupby("label")["image_id"].head(limit)
    return np.flatnonzero(table["image_id"].isin(first))
