"""Rules on the probabilities: estimated Dice, agreement of the passes, expected performance with these sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping

from glimpseg.modality import Modality
from glimpseg.model.expectations import Expected
from glimpseg.region import Region
from glimpseg.segmentation.quality.finding import Finding, finding
from glimpseg.segmentation.quality.result_rules import SMALLEST_ML, TOO_SMALL
from glimpseg.segmentation.uncertainty import Uncertainty

LEAST_ESTIMATE = 0.6
"""Estimated Dice of the whole tumour below which a person should look."""
BELOW_EXPECTED = 0.12
"""Distance of the estimate below the expected mean Dice with these sequences from which on a person should look."""
LEAST_AGREEMENT = 0.87
"""Dice of the passes on the whole tumour below which a person should look."""
LEAST_EXPECTED = 0.5
"""Expected mean Dice of the whole tumour with these sequences below which a person should look at every study."""
NO_PASSES = "there is one pass only (uncertainty none)"


def estimated_dice(uncertainty: Uncertainty | None, expected: Mapping[Region, Expected]) -> list[Finding] | str:
    """Judge the Dice of the whole tumour that the probabilities let expect, also against the mean with these sequences.

    Args:
        uncertainty: Uncertainty of the result.
        expected: Expected performance with these sequences; empty if it was not measured.
    """
    if uncertainty is None:
        return "the Dice was not estimated (uncertainty none)"
    one = uncertainty.regions.get(Region.WT)
    if one is not None and one.withheld:
        return "estimates with these sequences are too far off"
    if one is None or math.isnan(one.estimated_dice) or one.highest_ml < SMALLEST_ML:
        return TOO_SMALL
    least, usual = LEAST_ESTIMATE, ""
    if Region.WT in expected:
        mean = expected[Region.WT].mean_dice
        least, usual = max(least, mean - BELOW_EXPECTED), f" (mean with these sequences: {100 * mean:.0f} %)"
    said = f"the estimated Dice of the whole tumour is {100 * one.estimated_dice:.0f} %{usual}"
    return [finding("estimated_dice", (1 - one.estimated_dice) / (1 - least), said)]


def passes_disagree(uncertainty: Uncertainty | None) -> list[Finding] | str:
    """Judge the agreement of the further passes with the result, on the whole tumour."""
    one = None if uncertainty is None else uncertainty.regions.get(Region.WT)
    if one is None or math.isnan(one.agreement):
        return NO_PASSES
    if one.highest_ml < SMALLEST_ML:
        return TOO_SMALL
    low, high = one.spread_ml
    said = f"the passes disagree about the whole tumour: {low:.1f} to {high:.1f} ml, Dice {100 * one.agreement:.0f} %"
    return [finding("passes_disagree", (1 - one.agreement) / (1 - LEAST_AGREEMENT), said)]


def weak_sequences(used: Modality, expected: Mapping[Region, Expected]) -> list[Finding] | str:
    """Judge the mean Dice of the whole tumour with these sequences, on patients if it was measured there."""
    if Region.WT not in expected:
        return "the performance with these sequences was not measured"
    mean = expected[Region.WT].mean_dice
    said = f"with {used.title} alone the model finds little: mean Dice of the whole tumour {100 * mean:.0f} %"
    return [finding("weak_sequences", (1 - mean) / (1 - LEAST_EXPECTED), said)]
