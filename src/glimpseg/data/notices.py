"""Warnings about a study: logged at once, and collected for the record of its result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)

_collected: ContextVar[list[str] | None] = ContextVar("warnings", default=None)
"""The list of the innermost `collected_warnings` of this thread."""


def warn(text: str) -> None:
    """Log a warning, and add it to the list that collects warnings in this thread, if there is one."""
    log.warning("%s", text)
    found = _collected.get()
    if found is not None and text not in found:  # a large file is read more than once
        found.append(text)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that receives every warning of the block, each once, in the order of their first appearance."""
    found: list[str] = []
    before = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(before)
