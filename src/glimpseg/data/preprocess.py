"""A study on the working grid: cubic voxels in RAS order, cropped to the brain, normalised inside it.

Only the modalities that are present touch the result: a file that is absent shapes neither the crop nor
the normalisation (the field's released codes let it; see docs/evaluation.md).
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
from glimpseg.data.notices import collected_warnings, warn
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import (
    MAXIMAL_ANGLE_DEGREES,
    MINIMAL_OVERLAP,
    Grid,
    Volume,
    angle_degrees,
    bounding_box,
    foreground,
    overlap,
    resample,
    resample_labels,
    same_grid,
)

VERSION = 2
"""Raised when the same files would give other voxels; part of every cache key and provenance."""
AIR_SAMPLE = 10_000
"""Voxels whose median is the level of the air; all but those at the brain's edge are alike."""
SAMPLE_VOXELS = 1 << 16
"""Of an image, about, by which another is told to differ from it."""
GRID_ORDER = (Modality.T1C, Modality.T1, Modality.FLAIR, Modality.T2)
"""The first of these that exists gives the study its own grid: T1c is where surgeons and readers look."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Preprocess:
    """How a study is brought to the network."""

    spacing_mm: float = 1.0
    """Side of the cubic working voxel. BraTS: 1."""
    scale: Literal["zscore", "minmax", "bytes"] = "zscore"
    """Intensities have mean 0 and deviation 1 in the brain; or run from 0 to 1 over the whole volume, background
    included (MST-KDNet); or are whole numbers up to 255, the 99.9th percentile of the brain's box, with 0 outside it
    whatever `clip` and `background` say (Vox-MMSD)."""
    margin_mm: float = 4.0
    """Space left around the brain's bounding box, so that convolutions see its border. Ours."""
    clip: float | None = 5.0
    """Normalised intensities are cut here, in standard deviations: vessels and artefacts lie beyond. Ours; RFNet's
    family and MST-KDNet: not at all (null)."""
    background: Literal["zero", "shifted"] = "zero"
    """What lies outside the brain: 0 as in nnU-Net, or shifted along with the intensities as in RFNet's family."""

    def __post_init__(self) -> None:
        if not 0.2 <= self.spacing_mm <= 10:
            raise ValueError(f"spacing_mm should lie between 0.2 and 10 mm, not {self.spacing_mm}.")


RFNET = Preprocess(clip=None, background="shifted")
"""The intensities of RFNet's family, from the sequences that are there."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study as a network sees it, and the way back to its own grid."""

    id: str
    image: Float[np.ndarray, "m x y z"]
    """Normalised; 0 in channels of absent modalities, and outside the brain unless the background is shifted."""
    inside: Bool[np.ndarray, "m x y z"]
    """Where each image has tissue; nowhere for absent modalities."""
    available: Modality
    target: UInt8[np.ndarray, "x y z"] | None
    """The reference on the working grid."""
    grid: Grid
    """The working grid, cropped: where the arrays above lie."""
    own: Grid
    """The study's own grid, where results return."""
    reference: Volume | None = None
    """The reference on the own grid, for scoring."""
    margin: int = 0
    """Voxels left around the brain's bounding box."""
    warnings: tuple[str, ...] = ()
    """Warnings that were logged while it was read and prepared."""

    @property
    def levels(self) -> Float[np.ndarray, "m"]:
        """What air is in each channel; 0 for absent modalities. What lies beyond the crop is padded with it."""
        found = np.zeros(len(self.image), np.float32)
        for channel, (values, inside) in enumerate(zip(self.image, self.inside, strict=True)):
            air = values[~inside]
            if inside.any() and air.size:
                found[channel] = np.median(air[:: max(air.size // AIR_SAMPLE, 1)])
        return found

    def box(self, subset: Modality) -> tuple[slice, slice, slice]:
        """The part of the working grid that holds the brain as the modalities of `subset` show it, with its margin."""
        keep = [channel for channel, modality in enumerate(Modality) if modality in subset]
        return _box(np.logical_or.reduce(self.inside[keep]), self.margin)

    def restricted_to(self, subset: Modality) -> Prepared:
        """What `prepare` makes of the same study had only `subset` been acquired (on the same own grid).

        Normalisation is each modality's own affair, so that blanking and a tighter crop are all it takes.
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
    """Reads and checks all files of a study and makes its working arrays.

    The study's own grid is that of the sequence `own_of`, by default of the first that exists of `GRID_ORDER`.

    Sequences on another grid than the study's are resampled when their axes agree within 5 degrees and
    their fields of view overlap; a warning says so.

    Raises: InputError when there is no sequence, when two are the same, when grids cannot belong together,
        when no brain is found, or for a file that cannot be read.
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
    own, notes = None, {}
    for modality, volume in _one_by_one(study, first):
        if own is None:
            own, grid = volume.grid, volume.grid.at_spacing(settings.spacing_mm)
            image = np.zeros((len(Modality), *grid.shape), np.float32)
            inside = np.zeros((len(Modality), *grid.shape), bool)
        notes[modality] = _check_grid(study, modality, volume.grid, own)
        channel = list(Modality).index(modality)
        image[channel], inside[channel] = _on_working_grid(volume, brain, grid, settings)
        del volume  # or two would be held while the next is read
    assert own is not None
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
    """Scaled as `scale` says, cut at +-`clip`; outside the brain as `background` says."""
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
    # A brain of one value has no unit; what rounding leaves of it is none. Scanners' units are anything, 1e-30 too.
    score = (image - level) / max(unit, 1e-6 * abs(level), np.finfo(np.float32).tiny)
    if settings.clip is not None:
        score = np.clip(score, -settings.clip, settings.clip)
    return (score if settings.background == "shifted" else np.where(brain, score, 0)).astype(np.float32)


def bytes_of(box: Float[np.ndarray, "x y z"] | Int[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "x y z"]:
    """Intensities cut at the 99.9th percentile, zeros counted, as whole numbers from 0 to 255, rounded down."""
    highest = max(float(np.percentile(box, 99.9)), 1e-8)
    return np.clip(box * (255 / highest), 0, 255).astype(np.uint8)


def refuse_same_files(study: Study) -> None:
    """Raises InputError if one file was given for two sequences."""
    for (one, first), (two, second) in itertools.combinations(study.images.items(), 2):
        if _same(first, second):
            raise InputError(
                f"{first} was given both as {one.title} and as {two.title}. Name each file once; leave the absent out."
            )


def _same(first: Volume | Path | Frame, second: Volume | Path | Frame) -> bool:
    if isinstance(first, Frame) or isinstance(second, Frame):
        return first == second
    return isinstance(first, Path) and isinstance(second, Path) and realpath(first) == realpath(second)


def _one_by_one(study: Study, first: Modality) -> Iterator[tuple[Modality, Volume]]:
    """The images, `first` before the others; none is kept. Raises: InputError when two hold the same voxels."""
    samples: dict[Modality, np.ndarray] = {}
    for modality in (first, *(m for m in Modality if m in study.images and m is not first)):
        # By the sequence, not the file: a file's name may be a patient's, and warnings are kept.
        volume = _image(study.images[modality], f"{study.id}: {modality.title}")
        step = max(round((volume.voxels.size / SAMPLE_VOXELS) ** (1 / 3)), 1)
        sample = volume.voxels[::step, ::step, ::step].copy()
        for other, known in samples.items():
            # What differs in a few thousand voxels need not be read again.
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


def _image(image: Volume | Path | Frame, called: str) -> Volume:
    return image if isinstance(image, Volume) else nifti.read_volume(image, called)


def _check_grid(study: Study, modality: Modality, grid: Grid, own: Grid) -> str | None:
    """A warning if the sequence will be resampled to the study's own grid, None if it lies on it."""
    if same_grid(grid.ras(), own.ras()):
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
    return (
        f"{modality.title} lies on another grid ({_in_words(grid)}; the study: {_in_words(own)}) and was resampled. "
        "This assumes that the sequences are registered."
    )


def _on_working_grid(
    volume: Volume, brain: Volume | None, grid: Grid, settings: Preprocess
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    inside = foreground(volume.voxels) if brain is None else _brain_on(brain, volume.grid)
    # Background becomes 0 before interpolation, so that no value from outside bleeds into the brain.
    image = resample(Volume(np.where(inside, volume.voxels, 0), volume.affine), grid).voxels
    tissue = resample_labels(Volume(inside.view(np.uint8), volume.affine), grid).voxels > 0
    return normalised(image, tissue, settings), tissue


def _brain_mask(brain: Volume | Path) -> Volume:
    mask = _image(brain, "The brain mask")
    return Volume((mask.voxels > 0.5).astype(np.uint8), mask.affine)


def _brain_on(mask: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    if overlap(mask.grid, grid) < MINIMAL_OVERLAP:
        raise InputError(f"The brain mask ({_in_words(mask.grid)}) lies elsewhere than the images. Give theirs.")
    return resample_labels(mask, grid).voxels > 0


def reference_on(study: Study, own: Grid) -> Volume | None:
    """The reference as `Label` values on the study's own grid; None if there is none.

    Raises: InputError if it lies on another grid or its convention is unknown.
    """
    if study.reference is None:
        return None
    if isinstance(study.reference, Volume):
        labels, name = study.reference, "reference"
    elif study.convention is None:
        raise InputError(f"Study {study.id}: the label convention of {study.reference} is unknown. Name it (--labels).")
    else:
        labels, name = nifti.read_labels(study.reference, study.convention), study.reference.name
    if not same_grid(labels.grid.ras(), own.ras()):
        raise InputError(
            f"Study {study.id}: {name} lies on another grid ({_in_words(labels.grid)}) than the images "
            f"({_in_words(own)}). Give the reference that was drawn on these images."
        )
    return resample_labels(labels, own)


def _in_words(grid: Grid) -> str:
    shape, spacing = "x".join(map(str, grid.shape)), "x".join(f"{s:.2g}" for s in grid.spacing_mm)
    return f"{shape} voxels of {spacing} mm, {grid.axes}"


def _box(brain: Bool[np.ndarray, "x y z"], margin: int) -> tuple[slice, slice, slice]:
    found = bounding_box(brain)
    if found is None:
        raise InputError("No brain was found: every sequence is background. Check the images or give a brain mask.")
    x, y, z = (
        slice(max(side.start - margin, 0), min(side.stop + margin, n))
        for side, n in zip(found, brain.shape, strict=True)
    )
    return x, y, z


def brain_of(prepared: Prepared, grid: Grid | None = None) -> Bool[np.ndarray, "x y z"]:
    """The brain as all sequences of the study show it; on the own grid, or another."""
    brain = np.logical_or.reduce(prepared.inside).view(np.uint8)
    return resample_labels(Volume(brain, prepared.grid.affine), grid or prepared.own).voxels > 0
