"""Is the head still there? From the voxels alone: what fills the border, how large the object is, and what lies
under its surface.

A skull-stripped image is a brain in constant air. A head has a rim of skin and fat, under it the dark ring of the
skull, and is larger than any brain; its air is noise, unless the scanner or an anonymiser has cut it off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from glimpseg.data.raw.check import RawCheck, Verdict
from glimpseg.volume import CONSTANT_SHARE, Volume, foreground, resample

SPACING_MM = 3.0
"""Scalp and skull are two voxels thick at this spacing, and a head takes a second. Ours."""
BORDER_PERCENTILE = 25.0
"""Of the outermost voxels: air, also where the neck and a slab's cut fill most of them. Ours."""
BRIGHT_PERCENTILE = 98.0
DARKEST_PERCENTILE = 5.0
"""If this much of the tissue is darker than the air, intensities were normalised with the brain's mean as 0."""
TISSUE_SHARE = 0.12
"""Tissue exceeds the air by this share of the way to the bright end: above noise, below muscle. Ours."""
CLOSING_VOXELS = 3
"""Joins scalp and brain across a skull of up to 18 mm."""
DARK_SHARE = 0.4
"""Darker than this share of the way from air to the median tissue is bone or air. Ours."""
RING_MM = (3.0, 15.0)
"""Depth under the surface where the skull is looked for; skull and scalp together are 10 to 20 mm thick."""
HEAD_RING = 0.15
"""Share of that ring that is dark in a head. Stripped phantoms have at most 0.10, patients 0.03 (docs/raw.md)."""
CERTAIN_RING = 0.4
"""No atrophy gives a brain so much dark under its surface; this alone makes a head."""
BRAIN_RING = 0.12
"""No skull is seen below this share."""
LARGEST_BRAIN_ML = 2150.0
"""More is no brain: the largest of men have 1900 ml within the skull, and atlases (MNI) stretch that by a tenth."""
LARGEST_BRAIN_CM2 = 225.0
"""The largest axial section of a brain, stretched likewise; adults' heads have 220 to 330."""


@dataclass(frozen=True, kw_only=True)
class HeadMeasures:
    """What was measured in one image."""

    constant: bool
    """Whether one value fills most of the outermost voxels."""
    volume_ml: float
    """Of the object, holes and skull filled."""
    section_cm2: float
    """The largest axial section of it."""
    ring: float | None
    """Share of the dark under its surface, 0 to 1; None where air lies within the intensities of tissue (z-scores)."""


def check_head(volume: Volume) -> RawCheck:
    """Whether skull and scalp are still in one image; no when it is skull-stripped.

    Four things speak for a head: noise in the air, more volume than a brain has, a larger axial section, a dark ring
    under the surface. Two of them make it a yes, none a no, one alone is unsure; a ring beyond doubt counts twice.
    """
    found = measure_head(volume)
    ring = found.ring or 0.0
    signs = (
        not found.constant,
        found.volume_ml > LARGEST_BRAIN_ML,
        found.section_cm2 > LARGEST_BRAIN_CM2,
        ring > HEAD_RING,
        ring > CERTAIN_RING,
    )
    doubt = BRAIN_RING < ring <= HEAD_RING
    verdict = Verdict.YES if sum(signs) > 1 else Verdict.UNSURE if any(signs) or doubt else Verdict.NO
    return RawCheck(verdict=verdict, evidence=_in_words(found))


def check_study_head(volumes: Iterable[Volume]) -> RawCheck:
    """Whether any of a study's images has a head: yes if one has, no if none has, else unsure."""
    checks = [check_head(volume) for volume in volumes]
    for verdict in (Verdict.YES, Verdict.UNSURE, Verdict.NO):
        for check in checks:
            if check.verdict is verdict:
                return check
    raise ValueError("A head was looked for in no image. Give one at least.")


def measure_head(volume: Volume) -> HeadMeasures:
    """Border, size and ring of an image, at 3 mm."""
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
    """The value most frequent in the outermost voxels, and the share of them that have it."""
    faces = [voxels.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / counts.sum())


def _without_air(
    volume: Volume, inside: Bool[np.ndarray, "x y z"], level: float
) -> tuple[Float[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"]]:
    """The image relative to its air, and where it differs from that."""
    image = np.where(inside, np.abs(volume.voxels - np.float32(level)), np.float32(0))
    image = resample(Volume(image, volume.affine), volume.grid.at_spacing(SPACING_MM)).voxels
    # A brain that was resampled after it was stripped fades out; what is nearly air is not its surface.
    return image, image > TISSUE_SHARE * np.percentile(image[image > 0], BRIGHT_PERCENTILE)


def _above_noise(volume: Volume) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """The image relative to its air, and what exceeds the noise of the air."""
    image = resample(volume, volume.grid.at_spacing(SPACING_MM)).voxels
    faces = [image.take(end, axis=axis).ravel() for axis, end in itertools.product(range(3), (0, -1))]
    image = image - np.float32(np.percentile(np.concatenate(faces), BORDER_PERCENTILE))
    return image, image > TISSUE_SHARE * np.percentile(image, BRIGHT_PERCENTILE)


def _filled(tissue: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The largest object, brain and scalp joined, each axial section without holes."""
    n = CLOSING_VOXELS
    joined = ndimage.binary_closing(np.pad(tissue, n), iterations=n)[n:-n, n:-n, n:-n] | tissue
    parts, count = ndimage.label(joined)
    if not count:
        return joined
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    # By sections, because the cut through the neck or through a slab opens the skull from below.
    return np.stack([ndimage.binary_fill_holes(section) for section in np.moveaxis(largest, 2, 0)], axis=2)


def _dark_share(
    image: Float[np.ndarray, "x y z"], tissue: Bool[np.ndarray, "x y z"], object_: Bool[np.ndarray, "x y z"]
) -> float:
    """How much of what lies 3 to 15 mm under the surface is as dark as bone, in the upper half, where no face is."""
    sections = np.flatnonzero(object_.any((0, 1)))
    if not len(sections):
        return 0.0
    # The array's own top and bottom are cuts, not surface.
    depth = ndimage.distance_transform_edt(np.pad(object_, ((1, 1), (1, 1), (0, 0))), sampling=SPACING_MM)[1:-1, 1:-1]
    ring = (depth > RING_MM[0]) & (depth <= RING_MM[1])
    ring[:, :, : int(sections[len(sections) // 2])] = False
    if not ring.any():
        return 0.0
    return float((image[ring] < DARK_SHARE * np.median(image[object_ & tissue])).mean())


def _in_words(found: HeadMeasures) -> tuple[str, ...]:
    large = found.volume_ml > LARGEST_BRAIN_ML or found.section_cm2 > LARGEST_BRAIN_CM2
    size = "larger than any brain" if large else "no larger than a brain"
    return (
        "constant background" if found.constant else "no constant background",
        f"an object of {found.volume_ml:.0f} ml and {found.section_cm2:.0f} cm2 in section, {size}",
        _ring_in_words(found.ring),
    )


def _ring_in_words(ring: float | None) -> str:
    if ring is None:
        return "normalised intensities, by which bone cannot be told"
    skull = "as under a scalp" if ring > HEAD_RING else "as in a brain" if ring <= BRAIN_RING else "in doubt"
    return f"{100 * ring:.0f} % dark {RING_MM[0]:g} to {RING_MM[1]:g} mm under its surface, {skull}"
