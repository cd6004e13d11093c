"""nnU-Net's raw data sets: `imagesTr/ID_0000.nii.gz`, `labelsTr/ID.nii.gz`, and `dataset.json` that names channels and
labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from glimpseg.data import nifti
from glimpseg.data.layouts.dataset_json import FOLDERS, NAME, Description, holds_images, read_description
from glimpseg.data.layouts.layout import (
    IMAGES,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    broken_link_notes,
    is_broken_link,
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
"""Our channel names; nnU-Net z-scores whatever it does not know as CT."""


def is_channel_file(name: str) -> bool:
    """Whether a file is one channel of a study."""
    return bool(_CHANNEL.match(stem_of(name)))


def recognises(place: FolderListing) -> bool:
    """`dataset.json` beside images that are numbered by channel."""
    return holds_images(place) and any(
        is_channel_file(path.name)
        for folder in FOLDERS
        if folder in place.folders
        for path in (place.path / folder).iterdir()
    )


def read(place: FolderListing) -> ReadResult:
    """All studies of the data set. Raises: InputError as `read_description`, and for files that are no images."""
    told = read_description(place.path / NAME)
    if told.ending not in IMAGES:
        raise InputError(
            f"{printable(str(told.path))}: images that end in {told.ending!r} are not read. Convert them to .nii.gz."
        )
    entries: list[StudyEntry] = []
    lost_ones: list[Path] = []
    for folder, labels in FOLDERS.items():
        if folder in place.folders:
            found = _channels(place.path / folder, told)
            lost_ones += [path for images in found.values() for path in images.values() if is_broken_link(path)]
            for name, images in found.items():
                there = {m: path for m, path in images.items() if path.is_file()}
                if there:
                    entries.append(_entry(name, there, place.path / labels / f"{name}{told.ending}", told))
    notes = [f"Other channels than the four sequences were left aside: {', '.join(map(printable, told.others))}."]
    return ReadResult(entries, notes=[*(notes if told.others else []), *broken_link_notes(lost_ones)])


def _channels(folder: Path, told: Description) -> dict[str, dict[Modality, Path]]:
    found: dict[str, dict[Modality, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _CHANNEL.match(path.name[: -len(told.ending)])
        if match and path.name.endswith(told.ending) and not path.name.startswith("."):
            modality = told.channels.get(int(match["channel"]))
            if modality is not None:
                found.setdefault(match["id"], {})[modality] = path
    return found


def _entry(name: str, images: dict[Modality, Path], reference: Path, told: Description) -> StudyEntry:
    study = Study(printable(name), images, reference if reference.is_file() else None, told.convention)
    return StudyEntry(study, "nnunet", "brats", told.label_problem)


def write(folder: Path, studies: Iterable[Study]) -> None:
    """Writes a raw data set: studies with a reference into `imagesTr` and `labelsTr`, others into `imagesTs`.

    Only the channels that exist are written; nnU-Net itself refuses a study that lacks one. Numbers are `Label`
    values, as nnU-Net wants them: consecutive.

    Raises: UsageError if the folder holds files; InputError for a study that cannot be read.
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
