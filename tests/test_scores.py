import logging

import numpy as np
import pytest
from sklearn import metrics as oracle

from bach import scores
from bach.classes import CLASSES


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(scores.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def truth_and_prediction(seed=0, size=500):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, size)
    predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, 4, size))
    return truth, predicted


@pytest.mark.parametrize(("label", "score"), [(0, 1 / 7), (1, 0.6), (2, 0.6), (3, 0.4)])
def test_always_predicting_one_class_gives_the_published_scores(label, score):
    truth = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(10, 10)
    predicted = np.full_like(truth, label)
    assert scores.part_b_score(predicted, truth) == pytest.approx(score, abs=1e-12)


def test_a_map_worked_out_by_hand_scores_as_on_paper():
    predicted = np.array([[0, 1, 2], [3, 0, 1]], np.uint8)
    truth = np.array([[0, 1, 0], [0, 3, 2]], np.uint8)
    # errors 0 0 2 3 3 1; worst 0 2 3 3 3 2
    assert scores.part_b_terms(scores.joint_counts(predicted, truth)) == (9, 13)
    assert scores.part_b_score(predicted, truth) == pytest.approx(1 - 9 / 13)


def test_the_counts_agree_with_the_formula_written_out():
    rng = np.random.default_rng(0)
    p, g = rng.integers(0, 4, (2, 50, 70), dtype=np.uint8)
    mask = rng.random((50, 70)) < 0.5
    for keep in (np.ones_like(mask), mask):
        a, b = p[keep].astype(float), g[keep].astype(float)
        worst = np.maximum(b, 3 - b) * ((a > 0) | (b > 0))
        expected = 1 - np.abs(a - b).sum() / worst.sum()
        assert scores.part_b_score(p, g, keep) == pytest.approx(expected)


def test_always_one_class_has_the_counts_of_a_map_of_that_class():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 4, (2, 30, 40), dtype=np.uint8)
    counts = scores.joint_counts(predicted, truth)
    for label in range(4):
        everywhere = scores.joint_counts(np.full_like(truth, label), truth)
        assert np.array_equal(scores.always(counts, label), everywhere)
    assert np.array_equal(scores.always(counts), scores.always(counts, CLASSES.index("Benign")))


def test_uint8_maps_do_not_wrap_around():
    predicted, truth = np.zeros((4, 4), np.uint8), np.full((4, 4), 3, np.uint8)
    assert scores.part_b_score(predicted, truth) == 0.0
    assert scores.part_b_score(truth, predicted) == 0.0


def test_a_perfect_map_scores_one_and_two_empty_maps_have_no_score():
    truth = np.array([[0, 1], [2, 3]], np.uint8)
    assert scores.part_b_score(truth, truth) == 1.0
    assert np.isnan(scores.part_b_score(np.zeros_like(truth), np.zeros_like(truth)))


def test_a_mask_without_pixels_gives_no_score():
    truth = np.ones((2, 2), np.uint8)
    assert np.isnan(scores.part_b_score(truth, truth, np.zeros((2, 2), bool)))


@pytest.mark.parametrize(
    ("predicted", "mask", "text"),
    [
        (np.zeros((2, 3), np.uint8), None, "same shape"),
        (np.full((2, 2), 4, np.uint8), None, "values 4"),
        (np.full((2, 2), -1), None, "values -1"),
        (np.zeros((2, 2), np.float32), None, "not the heatmap"),
        (np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8), "must be bool"),
        (np.zeros((2, 2), np.uint8), np.ones((2, 3), bool), "shape of the maps"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused_with_the_reason(predicted, mask, text):
    with pytest.raises(ValueError, match=text):
        scores.part_b_score(predicted, np.zeros((2, 2), np.uint8), mask)


def test_slides_are_averaged_and_pooled_and_undefined_ones_are_said(messages):
    empty = np.zeros((5, 5), np.uint8)
    small, large = np.full((1, 1), 3, np.uint8), np.full((3, 3), 3, np.uint8)
    result = scores.score_part_b(
        [("a", np.zeros_like(small), small), ("b", large, large), ("c", empty, empty)]
    )
    assert result["per_slide"]["a"] == 0.0
    assert result["per_slide"]["b"] == 1.0
    assert result["score"] == 0.5
    assert result["score_pooled"] == pytest.approx(1 - 3 / 30)
    assert result["undefined"] == ["c"]
    assert "left out of the mean: c" in messages.text
    assert result["baseline"]["per_slide"] == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 2 / 3})


def test_a_slide_that_comes_twice_is_refused():
    one = np.ones((1, 1), np.uint8)
    with pytest.raises(ValueError, match="'a' twice"):
        scores.score_part_b([("a", one, one), ("a", one, one)])


def test_no_slides_at_all_have_no_score():
    result = scores.score_part_b([])
    assert np.isnan(result["score"])
    assert np.isnan(result["score_pooled"])


def test_the_figures_agree_with_scikit_learn():
    truth, predicted = truth_and_prediction()
    result = scores.part_a_metrics(truth, predicted)
    assert result["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert result["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(truth, predicted)
    )
    assert result["binary_accuracy"] == pytest.approx(
        oracle.accuracy_score(truth >= 2, predicted >= 2)
    )
    assert result["confusion"] == oracle.confusion_matrix(truth, predicted).tolist()
    for label, name in enumerate(CLASSES):
        true, called = truth == label, predicted == label
        assert result["sensitivity"][name] == pytest.approx(oracle.recall_score(true, called))
        assert result["specificity"][name] == pytest.approx(oracle.recall_score(~true, ~called))
    assert result["images"] == 500


def test_the_winners_published_sensitivities_give_accuracy_87():
    hits = (24, 18, 22, 23)  # .96 .72 .88 .92 of 25
    truth = np.repeat(np.arange(4), 25)
    predicted = truth.copy()
    for label, hit in enumerate(hits):
        rows = np.flatnonzero(truth == label)[hit:]
        predicted[rows] = (label + 1) % 4
    result = scores.part_a_metrics(truth, predicted)
    assert list(result["sensitivity"].values()) == pytest.approx([0.96, 0.72, 0.88, 0.92])
    assert result["accuracy"] == pytest.approx(0.87)


def test_a_class_without_images_has_no_sensitivity_and_is_left_out_of_the_balance():
    result = scores.part_a_metrics([0, 0, 1], [0, 1, 1])
    assert result["sensitivity"] == {"Normal": 0.5, "Benign": 1.0, "InSitu": None, "Invasive": None}
    assert result["balanced_accuracy"] == 0.75
    assert scores.part_a_metrics([2, 2], [2, 1])["specificity"]["InSitu"] is None


def test_the_accuracies_of_many_tables_at_once_are_those_of_each():
    tables = [scores.joint_counts(*truth_and_prediction(seed, 60)[::-1]) for seed in range(3)]
    for metric in scores.ACCURACIES:
        found = scores.accuracy_from_counts(np.array(tables, float), metric)
        assert found.tolist() == [float(scores.accuracy_from_counts(t, metric)) for t in tables]
    with pytest.raises(ValueError, match="metric"):
        scores.accuracy_from_counts(tables[0], "f1")


def test_no_images_at_all_give_no_figures():
    result = scores.part_a_metrics([], [])
    assert result["accuracy"] is None
    assert result["images"] == 0
