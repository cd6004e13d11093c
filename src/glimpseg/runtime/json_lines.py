"""Logs that grow line by line: JSON lines, each complete or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from glimpseg.runtime.atomic import as_output_error


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
    """Return the lines of a file, none if there is no file. A line that was cut short, by a kill, is left out."""
    trees = []
    for line in Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []:
        with suppress(json.JSONDecodeError):
            trees.append(json.loads(line))
    return trees


def _size_of_lines(file: IO[bytes]) -> int:
    """Return the number of bytes of a file up to its last line end, 0 if it has none."""
    size = file.seek(0, os.SEEK_END)
    if size and file.seek(size - 1) >= 0 and file.read(1) != b"\n":
        file.seek(0)
        return file.read().rfind(b"\n") + 1
    return size
