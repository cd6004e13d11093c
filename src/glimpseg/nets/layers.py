"""Layers in a form that is faster on a CPU; results are the same up to rounding.

On a GPU, and in copies exported for another inference backend, they are the usual torch layers.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Pointwise(nn.Conv3d):
    """Convolution of 1 x 1 x 1; on a CPU a matrix product, which oneDNN computes faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o x y z"]:
        """Return the convolved image, of the same size."""
        if not on_cpu(x):
            return super().forward(x)
        weight, voxels = self.weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)
        if self.bias is None:
            mixed = torch.bmm(weight, voxels)
        else:
            mixed = torch.baddbmm(self.bias[None, :, None], weight, voxels)
        return mixed.unflatten(2, x.shape[2:])


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    padding_mode: Literal["reflect", "zeros"] = "reflect",
) -> nn.Conv3d:
    """Return a convolution that keeps the size, except for its stride.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: side of the kernel, in voxels.
        stride: voxels between two outputs.
        padding_mode: values outside the image.
    """
    if kernel == stride == 1:
        return Pointwise(inputs, outputs)
    return nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode=padding_mode)


def upsampled(x: Float[Tensor, "b c x y z"], factor: int = 2) -> Float[Tensor, "b c u v w"]:
    """Return the image upsampled by trilinear interpolation, with aligned corners.

    On a CPU each axis is interpolated by a product with a matrix that has two weights in each row.

    Args:
        x: image or features.
        factor: ratio of the sides.
    """
    if not on_cpu(x):
        return functional.interpolate(x, scale_factor=float(factor), mode="trilinear", align_corners=True)
    first, second, third = (_interpolation_matrix(side, factor, x) for side in x.shape[2:])
    with torch.autocast("cpu", enabled=False):
        planes = second @ (x @ third.mT)
        return (first @ planes.flatten(3)).unflatten(3, planes.shape[3:])


def _interpolation_matrix(side: int, factor: int, like: Tensor) -> Float[Tensor, "v u"]:
    """Return the linear interpolation matrix of one axis: a row for each output voxel."""
    one = torch.eye(side, dtype=torch.float64, device=like.device)[None]
    shares = functional.interpolate(one, scale_factor=float(factor), mode="linear", align_corners=True)
    return shares[0].mT.to(like.dtype)


def on_cpu(x: Tensor) -> bool:
    """True if a CPU computes `x` now, and the call is not part of an export."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()
