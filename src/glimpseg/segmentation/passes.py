"""Passes of the network over a prepared study: the plain pass, and further ones for its uncertainty."""

from __future__ import annotations

import time
from collections.abc import Iterator

from glimpseg.data.preprocess import Prepared
from glimpseg.model.loading import Model
from glimpseg.segmentation.inference import infer
from glimpseg.segmentation.options import InferenceOptions, Level
from glimpseg.segmentation.preparation import PreparedInput
from glimpseg.segmentation.result import Segmentation
from glimpseg.segmentation.uncertainty import Uncertainty, leave_one_out, mirrored_inputs, uncertainty_of
from glimpseg.volume import Volume


def segment_prepared(study: PreparedInput, model: Model, options: InferenceOptions) -> Segmentation:
    """Segment a study that has been prepared for this model.

    Of the options, only `probabilities` and `uncertainty` are used here. Raises: InputError if the memory does not
    suffice.
    """
    begun, available = time.perf_counter(), study.prepared.available
    temperatures = model.expectations.temperatures(available) if model.expectations else {}
    calibrating = options.probabilities or options.uncertainty != "none"
    (found,) = infer(
        study.prepared,
        model,
        [available],
        keep_probabilities=options.probabilities,
        temperatures=temperatures if calibrating else None,
    )
    backend = model.backend.record
    seconds = {"reading": study.seconds, "network": time.perf_counter() - begun}
    uncertainty: Uncertainty | None = None
    if options.uncertainty != "none":
        assert found.estimates is not None
        begun, members = time.perf_counter(), further_passes(study.prepared, model, options.uncertainty)
        uncertainty = uncertainty_of(
            found.labels, found.estimates, members, level=options.uncertainty, calibrated=bool(temperatures)
        )
        seconds["uncertainty"] = time.perf_counter() - begun
    return Segmentation(
        labels=found.labels,
        probabilities=found.probabilities,
        used=available,
        model=model,
        images=study.study_input.study.images,
        seconds=seconds,
        warnings=study.prepared.warnings,
        series=study.study_input.series.get(study.grid),
        notes=study.study_input.notes,
        uncertainty=uncertainty,
        backend=backend,
    )


def further_passes(prepared: Prepared, model: Model, level: Level) -> Iterator[tuple[str, Volume]]:
    """Yield the name and the label map of each further pass of a level, on the native grid, one at a time.

    The mirrored passes come first. Those without one sequence may come in any order.
    """
    for name, mirrored in mirrored_inputs(prepared, level):
        (found,) = infer(mirrored, model, [mirrored.available])
        yield name, found.labels
    names = leave_one_out(prepared.available, level)
    for found in infer(prepared, model, list(names)) if names else ():
        yield names[found.subset], found.labels
