"""Position embeddings of a transformer over voxels, resampled to other grids."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def resampled_positions(
    grid: Sequence[int], table: Float[Tensor, "1 n c"], made_for: Sequence[int]
) -> Float[Tensor, "1 o c"]:
    """Return the position embeddings for `grid`, interpolated if it differs from `made_for`.

    Args:
        grid: tokens along x, y, z.
        table: embeddings, in row-major order of the voxels of `made_for`.
        made_for: tokens along x, y, z for which the table was trained.
    """
    if tuple(grid) == tuple(made_for):
        return table
    u, v, w = made_for
    volume = rearrange(table, "1 (u v w) c -> 1 c u v w", u=u, v=v, w=w)
    resized = functional.interpolate(volume, tuple(grid), mode="trilinear", align_corners=False)
    return rearrange(resized, "1 c u v w -> 1 (u v w) c")


def cubic_crop(tokens: int, stride: int) -> tuple[int, int, int]:
    """Return the sides, in voxels, of the cubic crop that gives this number of tokens, or nearly, if it is no cube.

    Args:
        tokens: number of tokens.
        stride: voxels between two tokens.
    """
    side = round(tokens ** (1 / 3)) * stride
    return side, side, side
