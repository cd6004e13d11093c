"""BraTS 2017 and later, FeTS: one folder per study, files named by sequence.

BraTS 2017 to 2021 and FeTS: `ID/ID_{t1,t1ce,t2,flair,seg}.nii.gz`. BraTS 2023 and later:
`ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz`. Other spellings (`identify.names`) and bare names (`t1c.nii.gz` in a folder) are
read too. A folder with at least one such file is a study; its id is the folder's name. So is a folder with a folder for
each sequence (`T1c/image.nii.gz`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.identify.names import NOT_NAMED, NameReading, names_reference, read_name, says_nothing_else
from glimpseg.data.layouts.layout import (
    NIFTI,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
    place_below,
    printable,
    stem_of,
)
from glimpseg.data.layouts.study_volumes import load_images, load_reference
from glimpseg.errors import UsageError
from glimpseg.modality import Modality
from glimpseg.region import CONVENTIONS, Convention
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.study import Study
from glimpseg.volume import Grid, Volume, resample

_PEDIATRIC = re.compile(r"BraTS-PEDs?-", re.IGNORECASE)
"""Ids of children; from 2024 on their labels have a different numbering."""


@dataclass(frozen=True)
class Naming:
    """File names of one family of releases."""

    name: str
    """Name of the layout, as in `region.Convention.layouts`."""
    separator: str
    suffixes: Mapping[Modality, str]

    def file(self, study: str, what: Modality | None) -> str:
        """Return the file name of one modality, or of the reference (None), inside the study's folder."""
        return f"{study}{self.separator}{'seg' if what is None else self.suffixes[what]}.nii.gz"


def _suffixes(t1: str, t1c: str, t2: str, flair: str) -> dict[Modality, str]:
    return {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}


NAMINGS = {
    naming.name: naming
    for naming in (
        Naming("brats2021", "_", _suffixes("t1", "t1ce", "t2", "flair")),
        Naming("brats2023", "-", _suffixes("t1n", "t1c", "t2w", "t2f")),
    )
}

RELEASES = {
    "brats2020": (NAMINGS["brats2021"], CONVENTIONS["brats2021"]),
    "brats2023": (NAMINGS["brats2023"], CONVENTIONS["brats2023"]),
    "brats2024": (NAMINGS["brats2023"], CONVENTIONS["brats2024"]),
}
"""Releases that can be written: file names and label numbers."""


def release_named(release: str) -> tuple[Naming, Convention]:
    """Return file names and label numbers of a release. Raises: UsageError if it is unknown."""
    if release not in RELEASES:
        raise UsageError(f"'{release}' is not a layout that can be written. Choose one of {', '.join(RELEASES)}.")
    return RELEASES[release]


def write_study(
    folder: str | Path,
    study: str,
    images: Mapping[Modality, Volume],
    reference: Volume | None,
    release: str,
) -> Path:
    """Write one study as a BraTS release stores it: LPS order, int16 images, the release's label numbers.

    Args:
        folder: parent of the study's folder.
        study: id of the study.
        images: whole-numbered volumes in RAS order, as the phantom makes them.
        reference: `Label` values on the same grid, or None.
        release: a key of `RELEASES`.

    Returns:
        The study's folder.

    Raises:
        UsageError: if the release is unknown, or the study's folder holds files.
        InputError: if a label of the reference has no number in the release.
        OutputError: if writing fails.
    """
    naming, convention = release_named(release)
    place = Path(folder) / study
    with atomic_folder(place) as temporary:
        for modality, volume in images.items():
            nifti.write_image(temporary / naming.file(study, modality), _to_lps(volume), np.int16)
        if reference is not None:
            numbers = Volume(convention.write(reference.voxels), reference.affine)
            nifti.write_labels(temporary / naming.file(study, None), _to_lps(numbers))
    return place


def write(release: str, folder: Path, studies: Iterable[Study]) -> None:
    """Write studies under a release's names and label numbers; voxels and axis order stay as they are."""
    naming, convention = release_named(release)
    with atomic_folder(folder) as temporary:
        for study in studies:
            place = temporary / study.id
            place.mkdir()
            for modality, volume, dtype in load_images(study):
                nifti.write_image(place / naming.file(study.id, modality), volume, dtype)
            reference = load_reference(study)
            if reference is not None:
                numbers = Volume(convention.write(reference.voxels), reference.affine)
                nifti.write_labels(place / naming.file(study.id, None), numbers)


def recognises(place: FolderListing) -> bool:
    """True if at least one file in the folder, or a folder in it that holds images, is named by its sequence."""
    named = any(_reading(name, place.path).sequence is not None for name in place.files if _is_image(name))
    return named or bool(_sequence_folders(place))


def read(kinds: Sequence[str], place: FolderListing) -> ReadResult:
    """Read the study in one folder, if its file names are of one of the `kinds` of naming."""
    found = _StudyFiles(place.path)
    broken: list[Path] = []
    for path, name, reading in _candidates(place):
        if is_broken_link(path):
            broken += [path] if reading.sequence is not None or names_reference(name) else []
        elif path.is_file():
            found.add(path, name, reading)
    notes = broken_link_notes(broken)
    images, problem = found.images()
    references, reference_problem = found.references()
    kind = _naming_of(images, references[:1])
    if not images or kind not in kinds:
        return ReadResult(notes=notes)
    study = Study(printable(place.path.name), images, references[0] if references else None)
    numbering = "pediatric" if kind == "brats2023" and _PEDIATRIC.match(study.id) else kind
    entry = StudyEntry(
        study,
        kind,
        numbering,
        reference_problem=reference_problem,
        problem=problem,
        folder=place.path,
    )
    folders = sorted({path.parent for path in [*images.values(), *references] if path.parent != place.path})
    return ReadResult([entry], set_aside=found.set_aside, notes=notes, folders=folders)


class _StudyFiles:
    """Images of one study folder by their sequences, and its segmentations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.set_aside: dict[Path, str] = {}
        self._named: dict[Modality, list[tuple[Path, bool]]] = {}
        self._segmentations: list[tuple[Path, bool]] = []

    def add(self, path: Path, name: str, reading: NameReading) -> None:
        """Add an image, by its name without the ending (or the name of its folder) and what that name says."""
        if reading.sequence is not None:
            self._named.setdefault(reading.sequence, []).append((path, reading.ends))
        elif not reading.doubtful and names_reference(name, last=False):
            self._segmentations.append((path, names_reference(name)))
        else:
            self.set_aside[path] = reading.why

    def images(self) -> tuple[dict[Modality, Path], str]:
        """Return one image for each sequence, and a problem where there are two.

        Where one name ends in the sequence and others go on (`t1.nii.gz`, `t1_brain.nii.gz`), the first is used and
        the others are set aside.
        """
        images: dict[Modality, Path] = {}
        problem = ""
        for modality, paths in self._named.items():
            plain = [path for path, ends in paths if ends] or [path for path, _ in paths]
            self.set_aside |= {
                path: f"its name goes on after {modality.title}, and another name ends with it"
                for path, _ in paths
                if path not in plain
            }
            images[modality] = plain[0]
            if len(plain) > 1:
                problem = problem or self._pair(f"{modality.title} images", *plain[:2])
        return images, problem

    def references(self) -> tuple[list[Path], str]:
        """Return the segmentations that may be the reference, the most likely first, and a problem if it is open."""
        last = [path for path, ends in self._segmentations if ends]
        every = [*last, *(path for path, ends in self._segmentations if not ends)]
        if not last:
            self.set_aside |= dict.fromkeys(every, "a segmentation, but its name does not end in 'seg'")
            return [], ""
        return every, self._pair("references", *every[:2]) if len(every) > 1 else ""

    def _pair(self, what: str, first: Path, second: Path) -> str:
        one, other = (place_below(path, self._folder) for path in (first, second))
        return (
            f"{printable(self._folder.name)} holds two {what}: {one} and {other}. "
            "Keep one study in a folder and one image of a sequence."
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(NIFTI)


def _reading(name: str, folder: Path) -> NameReading:
    return read_name(stem_of(name), folder.name)


def _candidates(place: FolderListing) -> Iterator[tuple[Path, str, NameReading]]:
    """Yield the images of a study with the name that counts, and what it says.

    The name of a folder counts where the name of the image in it says nothing.
    """
    for name in sorted(filter(_is_image, place.files)):
        yield place.path / name, stem_of(name), _reading(name, place.path)
    for folder, names in _sequence_folders(place).items():
        for name in names:
            reading, stem = _reading(name, place.path), stem_of(name)
            if reading.sequence is None and reading.why == NOT_NAMED and not names_reference(stem, last=False):
                reading, stem = read_name(folder), folder
            yield place.path / folder / name, stem, reading


def _sequence_folders(place: FolderListing) -> dict[str, list[str]]:
    """Return the folders that hold one sequence of a study each, with their images.

    A folder such as `T1` may mean a time point, too. It does if an image in it, or in a folder like it, is named by
    another sequence.
    """
    found: dict[str, list[str]] = {}
    for folder in place.folders:
        if not says_nothing_else(folder):
            continue
        names = _images_in(place.path / folder)
        sequence = read_name(folder).sequence
        for name in names:
            said = _reading(name, place.path)
            if said.sequence not in (None, sequence):
                return {}
        if names:
            found[folder] = names
    return found if any(read_name(folder).sequence is not None for folder in found) else {}


def _images_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _is_image(name) and not name.startswith("."))
    except OSError:
        return []


def _naming_of(images: Mapping[Modality, Path], references: Sequence[Path]) -> str:
    stems = {path: stem_of(path.name).lower() for path in [*images.values(), *references]}
    for naming in NAMINGS.values():
        joint = naming.separator
        expected = all(stems[path].endswith(joint + naming.suffixes[modality]) for modality, path in images.items())
        if expected and all(stems[path].endswith((f"{joint}seg", f"{joint}segm")) for path in references):
            return naming.name
    return "brats"


def _to_lps(volume: Volume) -> Volume:
    """Return a RAS volume in the voxel order of BraTS files: axes to the left, posterior, superior."""
    ras = Grid(volume.voxels.shape, volume.affine)  # type: ignore[arg-type]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(ras.shape[:2]) - 1
    return resample(volume, Grid(ras.shape, ras.affine @ flip))


ANY = Layout(
    "brats",
    "folders with files such as ID-t1c.nii.gz (BraTS 2023 and later) or ID_t1ce.nii.gz (before)",
    recognises,
    partial(read, ("brats2021", "brats2023", "brats")),
    owns_subfolders=False,
)
BRATS2021 = Layout(
    "brats2021",
    "ID/ID_t1.nii.gz, ID_t1ce, ID_t2, ID_flair, ID_seg",
    recognises,
    partial(read, ("brats2021",)),
    owns_subfolders=False,
    write=partial(write, "brats2020"),
)
BRATS2023 = Layout(
    "brats2023",
    "ID/ID-t1n.nii.gz, ID-t1c, ID-t2w, ID-t2f, ID-seg",
    recognises,
    partial(read, ("brats2023",)),
    owns_subfolders=False,
    write=partial(write, "brats2024"),
)
