"""Build settings of the documentation. The build needs no network: matplotlib draws the formulas.

The pages in `tutorials/` are notebooks, and the build runs them. Their outputs are kept in `.jupyter_cache`, so that a
notebook runs again only when its code has changed. `make docs-fresh` runs all of them anew.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from matplotlib import mathtext, rc_context
from sphinx.application import Sphinx

from glimpseg.version import __version__

project = "glimpseg"
author = "The glimpseg contributors"
copyright = author  # noqa: A001
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", ".jupyter_cache"]

nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).with_name(".jupyter_cache"))
nb_execution_in_temp = True
nb_execution_timeout = 600
"""Seconds for one cell."""
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!glimpseg` in notebooks
os.environ["COLUMNS"] = "100"

autodoc_typehints = "none"
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"glimpseg {version}"
html_math_renderer = "drawn"
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"font-stack": "system-ui, sans-serif", "font-stack--monospace": "ui-monospace, monospace"}
}


def drawn(translator: Any, node: nodes.Element) -> None:
    """Write a formula into the page, as an SVG in the colour of the text."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "mathtext.fontset": "cm", "font.size": 11, "savefig.transparent": True}):
        depth = mathtext.math_to_image(f"${node.astext().strip()}$", buffer, dpi=72, format="svg", color="red")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#ff0000", "currentColor")
    # The date would make every build another, and the style would hold for the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    style = f'<svg role="img" style="vertical-align: -{depth:.1f}pt" '
    translator.body.append(svg.replace("<svg ", style, 1))
    raise nodes.SkipNode


written: dict[str, list[str]] = {}
"""Docstrings of attributes by name, before napoleon changes them."""


def keep_attribute(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the docstring of an attribute: napoleon would take text before a colon for its type."""
    if what == "attribute":
        written[name] = list(lines)


def restore_attribute(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Restore the docstring of an attribute after napoleon."""
    if what == "attribute":
        lines[:] = written[name]


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas, and the handlers of attributes' docstrings."""
    app.add_html_math_renderer("drawn", inline_renderers=(drawn, None), block_renderers=(drawn, None))
    app.connect("autodoc-process-docstring", keep_attribute, priority=100)
    app.connect("autodoc-process-docstring", restore_attribute, priority=900)
