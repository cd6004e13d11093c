"""Result of `identify`: a table for the screen, and the editable file series.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

from glimpseg.data.identify.verdict import SeriesVerdict, Tie
from glimpseg.data.notices import Notices
from glimpseg.data.series import Series
from glimpseg.modality import Modality, union
from glimpseg.runtime.atomic import write_text

SCHEMA = 1
"""Schema version of series.json; raised when an older reader would misunderstand the file."""
WIDTH = 130
"""Most characters of a line on the screen."""
DESCRIPTION_WIDTH = 30
"""Most characters of a series description on the screen."""
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
HOW_TO = (
    "Change `sequence` to t1, t1c, t2, flair or null; name each sequence once. "
    "Nothing else has to be changed. The files lie below `folder`, a path relative to this file."
)
"""Instructions for a person who edits series.json."""


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Identified series of one study, with the reasons."""

    folder: Path
    """Folder that holds the files."""
    verdicts: tuple[SeriesVerdict, ...]
    """Verdict on every series, in the order of series numbers."""
    chosen: Mapping[Modality, Series]
    """Chosen series for each sequence that was found."""
    ties: tuple[Tie, ...] = ()
    """Sequences that several series fit, with the rule that decided."""
    notes: tuple[str, ...] = ()
    """Further notes: files that were ignored, sequences that only a reformatted series shows."""
    notices: Notices = field(default_factory=Notices)
    """Warnings and notes of reading the headers, for series.json."""

    @property
    def available(self) -> Modality:
        """Sequences that were found."""
        return union(self.chosen)

    @property
    def tie_sentences(self) -> list[str]:
        """Sentences about sequences that several series fit."""
        return [_tie_sentence(tie) for tie in self.ties]

    @property
    def unused_sentences(self) -> list[str]:
        """One sentence for each series that was not chosen, with the reason; equal ones are counted."""
        counts: dict[str, int] = {}
        for verdict in self.verdicts:
            if self.used_as(verdict.series) is None:
                sentence = f"series {_named(verdict.series)} is not used: {self._why(verdict)}"
                counts[sentence] = counts.get(sentence, 0) + 1
        return [f"{text} ({count} alike)." if count > 1 else f"{text}." for text, count in counts.items()]

    def used_as(self, series: Series) -> Modality | None:
        """Return the sequence for which a series was chosen, or None."""
        return next((modality for modality, other in self.chosen.items() if other.key == series.key), None)

    def text(self) -> str:
        """Return a table for the screen, with `*` at chosen series, then missing sequences, ties and notes."""
        rows = _merged_rows([self._row(verdict) for verdict in self.verdicts])
        widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
        widths[-1] = max(WIDTH - sum(widths[:-1]) - 2 * len(widths) + 2, 20)
        lines = [line for row in (_HEAD, *rows) for line in _wrapped(row, widths)]
        return "\n".join([*lines, "", *self._sentences()])

    def to_json(self, beside: Path | None = None) -> str:
        """Return the content of series.json.

        File paths are relative to the folder. The path of the folder is relative to `beside`, the place of series.json;
        by default that is the folder itself.
        """
        relative = Path(os.path.relpath(self.folder.absolute(), (beside or self.folder).absolute())).as_posix()
        document = {
            "schema": SCHEMA,
            "how_to": HOW_TO,
            "folder": relative,
            "series": [self._entry(verdict) for verdict in self.verdicts],
            "ties": [_tie_sentence(tie) for tie in self.ties],
            "warnings": [*self.notices.warnings, *self.notes],
            "notes": list(self.notices.notes),
            "files": {verdict.series.key: self._files(verdict.series) for verdict in self.verdicts},
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        # A file name need not be UTF-8; its other bytes are escaped, since they cannot be written otherwise.
        return _NOT_UTF8.sub(lambda half: f"\\u{ord(half.group()):04x}", text)

    def write(self, path: str | Path) -> None:
        """Write series.json, atomically. Raises: OutputError when the disk refuses."""
        path = Path(path)
        write_text(path, self.to_json(path.parent))

    def _row(self, verdict: SeriesVerdict) -> tuple[str, ...]:
        used = self.used_as(verdict.series)
        sequence = verdict.sequence.title if verdict.sequence is not None else "-"
        return (
            "*" if used is not None else "",
            _number(verdict.series),
            verdict.series.key,
            description(verdict.series)[:DESCRIPTION_WIDTH],
            _slices(verdict.series),
            sequence,
            f"{verdict.score:g}" if verdict.score else "",
            self._why(verdict),
        )

    def _why(self, verdict: SeriesVerdict) -> str:
        """Return the reason of a verdict, and why the series was not taken if another one was."""
        if verdict.sequence is None or self.used_as(verdict.series) is not None:
            return verdict.why
        return f"not taken: {_not_taken(verdict, self.chosen[verdict.sequence])}; {verdict.why}"

    def _entry(self, verdict: SeriesVerdict) -> dict[str, object]:
        used = self.used_as(verdict.series)
        entry: dict[str, object] = {
            "key": verdict.series.key,
            "number": _number(verdict.series),
            "description": description(verdict.series),
            "sequence": None if used is None else used.key,
            "could_be": None if verdict.sequence is None else verdict.sequence.key,
            "why": verdict.why,
            "score": round(verdict.score, 1),
            "geometry": _geometry(verdict.series),
            "source": verdict.series.source,
            "study": verdict.series.study,
            "evidence": [str(piece) for piece in verdict.evidence],
        }
        return entry

    def _files(self, series: Series) -> list[str]:
        return [file.relative_to(self.folder).as_posix() for file in series.files]

    def _sentences(self) -> list[str]:
        found = ", ".join(f"{modality.title} = {_named(series)}" for modality, series in self.chosen.items())
        missing = [modality.title for modality in Modality if modality not in self.available]
        lines = [f"Chosen: {found}." if found else "No series was identified as T1, T1c, T2 or FLAIR."]
        if missing and found:
            lines.append(f"Not found: {', '.join(missing)}. Any subset will do.")
        return [*lines, *map(_tie_sentence, self.ties), *self.notes]


_HEAD = ("", "no.", "key", "description", "plane, slices", "sequence", "points", "why")


def description(series: Series) -> str:
    """Return the description of a series, or else its file name or protocol name."""
    names = (series.words.get(keyword, "") for keyword in ("SeriesDescription", "FileName", "ProtocolName"))
    return next((" ".join(name.split()) for name in names if name.strip()), "")


def _number(series: Series) -> str:
    number = series.numbers.get("SeriesNumber")
    return "" if number is None else f"{number:g}"


def _named(series: Series) -> str:
    name, number = description(series), _number(series)
    return f"{number} ({name})" if name and number else name or number or series.key


def _geometry(series: Series) -> str:
    parts: list[str] = [series.plane or ""]
    if series.shape is not None and series.spacing_mm is not None:
        voxels = "x".join(map(str, series.shape))
        parts.append(f"{voxels} of {'x'.join(f'{size:.2g}' for size in series.spacing_mm)} mm")
    return " ".join(filter(None, parts))


def _slices(series: Series) -> str:
    """Plane, number of slices and their distance, as in `axial 24 x 5 mm`."""
    if series.shape is None or series.spacing_mm is None:
        return series.plane or ""
    return f"{series.plane or ''} {series.shape[2]} x {series.spacing_mm[2]:.2g} mm".strip()


def _not_taken(verdict: SeriesVerdict, taken: Series) -> str:
    number = _number(taken) or taken.key
    return f"made from another series, {number} is an original" if verdict.second else f"{number} was"


def _tie_sentence(tie: Tie) -> str:
    others = " and ".join(_number(other) or other.key for other in tie.others)
    return (
        f"{tie.sequence.title}: series {others} would fit as well as {_number(tie.taken) or tie.taken.key}, "
        f"which was chosen by the rule: {tie.because}."
    )


def _merged_rows(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Merge rows that differ only by their key, such as the volumes of a dynamic series."""
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault((*row[:2], *row[3:]), []).append(row)
    return [
        (*alike[0][:-1], f"{alike[0][-1]} ({len(alike)} alike)" if len(alike) > 1 else alike[0][-1])
        for alike in groups.values()
    ]


def _wrapped(row: tuple[str, ...], widths: list[int]) -> list[str]:
    why = wrap(row[-1], widths[-1]) or [""]
    first = [f"{cell:<{width}}" for cell, width in zip(row[:-1], widths[:-1], strict=True)]
    blank = [" " * width for width in widths[:-1]]
    return ["  ".join([*(blank if i else first), part]).rstrip() for i, part in enumerate(why)]
