"""Training checkpoints of a run: model folders that also hold the exact state of the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glimpseg.errors import ModelError
from glimpseg.model.folder import save_model, storable, verified
from glimpseg.recipe import Recipe
from glimpseg.runtime.documents import BROKEN, read_json

STATE, STATE_SCALARS = "state.safetensors", "state.json"
KEPT = 2
"""Checkpoints of a run that are kept: the newest, and the one before it in case the disk damages the newest."""


@dataclass(frozen=True)
class SavedState:
    """State of a training besides its recipe: all that the next step depends on."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Tensor]
    """Tensors by name."""
    scalars: Mapping[str, Any]
    """Plain values that JSON can hold."""


def save_checkpoint(
    run: Path, weights: Mapping[str, Tensor], recipe: Recipe, provenance: Mapping[str, Any], state: SavedState
) -> None:
    """Write the checkpoint of a run at `state.step`, whole or not at all, and remove old checkpoints.

    Args:
        run: The run folder.
        weights: Weights that segment, as a model folder holds them.
        recipe: The run's recipe.
        provenance: Fields of `provenance.json`; `steps` is added.
        state: All that the next step depends on.

    Raises: OutputError when the disk refuses.
    """

    def write_state(folder: Path) -> None:
        save_file(storable(state.tensors), folder / STATE)
        (folder / STATE_SCALARS).write_text(json.dumps({"step": state.step, **state.scalars}), "utf-8")

    folder = checkpoint_folder(run, state.step)
    save_model(folder, weights, recipe, {**provenance, "steps": state.step}, write_more=write_state)
    drop_old(run)


def load_state(folder: Path) -> tuple[SavedState, dict[str, Any]]:
    """Return state and provenance of a checkpoint.

    Raises: ModelError if a file is missing, damaged or of another format.
    """
    record = verified(folder)
    try:
        scalars = read_json(folder / STATE_SCALARS, finite=False)
        step = int(scalars.pop("step"))
        return SavedState(step, load_file(folder / STATE), scalars), record
    except (*BROKEN, SafetensorError, OSError) as error:
        raise ModelError(f"The state in {folder} is damaged ({error}). Resume from an earlier checkpoint.") from error


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def newest_valid(run: Path) -> Path | None:
    """Return the newest checkpoint folder whose files are whole, None if there is none."""
    for folder in checkpoints(run):
        try:
            verified(folder)
        except ModelError:
            continue
        return folder
    return None


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder for the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def drop_old(run: Path) -> None:
    """Remove all checkpoints but the newest `KEPT`, and the remains of saves that were killed."""
    for folder in checkpoints(run)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
