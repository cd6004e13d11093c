"""Prepare a study: resample to cubic RAS voxels, crop to the brain, normalise the intensities in it.

Only the available modalities influence the result. An absent modality influences neither the crop nor the
normalisation, as it does in the released code of other methods (docs/evaluation.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from glimpseg.data import nifti
from glimpseg.data.brains import SeenBrains
from glimpseg.data.notices import collected_warnings, warn
from glimpseg.data.spikes import repair, warn_of_repair
from glimpseg.errors import InputError, UsageError
from glimpseg.foreground import Foreground, air_level
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import (
    MAXIMAL_ANGLE_DEGREES,
    MINIMAL_OVERLAP,
    Grid,
    Volume,
    angle_degrees,
    bounding_box,
    difference_in_words,
    overlap,
    resample,
    resample_labels,
    same_grid,
)

VERSION = 3
"""Version of the preprocessing, part of every cache key and provenance. Raised when the same files would give other
voxels.

Version 3 gives other voxels for images with disturbed air, spikes or an offset only. Clean images have the bits of
version 2, so models that were trained with version 2 remain valid.
"""
AIR_SAMPLE = 10_000
"""Number of voxels whose median is the intensity of air. Air voxels are equal, except at the edge of the brain."""
SAMPLE_VOXELS = 1 << 16
"""Approximate number of voxels that are compared first, to see if two images differ."""
TISSUE_PERCENTILES = (0.1, 50, 99.9)
"""Percentiles of the brain that stand for its darkest, its median and its brightest tissue."""
LEAST_OFFSET = 0.5
"""Smallest background that counts as an offset of the whole image, as a share of its distance from the median."""
SMALLEST_EXTENT_MM = 40.0
"""Smallest extent of an image along an axis without a warning. A brain is 130 mm high or more."""
FEWEST_SLICES = 8
"""Fewest voxels of an image along an axis without a warning."""
GRID_ORDER = (Modality.T1C, Modality.T1, Modality.FLAIR, Modality.T2)
"""Order of sequences for the native grid of a study: the first available one gives it. Surgeons and readers look at T1c
first."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Preprocess:
    """Preprocessing settings."""

    spacing_mm: float = 1.0
    """Side of the cubic voxels of the working grid. BraTS: 1."""
    scale: Literal["zscore", "minmax", "bytes"] = "zscore"
    """Intensity normalisation. `zscore`: mean 0 and standard deviation 1 in the brain. `minmax`: 0 to 1 over the whole
    volume, background included (MST-KDNet). `bytes`: integers from 0 to 255, where 255 is the 99.9th percentile in the
    bounding box of the brain, and 0 outside the brain regardless of `clip` and `background` (Vox-MMSD)."""
    margin_mm: float = 4.0
    """Margin around the bounding box of the brain, so that convolutions see its border. Our choice."""
    clip: float | None = 5.0
    """Limit of the normalised intensities, in standard deviations; vessels and artefacts lie beyond. Our choice. RFNet,
    related methods and MST-KDNet do not clip (null)."""
    background: Literal["zero", "shifted"] = "zero"
    """Intensity outside the brain: 0 as in nnU-Net, or normalised like the brain (`shifted`), as in RFNet and related
    methods."""

    def __post_init__(self) -> None:
        if not 0.2 <= self.spacing_mm <= 10:
            raise ValueError(f"spacing_mm should lie between 0.2 and 10 mm, not {self.spacing_mm}.")


RFNET = Preprocess(clip=None, background="shifted")
"""Settings for the intensities of RFNet and related methods, from the available sequences."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared study: arrays for a network on the working grid, and the native grid of the study."""

    id: str
    image: Float[np.ndarray, "m x y z"]
    """Normalised intensities; 0 in channels of absent modalities, and outside the brain unless `shifted`."""
    inside: Bool[np.ndarray, "m x y z"]
    """Brain mask of each image; empty for absent modalities."""
    available: Modality
    """Modalities that were acquired."""
    target: UInt8[np.ndarray, "x y z"] | None
    """Reference labels on the working grid; None without a reference."""
    grid: Grid
    """Working grid, cropped to the brain: the grid of the arrays above."""
    own: Grid
    """Native grid of the study, on which results are written."""
    reference: Volume | None = None
    """Reference labels on the native grid, for scoring."""
    margin: int = 0
    """Margin around the bounding box of the brain, in voxels."""
    warnings: tuple[str, ...] = ()
    """Warnings that were logged while the study was read and prepared."""

    @property
    def levels(self) -> Float[np.ndarray, "m"]:
        """Intensity of air in each channel, the value for padding beyond the crop: the median outside the brain mask.

        It is 0 for absent modalities, and if no voxel is outside.
        """
        levels = np.zeros(len(self.image), np.float32)
        for channel, (values, inside) in enumerate(zip(self.image, self.inside, strict=True)):
            air = values[~inside]
            if inside.any() and air.size:
                levels[channel] = np.median(air[:: max(air.size // AIR_SAMPLE, 1)])
        return levels

    def box(self, subset: Modality) -> tuple[slice, slice, slice]:
        """Return the bounding box of the brain in the modalities of `subset`, with margin, on the working grid.

        Raises: InputError if these show no brain.
        """
        keep = [channel for channel, modality in enumerate(Modality) if modality in subset]
        return _box(np.logical_or.reduce(self.inside[keep]), self.margin)

    def restricted_to(self, subset: Modality) -> Prepared:
        """Return the prepared study as if only `subset` had been acquired, with the same native grid.

        Each modality is normalised by itself. So it is enough to set the other channels to 0 and to crop again.

        Raises: InputError as `box`.
        """
        keep = np.array([modality in subset for modality in Modality])
        box = self.box(subset)
        return replace(
            self,
            image=np.where(keep[:, None, None, None], self.image[:, *box], 0),
            inside=self.inside[:, *box] & keep[:, None, None, None],
            available=self.available & subset,
            target=None if self.target is None else self.target[box],
            grid=self.grid.crop(box),
        )


def prepare(study: Study, settings: Preprocess, own_of: Modality | None = None) -> Prepared:
    """Read and check all files of a study, and prepare its arrays.

    Sequences on another grid than the native one are resampled if their axes agree within 5 degrees and at least half
    of the smaller field of view is shared. A warning names them. If the study is `registered`, any angle is allowed and
    there is no warning.

    Args:
        study: the study.
        settings: preprocessing settings.
        own_of: sequence whose grid is the native grid; by default the first available one of `GRID_ORDER`.

    Raises: InputError when there is no sequence, when two are the same, when grids cannot belong together,
        when no brain is found, for a reference as `reference_on`, or for a file that cannot be read; UsageError when
        the study lacks `own_of`.
    """
    with collected_warnings() as warnings:
        prepared = _prepared(study, settings, own_of)
    return replace(prepared, warnings=tuple(warnings))


def _prepared(study: Study, settings: Preprocess, own_of: Modality | None) -> Prepared:
    if not study.images:
        raise InputError(f"Study {study.id} has no MRI sequence. Give at least one of T1, T1c, T2, FLAIR.")
    refuse_same_files(study)
    if own_of is not None and own_of not in study.images:
        raise UsageError(
            f"The result should lie on the grid of {own_of.title}, but study {study.id} has {study.available.title}. "
            "Name one sequence that it has."
        )
    first = own_of or next(modality for modality in GRID_ORDER if modality in study.images)
    brain = None if study.brain is None else _brain_mask(study.brain)
    own, notes, seen = None, {}, SeenBrains()
    for modality, volume in _read_one_by_one(study, first):
        if own is None:
            own, grid = volume.grid, volume.grid.at_spacing(settings.spacing_mm)
            image = np.zeros((len(Modality), *grid.shape), np.float32)
            inside = np.zeros((len(Modality), *grid.shape), bool)
        notes[modality] = _check_grid(study, modality, volume.grid, own)
        _warn_of_slab(study, modality, volume.grid)
        channel, name = list(Modality).index(modality), f"{study.id}: {modality.title}"
        if brain is None:
            found = seen.add(modality, volume, name)
        else:
            found = Foreground(mask=_brain_on(brain, volume.grid), background=air_level(volume.voxels), exact=True)
        if found.exact:
            image[channel], inside[channel] = _on_working_grid(volume, found, grid, settings=settings, name=name)
        del volume  # else two volumes would be in memory while the next is read
    assert own is not None
    # The brain of an image with disturbed air may come from another sequence, so these images come last.
    for modality in seen.disturbed:
        name = f"{study.id}: {modality.title}"
        volume, channel = _image(study.images[modality], name), list(Modality).index(modality)
        found = seen.brain(modality, name)
        image[channel], inside[channel] = _on_working_grid(volume, found, grid, settings=settings, name=name)
        del volume
    for note in (notes.get(modality) for modality in Modality):
        if note is not None:
            warn(f"{study.id}: {note}")
    reference = reference_on(study, own)
    whole = Prepared(
        id=study.id,
        image=image,
        inside=inside,
        available=study.available,
        target=None if reference is None else resample_labels(reference, grid).voxels,
        grid=grid,
        own=own,
        reference=reference,
        margin=round(settings.margin_mm / settings.spacing_mm),
    )
    return whole.restricted_to(study.available)


def normalised(
    image: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"], settings: Preprocess
) -> Float[np.ndarray, "x y z"]:
    """Normalise the intensities of an image by `scale`, `clip` and `background` of the settings.

    Raises: InputError if the brain is empty.
    """
    inside = image[brain].astype(np.float64)
    if not inside.size:
        raise InputError(
            "No voxel of the brain was found in one sequence. Is it empty, or is the brain mask another's?"
        )
    if settings.scale == "bytes":
        box = bounding_box(brain)
        assert box is not None
        score = np.zeros(image.shape, np.float32)
        score[box] = bytes_of(image[box])
        return np.where(brain, score, 0)
    if settings.scale == "zscore":
        level, unit = inside.mean(), inside.std()
    else:
        level, unit = float(image.min()), float(image.max()) - float(image.min())
    # A brain of one value has deviation 0, up to rounding, so the divisor has a lower limit. The limit is relative to
    # the mean, because scanners use any scale, even 1e-30.
    score = (image - level) / max(unit, 1e-6 * abs(level), np.finfo(np.float32).tiny)
    if settings.clip is not None:
        score = np.clip(score, -settings.clip, settings.clip)
    return (score if settings.background == "shifted" else np.where(brain, score, 0)).astype(np.float32)


def bytes_of(box: Float[np.ndarray, "x y z"] | Int[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "x y z"]:
    """Convert intensities to integers from 0 to 255, rounded down; 255 is the 99.9th percentile, zeros included."""
    highest = max(float(np.percentile(box, 99.9)), 1e-8)
    return np.clip(box * (255 / highest), 0, 255).astype(np.uint8)


def refuse_same_files(study: Study) -> None:
    """Check that no file was given for two sequences. Raises: InputError if one was."""
    for (one, first), (two, second) in itertools.combinations(study.images.items(), 2):
        if _same(first, second):
            raise InputError(
                f"{first} was given both as {one.title} and as {two.title}. Name each file once; leave the absent out."
            )


def _same(first: Volume | Path | Frame, second: Volume | Path | Frame) -> bool:
    if isinstance(first, Frame) or isinstance(second, Frame):
        return first == second
    return isinstance(first, Path) and isinstance(second, Path) and realpath(first) == realpath(second)


def _read_one_by_one(study: Study, first: Modality) -> Iterator[tuple[Modality, Volume]]:
    """Yield the images, `first` before the others, and keep none in memory.

    Raises: InputError when two hold the same voxels.
    """
    samples: dict[Modality, np.ndarray] = {}
    for modality in (first, *(m for m in Modality if m in study.images and m is not first)):
        # Warnings name the sequence and not the file: a file name may contain the name of a patient.
        volume = _image(study.images[modality], f"{study.id}: {modality.title}")
        step = max(round((volume.voxels.size / SAMPLE_VOXELS) ** (1 / 3)), 1)
        sample = volume.voxels[::step, ::step, ::step].copy()
        for other, known in samples.items():
            # Images that differ in a sample of voxels need not be read again.
            if np.array_equal(known, sample):
                _refuse_same_voxels(study, volume, modality, other)
        samples[modality] = sample
        yield modality, volume
        del volume


def _refuse_same_voxels(study: Study, volume: Volume, modality: Modality, other: Modality) -> None:
    if np.array_equal(_image(study.images[other], f"{study.id}: {other.title}").voxels, volume.voxels):
        one, two = (m for m in Modality if m in modality | other)
        raise InputError(
            f"Study {study.id}: the images given as {one.title} and {two.title} hold the same voxels. "
            "One of them is a copy; leave the absent sequence out."
        )


def _image(image: Volume | Path | Frame, name: str) -> Volume:
    return image if isinstance(image, Volume) else nifti.read_volume(image, name)


def _check_grid(study: Study, modality: Modality, grid: Grid, own: Grid) -> str | None:
    """Return a warning if the sequence must be resampled to the native grid, else None.

    Raises: InputError if axes or fields of view do not fit.
    """
    if same_grid(own, grid.ordered_as(own)):
        return None
    angle, shared = angle_degrees(grid, own), overlap(grid, own)
    if (angle > MAXIMAL_ANGLE_DEGREES and not study.registered) or shared < MINIMAL_OVERLAP:
        raise InputError(
            f"Study {study.id}: {modality.title} cannot be brought to the grid of the other sequences: its axes "
            f"are turned by {angle:.1f} degrees (at most {MAXIMAL_ANGLE_DEGREES:g}) and {100 * shared:.0f} % of the "
            f"smaller field of view is shared (at least {100 * MINIMAL_OVERLAP:.0f} %). Register the sequences first."
        )
    if study.registered:
        return None
    alike = grid.ordered_as(own)
    apart = f"; {difference_in_words(own, alike)}" if alike.shape == own.shape else ""
    return (
        f"{modality.title} lies on another grid ({_in_words(grid)}; the study: {_in_words(own)}{apart}) and was "
        "resampled. This assumes that the sequences are registered."
    )


def _warn_of_slab(study: Study, modality: Modality, grid: Grid) -> None:
    """Warn if an image covers so little of the head that the result may be empty or wrong."""
    sides = np.array(grid.shape) * grid.spacing_mm
    axis = int(sides.argmin()) if sides.min() < SMALLEST_EXTENT_MM else int(np.argmin(grid.shape))
    if sides[axis] < SMALLEST_EXTENT_MM or grid.shape[axis] < FEWEST_SLICES:
        warn(
            f"{study.id}: {modality.title} has {grid.shape[axis]} slices along one axis, {sides[axis]:.0f} mm in all, "
            "which is a small part of a head. The result may be empty or wrong."
        )


def _on_working_grid(
    volume: Volume, found: Foreground, grid: Grid, *, settings: Preprocess, name: str
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Return the normalised image and the brain mask on the working grid."""
    sound = repair(volume.voxels, found.mask, found.background)
    warn_of_repair(sound, name)
    # Background becomes 0 before interpolation, so that values outside do not change the brain.
    values = np.where(sound.inside, sound.voxels - _offset(sound.voxels[sound.inside], found.background), 0)
    image = resample(Volume(values, volume.affine), grid).voxels
    tissue = resample_labels(Volume(sound.inside.view(np.uint8), volume.affine), grid).voxels > 0
    return normalised(image, tissue, settings), tissue


def _offset(tissue: Float[np.ndarray, "n"], background: float) -> np.float32:
    """Return the constant that was added to the whole image; 0 if there is none.

    At the edge of the brain, interpolation mixes tissue with 0. If the whole image was shifted, 0 lies farther from the
    tissue than the background does, and the edge would become too bright or too dark.
    """
    if not tissue.size or background == 0:
        return np.float32(0)
    low, middle, high = (float(value) for value in np.percentile(tissue, TISSUE_PERCENTILES))
    gaps = {level: max(low - level, level - high, 0.0) for level in (0.0, background)}
    shifted = gaps[background] < gaps[0.0] and abs(background) > LEAST_OFFSET * abs(middle - background)
    return np.float32(background if shifted else 0)


def _brain_mask(brain: Volume | Path) -> Volume:
    mask = _image(brain, "The brain mask")
    return Volume((mask.voxels > 0.5).astype(np.uint8), mask.affine)


def _brain_on(mask: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    if overlap(mask.grid, grid) < MINIMAL_OVERLAP:
        raise InputError(f"The brain mask ({_in_words(mask.grid)}) lies elsewhere than the images. Give theirs.")
    return resample_labels(mask, grid).voxels > 0


def reference_on(study: Study, own: Grid) -> Volume | None:
    """Read the reference as `Label` values on the native grid; None if the study has none.

    A reference that is a volume holds `Label` values already. The grids may differ in the order of axes.

    Raises: InputError if it lies on another grid, its convention is unknown, or its file cannot be read.
    """
    if study.reference is None:
        return None
    if isinstance(study.reference, Volume):
        labels, name = study.reference, "reference"
    elif study.convention is None:
        raise InputError(f"Study {study.id}: the label convention of {study.reference} is unknown. Name it (--labels).")
    else:
        labels, name = nifti.read_labels(study.reference, study.convention), study.reference.name
    if not same_grid(own, labels.grid.ordered_as(own)):
        raise InputError(
            f"Study {study.id}: {name} lies on another grid ({_in_words(labels.grid)}) than the images "
            f"({_in_words(own)}; {difference_in_words(own, labels.grid.ordered_as(own))}). Give the reference that was "
            "drawn on these images."
        )
    return resample_labels(labels, own)


def _in_words(grid: Grid) -> str:
    shape, spacing = "x".join(map(str, grid.shape)), "x".join(f"{s:.2g}" for s in grid.spacing_mm)
    return f"{shape} voxels of {spacing} mm, {grid.axes}"


def _box(brain: Bool[np.ndarray, "x y z"], margin: int) -> tuple[slice, slice, slice]:
    box = bounding_box(brain)
    if box is None:
        raise InputError("No brain was found: every sequence is background. Check the images or give a brain mask.")
    x, y, z = (
        slice(max(side.start - margin, 0), min(side.stop + margin, n)) for side, n in zip(box, brain.shape, strict=True)
    )
    return x, y, z


def brain_of(prepared: Prepared, grid: Grid | None = None) -> Bool[np.ndarray, "x y z"]:
    """Return the union of the brain masks of all sequences, on the native grid or on `grid`."""
    brain = np.logical_or.reduce(prepared.inside).view(np.uint8)
    return resample_labels(Volume(brain, prepared.grid.affine), grid or prepared.own).voxels > 0
