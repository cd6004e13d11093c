"""Metrics that count voxels: Dice, sensitivity, specificity, volume."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from glimpseg.errors import InputError

SMALL_ENHANCEMENT_ML = 0.5
"""500 voxels of 1 mm: the bound below which the RFNet family takes predicted enhancing tumour for none."""


def dice(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."]) -> float:
    """``2 |A and B| / (|A| + |B|)``, 0 to 1. Both empty: 1. One empty: 0 (BraTS)."""
    refuse_other_shape(predicted, reference)
    total = np.count_nonzero(predicted) + np.count_nonzero(reference)
    return 1.0 if total == 0 else 2 * np.count_nonzero(predicted & reference) / total


def sensitivity(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."]) -> float:
    """``|A and B| / |B|``, the share of the reference that was found, 0 to 1. Reference empty: NaN, as there was
    nothing to find; means leave such a case out and say how many they rest on."""
    refuse_other_shape(predicted, reference)
    total = np.count_nonzero(reference)
    return float("nan") if total == 0 else np.count_nonzero(predicted & reference) / total


def specificity(
    predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."], voxels: int | None = None
) -> float:
    """TN / (TN + FP), the share of what is not tumour that was left alone, 0 to 1. Nothing but tumour: NaN.

    It depends on how much air the grid holds, so that it can be compared on one grid only. `voxels` is the size of
    the whole grid when the masks are cropped and both are empty outside.
    """
    refuse_other_shape(predicted, reference)
    negative = (predicted.size if voxels is None else voxels) - np.count_nonzero(reference)
    return float("nan") if negative == 0 else 1 - np.count_nonzero(predicted & ~reference) / negative


def volume_ml(mask: Bool[np.ndarray, "..."], voxel_ml: float) -> float:
    """Volume of a mask in millilitres."""
    return np.count_nonzero(mask) * voxel_ml


def volume_error_ml(predicted: Bool[np.ndarray, "..."], reference: Bool[np.ndarray, "..."], voxel_ml: float) -> float:
    """Predicted minus reference volume in millilitres; negative where too little was found. Both empty: 0."""
    refuse_other_shape(predicted, reference)
    return volume_ml(predicted, voxel_ml) - volume_ml(reference, voxel_ml)


def without_small_enhancement(predicted: Bool[np.ndarray, "..."], voxel_ml: float) -> Bool[np.ndarray, "..."]:
    """Predicted ET after the rule of RFNet, mmFormer, M2FTrans and IM-Fuse: below 500 voxels of 1 mm, none.

    They apply it to the ET score alone; WT and TC keep those voxels. On another grid the same volume bounds.
    """
    # Less one millionth: on an oblique grid the voxel of a single-precision header is not quite 1 mm3.
    large = volume_ml(predicted, voxel_ml) >= SMALL_ENHANCEMENT_ML * (1 - 1e-6)
    return predicted if large else np.zeros_like(predicted)


def refuse_other_shape(predicted: np.ndarray, reference: np.ndarray) -> None:
    """Raises InputError if two masks cannot be compared voxel by voxel."""
    if predicted.shape != reference.shape:
        raise InputError(
            f"Two masks are compared voxel by voxel, but their shapes are {predicted.shape} and {reference.shape}. "
            "Bring them to one grid first."
        )
