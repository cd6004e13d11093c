"""Warnings and notes about input studies: told on the terminal within ten lines, and kept whole for the record.

A warning says that something is doubtful: look at it. A note says that something was done, moved or left out. Every
stage calls `warn` and `note`; none logs about a study by itself. `StudyNotices` tells the notices of one study and
keeps them; `collected` keeps those of a step. Both see the calls of their own thread only, while they are open.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from glimpseg.runtime.atomic import remove_file, write_text

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["warning", "note"]
Item = TypeVar("Item")

MOST_LINES = 10
"""Most lines on the terminal for one study, before the line that counts the rest."""
MOST_EARLY_NOTES = 5
"""Most lines that hold notes or follow one while a study is still worked on. The rest is kept for later warnings."""
LEVELS: Mapping[Kind, int] = {"warning": logging.WARNING, "note": logging.INFO}
TABLE = "notes.csv"
"""File with all warnings and notes of the studies of an output folder: study, kind, text."""
TREE = ""
"""Name in the table for what concerns no single study, such as a file that belongs to none."""


@dataclass(eq=False)
class Notices:
    """Warnings and notes, each once, in the order of their first appearance."""

    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: Kind, text: str) -> bool:
        """Add a notice; return False if its text is there already, in either list."""
        if text in self.warnings or text in self.notes:
            return False
        (self.warnings if kind == "warning" else self.notes).append(text)
        return True

    def take(self, other: Notices) -> None:
        """Add all notices of another object; a study tells them."""
        for kind, text in other.rows():
            self.add(kind, text)

    def rows(self) -> Iterator[tuple[Kind, str]]:
        """Yield kind and text of each notice, warnings first."""
        yield from (("warning", text) for text in self.warnings)
        yield from (("note", text) for text in self.notes)

    def as_tree(self) -> dict[str, list[str]]:
        """Return the fields `warnings` and `notes` of a JSON record."""
        return {"warnings": list(self.warnings), "notes": list(self.notes)}

    def as_copy(self) -> Notices:
        """Return the lists alone, which can be sent to another process."""
        return Notices(list(self.warnings), list(self.notes))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Receive the notices of this thread until the end of the block. An object may be opened several times."""
        before = _open.set((*_open.get(), self))
        try:
            yield
        finally:
            _open.reset(before)

    def during(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, and receive the notices of making each of them, but none of the caller's."""
        source = iter(items)
        while True:
            with self.open():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item


_open: ContextVar[tuple[Notices, ...]] = ContextVar("notices", default=())
"""Objects that are open in this thread, the innermost last."""


@dataclass(eq=False)
class StudyNotices(Notices):
    """Notices of one study, told on the terminal: at most ten lines, warnings before notes, then a count.

    A warning is told at once. Notes wait for `tell` or `finish`, so that they take no line from a warning of the same
    stage. `tell` may be called before the network runs; it leaves five lines for warnings that come later.
    """

    name: str = ""
    """Name of the study, which begins each line; empty if there is only one study."""
    where: str = "--debug shows all of them"
    """End of the line that counts the rest: where all notices are."""
    hidden: dict[str, str] = field(default_factory=dict)
    """Words that are replaced in every text, for results that are de-identified. Paths are then cut, too."""
    told: int = 0
    """Lines that were told."""
    _known: set[str] = field(default_factory=set)
    """Texts that were told, or that something else has told."""
    _counted: set[str] = field(default_factory=set)
    """Texts that found no line and were counted."""

    def add(self, kind: Kind, text: str) -> bool:
        """Add a notice, and tell it at once if it is a warning and a line is left."""
        is_new = super().add(kind, text)
        if is_new and kind == "warning":
            self._show(kind, text, MOST_LINES)
        return is_new

    def add_known(self, kind: Kind, text: str) -> None:
        """Add a notice that was told before, such as one of the whole tree."""
        self._known.add(text)
        super().add(kind, text)

    def tell(self) -> None:
        """Tell the notes so far. Five lines are left for warnings that come later."""
        self._show_notes(MOST_EARLY_NOTES)

    def finish(self) -> None:
        """Tell the other notes, then the number of notices that found no line and where they are.

        It may be called again after further notices.
        """
        self._show_notes(MOST_LINES)
        left = [(kind, text) for kind, text in self.rows() if text not in self._known]
        new = [(kind, text) for kind, text in left if text not in self._counted]
        if new:
            level = max(LEVELS[kind] for kind, _ in new)
            log.log(level, "%s", self._line(f"... and {len(left)} more: {self.where}."))
            for _, text in new:
                log.debug("%s", self._line(text))
            self._counted.update(text for _, text in new)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Receive the notices of the block, and tell all at its end, also after an error."""
        try:
            with self.open():
                yield
        finally:
            self.finish()

    def shown(self, text: str) -> str:
        """Return a text without the `hidden` words."""
        if not self.hidden:
            return text
        words = "|".join(re.escape(word) for word in sorted(self.hidden, key=len, reverse=True))
        text = re.sub(rf"(?<!\w)({words})(?!\w)", lambda found: self.hidden[found.group()], text)
        return " ".join(Path(word).name or word if word.startswith(os.sep) else word for word in text.split(" "))

    def _show_notes(self, most: int) -> None:
        for text in self.notes:
            if text not in self._known:
                self._show("note", text, most)

    def _show(self, kind: Kind, text: str, most: int) -> None:
        if self.told < most:
            self.told += 1
            self._known.add(text)
            log.log(LEVELS[kind], "%s", self._line(text))

    def _line(self, text: str) -> str:
        named = not self.name or text.startswith((f"{self.name}:", f"{self.name} "))
        return text if named else f"{self.name}: {text}"


def warn(text: str) -> None:
    """Say that something about an input is doubtful, so that a person should look."""
    _say("warning", text)


def note(text: str) -> None:
    """Say that something was done to an input, moved or left out."""
    _say("note", text)


def _say(kind: Kind, text: str) -> None:
    """Give a notice to the objects that are open in this thread, up to the study; log it if no study is open."""
    opened = _open.get()
    place = next((place for place in reversed(range(len(opened))) if isinstance(opened[place], StudyNotices)), None)
    if place is None:
        log.log(LEVELS[kind], "%s", text)
    else:
        study = opened[place]
        assert isinstance(study, StudyNotices)
        text, opened = study.shown(text), opened[place:]
    for one in opened:
        one.add(kind, text)


@contextmanager
def collected() -> Iterator[Notices]:
    """Yield an object that receives every notice of the block. A study that is open outside receives them, too."""
    found = Notices()
    with found.open():
        yield found


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that receives every warning of the block, each once, in the order of their first appearance."""
    with collected() as found:
        yield found.warnings


def table_of(notices: Iterable[tuple[str, Notices]]) -> str:
    """Return a CSV table of notices: a row for each with the study, the kind and the text. Empty if there are none.

    Args:
        notices: Notices by the name of the study; `TREE` for those of no single study.
    """
    rows = [(study, kind, text) for study, found in notices for kind, text in found.rows()]
    if not rows:
        return ""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("study", "kind", "text"))
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "replace").decode("utf-8")  # names need not be UTF-8


def write_table(path: Path, notices: Iterable[tuple[str, Notices]]) -> None:
    """Write the table of notices (`table_of`). If there are none, no file is written, and an older one is removed.

    A file that holds the same table is left alone, so the disk may be read-only then.

    Raises: OutputError when the disk refuses.
    """
    table = table_of(notices)
    if not table:
        remove_file(path)
    elif not (path.is_file() and path.read_bytes() == table.encode("utf-8", "replace")):
        write_text(path, table)
