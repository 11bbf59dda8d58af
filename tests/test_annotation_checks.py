"""An annotation against its slide: scale, place, and the sum that is stored and shown."""

import json
import logging

import numpy as np
import pytest

from bach.annotations import checks
from bach.annotations.checks import slide_labels
from bach.annotations.painting import Region
from bach.core.errors import InputError
from bach.core.files import to_json
from bach.slides import Slide
from bach.toy.aperio import write_annotation_xml, write_slide

MPP = 0.5


@pytest.fixture
def messages(caplog, monkeypatch):
    # A script's setup_logging turns propagation off, and caplog listens at the root.
    monkeypatch.setattr(checks.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="bach")
    return caplog


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 640x320 px at 0.5 um."""
    path = tmp_path_factory.mktemp("slide") / "one.svs"
    write_slide(path, np.full((320, 640, 3), 245, np.uint8), mpp=MPP)
    with Slide(path) as opened:
        yield opened


def box(x, y, width, height):
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], float)


def written(tmp_path, *regions, mpp=MPP):
    write_annotation_xml(tmp_path / "one.xml", regions, mpp)
    return tmp_path / "one.xml"


def test_the_sum_counts_regions_holes_and_areas(tmp_path, slide, messages):
    path = written(
        tmp_path,
        Region(1, box(0, 0, 320, 320)),
        Region(1, box(80, 80, 160, 160), is_hole=True),
        Region(3, box(480, 160, 320, 160)),
        Region(2, box(1, 1, 2, 2)),
    )
    labels, summary = slide_labels(path, slide, 16)
    assert labels.shape == (20, 40)
    assert (summary.regions, summary.painted, summary.holes) == (3, 2, 1)
    assert summary.skipped == {"encloses no pixel of the map": 1}
    px = (MPP / 1000) ** 2
    areas = {"Normal": 0, "Benign": 320**2 - 160**2, "InSitu": 0, "Invasive": 160**2}
    assert summary.mm2 == pytest.approx({name: area * px for name, area in areas.items()})
    # Half of the region that reaches over the edge; nobody counts holes.
    assert summary.outside == pytest.approx(160**2 / (320**2 + 320 * 160 + 4), rel=0.02)
    summary.log("A01")
    assert (
        "A01: annotation one.xml: 3 regions, 2 painted; 1 holes; left out: 1 (encloses no pixel "
        "of the map); 0.019 mm2 Benign, 0.006 mm2 Invasive; 16.7% beyond the slide"
    ) in messages.text
    assert "beyond the slide: region 3 of layer 1 (50%)" in messages.text
    assert json.loads(to_json(summary.record()))["painted"] == 2


def test_normal_that_is_annotated_counts_as_painted(tmp_path, slide):
    path = tmp_path / "one.geojson"
    outline = [*box(0, 0, 320, 320).tolist(), [0, 0]]
    one = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [outline]},
        "properties": {"classification": {"name": "Normal"}},
    }
    path.write_text(json.dumps([one]))
    labels, summary = slide_labels(path, slide, 16)
    assert not labels.any()
    assert summary.painted == 1
    assert summary.mm2["Normal"] == pytest.approx(320**2 * (MPP / 1000) ** 2)


@pytest.mark.parametrize(
    "outline", [box(9000, 9000, 900, 900), box(-900, 0, 900, 900), box(1, 1, 3, 3)]
)
def test_an_annotation_of_which_nothing_is_painted_is_refused(tmp_path, slide, outline):
    path = written(tmp_path, Region(3, outline))
    with pytest.raises(
        InputError, match=r"counts as Normal[\s\S]*640x320 px[\s\S]*delete the file"
    ):
        slide_labels(path, slide, 16)


def test_an_annotation_whose_regions_holes_erase_is_refused(tmp_path, slide):
    whole = box(0, 0, 320, 320)
    path = written(tmp_path, Region(3, whole), Region(3, whole, is_hole=True))
    with pytest.raises(InputError, match=r"Received: 1 \(erased by holes\)"):
        slide_labels(path, slide, 16)


@pytest.mark.parametrize(("mpp", "accepted"), [(0.5, True), (0.509, True), (0.25, False)])
def test_an_annotation_made_at_another_scale_is_refused_with_both_numbers(
    tmp_path, slide, mpp, accepted
):
    path = written(tmp_path, Region(3, box(0, 0, 320, 320)), mpp=mpp)
    if accepted:
        slide_labels(path, slide, 16)
        return
    with pytest.raises(InputError, match=r"Received: 0.25 um per px .* and 0.5 of the slide"):
        slide_labels(path, slide, 16)


def test_an_annotation_at_the_files_own_scale_holds_where_mpp_corrects_that(tmp_path, slide):
    path = written(tmp_path, Region(3, box(0, 0, 320, 320)))
    with Slide(slide.path, mpp=0.25) as corrected:
        slide_labels(path, corrected, 16)
    path = written(tmp_path, Region(3, box(0, 0, 320, 320)), mpp=1.0)
    with Slide(slide.path, mpp=0.25) as corrected, pytest.raises(InputError, match="scale"):
        slide_labels(path, corrected, 16)
