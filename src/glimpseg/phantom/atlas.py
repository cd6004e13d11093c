"""Atlas: the head that phantoms deform, as maps on one device. It is the average brain, or one individual's label map.

`individuals` makes the atlas of an individual.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from glimpseg.data.atlas import average_brain
from glimpseg.phantom.lattice import blur

PARTS = ("nuclei", "cerebellar_grey", "cerebellar_white", "brainstem", "plexus", "lesions")
"""Parts of normal tissue that an atlas tells apart: deep grey matter, cortex and white matter of the cerebellum,
brainstem, choroid plexus, and white-matter lesions of age."""
NEAR_MM = 5.0
"""Standard deviation of the blur that gives the nearness of grey matter."""
CHUNKS = 8
"""Number of chunks that points are split into for interpolation; torch parallelises over chunks only."""
OUTSIDE_MM = -2.0
"""Depth of points outside the maps of the average brain."""
FAR_MM = 20.0
"""Largest distance in the maps of `Places`."""

TENTORIUM_TOP = (-25.0, 10.0, 0.70)
"""Tentorium of the average brain in the midline: the y and z of its free edge, and its slope, in mm."""
TENTORIUM_RIM_MM, TENTORIUM_WIDTH_MM = -27.0, 22.0
"""Height of its rim, and the distance from the midline over which it falls to the rim (to 1/e)."""
STEM_MM = ((0.0, -14.0, -25.0), (15.0, 17.0, 36.0))
"""Centre and half axes of an ellipsoid around the brainstem of the average brain."""
NUCLEI_MM = ((0.0, 8.0, 2.0), (36.0, 34.0, 22.0))
"""Centre and half axes of an ellipsoid around its deep grey matter."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where large structures of a head lie; voxels of 2 mm."""

    tentorium_mm: Float[Tensor, "x y z"]
    """Distance from the tentorium: positive above it, negative below; at most `FAR_MM`."""
    stem_mm: Float[Tensor, "x y z"]
    """Distance from the brainstem; 0 inside, at most `FAR_MM`."""
    midline: tuple[float, float, float]
    """The midline lies at x = a + b y + c z, with y and z in mm from the atlas's centre, x from its voxel 0."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Head as float tensors on one device; axes RAS."""

    maps: Float[Tensor, "4 x y z"]
    """Depth (mm below the surface, down to -2 outside), grey and white matter (probabilities), T1 (0 to 1).

    Voxels of `pool` mm.
    """
    smooth: Float[Tensor, "5 x2 y2 z2"]
    """Lateral ventricles, nearness of grey matter (both 0 to 1), and direction of ventricle growth (3 channels).

    Voxels of 2 mm.
    """
    centre: np.ndarray
    """Position of the middle of the head in mm, from voxel 0 of `maps` at 1 mm."""
    places: Places
    parts: Float[Tensor, "6 x y z"] | None = None
    """Shares of `PARTS`, on the voxels of `maps`; None for the average brain, whose parts are known by position."""
    name: str = "average"
    size: float = 1.0
    """Size relative to the average brain: the geometric mean over the three axes."""
    pool: int = 1
    """Edge length of the voxels of `maps` and `parts`, in mm."""

    def sample(self, maps: Float[Tensor, "c x y z"], at_mm: Float[Tensor, "3 n"], fill: float = 0) -> Tensor:
        """Interpolate `maps` or `parts` at positions in mm from voxel 0 at 1 mm.

        Returns:
            The values, shape (c, n); `fill` outside.
        """
        at = at_mm if self.pool == 1 else (at_mm - (self.pool - 1) / 2) / self.pool
        return interpolate(maps, at, fill)

    def on(self, device: torch.device) -> Atlas:
        """Return the atlas on another device."""
        if self.maps.device == device:
            return self
        if self.parts is None:
            return load_atlas(device)
        places = replace(
            self.places, tentorium_mm=self.places.tentorium_mm.to(device), stem_mm=self.places.stem_mm.to(device)
        )
        return replace(
            self,
            maps=self.maps.to(device),
            smooth=self.smooth.to(device),
            parts=self.parts.to(device),
            places=places,
        )


@functools.lru_cache(maxsize=4)
def load_atlas(device: torch.device) -> Atlas:
    """Load the average brain onto a device; cached, so it is read once per process."""
    brain = average_brain()
    near_grey = blur(torch.from_numpy(brain.maps[1, ::2, ::2, ::2]), NEAR_MM / 2).numpy()
    pools = np.stack([brain.ventricles, near_grey])
    smooth = np.concatenate([pools, growth_direction(brain.ventricles)]).astype(np.float32)
    return Atlas(
        torch.from_numpy(brain.maps).to(device),
        torch.from_numpy(smooth).to(device),
        brain.centre,
        _average_places(smooth.shape[1:], brain.centre, device),
    )


def growth_direction(ventricles: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "3 x y z"]:
    """Return the direction in which the ventricles' walls move when they grow, on voxels of 2 mm.

    Its largest component is 1.
    """
    slope = np.stack([np.gradient(ventricles, 2.0, axis=axis) for axis in range(3)])
    return slope / np.abs(slope).max()


def interpolate(maps: Float[Tensor, "c x y z"], at: Float[Tensor, "3 n"], fill: float = 0.0) -> Float[Tensor, "c n"]:
    """Interpolate `maps` linearly at the voxel coordinates `at`; points outside get `fill`."""
    count = at.shape[1]
    sizes = torch.tensor(maps.shape[1:], dtype=at.dtype, device=at.device)
    unit = nnf.pad((2 * at.T / (sizes - 1) - 1).flip(1), (0, 0, 0, -count % CHUNKS))  # n 3, as z y x
    points = unit.reshape((CHUNKS, 1, 1, -1, 3))
    source = (maps - fill if fill else maps).expand(CHUNKS, *maps.shape)
    values = nnf.grid_sample(source, points, align_corners=True)  # chunk c 1 1 n
    return values.permute((1, 0, 2, 3, 4)).flatten(1)[:, :count] + fill


def _average_places(shape: tuple[int, ...], centre: np.ndarray, device: torch.device) -> Places:
    """Return the places of the average brain, read off its T1 image."""
    x, y, z = (
        torch.from_numpy((2.0 * np.arange(n) - middle).astype(np.float32)).reshape(
            [-1 if k == i else 1 for k in range(3)]
        )
        for i, (n, middle) in enumerate(zip(shape, centre, strict=True))
    )
    edge_y, edge_z, slope = TENTORIUM_TOP
    top = edge_z + slope * (y - edge_y).clamp(max=0)
    height = TENTORIUM_RIM_MM + (top - TENTORIUM_RIM_MM) * torch.exp(-x.abs() / TENTORIUM_WIDTH_MM)
    (cx, cy, cz), (ax, ay, az) = STEM_MM
    radius = (((x - cx) / ax) ** 2 + ((y - cy) / ay) ** 2 + ((z - cz) / az) ** 2).sqrt()
    return Places(
        tentorium_mm=(z - height).clamp(-FAR_MM, FAR_MM).contiguous().to(device),
        stem_mm=((radius - 1) * ax).clamp(0, FAR_MM).to(device),
        midline=(float(centre[0]), 0.0, 0.0),
    )


def inside_ellipsoid(
    at_mm: Float[Tensor, "3 n"], ellipsoid: tuple[tuple[float, float, float], tuple[float, float, float]]
) -> Float[Tensor, "n"]:
    """Return a share of 1 well inside an ellipsoid and 0 well outside, with a border of about a fifth of its radius.

    Args:
        at_mm: Positions.
        ellipsoid: Centre and half axes in mm.
    """
    centre, axes = (torch.tensor(three, device=at_mm.device)[:, None] for three in ellipsoid)
    return torch.sigmoid((1 - ((at_mm - centre) / axes).norm(dim=0)) * 20)
