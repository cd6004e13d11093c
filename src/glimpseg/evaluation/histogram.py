"""Histograms of logits, and the temperatures that are fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from glimpseg.metrics import Reliability
from glimpseg.metrics.calibration import BINS
from glimpseg.modality import SUBSETS, Modality
from glimpseg.region import Region
from glimpseg.results.statistics import FEWEST_CASES

LOWEST, HIGHEST = -32.0, 17.0
"""Smallest and largest logit; others are clipped. A float32 cannot tell the probability of a logit above 17 from 1;
below -32 lie probabilities of less than 1e-14."""
PER_UNIT = 64
"""Bins for each unit of the logit. Each bin keeps its mean logit, so that the fitted temperature differs by less than
1e-4 from that of the voxels (tested)."""
COLDEST, HOTTEST = 0.05, 20.0
"""Range of temperatures; a model that needs others has not learned the region."""
FEWEST_FITTED = 2
"""Fewest studies with a region for which a temperature is fitted; below, it is 1. A single patient says too little."""

Key: TypeAlias = tuple[Modality, Region]


@dataclass(frozen=True, eq=False, kw_only=True)
class Histogram:
    """Voxels in bins of the logit of one region's probability; histograms of several studies can be added."""

    voxels: Int[np.ndarray, "b"]
    """Number of voxels in each bin."""
    logits: Float[np.ndarray, "b"]
    """Sum of the logits of the voxels in each bin."""
    positives: Int[np.ndarray, "b"]
    """Number of voxels in each bin that belong to the region in the reference."""
    predicted: Int[np.ndarray, "b"]
    """Number of voxels in each bin that belong to the region in the model's label map."""
    studies: int
    """Number of studies in which the region occurs in the reference."""

    @classmethod
    def empty(cls) -> Histogram:
        """Return a histogram without voxels."""
        nothing = np.zeros(0, bool)
        return cls.from_voxels(np.zeros(0, np.float32), truth=nothing, mask=nothing)

    @classmethod
    def from_voxels(
        cls, probability: Float[np.ndarray, "n"], *, truth: Bool[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]
    ) -> Histogram:
        """Count the voxels of one study. Logits outside `LOWEST` to `HIGHEST` are clipped.

        Args:
            probability: Predicted probability of the region in each voxel.
            truth: True where the reference has the region.
            mask: True where the model's label map has the region.
        """
        logit = np.clip(special.logit(probability), LOWEST, HIGHEST)
        bins = round((HIGHEST - LOWEST) * PER_UNIT)
        index = np.minimum(((logit - LOWEST) * PER_UNIT).astype(np.int64), bins - 1)
        return cls(
            voxels=np.bincount(index, minlength=bins),
            logits=np.bincount(index, logit, bins).astype(np.float64),  # without voxels, numpy returns whole numbers
            positives=np.bincount(index[truth], minlength=bins),
            predicted=np.bincount(index[mask], minlength=bins),
            studies=int(truth.any()),
        )

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(
            voxels=self.voxels + other.voxels,
            logits=self.logits + other.logits,
            positives=self.positives + other.positives,
            predicted=self.predicted + other.predicted,
            studies=self.studies + other.studies,
        )

    def temperature(self) -> float:
        """Fit the temperature T that minimises the mean negative log-likelihood of sigmoid(logit / T), and return it.

        Eq. (2) of the page on trust. The likelihood is convex in 1 / T: its minimum is where its derivative is 0, or at
        the nearest end of the range from `COLDEST` to `HOTTEST`. Without voxels of both kinds T is 1.
        """
        filled = self.voxels > 0
        voxels, positives = self.voxels[filled], self.positives[filled]
        if not 0 < positives.sum() < voxels.sum():
            return 1.0
        logit = self.logits[filled] / voxels

        def slope(inverse: float) -> float:
            return float((logit * (voxels * special.expit(inverse * logit) - positives)).sum())

        low, high = 1 / HOTTEST, 1 / COLDEST
        if slope(low) >= 0:
            return HOTTEST
        if slope(high) <= 0:
            return COLDEST
        return 1 / float(optimize.brentq(slope, low, high, xtol=1e-9))

    def probabilities(self, temperature: float = 1.0) -> Float[np.ndarray, "b"]:
        """Return the probability of each bin's mean logit at a temperature; 0 for an empty bin."""
        mean = np.divide(self.logits, self.voxels, out=np.full(len(self.logits), -np.inf), where=self.voxels > 0)
        return np.asarray(special.expit(mean / temperature))

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """Return the reliability of the probabilities at a temperature, in `BINS` bins of probability."""
        probability = self.probabilities(temperature)
        index = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        squared = self.voxels * probability**2 - 2 * self.positives * probability + self.positives
        counts, predicted, observed = (
            np.bincount(index, values, BINS) for values in (self.voxels, self.voxels * probability, self.positives)
        )
        return Reliability(counts.astype(np.int64), predicted, observed.astype(np.int64), float(squared.sum()))

    def estimated_dice(self, temperature: float = 1.0) -> float:
        """Return the Dice to expect of the model's mask, from the bins (`uncertainty.estimated_dice`).

        NaN for an empty mask. Eq. (3) of the page on trust.
        """
        if not self.predicted.any():
            return math.nan
        probability = self.probabilities(temperature)
        both = float((self.predicted * probability).sum())
        return 2 * both / float((self.voxels * probability).sum() + self.predicted.sum())


@dataclass(frozen=True)
class Temperature:
    """Temperature of the probabilities of one region from one subset."""

    value: float
    pooled: bool
    """True if this subset has too few studies: the value was fitted to all subsets together, or is 1."""


UNFITTED = Temperature(1.0, pooled=True)
"""Temperature 1, for a subset and region for which none was fitted."""


def add_histograms(total: dict[Key, Histogram], histograms: Mapping[Key, Histogram]) -> None:
    """Add histograms to the running total in `total`, by subset and region."""
    for key, histogram in histograms.items():
        total[key] = total[key] + histogram if key in total else histogram


def fit_temperatures(histograms: Mapping[Key, Histogram]) -> dict[Key, Temperature]:
    """Fit a temperature to each of the 15 subsets, for each region that has a histogram.

    Where fewer than 8 studies of a subset show the region, the temperature of all subsets together is taken; where
    fewer than 2 studies do in every subset, 1.
    """
    temperatures = {}
    for region in {region for _, region in histograms}:
        by_subset = {subset: histogram for (subset, one), histogram in histograms.items() if one is region}
        together = sum(by_subset.values(), Histogram.empty())
        enough = max(histogram.studies for histogram in by_subset.values()) >= FEWEST_FITTED
        pooled = together.temperature() if enough else 1.0
        for subset in SUBSETS:
            own = by_subset.get(subset)
            if own is not None and own.studies >= FEWEST_CASES:
                temperatures[subset, region] = Temperature(own.temperature(), pooled=False)
            else:
                temperatures[subset, region] = Temperature(pooled, pooled=True)
    return temperatures
