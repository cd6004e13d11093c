"""Segment a tree of a thousand studies in one batch, and watch the process: memory, descriptors, processes, files.

    python tests/robustness/soak.py -o OUT [--studies 1000] [--every 50] [--options "--uncertainty none"]

The tree holds links to two images of each of a few phantoms of 4 mm, each study with an id and a folder of its own. One
study in a hundred is damaged, so that failures are among them. The exit code is 1 if memory rises by more than
`LIMIT_MB` for a thousand studies, if descriptors, threads, processes or files are left, or if a study is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import workbench

LIMIT_MB = 40.0
"""Most MB that the memory may rise for 1,000 studies, over the second half. The command line keeps freed memory (see
`cli.malloc`): memory rises in steps to its highest need, which a leak would go on to exceed."""
FIRST = 100
"""Studies before the slope is fitted: caches and pools of memory fill up."""
LEAST_SAMPLES = 3
DAMAGED_EVERY = 100
PHANTOMS = 4


@dataclass(frozen=True)
class Sample:
    """What the process held when a number of studies was done."""

    studies: int
    seconds: float
    memory_mb: float
    descriptors: int
    threads: int
    children: int
    temporary: int
    """Files and folders in TMPDIR."""
    hidden: int
    """Unfinished folders in the output."""


def main() -> int:
    """Prints a row for each sample, then the slope and the findings."""
    options = workbench.parser(__doc__)
    options.add_argument("--studies", type=int, default=1000)
    options.add_argument("--every", type=int, default=50)
    options.add_argument("--options", default="", help="Further options of segment, in one word.")
    arguments = options.parse_args()
    workbench.imports()
    bench = workbench.Bench(place=arguments.output, studies=PHANTOMS)
    arguments.output.mkdir(parents=True, exist_ok=True)
    tree, damaged = make_tree(bench, arguments.studies)
    output, temporary = bench.fresh("soak"), Path(tempfile.mkdtemp(prefix="tmp-", dir=bench.place))
    words: list[workbench.Word] = ["segment", "-i", tree, "-m", bench.model, "-o", output, *arguments.options.split()]
    samples: list[Sample] = []

    def rows() -> Iterator[tuple[str, ...]]:
        for sample in watch(words, output, temporary, arguments.every):
            samples.append(sample)
            yield tuple(f"{value:.1f}" if isinstance(value, float) else str(value) for value in astuple(sample))

    head = ("studies", "seconds", "memory MB", "descriptors", "threads", "children", "in TMPDIR", "unfinished")
    workbench.table(head, rows())
    return report(samples, output, temporary, (arguments.studies - damaged, damaged))


def make_tree(bench: workbench.Bench, count: int) -> tuple[Path, int]:
    """Makes a tree of links; returns it with the number of damaged studies."""
    tree = bench.place / f"tree-{count}"
    shutil.rmtree(tree, ignore_errors=True)
    sources = sorted(path for path in bench.data.iterdir() if path.is_dir())
    damaged = 0
    for number in range(count):
        source, place = sources[number % len(sources)], tree / f"STUDY-{number:05d}"
        for path in sorted(source.rglob("*")):
            if path.is_file() and "-seg" not in path.name:
                target = place / str(path.relative_to(source)).replace(source.name, place.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        if number % DAMAGED_EVERY == DAMAGED_EVERY // 2:
            victim = next(path for path in sorted(place.rglob("*")) if path.is_file())
            half = victim.read_bytes()[: victim.stat().st_size // 2]
            victim.unlink()
            victim.write_bytes(half)
            damaged += 1
    return tree, damaged


def watch(words: list[workbench.Word], output: Path, temporary: Path, every: int) -> Iterator[Sample]:
    """Runs the batch in a process of its own and yields a sample whenever `every` more studies are done."""
    begun, due = time.perf_counter(), every
    said = (output.parent / f"{output.name}.log").open("wb")
    process = workbench.start_real(words, {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}, said.fileno())
    while process.poll() is None:
        done = _studies_done(output)
        if done >= due:
            due = done - done % every + every
            try:
                yield sample(process.pid, done, time.perf_counter() - begun, (output, temporary))
            except (FileNotFoundError, ProcessLookupError):
                break
        time.sleep(0.05)
    process.wait()
    said.close()


def sample(pid: int, studies: int, seconds: float, places: tuple[Path, Path]) -> Sample:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    children = sum(len(path.read_text().split()) for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return Sample(
        studies=studies,
        seconds=seconds,
        memory_mb=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        children=children,
        temporary=sum(1 for _ in places[1].rglob("*")),
        hidden=len(list(places[0].glob(".*.tmp-*"))),
    )


def report(samples: list[Sample], output: Path, temporary: Path, expected: tuple[int, int]) -> int:
    """Prints the slope, and all that is not as it should be; returns the exit code."""
    late = [one for one in samples if one.studies >= FIRST]
    slope = error = 0.0
    for part in (late, samples[len(samples) // 2 :]):
        if len(part) > LEAST_SAMPLES:
            slope, error = slope_of(part)
            pace = (part[-1].seconds - part[0].seconds) / (part[-1].studies - part[0].studies)
            between = f"from study {part[0].studies} to {part[-1].studies}"
            print(f"memory {slope:+.1f} +- {error:.1f} MB for 1,000 studies, {pace:.2f} s a study, {between}")
    failed = len(json.loads((output / "failures.json").read_text("utf-8"))["failed"])
    counts = len(list(output.glob("*/run.json"))), failed
    half = len(samples) // 2
    findings = [f"memory rises by {slope:.0f} MB for 1,000 studies"] if slope - 2 * error > LIMIT_MB else []
    for name in ("descriptors", "threads", "children", "temporary", "hidden"):
        before, after = (max(getattr(one, name) for one in part) for part in (samples[:half], samples[half:]))
        findings += [f"{name}: at most {before} in the first half, {after} in the second"] if after > before + 1 else []
    left = [*workbench.temporary_left(output), *(str(path) for path in temporary.rglob("*"))]
    findings += [f"left behind: {left[:5]}"] if left else []
    findings += [f"(written, failed) is {counts} and should be {expected}"] if counts != expected else []
    print(f"{counts[0]} studies written, {counts[1]} damaged ones in failures.json")
    print("\n".join(findings) or "no finding")
    return int(bool(findings))


def slope_of(samples: list[Sample]) -> tuple[float, float]:
    """Slope of the memory in MB for 1,000 studies, and its standard error."""
    places, memory = [one.studies / 1000 for one in samples], [one.memory_mb for one in samples]
    (slope, _), covariance = np.polyfit(places, memory, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _studies_done(output: Path) -> int:
    try:
        return (output / "batch.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
