"""The paper's figures, and the tables that lay ours beside them."""

import numpy as np
from made_up import slides_of_the_paper

from bach import paper
from bach.honest.comparison import ALWAYS_BENIGN
from bach.honest.intervals import score_interval
from bach.scores import score_from_counts


def test_the_papers_figures_are_found_by_where_they_were_measured():
    assert paper.published("A", "3-fold", "accuracy") == 0.79
    assert paper.published("A", "3-fold", "binary_accuracy") == 0.91
    assert paper.published("A", "hidden", "accuracy") == 0.87
    assert paper.published("B", "hidden", "score") == 0.6929
    assert paper.published("B", "A01-A10", "score") == 0.75
    assert paper.published("B", "A01-A10", "score", "always Benign") == 0.60


def test_the_papers_means_follow_from_itsslides_of_the_paper():
    assert round(np.mean(list(ALWAYS_BENIGN.values())), 2) == 0.60
    assert round(np.mean(list(paper.PAPER_TISSUE_BENIGN.values())), 2) == 0.53
    assert sum(paper.PAPER_CANDIDATES.values()) == 53_700


def test_slides_that_score_otherwise_than_in_the_paper_are_named():
    assert "all pixels: 10 of 10" in paper.agreement(slides_of_the_paper())
    text = paper.agreement(slides_of_the_paper(A03=0.70, A07=0.545))
    assert "all pixels: 9 of 10 slides as in the paper (+-0.01), others on A03;" in text
    assert "9 of 10" in paper.agreement(slides_of_the_paper(A03=np.nan))


def test_in_sample_figures_are_marked_and_ours_have_their_interval():
    rng = np.random.default_rng(0)
    records = {}
    for name in ALWAYS_BENIGN:
        counts = rng.integers(1, 100, (4, 4))
        score = score_from_counts(counts)
        records[name] = {
            "counts": counts.tolist(), "score": score, "score_tissue": score, "in_sample": False
        }  # fmt: skip
    text = paper.part_b_table(slides_of_the_paper(), {"heatmaps": records})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    row = {line[0]: line for line in lines}
    assert row["score"][1:3] == ["0.75", "A01-A10, IN SAMPLE"]
    assert row["score, tissue only"][1:3] == ["0.79", "A01-A10, IN SAMPLE"]
    assert row["score, hidden test"][1] == "0.6929"
    assert row["score, hidden test"][3] == "not reproducible"
    assert row["always Benign"][1] == "0.60"
    expected = score_interval({name: np.array(r["counts"]) for name, r in records.items()})
    ends = f"{expected['value']:.3f} [{expected['low']:.3f}, {expected['high']:.3f}] (10 slides)"
    assert row["score"][3] == ends
    # A slide that a model saw is not in our figure.
    records["A01"]["in_sample"] = True
    assert "(9 slides)" in paper.part_b_table(slides_of_the_paper(), {"heatmaps": records})
    assert "yes: in sample" in paper.slides_table(slides_of_the_paper(), records)
