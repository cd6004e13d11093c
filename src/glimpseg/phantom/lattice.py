"""Lattices, smooth random fields on them, and operations that are one matrix per axis.

Random fields, enlargement, blur, slice profiles and sub-voxel shifts are all separable. `separable` applies them, on
any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from glimpseg.phantom.settings import keyed_generator

SPLINE_DEVIATION = (151 / 315) ** 1.5
"""Standard deviation of a cubic B-spline in three dimensions with independent N(0, 1) coefficients.

151/315 is the mean over a knot interval of the sum of the squared weights.
"""
CUTOFF = 3.5
"""Distance, in standard deviations, beyond which a Gaussian is set to zero."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Lattice of cubic voxels. Positions are in millimetres from the middle of the field of view, RAS."""

    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Positions of the voxel centres along x, y and z."""
    spacing_mm: float

    @classmethod
    def over(cls, extent_mm: Sequence[float], spacing_mm: float) -> Lattice:
        """Return the smallest centred lattice that covers `extent_mm`, with at least two voxels along each axis."""
        counts = [max(math.ceil(extent / spacing_mm - 1e-3), 2) for extent in extent_mm]
        x, y, z = ((np.arange(n) - (n - 1) / 2) * spacing_mm for n in counts)
        return cls((x, y, z), spacing_mm)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along x, y and z."""
        x, y, z = (len(axis) for axis in self.axes)
        return x, y, z

    def crop(self, box: Box) -> Lattice:
        """Return the part inside `box`."""
        x, y, z = (axis[side] for axis, side in zip(self.axes, box, strict=True))
        return Lattice((x, y, z), self.spacing_mm)

    def box_around(self, other: Lattice, chosen: np.ndarray, margin_mm: float) -> Box:
        """Return the box of this lattice around the `chosen` voxels of `other`, with a margin of `margin_mm`.

        At least one voxel is chosen.
        """
        sides = []
        for k in range(3):
            hit = other.axes[k][chosen.any(axis=tuple({0, 1, 2} - {k}))]
            near = (self.axes[k] >= hit[0] - margin_mm) & (self.axes[k] <= hit[-1] + margin_mm)
            indices = np.flatnonzero(near)
            sides.append(slice(int(indices[0]), int(indices[-1]) + 1))
        return sides[0], sides[1], sides[2]


@dataclass(frozen=True, eq=False)
class Fields:
    """Smooth random fields over the field of view: mean 0, standard deviation 1, one field for each name.

    The coefficients depend on seed, name and extent alone, so a field can be evaluated on any lattice or on a part of
    one.
    """

    seed: int
    extent_mm: tuple[float, float, float]
    device: torch.device

    def on(self, lattice: Lattice, name: str, correlation_mm: float) -> Float[Tensor, "x y z"]:
        """Evaluate a field at the voxels of a lattice.

        Args:
            lattice: Lattice over the field of view, or a part of one.
            name: Name of the field; it is the key of its random numbers.
            correlation_mm: Distance over which the field varies.
        """
        counts = [max(1, round(extent / correlation_mm)) for extent in self.extent_mm]
        knots = keyed_generator(self.seed, name).standard_normal([n + 3 for n in counts], dtype=np.float32)
        matrices = [
            spline_matrix(axis, extent, count)
            for axis, extent, count in zip(lattice.axes, self.extent_mm, counts, strict=True)
        ]
        return separable(torch.from_numpy(knots / SPLINE_DEVIATION).to(self.device), matrices)

    def white(self, count: int, name: str) -> Float[Tensor, "n"]:
        """Return `count` independent N(0, 1) numbers."""
        drawn = keyed_generator(self.seed, name).standard_normal(count, dtype=np.float32)
        return torch.from_numpy(drawn).to(self.device)


def rotation_matrix(angles_degrees: Sequence[float]) -> np.ndarray:
    """Return the matrix that turns about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(angles_degrees)), np.sin(np.deg2rad(angles_degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def signed_distance(mask: Bool[Tensor, "x y z"]) -> Float[Tensor, "x y z"]:
    """Return the distance in voxels to the surface of `mask`, positive inside; the surface lies between voxels."""
    inside = mask.numpy()
    inner, outer = ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside)
    return torch.from_numpy(np.where(inside, inner - 0.5, 0.5 - outer).astype(np.float32))


def separable(x: Float[Tensor, "*c i j k"], matrices: Sequence[np.ndarray]) -> Float[Tensor, "*c x y z"]:
    """Apply one matrix (output by input) along each of the last three axes of `x`."""
    a, b, c = (torch.from_numpy(np.ascontiguousarray(m, np.float32)).to(x.device) for m in matrices)
    along_x = torch.matmul(a, x.flatten(-2)).unflatten(-1, x.shape[-2:])  # c x j k
    return torch.matmul(torch.matmul(b, along_x), c.T)  # c x y z


def spline_matrix(at_mm: np.ndarray, extent_mm: float, knots: int) -> np.ndarray:
    """Return the weights of `knots` + 3 uniform cubic B-splines over a centred extent, at positions inside it."""
    t = np.clip((at_mm / extent_mm + 0.5) * knots, 0, knots - 1e-6)
    first = np.floor(t).astype(int)
    f = t - first
    weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3], 1) / 6
    matrix = np.zeros((len(at_mm), knots + 3))
    np.put_along_axis(matrix, first[:, None] + np.arange(4), weights, axis=1)
    return matrix


def linear_matrix(at_mm: np.ndarray, from_mm: np.ndarray) -> np.ndarray:
    """Return the weights of linear interpolation between evenly spaced positions; constant beyond the ends."""
    index = np.clip((at_mm - from_mm[0]) / (from_mm[1] - from_mm[0]), 0, len(from_mm) - 1)
    first = np.minimum(index.astype(int), len(from_mm) - 2)
    fraction = index - first
    matrix = np.zeros((len(at_mm), len(from_mm)))
    np.put_along_axis(matrix, first[:, None] + np.arange(2), np.stack([1 - fraction, fraction], 1), axis=1)
    return matrix


def gaussian_matrix(count: int, sigma: float, shift: float = 0.0) -> np.ndarray:
    """Return the weights of a Gaussian blur of `sigma` voxels with a shift of `shift` voxels; rows sum to 1."""
    voxels = np.arange(count)
    # Beyond the ends, the outermost values continue.
    offset = voxels[None, :] - np.clip(voxels - shift, -1, count)[:, None]
    weights = np.exp(-0.5 * (offset / sigma) ** 2)
    weights[np.abs(offset) > max(CUTOFF * sigma, 1)] = 0
    return weights / weights.sum(1, keepdims=True)


def enlarge(x: Float[Tensor, "*c i j k"], source: Lattice, target: Lattice) -> Float[Tensor, "*c x y z"]:
    """Interpolate linearly from one lattice to another; constant beyond the ends of the source."""
    return separable(x, [linear_matrix(t, s) for t, s in zip(target.axes, source.axes, strict=True)])


def blur(x: Float[Tensor, "*c x y z"], sigma: float) -> Float[Tensor, "*c x y z"]:
    """Blur by a Gaussian of `sigma` voxels along each axis."""
    return separable(x, [gaussian_matrix(count, sigma) for count in x.shape[-3:]])
