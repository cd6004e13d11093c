"""Sandbox: read untrusted files in a subprocess with limited memory and time.

If a file makes its reader crash, hang or use too much memory, only the subprocess ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SPARE_BYTES = 2 << 30
"""Memory that a reader may use in addition to what it holds after its imports."""


class SandboxError(RuntimeError):
    """Failure of a sandboxed reader. The message is the reader's last line on stderr, or how it ended."""


def run_sandboxed(module: str, arguments: Sequence[str | Path], *, seconds: float) -> None:
    """Run `python -m module arguments` in a subprocess and wait for it.

    Args:
        module: Module with a main program. It writes its results into files that the arguments name.
        arguments: Command-line arguments.
        seconds: Time limit.

    Raises:
        SandboxError: The subprocess ended with an exit code other than 0, or took longer.
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
    """Limit the memory of this process to what it has now plus `more` bytes, where the system supports such limits."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        has = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        allowed = resource.getrlimit(resource.RLIMIT_AS)[
            1
        ]  # a limit that is already set, for example by a cluster's scheduler
        most = has + more if allowed == resource.RLIM_INFINITY else min(has + more, allowed)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
