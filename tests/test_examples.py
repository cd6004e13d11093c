"""The examples in docstrings of the public face run and print what they show."""

import doctest
import importlib

import pytest

import glimpseg
from glimpseg.model.shipped import BOX, WEIGHTS_FOLDER

EXAMPLES = [
    "glimpseg.compare",
    "glimpseg.evaluate",
    "glimpseg.load",
    "glimpseg.metrics.brier",
    "glimpseg.metrics.diagonal_mm",
    "glimpseg.metrics.dice",
    "glimpseg.metrics.ece",
    "glimpseg.metrics.hd95",
    "glimpseg.metrics.hd95_pooled",
    "glimpseg.metrics.lesion_count",
    "glimpseg.metrics.lesion_wise",
    "glimpseg.metrics.reliability",
    "glimpseg.metrics.sensitivity",
    "glimpseg.metrics.specificity",
    "glimpseg.metrics.surface_dice",
    "glimpseg.metrics.volume_error_ml",
    "glimpseg.metrics.volume_ml",
    "glimpseg.metrics.without_small_enhancement",
    "glimpseg.modality.Modality",
    "glimpseg.modality.parse",
    "glimpseg.phantom",
    "glimpseg.phantom.Settings",
    "glimpseg.phantom.dataset.write_phantoms",
    "glimpseg.phantom.draw_plan",
    "glimpseg.phantom.generate",
    "glimpseg.phantom.stream",
    "glimpseg.region.Region",
    "glimpseg.segment",
]
"""Modules and functions whose docstring holds an example; add yours."""
WITH_BOX = {"glimpseg.compare", "glimpseg.evaluate", "glimpseg.load", "glimpseg.segment"}
"""Examples that use the model of the package."""


def resolved(name):
    """The module, or the object of a module, of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows_and_leaves_no_file(name, tmp_path, monkeypatch):
    if name in WITH_BOX and not (WEIGHTS_FOLDER / BOX).is_dir():
        pytest.skip("this checkout does not hold the shipped weights")
    monkeypatch.chdir(tmp_path)
    shown = resolved(name)
    example = doctest.DocTestParser().get_doctest(shown.__doc__, namespace_of(shown), name, None, None)
    said = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted, f"{name} has no example"
    assert not result.failed, "".join(said)
    assert not list(tmp_path.iterdir())


def namespace_of(shown):
    """Names that an example may use without importing them: those of its module."""
    return dict(vars(importlib.import_module(getattr(shown, "__module__", None) or shown.__name__)))


def test_the_face_offers_what_it_lists():
    for name in glimpseg.__all__:
        assert getattr(glimpseg, name) is not None
    assert set(glimpseg.__all__) <= set(dir(glimpseg))
    with pytest.raises(AttributeError, match="nonsense"):
        glimpseg.nonsense
