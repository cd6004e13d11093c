"""The light decoder behind a frozen encoder: labels of one sequence from its slices' features, as in SAM3D."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.losses import one_hot, soft_dice

WIDTHS = (64, 32, 16, 16)
"""Channels; behind each but the first, slices have twice the resolution."""
SLAB = 8
"""Neighbouring slices that a step of training sees of a study."""
SLABS = 2
"""Studies in a step."""
RATE = 2e-3


class Features(ABC):
    """What the encoder made of one sequence of one study."""

    places: Sequence[int]
    """The slices it looked at."""
    shape: tuple[int, int, int]
    """Voxels of the study."""

    @property
    @abstractmethod
    def reference(self) -> UInt8[np.ndarray, "x y z"]:
        """Of the study."""

    @abstractmethod
    def of(self, places: range) -> Float[np.ndarray, "n c h w"]:
        """Of some of `places`, by number."""


class Block(nn.Sequential):
    """Convolution over slices and their neighbours, instance norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
        )


class Decoder(nn.Module):
    """Slices' features stacked along depth; only resolution within the slice is won back."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv3d(channels, WIDTHS[0], 1), Block(WIDTHS[0], WIDTHS[0]))
        self.levels = nn.ModuleList(Block(above, below) for above, below in pairwise(WIDTHS))
        self.segment = nn.Conv3d(WIDTHS[-1], classes, 1)

    def forward(self, features: Float[Tensor, "b c n h w"], side: int) -> Float[Tensor, "b k n s s"]:
        """Logits of square slices with `side` voxels."""
        x = self.entry(features)
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
            chosen = _slab(study, rng)
            target = one_hot(_target(study, chosen).to(device), labels)
            features = torch.from_numpy(study.of(chosen)).to(device).float().transpose(0, 1)[None]
            logits = decoder(features, target.shape[-1])
            loss = functional.cross_entropy(logits, target) + soft_dice(logits.softmax(1), target)
            (loss / SLABS).backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
    return decoder.eval()


@torch.inference_mode()
def decoded(
    decoder: Decoder, study: Features, labels: Sequence[int], device: torch.device
) -> UInt8[np.ndarray, "x y z"]:
    """The labels that a decoder finds; background in slices that were not looked at."""
    found = np.zeros(study.shape, np.uint8)
    if not study.places:
        return found
    features = torch.from_numpy(study.of(range(len(study.places)))).to(device).float().transpose(0, 1)[None]
    best = decoder(features, max(study.shape[:2])).argmax(1)[0].cpu().numpy()  # n s s
    values = np.array([0, *labels], np.uint8)[best[:, : study.shape[0], : study.shape[1]]]
    found[:, :, list(study.places)] = values.transpose(1, 2, 0)
    return found


def _slab(study: Features, rng: np.random.Generator) -> range:
    count = len(study.places)
    size = min(SLAB, count)
    start = int(rng.integers(count - size + 1))
    shown = np.flatnonzero(study.reference[:, :, list(study.places)].any((0, 1)))
    if rng.random() < 0.5 and len(shown):
        start = int(np.clip(rng.choice(shown) - rng.integers(size), 0, count - size))
    return range(start, start + size)


def _target(study: Features, chosen: range) -> Int[Tensor, "1 n s s"]:
    """The reference of some slices, padded to squares like the pictures."""
    x, y, _ = study.shape
    side = max(x, y)
    slab = study.reference[:, :, [study.places[number] for number in chosen]].transpose(2, 0, 1).astype(np.int64)
    return torch.from_numpy(np.pad(slab, ((0, 0), (0, side - x), (0, side - y))))[None]
