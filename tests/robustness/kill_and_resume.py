"""Train a recipe twice, once undisturbed and once killed with -9 at random moments, and compare the weights.

    python tests/robustness/kill_and_resume.py --data DIR -o OUT [--kills 10] [--seed 0] [--set optim.steps=100]

The undisturbed run is kept in OUT/whole (and used as it is if it is there already), the other in OUT/killed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from glimpseg.model.checkpoint import newest_valid
from glimpseg.model.digests import weights_digest
from glimpseg.model.folder import WEIGHTS


def main() -> int:
    """Prints a line for each kill and the two digests; the exit code says whether they are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--recipe", default="unet/phantom")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    whole, killed = arguments.output / "whole", arguments.output / "killed"

    begun = time.time()
    if not (whole / "model").exists():
        start(arguments, whole).wait()
        print(f"undisturbed run: {time.time() - begun:.0f} s", flush=True)
    rng = random.Random(arguments.seed)
    for kill in range(1, arguments.kills + 1):
        process = start(arguments, killed)
        before = newest_valid(killed) if killed.exists() else None
        # Once a checkpoint beyond the last is there, any moment within the time that two of them take.
        while process.poll() is None and (newest_valid(killed) if killed.exists() else None) == before:
            time.sleep(0.2)
        delay = rng.uniform(0, 20)
        try:
            process.wait(delay)
            print(f"kill {kill}: the run had ended before", flush=True)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        newest = newest_valid(killed)
        print(f"kill {kill}: {delay:4.1f} s after a checkpoint; newest whole one: {newest and newest.name}", flush=True)
    start(arguments, killed).wait()
    digests = [weights_digest(load_file(run / "model" / WEIGHTS)) for run in (whole, killed)]
    print(f"undisturbed {digests[0]}\nkilled      {digests[1]}\n{'equal' if digests[0] == digests[1] else 'DIFFERENT'}")
    return int(digests[0] != digests[1])


def start(arguments: argparse.Namespace, run: Path) -> subprocess.Popen[bytes]:
    """A training process of its own, resuming where the run stopped."""
    changes = [word for change in arguments.set for word in ("--set", change)]
    command = [sys.executable, "-m", "glimpseg", "-q", "train", arguments.recipe, "--data", str(arguments.data)]
    return subprocess.Popen([*command, "-o", str(run), "--resume", "--device", "cpu", *changes])


if __name__ == "__main__":
    sys.exit(main())
