"""Evaluation folder on disk: the names of its files, and a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg.errors import InputError
from glimpseg.results.scores import Scores, read_scores
from glimpseg.runtime.documents import BROKEN, read_json

SCORES, SUMMARY, RECORD = "scores.csv", "summary.json", "evaluation.json"
STUDIES, LABELS = "studies", "labels"
MEAN = "mean"
"""Name that stands for a subset: each case's mean over the subsets."""
COMPARISON, COMPARISONS, CASES = "comparison.json", "comparisons.csv", "cases.csv"
"""Files that `compare` writes into a folder of its own."""


@dataclass(frozen=True)
class Evaluation:
    """Content of a finished evaluation."""

    folder: Path
    scores: Scores
    """Content of `scores.csv`."""
    summary: Mapping[str, Any]
    """Content of `summary.json`: means, intervals, sequence values ..."""
    record: Mapping[str, Any]
    """Content of `evaluation.json`: model, rules, studies, failures ..."""

    @property
    def title(self) -> str:
        """Method and seed, or method and `imported weights`, for a heading."""
        recipe = self.record["recipe"]
        origin = "imported weights" if "imported" in self.record["model"] else f"seed {recipe['seed']}"
        return f"{recipe['method']}, {origin}"

    @property
    def trained(self) -> str:
        """Origin of the model, and the choices with which it segmented if its method leaves them open, in words."""
        model = self.record["model"]
        return ", ".join([_origin(model, self.record["recipe"]["seed"]), *_chosen(model)])


def _origin(model: Mapping[str, Any], seed: int) -> str:
    if "imported" in model:
        return f"weights imported from {model['imported']['file']}"
    prior = model.get("data", {}).get("prior", {})
    prior_words = f", prior {prior['kind']}" if prior else ""
    if prior.get("uses_reference"):
        prior_words += " (made of the references themselves: an upper bound, no result)"
    return f"seed {seed}, {model.get('steps', 'unknown')} steps{prior_words}"


def _chosen(model: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in model.get("choices", {}).items()]


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read the folder that `evaluate` wrote.

    Raises: InputError if a file is missing or damaged, or if the evaluation is not finished.
    """
    folder = Path(folder)
    try:
        record = read_json(folder / RECORD, finite=False)
        finished = record["finished"]
        summary = read_json(folder / SUMMARY, finite=False) if finished else {}
        digest = hashlib.sha256((folder / SCORES).read_bytes()).hexdigest() if finished else ""
    except (*BROKEN, OSError) as error:
        raise InputError(f"{folder} is not an evaluation ({error}). Make one with `glimpseg evaluate`.") from error
    if not finished:
        raise InputError(f"The evaluation in {folder} is not finished. Go on with `glimpseg evaluate ... --resume`.")
    if digest != record.get("scores"):
        raise InputError(
            f"{folder / SCORES} is not the file that `glimpseg evaluate` wrote: its checksum differs. Run that again "
            "with --resume, which writes it anew."
        )
    return Evaluation(folder, read_scores(folder / SCORES), summary, record)
