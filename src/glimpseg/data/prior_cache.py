"""Prior (pseudo-label) maps on disk: one safetensors file beside each prepared study, read crop by crop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glimpseg.data.cache import CachedCase, Slices
from glimpseg.errors import InputError
from glimpseg.runtime.atomic import atomic_file
from glimpseg.runtime.documents import parse_json

SUFFIX = ".prior.safetensors"
"""End of the file name."""


def prior_key(about: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a key for the file name: a hash of the settings and of the names of the cache entries."""
    return hashlib.sha256(json.dumps([dict(about), list(names)], sort_keys=True).encode()).hexdigest()[:16]


def write_prior(path: Path, labels: UInt8[np.ndarray, "m x y z"], record: Mapping[str, Any]) -> None:
    """Write the prior maps of one study.

    Args:
        path: file to write, atomically.
        labels: `Label` values from each present modality.
        record: provenance; its entry `study` is the id of the study.
    """
    metadata = {"record": json.dumps(dict(record), sort_keys=True), "digest": _digest(labels)}
    with atomic_file(path) as temporary:
        save_file({"prior": np.ascontiguousarray(labels)}, temporary, metadata)


def open_case(case: Path, prior: Path | None) -> CachedCase:
    """Open a cached study together with its prior maps, if any.

    Raises: InputError for a damaged file, or for a prior of another study.
    """
    cached = CachedCase(case)
    if prior is None:
        return cached
    try:
        with safe_open(prior, "np") as file:
            labels, digest = file.get_tensor("prior"), file.metadata()["digest"]
            study = parse_json(file.metadata()["record"])["study"]
        if labels.dtype != np.uint8:
            raise TypeError(f"its numbers are {labels.dtype}, not uint8")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The prior {prior} is damaged ({error}). Delete it; it will be made again.") from error
    if _digest(labels) != digest:
        raise InputError(f"The prior {prior} is damaged: its checksum differs. Delete it; it will be made again.")
    shape = (len(cached.available), *cached.shape)
    if labels.shape != shape or study != cached.id:
        raise InputError(
            f"The prior {prior} is of {study} and has {labels.shape} voxels, the study {cached.id} has {shape}. "
            "It belongs to another. Delete it; it will be made again."
        )
    cached.prior = Slices(prior)["prior"]
    return cached


def _digest(labels: UInt8[np.ndarray, "..."]) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
