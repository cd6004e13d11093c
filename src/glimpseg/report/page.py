"""Parts of an HTML report: template, figures as SVG, pictures as data URIs, cell colours, tables as files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from glimpseg.results import html
from glimpseg.results.tables import Table
from glimpseg.runtime.atomic import write_text

PAPER_SHARE = 0.55
"""Share of white in cell colours, so that black text stays readable."""


def render(template: str, **values: Any) -> str:
    """Return the page made from a template in this folder; `values` are its variables."""
    return html.render("glimpseg.report", template, **values)


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element; the same numbers give the same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "glimpseg", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, dpi: int = 80) -> str:
    """Return a figure as a PNG in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour(share: float) -> str:
    """Return a pale colour from red (0) through yellow to green (1), as `#rrggbb`; empty for NaN."""
    if math.isnan(share):
        return ""
    red, green, blue, _ = matplotlib.colormaps["RdYlGn"](float(np.clip(share, 0, 1)))
    pale = (round(255 * ((1 - PAPER_SHARE) * part + PAPER_SHARE)) for part in (red, green, blue))
    return "#{:02x}{:02x}{:02x}".format(*pale)


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write each table to `tables/` in a folder, as `<name>.csv` and `<name>.tex`. Raises: OutputError."""
    for table in tables:
        write_text(folder / "tables" / f"{table.name}.csv", table.as_csv)
        write_text(folder / "tables" / f"{table.name}.tex", table.as_latex)


def number(value: float | None, decimals: int = 1, sign: bool = False) -> str:
    """Return a number as a table shows it: rounded, with a true minus sign; a dash if it is None or NaN.

    Args:
        value: The number.
        decimals: Number of decimals.
        sign: Show a plus sign, too.
    """
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text.replace("-", "−")


def interval(entry: Mapping[str, float | None], factor: float, decimals: int = 1) -> str:
    """Return `82.1 to 89.4` for an entry with `low` and `high`, times `factor`; an empty text if one is None."""
    low, high = entry["low"], entry["high"]
    if low is None or high is None:
        return ""
    return f"{number(factor * low, decimals)} to {number(factor * high, decimals)}"
