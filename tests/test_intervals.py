import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as oracle

from bach.classes import PROB_COLUMNS
from bach.honest.intervals import (
    FEW_UNITS,
    accuracy_from_sums,
    accuracy_interval,
    accuracy_sums,
    accuracy_worth,
    format_interval,
    jackknife,
    kish,
    limits,
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


# The jackknife


def test_an_interval_holds_its_value_and_says_its_units():
    result = jackknife(units([0.2, 0.4, 0.6, 0.8, 0.5]), mean, unit="slides")
    assert result["value"] == pytest.approx(0.5)
    assert result["low"] < 0.5 < result["high"]
    assert (result["units"], result["worth"], result["unit"]) == (5, 5, "slides")
    assert result["warning"] is None


def test_intervals_of_many_units_are_as_wide_as_normal_theory_says():
    values = np.random.default_rng(0).uniform(0.3, 0.7, 900)
    result = jackknife(units(values), mean)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert result["high"] - result["low"] == pytest.approx(2 * 1.963 * error, rel=1e-3)


def test_the_interval_of_a_difference_of_few_units_is_student_t():
    values = np.array([0.02, 0.05, -0.01, 0.03, 0.04])
    result = jackknife(units(values), mean, lowest=-1.0)
    margin = stats.t.ppf(0.975, 4) * stats.sem(values)
    assert result["low"] == pytest.approx(values.mean() - margin, abs=1e-4)
    assert result["high"] == pytest.approx(values.mean() + margin, abs=1e-4)


def test_the_interval_of_a_proportion_is_the_logit_interval_worked_out_by_hand():
    # 8 of 10 right: the standard error is sqrt(0.16 / 9) = 0.1333, on the logit scale
    # 0.1333 / 0.16 = 0.8333; the logit is ln 4, and t of 9 degrees of freedom 2.2622.
    result = jackknife(units([1] * 8 + [0] * 2), mean)
    low, high = (1 / (1 + np.exp(-np.log(4) + sign * 2.26216 * 0.83333)) for sign in (1, -1))
    assert result["low"] == pytest.approx(low, abs=1e-5)
    assert result["high"] == pytest.approx(high, abs=1e-5)


def test_uneven_units_are_worth_fewer_even_ones_and_have_a_wider_interval():
    assert kish([3, 3, 3]) == 3
    assert kish([9, 1]) == pytest.approx(100 / 82)
    sums = np.array([[14.0, 20], *[[3.0, 4]] * 5, *[[2.0, 4]] * 5])
    worth = kish(sums[:, 1])
    assert worth == pytest.approx(60**2 / (400 + 160), abs=1e-6)
    even, uneven = jackknife(sums, mean), jackknife(sums, mean, worth)
    assert uneven["low"] < even["low"]
    assert uneven["high"] > even["high"]
    assert (uneven["units"], uneven["worth"]) == (11, worth)


def test_one_unit_with_nearly_everything_leaves_nearly_everything_open():
    sums = np.array([[900.0, 1000], *[[1.0, 1]] * 3, [0, 1]])
    result = jackknife(sums, mean, kish(sums[:, 1]), unit="patients")
    assert result["worth"] == pytest.approx(1.008, abs=1e-3)
    assert (result["low"], result["high"]) == (0, 1)
    assert result["warning"] == "only 5 patients, worth 1.0: the interval is a rough guess"
    assert format_interval(result).endswith("[0.00, 1.00] (5 patients, worth 1.0, too few)")


def test_few_units_are_said_to_be_few_and_one_gives_no_interval():
    assert "only 4 slides" in jackknife(units([0.1, 0.2, 0.3, 0.4]), mean, unit="slides")["warning"]
    for count in (2, 3):
        few = jackknife(units([0.2, 0.9, 0.5][:count]), mean, unit="slides")
        assert 0 < few["low"] < few["value"] < few["high"] < 1
    one = jackknife(units([0.5]), mean, unit="slides")
    assert (one["value"], one["low"], one["high"]) == (0.5, None, None)
    assert one["warning"] == "no interval: 1 slide"
    none = jackknife(np.zeros((0, 2)), lambda sums: sums[..., 0] * np.nan)
    assert (none["value"], none["low"], none["units"]) == (None, None, 0)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_units_that_all_agree_are_not_taken_for_certainty(value, count):
    result = jackknife(units([value] * count), mean, unit="patients")
    unseen = 1 - 0.025 ** (1 / count)  # a share that so many units miss in 2.5%
    assert result["low"] == pytest.approx(value * (1 - unseen))
    assert result["high"] == pytest.approx(value + (1 - value) * unseen)
    assert result["high"] - result["low"] > 0.15
    assert ("rough guess" if count < FEW_UNITS else "all patients agree") in result["warning"]


def test_runs_that_are_alike_everywhere_may_still_differ_on_other_patients():
    result = jackknife(units([0.0] * 20), mean, lowest=-1.0)
    assert result["low"] == -result["high"] == pytest.approx(-(1 - 0.025 ** (1 / 20)))


@pytest.mark.parametrize("wrong", range(7))
def test_the_interval_mirrors_when_right_and_wrong_change_places(wrong):
    values = np.array([0] * wrong + [1] * (30 - wrong))
    ends = limits(np.stack([units(values), units(1 - values)]), mean, 30)
    assert np.allclose(ends[0], 1 - ends[1][::-1])
    assert (ends[0] >= 0).all()
    assert (ends[0] < ends[1]).all()


def test_many_sets_of_units_at_once_have_the_intervals_of_each():
    many = np.stack([units(np.random.default_rng(n).random(12)) for n in range(3)])
    low, high = limits(many, mean, 12)
    for row, sums in enumerate(many):
        each = jackknife(sums, mean)
        assert (each["low"], each["high"]) == pytest.approx((low[row], high[row]))


def test_a_figure_that_hangs_on_one_unit_has_no_interval():
    with np.errstate(invalid="ignore"):
        result = jackknife(np.array([[3.0, 4], [0, 0]]), mean, 1.0, unit="slides")
    assert (result["value"], result["low"]) == (0.75, None)
    assert result["warning"] == "no interval: undefined without one of the slides"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1.0}, "level"),
        ({"units": np.ones(3)}, "units"),
        ({"worth": 3.0}, "worth must be from 1 to 2"),
        ({"units": units([1, 2])}, "value"),
        ({"units": units([-0.1, -0.2])}, "value"),
    ],
)
def test_arguments_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        jackknife(**{"units": units([0.1, 0.2]), "statistic": mean} | change)


# Part A


def test_the_accuracies_are_those_of_scikit_learn():
    table = images()
    y, p = table["label"], table["predicted"]
    assert accuracy_interval(table)["value"] == pytest.approx(oracle.accuracy_score(y, p))
    balanced = accuracy_interval(table, "balanced_accuracy")["value"]
    assert balanced == pytest.approx(oracle.balanced_accuracy_score(y, p))
    binary = accuracy_interval(table, "binary_accuracy")["value"]
    assert binary == pytest.approx(oracle.accuracy_score(y >= 2, p >= 2))


def test_the_figure_of_sums_is_that_of_the_images_in_them():
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


def test_a_patient_with_most_images_of_a_class_makes_its_accuracy_uneven():
    # Six patients of four images; one of them has all but one of the images of class 2.
    labels = [[0, 0, 1, 1]] * 4 + [[0, 1, 3, 2], [2, 2, 2, 3]]
    table = pd.DataFrame({"label": np.ravel(labels), "predicted": np.ravel(labels)})
    table["image_id"] = [f"i{number}" for number in table.index]
    table["patient"] = [f"P{number // 4}" for number in table.index]
    assert accuracy_interval(table)["worth"] == 6
    # 1 / (images of the class)^2 per image: 9, 9, 4 and 2 images of the classes
    shares = [2 / 81 + 2 / 81] * 4 + [2 / 81 + 1 / 4 + 1 / 16, 3 / 16 + 1 / 4]
    assert accuracy_interval(table, "balanced_accuracy")["worth"] == pytest.approx(
        np.sum(shares) ** 2 / np.sum(np.square(shares)), abs=1e-6
    )
    assert accuracy_worth(accuracy_sums([0, 1], [0, 1]), "balanced_accuracy") == 2


def test_accuracies_of_1_and_of_nearly_1_leave_room_for_error():
    table = images(145).assign(patient=lambda rows: [f"P{n % 29}" for n in range(len(rows))])
    perfect = accuracy_interval(table.assign(predicted=table["label"]))
    assert perfect["value"] == perfect["high"] == 1
    assert 0.85 < perfect["low"] < 0.9
    table["predicted"] = table["label"]
    table.loc[0, "predicted"] = (table.loc[0, "label"] + 1) % 4
    nearly = accuracy_interval(table)
    assert 0.9 < nearly["low"] < 0.99 < nearly["value"] < nearly["high"] < 1


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


def test_pooled_slides_are_worth_what_their_pixels_weigh():
    slides = [counts(90, 10), counts(9, 1), counts(8, 2)]
    assert score_interval(slides)["worth"] == 3
    assert score_interval(slides, pooled=True)["worth"] == kish([100, 10, 10])


def test_scores_of_ten_slides_have_an_interval_about_their_mean():
    rng = np.random.default_rng(0)
    right = rng.integers(400, 900, 10)
    result = score_interval([counts(r, 1000 - r) for r in right])
    spread = (right / 1000).std(ddof=1) / np.sqrt(10)
    # Student's t with 9 degrees of freedom.
    assert result["high"] - result["low"] == pytest.approx(2 * 2.262 * spread, rel=0.02)


# Words


def test_an_interval_is_printed_with_its_number_of_units():
    interval = {"value": 0.79, "low": 0.72, "high": 0.85, "units": 29, "unit": "patients"}
    assert format_interval(interval) == "0.79 [0.72, 0.85] (29 patients)"
    assert format_interval(interval, 3) == "0.790 [0.720, 0.850] (29 patients)"
    few = interval | {"units": FEW_UNITS - 1}
    assert format_interval(few) == "0.79 [0.72, 0.85] (4 patients, too few)"
    one = interval | {"units": 1, "low": None}
    assert format_interval(one) == "0.79 [no interval] (1 patient)"
    mixed = interval | {"units": 284, "unit": "29 patients + 255 images", "worth": 65.5}
    assert format_interval(mixed) == "0.79 [0.72, 0.85] (29 patients + 255 images, worth 66)"
    uneven = interval | {"worth": 9.6}
    assert format_interval(uneven) == "0.79 [0.72, 0.85] (29 patients, worth 10)"
    assert format_interval(uneven | {"worth": 27.0}).endswith("(29 patients)")
