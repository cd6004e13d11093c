"""Distractors: findings that look like tumour or enhancement and carry no label.

They are age-related white-matter lesions and caps, infarcts, and vessels. Each function returns shares of the brain
voxels; `scan` combines them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from glimpseg.phantom.anatomy import BORDER_MM, Brain
from glimpseg.phantom.lattice import Fields
from glimpseg.phantom.plan import Infarct, Plan

SPOT = 0.8
"""Share of a voxel that a white-matter lesion takes where it is strongest."""
CAP_NEAR, CAP_FAR = 0.10, 0.015
"""Level of the smoothed ventricles at their wall, and at the outer end of caps, some 8 mm away."""
CORTEX_MM = (4.0, 18.0)
"""Smallest and largest depth of the centre of an infarct."""
EDGE_MM = 1.2
"""Width of the border of an infarct."""
VEIN_MM = 9.0
"""Correlation length of the two fields whose common zeros are fine veins."""
MEMBRANE = 0.75
"""Share of blood in membranes that skull-stripping has left."""


def white_matter_lesion_share(plan: Plan, brain: Brain, fields: Fields) -> Float[Tensor, "n"]:
    """Return the share of white matter that is bright because of age, for each brain voxel."""
    level = plan.distractors.white_matter_lesions
    white = brain.normal[0]
    raised = (brain.gather(fields.on(brain.lattice, "white-matter lesions", 7.0)) - level) * 3
    ill = SPOT * 2 * raised.clamp(0, 1) * white * (white - 0.6).clamp(0, 1)
    if plan.distractors.caps:
        near = ((brain.ventricles - CAP_FAR) / (CAP_NEAR - CAP_FAR)).clamp(0, 1)
        uneven = (1 + 0.6 * brain.gather(fields.on(brain.lattice, "caps", 9.0))).clamp(0, 1.6)
        ill = torch.maximum(ill, (plan.distractors.caps * near * uneven).clamp(0, 0.9) * white)
    return ill


def infarct_shares(drawn: Infarct, brain: Brain, fields: Fields) -> Float[Tensor, "2 n"]:
    """Return the shares of swollen tissue and of fluid of an infarct, for each brain voxel."""
    at = brain.positions_mm(fields.device)
    apart = (at - at[:, _infarct_centre(drawn, brain)][:, None]).norm(dim=0)
    apart = apart + 0.18 * drawn.radius_mm * brain.gather(fields.on(brain.lattice, "infarct", 12.0))
    dead = torch.sigmoid((drawn.radius_mm - apart) / EDGE_MM) * (1 - brain.normal[2])
    hollow = torch.sigmoid((drawn.hollow * drawn.radius_mm - apart) / EDGE_MM) * dead if drawn.hollow > 0 else 0 * dead
    return torch.stack([drawn.swollen * (dead - hollow).clamp(min=0), hollow])


def _infarct_centre(drawn: Infarct, brain: Brain) -> int:
    """Return the index of the brain voxel at the centre of an infarct."""
    eligible = (brain.depth_mm > CORTEX_MM[0]) & (brain.depth_mm < CORTEX_MM[1]) & (brain.normal[1] > 0.5)
    found = eligible.nonzero()[:, 0]
    if not len(found):
        return len(brain.inside) // 2
    return int(found[int(drawn.place * len(found))])


def vessel_share(plan: Plan, brain: Brain, fields: Fields) -> Float[Tensor, "n"]:
    """Return the share of flowing blood for each brain voxel.

    Vessels are lines on which two random fields are zero, mostly in fluid. Choroid plexus, fine veins in the sulci and
    membranes that were not stripped are added.
    """
    drawn = plan.distractors
    widest = 0.10 * max(1.0, math.sqrt(plan.settings.spacing_mm))
    fluid = brain.normal[2]
    lines = (
        0.9
        * _lines(brain, fields, "vessels", correlation_mm=16.0, width=drawn.vessel_width * widest)
        * (0.25 + 0.75 * fluid)
    )
    tufts = (3 * (brain.gather(fields.on(brain.lattice, "choroid plexus", 5.0)) - 1.5)).clamp(0, 1)
    chamber = (4 * brain.ventricles).clamp(0, 1) * (fluid - 0.8).clamp(0, 1)
    flowing = lines + 3 * drawn.choroid_plexus * tufts * chamber
    if drawn.veins:
        flowing = (
            flowing + drawn.veins * _lines(brain, fields, "veins", correlation_mm=VEIN_MM, width=1.5 * widest) * fluid
        )
    if plan.head.rind_mm:
        flowing = flowing + MEMBRANE * (brain.depth_mm <= BORDER_MM)
    return flowing.clamp(0, 0.9)


def _lines(brain: Brain, fields: Fields, name: str, *, correlation_mm: float, width: float) -> Float[Tensor, "n"]:
    a, b = (brain.gather(fields.on(brain.lattice, f"{name} {k}", correlation_mm)) for k in "ab")
    return torch.exp(-(a**2 + b**2) / (2 * width**2))
