"""bf16 is used where it is correct."""

import pytest
import torch
from torch.nn import functional

from glimpseg.runtime.precision import _planes, precision_context, resolve_precision

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")
NATIVE = resolve_precision("auto", CPU) == "bf16"


def kept_in_bf16(shape, kernel, stride, padding):
    with precision_context("bf16", CPU):
        return (
            functional.conv3d(torch.rand(1, 2, *shape), torch.rand(2, 2, *[kernel] * 3), None, stride, padding).dtype
            == torch.bfloat16
        )


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "bf16"),
    [
        ((3, 3, 3), 3, 1, 1, True), ((2, 8, 8), 3, 1, 1, False), ((1, 4, 4), 1, 1, 0, False),
        ((5, 5, 5), 3, 2, 1, True), ((8, 2, 2), 3, 1, 1, True), ((4, 4, 4), 3, 2, 1, False),
        ((4, 4, 4), 4, 2, 1, False), ((3, 3, 3), 3, 1, 0, False),
        ((3, 3, 3), 3, 1, "same", True), ((4, 4, 4), 3, 1, "valid", False),
    ],
)  # fmt: skip
def test_convolutions_to_one_or_two_planes_are_computed_in_fp32(shape, kernel, stride, padding, bf16):
    assert kept_in_bf16(shape, kernel, stride, padding) is bf16


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid", 0, 1, (2, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1, 1)])
def test_planes_are_those_of_the_result(stride, padding, dilation):
    if padding == "same" and stride != 1:
        pytest.skip("torch has no such convolution")
    arguments = torch.rand(1, 1, 7, 7, 7), torch.rand(1, 1, 3, 3, 3), None, stride, padding, dilation
    assert _planes(*arguments) == torch.conv3d(*arguments).shape[2]


@pytest.mark.skipif(not NATIVE, reason="this processor has no bf16 of its own")
@pytest.mark.parametrize("shape", [(2, 1, 2), (2, 2, 2), (2, 4, 4)])
def test_gradients_of_coarse_convolutions_are_those_of_fp32(shape):
    """In bf16 the gradients hold uninitialised memory: here, very large numbers."""
    torch.manual_seed(0)
    layer, image = torch.nn.Conv3d(32, 32, 3, padding=1), torch.randn(1, 32, *shape)

    def gradient(precision):
        layer.zero_grad()
        poison = [torch.full((size,), 1e30) for size in (64, 1024, 16384, 262144) for _ in range(40)]
        del poison
        with precision_context(precision, CPU):
            layer(image).float().square().sum().backward()
        return layer.weight.grad.clone()

    assert torch.allclose(gradient("bf16"), gradient("fp32"), rtol=1e-4, atol=1e-4)


def test_fp32_leaves_everything_as_it_is():
    with precision_context("fp32", CPU):
        assert functional.conv3d(torch.rand(1, 2, 8, 8, 8), torch.rand(2, 2, 3, 3, 3)).dtype == torch.float32
