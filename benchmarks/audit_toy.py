"""Does the patient-safe estimate hold on the hidden test, and does the leaky one lie?

Paints trial data sets with `bach.toy`, one per seed, and scores the cheap model of
`python -m bach.folds audit` on each: cross-validated under patient-safe and under
leaky folds, and on the hidden test photos, which are of other patients.

The settings matter, since the two errors are of opposite sign. With 12 patients (28
photos per class, 6 folds, 6 sets) the safe estimate was 14 points too low and the leaky one
5 too high: whoever holds out one of three patients whose main class is Benign trains on
a third fewer Benign photos. With 24 patients of fewer than three photos there was little
to leak, 0.69 safe and 0.73 leaky. So: many patients, six photos each, many folds.

Score: mean of 12 sets 0.644 safe, 0.783 leaky, 0.706 hidden test. The safe interval
holds the hidden test in 9 sets of 12, the leaky one in 4. The safe estimate errs on the
careful side, in part because its rounds see fewer patients than the final model (last
column: the same rounds on the hidden test).

Reads:   nothing.
Writes:  DIR/<seed>/ (data, deleted after its features are taken) and DIR/features/<seed>/.
Command: python benchmarks/audit_toy.py --dir /tmp/audit_toy
Time:    45 s per set on one core; --quick paints two small sets, 20 s.
Prints a Markdown table; the last line is JSON.
"""

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach import data
from bach.classes import CLASSES
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.log import log
from bach.core.options import option, parse
from bach.core.tables import image_key
from bach.core.text import markdown
from bach.honest import audit
from bach.honest.features import COLOUR_AND_TEXTURE, read_features
from bach.honest.learners import Learner, Logistic, Trees
from bach.honest.splits import make_folds, read_patients, with_patients
from bach.labels import read_labels
from bach.toy.dataset import Recipe, make_data_set

ESTIMATES = ("safe", "leaky")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    dir: str | None = option(None, "folder to work in (default: a temporary one)")
    seeds: int = option(12, "number of data sets", at_least=2)
    patients: int = option(32, "patients per data set", at_least=2)
    images: int = option(48, "photos per class", at_least=1)
    test_images: int = option(15, "test photos per class", at_least=1)
    folds: int = option(8, "folds of the cross-validation", at_least=2)
    stain_shift: float = option(1.5, "how far the patients' looks differ", at_least=0)
    draws: int = option(1, "draws of the folds per data set", at_least=1)
    trees: int = option(200, "size of the tree ensemble", at_least=1)
    features: str = option(audit.COLOUR, "as of the audit: colour, or a backbone")
    photo_width: int = option(
        768, "px at 0.42 um; half of a real photo's, four times as fast", above=0
    )
    quick: bool = option(False, "two small data sets")


QUICK = {
    "seeds": 2,
    "patients": 8,
    "images": 6,
    "test_images": 3,
    "draws": 2,
    "trees": 50,
    "photo_width": 512,
}


def score_data_set(folder: Path, features_dir: Path, args: Options) -> dict:
    """All figures of one trial data set: those of `measure_gap`, and `test`."""
    images = data.list_images(folder, "A")
    hidden = data.list_images(folder, "A-test")
    truth = read_labels(folder / "truth" / "part_a.csv", "truth").set_index("key")["label"]
    hidden = hidden.assign(label=hidden["image_id"].map(image_key).map(truth).astype(int))
    describer = COLOUR_AND_TEXTURE
    if args.features != audit.COLOUR:
        from bach.network.photo_features import pooled_features

        describer = pooled_features(args.features)
    photos = pd.concat([images, hidden], ignore_index=True)
    features = read_features(photos, features_dir, describer)
    table = with_patients(images, read_patients(folder / "patients.csv"))
    named = table.assign(label=[CLASSES[label] for label in table["label"]])
    answers = audit.score_twice(features, named, args.folds, args.draws, _learner(args))
    truth = hidden.set_index("image_id")["label"]
    test = audit.score_hidden(features, table, truth, _learner(args), args.draws)
    rounds = rounds_on_hidden(features, named, truth, args)
    return audit.measure_gap(answers) | {"test": test, "rounds": rounds}


def _learner(args: Options) -> Learner:
    return Trees(args.trees) if args.features == audit.COLOUR else Logistic()


def rounds_on_hidden(
    features: pd.DataFrame, table: pd.DataFrame, truth: pd.Series, args: Options
) -> float:
    """Mean accuracy on the hidden test of the very models of the safe rounds.

    The cross-validated figure is an estimate of this; the model trained on all photos
    has seen more patients and is better.
    """
    hits = []
    numbered = table.assign(label=table["label"].map(CLASSES.index))
    for seed in range(args.draws):
        fold = make_folds(table, args.folds, seed, "train")["fold"].to_numpy()
        for k in range(args.folds):
            known = numbered[fold != k]
            score = audit.score_hidden(features, known, truth, _learner(args), 1)
            hits.append(score["value"])
    return float(np.mean(hits))


def mean_difference(first: list[float], second: list[float]) -> dict:
    """Mean of first minus second over data sets, with Student's 95% interval."""
    difference = np.array(first) - np.array(second)
    half = stdtrit(len(difference) - 1, 0.975) * difference.std(ddof=1) / len(difference) ** 0.5
    mean = float(difference.mean())
    return {"value": mean, "low": mean - float(half), "high": mean + float(half)}


def main(argv: list[str] | None = None) -> None:
    args = parse(Options, argv, __doc__)
    if args.quick:
        args = Options(**dataclasses.asdict(args) | QUICK)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(args.dir or temporary)
        results = {}
        for seed in range(args.seeds):
            folder, features_dir = base / str(seed), base / "features" / str(seed)
            if folder.exists():
                shutil.rmtree(folder)  # what an interrupted call left
            recipe = Recipe(
                seed=seed,
                patients=args.patients,
                images=args.images,
                test_images=args.test_images,
                slides=0,
                test_slides=0,
                stain_shift=args.stain_shift,
                photo_size=(args.photo_width, args.photo_width * 3 // 4),
            )
            make_data_set(folder, recipe)
            results[seed] = score_data_set(folder, features_dir, args)
            shutil.rmtree(folder)
            log.info("data set %d: %s", seed, ", ".join(_cells(results[seed])))
    report(results)


def report(results: dict[int, dict]) -> None:
    """Print the table, the mean differences, and the result as JSON."""
    values = {
        name: [result[name]["value"] for result in results.values()]
        for name in ("safe", "leaky", "test")
    }
    values["rounds"] = [result["rounds"] for result in results.values()]
    means = {name: float(np.mean(value)) for name, value in values.items()}
    right = {name: sum(_holds(result, name) for result in results.values()) for name in ESTIMATES}
    rows = [[str(seed), *_cells(result)] for seed, result in results.items()]
    held = [f"{right[name]} of {len(results)}" for name in ESTIMATES]
    figures = [f"{means[name]:.3f}" for name in ("safe", "leaky", "test")]
    rows.append(["mean", *figures, *held, f"{means['rounds']:.3f}"])
    header = ["data set", "patient-safe", "leaky", "hidden test", "safe right?", "leaky right?"]
    print(markdown([*header, "hidden test, models of the safe rounds"], rows))
    summary: dict[str, object] = {"seeds": len(results), "mean": means, "right": right}
    for name, against in (("safe", "test"), ("leaky", "test"), ("safe", "rounds")):
        gap = mean_difference(values[name], values[against])
        summary[f"{name}_minus_{against}"] = gap
        words = "hidden test" + (", models of the safe rounds" if against == "rounds" else "")
        print(f"\n{name} minus {words}: {audit.in_points(gap)}")
    print(to_json(summary | {"sets": results}))


def _holds(result: dict, name: str) -> bool:
    """Whether the interval of an estimate holds what the hidden test then showed."""
    return result[name]["low"] <= result["test"]["value"] <= result[name]["high"]


def _cells(result: dict) -> list[str]:
    cells = [
        f"{result[name]['value']:.2f} [{result[name]['low']:.2f}, {result[name]['high']:.2f}]"
        for name in ("safe", "leaky", "test")
    ]
    cells += ["yes" if _holds(result, name) else "no" for name in ESTIMATES]
    return [*cells, f"{result['rounds']:.2f}"]


if __name__ == "__main__":
    exit_with(main)
