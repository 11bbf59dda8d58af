"""FROC and slide AUC: worked out by hand, and from files."""

import json

import numpy as np
import pandas as pd
import pytest
from made_runs import heatmap_run

from bach import froc
from bach.annotations import Region
from bach.classes import INVASIVE
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.pictures import write_gray, write_png
from bach.toy.aperio import write_annotation_xml, write_slide

LESIONS = ["confidence", "x", "y"]


def disc(rows, cols, row, col, radius):
    y, x = np.mgrid[:rows, :cols]
    return np.hypot(y - row, x - col) <= radius


def hits(found, false):
    return froc.Hits(np.array(found, float), np.array(false, float))


# Two lesions and three false positives on two slides: 0.9 hits, 0.8 and 0.7 miss, 0.6 hits, 0.5
# misses.
BY_HAND = [hits([0.9, 0.6], [0.8]), hits([], [0.7, 0.5])]


def test_the_curve_is_the_one_worked_out_by_hand():
    false_positives, sensitivity = froc.froc_curve(BY_HAND)
    assert false_positives.tolist() == [0, 0, 0.5, 1, 1, 1.5]
    assert sensitivity.tolist() == [0, 0.5, 0.5, 0.5, 1, 1]


def test_the_score_is_the_mean_of_six_sensitivities():
    curve = froc.froc_curve(BY_HAND)
    assert froc.sensitivity_at(*curve).tolist() == [0.5, 0.5, 1, 1, 1, 1]
    assert froc.mean_sensitivity(*curve) == pytest.approx(5 / 6)


def test_between_two_points_the_curve_is_straight():
    curve = froc.froc_curve([hits([0.9, 0.1], [0.5, 0.1])])
    assert curve[0].tolist() == [0, 0, 1, 2]
    assert froc.sensitivity_at(*curve).tolist() == [0.5, 0.5, 0.5, 1, 1, 1]
    curve = froc.froc_curve([hits([0.1], [0.1])])  # found with the first false positive only
    assert froc.sensitivity_at(*curve).tolist() == [0.25, 0.5, 1, 1, 1, 1]


def test_a_score_of_zero_is_no_detection():
    assert froc.mean_sensitivity(*froc.froc_curve([hits([0.0, 0.5], [0.0])])) == 0.5


def test_without_a_lesion_or_a_detection_nothing_breaks():
    assert np.isnan(froc.mean_sensitivity(*froc.froc_curve([hits([], [0.4])])))
    assert froc.mean_sensitivity(*froc.froc_curve([hits([0], [])])) == 0
    interval = froc.froc_interval([hits([], [0.4])], np.array([0]), "slides")
    assert interval["value"] is None
    assert froc.froc_interval([hits([0], [])], np.array([0]), "slides")["value"] == 0


def test_the_interval_has_the_value_of_the_curve():
    rng = np.random.default_rng(0)
    slides = [hits(rng.random(3) * (rng.random(3) < 0.7), rng.random(40)) for _ in range(12)]
    interval = froc.froc_interval(slides, np.arange(12), "slides")
    assert interval["value"] == pytest.approx(froc.mean_sensitivity(*froc.froc_curve(slides)))
    assert interval["low"] < interval["value"] < interval["high"]
    assert (interval["units"], interval["worth"]) == (12, 12)
    # Of three patients less is known than of twelve.
    fewer = froc.froc_interval(slides, np.arange(12) // 4, "patients")
    assert fewer["value"] == pytest.approx(interval["value"])
    assert fewer["high"] - fewer["low"] > interval["high"] - interval["low"]


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    for _ in range(20):
        tumour = np.append(rng.random(10) < 0.4, [True, False])
        score = rng.integers(0, 5, 12) / 4  # many are equal
        interval = froc.auc_interval(tumour, score, np.arange(12), "slides")
        assert interval["value"] == pytest.approx(roc_auc_score(tumour, score))
    alone = froc.auc_interval(np.ones(3, bool), np.ones(3), np.arange(3), "slides")
    assert alone["value"] is None


# Lesions of a mask


def test_tumour_within_75_um_is_one_lesion():
    um = froc.TRUTH_UM
    mask = np.zeros((60, 200), bool)
    mask[10:50, 10:60] = True
    mask[10:50, 68:120] = True  # 8 px of 7.8 um between: 62 um
    mask[10:50, 140:190] = True  # 20 px: 156 um
    truth = froc.find_lesions(mask, um)
    assert truth.counted.tolist() == [False, True, True]
    assert truth.lesions[30, 63] == truth.lesions[30, 20] == 1
    assert truth.lesions[30, 130] == 0
    assert truth.lesions[30, 150] == 2


def test_lesions_are_widened_by_half_of_75_um_and_their_holes_filled():
    mask = disc(100, 100, 50, 50, 30) & ~disc(100, 100, 50, 50, 10)
    lesions = froc.find_lesions(mask).lesions
    # 37.5 um are 4.82 px: centres up to 4 px away, straight on.
    assert lesions[50].nonzero()[0].tolist() == list(range(16, 85))


def test_isolated_tumour_cells_are_no_lesions():
    # 275 um are 35.4 px with the 4.8 px on each side: tumour of 25 px across.
    mask = disc(200, 300, 100, 60, 11) | disc(200, 300, 100, 200, 14)
    truth = froc.find_lesions(mask)
    assert truth.counted.tolist() == [False, True, False]  # numbered by their top
    row, col = np.array([100, 100, 20]), np.array([60, 200, 20])
    found = froc.match(truth, row, col, np.array([0.9, 0.8, 0.7]))
    assert found.found.tolist() == [0.8]
    assert found.false.tolist() == [0.7]


def test_the_scale_of_the_mask_is_told_in_um():
    coarse = disc(200, 300, 100, 200, 14)
    fine = np.kron(coarse, np.ones((2, 2), bool))
    assert froc.find_lesions(fine, froc.TRUTH_UM / 2).counted.tolist() == [False, True]
    assert froc.find_lesions(fine, froc.TRUTH_UM / 4).counted.tolist() == [False, False]


def test_several_detections_in_a_lesion_are_one_hit():
    truth = froc.find_lesions(disc(100, 100, 50, 50, 30))
    at = np.array([50, 55, 45, 2, 300, -1])
    found = froc.match(truth, at, at, np.array([0.5, 0.9, 0.7, 0.4, 0.3, 0.2]))
    assert found.found.tolist() == [0.9]
    assert found.false.tolist() == [0.4, 0.3, 0.2]  # what lies beyond the mask hits nothing


def test_an_empty_mask_and_one_of_a_single_px_have_no_lesion():
    for mask in (np.zeros((0, 0), bool), np.zeros((5, 5), bool), np.ones((1, 1), bool)):
        truth = froc.find_lesions(mask)
        assert not truth.counted.any()
        assert truth.lesions.shape == mask.shape
    with pytest.raises(ValueError, match="um above 0"):
        froc.find_lesions(mask, 0)


# Files


def tables(folder, **slides):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in slides.items():
        (folder / f"{name}.csv").write_text("".join(f"{s},{x},{y}\n" for s, x, y in rows))


@pytest.fixture
def scored(tmp_path):
    """Lesions of a slide with two tumours and of a normal one, with masks."""
    mask = disc(300, 400, 100, 100, 40) | disc(300, 400, 200, 300, 30)
    (tmp_path / "masks").mkdir()
    write_gray(tmp_path / "masks" / "Tumör 1_Mask.png", mask.astype(np.uint8) * 255)
    rows = [(0.9, 100 * 32 + 5, 100 * 32), (0.8, 10, 10), (0.6, 300 * 32, 200 * 32)]
    tables(tmp_path / "found", **{"tumör 1": rows, "normal": [(0.7, 5, 5), (0.5, 64, 9000)]})
    scores = pd.DataFrame({"image": ["Tumör 1.tif", "normal"], "score": [0.9, 0.7]})
    scores.to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path


def score(folder, *words, out="out"):
    argv = ["score", str(folder / "found"), "--out", str(folder / out), *map(str, words)]
    assert froc.main(argv) == 0
    return json.loads((folder / out / "metrics.json").read_text())


def test_files_score_as_worked_out_by_hand(scored, capsys):
    result = score(scored, "--masks", scored / "masks", "--slides", scored / "scores.csv")
    assert result["froc"] == pytest.approx(5 / 6)
    assert result["sensitivity"] == {"0.25": 0.5, "0.5": 0.5, "1": 1, "2": 1, "4": 1, "8": 1}
    assert (result["lesions"], result["slides"], result["with_tumour"]) == (2, 2, 1)
    assert result["auc"] == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    curve = pd.read_csv(scored / "out" / "froc.csv")
    assert curve["sensitivity"].tolist() == [0, 0.5, 0.5, 0.5, 1, 1]
    assert (scored / "out" / "froc.png").stat().st_size > 1000
    command = json.loads((scored / "out" / "run.json").read_text())["command"]
    assert command.startswith("-m bach.froc score ") or " score " in command


def test_an_annotation_gives_the_same_figures_as_its_mask(scored):
    wanted = score(scored, "--masks", scored / "masks")
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    unit = np.column_stack([np.cos(angle), np.sin(angle)])
    regions = [
        Region(INVASIVE, 32 * (r * unit + (x + 0.5, y + 0.5)))
        for x, y, r in ((100, 100, 40), (300, 200, 30))
    ]
    (scored / "xml").mkdir()
    write_annotation_xml(scored / "xml" / "TUMÖR 1.xml", regions)
    assert score(scored, "--annotations", scored / "xml", out="two") == wanted


def test_annotations_may_lie_beside_their_slides(scored):
    wanted = score(scored, "--masks", scored / "masks")
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    unit = np.column_stack([np.cos(angle), np.sin(angle)])
    both = ((100, 100, 40), (300, 200, 30))
    regions = [Region(INVASIVE, 32 * (r * unit + (x + 0.5, y + 0.5))) for x, y, r in both]
    (scored / "slides").mkdir()
    for name in ("tumör 1.svs", "normal.svs"):
        write_slide(scored / "slides" / name, np.full((64, 64, 3), 240, np.uint8))
    write_annotation_xml(scored / "slides" / "tumör 1.svs.xml", regions)
    assert score(scored, "--annotations", scored / "slides", out="two") == wanted


def test_without_any_tumour_there_is_no_score_and_that_is_said(scored, capsys):
    (scored / "none").mkdir()
    result = score(scored, "--masks", scored / "none", "--slides", scored / "scores.csv")
    assert result["froc"] is None
    assert result["auc"] is None
    assert set(result["sensitivity"].values()) == {None}
    assert "froc undefined" in capsys.readouterr().out


def test_a_level_of_the_organisers_pyramid_is_read(scored):
    wanted = score(scored, "--masks", scored / "masks")
    mask = disc(300, 400, 100, 100, 40) | disc(300, 400, 200, 300, 30)
    large = np.kron(mask, np.ones((16, 16), bool))
    (scored / "tif").mkdir()
    # Levels of 1.944, 7.776 and 31.1 um per px: the second is the one to be compared with.
    write_slide(scored / "slide.svs", np.repeat(large[..., None], 3, 2).astype(np.uint8) * 255)
    (scored / "slide.svs").rename(scored / "tif" / "tumör 1.tif")
    small = score(
        scored, "--masks", scored / "tif", "--mpp", 0.243 * 2, "--mask-um", 15.552, out="two"
    )
    assert small["lesions"] == wanted["lesions"]
    assert small["froc"] == wanted["froc"]


def test_a_truth_whose_slide_has_no_table_is_refused(scored):
    (scored / "found" / "tumör 1.csv").rename(scored / "found" / "tumor_1.csv")
    with pytest.raises(InputError, match=r"Tumör 1_Mask\.png"):
        score(scored, "--masks", scored / "masks")


def test_an_empty_table_finds_nothing(scored):
    (scored / "found" / "tumör 1.csv").write_text("")
    (scored / "found" / "normal.csv").write_text("confidence,x,y\n")
    result = score(scored, "--masks", scored / "masks")
    assert (result["froc"], result["detections"]) == (0, 0)


@pytest.mark.parametrize("text", ["0.5,1\n", "a,b,c\n", "0.5,-1,3\n", "0.5,nan,3\n"])
def test_a_table_that_is_none_is_refused(scored, text):
    (scored / "found" / "normal.csv").write_text(text)
    with pytest.raises(InputError, match=r"normal\.csv"):
        score(scored, "--masks", scored / "masks")


def test_lesions_beyond_the_mask_are_refused(scored):
    with pytest.raises(InputError, match="--mask-um"):
        score(scored, "--masks", scored / "masks", "--mpp", 0.9)


def test_the_truth_must_be_annotations_or_masks(scored):
    found = str(scored / "found")
    with pytest.raises(InputError, match="none"):
        froc.parse_args(["score", found, "--out", "x"])
    with pytest.raises(InputError, match="both"):
        froc.parse_args(["score", found, "--out", "x", "--masks", found, "--annotations", found])


def test_a_missing_slide_score_is_named(scored):
    pd.DataFrame({"image": ["normal"], "score": [1]}).to_csv(scored / "scores.csv", index=False)
    with pytest.raises(InputError, match="tumör 1"):
        score(scored, "--masks", scored / "masks", "--slides", scored / "scores.csv")


# From heatmaps


def test_lesions_of_a_run_lie_where_its_heatmap_is_high(tmp_path):
    run = heatmap_run(tmp_path / "run", ("A 01", "Ä02"))
    probs = np.load(run / "probs" / "A 01.npy")
    probs[4, 7] = [0.1, 0.1, 0.1, 0.7]
    probs[4, 8] = [0.1, 0.1, 0.2, 0.6]  # 125 um away
    probs[6, 2] = [0.2, 0.1, 0.2, 0.5]
    np.save(run / "probs" / "A 01.npy", probs)
    out = tmp_path / "lesions"
    assert froc.main(["lesions", str(run), "--out", str(out)]) == 0
    found = froc.read_lesions(out / "lesions" / "A 01.csv")
    assert np.allclose(found, [[0.7, 7.5 * 250, 4.5 * 250], [0.5, 2.5 * 250, 6.5 * 250]])
    assert not len(froc.read_lesions(out / "lesions" / "Ä02.csv"))
    scores = pd.read_csv(out / "slides.csv")
    assert list(scores.columns) == ["image", "score"]
    assert scores["image"].tolist() == ["A 01", "Ä02"]
    assert np.allclose(scores["score"], [0.7, 0.1])

    benign = ["lesions", str(run), "--out", str(tmp_path / "b"), "--label", "benign"]
    assert froc.main([*benign, "--radius-um", "0"]) == 0
    assert len(froc.read_lesions(tmp_path / "b" / "lesions" / "Ä02.csv")) == 5 * 7


def test_lesions_of_another_scale_than_stated_are_refused(scored):
    write_json(scored / "found" / "metrics.json", {"mpp": {"normal": 0.5, "tumör 1": 0.5}})
    with pytest.raises(InputError, match=r"slides of 0\.5 to 0\.5"):
        score(scored, "--masks", scored / "masks")


def test_a_lesion_in_the_last_cell_lies_on_the_slide(tmp_path):
    run = heatmap_run(tmp_path / "run", size=(2010, 2200))
    probs = np.load(run / "probs" / "A01.npy")
    probs[-1, -1] = [0, 0, 0, 1]  # of this cell the slide has 10 px
    np.save(run / "probs" / "A01.npy", probs)
    assert froc.main(["lesions", str(run), "--out", str(tmp_path / "out")]) == 0
    assert froc.read_lesions(tmp_path / "out" / "lesions" / "A01.csv")["x"].tolist() == [2009]


def test_an_unfinished_run_is_refused(tmp_path):
    run = heatmap_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match="finished run"):
        froc.main(["lesions", str(run), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_picture_is_no_mask_for_a_slide_of_another_name(scored):
    write_png(scored / "masks" / "other.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"other\.png"):
        score(scored, "--masks", scored / "masks")
