"""Uncertainty of one segmentation: estimated Dice, and agreement with further passes over the same study.

The Dice is estimated from probabilities, which are calibrated if the model has temperatures. The further passes segment
the mirrored images, and the study without one of its sequences. Labels are never changed: they are those of the plain
forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import special

from glimpseg import metrics
from glimpseg.model.expectations import USABLE_ERROR
from glimpseg.region import Region
from glimpseg.segmentation.options import Level
from glimpseg.volume import Volume, bounding_box


@dataclass(frozen=True, kw_only=True)
class RegionUncertainty:
    """Uncertainty of one region of one segmentation."""

    estimated_dice: float
    """Dice to expect of this mask, if the probabilities are calibrated; NaN where nothing was found, and where such
    estimates are `withheld`."""
    lowest_ml: float
    """Smallest volume among the segmentation and all members, in millilitres."""
    highest_ml: float
    """Largest volume among the segmentation and all members, in millilitres."""
    agreement: float
    """Mean Dice of the members with the segmentation; NaN without members."""
    estimate_error: float = math.nan
    """Mean absolute error of such an estimate; NaN if it was not measured."""

    @property
    def withheld(self) -> bool:
        """True if such estimates were too far off to be given."""
        return self.estimate_error > USABLE_ERROR

    @property
    def spread_ml(self) -> tuple[float, float]:
        """Smallest and largest volume, in millilitres."""
        return self.lowest_ml, self.highest_ml


@dataclass(frozen=True, kw_only=True)
class Member:
    """Result of one further pass over the same study, compared with the segmentation."""

    name: str
    """Name of the pass: `mirrored left-right`, `without T2`."""
    volumes_ml: Mapping[Region, float]
    dice: Mapping[Region, float]
    """Dice of the member with the segmentation, by region; 1 where both are empty."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Uncertainty of one segmentation, by region."""

    level: Level
    calibrated: bool
    """True if the probabilities were calibrated; if not, the estimates are from the network's own probabilities."""
    regions: Mapping[Region, RegionUncertainty]
    members: tuple[Member, ...]
    """The further passes."""

    @property
    def sentences(self) -> list[str]:
        """Sentences on the uncertainty for people: a heading, then one line for each region."""
        by = "calibrated probabilities" if self.calibrated else "the network's own, uncalibrated probabilities"
        lines = [f"This study, by {by} and {len(self.members) + 1} passes ({self._names()}):"]
        for region, one in self.regions.items():
            low, high = one.spread_ml
            lines.append(
                f"  {region.name}: {_dice_in_words(one)}; {low:.1f} to {high:.1f} ml{_agreement_in_words(one)}."
            )
        return lines

    def _names(self) -> str:
        return "plain" + "".join(f", {member.name}" for member in self.members)

    def as_tree(self) -> dict[str, Any]:
        """Return the content for JSON, rounded to four decimals; undefined numbers are None."""
        return {
            "level": self.level,
            "calibrated": self.calibrated,
            "regions": {region.name: region_tree(one) for region, one in self.regions.items()},
            "members": [
                {
                    "name": member.name,
                    "volume_ml": {region.name: round(value, 4) for region, value in member.volumes_ml.items()},
                    "dice": {region.name: round(value, 4) for region, value in member.dice.items()},
                }
                for member in self.members
            ],
        }


def region_tree(uncertainty: RegionUncertainty) -> dict[str, float | None]:
    """Return the uncertainty of a region for JSON and tables, rounded to four decimals; undefined numbers are None."""
    return {
        "estimated_dice": _number(uncertainty.estimated_dice),
        "volume_low_ml": _number(uncertainty.lowest_ml),
        "volume_high_ml": _number(uncertainty.highest_ml),
        "agreement": _number(uncertainty.agreement),
    }


def calibrated(probability: Float[np.ndarray, "..."], temperature: float) -> Float[np.ndarray, "..."]:
    """Return calibrated probabilities: sigmoid(logit(p) / T). Eq. (1) of the page on trust.

    T is the temperature, above 0. 0, one half and 1 stay as they are, and so does the order of voxels. Labels therefore
    do not change.
    """
    if temperature == 1:
        return probability
    scaled = special.logit(probability) / np.asarray(temperature, probability.dtype)
    return np.asarray(special.expit(scaled), probability.dtype)


def estimated_dice(probability: Float[np.ndarray, "..."], mask: Bool[np.ndarray, "..."]) -> float:
    """Return the Dice to expect of a mask: 2 sum(p m) / (sum p + sum m). Eq. (3) of the page on trust.

    Each voxel belongs to the region with its probability. Give the voxels of the brain: calibration was measured there.

    Args:
        probability: Probability of the region, for each voxel.
        mask: Mask of the region, for each voxel.

    Returns:
        The estimate; NaN for an empty mask.
    """
    shared, total = (float(p.sum(dtype=np.float64)) for p in (probability[mask], probability))
    return _dice_of(shared, total, int(mask.sum()))


def _dice_of(shared: float, total: float, voxels: float) -> float:
    return 2 * shared / (total + voxels) if voxels else math.nan


class DiceEstimate:
    """Estimated Dice of each region, from a label map and probabilities that come part by part."""

    def __init__(self) -> None:
        self._sums: dict[Region, np.ndarray] = {}

    def add(
        self,
        labels: UInt8[np.ndarray, "x y z"],
        probabilities: Mapping[Region, Float[np.ndarray, "x y z"]],
        brain: Bool[np.ndarray, "x y z"],
    ) -> None:
        """Add one part. Only voxels of the brain and of the region's mask itself count.

        Args:
            labels: `Label` values of the part.
            probabilities: Calibrated probability of each region in the part.
            brain: Brain mask of the part.
        """
        for region, probability in probabilities.items():
            mask = region.mask(labels)
            shared, total = (probability[where].sum(dtype=np.float64) for where in (mask, brain | mask))
            so_far = self._sums.get(region, np.zeros(3))
            self._sums[region] = so_far + np.array([shared, total, mask.sum()])

    @property
    def dice(self) -> dict[Region, float]:
        """Estimated Dice by region, of all parts together; NaN where no part has the region in its labels."""
        return {region: _dice_of(*sums.tolist()) for region, sums in self._sums.items()}


def uncertainty_of(
    labels: Volume,
    estimates: Mapping[Region, float],
    members: Iterable[tuple[str, Volume]],
    *,
    level: Level,
    calibrated: bool,
    errors: Mapping[Region, float] = MappingProxyType({}),
) -> Uncertainty:
    """Return the uncertainty of a segmentation.

    Args:
        labels: Label map of the segmentation.
        estimates: Estimated Dice of each region (`DiceEstimate`).
        members: Name and label map of each further pass, on the grid of `labels`. One is in memory at a time.
        level: Level that the passes belong to.
        calibrated: True if the estimates are from calibrated probabilities.
        errors: Mean absolute error of such estimates, by region. Above `USABLE_ERROR`, the estimate is withheld.
    """
    compared = tuple(_member(name, other, labels, tuple(estimates)) for name, other in members)
    voxel, found = labels.grid.voxel_ml, {}
    for region, estimate in estimates.items():
        own = metrics.volume_ml(region.mask(labels.voxels), voxel)
        volumes = [own, *(member.volumes_ml[region] for member in compared)]
        one = RegionUncertainty(
            estimated_dice=estimate,
            estimate_error=errors.get(region, math.nan),
            lowest_ml=min(volumes),
            highest_ml=max(volumes),
            agreement=float(np.mean([member.dice[region] for member in compared])) if compared else math.nan,
        )
        found[region] = replace(one, estimated_dice=math.nan) if one.withheld else one
    return Uncertainty(level=level, calibrated=calibrated, regions=found, members=compared)


def _member(name: str, other: Volume, labels: Volume, regions: Sequence[Region]) -> Member:
    box = bounding_box((other.voxels > 0) | (labels.voxels > 0)) or (slice(0, 0),) * 3
    one, two = other.voxels[box], labels.voxels[box]
    masks = {region: (region.mask(one), region.mask(two)) for region in regions}
    return Member(
        name=name,
        volumes_ml={region: metrics.volume_ml(mask, labels.grid.voxel_ml) for region, (mask, _) in masks.items()},
        dice={region: metrics.dice(mask, result) for region, (mask, result) in masks.items()},
    )


def _dice_in_words(uncertainty: RegionUncertainty) -> str:
    error = uncertainty.estimate_error
    off = f"such estimates were {100 * error:.0f} points off on average"
    if uncertainty.withheld:
        return f"no estimated Dice, because {off}"
    if math.isnan(uncertainty.estimated_dice):
        return "not found, so no Dice is estimated"
    usual = "" if math.isnan(error) else f" ({off})"
    return f"estimated Dice {100 * uncertainty.estimated_dice:.0f} %{usual}"


def _agreement_in_words(uncertainty: RegionUncertainty) -> str:
    agreement = uncertainty.agreement
    return "" if math.isnan(agreement) else f", agreement of the passes: Dice {100 * agreement:.0f} %"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
