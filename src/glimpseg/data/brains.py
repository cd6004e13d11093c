"""Brain masks of the sequences of one study: a sequence with disturbed air uses the mask of a clean one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from glimpseg.data.notices import warn
from glimpseg.foreground import LARGEST_FOREGROUND, Foreground, find_foreground
from glimpseg.metrics import dice
from glimpseg.modality import Modality
from glimpseg.volume import Grid, Volume, resample_labels, same_grid

INSIDE_SHARE = 0.9
"""Smallest share of a clean mask that lies in the mask of a sequence with disturbed air, if both show one brain."""
AGREEMENT = 0.85
"""Smallest Dice of two masks that were found by thresholds and show one brain."""
CHECK = "Check the brain in the preview; if it is wrong, give a mask with --brain-mask."


@dataclass(frozen=True, eq=False, kw_only=True)
class _Packed:
    """Brain mask with one bit for each voxel, in RAS order."""

    bits: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "x y z"], grid: Grid) -> _Packed:
        turned = Volume(mask.view(np.uint8), grid.affine).ras()
        return cls(bits=np.packbits(turned.voxels), grid=turned.grid)

    @property
    def mask(self) -> Bool[np.ndarray, "x y z"]:
        count = int(np.prod(self.grid.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.grid.shape).view(bool)


@dataclass
class SeenBrains:
    """Brain masks of the sequences that were read so far."""

    disturbed: dict[Modality, Grid] = field(default_factory=dict)
    """Sequences with disturbed air, with their grids."""
    _found: dict[Modality, _Packed] = field(default_factory=dict)
    _clean: dict[Modality, _Packed] = field(default_factory=dict)
    _levels: dict[Modality, tuple[float, float]] = field(default_factory=dict)
    """Background and threshold of the sequences with disturbed air."""

    def add(self, modality: Modality, volume: Volume, name: str) -> Foreground:
        """Find the brain of a sequence, with a warning if there is no air.

        If the mask is not exact, `brain` returns the final one after all sequences were added.
        """
        found = find_foreground(volume.voxels)
        if found.exact:
            if found.mask.mean() > LARGEST_FOREGROUND:
                warn(f"{name}: no air was found, so the whole image is taken for brain. {CHECK}")
            known = any(same_grid(other.grid, volume.grid.ras()) for other in self._clean.values())
            if not known and found.mask.mean() <= LARGEST_FOREGROUND:
                self._clean[modality] = _Packed.of(found.mask, volume.grid)
            return found
        self.disturbed[modality] = volume.grid
        self._found[modality] = _Packed.of(found.mask, volume.grid)
        self._levels[modality] = found.background, found.threshold
        return found

    def brain(self, modality: Modality, name: str) -> Foreground:
        """Return the brain of a sequence with disturbed air, with a warning.

        It is the mask of a clean sequence on the same grid if there is one that agrees. Otherwise it is the mask of
        this sequence by a threshold, corrected by the sequences on the same grid that agree with it.

        Args:
            modality: The sequence.
            name: Name of the image in warnings.
        """
        mine = self._found[modality].mask
        says = f"{name}: the air is not one value (noise, ringing or ghosts)."
        for other, clean in self._clean.items():
            if self._same_grid(modality, clean):
                theirs = clean.mask
                if (theirs & mine).sum() >= INSIDE_SHARE * theirs.sum():
                    warn(f"{says} The brain was taken from {other.title}. {CHECK}")
                    return self._as_stored(modality, theirs)
        peers = [found.mask for found in self._found.values() if self._same_grid(modality, found)]
        agreeing = [mask for mask in peers if dice(mask, mine) >= AGREEMENT]
        mask = np.asarray(2 * np.sum(agreeing, axis=0, dtype=np.uint8) >= len(agreeing))
        size = float(mask.sum()) * self.disturbed[modality].voxel_ml
        warn(
            f"{says} The brain was found by a threshold of {self._levels[modality][1]:.3g} above the air "
            f"({size:.0f} ml). {CHECK}"
        )
        return self._as_stored(modality, mask)

    def _same_grid(self, modality: Modality, other: _Packed) -> bool:
        return same_grid(self._found[modality].grid, other.grid)

    def _as_stored(self, modality: Modality, mask: Bool[np.ndarray, "x y z"]) -> Foreground:
        """Return a mask in RAS order as the foreground of a sequence, in the axis order of its file."""
        turned = Volume(mask.view(np.uint8), self._found[modality].grid.affine)
        stored = resample_labels(turned, self.disturbed[modality]).voxels > 0
        background, threshold = self._levels[modality]
        return Foreground(mask=stored, background=background, exact=False, threshold=threshold)
