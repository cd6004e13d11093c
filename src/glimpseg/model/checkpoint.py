"""A model is a folder: weights, recipe, provenance. A run's checkpoint holds the exact training state beside them.

Nothing here can run code: weights and state are safetensors and JSON. Every file's SHA-256 stands in
`provenance.json`, because a flipped bit in a weights file is otherwise loaded without a word.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as packed
from torch import Tensor

from glimpseg import methods
from glimpseg.errors import ModelError, UsageError
from glimpseg.method import Segmenter
from glimpseg.modality import Modality
from glimpseg.model.backend import Backend, resolved_backend
from glimpseg.model.expectations import EXPECTATIONS, Expectations, read_expectations
from glimpseg.model.shipped import place_of
from glimpseg.recipe import Recipe
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.runtime.precision import precision_context, resolve_precision
from glimpseg.version import __version__

FORMAT = 1
"""Of the folder; a reader refuses another."""
WEIGHTS, RECIPE, PROVENANCE = "weights.safetensors", "recipe.yaml", "provenance.json"
STATE, STATE_SCALARS = "state.safetensors", "state.json"
KEPT = 2
"""Checkpoints of a run that stay: the newest, and the one before it in case the disk fails."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and where it comes from."""

    network: Segmenter
    recipe: Recipe
    provenance: Mapping[str, Any]
    path: Path
    expectations: Expectations | None = None
    """What to expect of it, if that was measured (`calibrate`) as it is used here."""
    computed_by: str = "torch"
    """The backend asked for: `torch`, `openvino` or `onnx`."""

    @property
    def name(self) -> str:
        """Method and the first characters of the weights' digest."""
        return f"{self.recipe.method}-{self.provenance['sha256'][WEIGHTS][:8]}"

    @property
    def chosen(self) -> dict[str, Any]:
        """How it segments, as far as that is open until it is used."""
        return {name: getattr(self.recipe.config, name) for name in self.network.choices}

    @cached_property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @cached_property
    def precision(self) -> str:
        """What torch computes it in: fp32 if it was trained so, else bf16 where the processor has it natively."""
        wanted = self.recipe.optim.precision
        return resolve_precision("fp32" if wanted == "fp32" else "auto", self.device)

    @cached_property
    def backend(self) -> Backend:
        """What computes it; keeps its copies of the network for the windows to come."""
        return Backend(self.network, self.computed_by, self.precision, self.device)

    @property
    def by_torch(self) -> Model:
        """The model as torch computes it."""
        return self if self.computed_by == "torch" else replace(self, computed_by="torch")

    def computing(self) -> AbstractContextManager[None]:
        """The context to run the network in, by torch."""
        return precision_context(self.precision, self.device)


@dataclass(frozen=True, eq=False)
class Stored:
    """The content of a model folder."""

    weights: Mapping[str, Tensor]
    recipe: Recipe
    provenance: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class State:
    """Everything besides the recipe that the next step depends on."""

    step: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def save(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    provenance: Mapping[str, Any],
    state: State | None = None,
) -> None:
    """Writes a model, with `state` a checkpoint, whole or not at all."""
    with atomic_folder(folder, overwrite=True, mark=PROVENANCE) as place:
        save_file(_plain(weights), place / WEIGHTS)
        (place / RECIPE).write_text(yaml.safe_dump(methods.as_tree(recipe), sort_keys=False), "utf-8")
        if state is not None:
            save_file(_plain(state.tensors), place / STATE)
            (place / STATE_SCALARS).write_text(json.dumps({"step": state.step, **state.scalars}), "utf-8")
        digests = {path.name: sha256_of(path) for path in sorted(place.iterdir())}
        record = {"format": FORMAT, "method": recipe.method, **provenance, **_environment(), "sha256": digests}
        (place / PROVENANCE).write_text(json.dumps(record, indent=2), "utf-8")


def save_copy(
    source: Stored | Model,
    folder: str | Path,
    files: Mapping[str, bytes],
    note: Mapping[str, Any],
    *,
    texts: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Writes a copy of a model's folder, without training state, whole or not at all; `files` take the place of its
    own, `note` is added to its provenance, and `texts` are further files, by name, for people."""
    before = source.provenance["sha256"]
    with atomic_folder(folder, overwrite=overwrite, mark=PROVENANCE) as place:
        kept = [name for name in before if name not in (STATE, STATE_SCALARS, *files)]
        for name in kept:
            shutil.copyfile(source.path / name, place / name)
        for name, content in files.items():
            (place / name).write_bytes(content)
        # What was copied keeps the digest it had, so that a file that is damaged by now is noticed on loading.
        digests = {name: before[name] for name in kept} | {name: sha256_of(place / name) for name in files}
        record = {**source.provenance, **note, "sha256": dict(sorted(digests.items()))}
        (place / PROVENANCE).write_text(json.dumps(record, indent=2), "utf-8")
        for name, text in texts.items():
            (place / name).write_text(text, "utf-8")


def save_halved(found: Stored, folder: str | Path, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes a copy of a model with weights in half the bytes (fp16), as `save_copy` does; its provenance says what the
    weights were made of.

    Raises: ModelError as `halved`.
    """
    weights = packed(halved(found.weights))
    note = {"halved_from": found.provenance["sha256"][WEIGHTS], "halved_by": __version__}
    save_copy(found, folder, {WEIGHTS: weights}, note, texts=texts, overwrite=True)


def trained_digest(provenance: Mapping[str, Any]) -> str:
    """SHA-256 of the weights as they were trained, whether these are them or their halves."""
    return str(provenance.get("halved_from", provenance["sha256"][WEIGHTS]))


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 weights as fp16; what is no fp32 (counts) stays. Loading makes them fp32 again, for computing.

    Raises: ModelError naming the first weight that fp16 cannot hold.
    """
    found = {}
    for name, value in _plain(weights).items():
        found[name] = value.half() if value.dtype == torch.float32 else value
        if value.is_floating_point() and not torch.isfinite(found[name]).all():
            raise ModelError(
                f"The weights {name} reach {float(value.abs().max()):g}, and fp16 holds up to "
                f"{torch.finfo(torch.float16).max:g}. Keep this model in fp32, or train it with more weight decay."
            )
    return found


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    choices: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "torch",
) -> Model:
    """A model from its folder, from a checkpoint, or from a run (its finished model, else its newest checkpoint); the
    text `box` is the one that comes with the package.

    `choices` are values of recipe fields that its method leaves open until it is used (`Segmenter.choices`). `backend`
    computes the network: `torch`, `openvino`, `onnx`, or `auto` (`backend.resolved_backend`).

    Raises: ModelError if there is none, if a file is missing or damaged, or if it is of another format or method;
        UsageError for a field that is no choice, or a backend that cannot be used.
    """
    found = stored(path)
    if found.recipe.backbone is not None:
        raise ModelError(
            f"{found.path} holds a {found.recipe.method}, which is pretraining and segments nothing. Train from it: "
            f"glimpseg train METHOD/RECIPE --init {found.path}"
        )
    recipe = methods.chosen(found.recipe, choices)
    network: Segmenter = methods.build(recipe)
    spacing_mm = recipe.data.preprocess.spacing_mm
    computed_by = resolved_backend(backend, torch.device(device), spacing_mm, network.whole_up_to)
    if not any(name.startswith(network.training_only) for name in found.weights):
        network.drop_training_parts()
    try:
        network.load_state_dict(found.weights)
    except RuntimeError as error:
        raise ModelError(f"{_unfit(found)}: {str(error).splitlines()[0]}") from error
    model = Model(network.to(device).eval(), recipe, found.provenance, found.path, computed_by=computed_by)
    if EXPECTATIONS not in found.provenance["sha256"]:
        return model
    told = read_expectations(found.path)
    return replace(model, expectations=told) if told.choices == model.chosen else model


def stored(path: str | Path) -> Stored:
    """What a model folder, checkpoint or run holds (its finished model, else its newest checkpoint), nothing built;
    weights that are kept in fp16 come as fp32.

    Raises: ModelError as `load`.
    """
    folder = _model_folder(place_of(path))
    record = verified(folder)
    recipe = _recipe(folder)
    try:
        return Stored(_full(load_file(folder / WEIGHTS)), recipe, record, folder)
    except SafetensorError as error:
        raise ModelError(f"{_unfit(Stored({}, recipe, record, folder))}: {error}") from error


def _unfit(found: Stored) -> str:
    return (
        f"The weights of {found.path} do not fit the method {found.recipe.method} of glimpseg {__version__} (they were "
        f"written by {found.provenance.get('glimpseg', 'an unknown version')})"
    )


def load_state(folder: Path) -> tuple[State, dict[str, Any]]:
    """State and provenance of a checkpoint. Raises: ModelError as `load`."""
    record = verified(folder)
    scalars = json.loads((folder / STATE_SCALARS).read_text("utf-8"))
    step = scalars.pop("step")
    return State(step, load_file(folder / STATE), scalars), record


def verified(folder: Path) -> dict[str, Any]:
    """The provenance of a folder whose files are all there and unchanged. Raises: ModelError."""
    if not (folder / PROVENANCE).is_file():
        raise ModelError(
            f"{folder} is not a glimpseg model: it has no {PROVENANCE}. Give the folder that `train` wrote."
        )
    try:
        record = json.loads((folder / PROVENANCE).read_text("utf-8"))
        digests = dict(record["sha256"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
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


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def newest_valid(run: Path) -> Path | None:
    """The newest checkpoint whose files are whole, None if there is none."""
    for folder in checkpoints(run):
        try:
            verified(folder)
        except ModelError:
            continue
        return folder
    return None


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def drop_old(run: Path) -> None:
    """Removes all checkpoints but the newest `KEPT`, and what killed saves left."""
    for folder in checkpoints(run)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes, for asking whether two trainings gave the same weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _model_folder(path: Path) -> Path:
    if (path / "model").is_dir():
        return path / "model"
    if (path / "checkpoints").is_dir():
        newest = newest_valid(path)
        if newest is None:
            raise ModelError(f"The run {path} has no whole checkpoint yet. Wait for its first, or train on.")
        return newest
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder. Give a model or run folder with -m; `glimpseg train` makes one.")
    return path


def _recipe(folder: Path) -> Recipe:
    try:
        return methods.from_tree(yaml.safe_load((folder / RECIPE).read_text("utf-8")))
    except (UsageError, yaml.YAMLError) as error:
        raise ModelError(f"{folder / RECIPE} does not suit glimpseg {__version__}: {error}") from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}


def _environment() -> dict[str, Any]:
    return {
        "glimpseg": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "channels": [modality.key for modality in Modality],
    }


def _commit() -> str | None:
    """The commit of the checkout glimpseg runs from, None for an installed package."""
    here = Path(__file__).parent
    if not (here.parents[2] / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        dirty = subprocess.run(["git", "-C", here, "status", "--porcelain", "-uno"], capture_output=True, check=False)
    except OSError:
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout else "") if head.returncode == 0 else None


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
