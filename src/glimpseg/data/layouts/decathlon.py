"""Medical Segmentation Decathlon: `imagesTr/BRATS_001.nii.gz`, all sequences in one four-dimensional file."""

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
    listed,
    printable,
    stem_of,
)
from glimpseg.data.layouts.nnunet import is_channel_file
from glimpseg.study import Frame, Study


def recognises(listing: FolderListing) -> bool:
    """True if the folder holds `dataset.json` and images that are not numbered by channel."""
    if not holds_images(listing):
        return False
    names = [path.name for folder in FOLDERS if folder in listing.folders for path in images_in(listing.path / folder)]
    return bool(names) and not any(map(is_channel_file, names))


def images_in(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder, without hidden files.

    The published archives hold hidden files of macOS, such as `._BRATS_001.nii.gz`.
    """
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(NIFTI) and not p.name.startswith("."))


def read(listing: FolderListing) -> ReadResult:
    """Read all studies of the dataset. Raises: InputError as `read_description`."""
    description = read_description(listing.path / NAME)
    entries, broken_links, notes = [], [], []
    for images, labels in FOLDERS.items():
        if images not in listing.folders:
            continue
        for path in images_in(listing.path / images):
            if is_broken_link(path):
                broken_links.append(path)
                continue
            reference = listing.path / labels / path.name
            entries.append(_entry(path, reference if reference.is_file() else None, description))
    if description.others:
        notes.append(f"Channels other than the four sequences were ignored: {listed(description.others)}.")
    return ReadResult(entries, notes=[*notes, *broken_link_notes(broken_links)])


def _entry(path: Path, reference: Path | None, description: Description) -> StudyEntry:
    images = {modality: Frame(path, number) for number, modality in description.channels.items()}
    study = Study(printable(stem_of(path.name)), images, reference, description.convention)
    return StudyEntry(study, "msd", "msd", label_problem=description.label_problem)


LAYOUT = Layout("msd", "dataset.json, imagesTr/BRATS_001.nii.gz (4-D), labelsTr", recognises, read)
