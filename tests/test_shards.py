"""Parts of a run: who does what, and what is said of parts that are missing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bach.core.errors import InputError
from bach.core.shards import Shard, failures_of, read_shard, require_all


@given(some.lists(some.floats(0, 1e12), max_size=40), some.integers(1, 12))
def test_parts_share_everything_once_in_its_order(sizes, of):
    items = list(range(len(sizes)))
    parts = [Shard(k + 1, of).share(items, sizes) for k in range(of)]
    assert sorted(item for part in parts for item in part) == items
    assert all(part == sorted(part) for part in parts)


@given(some.lists(some.floats(0.1, 100), min_size=1, max_size=40), some.integers(1, 8))
def test_no_part_has_more_to_do_than_another_by_more_than_one_item(sizes, of):
    loads = [sum(Shard(k + 1, of).share(sizes, sizes)) for k in range(of)]
    assert max(loads) - min(loads) <= max(sizes) + 1e-9


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "1/1000000"]
)
def test_what_is_no_part_is_refused(text):
    with pytest.raises(InputError, match="I from 1 to N"):
        read_shard(text)


def test_a_part_is_read_with_blanks():
    assert read_shard(" 2 / 8 ") == (2, 8)


def test_what_parts_could_not_do_and_how_far_they_are_is_told(tmp_path):
    for number, status in ((1, "finished"), (2, "interrupted (SIGTERM)")):
        home = tmp_path / f"shards/{number}_of_3"
        home.mkdir(parents=True)
        (home / "run.json").write_text(json.dumps({"status": status}))
        (home / "failures.json").write_text(json.dumps({f"S{number}": "damaged"}))
    assert failures_of(tmp_path) == {"S1": "damaged", "S2": "damaged"}
    require_all(tmp_path, [], "slide")
    with pytest.raises(InputError) as error:
        require_all(tmp_path, ["A", "B"], "slide")
    assert "2 missing: A, B; parts: 2/3 interrupted (SIGTERM), 3/3 never begun" in str(error.value)
