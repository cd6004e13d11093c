"""What labels and regions are called in coded terms, so that other programs know them: one table.

Where DICOM lists a term it is taken: context group 7168 (brain lesion segmentation types with necrosis). It has none
for the cavity after a resection and none for unions of its terms; those are coded by a scheme of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glimpseg.region import Label, Region

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

PRIVATE_SCHEME = "99GLIMPSEG"
"""Designators of private schemes begin with 99 (PS3.16, section 8.2)."""


@dataclass(frozen=True)
class Term:
    """A coded term and the words that a person reads."""

    value: str
    scheme: str
    meaning: str
    """The scheme's own words."""
    title: str
    """Ours; at most 64 characters."""

    def concept(self) -> CodedConcept:
        """As highdicom takes it."""
        from highdicom.sr import CodedConcept

        return CodedConcept(self.value, self.scheme, self.meaning)


LABELS: dict[Label, Term] = {
    Label.NCR: Term("6574001", "SCT", "Necrosis", "Necrosis and non-enhancing tumour core"),
    Label.ED: Term("79654002", "SCT", "Edema", "Oedema and infiltration"),
    Label.ET: Term("C113842", "NCIt", "Enhancing Lesion", "Enhancing tumour"),
    Label.RC: Term("RC", PRIVATE_SCHEME, "Resection cavity", "Resection cavity"),
}
"""Segment by segment what a label map holds."""
REGIONS: dict[Region, Term] = {
    Region.WT: Term("WT", PRIVATE_SCHEME, "Whole tumor with surrounding edema", "Whole tumour"),
    Region.TC: Term("TC", PRIVATE_SCHEME, "Tumor core", "Tumour core"),
    Region.ET: LABELS[Label.ET],
    Region.RC: LABELS[Label.RC],
}
"""What is measured."""
NO_TUMOUR = Term("108369006", "SCT", "Neoplasm", "No tumour found")
"""The one segment, without a voxel, of an empty label map: a segmentation has to describe one at least."""
CATEGORY = Term("49755003", "SCT", "Morphologically Abnormal Structure", "Abnormal structure")
BRAIN = Term("12738006", "SCT", "Brain", "Brain")
PROCEDURE = Term("25056-3", "LN", "MRI unspecified body region", "MRI")
MILLILITRE = Term("ml", "UCUM", "ml", "ml")
_NCIT_ALIASES = ("NCIt", "NCIT")


def label_of(value: str, scheme: str) -> Label | None:
    """The label that a segment's type means; None for `NOTHING` and for types that are no labels."""
    scheme = "NCIt" if scheme in _NCIT_ALIASES else scheme
    known = {(term.value, term.scheme): label for label, term in LABELS.items()}
    return known.get((value, scheme))


def private_scheme_item() -> Dataset:
    """The item of CodingSchemeIdentificationSequence that says whose `OWN_SCHEME` is."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Terms of glimpseg"
    item.CodingSchemeResponsibleOrganization = "glimpseg"
    return item
