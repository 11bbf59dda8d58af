"""What README, documentation and docstrings say is true."""

import doctest
import importlib
import re
import sys
from pathlib import Path

import printed
import pytest

from bach.core.tables import read_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "bach").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
# Commands of Python itself and of tools, which need no check.
OTHERS = {"venv", "pip", "pytest", "mkdocs", "mypy", "ruff"}


def loaded(file: str):
    """A module by its file: hooks, figures, benchmarks, scripts."""
    name = Path(file).stem
    folder = str((ROOT / file).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.import_module(name)
    assert Path(module.__file__ or "") == ROOT / file
    return module


def all_commands() -> list[list[str]]:
    texts = [path.read_text(encoding="utf-8") for path in printed.documents()]
    texts += [f"`{command}`" for command in read_table(RESULTS / "sources.csv")["command"]]
    found = [words for text in texts for words in printed.commands(text)]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_a_printed_command_is_accepted_by_its_parser(words):
    program, first, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert first in targets
        return
    name, words = (first, rest) if first != "-m" else (rest[0], rest[1:])
    if name in OTHERS:
        return
    if name.endswith(".py"):
        name = loaded(name).__name__
    try:
        loaded("docs/hooks.py").parse(name, words)
    except SystemExit as end:
        pytest.fail(f"{name} {' '.join(words)} ends with exit code {end.code}")


@pytest.mark.parametrize("path", printed.documents()[:3], ids=lambda path: path.name)
def test_links_of_the_repositorys_own_pages_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_anchors_that_the_readme_links_to_are_headings():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page, anchor in re.findall(r"\]\((docs/\w+\.md)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, anchor


def test_every_table_of_results_says_where_it_comes_from_and_stands_in_a_page():
    hooks = loaded("docs/hooks.py")
    tables = {path.stem for path in RESULTS.glob("*.csv")} - {"sources"}
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert set(hooks.sources()) == tables
    shown = set(re.findall(r"^<!-- table: (\w+) -->$", pages, re.MULTILINE))
    linked = set(re.findall(r"\(results/(\w+)\.csv\)", pages))  # too long to be read there
    assert shown | linked == tables


def test_the_readme_repeats_figures_of_the_tables_and_no_others():
    hooks = loaded("docs/hooks.py")
    known = " ".join(
        cell
        for path in RESULTS.glob("*.csv")
        if path.stem != "sources"
        for row in hooks.with_intervals(path.stem)[1]
        for cell in row
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Results")[1].split("\n## ")[0]
    rows = [line.split("|")[3] for line in section.splitlines() if line.startswith("|")][2:]
    assert 1 <= len(rows) <= 8
    for row in rows:
        for figure in re.findall(r"\d\.\d+(?: \[.*?\])?|\d+\.\d+", row):
            assert figure in known, figure


def test_the_table_of_the_demo_is_that_of_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = read_table(RESULTS / "demo.csv").query("now != ''")
    shown = re.findall(r"(\d\.\d{3}) +((?:chance|always benign) \d\.\d+)", text)
    assert shown == list(zip(rows["now"], rows["beside"], strict=True))


def test_departures_from_the_paper_are_listed():
    listed = loaded("docs/hooks.py").departures()
    assert listed.count("\n") > 2, "no comment begins with '# Differs from Kwok 2018:'"


def test_a_page_cannot_ask_for_what_does_not_exist():
    hooks = loaded("docs/hooks.py")
    with pytest.raises(KeyError):
        hooks.fill("<!-- tabel: recipes -->")


def test_the_picture_of_the_structure_is_current():
    pytest.importorskip("grimp")
    figures = loaded("docs/figures.py")
    rooms, arrows = figures.rooms_and_arrows()
    drawn = (ROOT / "docs" / "structure.svg").read_text(encoding="utf-8")
    found = set(re.findall(r'id="(.+?) imports from (.+?)"', drawn))
    remedy = "draw it anew: python docs/figures.py"
    assert found == arrows, remedy
    for names in rooms.values():
        for name in names:
            assert re.search(rf"\b{re.escape(name)}\b", drawn), f"{name} is not drawn; {remedy}"


def test_the_picture_of_the_splits_shows_the_measured_figures():
    drawn = (ROOT / "docs" / "safe_against_leaky.svg").read_text(encoding="utf-8")
    for table in ("audit_photos", "audit_toy"):
        rows = read_table(RESULTS / f"{table}.csv")
        for value in rows.loc[rows.iloc[:, 0] != "gap", "accuracy"]:
            assert value in drawn


def test_workflows_name_tests_that_exist():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    for name in re.findall(r"tests/\w+\.py", text):
        assert (ROOT / name).exists(), name
