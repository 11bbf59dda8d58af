"""Who may import whom: only downwards, and frameworks only from layer 3 on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"classes", "runs", "scores", "labels", "patients", "intervals", "metrics", "comparison"},
    {"slides", "tissue", "annotations", "masks", "data", "pictures", "painter"},
    {"patches", "folds"},
    {
        "features",
        "audit",
        "assumed",
        "augment",
        "batches",
        "devices",
        "model",
        "image_network",
        "inference",
        "callbacks",
        "training",
        "predict",
        "calibration",
    },
    {"mining", "heatmap", "dense", "thresholds"},
    {"submission", "report", "toy", "demo", "paper", "effort", "reproduce"},
]
FRAMEWORK_FREE = sorted(set.union(*LAYERS[:3]) | {"mining", "heatmap", "toy"})


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "bach":
                found |= {name.name for name in node.names}
            elif node.module.startswith("bach."):
                found.add(node.module.split(".")[1])
    return found


def _layer(module: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if module in names)


@pytest.mark.parametrize("path", sorted((ROOT / "bach").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_module_imports_only_from_its_layer_or_below(path):
    for imported in _imports(path):
        assert _layer(imported) <= _layer(path.stem), f"{path.stem} imports {imported}"


def test_no_module_imports_itself_by_way_of_others():
    above = {path.stem: _imports(path) for path in (ROOT / "bach").glob("[a-z]*.py")}
    while leaves := {name for name, imported in above.items() if not imported & set(above)}:
        above = {name: imported for name, imported in above.items() if name not in leaves}
    assert not above, "these import each other in a circle"


def test_only_slides_and_the_toy_writer_import_slide_libraries():
    for path in (ROOT / "bach").glob("*.py"):
        text = path.read_text()
        if path.stem != "slides":
            assert "import openslide" not in text, path
        if path.stem not in ("slides", "toy"):
            assert "import tifffile" not in text, path


def test_modules_below_the_framework_do_not_load_it():
    code = "import sys\n" + "\n".join(
        f"import bach.{name}" for name in FRAMEWORK_FREE if (ROOT / "bach" / f"{name}.py").exists()
    )
    code += "\nprint([m for m in ('keras', 'tensorflow', 'jax') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "script", ["train_part_a", "mine_hard_examples", "train_final", "make_heatmap"]
)
def test_help_of_a_script_does_not_load_a_framework(script):
    code = (
        f"import sys, {script}\n"
        f"try:\n    {script}.main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('keras', 'tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
    assert "--data-dir" in done.stdout
    assert "--resume" in done.stdout
