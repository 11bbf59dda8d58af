"""Tissue on slides: found by the paper's rule, without pen marks, or given by the user."""

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab
from skimage.draw import line

from bach.annotations import Region
from bach.core.errors import InputError
from bach.core.pictures import write_gray, write_png
from bach.slides import Slide
from bach.tissue import (
    _lab,
    check_masks,
    check_pixels,
    find_tissue,
    map_downsample,
    map_files,
    pen_mask,
    slide_maps,
    tissue_mask,
)
from bach.toy.aperio import write_annotation_xml, write_slide

GLASS = (242, 242, 242)
# Stain and ink as they look on scanned slides.
EOSIN, HAEMATOXYLIN, PALE = (220, 130, 175), (95, 60, 130), (236, 205, 224)
RED_INK, GREEN_INK, BLUE_INK = (215, 15, 25), (40, 165, 140), (93, 144, 213)


def picture(color=GLASS, height=40, width=60):
    return np.full((height, width, 3), color, np.uint8)


def noisy(rgb, sigma=2, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, rgb.shape)
    return (rgb + noise).clip(0, 255).astype(np.uint8)


def stained():
    rgb = picture()
    rgb[5:35, 10:40] = EOSIN
    rgb[10:20, 15:25] = HAEMATOXYLIN
    return rgb


# Tissue


def test_the_mask_agrees_with_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    rgb[:, :150] = noisy(picture(EOSIN, 200, 150), 20)
    a = rgb2lab(rgb)[..., 1]
    limit = 1.1 * a.mean()
    sure = np.abs(a - limit) > 0.01  # its white point is rounded otherwise
    assert sure.mean() > 0.99
    assert np.array_equal(tissue_mask(rgb)[sure], (a > limit)[sure])


def test_stained_tissue_on_glass_is_found_exactly():
    expected = np.zeros((40, 60), bool)
    expected[5:35, 10:40] = True
    assert np.array_equal(tissue_mask(stained()), expected)
    assert np.array_equal(tissue_mask(noisy(stained())), expected)


def test_a_picture_larger_than_a_strip_is_treated_as_one():
    rgb = np.tile(stained(), (40, 30, 1))
    assert rgb.shape[0] * rgb.shape[1] > 1 << 20
    assert np.array_equal(tissue_mask(rgb), np.tile(tissue_mask(stained()), (40, 30)))


def test_the_threshold_is_a_multiple_of_the_mean():
    rgb = picture(PALE)
    rgb[:, ::2] = EOSIN
    a = rgb2lab(rgb)[..., 1]
    ratio = a.max() / a.mean()
    assert tissue_mask(rgb, ratio - 0.01).any()
    assert not tissue_mask(rgb, ratio + 0.01).any()


@pytest.mark.parametrize("color", [(255, 255, 255), GLASS, (128, 128, 128), (0, 0, 0)])
def test_gray_of_any_shade_has_no_tissue(color):
    assert not tissue_mask(picture(color)).any()


def test_a_greenish_picture_has_no_tissue_for_want_of_pink():
    rgb = picture(GREEN_INK)
    rgb[:5, :5] = EOSIN
    assert not tissue_mask(rgb).any()


def test_a_picture_of_one_pink_has_no_tissue_since_nothing_exceeds_the_mean():
    assert not tissue_mask(picture(EOSIN)).any()


def test_noise_on_bare_glass_passes_the_papers_rule_but_not_a_floor():
    rgb = noisy(picture((244, 242, 243), 200, 200))
    assert 0.2 < tissue_mask(rgb).mean() < 0.6
    assert tissue_mask(rgb, floor=8).mean() < 0.01
    assert np.array_equal(tissue_mask(stained(), floor=8), tissue_mask(stained()))


@pytest.mark.parametrize("shape", [(1, 1, 3), (0, 5, 3), (5, 0, 3)])
def test_tiny_and_empty_pictures_give_empty_masks(shape):
    mask = tissue_mask(np.full(shape, 200, np.uint8), exclude_pen=True)
    assert mask.shape == shape[:2]
    assert not mask.any()


@pytest.mark.parametrize(
    "rgb", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_anything_but_an_rgb_picture_is_refused(rgb):
    with pytest.raises(ValueError, match="must be uint8"):
        tissue_mask(rgb)


# Pen


def stroke(rgb, color, start, end):
    rows, columns = line(*start, *end)
    where = np.zeros(rgb.shape[:2], bool)
    for shift in range(-2, 3):
        where[rows, (columns + shift).clip(0, rgb.shape[1] - 1)] = True
    rgb[where] = color
    return where


@pytest.mark.parametrize("ink", [RED_INK, GREEN_INK, BLUE_INK])
def test_ink_is_found_and_stains_are_not(ink):
    rgb = stained()
    where = stroke(rgb, ink, (2, 5), (37, 50))
    assert np.array_equal(pen_mask(rgb), where)


@pytest.mark.parametrize("color", [EOSIN, HAEMATOXYLIN, PALE, GLASS, (60, 30, 90), (200, 90, 120)])
def test_no_stain_passes_for_ink(color):
    assert not pen_mask(noisy(picture(color))).any()


def test_red_ink_is_tissue_unless_it_is_left_out():
    rgb = stained()
    where = stroke(rgb, RED_INK, (2, 45), (37, 55))
    assert tissue_mask(rgb)[where].all()
    without = tissue_mask(rgb, exclude_pen=True)
    assert np.array_equal(without, tissue_mask(stained()))


def test_ink_left_out_does_not_hide_pale_tissue_by_raising_the_mean():
    rgb = picture()
    rgb[:, :20] = PALE
    rgb[:, 40:] = RED_INK
    assert not tissue_mask(rgb)[:, :20].any()
    assert tissue_mask(rgb, exclude_pen=True)[:, :20].all()


def test_green_ink_left_out_does_not_hide_tissue_by_lowering_the_mean():
    rgb = picture()
    rgb[:, :20] = PALE
    rgb[:, 30:] = GREEN_INK
    assert not tissue_mask(rgb).any()
    assert tissue_mask(rgb, exclude_pen=True)[:, :20].all()


def test_a_picture_full_of_ink_has_no_tissue():
    assert not tissue_mask(picture(RED_INK), exclude_pen=True).any()


# Where the paper's rule cannot work


def little(glass, share=0.004):
    """A little tissue on noisy glass of a colour."""
    rgb = picture(glass, 200, 300)
    side = round((share * 60000) ** 0.5)
    rgb[50 : 50 + side, 60 : 60 + side] = EOSIN
    return noisy(rgb, 1.2)


def test_on_glass_with_a_tinge_of_green_the_papers_rule_says_that_it_cannot_work():
    mask, doubts = find_tissue(little((240, 243, 240)))
    assert not mask.any()
    assert len(doubts) == 1
    assert "not pink" in doubts[0]
    assert "--tissue robust" in doubts[0]
    mask, doubts = find_tissue(little((240, 243, 240)), "robust")
    assert mask.any()
    assert doubts == []


def test_glass_that_is_taken_for_tissue_is_noticed():
    mask, doubts = find_tissue(little((243, 243, 243)))
    assert mask.mean() > 0.3
    assert "has the colour of glass" in doubts[0]


def test_tissue_that_is_missed_is_noticed():
    rgb = picture(GLASS, 200, 300)
    rgb[:150] = PALE
    rgb[150:190] = RED_INK  # which raises the mean
    _, doubts = find_tissue(noisy(rgb))
    assert "is taken for glass" in doubts[0]
    assert find_tissue(noisy(rgb), exclude_pen=True)[1] == []


def test_where_the_papers_rule_works_nothing_is_said_and_the_mask_is_its_own():
    for rgb in (stained(), noisy(stained())):
        mask, doubts = find_tissue(rgb)
        assert doubts == []
        assert np.array_equal(mask, tissue_mask(rgb))


def test_the_gray_rule_takes_what_is_no_brighter_than_four_fifths():
    rgb = stained()
    rgb[0, :3] = ((204, 204, 204), (205, 205, 205), PALE)
    mask, doubts = find_tissue(rgb, "gray")
    assert doubts == []
    assert mask[0].nonzero()[0].tolist() == [0]
    assert np.array_equal(mask[1:], (rgb[1:] != GLASS).any(axis=2))
    rgb[1, :5] = GREEN_INK
    assert find_tissue(rgb, "gray")[0][1, :5].all()
    assert not find_tissue(rgb, "gray", exclude_pen=True)[0][1, :5].any()


def test_where_the_gray_rule_takes_dim_glass_it_says_so():
    _, doubts = find_tissue(little((198, 197, 199)), "gray")
    assert "has the colour of glass" in doubts[0]
    assert "--tissue robust" in doubts[0]


@pytest.mark.parametrize("rule", ["paper", "robust", "gray"])
def test_that_nothing_is_found_is_said(rule):
    mask, doubts = find_tissue(picture((244, 242, 243)), rule)
    assert not mask.any()
    assert len(doubts) == 1


# Maps of slides


def test_maps_have_16_level_0_pixels_per_pixel_on_the_challenges_slides():
    assert map_downsample(0.467) == 16
    assert map_downsample(0.25) == 30
    assert map_downsample(10.0) == 1


def test_a_mask_of_the_user_takes_the_place_of_the_found_one(tmp_path):
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    write_slide(tmp_path / "one.svs", pixels)
    (tmp_path / "masks").mkdir()
    with Slide(tmp_path / "one.svs") as slide:
        maps = slide_maps(slide, tmp_path / "masks")
        assert any("its tissue was found instead" in line for line in maps.warnings)
        found, downsample = maps.tissue, maps.downsample
        assert downsample == 16
        assert found[:, 80:].all()
        assert not found[:, :70].any()
        mask = np.zeros((40, 60), np.uint8)
        mask[:20] = 255
        write_gray(tmp_path / "masks/one.png", mask)
        maps = slide_maps(slide, tmp_path / "masks")
        given = maps.tissue
        assert not maps.warnings
        assert given.shape == (100, 150)
        assert given[:50].all()
        assert not given[50:].any()
        (tmp_path / "masks/one.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match="tissue mask"):
            slide_maps(slide, tmp_path / "masks")


def test_any_colour_but_black_is_tissue_in_a_mask_of_the_user(tmp_path):
    write_slide(tmp_path / "one.svs", np.full((320, 640, 3), 245, np.uint8))
    write_png(tmp_path / "one.png", np.array([[(0, 0, 0), (0, 0, 1), (9, 0, 0)]], np.uint8))
    with Slide(tmp_path / "one.svs") as slide:
        given = slide_maps(slide, tmp_path).tissue
    assert given.shape == (20, 40)
    assert not given[:, :13].any()
    assert given[:, 14:].all()


def test_the_labels_of_a_slide_are_those_of_the_annotation_beside_it(tmp_path):
    write_slide(tmp_path / "one.svs", np.full((320, 640, 3), 245, np.uint8))
    with Slide(tmp_path / "one.svs") as slide:
        assert slide_maps(slide).labels is None
        square = np.array([[320, 0], [640, 0], [640, 320], [320, 320]], float)
        write_annotation_xml(tmp_path / "one.xml", [Region(2, square)])
        maps = slide_maps(slide)
    assert maps.thumbnail.shape == (20, 40, 3)
    assert (maps.labels[:, :20] == 0).all()
    assert (maps.labels[:, 20:] == 2).all()


def test_a_class_map_decides_labels_and_is_a_part_of_the_fingerprint(tmp_path):
    write_slide(tmp_path / "one.svs", np.full((320, 640, 3), 245, np.uint8))
    square = np.array([[320, 0], [640, 0], [640, 320], [320, 320]], float)
    write_annotation_xml(tmp_path / "one.xml", [Region(2, square)], spelling="text")
    classes = tmp_path / "classes.csv"
    with Slide(tmp_path / "one.svs") as slide:
        before = slide_maps(slide)
        classes.write_text("carcinoma in situ,Invasive\nin situ carcinoma,Invasive\ninsitu,3\n")
        after = slide_maps(slide, class_map=classes)
    assert (set(before.labels.ravel()), set(after.labels.ravel())) == ({0, 2}, {0, 3})
    assert after.annotation["painted"] == 1
    assert map_files(slide.path, None).keys() == {"slide", "annotation", "mask"}
    assert map_files(slide.path, None, classes)["class_map"] == classes


def test_a_pen_mark_is_no_tissue_if_asked_for(tmp_path):
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    pixels[:400, :400] = (200, 20, 40)  # red ink
    write_slide(tmp_path / "pen.svs", pixels)
    with Slide(tmp_path / "pen.svs") as slide:
        with_pen = slide_maps(slide).tissue
        without = slide_maps(slide, exclude_pen=True).tissue
    assert with_pen[:20, :20].all()
    assert not without[:20, :20].any()
    assert without[:, 80:].all()


def slide_on_glass(path, glass=(245, 243, 245)):
    pixels = np.full((1600, 2400, 3), glass, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    write_slide(path, pixels)


def test_the_robust_rule_is_an_option(tmp_path):
    slide_on_glass(tmp_path / "one.svs")
    with Slide(tmp_path / "one.svs") as slide:
        maps = slide_maps(slide, rule="robust")
        assert maps.tissue[:, 80:].all()
        assert not maps.tissue[:, :70].any()
        assert maps.warnings == slide_maps(slide).warnings == ()


def test_what_cannot_be_bright_field_is_refused_unless_the_user_insists(tmp_path, caplog):
    pixels = np.zeros((800, 800, 3), np.uint8)
    pixels[300:400, 300:400] = (20, 40, 220)
    write_slide(tmp_path / "dark.svs", pixels)
    with Slide(tmp_path / "dark.svs") as slide:
        with pytest.raises(InputError, match=r"dark.svs must be H&E[\s\S]*--not-brightfield"):
            slide_maps(slide)
        with pytest.raises(InputError, match="must be H&E"):
            check_pixels(slide, None)
        check_pixels(slide, None, not_brightfield=True)
        maps = slide_maps(slide, not_brightfield=True)
    assert "background is dark" in maps.warnings[0]
    assert "dark: the background is dark" in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF"])
def test_a_mask_is_found_by_the_slides_name_whatever_case_and_ending(tmp_path, suffix):
    slide_on_glass(tmp_path / "one.svs")
    (tmp_path / "masks").mkdir()
    Image.new("L", (60, 40), 255).save(tmp_path / f"masks/ONE{suffix}")
    check_masks(tmp_path / "masks", ["one"], ["one"])
    with Slide(tmp_path / "one.svs") as slide:
        assert slide_maps(slide, tmp_path / "masks").tissue.all()
    assert map_files(tmp_path / "one.svs", tmp_path / "masks")["mask"].name == f"ONE{suffix}"
    # A slide that goes by another name has the mask of that name.
    assert (
        map_files(tmp_path / "1.svs", tmp_path / "masks", name="one")["mask"].name == f"ONE{suffix}"
    )
    Image.new("L", (60, 40), 255).save(tmp_path / "masks/one.tiff")
    if suffix != ".TIFF":
        with (
            pytest.raises(InputError, match="one tissue mask of one"),
            Slide(tmp_path / "one.svs") as slide,
        ):
            slide_maps(slide, tmp_path / "masks")


def test_a_mask_of_another_shape_than_the_slide_is_refused(tmp_path):
    slide_on_glass(tmp_path / "one.svs")
    for size in ((40, 60), (150, 90), (60, 60)):
        write_gray(tmp_path / "one.png", np.full(size[::-1], 255, np.uint8))
        with (
            pytest.raises(InputError, match=r"one.png must show the whole slide"),
            Slide(tmp_path / "one.svs") as slide,
        ):
            check_pixels(slide, tmp_path)
    for size in ((150, 100), (149, 100), (151, 101), (3, 2)):
        write_gray(tmp_path / "one.png", np.full(size[::-1], 255, np.uint8))
        with Slide(tmp_path / "one.svs") as slide:
            assert slide_maps(slide, tmp_path).tissue.all()


def test_a_mask_of_the_whole_slide_is_a_warning(tmp_path):
    slide_on_glass(tmp_path / "one.svs")
    write_gray(tmp_path / "one.png", np.full((40, 60), 255, np.uint8))
    with Slide(tmp_path / "one.svs") as slide:
        maps = slide_maps(slide, tmp_path)
    assert maps.tissue.all()
    assert "takes the whole slide for tissue" in maps.warnings[0]


def test_an_empty_mask_is_a_warning(tmp_path, caplog):
    slide_on_glass(tmp_path / "one.svs")
    write_gray(tmp_path / "one.png", np.zeros((40, 60), np.uint8))
    with Slide(tmp_path / "one.svs") as slide:
        maps = slide_maps(slide, tmp_path)
    assert not maps.tissue.any()
    assert "is empty" in maps.warnings[0]
    assert "one.png is empty" in caplog.text


def test_a_folder_of_masks_without_effect_is_an_error(tmp_path, caplog):
    check_masks(None, ["one"])
    for folder in (tmp_path / "typo", tmp_path / "a file"):
        (tmp_path / "a file").touch()
        with pytest.raises(InputError, match=r"--masks must be a folder"):
            check_masks(folder, ["one"])
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InputError, match="Received: nothing; the slides are one"):
        check_masks(masks, ["one"])
    (masks / "one.jpg").touch()
    with pytest.raises(InputError, match=r"Received: one.jpg"):
        check_masks(masks, ["one"])
    (masks / "one.png").touch()
    (masks / "two.png").touch()
    (masks / "onee.png").touch()
    with pytest.raises(InputError, match=r"belong to a slide[\s\S]*Received: onee.png"):
        check_masks(masks, ["one"], ["one", "two", "three"])
    assert not caplog.records
    check_masks(masks, ["one", "three"])
    assert "no slide of this run: onee.png, two.png" in caplog.text
    assert "of three: tissue is found there" in caplog.text


def test_an_annotation_that_lies_on_glass_is_doubted(tmp_path):
    pixels = np.full((1600, 2400, 3), 245, np.uint8)
    pixels[:, 1200:] = (235, 180, 215)
    write_slide(tmp_path / "one.svs", pixels)
    for left, doubted in ((0, True), (1000, False), (1300, False)):
        square = np.array([(left, 0), (left + 800, 0), (left + 800, 800), (left, 800)], float)
        write_annotation_xml(tmp_path / "one.xml", [Region(3, square)], 0.467, "text")
        with Slide(tmp_path / "one.svs") as slide:
            warnings = slide_maps(slide).warnings
        assert any("0% of what is annotated is tissue" in line for line in warnings) == doubted


def test_every_colour_has_the_a_and_b_of_scikit_image_to_the_last_bit():
    colors = np.arange(0, 1 << 24, 7, dtype=np.uint32).view(np.uint8).reshape(-1, 4)[:, :3]
    colors = np.ascontiguousarray(colors[: len(colors) // 64 * 64].reshape(-1, 64, 3))
    expected = rgb2lab(colors).astype(np.float32)
    expected[np.abs(expected) < 0.01] = 0
    for index, channel in enumerate("ab", start=1):
        assert np.array_equal(_lab(colors, channel), expected[..., index])


@pytest.mark.parametrize(("mpp", "doubted"), [(None, False), (0.47, False), (4.67, True)])
def test_a_scale_that_contradicts_the_file_is_said(tmp_path, mpp, doubted):
    slide_on_glass(tmp_path / "one.svs")
    with Slide(tmp_path / "one.svs", mpp=mpp) as slide:
        warnings = slide_maps(slide).warnings
    said = [line for line in warnings if "4.67 um/px (--mpp), but its file says 0.467" in line]
    assert bool(said) == doubted
