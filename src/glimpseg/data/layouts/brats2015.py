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


def recognises(place: FolderListing) -> bool:
    """A patient's folder: its folders, or its files, are named by their sequences."""
    below = any(_NAME.match(name) for name in place.folders)
    return below or any((match := _NAME.match(name)) and match["end"] for name in place.files)


def read(place: FolderListing) -> ReadResult:
    """The study in one patient's folder."""
    images: dict[Modality, Path] = {}
    references: list[Path] = []
    problem = ""
    lost_ones: list[Path] = []
    for path in _files(place):
        match = _NAME.match(path.name)
        if match is None or not match["end"]:
            continue
        if is_broken_link(path):
            lost_ones.append(path)
        elif match["reference"]:
            references.append(path)
        elif (modality := ALIASES[match["what"].lower()]) in images:
            problem = _two(f"{modality.title} images", images[modality], path)
        else:
            images[modality] = path
    if not images:
        return ReadResult(notes=broken_link_notes(lost_ones))
    reference_problem = _two("references", *references[:2]) if len(references) > 1 else ""
    grade = place.path.parent.name.upper()
    name = printable(place.path.name)
    study = Study(f"{grade}_{name}" if grade in _GRADES else name, images, references[0] if references else None)
    entry = StudyEntry(study, "brats2015", "brats2015", reference_problem=reference_problem, problem=problem)
    return ReadResult([entry], notes=broken_link_notes(lost_ones))


def _files(place: FolderListing) -> list[Path]:
    here = [place.path / name for name in place.files]
    below = [place.path / name for name in place.folders if _NAME.match(name)]
    return sorted([*here, *(path for folder in below for path in folder.iterdir())])


def _two(what: str, first: Path, second: Path) -> str:
    return f"Two {what} of one study: {printable(str(first))} and {printable(second.name)}. Move one of them away."


LAYOUT = Layout("brats2015", "PATIENT/VSD.Brain.XX.O.MR_T1c.N/VSD.Brain.XX.O.MR_T1c.N.mha", recognises, read)
