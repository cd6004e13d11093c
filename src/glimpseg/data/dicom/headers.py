"""Headers of DICOM images: parsing, attribute access, and removal of names and dates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CLASSES = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
"""SOP classes of MR images with many frames in one file: enhanced, and converted to enhanced."""
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
"""Transfer syntax that compresses the whole data set. No scanner uses it, and it could expand without limit."""

TEXT_KEYWORDS = (
    "SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "ContrastBolusAgent",
    "ContrastBolusRoute", "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType",
    "AcquisitionContrast", "ComplexImageComponent", "BodyPartExamined", "StudyDescription", "Manufacturer",
    "ManufacturerModelName", "DerivationDescription", "DiffusionDirectionality",
)  # fmt: skip
"""Attributes that `Series.words` holds."""
NUMBER_KEYWORDS = (
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "SliceThickness",
    "SpacingBetweenSlices", "EchoTrainLength", "NumberOfAverages", "SeriesNumber", "AcquisitionNumber", "EchoNumbers",
    "DiffusionBValue", "ContrastBolusVolume", "NumberOfTemporalPositions", "TemporalPositionIdentifier", "TriggerTime",
)  # fmt: skip
"""Attributes that `Series.numbers` holds."""
ENHANCED_KEYWORDS = {
    "EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes", "EchoTrainLength": "RFEchoTrainLength",
    "TemporalPositionIdentifier": "TemporalPositionIndex", "TriggerTime": "NominalCardiacTriggerDelayTime",
    "ContrastBolusAgent": "ContrastBolusAgentSequence",
}  # fmt: skip
"""Names of the same attributes in enhanced files."""
GEOMETRY_KEYWORDS = (
    "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "FrameOfReferenceUID", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
TIME_KEYWORDS = (
    "AcquisitionTime", "AcquisitionDateTime", "SeriesTime", "ContrastBolusStartTime", "ContentTime", "StudyTime",
)  # fmt: skip
UID_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "InstanceNumber", "ImageType")
PATIENT_KEYWORDS = ("PatientID", "PatientName", "PatientBirthDate")
"""Attributes that tell patients apart; see `differing_identity`."""
IDENTIFYING_KEYWORDS = (
    *PATIENT_KEYWORDS, "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "AccessionNumber", "StudyID", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
    "RequestingPhysician", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "StudyDate", "SeriesDate",
    "AcquisitionDate",
)  # fmt: skip
"""Attributes whose words are removed from free text."""
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
"""All attributes that are read from a header."""

SHORTEST_NAME = 3
"""Shortest word of a name that is removed from text, letters. Shorter words would remove the 1 of T1."""
LONGEST_TEXT = 200
_DATE = re.compile(r"(?<!\d)(?:(?:19|20)\d{6}|\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4})(?!\d)")
_WORD = re.compile(r"[^\W_]+")


PREAMBLE, MAGIC = 128, b"DICM"
"""Length of the preamble of a DICOM file, bytes, and the letters that follow it."""
FIRST_ELEMENT_BYTES = 8
"""Bytes of the tag and the length of a data element."""
FIRST_VRS = (b"UL", b"CS", b"UI", b"LO", b"SH", b"DA", b"OB")
"""Value representations of the elements with which group 2 or 8 may begin."""
LAST_FIRST_ELEMENT = 0x0060
"""Largest element number with which group 2 or 8 begins; 0060 is the modality."""
LONGEST_FIRST_VALUE = 256
"""Largest length of the first value of a file without explicit VR, bytes."""
LONGEST_META = 4096
"""Bytes in which group 2 ends, and that are searched for the transfer syntax."""


class NotDicom(Exception):
    """Error for a file that does not begin as DICOM."""


class DeflatedError(ValueError):
    """The data set is deflated."""


def begins_as_dicom(path: Path) -> bool:
    """True if a file begins as DICOM: by the letters DICM, or by an element of group 2 or 8 without a preamble.

    Old exports of several vendors lack the preamble, and group 2 too.
    """
    try:
        with path.open("rb") as stream:
            block = stream.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    return block[PREAMBLE:] == MAGIC or _begins_with_element(block)


def _begins_with_element(block: bytes) -> bool:
    """True if bytes begin with a data element of group 2 or 8, of explicit or implicit VR."""
    if len(block) < 2 * FIRST_ELEMENT_BYTES:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(block[:2], order), int.from_bytes(block[2:4], order)  # type: ignore[arg-type]
        if group in (2, 8) and element <= LAST_FIRST_ELEMENT:
            length = int.from_bytes(block[4:8], order)  # type: ignore[arg-type]
            return block[4:6] in FIRST_VRS or length <= LONGEST_FIRST_VALUE
    return False


def read_header(path: Path) -> Dataset:
    """Read the attributes in `KEYWORDS` of a file, without pixels.

    Raises:
        NotDicom: if the file does not begin as DICOM.
        ValueError: or any other error of the parser, if the file begins as DICOM but cannot be parsed.
    """
    return read_dataset(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))


def read_dataset(path: Path, **options: Any) -> Dataset:
    """Read a DICOM file, with or without preamble and group 2; `file_meta` always has the transfer syntax.

    Args:
        path: file to read.
        options: further arguments of `pydicom.dcmread`.

    Raises:
        NotDicom: if the file does not begin as DICOM.
        ValueError: or any other error of the parser, if the file begins as DICOM but cannot be parsed.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not begins_as_dicom(path):
        raise NotDicom
    with path.open("rb") as stream:
        begin = stream.read(PREAMBLE + LONGEST_META)
    # The transfer syntax is checked before pydicom sees the file, since it would inflate the data set at once.
    if DEFLATED_SYNTAX.encode() in begin and b"\x02\x00\x10\x00" in begin:
        raise DeflatedError("a deflated data set is not read")
    dataset = pydicom.dcmread(path, force=True, **options)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return dataset


def decimal_comma(dataset: Dataset, *keywords: str) -> str | None:
    """Return a sentence that names the first of these attributes whose numbers have decimal commas; None if none has.

    DICOM numbers have decimal points.
    """
    for keyword in keywords:
        try:
            raw = dataset.get_item(keyword)
        except Exception:  # pydicom raises a different error for each kind of invalid value
            continue
        content = getattr(raw, "value", None)
        if isinstance(content, bytes):
            text = content.decode("ascii", "replace")
        else:
            text = content if isinstance(content, str) else "\\".join(map(str, content or ()))
        text = text.strip("\0 ")
        if re.fullmatch(r"[-+0-9eE., \\]{1,200}", text) and "," in text:
            return f"Its {keyword} is {text} with decimal commas, and DICOM has decimal points"
    return None


def value(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value; None if it is absent, empty or unreadable."""
    try:
        found = dataset.get(keyword)
    except Exception:  # pydicom raises a different error for each kind of invalid value
        return None
    return None if found is None or (isinstance(found, str | bytes | list) and not len(found)) else found


def deep_value(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value like `value`, and look into the functional groups of an enhanced file.

    The groups shared by all frames are searched first, then those of the first frame.
    """
    found = value(dataset, keyword)
    if found is not None:
        return found
    names = (keyword, ENHANCED_KEYWORDS.get(keyword, keyword))
    for place in (dataset, *_functional_groups(dataset)):
        for name in names:
            found = value(place, name)
            if found is not None:
                return found
    return None


def _functional_groups(dataset: Dataset) -> Iterator[Dataset]:
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (value(dataset, keyword) or [])[:1]:
            for element in item:
                if element.VR == "SQ" and element.value:
                    yield element.value[0]
    yield from (value(dataset, "ContrastAdministrationProfileSequence") or [])[:1]


def texts(dataset: Dataset) -> dict[str, str]:
    """Return the attributes in `TEXT_KEYWORDS`, without names of the patient or staff and without dates."""
    names = _identifying_words(dataset)
    found = {keyword: scrubbed(_as_text(deep_value(dataset, keyword)), names) for keyword in TEXT_KEYWORDS}
    return {keyword: text for keyword, text in found.items() if text}


def numbers(dataset: Dataset) -> dict[str, float]:
    """Return the attributes in `NUMBER_KEYWORDS` that are numbers."""
    found = {keyword: first_number(deep_value(dataset, keyword)) for keyword in NUMBER_KEYWORDS}
    return {keyword: one for keyword, one in found.items() if one is not None}


def first_number(found: Any) -> float | None:
    """Return a value, or its first element if it has several, as a number; None if that is no number."""
    if hasattr(found, "__iter__") and not isinstance(found, str | bytes):
        found = next(iter(found), None)
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError):
        return None


def image_type(dataset: Dataset) -> tuple[str, ...]:
    """Return DICOM's ImageType in capitals."""
    found = value(dataset, "ImageType")
    names = _identifying_words(dataset)
    parts = [found] if isinstance(found, str) else list(found or ())
    return tuple(scrubbed(str(part), names).upper() for part in parts)


def second_of_day(dataset: Dataset, *keywords: str) -> float | None:
    """Return the first of these time attributes (TM or DT) that can be read, as the second of the day; else None."""
    for keyword in keywords:
        text = _as_text(deep_value(dataset, keyword))
        clock = re.fullmatch(r"(?:\d{8})?(\d\d):?(\d\d)?:?(\d\d(?:\.\d+)?)?(?:[+-]\d{4})?", text.strip())
        if clock and (keyword.endswith("DateTime") or len(text.split(".")[0]) < len("20000101")):
            hours, minutes, seconds = (float(part or 0) for part in clock.groups())
            return 3600 * hours + 60 * minutes + seconds
    return None


def differing_identity(first: Dataset, second: Dataset) -> str | None:
    """Return the attribute that shows two files to be of different patients; None otherwise.

    Both files have the attribute, and its values differ.
    """
    for keyword in PATIENT_KEYWORDS:
        ours, theirs = (_normalised(value(dataset, keyword)) for dataset in (first, second))
        if ours and theirs and ours != theirs:
            return keyword
    return None


def scrubbed(text: str, names: frozenset[str]) -> str:
    """Return text on one line without dates and without the words in `names`.

    Args:
        text: free text of a header.
        names: words to remove, in lower case.
    """
    text = "".join(char if char.isprintable() else " " for char in text[:LONGEST_TEXT])
    text = _DATE.sub(" ", text)
    text = _WORD.sub(lambda word: " " if word[0].lower() in names else word[0], text)
    for name in names:
        if len(name) > SHORTEST_NAME + 1:  # shorter names may be part of another word by chance
            text = re.sub(re.escape(name), " ", text, flags=re.IGNORECASE)
    return " ".join(text.split())


def _identifying_words(dataset: Dataset) -> frozenset[str]:
    found = [_as_text(value(dataset, keyword)) for keyword in IDENTIFYING_KEYWORDS]
    words = {word.lower() for text in found for word in _WORD.findall(text)}
    whole = {text.strip().lower() for text in found}  # whole identifiers with punctuation
    return frozenset(word for word in words | whole if len(word) >= SHORTEST_NAME)


def _as_text(found: Any) -> str:
    from pydicom.sequence import Sequence

    if found is None:
        return ""
    if isinstance(found, Sequence):
        return " ".join(_as_text(value(item, "CodeMeaning")) for item in found)
    if isinstance(found, str | int | float) or not hasattr(found, "__iter__") or hasattr(found, "family_name"):
        return str(found)
    return " ".join(str(part) for part in found)


def _normalised(found: Any) -> str:
    """Return a value in capitals without punctuation, so that two spellings of one name compare equal."""
    return " ".join(_WORD.findall(_as_text(found))).upper()
