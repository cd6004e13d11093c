"""Statistics of patients beside those of phantoms, in files and in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glimpseg.errors import InputError
from glimpseg.runtime.atomic import write_text
from likeness.lesions import Statistics

FEWEST = 3
"""Fewest cases of either side that a statistic must stand for."""
LEAST_DEVIATION = 1e-6
"""Smallest standard deviation that a distance is divided by."""
FAR_OFF = 1.5
"""A distance beyond this counts as far off."""
CENTRAL = (2.5, 97.5)
"""Percentiles of the phantoms between which a real value is covered."""


@dataclass(frozen=True)
class Measured:
    """Statistics of the cases of one population."""

    population: str
    spacing_mm: float
    cases: Mapping[str, Statistics]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write them as JSON, with what is known `about` the machine and the versions."""
        content = {"population": self.population, "spacing_mm": self.spacing_mm, "cases": dict(self.cases), **about}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read a file that `write` wrote. Raises: InputError for another file."""
        try:
            content = json.loads(path.read_text("utf-8"))
            return cls(content["population"], float(content["spacing_mm"]), content["cases"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} should be a file that `realism.py measure` wrote, but it cannot be read as one ({error!r}). "
                "Measure the cases again."
            ) from error

    def values(self, statistic: str) -> list[float]:
        """Values of a statistic over the cases that have it."""
        return [found[statistic] for found in self.cases.values() if statistic in found]


class Compared(NamedTuple):
    """One statistic of real cases against phantoms."""

    statistic: str
    real: Sequence[float]
    drawn: Sequence[float]

    @property
    def z(self) -> float:
        """Mean of the real cases less that of the phantoms, in standard deviations between cases (mean of both sides).

        The mean of the two variances is used, so that phantoms without any spread give a finite number.
        """
        variance = (np.var(self.real, ddof=1) + np.var(self.drawn, ddof=1)) / 2
        return float(np.mean(self.real) - np.mean(self.drawn)) / max(float(np.sqrt(variance)), LEAST_DEVIATION)

    @property
    def covered(self) -> float:
        """Share of the real values within the central 95 % of the phantoms."""
        low, high = np.percentile(self.drawn, CENTRAL)
        return float(np.mean([low <= value <= high for value in self.real]))

    @property
    def row(self) -> str:
        """Line of a Markdown table."""
        sides = [f"{np.mean(v):.2f} +- {np.std(v, ddof=1):.2f} | {len(v)}" for v in (self.real, self.drawn)]
        return f"| {self.statistic} | {sides[0]} | {sides[1]} | {self.z:+.1f} | {100 * self.covered:.0f} % |"


def compared(real: Measured, drawn: Measured) -> list[Compared]:
    """Compare every statistic that at least `FEWEST` cases of both sides have, furthest off first.

    Raises: InputError if the two were measured at different spacings.
    """
    if real.spacing_mm != drawn.spacing_mm:
        raise InputError(
            f"{real.population} was measured at {real.spacing_mm:g} mm and {drawn.population} at "
            f"{drawn.spacing_mm:g} mm. Measure both at the same spacing."
        )
    names = sorted({name for found in real.cases.values() for name in found})
    rows = [Compared(name, real.values(name), drawn.values(name)) for name in names]
    rows = [row for row in rows if min(len(row.real), len(row.drawn)) >= FEWEST]
    return sorted(rows, key=lambda row: -abs(row.z))


def summary(rows: Sequence[Compared]) -> str:
    """Return a Markdown table of how far off each kind of statistic is; the kind is the first part of its name."""
    kinds = {"all": list(rows)} | {
        kind: [row for row in rows if row.statistic.startswith(f"{kind}/")]
        for kind in sorted({row.statistic.split("/")[0] for row in rows})
    }
    text = ["| kind | statistics | covered | median abs z | far off |", "|---|--:|--:|--:|--:|"]
    for kind, members in kinds.items():
        distances = np.array([abs(row.z) for row in members])
        share = 100 * np.mean([row.covered for row in members])
        far = int((distances > FAR_OFF).sum())
        text.append(f"| {kind} | {len(members)} | {share:.0f} % | {np.median(distances):.2f} | {far} |")
    return "\n".join(text) + "\n"


def table(rows: Sequence[Compared]) -> str:
    """Return a Markdown table with one line for each statistic."""
    head = "| statistic | real, mean +- SD | cases | phantoms, mean +- SD | cases | z | covered |"
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|", *(row.row for row in rows)]) + "\n"
