"""Expectations of a model from the counts of all studies.

The first half of the studies fits the temperatures, the second half measures calibration at them; Dice is of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpseg.evaluation.counts import Counts, read_counts
from glimpseg.evaluation.histogram import UNFITTED, Histogram, Key, Temperature, add_histograms, fit_temperatures
from glimpseg.modality import SUBSETS, Modality, parse
from glimpseg.model.expectations import JUDGED, Expectations, Expected, Gain
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.results.scores import Score, Scores
from glimpseg.results.statistics import Bootstrap, Interval, additions

TENTH = 10
"""Percentile of the cases' Dice that `Expected.tenth` holds."""


def expectations_from(model: Model, files: Sequence[Path], population: str) -> Expectations:
    """Summarise the counts of all studies; the files are read one after another.

    Args:
        model: The model that was counted.
        files: Files of counts. The first half of them, rounded up, fits the temperatures.
        population: Description of the studies, for the reader of a result.

    Raises: InputError if a file is damaged.
    """
    measurement = _measure(files)
    scores, regions = Scores(measurement.lines), model.network.regions
    bootstrap = Bootstrap(len(scores.studies))
    return Expectations(
        population=population,
        studies=len(files),
        fitted_on=_half(files),
        subsets={
            subset: {region: _expected(measurement, scores, (subset, region), bootstrap) for region in regions}
            for subset in map(parse, scores.subsets)
        },
        gains=_gains(scores, [region for region in JUDGED if region in regions], bootstrap),
        choices=model.chosen,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Measurement:
    """Measurements of all studies together."""

    lines: list[Score]
    """Dice of every study, subset and region."""
    temperatures: Mapping[Key, Temperature]
    """Temperatures, fitted on the first half of the studies."""
    histograms: Mapping[Key, Histogram]
    """Histograms, summed over the second half of the studies."""
    errors: Mapping[Key, Sequence[float]]
    """Errors of the estimated Dice in the second half, one for each study that has an estimate."""


def _half(files: Sequence[Path]) -> int:
    return math.ceil(len(files) / 2)


def _measure(files: Sequence[Path]) -> _Measurement:
    lines, fitted = list[Score](), dict[Key, Histogram]()
    for file in files[: _half(files)]:
        counts = read_counts(file)
        lines += counts.lines
        add_histograms(fitted, counts.histograms)
    temperatures = fit_temperatures(fitted)
    measured, errors = dict[Key, Histogram](), dict[Key, list[float]]()
    for file in files[_half(files) :]:
        counts = read_counts(file)
        lines += counts.lines
        add_histograms(measured, counts.histograms)
        for key, error in _estimate_errors(counts, temperatures).items():
            errors.setdefault(key, []).append(error)
    return _Measurement(lines=lines, temperatures=temperatures, histograms=measured, errors=errors)


def _estimate_errors(counts: Counts, temperatures: Mapping[Key, Temperature]) -> dict[Key, float]:
    """Return the distance between estimated and true Dice of one study, by subset and region.

    Where the model's mask is empty there is no estimate, and no entry.
    """
    true = {(parse(line.subset), Region[line.region]): line.value for line in counts.lines}
    estimates = {
        key: histogram.estimated_dice(temperatures.get(key, UNFITTED).value)
        for key, histogram in counts.histograms.items()
    }
    return {key: abs(estimate - true[key]) for key, estimate in estimates.items() if not math.isnan(estimate)}


def _expected(measurement: _Measurement, scores: Scores, key: Key, bootstrap: Bootstrap) -> Expected:
    subset, region = key
    dice = scores.array("dice", region.name)[:, scores.subsets.index(subset.key)]
    histogram = measurement.histograms.get(key, Histogram.empty())
    temperature = measurement.temperatures.get(key, UNFITTED)
    errors = measurement.errors.get(key)
    return Expected(
        dice=bootstrap.interval(dice[:, None]),
        tenth=float(np.nanpercentile(dice, TENTH)),
        temperature=temperature.value,
        pooled=temperature.pooled,
        ece_before=histogram.reliability().ece,
        ece_after=histogram.reliability(temperature.value).ece,
        estimate_error=float(np.mean(errors)) if errors else math.nan,
    )


def _gains(scores: Scores, regions: Sequence[Region], bootstrap: Bootstrap) -> dict[Modality, tuple[Gain, ...]]:
    """Return the gain from each absent sequence for each subset, over the cases that were scored on both."""
    dice = np.stack([scores.array("dice", region.name) for region in regions])  # region study subset
    columns = {subset: scores.subsets.index(subset.key) for subset in SUBSETS if subset.key in scores.subsets}
    gains: dict[Modality, list[Gain]] = {}
    for subset, sequence in additions(list(columns)):
        change = dice[:, :, columns[subset | sequence]] - dice[:, :, columns[subset]]
        intervals: dict[Region, Interval] = {
            region: bootstrap.interval(values[:, None]) for region, values in zip(regions, change, strict=True)
        }
        gain = Gain(sequence=sequence, mean=bootstrap.interval(change.mean(0)[:, None]), regions=intervals)
        gains.setdefault(subset, []).append(gain)
    return {subset: tuple(of_subset) for subset, of_subset in gains.items()}
