import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2gray, rgb2lab

from bach.classes import BENIGN, CARCINOMA, CLASSES, INSITU, INVASIVE, NORMAL, parse_label
from bach.tasks import BACH


def test_the_labels_are_the_places_of_the_names_and_of_all_that_goes_with_them():
    assert [CLASSES[label] for label in (NORMAL, BENIGN, INSITU, INVASIVE)] == list(CLASSES)
    assert BACH.columns == ("prob_normal", "prob_benign", "prob_insitu", "prob_invasive")
    assert len(BACH.colors) == len(BACH.prefixes) == len(CLASSES)
    assert [parse_label(name) for name in CLASSES] == [0, 1, 2, 3]
    assert [parse_label(prefix) for prefix in BACH.prefixes] == [0, 1, 2, 3]


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
    assert BACH.choices == "Normal, Benign, InSitu, Invasive or 0..3"
    assert BACH.numbered == "0 Normal, 1 Benign, 2 InSitu, 3 Invasive"


# Full protanopia, deuteranopia and tritanopia, on linear RGB: Machado, Oliveira and Fernandes
# 2009, table 1, severity 1.0.
BLINDNESS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
# What the classes had in version 1.0, and what there is on a slide: pink, purple, glass.
FORMER = ((0, 158, 115), (86, 180, 233), (240, 170, 0), (190, 30, 45))
STAINS = ((232, 180, 205), (200, 130, 175), (120, 80, 150), (245, 243, 245))


def seen(colors, vision):
    """Colours as they are seen, in CIELAB."""
    encoded = np.array(colors) / 255
    if vision == "grey":
        encoded = np.repeat(rgb2gray(encoded[None])[0][:, None], 3, axis=1)
    elif vision in BLINDNESS:
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        linear = np.clip(linear @ np.array(BLINDNESS[vision]).T, 0, 1)
        encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(encoded[None])[0]


def closest(colors, vision):
    """The least distance between two of the colours by CIEDE2000."""
    lab = seen(colors, vision)
    return min(float(deltaE_ciede2000(a, b)) for a, b in itertools.combinations(lab, 2))


@pytest.mark.parametrize(
    ("vision", "least", "before"),
    [
        ("all colours", 37, 34.7),
        ("protanopia", 31, 19.6),
        ("deuteranopia", 29, 17.6),
        ("tritanopia", 33, 12.1),
        ("grey", 14, 3.4),
    ],
)
def test_the_four_colours_are_told_apart_by_every_reader_better_than_before(vision, least, before):
    assert closest(BACH.colors, vision) > least
    assert closest(FORMER, vision) == pytest.approx(before, abs=2 if vision == "grey" else 0.1)


def test_lesions_stand_out_from_the_stain_and_normal_does_not_from_glass():
    lab = seen(BACH.colors, "all colours")
    distances = deltaE_ciede2000(lab[:, None], seen(STAINS, "all colours")[None])
    assert distances[BENIGN:].min() > 20
    assert distances[NORMAL, -1] < 20
