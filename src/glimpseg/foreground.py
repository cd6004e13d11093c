"""Find the foreground (a brain or a head) of an image: the voxels that are not air.

In most stripped images the air is one exact value, and every other voxel belongs to the brain. Interpolation (ringing),
denoising, noise and ghosts give the air other values. Such images are recognised, and their foreground is found by a
threshold between the air and the tissue.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg.volume import background_value, bounding_box, connected_to_border

BRIGHT_PERCENTILE = 98
"""Percentile of the distance from the background that counts as the level of bright tissue. A few spikes do not change
it."""
NEARLY_AIR = 0.02
"""Distance from the background, as a share of bright tissue, below which a voxel looks like disturbed air."""
LARGEST_HALO = 0.02
"""Largest share of the foreground that may look like disturbed air and be connected to the air. Measured on stripped
images of five datasets and on phantoms: at most 0.011. After cubic interpolation: more than 0.1."""
DARK = 0.1
"""Distance from the background, as a share of bright tissue, below which a voxel is hardly tissue."""
SMALLEST_CORE = 0.8
"""Smallest share of the foreground that its largest part without dark and thin pieces has. Measured on stripped images
of five datasets and on phantoms of 1 and 2 mm: at least 0.94. Ghosts in the air lower it."""
LARGEST_DARK_BORDER = 0.1
"""Largest share of the outermost voxels that may be nearly, but not exactly, background. Measured: at most 0.02."""
LARGE_VOXELS = 1 << 22
"""Number of voxels from which on the core is measured on every second voxel along each axis."""
LEAST_SHARE = 0.1
"""Share of the outermost voxels with one value from which on it is background, if it is darker than the tissue."""
CLUSTER_WIDTH = 0.05
"""Half of the width of the values of noisy air, as a share of the range of the image."""
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.06, 0.35
"""Limits of the threshold between air and tissue, as a share of bright tissue. Cubic interpolation overshoots by less
than the first, except next to the edge, where the overshoot is negative."""
AIR_SIGMAS = 4.0
"""Distance of the threshold from the median of the air, in standard deviations of the air."""
ONE_SIDED = 0.25
"""Share of the distant voxels below the background up to which tissue counts as brighter."""
SECOND_PART = 0.1
"""Smallest size of a separate part of the foreground, as a share of the largest part."""
CLOSING_VOXELS = 2
"""Radius of the closing that joins dark voxels at the edge to the foreground."""
LARGEST_FOREGROUND = 0.98
"""Share of the array from which on no air was found."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Foreground:
    """Foreground of an image."""

    mask: Bool[np.ndarray, "x y z"]
    """True in the brain (or head)."""
    background: float
    """Intensity of the air; 0 if there is no air."""
    exact: bool = True
    """True if the air is one exact value (or there is none), so that `mask` needs no threshold."""
    threshold: float = 0.0
    """Distance from the background from which on voxels are tissue; 0 if `exact`."""


def foreground(voxels: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return a mask of the voxels that are not air, with holes filled; all voxels if there is no air."""
    return find_foreground(voxels).mask


def find_foreground(voxels: Float[np.ndarray, "x y z"]) -> Foreground:
    """Find the foreground of an image.

    If the air is one exact value, the mask holds every voxel that air of this value does not connect to the border.
    Otherwise a threshold is found from the noise of the air and the level of tissue; the largest parts above it are
    taken, and their holes filled.
    """
    background = _exact_background(voxels)
    noisy = _noisy_background(voxels) if background is None else None
    level = background if background is not None else noisy or 0.0
    mask = ~connected_to_border(voxels == level)
    if not mask.any():
        return Foreground(mask=mask, background=level, exact=True)
    if noisy is None and not _is_disturbed(voxels, level, mask):
        return Foreground(mask=mask, background=level, exact=True)
    found, threshold = _above_air(voxels, level, mask)
    if not found.any() or found.mean() > LARGEST_FOREGROUND:
        return Foreground(mask=mask, background=level, exact=noisy is None)
    return Foreground(mask=found, background=level, exact=False, threshold=threshold)


def air_level(voxels: Float[np.ndarray, "x y z"]) -> float:
    """Return the intensity of the air, exact or the median of noise; 0 if there is no air."""
    background = _exact_background(voxels)
    return background if background is not None else _noisy_background(voxels) or 0.0


def _faces(voxels: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "n"]:
    return np.concatenate([voxels.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))])


def _exact_background(voxels: Float[np.ndarray, "x y z"]) -> float | None:
    """Return the value of the air if many of the outermost voxels have it, else None."""
    common = background_value(voxels)
    if common != 0:
        return common
    values, counts = np.unique(_faces(voxels), return_counts=True)
    share, value = counts.max() / counts.sum(), float(values[counts.argmax()])
    if value == 0:
        return 0.0 if share > LEAST_SHARE else None
    # A brain that fills most of the border has many values; a value that is common, and darker than all, is air.
    return value if share > LEAST_SHARE and value <= voxels.min() else None


def _noisy_background(voxels: Float[np.ndarray, "x y z"]) -> float | None:
    """Return the median of the outermost voxels if most of them differ by noise only, else None."""
    faces = _faces(voxels)
    middle = float(np.median(faces))
    low, high = np.percentile(voxels, (100 - BRIGHT_PERCENTILE, BRIGHT_PERCENTILE))
    width = CLUSTER_WIDTH * max(high - middle, middle - low)
    return middle if (np.abs(faces - middle) <= width).mean() > 0.5 else None


def _is_disturbed(voxels: Float[np.ndarray, "x y z"], level: float, mask: Bool[np.ndarray, "x y z"]) -> bool:
    """True if the air has other values than `level`, so that `mask` (all other values) holds air."""
    distance = np.abs(voxels - level)
    bright = float(np.percentile(distance[mask], BRIGHT_PERCENTILE))
    faces = _faces(distance)
    if ((faces > 0) & (faces <= DARK * bright)).mean() > LARGEST_DARK_BORDER:
        return True
    size = int(mask.sum())
    # The halo is only looked for where enough voxels are dark.
    if (mask & (distance <= NEARLY_AIR * bright)).sum() > LARGEST_HALO * size:
        halo = mask & connected_to_border(distance <= NEARLY_AIR * bright)
        if halo.sum() > LARGEST_HALO * size:
            return True
    step = 2 if voxels.size > LARGE_VOXELS else 1
    thin, distance = (array[::step, ::step, ::step] for array in (mask, distance))
    core = ndimage.binary_opening(thin & ~connected_to_border(distance <= DARK * bright))
    parts, count = ndimage.label(core)
    if not count:
        return False  # too small to have a core
    return bool(np.bincount(parts.ravel())[1:].max() < SMALLEST_CORE * thin.sum())


def _above_air(
    voxels: Float[np.ndarray, "x y z"], level: float, mask: Bool[np.ndarray, "x y z"]
) -> tuple[Bool[np.ndarray, "x y z"], float]:
    """Return the mask of tissue in an image with disturbed air, and the threshold as a distance from `level`."""
    excess = voxels - level
    bright = float(np.percentile(np.abs(excess[mask]), BRIGHT_PERCENTILE))
    distant = excess[np.abs(excess) > HIGHEST_THRESHOLD * bright]
    below = float((distant < 0).mean()) if distant.size else 0.0
    if below > 1 - ONE_SIDED:
        excess = -excess
    elif below > ONE_SIDED:
        excess = np.abs(excess)
    threshold = HIGHEST_THRESHOLD * bright
    for _ in range(3):
        air = excess[mask & connected_to_border(excess <= threshold)]
        air = air[np.abs(air) <= threshold]
        if not air.size:
            break
        middle = float(np.median(air))
        sigma = 1.4826 * float(np.median(np.abs(air - middle)))
        threshold = float(np.clip(middle + AIR_SIGMAS * sigma, LOWEST_THRESHOLD * bright, HIGHEST_THRESHOLD * bright))
    return _whole_parts(excess > threshold), threshold


def _whole_parts(tissue: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Return the large parts of a mask, without thin pieces and with closed edges and filled holes."""
    opened = ndimage.binary_opening(tissue)
    if not opened.any():
        return opened
    parts, _ = ndimage.label(opened)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large = (sizes >= SECOND_PART * sizes.max())[parts]
    large = ndimage.binary_dilation(large) & tissue
    box = bounding_box(large)
    assert box is not None
    n = CLOSING_VOXELS
    part = np.pad(large[box], n)
    # A part that touches the border of the array was cut there; its holes are closed in the plane of the cut.
    closed = ndimage.binary_closing(part, iterations=n)[n:-n, n:-n, n:-n] | large[box]
    result = np.zeros_like(large)
    result[box] = closed
    for axis, end in itertools.product(range(3), (0, -1)):
        face = [slice(None)] * 3
        face[axis] = end  # type: ignore[call-overload]
        if result[tuple(face)].any():
            result[tuple(face)] = ndimage.binary_fill_holes(result[tuple(face)])
    return ~connected_to_border(~result)
