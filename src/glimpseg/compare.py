"""Evaluations against each other, case by case: paired tests, effect sizes, wins and losses; published tables beside.

Every run is compared with the first. Only cases that all runs were scored on count; what is left out is said.
"""

from __future__ import annotations

import csv
import itertools
import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpseg.atomic import atomic_folder, refuse_if_used
from glimpseg.data import published as tables
from glimpseg.errors import InputError, UsageError
from glimpseg.results import CASES, COMPARISON, COMPARISONS, Evaluation, read_evaluation, write_json
from glimpseg.scores import METRICS, Scores
from glimpseg.statistics import Bootstrap, Paired, holm, paired
from glimpseg.version import __version__

log = logging.getLogger(__name__)

MEAN = "mean"
"""Stands for a subset: each case's mean over the subsets."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One line of `comparisons.csv`: run `b` minus run `a` in one metric, region and subset."""

    a: str
    b: str
    metric: str
    region: str
    subset: str
    cases: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    """Of the 95 % bootstrap interval of the difference."""
    high: float
    wins: int
    """Cases in which b is better."""
    losses: int
    p: float
    p_holm: float
    """Adjusted over all subsets, regions and pairs of the metric; means over subsets are a family of their own."""
    effect: float
    """Matched-pairs rank-biserial correlation, -1 to 1; above 0 b is better."""


def compare(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    published: str | None = None,
    overwrite: bool = False,
) -> list[Comparison]:
    """Compares finished evaluations and writes `comparisons.csv`, `cases.csv` (the runs side by side) and
    `comparison.json`, all at once.

    `published` names a dataset whose published tables are to stand beside (`data.published`); by default that of the
    list the first run was evaluated on, if any.

    Raises: UsageError for fewer than two folders or one given twice; InputError for runs of several protocols, for
        cases with other references, or if fewer than two cases are common to all.
    """
    refuse_if_used(output, overwrite=overwrite, mark=COMPARISON)
    runs = _read_runs(folders)
    common = _common_cases(runs)
    wanted = [m for m in metrics if all(m in run.scores.metrics for run in runs.values())]
    if not wanted:
        raise InputError(
            f"No run has {' or '.join(metrics)} in common with the others. Evaluate them with one --metrics."
        )
    subsets = _common_subsets(runs)
    scores = {letter: run.scores.restricted_to(common, subsets) for letter, run in runs.items()}
    _refuse_other_references(scores)
    lines = [line for metric in wanted for line in _family(scores, metric)]
    if not lines:
        raise InputError("No subset of sequences was scored in all runs for at least two cases. Evaluate more studies.")
    dataset = published or tables.dataset_of(runs["A"].record["split"])
    record = {
        "glimpseg": __version__,
        "protocol": next(iter(runs.values())).record["protocol"],
        "runs": {letter: _run_record(run, runs["A"], common) for letter, run in runs.items()},
        "studies": common,
        "subsets": next(iter(scores.values())).subsets,
        "metrics": wanted,
        "published": tables.tables(dataset)[0].dataset if dataset else None,
        "tests": {metric: sum(line.metric == metric and line.subset != MEAN for line in lines) for metric in wanted},
    }
    with atomic_folder(output, overwrite=overwrite, mark=COMPARISON) as place:
        _write_comparisons(place / COMPARISONS, lines)
        _write_cases(place / CASES, scores, wanted)
        write_json(place / COMPARISON, record)
    return lines


def _read_runs(folders: Sequence[str | Path]) -> dict[str, Evaluation]:
    """By letter, in the order given."""
    if len(folders) < 2:
        raise UsageError("A comparison needs at least two evaluation folders.")
    places = [Path(folder).resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UsageError("One evaluation folder was given twice. Name each run once.")
    if len(places) > len(string.ascii_uppercase):
        raise UsageError(f"At most {len(string.ascii_uppercase)} runs can be compared at once.")
    runs = dict(zip(string.ascii_uppercase, map(read_evaluation, folders), strict=False))
    protocols = {letter: run.record["protocol"] for letter, run in runs.items()}
    if len(set(protocols.values())) > 1:
        raise InputError(
            "Numbers of different protocols cannot be compared: "
            + ", ".join(f"{letter} was made under {protocol}" for letter, protocol in protocols.items())
            + ". Evaluate all runs under one."
        )
    return runs


def _common_cases(runs: Mapping[str, Evaluation]) -> list[str]:
    """The studies of all runs, in the order of the first."""
    shared = set.intersection(*(set(run.scores.studies) for run in runs.values()))
    common = [study for study in next(iter(runs.values())).scores.studies if study in shared]
    left = {letter: len(run.scores.studies) - len(common) for letter, run in runs.items()}
    if any(left.values()):
        log.warning(
            "The runs were scored on different cases; %d are common to all and count. Left out: %s.",
            len(common),
            ", ".join(f"{count} of {letter}" for letter, count in left.items() if count),
        )
    if len(common) < 2:
        raise InputError(
            f"A paired test needs at least two cases scored in all runs, and there {'is 1' if common else 'are 0'}. "
            "Evaluate the runs on the same studies."
        )
    return common


def _common_subsets(runs: Mapping[str, Evaluation]) -> list[str]:
    first, *others = (run.scores.subsets for run in runs.values())
    shared = [subset for subset in first if all(subset in other for other in others)]
    if not shared:
        raise InputError("The runs have no subset of sequences in common. Evaluate them with one --subsets.")
    return shared


def _refuse_other_references(scores: Mapping[str, Scores]) -> None:
    (first, one), *others = scores.items()
    for (letter, other), region in itertools.product(others, one.regions):
        if region in other.regions:
            known, found = (np.nan_to_num(of.volumes_ml(region)[1]).max(1) for of in (one, other))
            wrong = np.flatnonzero(np.abs(known - found) > 1e-6 * (1 + known))
            if wrong.size:
                place = int(wrong[0])
                raise InputError(
                    f"{one.studies[place]} has {known[place]:g} ml of {region} in the reference of run {first} and "
                    f"{found[place]:g} ml in that of run {letter}: the runs were scored against different references. "
                    "Evaluate them on the same files."
                )


def _family(scores: Mapping[str, Scores], metric: str) -> list[Comparison]:
    """Every run against the first in one metric: single subsets, then means, each adjusted among themselves."""
    (first, one), *others = scores.items()
    bootstrap = Bootstrap(len(one.studies))
    single, mean = [], []
    for letter, other in others:
        for region in one.regions:
            if region not in other.regions or np.isnan(one.array(metric, region)).all():
                continue
            a, b = one.array(metric, region), other.array(metric, region)
            for column, subset in enumerate(one.subsets):
                single.append(_line(first, letter, metric, region, subset, a[:, column], b[:, column], bootstrap))
            # A case that lacks a subset would be an average over easier or harder ones.
            mean.append(_line(first, letter, metric, region, MEAN, a.mean(1), b.mean(1), bootstrap))
    # Subsets that fewer than two common cases have are no tests.
    families = ([line for line in lines if line.cases > 1] for lines in (single, mean))
    return [line for family in families for line in _adjusted(family)]


def _line(
    first: str,
    letter: str,
    metric: str,
    region: str,
    subset: str,
    a: Float[np.ndarray, "n"],
    b: Float[np.ndarray, "n"],
    bootstrap: Bootstrap,
) -> Comparison:
    both = np.where(np.isnan(a) | np.isnan(b), np.nan, 1.0)
    found: Paired = paired(a * both, b * both, METRICS[metric].better, bootstrap)
    mean_a, mean_b = (bootstrap.interval(values * both).mean for values in (a, b))
    difference = found.difference
    return Comparison(
        first, letter, metric, region, subset, found.cases, mean_a, mean_b, difference.mean, difference.low,
        difference.high, found.wins, found.losses, found.p, found.p, found.effect,
    )  # fmt: skip


def _adjusted(lines: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's p values in place."""
    adjusted = holm(np.array([line.p for line in lines]))
    return [replace(line, p_holm=float(p)) for line, p in zip(lines, adjusted, strict=True)]


def _run_record(run: Evaluation, first: Evaluation, common: Sequence[str]) -> dict[str, Any]:
    model = run.record["model"]
    recipes = [_fields(of.record["recipe"]) for of in (first, run)]
    names = dict.fromkeys([*recipes[0], *recipes[1]])
    return {
        "folder": str(run.folder.resolve()),
        "model": model["name"],
        "method": run.record["recipe"]["method"],
        "seed": run.record["recipe"]["seed"],
        "changes": {name: values for name in names if (values := [r.get(name) for r in recipes])[0] != values[1]},
        "steps": model.get("steps"),
        "commit": model.get("commit"),
        "split": run.record["split"],
        "data": run.record["data"],
        "cases": len(run.scores.studies),
        "left_out": [study for study in run.scores.studies if study not in common],
    }


def _fields(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A recipe's fields by path: `optim.steps`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _fields(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _write_comparisons(path: Path, lines: Sequence[Comparison]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Comparison)], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            # p values keep their digits: 0.0000004 is not 0.
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(line).items()})


def _write_cases(path: Path, scores: Mapping[str, Scores], metrics: Sequence[str]) -> None:
    """The runs' values side by side: a line for each study, subset, region and metric."""
    one = next(iter(scores.values()))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["study", "subset", "region", "metric", *scores])
        for metric, region in itertools.product(metrics, one.regions):
            arrays = [of.array(metric, region) for of in scores.values() if region in of.regions]
            if len(arrays) < len(scores) or any(np.isnan(array).all() for array in arrays):
                continue
            for (i, study), (j, subset) in itertools.product(enumerate(one.studies), enumerate(one.subsets)):
                values = [array[i, j] for array in arrays]
                if not np.isnan(values).all():
                    writer.writerow([study, subset, region, metric, *(f"{value:.6g}" for value in values)])
