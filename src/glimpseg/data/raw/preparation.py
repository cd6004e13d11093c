"""From scans as they come to a study that can be prepared: register, and with a brain mask.

No voxel is interpolated here. A sequence that was registered keeps its array and gets another affine, which places it
in the world of the reference sequence; `preprocess.prepare` then takes each voxel to the working grid in one
interpolation, and the brain mask travels by the same affines. The way back is to give a grid its own affine again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from glimpseg.data import nifti
from glimpseg.data.notices import collected_warnings, warn
from glimpseg.data.preprocess import GRID_ORDER
from glimpseg.data.raw.alignment import check_alignment, shared_brain_interior
from glimpseg.data.raw.check import RawCheck, Verdict
from glimpseg.data.raw.head import check_study_head
from glimpseg.data.raw.register import displacement_mm, moved_grid, register_rigidly, shift_mm, turn_degrees
from glimpseg.data.raw.strip import brain_mask, skull_strip_source
from glimpseg.errors import InputError, UsageError
from glimpseg.metrics import dice
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import Grid, Volume, downsample_large, foreground, resample, resample_labels, same_grid

LARGEST_TURN_DEGREES = 45.0
"""No head is turned by more between two sequences of a visit; registration then found something else."""
FAR_MM = 30.0
"""More than a patient moves in the coil: another session, or headers that lie. Worth a look."""


SAME_MASK = 0.99
"""Dice of two brain masks that are one, but for voxels that are 0 in one sequence."""
ALREADY_PREPARED = RawCheck(
    verdict=Verdict.NO, evidence=("one grid and one brain mask, as prepared archives have; not measured",)
)


@dataclass(frozen=True, kw_only=True)
class StudyChecks:
    """What a study's images show of how raw they are."""

    head: RawCheck | None
    """None where a brain mask was given, which makes the question idle."""
    alignment: Mapping[Modality, RawCheck]
    """For every sequence but the reference: whether it lies elsewhere than that."""

    @property
    def needs_brain(self) -> bool:
        """Whether skull and scalp have to be taken away."""
        return self.head is not None and self.head.verdict is Verdict.YES

    @property
    def needs_registration(self) -> bool:
        """Whether a sequence lies elsewhere than the reference."""
        return any(check.verdict is Verdict.YES for check in self.alignment.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that was found, in sentences."""
        head = () if self.head is None else (f"Head still there? {self.head.text}.",)
        return head + tuple(f"{m.title} elsewhere? {check.text}." for m, check in self.alignment.items())


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedStudy:
    """A study whose images lie at one place, and the way back to the grids they came on."""

    study: Study
    """All images in the world of the reference sequence, as volumes but for large files that are not moved; `brain` set
    if it was found or given."""
    reference: Modality
    grids: Mapping[Modality, Grid]
    """Where each image was given."""
    motions: Mapping[Modality, Float[np.ndarray, "4 4"]]
    """Where a point of the reference's world lies in that of each sequence; RAS millimetres."""
    notes: tuple[str, ...] = ()
    """What was found and done, for people and `run.json`."""
    warnings: tuple[str, ...] = ()
    """Warnings that were logged on the way."""

    def labels_back(self, labels: Volume, modality: Modality | None = None) -> Volume:
        """A label map of the study on the grid that a sequence was given on; the reference's by default.

        The label with the largest interpolated share wins (`volume.resample_labels`); a map that lies on that
        sequence's voxels already comes back bit for bit.
        """
        return self._back(labels, modality, resample_labels)

    def values_back(self, values: Volume, modality: Modality | None = None) -> Volume:
        """An image or a probability, likewise, by linear interpolation."""
        return self._back(values, modality, resample)

    def _back(self, volume: Volume, modality: Modality | None, carry: Callable[[Volume, Grid], Volume]) -> Volume:
        wanted = modality or self.reference
        if wanted not in self.grids:
            have = " + ".join(m.title for m in self.grids)
            raise UsageError(f"The study has no {wanted.title} to lay the result on. Name one of {have}.")
        grid = self.grids[wanted]
        return Volume(carry(volume, moved_grid(grid, self.motions[wanted])).voxels, grid.affine)


def check_study(study: Study, reference: Modality | None = None) -> StudyChecks:
    """Whether the head is still there, and whether each sequence lies where the reference does.

    Raises: InputError for files that cannot be read; UsageError if the study has no such reference.
    """
    begun = _looked_at(study, reference)
    images = _volumes(begun.study)
    fixed = images[begun.reference]
    others = {m: image for m, image in images.items() if m is not begun.reference}
    head = None if study.brain is not None else check_study_head(images.values())
    if (head is None or head.verdict is Verdict.NO) and _prepared_together(fixed, others.values()):
        return StudyChecks(head=head, alignment=dict.fromkeys(others, ALREADY_PREPARED))
    return StudyChecks(
        head=head, alignment={modality: check_alignment(fixed, image) for modality, image in others.items()}
    )


def register_and_strip(study: Study, reference: Modality | None = None) -> AlignedStudy:
    """Looks, and does what is needed: registers when a sequence lies elsewhere or the head is still there, and finds
    the brain when the head is still there and no mask was given.

    Large images are looked at with fewer voxels (`volume.downsample_large`), one after another; those that stay where
    they are come back as they were given, files as files.

    Raises: UsageError that says what to install or run, when something needed is not installed; InputError for
        images that cannot be used.
    """
    with collected_warnings() as warnings:
        brought = _brought(study, reference)
    return replace(brought, warnings=tuple(warnings))


def _brought(study: Study, reference: Modality | None) -> AlignedStudy:
    begun = _looked_at(study, reference)
    found = check_study(begun.study, begun.reference)
    together = all(check.verdict is Verdict.NO for check in found.alignment.values())
    brought = replace(begun, study=replace(begun.study, registered=together), notes=found.notes)
    # Raw scans are registered in any case: what moved by a millimetre is not seen, and mended all the same.
    if found.needs_registration or (found.needs_brain and find_spec("SimpleITK") is not None):
        brought = register(brought)
    return _whole(add_brain_mask(brought) if found.needs_brain else brought, study)


def read_unchanged(study: Study, reference: Modality | None = None) -> AlignedStudy:
    """The study as it is, its images read. `reference` is the first of T1c, T1, FLAIR, T2 by default.

    Raises: InputError for files that cannot be read, or no sequence; UsageError if the study lacks the reference.
    """
    chosen = _chosen(study, reference)
    images = {m: _read(study, m) for m in study.images}
    return AlignedStudy(
        study=replace(study, images=images),
        reference=chosen,
        grids={modality: image.grid for modality, image in images.items()},
        motions={modality: np.eye(4) for modality in images},
    )


def register(brought: AlignedStudy) -> AlignedStudy:
    """Every sequence registered rigidly to the reference, by SimpleITK.

    Raises: UsageError without SimpleITK; InputError for sheared images, or where the result cannot be right.
    """
    images, motions, notes = _volumes(brought.study), dict(brought.motions), list(brought.notes)
    fixed = images[brought.reference]
    middle = fixed.grid.corners_mm().mean(0)
    for modality, image in images.items():
        if modality is brought.reference:
            continue
        motion = register_rigidly(fixed, image, within=shared_brain_interior(fixed, image))
        _refuse_turned(modality, brought.reference, motion)
        shift, turn = shift_mm(motion, middle), turn_degrees(motion)
        notes.append(
            f"{modality.title} was registered to {brought.reference.title}: {shift:.1f} mm and {turn:.1f} degrees."
        )
        if displacement_mm(motion, middle) > FAR_MM:
            notes.append(f"That is further than a patient moves within a visit: look whether {modality.title} fits.")
            warn(f"{brought.study.id}: {notes[-2]} {notes[-1]}")
        images[modality] = Volume(image.voxels, moved_grid(image.grid, motion).affine)
        motions[modality] = brought.motions[modality] @ motion
    brain = _brain_moved(brought, motions)
    study = replace(brought.study, images=images, brain=brain, registered=True)
    return replace(brought, study=study, motions=motions, notes=tuple(notes))


def add_brain_mask(brought: AlignedStudy) -> AlignedStudy:
    """The brain found by deepbet in T1, or T1c; one mask for all sequences.

    Raises: UsageError without deepbet; InputError if there is no T1 or T1c, or no brain is found.
    """
    images = _volumes(brought.study)
    source = skull_strip_source(images)
    brain = brain_mask(images[source])
    size = float(brain.voxels.sum()) * brain.grid.voxel_ml
    note = f"deepbet found the brain in {source.title} ({size:.0f} ml); its mask was carried to the other sequences."
    return replace(brought, study=replace(brought.study, brain=brain), notes=(*brought.notes, note))


def _prepared_together(fixed: Volume, others: Iterable[Volume]) -> bool:
    """One grid and one brain mask, as prepared archives have: what made them so had registered them before. To measure
    it again would cost more than all the rest of reading."""
    inside = foreground(fixed.voxels)
    return all(
        same_grid(image.grid, fixed.grid) and dice(inside, foreground(image.voxels)) > SAME_MASK for image in others
    )


def _chosen(study: Study, reference: Modality | None) -> Modality:
    if not study.images:
        raise InputError(f"Study {study.id} has no MRI sequence. Give at least one of T1, T1c, T2, FLAIR.")
    chosen = reference or next(modality for modality in GRID_ORDER if modality in study.images)
    if chosen not in study.images:
        raise UsageError(f"Study {study.id} has no {chosen.title} to register to. It has {study.available.title}.")
    return chosen


def _read(study: Study, modality: Modality) -> Volume:
    image = study.images[modality]
    return image if isinstance(image, Volume) else nifti.read_volume(image, f"{study.id}: {modality.title}")


def _looked_at(study: Study, reference: Modality | None) -> AlignedStudy:
    """The study as it is, its images read one by one; large ones with fewer voxels, but their own grids."""
    _chosen(study, reference)  # before anything is read
    images, grids = {}, {}
    for modality in study.images:
        volume = _read(study, modality)
        images[modality], grids[modality] = downsample_large(volume), volume.grid
        del volume
    return replace(read_unchanged(replace(study, images=images), reference), grids=grids)


def _whole(brought: AlignedStudy, given: Study) -> AlignedStudy:
    """All voxels again of what was looked at with fewer: as given, or read anew if it was moved."""
    seen = _volumes(brought.study)
    images: dict[Modality, Volume | Path | Frame] = dict(seen)
    for modality, grid in brought.grids.items():
        motion = brought.motions[modality]
        if seen[modality].voxels.shape == grid.shape:
            continue
        if np.array_equal(motion, np.eye(4)):
            images[modality] = given.images[modality]
        else:
            images[modality] = Volume(_read(given, modality).voxels, moved_grid(grid, motion).affine)
    return replace(brought, study=replace(brought.study, images=images))


def _volumes(study: Study) -> dict[Modality, Volume]:
    return {modality: image for modality, image in study.images.items() if isinstance(image, Volume)}


def _brain_moved(brought: AlignedStudy, motions: Mapping[Modality, Float[np.ndarray, "4 4"]]) -> Volume | Path | None:
    """A mask that was given goes with the sequence on whose grid it lies; if on none, it is the reference's."""
    brain = brought.study.brain
    if brain is None:
        return None
    mask = brain if isinstance(brain, Volume) else nifti.read_volume(brain, f"{brought.study.id}: brain mask")
    order = (brought.reference, *(m for m in brought.grids if m is not brought.reference))
    for modality in order:
        if same_grid(mask.grid.ras(), brought.grids[modality].ras()):
            return Volume(mask.voxels, moved_grid(mask.grid, motions[modality]).affine)
    return mask


def _refuse_turned(modality: Modality, reference: Modality, motion: Float[np.ndarray, "4 4"]) -> None:
    turn = turn_degrees(motion)
    if turn > LARGEST_TURN_DEGREES:
        raise InputError(
            f"{modality.title} cannot be registered to {reference.title}: they agree best when turned by "
            f"{turn:.0f} degrees, which no head does within a visit. Are they of one patient, and their orientations "
            "right? Leave one out, or register them with another tool and pass --raw no."
        )
