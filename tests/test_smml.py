"""SMML: comparison with the authors' numbers, and properties of the reconstructed losses."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance import reference, smml_reference
from conftest import small_recipe
from glimpseg import methods
from glimpseg.data.crops import Batch
from glimpseg.errors import ModelError, UsageError
from glimpseg.losses import one_hot, region_fusion_terms
from glimpseg.method import Progress
from glimpseg.methods import mmformer, smml
from glimpseg.methods.smml import authors
from glimpseg.methods.smml.network import Refiner
from glimpseg.methods.smml.objective import (
    Nodes,
    divergence,
    pixel_divergence,
    prior_maps,
    prototypes,
    relation_distance,
    reliable_voxels,
    two_subsets,
)
from glimpseg.modality import ALL, SUBSETS, Modality, to_flags
from glimpseg.model import importing
from glimpseg.model.folder import save_model
from glimpseg.model.loading import load_model
from glimpseg.nets import token_fusion
from glimpseg.nets.authors import authors_name
from glimpseg.nets.pyramid import CHANNELS
from glimpseg.region import Label
from glimpseg.runtime.precision import precision_context

LABELS = (Label.NCR, Label.ED, Label.ET)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(seed, *shape):
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed))


def refining(**changes):
    return small_recipe("smml", config__refinement=1.0, config__agreement=1.0, config__start=0.0, **changes)


def batch(available=ALL, count=2, side=16):
    return Batch(
        randn(0, count, 4, side, side, side),
        to_flags(available).expand(count, -1),
        labels_of(1, count, side, side, side),
        ["a"] * count,
        labels_of(2, count, 4, side, side, side),
    )


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    return methods.build(refining())


# The authors' numbers


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(reference.HERE / "smml.npz"))


@pytest.fixture(scope="module")
def official(stored):
    return smml_reference.built(stored)


@pytest.mark.numerics
@pytest.mark.parametrize("number", [0, 1])
def test_a_branch_and_its_refiner_compute_what_the_authors_do(official, stored, number):
    with torch.inference_mode():
        found = smml_reference.numbers_of(official, stored, number)
    assert len(found) == 4 + 1 + 1 + 8 + 1
    assert not reference.beyond("smml", found)


def test_the_official_network_has_the_authors_number_of_parameters():
    """39,408,836 parameters for a branch, without the 262,656 of convolutions that are never called."""
    with torch.device("meta"):
        network = smml.SMML(smml.OFFICIAL, LABELS)
    for branch, refiner in zip(network.branches, network.refiners, strict=True):
        assert sum(p.numel() for p in branch.parameters()) == 36_654_416 - 262_656
        gates, rest = refiner.gates, sum(p.numel() for p in refiner.parameters())
        assert sum(p.numel() for p in gates.parameters()) == 68_880
        assert rest == 68_880 + 2_685_540


@pytest.mark.numerics
def test_both_branches_are_averaged_as_logits(official, stored):
    image = reference.ours(stored["x"], smml)
    with torch.no_grad():
        official.branches[1].joint.segment.bias += torch.tensor([1.0, 0.0, 0.0, 0.0])
        features = official.encode(image, torch.ones(1, 4, dtype=torch.bool))
        available = torch.ones(1, 4, dtype=torch.bool)
        logits = [b.fuse(f, available).logits for b, f in zip(official.branches, features, strict=True)]
        found = official.fuse(features, available)
        official.branches[1].joint.segment.bias -= torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert torch.allclose(found, ((logits[0] + logits[1]) / 2).softmax(1), atol=1e-6)


# Sampling


def test_the_two_subsets_are_different_and_all_fifteen_are_drawn():
    torch.manual_seed(0)
    first, second = two_subsets(torch.ones(3000, 4, dtype=torch.bool))
    assert first.any(1).all()
    assert second.any(1).all()
    assert (first != second).any(1).all()
    pairs = Counter((tuple(a), tuple(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(SUBSETS)
    assert len(pairs) == 15 * 14
    assert max(pairs.values()) < 40


@pytest.mark.parametrize("available", SUBSETS, ids=lambda subset: subset.key)
def test_subsets_are_of_what_a_study_has(available):
    torch.manual_seed(0)
    mask = to_flags(available).expand(200, -1)
    first, second = two_subsets(mask)
    for drawn in (first, second):
        assert drawn.any(1).all()
        assert not (drawn & ~mask).any()
    assert (first != second).any(1).all() == (len(available) > 1)


# Pixels


def probabilities(*rows):
    """Return one sample with the voxels in a line; each row holds the probabilities of a voxel."""
    return torch.tensor(rows).T[None, :, :, None, None]


TRUTH = one_hot(torch.tensor([1, 1, 1, 0])[None, :, None, None], (1,))
PEER = probabilities([0.3, 0.7], [0.1, 0.9], [0.6, 0.4], [0.8, 0.2])
OWN = probabilities([0.6, 0.4], [0.05, 0.95], [0.7, 0.3], [0.7, 0.3])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # The peer is right in the first two and the last; the branch itself in the second and the last.
        ("better", [True, False, False, True]),
        ("correct", [True, True, False, True]),
        ("correct_self_wrong", [True, False, False, False]),
        ("confident", [False, True, False, False]),
    ],
)
def test_a_branch_learns_where_its_peer_is_reliable(rule, expected):
    assert reliable_voxels(PEER, OWN, TRUTH, rule, confidence=0.85).flatten().tolist() == expected


def test_a_voxel_teaches_one_way_only():
    peer, own = randn(0, 2, 4, 8, 8, 8).softmax(1), randn(1, 2, 4, 8, 8, 8).softmax(1)
    target = one_hot(labels_of(2, 2, 8, 8, 8), LABELS)
    one, other = reliable_voxels(peer, own, target), reliable_voxels(own, peer, target)
    assert one.any()
    assert other.any()
    assert not (one & other).any()


@pytest.mark.numerics
def test_the_divergence_is_that_of_kullback_and_leibler():
    found = divergence(PEER, OWN)[0, :, 0, 0]
    assert found[0] == pytest.approx(0.3 * np.log(0.3 / 0.6) + 0.7 * np.log(0.7 / 0.4), rel=1e-5)


@pytest.mark.numerics
def test_classes_weigh_alike_however_many_voxels_they_have():
    reliable = torch.tensor([True, True, False, True])[None, :, None, None]
    apart = divergence(PEER, OWN).flatten()
    balanced = pixel_divergence(PEER, OWN, TRUTH, reliable)
    assert balanced == pytest.approx(float((apart[:2].mean() + apart[3]) / 2), rel=1e-5)
    plain = pixel_divergence(PEER, OWN, TRUTH, reliable, balanced=False)
    assert plain == pytest.approx(float(apart[[0, 1, 3]].mean()), rel=1e-5)


def test_where_nothing_is_reliable_nothing_is_lost():
    nowhere = torch.zeros(1, 4, 1, 1, dtype=torch.bool)
    for balanced in (True, False):
        assert pixel_divergence(PEER, OWN, TRUTH, nowhere, balanced) == 0


# Relations


def nodes(seed=0, samples=2, present=None):
    features = randn(seed, samples, 4, 6)
    shown = torch.ones(samples, 4, dtype=torch.bool) if present is None else present
    return Nodes(features, shown, randn(seed + 1, samples, 4).abs())


@pytest.mark.numerics
def test_relations_are_compared_as_by_hand():
    own, peer = nodes(0), nodes(10)
    expected = 0.0
    unsure = (own.entropy + peer.entropy).flatten()
    for n, m in itertools.product(range(8), repeat=2):
        cosines = [
            torch.cosine_similarity(one.features.flatten(0, 1)[n], one.features.flatten(0, 1)[m], dim=0)
            for one in (own, peer)
        ]
        expected += float(unsure[n] / unsure.sum() * (cosines[0] - cosines[1]) ** 2 / 8)
    assert relation_distance(own, peer) == pytest.approx(expected, rel=1e-5)


@pytest.mark.numerics
def test_an_absent_class_has_no_relations_and_no_gradient():
    present = torch.tensor([[True, True, False, True], [True, False, False, True]])
    own, peer = nodes(0, present=present), nodes(10, present=present)
    own.features.requires_grad_()
    distance = relation_distance(own, peer)
    distance.backward()
    assert torch.isfinite(distance)
    assert torch.equal(own.features.grad.any(-1), present)
    kept = [Nodes(one.features.detach()[present][None], present[present][None], one.entropy[present][None])
            for one in (own, peer)]  # fmt: skip
    assert relation_distance(*kept) == pytest.approx(distance.item(), rel=1e-5)


@pytest.mark.numerics
@pytest.mark.parametrize("count", [0, 1])
def test_of_no_node_or_one_there_is_no_relation(count):
    present = torch.zeros(1, 4, dtype=torch.bool)
    present[0, :count] = True
    own = nodes(0, 1, present)
    own.features.requires_grad_()
    distance = relation_distance(own, nodes(10, 1, present))
    distance.backward()
    assert abs(distance.item()) < 1e-12
    assert torch.isfinite(own.features.grad).all()


@pytest.mark.numerics
def test_a_prototype_is_the_mean_feature_of_its_class():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[:, :2] = 3
    deepest = randn(0, 1, 5, 2, 2, 2)
    found = prototypes(deepest, one_hot(target, LABELS), torch.full((1, 4, 4, 4, 4), 0.25))
    assert found.present.tolist() == [[True, False, False, True]]
    assert torch.allclose(found.features[0, 3], deepest[0, :, 0].mean((1, 2)), atol=1e-6)
    assert torch.allclose(found.features[0, 0], deepest[0, :, 1].mean((1, 2)), atol=1e-6)
    assert torch.allclose(found.entropy[0, [0, 3]], torch.tensor(4.0).log().expand(2))


@pytest.mark.numerics
def test_prototypes_are_fp32_under_autocast():
    target, probabilities = one_hot(labels_of(0, 2, 8, 8, 8), LABELS), torch.full((2, 4, 8, 8, 8), 0.25)
    deepest = randn(1, 2, 5, 2, 2, 2).bfloat16()
    exact = prototypes(deepest, target, probabilities)
    with precision_context("bf16", torch.device("cpu")):
        found = prototypes(deepest, target, probabilities)
        distance = relation_distance(found, found._replace(features=found.features.flip(1)))
    assert found.features.dtype == distance.dtype == torch.float32
    assert torch.equal(found.features, exact.features)


def test_prototypes_are_refused_where_voxels_have_no_place():
    with pytest.raises(ValueError, match="nodes should be samples"):
        smml.Config(network=token_fusion.OFFICIAL)


# The whole


def both_outputs(learner, given, target, same=False):
    first, second = torch.ones(2, 4, dtype=torch.bool), to_flags(Modality.T1C | Modality.T2).expand(2, -1)
    return [
        learner.output(branch, given, seen, target)
        for branch, seen in zip(learner.branches, (first, first if same else second), strict=True)
    ]


@pytest.mark.numerics
@pytest.mark.parametrize("rule", ["better", "correct"])
def test_identical_branches_have_nothing_to_teach_each_other(rule):
    torch.manual_seed(0)
    learner = methods.build(refining(config__reliable=rule)).eval()  # no dropout
    given = batch()
    target = one_hot(given.target, LABELS)
    own, other = both_outputs(learner, given, target)
    terms = learner.terms(0, own, own.detached(), batch=given, target=target, late=True)
    assert reliable_voxels(own.probabilities, own.probabilities, target, rule).any() == (rule == "correct")
    assert terms["pixel"] == 0
    assert terms["feature"] == 0
    terms = learner.terms(0, own, other.detached(), batch=given, target=target, late=True)
    assert terms["pixel"] > 0
    assert terms["feature"] > 0


@pytest.mark.parametrize("number", [0, 1])
def test_what_one_branch_minimises_never_reaches_the_other(learner, number):
    given = batch()
    target = one_hot(given.target, LABELS)
    outputs = both_outputs(learner, given, target)
    terms = learner.terms(
        number, outputs[number], outputs[1 - number].detached(), batch=given, target=target, late=True
    )
    assert terms["pixel"] > 0
    assert terms["feature"] > 0
    learner.zero_grad()
    sum(terms.values()).backward()
    for place in (learner.branches, learner.refiners):
        assert all(p.grad is not None for p in place[number].parameters())
        assert all(p.grad is None for p in place[1 - number].parameters())


def test_a_refiner_reaches_its_branch_through_the_agreement_alone(learner):
    given = batch()
    target = one_hot(given.target, LABELS)
    outputs = both_outputs(learner, given, target)
    terms = learner.terms(0, outputs[0], outputs[1].detached(), batch=given, target=target, late=True)

    def reached(name):
        learner.zero_grad()
        terms[name].backward(retain_graph=True)
        return [
            any(p.grad is not None for p in place[0].parameters()) for place in (learner.branches, learner.refiners)
        ]

    assert reached("refine/ce") == reached("refine/dice") == [False, True]
    assert reached("refine/agree") == [True, False]


def test_peers_and_refiners_are_heard_late():
    learner = methods.build(small_recipe("smml", config__refinement=1.0, config__agreement=1.0, config__start=0.5))
    torch.manual_seed(0)
    early, late = (learner.losses(batch(), Progress(step, 10)) for step in (4, 5))
    for name in ("pixel", "refine/agree"):
        assert early[name] == 0
        assert late[name] > 0
    assert early["feature"] > 0


@pytest.mark.parametrize("weight", ["pixel", "feature", "refinement", "agreement"])
def test_each_weight_switches_its_terms_alone(weight):
    changes = {"refinement": 1.0, "agreement": 1.0, "start": 0.0} | {weight: 0.0}
    if weight == "refinement":
        changes["agreement"] = 0.0
    names = {"agreement": ["refine/agree"], "refinement": ["refine/ce", "refine/dice", "refine/agree"]}
    torch.manual_seed(0)
    learner = methods.build(small_recipe("smml", **{f"config__{key}": value for key, value in changes.items()}))
    terms = learner.losses(batch(), Progress(0, 1))
    assert [name for name, value in terms.items() if not value] == names.get(weight, [weight])


def test_a_crop_without_tumour_is_finite(learner):
    given = replace(
        batch(), target=torch.zeros(2, 16, 16, 16, dtype=torch.long), prior=torch.zeros(2, 4, 16, 16, 16).long()
    )
    learner.zero_grad()
    terms = learner.losses(given, Progress(1, 2))
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


def test_one_step_of_both_branches_and_refiners_goes_through():
    """The authors' two backward passes fail on one device."""
    network = methods.build(refining())
    optimizer = torch.optim.Adam(network.parameter_groups(), 1e-3)
    for step in range(2):
        sum(network.losses(batch(), Progress(step, 2)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.numerics
def test_a_refiner_sees_no_prior_of_a_sequence_that_its_branch_has_not_seen():
    torch.manual_seed(0)
    refiner = Refiner(4, 4, 8, "instance")
    prior, seen = prior_maps(labels_of(0, 1, 4, 8, 8, 8), LABELS), torch.tensor([[True, False, True, False]])
    expected = torch.full((1, 4), 0.25)
    changed = prior_maps(labels_of(1, 1, 4, 8, 8, 8), LABELS)
    changed = torch.where(seen[:, None, :, None, None, None], prior, changed)
    assert torch.equal(refiner.gated(prior, seen, expected, 1e-3), refiner.gated(changed, seen, expected, 1e-3))
    assert not refiner.gated(prior, seen, expected, 1e-3)[:, :, [1, 3]].any()


def test_the_gate_of_the_default_does_not_see_the_reference(learner):
    given = batch()
    own = both_outputs(learner, given, one_hot(given.target, LABELS))[0]
    other = one_hot(labels_of(9, 2, 16, 16, 16), LABELS)
    learner.eval()
    refined = [learner.refined(0, own, given, target) for target in (one_hot(given.target, LABELS), other)]
    learner.train()
    assert torch.equal(*refined)


# Using it


def test_a_model_holds_no_refiner_and_may_be_used_by_one_branch(tmp_path):
    recipe = refining(data__prior__kind="synthetic")
    torch.manual_seed(0)
    network = methods.build(recipe).eval()
    save_model(tmp_path / "m", network.kept, recipe, {})
    both, first, second = (
        load_model(tmp_path / "m", choices=choices) for choices in ({}, {"config.branch": 1}, {"config.branch": 2})
    )
    assert both.network.refiners is None
    assert first.chosen == {"branch": 1}
    image, available = randn(0, 1, 4, 16, 16, 16), to_flags(Modality.T1 | Modality.FLAIR)[None]
    with torch.inference_mode():
        assert torch.equal(both.network(image, available), network(image, available))
        single = [model.network(image, available) for model in (first, second)]
        mean = (single[0].log() + single[1].log()) / 2
        assert torch.allclose(both.network(image, available), mean.softmax(1), atol=1e-5)


def test_one_branch_costs_half(monkeypatch):
    ran = []
    honest = token_fusion.TokenFusion.encode
    monkeypatch.setattr(
        token_fusion.TokenFusion, "encode", lambda self, *given: ran.append(self) or honest(self, *given)
    )
    for branch, count in ((1, 1), (2, 1), ("both", 2)):
        ran.clear()
        network = methods.build(small_recipe("smml", config__branch=branch)).eval()
        with torch.inference_mode():
            network(randn(0, 1, 4, 16, 16, 16), to_flags(ALL)[None])
        assert len(ran) == count


@pytest.mark.parametrize(
    ("method", "choices", "message"),
    [
        ("smml", {"config.pixel": 2}, "settled when this smml was trained.*config.branch"),
        ("smml", {"config.branch": 3}, "branch"),
        ("mmformer", {"config.branch": 1}, "It has no choices"),
    ],
)
def test_what_was_settled_in_training_is_no_choice(tmp_path, method, choices, message):
    recipe = small_recipe(method)
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {})
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path / "m", choices=choices)


def test_two_branches_are_two_checkpoints(tmp_path, monkeypatch):
    narrow = {"width": 4, "token_width": 16, "heads": 2, "mlp_width": 16, "crop": (32, 32, 32)}
    config = replace(smml.OFFICIAL, network=replace(smml.OFFICIAL.network, **narrow), refine_width=4)
    monkeypatch.setattr(authors, "OFFICIAL", config)
    torch.manual_seed(0)
    network, files = smml.SMML(config, LABELS), []
    theirs = {authors_name(name, authors.NAMES): value for name, value in network.state_dict().items()}
    for number in "12":
        files.append(tmp_path / f"branch{number}.pth")
        torch.save({"state_dict": {k[2:]: v for k, v in theirs.items() if k.startswith(number)}}, files[-1])
    model = load_model(importing.import_model("smml", files, tmp_path / "m"))
    assert model.network.refiners is None
    assert model.recipe.data.sampling.patch == (32, 32, 32)
    assert "branch1.pth, branch2.pth" in json.dumps(model.provenance["imported"])
    for taken, given in zip(model.network.branches, network.branches, strict=True):
        weights = taken.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in given.state_dict().items())
    with pytest.raises(UsageError, match="made of 2 checkpoints"):
        importing.import_model("smml", files[0], tmp_path / "one")


def test_branches_of_five_classes_are_refused(stored):
    weights = smml_reference.authors_weights(stored)
    for number in "12":
        weights[f"{number}.decoder_fuse.seg_layer.weight"] = torch.zeros(5, 8, 1, 1, 1)
    with pytest.raises(ModelError, match="BraTS 2015"):
        smml.from_authors(weights)


@pytest.mark.numerics
def test_without_relations_and_peers_smml_is_two_mmformers():
    """The control experiment of two averaged mmFormers therefore has the same network and objective."""
    torch.manual_seed(0)
    network = small_recipe("smml").config.network
    two = smml.SMML(smml.Config(network=network, pixel=0, feature=0, refinement=0, agreement=0), LABELS).eval()
    given, target = batch(), one_hot(batch().target, LABELS)
    for number, branch in enumerate(two.branches):
        single = mmformer.MMFormer(network, LABELS).eval()
        single.network.load_state_dict(branch.state_dict())
        seen = to_flags(Modality.T1C).expand(2, -1)
        own = two.output(branch, given, seen, target)
        maps = single.maps(given.image, given.available, seen)
        terms = two.terms(number, own, own.detached(), batch=given, target=target, late=True)
        expected = region_fusion_terms(maps, target, given.available[:, CHANNELS])
        assert all(torch.equal(value, expected[name]) for name, value in terms.items() if value)
        assert sum(terms.values()) == sum(expected.values())
