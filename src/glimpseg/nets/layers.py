"""Two layers in another form where that costs a processor less: the same up to rounding.

On a GPU, and in copies for another runtime, they stay what they are called.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Pointwise(nn.Conv3d):
    """A convolution of 1 x 1 x 1; on a processor a matrix product, which oneDNN computes sooner."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o x y z"]:
        """Of any size."""
        if not on_processor(x):
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
    """That keeps the size, but for its stride."""
    if kernel == stride == 1:
        return Pointwise(inputs, outputs)
    return nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, padding_mode=padding_mode)


def upsampled(x: Float[Tensor, "b c x y z"], factor: int = 2) -> Float[Tensor, "b c u v w"]:
    """Trilinear; the outermost voxel centres keep their places. On a processor one axis after the other, each a product
    with a matrix of two shares a row."""
    if not on_processor(x):
        return functional.interpolate(x, scale_factor=float(factor), mode="trilinear", align_corners=True)
    first, second, third = (_shares(side, factor, x) for side in x.shape[2:])
    with torch.autocast("cpu", enabled=False):
        planes = second @ (x @ third.mT)
        return (first @ planes.flatten(3)).unflatten(3, planes.shape[3:])


def _shares(side: int, factor: int, like: Tensor) -> Float[Tensor, "v u"]:
    """What each voxel of the finer axis takes of those of the coarser."""
    one = torch.eye(side, dtype=torch.float64, device=like.device)[None]
    shares = functional.interpolate(one, scale_factor=float(factor), mode="linear", align_corners=True)
    return shares[0].mT.to(like.dtype)


def on_processor(x: Tensor) -> bool:
    """Whether a processor computes it, and no other runtime will."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()
