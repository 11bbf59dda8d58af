import numpy as np
import pytest

from bach import nuclei, points
from bach.annotations.marks import read_marks
from bach.core.errors import InputError
from bach.slides import Slide
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


def test_trial_slides_have_their_annotations_and_their_truth(tmp_path):
    folder = figures.make_figures(tmp_path / "t ü", slides=1, test_slides=1, size=(1024, 768))
    truth = points.read_points(folder / "truth" / "points.csv")
    marks = read_marks(folder / "slides" / "M01.geojson")
    own = truth[truth["image_id"] == "M01"]
    assert len(marks) == len(own) > 4
    np.testing.assert_allclose(marks[["x", "y"]], own[["x", "y"]], atol=0.01)
    assert {names[0] for names in marks["names"]} == {figures.FIGURE, figures.IMPOSTER}
    assert not (folder / "test_slides" / "test00.geojson").exists()
    with Slide(folder / "test_slides" / "test00.svs") as slide:
        assert (slide.width, slide.height, slide.mpp) == (1024, 768, 0.25)
    with pytest.raises(InputError, match="empty"):
        figures.make_figures(folder)


def test_blobs_of_hematoxylin_miss_hardly_a_figure(tmp_path):
    folder = figures.make_figures(tmp_path / "t", slides=0, test_slides=2, size=(1024, 1024))
    truth = points.read_points(folder / "truth" / "points.csv")
    found = [0, 0]
    for name in ("test00", "test01"):
        with Slide(folder / "test_slides" / f"{name}.svs") as slide:
            own = truth[(truth["image_id"] == name) & (truth["name"] == figures.FIGURE)]
            hits = nuclei.recall(nuclei.propose(slide), own, 7.5)
        found = [a + b for a, b in zip(found, hits, strict=True)]
    assert found[1] > 10
    assert found[0] >= found[1] - 1
