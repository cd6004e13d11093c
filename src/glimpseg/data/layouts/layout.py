"""What every layout offers: it recognises a folder, reads the studies in it, and perhaps writes some."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glimpseg.errors import InputError, UsageError
from glimpseg.study import Study

NIFTI = (".nii.gz", ".nii")
IMAGES = (*NIFTI, ".mha")
"""What a study's file may end in."""


@dataclass(frozen=True)
class FolderListing:
    """A folder, and the names of what lies in it; those that begin with a dot aside."""

    path: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class StudyEntry:
    """A study as it was found. It has a convention if its data set says what its labels mean."""

    study: Study
    layout: str
    """The name that screens and `--layout` give it."""
    numbering: str
    """Which conventions its reference may follow otherwise: those with this word among `Convention.layouts`."""
    reference_problem: str = ""
    """Why its reference cannot be used, if so: there are two, or the data set's words about labels say too little."""
    problem: str = ""
    """Why it cannot be used at all, if so, and what to do."""


@dataclass(frozen=True)
class ReadResult:
    """What one folder gave."""

    entries: Sequence[StudyEntry] = ()
    set_aside: Sequence[Path] = ()
    """Images that were used without being a study's own, or left aside on purpose."""
    notes: Sequence[str] = ()
    """What was left aside, and why."""


@dataclass(frozen=True)
class Layout:
    """One way to lay out studies in folders."""

    name: str
    example: str
    """What its folders look like, for messages."""
    recognises: Callable[[FolderListing], bool]
    """From names alone, or the head of one small text file."""
    read: Callable[[FolderListing], ReadResult]
    """All studies of a folder that it recognises. Raises: InputError if none can be read."""
    owns_subfolders: bool = True
    """Whether everything below such a folder belongs to it, too."""
    write: Callable[[Path, Sequence[Study]], None] | None = None
    """Writes studies whose images are volumes and whose references hold `Label` values, all or nothing; None: not
    offered."""


def printable(name: str) -> str:
    """A file's name as text that can be printed and stored: bytes that are no UTF-8, and control characters, become
    `_x` and their code."""
    return "".join(char if char.isprintable() else f"_x{ord(char) & 0xFF:02x}" for char in name)


def stem_of(name: str) -> str:
    """A file's name without `.nii.gz` or the like."""
    return next((name[: -len(end)] for end in IMAGES if name.lower().endswith(end)), name)


def usable_id(name: str) -> str:
    """A study's id as it was given, if results can be named by it. Raises: InputError."""
    if not name.strip() or name != printable(name) or re.search(r'[/\\:*?"<>|]', name) or name.startswith("."):
        raise InputError(
            f"'{printable(name)}' cannot be a study's id: files are named by it. Use letters, digits, '-', '_' and '.'."
        )
    return name


def is_broken_link(path: Path) -> bool:
    """Whether it is a link to what is not there, as git-annex leaves of content that was not fetched."""
    return path.is_symlink() and not path.exists()


def broken_link_notes(paths: Sequence[Path]) -> list[str]:
    """A note on links that lead nowhere; none for none."""
    if not paths:
        return []
    first = printable(paths[0].name)
    return [
        f"{len(paths)} files are links that lead nowhere ({first}); they count as missing. Was their content fetched?"
    ]


def refuse_duplicates(ids: Sequence[str], what: str) -> None:
    """Raises: UsageError if two studies would be written under one name."""
    twins = sorted({name for name in ids if ids.count(name) > 1})
    if twins:
        raise UsageError(f"Two studies would be called {twins[0]} in {what}. Give one of them another id.")
