"""Choice of the report that a folder gets."""

from __future__ import annotations

from pathlib import Path

from glimpseg.report import comparison, evaluation
from glimpseg.results.folder import COMPARISON


def write_html(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the HTML report of an evaluation or a comparison, and its tables as CSV and LaTeX.

    Args:
        folder: A folder that `evaluate` or `compare` wrote. The tables go to `tables/` in it.
        path: The HTML file; `report.html` in the folder by default.

    Returns:
        The path of the HTML file.

    Raises:
        InputError: The folder holds neither a finished evaluation nor a comparison.
        OutputError: When the disk refuses.
    """
    is_comparison = (Path(folder) / COMPARISON).is_file()
    return (comparison if is_comparison else evaluation).write_html(folder, path)
