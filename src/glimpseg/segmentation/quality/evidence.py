"""Evidence that the rules look at: labels, images and brain masks of one study on a coarse grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from glimpseg.data.identify.appearance import appearance_measures, coarsened
from glimpseg.data.preprocess import Prepared
from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.volume import Volume, bounding_box, resample_labels

REVIEW_MM = 2.0
"""Approximate voxel side of the evidence. Finer working grids are thinned: 1 mm takes eight times as long and changes
no finding."""
NEAR_TUMOUR_MM = 10.0
"""Distance from the tumour within which tissue does not count as normal."""
EVERY = np.ones((3, 3, 3), bool)
"""Neighbourhood of 26 voxels."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """Labels, images and brain masks of one study, on one grid of cubic voxels in RAS order."""

    labels: UInt8[np.ndarray, "x y z"]
    """`Label` values of the result."""
    images: Mapping[Modality, Float[np.ndarray, "x y z"]]
    """Normalised images of the sequences that were used."""
    inside: Mapping[Modality, Bool[np.ndarray, "x y z"]]
    """Brain mask of each of these sequences."""
    spacing_mm: float
    """Side of a voxel."""
    measures: Mapping[Modality, Float[np.ndarray, "4"]] = field(default_factory=dict)
    """Measures of contrast and histogram of each image (`appearance_measures`)."""
    extent_mm: tuple[float, float, float] = (240.0, 240.0, 155.0)
    """Field of view of the study's own grid along left-right, front-back and up-down."""
    warnings: tuple[str, ...] = ()
    """Warnings that were given while the study was read and prepared."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return self.spacing_mm**3 / 1000

    @cached_property
    def brain(self) -> Bool[np.ndarray, "x y z"]:
        """Union of the brain masks."""
        return np.logical_or.reduce(list(self.inside.values()))

    @cached_property
    def tumour(self) -> Bool[np.ndarray, "x y z"]:
        """Mask of the whole tumour."""
        return Region.WT.mask(self.labels)

    @cached_property
    def parts(self) -> Int[np.ndarray, "x y z"]:
        """Numbers of the 26-connected parts of the tumour; 0 is background, 1 the largest part."""
        numbers, count = ndimage.label(self.tumour, EVERY)
        order = np.zeros(count + 1, numbers.dtype)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)
        sizes[0] = 0
        for rank, number in enumerate(np.argsort(-sizes, kind="stable")[:count], 1):
            order[number] = rank
        return np.asarray(order[numbers])

    @cached_property
    def from_main_mm(self) -> Float[np.ndarray, "x y z"]:
        """Distance of each voxel from the largest part, in mm; infinite without a tumour."""
        if not self.tumour.any():
            return np.full(self.labels.shape, np.inf)
        return np.asarray(ndimage.distance_transform_edt(self.parts != 1, self.spacing_mm))

    @cached_property
    def depth_mm(self) -> Float[np.ndarray, "x y z"]:
        """Distance of each voxel of the brain from the outside, in mm; 0 outside. Beyond the array is outside."""
        padded = np.pad(self.brain, 1)
        return np.asarray(ndimage.distance_transform_edt(padded, self.spacing_mm))[1:-1, 1:-1, 1:-1]

    @cached_property
    def normal(self) -> Bool[np.ndarray, "x y z"]:
        """Brain more than `NEAR_TUMOUR_MM` from the tumour; all of the brain if less than a tenth would be left."""
        if not self.tumour.any():
            return self.brain
        away = ndimage.distance_transform_edt(~self.tumour, self.spacing_mm) > NEAR_TUMOUR_MM
        rest = self.brain & away
        return rest if rest.sum() > 0.1 * self.brain.sum() else self.brain

    def ml(self, mask: Bool[np.ndarray, "x y z"]) -> float:
        """Return the volume of a mask in millilitres."""
        return float(mask.sum()) * self.voxel_ml

    @property
    def whole_head(self) -> bool:
        """True if the field of view is large enough for a whole brain along each axis."""
        return all(side >= least for side, least in zip(self.extent_mm, (120.0, 150.0, 110.0), strict=True))


def evidence_of(prepared: Prepared, labels: Volume, warnings: Collection[str] = ()) -> Evidence:
    """Return the evidence of a prepared study, its label map on the native grid, and the warnings about it."""
    step = max(round(REVIEW_MM / prepared.grid.spacing_mm[0]), 1)
    own = prepared.own.ras()
    x, y, z = (float(side * n) for side, n in zip(own.spacing_mm, own.shape, strict=True))
    channels = {m: c for c, m in enumerate(Modality) if m in prepared.available}
    used = list(channels.values())
    measures = appearance_measures(*coarsened(prepared.image[used], prepared.inside[used], prepared))
    return Evidence(
        labels=_on_working_grid(prepared, labels)[::step, ::step, ::step],
        images={m: prepared.image[c][::step, ::step, ::step] for m, c in channels.items()},
        inside={m: prepared.inside[c][::step, ::step, ::step] for m, c in channels.items()},
        spacing_mm=prepared.grid.spacing_mm[0] * step,
        measures=dict(zip(channels, measures, strict=True)),
        extent_mm=(x, y, z),
        warnings=tuple(warnings),
    )


def _on_working_grid(prepared: Prepared, labels: Volume) -> UInt8[np.ndarray, "x y z"]:
    """Return the labels on the working grid. Only the box of the tumour is resampled."""
    box = bounding_box(labels.voxels > 0)
    if box is None:
        return np.zeros(prepared.grid.shape, np.uint8)
    x, y, z = (
        slice(max(side.start - 2, 0), min(side.stop + 2, n)) for side, n in zip(box, labels.voxels.shape, strict=True)
    )
    part = Volume(labels.voxels[x, y, z], labels.grid.crop((x, y, z)).affine)
    return resample_labels(part, prepared.grid).voxels
