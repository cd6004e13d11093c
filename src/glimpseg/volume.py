"""Volumes and grids: voxels with their position in the world (RAS+ millimetres, as in nibabel).

A `Grid` has no voxel values. Orientation is part of the affine. Processing uses the closest RAS order of axes; results
are then returned to the order of the original file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import nibabel.orientations as nio
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from nibabel.affines import voxel_sizes
from scipy import ndimage

from glimpseg.errors import InputError

GRID_TOLERANCE_MM = 1e-3
"""Largest distance in mm between corresponding corners of two grids at which interpolation gives the same image."""
SAME_GRID_VOXELS = 0.25
"""Largest displacement of a corner between two grids that count as the same, in voxels along each axis.

Conversions, quaternions and rounded headers displace corners by less. Each voxel then lies nearest to its counterpart.
"""
BORDER_VOXELS = 0.1
"""Largest distance outside the field of view, in voxels, at which the outermost plane of an image is copied."""
SAME_GRID_MM = 1.0
"""Largest displacement in mm of a corner between two grids that count as the same, however large the voxels are."""
MAXIMAL_ANGLE_DEGREES = 5.0
"""Largest rotation between sequences of one study that are taken to share a frame of reference."""
MINIMAL_OVERLAP = 0.5
"""Smallest share of the smaller field of view that two sequences must have in common."""
CONSTANT_SHARE = 0.5
"""Share of the voxels on an array's six faces: a value that more of them have counts as background."""
LARGE_VOXELS = 1 << 25
"""Largest number of voxels that is processed at once; larger volumes are processed in slabs.

It is 128 MB in float32, twice the size of a head of 1 mm voxels in 256 cubed.
"""
SLAB_VOXELS = 1 << 23
"""Approximate number of voxels in a slab."""
REACH_SIGMAS = 4.0
"""Radius, in standard deviations, at which a Gaussian filter is truncated; scipy's default."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Lattice of voxels: shape and affine (voxel index to world RAS+ millimetres)."""

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis of the array."""
        a, b, c = (float(size) for size in voxel_sizes(self.affine))
        return a, b, c

    @property
    def axes(self) -> str:
        """Direction of each array axis, rounded to the nearest: `RAS`, `LPS`, ..."""
        return "".join(str(code) for code in nio.aff2axcodes(self.affine))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def ras(self) -> Grid:
        """Return the same lattice with its axes reordered and flipped to the closest RAS order."""
        return self._reordered(nio.io_orientation(self.affine))

    def ordered_as(self, other: Grid) -> Grid:
        """Return the same lattice with its axes reordered and flipped to the order closest to that of another grid."""
        return self._reordered(nio.io_orientation(np.linalg.inv(other.affine) @ self.affine))

    def _reordered(self, turn: Float[np.ndarray, "3 2"]) -> Grid:
        """Return the same lattice with its axes reordered and flipped as nibabel's orientation says."""
        shape = tuple(int(self.shape[int(np.where(turn[:, 0] == axis)[0][0])]) for axis in range(3))
        return Grid(shape, self.affine @ nio.inv_ornt_aff(turn, self.shape))  # type: ignore[arg-type]

    def at_spacing(self, spacing_mm: float) -> Grid:
        """Return the RAS lattice of the same field of view with cubic voxels of another size.

        The centre stays. Each side is rounded up to whole voxels, so the field of view may grow by less than a voxel.
        The grid itself (in RAS order) is returned if it has this spacing already, within 1e-3 mm.
        """
        grid = self.ras()
        old = np.array(grid.spacing_mm)
        if np.abs(old - spacing_mm).max() < GRID_TOLERANCE_MM:
            return grid
        shape = np.maximum(np.ceil(np.array(grid.shape) * old / spacing_mm - 1e-3), 1).astype(int)
        affine = grid.affine.copy()
        affine[:3, :3] = grid.affine[:3, :3] * (spacing_mm / old)
        # The field of view keeps its centre; what rounding adds is shared by both ends.
        middle = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
        affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """Return the part of the lattice inside `box` (slices with both ends given)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box])
        return Grid(tuple(int(side.stop - side.start) for side in box), affine)  # type: ignore[arg-type]

    def corners_mm(self) -> Float[np.ndarray, "8 3"]:
        """Return the world positions of the centres of the eight corner voxels."""
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, 8)
        return (self.affine[:3, :3] @ ends + self.affine[:3, 3:]).T


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a grid. The array is in file order; `ras` returns the closest RAS order."""

    voxels: Shaped[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]

    @property
    def grid(self) -> Grid:
        """Lattice of the voxels."""
        x, y, z = self.voxels.shape
        return Grid((x, y, z), self.affine)

    def ras(self) -> Volume:
        """Return the same voxels in the closest RAS order; nothing is interpolated."""
        turned = _ras_view(self)
        return Volume(np.ascontiguousarray(turned.voxels), turned.affine)


def slabs(grid: Grid) -> Iterator[tuple[slice, slice, slice]]:
    """Yield boxes along the first axis that together cover the grid: one, unless it has over `LARGE_VOXELS` voxels."""
    x, y, z = grid.shape
    for side in axis_slices(x, x * y * z):
        yield side, slice(0, y), slice(0, z)


def axis_slices(length: int, voxels: int) -> Iterator[slice]:
    """Yield slices that cover an axis.

    Args:
        length: Length of the axis.
        voxels: Number of voxels of the whole array. Above `LARGE_VOXELS`, each slice holds about `SLAB_VOXELS` voxels;
            else there is one slice.
    """
    step = length if voxels <= LARGE_VOXELS else max(length * SLAB_VOXELS // voxels, 1)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def downsample_large(volume: Volume) -> Volume:
    """Keep every second voxel along the axis with the smallest spacing, until at most `LARGE_VOXELS` are left.

    Each step takes the axis that then has the smallest spacing. A volume that is small enough is returned itself.
    """
    whole = volume
    while volume.voxels.size > LARGE_VOXELS:
        steps = [1, 1, 1]
        steps[int(np.argmin(volume.grid.spacing_mm))] = 2
        x, y, z = (slice(None, None, step) for step in steps)
        volume = Volume(volume.voxels[x, y, z], volume.affine @ np.diag([*steps, 1.0]))
    # A copy, so that the large array can be freed.
    return whole if volume is whole else Volume(np.ascontiguousarray(volume.voxels), volume.affine)


def same_grid(a: Grid, b: Grid) -> bool:
    """True if two grids have the same shape and, within a fraction of a voxel, the same corners.

    The limits are `SAME_GRID_VOXELS` along each axis of the array, and `SAME_GRID_MM`.
    """
    return a.shape == b.shape and displaced_little(b.corners_mm() - a.corners_mm(), a)


def displaced_little(displacements_mm: Float[np.ndarray, "n 3"], grid: Grid) -> bool:
    """True if displacements of points of a grid, in world coordinates, are within the limits of `same_grid`."""
    along = displacements_mm @ (grid.affine[:3, :3] / np.array(grid.spacing_mm))
    return bool(
        (np.abs(along) <= SAME_GRID_VOXELS * np.array(grid.spacing_mm)).all()
        and (np.linalg.norm(displacements_mm, axis=1) <= SAME_GRID_MM).all()
    )


def displacement_mm(a: Grid, b: Grid) -> float:
    """Return the largest distance in mm between corresponding corners of two grids."""
    return float(np.linalg.norm(a.corners_mm() - b.corners_mm(), axis=1).max())


def difference_in_words(a: Grid, b: Grid) -> str:
    """Return how two grids differ: their shapes, or the displacement of the corners in mm."""
    if a.shape != b.shape:
        return f"{'x'.join(map(str, a.shape))} voxels against {'x'.join(map(str, b.shape))}"
    moved = displacement_mm(a, b)
    along = np.abs((b.corners_mm() - a.corners_mm()) @ (a.affine[:3, :3] / np.array(a.spacing_mm)))
    voxels = float((along / np.array(a.spacing_mm)).max())
    return (
        f"corners up to {moved:.{2 if moved < 10 else 0}f} mm apart, {voxels:.2g} voxels along an axis; at most "
        f"{SAME_GRID_VOXELS:g} voxels and {SAME_GRID_MM:g} mm count as the same"
    )


def angle_degrees(a: Grid, b: Grid) -> float:
    """Return the angle of the rotation between the RAS axes of two grids."""
    first, second = (grid.ras().affine[:3, :3] / np.array(grid.ras().spacing_mm) for grid in (a, b))
    cosine = (np.trace(np.linalg.inv(first) @ second) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def overlap(a: Grid, b: Grid) -> float:
    """Return the overlap of two fields of view as a share of the smaller one, 0 to 1.

    A field of view is the box along the world axes around the centres of all voxels, with 0.5 mm more on each side.
    """
    boxes = [(grid.corners_mm().min(0) - 0.5, grid.corners_mm().max(0) + 0.5) for grid in (a, b)]
    shared = np.minimum(boxes[0][1], boxes[1][1]) - np.maximum(boxes[0][0], boxes[1][0])
    smaller = min(float(np.prod(high - low)) for low, high in boxes)
    return float(np.prod(np.maximum(shared, 0))) / smaller


def resample(volume: Volume, grid: Grid) -> Volume:
    """Resample an image by linear interpolation.

    If `grid` is coarser, the image is smoothed first to avoid aliasing. If both are windows on the same lattice, up to
    the order of axes, voxels are copied without interpolation.

    Args:
        volume: Image.
        grid: Grid of the result.

    Returns:
        The image on `grid`; 0 outside its field of view. It is float32, except that an image that is on this lattice
        already keeps its type.

    Raises:
        InputError: The affine of the image is singular.
    """
    return _resample_with(volume, grid, _interpolate_linearly)


def resample_labels(labels: Volume, grid: Grid) -> Volume:
    """Resample a label map: each voxel gets the label, or 0 (background), with the largest interpolated share.

    This avoids aliasing of thin parts. Labels are copied if both are windows on one lattice, within the limits of
    `same_grid`. Shares are interpolated as in `resample`. Of equal shares, background wins, then the smaller label.
    Outside the field of view is background. The type of the labels is kept.

    Raises:
        InputError: The affine of the labels is singular.
    """
    return _resample_with(labels, grid, _interpolate_labels)


def background_value(voxels: Float[np.ndarray, "x y z"]) -> float:
    """Return the value that more than half of the voxels on the array's faces have (it may be NaN); 0 if none does.

    Releases use 0. Z-scored datasets use a negative constant (BraTS 2013 as often passed on).
    """
    faces = [voxels.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)  # NaN counts as one value
    return float(values[counts.argmax()]) if counts.max() > CONSTANT_SHARE * counts.sum() else 0.0


def bounding_box(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice, slice] | None:
    """Return the bounding box of a mask; None if it is empty. Ten times faster than `scipy.ndimage.find_objects`."""
    sides = [slice(None)] * 3
    # The axis with the largest stride comes first: its slices are contiguous in memory, and the rest is small.
    for axis in np.argsort(np.abs(mask.strides))[::-1]:
        filled = np.flatnonzero(mask[tuple(sides)].any(tuple({0, 1, 2} - {int(axis)})))
        if not len(filled):
            return None
        sides[axis] = slice(int(filled[0]), int(filled[-1]) + 1)
    return sides[0], sides[1], sides[2]


def connected_to_border(outside: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the part of `outside` that is connected to the border of the array (by faces only)."""
    found, _ = ndimage.label(np.pad(outside, 1, constant_values=True))
    return (found == found[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _ras_view(volume: Volume) -> Volume:
    """Return the closest RAS order as a view."""
    turn = nio.io_orientation(volume.affine)
    return Volume(nio.apply_orientation(volume.voxels, turn), volume.grid.ras().affine)


def _is_identical(a: Grid, b: Grid) -> bool:
    """True if the corners of two grids agree so closely that interpolation would change nothing."""
    return a.shape == b.shape and bool(np.abs(a.corners_mm() - b.corners_mm()).max() < GRID_TOLERANCE_MM)


def _resample_with(volume: Volume, grid: Grid, interpolate: Callable[[Volume, Grid], np.ndarray]) -> Volume:
    """Resample between the RAS orders of both grids, then return to the order of `grid`."""
    source, target = _ras_view(volume), grid.ras()
    voxels = source.voxels if _is_identical(source.grid, target) else interpolate(source, target)
    turn = nio.ornt_transform(nio.io_orientation(target.affine), nio.io_orientation(grid.affine))
    return Volume(np.ascontiguousarray(nio.apply_orientation(voxels, turn)), grid.affine)


def _interpolate_linearly(volume: Volume, grid: Grid) -> Float[np.ndarray, "x y z"]:
    """Interpolate linearly. On the same lattice within the limits of `same_grid`, no plane at the border is lost."""
    result = _interpolated(volume, grid)
    window = _same_window(volume.grid, grid)
    return result if window is None else _with_border(result, volume, grid, window)


def _with_border(
    result: Float[np.ndarray, "x y z"], volume: Volume, grid: Grid, window: Int[np.ndarray, "3"]
) -> Float[np.ndarray, "x y z"]:
    """Copy the outermost planes of an image where a small displacement puts them outside its field of view.

    Interpolation knows no value there and gives 0.
    """
    for axis, side in enumerate(volume.voxels.shape):
        for plane in (0, side - 1):
            at = plane - int(window[axis])
            if not 0 <= at < grid.shape[axis]:
                continue
            box = [slice(0, n) for n in grid.shape]
            box[axis] = slice(at, at + 1)
            part = grid.crop((box[0], box[1], box[2]))
            places = np.linalg.solve(volume.affine, part.affine)
            corners = Grid(part.shape, places).corners_mm()[:, axis]
            beyond = max(-corners.min(), corners.max() - (side - 1))
            if 0 < beyond <= BORDER_VOXELS:
                start = window + np.array([one.start for one in box])
                result[tuple(box)] = _copy_window(volume.voxels, start, part.shape)
    return result


def _interpolated(volume: Volume, grid: Grid) -> Float[np.ndarray, "x y z"]:
    """Interpolate linearly; a large image is processed in slabs, to avoid a second array of its size."""
    try:
        matrix = np.linalg.inv(volume.affine) @ grid.affine
    except np.linalg.LinAlgError as error:
        raise InputError("The affine of the image is singular: it gives no place to its voxels.") from error
    shift = np.rint(matrix[:3, 3])
    if np.abs(matrix[:3, :3] - np.eye(3)).max() < 1e-6 and np.abs(matrix[:3, 3] - shift).max() < 1e-4:
        return _copy_window(volume.voxels, shift.astype(int), grid.shape)
    step = np.linalg.norm(matrix[:3, :3], axis=1)  # source voxels per target voxel, along each source axis
    # Standard deviation of a Gaussian that widens a point spread (full width at half maximum) of one voxel to `step`.
    sigma = np.sqrt(np.maximum(step**2 - 1, 0) / (8 * np.log(2)))
    if volume.voxels.size <= LARGE_VOXELS:
        return _smooth_and_sample(volume.voxels, sigma, scale=matrix[:3, :3], offset=matrix[:3, 3], shape=grid.shape)
    result = np.zeros(grid.shape, np.float32)
    for part in axis_slices(grid.shape[0], volume.voxels.size):
        offset = matrix[:3, 3] + matrix[:3, 0] * part.start
        shape = (part.stop - part.start, grid.shape[1], grid.shape[2])
        box = _source_box(matrix[:3, :3], offset, shape, sigma=sigma, sides=volume.voxels.shape)
        if box is not None:
            start = np.array([side.start for side in box])
            result[part] = _smooth_and_sample(
                volume.voxels[box], sigma, scale=matrix[:3, :3], offset=offset - start, shape=shape
            )
    return result


def _source_box(
    scale: Float[np.ndarray, "3 3"],
    offset: Float[np.ndarray, "3"],
    shape: tuple[int, int, int],
    *,
    sigma: Float[np.ndarray, "3"],
    sides: tuple[int, ...],
) -> tuple[slice, slice, slice] | None:
    """Return the box of a source of `sides` voxels that influences a target of `shape`; None if there is none."""
    places = Grid(shape, np.block([[scale, offset[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])).corners_mm()
    reach = np.ceil(REACH_SIGMAS * sigma).astype(int) + 2
    low = np.maximum(np.floor(places.min(0)).astype(int) - reach, 0)
    high = np.minimum(np.ceil(places.max(0)).astype(int) + reach + 1, sides)
    if (low >= high).any():
        return None
    x, y, z = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    return x, y, z


def _smooth_and_sample(
    voxels: Shaped[np.ndarray, "x y z"],
    sigma: Float[np.ndarray, "3"],
    *,
    scale: Float[np.ndarray, "3 3"],
    offset: Float[np.ndarray, "3"],
    shape: tuple[int, int, int],
) -> Float[np.ndarray, "i j k"]:
    voxels = np.ascontiguousarray(voxels, np.float32)
    smooth = ndimage.gaussian_filter(voxels, sigma, truncate=REACH_SIGMAS) if sigma.max() > 0.1 else voxels
    if np.abs(scale - np.diag(np.diag(scale))).max() < 1e-9:
        scale = np.diag(scale)  # with the diagonal alone, scipy filters each axis separately, four times faster
    return ndimage.affine_transform(smooth, scale, offset, output_shape=shape, order=1)


def _copy_window(
    voxels: Shaped[np.ndarray, "x y z"], shift: Int[np.ndarray, "3"], shape: tuple[int, int, int]
) -> Float[np.ndarray, "i j k"]:
    """Copy another window of the same lattice, which begins at voxel `shift` of the source, without interpolation."""
    result = np.zeros(shape, np.float32)
    ends = [(max(s, 0), min(s + n, side)) for s, n, side in zip(shift, shape, voxels.shape, strict=True)]
    if all(low < high for low, high in ends):
        source = tuple(slice(low, high) for low, high in ends)
        target = tuple(slice(low - s, high - s) for (low, high), s in zip(ends, shift, strict=True))
        result[target] = voxels[source]
    return result


def _same_window(source: Grid, target: Grid) -> Int[np.ndarray, "3"] | None:
    """Return the voxel of the source at which the target begins if both are one lattice by `same_grid`, else None."""
    try:
        start = np.linalg.solve(source.affine, target.affine[:, 3])[:3]
    except np.linalg.LinAlgError:
        return None
    if not np.abs(start).max() < 1 << 31:
        return None
    shift = np.rint(start).astype(int)
    window = source.crop(tuple(slice(s, s + n) for s, n in zip(shift, target.shape, strict=True)))  # type: ignore[arg-type]
    return shift if same_grid(window, target) else None


def _interpolate_labels(labels: Volume, grid: Grid) -> Shaped[np.ndarray, "x y z"]:
    window = _same_window(labels.grid, grid)
    if window is not None:
        return _copy_window(labels.voxels, window, grid.shape).astype(labels.voxels.dtype)
    result = np.zeros(grid.shape, labels.voxels.dtype)
    best = np.ones(grid.shape, np.float32)  # the background's share; later the largest share so far
    shares = {}
    for value in np.unique(labels.voxels[labels.voxels != 0]):
        shares[value] = _interpolate_linearly(Volume(labels.voxels == value, labels.affine), grid)
        best -= shares[value]
    for value, share in shares.items():
        result[share > best] = value
        best = np.maximum(best, share)
    return result
