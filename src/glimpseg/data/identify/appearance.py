"""Whether images look like the sequences they are named as: by their voxels alone, without a network.

Four measures of one image, and the rank correlation of each pair, are compared with what phantoms give
(`appearance.json`, made by `tools/derive/appearance.py`). T1 and T1c are one kind here: the tumour tells them apart.
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
"""What can be told apart."""
MEASURES = ("white_grey", "fluid_white", "skew", "tails")
COARSE_MM = 3.0
"""Voxels that are compared: finer detail adds nothing."""
FREEDOM = 4.0
"""Degrees of freedom of Student's t, whose tails leave room for patients that are unlike every phantom."""
WHOLE_HEAD_MM = 100.0
"""In a thinner slab tissue cannot be found by its place in the head; then only pairs and histograms speak."""
FEWEST = 50
"""Voxels from which a median is taken."""
MOST = (2, 1, 1)
"""Images of each kind in a study."""
ACCIDENT = 0.2
"""How much rarer it is that one kind was given once more."""
THRESHOLD = 0.97
"""Probability from which on it is worth a warning. docs/identify.md has the rate of false alarms."""


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What one image looks like."""

    named: Modality
    kind: str
    """The likeliest of `KINDS`."""
    probability: float
    """Of that kind, 0 to 1, as far as phantoms tell."""

    @property
    def agrees(self) -> bool:
        """Whether the name is of that kind."""
        return self.named in KINDS[self.kind]

    @property
    def warning(self) -> str | None:
        """A sentence if the image is of another kind almost surely; it is never a reason to stop."""
        if self.agrees or self.probability < THRESHOLD:
            return None
        kind = "T1 or T1c" if self.kind == "T1" else self.kind
        return f"The image named {self.named.title} looks like {kind}. Check it; the result is made all the same."


def appearances(prepared: Prepared) -> tuple[Appearance, ...]:
    """What each sequence of a prepared, skull-stripped study looks like, in channel order."""
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
    """A sentence for each sequence that almost surely is none of its name; as a rule there is none."""
    return tuple(look.warning for look in appearances(prepared) if look.warning is not None)


def coarsened(
    images: Float[np.ndarray, "m x y z"], inside: Bool[np.ndarray, "m x y z"], prepared: Prepared
) -> tuple[Float[np.ndarray, "m i j k"], Bool[np.ndarray, "m i j k"], float]:
    """Means of cubes of about 3 mm over the tissue in them, which cubes are tissue by half, and their edge in mm."""
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
    """The four measures of each image; NaN where one cannot be taken.

    Where white matter, deep grey matter and fluid are is supposed from the average brain, stretched onto this one; the
    ranks of their median voxels among all (0 dark, 1 bright) give the first two measures. The others are the skewness
    of the histogram and the weight of its tails, both as logarithms.
    """
    return np.array([_measures(image, tissue, spacing_mm) for image, tissue in zip(images, inside, strict=True)])


def _measures(image: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], spacing_mm: float) -> list[float]:
    values = image[inside]
    low, first, middle, third, high = np.percentile(values, (2, 25, 50, 75, 98))
    above, below = max(high - middle, 1e-6), max(middle - low, 1e-6)
    shape = [math.log(above / below), math.log((above + below) / max(third - first, 1e-6))]
    ranks = _ranks(values)
    found = _tissues(inside, spacing_mm)
    if found is None or min(map(np.count_nonzero, found)) < FEWEST:
        return [math.nan, math.nan, *shape]
    white, grey, fluid = (float(np.median(ranks[tissue])) for tissue in found)
    return [white - grey, fluid - white, *shape]


def correlations(images: Float[np.ndarray, "m x y z"], inside: Bool[np.ndarray, "m x y z"]) -> Float[np.ndarray, "m m"]:
    """Rank correlation of each pair, where all images have tissue; NaN if that is nowhere."""
    shared = inside.all(0)
    if np.count_nonzero(shared) < FEWEST:
        return np.full((len(images), len(images)), math.nan)
    return np.atleast_2d(np.corrcoef([_ranks(image[shared]) for image in images]))


def _ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    order = np.empty(len(values), np.float32)
    order[values.argsort(kind="stable")] = np.arange(len(values), dtype=np.float32)
    return order / max(len(values) - 1, 1)


@functools.cache
def _average_brain() -> tuple[Float[np.ndarray, "4 x y z"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Depth, grey and white matter and fluid of the average on 3 mm cubes, RAS; centre and spread of its brain."""
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
    """Which voxels of the brain should be white matter, deep grey matter and fluid; None if it is but a slab."""
    places = np.argwhere(inside)
    if (np.ptp(places, axis=0) + 1).min() * spacing_mm < WHOLE_HEAD_MM:
        return None
    maps, centre, spread = _average_brain()
    at = ((places - places.mean(0)) / places.std(0) * spread + centre).T
    depth, grey, white, fluid = (ndimage.map_coordinates(part, at, order=1, output=np.float32) for part in maps)
    return white > 0.8, (grey > 0.6) & (depth > 20), (fluid > 0.4) & (depth > 3)


@dataclass(frozen=True, kw_only=True)
class AppearanceModel:
    """What phantoms give: mean and covariance of the measures by kind, and of the correlation by pair of kinds."""

    mean: Float[np.ndarray, "3 4"]
    covariance: Float[np.ndarray, "3 4 4"]
    pair_mean: Float[np.ndarray, "3 3"]
    pair_deviation: Float[np.ndarray, "3 3"]


@functools.cache
def appearance_model() -> AppearanceModel:
    """The packaged one."""
    text = (resources.files("glimpseg.data.identify") / "appearance.json").read_text("utf-8")
    return AppearanceModel(**{name: np.array(values) for name, values in json.loads(text).items() if name != "made"})


def kind_probabilities(
    measures: Float[np.ndarray, "m 4"], correlation: Float[np.ndarray, "m m"], known: AppearanceModel
) -> Float[np.ndarray, "m 3"]:
    """Probability of each kind for each image, all images together.

    Every way to give kinds to the images is weighed by Student's t of the measures and of the correlations; the
    correlations of one image count together as much as one.
    """
    count = len(measures)
    alone = np.array([[_log_density(row, known, kind) for kind in range(len(KINDS))] for row in measures])
    ways = list(itertools.product(range(len(KINDS)), repeat=count))
    scores = np.array([_way(way, alone, correlation, known) + _rarity(way) for way in ways])
    shares = np.exp(scores - scores.max())
    result = np.zeros((count, len(KINDS)))
    for way, share in zip(ways, shares, strict=True):
        result[range(count), way] += share
    return result / shares.sum()


def _way(
    way: tuple[int, ...], alone: Float[np.ndarray, "m 3"], correlation: Float[np.ndarray, "m m"], known: AppearanceModel
) -> float:
    total = sum(float(alone[image, kind]) for image, kind in enumerate(way))
    for one, two in itertools.combinations(range(len(way)), 2):
        mean, deviation = known.pair_mean[way[one], way[two]], known.pair_deviation[way[one], way[two]]
        distance = (correlation[one, two] - mean) / deviation
        if not math.isnan(distance):
            total += (_student(distance**2, 1) - math.log(deviation)) / (len(way) - 1)
    return total


def _rarity(way: tuple[int, ...]) -> float:
    """A study has one T2 and one FLAIR at most, and T1 twice; a second copy under another name is an accident."""
    more = sum(max(way.count(kind) - most, 0) for kind, most in enumerate(MOST))
    return more * math.log(ACCIDENT)


def _log_density(row: Float[np.ndarray, "4"], known: AppearanceModel, kind: int) -> float:
    there = ~np.isnan(row)
    difference = row[there] - known.mean[kind][there]
    covariance = known.covariance[kind][np.ix_(there, there)]
    square = float(difference @ np.linalg.solve(covariance, difference))
    return _student(square, int(there.sum())) - 0.5 * float(np.linalg.slogdet(covariance)[1])


def _student(square: float, dimensions: int) -> float:
    """Logarithm of the density at a squared distance, but for what all kinds share."""
    return -0.5 * (FREEDOM + dimensions) * math.log1p(square / FREEDOM)
