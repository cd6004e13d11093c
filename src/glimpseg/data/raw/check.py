"""What was found out about images, how sure it is, and why."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """An answer that may stay open."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


@dataclass(frozen=True, kw_only=True)
class RawCheck:
    """A verdict with its evidence in words."""

    verdict: Verdict
    evidence: tuple[str, ...]
    """One sentence or part of one for each thing that was looked at; fit for a log."""
    shift_mm: float | None = None
    """How far the centre of one image lies from its place in the other, if that was asked."""
    turn_degrees: float | None = None
    """By how much it is turned, if that was asked and can be told."""

    @property
    def text(self) -> str:
        """The verdict and why, in one line."""
        return f"{self.verdict.value}: {'; '.join(self.evidence)}"
