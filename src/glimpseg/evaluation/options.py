"""Options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glimpseg.data.notices import StudyNotices
from glimpseg.modality import SUBSETS, Modality
from glimpseg.results.scores import METRICS


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation: the rules, and what is scored."""

    protocol: str = "clinical"
    """Name of the evaluation protocol: `clinical`, or `rfnet` to compare with published tables only."""
    subsets: Sequence[Modality] = SUBSETS
    """Subsets of sequences to score; a study is scored on those that it has. Default: all 15."""
    metrics: Sequence[str] = tuple(METRICS)
    """Names of metrics from `glimpseg.results.scores.METRICS`. Default: all."""
    split: str | None = None
    """Name of a published list of studies (`brats2020-1/test`), for the record. A folder of studies is restricted to
    that list; studies that are given one by one are not."""
    found: StudyNotices | None = None
    """Warnings and notes of the search for the studies, for the record; None if there was no search."""


DEFAULTS = EvaluationOptions()
"""Every subset and metric under the protocol `clinical`."""
