"""Evaluate a model twice, once undisturbed and once killed with -9 at random moments, and compare `scores.csv`.

    python tests/robustness/kill_evaluation.py MODEL --data DIR -o OUT [--kills 3] [--seed 0]

The undisturbed evaluation is kept in OUT/whole (and used as it is if it is there already), the other in OUT/killed.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

from glimpseg.results.folder import SCORES, STUDIES, SUMMARY

SECONDS = 25
"""A kill comes at any moment within this time after one more study is done."""


def main() -> int:
    """Prints a line for each kill and the digests; the exit code says whether they are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    whole, killed = arguments.output / "whole", arguments.output / "killed"

    begun = time.time()
    if not (whole / SCORES).exists():
        start(arguments, whole).wait()
        print(f"undisturbed evaluation: {time.time() - begun:.0f} s", flush=True)
    rng = random.Random(arguments.seed)
    for kill in range(1, arguments.kills + 1):
        before = done(killed)
        process = start(arguments, killed)
        while process.poll() is None and done(killed) == before:
            time.sleep(0.05)
        delay = rng.uniform(0, SECONDS)
        try:
            process.wait(delay)
            print(f"kill {kill}: the evaluation had ended before", flush=True)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"kill {kill}: {delay:4.1f} s after a study was done; {done(killed)} studies are whole", flush=True)
    start(arguments, killed).wait()
    equal = True
    for name in (SCORES, SUMMARY):
        digests = [hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (whole, killed)]
        print(f"{name}\n  undisturbed {digests[0]}\n  killed      {digests[1]}")
        equal &= digests[0] == digests[1]
    print("equal" if equal else "DIFFERENT")
    return int(not equal)


def done(place: Path) -> int:
    """Number of studies that have their file."""
    return len(list((place / STUDIES).glob("[!.]*.json")))


def start(arguments: argparse.Namespace, place: Path) -> subprocess.Popen[bytes]:
    """An evaluation in a process of its own, resuming where the last one stopped."""
    command = [sys.executable, "-m", "glimpseg", "-q", "evaluate", str(arguments.model), "--data", str(arguments.data)]
    return subprocess.Popen([*command, "-o", str(place), "--resume", "--device", "cpu"], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
