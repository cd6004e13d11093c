"""Trained models, found by their path and ready to segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from glimpseg import methods
from glimpseg.data.notices import collected, warn
from glimpseg.errors import ModelError, UsageError
from glimpseg.method import Learner, Segmenter
from glimpseg.model.backend import Backend, resolved_backend
from glimpseg.model.checkpoint import newest_valid
from glimpseg.model.expectations import EXPECTATIONS, Expectations, read_expectations
from glimpseg.model.folder import RECIPE, WEIGHTS, StoredModel, read_model
from glimpseg.model.outline import outline
from glimpseg.model.shipped import place_of
from glimpseg.recipe import Recipe
from glimpseg.runtime.precision import precision_context, resolve_precision
from glimpseg.version import __version__


@dataclass(frozen=True, eq=False)
class Model:
    """Trained network, ready to segment, with its recipe and provenance."""

    network: Segmenter
    recipe: Recipe
    provenance: Mapping[str, Any]
    """Content of `provenance.json`."""
    path: Path
    """The model folder."""
    expectations: Expectations | None = None
    """Expected performance; None if it was not measured (`calibrate`) with the choices that are in use here."""
    computed_by: str = "torch"
    """Inference backend that was asked for: `torch`, `openvino` or `onnx`."""
    warnings: tuple[str, ...] = ()
    """Warnings that were logged while it was loaded; they belong into the record of what it segments."""

    @property
    def name(self) -> str:
        """Method, and the first eight characters of the weights' SHA-256: `unet-0123abcd`."""
        return f"{self.recipe.method}-{self.provenance['sha256'][WEIGHTS][:8]}"

    @property
    def chosen(self) -> dict[str, Any]:
        """Config fields of `Segmenter.choices`, with the values in use; empty for most methods."""
        return {name: getattr(self.recipe.config, name) for name in self.network.choices}

    @cached_property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device

    @cached_property
    def precision(self) -> str:
        """Precision under torch: fp32 if the model was trained so, else bf16 where the processor has it natively."""
        trained = self.recipe.optim.precision
        return resolve_precision("fp32" if trained == "fp32" else "auto", self.device)

    @cached_property
    def backend(self) -> Backend:
        """The inference backend, made at the first use.

        It keeps its compiled copies of the network for further windows.
        """
        return Backend(self.network, self.computed_by, self.precision, self.device)

    @property
    def by_torch(self) -> Model:
        """The same model, computed by torch."""
        return self if self.computed_by == "torch" else replace(self, computed_by="torch")

    def computing(self) -> AbstractContextManager[None]:
        """Return a context manager in which torch runs the network with the model's precision."""
        return precision_context(self.precision, self.device)


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    choices: Mapping[str, Any] = MappingProxyType({}),
    backend: str = "torch",
) -> Model:
    """Load a trained model onto a device, ready to segment.

    Args:
        path: Model folder, checkpoint, run folder, or `box`, as for `stored_model`.
        device: Device to compute on.
        choices: Values of recipe fields that the method leaves open until the model is used (`Segmenter.choices`), by
            dotted path: `config.branch`.
        backend: `torch`, `openvino`, `onnx`, or `auto` (`backend.resolved_backend`).

    Raises:
        ModelError: There is no model, a file is missing or damaged, it is of another format or method, or it is a
            pretraining.
        UsageError: A field in `choices` is no choice, a value is not possible, or the backend cannot be used.
    """
    with collected() as found:
        stored = stored_model(path)
    if stored.recipe.backbone is not None:
        raise ModelError(
            f"{stored.path} holds a {stored.recipe.method}, which is pretraining and segments nothing. Train from it: "
            f"glimpseg train METHOD/RECIPE --init {stored.path}"
        )
    recipe = methods.with_choices(stored.recipe, choices)
    network = _fitting_network(stored, recipe)
    spacing_mm = recipe.data.preprocess.spacing_mm
    computed_by = resolved_backend(backend, torch.device(device), spacing_mm, network.whole_up_to)
    model = Model(
        network.to(device).eval(),
        recipe,
        stored.provenance,
        stored.path,
        computed_by=computed_by,
        warnings=tuple(found.warnings),
    )
    if EXPECTATIONS not in stored.provenance["sha256"]:
        return model
    expectations = read_expectations(stored.path)
    return replace(model, expectations=expectations) if expectations.choices == model.chosen else model


def _fitting_network(stored: StoredModel, recipe: Recipe) -> Segmenter:
    """Return the network of a recipe with the stored weights.

    It takes memory only if they fit. Raises: ModelError if they do not, or if there is no such network.
    """
    try:
        learner = outline(recipe)
    except UsageError as error:
        raise ModelError(f"{stored.path / RECIPE} does not suit glimpseg {__version__}: {error}") from error
    empty = _without_unused_parts(learner, stored.weights)
    misfit = _misfit(empty, stored.weights)
    if misfit:
        raise ModelError(f"{stored.mismatch}: {misfit}.")
    network = _without_unused_parts(methods.build(recipe), stored.weights)
    network.load_state_dict(stored.weights)
    return network


def _without_unused_parts(network: Learner, weights: Mapping[str, Tensor]) -> Segmenter:
    """Drop the parts that only training uses, if the weights have none of them; return the network."""
    assert isinstance(network, Segmenter), "only a pretraining does not segment"
    if not any(name.startswith(network.training_only) for name in weights):
        network.drop_training_parts()
    return network


def stored_model(path: str | Path) -> StoredModel:
    """Read a model without building its network.

    Args:
        path: A model folder, a checkpoint, a run folder (its finished model, else its newest checkpoint), or the text
            `box` for the model that comes with the package.

    A warning is logged if the source of an own method differs from that of the training.

    Raises: ModelError if there is no model, if a file is missing or damaged, or if it is of another format or method.
    """
    stored = read_model(_model_folder(place_of(path)))
    for name in stored.changed_methods:
        warn(f"The source of the method {name} has changed since {stored.path} was trained.")
    return stored


def _misfit(network: Segmenter, weights: Mapping[str, Tensor]) -> str:
    """Return the names of weights that are missing, unexpected, or of another shape or type, the first few of each.

    The text is empty if there are none.
    """
    own = network.state_dict()
    shared = [name for name in own if name in weights]
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [name for name in shared if own[name].shape != weights[name].shape],
        "of another type": [
            name for name in shared if own[name].is_floating_point() != weights[name].is_floating_point()
        ],
    }
    return "; ".join(f"{kind}: {_first_few(names)}" for kind, names in kinds.items() if names)


def _first_few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
