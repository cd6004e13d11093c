"""What a phantom is drawn from: version, seed, settings. Equal in all three means equal voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from glimpseg.phantom.variety import STANDARD, Variety

VERSION: int = 1
"""A change of voxels is a new version."""
NAME: str = f"phantom-{VERSION}"
"""The benchmark's name."""

FIELD_OF_VIEW_MM = (240.0, 240.0, 155.0)
"""The field of view of BraTS."""
MINIMAL_EXTENT_MM = 48.0
"""A thinner field of view may hold no white matter deep enough for a tumour."""
SPACINGS_MM = (0.5, 4.0)
"""The atlas has 1 mm voxels, so finer ones would show nothing new; in coarser ones small tumours vanish."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The grid and the population that phantoms are drawn from."""

    shape: tuple[int, int, int] = (240, 240, 155)
    """Voxels along x y z (RAS). Where the field of view is smaller than the head, the head is cropped."""
    spacing_mm: float = 1.0
    """Edge of the cubic voxels."""
    low_grade: float = 0.22
    """Probability that a tumour is low-grade: little or no enhancement, no necrosis, little oedema."""
    second_focus: float = 0.15
    """Probability of a second, smaller focus near the first."""
    post_operative: float = 0.0
    """Probability that the tumour has been operated on: a resection cavity with remnants at its wall."""
    healthy: float = 0.0
    """Probability that there is no tumour at all."""
    haemorrhage: float = 0.3
    """Probability of blood in a high-grade core, bright on T1 before contrast."""
    core_ml: tuple[float, float] = (2.0, 110.0)
    """Smallest and largest volume of a first focus' core; log-normal in between, median 26 ml."""
    mass_effect_mm: float = 9.0
    """Largest displacement of the brain by the tumour; uniform below."""
    field_strengths: tuple[float, ...] = (1.5, 3.0)
    """Scanners that occur, in tesla; of 1.5 and 3.0, the latter is 1.5 times as frequent."""
    noise: tuple[float, float] = (0.015, 0.05)
    """Range of the noise's standard deviation, relative to the signal of white matter at 1 mm."""
    bias: tuple[float, float] = (0.04, 0.18)
    """Range of the standard deviation of the logarithm of the coils' sensitivity over the head."""
    thick_slices: float = 0.7
    """Probability that a two-dimensional sequence has slices of 2.5 to 5 mm."""
    variety: Variety = STANDARD
    """What is drawn beyond this population; nothing by default."""

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn. Raises: ValueError naming the field, what came and what to do."""
        self._check_grid()
        for name in ("low_grade", "second_focus", "post_operative", "healthy", "haemorrhage", "thick_slices"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability between 0 and 1; {value} came. Give, say, 0.2 for 20 %.")
        for name in ("core_ml", "noise", "bias"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise ValueError(
                    f"{name} is a range (low, high) with 0 <= low <= high; ({low}, {high}) came. Order it."
                )
        if not 1 <= self.core_ml[0] <= self.core_ml[1] <= 150:
            raise ValueError(f"core_ml must lie within 1 and 150 ml; {self.core_ml} came. Narrow the range.")
        if not 0 <= self.mass_effect_mm <= 15:
            raise ValueError(f"mass_effect_mm must lie within 0 and 15; {self.mass_effect_mm} came. Lower it.")
        if not self.field_strengths or not set(self.field_strengths) <= {1.5, 3.0}:
            raise ValueError(f"field_strengths holds 1.5, 3.0 or both; {self.field_strengths} came. Name one of them.")

    def _check_grid(self) -> None:
        if len(self.shape) != 3 or not all(isinstance(n, int) and n > 0 for n in self.shape):
            raise ValueError(
                f"shape needs three positive whole numbers (x, y, z); {self.shape} came. Give voxel counts."
            )
        low, high = SPACINGS_MM
        if not low <= self.spacing_mm <= high:
            raise ValueError(
                f"spacing_mm must lie within {low} and {high}; {self.spacing_mm} came. Resample the phantom instead."
            )
        if min(self.extent_mm) < MINIMAL_EXTENT_MM or max(self.extent_mm) > max(FIELD_OF_VIEW_MM) + 2 * high:
            raise ValueError(
                f"The field of view must measure {MINIMAL_EXTENT_MM:g} to {max(FIELD_OF_VIEW_MM):g} mm along an axis; "
                f"{self.shape} voxels of {self.spacing_mm:g} mm came. Use Settings.at_spacing({self.spacing_mm:g})."
            )

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """The field of view."""
        x, y, z = (n * self.spacing_mm for n in self.shape)
        return x, y, z

    @classmethod
    def at_spacing(cls, spacing_mm: float, **changes: object) -> Settings:
        """The field of view of BraTS (240 x 240 x 155 mm, rounded up to whole voxels) at another spacing."""
        if not spacing_mm > 0:
            raise ValueError(f"spacing_mm must be positive; {spacing_mm} came. Give the edge of a voxel in mm.")
        x, y, z = (math.ceil(extent / spacing_mm - 1e-3) for extent in FIELD_OF_VIEW_MM)
        return replace(cls(shape=(x, y, z), spacing_mm=float(spacing_mm)), **changes)  # type: ignore[arg-type]


def checked_seed(seed: int) -> int:
    """`seed` as a plain int. Raises: ValueError if it is not a whole number from 0 on."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"A phantom's seed is a whole number from 0 on; {seed!r} came. Give, say, 7.")
    return int(seed)


def keyed_generator(seed: int, name: str) -> np.random.Generator:
    """The stream of random numbers of one named decision or field.

    Keyed, not shared: a new decision elsewhere, or another order, changes none of the others.
    """
    key = np.random.SeedSequence([VERSION, seed, crc32(name.encode())])
    return np.random.Generator(np.random.SFC64(key))
