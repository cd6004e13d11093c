"""Preparation of one study for the network: checks, registration and skull stripping, working arrays."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from glimpseg.data.identify.appearance import appearance_warnings
from glimpseg.data.notices import collected_warnings, warn
from glimpseg.data.preprocess import GRID_ORDER, Prepared, prepare, refuse_same_files
from glimpseg.data.raw.preparation import register_and_strip
from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.segmentation.inputs import StudyInput
from glimpseg.segmentation.memory import refuse_if_memory_short
from glimpseg.segmentation.options import InferenceOptions


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedInput:
    """A study after its files were read and checked, with its arrays for a network."""

    study_input: StudyInput
    """The study; its images are registered, and its brain mask is set, where that was needed."""
    prepared: Prepared
    """Arrays for the network. `warnings` holds every warning that was logged while the study was read."""
    grid: Modality
    """Sequence on whose grid results lie."""
    seconds: float
    """Time that reading, checks, registration and skull stripping took together, in seconds."""


def prepare_input(study_input: StudyInput, model: Model, options: InferenceOptions) -> PreparedInput:
    """Read and check the images of a study, register and skull-strip raw images, and prepare them for a model.

    Of the options, `grid` and `raw` are used here. With `raw` of `no`, images are prepared without registration and
    skull stripping. A sequence that looks like another one is named in a warning.

    Raises: InputError for images that cannot be used, or that clearly need more memory than there is; UsageError where
        something is needed that is not installed, or if the study lacks the sequence of `grid`.
    """
    begun, study, grid = time.perf_counter(), study_input.study, options.grid_sequence
    settings, warnings = model.recipe.data.preprocess, list[str]()
    refuse_same_files(study)
    refuse_if_memory_short(study, settings.spacing_mm, len(model.network.labels) + 1)
    if options.raw == "auto":
        brought = register_and_strip(study, grid)
        warnings += brought.warnings
        study_input = replace(study_input, study=brought.study, notes=(*study_input.notes, *brought.notes))
    prepared = prepare(study_input.study, settings, grid)
    with collected_warnings() as unlike:
        for sentence in appearance_warnings(prepared):
            warn(f"{study.id}: {sentence}")
    every = tuple(dict.fromkeys([*warnings, *prepared.warnings, *unlike]))
    return PreparedInput(
        study_input=study_input,
        prepared=replace(prepared, warnings=every),
        grid=grid or next(modality for modality in GRID_ORDER if modality in prepared.available),
        seconds=time.perf_counter() - begun,
    )
