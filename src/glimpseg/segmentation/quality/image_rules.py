"""Rules on the images: brain mask, coverage, intensities, noise."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg.data.brains import CHECK
from glimpseg.data.identify.appearance import KINDS, AppearanceModel, appearance_model
from glimpseg.modality import Modality
from glimpseg.segmentation.quality.alignment import ranks
from glimpseg.segmentation.quality.evidence import Evidence
from glimpseg.segmentation.quality.finding import Finding, finding

BRAIN_ML = (700.0, 2100.0)
"""Smallest and largest brain of a whole head."""
BRAIN_SIDES_MM = ((105.0, 165.0), (135.0, 200.0), (95.0, 165.0))
"""Smallest and largest extent of a brain along left-right, front-back and up-down."""
AXES = ("left-right", "front-back", "up-down")
LEAST_COVERED = 0.85
"""Share of the brain that a sequence shows, and share of the tumour, below which a person should look."""
DEEP_MM = 6.0
"""Depth in the brain from which on noise, grey levels and fields are measured."""
FARTHEST_HISTOGRAM = 2.2
"""Distance of the histogram and contrast of an image from those of phantoms from which on a person should look."""
MOST_NOISE = 0.33
"""Noise, as a share of the spread (IQR) of the tissue, from which on a person should look."""
LEAST_NOISE = 0.01
"""The same below which an image is blurred."""
MOST_EQUAL = 0.15
"""Share of equal neighbours from which on a person should look."""
STRONGEST_TREND = 0.65
"""Share of the variance of normal tissue that a linear trend explains from which on a person should look."""
BRIGHTEST_RIM = 0.65
"""Median rank of the outermost tissue in T1, T1c and FLAIR from which on a person should look. Cortex and fluid are
dark there; scalp is bright. Measured: at most 0.5."""
RIM_SEQUENCES = (Modality.T1, Modality.T1C, Modality.FLAIR)
RIM_MM = 4.5
"""Depth of the outermost tissue."""
FEWEST_VOXELS = 50
"""Fewest voxels for a trend."""


def brain_volume(evidence: Evidence) -> list[Finding] | str:
    """Judge the volume of the brain, if the field of view holds a whole head."""
    if not evidence.whole_head:
        return "the field of view holds no whole head"
    ml, (least, most) = evidence.ml(evidence.brain), BRAIN_ML
    said = f"the brain mask has {ml:.0f} ml, and brains have {least:.0f} to {most:.0f}"
    return [finding("brain_volume", max(least / max(ml, 1e-3), ml / most), said)]


def brain_shape(evidence: Evidence) -> list[Finding] | str:
    """Judge the extent of the brain along each axis, if the field of view holds a whole head."""
    if not evidence.whole_head:
        return "the field of view holds no whole head"
    findings = []
    for axis, (least, most) in enumerate(BRAIN_SIDES_MM):
        planes = np.flatnonzero(evidence.brain.any(tuple({0, 1, 2} - {axis})))
        mm = float(planes[-1] - planes[0] + 1) * evidence.spacing_mm
        said = f"the brain mask is {mm:.0f} mm long {AXES[axis]}, and brains have {least:.0f} to {most:.0f} mm"
        findings.append(finding("brain_shape", max(least / mm, mm / most), said))
    return findings


def doubtful_mask(evidence: Evidence) -> list[Finding] | str:
    """Judge the warnings that the brain of a sequence was found by a threshold, or not at all."""
    doubtful = [warning for warning in evidence.warnings if CHECK in warning]
    named = [m.title for m in evidence.images if any(f" {m.title}: " in f" {warning}" for warning in doubtful)]
    said = f"the brain mask of {' and '.join(named) or 'a sequence'} is doubtful: its air is not one value"
    return [finding("doubtful_mask", 1.0 if doubtful else 0.0, said)]


def bright_rim(evidence: Evidence) -> list[Finding] | str:
    """Judge the brightness of the outermost tissue in T1, T1c and FLAIR: scalp or skull that was left on is bright."""
    rim = evidence.normal & (evidence.depth_mm <= RIM_MM)
    shown = [modality for modality in RIM_SEQUENCES if modality in evidence.images]
    if not shown:
        return "there is neither T1, T1c nor FLAIR"
    found = {m: rim_rank(evidence.images[m], evidence.inside[m], rim) for m in shown}
    return [
        finding("bright_rim", rank / BRIGHTEST_RIM, f"the edge of the brain is bright in {m.title}: skull or scalp")
        for m, rank in found.items()
    ]


def sequence_name(evidence: Evidence) -> list[Finding] | str:
    """Judge the warnings that an image looks like another sequence."""
    alike = [m.title for m in evidence.images if any(f"named {m.title} looks" in one for one in evidence.warnings)]
    said = f"the voxels of {' and '.join(alike) or 'no image'} look like another sequence than the name says"
    return [finding("sequence_name", 1.5 if alike else 0.0, said)]


def sequence_coverage(evidence: Evidence) -> list[Finding] | str:
    """Judge the share of the brain, and of the tumour, that each sequence shows."""
    if len(evidence.images) == 1:
        return "there is one sequence"
    findings = []
    for modality, inside in evidence.inside.items():
        for name, whole in (("brain", evidence.brain), ("tumour", evidence.tumour & evidence.brain)):
            if whole.any():
                share = float(inside[whole].mean())
                said = f"{modality.title} shows {100 * share:.0f} % of the {name} only"
                findings.append(finding("sequence_coverage", (1 - share) / (1 - LEAST_COVERED), said))
    return findings


def appearance(evidence: Evidence) -> list[Finding] | str:
    """Judge the intensities of each image against those of phantoms of the same sequence."""
    return [one for modality in evidence.images for one in _appearance_of(modality, evidence, appearance_model())]


def _appearance_of(modality: Modality, evidence: Evidence, known: AppearanceModel) -> list[Finding]:
    image, deep = evidence.images[modality], evidence.inside[modality] & (evidence.depth_mm > DEEP_MM)
    if not deep.any():
        return []
    noise, equal = noise_level(image, deep), equal_neighbours(image, deep)
    trend = linear_trend(image, deep & evidence.normal)
    distance = histogram_distance(evidence.measures[modality], modality, known)
    name = modality.title
    unlike = f"the intensities of {name} are unlike those of {name} in phantoms: contrast or histogram"
    return [
        finding("appearance", distance / FARTHEST_HISTOGRAM, unlike),
        finding("appearance", noise / MOST_NOISE, f"{name} is noisy: {100 * noise:.0f} % of the spread of its tissue"),
        finding("appearance", LEAST_NOISE / max(noise, 1e-6), f"{name} is blurred: neighbouring voxels hardly differ"),
        finding("appearance", equal / MOST_EQUAL, f"{name} has few grey levels: {100 * equal:.0f} % equal neighbours"),
        finding("appearance", trend / STRONGEST_TREND, f"{name} is much brighter on one side than on the other"),
    ]


def histogram_distance(measures: Float[np.ndarray, "4"], modality: Modality, known: AppearanceModel) -> float:
    """Return the distance of the measures of an image from those of its kind, in standard deviations; 0 if unknown.

    It is Mahalanobis' distance divided by the root of the number of measures that are known.
    """
    kind = next(number for number, sequences in enumerate(KINDS.values()) if modality in sequences)
    there = ~np.isnan(measures)
    if not there.any():
        return 0.0
    difference = measures[there] - known.mean[kind][there]
    covariance = known.covariance[kind][np.ix_(there, there)]
    return math.sqrt(float(difference @ np.linalg.solve(covariance, difference)) / float(there.sum()))


def noise_level(image: Float[np.ndarray, "x y z"], deep: Bool[np.ndarray, "x y z"]) -> float:
    """Return the robust standard deviation of a voxel against the mean of its six neighbours, as a share of the IQR."""
    weights = ndimage.generate_binary_structure(3, 1) / 6.0
    weights[1, 1, 1] = 0
    residual = (image - ndimage.convolve(image, weights))[deep]
    return _robust_sigma(residual) / _spread(image[deep])


def equal_neighbours(image: Float[np.ndarray, "x y z"], deep: Bool[np.ndarray, "x y z"]) -> float:
    """Return the share of pairs of neighbours along the first axis whose values differ by less than IQR / 1000."""
    both = deep[1:] & deep[:-1]
    steps = np.abs(image[1:] - image[:-1])[both]
    return float((steps < 1e-3 * _spread(image[deep])).mean()) if steps.size else 0.0


def linear_trend(image: Float[np.ndarray, "x y z"], where: Bool[np.ndarray, "x y z"]) -> float:
    """Return the share of the variance of the ranks of an image that a linear trend over space explains, 0 to 1."""
    places = np.argwhere(where).astype(np.float64)
    if len(places) < FEWEST_VOXELS:
        return 0.0
    values = ranks(image[where]).astype(np.float64)
    values -= values.mean()
    places -= places.mean(0)
    slopes, *_ = np.linalg.lstsq(places, values, rcond=None)
    return 1 - float(((values - places @ slopes) ** 2).sum() / (values**2).sum())


def rim_rank(image: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], rim: np.ndarray) -> float:
    """Return the median rank of the outermost tissue among all tissue: 0 for the darkest, 1 for the brightest."""
    values = np.zeros(image.shape, np.float32)
    values[inside] = ranks(image[inside])
    return float(np.median(values[rim & inside])) if (rim & inside).any() else 0.0


def _spread(values: Float[np.ndarray, "n"]) -> float:
    low, high = np.percentile(values, (25, 75)) if values.size else (0.0, 0.0)
    return max(float(high - low), 1e-6)


def _robust_sigma(values: Float[np.ndarray, "n"]) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0
