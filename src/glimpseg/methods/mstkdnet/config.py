"""Settings of MST-KDNet: network, and weight of each loss term."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

PATCH = 4
"""Side of a token's patch, in voxels of the deepest level. The UNETR block's upsampling is built for it."""
TAPS = 4
"""Number of transformer depths, equally far apart, whose output is used."""
RELEASED_ATTENTION = 1e8 / 120**4
"""Weight of the attention term in the authors' code, 1e8, converted for the 120 tokens of its only crop."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """MST-KDNet (Zhu et al., arXiv 2507.22626): settings of network and objective.

    The defaults correct the released code (see Departures); `OFFICIAL` is as released.
    """

    width: int = 16
    """Channels of the first level; doubled at each downsampling. Authors' code: 16."""
    blocks: tuple[int, ...] = (1, 2, 2, 4)
    """Residual blocks of each encoder level, finest first. Authors' code: 1, 2, 2, 4."""
    groups: int = 8
    """Groups of the U-Net's group norms. Authors' code: 8."""
    token_width: int = 768
    """Features of a token. Authors' code: 768."""
    heads: int = 12
    """Heads of the attention. Authors' code: 12."""
    mlp_width: int = 2048
    """Hidden units of a transformer's perceptron. Authors' code: 2048."""
    layers: int = 12
    """Layers of the transformer; the output of four of them, equally far apart, is used. Authors' code: 12."""
    scale_width: int = 64
    """Channels of the finest of the four distilled scales; the others have 2, 4 and 8 times as many. Authors' code: 64.
    """
    style_width: int = 64
    """Channels of the discriminator's first convolution. Authors' code: 64."""
    crop: tuple[int, int, int] = (160, 192, 128)
    """Sides of the crop, in voxels, for which each token has its own position embedding; best the recipe's patch. For
    other crops the embeddings are interpolated. Authors' code: 160 x 192 x 128, and no other."""
    dropout: float = 0.2
    """Dropout probability before the decoder. Authors' code: 0.2."""
    token_dropout: float = 0.1
    """Dropout probability, everywhere in the transformer. Authors' code: 0.1."""
    null_biases: bool = False
    """True keeps the biases before a norm or a softmax, which cancel them. Authors' code: true."""

    teacher: float = 0.4
    """Weight of the teacher's segmentation. Authors' code: 0.4."""
    student: float = 0.6
    """Weight of the student's segmentation. Authors' code: 0.6."""
    content: float = 0.2
    """Weight of the distance between contents. Authors' code: 0.2."""
    features: float = 0.2
    """Weight of MS-TKD's distance between scales. Authors' code: 0.2."""
    attention: float = RELEASED_ATTENTION
    """Weight of MS-TKD's distance between attentions, relative to even attention. Authors' code: the same at its only
    crop."""
    prediction: float = 10.0
    """Final weight of DMLD's distance between predictions. Authors' code: 10."""
    ramp: float = 0.2
    """Share of the training over which the weight of `prediction` rises. Authors' code: 20 of 100 epochs."""
    logits: float = 1.0
    """Weight of DMLD's divergence of standardised logits. Authors' code: 1."""
    temperature: float = 7.0
    """Temperature of the softmax in that divergence. Authors' code: 7."""
    standardise: Literal["depth", "class"] = "depth"
    """Axis along which logits are standardised: the last axis of the crop (`depth`, authors' code) or the classes
    (`class`, Sun et al., CVPR 2024, the source of this term)."""
    gram: float = 1.0
    """Weight of GSME's distance between cross-layer Gram matrices. Ours; commented out in the authors' code."""
    adversary: float = 2e-4
    """Weight of GSME's adversarial term. Authors' code: 2e-4."""
    adversary_rate: float = 1.0
    """Learning rate of the discriminator, as a multiple of the networks' rate. Authors' code: 1."""
    adversary_betas: tuple[float, float] = (0.9, 0.99)
    """Betas of the discriminator's Adam. Authors' code: these, but Adam is made anew at every step, which equals (0,
    0)."""
    detach_teacher: bool = False
    """True stops the gradient from the student to the teacher. Authors' code: false."""
    released_terms: bool = False
    """True repeats the errors of the released objective. For the background, the teacher's Dice replaces the student's
    Dice and the distance between predictions; in the divergence, teacher and student are exchanged."""

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
"""Settings of the released network and objective; the authors' weights fit it."""
LITE = Config(token_width=192, heads=3, mlp_width=512, layers=4, scale_width=16)
"""Settings of the same U-Net with a small transformer."""
