"""Damaged files that glimpseg wrote itself: evaluations, counts, settings and states of runs; see `fuzz_files.py`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bytes import cut, flip, insert
from fuzz_tables import as_table
from fuzz_trees import as_json, as_yaml, damaged_tree

SCORES = [
    ["study", "subset", "region", "metric", "protocol", "value", "predicted_ml", "reference_ml"],
    ["S1", "t1c", "WT", "dice", "native", "0.9", "12.5", "13.5"],
    ["S2", "t1c", "WT", "dice", "native", "0.8", "2.5", "3.5"],
]
SCORED = {
    "digest": "00", "reference": "11", "seconds": 1.5, "available": "t1c", "warnings": [],
    "scores": [["S1", "t1c", "WT", "dice", "native", 0.9, 12.5, float("nan")]],
    "reliability": {
        "t1c": {"WT": {"voxels": [1, 2], "predicted": [0.1, 0.9], "observed": [0, 1], "squared_error": 0.1}}
    },
}  # fmt: skip
SETTINGS = {"method": "unet", "optim": {"steps": 20, "learning_rate": 1e-3}, "labels": ["NCR", "ED", "ET"], "seed": 0}


def result(rng: np.random.Generator, folder: Path) -> Path:
    """A folder of results, or of a run, one of whose files has something wrong."""
    return (_evaluation, _scored, _counts, _settings)[int(rng.integers(4))](rng, folder)


def _evaluation(rng: np.random.Generator, folder: Path) -> Path:
    place = folder / "evaluation"
    place.mkdir()
    table = as_table(rng, SCORES, ",")
    record: Any = {
        "finished": True,
        "scores": hashlib.sha256(table).hexdigest(),
        "model": {"steps": 3},
        "recipe": SETTINGS,
    }
    (place / "scores.csv").write_bytes(table)
    (place / "summary.json").write_bytes(as_json(rng, damaged_tree(rng, {"means": {"WT": 0.9}})))
    spoiled = rng.random() < 0.4
    (place / "evaluation.json").write_bytes(
        as_json(rng, damaged_tree(rng, record)) if spoiled else json.dumps(record).encode()
    )
    return place


def _scored(rng: np.random.Generator, folder: Path) -> Path:
    (folder / "scored" / "studies").mkdir(parents=True)
    (folder / "scored" / "studies" / "S1.json").write_bytes(as_json(rng, damaged_tree(rng, SCORED)))
    return folder / "scored"


def _counts(rng: np.random.Generator, folder: Path) -> Path:
    path = folder / "counts.npz"
    lines = [["S1", "t1c", "WT", "dice", "native", 0.9, 12.5, 13.5]]
    rows = np.arange(32.0).reshape(4, 8)
    np.savez_compressed(path, lines=np.array(json.dumps(lines)), **{"t1c WT 1": rows})
    content = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 3))):
        (flip, flip, cut, insert)[int(rng.integers(4))](rng, content)
    path.write_bytes(content)
    return path


def _settings(rng: np.random.Generator, folder: Path) -> Path:
    (folder / "run").mkdir()
    if rng.random() < 0.5:
        (folder / "run" / "recipe.yaml").write_bytes(as_yaml(rng, damaged_tree(rng, SETTINGS)))
    else:
        (folder / "run" / "plan.json").write_bytes(as_json(rng, damaged_tree(rng, SETTINGS)))
    return folder / "run"


def read_result(path: Path) -> None:
    """Read a folder of results as `report`, `compare`, `calibrate` and `--resume` do."""
    from glimpseg.evaluation.counts import read_counts
    from glimpseg.evaluation.study_file import read_scored_study
    from glimpseg.results.folder import read_evaluation
    from glimpseg.runtime.resumable import Resumable

    if path.name == "evaluation":
        read_evaluation(path)
    elif path.name == "scored":
        read_scored_study(path, "S1")
    elif path.name == "counts.npz":
        read_counts(path)
    else:
        (file,) = (found.name for found in path.iterdir())
        Resumable(noun="run", file=file).open(path, SETTINGS, resume=True)
