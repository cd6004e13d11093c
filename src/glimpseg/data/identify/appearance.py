"""Appearance check: compare the voxels of each image with the sequence it is named as, without a network.

Four measures of each image, and the rank correlation of each pair of images, are compared with their distributions in
phantoms (`appearance.json`, made by `tools/derive/appearance.py`). T1 and T1c are one kind here, since they differ
mainly in the tumour.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg.data.atlas import average_brain
from glimpseg.data.preprocess import Prepared
from glimpseg.modality import Modality
from glimpseg.volume import bounding_box

KINDS: Mapping[str, Modality] = {"T1": Modality.T1 | Modality.T1C, "T2": Modality.T2, "FLAIR": Modality.FLAIR}
"""Kinds of images that the check distinguishes, with the sequences of each."""
MEASURES = ("white_grey", "fluid_white", "skew", "tails")
"""Names of the four measures, in the order of `appearance_measures`."""
COARSE_MM = 3.0
"""Size of the voxels that are compared; finer voxels do not improve the check."""
FREEDOM = 4.0
"""Degrees of freedom of Student's t. Its heavy tails allow for patients that are unlike every phantom."""
WHOLE_HEAD_MM = 100.0
"""Smallest extent of a whole head. In a thinner slab tissue cannot be located, so only pairs and histograms count."""
FEWEST_VOXELS = 50
"""Fewest voxels for a median or a correlation."""
MOST_IMAGES = (2, 1, 1)
"""Most images of each kind in one study."""
EXTRA_IMAGE = 0.2
"""Factor on the probability for each image of a kind beyond `MOST_IMAGES`."""
THRESHOLD = 0.97
"""Probability of another kind from which on a warning is given. docs/identify.md has the rate of false alarms."""


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Most likely kind of one image, by its voxels."""

    named: Modality
    """Sequence that the image was given as."""
    kind: str
    """Most likely of `KINDS`."""
    probability: float
    """Probability of that kind, 0 to 1, estimated on phantoms."""

    @property
    def agrees(self) -> bool:
        """True if the given sequence is of that kind."""
        return self.named in KINDS[self.kind]

    @property
    def warning(self) -> str | None:
        """Warning if the image is almost surely of another kind, else None. The study is segmented in any case."""
        if self.agrees or self.probability < THRESHOLD:
            return None
        kind = "T1 or T1c" if self.kind == "T1" else self.kind
        return f"The image named {self.named.title} looks like {kind}. Check it; the study is segmented anyway."


def appearances(prepared: Prepared) -> tuple[Appearance, ...]:
    """Estimate the kind of each sequence of a prepared, skull-stripped study, in channel order."""
    channels = [(number, modality) for number, modality in enumerate(Modality) if modality in prepared.available]
    numbers = [number for number, _ in channels]
    box = bounding_box(np.logical_or.reduce(prepared.inside[numbers]))
    assert box is not None, "a prepared study has a brain"
    images, inside, spacing_mm = coarsened(
        prepared.image[numbers][:, *box], prepared.inside[numbers][:, *box], prepared
    )
    shares = kind_probabilities(
        appearance_measures(images, inside, spacing_mm), correlations(images, inside), appearance_model()
    )
    names = list(KINDS)
    return tuple(
        Appearance(named=modality, kind=names[int(share.argmax())], probability=float(share.max()))
        for (_, modality), share in zip(channels, shares, strict=True)
    )


def appearance_warnings(prepared: Prepared) -> tuple[str, ...]:
    """Return a warning for each sequence that is almost surely another kind than its name says; usually none."""
    return tuple(found.warning for found in appearances(prepared) if found.warning is not None)


def coarsened(
    images: Float[np.ndarray, "m x y z"], inside: Bool[np.ndarray, "m x y z"], prepared: Prepared
) -> tuple[Float[np.ndarray, "m i j k"], Bool[np.ndarray, "m i j k"], float]:
    """Average images over cubes of about 3 mm, tissue voxels only; images with voxels above 2 mm are not changed.

    Returns:
        The averaged images, the mask of cubes that are tissue by more than half, and the side of a cube in mm.
    """
    spacing = prepared.grid.spacing_mm[0]
    step = max(round(COARSE_MM / spacing), 1)
    if step == 1:
        return images, inside, spacing
    shape = tuple(n // step for n in images.shape[1:])
    cut = (slice(None), *(slice(0, n * step) for n in shape))
    weight = _block_means(inside[cut].astype(np.float32), step)
    total = _block_means(np.where(inside[cut], images[cut], 0).astype(np.float32), step)
    return total / np.maximum(weight, 1e-6), weight > 0.5, spacing * step


def _block_means(values: Float[np.ndarray, "m x y z"], step: int) -> Float[np.ndarray, "m i j k"]:
    for axis in (3, 2, 1):
        shape = (*values.shape[:axis], values.shape[axis] // step, step, *values.shape[axis + 1 :])
        values = values.reshape(shape).mean(axis + 1)
    return values


def appearance_measures(
    images: Float[np.ndarray, "m x y z"], inside: Bool[np.ndarray, "m x y z"], spacing_mm: float
) -> Float[np.ndarray, "m 4"]:
    """Compute the four measures of each image; NaN where one cannot be computed.

    The places of white matter, deep grey matter and fluid are taken from the average brain, scaled to this brain. The
    brightness ranks of their median voxels (0 dark, 1 bright) give the first two measures: white minus grey matter, and
    fluid minus white matter. The others are the skewness of the histogram and the weight of its tails, both as
    logarithms.
    """
    return np.array([_measures(image, tissue, spacing_mm) for image, tissue in zip(images, inside, strict=True)])


def _measures(image: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], spacing_mm: float) -> list[float]:
    values = image[inside]
    low, first, middle, third, high = np.percentile(values, (2, 25, 50, 75, 98))
    above, below = max(high - middle, 1e-6), max(middle - low, 1e-6)
    shape = [math.log(above / below), math.log((above + below) / max(third - first, 1e-6))]
    ranks = _ranks(values)
    tissues = _tissues(inside, spacing_mm)
    if tissues is None or min(map(np.count_nonzero, tissues)) < FEWEST_VOXELS:
        return [math.nan, math.nan, *shape]
    white, grey, fluid = (float(np.median(ranks[tissue])) for tissue in tissues)
    return [white - grey, fluid - white, *shape]


def correlations(images: Float[np.ndarray, "m x y z"], inside: Bool[np.ndarray, "m x y z"]) -> Float[np.ndarray, "m m"]:
    """Compute the rank correlation of each pair over the tissue that all images share; NaN if they share too little."""
    shared = inside.all(0)
    if np.count_nonzero(shared) < FEWEST_VOXELS:
        return np.full((len(images), len(images)), math.nan)
    return np.atleast_2d(np.corrcoef([_ranks(image[shared]) for image in images]))


def _ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    order = np.empty(len(values), np.float32)
    order[values.argsort(kind="stable")] = np.arange(len(values), dtype=np.float32)
    return order / max(len(values) - 1, 1)


@functools.cache
def _average_brain() -> tuple[Float[np.ndarray, "4 x y z"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Load the average brain on 3 mm cubes, RAS: depth, grey matter, white matter, fluid; its centre and spread."""
    depth, grey, white, _ = average_brain().maps
    shape = tuple(n // 3 * 3 for n in depth.shape)
    cut = tuple(slice(0, n) for n in shape)
    depth, grey, white = _block_means(np.stack([depth[cut], grey[cut], white[cut]]), 3)
    brain = depth > 0
    fluid = np.where(brain, np.clip(1 - grey - white, 0, 1), 0)
    places = np.argwhere(brain)
    return np.stack([depth, grey, white, fluid]), places.mean(0), places.std(0)


def _tissues(
    inside: Bool[np.ndarray, "x y z"], spacing_mm: float
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]] | None:
    """Masks of the brain voxels that should be white matter, deep grey matter and fluid; None for a slab."""
    places = np.argwhere(inside)
    if (np.ptp(places, axis=0) + 1).min() * spacing_mm < WHOLE_HEAD_MM:
        return None
    maps, centre, spread = _average_brain()
    in_average = ((places - places.mean(0)) / places.std(0) * spread + centre).T
    depth, grey, white, fluid = (ndimage.map_coordinates(part, in_average, order=1, output=np.float32) for part in maps)
    return white > 0.8, (grey > 0.6) & (depth > 20), (fluid > 0.4) & (depth > 3)


@dataclass(frozen=True, kw_only=True)
class AppearanceModel:
    """Distributions of the measures and correlations in phantoms."""

    mean: Float[np.ndarray, "3 4"]
    """Mean of the measures for each kind."""
    covariance: Float[np.ndarray, "3 4 4"]
    """Covariance of the measures for each kind."""
    pair_mean: Float[np.ndarray, "3 3"]
    """Mean rank correlation for each pair of kinds."""
    pair_deviation: Float[np.ndarray, "3 3"]
    """Standard deviation of the rank correlation for each pair of kinds."""


@functools.cache
def appearance_model() -> AppearanceModel:
    """Return the model; it is read from the package at the first call and kept in memory."""
    text = (resources.files("glimpseg.data.identify") / "appearance.json").read_text("utf-8")
    return AppearanceModel(**{name: np.array(values) for name, values in json.loads(text).items() if name != "made"})


def kind_probabilities(
    measures: Float[np.ndarray, "m 4"], correlation: Float[np.ndarray, "m m"], known: AppearanceModel
) -> Float[np.ndarray, "m 3"]:
    """Compute the probability of each kind for each image, all images of a study together.

    Every assignment of kinds to images is weighted by Student's t densities of the measures and of the correlations.
    The correlations of one image count together as much as one.

    Args:
        measures: four measures of each image, NaN where unknown.
        correlation: rank correlation of each pair of images, NaN where unknown.
        known: distributions in phantoms.

    Returns:
        One row for each image; the columns are `KINDS` and sum to 1.
    """
    count = len(measures)
    single = np.array([[_log_density(row, known, kind) for kind in range(len(KINDS))] for row in measures])
    assignments = list(itertools.product(range(len(KINDS)), repeat=count))
    scores = np.array([_log_weight(kinds, single, correlation, known) + _log_prior(kinds) for kinds in assignments])
    shares = np.exp(scores - scores.max())
    result = np.zeros((count, len(KINDS)))
    for kinds, share in zip(assignments, shares, strict=True):
        result[range(count), kinds] += share
    return result / shares.sum()


def _log_weight(
    kinds: tuple[int, ...],
    single: Float[np.ndarray, "m 3"],
    correlation: Float[np.ndarray, "m m"],
    known: AppearanceModel,
) -> float:
    """Log density of the measures and correlations under one assignment of kinds."""
    total = sum(float(single[image, kind]) for image, kind in enumerate(kinds))
    for one, two in itertools.combinations(range(len(kinds)), 2):
        mean, deviation = known.pair_mean[kinds[one], kinds[two]], known.pair_deviation[kinds[one], kinds[two]]
        distance = (correlation[one, two] - mean) / deviation
        if not math.isnan(distance):
            total += (_student(distance**2, 1) - math.log(deviation)) / (len(kinds) - 1)
    return total


def _log_prior(kinds: tuple[int, ...]) -> float:
    """Penalty for more than two T1, one T2 or one FLAIR: a further image is a copy under another name, by mistake."""
    more = sum(max(kinds.count(kind) - most, 0) for kind, most in enumerate(MOST_IMAGES))
    return more * math.log(EXTRA_IMAGE)


def _log_density(row: Float[np.ndarray, "4"], known: AppearanceModel, kind: int) -> float:
    """Log density of the known measures of one image for a kind."""
    there = ~np.isnan(row)
    difference = row[there] - known.mean[kind][there]
    covariance = known.covariance[kind][np.ix_(there, there)]
    square = float(difference @ np.linalg.solve(covariance, difference))
    return _student(square, int(there.sum())) - 0.5 * float(np.linalg.slogdet(covariance)[1])


def _student(square: float, dimensions: int) -> float:
    """Log density of Student's t at a squared distance, without the constant that all kinds share."""
    return -0.5 * (FREEDOM + dimensions) * math.log1p(square / FREEDOM)
