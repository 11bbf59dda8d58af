import pytest

from bach.core.tables import image_key, patient_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("test0.tif", "test0"),
        ("folder/Test0.TIFF", "test0"),
        ("C:\\photos\\test0.tif", "test0"),
        (" test0 ", "test0"),
        ("SOB_B-14.25", "sob_b-14.25"),
        (".tif", ".tif"),
    ],
)
def test_ids_match_without_folder_ending_and_case(text, key):
    assert image_key(text) == key


def test_a_patient_who_is_not_named_has_an_empty_key():
    assert [patient_key(name) for name in (None, float("nan"), "  ", "")] == [""] * 4
    assert patient_key(" P1 ") == patient_key("P1")
