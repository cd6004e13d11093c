"""Run contestants in turns, print the result, and record it for `results.py`.

In every round each contestant runs once; the order turns from round to round, so that other load on the machine
affects all of them. A ratio is taken within each round; the median and the range of the rounds are shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from glimpseg.runtime.atomic import write_text

PACKAGES = ("glimpseg", "torch", "monai", "numpy", "scipy", "nibabel", "openvino", "onnxruntime", "isal", "blosc2")


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Measurement of several ways to do the same."""

    question: str
    setting: str
    """Conditions of the measurement, and number of rounds."""
    unit: str
    ours: str
    """The contestant that the others are compared with."""
    rounds: Mapping[str, Sequence[float]]
    """One number for each round, by contestant."""
    agreement: str
    """Statement about how far the results agree."""

    def ratio(self, name: str) -> tuple[float, float, float]:
        """Ratio of a contestant to `ours`: median, least and most of the rounds."""
        each = [theirs / own for theirs, own in zip(self.rounds[name], self.rounds[self.ours], strict=True)]
        return statistics.median(each), min(each), max(each)


def in_turns(contestants: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each contestant in every round. Run all once before, to warm up and to compare what they return."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repeat):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begun = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def in_processes(forms: Sequence[str], repeat: int, options: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Measurements of each form in its own processes.

    In every round this script runs once for each form, with the options of this call, `options` and the form behind
    them, and prints JSON as its last line.
    """
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
    for number in range(repeat):
        first = number % len(forms)
        for form in (*forms[first:], *forms[:first]):
            command = [sys.executable, *sys.argv, *options, form]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[form].append(json.loads(done.splitlines()[-1]))
    return found


def furthest(one: Sequence[float], other: Sequence[float], bound: float) -> float:
    """The largest relative difference of what two forms computed. Raises: SystemExit if it reaches the bound."""
    worst = max(abs(a - b) / max(a, b) for a, b in zip(one, other, strict=True))
    if not worst < bound:
        raise SystemExit(f"The forms do not compute the same: they differ by {worst:.1e}.")
    return worst


def steps_of(
    subject: str,
    setting: str,
    ours: str,
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Sequence[tuple[str, str, str, float]],
    agreement: str,
) -> list[Contest]:
    """A contest for each row: key of the measurement, unit, words, and the amount that is subtracted."""
    return [
        Contest(
            question=f"{subject}: {words}",
            setting=setting,
            unit=unit,
            ours=ours,
            rounds={form: [part[what] - taken for part in parts] for form, parts in found.items()},
            agreement=agreement,
        )
        for what, unit, words, taken in rows
    ]


def add_options(parser: argparse.ArgumentParser, repeat: int) -> None:
    """Add `--repeat` and `--record`, which all benchmarks have."""
    parser.add_argument("--repeat", type=int, default=repeat, help="rounds; in each all contestants run once")
    parser.add_argument("--record", type=Path, help="a JSON file for `results.py`")


def tell(contests: Sequence[Contest], record: Path | None) -> None:
    """Print the contests, and write them to `record`."""
    for contest in contests:
        print(f"{contest.question}\n{contest.setting}. {contest.agreement}.")
        for name, values in contest.rounds.items():
            middle, low, high = contest.ratio(name)
            ratio = "" if name == contest.ours else f"  {middle:.2f} x ({low:.2f} to {high:.2f})"
            print(f"{statistics.median(values):10.3f} {contest.unit}  {name}{ratio}")
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        found = {"contests": [asdict(contest) for contest in contests], **surroundings()}
        write_text(record, json.dumps(found, indent=1) + "\n")


def surroundings() -> dict[str, Any]:
    """Record of the machine, the installed versions and the commit."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return found.stdout.strip() if found.returncode == 0 else "unknown"

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git("rev-parse", "--short", "HEAD") + (", changed" if git("status", "--porcelain", "../src") else ""),
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text("utf-8").splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
