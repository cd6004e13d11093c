"""Settings of Vox-MMSD."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, kw_only=True, config=_STRICT)
class Intensities:
    """Random intensity changes of a view: probabilities, as the authors' code computes them, and ranges.

    Noise and shift are given as shares of the crop's intensity range.
    """

    noise_sd: float = 0.05
    """Standard deviation of Gaussian noise on every voxel. Authors' code: 0.05."""
    blur: float = 0.2
    """Probability that a view is blurred; then each modality with probability 1/2. Authors' code: 0.2 (it says 0.8)."""
    blur_voxels: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, in voxels. Authors' code."""
    gain: float = 0.15
    """Probability that a view is multiplied by a factor; then each modality with probability 1/2, all by the same
    factor. Authors' code: 0.15 (it says 0.85)."""
    gains: tuple[float, float] = (0.75, 1.25)
    """Range of that factor. Authors' code."""
    shift: float = 0.5
    """Probability that a view is shifted; then each modality with probability `shifted_share`. Authors' code: 0.5."""
    shifted_share: float = 0.8
    """Probability that a modality of a shifted view is shifted. Authors' code: 0.8."""
    largest_shift: float = 0.4
    """Largest shift; shifts are always upwards. Authors' code: 0.4."""
    contrast: float = 0.5
    """Probability that a view's contrast is changed; then every modality by its own factor about its mean. Authors'
    code: 0.5."""
    contrasts: tuple[float, float] = (0.75, 1.25)
    """Range of that factor; below and above 1 equally often. Authors' code."""
    gamma: float = 0.8
    """Probability that a modality's gamma is changed. Authors' code: 0.8."""
    exponents: tuple[float, float] = (0.7, 1.5)
    """Range of gamma. Authors' code."""


@validated(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """Vox-MMSD (Zhou et al., JBHI 2025): settings of the objective.

    The defaults correct the released code (see Departures); `OFFICIAL` is as released.
    """

    scaling: Literal["study", "crop"] = "study"
    """Scale of the intensities: as the study's preparation left them, which is also the scale of the fine-tuning
    (`study`), or from 0 to 1 over each crop, where one voxel differs between the views (`crop`, authors' code)."""
    block: int = Field(default=16, gt=0)
    """Side of a block that is hidden or shown, in voxels. Authors' code: 16."""
    hidden: float = 0.875
    """Probability that a block of one modality is hidden. Authors' code: 0.875."""
    footprint: Literal["uniform", "zoom"] = "uniform"
    """Shape of the blocks: all alike (`uniform`), or those on the crop's faces half as thick and the others larger
    (`zoom`, authors' code)."""
    intensities: Intensities = Intensities()
    hide_last: bool = False
    """True hides blocks after the intensity changes, which makes hidden voxels 0. Authors' code: before."""
    voxels: int = Field(default=1024, gt=0)
    """Number of voxel pairs of each study. Authors' code: 1024."""
    by_channel: bool = False
    """True draws a voxel with a probability proportional to the number of its modalities that are not 0. Authors' code:
    true."""
    embedding: int = Field(default=512, gt=0)
    """Length of the embedding of a voxel. Authors' code: 512."""
    train_heads: bool = True
    """True trains projector and restorer. Authors' code: they keep their random weights."""
    distillation: float = 1.0
    """Weight of the distillation term. Authors' code: 1."""
    restoration: float = 1.0
    """Weight of the restoration term. Authors' code: 1."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the student's softmax. Authors' code: 0.1."""
    temperatures: tuple[float, float] = (0.04, 0.07)
    """Temperature of the teacher's softmax, at the beginning and after `warming`. Authors' code."""
    warming: float = 19 / 300
    """Share of the training over which the teacher's temperature rises. Authors' code: 19 of 300 blocks of steps."""
    momentum: float = 0.996
    """Momentum of the teacher's weights at the beginning; it rises to 1 along half a cosine. Authors' code: 0.996."""
    centre_momentum: float = 0.9
    """Momentum of the centre of the teacher's embeddings. Authors' code: 0.9."""
    epoch: int = Field(default=1, gt=0)
    """Steps between two changes of temperature and momentum. Authors' code: 200."""
    ahead: int = 0
    """Steps by which the temperature is ahead. Authors' code: 200; the first temperature is never used."""

    def __post_init__(self) -> None:
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden should be at least 0 and below 1, not {self.hidden}: something has to be seen.")
        if min(self.temperatures) <= 0:
            raise ValueError(f"temperatures should be above 0, not {self.temperatures}.")


OFFICIAL = Config(
    scaling="crop", footprint="zoom", by_channel=True, train_heads=False, epoch=200, ahead=200
)  # fmt: skip
"""Settings of the released pretraining."""
