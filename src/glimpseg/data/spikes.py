"""Find and repair voxels whose intensity no tissue has: spikes, and bright values that wrapped to negative ones.

A few such voxels would decide the mean, the standard deviation, the maximum and, by interpolation, their neighbours.
The limits lie above what was measured on clean images of five datasets and on phantoms, so that clean images are not
changed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from glimpseg.data.notices import warn
from glimpseg.foreground import air_level, find_foreground
from glimpseg.volume import Volume

DARK_PERCENTILE, BRIGHT_PERCENTILE = 2, 98
"""Percentiles of the brain that give its range. 200 spikes in a brain of 4 mm voxels are fewer than 2 %."""
HIGHEST = 18.0
"""Limit above the median, in distances from the median to the bright percentile. Measured: up to 14.7 (vessels in T1c);
up to 7.8 in most images. 200 voxels side by side at ten times the median reach 20 to 33 in T1, T1c and FLAIR."""
LOWEST = 8.0
"""Limit below the median, in distances from the dark percentile to the median. Measured: up to 3.7."""
LONELY_RATIO = 4.0
"""Largest ratio of a bright voxel to its brightest neighbour, both above the dark percentile. Measured: up to 2.2."""
PAIR_RATIO = 12.0
"""Largest ratio to the third brightest neighbour, for two or three spikes side by side. Measured: up to 8."""
LONELY_HEIGHT = 1.5
"""Height above the median from which on the neighbours are compared, in the unit of `HIGHEST`."""
LEAST_UNIT = 0.25
"""Smallest unit, as a share of the distance from the background to the median, for a brain of nearly one value."""
BELOW_AIR = 0.5
"""Distance below the background, as a share of the distance to the bright percentile, that no tissue has if tissue is
brighter than air."""
BRIGHTER_SHARE = 0.9
"""Share of the brain that is brighter than the background if tissue is brighter than air."""
INT16 = 1 << 15
"""Smallest integer that wraps in a signed type of 16 bits."""
NEARLY_FULL = 0.9
"""Share of `INT16` that intensities reach if even brighter ones wrapped."""
OFFSETS = np.array([offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)])
"""The 26 neighbours of a voxel."""
LEAST_NEIGHBOURS = 9
"""Number of sound neighbours from which on a voxel of a group of spikes is replaced."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Repaired:
    """Image without impossible intensities."""

    voxels: Float[np.ndarray, "x y z"]
    """The same array if nothing was repaired, else a copy."""
    inside: Bool[np.ndarray, "x y z"]
    """Brain mask without spikes in the air."""
    spikes: int
    """Number of voxels that were replaced."""
    unwrapped: int
    """Number of voxels that got the value that they had before it wrapped to a negative one."""


def without_spikes(volume: Volume, name: str) -> Volume:
    """Repair an image whose brain is not known yet, with a warning. `name` is its name in the warning."""
    level = air_level(volume.voxels)
    if repair(volume.voxels, volume.voxels != level, level).voxels is volume.voxels:
        return volume
    # Ringing and noise are no spikes: the brain is looked for where they are possible.
    found = find_foreground(volume.voxels)
    sound = repair(volume.voxels, found.mask, found.background)
    warn_of_repair(sound, name)
    return volume if sound.voxels is volume.voxels else Volume(sound.voxels, volume.affine)


def warn_of_repair(sound: Repaired, name: str) -> None:
    """Warn of the voxels that were repaired, if there are any."""
    if sound.unwrapped:
        found = "1 voxel was" if sound.unwrapped == 1 else f"{sound.unwrapped:,} voxels were"
        warn(f"{name}: {found} too bright for 16 bits and had become negative; repaired.")
    if sound.spikes:
        one = f"{name}: 1 intensity that no tissue has (a spike) was replaced by its neighbours."
        many = f"{name}: {sound.spikes:,} intensities that no tissue has (spikes) were replaced by their neighbours."
        warn(one if sound.spikes == 1 else many)


@np.errstate(over="ignore")  # a limit beyond float32 is infinite, and no voxel is above it
def repair(voxels: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], background: float) -> Repaired:
    """Replace voxels that no tissue can have by the median of their sound neighbours.

    A voxel is replaced if it lies beyond the limits of the brain's intensities, or if it is several times as bright as
    all of its neighbours, or all but two. Groups are replaced from their surface to their middle. A spike with more
    neighbours in the air than in the brain belongs to the air.

    Args:
        voxels: Image; finite.
        inside: Brain mask.
        background: Intensity of the air.
    """
    tissue = voxels[inside]
    if not tissue.size:
        return Repaired(voxels=voxels, inside=inside, spikes=0, unwrapped=0)
    count = 0
    if (wrapped := _wrapped(voxels, inside, tissue)) is not None:
        voxels = np.where(wrapped, voxels + np.float32(2 * INT16), voxels)
        tissue, count = voxels[inside], int(wrapped.sum())
    low, middle, high = (float(value) for value in np.percentile(tissue, (DARK_PERCENTILE, 50, BRIGHT_PERCENTILE)))
    least = LEAST_UNIT * abs(middle - background)
    unit = max(high - middle, least)
    floor, ceiling = middle - LOWEST * max(middle - low, least), middle + HIGHEST * unit
    if (tissue >= background).mean() > BRIGHTER_SHARE:
        floor = max(floor, background - BELOW_AIR * (high - background))
    if tissue.max() <= middle + LONELY_HEIGHT * unit and tissue.min() >= floor:
        return Repaired(voxels=voxels, inside=inside, spikes=0, unwrapped=count)
    bad = inside & ((voxels > ceiling) | (voxels < floor))
    places = np.argwhere(inside & (voxels > middle + LONELY_HEIGHT * unit) & ~bad)
    around = np.sort(_neighbours(np.where(bad, np.float32(low), voxels), places), axis=1)
    height = voxels[tuple(places.T)] - low
    lonely = height > LONELY_RATIO * np.maximum(around[:, -1] - low, least)
    lonely |= height > PAIR_RATIO * np.maximum(around[:, -3] - low, least)
    bad[tuple(places[lonely].T)] = True
    if not bad.any():
        return Repaired(voxels=voxels, inside=inside, spikes=0, unwrapped=count)
    fixed, remaining = _replaced(voxels, inside, bad, background)
    return Repaired(voxels=fixed, inside=remaining, spikes=int(bad.sum()), unwrapped=count)


def _wrapped(
    voxels: Float[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], tissue: Float[np.ndarray, "n"]
) -> Bool[np.ndarray, "x y z"] | None:
    """Return the voxels that are bright and wrapped to negative integers of 16 bits; None if there are none.

    Wrapped voxels lie beside voxels that are nearly as bright as the type allows. Negative spikes do not.
    """
    if tissue.min() >= 0 or tissue.min() < -INT16 or not NEARLY_FULL * INT16 <= tissue.max() < INT16:
        return None
    if (tissue < 0).mean() > 0.5 or (tissue != np.rint(tissue)).any():
        return None
    negative = inside & (voxels < 0)
    around = _neighbours(voxels, np.argwhere(negative))
    sound = around[around > 0]
    return negative if sound.size and np.median(sound) > INT16 / 2 else None


def _neighbours(voxels: Float[np.ndarray, "x y z"], places: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 26"]:
    """Return the values of the 26 neighbours of each place; the border repeats its outermost voxels."""
    x, y, z = np.moveaxis(np.clip(places[:, None] + OFFSETS, 0, np.array(voxels.shape) - 1), -1, 0)
    return voxels[x, y, z]


def _replaced(
    voxels: Float[np.ndarray, "x y z"],
    inside: Bool[np.ndarray, "x y z"],
    bad: Bool[np.ndarray, "x y z"],
    background: float,
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Return the image and the brain mask with each bad voxel replaced, groups from their surface to their middle."""
    fixed, inside, left = voxels.copy(), inside.copy(), bad.copy()
    while left.any():
        places = np.argwhere(left)
        known = ~_neighbours(left, places)
        count = known.sum(1)
        ready = count >= min(LEAST_NEIGHBOURS, int(count.max()))
        places, known = places[ready], known[ready]
        tissue = _neighbours(inside, places) & known
        is_tissue = 2 * tissue.sum(1) >= known.sum(1)
        values = np.full(len(places), background, np.float32)
        if is_tissue.any():
            around = np.where(tissue[is_tissue], _neighbours(fixed, places[is_tissue]), np.nan)
            values[is_tissue] = np.nanmedian(around, axis=1)
        where = tuple(places.T)
        fixed[where], inside[where], left[where] = values, is_tissue, False
    return fixed, inside
