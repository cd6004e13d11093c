"""Expected performance of a model for each subset of sequences: Dice, temperatures, gain from one more sequence.

The numbers are stored as `expectations.json` in the model folder. `evaluation.calibrate` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimpseg.errors import ModelError, UsageError
from glimpseg.modality import ALL, Modality, parse
from glimpseg.region import Region
from glimpseg.results.statistics import CONFIDENCE, RESAMPLES, Interval
from glimpseg.runtime.documents import read_json

EXPECTATIONS = "expectations.json"
FORMAT = 1
"""Version of the file's format. Another one is refused."""
JUDGED = (Region.WT, Region.TC, Region.ET)
"""Regions over which a gain is averaged. The resection cavity is not among them: it is no tumour, and few studies have
one."""
WORTH = 0.01
"""Gain of mean Dice below which no sequence is recommended: a gain of less than a point is not worth another scan."""
USABLE_ERROR = 0.12
"""Largest mean error of an estimated Dice. Where estimates were further off, none is given."""
DECIMALS = 5
"""Decimal places of numbers in the file."""
WITHOUT_T1C = "Without T1c, the enhancing tumour is a guess: only a contrast agent shows what enhances."
"""Sentence on every result without T1c."""


@dataclass(frozen=True, kw_only=True)
class OnPatients:
    """Performance of a model on labelled patients, for one region and one subset of sequences."""

    dice: float
    """Mean Dice over the patients that have the region."""
    patients: int
    """Number of these patients."""
    estimate_error: float = math.nan
    """Mean absolute difference between estimated and true Dice of a patient; NaN if it was measured on too few."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Measured performance of a model for one region and one subset of sequences, and its calibration."""

    dice: Interval
    """Mean over cases, with the confidence interval of that mean; single cases spread more widely."""
    tenth: float
    """The 10th percentile of the cases' Dice: about one case in ten had this or less."""
    temperature: float
    """Divisor of the logits. Above 1 the model was overconfident, below 1 underconfident."""
    pooled: bool
    """True if this subset has too few cases: the temperature is fitted to all subsets together, or is 1."""
    ece_before: float
    """Expected calibration error of the network's own probabilities. This and the two values below are NaN without
    cases to measure them on."""
    ece_after: float
    """Expected calibration error after temperature scaling, on the same cases; the temperature was fitted on others."""
    estimate_error: float
    """Mean absolute difference between the estimated and the true Dice of a single study, after temperature scaling."""
    on_patients: OnPatients | None = None
    """The same on labelled patients, if the studies above are others, as phantoms."""

    @property
    def usual_error(self) -> float:
        """Mean error to expect of an estimated Dice: that on patients, if measured, else on the studies; or NaN."""
        known = math.nan if self.on_patients is None else self.on_patients.estimate_error
        return self.estimate_error if math.isnan(known) else known

    @property
    def mean_dice(self) -> float:
        """Mean Dice to expect on patients: measured on them, if it was, else on the studies."""
        return self.on_patients.dice if self.on_patients else self.dice.mean


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Gain in Dice from one more sequence: paired differences over the same cases."""

    sequence: Modality
    """The sequence that is added."""
    mean: Interval
    """Mean gain over the regions of `JUDGED` that the model has."""
    regions: Mapping[Region, Interval]
    """Mean gain in each of these regions."""

    @property
    def shown(self) -> bool:
        """True if the gain is at least `WORTH` and its confidence interval lies above 0."""
        return self.mean.mean >= WORTH and self.mean.low > 0  # False for NaN: too few cases to say


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """Expected performance of a model, as `expectations.json` holds it."""

    population: str
    """Description of the studies, as the end of a sentence: `64 phantoms of held-out settings`."""
    studies: int
    """Number of studies that the model was measured on."""
    fitted_on: int
    """Number of studies that the temperatures were fitted on. Calibration was measured on the others, Dice on all."""
    subsets: Mapping[Modality, Mapping[Region, Expected]]
    """Expected performance by subset and region; only subsets that some study had."""
    gains: Mapping[Modality, tuple[Gain, ...]] = field(default_factory=dict)
    """Gains by subset, one for each sequence that the subset lacks, if some study had it."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Values of the fields in `Segmenter.choices` that the model was measured with."""
    patients: str = ""
    """Description of the labelled patients, as the end of a sentence; empty if there were none."""

    def of(self, subset: Modality) -> Mapping[Region, Expected]:
        """Return the expected performance for a subset, by region; empty if no case had the subset."""
        return self.subsets.get(subset, {})

    def temperatures(self, subset: Modality) -> dict[Region, float]:
        """Return the temperatures for a subset, by region; empty if no case had the subset."""
        return {region: expected.temperature for region, expected in self.of(subset).items()}

    def most_helpful(self, available: Modality) -> Gain | None:
        """Return the largest gain from one absent sequence in mean Dice.

        None if no sequence is absent, or if no gain is `shown`.
        """
        shown = [gain for gain in self.gains.get(available, ()) if gain.shown]
        return max(shown, key=lambda gain: gain.mean.mean, default=None)

    def sentences(self, subset: Modality) -> list[str]:
        """Return sentences on the expected performance with a subset, and on the sequence that would help most."""
        found = self.of(subset)
        if not found:
            return [f"The performance with {subset.title} is not known: no study of {self.population} had these."]
        said = [f"Expected performance with {subset.title}, measured on {self.population} ({self.studies} studies):"]
        said += [f"  {region.name}: mean Dice {_measured(expected)}" for region, expected in found.items()]
        if known := [_on_patients(region, one.on_patients) for region, one in found.items() if one.on_patients]:
            said.append(f"On {self.patients} (in brackets how many): mean Dice {', '.join(known)}.")
        if Region.ET in found and Modality.T1C not in subset:
            said.append(WITHOUT_T1C)
        best = self.most_helpful(subset)
        if best is not None:
            gains = ", ".join(f"{region.name} {_gained(gain)}" for region, gain in best.regions.items())
            said.append(
                f"Adding {best.sequence.title} would help most: {_gained(best.mean)} points of mean Dice ({gains})."
            )
        elif self.gains.get(subset):
            said.append("No absent sequence was shown to add a point of mean Dice.")
        elif subset != ALL:
            said.append("The gain from a further sequence was not measured.")
        return said

    def as_tree(self) -> dict[str, Any]:
        """Return plain values for JSON, which `from_tree` reads.

        Numbers are rounded to `DECIMALS` decimals; NaN is None.
        """
        return {
            "format": FORMAT,
            "population": self.population,
            "studies": self.studies,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "calibration": {
                "fitted_on": self.fitted_on,
                "measured_on": self.studies - self.fitted_on,
                "rule": "temperatures are fitted on the brain's voxels of one half of the studies, ece_before, "
                "ece_after and estimate_error are of the other half, Dice is of all",
            },
            "choices": dict(self.choices),
            "subsets": {
                subset.key: {region.name: expected_tree(expected) for region, expected in regions.items()}
                for subset, regions in self.subsets.items()
            },
            "gains": {
                subset.key: {gain.sequence.key: gain_tree(gain) for gain in gains}
                for subset, gains in self.gains.items()
            },
            **({"patients": self.patients} if self.patients else {}),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Expectations:
        """Return the expectations that `as_tree` described.

        Raises: KeyError, TypeError, ValueError, AttributeError or UsageError if a part is missing or is not what it
            should be, or if the format is another.
        """
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}, this version reads {FORMAT}")
        return cls(
            population=tree["population"],
            studies=tree["studies"],
            fitted_on=tree["calibration"]["fitted_on"],
            subsets={
                parse(subset): {Region[name]: _expected(one) for name, one in regions.items()}
                for subset, regions in tree["subsets"].items()
            },
            gains={
                parse(subset): tuple(_gain(parse(sequence), one) for sequence, one in gains.items())
                for subset, gains in tree["gains"].items()
            },
            choices=tree["choices"],
            patients=tree.get("patients", ""),
        )


def read_expectations(folder: Path) -> Expectations:
    """Read the `expectations.json` of a model folder. Raises: ModelError if the file cannot be read."""
    try:
        return Expectations.from_tree(read_json(folder / EXPECTATIONS))
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise ModelError(
            f"{folder / EXPECTATIONS} cannot be used ({error}). Make it again with `glimpseg calibrate`."
        ) from error


def interval_tree(interval: Interval) -> dict[str, Any]:
    """Return an interval as plain values for JSON, rounded to `DECIMALS` decimals; NaN is None."""
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {**{name: _number(value) for name, value in ends.items()}, "cases": interval.cases}


def expected_tree(expected: Expected) -> dict[str, Any]:
    """Return expected performance as plain values for JSON, rounded to `DECIMALS` decimals; NaN is None."""
    return {
        "dice": interval_tree(expected.dice),
        "tenth": _number(expected.tenth),
        "temperature": _number(expected.temperature),
        "pooled": expected.pooled,
        "ece_before": _number(expected.ece_before),
        "ece_after": _number(expected.ece_after),
        "estimate_error": _number(expected.estimate_error),
        **({"on_patients": _patients_tree(expected.on_patients)} if expected.on_patients else {}),
    }


def _patients_tree(known: OnPatients) -> dict[str, Any]:
    error = _number(known.estimate_error)
    return {"dice": _number(known.dice), "patients": known.patients, "estimate_error": error}


def gain_tree(gain: Gain) -> dict[str, Any]:
    """Return the mean gain and the gain of each region as plain values for JSON. The sequence is left out."""
    regions = {region.name: interval_tree(interval) for region, interval in gain.regions.items()}
    return {"mean": interval_tree(gain.mean), "regions": regions}


def _expected(tree: Mapping[str, Any]) -> Expected:
    temperature = float(tree["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature {temperature}")
    return Expected(
        dice=_interval(tree["dice"]),
        tenth=_value(tree["tenth"]),
        temperature=temperature,
        pooled=bool(tree["pooled"]),
        ece_before=_value(tree["ece_before"]),
        ece_after=_value(tree["ece_after"]),
        estimate_error=_value(tree["estimate_error"]),
        on_patients=_known_of_patients(tree["on_patients"]) if "on_patients" in tree else None,
    )


def _known_of_patients(tree: Mapping[str, Any]) -> OnPatients:
    error = _value(tree["estimate_error"])
    return OnPatients(dice=float(tree["dice"]), patients=int(tree["patients"]), estimate_error=error)


def _gain(sequence: Modality, tree: Mapping[str, Any]) -> Gain:
    regions = {Region[name]: _interval(one) for name, one in tree["regions"].items()}
    return Gain(sequence=sequence, mean=_interval(tree["mean"]), regions=regions)


def _interval(tree: Mapping[str, Any]) -> Interval:
    return Interval(_value(tree["mean"]), _value(tree["low"]), _value(tree["high"]), int(tree["cases"]))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DECIMALS)


def _value(number: float | None) -> float:
    return math.nan if number is None else float(number)


def _measured(expected: Expected) -> str:
    mean = f"{100 * expected.dice.mean:.1f} %"
    if math.isnan(expected.dice.low):
        return f"{mean} ({expected.dice.cases} cases, too few for an interval)."
    ends = f"{100 * expected.dice.low:.1f} to {100 * expected.dice.high:.1f}"
    return (
        f"{mean} ({100 * CONFIDENCE:.0f} % interval {ends}); one case in ten had {100 * expected.tenth:.0f} % or less."
    )


def _on_patients(region: Region, known: OnPatients) -> str:
    return f"{region.name} {100 * known.dice:.0f} % ({known.patients})"


def _gained(gain: Interval) -> str:
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
