"""Hard example mining: the patches of slides that a model gets most wrong."""

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bach.core.drawings import (
    Panel,
    Words,
    draw_boxes,
    outline_tissue,
    plate,
    resized,
    swatch,
)
from bach.core.errors import InputError
from bach.core.files import fingerprint, read_object, write_json
from bach.core.log import log, step
from bach.core.options import SlideScript, option
from bach.core.pictures import write_png
from bach.core.tables import image_key, write_csv
from bach.core.text import listed
from bach.honest.splits import ALWAYS_TRAIN, join_folds
from bach.patches import SlideMaps, cell_patches, read_patches, slide_patches
from bach.slide_by_slide import NotDone, mpp_of
from bach.slides import Slide
from bach.tasks import BACKGROUND, decisive, task
from bach.tissue import map_files, slide_maps

if TYPE_CHECKING:  # it loads the framework
    from bach.network.predictor import Predictor

MIN_TISSUE = 0.05  # Kwok 2018, section 4.3: patches with less are dropped
MIN_TISSUE_HARD = 0.70  # section 4.5: of hard examples
HARDEST = 0.40  # section 4.5: share of patches that are candidates
HARD_EXAMPLES = 5900  # section 4.5: drawn in all

# Areas in um2 from which on pieces of tissue, and holes in them, are outlined in pictures: a
# hole of a quarter of a patch. Smaller ones are between cells, and hide the tissue.
OUTLINED = (10_000, 100_000)


def difficulty(label, predicted, prob):
    """Score how wrong a patch prediction is, for hard example mining.

    Class distance on the scale normal 0 ... invasive 3, weighted by the confidence
    of the wrong answer; 0 means correct. Where the classes of a task are not ordered, every
    wrong class is as far.

    Args:
        label: True class, 0..n-1; a number or an array.
        predicted: Predicted class, 0..n-1.
        prob: Probability of the predicted class, 0..1.

    Returns:
        Difficulty, 0..n-1: a float, or an array where arrays were given.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(difficulty(3, 1, 0.9), 6)
        1.8

    Source: Kwok 2018, section 4.5.
    """
    label, predicted, prob = (np.asarray(value, np.float64) for value in (label, predicted, prob))
    for name, value, top in (
        ("label", label, task().count - 1),
        ("predicted", predicted, task().count - 1),
        ("prob", prob, 1),
    ):
        # A little more than 1 is float rounding of a probability.
        if not ((value >= 0) & (value <= top + 1e-6)).all():
            raise ValueError(f"{name} must lie in 0..{top}. Received: {name}={value}.")
    result = task().distance(label, predicted) * prob
    return float(result) if result.ndim == 0 else result


@dataclasses.dataclass(frozen=True)
class MiningScript(SlideScript):
    """Options of a script that draws patches from slides."""

    draw: str = option(
        "hardest",
        "which patches are drawn: those that the models get most wrong; or any, without a model "
        "(class, then slide, then patch, drawn uniformly: Liu et al. 2017)",
        choices=("hardest", "uniform"),
        later=True,
    )
    min_tissue: float | None = option(
        None,
        f"share of tissue of a patch that may be drawn (default: {MIN_TISSUE_HARD}; uniform: "
        f"{MIN_TISSUE})",
        at_least=MIN_TISSUE,
        most=1,
        later=True,
    )

    @property
    def least_tissue(self) -> float:
        """Share of tissue of a patch that may be drawn."""
        if self.min_tissue is not None:
            return self.min_tissue
        return MIN_TISSUE if self.draw == "uniform" else MIN_TISSUE_HARD


def mining_patches(
    maps: SlideMaps, stride_um: float | None = None, cells: bool = False
) -> pd.DataFrame:
    """Patch table of a slide, without patches of less than 5% tissue.

    Args:
        maps: The slide's maps.
        stride_um: Step between patches in um.
        cells: Patches centred on cells, as dense prediction has them, with `row, col`;
            else as the paper has them, flush with the slide's edges.
    """
    table = (
        cell_patches(maps, stride_um or task().step_um) if cells else slide_patches(maps, stride_um)
    )
    # Without a label: beside a mark, of which a part is seen.
    unsure = (table["label"] < 0) & (maps.marks is not None)
    return table[(table["tissue"] >= MIN_TISSUE) & ~unsure].reset_index(drop=True)


def add_difficulty(table: pd.DataFrame) -> pd.DataFrame:
    """Add `predicted` and `difficulty` to a patch table with the `prob_` columns."""
    probs = table[list(task().columns)].to_numpy()
    predicted = probs.argmax(axis=1) if len(table) else np.zeros(0, int)
    prob = probs[np.arange(len(table)), predicted]
    return table.assign(
        predicted=predicted, difficulty=difficulty(table["label"].to_numpy(), predicted, prob)
    )


def hardest(table: pd.DataFrame, share: float = HARDEST, seed: int = 0) -> pd.DataFrame:
    """The given share of patches with the greatest difficulty, over all slides together.

    Args:
        table: Patch table with `difficulty`.
        share: Share to keep, 0..1.
        seed: Breaks ties, which a model that is right on most patches has many of.

    Returns:
        The candidates, hardest first.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.iloc[order].sort_values("difficulty", ascending=False, kind="stable")
    return shuffled.head(round(share * len(table))).reset_index(drop=True)


def draw_evenly(candidates: pd.DataFrame, count: int = HARD_EXAMPLES, seed: int = 0):
    """Draw hard examples, a quarter of them from each class.

    A class with fewer candidates than a quarter gives all it has, and the log says
    so; the others do not make up for it.

    Args:
        candidates: Patch table with `label`.
        count: How many in all.
        seed: Seed of the draw.

    Returns:
        Patch table, in the order of slide and position.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for label, name in enumerate(task().classes):
        rows = np.flatnonzero(candidates["label"] == label)
        quarter = count // task().count + (label < count % task().count)
        if len(rows) < quarter:
            log.warning("%s: only %d candidates for %d hard examples", name, len(rows), quarter)
        drawn.append(rng.permutation(rows)[:quarter])
    table = candidates.iloc[np.concatenate(drawn)]
    return table.sort_values(["image_id", "y", "x"], kind="stable").reset_index(drop=True)


def draw_uniformly(table: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Draw patches without a model: as many of each class, of each slide with that class, any.

    A class or a slide with fewer patches than its share gives all it has; what a slide lacks
    is taken from the others of the class.

    Args:
        table: Patch table with `image_id` and `label`.
        count: How many in all.
        seed: Seed of the draw.

    Returns:
        Patch table, in the order of slide and position.

    Source: Liu et al. 2017, section 3: the class, then the slide, then the patch is drawn
    uniformly, so that neither large slides nor normal tissue prevail.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for label, name in enumerate(task().classes):
        left = count // task().count + (label < count % task().count)
        rows = np.flatnonzero(table["label"] == label)
        if len(rows) < left:
            log.warning("%s: only %d patches for %d to be drawn", name, len(rows), left)
        of_slide = [rng.permutation(rows[own]) for own in _groups(table["image_id"].iloc[rows])]
        # The smallest first: what they lack is shared by the others. Of equals, in any order.
        order = sorted(rng.permutation(len(of_slide)).tolist(), key=lambda k: len(of_slide[k]))
        for place, number in enumerate(order):
            part = of_slide[number][: left // (len(order) - place)]
            drawn.append(part)
            left -= len(part)
    chosen = table.iloc[np.concatenate(drawn) if drawn else np.zeros(0, int)]
    return chosen.sort_values(["image_id", "y", "x"], kind="stable").reset_index(drop=True)


def _groups(names: pd.Series) -> list[np.ndarray]:
    """Positions of the rows of each name, names in order."""
    numbers, found = pd.factorize(names, sort=True)
    return [np.flatnonzero(numbers == number) for number in range(len(found))]


ALL = "draw_all"  # the paper's draw: over all slides
_DRAWS = "draws.json"


def draw_hard_examples(
    table: pd.DataFrame,
    folds: pd.Series,
    share: float,
    count: int,
    seed: int,
    seen: Collection[str] = (),
) -> pd.DataFrame:
    """Cut the hardest and draw evenly, once over all slides and once for every fold.

    Args:
        table: Patch table with `difficulty`.
        folds: Fold of every slide by its name; -1 is never held out.
        share: Share of the patches that are candidates.
        count: Patches per draw.
        seed: Seed of ties and draws.
        seen: See `draw_for_folds`.

    Returns:
        As `draw_for_folds`.

    Source: Kwok 2018, section 4.5.
    """

    def draw(rest: pd.DataFrame) -> pd.DataFrame:
        return draw_evenly(hardest(rest, share, seed), count, seed)

    return draw_for_folds(table, folds, draw, seen)


def draw_for_folds(
    table: pd.DataFrame,
    folds: pd.Series,
    draw: Callable[[pd.DataFrame], pd.DataFrame],
    seen: Collection[str] = (),
) -> pd.DataFrame:
    """Draw patches, once over all slides and once for every fold, without what it holds out.

    The labels of a slide that a fold holds out would decide over the examples it is trained
    on: which are among the hardest, and how many of a class are left for the others.

    Args:
        table: Patch table.
        folds: Fold of every slide by its name; -1 is never held out.
        draw: Draws from a patch table of some slides.
        seen: Slides that the models were trained on that chose among the patches. For a fold
            that holds one of them out nothing is drawn.

    Returns:
        Patch table of all that were drawn, in the order of slide and position, with a column
        per draw, 1 where a patch belongs to it: `draw_all`, and `draw_0` ... for the folds.
    """
    # Differs from Kwok 2018: the paper draws once, over all slides, as `draw_all` does.
    keys = ["image_id", "y", "x"]
    chosen = {}
    for name, slides in _left_out(folds, seen).items():
        rest = table[~table["image_id"].isin(slides)].reset_index(drop=True)
        chosen[name] = draw(rest)
    drawn = pd.concat(chosen.values()).drop_duplicates(keys)
    drawn = drawn.sort_values(keys, kind="stable").reset_index(drop=True)
    index = pd.MultiIndex.from_frame(drawn[keys])
    for name, part in chosen.items():
        drawn[name] = index.isin(pd.MultiIndex.from_frame(part[keys])).astype(int)
    return drawn


def write_draws(run: Path, folds: pd.Series, seen: Collection[str] = ()) -> None:
    """Write which slides were mined, which of them each draw leaves out, and what models saw."""
    said = {"slides": list(folds.index), "left_out": _left_out(folds, seen)}
    write_json(run / _DRAWS, said | ({"seen": sorted(seen)} if seen else {}))


def find_draw(run: str | os.PathLike, folds: pd.DataFrame | None, fold: int | None) -> str:
    """The draw of hard examples that a fold may be trained on.

    Args:
        run: Run folder of mine_hard_examples.py.
        folds: Fold table of slides; None where no slide is ever held out.
        fold: Number of the fold; None for a model that nothing is held out from.

    Returns:
        The draw's column in the table of hard examples.

    Raises:
        InputError: If no draw left out just the slides that the fold holds out.
    """
    again = "Run mine_hard_examples.py again."
    record = read_object(Path(run) / _DRAWS, again, slides=list, left_out=dict, seen=list)
    if not record.keys() >= {"slides", "left_out"}:
        raise InputError(
            f"{Path(run) / _DRAWS} must say what was drawn.\nReceived: {listed(record)}.\n{again}"
        )
    mined = pd.DataFrame({"image_id": record["slides"]}, dtype=str)
    heldout: list[str] = []
    if folds is not None:
        fold_of = join_folds(mined, folds, f"--folds (for {Path(run) / _DRAWS})")["fold"]
        heldout = sorted(mined["image_id"][fold_of == (np.nan if fold is None else fold)])
        _refuse_chosen_by_heldout(run, record.get("seen", ()), folds, fold)
    for name, slides in record["left_out"].items():
        if slides == heldout and (heldout or name == ALL):
            return name
    raise InputError(
        "Hard examples must have been drawn without the slides that a fold holds out, whose "
        "labels would else decide over its training.\n"
        f"Received: fold {fold} holds out {listed(heldout) or 'no slide'}; those of {run} were "
        "drawn for other folds.\nRun mine_hard_examples.py with the same --folds."
    )


def _refuse_chosen_by_heldout(
    run: str | os.PathLike, seen: Collection[str], folds: pd.DataFrame, fold: int | None
) -> None:
    """Refuse patches that models have chosen which were trained on what a fold holds out.

    Raises:
        InputError: If so.
    """
    own = folds["image_id"][folds["fold"] == (np.nan if fold is None else fold)].map(image_key)
    both = sorted(set(own) & set(map(image_key, seen)))
    if both:
        raise InputError(
            "Patches must not have been chosen by models that were trained on slides which the "
            "fold holds out.\n"
            f"Received: fold {fold} holds out {listed(both)}, and {run} was mined by models that "
            "have seen them.\n"
            "Train with nothing held out (--folds none), or mine with the model of this fold."
        )


def _left_out(folds: pd.Series, seen: Collection[str] = ()) -> dict[str, list[str]]:
    """The slides that every draw leaves out; none for folds that hold out what was seen."""
    every = sorted(set(folds) - {ALWAYS_TRAIN})
    heldout = {f"draw_{fold}": sorted(folds.index[folds == fold]) for fold in every}
    keys = set(map(image_key, seen))
    return {ALL: []} | {
        name: slides for name, slides in heldout.items() if not keys & set(map(image_key, slides))
    }


class Mined(NamedTuple):
    """What the mining of a slide gives: its patch table, and what is odd about the slide."""

    table: pd.DataFrame
    warnings: tuple[str, ...]


def mine_slide(
    row: Any, predictor: "Predictor | None", args: MiningScript, folder: Path, step_um: float
) -> Mined:
    """Predict the patches of one slide, or read its table if nothing has changed since.

    Writes `NAME.csv` (every patch with at least 5% tissue), `NAME.png` (tissue mask and
    grid) and `NAME.json` (fingerprint of what they depend on and of the table, and the
    warnings), last.

    Args:
        row: The slide: `path`, `image_id` and, where it is known, `mpp`.
        predictor: The models, whose mean is what is mined with; None to predict nothing.
        args: Options of the script.
        folder: Where to write.
        step_um: Step between patches.

    Returns:
        The patch table, with the `prob_` columns if there are models, which are not a number
        for patches of less than 70% tissue: these cannot become hard examples and are not
        predicted; and the slide's warnings. A slide without annotation has the first class.

    Raises:
        InputError: If slide, annotation or mask cannot be read.
        NotDone: If it is to be read and is not there.
    """
    path, name, mpp = row.path, str(row.image_id), mpp_of(row, args)
    file, key_file = folder / f"{name}.csv", folder / f"{name}.json"
    models = {} if predictor is None else predictor.digests
    settings = {**decisive(args), "mpp": mpp, "models": models}
    key = fingerprint(map_files(path, args.masks, args.class_map, name), settings)
    if file.exists():
        # The table itself counts, which a damaged disk may have cut short.
        then = {}
        if key_file.exists():
            then = read_object(key_file, "Delete it.", warnings=list)
        warnings = tuple(map(str, then.pop("warnings", None) or ()))
        if then == key | fingerprint({"table": file}):
            log.info("%s: finished before", name)
            return Mined(read_patches(file), warnings)
        if not args.collect:
            log.info("%s: the slide or what its patches depend on has changed; done again", name)
            file.unlink()
    if args.collect:
        raise NotDone(name)
    with step(name) as notes, Slide(path, mpp=mpp, name=name) as slide:
        maps = slide_maps(
            slide,
            args.masks,
            args.exclude_pen,
            args.class_map,
            rule=args.tissue,
            not_brightfield=args.not_brightfield,
        )
        if maps.labels is None:
            maps = maps._replace(labels=np.full(maps.tissue.shape, BACKGROUND, np.uint8))
        table = mining_patches(maps, step_um, args.mode == "dense")
        used = (table["tissue"] >= args.least_tissue).to_numpy()
        notes.append(f"{maps.tissue.mean():.0%} tissue -> {len(table):,} patches")
        if predictor is not None:
            probs = np.full((len(table), task().count), np.nan, np.float32)
            probs[used] = predictor.predict(slide, table[used])
            table = table.assign(**dict(zip(task().columns, probs.T, strict=True)))
            notes.append(f"{used.sum():,} with {args.least_tissue:.0%} tissue predicted")
    write_png(folder / f"{name}.png", draw_grid(maps, table[used]))
    write_csv(table, file)
    done = key | fingerprint({"table": file})
    write_json(key_file, {**done, "warnings": maps.warnings})
    return Mined(read_patches(file), maps.warnings)


def draw_grid(maps: SlideMaps, table: pd.DataFrame) -> np.ndarray:
    """Tissue and patches of a slide: glass tinted, each patch by its middle.

    Args:
        maps: The slide's maps; their warnings stand above.
        table: Patch table; labels are the colours.

    Returns:
        uint8 picture, 800 to 3,000 px on its long side.
    """
    um = maps.downsample * maps.mpp

    def draw(shape: tuple[int, int]) -> np.ndarray:
        shrunk = max(maps.tissue.shape) / max(shape)
        thumbnail, tissue = resized(maps.thumbnail, shape), resized(maps.tissue, shape)
        picture = outline_tissue(thumbnail, tissue, um * shrunk, OUTLINED)
        boxes = table[["x", "y", "size"]].to_numpy() / (maps.downsample * shrunk)
        draw_boxes(picture, boxes, [task().colors[label] for label in table["label"]])
        return picture

    def keys(size: int) -> list[np.ndarray]:
        return [swatch(*pair, size) for pair in zip(task().classes, task().colors, strict=True)]

    um2 = "\N{MICRO SIGN}m\N{SUPERSCRIPT TWO}"
    notes = [
        f"{maps.tissue.mean():.0%} tissue; glass is tinted blue; outlined: pieces from "
        f"{OUTLINED[0]:,} {um2}, holes from {OUTLINED[1]:,} {um2}",
        f"{len(table):,} patches in the colour of their class, shown by their middle",
    ]
    words = Words(maps.name, notes, maps.warnings, keys)
    return plate([Panel("tissue and patches", draw)], maps.tissue.shape, um, words)


def one_per_place(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first patches of a table that overlap none before them, at most `count`.

    Args:
        table: Patch table, in the order of preference.
        count: How many at most.
    """
    kept: dict[str, list[tuple[float, float, float]]] = {}
    rows = []
    for row, (slide, x, y, size) in enumerate(
        zip(table["image_id"], table["x"], table["y"], table["size"], strict=True)
    ):
        others = kept.setdefault(slide, [])
        if all(max(abs(x - left), abs(y - top)) >= min(size, side) for left, top, side in others):
            others.append((x, y, size))
            rows.append(row)
        if len(rows) == count:
            break
    return table.iloc[rows]
