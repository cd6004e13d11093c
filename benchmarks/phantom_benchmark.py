"""Train methods under one equal budget on phantoms, score all 15 subsets, and compare them case by case.

    python benchmarks/phantom_benchmark.py -o benchmark [--methods unet rfnet mmformer] [--seeds 0 1] [--steps 450]
    python benchmarks/phantom_benchmark.py -o benchmark --methods mstkdnet --variant no-gram mstkdnet config.gram=0
    python benchmarks/phantom_benchmark.py -o benchmark --methods smml --training-cases 64

Every run sees the same stream of phantoms, or the same `--training-cases` (crops differ by seed), for the same number
of steps of the method's recipe `phantom`; all are scored under the protocol `clinical` on the same held-out phantoms.
After a stop, the same command goes on with what is missing. docs/methods/comparison.md says what the numbers can tell.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FIRST_TEST_SEED = 900_000
"""First seed of the held-out phantoms; the training stream begins at a million."""
FIRST_TRAINING_SEED = 500_000
SPACING_MM = 2.0
"""Voxel side of the held-out phantoms. The networks work on 3 mm; results are scored on these voxels."""


def main() -> None:
    """Train, score and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["unet", "rfnet", "mmformer"])
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME METHOD", "FIELD=VALUE"),
        help="one more run: its name, its method, and what it changes in the recipe",
    )
    parser.add_argument("--training-cases", type=int, default=0, help="a fixed list in place of the stream")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--cases", type=int, default=16, help="held-out phantoms")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, which share the processor's threads")
    wanted = parser.parse_args()
    cases, place = wanted.output / "phantoms", wanted.output
    if not cases.exists():
        count, seed, spacing = str(wanted.cases), str(FIRST_TEST_SEED), str(SPACING_MM)
        glimpseg("phantom", "-o", cases, "--count", count, "--seed", seed, "--spacing", spacing)
    archive = training_phantoms(place, wanted.training_cases) if wanted.training_cases else None
    plans = [Plan(method, method, ()) for method in wanted.methods]
    plans += [Plan(name, method, tuple(changes)) for name, method, *changes in wanted.variant]
    runs = [(plan, seed) for plan in plans for seed in wanted.seeds]
    threads = str(max((os.cpu_count() or 1) // wanted.at_once, 1))
    with ThreadPoolExecutor(wanted.at_once) as pool:
        list(pool.map(lambda run: train_and_score(place, archive, *run, wanted.steps, threads), runs))
    evaluations = [place / f"{plan.name}-{seed}-evaluation" for plan, seed in runs]
    glimpseg("compare", *evaluations, "-o", place / "comparison", "--overwrite")


class Plan(NamedTuple):
    """One run, repeated for every seed."""

    name: str
    method: str
    changes: tuple[str, ...]
    """`field=value` of the recipe `phantom`."""


def training_phantoms(place: Path, count: int) -> Path:
    """Make a folder of phantoms to train on, at the recipes' spacing."""
    archive = place / "training"
    if not archive.exists():
        glimpseg("phantom", "-o", archive, "--count", str(count), "--seed", str(FIRST_TRAINING_SEED), "--spacing", "3")
    return archive


def train_and_score(place: Path, archive: Path | None, plan: Plan, seed: int, steps: int, threads: str) -> None:
    """Train and evaluate one run, or go on with it."""
    run, evaluation = place / f"{plan.name}-{seed}", place / f"{plan.name}-{seed}-evaluation"
    train(run, archive, plan, seed, steps, threads)
    if not (evaluation / "report.html").exists():
        go_on = ["--resume"] if evaluation.exists() else []
        glimpseg("evaluate", run, "--data", place / "phantoms", "-o", evaluation, *go_on, threads=threads)


def train(run: Path, archive: Path | None, plan: Plan, seed: int, steps: int, threads: str) -> None:
    """Train, or go on with the training."""
    if not (run / "model").exists():
        changes = [f"--set={change}" for change in (f"optim.steps={steps}", f"seed={seed}", *plan.changes)]
        data = ["--data", archive, "--cache", archive.with_name("cache")] if archive else []
        go_on = ["--resume"] if run.exists() else []
        glimpseg("train", f"{plan.method}/phantom", "-o", run, *changes, *data, *go_on, threads=threads)


def glimpseg(*arguments: str | Path, threads: str | None = None) -> None:
    """Run the command line in a process."""
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    subprocess.run([sys.executable, "-m", "glimpseg", *map(str, arguments)], check=True, env=environment)


if __name__ == "__main__":
    main()
