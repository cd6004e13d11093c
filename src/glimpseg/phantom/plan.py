"""Plan of a phantom: all random numbers that decide a case, drawn before any voxel is computed.

A plan holds numbers only. Smooth random fields are drawn where they are applied, each from its own key
(`settings.keyed_generator`). A plan is therefore small and readable, and it can be rendered on any device. Ranges
without a source were chosen by eye, by comparison with patients' images and with the tables in `docs/phantom.md`.
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
from glimpseg.region import Label

Three = tuple[float, float, float]
Four = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Head:
    """Head and brain before the tumour grows."""

    angles_degrees: Three
    """Rotation about x, y and z."""
    scales: Three
    """Size along x, y and z relative to the atlas. The atlas is larger than a typical head."""
    shift_mm: Three
    ventricles_mm: float
    """Outward displacement of the walls of the ventricles."""
    atrophy: float
    """Amount of fluid in the sulci: a value added to the logarithm of the fluid's share."""
    folding: float
    """Depth of the random sulci in the cortex; 1 is typical."""
    strip_mm: float
    """Thickness of the brain surface that skull-stripping removes."""
    bites_mm: float = 0.0
    """Depth of the places where skull-stripping removes brain by mistake."""
    rind_mm: float = 0.0
    """Thickness of the membranes that skull-stripping leaves in places."""
    anatomy: str | None = None
    """File name of an individual's label map; None for the average brain."""
    mirrored: bool = False
    """True if left and right are exchanged."""
    uneven_grey: float = 0.0
    """Standard deviation of the brightness of grey matter over the brain on FLAIR, alike on both sides."""


@dataclass(frozen=True, kw_only=True)
class Focus:
    """One tumour focus."""

    place: float
    """Position of its origin: the share of the eligible white matter, in voxel order, that comes before it."""
    core_ml: float
    oedema_ml: float
    front_mm: float
    """Width of the growing front: the square root of the ratio of diffusion to proliferation."""
    begins: Literal["alone", "near", "anywhere", "midline"] = "alone"
    """Area in which the focus begins.

    `alone`: anywhere in eligible white matter. `near`: near the first focus. `anywhere`: anywhere, as an additional
    focus. `midline`: near the midline.
    """
    lean: Three = (0.0, 0.0, 0.0)
    """Asymmetry of its oedema: a vector that points to the side with more oedema.

    Its length is the change of the logarithm of the oedema's strength over one radius of the focus.
    """


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Shape of a real tumour, and how it is placed in the head."""

    name: str
    """File name of the label map."""
    mirrored: bool
    """True if left and right are exchanged."""
    angles_degrees: Three
    scale: float
    """Size relative to the file."""
    shift_mm: Three
    """Displacement from the place that the tumour has in the file."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Signal of one label region in the four sequences, in robust standard deviations of the normal brain."""

    means: Four
    """Mean difference from the median of the normal brain."""
    coarse: Four
    """Standard deviation inside the region of the variation over 8 mm."""
    fine: Four
    """Standard deviation inside the region of the texture of a few millimetres."""
    together: tuple[Four, Four, Four, Four]
    """Correlation of the variation inside the region between the sequences."""


@dataclass(frozen=True, kw_only=True)
class Tumour:
    """Growth and composition of the tumour."""

    kind: Literal["high-grade", "low-grade"]
    post_operative: bool
    foci: tuple[Focus, ...]
    mass_effect_mm: float
    """Largest displacement of the brain: outwards if positive, inwards (after surgery) if negative."""
    mass_effect_width_mm: float
    rim_mm: float
    """Thickness of the enhancing rim."""
    septa: float
    """Half width of enhancing walls through the necrotic core, in units of a random field; no walls below 0."""
    gaps: float
    """Level of a random field; below it the rim does not enhance."""
    lobes: float
    """Level of a random field; above it the outer part of the core does not enhance."""
    halo_mm: float
    """Smallest distance from the core that the oedema reaches."""
    blood: float | None
    """Level of a random field; above it the core has bled. None if there is no blood."""
    wall_mm: float
    """Thickness of the outer part of the core that a resection leaves."""
    remnant: float
    """Level of a random field; above it the remaining wall enhances."""
    texture: float = 1.0
    """Unevenness of the lesion's tissues, relative to the standard population."""
    cyst: float = 0.0
    """Similarity of the necrosis to fluid, from 0 (necrosis) to 1 (fluid)."""
    placement: Placement | None = None
    """Real shape that takes the place of the grown foci; None for grown foci."""
    looks: Mapping[Label, Look] = field(default_factory=dict)
    """Measured signal of label regions; regions that are not named keep the signal of their tissues."""


@dataclass(frozen=True, kw_only=True)
class Infarct:
    """Infarct: brain tissue that died from lack of blood. Bright on T2 and FLAIR like a tumour; fluid when old."""

    place: float
    """Position of its centre: the share of the eligible cortex, in voxel order, that comes before it."""
    radius_mm: float
    hollow: float
    """Radius of the part that has become fluid, relative to the radius of the infarct; none below 0."""
    swollen: float
    """Share of each voxel that looks like oedema."""


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """Findings that look like tumour but carry no label."""

    white_matter_lesions: float
    """Level of a random field; above it white matter is bright because of age."""
    choroid_plexus: float
    """Amount of enhancing choroid plexus in the fluid of the ventricles."""
    caps: float = 0.0
    """Strength of age-related changes in the white matter beside the ventricles, from 0 to 1."""
    infarct: Infarct | None = None
    vessel_width: float = 1.0
    """Thickness of vessels, relative to the standard population."""
    veins: float = 0.0
    """Amount of blood in fine veins in the sulci."""


@dataclass(frozen=True, kw_only=True)
class Structures:
    """Normal structures that take up contrast agent, and what skull-stripping leaves of them."""

    sinus_mm: float
    """Half width of the superior sagittal sinus at the back of the head; 0 for no venous sinuses."""
    right: float
    """Share of the blood that flows through the right transverse sinus, from 0 to 1."""
    dura_mm: float
    """Thickness of the dura over the convexity; 0 for none."""
    dura_kept: float
    """Level of a random field; above it, skull-stripping has left the dura and the outer sinuses."""
    sheets: float
    """Share of a voxel that the falx and the tentorium take; 0 for none."""
    cortical_veins: float
    """Amount of blood in veins of the brain surface, near the sinus."""
    plexus: float
    """Share of the choroid plexus that takes up contrast agent."""
    remains_mm: float
    """Thickness of tissue outside the brain (dura, bone, fat) that skull-stripping leaves in places."""
    lesions: float
    """Strength of the white-matter lesions in an individual's label map."""


@dataclass(frozen=True, kw_only=True)
class Ghost:
    """Ghost and blur that a movement of the patient leaves in one sequence."""

    strength: float
    """Strength of the copy, relative to the image."""
    shift_mm: float
    blur_mm: float
    """Standard deviation of the head's position during the scan."""
    axis: int


@dataclass(frozen=True, kw_only=True)
class Brightening:
    """Brightening of the middle of the head.

    It occurs at 3 T and above, where the radio wavelength is about as large as the head.
    """

    strength: float
    """Additional signal in the middle, relative to the signal far from it."""
    width_mm: float
    """Standard deviation of the Gaussian profile."""
    middle_mm: Three
    """Position of the middle, from the centre of the field of view."""


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Scan and processing of one sequence."""

    sequence: Sequence
    bias: float
    """Standard deviation of the logarithm of the coil sensitivity."""
    slice_mm: float
    slice_axis: int
    noise: float
    """Standard deviation of the noise at the phantom's spacing, relative to the signal of white matter."""
    gamma: float
    shift_mm: Three
    """Misalignment that is left after registration."""
    scale: float
    """Value of white matter in the file."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Factors on the tissues' signals; 1 for tissues that are not named."""
    flatness: float = 1.0
    """Exponent on the contrast between grey and white matter."""
    surround: float = 1.0
    """Brightness of what surrounds the brain before skull-stripping, relative to fluid."""
    bias_mm: float = 110.0
    """Correlation length of the coil sensitivity."""
    brightening: Brightening | None = None
    nuclei: float = 0.05
    """Share of the atlas's own T1 contrast (for example in the deep nuclei) that is added to the tissues' contrast."""
    in_plane_mm: float = 0.45
    """Standard deviation of the blur within a slice."""
    sampled: bool = False
    """True if the sequence is sampled in its own voxels and interpolated back; False if it is only blurred accordingly.
    """
    gap_mm: float = 0.0
    """Gap between neighbouring slices, if `sampled`."""
    ghost: Ghost | None = None
    ringing_mm: float = 0.0
    """Voxel size whose highest spatial frequency is where the spectrum is cut; 0 for no cut."""
    stripes: float = 0.0
    """Standard deviation of the brightness of slices."""
    ceiling: float | None = None
    """Signal, relative to white matter, at which values are clipped."""
    cut_mm: tuple[float, float] = (0.0, 0.0)
    """Height of the brain's bottom and top that was not scanned."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One site: field strength, one patient's tissues, and four acquisitions in channel order."""

    field_strength: float
    tissues: dict[str, Tissue]
    acquisitions: tuple[Acquisition, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Slab that is scanned instead of the whole head."""

    thickness_mm: float
    offset: float
    """Height of the tumour's first focus above the middle of the slab, as a share of the thickness.

    Without a tumour, the middle of the field of view takes the place of the focus.
    """


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All random decisions of one case, before it is rendered."""

    seed: int
    settings: Settings
    head: Head
    tumour: Tumour | None
    """None for a healthy head."""
    distractors: Distractors
    scanner: Scanner
    coverage: Coverage | None = None
    """None if the whole head is scanned."""
    structures: Structures | None = None
    """None for `phantom-1`, which has none of them."""
