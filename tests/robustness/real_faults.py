"""Rebuild the troubles that users of other tools report on phantoms, and print what glimpseg does with each.

    python tests/robustness/real_faults.py [--src DIR] [--only WORDS] [--kinds A B] [-o FILE.md] [--json FILE.json]

Each row (`real_fault_rows.py`) builds its input from a phantom, runs a verb in a process of its own, and compares what
came out with the right value, which the row states. `--src` names the `src` folder of another state of the code, so
that one script measures two states; `--json` keeps the outcomes, and `--beside` prints those of another run in a column
of their own. The exit code is 1 if a row is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for dicom_phantoms

PATIENCE_S = 1800.0
FORKS = """
import contextlib, importlib, json, os, runpy, sys
for name in (
    "torch", "scipy.ndimage", "nibabel", "SimpleITK", "highdicom", "matplotlib.figure", "torch._dynamo",
    "glimpseg.segmentation.predict", "glimpseg.predict", "glimpseg.picture", "glimpseg.cli.entry",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
print("ready", flush=True)
for line in sys.stdin:
    words, log, place = json.loads(line)
    child = os.fork()
    if not child:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2), os.chdir(place)
        sys.stdin = open(os.devnull)
        sys.argv, code = ["glimpseg", *words], 0
        try:
            runpy.run_module("glimpseg", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Program of a process that has the imports done and runs each command in a copy of itself: seconds less a command."""
FLAGS = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
"""Labels of each region, in the phantom's reference and in glimpseg's results."""
SEEDS = {2.0: 901}
"""Seed of the phantom of a spacing in mm; 0 for the others."""
Words = Sequence[str | Path]


class Skipped(Exception):
    """This row cannot be run here; the message says why."""


@dataclass(frozen=True)
class Run:
    """One finished command."""

    words: list[str]
    out: Path
    code: int
    said: str
    """Standard output and standard error."""

    def record(self, study: str = "") -> dict[str, Any]:
        """Return the run.json of a result; empty if there is none."""
        path = self.out / study / "run.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    @property
    def studies(self) -> list[str]:
        """Ids of the studies of a tree that were segmented."""
        return sorted(path.parent.name for path in self.out.glob("*/seg.nii.gz"))

    @property
    def message(self) -> str:
        """Return the error, or nothing."""
        lines = [line for line in self.said.splitlines() if line.startswith("glimpseg: ")]
        return lines[0].removeprefix("glimpseg: ") if lines else ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a row's commands left."""

    place: Path
    runs: Sequence[Run]
    row: Row
    lab: Lab

    @property
    def run(self) -> Run:
        """The last command."""
        return self.runs[-1]

    @cached_property
    def clean(self) -> Run:
        """The same command on an input without the fault, run once for all rows that share it."""
        return self.lab.clean(self.row.clean, self.row.spacing)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that is compared: what is right, in words, and what was found."""

    right: str
    look: Callable[[Ended], tuple[str, bool]]
    """Returns what was found, in words, and True if it is right."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sentence of a report: the fault, how to rebuild it, and what is right."""

    kind: str
    fault: str
    make: Callable[[Path, Lab], Words | list[Words]]
    """Writes the input into a folder and returns the command, or several, without its output."""
    right: Sequence[Measure]
    spacing: float = 4.0
    """Voxel side of the phantom in mm."""
    clean: Callable[[Path, Lab], Words] | None = None
    """Makes the input without the fault, for measures that compare with it."""
    prefix: Callable[[Path, Lab], tuple[list[str], Mapping[str, str] | None]] | None = None
    """Returns words before the command, and its whole environment."""


@dataclass
class Lab:
    """The state of the code that is measured, its phantoms, and results that rows share."""

    place: Path
    src: Path
    spacing: float = 4.0
    _scans: dict[float, dict[str, nibabel.Nifti1Image]] = field(default_factory=dict)
    _clean: dict[tuple[int, float], Run] = field(default_factory=dict)
    _forks: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a command."""
        return {**os.environ, "PYTHONPATH": str(self.src), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}

    @property
    def scans(self) -> dict[str, nibabel.Nifti1Image]:
        """Four sequences and the labels of the phantom of this row's spacing."""
        if self.spacing not in self._scans:
            out = self.place / f"phantom-{self.spacing:g}"
            seed = str(SEEDS.get(self.spacing, 0))
            done = self.glimpseg(["phantom", "--count", "1", "--seed", seed, "--spacing", f"{self.spacing:g}"], out)
            if done.code:
                raise RuntimeError(done.said)
            study = next(path for path in sorted(out.iterdir()) if path.is_dir())
            self._scans[self.spacing] = {
                flag: nibabel.load(study / f"{study.name}-{word}.nii.gz") for flag, word in FLAGS.items()
            }
        return self._scans[self.spacing]

    def glimpseg(
        self, words: Words, out: Path, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> Run:
        """Run a verb in a process of its own, perhaps with words before it and another environment."""
        whole = [*map(os.fspath, words), "-o", str(out)]
        if not prefix and environment is None:
            return self._forked(whole, out)
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "glimpseg", *whole],
            capture_output=True,
            env=self.environment if environment is None else environment,
            cwd=self.place,
            timeout=PATIENCE_S,
            check=False,
        )
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        return Run([*prefix, "glimpseg", *whole], out, done.returncode, said)

    def _forked(self, whole: list[str], out: Path) -> Run:
        """Run a verb in a copy of the process that has the imports done."""
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-c", FORKS], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert self._forks.stdout is not None
            self._forks.stdout.readline()
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        log = self.place / "said.txt"
        self._forks.stdin.write(json.dumps([whole, str(log), str(self.place)]) + "\n")
        self._forks.stdin.flush()
        code = int(self._forks.stdout.readline())
        return Run(["glimpseg", *whole], out, code, log.read_text("utf-8", "replace"))

    def close(self) -> None:
        """End the process that has the imports done."""
        if self._forks is not None:
            assert self._forks.stdin is not None
            self._forks.stdin.close()
            self._forks.wait()

    def clean(self, make: Callable[[Path, Lab], Words] | None, spacing: float) -> Run:
        """Run a command without the fault once."""
        assert make is not None, "this row has no input without the fault"
        key = id(make), spacing
        if key not in self._clean:
            place = Path(tempfile.mkdtemp(dir=self.place, prefix="clean-"))
            self.spacing = spacing
            self._clean[key] = self.glimpseg(make(place, self), place / "out")
            if self._clean[key].code:
                raise RuntimeError(f"without the fault: {self._clean[key].said}")
        return self._clean[key]

    def run(self, row: Row) -> Outcome:
        """Build a row's input, run its commands, and measure."""
        place = Path(tempfile.mkdtemp(dir=self.place, prefix="row-"))
        place.chmod(0o777)
        self.spacing = row.spacing
        try:
            made = row.make(place, self)
            commands: list[Words] = made if made and isinstance(made[0], list | tuple) else [made]  # type: ignore
            before, environment = row.prefix(place, self) if row.prefix else ([], None)
            runs = [
                self.glimpseg(words, place / f"out{number or ''}", before, environment)
                for number, words in enumerate(commands)
            ]
        except Skipped as reason:
            return Outcome(kind=row.kind, fault=row.fault, command="", found=f"skipped: {reason}", right="", ok=True)
        ended = Ended(place=place, runs=runs, row=row, lab=self)
        looked = [_looked(row.right[0], ended)]
        if looked[0][1] or not any(run.code for run in runs):  # a command that failed has no result to measure
            looked += [_looked(measure, ended) for measure in row.right[1:]]
        return Outcome(
            kind=row.kind,
            fault=row.fault,
            command=self.shown(runs, place),
            found="; ".join(words for words, _ in looked),
            right="; ".join(measure.right for measure in row.right),
            ok=all(fine for _, fine in looked),
            said=runs[-1].said[-6000:],
        )

    def shown(self, runs: Sequence[Run], place: Path) -> str:
        """Return the first command as one would type it."""
        words = " ".join(runs[0].words).replace(f"{place}/", "").replace(str(place), ".")
        words = re.sub(r"^setpriv .* glimpseg", "setpriv --reuid 54321 ... glimpseg", words)
        more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
        return words.replace(" --uncertainty none", "") + more


def _looked(measure: Measure, ended: Ended) -> tuple[str, bool]:
    """Return the result of a measure; a missing file is a result, too."""
    try:
        return measure.look(ended)
    except (OSError, KeyError, IndexError, ValueError) as error:
        if os.environ.get("REAL_FAULTS_DEBUG"):
            traceback.print_exc()
        return f"no result ({type(error).__name__})", False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A line of the table."""

    kind: str
    fault: str
    command: str
    found: str
    right: str
    ok: bool
    said: str = ""


# Measures


def ends(code: int) -> Measure:
    """Compare the exit code; what is found names the error."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = sorted({run.code for run in ended.runs})
        text = "exit " + ", ".join(map(str, found))
        message = next((run.message for run in ended.runs if run.message), "")
        return (f'{text}: "{short(message, 150)}"' if message else text), found == [code]

    return Measure(right=f"exit {code}", look=look)


def overlap(region: str, tolerance: float = 0.03, *, moved: float = 0.0) -> Measure:
    """Compare the Dice of a region with that of the input without the fault."""

    def look(ended: Ended) -> tuple[str, bool]:
        reference = labels_of(ended.lab.scans["seg"])
        right = dice(region, labels_in(ended.clean.out), reference)
        found = dice(region, labels_in(ended.run.out), shifted_labels(reference, moved) if moved else reference)
        return f"{region} {found:.3f} (untouched {right:.3f})", abs(found - right) <= tolerance

    return Measure(right=f"{region} within {tolerance:g} of untouched", look=look)


def same_labels(share: float = 1.0, study: str = "") -> Measure:
    """Compare the label map, in its place, with that of the input without the fault."""

    def look(ended: Ended) -> tuple[str, bool]:
        found, right = (
            nibabel.as_closest_canonical(nibabel.load(folder / "seg.nii.gz"))
            for folder in (ended.run.out / study, ended.clean.out / study)
        )
        if found.shape != right.shape:
            return f"labels of {text_of(found.shape)}, without the fault {text_of(right.shape)}", False
        ends_mm = np.abs(found.affine - right.affine) @ [*found.shape[:3], 1]
        equal = float((np.asarray(found.dataobj) == np.asarray(right.dataobj)).mean())
        where = "" if ends_mm.max() < 0.5 else f", {ends_mm.max():.1f} mm away"
        words = "labels as without the fault" if equal == 1 else f"{100 * equal:.2f} % of the labels as without"
        return words + where, equal >= share and not where

    right = "all" if share == 1 else f"{100 * share:g} %"
    return Measure(right=f"{right} labels as without the fault, in place", look=look)


def lattice(spacing: Callable[[Lab], Sequence[float]], slices: Callable[[Lab], int]) -> Measure:
    """Compare voxel sides (0.01 mm) and the number of slices of the result."""

    def look(ended: Ended) -> tuple[str, bool]:
        image = nibabel.load(ended.run.out / "seg.nii.gz")
        found, count = np.linalg.norm(image.affine[:3, :3], axis=0), slices(ended.lab)
        fine = count in image.shape and np.allclose(sorted(found), sorted(spacing(ended.lab)), atol=0.01)
        return f"{max(image.shape, key=lambda n: n == count)} slices, {text_of(np.round(found, 3))} mm", fine

    return Measure(right="every slice, its size within 0.01 mm", look=look)


def says(*patterns: str, words: str = "", count: int | None = None) -> Measure:
    """Look for texts on the terminal."""

    def look(ended: Ended) -> tuple[str, bool]:
        said = "\n".join(run.said for run in ended.runs)
        missing = [pattern for pattern in patterns if not re.search(pattern, said)]
        if missing:
            return "not said: " + ", ".join(f"`{_plain(pattern)}`" for pattern in missing), False
        return f"said: {words}" if words else "said", True

    return Measure(right="the terminal says " + (words or ", ".join(f"`{_plain(one)}`" for one in patterns)), look=look)


def never(*patterns: str, words: str) -> Measure:
    """Look for texts that must not be on the terminal or in a log file."""

    def look(ended: Ended) -> tuple[str, bool]:
        said = "\n".join(run.said.replace(str(run.out), "OUT") for run in ended.runs)
        logs = "\n".join(path.read_text("utf-8") for path in ended.place.glob("*.log"))
        found = [pattern for pattern in patterns if re.search(pattern, said + logs)]
        return ("there are " if found else "no ") + words, not found

    return Measure(right=f"no {words}", look=look)


def warned(pattern: str, words: str) -> Measure:
    """Look for a text in the warnings of run.json."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = any(re.search(pattern, text) for text in ended.run.record().get("warnings", ()))
        return f"{'in' if found else 'not in'} run.json", found

    return Measure(right=f"{words} in run.json's warnings", look=look)


def uses(text: str, study: str = "") -> Measure:
    """Compare the sequences of a study."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = " ".join(ended.run.record(study)["sequences"]["used"])
        return f"reads {found or 'nothing'}", found == text

    return Measure(right=f"reads {text}", look=look)


def each_uses(text: str, count: int) -> Measure:
    """Compare the sequences of every study of a tree."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = {study: " ".join(ended.run.record(study)["sequences"]["used"]) for study in ended.run.studies}
        right = [study for study, used in found.items() if used == text]
        others = ", ".join(f"{study}: {used}" for study, used in found.items() if used != text)
        return f"{text} in {len(right)} of {count}" + (f" ({others})" if others else ""), len(right) == count

    return Measure(right=f"{text} in {count} of {count}", look=look)


def studies(*ids: str) -> Measure:
    """Compare the ids of the studies that were segmented."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = ended.run.studies
        return f"studies: {', '.join(found) or 'none'}", found == sorted(ids)

    return Measure(right=f"studies: {', '.join(sorted(ids))}", look=look)


def scores(count: int, tolerance: float = 0.01) -> Measure:
    """Compare the studies that were scored, and their Dice of WT with that of the input without the fault."""

    def look(ended: Ended) -> tuple[str, bool]:
        found, right = (scored(run.out) for run in (ended.run, ended.clean))
        text = f"{len(found)} scored" + (f", WT {np.mean(list(found.values())):.3f}" if found else "")
        close = abs(np.mean(list(found.values())) - np.mean(list(right.values()))) <= tolerance if found else False
        return text, len(found) == count and bool(close)

    return Measure(right=f"{count} scored, WT within {tolerance:g} of that with the exact grid", look=look)


def written(*names: str) -> Measure:
    """Look for files of the result."""

    def look(ended: Ended) -> tuple[str, bool]:
        there = [name for name in names if (ended.run.out / name).is_file()]
        return f"{', '.join(there) or 'nothing'} written", len(there) == len(names)

    return Measure(right=f"{', '.join(names)} written", look=look)


MOTION = re.compile(r"was registered to \w+: ([\d.]+) mm and ([\d.]+) degrees")


def motions(limit_mm: float, right: tuple[float, float] | None = None) -> Measure:
    """Compare what was moved: nothing beyond a limit, or by a shift (mm) and a turn (degrees) that are known."""

    def look(ended: Ended) -> tuple[str, bool]:
        found = []
        for run in ended.runs:
            texts = run.record().get("notes", ())
            found += [tuple(map(float, match.groups())) for text in texts if (match := MOTION.search(text))]
        if right is None:
            far = [one for one in found if one[0] > limit_mm or one[1] > 0.5]
            most = ", by up to " + " mm, ".join(f"{n:.1f}" for n in np.max(far, 0)) + " degrees" if far else ""
            return f"{len(far)} of {len(ended.runs)} moved{most}", not far
        close = len(found) == 1 and all(abs(a - b) <= limit_mm for a, b in zip(found[0], right, strict=True))
        return (
            "moved by " + " mm and ".join(f"{n:.1f}" for n in found[0]) + " degrees" if found else "not moved"
        ), close

    if right is None:
        return Measure(right=f"nothing moved by more than {limit_mm:g} mm or 0.5 degrees", look=look)
    return Measure(right=f"moved by {right[0]:g} mm and {right[1]:g} degrees, within {limit_mm:g}", look=look)


# Parts


def dice(region: str, found: np.ndarray, reference: np.ndarray) -> float:
    """Dice of one region of two label maps."""
    one, other = (np.isin(labels, REGIONS[region]) for labels in (found, reference))
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def labels_of(image: nibabel.Nifti1Image) -> np.ndarray:
    """Label map in RAS order."""
    return np.asarray(nibabel.as_closest_canonical(image).dataobj).astype(np.uint8)


def labels_in(folder: Path) -> np.ndarray:
    """Label map of a result, in RAS order."""
    return labels_of(nibabel.load(folder / "seg.nii.gz"))


def shifted_labels(labels: np.ndarray, voxels: float) -> np.ndarray:
    """Move labels in RAS order by a part of a voxel as an image was moved; each voxel gets its likeliest label."""
    from scipy import ndimage

    shares = [ndimage.shift((labels == n).astype(np.float32), voxels, order=1) for n in range(5)]
    return np.argmax(shares, axis=0).astype(np.uint8)


def scored(folder: Path) -> dict[str, float]:
    """Dice of WT of each study in a scores.csv."""
    import csv

    path = folder / "scores.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "WT" and row["metric"] == "dice"]
    return {row["study"]: float(row["value"]) for row in rows if row["value"]}


def text_of(numbers: Any) -> str:
    """Numbers with x between them."""
    return "x".join(f"{number:g}" for number in numbers)


def short(text: str, most: int) -> str:
    """Text on one line, cut."""
    text = " ".join(re.sub(r"/\S*/", "", text).split()).replace("|", "\\|")
    return text if len(text) <= most else text[: most - 3] + "..."


def _plain(pattern: str) -> str:
    return re.sub(r"\\(.)", r"\1", pattern).replace(".*", " ... ").replace("|", "\\|")


def main() -> int:
    """Print the table."""
    from real_fault_rows import ROWS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2] / "src"
    parser.add_argument("--src", type=Path, default=here, help="`src` folder of the code to measure. Default: this.")
    parser.add_argument("--only", default="", help="Rows whose fault has these words.")
    parser.add_argument("--kinds", nargs="+", default=list("ABCDEFGHIJK"))
    parser.add_argument("-o", "--output", type=Path, help="Write the table there, too.")
    parser.add_argument("--json", type=Path, help="Write the outcomes there.")
    parser.add_argument("--beside", type=Path, help="Outcomes of another run (--json), for a column `before`.")
    parser.add_argument("--said", action="store_true", help="Print what rows that are not right said.")
    wanted = parser.parse_args()
    other = {one["fault"]: one for one in json.loads(wanted.beside.read_text("utf-8"))} if wanted.beside else {}
    found = []
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        lab, lines = Lab(Path(name), wanted.src.resolve()), []
        for line in table_head(bool(other)):
            print(line, flush=True)
            lines.append(line)
        for row in ROWS:
            if row.kind in wanted.kinds and wanted.only in row.fault:
                found.append(lab.run(row))
                lines.append(table_line(found[-1], other.get(row.fault) if other else None))
                print(lines[-1], flush=True)
                if wanted.said and not found[-1].ok:
                    print(found[-1].said, file=sys.stderr, flush=True)
        lab.close()
    if wanted.output:
        wanted.output.write_text("\n".join(lines) + "\n", "utf-8")
    if wanted.json:
        wanted.json.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n", "utf-8")
    wrong = sum(not one.ok for one in found)
    print(f"{len(found)} rows, {wrong} not right", file=sys.stderr)
    return int(wrong > 0)


def table_head(beside: bool) -> list[str]:
    """First two lines of the table."""
    if beside:
        return ["| | fault | command | before | now | right |", "|---|---|---|---|---|---|"]
    return ["| | fault | command | found | right |", "|---|---|---|---|---|"]


def table_line(one: Outcome, before: Mapping[str, Any] | None) -> str:
    """Line of the table; outcomes that are not right are marked."""
    now = one.found + ("" if one.ok else " **not right**")
    was = [] if before is None else [before["found"] + ("" if before["ok"] else " **not right**")]
    command = f"`{one.command}`" if one.command else ""
    return "| " + " | ".join([one.kind, one.fault, command, *was, now, one.right]) + " |"


if __name__ == "__main__":
    import real_faults  # the module that the rows import, and not a second copy of its classes

    sys.exit(real_faults.main())
