"""A batch of crops, as a network takes them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


@dataclass
class Batch:
    """Crops of several studies, as a network takes them."""

    image: Float[Tensor, "b m x y z"]
    """Normalised intensities. Absent channels hold anything; no method may look."""
    available: Bool[Tensor, "b m"]
    """What the scanner gave, never what a method dropped."""
    target: Integer[Tensor, "b x y z"] | None = None
    """`Label` values; None in pretraining."""
    study: list[str] = field(default_factory=list)
    """Where each crop came from, for messages."""
    prior: Integer[Tensor, "b m x y z"] | None = None
    """What is supposed of the labels from each modality by itself, `Label` values; None unless the recipe has one."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, there in the types that networks and losses take: float32 and int64. Before that,
        crops are as narrow as they are stored, for a third of the bytes on the way."""
        held = {part.name: getattr(self, part.name) for part in fields(self)}
        moved: dict[str, Any] = {
            name: _wide(value.to(device, non_blocking=True))
            for name, value in held.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def _wide(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.long()
