"""What objects that are derived from a series take over from it: by a list of what is taken, never of what is not.

For filing in an archive a derived object needs the attributes that the standard requires of its patient and study.
With `Pseudonyms` nobody is named: UIDs and the patient's identifier become keyed digests, everything else of `FILING`
is left empty. The list is short, so no free text, private attribute, name of staff or place, or date of the source can
slip through.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glimpseg.data.dicom.geometry import is_enhanced
from glimpseg.data.dicom.headers import value
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
NO_DATE, NO_TIME = "19000101", "000000"
"""Stand where a date or time must not be empty and must not be told."""
PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")


@dataclass(frozen=True)
class Pseudonyms:
    """Replaces what identifies: the same by the same under one key, and nothing that can be found without the key.

    Give one to every object that is to refer to another, the measurements to their segmentation for instance. Whoever
    keeps the key can repeat the replacement, for the images too.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def uid(self, original: str) -> str:
        """A UID of the kind that is made of a random number (root 2.25)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=4).int}"

    def person(self, original: str) -> str:
        """Name and identifier of somebody."""
        return f"P{self._digest('person', original).hex()[:12].upper()}"

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.digest(self.key, f"{kind} {original}".encode(), "sha256")


def reduced(datasets: Sequence[Dataset], pseudonyms: Pseudonyms | None = None) -> list[Dataset]:
    """Headers of a series with nothing in them but what a derived object may take over.

    A value that breaks the rules of its kind is emptied, with a warning that names the attribute.

    Raises: InputError if a UID is none, or absent: nothing could refer to such a file.
    """
    refused: set[str] = set()
    headers = [_reduced(dataset, pseudonyms, refused) for dataset in datasets]
    if refused:
        log.warning("Emptied in what is written, because the source's values are not valid: %s.", sorted(refused))
    return headers


def mark_pseudonymous(dataset: Dataset) -> None:
    """Says in a derived object that nobody is named in it, and empties its own dates and times."""
    from pydicom.dataset import Dataset

    for element in dataset.iterall():
        if element.VR in ("DA", "TM", "DT") and element.value:
            element.value = {"DA": NO_DATE, "TM": NO_TIME, "DT": NO_DATE + NO_TIME}[element.VR]
    dataset.StudyDate = dataset.StudyTime = ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "glimpseg: only required attributes, UIDs by keyed digest"
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = PROFILE
    dataset.DeidentificationMethodCodeSequence = [item]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


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
