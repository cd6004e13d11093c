"""Populations by name: the settings that phantoms of a population are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glimpseg.phantom.traits import Traits
from glimpseg.phantom.variety import SHIFTED, STANDARD, WIDE

PATIENTS_VARIETY = replace(WIDE, vessels=0.25, sequences=0.15, coarse=0.65, registration=0.25, strip=0.2)
"""Variety of `patients`: that of `WIDE` with coarser scans; `Traits` take the place of its membranes and veins."""
PATIENTS_TRAITS = Traits(
    individuals=0.9, real_shapes=0.6, regions=0.04, uneven_grey=1.0, sinuses=0.9, dura=0.6, sheets=0.7, veins=0.6,
    plexus=0.8, remains=0.25, lesions=0.4, looks=0.85, spread=1.0, unevenness=1.0, patchy=0.3, filling=0.4,
    planes=0.12, gaps=0.3, unsuppressed=0.03, twice=0.3, coarse_numbers=0.08,
)  # fmt: skip
BEYOND_VARIETY = replace(SHIFTED, vessels=0.3, coarse=0.7, registration=0.3, strip=0.25)
BEYOND_TRAITS = replace(
    PATIENTS_TRAITS, spread=1.0, patchy=0.45, planes=0.25, gaps=0.4, unsuppressed=0.08, twice=0.4, coarse_numbers=0.12
)

POPULATIONS: Mapping[str, Mapping[str, Any]] = {
    "standard": {"variety": STANDARD},
    "wide": {"variety": WIDE},
    "shifted": {"variety": SHIFTED},
    "patients": {"variety": PATIENTS_VARIETY, "traits": PATIENTS_TRAITS, "low_grade": 0.35, "noise": (0.006, 0.03)},
    "beyond": {"variety": BEYOND_VARIETY, "traits": BEYOND_TRAITS, "low_grade": 0.35, "noise": (0.006, 0.03)},
}
"""Changes of `Settings`. `standard`, `wide` and `shifted` are populations of `phantom-1`, the others of `phantom-2`.

`patients` is for training. `beyond` is held out: more of its scans are unusual, and a share of its numbers lies outside
the range of `patients`.
"""
