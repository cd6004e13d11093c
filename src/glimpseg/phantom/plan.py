"""Every random decision of a case, before a voxel exists.

Numbers are drawn here; smooth random fields are drawn where they are applied, each from its own key
(`settings.random`), so that a plan stays small and readable and can be replayed on any device. Ranges without a
source were chosen by eye against patients' images and against the tables in `docs/phantom.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from glimpseg.modality import Modality
from glimpseg.phantom.settings import Settings, checked_seed, keyed_generator
from glimpseg.phantom.signal import (
    TISSUES,
    InversionGradientEcho,
    InversionSpinEcho,
    Sequence,
    SpinEcho,
    SpoiledGradientEcho,
    Tissue,
    draw_tissue,
    nulling_inversion_ms,
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


def standard(seed: int, settings: Settings) -> Plan:
    """Draws the plan of case `seed`, without the settings' variety (see `wider`).

    Raises: ValueError if the seed is negative or no whole number.
    """
    seed = checked_seed(seed)
    return Plan(
        seed=seed,
        settings=settings,
        head=_head(keyed_generator(seed, "head")),
        tumour=_tumour(seed, settings),
        distractors=_distractors(keyed_generator(seed, "distractors")),
        scanner=_scanner(seed, settings),
    )


def _three(values: np.ndarray) -> Three:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _head(rng: np.random.Generator) -> Head:
    # 0.89: brains in BraTS space measure about 130 x 165 mm across, the atlas 146 x 183.
    size = 0.89 * rng.normal(1, 0.03)
    return Head(
        angles_degrees=_three(rng.normal(0, 4, 3)),
        scales=_three(size * rng.normal(1, 0.04, 3)),
        shift_mm=_three(rng.normal(0, 2, 3)),
        ventricles_mm=float(rng.normal(0.8, 2.2)),
        atrophy=float(rng.normal(0, 0.35)),
        folding=float(rng.uniform(0.6, 1.4)),
        strip_mm=float(rng.uniform(0.0, 2.6)),
    )


def _tumour(seed: int, settings: Settings) -> Tumour | None:
    chance = keyed_generator(seed, "kind")
    healthy, low_grade, post_operative, second, bled = chance.random(5)
    if healthy < settings.healthy:
        return None
    high = bool(low_grade >= settings.low_grade)
    operated = bool(post_operative < settings.post_operative)
    foci = [_focus(keyed_generator(seed, "focus 0"), settings, high)]
    if second < settings.second_focus:
        foci.append(_satellite(keyed_generator(seed, "focus 1"), high))
    rng = keyed_generator(seed, "tumour")
    mass = rng.uniform(0, 1)
    blood = float(rng.uniform(0.8, 1.6))
    return Tumour(
        kind="high-grade" if high else "low-grade",
        post_operative=operated,
        foci=tuple(foci),
        # After surgery the brain has come back, or sinks into the cavity.
        mass_effect_mm=float((-0.45 + 0.8 * mass if operated else mass) * settings.mass_effect_mm),
        mass_effect_width_mm=float(rng.uniform(9, 14)),
        rim_mm=float(rng.uniform(2.5, 7.0) if high else rng.uniform(1.5, 4.0)),
        septa=float(rng.uniform(-0.15, 0.2)),
        gaps=float(rng.uniform(-1.6, -0.5) if high else rng.uniform(0.6, 2.6)),
        lobes=float(rng.uniform(1.0, 2.2)),
        halo_mm=float(rng.uniform(1.5, 4.0)),
        blood=blood if high and not operated and bled < settings.haemorrhage else None,
        wall_mm=float(rng.uniform(1.0, 3.5)),
        remnant=float(rng.uniform(-0.2, 1.2)),
    )


def _focus(rng: np.random.Generator, settings: Settings, high: bool) -> Focus:
    core = float(np.clip(math.exp(rng.normal(math.log(26 if high else 32), 0.75)), *settings.core_ml))
    oedema = core * math.exp(rng.normal(0.35 if high else -0.9, 0.55))
    return Focus(
        place=float(rng.random()), core_ml=core, oedema_ml=min(oedema, 120.0), front_mm=float(rng.uniform(2.2, 5.5))
    )


def _satellite(rng: np.random.Generator, high: bool) -> Focus:
    core = float(rng.uniform(0.8, 5))
    oedema = core * math.exp(rng.normal(0.35 if high else -0.9, 0.55))
    return Focus(
        place=float(rng.random()),
        core_ml=core,
        oedema_ml=oedema,
        front_mm=float(rng.uniform(2.2, 5.5)),
        begins="near",
    )


def _distractors(rng: np.random.Generator) -> Distractors:
    return Distractors(white_matter_lesions=float(rng.uniform(2.0, 3.6)), choroid_plexus=float(rng.uniform(0.2, 0.8)))


def _scanner(seed: int, settings: Settings) -> Scanner:
    rng = keyed_generator(seed, "scanner")
    weights = np.array([0.6 if strength == 3.0 else 0.4 for strength in settings.field_strengths])
    strength = float(rng.choice(settings.field_strengths, p=weights / weights.sum()))
    tissues = {
        name: draw_tissue(keyed_generator(seed, f"tissue {name}"), kind, strength) for name, kind in TISSUES.items()
    }
    scale = math.exp(rng.normal(math.log(400), 0.9))
    acquisitions = tuple(
        _acquisition(
            keyed_generator(seed, f"acquisition {modality.key}"), modality, settings, tissues["fluid"].t1_ms, scale
        )
        for modality in Modality
    )
    return Scanner(field_strength=strength, tissues=tissues, acquisitions=acquisitions)


def _acquisition(
    rng: np.random.Generator, modality: Modality, settings: Settings, fluid_t1_ms: float, scale: float
) -> Acquisition:
    sequence = _sequence(rng, modality, fluid_t1_ms)
    thick, thin = rng.uniform(2.5, 5), rng.uniform(0.8, 1.2)
    is_thick = rng.random() < settings.thick_slices and sequence.planar
    # Averaging over larger voxels takes noise away, less than independent noise would lose.
    noise = rng.uniform(*settings.noise) * min(1.0, settings.spacing_mm**-0.75)
    moved = rng.random() < 0.8
    return Acquisition(
        sequence=sequence,
        bias=float(rng.uniform(*settings.bias)),
        slice_mm=float(thick if is_thick else thin),
        slice_axis=int(rng.choice([2, 2, 2, 2, 2, 1, 0])),
        noise=float(noise),
        gamma=float(math.exp(rng.normal(0, 0.06))),
        shift_mm=_three(np.clip(rng.normal(0, 0.22, 3), -0.5, 0.5) * moved),
        # Below, steps of 1 would show; above, bright fluid would leave the range of int16.
        scale=float(np.clip(scale * math.exp(rng.normal(0, 0.5)), 80, 5000)),
    )


def _sequence(rng: np.random.Generator, modality: Modality, fluid_t1_ms: float) -> Sequence:
    if modality is Modality.T2:
        return SpinEcho(tr_ms=float(rng.uniform(3000, 6000)), te_ms=float(rng.uniform(80, 115)))
    if modality is Modality.FLAIR:
        tr = float(rng.uniform(8000, 11000))
        inversion = nulling_inversion_ms(tr, fluid_t1_ms) + rng.uniform(-60, 90)
        return InversionSpinEcho(tr_ms=tr, te_ms=float(rng.uniform(80, 125)), ti_ms=float(inversion))
    kind = rng.random()
    if kind < 0.4:
        return SpinEcho(tr_ms=float(rng.uniform(450, 700)), te_ms=float(rng.uniform(8, 15)))
    if kind < 0.75:
        return InversionGradientEcho(tr_ms=float(rng.uniform(1900, 2400)), ti_ms=float(rng.uniform(900, 1150)))
    return SpoiledGradientEcho(
        tr_ms=float(rng.uniform(8, 25)), te_ms=float(rng.uniform(2, 6)), flip_degrees=float(rng.uniform(12, 25))
    )
