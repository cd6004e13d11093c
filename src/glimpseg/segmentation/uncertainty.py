"""How sure one segmentation is: the Dice to be estimated of it from calibrated probabilities, and how far it moves when
the images are mirrored or a sequence is left out.

Labels are never changed by any of this: they are those of the plain forward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import special

from glimpseg import metrics
from glimpseg.data.preprocess import Prepared
from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.volume import Grid, Volume, bounding_box

Level: TypeAlias = Literal["none", "quick", "full"]
"""How much is computed: nothing; the estimate and one mirrored pass; all mirrored passes and the left-out sequences."""

AXES = ("left-right", "front-back", "up-down")
"""Of the working grid, which is in RAS order."""
MIRRORS: Mapping[Level, tuple[tuple[int, ...], ...]] = {
    "none": (),
    "quick": ((0,),),
    "full": tuple(axes for count in (1, 2, 3) for axes in itertools.combinations(range(3), count)),
}
"""Axes along which the images are mirrored, one pass each. A head is nearly the same in a mirror left and right; the
other flips show a network what no patient looks like, unless it was trained with them."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """How sure one region of one segmentation is."""

    estimated_dice: float
    """To be expected of this very mask, if the probabilities mean what they say; NaN where nothing was found."""
    lowest_ml: float
    """The smallest volume among the segmentation and all members."""
    highest_ml: float
    agreement: float
    """Mean Dice of the members with the segmentation; NaN without members."""

    @property
    def spread_ml(self) -> tuple[float, float]:
        """From the smallest volume to the largest."""
        return self.lowest_ml, self.highest_ml


@dataclass(frozen=True, kw_only=True)
class Member:
    """Another look at the same study."""

    name: str
    """`mirrored left-right`, `without T2`."""
    volumes_ml: Mapping[Region, float]
    dice: Mapping[Region, float]
    """With the segmentation."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """How sure one segmentation is, by region."""

    level: Level
    calibrated: bool
    """Whether the probabilities were brought to their temperatures; if not, the estimates are the network's own."""
    regions: Mapping[Region, Doubt]
    members: tuple[Member, ...]

    def sentences(self, errors: Mapping[Region, float]) -> list[str]:
        """For a person; `errors` says by how much such estimates were wrong where that could be checked."""
        by = "calibrated probabilities" if self.calibrated else "the network's own, uncalibrated probabilities"
        said = [f"This study, by {by} and {len(self.members) + 1} passes ({self._names()}):"]
        for region, doubt in self.regions.items():
            low, high = doubt.spread_ml
            dice = _estimated(doubt, errors.get(region, math.nan))
            said.append(f"  {region.name}: {dice}; {low:.1f} to {high:.1f} ml{_agreeing(doubt)}.")
        return said

    def _names(self) -> str:
        return "as it is" + "".join(f", {member.name}" for member in self.members)

    def as_tree(self) -> dict[str, Any]:
        """For JSON; what is not defined is null."""
        return {
            "level": self.level,
            "calibrated": self.calibrated,
            "regions": {region.name: doubt_tree(doubt) for region, doubt in self.regions.items()},
            "members": [
                {
                    "name": member.name,
                    "volume_ml": {region.name: round(value, 4) for region, value in member.volumes_ml.items()},
                    "dice": {region.name: round(value, 4) for region, value in member.dice.items()},
                }
                for member in self.members
            ],
        }


def doubt_tree(doubt: Doubt) -> dict[str, float | None]:
    """For JSON and tables."""
    return {
        "estimated_dice": _number(doubt.estimated_dice),
        "volume_low_ml": _number(doubt.lowest_ml),
        "volume_high_ml": _number(doubt.highest_ml),
        "agreement": _number(doubt.agreement),
    }


def calibrated(probability: Float[np.ndarray, "..."], temperature: float) -> Float[np.ndarray, "..."]:
    """sigmoid(logit(p) / T). One half stays one half, 0 stays 0, and the order of voxels stays; so do labels. Eq. (1)
    of the page on trust."""
    if temperature == 1:
        return probability
    scaled = special.logit(probability) / np.asarray(temperature, probability.dtype)
    return np.asarray(special.expit(scaled), probability.dtype)


def estimated_dice(probability: Float[np.ndarray, "..."], mask: Bool[np.ndarray, "..."]) -> float:
    """2 sum(p m) / (sum p + sum m): the Dice to expect of a mask when each voxel belongs to the region with its
    probability. NaN for an empty mask. Give the voxels of the brain: far from it nothing was calibrated. Eq. (3) of the
    page on trust."""
    shared, total = (float(p.sum(dtype=np.float64)) for p in (probability[mask], probability))
    return _dice_of(shared, total, int(mask.sum()))


def _dice_of(shared: float, total: float, voxels: float) -> float:
    return 2 * shared / (total + voxels) if voxels else math.nan


class DiceEstimate:
    """`estimated_dice` of each region, from a label map and probabilities that come part by part."""

    def __init__(self) -> None:
        self._sums: dict[Region, np.ndarray] = {}

    def add(
        self,
        labels: UInt8[np.ndarray, "x y z"],
        probabilities: Mapping[Region, Float[np.ndarray, "x y z"]],
        brain: Bool[np.ndarray, "x y z"],
    ) -> None:
        """Takes one more part; beyond the brain and the mask itself nothing counts."""
        for region, probability in probabilities.items():
            mask = region.mask(labels)
            shared, total = (probability[where].sum(dtype=np.float64) for where in (mask, brain | mask))
            so_far = self._sums.get(region, np.zeros(3))
            self._sums[region] = so_far + np.array([shared, total, mask.sum()])

    @property
    def dice(self) -> dict[Region, float]:
        """By region, of all parts together."""
        return {region: _dice_of(*sums.tolist()) for region, sums in self._sums.items()}


def mirrored(prepared: Prepared, axes: Sequence[int]) -> Prepared:
    """The study as a network would see it in a mirror, on a grid that says so: its axes run the other way, and results
    return to the own grid without being flipped by hand."""
    turn = np.eye(4)
    for axis in axes:
        turn[axis, axis] = -1
        turn[axis, 3] = prepared.grid.shape[axis] - 1
    channels = tuple(axis + 1 for axis in axes)
    return replace(
        prepared,
        image=np.ascontiguousarray(np.flip(prepared.image, channels)),
        inside=np.ascontiguousarray(np.flip(prepared.inside, channels)),
        target=None if prepared.target is None else np.ascontiguousarray(np.flip(prepared.target, tuple(axes))),
        grid=Grid(prepared.grid.shape, prepared.grid.affine @ turn),
    )


def looks(prepared: Prepared, level: Level) -> Iterator[tuple[str, Prepared]]:
    """The mirrored studies of a level, by name."""
    for axes in MIRRORS[level]:
        yield f"mirrored {' and '.join(AXES[axis] for axis in axes)}", mirrored(prepared, axes)


def left_out(available: Modality, level: Level) -> dict[Modality, str]:
    """The subsets that lack one of the sequences, with names; none unless `full`, nor of a single sequence."""
    if level != "full" or len(available) == 1:
        return {}
    return {available & ~modality: f"without {modality.title}" for modality in available}


def doubts(
    labels: Volume,
    estimates: Mapping[Region, float],
    members: Iterable[tuple[str, Volume]],
    *,
    level: Level,
    calibrated: bool,
) -> Uncertainty:
    """What a segmentation's probabilities and other looks at the study say of it.

    `estimates` are the Dice to expect of each region (`DiceEstimate`). `members` are named label maps on the grid of
    `labels`; each is let go after it was compared.
    """
    seen = tuple(_member(name, other, labels, tuple(estimates)) for name, other in members)
    voxel, found = labels.grid.voxel_ml, {}
    for region, estimate in estimates.items():
        volumes = [
            metrics.volume_ml(region.mask(labels.voxels), voxel),
            *(member.volumes_ml[region] for member in seen),
        ]
        found[region] = Doubt(
            estimated_dice=estimate,
            lowest_ml=min(volumes),
            highest_ml=max(volumes),
            agreement=float(np.mean([member.dice[region] for member in seen])) if seen else math.nan,
        )
    return Uncertainty(level=level, calibrated=calibrated, regions=found, members=seen)


def _member(name: str, other: Volume, labels: Volume, regions: Sequence[Region]) -> Member:
    box = bounding_box((other.voxels > 0) | (labels.voxels > 0)) or (slice(0, 0),) * 3
    one, two = other.voxels[box], labels.voxels[box]
    masks = {region: (region.mask(one), region.mask(two)) for region in regions}
    return Member(
        name=name,
        volumes_ml={region: metrics.volume_ml(mask, labels.grid.voxel_ml) for region, (mask, _) in masks.items()},
        dice={region: metrics.dice(mask, result) for region, (mask, result) in masks.items()},
    )


def _estimated(doubt: Doubt, error: float) -> str:
    if math.isnan(doubt.estimated_dice):
        return "not found, so that no Dice is estimated"
    usual = "" if math.isnan(error) else f" (such estimates were {100 * error:.0f} points off on average)"
    return f"estimated Dice {100 * doubt.estimated_dice:.0f} %{usual}"


def _agreeing(doubt: Doubt) -> str:
    return "" if math.isnan(doubt.agreement) else f", passes agree by a Dice of {100 * doubt.agreement:.0f} %"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
