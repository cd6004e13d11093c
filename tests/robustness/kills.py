"""Kill work at random moments, resume it until it is done, and compare the result with that of an undisturbed run.

    python tests/robustness/kills.py -o OUT [--verb train evaluate segment prepare] [--count 50] [--terms 0.2]

Each output is killed up to four times (SIGKILL; a share of SIGTERM), then it is left alone until it is done. After each
kill, whatever can be seen in the output is whole. At the end all files are equal to those of the undisturbed run, bit
by bit, except for times (of JSON) and pictures that show times.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import workbench
from workbench import Bench, Word, settings

MOST = 4
"""Most kills of one output."""
STOPPED = (75, 128 + signal.SIGTERM)
"""Exit codes after SIGTERM: with the state saved, and with nothing left."""
GROWS = re.compile(r"jsonl|failures\.json|evaluation\.json|progress\.png|statistics\.csv|summary\.json|scores\.csv")
"""Files that change while the work goes on."""
TIMED = re.compile(r"progress\.png|step-0000000[1-7]/")
"""Pictures that show times, and checkpoints before the last: SIGTERM saves one at whatever step it comes."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A command that can be killed and run again."""

    words: Callable[[Bench, Path], list[Word]]
    again: Sequence[str] = ("--resume",)


@dataclass
class Tally:
    """Counts of one verb."""

    kills: int = 0
    terms: int = 0
    outputs: int = 0
    resumed: int = 0
    equal: int = 0
    left: int = 0
    """Temporary files that kills left and that the finished work did not remove."""
    seconds: float = 0.0
    """Time of the undisturbed run."""
    horizon: float = 0.0
    """A kill comes at any moment within this time."""
    findings: list[str] = field(default_factory=list)


def _train(bench: Bench, output: Path) -> list[Word]:
    changes = settings(*workbench.SMALL, "optim.steps=8", "optim.save_every=2", "optim.log_every=1")
    return ["-q", "train", "unet/phantom", "--data", bench.data, "-o", output, *changes, "--device", "cpu"]


def _evaluate(bench: Bench, output: Path) -> list[Word]:
    words: list[Word] = ["-q", "evaluate", bench.model, "--data", bench.data, "-o", output, "--device", "cpu"]
    return [*words, "--subsets", "t1c,t1c+flair", "--metrics", "dice"]


def _segment(bench: Bench, output: Path) -> list[Word]:
    words: list[Word] = ["-q", "segment", "-i", bench.data, "-m", bench.model, "-o", output, "--device", "cpu"]
    return [*words, "--uncertainty", "none", "--output-type", "nifti,bids"]


def _prepare(bench: Bench, output: Path) -> list[Word]:
    words: list[Word] = ["-q", "prepare", bench.data, "--recipe", "smml/phantom", "-o", output]
    return [*words, *settings(*workbench.WITH_PRIOR)]


WORKS = {
    "train": Work(words=_train),
    "evaluate": Work(words=_evaluate),
    "segment": Work(words=_segment),
    "prepare": Work(words=_prepare, again=("--device", "cpu")),
}


def main() -> int:
    """Prints a row for each verb; the exit code is 1 if there is a finding."""
    options = workbench.parser(__doc__)
    options.add_argument("--verb", nargs="+", choices=list(WORKS), default=list(WORKS))
    options.add_argument("--count", type=int, default=50, help="Kills of each verb.")
    options.add_argument("--terms", type=float, default=0.2, help="Share of SIGTERM.")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    workbench.imports()
    bench, findings = Bench(place=arguments.output, studies=2), list[str]()

    def rows() -> Iterator[tuple[str, ...]]:
        for verb in arguments.verb:
            rng = random.Random(f"{arguments.seed} {verb}")
            tally = kill_many(bench, verb, arguments.count, terms=arguments.terms, rng=rng)
            findings.extend(tally.findings)
            counts = (tally.kills, tally.terms, tally.outputs, tally.resumed, tally.equal, tally.left)
            yield (verb, f"{tally.seconds:.1f} s", *map(str, counts), str(len(tally.findings)))

    head = (
        "verb", "undisturbed", "kills", "of them SIGTERM", "outputs", "killed ones", "equal", "temporary files left",
        "findings",
    )  # fmt: skip
    workbench.table(head, rows())
    print("\n".join(findings) or "no finding")
    return int(bool(findings))


def kill_many(bench: Bench, verb: str, count: int, *, terms: float, rng: random.Random) -> Tally:
    """Kills a verb `count` times, on as many outputs as that takes."""
    work, tally, whole = WORKS[verb], Tally(), bench.place / f"whole-{verb}"
    shutil.rmtree(whole, ignore_errors=True)
    words = work.words(bench, whole)  # inputs are made now
    begun = time.perf_counter()
    workbench.must(words)
    tally.seconds = tally.horizon = time.perf_counter() - begun
    expected = workbench.content(whole, without=_timed)
    while tally.kills < count:
        output = bench.fresh(verb)
        tally.outputs += 1
        words = work.words(bench, output)
        finished, before = False, tally.kills
        for _ in range(min(MOST, count - tally.kills)):
            finished = _killed_once(words, tally, rng, terms)
            words = [*work.words(bench, output), *work.again]
            if finished:
                break
            _refuse_halves(verb, output, expected, tally)
        tally.resumed += tally.kills > before
        if not finished:
            ended = workbench.run(words)
            if ended.code:
                tally.findings.append(f"{verb}: resumed, it ends with {ended.code}: {ended.said[-300:]}")
                continue
        found = workbench.content(output, without=_timed)
        if found == expected:
            tally.equal += 1
        else:
            names = {*found, *expected}
            other = sorted(name for name in names if found.get(name) != expected.get(name))
            tally.findings.append(f"{verb}: {output.name} differs from the undisturbed run in {other[:5]}")
        tally.left += len(workbench.temporary_left(output))
        print(f"{verb}: {tally.kills} kills, {tally.outputs} outputs, {tally.equal} equal", file=sys.stderr, flush=True)
        shutil.rmtree(output, ignore_errors=True)
    return tally


def _killed_once(words: list[Word], tally: Tally, rng: random.Random, terms: float) -> bool:
    """Runs the command and kills it at a random moment; True if it ended before."""
    number = signal.SIGTERM if rng.random() < terms else signal.SIGKILL
    command, begun = workbench.Forked(words), time.perf_counter()
    if command.wait(rng.uniform(0, tally.horizon)):
        tally.horizon = min(tally.horizon, time.perf_counter() - begun)  # the machine is less busy now
        ended = command.done()
        if ended.code:
            tally.findings.append(f"{words[1]}: before a kill, it ends with {ended.code}: {ended.said[-300:]}")
        return ended.code == 0
    command.send(number)
    tally.kills += 1
    tally.terms += number == signal.SIGTERM
    ended = command.done()
    if number == signal.SIGTERM and ended.code and (ended.code not in STOPPED or not _one_message(ended.said)):
        tally.findings.append(f"{words[1]}: SIGTERM ends it with {ended.code}: {ended.said[-300:]}")
    return ended.code == 0


def _one_message(said: str) -> bool:
    return len(re.findall(r"^glimpseg: ", said, re.MULTILINE)) == 1 and "Traceback" not in said


def _refuse_halves(verb: str, output: Path, expected: dict[str, str], tally: Tally) -> None:
    """Whatever is there under its name is whole: the file of the undisturbed run, or one that still changes."""
    found = workbench.content(output, without=_hidden) if output.exists() else {}
    half = [n for n, value in found.items() if n in expected and value != expected[n] and not GROWS.search(n)]
    if half:
        tally.findings.append(f"{verb}: after a kill, {half[:5]} differ from the whole ones")


def _hidden(path: Path) -> bool:
    return _timed(path) or any(part.startswith(".") for part in path.parts)


def _timed(path: Path) -> bool:
    return bool(TIMED.search(path.as_posix())) or any(".tmp-" in part for part in path.parts)


if __name__ == "__main__":
    sys.exit(main())
