"""Run the command line on everything that can go wrong, and print how each case ends as a Markdown table.

    python tests/robustness/fault_table.py [--only WORDS] [-o docs/faults-table.md]

Rows of files run in copies of one process that has the imports done, the others each in a process of its own: some
minutes on a quiet machine. Makes a phantom and a model of a few training steps first. The exit code is 1 if a row ends
otherwise than it should; such rows are marked.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
import workbench
from fault_conditions import CONDITIONS, Condition, Skipped, Tools, shown
from fault_files import FAULTS, Fault, command, pattern_of, plain, save, segment, voxels, whole_message
from fault_sources import SOURCES
from workbench import Done

FILES = {"files": FAULTS, "sources": SOURCES}
PARTS = (*FILES, "conditions")
LONGEST = 260
"""Letters of a message that are shown."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    command: str
    message: str
    code: str
    wrong: str = ""
    """In what it is not as it should be."""


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"Some of {', '.join(PARTS)}. Default: all.")
    parser.add_argument("--only", default="", help="Rows whose name has these words.")
    parser.add_argument("-o", "--output", type=Path, help="Write the table there, too, line by line.")
    arguments = parser.parse_args()
    workbench.imports()
    rows = []
    with tempfile.TemporaryDirectory() as name, open(arguments.output or os.devnull, "w", encoding="utf-8") as file:
        _tell("| fault | command | message | code |\n|---|---|---|---|", file)
        for row in Table(Path(name)).rows(arguments.parts, arguments.only):
            mark = " **wrong**" if row.wrong else ""
            _tell(f"| {row.name} | {row.command and f'`{row.command}`'} | {row.message} | {row.code}{mark} |", file)
            rows.append(row)
    wrong = [row for row in rows if row.wrong]
    for row in wrong:
        print(f"{row.name}: {row.wrong}", file=sys.stderr)
    print(f"{len(rows)} rows, {len(wrong)} not as they should be", file=sys.stderr)
    return int(bool(wrong))


class Table:
    """A good study, a model, and the rows that are run with them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        _glimpseg("phantom", "-o", place / "phantom", "--count", "1", "--spacing", "4")
        study = next(path for path in (place / "phantom").iterdir() if path.is_dir())
        words = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
        scans = {flag: nibabel.load(study / f"{study.name}-{word}.nii.gz") for flag, word in words.items()}
        changes = ("config.width=8", "data.sampling.patch=[32,32,32]", "optim.steps=6", "optim.precision=fp32")
        settings = [word for change in changes for word in ("--set", change)]
        _glimpseg("train", "unet/phantom", *settings, "--data", place / "phantom", "-o", place / "run")
        self.tools = Tools(scans=scans, model=place / "run" / "model")
        self.good = self._good()

    def rows(self, parts: Sequence[str], only: str) -> Iterator[Row]:
        """Runs everything; rows of one group become one."""
        files = [fault for part in parts for fault in FILES.get(part, ()) if only in (fault.group or fault.name)]
        for group, members in itertools.groupby(files, lambda fault: fault.group):
            rows = map(self._file_row, members)
            yield from [_together(group, list(rows))] if group else rows
        for condition in CONDITIONS if "conditions" in parts else ():
            if only in condition.name:
                yield self._condition_row(condition)

    def _good(self) -> dict[int, nibabel.Nifti1Image]:
        """Labels of the good study, by the number of words of the command."""
        place = self.place / "good"
        place.mkdir()
        scan = self.tools.scans["flair"]
        one = segment(plain(place, self.tools.scans))
        two = [*one, "--flair", save(place / "flair.nii.gz", voxels(scan), scan.affine)]
        found = {}
        for words in (one, two):
            output = place / str(len(words))
            ended = workbench.run(command(words, self.tools.model, output))
            if ended.code:
                raise RuntimeError(ended.said)
            found[len(words)] = nibabel.load(output / "seg.nii.gz")
        return found

    def _file_row(self, fault: Fault) -> Row:
        place = Path(tempfile.mkdtemp(dir=self.place))
        words = fault.make(place, self.tools.scans)
        whole = command(words, self.tools.model, place / "out")
        ended = workbench.run(["-q", *whole])
        wrong = _compared(ended, fault.code) or _other_words(ended, whole_message(fault, place, self.tools.scans))
        if not wrong and list(self.place.rglob("outside*")):
            wrong = "a file outside"
        if not wrong and fault.code == 3 and words[0] == "segment" and (place / "out").exists():
            wrong = "there is an output"
        if not wrong and fault.same:
            found, good = nibabel.load(place / "out" / "seg.nii.gz"), self.good[len(words)]
            pair = [nibabel.as_closest_canonical(image) for image in (found, good)]
            if not np.array_equal(*(np.asarray(image.dataobj) for image in pair)):
                wrong = "other labels than without the fault"
            elif not np.allclose(pair[0].affine, pair[1].affine, atol=1e-3):
                wrong = "labels in another place"
        message = self._shown(ended.message) or ("same labels" if fault.same else "segmented")
        return Row(fault.name, self._shown(shown(whole), place), message, str(ended.code), wrong)

    def _condition_row(self, condition: Condition) -> Row:
        place = Path(tempfile.mkdtemp(dir=self.place))
        try:
            text, ended = condition.run(place, self.tools)
        except Skipped as reason:
            return Row(condition.name, "", f"*skipped: {reason}*", "")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return Row(condition.name, "", str(error), "", f"{error}")
        wrong = _compared(ended, condition.code)
        if not wrong and condition.code:
            wrong = _other_words(ended, pattern_of(condition.says, place=place))
        return Row(condition.name, self._shown(text, place), self._shown(ended.message, place), str(ended.code), wrong)

    def _shown(self, text: str, place: Path | None = None) -> str:
        """Without this machine's paths, and short."""
        if place is not None:
            text = text.replace(f"{place}/", "").replace(str(place), ".")
        text = text.replace(str(self.tools.model), "MODEL")
        text = re.sub(re.escape(str(self.place)) + r"/tmp\w+/?", "", text).removeprefix("glimpseg: ")
        text = text.encode("utf-8", "backslashreplace").decode()
        text = re.sub(r"\.tmp-\w+", ".tmp-...", re.sub(r"x{40,}", "xxx...", text)).replace("|", "\\|")
        return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _compared(ended: Done, code: int) -> str:
    """Description of what is wrong; empty if nothing is."""
    if ended.code != code:
        return f"code {ended.code} in place of {code}: {ended.said[-400:]}"
    if "Traceback" in ended.said:
        return f"a trace: {ended.said[-400:]}"
    return "" if ended.message or not code or code > 128 else "no message"


def _other_words(ended: Done, message: re.Pattern[str]) -> str:
    """In what an error, or all warnings of a quiet command, are not the message."""
    said = ended.said.partition("glimpseg: ")[2] if ended.code else _without_review(ended.said)
    return "" if message.fullmatch(said.strip()) else f"says '{said}' and should say '{message.pattern}'"


def _without_review(said: str) -> str:
    """Text of the terminal without the reasons to look, which a model of six training steps gives for every study."""
    return "\n".join(line for line in said.splitlines() if "Look at this one: " not in line)


def _together(group: str, members: Sequence[Row]) -> Row:
    wrong = "; ".join(f"{row.name}: {row.wrong}" for row in members if row.wrong)
    return Row(
        group, members[-1].command, f"{len(members)} runs, labels equal after going back", members[0].code, wrong
    )


def _tell(line: str, file: IO[str]) -> None:
    print(line, flush=True)
    print(line, file=file, flush=True)


def _glimpseg(*words: str | Path) -> None:
    command: Sequence[str] = [sys.executable, "-m", "glimpseg", "-q", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
