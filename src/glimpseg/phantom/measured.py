"""Signal of tumour regions, measured on labelled patients.

The patients are the six BraTS 2021 cases 01478, 01479, 01480, 01481, 01657 and 01660, BraTS 2013 pat0001_1 and MSD
BRATS_009, with labels of experts, and TCGA-DU-7294 with labels of programs (8 for T1 and T2, 9 for T1c and FLAIR; 6 and
7 for enhancing tumour). Values are in robust standard deviations of the normal brain (0.7413 times the interquartile
range) from its median; the normal brain is at least 5 mm from every label. `benchmarks/realism.py` measures them.
Correlations over so few cases were shrunk towards 0 (Schaefer and Strimmer 2005). In MSD_BRATS_009 the normal brain
hardly varies on T2; it was left out of the means on T2.
"""

from __future__ import annotations

from dataclasses import dataclass

from glimpseg.phantom.plan import Four
from glimpseg.region import Label

Correlation = tuple[Four, Four, Four, Four]


@dataclass(frozen=True, kw_only=True)
class MeasuredLook:
    """Distribution of a region's signal over patients. Values in the order of `Modality`: T1, T1c, T2, FLAIR."""

    means: Four
    between: Four
    """Standard deviation of the mean between patients."""
    correlation: Correlation
    """Correlation of the means between the sequences, over patients."""
    coarse: Four
    """Standard deviation inside the region after a blur of 3 mm."""
    fine: Four
    """Standard deviation inside the region of what the blur removes."""
    together: Correlation
    """Correlation of the coarse variation between the sequences, inside the region."""


_CORE = MeasuredLook(
    means=(-0.52, -0.66, 2.3, 3.1),
    between=(0.69, 0.81, 1.0, 2.1),
    correlation=((1, 0.68, 0.07, 0.46), (0.68, 1, 0.04, 0.37), (0.07, 0.04, 1, 0.28), (0.46, 0.37, 0.28, 1)),
    coarse=(0.47, 0.53, 0.80, 0.96),
    fine=(0.28, 0.47, 0.50, 0.60),
    together=((1, 0.70, -0.20, 0.30), (0.70, 1, -0.25, 0.20), (-0.20, -0.25, 1, 0.37), (0.30, 0.20, 0.37, 1)),
)
_LOW_GRADE_CORE = MeasuredLook(
    means=(-0.53, -0.53, 2.1, 2.7),
    between=(0.56, 0.89, 1.2, 1.2),
    correlation=_CORE.correlation,
    coarse=(0.33, 0.37, 0.46, 0.65),
    fine=(0.21, 0.31, 0.31, 0.48),
    together=_CORE.together,
)
_OEDEMA = MeasuredLook(
    means=(0.09, -0.05, 1.45, 3.5),
    between=(0.24, 0.40, 0.70, 1.5),
    correlation=((1, 0.62, -0.24, -0.04), (0.62, 1, -0.62, -0.35), (-0.24, -0.62, 1, 0.52), (-0.04, -0.35, 0.52, 1)),
    coarse=(0.41, 0.36, 0.59, 0.69),
    fine=(0.23, 0.30, 0.49, 0.62),
    together=((1, 0.64, -0.14, 0.21), (0.64, 1, -0.15, 0.08), (-0.14, -0.15, 1, 0.51), (0.21, 0.08, 0.51, 1)),
)
_ENHANCING = MeasuredLook(
    means=(0.07, 3.46, 2.2, 3.5),
    between=(0.44, 0.80, 1.1, 1.9),
    correlation=((1, 0.32, 0.27, 0.42), (0.32, 1, -0.25, 0.12), (0.27, -0.25, 1, 0.30), (0.42, 0.12, 0.30, 1)),
    coarse=(0.34, 0.79, 0.62, 0.81),
    fine=(0.28, 0.97, 0.50, 0.62),
    together=((1, 0.08, -0.23, 0.35), (0.08, 1, 0.19, 0.04), (-0.23, 0.19, 1, 0.48), (0.35, 0.04, 0.48, 1)),
)
LOOKS: dict[tuple[Label, bool], MeasuredLook] = {
    (Label.NCR, False): _CORE,
    (Label.NCR, True): _LOW_GRADE_CORE,
    (Label.ED, False): _OEDEMA,
    (Label.ED, True): _OEDEMA,
    (Label.ET, False): _ENHANCING,
    (Label.ET, True): _ENHANCING,
}
"""Measured signal of a label region; True for low-grade tumours (less than 1.3 ml of enhancement, three patients)."""
SHARED = 0.45
"""Share of the variance between patients that is common to all regions of a tumour (measured on T2 and FLAIR)."""
