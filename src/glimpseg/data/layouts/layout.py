"""Interface of a layout: recognise a folder, read its studies, and optionally write studies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glimpseg.errors import InputError, UsageError
from glimpseg.study import Study

NIFTI = (".nii.gz", ".nii")
IMAGES = (*NIFTI, ".mha")
"""File endings of images that are read."""
MOST_NAMES, LONGEST_NAME = 20, 100
"""Most names that a message lists, and most characters of each."""


@dataclass(frozen=True)
class FolderListing:
    """A folder and the names of the folders and files in it, without those that begin with a dot."""

    path: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class StudyEntry:
    """A study as a layout found it, with its label numbering and problems.

    The study has a convention if its dataset says what its label numbers mean.
    """

    study: Study
    layout: str
    """Name of the layout on screens and in `--layout`."""
    numbering: str
    """Key to the candidate conventions if the dataset names none: those with this word in `Convention.layouts`."""
    reference_problem: str = ""
    """Reason why it is open which file is the reference; "" if it is not. No option overrides it."""
    label_problem: str = ""
    """Reason why the meaning of the labels is open; "" if it is not. A named convention (`--labels`) overrides it."""
    problem: str = ""
    """Reason why the study cannot be used, and what to do. "" if there is none."""
    folder: Path | None = None
    """Folder of the study, in layouts with a folder for each study."""


@dataclass(frozen=True)
class ReadResult:
    """Studies that a layout read from one folder."""

    entries: Sequence[StudyEntry] = ()
    set_aside: Mapping[Path, str] = field(default_factory=dict)
    """Images that were found and are not used, each with the reason."""
    notes: Sequence[str] = ()
    """Messages about ignored files."""
    folders: Sequence[Path] = ()
    """Folders below that belong to the studies, so that they are not read again."""


@dataclass(frozen=True)
class Layout:
    """One way to arrange studies in folders."""

    name: str
    example: str
    """Example of its folders and files, for messages."""
    recognises: Callable[[FolderListing], bool]
    """True if a folder has this layout; judged by names, or by the head of one small text file."""
    read: Callable[[FolderListing], ReadResult]
    """Read all studies of a folder that `recognises` accepts. Raises: InputError if none can be read."""
    owns_subfolders: bool = True
    """True if everything below such a folder belongs to it."""
    write: Callable[[Path, Sequence[Study]], None] | None = None
    """Write studies atomically; None if this layout cannot be written.

    Images are volumes, references hold `Label` values.
    """


def printable(name: str) -> str:
    """Return a file name as printable text.

    A character that `str.isprintable` denies becomes `_x` and two hexadecimal digits, the low byte of its code. These
    are control characters, spaces other than the usual one, invisible characters, and bytes that are not UTF-8.
    """
    return "".join(char if char.isprintable() else f"_x{ord(char) & 0xFF:02x}" for char in name)


def listed(names: Iterable[str]) -> str:
    """Return names that a file holds, for messages: printable, the first `MOST_NAMES`, each at most `LONGEST_NAME`."""
    all_names = list(names)
    shown = ", ".join(
        printable(name[:LONGEST_NAME] + "..." * (len(name) > LONGEST_NAME)) for name in all_names[:MOST_NAMES]
    )
    more = len(all_names) - MOST_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def place_below(path: Path, folder: Path) -> str:
    """Return a path for messages: what lies below the given folder, without the folders above it."""
    inside = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return printable(folder.name if inside == "." else inside)


def stem_of(name: str) -> str:
    """Return a file name without its image ending (`.nii.gz`, `.nii`, `.mha`)."""
    return next((name[: -len(end)] for end in IMAGES if name.lower().endswith(end)), name)


def usable_id(name: str) -> str:
    """Return a study's id if files can be named by it. Raises: InputError if not."""
    if not name.strip() or name != printable(name) or re.search(r'[/\\:*?"<>|]', name) or name.startswith("."):
        raise InputError(
            f"'{printable(name)}' cannot be a study's id: files are named by it. Use letters, digits, '-', '_' and '.'."
        )
    if name.startswith(("=", "+", "@")):
        raise InputError(
            f"'{name}' cannot be a study's id: tables of results hold it, and a spreadsheet would take it for a "
            "formula. Begin it with a letter or a digit."
        )
    return name


def is_file(path: Path) -> bool:
    """True if a file has this path; False also for a name that no file can have (too long, or with a NUL)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_broken_link(path: Path) -> bool:
    """True if the path is a link without a target, as git-annex leaves it for content that was not fetched."""
    return path.is_symlink() and not path.exists()


def broken_link_notes(paths: Sequence[Path]) -> list[str]:
    """Return a list with one message about broken links, or an empty list."""
    if not paths:
        return []
    first = printable(paths[0].name)
    return [
        f"{len(paths)} files are links without a target ({first}); they count as missing. Was their content fetched?"
    ]


def refuse_duplicates(ids: Sequence[str], what: str) -> None:
    """Check that no two studies get one name. Raises: UsageError if they do."""
    twins = sorted({name for name in ids if ids.count(name) > 1})
    if twins:
        raise UsageError(f"Two studies would be called {twins[0]} in {what}. Give one of them another id.")
