"""Text for people."""

import pytest

from bach.core.text import columns, duration, listed, markdown, number


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (245, "4 min 5 s"), (7380, "2 h 3 min")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_long_list_is_cut():
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_an_undefined_number_is_said():
    assert [number(x, 2) for x in (0.125, None, float("nan"), float("inf"))] == ["0.12", *"---"]


def test_columns_are_aligned_for_the_terminal():
    text = columns(["slide", "score"], [["A01", "0.65"], ["a long name", "0.7"]])
    assert text.split("\n") == ["slide        score", "A01           0.65", "a long name    0.7"]


def test_a_bar_in_a_cell_does_not_end_it():
    lines = markdown(["a", "b"], [["x|y", 1]]).split("\n")
    assert lines == ["| a    | b   |", "| ---- | --- |", "| x\\|y | 1   |"]
