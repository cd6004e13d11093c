"""Read gz files with ISA-L if `isal` is installed, else with zlib. Results and errors are the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """Open a gz file to read its content. Checksum and length are checked when the end is read.

    Raises: EOFError if it is truncated; OSError or zlib.error if it is damaged or no gz file.
    """
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        with gzip.open(path) as stream:
            yield stream
        return
    damaged: Any = isal_zlib.error  # an exception class; the stubs declare it as an object
    try:
        with igzip.open(path) as stream:
            yield stream
    except damaged as error:
        raise zlib.error(str(error)) from error
