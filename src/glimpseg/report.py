"""An evaluation as one HTML file that needs nothing else: the 15-row table, heat maps, best and worst cases.

It reads files, not objects: `scores.csv`, `evaluation.json` and NIfTI; so it can be made again at any time.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from glimpseg.atomic import write_text
from glimpseg.data import nifti
from glimpseg.errors import InputError
from glimpseg.modality import Modality, parse
from glimpseg.picture import preview
from glimpseg.region import CONVENTIONS, Region
from glimpseg.volume import labels_onto, onto

log = logging.getLogger(__name__)

DOT_ORDER = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
"""Columns of dots, as the field's tables have them."""
METRICS = {"dice": ("Dice", "%"), "hd95": ("HD95", "mm")}

Scores = Mapping[tuple[str, str, str, str], float]
"""By study, subset, region and metric."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation folder holds."""

    folder: Path
    scores: Scores
    record: Mapping[str, Any]

    @property
    def studies(self) -> list[str]:
        """In the order they were scored."""
        return list(dict.fromkeys(key[0] for key in self.scores))

    @property
    def subsets(self) -> list[str]:
        """Those with at least one score, in table order."""
        present = {key[1] for key in self.scores}
        return [subset for subset in self.record["subsets"] if subset in present]

    @property
    def regions(self) -> list[str]:
        """In the order WT, TC, ET, RC."""
        return list(self.record["regions"])

    def values(self, subset: str, region: str, metric: str) -> list[float]:
        """One number for each study that has the subset."""
        keys = ((study, subset, region, metric) for study in self.studies)
        return [self.scores[key] for key in keys if key in self.scores]

    def mean(self, subset: str, region: str, metric: str) -> float:
        """Over studies."""
        return float(np.mean(self.values(subset, region, metric)))


def read_evaluation(folder: str | Path) -> Evaluation:
    """The files that `evaluate` wrote. Raises: InputError if they are not there or not whole."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "evaluation.json").read_text("utf-8"))
        with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        scores = {(x["study"], x["subset"], x["region"], x["metric"]): float(x["value"]) for x in lines}
    except (OSError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise InputError(f"{folder} is not an evaluation ({error}). Make one with `glimpseg evaluate`.") from error
    if not scores:
        raise InputError(f"{folder / 'scores.csv'} has no score. Run `glimpseg evaluate` again.")
    return Evaluation(folder, scores, record)


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Writes `report.html` from an evaluation folder (beside the scores, or to `path`); returns its path."""
    evaluation = read_evaluation(folder)
    target = Path(path) if path else evaluation.folder / "report.html"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("glimpseg").joinpath("report.html.j2").read_text("utf-8"))
    page = template.render(
        record=evaluation.record,
        studies=len(evaluation.studies),
        tables=[table(evaluation, metric) for metric in METRICS],
        heat_maps=[(region, _svg(heat_map(evaluation, region))) for region in evaluation.regions],
        losses=sequence_losses(evaluation),
        cases=_cases(evaluation),
        titles={region.name: region.title for region in Region},
    )
    write_text(target, page)
    return target


def table(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """The field's table: a row for each subset with its dots, a column for each region, means at the end."""
    scale = 100 if metric == "dice" else 1
    rows: list[dict[str, Any]] = []
    for subset in evaluation.subsets:
        means = {region: scale * evaluation.mean(subset, region, metric) for region in evaluation.regions}
        members = parse(subset)
        cases = len(evaluation.values(subset, evaluation.regions[0], metric))
        dots = [m in members for m in DOT_ORDER]
        rows.append({"title": members.title, "dots": dots, "means": means, "cases": cases})
    average = {region: float(np.mean([row["means"][region] for row in rows])) for region in evaluation.regions}
    worst = max((value for row in rows for value in row["means"].values()), default=1) if metric == "hd95" else 100
    title, unit = METRICS[metric]
    return {
        "title": title,
        "unit": unit,
        "dot_titles": [m.title for m in DOT_ORDER],
        "regions": evaluation.regions,
        "rows": [{**row, "colours": {r: _colour(v, metric, worst) for r, v in row["means"].items()}} for row in rows],
        "average": average,
    }


def text_table(evaluation: Evaluation) -> str:
    """The Dice table for a terminal, in percent."""
    made = table(evaluation, "dice")
    lines = [" ".join(f"{title:>5}" for title in (*made["dot_titles"], *made["regions"]))]
    for row in made["rows"]:
        dots = " ".join(f"{'●' if dot else '○':>5}" for dot in row["dots"])
        lines.append(dots + " " + " ".join(f"{row['means'][region]:5.1f}" for region in made["regions"]))
    average = " ".join(f"{made['average'][region]:5.1f}" for region in made["regions"])
    return "\n".join([*lines, f"{'mean over subsets':>23} {average}"])


def sequence_losses(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What losing one or two sequences of the four costs in Dice points, by region; nothing without all four."""
    full = "t1+t1c+t2+flair"
    lost = ("t1", "t1c", "t2", "flair", "t2+flair")
    if full not in evaluation.subsets:
        return []
    rows = []
    for key in lost:
        rest = (parse(full) & ~parse(key)).key
        if rest in evaluation.subsets:
            costs = {
                r: 100 * (evaluation.mean(full, r, "dice") - evaluation.mean(rest, r, "dice"))
                for r in evaluation.regions
            }
            rows.append({"title": parse(key).title, "costs": costs})
    return rows


def heat_map(evaluation: Evaluation, region: str) -> Figure:
    """Dice of every case (columns, best first) under every subset (rows)."""
    studies = sorted(evaluation.studies, key=lambda study: -_study_mean(evaluation, study, [region]))
    grid = np.full((len(evaluation.subsets), len(studies)), np.nan)
    for row, subset in enumerate(evaluation.subsets):
        for column, study in enumerate(studies):
            grid[row, column] = evaluation.scores.get((study, subset, region, "dice"), np.nan)
    figure = Figure(figsize=(2.6 + 0.28 * len(studies), 4.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(evaluation.subsets)), [parse(subset).title for subset in evaluation.subsets], fontsize=8)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(studies)} cases, best first")
    figure.colorbar(image, ax=axes, label=f"{region} Dice", shrink=0.8)
    return figure


def _study_mean(evaluation: Evaluation, study: str, regions: Sequence[str]) -> float:
    values = [
        value
        for (name, _, region, metric), value in evaluation.scores.items()
        if name == study and region in regions and metric == "dice"
    ]
    return float(np.mean(values))


def _cases(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Pictures of the best and the worst case, each under its most complete and its worst subset."""
    ranked = sorted(evaluation.studies, key=lambda study: _study_mean(evaluation, study, evaluation.regions))
    chosen = {"best case": ranked[-1], "worst case": ranked[0]} if len(ranked) > 1 else {"case": ranked[0]}
    cases = []
    for title, study in chosen.items():
        means: dict[str, list[float]] = defaultdict(list)
        for (name, subset, _, metric), value in evaluation.scores.items():
            if name == study and metric == "dice":
                means[subset].append(value)
        complete = max(means, key=lambda subset: len(parse(subset)))
        worst = min(means, key=lambda subset: np.mean(means[subset]))
        for subset in dict.fromkeys((complete, worst)):
            dice = {r: 100 * evaluation.scores[(study, subset, r, "dice")] for r in evaluation.regions}
            picture = _picture(evaluation, study, subset)
            cases.append(
                {"title": title, "study": study, "subset": parse(subset).title, "dice": dice, "picture": picture}
            )
    return cases


def _picture(evaluation: Evaluation, study: str, subset: str) -> str | None:
    """PNG as a data URI; None, with a warning, if the images are no longer where they were."""
    record = next(entry for entry in evaluation.record["studies"] if entry["id"] == study)
    members = parse(subset)
    try:
        images = {m: nifti.read_volume(record["images"][m.key]) for m in Modality if m in members}
        reference = nifti.read_labels(record["reference"], CONVENTIONS[record["labels"]])
        labels = nifti.read_labels(evaluation.folder / "labels" / study / f"{subset}.nii.gz")
        images = {modality: onto(image, labels.grid) for modality, image in images.items()}
    except (InputError, KeyError, TypeError) as error:
        log.warning("No picture of %s: %s", study, error)
        return None
    buffer = io.BytesIO()
    preview(images, labels, labels_onto(reference, labels.grid)).savefig(buffer, format="png", dpi=80)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "glimpseg"}):  # the same scores give the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colour(value: float, metric: str, worst: float) -> str:
    """Background of a table cell: from red through yellow to green, pale enough for black text."""
    share = value / 100 if metric == "dice" else 1 - value / max(worst, 1e-6)
    red, green, blue, _ = matplotlib.colormaps["RdYlGn"](float(np.clip(share, 0, 1)))
    pale = [round(255 * (0.45 * part + 0.55)) for part in (red, green, blue)]
    return "#{:02x}{:02x}{:02x}".format(*pale)
