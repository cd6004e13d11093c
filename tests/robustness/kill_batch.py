"""Segment a tree of phantoms, some broken; kill the batch at random moments, resume it, and compare.

    python tests/robustness/kill_batch.py MODEL -o OUT [--studies 40] [--broken 4] [--kills 2] [--seed 0]

The same tree is also segmented undisturbed. Both results have to be the same files, and each study segmented once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from glimpseg.batch.progress import FAILURES
from glimpseg.segmentation.result import RECORD

COARSE_MM = "4"
"""Voxel side of the phantoms; coarse, because the masks do not matter here."""


def main() -> int:
    """Prints a line for each kill and what came of it; the exit code says whether all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--broken", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    rng, tree = random.Random(wanted.seed), wanted.output / "tree"
    if not tree.exists():
        count = ["--count", str(wanted.studies), "--spacing", COARSE_MM, "--incomplete", "0.5"]
        subprocess.run([*glimpseg(), "phantom", "-o", tree, *count], check=True, capture_output=True)
        for study in rng.sample(sorted(path for path in tree.iterdir() if path.is_dir()), wanted.broken):
            image = sorted(path for path in study.iterdir() if "-seg" not in path.name)[0]
            image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
            print(f"broken: {image.name}", flush=True)

    begun = time.perf_counter()
    whole = start(wanted, "whole", [])
    whole.wait()
    lasted = time.perf_counter() - begun
    print(f"undisturbed: exit code {whole.returncode}, {lasted:.0f} s", flush=True)
    options: list[str] = []
    for kill in range(1, wanted.kills + 1):
        process = start(wanted, "killed", options)
        options = ["--resume"]
        time.sleep(lasted * rng.uniform(0.3, 0.6))
        process.kill()
        process.wait()
        there = len(list((wanted.output / "killed").glob(f"*/{RECORD}")))
        print(f"kill {kill}: {there} studies there", flush=True)
    last = start(wanted, "killed", options)
    last.wait()
    print(f"continued to the end: exit code {last.returncode}", flush=True)
    return verdict(wanted)


def verdict(wanted: argparse.Namespace) -> int:
    """0 if the two outputs agree and every study was segmented once."""
    one, other = (masks(wanted.output / name) for name in ("whole", "killed"))
    lines = (wanted.output / "killed" / "batch.jsonl").read_text("utf-8").splitlines()
    often = Counter(json.loads(line)["study"] for line in lines)
    failed = [
        {entry["study"] for entry in json.loads((wanted.output / name / FAILURES).read_text("utf-8"))["failed"]}
        for name in ("whole", "killed")
    ]
    left = list((wanted.output / "killed").glob(".*.tmp-*"))
    print(f"studies: {len(one)} and {len(other)}; the same masks: {one == other}")
    print(f"failed: {len(failed[0])} and {len(failed[1])}; the same: {failed[0] == failed[1]}")
    print(f"segmented more than once: {sum(count > 1 for count in often.values())}; half-written folders: {len(left)}")
    whole = len(one) == wanted.studies - wanted.broken and len(failed[0]) == wanted.broken
    return 0 if whole and one == other and failed[0] == failed[1] and max(often.values()) == 1 and not left else 1


def masks(folder: Path) -> dict[str, str]:
    """The digest of each study's mask."""
    paths = sorted(folder.glob("*/seg.nii.gz"))
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(wanted: argparse.Namespace, name: str, options: list[str]) -> subprocess.Popen[bytes]:
    """A segmentation of the tree."""
    place = wanted.output / name
    command = [*glimpseg(), "segment", "-i", wanted.output / "tree", "-m", wanted.model, "-o", place, "--raw", "no"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def glimpseg() -> list[str]:
    """The command line, in this Python."""
    return [sys.executable, "-m", "glimpseg"]


if __name__ == "__main__":
    sys.exit(main())
