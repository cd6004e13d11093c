"""The Medical Segmentation Decathlon: `imagesTr/BRATS_001.nii.gz`, all sequences in one four-dimensional file."""

from __future__ import annotations

from pathlib import Path

from glimpseg.data.layouts.dataset_json import FOLDERS, NAME, Description, holds_images, read_description
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
from glimpseg.data.layouts.nnunet import is_channel_file
from glimpseg.study import Frame, Study


def recognises(place: FolderListing) -> bool:
    """`dataset.json` beside images that are not numbered by channel."""
    if not holds_images(place):
        return False
    names = [path.name for folder in FOLDERS if folder in place.folders for path in images_in(place.path / folder)]
    return bool(names) and not any(map(is_channel_file, names))


def images_in(folder: Path) -> list[Path]:
    """Its NIfTI files; those of the Finder (`._BRATS_001.nii.gz`, as the archives have them) aside."""
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(NIFTI) and not p.name.startswith("."))


def read(place: FolderListing) -> ReadResult:
    """All studies of the data set. Raises: InputError as `read_description`."""
    told = read_description(place.path / NAME)
    entries, lost_ones, notes = [], [], []
    for images, labels in FOLDERS.items():
        if images not in place.folders:
            continue
        for path in images_in(place.path / images):
            if is_broken_link(path):
                lost_ones.append(path)
                continue
            reference = place.path / labels / path.name
            entries.append(_entry(path, reference if reference.is_file() else None, told))
    if told.others:
        notes.append(
            f"Other channels than the four sequences were left aside: {', '.join(map(printable, told.others))}."
        )
    return ReadResult(entries, notes=[*notes, *broken_link_notes(lost_ones)])


def _entry(path: Path, reference: Path | None, told: Description) -> StudyEntry:
    images = {modality: Frame(path, number) for number, modality in told.channels.items()}
    study = Study(printable(stem_of(path.name)), images, reference, told.convention)
    return StudyEntry(study, "msd", "msd", told.label_problem)


LAYOUT = Layout("msd", "dataset.json, imagesTr/BRATS_001.nii.gz (4-D), labelsTr", recognises, read)
