"""Overlap and surface distance of two masks, with the rule for empty ones stated and obeyed.

Computed on the joint bounding box of both masks, which changes nothing but the time.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree

from glimpseg.errors import InputError

MANY_POINTS = 40_000
"""Surface voxels above which a distance transform of the box is faster than a search tree."""


def dice(predicted: Bool[np.ndarray, "x y z"], reference: Bool[np.ndarray, "x y z"]) -> float:
    """2 |A and B| / (|A| + |B|), 0 to 1. Both empty: 1. One empty: 0 (BraTS)."""
    _refuse_other_shape(predicted, reference)
    total = int(predicted.sum()) + int(reference.sum())
    return 1.0 if total == 0 else 2 * int((predicted & reference).sum()) / total


def hd95(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
) -> float:
    """95 % Hausdorff distance in millimetres: the larger of the two directed 95th percentiles between the
    surfaces' voxels, as MONAI has it. DeepMind's surface-distance weighs the percentiles by area, and medpy
    pools both directions, which never gives more.

    Both empty: 0. One empty: the diagonal of the grid, 373.13 mm on 240x240x155 at 1 mm (BraTS), so that a
    missed tumour is the worst result and not a dropped case.
    """
    _refuse_other_shape(predicted, reference)
    either = predicted | reference
    if not either.any():
        return 0.0
    if not predicted.any() or not reference.any():
        return diagonal_mm(predicted.shape, spacing_mm)
    box = ndimage.find_objects(either.astype(np.uint8))[0]
    a, b = surface(predicted[box]), surface(reference[box])
    directed = (distances_mm(one, other, spacing_mm) for one, other in ((a, b), (b, a)))
    return max(float(np.percentile(distances, 95)) for distances in directed)


def surface(mask: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The voxels of a mask that have a face outside it; beyond the array nothing belongs to the mask."""
    return mask & ~ndimage.binary_erosion(mask)


def distances_mm(
    start: Bool[np.ndarray, "x y z"], goal: Bool[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]
) -> Float[np.ndarray, "n"]:
    """From each voxel of `start` to the nearest of `goal`, both not empty, in millimetres."""
    if start.sum() + goal.sum() > MANY_POINTS:
        return ndimage.distance_transform_edt(~goal, sampling=spacing_mm)[start]
    here, there = (np.argwhere(mask) * np.array(spacing_mm) for mask in (start, goal))
    return np.asarray(KDTree(there).query(here)[0])


def diagonal_mm(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> float:
    """Length of the grid's diagonal, edge to edge: sqrt(240^2 + 240^2 + 155^2) = 373.13 for BraTS."""
    return float(np.linalg.norm(np.array(shape) * np.array(spacing_mm)))


def volume_ml(mask: Bool[np.ndarray, "x y z"], voxel_ml: float) -> float:
    """Volume of a mask in millilitres."""
    return float(mask.sum()) * voxel_ml


def lesion_count(mask: Bool[np.ndarray, "x y z"]) -> int:
    """Connected parts, counting voxels that share a corner as connected (26-neighbourhood, BraTS)."""
    return int(ndimage.label(mask, np.ones((3, 3, 3)))[1])


def _refuse_other_shape(predicted: np.ndarray, reference: np.ndarray) -> None:
    if predicted.shape != reference.shape:
        raise InputError(
            f"Two masks are compared voxel by voxel, but their shapes are {predicted.shape} and {reference.shape}. "
            "Bring them to one grid first."
        )
