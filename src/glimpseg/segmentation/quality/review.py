"""The rules of the review, and their order."""

from __future__ import annotations

from collections.abc import Collection

from glimpseg import metrics
from glimpseg.data.preprocess import Prepared
from glimpseg.model.loading import Model
from glimpseg.model.training_volumes import largest_volumes
from glimpseg.segmentation.quality import image_rules, result_rules, trust_rules
from glimpseg.segmentation.quality.alignment import alignment
from glimpseg.segmentation.quality.evidence import Evidence, evidence_of
from glimpseg.segmentation.quality.finding import Finding, Review, review_of
from glimpseg.segmentation.uncertainty import Uncertainty
from glimpseg.volume import Volume, bounding_box

RULES = (
    result_rules.outside_brain,
    result_rules.brain_border,
    result_rules.coverage_edge,
    result_rules.brain_share,
    result_rules.far_parts,
    result_rules.unsupported,
    result_rules.missed,
    image_rules.brain_volume,
    image_rules.brain_shape,
    image_rules.doubtful_mask,
    image_rules.bright_rim,
    image_rules.sequence_name,
    image_rules.sequence_coverage,
    image_rules.appearance,
    alignment,
)
"""Rules on labels and images. Each returns its findings, or the reason why it cannot judge."""


def review_evidence(evidence: Evidence) -> dict[str, list[Finding] | str]:
    """Return the findings of each rule on labels and images, by its name."""
    return {rule.__name__: rule(evidence) for rule in RULES}


def review_segmentation(
    prepared: Prepared,
    labels: Volume,
    model: Model,
    *,
    uncertainty: Uncertainty | None,
    warnings: Collection[str] = (),
) -> Review:
    """Return the review of a segmentation.

    Args:
        prepared: The study as the network saw it.
        labels: Label map on the study's native grid.
        model: Model that made it.
        uncertainty: Uncertainty of the result; None if it was not estimated.
        warnings: Warnings that were given while the study was read and prepared.
    """
    box = bounding_box(labels.voxels > 0) or (slice(0, 0),) * 3
    tumour, voxel = labels.voxels[box], labels.grid.voxel_ml
    volumes = {region: metrics.volume_ml(region.mask(tumour), voxel) for region in model.network.regions}
    expected = model.expectations.of(prepared.available) if model.expectations else {}
    return review_of(
        {
            **review_evidence(evidence_of(prepared, labels, warnings)),
            "volume_range": result_rules.volume_range(volumes, largest_volumes(model.provenance)),
            "estimated_dice": trust_rules.estimated_dice(uncertainty, expected),
            "passes_disagree": trust_rules.passes_disagree(uncertainty),
            "weak_sequences": trust_rules.weak_sequences(prepared.available, expected),
        }
    )
