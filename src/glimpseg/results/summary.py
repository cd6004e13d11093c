"""Summary of an evaluation, as `summary.json` holds it: means with intervals, empty masks, sequence values,
monotonicity, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpseg.metrics import Reliability
from glimpseg.modality import ALL, SUBSETS, Modality, parse
from glimpseg.results.scores import Scores
from glimpseg.results.statistics import CONFIDENCE, RESAMPLES, Bootstrap, Interval, additions, shapley

NOTABLE = 0.01
"""Loss of Dice above which a case counts as notably worse in the table of monotonicity: one point."""
NOTHING = Modality(0)
"""Empty subset."""


def summary(scores: Scores, reliability: Mapping[tuple[str, str], Reliability]) -> dict[str, Any]:
    """Return the summary of an evaluation, as `summary.json` holds it: all numbers that reports and papers quote.

    Numbers have the units of `scores.csv`; undefined ones are None.

    Args:
        scores: All scores.
        reliability: Reliability by subset and region, summed over cases.
    """
    bootstrap = Bootstrap(len(scores.studies))
    everything = {
        "protocol": sorted({line.protocol for line in scores.lines}),
        "studies": len(scores.studies),
        "complete_studies": len(scores.complete),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "subsets": {
            subset: _means(scores, bootstrap, slice(column, column + 1)) for column, subset in enumerate(scores.subsets)
        },
        "mean": _means(scores, bootstrap, slice(None)),
        "empty": {subset: _empty(scores, column) for column, subset in enumerate(scores.subsets)},
        "sequence_value": sequence_value(scores),
        "monotonicity": {region: monotonicity(scores, region) for region in scores.regions},
        "reliability": _reliability(reliability),
    }
    return _without_nan(everything)


def sequence_value(scores: Scores) -> dict[str, Any]:
    """Return the Shapley value of each sequence in Dice, for each region, over the cases that have all 15 subsets.

    Without any sequence nothing is found: Dice is 1 if the region is empty in the reference, else 0. Empty if Dice or
    one of the 15 subsets was not scored, or if no case has all of them.
    """
    keys = [subset.key for subset in SUBSETS]
    if "dice" not in scores.metrics or not scores.complete or set(scores.subsets) != set(keys):
        return {}
    whole = scores.restricted_to(scores.complete, keys)
    bootstrap = Bootstrap(len(whole.studies))
    regions = {}
    for region in whole.regions:
        dice = whole.array("dice", region)
        values = {parse(key): dice[:, column] for column, key in enumerate(whole.subsets)}
        values[NOTHING] = (whole.volumes_ml(region)[1][:, 0] == 0).astype(np.float64)
        shares = shapley(values)
        regions[region] = {
            "cases": len(whole.studies),
            "nothing": float(values[NOTHING].mean()),
            "all": float(values[ALL].mean()),
            "sequences": {m.key: _as_dict(bootstrap.interval(share)) for m, share in shares.items()},
        }
    return regions


def monotonicity(scores: Scores, region: str) -> dict[str, Any]:
    """Return how often one more sequence made a case worse in a region, by the key of the sequence that was added.

    Pairs of a case and a subset, with and without the sequence, are counted. `pairs`: their number. `worse`: share
    whose Dice fell. `notably_worse`: share whose Dice fell by more than `NOTABLE`. `mean_change`: mean change in Dice.
    Empty if Dice was not scored.
    """
    if "dice" not in scores.metrics:
        return {}
    dice = dict(zip(scores.subsets, scores.array("dice", region).T, strict=True))
    changes: dict[Modality, list[Float[np.ndarray, "n"]]] = {}
    for subset, added in additions([parse(key) for key in scores.subsets]):
        changes.setdefault(added, []).append(dice[(subset | added).key] - dice[subset.key])
    changes_by_sequence = {}
    for added, parts in changes.items():
        change = np.concatenate(parts)
        change = change[~np.isnan(change)]
        changes_by_sequence[added.key] = {
            "pairs": len(change),
            "worse": float((change < 0).mean()) if change.size else math.nan,
            "notably_worse": float((change < -NOTABLE).mean()) if change.size else math.nan,
            "mean_change": float(change.mean()) if change.size else math.nan,
        }
    return changes_by_sequence


def _means(scores: Scores, bootstrap: Bootstrap, columns: slice) -> dict[str, dict[str, dict[str, float]]]:
    """Return the means with intervals by region and metric; those without a case are left out."""
    means = {
        region: {metric: bootstrap.interval(scores.array(metric, region)[:, columns]) for metric in scores.metrics}
        for region in scores.regions
    }
    return {r: {m: _as_dict(mean) for m, mean in of.items() if mean.cases} for r, of in means.items()}


def _empty(scores: Scores, column: int) -> dict[str, dict[str, float]]:
    """Return shares of the scored cases by region, for one subset.

    `predicted`: empty prediction. `reference`: empty reference. `missed`: empty prediction, reference not empty.
    `invented`: prediction not empty, empty reference.
    """
    shares = {}
    for region in scores.regions:
        predicted, reference = (volume[:, column] for volume in scores.volumes_ml(region))
        scored = ~np.isnan(predicted)
        predicted, reference = predicted[scored] == 0, reference[scored] == 0
        shares[region] = {
            "predicted": float(predicted.mean()),
            "reference": float(reference.mean()),
            "missed": float((predicted & ~reference).mean()),
            "invented": float((~predicted & reference).mean()),
        }
    return shares


def _reliability(reliability: Mapping[tuple[str, str], Reliability]) -> dict[str, Any]:
    """Return the reliability counts, ECE and Brier score over all cases together, by subset and region."""
    tree: dict[str, Any] = {}
    for (subset, region), one in reliability.items():
        tree.setdefault(subset, {})[region] = {**one.as_lists(), "ece": one.ece, "brier": one.brier}
    return tree


def _as_dict(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "cases": interval.cases}


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
