"""RFNet and mmFormer: effect of our corrections, training on incomplete studies, shared computation."""

from dataclasses import replace

import pytest
import torch

from conftest import NETWORKS
from glimpseg.data.crops import Batch
from glimpseg.losses import FusionOutputs, one_hot, region_fusion_terms, soft_dice_loss, weighted_cross_entropy
from glimpseg.method import Progress
from glimpseg.methods import mmformer, rfnet
from glimpseg.modality import SUBSETS, Modality, to_flags
from glimpseg.region import Label

pytestmark = pytest.mark.numerics

LABELS = (Label.NCR, Label.ED, Label.ET)
SMALL = {
    "rfnet": (rfnet.RFNet, rfnet.Config(**NETWORKS["rfnet"])),
    "mmformer": (mmformer.MMFormer, mmformer.Config(**NETWORKS["mmformer"], dropout=0)),
}


def network(name, **changes):
    torch.manual_seed(0)
    kind, config = SMALL[name]
    return kind(replace(config, **changes), LABELS)


def encoders(learner):
    return (learner.network if isinstance(learner, mmformer.MMFormer) else learner).encoders


def image(seed=0, count=2, side=16):
    return torch.randn(count, 4, side, side, side, generator=torch.Generator().manual_seed(seed))


def batch(available, seed=0):
    target = torch.randint(0, 4, (len(available), 16, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Batch(image=image(seed, len(available)), available=available, target=target, study=["a"] * len(available))


# The objective


def test_cross_entropy_weighs_a_class_by_the_voxels_that_are_not_of_it():
    target = one_hot(torch.tensor([[[[0, 0, 0, 3]]]]), LABELS)
    probabilities = torch.tensor([0.5, 0.1, 0.1, 0.3])[None, :, None, None, None].expand(1, 4, 1, 1, 4)
    expected = -(3 * 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(0.3).log()) / 4
    assert weighted_cross_entropy(probabilities, target)[0] == pytest.approx(float(expected))


def test_a_voxel_missed_with_more_confidence_than_the_floor_has_no_gradient():
    target = one_hot(torch.tensor([[[[0, 3]]]]), LABELS)
    probabilities = torch.tensor([0.997, 0.001, 0.001, 0.001])[None, :, None, None, None].repeat(1, 1, 1, 1, 2)
    probabilities.requires_grad_()
    weighted_cross_entropy(probabilities, target).sum().backward()
    assert probabilities.grad[0, 3, 0, 0, 1] == 0
    assert probabilities.grad[0, 0, 0, 0, 0] != 0


def test_dice_of_a_class_that_is_nowhere_costs_one_share_whatever_is_predicted():
    target = one_hot(torch.zeros(1, 2, 2, 2, dtype=torch.long), LABELS)
    perfect = target.clone()
    assert soft_dice_loss(perfect, target, smooth=(0, 1e-7)) == pytest.approx(0.75)
    assert soft_dice_loss(perfect, target) == pytest.approx(0)


def test_other_labels_than_the_networks_count_as_background():
    maps = one_hot(torch.tensor([[[[0, 1, 2, 3, 4]]]]), LABELS)
    assert maps[0, :, 0, 0].argmax(0).tolist() == [0, 1, 2, 3, 0]
    assert torch.equal(maps.sum(1), torch.ones_like(maps[:, 0]))


def test_single_terms_are_those_of_the_samples_that_have_the_modality():
    """Leaving a pair of sample and sequence out equals a batch without that pair."""
    torch.manual_seed(0)
    singles = torch.randn(3, 4, 4, 5, 5, 5).softmax(2)
    fused = singles[:, 0]
    target = one_hot(torch.randint(0, 4, (3, 5, 5, 5)), LABELS)
    available = torch.tensor([[True, True, False, True], [True, False, False, True], [True, True, False, False]])
    terms = region_fusion_terms(FusionOutputs(fused, singles, []), target, available)
    ce, dice = torch.zeros(()), torch.zeros(())
    for m in (0, 1, 3):
        rows = available[:, m]
        ce += weighted_cross_entropy(singles[rows, m], target[rows]).mean()
        dice += soft_dice_loss(singles[rows, m], target[rows], smooth=(0, 1e-7))
    assert terms["sep/ce"] == pytest.approx(float(ce), rel=1e-6)
    assert terms["sep/dice"] == pytest.approx(float(dice), rel=1e-6)


# Truly incomplete studies


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_learned_about_a_sequence_that_no_study_has(name):
    learner = network(name)
    available = to_flags(Modality.T1 | Modality.T2).expand(2, -1)
    sum(learner.losses(batch(available), Progress(0, 1)).values()).backward()
    for key in ("t1c", "flair"):
        assert not any(p.grad.any() for p in encoders(learner)[key].parameters())
    for key in ("t1", "t2"):
        assert all(p.grad.any() for p in encoders(learner)[key].parameters())


def test_a_sample_that_lacks_a_sequence_sends_no_gradient_through_it():
    singles = torch.rand(2, 4, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    available = torch.tensor([[True, False, True, True], [False, True, True, False]])
    target = one_hot(torch.zeros(2, 3, 3, 3, dtype=torch.long), LABELS)
    terms = region_fusion_terms(FusionOutputs(singles[:, 0].detach(), singles, []), target, available)
    (terms["sep/ce"] + terms["sep/dice"]).backward()
    assert torch.equal(singles.grad.flatten(2).any(2), available)


# What is shared


@pytest.mark.parametrize("name", SMALL)
def test_encoders_of_absent_sequences_are_not_run_outside_training(name):
    learner, ran = network(name).eval(), []
    for key, encoder in encoders(learner).items():
        encoder.register_forward_hook(lambda *_, key=key: ran.append(key))
    with torch.inference_mode():
        learner(image(), to_flags(Modality.T1 | Modality.FLAIR).expand(2, -1))
    assert sorted(ran) == ["flair", "t1"]


# The mends


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("rfnet", {}),
        *(
            ("mmformer", {"layout": layout, "absent_tokens": tokens})
            for layout in ("aligned", "released")
            for tokens in ("left_out", "kept")
        ),
    ],
)
def test_the_biases_that_are_left_out_were_without_effect(name, switches):
    """Same weights with and without these biases: the norms after them cancel them."""
    official, mended = network(name, null_biases=True, **switches).eval(), network(name, **switches).eval()
    for p in official.parameters():
        p.data += 0.3 * torch.randn(p.shape) if p.dim() == 1 else 0
    weights = official.state_dict()
    missing = mended.load_state_dict(weights, strict=False)
    assert missing.unexpected_keys
    assert not missing.missing_keys
    for subset in SUBSETS[::4]:
        available = to_flags(subset).expand(2, -1)
        with torch.inference_mode():
            assert torch.allclose(official(image(), available), mended(image(), available), atol=1e-5)
    maps = [learner.maps(image(), to_flags(SUBSETS[-1]).expand(2, -1), available) for learner in (official, mended)]
    assert torch.allclose(maps[0].singles, maps[1].singles, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps[0].deep, maps[1].deep, strict=True))


def test_as_many_biases_are_left_out_as_the_norms_cancel():
    """There are 106 such tensors in RFNet and 87 in mmFormer."""
    for module, kind, count in ((rfnet, rfnet.RFNet, 106), (mmformer, mmformer.MMFormer, 87)):
        with torch.device("meta"):
            official, mended = kind(module.OFFICIAL, LABELS), kind(module.Config(), LABELS)
        assert len(official.state_dict()) - len(mended.state_dict()) == count


def test_the_official_networks_have_the_authors_numbers_of_parameters():
    """For mmFormer without the 262,656 parameters that no forward pass uses."""
    for kind, config, count in (
        (rfnet.RFNet, rfnet.OFFICIAL, 8_984_960),
        (mmformer.MMFormer, mmformer.OFFICIAL, 36_391_760),
    ):
        with torch.device("meta"):
            assert sum(p.numel() for p in kind(config, LABELS).parameters()) == count


def test_the_released_warm_up_multiplies_by_nothing_but_keeps_the_gradient():
    learner = network("rfnet", fuse_from=5)
    early, late = (learner.losses(batch(torch.ones(2, 4, dtype=torch.bool)), Progress(step, 9)) for step in (4, 5))
    assert early["fuse/ce"] == early["fuse/dice"] == 0
    assert late["fuse/ce"] > 0
    sum(early.values()).backward()
    assert learner.joint.segment.weight.grad is not None
    assert not learner.joint.segment.weight.grad.any()


def passing(learner):
    """Return a network whose transformer and last convolution pass their input on, to test the layout."""
    learner.network.inter.forward = lambda tokens, position, keys: tokens
    learner.network.untoken = torch.nn.Identity()
    return learner.network


def numbered(n=64, width=16):
    """Return tokens with the value 1000 m + n at token n of modality m."""
    return (1000 * torch.arange(4.0)[:, None] + torch.arange(n))[None, :, :, None].expand(1, 4, n, width)


def test_a_voxel_gets_the_four_sequences_of_its_place():
    voxels = passing(network("mmformer")).fuse_tokens(numbered(), torch.ones(1, 4, dtype=torch.bool), (4, 4, 4))
    for m in range(4):
        assert torch.equal(voxels[0, 16 * m].flatten(), 1000 * m + torch.arange(64.0))


def test_the_released_layout_gives_a_voxel_four_neighbours_of_one_sequence():
    learner = passing(network("mmformer", layout="released", absent_tokens="kept"))
    voxels = learner.fuse_tokens(numbered(), torch.ones(1, 4, dtype=torch.bool), (4, 4, 4))
    for n in (0, 15, 16, 63):
        held = voxels[0, ::16].flatten(1)[:, n].tolist()
        assert held == [1000 * ((4 * n + j) // 64) + (4 * n + j) % 64 for j in range(4)]


def test_tokens_that_are_left_out_change_nothing_and_those_kept_do():
    available = to_flags(Modality.T1 | Modality.T2)[None]
    for absent_tokens, same in (("left_out", True), ("kept", False)):
        learner = network("mmformer", absent_tokens=absent_tokens).eval()
        with torch.inference_mode():
            before = learner(image(count=1), available)
            learner.network.tokens["flair"].position.normal_()
            assert torch.equal(learner(image(count=1), available), before) is same


def test_positions_are_their_own_on_their_grid_and_smooth_on_another():
    part = network("mmformer").network.tokens["t1"]
    with torch.no_grad():
        ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 4).reshape(1, 64, 1)
        part.position.copy_(ramp.expand(1, 64, 16))
    assert part.positions_for((4, 4, 4)) is part.position
    finer = part.positions_for((8, 4, 6))[0, :, 0].reshape(8, 4, 6)
    assert torch.allclose(finer[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert (finer - finer[:, :1, :1]).abs().max() < 1e-6


def test_five_classes_work():
    """As in BraTS 2024; the released mmFormer cannot do this."""
    for kind, config in SMALL.values():
        torch.manual_seed(0)
        learner = kind(config, (*LABELS, Label.RC)).eval()
        with torch.inference_mode():
            assert learner(image(), torch.ones(2, 4, dtype=torch.bool)).shape[1] == 5


def test_gates_are_computed_in_fp32_under_autocast():
    """Class shares may be tiny."""
    learner = network("rfnet")
    fusion = learner.joint.fuse[0]
    features = torch.rand(1, 4, 4, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    coarse = torch.full((1, 4, 6, 6, 6), 1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        under = fusion.weights(features.bfloat16(), coarse)
    with torch.no_grad():
        assert torch.equal(under, fusion.weights(features.bfloat16().float(), coarse))
    assert under.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (mmformer.Config, {"crop": (120, 128, 128)}),
        (mmformer.Config, {"crop": (16, 16, 16)}),
        (mmformer.Config, {"token_width": 100}),
        (rfnet.Config, {"width": 6}),
    ],
)
def test_a_config_that_cannot_be_built_names_its_field(config, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)
