"""BraTS 2013 to 2016: `HGG/PATIENT/VSD.Brain.XX.O.MR_T1c.54514/VSD.Brain.XX.O.MR_T1c.54514.mha`.

Patients of both grades may share a name, so a study under `HGG` or `LGG` has the grade in its id. The reference is the
file with `.OT.` in its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from glimpseg.data.layouts.layout import (
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
    printable,
)
from glimpseg.modality import ALIASES, Modality
from glimpseg.study import Study

_NAME = re.compile(
    r"^VSD\.Brain[\w-]*\.[\w.-]*?\b(?:MR_(?P<what>T1c|T1|T2|Flair)|(?P<reference>OT))(?:\.\d+)?(?P<end>\.mha)?$",
    re.IGNORECASE,
)
_GRADES = ("HGG", "LGG")


def recognises(listing: FolderListing) -> bool:
    """True if folders or files of a patient's folder are named by their sequences."""
    below = any(_NAME.match(name) for name in listing.folders)
    return below or any((match := _NAME.match(name)) and match["end"] for name in listing.files)


def read(listing: FolderListing) -> ReadResult:
    """Read the study in one patient's folder."""
    images: dict[Modality, Path] = {}
    references: list[Path] = []
    problem = ""
    broken_links: list[Path] = []
    for path in _files(listing):
        match = _NAME.match(path.name)
        if match is None or not match["end"]:
            continue
        if is_broken_link(path):
            broken_links.append(path)
        elif match["reference"]:
            references.append(path)
        elif (modality := ALIASES[match["what"].lower()]) in images:
            problem = _describe_pair(f"{modality.title} images", images[modality], path)
        else:
            images[modality] = path
    if not images:
        return ReadResult(notes=broken_link_notes(broken_links))
    reference_problem = _describe_pair("references", *references[:2]) if len(references) > 1 else ""
    grade = listing.path.parent.name.upper()
    name = printable(listing.path.name)
    study = Study(f"{grade}_{name}" if grade in _GRADES else name, images, references[0] if references else None)
    entry = StudyEntry(study, "brats2015", "brats2015", reference_problem=reference_problem, problem=problem)
    return ReadResult([entry], notes=broken_link_notes(broken_links))


def _files(listing: FolderListing) -> list[Path]:
    here = [listing.path / name for name in listing.files]
    below = [listing.path / name for name in listing.folders if _NAME.match(name)]
    return sorted([*here, *(path for folder in below for path in folder.iterdir())])


def _describe_pair(what: str, first: Path, second: Path) -> str:
    return f"Two {what} of one study: {printable(first.name)} and {printable(second.name)}. Move one of them away."


LAYOUT = Layout("brats2015", "PATIENT/VSD.Brain.XX.O.MR_T1c.N/VSD.Brain.XX.O.MR_T1c.N.mha", recognises, read)
