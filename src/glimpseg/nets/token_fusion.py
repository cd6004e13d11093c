"""mmFormer's network, which is also each branch of SMML.

It has an encoder and a transformer for each modality, a transformer between modalities, and a decoder. Inside,
modalities are in the authors' order (`pyramid.ORDER`). Callers set absent channels of the image to 0 beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from glimpseg.losses import FusionOutputs
from glimpseg.nets.attention import Perceptron, SelfAttention
from glimpseg.nets.layers import Pointwise, convolution, upsampled
from glimpseg.nets.positions import resampled_positions
from glimpseg.nets.pyramid import (
    MOST_LEVELS,
    ORDER,
    Encoder,
    SingleDecoder,
    Stage,
    UpBlock,
    concatenated_modalities,
    drop_biases,
    encoded,
    initialise,
)


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """mmFormer (Zhang et al., MICCAI 2022): settings of the network.

    The defaults correct the released code (see the method's Departures); `OFFICIAL` is as released.
    """

    width: int = 8
    """Channels of the first level; doubled at each downsampling. Authors' code: 8."""
    levels: int = 5
    """Number of resolution levels; the transformers work at the deepest. Authors' code: 5."""
    token_width: int = 512
    """Features of a token. Authors' code: 512."""
    heads: int = 8
    """Heads of the attention. Authors' code: 8."""
    mlp_width: int = 4096
    """Hidden units of a transformer's perceptron. Authors' code: 4096."""
    layers: int = 1
    """Layers of each transformer. Authors' code: 1."""
    dropout: float = 0.1
    """Dropout probability, everywhere in the transformers. Authors' code: 0.1."""
    crop: tuple[int, int, int] = (128, 128, 128)
    """Sides of the crop, in voxels, for which each token has its own position embedding; best the recipe's patch. For
    other crops the embeddings are interpolated. Authors' code: 128^3, and no other."""
    layout: Literal["aligned", "released"] = "aligned"
    """Tokens that form a voxel of the deepest level: those of all modalities at its place (`aligned`), or four
    neighbours of one modality (`released`, the authors' code)."""
    absent_tokens: Literal["left_out", "kept"] = "left_out"
    """Treatment of tokens of absent modalities in the attention: left out, or kept, where they hold only position
    embeddings (authors' code)."""
    null_biases: bool = False
    """True keeps the biases before an instance norm, which cancels them. Authors' code: true."""

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"levels should lie between 2 and {MOST_LEVELS}, not {self.levels}.")
        if self.heads < 1:
            raise ValueError(f"heads should be at least 1, not {self.heads}.")
        if any(side % self.stride or side < 2 * self.stride for side in self.crop):
            raise ValueError(
                f"crop should be multiples of {self.stride} and at least {2 * self.stride} for {self.levels} levels, "
                f"not {self.crop}."
            )
        if self.token_width % self.heads:
            raise ValueError(f"token_width ({self.token_width}) should be a multiple of heads ({self.heads}).")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * 2**level for level in range(self.levels)]

    @property
    def stride(self) -> int:
        """Voxels between two tokens."""
        return 2 ** (self.levels - 1)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of `crop` along each axis."""
        x, y, z = (side // self.stride for side in self.crop)
        return x, y, z


OFFICIAL = Config(layout="released", absent_tokens="kept", null_biases=True)
"""Settings of the released network; the authors' weights fit it."""


class PreNorm(nn.Sequential):
    """Instance norm without parameters, leaky ReLU of slope 0.2, convolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding_mode: Literal["reflect", "zeros"] = "reflect",
    ) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(inputs)
        self.activation = nn.LeakyReLU(0.2, inplace=True)
        self.conv = convolution(inputs, outputs, kernel, stride=stride, padding_mode=padding_mode)


class TransformerLayer(nn.Module):
    """Transformer layer: attention and perceptron, each after a layer norm; the position is added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.token_width
        self.attend_norm = nn.LayerNorm(width)
        self.attend = SelfAttention(width, config.heads, config.dropout)
        self.drop = nn.Dropout(config.dropout)  # a second dropout: the authors' code has two in a row
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Perceptron(width, config.mlp_width, config.dropout)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        position: Float[Tensor, "1 n c"],
        keys: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Return the tokens after attention and perceptron.

        Args:
            tokens: tokens of each sample.
            position: position embeddings.
            keys: True for tokens that may be attended to; None for all.
        """
        tokens = tokens + position
        tokens = tokens + self.drop(self.attend(self.attend_norm(tokens), keys))
        return tokens + self.mlp(self.mlp_norm(tokens))


class Transformer(nn.Module):
    """Transformer layers; each of them adds the position embeddings again."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        position: Float[Tensor, "1 n c"],
        keys: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Return the tokens after all layers, without a final norm.

        Args:
            tokens: tokens of each sample.
            position: position embeddings.
            keys: True for tokens that may be attended to; None for all.
        """
        for layer in self.layers:
            tokens = layer(tokens, position, keys)
        return tokens


class Tokens(nn.Module):
    """Tokens of one modality: embedding of the deepest features, then a transformer within the modality."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.grid = config.grid
        self.embed = Pointwise(config.widths[-1], config.token_width)
        self.position = nn.Parameter(
            torch.zeros(1, config.grid[0] * config.grid[1] * config.grid[2], config.token_width)
        )
        self.intra = Transformer(config)

    def forward(self, deepest: Float[Tensor, "b d u v w"]) -> Float[Tensor, "b n c"]:
        """Return the tokens, in row-major order of the voxels."""
        tokens = rearrange(self.embed(deepest), "b c u v w -> b (u v w) c")
        return self.intra(tokens, self.positions_for(deepest.shape[2:]))

    def positions_for(self, grid: Sequence[int]) -> Float[Tensor, "1 n c"]:
        """Return the position embeddings for a grid, interpolated if it is not the one they were made for."""
        return resampled_positions(grid, self.position, self.grid)


class JointDecoder(nn.Module):
    """Decoder of the fused segmentation: the modalities of each level are fused, then merged upwards."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.fuse = nn.ModuleList(
            nn.Sequential(
                PreNorm(len(ORDER) * width, width, 1),
                PreNorm(width, width, 3, padding_mode="zeros"),
                PreNorm(width, width, 1),
            )
            for width in widths
        )
        self.levels = nn.ModuleList(UpBlock(below, width, PreNorm) for width, below in pairwise(widths))
        self.deep = nn.ModuleList(Pointwise(below, classes) for below in widths[1:])
        self.segment = Pointwise(widths[0], classes)

    def forward(self, stacks: Sequence[Float[Tensor, "b ..."]]) -> tuple[Float[Tensor, "b k x y z"], list[Tensor]]:
        """Return fused logits, and class probabilities of the deeper levels at their own resolution, finest first.

        Args:
            stacks: features of each level, finest first, modalities concatenated along the channels.
        """
        x = self.fuse[-1](stacks[-1])
        deep: list[Tensor] = []
        parts: list[Any] = list(zip(self.levels, self.fuse, self.deep, stacks, strict=False))
        for level, fuse, head, stack in reversed(parts):
            deep.insert(0, head(x).float().softmax(1))
            x = level.combine(fuse(stack), level.upsample(x))
        return self.segment(x).float(), deep


class Features(NamedTuple):
    """Features of each modality alone, from which any subset can be fused. Modalities are in the order of `ORDER`."""

    levels: list[Float[Tensor, "b m ..."]]
    """Features of the encoders, finest level first."""
    tokens: Float[Tensor, "b m n c"]
    """Tokens after the transformer within each modality."""


class Fused(NamedTuple):
    """Output of the fusion of one subset of the modalities."""

    logits: Float[Tensor, "b k x y z"]
    deep: list[Float[Tensor, "b k ..."]]
    """Class probabilities of the deeper levels at their own resolution, finest first."""
    deepest: Float[Tensor, "b c u v w"]
    """Tokens of all modalities after the transformer between them, as voxels of the deepest level."""


class TokenFusion(nn.Module):
    """mmFormer's network: attention between the tokens of all modalities, convolutional encoders and decoder."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoders = nn.ModuleDict(
            {
                # No norm before the first convolution: the image is normalised already.
                modality.key: Encoder(nn.Conv3d(1, widths[0], 3, padding=1, padding_mode="reflect"), widths, PreNorm)
                for modality in ORDER
            }
        )
        self.tokens = nn.ModuleDict({modality.key: Tokens(config) for modality in ORDER})
        self.inter = Transformer(config)
        self.untoken = Pointwise(len(ORDER) * config.token_width, len(ORDER) * widths[-1])
        self.joint = JointDecoder(widths, classes)
        self.single = SingleDecoder(widths, classes, PreNorm)
        initialise(self)
        if not config.null_biases:
            drop_biases(self._before_norms())

    def encode(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Features:
        """Return the encoders' features and each modality's tokens.

        Encoders of modalities that the whole batch lacks are not run, except in training and in an export; their
        features and tokens are 0.
        """
        # In training all encoders run, because every rank needs the same gradients to add. In an export all run,
        # because the exported network has to serve all subsets.
        every = self.training or torch.compiler.is_exporting()
        needed = [True] * len(ORDER) if every else available.any(0).tolist()
        levels = encoded(self.encoders.values(), image, needed)
        found = [
            tokens(deepest) if wanted else None
            for tokens, deepest, wanted in zip(self.tokens.values(), levels[-1].unbind(1), needed, strict=True)
        ]
        blank = torch.zeros_like(next(tokens for tokens in found if tokens is not None))
        return Features(levels, torch.stack([blank if tokens is None else tokens for tokens in found], 1))

    def pyramid(
        self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b ..."]]:
        """Return the features of all encoders, finest first.

        Modalities are concatenated along the channels, 0 where absent.
        """
        levels = encoded(self.encoders.values(), image, [True] * len(ORDER))
        return concatenated_modalities(levels, available)

    def fuse_tokens(
        self, tokens: Float[Tensor, "b m n c"], available: Bool[Tensor, "b m"], grid: Sequence[int]
    ) -> Float[Tensor, "b mc u v w"]:
        """Return the tokens of all available modalities, after attention between them, as voxels of the deepest level.

        Args:
            tokens: tokens of each modality.
            available: modalities to use.
            grid: tokens along x, y, z.
        """
        shown = torch.where(available[:, :, None, None], tokens, tokens.new_zeros(()))
        parts: Iterable[Any] = self.tokens.values()
        position = torch.cat([part.positions_for(grid) for part in parts], 1)
        n = tokens.shape[2]
        left_out = self.config.absent_tokens == "left_out"
        keys = available.repeat_interleave(n, 1) if left_out else None
        mixed = self.inter(shown.flatten(1, 2), position, keys).unflatten(1, (len(ORDER), n))
        if left_out:
            mixed = torch.where(available[:, :, None, None], mixed, mixed.new_zeros(()))
        if self.config.layout == "aligned":
            voxels = rearrange(mixed, "b m n c -> b n (m c)")
        else:  # the same memory read as (n, 4 c): four tokens in a row, nearly always of one modality
            voxels = mixed.reshape(len(mixed), n, -1)
        u, v, w = grid
        return self.untoken(rearrange(voxels, "b (u v w) c -> b c u v w", u=u, v=v, w=w))

    def fuse(self, features: Features, available: Bool[Tensor, "b m"]) -> Fused:
        """Return the output for the modalities in `available`."""
        deepest = self.fuse_tokens(features.tokens, available, features.levels[-1].shape[3:])
        stacks = [*concatenated_modalities(features.levels[:-1], available), deepest]
        logits, deep = self.joint(stacks)
        return Fused(logits, deep, deepest)

    def supervised(self, features: Features, fused: Fused) -> FusionOutputs:
        """Return all maps that are compared with a reference: fused, single modalities, and deeper levels upsampled."""
        raised = [upsampled(level, 2**number) for number, level in enumerate(fused.deep, 1)]
        return FusionOutputs(fused.logits.softmax(1), self.single(features.levels), raised)

    def _before_norms(self) -> Iterator[nn.Module]:
        """Yield the layers whose bias the next instance norm cancels, also through sums, concatenation, upsampling."""
        encoders: Iterable[Any] = self.encoders.values()
        for encoder in encoders:
            for stage in encoder.stages[:-1]:
                yield stage.entry.conv if isinstance(stage.entry, PreNorm) else stage.entry
                yield from (block.conv for block in stage.residual)
            yield encoder.stages[-1].residual[0].conv
        blocks: list[Any] = [*self.joint.fuse]
        fusing = [*chain(*blocks[:-1]), *blocks[-1][:-1]]  # the last one's output also goes straight to a head
        yield from (block.conv for block in fusing)
        levels: Iterable[Any] = (*self.joint.levels, *self.single.levels)
        for level in levels:
            yield level.up.conv
            yield level.merge.conv
        coarse: Iterable[Any] = self.single.levels[1:]
        yield from (level.refine.conv for level in coarse)
        yield self.untoken
        if (
            self.config.layout == "aligned" or self.config.absent_tokens == "kept"
        ):  # otherwise its bias is not constant over the voxels
            last: Any = self.inter.layers[-1]
            yield last.mlp.linear2


NETWORKS = (Encoder, Tokens, Transformer, JointDecoder, SingleDecoder)
"""Modules of a `TokenFusion` to compile: `Learner.networks`."""
STAGES = (Stage, TransformerLayer, PreNorm)
"""Modules of a `TokenFusion` to checkpoint: `Learner.stages`."""

NAMES = (
    (r"encoders\.(?P<m>\w+)\.stages\.(?P<l>\d)\.entry", "{m}_encoder.e{l}_c1"),
    (r"encoders\.(?P<m>\w+)\.stages\.(?P<l>\d)\.residual\.(?P<r>\d)", "{m}_encoder.e{l}_c{r}"),
    (r"tokens\.(?P<m>\w+)\.embed", "{m}_encode_conv"),
    (r"tokens\.(?P<m>\w+)\.position", "{m}_pos"),
    *(
        (rf"{ours}\.layers\.(?P<j>\d)\.{part}", f"{theirs}.{name}")
        for ours, theirs in ((r"tokens\.(?P<m>\w+)\.intra", "{m}_transformer"), ("inter", "multimodal_transformer"))
        for part, name in (
            ("attend_norm", "cross_attention_list.{j}.fn.norm"),
            (r"attend\.qkv", "cross_attention_list.{j}.fn.fn.qkv"),
            (r"attend\.out_proj", "cross_attention_list.{j}.fn.fn.proj"),
            ("mlp_norm", "cross_ffn_list.{j}.fn.norm"),
            (r"mlp\.linear1", "cross_ffn_list.{j}.fn.fn.net.0"),
            (r"mlp\.linear2", "cross_ffn_list.{j}.fn.fn.net.3"),
        )
    ),
    (r"untoken", "multimodal_decode_conv"),
    (r"joint\.fuse\.(?P<l>\d)", "decoder_fuse.RFM{l}.fusion_layer"),
    (r"joint\.levels\.(?P<l>\d)\.up", "decoder_fuse.d{l}_c1"),
    (r"joint\.levels\.(?P<l>\d)\.merge", "decoder_fuse.d{l}_c2"),
    (r"joint\.levels\.(?P<l>\d)\.refine", "decoder_fuse.d{l}_out"),
    (r"joint\.deep\.(?P<l>\d)", "decoder_fuse.seg_d{l}"),
    (r"joint\.segment", "decoder_fuse.seg_layer"),
    (r"single\.levels\.(?P<l>\d)\.up", "decoder_sep.d{l}_c1"),
    (r"single\.levels\.(?P<l>\d)\.merge", "decoder_sep.d{l}_c2"),
    (r"single\.levels\.(?P<l>\d)\.refine", "decoder_sep.d{l}_out"),
    (r"single\.segment", "decoder_sep.seg_layer"),
)
"""Patterns of the tensor names of `TokenFusion`, and the authors' names, for `take_weights`."""
UNUSED = r"(flair|t1ce|t1|t2)_decode_conv\."
"""Pattern of the authors' tensors that no forward pass uses."""
