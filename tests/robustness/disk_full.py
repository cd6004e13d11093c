"""Run every verb that writes onto a disk that becomes full: a real file system of some kB, in many sizes.

    python tests/robustness/disk_full.py -o OUT [--sizes 12] [--inodes 4] [--only WORDS] [--messages]

Each command runs once on a large disk, and its need is measured: bytes and files at the peak. Then it runs on disks
from one page to just below the need, and on disks that take few files. Each run has to end with exit code 1 and one
message, and leave nothing half-written. The disk is enlarged, the command runs again, with --resume where it has that
option, and its result has to equal the one of the large disk, file by file. Needs the right to mount a file system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import workbench
from workbench import Bench, Done, Word, settings

PAGE = 4096
EVERY = 3
"""A command that leaves nothing is run again after every third failure; one that goes on, after each."""
LARGE = "512m"
REFUSED = re.compile(
    r"glimpseg: (\S+ could not be written|.* could not be written to \S+|The log cannot be written to \S+) "
    r"\((No space left on device|Input/output error)\)\.[^\n]*"
)
"""The only message that is right."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command whose output, or temporary files, lie on the small disk."""

    name: str
    words: Callable[[Bench, Path], list[Word]]
    """The command, from the bench and the disk."""
    again: Sequence[str] = ()
    """Options of the second try."""
    before: Callable[[Bench, Path], list[Word]] | None = None
    """Command that runs on the large disk first; what it wrote must not be lost."""
    temporary: bool = False
    """The disk is TMPDIR; results lie elsewhere."""
    log_only: bool = False
    """The disk holds the log file alone, whose end is told and stops nothing."""
    differs: str = r"progress\.png|key\.json|\.pt2|\.onnx"
    """Pattern of files that differ from run to run, and are not compared."""


def main() -> int:
    """Prints a row for each case; the exit code is 1 if there is a finding."""
    options = workbench.parser(__doc__)
    options.add_argument("--sizes", type=int, default=12)
    options.add_argument("--inodes", type=int, default=4)
    options.add_argument("--only", nargs="+", default=[""], help="Cases whose name has one of these words.")
    options.add_argument("--messages", action="store_true", help="Print the messages, each once.")
    arguments = options.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    workbench.imports()
    bench = Bench(place=arguments.output, studies=2)
    findings: list[str] = []
    messages: dict[str, int] = {}
    runs = 0

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal runs
        for case in CASES:
            if not any(words in case.name for words in arguments.only):
                continue
            tried = Trial(bench, case)
            tried.run(arguments.sizes, arguments.inodes)
            findings.extend(tried.findings)
            print("\n".join(tried.findings), file=sys.stderr, flush=True)
            runs += tried.refused + tried.sufficed
            for message in tried.messages:
                messages[message] = messages.get(message, 0) + 1
            yield (
                case.name, f"{tried.need / 1024:.0f} kB, {tried.files} files", str(tried.refused), str(tried.sufficed),
                f"{tried.equal} of {tried.compared}", str(len(tried.findings)),
            )  # fmt: skip

    head = ("command", "need", "refused", "sufficed", "then equal", "findings")
    workbench.table(head, rows())
    print(f"\n{runs} runs, {len(findings)} findings")
    for message, count in sorted(messages.items()) if arguments.messages else ():
        print(f"{count:4d}  {message}")
    return int(bool(findings))


class Trial:
    """All runs of one case."""

    def __init__(self, bench: Bench, case: Case) -> None:
        self.bench, self.case = bench, case
        self.disk = bench.fresh("disk")
        self.elsewhere = bench.fresh("elsewhere")
        self.findings: list[str] = []
        self.messages: list[str] = []
        self.refused = self.sufficed = self.equal = self.compared = self.need = self.files = 0

    def run(self, sizes: int, inodes: int) -> None:
        """Measures the need, and runs the command with less."""
        for prepare in (self.case.words, self.case.before):  # inputs are made now, on the disk of the bench
            if prepare is not None:
                prepare(self.bench, self.disk)
        with mounted(self.disk, LARGE):
            used = self._before()
            self.old = self._content()
            ended, self.need, self.files = self._measured()
            if ended.code:
                self.findings.append(f"{self.case.name}: fails on a large disk: {ended.said[-300:]}")
                return
            self.whole = self._content()
            mine = {name: value for name, value in self.old.items() if name not in self.whole}
            if mine:
                self.findings.append(f"{self.case.name}: lost on a large disk: {mine}")
        shutil.rmtree(self.elsewhere, ignore_errors=True)
        first, first_files = used
        for number in range(sizes):
            size = max(first + (self.need - first) * number // sizes, PAGE)
            self._on_disk(f"size={-(-size // PAGE) * PAGE}", f"{size / 1024:.0f} kB", number=number)
        for number in range(inodes):
            files = first_files + (self.files - first_files) * number // inodes
            self._on_disk(f"size={LARGE},nr_inodes={max(files, 1)}", f"{files} files", number=number)

    def _before(self) -> tuple[int, int]:
        if self.case.before is not None:
            workbench.must(self.case.before(self.bench, self.disk))
        return used_on(self.disk)

    def _command(self, *more: str) -> workbench.Forked:
        place = self.elsewhere if self.case.temporary or self.case.log_only else self.disk
        words = self.case.words(self.bench, place)
        if self.case.log_only:
            words = ["--log-file", self.disk / "log.txt", *words]
        return workbench.Forked(
            [*words, *more], {"TMPDIR": str(self.disk if self.case.temporary else self.bench.place)}
        )

    def _measured(self) -> tuple[Done, int, int]:
        command, most, most_files = self._command(), 0, 0
        while not command.wait(0.002):
            most, most_files = (max(pair) for pair in zip((most, most_files), used_on(self.disk), strict=True))
        most, most_files = (max(pair) for pair in zip((most, most_files), used_on(self.disk), strict=True))
        return command.done(), most, most_files

    def _on_disk(self, options: str, shown: str, *, number: int) -> None:
        """Runs the command on one disk, enlarges it, and runs the command again. The smallest disk is full already."""
        if self.case.before is not None:
            options, smaller = f"size={LARGE}", options
        with mounted(self.disk, options.removeprefix("size=")):
            if self.case.before is not None:
                self._before()
                subprocess.run(["mount", "-o", f"remount,{smaller}", self.disk], check=True)
            filler = self.disk / "filler"
            if not number:
                with suppress(OSError):  # a disk that takes no file
                    filler.write_bytes(bytes(os.statvfs(self.disk).f_bavail * PAGE))
            ended = self._command().done()
            filler.unlink(missing_ok=True)
            self._judge(ended, shown)
            subprocess.run(["mount", "-o", f"remount,size={LARGE},nr_inodes=1000000", self.disk], check=True)
            if ended.code == 0:
                self.sufficed += 1
                self._compare(shown)
            else:
                self.refused += 1
                if self.case.before is None and not self.case.again and number % EVERY:
                    return  # nothing is there, as if the command had never run
                again = self._command(*self.case.again).done()
                if again.code:
                    self.findings.append(f"{self.case.name}, {shown}: again, with space: {again.said[-300:]}")
                else:
                    self._compare(shown)
        shutil.rmtree(self.elsewhere, ignore_errors=True)

    def _judge(self, ended: Done, shown: str) -> None:
        where = f"{self.case.name}, {shown}"
        if self.case.log_only:
            said = ended.said[ended.said.find("glimpseg: ") :].strip()
            told = ended.said.count("ends here") <= 1 if ended.code == 0 else bool(REFUSED.fullmatch(said))
            if not told or "Traceback" in ended.said or not (ended.code or (self.disk / "log.txt").exists()):
                self.findings.append(f"{where}: code {ended.code}: {ended.said[-300:]}")
            return
        if ended.code == 0:
            return
        said = ended.said[ended.said.find("glimpseg: ") :].strip()
        self.messages.append(self._plain(said))
        if ended.code != 1 or not REFUSED.fullmatch(said) or "Traceback" in ended.said:
            self.findings.append(f"{where}: code {ended.code}: {ended.said[-600:]}")
        left = workbench.temporary_left(self.disk)
        left += workbench.temporary_left(self.elsewhere) if self.elsewhere.exists() else []
        if self.case.temporary:
            left += [path.name for path in self.disk.rglob("*")]
        if left:
            self.findings.append(f"{where}: left behind: {left[:4]}")
        there = self._content()
        if self.case.before is not None and not self.case.again and there != self.old:
            self.findings.append(f"{where}: the old result changed: {_difference(there, self.old)}")
        if self.case.before is None:
            half = {n: v for n, v in there.items() if not GROWS.search(n) and self.whole.get(n) not in (v, None)}
            if half:
                self.findings.append(f"{where}: half-written: {sorted(half)[:4]}")
            if not self.case.again and there:
                self.findings.append(f"{where}: an output is there: {sorted(there)[:4]}")

    def _compare(self, shown: str) -> None:
        found = self._content()
        self.compared += 1
        if found == self.whole and not workbench.temporary_left(self.disk):
            self.equal += 1
        else:
            left = workbench.temporary_left(self.disk)
            self.findings.append(f"{self.case.name}, {shown}: differs: {_difference(found, self.whole)}{left[:3]}")

    def _content(self) -> dict[str, str]:
        place = self.elsewhere if self.case.temporary or self.case.log_only else self.disk
        pattern = re.compile(self.case.differs)
        found = workbench.content(place) if place.exists() else {}
        return {name: "" if pattern.search(name) else value for name, value in found.items()}

    def _plain(self, said: str) -> str:
        said = said.replace(f"{self.disk}/", "").replace(str(self.disk), "TMPDIR" if self.case.temporary else ".")
        return re.sub(r"\.tmp-\w+", ".tmp-...", said)


GROWS = re.compile(r"jsonl|failures\.json|evaluation\.json|progress\.png|statistics\.csv|checkpoints/|parts/|key\.json")
"""Files of a work that is not finished, which change until it is."""


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    """A file system of its own at `place`, of this size and with these options."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def used_on(disk: Path) -> tuple[int, int]:
    """Bytes and files that a file system holds."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def _difference(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))[:4]


def _evaluation(bench: Bench, seed: int) -> Path:
    """An evaluation of the bench, made once."""
    folder = bench.place / f"evaluation-{seed}"
    if not folder.exists():
        words = ["-q", "evaluate", bench.trained(seed), "--data", bench.data, "-o", folder, "--device", "cpu"]
        workbench.must([*words, "--subsets", "t1c,t1c+flair", "--metrics", "dice"])
    return folder


def _dicom(bench: Bench) -> Path:
    """One DICOM series of the bench, made once."""
    import nibabel
    from fault_sources import series

    folder = bench.place / "dicom"
    if not folder.exists():
        (bench.place / "dicom-half").mkdir(exist_ok=True)
        path = bench.study[1]
        series(bench.place / "dicom-half", {"t1c": nibabel.load(path)})
        (bench.place / "dicom-half").rename(folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def _archive(bench: Bench) -> Path:
    """The same series as a zip."""
    if not (bench.place / "t1c.zip").exists():
        shutil.make_archive(str(bench.place / "t1c"), "zip", _dicom(bench))
    return bench.place / "t1c.zip"


def _segment(bench: Bench, output: Path, *more: Word) -> list[Word]:
    return ["segment", *more, "-m", bench.model, "-o", output, "--uncertainty", "none", "--device", "cpu"]


def _tree(bench: Bench, output: Path, *more: Word) -> list[Word]:
    return _segment(bench, output, "-i", bench.data, *more)


def _train(bench: Bench, output: Path, recipe: str = "unet/phantom", verb: str = "train") -> list[Word]:
    changes = settings(*SMALL_RUN) if recipe.startswith("unet") else settings(*PRETRAINING)
    return ["-q", verb, recipe, "--data", bench.data, "-o", output, *changes, "--device", "cpu"]


def _evaluate(bench: Bench, output: Path, *more: Word) -> list[Word]:
    words: list[Word] = ["evaluate", bench.model, "--data", bench.data, "-o", output, "--device", "cpu"]
    return [*words, "--subsets", "t1c,t1c+flair", "--metrics", "dice", *more]


PRETRAINING = ("optim.steps=2", "optim.save_every=1", "optim.log_every=1", "optim.warmup=0")
SMALL_RUN = (*workbench.SMALL, "optim.steps=4", "optim.save_every=2", "optim.log_every=1")

CASES = (
    Case(name="phantom", words=lambda b, d: ["phantom", "-o", d / "out", "--count", 2, "--spacing", 4]),
    Case(
        name="phantom --overwrite",
        before=lambda b, d: ["phantom", "-o", d / "out", "--count", 1, "--spacing", 4],
        words=lambda b, d: ["phantom", "-o", d / "out", "--count", 1, "--spacing", 4, "--overwrite"],
    ),
    Case(
        name="prepare",
        words=lambda b, d: ["prepare", b.data, "--recipe", "unet/phantom", "-o", d / "cache"],
        again=("--device", "cpu"),
    ),
    Case(
        name="prepare, with priors",
        words=lambda b, d: [
            *("prepare", b.data, "--recipe", "smml/phantom", "-o", d / "cache"),
            *settings(*workbench.WITH_PRIOR),
        ],
        again=("--device", "cpu"),
    ),
    Case(name="identify", words=lambda b, d: ["identify", Path(b.study[1]).parent, "-o", d / "series.json"]),
    Case(name="train", words=lambda b, d: _train(b, d / "run"), again=("--resume",)),
    Case(name="pretrain", words=lambda b, d: _train(b, d / "run", "voxmmsd/phantom", "pretrain"), again=("--resume",)),
    Case(name="evaluate", words=lambda b, d: _evaluate(b, d / "out"), again=("--resume",)),
    Case(
        name="evaluate --overwrite",
        before=lambda b, d: _evaluate(b, d / "out"),
        words=lambda b, d: _evaluate(b, d / "out", "--overwrite"),
        again=("--overwrite",),
    ),
    Case(
        name="calibrate",
        words=lambda b, d: ["calibrate", b.model, "--data", b.data, "-o", d / "out", "--population", "phantoms"],
        again=("--device", "cpu"),
    ),
    Case(name="compare", words=lambda b, d: ["compare", _evaluation(b, 0), _evaluation(b, 1), "-o", d / "out"]),
    Case(name="report", words=lambda b, d: ["report", _evaluation(b, 0), "-o", d / "report.html"]),
    Case(name="segment, one study", words=lambda b, d: _segment(b, d / "out", *b.study, "--probabilities")),
    Case(
        name="segment --overwrite",
        before=lambda b, d: _segment(b, d / "out", *b.study),
        words=lambda b, d: _segment(b, d / "out", *b.study, "--overwrite"),
    ),
    Case(name="segment, a tree", words=lambda b, d: _tree(b, d / "out"), again=("--resume",)),
    Case(
        name="segment, a tree, BIDS",
        words=lambda b, d: _tree(b, d / "out", "--output-type", "nifti,bids"),
        again=("--resume",),
    ),
    Case(
        name="segment, a tree, --deidentify",
        words=lambda b, d: _tree(b, d / "out", "--deidentify"),
        again=("--resume",),
    ),
    Case(
        name="segment, DICOM SEG and SR",
        words=lambda b, d: _segment(
            b, d / "out", "--t1c", _dicom(b), "--output-type", "nifti,dicom-seg,dicom-sr", "--raw", "no"
        ),
    ),
    Case(
        name="segment, DICOM, TMPDIR full",
        words=lambda b, d: _segment(b, d / "out", "--t1c", _dicom(b), "--raw", "no"),
        temporary=True,
    ),
    Case(
        name="segment, a zip, TMPDIR full",
        words=lambda b, d: _segment(b, d / "out", "--t1c", _archive(b), "--raw", "no"),
        temporary=True,
    ),
    Case(name="export, ONNX", words=lambda b, d: ["export", b.model, "--to", "onnx", "-o", d / "a.onnx"]),
    Case(name="export, OpenVINO", words=lambda b, d: ["export", b.model, "--to", "openvino", "-o", d / "out"]),
    Case(name="export, PT2", words=lambda b, d: ["export", b.model, "--to", "pt2", "-o", d / "a.pt2"]),
    *(
        Case(name=f"convert --to {to}", words=lambda b, d, to=to: ["convert", b.data, "--to", to, "-o", d / "out"])
        for to in ("brats2021", "nnunet", "bids")
    ),
    Case(name="--log-file", words=lambda b, d: _tree(b, d / "out"), log_only=True),
)

if __name__ == "__main__":
    sys.exit(main())
