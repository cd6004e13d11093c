"""Examples in docstrings: they run, and they print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "glimpseg.modality",
    "glimpseg.phantom",
    "glimpseg.phantom.dataset",
    "glimpseg.phantom.generate",
    "glimpseg.phantom.settings",
    "glimpseg.region",
)
"""Modules whose docstrings have examples; each should run in a few seconds."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, "the differences are above"
