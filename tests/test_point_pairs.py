import numpy as np
import pandas as pd
import pytest
from made_points import table
from sklearn import metrics as oracle

from bach import points
from bach.honest.intervals import format_interval
from bach.points import count, mark_hits, match

# Pairs


def test_the_highest_score_takes_the_nearest_and_one_figure_is_found_once():
    truth = table((0, 0), (10, 0))
    found = table((1, 0, 0.6), (4, 0, 0.9), (11, 0, 0.5))
    # 0.9 takes the figure at 0; 0.6 has none left within 7.5; 0.5 takes that at 10.
    assert match(found, truth, 7.5).tolist() == [-1, 0, 1]


def test_a_point_whose_nearest_is_taken_takes_the_next_within_the_radius():
    truth = table((0, 0), (6, 0))
    assert match(table((1, 0, 0.9), (2, 0, 0.8)), truth, 7.5).tolist() == [0, 1]


def test_the_radius_is_part_of_itself():
    assert match(table((7.5, 0)), table((0, 0)), 7.5).tolist() == [0]
    assert match(table((7.51, 0)), table((0, 0)), 7.5).tolist() == [-1]
    assert match(table((0.3, 0)), table((0, 0)), 0.1 * 3).tolist() == [0]


def test_nothing_found_and_nothing_there_pair_with_nothing():
    assert match(table(), table((0, 0)), 7.5).tolist() == []
    assert match(table((0, 0)), table(), 7.5).tolist() == [-1]


def test_a_higher_threshold_changes_no_pair_that_is_left():
    rng = np.random.default_rng(1)
    found = table(*np.column_stack([rng.uniform(0, 60, (40, 2)), rng.random(40)]))
    truth = table(*rng.uniform(0, 60, (25, 2)))
    pairs = match(found, truth, 7.5)
    assert len(set(pairs[pairs >= 0])) == (pairs >= 0).sum() > 5
    for threshold in (0.2, 0.5, 0.9):
        kept = found["score"] >= threshold
        again = match(found[kept].reset_index(drop=True), truth, 7.5)
        assert again.tolist() == pairs[kept].tolist()


# Counts


def cases():
    """Two patients with three slides, and one without any figure: tp 2, fp 2, fn 2."""
    found = pd.concat(
        [
            table((0, 0, 0.9), (50, 0, 0.4), image_id="a.tif"),
            table((0, 0, 0.8), image_id="B"),
            table((5, 5, 0.3), image_id="c"),
        ]
    )
    truth = pd.concat(
        [
            table((0, 1), (100, 0), image_id="A"),
            table((0, 0), (9, 9), image_id="b"),
        ]
    )
    return mark_hits(found, truth, 7.5), truth, {"A": "P1", "B": "P1", "c": "P2", "d": "P3"}


def test_figures_are_counted_per_case_whatever_the_spelling_of_the_slide():
    marked, truth, of_slide = cases()
    counts = count(marked, truth, of_slide)
    assert counts.to_numpy().tolist() == [[2, 1, 2], [0, 1, 0], [0, 0, 0]]
    assert counts.index.tolist() == ["P1", "P2", "P3"]
    counts = count(marked, truth, of_slide, threshold=0.8)
    assert counts.to_numpy().tolist() == [[2, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_a_slide_that_nobody_looked_at_has_no_points():
    marked, truth, _ = cases()
    with pytest.raises(ValueError, match="case"):
        count(marked, truth, {"A": "P1", "B": "P1"})


def test_precision_recall_and_f1_by_hand_and_by_scikit_learn():
    sums = np.array([6, 2, 4])
    label = [1] * 6 + [0] * 2 + [1] * 4
    predicted = [1] * 8 + [0] * 4
    for name, value in (("precision", 6 / 8), ("recall", 6 / 10), ("f1", 12 / 18)):
        found = float(points.figure(sums, name))
        assert found == pytest.approx(value)
        assert found == pytest.approx(getattr(oracle, f"{name}_score")(label, predicted))
    assert np.isnan(points.figure(np.zeros(3), "f1"))


def test_an_interval_is_over_patients_and_those_without_figures_say_nothing():
    rows = [[8, 2, 2], [3, 1, 2], [5, 0, 1], [2, 2, 2], [6, 1, 1], [4, 2, 0], [0, 0, 0]]
    counts = pd.DataFrame(rows, [f"P{n}" for n in range(7)], ["tp", "fp", "fn"])
    f1 = points.interval(counts)
    assert f1["value"] == pytest.approx(2 * 28 / (2 * 28 + 8 + 8))
    assert f1["low"] < f1["value"] < f1["high"]
    assert f1["units"] == 6
    assert "patients" in format_interval(f1)
    twice = pd.concat([counts, counts])  # as many patients with twice the points
    assert points.interval(twice)["low"] == pytest.approx(f1["low"])


def test_an_interval_of_nothing_is_undefined():
    counts = pd.DataFrame([[0, 0, 0]], ["P1"], ["tp", "fp", "fn"])
    assert points.interval(counts)["value"] is None
    assert points.interval(counts.iloc[:0])["value"] is None


def test_the_best_threshold_is_the_one_of_the_highest_f1():
    rng = np.random.default_rng(3)
    for _ in range(20):
        hit = rng.random(30) < 0.5
        score = (rng.integers(0, 10, 30) + 3 * hit) / 13
        marked, truths = pd.DataFrame({"score": score, "hit": hit}), int(hit.sum()) + 4

        def f1(threshold, score=score, hit=hit, truths=truths):
            tp, fp = hit[score >= threshold].sum(), (~hit[score >= threshold]).sum()
            return 2 * tp / (tp + fp + truths)

        best = max(map(f1, score))
        highest = max(x for x in score if f1(x) == best)
        assert points.best_threshold(marked, truths) == (highest, pytest.approx(best))


def test_without_a_true_point_there_is_no_best_threshold():
    marked = pd.DataFrame({"score": [0.5], "hit": [False]})
    for found in (marked, marked.iloc[:0]):
        with pytest.raises(ValueError, match="true"):
            points.best_threshold(found, 3)
