"""Two views of one study: crops with most blocks of each modality hidden, and voxels that are visible in both.

All random numbers are drawn in `view_pair`, and in the functions that it gives `rng`; all others are deterministic.
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
"""Draws of crops and blocks before fewer voxels than `Config.voxels` are accepted. Authors' code: no limit."""


@dataclass(frozen=True, kw_only=True)
class ViewPair:
    """Two views of one study; axis `v` counts them."""

    seen: Float[np.ndarray, "v m x y z"]
    """Images that the networks see: blocks hidden, intensities changed."""
    whole: Float[np.ndarray, "v m x y z"]
    """Images to restore."""
    unit: Float[np.ndarray, "v m"]
    """Range of the intensities of `whole`, by which errors are divided."""
    voxels: Int[np.ndarray, "v n 3"]
    """Voxel pairs: row by row, the same place of the patient in both views."""
    available: Modality
    study: str


@dataclass(kw_only=True)
class PairBatch(Batch):
    """Batch of view pairs; every tensor holds all first views, then all second ones."""

    whole: Float[Tensor, "vb m x y z"]
    unit: Float[Tensor, "vb m"]
    voxels: Int[Tensor, "vb n 3"]


def collate_pairs(pairs: Sequence[ViewPair]) -> PairBatch:
    """Return a batch: all first views, then all second ones."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(pair, name) for pair in pairs], 1)).flatten(0, 1)

    available = torch.stack([to_flags(pair.available) for pair in pairs])
    return PairBatch(
        image=stacked("seen"),
        available=torch.cat([available, available]),
        whole=stacked("whole"),
        unit=stacked("unit"),
        voxels=stacked("voxels"),
        study=[pair.study for pair in pairs],
    )


def view_pair(case: Case, patch: tuple[int, int, int], config: Config, rng: np.random.Generator) -> ViewPair:
    """Return two views of a study, and `Config.voxels` voxels that are visible in both.

    If fewer are visible, voxels are drawn with replacement.

    Args:
        case: prepared study.
        patch: sides of a crop, in voxels.
        config: settings.
        rng: source of random numbers; advances.

    Raises: InputError if no draw of `overlapping_views` has a voxel that is visible in both views.
    """
    channels = np.array([modality in case.available for modality in Modality])
    views, starts, visible = overlapping_views(case, patch, config, rng)
    if not len(visible):
        raise InputError(
            f"Study {case.id} shows no voxel in two crops of {'x'.join(map(str, patch))} voxels. Is its brain all but "
            "empty? Move it away, or take larger crops or smaller blocks."
        )
    chosen = visible[rng.choice(len(visible), config.voxels, replace=len(visible) < config.voxels)]
    seen = []
    for one in views:
        change = intensities.random_change(config.intensities, one.whole.shape, rng)
        shown = intensities.apply_change(change, one.whole if config.hide_last else one.masked, one.unit)
        shown = np.where(one.kept, shown, 0) if config.hide_last else shown
        seen.append(np.where(channels[:, None, None, None], shown, 0).astype(np.float32))
    return ViewPair(
        seen=np.stack(seen),
        whole=np.stack([one.whole for one in views]),
        unit=np.stack([one.unit for one in views]),
        voxels=chosen[None] - starts[:, None],
        available=case.available,
        study=case.id,
    )


def overlapping_views(
    case: Case, patch: tuple[int, int, int], config: Config, rng: np.random.Generator
) -> tuple[list[View], Int[np.ndarray, "2 3"], Int[np.ndarray, "k 3"]]:
    """Return two views, their first voxels, and the voxels of the study that are visible in both, perhaps none.

    Crops and blocks are drawn until at least `Config.voxels` voxels are visible in both, at most `ATTEMPTS` times. All
    of them are returned; with `Config.by_channel` a voxel may occur several times. After `ATTEMPTS` draws,
    both views are the same crop with the same blocks, drawn once, and again while no draw so far shows a voxel, at most
    `ATTEMPTS` times. Of all draws, the one with the most visible voxels is returned. For each voxel and view one
    modality is drawn, which has to show the voxel. Where a crop is larger than the study, its first voxel is negative.

    Args:
        case: prepared study.
        patch: sides of a crop, in voxels.
        config: settings.
        rng: source of random numbers; advances.
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
        views = [
            crop_view(case, start, patch, blocks=blocks, config=config)
            for start, blocks in zip(starts, uniforms, strict=True)
        ]
        where = candidates(views[0].tissue, starts, by_channel=config.by_channel)
        drawn = rng.choice(channels, (2, len(where)))
        visible = where[visible_in_both([one.visible for one in views], where, starts, drawn)]
        if best is None or len(visible) > len(best[2]):
            best = views, starts, visible
        if len(best[2]) >= (config.voxels if attempt < ATTEMPTS else 1):
            break
    assert best is not None
    return best


@dataclass(frozen=True, kw_only=True)
class View:
    """One crop before its intensities are changed."""

    whole: Float[np.ndarray, "m x y z"]
    """Scaled images."""
    unit: Float[np.ndarray, "m"]
    tissue: Bool[np.ndarray, "m x y z"]
    """Voxels that are not air."""
    kept: Bool[np.ndarray, "m x y z"]
    """Voxels of blocks that are not hidden."""
    visible: Bool[np.ndarray, "m x y z"]
    """Tissue that is not hidden; with `Config.scaling` of `crop`, what is above 0 after scaling, and not hidden."""

    @property
    def masked(self) -> Float[np.ndarray, "m x y z"]:
        """Images with 0 in hidden blocks. Eq. (2)."""
        return np.where(self.kept, self.whole, np.float32(0))


def crop_view(
    case: Case,
    start: Int[np.ndarray, "3"],
    patch: tuple[int, int, int],
    blocks: Float[np.ndarray, "m i j k"],
    config: Config,
) -> View:
    """Return the view of a study that begins at voxel `start`; intensities are scaled and blocks hidden.

    Args:
        case: prepared study.
        start: first voxel of the crop.
        patch: sides of the crop, in voxels.
        blocks: uniform random numbers, one for each block of each modality.
        config: settings.
    """
    raw = case.crop(start.tolist(), patch).image.astype(np.float32)
    air = np.array([case.level(m) if m in case.available else 0 for m in Modality], np.float32)
    return scaled_view(raw, raw != air[:, None, None, None], blocks, config)


def scaled_view(
    raw: Float[np.ndarray, "m x y z"],
    tissue: Bool[np.ndarray, "m x y z"],
    blocks: Float[np.ndarray, "m i j k"],
    config: Config,
) -> View:
    """Return the view of a crop, with intensities scaled and blocks hidden.

    Args:
        raw: images of the crop.
        tissue: voxels that are not air.
        blocks: uniform random numbers, one for each block of each modality.
        config: settings.
    """
    kept = blocks_to_voxels(blocks <= 1 - config.hidden, raw.shape[1:], config)
    if config.scaling == "crop":  # the darkest voxel of a crop counts as hidden
        whole = zero_to_one(raw)
        unit = np.ones(len(raw), np.float32)
        return View(whole=whole, unit=unit, tissue=tissue, kept=kept, visible=kept & (whole > 0))
    unit = np.ptp(raw, axis=(1, 2, 3))
    return View(whole=raw, unit=np.where(unit > 0, unit, 1), tissue=tissue, kept=kept, visible=kept & tissue)


def zero_to_one(crop: Float[np.ndarray, "m x y z"]) -> Float[np.ndarray, "m x y z"]:
    """Return each modality scaled to 0 ... 1 over the crop; a constant modality stays as it is. Eq. (1)."""
    lowest, span = crop.min((1, 2, 3), keepdims=True), np.ptp(crop, axis=(1, 2, 3), keepdims=True)
    return np.where(span > 0, (crop - lowest) / np.where(span > 0, span, 1), crop).astype(np.float32)


def blocks_along(patch: Sequence[int], config: Config) -> tuple[int, ...]:
    """Return the number of blocks of a crop along each axis."""
    return tuple(side // config.block for side in patch)


def blocks_to_voxels(
    shown: Shaped[np.ndarray, "m i j k"], shape: Sequence[int], config: Config
) -> Shaped[np.ndarray, "m x y z"]:
    """Return a value for each voxel from a value for each block.

    For `zoom`, voxel i belongs to block round((n - 1) i / (side - 1)) of n: the first and the last block of an axis are
    about half as thick as the others.

    Args:
        shown: a value for each block.
        shape: sides of the crop, in voxels.
        config: settings.
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
    """Return the voxels of the study that lie in both crops and show tissue in the first. Only the overlap is searched.

    Args:
        tissue: voxels of the first crop that are not air.
        starts: first voxel of each crop.
        by_channel: True repeats a voxel for each modality that shows tissue.
    """
    size = np.array(tissue.shape[1:])
    low, high = starts.max(0), starts.min(0) + size
    if (low >= high).any():
        return np.zeros((0, 3), int)
    overlap = tissue[:, *(slice(a, b) for a, b in zip(low - starts[0], high - starts[0], strict=True))]
    voxels = np.argwhere(overlap)[:, 1:] if by_channel else np.argwhere(overlap.any(0))
    return voxels + low


def visible_in_both(
    visible: Sequence[Bool[np.ndarray, "m x y z"]],
    where: Int[np.ndarray, "n 3"],
    starts: Int[np.ndarray, "2 3"],
    drawn: Int[np.ndarray, "2 n"],
) -> Bool[np.ndarray, "n"]:
    """Return True for the voxels that are visible in both views, each in the modality drawn for it.

    Args:
        visible: visible voxels of each view.
        where: voxels of the study.
        starts: first voxel of each crop.
        drawn: modality that has to be visible, for each view and voxel.

    Eq. (3).
    """
    both = [one[(modality, *(where - start).T)] for one, start, modality in zip(visible, starts, drawn, strict=True)]
    return both[0] & both[1]
