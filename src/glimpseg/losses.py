"""Losses that two methods or more use unchanged, on probabilities or logits, in fp32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def soft_dice(
    probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"], smooth: float = 1e-5
) -> Float[Tensor, ""]:
    """1 - soft Dice, each class over the whole batch at once, mean over classes.

    Pooling the batch keeps a crop without enhancing tumour from swinging the loss between 0 and 1 (nnU-Net's
    `batch_dice`). `smooth` stands in numerator and denominator, so that empty against empty costs nothing.
    """
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    return 1 - ((2 * both + smooth) / (total + smooth)).mean()


def binary_cross_entropy(logits: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over everything."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def coarsened(target: Float[Tensor, "b k x y z"], shape: torch.Size) -> Float[Tensor, "b k u v w"]:
    """A soft target at the resolution of a deep-supervision head: the mean over the voxels each covers."""
    x, y, z = shape
    return functional.adaptive_avg_pool3d(target, (x, y, z)) if target.shape[2:] != shape else target
