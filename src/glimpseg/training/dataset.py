"""What a run learns from: a folder of studies, prepared once, or a stream of phantoms."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimpseg import methods, phantom
from glimpseg.data.cache import cached
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import CachedStudies, Cases
from glimpseg.data.splits import chosen
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import SUBSETS
from glimpseg.phantom.training_stream import PhantomStream
from glimpseg.priors.making import make_priors, phantom_prior, refuse_held_out
from glimpseg.priors.sam import weights_digest, weights_path
from glimpseg.priors.settings import Prior
from glimpseg.recipe import Recipe
from glimpseg.study import Study
from glimpseg.training.checks import refuse_unfit

log = logging.getLogger(__name__)


def prepare(
    studies: Sequence[Study], recipe: Recipe, folder: Path, *, device: torch.device, split: str | None = None
) -> tuple[list[Path], list[Path]]:
    """The cache files of all studies, and of their priors if the recipe has any; made where they are missing. `split`
    is the name of the list that the studies were chosen by.

    Raises: InputError as `prepare_studies`; UsageError for priors that cannot be made, or of a list that is not for
        training.
    """
    refuse_held_out(recipe.data.prior, split)
    refuse_unfit(recipe)
    return _prepared(studies, recipe, folder, device)


def _prepared(
    studies: Sequence[Study], recipe: Recipe, folder: Path, device: torch.device
) -> tuple[list[Path], list[Path]]:
    paths = prepare_studies(studies, recipe, folder)
    spacing_mm = recipe.data.preprocess.spacing_mm
    return paths, make_priors(paths, recipe.data.prior, recipe.label_values, spacing_mm, folder, device)


def prepare_studies(studies: Sequence[Study], recipe: Recipe, folder: Path) -> list[Path]:
    """The cache files of all studies, made where they are missing.

    Raises: InputError naming every study that cannot be prepared, once all have been tried.
    """
    paths, failures = [], []
    for study in studies:
        try:
            paths.append(cached(study, recipe.data.preprocess, folder))
        except InputError as error:
            failures.append(f"{study.id}: {error}")
    if failures:
        raise InputError(
            f"{len(failures)} of {len(studies)} studies cannot be used; repair them or move them away.\n"
            + "\n".join(failures)
        )
    return paths


def studies_of(
    recipe: Recipe, data: str | Path | None, labels: str | None, split: str | None
) -> tuple[list[Study], str | None]:
    """The studies to learn from, none for the recipe's phantoms, and what the method says of them."""
    prior = recipe.data.prior
    if prior.uses_reference:
        log.warning("The prior %s is made of the references themselves: what comes of it is no result.", prior.kind)
    if data is None:
        if recipe.data.stream is None:
            raise UsageError("This recipe has no phantom stream: name a folder of studies with --data.")
        if recipe.data.labelled < 1:
            raise UsageError("A share of an endless stream is endless: name a folder of studies with --data.")
        phantom_prior(prior, recipe.data.preprocess.spacing_mm)
        return [], None
    refuse_held_out(prior, split)
    # Pretraining can learn nothing of a reference, and one that is broken is not in its way.
    studies = find_studies(data, labels=labels, references="required" if recipe.backbone is None else "ignored")
    studies = chosen(studies, split) if split else studies
    studies = some_of(studies, recipe.data.labelled, recipe.seed)
    return studies, methods.module(recipe.method).METHOD.archive_note(Counter(study.available for study in studies))


def some_of(studies: Sequence[Study], share: float, seed: int) -> list[Study]:
    """A share of the studies, at least one, in their order; of one seed, a smaller share is part of a larger one."""
    count = max(round(share * len(studies)), 1)
    first = np.random.default_rng([seed, len(studies)]).permutation(len(studies))[:count]
    return [studies[number] for number in sorted(first.tolist())]


def cases_of(
    recipe: Recipe, run: Path, studies: list[Study], split: str | None, cache: str | Path | None, device: torch.device
) -> tuple[Cases, dict[str, Any]]:
    """Where samples come from, and what provenance should know of it."""
    settings, prior = recipe.data.preprocess, recipe.data.prior
    if not studies:
        assert recipe.data.stream is not None
        made = phantom_prior(prior, settings.spacing_mm)
        return PhantomStream(recipe.data.stream, settings, made, device), {
            "data": {"stream": phantom.NAME, **_named(prior, [])}
        }
    folder = Path(cache) if cache else run / "cache"
    paths, supposed = _prepared(studies, recipe, folder, device)
    have = {subset.key: sum(study.available == subset for study in studies) for subset in SUBSETS}
    log.info("%d studies: %s", len(studies), ", ".join(f"{count} with {key}" for key, count in have.items() if count))
    convention = studies[0].convention
    return CachedStudies(paths, supposed), {
        "data": {
            "studies": len(studies),
            "split": split,
            "available": {key: count for key, count in have.items() if count},
            "labels": convention.name if convention else None,
            "digest": _names_digest(paths),
            **_named(prior, supposed),
        }
    }


def _named(prior: Prior, files: Sequence[Path]) -> dict[str, Any]:
    """The prior as every output of the model names it, nothing for none. Names of files say what is in them."""
    if prior.kind == "none":
        return {}
    named: dict[str, Any] = {"kind": prior.kind, "uses_reference": prior.uses_reference}
    if prior.kind == "sam":
        named["weights"] = weights_digest(weights_path(prior))
    if files:
        named["digest"] = _names_digest(files)
    return {"prior": named}


def _names_digest(files: Sequence[Path]) -> str:
    """Of files that are named by their content."""
    return hashlib.sha256("\n".join(sorted(path.name for path in files)).encode()).hexdigest()
