"""Which annotation file belongs to which slide, and what is no file to read."""

import os

import pytest

from bach.annotations import files
from bach.annotations.files import Folder, annotation_path, folders_of, read_text
from bach.core.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def found(folder, slide):
    path = annotation_path(folder / slide)
    return None if path is None else path.name


@pytest.mark.parametrize(
    "name",
    [
        "A01.xml",
        "A01.XML",
        "A01.Xml",
        "a01.xml",
        "A01.svs.xml",
        "A01.SVS.xml",
        "A01.json",
        "A01.geojson",
        "A01.GEOJSON",
        "A01.svs.geojson",
        "A01_annotations.json",
        "A01-Annotation.geojson",
        "A01.svs_annotations.json",
        "A01.annotations.xml",
        "A01.annotations",
        "A01.geojson.gz",
        "A01.svs.GeoJSON.GZ",
        "A01_annotations.json.gz",
    ],
)
def test_an_annotation_is_found_by_the_name_of_its_slide(tmp_path, name):
    touch(tmp_path, "A01.svs", "A02.svs", name)
    assert found(tmp_path, "A01.svs") == name
    assert found(tmp_path, "A02.svs") is None
    assert Folder(tmp_path).strays() == []


@pytest.mark.parametrize(
    ("slide", "name"),
    [
        ("one.ome.tif", "one.geojson"),
        ("one.ome.tif", "one.ome.xml"),
        ("one.ome.tiff", "one.ome.tiff.xml"),
        ("v1.2 left.ndpi", "v1.2 left.xml"),
        ("photo.png", "photo.xml"),
        ("photo.png", "photo.png.json"),
        ("x_annotation.svs", "x_annotation.xml"),
        ("CASE.SVSLIDE", "case.svslide.xml"),
    ],
)
def test_names_with_dots_and_other_endings_are_understood(tmp_path, slide, name):
    touch(tmp_path, slide, name)
    assert found(tmp_path, slide) == name


def test_a_name_with_a_slides_ending_belongs_to_that_file_alone(tmp_path):
    touch(tmp_path, "A01.svs", "A01.ndpi", "A01.svs.xml", "x.svs", "x_annotation.svs")
    touch(tmp_path, "x_annotation.xml")
    assert found(tmp_path, "A01.svs") == "A01.svs.xml"
    assert found(tmp_path, "A01.ndpi") is None
    assert found(tmp_path, "x_annotation.svs") == "x_annotation.xml"
    assert found(tmp_path, "x.svs") is None


def test_two_annotations_of_a_slide_are_refused_and_named(tmp_path):
    touch(tmp_path, "A01.svs", "A01.xml", "A01.svs.geojson")
    with pytest.raises(InputError, match=r"one annotation file.*\n.*A01.svs.geojson, A01.xml"):
        annotation_path(tmp_path / "A01.svs")
    assert len(Folder(tmp_path).files("A01.svs")) == 2


def test_files_that_nothing_reads_are_named(tmp_path):
    touch(tmp_path, "A01.svs", "A02.svs", "A01.xml", "A01.xml.bak", "._A01.xml", "A01_thumb.png")
    assert Folder(tmp_path).strays() == []
    touch(tmp_path, "A03.xml", "A01 (1).geojson", "A02.xml.txt", "A02.ndpa", "A02.xml.gz")
    strays = "\n".join(Folder(tmp_path).strays())
    assert strays.count("belongs to no slide") == 2
    assert strays.count("nothing reads it under this name") == 3
    for name in ("A03.xml", "A01 (1).geojson", "A02.xml.txt", "A02.ndpa", "A02.xml.gz"):
        assert name in strays


def test_a_folder_that_is_not_there_has_no_annotations(tmp_path):
    assert annotation_path(tmp_path / "none" / "A01.svs") is None
    assert Folder(tmp_path / "none").strays() == []
    assert list(folders_of([tmp_path / "A01.svs", tmp_path / "A02.svs"])) == [tmp_path]


def test_a_pipe_or_a_folder_is_refused_without_opening_it(tmp_path):
    touch(tmp_path, "A01.svs", "A02.svs", "A03.svs")
    os.mkfifo(tmp_path / "A01.xml")
    (tmp_path / "A02.xml").mkdir()
    (tmp_path / "A03.xml").symlink_to(tmp_path / "gone")
    for name, kind in (("A01", r"pipe \(FIFO\)"), ("A02", "a folder"), ("A03", "No such file")):
        with pytest.raises(InputError, match=f"{name}.xml must be a readable .*\n.*{kind}"):
            annotation_path(tmp_path / f"{name}.svs")
        with pytest.raises(InputError, match=kind):
            read_text(tmp_path / f"{name}.xml")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "A01.xml"
    with path.open("wb") as stream:
        stream.truncate(files.MOST_BYTES + 1)  # a hole, which takes no room itself
    with pytest.raises(InputError, match=r"at most 500 MB[\s\S]*outlines of regions alone"):
        read_text(path)
