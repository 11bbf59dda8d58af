"""The command `python -m bach.runs`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import heatmap_run, training_run, two_runs

from bach import runs
from bach.core.errors import InputError
from bach.honest.comparison import PUBLISHED, compare


@pytest.fixture
def pair(tmp_path):
    return two_runs(tmp_path)


def cells(line):
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split(" | ")]


# The leaderboard


def test_own_runs_stand_beside_published_figures_that_say_so(pair):
    lines = runs.table([pair[1], pair[0]]).splitlines()
    header, *rows = map(cells, lines[2:])
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows[1:3]] == ["good", "bad"]  # best first
    assert rows[1][1:3] == ["tiny", "25"]
    assert "(30 patients)" in rows[1][3]
    assert "abc1234*" in rows[1]
    assert rows[1][-1] == "`train_part_a.py --x a\\|b`"
    published = rows[3:]
    assert len(published) == sum(entry["part"] == "A" for entry in PUBLISHED)
    assert all(row[0].startswith("*published: ") and len(row[-1]) > 3 for row in published)


def test_a_heatmap_run_has_the_backbone_of_its_models_and_the_slides_it_beat(tmp_path):
    label = np.arange(4)
    model = training_run(tmp_path / "final", label, label, backbone="tiny", epochs=15)
    scores = {"A01": 0.7, "A02": 0.3, "A03": 0.9}
    run = heatmap_run(tmp_path / "maps", scores, in_sample={"A03"}, model_dir=str(model))
    lines = runs.table([run]).splitlines()
    row = cells(lines[4])
    assert row[:3] == ["maps (unfinished)", "tiny", "15"]
    assert row[3].startswith("0.500 [")
    # All pixels are invasive, so that always Benign scores 1/3 here.
    assert "2 slides; above always Benign on 1" in row
    assert cells(lines[-3])[:5] == ["maps", "0.700", "0.300", "0.900*", "-"]
    assert cells(lines[-2])[:4] == ["maps: always Benign", "0.333", "0.333", "0.333"]
    assert cells(lines[-1])[:4] == ["*published: always Benign*", "0.65", "0.60", "0.66"]
    seen = heatmap_run(tmp_path / "seen", scores, in_sample=set(scores))
    assert "3 slides, in sample (trained on them)" in runs.table([seen])


def test_without_runs_both_tables_show_what_is_published():
    text = runs.table([])
    assert "Part A." in text
    assert "0.6929" in text


def test_runs_of_the_same_name_have_a_row_each(tmp_path):
    one = heatmap_run(tmp_path / "one" / "maps", {"A01": 0.7})
    two = heatmap_run(tmp_path / "two" / "maps", {"A01": 0.3})
    lines = runs.table([one, two]).splitlines()
    assert [cells(line)[1] for line in lines if cells(line)[0] == "maps"] == ["0.700", "0.300"]


# The tools


def test_a_comparison_is_laid_out_with_its_note(tmp_path):
    label = np.arange(40) % 4
    patient = [f"P{n % 4}" for n in range(40)]
    a = training_run(tmp_path / "a", label, label, patient)
    b = training_run(tmp_path / "b", (label + 1) % 4, label, patient)
    lines = runs.format_comparison(compare(a, b)).splitlines()
    assert lines[2] == "40 images in common (0 only in A, 0 only in B: left out)"
    assert lines[5].startswith("accuracy (target)  1.0000  0.0000  1.0000 [")
    assert lines[-2] == "A is not distinguishable from B (accuracy)"
    assert lines[-1].startswith("note: only 4 patients")


def test_compare_ends_with_one_line_of_json_and_has_no_use_for_seeds(
    pair, capsys, caplog, monkeypatch
):
    monkeypatch.setattr(runs.log, "propagate", True)
    words = ["compare", str(pair[0]), str(pair[1])]
    assert runs.main(words) == 0
    plain = capsys.readouterr().out
    assert not caplog.text
    assert runs.main([*words, "--samples", "500", "--seed", "3"]) == 0
    assert "--samples and --seed do nothing" in caplog.text
    assert capsys.readouterr().out == plain
    lines = plain.splitlines()
    assert json.loads(lines[-1])["verdict"] == "better"
    assert "A is better than B (accuracy)" in lines


def test_table_prints_markdown(pair, capsys):
    assert runs.main(["table", str(pair[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[4])[:3] == ["good", "tiny", "25"]


def test_run_as_a_program_errors_give_exit_code_2_and_help_0(tmp_path):
    def program(*words):
        command = [sys.executable, "-m", "bach.runs", *words]
        root = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)

    wrong = program("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("InputError: ")
    assert "Traceback" not in wrong.stderr
    helped = program("compare", "--help")
    assert helped.returncode == 0
    assert "run_a" in helped.stdout


def test_a_damaged_record_is_named_and_a_missing_one_is_none(pair):
    (pair[0] / "run.json").unlink()
    assert "good" in runs.table([pair[0]])
    (pair[0] / "run.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"run\.json must hold JSON"):
        runs.table([pair[0]])
