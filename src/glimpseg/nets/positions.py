"""Position embeddings of a transformer over voxels, for grids they were not made for."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def positions_on(grid: Sequence[int], table: Float[Tensor, "1 n c"], made_for: Sequence[int]) -> Float[Tensor, "1 o c"]:
    """The table, in row-major order of the voxels of `made_for`, interpolated if `grid` is another."""
    if tuple(grid) == tuple(made_for):
        return table
    u, v, w = made_for
    volume = rearrange(table, "1 (u v w) c -> 1 c u v w", u=u, v=v, w=w)
    resized = functional.interpolate(volume, tuple(grid), mode="trilinear", align_corners=False)
    return rearrange(resized, "1 c u v w -> 1 (u v w) c")


def cube_of(tokens: int, stride: int) -> tuple[int, int, int]:
    """The cubic crop, in voxels, that so many tokens `stride` voxels apart were made for."""
    side = round(tokens ** (1 / 3)) * stride
    return side, side, side
