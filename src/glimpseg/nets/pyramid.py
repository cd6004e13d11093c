"""Encoder and decoder over several resolutions, as RFNet and mmFormer build them.

The two methods differ in their convolution block, which is passed as `block(inputs, outputs, kernel, stride=1)`: it
normalises before or after its convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glimpseg.modality import Modality
from glimpseg.nets.layers import Pointwise, on_cpu, upsampled

Block = Callable[..., nn.Module]

ORDER = (Modality.FLAIR, Modality.T1C, Modality.T1, Modality.T2)
"""Order of the modalities in the authors' codes, and inside these networks, because their weights depend on it."""
CHANNELS = [list(Modality).index(modality) for modality in ORDER]
"""Indices that bring `Modality`'s order into `ORDER`."""
MOST_LEVELS = 10
"""Most resolution levels: a voxel of the tenth covers 512 voxels along each axis, half of the largest image."""


def zero_absent(features: Float[Tensor, "b m c x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c x y z"]:
    """Return the features with those of absent modalities set to 0, by selection.

    A product would pass on NaN of an absent image.
    """
    if not on_cpu(features) or torch.compiler.is_compiling():
        return torch.where(available[:, :, None, None, None, None], features, features.new_zeros(()))
    # On a CPU, copying whole maps takes a third of the time of a selection voxel by voxel, or less.
    maps = features.flatten(0, 1).unbind()
    blank = torch.zeros_like(maps[0])
    chosen = [level if there else blank for level, there in zip(maps, available.flatten().tolist(), strict=True)]
    return torch.stack(chosen).unflatten(0, available.shape)


def concatenated_modalities(
    levels: Iterable[Float[Tensor, "b m ..."]], available: Bool[Tensor, "b m"]
) -> list[Float[Tensor, "b ..."]]:
    """Return each level's features with the modalities concatenated along the channels, 0 where one is absent."""
    return [zero_absent(level, available).flatten(1, 2) for level in levels]


def initialise(network: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Conv3d) -> None:
    """Initialise the weights of all layers of these types by Kaiming's normal distribution, with slope 0.

    Biases keep torch's initialisation.
    """
    for layer in network.modules():
        if isinstance(layer, kinds):
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]


def drop_biases(layers: Iterable[nn.Module]) -> None:
    """Remove the biases of these layers, in place. The instance norm behind them cancels any constant of a channel."""
    for layer in layers:
        layer.register_parameter("bias", None)


def encoded(
    encoders: Iterable[nn.Module],
    image: Float[Tensor, "b m x y z"],
    needed: Sequence[bool],
) -> list[Float[Tensor, "b m ..."]]:
    """Return the features of one encoder for each modality, finest level first; zeros where `needed` is False.

    Args:
        encoders: one for each channel of the image, in order.
        image: one channel for each modality.
        needed: True for each encoder to run; at least one.
    """
    images = image.split(1, 1)
    outputs = [
        encoder(channel) if is_needed else None
        for encoder, channel, is_needed in zip(encoders, images, needed, strict=True)
    ]
    example = next(levels for levels in outputs if levels is not None)
    blank = [torch.zeros_like(level) for level in example]
    return [torch.stack(level, 1) for level in zip(*(levels or blank for levels in outputs), strict=True)]


class Stage(nn.Module):
    """Encoder stage of one resolution: an entry block, which may halve the resolution, and a residual of two blocks."""

    def __init__(self, entry: nn.Module, width: int, block: Block) -> None:
        super().__init__()
        self.entry = entry
        self.residual = nn.Sequential(block(width, width, 3), block(width, width, 3))

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d u v w"]:
        """Return y + r(r(y)), where y is the entry block's output and r a block; nothing follows the sum."""
        y = self.entry(x)
        return y + self.residual(y)


class Encoder(nn.Module):
    """Encoder of one modality; all stages but the first halve the resolution."""

    def __init__(self, first: nn.Module, widths: Sequence[int], block: Block) -> None:
        super().__init__()
        entries = [first, *(block(above, width, 3, stride=2) for above, width in pairwise(widths))]
        self.stages = nn.ModuleList(Stage(entry, width, block) for entry, width in zip(entries, widths, strict=True))

    def forward(self, x: Float[Tensor, "b 1 x y z"]) -> list[Float[Tensor, "b ..."]]:
        """Return the features of each level, finest first."""
        features: list[Tensor] = []
        for stage in self.stages:
            features.append(stage(features[-1] if features else x))
        return features


class UpBlock(nn.Module):
    """Decoder level: upsample and convolve, merge with other features of that level, refine."""

    def __init__(self, below: int, width: int, block: Block) -> None:
        super().__init__()
        self.up = block(below, width, 3)
        self.merge = block(2 * width, width, 3)
        self.refine = block(width, width, 1)

    def upsample(self, below: Float[Tensor, "b d u v w"]) -> Float[Tensor, "b c x y z"]:
        """Return the coarser features at this level's resolution and width."""
        return self.up(upsampled(below))

    def combine(
        self, first: Float[Tensor, "b c x y z"], second: Float[Tensor, "b c x y z"]
    ) -> Float[Tensor, "b c x y z"]:
        """Return two feature maps of this level merged into one."""
        return self.refine(self.merge(torch.cat([first, second], 1)))


class SingleDecoder(nn.Module):
    """Decoder of single modalities, shared by all of them; for training only."""

    def __init__(self, widths: Sequence[int], classes: int, block: Block) -> None:
        super().__init__()
        self.levels = nn.ModuleList(UpBlock(below, width, block) for width, below in pairwise(widths))
        self.segment = Pointwise(widths[0], classes)

    def forward(self, features: Sequence[Float[Tensor, "b m ..."]]) -> Float[Tensor, "b m k x y z"]:
        """Return class probabilities from each modality's own features.

        In the concatenation, the upsampled features come first.

        Args:
            features: features of each level, finest first.
        """
        count = features[0].shape[:2]
        *skips, x = [level.flatten(0, 1) for level in features]
        levels: Iterable[Any] = reversed(self.levels)
        for level, skip in zip(levels, reversed(skips), strict=True):
            x = level.combine(level.upsample(x), skip)
        return self.segment(x).float().softmax(1).unflatten(0, count)
