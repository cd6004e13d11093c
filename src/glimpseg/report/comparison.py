"""HTML report of a comparison: differences with their tests, case by case, and published tables beside them.

It reads the files that `compare` wrote.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from glimpseg.evaluation import published
from glimpseg.evaluation.protocol import protocol_named
from glimpseg.evaluation.published import PublishedTable, dataset_of
from glimpseg.report import figures
from glimpseg.report.page import number, render, svg, write_tables
from glimpseg.results.comparison import ComparedRun, Comparison, PairedTest, read_comparison
from glimpseg.results.folder import MEAN
from glimpseg.results.scores import METRICS, POSTPROCESSED, REGIONS
from glimpseg.results.tables import MISSING, Cell, Table, dot_titles, dots, no_dots
from glimpseg.runtime.atomic import write_text

COLOURS = {1: "#cfe8cf", -1: "#f5cfc9", 0: ""}
"""Background of a cell by the verdict of its test: green for better, red for worse."""

FIXED = "\u00a0"
"""Space at which no line breaks."""


def write_html(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write `report.html` from the folder of a comparison, and `tables/` in it; return the path of the report.

    Args:
        folder: A folder that `compare` wrote. `tables/` gets each table as CSV and LaTeX.
        path: The HTML file; `report.html` in the folder by default.

    Raises:
        InputError: The folder is not a comparison.
        OutputError: When the disk refuses.
    """
    folder = Path(folder)
    comparison = read_comparison(folder)
    target = Path(path) if path else folder / "report.html"
    pairs_and_metrics = itertools.product(comparison.pairs, comparison.metrics)
    differences = [difference_table(comparison, pair, metric) for pair, metric in pairs_and_metrics]
    overview = [mean_table(comparison, metric) for metric in comparison.metrics]
    dataset = published.tables(comparison.published) if comparison.published else ()
    published_tables = [table for region in REGIONS if (table := published_table(comparison, dataset, region))]
    protocols = [protocol_table(comparison, dataset)] if dataset else []
    page = render(
        "comparison.html.j2",
        title=_title(_run_names(comparison.runs.values())),
        comparison=comparison,
        overview=overview,
        differences=differences,
        strips=_strips(comparison),
        published=published_tables,
        protocols=protocols,
        cautions={table.method: table.cautions for table in dataset if table.cautions},
        off_list=[x for x, run in comparison.runs.items() if dataset_of(run.split) != comparison.published],
        smallest_p=_smallest_p(len(comparison.studies)),
        only_seed=[letter for letter, run in comparison.runs.items() if set(run.changes) == {"seed"}],
    )
    write_text(target, page)
    write_tables(folder, [*overview, *differences, *published_tables, *protocols])
    return target


def mean_table(comparison: Comparison, metric: str) -> Table:
    """Make the table of each run's mean over the subsets, with its difference from the first run, for each region."""
    of = METRICS[metric]
    regions = comparison.regions(metric)
    rows = [
        [
            Cell(letter),
            Cell(f"{run.model}, {run.trained}"),
            *(_mean_cell(comparison, letter, metric, region) for region in regions),
        ]
        for letter, run in comparison.runs.items()
    ]
    return Table(
        name=f"means-{metric}",
        title=f"{of.title} ({of.unit}), mean over cases and subsets",
        columns=["run", "model", *regions],
        rows=rows,
        note="Over the common cases that have every subset. Intervals are not adjusted. Green: better than the first "
        "run at the 5 % level after Holm's correction over the regions and runs of this table; red: worse",
        small="difference from the first run with 95 % interval, adjusted p",
    )


def comparison_text(comparison: Comparison) -> str:
    """Return the differences of the means over the subsets as text for a terminal, one table for each metric."""
    tables = [_test_table(comparison, metric) for metric in comparison.metrics]
    return "\n".join(f"{table.title}\n{table.as_text}" for table in tables)


def _test_table(comparison: Comparison, metric: str) -> Table:
    """Make the table of one metric's tests of means over the subsets, a row for each pair and region."""
    of = METRICS[metric]
    found = (
        comparison.test(pair, metric, region) for pair in comparison.pairs for region in comparison.regions(metric)
    )
    rows = [
        [
            Cell(f"{test.b} minus {test.a}"),
            Cell(test.region),
            *(Cell(number(of.factor * value)) for value in (test.mean_a, test.mean_b)),
            Cell(number(of.factor * test.difference, 1, True)),
            Cell(_interval(test, of.factor).replace(FIXED, " ")),
            Cell(_p(test)),
            Cell(str(test.cases)),
        ]
        for test in found
        if test
    ]
    return Table(
        name=f"tests-{metric}",
        title=f"{of.title} ({of.unit}), mean over cases and subsets",
        columns=["pair", "region", "first", "second", "difference", "95 % interval", "adjusted p", "cases"],
        rows=rows,
    )


def _mean_cell(comparison: Comparison, letter: str, metric: str, region: str) -> Cell:
    factor = METRICS[metric].factor
    tests = (comparison.test(pair, metric, region) for pair in comparison.pairs if letter in pair)
    test = next((test for test in tests if test), None)
    if test is None:
        return MISSING
    if letter == test.a:
        return Cell(number(factor * test.mean_a), factor * test.mean_a)
    return Cell(
        text=number(factor * test.mean_b),
        value=factor * test.mean_b,
        small=f"{number(factor * test.difference, 1, True)} ({_interval(test, factor)}) p{FIXED}{_p(test)}",
        parts=_parts(test, factor),
        colour=COLOURS[test.verdict],
    )


def difference_table(comparison: Comparison, pair: tuple[str, str], metric: str) -> Table:
    """Make the table of the second run of `pair` minus the first in one metric, for each subset and region.

    Each cell has the difference and its test. The last column is the number of cases, the last row the mean over the
    subsets.
    """
    of = METRICS[metric]
    a, b = pair
    regions = comparison.regions(metric)
    rows = []
    for subset in comparison.subsets:
        tests = [comparison.test(pair, metric, region, subset) for region in regions]
        cases = max((test.cases for test in tests if test), default=0)
        rows.append([*dots(subset), *(_difference(test, of.factor) for test in tests), Cell(str(cases), cases)])
    footer = [_difference(comparison.test(pair, metric, region, MEAN), of.factor) for region in regions]
    return Table(
        name=f"difference-{a}-{b}-{metric}",
        title=f"{b} minus {a}: {of.title} ({of.unit})",
        columns=[*dot_titles(), *regions, "cases"],
        rows=rows,
        footer=[*no_dots("mean"), *footer, Cell("")],
        note="Difference of the means over cases. p and r are computed from ranks and may disagree with it. Green: "
        f"{b} is better at the 5 % level after Holm's correction over the {comparison.family_sizes[metric]} tests of "
        "this metric. Red: worse. No colour: no difference was shown, or mean and ranks disagree. r: matched-pairs "
        f"rank-biserial correlation, above 0 where {b} is better"
        + ("" if of.better else ". Of volume errors the absolute values are compared"),
        small="95 % interval, not adjusted; adjusted p, r, wins:losses",
    )


def published_table(comparison: Comparison, tables: Sequence[PublishedTable], region: str) -> Table | None:
    """Make the table of a region's published Dice beside that of the runs, for each subset.

    None if no table has the region, or if Dice was not compared in it.

    Args:
        comparison: The comparison.
        tables: Published tables of one dataset.
        region: Name of the region.
    """
    shown = [table for table in tables if ("dice", region, "t2") in table.values]
    runs = [letter for letter in comparison.runs if region in comparison.regions("dice")]
    if not shown or not runs:
        return None
    ours = {letter: 100 * np.nanmean(comparison.values(letter, "dice", region), axis=0) for letter in runs}
    rows = []
    for column, subset in enumerate(comparison.subsets):
        theirs = [(table.values["dice", region, subset], ("dice", region) in table.doubtful) for table in shown]
        mine = [Cell(number(ours[letter][column]), round(float(ours[letter][column]), 4)) for letter in runs]
        rows.append([*dots(subset), *(Cell(number(v, 2) + "†" * doubt, v) for v, doubt in theirs), *mine])
    means = [float(np.mean([table.values["dice", region, s] for s in comparison.subsets])) for table in shown]
    means += [float(ours[letter].mean()) for letter in runs]
    return Table(
        name=f"published-{region}",
        title=f"{region} Dice (%) as published on {tables[0].dataset}, and runs {', '.join(runs)}",
        columns=[*dot_titles(), *(table.method for table in shown), *runs],
        rows=rows,
        footer=[*no_dots("mean"), *(Cell(number(value, 2), round(value, 4)) for value in means)],
        note="The columns were made under different protocols: read the table of protocols first. †: the source "
        "contradicts itself, see the cautions",
    )


def protocol_table(comparison: Comparison, tables: Sequence[PublishedTable]) -> Table:
    """Make the table of the rules of each published table and each run: one row for each."""
    facts = list(dict.fromkeys(fact for table in tables for fact in table.protocol))
    rows = [
        [
            Cell(table.method),
            Cell(table.split),
            *(Cell(table.protocol.get(fact, "not stated")) for fact in facts),
            Cell(table.source),
        ]
        for table in tables
    ]
    rules = protocol_named(comparison.protocol)
    for letter, run in comparison.runs.items():
        split = run.split or f"no list, {len(comparison.studies)} cases"
        ours = (Cell(rules.facts.get(fact, "not stated")) for fact in facts)
        rows.append([Cell(letter), Cell(split), *ours, Cell(f"this comparison, protocol {rules.name}")])
    return Table(
        name="published-protocols",
        title="The protocol each column was made under",
        columns=["method", "split", *facts, "source"],
        rows=rows,
    )


def _difference(test: PairedTest | None, factor: float) -> Cell:
    """Make the cell of one test, with numbers times `factor`; `MISSING` without a test."""
    if test is None:
        return MISSING
    value = factor * test.difference
    small = (
        f"{_interval(test, factor)} p{FIXED}{_p(test)} r{FIXED}{number(test.effect, 2, True)} {test.wins}:{test.losses}"
    )
    return Cell(
        text=number(value, 1, True),
        value=round(value, 4),
        small=small,
        parts=_parts(test, factor),
        colour=COLOURS[test.verdict],
    )


def _parts(test: PairedTest, factor: float) -> dict[str, float | int | None]:
    """Return the small numbers of a cell by name, for CSV; an undefined end of the interval is None."""
    ends = {"low": test.low, "high": test.high}
    return {
        **{name: None if math.isnan(end) else round(factor * end, 4) for name, end in ends.items()},
        "p": test.p,
        "p_holm": test.p_holm,
        "effect": test.effect,
        "wins": test.wins,
        "losses": test.losses,
    }


def _interval(test: PairedTest, factor: float) -> str:
    if math.isnan(test.low):
        return "no interval"
    return f"{FIXED}to{FIXED}".join(number(factor * end, 1, True) for end in (test.low, test.high))


def _p(test: PairedTest) -> str:
    return "<0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}"


def _run_names(runs: Iterable[ComparedRun]) -> list[str]:
    """Return method and origin of the weights of each run; the models' own names instead if two of these are equal."""
    names = [(f"{run.method} ({run.trained})", run.model) for run in runs]
    equal = len({name for name, _ in names}) < len(names)
    return [model if equal else name for name, model in names]


def _title(names: Sequence[str]) -> str:
    first, *others = names
    return f"{first} against {others[0] if len(others) == 1 else f'{len(others)} others'}"


def _strips(comparison: Comparison) -> list[tuple[str, str]]:
    """Draw the differences in Dice case by case; return (caption, SVG) of each pair and region, without ET_pp."""
    return [
        (f"{b} minus {a}, {region}", svg(_difference_strips(comparison, (a, b), region)))
        for (a, b), region in itertools.product(comparison.pairs, comparison.regions("dice"))
        if region != POSTPROCESSED
    ]


def _difference_strips(comparison: Comparison, pair: tuple[str, str], region: str) -> Figure:
    a, b = (comparison.values(letter, "dice", region) for letter in pair)
    return figures.strips(100 * (b - a), comparison.subsets, f"{region}: Dice points, {pair[1]} minus {pair[0]}")


def _smallest_p(cases: int) -> str:
    """Return the smallest p value that the exact test can give for so many cases."""
    p = 2.0 ** (1 - cases)
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"
