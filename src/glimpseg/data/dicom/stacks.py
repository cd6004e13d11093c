"""Group headers into series: check for one patient, drop duplicate files, split into stacks of slices.

`find.find_series` starts this module as `python -m glimpseg.data.dicom.stacks FOLDER TARGET`, a separate process that
parses foreign headers. Only the fields of `Series` leave it, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from glimpseg.data.dicom import geometry, headers, unify
from glimpseg.data.dicom.headers import value
from glimpseg.data.series import digest
from glimpseg.errors import InputError
from glimpseg.runtime.sandbox import SPARE_BYTES, confine

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SPLITTING_KEYWORDS = (
    "ImageType", "SeriesDescription", "EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue",
    "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
"""Attributes that may separate images at one position, most likely first."""
ACQUISITION_KEYWORDS = (
    "ImageType", "SeriesDescription", "EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue",
    "TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber",
)  # fmt: skip
"""Attributes in which copies of an image agree. Times and numbers of the export may differ."""
STEP_KEYWORDS = ("SpacingBetweenSlices", "SliceThickness")
VISIBLE_MM = 0.1
"""Smallest displacement of a slice, between its header and the volume that is read, that is told."""
NEAR = 0.05
"""Largest difference of two sides of slices, as a share of their length, for slices of about the same direction."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Slice:
    """One file of a classic series, or one enhanced file."""

    path: Path
    header: Dataset


@dataclass
class Stack:
    """Files that make up one volume, with sentences on what of their series is not in it."""

    slices: list[Slice]
    warnings: list[str]


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
                hash(tuple(_attribute_text(keyword, image) for keyword in ("Rows", "Columns", *SPLITTING_KEYWORDS)))
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


def split_stacks(slices: Sequence[Slice]) -> list[Stack]:
    """Split the files of one series into stacks.

    A stack has one geometry and, if possible, one image at each position. Images at one position are separated by the
    first attribute in `SPLITTING_KEYWORDS` that has no more values than there are such images. Copies with equal pixels
    are dropped. Images that no attribute separates stay together.
    """
    lattices = sorted(_split_lattices(slices), key=lambda group: -len(group))
    stacks = []
    for number, group in enumerate(lattices):
        warnings = list(_beside(group, lattices, number)) if not geometry.is_enhanced(group[0].header) else []
        if geometry.is_enhanced(group[0].header):
            stacks.append(Stack(group, warnings))
            continue
        group, copies = copies_dropped(group)
        if copies:
            warnings.append(
                f"{_files(copies)} the same pixels as another at the same position; each image is used once"
            )
        stacks += [Stack(part, list(warnings)) for part in _split_by_attributes(group, SPLITTING_KEYWORDS)]
    return stacks


def _files(count: int) -> str:
    return f"{count} file has" if count == 1 else f"{count} files have"


def _beside(group: Sequence[Slice], lattices: Sequence[Sequence[Slice]], number: int) -> Iterator[str]:
    """Yield sentences on the slices of a series that lie on another lattice than `group`."""
    for other in (lattice for at, lattice in enumerate(lattices) if at != number):
        if geometry.is_enhanced(other[0].header):
            continue
        kind = "slice" if len(other) == 1 else "slices"
        yield f"{len(other)} {kind} of this series not read with it: {_lattice_difference(group[0], other[0])}"


def _lattice_difference(image: Slice, other: Slice) -> str:
    """Return in words why two slices of a series lie on different lattices."""
    for keyword in ("Rows", "Columns"):
        sizes = [value(one.header, keyword) for one in (other, image)]
        if sizes[0] != sizes[1]:
            return f"{keyword} {sizes[0]!s:.40} against {sizes[1]!s:.40}"
    try:
        ours = _edges(image)
    except Exception as error:  # any invalid header
        return f"the position of the others is not known ({_reason(error)})"
    try:
        theirs = _edges(other)
    except Exception as error:  # any invalid header
        return _reason(error).rstrip(".")
    apart = float(np.linalg.norm(geometry.corner_shifts((theirs - ours)[None]), axis=2).max())
    if apart > geometry.EXACT_MM:
        return f"turned or scaled otherwise, corners up to {apart:.2f} mm apart"
    return "another FrameOfReferenceUID"


def _reason(error: Exception) -> str:
    """Return the message of an InputError, which holds no patient data; else a general one."""
    return str(error) if isinstance(error, InputError) else "a header is invalid"


def _edges(image: Slice) -> Float[np.ndarray, "2 3"]:
    """Vectors along the sides of a slice. Raises: InputError if its header does not give them."""
    header = image.header
    geometry.positions([header])
    cosines, spacing = geometry.orientations([header]), geometry.pixel_spacings([header])
    return geometry.edges(cosines, spacing, int(header.Columns), int(header.Rows))[0]


def _split_lattices(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Split slices by matrix size, frame of reference, direction and pixel size. Each enhanced file stands alone.

    Directions and pixel sizes are the same if no corner of a slice lies farther from the median of its lattice than
    `volume.displaced_little` accepts. Frames of reference that differ in every file are ignored.
    """
    frames = {str(value(image.header, "FrameOfReferenceUID")) for image in slices}
    each = len(frames) == len(slices) > 1

    def key(image: Slice) -> Hashable:
        header = image.header
        if geometry.is_enhanced(header):
            return str(header.SOPInstanceUID)
        frame = "" if each else str(value(header, "FrameOfReferenceUID"))
        return (_attribute_text("Rows", image), _attribute_text("Columns", image), frame)

    return [lattice for group in _group_by(slices, key).values() for lattice in _split_directions(group)]


def _split_directions(slices: list[Slice]) -> list[list[Slice]]:
    if geometry.is_enhanced(slices[0].header):
        return [slices]
    placed, unplaced = [], []
    for image in slices:
        try:
            placed.append((image, _edges(image)))
        except Exception:  # any invalid header
            unplaced.append(image)
    lattices = [unplaced] if unplaced else []
    while placed:
        sides = np.array([one for _, one in placed])
        # The median of slices of about the same direction is the lattice, whichever slice comes first.
        near = np.linalg.norm(sides - sides[0], axis=2).max(axis=1) <= NEAR * np.linalg.norm(sides[0], axis=1).max()
        header = placed[int(np.flatnonzero(near)[0])][0].header
        middle = np.median(sides[near], axis=0)
        if not _on_lattice(sides, middle, header)[near].any():
            middle = sides[0]
        alike = _on_lattice(sides, middle, header)
        # A header whose tolerance is no number is like nothing, not even itself: its slice is alone.
        alike[0] |= not alike.any()
        lattices.append([image for (image, _), same in zip(placed, alike, strict=True) if same])
        placed = [one for one, same in zip(placed, alike, strict=True) if not same]
    return lattices


def _on_lattice(sides: Float[np.ndarray, "n 2 3"], middle: Float[np.ndarray, "2 3"], header: Dataset) -> np.ndarray:
    """Return which slices have the direction and pixel size of the lattice whose edges are `middle`."""
    spacing = geometry.pixel_spacing(header)
    given = (headers.first_number(value(header, keyword)) for keyword in STEP_KEYWORDS)
    steps = [number for number in given if number and math.isfinite(number)]
    return geometry.same_plane(
        geometry.corner_shifts(sides - middle), geometry.orientations([header])[0], spacing, max([*steps, *spacing])
    )


def copies_dropped(slices: list[Slice]) -> tuple[list[Slice], int]:
    """Drop files that hold the same pixels, position and acquisition as another; archives send slices twice.

    Slices of one value, as outside the head, are equal in different acquisitions too. They are dropped only if all
    other images at one position are copies.

    Returns:
        The remaining files, and the number of dropped ones.
    """
    numbers = position_numbers(slices)
    if numbers is None or len(set(numbers.tolist())) == len(slices):
        return slices, 0
    kept: dict[Hashable, Slice] = {}
    blank: list[Slice] = []
    differs = False
    for number, same in _group_by(list(zip(numbers.tolist(), slices, strict=True)), lambda pair: pair[0]).items():
        found: dict[Hashable, Slice] = {}
        for _, image in same:
            content = pixel_digest(image.path) if len(same) > 1 else ""
            if content == BLANK:
                blank.append(image)
                content = f"{BLANK} {image.path}"
            told = tuple(_attribute_text(keyword, image) for keyword in ACQUISITION_KEYWORDS)
            found.setdefault((number, content, told), image)
        differs |= sum(image not in blank for image in found.values()) > 1
        kept |= found
    remaining = {id(image) for image in kept.values()}
    if not differs:
        for same in _group_by(list(zip(numbers.tolist(), slices, strict=True)), lambda pair: pair[0]).values():
            remaining -= {id(image) for _, image in same[1:] if any(image is one for one in blank)}
    left = [image for image in slices if id(image) in remaining]
    return left, len(slices) - len(left)


BLANK = "blank"


def pixel_digest(path: Path) -> str:
    """Return a digest of the pixels of a file, as stored, with their rescaling; `BLANK` if all have one value."""
    dataset = headers.read_dataset(path)
    pixels = bytes(dataset.PixelData) if "PixelData" in dataset else b""
    size = max(int(value(dataset, "BitsAllocated") or 8) // 8, 1)
    if pixels and pixels == pixels[:size] * (len(pixels) // size):
        return BLANK
    scale = [str(value(dataset, keyword)) for keyword in ("RescaleSlope", "RescaleIntercept", "BitsAllocated")]
    return hashlib.sha256(" ".join(scale).encode() + pixels).hexdigest()


def _split_by_attributes(slices: list[Slice], keywords: Sequence[str]) -> list[list[Slice]]:
    most = _most_at_one_position(slices)
    for at, keyword in enumerate(keywords):
        if most < 2:
            break
        groups = list(_group_by(slices, partial(_attribute_text, keyword)).values())
        if 1 < len(groups) <= most and max(map(_most_at_one_position, groups)) < most:
            return [stack for group in groups for stack in _split_by_attributes(group, keywords[at + 1 :])]
    return [slices]


def _group_by(slices: Sequence[T], by: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for image in slices:
        groups[by(image)].append(image)
    return groups


def _attribute_text(keyword: str, image: Slice) -> str:
    return str(value(image.header, keyword))


def position_numbers(slices: Sequence[Slice]) -> Int[np.ndarray, "n"] | None:
    """Return the number of the position of each slice along the normal; None if the headers do not give it."""
    try:
        datasets = [image.header for image in slices]
        places, cosines = geometry.positions(datasets), geometry.orientations(datasets)
        return geometry.images_at_each_position(places @ geometry.slice_normal(cosines[0]))
    except Exception:  # any invalid header
        return None


def _most_at_one_position(slices: Sequence[Slice]) -> int:
    numbers = position_numbers(slices)
    return 1 if numbers is None else int(np.bincount(numbers).max())


def series_fields(stack: Sequence[Slice], key: str, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a `Series`, ready for JSON."""
    stack = sorted(stack, key=lambda image: headers.first_number(value(image.header, "InstanceNumber")) or 0.0)
    plane = shape = spacing = None
    no_place = ""
    try:
        datasets = [image.header for image in stack]
        places, cosines = geometry.positions(datasets), geometry.orientations(datasets)
        distances = places @ geometry.slice_normal(cosines[0])
        if not geometry.is_enhanced(datasets[0]):
            stack = [stack[at] for at in np.argsort(distances, kind="stable")]
        plane = geometry.anatomical_plane(cosines[0])
        rows, columns = geometry.pixel_spacing(datasets[0])
        spacing = (columns, rows, geometry.typical_step(distances))
        shape = (int(datasets[0].Columns), int(datasets[0].Rows), len(places))
    except Exception as error:  # any invalid header: the series is listed, and `read_series` names the error
        plane = shape = spacing = None
        no_place = _reason(error)
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
        "no_place": no_place,
        "warnings": [*warnings, *_moved_slices(stack)],
    }


def _moved_slices(stack: Sequence[Slice]) -> Iterator[str]:
    """Yield a sentence if the fitted stack moves a slice visibly. Stacks that are refused are named when read."""
    try:
        moved = geometry.header_stack([image.header for image in stack]).moved_mm
    except Exception:  # any invalid header
        return
    if moved > VISIBLE_MM:
        yield f"its headers place slices up to {moved:.2f} mm from an even stack, which is used"


def find_series_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of all series below a folder, the counts of other files, and notes. Raises: InputError."""
    found = read_headers(walk_files(folder))
    check_one_patient(found.slices)
    slices = drop_duplicates(found.slices)
    found.repeated = len(found.slices) - len(slices)
    studies, notes = unify.study_uids([image.header for image in slices])
    uids, more = unify.series_uids([image.header for image in slices], studies)
    named = {id(image): (study, uid) for image, study, uid in zip(slices, studies, uids, strict=True)}
    series: list[dict[str, Any]] = []
    for (study, uid), group in _group_by(slices, lambda image: named[id(image)]).items():
        stacks = split_stacks(group)
        names = [digest(uid)] if len(stacks) == 1 else [digest(f"{uid} {number}") for number in range(len(stacks))]
        for stack, name in zip(stacks, names, strict=True):
            try:
                series.append({**series_fields(stack.slices, name, stack.warnings), "study": digest(study)})
            except Exception:  # any invalid header
                found.damaged += len(stack.slices)
    series.sort(key=lambda fields: (fields["study"], fields["numbers"].get("SeriesNumber", 0.0), fields["key"]))
    counts = {name: getattr(found, name) for name in ("foreign", "other", "damaged", "repeated")}
    return {"series": series, "notes": [*notes, *more], **counts}


def main(folder: str, target: str) -> None:
    """Read the headers of a folder and write the result as JSON. Runs in the separate process."""
    warnings.simplefilter("ignore")  # warnings may quote header values
    logging.disable(logging.CRITICAL)
    confine(SPARE_BYTES)
    try:
        answer = find_series_fields(Path(folder))
    except InputError as error:
        answer = {"refused": str(error)}
    except Exception as error:  # its message may quote header values
        sys.exit(type(error).__name__)
    Path(target).write_text(json.dumps(answer), encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
