import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from bach import points
from bach.annotations.marks import read_marks
from bach.core.errors import InputError
from bach.honest.intervals import format_interval
from bach.points import cluster, count, mark_hits, match, maxima

# Maxima


def found(values, threshold, radius):
    table = maxima(np.asarray(values), threshold, radius)
    assert list(table.columns) == ["row", "col", "score"]
    return [tuple(row) for row in table.itertuples(index=False)]


def plain(values, threshold, radius):
    """The definition, word by word."""
    values = np.array(values, np.float64)
    left = ~np.isnan(values)
    rows, cols = np.indices(values.shape)
    out = []
    while (left & (np.nan_to_num(values, nan=-np.inf) >= threshold)).any():
        best = np.argmax(np.where(left, values, -np.inf))
        row, col = np.unravel_index(best, values.shape)
        out.append((row, col, values[row, col]))
        left &= (rows - row) ** 2 + (cols - col) ** 2 > radius**2
    return out


def test_the_highest_value_takes_all_within_the_radius_and_the_next_one_goes_on():
    row = [[0.9, 0.8, 0.7, 0.0, 0.6]]
    assert found(row, 0.5, 1) == [(0, 0, 0.9), (0, 2, 0.7), (0, 4, 0.6)]
    assert found(row, 0.5, 2) == [(0, 0, 0.9), (0, 4, 0.6)]
    assert found(row, 0.5, 4) == [(0, 0, 0.9)]


def test_the_radius_is_euclidean_and_its_end_belongs_to_it():
    values = np.zeros((5, 5))
    values[0, 0], values[3, 4], values[1, 1] = 0.9, 0.8, 0.7
    assert found(values, 0.5, 1.4) == [(0, 0, 0.9), (3, 4, 0.8), (1, 1, 0.7)]
    assert found(values, 0.5, 1.5) == [(0, 0, 0.9), (3, 4, 0.8)]
    assert found(values, 0.5, 4.99) == [(0, 0, 0.9), (3, 4, 0.8)]
    assert found(values, 0.5, 5) == [(0, 0, 0.9)]


def test_a_radius_in_um_loses_nothing_when_it_is_divided():
    assert 0.3 / 0.1 < 3
    assert found([[0.9, 0, 0, 0.8]], 0.5, 0.3 / 0.1) == [(0, 0, 0.9)]


def test_a_value_at_the_threshold_counts_and_one_that_is_not_known_does_not():
    assert found([[np.nan, 0.5, np.nan, 0.49]], 0.5, 0) == [(0, 1, 0.5)]
    assert found(np.full((2, 3), np.nan), 0.0, 1) == []


def test_of_equal_values_the_first_in_reading_order_is_taken():
    assert found(np.ones((3, 3)), 0.5, 1.5) == [(0, 0, 1), (0, 2, 1), (2, 0, 1), (2, 2, 1)]
    assert found(np.ones((2, 2), bool), 1, 0)[1] == (0, 1, 1)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (1, 1), (1, 9), (7, 1)])
def test_maps_of_any_size_have_maxima_or_none(shape):
    assert len(found(np.ones(shape), 0.5, 1e9)) == min(1, np.prod(shape))
    assert len(found(np.ones(shape), 0.5, np.inf)) == min(1, np.prod(shape))


@pytest.mark.parametrize("radius", [0, 1, 2.5, 6, 40])
def test_it_is_what_the_definition_says(radius):
    rng = np.random.default_rng(5)
    for shape in ((23, 31), (3, 50), (17, 2)):
        values = rng.integers(0, 12, shape) / 12  # with many ties
        values[rng.random(shape) < 0.1] = np.nan
        assert found(values, 0.4, radius) == plain(values, 0.4, radius)


def test_a_large_map_gives_points_that_are_apart():
    values = np.random.default_rng(0).random((1000, 1000), np.float32)
    table = maxima(values, 0.99, 6)
    places = table[["row", "col"]].to_numpy()
    apart = ((places[:200, None] - places[None]) ** 2).sum(axis=2)
    assert apart[apart > 0].min() > 36
    assert table["score"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("values", "threshold", "radius"),
    [(np.ones(4), 0.5, 1), (np.ones((2, 2)), np.nan, 1), (np.ones((2, 2)), 0.5, -1)],
)
def test_what_is_no_map_no_threshold_or_no_radius_is_refused(values, threshold, radius):
    with pytest.raises(ValueError, match="must be"):
        maxima(values, threshold, radius)


# Smoothing


def test_a_map_is_smoothed_over_a_disc_of_what_is_known():
    values = np.array([[0, 0, 0, 0], [0, 0.9, 0, np.nan], [0, 0, 0, 0.3]], np.float32)
    smooth = points.smooth(values, 1)
    assert smooth[1, 1] == pytest.approx(0.9 / 5)
    assert smooth[0, 1] == pytest.approx(0.9 / 4)  # beyond the edge is nothing
    assert smooth[1, 2] == pytest.approx(0.9 / 4)
    assert smooth[2, 3] == pytest.approx(0.3 / 2)
    assert np.isnan(smooth[1, 3])
    assert np.isnan(smooth).sum() == 1


def test_a_radius_below_a_cell_smooths_nothing():
    values = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    assert (points.smooth(values, 0.9) == values).all()
    assert points.smooth(np.zeros((0, 3)), 2).shape == (0, 3)
    assert points.smooth(np.full((1, 1), 0.5), 9)[0, 0] == pytest.approx(0.5)


# Places


def table(*rows, image_id="A"):
    """Points of x_um, y_um and perhaps score."""
    values = np.array([(*row, 0.5)[:3] for row in rows], float).reshape(-1, 3)
    frame = pd.DataFrame(values, columns=["x_um", "y_um", "score"])
    frame.insert(0, "image_id", image_id)
    return frame


def places(frame):
    return [tuple(row) for row in frame[["x_um", "y_um"]].to_numpy().tolist()]


def test_a_cell_is_a_point_in_its_middle_in_px_and_um():
    cells = maxima(np.array([[0.1, 0.9]]), 0.5, 0)
    row = points.of_cells(cells, "A 01", step=64, mpp=0.25).iloc[0]
    assert row.to_dict() == {
        **{"image_id": "A 01", "x_um": 24.0, "y_um": 8.0},
        **{"x": 96.0, "y": 32.0, "score": 0.9},
    }


def test_no_cells_are_no_points():
    empty = points.of_cells(maxima(np.zeros((2, 2)), 0.5, 1), "A", 64, 0.25)
    assert list(empty.columns) == list(points.COLUMNS)
    assert len(cluster(empty, 8)) == len(mark_hits(empty, empty, 8)) == 0


def test_points_within_a_radius_are_one_in_their_weighted_mean_with_the_highest_score():
    merged = cluster(table((0, 0, 0.2), (8, 0, 0.6), (30, 0, 0.4)), 8)
    assert places(merged) == [pytest.approx((6, 0)), (30, 0)]
    assert merged["score"].tolist() == [0.6, 0.4]


def test_a_chain_of_steps_is_one_point():
    assert len(cluster(table((0, 0), (8, 0), (16, 0), (24.1, 0)), 8)) == 2


def test_points_of_score_0_have_a_middle_too():
    assert places(cluster(table((0, 0, 0), (4, 0, 0)), 8)) == [(2, 0)]


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


# Files


def of_slide():
    return points.of_places(np.array([[96.0, 32.5], [1000.123456, 7]]), [0.9, 0.25], "Ä 1", 0.25)


def test_points_are_read_back_from_csv(tmp_path):
    path = tmp_path / "points.csv"
    points.write_points(of_slide(), path)
    assert path.read_text().splitlines()[0] == "image_id,x_um,y_um,x,y,score"
    back = points.read_points(path)
    pd.testing.assert_frame_equal(back, of_slide(), atol=1e-3, check_dtype=False)


def test_a_table_of_px_alone_is_one_of_points_and_one_without_places_is_none(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("image_id;x;y;name\nA;3;4,5;mf\n".replace("4,5", "4.5"))
    assert points.read_points(path)["y"].tolist() == [4.5]
    for text in ("image_id,x\nA,3\n", "image_id,x,y\nA,3,q\n", "x,y\n1,2\n"):
        path.write_text(text)
        with pytest.raises(InputError):
            points.read_points(path)


def test_the_platform_gets_points_in_mm(tmp_path):
    path = tmp_path / "points.json"
    points.write_multiple_points(of_slide(), path, "mitotic figure")
    assert json.loads(path.read_text()) == {
        "name": "mitotic figure",
        "type": "Multiple points",
        "points": [
            {"name": "mitotic figure", "point": [0.024, 0.008125, 0.0], "probability": 0.9},
            {"name": "mitotic figure", "point": [0.250031, 0.00175, 0.0], "probability": 0.25},
        ],
        "version": {"major": 1, "minor": 0},
    }


@pytest.mark.parametrize("offset", [(0, 0), (100, 7)])
def test_qupath_gets_annotations_that_are_read_back(tmp_path, offset):
    path = tmp_path / "p.geojson"
    points.write_qupath(of_slide(), path, {"mitotic figure": (255, 0, 0)}, offset)
    feature = json.loads(path.read_text())["features"][0]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["geometry"] == {
        "type": "Point",
        "coordinates": [96 - offset[0], 32.5 - offset[1]],
    }
    back = read_marks(path)
    np.testing.assert_allclose(back[["x", "y"]], of_slide()[["x", "y"]], atol=0.005)
    assert back["names"].tolist() == [("mitotic figure",)] * 2


def test_files_of_no_points_are_whole(tmp_path):
    none = of_slide().iloc[:0]
    points.write_qupath(none, tmp_path / "p.geojson", {"mf": (255, 0, 0)})
    points.write_multiple_points(none, tmp_path / "p.json", "mf")
    points.write_points(none, tmp_path / "p.csv")
    assert (
        len(read_marks(tmp_path / "p.geojson")) == len(points.read_points(tmp_path / "p.csv")) == 0
    )
    assert json.loads((tmp_path / "p.json").read_text())["points"] == []


@pytest.mark.parametrize("radius", [0, 1, 3.5, 20])
def test_points_apart_are_those_that_a_map_of_them_gives(radius):
    rng = np.random.default_rng(7)
    values = np.where(rng.random((40, 50)) < 0.2, rng.integers(1, 9, (40, 50)) / 9, 0)
    rows, cols = np.nonzero(values)
    every = table(*np.column_stack([cols, rows, values[rows, cols]]))
    left = points.apart(every, radius)
    expected = maxima(values, 0.1, radius)
    assert left["x_um"].tolist() == expected["col"].tolist()
    assert left["score"].tolist() == expected["score"].tolist()
    assert points.apart(every.iloc[:0], radius).empty
