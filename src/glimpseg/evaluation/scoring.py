"""One study's reference against any number of predictions: every metric that was asked for, on the own grid.

What depends on the reference alone (its surfaces, its lesions) is made once. Work is done on the part of the grid
where anything can have been predicted, which changes no number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from glimpseg import metrics
from glimpseg.data.preprocess import Prepared, brain_of
from glimpseg.metrics import Lesions, Reliability, Surface, SurfaceDistances
from glimpseg.region import Region
from glimpseg.results.scores import OF_PROBABILITIES, POSTPROCESSED
from glimpseg.volume import Volume, bounding_box, resample

_OF_SURFACES = {"hd95", "hd95_pooled", "surface_dice_1mm", "surface_dice_2mm"}
_OF_LESIONS = {"lesion_dice", "lesion_hd95"}


@dataclass(frozen=True)
class Rated:
    """One region of one prediction."""

    region: str
    values: Mapping[str, float]
    """By metric."""
    predicted_ml: float
    reference_ml: float
    reliability: Reliability | None = None


class Reference:
    """A prepared study's reference, ready to be compared with."""

    def __init__(self, prepared: Prepared, regions: Sequence[Region], wanted: Collection[str]) -> None:
        assert prepared.reference is not None, "only studies with a reference are scored"
        self.grid = prepared.own
        self.wanted = frozenset(wanted)
        self._box = _box(prepared)
        labels = prepared.reference.voxels[self._box]
        self._brain = brain_of(prepared)[self._box] if self.wanted & set(OF_PROBABILITIES) else None
        self._regions = {region: _Side(region.mask(labels), self) for region in regions}

    def rate(self, found: Volume, probabilities: Mapping[Region, Volume] | None) -> list[Rated]:
        """Every region of one prediction on the own grid, ET also as ET_pp; calibration if probabilities are given."""
        labels = found.voxels[self._box]
        assert np.count_nonzero(labels) == np.count_nonzero(found.voxels), "no prediction beyond what was shown"
        rated = []
        for region, reference in self._regions.items():
            predicted = region.mask(labels)
            values = reference.values(predicted)
            reliability = None
            if self._brain is not None and probabilities is not None:
                shown = probabilities[region].voxels[self._box]
                reliability = metrics.reliability(shown[self._brain], reference.mask[self._brain])
                calibration = {"ece": reliability.ece, "brier": reliability.brier}
                values |= {name: value for name, value in calibration.items() if name in self.wanted}
            volume, true_volume = (metrics.volume_ml(m, self.grid.voxel_ml) for m in (predicted, reference.mask))
            rated.append(Rated(region.name, values, volume, true_volume, reliability))
            if region is Region.ET:
                rated.append(self._postprocessed(predicted, rated[-1], reference))
        return rated

    def _postprocessed(self, predicted: Bool[np.ndarray, "x y z"], raw: Rated, reference: _Side) -> Rated:
        kept = metrics.without_small_enhancement(predicted, self.grid.voxel_ml)
        if kept is predicted or not predicted.any():
            values = {name: value for name, value in raw.values.items() if name not in OF_PROBABILITIES}
            return Rated(POSTPROCESSED, values, raw.predicted_ml, raw.reference_ml)
        return Rated(POSTPROCESSED, reference.values(kept), 0.0, raw.reference_ml)


class _Side:
    """One region of the reference."""

    def __init__(self, mask: Bool[np.ndarray, "x y z"], case: Reference) -> None:
        self.mask = mask
        self._case = case

    @cached_property
    def _surface(self) -> Surface:
        return Surface(self.mask, self._case.grid.spacing_mm)

    @cached_property
    def _lesions(self) -> Lesions:
        return Lesions(self.mask, self._case.grid.spacing_mm)

    def values(self, predicted: Bool[np.ndarray, "x y z"]) -> dict[str, float]:
        """By metric, those of masks only."""
        grid, wanted = self._case.grid, self._case.wanted
        values = {
            "dice": metrics.dice(predicted, self.mask),
            "sensitivity": metrics.sensitivity(predicted, self.mask),
            "specificity": metrics.specificity(predicted, self.mask, int(np.prod(grid.shape))),
            "volume_error": metrics.volume_error_ml(predicted, self.mask, grid.voxel_ml),
        }
        if wanted & _OF_SURFACES:
            values |= self._of_surfaces(predicted)
        if wanted & _OF_LESIONS:
            lesions = self._lesions.score(predicted)
            values |= {"lesion_dice": lesions.dice, "lesion_hd95": lesions.hd95}
        return {name: value for name, value in values.items() if name in wanted}

    def _of_surfaces(self, predicted: Bool[np.ndarray, "x y z"]) -> dict[str, float]:
        found = Surface(predicted, self._case.grid.spacing_mm)
        if not len(found) or not len(self._surface):
            agree = not len(found) and not len(self._surface)
            both, one = metrics.EMPTY_RULES["diagonal"]
            far = both if agree else one(metrics.diagonal_mm(self._case.grid.shape, self._case.grid.spacing_mm))
            return {"hd95": far, "hd95_pooled": far, "surface_dice_1mm": float(agree), "surface_dice_2mm": float(agree)}
        distances = SurfaceDistances.between(found, self._surface)
        return {
            "hd95": distances.hd95,
            "hd95_pooled": distances.hd95_pooled,
            "surface_dice_1mm": distances.surface_dice(1.0),
            "surface_dice_2mm": distances.surface_dice(2.0),
        }


def _box(prepared: Prepared) -> tuple[slice, ...]:
    """The part of the own grid that the working grid reaches, or the reference."""
    shown = resample(Volume(np.ones(prepared.grid.shape, np.float32), prepared.grid.affine), prepared.own).voxels > 0
    assert prepared.reference is not None, "only studies with a reference are scored"
    found = bounding_box(shown | (prepared.reference.voxels > 0))
    assert found is not None, "a prepared study has voxels"
    return found
