"""Networks of MST-KDNet: residual U-Net with a UNETR at the deepest level (the bottleneck), and style discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.methods.mstkdnet.config import PATCH, TAPS, Config
from glimpseg.modality import Modality
from glimpseg.nets.positions import resampled_positions


class Residual(nn.Module):
    """Group norm, ReLU and convolution, twice; the input is added."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), nn.Conv3d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Return features of the same shape."""
        inner = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(inner)))


class TransformerLayer(nn.Module):
    """Transformer layer: attention and perceptron, each after a layer norm, with dropout and a skip connection."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config.token_width, config.heads
        self.attend_norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=config.null_biases)
        self.inner, self.outer = nn.Linear(width, config.mlp_width), nn.Linear(config.mlp_width, width)
        self.drop = nn.Dropout(config.token_dropout)

    def forward(
        self, tokens: Float[Tensor, "b n c"], keep_attention: bool = False
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b h n n"] | None]:
        """Return the tokens and, if `keep_attention`, the attention matrices of each head, else None. Eq. (3)."""
        shown = self.attend_norm(tokens)
        query, key, value = (
            rearrange(project(shown), "b n (h c) -> b h n c", h=self.heads)
            for project in (self.query, self.key, self.value)
        )
        attention = None
        if keep_attention:
            attention = (query @ key.transpose(-1, -2)).float().div(query.shape[-1] ** 0.5).softmax(-1)
            mixed = self.drop(attention).to(value.dtype) @ value
        else:
            share = self.drop.p if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=share)
        tokens = tokens + self.drop(self.out(rearrange(mixed, "b h n c -> b n (h c)")))
        return tokens + self.drop(self.outer(self.drop(self.inner(self.mlp_norm(tokens)).relu()))), attention


def upsampling(inputs: int, outputs: int) -> nn.Module:
    """Return a transposed convolution that doubles the resolution."""
    return nn.ConvTranspose3d(inputs, outputs, 2, 2)


def convolution_block(inputs: int, outputs: int, null_biases: bool, stride: int = 1) -> nn.Sequential:
    """Return convolution (3 x 3 x 3), instance norm and ReLU. With `null_biases` the convolution has a bias."""
    conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=null_biases)
    return nn.Sequential(conv, nn.InstanceNorm3d(outputs, affine=True), nn.ReLU())


def upsampling_block(inputs: int, outputs: int, null_biases: bool) -> nn.Sequential:
    """Return a transposed convolution that doubles the resolution, then convolution, instance norm and ReLU."""
    return nn.Sequential(upsampling(inputs, outputs), *convolution_block(outputs, outputs, null_biases))


class Bottleneck(nn.Module):
    """UNETR: a transformer over patches of the deepest level, and a decoder from four of its layers back to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inputs, width, null = config.widths[-1], config.token_width, config.null_biases
        d1, d2, d4, d8 = (config.scale_width * times for times in (1, 2, 4, 8))
        self.grid, self.every = config.grid, config.layers // TAPS
        self.embed = nn.Conv3d(inputs, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.zeros(1, config.grid[0] * config.grid[1] * config.grid[2], width))
        self.drop = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.deepest = upsampling(width, d8)
        self.branches = nn.ModuleList(
            nn.Sequential(*(upsampling_block(*ends, null) for ends in pairwise(widths)))
            for widths in ((width, d8, d4, d2), (width, d8, d4), (width, d8))
        )
        self.merges = nn.ModuleList(
            (
                # Halved twice: the original UNETR ends at the image's resolution, this one at the bottleneck's.
                nn.Sequential(
                    convolution_block(d4, d2, null, 2), convolution_block(d2, d2, null, 2), upsampling(d2, d1)
                ),
                nn.Sequential(convolution_block(d8, d4, null), convolution_block(d4, d4, null), upsampling(d4, d2)),
                nn.Sequential(*(convolution_block(i, d8, null) for i in (2 * d8, d8, d8)), upsampling(d8, d4)),
            )
        )
        self.enter = nn.Sequential(convolution_block(inputs, d1 // 2, null), convolution_block(d1 // 2, d1, null))
        self.leave = nn.Sequential(
            convolution_block(d2, d1, null), convolution_block(d1, d1, null), nn.Conv3d(d1, inputs, 1)
        )

    def forward(
        self, deepest: Float[Tensor, "b c u v w"], keep_attention: bool
    ) -> tuple[Float[Tensor, "b c u v w"], list[Float[Tensor, "b ..."]], list[Float[Tensor, "b h n n"]]]:
        """Return the UNETR's output and the features that are distilled.

        Args:
            deepest: features of the deepest level.
            keep_attention: True to return attention matrices.

        Returns:
            The change of the deepest level; four scales, finest first; four attentions, first layer first, or an empty
            list.

        Eq. (2).
        """
        embedded = self.embed(deepest)
        grid = embedded.shape[2:]
        tokens = rearrange(embedded, "b c u v w -> b (u v w) c")
        tokens = self.drop(tokens + resampled_positions(grid, self.position, self.grid))
        taps, attentions = [], []
        for number, layer in enumerate(self.layers, 1):
            tapped = number % self.every == 0
            tokens, attention = layer(tokens, keep_attention and tapped)
            if tapped:
                taps.append(rearrange(tokens, "b (u v w) c -> b c u v w", u=grid[0], v=grid[1], w=grid[2]))
                attentions += [] if attention is None else [attention]
        scales = [self.deepest(taps.pop())]
        for branch, merge, tap in zip(reversed(self.branches), reversed(self.merges), reversed(taps), strict=True):
            scales.insert(0, merge(torch.cat([branch(tap), scales[0]], 1)))
        return self.leave(torch.cat([self.enter(deepest), scales[0]], 1)), scales, attentions


class NetworkOutput(NamedTuple):
    """Output of a network, all of which can be distilled."""

    logits: Float[Tensor, "b k x y z"]
    entry: Float[Tensor, "b c u v w"]
    """Features as they enter the deepest level."""
    style: Float[Tensor, "b c u v w"]
    content: Float[Tensor, "b c u v w"]
    scales: Sequence[Float[Tensor, "b ..."]]
    """Features of the UNETR's decoder, finest first."""
    attentions: Sequence[Float[Tensor, "b h n n"]]
    """Attention matrices of the four used layers; empty unless asked for."""

    def detached(self) -> NetworkOutput:
        """Return a copy that passes no gradient on."""
        logits, entry, style, content, scales, attentions = self
        logits, entry, style, content = (value.detach() for value in (logits, entry, style, content))
        return NetworkOutput(
            logits, entry, style, content, *([value.detach() for value in part] for part in (scales, attentions))
        )


class Network(nn.Module):
    """Residual U-Net with a UNETR at its deepest level; teacher and student each have one."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        widths = config.widths
        deepest = widths[-1]
        self.enter = nn.ModuleList(
            nn.Conv3d(before, width, 3, 1 if level == 0 else 2, padding=1)
            for level, (before, width) in enumerate(pairwise([len(Modality), *widths]))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(width, config.groups) for _ in range(count)))
            for width, count in zip(widths, config.blocks, strict=True)
        )
        self.bottleneck = Bottleneck(config)
        self.style = nn.Conv3d(widths[-2] + 2 * deepest, deepest, 1)
        self.fuse = nn.Conv3d(2 * deepest, deepest, 1)
        self.drop = nn.Dropout(config.dropout)
        self.narrow = nn.ModuleList(nn.Conv3d(below, width, 1) for width, below in pairwise(widths))
        self.merge = nn.ModuleList(Residual(width, config.groups) for width in widths[:-1])
        self.segment = nn.Conv3d(widths[0], classes, 1)

    def forward(self, image: Float[Tensor, "b m x y z"], keep_attention: bool = False) -> NetworkOutput:
        """Return the output for an image whose absent channels are 0. Eq. (1)."""
        maps, rest = self.features(image, keep_attention)
        return NetworkOutput(self.segment(maps[0]).float(), *rest)

    def features(
        self, image: Float[Tensor, "b m x y z"], keep_attention: bool = False
    ) -> tuple[list[Float[Tensor, "b ..."]], tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]]:
        """Return the decoder's features, finest first, and the fields of `NetworkOutput` after its logits.

        Absent channels of the image have to be 0. Without `keep_attention` the last list is empty.
        """
        entries: list[Tensor] = []
        levels: list[Tensor] = []
        for enter, stage in zip(self.enter[:-1], self.stages[:-1], strict=True):
            entries.append(enter(levels[-1] if levels else image))
            levels.append(stage(entries[-1]))
        entry = self.enter[-1](levels[-1])
        change, scales, attentions = self.bottleneck(entry, keep_attention)
        refined = change + entry
        content = self.stages[-1](refined)
        style = self.style(torch.cat([functional.max_pool3d(entries[-1], 2), entry, refined], 1))
        x = self.drop(self.fuse(torch.cat([style, content], 1)))
        maps: list[Tensor] = []
        for narrow, merge, level in zip(reversed(self.narrow), reversed(self.merge), reversed(levels), strict=True):
            x = merge(functional.interpolate(narrow(x), scale_factor=2.0) + level)
            maps.insert(0, x)
        return maps, (entry, style, content, scales, attentions)


class Discriminator(nn.Module):
    """Classifier of style features, with two classes: made from all modalities, or from a subset."""

    HEAD = (2, 3, 2)
    """Kernel of the released head, in voxels; it covers what three halvings leave of a 160 x 192 x 128 crop's deepest
    level."""
    SMALLEST_SIDE = 8
    """Smallest side, in voxels, for three halvings."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv3d(before, after, 4, 2, padding=1)
            for before, after in pairwise((inputs, width, 2 * width, 4 * width))
        )
        self.judge = nn.Conv3d(4 * width, 1, self.HEAD)

    def forward(self, style: Float[Tensor, "b c u v w"]) -> Float[Tensor, "b"]:
        """Return a logit for each sample, above 0 if the style is classified as one of missing modalities. Eq. (12)."""
        x = functional.interpolate(style, [max(side, self.SMALLEST_SIDE) for side in style.shape[2:]])
        for down in self.down:
            x = functional.leaky_relu(down(x), 0.2)
        return self.judge(functional.adaptive_avg_pool3d(x, self.HEAD)).float().flatten()
