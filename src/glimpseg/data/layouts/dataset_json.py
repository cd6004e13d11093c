"""`dataset.json` of the Medical Segmentation Decathlon and nnU-Net: channels and labels by number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg.data.layouts.label_names import BACKGROUND_NAMES, convention_of_labels, convention_of_regions
from glimpseg.data.layouts.layout import FolderListing, printable
from glimpseg.errors import InputError
from glimpseg.modality import ALIASES, Modality
from glimpseg.region import Convention

NAME = "dataset.json"
FOLDERS, LABELS = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}, "labels"
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


def holds_images(listing: FolderListing) -> bool:
    """True if a folder holds a file named `dataset.json` and a folder named `imagesTr` or `imagesTs`; names alone."""
    return NAME in listing.files and any(name in listing.folders for name in FOLDERS)


def read_description(path: Path) -> Description:
    """Read a `dataset.json`. Raises: InputError if it is invalid or its channels are unknown."""
    tree = _read_json(path)
    named = tree.get("channel_names", tree.get("modality"))
    if not isinstance(named, dict) or not all(str(number).isdecimal() for number in named):
        raise InputError(
            f"{printable(str(path))} should name its channels ('channel_names' or 'modality', by number), such as "
            '{"0": "T1", "1": "FLAIR"}. Add it.'
        )
    channels: dict[int, Modality] = {}
    others = []
    for number, name in named.items():
        modality = ALIASES.get(str(name).strip().lower())
        if modality is None:
            others.append(str(name))
        elif modality in channels.values():
            raise InputError(f"{printable(str(path))} has two channels for {modality.title}. Name each sequence once.")
        else:
            channels[int(number)] = modality
    if not channels:
        raise InputError(
            f"{printable(str(path))} names the channels {', '.join(map(printable, others))}, none of which is T1, T1c, "
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
        if path.stat().st_size > MAXIMAL_BYTES:
            raise ValueError("it is too long")
        tree = json.loads(path.read_text("utf-8-sig"))
        if not isinstance(tree, dict):
            raise TypeError("it holds no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{printable(str(path))} cannot be read as JSON ({error}). Correct it.") from error
    return tree


def _convention(tree: Mapping[str, Any], path: Path) -> tuple[Convention | None, str]:
    """Return the label convention, or None and the reason why it is unknown."""
    where = printable(str(path))
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
        names = ", ".join(repr(printable(name)) for name in labels)
        return None, f"{where} names the labels {names}. Say what each number means: --labels 1=NCR,2=ED,3=ET."
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
