"""Find the studies in a folder of any layout, with their files and the convention of their labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.identify.names import names_reference, read_name
from glimpseg.data.layouts import bids, brats, brats2015, decathlon, manifest, nnunet
from glimpseg.data.layouts.dataset_json import NAME as DATASET_JSON
from glimpseg.data.layouts.dataset_json import missing_in
from glimpseg.data.layouts.layout import (
    IMAGES,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    place_below,
    printable,
    stem_of,
)
from glimpseg.data.layouts.patients import with_joined_ids, without_derived
from glimpseg.data.notices import note, warn
from glimpseg.errors import InputError, UsageError
from glimpseg.region import Convention, convention_named, detect_convention
from glimpseg.results.folder import COMPARISON, RECORD
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume

AUTO = "auto"
_AUTO_LAYOUTS = (
    manifest.LAYOUT, nnunet.LAYOUT, decathlon.LAYOUT, bids.LAYOUT, brats2015.LAYOUT, brats.ANY,
)  # fmt: skip
"""Layouts that `auto` recognises; `brats` covers both namings of BraTS."""
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*_AUTO_LAYOUTS, brats.BRATS2021, brats.BRATS2023)}

RESULT_FILES = frozenset({RECORD, COMPARISON, "run.json"})
"""Files that mark result folders of `evaluate`, `compare` and `segment`."""
MOST_LISTED = 10
"""Largest number of problems that one message lists."""
IMAGE_FILES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".mgz", ".img", ".dcm")
"""Endings of image files that are reported if no study uses them."""


@dataclass(frozen=True)
class FolderContents:
    """Studies and notes found below a folder, before anything is refused."""

    folder: Path
    entries: Sequence[StudyEntry]
    set_aside: Mapping[Path, str]
    """Images that a layout found and did not use, each with the reason."""
    notes: Sequence[str]

    @property
    def problems(self) -> list[str]:
        """Reasons why studies cannot be used, each once."""
        return list(dict.fromkeys(entry.problem for entry in self.entries if entry.problem))

    def unused_images(self) -> dict[Path, str]:
        """Return every image below the folder that belongs to no study, sorted, each with the reason."""
        if self.folder.is_file():
            return {}
        used = {path for entry in self.entries for path in files_of(entry.study)}
        found = sorted(
            listing.path / name
            for listing, _ in walk_folders(self.folder)
            for name in listing.files
            if name.lower().endswith(IMAGE_FILES) and listing.path / name not in used
        )
        return {path: self.set_aside.get(path) or _why_unused(path, self.layouts) for path in found}

    @property
    def layouts(self) -> tuple[str, ...]:
        """Names of the layouts of its studies; more than one only for spellings of BraTS."""
        return tuple(sorted({entry.layout for entry in self.entries}))


def find_studies(
    folder: str | Path,
    *,
    layout: str = AUTO,
    labels: str | None = None,
    references: Literal["optional", "required", "ignored"] = "optional",
) -> list[Study]:
    """Find all studies below `folder`, sorted by id, each with the files that exist.

    The label convention is taken from the dataset if it defines its labels. Otherwise it is detected from the layout
    and the label numbers of *all* references together. Images and studies that are not used are named in notes.

    Args:
        folder: folder of studies, or a manifest (a table of studies).
        layout: a key of `LAYOUTS`, or `auto` to recognise the layout.
        labels: name of the label convention, as for `region.convention_named`; None detects it.
        references: "required" skips studies without a reference. "ignored" drops all references, which may then have
            several conventions or be damaged.

    Raises:
        InputError: if no study is found, two studies share an id, a study has two images of one sequence, or the
            meaning of the labels is unclear; and as `read_folder`.
        UsageError: for an unknown `layout` or `labels`.
    """
    found = read_folder(Path(folder), layout)
    _tell_notes(found)
    if found.problems:
        raise InputError(join_problems(found.problems))
    entries = found.entries
    if references == "required":
        for entry in entries:
            if entry.study.reference is None:
                note(f"{entry.study.id} has no reference and is left out.")
        entries = [entry for entry in entries if entry.study.reference is not None]
    if references == "ignored":
        entries = [
            replace(
                e,
                study=replace(e.study, reference=None, convention=None),
                reference_problem="",
                label_problem="",
            )
            for e in entries
        ]
    if not entries:
        raise InputError(_nothing_found(found, layout, " with a reference" if references == "required" else ""))
    for sentence in describe_unused(found.unused_images()):
        note(sentence)
    return sorted(with_conventions(entries, labels, found.folder), key=lambda study: study.id)


@dataclass(frozen=True)
class UsableStudies:
    """Studies that can be segmented, and what was found besides."""

    studies: Sequence[Study]
    """Studies without references, sorted by id."""
    problems: Mapping[str, str]
    """Problem of each study that cannot be used, by its id."""
    unused: Mapping[Path, str]
    """Images that are not used, each with the reason. References are not among them."""
    folders: Mapping[str, Path]
    """Folder of each study, by its id, in layouts with a folder for each study."""

    def unused_of(self, study: str) -> dict[Path, str]:
        """Return the unused images in the folder of a study, or below it."""
        folder = self.folders.get(study)
        return {} if folder is None else {p: why for p, why in self.unused.items() if p.is_relative_to(folder)}


def usable_studies(folder: str | Path, *, layout: str = AUTO) -> UsableStudies:
    """Find all studies without references, and collect the problems of unusable studies instead of raising.

    Raises:
        InputError: if there is no study at all, or as `read_folder`.
        UsageError: for an unknown `layout`.
    """
    found = read_folder(Path(folder), layout)
    if not found.entries:
        raise InputError(_nothing_found(found, layout, ""))
    _tell_notes(found)
    good = [replace(e.study, reference=None, convention=None) for e in found.entries if not e.problem]
    return UsableStudies(
        sorted(good, key=lambda study: study.id),
        {entry.study.id: entry.problem for entry in found.entries if entry.problem},
        found.unused_images(),
        {entry.study.id: entry.folder for entry in found.entries if entry.folder is not None},
    )


def find_usable(folder: str | Path, *, layout: str = AUTO) -> tuple[list[Study], dict[str, str]]:
    """Return the usable studies of `usable_studies`, and the problem of each other study by its id."""
    found = usable_studies(folder, layout=layout)
    return list(found.studies), dict(found.problems)


def describe_unused(unused: Mapping[Path, str], *, named: bool = True) -> list[str]:
    """Return one sentence for each unused image, without the folder that it lies in.

    Args:
        unused: reasons by path.
        named: False leaves out the names, which may name a patient.
    """
    return [f"{printable(p.name) if named else 'an image'} is not used: {why}." for p, why in unused.items()]


def _tell_notes(found: FolderContents) -> None:
    for sentence in found.notes:
        warn(sentence)


def read_folder(folder: Path, layout: str) -> FolderContents:
    """Read everything below a folder, or in a manifest, as one layout. Only names and small text files are read.

    Raises:
        InputError: if there is no such folder, it holds several layouts, or a layout's own table or description is
            invalid.
        UsageError: for an unknown `layout`.
    """
    known = _AUTO_LAYOUTS if layout == AUTO else (layout_named(layout),)
    folder = folder.absolute()
    if folder.is_file() and folder.suffix.lower() in manifest.SUFFIXES and manifest.LAYOUT in known:
        readings = [(manifest.LAYOUT, folder, manifest.read_manifest(folder))]
    elif folder.is_dir():
        readings = list(_readings(folder, known))
    else:
        raise InputError(
            f"{printable(folder.name)} is not a folder. Give the folder that holds the studies, or a manifest."
        )
    _refuse_mixed_layouts(readings, folder)
    set_aside = {path: why for _, _, reading in readings for path, why in reading.set_aside.items()}
    notes = [note for _, _, reading in readings for note in reading.notes]
    tree = without_derived([entry for _, _, reading in readings for entry in reading.entries], folder)
    entries, joined = with_joined_ids(tree.entries, folder)
    return FolderContents(
        folder,
        _mark_duplicates(entries, folder),
        {**set_aside, **tree.set_aside},
        list(dict.fromkeys([*notes, *tree.notes, *joined])),
    )


def layout_named(name: str) -> Layout:
    """Return the layout of this name. Raises: UsageError if it is unknown."""
    if name not in LAYOUTS:
        raise UsageError(f"'{name}' is not a layout. Choose one of {AUTO}, {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def with_conventions(entries: Sequence[StudyEntry], labels: str | None, folder: Path) -> list[Study]:
    """Return the studies with the convention of their references.

    It is the one named by `labels`; by default the one that the dataset defines, or else the one detected from all
    references together. It stays None if there is no reference to detect it from.

    Raises:
        InputError: if the meaning of a reference's labels is unclear.
        UsageError: for an unknown `labels`.
    """
    having = [entry for entry in entries if entry.study.reference is not None]
    _refuse_problems(entry.reference_problem for entry in having)
    if labels is not None:
        named = convention_named(labels)
        return [replace(entry.study, convention=named) for entry in entries]
    _refuse_problems(entry.label_problem for entry in having)
    unnamed = [entry for entry in entries if entry.study.convention is None]
    convention = _detect_convention(unnamed, folder)
    return [replace(e.study, convention=e.study.convention or convention) for e in entries]


def _refuse_problems(problems: Iterable[str]) -> None:
    found = sorted({problem for problem in problems if problem})
    if found:
        raise InputError(join_problems(found))


def join_problems(problems: Sequence[str]) -> str:
    """Join problems to one message; only the first ten are listed."""
    rest = len(problems) - MOST_LISTED
    return "\n".join([*problems[:MOST_LISTED], *([f"... and {rest} more of this kind."] if rest > 0 else [])])


def walk_folders(folder: Path) -> Iterator[tuple[FolderListing, list[str]]]:
    """Yield all folders below with their list of subfolders, from which the caller may remove some.

    Links are followed, and each folder is visited once, so a link to a parent ends. Result folders of glimpseg, and
    folders whose name begins with a dot, are skipped.
    """
    seen: set[Path] = set()
    for place, below, files in os.walk(folder, followlinks=True, onerror=_warn_unreadable):
        real = Path(place).resolve()
        if real in seen or RESULT_FILES.intersection(files):
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield FolderListing(Path(place), tuple(below), tuple(name for name in files if not name.startswith("."))), below


def _warn_unreadable(error: OSError) -> None:
    warn(f"{printable(Path(str(error.filename)).name)} could not be opened ({error.strerror}).")


def _readings(folder: Path, known: Sequence[Layout]) -> Iterator[tuple[Layout, Path, ReadResult]]:
    """Read every folder that a layout recognises; folders that belong to a study are not read again."""
    taken: set[Path] = set()
    for place, below in walk_folders(folder):
        if place.path in taken:
            continue
        recognised = [layout for layout in known if layout.recognises(place)]
        whole = [layout for layout in recognised if layout.owns_subfolders]
        if len(whole) > 1:
            raise InputError(
                f"{place_below(place.path, folder)} looks like the layouts "
                f"{' and '.join(layout.name for layout in whole)}. Name the one that is meant (--layout)."
            )
        if whole:
            below.clear()
        for layout in whole or recognised:
            result = layout.read(place)
            taken.update(result.folders)
            yield layout, place.path, result


def _refuse_mixed_layouts(readings: Sequence[tuple[Layout, Path, ReadResult]], folder: Path) -> None:
    first: dict[str, Path] = {}
    for layout, path, reading in readings:
        if reading.entries:
            first.setdefault(layout.name, path)
    if len(first) > 1:
        places = "; ".join(f"{name} in {place_below(path, folder)}" for name, path in first.items())
        raise InputError(
            f"Studies of several layouts were found: {places}. Read each apart, or name the one that is meant "
            "(--layout)."
        )


def _mark_duplicates(entries: Sequence[StudyEntry], folder: Path) -> list[StudyEntry]:
    """Return the entries with a problem added to those that share an id."""
    named: dict[str, list[Study]] = {}
    for entry in entries:
        named.setdefault(entry.study.id, []).append(entry.study)
    return [
        replace(entry, problem=entry.problem or _duplicate_problem(named[entry.study.id], folder))
        if len(named[entry.study.id]) > 1
        else entry
        for entry in entries
    ]


def _duplicate_problem(studies: Sequence[Study], folder: Path) -> str:
    images = [next(iter(study.images.values()), None) for study in studies[:2]]
    paths = [image.path if isinstance(image, Frame) else image for image in images]
    places = [place_below(path, folder) if isinstance(path, Path) else "" for path in paths]
    return f"Two studies are called {studies[0].id}: {places[0]} and {places[1]}. Rename one of them."


def _nothing_found(found: FolderContents, layout: str, which: str) -> str:
    expected = [LAYOUTS[layout]] if layout != AUTO else _AUTO_LAYOUTS
    looks = "; ".join(f"{one.name}: {one.example}" for one in reversed(expected))
    unused = describe_unused(found.unused_images())
    rest = len(unused) - MOST_LISTED
    seen = "\n".join(["", *unused[:MOST_LISTED], *([f"... and {rest} more images."] if rest > 0 else [])])
    description = found.folder / DATASET_JSON
    missing = f" {missing_in(description)}" if description.is_file() else ""
    return (
        f"No study{which} was found below {printable(found.folder.name)}.{missing} Expected one of these: {looks}."
        f"{seen if unused else ''}"
    )


def _why_unused(path: Path, layouts: Sequence[str]) -> str:
    name = stem_of(path.name)
    if names_reference(name, last=False):
        return "a segmentation"
    if not path.name.lower().endswith(IMAGES):
        return f"the format {path.suffix.lower()} is not read in a tree"
    reading = read_name(name, path.parent.name)
    return reading.why or f"its name says {reading.sequence_title}, but it lies in no study of the layout{_of(layouts)}"


def _of(layouts: Sequence[str]) -> str:
    return f" {layouts[0]}" if len(layouts) == 1 else ""


def _detect_convention(entries: Sequence[StudyEntry], folder: Path) -> Convention | None:
    """Detect the convention from the label numbers of all references together."""
    having = [(e.study.reference, e.numbering) for e in entries if isinstance(e.study.reference, Path)]
    if not having:
        return None
    numberings = {numbering for _, numbering in having}
    if len(numberings) > 1:
        raise InputError(
            f"{printable(folder.name)} mixes the layouts {', '.join(sorted(numberings))}; their labels need not mean "
            "the same. Read each apart, or name the convention (--labels)."
        )
    numbers = {path: set(np.unique(nifti.read_labels(path).voxels).tolist()) for path, _ in having}
    _refuse_mixed_conventions(numbers)
    pooled = set[int]().union(*numbers.values())
    return detect_convention(pooled, numberings.pop(), f"{printable(folder.name)} ({len(having)} references)")


def _refuse_mixed_conventions(numbers: Mapping[Path, set[int]]) -> None:
    """Check that references do not hold 3 in some, 4 in others, and both in none.

    Such references more likely mix two conventions of enhancing tumour than follow BraTS 2024. There, most patients
    with a cavity have enhancing tumour too. Raises: InputError.
    """
    having = {number: [path for path, found in numbers.items() if number in found] for number in (3, 4)}
    if having[3] and having[4] and not set(having[3]) & set(having[4]):
        raise InputError(
            f"{len(having[3])} references hold the label 3 ({printable(having[3][0].name)}), {len(having[4])} others "
            f"the label 4 ({printable(having[4][0].name)}), and none holds both: they seem to mix two conventions, in "
            "which enhancing tumour is 3 or 4. Read each kind apart; if all are BraTS 2024, say so (--labels "
            "brats2024)."
        )


def files_of(study: Study) -> set[Path]:
    """Return the files of a study."""
    parts: list[Volume | Path | Frame | None] = [*study.images.values(), study.reference, study.brain]
    return {part.path if isinstance(part, Frame) else part for part in parts if isinstance(part, Path | Frame)}
