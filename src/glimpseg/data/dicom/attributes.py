"""What objects that are derived from a series take over from it: by a list of what is taken, never of what is not.

For filing in an archive a derived object needs the attributes that the standard requires of its patient and study.
With `Pseudonyms` nobody is named: UIDs and the patient's identifier become keyed digests, everything else of `FILING`
is left empty. The list is short, so no free text, private attribute, name of staff or place, or date of the source can
slip through.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glimpseg.data.dicom.geometry import is_enhanced
from glimpseg.data.dicom.headers import value
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
FILING = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
"""Type 2 of the modules Patient and General Study: present in every derived object, though perhaps empty."""
MORE_FILING = (
    "IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
"""Taken over if the source has it; a source that was de-identified before stays marked as such."""
IMAGE = (
    "SOPClassUID", "Modality", "SeriesNumber", "InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "DimensionOrganizationType",
)  # fmt: skip
"""What the pixels of the source are, and where."""
PLANE_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
"""Of an enhanced file's functional groups; these alone."""


def inherited_headers(datasets: Sequence[Dataset], pseudonyms: Pseudonyms | None = None) -> list[Dataset]:
    """Headers of a series with nothing in them but what a derived object may take over.

    A value that breaks the rules of its kind is emptied, with a warning that names the attribute.

    Raises: InputError if a UID is none, or absent: nothing could refer to such a file.
    """
    refused: set[str] = set()
    headers = [_reduced(dataset, pseudonyms, refused) for dataset in datasets]
    if refused:
        log.warning("Emptied in what is written, because the source's values are not valid: %s.", sorted(refused))
    return headers


def _reduced(dataset: Dataset, pseudonyms: Pseudonyms | None, refused: set[str]) -> Dataset:
    from pydicom.dataset import Dataset

    header = Dataset()
    header.file_meta = dataset.file_meta
    for keyword in UIDS:
        original = str(value(dataset, keyword) or "")
        _check_uid(keyword, original)
        setattr(header, keyword, pseudonyms.uid(original) if pseudonyms else original)
    for keyword in IMAGE:
        found = value(dataset, keyword)
        if found is not None:
            setattr(header, keyword, found)
    for keyword in FILING:
        setattr(header, keyword, "" if pseudonyms else _valid(dataset, keyword, refused))
    if pseudonyms:
        header.PatientID = pseudonyms.person(str(value(dataset, "PatientID") or ""))
        header.PatientName = f"{header.PatientID}^"
    else:
        for keyword in MORE_FILING:
            if value(dataset, keyword) is not None:
                setattr(header, keyword, _valid(dataset, keyword, refused))
        if not all(str(header[keyword].value).isascii() for keyword in (*FILING, *MORE_FILING) if keyword in header):
            header.SpecificCharacterSet = "ISO_IR 192"
    if is_enhanced(dataset):
        _add_groups(header, dataset)
    return header


def _add_groups(header: Dataset, dataset: Dataset) -> None:
    from pydicom.dataset import Dataset

    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = []
        for item in value(dataset, keyword) or []:
            group = Dataset()
            for name in PLANE_GROUPS:
                if name in item:
                    setattr(group, name, item[name].value)
            groups.append(group)
        setattr(header, keyword, groups)


def _check_uid(keyword: str, original: str) -> None:
    from pydicom.uid import UID

    if not UID(original).is_valid:
        raise InputError(
            f"The source series has a {keyword} that is no UID, so nothing can refer to it. Write NIfTI instead, or "
            "correct the UIDs of the series (dcmodify)."
        )


def _valid(dataset: Dataset, keyword: str, refused: set[str]) -> Any:
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
