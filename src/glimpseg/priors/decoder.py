"""Decoder after a frozen encoder: labels of one sequence from the features of its slices, as in SAM3D."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.losses import one_hot, soft_dice_loss

WIDTHS = (64, 32, 16, 16)
"""Channels of the levels; after each but the first, slices have twice the resolution."""
SLAB = 8
"""Neighbouring slices that the decoder sees at once, in training and in use."""
EDGE = 2
"""Least number of slices at an end of a slab whose labels come from the neighbouring slab, where there is one."""
SLABS = 2
"""Slabs in an optimiser step, each of a random study."""
RATE = 5e-3
"""Learning rate of a decoder."""


class Features(ABC):
    """Features of one sequence of one study."""

    places: Sequence[int]
    """Indices of the slices that have features."""
    shape: tuple[int, int, int]
    """Sides of the study, in voxels."""
    tumour: Sequence[int]
    """Positions in `places` of the slices in which the reference has a label."""

    @abstractmethod
    def read(self, chosen: range) -> Float[np.ndarray, "n c h w"]:
        """Return the features of some slices, by position in `places`."""

    @abstractmethod
    def reference(self, chosen: range) -> UInt8[np.ndarray, "n x y"]:
        """Return the labels of some slices, by position in `places`."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel, as in SAM's own neck.

    A norm over the slab would stretch a slab without tumour until it looked like one with tumour.
    """

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Return normalised features; channels are moved last and back."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Sequential):
    """Convolution over a slice and its neighbours, norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv3d(inputs, outputs, 3, padding=1), ChannelNorm(outputs), nn.LeakyReLU(0.01))


class Decoder(nn.Module):
    """Decoder of the slices' features, stacked along the depth; it raises the resolution within slices only."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv3d(channels, WIDTHS[0], 1), Block(WIDTHS[0], WIDTHS[0]))
        self.levels = nn.ModuleList(Block(above, below) for above, below in pairwise(WIDTHS))
        self.segment = nn.Conv3d(WIDTHS[-1], classes, 1)

    def forward(self, features: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "1 k n s s"]:
        """Return the logits of the square slices of a slab.

        Args:
            features: features of the slab's slices.
            side: side of a slice, in voxels.
        """
        x = self.entry(features.float().transpose(0, 1)[None])
        for level in self.levels:
            x = level(functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="trilinear"))
        return functional.interpolate(self.segment(x), (x.shape[2], side, side), mode="trilinear")


def train_decoder(
    studies: Sequence[Features], channels: int, labels: Sequence[int], *, steps: int, seed: int, device: torch.device
) -> Decoder:
    """Return a decoder trained on the references of these studies, in evaluation mode.

    The loss is cross-entropy and Dice over slabs. Half of the slabs are drawn to hold a slice with tumour, if the study
    has one.

    Args:
        studies: features and references.
        channels: channels of the features.
        labels: labels of the recipe.
        steps: optimiser steps.
        seed: seed of weights and slabs.
        device: device of the training.
    """
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        decoder = Decoder(channels, len(labels) + 1).to(device).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(math.pi / 2 * step / steps))
    for _ in range(steps):
        for _ in range(SLABS):
            study = studies[int(rng.integers(len(studies)))]
            chosen = _random_slab(study, rng)
            target = one_hot(_padded_squares(study.reference(chosen)).to(device), labels)
            logits = decoder(torch.from_numpy(study.read(chosen)).to(device), target.shape[-1])
            loss = functional.cross_entropy(logits, target) + soft_dice_loss(logits.softmax(1), target)
            (loss / SLABS).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return decoder.eval()


@torch.inference_mode()
def decoded_labels(
    decoder: Decoder, study: Features, labels: Sequence[int], device: torch.device
) -> UInt8[np.ndarray, "x y z"]:
    """Return the labels that a decoder predicts, slab by slab; background in slices without features.

    Args:
        decoder: trained decoder.
        study: features of one sequence.
        labels: labels of the recipe.
        device: device of the decoder.
    """
    predicted = np.zeros(study.shape, np.uint8)
    values = np.array([0, *labels], np.uint8)
    for slab, kept in slabs(len(study.places)):
        logits = decoder(torch.from_numpy(study.read(slab)).to(device), max(study.shape[:2]))
        best = logits.argmax(1)[0, kept.start - slab.start : kept.stop - slab.start].cpu().numpy()  # n s s
        drawn = values[best[:, : study.shape[0], : study.shape[1]]]
        predicted[:, :, [study.places[number] for number in kept]] = drawn.transpose(1, 2, 0)
    return predicted


def slabs(count: int) -> list[tuple[range, range]]:
    """Return slabs that cover `count` slices, and the slices whose labels each slab gives.

    Every slice gets its labels from one slab: the first that holds it at least `EDGE` slices before its end, or the
    last slab.
    """
    size = min(SLAB, count)
    if not size:
        return []
    starts = sorted({*range(0, count - size, SLAB - 2 * EDGE), count - size})
    borders = [0, *(first + size - EDGE for first in starts[:-1]), count]
    return [(range(start, start + size), range(*kept)) for start, kept in zip(starts, pairwise(borders), strict=True)]


def _random_slab(study: Features, rng: np.random.Generator) -> range:
    count = len(study.places)
    size = min(SLAB, count)
    start = int(rng.integers(count - size + 1))
    if rng.random() < 0.5 and len(study.tumour):
        start = int(np.clip(rng.choice(study.tumour) - rng.integers(size), 0, count - size))
    return range(start, start + size)


def _padded_squares(labels: UInt8[np.ndarray, "n x y"]) -> Tensor:
    """Return label maps padded at their ends to squares, like the slices; 1 n s s."""
    _, x, y = labels.shape
    side = max(x, y)
    return torch.from_numpy(np.pad(labels, ((0, 0), (0, side - x), (0, side - y))).astype(np.int64))[None]
