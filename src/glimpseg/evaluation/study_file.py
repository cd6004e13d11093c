"""Scores of one study: made prediction by prediction, kept in a JSON file of the evaluation folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.cache import study_digest
from glimpseg.data.notices import Notices, warn
from glimpseg.data.preprocess import Prepared
from glimpseg.errors import InputError
from glimpseg.evaluation.scoring import Reference
from glimpseg.metrics import Reliability
from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.results.folder import LABELS, STUDIES
from glimpseg.results.scores import Score
from glimpseg.runtime.atomic import atomic_file, write_text
from glimpseg.runtime.documents import BROKEN, read_json
from glimpseg.segmentation.inference import Prediction
from glimpseg.study import Study
from glimpseg.volume import Volume


@dataclass(frozen=True, kw_only=True)
class ScoredStudy:
    """Content of the file of one scored study."""

    digest: str
    """SHA-256 of the study's files (`study_digest`)."""
    reference: str
    """SHA-256 of the reference's voxels on the native grid."""
    seconds: float
    """Time that scoring the study took, in seconds."""
    scores: list[Score]
    """Scores of all its subsets."""
    reliability: dict[tuple[str, str], Reliability]
    """Reliability by the key of the subset and the name of the region."""
    notices: Notices
    """Warnings and notes about the study."""


class StudyScorer:
    """Scorer of one study: takes its predictions one by one, then writes the study's file.

    Args:
        prepared: The study, with a reference.
        digest: SHA-256 of the study's files.
        regions: Regions to score.
        subsets: Every subset that will be added.
        plan: The plan of the evaluation (`evaluation_plan`).
        folder: The evaluation folder.
        notices: Warnings and notes about the study.
    """

    def __init__(
        self,
        prepared: Prepared,
        digest: str,
        *,
        regions: Sequence[Region],
        subsets: Sequence[Modality],
        plan: Mapping[str, Any],
        folder: Path,
        notices: Notices,
    ) -> None:
        self._prepared, self._digest, self._regions = prepared, digest, regions
        self._subsets, self._plan, self._folder = {subset.key for subset in subsets}, plan, folder
        self._begun, self._notices = time.perf_counter(), notices
        self._scores: dict[str, list[Score]] = {}
        self._reliability: dict[str, dict[str, Any]] = {}

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self._prepared, self._regions, self._plan["metrics"])

    def add(self, prediction: Prediction) -> None:
        """Score one prediction, and write its label map with the numbers of `Label`."""
        subset, study = prediction.subset.key, self._prepared.id
        regions = self._reference.score(prediction.labels, prediction.probabilities)
        self._scores[subset] = [
            Score(
                study=study,
                subset=subset,
                region=region.name,
                metric=metric,
                protocol=self._plan["protocol"],
                value=region.values[metric],
                predicted_ml=region.predicted_ml,
                reference_ml=region.reference_ml,
            )
            for region in regions
            for metric in self._plan["metrics"]
            if metric in region.values
        ]
        self._reliability[subset] = {
            region.name: region.reliability.as_lists() for region in regions if region.reliability
        }
        with atomic_file(self._folder / LABELS / study / f"{subset}.nii.gz") as path:
            nifti.write_labels(path, prediction.labels)

    def finish(self) -> None:
        """Write the study's file; from then on the study counts as done. Nothing is written if a subset is missing."""
        if set(self._scores) != self._subsets:
            return  # `add` failed for one of them, and raised its own error
        order = [subset for subset in self._plan["subsets"] if subset in self._scores]
        tree = {
            "digest": self._digest,
            "reference": _voxel_digest(self._prepared.reference),
            "seconds": round(time.perf_counter() - self._begun, 2),
            "available": self._prepared.available.key,
            **self._notices.as_tree(),
            "scores": [astuple(line) for subset in order for line in self._scores[subset]],
            "reliability": {subset: self._reliability[subset] for subset in order},
        }
        write_text(_path(self._folder, self._prepared.id), json.dumps(tree) + "\n")


def read_scored_study(folder: Path, study: str) -> ScoredStudy:
    """Read the file of a scored study. Raises: InputError if it is missing or damaged."""
    path = _path(folder, study)
    try:
        tree = read_json(path, finite=False)
        reliability = {
            (subset, region): Reliability.from_lists(lists)
            for subset, regions in tree["reliability"].items()
            for region, lists in regions.items()
        }
        return ScoredStudy(
            digest=tree["digest"],
            reference=tree["reference"],
            seconds=tree["seconds"],
            scores=[Score(*line) for line in tree["scores"]],
            reliability=reliability,
            notices=Notices(tree.get("warnings", []), tree.get("notes", [])),
        )
    except BROKEN as error:
        raise InputError(f"{path} is not the file of a scored study ({error}).") from error


def is_scored(folder: Path, study: Study) -> bool:
    """True if the study's file is there and whole, and the study's own files have not changed since it was written.

    If they have changed, there is a warning.
    """
    try:
        unchanged = read_scored_study(folder, study.id).digest == study_digest(study)
    except InputError:
        return False
    if not unchanged:
        warn(f"The files of {study.id} have changed since it was scored; it is scored again.")
    return unchanged


def _path(folder: Path, study: str) -> Path:
    return folder / STUDIES / f"{study}.json"


def _voxel_digest(reference: Volume | None) -> str:
    assert reference is not None, "only studies with a reference are scored"
    return hashlib.sha256(np.ascontiguousarray(reference.ras().voxels).tobytes()).hexdigest()
