"""Layers in the form for CPUs: the same numbers as torch's layers, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from glimpseg.nets import pyramid
from glimpseg.nets.layers import Pointwise, convolution, upsampled
from glimpseg.nets.pyramid import zero_absent

pytestmark = pytest.mark.numerics


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_torchs(bias: bool) -> None:
    layer, x = Pointwise(6, 5).double(), torch.randn(2, 6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    if not bias:
        layer.register_parameter("bias", None)
    parameters = [x, *layer.parameters()]
    found, expected = layer(x), functional.conv3d(x, layer.weight, layer.bias)
    weights = torch.randn_like(found)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
    )


def test_a_pointwise_convolution_computes_in_what_autocast_asks_for() -> None:
    layer = Pointwise(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 4, 2, 2, 2)).dtype == torch.bfloat16


def test_only_a_convolution_of_one_voxel_and_no_stride_is_pointwise() -> None:
    assert isinstance(convolution(2, 2, 1), Pointwise)
    for wide in (convolution(2, 2, 3), convolution(2, 2, 1, 2)):
        assert not isinstance(wide, Pointwise)
    assert convolution(2, 2, 3)(torch.randn(1, 2, 4, 5, 6)).shape == (1, 2, 4, 5, 6)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_upsampling_is_torchs_trilinear_one(factor: int) -> None:
    x = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    found = upsampled(x, factor)
    expected = functional.interpolate(x, scale_factor=float(factor), mode="trilinear", align_corners=True)
    weights = torch.randn_like(found)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), x),
        torch.autograd.grad((expected * weights).sum(), x),
    )


def test_upsampling_keeps_probabilities_in_fp32_under_autocast() -> None:
    x = torch.rand(1, 2, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsampled(x, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, upsampled(x, 2))


def test_a_copy_for_another_runtime_has_the_layers_under_their_names() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = Pointwise(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return upsampled(self.mix(x))

    program = torch.export.export(Both(), (torch.randn(1, 2, 4, 4, 4),), strict=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.conv3d.default", "aten.upsample_trilinear3d.vec"}


@pytest.mark.parametrize("copied", [True, False])
def test_features_of_absent_modalities_are_zero_whatever_they_were(
    monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """In a batch whose samples lack different modalities; by copying, as on a CPU, or voxel by voxel."""
    monkeypatch.setattr(pyramid, "on_cpu", lambda x: copied)
    available = torch.tensor([[True, False, True, True], [False, True, False, False]])
    features = torch.randn(2, 4, 3, 2, 3, 4)
    spoilt = torch.where(available[:, :, None, None, None, None], features, torch.nan).requires_grad_()
    found = zero_absent(spoilt, available)
    assert torch.equal(found, features * available[:, :, None, None, None, None])
    (gradient,) = torch.autograd.grad(found.sum(), spoilt)
    assert torch.equal(gradient, available[:, :, None, None, None, None].expand_as(features).float())
