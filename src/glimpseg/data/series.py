"""Series: the files of one acquisition and its acquisition parameters, without patient data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Plane: TypeAlias = Literal["axial", "coronal", "sagittal", "oblique"]
"""Orientation of the slices."""

KEY_LENGTH = 10
"""Hexadecimal digits of a key. In two million folders of a thousand series, about one has two series with one key."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """DICOM series or NIfTI file, before its voxels are read."""

    key: str
    """Name in tables and files: a digest of the UID or path, from which no patient can be identified."""
    source: Literal["dicom", "nifti"]
    """File format."""
    files: tuple[Path, ...]
    """All instances, in the order of their positions if these are known; one file for NIfTI."""
    study: str
    """Digest of the study UID, or of the folder. All series of one study have the same."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Free text by DICOM keyword (SeriesDescription, ProtocolName, SequenceName, ContrastBolusAgent ...) or FileName.
    Words that name the patient are removed."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers by DICOM keyword: RepetitionTime, EchoTime and InversionTime in ms, FlipAngle in degrees,
    MagneticFieldStrength in T, SliceThickness in mm, EchoTrainLength, SeriesNumber ..."""
    image_type: tuple[str, ...] = ()
    """ImageType of DICOM in capitals: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and more."""
    plane: Plane | None = None
    """Orientation of the slices; None if unknown."""
    shape: tuple[int, int, int] | None = None
    """Number of voxels along each axis; None if unknown."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel size along each axis; None if unknown."""
    acquired_s: float | None = None
    """Start of the acquisition, in seconds since midnight."""
    injected_s: float | None = None
    """Injection of contrast agent, in seconds since midnight; None if the header does not give it."""
    no_place: str = ""
    """Reason why `shape` is None, as a sentence; empty if it is known."""
    warnings: tuple[str, ...] = ()
    """Sentences on its slices that are not read, or were read otherwise than the headers say; for whoever reads it."""


def digest(text: str) -> str:
    """Return a short hash of a text: a unique name from which the text cannot be recovered."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_LENGTH]
