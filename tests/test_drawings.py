import numpy as np
import pytest

from bach.classes import CLASSES, COLORS
from bach.core import drawings
from bach.core.drawings import (
    Panel,
    Words,
    color_bar,
    color_classes,
    color_heat,
    contact_sheet,
    draw_boxes,
    drawable,
    heat_colors,
    legend,
    outline_tissue,
    plate,
    resized,
    scale_bar,
    strip,
    text_width,
    wrap,
    write,
)


def ink(text, size=20):
    picture = np.full((40, 400, 3), 255, np.uint8)
    write(picture, text, (4, 4), size)
    return picture


# Text


def test_letters_of_other_scripts_are_drawn_and_each_name_in_its_own_way():
    names = ["Präparat", "Praparat", "Срез", "τομή", "中文", "日本"]
    pictures = [ink(name).tobytes() for name in names]
    assert len(set(pictures)) == len(names)
    assert drawable("中x") == "<U+4E2D>x"  # the font has no Chinese
    assert drawable("Präparat") == "Präparat"
    assert drawable("Pra\u0308parat") == "Präparat"  # as macOS writes names of files
    assert drawable("a\nb\x07") == "a<U+000A>b<U+0007>"


def test_what_is_drawn_has_the_width_that_was_said():
    for text in ("Invasive", "Präparat 3", "中"):
        columns = np.flatnonzero((ink(text) < 255).any(axis=(0, 2)))
        assert abs(columns[-1] - 4 - text_width(text, 20)) <= 3
        assert columns[0] >= 3


def test_text_that_reaches_beyond_a_picture_is_drawn_as_far_as_it_goes():
    for place in ((-30, 5), (390, 5), (5, -10), (5, 35), (500, 500), (-400, 5)):
        picture = np.full((40, 400, 3), 255, np.uint8)
        write(picture, "Invasive", place, 20)


@pytest.mark.parametrize("width", [40, 100, 300])
def test_wrapped_lines_fit_and_lose_no_letter(width):
    text = "half of the pixels are below 22 of 255, " + "x" * 100
    lines = wrap(text, width, 13)
    assert all(text_width(line, 13) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", width, 13) == [""]


def test_a_strip_has_room_for_every_line_and_cuts_nothing_off():
    ground = (180, 0, 0)
    long = "A01: half of the pixels are below 22 of 255, as in fluorescence or inverted colours"
    banner = strip(["A01: short", long], 200, 13, ((255, 255, 255), ground))
    assert banner.shape[0] > 60
    for edge in (banner[:, -3:], banner[:, :3], banner[:2], banner[-2:]):
        assert (edge == ground).all()
    assert strip([], 200, 13).shape == (0, 200, 3)


# Sheets


def test_a_contact_sheet_has_room_for_every_picture_and_none():
    images = [np.full((299, 299, 3), 50 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, [str(i) for i in range(5)], columns=2, side=40)
    row = 40 + drawings.line_height(13) + 8
    assert sheet.shape == (3 * row + 8, 2 * 48 + 8, 3)
    assert (sheet[8 + 20, 8 + 20] == 0).all()
    assert (sheet[8 + 2 * row + 20, 8 + 20] == 200).all()
    assert contact_sheet([], []).ndim == 3


def test_captions_keep_to_their_cell_and_the_row_grows():
    images = [np.full((60, 60, 3), 255, np.uint8)] * 3
    texts = ["slide with quite a long name\nInvasive as Normal", "", "x" * 40]
    sheet = contact_sheet(images, texts, columns=3, side=60)
    assert sheet.shape[0] > 60 + 5 * drawings.line_height(13)
    dark = (sheet < 250).any(axis=(0, 2))
    for cell in range(4):
        assert not dark[cell * 68 : cell * 68 + 7].any()
    assert not dark[76 : 76 + 60].any()  # the second has no caption


# Keys


@pytest.mark.parametrize("width", [700, 400, 200, 100])
def test_a_legend_shows_all_four_colours_whatever_the_width(width):
    shown = legend(width, CLASSES, COLORS)
    assert shown.shape[1] == width
    for color in COLORS:
        assert (shown == color).all(axis=2).sum() == 13 * 13
    # The right edge stays white: no name is cut off.
    assert (shown[:, -1] == 255).all()


@pytest.mark.parametrize(
    ("um_per_px", "most", "pixels"),
    [(10, 120, 100), (7.47, 150, 134), (0.25, 100, 80), (100, 100, 100), (3.0, 1, 2)],
)
def test_a_scale_bar_is_as_long_as_it_says(um_per_px, most, pixels):
    bar = scale_bar(um_per_px, most, 15)
    row = (bar[:6] == drawings.INK).all(axis=2).sum(axis=1).max()  # above the letters
    assert row == pixels
    assert row <= max(most, 2)


def test_a_colour_bar_goes_through_all_colours_of_the_heatmap():
    bar = color_bar("heat", 15)
    for value in (0.0, 1.0):
        assert (bar == heat_colors(np.full((1, 1), value))[0, 0]).all(axis=2).any()


# Panels


def test_classes_colour_all_but_the_first():
    thumbnail = np.full((60, 500, 3), 200, np.uint8)
    classes = np.zeros((60, 500), np.uint8)
    classes[20:40, 100:200] = 3
    picture = color_classes(thumbnail, classes, COLORS)
    assert (picture[5, 5] == 200).all()
    expected = 0.55 * 200 + 0.45 * np.array(COLORS[3])
    assert np.abs(picture[30, 150] - expected).max() <= 1
    assert (picture[20, 150] == COLORS[3]).all()  # its outline
    where = np.tile(np.arange(500) < 150, (60, 1))
    part = color_classes(thumbnail, classes, COLORS, where=where)
    assert np.array_equal(part[:, :150], picture[:, :150])
    assert (part[30, 160] == 200).all()
    assert (part[20, 160] == COLORS[3]).all()


def test_a_heatmap_is_coloured_where_it_is_known_and_gray_elsewhere():
    picture = np.full((4, 6, 3), (240, 10, 200), np.uint8)
    where = np.tile(np.arange(6) < 3, (4, 1))
    shown = color_heat(picture, np.zeros((4, 6)), where)
    assert (shown[:, :3] == heat_colors(np.zeros((1, 1)))[0, 0]).all()
    assert (shown[:, 3:] > 80).all()
    assert (shown[:, 3:] == shown[:, 3:, :1]).all()


def test_outer_outlines_and_large_holes_are_drawn_and_glass_is_tinted():
    tissue = np.zeros((200, 200), bool)
    tissue[20:180, 20:180] = True
    tissue[40:80, 40:80] = False  # a hole of 40 x 40 px
    tissue[100:104, 100:104] = False  # and one of 4 x 4
    tissue[5:8, 5:8] = True  # a speck
    thumbnail = np.full((200, 200, 3), 230, np.uint8)
    picture = outline_tissue(thumbnail, tissue, 10.0, (10_000, 100_000))
    black = (picture == 0).all(axis=2)
    assert black[20, 20:180].all()
    assert black[39:81, 39:81].any()
    assert not black[95:110, 95:110].any()
    assert not black[:10, :10].any()
    assert (picture[150, 150] == 230).all()
    assert len({tuple(picture[y, x]) for y, x in ((60, 60), (102, 102), (1, 190))}) == 1
    assert picture[60, 60, 0] < picture[60, 60, 2] < 230
    empty = outline_tissue(thumbnail, np.zeros_like(tissue), 10.0, (0, 0))
    assert not (empty == 0).any()


def test_boxes_are_drawn_where_they_are_and_do_not_touch():
    picture = np.full((100, 400, 3), 250, np.uint8)
    boxes = np.array([[100 + 20 * col, 20 + 20 * row, 50] for col in range(3) for row in range(2)])
    draw_boxes(picture, boxes, [COLORS[1]] * len(boxes))
    # The middle is at 125, 45; 16 of the 20 px to the next are the square's.
    assert (picture[37, 117] == COLORS[1]).all()
    assert (picture[52, 132] == COLORS[1]).all()
    assert (picture[45, 125] == 250).all()
    assert (picture[45, 134:136] == 250).all()
    for few in (np.zeros((0, 3)), boxes[:1]):
        draw_boxes(picture, few, [COLORS[0]] * len(few))


def test_maps_are_resized_by_what_they_hold():
    classes = np.array([[0, 3], [1, 2]], np.uint8)
    assert set(np.unique(resized(classes, (9, 7)))) == {0, 1, 2, 3}
    assert resized(np.eye(40, dtype=bool), (10, 10)).dtype == bool
    assert resized(np.zeros((40, 30, 3), np.uint8), (80, 60)).shape == (80, 60, 3)


# Plates


def panels(count):
    return [
        Panel(f"panel {k}", lambda shape: np.full((*shape, 3), (9, 99, 199), np.uint8))
        for k in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "shape", [(1, 1), (30, 40), (4000, 60), (60, 4000), (400, 500), (7800, 11716), (1, 5000)]
)
def test_a_plate_is_of_a_size_to_look_at_whatever_the_maps(shape, count):
    words = Words("name " * 30, ["note"], ["warning " * 60], lambda size: [color_bar("h", size)])
    picture = plate(panels(count), shape, 8.0, words)
    assert 800 <= max(picture.shape[:2]) <= 3000
    high = (picture == (9, 99, 199)).all(axis=2)
    # Panels have the proportions of the maps, and are not lost between the words.
    rows, cols = high.any(axis=1).sum(), high.any(axis=0).sum()
    assert rows * cols >= 0.03 * picture.shape[0] * picture.shape[1] or min(shape) < 100


def test_wide_slides_are_laid_below_each_other_and_others_beside():
    words = Words("name", [], [], lambda size: [])
    wide, tall = (plate(panels(3), shape, 8.0, words) for shape in ((60, 4000), (600, 400)))
    runs = [(p == (9, 99, 199)).all(axis=2) for p in (wide, tall)]
    assert np.diff(runs[0].any(axis=1).astype(int)).clip(0).sum() == 3
    assert np.diff(runs[1].any(axis=0).astype(int)).clip(0).sum() == 3


def test_letters_are_in_proportion_to_the_picture():
    words = Words("name", [], [], lambda size: [np.zeros((size, size, 3), np.uint8)])
    small, large = (
        (plate(panels(1), shape, 8.0, words) == 0).all(axis=2).sum()
        for shape in ((800, 800), (3000, 3000))
    )
    assert large == pytest.approx(small * (3000 / 800) ** 2, rel=0.2)
