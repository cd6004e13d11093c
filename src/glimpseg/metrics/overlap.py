"""Metrics that count voxels: Dice, sensitivity, specificity, volume."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from glimpseg.errors import InputError

SMALL_ENHANCEMENT_ML = 0.5
"""Smallest volume of predicted enhancing tumour that the RFNet family counts, in ml: 500 voxels of 1 mm."""


def dice(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."]) -> float:
    """Return the Dice score ``2 |A and B| / (|A| + |B|)``, 0 to 1. Both masks empty: 1. One empty: 0 (BraTS).

    Raises: InputError if the masks differ in shape.

    >>> predicted = np.array([True, True, False, False])
    >>> reference = np.array([False, True, True, False])
    >>> float(dice(predicted, reference))  # 2 * 1 / (2 + 2)
    0.5
    """
    refuse_other_shape(predicted, reference)
    total = np.count_nonzero(predicted) + np.count_nonzero(reference)
    return 1.0 if total == 0 else 2 * np.count_nonzero(predicted & reference) / total


def sensitivity(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."]) -> float:
    """Return the sensitivity ``|A and B| / |B|``: the share of the reference that was found, 0 to 1.

    Reference empty: NaN, because there was nothing to find. Means leave such a case out and give the number of cases
    they rest on. Raises: InputError if the masks differ in shape.

    >>> predicted = np.array([True, False, False, True])
    >>> reference = np.array([True, True, False, False])
    >>> float(sensitivity(predicted, reference))  # 1 of 2 voxels
    0.5
    """
    refuse_other_shape(predicted, reference)
    total = np.count_nonzero(reference)
    return float("nan") if total == 0 else np.count_nonzero(predicted & reference) / total


def specificity(
    predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."], voxels: int | None = None
) -> float:
    """Return the specificity ``TN / (TN + FP)``: the share of other voxels that were not predicted, 0 to 1.

    Without other voxels: NaN. The value depends on how much air the grid holds, so that it can be compared on one grid
    only.

    Args:
        predicted: Predicted mask.
        reference: Mask of the reference.
        voxels: Number of voxels of the whole grid, if the masks are cropped and both are empty outside.

    Raises: InputError if the masks differ in shape.

    >>> predicted = np.array([True, True, False, False])
    >>> reference = np.array([True, False, False, False])
    >>> float(specificity(predicted, reference, voxels=5))  # 1 of 4 voxels is a false positive
    0.75
    """
    refuse_other_shape(predicted, reference)
    negative = (predicted.size if voxels is None else voxels) - np.count_nonzero(reference)
    return float("nan") if negative == 0 else 1 - np.count_nonzero(predicted & ~reference) / negative


def volume_ml(mask: Bool[np.ndarray, "..."], voxel_ml: float) -> float:
    """Return the volume of a mask in millilitres; `voxel_ml` is the volume of one voxel.

    >>> float(volume_ml(np.ones((5, 5, 5), bool), voxel_ml=0.008))  # 125 voxels of 2 mm
    1.0
    """
    return np.count_nonzero(mask) * voxel_ml


def volume_error_ml(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."], voxel_ml: float) -> float:
    """Return the predicted minus the reference volume in millilitres: negative if too little was found.

    Both masks empty: 0. Raises: InputError if the masks differ in shape.

    >>> float(volume_error_ml(np.ones(100, bool), np.arange(100) < 50, voxel_ml=0.125))  # 50 voxels too many
    6.25
    """
    refuse_other_shape(predicted, reference)
    return volume_ml(predicted, voxel_ml) - volume_ml(reference, voxel_ml)


def without_small_enhancement(predicted: Bool[np.ndarray, "..."], voxel_ml: float) -> Bool[np.ndarray, "..."]:
    """Return predicted ET after the rule of RFNet, mmFormer, M2FTrans and IM-Fuse: empty if below 500 voxels of 1 mm.

    Otherwise the mask itself is returned. They apply the rule to the ET score alone; WT and TC keep those voxels. On
    another grid the same volume (0.5 ml) counts.

    >>> small, large = np.arange(1000) < 499, np.arange(1000) < 500
    >>> [int(without_small_enhancement(mask, voxel_ml=0.001).sum()) for mask in (small, large)]
    [0, 500]
    """
    # Less a millionth: on an oblique grid the voxel of a single-precision header is not quite 1 mm3.
    large = volume_ml(predicted, voxel_ml) >= SMALL_ENHANCEMENT_ML * (1 - 1e-6)
    return predicted if large else np.zeros_like(predicted)


def refuse_other_shape(predicted: np.ndarray, reference: np.ndarray) -> None:
    """Raise InputError if two masks differ in shape."""
    if predicted.shape != reference.shape:
        raise InputError(
            f"Two masks are compared voxel by voxel, but their shapes are {predicted.shape} and {reference.shape}. "
            "Bring them to one grid first."
        )
