"""Promised names and commands: others script on them."""

import importlib
import subprocess
import sys

import pytest
from commands import ROOT

COMMANDS = [
    "calibration",
    "data",
    "demo",
    "export",
    "folds",
    "froc",
    "heatmap",
    "metrics",
    "points",
    "report",
    "reproduce",
    "runs",
    "serve",
    "submission",
    "thresholds",
    "toy",
    "two_stages",
]
SCRIPTS = ["train_part_a", "mine_hard_examples", "train_final", "make_heatmap"]


@pytest.mark.parametrize(
    "name",
    [
        "bach.patches.grid",
        "bach.tissue.tissue_mask",
        "bach.annotations.read_regions",
        "bach.annotations.label_mask",
        "bach.mining.difficulty",
        "bach.metrics.part_b_score",
        "bach.slides.Slide",
        *(f"bach.{command}" for command in COMMANDS if command != "toy"),
        *(f"{script}.{function}" for script in SCRIPTS for function in ("main", "parse_args")),
    ],
)
def test_every_promised_name_imports(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name)


def test_the_help_of_every_command_and_script_loads_no_framework():
    code = (
        "import contextlib, io, runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv, text = [name, '--help'], io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(text):\n"
        "            runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, name\n"
        "    assert 'usage' in text.getvalue(), name\n"
        "    loaded = [x for x in ('keras', 'tensorflow', 'jax') if x in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
        "print('all')"
    )
    names = [*(f"bach.{command}" for command in COMMANDS), *SCRIPTS]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "all\n", done.stderr
