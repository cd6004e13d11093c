"""The light decoder behind a frozen encoder: labels of one sequence from its slices' features, as in SAM3D."""

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
"""Channels; behind each but the first, slices have twice the resolution."""
SLAB = 8
"""Neighbouring slices that the decoder sees at once, in training and in use."""
EDGE = 2
"""Slices at either end of a slab that are taken from the next one, where there is one."""
SLABS = 2
"""Studies in a step."""
RATE = 5e-3


class Features(ABC):
    """What the encoder made of one sequence of one study."""

    places: Sequence[int]
    """The slices it looked at."""
    shape: tuple[int, int, int]
    """Voxels of the study."""
    tumour: Sequence[int]
    """Numbers of the slices, among `places`, in which the reference has a label."""

    @abstractmethod
    def of(self, chosen: range) -> Float[np.ndarray, "n c h w"]:
        """Of some of the slices, by number."""

    @abstractmethod
    def reference(self, chosen: range) -> UInt8[np.ndarray, "n x y"]:
        """The labels of some of the slices, by number."""


class ChannelNorm(nn.LayerNorm):
    """Over the channels of each voxel, as in SAM's own neck: a slab without tumour is not stretched till it has one."""

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Channels are put last and back."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Sequential):
    """Convolution over slices and their neighbours, norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv3d(inputs, outputs, 3, padding=1), ChannelNorm(outputs), nn.LeakyReLU(0.01))


class Decoder(nn.Module):
    """Slices' features stacked along depth; only resolution within the slice is won back."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv3d(channels, WIDTHS[0], 1), Block(WIDTHS[0], WIDTHS[0]))
        self.levels = nn.ModuleList(Block(above, below) for above, below in pairwise(WIDTHS))
        self.segment = nn.Conv3d(WIDTHS[-1], classes, 1)

    def forward(self, features: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "1 k n s s"]:
        """Logits of the square slices of a slab, with `side` voxels along their sides."""
        x = self.entry(features.float().transpose(0, 1)[None])
        for level in self.levels:
            x = level(functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="trilinear"))
        return functional.interpolate(self.segment(x), (x.shape[2], side, side), mode="trilinear")


def trained(
    studies: Sequence[Features], channels: int, labels: Sequence[int], steps: int, seed: int, device: torch.device
) -> Decoder:
    """A decoder that has learned from the references of these studies: cross-entropy and Dice of slabs, half of them
    around tumour."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        decoder = Decoder(channels, len(labels) + 1).to(device).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(math.pi / 2 * step / steps))
    for _ in range(steps):
        for _ in range(SLABS):
            study = studies[int(rng.integers(len(studies)))]
            chosen = _drawn(study, rng)
            target = one_hot(_squares(study.reference(chosen)).to(device), labels)
            logits = decoder(torch.from_numpy(study.of(chosen)).to(device), target.shape[-1])
            loss = functional.cross_entropy(logits, target) + soft_dice_loss(logits.softmax(1), target)
            (loss / SLABS).backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
    return decoder.eval()


@torch.inference_mode()
def decoded(
    decoder: Decoder, study: Features, labels: Sequence[int], device: torch.device
) -> UInt8[np.ndarray, "x y z"]:
    """The labels that a decoder finds, slab by slab; background in slices that were not looked at."""
    found = np.zeros(study.shape, np.uint8)
    values = np.array([0, *labels], np.uint8)
    for slab, kept in slabs(len(study.places)):
        logits = decoder(torch.from_numpy(study.of(slab)).to(device), max(study.shape[:2]))
        best = logits.argmax(1)[0, kept.start - slab.start : kept.stop - slab.start].cpu().numpy()  # n s s
        shown = values[best[:, : study.shape[0], : study.shape[1]]]
        found[:, :, [study.places[number] for number in kept]] = shown.transpose(1, 2, 0)
    return found


def slabs(count: int) -> list[tuple[range, range]]:
    """Slabs that cover so many slices, and of each the slices that it answers for: every slice once, and as far from a
    slab's end as may be."""
    size = min(SLAB, count)
    if not size:
        return []
    starts = sorted({*range(0, count - size, SLAB - 2 * EDGE), count - size})
    borders = [0, *(first + size - EDGE for first in starts[:-1]), count]
    return [(range(start, start + size), range(*kept)) for start, kept in zip(starts, pairwise(borders), strict=True)]


def _drawn(study: Features, rng: np.random.Generator) -> range:
    count = len(study.places)
    size = min(SLAB, count)
    start = int(rng.integers(count - size + 1))
    if rng.random() < 0.5 and len(study.tumour):
        start = int(np.clip(rng.choice(study.tumour) - rng.integers(size), 0, count - size))
    return range(start, start + size)


def _squares(labels: UInt8[np.ndarray, "n x y"]) -> Tensor:
    """Label maps padded at their ends, like the pictures; 1 n s s."""
    _, x, y = labels.shape
    side = max(x, y)
    return torch.from_numpy(np.pad(labels, ((0, 0), (0, side - x), (0, side - y))).astype(np.int64))[None]
