"""Do two sequences of one visit show the head at one place? By how much a quick rigid registration moves them.

With SimpleITK at 3 mm, from where the headers put them. Where both images end at the same brain mask, as in archives
that were stripped in common, the mask's edge would hold a moved image in place, so only the inside is compared.
Without SimpleITK a shift of some millimetres is still seen, by the phase correlation of the edges, and no turn.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from jaxtyping import Bool, Float
from scipy import fft, ndimage

from glimpseg.data.raw.check import RawCheck, Verdict
from glimpseg.data.raw.head import border
from glimpseg.data.raw.itk import INSTALL
from glimpseg.data.raw.register import (
    RegistrationSettings,
    displacement_mm,
    refine_registration,
    shift_mm,
    turn_degrees,
)
from glimpseg.errors import InputError
from glimpseg.volume import CONSTANT_SHARE, Grid, Volume, foreground, resample, resample_labels

QUICK = RegistrationSettings(spacing_mm=3.0, shrink=(2, 1), smooth_mm=(4.0, 0.0), share=1.0, last_step_mm=1e-3)
ALIGNED_MM, MISALIGNED_MM = 1.25, 1.5
"""Below the first sequences are registered, above the second they are not: mean displacement over the head. A turn of
2 degrees is 1.8 mm. Sequences that are registered come out at up to 0.8 mm (docs/raw.md)."""
SAME_MASK = 0.99
"""Share of the smaller brain mask that lies in the larger from which on both were cut by one. An image that was moved
before the cut has less of the mask; one moved after it sticks out on the other side."""
EDGE_MM = 6.0
"""What is left out inside the edge of a common mask."""
LEAST_VOXELS = 2000
"""A tenth of a litre at 3 mm is 3700; the inside of less is not compared by itself."""
WHOLE_MM = 0.5
"""What the whole images, edges of a common mask included, have to move at least before the inside alone is believed.
With a common mask phantoms moved by 2 mm or 2 degrees come out at 0.6 mm or more by the whole, unmoved at 0.3."""
EDGES_SPACING_MM = 4.0
SEEN_BY_EDGES_MM = 4.0
"""Shift from which on the edges alone are believed."""


def check_alignment(first: Volume, second: Volume) -> RawCheck:
    """Whether two images of one visit are not registered to each other, with an estimate of shift and turn.

    The shift is that of the middle of the first image's field of view. Without SimpleITK only shifts of 4 mm or more
    are found; anything less is unsure.
    """
    if find_spec("SimpleITK") is None:
        return _by_edges(first, second)
    middle, inside = _middle(first.grid), shared_brain_interior(first, second)
    try:
        motion = refine_registration(first, second, QUICK, within=inside)
        whole = motion if inside is None else refine_registration(first, second, QUICK)
    except InputError as error:
        return RawCheck(verdict=Verdict.YES, evidence=(str(error),))
    shift, turn, moved = shift_mm(motion, middle), turn_degrees(motion), displacement_mm(motion, middle)
    sure = moved > MISALIGNED_MM and displacement_mm(whole, middle) > WHOLE_MM
    verdict = Verdict.NO if moved <= ALIGNED_MM else Verdict.YES if sure else Verdict.UNSURE
    evidence = (
        f"a quick registration moves one by {moved:.1f} mm on average over the head "
        f"({shift:.1f} mm and {turn:.1f} degrees)",
    )
    return RawCheck(verdict=verdict, evidence=evidence, shift_mm=shift, turn_degrees=turn)


def shared_brain_interior(first: Volume, second: Volume) -> Volume | None:
    """The inside of the brain mask that two stripped images share; None if they have none in common."""
    if any(border(image.voxels)[1] <= CONSTANT_SHARE for image in (first, second)):
        return None
    grid = first.grid.at_spacing(QUICK.spacing_mm)
    one, two = (_mask_on(image, grid) for image in (first, second))
    if (one & two).sum() < SAME_MASK * min(one.sum(), two.sum()):
        return None
    inside = ndimage.binary_erosion(one & two, iterations=round(EDGE_MM / QUICK.spacing_mm), border_value=1)
    return Volume(inside.astype(np.uint8), grid.affine) if inside.sum() >= LEAST_VOXELS else None


def _mask_on(image: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    return resample_labels(Volume(foreground(image.voxels).astype(np.uint8), image.affine), grid).voxels > 0


def _middle(grid: Grid) -> Float[np.ndarray, "3"]:
    return grid.corners_mm().mean(0)


def _by_edges(first: Volume, second: Volume) -> RawCheck:
    grid = first.grid.at_spacing(EDGES_SPACING_MM)
    shift = float(np.linalg.norm(_edge_shift(*(_edges(resample(image, grid).voxels) for image in (first, second)))))
    shift *= EDGES_SPACING_MM
    verdict = Verdict.YES if shift >= SEEN_BY_EDGES_MM else Verdict.UNSURE
    seen = f"the edges of both agree best when one is shifted by {shift:.0f} mm"
    limits = f"smaller shifts and turns are not seen without SimpleITK ({INSTALL})"
    return RawCheck(verdict=verdict, evidence=(seen, limits), shift_mm=shift)


def _edges(voxels: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """Where intensity changes, whatever its sign: tissues of one brain end at the same places in every sequence."""
    low, high = np.percentile(voxels, [1, 99])
    steep = ndimage.gaussian_gradient_magnitude(np.clip((voxels - low) / max(high - low, 1e-8), 0, 1), 1.0)
    return steep - steep.mean()


def _edge_shift(first: Float[np.ndarray, "x y z"], second: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "3"]:
    """The shift, in voxels, at which two arrays agree best; to a fraction of one, by a parabola along each axis."""
    shape = [fft.next_fast_len(2 * n, real=True) for n in first.shape]  # room, so that nothing wraps around
    product = fft.rfftn(second, shape) * np.conj(fft.rfftn(first, shape))
    agreement = fft.irfftn(product / np.sqrt(np.abs(product) + 1e-12), shape)
    peak = np.unravel_index(int(agreement.argmax()), agreement.shape)
    shift = np.zeros(3)
    for axis, n in enumerate(shape):
        line = agreement[tuple(slice(None) if k == axis else peak[k] for k in range(3))]
        before, here, after = (float(line[(peak[axis] + step) % n]) for step in (-1, 0, 1))
        bend = before - 2 * here + after
        fraction = 0.5 * (before - after) / bend if bend < 0 else 0.0
        shift[axis] = (peak[axis] + n // 2) % n - n // 2 + fraction
    return shift
