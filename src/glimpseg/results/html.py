"""HTML pages made from templates of this package."""

from __future__ import annotations

from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2


def render(package: str, template: str, **values: Any) -> str:
    """Return the page made from a template in a package; `values` are its variables.

    Every value is escaped. A variable that is missing is an error. The filter `data_uri` makes a data URI of a text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files(package).joinpath(name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = lambda text, kind: f"data:{kind};charset=utf-8,{quote(text)}"
    return environment.get_template(template).render(**values)
