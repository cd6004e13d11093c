"""Rigid registration of two images by mutual information, with SimpleITK; deterministic to the bit.

A rigid motion is a matrix (4 x 4, RAS millimetres). It maps a point of the fixed image to the world coordinates of the
moving image. Nothing is resampled here: `moved_grid` only changes the affine, so that the voxels of the scanner are
interpolated once, later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from glimpseg.data.raw.itk import as_itk, ras_matrix, simpleitk
from glimpseg.errors import InputError
from glimpseg.volume import Grid, Volume, resample

if TYPE_CHECKING:
    import SimpleITK

HEAD_RADIUS_MM = 80.0
"""Radius of the ball over which the displacement of a motion is averaged, as in `rmsdiff` of FSL (Jenkinson 1999)."""
BINS = 32
"""Histogram bins of the mutual information."""
SEED = 7
"""Seed for the random choice of compared voxels."""
STEP_MM = 2.0
"""First step of the gradient descent; halved each time the direction reverses."""
RELAXATION = 0.5
"""Factor of the step when the direction reverses."""
ITERATIONS = 100
"""Most steps of the gradient descent at one level."""


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """Accuracy settings of a registration."""

    spacing_mm: float
    """Side of the cubic voxels to which both images are resampled before they are compared."""
    shrink: tuple[int, ...]
    """Shrink factor of each resolution level, coarse to fine."""
    smooth_mm: tuple[float, ...]
    """Standard deviation of the Gaussian filter at each level."""
    share: float
    """Share of the voxels that are compared, drawn with a fixed seed; 1 compares all."""
    last_step_mm: float
    """Step of the gradient descent at which it stops."""


THOROUGH = RegistrationSettings(
    spacing_mm=2.0, shrink=(4, 2, 1), smooth_mm=(4.0, 2.0, 0.0), share=0.2, last_step_mm=1e-3
)
FIRST = RegistrationSettings(spacing_mm=4.0, shrink=(2,), smooth_mm=(4.0,), share=1.0, last_step_mm=1e-1)
"""Settings for the choice of a start. At 8 mm a registration corrects a few centimetres."""


def register_rigidly(
    fixed: Volume,
    moving: Volume,
    settings: RegistrationSettings = THOROUGH,
    *,
    within: Volume | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Find the rigid motion that aligns `moving` with `fixed`.

    Two starts are tried at 8 mm: the positions in the headers, and equal centres of mass. The better one is continued.

    Args:
        fixed: image that defines the world coordinates.
        moving: image to be aligned.
        settings: accuracy.
        within: mask on any grid in the world coordinates of `fixed`; only voxels in it are compared.

    Returns:
        Matrix in RAS millimetres, from a point of `fixed` to the corresponding point of `moving`.

    Raises: UsageError without SimpleITK; InputError for a sheared affine, or images that share too little.
    """
    with _one_thread() as itk:
        coarse = _images(fixed, moving, FIRST)
        starts = [_from_headers(itk, coarse[0]), _from_masses(itk, *coarse)]
        results = [_optimise(itk, *coarse, start, FIRST, within) for start in starts]
        best, _ = min(results, key=lambda result: result[1])  # if both are equal, the one from the headers
        transform, metric = _optimise(itk, *_images(fixed, moving, settings), best, settings, within)
        _refuse_no_overlap(metric)
        return ras_matrix(transform)


def refine_registration(
    fixed: Volume,
    moving: Volume,
    settings: RegistrationSettings,
    *,
    within: Volume | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Find the rigid motion by a search that starts at the positions in the headers alone.

    Arguments, result and errors are those of `register_rigidly`.
    """
    with _one_thread() as itk:
        images = _images(fixed, moving, settings)
        start = _from_headers(itk, images[0])
        transform, metric = _optimise(itk, *images, start, settings, within)
        _refuse_no_overlap(metric)
        return ras_matrix(transform)


def moved_grid(grid: Grid, motion: Float[np.ndarray, "4 4"]) -> Grid:
    """Return the grid of the moving image (`grid`) in the world coordinates of the fixed image."""
    return Grid(grid.shape, np.linalg.inv(motion) @ grid.affine)


def turn_degrees(motion: Float[np.ndarray, "4 4"]) -> float:
    """Return the rotation angle of a motion."""
    return float(np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1))))


def shift_mm(motion: Float[np.ndarray, "4 4"], centre_mm: Float[np.ndarray, "3"]) -> float:
    """Return the distance by which a motion moves the point `centre_mm`."""
    return float(np.linalg.norm(motion[:3, :3] @ centre_mm + motion[:3, 3] - centre_mm))


def displacement_mm(motion: Float[np.ndarray, "4 4"], centre_mm: Float[np.ndarray, "3"]) -> float:
    """Return the root-mean-square displacement of the points of a head: a ball of radius 80 mm around `centre_mm`."""
    turn = motion[:3, :3] - np.eye(3)
    return float(np.sqrt(HEAD_RADIUS_MM**2 / 5 * np.trace(turn.T @ turn) + shift_mm(motion, centre_mm) ** 2))


@contextmanager
def _one_thread() -> Iterator[ModuleType]:
    """Run SimpleITK with one thread, since several threads sum the metric in varying order.

    The metric takes the number of threads only from the global default of the library.
    """
    itk = simpleitk()
    before = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield itk
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _refuse_no_overlap(metric: float) -> None:
    if not np.isfinite(metric):
        raise InputError(
            "Two sequences cannot be registered: hardly a voxel of one lies in the field of view of the other. "
            "Are they of one patient and study? Leave one out, or register them with another tool."
        )


def _images(fixed: Volume, moving: Volume, settings: RegistrationSettings) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    first, second = (as_itk(resample(image, image.grid.at_spacing(settings.spacing_mm))) for image in (fixed, moving))
    return first, second


def _from_headers(itk: Any, fixed: SimpleITK.Image) -> SimpleITK.Euler3DTransform:
    start = itk.Euler3DTransform()
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    return start


def _from_masses(itk: Any, fixed: SimpleITK.Image, moving: SimpleITK.Image) -> SimpleITK.Euler3DTransform:
    moments = itk.CenteredTransformInitializerFilter.MOMENTS
    start = itk.CenteredTransformInitializer(fixed, moving, itk.Euler3DTransform(), moments)
    return itk.Euler3DTransform(start)


def _optimise(
    itk: Any,
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    start: SimpleITK.Euler3DTransform,
    settings: RegistrationSettings,
    region: Volume | None,
) -> tuple[SimpleITK.Euler3DTransform, float]:
    """Return the transform found from `start`, and its metric: lower is better, infinite without overlap."""
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    if settings.share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(settings.share, SEED)
    if region is not None:
        mask = as_itk(Volume((region.voxels > 0).astype(np.uint8), region.affine))
        nearest = itk.Resample(mask, fixed, itk.Transform(), itk.sitkNearestNeighbor)
        method.SetMetricFixedMask(itk.Cast(nearest, itk.sitkUInt8))
    method.SetInterpolator(itk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(STEP_MM, settings.last_step_mm, ITERATIONS, RELAXATION)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(settings.shrink)
    method.SetSmoothingSigmasPerLevel(settings.smooth_mm)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    transform = itk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # ITK raises it when no sample of one image lies in the other
        return start, float("inf")
    return transform, float(method.GetMetricValue())
