"""Reports: what the pages say, and what they show in a browser, from a disk and without network."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from browsers import opened
from made_runs import heatmap_run, mined_run, part_a_run, record

from bach.core.errors import InputError
from bach.core.tables import read_table
from bach.report.__main__ import main
from bach.report.pages import Request, find_runs, write_report

BROWSERS = ("chromium", "firefox")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pipeline: photos' predictions, hard examples, and two slides with odd names."""
    folder = tmp_path_factory.mktemp("pipeline") / "runs"
    part_a_run(folder / "part_a")
    mined_run(folder / "hard_examples", "A 01 <b>é")
    heatmap_run(folder / "heatmaps", ("A 01 <b>é", "zwei#2%"))
    return folder


@pytest.fixture(scope="module")
def report(runs):
    """The report of all of them."""
    return write_report(Request([runs], runs.parent / "a report")).parent


def slide_pages(report: Path) -> list[Path]:
    return sorted((report / "slides").glob("*/index.html"))


# Files


def test_every_link_and_picture_of_the_pages_is_there(report):
    for page in [report / "index.html", *slide_pages(report)]:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r'(?:src|href)="([^"#][^"#]*)(?:#[^"]*)?"', text)
        assert len(targets) > 4
        for target in targets:
            if not target.startswith("data:"):
                assert (page.parent / target).exists(), (page, target)


def test_nothing_in_a_report_names_another_place(report):
    for file in report.rglob("*"):
        if file.suffix in (".html", ".css", ".js") and "openseadragon" not in file.name:
            found = re.findall(
                r"""(?:src|href)=["']?[a-z]+:|url\(|@import|fetch\(""", file.read_text()
            )
            assert set(found) <= {'href="data:'}, file


def test_names_of_slides_are_text_and_never_markup(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert "A 01 &lt;b&gt;é" in text
    assert "A 01 <b>" not in text
    for page in slide_pages(report):
        assert re.fullmatch(r"\d{3}_[\w-]*", page.parent.name, re.ASCII)
        assert "<b>" not in (page.parent / "slide.js").read_text(encoding="utf-8")


def test_a_report_says_how_each_run_was_made_and_what_came_out(report, runs):
    text = (report / "index.html").read_text(encoding="utf-8")
    for words in ("0123456789abcdef", "10 min 0 s", "<dt>seed</dt><dd>3</dd>", "Step 2, hard"):
        assert words in text
    wrong = read_table(runs / "part_a" / "predictions.csv")
    wrong = wrong[wrong["label"] != wrong["predicted"]]
    assert len(wrong) > 2
    assert f"All {len(wrong)} mistakes" in text
    for name in wrong["image_id"]:
        assert f'<th scope="row">{name}</th>' in text
    assert "photos of" in text  # are not at hand: said, not hidden
    assert text.count("<figure>") == 2 + 1 + 1 + 2  # curves, reliability, example, slides


def test_the_tiles_of_a_slide_are_the_slide(report, runs):
    from bach.slides import Slide

    folder = slide_pages(report)[0].parent
    about = json.loads((folder / "page.json").read_text(encoding="utf-8"))["slide"]
    image = about["image"]
    assert image["scale"] * about["mpp"] == pytest.approx(2.0)
    top = folder / "tiles" / str(image["levels"] - 1)
    tile = cv2.cvtColor(cv2.imread(str(top / "0_0.jpg")), cv2.COLOR_BGR2RGB)
    with Slide(runs / "slides" / "A 01 <b>é.svs") as slide:
        truth = slide.thumbnail(2.0)
    assert tile.shape == truth.shape == (image["height"], image["width"], 3)
    assert np.abs(tile.astype(int) - truth).mean() < 4  # of JPEG


def test_a_pyramid_has_every_level_down_to_one_tile(tmp_path):
    from bach.report.viewer import write_tiles

    picture = np.zeros((1500, 2500, 3), np.uint8)
    about = write_tiles(tmp_path, picture, "bin", lambda tile: bytes(tile.shape[:2] != ()), 1)
    assert about["levels"] == 3
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.bin"))
    assert found == [
        "0/0_0.bin",
        *("1/0_0.bin", "1/1_0.bin"),
        *("2/0_0.bin", "2/0_1.bin", "2/1_0.bin", "2/1_1.bin", "2/2_0.bin", "2/2_1.bin"),
    ]


def test_places_are_where_the_network_is_most_wrong_and_do_not_overlap(report):
    about = json.loads((slide_pages(report)[0].parent / "page.json").read_text(encoding="utf-8"))
    cells = [place for place in about["slide"]["places"] if place["kind"] == "cell"]
    assert cells
    assert cells[0]["title"].startswith("Invasive taken for Normal, difficulty 2.10")
    for index, one in enumerate(cells):
        for other in cells[:index]:
            assert max(abs(one[axis] - other[axis]) for axis in "xy") >= one["size"]
    examples = [place for place in about["slide"]["places"] if place["kind"] == "example"]
    assert [place["x"] for place in examples] == [0.0, 100.5, 201.0]


def test_a_slide_that_needs_too_much_is_shown_smaller(runs, tmp_path):
    sizes = []
    for megabytes in (28, 0.01):
        out = tmp_path / str(megabytes)
        write_report(Request([runs / "heatmaps"], out, slide_mb=megabytes))
        tiles = out.glob("slides/001_*/tiles/*/*.jpg")
        sizes.append(sum(tile.stat().st_size for tile in tiles))
    assert sizes[1] < sizes[0] / 3


# Runs that are not whole


def test_slides_that_have_moved_are_found_and_those_that_are_gone_leave_their_maps(tmp_path):
    run = heatmap_run(tmp_path / "heatmaps")
    (tmp_path / "slides").rename(tmp_path / "elsewhere")
    out = tmp_path / "report"
    write_report(Request([run], out))
    page = slide_pages(out)[0]
    assert "was not at hand" in page.read_text(encoding="utf-8")
    assert not (page.parent / "tiles").exists()
    assert (page.parent / "heatmap" / "0" / "0_0.png").exists()
    write_report(Request([run], out, slides_dir=tmp_path / "elsewhere"))
    assert "was not at hand" not in page.read_text(encoding="utf-8")
    assert (page.parent / "tiles").exists()


def test_another_slide_of_the_same_name_is_refused(tmp_path):
    run = heatmap_run(tmp_path / "heatmaps")
    heatmap_run(tmp_path / "other" / "heatmaps", size=(2000, 2200))
    out = tmp_path / "report"
    write_report(Request([run], out, slides_dir=tmp_path / "other" / "slides"))
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "A01 has no page: " in text
    assert "2000x2200 px instead of 3000x2200" in text


def test_what_failed_stands_first_and_damaged_files_cost_one_page(runs, tmp_path):
    run = tmp_path / "heatmaps"
    shutil.copytree(runs / "heatmaps", run)
    (run / "failures.json").write_text('{"B<9>": "The slide is damaged."}')
    (run / "probs" / "zwei#2%.npy").write_bytes(b"no array")
    write_report(Request([run], tmp_path / "report"))
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "zwei#2% has no page: " in text
    assert len(slide_pages(tmp_path / "report")) == 1
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', text)
    assert ("B&lt;9&gt;", "failed") in rows
    assert text.index("B&lt;9&gt;") < text.index("always Benign</th>")


def test_a_run_that_was_interrupted_has_a_page(tmp_path):
    run = heatmap_run(tmp_path / "heatmaps")
    (run / "metrics.json").unlink()
    record(run, "make_heatmap.py", None)
    write_report(Request([run]))
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "interrupted, without metrics" in text


def test_a_report_of_no_run_or_over_other_files_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        find_runs([tmp_path])
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds something else"):
        write_report(Request([runs], tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    with pytest.raises(InputError, match="same part"):
        write_report(Request([runs / "part_a"], tmp_path / "new", previous=runs / "heatmaps"))
    assert not (tmp_path / "new").exists()


def test_a_second_report_keeps_what_has_not_changed(runs, tmp_path):
    out = tmp_path / "report"
    write_report(Request([runs / "heatmaps"], out))
    pages = [page.parent for page in slide_pages(out)]
    before = [(page / "tiles").stat().st_mtime_ns for page in pages]
    (out / "slides" / "099_gone").mkdir()
    write_report(Request([runs / "heatmaps"], out))
    assert [(page / "tiles").stat().st_mtime_ns for page in pages] == before
    assert not (out / "slides" / "099_gone").exists()


def test_a_run_is_compared_with_the_one_before(runs, tmp_path, capsys):
    other = part_a_run(tmp_path / "older", seed=1)
    words = ["html", str(runs / "part_a"), "--out", str(tmp_path / "report")]
    assert main([*words, "--previous", str(other)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report" / "index.html")
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert re.search(
        r"<h3>This run is (better|worse|not distinguishable) (than|from) older</h3>", text
    )


# In a browser


@pytest.mark.parametrize("browser", BROWSERS)
def test_the_viewer_shows_slide_and_layers_from_a_disk(report, browser):
    with opened(browser) as page:
        page.open(slide_pages(report)[0].as_uri())
        page.wait("document.body.dataset.ready === 'true'")
        page.press("p")  # no boxes
        pictures = {}
        for percent in (0, 50, 100):
            set_opacity(page, "heatmap", percent)
            pictures[percent] = stage(page)
        tissue = pictures[0][300:400, 300:400].mean(axis=(0, 1))
        assert np.abs(tissue - [150, 90, 160]).max() < 12  # the slide itself
        changed = [np.abs(pictures[a].astype(int) - pictures[0]).mean() for a in (0, 50, 100)]
        assert changed[0] == 0 < 0.6 * changed[2] > 0.8 * changed[1] > 0
        set_opacity(page, "heatmap", 0)
        page.press("2")  # class map on
        assert page.evaluate("document.getElementById('show-classes').checked")
        classes = stage(page)
        page.press("2")
        page.press("3")
        assert np.abs(classes.astype(int) - pictures[0]).mean() > 1
        assert np.abs(stage(page).astype(int) - classes).mean() > 1  # the annotation is another
        assert page.complaints == []
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_link_to_a_hard_example_lands_on_its_place(report, browser):
    with opened(browser) as page:
        page.open((report / "index.html").as_uri())
        target = page.evaluate(
            "[...document.querySelectorAll('figure a')].find(a => a.href.includes('#')).href"
        )
        found = re.search(r"#x=(\d+),y=(\d+),w=(\d+)", str(target))
        assert found, target
        page.open(str(target))
        page.wait("document.body.dataset.ready === 'true'")
        box = page.wait(
            "(() => { const b = document.querySelector('.mark.here').getBoundingClientRect();"
            " const v = document.getElementById('viewer').getBoundingClientRect();"
            " return b.width > 50 && {dx: b.x + b.width / 2 - v.x - v.width / 2,"
            " dy: b.y + b.height / 2 - v.y - v.height / 2} })()"
        )
        assert max(abs(box["dx"]), abs(box["dy"])) < 4  # in the middle of the view
        assert page.complaints == []


@pytest.mark.parametrize("browser", BROWSERS)
def test_pages_fit_a_phone(report, browser):
    with opened(browser, (390, 844)) as page:
        for place in (report / "index.html", slide_pages(report)[0]):
            page.open(place.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait("document.body.dataset.ready === 'true'")
        assert page.evaluate("document.getElementById('viewer').clientWidth") > 340


def test_the_place_under_the_pointer_is_told_in_words(report):
    with opened("chromium") as page:
        page.open(slide_pages(report)[0].as_uri())
        page.wait("document.body.dataset.ready === 'true'")
        page.evaluate("document.getElementById('viewer').scrollIntoView()")
        box = page.evaluate("document.getElementById('viewer').getBoundingClientRect().toJSON()")
        page._page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2)
        text = page.wait(
            "/Benign/.test(document.getElementById('readout').textContent)"
            " && document.getElementById('readout').textContent"
        )
        assert "Normal 0.10, Benign 0.80, InSitu 0.05, Invasive 0.05" in text


@pytest.mark.parametrize("browser", BROWSERS)
def test_what_is_seen_can_be_reached_without_a_mouse(report, browser):
    with opened(browser) as page:
        for place in (report / "index.html", slide_pages(report)[0]):
            page.open(place.as_uri())
            unnamed = page.evaluate(
                "[...document.querySelectorAll('img:not([alt]), button, input, [role]')]"
                ".filter(e => e.tagName === 'IMG' || !(e.textContent.trim() || e.labels?.length"
                " || e.getAttribute('aria-label'))).length"
            )
            assert unnamed == 0
            headings = page.evaluate("document.querySelectorAll('h1').length")
            assert headings == 1


def set_opacity(page, key: str, percent: int) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('opacity-{key}'); s.value = {percent};"
        " s.dispatchEvent(new Event('input')); return true; })()"
    )


def stage(page) -> np.ndarray:
    """The middle of the viewer, without buttons and navigator."""
    page.evaluate("(window.scrollTo(0, 0), true)")
    return page.picture()[130:560, 30:760]
