"""Priors of a training list, made as the recipe says: one file beside each prepared study."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from glimpseg.data.cache import CachedCase
from glimpseg.data.preprocess import Prepared
from glimpseg.data.prior_cache import SUFFIX, prior_key, write_prior
from glimpseg.errors import InputError, UsageError
from glimpseg.priors.crossfit import cross_fitted_priors
from glimpseg.priors.sam import import_transformers, weights_path
from glimpseg.priors.settings import Prior
from glimpseg.priors.synthetic import perturbed_reference

VERSION = 1
"""Version of the synthetic prior; part of every file name."""
SYNTHETIC = ("kind", "boundary_mm", "dropped", "seed")
"""Settings that decide the synthetic prior."""


def make_priors(
    cases: Sequence[Path],
    settings: Prior,
    labels: Sequence[int],
    spacing_mm: float,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """Return the prior file of each cached study, made now where it is missing; an empty list for the kind `none`.

    Args:
        cases: cache files of the studies.
        settings: settings of the prior.
        labels: labels of the recipe.
        spacing_mm: side of a voxel, in mm.
        folder: cache folder, where the priors lie.
        device: device of SAM's encoder and of the decoders.

    Raises: InputError for a study without a reference, if its prior is missing; for `sam` as `cross_fitted_priors`.
    """
    if settings.kind == "none":
        return []
    if settings.kind == "sam":
        return cross_fitted_priors(cases, settings, labels, spacing_mm=spacing_mm, folder=folder, device=device)
    return [_synthetic_prior(path, settings, spacing_mm, folder) for path in cases]


def refuse_held_out(settings: Prior, split: str | None) -> None:
    """Refuse priors for a list to validate or test on, because both kinds learn from references.

    Args:
        settings: settings of the prior.
        split: name of the list. Allowed are `train`, names that end in `/train`, and None (no list).

    Raises: UsageError if a prior of any kind but `none` is asked for another list.
    """
    if settings.kind != "none" and split is not None and split.rsplit("/", 1)[-1] != "train":
        what = "is the study's own reference, spoiled" if settings.uses_reference else "is learned from references"
        raise UsageError(
            f"The prior {settings.kind} {what}; {split} is a list to validate or test on. Priors are for training "
            "lists alone: segmenting needs none."
        )


def refuse_unready(settings: Prior) -> None:
    """Check, before hours of work, that the weights and the package of the prior `sam` are there.

    Raises: UsageError if they are not. Other kinds need nothing.
    """
    if settings.kind == "sam":
        weights_path(settings)
        import_transformers()


def phantom_prior(settings: Prior, spacing_mm: float) -> Callable[[Prepared], UInt8[np.ndarray, "m x y z"]] | None:
    """Return the function that makes the prior of a streamed phantom; None for the kind `none`.

    Raises: UsageError for a kind that needs a fixed list of studies.
    """
    if settings.kind == "sam":
        raise UsageError(
            "The prior sam is cross-fitted over a fixed list of studies, and a stream of phantoms has none: write "
            "phantoms with `glimpseg phantom` and name their folder with --data."
        )
    if settings.kind == "none":
        return None

    def made(prepared: Prepared) -> UInt8[np.ndarray, "m x y z"]:
        assert prepared.target is not None
        return _sequence_priors(
            prepared.target, len(prepared.available), settings, spacing_mm=spacing_mm, study=prepared.id
        )

    return made


def _synthetic_prior(case: Path, settings: Prior, spacing_mm: float, folder: Path) -> Path:
    facts = {"version": VERSION, **{n: v for n, v in asdict(settings).items() if n in SYNTHETIC}}
    path = folder / f"{case.stem}-{prior_key(facts, [case.name])}{SUFFIX}"
    if not path.exists():
        study = CachedCase(case)
        target = study.crop((0, 0, 0), study.shape).target
        if target is None:
            raise InputError(f"The study {study.id} has no reference, which the prior synthetic spoils.")
        maps = _sequence_priors(target, len(study.available), settings, spacing_mm=spacing_mm, study=study.id)
        write_prior(path, maps, {**facts, "study": study.id, "uses_reference": True})
    return path


def _sequence_priors(
    reference: UInt8[np.ndarray, "x y z"], sequences: int, settings: Prior, spacing_mm: float, study: str
) -> UInt8[np.ndarray, "m x y z"]:
    """Return a perturbed reference for each sequence; the same for the same study and seed."""
    word = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "little")
    rng = np.random.default_rng([settings.seed, word])
    return np.stack([perturbed_reference(reference, spacing_mm, settings, rng) for _ in range(sequences)])
