import itertools
import json

import numpy as np
import pytest
from made_up import slide_record

from bach import labels, thresholds
from bach.core.errors import InputError
from bach.heatmap import cells_to_map, to_classes, to_heatmap
from bach.honest.records import write_slide
from bach.scores import joint_counts, part_b_score, score_from_counts
from bach.tasks import BACH
from bach.thresholds import (
    cell_histogram,
    count_truth,
    counts_of_thresholds,
    dinkelbach,
    fit_thresholds,
    leave_slides_out,
    quantise,
)


def slide(seed, size=(60, 80), noise=0.2):
    """A heatmap that tells the truth, more or less, with glass around it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    for label in rng.integers(0, 4, 8):
        row, col = rng.integers(0, size[0] - 10), rng.integers(0, size[1] - 10)
        truth[row : row + rng.integers(8, 30), col : col + rng.integers(8, 30)] = label
    heatmap = np.clip(truth / 3 + rng.normal(0.05, noise, size), 0, 1).astype(np.float32)
    heatmap[:, :10], truth[:, :10] = 0, 0
    return heatmap, truth


def histogram(values, truth):
    """Of pixels: each is a cell of its own."""
    return cell_histogram(np.asarray(values), np.eye(4, dtype=np.int64)[truth])


def mean_score(hists, triple):
    scores = [score_from_counts(counts_of_thresholds(hist, triple)) for hist in hists]
    scores = [score for score in scores if not np.isnan(score)]
    return np.mean(scores) if scores else np.nan


def pooled_score(hists, triple):
    return score_from_counts(sum(counts_of_thresholds(hist, triple) for hist in hists))


def brute_force(hists, figure):
    """Best figure of all triples on the scale, the one above 1 included."""
    scale = len(hists[0]) - 1
    steps = [step / scale for step in range(1, scale + 2)]
    triples = itertools.combinations_with_replacement(steps, 3)
    return np.nanmax([figure(hists, triple) for triple in triples])


# Histograms


def test_a_value_on_a_threshold_reaches_it_and_one_below_does_not():
    values = np.array([0.35, np.nextafter(np.float32(0.35), np.float32(0)), 0, 1, np.nan])
    assert quantise(values, 100).tolist() == [35, 34, 0, 100, 0]


def test_quantised_values_and_thresholds_compare_as_the_class_map_does():
    rng = np.random.default_rng(0)
    edges = (np.arange(10_001) / 10_000).astype(np.float32)
    below = np.nextafter(edges[1:], np.float32(0))
    assert np.array_equal(quantise(edges), np.arange(10_001))
    assert np.array_equal(quantise(below), np.arange(10_000))
    values = np.concatenate([rng.random(20_000, np.float32), edges, below])
    found = quantise(values)
    for step in (1, 7, 2500, 3333, 3500, 7000, 7500, 9999, 10_000):
        reached = to_classes(values, (step / 10_000, 2.0, 2.0)) > 0
        assert np.array_equal(found >= step, reached)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        quantise(np.array([0.5, 1.5]))


@pytest.mark.parametrize("triple", [(0.35, 0.7, 0.75), (0.25, 0.5, 0.75), (0.1, 0.1, 1.0001)])
def test_the_histogram_scores_as_the_class_map_does(triple):
    heatmap, truth = slide(0)
    counts = counts_of_thresholds(histogram(heatmap, truth), triple)
    assert np.array_equal(counts, joint_counts(to_classes(heatmap, triple), truth))


def test_counting_by_cells_is_counting_on_the_map(monkeypatch):
    monkeypatch.setattr(thresholds, "_CHUNK", 500)
    rng = np.random.default_rng(0)
    step, downsample = 37.3, 16.0
    truth = rng.integers(0, 4, (61, 83), dtype=np.uint8)
    cells = rng.random((27, 36)).astype(np.float32)
    on_map = cells_to_map(cells, step, downsample, truth.shape)
    counts = count_truth(truth, cells.shape, step, downsample)
    assert counts.sum() == truth.size
    assert np.array_equal(cell_histogram(cells, counts), histogram(on_map, truth))


# The search


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("pooled", [False, True])
def test_the_search_is_as_good_as_trying_every_triple(seed, pooled, monkeypatch):
    monkeypatch.setattr(thresholds, "_COLUMNS", 4)  # several blocks
    rng = np.random.default_rng(seed)
    hists = rng.integers(0, 50, (3, 10, 4)) * rng.integers(0, 2, (3, 10, 1))
    hists[:, 0, 0] += 500  # glass
    if seed % 3 == 1:
        # Heat where it is least grave: the best thresholds meet.
        hists *= np.maximum(0, 9 - np.abs(9 - 3 * np.arange(4) - np.arange(10)[:, None]))
    if seed % 3 == 2:
        # Normal everywhere: has a score only while something is called a lesion.
        hists[0, :, 1:] = 0
        hists[0, 5:] = 0
    triple, score = fit_thresholds(hists, pooled)
    figure = pooled_score if pooled else mean_score
    assert score == pytest.approx(brute_force(hists, figure), abs=1e-12)
    assert figure(hists, triple) == pytest.approx(score, abs=1e-12)
    assert 0 < triple[0] <= triple[1] <= triple[2]


def test_the_search_beats_every_triple_of_a_hundredth_grid():
    hists = [histogram(*slide(seed)) for seed in range(3)]
    _, score = fit_thresholds(hists)
    # All triples at once, on the scale of hundredths: sums of cells of that scale.
    coarse = [np.add.reduceat(hist, np.arange(0, 10_001, 100)) for hist in hists]
    paper = np.mean([scores_of_third(hist, 35, 70)[75 - 70] for hist in coarse])
    assert paper == pytest.approx(mean_score(hists, (0.35, 0.7, 0.75)))
    best = max(
        np.mean([scores_of_third(hist, one, two) for hist in coarse], axis=0).max()
        for one, two in itertools.combinations_with_replacement(range(1, 101), 2)
    )
    assert score >= best - 1e-12
    for triple in [(0.35, 0.7, 0.75), (0.25, 0.5, 0.75)]:
        assert score >= mean_score(hists, triple) - 1e-12


def scores_of_third(hist, one, two):
    """Scores of all third thresholds from the second on, each sum written out."""
    cost = np.abs(np.arange(4)[:, None] - np.arange(4))
    # Error of every step if it is class 0, 1, 2 or 3.
    as_class = hist @ cost
    begun = as_class[:one, 0].sum() + as_class[one:two, 1].sum()
    second = np.append(0, as_class[two:, 2].cumsum())
    third = np.append(as_class[two:, 3][::-1].cumsum()[::-1], 0)
    worst = (hist[:, 1:] @ [2, 2, 3]).sum() + 3 * hist[one:, 0].sum()
    return 1 - (begun + second + third) / worst


def test_a_heatmap_that_tells_the_truth_gets_a_perfect_score():
    truth = np.arange(4).repeat(10)
    triple, score = fit_thresholds([histogram(truth / 3, truth)])
    assert score == 1
    # The middle of what is equally good: far from every pixel.
    assert triple == pytest.approx((1 / 6, 1 / 2, 5 / 6), abs=2e-4)


def test_a_class_that_never_pays_begins_above_one():
    values, truth = np.array([0.0, 0.5, 0.9]), np.array([0, 1, 1])
    triple, score = fit_thresholds([histogram(values, truth)])
    assert score == 1
    assert triple[0] <= 0.5
    assert triple[1:] == (1.0001, 1.0001)
    assert to_classes(np.float32([0.0, 0.5, 1.0]), triple).tolist() == [0, 1, 1]


def test_glass_is_never_called_a_lesion():
    values, truth = np.zeros(50), np.ones(50, int)  # benign that nothing was predicted on
    triple, score = fit_thresholds([histogram(values, truth)])
    assert triple[0] > 0
    assert score == pytest.approx(0.5)


def test_slides_without_a_score_do_not_decide():
    normal = histogram(np.zeros(10), np.zeros(10, int))
    triple, score = fit_thresholds([normal, normal])
    assert triple == BACH.thresholds
    assert np.isnan(score)
    other = histogram(*slide(0))
    assert fit_thresholds([normal, other]) == fit_thresholds([other])
    with pytest.raises(ValueError, match="slide"):
        fit_thresholds([])


def test_a_slide_never_sees_thresholds_that_saw_it():
    hists = {f"A{n:02}": histogram(*slide(n)) for n in range(4)}
    folds = {"A00": 0, "A01": 0, "A02": 1, "A03": -1}
    result = leave_slides_out(hists, folds)
    assert list(result["counts"]) == ["A00", "A01", "A02"]
    first, _ = fit_thresholds([hists["A02"], hists["A03"]])
    second, _ = fit_thresholds([hists["A00"], hists["A01"], hists["A03"]])
    assert result["thresholds"] == {0: first, 1: second}
    assert np.array_equal(result["counts"]["A01"], counts_of_thresholds(hists["A01"], first))
    # What a held-out slide shows does not move its thresholds.
    changed = hists | {"A00": histogram(*slide(99))}
    assert leave_slides_out(changed, folds)["thresholds"][0] == first
    with pytest.raises(ValueError, match="other folds"):
        leave_slides_out({"A00": hists["A00"]}, folds)


# The rule on probabilities


def expected_ratio(probs, classes, weights):
    error = worst = 0.0
    for row, p, weight in zip(probs, classes, weights, strict=True):
        for g in range(4):
            error += weight * row[g] * abs(p - g)
            worst += weight * row[g] * max(g, 3 - g) * (p > 0 or g > 0)
    return error / worst if worst else np.inf


@pytest.mark.parametrize("seed", range(8))
def test_the_rule_is_as_good_as_trying_every_assignment(seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1.5, 0.2, 0.2, 0.2] if seed % 2 else [0.2] * 4, 5)
    weights = rng.integers(1, 6, 5)
    classes, ratio = dinkelbach(probs, weights)
    every = itertools.product(range(4), repeat=5)
    assert ratio == pytest.approx(min(expected_ratio(probs, c, weights) for c in every))
    assert ratio == pytest.approx(expected_ratio(probs, classes.tolist(), weights))


def test_sure_probabilities_give_the_classes_they_are_sure_of():
    probs = np.eye(4)[[0, 1, 2, 3, 3]]
    classes, ratio = dinkelbach(probs)
    assert classes.tolist() == [0, 1, 2, 3, 3]
    assert ratio == 0
    assert classes.dtype == np.uint8


def test_under_two_thirds_even_the_surely_normal_is_better_called_benign():
    # Half sure of nothing, half sure of Normal: the score of the first is 0.6 at best.
    probs = np.repeat([[0.25] * 4, [1, 0, 0, 0]], 10, axis=0)
    classes, ratio = dinkelbach(probs)
    assert ratio > 1 / 3
    assert (classes[10:] == 1).all()


def test_cells_without_prediction_stay_normal_and_take_no_part():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.3] * 4, (6, 8)).astype(np.float32)
    holed = probs.copy()
    holed[2:4] = np.nan
    classes, ratio = dinkelbach(holed)
    assert (classes[2:4] == 0).all()
    kept, same = dinkelbach(np.concatenate([probs[:2], probs[4:]]))
    assert ratio == pytest.approx(same)
    assert np.array_equal(classes[[0, 1, 4, 5]], kept)


def test_pixels_by_weight_are_pixels_repeated():
    probs = np.random.default_rng(1).dirichlet([0.4] * 4, 6)
    weights = np.array([1, 0, 3, 2, 0, 5])
    _, weighted = dinkelbach(probs, weights)
    _, repeated = dinkelbach(np.repeat(probs, weights, axis=0))
    assert weighted == pytest.approx(repeated)


def test_nothing_predicted_has_no_ratio():
    for probs in (np.zeros((0, 4)), np.full((3, 4), np.nan)):
        classes, ratio = dinkelbach(probs)
        assert (classes == 0).all()
        assert np.isnan(ratio)
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\)"):
        dinkelbach(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="weights"):
        dinkelbach(np.full((2, 4), 0.25), np.array([1, -1]))


def test_the_expected_score_comes_true_where_the_probabilities_are_true():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5, 0.2, 0.2, 0.2], 60_000)
    truth = (rng.random((60_000, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 3).astype(np.uint8)
    classes, ratio = dinkelbach(probs)
    score = part_b_score(classes, truth)
    assert score == pytest.approx(1 - ratio, abs=0.01)
    # Better than the likeliest class, and than thresholds on the expected class.
    assert score > part_b_score(probs.argmax(axis=1).astype(np.uint8), truth)
    _, by_thresholds = fit_thresholds([histogram(to_heatmap(probs), truth)])
    assert score > by_thresholds


# The tool


def heatmap_run(folder, count=4, in_sample=(), folds=True):
    step, downsample = 40.0, 16.0
    for name in ("heatmaps", "probs", "truth", "slides"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        name = f"A{number:02}"
        cells = rng.integers(0, 4, (8, 10)).repeat(3, axis=0).repeat(3, axis=1)
        probs = 0.6 * np.eye(4)[cells] + 0.4 * rng.dirichlet(np.ones(4), cells.shape)
        probs = probs.astype(np.float32)
        probs[:, :4] = np.nan
        cells[:, :4] = 0
        shape = (60, 75)  # 24 and 30 cells of 40 px at 16 px a pixel
        np.save(folder / "probs" / f"{name}.npy", probs)
        np.save(folder / "heatmaps" / f"{name}.npy", to_heatmap(probs))
        truth = cells_to_map(cells, step, downsample, shape).astype(np.uint8)
        labels.write_class_map(folder / "truth" / f"{name}.png", truth)
        record = slide_record(
            name,
            width=1200,
            height=960,
            step=step,
            downsample=downsample,
            fold=number % 2 if folds else None,
            in_sample=name in in_sample,
            counts=np.zeros((4, 4), int),
        )
        write_slide(folder / "slides" / f"{name}.json", record)
    write_slide(folder / "slides" / "unlabelled.json", slide_record("unlabelled"))
    return folder


def test_the_tool_scores_every_rule_and_keeps_thresholds_for_new_slides(tmp_path, capsys):
    run = heatmap_run(tmp_path / "run")
    assert thresholds.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    stored = json.loads((run / "thresholds.json").read_text())
    assert stored["thresholds"] == result["thresholds"]
    assert stored["fitted_on"] == ["A00", "A01", "A02", "A03"]
    assert set(stored["thresholds_of_fold"]) == {"0", "1"}
    rules = list(result["scores"])
    assert rules[0].startswith("Kwok 2018: 0.35 / 0.70 / 0.75")
    assert rules[-1].startswith("IN SAMPLE")
    assert result["scores"][rules[-1]]["score"]["value"] == pytest.approx(
        max(row["score"]["value"] for rule, row in result["scores"].items() if "cost" not in rule)
    )
    kwok = result["scores"][rules[0]]
    assert kwok["difference"]["value"] == 0
    assert "(4 slides, too few)" in lines[1]
    # The score is that of the class map made in full.
    scores = []
    for name in stored["fitted_on"]:
        values = np.load(run / "heatmaps" / f"{name}.npy")
        truth = labels.read_class_map(run / "truth" / f"{name}.png")
        on_map = cells_to_map(to_classes(values), 40.0, 16.0, truth.shape)
        scores.append(part_b_score(on_map, truth))
    assert kwok["score"]["value"] == pytest.approx(np.mean(scores))


def test_a_fold_table_decides_before_the_run_and_without_any_slides_stand_alone(tmp_path):
    run = heatmap_run(tmp_path / "run", folds=False)
    alone = thresholds.read_cells(run)
    assert [slide.fold for slide in alone.values()] == [0, 1, 2, 3]
    folds = tmp_path / "folds.csv"
    folds.write_text("image_id,fold\na00.svs,1\nA01,1\nA02,0\nA03,-1\n")
    named = thresholds.read_cells(run, folds)
    assert [slide.fold for slide in named.values()] == [1, 1, 0, -1]
    rules, _ = thresholds.apply_rules(named)
    assert all(list(counts) == ["A00", "A01", "A02"] for counts in rules.values())
    folds.write_text("image_id,fold\nA00,1\n")
    with pytest.raises(InputError, match="without A01, A02, A03"):
        thresholds.read_cells(run, folds)


def test_slides_that_the_model_was_trained_on_teach_nothing(tmp_path):
    run = heatmap_run(tmp_path / "run", in_sample={"A00", "A02"})
    assert list(thresholds.read_cells(run)) == ["A01", "A03"]
    with pytest.raises(InputError, match="trained in folds"):
        thresholds.read_cells(heatmap_run(tmp_path / "all", 1, in_sample={"A00"}))


def test_one_slide_has_no_leave_slides_out_and_still_a_table(tmp_path, capsys):
    run = heatmap_run(tmp_path / "run", 1)
    assert thresholds.main([str(run)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "fitted on other folds" not in result["scores"]
    assert all(row["score"]["low"] is None for row in result["scores"].values())


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match="annotated slides"):
        thresholds.read_cells(tmp_path)
    run = heatmap_run(tmp_path / "run")
    labels.write_class_map(run / "truth" / "A01.png", np.zeros((30, 75), np.uint8))
    with pytest.raises(InputError, match=r"A01 that fit(.|\n)*\(30, 75\)"):
        thresholds.read_cells(run)
    run = heatmap_run(tmp_path / "other")
    for content in (b"", b"\x93NUMPY", np.lib.format.magic(1, 0) + b"\xff\xff"):
        (run / "heatmaps" / "A01.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"A01\.npy must hold an array"):
            thresholds.read_cells(run)
    np.save(run / "heatmaps" / "A01.npy", np.full((24, 30), 1e30, np.float32))
    with pytest.raises(InputError, match=r"A01 that fit(.|\n)*0\.\.1"):
        thresholds.read_cells(run)
    run = heatmap_run(tmp_path / "third")
    (run / "probs" / "A02.npy").unlink()
    with pytest.raises(InputError, match=r"A02\.npy"):
        thresholds.read_cells(run)
