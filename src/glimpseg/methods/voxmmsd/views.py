"""Two crops of one study, with most blocks of each modality hidden, and voxels that can be seen in both.

Everything random is drawn by `pair`; the other functions are given what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from glimpseg.data.cache import Case
from glimpseg.data.crops import Batch
from glimpseg.errors import InputError
from glimpseg.methods.voxmmsd import intensities
from glimpseg.methods.voxmmsd.config import Config
from glimpseg.modality import Modality, to_flags

ATTEMPTS = 20
"""Draws of crops and blocks before fewer voxels than wanted will do. Authors' code: no end."""


@dataclass(frozen=True)
class Pair:
    """A study seen twice; `v` counts the two views."""

    seen: Float[np.ndarray, "v m x y z"]
    """Blocks hidden, intensities changed: what the networks are shown."""
    whole: Float[np.ndarray, "v m x y z"]
    """What is to be restored."""
    unit: Float[np.ndarray, "v m"]
    """Range of the intensities of `whole`, by which errors are measured."""
    voxels: Int[np.ndarray, "v n 3"]
    """Row by row the same place of the patient in both views."""
    available: Modality
    study: str


@dataclass(kw_only=True)
class Pairs(Batch):
    """Several studies: `image` and `available` hold all first views, then all second ones, as do these."""

    whole: Float[Tensor, "vb m x y z"]
    unit: Float[Tensor, "vb m"]
    voxels: Int[Tensor, "vb n 3"]


def collated(pairs: Sequence[Pair]) -> Pairs:
    """All first views, then all second ones."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(pair, name) for pair in pairs], 1)).flatten(0, 1)

    available = torch.stack([to_flags(pair.available) for pair in pairs])
    return Pairs(
        image=stacked("seen"),
        available=torch.cat([available, available]),
        whole=stacked("whole"),
        unit=stacked("unit"),
        voxels=stacked("voxels"),
        study=[pair.study for pair in pairs],
    )


def pair(case: Case, patch: tuple[int, int, int], config: Config, rng: np.random.Generator) -> Pair:
    """Two views of a study, and voxels that both see; of too few some are taken more than once.

    Raises: InputError for a study that shows nothing twice in all that is drawn.
    """
    channels = np.array([modality in case.available for modality in Modality])
    views, starts, found = overlapping(case, patch, config, rng)
    if not len(found):
        raise InputError(
            f"Study {case.id} shows no voxel in two crops of {'x'.join(map(str, patch))} voxels. Is its brain all but "
            "empty? Move it away, or take larger crops or smaller blocks."
        )
    chosen = found[rng.choice(len(found), config.voxels, replace=len(found) < config.voxels)]
    seen = []
    for one in views:
        change = intensities.sample(config.intensities, one.whole.shape, rng)
        shown = intensities.applied(change, one.whole if config.hide_last else one.masked, one.unit)
        shown = np.where(one.kept, shown, 0) if config.hide_last else shown
        seen.append(np.where(channels[:, None, None, None], shown, 0).astype(np.float32))
    return Pair(
        seen=np.stack(seen),
        whole=np.stack([one.whole for one in views]),
        unit=np.stack([one.unit for one in views]),
        voxels=chosen[None] - starts[:, None],
        available=case.available,
        study=case.id,
    )


def overlapping(
    case: Case, patch: tuple[int, int, int], config: Config, rng: np.random.Generator
) -> tuple[list[View], Int[np.ndarray, "2 3"], Int[np.ndarray, "k 3"]]:
    """Two crops, where they begin, and the voxels of the study that both show, perhaps none.

    Crops and blocks are drawn anew until enough voxels are seen in both, at most `ATTEMPTS` times; then two of one
    place with the same blocks, until any are.
    """
    channels = [number for number, modality in enumerate(Modality) if modality in case.available]
    room = np.array(case.shape) - patch
    best: tuple[list[View], np.ndarray, np.ndarray] | None = None
    for attempt in range(2 * ATTEMPTS):
        places = np.floor(rng.random((2, 3)) * (np.abs(room) + 1)).astype(int)
        uniforms = rng.random((2, len(Modality), *blocks_along(patch, config)))
        if attempt >= ATTEMPTS:
            places[1], uniforms[1] = places[0], uniforms[0]
        starts = np.where(room >= 0, places, -places)
        views = [view(case, start, patch, blocks, config) for start, blocks in zip(starts, uniforms, strict=True)]
        where = candidates(views[0].tissue, starts, by_channel=config.by_channel)
        drawn = rng.choice(channels, (2, len(where)))
        found = where[seen_twice([one.visible for one in views], where, starts, drawn)]
        if best is None or len(found) > len(best[2]):
            best = views, starts, found
        if len(best[2]) >= (config.voxels if attempt < ATTEMPTS else 1):
            break
    assert best is not None
    return best


@dataclass(frozen=True)
class View:
    """One crop before its intensities are changed."""

    whole: Float[np.ndarray, "m x y z"]
    """Scaled."""
    unit: Float[np.ndarray, "m"]
    tissue: Bool[np.ndarray, "m x y z"]
    """What is not air."""
    kept: Bool[np.ndarray, "m x y z"]
    """Blocks that are not hidden."""
    visible: Bool[np.ndarray, "m x y z"]
    """Tissue that is not hidden."""

    @property
    def masked(self) -> Float[np.ndarray, "m x y z"]:
        """With 0 where it is hidden. Eq. (2)."""
        return np.where(self.kept, self.whole, np.float32(0))


def view(
    case: Case,
    start: Int[np.ndarray, "3"],
    patch: tuple[int, int, int],
    blocks: Float[np.ndarray, "m i j k"],
    config: Config,
) -> View:
    """The crop at voxel `start`; `blocks` are uniform numbers, one for each block of each modality."""
    raw = case.crop(start.tolist(), patch).image.astype(np.float32)
    air = np.array([case.level(m) if m in case.available else 0 for m in Modality], np.float32)
    return scaled_view(raw, raw != air[:, None, None, None], blocks, config)


def scaled_view(
    raw: Float[np.ndarray, "m x y z"],
    tissue: Bool[np.ndarray, "m x y z"],
    blocks: Float[np.ndarray, "m i j k"],
    config: Config,
) -> View:
    """A crop's intensities scaled and its blocks drawn."""
    kept = expanded(blocks <= 1 - config.hidden, raw.shape[1:], config)
    if config.scaling == "crop":  # the darkest voxel of a crop counts as unseen
        whole = zero_to_one(raw)
        return View(whole, np.ones(len(raw), np.float32), tissue, kept, kept & (whole > 0))
    unit = np.ptp(raw, axis=(1, 2, 3))
    return View(raw, np.where(unit > 0, unit, 1), tissue, kept, kept & tissue)


def zero_to_one(crop: Float[np.ndarray, "m x y z"]) -> Float[np.ndarray, "m x y z"]:
    """Each modality from 0 to 1 over the crop; a constant one stays as it is. Eq. (1)."""
    lowest, span = crop.min((1, 2, 3), keepdims=True), np.ptp(crop, axis=(1, 2, 3), keepdims=True)
    return np.where(span > 0, (crop - lowest) / np.where(span > 0, span, 1), crop).astype(np.float32)


def blocks_along(patch: Sequence[int], config: Config) -> tuple[int, ...]:
    """How many blocks a crop has along each axis."""
    return tuple(side // config.block for side in patch)


def expanded(
    shown: Shaped[np.ndarray, "m i j k"], shape: Sequence[int], config: Config
) -> Shaped[np.ndarray, "m x y z"]:
    """Blocks as voxels.

    `zoom`: voxel i belongs to block round((n - 1) i / (side - 1)) of n, so that the first and the last block of an axis
    are about half as thick as the others.
    """
    grown = shown
    for axis, side in enumerate(shape, 1):
        voxel, count = np.arange(side), shown.shape[axis]
        if config.footprint == "uniform":
            block = voxel // config.block
        else:
            block = np.floor((count - 1) * voxel / (side - 1) + 0.5).astype(int)
        grown = grown.take(block, axis)
    return grown


def candidates(
    tissue: Bool[np.ndarray, "m x y z"], starts: Int[np.ndarray, "2 3"], *, by_channel: bool
) -> Int[np.ndarray, "n 3"]:
    """Voxels of the study that lie in both crops and show tissue in the first, once or once for each modality that
    does. Only the overlap is searched."""
    size = np.array(tissue.shape[1:])
    low, high = starts.max(0), starts.min(0) + size
    if (low >= high).any():
        return np.zeros((0, 3), int)
    overlap = tissue[:, *(slice(a, b) for a, b in zip(low - starts[0], high - starts[0], strict=True))]
    found = np.argwhere(overlap)[:, 1:] if by_channel else np.argwhere(overlap.any(0))
    return found + low


def seen_twice(
    visible: Sequence[Bool[np.ndarray, "m x y z"]],
    where: Int[np.ndarray, "n 3"],
    starts: Int[np.ndarray, "2 3"],
    drawn: Int[np.ndarray, "2 n"],
) -> Bool[np.ndarray, "n"]:
    """Which of the voxels `where` each view shows in the modality `drawn` for it. Eq. (3)."""
    both = [one[(modality, *(where - start).T)] for one, start, modality in zip(visible, starts, drawn, strict=True)]
    return both[0] & both[1]
