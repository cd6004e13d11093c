"""Counts of one study for a calibration: Dice and histograms of every subset and region, kept in a file."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np

from glimpseg.data.cache import study_digest
from glimpseg.data.notices import Notices, collected
from glimpseg.data.preprocess import Prepared, brain_of, prepare
from glimpseg.errors import InputError
from glimpseg.evaluation.histogram import Histogram, Key
from glimpseg.evaluation.scoring import Reference
from glimpseg.modality import parse, subsets_of
from glimpseg.model.expectations import FORMAT
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.results.scores import Score
from glimpseg.runtime.documents import BROKEN, parse_json
from glimpseg.runtime.pipeline import ahead
from glimpseg.segmentation.inference import Prediction, infer
from glimpseg.study import Study
from glimpseg.version import __version__

NOTICES = "notices"
"""Name of the array that holds the warnings and notes, as JSON."""
COUNTED_LATER = 2
"""Predictions that may wait to be counted; each holds probabilities on the native grid."""

_UNREADABLE = (
    *BROKEN,
    OSError,
    EOFError,
    MemoryError,
    SyntaxError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of reading an NPZ file, and of using content that is not what it should be."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Dice and histograms of one study."""

    lines: list[Score]
    """Dice of each subset and region."""
    histograms: dict[Key, Histogram]
    """Histogram of the brain's voxels, by subset and region."""
    notices: Notices = field(default_factory=Notices)
    """Warnings and notes about the study."""


def counts_digest(model: Model, study: Study) -> str:
    """Return the cache key of a study's counts: a SHA-256 of model, choices, study, version and file format.

    Raises: InputError if a file of the study cannot be read.
    """
    parts = [__version__, FORMAT, model.provenance["sha256"][WEIGHTS], model.chosen, study_digest(study)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def count_study(model: Model, study: Study) -> Counts:
    """Run the network on every subset that a study allows, and count.

    A thread counts one prediction while the network works on the next. Raises: InputError if the study cannot be
    prepared, or if the memory does not suffice.
    """
    with collected() as notices:
        prepared = prepare(study, model.recipe.data.preprocess)
        counter = _StudyCounter(prepared, model.network.regions)
        predictions = infer(prepared, model, subsets_of(prepared.available), keep_probabilities=True)
        counts = list(ahead(predictions, counter.count, COUNTED_LATER + 1))
    lines = [line for one in counts for line in one.lines]
    return Counts(lines, {key: histogram for one in counts for key, histogram in one.histograms.items()}, notices)


class _StudyCounter:
    """Counter of predictions against the reference of one study."""

    def __init__(self, prepared: Prepared, regions: Sequence[Region]) -> None:
        assert prepared.reference is not None
        self.id, self.brain = prepared.id, brain_of(prepared)
        self.reference = Reference(prepared, regions, ["dice"])
        self.truth = {region: region.mask(prepared.reference.voxels)[self.brain] for region in regions}

    def count(self, prediction: Prediction) -> Counts:
        """Return the counts of the prediction from one subset."""
        assert prediction.probabilities is not None
        names = {region.name for region in self.truth}
        lines = [
            Score(
                study=self.id,
                subset=prediction.subset.key,
                region=region.name,
                metric="dice",
                protocol="clinical",
                value=region.values["dice"],
                predicted_ml=region.predicted_ml,
                reference_ml=region.reference_ml,
            )
            for region in self.reference.score(prediction.labels, None)
            if region.name in names
        ]
        labels = prediction.labels.voxels[self.brain]
        histograms = {
            (prediction.subset, region): Histogram.from_voxels(
                prediction.probabilities[region].voxels[self.brain], truth=truth, mask=region.mask(labels)
            )
            for region, truth in self.truth.items()
        }
        return Counts(lines, histograms)


def write_counts(path: Path, counts: Counts) -> None:
    """Write the counts of one study as a compressed NPZ file."""
    arrays = {
        "lines": np.array(json.dumps([astuple(line) for line in counts.lines])),
        NOTICES: np.array(json.dumps(counts.notices.as_tree())),
    }
    for (subset, region), histogram in counts.histograms.items():
        rows = np.stack([histogram.voxels, histogram.logits, histogram.positives, histogram.predicted])
        arrays[f"{subset.key} {region.name} {histogram.studies}"] = rows
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_counts(path: Path) -> Counts:
    """Read the counts of one study. Raises: InputError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            lines = [Score(*line) for line in parse_json(str(arrays["lines"]), finite=False)]
            histograms = {}
            notices = Notices(**parse_json(str(arrays[NOTICES]))) if NOTICES in arrays.files else Notices()
            for name in arrays.files:
                if name in ("lines", NOTICES):
                    continue
                subset, region, studies = name.split(" ")
                voxels, logits, positives, predicted = arrays[name]
                histograms[parse(subset), Region[region]] = Histogram(
                    voxels=voxels.astype(np.int64),
                    logits=logits,
                    positives=positives.astype(np.int64),
                    predicted=predicted.astype(np.int64),
                    studies=int(studies),
                )
    except _UNREADABLE as error:
        raise InputError(f"{path} does not hold counts ({error}). Remove it, and calibrate again.") from error
    return Counts(lines, histograms, notices)
