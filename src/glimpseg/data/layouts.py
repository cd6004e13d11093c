"""Folders of studies as the releases lay them out; a missing file is normal in all of them.

BraTS 2017 to 2021 and FeTS: `ID/ID_{t1,t1ce,t2,flair,seg}.nii.gz`. BraTS 2023 and later:
`ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz`. Bare names (`t1c.nii.gz` in a folder) are read too. A folder with at
least one such file is a study; its id is the folder's name.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from glimpseg.atomic import atomic_folder
from glimpseg.data import nifti
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import ALIASES, Modality
from glimpseg.region import CONVENTIONS, Convention, detect_convention
from glimpseg.results import COMPARISON, RECORD
from glimpseg.study import Study
from glimpseg.volume import Grid, Volume, onto

log = logging.getLogger(__name__)

# Longest alias first, so that t1ce is not read as t1. `segm`: one BraTS 2020 case is named so by its release.
_NAME = re.compile(
    rf"^(?P<id>.*?)(?P<joint>[-_]?)(?P<what>{'|'.join(sorted(ALIASES, key=len, reverse=True))}|segm?)\.nii(\.gz)?$",
    re.IGNORECASE,
)


MADE = frozenset({RECORD, COMPARISON, "run.json"})
"""Files by which `evaluate`, `compare` and `segment` mark their folders."""


@dataclass(frozen=True)
class Layout:
    """How one family of releases names the files of a study."""

    name: str
    """As `region.Convention.layouts` has it."""
    joint: str
    words: Mapping[Modality, str]

    def file(self, study: str, what: Modality | None) -> str:
        """The file of one modality, or of the reference for None, inside the study's folder."""
        return f"{study}{self.joint}{'seg' if what is None else self.words[what]}.nii.gz"


def _words(t1: str, t1c: str, t2: str, flair: str) -> dict[Modality, str]:
    return {Modality.T1: t1, Modality.T1C: t1c, Modality.T2: t2, Modality.FLAIR: flair}


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("brats2021", "_", _words("t1", "t1ce", "t2", "flair")),
        Layout("brats2023", "-", _words("t1n", "t1c", "t2w", "t2f")),
    )
}

RELEASES = {
    "brats2020": (LAYOUTS["brats2021"], CONVENTIONS["brats2021"]),
    "brats2023": (LAYOUTS["brats2023"], CONVENTIONS["brats2023"]),
    "brats2024": (LAYOUTS["brats2023"], CONVENTIONS["brats2024"]),
}
"""What can be written, by the name of a release: its file names and its label numbers."""


def find_studies(
    folder: str | Path,
    *,
    labels: str | None = None,
    references: Literal["optional", "required", "ignored"] = "optional",
) -> list[Study]:
    """All studies below `folder`, sorted by id, each with the files it has; without their references if those are
    ignored, which then may be of several conventions, or broken.

    The label convention is read from the layout and the numbers of *all* references together; `labels` names
    one of `region.CONVENTIONS` instead.

    Raises: InputError when nothing is found, when two studies share an id, or when the labels' meaning is
        in doubt; UsageError for an unknown `labels`.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder that holds the studies.")
    found = [(study, layout) for place in _folders(folder) for study, layout in _read_folder(place)]
    if references == "required":
        found = [(study, layout) for study, layout in found if study.reference is not None]
    if references == "ignored":
        found = [(replace(study, reference=None), layout) for study, layout in found]
    if not found:
        raise InputError(
            f"No study{' with a reference' if references == 'required' else ''} was found below {folder}. Expected "
            "folders with files such as ID-t1c.nii.gz (BraTS 2023 and later) or ID_t1ce.nii.gz (before)."
        )
    _refuse_twins([study for study, _ in found])
    convention = _convention(found, labels, folder)
    return sorted((replace(s, convention=convention) for s, _ in found), key=lambda s: s.id)


def write_study(
    folder: str | Path,
    study: str,
    images: Mapping[Modality, Volume],
    reference: Volume | None,
    release: str,
) -> Path:
    """Writes one study as a BraTS release would: LPS order, int16 images, the release's label numbers.

    Volumes must be whole-numbered and in RAS order, as the phantom makes them. Returns the study's folder.
    """
    layout, convention = release_named(release)
    place = Path(folder) / study
    with atomic_folder(place) as temporary:
        for modality, volume in images.items():
            nifti.write_image(temporary / layout.file(study, modality), _as_brats(volume), np.int16)
        if reference is not None:
            numbers = Volume(convention.write(reference.voxels), reference.affine)
            nifti.write_labels(temporary / layout.file(study, None), _as_brats(numbers))
    return place


def release_named(release: str) -> tuple[Layout, Convention]:
    """File names and label numbers of a release. Raises: UsageError."""
    if release not in RELEASES:
        raise UsageError(f"'{release}' is not a layout that can be written. Choose one of {', '.join(RELEASES)}.")
    return RELEASES[release]


def convention_named(name: str) -> Convention:
    """One of `region.CONVENTIONS`. Raises: UsageError."""
    if name not in CONVENTIONS:
        raise UsageError(f"'{name}' is not a label convention. Choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def _folders(folder: Path) -> Iterable[Path]:
    """All folders below, links followed; but none twice (a link to a parent, say), and none that glimpseg made of
    other studies."""
    seen: set[Path] = set()
    for place, below, files in os.walk(folder, followlinks=True):
        if Path(place).resolve() in seen or MADE.intersection(files):
            below.clear()
            continue
        seen.add(Path(place).resolve())
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


def _read_folder(folder: Path) -> list[tuple[Study, str | None]]:
    """The study in one folder, as a list of none or one, with its layout if its file names tell."""
    images: dict[Modality, Path] = {}
    reference: Path | None = None
    joints: set[str] = set()
    for path in sorted(folder.iterdir()):
        match = _NAME.match(path.name)
        if not match or not path.is_file():
            continue
        word = match["what"].lower()
        joints.add(match["joint"])
        if word.startswith("seg"):
            reference = path
            continue
        modality = ALIASES[word]
        if modality in images:
            raise InputError(
                f"{folder} holds two {modality.title} images: {images[modality].name} and {path.name}. "
                "Keep one study in a folder and one image of a sequence."
            )
        images[modality] = path
    return [(Study(folder.name, images, reference), _layout(images, joints))] if images else []


def _layout(images: Mapping[Modality, Path], joints: set[str]) -> str | None:
    for layout in LAYOUTS.values():
        expected = all(
            path.name.lower().split(".nii")[0].endswith(layout.joint + layout.words[modality])
            for modality, path in images.items()
        )
        if joints == {layout.joint} and expected:
            return layout.name
    return None


def _convention(found: Sequence[tuple[Study, str | None]], labels: str | None, folder: Path) -> Convention | None:
    if labels is not None:
        return convention_named(labels)
    references = [study.reference for study, _ in found if isinstance(study.reference, Path)]
    if not references:
        return None
    layouts = {layout for study, layout in found if study.reference is not None}
    if len(layouts) > 1:
        raise InputError(
            f"{folder} mixes the layouts {', '.join(sorted(str(name or 'unnamed') for name in layouts))}; their labels "
            "need not mean the same. Read each apart, or name the convention (--labels)."
        )
    numbers = {reference: set(np.unique(nifti.read_labels(reference).voxels).tolist()) for reference in references}
    _refuse_mixed(numbers)
    pooled = set[int]().union(*numbers.values())
    return detect_convention(pooled, layouts.pop(), f"{folder} ({len(references)} references)")


def _refuse_mixed(numbers: Mapping[Path, set[int]]) -> None:
    """3 in some references, 4 in others and both in none: more likely two conventions of enhancing tumour than BraTS
    2024, where most patients with a cavity have enhancing tumour, too."""
    having = {number: [path for path, found in numbers.items() if number in found] for number in (3, 4)}
    if having[3] and having[4] and not set(having[3]) & set(having[4]):
        raise InputError(
            f"{len(having[3])} references hold the label 3 ({having[3][0].name}), {len(having[4])} others the label 4 "
            f"({having[4][0].name}), and none holds both: they seem to mix two conventions, in which enhancing tumour "
            "is 3 or 4. Read each kind apart; if all are BraTS 2024, say so (--labels brats2024)."
        )


def _refuse_twins(studies: Sequence[Study]) -> None:
    seen: dict[str, Study] = {}
    for study in studies:
        if study.id in seen:
            places = [next(iter(twin.images.values())) for twin in (seen[study.id], study)]
            raise InputError(f"Two studies are called {study.id}: {places[0]} and {places[1]}. Rename one folder.")
        seen[study.id] = study


def _as_brats(volume: Volume) -> Volume:
    """RAS voxels in the order of BraTS files: axes to the left, posterior, superior."""
    ras = Grid(volume.voxels.shape, volume.affine)  # type: ignore[arg-type]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(ras.shape[:2]) - 1
    return onto(volume, Grid(ras.shape, ras.affine @ flip))
