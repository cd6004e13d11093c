"""Scores as lines of a tidy CSV and as arrays of studies by subsets; definitions of the metrics."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from glimpseg.errors import InputError, UsageError
from glimpseg.modality import SUBSETS

DECIMALS = 6
"""Number of decimals in `scores.csv`."""
POSTPROCESSED = "ET_pp"
"""Name that stands for a region: ET after the rule of the RFNet family (`metrics.without_small_enhancement`)."""
REGIONS = ("WT", "TC", "ET", POSTPROCESSED, "RC")
"""Regions in the order of tables."""


@dataclass(frozen=True)
class Metric:
    """Definition of a metric, and how it is shown."""

    name: str
    title: str
    unit: str
    factor: float
    """Factor from the number in `scores.csv` to the one that is shown."""
    better: int
    """1: more is better; -1: less is better; 0: a signed error, nearer to 0 is better."""
    rule: str
    """Definition and rule for empty masks."""


_DIAGONAL = "both empty 0, one empty the own grid's diagonal (373.13 on 240x240x155 at 1 mm)"
_LESIONS = (
    "BraTS 2023 rules: parts of the reference that touch when grown by 3 mm are one lesion; lesions up to 50 mm3 "
    "are not counted; every predicted part that touches none is a false positive"
)

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="dice",
            title="Dice",
            unit="%",
            factor=100,
            better=1,
            rule="both empty 1, one empty 0",
        ),
        Metric(
            name="hd95",
            title="HD95",
            unit="mm",
            factor=1,
            better=-1,
            rule=f"larger of the two directed 95th percentiles; {_DIAGONAL}",
        ),
        Metric(
            name="hd95_pooled",
            title="HD95 pooled",
            unit="mm",
            factor=1,
            better=-1,
            rule=f"95th percentile of both directions (medpy); {_DIAGONAL}",
        ),
        Metric(
            name="surface_dice_1mm",
            title="Surface Dice 1 mm",
            unit="%",
            factor=100,
            better=1,
            rule="of surface voxels; both empty 1, one empty 0",
        ),
        Metric(
            name="surface_dice_2mm",
            title="Surface Dice 2 mm",
            unit="%",
            factor=100,
            better=1,
            rule="of surface voxels; both empty 1, one empty 0",
        ),
        Metric(
            name="lesion_dice",
            title="Lesion-wise Dice",
            unit="%",
            factor=100,
            better=1,
            rule=f"{_LESIONS}; no lesion and nothing false 1",
        ),
        Metric(
            name="lesion_hd95",
            title="Lesion-wise HD95",
            unit="mm",
            factor=1,
            better=-1,
            rule=f"{_LESIONS}; missed or false 374; neither 0",
        ),
        Metric(
            name="volume_error",
            title="Volume error",
            unit="ml",
            factor=1,
            better=0,
            rule="predicted minus reference",
        ),
        Metric(
            name="sensitivity",
            title="Sensitivity",
            unit="%",
            factor=100,
            better=1,
            rule="reference empty: not defined, left out of means",
        ),
        Metric(
            name="specificity",
            title="Specificity",
            unit="%",
            factor=100,
            better=1,
            rule="over the whole own grid, air included",
        ),
        Metric(
            name="ece",
            title="Calibration error",
            unit="%",
            factor=100,
            better=-1,
            rule="ECE of the region's probability over the brain, 15 bins",
        ),
        Metric(
            name="brier",
            title="Brier score",
            unit="%",
            factor=100,
            better=-1,
            rule="mean squared error of the region's probability over the brain",
        ),
    )
}
"""Metrics by name, in the order of tables."""
OF_PROBABILITIES = ("ece", "brier")
"""Metrics of probabilities; all others are metrics of masks."""


@dataclass(frozen=True)
class Score:
    """One line of `scores.csv`."""

    study: str
    subset: str
    region: str
    """WT, TC, ET, RC or ET_pp."""
    metric: str
    protocol: str
    value: float
    """Value of the metric, not multiplied by `Metric.factor`; NaN where the metric is not defined."""
    predicted_ml: float
    reference_ml: float


class Scores:
    """All scores of an evaluation, as arrays of studies by subsets; NaN where there is none.

    Args:
        lines: Lines of `scores.csv`.
        studies: Rows of the arrays. By default those of the lines.
        subsets: Columns of the arrays. By default those of the lines, in the order of `SUBSETS`.
    """

    def __init__(
        self, lines: Sequence[Score], studies: Sequence[str] | None = None, subsets: Sequence[str] | None = None
    ) -> None:
        self.lines = lines
        self.studies = list(studies or dict.fromkeys(line.study for line in lines))
        self.subsets = list(subsets or _present([s.key for s in SUBSETS], {line.subset for line in lines}))
        self.regions = _present(REGIONS, {line.region for line in lines})
        self.metrics = _present(METRICS, {line.metric for line in lines})

    def array(self, metric: str, region: str) -> Float[np.ndarray, "study subset"]:
        """Return a metric of a region. Raises: KeyError if no line has both."""
        return self._arrays[metric, region]

    def volumes_ml(self, region: str) -> tuple[Float[np.ndarray, "study subset"], Float[np.ndarray, "study subset"]]:
        """Return the predicted and the reference volume of a region, in ml."""
        return self._arrays["predicted_ml", region], self._arrays["reference_ml", region]

    def restricted_to(self, studies: Sequence[str], subsets: Sequence[str]) -> Scores:
        """Return the scores of some studies and subsets, as rows and columns in the order given."""
        kept = [line for line in self.lines if line.study in set(studies) and line.subset in set(subsets)]
        return Scores(kept, studies, subsets)

    @property
    def complete(self) -> list[str]:
        """Studies that were scored on every subset, in the order of the rows. Subsets can be compared on them."""
        scored = ~np.isnan(self._arrays["reference_ml", self.regions[0]]).any(1)
        return [study for study, whole in zip(self.studies, scored, strict=True) if whole]

    @cached_property
    def _arrays(self) -> Mapping[tuple[str, str], Float[np.ndarray, "study subset"]]:
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self.studies, self.subsets))
        names = [*self.metrics, "predicted_ml", "reference_ml"]
        blank = np.full((len(self.studies), len(self.subsets)), np.nan)
        arrays = {(name, region): blank.copy() for name in names for region in self.regions}
        for line in self.lines:
            place = rows[line.study], columns[line.subset]
            arrays[line.metric, line.region][place] = line.value
            arrays["predicted_ml", line.region][place] = line.predicted_ml
            arrays["reference_ml", line.region][place] = line.reference_ml
        return arrays


def write_scores(path: Path, lines: Sequence[Score]) -> None:
    """Write lines as a tidy CSV, with a header. Numbers are rounded to `DECIMALS` decimals."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Score)], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({k: round(v, DECIMALS) if isinstance(v, float) else v for k, v in asdict(line).items()})


def read_scores(path: Path) -> Scores:
    """Read the scores of a CSV. Raises: InputError if it is missing, damaged or without a line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lines = [
            Score(
                study=row["study"],
                subset=row["subset"],
                region=row["region"],
                metric=row["metric"],
                protocol=row["protocol"],
                value=float(row["value"]),
                predicted_ml=float(row["predicted_ml"]),
                reference_ml=float(row["reference_ml"]),
            )
            for row in rows
        ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} does not hold scores ({error}). Make them with `glimpseg evaluate`.") from error
    if not lines:
        raise InputError(f"{path} has no score. Run `glimpseg evaluate` again.")
    return Scores(lines)


def _present(known: Iterable[str], present: set[str]) -> list[str]:
    """Return the present names: first those of `known`, in its order, then any others."""
    ordered = [name for name in known if name in present]
    return ordered + sorted(present - set(ordered))


def metrics_named(text: str) -> tuple[str, ...]:
    """Return the metrics that a text names, in the order of tables.

    Args:
        text: `all`, or names separated by commas.

    Raises: UsageError for an unknown name, or none.
    """
    if not text.strip():
        raise UsageError(f"--metrics names none. Choose among {', '.join(METRICS)}, or all.")
    names = list(METRICS) if text == "all" else [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UsageError(f"'{unknown[0]}' is not a metric. Choose among {', '.join(METRICS)}, or all.")
    return tuple(name for name in METRICS if name in names)
