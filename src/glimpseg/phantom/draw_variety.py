"""Changes that a variety makes to a plan.

The standard plan is drawn first. It keeps every value that a change does not replace. Each change has random numbers of
its own. Strengths without a source were chosen by eye, by comparison with patients' images.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from glimpseg.modality import Modality
from glimpseg.phantom.artefacts import FWHM_PER_SIGMA
from glimpseg.phantom.plan import (
    Acquisition,
    Brightening,
    Coverage,
    Distractors,
    Focus,
    Ghost,
    Head,
    Infarct,
    Plan,
    Scanner,
    Tumour,
)
from glimpseg.phantom.settings import Dice, keyed_generator
from glimpseg.phantom.signal import (
    LESION,
    NORMAL,
    GradientEcho,
    InversionSpinEcho,
    Sequence,
    SpinEcho,
    Tissue,
    VolumeInversionSpinEcho,
    VolumeSpinEcho,
    nulling_inversion_ms,
)
from glimpseg.phantom.variety import Variety

DEVIATE_LIMIT = 1.5
"""Largest deviate of the usual populations; an outer population lies beyond it."""
OUTER_DEVIATES = 0.7
"""Width of the range beyond `DEVIATE_LIMIT` from which outer deviates are drawn."""
OUTER_STRENGTHS = 0.35
"""Width of the range above a strength's range from which outer strengths are drawn, as a share of the range."""
RESAMPLED_NOISE = -0.75
"""Exponent of the spacing in the noise that remains after resampling (measured at 2 mm: 0.5 to 0.7 remains)."""


class Draws(Dice):
    """Random numbers of one decision, inside the usual range or, for a share of them (`Variety.outer`), outside."""

    def __init__(self, plan: Plan, name: str) -> None:
        super().__init__(plan.seed, f"wider {name}")
        self.variety: Variety = plan.settings.variety
        self.spacing_mm = plan.settings.spacing_mm
        self._outer_rng = keyed_generator(plan.seed, f"outer {name}")

    def _is_outer(self) -> bool:
        """True if the next number is drawn from outside the usual range."""
        return bool(self._outer_rng.random() < self.variety.outer)

    def deviate(self) -> float:
        """Return a number from N(0, 1), clipped to +-`DEVIATE_LIMIT`; an outer number lies beyond the limit."""
        inner = float(np.clip(self.rng.normal(), -DEVIATE_LIMIT, DEVIATE_LIMIT))
        outer = math.copysign(DEVIATE_LIMIT + OUTER_DEVIATES * self.rng.random(), inner)
        return outer if self._is_outer() else inner

    def factor(self, width: float) -> float:
        """Return a log-normal factor around 1."""
        return math.exp(width * self.deviate())

    def strength(self, low: float, high: float) -> float:
        """Return a uniform number from `low` to `high`; an outer number lies just above `high`."""
        u = float(self.rng.random())
        return high + OUTER_STRENGTHS * (high - low) * u if self._is_outer() else low + (high - low) * u


def apply_variety(plan: Plan) -> Plan:
    """Return the plan with the variety of its settings applied; the same object for the standard population."""
    variety = plan.settings.variety
    if variety.is_standard:
        return plan
    tumour = None if plan.tumour is None else _vary_tumour(plan.tumour, plan)
    return replace(
        plan,
        head=_vary_head(plan.head, Draws(plan, "head")),
        tumour=tumour,
        distractors=_vary_distractors(plan.distractors, Draws(plan, "distractors")),
        scanner=_vary_scanner(plan.scanner, tumour, plan),
        coverage=_draw_coverage(Draws(plan, "coverage")),
    )


def _vary_head(head: Head, draw: Draws) -> Head:
    head = replace(head, strip_mm=max(head.strip_mm, draw.between(0.3, 1.0)))
    if not draw.happens(draw.variety.strip):
        return head
    bites, rind = draw.strength(0.0, 6.0), draw.strength(0.0, 1.6)
    which = draw.rng.integers(3)
    return replace(head, bites_mm=bites if which != 1 else 0.0, rind_mm=rind if which != 0 else 0.0)


def _vary_tumour(tumour: Tumour, plan: Plan) -> Tumour:
    draw, variety = Draws(plan, "tumour"), plan.settings.variety
    scattered, crossing, tiny = (draw.happens(p) for p in (variety.scattered, variety.crossing, variety.tiny))
    foci = list(tumour.foci)
    if tiny:
        foci[0] = _tiny_focus(foci[0], draw)
    if crossing:
        foci[0] = replace(foci[0], begins="midline")
    foci[0] = _lopsided_oedema(foci[0], Draws(plan, "lean"))
    if scattered:
        foci += [_scattered_focus(Draws(plan, f"focus {number}")) for number in range(int(draw.rng.integers(1, 4)))]
    tumour = replace(
        tumour,
        foci=tuple(foci),
        texture=draw.factor(variety.texture),
        # A small core has little mass effect.
        mass_effect_mm=0.3 * tumour.mass_effect_mm if tiny else tumour.mass_effect_mm,
    )
    return _vary_high_grade_core(tumour, draw, variety) if tumour.kind == "high-grade" else tumour


def _vary_high_grade_core(tumour: Tumour, draw: Draws, variety: Variety) -> Tumour:
    """Return a high-grade tumour whose core is a cyst, enhances throughout, or does not enhance."""
    # Patients' rims are thicker than the standard population's, and more of them are closed.
    tumour = replace(tumour, rim_mm=tumour.rim_mm * draw.between(1.0, 1.6), gaps=tumour.gaps - draw.between(0.0, 0.9))
    kind = draw.rng.random()
    if kind < variety.cystic:
        return replace(
            tumour, cyst=draw.between(0.4, 1.0), rim_mm=draw.between(1.5, 3.5), septa=draw.between(-0.3, 0.05)
        )
    if kind < variety.cystic + variety.compact:
        return replace(tumour, rim_mm=draw.between(7, 18), septa=draw.between(0.1, 0.6), gaps=draw.between(-2.2, -1.2))
    if kind < variety.cystic + variety.compact + variety.dull:
        return replace(tumour, gaps=draw.between(3.2, 5.0), blood=None)
    return tumour


def _lopsided_oedema(focus: Focus, draw: Draws) -> Focus:
    """Return a focus whose oedema extends to one side of the core."""
    if not draw.happens(draw.variety.lopsided):
        return focus
    x, y, z = draw.rng.normal(size=3)
    share = draw.strength(0.4, 2.2) / math.sqrt(x * x + y * y + z * z)
    return replace(focus, lean=(float(share * x), float(share * y), float(share * z)))


def _tiny_focus(focus: Focus, draw: Draws) -> Focus:
    core = math.exp(draw.between(math.log(0.2), math.log(2.0)))
    return replace(focus, core_ml=core, oedema_ml=min(core * math.exp(draw.between(-1, 2.5)), 20.0))


def _scattered_focus(draw: Draws) -> Focus:
    core = math.exp(draw.between(math.log(0.3), math.log(12)))
    return Focus(
        place=draw.between(0, 1),
        core_ml=core,
        oedema_ml=core * math.exp(draw.between(-0.8, 1.2)),
        front_mm=draw.between(2.2, 5.5),
        begins="anywhere",
    )


def _vary_distractors(distractors: Distractors, draw: Draws) -> Distractors:
    variety = draw.variety
    aged, ill = draw.happens(variety.aged), draw.happens(variety.infarct)
    level, caps = draw.strength(0.0, 1.0), draw.strength(0.1, 1.0)
    infarct = Infarct(
        place=draw.between(0, 1),
        radius_mm=draw.strength(6.0, 22.0),
        hollow=draw.between(-0.4, 0.9),
        swollen=draw.between(0.4, 0.9),
    )
    return replace(
        distractors,
        white_matter_lesions=1.9 - 0.7 * level if aged else distractors.white_matter_lesions,
        caps=caps if aged else 0.0,
        infarct=infarct if ill else None,
        vessel_width=draw.factor(variety.vessels),
        veins=abs(draw.deviate()) * variety.vessels,
    )


def _vary_scanner(scanner: Scanner, tumour: Tumour | None, plan: Plan) -> Scanner:
    tissues = {
        name: _vary_tissue(tissue, name, Draws(plan, f"tissue {name}")) for name, tissue in scanner.tissues.items()
    }
    if tumour is not None and tumour.cyst:
        tissues["necrosis"] = _tissue_between(tissues["necrosis"], tissues["cavity"], tumour.cyst)
    acquisitions = tuple(
        _with_central_brightening(
            _vary_acquisition(
                acquisition, modality, Draws(plan, f"acquisition {modality.key}"), scanner.tissues["fluid"].t1_ms
            ),
            modality,
            Draws(plan, f"central {modality.key}"),
        )
        for modality, acquisition in zip(Modality, scanner.acquisitions, strict=True)
    )
    return replace(scanner, tissues=tissues, acquisitions=acquisitions)


def _vary_tissue(tissue: Tissue, name: str, draw: Draws) -> Tissue:
    width = draw.variety.tissue if name in LESION else draw.variety.tissue / 2
    t1, t2, taken = draw.factor(width), draw.factor(width), draw.factor(draw.variety.uptake)
    if name == "enhancing":
        tissue = replace(tissue, gadolinium_mm=tissue.gadolinium_mm * taken)
    return replace(tissue, t1_ms=tissue.t1_ms * t1, t2_ms=tissue.t2_ms * t2)


def _tissue_between(one: Tissue, other: Tissue, share: float) -> Tissue:
    """Return a tissue whose T1 and T2 lie between those of two tissues, on a logarithmic scale."""
    return replace(
        one,
        density=one.density + share * (other.density - one.density),
        t1_ms=one.t1_ms * (other.t1_ms / one.t1_ms) ** share,
        t2_ms=one.t2_ms * (other.t2_ms / one.t2_ms) ** share,
    )


def _vary_acquisition(acquisition: Acquisition, modality: Modality, draw: Draws, fluid_t1_ms: float) -> Acquisition:
    variety = draw.variety
    if draw.happens(variety.sequences):
        acquisition = replace(acquisition, sequence=_draw_sequence(draw, modality, fluid_t1_ms))
    if not acquisition.sequence.planar:
        acquisition = replace(acquisition, slice_mm=min(acquisition.slice_mm, 1.2))
    gains = {name: draw.factor(variety.contrast) for name in (*NORMAL, *LESION) if name != "white"}
    acquisition = replace(
        acquisition, gains=gains, flatness=_draw_flatness(modality, draw), surround=draw.between(0, 1)
    )
    return _with_file_errors(_with_scan_errors(_like_resampled(acquisition, draw), draw), draw)


def _draw_flatness(modality: Modality, draw: Draws) -> float:
    """Return the exponent on the contrast between grey and white matter.

    In patients this contrast is lower than the tissue values predict on T2 and FLAIR, and higher on T1c.
    """
    width = draw.variety.flatness
    middle = -1.0 if modality in Modality.T2 | Modality.FLAIR else float(modality is Modality.T1C)
    return math.exp(width * (middle + draw.deviate()))


def _like_resampled(acquisition: Acquisition, draw: Draws) -> Acquisition:
    """Return an acquisition whose coarse voxels look resampled from finer ones: blurred, with averaged noise."""
    spacing = draw.spacing_mm
    if spacing <= 1:
        return acquisition
    finer = math.sqrt(spacing**2 - 1) / FWHM_PER_SIGMA
    return replace(
        acquisition,
        in_plane_mm=math.hypot(acquisition.in_plane_mm, finer),
        slice_mm=math.hypot(acquisition.slice_mm, finer * FWHM_PER_SIGMA),
        noise=acquisition.noise * spacing**RESAMPLED_NOISE,
    )


def _draw_sequence(draw: Draws, modality: Modality, fluid_t1_ms: float) -> Sequence:
    kind = draw.rng.random()
    if modality is Modality.T2:
        if kind < 0.2:
            return GradientEcho(
                tr_ms=draw.between(400, 900), te_ms=draw.between(15, 25), flip_degrees=draw.between(15, 25)
            )
        return VolumeSpinEcho(tr_ms=draw.between(2500, 3500), te_ms=draw.between(75, 140))
    if modality is Modality.FLAIR:
        if kind < 0.6:
            tr = draw.between(4800, 8000)
            inversion = nulling_inversion_ms(tr, fluid_t1_ms) + draw.between(-60, 90)
            return VolumeInversionSpinEcho(tr_ms=tr, te_ms=draw.between(90, 150), ti_ms=inversion)
        tr = draw.between(6000, 11000)
        inversion = nulling_inversion_ms(tr, fluid_t1_ms) + draw.between(-350, 300)
        return InversionSpinEcho(tr_ms=tr, te_ms=draw.between(80, 140), ti_ms=inversion)
    if kind < 0.5:
        return InversionSpinEcho(
            tr_ms=draw.between(1800, 2600), te_ms=draw.between(8, 24), ti_ms=draw.between(700, 950)
        )
    if kind < 0.8:
        return VolumeSpinEcho(tr_ms=draw.between(500, 800), te_ms=draw.between(8, 22))
    return SpinEcho(tr_ms=draw.between(400, 900), te_ms=draw.between(8, 20))


def _with_scan_errors(acquisition: Acquisition, draw: Draws) -> Acquisition:
    """Return an acquisition with errors of the scan."""
    variety = draw.variety
    coarse, moved, rings, striped, uneven, noisy = (
        draw.happens(p)
        for p in (variety.coarse, variety.motion, variety.ringing, variety.stripes, variety.field, variety.noisy)
    )
    slice_mm, in_plane = draw.strength(2.0, 6.0), draw.strength(0.8, 1.6)
    ghost = Ghost(
        strength=draw.strength(0.03, 0.22), shift_mm=draw.between(4, 60), blur_mm=draw.strength(0.5, 3.0),
        axis=int(draw.rng.integers(3)),
    )  # fmt: skip
    bias, length, noise = draw.strength(0.15, 0.42), draw.between(45, 220), draw.strength(1.2, 2.0)
    rings_mm, stripes = draw.strength(1.2, 2.4), draw.strength(0.01, 0.06)
    return replace(
        acquisition,
        slice_mm=slice_mm if coarse else acquisition.slice_mm,
        sampled=coarse,
        in_plane_mm=in_plane if coarse else acquisition.in_plane_mm,
        ghost=ghost if moved else None,
        ringing_mm=rings_mm if rings else 0.0,
        stripes=stripes if striped else 0.0,
        bias=bias if uneven else acquisition.bias,
        bias_mm=length if uneven else acquisition.bias_mm,
        noise=acquisition.noise * noise if noisy else acquisition.noise,
    )


def _with_central_brightening(acquisition: Acquisition, modality: Modality, draw: Draws) -> Acquisition:
    """Return an acquisition that is brighter and has stronger contrast in the middle of the head."""
    if not draw.happens(draw.variety.central):
        return acquisition
    strength, width, nuclei = draw.strength(0.0, 0.35), draw.between(28, 60), draw.strength(0.0, 0.45)
    middle = (draw.between(-10, 10), draw.between(-20, 20), draw.between(-25, 15))
    return replace(
        acquisition,
        brightening=Brightening(strength=strength, width_mm=width, middle_mm=middle),
        nuclei=nuclei if modality in Modality.T1 | Modality.T1C else acquisition.nuclei,
    )


def _with_file_errors(acquisition: Acquisition, draw: Draws) -> Acquisition:
    """Return an acquisition with errors of later processing: registration, coverage, gamma, clipping."""
    variety = draw.variety
    misplaced, cut = draw.happens(variety.registration), draw.happens(variety.coverage)
    shifts = [draw.strength(0.0, 1.5) * draw.rng.choice([-1, 1]) for _ in range(3)]
    ends = [max(draw.strength(-15.0, 25.0), 0.0) for _ in range(2)]
    ceiling = draw.strength(1.6, 3.0) if draw.happens(0.3 if variety.histogram else 0.0) else None
    return replace(
        acquisition,
        shift_mm=(float(shifts[0]), float(shifts[1]), float(shifts[2])) if misplaced else acquisition.shift_mm,
        cut_mm=(ends[0], ends[1]) if cut else (0.0, 0.0),
        gamma=acquisition.gamma * draw.factor(variety.histogram),
        ceiling=ceiling,
    )


def _draw_coverage(draw: Draws) -> Coverage | None:
    """Return a slab in place of the whole head, or None."""
    if not draw.happens(draw.variety.coverage / 3):
        return None
    return Coverage(thickness_mm=draw.between(40, 90), offset=draw.between(-0.35, 0.35))
