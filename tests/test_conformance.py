"""Our official networks against numbers that the authors' released code computed."""

import numpy as np
import pytest
import torch

from conformance import reference

STORED = ("mmformer", "rfnet")
OUTPUT = 1e-4
LOSS = 1e-4


@pytest.fixture(scope="module", params=STORED)
def compared(request):
    stored = dict(np.load(reference.HERE / f"{request.param}.npz"))
    return stored, reference.differences(request.param, stored)


def test_outputs_of_four_subsets_are_the_authors(compared):
    _, found = compared
    maps = {name: value for name, value in found.items() if name.startswith("eval_")}
    assert len(maps) == 4
    assert max(maps.values()) < OUTPUT


def test_all_that_is_supervised_is_the_authors(compared):
    _, found = compared
    maps = {name: value for name, value in found.items() if name.startswith("train_")}
    assert len(maps) == 9
    assert max(maps.values()) < OUTPUT


def test_every_loss_is_the_authors(compared):
    stored, found = compared
    losses = {name: value for name, value in found.items() if name.startswith("loss ")}
    assert len(losses) == len(stored["train_losses"])
    assert max(losses.values()) < LOSS


def test_every_gradient_has_the_authors_norm(compared):
    """Alone shows a detach that is missing."""
    stored, found = compared
    gradients = {name: value for name, value in found.items() if name.startswith("gradient ")}
    assert len(gradients) == len(stored["grad_names"])
    assert max(gradients.values()) < 1


@pytest.mark.parametrize("name", STORED)
def test_an_absent_channel_of_nan_changes_no_bit_and_no_gradient(name):
    stored = dict(np.load(reference.HERE / f"{name}.npz"))
    module, network = reference.built(name, stored)
    image = reference.ours(stored["x"], module)
    available = torch.tensor([[True, False, True, False]])
    broken = torch.where(available[:, :, None, None, None], image, torch.nan)
    assert torch.equal(network(image, available), network(broken, available))
    network(broken, available).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
