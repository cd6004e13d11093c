"""Start two processes that write to one output, at random distances in time: all verbs, shards, the shared cache.

    python tests/robustness/two_writers.py -o OUT [--times 6] [--only WORDS] [--seed 0]

Each pair has to end in one of two ways. Either one of both is refused in one message (exit code 1 or 2), and the result
is that of the other. Or both end well, and the result is whole: for equal commands the one of a single run; for two
commands that differ, the result of one of them, never a mixture.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import disk_full
import kills
import workbench
from workbench import Bench, Done, Word, settings

SAME = re.compile(r"progress\.png|key\.json|\.pt2|\.onnx|batch.*\.jsonl|failures.*\.json")
"""Files that differ from run to run, and logs, which name the studies of one process."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two commands for one output."""

    name: str
    first: Callable[[Bench, Path], list[Word]]
    second: Callable[[Bench, Path], list[Word]] | None = None
    """Default: the same command."""
    both: bool = False
    """True if both have to end well, as shards and users of one cache."""
    kept: str = ""
    """Pattern of the files that are compared, where the two differ in others by right. Default: all."""
    before: Callable[[Bench, Path], list[Word]] | None = None
    """Command whose result is there already. Not for pairs that both have to end well."""


def main() -> int:
    """Prints a row for each pair; the exit code is 1 if there is a finding."""
    options = workbench.parser(__doc__)
    options.add_argument("--times", type=int, default=6, help="Starts of each pair.")
    options.add_argument("--only", default="", help="Pairs whose name has these words.")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    workbench.imports()
    bench, findings, messages = Bench(place=arguments.output, studies=2), list[str](), Counter[str]()

    def rows() -> Iterator[tuple[str, ...]]:
        for pair in PAIRS:
            if arguments.only not in pair.name:
                continue
            rng, ends, found = random.Random(f"{arguments.seed} {pair.name}"), Counter[str](), list[str]()
            expected = alone(bench, pair)
            for number in range(arguments.times):
                share = 0.0 if not number else rng.random()
                found += together(bench, pair, expected, share, ends=ends, messages=messages)
            findings.extend(f"{pair.name}: {text}" for text in found)
            yield pair.name, str(arguments.times), str(ends["both"]), str(ends["refused"]), str(len(found))

    workbench.table(("pair", "starts", "both ended well", "one refused", "findings"), rows())
    print(f"\n{len(findings)} findings")
    for line in (*findings, *(f"{count:4d}  {message}" for message, count in messages.items())):
        print(line)
    return int(bool(findings))


@dataclass(frozen=True)
class Alone:
    """Results of each command of a pair by itself."""

    contents: Sequence[dict[str, str]]
    seconds: float


def alone(bench: Bench, pair: Pair) -> Alone:
    """Runs each command of a pair by itself; two that both have to end well run one after the other."""
    contents, seconds = [], 0.0
    commands = [pair.first, *([pair.second] if pair.second else [])]
    output = bench.fresh("alone")
    for command in commands:
        if not pair.both:
            output = bench.fresh("alone")
            if pair.before:
                workbench.must(pair.before(bench, output))
        words = command(bench, output)  # inputs are made now
        begun = time.perf_counter()
        workbench.must(words)
        seconds = max(seconds, time.perf_counter() - begun)
        contents.append(_content(output, pair))
        if not pair.both:
            shutil.rmtree(output)
    return Alone(contents[-1:] if pair.both else contents, seconds)


def together(
    bench: Bench, pair: Pair, expected: Alone, share: float, *, ends: Counter[str], messages: Counter[str]
) -> list[str]:
    """Starts both, the second after a share of the time that one takes alone; returns what is wrong."""
    output = bench.fresh("both")
    if pair.before:
        workbench.must(pair.before(bench, output))
    first = workbench.Forked(pair.first(bench, output))
    time.sleep(share * expected.seconds)
    second = workbench.Forked((pair.second or pair.first)(bench, output))
    done = [first.done(), second.done()]
    refused = [one for one in done if one.code]
    ends["refused" if refused else "both"] += 1
    findings = [f"both refused: {[one.message for one in done]}"] if len(refused) == 2 else []
    if pair.both and refused:
        findings.append(f"refused: {refused[0].said[-300:]}")
    findings += [f"code {one.code}: {one.said[-300:]}" for one in refused if not _clear(one)]
    for one in refused:
        messages[re.sub(r"\S*/both-\w+", "OUT", one.message)] += 1
    found = _content(output, pair)
    if len(refused) < 2 and found not in expected.contents:
        names = sorted({n for n in {*found, *expected.contents[0]} if found.get(n) != expected.contents[0].get(n)})
        findings.append(f"after {share:.2f} of the time, {[one.code for one in done]}: no result of one: {names[:5]}")
    left = workbench.temporary_left(output) + [
        path.name for path in output.parent.glob(f".{output.name}*") if not path.name.endswith(".lock")
    ]
    findings += [f"left behind: {left[:4]}"] if left else []
    shutil.rmtree(output, ignore_errors=True)
    return findings


def _clear(one: Done) -> bool:
    said = one.said[one.said.find("glimpseg: ") :].strip()
    return one.code in (1, 2) and said.startswith("glimpseg: ") and "unexpected" not in said and "\n" not in said


def _content(output: Path, pair: Pair) -> dict[str, str]:
    found = workbench.content(output)
    chosen = {n: value for n, value in found.items() if re.search(pair.kept, n) and ".tmp-" not in n}
    return {n: "" if SAME.search(n) else value for n, value in chosen.items()}


def _shard(number: int, *more: str) -> Callable[[Bench, Path], list[Word]]:
    return lambda b, d: [*disk_full._tree(b, d), "--shard", f"{number}/2", *more]


def _with_cache(seed: int) -> Callable[[Bench, Path], list[Word]]:
    def words(bench: Bench, output: Path) -> list[Word]:
        changes = settings(*disk_full.SMALL_RUN, f"seed={seed}")
        run: list[Word] = ["-q", "train", "unet/phantom", "--data", bench.data, "-o", output / f"run-{seed}"]
        return [*run, *changes, "--cache", output / "cache", "--device", "cpu"]

    return words


def _prepare(recipe: str) -> Callable[[Bench, Path], list[Word]]:
    return lambda b, d: ["-q", "prepare", b.data, "--recipe", recipe, "-o", d, *settings(*_changes(recipe))]


def _changes(recipe: str) -> Sequence[str]:
    return workbench.WITH_PRIOR if recipe.startswith("smml") else ()


def _calibrate(bench: Bench, output: Path) -> list[Word]:
    words: list[Word] = ["calibrate", bench.model, "--data", bench.data, "-o", output]
    return [*words, "--population", "phantoms", "--device", "cpu"]


def _other_model(words: Callable[[Bench, Path], list[Word]]) -> Callable[[Bench, Path], list[Word]]:
    """The same command with another model."""
    return lambda b, d: [b.trained(1) if word == b.model else word for word in words(b, d)]


def _phantom(seed: int, *more: str) -> Callable[[Bench, Path], list[Word]]:
    return lambda b, d: ["phantom", "-o", d, "--count", 1, "--spacing", 4, "--seed", seed, *more]


def _compare(bench: Bench, output: Path) -> list[Word]:
    return ["compare", disk_full._evaluation(bench, 0), disk_full._evaluation(bench, 1), "-o", output]


def _one(bench: Bench, output: Path) -> list[Word]:
    return disk_full._segment(bench, output, *bench.study)


_train = kills.WORKS["train"].words
_evaluate = kills.WORKS["evaluate"].words
_RESULTS = r"seg\.nii\.gz|seg\.json|statistics\.json|preview|run\.json"

PAIRS = (
    Pair(name="phantom", first=_phantom(0), second=_phantom(1)),
    Pair(name="phantom --overwrite", first=_phantom(0, "--overwrite"), second=_phantom(1, "--overwrite")),
    Pair(name="prepare, the same", first=_prepare("smml/phantom"), both=True),
    Pair(
        name="prepare, two recipes, one cache", first=_prepare("unet/phantom"), second=_prepare("smml/phantom"),
        both=True,
    ),
    Pair(name="train", first=_train),
    Pair(name="train --resume", first=lambda b, d: [*_train(b, d), "--resume"]),
    Pair(name="two trainings, one cache", first=_with_cache(0), second=_with_cache(1), both=True),
    Pair(name="evaluate", first=_evaluate, second=_other_model(_evaluate)),
    Pair(name="evaluate --resume", first=lambda b, d: [*_evaluate(b, d), "--resume"]),
    Pair(
        name="evaluate --overwrite", before=_evaluate, first=lambda b, d: [*_evaluate(b, d), "--overwrite"],
        second=_other_model(lambda b, d: [*_evaluate(b, d), "--overwrite"]),
    ),
    Pair(name="calibrate", first=_calibrate, second=_other_model(_calibrate)),
    Pair(name="compare", first=_compare),
    Pair(
        name="report",
        first=lambda b, d: ["report", disk_full._evaluation(b, 0), "-o", d / "report.html"],
        both=True,
    ),
    Pair(name="segment, one study", first=_one, second=_other_model(_one)),
    Pair(
        name="segment --overwrite", before=_one, first=lambda b, d: [*_one(b, d), "--overwrite"],
        second=_other_model(lambda b, d: [*_one(b, d), "--overwrite"]),
    ),
    Pair(
        name="segment, a tree", first=lambda b, d: disk_full._tree(b, d),
        second=_other_model(lambda b, d: disk_full._tree(b, d)),
    ),
    Pair(name="segment, a tree --resume", first=lambda b, d: [*disk_full._tree(b, d), "--resume"]),
    Pair(
        name="segment, a tree --overwrite", before=lambda b, d: disk_full._tree(b, d),
        first=lambda b, d: [*disk_full._tree(b, d), "--overwrite"],
        second=_other_model(lambda b, d: [*disk_full._tree(b, d), "--overwrite"]),
    ),
    Pair(name="segment, shards 0/2 and 1/2", first=_shard(0), second=_shard(1), both=True, kept=_RESULTS),
    Pair(name="segment, shard 0/2 twice", first=_shard(0), kept=_RESULTS),
    Pair(
        name="segment, two shards, BIDS", first=_shard(0, "--output-type", "nifti,bids"),
        second=_shard(1, "--output-type", "nifti,bids"), both=True, kept=_RESULTS + "|derivatives",
    ),
    Pair(
        name="segment, two shards --deidentify", first=_shard(0, "--deidentify"), second=_shard(1, "--deidentify"),
        both=True, kept=_RESULTS,
    ),
    Pair(name="export, OpenVINO", first=lambda b, d: ["export", b.model, "--to", "openvino", "-o", d]),
    Pair(
        name="convert", first=lambda b, d: ["convert", b.data, "--to", "bids", "-o", d],
        second=lambda b, d: ["convert", b.data, "--to", "nnunet", "-o", d],
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
