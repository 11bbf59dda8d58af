import json

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from bach import calibration
from bach.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    leave_fold_out,
    negative_log_likelihood,
    reliability,
)
from bach.classes import PROB_COLUMNS
from bach.core.errors import InputError


def true_probs(size=4000, seed=0):
    """Probabilities that are true, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([0.6] * 4, size)
    labels = (rng.random((size, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    return probs, labels


# Figures


def test_a_table_worked_out_by_hand():
    # Sure at 0.9 (right), 0.8 (wrong), 0.4 (right).
    probs = np.array([[0.9, 0.1, 0, 0], [0.1, 0.8, 0.1, 0], [0.2, 0.2, 0.2, 0.4]])
    table = reliability(probs, np.array([0, 3, 3]), bins=2)
    assert table["count"].tolist() == [1, 2]
    assert table["confidence"].tolist() == pytest.approx([0.4, 0.85])
    assert table["accuracy"].tolist() == [1, 0.5]
    error = expected_calibration_error(probs, np.array([0, 3, 3]), bins=2)
    assert error == pytest.approx((1 * 0.6 + 2 * 0.35) / 3)


def test_the_table_is_the_calibration_curve_of_scikit_learn():
    probs, labels = true_probs()
    table = reliability(probs, labels)
    right = probs.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probs.max(axis=1), n_bins=15)
    there = table["count"] > 0
    assert table.loc[there, "accuracy"].to_numpy() == pytest.approx(accuracy)
    assert table.loc[there, "confidence"].to_numpy() == pytest.approx(confidence)


def test_a_value_on_an_edge_belongs_to_the_bin_below_it():
    probs = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    assert reliability(probs, np.array([0, 0]), bins=2)["count"].tolist() == [1, 1]


def test_true_probabilities_have_next_to_no_error_and_overconfident_ones_have():
    probs, labels = true_probs(20_000)
    assert expected_calibration_error(probs, labels) < 0.015
    assert expected_calibration_error(apply_temperature(probs, 0.3), labels) > 0.1


def test_the_cross_entropy_is_that_of_scikit_learn_and_ln_4_of_knowing_nothing():
    probs, labels = true_probs(300)
    expected = log_loss(labels, probs, labels=range(4))
    assert negative_log_likelihood(probs, labels) == pytest.approx(expected, rel=1e-5)
    assert negative_log_likelihood(np.full((5, 4), 0.25), np.zeros(5, int)) == pytest.approx(
        np.log(4)
    )


def test_no_images_have_no_figure():
    nothing = np.zeros((0, 4)), np.zeros(0, int)
    assert reliability(*nothing)["count"].sum() == 0
    assert np.isnan(expected_calibration_error(*nothing))
    assert np.isnan(negative_log_likelihood(*nothing))
    assert fit_temperature(*nothing) == 1


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        (np.full((2, 3), 0.3), np.zeros(2, int)),
        (np.full((2, 4), 0.25), np.zeros(3, int)),
        (np.full((2, 4), np.nan), np.zeros(2, int)),
        (np.full((2, 4), 0.25), np.array([0, 4])),
    ],
)
def test_what_is_no_prediction_is_refused(probs, labels):
    with pytest.raises(ValueError, match="Received"):
        reliability(probs, labels)


# Temperature


def test_a_temperature_divides_the_logits():
    logits = np.random.default_rng(0).normal(0, 3, (50, 4))
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cool = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum(axis=1, keepdims=True)
    assert apply_temperature(soft, 2.5) == pytest.approx(cool)


def test_a_temperature_keeps_sums_answers_types_zeros_and_holes():
    probs = np.random.default_rng(0).dirichlet([0.1] * 4, (5, 6)).astype(np.float32)
    probs[0, 0], probs[1, 1] = [0, 0, 1, 0], np.nan
    for temperature in (0.05, 1.0, 20.0):
        scaled = apply_temperature(probs, temperature)
        assert scaled.dtype == np.float32
        assert scaled.shape == probs.shape
        assert np.isnan(scaled[1, 1]).all()
        assert scaled[0, 0].tolist() == [0, 0, 1, 0]
        there = np.isfinite(probs).all(axis=-1)
        assert scaled[there].sum(axis=-1) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(scaled[there].argmax(axis=-1), probs[there].argmax(axis=-1))
    assert apply_temperature(probs, 1.0)[there] == pytest.approx(probs[there], abs=1e-6)
    with pytest.raises(ValueError, match="positive"):
        apply_temperature(probs, 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fit_finds_the_temperature_that_was_put_in(temperature):
    probs, labels = true_probs(20_000)
    # Made too sure by 1 / T, corrected by T.
    distorted = apply_temperature(probs, 1 / temperature)
    assert fit_temperature(distorted, labels) == pytest.approx(temperature, rel=0.04)


def test_the_fit_is_the_minimum_of_a_fine_grid():
    probs, labels = true_probs(400)
    distorted = apply_temperature(probs, 0.5)
    found = negative_log_likelihood(
        apply_temperature(distorted, fit_temperature(distorted, labels)), labels
    )
    grid = [
        negative_log_likelihood(apply_temperature(distorted, t), labels)
        for t in np.arange(0.5, 5, 0.01)
    ]
    assert found <= min(grid) + 1e-6


def test_counts_of_classes_are_so_many_rows():
    probs, _ = true_probs(50)
    counts = np.random.default_rng(0).integers(0, 5, (50, 4))
    rows = np.repeat(np.arange(50), counts.sum(axis=1))
    labels = np.concatenate([np.repeat(np.arange(4), row) for row in counts])
    expected = fit_temperature(probs[rows], labels)
    assert fit_temperature(probs, counts) == pytest.approx(expected, rel=1e-4)


def test_answers_that_are_all_right_run_to_the_limit_and_say_so(caplog, monkeypatch):
    monkeypatch.setattr(calibration.log, "propagate", True)
    probs = np.tile([0.4, 0.2, 0.2, 0.2], (10, 1))
    assert fit_temperature(probs, np.zeros(10, int)) == pytest.approx(0.05, rel=0.01)
    assert "limit" in caplog.text


def test_a_fold_is_scaled_by_the_temperature_of_the_others():
    probs, labels = true_probs(600)
    folds = np.arange(600) % 3
    distorted = probs.copy()
    distorted[folds == 1] = apply_temperature(probs[folds == 1], 0.3)
    scaled, temperatures = leave_fold_out(distorted, labels, folds)
    others = folds != 1
    assert temperatures[1] == fit_temperature(distorted[others], labels[others])
    expected = apply_temperature(distorted[~others], temperatures[1])
    assert scaled[~others] == pytest.approx(expected)
    with pytest.raises(ValueError, match="two folds"):
        leave_fold_out(probs, labels, np.zeros(600, int))


# The tool


def run_folder(folder, fold=True, size=300):
    probs, labels = true_probs(size)
    probs = apply_temperature(probs, 0.4)
    table = pd.DataFrame({"image_id": [f"i{n:03}" for n in range(size)], "label": labels})
    table["predicted"] = probs.argmax(axis=1)
    table[list(PROB_COLUMNS)] = probs
    if fold:
        table["fold"] = np.arange(size) % 3
    folder.mkdir()
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


def test_the_tool_corrects_an_overconfident_run(tmp_path, capsys):
    run = run_folder(tmp_path / "run")
    assert calibration.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads((run / "calibration.json").read_text())
    assert result["images"] == 300
    assert result["temperature"] == pytest.approx(2.5, rel=0.2)
    assert result["ece_after"] < result["ece_before"]
    assert result["nll_after"] < result["nll_before"]
    assert set(result["temperature_of_fold"]) == {"0", "1", "2"}
    picture = cv2.imread(str(run / "reliability.png"))
    assert picture.shape[2] == 3


def test_a_fold_table_leaves_out_what_is_never_held_out(tmp_path):
    run = run_folder(tmp_path / "run", fold=False, size=30)
    folds = tmp_path / "folds.csv"
    rows = [f"I{n:03}.tif,{n % 3 - 1}" for n in range(27)]
    folds.write_text("\n".join(["image_id,fold", *rows]) + "\n")
    probs, labels, fold = calibration.read_predictions(run, folds)
    assert len(probs) == len(labels) == 18
    assert set(fold) == {0, 1}


def test_a_run_without_folds_or_probabilities_is_refused(tmp_path):
    run = run_folder(tmp_path / "run", fold=False)
    with pytest.raises(InputError, match="--folds"):
        calibration.main([str(run)])
    table = pd.read_csv(run / "predictions.csv").assign(fold=0)
    table.to_csv(run / "predictions.csv", index=False)
    with pytest.raises(InputError, match="two folds"):
        calibration.main([str(run)])
    table[["image_id", "label", "predicted"]].to_csv(run / "predictions.csv", index=False)
    with pytest.raises(InputError, match="prob_normal"):
        calibration.main([str(run)])
    with pytest.raises(InputError, match="readable"):
        calibration.main([str(tmp_path)])


@pytest.mark.parametrize("cell", ["3.0", "0.9", "-0.1", "word", ""])
def test_what_is_no_probability_is_refused(tmp_path, cell):
    run = run_folder(tmp_path / "run", size=30)
    table = pd.read_csv(run / "predictions.csv", dtype=str)
    table.loc[[4, 5], "prob_normal"] = cell
    table.to_csv(run / "predictions.csv", index=False)
    with pytest.raises(InputError, match=r"predictions\.csv must be (?s:.)*rows 5, 6"):
        calibration.main([str(run)])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"temperature": "1"}', '{"temperature": 0}'])
def test_a_damaged_temperature_is_named(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"calibration\.json(?s:.)*bach\.calibration"):
        calibration.stored_temperature(tmp_path)
