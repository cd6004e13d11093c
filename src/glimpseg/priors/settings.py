"""Settings of a recipe's prior: which kind, and how it is made."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Prior:
    """Settings of the prior label maps, one for each sequence of each training study; segmenting needs none."""

    kind: Literal["none", "sam", "synthetic"] = "none"
    """Kind of prior. `sam`: a frozen image encoder of the Segment Anything Model and small decoders; no decoder has
    learned from the reference of the study it is used on. `synthetic`: the reference with its boundaries moved, for
    tests and as an upper bound only."""
    weights: str | None = None
    """Weights of `sam`: a folder in Hugging Face's layout (`sam-vit-base`, `medsam-vit-base`), or an original `.pth`
    file."""
    side: int = 256
    """Side of the square slices of `sam`, in pixels. Position embeddings are interpolated where the weights are for
    another side (1024)."""
    scaling: Literal["imagenet", "unit"] = "imagenet"
    """Intensity scale of `sam`: from 0 to 1, then by ImageNet's mean and standard deviation, as SAM was trained
    (`imagenet`), or from 0 to 1 only, for MedSAM (`unit`)."""
    folds: int = 5
    """Number of folds of the training list for `sam`, by patient; a study's prior comes from decoders that were trained
    on the other folds."""
    steps: int = 400
    """Optimiser steps of each decoder of `sam`."""
    boundary_mm: float = 3.0
    """Standard deviation of the boundary's movement in `synthetic`, in mm."""
    dropped: float = 0.1
    """Probability that a sequence of `synthetic` lacks a label; for each of NCR, ED and ET by itself."""
    seed: int = 0
    """Seed of the decoders of `sam`, or of the movements of `synthetic`."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds should be at least 2, not {self.folds}.")
        if self.side < 32 or self.side % 16:
            raise ValueError(f"side should be a multiple of 16 and at least 32, not {self.side}.")
        if self.steps < 1:
            raise ValueError(f"steps should be at least 1, not {self.steps}.")
        if self.boundary_mm < 0 or not 0 <= self.dropped <= 1:
            raise ValueError(
                f"boundary_mm should not be negative and dropped lie between 0 and 1, not {self.boundary_mm} and "
                f"{self.dropped}."
            )

    @property
    def uses_reference(self) -> bool:
        """True if a study's own reference shapes its prior."""
        return self.kind == "synthetic"
