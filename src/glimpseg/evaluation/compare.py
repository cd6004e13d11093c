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

from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation import published as tables
from glimpseg.modality import SUBSETS
from glimpseg.results.folder import CASES, COMPARISON, COMPARISONS, MEAN, Evaluation, read_evaluation
from glimpseg.results.scores import METRICS, Scores
from glimpseg.results.statistics import Bootstrap, Paired, holm, paired
from glimpseg.runtime.atomic import atomic_folder, refuse_if_used, write_json
from glimpseg.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """One line of `comparisons.csv`: run `b` minus run `a` in one metric, region and subset.

    Of a signed error (volume) the absolute value is compared.
    """

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
    """Of the 95 % bootstrap interval of the difference, not adjusted for other comparisons; NaN for few cases."""
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

    Raises: UsageError for fewer than two folders, one given twice or an unknown `published`; InputError for runs of
        several protocols or rules, for cases with other references, or if fewer than two cases are common to all.
    """
    refuse_if_used(output, overwrite=overwrite, mark=COMPARISON)
    if published is not None:
        tables.tables(published)
    runs = _read_runs(folders)
    common = _common_cases(runs)
    wanted, subsets = _common_metrics(runs, metrics), _common_subsets(runs)
    _refuse_other_rules(runs, wanted)
    _refuse_other_references(runs, common)
    scores = {letter: run.scores.restricted_to(common, subsets) for letter, run in runs.items()}
    lines = [line for metric in wanted for line in _family(scores, metric)]
    if not lines:
        raise InputError("No subset of sequences was scored in all runs for at least two cases. Evaluate more studies.")
    dataset = published or tables.dataset_of(runs["A"].record["split"])
    record = {
        "glimpseg": __version__,
        "protocol": next(iter(runs.values())).record["protocol"],
        "runs": {letter: _run_record(run, runs["A"], common) for letter, run in runs.items()},
        "studies": common,
        "subsets": subsets,
        "metrics": wanted,
        "left_out": {
            "metrics": [metric for metric in metrics if metric not in wanted],
            "subsets": sorted({s for run in runs.values() for s in run.scores.subsets} - set(subsets)),
            "regions": sorted({r for run in runs.values() for r in run.scores.regions} - {x.region for x in lines}),
        },
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


def _common_metrics(runs: Mapping[str, Evaluation], metrics: Sequence[str]) -> list[str]:
    lacking = {m: [letter for letter, run in runs.items() if m not in run.scores.metrics] for m in metrics}
    for metric, letters in lacking.items():
        if letters:
            log.warning("%s is not compared: %s lacks it.", METRICS[metric].title, ", ".join(letters))
    shared = [metric for metric, letters in lacking.items() if not letters]
    if not shared:
        wanting = "; ".join(f"{', '.join(letters)} lacks {metric}" for metric, letters in lacking.items())
        raise InputError(f"There is no metric to compare: {wanting}. Evaluate the runs with one --metrics.")
    return shared


def _common_subsets(runs: Mapping[str, Evaluation]) -> list[str]:
    every = [subset.key for subset in SUBSETS]
    shared = [subset for subset in every if all(subset in run.scores.subsets for run in runs.values())]
    if not shared:
        raise InputError("The runs have no subset of sequences in common. Evaluate them with one --subsets.")
    dropped = {subset for run in runs.values() for subset in run.scores.subsets} - set(shared)
    if dropped:
        log.warning("%d subsets are not compared, because some run lacks them: %s.", len(dropped), ", ".join(dropped))
    return shared


def _refuse_other_rules(runs: Mapping[str, Evaluation], metrics: Sequence[str]) -> None:
    """Rules of the protocol and of the metrics that are compared."""
    (first, one), *others = runs.items()
    for letter, other in others:
        for name in {*one.record["rules"], *other.record["rules"]} - (set(METRICS) - set(metrics)):
            known, found = (run.record["rules"].get(name, "no such rule") for run in (one, other))
            if known != found:
                raise InputError(
                    f"The runs were made under different rules for {name}. {first}: {known}. {letter}: {found}. "
                    "Evaluate them with one version of glimpseg."
                )


def _refuse_other_references(runs: Mapping[str, Evaluation], common: Sequence[str]) -> None:
    (first, one), *others = (
        (letter, {case["id"]: case["reference_voxels"] for case in run.record["cases"]}) for letter, run in runs.items()
    )
    for letter, other in others:
        changed = [study for study in common if one[study] != other[study]]
        if changed:
            raise InputError(
                f"{changed[0]} was scored against different references in runs {first} and {letter} "
                f"({len(changed)} of {len(common)} studies). Evaluate the runs on the same files."
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
            a, b = (_magnitudes(metric, of.array(metric, region)) for of in (one, other))
            for column, subset in enumerate(one.subsets):
                single.append(_line(first, letter, metric, region, subset, a[:, column], b[:, column], bootstrap))
            # A case that lacks a subset would be an average over easier or harder ones.
            mean.append(_line(first, letter, metric, region, MEAN, a.mean(1), b.mean(1), bootstrap))
    # Subsets that fewer than two common cases have are no tests.
    families = ([line for line in lines if line.cases > 1] for lines in (single, mean))
    return [line for family in families for line in _adjusted(family)]


def _magnitudes(metric: str, values: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
    """The values themselves; of signed errors, how large they are."""
    return values if METRICS[metric].better else np.abs(values)


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
    found: Paired = paired(a * both, b * both, METRICS[metric].better or -1, bootstrap)
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
    # Two methods' configs have little in common: there, naming the method says it all.
    same = recipes[0]["method"] == recipes[1]["method"]
    names = [name for name in {**recipes[0], **recipes[1]} if same or not name.startswith("config.")]
    return {
        "folder": str(run.folder.resolve()),
        "model": model["name"],
        "method": run.record["recipe"]["method"],
        "seed": run.record["recipe"]["seed"],
        "changes": {name: values for name in names if (values := [r.get(name) for r in recipes])[0] != values[1]},
        "trained": run.trained,
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
