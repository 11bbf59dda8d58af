"""The paper's figures, and the tables that lay ours beside them."""

import dataclasses

import numpy as np
from made_up import slide_record, slides_of_the_paper

from bach.honest.comparison import ALWAYS_BENIGN
from bach.honest.intervals import score_interval
from bach.reproduce import kwok2018
from bach.scores import score_from_counts


def _cells(table):
    """The rows of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {line[0]: line[1:] for line in reversed(lines)}


def test_the_papers_figures_are_found_by_what_they_were_measured_on():
    assert kwok2018.published("A", "3-fold", "accuracy") == 0.79
    assert kwok2018.published("A", "3-fold", "binary_accuracy") == 0.91
    assert kwok2018.published("A", "hidden", "accuracy") == 0.87
    assert kwok2018.published("B", "hidden", "score") == 0.6929
    assert kwok2018.published("B", "A01-A10", "score") == 0.75
    assert kwok2018.published("B", "A01-A10", "score", "always Benign") == 0.60


def test_the_papers_means_follow_from_its_slides():
    assert round(np.mean(list(ALWAYS_BENIGN.values())), 2) == 0.60
    assert round(np.mean(list(kwok2018.ALWAYS_BENIGN_TISSUE.values())), 2) == 0.53
    assert sum(kwok2018.CANDIDATES.values()) == 53_700


def test_slides_that_score_otherwise_than_in_the_paper_are_named():
    assert "all pixels: 10 of 10" in kwok2018.agreement(slides_of_the_paper())
    text = kwok2018.agreement(slides_of_the_paper(A03=0.70, A07=0.545))
    assert "all pixels: 9 of 10 slides as in the paper (+-0.01), others on A03;" in text
    assert "9 of 10" in kwok2018.agreement(slides_of_the_paper(A03=np.nan))


def test_in_sample_figures_are_marked_and_ours_have_their_interval():
    rng = np.random.default_rng(0)
    records = {}
    for name in ALWAYS_BENIGN:
        counts = rng.integers(1, 100, (4, 4))
        score = score_from_counts(counts)
        records[name] = slide_record(name, counts=counts, score=score, score_tissue=score)
    survey = slides_of_the_paper()
    row = _cells(kwok2018.part_b_table(survey, records))
    assert row["score"][:2] == ["0.75", "A01-A10, IN SAMPLE"]
    assert row["score, tissue only"][:2] == ["0.79", "A01-A10, IN SAMPLE"]
    assert row["score, hidden test"][0] == "0.6929"
    assert row["score, hidden test"][2] == "not reproducible"
    assert row["always Benign"][0] == "0.60"
    expected = score_interval({name: record.counts for name, record in records.items()})
    ends = f"{expected['value']:.3f} [{expected['low']:.3f}, {expected['high']:.3f}] (10 slides)"
    assert row["score"][2] == ends
    # The model that saw all slides has rows of its own.
    text = kwok2018.part_b_table(survey, records, in_sample=records)
    assert "| trained on them, IN SAMPLE" in text
    # A slide that a model saw is not in our figure.
    records["A01"] = dataclasses.replace(records["A01"], in_sample=True)
    assert "(9 slides)" in kwok2018.part_b_table(survey, records)
    slides = _cells(kwok2018.slides_table(survey, records))
    assert slides["A01"][-1] == "yes: in sample"
    assert slides["A02"][-1] == "no"


def test_slides_that_are_not_there_have_a_dash():
    survey = slides_of_the_paper()
    rows = _cells(kwok2018.slides_table(survey[survey["image_id"] != "A02"], {}))
    assert rows["A01"] == ["0.65", "0.650", "0.61", "0.610", "-", "-", "-"]
    assert rows["A02"] == ["0.60", "-", "0.52", "-", "-", "-", "-"]
