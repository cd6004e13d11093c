"""Findings of the rules, and the review of one segmentation that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HIGHEST_SCORE = 9.0
"""Largest score of a finding; what is farther from the threshold is no more doubtful."""
LOOK = "Look at this one: "
"""Beginning of a sentence about a finding, in the log."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measurement of a rule on a segmentation."""

    code: str
    """Name of the rule: `far_parts`."""
    score: float
    """Measured value as a share of the threshold: from 1 on, a person should look. 0 to `HIGHEST_SCORE`."""
    sentence: str
    """Reason in words, without a final stop and without names of files or patients."""

    @property
    def look(self) -> bool:
        """True if the score reaches the threshold."""
        return self.score >= 1


@dataclass(frozen=True, kw_only=True)
class Review:
    """Review of one segmentation: is there a reason to look at it?"""

    findings: tuple[Finding, ...]
    """Findings that reach their threshold, at most one of each rule, the highest score first."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Highest score of each rule that could judge, by its code."""
    not_judged: Mapping[str, str] = field(default_factory=dict)
    """Reason why a rule could not judge, by its code."""

    @property
    def look(self) -> bool:
        """True if any rule has a reason to look at the segmentation."""
        return bool(self.findings)

    @property
    def score(self) -> float:
        """Highest score of all rules; below 1 if there is no reason to look."""
        return max(self.scores.values(), default=0.0)

    @property
    def sentences(self) -> list[str]:
        """One sentence for each finding: `Look at this one: ...`; empty if there is no reason to look."""
        return [f"{LOOK}{finding.sentence}." for finding in self.findings]

    def as_tree(self) -> dict[str, Any]:
        """Return the content for JSON; scores have three decimals."""
        return {
            "look": self.look,
            "score": round(self.score, 3),
            "findings": [
                {"code": one.code, "score": round(one.score, 3), "sentence": one.sentence} for one in self.findings
            ],
            "scores": {code: round(score, 3) for code, score in self.scores.items()},
            "not_judged": dict(self.not_judged),
        }


def finding(code: str, score: float, sentence: str) -> Finding:
    """Return a finding, with its score limited to 0 to `HIGHEST_SCORE`."""
    return Finding(code=code, score=float(min(max(score, 0.0), HIGHEST_SCORE)), sentence=sentence)


def review_of(findings: Mapping[str, list[Finding] | str]) -> Review:
    """Return the review that the findings of each rule make; a text is the reason why a rule could not judge."""
    judged = {code: found for code, found in findings.items() if not isinstance(found, str)}
    highest = [max(found, key=lambda one: one.score) for found in judged.values() if found]
    return Review(
        findings=tuple(sorted((one for one in highest if one.look), key=lambda one: -one.score)),
        scores={code: max((one.score for one in found), default=0.0) for code, found in judged.items()},
        not_judged={code: found for code, found in findings.items() if isinstance(found, str)},
    )
