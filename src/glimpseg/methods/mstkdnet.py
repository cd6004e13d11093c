"""MST-KDNet: a teacher sees all sequences, a student what is left; attention, logits and style are distilled.

Zhu et al., MST-KDNet: multi-scale transformer attention, logits and global style distilled for brain tumour
segmentation with missing modalities, MICCAI 2025, arXiv 2507.22626. Implemented is what the authors' released code
computes (Quanato607/MST-KDNet at 2c77373), from its facts, and the style module that the released run leaves out.

Departures
| source | says or does | we do |
|---|---|---|
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional

from glimpseg.data.augment import Augment
from glimpseg.data.loader import Sampling, Stream
from glimpseg.data.preprocess import Preprocess
from glimpseg.errors import ModelError, UsageError
from glimpseg.method import Progress, Segmenter, blanked, draw_subsets, frozen, take_weights
from glimpseg.modality import ALL, Modality
from glimpseg.nets.positions import positions_on
from glimpseg.recipe import Data, Optim, Recipe
from glimpseg.region import Label, Region
from glimpseg.study import Batch

PATCH = 4
"""Voxels of the bottleneck in a token, along each axis. The UNETR block's up-sampling is built for it."""
TAPS = 4
"""Depths of the transformer that are tapped, equally far apart."""
RELEASED_ATTENTION = 1e8 / 120**4
"""The released weight of the attention term, 1e8, for the 120 tokens of its only crop."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """MST-KDNet (Zhu et al., arXiv 2507.22626). The defaults mend the released code; `OFFICIAL` is as released."""

    width: int = 16
    """Channels of the first level; doubled at each downsampling. Authors' code: 16."""
    blocks: tuple[int, ...] = (1, 2, 2, 4)
    """Residual blocks of each encoder level, finest first. Authors' code: 1, 2, 2, 4."""
    groups: int = 8
    """Of the trunk's group norms. Authors' code: 8."""
    token_width: int = 768
    """Features of a token. Authors' code: 768."""
    heads: int = 12
    """Of the attention. Authors' code: 12."""
    mlp_width: int = 2048
    """Hidden units of a transformer's perceptron. Authors' code: 2048."""
    layers: int = 12
    """Of the transformer; four equally deep ones are tapped. Authors' code: 12."""
    scale_width: int = 64
    """Channels of the finest of the four distilled scales; the others have 2, 4 and 8 times as many. Authors' code:
    64."""
    style_width: int = 64
    """Channels of the discriminator's first convolution. Authors' code: 64."""
    crop: tuple[int, int, int] = (160, 192, 128)
    """Voxels for which each token has a position embedding of its own, best the recipe's patch; for other crops they
    are interpolated. Authors' code: 160 x 192 x 128, and no other."""
    dropout: float = 0.2
    """Before the decoder. Authors' code: 0.2."""
    token_dropout: float = 0.1
    """Everywhere in the transformer. Authors' code: 0.1."""
    null_biases: bool = False
    """Biases before a norm or a softmax, which cancel them. Authors' code: true."""

    teacher: float = 0.4
    """Weight of the teacher's segmentation. Authors' code: 0.4."""
    student: float = 0.6
    """Weight of the student's segmentation. Authors' code: 0.6."""
    content: float = 0.2
    """Weight of the distance between contents. Authors' code: 0.2."""
    features: float = 0.2
    """Weight of MS-TKD's distance between scales. Authors' code: 0.2."""
    attention: float = RELEASED_ATTENTION
    """Weight of MS-TKD's distance between attentions, of tokens that attend evenly with 1. Authors' code: the same at
    its only crop."""
    prediction: float = 10.0
    """Final weight of DMLD's distance between predictions. Authors' code: 10."""
    ramp: float = 0.2
    """Share of the training over which `prediction` rises. Authors' code: 20 of 100 epochs."""
    logits: float = 1.0
    """Weight of DMLD's divergence of standardised logits. Authors' code: 1."""
    temperature: float = 7.0
    """Of that divergence. Authors' code: 7."""
    standardise: Literal["depth", "class"] = "depth"
    """Along what logits are standardised: the last axis of the crop (authors' code) or the classes (Sun et al., CVPR
    2024, whence the term comes)."""
    gram: float = 1.0
    """Weight of GSME's distance between cross-layer Gram matrices. Ours; commented out in the authors' code."""
    adversary: float = 2e-4
    """Weight of GSME's adversarial term. Authors' code: 2e-4."""
    adversary_rate: float = 1.0
    """Learning rate of the discriminator, as a multiple of the networks'. Authors' code: 1."""
    adversary_betas: tuple[float, float] = (0.9, 0.99)
    """Of the discriminator's Adam. Authors' code: these, but made anew at every step, which is (0, 0)."""
    detach_teacher: bool = False
    """Distil one way: no gradient from the student to the teacher. Authors' code: false."""
    released_terms: bool = False
    """The slips of the released objective: for the background, the teacher's Dice stands in place of the student's and
    of the distance between predictions, and the divergence is taken the other way round."""

    def __post_init__(self) -> None:
        if len(self.blocks) < 3:
            raise ValueError(f"blocks should name at least 3 levels, not {len(self.blocks)}.")
        if self.layers % TAPS:
            raise ValueError(f"layers should be a multiple of {TAPS}, which are tapped, not {self.layers}.")
        if self.token_width % self.heads:
            raise ValueError(f"token_width ({self.token_width}) should be a multiple of heads ({self.heads}).")
        if self.width % self.groups:
            raise ValueError(f"width ({self.width}) should be a multiple of groups ({self.groups}).")
        if any(side % self.stride or side < self.stride for side in self.crop):
            raise ValueError(
                f"crop should be multiples of {self.stride} for {len(self.blocks)} levels, not {self.crop}."
            )

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * 2**level for level in range(len(self.blocks))]

    @property
    def stride(self) -> int:
        """Voxels between two tokens."""
        return PATCH * 2 ** (len(self.blocks) - 1)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of `crop` along each axis."""
        x, y, z = (side // self.stride for side in self.crop)
        return x, y, z


OFFICIAL = Config(null_biases=True, gram=0.0, adversary_betas=(0.0, 0.0), released_terms=True)
"""The released network and objective; the authors' weights fit it."""
LITE = Config(token_width=192, heads=3, mlp_width=512, layers=4, scale_width=16)
"""The trunk with a small bottleneck."""


class Residual(nn.Module):
    """Group norm, ReLU and convolution, twice, added to the input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), nn.Conv3d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """As many channels as came."""
        inner = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(inner)))


class Layer(nn.Module):
    """Attention and perceptron, each behind a layer norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.token_width, config.heads, config.token_dropout
        self.attend_norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=config.null_biases)
        self.inner, self.outer = nn.Linear(width, config.mlp_width), nn.Linear(config.mlp_width, width)
        self.drop = nn.Dropout(config.token_dropout)

    def forward(
        self, tokens: Float[Tensor, "b n c"], keep_attention: bool = False
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b h n n"] | None]:
        """Tokens that have looked at each other and, if it is to be kept, how much at which. Eq. (3)."""
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
            share = self.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=share)
        tokens = tokens + self.drop(self.out(rearrange(mixed, "b h n c -> b n (h c)")))
        return tokens + self.drop(self.outer(self.drop(self.inner(self.mlp_norm(tokens)).relu()))), attention


def doubled(inputs: int, outputs: int) -> nn.Module:
    """Twice the resolution, by a transposed convolution alone."""
    return nn.ConvTranspose3d(inputs, outputs, 2, 2)


def convolved(inputs: int, outputs: int, null_biases: bool, stride: int = 1) -> nn.Sequential:
    """Convolution, norm over the volume, ReLU."""
    conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=null_biases)
    return nn.Sequential(conv, nn.InstanceNorm3d(outputs, affine=True), nn.ReLU())


def raised(inputs: int, outputs: int, null_biases: bool) -> nn.Sequential:
    """Twice the resolution, then `convolved`."""
    return nn.Sequential(doubled(inputs, outputs), *convolved(outputs, outputs, null_biases))


class Bottleneck(nn.Module):
    """A UNETR: a transformer over patches of the deepest level, tapped at four depths, and a decoder back to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inputs, width, null = config.widths[-1], config.token_width, config.null_biases
        d1, d2, d4, d8 = (config.scale_width * times for times in (1, 2, 4, 8))
        self.grid, self.every = config.grid, config.layers // TAPS
        self.embed = nn.Conv3d(inputs, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.zeros(1, config.grid[0] * config.grid[1] * config.grid[2], width))
        self.drop = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.deepest = doubled(width, d8)
        self.branches = nn.ModuleList(
            nn.Sequential(*(raised(*ends, null) for ends in pairwise(widths)))
            for widths in ((width, d8, d4, d2), (width, d8, d4), (width, d8))
        )
        self.merges = nn.ModuleList(
            (
                # Down again to a quarter: the original UNETR ends at the image, this one at the bottleneck.
                nn.Sequential(convolved(d4, d2, null, 2), convolved(d2, d2, null, 2), doubled(d2, d1)),
                nn.Sequential(convolved(d8, d4, null), convolved(d4, d4, null), doubled(d4, d2)),
                nn.Sequential(*(convolved(i, d8, null) for i in (2 * d8, d8, d8)), doubled(d8, d4)),
            )
        )
        self.enter = nn.Sequential(convolved(inputs, d1 // 2, null), convolved(d1 // 2, d1, null))
        self.leave = nn.Sequential(convolved(d2, d1, null), convolved(d1, d1, null), nn.Conv3d(d1, inputs, 1))

    def forward(
        self, deepest: Float[Tensor, "b c u v w"], keep_attention: bool
    ) -> tuple[Float[Tensor, "b c u v w"], list[Float[Tensor, "b ..."]], list[Float[Tensor, "b h n n"]]]:
        """What is added to the deepest level; four scales, finest first; and four attentions, first layer first.

        Eq. (2).
        """
        embedded = self.embed(deepest)
        grid = embedded.shape[2:]
        tokens = rearrange(embedded, "b c u v w -> b (u v w) c")
        tokens = self.drop(tokens + positions_on(grid, self.position, self.grid))
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


class Seen(NamedTuple):
    """What a network makes of an image; all of it can be distilled."""

    logits: Float[Tensor, "b k x y z"]
    entry: Float[Tensor, "b c u v w"]
    """As features reach the deepest level."""
    style: Float[Tensor, "b c u v w"]
    content: Float[Tensor, "b c u v w"]
    scales: Sequence[Float[Tensor, "b ..."]]
    """Of the UNETR's decoder, finest first."""
    attentions: Sequence[Float[Tensor, "b h n n"]]
    """Of the tapped layers; none unless asked for."""

    def detached(self) -> Seen:
        """The same without a way back."""
        logits, entry, style, content, scales, attentions = self
        logits, entry, style, content = (value.detach() for value in (logits, entry, style, content))
        return Seen(
            logits, entry, style, content, *([value.detach() for value in part] for part in (scales, attentions))
        )


class Network(nn.Module):
    """A residual U-Net with a UNETR in its bottleneck; teacher and student each have one."""

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

    def forward(self, image: Float[Tensor, "b m x y z"], keep_attention: bool = False) -> Seen:
        """From an image whose absent channels are 0. Eq. (1)."""
        entries: list[Tensor] = []
        levels: list[Tensor] = []
        for enter, stage in zip(self.enter[:-1], self.stages[:-1], strict=True):
            entries.append(enter(levels[-1] if levels else image))
            levels.append(stage(entries[-1]))
        entry = self.enter[-1](levels[-1])
        found, scales, attentions = self.bottleneck(entry, keep_attention)
        refined = found + entry
        content = self.stages[-1](refined)
        style = self.style(torch.cat([functional.max_pool3d(entries[-1], 2), entry, refined], 1))
        x = self.drop(self.fuse(torch.cat([style, content], 1)))
        for narrow, merge, level in zip(reversed(self.narrow), reversed(self.merge), reversed(levels), strict=True):
            x = merge(functional.interpolate(narrow(x), scale_factor=2.0) + level)
        return Seen(self.segment(x).float(), entry, style, content, scales, attentions)


class Discriminator(nn.Module):
    """Tells by its style whether a network saw all modalities."""

    HEAD = (2, 3, 2)
    """The released head's kernel, which covers all that is left of a crop of 160 x 192 x 128."""
    LEAST = 8
    """Voxels along each axis that three halvings need."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv3d(before, after, 4, 2, padding=1)
            for before, after in pairwise((inputs, width, 2 * width, 4 * width))
        )
        self.judge = nn.Conv3d(4 * width, 1, self.HEAD)

    def forward(self, style: Float[Tensor, "b c u v w"]) -> Float[Tensor, "b"]:
        """A logit for each sample, above 0 if it takes the style for one of missing modalities. Eq. (12)."""
        x = functional.interpolate(style, [max(side, self.LEAST) for side in style.shape[2:]])
        for down in self.down:
            x = functional.leaky_relu(down(x), 0.2)
        return self.judge(functional.adaptive_avg_pool3d(x, self.HEAD)).float().flatten()


def label_maps(target: Int[Tensor, "b x y z"], labels: Sequence[int]) -> Float[Tensor, "b k x y z"]:
    """One map for each label and one for what has none, which comes last. A label that is not told apart is in no
    map."""
    return torch.stack([target == label for label in (*labels, 0)], 1).float()


def squared_dice(probabilities: Float[Tensor, "b k x y z"], target: Float[Tensor, "b k x y z"]) -> Float[Tensor, "k"]:
    """1 - Dice with squares in the denominator, each class over the whole batch. Eq. (4)."""
    axes = (0, 2, 3, 4)
    both = (probabilities * target).sum(axes)
    return 1 - 2 * both / (probabilities.square().sum(axes) + target.square().sum(axes) + 1e-7)


def mean_square(one: Float[Tensor, "b ..."], other: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Of the differences within each sample. Eq. (5)."""
    return (one.float() - other.float()).square().flatten(1).mean(1)


def scale_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between the scales of the two decoders in the bottleneck (MS-TKD). Eq. (6)."""
    return torch.stack([mean_square(*pair) for pair in zip(teacher.scales, student.scales, strict=True)]).sum(0)


def attention_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between attentions, each weighted by the largest, the smallest and the mean of its entry over the tapped layers
    (MS-TKD's extreme values). Relative to even attention, so that it does not depend on how many tokens there are.

    Eq. (7).
    """
    both = [torch.stack(list(seen.attentions), 1) * seen.attentions[0].shape[-1] for seen in (teacher, student)]
    total = both[0].new_zeros(len(both[0]))
    for extreme in (torch.amax, torch.amin, torch.mean):
        one, other = (stack * extreme(stack, 1, keepdim=True) for stack in both)
        total = total + len(teacher.attentions) * mean_square(one, other)
    return total


def prediction_weight(fraction: float, ramp: float) -> float:
    """From 0.0067 at the beginning of training to 1 at `ramp` of it. Eq. (8)."""
    return float(torch.tensor(-5 * (1 - min(fraction / ramp, 1)) ** 2).exp())


def class_distance(teacher: Float[Tensor, "b k x y z"], student: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b k"]:
    """Mean square difference of each class's probabilities (DMLD's first mode). Eq. (9)."""
    return (teacher - student).square().mean((2, 3, 4))


def logit_divergence(
    student: Float[Tensor, "b k x y z"],
    teacher: Float[Tensor, "b k x y z"],
    temperature: float,
    axis: Literal["depth", "class"] = "depth",
) -> Float[Tensor, "b"]:
    """Kullback-Leibler divergence of the student's from the teacher's class probabilities, both from logits
    standardised along an axis, softened (DMLD's second mode). Eq. (10)."""
    along = -1 if axis == "depth" else 1

    def soft(logits: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(logits, along, keepdim=True)
        return ((logits - mean) / (deviation + 1e-7) / temperature).log_softmax(1)

    one, other = soft(student), soft(teacher)
    per_voxel = (other.exp() * (other - one)).sum(1)
    return temperature**2 / student.shape[1] * per_voxel.flatten(1).mean(1)


def gram_distance(teacher: Seen, student: Seen) -> Float[Tensor, "b"]:
    """Between the matrices of products of each two of entry, style and content, mean over voxels and over the
    matrices' entries (GSME). Eq. (11)."""

    def products(seen: Seen) -> list[Tensor]:
        layers = [part.float().flatten(2) for part in (seen.entry, seen.style, seen.content)]
        return [layer @ layers[number - 1].mT / layer.shape[-1] for number, layer in enumerate(layers)]

    pairs = zip(products(teacher), products(student), strict=True)
    return torch.stack([mean_square(one, other) for one, other in pairs]).sum(0)


class MSTKDNet(Segmenter):
    """Teacher and student are trained together; the student alone segments."""

    def __init__(self, config: Config, labels: tuple[Label, ...]) -> None:
        super().__init__(labels)
        self.config = config
        self.student = Network(config, len(labels) + 1)
        self.teacher = Network(config, len(labels) + 1)
        self.discriminator = Discriminator(config.widths[-1], config.style_width)

    @property
    def stride(self) -> int:
        """A whole number of tokens."""
        return self.config.stride

    @property
    def training_only(self) -> tuple[str, ...]:
        """All but the student."""
        return ("teacher", "discriminator")

    def forward(self, image: Float[Tensor, "b m x y z"], available: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """The student's probability of each label, and of none of them; they are independent and do not sum to 1."""
        seen: Seen = self.student(blanked(image, available))
        return seen.logits.sigmoid()

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, ""]]:
        """Segmentation by both, and what the student is taught: studies that lack a modality teach nothing, and
        train the student alone. Eq. (13)."""
        assert batch.target is not None, "supervised training needs a reference for every crop"
        config, target = self.config, label_maps(batch.target, self.labels)
        complete = batch.available.all(1)
        # The teacher also runs where it has nothing to say, so that every rank has the same gradients to add.
        teacher: Seen = self.teacher(blanked(batch.image, batch.available), keep_attention=True)
        student: Seen = self.student(blanked(batch.image, draw_subsets(batch.available)), keep_attention=True)
        fixed = teacher.detached() if config.detach_teacher else teacher

        def taught(distances: Float[Tensor, "b"]) -> Float[Tensor, ""]:
            return (distances * complete).sum() / complete.sum().clamp_min(1)

        kept = complete[:, None, None, None, None]
        by_teacher = squared_dice(teacher.logits.sigmoid() * kept, target * kept) * complete.any()
        by_student = squared_dice(student.logits.sigmoid(), target)
        prediction = class_distance(fixed.logits.sigmoid(), student.logits.sigmoid())
        ends = (student.logits, fixed.logits)
        if config.released_terms:
            by_student = torch.cat([by_student[:-1], by_teacher[-1:]])
            prediction = torch.cat([prediction[:, :-1], by_teacher[None, -1:].expand(len(prediction), 1)], 1)
            ends = (fixed.logits, student.logits)
        ramped = config.prediction * prediction_weight(progress.fraction, config.ramp)
        return {
            "segment/teacher": config.teacher * by_teacher.sum(),
            "segment/student": config.student * by_student.sum(),
            "content": config.content * taught(mean_square(fixed.content, student.content)),
            "mstkd/scales": config.features * taught(scale_distance(fixed, student)),
            "mstkd/attention": config.attention * taught(attention_distance(fixed, student)),
            "dmld/prediction": ramped * taught(prediction.sum(1)),
            "dmld/logits": config.logits
            * taught(logit_divergence(*ends, temperature=config.temperature, axis=config.standardise)),
            "gsme/gram": config.gram * taught(gram_distance(fixed, student)),
            **self.adversaries(teacher, student, taught),
        }

    def adversaries(
        self, teacher: Seen, student: Seen, taught: Callable[[Tensor], Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """The student's wish to be taken for a teacher, and the discriminator's to tell them apart (GSME). One sum of
        both has the gradients of two alternating steps. Eq. (14)."""

        def judged(logits: Tensor, missing: float) -> Tensor:
            wanted = torch.full_like(logits, missing)
            return taught(functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none"))

        return {
            "gsme/adversary": self.config.adversary * judged(frozen(self.discriminator)(student.style), 0.0),
            "gsme/discriminator": judged(self.discriminator(teacher.style.detach()), 0.0)
            + judged(self.discriminator(student.style.detach()), 1.0),
        }

    def parameter_groups(self) -> list[dict]:
        """The discriminator has moments of its own and no weight decay."""
        return [
            {"params": [*self.student.parameters(), *self.teacher.parameters()]},
            {
                "params": list(self.discriminator.parameters()),
                "scale": self.config.adversary_rate,
                "betas": self.config.adversary_betas,
                "weight_decay": 0.0,
            },
        ]

    def archive_note(self, available: Mapping[Modality, int]) -> str:
        """How many studies teach. Raises: UsageError if none does."""
        complete, total = available.get(ALL, 0), sum(available.values())
        if not complete:
            raise UsageError(
                f"MST-KDNet's teacher needs studies with all four sequences; none of these {total} has them. Add "
                "complete studies, or train unet, rfnet or mmformer, which need none."
            )
        return f"{complete} of {total} studies have all four sequences and teach; the others train the student alone"

    def decode(self, probabilities: Float[Tensor, "b k x y z"]) -> Int[Tensor, "b x y z"]:
        """Whatever is likelier than not; where several labels are, the innermost: their unions are then the regions
        of the authors' thresholds. A cavity only where no tumour is."""
        labels = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        for label in (Label.RC, Label.ED, Label.NCR, Label.ET):
            if label in self.labels:
                labels[probabilities[:, self.labels.index(label)] > 0.5] = label
        return labels

    def region_probabilities(self, probabilities: Float[Tensor, "b k x y z"]) -> dict[Region, Float[Tensor, "b x y z"]]:
        """The highest of a region's labels: a region is wherever one of its labels is."""
        return {
            region: torch.stack([probabilities[:, self.labels.index(label)] for label in region.value]).amax(0)
            for region in self.regions
        }


def _network_names() -> list[tuple[str, str]]:
    """Our names of one network's parts, and the authors'."""
    normed = ("block.0.block", "block.1")
    blocks = ("b", "ab", "ab", "abcd")  # conv1a is no block
    pairs = [(f"stages.{i}.{j}", f"conv{i + 1}{letter}") for i in range(4) for j, letter in enumerate(blocks[i])]
    names = [
        (f"{ours}.{part}", f"{theirs}.{name}")
        for ours, theirs in [*pairs, *((f"merge.{i}", f"up{i + 2}convb") for i in range(3))]
        for part, name in (("norm1", "gn1"), ("conv1", "conv1"), ("norm2", "gn2"), ("conv2", "conv2"))
    ]
    names += [("enter.0", "conv1a"), *((f"enter.{i}", f"ds{i}") for i in (1, 2, 3))]
    names += [(f"narrow.{i}", f"up{i + 2}conva") for i in range(3)]
    names += [("style", "convc"), ("fuse", "convco"), ("segment", "up1conv")]
    transformer = "Unetr.transformer.embeddings"
    names += [("bottleneck.embed", f"{transformer}.patch_embeddings")]
    names += [("bottleneck.position", f"{transformer}.position_embeddings")]
    names += [
        (f"bottleneck.layers.{i}.{part}", f"Unetr.transformer.layer.{i}.{name}")
        for i in range(12)
        for part, name in (
            ("attend_norm", "attention_norm"),
            ("mlp_norm", "mlp_norm"),
            *((word, f"attn.{word}") for word in ("query", "key", "value", "out")),
            ("inner", "mlp.w_1"),
            ("outer", "mlp.w_2"),
        )
    ]
    for branch, (depth, count) in enumerate(((3, 3), (6, 2), (9, 1))):
        for i in range(count):
            theirs = f"Unetr.decoder{depth}.{i}" if count > 1 else f"Unetr.decoder{depth}"
            ours = f"bottleneck.branches.{branch}.{i}"
            names += [
                (f"{ours}.{j}", f"{theirs}.{name}")
                for j, name in enumerate(("block.0.block", "block.1.block", "block.2"))
            ]
        layers = 3 if depth == 9 else 2
        ours, theirs = f"bottleneck.merges.{branch}", f"Unetr.decoder{depth}_upsampler"
        names += [(f"{ours}.{i}.{j}", f"{theirs}.{i}.{normed[j]}") for i in range(layers) for j in range(2)]
        names += [(f"{ours}.{layers}", f"{theirs}.{layers}.block")]
    for ours, theirs in (("enter", "decoder0"), ("leave", "decoder0_header")):
        names += [(f"bottleneck.{ours}.{i}.{j}", f"Unetr.{theirs}.{i}.{normed[j]}") for i in range(2) for j in range(2)]
    return [
        *names,
        ("bottleneck.leave.2", "Unetr.decoder0_header.2.block"),
        ("bottleneck.deepest", "Unetr.decoder12_upsampler.block"),
    ]


NAMES = (
    *(
        (f"{ours}.{part}".replace(".", r"\."), f"{theirs}.{name}")
        for ours, theirs in (("student", "model_missing"), ("teacher", "model_full"))
        for part, name in _network_names()
    ),
    *((rf"discriminator\.down\.{i}", f"d_style.{2 * i}") for i in range(3)),
    (r"discriminator\.judge", "d_style.6"),
)
UNUSED = r".*\.num_batches_tracked|.*\.running_(mean|var)|.*encoder_norm\."
"""Tensors of the authors' that no forward pass of theirs or ours uses: their training never leaves training mode."""
PARTS = ("model_missing", "model_full", "d_style")
"""How the authors' checkpoint names student, teacher and discriminator."""
ORDER = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
"""The authors' channels."""


def from_authors(weights: Mapping[str, Tensor]) -> MSTKDNet:
    """The official network with the weights of an authors' checkpoint (its three state dicts, keys as
    `model_missing.conv1a.weight`), or with those of a student alone, which then segments and cannot be trained on.

    Raises: ModelError for weights that are not MST-KDNet's, or of other classes.
    """
    given = {name.replace(".module.", "."): value for name, value in weights.items()}
    if not any(name.startswith(f"{PARTS[0]}.") for name in given):
        given = {f"{PARTS[0]}.{name.removeprefix('module.')}": value for name, value in given.items()}
    for part in PARTS[:2]:
        first = given.get(f"{part}.conv1a.weight")
        if first is not None and first.dim() == 5 and first.shape[1] == len(ORDER):
            given[f"{part}.conv1a.weight"] = first[:, [ORDER.index(modality) for modality in Modality]]
    table = given.get(f"{PARTS[0]}.Unetr.transformer.embeddings.position_embeddings")
    if table is None or table.dim() != 3:
        raise ModelError("These are not the weights of the authors' MST-KDNet: its position_embeddings are missing.")
    network = MSTKDNet(replace(OFFICIAL, crop=_crop_of(table.shape[1])), (Label.NCR, Label.ED, Label.ET))
    if not any(name.startswith(PARTS[1:]) for name in given):
        network.drop_training_parts()
    take_weights(network, given, NAMES, UNUSED)
    return network


def _crop_of(tokens: int) -> tuple[int, int, int]:
    """The released crop, or a cube."""
    if tokens == 120:
        return OFFICIAL.crop
    side = round(tokens ** (1 / 3)) * OFFICIAL.stride
    return side, side, side


def authors_recipe(network: MSTKDNet) -> Recipe:
    """How imported weights are used: with the crops and intensities that they were trained on."""
    recipe = RECIPES["official"]
    sampling = replace(recipe.data.sampling, patch=network.config.crop)
    return replace(recipe, config=network.config, data=replace(recipe.data, sampling=sampling))


FLIPS = Augment(rotation=0, zooming=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma=0)
"""The authors' augmentation: each axis mirrored half of the time."""


def paper(config: Config, epoch: int) -> Recipe:
    """The paper's crops, intensities and schedule: 100 epochs of so many studies, one at a time."""
    return Recipe(
        method="mstkdnet",
        config=config,
        data=Data(
            preprocess=Preprocess(scale="minmax", clip=None, background="shifted"),
            sampling=Sampling(patch=(160, 192, 128), batch=1, tumour_share=0, augment=FLIPS),
        ),
        optim=Optim(
            steps=100 * epoch,
            optimizer="adam",
            learning_rate=1e-4,
            weight_decay=1e-5,
            epoch=epoch,
            max_norm=None,
            ema=0,
            precision="fp32",
            save_every=1000,
            log_every=50,
        ),
        seed=42,
    )


METHOD = MSTKDNet

RECIPES = {
    # Minutes on two cores: 3 mm voxels, a small network, phantoms.
    "phantom": Recipe(
        method="mstkdnet",
        config=Config(
            width=16,
            blocks=(1, 1, 2),
            token_width=96,
            heads=3,
            mlp_width=192,
            layers=4,
            scale_width=8,
            style_width=16,
            crop=(48, 48, 32),
            adversary_rate=1 / 30,
        ),
        data=Data(
            preprocess=Preprocess(spacing_mm=3.0),
            sampling=Sampling(
                patch=(48, 48, 32),
                batch=2,
                tumour_share=0.5,
                augment=Augment(rotation_degrees=15, rotation=0.3, zoom=(0.85, 1.2), blur=0.1, low_resolution=0.1),
            ),
            stream=Stream(),
        ),
        optim=Optim(steps=450, learning_rate=3e-3, warmup=20, ema=0.99, save_every=50),
    ),
    # 80 % of the labelled training cases, as the authors' settings suggest; their lists are unpublished.
    "brats2024": paper(Config(), 1080),
    "fets2024": paper(Config(), 1001),
    # The run that was released: FeTS, without the style module.
    "official": paper(OFFICIAL, 1001),
    # The mended network, and the small one, under the budget of `unet/brats`.
    "brats": Recipe(
        method="mstkdnet",
        config=Config(crop=(128, 128, 128)),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=Optim(steps=250_000, learning_rate=3e-4, warmup=1000, precision="bf16", save_every=1000, log_every=50),
    ),
    "lite": Recipe(
        method="mstkdnet",
        config=replace(LITE, crop=(128, 128, 128)),
        data=Data(sampling=Sampling(patch=(128, 128, 128), batch=2)),
        optim=Optim(steps=250_000, learning_rate=3e-4, warmup=1000, precision="bf16", save_every=1000, log_every=50),
    ),
}
