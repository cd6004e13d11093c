"""Pseudonyms: keyed digests that replace identifiers in derived objects."""

from __future__ import annotations

import hmac
import secrets
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NO_DATE, NO_TIME = "19000101", "000000"
"""Placeholders for a date or time that must be neither empty nor real."""
PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed digests that replace identifiers.

    Equal identifiers get equal digests under one key. Without the key they cannot be recovered. Give the same object to
    every file that refers to another, such as an SR and its SEG. The holder of the key can repeat the replacement, for
    the images too.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def uid(self, original: str) -> str:
        """Return a UID in the form of a random-number UID (root 2.25)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=4).int}"

    def person(self, original: str) -> str:
        """Return the pseudonym of a person's name or identifier."""
        return f"P{self._digest('person', original).hex()[:12].upper()}"

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.digest(self.key, f"{kind} {original}".encode(), "sha256")


def mark_pseudonymous(dataset: Dataset) -> None:
    """Mark a derived object as de-identified, and replace its own dates and times."""
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
