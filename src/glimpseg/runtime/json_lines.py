"""Logs that grow line by line: JSON lines, each complete or not there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from glimpseg.runtime.atomic import as_output_error
from glimpseg.runtime.documents import parse_json

log = logging.getLogger(__name__)


def append_json_line(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Append a line to a file of JSON lines. One process at a time may do so.

    A line at the end that was cut short, by a kill or a crash, is removed first: the new line would continue it.

    Raises:
        OutputError: The disk is full, read-only or not accessible. The lines from before stay.
    """
    path = Path(path)
    data = f"{json.dumps(tree)}\n".encode()
    with as_output_error(path), path.open("ab+", buffering=0) as file:
        size = _size_of_lines(file)
        file.truncate(size)
        try:
            while data:  # a disk that becomes full takes a part, and refuses the rest
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a file, none if there is no file.

    A last line that was cut short, by a kill, is left out. So is any line that is damaged, with a warning.
    """
    path = Path(path)
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found = [_tree_of(line) for line in lines]
    damaged = found.count(None)
    if damaged:
        log.warning("%s: %d of %d lines are damaged and were left out.", path.name, damaged, len(found))
    return [tree for tree in (*found, _tree_of(last)) if tree is not None]


def _tree_of(line: bytes) -> dict[str, Any] | None:
    """Return the content of a line, None if it is no JSON object."""
    try:
        tree = parse_json(line.decode("utf-8"), finite=False, names_files=True)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _size_of_lines(file: IO[bytes]) -> int:
    """Return the number of bytes of a file up to its last line end, 0 if it has none."""
    size = file.seek(0, os.SEEK_END)
    if size and file.seek(size - 1) >= 0 and file.read(1) != b"\n":
        file.seek(0)
        return file.read().rfind(b"\n") + 1
    return size
