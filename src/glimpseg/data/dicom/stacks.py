"""Group headers into series: check for one patient, drop duplicate files, split into stacks of slices.

`find.find_series` starts this module as `python -m glimpseg.data.dicom.stacks FOLDER TARGET`, a separate process that
parses foreign headers. Only the fields of `Series` leave it, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glimpseg.data.dicom import geometry, headers
from glimpseg.data.dicom.headers import value
from glimpseg.data.series import digest
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SPARE_BYTES, limit_memory

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SPLITTING_KEYWORDS = (
    "ImageType", "EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue", "TemporalPositionIdentifier",
    "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
"""Attributes that may separate images at one position, most likely first."""
SAME_POSITION_MM = 0.01


@dataclass(frozen=True)
class Slice:
    """One file of a classic series, or one enhanced file."""

    path: Path
    header: Dataset


@dataclass
class DicomContents:
    """MR slices of a folder, and counts of the other files."""

    slices: list[Slice] = field(default_factory=list)
    foreign: int = 0
    """Number of files that are not DICOM."""
    other: int = 0
    """Number of DICOM files that are no MR images: reports, segmentations, other modalities, DICOMDIR."""
    damaged: int = 0
    repeated: int = 0
    """Number of files with the same bytes as a file that was read."""


def walk_files(folder: Path) -> Iterable[Path]:
    """Yield every regular file below a folder, sorted by name; first its own files, then those of each folder in it.

    Links to folders are not followed.
    """
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.is_file():  # skips pipes, which never end, and broken links
                yield path


def read_headers(paths: Iterable[Path]) -> DicomContents:
    """Read the headers of the MR images among these files."""
    found = DicomContents()
    for path in paths:
        try:
            header = headers.read_header(path)
            kind = value(header, "SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
            complete = all(value(header, uid) for uid in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"))
            if kind is not None and kind not in (headers.MR_CLASS, *headers.ENHANCED_CLASSES):
                found.other += 1
            elif kind is not None and complete:
                image = Slice(path, header)
                # A file without usable geometry must fail here, not later with its whole series.
                hash(_lattice_key(image))
                _most_at_one_position([image])
                found.slices.append(image)
            else:
                found.damaged += 1
        except headers.NotDicom:
            found.foreign += 1
        except Exception:  # any error in one header must not stop the other files
            found.damaged += 1
    return found


def check_one_patient(slices: Sequence[Slice]) -> None:
    """Check that all files are of one patient. Raises: InputError, without any name, if two files disagree."""
    known: dict[tuple[str, ...], Slice] = {}
    for image in slices:
        known.setdefault(tuple(str(value(image.header, keyword)) for keyword in headers.PATIENT_KEYWORDS), image)
    people = list(known.values())
    for number, image in enumerate(people):
        for other in people[:number]:
            keyword = headers.differing_identity(other.header, image.header)
            if keyword:
                raise InputError(
                    f"The folder holds images of more than one patient (they differ in {keyword}). One study of one "
                    "patient is needed: sort the files into a folder for each patient."
                )


def drop_duplicates(slices: Sequence[Slice]) -> list[Slice]:
    """Return one file for each SOPInstanceUID.

    Raises:
        InputError: if two files have the same UID and different content.
    """
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for image in slices:
        by_uid[str(image.header.SOPInstanceUID)].append(image)
    for same in by_uid.values():
        if len(same) > 1 and len({_file_digest(image.path) for image in same}) > 1:
            raise InputError(
                f"{len(same)} files call themselves the same image (SOPInstanceUID) and differ in content. Which one "
                "is right cannot be told: export the study again into an empty folder."
            )
    return [same[0] for same in by_uid.values()]


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_stacks(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Split the files of one SeriesInstanceUID into stacks.

    A stack has one geometry and, if possible, one image at each position. Images at one position are separated by the
    first attribute in `SPLITTING_KEYWORDS` that has no more values than there are such images. Images that no attribute
    separates stay together.
    """
    stacks = []
    for group in _group_by(slices, _lattice_key):
        stacks += [group] if geometry.is_enhanced(group[0].header) else _split_by_attributes(group, SPLITTING_KEYWORDS)
    return stacks


def _split_by_attributes(slices: list[Slice], keywords: Sequence[str]) -> list[list[Slice]]:
    most = _most_at_one_position(slices)
    for at, keyword in enumerate(keywords):
        if most < 2:
            break
        groups = _group_by(slices, partial(_attribute_text, keyword))
        if 1 < len(groups) <= most and max(map(_most_at_one_position, groups)) < most:
            return [stack for group in groups for stack in _split_by_attributes(group, keywords[at + 1 :])]
    return [slices]


def _group_by(slices: Sequence[Slice], by: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for image in slices:
        groups[by(image)].append(image)
    return list(groups.values())


def _attribute_text(keyword: str, image: Slice) -> str:
    return str(value(image.header, keyword))


def _lattice_key(image: Slice) -> Hashable:
    header = image.header
    if geometry.is_enhanced(header):
        return str(header.SOPInstanceUID)  # each enhanced file is one stack
    rounded = [
        tuple(round(headers.first_number(part) or 0.0, 4) + 0.0 for part in value(header, keyword) or ())
        for keyword in ("ImageOrientationPatient", "PixelSpacing")
    ]
    return (*rounded, value(header, "Rows"), value(header, "Columns"), str(value(header, "FrameOfReferenceUID")))


def _most_at_one_position(slices: Sequence[Slice]) -> int:
    places: Counter[Hashable] = Counter()
    for image in slices:
        place = value(image.header, "ImagePositionPatient")
        if place is None:
            return 1  # images without positions cannot be separated
        places[tuple(round((headers.first_number(part) or 0.0) / SAME_POSITION_MM) for part in place)] += 1
    return max(places.values())


def series_fields(stack: Sequence[Slice], key: str) -> dict[str, Any]:
    """Return the fields of a `Series`, ready for JSON."""
    stack = sorted(stack, key=lambda image: headers.first_number(value(image.header, "InstanceNumber")) or 0.0)
    plane = shape = spacing = None
    try:
        datasets = [image.header for image in stack]
        places, cosines = geometry.positions(datasets), geometry.orientations(datasets)
        distances = places @ geometry.slice_normal(cosines[0])
        if not geometry.is_enhanced(datasets[0]):
            stack = [stack[at] for at in np.argsort(distances, kind="stable")]
        plane = geometry.anatomical_plane(cosines[0])
        rows, columns = geometry.pixel_spacing(datasets[0])
        steps = np.diff(np.unique(np.round(distances, 3)))
        spacing = (columns, rows, float(np.median(steps)) if len(steps) else 0.0)
        shape = (int(datasets[0].Columns), int(datasets[0].Rows), len(places))
    except Exception:  # any invalid header: the series is listed, and `read_series` names the error
        plane = shape = spacing = None
    header = stack[0].header
    times = [
        headers.second_of_day(image.header, "AcquisitionTime", "AcquisitionDateTime", "SeriesTime") for image in stack
    ]
    injected = headers.second_of_day(header, "ContrastBolusStartTime")
    return {
        "key": key,
        "files": [str(image.path) for image in stack],
        "study": digest(str(header.StudyInstanceUID)),
        "words": headers.texts(header),
        "numbers": headers.numbers(header),
        "image_type": headers.image_type(header),
        "plane": plane,
        "shape": shape,
        "spacing_mm": spacing,
        "acquired_s": min((second for second in times if second is not None), default=None),
        "injected_s": injected,
    }


def find_series_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of all series below a folder, and the counts of other files. Raises: InputError."""
    found = read_headers(walk_files(folder))
    check_one_patient(found.slices)
    slices = drop_duplicates(found.slices)
    found.repeated = len(found.slices) - len(slices)
    series = []
    for group in _group_by(
        slices, lambda image: (str(image.header.StudyInstanceUID), str(image.header.SeriesInstanceUID))
    ):
        uid = str(group[0].header.SeriesInstanceUID)
        stacks = split_stacks(group)
        names = [digest(uid)] if len(stacks) == 1 else [digest(f"{uid} {number}") for number in range(len(stacks))]
        for stack, name in zip(stacks, names, strict=True):
            try:
                series.append(series_fields(stack, name))
            except Exception:  # any invalid header
                found.damaged += len(stack)
    series.sort(key=lambda fields: (fields["study"], fields["numbers"].get("SeriesNumber", 0.0), fields["key"]))
    counts = {name: getattr(found, name) for name in ("foreign", "other", "damaged", "repeated")}
    return {"series": series, **counts}


def main(folder: str, target: str) -> None:
    """Read the headers of a folder and write the result as JSON. Runs in the separate process."""
    warnings.simplefilter("ignore")  # warnings may quote header values
    logging.disable(logging.CRITICAL)
    limit_memory(SPARE_BYTES)
    try:
        answer = find_series_fields(Path(folder))
    except InputError as error:
        answer = {"refused": str(error)}
    except Exception as error:  # its message may quote header values
        sys.exit(type(error).__name__)
    Path(target).write_text(json.dumps(answer), encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
