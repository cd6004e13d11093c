"""Skull-strip check: decide from the voxels whether an image still shows skull and scalp.

Three properties are measured: the values at the border, the size of the object, and the tissue under its surface.
A skull-stripped image is a brain in constant air. A head has a rim of skin and fat and, under it, the dark ring of
the skull. It is larger than any brain. Its air is noise, unless the scanner or an anonymiser removed the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from glimpseg.data.raw.check import RawCheck, Verdict
from glimpseg.foreground import foreground
from glimpseg.volume import CONSTANT_SHARE, Volume, resample

SPACING_MM = 3.0
"""Voxel size of the check. Scalp and skull are two voxels thick, and one head takes about one second. Our choice."""
BORDER_PERCENTILE = 25.0
"""Percentile of the outermost voxels that is air, even where the neck or the cut of a slab fills most of them. Our
choice."""
BRIGHT_PERCENTILE = 98.0
"""Percentile of the intensities that counts as the bright end."""
DARKEST_PERCENTILE = 5.0
"""If this percentile of the tissue is darker than the air, the intensities are z-scores with the brain's mean at 0."""
TISSUE_SHARE = 0.12
"""Threshold for tissue, as a share of the way from air to the bright end: above noise, below muscle. Our choice."""
CLOSING_VOXELS = 3
"""Iterations of the closing that joins scalp and brain across a skull of up to 18 mm."""
DARK_SHARE = 0.4
"""Threshold for bone or air, as a share of the way from air to the median tissue. Our choice."""
RING_MM = (3.0, 15.0)
"""Depth range under the surface where the skull is expected. Skull and scalp together are 10 to 20 mm thick."""
HEAD_RING = 0.15
"""Dark share of that ring above which the object is a head. Stripped phantoms have at most 0.10, stripped patients
0.03 (docs/raw.md)."""
CERTAIN_RING = 0.4
"""Dark share of the ring above which it alone decides for a head. Atrophy never reaches it."""
BRAIN_RING = 0.12
"""Dark share of the ring up to which there is no skull."""
LARGEST_BRAIN_ML = 2150.0
"""Largest volume of a brain. The largest intracranial volume of men is 1900 ml; atlases (MNI) stretch it by 10 %."""
LARGEST_BRAIN_CM2 = 225.0
"""Largest axial section of a brain, stretched likewise. Heads of adults have 220 to 330."""


@dataclass(frozen=True, kw_only=True)
class HeadMeasures:
    """Measurements of the skull-strip check in one image."""

    constant: bool
    """True if one value fills most of the outermost voxels."""
    volume_ml: float
    """Volume of the object, with holes and skull filled."""
    section_cm2: float
    """Area of the largest axial section of the object."""
    ring: float | None
    """Dark share of the ring under the surface, 0 to 1; None if the air lies within the range of tissue (z-scores)."""


def check_head(volume: Volume) -> RawCheck:
    """Check whether one image still shows skull and scalp.

    Four signs indicate a head: noise in the air, more volume than a brain, a larger axial section than a brain, and a
    dark ring under the surface. A ring above 0.4 counts as two signs.

    Returns:
        Verdict "yes" for two signs or more, "no" for none, "unsure" for one. A ring between 0.12 and 0.15 is unsure.
    """
    measured = measure_head(volume)
    ring = measured.ring or 0.0
    signs = (
        not measured.constant,
        measured.volume_ml > LARGEST_BRAIN_ML,
        measured.section_cm2 > LARGEST_BRAIN_CM2,
        ring > HEAD_RING,
        ring > CERTAIN_RING,
    )
    borderline = BRAIN_RING < ring <= HEAD_RING
    verdict = Verdict.YES if sum(signs) > 1 else Verdict.UNSURE if any(signs) or borderline else Verdict.NO
    return RawCheck(verdict=verdict, evidence=_in_words(measured))


def check_study_head(volumes: Iterable[Volume]) -> RawCheck:
    """Return the check of the first image that shows a head; if there is none, the first unsure one, else a "no".

    Raises: ValueError if there is no image.
    """
    checks = [check_head(volume) for volume in volumes]
    for verdict in (Verdict.YES, Verdict.UNSURE, Verdict.NO):
        for check in checks:
            if check.verdict is verdict:
                return check
    raise ValueError("A head was looked for in no image. Give one at least.")


def measure_head(volume: Volume) -> HeadMeasures:
    """Measure border, size and ring of an image, at 3 mm."""
    level, share = border(volume.voxels)
    constant = share > CONSTANT_SHARE
    inside = foreground(volume.voxels) if constant else np.ones(volume.voxels.shape, bool)
    normalised = constant and inside.any() and np.percentile(volume.voxels[inside], DARKEST_PERCENTILE) < level
    image, tissue = _without_air(volume, inside, level) if constant else _above_noise(volume)
    object_ = _filled(tissue)
    voxel_cm2, voxel_ml = SPACING_MM**2 / 100, SPACING_MM**3 / 1000
    return HeadMeasures(
        constant=constant,
        volume_ml=float(object_.sum()) * voxel_ml,
        section_cm2=float(object_.sum((0, 1)).max()) * voxel_cm2,
        ring=None if normalised else _dark_share(image, tissue, object_),
    )


def border(voxels: Shaped[np.ndarray, "x y z"]) -> tuple[float, float]:
    """Return the most frequent value of the outermost voxels, and the share of these voxels that have it."""
    faces = [voxels.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / counts.sum())


def _without_air(
    volume: Volume, inside: Bool[np.ndarray, "x y z"], level: float
) -> tuple[Float[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"]]:
    """Image relative to its air, and the mask of tissue, for an image with constant background."""
    image = np.where(inside, np.abs(volume.voxels - np.float32(level)), np.float32(0))
    image = resample(Volume(image, volume.affine), volume.grid.at_spacing(SPACING_MM)).voxels
    # A brain that was resampled after stripping fades out at its edge; voxels that are nearly air are not its surface.
    return image, image > TISSUE_SHARE * np.percentile(image[image > 0], BRIGHT_PERCENTILE)


def _above_noise(volume: Volume) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Image relative to its air, and the mask of voxels above the noise of the air."""
    image = resample(volume, volume.grid.at_spacing(SPACING_MM)).voxels
    faces = [image.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))]
    image = image - np.float32(np.percentile(np.concatenate(faces), BORDER_PERCENTILE))
    return image, image > TISSUE_SHARE * np.percentile(image, BRIGHT_PERCENTILE)


def _filled(tissue: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Largest connected object, with brain and scalp joined and the holes of each axial section filled."""
    n = CLOSING_VOXELS
    joined = ndimage.binary_closing(np.pad(tissue, n), iterations=n)[n:-n, n:-n, n:-n] | tissue
    parts, count = ndimage.label(joined)
    if not count:
        return joined
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    # Section by section, because the cut through the neck or a slab opens the skull from below.
    return np.stack([ndimage.binary_fill_holes(section) for section in np.moveaxis(largest, 2, 0)], axis=2)


def _dark_share(
    image: Float[np.ndarray, "x y z"], tissue: Bool[np.ndarray, "x y z"], object_: Bool[np.ndarray, "x y z"]
) -> float:
    """Share of voxels 3 to 15 mm under the surface that are as dark as bone; upper half only, above the face."""
    sections = np.flatnonzero(object_.any((0, 1)))
    if not len(sections):
        return 0.0
    # The top and bottom of the array are cuts, not surface, so they are not padded.
    depth = ndimage.distance_transform_edt(np.pad(object_, ((1, 1), (1, 1), (0, 0))), sampling=SPACING_MM)[1:-1, 1:-1]
    ring = (depth > RING_MM[0]) & (depth <= RING_MM[1])
    ring[:, :, : int(sections[len(sections) // 2])] = False
    if not ring.any():
        return 0.0
    return float((image[ring] < DARK_SHARE * np.median(image[object_ & tissue])).mean())


def _in_words(measured: HeadMeasures) -> tuple[str, ...]:
    large = measured.volume_ml > LARGEST_BRAIN_ML or measured.section_cm2 > LARGEST_BRAIN_CM2
    size = "larger than any brain" if large else "no larger than a brain"
    return (
        "constant background" if measured.constant else "no constant background",
        f"an object of {measured.volume_ml:.0f} ml with a largest section of {measured.section_cm2:.0f} cm2, {size}",
        _ring_in_words(measured.ring),
    )


def _ring_in_words(ring: float | None) -> str:
    if ring is None:
        return "normalised intensities, in which bone cannot be recognised"
    skull = "as in a head" if ring > HEAD_RING else "as in a brain" if ring <= BRAIN_RING else "unclear"
    return f"{100 * ring:.0f} % dark voxels {RING_MM[0]:g} to {RING_MM[1]:g} mm under its surface, {skull}"
