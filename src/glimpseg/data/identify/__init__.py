"""Identify which series of a study are T1, T1c, T2 and FLAIR, from headers, sidecars and names, with reasons."""

from glimpseg.data.identify.evidence import Evidence
from glimpseg.data.identify.folder import identify, identify_series
from glimpseg.data.identify.identification import Identification
from glimpseg.data.identify.rules import Rules, packaged_rules, rules_with
from glimpseg.data.identify.series_json import read_series_json
from glimpseg.data.identify.verdict import TIE_RULES, SeriesVerdict, Tie, judge_series

__all__ = [
    "TIE_RULES",
    "Evidence",
    "Identification",
    "Rules",
    "SeriesVerdict",
    "Tie",
    "identify",
    "identify_series",
    "judge_series",
    "packaged_rules",
    "read_series_json",
    "rules_with",
]  # fmt: skip
