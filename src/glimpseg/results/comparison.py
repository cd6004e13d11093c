"""A comparison of evaluations: the tests, the values they rest on, and its files on disk."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpseg.errors import InputError
from glimpseg.results.folder import CASES, COMPARISON, COMPARISONS, MEAN
from glimpseg.results.scores import METRICS, REGIONS
from glimpseg.results.statistics import Interval
from glimpseg.runtime.atomic import write_json
from glimpseg.runtime.documents import BROKEN, read_json

LEVEL = 0.05
"""Significance level of the adjusted p value."""


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """One line of `comparisons.csv`: run `b` minus run `a` in one metric, region and subset.

    For a signed error (volume) the absolute values are compared.
    """

    a: str
    """Letter of the first run."""
    b: str
    """Letter of the other run."""
    metric: str
    region: str
    subset: str
    """Key of a subset, or `mean` for each case's mean over the subsets."""
    cases: int
    """Number of cases in which both runs have a value."""
    mean_a: float
    """Mean of run a over these cases, in the unit of `scores.csv`."""
    mean_b: float
    """Mean of run b over these cases, in the unit of `scores.csv`."""
    difference: float
    """Mean of b minus mean of a, in the unit of `scores.csv`."""
    low: float
    """Lower end of the 95 % bootstrap interval of the difference, not adjusted for other comparisons; NaN for fewer
    than 8 cases."""
    high: float
    """Upper end of that interval."""
    wins: int
    """Number of cases in which b is better."""
    losses: int
    """Number of cases in which a is better."""
    p: float
    """Two-sided p value of Wilcoxon's signed-rank test; 1 if no case differs."""
    p_holm: float
    """P value adjusted over all subsets, regions and pairs of the metric; means over subsets are a family of their
    own."""
    effect: float
    """Matched-pairs rank-biserial correlation, -1 to 1; above 0 if b is better."""

    @property
    def pair(self) -> tuple[str, str]:
        """Letters of the two runs, a and b."""
        return self.a, self.b

    @property
    def interval(self) -> Interval:
        """Difference with its bootstrap interval."""
        return Interval(self.difference, self.low, self.high, self.cases)

    @property
    def verdict(self) -> int:
        """1 if b is better at the 5 % level after adjustment, -1 if it is worse, 0 if neither was shown.

        Also 0 where the mean and the ranks disagree: many cases are a little better, for instance, and one is missed.
        """
        direction = METRICS[self.metric].better or -1
        if self.p_holm >= LEVEL or self.effect * self.difference * direction <= 0:
            return 0
        return 1 if self.effect > 0 else -1


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One evaluation in a comparison."""

    folder: str
    model: str
    method: str
    seed: int
    changes: Mapping[str, Sequence[Any]]
    """Recipe fields that differ from those of the first run: its value, then this run's. Without `config` if the
    methods differ."""
    trained: str
    """Origin of the weights, in words."""
    commit: str | None
    """Commit of the code that wrote the model; None if it is not known."""
    split: str | None
    """Published list that the run was evaluated on; None for no list."""
    data: str
    """SHA-256 of the studies that the run was evaluated on."""
    cases: int
    """Number of studies of the run, also of those that are left out."""
    left_out: Sequence[str]
    """Studies of the run that another run lacks."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Parts of the evaluations that are not compared, because some run lacks them."""

    metrics: Sequence[str]
    subsets: Sequence[str]
    regions: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Names of all of them: metrics, subsets, regions."""
        return [*self.metrics, *self.subsets, *self.regions]


Values = Mapping[tuple[str, str], Mapping[str, Float[np.ndarray, "study subset"]]]
"""Values of each run by its letter, for each metric and region; NaN where there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Comparison of two or more evaluations with the first of them, case by case."""

    glimpseg: str
    """Version that made the comparison."""
    protocol: str
    runs: Mapping[str, ComparedRun]
    """Runs by letter, in the order given: A, B ..."""
    studies: Sequence[str]
    """Cases that are common to all runs."""
    subsets: Sequence[str]
    """Subsets that are common to all runs."""
    metrics: Sequence[str]
    """Metrics that are common to all runs."""
    left_out: LeftOut
    published: str | None
    """Dataset whose published tables are shown beside the runs; None for none."""
    family_sizes: Mapping[str, int]
    """Number of tests of single subsets by metric: the family of Holm's correction."""
    tests: Sequence[PairedTest]
    """All tests, of single subsets and of means over subsets."""
    case_values: Values
    """Values of the runs over the common cases and subsets."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Letters of each two runs that were compared."""
        return list(dict.fromkeys(test.pair for test in self.tests))

    def regions(self, metric: str) -> list[str]:
        """Return the regions that were compared in a metric, in the order of tables."""
        present = {test.region for test in self.tests if test.metric == metric}
        return [region for region in REGIONS if region in present]

    def test(self, pair: tuple[str, str], metric: str, region: str, subset: str = MEAN) -> PairedTest | None:
        """Return one test; by default that of the mean over the subsets. None if it was not made."""
        key = (pair, metric, region, subset)
        return next((x for x in self.tests if (x.pair, x.metric, x.region, x.subset) == key), None)

    def values(self, letter: str, metric: str, region: str) -> Float[np.ndarray, "study subset"]:
        """Return a run's values over the common cases and subsets; NaN where there is none."""
        if (metric, region) not in self.case_values:
            return np.full((len(self.studies), len(self.subsets)), np.nan)
        return self.case_values[metric, region][letter]


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `comparisons.csv` (tests), `cases.csv` (the runs side by side) and `comparison.json` to an existing folder.

    Numbers in the CSV files have six significant digits.
    """
    _write_tests(folder / COMPARISONS, comparison.tests)
    _write_cases(folder / CASES, comparison)
    record = {
        "glimpseg": comparison.glimpseg,
        "protocol": comparison.protocol,
        "runs": {letter: asdict(run) for letter, run in comparison.runs.items()},
        "studies": list(comparison.studies),
        "subsets": list(comparison.subsets),
        "metrics": list(comparison.metrics),
        "left_out": asdict(comparison.left_out),
        "published": comparison.published,
        "tests": dict(comparison.family_sizes),
    }
    write_json(folder / COMPARISON, record)


def read_comparison(folder: str | Path) -> Comparison:
    """Read the files that `compare` wrote. Raises: InputError if they are missing or damaged."""
    folder = Path(folder)
    try:
        record = read_json(folder / COMPARISON, finite=False)
        tests, cases = (_rows(folder / name) for name in (COMPARISONS, CASES))
        return Comparison(
            glimpseg=record["glimpseg"],
            protocol=record["protocol"],
            runs={letter: ComparedRun(**run) for letter, run in record["runs"].items()},
            studies=record["studies"],
            subsets=record["subsets"],
            metrics=record["metrics"],
            left_out=LeftOut(**record["left_out"]),
            published=record["published"],
            family_sizes=record["tests"],
            tests=[_test(row) for row in tests],
            case_values=_case_values(cases, record),
        )
    except (*BROKEN, OSError, csv.Error) as error:
        raise InputError(f"{folder} is not a comparison ({error}). Make one with `glimpseg compare`.") from error


def _write_tests(path: Path, tests: Sequence[PairedTest]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(PairedTest)], lineterminator="\n")
        writer.writeheader()
        for test in tests:
            # Significant digits, not decimals: a p value of 0.0000004 is not 0.
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(test).items()})


def _write_cases(path: Path, comparison: Comparison) -> None:
    """Write a line for each metric, region, study and subset, with a column for each run (six significant digits).

    Lines in which no run has a value are left out.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["study", "subset", "region", "metric", *comparison.runs])
        for (metric, region), runs in comparison.case_values.items():
            places = itertools.product(enumerate(comparison.studies), enumerate(comparison.subsets))
            for (i, study), (j, subset) in places:
                values = [runs[letter][i, j] for letter in comparison.runs]
                if not np.isnan(values).all():
                    writer.writerow([study, subset, region, metric, *(f"{value:.6g}" for value in values)])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _test(row: Mapping[str, str]) -> PairedTest:
    """Read one line of `comparisons.csv`."""
    values: dict[str, Any] = {name: row[name] for name in ("a", "b", "metric", "region", "subset")}
    values |= {name: int(row[name]) for name in ("cases", "wins", "losses")}
    values |= {column.name: float(row[column.name]) for column in fields(PairedTest) if column.name not in values}
    return PairedTest(**values)


def _case_values(rows: Sequence[Mapping[str, str]], record: Mapping[str, Any]) -> Values:
    places = [{name: i for i, name in enumerate(record[axis])} for axis in ("studies", "subsets")]
    blank = np.full([len(names) for names in places], np.nan)
    values: dict[tuple[str, str], dict[str, Float[np.ndarray, "study subset"]]] = {}
    for row in rows:
        key = (row["metric"], row["region"])
        runs = values.setdefault(key, {letter: blank.copy() for letter in record["runs"]})
        for letter, array in runs.items():
            array[places[0][row["study"]], places[1][row["subset"]]] = float(row[letter])
    return values
