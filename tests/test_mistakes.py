"""Mistakes as table and sheets, and the totals of ticks."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bach.classes import CLASSES, COLORS, PREFIXES, PROB_COLUMNS
from bach.core.errors import InputError
from bach.patches import photo_patches
from bach.report import mistakes as report
from bach.report.__main__ import main

# label, predicted, probability of the predicted class, patient; the rest of the
# probability goes to the label, so the difficulty is |label - predicted| x prob.
IMAGES = {
    "n1": (0, 0, 0.9, "P1"),
    "n2": (0, 3, 0.6, "P1"),  # 1.8
    "b10": (1, 3, 0.7, ""),  # 1.4
    "b2": (1, 3, 0.9, "P2"),  # 1.8
    "is1": (2, 2, 0.9, "P3"),
    "iv1": (3, 1, 0.7, "P3"),  # 1.4
    "iv2": (3, 2, 0.8, "P3"),  # 0.8
}
WORST_FIRST = ["b2", "n2", "b10", "iv1", "iv2"]  # ties in natural order


def _probs(label, predicted, prob):
    probs = np.zeros(4)
    probs[label] += 1 - prob
    probs[predicted] += prob
    return probs


@pytest.fixture
def run(tmp_path):
    """Predictions of seven images, and their photos; every patch says what its image says."""
    path = tmp_path / "run"
    path.mkdir()
    images, patches = [], []
    for fold, (image_id, (label, predicted, prob, patient)) in enumerate(IMAGES.items()):
        probs = dict(zip(PROB_COLUMNS, _probs(label, predicted, prob), strict=True))
        row = {"image_id": image_id, "label": label, "predicted": predicted}
        images.append({**row, **probs, "patient": patient, "fold": fold % 3})
        patches.append(photo_patches(image_id, 2048, 1536, label).assign(**probs, fold=fold % 3))
        folder = tmp_path / "data/ICIAR2018_BACH_Challenge/Photos" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        assert image_id.rstrip("0123456789") == PREFIXES[label]
        Image.new("RGB", (64, 48), (200, 120, 180)).save(folder / f"{image_id}.png")
    pd.DataFrame(images).to_csv(path / "predictions.csv", index=False)
    pd.concat(patches).to_csv(path / "patch_predictions.csv", index=False)
    return path


def _write(run, *more):
    return main(["mistakes", str(run), "--data-dir", str(run.parent / "data"), *more])


def test_mistakes_are_listed_worst_first_with_empty_columns_to_tick(run, capsys):
    assert _write(run) == 0
    table = pd.read_csv(run / "errors.csv", keep_default_na=False)
    assert table["image_id"].tolist() == WORST_FIRST
    assert table["difficulty"].tolist() == pytest.approx([1.8, 1.8, 1.4, 1.4, 0.8])
    assert table["label"].tolist() == ["Benign", "Normal", "Benign", "Invasive", "Invasive"]
    assert table["predicted"].tolist() == ["Invasive", "Invasive", "Invasive", "Benign", "InSitu"]
    assert table["patient"].tolist() == ["P2", "P1", "", "P3", "P3"]
    assert (table["patches"] == 14).all()
    assert (table["patches_wrong"] == 14).all()
    for name in (*report.CATEGORIES, "note"):
        assert (table[name] == "").all()
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "errors.csv")


def test_there_is_a_sheet_for_each_pair_that_occurs_and_an_overview(run):
    (run / "errors").mkdir()
    (run / "errors/InSitu_as_Benign.png").write_bytes(b"of an earlier state of the run")
    _write(run)
    assert {path.stem for path in (run / "errors").iterdir()} == {
        "Normal_as_Invasive",
        "Benign_as_Invasive",
        "Invasive_as_Benign",
        "Invasive_as_InSitu",
        "overview",
    }
    two = np.asarray(Image.open(run / "errors/Benign_as_Invasive.png"))
    assert two.shape[1] >= 2 * report.WIDTH
    assert Image.open(run / "errors/overview.png").size[0] >= 4 * report.WIDTH


def test_counts_by_class_pair_and_by_patient_are_printed(run, capsys):
    _write(run)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Normal", "1", "0", "0", "1", "1", "of", "2"] in lines
    assert ["Benign", "0", "0", "0", "2", "2", "of", "2"] in lines
    assert ["Invasive", "0", "1", "1", "0", "2", "of", "2"] in lines
    patients = lines[lines.index(["patient", "images", "wrong"]) + 1 :][:4]
    assert patients == [
        ["P3", "3", "2"],
        ["P2", "1", "1"],
        ["P1", "2", "1"],
        ["(unknown)", "1", "1"],
    ]


def test_a_card_shows_each_patch_where_it_lies_and_in_proportion():
    patches = photo_patches("n1", 2048, 1536, 0)
    probs = np.zeros((14, 4))
    probs[:, 0] = 1
    probs[13] = [0, 0, 0, 1]  # the last patch: right column, lower row
    probs[3] = [0.5, 0.5, 0, 0]
    patches[list(PROB_COLUMNS)] = probs
    photo = np.full((1536, 2048, 3), (10, 20, 30), np.uint8)
    card = report.card(photo, patches)
    assert card.shape[1] == report.WIDTH == 7 * 42
    assert (card[100, 100] == (10, 20, 30)).all()
    top = report.HEIGHT + 14  # photo and bar of the mean
    centre = lambda row, col: card[top + row * 30 + 15, col * 42 + 21]
    for row in range(2):
        for col in range(7):
            if (row, col) not in ((1, 6), (0, 3)):
                assert tuple(centre(row, col)) == COLORS[0]
    assert tuple(centre(1, 6)) == COLORS[3]
    assert tuple(card[top + 5, 3 * 42 + 21]) == COLORS[0]
    assert tuple(card[top + 25, 3 * 42 + 21]) == COLORS[1]
    # The mean: 12.5 of 14 Normal, half a patch Benign, one Invasive.
    bar = card[report.HEIGHT + 7]
    share = (bar == COLORS[0]).all(axis=1).mean()
    assert share == pytest.approx(12.5 / 14, abs=0.01)
    assert tuple(bar[-1]) == COLORS[3]


def test_colours_of_a_stack_are_in_proportion_to_the_probabilities():
    stack = report._stack(np.array([0.25, 0, 0.25, 0.5]), 100)
    shares = [(stack == color).all(axis=1).mean() for color in COLORS]
    assert shares == pytest.approx([0.25, 0, 0.25, 0.5])


def test_ticks_are_totalled_by_category_and_class_pair(run, capsys):
    _write(run)
    table = pd.read_csv(run / "errors.csv", dtype=str, keep_default_na=False)
    table.loc[0, "focus"] = "x"
    table.loc[1, "focus"] = "yes"
    table.loc[2, "artefact"] = " "  # blanks are no mark
    table.loc[2, "mixed"] = "?"
    table.loc[2, "note"] = "look again"
    table.loc[4, "note"] = "no tick, only a note"
    table["my own"] = ["1", "", "", "", ""]
    table["note"] = ["d\u00e9chir\u00e9", *table["note"][1:]]
    table.to_csv(run / "filled.csv", index=False, sep=";", encoding="cp1252")
    capsys.readouterr()
    assert main(["errors", str(run / "filled.csv")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["mistakes"], result["ticked"]) == (5, 3)
    ticked = {name: count for name, count in result["categories"].items() if count}
    assert ticked == {"focus": 2, "mixed": 1, "my own": 1}
    assert "note" not in result["categories"]
    pair = result["pairs"]["Benign as Invasive"]
    assert (pair["mistakes"], pair["focus"], pair["mixed"], pair["my own"]) == (2, 1, 1, 1)
    assert result["pairs"]["Normal as Invasive"]["focus"] == 1
    assert next(iter(result["pairs"])) == "Benign as Invasive"


def test_a_table_with_ticks_is_not_overwritten(run, tmp_path):
    _write(run)
    _write(run)  # without ticks it may be written again
    table = pd.read_csv(run / "errors.csv", dtype=str, keep_default_na=False)
    table.loc[3, "stain"] = "x"
    table.to_csv(run / "errors.csv", index=False)
    before = (run / "errors.csv").read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        _write(run)
    assert (run / "errors.csv").read_bytes() == before
    _write(run, "--out", str(tmp_path / "other"))
    assert (tmp_path / "other/errors.csv").exists()


def test_a_run_without_mistakes_gives_an_empty_table(run):
    table = pd.read_csv(run / "predictions.csv")
    right = table[table["label"] == table["predicted"]]
    right.to_csv(run / "predictions.csv", index=False)
    _write(run)
    assert pd.read_csv(run / "errors.csv").empty
    assert [path.name for path in (run / "errors").iterdir()] == ["overview.png"]
    assert report.total_ticks(report.read_ticks(run / "errors.csv"))["pairs"] == {}


def test_what_cannot_be_used_is_said(run, tmp_path):
    for name in ("b2", "b10"):
        (run.parent / f"data/ICIAR2018_BACH_Challenge/Photos/Benign/{name}.png").unlink()
    with pytest.raises(InputError, match="b2, b10"):
        _write(run)
    with pytest.raises(InputError, match=r"predictions\.csv must be a readable"):
        report.read_run(tmp_path)
    patches = pd.read_csv(run / "patch_predictions.csv")
    patches[patches["image_id"] != "iv1"].to_csv(run / "patch_predictions.csv", index=False)
    with pytest.raises(InputError, match="none of iv1"):
        report.read_run(run)
    (tmp_path / "bad.csv").write_text("label,predicted,focus\nBenign,Tumour,x\n")
    with pytest.raises(InputError, match="'Tumour'"):
        report.read_ticks(tmp_path / "bad.csv")
    (tmp_path / "other.csv").write_text("image,class\nn1,Normal\n")
    with pytest.raises(InputError, match="columns label, predicted"):
        report.read_ticks(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("prob_benign", "word", "must be numbers"),
        ("prob_benign", "", "must be numbers"),
        ("prob_benign", "3.0", "must be probabilities"),
        ("prob_benign", "0.01", "must be probabilities"),
        ("whole", "0.5", "must be whole numbers"),
        ("label", "9", "must be a class"),
    ],
)
@pytest.mark.parametrize("file", ["predictions.csv", "patch_predictions.csv"])
def test_a_damaged_cell_of_the_predictions_is_named(run, file, column, cell, said):
    table = pd.read_csv(run / file, dtype=str, keep_default_na=False)
    if column == "whole":
        column = "x" if "x" in table else "fold"
    table.loc[0, column] = cell
    table.to_csv(run / file, index=False)
    with pytest.raises(InputError, match=rf"{file} {said}"):
        report.read_run(run)
