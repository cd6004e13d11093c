"""Parts written after MONAI give MONAI's numbers: networks, attention, windows, Gaussian filter."""

import warnings

import pytest
import torch

from glimpseg.data.augment import blurred
from glimpseg.nets.attention import Perceptron, SelfAttention
from glimpseg.nets.segresnet import SegResNet
from glimpseg.segmentation.inference import averaged

BLOCKS, HEADS = (1, 2, 1), 2


@pytest.fixture(scope="module")
def monai():
    """Import MONAI only when a test needs it: this takes seconds and gives warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.inferers
        import monai.networks.layers
        import monai.networks.nets
    return monai


@pytest.fixture(scope="module")
def networks(monai):
    """Return MONAI's network and ours, each initialised from the same seed."""
    torch.manual_seed(0)
    theirs = monai.networks.nets.SegResNetDS(
        3, 8, 4, 3, norm=("GROUP", {"num_groups": 2}), blocks_down=BLOCKS, dsdepth=HEADS
    )
    torch.manual_seed(0)
    return theirs, SegResNet(4, 3, width=8, groups=2, blocks=BLOCKS, heads=HEADS)


def same_parameters(theirs, ours):
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_a_seed_draws_monais_network(networks):
    same_parameters(*networks)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_logits_of_every_head_and_all_gradients_are_monais_bits(networks, precision):
    theirs, ours = networks
    image = torch.randn(2, 4, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    outputs = []
    for network in networks:
        network.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            outputs.append(network.train()(image))
        sum(logits.float().square().mean() for logits in outputs[-1]).backward()
    assert [logits.shape[2:] for logits in outputs[1]] == [(16, 8, 12), (8, 4, 6)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_evaluation_gives_the_finest_head_alone(networks):
    theirs, ours = networks
    image = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (logits,) = ours.eval()(image)
        assert torch.equal(logits, theirs.eval()(image))


def test_sides_that_do_not_halve_are_refused(networks):
    with pytest.raises(ValueError, match=r"^The image's sides should be multiples of 4, not \(8, 8, 10\)\.$"):
        networks[1](torch.zeros(1, 4, 8, 8, 10))


@pytest.mark.parametrize("share", [None, 0.5])
def test_attention_is_monais_bits(monai, share):
    torch.manual_seed(1)
    theirs = monai.networks.blocks.SABlock(24, 3, 0.1)
    torch.manual_seed(1)
    ours = SelfAttention(24, 3, 0.1)
    same_parameters(theirs, ours)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 10, 24, generator=generator)
    keys = None if share is None else torch.rand(2, 10, generator=generator) < share
    found = []
    for block in (theirs, ours):
        torch.manual_seed(3)  # of dropout
        found.append(block(tokens, keys))
    assert torch.equal(*found)


def test_the_perceptron_is_monais_bits(monai):
    torch.manual_seed(1)
    theirs = monai.networks.blocks.MLPBlock(24, 40, 0.1)
    torch.manual_seed(1)
    ours = Perceptron(24, 40, 0.1)
    same_parameters(theirs, ours)
    tokens = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(2))
    found = []
    for block in (theirs, ours):
        torch.manual_seed(3)
        found.append(block(tokens))
    assert torch.equal(*found)


@pytest.mark.parametrize("weighting", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "sides"), [((20, 23, 17), (8, 6, 8)), ((8, 8, 8), (8, 8, 8)), ((9, 8, 13), (8, 8, 5))]
)
def test_averages_of_windows_are_monais_bits(monai, shape, sides, weighting):
    image = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))

    def network(windows):  # differs with the place in the window, so that overlaps disagree
        ramp = torch.linspace(0, 1, windows.shape[-1])
        return windows[:, :3].sigmoid() * ramp, windows[:, 1:3].cos() + ramp

    theirs = monai.inferers.SlidingWindowInferer(sides, 2, 0.5, weighting)(image[None], network)
    ours = averaged(image, network, sides, weighting, 2, torch.device("cpu"))
    assert [found.shape for found in ours] == [(3, *shape), (2, *shape)]
    assert all(torch.equal(a[0], b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("sd_voxels", [0.5, 0.77, 1.0])
def test_the_gaussian_filter_is_monais_within_rounding(monai, sd_voxels):
    image = torch.randn(11, 9, 14, generator=torch.Generator().manual_seed(0))
    layers = monai.networks.layers
    theirs = layers.separable_filtering(image[None, None], [layers.gaussian_1d(torch.tensor(sd_voxels))] * 3)[0, 0]
    # Another order of padding lets the convolution sum in another order: a few roundings of values up to 4.
    torch.testing.assert_close(blurred(image, sd_voxels), theirs, rtol=0, atol=4 * 4 * torch.finfo().eps)
