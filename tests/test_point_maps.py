import numpy as np
import pytest
from made_points import places, table

from bach import points
from bach.points import cluster, mark_hits, maxima

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
