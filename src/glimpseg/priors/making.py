"""Priors for the studies of a training list, by the recipe's settings: one file beside each prepared study."""

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
from glimpseg.priors.crossfit import cross_fitted
from glimpseg.priors.sam import import_transformers, weights_of
from glimpseg.priors.settings import Prior
from glimpseg.priors.synthetic import spoiled

VERSION = 1
"""Of the synthetic prior; part of every name."""
SYNTHETIC = ("kind", "boundary_mm", "dropped", "seed")
"""The settings that shape it."""


def priors(
    cases: Sequence[Path],
    settings: Prior,
    labels: Sequence[int],
    spacing_mm: float,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """The prior file of each cached study, made now where it is missing; none for the kind `none`.

    Raises: InputError for a study without a reference; and as `cross_fitted`.
    """
    if settings.kind == "none":
        return []
    if settings.kind == "sam":
        return cross_fitted(cases, settings, labels, spacing_mm, folder, device)
    return [_synthetic(path, settings, spacing_mm, folder) for path in cases]


def refuse_held_out(settings: Prior, split: str | None) -> None:
    """Both kinds learn from references, the synthetic one even from the study's own.

    Raises: UsageError if a prior is asked for a list to validate or test on.
    """
    if settings.kind != "none" and split is not None and split.rsplit("/", 1)[-1] != "train":
        what = "is the study's own reference, spoiled" if settings.uses_reference else "is learned from references"
        raise UsageError(
            f"The prior {settings.kind} {what}; {split} is a list to validate or test on. Priors are for training "
            "lists alone: segmenting needs none."
        )


def refuse_unready(settings: Prior) -> None:
    """Before hours of work. Raises: UsageError if what makes the prior is not there."""
    if settings.kind == "sam":
        weights_of(settings)
        import_transformers()


def of_phantom(settings: Prior, spacing_mm: float) -> Callable[[Prepared], UInt8[np.ndarray, "m x y z"]] | None:
    """How the phantoms of a stream get their prior; None for none.

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
        return _each(prepared.target, len(prepared.available), settings, spacing_mm, prepared.id)

    return made


def _synthetic(case: Path, settings: Prior, spacing_mm: float, folder: Path) -> Path:
    about = {"version": VERSION, **{n: v for n, v in asdict(settings).items() if n in SYNTHETIC}}
    path = folder / f"{case.stem}-{prior_key(about, [case.name])}{SUFFIX}"
    if not path.exists():
        found = CachedCase(case)
        target = found.crop((0, 0, 0), found.shape).target
        if target is None:
            raise InputError(f"The study {found.id} has no reference, which the prior synthetic spoils.")
        maps = _each(target, len(found.available), settings, spacing_mm, found.id)
        write_prior(path, maps, {**about, "study": found.id, "uses_reference": True})
    return path


def _each(
    reference: UInt8[np.ndarray, "x y z"], sequences: int, settings: Prior, spacing_mm: float, study: str
) -> UInt8[np.ndarray, "m x y z"]:
    """Each sequence's own spoiled reference; the same for the same study and seed."""
    word = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "little")
    rng = np.random.default_rng([settings.seed, word])
    return np.stack([spoiled(reference, spacing_mm, settings, rng) for _ in range(sequences)])
