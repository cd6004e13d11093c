"""Coded terms of labels and regions, for DICOM SEG and SR.

A term from DICOM is used where DICOM has one: context group 7168 (brain lesion segmentation types with necrosis). DICOM
has no term for the resection cavity and none for unions of its terms. These use a private coding scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glimpseg.region import Label, Region

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

PRIVATE_SCHEME = "99GLIMPSEG"
"""Designator of the private coding scheme; such designators begin with 99 (PS3.16, section 8.2)."""


@dataclass(frozen=True)
class Term:
    """A coded term and a title for people."""

    value: str
    scheme: str
    meaning: str
    """Code meaning, in the words of the coding scheme."""
    title: str
    """Title that glimpseg shows; at most 64 characters."""

    def concept(self) -> CodedConcept:
        """Return the term as a highdicom `CodedConcept`."""
        from highdicom.sr import CodedConcept

        return CodedConcept(self.value, self.scheme, self.meaning)


LABELS: dict[Label, Term] = {
    Label.NCR: Term("6574001", "SCT", "Necrosis", "Necrosis and non-enhancing tumour core"),
    Label.ED: Term("79654002", "SCT", "Edema", "Oedema and infiltration"),
    Label.ET: Term("C113842", "NCIt", "Enhancing Lesion", "Enhancing tumour"),
    Label.RC: Term("RC", PRIVATE_SCHEME, "Resection cavity", "Resection cavity"),
}
"""Coded term of each label; one segment of a SEG per label."""
REGIONS: dict[Region, Term] = {
    Region.WT: Term("WT", PRIVATE_SCHEME, "Whole tumor with surrounding edema", "Whole tumour"),
    Region.TC: Term("TC", PRIVATE_SCHEME, "Tumor core", "Tumour core"),
    Region.ET: LABELS[Label.ET],
    Region.RC: LABELS[Label.RC],
}
"""Coded term of each measured region, for the SR."""
NO_TUMOUR = Term("108369006", "SCT", "Neoplasm", "No tumour found")
"""Term of the only segment, without voxels, of an empty label map. A SEG must describe at least one segment."""
CATEGORY = Term("49755003", "SCT", "Morphologically Abnormal Structure", "Abnormal structure")
BRAIN = Term("12738006", "SCT", "Brain", "Brain")
PROCEDURE = Term("25056-3", "LN", "MRI unspecified body region", "MRI")
MILLILITRE = Term("ml", "UCUM", "ml", "ml")
_NCIT_ALIASES = ("NCIt", "NCIT")


def label_of(value: str, scheme: str) -> Label | None:
    """Return the label that a segment's coded type means; None for `NO_TUMOUR` and for unknown types."""
    scheme = "NCIt" if scheme in _NCIT_ALIASES else scheme
    known = {(term.value, term.scheme): label for label, term in LABELS.items()}
    return known.get((value, scheme))


def private_scheme_item() -> Dataset:
    """Return the item of CodingSchemeIdentificationSequence that identifies `PRIVATE_SCHEME`."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Terms of glimpseg"
    item.CodingSchemeResponsibleOrganization = "glimpseg"
    return item
