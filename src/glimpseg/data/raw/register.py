"""Rigid registration of one image to another by mutual information, with SimpleITK; the same bits each time.

A rigid motion is a matrix (4 x 4, RAS millimetres) that tells where a point of the fixed image lies in the world of
the moving one. Nothing is resampled here: `moved` changes the affine, and whoever needs voxels on another grid
interpolates the scanner's own once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from glimpseg.data.raw.itk import as_itk, matrix_of, simpleitk
from glimpseg.errors import InputError
from glimpseg.volume import Grid, Volume, resample

if TYPE_CHECKING:
    import SimpleITK

HEAD_RADIUS_MM = 80.0
"""Of the ball over which a motion's displacement is averaged, as FSL's `rmsdiff` has it (Jenkinson 1999)."""
BINS = 32
SEED = 7
STEP_MM = 2.0
"""The first step of the descent; halved at each turn."""
RELAXATION = 0.5
ITERATIONS = 100


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """How carefully one image is registered to another."""

    spacing_mm: float
    """Both are brought to cubic voxels of this side before they are compared."""
    shrink: tuple[int, ...]
    """By how much coarser each level is than that."""
    smooth_mm: tuple[float, ...]
    """Deviation of the Gaussian at each level."""
    share: float
    """Of the voxels that are compared, drawn with a fixed seed; 1: all."""
    last_step_mm: float


THOROUGH = RegistrationSettings(
    spacing_mm=2.0, shrink=(4, 2, 1), smooth_mm=(4.0, 2.0, 0.0), share=0.2, last_step_mm=1e-3
)
FIRST = RegistrationSettings(spacing_mm=4.0, shrink=(2,), smooth_mm=(4.0,), share=1.0, last_step_mm=1e-1)
"""From which start to begin: eight millimetres tell a few centimetres."""


def register_rigidly(
    fixed: Volume,
    moving: Volume,
    settings: RegistrationSettings = THOROUGH,
    *,
    within: Volume | None = None,
) -> Float[np.ndarray, "4 4"]:
    """The motion that makes `moving` agree best with `fixed`, beginning where the headers put them or with their
    centres of mass on each other, whichever leads further at 8 mm.

    `within`, a mask on any grid in the world of `fixed`, restricts the voxels that are compared.

    Raises: UsageError without SimpleITK; InputError for a sheared affine, or images that share too little.
    """
    with _one_thread() as itk:
        coarse = _images(fixed, moving, FIRST)
        starts = [_from_headers(itk, coarse[0]), _from_masses(itk, *coarse)]
        tried = [_descended(itk, *coarse, start, FIRST, within) for start in starts]
        best, _ = min(tried, key=lambda one: one[1])  # of equals the headers'
        found, metric = _descended(itk, *_images(fixed, moving, settings), best, settings, within)
        _refuse_apart(metric)
        return matrix_of(found)


def refine_registration(
    fixed: Volume,
    moving: Volume,
    settings: RegistrationSettings,
    *,
    within: Volume | None = None,
) -> Float[np.ndarray, "4 4"]:
    """The motion from where the headers put the images to the nearest agreement; arguments as `rigid`."""
    with _one_thread() as itk:
        images = _images(fixed, moving, settings)
        start = _from_headers(itk, images[0])
        found, metric = _descended(itk, *images, start, settings, within)
        _refuse_apart(metric)
        return matrix_of(found)


def moved_grid(grid: Grid, motion: Float[np.ndarray, "4 4"]) -> Grid:
    """The grid of the moving image, placed where `motion` finds it in the world of the fixed one."""
    return Grid(grid.shape, np.linalg.inv(motion) @ grid.affine)


def turn_degrees(motion: Float[np.ndarray, "4 4"]) -> float:
    """The angle of a motion's rotation."""
    return float(np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1))))


def shift_mm(motion: Float[np.ndarray, "4 4"], centre_mm: Float[np.ndarray, "3"]) -> float:
    """How far a motion takes the point `centre_mm`."""
    return float(np.linalg.norm(motion[:3, :3] @ centre_mm + motion[:3, 3] - centre_mm))


def displacement_mm(motion: Float[np.ndarray, "4 4"], centre_mm: Float[np.ndarray, "3"]) -> float:
    """Root mean square of how far a motion takes the points of a head: a ball of 80 mm about `centre_mm`."""
    turn = motion[:3, :3] - np.eye(3)
    return float(np.sqrt(HEAD_RADIUS_MM**2 / 5 * np.trace(turn.T @ turn) + shift_mm(motion, centre_mm) ** 2))


@contextmanager
def _one_thread() -> Iterator[ModuleType]:
    """SimpleITK with one thread: the metric sums over threads in any order, and asks the library's default alone."""
    itk = simpleitk()
    before = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield itk
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _refuse_apart(metric: float) -> None:
    if not np.isfinite(metric):
        raise InputError(
            "Two sequences cannot be registered: hardly a voxel of one lies in the field of view of the other. "
            "Are they of one patient and visit? Leave one out, or register them with another tool."
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


def _descended(
    itk: Any,
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    start: SimpleITK.Euler3DTransform,
    settings: RegistrationSettings,
    region: Volume | None,
) -> tuple[SimpleITK.Euler3DTransform, float]:
    """Where the descent from `start` ends, and the metric there: the lower the better, infinite without overlap."""
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
    found = itk.Euler3DTransform(start)
    method.SetInitialTransform(found, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # ITK's word for: no sample of one lies in the other
        return start, float("inf")
    return found, float(method.GetMetricValue())
