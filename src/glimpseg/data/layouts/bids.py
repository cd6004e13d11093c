"""The Brain Imaging Data Structure: `sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR}.nii.gz`, a T1w with a `ce-` entity being T1c.

References are `*_dseg.nii.gz`, beside the images or in `derivatives/*/`; what glimpseg itself wrote there is a
prediction and none. The `dseg.tsv` of a reference says what its numbers mean; one whose names are no parts of a tumour
is an anatomical one and left aside.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glimpseg.data.layouts.bids_names import ANATOMY, DERIVATIVES, DESCRIPTION, BidsName, anat_folder, parse_name
from glimpseg.data.layouts.bids_writer import GENERATOR, write
from glimpseg.data.layouts.label_names import BACKGROUND, convention_of_labels
from glimpseg.data.layouts.layout import (
    NIFTI,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
    printable,
    stem_of,
)
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.region import Convention
from glimpseg.study import Study

_SUFFIXES = {"T1w": Modality.T1, "T2w": Modality.T2, "FLAIR": Modality.FLAIR}
_CONTRAST = re.compile(r"^ce|^post|^gd|gd$|gad|contrast", re.IGNORECASE)
"""Values of acq-, rec- or desc- by which people say what `ce-` should say."""
_VISIT = re.compile(r"^sub-[A-Za-z0-9]+$")
_CHOOSE = (
    "Name the one to use in a manifest (a table with the columns study, t1, t1c, t2, flair, seg), or move the other "
    "away."
)


@dataclass(frozen=True)
class _Labelled:
    """A label map that may be the reference, and what its table says."""

    path: Path
    convention: Convention | None
    label_problem: str


def recognises(place: FolderListing) -> bool:
    """A folder of subjects that have anatomical images."""
    return any(_visits(place.path, name) for name in place.folders if _VISIT.match(name))


def read(place: FolderListing) -> ReadResult:
    """All visits that have an image of one of the four sequences."""
    entries: list[StudyEntry] = []
    other_maps: list[Path] = []
    lost_ones: list[Path] = []
    roots = [place.path, *_pipelines(place.path)]
    for subject in sorted(filter(_VISIT.match, place.folders)):
        for name in _visits(place.path, subject):
            images, problem = _images(anat_folder(place.path, name), lost_ones)
            if images:
                references, others = _references(name, roots)
                other_maps += others
                entries.append(_entry(name, images, problem, references))
    return ReadResult(entries, other_maps, broken_link_notes(lost_ones))


def _entry(name: str, images: dict[Modality, Path], problem: str, references: Sequence[_Labelled]) -> StudyEntry:
    study = Study(printable(name), images)
    if not references:
        return StudyEntry(study, "bids", "brats", problem=problem)
    first, reference_problem = references[0], references[0].label_problem
    if len(references) > 1:
        reference_problem = f"{study.id} has two references: {_two(first.path, references[1].path)}"
    return StudyEntry(
        replace(study, reference=first.path, convention=first.convention), "bids", "brats", reference_problem, problem
    )


def _visits(root: Path, subject: str) -> list[str]:
    """`sub-01`, or `sub-01_ses-02` for each session: what has a folder of anatomical images."""
    folder = root / subject
    sessions = sorted(path.name for path in folder.glob("ses-*") if (path / ANATOMY).is_dir())
    own = [subject] if (folder / ANATOMY).is_dir() else []
    return [*own, *(f"{subject}_{session}" for session in sessions)]


def _images(folder: Path, lost_ones: list[Path]) -> tuple[dict[Modality, Path], str]:
    """The images of a visit, and what is wrong with them, if anything is."""
    found: dict[Modality, Path] = {}
    problem = ""
    for path in _nifti(folder):
        name = parse_name(stem_of(path.name))
        modality = _SUFFIXES.get(name.suffix) if name else None
        if name is None or modality is None:
            continue
        if is_broken_link(path):
            lost_ones.append(path)
            continue
        if modality is Modality.T1:
            modality = Modality.T1C if "ce" in name.entities else modality
            problem = problem or _contrast_elsewhere(path, name)
        if modality in found:
            problem = f"{printable(str(folder))} holds two {modality.title} images: {_two(found[modality], path)}"
        found.setdefault(modality, path)
    return found, problem


def _two(first: Path, second: Path) -> str:
    return f"{printable(first.name)} and {printable(second.name)}. {_CHOOSE}"


def _contrast_elsewhere(path: Path, name: BidsName) -> str:
    said = [f"{key}-{name.entities[key]}" for key in ("acq", "rec", "desc") if key in name.entities]
    said = [entity for entity in said if _CONTRAST.search(entity.partition("-")[2])]
    if "ce" in name.entities or not said:
        return ""
    return (
        f"{printable(path.name)} is T1 by its name, as it has no ce- entity, but {said[0]} speaks of contrast agent. "
        "Rename it to ce-gadolinium, or name the files in a manifest (a table with the columns study, t1, t1c, t2, "
        "flair, seg)."
    )


def _references(name: str, roots: Sequence[Path]) -> tuple[list[_Labelled], list[Path]]:
    """The label maps of a visit that may be of a tumour, and those that are of something else."""
    found: list[_Labelled] = []
    others: list[Path] = []
    for root in roots:
        for path in _nifti(anat_folder(root, name)):
            parts = parse_name(stem_of(path.name))
            if parts is None or parts.suffix != "dseg" or not path.is_file():
                continue
            labelled = _labelled(path, root)
            if labelled is None:
                others.append(path)
            else:
                found.append(labelled)
    return found, others


def _labelled(path: Path, root: Path) -> _Labelled | None:
    """None for a label map of something else than a tumour."""
    table = _table(path, root)
    if table is None:
        return _Labelled(path, None, "")
    try:
        convention = _named(table)
    except InputError as error:
        return _Labelled(path, None, f"{printable(str(table))}: {error}")
    return None if convention is None else _Labelled(path, convention, "")


def _table(path: Path, root: Path) -> Path | None:
    """The table of a label map: beside it, or further up with fewer entities, as BIDS inherits."""
    own = parse_name(stem_of(path.name))
    assert own is not None
    folder = path.parent
    while True:
        fitting = [
            table
            for table in sorted(folder.glob("*dseg.tsv"))
            if (said := parse_name(table.stem)) and said.entities.items() <= own.entities.items()
        ]
        if fitting:
            return max(fitting, key=lambda table: table.name.count("_"))
        if folder == root:
            return None
        folder = folder.parent


def _named(table: Path) -> Convention | None:
    """Raises: InputError if the table cannot be read, or names parts of a tumour and others."""
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = {int(row["index"]): row["name"] or "" for row in rows}
        short = {int(row["index"]): row.get("abbreviation") or row["name"] or "" for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"it should have the columns index and name ({error}). Correct it.") from error
    names.pop(0, None)
    short.pop(0, None)
    if not any(name.lower() not in BACKGROUND for name in names.values()):
        return None
    try:
        found = convention_of_labels(names)
    except InputError:
        return convention_of_labels(short)
    return found or _by_abbreviations(short)


def _by_abbreviations(short: Mapping[int, str]) -> Convention | None:
    """Where names say nothing, abbreviations may; but one alone may mean something else, as CC the corpus callosum."""
    try:
        found = convention_of_labels(short)
    except InputError:
        return None
    return found if found and len(found.meaning) > 1 else None


def _pipelines(root: Path) -> Iterator[Path]:
    """Folders of derivatives, but for those that glimpseg made."""
    derivatives = root / DERIVATIVES
    if not derivatives.is_dir():
        return
    for folder in [derivatives, *sorted(path for path in derivatives.iterdir() if path.is_dir())]:
        if not _is_ours(folder):
            yield folder


def _is_ours(folder: Path) -> bool:
    try:
        tree = json.loads((folder / DESCRIPTION).read_text("utf-8-sig"))
        return any(maker.get("Name") == GENERATOR for maker in tree["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _nifti(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(NIFTI) and not p.name.startswith("."))


LAYOUT = Layout("bids", "sub-01/anat/sub-01_T1w.nii.gz, sub-01_ce-gadolinium_T1w, ...", recognises, read, write=write)
