"""Every random decision of a case, before a voxel exists.

Numbers are drawn here; smooth random fields are drawn where they are applied, each from its own key
(`settings.random`), so that a plan stays small and readable and can be replayed on any device. Ranges without a
source were chosen by eye against patients' images and against the tables in `docs/phantom.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from glimpseg.phantom.settings import Settings
from glimpseg.phantom.signal import (
    Sequence,
    Tissue,
)

Three = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The anatomy before the tumour."""

    angles_degrees: Three
    """Rotations about x, y, z."""
    scales: Three
    """Size along x, y, z relative to the atlas, which is larger than people are."""
    shift_mm: Three
    ventricles_mm: float
    """How far the walls of the ventricles move outwards."""
    atrophy: float
    """How much fluid there is in the sulci: added to the logarithm of its share."""
    folding: float
    """How deep random sulci cut the cortex."""
    strip_mm: float
    """How much of the surface skull-stripping takes away."""
    bites_mm: float = 0.0
    """How deep it bites into the brain here and there."""
    rind_mm: float = 0.0
    """How much of the membranes it leaves here and there."""


@dataclass(frozen=True, kw_only=True)
class Focus:
    """One tumour focus."""

    place: float
    """Share of the eligible white matter, in voxel order, that comes before its origin."""
    core_ml: float
    oedema_ml: float
    front_mm: float
    """Width of the growing front: diffusion against proliferation."""
    begins: Literal["alone", "near", "anywhere", "midline"] = "alone"
    """Anywhere eligible; near the first focus; anywhere, though it is not the first; near the midline."""
    lean: Three = (0.0, 0.0, 0.0)
    """Where its oedema lies: by the length, a power of e for each radius of the focus, stronger on that side."""


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """What grows, and how it is built."""

    kind: Literal["high-grade", "low-grade"]
    post_operative: bool
    foci: tuple[Focus, ...]
    mass_effect_mm: float
    """Largest displacement outwards; inwards (after surgery) if negative."""
    mass_effect_width_mm: float
    rim_mm: float
    """Thickness of the enhancing rim."""
    septa: float
    """Half width, in units of a random field, of enhancing walls through the dead core; none below 0."""
    gaps: float
    """Level of a random field below which the rim does not enhance."""
    lobes: float
    """Level of a random field above which the outside of the core does not enhance."""
    halo_mm: float
    """Oedema reaches at least so far from the core."""
    blood: float | None
    """Level of a random field above which the core has bled; None without blood."""
    wall_mm: float
    """What a resection leaves of the core's outside."""
    remnant: float
    """Level of a random field above which that wall enhances."""
    texture: float = 1.0
    """How uneven the lesion's tissues are, relative to the standard population."""
    cyst: float = 0.0
    """How far dead tissue is like fluid, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Infarct:
    """Brain that died of lack of blood: bright on T2 and FLAIR like tumour, in the end fluid."""

    place: float
    """Share of the eligible cortex, in voxel order, that comes before its middle."""
    radius_mm: float
    hollow: float
    """Radius of what has become fluid, relative to the infarct's; none below 0."""
    swollen: float
    """Share of each voxel that is like oedema."""


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """What misleads and carries no label."""

    white_matter_lesions: float
    """Level of a random field above which white matter is bright with age."""
    choroid_plexus: float
    """How much of the ventricles' fluid enhances."""
    caps: float = 0.0
    """How ill the white matter beside the ventricles is with age, from 0 to 1."""
    infarct: Infarct | None = None
    vessel_width: float = 1.0
    """Relative to the standard population."""
    veins: float = 0.0
    """How much blood flows through fine veins in the sulci."""


@dataclass(frozen=True, kw_only=True)
class Ghost:
    """What a movement leaves in one sequence."""

    strength: float
    """Of the copy, relative to the image."""
    shift_mm: float
    blur_mm: float
    """Standard deviation of the position while the image was taken."""
    axis: int


@dataclass(frozen=True, kw_only=True)
class Brightening:
    """What makes the middle of the head brighter where the head is as large as the waves: at 3 T and above."""

    strength: float
    """Signal gained in the middle, relative to far from it."""
    width_mm: float
    """Standard deviation of the Gaussian that it falls off by."""
    middle_mm: Three
    """From the middle of the field of view."""


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """How one sequence is scanned and then handled."""

    sequence: Sequence
    bias: float
    """Standard deviation of the logarithm of the sensitivity."""
    slice_mm: float
    slice_axis: int
    noise: float
    """Standard deviation relative to white matter, at the phantom's spacing."""
    gamma: float
    shift_mm: Three
    """What registration left over."""
    scale: float
    """Value that white matter gets in the file."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Factors on tissues' signals; those not named have 1."""
    flatness: float = 1.0
    """Exponent on the contrast between grey and white matter."""
    surround: float = 1.0
    """How bright what lies around the brain is before it is stripped, relative to fluid."""
    bias_mm: float = 110.0
    """Over what distance the sensitivity varies."""
    brightening: Brightening | None = None
    nuclei: float = 0.05
    """How much of the atlas' own T1 contrast, such as that of the deep nuclei, is kept beside the tissues'."""
    in_plane_mm: float = 0.45
    """Standard deviation of the blur within a slice."""
    sampled: bool = False
    """Whether it was scanned in voxels of its own and interpolated back, or only blurred as by such voxels."""
    ghost: Ghost | None = None
    ringing_mm: float = 0.0
    """Edge of the voxels at whose highest frequency the spectrum ends; 0 for no end."""
    stripes: float = 0.0
    """Standard deviation of the slices' brightness."""
    ceiling: float | None = None
    """Signal, relative to white matter, above which values are cut off."""
    cut_mm: tuple[float, float] = (0.0, 0.0)
    """What of the brain's bottom and top was not scanned."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """The site: one magnet, one patient's tissues, four acquisitions in channel order."""

    field_strength: float
    tissues: dict[str, Tissue]
    acquisitions: tuple[Acquisition, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """A slab that was scanned in place of the head."""

    thickness_mm: float
    offset: float
    """Of the tumour's first focus from the slab's middle, as a share of the thickness."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A case before it is rendered."""

    seed: int
    settings: Settings
    head: Head
    tumour: Tumour | None
    """None for a healthy head."""
    distractors: Distractors
    scanner: Scanner
    coverage: Coverage | None = None
    """None for the whole head."""
