"""Encoder and decoder over a pyramid of resolutions, as RFNet and mmFormer both wire them; the block is theirs.

A block is made by `block(inputs, outputs, kernel, stride=1)` and may normalise before or after its convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glimpseg.modality import Modality
from glimpseg.nets.layers import Pointwise, on_processor, upsampled

Block = Callable[..., nn.Module]

ORDER = (Modality.FLAIR, Modality.T1C, Modality.T1, Modality.T2)
"""The order of modalities in the authors' codes; inside these networks everything stands in it, because their weights
do."""
CHANNELS = [list(Modality).index(modality) for modality in ORDER]


def present(features: Float[Tensor, "b m c x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c x y z"]:
    """Features of absent modalities set to 0, by selection: what an absent image holds must not matter."""
    if not on_processor(features) or torch.compiler.is_compiling():
        return torch.where(available[:, :, None, None, None, None], features, features.new_zeros(()))
    # A processor copies in a third of the time or less that it takes to choose voxel by voxel.
    maps = features.flatten(0, 1).unbind()
    blank = torch.zeros_like(maps[0])
    chosen = [level if there else blank for level, there in zip(maps, available.flatten().tolist(), strict=True)]
    return torch.stack(chosen).unflatten(0, available.shape)


def side_by_side(
    levels: Iterable[Float[Tensor, "b m ..."]], available: Bool[Tensor, "b m"]
) -> list[Float[Tensor, "b ..."]]:
    """Each level's features with the modalities' channels one after the other, 0 where one is absent."""
    return [present(level, available).flatten(1, 2) for level in levels]


def initialise(network: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Conv3d) -> None:
    """Kaiming normal for the weights of all layers of these kinds, slope not accounted for; biases stay as torch
    made them."""
    for layer in network.modules():
        if isinstance(layer, kinds):
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]


def drop_biases(layers: Iterable[nn.Module]) -> None:
    """Takes the biases out, for layers before an instance norm: it cancels any constant of a channel."""
    for layer in layers:
        layer.register_parameter("bias", None)


def encoded(
    encoders: Iterable[nn.Module],
    image: Float[Tensor, "b m x y z"],
    needed: Sequence[bool],
) -> list[Float[Tensor, "b m ..."]]:
    """What one encoder for each modality sees in its channel, finest first; zeros where it is not needed."""
    channels = image.split(1, 1)
    found = [
        encoder(channel) if wanted else None
        for encoder, channel, wanted in zip(encoders, channels, needed, strict=True)
    ]
    example = next(levels for levels in found if levels is not None)
    blank = [torch.zeros_like(level) for level in example]
    return [torch.stack(level, 1) for level in zip(*(levels or blank for levels in found), strict=True)]


class Stage(nn.Module):
    """One resolution of an encoder: a block that may halve, and two more as a residual."""

    def __init__(self, entry: nn.Module, width: int, block: Block) -> None:
        super().__init__()
        self.entry = entry
        self.residual = nn.Sequential(block(width, width, 3), block(width, width, 3))

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d u v w"]:
        """y + r(r(y)); nothing after the sum."""
        y = self.entry(x)
        return y + self.residual(y)


class Encoder(nn.Module):
    """The features of one modality at every level; all but the first stage halve the resolution."""

    def __init__(self, first: nn.Module, widths: Sequence[int], block: Block) -> None:
        super().__init__()
        entries = [first, *(block(above, width, 3, stride=2) for above, width in pairwise(widths))]
        self.stages = nn.ModuleList(Stage(entry, width, block) for entry, width in zip(entries, widths, strict=True))

    def forward(self, x: Float[Tensor, "b 1 x y z"]) -> list[Float[Tensor, "b ..."]]:
        """Finest first."""
        features: list[Tensor] = []
        for stage in self.stages:
            features.append(stage(features[-1] if features else x))
        return features


class UpBlock(nn.Module):
    """One level of a decoder: up-sample and convolve, merge with another map of that level, refine."""

    def __init__(self, below: int, width: int, block: Block) -> None:
        super().__init__()
        self.up = block(below, width, 3)
        self.merge = block(2 * width, width, 3)
        self.refine = block(width, width, 1)

    def raised(self, below: Float[Tensor, "b d u v w"]) -> Float[Tensor, "b c x y z"]:
        """The coarser map at this level's resolution and width."""
        return self.up(upsampled(below))

    def joined(
        self, first: Float[Tensor, "b c x y z"], second: Float[Tensor, "b c x y z"]
    ) -> Float[Tensor, "b c x y z"]:
        """Two maps of this level as one."""
        return self.refine(self.merge(torch.cat([first, second], 1)))


class SingleDecoder(nn.Module):
    """Segments from the features of one modality; all modalities share it. For training only."""

    def __init__(self, widths: Sequence[int], classes: int, block: Block) -> None:
        super().__init__()
        self.levels = nn.ModuleList(UpBlock(below, width, block) for width, below in pairwise(widths))
        self.segment = Pointwise(widths[0], classes)

    def forward(self, features: Sequence[Float[Tensor, "b m ..."]]) -> Float[Tensor, "b m k x y z"]:
        """Probabilities from each modality's own features, finest first; here the raised map comes first."""
        count = features[0].shape[:2]
        *skips, x = [level.flatten(0, 1) for level in features]
        levels: Iterable[Any] = reversed(self.levels)
        for level, skip in zip(levels, reversed(skips), strict=True):
            x = level.joined(level.raised(x), skip)
        return self.segment(x).float().softmax(1).unflatten(0, count)
