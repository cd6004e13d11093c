"""Write BIDS: a raw dataset with references, and derivatives of a segmentation.

sub-01/anat/sub-01_{T1w,ce-gadolinium_T1w,T2w,FLAIR}.nii.gz
derivatives/reference/sub-01/anat/sub-01_space-orig_desc-tumor_dseg.nii.gz
derivatives/glimpseg/sub-01/anat/sub-01_space-orig_desc-tumor_dseg.nii.gz, .json, .tsv
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glimpseg.data import nifti
from glimpseg.data.layouts.bids_names import (
    BIDS_VERSION,
    DERIVATIVES,
    DESCRIPTION,
    PARTICIPANTS,
    anat_folder,
    bids_study_name,
)
from glimpseg.data.layouts.layout import refuse_duplicates
from glimpseg.data.layouts.study_volumes import load_images, load_reference
from glimpseg.errors import UsageError
from glimpseg.modality import Modality
from glimpseg.region import Label
from glimpseg.runtime.atomic import atomic_folder, write_json, write_text
from glimpseg.study import Study
from glimpseg.version import __version__
from glimpseg.volume import Volume

GENERATOR, REFERENCE, RAW = "glimpseg", "reference", "raw"
"""Kinds of written datasets: derivatives of a segmentation, references as derivatives, images."""
_SUFFIXES = {Modality.T1: "T1w", Modality.T1C: "ce-gadolinium_T1w", Modality.T2: "T2w", Modality.FLAIR: "FLAIR"}
_TABLE = {
    Label.NCR: ("Necrosis and non-enhancing tumor core", "#c62828"),
    Label.ED: ("Edema and infiltration", "#2e7d32"),
    Label.ET: ("Enhancing tumor", "#f9a825"),
    Label.RC: ("Resection cavity", "#1565c0"),
}
_README = {
    RAW: "Native and contrast-enhanced T1, T2 and FLAIR; a sequence may be missing. Written by glimpseg.\n"
    "Expert label maps, where there are any, lie in derivatives/reference.",
    REFERENCE: "Parts of brain tumours as experts drew or corrected them, on the grid of the images.",
    GENERATOR: "Parts of brain tumours as a model found them; dataset_description.json names it.\n"
    "Research software, not a medical device: not for diagnosis or treatment.",
}


def write(folder: Path, studies: Sequence[Study]) -> None:
    """Write a raw dataset atomically, with references as derivatives of a pipeline named `reference`.

    Ids that are not BIDS ids keep their letters and digits; `participants.tsv` holds the original ids.

    Raises:
        UsageError: if the folder holds files, an id has neither letters nor digits, or two studies get one name.
        InputError: if a study cannot be read.
        OutputError: if writing fails.
    """
    names = [bids_study_name(study.id) for study in studies]
    refuse_duplicates(names, "BIDS")
    with atomic_folder(folder) as temporary:
        _describe(temporary, RAW, "MRI of brain tumours", [])
        _participants(temporary, dict(zip(names, (study.id for study in studies), strict=True)))
        for name, study in zip(names, studies, strict=True):
            for modality, volume, dtype in load_images(study):
                path = anat_folder(temporary, name) / f"{name}_{_SUFFIXES[modality]}.nii.gz"
                nifti.write_image(path, volume, dtype)
            reference = load_reference(study)
            if reference is not None:
                root = temporary / DERIVATIVES / REFERENCE
                _describe(root, REFERENCE, "Expert label maps", [{"Name": "Manual", "Description": "Drawn by experts"}])
                _label_map(root, name, reference, {"Manual": True})


def write_derivative(
    dataset: str | Path, study: str, labels: Volume, *, model: str, version: str, sources: Sequence[str] = ()
) -> Path:
    """Write the segmentation of one study into `derivatives/glimpseg` of a BIDS dataset.

    The label map, its JSON and its table are each written atomically.

    Args:
        dataset: folder of the BIDS dataset.
        study: id of the study.
        labels: `Label` values on the study's native grid.
        model: name of the model.
        version: version of the model. One `derivatives/glimpseg` holds results of one model.
        sources: paths in the dataset of the images that the model was given.

    Returns:
        Path of the label map.

    Raises:
        UsageError: if the folder holds results of another model or version, or the id has neither letters nor digits.
        OutputError: if writing fails.
    """
    root = Path(dataset) / DERIVATIVES / GENERATOR
    makers = [{"Name": GENERATOR, "Version": __version__}, {"Name": model, "Version": version}]
    _describe(root, GENERATOR, "Brain-tumour segmentations", makers)
    given = {"Sources": [f"bids::{source}" for source in sources]} if sources else {}
    return _label_map(root, bids_study_name(study), labels, {"Manual": False, **given})


def _label_map(root: Path, name: str, labels: Volume, more: Mapping[str, Any]) -> Path:
    path = anat_folder(root, name) / f"{name}_space-orig_desc-tumor_dseg.nii.gz"
    stem = path.name.removesuffix(".nii.gz")
    rows = [f"{int(label)}\t{label.name}\t{words}\t{colour}" for label, (words, colour) in _TABLE.items()]
    write_text(path.with_name(f"{stem}.tsv"), "\n".join(["index\tabbreviation\tname\tcolor", *rows]) + "\n")
    tree = {"Description": "Parts of a brain tumour", "SpatialReference": "orig", **more}
    write_json(path.with_name(f"{stem}.json"), tree)
    nifti.write_labels(path, labels)  # last: if it exists, the other two exist too
    return path


def _describe(root: Path, kind: str, name: str, makers: Sequence[Mapping[str, str]]) -> None:
    """Write a dataset description. Raises: UsageError if a different description exists."""
    path = root / DESCRIPTION
    tree: dict[str, Any] = {"Name": name, "BIDSVersion": BIDS_VERSION}
    tree["DatasetType"] = "raw" if kind == RAW else "derivative"
    if makers:
        tree["GeneratedBy"] = list(makers)
    text = json.dumps(tree, indent=1) + "\n"
    if path.is_file() and path.read_text("utf-8") != text:
        raise UsageError(
            f"{root} holds the results of another model or version (see its {DESCRIPTION}). Name another output, or "
            "move that folder away."
        )
    if not path.is_file():
        write_text(root / "README.md", f"# {name}\n\n{_README[kind]}\n")
        write_text(path, text)


def _participants(root: Path, ids: Mapping[str, str]) -> None:
    """Write the table of participants: one row per subject with the original ids of its studies."""
    subjects: dict[str, list[str]] = {}
    for name, study in ids.items():
        subjects.setdefault(name.split("_")[0], []).append(study)
    rows = [f"{subject}\t{', '.join(studies)}" for subject, studies in subjects.items()]
    write_text(root / PARTICIPANTS, "\n".join(["participant_id\tsource_id", *rows]) + "\n")
    described = {"source_id": {"Description": "Id of the study in the data set that this one was written from"}}
    write_json(root / "participants.json", described)
