import hashlib
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from PIL import Image

from bach.classes import CLASSES, PREFIXES, parse_label
from bach.core.errors import InputError
from bach.toy import dataset, painter

SMALL = {
    "patients": 4, "images": 3, "test_images": 1, "slides": 4, "test_slides": 2,
    "photo_size": (256, 192), "slide_size": (1024, 768),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset.make_data_set(tmp_path_factory.mktemp("toy") / "data", **SMALL)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def level(slide, index):
    return np.asarray(slide.read_region((0, 0), index, slide.level_dimensions[index]))[..., :3]


def vertices(path):
    return [
        (region, np.array([[float(v.get("X")), float(v.get("Y"))] for v in region.iter("Vertex")]))
        for region in ElementTree.parse(path).iter("Region")
    ]


def test_same_seed_gives_the_same_bytes_with_one_worker_and_with_two(data, tmp_path):
    dataset.make_data_set(tmp_path, workers=2, **SMALL)
    assert digests(tmp_path) == digests(data)


def test_another_seed_gives_other_pictures(tmp_path):
    options = SMALL | {"images": 1, "slides": 1, "test_slides": 0, "test_images": 0}
    one = digests(dataset.make_data_set(tmp_path / "one", seed=1, **options))
    two = digests(dataset.make_data_set(tmp_path / "two", seed=2, **options))
    assert one.keys() == two.keys()
    pictures = [name for name in one if name.endswith((".tif", ".svs"))]
    assert len(pictures) == 5
    assert all(one[name] != two[name] for name in pictures)


def test_the_layout_is_that_of_the_challenge(data):
    train, test = data / dataset.TRAIN_DIR, data / dataset.TEST_DIR
    for name, prefix in zip(CLASSES, PREFIXES, strict=True):
        found = sorted(path.name for path in (train / "Photos" / name).iterdir())
        assert found == [f"{prefix}00{i}.tif" for i in (1, 2, 3)]
    lines = (train / "Photos" / "microscopy_ground_truth.csv").read_text().splitlines()
    assert len(lines) == 12
    assert "b001.tif,Benign" in lines
    wsi = sorted(str(p.relative_to(train)) for p in (train / "WSI").rglob("A*"))
    assert wsi == sorted(
        f"WSI/{name}"
        for i in (1, 2, 3, 4)
        for name in (f"A0{i}.svs", f"A0{i}.xml", f"gt_thumbnails/A0{i}.png",
                     f"thumbnails/A0{i}_thumb.png")
    )  # fmt: skip
    assert sorted(p.name for p in (test / "Photos").iterdir()) == [f"test{i}.tif" for i in range(4)]
    assert sorted(p.name for p in (test / "WSI").iterdir()) == [
        "test_slide_1.svs", "test_slide_2.svs",
    ]  # fmt: skip


def test_a_photo_has_the_size_of_the_challenge_and_no_timestamp(data):
    rgb = dataset.paint_photo(
        np.random.default_rng(0), 2, painter.make_look(np.random.default_rng(0))
    )
    assert rgb.shape == (1536, 2048, 3)
    assert rgb.dtype == np.uint8
    with tifffile.TiffFile(data / dataset.TRAIN_DIR / "Photos/Normal/n001.tif") as file:
        assert file.pages[0].shape == (192, 256, 3)
        names = {tag.name for tag in file.pages[0].tags}
    assert not names & {"DateTime", "Software", "ImageDescription"}


def test_the_truth_of_the_test_set_lies_outside_the_challenge_folders(data):
    assert sorted(p.name for p in data.iterdir()) == [
        dataset.TRAIN_DIR, dataset.TEST_DIR, "patients.csv", "truth",
    ]  # fmt: skip
    assert {p.suffix for p in (data / dataset.TEST_DIR).rglob("*.*")} == {".tif", ".svs"}
    truth = pd.read_csv(data / "truth/part_a.csv")
    assert sorted(truth.image_id) == [f"test{i}" for i in range(4)]
    assert set(truth.label) == set(CLASSES)
    labels = Image.open(data / "truth/part_b/test_slide_2.png")
    assert labels.mode == "P"
    assert labels.size == (1024 // 16, 768 // 16)
    assert set(np.unique(np.asarray(labels))) <= {0, 1, 2, 3}


def test_every_training_photo_has_a_patient_and_patients_have_a_main_class(data):
    table = pd.read_csv(data / "patients.csv")
    photos = {p.stem: p.parent.name for p in (data / dataset.TRAIN_DIR / "Photos").rglob("*.tif")}
    assert dict(zip(table.image_id, table.label, strict=True)) == photos
    assert table.patient.notna().all()
    # With the default numbers three of a patient's four photos are of one class.
    allotted = dataset.allot_patients(12, 12)
    counts = np.array([np.bincount(patients, minlength=12) for patients in allotted])
    assert counts.sum() == 48
    assert (counts.max(axis=0) == 3).all()
    assert (counts.sum(axis=0) == 4).all()


@pytest.mark.parametrize(("patients", "images"), [(1, 5), (2, 3), (5, 1), (30, 100)])
def test_any_number_of_patients_shares_out_all_images(patients, images):
    assert [len(members) for members in dataset.allot_patients(patients, images)] == [images] * 4


def test_slides_open_as_aperio_with_scale_and_aligned_levels(data):
    slide = openslide.OpenSlide(data / dataset.TRAIN_DIR / "WSI/A01.svs")
    assert slide.properties["openslide.vendor"] == "aperio"
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.467)
    assert slide.properties["aperio.AppMag"] == "20"
    assert slide.level_downsamples == (1, 4, 16)
    assert slide.level_dimensions == ((1024, 768), (256, 192), (64, 48))
    for index in (0, 1):
        fine, coarse = level(slide, index).astype(float), level(slide, index + 1)
        h, w = coarse.shape[:2]
        mean = fine.reshape(h, 4, w, 4, 3).mean(axis=(1, 3))
        assert np.abs(mean - coarse).max() <= 0.5


def test_all_three_spellings_occur_and_all_classes_can_be_read(data):
    found, labels, empty_layers, holes = set(), set(), 0, 0
    for path in sorted((data / dataset.TRAIN_DIR / "WSI").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        assert float(root.get("MicronsPerPixel")) == 0.467
        for layer in root.iter("Annotation"):
            empty_layers += not list(layer.iter("Region"))
            for region in layer.iter("Region"):
                attribute = region.find("Attributes/Attribute")
                holes += region.get("NegativeROA") == "1"
                if attribute is not None:
                    found.add("attribute")
                    labels.add(parse_label(attribute.get("Value")))
                elif region.get("Text"):
                    found.add("text")
                    labels.add(parse_label(region.get("Text")))
                else:
                    found.add("layer")
                    labels.add(int(layer.get("Id")))
    assert found == {"attribute", "text", "layer"}
    assert labels == {1, 2, 3}
    assert empty_layers >= 1
    assert holes >= 1


def test_annotations_lie_in_the_slide_and_some_are_fractions(data):
    points = np.concatenate(
        [p for path in (data / dataset.TRAIN_DIR / "WSI").glob("*.xml") for _, p in vertices(path)]
    )
    assert points.min() >= 0
    assert (points.max(axis=0) < (1024, 768)).all()
    assert (points % 1 != 0).any()
    assert (points % 1 == 0).all(axis=1).any()


def test_label_maps_hold_the_annotated_regions(data):
    wsi = data / dataset.TRAIN_DIR / "WSI"
    labels = np.asarray(Image.open(wsi / "gt_thumbnails/A03.png"))
    for region, points in vertices(wsi / "A03.xml"):
        if region.get("NegativeROA") == "0":
            x, y = (points.mean(axis=0) / 16).astype(int)
            assert labels[y, x] > 0
    assert labels[0, 0] == 0


def test_glass_is_near_white_and_tissue_is_not(data):
    with openslide.OpenSlide(data / dataset.TRAIN_DIR / "WSI/A03.svs") as slide:
        rgb = level(slide, 2).astype(int)
    assert rgb[:3, :3].min() > 200
    assert rgb[20:28, 28:36].mean(axis=(0, 1))[1] < 200


def test_label_noise_flips_the_asked_share(tmp_path):
    options = SMALL | {"slides": 0, "test_slides": 0, "test_images": 0, "photo_size": (64, 48)}
    dataset.make_data_set(tmp_path, label_noise=0.25, **options)
    filed = pd.read_csv(tmp_path / "patients.csv").merge(
        pd.read_csv(tmp_path / "truth/training.csv"), on="image_id", suffixes=("", "_painted")
    )
    assert len(filed) == 12
    assert (filed.label != filed.label_painted).sum() == 3
    folders = {p.stem: p.parent.name for p in (tmp_path / dataset.TRAIN_DIR).rglob("*.tif")}
    assert dict(zip(filed.image_id, filed.label, strict=True)) == folders


def test_an_array_is_read_back_from_a_slide_as_it_was(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (531, 700, 3), dtype=np.uint8)
    for compression in ("deflate", None):
        path = tmp_path / f"{compression}.svs"
        dataset.write_slide(path, rgb, mpp=0.25, compression=compression)
        with openslide.OpenSlide(path) as slide:
            assert float(slide.properties["openslide.mpp-x"]) == 0.25
            # What 4 does not divide is left out of the small levels.
            assert slide.level_dimensions == ((700, 531), (175, 132), (43, 33))
            np.testing.assert_array_equal(level(slide, 0), rgb)


def test_a_slide_can_be_written_by_a_function_and_without_a_scale(tmp_path):
    def pixels(x, y, width, height):
        rows, cols = np.mgrid[y : y + height, x : x + width]
        return np.stack([rows % 256, cols % 256, rows * 0], axis=2).astype(np.uint8)

    dataset.write_slide(tmp_path / "a.svs", pixels, None, size=(640, 528))
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert "openslide.mpp-x" not in slide.properties
        np.testing.assert_array_equal(level(slide, 0), pixels(0, 0, 640, 528))


def test_a_slide_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    rgb = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="uint8 of shape"):
        dataset.write_slide(tmp_path / "a.svs", rgb.astype(float))
    with pytest.raises(ValueError, match="needs the size"):
        dataset.write_slide(tmp_path / "a.svs", lambda x, y, w, h: rgb)
    with pytest.raises(ValueError, match="power of 2"):
        dataset.write_slide(tmp_path / "a.svs", rgb, factors=(1, 3))
    with pytest.raises(ValueError, match="compression must be"):
        dataset.write_slide(tmp_path / "a.svs", rgb, compression="lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(InputError, match="imagecodecs is not installed"):
        dataset.write_slide(tmp_path / "a.svs", rgb, compression="jpeg")
    assert list(tmp_path.iterdir()) == []


def test_annotations_that_cannot_be_written_are_refused(tmp_path):
    square = {"label": 1, "points": np.array([[0, 0], [9, 0], [9, 9.5]])}
    with pytest.raises(ValueError, match="spelling must be one of"):
        dataset.write_annotation_xml(tmp_path / "a.xml", [square], spelling="color")
    with pytest.raises(ValueError, match=r"label 1\.\.3"):
        dataset.write_annotation_xml(tmp_path / "a.xml", [square | {"label": 0}])
    dataset.write_annotation_xml(tmp_path / "a.xml", [square])
    np.testing.assert_array_equal(vertices(tmp_path / "a.xml")[0][1], square["points"])


def test_a_hole_is_normal_and_later_regions_paint_over_earlier_ones():
    def square(label, low, high, is_hole=False):
        points = np.array([[low, low], [high, low], [high, high], [low, high]], float)
        return {"label": label, "points": points, "is_hole": is_hole}

    regions = [square(1, 0, 160), square(1, 48, 112, is_hole=True), square(3, 120, 160)]
    labels = dataset.rasterise(regions, (10, 10), 16)
    assert labels[1, 1] == 1
    assert labels[5, 5] == 0
    assert labels[8, 8] == 3


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="new or empty folder"):
        dataset.main([str(tmp_path)])
    with pytest.raises(InputError, match="new or empty folder"):
        dataset.main([str(tmp_path / "mine.txt")])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("option", ["--patients=0", "--label-noise=1.5", "--stain-shift=-1"])
def test_a_number_that_does_not_fit_is_refused(tmp_path, option):
    with pytest.raises(InputError, match=option.split("=")[0]):
        dataset.main([str(tmp_path / "new"), option])
    assert not (tmp_path / "new").exists()


def test_the_last_line_says_where_the_data_lie(tmp_path, capsys):
    options = ["--images=1", "--test-images=0", "--slides=0", "--test-slides=0", "--workers=1"]
    dataset.main([str(tmp_path / "a"), *options])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a")
    with tifffile.TiffFile(
        tmp_path / "a" / dataset.TRAIN_DIR / "Photos/Invasive/iv001.tif"
    ) as file:
        assert file.pages[0].shape == (1536, 2048, 3)


def test_patients_look_alike_without_stain_shift_and_differ_with_it():
    looks = [painter.make_look(np.random.default_rng(i), 0.0) for i in range(3)]
    assert looks[0] == looks[1] == looks[2]
    assert painter.make_look(np.random.default_rng(0)) != looks[0]


def test_carcinoma_has_more_nuclei_than_normal_tissue():
    look = painter.make_look(np.random.default_rng(0), 0.0)
    dark = [
        np.mean([
            painter.paint_tissue(np.random.default_rng(i), label, 300, 300, 2.1, look)[..., 0] < 130
            for i in range(8)
        ])
        for label in range(4)
    ]  # fmt: skip
    assert dark[0] < dark[2]
    assert dark[1] < dark[3]
    assert 2 * dark[0] < dark[3]


def test_a_label_map_is_painted_class_by_class():
    labels = np.zeros((400, 600), np.uint8)
    labels[:, 300:] = 3
    look = painter.make_look(np.random.default_rng(0), 0.0)
    rgb = painter.paint_tissue(np.random.default_rng(1), labels, 600, 400, 2.1, look)
    dark = rgb[..., 0] < 130
    assert dark[:, 320:].mean() > 2 * dark[:, :280].mean()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 2)])
@pytest.mark.parametrize("label", [0, 3])
def test_the_smallest_pictures_can_be_painted(size, label):
    look = painter.make_look(np.random.default_rng(0))
    rgb = painter.paint_tissue(np.random.default_rng(0), label, *size, 0.5, look)
    assert rgb.shape == (size[1], size[0], 3)


def test_what_cannot_be_painted_is_refused():
    rng, look = np.random.default_rng(0), painter.make_look(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"lie in 0\.\.3"):
        painter.paint_tissue(rng, 4, 10, 10, 0.5, look)
    with pytest.raises(ValueError, match="map of shape"):
        painter.paint_tissue(rng, np.zeros((3, 3), np.uint8), 10, 10, 0.5, look)
    with pytest.raises(ValueError, match="above 0"):
        painter.paint_tissue(rng, 0, 10, 10, 0.0, look)
    with pytest.raises(ValueError, match="negative"):
        painter.make_look(rng, -1.0)
