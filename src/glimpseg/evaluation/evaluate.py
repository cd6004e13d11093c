"""Evaluation of a model on studies with references.

Every subset of sequences that a study has, every region and every metric is scored. The evaluation folder grows study
by study and is finished when `evaluation.json` says so; an evaluation that was stopped can be resumed. While the
network works on one subset, one thread scores the previous prediction, and another thread reads the next study.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glimpseg.data.cache import study_digest
from glimpseg.data.layouts import find_studies
from glimpseg.data.notices import TABLE, StudyNotices, warn
from glimpseg.data.preprocess import Prepared, Preprocess
from glimpseg.data.splits import select_studies
from glimpseg.errors import InputError
from glimpseg.evaluation.options import DEFAULTS, EvaluationOptions
from glimpseg.evaluation.protocol import Protocol, protocol_named
from glimpseg.evaluation.record import evaluation_plan, write_results
from glimpseg.evaluation.study_file import StudyScorer, is_scored
from glimpseg.modality import SUBSETS, Modality, subsets_of
from glimpseg.model.loading import Model
from glimpseg.results.folder import RECORD, Evaluation, read_evaluation
from glimpseg.results.scores import OF_PROBABILITIES
from glimpseg.runtime.atomic import folder_lock, remove_unfinished, write_json
from glimpseg.runtime.pipeline import ahead
from glimpseg.runtime.resumable import Resumable, discard_replaced, restore_replaced
from glimpseg.segmentation.inference import infer
from glimpseg.segmentation.predict import load
from glimpseg.study import Study, without_folders

log = logging.getLogger(__name__)

READ_AHEAD = 1
"""Studies that are read while the network works on another one."""
SCORED_LATER = 2
"""Predictions that may wait for their scores; each holds probabilities on the native grid."""
FOLDER = Resumable(noun="evaluation", file=RECORD, may_differ=("computed", "finished"), replaceable=True)
"""Evaluation folder as an output that can be resumed."""


def evaluate(
    model: Model | str | Path,
    studies: Sequence[Study] | str | Path,
    folder: str | Path,
    options: EvaluationOptions = DEFAULTS,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Score a model against the references of studies, from every subset of sequences.

    Studies without a reference, and those that have the sequences of no subset, are left out with a warning. A study
    that cannot be scored is named in the record under `failed`, and the others are scored.

    Args:
        model: A loaded model, the folder of one, or `box` for the model of the package. A folder is loaded on the best
            device there is.
        studies: Studies, or a folder of studies in any layout that `glimpseg.data.layouts` knows.
        folder: Output folder. It gets `scores.csv`, `summary.json`, `evaluation.json`, a JSON file for each study
            (`studies/`), the label maps (`labels/<study>/<subset>.nii.gz`), and `notes.csv` with the warnings and notes
            about the studies if there are any.
        options: Protocol, subsets and metrics.
        resume: Go on with an unfinished evaluation of the same model, studies and options. Studies whose files have
            changed are scored again.
        overwrite: Replace an evaluation in the folder, once the new one is done.

    Returns:
        The finished evaluation, as `read_evaluation(folder)` reads it.

    Raises:
        InputError: No study has a reference or the sequences of a subset, none can be scored, or the folder of studies
            cannot be used.
        ModelError: There is no usable model.
        UsageError: The folder is in use, or holds an evaluation of something else; or protocol or list are unknown.
        OutputError: When the disk refuses.

    >>> from tempfile import TemporaryDirectory
    >>> from glimpseg import Modality, phantom
    >>> from glimpseg.phantom.dataset import write_phantoms
    >>> options = EvaluationOptions(subsets=[Modality.T1C, Modality.T1C | Modality.FLAIR], metrics=["dice"])
    >>> with TemporaryDirectory() as folder:
    ...     studies = write_phantoms(f"{folder}/studies", [1], phantom.Settings.at_spacing(4.0), "brats2023")
    ...     evaluation = evaluate("box", f"{folder}/studies", f"{folder}/evaluation", options)
    >>> evaluation.scores.subsets, evaluation.scores.regions
    (['t1c', 't1c+flair'], ['WT', 'TC', 'ET', 'ET_pp', 'RC'])
    >>> evaluation.scores.array("dice", "WT").shape  # studies, subsets
    (1, 2)
    """
    folder = Path(folder)
    tree = options.found or StudyNotices(where=f"{TABLE} has all of them")
    with tree.telling():
        if isinstance(studies, str | Path):
            studies = _studies_in(Path(studies), options.split)
        selection = _select(studies, options.subsets)
    model = model if isinstance(model, Model) else load(model)
    if model.network.shares and len(options.subsets) > 1:
        model = model.by_torch  # for all studies, also where one allows a single subset
    protocol = protocol_named(options.protocol)
    plan = evaluation_plan(model, selection.scored, options)
    kept = FOLDER.open(folder, {**plan, "finished": False}, resume=resume, overwrite=overwrite)
    if kept is not None and kept.get("computed") != plan["computed"]:
        log.warning("This evaluation was begun on another machine, backend or thread count: the last digits may vary.")
    _warn_of_other_intensities(protocol, model.recipe.data.preprocess)
    with folder_lock(folder):
        remove_unfinished(folder)
        write_json(folder / RECORD, {**plan, "finished": False})
        failures = _score_remaining(model, selection.scored, folder, plan, tree=tree)
        if len(failures) == len(selection.scored):
            restore_replaced(folder)
            raise InputError("No study could be scored.\n" + "\n".join(f"{k}: {v}" for k, v in failures.items()))
        results = {
            **write_results(folder, [study for study in selection.scored if study.id not in failures], tree),
            "failed": failures,
            "backend": model.backend.record,
            "without_reference": selection.without_reference,
            "without_subset": selection.without_subset,
            "incomplete": sum(len(study.available) < len(Modality) for study in selection.scored),
        }
        write_json(folder / RECORD, {**plan, **results, "finished": True})
        discard_replaced(folder)
    return read_evaluation(folder)


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """Studies that are scored, and the names of those that are left out."""

    scored: list[Study]
    without_reference: list[str]
    without_subset: list[str]


def _studies_in(folder: Path, split: str | None) -> list[Study]:
    studies = find_studies(folder)
    return studies if split is None else select_studies(studies, split)


def _select(studies: Sequence[Study], subsets: Sequence[Modality]) -> _Selection:
    """Leave out studies without a reference, or without the sequences of any subset; warn of each.

    Raises: InputError if no study remains.
    """
    labelled = [study for study in studies if study.reference is not None]
    if not labelled:
        raise InputError("No study has a reference to score against. Give a folder with seg files.")
    selection = _Selection(
        scored=[study for study in labelled if _available_subsets(study.available, subsets)],
        without_reference=[study.id for study in studies if study.reference is None],
        without_subset=[study.id for study in labelled if not _available_subsets(study.available, subsets)],
    )
    for study in selection.without_reference:
        warn(f"{study} has no reference and is left out.")
    for study in selection.without_subset:
        warn(f"{study} has the sequences of none of the subsets and is left out.")
    if not selection.scored:
        raise InputError("No study has all the sequences of any subset asked for. Name other subsets, or all.")
    return selection


def _available_subsets(available: Modality, subsets: Sequence[Modality]) -> list[Modality]:
    return [subset for subset in subsets if subset in subsets_of(available)]


def _warn_of_other_intensities(protocol: Protocol, settings: Preprocess) -> None:
    # The protocol rfnet shows shifted z-scores. A model that was trained on such images needs no warning.
    trained_on_them = settings.background == "shifted" and settings.scale == "zscore"
    if protocol.caution and not trained_on_them:
        log.warning("%s", protocol.caution)


def _score_remaining(
    model: Model, studies: Sequence[Study], folder: Path, plan: Mapping[str, Any], *, tree: StudyNotices
) -> dict[str, str]:
    """Score every study that is not scored yet, and write its file; return the error message of each that failed.

    `tree` gets the warnings and notes of no scored study: of files that have changed, and of studies that failed.
    """
    with tree.telling():
        todo = [study for study in studies if not is_scored(folder, study)]
    if len(todo) < len(studies):
        log.info("%d of %d studies are scored already.", len(studies) - len(todo), len(studies))
    failures: dict[str, str] = {}
    tasks = _scoring_tasks(model, todo, folder, plan, failures=failures, tree=tree)
    for _ in ahead(tasks, lambda task: task(), SCORED_LATER + 1, finish=True):
        pass
    return failures


def _scoring_tasks(
    model: Model,
    studies: Sequence[Study],
    folder: Path,
    plan: Mapping[str, Any],
    *,
    failures: dict[str, str],
    tree: StudyNotices,
) -> Iterator[Callable[[], None]]:
    """Run the network on study after study; yield a task that scores each prediction, and one that ends each study.

    A study that cannot be prepared yields no task; its error message is added to `failures`, its warnings to `tree`.
    """
    begun = time.perf_counter()
    protocol = protocol_named(plan["protocol"])
    wanted = [subset for subset in SUBSETS if subset.key in plan["subsets"]]
    keep_probabilities = bool(set(plan["metrics"]) & set(OF_PROBABILITIES))
    read = partial(_read, protocol=protocol, settings=model.recipe.data.preprocess)
    for number, study in enumerate(ahead(studies, read, READ_AHEAD + 1), 1):
        if isinstance(study.prepared, InputError):
            failures[study.id] = str(study.prepared)
            log.error("%s cannot be scored: %s", study.id, failures[study.id])
            for kind, text in study.notices.rows():
                tree.add_known(kind, text)
            continue
        subsets = _available_subsets(study.prepared.available, wanted)
        scorer = StudyScorer(
            study.prepared,
            study.digest,
            regions=model.network.regions,
            subsets=subsets,
            plan=plan,
            folder=folder,
            notices=study.notices,
        )
        predictions = infer(
            study.prepared, model, subsets, keep_probabilities=keep_probabilities, weighting=protocol.weighting
        )
        for prediction in study.notices.during(predictions):
            yield partial(scorer.add, prediction)
        study.notices.finish()
        yield scorer.finish
        log.info(f"{number}/{len(studies)} {study.id} ({time.perf_counter() - begun:.0f} s)")


@dataclass(frozen=True, kw_only=True)
class _ReadStudy:
    """A study from the disk: prepared, or the reason why it cannot be."""

    id: str
    digest: str
    prepared: Prepared | InputError
    notices: StudyNotices


def _read(study: Study, protocol: Protocol, settings: Preprocess) -> _ReadStudy:
    notices, digest = StudyNotices(name=study.id, where=f"{TABLE} has all of them"), ""
    prepared: Prepared | InputError
    try:
        with notices.telling():
            digest = study_digest(study)
            prepared = protocol.prepare(study, settings)
    except InputError as error:
        prepared = InputError(without_folders(str(error), study))
    return _ReadStudy(id=study.id, digest=digest, prepared=prepared, notices=notices)
