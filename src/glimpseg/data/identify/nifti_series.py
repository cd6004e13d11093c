"""Read NIfTI files as series, with the acquisition parameters from their JSON sidecars (dcm2niix, BIDS)."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.dicom.headers import SHORTEST_NAME, scrubbed
from glimpseg.data.notices import warn
from glimpseg.data.series import Plane, Series, digest
from glimpseg.errors import InputError
from glimpseg.runtime.documents import DocumentError, read_json
from glimpseg.volume import Grid

WORDS = (
    "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "PulseSequenceDetails",
    "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "ContrastBolusAgent",
    "ContrastBolusIngredient", "BodyPartExamined", "Modality",
)  # fmt: skip
"""Sidecar fields that are read as text; other text is never read."""
TIMES_S = ("RepetitionTime", "EchoTime", "InversionTime")
"""Times that BIDS and dcm2niix give in seconds and `Series` in ms."""
NUMBERS = ("FlipAngle", "MagneticFieldStrength", "SliceThickness", "EchoTrainLength", "SeriesNumber", "DiffusionBValue")
NAMING = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Fields that identify the patient; their words are removed from every text that is kept."""
SIDECAR_BYTES = 4 << 20
"""Largest sidecar that is read. Sidecars have a few kB; a larger file is something else."""
MILLISECONDS_FROM = 1.0
"""EchoTime from which on a sidecar is taken to be in milliseconds, since echo times in seconds are below it."""
OBLIQUE_COSINE = 0.8
"""Cosine between the slice normal and the nearest axis below which a plane is oblique (37 degrees)."""
DATATYPES = frozenset({"anat", "dwi", "func", "fmap", "perf", "swi", "mrs", "derivatives", "dti"})
"""Folder names that divide one study by kind of image, as in BIDS."""
_SUBJECT_OR_SESSION = re.compile(r"(sub|ses)-[a-zA-Z0-9]+")


def nifti_series(folder: Path) -> tuple[list[Series], list[str]]:
    """Read every NIfTI file below `folder` as a series, in the order of names; and a note for each unreadable file."""
    files = [path for path in _files(folder) if path.name.lower().endswith((*nifti.SUFFIXES, ".hdr"))]
    alone = max(Counter(path.parent for path in files).values(), default=0) == 1
    series, notes = [], []
    for path in files:
        try:
            series.append(_series(path, folder, name_of_folder=alone and path.parent != folder))
        except InputError as error:
            notes.append(f"{path.name} was left out: {str(error).replace(str(path), 'it')}")
    return series, notes


def stem(path: Path) -> str:
    """Return the file name without `.nii`, `.nii.gz` or `.hdr` (of a pair)."""
    return re.sub(r"\.(nii(\.gz)?|hdr)$", "", path.name, flags=re.IGNORECASE)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _series(path: Path, folder: Path, *, name_of_folder: bool) -> Series:
    side = _sidecar(path)
    numbers = _numbers(side)
    grid, volumes = _grid(path)
    if volumes > 1:
        numbers["NumberOfTemporalPositions"] = volumes
    if path.with_name(stem(path) + ".bval").is_file():
        numbers.setdefault("DiffusionBValue", 1000.0)
    name = f"{path.parent.name} {stem(path)}" if name_of_folder else stem(path)
    raw = {keyword: _text(side[keyword]) for keyword in WORDS if keyword in side}
    named = _naming(side)
    words = {keyword: scrubbed(text, named) for keyword, text in {**raw, "FileName": name}.items() if text}
    types = side.get("ImageType", [])
    return Series(
        key=digest(path.relative_to(folder).as_posix()),
        source="nifti",
        files=(path,),
        study=digest(_study_name(path, folder, alone=name_of_folder)),
        words=words,
        numbers=numbers,
        image_type=tuple(str(t).upper() for t in types) if isinstance(types, list) else (),
        plane=None if grid is None else _plane(grid),
        shape=None if grid is None else grid.shape,
        spacing_mm=None if grid is None else grid.spacing_mm,
        acquired_s=_second_of_day(side.get("AcquisitionTime")),
        injected_s=_second_of_day(side.get("ContrastBolusStartTime")),
    )


def _study_name(path: Path, folder: Path, *, alone: bool) -> str:
    """Name that the files of one study share: `sub-` and `ses-` in the path, or else the folder.

    `alone`: every folder holds one file, so that all folders are one study.
    """
    parts = path.relative_to(folder).parts
    entities = list(dict.fromkeys(match.group() for part in parts for match in _SUBJECT_OR_SESSION.finditer(part)))
    if entities:
        return "/".join(entities)
    return "" if alone else "/".join(part for part in parts[:-1] if part.lower() not in DATATYPES)


def _sidecar(path: Path) -> Mapping[str, Any]:
    """The JSON beside an image; empty if there is none, or if it is no sidecar."""
    beside = path.with_name(stem(path) + ".json")
    if not beside.is_file():
        return {}
    try:
        content = read_json(beside, most_bytes=SIDECAR_BYTES, finite=False)
    except DocumentError as error:
        warn(f"The JSON beside an image is not used: {error}.")
        return {}
    return content if isinstance(content, dict) else {}


def _numbers(side: Mapping[str, Any]) -> dict[str, float]:
    factor = 1.0 if (_number(side.get("EchoTime")) or 0) >= MILLISECONDS_FROM else 1000.0
    values = {keyword: _number(side.get(keyword)) for keyword in (*TIMES_S, *NUMBERS)}
    return {
        keyword: value * (factor if keyword in TIMES_S else 1.0)
        for keyword, value in values.items()
        if value is not None
    }


def _number(value: Any) -> float | None:
    """Finite number from a number, a text, or the first element of a list; None for anything else."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, bool) or not isinstance(first, int | float | str):
        return None
    try:
        number = float(first)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return value if isinstance(value, str) else ""


def _naming(side: Mapping[str, Any]) -> frozenset[str]:
    """Words of the sidecar that name the patient, in lower case."""
    parts = {part.lower() for keyword in NAMING for part in re.split(r"[\W_]+", _text(side.get(keyword, "")))}
    return frozenset(part for part in parts if len(part) >= SHORTEST_NAME)


def _grid(path: Path) -> tuple[Grid | None, int]:
    """Grid of a file and its number of volumes; no grid if there are several."""
    shape = _dimensions(path)
    volumes = math.prod(shape[3:])
    return (None, volumes) if volumes > 1 else (nifti.read_header(path), 1)


def _dimensions(path: Path) -> Sequence[int]:
    """Shape in the header, without checks, which `read_header` makes; empty if the header cannot be read."""
    import nibabel

    try:
        with np.errstate(all="ignore"):
            return tuple(int(n) for n in nibabel.load(path, mmap=False).shape)  # type: ignore[attr-defined]
    except Exception:
        return ()


def _plane(grid: Grid) -> Plane:
    """Plane of the slices. The slice axis is the one with the longest voxels, or the third for cubic voxels."""
    sizes = grid.spacing_mm
    axis = int(np.argmax(sizes)) if max(sizes) > 1.1 * min(sizes) else 2
    normal = np.abs(grid.affine[:3, axis]) / sizes[axis]
    if normal.max() < OBLIQUE_COSINE:
        return "oblique"
    planes: tuple[Plane, Plane, Plane] = ("sagittal", "coronal", "axial")
    return planes[int(np.argmax(normal))]


def _second_of_day(value: Any) -> float | None:
    """Convert a time such as `14:03:21.5` or `140321.5` to seconds since midnight."""
    match = re.fullmatch(r"(\d\d):?(\d\d):?(\d\d(?:\.\d*)?)", str(value).strip()) if value is not None else None
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
