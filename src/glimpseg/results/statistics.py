"""Statistics over cases: bootstrap intervals, paired tests, Holm's correction, Shapley values of the sequences.

Arrays are studies by subsets, NaN where a study was not scored. Every random draw has a fixed seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from glimpseg.modality import ALL, SUBSETS, Modality
from glimpseg.results.scores import DECIMALS

CONFIDENCE = 0.95
"""Confidence level of all intervals."""
FEWEST_CASES = 8
"""Fewest cases for an interval. Below, the percentile bootstrap is too narrow: of its 95 % intervals of a mean Dice
over 5 cases, 82 % held the true mean."""
MOST_LOST = 0.01
"""Largest share of resamples in which some subset may have no case at all; above, there is no interval."""
RESAMPLES = 10_000
"""Number of bootstrap resamples: the ends of an interval move by about 1 % of its width from seed to seed."""


@dataclass(frozen=True)
class Interval:
    """Mean over cases with its bootstrap interval."""

    mean: float
    low: float
    """Lower end; NaN, as `high`, if there are too few cases for an interval."""
    high: float
    """Upper end."""
    cases: int
    """Number of cases, in the column that has the fewest."""


class Bootstrap:
    """Percentile intervals of means over the same cases, from one set of resamples of whole cases.

    All subsets of a case are drawn together: intervals of means over subsets and of differences hold too.

    Args:
        cases: Number of cases.
        seed: Seed of the resamples.
    """

    def __init__(self, cases: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)  # r n

    def interval(self, values: Float[np.ndarray, "n s"]) -> Interval:
        """Return the mean over cases of each column, averaged over the columns, with its interval.

        NaN entries are left out, and so are columns without any case. No interval is given for fewer than 8 cases in a
        column, or if more than 1 % of the resamples hold no case of some column. Without any value the mean is NaN and
        the number of cases 0.
        """
        values = values.reshape(len(values), -1)
        values = values[:, ~np.isnan(values).all(0)]
        if not values.size:
            return Interval(math.nan, math.nan, math.nan, 0)
        cases = int((~np.isnan(values)).sum(0).min())
        mean = float(np.nanmean(values, axis=0).mean())
        if cases < FEWEST_CASES:
            return Interval(mean, math.nan, math.nan, cases)
        present = (~np.isnan(values)).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a resample may hold no case that has a rare subset
            means = (self._weights @ np.nan_to_num(values)) / (self._weights @ present)  # r s
        filled = means[~np.isnan(means).any(1)].mean(1)
        if len(filled) < (1 - MOST_LOST) * len(means):
            return Interval(mean, math.nan, math.nan, cases)
        low, high = np.percentile(filled, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return Interval(mean, float(low), float(high), cases)


@dataclass(frozen=True)
class Paired:
    """Paired comparison of two runs on the same cases: b minus a."""

    cases: int
    """Number of cases in which both runs have a value."""
    difference: Interval
    """Difference of the means, in the unit of the metric."""
    wins: int
    """Number of cases in which b is better."""
    losses: int
    """Number of cases in which a is better."""
    p: float
    """Two-sided p value of Wilcoxon's signed-rank test; 1 if no case differs."""
    effect: float
    """Matched-pairs rank-biserial correlation: -1 (b always worse) to 1 (b always better)."""


def paired(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], better: int, bootstrap: Bootstrap) -> Paired:
    """Compare two runs case by case.

    Wilcoxon's signed-rank test leaves out cases without a difference. It is exact for few cases and for up to 50
    without ties, otherwise by the normal approximation with ties corrected (scipy's choice). Differences that agree to
    six decimals are ties: further digits are rounding noise, and volumes are multiples of a voxel.

    Args:
        a: Values of the first run; NaN where it has none.
        b: Values of the second run, case by case.
        better: 1 if more is better, -1 if less is better.
        bootstrap: Resamples of as many cases.
    """
    from scipy import stats  # takes half a second to import; only comparisons need it

    gain = better * (b - a)
    gain = np.round(gain[~np.isnan(gain)], DECIMALS)
    apart = gain[gain != 0]
    p, effect = 1.0, 0.0
    if apart.size:
        p = float(stats.wilcoxon(apart).pvalue)
        ranks = stats.rankdata(np.abs(apart))
        effect = float((ranks * np.sign(apart)).sum() / ranks.sum())
    return Paired(
        cases=gain.size,
        difference=bootstrap.interval(b - a),
        wins=int((gain > 0).sum()),
        losses=int((gain < 0).sum()),
        p=p,
        effect=effect,
    )


def holm(p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Return p values adjusted by Holm's step-down procedure (Holm 1979), in the order given."""
    order = np.argsort(p)
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def shapley(values: Mapping[Modality, Float[np.ndarray, "n"]]) -> dict[Modality, Float[np.ndarray, "n"]]:
    """Return the Shapley value of each sequence for each case (Shapley 1953).

    It is the value that a sequence adds, averaged over all orders in which the four could be acquired. The four shares
    sum to the value of all sequences minus that of none.

    Args:
        values: Value of each case by subset: all 15 subsets and the empty set.
    """
    count = len(ALL)
    shares = {}
    for modality in Modality:
        share = np.zeros_like(values[ALL], dtype=np.float64)
        for subset in (Modality(0), *SUBSETS):
            if modality not in subset:
                weight = math.factorial(len(subset)) * math.factorial(count - len(subset) - 1) / math.factorial(count)
                share += weight * (values[subset | modality] - values[subset])
        shares[modality] = share
    return shares


def additions(subsets: Sequence[Modality]) -> list[tuple[Modality, Modality]]:
    """Return all pairs (subset, sequence) for which `subsets` holds both the subset and the subset with that sequence.

    The subset itself lacks the sequence.
    """
    pairs = itertools.product(subsets, Modality)
    return [(subset, m) for subset, m in pairs if m not in subset and subset | m in subsets]
