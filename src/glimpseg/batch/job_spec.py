"""Serialisable job specification of a batch, for other processes and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glimpseg.batch.job import BatchOptions
from glimpseg.model.loading import Model
from glimpseg.segmentation import predict
from glimpseg.segmentation.inputs import TreeContents, tree_contents


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Input, output, model and options of a batch. Its paths are absolute and the same on every machine."""

    source: Path
    """Tree of studies."""
    output: Path
    """Output folder of the batch."""
    model: str
    """`model`, `device`, `choices` and `backend` are the arguments of `predict.load`."""
    options: BatchOptions = field(default_factory=BatchOptions)
    layout: str = "auto"
    """Layout of the tree, as for `study_entries`."""
    device: str = "auto"
    choices: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "torch"

    @property
    def batch_options(self) -> BatchOptions:
        """The options, with the backend and the device in the fingerprint as they are named here.

        Machines may resolve `auto`, or the precision, in different ways; they still work on one batch.
        """
        return replace(self.options, backend=f"{self.backend} on {self.device}")

    def contents(self) -> TreeContents:
        """Return the studies of the tree. Raises: InputError and UsageError as `tree_contents`."""
        return tree_contents(self.source, self.layout, named=not self.options.outputs.deidentify)

    def load_for_reading(self) -> Model:
        """Load the model on the CPU under torch, to read its settings. Raises: ModelError, UsageError."""
        return predict.load(self.model, "cpu", self.choices)

    def load(self) -> Model:
        """Load the model on this machine, with the device and the backend asked for. Raises: ModelError, UsageError."""
        return predict.load(self.model, self.device, self.choices, self.backend)
