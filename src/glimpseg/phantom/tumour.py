"""Tumour at full resolution: the label map that an annotator would draw, and the tissue in each voxel.

Both are computed from the same part masks. The labels are the largest part of each voxel after a blur.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from glimpseg.phantom.anatomy import Brain, large_components
from glimpseg.phantom.growth import Growth
from glimpseg.phantom.lattice import Fields, Lattice, blur, enlarge
from glimpseg.phantom.plan import Plan, Tumour
from glimpseg.phantom.shapes import LITTLE_ENHANCEMENT, PlacedShape
from glimpseg.region import Label

CONTOUR_MM = 0.75
"""Blur of the borders of the parts; it models partial volume and the smoothness of a drawn contour."""
MINIMAL_BLUR = 0.45
"""Smallest blur in voxels, for large voxels."""
FLUID = 0.65
"""Share of fluid from which a voxel belongs to a ventricle or sulcus and not to the tumour."""
ENGULFED_MM = 3.0
"""Depth in the core beyond which sulci no longer exist."""
REACH_MM, REACH = -8.0, -0.45
"""Core distance and oedema level beyond which roughness creates no tumour."""

SLIGHT = 1e-3
"""Largest share of lesion tissue that is ignored."""

CORTEX_RESISTANCE = 0.6
"""Reduction of the oedema level by grey matter: oedema follows white matter and spares the cortex."""
OEDEMA_GAIN = 0.12
"""Increase of the oedema level that compensates for the lost volume."""
SOAKED_CORTEX = 0.45
"""Reduction of fluid in grey matter where there is oedema."""

PARTS = ("necrosis", "solid", "enhancing", "cavity", "oedema", "blood")
LABEL_OF_PART = {
    "necrosis": Label.NCR,
    "solid": Label.NCR,
    "enhancing": Label.ET,
    "cavity": Label.RC,
    "oedema": Label.ED,
}
"""Label of each part. Blood has none; it gets the label of the part it lies in."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """Tumour, as vectors over all brain voxels (n) or over those that it touches (t)."""

    labels: UInt8[Tensor, "n"]
    """`Label` value of every brain voxel."""
    touched: Int[Tensor, "t"]
    """Brain voxels (indices into n) that hold any lesion tissue."""
    shares: Float[Tensor, "6 t"]
    """Share of each of `PARTS`; the sum is at most 1."""
    t1_factor: Float[Tensor, "t"]
    t2_factor: Float[Tensor, "t"]
    """Texture: factors on T1 and T2 of the lesion tissues."""
    uptake: Float[Tensor, "t"]
    """Texture: factor on the concentration of contrast agent in enhancing tumour."""


@dataclass(frozen=True, eq=False)
class _Site:
    """Box around the tumour, and smooth maps in it."""

    lattice: Lattice
    number: Int[Tensor, "x y z"]
    """Index of each voxel among the brain voxels; -1 outside the brain."""
    tissue: Bool[Tensor, "x y z"]
    """True where tumour can be: brain that is not fluid."""
    grey: Float[Tensor, "x y z"]
    """Share of grey matter."""
    smooth_mm: Float[Tensor, "x y z"]
    """Smooth depth in the core."""
    depth_mm: Float[Tensor, "x y z"]
    """Depth in the core with a rough surface."""
    oedema: Float[Tensor, "x y z"]
    fields: Fields

    def field(self, name: str, correlation_mm: float) -> Float[Tensor, "x y z"]:
        return self.fields.on(self.lattice, name, correlation_mm)


def make_lesion(plan: Plan, growth: Growth, brain: Brain, fields: Fields) -> Lesion:
    """Return labels and tissues of a grown tumour.

    Args:
        plan: Random decisions of the case; with a tumour.
        growth: Grown tumour.
        brain: Brain voxels.
        fields: Random fields of the case.
    """
    assert plan.tumour is not None
    site = _make_site(growth, brain, fields)
    parts = _part_masks(plan.tumour, site) if growth.shape is None else _real_parts(plan.tumour, growth.shape, site)
    sigma = max(CONTOUR_MM / plan.settings.spacing_mm, MINIMAL_BLUR)
    soft = blur(torch.stack([parts[name].float() for name in PARTS]), sigma)
    labels = torch.zeros(len(brain.inside), dtype=torch.uint8, device=fields.device)
    within = site.number >= 0
    # Real label maps are as ragged as their annotators left them; grown ones get the smoothness of a drawn contour.
    hard = soft if growth.shape is None else torch.stack([parts[name].float() for name in PARTS])
    labels[site.number[within]] = _label_map(hard)[within]
    return _textured_lesion(labels, _tissue_shares(soft, site), site, plan.tumour.texture)


def _make_site(growth: Growth, brain: Brain, fields: Fields) -> _Site:
    reached = (growth.core_mm > REACH_MM) | (growth.oedema > REACH)
    box = brain.lattice.box_around(growth.lattice, reached.numpy(), margin_mm=growth.lattice.spacing_mm)
    lattice = brain.lattice.crop(box)
    fine = max(3.5, 2 * lattice.spacing_mm)
    smooth = enlarge(growth.core_mm.to(fields.device), growth.lattice, lattice)
    depth = smooth + 0.9 * fields.on(lattice, "core surface", 7.0) + 0.5 * fields.on(lattice, "core fringe", fine)
    oedema = enlarge(growth.oedema.to(fields.device), growth.lattice, lattice)
    oedema = oedema + 0.10 * fields.on(lattice, "oedema border", 6.0)
    index = torch.arange(len(brain.inside), device=fields.device)
    number = brain.scatter(index, fill=-1)[box]
    grey = brain.scatter(brain.normal[1])[box]
    oedema = oedema + OEDEMA_GAIN - CORTEX_RESISTANCE * grey
    fluid = brain.scatter(brain.normal[2], fill=1.0)[box]
    tissue = (number >= 0) & ((fluid < FLUID) | (depth > ENGULFED_MM))
    return _Site(
        lattice=lattice,
        number=number,
        tissue=tissue,
        grey=grey,
        smooth_mm=smooth,
        depth_mm=depth,
        oedema=oedema,
        fields=fields,
    )


def _part_masks(tumour: Tumour, site: _Site) -> dict[str, Bool[Tensor, "x y z"]]:
    """Return a mask of each part. The masks do not overlap, except for blood."""
    core = large_components(site.tissue & (site.depth_mm > 0), share=0.15)
    halo = site.smooth_mm + 0.8 * site.field("halo", 8.0) > -tumour.halo_mm
    oedema = site.tissue & ~core & ((site.oedema > 0) | halo)
    oedema = large_components(core | oedema, share=0.1) & ~core
    patchy = site.field("gaps", 16.0) + 0.45 * site.field("gaps fine", 6.0)
    if tumour.post_operative:
        parts = _post_operative_parts(tumour, site, core, patchy)
    elif tumour.kind == "high-grade":
        parts = _high_grade_parts(tumour, site, core, patchy)
    else:
        parts = _low_grade_parts(tumour, site, core, patchy)
    none = torch.zeros_like(core)
    parts = {"cavity": none, "blood": none, "necrosis": none} | parts
    solid = parts["enhancing"] | parts["necrosis"] | parts["solid"] | parts["cavity"]
    return parts | {"oedema": oedema | (core & ~solid)}


def _real_parts(tumour: Tumour, placed: PlacedShape, site: _Site) -> dict[str, Bool[Tensor, "x y z"]]:
    """Return a mask of each part of a real shape. The masks do not overlap, except for blood."""
    shares = placed.shares(site.lattice, site.fields.device)
    number = torch.cat([1 - shares.sum(0, keepdim=True), shares]).argmax(0)
    brain = site.number >= 0
    core = brain & ((number == Label.NCR) | (number == Label.ET)) & (site.tissue | (site.depth_mm > 0))
    enhancing = core & (number == Label.ET)
    dark = core & ~enhancing
    solid = dark & (site.field("lobes", 18.0) > tumour.lobes) if placed.shape.enhancing > LITTLE_ENHANCEMENT else dark
    blood = torch.zeros_like(core) if tumour.blood is None else core & (site.field("blood", 9.0) > tumour.blood)
    return {
        "necrosis": dark & ~solid,
        "solid": solid,
        "enhancing": enhancing,
        "cavity": brain & (number == Label.RC),
        "oedema": site.tissue & (number == Label.ED),
        "blood": blood,
    }


def _high_grade_parts(tumour: Tumour, site: _Site, core: Tensor, patchy: Tensor) -> dict[str, Tensor]:
    """Return the parts of a high-grade core: broken enhancing rim, necrosis inside, non-enhancing lobes outside."""
    thickness = tumour.rim_mm * torch.exp(0.45 * site.field("rim", 14.0))
    septum = site.field("septa", 13.0).abs() < tumour.septa
    outer = (site.depth_mm + 0.9 * site.field("rim inside", 5.0) < thickness) | septum
    lobes = (site.field("lobes", 18.0) > tumour.lobes) & (site.depth_mm < 0.8 * tumour.rim_mm)
    enhancing = core & outer & (patchy > tumour.gaps) & ~lobes
    necrosis = core & ~enhancing & ~outer
    blood = torch.zeros_like(core) if tumour.blood is None else core & (site.field("blood", 9.0) > tumour.blood)
    return {
        "enhancing": enhancing,
        "necrosis": necrosis,
        "solid": core & ~enhancing & ~necrosis,
        "blood": blood,
    }


def _low_grade_parts(tumour: Tumour, site: _Site, core: Tensor, patchy: Tensor) -> dict[str, Tensor]:
    """Return the parts of a low-grade core: solid tumour with at most some enhancing islands."""
    enhancing = core & (patchy > tumour.gaps) & (site.depth_mm > 2)
    return {"enhancing": enhancing, "solid": core & ~enhancing}


def _post_operative_parts(tumour: Tumour, site: _Site, core: Tensor, patchy: Tensor) -> dict[str, Tensor]:
    """Return the parts of a core after surgery: a cavity in a wall with remnants, and blood along the wall."""
    # A small core keeps a cavity: the wall never takes more than half of its depth.
    wall_mm = torch.minimum(torch.tensor(tumour.wall_mm), 0.5 * site.depth_mm.max().cpu()).to(core.device)
    cavity = large_components(core & (site.depth_mm > wall_mm), share=0.3)
    wall = core & ~cavity
    enhancing = wall & (patchy > tumour.remnant)
    solid = wall & ~enhancing & (patchy < -0.9)
    lining = (site.depth_mm > wall_mm - 2) & ~cavity & ~enhancing & site.tissue
    return {
        "cavity": cavity,
        "enhancing": enhancing,
        "solid": solid,
        "blood": lining & (site.field("blood", 9.0) > 0.7),
    }


def _label_map(soft: Float[Tensor, "6 x y z"]) -> UInt8[Tensor, "x y z"]:
    """Return the label with the largest share in each voxel; what no part takes is background."""
    by_label = torch.zeros((len(Label) + 1, *soft.shape[1:]), device=soft.device)
    for name, label in LABEL_OF_PART.items():
        by_label[label] += soft[PARTS.index(name)]
    by_label[0] = 1 - by_label[1:].sum(0)
    return by_label.argmax(0).to(torch.uint8)


def _tissue_shares(soft: Float[Tensor, "6 x y z"], site: _Site) -> Float[Tensor, "6 x y z"]:
    """Return the share of each tissue in each voxel; oedema and blood take only a part of their voxels."""
    soaked = 0.55 + 0.3 * site.oedema.clamp(0, 1.2) + 0.18 * site.field("soaking", 9.0)
    soaked = soaked + 0.1 * site.field("soaking fine", max(4.0, 2 * site.lattice.spacing_mm))
    soaked = soaked.clamp(0.35, 1) * (1 - SOAKED_CORTEX * site.grey)
    strength = {"oedema": soaked, "blood": torch.tensor(0.6, device=soft.device)}
    remaining = torch.ones_like(soft[0])
    shares = torch.zeros_like(soft)
    for name in ("cavity", "blood", "enhancing", "necrosis", "solid", "oedema"):  # earlier parts displace later ones
        k = PARTS.index(name)
        shares[k] = torch.minimum(soft[k] * strength.get(name, 1.0), remaining)
        remaining = remaining - shares[k]
    return shares


def _textured_lesion(labels: Tensor, shares: Tensor, site: _Site, uneven: float) -> Lesion:
    """Return the vectors of the lesion, with its texture."""
    chosen = (site.number >= 0) & (shares.sum(0) > SLIGHT)
    coarse = site.field("texture", 8.0)[chosen]
    fine = site.field("texture fine", max(3.0, 1.6 * site.lattice.spacing_mm))[chosen]
    taken = 0.55 * site.field("uptake", 7.0)[chosen] + 0.45 * fine
    return Lesion(
        labels=labels,
        touched=site.number[chosen],
        shares=shares[:, chosen],
        t1_factor=(1 + 0.07 * uneven * coarse + 0.03 * uneven * fine).clamp(0.78, 1.3),
        t2_factor=(1 + 0.15 * uneven * coarse + 0.08 * uneven * fine).clamp(0.6, 1.7),
        uptake=taken.clamp(-2, 1.1).exp(),
    )
