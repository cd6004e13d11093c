"""Damaged recipes and descriptions of datasets (YAML, JSON, TSV); see `fuzz_files.py`."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml
from fuzz_tables import as_table
from fuzz_trees import as_json, as_yaml, damaged_tree

RECIPES = ("unet/phantom", "unet/brats", "mmformer/phantom", "rfnet/phantom", "smml/phantom", "voxunet/phantom")
WORDS = {"t1": ["t1 nativ", "mprage"], "t1c": ["km", "gado"], "flair": ["dunkelfluid"], "drop": ["localizer"]}
SET = "optim.steps="
"""Field that the texts of `--set` change."""


def recipe(rng: np.random.Generator, folder: Path) -> Path:
    """A recipe, or a table of words for `identify`, or a value for `--set`, with something wrong."""
    if rng.random() < 0.15:
        path, tree = folder / "words.yaml", damaged_tree(rng, WORDS)
    elif rng.random() < 0.1:
        path, tree = folder / "set.txt", damaged_tree(rng, {"a": 20})
    else:
        name = RECIPES[int(rng.integers(len(RECIPES)))]
        path, tree = folder / "recipe.yaml", damaged_tree(rng, _recipe_tree(name))
    path.write_bytes(as_yaml(rng, tree))
    return path


@cache
def _recipe_tree(name: str) -> Any:
    from glimpseg import methods

    return methods.as_tree(methods.find_recipe(name))


def read_recipe(path: Path) -> None:
    """Read a recipe as `train` does, and write it as a run does."""
    from glimpseg import methods
    from glimpseg.cli.options import changes_of
    from glimpseg.data.identify.rules import rules_with
    from glimpseg.training.checks import refuse_unfit

    if path.name == "words.yaml":
        rules_with(path)
        return
    if path.name == "set.txt":
        changes = changes_of([SET + path.read_bytes().decode("utf-8", "surrogateescape")])
        found = methods.find_recipe("unet/phantom", changes)
    else:
        found = methods.find_recipe(str(path))
    text = yaml.safe_dump(methods.as_tree(found), sort_keys=False)
    assert methods.from_tree(yaml.safe_load(text)) == found, "it reads back otherwise"
    refuse_unfit(found)


# Datasets

AFFINE = np.diag([3.0, 3, 3, 1])
CHANNELS = {"channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"},
            "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
            "numTraining": 1, "file_ending": ".nii.gz"}  # fmt: skip
REGIONS = {**CHANNELS,
           "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": 3},
           "regions_class_order": [2, 1, 3]}  # fmt: skip
DECATHLON = {"name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
             "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
             "training": [{
                 "image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}]}  # fmt: skip
SIDECAR = {"Modality": "MR", "SeriesDescription": "t1_mprage_sag", "EchoTime": 0.003, "RepetitionTime": 2.0,
           "InversionTime": 0.9, "ImageType": ["ORIGINAL", "PRIMARY"], "AcquisitionTime": "10:11:12.5",
           "SeriesNumber": 3,
           "MagneticFieldStrength": 3, "ContrastBolusAgent": "none", "FlipAngle": 8,
           "PatientName": "Nobody^Nn"}  # fmt: skip
LABELS = [["index", "name", "abbreviation"], ["0", "background", "BG"], ["1", "necrosis", "NCR"], ["2", "edema", "ED"],
          ["3", "enhancing", "ET"]]  # fmt: skip
DESCRIPTION = {"Name": "x", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "other"}]}


def dataset(rng: np.random.Generator, folder: Path) -> Path:
    """A folder of one study whose description has something wrong."""
    return (_nnunet, _nnunet, _listed, _decathlon, _bids, _sidecar, _series)[int(rng.integers(7))](rng, folder)


def _image(folder: Path, *names: str, volumes: int = 1) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_image_bytes(volumes, "label" in name or "seg" in name))


@cache
def _image_bytes(volumes: int, labels: bool) -> bytes:
    shape = (6, 7, 5, volumes)[: 3 if volumes == 1 else 4]
    voxels = np.random.default_rng(0).integers(0, 4 if labels else 900, shape).astype(np.int16)
    return gzip.compress(nibabel.Nifti1Image(voxels, AFFINE).to_bytes(), mtime=0)


def _nnunet(rng: np.random.Generator, folder: Path) -> Path:
    tree = CHANNELS if rng.random() < 0.6 else REGIONS
    _image(folder / "tree", *(f"imagesTr/S1_000{n}.nii.gz" for n in range(4)), "labelsTr/S1.nii.gz")
    (folder / "tree" / "dataset.json").write_bytes(as_json(rng, damaged_tree(rng, tree)))
    return folder / "tree"


def _listed(rng: np.random.Generator, folder: Path) -> Path:
    _image(folder / "tree", *(f"a/{n}.nii.gz" for n in range(4)), "b/label.nii.gz")
    files = {"images": [f"a/{n}.nii.gz" for n in range(4)], "label": "b/label.nii.gz"}
    (folder / "tree" / "dataset.json").write_bytes(
        as_json(rng, damaged_tree(rng, {**CHANNELS, "dataset": {"S1": files}}))
    )
    return folder / "tree"


def _decathlon(rng: np.random.Generator, folder: Path) -> Path:
    _image(folder / "tree", "imagesTr/BRATS_001.nii.gz", volumes=4)
    _image(folder / "tree", "labelsTr/BRATS_001.nii.gz")
    (folder / "tree" / "dataset.json").write_bytes(as_json(rng, damaged_tree(rng, DECATHLON)))
    return folder / "tree"


def _bids(rng: np.random.Generator, folder: Path) -> Path:
    place = folder / "tree"
    _image(place, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")))
    _image(place, "derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz")
    (place / "dataset_description.json").write_bytes(as_json(rng, damaged_tree(rng, DESCRIPTION)))
    (place / "derivatives/manual/dataset_description.json").write_bytes(as_json(rng, damaged_tree(rng, DESCRIPTION)))
    (place / "derivatives/manual/dseg.tsv").write_bytes(as_table(rng, LABELS, "\t"))
    return place


def _sidecar(rng: np.random.Generator, folder: Path) -> Path:
    for name in ("a", "b"):
        _image(folder / "study", f"{name}.nii.gz")
        (folder / "study" / f"{name}.json").write_bytes(as_json(rng, damaged_tree(rng, SIDECAR)))
    return folder / "study"


def _series(rng: np.random.Generator, folder: Path) -> Path:
    from glimpseg.data.identify.identification import SCHEMA

    _image(folder, "files/a.nii.gz", "files/b.nii.gz")
    entries = [
        {"key": key, "number": 3, "description": "t1 mpr", "sequence": name, "could_be": [], "why": "its name",
         "score": 3,
         "geometry": "6 x 7 x 5", "source": "nifti", "study": "1234", "evidence": []}
        for key, name in (("aaaa", "t1"), ("bbbb", "flair"))
    ]  # fmt: skip
    tree = {"schema": SCHEMA, "how_to": "x", "folder": "files", "series": entries, "ties": [],
            "files": {"aaaa": ["a.nii.gz"], "bbbb": ["b.nii.gz"]}}  # fmt: skip
    (folder / "series.json").write_bytes(as_json(rng, damaged_tree(rng, tree)))
    return folder / "series.json"


def read_dataset(path: Path) -> None:
    """Read a folder as `identify`, `segment`, `train` and `prepare` do, or an edited series.json."""
    from glimpseg.data.identify import identify, read_series_json
    from glimpseg.data.layouts import find_studies, survey
    from glimpseg.data.layouts.find import usable_studies
    from glimpseg.errors import InputError

    if path.name == "series.json":
        read_series_json(path)
        return
    if path.name == "study":
        found = identify(path)
        found.text()
        found.to_json()
        return
    for read in (usable_studies, survey):
        try:
            read(path)
        except InputError:
            continue
    find_studies(path, references="required")
