"""Traits of `phantom-2`: what patients' heads, tumours and scans have and `phantom-1` lacks.

`draw_traits` applies them to a plan. Every field can be switched off by 0, for ablation.
"""

from __future__ import annotations

from dataclasses import dataclass

from glimpseg.phantom.variety import check_shares


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Strength of each trait, from 0 (none) to 1: a probability, or a share of the measured spread."""

    individuals: float = 0.0
    """Probability of an individual's head, if `Settings.anatomies` names a folder."""
    real_shapes: float = 0.0
    """Probability of a real tumour's shape, if `Settings.shapes` names a folder. A tumour after surgery is grown."""
    regions: float = 0.0
    """Width of T1 and T2 of deep grey matter, cerebellum and brainstem: standard deviation of the logarithm.

    0 gives these regions the values of white and grey matter.
    """
    uneven_grey: float = 0.0
    """Amount by which grey matter differs over the brain, alike on both sides, and the cerebellum from the cerebrum.

    In patients insula, hippocampus and cingulate cortex are brighter than other cortex on T2 and FLAIR.
    """
    sinuses: float = 0.0
    """Probability of venous sinuses: superior sagittal, straight, transverse and their confluence."""
    dura: float = 0.0
    """Probability that skull-stripping leaves parts of the dura over the convexity."""
    sheets: float = 0.0
    """Probability that falx and tentorium can be seen."""
    veins: float = 0.0
    """Amount of blood in the veins of the brain surface."""
    plexus: float = 0.0
    """Probability that the choroid plexus takes up contrast agent."""
    remains: float = 0.0
    """Probability that skull-stripping leaves tissue outside the brain, up to 5 mm thick."""
    lesions: float = 0.0
    """Probability that the white-matter lesions in an individual's label map are lesions, not white matter."""
    looks: float = 0.0
    """Probability that the label regions of a tumour have the measured signal, instead of that of the tissue tables."""
    spread: float = 0.0
    """Variation of the measured signal between cases, relative to that of the measured patients."""
    unevenness: float = 0.0
    """Variation of the measured signal inside a region, relative to that of the measured patients."""
    patchy: float = 0.0
    """Probability that oedema is uneven beyond the measured mean: nearly isointense beside bright parts."""
    filling: float = 0.0
    """Probability that a grown low-grade core fills its lesion: almost no oedema."""
    planes: float = 0.0
    """Probability that a two-dimensional sequence was scanned in sagittal or coronal slices of 3 to 6 mm."""
    gaps: float = 0.0
    """Probability of gaps between the slices of a coarse sequence, of 10 to 30 % of the slice."""
    unsuppressed: float = 0.0
    """Probability that FLAIR suppresses fluid badly."""
    twice: float = 0.0
    """Probability that a sequence was interpolated twice."""
    coarse_numbers: float = 0.0
    """Probability that a file has so few grey levels that white matter lies between 12 and 60."""

    def __post_init__(self) -> None:
        """Check that all fields lie between 0 and 1.

        Raises:
            ValueError: A field is out of range. The message names it.
        """
        check_shares(self)
