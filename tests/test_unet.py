"""Baseline: regions, labels, targets and losses, computed by hand, and its input channels."""

import math
import re
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from conftest import small_recipe
from glimpseg import methods
from glimpseg.data.crops import Batch
from glimpseg.errors import UsageError
from glimpseg.method import Progress
from glimpseg.methods.unet import Config, UNet
from glimpseg.modality import SUBSETS, Modality, to_flags
from glimpseg.region import Label, Region

TUMOUR = (Label.NCR, Label.ED, Label.ET)
EVERYTHING = (*TUMOUR, Label.RC)
SMALL = Config(width=4, blocks=(1, 1, 1, 1))
NOW = Progress(0, 1)


@pytest.fixture(scope="module", autouse=True)
def seeded():
    torch.manual_seed(0)


def network(labels=EVERYTHING, **changes):
    return UNet(replace(SMALL, **changes), labels)


def decoded(labels, *voxels):
    """Return the labels of voxels, given the probabilities of the network's regions in order."""
    probabilities = torch.tensor(voxels).T[None, :, None, None]  # b k x y z
    return network(labels).decode(probabilities).flatten().tolist()


# Labels of regions


def test_the_channels_are_the_regions_in_their_order():
    assert network().regions == (Region.WT, Region.TC, Region.ET, Region.RC)
    assert network(TUMOUR).regions == (Region.WT, Region.TC, Region.ET)


def test_whole_tumour_alone_is_oedema_with_core_necrosis_and_with_all_enhancing():
    #                        WT   TC   ET
    voxels = decoded(TUMOUR, (0.4, 0.0, 0.0), (0.6, 0.4, 0.0), (0.6, 0.6, 0.4), (0.6, 0.6, 0.6))
    assert voxels == [0, Label.ED, Label.NCR, Label.ET]


def test_a_region_counts_only_inside_the_one_around_it():
    # Core and enhancing tumour outside the whole tumour; enhancing tumour outside the core.
    assert decoded(TUMOUR, (0.4, 0.9, 0.9), (0.4, 0.4, 0.9), (0.9, 0.4, 0.9)) == [0, 0, Label.ED]


def test_exactly_one_half_is_outside():
    assert decoded(TUMOUR, (0.5, 0.9, 0.9), (0.9, 0.5, 0.9), (0.9, 0.9, 0.5)) == [0, Label.ED, Label.NCR]


def test_a_cavity_is_likelier_than_not_and_likelier_than_tumour():
    cavities = [
        ((0.1, 0.0, 0.0, 0.6), Label.RC),
        ((0.6, 0.6, 0.6, 0.9), Label.RC),  # over every tumour label
        ((0.9, 0.9, 0.9, 0.6), Label.ET),  # tumour is likelier
        ((0.9, 0.1, 0.1, 0.6), Label.ED),
        ((0.7, 0.1, 0.1, 0.7), Label.ED),  # as likely
        ((0.2, 0.1, 0.1, 0.4), 0),  # likelier than tumour, but not likelier than not
        ((0.1, 0.1, 0.1, 0.5), 0),
    ]
    assert decoded(EVERYTHING, *[voxel for voxel, _ in cavities]) == [label for _, label in cavities]


def test_a_network_of_the_core_alone_starts_with_the_core():
    #                                          TC   ET
    assert decoded((Label.NCR, Label.ET), (0.4, 0.9), (0.6, 0.4), (0.6, 0.6)) == [0, Label.NCR, Label.ET]
    assert decoded((Label.ET,), (0.4,), (0.6,)) == [0, Label.ET]


def test_a_network_without_whole_tumour_compares_the_cavity_with_the_outermost_region_it_has():
    #                                       ET   RC
    assert decoded((Label.ET, Label.RC), (0.6, 0.7), (0.7, 0.6), (0.4, 0.4)) == [Label.RC, Label.ET, 0]
    assert decoded((Label.RC,), (0.6,), (0.5,)) == [Label.RC, 0]


@pytest.mark.parametrize(
    ("labels", "named", "lost"),
    [
        ((Label.ED, Label.ET), "ED, ET", "ED"),
        ((Label.NCR, Label.ED), "NCR, ED", "NCR, ED"),
        ((Label.NCR, Label.RC), "NCR, RC", "NCR"),
    ],
)
def test_labels_that_no_region_holds_are_refused(labels, named, lost):
    message = (
        f"unet has a head for each region, and no region that {named} make up holds {lost}. "
        "Add labels: WT needs NCR, ED and ET, TC needs NCR and ET."
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        network(labels)


def test_each_place_of_a_batch_gets_its_own_label():
    probabilities = torch.zeros(2, 3, 1, 2, 3)
    probabilities[1, 0, 0, 1] = 0.9
    probabilities[1, 1, 0, 1, 2] = 0.9
    labels = network(TUMOUR).decode(probabilities)
    assert labels.tolist() == [[[[0, 0, 0], [0, 0, 0]]], [[[0, 0, 0], [2, 2, 1]]]]
    assert labels.dtype == torch.int64


def test_probabilities_of_regions_are_the_channels():
    probabilities = torch.rand(2, 4, 1, 2, 3)
    found = network().region_probabilities(probabilities)
    assert list(found) == [Region.WT, Region.TC, Region.ET, Region.RC]
    assert all(torch.equal(found[region], probabilities[:, k]) for k, region in enumerate(found))


def test_the_target_of_a_region_is_the_union_of_its_labels():
    target = network().region_target(torch.tensor([[[[0, 1, 2, 3, 4]]]]))
    assert target[0, :, 0, 0].tolist() == [
        [0, 1, 1, 1, 0],  # WT: NCR, ED, ET
        [0, 1, 0, 1, 0],  # TC: NCR, ET
        [0, 0, 0, 1, 0],  # ET
        [0, 0, 0, 0, 1],  # RC
    ]
    assert target.dtype == torch.float32


def test_labels_survive_being_made_into_regions_and_back():
    labels = torch.tensor([[[[0, 1, 2, 3, 4]]]])
    assert torch.equal(network().decode(network().region_target(labels)), labels)


# The objective


def taught(heads, target, available=None, labels=(Label.ET,), **config):
    """Return the loss terms of a network with these logits, and the modalities that it saw."""
    learner = network(labels, **config)
    seen = []
    learner.logits = lambda *arguments: seen.extend(arguments) or heads
    available = torch.ones(len(target), 4, dtype=torch.bool) if available is None else available
    batch = Batch(image=torch.zeros(len(target), 4, *target.shape[1:]), available=available, target=target)
    terms = {name: float(term) for name, term in learner.losses(batch, NOW).items()}
    assert seen[0] is batch.image
    return terms, seen[1]


def heads_of(*logits):
    """Return one constant map for each value, each at half the resolution of the previous one."""
    return [torch.full((1, 1, *[8 >> level] * 3), float(logit)) for level, logit in enumerate(logits)]


ALL_ET = torch.full((1, 8, 8, 8), int(Label.ET))
HALF, THREE_QUARTERS, QUARTER = 0.0, math.log(3), -math.log(3)
"""Return the logits of these probabilities."""


def costs(p):
    """Dice and cross-entropy of p in every voxel where the target is 1: 1 - 2p / (p + 1), and -log(p)."""
    return 1 - 2 * p / (p + 1), -math.log(p)


def test_heads_weigh_4_2_and_1_sevenths_finest_first():
    terms, _ = taught(heads_of(HALF, THREE_QUARTERS, QUARTER), ALL_ET)
    # Dice costs 1/3, 1/7 and 3/5: (4/3 + 2/7 + 3/5) / 7. Cross-entropy log 2, log 4/3 and log 4.
    assert terms["dice"] == pytest.approx((4 / 3 + 2 / 7 + 3 / 5) / 7, abs=1e-5)
    assert terms["cross_entropy"] == pytest.approx((4 * math.log(2) + 2 * math.log(4 / 3) + math.log(4)) / 7)


def test_the_weight_of_a_coarser_head_is_a_setting():
    terms, _ = taught(heads_of(HALF, QUARTER), ALL_ET, head_weight=0.25)
    # Weights 1 and 1/4, which sum to 5/4.
    assert terms["cross_entropy"] == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(4))


def test_a_single_head_has_the_whole_weight():
    terms, _ = taught(heads_of(QUARTER), ALL_ET)
    assert (terms["dice"], terms["cross_entropy"]) == pytest.approx(costs(1 / 4), abs=1e-5)


def test_terms_have_the_weights_of_the_config():
    terms, _ = taught(heads_of(QUARTER), ALL_ET, dice=2.0, cross_entropy=3.0)
    dice, cross_entropy = costs(1 / 4)
    assert terms["dice"] == pytest.approx(2 * dice, abs=1e-5)
    assert terms["cross_entropy"] == pytest.approx(3 * cross_entropy)


def test_a_coarse_head_is_taught_the_share_of_tumour_in_each_of_its_voxels():
    target = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    target[:, ::2, ::2, ::2] = Label.ET  # one voxel of every eight
    terms, _ = taught([heads_of(HALF)[0], torch.full((1, 1, 4, 4, 4), THREE_QUARTERS)], target, head_weight=1.0)
    coarse = (math.log(4 / 3) + 7 * math.log(4)) / 8
    assert terms["cross_entropy"] == pytest.approx((math.log(2) + coarse) / 2)
    # Dice of 1/2 against 1/8 of 1: 2/16 / (1/2 + 1/8) = 1/5; of 3/4 against 1/8: 6/32 / (3/4 + 1/8) = 3/14.
    assert terms["dice"] == pytest.approx((4 / 5 + 11 / 14) / 2, abs=1e-5)


def test_regions_are_judged_each_by_its_own_channel():
    target = torch.full((1, 8, 8, 8), int(Label.ED))  # in WT alone
    logits = torch.tensor([THREE_QUARTERS, QUARTER, QUARTER])[None, :, None, None, None].expand(1, 3, 8, 8, 8)
    terms, _ = taught([logits], target, labels=TUMOUR)
    # 3/4 of what is right in every channel. Dice: 1/7 for WT; 1 for the two that are nowhere.
    assert terms["cross_entropy"] == pytest.approx(math.log(4 / 3))
    assert terms["dice"] == pytest.approx((1 / 7 + 1 + 1) / 3, abs=1e-5)


# What it sees of a study


def shown(share, available):
    target = torch.zeros(len(available), 1, 1, 1, dtype=torch.long)
    _, seen = taught([torch.zeros(len(available), 1, 1, 1, 1)], target, available, full_share=share)
    return seen


@pytest.mark.parametrize(
    ("share", "expected"),
    # All four are also one of the 15 subsets: share + (1 - share) / 15.
    [(0.0, 1 / 15), (0.25, 0.3), (0.75, 23 / 30)],
)
def test_that_share_of_samples_sees_all_it_has(share, expected):
    seen = shown(share, torch.ones(4000, 4, dtype=torch.bool))
    # The standard deviation is at most 0.0073.
    assert float(seen.all(1).float().mean()) == pytest.approx(expected, abs=0.03)


def test_all_that_a_study_has_is_no_more_than_it_has():
    available = torch.stack([to_flags(subset) for subset in SUBSETS])
    assert torch.equal(shown(1.0, available), available)


def test_without_a_reference_nothing_can_be_taught():
    batch = Batch(image=torch.zeros(1, 4, 8, 8, 8), available=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(AssertionError, match="needs a reference"):
        network().losses(batch, NOW)


class Echo(nn.Module):
    """Network that returns its input as the map of its only head."""

    def forward(self, image):
        return [image]


def test_absent_modalities_are_zero_channels_and_four_channels_say_what_is_present():
    learner = network()
    learner.network = Echo()
    image = torch.arange(1.0, 9.0).reshape(2, 4, 1, 1, 1)
    image[0, 1] = torch.nan
    available = torch.tensor([[True, False, True, False], [False, True, True, True]])
    (seen,) = learner.logits(image, available)
    assert seen.flatten(1).tolist() == [[1, 0, 3, 0, 1, 0, 1, 0], [0, 6, 7, 8, 0, 1, 1, 1]]


def test_half_precision_stays_half_precision_until_the_probabilities():
    learner = network()
    learner.network = Echo()
    image, available = torch.ones(1, 4, 2, 2, 2, dtype=torch.float16), torch.ones(1, 4, dtype=torch.bool)
    assert learner.logits(image, available)[0].dtype == torch.float16
    assert learner(image, available).dtype == torch.float32


def test_a_silent_sequence_is_not_an_absent_one():
    """The presence channels reach the network; group norms do not remove them."""
    torch.manual_seed(1)
    network = methods.build(small_recipe()).eval()
    silent = torch.randn(1, 4, 16, 16, 16)
    silent[:, 1] = 0
    everything = to_flags(SUBSETS[-1])[None]
    with torch.inference_mode():
        present, absent = network(silent, everything), network(silent, everything & ~to_flags(SUBSETS[1]))
    assert (present - absent).abs().max() > 1e-4


# The network


def test_heads_of_a_training_pass_are_finest_first_and_each_half_as_fine():
    learner, available = network(heads=3).train(), torch.ones(1, 4, dtype=torch.bool)
    heads = learner.logits(torch.rand(1, 4, 16, 8, 8), available)
    assert [tuple(head.shape) for head in heads] == [(1, 4, 16, 8, 8), (1, 4, 8, 4, 4), (1, 4, 4, 2, 2)]


def test_outside_training_there_is_the_finest_head_alone_and_its_sigmoid_is_the_probability():
    learner, available = network().eval(), torch.ones(1, 4, dtype=torch.bool)
    image = torch.rand(1, 4, 8, 8, 8)
    (finest,) = learner.logits(image, available)
    assert torch.allclose(learner(image, available), 1 / (1 + (-finest).exp()))
    assert torch.allclose(learner.train().logits(image, available)[0], finest, atol=1e-6)


def test_maps_for_pretraining_are_the_decoders_finest_first():
    learner, available = network().eval(), to_flags(Modality.T1 | Modality.T2)[None]
    image = torch.rand(1, 4, 16, 8, 8)
    image[:, 1] = torch.nan
    maps = learner.pyramid(image, available)
    # Width 4, doubled at each halving.
    assert [tuple(level.shape) for level in maps] == [(1, 4, 16, 8, 8), (1, 8, 8, 4, 4), (1, 16, 4, 2, 2)]
    # The finest map is what the finest head sees: a convolution of one voxel.
    weight, bias = (learner.state_dict()[f"network.up_layers.2.head.{name}"] for name in ("weight", "bias"))
    assert torch.allclose(functional.conv3d(maps[0], weight, bias), learner.logits(image, available)[0], atol=1e-6)


def test_each_level_has_its_number_of_residual_blocks():
    # Of the encoder 1, 3 and 2; of the decoder one for each of the two finer levels.
    assert len(network(blocks=(1, 3, 2), heads=1).stages) == 1 + 3 + 2 + 2


@pytest.mark.parametrize(("width", "together", "groups"), [(8, 4, 2), (8, 8, 1), (12, 4, 3)])
def test_so_many_channels_of_the_first_level_share_a_norm(width, together, groups):
    norms = [m for m in network(width=width, channels_per_group=together).modules() if isinstance(m, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


@pytest.mark.parametrize(("blocks", "stride"), [((1, 1), 2), ((1, 2, 2, 4), 8), ((1, 2, 2, 4, 4), 16)])
def test_crops_are_multiples_of_one_halving_for_each_level_below_the_first(blocks, stride):
    assert network(blocks=blocks, heads=1).stride == stride


def test_a_brain_up_to_twice_a_crops_length_is_seen_in_one_piece():
    assert network().whole_up_to == 2


@pytest.mark.parametrize(("heads", "levels"), [(0, 4), (4, 4), (1, 1)])
def test_so_many_heads_have_no_level(heads, levels):
    message = f"heads should lie between 1 and {levels - 1} for {levels} levels"
    with pytest.raises(ValidationError, match=message):
        Config(heads=heads, blocks=(1,) * levels)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_head_for_every_level_but_the_coarsest_is_allowed(heads):
    assert Config(heads=heads, blocks=(1,) * 4).heads == heads


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValidationError, match=r"width \(6\) should be a multiple of channels_per_group"):
        Config(width=6)


def test_the_defaults_are_the_papers():
    """SegResNet has 32 channels at first. nnU-Net adds Dice and cross-entropy, and halves each coarser head."""
    config = Config()
    assert (config.width, config.head_weight, config.dice, config.cross_entropy) == (32, 0.5, 1, 1)
    assert config.blocks[:4] == (1, 2, 2, 4)
    assert config.full_share == 0
