"""Random draws of the standard population (`phantom-1`), without a variety."""

from __future__ import annotations

import math

import numpy as np

from glimpseg.modality import Modality
from glimpseg.phantom.plan import Acquisition, Distractors, Focus, Head, Plan, Scanner, Three, Tumour
from glimpseg.phantom.settings import Settings, checked_seed, keyed_generator
from glimpseg.phantom.signal import (
    TISSUES,
    InversionGradientEcho,
    InversionSpinEcho,
    Sequence,
    SpinEcho,
    SpoiledGradientEcho,
    draw_tissue,
    nulling_inversion_ms,
)


def draw_standard_plan(seed: int, settings: Settings) -> Plan:
    """Draw the plan of one case of the standard population; `draw_variety.apply_variety` adds the settings' variety.

    Raises:
        ValueError: The seed is negative or not a whole number.
    """
    seed = checked_seed(seed)
    return Plan(
        seed=seed,
        settings=settings,
        head=_draw_head(keyed_generator(seed, "head")),
        tumour=_draw_tumour(seed, settings),
        distractors=_draw_distractors(keyed_generator(seed, "distractors")),
        scanner=_draw_scanner(seed, settings),
    )


def _three(values: np.ndarray) -> Three:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _draw_head(rng: np.random.Generator) -> Head:
    # 0.89: brains in BraTS space measure about 130 x 165 mm across; the atlas measures 146 x 183 mm.
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


def _draw_tumour(seed: int, settings: Settings) -> Tumour | None:
    chance = keyed_generator(seed, "kind")
    healthy, low_grade, post_operative, second, bled = chance.random(5)
    if healthy < settings.healthy:
        return None
    high = bool(low_grade >= settings.low_grade)
    operated = bool(post_operative < settings.post_operative)
    foci = [_draw_focus(keyed_generator(seed, "focus 0"), settings, high)]
    if second < settings.second_focus:
        foci.append(_draw_second_focus(keyed_generator(seed, "focus 1"), high))
    rng = keyed_generator(seed, "tumour")
    mass = rng.uniform(0, 1)
    blood = float(rng.uniform(0.8, 1.6))
    return Tumour(
        kind="high-grade" if high else "low-grade",
        post_operative=operated,
        foci=tuple(foci),
        # After surgery the brain has moved back, or sinks into the cavity.
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


def _draw_focus(rng: np.random.Generator, settings: Settings, high: bool) -> Focus:
    core = float(np.clip(math.exp(rng.normal(math.log(26 if high else 32), 0.75)), *settings.core_ml))
    oedema = core * math.exp(rng.normal(0.35 if high else -0.9, 0.55))
    return Focus(
        place=float(rng.random()), core_ml=core, oedema_ml=min(oedema, 120.0), front_mm=float(rng.uniform(2.2, 5.5))
    )


def _draw_second_focus(rng: np.random.Generator, high: bool) -> Focus:
    core = float(rng.uniform(0.8, 5))
    oedema = core * math.exp(rng.normal(0.35 if high else -0.9, 0.55))
    return Focus(
        place=float(rng.random()),
        core_ml=core,
        oedema_ml=oedema,
        front_mm=float(rng.uniform(2.2, 5.5)),
        begins="near",
    )


def _draw_distractors(rng: np.random.Generator) -> Distractors:
    return Distractors(white_matter_lesions=float(rng.uniform(2.0, 3.6)), choroid_plexus=float(rng.uniform(0.2, 0.8)))


def _draw_scanner(seed: int, settings: Settings) -> Scanner:
    rng = keyed_generator(seed, "scanner")
    weights = np.array([0.6 if strength == 3.0 else 0.4 for strength in settings.field_strengths])
    strength = float(rng.choice(settings.field_strengths, p=weights / weights.sum()))
    tissues = {
        name: draw_tissue(keyed_generator(seed, f"tissue {name}"), kind, strength) for name, kind in TISSUES.items()
    }
    scale = math.exp(rng.normal(math.log(400), 0.9))
    acquisitions = tuple(
        _draw_acquisition(
            keyed_generator(seed, f"acquisition {modality.key}"),
            modality,
            settings,
            fluid_t1_ms=tissues["fluid"].t1_ms,
            scale=scale,
        )
        for modality in Modality
    )
    return Scanner(field_strength=strength, tissues=tissues, acquisitions=acquisitions)


def _draw_acquisition(
    rng: np.random.Generator, modality: Modality, settings: Settings, fluid_t1_ms: float, scale: float
) -> Acquisition:
    sequence = _draw_sequence(rng, modality, fluid_t1_ms)
    thick, thin = rng.uniform(2.5, 5), rng.uniform(0.8, 1.2)
    is_thick = rng.random() < settings.thick_slices and sequence.planar
    # Larger voxels average noise away, but less than they would average independent noise.
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
        # Below 80, steps of 1 would be visible; above 5000, bright fluid would exceed the range of int16.
        scale=float(np.clip(scale * math.exp(rng.normal(0, 0.5)), 80, 5000)),
    )


def _draw_sequence(rng: np.random.Generator, modality: Modality, fluid_t1_ms: float) -> Sequence:
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
