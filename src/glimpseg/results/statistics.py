"""What can be said of numbers over cases: intervals, paired tests, the value of each sequence, monotonicity.

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
FEWEST_CASES = 8
"""Below, the percentile bootstrap claims too much: of its 95 % intervals of a mean Dice over 5 cases, 82 % held it."""
MOST_LOST = 0.01
"""Share of resamples in which some subset may have no case at all; above, there is no interval."""
RESAMPLES = 10_000
"""Of the bootstrap: the ends of an interval then move by about 1 % of its width from seed to seed."""


@dataclass(frozen=True)
class Interval:
    """A mean over cases and the interval that the bootstrap gives it."""

    mean: float
    low: float
    """NaN, as `high`, where there are too few cases."""
    high: float
    cases: int
    """Of the column that has the fewest."""


class Bootstrap:
    """Percentile intervals of means over the same cases, from one set of resamples of whole cases.

    All subsets of a case are drawn together, so that intervals of means over subsets and of differences hold too.
    """

    def __init__(self, cases: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._weights = rng.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)  # r n

    def interval(self, values: Float[np.ndarray, "n s"]) -> Interval:
        """Of the mean over cases of each column, averaged over the columns; NaN entries are left out.

        A column without any case is left out, too. No interval is given for fewer than 8 cases in a column, nor where
        more than 1 % of the resamples hold no case of some column.
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
    """Two runs on the same cases: b minus a."""

    cases: int
    difference: Interval
    """Of the means, in the metric's own unit."""
    wins: int
    """Cases in which b is better."""
    losses: int
    p: float
    """Two-sided, Wilcoxon signed-rank; 1 when no case differs."""
    effect: float
    """Matched-pairs rank-biserial correlation: -1 (b always worse) to 1 (b always better)."""


def paired(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], better: int, bootstrap: Bootstrap) -> Paired:
    """Compares two runs case by case; `better` is 1 where more is better, -1 where less.

    Wilcoxon's signed-rank test of how much better b is, cases without a difference left out; exact for few cases and
    up to 50 without ties, else by the normal approximation with ties corrected (scipy's choice). Differences that
    agree to six decimals are ties: beyond lies the noise of floating point, and volumes are multiples of a voxel.
    """
    from scipy import stats  # half a second; comparisons alone need it

    gain = better * (b - a)
    gain = np.round(gain[~np.isnan(gain)], DECIMALS)
    apart = gain[gain != 0]
    p, effect = 1.0, 0.0
    if apart.size:
        p = float(stats.wilcoxon(apart).pvalue)
        ranks = stats.rankdata(np.abs(apart))
        effect = float((ranks * np.sign(apart)).sum() / ranks.sum())
    return Paired(gain.size, bootstrap.interval(b - a), int((gain > 0).sum()), int((gain < 0).sum()), p, effect)


def holm(p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """P values adjusted by Holm's step-down procedure, in the order given (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def shapley(values: Mapping[Modality, Float[np.ndarray, "n"]]) -> dict[Modality, Float[np.ndarray, "n"]]:
    """What each sequence adds, averaged over all orders in which the four could be acquired; for each case.

    `values` holds all 15 subsets and the empty set; the four shares sum to the value of all minus that of none
    (Shapley 1953).
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
    """Every (subset, sequence) of which the subset without and with the sequence are both in `subsets`."""
    pairs = itertools.product(subsets, Modality)
    return [(subset, m) for subset, m in pairs if m not in subset and subset | m in subsets]
