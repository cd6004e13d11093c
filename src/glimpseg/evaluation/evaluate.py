"""A model against references: every subset a study allows, every region, every metric, into tidy files.

An evaluation folder grows study by study and is finished when `evaluation.json` says so; one that was killed goes on
where it stopped. While the network works on one subset, a thread scores the last, and another
reads the next study.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimpseg import methods
from glimpseg.data import nifti
from glimpseg.data.cache import study_digest
from glimpseg.data.preprocess import Prepared, Preprocess
from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation.protocol import Protocol, protocol_named
from glimpseg.evaluation.scoring import Reference
from glimpseg.metrics import Reliability
from glimpseg.modality import SUBSETS, Modality, subsets_of
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.results.folder import LABELS, RECORD, SCORES, STUDIES, SUMMARY, Evaluation, read_evaluation
from glimpseg.results.scores import METRICS, OF_PROBABILITIES, Score, Scores, write_scores
from glimpseg.results.summary import summary
from glimpseg.runtime.atomic import atomic_file, folder_lock, refuse_if_used, write_json, write_text
from glimpseg.segmentation.inference import Prediction, infer
from glimpseg.study import Frame, Study
from glimpseg.version import __version__
from glimpseg.volume import Volume

log = logging.getLogger(__name__)

SCORED_LATER = 2
"""Predictions that may wait for their scores; each holds probabilities on the own grid."""


def evaluate(
    model: Model,
    studies: Sequence[Study],
    folder: str | Path,
    *,
    protocol: str = "clinical",
    subsets: Sequence[Modality] = SUBSETS,
    metrics: Sequence[str] = tuple(METRICS),
    split: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Scores every study on those of `subsets` it has, and writes `scores.csv`, `summary.json`, `evaluation.json`, a
    JSON file for each study and the label maps (`labels/<study>/<subset>.nii.gz`).

    `split` is the name of the list that `studies` were chosen by, for the record. With `resume`, an unfinished
    evaluation of the same model, studies and rules goes on; studies whose files have changed are scored again.

    A study that cannot be scored is named in the record under `failed`, and the others are scored.

    Raises: InputError if no study has a reference or none can be scored; UsageError if `folder` is in use or was
        begun otherwise.
    """
    folder = Path(folder)
    scored = [study for study in studies if study.reference is not None]
    if not scored:
        raise InputError("No study has a reference to score against. Give a folder with seg files.")
    left_out = {"without_reference": [study.id for study in studies if study.reference is None]}
    left_out["without_subset"] = [study.id for study in scored if not _allowed(study.available, subsets)]
    for study in left_out["without_reference"]:
        log.warning("%s has no reference and is left out.", study)
    for study in left_out["without_subset"]:
        log.warning("%s has the sequences of none of the subsets and is left out.", study)
    scored = [study for study in scored if study.id not in left_out["without_subset"]]
    if not scored:
        raise InputError("No study has all the sequences of any subset asked for. Name other subsets, or all.")
    if model.network.shares and len(subsets) > 1:
        model = model.by_torch  # for all, also where a study allows but one
    plan = json.loads(json.dumps(_plan(model, protocol, scored, subsets, metrics, split)))  # as it will be read back
    _open(folder, plan, resume=resume, overwrite=overwrite)
    # Shifted z-scores are what the protocol rfnet shows, so that a model trained on them is at home there.
    preparation = model.recipe.data.preprocess
    at_home = preparation.background == "shifted" and preparation.scale == "zscore"
    if protocol_named(protocol).caution and not at_home:
        log.warning("%s", protocol_named(protocol).caution)
    with folder_lock(folder):
        write_json(folder / RECORD, {**plan, "finished": False})
        todo = [study for study in scored if not _is_done(folder, study)]
        if len(todo) < len(scored):
            log.info("%d of %d studies are scored already.", len(scored) - len(todo), len(scored))
        failures = _score_all(model, protocol_named(protocol), todo, folder, plan)
        if len(failures) == len(scored):
            _put_back(folder)
            raise InputError("No study could be scored.\n" + "\n".join(f"{k}: {v}" for k, v in failures.items()))
        outcome = {
            **_conclude(folder, [study for study in scored if study.id not in failures]),
            "failed": failures,
            "backend": model.backend.record,
            **left_out,
            "incomplete": sum(len(study.available) < len(Modality) for study in scored),
        }
        write_json(folder / RECORD, {**plan, **outcome, "finished": True})
        shutil.rmtree(_aside(folder), ignore_errors=True)
    return read_evaluation(folder)


@dataclass(frozen=True)
class _Study:
    """What the file of a scored study holds."""

    digest: str
    reference: str
    """Digest of the reference's voxels on the own grid."""
    seconds: float
    scores: list[Score]
    reliability: dict[tuple[str, str], Reliability]
    """By subset and region."""


class _Case:
    """One study while it is being scored."""

    def __init__(
        self, prepared: Prepared, digest: str, regions: Sequence[Region], plan: Mapping[str, Any], folder: Path
    ) -> None:
        self._prepared, self._digest, self._regions = prepared, digest, regions
        self._plan, self._folder = plan, folder
        self._begun = time.perf_counter()
        self._scores: dict[str, list[Score]] = {}
        self._reliability: dict[str, dict[str, Any]] = {}

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self._prepared, self._regions, self._plan["metrics"])

    def add(self, found: Prediction) -> None:
        """Scores one prediction and writes its label map."""
        subset, study = found.subset.key, self._prepared.id
        rated = self._reference.rate(found.labels, found.probabilities)
        self._scores[subset] = [
            Score(
                study, subset, one.region, metric, self._plan["protocol"],
                one.values[metric], one.predicted_ml, one.reference_ml,
            )
            for one in rated
            for metric in self._plan["metrics"]
            if metric in one.values
        ]  # fmt: skip
        self._reliability[subset] = {one.region: one.reliability.as_lists() for one in rated if one.reliability}
        with atomic_file(self._folder / LABELS / study / f"{subset}.nii.gz") as path:
            nifti.write_labels(path, found.labels)

    def finish(self) -> None:
        """Writes the study's file: from now on it counts as done."""
        order = [subset for subset in self._plan["subsets"] if subset in self._scores]
        tree = {
            "digest": self._digest,
            "reference": _voxel_digest(self._prepared.reference),
            "seconds": round(time.perf_counter() - self._begun, 2),
            "available": self._prepared.available.key,
            "warnings": list(self._prepared.warnings),
            "scores": [astuple(line) for subset in order for line in self._scores[subset]],
            "reliability": {subset: self._reliability[subset] for subset in order},
        }
        write_text(self._folder / STUDIES / f"{self._prepared.id}.json", json.dumps(tree) + "\n")


def _score_all(
    model: Model,
    protocol: Protocol,
    studies: Sequence[Study],
    folder: Path,
    plan: Mapping[str, Any],
) -> dict[str, str]:
    """Scores and writes study after study; returns the messages of those that could not be."""
    failures: dict[str, str] = {}
    begun = time.perf_counter()
    chosen = [subset for subset in SUBSETS if subset.key in plan["subsets"]]
    wants_probabilities = bool(set(plan["metrics"]) & set(OF_PROBABILITIES))
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="scorer") as scorer:

        def later(task: Callable[..., None], *arguments: Any) -> None:
            while len(waiting) >= SCORED_LATER:
                waiting.popleft().result()
            waiting.append(scorer.submit(task, *arguments))

        for number, read in enumerate(_read_ahead(studies, protocol, model.recipe.data.preprocess), 1):
            if isinstance(read.prepared, InputError):
                log.warning("%s cannot be scored: %s", read.study, read.prepared)
                failures[read.study] = str(read.prepared)
                continue
            case = _Case(read.prepared, read.digest, model.network.regions, plan, folder)
            for found in infer(
                read.prepared,
                model,
                _allowed(read.prepared.available, chosen),
                keep_probabilities=wants_probabilities,
                weighting=protocol.weighting,
            ):
                later(case.add, found)
            later(case.finish)
            log.info("%d/%d %s (%.0f s)", number, len(studies), read.study, time.perf_counter() - begun)
        while waiting:
            waiting.popleft().result()
    return failures


@dataclass(frozen=True)
class _Read:
    """A study from the disk: its arrays, or the reason why there are none."""

    study: str
    digest: str
    prepared: Prepared | InputError


def _read_ahead(studies: Sequence[Study], protocol: Protocol, settings: Preprocess) -> Iterator[_Read]:
    """Each study in turn; the next is read while one is worked on."""

    def read(study: Study) -> _Read:
        try:
            return _Read(study.id, study_digest(study), protocol.prepare(study, settings))
        except InputError as error:
            return _Read(study.id, "", error)

    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        coming = deque(reader.submit(read, study) for study in studies[:1])
        for following in [*studies[1:], None]:
            if not coming:
                return
            ready = coming.popleft().result()
            if following is not None:
                coming.append(reader.submit(read, following))
            yield ready


def _allowed(available: Modality, subsets: Sequence[Modality]) -> list[Modality]:
    return [subset for subset in subsets if subset in subsets_of(available)]


def _conclude(folder: Path, studies: Sequence[Study]) -> dict[str, Any]:
    """Writes `scores.csv` and `summary.json` from the files of all studies; returns what the record says of them."""
    done = [_read_study(folder, study.id) for study in studies]
    scores = Scores([line for entry in done for line in entry.scores])
    with atomic_file(folder / SCORES) as path:
        write_scores(path, scores.lines)
    write_json(folder / SUMMARY, summary(scores, _reliability(done)))
    return {
        "data": hashlib.sha256("\n".join(sorted(entry.digest for entry in done)).encode()).hexdigest(),
        "cases": [_case_record(study, entry) for study, entry in zip(studies, done, strict=True)],
        "scores": hashlib.sha256((folder / SCORES).read_bytes()).hexdigest(),
        "seconds": round(sum(entry.seconds for entry in done), 1),
    }


def _plan(
    model: Model,
    protocol: str,
    studies: Sequence[Study],
    subsets: Sequence[Modality],
    metrics: Sequence[str],
    split: str | None,
) -> dict[str, Any]:
    """What decides the scores; equal for an evaluation and its resumption."""
    return {
        "glimpseg": __version__,
        "model": {
            "name": model.name,
            "weights": model.provenance["sha256"][WEIGHTS],
            **{k: v for k, v in model.provenance.items() if k != "sha256"},
            **({"choices": model.chosen} if model.chosen else {}),
        },
        "recipe": methods.as_tree(model.recipe),
        "protocol": protocol,
        "rules": {**protocol_named(protocol).rules, **{name: METRICS[name].rule for name in metrics}},
        "split": split,
        "regions": [region.name for region in model.network.regions],
        "subsets": [subset.key for subset in SUBSETS if subset in subsets],
        "metrics": list(metrics),
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


def _open(folder: Path, plan: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready: empty, or holding the unfinished evaluation that is resumed."""
    old = _old_record(folder)
    if resume and old is not None:
        _refuse_another(folder, old, plan)
        return
    if old is not None and not overwrite and not old["finished"]:
        raise UsageError(
            f"{folder} holds an unfinished evaluation. Add --resume to go on with it, --overwrite to begin anew, "
            "or name another folder with -o."
        )
    refuse_if_used(folder, overwrite=overwrite, mark=RECORD)
    if folder.is_dir():
        with folder_lock(folder):  # not under the hands of another process
            shutil.rmtree(_aside(folder), ignore_errors=True)
            folder.rename(_aside(folder))


def _aside(folder: Path) -> Path:
    """Where the evaluation that is overwritten waits until the new one is done."""
    return folder.with_name(f".{folder.name}.old")


def _put_back(folder: Path) -> None:
    """The evaluation that was to be overwritten, if the new one came to nothing."""
    if _aside(folder).is_dir():
        shutil.rmtree(folder)
        _aside(folder).rename(folder)


def _old_record(folder: Path) -> dict[str, Any] | None:
    if not (folder / RECORD).is_file():
        return None
    try:
        old: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
        return {"finished": True, **old}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RECORD} is damaged ({error}). Name another folder with -o.") from error


def _refuse_another(folder: Path, old: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    changed = [name for name in plan if name != "computed" and old.get(name) != plan[name]]
    if changed:
        values = "; ".join(f"{name}: {_short(old.get(name))}, now {_short(plan[name])}" for name in changed)
        raise UsageError(
            f"The evaluation in {folder} was begun otherwise ({values}). Resume it as it was begun, or name another "
            "folder with -o."
        )
    if old.get("computed") != plan["computed"]:
        log.warning("This evaluation was begun on another machine, backend or thread count: the last digits may vary.")


def _short(value: Any) -> str:
    """Enough of a value for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _voxel_digest(reference: Volume | None) -> str:
    assert reference is not None, "only studies with a reference are scored"
    return hashlib.sha256(np.ascontiguousarray(reference.ras().voxels).tobytes()).hexdigest()


def _is_done(folder: Path, study: Study) -> bool:
    """Whether a study's file is there, whole, and of the images as they are now."""
    try:
        done = _read_study(folder, study.id)
        current = done.digest == study_digest(study)
    except InputError:
        return False
    if not current:
        log.warning("The files of %s have changed since it was scored; it is scored again.", study.id)
    return current


def _read_study(folder: Path, study: str) -> _Study:
    path = folder / STUDIES / f"{study}.json"
    try:
        tree = json.loads(path.read_text("utf-8"))
        reliability = {
            (subset, region): Reliability.from_lists(lists)
            for subset, regions in tree["reliability"].items()
            for region, lists in regions.items()
        }
        return _Study(
            tree["digest"], tree["reference"], tree["seconds"], [Score(*line) for line in tree["scores"]], reliability
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the file of a scored study ({error}).") from error


def _reliability(done: Sequence[_Study]) -> dict[tuple[str, str], Reliability]:
    """By subset and region, summed over studies."""
    total: dict[tuple[str, str], Reliability] = {}
    for entry in done:
        for key, value in entry.reliability.items():
            total[key] = total[key] + value if key in total else value
    return total


def _case_record(study: Study, entry: _Study) -> dict[str, Any]:
    return {
        "id": study.id,
        "images": {m.key: _named(image) for m, image in study.images.items() if isinstance(image, Path | Frame)},
        "reference": str(study.reference.absolute()) if isinstance(study.reference, Path) else None,
        "reference_voxels": entry.reference,
        "labels": study.convention.name if study.convention else None,
    }


def _named(image: Path | Frame) -> str:
    """A file as its record names it; `study.parse_image` reads that."""
    return str(image.absolute() if isinstance(image, Path) else replace(image, path=image.path.absolute()))
