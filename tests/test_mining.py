"""Difficulty, the hardest patches, and the even draw."""

import numpy as np
import pandas as pd
import pytest

from bach.core.log import log
from bach.mining import add_difficulty, difficulty, draw_evenly, hardest


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
