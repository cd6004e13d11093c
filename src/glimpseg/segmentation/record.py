"""JSON content of an output folder: `seg.json`, `statistics.json` and `run.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from glimpseg.modality import Modality
from glimpseg.model.expectations import Expectations, expected_tree, gain_tree
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import TITLES, Label, Region
from glimpseg.segmentation.uncertainty import Uncertainty, region_tree
from glimpseg.version import NOT_A_DEVICE, __version__
from glimpseg.volume import Grid

STATISTICS = "statistics.json"


def label_names(convention: str, numbers: Mapping[int, Label], regions: Iterable[Region]) -> dict[str, Any]:
    """Return the content of `seg.json`: the meaning of the numbers in `seg.nii.gz`.

    Args:
        convention: Name of the label convention.
        numbers: Label of each number that the model can write.
        regions: Regions that the model delineates.
    """
    return {
        "convention": convention,
        "labels": {str(number): {"name": label.name, "title": TITLES[label]} for number, label in numbers.items()},
        "regions": {region.name: [label.name for label in region.value] for region in regions},
    }


def statistics(
    volumes_ml: Mapping[Region, float], lesions: Mapping[Region, int], uncertainty: Uncertainty | None
) -> dict[str, Any]:
    """Return the content of `statistics.json`: volume (ml, four decimals) and lesions of each region.

    The uncertainty of each region is added if it was estimated.
    """
    uncertain = uncertainty.regions if uncertainty else {}
    return {
        region.name: {
            "title": region.title,
            "volume_ml": round(volume, 4),
            "lesions": lesions[region],
            **(region_tree(uncertain[region]) if region in uncertain else {}),
        }
        for region, volume in volumes_ml.items()
    }


def trust(expectations: Expectations | None, used: Modality, uncertainty: Uncertainty | None) -> dict[str, Any]:
    """Return the field `trust` of `run.json`: expected performance, most helpful sequence, and uncertainty.

    Each is None if it is not known.

    Args:
        expectations: Expected performance of the model; None if it was not measured.
        used: Sequences that were segmented from.
        uncertainty: Uncertainty of the result; None if it was not estimated.
    """
    best = expectations.most_helpful(used) if expectations else None
    return {
        "expected": expectations
        and {
            "population": expectations.population,
            "studies": expectations.studies,
            "regions": {region.name: expected_tree(one) for region, one in expectations.of(used).items()},
        },
        "most_helpful": best and {"sequence": best.sequence.key, **gain_tree(best)},
        "uncertainty": uncertainty and uncertainty.as_tree(),
    }


def model_used(model: Model) -> dict[str, Any]:
    """Return the version of the package, the notice, and the identity of a model, as fields of `run.json`."""
    prior = model.provenance.get("data", {}).get("prior")
    return {
        "glimpseg": __version__,
        "notice": NOT_A_DEVICE,
        "model": {
            "name": model.name,
            "method": model.recipe.method,
            "sha256": model.provenance["sha256"][WEIGHTS],
            "steps": model.provenance.get("steps"),
            "written_by": model.provenance.get("glimpseg"),
            **({"choices": model.chosen} if model.chosen else {}),
            **({"prior": prior} if prior else {}),
        },
    }


def machine(model: Model, backend: Mapping[str, str]) -> dict[str, Any]:
    """Return device, backend, precision, threads and the version of torch, as fields of `run.json`.

    `backend` is a record of `Backend`.
    """
    return {
        "device": str(model.device),
        "backend": dict(backend),
        "precision": backend["precision"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def grid(lattice: Grid) -> dict[str, Any]:
    """Return shape, spacing (mm) and axis directions of a grid."""
    return {"shape": list(lattice.shape), "spacing_mm": list(lattice.spacing_mm), "axes": lattice.axes}


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file (two spaces of indentation) into a folder that is itself written whole or not at all."""
    path.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
