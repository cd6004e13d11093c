"""Read thousands of damaged files, each made from a seed, and counts how that ends.

    python tests/robustness/fuzz_files.py [--files nifti=1000 recipe=500] [--seed 0] [-o findings.md]

The kinds are those of `fuzz_makers.py`. A file may be read, or refused with one of glimpseg's own errors. Anything else
is a finding: another exception, a Python warning, a process that dies, more than 5 s of a processor, a file left
behind, memory beyond what a file of that size can need, or words that should not be there. Such words are the text of
an object, a traceback, control characters or more than 2,000 characters in a message, and a path of the input in a log
line. Memory is limited to 1 GB beyond the imports. Each finding names the number of its file; `--only nifti:123` makes
and reads that one again in this process, and shows the trace.

The files are read by a process that is replaced when it dies or hangs. Where glimpseg itself would start a reading
process (DICOM), the reader is forked from this one instead, which spares its imports.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import runpy
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_makers as makers
import numpy as np

SECONDS = 5.0
"""Processor time of one file; more is a hang."""
PATIENCE_S = 30.0
"""Clock time of one file, on a machine that may be busy with other things."""
SPARE_BYTES = 1 << 30
"""Memory that the reading process may take beyond its imports."""
SPARE_MB, SPARE_RATIO = 128.0, 64
"""Memory that a file may take: so much, and so many times its size."""
SETTLE_SECONDS = 300.0
"""For imports, before the first file."""
LONGEST = 2000
"""Most characters of a message."""
OUTCOMES = ("read", "refused", "exception", "warning", "words", "memory", "died", "hang", "left behind")
GOOD = ("read", "refused")
OBJECT = re.compile(
    r"\bat 0x[0-9a-f]{6,}|<(class|function|module|unicode string|byte string|_io)\b|PosixPath\(|Traceback"
)
"""Text of a Python object, or a traceback."""


class Hang(Exception):
    """A forked reader took too long."""


@dataclass
class Tally:
    """Outcomes of the files of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    grown_mb: float = 0.0
    slowest_s: float = 0.0
    seconds: float = 0.0

    def take(self, name: str, answer: dict[str, Any]) -> None:
        """Counts one answer."""
        self.outcomes[answer["outcome"]] += 1
        self.peak_mb = max(self.peak_mb, answer.get("peak_mb", 0.0))
        self.grown_mb = max(self.grown_mb, answer.get("grown_mb", 0.0))
        self.slowest_s = max(self.slowest_s, answer["seconds"])
        if answer["outcome"] not in GOOD:
            self.findings.append(f"{name}: {answer['outcome']}: {answer['text'][:400]}")


def main() -> int:
    """Prints a table and the findings; the exit code says whether there were any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[f"{kind}=300" for kind in makers.MAKERS], metavar="KIND=COUNT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="Kind and number of one file.")
    parser.add_argument("-o", "--output", type=Path, help="File for the table and the findings, beside the terminal.")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.only)
        return 0
    if arguments.only:
        return once(arguments.only, arguments.seed)
    tallies = {}
    for kind, count in (words.split("=") for words in arguments.files):
        tallies[kind] = fuzz(kind, range(int(count)), arguments.seed)
        lines = [f"seed {arguments.seed}", table(tallies)]
        lines += [f"{kind}:{finding}" for kind, tally in tallies.items() for finding in tally.findings]
        if arguments.output:
            arguments.output.write_text("\n".join(lines) + "\n", "utf-8", "backslashreplace")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print("\n".join(lines))
    return int(any(tally.findings for tally in tallies.values()))


def table(tallies: dict[str, Tally]) -> str:
    """One line for each kind, as Markdown."""
    lines = [
        f"| kind | files | {' | '.join(OUTCOMES)} | peak MB | most MB for a file | slowest s | s |",
        "|---" * (len(OUTCOMES) + 6) + "|",
    ]
    for kind, tally in tallies.items():
        counts = " | ".join(str(tally.outcomes[outcome]) for outcome in OUTCOMES)
        times = f"{tally.peak_mb:.0f} | {tally.grown_mb:.0f} | {tally.slowest_s:.2f} | {tally.seconds:.0f}"
        lines.append(f"| {kind} | {tally.outcomes.total()} | {counts} | {times} |")
    return "\n".join(lines)


def fuzz(kind: str, numbers: Sequence[int], seed: int) -> Tally:
    """Files of one kind through a process that reads them."""
    tally, begun = Tally(), time.monotonic()
    missing = makers.missing(kind)
    if missing:
        print(f"{kind}: left out, {missing}", file=sys.stderr)
        return tally
    with tempfile.TemporaryDirectory() as place:
        worker = Worker(Path(place), kind)
        try:
            for number in numbers:
                tally.take(str(number), worker.ask(kind, number, seed))
        finally:
            worker.end()
    tally.seconds = time.monotonic() - begun
    return tally


class Worker:
    """The process that reads, started again whenever it dies or hangs."""

    def __init__(self, place: Path, kind: str) -> None:
        self.place, self.kind = place, kind
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, kind: str, number: int, seed: int) -> dict[str, Any]:
        """Outcome of one file."""
        process = self.process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([kind, number, seed]).encode() + b"\n")
        process.stdin.flush()
        begun = time.monotonic()
        answer = self._line(process, 2 * PATIENCE_S)  # a forked reader is stopped by the worker itself, sooner
        if answer is None:
            self.end()
            died = process.returncode is not None and process.returncode != -9
            text = f"exit code {process.returncode}" if died else f"more than {2 * PATIENCE_S:g} s"
            return {"outcome": "died" if died else "hang", "text": text, "seconds": time.monotonic() - begun}
        if answer["seconds"] > SECONDS:
            answer |= {"outcome": "hang", "text": f"{answer['seconds']:.1f} s"}
        return answer

    def end(self) -> None:
        """Stops the process, and removes what it worked on."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                stream.close()
            self.process = None
        for path in self.place.iterdir():
            shutil.rmtree(path)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # torch makes this folder once; in the folder that is watched it would count as left behind.
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "torchinductor-fuzz")
        command = [sys.executable, __file__, "--work", str(self.place), "--only", self.kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        if self._line(self.process, SETTLE_SECONDS) is None:
            raise RuntimeError("the reading process did not start")
        return self.process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            return None
        line = process.stdout.readline()
        if not line:
            process.wait()
            return None
        return json.loads(line)


# The process that reads


class Lines(logging.Handler):
    """Collects the log lines of glimpseg."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one line."""
        self.lines.append(record.getMessage())


def work(place: Path, only: str) -> None:
    """Reads the files that are asked for on stdin, one answer a line on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    prepare_process(only, place)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        kind, number, seed = json.loads(line)
        print(json.dumps(ended(kind, number, seed, place)), file=answers, flush=True)


def prepare_process(only: str, place: Path) -> None:
    """Imports, limits, and a reader that is forked rather than started."""
    from glimpseg.data import nifti, preprocess, unpack  # noqa: F401
    from glimpseg.runtime import sandbox

    if only == "dicom":
        import highdicom  # noqa: F401

        from glimpseg.data.dicom import find, read, stacks  # noqa: F401

        find.run_sandboxed = read.run_sandboxed = forked  # type: ignore[assignment]
    for number in range(3):  # imports that the first files bring are not theirs
        ended(only, number, 1 << 30, place)
    sandbox.confine(SPARE_BYTES)
    warnings.simplefilter("error")


def ended(kind: str, number: int, seed: int, place: Path) -> dict[str, Any]:
    """Makes one file, reads it, and says how that ended."""
    case, scratch = place / "case", place / "scratch"
    for folder in (case, scratch):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    tempfile.tempdir = str(scratch)
    path = makers.MAKERS[kind](np.random.default_rng([seed, number]), case)
    before = set(place.rglob("*"))
    size_mb = sum(file.stat().st_size for file in before if file.is_file()) / 2**20
    lines = Lines()
    logging.getLogger("glimpseg").addHandler(lines)
    memory_mb, children_mb, begun = _memory_mb("VmRSS"), _children_mb(), _processor_s()
    _forget_peak()
    outcome, text = _read(kind, path)
    answer = {"outcome": outcome, "text": text, "seconds": _processor_s() - begun}
    logging.getLogger("glimpseg").removeHandler(lines)
    child_mb = _children_mb() if _children_mb() > children_mb else 0.0
    grown_mb = max(_memory_mb("VmHWM"), child_mb) - memory_mb
    left = set(place.rglob("*")) - before
    unfit = [f"log: {line}" for line in lines.lines if is_unfit(line) or str(place) in line]
    if outcome in GOOD and left:
        answer |= {"outcome": "left behind", "text": ", ".join(str(path.relative_to(place)) for path in left)}
    elif outcome in GOOD and unfit:
        answer |= {"outcome": "words", "text": unfit[0]}
    elif outcome in GOOD and grown_mb > SPARE_MB + SPARE_RATIO * size_mb:
        answer |= {"outcome": "memory", "text": f"{grown_mb:.0f} MB for {size_mb:.3f} MB: {outcome} {text}"}
    return {**answer, "peak_mb": max(_memory_mb("VmHWM"), _children_mb()), "grown_mb": grown_mb}


def _memory_mb(name: str) -> float:
    """Memory of this process now (VmRSS) or at most (VmHWM). `ru_maxrss` would count its parent's memory, too."""
    words = Path("/proc/self/status").read_text("ascii").split()
    return int(words[words.index(f"{name}:") + 1]) / 1024


def _forget_peak() -> None:
    """Lets VmHWM begin again at what this process has now."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _children_mb() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _processor_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def is_unfit(text: str) -> bool:
    """True for words that a person should not see, or that a terminal would obey."""
    plain = re.sub("[\n\udc80-\udcff]", "", text)  # bytes of file names that are no UTF-8 are shown as \\udcff
    return len(text) > LONGEST or not plain.isprintable() or OBJECT.search(text) is not None


def _read(kind: str, path: Path) -> tuple[str, str]:
    from glimpseg.errors import InputError, ModelError, UsageError

    try:
        makers.READERS[kind](path)
    except (InputError, ModelError, UsageError) as error:
        text = str(error)
        return ("words" if len(text) <= 20 or is_unfit(text) else "refused"), text
    except Hang:
        return "hang", "the forked reader"
    except Warning as error:
        return "warning", f"{type(error).__name__}: {error} {_where(error)}"
    except Exception as error:
        return "exception", f"{type(error).__name__}: {str(error)[:200]} {_where(error)}"
    return "read", ""


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "glimpseg" in frame.filename] or list(frames)
    return f"({Path(ours[-1].filename).name}:{ours[-1].lineno}, {Path(frames[-1].filename).name}:{frames[-1].lineno})"


def forked(module: str, arguments: Sequence[str | Path], *, seconds: float) -> None:
    """Does what `sandbox.run_sandboxed` does, in a copy of this process."""
    from glimpseg.runtime.sandbox import SandboxError

    del seconds
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            _be_reader(module, arguments, said.fileno())
        status = _waited(child)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise SandboxError(lines[-1] if lines else f"reader ended with {code}")


def _be_reader(module: str, arguments: Sequence[str | Path], descriptor: int) -> None:
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = [module, *map(str, arguments)]
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _waited(child: int) -> int:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise Hang


def once(name: str, seed: int) -> int:
    """One file again, in this process, with its trace. The file is kept."""
    kind, _, number = name.partition(":")
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = makers.MAKERS[kind](np.random.default_rng([seed, int(number)]), place)
    print(path)
    warnings.simplefilter("error")
    makers.READERS[kind](path)
    print("read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
