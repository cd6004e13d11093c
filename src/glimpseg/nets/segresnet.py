"""Residual encoder-decoder with deep supervision (Myronenko, arXiv 1810.11654), after MONAI's `SegResNetDS`.

Each level has residual blocks of two 3^3 convolutions, each behind a group norm and a ReLU. Strided convolutions go
down and double the channels. Transposed convolutions go up and halve them. Skips are added. Names of parameters, order
of creation and arithmetic are those of MONAI 1.6: its weights load, and a seed draws the same network
(`tests/test_monai_parts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Norm, ReLU and convolution, twice; the input is added."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = _convolution(channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = _convolution(channels, channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Return features of the same shape."""
        change = self.conv1(self.activation(self.norm1(x)))
        change = self.conv2(self.activation(self.norm2(change)))
        change += x
        return change


class EncoderLevel(nn.Module):
    """Residual blocks, then a convolution of stride 2, except at the deepest level."""

    def __init__(self, channels: int, groups: int, blocks: int, deepest: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels, groups) for _ in range(blocks)))
        self.downsample = nn.Identity() if deepest else _convolution(channels, 2 * channels, stride=2)


class Encoder(nn.Module):
    """Encoder that returns the features of each level."""

    def __init__(self, inputs: int, width: int, groups: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv_init = _convolution(inputs, width)
        self.layers = nn.ModuleList(
            EncoderLevel(width * 2**level, groups, count, level == len(blocks) - 1)
            for level, count in enumerate(blocks)
        )

    def forward(self, x: Float[Tensor, "b m x y z"]) -> list[Float[Tensor, "b ..."]]:
        """Return the blocks' features of each level, finest first."""
        x = self.conv_init(x)
        features = []
        levels: Iterable[Any] = self.layers
        for level in levels:
            features.append(level.blocks(x))
            x = level.downsample(features[-1])
        return features


class Upsample(nn.Module):
    """Transposed convolution: twice the resolution, half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d u v w"]:
        """Return features at twice the resolution."""
        return self.deconv(x)


class DecoderLevel(nn.Module):
    """Upsampling, sum with the encoder's features, a residual block and, at supervised levels, a head."""

    def __init__(self, channels: int, groups: int, outputs: int, supervised: bool) -> None:
        super().__init__()
        self.upsample = Upsample(2 * channels)
        self.blocks = nn.Sequential(ResidualBlock(channels, groups))
        self.head = nn.Conv3d(channels, outputs, 1) if supervised else nn.Identity()


class SegResNet(nn.Module):
    """Residual U-Net with heads at its finest resolutions.

    Args:
        inputs: channels of the image.
        outputs: channels of each head.
        width: channels of the first level; a multiple of `groups`.
        groups: groups of each group norm.
        blocks: residual blocks of each encoder level, finest first.
        heads: supervised resolutions, finest first; fewer than levels.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, groups: int, blocks: Sequence[int], heads: int
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(blocks) - 1)
        self.heads = heads
        self.encoder = Encoder(inputs, width, groups, blocks)
        self.up_layers = nn.ModuleList(
            DecoderLevel(width * 2**level, groups, outputs, level < heads) for level in reversed(range(len(blocks) - 1))
        )

    def forward(self, image: Float[Tensor, "b m x y z"]) -> list[Float[Tensor, "b k ..."]]:
        """Return logits, finest first: of all heads in training, of the finest alone in evaluation.

        Raises: ValueError if a side of the image is no multiple of the network's stride.
        """
        if any(side % self.stride for side in image.shape[2:]):
            raise ValueError(f"The image's sides should be multiples of {self.stride}, not {tuple(image.shape[2:])}.")
        wanted = self.heads if self.training else 1
        outputs: list[Tensor] = []
        features = self.decoded(image)
        levels: Iterable[Any] = self.up_layers
        for level in levels:
            outputs.append(level.head(next(features)))  # no variable keeps the features: their memory is freed
            del outputs[:-wanted]
        return outputs[::-1]

    def decoded(self, image: Float[Tensor, "b m x y z"]) -> Iterator[Float[Tensor, "b ..."]]:
        """Yield the decoder's features of each level, coarsest first."""
        skips = self.encoder(image)
        x = skips.pop()
        levels: Iterable[Any] = self.up_layers
        for level in levels:
            x = level.upsample(x)
            x += skips.pop()
            x = level.blocks(x)
            yield x


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
