"""Losses that several methods share, on probabilities or logits, in fp32."""

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
    """Soft Dice loss: 1 - soft Dice of each class over the whole batch, mean over classes.

    Pooling over the batch keeps the loss of a crop without enhancing tumour from jumping between 0 and 1 (nnU-Net's
    `batch_dice`).

    Args:
        probabilities: Predicted probabilities.
        target: Target, 0 to 1.
        smooth: Values added to numerator and denominator. If they are equal, an empty prediction for an empty target
            costs nothing (nnU-Net). RFNet uses 0 and 1e-7: a class that the batch lacks then costs 1, whatever is
            predicted.
    """
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    return 1 - ((2 * both + smooth[0]) / (total + smooth[1])).mean()


def binary_cross_entropy(logits: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of logits, mean over all elements."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def downsample_target(target: Float[Tensor, "b k x y z"], shape: torch.Size) -> Float[Tensor, "b k u v w"]:
    """Downsample a soft target to the sides `shape` of a deep-supervision head: the mean over the voxels of each cell.

    A target that has this shape is returned itself.
    """
    x, y, z = shape
    return functional.adaptive_avg_pool3d(target, (x, y, z)) if target.shape[2:] != shape else target


def one_hot(target: Int[Tensor, "b x y z"], labels: Sequence[int]) -> Float[Tensor, "b k x y z"]:
    """One-hot maps of a label map: the background, then each of `labels` in order; other values are background."""
    maps = torch.stack([target == label for label in labels], 1)
    return torch.cat([~maps.any(1, keepdim=True), maps], 1).float()


def weighted_cross_entropy(
    probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]
) -> Float[Tensor, "b"]:
    """Weighted cross-entropy of each sample, mean over voxels.

    The weight of a class is the share of voxels that do not belong to it, computed for each crop. This is the loss of
    RFNet and mmFormer. Probabilities below 0.005 count as 0.005: a voxel whose true class has a lower probability has
    no gradient here.
    """
    voxels = target[0, 0].numel()
    weight = 1 - target.sum((2, 3, 4), keepdim=True) / voxels
    return -(weight * target * probabilities.clamp(0.005, 1).log()).sum((1, 2, 3, 4)) / voxels


class FusionOutputs(NamedTuple):
    """Outputs that RFNet and mmFormer supervise: probabilities at full resolution."""

    fused: Float[Tensor, "b k x y z"]
    singles: Float[Tensor, "b m k x y z"]
    """Predictions from each modality alone."""
    deep: Sequence[Float[Tensor, "b k x y z"]]
    """Predictions from coarser levels, finest first."""


def region_fusion_terms(
    maps: FusionOutputs, target: Float[Tensor, "b k x y z"], available: Bool[Tensor, "b m"]
) -> dict[str, Float[Tensor, ""]]:
    """Terms of the objective of RFNet and mmFormer, all with weight 1 and at full resolution.

    They are cross-entropy and Dice of the fused output, of the prediction from each single modality, and of the deep
    outputs. Modalities that a sample lacks are left out of the single-modality terms. If all are available, the terms
    are the authors'.

    Args:
        maps: Outputs of the network.
        target: One-hot target.
        available: Modalities of each sample, in the order of `maps.singles`.

    Returns:
        The terms `fuse/ce` and `fuse/dice`; `sep/ce` and `sep/dice`, summed over the modalities; `prm/ce` and
        `prm/dice`, summed over the deep outputs.
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
