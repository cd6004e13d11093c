"""Load a study's files as volumes, for layouts that write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.study import Study
from glimpseg.volume import Volume


def load_images(study: Study) -> Iterator[tuple[Modality, Volume, type[np.generic]]]:
    """Yield each sequence in channel order with the type that stores its values exactly: int16 or float32.

    Raises:
        InputError: if a file cannot be read.
    """
    for modality in Modality:
        if modality in study.images:
            image = study.images[modality]
            volume = image if isinstance(image, Volume) else nifti.read_volume(image)
            yield modality, volume, _stored_as(volume.voxels)


def load_reference(study: Study) -> Volume | None:
    """Return the reference as `Label` values on its native grid; None if there is none.

    A file is converted by the study's convention. A volume has to hold `Label` values, and is returned as it is.

    Raises:
        InputError: if its file cannot be read, or the file's convention is unknown.
    """
    if isinstance(study.reference, Path) and study.convention is None:
        raise InputError(f"Study {study.id}: the label convention is unknown. Name it (--labels).")
    if isinstance(study.reference, Path):
        return nifti.read_labels(study.reference, study.convention)
    return study.reference


def _stored_as(voxels: np.ndarray) -> type[np.generic]:
    limits = np.iinfo(np.int16)
    whole = np.array_equal(voxels, np.rint(voxels)) and limits.min <= voxels.min() and voxels.max() <= limits.max
    return np.int16 if whole else np.float32
