"""A table once, in every form it is wanted in: HTML cells, CSV, LaTeX, text."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glimpseg.modality import Modality, parse

DOT_ORDER = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
"""Columns of dots, as the field's tables have them."""
_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "%&_#${}"},
        "−": "$-$",
        "–": "--",
        "<": "$<$",
        "†": r"$\dagger$",
        "\u00a0": "~",
    }
)


@dataclass(frozen=True)
class Cell:
    """One entry."""

    text: str
    """As it is read."""
    value: float | str | None = None
    """As CSV holds it; the text if None."""
    small: str = ""
    """Said under the text in smaller type: an interval, a count."""
    parts: Mapping[str, float | int | None] = field(default_factory=dict)
    """The numbers in `small` by name: columns of their own in CSV."""
    colour: str = ""
    """Background on a page, `#rrggbb`."""
    dot: bool | None = None
    """Whether a sequence is present; None for any other cell."""


MISSING = Cell("–", "")
"""Where there is no number."""


@dataclass(frozen=True)
class Table:
    """Rows under columns, with a title and what has to be known to read it."""

    name: str
    """Of its files."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    footer: Sequence[Cell] = ()
    """A last row set apart, means for instance."""
    note: str = ""
    small: str = ""
    """What the small numbers are."""

    @property
    def lines(self) -> list[Sequence[Cell]]:
        """The rows and the footer."""
        return [*self.rows, *([self.footer] if self.footer else [])]

    @property
    def as_csv(self) -> str:
        """With full numbers; those that are small on the page have columns of their own."""
        parts = [list(dict.fromkeys(p for row in self.lines for p in row[i].parts)) for i in range(len(self.columns))]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        heads = [[name, *(f"{name} {part}" for part in of)] for name, of in zip(self.columns, parts, strict=True)]
        writer.writerow(itertools.chain.from_iterable(heads))
        for row in self.lines:
            cells = [[_plain(cell), *map(cell.parts.get, of)] for cell, of in zip(row, parts, strict=True)]
            writer.writerow(itertools.chain.from_iterable(cells))
        return file.getvalue()

    @property
    def as_latex(self) -> str:
        """A `tabular` for the package booktabs; small numbers follow in brackets of smaller type."""
        dots = {i for row in self.rows for i, cell in enumerate(row) if cell.dot is not None}
        kinds = "".join("c" if i in dots else "l" if _is_text(self, i) else "r" for i in range(len(self.columns)))
        lines = [
            f"% {self.title}. {self.note}".replace("\n", " "),
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(name.translate(_LATEX) for name in self.columns) + r" \\",
            r"\midrule",
            *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in self.rows),
        ]
        if self.footer:
            lines += [r"\midrule", " & ".join(_latex(cell) for cell in self.footer) + r" \\"]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    @property
    def as_text(self) -> str:
        """For a terminal; small numbers are left out."""
        rows = [list(self.columns), *([cell.text for cell in row] for row in self.lines)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        return "\n".join(" ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)) for row in rows)


def dots(subset: str) -> list[Cell]:
    """The four cells that begin a row of the field's tables."""
    members = parse(subset)
    return [Cell("●" if m in members else "○", int(m in members), dot=m in members) for m in DOT_ORDER]


def dot_titles() -> list[str]:
    """The columns above them."""
    return [modality.title for modality in DOT_ORDER]


def no_dots(text: str) -> list[Cell]:
    """Four cells in the place of dots, the last with a word, for a footer."""
    return [*[Cell("")] * (len(DOT_ORDER) - 1), Cell(text)]


def _plain(cell: Cell) -> float | str:
    return cell.text if cell.value is None else cell.value


def _latex(cell: Cell) -> str:
    if cell.dot is not None:
        return r"$\bullet$" if cell.dot else r"$\circ$"
    small = rf" {{\scriptsize {cell.small.translate(_LATEX)}}}" if cell.small else ""
    return cell.text.translate(_LATEX) + small


def _is_text(table: Table, column: int) -> bool:
    return all(isinstance(row[column].value, str | None) for row in table.rows)
