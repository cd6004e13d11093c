"""The two protocols: their rules, and that each rule reaches what computes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import small_recipe
from glimpseg.data.notices import StudyNotices
from glimpseg.data.preprocess import Prepared, prepare
from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation import evaluate
from glimpseg.evaluation.protocol import PROTOCOLS, protocol_named
from glimpseg.evaluation.rfnet_preprocessing import prepare_rfnet
from glimpseg.method import Segmenter
from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.region import Label, Region
from glimpseg.segmentation import inference
from glimpseg.study import Study
from glimpseg.volume import Grid

LENGTH, SIDE = 6, 4
"""Voxels of the image along x, and of a window: two windows, which share voxels 2 and 3."""


class SecondIsEnhancing(Segmenter):
    """Sees enhancing tumour everywhere in a window that begins with a bright voxel, and nothing in others."""

    def __init__(self):
        super().__init__((Label.NCR, Label.ED, Label.ET))
        self.nothing = nn.Parameter(torch.zeros(1))

    def losses(self, batch, progress):
        return {}

    def forward(self, image, available):
        found = torch.zeros(len(image), 4, *image.shape[2:])
        found[:, 3] = image[:, 0, 0, 0, 0][:, None, None, None]
        found[:, 0] = 1 - found[:, 3]
        return found


@pytest.fixture(scope="module")
def model():
    recipe = small_recipe(data__sampling__patch=[SIDE] * 3)
    return Model(SecondIsEnhancing().eval(), recipe, {}, Path())


@pytest.fixture(scope="module")
def prepared():
    image = np.zeros((4, LENGTH, SIDE, SIDE), np.float32)
    image[0, 2, 0, 0] = 1  # where the second window begins
    grid = Grid(image.shape[1:], np.eye(4))
    return Prepared("S", image, np.ones(image.shape, bool), Modality.T1, None, grid, grid)


def enhancing(prepared, model, **options):
    """The probability of enhancing tumour along x, in the middle of the other two axes."""
    (found,) = inference.infer(prepared, model, [Modality.T1], keep_probabilities=True, **options)
    return found.probabilities[Region.ET].voxels[:, 1, 1].tolist()


GAUSSIAN = [0, 0, 1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4)), 1, 1]
"""The Gaussian's deviation is an eighth of the side, 0.5. Voxel 2 lies 0.5 from the first window's centre and 1.5 from
the second's: weights exp(-0.5) and exp(-4.5), so the second has one part in 1 + exp(4)."""


def test_a_constant_weighting_averages_windows(prepared, model):
    assert enhancing(prepared, model, weighting="constant") == pytest.approx([0, 0, 0.5, 0.5, 1, 1])


def test_a_gaussian_weighting_trusts_the_nearer_window(prepared, model):
    assert enhancing(prepared, model, weighting="gaussian") == pytest.approx(GAUSSIAN, abs=1e-6)


def test_unless_told_otherwise_the_nearer_window_is_trusted(prepared, model):
    assert enhancing(prepared, model) == pytest.approx(GAUSSIAN, abs=1e-6)


@pytest.mark.parametrize(("name", "weighting"), [("clinical", "gaussian"), ("rfnet", "constant")])
def test_the_weighting_of_a_protocol(name, weighting):
    assert protocol_named(name).weighting == weighting


@pytest.mark.parametrize(("name", "shared"), [("clinical", GAUSSIAN), ("rfnet", [0, 0, 0.5, 0.5, 1, 1])])
def test_an_evaluation_weighs_windows_by_its_protocol(prepared, model, monkeypatch, tmp_path, name, shared):
    scored = []

    class Scorer:
        def __init__(self, *arguments, **options):
            pass

        def add(self, prediction):
            scored.append(prediction.probabilities[Region.ET].voxels[:, 1, 1].tolist())

        def finish(self):
            pass

    monkeypatch.setattr(evaluate, "StudyScorer", Scorer)
    monkeypatch.setattr(evaluate, "study_digest", lambda study: "")
    protocol = replace(protocol_named(name), prepare=lambda study, settings: prepared)
    monkeypatch.setattr(evaluate, "protocol_named", {name: protocol}.get)
    plan = {"protocol": name, "subsets": ["t1"], "metrics": list(evaluate.OF_PROBABILITIES)}
    evaluate._score_remaining(model, [Study("S", {})], tmp_path, plan, tree=StudyNotices())
    assert scored == [pytest.approx(shared, abs=1e-6)]


def test_an_evaluation_prepares_by_its_protocol(model, monkeypatch, tmp_path):
    def refuse(study, settings):
        asked.append((study.id, settings))
        raise InputError("not today")

    asked = []
    protocol = replace(protocol_named("rfnet"), prepare=refuse)
    monkeypatch.setattr(evaluate, "study_digest", lambda study: "")
    monkeypatch.setattr(evaluate, "protocol_named", {"rfnet": protocol}.get)
    plan = {"protocol": "rfnet", "subsets": [], "metrics": []}
    failures = evaluate._score_remaining(model, [Study("S", {})], tmp_path, plan, tree=StudyNotices())
    assert failures == {"S": "not today"}
    assert asked == [("S", model.recipe.data.preprocess)]


def test_clinical_shows_present_sequences_alone_and_rfnet_the_authors_crop():
    assert PROTOCOLS["clinical"].prepare is prepare
    assert PROTOCOLS["rfnet"].prepare is prepare_rfnet


def test_every_protocol_is_found_under_its_name():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {"clinical": "clinical", "rfnet": "rfnet"}


def test_a_protocol_that_does_not_exist_is_refused():
    with pytest.raises(UsageError) as refused:
        protocol_named("nnunet")
    assert str(refused.value) == "'nnunet' is not a protocol. Choose one of clinical, rfnet."


def test_rules_name_the_weighting_that_is_used():
    words = {"gaussian": "Gaussian", "constant": "equal"}
    for protocol in PROTOCOLS.values():
        assert protocol.rules["weights of windows"] == words[protocol.weighting]


def test_rules_that_both_share_are_said_under_both():
    clinical, rfnet = PROTOCOLS["clinical"], PROTOCOLS["rfnet"]
    for rule in ("windows", "post-processing", "test-time augmentation", "means"):
        assert clinical.rules[rule] == rfnet.rules[rule]
    assert {rule for rule in rfnet.rules if clinical.rules.get(rule) != rfnet.rules[rule]} == {
        "sequences", "grid", "weights of windows", "model",
    }  # fmt: skip


def test_facts_are_in_the_words_of_published_tables():
    assert {name: protocol.facts["scored on"] for name, protocol in PROTOCOLS.items()} == {
        "clinical": "the whole volume",
        "rfnet": "the box of all four sequences",
    }


def test_only_rfnet_warns_of_its_intensities():
    assert PROTOCOLS["clinical"].caution == ""
    assert "does much worse than under clinical" in PROTOCOLS["rfnet"].caution
