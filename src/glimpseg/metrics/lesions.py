"""Lesion-wise Dice and HD95 by the rules of BraTS 2023: every lesion counts the same, whatever its size.

Rules: rachitsaluja/BraTS-2023-Metrics, glioma settings, as described in docs/evaluation.md. Two departures: HD95
of a pair is `surface.hd95` (theirs weights by area), and limits in voxels are applied in millimetres, which is the same
on the 1 mm grids they were made for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

from glimpseg.metrics.overlap import refuse_other_shape
from glimpseg.metrics.surface import BRATS_2023_MM, ROUNDING_MM, Surface, SurfaceDistances
from glimpseg.volume import bounding_box

MERGING_MM = 3.0
"""Dilation of a lesion, in mm, before parts are joined and predictions matched: three dilations of 1 mm voxels."""
LARGEST_UNCOUNTED_MM3 = 50.0
"""Largest volume, in mm3, of a reference lesion that is not counted."""
_CORNERS = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class LesionWise:
    """Lesion-wise scores of one region of one case."""

    dice: float
    """Sum of the lesions' Dice / (lesions + false positives), 0 to 1. Neither: 1."""
    hd95: float
    """(Sum of the lesions' HD95, 374 for a missed one, + 374 for each false positive) / (lesions + false positives), in
    mm. Neither: 0."""
    lesions: int
    """Number of reference lesions above 50 mm3."""
    missed: int
    """Number of these lesions that no prediction touches when they are dilated by 3 mm."""
    false_positives: int
    """Number of predicted parts, of any size, that touch no dilated lesion, not even one of 50 mm3 or less."""


def lesion_wise(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
) -> LesionWise:
    """Return the lesion-wise Dice and HD95 of BraTS 2023.

    1. The reference is dilated by 3 mm (18-neighbourhood); parts whose dilations touch (26) are one lesion.
    2. Predicted parts (26) that touch a lesion's dilation are united and scored against it.
    3. Lesions of 50 mm3 or less leave the sums; every predicted part that touches no lesion's dilation counts as false.

    Raises: InputError if the masks differ in shape.

    >>> reference = np.zeros((30, 10, 10), bool)
    >>> reference[2:6, 2:6, 2:6] = reference[20:24, 2:6, 2:6] = True  # two lesions of 64 mm3
    >>> predicted = reference.copy()
    >>> predicted[20:24] = False  # the second one is missed: Dice (1 + 0) / 2, HD95 (0 + 374) / 2
    >>> result = lesion_wise(predicted, reference, spacing_mm=(1.0, 1.0, 1.0))
    >>> float(result.dice), float(result.hd95), result.lesions, result.missed
    (0.5, 187.0, 2, 1)
    """
    return Lesions(reference, spacing_mm).score(predicted)


def lesion_count(mask: Bool[np.ndarray, "x y z"]) -> int:
    """Return the number of connected parts. Voxels that share a corner are connected (26-neighbourhood, BraTS).

    >>> mask = np.zeros((5, 5, 5), bool)
    >>> mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = True  # the first two share a corner
    >>> lesion_count(mask)
    2
    """
    return _components(mask)[1]


class Lesions:
    """Lesions of a reference: found once, to score any number of predictions against.

    Args:
        reference: Mask of the reference.
        spacing_mm: Spacing along each axis of the array.
    """

    def __init__(self, reference: Bool[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]) -> None:
        self.reference = reference
        self.spacing_mm = spacing_mm
        self._reach, self.lesions = _dilated_components(reference, spacing_mm)
        """Number of lesions, small ones included. In `_reach` each dilated lesion has its number; the rest is 0."""
        self._voxels = np.bincount(self._reach[reference], minlength=self.lesions + 1)
        self._surfaces: dict[int, Surface] = {}

    def score(self, predicted: Bool[np.ndarray, "x y z"]) -> LesionWise:
        """Return the scores of one predicted mask. Raises: InputError if it has another shape than the reference."""
        refuse_other_shape(predicted, self.reference)
        parts, count = _components(predicted)
        pairs = np.bincount(self._reach[predicted].astype(np.int64) * (count + 1) + parts[predicted])
        touching = np.stack(np.divmod(np.flatnonzero(pairs), count + 1))  # lesion, part
        touching = touching[:, touching[0] > 0]
        dices, distances = [], []
        missed = 0
        for lesion in range(1, self.lesions + 1):
            if self._voxels[lesion] * np.prod(self.spacing_mm) <= LARGEST_UNCOUNTED_MM3:
                continue
            united = np.isin(parts, touching[1, touching[0] == lesion]) if (touching[0] == lesion).any() else None
            missed += united is None
            dices.append(0.0 if united is None else self._dice(lesion, united))
            distances.append(BRATS_2023_MM if united is None else self._hd95(lesion, united))
        false = count - len(np.unique(touching[1]))
        total = len(dices) + false
        return LesionWise(
            dice=sum(dices) / total if total else 1.0,
            hd95=(sum(distances) + BRATS_2023_MM * false) / total if total else 0.0,
            lesions=len(dices),
            missed=missed,
            false_positives=false,
        )

    def _dice(self, lesion: int, united: Bool[np.ndarray, "x y z"]) -> float:
        shared = np.count_nonzero(self._reach[united & self.reference] == lesion)
        return 2 * shared / (np.count_nonzero(united) + int(self._voxels[lesion]))

    def _hd95(self, lesion: int, united: Bool[np.ndarray, "x y z"]) -> float:
        if lesion not in self._surfaces:
            self._surfaces[lesion] = Surface(self.reference & (self._reach == lesion), self.spacing_mm)
        return SurfaceDistances.between(Surface(united, self.spacing_mm), self._surfaces[lesion]).hd95


def _dilated_components(
    mask: Bool[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]
) -> tuple[Int[np.ndarray, "x y z"], int]:
    """Return the connected parts of the mask dilated by 3 mm, numbered from 1, and their number."""
    bounds = bounding_box(mask)
    reach = np.zeros(mask.shape, np.int32)
    if bounds is None:
        return reach, 0
    element = _structuring_element(spacing_mm)
    margins = [n // 2 for n in element.shape]
    box = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s, margin in zip(bounds, margins, strict=True))
    reach[box], count = _components(ndimage.binary_dilation(mask[box], element))
    return reach, count


def _structuring_element(spacing_mm: tuple[float, float, float]) -> Bool[np.ndarray, "x y z"]:
    """Return the structuring element of the dilation: at 1 mm, that of three dilations with the 18-neighbourhood.

    Each such step moves by one voxel along at most two axes, so that three reach 3 mm along each axis and 6 mm in all.
    """
    margins = [int((MERGING_MM + ROUNDING_MM) / side) for side in spacing_mm]
    axes = np.meshgrid(
        *(np.arange(-m, m + 1) * side for m, side in zip(margins, spacing_mm, strict=True)), indexing="ij"
    )
    return np.abs(axes).sum(0) <= 2 * MERGING_MM + ROUNDING_MM


def _components(mask: Bool[np.ndarray, "x y z"]) -> tuple[Int[np.ndarray, "x y z"], int]:
    """Return the 26-connected parts, numbered from 1, and their number; four times faster with `cc3d` ([fast])."""
    try:
        import cc3d
    except ImportError:
        return ndimage.label(mask, _CORNERS)
    return cc3d.connected_components(mask, connectivity=26, return_N=True)
