"""Comparison of evaluations, case by case: paired tests, effect sizes, wins and losses; published tables beside.

Every run is compared with the first. Only cases that all runs were scored on count; the others are named.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation import published as published_tables
from glimpseg.modality import SUBSETS
from glimpseg.results.comparison import ComparedRun, Comparison, LeftOut, PairedTest, Values, write_comparison
from glimpseg.results.folder import COMPARISON, MEAN, Evaluation, read_evaluation
from glimpseg.results.scores import METRICS, Scores
from glimpseg.results.statistics import Bootstrap, holm, paired
from glimpseg.runtime.atomic import atomic_folder, refuse_if_used
from glimpseg.version import __version__

log = logging.getLogger(__name__)


def compare(
    evaluations: Sequence[str | Path | Evaluation],
    output: str | Path,
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    published: str | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Compare finished evaluations with the first of them, case by case.

    Args:
        evaluations: Two to 26 evaluations, or folders that `evaluate` wrote.
        output: Output folder. It gets `comparisons.csv` (tests), `cases.csv` (the runs side by side) and
            `comparison.json`, all at once.
        metrics: Names of metrics to compare, keys of `METRICS`; those that a run lacks are left out with a warning.
        published: Dataset whose published tables are shown beside the runs. By default that of the list on which the
            first run was evaluated, if any.
        overwrite: Replace a comparison in the output folder.

    Returns:
        The comparison, as `read_comparison(output)` reads it, but with all digits.

    Raises:
        UsageError: Fewer than two evaluations, more than 26, one given twice, an unknown `published`, or an output
            folder in use.
        InputError: A folder is no finished evaluation, the runs have other protocols or rules, the cases have other
            references, no metric or subset is common to all, or fewer than two cases are.
        OutputError: When the disk refuses.

    >>> from shutil import copytree
    >>> from tempfile import TemporaryDirectory
    >>> from glimpseg import EvaluationOptions, evaluate, phantom
    >>> from glimpseg.phantom.dataset import write_phantoms
    >>> options = EvaluationOptions(subsets=SUBSETS[:1], metrics=["dice"])
    >>> with TemporaryDirectory() as folder:
    ...     studies = write_phantoms(f"{folder}/studies", [1, 2], phantom.Settings.at_spacing(4.0), "brats2023")
    ...     evaluation = evaluate("box", f"{folder}/studies", f"{folder}/a", options)
    ...     runs = [evaluation, copytree(evaluation.folder, f"{folder}/b")]
    ...     comparison = compare(runs, f"{folder}/comparison", metrics=["dice"])
    >>> test = comparison.test(("A", "B"), "dice", "WT")  # an evaluation against its copy: no case differs
    >>> test.cases, float(test.difference), test.p, test.verdict
    (2, 0.0, 1.0, 0)
    """
    refuse_if_used(output, overwrite=overwrite, mark=COMPARISON)
    if published is not None:
        published_tables.tables(published)
    runs = _read_runs(evaluations)
    studies = _common_cases(runs)
    shared_metrics, subsets = _common_metrics(runs, metrics), _common_subsets(runs)
    _refuse_other_rules(runs, shared_metrics)
    _refuse_other_references(runs, studies)
    scores = {letter: run.scores.restricted_to(studies, subsets) for letter, run in runs.items()}
    tests = [test for metric in shared_metrics for test in _metric_tests(scores, metric)]
    if not tests:
        raise InputError("No subset of sequences was scored in all runs for at least two cases. Evaluate more studies.")
    dataset = published or published_tables.dataset_of(runs["A"].record["split"])
    comparison = Comparison(
        glimpseg=__version__,
        protocol=runs["A"].record["protocol"],
        runs={letter: _compared_run(run, runs["A"], studies) for letter, run in runs.items()},
        studies=studies,
        subsets=subsets,
        metrics=shared_metrics,
        left_out=LeftOut(
            metrics=[metric for metric in metrics if metric not in shared_metrics],
            subsets=sorted({s for run in runs.values() for s in run.scores.subsets} - set(subsets)),
            regions=sorted({r for run in runs.values() for r in run.scores.regions} - {x.region for x in tests}),
        ),
        published=published_tables.tables(dataset)[0].dataset if dataset else None,
        family_sizes={m: sum(test.metric == m and test.subset != MEAN for test in tests) for m in shared_metrics},
        tests=tests,
        case_values=_case_values(scores, shared_metrics),
    )
    with atomic_folder(output, overwrite=overwrite, mark=COMPARISON) as place:
        write_comparison(place, comparison)
    return comparison


def _read_runs(evaluations: Sequence[str | Path | Evaluation]) -> dict[str, Evaluation]:
    """Return the evaluations by letter (A, B, ...), in the order given. Folders are read.

    Raises:
        UsageError: Fewer than two evaluations, more than 26, or a folder given twice.
        InputError: A folder is no finished evaluation, or the runs have other protocols.
    """
    if len(evaluations) < 2:
        raise UsageError("A comparison needs at least two evaluation folders.")
    folders = [one.folder if isinstance(one, Evaluation) else Path(one) for one in evaluations]
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UsageError("One evaluation folder was given twice. Name each run once.")
    if len(places) > len(string.ascii_uppercase):
        raise UsageError(f"At most {len(string.ascii_uppercase)} runs can be compared at once.")
    read = [one if isinstance(one, Evaluation) else read_evaluation(one) for one in evaluations]
    runs = dict(zip(string.ascii_uppercase, read, strict=False))
    protocols = {letter: run.record["protocol"] for letter, run in runs.items()}
    if len(set(protocols.values())) > 1:
        raise InputError(
            "Numbers of different protocols cannot be compared: "
            + ", ".join(f"{letter} was made under {protocol}" for letter, protocol in protocols.items())
            + ". Evaluate all runs under one."
        )
    return runs


def _common_cases(runs: Mapping[str, Evaluation]) -> list[str]:
    """Return the studies that all runs have, in the order of the first run. A warning counts those left out.

    Raises: InputError for fewer than two.
    """
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
    """Raise InputError if runs differ in a rule of the protocol or of a metric that is compared."""
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


def _metric_tests(scores: Mapping[str, Scores], metric: str) -> list[PairedTest]:
    """Test every run against the first in one metric: single subsets, then means, each adjusted among themselves.

    Tests of fewer than two cases are left out.
    """
    (first, one), *others = scores.items()
    bootstrap = Bootstrap(len(one.studies))
    single, mean = [], []
    for letter, other in others:
        for region in one.regions:
            if region not in other.regions or np.isnan(one.array(metric, region)).all():
                continue
            a, b = (_magnitudes(metric, run.array(metric, region)) for run in (one, other))
            names: dict[str, Any] = {"a": first, "b": letter, "metric": metric, "region": region}
            for column, subset in enumerate(one.subsets):
                numbers = _numbers(metric, a[:, column], b[:, column], bootstrap)
                single.append(PairedTest(**names, subset=subset, **numbers))
            # A case that lacks a subset would be an average over easier or harder ones.
            mean.append(PairedTest(**names, subset=MEAN, **_numbers(metric, a.mean(1), b.mean(1), bootstrap)))
    # Subsets that fewer than two common cases have are no tests.
    families = ([test for test in tests if test.cases > 1] for tests in (single, mean))
    return [test for family in families for test in _adjusted(family)]


def _magnitudes(metric: str, values: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
    """Return the values themselves; for signed errors, their absolute values."""
    return values if METRICS[metric].better else np.abs(values)


def _numbers(metric: str, a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the numbers of a test by their names in `PairedTest`. Cases in which a run has NaN are left out.

    `p_holm` is not yet adjusted: it equals `p`.
    """
    both = np.where(np.isnan(a) | np.isnan(b), np.nan, 1.0)
    result = paired(a * both, b * both, METRICS[metric].better or -1, bootstrap)
    mean_a, mean_b = (bootstrap.interval(values * both).mean for values in (a, b))
    return {
        "cases": result.cases,
        "mean_a": mean_a,
        "mean_b": mean_b,
        "difference": result.difference.mean,
        "low": result.difference.low,
        "high": result.difference.high,
        "wins": result.wins,
        "losses": result.losses,
        "p": result.p,
        "p_holm": result.p,
        "effect": result.effect,
    }


def _adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return the tests of one family with p values adjusted by Holm."""
    adjusted = holm(np.array([test.p for test in tests]))
    return [replace(test, p_holm=float(p)) for test, p in zip(tests, adjusted, strict=True)]


def _case_values(scores: Mapping[str, Scores], metrics: Sequence[str]) -> Values:
    """Return each run's values, for every metric and region in which all runs have some value."""
    regions = next(iter(scores.values())).regions
    values = {}
    for metric in metrics:
        for region in regions:
            runs = {letter: one.array(metric, region) for letter, one in scores.items() if region in one.regions}
            if len(runs) == len(scores) and not any(np.isnan(array).all() for array in runs.values()):
                values[metric, region] = runs
    return values


def _compared_run(run: Evaluation, first: Evaluation, common: Sequence[str]) -> ComparedRun:
    model = run.record["model"]
    recipes = [_fields(one.record["recipe"]) for one in (first, run)]
    # Two methods' configs have little in common: there, naming the method says it all.
    same = recipes[0]["method"] == recipes[1]["method"]
    names = [name for name in {**recipes[0], **recipes[1]} if same or not name.startswith("config.")]
    return ComparedRun(
        folder=str(run.folder.resolve()),
        model=model["name"],
        method=run.record["recipe"]["method"],
        seed=run.record["recipe"]["seed"],
        changes={name: values for name in names if (values := [r.get(name) for r in recipes])[0] != values[1]},
        trained=run.trained,
        commit=model.get("commit"),
        split=run.record["split"],
        data=run.record["data"],
        cases=len(run.scores.studies),
        left_out=[study for study in run.scores.studies if study not in common],
    )


def _fields(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the fields of a recipe by their path, such as `optim.steps`."""
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        fields |= _fields(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return fields
