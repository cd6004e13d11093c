"""Calibration of probabilities: reliability curve, expected calibration error, Brier score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from glimpseg.metrics.overlap import refuse_other_shape

BINS = 15
"""Number of equal bins of probability (Guo et al. 2017, arXiv 1706.04599)."""


@dataclass(frozen=True)
class Reliability:
    """Voxels in equal bins of their predicted probability; the counts of several cases can be added."""

    voxels: Int[np.ndarray, "b"]
    """Number of voxels in each bin."""
    predicted: Float[np.ndarray, "b"]
    """Sum of the predicted probabilities in each bin."""
    observed: Int[np.ndarray, "b"]
    """Number of voxels in each bin that belong to the region in the reference."""
    squared_error: float
    """Sum of (probability - truth)^2 over all voxels."""

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            voxels=self.voxels + other.voxels,
            predicted=self.predicted + other.predicted,
            observed=self.observed + other.observed,
            squared_error=self.squared_error + other.squared_error,
        )

    def as_lists(self) -> dict[str, Any]:
        """Return the counts as lists, for JSON; `from_lists` reads them."""
        return {
            "voxels": self.voxels.tolist(),
            "predicted": self.predicted.tolist(),
            "observed": self.observed.tolist(),
            "squared_error": self.squared_error,
        }

    @classmethod
    def from_lists(cls, tree: Mapping[str, Any]) -> Reliability:
        """Make a reliability from what `as_lists` returns. Raises: KeyError if a part is missing."""
        voxels, predicted, observed = (np.array(tree[name]) for name in ("voxels", "predicted", "observed"))
        return cls(voxels, predicted, observed, tree["squared_error"])

    @property
    def ece(self) -> float:
        """Expected calibration error, as the function `ece` defines it."""
        total = self.voxels.sum()
        return float(np.abs(self.predicted - self.observed).sum() / total) if total else float("nan")

    @property
    def brier(self) -> float:
        """Brier score, as the function `brier` defines it."""
        total = self.voxels.sum()
        return float(self.squared_error / total) if total else float("nan")

    @property
    def curve(self) -> Float[np.ndarray, "2 n"]:
        """Reliability curve: mean predicted probability and observed frequency of each bin that holds a voxel."""
        filled = self.voxels > 0
        return np.stack([self.predicted[filled], self.observed[filled]]) / self.voxels[filled]


def reliability(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], bins: int = BINS) -> Reliability:
    """Count voxels in bins of the predicted probability of a region.

    Give the voxels of the brain only: the air around it is easy to predict and would make any model look calibrated.

    Args:
        probability: Predicted probability of the region, 0 to 1.
        truth: True where the reference has the region; the same shape.
        bins: Number of equal bins.

    Raises: InputError if the arrays differ in shape.

    >>> probability = np.array([0.25, 0.25, 0.75, 0.75])
    >>> reliability(probability, np.array([False, False, True, False]), bins=2).curve
    array([[0.25, 0.75],
           [0.  , 0.5 ]])
    """
    refuse_other_shape(probability, truth)
    flat, hit = probability.ravel(), truth.ravel()
    index = np.minimum((flat * bins).astype(np.int64), bins - 1)
    return Reliability(
        voxels=np.bincount(index, minlength=bins),
        predicted=np.bincount(index, flat, bins),
        observed=np.bincount(index[hit], minlength=bins),
        squared_error=float(np.square(flat - hit, dtype=np.float64).sum()),
    )


def ece(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], bins: int = BINS) -> float:
    """Return the expected calibration error of a region's probability, 0 to 1; smaller is better. No voxel: NaN.

    It is the sum over bins of ``n_b / N |mean probability - observed frequency|``, with equal bins of the region's own
    probability (not of the confidence in the winning class). Raises: InputError if the arrays differ in shape.

    >>> probability = np.array([0.25, 0.25, 0.75, 0.75])
    >>> ece(probability, np.array([False, False, True, False]))  # 2/4 |0.25 - 0| + 2/4 |0.75 - 0.5|
    0.25
    """
    return reliability(probability, truth, bins).ece


def brier(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Return the Brier score: the mean squared difference of probability and truth (0 or 1). No voxel: NaN.

    It lies between 0 and 1; smaller is better. Raises: InputError if the arrays differ in shape.

    >>> probability = np.array([0.25, 0.25, 0.75, 0.75])
    >>> brier(probability, np.array([False, False, True, False]))  # (3 * 0.25^2 + 0.75^2) / 4
    0.1875
    """
    return reliability(probability, truth).brier
