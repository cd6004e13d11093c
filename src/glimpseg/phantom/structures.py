"""Normal structures that take up contrast agent: venous sinuses, dura, falx, tentorium, surface veins, choroid plexus.

Patients' images show them bright on T1c. They carry no label. `phantom-1` has none of them but thin vessels. Each is
drawn from the place of a voxel: its depth, its distance from the midline, the tentorium and the brainstem.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg.phantom.anatomy import BORDER_MM, Brain, Regional
from glimpseg.phantom.atlas import PARTS
from glimpseg.phantom.lattice import Fields
from glimpseg.phantom.plan import Plan, Structures, Three

STRUCTURES = ("sinus", "dura", "plexus", "remains")
"""Tissues whose shares `structure_shares` returns."""
EDGE_MM = 0.5
"""Half the width of a structure's border; it models partial volume."""
FRONT, BACK = (60.0, -62.0), 0.45
"""Range of y over which the superior sagittal sinus widens backwards, and its relative width at the front."""
LOWEST_FRONT_MM = -5.0
"""Height below which the front of the midline has no sinus."""
ROUND = 0.9
"""Depth of the sagittal sinus relative to its half width."""
TRANSVERSE_DEPTH_MM = 3.0
"""Depth of the middle of a transverse sinus."""
NARROW = 0.7
"""Half width of a transverse sinus relative to that of the sagittal sinus, if it takes half of the blood."""
STRAIGHT = 0.65
"""Half width of the straight sinus relative to that of the sagittal sinus."""
DEEP_VEINS_MM = (
    ((2.0, 2.0, 7.0), (1.0, -27.0, 8.0), 1.6),
    ((0.0, -26.0, 8.0), (0.0, -37.0, 11.0), 2.6),
    ((13.0, -6.0, -14.0), (3.0, -29.0, 5.0), 1.2),
)
"""Internal cerebral veins, great vein, and basal veins: both ends in the atlas, and the radius for a sagittal sinus of
half width 3 mm. The first and the last run on both sides."""
BEHIND_MM = -20.0
"""The tentorium lies behind this y."""
STEM_MM = 5.0
"""Distance from the brainstem within which there is no tentorium."""
SHEET_MM = 0.8
"""Half thickness of falx and tentorium, dura's two layers."""
FALX_MM = 34.0
"""Depth of the falx below the surface in the midline."""
VEIN_DEPTH_MM, VEIN_MM = 7.0, 10.0
"""Depth to which surface veins reach, and the correlation length of their course."""
REMAINS_DURA_MM = 1.2
"""Thickness of the dura under the remains outside it."""


def structure_shares(plan: Plan, brain: Brain, fields: Fields) -> Float[Tensor, "4 n"]:
    """Return the share of each of `STRUCTURES` in every brain voxel; the sum is at most 1.

    Args:
        plan: Random decisions of the case; with structures.
        brain: Brain voxels, with their places.
        fields: Random fields of the case.
    """
    drawn, place = plan.structures, brain.regional
    assert drawn is not None
    assert place is not None
    fluid = brain.normal[2]
    edge = max(EDGE_MM, 0.35 * plan.settings.spacing_mm)
    soft = _Soft(edge)
    sinus = _sinuses(drawn, brain, place, fields=fields, soft=soft) if drawn.sinus_mm > 0 else torch.zeros_like(fluid)
    if drawn.cortical_veins > 0:
        sinus = torch.maximum(sinus, _surface_veins(drawn, brain, fields, plan.settings.spacing_mm))
    dura = torch.maximum(_convexity(drawn, brain, fields, soft), _sheets(drawn, brain, place, fields=fields, soft=soft))
    plexus = _plexus(drawn, brain, place, fields)
    outside = soft.above(BORDER_MM - REMAINS_DURA_MM - brain.depth_mm) if drawn.remains_mm else torch.zeros_like(fluid)
    shares, left = [], torch.ones_like(fluid)
    for share in (sinus, dura, plexus, outside):
        shares.append(torch.minimum(share.clamp(0, 1), left))
        left = left - shares[-1]
    return torch.stack(shares)


class _Soft:
    """Borders of a given width."""

    def __init__(self, edge_mm: float) -> None:
        self.edge_mm = edge_mm

    def above(self, distance_mm: Tensor) -> Tensor:
        """Return the share of a voxel that lies inside a surface; the distance is positive inside."""
        return (0.5 + distance_mm / (2 * self.edge_mm)).clamp(0, 1)


def _sinuses(drawn: Structures, brain: Brain, place: Regional, *, fields: Fields, soft: _Soft) -> Float[Tensor, "n"]:
    """Return the share of venous sinuses (sagittal, transverse, straight, their confluence) and of deep veins."""
    x, y, z = place.at_mm
    wander = 0.6 * brain.gather(fields.on(brain.lattice, "2 sinus course", 24.0))
    width = drawn.sinus_mm * (1 + 0.2 * brain.gather(fields.on(brain.lattice, "2 sinus width", 30.0)))
    front, back = FRONT
    backwards = ((front - y) / (front - back)).clamp(0, 1)
    sagittal = width * (BACK + (1 - BACK) * backwards)
    # A triangle with its base outside: it becomes narrower with depth.
    inside = sagittal - (x + wander).abs() - (brain.depth_mm - BORDER_MM).clamp(min=0) / ROUND
    reaches = ((place.tentorium_mm > -4) | (y > BEHIND_MM)) & ~((y > front - 20) & (z < LOWEST_FRONT_MM))
    share = soft.above(inside) * reaches
    behind = y < BEHIND_MM
    apart = torch.hypot(place.tentorium_mm + wander, brain.depth_mm - TRANSVERSE_DEPTH_MM)
    side = torch.where(x > 0, drawn.right, 1 - drawn.right)
    transverse = width * NARROW * (2 * side).clamp(min=0).sqrt() - apart
    share = torch.maximum(share, soft.above(transverse) * behind * (place.stem_mm > STEM_MM))
    straight = width * STRAIGHT - torch.hypot(place.tentorium_mm, x + wander)
    share = torch.maximum(share, soft.above(straight) * (y < BEHIND_MM - 3) * (place.stem_mm > STEM_MM))
    at = torch.stack([x.abs() + wander, y, z + wander])
    for start, end, radius in DEEP_VEINS_MM:
        share = torch.maximum(share, soft.above(width / 3 * radius - _distance_mm(at, start, end)))
    return share


def _distance_mm(at_mm: Float[Tensor, "3 n"], start: Three, end: Three) -> Float[Tensor, "n"]:
    """Return the distance of each point from the line between two points."""
    first, last = (torch.tensor(point, device=at_mm.device)[:, None] for point in (start, end))
    along = last - first
    t = (((at_mm - first) * along).sum(0) / along.square().sum()).clamp(0, 1)
    return (at_mm - first - along * t).norm(dim=0)


def _surface_veins(drawn: Structures, brain: Brain, fields: Fields, spacing_mm: float) -> Float[Tensor, "n"]:
    """Return the share of veins in the fluid of the surface: lines on which two random fields are zero."""
    width = 0.13 * max(1.0, spacing_mm**0.5)
    a, b = (brain.gather(fields.on(brain.lattice, f"2 surface vein {k}", VEIN_MM)) for k in "ab")
    lines = torch.exp(-(a**2 + b**2) / (2 * width**2))
    near = (1 - brain.depth_mm / VEIN_DEPTH_MM).clamp(0, 1) ** 0.5
    return drawn.cortical_veins * lines * near * (0.3 + 0.7 * brain.normal[2])


def _convexity(drawn: Structures, brain: Brain, fields: Fields, soft: _Soft) -> Float[Tensor, "n"]:
    """Return the share of dura on the surface, where skull-stripping has left it."""
    if drawn.dura_mm <= 0:
        return torch.zeros_like(brain.depth_mm)
    kept = brain.gather(fields.on(brain.lattice, "2 dura kept", 30.0)) - drawn.dura_kept
    return soft.above(drawn.dura_mm - (brain.depth_mm - (BORDER_MM - 0.7))) * (4 * kept).clamp(0, 1)


def _sheets(drawn: Structures, brain: Brain, place: Regional, *, fields: Fields, soft: _Soft) -> Float[Tensor, "n"]:
    """Return the share of falx and tentorium."""
    if drawn.sheets <= 0:
        return torch.zeros_like(brain.depth_mm)
    x, y, _ = place.at_mm
    uneven = (0.75 + 0.5 * brain.gather(fields.on(brain.lattice, "2 sheets", 14.0))).clamp(0, 1.3)
    # Dura lies in the fissure between the halves of the brain, not in tissue that joins them.
    free = (1 - brain.normal[0]) ** 2
    falx = soft.above(SHEET_MM - x.abs()) * (brain.depth_mm < FALX_MM) * (place.tentorium_mm > 0)
    tentorium = soft.above(SHEET_MM - place.tentorium_mm.abs()) * (y < BEHIND_MM) * (place.stem_mm > STEM_MM)
    return drawn.sheets * uneven * torch.maximum(falx * free, tentorium * (0.4 + 0.6 * free))


def _plexus(drawn: Structures, brain: Brain, place: Regional, fields: Fields) -> Float[Tensor, "n"]:
    """Return the share of enhancing choroid plexus: an individual's own, else tufts in the ventricles."""
    own = place.parts[PARTS.index("plexus")]
    if not bool((own > 0).any()):
        tufts = (3 * (brain.gather(fields.on(brain.lattice, "2 plexus", 5.0)) - 1.3)).clamp(0, 1)
        own = tufts * (4 * brain.ventricles).clamp(0, 1) * (brain.normal[2] - 0.7).clamp(0, 0.3) / 0.3
    return drawn.plexus * own
