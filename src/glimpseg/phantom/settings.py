"""Settings of the phantom. Equal version, seed and settings give equal voxels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from glimpseg.phantom.folders import folder_summary, label_map_names
from glimpseg.phantom.traits import Traits
from glimpseg.phantom.variety import STANDARD, Variety

VERSION: int = 1
"""Version of the generator; it changes whenever voxels change."""
NAME: str = f"phantom-{VERSION}"
"""Name of the benchmark."""

NAME_2: str = "phantom-2"
"""Name of the generator with `Settings.traits`. It shares the random numbers of `phantom-1` and adds its own."""
FOLDERS = {
    "anatomies": "label maps of whole heads with FreeSurfer's numbers",
    "shapes": "label maps of tumours with BraTS's numbers",
}
"""Settings that name a folder, and what its files are."""

FIELD_OF_VIEW_MM = (240.0, 240.0, 155.0)
"""Field of view of BraTS images."""
MINIMAL_EXTENT_MM = 48.0
"""Smallest field of view along an axis. A smaller one may hold no white matter that is deep enough for a tumour."""
SPACINGS_MM = (0.5, 4.0)
"""Smallest and largest spacing.

The atlas has 1 mm voxels, so finer voxels show nothing new. In coarser ones small tumours vanish.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Grid and population that phantoms are drawn from.

    >>> settings = Settings.at_spacing(3.0, post_operative=1.0)
    >>> settings.shape
    (80, 80, 52)
    """

    shape: tuple[int, int, int] = (240, 240, 155)
    """Voxels along x, y and z (RAS). If the field of view is smaller than the head, the head is cropped."""
    spacing_mm: float = 1.0
    """Edge length of the cubic voxels."""
    low_grade: float = 0.22
    """Probability of a low-grade tumour: little or no enhancement, no necrosis, little oedema."""
    second_focus: float = 0.15
    """Probability of a second, smaller focus near the first."""
    post_operative: float = 0.0
    """Probability that the tumour has been operated on: a resection cavity with remnants in its wall."""
    healthy: float = 0.0
    """Probability that there is no tumour."""
    haemorrhage: float = 0.3
    """Probability of blood in a high-grade core; blood is bright on T1 before contrast."""
    core_ml: tuple[float, float] = (2.0, 110.0)
    """Smallest and largest core volume of a first focus, from 1 to 150 ml.

    Volumes are log-normal with a median of 26 ml (low-grade: 32 ml), clipped to this range.
    """
    mass_effect_mm: float = 9.0
    """Largest displacement of the brain by the tumour, from 0 to 15 mm.

    The displacement is uniform from 0 to this value; after surgery from -0.45 to 0.35 of it (negative: inwards).
    """
    field_strengths: tuple[float, ...] = (1.5, 3.0)
    """Field strengths of the scanners, in tesla. If both are given, 3.0 is 1.5 times as frequent as 1.5."""
    noise: tuple[float, float] = (0.015, 0.05)
    """Range of the standard deviation of the noise, relative to the signal of white matter at 1 mm."""
    bias: tuple[float, float] = (0.04, 0.18)
    """Range of the standard deviation of the logarithm of the coil sensitivity over the head."""
    thick_slices: float = 0.7
    """Probability that a two-dimensional sequence has slices of 2.5 to 5 mm."""
    variety: Variety = STANDARD
    """Variation beyond this population; none by default."""
    traits: Traits | None = None
    """What `phantom-2` adds; None for `phantom-1`."""
    anatomies: str | None = None
    """Folder of individuals' label maps (FreeSurfer's or SynthSeg's numbers); None for the average brain."""
    shapes: str | None = None
    """Folder of real tumours' label maps (BraTS); None for grown tumours."""

    def __post_init__(self) -> None:
        """Check all fields.

        Raises:
            ValueError: A field is out of range. The message names the field, its value and what to do.
        """
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
        for name, needed in FOLDERS.items():
            folder = getattr(self, name)
            if folder is not None:
                if self.traits is None:
                    raise ValueError(
                        f"{name} need phantom-2: give a population such as `patients`, or leave {name} out."
                    )
                label_map_names(folder, name, needed)
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
    def name(self) -> str:
        """Name of the generator: `phantom-1`, or `phantom-2` with traits."""
        return NAME if self.traits is None else NAME_2

    @property
    def anatomy_names(self) -> tuple[str, ...]:
        """File names of the anatomies; empty without a folder."""
        return label_map_names(self.anatomies, "anatomies", FOLDERS["anatomies"]) if self.anatomies else ()

    @property
    def shape_names(self) -> tuple[str, ...]:
        """File names of the shapes; empty without a folder."""
        return label_map_names(self.shapes, "shapes", FOLDERS["shapes"]) if self.shapes else ()

    def record(self) -> dict[str, Any]:
        """Return the settings for a JSON file. Of a folder it has the number of files and a digest, not the path."""
        fields = asdict(self)
        if self.traits is None:
            return {name: value for name, value in fields.items() if name not in ("traits", *FOLDERS)}
        for name, names in (("anatomies", self.anatomy_names), ("shapes", self.shape_names)):
            folder = getattr(self, name)
            fields[name] = folder_summary(folder, names) if folder else None
        return fields

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the field of view along x, y and z."""
        x, y, z = (n * self.spacing_mm for n in self.shape)
        return x, y, z

    @classmethod
    def at_spacing(cls, spacing_mm: float, **changes: object) -> Settings:
        """Return settings with the field of view of BraTS at another spacing.

        Args:
            spacing_mm: Edge length of the voxels, 0.5 to 4 mm.
            **changes: Other fields of `Settings`.

        Returns:
            Settings whose field of view is 240 x 240 x 155 mm, rounded up to whole voxels.

        Raises:
            ValueError: The spacing or another field is out of range.
            TypeError: A change names no field.

        >>> Settings.at_spacing(2.0).shape
        (120, 120, 78)
        """
        if not spacing_mm > 0:
            raise ValueError(f"spacing_mm must be positive; {spacing_mm} came. Give the edge of a voxel in mm.")
        x, y, z = (math.ceil(extent / spacing_mm - 1e-3) for extent in FIELD_OF_VIEW_MM)
        return replace(cls(shape=(x, y, z), spacing_mm=float(spacing_mm)), **changes)  # type: ignore[arg-type]


def checked_seed(seed: int) -> int:
    """Return `seed` as an int.

    Raises:
        ValueError: The seed is not a whole number from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"A phantom's seed is a whole number from 0 on; {seed!r} came. Give, say, 7.")
    return int(seed)


class Dice:
    """Random numbers of one decision of a case, from the decision's own generator."""

    def __init__(self, seed: int, name: str) -> None:
        self.rng = keyed_generator(seed, name)

    def happens(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        """Return a uniform number, regardless of the population."""
        return float(self.rng.uniform(low, high))


def keyed_generator(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one named decision or field.

    Each name has a generator of its own. A decision that is added, or drawn in another order, changes no other
    decision.
    """
    key = np.random.SeedSequence([VERSION, seed, crc32(name.encode())])
    return np.random.Generator(np.random.SFC64(key))
