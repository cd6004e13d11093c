"""Foreign files are opened in a process of their own, with limited memory and time: if it dies, only it dies."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SPARE_BYTES = 2 << 30
"""What a reader may take beyond what it holds once its imports are done."""


class SandboxError(RuntimeError):
    """The reader refused or died; the message is its last line, or how it ended."""


def run_sandboxed(module: str, arguments: Sequence[str | Path], *, seconds: float) -> None:
    """Runs `python -m module arguments` and waits. What it makes it writes into files that the arguments name.

    Raises: ReaderFailed if it ends with anything but 0, or takes longer.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"it could not be read in {seconds:g} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SandboxError(said[-1] if said else f"reader ended with {done.returncode}")


def limit_memory(more: int = SPARE_BYTES) -> None:
    """Of this process, to what it has and so much more; where the system has such limits."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        has = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        allowed = resource.getrlimit(resource.RLIMIT_AS)[1]  # by whoever started us, a cluster's scheduler for one
        most = has + more if allowed == resource.RLIM_INFINITY else min(has + more, allowed)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
