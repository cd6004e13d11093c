"""Volume of predicted tumour that lies far from any label, for every subset of the sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from glimpseg import InferenceOptions, Modality, Model
from glimpseg.data.preprocess import reference_on
from glimpseg.modality import SUBSETS, subsets_of
from glimpseg.region import Region
from glimpseg.segmentation.predict import segment_study
from likeness.cases import FAR_MM, Labelled, Mask

PLAIN = InferenceOptions(raw="no", uncertainty="none")


@dataclass(frozen=True)
class FarTumour:
    """Predicted tumour of one case from one subset, in millilitres."""

    case: str
    subset: Modality
    total_ml: float
    far_ml: float
    """More than 10 mm from any label of a tumour; everything in a case without tumour."""
    tumour: bool
    """Whether the case has a tumour."""


def far_tumour(labelled: Labelled, model: Model) -> Iterator[FarTumour]:
    """Segment a study from every subset of the sequences that it has."""
    study, tumour = labelled.study, labelled.tumour
    for subset in subsets_of(study.available):
        found = segment_study(study.restricted_to(subset), model, PLAIN).labels
        reference = reference_on(study, found.grid)
        assert reference is not None
        labels = reference.voxels if tumour else np.zeros_like(reference.voxels)
        total, far = volumes(Region.WT.mask(found.voxels), labels, found.grid.spacing_mm)
        yield FarTumour(study.id, subset, total, far, tumour)


def volumes(
    predicted: Mask, labels: UInt8[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Return the predicted volume, and that more than `FAR_MM` from every label, in millilitres."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    if not labels.any():
        return (float(predicted.sum()) * voxel_ml,) * 2
    apart = ndimage.distance_transform_edt(labels == 0, sampling=spacing_mm)
    return float(predicted.sum()) * voxel_ml, float((predicted & (apart > FAR_MM)).sum()) * voxel_ml


def table(found: list[FarTumour]) -> str:
    """Return a Markdown table with a line for each subset."""
    text = [
        "| sequences | tumour-free: ml | with tumour: ml far off, mean | median | most | cases |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for subset in SUBSETS:
        free = [one.total_ml for one in found if one.subset == subset and not one.tumour]
        far = [one.far_ml for one in found if one.subset == subset and one.tumour]
        cells = [f"{np.mean(free):.1f}" if free else "-"]
        cells += [f"{v:.1f}" for v in (np.mean(far), np.median(far), np.max(far))] if far else ["-"] * 3
        text.append(f"| {subset.title} | {' | '.join(cells)} | {len(far)} |")
    return "\n".join(text) + "\n"


def single_table(found: list[FarTumour]) -> str:
    """Return a Markdown table with a line for each case: predicted ml, and how much of it lies far off."""
    subsets = [subset for subset in SUBSETS if any(one.subset == subset for one in found)]
    text = [f"| case | {' | '.join(subset.title for subset in subsets)} |", "|---" * (1 + len(subsets)) + "|"]
    for case in dict.fromkeys(one.case for one in found):
        of_subset = {one.subset: f"{one.total_ml:.1f} ({one.far_ml:.1f})" for one in found if one.case == case}
        text.append(f"| {case} | {' | '.join(of_subset.get(subset, '-') for subset in subsets)} |")
    return "\n".join(text) + "\n"
