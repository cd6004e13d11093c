"""Statistics of labelled regions: level, unevenness and separability of each sequence's intensity."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from glimpseg.modality import Modality
from glimpseg.region import Label
from likeness.cases import Case, Image, Mask, bounding_box

REGIONS = (Label.NCR, Label.ED, Label.ET)
"""Labels that are described."""
FOCI = 2
"""The largest foci (connected parts of the whole tumour) that are described."""
FEWEST_ML = 0.1
"""Smallest volume of a region that is described."""
CORE_ML = 0.2
"""Smallest volume of the voxels at least 1 mm inside a region for which the rest is left out."""
INSIDE_MM = 1.0
"""Voxels farther than this from the outside of a region count as its interior."""
COARSE_MM = 3.0
"""Standard deviation of the blur that separates coarse unevenness from fine texture."""
QUANTILES = (5, 50, 95)
SEPARATED = {
    "WT:brain": ((Label.NCR, Label.ED, Label.ET), (0,)),
    "ED:brain": ((Label.ED,), (0,)),
    "ET:rest": ((Label.ET,), (Label.NCR, Label.ED)),
    "TC:ED": ((Label.NCR, Label.ET), (Label.ED,)),
    "NCR:ET": ((Label.NCR,), (Label.ET,)),
}
"""Labels whose intensities are told apart by an area under the ROC curve."""

Statistics = dict[str, float]


def lesion_statistics(case: Case) -> Statistics:
    """Measure each region of a case, with names `kind/region/sequence`.

    Returns:
        `level`: mean; `spread`, `coarse`, `fine`: standard deviation of all, of the part blurred by 3 mm, of the rest;
        `q05` to `q95`: quantiles; `together`: correlation of the blurred parts of two sequences; `AUC`.
    """
    labels = largest_foci(case.labels)
    found = _separability(case)
    for label in REGIONS:
        mask = interior((labels == label) & case.brain, case.spacing_mm)
        if mask is not None:
            found |= _intensities(case, label, mask)
    return found


def _intensities(case: Case, label: Label, mask: Mask) -> Statistics:
    """Measure one region's intensity in each sequence."""
    found: Statistics = {}
    coarse: dict[Modality, Float[np.ndarray, "n"]] = {}
    for modality, image in case.images.items():
        where, values = f"{label.name}/{modality.title}", image[mask]
        blurred = restricted_blur(image, mask, case.spacing_mm)[mask]
        found[f"level/{where}"] = float(values.mean())
        for quantile, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True):
            found[f"q{quantile:02d}/{where}"] = float(value)
        found[f"spread/{where}"] = float(values.std())
        found[f"coarse/{where}"] = float(blurred.std())
        found[f"fine/{where}"] = float((values - blurred).std())
        coarse[modality] = blurred
    for one, two in itertools.combinations(coarse, 2):
        if min(coarse[one].std(), coarse[two].std()) > 0:
            r = float(np.corrcoef(coarse[one], coarse[two])[0, 1])
            found[f"together/{label.name}/{one.title}-{two.title}"] = r
    return found


def largest_foci(labels: UInt8[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "x y z"]:
    """Keep the labels of the `FOCI` largest connected parts of the tumour."""
    parts, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    if count <= FOCI:
        return labels
    sizes = np.bincount(parts.ravel())[1:]
    return np.where(np.isin(parts, np.argsort(sizes)[-FOCI:] + 1), labels, 0).astype(labels.dtype)


def interior(mask: Mask, spacing_mm: float) -> Mask | None:
    """Return the voxels more than `INSIDE_MM` inside, or the whole mask if they are few; None if it is too small."""
    millilitres = spacing_mm**3 / 1000
    if mask.sum() * millilitres < FEWEST_ML:
        return None
    box = bounding_box(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    inner = np.zeros_like(mask)
    inner[box] = depth > INSIDE_MM
    return inner if inner.sum() * millilitres >= CORE_ML else mask


def restricted_blur(image: Image, mask: Mask, spacing_mm: float, sigma_mm: float = COARSE_MM) -> Image:
    """Blur an image with a Gaussian that uses only voxels inside the mask; 0 outside of it."""
    box = bounding_box(mask)
    inside, sigma = mask[box].astype(np.float64), sigma_mm / spacing_mm
    weight = ndimage.gaussian_filter(inside, sigma, mode="constant")
    total = ndimage.gaussian_filter(image[box] * inside, sigma, mode="constant")
    blurred = np.zeros(image.shape)
    blurred[box] = np.where(mask[box], total / np.maximum(weight, 1e-9), 0)
    return blurred


def _separability(case: Case) -> Statistics:
    """Measure the areas under the ROC curve of intensity."""
    found: Statistics = {}
    for modality, image in case.images.items():
        for name, (positive, negative) in SEPARATED.items():
            one = image[case.brain & np.isin(case.labels, positive)]
            two = image[case.brain & np.isin(case.labels, negative)]
            if min(len(one), len(two)) * case.millilitres >= FEWEST_ML:
                found[f"AUC/{name}/{modality.title}"] = area_under_curve(one, two)
    return found


def area_under_curve(one: Float[np.ndarray, "n"], two: Float[np.ndarray, "k"]) -> float:
    """Return the probability that a value of `one` is larger than one of `two`; ties count half."""
    ordered = np.sort(two)
    below, until = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below + until).sum()) / (2 * len(one) * len(two))
