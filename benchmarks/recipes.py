"""Which of the things learned since 2018 help here, and by how much?

Trains script 1 once for every recipe and seed, on the same patient-safe folds and one
patch store, and compares every recipe with `base` on the same held-out images.

A recipe is a few more arguments of `train_part_a.py` (`RECIPES` below; BASE stands for
the run of `base` with the same seed, TOP for that of `top` joined with what else says what
the network sees, as `top+fields`, NORMALISED for copies of the photos whose stain the
library torchstain has normalised by the recipe's method, ONE for the batch size of the
other runs, FOUR for four times that); names joined by + add up, as in `cosine+ema-0.99`
or `large-batch+scaled-rate+warm-up` (Goyal et al. 2017).
`tta` trains nothing: it predicts the held-out photos of the other recipes it is joined
with, or of base, as the mean over their orientations. `trees` has no network: it is the
tree ensemble of `python -m bach.folds audit`, on the same folds and the same photos;
`--known-patients` goes for it as well.
Names of backbones are recipes as well. `two-devices` shows on TensorFlow what
batch-normalisation statistics of half a batch do.
Options that are not listed here go to every run, so `--backbone small --weights none
--learning-rate 0.02` chooses what all are tried on.
Recipes of `--once` are tried with the first seed alone: a cheap look at many. What gains
there is to be repeated with other seeds, since the best of many is in part the luckiest.

Accuracy is that of images, the mean over seeds, out of fold. `minus base` is paired:
patients are drawn anew, all seeds of a patient together, and both recipes are scored on
the same draw. Its interval says what other patients would change; `sd over seeds`, of
that difference, what another seed would.

Reads:   --data-dir, --folds.
Writes:  DIR/patches/, DIR/<recipe>-seed<n>/ (run folders of script 1), DIR/reinhard/ and
         DIR/macenko/ (normalised photos). Run again, the same command goes on: finished
         runs are not repeated.
Command: python benchmarks/recipes.py --data-dir data/BACH --folds folds/part_a.csv \\
             --run-dir runs/recipes --backbone small --weights none --learning-rate 0.02
Time:    that of a run of script 1, times recipes, times seeds; --quick paints 16 photos
         and tries three recipes for one epoch, about a minute on two cores.
Prints a Markdown table; the last line is JSON.
"""

import argparse
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import data, folds
from bach.classes import CLASSES, PROB_COLUMNS
from bach.core.errors import InputError, exit_with
from bach.core.files import atomic_path, to_json
from bach.core.log import log
from bach.core.options import Devices, add
from bach.core.tables import write_csv
from bach.core.text import markdown
from bach.honest.audit import cross_validate
from bach.honest.comparison import verdict
from bach.honest.features import read_features
from bach.honest.intervals import (
    accuracy_from_sums,
    accuracy_sums,
    accuracy_worth,
    format_interval,
    jackknife,
    patient_units,
    predicted_labels,
    unit_sums,
)
from bach.honest.learners import Trees
from bach.honest.records import read_images
from bach.honest.splits import ALWAYS_TRAIN, join_folds, read_folds
from bach.scores import accuracy_names
from bach.toy.dataset import Recipe, make_data_set

ROOT = Path(__file__).resolve().parent.parent

RECIPES = {
    "base": [],
    "softmax": ["--head", "softmax"],
    "ema-0.9": ["--ema", "0.9"],
    "ema-0.99": ["--ema", "0.99"],
    "ema-0.999": ["--ema", "0.999"],
    "label-smoothing": ["--label-smoothing", "0.1"],
    "cosine": ["--schedule", "cosine"],
    "constant": ["--schedule", "constant"],  # where the options of all runs say cosine
    "warm-up": ["--warmup-epochs", "2"],
    "adamw": ["--optimizer", "adamw", "--learning-rate", "0.001"],
    "large-batch": ["--batch-size", "FOUR"],
    "scaled-rate": ["--scale-learning-rate", "ONE"],
    "no-colour-change": ["--hue", "0", "--saturation", "0", "--value", "0"],
    "strong-colour": ["--hue", "0.08", "--saturation", "0.4", "--value", "0.3"],
    "moving-statistics": ["--bn-patches", "0"],
    "best-epoch": ["--keep", "best"],
    "image-network": ["--image-network", "BASE"],
    "reinhard": ["--data-dir", "NORMALISED"],
    "macenko": ["--data-dir", "NORMALISED"],
    "two-magnifications": ["--magnifications", "2"],
    "two-devices": ["--devices", "2"],
    "fields": ["--fields"],
    "top": ["--train", "top"],
    "all-orientations": ["--orientations"],
    "from-top": ["--weights", "TOP", "--head", "softmax"],
    "frozen-bn": ["--frozen-bn"],
    "two-per-photo": ["--patches-per-photo", "2"],
    "tta": [],
    "trees": [],
    "no-weights": ["--weights", "none"],
}

# The backbones of Kwok 2018 (Keras has no Inception-v4), and
# families of keras.applications that came later.
BACKBONES = (
    "InceptionResNetV2",
    "VGG19",
    "InceptionV3",
    "Xception",
    "ResNet50V2",
    "DenseNet121",
    "MobileNetV2",
    "EfficientNetV2S",
    "ConvNeXtTiny",
)
RECIPES |= {name: ["--backbone", name] for name in BACKBONES}
PRETRAINED = ("fields", "top", "all-orientations", "from-top", "frozen-bn", "two-per-photo")
ON_REQUEST = (
    *("constant", "scaled-rate", "reinhard", "macenko", "two-devices"),
    *PRETRAINED,
    *BACKBONES,
)
# What of a recipe its start has in common with it.
SEEN = ("fields", "all-orientations", "two-magnifications", *BACKBONES)


def arguments(name: str) -> list[str]:
    """Arguments of a recipe, or of several joined by +.

    Raises:
        InputError: If there is no such recipe.
    """
    parts = name.split("+")
    unknown = [part for part in parts if part not in RECIPES]
    if unknown or ("trees" in parts and len(parts) > 1):
        raise InputError(
            f"There must be a recipe of that name.\nReceived: {name}.\n"
            f"Use {', '.join(RECIPES)}, or several but trees joined by +."
        )
    return [word for part in parts for word in RECIPES[part]]


def run_folder(base: Path, name: str, seed: int) -> Path:
    return base / f"{name}-seed{seed}"


def train(args: argparse.Namespace, common: Sequence[str], name: str, seed: int) -> None:
    """Train one recipe with one seed, go on with it, or find that it is done."""
    base_dir = Path(args.run_dir)
    base, folder = (run_folder(base_dir, n, seed) for n in ("base", name))
    if name == "trees":
        predict_by_trees(args.data_dir, args.folds, folder, seed, "--known-patients" in common)
        return
    parts = name.split("+")
    if "tta" in parts:
        rest = "+".join(part for part in parts if part != "tta") or "base"
        train(args, common, rest, seed)
        predict_turned(run_folder(base_dir, rest, seed), folder)
        return
    own, patches = sized(arguments(name), common), "patches"
    if "--image-network" in own:
        own, patches = [str(base) if word == "BASE" else word for word in own], "photos"
    if "--fields" in own:
        patches = "fields"
    if "--magnifications" in own:
        patches += "-2"
    if "TOP" in own:
        start = "+".join(["top", *(part for part in parts if part in SEEN)])
        train(args, common, start, seed)
        own = [str(run_folder(base_dir, start, seed)) if word == "TOP" else word for word in own]
        own = [word for word in own if word != "--orientations"]  # those of its start
    for method in set(parts) & {"reinhard", "macenko"}:
        photos = normalise_photos(args.data_dir, base_dir / method, method)
        own = [str(photos) if word == "NORMALISED" else word for word in own]
        patches = f"{patches}-{method}"
    options = {
        "--data-dir": args.data_dir,
        "--folds": args.folds,
        "--run-dir": folder,
        "--seed": seed,
        "--epochs": args.epochs,
        "--patches-dir": base_dir / patches,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(ROOT / "train_part_a.py"), *words, "--resume", *common, *own]
    log.info("recipe %s, seed %d", name, seed)
    code = subprocess.run(command, stdout=sys.stderr).returncode
    if code:
        raise InputError(
            f"Every run must finish.\nReceived: exit code {code} of {folder}.\n"
            "Mend what its log says; the same command goes on."
        )


def sized(own: Sequence[str], common: Sequence[str]) -> list[str]:
    """Arguments with the batch sizes ONE and FOUR as numbers."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add(parser, Devices)
    size = parser.parse_known_args(common)[0].batch_size
    sizes = {"ONE": str(size), "FOUR": str(4 * size)}
    return [sizes.get(word, word) for word in own]


def predict_turned(run: Path, folder: Path) -> None:
    """Predict the held-out photos of a finished run, as the mean over their orientations.

    Args:
        run: Run folder of script 1.
        folder: Where to write `predictions.csv` in the same form, unless it is there.
    """
    if (folder / "predictions.csv").exists():
        return
    from bach.network import backend
    from bach.network.predict import load_models, predict_photos

    backend.start()
    data_dir = json.loads((run / "run.json").read_text())["arguments"]["data_dir"]
    images = data.list_images(data_dir, "A").set_index("image_id", drop=False)
    table = pd.read_csv(run / "predictions.csv", dtype={"image_id": str})
    for fold, held in table.groupby("fold"):
        models = load_models(run, [fold], whole_photos=True)
        probs = predict_photos(list(models.values()), images.loc[held["image_id"]], tta=True)
        table.loc[held.index, list(PROB_COLUMNS)] = probs[list(PROB_COLUMNS)].to_numpy()
    table["predicted"] = predicted_labels(table)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(table, folder / "predictions.csv")


def predict_by_trees(data_dir: str, table: str, folder: Path, seed: int, known: bool) -> None:
    """Predict the held-out photos by a tree ensemble on their colour and texture.

    Args:
        data_dir: The challenge data.
        table: File of folds; photos of fold -1 are always trained on, as in script 1.
        folder: Where to write `predictions.csv`, unless it is there; the features of the
            photos go to `features.csv` in the folder above `folder`.
        seed: Of the trees.
        known: Leave out photos of fold -1, as script 1 does with --known-patients.
    """
    if (folder / "predictions.csv").exists():
        return
    images = data.list_images(data_dir, "A")
    split = join_folds(images, read_folds(table), table)
    split["label"] = [CLASSES[label] for label in split["label"]]
    if known:
        split = split[split["fold"] != ALWAYS_TRAIN]
    features = read_features(images, folder.parent)
    predictions = cross_validate(features, split, Trees(), seed)
    predictions["predicted"] = predicted_labels(predictions)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(predictions, folder / "predictions.csv")


def normalise_photos(data_dir: str, folder: Path, method: str) -> Path:
    """Copy all Part A photos with their stain normalised, but for those that are there.

    Args:
        data_dir: The challenge data.
        folder: Where to write, in the challenge's layout.
        method: "reinhard", to the first photo (by name), or "macenko", to the stains that
            the library takes for typical.

    Returns:
        `folder`.

    Source: Reinhard et al. 2001; Macenko et al. 2009.
    """
    images = data.list_images(data_dir, "A")
    first = images["path"].iloc[0]
    jobs = []
    for path, label in zip(images["path"], images["label"], strict=True):
        out = folder / data.TRAIN_FOLDER / "Photos" / CLASSES[label] / Path(path).name
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.exists():
            jobs.append((path, out, first, method))
    with concurrent.futures.ProcessPoolExecutor() as pool:
        done = pool.map(_normalise, jobs)
        for _ in tqdm(done, total=len(jobs), desc=method, unit="photo", disable=None):
            pass
    return folder


def _normalise(job: tuple[str, Path, str, str]) -> None:
    from torchstain.base.normalizers import MacenkoNormalizer, ReinhardNormalizer

    path, out, first, method = job
    if method == "reinhard":
        normalizer = ReinhardNormalizer(backend="numpy")
        normalizer.fit(data.read_photo(first))
        photo = normalizer.normalize(data.read_photo(path))
    else:
        photo, *_ = MacenkoNormalizer(backend="numpy").normalize(
            data.read_photo(path), stains=False
        )
    with atomic_path(out) as temporary:
        Image.fromarray(photo).save(temporary, format="TIFF", compression="tiff_lzw")


def compare(base_dir: Path, name: str, seeds: Sequence[int]) -> dict:
    """Scores of a recipe, and its paired difference from `base`.

    Returns:
        `arguments`; `seeds`, how many; `accuracy` and `binary_accuracy`, each `score`
        (the mean over seeds) and `difference`, intervals as of `jackknife`, and `sd` (of
        the difference over seeds, None with one seed); `verdict` on the accuracy.
    """
    tables = []
    for seed in seeds:
        ours, base = (read_images(run_folder(base_dir, n, seed)) for n in (name, "base"))
        both = ours.merge(base[["image_id", "predicted"]], on="image_id", suffixes=("", "_base"))
        if len(both) != len(ours) or len(both) != len(base):
            raise InputError(
                "A recipe and base must have predicted the same images.\n"
                f"Received: {len(ours)} and {len(base)} images, {len(both)} in common "
                f"({name}, seed {seed}).\nName a new --run-dir for other folds or limits."
            )
        tables.append(both.assign(seed=seed))
    table = pd.concat(tables, ignore_index=True)
    numbers, unit = patient_units(table)
    sums = np.hstack(
        [accuracy_sums(table["label"], table[column]) for column in ("predicted", "predicted_base")]
    )
    units, width = unit_sums(sums, numbers), sums.shape[1] // 2
    result: dict[str, dict] = {}
    for metric in ("accuracy", "binary_accuracy"):

        def score(values: np.ndarray, metric: str = metric) -> np.ndarray:
            return accuracy_from_sums(values[..., :width], metric)

        def difference(values: np.ndarray, metric: str = metric) -> np.ndarray:
            return score(values, metric) - accuracy_from_sums(values[..., width:], metric)

        worth = accuracy_worth(units[:, :width], metric)
        per_seed = [difference(sums[table["seed"] == seed].sum(axis=0)) for seed in seeds]
        result[metric] = {
            "score": jackknife(units, score, worth, unit=unit),
            "difference": jackknife(units, difference, worth, lowest=-1.0, unit=unit),
            "sd": float(np.std(per_seed, ddof=1)) if len(seeds) > 1 else None,
        }
    return {
        "arguments": arguments(name),
        "seeds": len(seeds),
        **result,
        "verdict": verdict(result["accuracy"]["difference"]),
    }


def paint(folder: Path) -> tuple[Path, Path]:
    """A small trial data set and its folds, for --quick."""
    painted, table = folder / "toy", folder / "folds.csv"
    make_data_set(painted, Recipe(patients=4, images=4, test_images=0, slides=0, test_slides=0))
    words = ["make", "--data-dir", str(painted), "--folds", "2", "--part", "a"]
    folds.main([*words, "--patients", str(painted / "patients.csv"), "--out", str(table)])
    return painted, table


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data/BACH", help="folder of the challenge data")
    parser.add_argument("--folds", default="folds/part_a.csv", help="table of folds")
    parser.add_argument("--run-dir", default="runs/recipes", help="folder of the runs")
    usual = [name for name in RECIPES if name not in ON_REQUEST]
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        default=[*usual, "large-batch+scaled-rate+warm-up"],
        help=f"recipes to try beside base, {', '.join(RECIPES)}; + joins several "
        f"(default: large-batch+scaled-rate+warm-up and all but {', '.join(ON_REQUEST)})",
    )
    parser.add_argument(
        "--once",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more recipes, with the first seed alone",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of base and --recipes")
    parser.add_argument("--epochs", type=int, default=25, help="passes over the patches")
    parser.add_argument("--quick", action="store_true", help="three recipes on a little trial data")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    args, common = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        if args.quick:
            args.data_dir, args.folds = paint(Path(temporary))
            args.run_dir, args.seeds, args.epochs = temporary, 1, 1
            args.recipes = ["softmax", "tta", "trees"]
            common = ["--backbone", "small", "--weights", "none", "--batch-size", "16", *common]
        counts = dict.fromkeys(args.once, 1) | dict.fromkeys(["base", *args.recipes], args.seeds)
        for name in counts:
            arguments(name)  # a misspelt name is said before hours of work
        # Base first, which others stand on.
        names = sorted(counts, key=lambda name: name != "base")
        # Seed by seed, so that a first table can be had early.
        for seed in range(args.seeds):
            for name in names:
                if seed < counts[name]:
                    train(args, common, name, seed)
        report({n: compare(Path(args.run_dir), n, range(counts[n])) for n in names}, common)


def report(results: dict[str, dict], common: Sequence[str]) -> None:
    """Print the table and the result as JSON."""
    header = ["recipe", "arguments", "seeds", "accuracy", "minus base", "sd over seeds"]
    header += [accuracy_names()["binary_accuracy"], "minus base", ""]
    rows = []
    for name, result in results.items():
        four, two = (
            [_without_unit(result[metric][key]) for key in ("score", "difference")]
            for metric in ("accuracy", "binary_accuracy")
        )
        sd = result["accuracy"]["sd"]
        compared = [four[1], "" if sd is None else f"{sd:.3f}", two[1], result["verdict"]]
        if name == "base":
            compared = [""] * 4
        cells = [name, " ".join(result["arguments"]), result["seeds"], four[0], *compared[:2]]
        rows.append([*cells, two[0], *compared[2:]])
    print(markdown(header, rows))
    unit = format_interval(results["base"]["accuracy"]["score"]).partition("(")[2].rstrip(")")
    print(f"\nMeans over seeds, intervals over {unit}. All runs: {' '.join(common) or 'plain'}.")
    print(to_json({"common": list(common), "recipes": results}))


def _without_unit(interval: dict) -> str:
    # It is the same in every cell, and said below the table.
    return format_interval(interval, 3).partition(" (")[0]


if __name__ == "__main__":
    exit_with(main)
