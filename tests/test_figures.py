import dataclasses

import numpy as np
import pytest

from bach import nuclei, points
from bach.annotations.marks import read_marks
from bach.core.errors import InputError
from bach.core.pictures import read_rgb
from bach.core.tables import read_table
from bach.slides import Slide
from bach.toy import __main__ as toy
from bach.toy import figures, painter


def paint(seed=0, size=(1024, 768), count=4):
    look = painter.make_look(np.random.default_rng([seed, 1]))
    return figures.paint_figures(np.random.default_rng(seed), look, count, count, size)


def test_the_same_seed_paints_the_same_slide_and_another_another():
    first, again, other = paint(), paint(), paint(1)
    assert (first.rgb == again.rgb).all()
    assert first.points.equals(again.points)
    assert (first.rgb != other.rgb).any()


def test_figures_and_imposters_are_where_the_points_say_and_dark():
    painted = paint(2)
    assert painted.points["name"].value_counts().to_dict() == {
        figures.FIGURE: 4,
        figures.IMPOSTER: 4,
    }
    blue = nuclei.hematoxylin(painted.rgb)
    for x, y in painted.points[["x", "y"]].to_numpy():
        around = blue[int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20]
        assert around.max() > 2 * np.median(blue)


def test_the_places_are_apart_and_in_the_tissue():
    painted = paint(3, count=6)
    places = painted.points[["x", "y"]].to_numpy()
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert apart[apart > 0].min() > 100
    assert (places > 64).all()
    assert (places < (1024 - 64, 768 - 64)).all()


def test_what_finds_no_room_is_left_out():
    assert 0 < len(paint(0, (512, 512), 40).points) < 80
    with pytest.raises(ValueError, match="512"):
        paint(0, (511, 800))


def test_a_crop_is_pasted_where_it_belongs_and_fades_into_what_is_there():
    rgb = np.full((300, 400, 3), 200, np.uint8)
    figures.paste(rgb, np.full((128, 128, 3), 10, np.uint8), np.array([200.0, 150.0]))
    assert (rgb[140:160, 190:210] == 10).all()
    assert (rgb[:80] == 200).all()
    assert (rgb[86, 136:140] == 200).all()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t ü") / "figures 1"
    recipe = figures.Figures(
        patients=2, slides=1, test_slides=2, figures=5, imposters=3, slide_size=(1024, 1024)
    )
    return figures.make_figures(folder, recipe)


def test_trial_slides_have_their_annotations_and_their_truth(written):
    truth = points.read_points(written / "truth" / "points.csv")
    marks = read_marks(written / "WSI" / "M01.geojson")
    own = truth[truth["image_id"] == "M01"]
    assert len(marks) == len(own) == 8
    np.testing.assert_allclose(marks[["x", "y"]], own[["x", "y"]], atol=0.01)
    assert [names[0] for names in marks["names"]] == own["name"].tolist()
    assert not (written / "test_slides" / "T01.geojson").exists()
    with Slide(written / "test_slides" / "T02.svs") as slide:
        assert (slide.width, slide.height, slide.mpp) == (1024, 1024, 0.25)


def test_photos_are_of_other_patients_and_of_every_class(written):
    table = read_table(written / "images.csv", ("path", "label", "patient", "mpp"))
    assert set(table["patient"]) == {"P01", "P02"}
    assert table["label"].value_counts().to_dict() == {
        figures.FIGURE: 10,
        figures.IMPOSTER: 6,
        figures.OTHER: 16,
    }
    assert {read_rgb(written / path, "").shape for path in table["path"]} == {(128, 128, 3)}


def test_trial_slides_need_a_folder_of_their_own(written):
    with pytest.raises(InputError, match="empty"):
        figures.make_figures(written)


def test_slides_of_nothing_are_written_too(tmp_path):
    words = [word for kind in ("patients", "slides", "test-slides") for word in (f"--{kind}", "0")]
    toy.main(["figures", str(tmp_path / "none"), *words])
    recipe = figures.Figures(patients=1, slides=1, test_slides=0, figures=0, imposters=0)
    recipe = dataclasses.replace(recipe, slide_size=(512, 512))
    folder = figures.make_figures(tmp_path / "no figures", recipe)
    assert read_marks(folder / "WSI" / "M01.geojson").empty


def test_blobs_of_hematoxylin_miss_hardly_a_figure(written):
    truth = points.read_points(written / "truth" / "points.csv")
    found = np.zeros(2, int)
    for name in ("T01", "T02"):
        with Slide(written / "test_slides" / f"{name}.svs") as slide:
            own = truth[(truth["image_id"] == name) & (truth["name"] == figures.FIGURE)]
            found += nuclei.recall(nuclei.propose(slide), own, 7.5)
    assert found[1] == 10
    assert found[0] >= 9
