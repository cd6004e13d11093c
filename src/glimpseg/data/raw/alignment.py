"""Registration check: measure how far a quick rigid registration moves two sequences of one study.

SimpleITK registers the images at 3 mm and starts at the positions in the headers. Some datasets strip all sequences
with one common brain mask. The edge of that mask would hold a misplaced image in place, so then only the interior of
the mask is compared. Without SimpleITK, phase correlation of the image edges still detects shifts of 4 mm or more,
but no rotation.
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
from glimpseg.foreground import foreground
from glimpseg.volume import CONSTANT_SHARE, Grid, Volume, resample, resample_labels

QUICK = RegistrationSettings(spacing_mm=3.0, shrink=(2, 1), smooth_mm=(4.0, 0.0), share=1.0, last_step_mm=1e-3)
ALIGNED_MM, MISALIGNED_MM = 1.25, 1.5
"""Thresholds of the mean displacement over the head. Below the first, sequences are registered; above the second, they
are not. A rotation of 2 degrees gives 1.8 mm. Registered sequences measure at most 0.8 mm (docs/raw.md)."""
SAME_MASK = 0.99
"""Share of the smaller brain mask inside the larger one. From here on, one common mask cut both images. An image that
moved before the cut covers less of the mask; an image that moved after it extends beyond the mask on one side."""
EDGE_MM = 6.0
"""Width of the margin inside the edge of a common mask that is not compared."""
LEAST_VOXELS = 2000
"""Smallest interior of a common mask, in voxels of 3 mm, that is compared by itself. 0.1 litre has 3700 voxels."""
WHOLE_MM = 0.5
"""Least displacement of the whole images, mask edges included, that confirms a displacement of the interior. With a
common mask, phantoms moved by 2 mm or 2 degrees measure 0.6 mm or more by the whole images, unmoved ones 0.3 mm."""
EDGES_SPACING_MM = 4.0
"""Voxel size for the phase correlation of edges."""
SEEN_BY_EDGES_MM = 4.0
"""Smallest shift that the phase correlation of edges detects reliably."""


def check_alignment(first: Volume, second: Volume) -> RawCheck:
    """Check whether two images of one study are misaligned, and estimate their translation and rotation.

    Returns:
        Verdict "no" for a displacement of at most `ALIGNED_MM`. Verdict "yes" for one above `MISALIGNED_MM`, if the
        whole images are displaced by more than `WHOLE_MM`, too, or if they cannot be registered. Else "unsure". The
        translation is measured at the middle of the field of view of the first image. Without SimpleITK the verdict is
        "yes" for shifts of 4 mm or more, else "unsure".
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
        f"a quick registration moves one image by {moved:.1f} mm on average over the head "
        f"({shift:.1f} mm and {turn:.1f} degrees)",
    )
    return RawCheck(verdict=verdict, evidence=evidence, shift_mm=shift, turn_degrees=turn)


def shared_brain_interior(first: Volume, second: Volume) -> Volume | None:
    """Return the interior of the brain mask that two stripped images share, or None if they share no mask.

    The interior excludes a margin of 6 mm. It is a volume (uint8, 0 or 1) on a grid of 3 mm. It is None, too, if it has
    fewer than `LEAST_VOXELS` voxels.
    """
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
    """Check the alignment without SimpleITK, by the phase correlation of edges."""
    grid = first.grid.at_spacing(EDGES_SPACING_MM)
    shift = float(np.linalg.norm(_edge_shift(*(_edges(resample(image, grid).voxels) for image in (first, second)))))
    shift *= EDGES_SPACING_MM
    verdict = Verdict.YES if shift >= SEEN_BY_EDGES_MM else Verdict.UNSURE
    seen = f"the edges of both images agree best when one is shifted by {shift:.0f} mm"
    limits = f"smaller shifts, and rotations, are not detected without SimpleITK ({INSTALL})"
    return RawCheck(verdict=verdict, evidence=(seen, limits), shift_mm=shift)


def _edges(voxels: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
    """Gradient magnitude, mean removed. Tissue borders lie at the same places in every sequence, whatever the sign."""
    low, high = np.percentile(voxels, [1, 99])
    steep = ndimage.gaussian_gradient_magnitude(np.clip((voxels - low) / max(high - low, 1e-8), 0, 1), 1.0)
    return steep - steep.mean()


def _edge_shift(first: Float[np.ndarray, "x y z"], second: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "3"]:
    """Shift in voxels at which two arrays agree best, with sub-voxel precision from a parabola along each axis."""
    shape = [fft.next_fast_len(2 * n, real=True) for n in first.shape]  # padded, so that shifts do not wrap around
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
