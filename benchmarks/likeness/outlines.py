"""Statistics of the regions' outlines: edges, volumes and shapes."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from glimpseg.region import Region
from likeness.cases import Case, bounding_box
from likeness.lesions import FEWEST_ML, Statistics

REGIONS = (Region.WT, Region.TC, Region.ET)
SHELL_MM = (1.0, 3.0)
"""Distances from the border between which the inner and the outer level of an edge are taken."""


def outline_statistics(case: Case) -> Statistics:
    """Measure the edges and the shapes of a tumour's regions."""
    return edges(case) | shapes(case)


def edges(case: Case) -> Statistics:
    """Measure the border of each region, with names `edge/region step/sequence` and `edge/region slope/sequence`.

    `step` is the mean 1 to 3 mm inside less that 1 to 3 mm outside. `slope` is the median gradient at the border, a mm.
    """
    found: Statistics = {}
    near, far = SHELL_MM
    for region in REGIONS:
        mask = region.mask(case.labels) & case.brain
        if mask.sum() * case.millilitres < FEWEST_ML:
            continue
        margin = math.ceil(far / case.spacing_mm) + 2
        box = tuple(
            slice(max(part.start - margin, 0), min(part.stop + margin, extent))
            for part, extent in zip(bounding_box(mask), mask.shape, strict=True)
        )
        mask, brain = mask[box], case.brain[box]
        within = ndimage.distance_transform_edt(mask, sampling=case.spacing_mm)
        beyond = ndimage.distance_transform_edt(~mask, sampling=case.spacing_mm)
        inner, outer = (within > near) & (within <= far), (beyond > near) & (beyond <= far) & brain
        border = mask & (within <= case.spacing_mm) & ndimage.binary_erosion(brain)
        if not (inner.any() and outer.any() and border.any()):
            continue
        for modality, image in case.images.items():
            slope = np.sqrt(sum(part**2 for part in np.gradient(image[box], case.spacing_mm)))
            step = float(image[box][inner].mean() - image[box][outer].mean())
            found[f"edge/{region.name} step/{modality.title}"] = step
            found[f"edge/{region.name} slope/{modality.title}"] = float(np.median(slope[border]))
    return found


def shapes(case: Case) -> Statistics:
    """Measure volumes, shares, compactness (1 for a ball; counted in faces of voxels, 0.67) and parts of regions."""
    found: Statistics = {}
    volumes = {region: int(region.mask(case.labels).sum()) for region in REGIONS}
    found |= {f"shape/{region.name} ml": count * case.millilitres for region, count in volumes.items()}
    if volumes[Region.WT]:
        found["shape/TC:WT"] = volumes[Region.TC] / volumes[Region.WT]
    if volumes[Region.TC]:
        found["shape/ET:TC"] = volumes[Region.ET] / volumes[Region.TC]
    for region, count in volumes.items():
        if count * case.millilitres < FEWEST_ML:
            continue
        mask = np.pad(region.mask(case.labels)[bounding_box(region.mask(case.labels))], 1)
        faces = sum(int((np.diff(mask.astype(np.int8), axis=axis) != 0).sum()) for axis in range(3))
        found[f"shape/{region.name} compactness"] = float(36 * math.pi * count**2) ** (1 / 3) / faces
        found[f"shape/{region.name} parts"] = float(ndimage.label(mask)[1])
    return found
