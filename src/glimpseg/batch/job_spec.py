"""What is to be segmented and how, in words that travel to other machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimpseg.batch.job import Wanted
from glimpseg.model.loading import Model
from glimpseg.segmentation import predict
from glimpseg.segmentation.inputs import Item, items


@dataclass(frozen=True, kw_only=True)
class Order:
    """A batch before anything of it is opened. Its paths are absolute and mean the same on every machine."""

    source: Path
    output: Path
    model: str
    wanted: Wanted = field(default_factory=Wanted)
    layout: str = "auto"
    device: str = "auto"
    choices: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "torch"
    """These three as `predict.load` takes them."""

    def items(self) -> list[Item]:
        """The studies. Raises: InputError when there is none."""
        return items(self.source, self.layout)

    def plain(self) -> Model:
        """The model for asking what it is, on the processor."""
        return predict.load(self.model, "cpu", self.choices)

    def load(self) -> Model:
        """The model, on the device of the machine that asks. Raises: ModelError, UsageError."""
        return predict.load(self.model, self.device, self.choices, self.backend)
