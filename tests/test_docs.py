"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

BACH = Path(__file__).resolve().parent.parent / "bach"
MODULES = sorted(path.stem for path in BACH.glob("*.py") if ">>>" in path.read_text())


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    assert doctest.testmod(importlib.import_module(f"bach.{name}")).failed == 0
