"""Published tables of all 15 subsets, as their sources print them, with the protocol of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from glimpseg.errors import UsageError
from glimpseg.modality import SUBSETS


@dataclass(frozen=True)
class PublishedTable:
    """Table that one source prints for one method on one dataset."""

    dataset: str
    method: str
    split: str
    """Studies that it was made on, as the source says."""
    source: str
    """Citation of the source."""
    protocol: Mapping[str, str]
    """Facts that decide if numbers can be compared; `not stated` if the source does not say."""
    cautions: tuple[str, ...]
    """Sentences on errors and contradictions in the source."""
    values: Mapping[tuple[str, str, str], float]
    """Values by metric (`dice` in per cent, `hd95` in mm), region and subset key, as printed."""
    doubtful: frozenset[tuple[str, str]]
    """Metrics and regions whose rows contradict themselves in the source; the cautions say how."""

    def mean(self, metric: str, region: str) -> float:
        """Return the plain mean over the 15 subsets. Raises: KeyError if the source has no such values."""
        return sum(self.values[metric, region, subset.key] for subset in SUBSETS) / len(SUBSETS)


def datasets() -> tuple[str, ...]:
    """Return the names of the datasets that have tables."""
    return tuple(dict.fromkeys(table.dataset for table in _all()))


def tables(dataset: str) -> tuple[PublishedTable, ...]:
    """Return all tables of a dataset (case does not matter). Raises: UsageError if there are none."""
    matching = tuple(table for table in _all() if table.dataset.lower() == dataset.lower())
    if not matching:
        raise UsageError(f"No published tables of '{dataset}' are known. There are those of {', '.join(datasets())}.")
    return matching


def dataset_of(split: str | None) -> str | None:
    """Return the dataset of a list such as `brats2018-1/test`; None without a list, or if the dataset has no tables."""
    year = split.split("/")[0].split("-")[0] if split else None
    return next((name for name in datasets() if name.lower() == year), None)


@cache
def _all() -> tuple[PublishedTable, ...]:
    place = resources.files(__name__)
    values: dict[tuple[str, str], dict[tuple[str, str, str], float]] = {}
    for row in csv.DictReader(place.joinpath("tables.csv").read_text("utf-8").splitlines()):
        of = values.setdefault((row["dataset"], row["method"]), {})
        of[row["metric"], row["region"], row["subset"]] = float(row["value"])
    sources = json.loads(place.joinpath("sources.json").read_text("utf-8"))
    return tuple(_table(*key, of, sources) for key, of in values.items())


def _table(
    dataset: str, method: str, values: Mapping[tuple[str, str, str], float], sources: list[Mapping[str, Any]]
) -> PublishedTable:
    """Make one table. Entries of `sources.json` apply to datasets and methods; later entries add to earlier ones."""
    entries = [
        entry for entry in sources if dataset in entry["datasets"] and method in entry.get("methods", [method])
    ]  # fmt: skip
    protocol = {fact: text for entry in entries for fact, text in entry.get("protocol", {}).items()}
    return PublishedTable(
        dataset=dataset,
        method=method,
        split=next(entry["split"] for entry in entries if "split" in entry and dataset in entry["datasets"]),
        source=next(entry["source"] for entry in reversed(entries) if "source" in entry),
        protocol=protocol,
        cautions=tuple(text for entry in entries for text in entry.get("cautions", [])),
        values=values,
        doubtful=frozenset((metric, region) for entry in entries for metric, region in entry.get("doubtful", [])),
    )
