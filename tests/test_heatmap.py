"""From patch predictions to maps, and from maps to others, without a network."""

import dataclasses
import json

import numpy as np
import pytest
from made_up import slide_record

import make_heatmap
from bach import heatmap, runs, submission, thresholds
from bach.classes import COLORS
from bach.core.drawings import heat_colors
from bach.core.errors import InputError
from bach.core.files import write_json
from bach.core.pictures import read_mask, read_rgb
from bach.core.run import Run, read_record
from bach.heatmap import (
    MapRule,
    areas_mm2,
    cell_um,
    cells_to_map,
    clip_to_tissue,
    draw_maps,
    heatmap_patches,
    read_source,
    record_file,
    slide_scores,
    stitch,
    summarise,
    to_classes,
    to_heatmap,
    write_maps,
)
from bach.honest.records import read_slides, write_slide
from bach.labels import read_class_map
from bach.patches import SlideMaps, grid_shape
from bach.scores import part_b_score
from bach.slides import Slide
from bach.toy.aperio import write_slide as write_aperio

MPP = 0.467
STEP_UM = 125.58
STEP = STEP_UM / MPP


def test_cells_cover_the_slide_to_its_far_corner():
    width, height = 42113, 62625
    rows, cols = grid_shape(width, height, STEP)
    assert cols * STEP >= width > (cols - 1) * STEP
    assert rows * STEP >= height > (rows - 1) * STEP


def test_patches_are_centred_on_their_cells_everywhere():
    tissue = np.ones((3915, 2633), bool)
    table = heatmap_patches(SlideMaps("A01", 42113, 62625, MPP, 16, tissue), STEP_UM)
    assert len(table) == np.prod(grid_shape(42113, 62625, STEP))
    centre = table["x"] + table["size"] / 2
    assert np.abs(centre - (table["col"] + 0.5) * STEP).max() < 1e-6
    centre = table["y"] + table["size"] / 2
    assert np.abs(centre - (table["row"] + 0.5) * STEP).max() < 1e-6


def test_a_slide_without_tissue_has_no_patch_and_an_empty_map():
    table = heatmap_patches(SlideMaps("A01", 5000, 4000, MPP, 16, np.zeros((250, 313), bool)))
    assert table.empty
    probs = stitch(table, np.zeros((0, 4)), (3, 4))
    assert np.isnan(probs).all()
    assert (to_heatmap(probs) == 0).all()
    assert (to_classes(to_heatmap(probs)) == 0).all()


def test_a_slide_smaller_than_a_cell_has_one():
    table = heatmap_patches(SlideMaps("A01", 100, 90, MPP, 16, np.ones((6, 7), bool)))
    assert grid_shape(100, 90, STEP) == (1, 1)
    assert table.empty  # the patch around it holds under 5% tissue
    table = heatmap_patches(SlideMaps("A01", 600, 600, MPP, 16, np.ones((38, 38), bool)))
    assert len(table) == 9


def test_the_heatmap_is_the_expected_class_divided_by_3():
    probs = np.array([[[1, 0, 0, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]]], np.float32)
    assert to_heatmap(probs)[0].tolist() == pytest.approx([0, 1, 0.5])


def test_thresholds_belong_to_the_class_they_begin():
    values = np.array([0, 0.3499, 0.35, 0.6999, 0.70, 0.7499, 0.75, 1.0], np.float32)
    assert to_classes(values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert to_classes(values, (0.25, 0.5, 0.75)).tolist() == [0, 1, 1, 2, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="3 ascending"):
        to_classes(values, (0.5, 0.4, 0.7))


def test_cells_are_spread_over_the_map_without_drift():
    rows, cols = grid_shape(42113, 62625, STEP)[::-1]
    rows, cols = grid_shape(42113, 62625, STEP)
    values = np.arange(rows * cols).reshape(rows, cols)
    spread = cells_to_map(values, STEP, 16, (3915, 2633))
    assert spread[0, 0] == 0
    assert spread[-1, -1] == values[-1, -1]
    for row, col in ((1000, 2000), (3914, 5), (7, 2632)):
        cell = values[int((row + 0.5) * 16 / STEP), int((col + 0.5) * 16 / STEP)]
        assert spread[row, col] == cell


def test_areas_are_in_mm2_and_glass_is_no_normal_tissue():
    class_map = np.zeros((100, 100), np.uint8)
    class_map[:10] = 3
    tissue = np.zeros((100, 100), bool)
    tissue[:50] = True
    maps = SlideMaps("A01", 2000, 2000, 0.5, 20, tissue)  # a pixel is 10 um
    areas = areas_mm2(class_map, maps)
    assert areas["Invasive"] == pytest.approx(0.1)
    assert areas["Normal"] == pytest.approx(0.4)
    assert areas["Benign"] == 0


def test_a_map_that_is_clipped_is_normal_off_tissue():
    tissue = np.zeros((60, 80), bool)
    tissue[20:40, 30:50] = True
    thumbnail = np.full((60, 80, 3), 240, np.uint8)
    everywhere = np.full((60, 80), 1, np.uint8)
    maps = SlideMaps("A01", 1280, 960, MPP, 16, tissue, thumbnail=thumbnail)
    clipped = clip_to_tissue(everywhere, maps)
    assert clipped.dtype == np.uint8
    assert np.array_equal(clipped == 1, tissue)


def drawn(maps, class_map, probs=None, **changes):
    """The picture of a slide of one cell to a thumbnail px, and where its panels begin."""
    probs = np.full((*class_map.shape, 4), 0.25, np.float32) if probs is None else probs
    record = slide_record(
        maps.name,
        width=maps.width,
        height=maps.height,
        areas_mm2=areas_mm2(class_map, maps),
        **{"step": float(maps.downsample)} | slide_scores(class_map, maps) | changes,
    )
    return draw_maps(maps, class_map, probs, record)


def color_counts(picture):
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, c)): int(n) for c, n in zip(colors, counts, strict=True)}


def test_glass_is_clear_in_every_panel_and_gray_in_the_heatmap():
    tissue = np.zeros((300, 400), bool)
    tissue[100:200, 150:250] = True
    thumbnail = np.full((300, 400, 3), (240, 200, 220), np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, thumbnail=thumbnail)
    counts = color_counts(drawn(maps, np.full((300, 400), 1, np.uint8)))
    share = tissue.mean()
    # Of two panels, one shows the thumbnail off tissue; no heat off tissue is black.
    size = counts[240, 200, 220] / (1 - share)
    assert 385 * 290 < size < 400 * 300
    blended = tuple(np.rint(np.array([240, 200, 220]) * 0.55 + np.array(COLORS[1]) * 0.45))
    assert 0.9 * share * size < counts[blended] < 1.05 * share * size
    heat = tuple(map(int, heat_colors(np.full((1, 1), 0.5))[0, 0]))
    assert 0.95 * share * size < counts[heat] < 1.05 * share * size + 50
    assert counts.get((0, 0, 0), 0) < 1000  # letters


def test_what_was_not_predicted_has_no_heat():
    tissue = np.ones((300, 400), bool)
    thumbnail = np.full((300, 400, 3), 200, np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, thumbnail=thumbnail)
    probs = np.full((300, 400, 4), np.nan, np.float32)
    probs[:, :200] = (0, 0, 0, 1)
    counts = color_counts(drawn(maps, np.zeros((300, 400), np.uint8), probs))
    hot = tuple(map(int, heat_colors(np.ones((1, 1)))[0, 0]))
    cold = tuple(map(int, heat_colors(np.zeros((1, 1)))[0, 0]))
    assert 50_000 < counts[hot] < 62_000
    assert counts.get(cold, 0) < 2_000  # the end of the colour bar


def test_the_truth_is_drawn_in_a_panel_of_its_own_and_warnings_stand_above():
    labels = np.zeros((300, 400), np.uint8)
    labels[50:250, 100:300] = 3
    tissue = np.ones((300, 400), bool)
    tissue[:, :200] = False
    thumbnail = np.full((300, 400, 3), 240, np.uint8)
    maps = SlideMaps("A01", 6400, 4800, MPP, 16, tissue, labels, thumbnail)
    plain = drawn(maps, np.zeros_like(labels))
    blended = tuple(np.rint(np.full(3, 240) * 0.55 + np.array(COLORS[3]) * 0.45))
    assert 17_000 < color_counts(plain)[blended] < 20_100  # half of the region is on glass
    assert color_counts(plain)[COLORS[3]] > 700  # but its outline is whole
    warned = drawn(maps._replace(warnings=("it is dark",)), np.zeros_like(labels))
    assert (warned[0] == (180, 0, 0)).all()
    assert not (plain == (180, 0, 0)).all(axis=2).any()


@pytest.mark.parametrize(
    ("width", "height"), [(7, 6), (1, 1), (3, 900), (2000, 40), (400, 300), (6000, 4000)]
)
@pytest.mark.parametrize("annotated", [True, False])
def test_a_picture_has_800_to_3000_px_whatever_the_slide(width, height, annotated):
    tissue = np.ones((height, width), bool)
    class_map = np.zeros((height, width), np.uint8)
    thumbnail = np.full((height, width, 3), 240, np.uint8)
    name = "Präparat 中 " * 12 + "x" * 200
    maps = SlideMaps(
        name,
        *(width * 16, height * 16, MPP, 16, tissue),
        class_map if annotated else None,
        thumbnail,
        warnings=("a long story " * 20,),
    )
    probs = np.full((1, 1, 4), 0.25, np.float32)
    picture = drawn(maps, class_map, probs, step=1e6)
    assert 800 <= max(picture.shape[:2]) <= 3000
    assert (picture[:, -2:] == (180, 0, 0)).all(axis=2).any()  # the banner goes all the way


# Class maps anew from a finished run


NAME = "Präparat 1 #a"


def put_slide(run, slide, name, seed, annotated):
    """What make_heatmap.py writes of a slide, whatever a network said."""
    rng = np.random.default_rng(seed)
    with Slide(slide, mpp=MPP) as opened:
        thumbnail = opened.thumbnail(16 * MPP)
        size = opened.width, opened.height
    tissue = np.zeros(thumbnail.shape[:2], bool)
    tissue[10:60, 10:90] = True
    labels = rng.integers(0, 4, tissue.shape).astype(np.uint8) if annotated else None
    maps = SlideMaps(*(name, *size, MPP, 16, tissue, labels, thumbnail), warnings=("it is odd",))
    cells = grid_shape(*size, STEP)
    probs = rng.dirichlet(np.ones(4), cells).astype(np.float32)
    probs[0] = np.nan
    record = slide_record(
        name, path=str(slide), width=size[0], height=size[1], mpp=MPP, step=STEP, downsample=16
    )
    record = dataclasses.replace(record, warnings=maps.warnings, key={"slide": "x"})
    record = write_maps(run, maps, probs, record, MapRule(rule="least-cost"))
    write_slide(record_file(run, name), record)
    return record


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A finished run on two slides, one of them annotated."""
    monkeypatch.chdir(tmp_path)
    args = make_heatmap.Options(
        run_dir=str(tmp_path / "source"), rule="least-cost", model_dir="runs/final"
    )
    run = Run(args)
    (tmp_path / "slides").mkdir()
    pixels = np.random.default_rng(0).integers(100, 255, (1100, 1600, 3), np.uint8)
    records = []
    with run.start(devices=1, device="CPU", backend="jax", precision="float32"):
        for seed, name in enumerate((NAME, "b")):
            slide = tmp_path / "slides" / f"{name}.svs"
            write_aperio(slide, pixels, mpp=MPP)
            records.append(put_slide(run.path, f"slides/{slide.name}", name, seed, not seed))
        write_json(run.path / "failures.json", {"c": "it is cut short"})
        run.finish(summarise(records, {"c": "it is cut short"}, run.path))
    return run.path


def contents(run, left_out=("run.json", "log.txt")):
    """Every file of a run by its path; of records, what depends neither on time nor on keys."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in left_out and path.name != ".lock":
            content = path.read_bytes()
            if path.parent.name == "slides":
                record = json.loads(content)
                content = {k: v for k, v in record.items() if k not in ("seconds", "key")}
            found[str(path.relative_to(run))] = content
    return found


def test_the_same_rule_gives_the_same_files_and_the_run_is_left_as_it_was(source, tmp_path):
    before = contents(source, ())
    words = [str(source), "--rule", "least-cost", "--out", str(tmp_path / "new")]
    assert heatmap.main(words) == 1  # one slide has failed
    assert contents(tmp_path / "new") == contents(source)
    assert contents(source, ()) == before
    record = read_record(tmp_path / "new")
    assert record["status"] == "complete but for c"
    assert record["made_from"]["run"] == str(source)
    assert record["made_from"]["model_dir"] == str(tmp_path / "runs/final")
    assert record["made_from"]["command"].startswith("make_heatmap.py")
    assert record["command"].startswith("-m bach.heatmap")


def test_another_rule_gives_other_class_maps_and_scores_of_the_same_heatmaps(source, tmp_path):
    words = "--thresholds 0.2 0.4 0.6 --clip-to-tissue --out"
    heatmap.main([str(source), *words.split(), str(tmp_path / "new")])
    old, new = contents(source), contents(tmp_path / "new")
    assert old.keys() == new.keys()
    same = {name for name in old if old[name] == new[name]}
    assert {name.split("/")[0] for name in same} == {
        *("failures.json", "heatmaps", "probs", "tissue", "truth")
    }
    class_map = read_class_map(tmp_path / f"new/class_maps/{NAME}.png")
    values = np.load(source / f"heatmaps/{NAME}.npy")
    tissue = read_mask(source / f"tissue/{NAME}.png", "")
    wanted = cells_to_map(to_classes(values, (0.2, 0.4, 0.6)), STEP, 16, class_map.shape)
    assert np.array_equal(class_map, np.where(tissue, wanted, 0))
    truth = read_class_map(source / f"truth/{NAME}.png")
    score = read_slides(tmp_path / "new")[NAME].score
    assert score == pytest.approx(part_b_score(class_map, truth))


def test_a_run_that_was_made_anew_can_be_the_source_of_another(source, tmp_path):
    heatmap.main([str(source), "--out", str(tmp_path / "one")])
    heatmap.main([str(tmp_path / "one"), "--rule", "least-cost", "--out", str(tmp_path / "two")])
    assert contents(tmp_path / "two") == contents(source)
    made_from = read_record(tmp_path / "two")["made_from"]
    assert made_from["made_from"]["model_dir"] == str(tmp_path / "runs/final")


def test_without_the_slides_all_but_the_background_comes_out_and_a_note_says_so(source, tmp_path):
    words = [str(source), "--rule", "least-cost"]
    (tmp_path / "slides").rename(tmp_path / "moved")
    heatmap.main([*words, "--out", str(tmp_path / "without")])
    heatmap.main([*words, "--slides-dir", "moved", "--out", str(tmp_path / "with")])
    old, without = contents(source), contents(tmp_path / "without")
    assert contents(tmp_path / "with") == old
    differ = {name for name in old if old[name] != without[name]}
    assert differ == {f"overlays/{NAME}.png", "overlays/b.png"}
    picture = read_rgb(tmp_path / "without/overlays/b.png", "")
    assert (picture[0] == (180, 0, 0)).all()
    assert "--slides-dir" in (tmp_path / "without/log.txt").read_text()
    # Another slide of the same name, and no slide, are no background either.
    write_aperio(tmp_path / "moved/b.svs", np.zeros((600, 600, 3), np.uint8), mpp=MPP)
    (tmp_path / f"moved/{NAME}.svs").write_text("no slide")
    heatmap.main([*words, "--slides-dir", "moved", "--out", str(tmp_path / "other")])
    other = contents(tmp_path / "other")
    assert {name for name in old if old[name] != other[name]} == differ


def test_a_run_made_anew_is_never_overwritten_and_goes_on_with_resume(source, tmp_path):
    words = [str(source), "--out", str(tmp_path / "new")]
    heatmap.main(words)
    with pytest.raises(InputError, match=r"already holds a finished run(?s:.)*--out"):
        heatmap.main(words)
    made = (tmp_path / "new/slides/b.json").stat().st_mtime_ns
    assert heatmap.main([*words, "--resume"]) == 1
    assert (tmp_path / "new/slides/b.json").stat().st_mtime_ns == made
    with pytest.raises(InputError, match="--rule: thresholds then, least-cost now"):
        heatmap.main([*words, "--resume", "--rule", "least-cost"])
    for resume in ([], ["--resume"]):
        with pytest.raises(InputError, match="a folder of its own"):
            heatmap.main([str(source), "--out", f"{source}/../source", *resume])
    # Once the slide is mended there, its heatmap is made here too.
    record = put_slide(source, "slides/b.svs", "c", 7, True)
    records = [*read_source(source).slides.values(), record]
    write_json(source / "metrics.json", summarise(records, {}, source))
    assert heatmap.main([*words, "--resume"]) == 0
    assert (tmp_path / "new/class_maps/c.png").exists()
    assert read_record(tmp_path / "new")["status"] == "finished"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("metrics.json", None, "finish it: the same command with --resume"),
        ("slides.csv", None, "without slides.csv"),
        ("run.json", None, "without run.json"),
        ("run.json", b"{", "hold JSON"),
        ("slides/b.json", None, "b: no record"),
        ("slides/b.json", b"{}", "b.json"),
        ("probs/b.npy", None, "b: .*b.npy"),
        ("probs/b.npy", b"x", "b: .*b.npy"),
        ("tissue/b.png", None, "b: .*b.png"),
        (f"truth/{NAME}.png", b"x", "#a: .*a.png"),
    ],
)
def test_what_is_missing_or_damaged_is_named_and_nothing_is_written(
    source, tmp_path, file, damage, message
):
    (source / file).unlink() if damage is None else (source / file).write_bytes(damage)
    with pytest.raises(InputError, match=message):
        heatmap.main([str(source), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2, 4), np.float32), None, np.zeros((1, 1, 4), np.float64)]
)
def test_probabilities_that_are_none_or_of_another_slide_are_refused(source, tmp_path, values):
    probs = np.load(source / "probs/b.npy")
    probs[-1, -1, 0] = 7
    np.save(source / "probs/b.npy", probs if values is None else values)
    with pytest.raises(InputError, match="b: The files of b must fit its record"):
        heatmap.main([str(source), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_script_and_thresholds_that_fall_are_refused(source, tmp_path):
    for path in ("slides.csv", "slides/b.json", f"slides/{NAME}.json"):
        (source / path).unlink()
    with pytest.raises(InputError, match=r"finished run of make_heatmap.py"):
        heatmap.main([str(source), "--out", str(tmp_path / "new")])
    with pytest.raises(InputError, match="must ascend"):
        heatmap.main([str(source), "--out", "new", "--thresholds", "0.5", "0.4", "0.6"])
    with pytest.raises(InputError, match="folder of slides"):
        heatmap.main([str(source), "--out", "new", "--slides-dir", "nowhere"])


def test_the_commands_that_read_runs_read_one_that_was_made_anew(source, tmp_path, capsys):
    heatmap.main([str(source), "--out", str(tmp_path / "new")])
    assert "| new" in runs.table([str(tmp_path / "new")])
    thresholds.main([str(tmp_path / "new")])
    assert (tmp_path / "new/thresholds.json").exists()
    class_maps, _ = submission.read_heatmap_run(tmp_path / "new")
    assert set(class_maps) >= {"b"}


def test_cells_larger_than_a_patch_would_leave_gaps():
    assert cell_um(627.9, "patches") == 627.9
    assert cell_um(None, "patches") == pytest.approx(125.58)
    assert cell_um(None, "dense") == pytest.approx(67.2)
    with pytest.raises(InputError, match=r"no larger than a patch, 627\.9 um"):
        cell_um(628, "patches")
