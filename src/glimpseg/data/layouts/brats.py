"""BraTS 2017 and later, FeTS: one folder per study, files named by sequence.

BraTS 2017 to 2021 and FeTS: `ID/ID_{t1,t1ce,t2,flair,seg}.nii.gz`. BraTS 2023 and later:
`ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz`. Other spellings and bare names (`t1c.nii.gz` in a folder) are read too. A folder
with at least one such file is a study; its id is the folder's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.layouts.layout import (
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
    printable,
)
from glimpseg.data.layouts.study_volumes import load_images, load_reference
from glimpseg.errors import UsageError
from glimpseg.modality import ALIASES, Modality
from glimpseg.region import CONVENTIONS, Convention
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.study import Study
from glimpseg.volume import Grid, Volume, resample

# Longest alias first, so that t1ce is not read as t1. `segm`: the name in one BraTS 2020 case.
_NAME = re.compile(
    rf"^(?P<id>.*?)(?P<joint>[-_]?)(?P<what>{'|'.join(sorted(ALIASES, key=len, reverse=True))}|segm?)\.nii(\.gz)?$",
    re.IGNORECASE | re.DOTALL,
)
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
    """True if at least one file in the folder is named by its sequence."""
    return any(_NAME.match(name) for name in place.files)


def read(kinds: Sequence[str], place: FolderListing) -> ReadResult:
    """Read the study in one folder, if its file names are of one of the `kinds` of naming."""
    images: dict[Modality, Path] = {}
    references: list[Path] = []
    joints: set[str] = set()
    problem = ""
    matches = [(place.path / name, match) for name in sorted(place.files) if (match := _NAME.match(name))]
    for path, match in matches:
        if not path.is_file():
            continue
        joints.add(match["joint"])
        word = match["what"].lower()
        if word.startswith("seg"):
            references.append(path)
        elif ALIASES[word] in images:
            problem = _describe_pair(f"{ALIASES[word].title} images", images[ALIASES[word]], path)
        else:
            images[ALIASES[word]] = path
    notes = broken_link_notes([path for path, _ in matches if is_broken_link(path)])
    kind = _naming_of(images, joints)
    if not images or kind not in kinds:
        return ReadResult(notes=notes)
    reference_problem = _describe_pair("references", *references[:2]) if len(references) > 1 else ""
    study = Study(printable(place.path.name), images, references[0] if references else None)
    numbering = "pediatric" if kind == "brats2023" and _PEDIATRIC.match(study.id) else kind
    entry = StudyEntry(study, kind, numbering, reference_problem=reference_problem, problem=problem)
    return ReadResult([entry], notes=notes)


def _describe_pair(what: str, first: Path, second: Path) -> str:
    return (
        f"{printable(str(first.parent))} holds two {what}: {printable(first.name)} and {printable(second.name)}. "
        "Keep one study in a folder and one image of a sequence."
    )


def _naming_of(images: Mapping[Modality, Path], joints: set[str]) -> str:
    for naming in NAMINGS.values():
        expected = all(
            path.name.lower().split(".nii")[0].endswith(naming.separator + naming.suffixes[modality])
            for modality, path in images.items()
        )
        if joints == {naming.separator} and expected:
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
