"""Metrics of the distances between surfaces: HD95 in its two definitions, surface Dice.

A surface is the voxels of a mask that have a face outside it; beyond the array nothing belongs to the mask. Only the
joint bounding box of both surfaces is worked on, which changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import KDTree

from glimpseg.errors import UsageError
from glimpseg.metrics.overlap import refuse_other_shape
from glimpseg.volume import bounding_box

MANY_POINTS = 60_000
"""Number of surface voxels above which a distance transform of the box is faster than a search tree."""
CLOSE = 2.5
"""Distance, in multiples of the shortest spacing, up to which neighbours are looked up; above, a tree is searched."""
ROUNDING_MM = 1e-5
"""Excess over a tolerance, in mm, that still counts as within it. Sums of spacings like 0.2 mm, headers and `edt` are
exact to single precision only, and many voxels lie at exactly the tolerance."""
BRATS_2023_MM = 374.0
"""HD95 in mm that BraTS 2023 gives a missed lesion or a false positive."""

EMPTY_RULES: dict[str, tuple[float, Callable[[float], float]]] = {
    "diagonal": (0.0, lambda diagonal_mm: diagonal_mm),
    "brats2023": (0.0, lambda _: BRATS_2023_MM),
    "m2ftrans": (0.0, lambda _: 1.0),
    "mst-kdnet": (0.0, lambda _: 0.0),
    "demoseg": (float("nan"), lambda _: float("nan")),
}
"""Rules for empty masks by name: HD95 in mm if both are empty, and if one is (as a function of the grid's diagonal).

`diagonal` is the default, as in nnU-Net and in the BraTS portals up to 2022 (373.13 mm on 240x240x155). The others are
the rules of released codes and serve to recompute their tables: `m2ftrans` and `mst-kdnet` reward a missed tumour,
`demoseg` (and MONAI) drop it from the mean."""


class Surface:
    """Surface voxels of a mask: found once, to be measured against any number of others. Its length is their number.

    Args:
        mask: The mask, perhaps cropped.
        spacing_mm: Spacing along each axis of the array.
        start: Voxel of the whole grid at which a cropped mask begins.
    """

    def __init__(
        self,
        mask: Bool[np.ndarray, "x y z"],
        spacing_mm: tuple[float, float, float],
        start: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self.spacing_mm = spacing_mm
        self.voxels = _surface_voxels(mask) + np.array(start)

    def __len__(self) -> int:
        return len(self.voxels)

    @cached_property
    def points_mm(self) -> Float[np.ndarray, "n 3"]:
        """Centres of the voxels, in millimetres from voxel (0, 0, 0) of the whole grid."""
        return self.voxels * np.array(self.spacing_mm)

    @cached_property
    def _tree(self) -> KDTree:
        # An unbalanced tree in the order of the voxels is built in a fifth of the time, and is searched as fast.
        return KDTree(self.points_mm, balanced_tree=False, compact_nodes=False)

    def nearest_mm(self, start: Surface) -> Float[np.ndarray, "n"]:
        """Return the distance in mm from each voxel of `start` to the nearest one of this surface; neither is empty."""
        offsets, lengths_mm = _neighbours(tuple(self.spacing_mm))
        margin = offsets.max(0)
        low = np.minimum(self.voxels.min(0), start.voxels.min(0)) - margin
        shape = np.maximum(self.voxels.max(0), start.voxels.max(0)) - low + 1 + margin
        outside = np.ones(shape, bool)
        outside[tuple((self.voxels - low).T)] = False
        if len(self) + len(start) > MANY_POINTS:
            return _distance_field_mm(outside, self.spacing_mm)[tuple((start.voxels - low).T)]
        # Surfaces of good segmentations lie close together. Most voxels find the other surface among their neighbours,
        # which are looked up nearest first; only for the others the tree is searched.
        strides, flat = np.array([shape[1] * shape[2], shape[2], 1]), outside.reshape(-1)
        distances, left, places = np.zeros(len(start)), np.arange(len(start)), (start.voxels - low) @ strides
        for step, length_mm in zip(offsets @ strides, lengths_mm, strict=True):
            apart = flat[places + step]
            distances[left[~apart]] = length_mm
            left, places = left[apart], places[apart]
        if len(left):
            distances[left] = self._tree.query(start.points_mm[left])[0]
        return distances


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces in both directions, from which the metrics below are computed."""

    from_predicted_mm: Float[np.ndarray, "n"]
    """Distance from each predicted surface voxel to the nearest one of the reference."""
    from_reference_mm: Float[np.ndarray, "m"]
    """Distance from each reference surface voxel to the nearest predicted one."""

    @classmethod
    def between(cls, predicted: Surface, reference: Surface) -> SurfaceDistances:
        """Measure both directions. Neither surface may be empty; both have the same spacing."""
        return cls(reference.nearest_mm(predicted), predicted.nearest_mm(reference))

    @property
    def hd95(self) -> float:
        """HD95, as the function `hd95` defines it."""
        return max(float(np.percentile(d, 95)) for d in (self.from_predicted_mm, self.from_reference_mm))

    @property
    def hd95_pooled(self) -> float:
        """Pooled HD95, as the function `hd95_pooled` defines it."""
        return float(np.percentile(np.concatenate([self.from_predicted_mm, self.from_reference_mm]), 95))

    def surface_dice(self, tolerance_mm: float) -> float:
        """Return the surface Dice, as the function `surface_dice` defines it."""
        bound = tolerance_mm + ROUNDING_MM
        near = sum(np.count_nonzero(d <= bound) for d in (self.from_predicted_mm, self.from_reference_mm))
        return near / (len(self.from_predicted_mm) + len(self.from_reference_mm))


def hd95(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    empty: str = "diagonal",
) -> float:
    """Return the 95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles of surface distances.

    max(P95{d(a, B)}, P95{d(b, A)}), percentiles interpolated linearly: MONAI's definition. DeepMind's surface-distance
    also takes the larger, but of percentiles weighted by the area of the surface elements.

    Args:
        predicted: Predicted mask.
        reference: Mask of the reference.
        spacing_mm: Spacing along each axis of the array.
        empty: Rule for empty masks, one of `EMPTY_RULES`. By default both empty is 0, and one empty is the diagonal of
            the grid (373.13 mm on 240x240x155 at 1 mm, BraTS), so that a missed tumour is the worst result and not a
            dropped case.

    Raises: InputError if the masks differ in shape; UsageError for an unknown rule, if a mask is empty.

    >>> predicted, reference = np.zeros((2, 10, 10, 10), bool)
    >>> predicted[2, 5, 5] = reference[5, 5, 5] = True
    >>> hd95(predicted, reference, spacing_mm=(2.0, 1.0, 1.0))  # 3 voxels of 2 mm
    6.0
    """
    distances = _distances(predicted, reference, spacing_mm)
    return distances.hd95 if distances else empty_hd95_mm(predicted, reference, spacing_mm, empty)


def hd95_pooled(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    empty: str = "diagonal",
) -> float:
    """Return the 95 % Hausdorff distance in mm as medpy defines it: the 95th percentile of both directions pooled.

    P95({d(a, B)} and {d(b, A)}). Most papers of this field report it. It can exceed `hd95` only slightly, by the
    interpolation between two neighbouring distances of a few voxels. Arguments, empty masks and errors as in `hd95`.

    >>> predicted, reference = np.zeros((2, 10, 10, 10), bool)
    >>> predicted[2, 5, 5] = reference[2, 5, 5] = reference[5, 5, 5] = True
    >>> round(hd95_pooled(predicted, reference, spacing_mm=(1.0, 1.0, 1.0)), 3)  # of 0, 0, 3 at place 0.95 * 2 = 1.9
    2.7
    >>> round(hd95(predicted, reference, spacing_mm=(1.0, 1.0, 1.0)), 3)  # of 0, 3 at place 0.95
    2.85
    """
    distances = _distances(predicted, reference, spacing_mm)
    return distances.hd95_pooled if distances else empty_hd95_mm(predicted, reference, spacing_mm, empty)


def surface_dice(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> float:
    """Return the share of both surfaces' voxels that lie within `tolerance_mm` of the other surface, 0 to 1.

    ``(|{a: d(a, B) <= t}| + |{b: d(b, A) <= t}|) / (|A| + |B|)``, also called NSD: MONAI's default. DeepMind's version
    weights by the area of the surface elements and gives other numbers on the same masks. Both empty: 1. One empty: 0.
    Raises: InputError if the masks differ in shape.

    >>> predicted, reference = np.zeros((2, 10, 10, 10), bool)
    >>> predicted[2:4, 5, 5] = True
    >>> reference[2, 5, 5] = reference[5, 5, 5] = True
    >>> float(surface_dice(predicted, reference, (1.0, 1.0, 1.0), tolerance_mm=1.0))  # of 0, 1 and 0, 2: 3 of 4
    0.75
    """
    distances = _distances(predicted, reference, spacing_mm)
    return distances.surface_dice(tolerance_mm) if distances else float(not (predicted.any() or reference.any()))


def empty_hd95_mm(
    predicted: Bool[np.ndarray, "x y z"],
    reference: Bool[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    empty: str = "diagonal",
) -> float:
    """Return the HD95 by a rule of `EMPTY_RULES`, for two masks of which at least one is empty.

    Raises: UsageError for an unknown rule.
    """
    if empty not in EMPTY_RULES:
        raise UsageError(f"'{empty}' is not a rule for empty masks. Choose one of {', '.join(EMPTY_RULES)}.")
    both, one = EMPTY_RULES[empty]
    return one(diagonal_mm(predicted.shape, spacing_mm)) if predicted.any() or reference.any() else both


def diagonal_mm(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> float:
    """Return the length of the grid's diagonal, edge to edge, in mm.

    >>> round(diagonal_mm((240, 240, 155), (1.0, 1.0, 1.0)), 2)  # BraTS
    373.13
    """
    return float(np.linalg.norm(np.array(shape) * np.array(spacing_mm)))


def _distances(
    predicted: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> SurfaceDistances | None:
    """Return the distances between the surfaces of two masks; None if a mask is empty.

    Raises: InputError if the masks differ in shape.
    """
    refuse_other_shape(predicted, reference)
    if not predicted.any() or not reference.any():
        return None
    return SurfaceDistances.between(Surface(predicted, spacing_mm), Surface(reference, spacing_mm))


def _surface_voxels(mask: Bool[np.ndarray, "x y z"]) -> Int[np.ndarray, "n 3"]:
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, 3), np.int64)
    part = mask[box]
    inner = np.zeros_like(part)
    inner[1:-1, 1:-1, 1:-1] = part[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for shift in (slice(None, -2), slice(2, None)):
            core = [slice(1, -1)] * 3
            core[axis] = shift
            inner[1:-1, 1:-1, 1:-1] &= part[tuple(core)]
    return np.argwhere(part & ~inner) + [side.start for side in box]


@lru_cache
def _neighbours(spacing_mm: tuple[float, float, float]) -> tuple[Int[np.ndarray, "k 3"], Float[np.ndarray, "k"]]:
    """Return offsets and distances of all voxels within `CLOSE` times the shortest spacing, nearest first."""
    reach_mm = CLOSE * min(spacing_mm) + ROUNDING_MM
    sides = [np.arange(-int(reach_mm / side), int(reach_mm / side) + 1) for side in spacing_mm]
    offsets = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths_mm = np.linalg.norm(offsets * np.array(spacing_mm), axis=1)
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= reach_mm]
    return offsets[order], lengths_mm[order]


def _distance_field_mm(
    outside: Bool[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]
) -> Float[np.ndarray, "x y z"]:
    """Return each voxel's distance to the nearest False; with `edt` ([fast]) 2-3 times faster, in single precision."""
    try:
        import edt
    except ImportError:
        return ndimage.distance_transform_edt(outside, sampling=spacing_mm)
    return np.asarray(edt.edt(outside, anisotropy=spacing_mm))
