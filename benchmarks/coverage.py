"""Do the intervals hold what they promise, and how often is a run called better by chance?

Draws many sets of answers whose truth is known, and asks the code that all commands use for
their 95% intervals: `bach.honest.intervals.limits` and the figures of `bach.honest.comparison`.

Images: every patient has a chance of a right answer of its own, from a beta distribution whose
mean gives the figure the true `value`; `correlation` is that of two images of a patient
(beta-binomial). A wrong answer is any other class alike. The patients are those of
`folds/patients.csv` with their real classes (29, with 36 to 1 images), 29 of five images, or 10
of fifteen. Slides: scores from a beta distribution with the mean `value`, as wide as those of
the paper's slides, or twice as wide.

A difference is that of two runs: equally good on patients or slides that both find hard
(`difference`), equally good but each with a difficulty of its own (`difference, apart`, the
worst case), or not equally good (`difference of 0.1`). Of those that are equal, `better` and
`worse` say how often `bach.runs compare` would call one so, which it never does with units that
are worth fewer than five.

Reads:   folds/patients.csv.
Writes:  the table as CSV, with --out.
Command: python benchmarks/coverage.py --out docs/results/coverage.csv
Time:    2 min on one core; --quick 2 s.
Prints a table; the last line is JSON. What it showed: docs/honest.md.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bach.classes import CARCINOMA, CLASSES
from bach.core.errors import exit_with
from bach.core.files import to_json
from bach.core.options import option, parse
from bach.core.tables import write_csv
from bach.core.text import columns, number
from bach.honest.comparison import figure_of, minus, paired_worth
from bach.honest.intervals import FEW_UNITS, accuracy_sums, limits
from bach.honest.splits import known_patients, read_image_table
from bach.scores import accuracy_names

PATIENTS = Path(__file__).resolve().parent.parent / "folds" / "patients.csv"
REAL = "29 real patients"
VALUES = (0.5, 0.7, 0.9)
CORRELATION = (0.1, 0.3, 0.5)
SLIDES = (4, 5, 10, 20)
# The two parameters of the beta distribution of a slide's score add up to this: a standard
# deviation of 0.07 at 0.6, that of always Benign on the paper's slides, and of 0.14.
CONCENTRATION = {"slides": 47.0, "slides, varied": 11.0}

# What must hold with the real patients (of a difference only the lower bound: two runs
# that mostly agree have an interval on the careful side), and of `compare` with any units.
PROMISED = (0.93, 0.97)
NULL = 0.05

_SHARES = ("coverage", "truth_below", "truth_above", "better", "worse")
_CHUNK = 1000  # draws in memory at once
_QUICK = 400


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    replicates: int = option(40_000, "draws per cell", at_least=1)
    seed: int = option(0, "seed of the draws", at_least=0)
    out: str | None = option(None, "CSV file to write the table to", path=True)
    skewed: bool = option(
        False,
        "add differences of slides with one long tail, where no interval of so few slides keeps "
        "its promise on the side of the tail",
    )
    quick: bool = option(False, f"{_QUICK} draws per cell, to try it out")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """What was drawn, and what it is called in the table.

    Attributes:
        metric: The figure, as `bach.honest.comparison.figure_of` names it.
        value: The true figure of the run.
        correlation: Of two images of a patient; None for slides.
        truth: The true figure or difference.
        sums: Sums of every unit, `(draws, units, sums)`.
        other: The same of the run that is taken off, or None.
    """

    units: str
    figure: str
    metric: str
    value: float
    correlation: float | None
    truth: float
    sums: np.ndarray
    other: np.ndarray | None = None


# Patients


def patient_tables() -> dict[str, np.ndarray]:
    """Images of every patient and class, `(patients, 4)`, by the name of the set."""
    table = read_image_table(PATIENTS)
    table = table[known_patients(table)]
    real = pd.crosstab(table["patient"], table["label"]).reindex(columns=CLASSES, fill_value=0)
    dealt = np.eye(len(CLASSES), dtype=int)[np.arange(150) % len(CLASSES)]
    return {
        REAL: real.to_numpy(),
        "29 even patients": dealt[:145].reshape(29, 5, -1).sum(axis=1),
        "10 even patients": dealt.reshape(10, 15, -1).sum(axis=1),
    }


def chances(
    rng: np.random.Generator, shape: tuple[int, int], accuracy: float, correlation: float
) -> np.ndarray:
    """Every patient's chance of a right answer, `(draws, patients)`."""
    total = (1 - correlation) / correlation
    return rng.beta(accuracy * total, (1 - accuracy) * total, shape)


def answer(rng: np.random.Generator, images: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Joint counts of every patient, `(draws, patients, 16)`, as of `accuracy_sums`.

    Args:
        images: Images of every patient and class, `(patients, 4)`.
        chance: See `chances`.
    """
    right = rng.binomial(images, chance[..., None])
    sums = np.zeros((*chance.shape, len(CLASSES) ** 2))
    classes = np.arange(len(CLASSES))
    for label in classes:
        others = classes[classes != label]
        shares = np.full(len(others), 1 / len(others))
        wrong = rng.multinomial((images - right)[..., label], shares)
        sums += right[..., label, None] * accuracy_sums([label], [label])
        sums += wrong @ accuracy_sums(np.full(len(others), label), others)
    return sums


def accuracy_for(binary: float) -> float:
    """The accuracy at which so many answers agree on carcinoma or not.

    Of the other classes that a wrong answer may be, some agree on it too.
    """
    agreeing = (CARCINOMA - 1) / (len(CLASSES) - 1)
    return (binary - agreeing) / (1 - agreeing)


def of_images(rng: np.random.Generator, draws: int) -> Iterator[Cell]:
    """Every cell of patients, with so many draws."""
    for name, images in patient_tables().items():
        for value, correlation in itertools.product(VALUES, CORRELATION):
            shape = (draws, len(images))
            chance = chances(rng, shape, value, correlation)
            less = 1 - 0.1 / value
            one, alike, worse = (answer(rng, images, chance * k) for k in (1, 1, less))
            apart = answer(rng, images, chances(rng, shape, value, correlation))
            two_class = answer(rng, images, chances(rng, shape, accuracy_for(value), correlation))
            for metric, title in accuracy_names().items():
                sums = two_class if metric == "binary_accuracy" else one
                yield Cell(name, title, metric, value, correlation, value, sums)
            for title, truth, other in (
                ("difference", 0.0, alike),
                ("difference, apart", 0.0, apart),
                ("difference of 0.1", 0.1, worse),
            ):
                yield Cell(name, title, "accuracy", value, correlation, truth, one, other)


# Slides


def slides(score: np.ndarray) -> np.ndarray:
    """Sums of slides of these scores and of as many pixels each, as of `slide_sums`."""
    one = np.ones_like(score)
    return np.stack([score, one, 1 - score, one], axis=-1)


def of_slides(rng: np.random.Generator, draws: int) -> Iterator[Cell]:
    """Every cell of slides, with so many draws."""
    for count in SLIDES:
        shape = (draws, count)
        for (kind, total), mean in itertools.product(CONCENTRATION.items(), VALUES):
            one, apart = (rng.beta(mean * total, (1 - mean) * total, shape) for _ in range(2))
            here, there = (slides(one + rng.normal(0, 0.02, shape)) for _ in range(2))
            about = ("score", mean, None)
            name = f"{count} {kind}"
            yield Cell(name, "score", *about, mean, slides(one))
            yield Cell(name, "difference", *about, 0.0, here, there)
            yield Cell(name, "difference, apart", *about, 0.0, slides(one), slides(apart))


def of_skewed_slides(rng: np.random.Generator, draws: int) -> Iterator[Cell]:
    """Differences of one long tail, which the data of a few slides cannot reveal."""
    for count in SLIDES:
        base = np.full((draws, count), 0.5)
        tail = base + 0.02 * (rng.exponential(1.0, base.shape) - 1)
        name = f"{count} slides, skewed"
        yield Cell(name, "difference", "score", 0.5, None, 0.0, slides(tail), slides(base))


# What came out


def measure(cell: Cell) -> dict:
    """How often the interval holds the truth, and how often it misses on either side."""
    other = cell.sums if cell.other is None else cell.other
    worth = paired_worth(cell.sums[0], other[0], cell.metric)
    if cell.other is None:
        low, high = limits(cell.sums, figure_of(cell.metric), worth)
    else:
        both = np.concatenate([cell.sums, cell.other], axis=-1)
        low, high = limits(both, minus(cell.metric), worth, lowest=-1.0)
    below, above = np.mean(cell.truth < low), np.mean(cell.truth > high)
    equal = cell.other is not None and cell.truth == 0
    decided = 1.0 if worth >= FEW_UNITS else 0.0
    return {
        "units": cell.units,
        "worth": round(worth, 1),
        "figure": cell.figure,
        "value": cell.value,
        "correlation": cell.correlation,
        "coverage": 1 - below - above,
        "truth_below": below,
        "truth_above": above,
        "better": below * decided if equal else np.nan,
        "worse": above * decided if equal else np.nan,
        "width": np.mean(high - low),
    }


def simulate(replicates: int, seed: int, skewed: bool = False) -> pd.DataFrame:
    """The table of all cells, one row each."""
    rng = np.random.default_rng(seed)
    makers = [of_images, of_slides, *([of_skewed_slides] if skewed else [])]
    names = [*_SHARES, "width"]
    parts = []
    for start in range(0, replicates, _CHUNK):
        draws = min(_CHUNK, replicates - start)
        rows = [measure(cell) for make in makers for cell in make(rng, draws)]
        parts.append((draws / replicates, pd.DataFrame(rows)))
    means = sum(share * part[names] for share, part in parts)
    return parts[0][1].assign(**means)


def summary(table: pd.DataFrame, replicates: int) -> dict:
    """What the table says of the two promises.

    Returns:
        `replicates`; `real_coverage`, the least and the most of the accuracies, and
        `real_differences`, the same of the differences; `null_errors` and `one_side`, the
        most of `better` and `worse` together and of one of them; and `broken`, the cells
        that miss a promise by over three standard errors.
    """
    real = table["units"] == REAL
    coverage, errors = table["coverage"], table["better"] + table["worse"]
    slack = 3 * np.sqrt(NULL * (1 - NULL) / replicates)
    least, most = PROMISED[0] - slack, PROMISED[1] + slack
    one = real & table["figure"].isin(accuracy_names().values())
    broken = (real & (coverage < least)) | (one & (coverage > most)) | (errors > NULL + slack)
    return {
        "replicates": replicates,
        "real_coverage": [coverage[one].min(), coverage[one].max()],
        "real_differences": [coverage[real & ~one].min(), coverage[real & ~one].max()],
        "null_errors": errors.max(),
        "one_side": table[["better", "worse"]].max(axis=None),
        "broken": table.loc[broken, ["units", "figure", "value", "correlation"]]
        .to_numpy()
        .tolist(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(Options, argv, __doc__)
    replicates = _QUICK if args.quick else args.replicates
    table = simulate(replicates, args.seed, args.skewed)
    shown = table.copy()
    for name in (*_SHARES, "width", "correlation"):
        shown[name] = [number(value, undefined="") for value in table[name]]
    if args.out is not None:
        write_csv(shown, args.out)
    header = [name.replace("_", " ") for name in shown]
    print(columns(header, shown.to_numpy().tolist()))
    print(to_json(summary(table, replicates)))
    return 0


if __name__ == "__main__":
    exit_with(main)
