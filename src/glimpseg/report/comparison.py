"""The page of a comparison: what differs, how surely, case by case, and published tables beside it.

It reads the files that `compare` wrote.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpseg.errors import InputError
from glimpseg.evaluation import published
from glimpseg.evaluation.protocol import protocol_named
from glimpseg.evaluation.published import PublishedTable, dataset_of
from glimpseg.report import figures
from glimpseg.report.page import number, render, svg, write_tables
from glimpseg.results.folder import CASES, COMPARISON, COMPARISONS, MEAN
from glimpseg.results.scores import METRICS, POSTPROCESSED, REGIONS
from glimpseg.results.tables import MISSING, Cell, Table, dot_titles, dots, no_dots
from glimpseg.runtime.atomic import write_text

ENDS = ("low", "high")
LEVEL = 0.05
BETTER, WORSE = "#cfe8cf", "#f5cfc9"
"""Cells of differences that stand at the 5 % level."""

FIXED = "\u00a0"
"""A space at which no line breaks."""

Lines = list[dict[str, str]]


@dataclass(frozen=True)
class Compared:
    """The files of a comparison."""

    record: Mapping[str, Any]
    lines: Lines
    cases: Lines

    def pairs(self) -> list[tuple[str, str]]:
        """Letters of the runs that were compared."""
        return list(dict.fromkeys((line["a"], line["b"]) for line in self.lines))

    def regions(self, metric: str) -> list[str]:
        """Those that were compared in a metric."""
        present = {line["region"] for line in self.lines if line["metric"] == metric}
        return [region for region in REGIONS if region in present]

    def line(self, pair: tuple[str, str], metric: str, region: str, subset: str) -> dict[str, str] | None:
        """One test."""
        key = (*pair, metric, region, subset)
        names = ("a", "b", "metric", "region", "subset")
        return next((line for line in self.lines if tuple(line[name] for name in names) == key), None)

    def values(self, letter: str, metric: str, region: str) -> Float[np.ndarray, "study subset"]:
        """A run's values over the common cases; NaN where there is none."""
        place = (
            {name: i for i, name in enumerate(self.record["studies"])},
            {name: i for i, name in enumerate(self.record["subsets"])},
        )
        values = np.full((len(place[0]), len(place[1])), np.nan)
        for line in self.cases:
            if line["metric"] == metric and line["region"] == region:
                values[place[0][line["study"]], place[1][line["subset"]]] = float(line[letter])
        return values


def write_html(folder: str | Path, path: str | Path | None = None) -> Path:
    """Writes `report.html` from the folder of a comparison (into it, or to `path`) and `tables/`; returns its path.

    Raises: InputError if the folder is not a comparison.
    """
    folder = Path(folder)
    compared = _read(folder)
    target = Path(path) if path else folder / "report.html"
    record = compared.record
    differences = [
        difference_table(compared, pair, metric)
        for pair, metric in itertools.product(compared.pairs(), record["metrics"])
    ]
    overview = [mean_table(compared, metric) for metric in record["metrics"]]
    dataset = published.tables(record["published"]) if record["published"] else ()
    beside = [table for region in REGIONS if (table := published_table(compared, dataset, region))]
    protocols = [protocol_table(compared, dataset)] if dataset else []
    page = render(
        "comparison.html.j2",
        title=_title(_names(record["runs"].values())),
        record=record,
        overview=overview,
        differences=differences,
        strips=[
            (f"{b} minus {a}, {region}", svg(_difference_strips(compared, (a, b), region)))
            for (a, b), region in itertools.product(compared.pairs(), compared.regions("dice"))
            if region != POSTPROCESSED
        ],
        published=beside,
        protocols=protocols,
        cautions={table.method: table.cautions for table in dataset if table.cautions},
        strangers=[x for x, run in record["runs"].items() if dataset_of(run["split"]) != record["published"]],
        smallest=_smallest(len(record["studies"])),
        only_seed=[letter for letter, run in record["runs"].items() if set(run["changes"]) == {"seed"}],
    )
    write_text(target, page)
    write_tables(folder, [*overview, *differences, *beside, *protocols])
    return target


def mean_table(compared: Compared, metric: str) -> Table:
    """Each run's mean over the subsets, and how it differs from the first."""
    of = METRICS[metric]
    regions = compared.regions(metric)
    rows = []
    for letter, run in compared.record["runs"].items():
        cells = [Cell(letter), Cell(f"{run['model']}, {run['trained']}")]
        for region in regions:
            entry = next(
                (c for c in compared.lines if _is_mean(c, metric, region) and letter in (c["a"], c["b"])), None
            )
            if entry is None:
                cells.append(MISSING)
            elif letter == entry["a"]:
                cells.append(Cell(number(of.factor * float(entry["mean_a"])), of.factor * float(entry["mean_a"])))
            else:
                cells.append(
                    Cell(
                        number(of.factor * float(entry["mean_b"])),
                        of.factor * float(entry["mean_b"]),
                        _verdict(entry, of.factor),
                        _parts(entry, of.factor),
                        _colour(entry),
                    )
                )
        rows.append(cells)
    return Table(
        name=f"means-{metric}",
        title=f"{of.title} ({of.unit}), mean over cases and subsets",
        columns=["run", "model", *regions],
        rows=rows,
        note="Over the common cases that have every subset. Intervals are not adjusted. Green: better than the first "
        "run at the 5 % level after "
        "Holm's correction over the regions and runs of this table; red: worse",
        small="difference to the first run with 95 % interval, adjusted p",
    )


def difference_table(compared: Compared, pair: tuple[str, str], metric: str) -> Table:
    """B minus A for each subset and region, with its test."""
    of = METRICS[metric]
    a, b = pair
    regions = compared.regions(metric)
    rows = []
    for subset in compared.record["subsets"]:
        found = [compared.line(pair, metric, region, subset) for region in regions]
        cases = max((int(entry["cases"]) for entry in found if entry), default=0)
        rows.append([*dots(subset), *(_difference(entry, of.factor) for entry in found), Cell(str(cases), cases)])
    footer = [_difference(compared.line(pair, metric, region, MEAN), of.factor) for region in regions]
    return Table(
        name=f"difference-{a}-{b}-{metric}",
        title=f"{b} minus {a}: {of.title} ({of.unit})",
        columns=[*dot_titles(), *regions, "cases"],
        rows=rows,
        footer=[*no_dots("mean"), *footer, Cell("")],
        note=f"Difference of the means over cases; p and r are of ranks, and may disagree with it. Green: {b} better "
        f"at the 5 % level after Holm's correction over the {compared.record['tests'][metric]} tests of this metric, "
        "red: worse, none: not shown, or mean and ranks disagree. r: matched-pairs rank-biserial correlation, above 0 "
        f"where {b} is better" + ("" if of.better else ". Of volume errors the absolute value is compared"),
        small="95 % interval, not adjusted; adjusted p, r, wins:losses",
    )


def published_table(compared: Compared, tables: Sequence[PublishedTable], region: str) -> Table | None:
    """Published Dice of a region beside that of our runs; None if nobody published it."""
    shown = [table for table in tables if ("dice", region, "t2") in table.values]
    runs = [letter for letter in compared.record["runs"] if region in compared.regions("dice")]
    if not shown or not runs:
        return None
    ours = {letter: 100 * np.nanmean(compared.values(letter, "dice", region), axis=0) for letter in runs}
    rows = []
    for column, subset in enumerate(compared.record["subsets"]):
        theirs = [(table.values["dice", region, subset], ("dice", region) in table.doubtful) for table in shown]
        mine = [Cell(number(ours[letter][column]), round(float(ours[letter][column]), 4)) for letter in runs]
        rows.append([*dots(subset), *(Cell(number(v, 2) + "†" * doubt, v) for v, doubt in theirs), *mine])
    subsets = compared.record["subsets"]
    means = [float(np.mean([table.values["dice", region, s] for s in subsets])) for table in shown]
    means += [float(ours[letter].mean()) for letter in runs]
    return Table(
        name=f"published-{region}",
        title=f"{region} Dice (%) as published on {tables[0].dataset}, and runs {', '.join(runs)}",
        columns=[*dot_titles(), *(table.method for table in shown), *runs],
        rows=rows,
        footer=[*no_dots("mean"), *(Cell(number(value, 2), round(value, 4)) for value in means)],
        note="Not one protocol: read the table of protocols first. †: the source contradicts itself, see the cautions",
    )


def protocol_table(compared: Compared, tables: Sequence[PublishedTable]) -> Table:
    """Under which rules each column was made."""
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
    rules = protocol_named(compared.record["protocol"])
    for letter, run in compared.record["runs"].items():
        split = run["split"] or f"no list, {len(compared.record['studies'])} cases"
        ours = (Cell(rules.facts.get(fact, "not stated")) for fact in facts)
        rows.append([Cell(letter), Cell(split), *ours, Cell(f"this comparison, protocol {rules.name}")])
    return Table(
        "published-protocols", "The protocol each column was made under", ["method", "split", *facts, "source"], rows
    )


def _difference(entry: Mapping[str, str] | None, factor: float) -> Cell:
    if entry is None:
        return MISSING
    value = factor * float(entry["difference"])
    small = (
        f"{_interval(entry, factor)} p{FIXED}{_p(entry)} r{FIXED}{number(float(entry['effect']), 2, True)} "
        f"{entry['wins']}:{entry['losses']}"
    )
    return Cell(number(value, 1, True), round(value, 4), small, _parts(entry, factor), _colour(entry))


def _parts(entry: Mapping[str, str], factor: float) -> dict[str, float | int | None]:
    ends = {end: None if math.isnan(float(entry[end])) else round(factor * float(entry[end]), 4) for end in ENDS}
    exact = {name: float(entry[name]) for name in ("p", "p_holm", "effect")}
    return {**ends, **exact, "wins": int(entry["wins"]), "losses": int(entry["losses"])}


def _verdict(entry: Mapping[str, str], factor: float) -> str:
    return f"{number(factor * float(entry['difference']), 1, True)} ({_interval(entry, factor)}) p{FIXED}{_p(entry)}"


def _interval(entry: Mapping[str, str], factor: float) -> str:
    if math.isnan(float(entry["low"])):
        return "no interval"
    return f"{FIXED}to{FIXED}".join(number(factor * float(entry[end]), 1, True) for end in ENDS)


def _p(entry: Mapping[str, str]) -> str:
    p = float(entry["p_holm"])
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _names(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Method and seed, or the models' own names where those are equal."""
    known = [(f"{run['method']} ({run['trained']})", run["model"]) for run in runs]
    equal = len({name for name, _ in known}) < len(known)
    return [model if equal else name for name, model in known]


def _title(names: Sequence[str]) -> str:
    first, *others = names
    return f"{first} against {others[0] if len(others) == 1 else f'{len(others)} others'}"


def _colour(entry: Mapping[str, str]) -> str:
    """None where the mean and the ranks disagree: many cases a little better, say, and one missed."""
    effect, difference = float(entry["effect"]), float(entry["difference"])
    if float(entry["p_holm"]) >= LEVEL or effect * difference * (METRICS[entry["metric"]].better or -1) <= 0:
        return ""
    return BETTER if effect > 0 else WORSE


def _is_mean(line: Mapping[str, str], metric: str, region: str) -> bool:
    return line["metric"] == metric and line["region"] == region and line["subset"] == MEAN


def _difference_strips(compared: Compared, pair: tuple[str, str], region: str) -> Any:
    a, b = (compared.values(letter, "dice", region) for letter in pair)
    return figures.strips(
        100 * (b - a), compared.record["subsets"], f"{region}: Dice points, {pair[1]} minus {pair[0]}"
    )


def _smallest(cases: int) -> str:
    """The smallest p value that the exact test can give."""
    p = 2.0 ** (1 - cases)
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _read(folder: Path) -> Compared:
    try:
        record = json.loads((folder / COMPARISON).read_text("utf-8"))
        lines, cases = (_rows(folder / name) for name in (COMPARISONS, CASES))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not a comparison ({error}). Make one with `glimpseg compare`.") from error
    return Compared(record, lines, cases)


def _rows(path: Path) -> Lines:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
