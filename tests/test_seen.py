"""What a model has seen stands in its file, and nobody may start from it that should not."""

import json
import logging
import os
import zipfile

import pytest

import train_part_a
from bach.core.errors import InputError
from bach.core.log import log
from bach.honest.seen import Seen, add_seen, check_unseen, read_seen, start_file


def _model(path, seen=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    if seen is not None:
        add_seen(path, seen)
    return path


def test_what_was_written_is_read_by_the_keys_of_the_images(tmp_path):
    seen = Seen.of(photos=["Photos/N001.tif", "b002"], slides=["A01.svs"])
    assert read_seen(_model(tmp_path / "m.keras", seen)) == seen
    assert (seen.photos, seen.slides) == ({"n001", "b002"}, {"a01"})
    assert seen | Seen.of(slides=["A02"]) == Seen.of(["n001", "b002"], ["a01", "a02"])


def test_a_file_that_says_nothing_is_unknown_but_for_the_list_beside_it(tmp_path):
    file = _model(tmp_path / "m.keras")
    assert read_seen(file) == Seen(unknown=frozenset([str(file)]))
    (tmp_path / "slides.json").write_text('{"trained_on": ["A01", "A03"]}')
    assert read_seen(file).slides == {"a01", "a03"}
    for damage in (b"", b"\0" * 40):
        whole = _model(tmp_path / "d.keras", Seen.of(slides=["A01"])).read_bytes()
        (tmp_path / "d.keras").write_bytes(whole[:60] + damage + whole[100:])
        assert read_seen(tmp_path / "d.keras").unknown
    (tmp_path / "x.weights.h5").write_bytes(b"no zip")
    assert read_seen(tmp_path / "x.weights.h5").unknown
    os.mkfifo(tmp_path / "pipe.keras")  # nobody waits for a writer
    assert read_seen(tmp_path / "pipe.keras").unknown


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"photos": [], "slides": 3, "unknown": []}', '{"photos": []}']
)
def test_a_list_that_is_none_of_ours_is_not_believed(tmp_path, content):
    file = _model(tmp_path / "m.keras")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("seen.json", content)
    assert read_seen(file) == Seen(unknown=frozenset([str(file)]))


def test_keys_that_an_earlier_version_wrote_are_those_of_now(tmp_path):
    file = _model(tmp_path / "m.keras")
    with zipfile.ZipFile(file, "a") as archive:
        values = {"photos": ["N001 "], "slides": ["a01.ome"], "unknown": []}
        archive.writestr("seen.json", json.dumps(values))
    assert read_seen(file) == Seen.of(["n001"], ["a01"])


@pytest.mark.parametrize("name", ["A01", "a01.SVS", "WSI/A01.svs"])
def test_a_slide_that_was_seen_is_known_by_any_spelling(tmp_path, name):
    file = _model(tmp_path / "m.keras", Seen.of(slides=["A01"]))
    with pytest.raises(InputError, match="trained on 1 of the slides that fold 2 holds out: a01"):
        check_unseen("weights", file, [name, "A09"], "slides", 2)
    assert check_unseen("weights", file, ["A09"], "slides", 2) == read_seen(file)


def test_a_start_that_does_not_say_what_it_has_seen_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.WARNING):
        check_unseen("weights", _model(tmp_path / "m.keras"), ["A01"], "slides", 0)
    assert "m.keras does not say what it has seen" in caplog.text


def test_each_fold_starts_from_its_own_model_of_a_run(tmp_path):
    for fold in ("0", "none"):
        (tmp_path / f"fold_{fold}").mkdir()
        _model(tmp_path / f"fold_{fold}/model.keras")
    assert start_file(str(tmp_path), 0) == tmp_path / "fold_0/model.keras"
    assert start_file(str(tmp_path), None) == tmp_path / "fold_none/model.keras"
    with pytest.raises(InputError, match="without fold_1"):
        start_file(str(tmp_path), 1)
    assert start_file("imagenet", 0) is None
    with pytest.raises(InputError, match="does not exist"):
        start_file(str(tmp_path / "typo"), 0)


def test_a_trial_with_few_images_holds_out_the_patients_of_all(tmp_path):
    file = _model(tmp_path / "m.keras", Seen.of(photos=["n004"]))
    (tmp_path / "folds.csv").write_text("image_id,patient,fold\nn001,P1,0\nn004,P1,0\nb001,P2,1\n")
    words = ["--limit", "1", "--folds", str(tmp_path / "folds.csv"), "--weights", str(file)]
    with pytest.raises(InputError, match="trained on 1 of the photos that fold 0 holds out: n004"):
        train_part_a.started(train_part_a.parse_args(words), 0)
    assert train_part_a.started(train_part_a.parse_args(words), 1)[0] == file
