"""Rules on the label map: its place in the brain and in the field of view, its size, its support in the images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.segmentation.quality.evidence import EVERY, Evidence
from glimpseg.segmentation.quality.finding import Finding, finding

SMALLEST_ML = 1.0
"""Tumours below this volume count as nothing found: shares of so few voxels say little."""
OUTSIDE_SHARE = 0.05
"""Share of the tumour outside the brain mask from which on a person should look."""
BORDER_MM = 4.5
"""Depth of the border of the brain: two voxels of 2 mm."""
BORDER_SHARE = 0.6
"""Share of the tumour within `BORDER_MM` of the outside of the brain from which on a person should look."""
CUT_MM2 = 300.0
"""Area of the tumour on a side where the brain ends flat from which on a person should look."""
FLAT_MM2 = 1200.0
"""Area of the brain on one side of its box from which on it ends flat there: it is cut, and does not taper off."""
BRAIN_SHARE = 0.22
"""Share of the brain that is tumour from which on a person should look."""
FAR_MM = 20.0
"""Distance from the largest part of the tumour from which on another part is far."""
FAR_ML = 5.0
"""Volume of far parts without support from which on a person should look."""
FAR_UNSEEN_ML = 10.0
"""The same if there is neither T2 nor FLAIR."""
UNSUPPORTED_SHARE = 0.5
"""Share of the tumour that is bright in neither T2 nor FLAIR from which on a person should look."""
BRIGHT_PERCENTILE = 75.0
"""Percentile of normal tissue above which a voxel counts as bright."""
MISSED_SIGMAS = 3.0
"""Distance from the median of normal tissue, in robust standard deviations, above which FLAIR is bright as a lesion."""
MISSED_ML = 12.0
"""Volume of the largest lesion-bright part outside the tumour from which on a person should look."""
MISSED_EMPTY_ML = 4.0
"""The same if no tumour was found."""
BEYOND = 1.25
"""Volume, as a multiple of the largest in training, from which on a person should look. The largest of a sample of the
training is smaller than the largest of all."""
SUPPORTING = (Modality.FLAIR, Modality.T2)
"""Sequences in which tumour and oedema are bright."""
TOO_SMALL = "too little tumour was found"
SIDES = (("left", "right"), ("back", "front"), ("lower", "upper"))
"""Names of the two ends of each axis of an RAS array."""


def outside_brain(evidence: Evidence) -> list[Finding] | str:
    """Judge the share of the tumour that lies outside the brain mask."""
    ml = evidence.ml(evidence.tumour & ~evidence.brain)
    total = evidence.ml(evidence.tumour)
    if total < SMALLEST_ML:
        return TOO_SMALL
    said = f"{ml:.1f} ml of the tumour ({100 * ml / total:.0f} %) lie outside the brain"
    return [finding("outside_brain", ml / total / OUTSIDE_SHARE, said)]


def brain_border(evidence: Evidence) -> list[Finding] | str:
    """Judge the share of the tumour that lies in the outermost millimetres of the brain."""
    tumour = evidence.tumour & evidence.brain
    if evidence.ml(tumour) < SMALLEST_ML:
        return TOO_SMALL
    share = float((evidence.depth_mm[tumour] <= BORDER_MM).mean())
    said = f"{100 * share:.0f} % of the tumour lie within {BORDER_MM:g} mm of the edge of the brain"
    return [finding("brain_border", share / BORDER_SHARE, said)]


def flat_sides(brain: Bool[np.ndarray, "x y z"], spacing_mm: float) -> dict[tuple[int, int], int]:
    """Return the sides where a brain mask ends flat: (axis, 0 or 1 for the end) to the index of its last plane."""
    found = {}
    for axis in range(3):
        areas = brain.sum(tuple({0, 1, 2} - {axis})) * spacing_mm**2
        filled = np.flatnonzero(areas)
        for end, plane in enumerate((filled[0], filled[-1]) if len(filled) else ()):
            # The outermost plane may be a rest of interpolation, so the second counts as well.
            inner = plane + (1 if end == 0 else -1)
            area = max(areas[plane], areas[inner] if areas[plane] > 0.5 * areas[inner] else 0)
            if area >= FLAT_MM2:
                found[axis, end] = int(plane)
    return found


def coverage_edge(evidence: Evidence) -> list[Finding] | str:
    """Judge the area with which the tumour lies on a side where the images of the brain end."""
    if evidence.ml(evidence.tumour) < SMALLEST_ML:
        return TOO_SMALL
    findings = []
    for (axis, end), plane in flat_sides(evidence.brain, evidence.spacing_mm).items():
        inner = plane + (1 if end == 0 else -1)
        area = evidence.tumour.take([plane, inner], axis).any(axis).sum() * evidence.spacing_mm**2
        said = f"the images end in the tumour: it reaches their {SIDES[axis][end]} edge with {area / 100:.1f} cm2"
        findings.append(finding("coverage_edge", area / CUT_MM2, said))
    return findings


def brain_share(evidence: Evidence) -> list[Finding] | str:
    """Judge the volume of the tumour as a share of the brain."""
    brain, tumour = evidence.ml(evidence.brain), evidence.ml(evidence.tumour)
    said = f"the tumour takes {100 * tumour / brain:.0f} % of the brain ({tumour:.0f} of {brain:.0f} ml)"
    return [finding("brain_share", tumour / brain / BRAIN_SHARE, said)]


def bright(evidence: Evidence) -> Bool[np.ndarray, "x y z"] | None:
    """Return the voxels that are bright in T2 or FLAIR: above the 75th percentile of normal tissue.

    The images are averaged over 27 voxels first. None if there is neither.
    """
    found = None
    for modality in SUPPORTING:
        if modality in evidence.images:
            image, inside = evidence.images[modality], evidence.inside[modality]
            normal = image[evidence.normal & inside]
            if not normal.size:
                continue
            here = ndimage.uniform_filter(image, 3) > np.percentile(normal, BRIGHT_PERCENTILE)
            found = here if found is None else found | here
    return found


def far_parts(evidence: Evidence) -> list[Finding] | str:
    """Judge the volume of the parts that lie far from the largest part and are bright in neither T2 nor FLAIR.

    A part is far if all of it is, and bright if half of it is.
    """
    if evidence.ml(evidence.tumour) < SMALLEST_ML:
        return TOO_SMALL
    numbers = np.arange(2, evidence.parts.max() + 1)
    if not len(numbers):
        return [finding("far_parts", 0.0, "no part is far")]
    support = bright(evidence)
    gaps = ndimage.minimum(evidence.from_main_mm, evidence.parts, numbers)
    bare = np.ones(len(numbers)) if support is None else ndimage.mean(~support, evidence.parts, numbers)
    chosen = numbers[(np.asarray(gaps) > FAR_MM) & (np.asarray(bare) > 0.5)]
    ml = evidence.ml(np.isin(evidence.parts, chosen))
    said = f"{ml:.0f} ml of the tumour lie more than {FAR_MM:.0f} mm from the largest part and "
    named = [m.title for m in SUPPORTING if m in evidence.images]
    said += f"are not bright in {' or '.join(named)}" if named else "there is no T2 or FLAIR to support them"
    return [finding("far_parts", ml / (FAR_UNSEEN_ML if support is None else FAR_ML), said)]


def unsupported(evidence: Evidence) -> list[Finding] | str:
    """Judge the share of the whole tumour that is bright in neither T2 nor FLAIR."""
    if evidence.ml(evidence.tumour) < SMALLEST_ML:
        return TOO_SMALL
    support = bright(evidence)
    if support is None:
        return "there is neither T2 nor FLAIR"
    share = float((~support[evidence.tumour]).mean())
    named = " or ".join(m.title for m in SUPPORTING if m in evidence.images)
    said = f"{100 * share:.0f} % of the tumour is not brighter than normal tissue in {named}"
    return [finding("unsupported", share / UNSUPPORTED_SHARE, said)]


def missed(evidence: Evidence) -> list[Finding] | str:
    """Judge the largest part of FLAIR that is bright as a lesion and not called tumour."""
    if Modality.FLAIR not in evidence.images:
        return "there is no FLAIR"
    image, inside = evidence.images[Modality.FLAIR], evidence.inside[Modality.FLAIR]
    ml = largest_bright_ml(image, inside & (evidence.depth_mm > BORDER_MM), evidence)
    empty = evidence.ml(evidence.tumour) < SMALLEST_ML
    nothing = "no tumour was found, and " if empty else ""
    said = f"{nothing}{ml:.0f} ml that are bright in FLAIR are not called tumour"
    return [finding("missed", ml / (MISSED_EMPTY_ML if empty else MISSED_ML), said)]


def largest_bright_ml(
    image: Float[np.ndarray, "x y z"], within: Bool[np.ndarray, "x y z"], evidence: Evidence
) -> float:
    """Return the volume in ml of the largest compact part that is bright as a lesion, outside the tumour."""
    normal = image[evidence.normal & within]
    if not normal.size:
        return 0.0
    middle = float(np.median(normal))
    sigma = 1.4826 * float(np.median(np.abs(normal - middle)))
    near = ndimage.binary_dilation(evidence.tumour, EVERY, 2)
    lesion = (image > middle + MISSED_SIGMAS * max(sigma, 1e-6)) & within & ~near
    parts, count = ndimage.label(ndimage.binary_opening(lesion))
    return float(np.bincount(parts.ravel())[1:].max()) * evidence.voxel_ml if count else 0.0


def volume_range(volumes_ml: Mapping[Region, float], largest_ml: Mapping[Region, float] | None) -> list[Finding] | str:
    """Judge the volumes against the largest of the studies that the model was trained on.

    Args:
        volumes_ml: Volume of each region.
        largest_ml: Largest volume of each region in training; None if it is not known.
    """
    if not largest_ml:
        return "the volumes in the model's training are not known"
    return [
        finding(
            "volume_range",
            volumes_ml[region] / most / BEYOND,
            f"the {region.title} has {volumes_ml[region]:.0f} ml, the largest in the model's training {most:.0f} ml",
        )
        for region, most in largest_ml.items()
        if region in volumes_ml and most > 0 and not math.isnan(most)
    ]
