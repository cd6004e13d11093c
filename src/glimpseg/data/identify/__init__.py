"""Which series of a visit is T1, T1c, T2 or FLAIR, and why: by what headers, sidecars and names say."""

from glimpseg.data.identify.evidence import Evidence
from glimpseg.data.identify.finding import identify, identify_series
from glimpseg.data.identify.identification import Identification
from glimpseg.data.identify.rules import Rules, packaged_rules, rules_with
from glimpseg.data.identify.series_file import read_series_json
from glimpseg.data.identify.verdict import STEPS, Finding, Tie, verdicts

__all__ = [
    "STEPS", "Evidence", "Finding", "Identification", "Rules", "Tie", "identify", "identify_series", "packaged_rules",
    "read_series_json", "rules_with", "verdicts",
]  # fmt: skip
