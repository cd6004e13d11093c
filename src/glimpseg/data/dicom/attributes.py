"""Attributes that derived objects (SEG, SR) inherit from their source series: an allow-list.

An archive files an object by the attributes that the standard requires of patient and study. With `Pseudonyms` no
person is named: UIDs and the patient's identifier become keyed digests, and all other attributes in `FILING_KEYWORDS`
are empty. Nothing outside the list is copied: no free text, no private attribute, no name of staff or place, no other
date of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glimpseg.data.dicom.geometry import is_enhanced
from glimpseg.data.dicom.headers import value
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.notices import warn
from glimpseg.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UID_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
FILING_KEYWORDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
"""Type 2 attributes of the modules Patient and General Study; present in every derived object, perhaps empty."""
OPTIONAL_FILING_KEYWORDS = (
    "IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
"""Attributes that are inherited if the source has them. A source that was de-identified before stays marked as such."""
IMAGE_KEYWORDS = (
    "SOPClassUID", "Modality", "SeriesNumber", "InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "DimensionOrganizationType",
)  # fmt: skip
"""Attributes of the source's pixels and their geometry."""
GEOMETRY_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
"""Functional groups of an enhanced file that are inherited; no others are."""


def inherited_headers(datasets: Sequence[Dataset], pseudonyms: Pseudonyms | None = None) -> list[Dataset]:
    """Return headers of a series reduced to the attributes that a derived object may inherit.

    These are `UID_KEYWORDS`, `IMAGE_KEYWORDS`, `FILING_KEYWORDS`, `OPTIONAL_FILING_KEYWORDS` and, for an enhanced file,
    `GEOMETRY_GROUPS`. An invalid value is emptied, and a warning names the attribute.

    Args:
        datasets: headers of the series.
        pseudonyms: None keeps names and identifiers. Otherwise UIDs, PatientID and PatientName are replaced by
            pseudonyms, all others of `FILING_KEYWORDS` are empty, and `OPTIONAL_FILING_KEYWORDS` are left out.

    Raises:
        InputError: if a UID is absent or invalid, because nothing could refer to such a file.
    """
    refused: set[str] = set()
    headers = [_inherited_header(dataset, pseudonyms, refused) for dataset in datasets]
    if refused:
        warn(f"Attributes written empty, because the source's values are invalid: {', '.join(sorted(refused))}.")
    return headers


def _inherited_header(dataset: Dataset, pseudonyms: Pseudonyms | None, refused: set[str]) -> Dataset:
    from pydicom.dataset import Dataset

    header = Dataset()
    header.file_meta = dataset.file_meta
    for keyword in UID_KEYWORDS:
        original = str(value(dataset, keyword) or "")
        _check_uid(keyword, original)
        setattr(header, keyword, pseudonyms.uid(original) if pseudonyms else original)
    for keyword in IMAGE_KEYWORDS:
        found = value(dataset, keyword)
        if found is not None:
            setattr(header, keyword, found)
    for keyword in FILING_KEYWORDS:
        setattr(header, keyword, "" if pseudonyms else _valid_value(dataset, keyword, refused))
    if pseudonyms:
        header.PatientID = pseudonyms.person(str(value(dataset, "PatientID") or ""))
        header.PatientName = f"{header.PatientID}^"
    else:
        for keyword in OPTIONAL_FILING_KEYWORDS:
            if value(dataset, keyword) is not None:
                setattr(header, keyword, _valid_value(dataset, keyword, refused))
        if not all(
            str(header[keyword].value).isascii()
            for keyword in (*FILING_KEYWORDS, *OPTIONAL_FILING_KEYWORDS)
            if keyword in header
        ):
            header.SpecificCharacterSet = "ISO_IR 192"
    if is_enhanced(dataset):
        _copy_geometry_groups(header, dataset)
    return header


def _copy_geometry_groups(header: Dataset, dataset: Dataset) -> None:
    from pydicom.dataset import Dataset

    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = []
        for item in value(dataset, keyword) or []:
            group = Dataset()
            for name in GEOMETRY_GROUPS:
                if name in item:
                    setattr(group, name, item[name].value)
            groups.append(group)
        setattr(header, keyword, groups)


def _check_uid(keyword: str, original: str) -> None:
    from pydicom.uid import UID

    if not UID(original).is_valid:
        fault = f"a {keyword} that is no UID" if original else f"no {keyword}"
        raise InputError(
            f"The source series has {fault}, so nothing can refer to it. Write NIfTI instead, or "
            "correct the UIDs of the series (dcmodify)."
        )


def _valid_value(dataset: Dataset, keyword: str, refused: set[str]) -> Any:
    from pydicom import config
    from pydicom.valuerep import validate_value

    found = value(dataset, keyword)
    if found is None:
        return ""
    element = dataset[keyword]
    if element.VR == "SQ":
        return found
    text = str(found)
    try:
        validate_value(element.VR, text, config.RAISE)
    except ValueError:
        refused.add(keyword)
        return ""
    return text
