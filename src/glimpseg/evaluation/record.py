"""Record of an evaluation: the plan, which is written first, and the results, which are written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from glimpseg import methods
from glimpseg.data.notices import TABLE, TREE, Notices, write_table
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.evaluation.protocol import protocol_named
from glimpseg.evaluation.study_file import ScoredStudy, read_scored_study
from glimpseg.metrics import Reliability
from glimpseg.modality import SUBSETS
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.results.folder import SCORES, SUMMARY
from glimpseg.results.scores import METRICS, Scores, write_scores
from glimpseg.results.summary import summary
from glimpseg.runtime.atomic import atomic_file, write_json
from glimpseg.study import Frame, Study
from glimpseg.version import __version__


def evaluation_plan(model: Model, studies: Sequence[Study], options: EvaluationOptions) -> dict[str, Any]:
    """Return the settings that decide the scores, as JSON holds them.

    An evaluation is resumed only under equal settings. `computed` (device, backend, thread count ...) may differ: it
    decides the last digits only.

    Args:
        model: The model.
        studies: The studies to score; their names are recorded.
        options: Protocol, subsets and metrics.

    Raises: UsageError for an unknown protocol.
    """
    rules = protocol_named(options.protocol).rules
    plan = {
        "glimpseg": __version__,
        "model": {
            "name": model.name,
            "weights": model.provenance["sha256"][WEIGHTS],
            **{k: v for k, v in model.provenance.items() if k != "sha256"},
            **({"choices": model.chosen} if model.chosen else {}),
        },
        "recipe": methods.as_tree(model.recipe),
        "protocol": options.protocol,
        "rules": {**rules, **{name: METRICS[name].rule for name in options.metrics}},
        "split": options.split,
        "regions": [region.name for region in model.network.regions],
        "subsets": [subset.key for subset in SUBSETS if subset in options.subsets],
        "metrics": list(options.metrics),
        "studies": [study.id for study in studies],
        "computed": {
            "device": model.device.type,
            "backend": model.computed_by,
            "precision": model.backend.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "fast": [name for name in ("edt", "cc3d") if find_spec(name)],
        },
    }
    return dict(json.loads(json.dumps(plan)))  # tuples become lists, so that it equals the plan that is read back


def write_results(folder: Path, studies: Sequence[Study], tree: Notices) -> dict[str, Any]:
    """Write `scores.csv`, `summary.json` and `notes.csv` from the files of these scored studies.

    Args:
        folder: The evaluation folder.
        studies: The scored studies.
        tree: Warnings and notes that belong to none of them.

    Returns:
        The part of the record about the results: digest of the data, a record for each case, digest of `scores.csv`,
            seconds.

    Raises: InputError if a study's file is missing or damaged; OutputError when the disk refuses.
    """
    scored = [read_scored_study(folder, study.id) for study in studies]
    of_studies = [(study.id, one.notices) for study, one in zip(studies, scored, strict=True)]
    write_table(folder / TABLE, [(TREE, tree), *of_studies])
    scores = Scores([line for one in scored for line in one.scores])
    with atomic_file(folder / SCORES) as path:
        write_scores(path, scores.lines)
    write_json(folder / SUMMARY, summary(scores, _total_reliability(scored)))
    return {
        "data": hashlib.sha256("\n".join(sorted(one.digest for one in scored)).encode()).hexdigest(),
        **({"notices": tree.as_tree()} if any(tree.rows()) else {}),
        "cases": [_case_record(study, one) for study, one in zip(studies, scored, strict=True)],
        "scores": hashlib.sha256((folder / SCORES).read_bytes()).hexdigest(),
        "seconds": round(sum(one.seconds for one in scored), 1),
    }


def _total_reliability(scored: Sequence[ScoredStudy]) -> dict[tuple[str, str], Reliability]:
    """Return the reliability summed over studies, by subset and region."""
    total: dict[tuple[str, str], Reliability] = {}
    for study in scored:
        for key, value in study.reliability.items():
            total[key] = total[key] + value if key in total else value
    return total


def _case_record(study: Study, scored: ScoredStudy) -> dict[str, Any]:
    return {
        "id": study.id,
        "images": {m.key: _image_text(image) for m, image in study.images.items() if isinstance(image, Path | Frame)},
        "reference": str(study.reference.absolute()) if isinstance(study.reference, Path) else None,
        "reference_voxels": scored.reference,
        "labels": study.convention.name if study.convention else None,
        **({"warnings": scored.notices.warnings} if scored.notices.warnings else {}),
    }


def _image_text(image: Path | Frame) -> str:
    """Return an image's file as text that `study.parse_image` reads."""
    return str(image.absolute() if isinstance(image, Path) else replace(image, path=image.path.absolute()))
