"""The benchmark of intervals, and in small what it shows: they hold what they promise."""

import json

import numpy as np
import pandas as pd
import pytest

from bach.honest.comparison import figure_of, minus
from bach.honest.intervals import accuracy_worth, limits
from benchmarks import coverage

REAL = coverage.patient_tables()[coverage.REAL]
DRAWS = 2000
SLACK = 3 * np.sqrt(0.05 * 0.95 / DRAWS)


def percentiles(units, figure, samples=500):
    """Ends of the plain bootstrap interval, of many sets of units at once."""
    count = units.shape[-2]
    rng = np.random.default_rng(0)
    weights = rng.multinomial(count, np.full(count, 1 / count), samples)
    drawn = figure(np.einsum("su,duk->dsk", weights, units, optimize=True))
    return np.quantile(drawn, [0.025, 0.975], axis=1)


def held(ends, truth):
    low, high = ends
    return np.mean((low <= truth) & (truth <= high))


def test_the_real_patients_are_those_of_the_committed_table():
    assert REAL.shape == (29, 4)
    assert REAL.sum() == 145
    assert accuracy_worth(np.repeat(REAL, 4, axis=1)) == pytest.approx(9.605, abs=1e-3)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("correlation", [0.3, 0.5])
def test_intervals_of_the_real_patients_hold_the_truth_where_percentiles_do_not(
    metric, correlation
):
    accuracy = 0.9
    rng = np.random.default_rng(0)
    chance = coverage.chances(rng, (DRAWS, len(REAL)), accuracy, correlation)
    sums = coverage.answer(rng, REAL, chance)
    ends = limits(sums, figure_of(metric), accuracy_worth(sums[0], metric))
    least, most = coverage.PROMISED
    assert least - SLACK <= held(ends, accuracy) <= most + SLACK
    assert held(percentiles(sums[:500], figure_of(metric)), accuracy) < 0.9


@pytest.mark.parametrize("slides", [5, 10])
def test_equal_runs_are_rarely_told_apart_on_a_few_slides(slides):
    rng = np.random.default_rng(0)
    one, other = (coverage.slides(rng.beta(6, 4, (DRAWS, slides))) for _ in range(2))
    both = np.concatenate([one, other], axis=-1)
    low, high = limits(both, minus("score"), slides, lowest=-1.0)
    assert np.mean(low > 0) < 0.025 + SLACK
    assert np.mean(high < 0) < 0.025 + SLACK
    assert held((low, high), 0) > 0.95 - SLACK
    assert held(percentiles(both, minus("score")), 0) < 0.92


def test_the_table_has_all_cells_and_a_summary(tmp_path, capsys):
    assert coverage.main(["--replicates", "20", "--out", str(tmp_path / "c.csv")]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert set(result) >= {"real_coverage", "null_errors", "broken"}
    table = pd.read_csv(tmp_path / "c.csv")
    patients, figures = 3 * len(coverage.VALUES) * len(coverage.CORRELATION), 6
    slides = len(coverage.SLIDES) * len(coverage.CONCENTRATION) * len(coverage.VALUES) * 3
    assert len(table) == patients * figures + slides
    assert table["coverage"].between(0, 1).all()
    assert (table.loc[table["worth"] < 5, ["better", "worse"]].fillna(0) == 0).all(axis=None)


def test_the_same_seed_gives_the_same_table():
    tables = [coverage.simulate(10, seed) for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_the_committed_table_keeps_both_promises():
    table = pd.read_csv(coverage.PATIENTS.parent.parent / "docs" / "results" / "coverage.csv")
    assert coverage.summary(table, replicates=40_000)["broken"] == []
