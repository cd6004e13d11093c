"""Generation of phantoms: draw a plan from a seed, render the plan to images and labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from glimpseg.modality import Modality
from glimpseg.phantom.anatomy import Brain, build_brain, draw_warp
from glimpseg.phantom.draw_standard import draw_standard_plan
from glimpseg.phantom.draw_traits import apply_traits
from glimpseg.phantom.draw_variety import apply_variety
from glimpseg.phantom.growth import Growth, grow
from glimpseg.phantom.lattice import Fields, Lattice
from glimpseg.phantom.plan import Coverage, Focus, Plan
from glimpseg.phantom.scan import brain_signal, scan_images
from glimpseg.phantom.settings import Settings, checked_seed
from glimpseg.phantom.tumour import make_lesion
from glimpseg.region import Label

CENTRE_MM = (-119.5, 119.5, 77.0)
"""World position (RAS) of the middle of the BraTS field of view. BraTS files put (0, -239, 0) LPS at a corner."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """Rendered phantom: four images, label map and description."""

    seed: int
    settings: Settings
    images: Float[Tensor, "m x y z"]
    """Whole numbers from 1 to 32000 in the brain, 0 outside and where a sequence was not scanned.

    Channels in the order of `Modality`; RAS.
    """
    labels: UInt8[Tensor, "x y z"]
    """`Label` values; 0 is no tumour, or not scanned (`Plan.coverage`)."""
    affine: Float[np.ndarray, "4 4"]
    """Matrix from voxel index to world RAS+ millimetres."""
    description: dict[str, object]
    """Drawn parameters and resulting volumes; can be written as JSON."""


def draw_plan(seed: int, settings: Settings) -> Plan:
    """Draw the random decisions of one case.

    Args:
        seed: Number of the case, from 0 on.
        settings: Grid and population.

    Returns:
        The plan, for `render`. It can be changed with `dataclasses.replace` before.

    Raises:
        ValueError: The seed is negative or not a whole number.

    >>> plan = draw_plan(7, Settings.at_spacing(3.0))
    >>> plan.tumour.kind
    'low-grade'
    """
    return apply_traits(apply_variety(draw_standard_plan(seed, settings)))


def generate(seed: int, settings: Settings | None = None, device: str | torch.device = "cpu") -> Phantom:
    """Generate one phantom. Equal seeds and settings give equal voxels.

    Args:
        seed: Number of the case, from 0 on.
        settings: Grid and population; by default 1 mm and the standard population (2 s, 1 GB).
        device: Torch device that renders the images.

    Returns:
        The phantom; its tensors lie on `device`.

    Raises:
        ValueError: The seed is negative or not a whole number; or the field of view holds no white matter in which a
            tumour can begin.

    >>> phantom = generate(7, Settings.at_spacing(4.0))
    >>> phantom.images.shape  # modality x y z
    torch.Size([4, 60, 60, 39])
    >>> sorted(phantom.labels.unique().tolist())  # background, NCR, ED, ET
    [0, 1, 2, 3]
    """
    return render(draw_plan(seed, settings or Settings()), device)


def stream(first_seed: int, settings: Settings, device: str | torch.device = "cpu") -> Iterator[Phantom]:
    """Generate phantoms with consecutive seeds, without end.

    Args:
        first_seed: Seed of the first phantom.
        settings: Grid and population.
        device: Torch device that renders the images.

    Returns:
        An iterator of phantoms with the seeds `first_seed`, `first_seed + 1`, ... Each raises errors as `generate`.

    Raises:
        ValueError: The seed is negative or not a whole number.

    >>> phantoms = stream(7, Settings.at_spacing(4.0))
    >>> [next(phantoms).seed for _ in range(2)]
    [7, 8]
    """
    return (generate(seed, settings, device) for seed in itertools.count(checked_seed(first_seed)))


@torch.no_grad()
def render(plan: Plan, device: str | torch.device = "cpu") -> Phantom:
    """Render a plan to images and labels. The same plan gives the same voxels.

    Args:
        plan: Random decisions, from `draw_plan`.
        device: Torch device that renders the images.

    Returns:
        The phantom; its tensors lie on `device`.

    Raises:
        ValueError: The field of view holds no white matter in which the tumour can begin.
    """
    fields = Fields(plan.seed, plan.settings.extent_mm, torch.device(device))
    head = draw_warp(plan)
    growth = grow(plan, head)
    if growth is not None:
        head = head.displaced(growth.push_mm)
    brain = build_brain(plan, head, fields)
    lesion = None if growth is None else make_lesion(plan, growth, brain, fields)
    signal = brain_signal(plan, brain, lesion, fields)
    images = _on_full_grid(scan_images(plan, brain, signal, fields), brain, plan.settings)
    nothing = torch.zeros(len(brain.inside), dtype=torch.uint8, device=fields.device)
    labels = _on_full_grid((nothing if lesion is None else lesion.labels)[None], brain, plan.settings)[0]
    if plan.coverage is not None:
        outside = ~_scanned_planes(plan.coverage, growth, plan.settings).to(labels.device)
        images[..., outside] = 0
        labels[..., outside] = 0
    return Phantom(
        seed=plan.seed,
        settings=plan.settings,
        images=images,
        labels=labels,
        affine=_affine(plan.settings),
        description=_description(plan, growth, labels),
    )


def _scanned_planes(coverage: Coverage, growth: Growth | None, settings: Settings) -> Bool[Tensor, "z"]:
    """Return a flag for each plane along z: True if it was scanned."""
    height = Lattice.over(settings.extent_mm, settings.spacing_mm).axes[2]
    focus = growth.origins_mm[0][2] if growth is not None else 0.0
    apart = np.abs(height - focus + coverage.offset * coverage.thickness_mm)
    return torch.from_numpy(apart <= coverage.thickness_mm / 2)


def _on_full_grid(values: Tensor, brain: Brain, settings: Settings) -> Tensor:
    """Return an array over the full grid that holds the brain's values, and 0 around them."""
    full = torch.zeros((len(values), *settings.shape), dtype=values.dtype, device=values.device)
    for target, channel in zip(full, values, strict=True):
        target[brain.box] = brain.scatter(channel)
    return full


def _affine(settings: Settings) -> np.ndarray:
    affine = np.diag([settings.spacing_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(CENTRE_MM) - (np.array(settings.shape) - 1) / 2 * settings.spacing_mm
    return affine


def _drawn_volumes(focus: Focus) -> dict[str, float]:
    return {"core_ml": round(focus.core_ml, 2), "oedema_ml": round(focus.oedema_ml, 2)}


def _sources(plan: Plan) -> dict[str, object]:
    """Return the names of the files that a case of `phantom-2` was drawn from; nothing for `phantom-1`."""
    if plan.settings.traits is None:
        return {}
    shape = plan.tumour.placement.name if plan.tumour and plan.tumour.placement else None
    return {"anatomy": plan.head.anatomy, "shape": shape}


def _description(plan: Plan, growth: Growth | None, labels: Tensor) -> dict[str, object]:
    voxel_ml = plan.settings.spacing_mm**3 / 1000
    counts = torch.bincount(labels.flatten().int(), minlength=len(Label) + 1).tolist()
    tumour = plan.tumour
    foci = [
        {
            "position_mm": [round(middle + at, 1) for middle, at in zip(CENTRE_MM, place, strict=True)],
            # The volumes of a real shape are not drawn; `volumes_ml` has them.
            **({} if tumour.placement else _drawn_volumes(focus)),
        }
        for focus, place in zip(tumour.foci, growth.origins_mm, strict=True)
    ] if tumour and growth else []  # fmt: skip
    return {
        "name": plan.settings.name,
        "seed": plan.seed,
        "kind": tumour.kind if tumour else "healthy",
        **_sources(plan),
        "post_operative": bool(tumour and tumour.post_operative),
        "foci": foci,
        "mass_effect_mm": round(tumour.mass_effect_mm, 2) if tumour else 0.0,
        "volumes_ml": {label.name: round(counts[label] * voxel_ml, 3) for label in Label},
        "field_strength_tesla": plan.scanner.field_strength,
        "acquisitions": [
            {"modality": modality.key, "kind": type(acquisition.sequence).__name__, **asdict(acquisition)}
            for modality, acquisition in zip(Modality, plan.scanner.acquisitions, strict=True)
        ],
        "settings": plan.settings.record(),
    }
