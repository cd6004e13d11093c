"""Batch of crops, the input of a network in training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor


@dataclass
class Batch:
    """Crops of several studies, with their targets."""

    image: Float[Tensor, "b m x y z"]
    """Normalised intensities. Channels of absent modalities have undefined values; methods must not read them."""
    available: Bool[Tensor, "b m"]
    """Modalities that were acquired. Modalities that a method drops stay available."""
    target: Integer[Tensor, "b x y z"] | None = None
    """`Label` values of the reference; None in pretraining."""
    study: list[str] = field(default_factory=list)
    """Study id of each crop, for messages."""
    prior: Integer[Tensor, "b m x y z"] | None = None
    """Prior (pseudo-label) maps from each modality alone, `Label` values; None unless the recipe uses them."""

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device and convert it there to float32 and int64.

        Until then crops keep their narrow stored types, so that a third of the bytes is transferred.
        """
        held = {part.name: getattr(self, part.name) for part in fields(self)}
        moved: dict[str, Any] = {
            name: _wide(value.to(device, non_blocking=True))
            for name, value in held.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def _wide(tensor: Tensor) -> Tensor:
    """Convert floats to float32 and integers to int64; bool stays."""
    if tensor.dtype == torch.bool:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.long()
