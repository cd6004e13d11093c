"""Whether a probability means what it says: reliability curve, expected calibration error, Brier score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from glimpseg.metrics.overlap import refuse_other_shape

BINS = 15
"""Equal bins of probability (Guo et al. 2017, arXiv 1706.04599)."""


@dataclass(frozen=True)
class Reliability:
    """Voxels sorted into equal bins by their predicted probability; can be added up over cases."""

    voxels: Int[np.ndarray, "b"]
    """In each bin."""
    predicted: Float[np.ndarray, "b"]
    """Sum of the predicted probabilities in each bin."""
    observed: Int[np.ndarray, "b"]
    """How many of the voxels truly belong to the region."""
    squared_error: float
    """Sum of (probability - truth)^2 over all voxels."""

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.voxels + other.voxels,
            self.predicted + other.predicted,
            self.observed + other.observed,
            self.squared_error + other.squared_error,
        )

    def as_lists(self) -> dict[str, Any]:
        """For JSON; `from_lists` reads it."""
        return {
            "voxels": self.voxels.tolist(),
            "predicted": self.predicted.tolist(),
            "observed": self.observed.tolist(),
            "squared_error": self.squared_error,
        }

    @classmethod
    def from_lists(cls, tree: Mapping[str, Any]) -> Reliability:
        """Raises: KeyError if a part is missing."""
        voxels, predicted, observed = (np.array(tree[name]) for name in ("voxels", "predicted", "observed"))
        return cls(voxels, predicted, observed, tree["squared_error"])

    @property
    def ece(self) -> float:
        """See the function `ece`."""
        total = self.voxels.sum()
        return float(np.abs(self.predicted - self.observed).sum() / total) if total else float("nan")

    @property
    def brier(self) -> float:
        """See the function `brier`."""
        total = self.voxels.sum()
        return float(self.squared_error / total) if total else float("nan")

    @property
    def curve(self) -> Float[np.ndarray, "2 n"]:
        """Mean predicted probability and observed frequency of each bin that holds a voxel: the reliability curve."""
        filled = self.voxels > 0
        return np.stack([self.predicted[filled], self.observed[filled]]) / self.voxels[filled]


def reliability(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], bins: int = BINS) -> Reliability:
    """Sorts voxels by the predicted probability of a region. Give those of the brain: the air around it is predicted
    with ease and would make any model look calibrated."""
    refuse_other_shape(probability, truth)
    flat, hit = probability.ravel(), truth.ravel()
    index = np.minimum((flat * bins).astype(np.int64), bins - 1)
    return Reliability(
        np.bincount(index, minlength=bins),
        np.bincount(index, flat, bins),
        np.bincount(index[hit], minlength=bins),
        float(np.square(flat - hit, dtype=np.float64).sum()),
    )


def ece(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], bins: int = BINS) -> float:
    """Expected calibration error of a region's probability, 0 to 1, smaller is better. No voxel: NaN.

    sum over bins of ``n_b / N |mean probability - observed frequency|``, with equal bins of the region's own
    probability (not of the winning class's confidence).
    """
    return reliability(probability, truth, bins).ece


def brier(probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]) -> float:
    """Mean squared difference of probability and truth (0 or 1), 0 to 1, smaller is better. No voxel: NaN."""
    return reliability(probability, truth).brier
