"""Training dataset: a folder of studies, preprocessed once, or a stream of phantoms."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from glimpseg import methods
from glimpseg.data.cache import cache_study, cached_notices, label_counts
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import CachedStudies, Cases
from glimpseg.data.notices import TABLE, TREE, Notices, StudyNotices, write_table
from glimpseg.data.splits import select_studies
from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.modality import SUBSETS
from glimpseg.model.training_volumes import FIELD
from glimpseg.phantom.training_stream import PhantomStream
from glimpseg.priors.making import make_priors, phantom_prior, refuse_held_out
from glimpseg.priors.sam import weights_digest, weights_path
from glimpseg.priors.settings import Prior
from glimpseg.recipe import Recipe
from glimpseg.region import Region
from glimpseg.runtime.distributed import rank_and_world
from glimpseg.study import Study
from glimpseg.training.checks import refuse_unfit
from glimpseg.training.options import TrainOptions

log = logging.getLogger(__name__)


def prepare(
    studies: Sequence[Study],
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    split: str | None = None,
    found: Notices | None = None,
) -> tuple[list[Path], list[Path]]:
    """Return the cache files of all studies and of their priors, made where they are missing.

    Args:
        studies: The studies.
        recipe: Names preprocessing and prior.
        folder: Folder of the cache files.
        device: Device that makes the priors.
        split: Published list that the studies were chosen by; None for none.
        found: Warnings and notes of the search for the studies, for `notes.csv`.

    Returns: The files of the studies and, if the recipe has a prior, those of the priors, in the order of the studies.

    Raises: InputError as `prepare_studies`; UsageError if the method cannot use the recipe's crops or prior, a prior
        cannot be made, or the list is not for training; OutputError when the disk refuses.
    """
    refuse_held_out(recipe.data.prior, split)
    refuse_unfit(recipe)
    return _prepared(studies, recipe, folder, device=device, found=found)


def _prepared(
    studies: Sequence[Study], recipe: Recipe, folder: Path, *, device: torch.device, found: Notices | None
) -> tuple[list[Path], list[Path]]:
    paths = prepare_studies(studies, recipe, folder, found)
    spacing_mm = recipe.data.preprocess.spacing_mm
    return paths, make_priors(paths, recipe.data.prior, recipe.label_values, spacing_mm, folder=folder, device=device)


def prepare_studies(studies: Sequence[Study], recipe: Recipe, folder: Path, found: Notices | None = None) -> list[Path]:
    """Return the cache files of all studies, in their order, made where they are missing.

    What was said about a study that was in the cache already is counted, not told again. `notes.csv` in the folder has
    the warnings and notes of all studies, and those of `found`.

    Raises: InputError naming every study that cannot be prepared, after all were tried; OutputError when the disk
        refuses.
    """
    paths, failures, earlier, said = [], [], 0, [(TREE, found or Notices())]
    for study in studies:
        notices = StudyNotices(name=study.id, where=f"{TABLE} in the cache has all of them")
        try:
            with notices.telling():
                paths.append(cache_study(study, recipe.data.preprocess, folder))
            kept = cached_notices(paths[-1])
        except InputError as error:
            failures.append(f"{study.id}: {error}")
        else:
            said.append((study.id, kept))
            earlier += any(kept.rows()) and not any(notices.rows())
    if rank_and_world()[0] == 0:
        _write_table(folder / TABLE, said)
        if earlier:
            log.info("%d studies of the cache have warnings or notes: %s there has all of them.", earlier, TABLE)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(studies)} studies cannot be used; repair them or move them away.\n"
            + "\n".join(failures)
        )
    return paths


def _write_table(path: Path, said: Sequence[tuple[str, Notices]]) -> None:
    """Write `notes.csv` of a cache; warn if the cache is read-only, as one may be that holds all that is needed."""
    try:
        write_table(path, said)
    except OutputError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.warning("The cache is read-only, so its %s stays as it is, and may be of other studies.", TABLE)


def find_training_studies(recipe: Recipe, options: TrainOptions) -> tuple[list[Study], str | None]:
    """Return the studies to learn from, and the method's note on the dataset (`dataset_note`), None for no note.

    Without `options.data`, which means the recipe's stream of phantoms, there are no studies and no note. For a
    pretraining references are ignored; otherwise studies without one are left out.

    Raises: UsageError if there are no data, or the recipe cannot be used with them, or the list is unknown; InputError
        as `find_studies`.
    """
    prior = recipe.data.prior
    if prior.uses_reference:
        log.warning("The prior %s is made of the references themselves: what comes of it is no result.", prior.kind)
    if options.data is None:
        if recipe.data.stream is None:
            raise UsageError("This recipe has no phantom stream: name a folder of studies with --data.")
        if recipe.data.labelled < 1:
            raise UsageError("A share of an endless stream is endless: name a folder of studies with --data.")
        phantom_prior(prior, recipe.data.preprocess.spacing_mm)
        return [], None
    refuse_held_out(prior, options.split)
    # Pretraining uses no reference, and so a broken one is no obstacle.
    references: Literal["required", "ignored"] = "required" if recipe.backbone is None else "ignored"
    studies = find_studies(options.data, labels=options.labels, references=references)
    studies = select_studies(studies, options.split) if options.split else studies
    studies = labelled_share(studies, recipe.data.labelled, recipe.seed)
    return studies, methods.module(recipe.method).METHOD.dataset_note(Counter(study.available for study in studies))


def labelled_share(studies: Sequence[Study], share: float, seed: int) -> list[Study]:
    """Return a random share of the studies, at least one, in their order.

    For the same studies and seed, every study of a smaller share is in a larger one, too.
    """
    count = max(round(share * len(studies)), 1)
    first = np.random.default_rng([seed, len(studies)]).permutation(len(studies))[:count]
    return [studies[number] for number in sorted(first.tolist())]


def open_cases(
    recipe: Recipe, run: Path, studies: list[Study], options: TrainOptions, *, found: Notices | None = None
) -> tuple[Cases, dict[str, Any]]:
    """Return the source of training samples, and the field `data` of the provenance as a dict.

    Args:
        recipe: Names preprocessing, prior and stream.
        run: The run folder; holds the cache if `options.cache` names no other folder.
        studies: The studies to learn from; none for the recipe's stream of phantoms.
        options: `split`, `cache` and `device` are used.
        found: Warnings and notes of the search for the studies, for `notes.csv` in the cache.

    Raises: InputError as `prepare_studies`; UsageError if a prior cannot be made; OutputError when the disk refuses.
    """
    settings, prior = recipe.data.preprocess, recipe.data.prior
    if not studies:
        assert recipe.data.stream is not None
        make_prior = phantom_prior(prior, settings.spacing_mm)
        stream = PhantomStream(recipe.data.stream, settings, make_prior, options.device)
        return stream, {"data": {"stream": recipe.data.stream.name, **_prior_record(prior, [])}}
    folder = Path(options.cache) if options.cache else run / "cache"
    paths, prior_paths = _prepared(studies, recipe, folder, device=options.device, found=found)
    have = {subset.key: sum(study.available == subset for study in studies) for subset in SUBSETS}
    log.info("%d studies: %s", len(studies), ", ".join(f"{count} with {key}" for key, count in have.items() if count))
    convention = studies[0].convention
    cases, largest = CachedStudies(paths, prior_paths), largest_in_cache(paths)
    return cases, {
        **({FIELD: largest} if largest else {}),
        "data": {
            "studies": len(studies),
            "split": options.split,
            "available": {key: count for key, count in have.items() if count},
            "labels": convention.name if convention else None,
            "digest": _names_digest(paths),
            **_prior_record(prior, prior_paths),
        },
    }


def largest_in_cache(paths: Sequence[Path]) -> dict[str, float]:
    """Return the largest volume of each region in cached studies, in ml, by the region's name; empty if none has one.

    The review of a segmentation compares volumes with it. Only the references are read.
    """
    largest: dict[str, float] = {}
    for path in paths:
        counts, voxel = label_counts(path)
        for region in Region:
            ml = voxel * sum(int(counts[label]) for label in region.value)
            largest[region.name] = max(largest.get(region.name, 0.0), round(ml, 1))
    return {name: ml for name, ml in largest.items() if ml > 0}


def _prior_record(prior: Prior, files: Sequence[Path]) -> dict[str, Any]:
    """Return a dict with the field `prior` of the provenance; empty for no prior.

    `files` are named by their content.
    """
    if prior.kind == "none":
        return {}
    record: dict[str, Any] = {"kind": prior.kind, "uses_reference": prior.uses_reference}
    if prior.kind == "sam":
        record["weights"] = weights_digest(weights_path(prior))
    if files:
        record["digest"] = _names_digest(files)
    return {"prior": record}


def _names_digest(files: Sequence[Path]) -> str:
    """Return one digest of files that are named by their content."""
    return hashlib.sha256("\n".join(sorted(path.name for path in files)).encode()).hexdigest()
