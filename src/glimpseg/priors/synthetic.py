"""Synthetic prior: a study's own reference with its boundaries moved, for tests and as an upper bound."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from glimpseg.priors.settings import Prior
from glimpseg.region import Label, Region

SMOOTH = 4.0
"""Correlation length of the boundary's movement, as a multiple of its standard deviation (or of a larger voxel)."""
NESTED = ((Region.WT, Label.ED), (Region.TC, Label.NCR), (Region.ET, Label.ET))
"""Regions, outermost first, and the label of voxels that lie in no region further in."""


def perturbed_reference(
    reference: UInt8[np.ndarray, "x y z"], spacing_mm: float, settings: Prior, rng: np.random.Generator
) -> UInt8[np.ndarray, "x y z"]:
    """Return the reference as one sequence may show it.

    The border of each region is moved by a smooth random field. Each of NCR, ED and ET becomes background with
    probability `dropped`. Regions stay nested; a cavity stays where it was.

    Args:
        reference: labels of the study.
        spacing_mm: side of a voxel, in mm.
        settings: `boundary_mm` and `dropped` are used.
        rng: source of random numbers; advances.
    """
    labels = np.where(reference == Label.RC, np.uint8(Label.RC), np.uint8(0))
    allowed = labels == 0
    for region, label in NESTED:
        field = ndimage.gaussian_filter(
            rng.standard_normal(reference.shape), SMOOTH * max(settings.boundary_mm, spacing_mm) / spacing_mm
        )
        moved = settings.boundary_mm * field / max(float(field.std()), 1e-12)
        inside = region.mask(reference)
        if inside.any():
            outwards = ndimage.distance_transform_edt(~inside, spacing_mm)
            inwards = ndimage.distance_transform_edt(inside, spacing_mm)
            allowed = allowed & (np.asarray(inwards) - np.asarray(outwards) > moved)
        else:
            allowed = np.zeros_like(allowed)
        labels[allowed] = label
    for label in (Label.NCR, Label.ED, Label.ET):
        if rng.random() < settings.dropped:
            labels[labels == label] = 0
    return labels
