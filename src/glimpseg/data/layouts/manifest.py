"""Manifest: a table of studies (CSV or TSV) with the columns `study, t1, t1c, t2, flair, seg`.

A blank cell is an absent file. Sequences may be spelled as in `modality.ALIASES`. Further columns are `brain` (a mask)
and `convention` (label numbering of `seg`). Paths are relative to the table's folder. `a.nii.gz#2` is the third volume
of a four-dimensional file.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from glimpseg.data.layouts.layout import IMAGES, FolderListing, Layout, ReadResult, StudyEntry, printable, usable_id
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import ALIASES, Modality
from glimpseg.region import convention_named
from glimpseg.runtime.atomic import atomic_file
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume

SUFFIXES = (".csv", ".tsv")
_STUDY, _REFERENCE, _BRAIN, _CONVENTION = "study", "seg", "brain", "convention"
_COLUMNS = {
    **dict.fromkeys(("study", "id", "case"), _STUDY),
    **dict.fromkeys(("seg", "segm", "label", "reference"), _REFERENCE),
    "brain": _BRAIN,
    "convention": _CONVENTION,
}
_HEAD_BYTES = 1 << 16
"""Bytes read from the beginning of a table to recognise it."""


def recognises(listing: FolderListing) -> bool:
    """True if the folder holds a table with columns of studies and sequences and with image files in its cells."""
    return bool(_find_manifests(listing))


def read(listing: FolderListing) -> ReadResult:
    """Read all studies of the one manifest in a folder.

    Raises: InputError if there are several manifests, and as `read_manifest`.
    """
    found = _find_manifests(listing)
    if len(found) > 1:
        names = ", ".join(printable(path.name) for path in found)
        raise InputError(f"{printable(str(listing.path))} holds {len(found)} manifests: {names}. Give the path of one.")
    return read_manifest(found[0])


def read_manifest(path: Path) -> ReadResult:
    """Read all studies of a manifest. Raises: InputError if it is no manifest.

    A bad row becomes a problem of its study, which names the row.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(_rows(file))
    except (OSError, csv.Error) as error:
        raise InputError(f"{printable(str(path))} cannot be read as a table ({error}). Save it as CSV.") from error
    if not rows or not rows[0]:
        raise InputError(f"{printable(str(path))} is empty. {_EXPECTED}")
    columns = _columns(rows[0], path)
    entries = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            entries.append(_entry(row, columns, path.parent))
        except (InputError, UsageError) as error:
            problem = printable(f"{path.name}, row {number}: {error}")
            entries.append(StudyEntry(Study(f"row-{number}", {}), "manifest", "brats", problem=problem))
    unused = [printable(name) for index, name in enumerate(rows[0]) if index not in columns]
    notes = [f"{printable(path.name)}: unused columns: {', '.join(unused)}."] if unused else []
    return ReadResult(entries, notes=notes)


def write_manifest(path: str | Path, studies: Sequence[Study]) -> None:
    """Write a CSV or TSV of studies whose images are files. Paths below the table's folder are written relative to it.

    Raises:
        UsageError: if an image of a study is not a file.
        OutputError: if writing fails.
    """
    path = Path(path)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\n")
    table.writerow([_STUDY, *(modality.key for modality in Modality), _REFERENCE, _BRAIN, _CONVENTION])
    for study in studies:
        parts = [*(study.images.get(modality) for modality in Modality), study.reference, study.brain]
        convention = study.convention.name if study.convention and study.reference else ""
        table.writerow([study.id, *(_cell(part, path.parent, study.id) for part in parts), convention])
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def _cell(part: Volume | Path | Frame | None, folder: Path, study: str) -> str:
    if part is None:
        return ""
    if isinstance(part, Frame):
        return f"{_cell(part.path, folder, study)}#{part.number}"
    if not isinstance(part, Path):
        raise UsageError(f"A manifest names files, and an image of study {study} is none. Write it first.")
    file, folder = part.absolute(), folder.absolute()
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


_EXPECTED = (
    "A manifest has the columns study, t1, t1c, t2, flair, seg; those of absent sequences may be missing or blank."
)


def _rows(file: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cells of each row.

    The delimiter is whichever of tab, semicolon and comma is most frequent in the first line.
    """
    lines = iter(file)
    first = next(lines, "")
    delimiter = max("\t;,", key=first.count)
    yield from csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)


def _columns(names: Sequence[str], path: Path) -> dict[int, str | Modality]:
    """Return the meaning of each known column by its index."""
    found: dict[int, str | Modality] = {}
    for index, name in enumerate(names):
        plain = name.strip().lower()
        what = ALIASES.get(plain, _COLUMNS.get(plain))
        if what is not None and what in found.values():
            raise InputError(f"{printable(str(path))} has two columns for {_title(what)}. Keep one.")
        if what is not None:
            found[index] = what
    if _STUDY not in found.values() or not any(isinstance(what, Modality) for what in found.values()):
        raise InputError(f"{printable(str(path))} has the columns {', '.join(map(printable, names))}. {_EXPECTED}")
    return found


def _title(what: str | Modality) -> str:
    return what.title if isinstance(what, Modality) else what


def _entry(row: Sequence[str], columns: Mapping[int, str | Modality], folder: Path) -> StudyEntry:
    cells = {what: row[index].strip() for index, what in columns.items() if index < len(row) and row[index].strip()}
    images = {what: _image(folder, cell) for what, cell in cells.items() if isinstance(what, Modality)}
    if not images:
        raise InputError("it names no image. Give at least one of t1, t1c, t2, flair, or delete the row.")
    others = {what: _file(folder, cells[what]) for what in (_REFERENCE, _BRAIN) if what in cells}
    convention = convention_named(cells[_CONVENTION]) if _CONVENTION in cells else None
    study = Study(
        usable_id(cells.get(_STUDY, "")), images, others.get(_REFERENCE), convention, brain=others.get(_BRAIN)
    )
    return StudyEntry(study, "manifest", "brats")


def _image(folder: Path, cell: str) -> Path | Frame:
    """Return the file, or one volume of it: `a.nii.gz#2` is the third volume, unless a file has this name."""
    name, _, number = cell.rpartition("#")
    if name and number.isdecimal() and not _is_file(folder / cell):
        return Frame(_file(folder, name), int(number))
    return _file(folder, cell)


def _file(folder: Path, cell: str) -> Path:
    if not _is_file(folder / cell):
        raise InputError(f"'{printable(cell)}' is no file. Correct the path, or leave the cell blank.")
    return folder / cell


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        return False


def _find_manifests(listing: FolderListing) -> list[Path]:
    return [listing.path / name for name in sorted(listing.files) if _is_manifest(listing.path / name)]


def _is_manifest(path: Path) -> bool:
    """True if a table has the expected columns and image names in a column of a sequence."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8-sig", "surrogateescape")
        rows = list(_rows(head.splitlines(keepends=True)[:20]))
        columns = _columns(rows[0], path) if rows else {}
    except (OSError, csv.Error, InputError):
        return False
    sequences = [index for index, what in columns.items() if isinstance(what, Modality)]
    cells = [row[index].strip().lower() for row in rows[1:] for index in sequences if index < len(row)]
    return any(re.sub(r"#\d+$", "", cell).endswith(IMAGES) for cell in cells)


LAYOUT = Layout("manifest", "a table (.csv, .tsv) with the columns study, t1, t1c, t2, flair, seg", recognises, read)
