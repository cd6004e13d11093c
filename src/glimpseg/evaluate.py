"""A model against references: every subset a study allows, every region, Dice and HD95, into tidy files.

Scores are taken on the study's own grid, from the modalities of the subset alone: the others shape neither
crop nor normalisation.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glimpseg import metrics
from glimpseg.atomic import atomic_folder, refuse_if_used
from glimpseg.checkpoint import Model
from glimpseg.data import nifti
from glimpseg.data.preprocess import Prepared, prepare
from glimpseg.errors import InputError
from glimpseg.modality import SUBSETS, Modality, subsets_of
from glimpseg.predict import infer
from glimpseg.region import Region
from glimpseg.study import Study
from glimpseg.version import __version__
from glimpseg.volume import Volume

log = logging.getLogger(__name__)

SCORES, RECORD = "scores.csv", "evaluation.json"
RULES = {
    "dice": "both empty 1, one empty 0",
    "hd95": "larger of the two directed 95th percentiles, mm; both empty 0, one empty the grid's diagonal "
    "(373.13 on 240x240x155 at 1 mm)",
    "protocol": "clinical: only the present sequences touch crop and normalisation; the whole volume on the study's "
    "own grid; no post-processing, no test-time augmentation",
    "mean": "over cases for one subset, then plain over the subsets",
}


@dataclass(frozen=True)
class Score:
    """One line of `scores.csv`."""

    study: str
    subset: str
    region: str
    metric: str
    value: float
    predicted_ml: float
    reference_ml: float


def evaluate(
    model: Model,
    studies: Sequence[Study],
    folder: str | Path,
    *,
    subsets: Sequence[Modality] = SUBSETS,
    overwrite: bool = False,
) -> list[Score]:
    """Scores every study on those of `subsets` it has, and writes `scores.csv`, `evaluation.json` and the label
    maps (`labels/<study>/<subset>.nii.gz`), all at once when done.

    Raises: InputError if no study has a reference, or one cannot be read; UsageError if `folder` is in use.
    """
    refuse_if_used(folder, overwrite=overwrite, mark=RECORD)
    scored = [study for study in studies if study.reference is not None]
    if not scored:
        raise InputError("No study has a reference to score against. Give a folder with seg files.")
    begun = time.perf_counter()
    with atomic_folder(folder, overwrite=overwrite, mark=RECORD) as place:
        scores: list[Score] = []
        for number, study in enumerate(scored, 1):
            prepared = prepare(study, model.recipe.data.preprocess)
            for subset in subsets:
                if subset in subsets_of(prepared.available):
                    found, _ = infer(prepared.restricted_to(subset), model)
                    scores += score(study.id, subset, found, prepared, model.network.regions)
                    _write_labels(place, study.id, subset, found)
            log.info("%d/%d %s (%.0f s)", number, len(scored), study.id, time.perf_counter() - begun)
        write_scores(place / SCORES, scores)
        record = _record(model, scored, len(studies), subsets, time.perf_counter() - begun)
        (place / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return scores


def score(study: str, subset: Modality, found: Volume, prepared: Prepared, regions: Sequence[Region]) -> list[Score]:
    """Dice and HD95 of every region of one prediction."""
    assert prepared.reference is not None, "only studies with a reference are scored"
    voxel, spacing = found.grid.voxel_ml, found.grid.spacing_mm
    scores = []
    for region in regions:
        predicted, reference = region.of(found.voxels), region.of(prepared.reference.voxels)
        volumes = (metrics.volume_ml(predicted, voxel), metrics.volume_ml(reference, voxel))
        for metric, value in (
            ("dice", metrics.dice(predicted, reference)),
            ("hd95", metrics.hd95(predicted, reference, spacing)),
        ):
            scores.append(Score(study, subset.key, region.name, metric, value, *volumes))
    return scores


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Tidy CSV: a line for each study, subset, region and metric."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Score)])
        writer.writeheader()
        for line in scores:
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(line).items()})


def _write_labels(place: Path, study: str, subset: Modality, found: Volume) -> None:
    (place / "labels" / study).mkdir(parents=True, exist_ok=True)
    nifti.write_labels(place / "labels" / study / f"{subset.key}.nii.gz", found)


def _record(
    model: Model, scored: Sequence[Study], given: int, subsets: Sequence[Modality], seconds: float
) -> dict[str, Any]:
    return {
        "glimpseg": __version__,
        "model": {"name": model.name, **{k: v for k, v in model.provenance.items() if k != "sha256"}},
        "recipe": {"method": model.recipe.method, "seed": model.recipe.seed},
        "rules": RULES,
        "regions": [region.name for region in model.network.regions],
        "subsets": [subset.key for subset in subsets],
        "studies": [_study_record(study) for study in scored],
        "without_reference": given - len(scored),
        "seconds": round(seconds, 1),
    }


def _study_record(study: Study) -> dict[str, Any]:
    return {
        "id": study.id,
        "images": {m.key: str(image) for m, image in study.images.items() if isinstance(image, Path)},
        "reference": str(study.reference) if isinstance(study.reference, Path) else None,
        "labels": study.convention.name if study.convention else None,
    }
