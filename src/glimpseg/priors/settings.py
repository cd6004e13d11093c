"""Which prior a recipe asks for, and how it is made."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Prior:
    """A label map for each sequence of each study of the training list; none is needed to segment."""

    kind: Literal["none", "sam", "synthetic"] = "none"
    """`sam`: a frozen image encoder of the Segment Anything Model and small decoders, none of which has seen the
    reference of the study it is used on. `synthetic`: the reference itself, spoiled: for tests and as an upper bound
    only."""
    weights: str | None = None
    """For `sam`: a folder in Hugging Face's layout (`sam-vit-base`, `medsam-vit-base`), or an original `.pth`."""
    side: int = 256
    """For `sam`: pixels along a slice's sides; positions are interpolated where the weights are for others (1024)."""
    scaling: Literal["imagenet", "unit"] = "imagenet"
    """For `sam`: whether intensities from 0 to 1 are then scaled by ImageNet's mean and deviation, as SAM was trained;
    MedSAM: unit."""
    folds: int = 5
    """For `sam`: parts of the list, by patient; a study's prior comes from decoders that were trained on the others."""
    steps: int = 400
    """For `sam`: of each decoder's training."""
    boundary_mm: float = 3.0
    """For `synthetic`: how far boundaries are moved, in standard deviations."""
    dropped: float = 0.1
    """For `synthetic`: probability that a sequence does not show a label."""
    seed: int = 0

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
        """Whether a study's own reference shapes its prior."""
        return self.kind == "synthetic"
