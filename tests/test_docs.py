"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = ["annotations", "classes", "heatmap", "metrics", "mining", "patches", "runs", "tissue"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    result = doctest.testmod(importlib.import_module(f"bach.{name}"))
    assert result.failed == 0
    assert result.attempted > 0
