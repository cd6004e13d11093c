"""Result of one check on raw images: a verdict and its evidence."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """Answer of a check: yes, no, or unsure."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


@dataclass(frozen=True, kw_only=True)
class RawCheck:
    """Verdict of one check, with the evidence for it in words."""

    verdict: Verdict
    evidence: tuple[str, ...]
    """One phrase for each property that was measured. It contains no patient data and may be logged."""
    shift_mm: float | None = None
    """Translation between two images in mm, measured at the image centre; None for other checks."""
    turn_degrees: float | None = None
    """Rotation between two images in degrees; None for other checks, or if it cannot be measured."""

    @property
    def text(self) -> str:
        """Verdict and evidence in one line."""
        return f"{self.verdict.value}: {'; '.join(self.evidence)}"
