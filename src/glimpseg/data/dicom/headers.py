"""The header of one DICOM image: whether it is one, what it says of the acquisition, and nothing of whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
"""SOP classes of magnetic resonance that hold many frames in one file: enhanced, and converted to enhanced."""
DEFLATED = "1.2.840.10008.1.2.1.99"
"""A transfer syntax that packs the whole data set; no scanner uses it, and a bomb would."""

TEXT_KEYWORDS = (
    "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "ContrastBolusAgent",
    "ContrastBolusRoute", "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType",
    "AcquisitionContrast", "ComplexImageComponent", "BodyPartExamined", "StudyDescription", "Manufacturer",
    "ManufacturerModelName", "DerivationDescription", "DiffusionDirectionality",
)  # fmt: skip
"""Attributes that `Series.words` takes over."""
NUMBER_KEYWORDS = (
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "SliceThickness",
    "SpacingBetweenSlices", "EchoTrainLength", "NumberOfAverages", "SeriesNumber", "AcquisitionNumber", "EchoNumbers",
    "DiffusionBValue", "ContrastBolusVolume", "NumberOfTemporalPositions", "TemporalPositionIdentifier", "TriggerTime",
)  # fmt: skip
"""Attributes that `Series.numbers` takes over."""
ENHANCED_KEYWORDS = {
    "EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes", "EchoTrainLength": "RFEchoTrainLength",
    "TemporalPositionIdentifier": "TemporalPositionIndex", "TriggerTime": "NominalCardiacTriggerDelayTime",
    "ContrastBolusAgent": "ContrastBolusAgentSequence",
}  # fmt: skip
"""What enhanced files call the same."""
GEOMETRY_KEYWORDS = (
    "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "FrameOfReferenceUID", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
TIME_KEYWORDS = ("AcquisitionTime", "AcquisitionDateTime", "SeriesTime", "ContrastBolusStartTime", "ContentTime")
UID_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "InstanceNumber", "ImageType")
PATIENT_KEYWORDS = ("PatientID", "PatientName", "PatientBirthDate")
"""By these two files are told to be of one patient; see `same_person`."""
IDENTIFYING_KEYWORDS = (
    *PATIENT_KEYWORDS, "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "AccessionNumber", "StudyID", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
    "RequestingPhysician", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "StudyDate", "SeriesDate", "AcquisitionDate",
)  # fmt: skip
"""Their words are taken out of free text wherever they stand in it."""
_ENHANCED_ONLY = (*ENHANCED_KEYWORDS.values(), "ContrastAdministrationProfileSequence")
KEYWORDS = tuple(
    dict.fromkeys(
        (
            *TEXT_KEYWORDS,
            *NUMBER_KEYWORDS,
            *GEOMETRY_KEYWORDS,
            *TIME_KEYWORDS,
            *UID_KEYWORDS,
            *IDENTIFYING_KEYWORDS,
            *_ENHANCED_ONLY,
        )
    )
)
"""All that is read of a header."""

SHORTEST_NAME = 3
"""Shorter words of a name are not looked for: they would take the 1 out of T1."""
LONGEST_TEXT = 200
_DATE = re.compile(r"(?<!\d)(?:(?:19|20)\d{6}|\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4})(?!\d)")
_WORD = re.compile(r"[^\W_]+")


class NotDicom(Exception):
    """The file is no DICOM file."""


def read_header(path: Path) -> Dataset:
    """The attributes of `KEYWORDS` that a file has; pixels stay on the disk.

    Raises: NotDicom; ValueError, or whatever the parser stumbles over, if the file begins as DICOM and does not go on.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError as error:
        raise NotDicom from error
    if meta.get("TransferSyntaxUID") == DEFLATED:
        raise ValueError("a deflated data set is not read")
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))


def value(dataset: Dataset, keyword: str) -> Any:
    """An attribute; None if it is absent, empty or written so that it cannot be read."""
    try:
        found = dataset.get(keyword)
    except Exception:  # each kind of nonsense in a value has its own error in pydicom, and all mean the same here
        return None
    return None if found is None or (isinstance(found, str | bytes | list) and not len(found)) else found


def deep_value(dataset: Dataset, keyword: str) -> Any:
    """As `value`; in an enhanced file also from the groups that all frames share, or else from the first frame's."""
    found = value(dataset, keyword)
    if found is not None:
        return found
    names = (keyword, ENHANCED_KEYWORDS.get(keyword, keyword))
    for place in (dataset, *_groups(dataset)):
        for name in names:
            found = value(place, name)
            if found is not None:
                return found
    return None


def _groups(dataset: Dataset) -> Iterator[Dataset]:
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (value(dataset, keyword) or [])[:1]:
            for element in item:
                if element.VR == "SQ" and element.value:
                    yield element.value[0]
    yield from (value(dataset, "ContrastAdministrationProfileSequence") or [])[:1]


def texts(dataset: Dataset) -> dict[str, str]:
    """What `WORDS` say, in which nothing that names the patient, the staff or a day is left."""
    names = _naming_words(dataset)
    found = {keyword: scrubbed(_text(deep_value(dataset, keyword)), names) for keyword in TEXT_KEYWORDS}
    return {keyword: text for keyword, text in found.items() if text}


def numbers(dataset: Dataset) -> dict[str, float]:
    """What `NUMBERS` say, as far as they are numbers."""
    found = {keyword: first_number(deep_value(dataset, keyword)) for keyword in NUMBER_KEYWORDS}
    return {keyword: one for keyword, one in found.items() if one is not None}


def first_number(found: Any) -> float | None:
    """The first number in a value."""
    if hasattr(found, "__iter__") and not isinstance(found, str | bytes):
        found = next(iter(found), None)
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError):
        return None


def image_type(dataset: Dataset) -> tuple[str, ...]:
    """DICOM's ImageType in capitals."""
    found = value(dataset, "ImageType")
    names = _naming_words(dataset)
    parts = [found] if isinstance(found, str) else list(found or ())
    return tuple(scrubbed(str(part), names).upper() for part in parts)


def second_of_day(dataset: Dataset, *keywords: str) -> float | None:
    """The first of these times (TM or DT) that can be read."""
    for keyword in keywords:
        text = _text(deep_value(dataset, keyword))
        clock = re.fullmatch(r"(?:\d{8})?(\d\d):?(\d\d)?:?(\d\d(?:\.\d+)?)?(?:[+-]\d{4})?", text.strip())
        if clock and (keyword.endswith("DateTime") or len(text.split(".")[0]) < len("20000101")):
            hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            return 3600 * hours + 60 * minutes + seconds
    return None


def differing_identity(first: Dataset, second: Dataset) -> str | None:
    """The attribute by which two files are of two patients: both have it, and it is not the same."""
    for keyword in PATIENT_KEYWORDS:
        ours, theirs = (_plain(value(dataset, keyword)) for dataset in (first, second))
        if ours and theirs and ours != theirs:
            return keyword
    return None


def scrubbed(text: str, names: frozenset[str]) -> str:
    """`text` on one line, without dates and without the words of `names` (lower case)."""
    text = "".join(char if char.isprintable() else " " for char in text[:LONGEST_TEXT])
    text = _DATE.sub(" ", text)
    text = _WORD.sub(lambda word: " " if word[0].lower() in names else word[0], text)
    for name in names:
        if len(name) > SHORTEST_NAME + 1:  # long enough to be no accident inside another word
            text = re.sub(re.escape(name), " ", text, flags=re.IGNORECASE)
    return " ".join(text.split())


def _naming_words(dataset: Dataset) -> frozenset[str]:
    found = [_text(value(dataset, keyword)) for keyword in IDENTIFYING_KEYWORDS]
    words = {word.lower() for text in found for word in _WORD.findall(text)}
    whole = {text.strip().lower() for text in found}  # an identifier with signs in it, as a whole
    return frozenset(word for word in words | whole if len(word) >= SHORTEST_NAME)


def _text(found: Any) -> str:
    from pydicom.sequence import Sequence

    if found is None:
        return ""
    if isinstance(found, Sequence):
        return " ".join(_text(value(item, "CodeMeaning")) for item in found)
    if isinstance(found, str | int | float) or not hasattr(found, "__iter__") or hasattr(found, "family_name"):
        return str(found)
    return " ".join(str(part) for part in found)


def _plain(found: Any) -> str:
    """Without what differs between two spellings of one name."""
    return " ".join(_WORD.findall(_text(found))).upper()
