"""Preparation of one study for the network: checks, registration and skull stripping, working arrays."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from glimpseg.data.dicom.seg import check_seg_source
from glimpseg.data.identify.appearance import appearance_warnings
from glimpseg.data.notices import warn
from glimpseg.data.preprocess import GRID_ORDER, Prepared, prepare, refuse_same_files
from glimpseg.data.raw.preparation import register_and_strip
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.segmentation.inputs import StudyInput
from glimpseg.segmentation.memory import refuse_if_memory_short
from glimpseg.segmentation.options import DICOM_TYPES, InferenceOptions

NO_SERIES = (
    "A DICOM SEG lies in the geometry of a DICOM series, and the image on whose grid the result lies came as NIfTI, or "
    "from an archive of one series. Give the study's DICOM with -i, or leave DICOM out of the output types."
)
"""Message if DICOM output was asked for images without a DICOM series."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedInput:
    """A study after its files were read and checked, with its arrays for a network."""

    study_input: StudyInput
    """The study; its images are registered, and its brain mask is set, where that was needed."""
    prepared: Prepared
    """Arrays for the network."""
    grid: Modality
    """Sequence on whose grid results lie."""
    seconds: float
    """Time that reading, checks, registration and skull stripping took together, in seconds."""


def prepare_input(study_input: StudyInput, model: Model, options: InferenceOptions) -> PreparedInput:
    """Read and check the images of a study, register and skull-strip raw images, and prepare them for a model.

    Of the options, `grid` and `raw` are used here. With `raw` of `no`, images are prepared without registration and
    skull stripping. A sequence that looks like another one is named in a warning. Warnings and notes are added to the
    input's `notices`.

    Raises: InputError for images that cannot be used, or that clearly need more memory than there is; UsageError where
        something is needed that is not installed, or if the study lacks the sequence of `grid`.
    """
    begun, study, grid = time.perf_counter(), study_input.study, options.grid_sequence
    settings = model.recipe.data.preprocess
    with study_input.notices.open():
        refuse_same_files(study)
        refuse_if_memory_short(study, settings.spacing_mm, len(model.network.labels) + 1)
        if options.raw == "auto":
            aligned = register_and_strip(study, grid)
            study_input = replace(study_input, study=aligned.study, checks=aligned.checks)
        prepared = prepare(study_input.study, settings, grid)
        for sentence in appearance_warnings(prepared):
            warn(f"{study.id}: {sentence}")
    return PreparedInput(
        study_input=study_input,
        prepared=prepared,
        grid=grid or next(modality for modality in GRID_ORDER if modality in prepared.available),
        seconds=time.perf_counter() - begun,
    )


def warn_of_output(prepared: PreparedInput, types: Collection[str]) -> None:
    """Warn if the headers of a study do not allow the DICOM output that is wanted.

    It is called before the network runs. The NIfTI is written all the same.

    Raises: UsageError if no DICOM series belongs to the grid of the result.
    """
    if not set(types) & DICOM_TYPES:
        return
    series = prepared.study_input.series.get(prepared.grid)
    if series is None:
        raise UsageError(NO_SERIES)
    try:
        check_seg_source(series)
    except InputError as error:
        with prepared.study_input.notices.open():
            warn(no_dicom_output(error))


def no_dicom_output(error: InputError) -> str:
    """Return the warning that no DICOM output can be written."""
    return f"No DICOM output is written, only NIfTI: {error}"
