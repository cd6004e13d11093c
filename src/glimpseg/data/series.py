"""One acquisition: its files, and what their headers say of how it was made; nothing of whom."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Plane: TypeAlias = Literal["axial", "coronal", "sagittal", "oblique"]

KEY_LENGTH = 10
"""Hexadecimal digits; two of a thousand series share them once in two million archives."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A DICOM series or a NIfTI file, before its voxels are read."""

    key: str
    """Names it in tables and files: a digest of its UID or path, of which nobody can be recognised."""
    source: Literal["dicom", "nifti"]
    files: tuple[Path, ...]
    """All instances, in the order of their positions where those are known; one file for NIfTI."""
    study: str
    """Digest of the study's UID, or of the folder: series of one visit share it."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Free text by its DICOM keyword (SeriesDescription, ProtocolName, SequenceName, ContrastBolusAgent ...), or
    FileName; what names the patient is taken out."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """By DICOM keyword and in its unit: RepetitionTime, EchoTime and InversionTime in ms, FlipAngle in degrees,
    MagneticFieldStrength in T, SliceThickness in mm, EchoTrainLength, SeriesNumber ..."""
    image_type: tuple[str, ...] = ()
    """DICOM's ImageType in capitals: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and more."""
    plane: Plane | None = None
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    acquired_s: float | None = None
    """Second of the day at which it began."""
    injected_s: float | None = None
    """Second of the day at which contrast agent was given, if the header says so."""


def digest(text: str) -> str:
    """A short name that tells series apart and from which the text cannot be read."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:KEY_LENGTH]
