import pytest

from bach import classes
from bach.classes import BENIGN, CARCINOMA, CLASSES, INSITU, INVASIVE, NORMAL, parse_label


def test_the_labels_are_the_places_of_the_names_and_of_all_that_goes_with_them():
    assert [CLASSES[label] for label in (NORMAL, BENIGN, INSITU, INVASIVE)] == list(CLASSES)
    assert classes.PROB_COLUMNS == ("prob_normal", "prob_benign", "prob_insitu", "prob_invasive")
    assert len(classes.COLORS) == len(classes.PREFIXES) == len(CLASSES)
    assert [parse_label(name) for name in CLASSES] == [0, 1, 2, 3]
    assert [parse_label(prefix) for prefix in classes.PREFIXES] == [0, 1, 2, 3]


def test_carcinoma_is_in_situ_and_invasive():
    assert [name for name in CLASSES if parse_label(name) >= CARCINOMA] == ["InSitu", "Invasive"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Carcinoma in situ", INSITU),
        ("In-situ carcinoma", INSITU),
        ("DCIS", INSITU),
        ("invasive_carcinoma", INVASIVE),
        (" BENIGN ", BENIGN),
        ("malignant", None),
        ("", None),
    ],
)
def test_classes_are_read_in_every_spelling_and_nothing_else_is(text, label):
    assert parse_label(text) == label


def test_messages_name_every_class():
    assert classes.CHOICES == "Normal, Benign, InSitu, Invasive or 0..3"
    assert classes.NUMBERED == "0 Normal, 1 Benign, 2 InSitu, 3 Invasive"
