"""Headers to series: one patient, no file twice, one stack of slices each.

`python -m glimpseg.data.dicom.stacks FOLDER TARGET` is the process that `files.find_series` starts: foreign headers are
parsed there, and of what they say only a `Series` leaves it, as JSON.
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

SPLITTERS = (
    "ImageType", "EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue", "TemporalPositionIdentifier",
    "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
"""What tells images at one position apart, the likeliest first."""
SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Slice:
    """One file of a classic series, or a whole enhanced one."""

    path: Path
    header: Dataset


@dataclass
class DicomContents:
    """What a folder holds, counted."""

    slices: list[Slice] = field(default_factory=list)
    foreign: int = 0
    """Files that are no DICOM."""
    other: int = 0
    """DICOM, but no MR images: reports, segmentations, other modalities, DICOMDIR."""
    damaged: int = 0
    repeated: int = 0
    """Files with the same bytes as one that was read."""


def files_below(folder: Path) -> Iterable[Path]:
    """Every regular file, in the order of names; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.is_file():  # neither a pipe, which would never end, nor a link to nothing
                yield path


def read_headers(paths: Iterable[Path]) -> DicomContents:
    """The headers of the MR images among these files."""
    found = DicomContents()
    for path in paths:
        try:
            header = headers.read_header(path)
            kind = value(header, "SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
            complete = all(value(header, uid) for uid in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"))
            if kind is not None and kind not in (headers.MR, *headers.ENHANCED):
                found.other += 1
            elif kind is not None and complete:
                one = Slice(path, header)
                hash(_lattice(one)), _most_at_one_place([one])  # what cannot be placed must not stop the others later
                found.slices.append(one)
            else:
                found.damaged += 1
        except headers.NotDicom:
            found.foreign += 1
        except Exception:  # a header can be wrong in any way, and one such file must not cost the others
            found.damaged += 1
    return found


def check_one_patient(slices: Sequence[Slice]) -> None:
    """Raises: InputError, without naming anybody, if two files disagree on who the patient is."""
    known: dict[tuple[str, ...], Slice] = {}
    for one in slices:
        known.setdefault(tuple(str(value(one.header, keyword)) for keyword in headers.PATIENT_KEYWORDS), one)
    people = list(known.values())
    for number, one in enumerate(people):
        for other in people[:number]:
            keyword = headers.differing_identity(other.header, one.header)
            if keyword:
                raise InputError(
                    f"The folder holds images of more than one patient (they differ in {keyword}). One study of one "
                    "patient is needed: sort the files into a folder for each patient."
                )


def drop_duplicates(slices: Sequence[Slice]) -> list[Slice]:
    """One file for each SOPInstanceUID.

    Raises: InputError if two files have the same UID and not the same content.
    """
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[str(one.header.SOPInstanceUID)].append(one)
    for same in by_uid.values():
        if len(same) > 1 and len({_hash(one.path) for one in same}) > 1:
            raise InputError(
                f"{len(same)} files call themselves the same image (SOPInstanceUID) and differ in content. Which one "
                "is right cannot be told: export the study again into an empty folder."
            )
    return [same[0] for same in by_uid.values()]


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_stacks(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The files of one SeriesInstanceUID as stacks: one geometry each, and one image at each position if that can be.

    Images at one position are told apart by the first attribute of `SPLITTERS` that has no more values than there are
    such images; what no attribute tells apart stays together.
    """
    stacks = []
    for group in _grouped(slices, _lattice):
        stacks += [group] if geometry.is_enhanced(group[0].header) else _told_apart(group, SPLITTERS)
    return stacks


def _told_apart(slices: list[Slice], keywords: Sequence[str]) -> list[list[Slice]]:
    most = _most_at_one_place(slices)
    for at, keyword in enumerate(keywords):
        if most < 2:
            break
        groups = _grouped(slices, partial(_stated, keyword))
        if 1 < len(groups) <= most and max(map(_most_at_one_place, groups)) < most:
            return [stack for group in groups for stack in _told_apart(group, keywords[at + 1 :])]
    return [slices]


def _grouped(slices: Sequence[Slice], by: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for one in slices:
        groups[by(one)].append(one)
    return list(groups.values())


def _stated(keyword: str, one: Slice) -> str:
    return str(value(one.header, keyword))


def _lattice(one: Slice) -> Hashable:
    header = one.header
    if geometry.is_enhanced(header):
        return str(header.SOPInstanceUID)  # each such file is a stack of its own
    rounded = [
        tuple(round(headers.first_number(part) or 0.0, 4) + 0.0 for part in value(header, keyword) or ())
        for keyword in ("ImageOrientationPatient", "PixelSpacing")
    ]
    return (*rounded, value(header, "Rows"), value(header, "Columns"), str(value(header, "FrameOfReferenceUID")))


def _most_at_one_place(slices: Sequence[Slice]) -> int:
    places: Counter[Hashable] = Counter()
    for one in slices:
        place = value(one.header, "ImagePositionPatient")
        if place is None:
            return 1  # without positions there is nothing to tell apart
        places[tuple(round((headers.first_number(part) or 0.0) / SAME_PLACE_MM) for part in place)] += 1
    return max(places.values())


def series_fields(stack: Sequence[Slice], key: str) -> dict[str, Any]:
    """The fields of a `Series`, ready for JSON."""
    stack = sorted(stack, key=lambda one: headers.first_number(value(one.header, "InstanceNumber")) or 0.0)
    plane = shape = spacing = None
    try:
        datasets = [one.header for one in stack]
        places, cosines = geometry.positions(datasets), geometry.orientations(datasets)
        distances = places @ geometry.normal(cosines[0])
        if not geometry.is_enhanced(datasets[0]):
            stack = [stack[at] for at in np.argsort(distances, kind="stable")]
        plane = geometry.plane(cosines[0])
        rows, columns = geometry.pixel_spacing(datasets[0])
        steps = np.diff(np.unique(np.round(distances, 3)))
        spacing = (columns, rows, float(np.median(steps)) if len(steps) else 0.0)
        shape = (int(datasets[0].Columns), int(datasets[0].Rows), len(places))
    except Exception:  # of any kind, as a header may be; it is listed all the same, and reading it says what is wrong
        plane = shape = spacing = None
    header = stack[0].header
    times = [headers.second_of_day(one.header, "AcquisitionTime", "AcquisitionDateTime", "SeriesTime") for one in stack]
    injected = headers.second_of_day(header, "ContrastBolusStartTime")
    return {
        "key": key,
        "files": [str(one.path) for one in stack],
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


def series_below(folder: Path) -> dict[str, Any]:
    """What `find_series` needs: fields of series, and counts of what is none. Raises: InputError."""
    found = read_headers(files_below(folder))
    check_one_patient(found.slices)
    slices = drop_duplicates(found.slices)
    found.repeated = len(found.slices) - len(slices)
    series = []
    for group in _grouped(slices, lambda one: (str(one.header.StudyInstanceUID), str(one.header.SeriesInstanceUID))):
        uid = str(group[0].header.SeriesInstanceUID)
        stacks = split_stacks(group)
        names = [digest(uid)] if len(stacks) == 1 else [digest(f"{uid} {number}") for number in range(len(stacks))]
        for stack, name in zip(stacks, names, strict=True):
            try:
                series.append(series_fields(stack, name))
            except Exception:  # as above
                found.damaged += len(stack)
    series.sort(key=lambda one: (one["study"], one["numbers"].get("SeriesNumber", 0.0), one["key"]))
    counts = {name: getattr(found, name) for name in ("foreign", "other", "damaged", "repeated")}
    return {"series": series, **counts}


def main(folder: str, target: str) -> None:
    """What the reading process does."""
    warnings.simplefilter("ignore")  # they quote values of headers
    logging.disable(logging.CRITICAL)
    limit_memory(SPARE_BYTES)
    try:
        answer = series_below(Path(folder))
    except InputError as error:
        answer = {"refused": str(error)}
    except Exception as error:  # its message may quote the header
        sys.exit(type(error).__name__)
    Path(target).write_text(json.dumps(answer), encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
