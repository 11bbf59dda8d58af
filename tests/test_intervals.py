import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from bach.classes import PROB_COLUMNS
from bach.honest.intervals import (
    FEW_UNITS,
    accuracy_from_sums,
    accuracy_interval,
    accuracy_sums,
    bootstrap,
    format_interval,
    patient_units,
    predicted_labels,
    score_interval,
    slide_sums,
    unit_sums,
)


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def units(values):
    return np.column_stack([values, np.ones(len(values))])


def images(size=200, patients=29, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, size)
    patient = rng.integers(0, patients, size)
    # Patients differ in how hard they are, so that their images are alike.
    right = rng.random(size) < rng.beta(2, 1, patients)[patient]
    predicted = np.where(right, label, (label + rng.integers(1, 4, size)) % 4)
    return pd.DataFrame(
        {
            "image_id": [f"i{number:03}" for number in range(size)],
            "label": label,
            "predicted": predicted,
            "patient": [f"P{number}" for number in patient],
        }
    )


# The bootstrap


def test_an_interval_holds_its_value_and_says_its_units():
    result = bootstrap(units([0.2, 0.4, 0.6, 0.8, 0.5]), mean, unit="slides")
    assert result["value"] == pytest.approx(0.5)
    assert result["low"] < 0.5 < result["high"]
    assert (result["units"], result["unit"], result["warning"]) == (5, "slides", None)


def test_the_same_seed_gives_the_same_interval():
    values = units(np.random.default_rng(1).random(20))
    assert bootstrap(values, mean, seed=3) == bootstrap(values, mean, seed=3)
    assert bootstrap(values, mean, seed=3) != bootstrap(values, mean, seed=4)


def test_resamples_in_chunks_are_as_wide_as_normal_theory_says():
    values = np.random.default_rng(0).normal(0, 1, 900)  # 10,000 draws need nine chunks
    result = bootstrap(units(values), mean)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * error, rel=0.03)


@pytest.mark.parametrize(("count", "least"), [(10, 0.92), (30, 0.92)])
def test_intervals_cover_the_truth_as_often_as_they_say(count, least):
    # Scores of slides, Beta(6, 3.5): skewed as scores are. Plain percentiles reach
    # 0.91 with ten slides; 400 trials have a standard error of 0.011.
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        result = bootstrap(units(rng.beta(6, 3.5, count)), mean, samples=1000, seed=trial)
        hits += result["low"] <= 6 / 9.5 <= result["high"]
    assert least <= hits / 400 <= 0.985


def test_few_units_are_said_to_be_few_and_one_gives_no_interval():
    assert "only 4 slides" in bootstrap(units([0.1, 0.2, 0.3, 0.4]), mean, unit="slides")["warning"]
    one = bootstrap(units([0.5]), mean, unit="slides")
    assert (one["value"], one["low"], one["high"]) == (0.5, None, None)
    assert one["warning"] == "no interval: 1 slides"
    none = bootstrap(np.zeros((0, 2)), lambda sums: sums[..., 0] * np.nan)
    assert (none["value"], none["low"], none["units"]) == (None, None, 0)


def test_units_that_all_agree_are_not_taken_for_certainty_in_silence():
    result = bootstrap(units([1.0] * 20), mean, unit="patients")
    assert result["low"] == result["high"] == 1.0
    assert "agree" in result["warning"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"level": 1.0}, "level"), ({"samples": 0}, "samples"), ({"units": np.ones(3)}, "units")],
)
def test_arguments_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**{"units": units([1, 2]), "statistic": mean} | change)


# Part A


def test_the_accuracies_are_those_of_scikit_learn():
    table = images()
    y, p = table["label"], table["predicted"]
    assert accuracy_interval(table)["value"] == pytest.approx(oracle.accuracy_score(y, p))
    balanced = accuracy_interval(table, "balanced_accuracy")["value"]
    assert balanced == pytest.approx(oracle.balanced_accuracy_score(y, p))
    binary = accuracy_interval(table, "binary_accuracy")["value"]
    assert binary == pytest.approx(oracle.accuracy_score(y >= 2, p >= 2))


def test_every_resample_is_the_figure_of_the_images_drawn():
    table = images(40, 6)
    numbers, _ = patient_units(table)
    rows = accuracy_sums(table["label"], table["predicted"])
    drawn = [0, 0, 3, 5]
    chosen = pd.concat([table[numbers == number] for number in drawn])
    sums = unit_sums(rows, numbers)[drawn].sum(axis=0)
    expected = oracle.accuracy_score(chosen["label"], chosen["predicted"])
    assert accuracy_from_sums(sums) == pytest.approx(expected)
    chosen = chosen[chosen["label"] != 2]  # a class that no draw holds
    sums = accuracy_sums(chosen["label"], chosen["predicted"]).sum(axis=0)
    expected = oracle.recall_score(
        chosen["label"], chosen["predicted"], average="macro", labels=[0, 1, 3]
    )
    assert accuracy_from_sums(sums, "balanced_accuracy") == pytest.approx(expected)


def test_patients_widen_the_interval_that_images_alone_would_give():
    table = images(300, 20)
    by_patient = accuracy_interval(table)
    by_image = accuracy_interval(table.drop(columns="patient"))
    assert by_patient["units"] == 20
    assert by_image["units"] == 300
    width = by_patient["high"] - by_patient["low"]
    assert width > 1.5 * (by_image["high"] - by_image["low"])


def test_an_image_of_unknown_patient_stands_for_itself():
    table = images(6, 3)
    table["patient"] = ["P1", "P1", "", None, " ", "i005"]
    numbers, unit = patient_units(table)
    assert unit == "2 patients + 3 images"
    assert patient_units(table[:2])[1] == "patients"
    assert patient_units(table.drop(columns="patient"))[1] == "images"
    assert len(set(numbers)) == 5
    assert numbers[0] == numbers[1]
    # A patient named like an image is not that image.
    table["image_id"] = ["i000", "i001", "i005", "i003", "i004", "i006"]
    assert len(set(patient_units(table)[0])) == 5


def test_probabilities_decide_before_the_column_predicted():
    table = images(1).assign(
        predicted=0, **dict(zip(PROB_COLUMNS, [0.1, 0.2, 0.6, 0.1], strict=True))
    )
    assert predicted_labels(table).tolist() == [2]
    with pytest.raises(ValueError, match="prob_normal"):
        predicted_labels(images(1).drop(columns="predicted"))


def test_a_class_out_of_range_and_an_unknown_figure_are_errors():
    with pytest.raises(ValueError, match=r"0\.\.3"):
        accuracy_sums(np.array([0, 4]), np.array([0, 1]))
    with pytest.raises(ValueError, match="metric"):
        accuracy_interval(images(), "f1")


def test_a_table_without_images_has_no_figure():
    result = accuracy_interval(images(10).head(0))
    assert (result["value"], result["units"]) == (None, 0)
    assert format_interval(result) == "undefined (0 images)"


# Part B


def counts(right, wrong):
    """A slide whose invasive pixels are found or called Normal."""
    joint = np.zeros((4, 4), np.int64)
    joint[3, 3], joint[3, 0] = right, wrong
    return joint


def test_slides_weigh_alike_in_the_mean_and_by_pixels_in_the_pool():
    slides = {"A01": counts(90, 10), "A02": counts(1, 9)}
    assert score_interval(slides)["value"] == pytest.approx((0.9 + 0.1) / 2)
    assert score_interval(slides, pooled=True)["value"] == pytest.approx(91 / 110)


def test_a_slide_that_is_normal_everywhere_is_no_unit():
    empty = np.zeros((4, 4), np.int64)
    empty[0, 0] = 1000
    result = score_interval([counts(8, 2), empty, counts(6, 4)])
    assert result["units"] == 2
    assert result["value"] == pytest.approx(0.7)
    assert slide_sums([empty]).tolist() == [[0, 0, 0, 0]]
    assert score_interval([empty])["value"] is None
    assert score_interval({})["units"] == 0


def test_scores_of_ten_slides_have_an_interval_about_their_mean():
    rng = np.random.default_rng(0)
    right = rng.integers(400, 900, 10)
    result = score_interval([counts(r, 1000 - r) for r in right])
    spread = (right / 1000).std(ddof=1) / np.sqrt(10)
    # Student's t with 9 degrees of freedom.
    assert result["high"] - result["low"] == pytest.approx(2 * 2.262 * spread, rel=0.12)


# Words


def test_an_interval_is_printed_with_its_number_of_units():
    interval = {"value": 0.79, "low": 0.72, "high": 0.85, "units": 29, "unit": "patients"}
    assert format_interval(interval) == "0.79 [0.72, 0.85] (29 patients)"
    assert format_interval(interval, 3) == "0.790 [0.720, 0.850] (29 patients)"
    few = interval | {"units": FEW_UNITS - 1}
    assert format_interval(few) == "0.79 [0.72, 0.85] (4 patients, too few)"
    one = interval | {"units": 1, "low": None}
    assert format_interval(one) == "0.79 [no interval] (1 patient)"
    mixed = interval | {"units": 284, "unit": "29 patients + 255 images"}
    assert format_interval(mixed) == "0.79 [0.72, 0.85] (29 patients + 255 images)"
