"""One patient's visit, and a batch of crops for a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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


def parse_image(text: str) -> Path | Frame:
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
