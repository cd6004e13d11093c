"""The prior that knows too much: a study's own reference with its boundaries moved, for tests and as an upper bound."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from glimpseg.priors.settings import Prior
from glimpseg.region import Label, Region

SMOOTH = 4.0
"""Correlation length of the boundary's movement, as a multiple of its size."""
NESTED = ((Region.WT, Label.ED), (Region.TC, Label.NCR), (Region.ET, Label.ET))
"""Regions from the outside in, and the label of what is in no further one."""


def spoiled(
    reference: UInt8[np.ndarray, "x y z"], spacing_mm: float, settings: Prior, rng: np.random.Generator
) -> UInt8[np.ndarray, "x y z"]:
    """The reference as one sequence may show it: the border of each region moved by a smooth field, now and then a
    label missing. Regions stay nested; a cavity stays where it was."""
    found = np.where(reference == Label.RC, np.uint8(Label.RC), np.uint8(0))
    allowed = found == 0
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
        found[allowed] = label
    for label in (Label.NCR, Label.ED, Label.ET):
        if rng.random() < settings.dropped:
            found[found == label] = 0
    return found
