"""HTML report of an evaluation: table of all subsets, every case, values of the sequences, calibration, pictures.

It reads the evaluation folder and the images that are named there, so that it can be made again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from glimpseg.data import nifti
from glimpseg.data.notices import TREE, StudyNotices, warn
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality, parse
from glimpseg.picture import preview
from glimpseg.region import Region, convention_named
from glimpseg.report import figures
from glimpseg.report.page import colour, interval, number, png, render, svg, write_tables
from glimpseg.results.folder import LABELS, Evaluation, read_evaluation
from glimpseg.results.scores import METRICS, POSTPROCESSED, Metric
from glimpseg.results.tables import MISSING, Cell, Table, dot_titles, dots, no_dots
from glimpseg.runtime.atomic import write_text
from glimpseg.study import parse_image
from glimpseg.volume import resample, resample_labels

MOST_WARNINGS = 50
"""Most rows of the table of warnings."""
WORST_CASES = 3
"""Number of worst cases that are shown with contours, beside the best one."""
FIRST = ("dice", "hd95")
"""Metrics whose tables are open; the others are folded."""
TITLES = {**{region.name: region.title for region in Region}, POSTPROCESSED: "enhancing tumour, post-processed"}


def write_html(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write `report.html` from an evaluation folder, and `tables/` in it with CSV and LaTeX; return the report's path.

    Args:
        folder: A folder that `evaluate` wrote.
        path: The HTML file; `report.html` in the folder by default.

    Raises:
        InputError: The folder is not a finished evaluation.
        OutputError: When the disk refuses.
    """
    evaluation = read_evaluation(folder)
    target = Path(path) if path else evaluation.folder / "report.html"
    tables = all_tables(evaluation)
    scores, summary = evaluation.scores, evaluation.summary
    with StudyNotices().telling():
        cases = _cases(evaluation)
    regions = [region for region in scores.regions if region != POSTPROCESSED]
    dice = regions if "dice" in scores.metrics else []
    page = render(
        "evaluation.html.j2",
        title=f"{evaluation.title}: {len(scores.subsets)} subsets, {len(scores.studies)} cases",
        evaluation=evaluation,
        headline=_headline(evaluation),
        tables=tables,
        first=[f"table-{name}" for name in FIRST],
        strips=_drawn(
            dice, lambda r: figures.strips(100 * scores.array("dice", r), scores.subsets, f"{r} Dice in %", (0, 100))
        ),
        heat_maps=_drawn(
            dice, lambda r: figures.heat_map(100 * scores.array("dice", r), scores.subsets, f"{r} Dice in %")
        ),
        value=svg(figures.sequence_values(summary["sequence_value"])) if summary["sequence_value"] else "",
        reliability=_drawn(
            [region for region in regions if _curves(evaluation, region)],
            lambda region: figures.reliability(_curves(evaluation, region)),
        ),
        cases=cases,
        warnings=(warnings := _warnings(evaluation))[:MOST_WARNINGS],
        further_warnings=len(warnings[MOST_WARNINGS:]),
        titles=TITLES,
        recipe=yaml.safe_dump(evaluation.record["recipe"], sort_keys=False),
    )
    write_text(target, page)
    write_tables(evaluation.folder, tables.values())
    return target


def _warnings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the name of the study and the text of each warning; the name is empty for those of no single study."""
    record = evaluation.record
    of_studies = [(case["id"], text) for case in record["cases"] for text in case.get("warnings", ())]
    return [*((TREE, text) for text in record.get("notices", {}).get("warnings", ())), *of_studies]


def all_tables(evaluation: Evaluation) -> dict[str, Table]:
    """Make all tables of an evaluation, by name.

    There is one for each metric, then sequence value and monotonicity if there are any.
    """
    made = [metric_table(evaluation, METRICS[metric]) for metric in evaluation.scores.metrics]
    made += [
        make(evaluation)
        for make, key in ((_value_table, "sequence_value"), (_monotonicity_table, "monotonicity"))
        if any(evaluation.summary[key].values())
    ]
    return {table.name: table for table in made}


def metric_table(evaluation: Evaluation, metric: Metric) -> Table:
    """Make the table of a metric: a row for each subset with its dots, a column for each region, means at the end.

    `hd95` and `hd95_pooled` are shown with the share of missed tumours, every other metric with the interval of its
    mean. The last column is the number of cases.
    """
    summary, scores = evaluation.summary, evaluation.scores
    regions = [r for r in scores.regions if metric.name in summary["mean"].get(r, {})]
    missed = metric.name.startswith("hd95")
    means = {
        subset: {
            r: summary["subsets"][subset][r][metric.name]
            for r in regions
            if metric.name in summary["subsets"][subset][r]
        }
        for subset in scores.subsets
    }
    shown = [metric.factor * entry["mean"] for row in means.values() for entry in row.values()]
    rows = []
    for subset in scores.subsets:
        cells = dots(subset)
        for region in regions:
            entry = means[subset].get(region)
            if entry is None:
                cells.append(MISSING)
                continue
            cell = _mean(entry, metric.factor, colour(_goodness(metric.factor * entry["mean"], metric, shown)))
            if missed:
                share = summary["empty"][subset][region]["missed"]
                cell = replace(cell, small=f"{100 * share:.0f} % missed", parts={**cell.parts, "missed": share})
            cells.append(cell)
        cases = max((entry["cases"] for entry in means[subset].values()), default=0)
        rows.append([*cells, Cell(str(cases), cases)])
    footer = no_dots("mean")
    footer += [_mean(summary["mean"][region][metric.name], metric.factor) for region in regions]
    return Table(
        name=f"table-{metric.name}",
        title=f"{metric.title} ({metric.unit}, mean over cases)",
        columns=[*dot_titles(), *regions, "cases"],
        rows=rows,
        footer=[*footer, Cell("")],
        note=metric.rule[0].upper() + metric.rule[1:],
        small="share of cases missed; 95 % interval of the mean" if missed else "95 % interval",
    )


def text_table(evaluation: Evaluation) -> str:
    """Return the Dice table as text for a terminal, under its title; without Dice, the table of the first metric."""
    made = metric_table(evaluation, METRICS[evaluation.scores.metrics[0]])
    return f"{made.title}\n{made.as_text}"


def _value_table(evaluation: Evaluation) -> Table:
    value = evaluation.summary["sequence_value"]
    rows = []
    for modality in figures.DOT_ORDER:
        cells = [Cell(modality.title)]
        for region in value:
            cells.append(_mean(value[region]["sequences"][modality.key], 100, sign=True))
        rows.append(cells)
    ends = []
    for title, key in (("no sequence", "nothing"), ("all four", "all")):
        ends.append([Cell(title), *(Cell(number(100 * value[r][key]), round(100 * value[r][key], 4)) for r in value)])
    cases = next(iter(value.values()))["cases"]
    return Table(
        name="table-sequence-value",
        title=f"Value of each sequence (Dice points, {cases} cases with all 15 subsets)",
        columns=["sequence", *value],
        rows=[ends[0], *rows],
        footer=ends[1],
        note="Shapley value: the gain by a sequence, averaged over all orders in which the four can be added. Without "
        "any sequence nothing is found; this is right where the region is empty. Each column adds up to its last row",
        small="95 % interval",
    )


def _monotonicity_table(evaluation: Evaluation) -> Table:
    changes = evaluation.summary["monotonicity"]
    regions = [region for region in changes if changes[region]]
    rows = []
    for modality in figures.DOT_ORDER:
        if modality.key not in changes[regions[0]]:
            continue
        cells = [Cell(modality.title)]
        for region in regions:
            entry = changes[region][modality.key]
            if entry["worse"] is None:
                cells.append(MISSING)
                continue
            mean = number(100 * entry["mean_change"], sign=True)
            small = f"{100 * entry['notably_worse']:.0f} % by over a point; mean {mean}"
            parts = {name: entry[name] for name in ("notably_worse", "mean_change", "pairs")}
            cells.append(Cell(f"{100 * entry['worse']:.0f} %", round(entry["worse"], 6), small, parts))
        rows.append(cells)
    return Table(
        name="table-monotonicity",
        title="How often one more sequence made a case worse",
        columns=["added", *regions],
        rows=rows,
        note="Share of all pairs of a case and a subset in which Dice fell when the sequence was added to the subset",
        small="of which notable; mean change",
    )


def _mean(entry: Mapping[str, Any], factor: float, background: str = "", sign: bool = False) -> Cell:
    """Make the cell of a mean with its interval, all times `factor`; `MISSING` without a mean."""
    value, low, high = (None if entry[name] is None else factor * entry[name] for name in ("mean", "low", "high"))
    parts = {name: None if end is None else round(end, 4) for name, end in (("low", low), ("high", high))}
    if value is None:
        return MISSING
    return Cell(
        text=number(value, sign=sign),
        value=round(value, 4),
        small=interval(entry, factor),
        parts=parts,
        colour=background,
    )


def _goodness(value: float, metric: Metric, shown: Sequence[float]) -> float:
    """Return how good a value is, 0 (bad) to 1, for its colour.

    If more is better, this is its share of the metric's maximum. Otherwise it is 1 minus its share of the worst value
    in `shown`.
    """
    if metric.better == 1:
        return value / metric.factor
    worst = max(abs(other) for other in shown)
    return 1 - abs(value) / worst if worst else 1.0


def _headline(evaluation: Evaluation) -> list[dict[str, str]]:
    """Return, for each region, its name and its mean Dice over the subsets in per cent with the interval, as text.

    Regions without Dice are left out.
    """
    tiles = []
    for region in evaluation.scores.regions:
        entry = evaluation.summary["mean"][region].get("dice")
        if entry:
            tiles.append({"region": region, "value": number(100 * entry["mean"]), "interval": interval(entry, 100)})
    return tiles


def _curves(evaluation: Evaluation, region: str) -> dict[str, Any]:
    curves = evaluation.summary["reliability"]
    return {subset: curves[subset][region] for subset in evaluation.scores.subsets if region in curves.get(subset, {})}


def _drawn(regions: Sequence[str], draw: Callable[[str], Any]) -> list[tuple[str, str]]:
    return [(region, svg(draw(region))) for region in regions]


def _cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the pictured cases by mean Dice over regions and subsets: the worst three, and the best one.

    Each is shown from its largest subset; the worst also from its worst subset. Empty if Dice was not scored.
    """
    scores = evaluation.scores
    if "dice" not in scores.metrics:
        return []
    regions = [region for region in scores.regions if region != POSTPROCESSED]
    dice = np.mean([scores.array("dice", region) for region in regions], axis=0)  # study subset
    order = np.argsort(np.nanmean(dice, axis=1), kind="stable")
    worst, best = int(order[0]), int(order[-1])
    titles = {(worst, _largest_subset(dice[worst], scores.subsets)): "worst case"}
    titles.setdefault((worst, int(np.nanargmin(dice[worst]))), "worst case, its worst subset")
    for study in order[1:WORST_CASES].tolist():
        titles[study, _largest_subset(dice[study], scores.subsets)] = "poor case"
    if best != worst:
        titles[best, _largest_subset(dice[best], scores.subsets)] = "best case"
    return [
        {
            "title": title,
            "study": scores.studies[study],
            "subset": parse(scores.subsets[subset]).title,
            "dice": {region: 100 * scores.array("dice", region)[study, subset] for region in regions},
            "picture": _picture(evaluation, scores.studies[study], scores.subsets[subset]),
        }
        for (study, subset), title in titles.items()
    ]


def _largest_subset(dice: Float[np.ndarray, "subset"], subsets: Sequence[str]) -> int:
    """Return the column of the largest subset on which a study was scored."""
    return max((i for i, value in enumerate(dice) if not math.isnan(value)), key=lambda i: len(parse(subsets[i])))


def _picture(evaluation: Evaluation, study: str, subset: str) -> str | None:
    """Draw a case as a PNG in a data URI; None, with a warning, if a file cannot be read or was not recorded."""
    try:
        record = next(entry for entry in evaluation.record["cases"] if entry["id"] == study)
        images = {m: nifti.read_volume(parse_image(record["images"][m.key])) for m in Modality if m in parse(subset)}
        reference = nifti.read_labels(record["reference"], convention_named(record["labels"]))
        labels = nifti.read_labels(evaluation.folder / LABELS / study / f"{subset}.nii.gz")
        images = {modality: resample(image, labels.grid) for modality, image in images.items()}
    except (InputError, UsageError, KeyError, TypeError, AttributeError, StopIteration) as error:
        warn(f"No picture of {study}: a file of it cannot be read ({type(error).__name__}).")
        return None
    return png(preview(images, labels, resample_labels(reference, labels.grid)))
