import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bach import labels
from bach.classes import COLORS, PROB_COLUMNS
from bach.core.errors import InputError


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(labels.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


def write(path, text):
    path.write_text(text)
    return path


PREDICTED = [0, 1, 2, 3, 3, 0]


def project_table():
    probs = np.full((3, 4), 0.1)
    probs[[0, 1, 2], [2, 0, 3]] = 0.7
    table = pd.DataFrame(
        {"image_id": ["is1", "b1", "iv1"], "label": ["InSitu", "Benign", "Normal"]}
    )
    table["patient"] = ""
    table["predicted"] = ["InSitu", "Normal", "Invasive"]
    table[list(PROB_COLUMNS)] = probs
    return table


@pytest.mark.parametrize(
    "text",
    [
        "a.tif,Normal\nb.tif,Benign\nc.tif,InSitu\nd.tif,Invasive\ne.tif,Invasive\nf.tif,Normal\n",
        "a,normal\nb,b\nc,Carcinoma in situ\nd,invasive carcinoma\ne,IV\n\nf,n\n",
        "A.TIF,0\nx/b.png,1\nc,2\nd,3.0\ne,3\nf,0\n",
        "\ufeffa;Normal\nb;Benign\nc;In situ\nd;Invasive\ne;Invasive\nf;Normal\n",
        "image_id,label\na,Normal\nb,Benign\nc,in-situ\nd,Invasive\ne,Invasive\nf,Normal\n",
        "label,image\n0,a\n1,b\n2,c\n3,d\n3,e\n0,f\n",
        "image,label,,\na,0,,\nb,1,,\nc,2,,\nd,3,,\ne,3,,\nf,0,,\n",
        "case,class,P(Normal)\na.tif,1,1\nb.tif,2,0\nc.tif,3,0\nd.tif,4,0\ne.tif,4,0\nf.tif,1,1\n",
        "picture,Prediction\na,Normal\nb,Benign\nc,InSitu\nd,Invasive\ne,Invasive\nf,Normal\n",
    ],
)
def test_every_dialect_of_a_prediction_table_is_read(tmp_path, text):
    table = labels.read_labels(write(tmp_path / "p.csv", text), "predictions")
    assert table["key"].tolist() == list("abcdef")
    assert table["label"].tolist() == PREDICTED


def test_in_the_projects_own_table_prob_columns_answer_and_label_is_the_truth(tmp_path):
    path = tmp_path / "predictions.csv"
    project_table().to_csv(path, index=False)
    assert labels.read_labels(path, "predictions")["label"].tolist() == [2, 0, 3]
    assert labels.read_labels(path, "truth")["label"].tolist() == [2, 1, 0]


def test_prob_columns_may_stand_in_any_order(tmp_path):
    table = project_table()
    path = tmp_path / "predictions.csv"
    table[list(table.columns[::-1])].to_csv(path, index=False)
    found = labels.read_labels(path, "predictions")
    assert found["image_id"].tolist() == ["is1", "b1", "iv1"]
    assert found["label"].tolist() == [2, 0, 3]


def test_a_table_that_contradicts_itself_is_logged(tmp_path, messages):
    table = project_table()
    table["predicted"] = "Benign"
    table.to_csv(tmp_path / "predictions.csv", index=False)
    labels.read_labels(tmp_path / "predictions.csv", "predictions")
    assert "differs from column 'predicted' in 3 rows" in messages.text
    text = "case,class,P(Normal),P(Benign),P(In Situ),P(Invasive)\na,4,.1,.6,.2,.1\n"
    found = labels.read_labels(write(tmp_path / "p.csv", text), "predictions")
    assert found["label"].tolist() == [3]
    assert "differs from the largest P(...) in 1 rows" in messages.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("image_id,label\n", "only 'image_id,label'"),
        ("a.tif\nb.tif\n", "one column"),
        ("a,Normal\nb,Normal,x\n", "another number in rows 2"),
        ("a,Normal\nb,Bening\nc,7\n", r"\(2 rows\): b: 'Bening', c: '7'"),
        ("a,Bening\nb,Normal\n", "mend the class"),
        ("image_id,label\na,Normal\nb,\n", "b: ''"),
        ("case,class\na,0\nb,4\n", "a: '0'"),
        ("a.tif,Normal\nA,Benign\nx/a.png,Benign\n", "more than once: a"),
        ("image_id,fold,size\na,1,2\n", "Received the columns: image_id, fold, size"),
        (",".join(["image_id", *PROB_COLUMNS]) + "\na,1,0,0,x\n", "table rows 1"),
        ("image_id,label,label\na,0,1\n", "more than once: label"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_with_the_reason(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        labels.read_labels(write(tmp_path / "p.csv", text), "predictions")


def test_a_table_of_predictions_is_no_truth(tmp_path):
    path = write(tmp_path / "p.csv", "image_id,predicted\na,Normal\n")
    with pytest.raises(InputError, match="column of true classes"):
        labels.read_labels(path, "truth")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="readable CSV"):
        labels.read_labels(tmp_path / "none.csv", "truth")


def test_a_class_map_is_read_back_as_written_and_carries_its_colours(tmp_path):
    class_map = np.random.default_rng(0).integers(0, 4, (13, 7), dtype=np.uint8)
    for values in (class_map, np.full((3, 5), 3, np.uint8)):
        labels.write_class_map(tmp_path / "map.png", values)
        assert np.array_equal(labels.read_class_map(tmp_path / "map.png"), values)
    colors = np.array(Image.open(tmp_path / "map.png").convert("RGB"))
    assert tuple(colors[0, 0]) == COLORS[3]
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_class_map_in_the_colours_of_earlier_versions_is_read_by_its_numbers(tmp_path):
    values = np.array([[0, 1], [2, 3]], np.uint8)
    image = Image.fromarray(values)
    image.putpalette([0, 158, 115, 86, 180, 233, 240, 170, 0, 190, 30, 45])
    image.save(tmp_path / "map.png")
    assert np.array_equal(labels.read_class_map(tmp_path / "map.png"), values)


def test_a_map_of_other_values_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="values 4"):
        labels.write_class_map(tmp_path / "map.png", np.full((2, 2), 4, np.uint8))
    with pytest.raises(ValueError, match="height, width"):
        labels.write_class_map(tmp_path / "map.png", np.zeros((2, 2, 1), np.uint8))


def test_gray_maps_are_read_and_pictures_are_refused(tmp_path):
    values = np.array([[0, 1], [2, 3]], np.uint8)
    path = tmp_path / "map.png"
    for kind in (np.uint8, np.uint16):
        Image.fromarray(values.astype(kind)).save(path)
        assert np.array_equal(labels.read_class_map(path), values)
    Image.fromarray(values * 85).save(path)
    with pytest.raises(InputError, match="values: 0, 85, 170, 255"):
        labels.read_class_map(path)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match="mode RGB"):
        labels.read_class_map(path)
    path.write_text("no PNG")
    with pytest.raises(InputError, match="readable picture"):
        labels.read_class_map(path)


def test_proportions_are_known_to_within_a_pixel():
    slide = (42113, 62625)
    for factor in (4, 16, 32.5, 1000):
        size = np.array(slide) / factor
        for rounded in (np.floor(size), np.ceil(size), np.round(size)):
            assert labels.same_proportions(tuple(rounded), slide)
    assert not labels.same_proportions((2632 + 3, 3914), slide)
    assert not labels.same_proportions((3914, 2632), slide)
    assert labels.same_proportions((1, 1), slide)
    # A picture that was rounded itself may be off by a pixel more.
    assert not labels.same_proportions((100, 100), (9, 10))
    assert labels.same_proportions((100, 100), (9, 10), slack=1)


def test_more_than_two_columns_need_a_header_to_tell_which_is_the_class(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("n001,1,0,0,0\nb001,0,1,0,0\n")
    for kind in ("truth", "predictions"):
        with pytest.raises(InputError, match=r"must have two columns(?s:.)*Received: 5 columns"):
            labels.read_labels(file, kind)
    file.write_text("n001,Normal,,\nb001,Benign,,\n")  # as a spreadsheet leaves emptied columns
    assert labels.read_labels(file, "truth")["label"].tolist() == [0, 1]


def test_a_number_of_any_length_is_a_class_or_refused(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("image_id,label\na,0002.00\n")
    assert labels.read_labels(file, "truth")["label"].tolist() == [2]
    file.write_text(f"image_id,label\na,{'9' * 5000}\n")
    with pytest.raises(InputError, match="must name a class"):
        labels.read_labels(file, "truth")


@pytest.mark.parametrize("cells", ["0,0,0,0", "9,-8,0,0", "0.5,0.1,0.1,0.1", "nan,1,0,0"])
def test_numbers_that_are_no_probabilities_are_no_answer(tmp_path, cells):
    path = tmp_path / "p.csv"
    path.write_text(f"image_id,{','.join(PROB_COLUMNS)}\na,{cells}\nb,0,1,0,0\n")
    with pytest.raises(InputError, match="table rows 1"):
        labels.read_labels(path, "predictions")


def test_two_equal_answers_are_logged(tmp_path, caplog):
    path = tmp_path / "p.csv"
    path.write_text(f"image_id,{','.join(PROB_COLUMNS)}\na,0.5,0.5,0,0\nb,0,1,0,0\n")
    assert labels.read_labels(path, "predictions")["label"].tolist() == [0, 1]
    assert "two probabilities are the largest in 1 rows" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind"), [("fold", "predictions"), ("fold", "truth"), ("truth", "predictions")]
)
def test_a_column_of_something_else_is_not_taken_for_the_class(tmp_path, name, kind):
    (tmp_path / "t.csv").write_text(f"image_id,{name}\na,0\nb,1\n")
    with pytest.raises(InputError, match=r"must have a column of (predicted|true) classes"):
        labels.read_labels(tmp_path / "t.csv", kind)


def test_a_mask_of_one_bit_is_no_class_map(tmp_path):
    Image.fromarray(np.tri(8) > 0).save(tmp_path / "map.png")
    with pytest.raises(InputError, match="a mask of 1 bit"):
        labels.read_class_map(tmp_path / "map.png")
