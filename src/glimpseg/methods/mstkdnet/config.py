"""What can be set of MST-KDNet: its network, and the weight of each term."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

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
        for name in ("width", "groups", "token_width", "heads", "mlp_width", "layers", "style_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, not {getattr(self, name)}.")
        if self.layers % TAPS:
            raise ValueError(f"layers should be a multiple of {TAPS}, which are tapped, not {self.layers}.")
        if self.scale_width < 2 or self.scale_width % 2:
            raise ValueError(f"scale_width should be even and at least 2, not {self.scale_width}.")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp should lie between 0 and 1, not {self.ramp}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature should be above 0, not {self.temperature}.")
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
