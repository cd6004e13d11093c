"""Losses that two methods or more use unchanged, on probabilities or logits, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def soft_dice_loss(
    probabilities: Float[Tensor, "b k x y z"],
    target: Float[Tensor, "b k x y z"],
    smooth: tuple[float, float] = (1e-5, 1e-5),
) -> Float[Tensor, ""]:
    """1 - soft Dice, each class over the whole batch at once, mean over classes.

    Pooling the batch keeps a crop without enhancing tumour from swinging the loss between 0 and 1 (nnU-Net's
    `batch_dice`). `smooth` stands in numerator and denominator; both alike, empty against empty costs nothing
    (nnU-Net). RFNet: 0 and 1e-7, so that a class the batch lacks costs 1 whatever is predicted.
    """
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    return 1 - ((2 * both + smooth[0]) / (total + smooth[1])).mean()


def binary_cross_entropy(logits: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over everything."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def downsample_target(target: Float[Tensor, "b k x y z"], shape: torch.Size) -> Float[Tensor, "b k u v w"]:
    """A soft target at the resolution of a deep-supervision head: the mean over the voxels each covers."""
    x, y, z = shape
    return functional.adaptive_avg_pool3d(target, (x, y, z)) if target.shape[2:] != shape else target


def one_hot(target: Int[Tensor, "b x y z"], labels: Sequence[int]) -> Float[Tensor, "b k x y z"]:
    """One map for the background and one for each label, in this order; other values count as background."""
    maps = torch.stack([target == label for label in labels], 1)
    return torch.cat([~maps.any(1, keepdim=True), maps], 1).float()


def weighted_cross_entropy(
    probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]
) -> Float[Tensor, "b"]:
    """Cross-entropy of each sample, mean over voxels, a class weighted by the share of voxels that are not of it.

    RFNet's and mmFormer's: the weight is the crop's own, and log stops at 0.005, so that a voxel missed with more
    confidence has no gradient here.
    """
    voxels = target[0, 0].numel()
    weight = 1 - target.sum((2, 3, 4), keepdim=True) / voxels
    return -(weight * target * probabilities.clamp(0.005, 1).log()).sum((1, 2, 3, 4)) / voxels


class FusionOutputs(NamedTuple):
    """What RFNet and mmFormer supervise: probabilities at full resolution."""

    fused: Float[Tensor, "b k x y z"]
    singles: Float[Tensor, "b m k x y z"]
    """From each modality by itself."""
    deep: Sequence[Float[Tensor, "b k x y z"]]
    """From coarser levels, finest first."""


def region_fusion_terms(
    maps: FusionOutputs, target: Float[Tensor, "b k x y z"], available: Bool[Tensor, "b m"]
) -> dict[str, Float[Tensor, ""]]:
    """The objective of RFNet and mmFormer: cross-entropy and Dice of the fused output, of each modality by itself
    and of the deep maps, all with weight 1, all against the full-resolution target.

    `available` is in the order of `maps.singles`. A modality that a sample lacks is left out of the terms of single
    modalities; with all available they are the authors'.
    """
    fused, singles, deep = maps
    terms = {"fuse/ce": weighted_cross_entropy(fused, target).mean(), "fuse/dice": _dice(fused, target)}
    terms |= {"sep/ce": fused.new_zeros(()), "sep/dice": fused.new_zeros(())}
    for single, has in zip(singles.unbind(1), available.unbind(1), strict=True):
        some, kept = has.any(), has[:, None, None, None, None]
        terms["sep/ce"] = terms["sep/ce"] + (weighted_cross_entropy(single, target) * has).sum() / has.sum().clamp_min(
            1
        )
        terms["sep/dice"] = terms["sep/dice"] + some * _dice(single * kept, target * kept)
    terms["prm/ce"] = sum((weighted_cross_entropy(level, target).mean() for level in deep), fused.new_zeros(()))
    terms["prm/dice"] = sum((_dice(level, target) for level in deep), fused.new_zeros(()))
    return terms


def _dice(probabilities: Tensor, target: Tensor) -> Tensor:
    return soft_dice_loss(probabilities, target, smooth=(0, 1e-7))
