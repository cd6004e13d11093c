"""Tables that can be written as HTML, CSV, LaTeX and text."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glimpseg.modality import Modality, parse

DOT_ORDER = (Modality.FLAIR, Modality.T1, Modality.T1C, Modality.T2)
"""Order of the sequences in the columns of dots, as in the tables of the field."""
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
    """Cell of a table."""

    text: str
    """Text that is shown."""
    value: float | str | None = None
    """Value in CSV; the text if None."""
    small: str = ""
    """Smaller text below: an interval, a count."""
    parts: Mapping[str, float | int | None] = field(default_factory=dict)
    """Numbers in `small` by name; each has its own column in CSV."""
    colour: str = ""
    """Background in HTML, `#rrggbb`; empty for none."""
    dot: bool | None = None
    """True if a sequence is present, False if not; None for any other cell."""


MISSING = Cell("–", "")
"""Cell without a number: a dash, empty in CSV."""


@dataclass(frozen=True)
class Table:
    """Rows under columns, with a title and notes."""

    name: str
    """Name of its files, without suffix."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    footer: Sequence[Cell] = ()
    """Last row, set apart: means, for instance."""
    note: str = ""
    """Explanation below the table."""
    small: str = ""
    """Explanation of the small numbers."""

    @property
    def lines(self) -> list[Sequence[Cell]]:
        """Rows, and the footer if there is one."""
        return [*self.rows, *([self.footer] if self.footer else [])]

    @property
    def as_csv(self) -> str:
        """CSV of the cells' values, with a header. Each of the numbers in `Cell.parts` has a column of its own."""
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
        """LaTeX `tabular` for the package booktabs. The small text of a cell follows its text in smaller type."""
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
        """Text for a terminal: columns and cells, without the small text, the title and the note."""
        rows = [list(self.columns), *([cell.text for cell in row] for row in self.lines)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        return "\n".join(" ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)) for row in rows)


def dots(subset: str) -> list[Cell]:
    """Return the four cells at the beginning of a row, in `DOT_ORDER`: filled for each sequence that the subset has."""
    members = parse(subset)
    return [Cell("●" if m in members else "○", int(m in members), dot=m in members) for m in DOT_ORDER]


def dot_titles() -> list[str]:
    """Return the titles of the columns of dots."""
    return [modality.title for modality in DOT_ORDER]


def no_dots(text: str) -> list[Cell]:
    """Return four cells for a footer in the place of dots, the last one with a text."""
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
