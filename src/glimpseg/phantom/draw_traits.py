"""Random draws of `phantom-2`: heads of individuals, real shapes, enhancing structures, measured signal, scans."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from glimpseg.modality import Modality
from glimpseg.phantom.measured import LOOKS, SHARED
from glimpseg.phantom.plan import Acquisition, Four, Head, Look, Placement, Plan, Scanner, Structures, Three, Tumour
from glimpseg.phantom.settings import Dice
from glimpseg.phantom.shapes import LITTLE_ENHANCEMENT, load_shape
from glimpseg.phantom.signal import (
    REGIONAL,
    InversionGradientEcho,
    InversionSpinEcho,
    Tissue,
    draw_tissue,
    nulling_inversion_ms,
)
from glimpseg.phantom.traits import Traits
from glimpseg.region import Label

SHAPE_ANGLES, SHAPE_SCALE, SHAPE_SHIFT_MM = 8.0, 0.12, 7.0
"""Standard deviations of a real shape's rotation (degrees), logarithm of its size, and displacement."""
T1C = 1
"""Number of T1c among the sequences."""
LIMIT = 2.0
"""Largest deviate of a measured signal."""
SIZE = 1.05
"""Size of the head relative to `phantom-1`. Stripped brains of BraTS 2021 measure 134 x 167 mm, 1.25 to 1.47 litres."""
GREY_CONTRAST = {InversionGradientEcho: 0.6, InversionSpinEcho: 0.75}
"""Exponent on the contrast of grey and white matter in T1 with inversion, which the tissue table overstates."""
T1C_CONTRAST = 0.9
"""The same for T1c: in patients its contrast is weaker than that of T1."""
FLOW = {Modality.T1: (0.55, 1.0), Modality.T2: (0.8, 1.2), Modality.FLAIR: (0.4, 1.0)}
"""Factor on the signal of venous blood before contrast: flowing blood is darker than still blood."""
DURA_ON_T1, FLUID_ON_T2 = (0.55, 0.9), (1.1, 1.6)
"""Factors on the signal of dura on T1 and of fluid on T2: the tissue tables make them too bright and too dark."""
GREY_ON_FLAIR = (1.0, 1.14)
"""Factor on the signal of grey matter on FLAIR, where patients' is as bright as white matter or brighter."""
UNEVEN_GREY, CEREBELLUM = 0.12, 0.1
"""Largest standard deviation of grey matter's brightness over the brain; that of the cerebellum's on T2 and FLAIR."""
NOISE = {Modality.T1C: 1.8, Modality.T2: 2.5, Modality.FLAIR: 2.0}
"""Factor on the noise, so that it matches the noise of patients' white matter."""
IN_PLANE = {Modality.T1: 1.2, Modality.T1C: 1.0, Modality.T2: 0.6, Modality.FLAIR: 0.55}
"""Factor on the blur within a slice, so that borders of grey and white matter are as sharp as patients'."""
FINE_T1C = 0.4
"""Share of T1c images with slices of at most 1.2 mm; in patients T1c is often the finest sequence."""
LEAST_ENHANCEMENT = 1.8
"""Lowest measured mean of enhancing tumour on T1c."""
SPILL = -0.7
"""Addition to the mean of necrosis on T1c: the blur of the enhancing rim raises it by about as much."""
TURN = 0.5
"""Rotation about y and z relative to `phantom-1`; patients' heads were turned to a template."""
SMALL_OEDEMA = 0.12
"""Oedema of a low-grade core that fills its lesion, relative to the core."""
PUSH = 0.6
"""Mass effect of a real shape, relative to that of a grown tumour; its own head has moved already."""
PATCHY = (1.3, 2.0)
"""Factor on the unevenness of patchy oedema."""


class _Dice(Dice):
    """Random numbers of one decision of `phantom-2`."""

    def __init__(self, plan: Plan, name: str) -> None:
        super().__init__(plan.seed, f"2 {name}")

    def normal(self, sd: float, limit: float = LIMIT) -> float:
        return sd * float(np.clip(self.rng.normal(), -limit, limit))

    def three(self, sd: float) -> Three:
        return self.normal(sd), self.normal(sd), self.normal(sd)


def apply_traits(plan: Plan) -> Plan:
    """Return the plan with the traits of its settings; the same object for `phantom-1`."""
    traits = plan.settings.traits
    if traits is None:
        return plan
    tumour = None if plan.tumour is None else _with_looks(_with_shape(plan.tumour, plan, traits), plan, traits)
    return replace(
        plan,
        head=_with_anatomy(plan.head, plan, traits),
        tumour=tumour,
        structures=_draw_structures(_Dice(plan, "structures"), traits),
        scanner=_with_acquisitions(_with_regions(plan.scanner, plan, traits), plan, traits),
    )


def _with_anatomy(head: Head, plan: Plan, traits: Traits) -> Head:
    dice, names = _Dice(plan, "anatomy"), plan.settings.anatomy_names
    mirrored, number = dice.happens(0.5), int(dice.rng.integers(1_000_000))
    x, y, z = (SIZE * scale for scale in head.scales)
    about_x, about_y, about_z = head.angles_degrees
    uneven = traits.uneven_grey * _Dice(plan, "grey").between(0.0, UNEVEN_GREY)
    angles = (about_x, TURN * about_y, TURN * about_z)
    head = replace(head, scales=(x, y, z), angles_degrees=angles, uneven_grey=uneven)
    if not names or not dice.happens(traits.individuals):
        return head
    own, wider = 0.6 * head.ventricles_mm, 0.5
    return replace(head, anatomy=names[number % len(names)], mirrored=mirrored, ventricles_mm=own - wider)


def _with_shape(tumour: Tumour, plan: Plan, traits: Traits) -> Tumour:
    dice, names = _Dice(plan, "shape"), plan.settings.shape_names
    if tumour.kind == "low-grade" and dice.happens(traits.filling):
        foci = tuple(replace(f, oedema_ml=min(f.oedema_ml, SMALL_OEDEMA * f.core_ml)) for f in tumour.foci)
        tumour = replace(tumour, foci=foci)
    if not names or tumour.post_operative or not dice.happens(traits.real_shapes):
        return tumour
    placement = Placement(
        name=names[int(dice.rng.integers(len(names)))],
        mirrored=dice.happens(0.5),
        angles_degrees=dice.three(SHAPE_ANGLES),
        scale=math.exp(dice.normal(SHAPE_SCALE)),
        shift_mm=dice.three(SHAPE_SHIFT_MM),
    )
    assert plan.settings.shapes is not None
    shape = load_shape(str(Path(plan.settings.shapes) / placement.name))
    return replace(
        tumour,
        kind="low-grade" if shape.enhancing < LITTLE_ENHANCEMENT else "high-grade",
        placement=placement,
        foci=tumour.foci[:1],
        mass_effect_mm=PUSH * tumour.mass_effect_mm,
    )


def _with_looks(tumour: Tumour, plan: Plan, traits: Traits) -> Tumour:
    dice = _Dice(plan, "looks")
    if not dice.happens(traits.looks):
        return tumour
    low = tumour.kind == "low-grade"
    shared = np.clip(dice.rng.normal(size=4), -LIMIT, LIMIT)
    looks = {}
    for label in (Label.NCR, Label.ED, Label.ET):
        patchy = dice.happens(traits.patchy)
        factor = dice.between(*PATCHY)
        looks[label] = _draw_look(
            label,
            low,
            dice,
            shared,
            spread=traits.spread,
            unevenness=traits.unevenness * (factor if patchy and label is Label.ED else 1.0),
        )
    return replace(tumour, looks=looks)


def _draw_look(label: Label, low: bool, dice: _Dice, shared: np.ndarray, *, spread: float, unevenness: float) -> Look:
    measured = LOOKS[label, low]
    own = np.clip(dice.rng.normal(size=4), -LIMIT, LIMIT)
    mixed = math.sqrt(SHARED) * shared + math.sqrt(1 - SHARED) * own
    deviates = np.linalg.cholesky(np.array(measured.correlation)) @ mixed
    inside = unevenness * math.exp(dice.normal(0.3))
    means = np.array(measured.means) + spread * np.array(measured.between) * deviates
    if label is Label.ET:
        means[T1C] = max(means[T1C], LEAST_ENHANCEMENT)
    if label is Label.NCR:
        means[T1C] += SPILL
    return Look(
        means=_four(means),
        coarse=_four(inside * np.array(measured.coarse)),
        fine=_four(inside * np.array(measured.fine)),
        together=measured.together,
    )


def _four(values: np.ndarray) -> Four:
    a, b, c, d = (float(v) for v in values)
    return a, b, c, d


def _draw_structures(dice: _Dice, traits: Traits) -> Structures:
    sinus, dura, sheets, plexus, remains, lesions = (
        dice.happens(p)
        for p in (traits.sinuses, traits.dura, traits.sheets, traits.plexus, traits.remains, traits.lesions)
    )
    return Structures(
        sinus_mm=float(np.clip(math.exp(math.log(3.2) + dice.normal(0.4)), 0.8, 7.0)) * sinus,
        right=float(np.clip(0.6 + dice.normal(0.25), 0.05, 0.95)),
        dura_mm=dice.between(0.5, 1.6) * dura,
        dura_kept=dice.between(-0.3, 1.6) if dura or sinus else 9.0,
        sheets=dice.between(0.15, 0.8) * sheets,
        cortical_veins=dice.between(0.1, 0.9) * traits.veins,
        plexus=dice.between(0.3, 1.0) * plexus,
        remains_mm=dice.between(1.0, 5.0) * remains,
        lesions=dice.between(0.4, 1.0) * lesions,
    )


def _with_regions(scanner: Scanner, plan: Plan, traits: Traits) -> Scanner:
    """Return the scanner with the tissues of `REGIONAL`."""
    tissues: dict[str, Tissue] = dict(scanner.tissues)
    for name, kind in REGIONAL.items():
        dice = _Dice(plan, f"tissue {name}")
        tissue = draw_tissue(dice.rng, kind, scanner.field_strength)
        t1, t2 = math.exp(dice.normal(traits.regions)), math.exp(dice.normal(traits.regions))
        tissues[name] = replace(tissue, t1_ms=tissue.t1_ms * t1, t2_ms=tissue.t2_ms * t2)
    if not traits.regions:
        for name, same in (
            ("nuclei", "grey"),
            ("cerebellar_grey", "grey"),
            ("cerebellar_white", "white"),
            ("brainstem", "white"),
        ):
            tissues[name] = scanner.tissues[same]
    return replace(scanner, tissues=tissues)


def _with_acquisitions(scanner: Scanner, plan: Plan, traits: Traits) -> Scanner:
    acquisitions = tuple(
        _vary(acquisition, modality, scanner, plan=plan, traits=traits)
        for modality, acquisition in zip(Modality, scanner.acquisitions, strict=True)
    )
    return replace(scanner, acquisitions=acquisitions)


def _vary(acquisition: Acquisition, modality: Modality, scanner: Scanner, *, plan: Plan, traits: Traits) -> Acquisition:
    dice = _Dice(plan, f"acquisition {modality.key}")
    turned, gapped, open_, twice, few = (
        dice.happens(p) for p in (traits.planes, traits.gaps, traits.unsuppressed, traits.twice, traits.coarse_numbers)
    )
    axis, thickness, gap = int(dice.rng.integers(2)), dice.between(3.0, 6.0), dice.between(0.1, 0.3)
    if turned and acquisition.sequence.planar:
        acquisition = replace(acquisition, slice_axis=axis, slice_mm=thickness, sampled=True)
    if gapped and acquisition.sampled:
        acquisition = replace(acquisition, slice_mm=acquisition.slice_mm * (1 - gap), gap_mm=acquisition.slice_mm * gap)
    share = dice.between(0.55, 0.85)
    if open_ and modality is Modality.FLAIR and isinstance(acquisition.sequence, InversionSpinEcho):
        tr = acquisition.sequence.tr_ms
        inversion = share * nulling_inversion_ms(tr, scanner.tissues["fluid"].t1_ms)
        acquisition = replace(acquisition, sequence=replace(acquisition.sequence, ti_ms=inversion))
    flat = GREY_CONTRAST.get(type(acquisition.sequence), 1.0) * (T1C_CONTRAST if modality is Modality.T1C else 1.0)
    if modality in Modality.T1 | Modality.T1C:
        acquisition = replace(acquisition, flatness=acquisition.flatness * flat)
    if modality is Modality.T1C and dice.happens(FINE_T1C):
        acquisition = replace(acquisition, slice_mm=min(acquisition.slice_mm, 1.2), sampled=False, gap_mm=0.0)
    gains = dict(acquisition.gains)
    if modality in FLOW:
        gains["sinus"] = dice.between(*FLOW[modality])
    if modality is Modality.T1:
        gains["dura"] = dice.between(*DURA_ON_T1)
    if modality is Modality.T2:
        gains["fluid"] = gains.get("fluid", 1.0) * dice.between(*FLUID_ON_T2)
    if modality is Modality.FLAIR:
        brighter = dice.between(*GREY_ON_FLAIR)
        gains.update({name: gains.get(name, 1.0) * brighter for name in ("grey", "nuclei", "cerebellar_grey")})
    if modality in Modality.T2 | Modality.FLAIR:
        other = math.exp(_Dice(plan, f"cerebellum {modality.key}").normal(CEREBELLUM * traits.uneven_grey))
        gains.update({name: gains.get(name, 1.0) * other for name in ("cerebellar_grey", "cerebellar_white")})
    acquisition = replace(
        acquisition,
        gains=gains,
        noise=acquisition.noise * NOISE.get(modality, 1.0),
        in_plane_mm=acquisition.in_plane_mm * IN_PLANE[modality],
    )
    more = dice.between(0.3, 0.7)
    if twice:
        acquisition = replace(acquisition, in_plane_mm=math.hypot(acquisition.in_plane_mm, more))
    level = dice.between(12, 60)
    if few:
        acquisition = replace(acquisition, scale=level)
    return acquisition
