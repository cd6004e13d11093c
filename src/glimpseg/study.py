"""Study: the images of one patient at one time point, and optionally a reference."""

from __future__ import annotations

import os
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
    """Index along the fourth axis, from 0."""

    def __str__(self) -> str:
        """Name of the volume in a manifest: `study.nii.gz#2`."""
        return f"{self.path}#{self.number}"


def parse_image(text: str) -> Path | Frame:
    """Parse the name of an image: a path, or a frame as `study.nii.gz#2`.

    A name that ends in `#` and digits is a path if a file of this whole name exists.
    """
    name, _, number = text.rpartition("#")
    return Frame(Path(name), int(number)) if number.isdecimal() and not Path(text).exists() else Path(text)


@dataclass(frozen=True, eq=False)
class Study:
    """Images of one patient at one time point, one for each available modality, and optionally a reference label map.

    Images may be files (read when needed) or volumes. The numbers of a reference file follow
    `convention`; a reference volume holds `Label` values.
    """

    id: str
    images: Mapping[Modality, Volume | Path | Frame]
    reference: Volume | Path | None = None
    convention: Convention | None = None
    """Label convention of the reference; None if there is no reference or its convention is not yet known."""
    brain: Volume | Path | None = None
    """Brain mask from another source. If None, the brain is where the images differ from their background."""
    registered: bool = False
    """True if the images are registered to each other, or were found to be (`data.raw`).

    Their grids may then be rotated against each other.
    """

    @property
    def available(self) -> Modality:
        """Modalities that the study has."""
        return union(self.images)

    def restricted_to(self, subset: Modality) -> Study:
        """Return the study as if only the modalities of `subset` had been acquired.

        Only images are left out; reference and brain mask stay. Modalities that the study lacks are ignored.
        """
        return replace(self, images={m: image for m, image in self.images.items() if m in subset})


def without_folders(text: str, study: Study) -> str:
    """Return a message without the folders that the files of a study lie in; names of files stay.

    For logs and records, which must not hold a path of the input.
    """
    parts = [*study.images.values(), study.reference, study.brain]
    paths = [part.path if isinstance(part, Frame) else part for part in parts if isinstance(part, Frame | Path)]
    for folder in sorted({path.parent for path in paths}, key=lambda folder: -len(str(folder))):
        if folder != Path():
            text = text.replace(f"{folder}{os.sep}", "")
    return text
