"""Register the sequences of a raw study and find its brain, before `preprocess.prepare`.

No voxel is interpolated here. A registered sequence keeps its array and gets a new affine, which places it in the
world coordinates of the reference sequence. `preprocess.prepare` then resamples each voxel to the working grid in one
interpolation. The brain mask uses the same affines. To return a result to a sequence, its original affine is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from glimpseg.data import nifti
from glimpseg.data.notices import collected, note, warn
from glimpseg.data.preprocess import GRID_ORDER
from glimpseg.data.raw.alignment import ALIGNED_MM, check_alignment, shared_brain_interior
from glimpseg.data.raw.check import RawCheck, Verdict
from glimpseg.data.raw.head import check_study_head
from glimpseg.data.raw.register import displacement_mm, moved_grid, register_rigidly, shift_mm, turn_degrees
from glimpseg.data.raw.similarity import similarity_of_motion
from glimpseg.data.raw.strip import LARGEST_ML, SMALLEST_ML, brain_mask, skull_strip_source
from glimpseg.data.spikes import without_spikes
from glimpseg.errors import InputError, UsageError
from glimpseg.foreground import foreground
from glimpseg.metrics import dice
from glimpseg.modality import Modality
from glimpseg.study import Frame, Study
from glimpseg.volume import Grid, Volume, downsample_large, resample, resample_labels, same_grid

LARGEST_TURN_DEGREES = 45.0
"""Largest plausible rotation between two sequences of one study. Beyond it the registration failed."""
FAR_MM = 30.0
"""Displacement from which on the user is warned: patients move less in the coil, so the image may be from another
session, or its header may be wrong."""


SAME_MASK = 0.99
"""Dice from which on two brain masks count as the same mask; voxels that are 0 in one sequence make them differ."""
ALREADY_PREPARED = RawCheck(
    verdict=Verdict.NO, evidence=("one grid and one brain mask, as in preprocessed datasets; not measured",)
)
"""Result of the registration check for images that were preprocessed together."""


@dataclass(frozen=True, kw_only=True)
class StudyChecks:
    """Skull-strip check and registration checks of one study."""

    head: RawCheck | None
    """Verdict "yes" if skull and scalp are visible; None if a brain mask was given, since then no check is needed."""
    alignment: Mapping[Modality, RawCheck]
    """For every sequence except the reference: verdict "yes" if it is misaligned with the reference."""

    @property
    def needs_brain(self) -> bool:
        """True if skull and scalp are visible, so that a brain mask is needed."""
        return self.head is not None and self.head.verdict is Verdict.YES

    @property
    def needs_registration(self) -> bool:
        """True if a sequence is misaligned with the reference, or may be."""
        sure = any(check.verdict is Verdict.YES for check in self.alignment.values())
        unsure = any(check.verdict is Verdict.UNSURE for check in self.alignment.values())
        return sure or (unsure and find_spec("SimpleITK") is not None)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Results of all checks, one sentence for each."""
        return tuple(self._sentences(tuple(Verdict)))

    @property
    def findings(self) -> tuple[str, ...]:
        """Results of the checks that found something, or are unsure."""
        return tuple(self._sentences((Verdict.YES, Verdict.UNSURE)))

    def _sentences(self, verdicts: Collection[Verdict]) -> Iterator[str]:
        if self.head is not None and self.head.verdict in verdicts:
            yield f"Skull and scalp visible? {self.head.text}."
        for modality, check in self.alignment.items():
            if check.verdict in verdicts:
                yield f"{modality.title} misaligned? {check.text}."


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedStudy:
    """Study whose images share one world coordinate system, with the mapping back to their original grids."""

    study: Study
    """All images in the world coordinates of the reference sequence. They are volumes, except large files that were
    not moved, which stay files. `brain` is set if a mask was found or given."""
    reference: Modality
    """Sequence to which the others are registered."""
    grids: Mapping[Modality, Grid]
    """Original grid of each image, as given."""
    motions: Mapping[Modality, Float[np.ndarray, "4 4"]]
    """Rigid transform of each sequence, in RAS millimetres: from the world coordinates of the reference to its own."""
    checks: tuple[str, ...] = ()
    """Results of all checks, for `run.json`."""
    notes: tuple[str, ...] = ()
    """Checks that found something, and the steps that were done."""
    warnings: tuple[str, ...] = ()
    """Warnings of the checks and steps."""

    def labels_on_given_grid(self, labels: Volume, modality: Modality | None = None) -> Volume:
        """Resample a label map of the study to the original grid of one sequence.

        The label with the largest interpolated share wins (`volume.resample_labels`). A map that already lies on the
        voxels of that sequence is returned unchanged, bit for bit.

        Args:
            labels: label map in the world coordinates of the reference.
            modality: sequence that has the grid; the reference by default.

        Raises: UsageError if the study lacks that sequence.
        """
        return self._on_given_grid(labels, modality, resample_labels)

    def values_on_given_grid(self, values: Volume, modality: Modality | None = None) -> Volume:
        """Resample an image or a probability map to the original grid of one sequence, by linear interpolation.

        Arguments and errors are those of `labels_on_given_grid`.
        """
        return self._on_given_grid(values, modality, resample)

    def _on_given_grid(
        self, volume: Volume, modality: Modality | None, resampler: Callable[[Volume, Grid], Volume]
    ) -> Volume:
        target = modality or self.reference
        if target not in self.grids:
            have = " + ".join(m.title for m in self.grids)
            raise UsageError(f"The study has no {target.title} to lay the result on. Name one of {have}.")
        grid = self.grids[target]
        return Volume(resampler(volume, moved_grid(grid, self.motions[target])).voxels, grid.affine)


def check_study(study: Study, reference: Modality | None = None) -> StudyChecks:
    """Check whether the images of a study show the skull, and whether each is aligned with the reference sequence.

    Raises: InputError for files that cannot be read, or no sequence; UsageError if the study lacks the reference.
    """
    begun = _read_thinned(study, reference)
    images = _volumes(begun.study)
    fixed = images[begun.reference]
    others = {m: image for m, image in images.items() if m is not begun.reference}
    head = None if study.brain is not None else check_study_head(images.values())
    if (head is None or head.verdict is Verdict.NO) and _share_grid_and_mask(fixed, others.values()):
        return StudyChecks(head=head, alignment=dict.fromkeys(others, ALREADY_PREPARED))
    return StudyChecks(
        head=head, alignment={modality: check_alignment(fixed, image) for modality, image in others.items()}
    )


def register_and_strip(study: Study, reference: Modality | None = None) -> AlignedStudy:
    """Check a study; register its sequences and find its brain where that is needed.

    The sequences are registered if one is misaligned, or if skull and scalp are visible and SimpleITK is installed. The
    brain is found if skull and scalp are visible and no mask was given. Large images are checked with fewer voxels
    (`volume.downsample_large`). Images that are not moved are returned as they were given, files as files.

    Args:
        study: the raw study.
        reference: sequence to register to; by default the first of T1c, T1, FLAIR, T2 that exists.

    Raises: UsageError that says what to install or run, when something needed is not installed, or if the study lacks
        the reference; InputError for images that cannot be used, or no sequence.
    """
    with collected() as found:
        aligned = _register_and_strip(study, reference)
    return replace(aligned, warnings=tuple(found.warnings), notes=tuple(found.notes))


def _register_and_strip(study: Study, reference: Modality | None) -> AlignedStudy:
    begun = _read_thinned(study, reference)
    checks = check_study(begun.study, begun.reference)
    together = all(check.verdict is Verdict.NO for check in checks.alignment.values())
    aligned = replace(begun, study=replace(begun.study, registered=together), checks=checks.sentences)
    for finding in checks.findings:
        note(finding)
    # Raw scans are always registered, because the check does not detect a shift of a millimetre.
    if checks.needs_registration or (checks.needs_brain and find_spec("SimpleITK") is not None):
        aligned = register(aligned)
    return _with_all_voxels(add_brain_mask(aligned) if checks.needs_brain else aligned, study)


def read_unchanged(study: Study, reference: Modality | None = None) -> AlignedStudy:
    """Read the images of a study without any registration or skull-stripping.

    `reference` is the first of T1c, T1, FLAIR, T2 by default.

    Raises: InputError for files that cannot be read, or no sequence; UsageError if the study lacks the reference.
    """
    chosen = _chosen_reference(study, reference)
    images = {m: _read(study, m) for m in study.images}
    return AlignedStudy(
        study=replace(study, images=images),
        reference=chosen,
        grids={modality: image.grid for modality, image in images.items()},
        motions={modality: np.eye(4) for modality in images},
    )


def register(aligned: AlignedStudy) -> AlignedStudy:
    """Register every sequence rigidly to the reference, with SimpleITK; keep a motion only if it helps.

    A sequence is left alone if the motion is within a voxel, or does not raise the similarity over the overlap clearly
    (`similarity.LEAST_RISE`). What is moved is noted, with its distance and angle.

    Raises: UsageError without SimpleITK; InputError for sheared images, or where the result cannot be right.
    """
    images, motions = _volumes(aligned.study), dict(aligned.motions)
    fixed = images[aligned.reference]
    for modality, image in images.items():
        if modality is aligned.reference:
            continue
        motion = register_rigidly(fixed, image, within=shared_brain_interior(fixed, image))
        moved = _Motion(modality, aligned.reference, motion, _middle(fixed.grid))
        if moved.distance_mm <= _within_a_voxel(fixed.grid, image.grid):
            note(f"{modality.title} agrees with {aligned.reference.title} within a voxel; it was not moved.")
            continue
        similarity = similarity_of_motion(fixed, image, motion)
        if similarity is not None and not similarity.rises:
            note(
                f"{modality.title} was not moved: a registration to {aligned.reference.title} ({moved.text}) does not "
                f"raise the similarity over the overlap clearly ({similarity.text})."
            )
            continue
        _refuse_large_rotation(modality, aligned.reference, motion)
        said = f"{modality.title} was registered to {aligned.reference.title}: {moved.text}."
        if moved.distance_mm > FAR_MM:
            warn(
                f"{aligned.study.id}: {said} That is further than a patient moves during a scan: check that "
                f"{modality.title} belongs here."
            )
        else:
            note(said)
        images[modality] = Volume(image.voxels, moved_grid(image.grid, motion).affine)
        motions[modality] = aligned.motions[modality] @ motion
    brain = _moved_brain_mask(aligned, motions)
    study = replace(aligned.study, images=images, brain=brain, registered=True)
    return replace(aligned, study=study, motions=motions)


@dataclass(frozen=True, eq=False)
class _Motion:
    """Rigid motion of one sequence, for messages."""

    modality: Modality
    reference: Modality
    matrix: Float[np.ndarray, "4 4"]
    middle: Float[np.ndarray, "3"]

    @property
    def distance_mm(self) -> float:
        """Root-mean-square displacement over the head."""
        return displacement_mm(self.matrix, self.middle)

    @property
    def text(self) -> str:
        return f"{shift_mm(self.matrix, self.middle):.1f} mm and {turn_degrees(self.matrix):.1f} degrees"


def _middle(grid: Grid) -> Float[np.ndarray, "3"]:
    return grid.corners_mm().mean(0)


def _within_a_voxel(first: Grid, second: Grid) -> float:
    """Return the displacement in mm up to which two images agree: the smallest side of a voxel, at most 1.25 mm."""
    return min(*first.spacing_mm, *second.spacing_mm, ALIGNED_MM)


def add_brain_mask(aligned: AlignedStudy) -> AlignedStudy:
    """Find the brain with deepbet in T1 or T1c, as one mask for all sequences.

    Raises: UsageError without deepbet; InputError if there is no T1 or T1c, or no brain is found.
    """
    images = _volumes(aligned.study)
    source = skull_strip_source(images)
    brain = brain_mask(images[source])
    size = float(brain.voxels.sum()) * brain.grid.voxel_ml
    note(
        f"deepbet found the brain in {source.title} ({size:.0f} ml; {SMALLEST_ML:.0f} to {LARGEST_ML:.0f} are "
        "plausible); its mask is used for all sequences."
    )
    return replace(aligned, study=replace(aligned.study, brain=brain))


def _share_grid_and_mask(fixed: Volume, others: Iterable[Volume]) -> bool:
    """True if all images share one grid and one brain mask, as in preprocessed datasets.

    Such images were registered before. To measure it again would cost more time than all other steps of reading.
    """
    inside = foreground(fixed.voxels)
    return all(
        same_grid(fixed.grid, image.grid) and dice(inside, foreground(image.voxels)) > SAME_MASK for image in others
    )


def _chosen_reference(study: Study, reference: Modality | None) -> Modality:
    if not study.images:
        raise InputError(f"Study {study.id} has no MRI sequence. Give at least one of T1, T1c, T2, FLAIR.")
    chosen = reference or next(modality for modality in GRID_ORDER if modality in study.images)
    if chosen not in study.images:
        raise UsageError(f"Study {study.id} has no {chosen.title} to register to. It has {study.available.title}.")
    return chosen


def _read(study: Study, modality: Modality) -> Volume:
    image, name = study.images[modality], f"{study.id}: {modality.title}"
    return without_spikes(image if isinstance(image, Volume) else nifti.read_volume(image, name), name)


def _read_thinned(study: Study, reference: Modality | None) -> AlignedStudy:
    """Read the images one by one, large ones with fewer voxels; `grids` are the full ones."""
    _chosen_reference(study, reference)  # before anything is read
    images, grids = {}, {}
    for modality in study.images:
        volume = _read(study, modality)
        images[modality], grids[modality] = downsample_large(volume), volume.grid
        del volume
    return replace(read_unchanged(replace(study, images=images), reference), grids=grids)


def _with_all_voxels(aligned: AlignedStudy, given: Study) -> AlignedStudy:
    """Replace thinned images by full ones: as given, or read again if the image was moved."""
    seen = _volumes(aligned.study)
    images: dict[Modality, Volume | Path | Frame] = dict(seen)
    for modality, grid in aligned.grids.items():
        motion = aligned.motions[modality]
        if seen[modality].voxels.shape == grid.shape:
            continue
        if np.array_equal(motion, np.eye(4)):
            images[modality] = given.images[modality]
        else:
            images[modality] = Volume(_read(given, modality).voxels, moved_grid(grid, motion).affine)
    return replace(aligned, study=replace(aligned.study, images=images))


def _volumes(study: Study) -> dict[Modality, Volume]:
    return {modality: image for modality, image in study.images.items() if isinstance(image, Volume)}


def _moved_brain_mask(
    aligned: AlignedStudy, motions: Mapping[Modality, Float[np.ndarray, "4 4"]]
) -> Volume | Path | None:
    """Move a given brain mask with the sequence on whose grid it lies; without one, it belongs to the reference."""
    brain = aligned.study.brain
    if brain is None:
        return None
    mask = brain if isinstance(brain, Volume) else nifti.read_volume(brain, f"{aligned.study.id}: brain mask")
    order = (aligned.reference, *(m for m in aligned.grids if m is not aligned.reference))
    for modality in order:
        if same_grid(aligned.grids[modality], mask.grid.ordered_as(aligned.grids[modality])):
            return Volume(mask.voxels, moved_grid(mask.grid, motions[modality]).affine)
    return mask


def _refuse_large_rotation(modality: Modality, reference: Modality, motion: Float[np.ndarray, "4 4"]) -> None:
    turn = turn_degrees(motion)
    if turn > LARGEST_TURN_DEGREES:
        raise InputError(
            f"{modality.title} cannot be registered to {reference.title}: they agree best when turned by "
            f"{turn:.0f} degrees, which no head does within a scan. Are they of one patient, and their orientations "
            "right? Leave one out, or register them with another tool and pass --raw no."
        )
