"""Refiner of SMML: a small network that corrects a branch's output with prior label maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glimpseg.nets.layers import Pointwise
from glimpseg.nets.pyramid import initialise

LEVELS = 4
"""Number of resolution levels of a refiner."""
HALVED = 2 ** (LEVELS - 1)
"""Voxels that a crop's sides have to be a multiple of, for the refiner."""
GATE_WIDTHS = (64, 128, 64)
"""Hidden units of a gate. Authors' code."""


class Gate(nn.Sequential):
    """Weights of the modalities' priors for one class, between 0 and 1.

    The input is the size of each prior relative to the expected size of the class, and that expected size.
    """

    def __init__(self, modalities: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((modalities + 1, *GATE_WIDTHS)):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Linear(GATE_WIDTHS[-1], modalities), nn.Sigmoid())


class Block(nn.Sequential):
    """Convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Literal["instance", "batch"], stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(outputs, affine=True) if norm == "instance" else nn.BatchNorm3d(outputs)
        self.activation = nn.ReLU()


class Refiner(nn.Module):
    """Small U-Net over the weighted priors and a branch's logits; for training only."""

    def __init__(self, classes: int, modalities: int, width: int, norm: Literal["instance", "batch"]) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS)]
        self.gates = nn.ModuleList(Gate(modalities) for _ in range(classes))
        self.down = nn.ModuleList(
            [
                Block(classes * (modalities + 1), width, norm),
                *(Block(above, below, norm, stride=2) for above, below in pairwise(widths)),
            ]
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(below, above, 2, 2) for above, below in pairwise(widths))
        self.merge = nn.ModuleList(Block(2 * above, above, norm) for above in widths[:-1])
        self.segment = Pointwise(width, classes)
        initialise(self, (nn.Conv3d, nn.Linear))

    def gated(
        self,
        prior: Float[Tensor, "b k m x y z"],
        seen: Bool[Tensor, "b m"],
        expected: Float[Tensor, "b k"],
        floor: float,
    ) -> Float[Tensor, "b k m x y z"]:
        """Return the priors, weighted by the gates; 0 for modalities that the branch did not see.

        Args:
            prior: one map for each class and modality.
            seen: modalities that the branch has seen.
            expected: share of the voxels of each class.
            floor: added to `expected` before the division.

        Eq. (9).
        """
        shown = torch.where(seen[:, None, :, None, None, None], prior, prior.new_zeros(()))
        relative = shown.mean((3, 4, 5)) / (expected + floor)[:, :, None]  # b k m
        known = torch.cat([relative, expected[:, :, None]], 2)
        weights = torch.stack([gate(known[:, k]) for k, gate in enumerate(self.gates)], 1)
        return shown * weights[:, :, :, None, None, None]

    def forward(
        self,
        gated: Float[Tensor, "b k m x y z"],
        logits: Float[Tensor, "b k x y z"],
    ) -> Float[Tensor, "b k x y z"]:
        """Return refined logits.

        Args:
            gated: weighted priors.
            logits: the branch's logits.

        Eq. (10).
        """
        x = torch.cat([gated.transpose(1, 2).flatten(1, 2), logits], 1)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        parts: list[Any] = list(zip(self.up, self.merge, skips, strict=False))
        for up, merge, skip in reversed(parts):
            x = merge(torch.cat([up(x), skip], 1))
        return self.segment(x).float()
