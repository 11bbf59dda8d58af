"""Difficulty, the hardest patches, and the even draw."""

import numpy as np
import pandas as pd
import pytest

from bach.classes import COLORS, PROB_COLUMNS
from bach.core.errors import InputError
from bach.core.log import log
from bach.mining import (
    add_difficulty,
    difficulty,
    draw_evenly,
    draw_grid,
    draw_hard_examples,
    draw_uniformly,
    find_draw,
    hardest,
    mining_patches,
    one_per_place,
    write_draws,
)
from bach.patches import SlideMaps


def test_invasive_called_benign_at_90_percent_has_difficulty_1_8():
    assert difficulty(3, 1, 0.9) == pytest.approx(1.8)


def test_difficulty_is_0_when_right_and_3_at_worst():
    assert difficulty(2, 2, 1.0) == 0
    assert difficulty(np.array([0, 3]), np.array([3, 0]), np.array([1.0, 0.5])).tolist() == [3, 1.5]


@pytest.mark.parametrize("arguments", [(4, 0, 0.5), (0, -1, 0.5), (0, 0, 1.5), (0, 0, np.nan)])
def test_difficulty_refuses_what_is_out_of_range(arguments):
    with pytest.raises(ValueError, match="must lie in"):
        difficulty(*arguments)


def test_difficulty_of_a_table_uses_the_predicted_class():
    table = pd.DataFrame(
        {
            "label": [3, 0],
            "prob_normal": [0.1, 0.7],
            "prob_benign": [0.6, 0.1],
            "prob_insitu": [0.2, 0.1],
            "prob_invasive": [0.1, 0.1],
        }
    )
    result = add_difficulty(table)
    assert result["predicted"].tolist() == [1, 0]
    assert result["difficulty"].tolist() == pytest.approx([1.2, 0])


def test_the_hardest_40_percent_are_taken_over_all_slides_together():
    table = pd.DataFrame({"image_id": ["A"] * 5 + ["B"] * 5, "difficulty": [*range(5), *[9] * 5]})
    chosen = hardest(table, 0.4)
    assert len(chosen) == 4
    assert set(chosen["image_id"]) == {"B"}
    assert chosen.equals(hardest(table, 0.4))


def test_the_draw_takes_a_quarter_of_each_class_and_all_of_a_rare_one_and_says_so(
    caplog, monkeypatch
):
    monkeypatch.setattr(log, "propagate", True)  # what caplog hears
    labels = [0] * 50 + [1] * 40 + [2] * 3 + [3] * 30
    table = pd.DataFrame(
        {"image_id": "A", "x": range(len(labels)), "y": 0, "label": labels, "difficulty": 1.0}
    )
    drawn = draw_evenly(table, 40, seed=1)
    assert caplog.messages == ["InSitu: only 3 candidates for 10 hard examples"]
    assert drawn["label"].value_counts().to_dict() == {0: 10, 1: 10, 2: 3, 3: 10}
    assert not drawn.duplicated().any()
    assert drawn.equals(draw_evenly(table, 40, seed=1))
    assert not drawn.equals(draw_evenly(table, 40, seed=2))


def _mined():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image_id": np.repeat(["A", "B", "C"], 40),
            "x": np.tile(np.arange(40.0), 3),
            "y": 0.0,
            "label": rng.integers(0, 4, 120),
        }
    )
    table[list(PROB_COLUMNS)] = rng.dirichlet(np.ones(4), 120)
    return add_difficulty(table)


FOLDS = pd.Series({"A": 0, "B": 1, "C": -1})


def test_every_draw_leaves_out_the_slides_of_its_fold_and_the_paper_s_none():
    drawn = draw_hard_examples(_mined(), FOLDS, 0.4, 12, seed=0)
    assert [name for name in drawn if name.startswith("draw_")] == ["draw_all", "draw_0", "draw_1"]
    assert "A" not in set(drawn["image_id"][drawn["draw_0"] == 1])
    assert "B" not in set(drawn["image_id"][drawn["draw_1"] == 1])
    assert (drawn[["draw_all", "draw_0", "draw_1"]].sum(axis=1) > 0).all()
    paper = draw_evenly(hardest(_mined(), 0.4, 0), 12, 0)
    same = drawn[drawn["draw_all"] == 1][paper.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, paper)


def test_what_a_held_out_slide_holds_changes_nothing_of_its_fold():
    table = _mined()
    one = draw_hard_examples(table, FOLDS, 0.4, 12, seed=0)
    table.loc[table["image_id"] == "A", ["label", "difficulty"]] = [3, 3.0]
    other = draw_hard_examples(table, FOLDS, 0.4, 12, seed=0)
    for draw, same in (("draw_0", True), ("draw_1", False), ("draw_all", False)):
        keys = ["image_id", "x", "label"]
        first, second = (t[t[draw] == 1][keys].reset_index(drop=True) for t in (one, other))
        assert first.equals(second) == same


def test_a_fold_finds_the_draw_that_left_out_its_slides(tmp_path):
    write_draws(tmp_path, FOLDS)
    folds = pd.DataFrame({"image_id": ["a.svs", "B", "C"], "patient": "", "fold": [0, 1, -1]})
    assert [find_draw(tmp_path, folds, fold) for fold in (0, 1, None)] == [
        "draw_0",
        "draw_1",
        "draw_all",
    ]
    # Other numbers for the same slides are the same folds.
    assert find_draw(tmp_path, folds.assign(fold=[1, 0, -1]), 1) == "draw_0"
    with pytest.raises(InputError, match=r"fold 0 holds out A, B; those of .* for other folds"):
        find_draw(tmp_path, folds.assign(fold=[0, 0, -1]), 0)
    # None of the slides that fold 2 holds out was mined: nothing of them decided.
    assert find_draw(tmp_path, folds, 2) == "draw_all"


def test_nothing_is_drawn_for_a_fold_whose_slides_the_models_have_seen(tmp_path):
    drawn = draw_hard_examples(_mined(), FOLDS, 0.4, 12, seed=0, seen=["a"])
    assert [name for name in drawn if name.startswith("draw_")] == ["draw_all", "draw_1"]
    write_draws(tmp_path, FOLDS, ["a", "d"])
    folds = pd.DataFrame({"image_id": ["a.svs", "B", "C", "D"], "patient": ""})
    folds = folds.assign(fold=[0, 1, -1, 2])
    assert find_draw(tmp_path, folds, 1) == "draw_1"
    assert find_draw(tmp_path, folds, None) == "draw_all"
    # Of fold 2 no slide was mined, but the models that chose were trained on it.
    for fold in (0, 2):
        with pytest.raises(InputError, match="models that have seen them"):
            find_draw(tmp_path, folds, fold)


def test_where_no_slide_is_ever_held_out_the_draw_is_that_of_all(tmp_path):
    write_draws(tmp_path, FOLDS)
    assert find_draw(tmp_path, None, None) == "draw_all"


def _patches(**counts):
    rows = [
        {"image_id": slide, "label": label, "x": float(x), "y": 0.0}
        for slide, of_slide in counts.items()
        for label, count in of_slide.items()
        for x in range(1000 * label, 1000 * label + count)
    ]
    return pd.DataFrame(rows)


def test_a_uniform_draw_shares_each_class_evenly_among_its_slides():
    table = _patches(a={0: 500, 3: 5}, b={0: 50, 3: 200}, c={0: 900}, d={1: 30, 2: 40})
    drawn = draw_uniformly(table, 80, seed=1)
    counts = drawn.groupby(["label", "image_id"]).size()
    assert counts[1].to_dict() == {"d": 20}
    assert counts[2].to_dict() == {"d": 20}
    assert counts[3].to_dict() == {"a": 5, "b": 15}  # what a lacks b gives
    assert sorted(counts[0]) == [6, 7, 7]
    assert not drawn.duplicated().any()
    assert drawn.equals(draw_uniformly(table, 80, seed=1))
    assert not drawn.equals(draw_uniformly(table, 80, seed=2))


def test_a_uniform_draw_takes_all_of_a_rare_class_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    table = _patches(a={0: 50, 1: 2, 2: 50, 3: 50})
    assert draw_uniformly(table, 40)["label"].value_counts().to_dict() == {
        0: 10,
        1: 2,
        2: 10,
        3: 10,
    }
    assert caplog.messages == ["Benign: only 2 patches for 10 to be drawn"]
    assert draw_uniformly(table.head(0), 40).empty


def test_of_patches_that_overlap_the_first_is_kept():
    table = pd.DataFrame(
        {
            "image_id": ["A", "A", "B", "A", "A", "A"],
            "x": [0.0, 50, 50, 100, 99, 0],
            "y": [0.0, 0, 0, 0, 0, 100],
            "size": 100.0,
        }
    )
    assert one_per_place(table, 10).index.tolist() == [0, 2, 3, 5]
    assert one_per_place(table, 2).index.tolist() == [0, 2]
    assert one_per_place(table.head(0), 5).empty


def test_the_grid_is_drawn_over_tissue_and_a_slide_without_patches_has_a_picture():
    tissue = np.zeros((300, 400), bool)
    tissue[50:250, 50:350] = True
    thumbnail = np.full((300, 400, 3), 240, np.uint8)
    maps = SlideMaps("Präparat", 6400, 4800, 0.467, 16, tissue, thumbnail=thumbnail)
    table = mining_patches(maps).assign(label=3)
    picture = draw_grid(maps, table)
    assert max(picture.shape[:2]) == 800
    wine = (picture == COLORS[3]).all(axis=2).sum()
    assert wine > 5_000
    bare = draw_grid(maps, table.head(0))
    assert (bare == COLORS[3]).all(axis=2).sum() < 300  # that of the legend
    warned = draw_grid(maps._replace(warnings=("it is dark",)), table)
    assert (warned[0] == (180, 0, 0)).all()
