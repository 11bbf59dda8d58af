"""Painted lymph nodes: size, place and spelling of their metastases."""

import hashlib
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pandas as pd
import pytest

from bach import froc
from bach.annotations import read_regions
from bach.core.errors import InputError
from bach.core.pictures import read_mask
from bach.slides import Slide
from bach.tissue import find_tissue
from bach.toy import __main__ as toy
from bach.toy import nodes, painter

COARSE = 1.944  # um per px, four times that of the defaults


def paint(diameters, seed=0, mpp=COARSE):
    rng = np.random.default_rng(seed)
    return nodes.paint_node(rng, painter.make_look(rng, 0.5), diameters, mpp)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ü") / "nodes 1"
    recipe = nodes.Nodes(
        slides=2, normal_slides=1, test_slides=2, diameters_mm=(0.4, 0.9), mpp=COARSE
    )
    return nodes.make_nodes(folder, recipe)


def test_the_same_recipe_gives_the_same_bytes(written, tmp_path):
    recipe = nodes.Nodes(slides=1, normal_slides=0, test_slides=0, diameters_mm=(0.4,), mpp=COARSE)
    nodes.make_nodes(tmp_path / "again", recipe)
    for name in ("tumor_001.svs", "tumor_001.xml"):
        one, two = (
            hashlib.sha256((folder / "slides" / name).read_bytes()).hexdigest()
            for folder in (written, tmp_path / "again")
        )
        assert one == two, name


@pytest.mark.parametrize("diameter", [0.2, 1.0, 2.4])
def test_a_metastasis_has_its_diameter_and_the_slide_the_room_for_it(diameter):
    node = paint([diameter])
    area = cv2.contourArea((node.regions[0].points * COARSE / 1000).astype(np.float32))
    assert 2 * np.sqrt(area / np.pi) == pytest.approx(diameter, rel=0.12)
    points = node.regions[0].points
    assert (points > 0).all()
    assert (points < node.size).all()
    assert node.size[0] * COARSE / 1000 >= max(2.3, 1.9 * diameter)


def test_a_node_is_tissue_and_what_is_around_it_is_glass():
    node = paint([0.5])
    mask, doubts = find_tissue(cv2.resize(node.rgb, None, fx=0.25, fy=0.25), "robust")
    assert not doubts
    assert mask[mask.shape[0] // 2, mask.shape[1] // 2]
    assert not mask[[0, -1]].any()
    assert 0.3 < mask.mean() < 0.8


def test_a_metastasis_is_paler_than_the_node_around_it():
    node = paint([1.0])
    labels = nodes.paint(node.regions, *node.size, node.factor).labels == 1
    inside = cv2.erode(labels.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    middle = np.zeros_like(labels)
    rows, cols = labels.shape
    middle[rows // 3 : -rows // 3, cols // 3 : -cols // 3] = True
    around = middle & ~cv2.dilate(labels.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool)
    assert node.rgb[inside].mean() > node.rgb[around].mean() + 5


def test_slides_are_filed_as_said(written):
    names = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    assert names == [
        "slides/normal_001.svs",
        "slides/tumor_001.svs",
        "slides/tumor_001.xml",
        "slides/tumor_002.svs",
        "slides/tumor_002.xml",
        "test_slides/test_001.svs",
        "test_slides/test_002.svs",
        "truth/annotations/test_001.xml",
        "truth/masks/test_001.png",
        "truth/slides.csv",
    ]
    table = pd.read_csv(written / "truth" / "slides.csv")
    assert table["label"].tolist() == ["Tumor", "Tumor", "Normal", "Tumor", "Normal"]
    assert table["largest_mm"].tolist() == [0.4, 0.9, 0, 0.4, 0]


def test_slides_have_their_scale_and_no_seams(written):
    with Slide(written / "slides" / "tumor_001.svs") as slide:
        assert slide.mpp == pytest.approx(COARSE)
        glass = slide.read(0, 0, 64, slide.height)
    # Bands of 256 px: glass is as even across their edges as elsewhere.
    steps = np.abs(np.diff(glass.astype(float).mean(axis=(1, 2))))
    assert steps[255::256].max() <= steps.max()


def test_enlarged_in_bands_a_slide_is_as_enlarged_at_once():
    node = paint([0.3], mpp=0.486)
    assert node.factor == 2
    whole = cv2.resize(node.rgb, node.size, interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(np.concatenate(list(nodes._bands(node))), whole)


def test_annotations_have_the_groups_of_the_challenge(written, tmp_path):
    groups = set()
    for path in written.rglob("*.xml"):
        root = ET.parse(path).getroot()
        groups |= {one.get("PartOfGroup") for one in root.iter("Annotation")}
    assert groups <= {"Tumor", "_0", "_1", "_2", "Exclusion"}
    assert groups & {"Tumor", "_0", "_1"}
    assert groups & {"_2", "Exclusion"}
    meanings = "Tumor,Invasive\n_0,Invasive\n_1,Invasive\n_2,Normal\nExclusion,Normal\n"
    (tmp_path / "map.csv").write_text(meanings)
    regions = read_regions(written / "slides" / "tumor_002.xml", tmp_path / "map.csv")
    assert [region.label for region in regions] in ([3, 0], [3, 3, 0], [3, 3, 3, 0])


def test_the_mask_is_the_annotation_at_the_scale_of_the_evaluation(written):
    mask = read_mask(written / "truth" / "masks" / "test_001.png", "")
    with Slide(written / "test_slides" / "test_001.svs") as slide:
        assert mask.shape == (slide.height / 4, slide.width / 4)
    truth = froc.find_lesions(mask)
    assert truth.counted[1:].any()


def test_the_command_writes_nodes_and_a_folder_may_be_called_so():
    args = toy.parse_args(["nodes", "data/nodes", "--diameters-mm", "0.2", "5"])
    assert (args.kind, args.dir, args.diameters_mm) == (nodes.Nodes, "data/nodes", (0.2, 5))
    assert toy.parse_args(["nodes"]).kind is toy.Recipe
    assert toy.parse_args(["nodes", "--seed", "3"]).dir == "nodes"


def test_a_folder_that_is_not_empty_is_refused(written):
    with pytest.raises(InputError, match="not empty"):
        nodes.make_nodes(written)
