"""Prepared studies on disk: one safetensors file each, named by content, written whole, read crop by crop.

The key covers the bytes of every input file, the settings and the preprocessing version: a changed file or
setting is another entry, never a stale one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glimpseg.data import preprocess
from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.errors import InputError
from glimpseg.modality import Modality, parse
from glimpseg.runtime.atomic import atomic_file
from glimpseg.study import Frame, Study

MAXIMAL_SEEDS = 2000
"""Tumour voxels remembered for each label, as centres of crops; nnU-Net keeps 10,000."""


class Crop(NamedTuple):
    """A box cut out of a case, as narrow as it is stored (float16, uint8); outside the study, air.

    It may share its memory with the case: not to be changed in place.
    """

    image: Float[np.ndarray, "m x y z"]
    target: UInt8[np.ndarray, "x y z"] | None
    prior: UInt8[np.ndarray, "m x y z"] | None


class Case:
    """A prepared study that gives crops: from memory, or from a cache file without reading the rest."""

    prior: Any = None
    """What is supposed of the labels from each present modality by itself (see `glimpseg.priors`), or None."""

    def __init__(self, study: str, available: Modality, arrays: Any, seeds: Int[np.ndarray, "n 4"]) -> None:
        self.id = study
        self.available = available
        self.seeds = seeds
        """Tumour voxels: label, x, y, z."""
        # Rounded as the voxels are, so that what is padded equals the air that is stored.
        self._levels: Float[np.ndarray, "n"] = np.asarray(arrays["levels"][:], np.float16)
        self._image = arrays["image"]
        self._target = arrays["target"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the prepared grid."""
        return tuple(_shape(self._image)[1:])  # type: ignore[return-value]

    @property
    def has_target(self) -> bool:
        """Whether a reference exists."""
        return _shape(self._target)[0] > 0

    def level(self, modality: Modality) -> float:
        """What air is in a present modality."""
        return float(self._levels[list(self.available).index(modality)])

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Crop:
        """The box that begins at voxel `start` (may be negative)."""
        low, high = (np.clip(np.add(start, ahead), 0, self.shape) for ahead in (0, size))
        if (low >= high).any():  # safetensors reads nothing only at the beginning
            low, high = np.zeros_like(low), np.zeros_like(high)
        box = tuple(map(slice, low.tolist(), high.tolist()))
        into = tuple(map(slice, low - start, high - start))
        channels = [channel for channel, modality in enumerate(Modality) if modality in self.available]
        whole = (len(Modality), *size)
        return Crop(
            image=_laid(whole, channels, into, self._image[(slice(None), *box)], self._levels),
            target=_laid((1, *size), [0], into, self._target[box][None])[0] if self.has_target else None,
            prior=None if self.prior is None else _laid(whole, channels, into, self.prior[(slice(None), *box)]),
        )


class CachedCase(Case):
    """A case in a cache file. Opening checks the digest, so that a flipped bit is noticed before it is learned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata()
                seeds = file.get_tensor("seeds")
                arrays = {name: file.get_tensor(name) for name in ("image", "target", "levels")}
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(
                f"The cache entry {path} is damaged ({error}). Delete it; it will be made again."
            ) from error
        if _digest(arrays) != metadata["digest"]:
            raise InputError(
                f"The cache entry {path} is damaged: its checksum differs. Delete it; it will be made again."
            )
        super().__init__(metadata["id"], parse(metadata["available"]), Slices(path), seeds)


class Slices:
    """Arrays of a safetensors file that are read slice by slice; the file is mapped on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, "np").__enter__()  # mapped for the life of the process

    def __getitem__(self, name: str) -> Any:
        return self._file.get_slice(name)


def in_memory(prepared: Prepared) -> Case:
    """A case that holds its arrays."""
    return Case(prepared.id, prepared.available, _arrays(prepared), _seeds(prepared))


def cached(study: Study, settings: Preprocess, folder: str | Path) -> Path:
    """The cache file of a study, made now if it is not there. Raises: InputError as `prepare`."""
    readable = re.sub(r"[^\w.-]", "_", study.id)
    path = Path(folder) / f"{readable}-{cache_key(study, settings)[:16]}.safetensors"
    if path.exists():
        return path
    prepared = prepare(study, settings)
    arrays = _arrays(prepared)
    metadata = {
        "id": study.id,
        "available": prepared.available.key,
        "affine": json.dumps(prepared.grid.affine.tolist()),
        "settings": json.dumps(dataclasses.asdict(settings)),
        "digest": _digest(arrays),
    }
    with atomic_file(path) as temporary:
        save_file({**arrays, "seeds": _seeds(prepared)}, temporary, metadata)
    return path


def cache_key(study: Study, settings: Preprocess) -> str:
    """Hexadecimal digest of everything that decides the prepared voxels."""
    digest = hashlib.sha256(f"{preprocess.VERSION} {json.dumps(dataclasses.asdict(settings), sort_keys=True)}".encode())
    _feed(digest, study)
    return digest.hexdigest()


def study_digest(study: Study) -> str:
    """Hexadecimal digest of a study's id, label convention and the bytes of its files.

    Raises: InputError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    _feed(digest, study)
    return digest.hexdigest()


def _feed(digest: Any, study: Study) -> None:
    digest.update(f"{study.id} {study.convention.name if study.convention else None}".encode())
    parts = [(modality.key, study.images[modality]) for modality in Modality if modality in study.images]
    for name, part in [*parts, ("reference", study.reference), ("brain", study.brain)]:
        digest.update(name.encode())
        if isinstance(part, Path):
            digest.update(file_digest(part))
        elif isinstance(part, Frame):
            digest.update(file_digest(part.path) + part.number.to_bytes(4))
        elif part is not None:
            digest.update(np.ascontiguousarray(part.voxels).tobytes() + part.affine.tobytes())


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file. Raises: InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _arrays(prepared: Prepared) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Present modalities as float16 (exact enough for +-5 at 1/500), their levels of air, and the target, empty if
    there is none."""
    present = [channel for channel, modality in enumerate(Modality) if modality in prepared.available]
    target = prepared.target if prepared.target is not None else np.zeros((0, 0, 0), np.uint8)
    return {
        "image": np.ascontiguousarray(prepared.image[present], np.float16),
        "levels": prepared.levels[present],
        "target": np.ascontiguousarray(target),
    }


def _seeds(prepared: Prepared) -> Int[np.ndarray, "n 4"]:
    if prepared.target is None:
        return np.zeros((0, 4), np.int32)
    seeds = []
    for label in np.unique(prepared.target[prepared.target > 0]):
        places = np.argwhere(prepared.target == label)
        chosen = places[:: -(-len(places) // MAXIMAL_SEEDS)]
        seeds.append(np.concatenate([np.full((len(chosen), 1), label), chosen], axis=1))
    # In C order: safetensors writes an array as it lies in memory and reads it back as if in C order.
    return np.ascontiguousarray(np.concatenate(seeds), np.int32) if seeds else np.zeros((0, 4), np.int32)


def _laid(
    shape: tuple[int, ...],
    channels: list[int],
    into: tuple[slice, ...],
    values: Shaped[np.ndarray, "n i j k"],
    air: Shaped[np.ndarray, "n"] | int = 0,
) -> Shaped[np.ndarray, "m x y z"]:
    """Channels' voxels in their place among others, air around them, 0 in channels that are not there."""
    if values.shape == shape:
        return values
    laid = np.zeros(shape, values.dtype)
    if values.shape[1:] != shape[1:]:
        laid[channels] = np.reshape(air, (-1, 1, 1, 1))
    for channel, part in zip(channels, values, strict=True):
        laid[channel][into] = part
    return laid


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _shape(array: Any) -> list[int]:
    return list(array.shape) if isinstance(array, np.ndarray) else list(array.get_shape())
