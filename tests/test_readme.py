"""The commands of the README, as printed and in their order, on trial data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import printed
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# What is appended to a printed command, so that two cores are done in minutes.
SMALL = "--backbone small --weights none --epochs 1 --batch-size 16 --bn-patches 64"
APPENDED = {
    "train_part_a.py": SMALL,
    "mine_hard_examples.py": "--mode dense --hard-examples 40",
    "train_final.py": SMALL,
    "make_heatmap.py": "--mode dense",
    "bach.toy": "--patients 4 --images 1 --test-images 1 --slides 0 --test-slides 0",
}
# Run by other tests, or no commands of ours.
LEFT_OUT = {"bach.demo", "venv", "pip", "pytest"}


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """A folder as a reader has it: the scripts, data/BACH, folds, slides of his own."""
    path = tmp_path_factory.mktemp("reader")
    (path / "data").mkdir()
    shutil.copytree(toy, path / "data" / "BACH")
    (path / "folds").mkdir()
    for part in ("part_a.csv", "part_b.csv"):
        shutil.copy(toy / part, path / "folds")
    shutil.copy(toy / "patients.csv", path)
    slides = sorted((toy / "ICIAR2018_BACH_Challenge" / "WSI").glob("*.svs"))
    for slide, name in zip(slides, ("one.svs", "other.svs"), strict=False):
        shutil.copy(slide, path / name)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, path)
    return path


@pytest.fixture(scope="module")
def done(folder):
    """Every command of the README, run in its order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    ran = []
    for program, *words in printed.commands(text):
        name = words[1] if words[0] == "-m" else words[0]
        if program == "make" or name in LEFT_OUT or "download" in words:
            continue
        words += APPENDED.get(name, "").split()
        result = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}\n{result.stderr}"
        ran.append(name)
    return ran


def test_every_command_of_the_readme_runs_on_trial_data(done):
    for name in ("train_part_a.py", "mine_hard_examples.py", "train_final.py", "make_heatmap.py"):
        assert name in done
    assert {"bach.metrics", "bach.submission", "bach.folds", "bach.runs"} <= set(done)


def test_the_notebook_of_the_page_on_steps_runs(folder):
    text = (ROOT / "docs" / "steps.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```python\n([\s\S]*?)^```", text, re.MULTILINE)
    (cell,) = [cell for cell in cells if "tissue_mask" in cell]
    subprocess.run(
        [sys.executable, "-c", f"{cell}\nassert mask.any()"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_the_runs_hold_what_the_page_on_formats_says_and_nothing_else(done, folder):
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    common, *sections = re.split(r"^### `runs/(\w+)`.*$", text, flags=re.MULTILINE)
    every = _files(common.split("### Of every run")[1])
    for run, section in zip(sections[::2], sections[1::2], strict=True):
        listed = {**every, **_files(section)}
        there = {
            path.relative_to(folder / "runs" / run).as_posix()
            for path in (folder / "runs" / run).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        for pattern, optional in listed.items():
            found = {name for name in there if re.fullmatch(pattern, name)}
            assert found or optional, f"runs/{run} holds no {pattern}"
            there -= found
        assert not there, f"runs/{run} holds files that docs/formats.md does not list"


def _files(section: str) -> dict[str, bool]:
    """The files of a table, as patterns: capitals stand for any name; (optional) in the text."""
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|$", section.split("\n## ")[0], re.MULTILINE)
    result = {}
    for cell, text in rows:
        for name in re.findall(r"`(.+?)`", cell):
            parts = [
                re.escape(part) for part in re.split(r"(?<![A-Za-z])(?:NAME|K)(?![A-Za-z])", name)
            ]
            result["[^/]+".join(parts)] = "(optional)" in text
    return result
