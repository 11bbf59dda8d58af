"""What a reproduction runs: its options, the fold tables, the command of every script."""

import dataclasses
from pathlib import Path

import pandas as pd

from bach import folds as fold_tables
from bach.classes import CLASSES
from bach.core import options
from bach.core.commands import ROOT
from bach.core.log import log
from bach.core.options import again, option
from bach.core.tables import image_key
from bach.data import list_images
from bach.honest.splits import read_folds
from bach.mining import HARD_EXAMPLES
from bach.reproduce import kwok2018
from bach.tasks import BACH

_FOLDS_A, _FOLDS_B = 3, 5


@dataclasses.dataclass(frozen=True)
class Every:
    """Options of all four scripts."""

    seed: int = again(options.Shared, "seed", 0)
    limit: int | None = again(options.Shared, "limit", None)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Options of the scripts that read slides."""

    mpp: float | None = again(options.Slides, "mpp", None)
    class_map: str | None = again(options.Slides, "class_map", None)


@dataclasses.dataclass(frozen=True)
class Mining:
    """Options of mine_hard_examples.py."""

    hard_examples: int = option(HARD_EXAMPLES, "patches to draw in all", at_least=1)
    stride_um: float = option(BACH.step_um, "step between patches in um", above=0)


@dataclasses.dataclass(frozen=True)
class Heatmaps:
    """Options of make_heatmap.py."""

    step_um: float = option(BACH.step_um, "side of a cell in um", above=0)


@dataclasses.dataclass(frozen=True)
class PassedOn(Heatmaps, Mining, Scale, options.Devices, options.Training, Every):
    """Epochs of the two training scripts."""

    epochs: int = option(
        0, "passes over the patches, of both scripts; 0: the paper's 25 and 15", at_least=0
    )
    epochs_part_a: int = option(0, "of train_part_a.py alone; 0: as --epochs", at_least=0)
    epochs_final: int = option(0, "of train_final.py alone; 0: as --epochs", at_least=0)


@dataclasses.dataclass(frozen=True)
class Options(PassedOn):
    """Options of the reproduction; the others are passed on to the scripts."""

    data_dir: str = again(options.Shared, "data_dir", "data/BACH")
    run_dir: str = again(options.Shared, "run_dir", "runs/reproduce")
    ignore_problems: bool = option(False, "go on with faulty data")
    in_sample: bool = option(
        False, "also train the paper's single model on all slides, and score it on them"
    )
    folds_a: str | None = option(None, "table of folds of photos")
    folds_b: str | None = option(None, "table of folds of slides")
    patients: str | None = option(
        None,
        "CSV of image_id and patient to make folds of photos by (default: patients.csv of the "
        "data folder, if it is not the challenge's)",
    )


def epochs(args: Options) -> dict[str, int]:
    """Epochs of the two training scripts."""
    return {
        "train_part_a.py": args.epochs_part_a or args.epochs or kwok2018.EPOCHS_PART_A,
        "train_final.py": args.epochs_final or args.epochs or kwok2018.EPOCHS_FINAL,
    }


# Which options a script takes.
GROUPS: dict[str, tuple[type, ...]] = {
    "train_part_a.py": (Every, options.Training, options.Devices),
    "mine_hard_examples.py": (Every, options.Devices, Scale, Mining),
    "train_final.py": (Every, options.Training, options.Devices),
    "make_heatmap.py": (Every, options.Devices, Scale, Heatmaps),
}


def commands(args: Options, folds_a: Path, folds_b: Path) -> dict[str, list[str]]:
    """The command of every script, as words after `python`, by the name of its run."""

    def at(run: str) -> str:
        return str(Path(args.run_dir) / run)

    inputs = ["--part-a-dir", at("part_a"), "--hard-examples-dir", at("hard_examples")]
    folds = ["--folds", str(folds_b)]
    final = ["train_final.py", *inputs, *folds]
    steps = {
        "part_a": ["train_part_a.py", "--folds", str(folds_a)],
        "hard_examples": ["mine_hard_examples.py", "--model-dir", at("part_a"), *folds],
        "final": final,
        "heatmaps": ["make_heatmap.py", "--model-dir", at("final")],
    }
    if args.in_sample:
        model = ["--model-dir", at("final_all")]
        steps["final_all"] = [*final, "--fold", "none"]
        steps["heatmaps_in_sample"] = ["make_heatmap.py", *model, "--part", "B"]
    result = {}
    for run, (script, *special) in steps.items():
        where = ["--data-dir", args.data_dir, "--run-dir", at(run), *special]
        many = {"epochs": epochs(args).get(script)}
        result[run] = [script, *where, *options.words(args, *GROUPS[script], **many)]
    return result


def choose_folds(args: Options, out: Path) -> tuple[Path, Path, bool]:
    """The fold tables to use, made first if the data are not the challenge's.

    The committed tables are only for the challenge's own images: other data can have
    the same file names, and then patients would be taken for others.

    Returns:
        Fold table of Part A and of Part B, and whether the data are the challenge's.
    """
    photos, slides = list_images(args.data_dir, "A"), list_images(args.data_dir, "B")
    photos["label"] = [CLASSES[label] for label in photos["label"]]
    committed = Path("folds") if Path.cwd() == ROOT else ROOT / "folds"
    committed_a, committed_b = committed / "part_a.csv", committed / "part_b.csv"
    known_slides = _keys(read_folds(committed_b))
    own = Path(args.data_dir) / "patients.csv"
    patients = args.patients or (str(own) if own.exists() else None)
    is_bach = (
        not own.exists()
        and _keys(photos, "label") <= _keys(read_folds(committed_a), "label")
        and _keys(slides) <= known_slides
    )

    def made(part: str, many: int, *more: str) -> Path:
        table = out / f"folds_{part}.csv"
        words = ["--part", part, "--folds", str(many), *more, "--out", str(table)]
        fold_tables.main(["make", "--data-dir", args.data_dir, *words])
        return table

    if args.folds_a is not None:
        folds_a = Path(args.folds_a)
    elif patients is not None:
        folds_a = made("a", _FOLDS_A, "--patients", patients)
    elif is_bach:
        folds_a = committed_a
    else:
        log.warning("no patients.csv: every photo counts as a patient, folds may leak")
        folds_a = made("a", _FOLDS_A, "--unknown", "own")
    if args.folds_b is not None:
        folds_b = Path(args.folds_b)
    elif is_bach and _keys(slides) == known_slides:
        folds_b = committed_b
    else:
        folds_b = made("b", min(_FOLDS_B, len(slides)))
    return folds_a, folds_b, is_bach


def _keys(table: pd.DataFrame, *columns: str) -> set[tuple]:
    return set(zip(table["image_id"].map(image_key), *(table[c] for c in columns), strict=True))
