"""One patient's visit, and a batch of crops for a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from glimpseg.modality import Modality, union
from glimpseg.region import Convention
from glimpseg.volume import Volume


@dataclass(frozen=True)
class Frame:
    """One volume of a four-dimensional NIfTI file, as the Medical Segmentation Decathlon stores a study."""

    path: Path
    number: int
    """Along the fourth axis, from 0."""

    def __str__(self) -> str:
        """As a manifest writes it: `study.nii.gz#2`."""
        return f"{self.path}#{self.number}"


def image_named(text: str) -> Path | Frame:
    """What `str` of a path or a frame says."""
    name, _, number = text.rpartition("#")
    return Frame(Path(name), int(number)) if number.isdigit() and not Path(text).exists() else Path(text)


@dataclass(frozen=True, eq=False)
class Study:
    """What one visit has: an image for each modality that exists, perhaps an expert's label map.

    Images may be files (read when needed) or volumes. The reference's numbers follow `convention`.
    """

    id: str
    images: Mapping[Modality, Volume | Path | Frame]
    reference: Volume | Path | None = None
    convention: Convention | None = None
    """How to read the reference; None when there is none or it is not yet known."""
    brain: Volume | Path | None = None
    """A brain mask from elsewhere; None: the brain is what differs from the images' constant border."""
    registered: bool = False
    """Whether the images were registered to each other, or found to be (`data.raw`): their grids may then be turned."""

    @property
    def available(self) -> Modality:
        """The modalities that exist."""
        return union(self.images)

    def restricted_to(self, subset: Modality) -> Study:
        """The same visit had only the modalities of `subset` been acquired."""
        return replace(self, images={m: image for m, image in self.images.items() if m in subset})


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
