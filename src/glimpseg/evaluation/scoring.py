"""Scores of predictions against one study's reference, on the native grid.

Surfaces and lesions of the reference are computed once. Only the part of the grid that the working grid or the
reference reaches is worked on, which changes no number.
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

_SURFACE_METRICS = {"hd95", "hd95_pooled", "surface_dice_1mm", "surface_dice_2mm"}
_LESION_METRICS = {"lesion_dice", "lesion_hd95"}


@dataclass(frozen=True, kw_only=True)
class RegionScores:
    """Scores of one region of one prediction."""

    name: str
    """WT, TC, ET, RC or ET_pp."""
    values: Mapping[str, float]
    """Score by metric; only the metrics that were asked for."""
    predicted_ml: float
    reference_ml: float
    reliability: Reliability | None = None
    """Reliability of the region's probabilities over the brain; None without probabilities, if no calibration metric
    was asked for, or for ET_pp."""


class Reference:
    """Reference of a prepared study, to score any number of predictions against.

    Args:
        prepared: A study with a reference.
        regions: Regions to score, in this order.
        metric_names: Metrics to compute, of `results.scores.METRICS`.
    """

    def __init__(self, prepared: Prepared, regions: Sequence[Region], metric_names: Collection[str]) -> None:
        assert prepared.reference is not None, "only studies with a reference are scored"
        self.grid = prepared.own
        self.metric_names = frozenset(metric_names)
        self._box = _box(prepared)
        labels = prepared.reference.voxels[self._box]
        self._brain = brain_of(prepared)[self._box] if self.metric_names & set(OF_PROBABILITIES) else None
        self._regions = {region: _RegionReference(region.mask(labels), self) for region in regions}

    def score(self, labels: Volume, probabilities: Mapping[Region, Volume] | None) -> list[RegionScores]:
        """Return the scores of every region of one prediction, in the order of the regions; ET is followed by ET_pp.

        Args:
            labels: Predicted `Label` values on the native grid.
            probabilities: Probability map of each region on the same grid; None leaves the calibration metrics out.
        """
        cropped = labels.voxels[self._box]
        assert np.count_nonzero(cropped) == np.count_nonzero(labels.voxels), "no prediction beyond what was shown"
        scores = []
        for region, reference in self._regions.items():
            predicted = region.mask(cropped)
            values = reference.mask_metrics(predicted)
            reliability = None
            if self._brain is not None and probabilities is not None:
                probability = probabilities[region].voxels[self._box]
                reliability = metrics.reliability(probability[self._brain], reference.mask[self._brain])
                calibration = {"ece": reliability.ece, "brier": reliability.brier}
                values |= {name: value for name, value in calibration.items() if name in self.metric_names}
            scores.append(
                RegionScores(
                    name=region.name,
                    values=values,
                    predicted_ml=metrics.volume_ml(predicted, self.grid.voxel_ml),
                    reference_ml=metrics.volume_ml(reference.mask, self.grid.voxel_ml),
                    reliability=reliability,
                )
            )
            if region is Region.ET:
                scores.append(self._postprocessed(predicted, scores[-1], reference))
        return scores

    def _postprocessed(
        self, predicted: Bool[np.ndarray, "x y z"], raw: RegionScores, reference: _RegionReference
    ) -> RegionScores:
        kept = metrics.without_small_enhancement(predicted, self.grid.voxel_ml)
        if kept is predicted or not predicted.any():
            values: Mapping[str, float] = {k: v for k, v in raw.values.items() if k not in OF_PROBABILITIES}
            predicted_ml = raw.predicted_ml
        else:
            values, predicted_ml = reference.mask_metrics(kept), 0.0
        return RegionScores(name=POSTPROCESSED, values=values, predicted_ml=predicted_ml, reference_ml=raw.reference_ml)


class _RegionReference:
    """Reference mask of one region; its surface and lesions are computed once, when they are first needed."""

    def __init__(self, mask: Bool[np.ndarray, "x y z"], study: Reference) -> None:
        self.mask = mask
        self._study = study

    @cached_property
    def _surface(self) -> Surface:
        return Surface(self.mask, self._study.grid.spacing_mm)

    @cached_property
    def _lesions(self) -> Lesions:
        return Lesions(self.mask, self._study.grid.spacing_mm)

    def mask_metrics(self, predicted: Bool[np.ndarray, "x y z"]) -> dict[str, float]:
        """Return the metrics that were asked for and compare two masks, by name, for one predicted mask."""
        grid, wanted = self._study.grid, self._study.metric_names
        values = {
            "dice": metrics.dice(predicted, self.mask),
            "sensitivity": metrics.sensitivity(predicted, self.mask),
            "specificity": metrics.specificity(predicted, self.mask, int(np.prod(grid.shape))),
            "volume_error": metrics.volume_error_ml(predicted, self.mask, grid.voxel_ml),
        }
        if wanted & _SURFACE_METRICS:
            values |= self._surface_metrics(predicted)
        if wanted & _LESION_METRICS:
            lesions = self._lesions.score(predicted)
            values |= {"lesion_dice": lesions.dice, "lesion_hd95": lesions.hd95}
        return {name: value for name, value in values.items() if name in wanted}

    def _surface_metrics(self, predicted: Bool[np.ndarray, "x y z"]) -> dict[str, float]:
        surface = Surface(predicted, self._study.grid.spacing_mm)
        if not len(surface) or not len(self._surface):
            agree = not len(surface) and not len(self._surface)
            both, one = metrics.EMPTY_RULES["diagonal"]
            far = both if agree else one(metrics.diagonal_mm(self._study.grid.shape, self._study.grid.spacing_mm))
            return {"hd95": far, "hd95_pooled": far, "surface_dice_1mm": float(agree), "surface_dice_2mm": float(agree)}
        distances = SurfaceDistances.between(surface, self._surface)
        return {
            "hd95": distances.hd95,
            "hd95_pooled": distances.hd95_pooled,
            "surface_dice_1mm": distances.surface_dice(1.0),
            "surface_dice_2mm": distances.surface_dice(2.0),
        }


def _box(prepared: Prepared) -> tuple[slice, ...]:
    """Return the box of the native grid that holds the working grid's field of view and the reference."""
    shown = resample(Volume(np.ones(prepared.grid.shape, np.float32), prepared.grid.affine), prepared.own).voxels > 0
    assert prepared.reference is not None, "only studies with a reference are scored"
    box = bounding_box(shown | (prepared.reference.voxels > 0))
    assert box is not None, "a prepared study has voxels"
    return box
