"""Passes of the network over a prepared study: the plain pass, and further ones for its uncertainty."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from glimpseg.data.notices import StudyNotices, warn
from glimpseg.data.preprocess import Prepared
from glimpseg.modality import Modality
from glimpseg.model.loading import Model
from glimpseg.segmentation.inference import infer
from glimpseg.segmentation.options import InferenceOptions, Level
from glimpseg.segmentation.preparation import PreparedInput
from glimpseg.segmentation.quality.finding import Review
from glimpseg.segmentation.quality.review import review_segmentation
from glimpseg.segmentation.result import Segmentation
from glimpseg.segmentation.uncertainty import Uncertainty, uncertainty_of
from glimpseg.volume import Grid, Volume

AXES = ("left-right", "front-back", "up-down")
"""Names of the axes of the working grid, which is in RAS order."""
MIRRORS: Mapping[Level, tuple[tuple[int, ...], ...]] = {
    "none": (),
    "quick": ((0,),),
    "full": tuple(axes for count in (1, 2, 3) for axes in itertools.combinations(range(3), count)),
}
"""Axes along which the images are mirrored, one pass each. Mirrored left-right, a head looks nearly the same. The other
flips show a network images that no patient has, unless it was trained with them."""


def segment_prepared(study: PreparedInput, model: Model, options: InferenceOptions) -> Segmentation:
    """Segment a study that has been prepared for this model.

    Of the options, only `probabilities` and `uncertainty` are used here. Warnings are added to the study's `notices`.

    Raises: InputError if the memory does not suffice.
    """
    with study.study_input.notices.open():
        return _segmented(study, model, options)


def _segmented(study: PreparedInput, model: Model, options: InferenceOptions) -> Segmentation:
    begun, available = time.perf_counter(), study.prepared.available
    temperatures = model.expectations.temperatures(available) if model.expectations else {}
    expected = model.expectations.of(available) if model.expectations else {}
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
            found.labels,
            found.estimates,
            members,
            level=options.uncertainty,
            calibrated=bool(temperatures),
            errors={region: one.usual_error for region, one in expected.items()},
        )
        seconds["uncertainty"] = time.perf_counter() - begun
    begun = time.perf_counter()
    review = _reviewed(study, found.labels, model, uncertainty)
    seconds["review"] = time.perf_counter() - begun
    return Segmentation(
        labels=found.labels,
        probabilities=found.probabilities,
        used=available,
        model=model,
        images=study.study_input.study.images,
        seconds=seconds,
        series=study.study_input.series.get(study.grid),
        notices=_with_those_of_the_model(study.study_input.notices, model),
        checks=study.study_input.checks,
        unused=study.study_input.unused,
        uncertainty=uncertainty,
        review=review,
        backend=backend,
    )


def _reviewed(study: PreparedInput, labels: Volume, model: Model, uncertainty: Uncertainty | None) -> Review:
    """Return the review of a result, and warn of each reason to look at it."""
    warnings = study.study_input.notices.warnings
    review = review_segmentation(study.prepared, labels, model, uncertainty=uncertainty, warnings=warnings)
    for sentence in review.sentences:
        warn(sentence)
    return review


def _with_those_of_the_model(notices: StudyNotices, model: Model) -> StudyNotices:
    """Add the warnings of the model and of its backend, which were logged when they arose."""
    for text in (*model.warnings, *filter(None, [model.backend.note])):
        notices.add_known("warning", text)
    return notices


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


def mirrored(prepared: Prepared, axes: Sequence[int]) -> Prepared:
    """Return the mirrored study, for axes of the working grid (0 left-right, 1 front-back, 2 up-down).

    The affine of its working grid is mirrored, too: results return to the native grid without being flipped back. The
    reference on the native grid stays as it is.
    """
    turn = np.eye(4)
    for axis in axes:
        turn[axis, axis] = -1
        turn[axis, 3] = prepared.grid.shape[axis] - 1
    channels = tuple(axis + 1 for axis in axes)
    return replace(
        prepared,
        image=np.ascontiguousarray(np.flip(prepared.image, channels)),
        inside=np.ascontiguousarray(np.flip(prepared.inside, channels)),
        target=None if prepared.target is None else np.ascontiguousarray(np.flip(prepared.target, tuple(axes))),
        grid=Grid(prepared.grid.shape, prepared.grid.affine @ turn),
    )


def mirrored_inputs(prepared: Prepared, level: Level) -> Iterator[tuple[str, Prepared]]:
    """Yield the name and the mirrored study of each mirrored pass of a level; nothing for `none`."""
    for axes in MIRRORS[level]:
        yield f"mirrored {' and '.join(AXES[axis] for axis in axes)}", mirrored(prepared, axes)


def leave_one_out(available: Modality, level: Level) -> dict[Modality, str]:
    """Return each subset that lacks one available sequence, with the name of its pass, such as `without T2`.

    Empty if the level is not `full`, or if only one sequence is available.
    """
    if level != "full" or len(available) == 1:
        return {}
    return {available & ~modality: f"without {modality.title}" for modality in available}
