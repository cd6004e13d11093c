"""What of Vox-MMSD can be changed."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, kw_only=True, config=_STRICT)
class Intensities:
    """How strongly the intensities of a view are changed: probabilities that something happens, as the authors' code
    comes to, and its range. Sizes of noise and shift are shares of the crop's range of intensities."""

    noise_sd: float = 0.05
    """Standard deviation of Gaussian noise on every voxel. Authors' code: 0.05."""
    blur: float = 0.2
    """Of the view; then each modality half of the time. Authors' code: 0.2 (it says 0.8)."""
    blur_voxels: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the Gaussian. Authors' code."""
    gain: float = 0.15
    """Of the view; then each modality half of the time, all by the same factor. Authors' code: 0.15 (it says 0.85)."""
    gains: tuple[float, float] = (0.75, 1.25)
    """Authors' code."""
    shift: float = 0.5
    """Of the view; then each modality with `shifted_share`. Authors' code: 0.5."""
    shifted_share: float = 0.8
    """Authors' code: 0.8."""
    largest_shift: float = 0.4
    """Shifts are upwards alone. Authors' code: 0.4."""
    contrast: float = 0.5
    """Of the view; then every modality by its own factor about its mean. Authors' code: 0.5."""
    contrasts: tuple[float, float] = (0.75, 1.25)
    """Below and above 1 equally often. Authors' code."""
    gamma: float = 0.8
    """Of each modality. Authors' code: 0.8."""
    exponents: tuple[float, float] = (0.7, 1.5)
    """Authors' code."""


@validated(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """Vox-MMSD (Zhou et al., JBHI 2025). The defaults mend the released code; `OFFICIAL` is as released."""

    scaling: Literal["study", "crop"] = "study"
    """Intensities as the study's preparation left them and as they are fine-tuned, or from 0 to 1 over each crop, so
    that one voxel differs between the views (authors' code)."""
    block: int = Field(default=16, gt=0)
    """Side of a block that is hidden or shown, in voxels. Authors' code: 16."""
    hidden: float = 0.875
    """Probability that a block of one modality is hidden. Authors' code: 0.875."""
    footprint: Literal["uniform", "zoom"] = "uniform"
    """Blocks all alike, or those on the crop's faces half as thick and the others larger (authors' code)."""
    intensities: Intensities = Intensities()
    hide_last: bool = False
    """Hide blocks after the intensities are changed, so that what is hidden is 0. Authors' code: before."""
    voxels: int = Field(default=1024, gt=0)
    """Pairs of voxels of each study. Authors' code: 1024."""
    by_channel: bool = False
    """Whether a voxel is as likely to be drawn as it has modalities that differ from 0. Authors' code: yes."""
    embedding: int = Field(default=512, gt=0)
    """Numbers that a voxel's features become. Authors' code: 512."""
    train_heads: bool = True
    """Whether projector and restorer learn. Authors' code: they keep their random weights."""
    distillation: float = 1.0
    """Weight of the term. Authors' code: 1."""
    restoration: float = 1.0
    """Weight of the term. Authors' code: 1."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Authors' code: 0.1."""
    temperatures: tuple[float, float] = (0.04, 0.07)
    """Of the teacher, at the beginning and after `warming`. Authors' code."""
    warming: float = 19 / 300
    """Share of the training over which the teacher's temperature rises. Authors' code: 19 of 300 blocks of steps."""
    momentum: float = 0.996
    """Of the teacher's weights at the beginning; it rises to 1 along half a cosine. Authors' code: 0.996."""
    centre_momentum: float = 0.9
    """Authors' code: 0.9."""
    epoch: int = Field(default=1, gt=0)
    """Steps between changes of temperature and momentum. Authors' code: 200."""
    ahead: int = 0
    """Steps that the temperature runs ahead. Authors' code: 200, the first temperature is never used."""

    def __post_init__(self) -> None:
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden should be at least 0 and below 1, not {self.hidden}: something has to be seen.")
        if min(self.temperatures) <= 0:
            raise ValueError(f"temperatures should be above 0, not {self.temperatures}.")


OFFICIAL = Config(
    scaling="crop", footprint="zoom", by_channel=True, train_heads=False, epoch=200, ahead=200
)  # fmt: skip
"""The released pretraining."""
