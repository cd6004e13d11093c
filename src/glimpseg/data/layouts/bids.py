"""BIDS layout (Brain Imaging Data Structure): `sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR}.nii.gz`.

A T1w file with a `ce-` entity is T1c. References are `*_dseg.nii.gz`, beside the images or in `derivatives/*/`. Files
that glimpseg wrote there are predictions and not references. The `dseg.tsv` table of a reference names its label
numbers. A label map whose names are no parts of a tumour is anatomical and ignored.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glimpseg.data.identify.names import NOT_NAMED, read_name
from glimpseg.data.layouts.bids_names import ANATOMY, DERIVATIVES, DESCRIPTION, BidsName, anat_folder, parse_name
from glimpseg.data.layouts.bids_writer import GENERATOR, write
from glimpseg.data.layouts.label_names import BACKGROUND_NAMES, convention_of_labels
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
from glimpseg.runtime.documents import DocumentError, read_json
from glimpseg.study import Study

_SUFFIXES = {"T1w": Modality.T1, "T2w": Modality.T2, "FLAIR": Modality.FLAIR}
_FREE_ENTITIES = ("acq", "rec", "desc")
"""Entities with words of the site."""
_CONTRAST = re.compile(r"^ce|^post|^gd|gd$|gad|contrast", re.IGNORECASE)
"""Values of acq-, rec- or desc- that suggest contrast agent, where `ce-` should be used."""
_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+$")
_CHOOSE_ONE = (
    "Name the one to use in a manifest (a table with the columns study, t1, t1c, t2, flair, seg), or move the other "
    "away."
)


@dataclass(frozen=True)
class _LabelMap:
    """A label map that may be the reference, and the convention in its table."""

    path: Path
    convention: Convention | None
    label_problem: str


def recognises(listing: FolderListing) -> bool:
    """True if the folder holds subjects with anatomical images."""
    return any(_study_names(listing.path, name) for name in listing.folders if _SUBJECT.match(name))


def read(listing: FolderListing) -> ReadResult:
    """Read all studies that have an image of one of the four sequences; their entries hold the problems found."""
    entries: list[StudyEntry] = []
    set_aside: dict[Path, str] = {}
    broken_links: list[Path] = []
    roots = [listing.path, *_derivative_folders(listing.path)]
    for subject in sorted(filter(_SUBJECT.match, listing.folders)):
        for name in _study_names(listing.path, subject):
            images, problem = _images(anat_folder(listing.path, name), broken_links, set_aside)
            if images:
                references, others = _references(name, roots)
                set_aside |= dict.fromkeys(others, "a label map whose names are no parts of a tumour")
                entries.append(_entry(name, images, problem, references))
    return ReadResult(entries, set_aside, broken_link_notes(broken_links))


def _entry(name: str, images: dict[Modality, Path], problem: str, references: Sequence[_LabelMap]) -> StudyEntry:
    study = Study(printable(name), images)
    if not references:
        return StudyEntry(study, "bids", "brats", problem=problem)
    first, reference_problem = references[0], ""
    if len(references) > 1:
        reference_problem = f"{study.id} has two references: {_describe_pair(first.path, references[1].path)}"
    study = replace(study, reference=first.path, convention=first.convention)
    return StudyEntry(
        study,
        "bids",
        "brats",
        reference_problem=reference_problem,
        label_problem=first.label_problem,
        problem=problem,
    )


def _study_names(root: Path, subject: str) -> list[str]:
    """Return the names of a subject's studies: `sub-01`, or `sub-01_ses-02` for each session with anatomical images."""
    folder = root / subject
    sessions = sorted(path.name for path in folder.glob("ses-*") if (path / ANATOMY).is_dir())
    own = [subject] if (folder / ANATOMY).is_dir() else []
    return [*own, *(f"{subject}_{session}" for session in sessions)]


def _images(folder: Path, broken_links: list[Path], set_aside: dict[Path, str]) -> tuple[dict[Modality, Path], str]:
    """Return the images of a study, and a description of a problem ("" if there is none)."""
    found: dict[Modality, Path] = {}
    problem = ""
    for path in _nifti_files(folder):
        name = parse_name(stem_of(path.name))
        modality = None if name is None else _suffix_modality(name.suffix)
        if name is None or modality is None:
            continue
        if is_broken_link(path):
            broken_links.append(path)
            continue
        other = _another_image(name)
        if other:
            set_aside[path] = other
            continue
        if modality is Modality.T1:
            modality = Modality.T1C if "ce" in name.entities else modality
            problem = problem or _contrast_problem(path, name)
        if modality in found:
            problem = (
                f"{folder_title(folder)} holds two {modality.title} images: {_describe_pair(found[modality], path)}"
            )
        found.setdefault(modality, path)
    return found, problem


def _suffix_modality(suffix: str) -> Modality | None:
    """Return the sequence of a suffix, also of one that BIDS does not know (`T1c`)."""
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    return read_name(suffix).sequence if re.match(r"t[12]|fl", suffix, re.IGNORECASE) else None


def _another_image(name: BidsName) -> str:
    """Return why the entities say that this is another kind of image (a map, a fat image); "" if they do not."""
    said = " ".join(_in_words(name.entities[key]) for key in _FREE_ENTITIES if key in name.entities)
    reading = read_name(f"{said} {name.suffix}")
    return "" if reading.sequence is not None or reading.doubtful or reading.why == NOT_NAMED else reading.why


def folder_title(folder: Path) -> str:
    """Return the name of a study's folder for messages: `sub-01/ses-02/anat`."""
    parts = folder.parts
    first = next((index for index, part in enumerate(parts) if part.startswith("sub-")), len(parts) - 1)
    return printable("/".join(parts[first:]))


def _describe_pair(first: Path, second: Path) -> str:
    return f"{printable(first.name)} and {printable(second.name)}. {_CHOOSE_ONE}"


def _contrast_problem(path: Path, name: BidsName) -> str:
    said = [f"{key}-{name.entities[key]}" for key in _FREE_ENTITIES if key in name.entities]
    said = [entity for entity in said if _speaks_of_contrast(entity.partition("-")[2])]
    if "ce" in name.entities or not said:
        return ""
    return (
        f"{printable(path.name)} is T1 by its name, as it has no ce- entity, but {said[0]} speaks of contrast agent. "
        "Rename it to ce-gadolinium, or name the files in a manifest (a table with the columns study, t1, t1c, t2, "
        "flair, seg)."
    )


def _in_words(value: str) -> str:
    """Separate the words of an entity, which BIDS joins: `dixonFat`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", value)


def _speaks_of_contrast(value: str) -> bool:
    reading = read_name(f"T1 {_in_words(value)}")
    return reading.sequence is Modality.T1C or bool(_CONTRAST.search(value))


def _references(name: str, roots: Sequence[Path]) -> tuple[list[_LabelMap], list[Path]]:
    """Return the label maps of a study that may show a tumour, and the paths of the others."""
    found: list[_LabelMap] = []
    others: list[Path] = []
    for root in roots:
        for path in _nifti_files(anat_folder(root, name)):
            parts = parse_name(stem_of(path.name))
            if parts is None or parts.suffix != "dseg" or not path.is_file():
                continue
            label_map = _label_map(path, root)
            if label_map is None:
                others.append(path)
            else:
                found.append(label_map)
    return found, others


def _label_map(path: Path, root: Path) -> _LabelMap | None:
    """Return a label map with its convention; None if it does not show a tumour."""
    table = _label_table(path, root)
    if table is None:
        return _LabelMap(path, None, "")
    try:
        convention = _convention_of_table(table)
    except InputError as error:
        return _LabelMap(path, None, f"{printable(table.name)}: {error}")
    return None if convention is None else _LabelMap(path, convention, "")


def _label_table(path: Path, root: Path) -> Path | None:
    """Return the table of a label map: beside it, or in a parent folder with fewer entities (BIDS inheritance)."""
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


def _convention_of_table(table: Path) -> Convention | None:
    """Return the convention that a table of labels gives; None if it names no part of a tumour.

    Raises:
        InputError: if the table cannot be read, or names parts of a tumour and other structures.
    """
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        names = {int(row["index"]): row["name"] or "" for row in rows}
        short = {int(row["index"]): row.get("abbreviation") or row["name"] or "" for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"it should have the columns index and name ({error}). Correct it.") from error
    names.pop(0, None)
    short.pop(0, None)
    if not any(name.lower() not in BACKGROUND_NAMES for name in names.values()):
        return None
    try:
        found = convention_of_labels(names)
    except InputError:
        return convention_of_labels(short)
    return found or _by_abbreviations(short)


def _by_abbreviations(short: Mapping[int, str]) -> Convention | None:
    """Return the convention from the abbreviations, where the names give none.

    A single abbreviation is not enough: it may mean another structure (CC: corpus callosum).
    """
    try:
        found = convention_of_labels(short)
    except InputError:
        return None
    return found if found and len(found.meaning) > 1 else None


def _derivative_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of derivatives that glimpseg did not write."""
    derivatives = root / DERIVATIVES
    if not derivatives.is_dir():
        return
    for folder in [derivatives, *sorted(path for path in derivatives.iterdir() if path.is_dir())]:
        if not _is_glimpseg_output(folder):
            yield folder


def _is_glimpseg_output(folder: Path) -> bool:
    try:
        tree = read_json(folder / DESCRIPTION)
        return any(maker.get("Name") == GENERATOR for maker in tree["GeneratedBy"])
    except (DocumentError, KeyError, TypeError, AttributeError):
        return False


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(NIFTI) and not p.name.startswith("."))


LAYOUT = Layout("bids", "sub-01/anat/sub-01_T1w.nii.gz, sub-01_ce-gadolinium_T1w, ...", recognises, read, write=write)
