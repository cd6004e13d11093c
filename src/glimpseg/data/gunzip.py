"""The content of gz files: by ISA-L where `isal` is installed, else by zlib. Bytes and refusals are the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """A gz file, opened to read what it holds; checksum and length are compared when its end is read.

    Raises: EOFError if it is cut short; OSError or zlib.error if it is damaged or no gz file.
    """
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        with gzip.open(path) as stream:
            yield stream
        return
    damaged: Any = isal_zlib.error  # a class of its own, which the stubs take for an object
    try:
        with igzip.open(path) as stream:
            yield stream
    except damaged as error:
        raise zlib.error(str(error)) from error
