"""Artefacts of scanning and resampling that are linear along an axis, as one matrix per axis.

Slice profile, ghost, motion blur, ringing and misregistration are all linear along one axis. Together they are one
matrix for each axis, and cost as much as one blur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from glimpseg.phantom.lattice import gaussian_matrix, linear_matrix
from glimpseg.phantom.plan import Acquisition

MINIMAL_SIGMA = 0.2
"""Smallest standard deviation in voxels; below it a sampled Gaussian is the identity."""
FWHM_PER_SIGMA = 2.355
"""Full width at half maximum of a Gaussian, in standard deviations."""


def axis_matrices(acquisition: Acquisition, shape: Sequence[int], spacing_mm: float) -> list[np.ndarray]:
    """Return the linear effects of an acquisition along x, y and z as matrices (output by input); rows sum to 1."""
    sigmas = [acquisition.in_plane_mm / spacing_mm] * 3
    sigmas[acquisition.slice_axis] = max(acquisition.in_plane_mm, acquisition.slice_mm / FWHM_PER_SIGMA) / spacing_mm
    matrices = [
        gaussian_matrix(n, max(sigma, MINIMAL_SIGMA), shift / spacing_mm)
        for n, sigma, shift in zip(shape, sigmas, acquisition.shift_mm, strict=True)
    ]
    if acquisition.sampled:
        axis = acquisition.slice_axis
        matrices[axis] = (
            slice_sampling_matrix(shape[axis], (acquisition.slice_mm + acquisition.gap_mm) / spacing_mm)
            @ matrices[axis]
        )
    if acquisition.ringing_mm:
        matrices = [
            matrix
            if axis == acquisition.slice_axis
            else ringing_matrix(len(matrix), acquisition.ringing_mm / spacing_mm) @ matrix
            for axis, matrix in enumerate(matrices)
        ]
    ghost = acquisition.ghost
    if ghost is not None:
        blurred = gaussian_matrix(shape[ghost.axis], max(ghost.blur_mm / spacing_mm, MINIMAL_SIGMA))
        copied = ghost_matrix(shape[ghost.axis], ghost.strength, ghost.shift_mm / spacing_mm)
        matrices[ghost.axis] = copied @ blurred @ matrices[ghost.axis]
    return matrices


def slice_sampling_matrix(count: int, step: float) -> np.ndarray:
    """Return the matrix that samples every `step` voxels and interpolates linearly back.

    It is the identity for steps of at most 1, and for steps so long that fewer than two samples fit.
    """
    if step <= 1:
        return np.eye(count)
    voxels = np.arange(count, dtype=np.float64)
    taken = np.arange((count - 1) / 2 % step, count - 1 + 1e-9, step)
    if len(taken) < 2:
        return np.eye(count)
    return linear_matrix(voxels, taken) @ linear_matrix(taken, voxels)


def ghost_matrix(count: int, strength: float, shift: float) -> np.ndarray:
    """Return the matrix that adds a copy, scaled by `strength` and shifted by `shift` voxels with wrap-around.

    `shift` is at least 0. Rows are divided by their sum, 1 + `strength`.
    """
    whole, part = divmod(abs(shift), 1)
    step = int(math.copysign(whole, shift))
    copy = (1 - part) * np.roll(np.eye(count), step, axis=1) + part * np.roll(np.eye(count), step + 1, axis=1)
    return (np.eye(count) + strength * copy) / (1 + strength)


def ringing_matrix(count: int, voxel: float) -> np.ndarray:
    """Return the matrix that removes frequencies above one period in two steps of `voxel` voxels, with a sharp edge.

    It is the identity if `voxel` is at most 1.
    """
    if voxel <= 1:
        return np.eye(count)
    frequencies = np.fft.rfftfreq(2 * count)
    # The image is mirrored at its ends, so that the head does not wrap around to the other side.
    mirrored = np.concatenate([np.eye(count), np.eye(count)[::-1]])
    passed = np.fft.rfft(mirrored, axis=0) * (frequencies <= 0.5 / voxel)[:, None]
    return np.fft.irfft(passed, n=2 * count, axis=0)[:count]
