"""Cache of prepared studies: one safetensors file each, named by content, written atomically, read crop by crop.

The key of an entry covers the bytes of every input file, the settings and the preprocessing version. After a change of
a file or a setting a new entry is made; an old entry is never used by mistake.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glimpseg.data import preprocess
from glimpseg.data.notices import Notices, collected
from glimpseg.data.preprocess import Prepared, Preprocess, prepare
from glimpseg.errors import InputError
from glimpseg.modality import Modality, parse
from glimpseg.region import Label
from glimpseg.runtime.atomic import atomic_file
from glimpseg.runtime.documents import parse_json
from glimpseg.study import Frame, Study

NOTICES = "notices"
"""Field of the metadata that holds the warnings and notes about the study, as JSON."""
MAXIMAL_SEEDS = 2000
"""Most tumour voxels stored for each label, as centres of crops; nnU-Net stores 10,000."""


class Crop(NamedTuple):
    """Box cut out of a case in the stored types (float16, uint8).

    Outside the study, the image is padded with air and label maps with 0. Absent modalities are 0 everywhere.
    It may share memory with the case and must not be changed in place.
    """

    image: Float[np.ndarray, "m x y z"]
    target: UInt8[np.ndarray, "x y z"] | None
    prior: UInt8[np.ndarray, "m x y z"] | None


class Case:
    """Prepared study that gives crops, from memory or from a cache file without reading the rest of it."""

    prior: Any = None
    """Prior (pseudo-label) maps from each present modality alone (see `glimpseg.priors`), or None."""

    def __init__(self, study: str, available: Modality, arrays: Any, seeds: Int[np.ndarray, "n 4"]) -> None:
        self.id = study
        self.available = available
        self.seeds = seeds
        """Tumour voxels as centres of crops: label, x, y, z."""
        # Rounded like the stored voxels, so that padding equals stored air.
        self._levels: Float[np.ndarray, "n"] = np.asarray(arrays["levels"][:], np.float16)
        self._image = arrays["image"]
        self._target = arrays["target"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels of the prepared grid along each axis."""
        return tuple(_shape(self._image)[1:])  # type: ignore[return-value]

    @property
    def has_target(self) -> bool:
        """True if the study has a reference."""
        return _shape(self._target)[0] > 0

    def level(self, modality: Modality) -> float:
        """Return the intensity of air in a present modality."""
        return float(self._levels[list(self.available).index(modality)])

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Crop:
        """Cut out the box of `size` voxels that begins at voxel `start`, which may be negative."""
        low, high = (np.clip(np.add(start, offset), 0, self.shape) for offset in (0, size))
        if (low >= high).any():  # safetensors reads an empty slice only at the beginning
            low, high = np.zeros_like(low), np.zeros_like(high)
        box = tuple(map(slice, low.tolist(), high.tolist()))
        into = tuple(map(slice, low - start, high - start))
        channels = [channel for channel, modality in enumerate(Modality) if modality in self.available]
        whole = (len(Modality), *size)
        return Crop(
            image=_padded(whole, channels, into, self._image[(slice(None), *box)], air=self._levels),
            target=_padded((1, *size), [0], into, self._target[box][None])[0] if self.has_target else None,
            prior=None if self.prior is None else _padded(whole, channels, into, self.prior[(slice(None), *box)]),
        )


class CachedCase(Case):
    """Case in a cache file. A digest of its voxels is checked on opening, so that damage is noticed before training.

    Raises: InputError if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                digest, study, available = (metadata[name] for name in ("digest", "id", "available"))
                seeds = file.get_tensor("seeds")
                arrays = {name: file.get_tensor(name) for name in ("image", "target", "levels")}
            _check_forms({**arrays, "seeds": seeds}, parse(available))
        except (
            SafetensorError,
            OSError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # TypeError: a type that numpy lacks
            raise InputError(
                f"The cache entry {path} is damaged ({error}). Delete it; it will be made again."
            ) from error
        if _digest(arrays) != digest:
            raise InputError(
                f"The cache entry {path} is damaged: its checksum differs. Delete it; it will be made again."
            )
        super().__init__(study, parse(available), Slices(path), seeds)


class Slices:
    """Arrays of a safetensors file, read slice by slice. The file is memory-mapped on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, "np").__enter__()  # stays mapped until the process ends

    def __getitem__(self, name: str) -> Any:
        return self._file.get_slice(name)


def in_memory(prepared: Prepared) -> Case:
    """Make a case that holds its arrays in memory."""
    return Case(prepared.id, prepared.available, _arrays(prepared), _seeds(prepared))


def cache_study(study: Study, settings: Preprocess, folder: str | Path) -> Path:
    """Return the cache file of a study, and make it if it is missing.

    Raises: InputError as `prepare`; OutputError if it cannot be written.
    """
    readable = re.sub(r"[^\w.-]", "_", study.id)
    path = Path(folder) / f"{readable}-{cache_key(study, settings)[:16]}.safetensors"
    if path.exists():
        return path
    with collected() as notices:
        prepared = prepare(study, settings)
    arrays = _arrays(prepared)
    metadata = {
        "id": study.id,
        "available": prepared.available.key,
        "affine": json.dumps(prepared.grid.affine.tolist()),
        "settings": json.dumps(dataclasses.asdict(settings)),
        "digest": _digest(arrays),
        NOTICES: json.dumps(notices.as_tree()),
    }
    with atomic_file(path) as temporary:
        save_file({**arrays, "seeds": _seeds(prepared)}, temporary, metadata)
    return path


def cached_notices(path: Path) -> Notices:
    """Return the warnings and notes about a study when its cache file was made; none for files of older versions.

    Raises: InputError if the file is damaged.
    """
    try:
        with safe_open(path, "np") as file:
            return Notices(**parse_json((file.metadata() or {}).get(NOTICES, "{}")))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"The cache entry {path} is damaged ({error}). Delete it; it will be made again.") from error


def label_counts(path: Path) -> tuple[Int[np.ndarray, "n"], float]:
    """Return the number of voxels of each label in a cache file, and the volume of a voxel in ml.

    Only the reference is read. There are 0 voxels without a reference.

    Raises: InputError if the file is damaged.
    """
    try:
        with safe_open(path, "np") as file:
            target, affine = file.get_tensor("target"), np.array(json.loads((file.metadata() or {})["affine"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"The cache entry {path} is damaged ({error}). Delete it; it will be made again.") from error
    voxel = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    return np.bincount(target.ravel(), minlength=max(Label) + 1), voxel


def cache_key(study: Study, settings: Preprocess) -> str:
    """Return the cache key of a study: a hexadecimal digest of the content of `study_digest`, settings and `VERSION`.

    Raises: InputError for a file that cannot be read.
    """
    digest = hashlib.sha256(f"{preprocess.VERSION} {json.dumps(dataclasses.asdict(settings), sort_keys=True)}".encode())
    _feed(digest, study)
    return digest.hexdigest()


def study_digest(study: Study) -> str:
    """Return a hexadecimal digest of the id of a study, the name of its convention and its files' bytes (or voxels).

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
    """Return the SHA-256 of a file. Raises: InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _arrays(prepared: Prepared) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of an entry: present modalities as float16, their intensities of air, and the target (empty if none).

    float16 resolves 1/500 for values up to +-5.
    """
    present = [channel for channel, modality in enumerate(Modality) if modality in prepared.available]
    target = prepared.target if prepared.target is not None else np.zeros((0, 0, 0), np.uint8)
    return {
        "image": np.ascontiguousarray(prepared.image[present], np.float16),
        "levels": prepared.levels[present],
        "target": np.ascontiguousarray(target),
    }


def _seeds(prepared: Prepared) -> Int[np.ndarray, "n 4"]:
    """Tumour voxels of each label, evenly thinned to at most `MAXIMAL_SEEDS`."""
    if prepared.target is None:
        return np.zeros((0, 4), np.int32)
    seeds = []
    for label in np.unique(prepared.target[prepared.target > 0]):
        places = np.argwhere(prepared.target == label)
        chosen = places[:: -(-len(places) // MAXIMAL_SEEDS)]
        seeds.append(np.concatenate([np.full((len(chosen), 1), label), chosen], axis=1))
    # In C order, because safetensors writes an array in its memory order and reads it back in C order.
    return np.ascontiguousarray(np.concatenate(seeds), np.int32) if seeds else np.zeros((0, 4), np.int32)


def _check_forms(arrays: Mapping[str, Shaped[np.ndarray, "..."]], available: Modality) -> None:
    """Check types and shapes of an entry's arrays; the digest covers their bytes only. Raises: ValueError."""
    grid = arrays["image"].shape[1:]
    wanted = {
        "image": ("float16", (len(available), *grid)),
        "levels": ("float32", (len(available),)),
        "target": ("uint8", grid if arrays["target"].size else (0, 0, 0)),
        "seeds": ("int32", (len(arrays["seeds"]), 4)),
    }
    for name, (kind, shape) in wanted.items():
        found = arrays[name]
        if len(grid) != 3 or found.dtype != kind or found.shape != shape:
            raise ValueError(f"{name} is {found.dtype} of the shape {found.shape}, not {kind} of {shape}")


def _padded(
    shape: tuple[int, ...],
    channels: list[int],
    into: tuple[slice, ...],
    values: Shaped[np.ndarray, "n i j k"],
    air: Shaped[np.ndarray, "n"] | int = 0,
) -> Shaped[np.ndarray, "m x y z"]:
    """Return an array of `shape` with `values` in the box `into` of the channels `channels`.

    Around the box these channels hold `air`, one number for each of them. All other channels hold 0. `values` that have
    this shape already are returned themselves.
    """
    if values.shape == shape:
        return values
    padded = np.zeros(shape, values.dtype)
    if values.shape[1:] != shape[1:]:
        padded[channels] = np.reshape(air, (-1, 1, 1, 1))
    for channel, part in zip(channels, values, strict=True):
        padded[channel][into] = part
    return padded


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _shape(array: Any) -> list[int]:
    return list(array.shape) if isinstance(array, np.ndarray) else list(array.get_shape())
