"""`dataset.json` of the Medical Segmentation Decathlon and nnU-Net: channels and labels by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from glimpseg.data.identify.names import read_name
from glimpseg.data.layouts.label_names import BACKGROUND_NAMES, convention_of_labels, convention_of_regions
from glimpseg.data.layouts.layout import FolderListing, listed, printable
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.region import Convention
from glimpseg.runtime.documents import DocumentError, read_json

NAME = "dataset.json"
FOLDERS, LABELS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}, "labels"
LISTED = "dataset"
"""Key of nnU-Net for files that lie elsewhere."""
MAXIMAL_BYTES = 32 << 20


@dataclass(frozen=True)
class Description:
    """Contents of a `dataset.json`."""

    path: Path
    channels: Mapping[int, Modality]
    """Channel numbers of the four sequences."""
    others: tuple[str, ...]
    """Names of other channels."""
    convention: Convention | None
    label_problem: str
    ending: str


def missing_in(path: Path) -> str:
    """Return a sentence that names the keys and folders that a `dataset.json` lacks."""
    try:
        tree = _read_json(path)
    except InputError as error:
        return str(error)
    missing = [
        text
        for text, there in (
            ("'channel_names' (or 'modality')", "channel_names" in tree or "modality" in tree),
            ("'labels'", LABELS in tree),
            ("the folder imagesTr or imagesTs, or the key 'dataset'", _has_images(path.parent) or LISTED in tree),
        )
        if not there
    ]
    if not missing:
        return ""
    keys = listed(tree) or "none"
    return f"{path.name} lacks {' and '.join(missing)}; its keys are: {keys}."


def _has_images(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in FOLDERS)


@lru_cache(maxsize=16)
def lists_images(path: Path) -> bool:
    """True if a `dataset.json` names the files of each study itself, under nnU-Net's key `dataset`."""
    try:
        return bool(_read_json(path).get(LISTED))
    except InputError:
        return False


def listed_images(path: Path) -> dict[str, tuple[list[Path], Path | None]]:
    """Return the images of each study by channel, and its label map, from the key `dataset`. Paths may be relative.

    Raises: InputError if the key has another form.
    """
    found = {}
    listed = _read_json(path)[LISTED]
    for name, files in listed.items() if isinstance(listed, dict) else ((str(listed), None),):
        images = files.get("images") if isinstance(files, dict) else None
        label = files.get("label") if isinstance(files, dict) else None
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise InputError(
                f"{path.name}: 'dataset' should hold 'images' (a list of files, one for each channel) and 'label' for "
                f"each study; {printable(str(name))} does not. Correct it."
            )
        found[str(name)] = (
            [path.parent / image for image in images],
            path.parent / label if isinstance(label, str) else None,
        )
    return found


def holds_images(listing: FolderListing) -> bool:
    """True if a folder holds a file named `dataset.json` and a folder named `imagesTr` or `imagesTs`; names alone."""
    return NAME in listing.files and any(name in listing.folders for name in FOLDERS)


def read_description(path: Path) -> Description:
    """Read a `dataset.json`. Labels that are absent or unclear are described in `label_problem`.

    Raises: InputError if it cannot be read, names no channel that is known, or names one sequence twice.
    """
    tree = _read_json(path)
    named = tree.get("channel_names", tree.get("modality"))
    if not isinstance(named, dict) or not all(str(number).isdecimal() for number in named):
        raise InputError(
            f"{printable(path.name)} lacks 'channel_names' (or 'modality'): it should name its channels by number, "
            'as {"0": "T1", "1": "FLAIR"}. Add it.'
        )
    channels: dict[int, Modality] = {}
    others = []
    for number, name in named.items():
        modality = read_name(str(name).strip()).sequence
        if modality is None:
            others.append(str(name))
        elif modality in channels.values():
            raise InputError(f"{printable(path.name)} has two channels for {modality.title}. Name each sequence once.")
        else:
            channels[int(number)] = modality
    if not channels:
        raise InputError(
            f"{printable(path.name)} names the channels {listed(others)}, none of which is T1, T1c, "
            "T2 or FLAIR. Name the sequences by one of these words."
        )
    convention, label_problem = _convention(tree, path)
    return Description(
        path=path,
        channels=channels,
        others=tuple(others),
        convention=convention,
        label_problem=label_problem,
        ending=str(tree.get("file_ending", ".nii.gz")),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = read_json(path, most_bytes=MAXIMAL_BYTES)
        if not isinstance(tree, dict):
            raise TypeError("it holds no object")
    except (DocumentError, TypeError) as error:
        raise InputError(f"{printable(path.name)} cannot be read as JSON ({error}). Correct it.") from error
    return tree


def _convention(tree: Mapping[str, Any], path: Path) -> tuple[Convention | None, str]:
    """Return the label convention, or None and the reason why it is unknown."""
    where = printable(path.name)
    try:
        labels = _labels_by_name(tree.get(LABELS))
        if any(isinstance(numbers, list) and len(numbers) > 1 for numbers in labels.values()):
            regions = {name: numbers if isinstance(numbers, list) else [numbers] for name, numbers in labels.items()}
            return convention_of_regions(regions, _written_numbers(tree, labels)), ""
        single = {numbers[0] if isinstance(numbers, list) else numbers: name for name, numbers in labels.items()}
        # `ignore` is nnU-Net's name for voxels without annotation; a reference that holds them is refused.
        found = convention_of_labels({number: name for number, name in single.items() if name.lower() != "ignore"})
    except InputError as error:
        return None, f"{where}: {error}"
    if found is None:
        return (
            None,
            f"{where} names the labels {listed(map(repr, labels))}. Say what each number means: "
            "--labels 1=NCR,2=ED,3=ET.",
        )
    return found, ""


def _labels_by_name(labels: Any) -> dict[str, int | list[int]]:
    """Return the numbers of each label name; the file may map names to numbers or numbers to names."""
    if not isinstance(labels, dict) or not labels:
        raise InputError(
            "it does not name its labels ('labels'). Say what each number means: --labels 1=NCR,2=ED,3=ET."
        )
    if all(str(key).isdecimal() and isinstance(value, str) for key, value in labels.items()):
        return {value: int(key) for key, value in labels.items()}
    named: dict[str, int | list[int]] = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(n, int) or (isinstance(n, str) and n.isdecimal()) for n in numbers):
            raise InputError(
                f"its label '{printable(name)}' is {value!r}, not a number or a list of numbers. Correct it."
            )
        whole = [int(n) for n in numbers]
        named[name] = whole if isinstance(value, list) else whole[0]
    return named


def _written_numbers(tree: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, int]:
    """Return the number that nnU-Net writes for each region, in the order of writing."""
    order = tree.get("regions_class_order")
    regions = [name for name in labels if name.lower() not in BACKGROUND_NAMES and name.lower() != "ignore"]
    if not isinstance(order, list) or len(order) != len(regions) or not all(isinstance(n, int) for n in order):
        raise InputError(
            "region-based labels need a 'regions_class_order' of as many numbers as there are regions. Add it."
        )
    return dict(zip(regions, order, strict=True))
