"""Move the clock while commands run and between them, give files times of the future and the past, and compare.

    python tests/robustness/clocks.py -o OUT [--only WORDS]

The clock is that of Debian's `faketime` (libfaketime, LD_PRELOAD). The time of the processor's own counter stays, as it
does when the clock of a machine is set. Nothing may depend on the clock: results are equal to those of an undisturbed
run, bit by bit, and no time in a result is negative or longer than the run.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kills
import workbench
from workbench import Bench, Done, Word

LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
JUMPS = ("-3650d", "+0", "+3650d", "-20000d", "+36500d")
"""Clocks, in days from the true one: 10 years back and ahead, 1972, and a hundred years ahead (beyond 32 bits)."""
EVERY_S = 0.3
"""Time between two jumps within a run."""
LONGEST_S = 600.0
FAR = {"1971": 40_000_000, "2100": 4_102_444_800}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One circumstance: gives what is not as it should be, nothing if all is well."""

    name: str
    run: Callable[[Bench], list[str]]


def library() -> str:
    """Path of libfaketime. Raises: SystemExit if it is not installed."""
    found = next((path for path in LIBRARIES if Path(path).exists()), None)
    if found is None:
        raise SystemExit("libfaketime is needed: apt-get install faketime")
    return found


def clock(shift: str) -> dict[str, str]:
    """Variables for a process whose clock is shifted by a constant; the times of files are the true ones."""
    constant = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1"}
    return {"LD_PRELOAD": library(), "FAKETIME": shift, **constant}


@contextmanager
def jumping(place: Path) -> Iterator[dict[str, str]]:
    """Variables for a process whose clock jumps every `EVERY_S` seconds until the block ends."""
    file, stop = place / "clock", threading.Event()
    file.write_text(JUMPS[0])

    def move() -> None:
        for shift in itertools.cycle(JUMPS):
            if stop.wait(EVERY_S):
                return
            following = place / "clock.next"
            following.write_text(shift)
            following.replace(file)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        variables = clock("+0")
        del variables["FAKETIME"]
        yield {**variables, "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    finally:
        stop.set()
        mover.join()


def real(words: list[Word], variables: dict[str, str], until: Callable[[], bool] = lambda: False) -> Done:
    """Runs a command in a process of its own; kills it as soon as `until` is true."""
    with tempfile.TemporaryFile() as said:
        process, begun = workbench.start_real(words, {"OMP_NUM_THREADS": "1", **variables}, said.fileno()), time.time()
        while process.poll() is None:
            if until() or time.time() > begun + LONGEST_S:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        said.seek(0)
        return Done(process.returncode, said.read().decode("utf-8", "replace"))


def main() -> int:
    """Prints a row for each circumstance; the exit code is 1 if there is a finding."""
    options = workbench.parser(__doc__)
    options.add_argument("--only", nargs="+", default=[""], help="Rows whose name has one of these words.")
    arguments = options.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    workbench.imports()
    bench, findings = Bench(place=arguments.output, studies=2), list[str]()
    _refuse_no_effect()

    def rows() -> Iterator[tuple[str, str]]:
        for row in ROWS:
            if any(word in row.name for word in arguments.only):
                found = row.run(bench)
                findings.extend(f"{row.name}: {text}" for text in found)
                yield row.name, "; ".join(found) or "equal"

    workbench.table(("circumstance", "result"), rows())
    print(f"\n{len(findings)} findings")
    return int(bool(findings))


def _refuse_no_effect() -> None:
    """The clock of a process must be the shifted one, or nothing is tested."""
    show = [sys.executable, "-c", "import time; print(time.time())"]
    told = subprocess.run(show, env={**os.environ, **clock("-3650d")}, capture_output=True, text=True, check=True)
    if abs(time.time() - 3650 * 86400 - float(told.stdout)) > 86400:
        raise SystemExit(f"libfaketime has no effect: {told.stdout}{told.stderr}")


def _whole(bench: Bench, verb: str) -> dict[str, str]:
    """Content of an undisturbed result of a verb."""
    folder = bench.place / f"undisturbed-{verb}"
    if not folder.exists():
        workbench.must(WORDS[verb](bench, folder))
    return workbench.content(folder, without=_timed)


def _compare(bench: Bench, verb: str, output: Path, ended: Done) -> list[str]:
    """Differences from the undisturbed result, errors, and times that cannot be."""
    if ended.code:
        return [f"code {ended.code}: {ended.said[-300:]}"]
    found, expected = workbench.content(output, without=_timed), _whole(bench, verb)
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    times = [value for path in output.rglob("*.json*") for value in _times(path)]
    return [
        *([f"other files: {names[:4]}"] if names else []),
        *([f"times: {times}"] if any(not 0 <= value < LONGEST_S for value in times) else []),
        *([f"a trace: {ended.said[-300:]}"] if "Traceback" in ended.said else []),
    ]


def _times(path: Path) -> Iterator[float]:
    """All times in a file of JSON or JSON lines, in seconds."""
    text = path.read_text("utf-8")
    for tree in map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else [json.loads(text)]:
        yield from _seconds(tree)


def _seconds(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name.startswith("seconds"):
                yield from value.values() if isinstance(value, dict) else [value]
            else:
                yield from _seconds(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _seconds(value)


def _timed(path: Path) -> bool:
    return path.name == "progress.png" or path.suffix == ".pt2"


def _jumps(verb: str) -> Callable[[Bench], list[str]]:
    """The clock jumps to and fro while the command runs."""

    def run(bench: Bench) -> list[str]:
        _whole(bench, verb)
        output = bench.fresh(verb)
        with jumping(bench.place) as variables:
            ended = real(WORDS[verb](bench, output), variables)
        return _compare(bench, verb, output, ended)

    return run


def _resumed(verb: str, first: str, second: str) -> Callable[[Bench], list[str]]:
    """The command is killed under one clock and goes on under another."""

    def run(bench: Bench) -> list[str]:
        _whole(bench, verb)
        output = bench.fresh(verb)
        words: list[Word] = [*WORDS[verb](bench, output), "--resume"]
        if not real(words, clock(first), until=lambda: _half_done(output)).code:
            return ["it was done before it was killed"]
        return _compare(bench, verb, output, real(words, clock(second)))

    return run


def _half_done(output: Path) -> bool:
    """True once something of the result is there, so that there is something to go on with."""
    patterns = ("checkpoints/step-*", "studies/*.json", "*/run.json", "model")
    return any(next(output.glob(pattern), None) for pattern in patterns)


def _cache_of(bench: Bench, studies: Path) -> tuple[list[str], Done]:
    cache = bench.place / "cache"
    words: list[Word] = ["prepare", studies, "--recipe", "unet/phantom", "-o", cache]
    ended = workbench.run(words)
    return sorted(path.name for path in cache.iterdir()), ended


def _cache(bench: Bench) -> list[str]:
    """Other times of the same files make no new entry; other voxels with the old size and time make one."""
    studies, findings = bench.fresh("studies"), []
    workbench.must(["phantom", "-o", studies, "--count", 1, "--spacing", 4])
    first, _ = _cache_of(bench, studies)
    files = sorted(studies.rglob("*.nii.gz"))
    for name, stamp in FAR.items():
        for path in files:
            os.utime(path, (stamp, stamp))
        found, ended = _cache_of(bench, studies)
        findings += [f"files of {name}: {found}, {ended.message}"] if found != first or ended.code else []
    path = next(path for path in files if "t1c" in path.name)
    before = path.stat()
    data = bytearray(path.read_bytes())
    _change_a_voxel(path)
    same = path.stat().st_size == len(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found, ended = _cache_of(bench, studies)
    if len(found) != len(first) + 1 or ended.code:
        findings.append(f"changed voxels, the old time (same size: {same}): {found}, {ended.message}")
    return findings


def _change_a_voxel(path: Path) -> None:
    """Exchanges two voxels, which keeps the size of the voxels and about that of the file."""
    import nibabel
    import numpy as np

    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    middle = tuple(size // 2 for size in voxels.shape)
    voxels[middle], voxels[0, 0, 0] = voxels[0, 0, 0], voxels[middle]
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), path)


def _evaluated_again(bench: Bench) -> list[str]:
    """A study whose voxels changed, with the old time, is scored again; one with another time alone is not."""
    studies, output = bench.fresh("studies"), bench.fresh("evaluation")
    workbench.must(["phantom", "-o", studies, "--count", 2, "--spacing", 4])
    words: list[Word] = ["evaluate", bench.model, "--data", studies, "-o", output, "--subsets", "t1c"]
    words += ["--metrics", "dice", "--device", "cpu"]
    workbench.must(words)
    files = {path.name: path.stat().st_ino for path in (output / "studies").glob("*.json")}
    for path in studies.rglob("*.nii.gz"):
        os.utime(path, (FAR["2100"], FAR["2100"]))
    workbench.must([*words, "--resume"])
    after = {path.name: path.stat().st_ino for path in (output / "studies").glob("*.json")}
    findings = [f"scored again because of a time: {after}, {files}"] if after != files else []
    path = sorted(studies.rglob("*t1c.nii.gz"))[0]
    _change_a_voxel(path)
    os.utime(path, (FAR["1971"], FAR["1971"]))
    workbench.must([*words, "--resume"])
    last = {path.name: path.stat().st_ino for path in (output / "studies").glob("*.json")}
    changed = [name for name, number in last.items() if number != files[name]]
    return findings + ([] if changed == [f"{path.parent.name}.json"] else [f"scored again: {changed}"])


def _locks(bench: Bench) -> list[str]:
    """Two shards that share a key file, each with another clock, both jumping; a lock is held by its process alone."""
    output, findings = bench.fresh("shards"), []
    words: list[Word] = [*kills.WORKS["segment"].words(bench, output), "--deidentify"]
    with jumping(bench.place) as variables, tempfile.TemporaryFile() as said:
        both = [
            workbench.start_real([*words, "--shard", f"{number}/2"], {"OMP_NUM_THREADS": "1", **env}, said.fileno())
            for number, env in enumerate((variables, clock("-3650d")))
        ]
        codes = [process.wait(LONGEST_S) for process in both]
        said.seek(0)
        findings += [f"codes {codes}: {said.read()[-300:]!r}"] if any(codes) else []
    there = len(list(output.glob("*/run.json")))
    findings += [f"{there} studies of {bench.studies}"] if there != bench.studies else []
    lock = output / ".lock"
    lock.touch()
    os.utime(lock, (FAR["2100"], FAR["2100"]))
    again = workbench.run([*words, "--resume"])
    return findings + ([f"an old lock file: {again.message}"] if again.code else [])


def _segment_one(bench: Bench, output: Path) -> list[Word]:
    words: list[Word] = ["segment", *bench.study, "-m", bench.model, "-o", output, "--device", "cpu"]
    return [*words, "--uncertainty", "none"]


WORDS: dict[str, Callable[[Bench, Path], list[Word]]] = {
    **{verb: work.words for verb, work in kills.WORKS.items()},
    "phantom": lambda b, d: ["phantom", "-o", d, "--count", 1, "--spacing", 4],
    "segment one": _segment_one,
    "export": lambda b, d: ["export", b.model, "--to", "pt2", "-o", d / "a.pt2"],
    "convert": lambda b, d: ["convert", b.data, "--to", "bids", "-o", d],
}

ROWS = (
    *(Row(name=f"{verb}: the clock jumps while it runs", run=_jumps(verb)) for verb in WORDS),
    *(
        Row(name=f"{verb}: killed, resumed {word}", run=_resumed(verb, first, second))
        for verb in ("train", "evaluate", "segment")
        for word, first, second in (("ten years earlier", "+0", "-3650d"), ("a century later", "-3650d", "+36500d"))
    ),
    Row(name="prepare: input files of 1971 and 2100; other voxels with the old time", run=_cache),
    Row(name="evaluate --resume: input files of 2100; other voxels of 1971", run=_evaluated_again),
    Row(name="two shards with one key file, under two clocks; a lock file of 2100", run=_locks),
)

if __name__ == "__main__":
    sys.exit(main())
