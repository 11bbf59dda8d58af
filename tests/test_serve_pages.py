"""The pages of the service in a browser: photo, slide, addresses; nothing from elsewhere."""

import base64
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx")

from browsers import opened
from serving import make_model, make_slides, photo, serving

BROWSERS = ("chromium", "firefox")
NAME = "A <b>é</b>.svs".replace("/", "")  # markup, were it not text

DROP = """(() => {
const bytes = Uint8Array.from(atob('%s'), (letter) => letter.charCodeAt(0));
const dropped = new DataTransfer();
dropped.items.add(new File([bytes], '%s', { type: 'image/png' }));
document.getElementById('drop').dispatchEvent(
  new DragEvent('drop', { dataTransfer: dropped, bubbles: true, cancelable: true }));
return 1; })()"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages")
    make_model(path)
    make_slides(path, NAME)
    photo(path / "photo.png")
    (path / "bad.png").write_bytes(b"no picture")
    return path


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder) as service:
        yield service


def drop(page, path: Path) -> None:
    page.evaluate(DROP % (base64.b64encode(path.read_bytes()).decode(), path.name))


def elsewhere(page, served) -> list[str]:
    return [one for one in page.requests if not one.startswith((served.url, "data:", "blob:"))]


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_photo_that_is_dropped_gets_its_probabilities(browser, served, folder):
    right = served.photo(folder / "photo.png").json()["predictions"]
    with opened(browser) as page:
        page.open(served.url)
        drop(page, folder / "photo.png")
        page.wait("!document.getElementById('probabilities').hidden")
        best = page.evaluate("document.querySelector('#probabilities tr.best th').textContent")
        assert best == right[0]["label"]
        text = page.evaluate("document.querySelector('#probabilities tr.best td').textContent")
        assert text == f"{100 * right[0]['probability']:.1f}%"
        assert page.evaluate("document.getElementById('preview').naturalWidth") == 2048
        assert page.complaints == []
        drop(page, folder / "bad.png")  # what is wrong is said in place of the last answer
        page.wait("document.getElementById('photo-status').classList.contains('bad')")
        said = page.evaluate("document.getElementById('photo-status').textContent")
        assert said.startswith("bad.png must be a readable picture")
        assert page.evaluate("document.getElementById('probabilities').hidden")
        assert elsewhere(page, served) == []


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_slide_that_is_chosen_is_seen_in_the_viewer_and_removed(browser, served):
    with opened(browser) as page:
        page.open(served.url)
        page.evaluate(
            "(() => { document.getElementById('slide').selectedIndex = 1;"
            "document.querySelector('#slide-form button').click(); return 1; })()"
        )
        page.wait("document.querySelector('#jobs tr[data-state=finished]') !== null")
        name = "document.querySelector('#jobs tbody th').textContent"
        assert page.evaluate(name) == NAME
        page.evaluate("(() => { document.querySelector('#jobs td button').click(); return 1; })()")
        inside = "document.getElementById('viewer-frame').contentDocument"
        page.wait(f"{inside}.querySelector('#viewer canvas') !== null")
        page.wait(f"{inside}.querySelectorAll('.layer').length > 2")
        picture = page.picture()
        assert picture.std() > 20  # the slide is seen
        page.evaluate(
            "(() => { window.confirm = () => true;"
            "document.querySelectorAll('#jobs td button')[1].click(); return 1; })()"
        )
        page.wait("document.querySelectorAll('#jobs tbody tr').length === 0")
        assert page.complaints == []
        assert elsewhere(page, served) == []


@pytest.mark.parametrize("browser", BROWSERS)
def test_the_page_of_addresses_needs_no_network(browser, served):
    with opened(browser) as page:
        page.open(f"{served.url}docs")
        page.wait("document.querySelectorAll('.opblock').length > 10")
        assert page.complaints == []
        assert elsewhere(page, served) == []


def test_what_pages_load_is_served_and_names_no_other_place(served):
    import re

    for address in ("/", "/docs"):
        text = served.get(address).text
        targets = re.findall(r'(?:src|href)="([^"#]+)"', text)
        assert len(targets) >= 4
        for target in targets:
            assert target.startswith(("/", "data:")), target
            if target.startswith("/"):
                assert served.get(target).status_code == 200, target
    assert "&lt;b&gt;" in served.get("/").text
