"""nnU-Net raw datasets: `imagesTr/ID_0000.nii.gz`, `labelsTr/ID.nii.gz`, `dataset.json` with channels and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.layouts.dataset_json import (
    FOLDERS,
    NAME,
    Description,
    holds_images,
    listed_images,
    lists_images,
    read_description,
)
from glimpseg.data.layouts.layout import (
    IMAGES,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
    is_file,
    listed,
    printable,
    stem_of,
)
from glimpseg.data.layouts.study_volumes import load_images, load_reference
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.region import Label
from glimpseg.runtime.atomic import atomic_folder, write_json
from glimpseg.study import Study

_CHANNEL = re.compile(r"^(?P<id>.+)_(?P<channel>\d{4})$", re.DOTALL)
_NAMES = {Modality.T1: "T1", Modality.T1C: "T1c", Modality.T2: "T2", Modality.FLAIR: "FLAIR"}
"""Channel names that glimpseg writes; nnU-Net z-scores every channel that is not named CT."""


def is_channel_file(name: str) -> bool:
    """True if the file name is one channel of a study."""
    return bool(_CHANNEL.match(stem_of(name)))


def recognises(listing: FolderListing) -> bool:
    """True if the folder holds `dataset.json` and images that are numbered by channel."""
    if NAME in listing.files and lists_images(listing.path / NAME):
        return True
    return holds_images(listing) and any(
        is_channel_file(path.name)
        for folder in FOLDERS
        if folder in listing.folders
        for path in (listing.path / folder).iterdir()
    )


def read(listing: FolderListing) -> ReadResult:
    """Read all studies of the dataset. Raises: InputError as `read_description`, and for an unknown `file_ending`."""
    description = read_description(listing.path / NAME)
    if description.ending not in IMAGES:
        raise InputError(
            f"{printable(description.path.name)}: images that end in {description.ending!r} are not read. "
            "Convert them to .nii.gz."
        )
    entries: list[StudyEntry] = []
    broken_links: list[Path] = []
    if lists_images(description.path):
        entries += [_listed_entry(name, *files, description) for name, files in listed_images(description.path).items()]
    for folder, labels in FOLDERS.items():
        if folder in listing.folders:
            found = _channels(listing.path / folder, description)
            broken_links += [path for images in found.values() for path in images.values() if is_broken_link(path)]
            for name, images in found.items():
                there = {m: path for m, path in images.items() if path.is_file()}
                if there:
                    entries.append(
                        _entry(name, there, listing.path / labels / f"{name}{description.ending}", description)
                    )
    notes = [f"Channels other than the four sequences were ignored: {listed(description.others)}."]
    return ReadResult(entries, notes=[*(notes if description.others else []), *broken_link_notes(broken_links)])


def _channels(folder: Path, description: Description) -> dict[str, dict[Modality, Path]]:
    found: dict[str, dict[Modality, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _CHANNEL.match(path.name[: -len(description.ending)])
        if match and path.name.endswith(description.ending) and not path.name.startswith("."):
            modality = description.channels.get(int(match["channel"]))
            if modality is not None:
                found.setdefault(match["id"], {})[modality] = path
    return found


def _entry(name: str, images: dict[Modality, Path], reference: Path, description: Description) -> StudyEntry:
    study = Study(printable(name), images, reference if reference.is_file() else None, description.convention)
    return StudyEntry(study, "nnunet", "brats", label_problem=description.label_problem)


def _listed_entry(name: str, files: list[Path], label: Path | None, description: Description) -> StudyEntry:
    """Return a study whose files the key `dataset` names. A file that is not there is a problem of the study."""
    images = {description.channels[n]: path for n, path in enumerate(files) if n in description.channels}
    gone = [path for path in [*images.values(), *([label] if label else [])] if not is_file(path)]
    study = Study(printable(name), {m: p for m, p in images.items() if is_file(p)}, label, description.convention)
    problem = (
        f"{NAME} names {printable(gone[0].name)} for {printable(name)} under 'dataset', which is not there. Correct "
        "the path; it is relative to the file."
        if gone
        else ""
    )
    return StudyEntry(study, "nnunet", "brats", label_problem=description.label_problem, problem=problem)


def write(folder: Path, studies: Iterable[Study]) -> None:
    """Write a raw dataset: studies with a reference into `imagesTr` and `labelsTr`, others into `imagesTs`.

    Only existing channels are written; nnU-Net itself refuses a study that lacks one. Label numbers are `Label` values,
    consecutive as nnU-Net requires.

    Raises:
        UsageError: if the folder holds files.
        InputError: if a study cannot be read.
    """
    cases, highest = 0, int(Label.ET)
    with atomic_folder(folder) as temporary:
        for study in studies:
            reference = load_reference(study)
            images = temporary / ("imagesTs" if reference is None else "imagesTr")
            for modality, volume, dtype in load_images(study):
                number = list(Modality).index(modality)
                nifti.write_image(images / f"{study.id}_{number:04d}.nii.gz", volume, dtype)
            if reference is not None:
                cases += 1
                highest = max(highest, int(np.max(reference.voxels)))
                nifti.write_labels(temporary / "labelsTr" / f"{study.id}.nii.gz", reference)
        labels = {"background": 0, **{label.name: int(label) for label in Label if label <= highest}}
        channels = {str(number): _NAMES[modality] for number, modality in enumerate(Modality)}
        tree = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
        write_json(temporary / NAME, tree)


LAYOUT = Layout("nnunet", "dataset.json, imagesTr/ID_0000.nii.gz, labelsTr/ID.nii.gz", recognises, read, write=write)
