"""Damaged tables of studies (CSV and TSV); see `fuzz_files.py`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from fuzz_trees import encoded

CELLS = (
    "", " ", "NA", "n/a", "-", ".", "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "../outside.nii.gz",
    "t1.nii.gz", "t1.nii.gz#0", "t1.nii.gz#99999999999999999999", "t1.nii.gz#-1", "t1.nii.gz#\u00b2", "#1",
    "C:\\data\\t1.nii.gz",
    "=HYPERLINK(\"http://x\")", "=1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "a\nb", "a\r\nb", 'a"b', "'", "a;b", "a,b",
    "a\tb", "a\0b", "\x1b[31mred", "\u202e", "\ud800", "x" * 300, "x" * 140_000, "~/t1.nii.gz",
    "$HOME/t1.nii.gz", "%s", "S1",
    "S/1", ".hidden", "con", "brats2021", "0=background,1=NCR", "1=NCR,2=ED,3=ET", "1=NCR,1=ED", "9=", "=9",
    "auto", "t1",
    "study", "T1", "post contrast t1", "file://t1.nii.gz", "s3://bucket/t1.nii.gz", "t1.nii.gz\u00a0",
    "\ufefft1.nii.gz",
    "folder",
)  # fmt: skip
"""Contents that cells should not have."""
STUDIES = [
    ["study", "t1", "t1c", "t2", "flair", "seg", "brain", "convention"],
    ["S1", "t1.nii.gz", "t1c.nii.gz", "", "flair.nii.gz", "seg.nii.gz", "", "brats2021"],
    ["S2", "", "t1c.nii.gz", "NA", "flair.nii.gz#0", "", "", ""],
]


def manifest(rng: np.random.Generator, folder: Path) -> Path:
    """A table of studies with something wrong. The files that it names are empty."""
    for name in ("t1.nii.gz", "t1c.nii.gz", "flair.nii.gz", "seg.nii.gz"):
        (folder / name).touch()
    (folder / "folder").mkdir()
    ending = str(rng.choice(["csv", "tsv"]))
    path = folder / f"studies.{ending}"
    path.write_bytes(as_table(rng, STUDIES, "\t" if ending == "tsv" else str(rng.choice([",", ",", ";", "|"]))))
    return path


def as_table(rng: np.random.Generator, rows: list[list[str]], delimiter: str) -> bytes:
    """Return a table as text, with one to three things wrong."""
    table = [list(row) for row in rows]
    for _ in range(int(rng.integers(1, 4))):
        _damage(rng, table)
    text = io.StringIO()
    quoting = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL][int(rng.integers(2))]
    ends = ["\n", "\n", "\r\n", "\r"][int(rng.integers(4))]
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=ends).writerows(table)
    return encoded(rng, _damaged_text(rng, text.getvalue()))


def _damage(rng: np.random.Generator, table: list[list[str]]) -> None:
    row = int(rng.integers(len(table)))
    column = int(rng.integers(max(len(table[row]), 1)))
    cell = CELLS[int(rng.integers(len(CELLS)))]
    match int(rng.integers(10)):
        case 0:
            del table[row][column : column + 1]
        case 1:
            table[row].insert(column, cell)
        case 2:
            table.insert(row, list(table[row]))
        case 3 if len(table) > 1:
            del table[row]
        case 4 if rng.random() < 0.1:
            table[row] += [""] * 1_000_000
        case 5 if rng.random() < 0.1:
            table.extend(list(table[-1]) for _ in range(5_000))
        case 6:
            table.insert(row, [])
        case _:
            table[row][column : column + 1] = [cell]


def _damaged_text(rng: np.random.Generator, text: str) -> str:
    if rng.random() < 0.75:
        return text
    at = int(rng.integers(len(text) + 1))
    match int(rng.integers(7)):
        case 0:
            return text[:at] + '"' + text[at:]
        case 1:
            return text[:at] + "\0" + text[at:]
        case 2:
            return f"sep={[';', ',', '', '||', chr(9)][int(rng.integers(5))]}\n{text}"
        case 3:
            return text.replace("\n", "\r", 1)
        case 4:
            return "# a comment\n" + text
        case 5:
            return "\n\n" + text
    return text.replace(",", ";", 2)


def read_table(path: Path) -> None:
    """Read a table of studies as `segment`, `train` and `prepare` do: the table, and the folder that holds it."""
    from glimpseg.data.layouts import find_studies
    from glimpseg.data.layouts.find import describe_unused, usable_studies
    from glimpseg.errors import InputError

    for place in (path.parent, path):
        try:
            found = usable_studies(place)
        except InputError:
            continue
        describe_unused(found.unused)
    find_studies(path, references="ignored")
