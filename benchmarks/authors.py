"""Networks and losses in the order of operations of RFNet's, mmFormer's and SMML's released codes, with our terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from glimpseg import losses
from glimpseg.methods.rfnet import RegionFusion
from glimpseg.nets import layers, pyramid
from glimpseg.nets.pyramid import SingleDecoder

_together = SingleDecoder.forward


@contextmanager
def as_authors() -> Iterator[None]:
    """Context in which networks and losses compute in the authors' order.

    The modalities go one after the other through the decoder they share. RFNet's regions are a stack of every
    modality's features times every class. Losses are computed class by class, and every layer is torch's own.
    """
    with (
        mock.patch.object(layers, "on_cpu", _never),
        mock.patch.object(pyramid, "on_cpu", _never),
        mock.patch.object(SingleDecoder, "forward", _one_by_one),
        mock.patch.object(RegionFusion, "forward", _stacked),
        mock.patch.object(losses, "weighted_cross_entropy", _cross_entropy),
        mock.patch.object(losses, "soft_dice_loss", _dice),
    ):
        yield


def _never(x: Any) -> bool:  # a Mock would keep every tensor that it is called with
    return False


def _one_by_one(decoder: Any, features: Sequence[Any]) -> Any:
    count = features[0].shape[1]
    return torch.cat([_together(decoder, [level[:, m : m + 1] for level in features]) for m in range(count)], 1)


def _stacked(fusion: Any, features: Any, coarse: Any) -> Any:
    coarse = coarse.detach()
    stack = features[:, None] * coarse[:, :, None, None].to(features.dtype)
    share = coarse.mean((2, 3, 4)) + 1e-7
    means = stack.mean((4, 5, 6)) / share[:, :, None, None]
    gated = torch.cat([means.flatten(2), share[:, :, None]], 2)
    weights = torch.stack([gate(gated[:, k]) for k, gate in enumerate(fusion.gates)], 1).sigmoid()
    regions = (stack * weights[..., None, None, None, None]).sum(2)
    return torch.cat([fusion.regions(regions.flatten(1, 2)), fusion.shortcut(features.flatten(1, 2))], 1)


def _cross_entropy(probabilities: Any, target: Any) -> Any:
    voxels, total = target[0, 0].numel(), 0.0
    for k in range(target.shape[1]):
        weight = 1 - target[:, k].sum((1, 2, 3)) / voxels
        logs = target[:, k] * probabilities[:, k].clamp(0.005, 1).log()
        total = total - weight[:, None, None, None] * logs
    return total.mean((1, 2, 3))


def _dice(probabilities: Any, target: Any, smooth: tuple[float, float] = (1e-5, 1e-5)) -> Any:
    total = 0.0
    for k in range(target.shape[1]):
        both = (probabilities[:, k] * target[:, k]).sum()
        total = total + (2 * both + smooth[0]) / (probabilities[:, k].sum() + target[:, k].sum() + smooth[1])
    return 1 - total / target.shape[1]
