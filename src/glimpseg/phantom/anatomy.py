"""Anatomy of the head: a random deformation of an atlas, and the tissue of each voxel.

The atlas is the average brain or an individual's. Displacements that are not affine are computed on a lattice of 4 mm.
The atlas itself is interpolated once, at full resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage
from torch import Tensor

from glimpseg.phantom.atlas import (
    NUCLEI_MM,
    OUTSIDE_MM,
    Atlas,
    inside_ellipsoid,
    interpolate,
    load_atlas,
)
from glimpseg.phantom.individuals import load_individual
from glimpseg.phantom.lattice import Box, Fields, Lattice, enlarge, rotation_matrix
from glimpseg.phantom.plan import Head, Plan, Structures

WARP_SPACING_MM = 4.0
DISPLACEMENTS_MM = ((70.0, 4.0), (30.0, 1.5), (14.0, 1.0))
"""Correlation length and standard deviation of the components of the random displacement."""
HEAD_OFFSET_MM = (0.0, -9.0, -3.0)
"""Position of the middle of the brain relative to the middle of the field of view, as in BraTS."""
BORDER_MM = 0.5
"""Depth of the outermost voxels that can be brain."""
SULCAL_FLUID = 0.55
"""Share of the fluid in the sulci of a label map that is kept, at typical atrophy."""
SULCI_MM = 18.0
"""Depth at which sulci end in label maps."""
DURA_DEPTH_MM = 1.2
"""Height above the outermost brain voxels up to which dura and outer sinuses are kept."""
REMAINS_LEVEL = 1.2
"""Level of a random field above which tissue outside the brain is left; about one place in nine."""
FOLD_MM = 11.0
FOLD_LEVELS = 1.4
"""Correlation length of the random field of the small sulci, and distance between its sulcus levels.

Sulci are then about 12 mm apart.
"""
SHARPNESS, ROUGHNESS = 2.2, 0.45
"""Factor that sharpens the atlas's tissue probabilities, and noise that moves the tissue borders (in logits)."""
RIBBON_GAIN, GYRUS_LOSS, SULCUS_GAIN = 4.0, 1.2, 5.5
"""Effect of folding, in logits: more grey matter along a sulcus, less between sulci, and fluid in a sulcus."""
FOLD_LATTICE_MM = 3.0
FOLD_RADIUS_MM, UPRIGHT = 65.0, 0.75
"""Radius of the sphere that sulci are drawn on, and how well they keep their direction below it (1: fully)."""
FOLD_SHARE = 0.12
"""Share of grey matter or fluid that a sulcus can add where the atlas has none."""
CORTEX_MM = 20.0
"""Depth at which small sulci end."""
RIBBON_WIDTH, SULCUS_WIDTH = 0.45, 0.21
"""Half widths of cortex and sulcus in units of the field, which changes by about 0.12 per millimetre."""


@dataclass(frozen=True, eq=False)
class Warp:
    """Mapping from points of the head to points of the atlas: an affine map plus an offset on a lattice."""

    matrix: np.ndarray
    origin: np.ndarray
    """Voxel of the atlas in the middle of the field of view."""
    lattice: Lattice
    offset: Float[Tensor, "3 x y z"]
    """Offset in voxels of the atlas; on the CPU."""
    atlas: Atlas
    """On the CPU."""

    def coordinates(self, lattice: Lattice, device: torch.device) -> Float[Tensor, "3 x y z"]:
        """Return the atlas voxel coordinates of every voxel of a lattice."""
        found = enlarge(self.offset.to(device), self.lattice, lattice)
        for k in range(3):
            found[k] += float(self.origin[k])
            for axis in range(3):
                line = torch.from_numpy((self.matrix[k, axis] * lattice.axes[axis]).astype(np.float32)).to(device)
                found[k] += line.reshape([-1 if axis == other else 1 for other in range(3)])
        return found

    def displaced(self, displacement_mm: Float[Tensor, "3 x y z"]) -> Warp:
        """Return the warp of a head whose points are moved by `displacement_mm`, given on the warp's own lattice."""
        matrix = torch.from_numpy(self.matrix.astype(np.float32))
        back = torch.einsum("ij,jxyz->ixyz", matrix, displacement_mm)
        return replace(self, offset=self.offset - back)


def draw_warp(plan: Plan) -> Warp:
    """Draw the random deformation of the head, without the tumour's mass effect."""
    cpu = torch.device("cpu")
    extent = plan.settings.extent_mm
    lattice = Lattice.over(extent, WARP_SPACING_MM)
    fields = Fields(plan.seed, extent, cpu)
    source = _load_source(plan)
    matrix = _affine(plan.head) * source.size
    offset = torch.stack(
        [
            sum(
                (sd * fields.on(lattice, f"displacement {length:g} {axis}", length) for length, sd in DISPLACEMENTS_MM),
                start=torch.zeros(lattice.shape),
            )
            for axis in "xyz"
        ]
    )
    origin = source.centre - matrix @ (np.array(HEAD_OFFSET_MM) + plan.head.shift_mm)
    smooth = Warp(matrix=matrix, origin=origin, lattice=lattice, offset=offset, atlas=source)
    # The maps of the ventricles have voxels of 2 mm.
    growth = interpolate(source.smooth[2:], smooth.coordinates(lattice, cpu).flatten(1) / 2)
    return replace(smooth, offset=offset + plan.head.ventricles_mm * growth.reshape(offset.shape))


def _load_source(plan: Plan) -> Atlas:
    """Load the atlas of the plan on the CPU: an individual, or the average brain."""
    folder = plan.settings.anatomies
    if plan.head.anatomy is None or folder is None:
        return load_atlas(torch.device("cpu"))
    return load_individual(folder, plan.head.anatomy, pool=max(1, round(plan.settings.spacing_mm)))


def _affine(head: Head) -> np.ndarray:
    """Return the matrix from millimetres in the head to millimetres in the atlas."""
    side = np.diag([-1.0, 1.0, 1.0]) if head.mirrored else np.eye(3)
    return side @ rotation_matrix(head.angles_degrees) @ np.diag(1 / np.array(head.scales))


@dataclass(frozen=True, eq=False)
class Regional:
    """Place of each brain voxel among the parts of the brain, as vectors of length n."""

    parts: Float[Tensor, "6 n"]
    """Shares of `atlas.PARTS`."""
    at_mm: Float[Tensor, "3 n"]
    """Position in the atlas: from the midline, and from the atlas's centre along y and z."""
    tentorium_mm: Float[Tensor, "n"]
    """Distance from the tentorium; positive above it."""
    stem_mm: Float[Tensor, "n"]
    """Distance from the brainstem."""


@dataclass(frozen=True, eq=False)
class Brain:
    """Brain voxels, as vectors of length n, inside a box of the full grid."""

    box: Box
    lattice: Lattice
    """Lattice of the box."""
    inside: Int[Tensor, "n"]
    """Flat index of each brain voxel in the box, ascending."""
    normal: Float[Tensor, "3 n"]
    """Shares of white matter, grey matter and fluid; they sum to 1."""
    depth_mm: Float[Tensor, "n"]
    t1: Float[Tensor, "n"]
    """Value of the atlas's average T1 image."""
    ventricles: Float[Tensor, "n"]
    """Lateral ventricles, smoothed: 0.4 in their middle, 0 far away."""
    near_grey: Float[Tensor, "n"]
    """Share of grey matter near the voxel, in the atlas."""
    regional: Regional | None = None
    """What `phantom-2` knows of the place of a voxel; None in `phantom-1`."""

    def gather(self, volume: Float[Tensor, "x y z"]) -> Float[Tensor, "n"]:
        """Return the brain voxels of an array over the box."""
        return volume.flatten()[self.inside]

    def positions_mm(self, device: torch.device) -> Float[Tensor, "3 n"]:
        """Return the position of each brain voxel, from the middle of the field of view."""
        axes = (torch.from_numpy(axis.astype(np.float32)) for axis in self.lattice.axes)
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).to(device)[:, self.inside]

    def scatter(self, values: Shaped[Tensor, "n"], fill: float = 0.0) -> Shaped[Tensor, "x y z"]:
        """Return an array over the box that holds `values` in the brain and `fill` around it."""
        count = math.prod(self.lattice.shape)
        volume = torch.full((count,), fill, dtype=values.dtype, device=values.device)
        volume[self.inside] = values
        return volume.reshape(self.lattice.shape)


def build_brain(plan: Plan, warp: Warp, fields: Fields) -> Brain:
    """Determine the brain voxels at full resolution, and the tissue of each.

    Args:
        plan: Random decisions of the case.
        warp: Deformation of the head, including the mass effect.
        fields: Random fields of the case.
    """
    grid = Lattice.over(plan.settings.extent_mm, plan.settings.spacing_mm)
    source = warp.atlas.on(fields.device)
    box = _bounding_box(warp, grid)
    lattice = grid.crop(box)
    at = warp.coordinates(lattice, fields.device).flatten(1)
    depth = source.sample(source.maps[:1], at, fill=OUTSIDE_MM)[0]
    border = (0.5 * fields.on(lattice, "skull strip", 12.0)).flatten()
    candidate = (depth > BORDER_MM) & (depth + border > plan.head.strip_mm)
    if plan.head.bites_mm or plan.head.rind_mm:
        here = fields.on(lattice, "strip error", 28.0).flatten()
        candidate &= depth > plan.head.bites_mm * (here - 0.6).clamp(0, 1.5)
        candidate |= (depth > BORDER_MM - plan.head.rind_mm) & (-here > 0.4)
    if plan.structures is not None:
        candidate |= _kept_outside(plan.structures, depth, lattice, fields)
    inside = large_components(candidate.reshape(lattice.shape), share=0.5).flatten().nonzero()[:, 0]
    grey, white, t1 = source.sample(source.maps[1:], at[:, inside])
    pools, near_grey = interpolate(source.smooth[:2], at[:, inside] / 2)
    average = torch.stack([white, grey, 1 - white - grey])
    bare = Brain(
        box=box,
        lattice=lattice,
        inside=inside,
        normal=average,
        depth_mm=depth[inside],
        t1=t1,
        ventricles=pools,
        near_grey=near_grey,
    )
    if source.parts is None:
        bare = replace(bare, normal=_tissue_shares(plan, bare, fields))
    else:
        bare = replace(bare, normal=_narrower_sulci(plan.head, average.clamp(0, 1), depth[inside]))
    return bare if plan.structures is None else replace(bare, regional=_regional(bare, source, at[:, inside]))


def _narrower_sulci(head: Head, shares: Float[Tensor, "3 n"], depth_mm: Float[Tensor, "n"]) -> Float[Tensor, "3 n"]:
    """Return the shares with less fluid in the sulci: label maps call all fluid that is no named tissue."""
    white, grey, fluid = shares
    kept = min(max(SULCAL_FLUID * math.exp(head.atrophy), 0.2), 1.0)
    near = ((SULCI_MM - depth_mm) / 4).clamp(0, 1)
    less = (1 - kept) * near * fluid
    return torch.stack([white, grey + less, fluid - less])


def _kept_outside(structures: Structures, depth: Tensor, lattice: Lattice, fields: Fields) -> Bool[Tensor, "n"]:
    """Return the voxels near the surface that skull-stripping leaves although they are not brain."""
    kept = fields.on(lattice, "2 dura kept", 30.0).flatten() > structures.dura_kept
    remains = fields.on(lattice, "2 remains", 22.0).flatten() > REMAINS_LEVEL
    return ((depth > BORDER_MM - DURA_DEPTH_MM) & kept) | ((depth > BORDER_MM - structures.remains_mm) & remains)


def _regional(brain: Brain, source: Atlas, at: Float[Tensor, "3 n"]) -> Regional:
    places, middle = source.places, torch.tensor(source.centre, dtype=at.dtype, device=at.device)
    y, z = at[1] - middle[1], at[2] - middle[2]
    constant, along_y, along_z = places.midline
    place = torch.stack([at[0] - (constant + along_y * y + along_z * z), y, z])
    tentorium, stem = interpolate(torch.stack([places.tentorium_mm, places.stem_mm]), at / 2)
    parts = _average_parts(brain, place, tentorium, stem) if source.parts is None else source.sample(source.parts, at)
    return Regional(parts=parts, at_mm=place, tentorium_mm=tentorium, stem_mm=stem)


def _average_parts(brain: Brain, place: Tensor, tentorium: Tensor, stem: Tensor) -> Float[Tensor, "6 n"]:
    """Return the shares of `PARTS` in the average brain, by position."""
    white, grey, _ = brain.normal
    brainstem = torch.sigmoid(3.0 - 2 * stem)
    behind = torch.sigmoid(-(place[1] + 18) / 2)
    cerebellum = torch.sigmoid(-2 * tentorium) * behind * (1 - brainstem)
    nuclei = inside_ellipsoid(place, NUCLEI_MM) * (1 - brainstem)
    none = torch.zeros_like(white)
    return torch.stack([nuclei * grey, cerebellum * grey, cerebellum * white, brainstem * white, none, none])


def _bounding_box(warp: Warp, grid: Lattice) -> Box:
    """Return the part of `grid` that can hold brain."""
    cpu = torch.device("cpu")
    coarse = warp.atlas.sample(warp.atlas.maps[:1], warp.coordinates(warp.lattice, cpu).flatten(1), fill=OUTSIDE_MM)
    found = (coarse[0] > -1.5).reshape(warp.lattice.shape).numpy()
    return grid.box_around(warp.lattice, found, margin_mm=WARP_SPACING_MM)


def large_components(mask: Bool[Tensor, "x y z"], share: float) -> Bool[Tensor, "x y z"]:
    """Return `mask` without connected components (by faces) smaller than `share` of the largest."""
    parts, count = ndimage.label(mask.cpu().numpy())
    if count <= 1:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return torch.from_numpy((sizes >= share * sizes.max())[parts]).to(mask.device) & mask


def _tissue_shares(plan: Plan, brain: Brain, fields: Fields) -> Float[Tensor, "3 n"]:
    """Return the shares of white matter, grey matter and fluid.

    The atlas's shares are sharpened and roughened, to look like one person.
    """
    spacing = plan.settings.spacing_mm
    fine = max(3.2, 1.6 * spacing)
    rough = [brain.gather(fields.on(brain.lattice, f"rough {name}", fine)) for name in ("grey", "fluid")]
    distance = _fold_distance(brain, fields)
    cortex = (4 * (brain.near_grey - 0.15)).clamp(0, 1) * (1.35 - brain.depth_mm / CORTEX_MM).clamp(0, 1)
    ribbon = cortex * torch.exp(-((distance / RIBBON_WIDTH) ** 2))
    sulcus = cortex * torch.exp(-((distance / (SULCUS_WIDTH * max(1.0, spacing**0.5))) ** 2))
    white, grey, fluid = brain.normal.clamp(0, 1)
    folding = plan.head.folding
    grey = SHARPNESS * (grey + FOLD_SHARE * ribbon).clamp(min=1e-3).log() + ROUGHNESS * rough[0]
    fluid = 2 * (fluid + FOLD_SHARE * sulcus).clamp(min=1e-3).log() + ROUGHNESS * rough[1]
    logits = torch.stack(
        [
            SHARPNESS * white.clamp(min=1e-3).log(),
            grey + folding * (RIBBON_GAIN * ribbon - GYRUS_LOSS * cortex),
            fluid + folding * SULCUS_GAIN * sulcus + plan.head.atrophy,
        ]
    )
    return logits.softmax(0)


def _fold_distance(brain: Brain, fields: Fields) -> Float[Tensor, "n"]:
    """Return the distance of each voxel to the nearest random sulcus, in units of a random field.

    The atlas is an average of many brains and has only the large sulci. The small ones are modelled by the surfaces on
    which a random field takes certain levels. The field is evaluated near a sphere, straight outwards from each voxel,
    which makes the sulci perpendicular to the brain surface.
    """
    coarse = Lattice.over(fields.extent_mm, FOLD_LATTICE_MM)
    field = fields.on(coarse, "folds", FOLD_MM)
    middle = torch.tensor(HEAD_OFFSET_MM, device=fields.device)[:, None]
    at = brain.positions_mm(fields.device) - middle
    outwards = (FOLD_RADIUS_MM / at.norm(dim=0).clamp(min=1.0)) ** UPRIGHT
    first = torch.tensor([axis[0] for axis in coarse.axes], dtype=torch.float32, device=fields.device)[:, None]
    level = interpolate(field[None], (at * outwards + middle - first) / coarse.spacing_mm)[0] / FOLD_LEVELS
    return FOLD_LEVELS * (level - level.round()).abs()
