"""Model folder: weights, recipe and provenance on the disk.

No code is run when a folder is read: weights are safetensors, everything else is YAML and JSON. The SHA-256 of every
file stands in `provenance.json`, because safetensors does not notice a flipped bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glimpseg import methods
from glimpseg.errors import ModelError, UsageError
from glimpseg.model.digests import sha256_of
from glimpseg.model.provenance import environment
from glimpseg.recipe import Recipe
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.runtime.documents import DocumentError, read_json, read_yaml
from glimpseg.version import __version__

FORMAT = 1
"""Version of the folder's format. Another one is refused."""
OWN_METHODS = "own_methods"
"""Field of `provenance.json`: SHA-256 of the source of each method from outside the package, by name."""
WEIGHTS, RECIPE, PROVENANCE = "weights.safetensors", "recipe.yaml", "provenance.json"


@dataclass(frozen=True, eq=False)
class StoredModel:
    """Content of a model folder, read and checked."""

    weights: Mapping[str, Tensor]
    """Tensors by name."""
    recipe: Recipe
    provenance: Mapping[str, Any]
    """Content of `provenance.json`."""
    path: Path
    """The folder."""

    @property
    def trained_method(self) -> str:
        """The method whose network was trained: of a pretraining, that of its backbone."""
        return self.recipe.method if self.recipe.backbone is None else self.recipe.backbone.method

    @property
    def mismatch(self) -> str:
        """Beginning of the message for weights that do not fit the method."""
        return (
            f"The weights of {self.path} do not fit the method {self.recipe.method} of glimpseg {__version__} (they "
            f"were written by {self.provenance.get('glimpseg', 'an unknown version')})"
        )

    @property
    def changed_methods(self) -> list[str]:
        """Names of own methods whose source differs from that of the training."""
        trained = self.provenance.get(OWN_METHODS)
        if not trained:
            return []
        now = methods.own_digests(self.recipe)
        return [name for name, digest in trained.items() if now.get(name) != digest]


def save_model(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    provenance: Mapping[str, Any],
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a model folder, whole or not at all; an older model there is replaced.

    Args:
        folder: The folder to write.
        weights: Tensors by name.
        recipe: The recipe that the weights were trained with.
        provenance: Fields of `provenance.json` besides format, method, own methods, environment and digests.
        write_more: Writes further files into the folder that it is called with; they get digests, too.

    Raises: UsageError if the folder holds files but no model; OutputError when the disk refuses.
    """
    with atomic_folder(folder, overwrite=True, mark=PROVENANCE) as place:
        save_file(storable(weights), place / WEIGHTS)
        (place / RECIPE).write_text(yaml.safe_dump(methods.as_tree(recipe), sort_keys=False), "utf-8")
        write_more(place)
        digests = {path.name: sha256_of(path) for path in sorted(place.iterdir())}
        own = methods.own_digests(recipe)  # a copy of a model keeps those of its training, which `provenance` holds
        record = {"format": FORMAT, "method": recipe.method, **({OWN_METHODS: own} if own else {}), **provenance}
        record |= {**environment(), "sha256": digests}
        (place / PROVENANCE).write_text(json.dumps(record, indent=2), "utf-8")


def read_model(folder: Path) -> StoredModel:
    """Read a model folder without building the network. Weights stored in fp16 are returned in fp32.

    Raises: ModelError if a file is missing or damaged, or of another format or method, or if a weight is not finite.
    """
    record = verified(folder)
    recipe = _recipe(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{StoredModel({}, recipe, record, folder).mismatch}: {error}") from error
    refuse_not_finite(weights, folder)
    return StoredModel(_single_precision(weights), recipe, record, folder)


def verified(folder: Path) -> dict[str, Any]:
    """Return the provenance of a model folder after all files that it names were compared with their digests.

    Raises: ModelError if a file is missing or differs, or if the format is another.
    """
    if not (folder / PROVENANCE).is_file():
        raise ModelError(
            f"{folder} is not a glimpseg model: it has no {PROVENANCE}. Give the folder that `train` wrote."
        )
    try:
        record = read_json(folder / PROVENANCE)
        digests = dict(record["sha256"])
    except (DocumentError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / PROVENANCE} is damaged ({error}). Copy the model again.") from error
    if record.get("format") != FORMAT:
        raise ModelError(
            f"{folder} has the format {record.get('format')}; glimpseg {__version__} reads format {FORMAT}. "
            f"Use the version that wrote it ({record.get('glimpseg', 'unknown')}) or train again."
        )
    for name, digest in digests.items():
        if not re.fullmatch(r"[\w.-]+", name) or not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}. Copy the model again, whole.")
        if sha256_of(folder / name) != digest:
            raise ModelError(
                f"{folder / name} is damaged: its checksum differs from {PROVENANCE}. Copy the model again."
            )
    missing = {WEIGHTS, RECIPE} - set(digests)
    if missing:
        raise ModelError(
            f"{folder / PROVENANCE} does not vouch for {', '.join(sorted(missing))}. Copy the model again."
        )
    return record


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU. None shares memory with another, as safetensors requires."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def refuse_not_finite(weights: Mapping[str, Tensor], place: Path) -> None:
    """Check that all weights are finite. Raises: ModelError if not; `place` is the folder or file in its message."""
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ModelError(
                f"The weights of {place} hold NaN or infinite values, first in {name}. The training diverged, or the "
                "file is damaged. Copy it again, or give an earlier checkpoint."
            )


def _recipe(folder: Path) -> Recipe:
    try:
        return methods.from_tree(read_yaml(folder / RECIPE))
    except (UsageError, DocumentError) as error:
        raise ModelError(f"{folder / RECIPE} does not suit glimpseg {__version__}: {error}") from error


def _single_precision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
