"""Manifest: a table of studies (CSV or TSV) with the columns `study, t1, t1c, t2, flair, seg`.

A blank cell, or one of the words in `ABSENT`, is an absent file. UTF-8 is expected; UTF-16 and Latin-1 are recognised.
Sequences may be spelled as in `identify.names`. Further columns are `brain` (a mask) and `convention` (label
numbering of `seg`). Paths are relative to the table's folder. `a.nii.gz#2` is the third volume
of a four-dimensional file.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glimpseg.data.identify.names import read_name, says_nothing_else
from glimpseg.data.layouts.layout import (
    IMAGES,
    FolderListing,
    Layout,
    ReadResult,
    StudyEntry,
    is_file,
    listed,
    printable,
    usable_id,
)
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
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
ABSENT = frozenset({"na", "n/a", "nan", "none", "null", "nil", "-", "--", "."})
"""Words in a cell for a file that is not there, in lower case, as R, pandas, BIDS and people write them."""
_HEAD_BYTES = 1 << 16
"""Bytes read from the beginning of a table to recognise it."""
MOST_COLUMNS = 1000
"""Most columns of a table."""
_HEAD_LINES = 20
"""Lines of them that are parsed."""


def recognises(listing: FolderListing) -> bool:
    """True if the folder holds a table with columns of studies and sequences and with image files in its cells."""
    return bool(_find_manifests(listing))


def read(listing: FolderListing) -> ReadResult:
    """Read all studies of the one manifest in a folder.

    Raises: InputError if there are several manifests, and as `read_manifest`.
    """
    found = _find_manifests(listing)
    if len(found) > 1:
        names = listed(path.name for path in found)
        raise InputError(f"{printable(listing.path.name)} holds {len(found)} manifests: {names}. Give the path of one.")
    return read_manifest(found[0])


def read_manifest(path: Path) -> ReadResult:
    """Read all studies of a manifest. Raises: InputError if it is no manifest.

    A bad row becomes a problem of its study, which names the row.
    """
    try:
        table = _table(path.read_bytes())
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{printable(path.name)} cannot be read as a table ({error}). Save it as CSV in UTF-8."
        ) from error
    rows = table.rows
    if not rows or not rows[0]:
        raise InputError(f"{printable(path.name)} is empty. {_EXPECTED}")
    columns = _columns(rows[0], path)
    entries = []
    for number, row in enumerate(rows[1:], table.first_row + 1):
        if not any(cell.strip() for cell in row):
            continue
        try:
            entries.append(_entry(row, columns, path.parent))
        except (InputError, UsageError) as error:
            problem = printable(f"{path.name}, row {number}: {error}")
            entries.append(StudyEntry(Study(f"row-{number}", {}), "manifest", "brats", problem=problem))
    unused = [name for index, name in enumerate(rows[0]) if index not in columns]
    notes = [f"{printable(path.name)}: unused columns: {listed(unused)}."] if unused else []
    notes += [
        f"{printable(path.name)} {note}" for note in (*table.notes, *_notes_of_cells(rows[1:], columns, path.parent))
    ]
    return ReadResult(entries, notes=notes)


@dataclass(frozen=True)
class _Table:
    """Cells of a table, with what had to be recognised."""

    rows: list[list[str]]
    first_row: int
    """Line of the file that holds the names of the columns; 1 is the first."""
    notes: tuple[str, ...]


def _table(content: bytes, most_lines: int | None = None) -> _Table:
    """Parse a table in UTF-8, UTF-16 or Latin-1, with a `sep=` line or not; only its first lines, if a number is given.

    Raises: csv.Error for a table that is broken; UnicodeDecodeError for UTF-16 that is.
    """
    text, encoding = _decoded(content)
    notes = [f"is in {encoding}; it was read as such. UTF-8 is expected."] if encoding else []
    lines = list(io.StringIO(text, newline=""))[:most_lines]
    told = re.fullmatch(r'"?sep=(.)"?[\s,;]*', lines[0].strip("\r\n"), re.IGNORECASE) if lines else None
    if told:
        return _Table(list(_rows(lines[1:], told[1])), 2, tuple(notes))
    return _Table(list(_rows(lines)), 1, tuple(notes))


def _decoded(content: bytes) -> tuple[str, str]:
    """Return the text of a table, and the name of its encoding if that is not UTF-8.

    Bytes that are no UTF-8 stay as they are (surrogates): a name on the disk may have the same bytes. `_file` tries
    both.
    """
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding), "UTF-16"
    # ASCII letters in UTF-16 have a zero in every second byte.
    if len(content) >= 4 and not content[0] and content[1]:
        return content.decode("utf-16-be"), "UTF-16"
    if len(content) >= 4 and content[0] and not content[1]:
        return content.decode("utf-16-le"), "UTF-16"
    text = content.decode("utf-8-sig", "surrogateescape")
    return text, "Latin-1 (Windows-1252)" if any("\udc80" <= letter <= "\udcff" for letter in text) else ""


def _latin(text: str) -> str:
    """Return a text whose bytes that are no UTF-8 are letters of Windows-1252."""
    return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _notes_of_cells(
    rows: Sequence[Sequence[str]], columns: Mapping[int, str | Modality], folder: Path
) -> Iterator[str]:
    """Yield notes on cells that were not taken as they are."""
    cells = [row[at].strip() for row in rows for at, what in columns.items() if at < len(row) and _names_file(what)]
    absent = [cell for cell in cells if cell and _is_absent(cell, folder)]
    if absent:
        yield f"has {len(absent)} cells with {listed(sorted(set(absent)))}; they count as blank."
    if any("\\" in cell and not is_file(folder / cell) and is_file(folder / _slashed(cell)) for cell in cells):
        yield "has paths with backslashes; they were read as slashes."


def _names_file(what: str | Modality) -> bool:
    return isinstance(what, Modality) or what in (_REFERENCE, _BRAIN)


def _is_absent(cell: str, folder: Path) -> bool:
    """True if a cell says in a word that there is no file."""
    return cell.lower() in ABSENT and not is_file(folder / cell)


def _slashed(cell: str) -> str:
    return cell.replace("\\", "/")


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


def _rows(file: Iterable[str], delimiter: str = "") -> Iterator[list[str]]:
    """Yield the cells of each row.

    Without a given delimiter it is whichever of tab, semicolon and comma is most frequent in the first line.
    """
    lines = iter(file)
    first = next(lines, "")
    delimiter = delimiter or max("\t;,", key=first.count)
    yield from csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)


def _columns(names: Sequence[str], path: Path) -> dict[int, str | Modality]:
    """Return the meaning of each known column by its index."""
    if len(names) > MOST_COLUMNS:
        raise InputError(
            f"{printable(path.name)} has {len(names):,} columns; at most {MOST_COLUMNS} are read. {_EXPECTED}"
        )
    found: dict[int, str | Modality] = {}
    for index, name in enumerate(names):
        plain = name.strip().lower()
        what = _COLUMNS.get(plain) or (read_name(name).sequence if says_nothing_else(name.strip()) else None)
        if what is not None and what in found.values():
            raise InputError(f"{printable(path.name)} has two columns for {_title(what)}. Keep one.")
        if what is not None:
            found[index] = what
    if _STUDY not in found.values() or not any(isinstance(what, Modality) for what in found.values()):
        raise InputError(f"{printable(path.name)} has the columns {listed(names)}. {_EXPECTED}")
    return found


def _title(what: str | Modality) -> str:
    return what.title if isinstance(what, Modality) else what


def _entry(row: Sequence[str], columns: Mapping[int, str | Modality], folder: Path) -> StudyEntry:
    cells = {what: row[index].strip() for index, what in columns.items() if index < len(row) and row[index].strip()}
    cells = {what: cell for what, cell in cells.items() if not (_names_file(what) and _is_absent(cell, folder))}
    images = {what: _image(folder, cell) for what, cell in cells.items() if isinstance(what, Modality)}
    if not images:
        raise InputError("it names no image. Give at least one of t1, t1c, t2, flair, or delete the row.")
    others = {what: _file(folder, cells[what]) for what in (_REFERENCE, _BRAIN) if what in cells}
    convention = convention_named(cells[_CONVENTION]) if _CONVENTION in cells else None
    study = Study(
        usable_id(_latin(cells.get(_STUDY, ""))), images, others.get(_REFERENCE), convention, brain=others.get(_BRAIN)
    )
    return StudyEntry(study, "manifest", "brats")


def _image(folder: Path, cell: str) -> Path | Frame:
    """Return the file, or one volume of it: `a.nii.gz#2` is the third volume, unless a file has this name."""
    name, _, number = cell.rpartition("#")
    if name and number.isdecimal() and not any(is_file(folder / spelt) for spelt in _spellings(cell)):
        return Frame(_file(folder, name), int(number))
    return _file(folder, cell)


def _file(folder: Path, cell: str) -> Path:
    for spelt in _spellings(cell):
        if is_file(folder / spelt):
            return folder / spelt
    if re.match(r"[A-Za-z]:[\\/]", cell):
        raise InputError(
            f"'{printable(cell)}' is a path of Windows, and no such file is here. Give paths relative to the table."
        )
    raise InputError(f"'{printable(cell)}' is no file. Correct the path, or leave the cell blank.")


def _spellings(cell: str) -> Iterator[str]:
    """Yield the ways to read a path: as it is, with Latin-1 letters, and with backslashes as slashes."""
    for text in dict.fromkeys((cell, _latin(cell))):
        yield from dict.fromkeys((text, _slashed(text)))


def _find_manifests(listing: FolderListing) -> list[Path]:
    return [listing.path / name for name in sorted(listing.files) if _is_manifest(listing.path / name)]


def _is_manifest(path: Path) -> bool:
    """True if a table has the expected columns and image names in a column of a sequence."""
    if path.suffix.lower() not in SUFFIXES or not is_file(path):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        rows = _table(head, _HEAD_LINES).rows
        columns = _columns(rows[0], path) if rows else {}
    except (OSError, csv.Error, UnicodeDecodeError, InputError):
        return False
    sequences = [index for index, what in columns.items() if isinstance(what, Modality)]
    cells = [row[index].strip().lower() for row in rows[1:] for index in sequences if index < len(row)]
    return any(re.sub(r"#\d+$", "", cell).endswith((*IMAGES, ".hdr", ".img")) for cell in cells)


LAYOUT = Layout("manifest", "a table (.csv, .tsv) with the columns study, t1, t1c, t2, flair, seg", recognises, read)
